"""The bench: it times what `pretrain` runs, and its numbers belong together."""

import pytest

from configs import tiny
from minilm_jax import bench, recipe
from minilm_jax.config import RunConfig
from minilm_jax.errors import InputError
from minilm_jax.model import size


def config(**changes: object) -> RunConfig:
  made = tiny.get_config()
  made.update_from_flattened_dict({'batch_size': 4, 'model.hidden': 16, 'model.embedding': 16, 'model.layers': 1,
                                   'model.vocabulary': 100, 'mesh.data': 1, **changes})
  return recipe.resolve(made, 'pretrain')


def test_its_numbers_belong_together():
  found = bench.bench(config(), steps=2, repeats=3)
  step = found['milliseconds_per_step']
  assert 0 < step['lowest'] <= step['median'] <= step['highest']
  assert found['tokens_per_second'] == pytest.approx(4 * 64 / step['median'] * 1e3)
  flops = size.flops_per_row(config().model, config().mask)['actual']
  assert found['flops_per_second'] == pytest.approx(4 * flops / step['median'] * 1e3)
  assert found['compile_seconds'] > 5 * step['median'] / 1e3  # only the first chunk compiles
  assert found['peak_bytes'] > 4 * found['parameters'] and found['batch'] == [4, 64]
  assert (found['steps'], found['repeats']) == (2, 3) and 'jax' in found['machine']


def test_it_runs_the_chunk_of_the_trainer():
  """A recipe of which `pretrain` could not make a step is refused in the same words."""
  with pytest.raises(InputError, match='devices'):
    bench.bench(config(**{'mesh.data': 3}), steps=1, repeats=1)


@pytest.mark.parametrize('changes, steps, repeats, said', [
    ({}, 0, 1, '--steps=0'), ({}, 1, 0, '--repeats=0'), ({'model.vocabulary': 5}, 1, 1, 'model.vocabulary=5')])
def test_nothing_to_time_is_refused(changes: dict, steps: int, repeats: int, said: str):
  with pytest.raises(InputError, match=said):
    bench.bench(config(**changes), steps, repeats)
