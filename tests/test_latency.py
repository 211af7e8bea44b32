"""Latency: who answers says what it should, and numbers of a row belong together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from configs import tiny
from minilm_jax import latency, recipe
from minilm_jax.config import RunConfig
from minilm_jax.errors import InputError
from minilm_jax.model.heads import classifier
from tests.quick import jit


def config(**changes: object) -> RunConfig:
  made = tiny.get_config()
  made.update_from_flattened_dict({'model.hidden': 16, 'model.embedding': 16, 'model.feed_forward': 32, 'model.heads': 2,
                                   'model.layers': 1, 'model.vocabulary': 60, 'model.length': 16, **changes})
  return recipe.resolve(made, 'pretrain')


CONFIGS = {'shallow': config(), 'deep': config(**{'model.layers': 3})}


@pytest.fixture(scope='module', autouse=True)
def compiled_fast():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'jit', jit)
    yield


@pytest.fixture(scope='module')
def found() -> dict:
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(latency, 'BATCHES', (1, 2))
    return latency.latency(CONFIGS, size=4, calls=5)


def test_a_row_says_how_long_how_deep_and_how_much(found: dict):
  names = ['shallow', '4 x shallow, one after another', '4 x shallow, vmapped', '4 x shallow, over 4 devices', 'deep']
  assert [(row['name'], row['batch']) for row in found['rows']] == [(name, batch) for batch in (1, 2) for name in names]
  alone, turns, vmapped, spread, deep = found['rows'][:5]
  assert [row['depth'] for row in (alone, turns, vmapped, spread, deep)] == [1, 4, 1, 1, 3]
  assert [row['devices'] for row in (alone, turns, vmapped, spread, deep)] == [1, 1, 1, 4, 1]
  for row in (turns, vmapped, spread):
    assert row['parameters'] == 4 * alone['parameters'] and row['flops'] == 4 * alone['flops']
  assert alone['flops'] < deep['flops'] < turns['flops'] and alone['over_member'] == pytest.approx(1)
  for row in found['rows']:
    spent = row['milliseconds']
    assert 0 < spent['lowest'] <= spent['median'] <= spent['p95'] and row['length'] == 16
  assert 'jax' in found['versions'] and found['calls'] == 5 and found['warm_up'] > 0


def test_all_ways_of_a_committee_give_the_mean_of_its_members():
  made = latency.contestants({name: one.model for name, one in CONFIGS.items()}, 4)
  tokens = latency.rows(CONFIGS['shallow'].model, 3)
  said = [answer(tokens) for name, (answer, *_) in made.items() if name.startswith('4 x')]
  members = [classifier(CONFIGS['shallow'].model, latency._HEAD, latency.CLASSES, jax.random.key(n)) for n in range(4)]
  mean = np.mean([jax.nn.softmax(member(jnp.asarray(tokens), jnp.asarray(tokens != 1))) for member in members], 0)
  assert len(said) == 3 and mean.shape == (3, latency.CLASSES)
  for one in said:
    np.testing.assert_allclose(one, mean, atol=1e-5)


def test_counts_are_those_of_xla():
  model = CONFIGS['deep'].model
  tokens = latency.rows(model, 1)
  weights = latency._fresh(model, 1)
  one = jax.tree.map(lambda x: x[0], weights)
  counted = jax.jit(latency._probabilities).lower(one, tokens).compile().cost_analysis()['flops']
  assert latency.flops(model, 16) < counted < 1.6 * latency.flops(model, 16)  # element-wise work is much of so small a one


def test_what_members_do_not_divide_is_spread_over_fewer_devices():
  assert latency.forward.spread(5).devices.size == 5 and latency.forward.spread(9).devices.size == 3
  assert latency.forward.spread(11).devices.size == 1
  assert not any('devices' in name for name in latency.contestants({'a': CONFIGS['shallow'].model}, 11))


def test_a_reader_sees_a_table(found: dict, capsys):
  console = rich.console.Console(width=200)
  for table in latency.tables(found):
    console.print(table)
  out = capsys.readouterr().out
  assert '4 x shallow, vmapped' in out and f'{found["rows"][0]["milliseconds"]["median"]:.3f}' in out


@pytest.mark.parametrize('size, calls, changes, said', [
    (0, 5, {}, '--size=0'), (2, 1, {}, '--calls=1'), (2, 5, {'model.vocabulary': 5}, 'special ids alone')])
def test_what_gives_nothing_to_time_is_refused(size: int, calls: int, changes: dict, said: str):
  with pytest.raises(InputError, match=said):
    latency.latency({'one': config(**changes)}, size, calls)
