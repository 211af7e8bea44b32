"""Latency: variants predict correctly, and the numbers of a row are consistent."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from configs import tiny
from minilm_jax.bench import latency
from minilm_jax.cli import main
from minilm_jax.core import files, lock, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.model.heads import init_classifier

SIZE, HEADS = 2, 3
NAMES = [
  'shallow',
  f'shallow, {HEADS} heads',
  f'{SIZE} x shallow, one after another',
  f'{SIZE} x shallow, vmapped',
  f'{SIZE} x shallow, over {SIZE} devices',
  'deep',
]


def make_config(**changes: object) -> RunConfig:
  source = tiny.get_config()
  source.update_from_flattened_dict(
    {
      'model.hidden_size': 8,
      'model.embedding_size': 8,
      'model.intermediate_size': 16,
      'model.num_heads': 2,
      'model.num_layers': 1,
      'model.vocab_size': 60,
      'model.max_length': 16,
      **changes,
    }
  )
  return recipe.resolve(source, 'pretrain')


CONFIGS = {'shallow': make_config(), 'deep': make_config(**{'model.num_layers': 2})}
SHALLOW = CONFIGS['shallow'].model


@pytest.fixture(scope='module')
def variants() -> dict[str, Any]:
  return latency.build_variants(
    {name: config.model for name, config in CONFIGS.items()}, SIZE, HEADS
  )


@pytest.fixture(scope='module')
def result(variants: dict[str, Any]) -> dict:
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(latency, 'BATCHES', (1, 2))
    patch.setattr(latency, 'build_variants', lambda models, size, heads: variants)
    return latency.measure_latency(CONFIGS, SIZE, 5, HEADS)


def test_rows_have_times_depths_and_sizes(result: dict):
  assert [(row['name'], row['batch']) for row in result['rows']] == [
    (name, batch) for batch in (1, 2) for name in NAMES
  ]
  single, headed, mapped, vmapped, sharded, deep = rows = result['rows'][:6]
  assert [row['depth'] for row in rows] == [1, 1, SIZE, 1, 1, 2]
  assert [row['devices'] for row in rows] == [1, 1, 1, 1, SIZE, 1]
  assert [(row['members'], row['heads']) for row in rows] == [
    (1, 1),
    (1, HEADS),
    *[(SIZE, 1)] * 3,
    (1, 1),
  ]
  for row in (mapped, vmapped, sharded):
    assert (
      row['parameters'] == SIZE * single['parameters'] and row['flops'] == SIZE * single['flops']
    )
  assert [row['recipe'] for row in rows] == ['shallow'] * 5 + ['deep']
  hidden, classes = SHALLOW.hidden_size, latency.CLASSES
  assert headed['parameters'] - single['parameters'] == (HEADS - 1) * (
    hidden * (hidden + 1) + (hidden + 1) * classes
  )
  assert headed['flops'] - single['flops'] == (HEADS - 1) * 2 * hidden * (hidden + classes)
  assert single['flops'] < headed['flops'] < deep['flops'] and single[
    'over_member'
  ] == pytest.approx(1)
  for row in result['rows']:
    times = row['milliseconds']
    assert (
      0 < times['lowest'] <= times['low'] <= times['median'] <= times['high']
      and times['median'] <= times['p95']
    )
    assert row['length'] == 16
  assert 'jax' in result['versions'] and result['calls'] == 5 and result['warm_up'] > 0


def test_all_committees_predict_the_mean_of_the_members(variants: dict[str, Any]):
  tokens = latency.make_rows(SHALLOW, 2)

  @jax.jit
  def predict_members(seeds: jax.Array) -> jax.Array:
    def predict_member(seed: jax.Array) -> jax.Array:
      member = init_classifier(SHALLOW, latency._HEAD, latency.CLASSES, jax.random.key(seed))
      return jax.nn.softmax(member(jnp.asarray(tokens), jnp.asarray(tokens != 1)))

    return jax.vmap(predict_member)(seeds)

  mean = np.mean(predict_members(jnp.arange(SIZE)), 0)
  predictions = [
    predict(tokens) for name, (predict, *_) in variants.items() if name.startswith(f'{SIZE} x')
  ]
  assert len(predictions) == 3 and mean.shape == (2, latency.CLASSES)
  for prediction in predictions:
    np.testing.assert_allclose(prediction, mean, atol=1e-5)


def test_the_depth_counts_blocks_and_convolutions():
  """The last convolution, to one channel, counts; embedding and heads do not."""
  deep = {
    name: latency.measure_depth(
      recipe.resolve(recipe.load(f'configs/paper2_models.py:{name}'), 'pretrain').model
    )
    for name in ('bert-6', 'bert-1', 'bert-1-conv0-h24', 'conv2-k3-d64', 'conv3-k3-d32')
  }
  assert deep == {
    'bert-6': 6,
    'bert-1': 1,
    'bert-1-conv0-h24': 1,
    'conv2-k3-d64': 4,
    'conv3-k3-d32': 5,
  }


def test_running_statistics_are_not_parameters():
  convolved = {'model.convolutions': 1, 'model.kernel': '3,3', 'model.channels': 2}
  paper = latency._list_facts(make_config(**convolved).model)['parameters']
  assert paper - latency._list_facts(SHALLOW)['parameters'] == (9 * 2 + 2 + 2 * 2) + (2 + 1 + 2)


def test_flops_are_close_to_those_of_xla():
  model, head = CONFIGS['deep'].model, dataclasses.replace(latency._HEAD, ensemble_size=HEADS)
  shapes = jax.eval_shape(lambda: init_classifier(model, head, latency.CLASSES, jax.random.key(0)))
  xla_flops = (
    jax.jit(latency._predict_probabilities)
    .lower(shapes, latency.make_rows(model, 1))
    .compile()
    .cost_analysis()['flops']
  )
  expected = latency.count_forward_flops(model, 16, HEADS)
  assert expected < xla_flops < 2 * expected  # a small model has many element-wise operations


def test_members_are_divided_evenly_over_devices(monkeypatch: pytest.MonkeyPatch):
  assert (
    latency.population.make_even_mesh(5).devices.size == 5
    and latency.population.make_even_mesh(9).devices.size == 3
  )
  assert latency.population.make_even_mesh(11).devices.size == 1
  shapes = jax.eval_shape(
    lambda: init_classifier(SHALLOW, latency._HEAD, latency.CLASSES, jax.random.key(0))
  )
  stacked = jax.tree.map(lambda leaf: np.zeros((11, *leaf.shape), leaf.dtype), shapes)
  monkeypatch.setattr(latency, '_init_classifier', lambda *_: stacked)
  assert list(latency.build_variants({'a': SHALLOW}, 11)) == [
    'a',
    '11 x a, one after another',
    '11 x a, vmapped',
  ]


def test_the_interval_covers_the_median():
  random, low_high = np.random.default_rng(0), latency.compute_median_interval(40)
  drawn = np.sort(random.exponential(size=(4000, 40)), 1)  # skewed, with the median log 2
  low, high = (drawn[:, end] for end in low_high)
  assert 0.94 < np.mean((low <= np.log(2)) & (np.log(2) <= high)) < 0.98


def test_the_tables_contain_the_numbers(result: dict, capsys):
  console = rich.console.Console(width=200)
  for table in latency.make_latency_tables(result):
    console.print(table)
  out = capsys.readouterr().out
  assert (
    f'{SIZE} x shallow, vmapped' in out
    and f'{result["rows"][0]["milliseconds"]["median"]:.3f}' in out
  )
  assert f'shallow, {HEADS} heads' in out


def test_variants_run_in_turns_and_the_duration_is_logged(capsys):
  calls = []
  seconds = latency._time_calls(
    {'one': lambda: calls.append(1), 'other': lambda: calls.append(2)}, 3, 'batch 1'
  )
  assert [len(times) for times in seconds.values()] == [3, 3] and calls[-6:] == [1, 2] * 3
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 3 and '3 rounds' in lines[-1] and '0:00:00' in lines[-1]


def test_a_stored_result_is_not_measured_again(
  monkeypatch: pytest.MonkeyPatch, result: dict, tmp_path: pathlib.Path, capsys
):
  calls = []
  monkeypatch.setattr(latency, '_measure', lambda *arguments: calls.append(arguments[1:]) or result)
  command = ['latency', '--config=configs/tiny.py', f'--workdir={tmp_path}', '--heads=3', '--json']
  with lock.hold_lock(tmp_path):
    assert main.main(command) == 2
  assert not calls and 'found: a lock of process' in capsys.readouterr().err
  for _ in range(2):
    assert main.main(command) == 0
    assert json.loads(capsys.readouterr().out) == result
  assert calls == [(latency.COMMITTEE_SIZE, 100, 3)]
  stored = files.read_json(tmp_path / run_dir.CONFIG, 'it')
  assert (
    stored['kind'] == latency.LATENCY_KIND and list(stored['models'].values())[0]['num_layers'] >= 1
  )
  assert main.main([*command, '--size=2']) == 2
  assert 'another recipe' in capsys.readouterr().err


@pytest.mark.parametrize(
  'size, calls, heads, changes, part',
  [
    (0, 5, 0, {}, '--size=0'),
    (2, 1, 0, {}, '--num_calls=1'),
    (2, 5, -1, {}, '--heads=-1'),
    (2, 5, 0, {'model.vocab_size': 5}, 'model.vocab_size'),
  ],
)
def test_invalid_settings_are_refused(size: int, calls: int, heads: int, changes: dict, part: str):
  with pytest.raises(InputError, match=part):
    latency.measure_latency({'one': make_config(**changes)}, size, calls, heads)
