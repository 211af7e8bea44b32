"""Latency: who answers says what it should, and numbers of a row belong together."""

import dataclasses
import doctest
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
from minilm_jax.core import files, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.model.heads import init_classifier
from tests.fast_jit import jit

SIZE, HEADS = 2, 3
NAMES = [
  'shallow',
  f'shallow, {HEADS} heads',
  f'{SIZE} x shallow, one after another',
  f'{SIZE} x shallow, vmapped',
  f'{SIZE} x shallow, over {SIZE} devices',
  'deep',
]


def config(**changes: object) -> RunConfig:
  made = tiny.get_config()
  made.update_from_flattened_dict(
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
  return recipe.resolve(made, 'pretrain')


CONFIGS = {'shallow': config(), 'deep': config(**{'model.num_layers': 2})}
SHALLOW = CONFIGS['shallow'].model


pytestmark = pytest.mark.usefixtures('fast_compile')


@pytest.fixture(scope='module')
def made() -> dict[str, Any]:
  return latency.list_contestants({name: one.model for name, one in CONFIGS.items()}, SIZE, HEADS)


@pytest.fixture(scope='module')
def found(made: dict[str, Any]) -> dict:
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(latency, 'BATCHES', (1, 2))
    patch.setattr(latency, 'list_contestants', lambda models, size, heads: made)
    return latency.measure_latency(CONFIGS, SIZE, 5, HEADS)


def test_a_row_says_how_long_how_deep_and_how_much(found: dict):
  assert [(row['name'], row['batch']) for row in found['rows']] == [
    (name, batch) for batch in (1, 2) for name in NAMES
  ]
  alone, headed, turns, vmapped, spread, deep = rows = found['rows'][:6]
  assert [row['depth'] for row in rows] == [1, 1, SIZE, 1, 1, 2]
  assert [row['devices'] for row in rows] == [1, 1, 1, 1, SIZE, 1]
  assert [(row['members'], row['heads']) for row in rows] == [
    (1, 1),
    (1, HEADS),
    *[(SIZE, 1)] * 3,
    (1, 1),
  ]
  for row in (turns, vmapped, spread):
    assert row['parameters'] == SIZE * alone['parameters'] and row['flops'] == SIZE * alone['flops']
  assert [row['recipe'] for row in rows] == ['shallow'] * 5 + ['deep']
  hidden, classes = SHALLOW.hidden_size, latency.CLASSES
  assert headed['parameters'] - alone['parameters'] == (HEADS - 1) * (
    hidden * (hidden + 1) + (hidden + 1) * classes
  )
  assert headed['flops'] - alone['flops'] == (HEADS - 1) * 2 * hidden * (hidden + classes)
  assert alone['flops'] < headed['flops'] < deep['flops'] and alone['over_member'] == pytest.approx(
    1
  )
  for row in found['rows']:
    spent = row['milliseconds']
    assert (
      0 < spent['lowest'] <= spent['low'] <= spent['median'] <= spent['high']
      and spent['median'] <= spent['p95']
    )
    assert row['length'] == 16
  assert 'jax' in found['versions'] and found['calls'] == 5 and found['warm_up'] > 0


def test_all_ways_of_a_committee_give_the_mean_of_its_members(made: dict[str, Any]):
  tokens = latency.make_rows(SHALLOW, 2)

  @jit
  def alone(seeds: jax.Array) -> jax.Array:
    def one(seed: jax.Array) -> jax.Array:
      member = init_classifier(SHALLOW, latency._HEAD, latency.CLASSES, jax.random.key(seed))
      return jax.nn.softmax(member(jnp.asarray(tokens), jnp.asarray(tokens != 1)))

    return jax.vmap(one)(seeds)

  mean = np.mean(alone(jnp.arange(SIZE)), 0)
  said = [answer(tokens) for name, (answer, *_) in made.items() if name.startswith(f'{SIZE} x')]
  assert len(said) == 3 and mean.shape == (2, latency.CLASSES)
  for one in said:
    np.testing.assert_allclose(one, mean, atol=1e-5)


def test_depth_counts_blocks_and_every_convolution():
  """The last one, to one channel, too; neither embedding nor heads."""
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


def test_running_statistics_are_no_parameters():
  convolved = {'model.convolutions': 1, 'model.kernel': '3,3', 'model.channels': 2}
  paper = latency._facts(config(**convolved).model)['parameters']
  assert paper - latency._facts(SHALLOW)['parameters'] == (9 * 2 + 2 + 2 * 2) + (2 + 1 + 2)


def test_counts_are_those_of_xla():
  model, head = CONFIGS['deep'].model, dataclasses.replace(latency._HEAD, ensemble_size=HEADS)
  one = jax.eval_shape(lambda: init_classifier(model, head, latency.CLASSES, jax.random.key(0)))
  counted = (
    jax.jit(latency._probabilities)
    .lower(one, latency.make_rows(model, 1))
    .compile()
    .cost_analysis()['flops']
  )
  own = latency.forward_flops(model, 16, HEADS)
  assert own < counted < 2 * own  # element-wise work is much of so small a one


def test_what_members_do_not_divide_is_spread_over_fewer_devices(monkeypatch: pytest.MonkeyPatch):
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
  assert list(latency.list_contestants({'a': SHALLOW}, 11)) == [
    'a',
    '11 x a, one after another',
    '11 x a, vmapped',
  ]


def test_the_interval_of_a_median_covers_it():
  assert doctest.testmod(latency).failed == 0
  random, low_high = np.random.default_rng(0), latency.iqr_ends(40)
  drawn = np.sort(random.exponential(size=(4000, 40)), 1)  # a skewed one, whose median is log 2
  low, high = (drawn[:, end] for end in low_high)
  assert 0.94 < np.mean((low <= np.log(2)) & (np.log(2) <= high)) < 0.98


def test_a_reader_sees_a_table(found: dict, capsys):
  console = rich.console.Console(width=200)
  for table in latency.latency_tables(found):
    console.print(table)
  out = capsys.readouterr().out
  assert (
    f'{SIZE} x shallow, vmapped' in out
    and f'{found["rows"][0]["milliseconds"]["median"]:.3f}' in out
  )
  assert f'shallow, {HEADS} heads' in out


def test_a_reader_is_told_who_warms_up_and_how_long_the_rounds_take(capsys):
  answered = []
  spent = latency._timed(
    {'one': lambda: answered.append(1), 'other': lambda: answered.append(2)}, 3, 'batch 1'
  )
  assert [len(one) for one in spent.values()] == [3, 3] and answered[-6:] == [1, 2] * 3
  assert capsys.readouterr().err.splitlines() == [
    'batch 1, untimed: 0/2 contestants, 0:00:00 spent, now one',
    'batch 1, untimed: 2/2 contestants, 0:00:00 spent, 0:00:00 left',
    'batch 1: 3 rounds are timed, in 0:00:00 or more',
  ]


def test_a_work_directory_keeps_the_result_and_is_not_timed_again(
  monkeypatch: pytest.MonkeyPatch, found: dict, tmp_path: pathlib.Path, capsys
):
  asked = []
  monkeypatch.setattr(latency, '_measured', lambda *given: asked.append(given[1:]) or found)
  command = ['latency', '--config=configs/tiny.py', f'--workdir={tmp_path}', '--heads=3', '--json']
  for _ in range(2):
    assert main.main(command) == 0
    assert json.loads(capsys.readouterr().out) == found
  assert asked == [(latency.COMMITTEE_SIZE, 100, 3)]
  kept = files.read_json(tmp_path / run_dir.CONFIG, 'it')
  assert (
    kept['kind'] == latency.LATENCY_KIND and list(kept['models'].values())[0]['num_layers'] >= 1
  )
  assert main.main([*command, '--size=2']) == 2
  assert 'another recipe' in capsys.readouterr().err


@pytest.mark.parametrize(
  'size, calls, heads, changes, said',
  [
    (0, 5, 0, {}, '--size=0'),
    (2, 1, 0, {}, '--num_calls=1'),
    (2, 5, -1, {}, '--heads=-1'),
    (2, 5, 0, {'model.vocab_size': 5}, 'special ids alone'),
  ],
)
def test_what_gives_nothing_to_time_is_refused(
  size: int, calls: int, heads: int, changes: dict, said: str
):
  with pytest.raises(InputError, match=said):
    latency.measure_latency({'one': config(**changes)}, size, calls, heads)
