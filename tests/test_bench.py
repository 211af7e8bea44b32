"""The bench: it times what `pretrain` runs, and its numbers belong together."""

import json

import pytest
import rich.console

from configs import tiny
from minilm_jax import __main__ as door
from minilm_jax import bench, machine, recipe
from minilm_jax.config import RunConfig
from minilm_jax.errors import InputError
from minilm_jax.model import size


def config(**changes: object) -> RunConfig:
  made = tiny.get_config()
  made.update_from_flattened_dict({'batch_size': 4, 'model.hidden_size': 16, 'model.embedding_size': 16, 'model.num_layers': 1,
                                   'model.vocab_size': 100, 'mesh.data': 1, **changes})
  return recipe.resolve(made, 'pretrain')


@pytest.fixture(scope='module')
def found() -> dict:
  """A bench on a machine whose limits are known; they are measured in test_machine.py."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(machine, 'peak_flops_per_second', lambda kind, side: 2e11)
    patch.setattr(machine, 'bytes_per_second', lambda: 3e10)
    return bench.bench(config(), steps=2, repeats=3)


def test_its_numbers_belong_together(found: dict):
  step = found['milliseconds_per_step']
  assert 0 < step['lowest'] <= step['median'] <= step['highest']
  assert found['tokens_per_second'] == pytest.approx(4 * 64 / step['median'] * 1e3)
  flops = size.flops_per_row(config().model, config().mask)['actual']
  assert found['flops_per_second'] == pytest.approx(4 * flops / step['median'] * 1e3)
  assert found['compile_seconds'] > 5 * step['median'] / 1e3  # only the first chunk compiles
  assert found['peak_bytes'] > 4 * found['parameters'] and found['batch'] == [4, 64]
  assert (found['steps'], found['repeats']) == (2, 3) and 'jax' in found['versions']
  assert found['utilisation'] == found['flops_per_second'] / 2e11 and found['bytes_per_second'] == 3e10
  assert not any('torch' in name or 'released' in name for name in found)


@pytest.mark.parametrize('against', ['', 'torch'])
def test_a_reader_sees_a_table(against: str, found: dict, capsys):
  if against:
    for name in ('released', 'best_torch'):
      found = found | bench._speed(f'{name}_', [0.5], config()) | {f'{name}_way': 'eager', f'ours_over_{name}': 6.7}
  console = rich.console.Console(width=200)
  for table in bench.tables(found):
    console.print(table)
  out = capsys.readouterr().out
  assert f'{found["tokens_per_second"]:,.0f}' in out and f'{found["utilisation"]:.1%}' in out and '30.0 GB/s' in out
  assert out.count('6.70 times') == (2 if against else 0) and ('eager' in out) == bool(against)


def test_it_prints_one_object(found: dict, monkeypatch, capsys):
  asked = []
  monkeypatch.setattr(bench, 'bench', lambda config, *given: asked.append((config.batch_size, *given)) or found)
  arguments = ['bench', '--config=configs/tiny.py', '--config.batch_size=4', '--steps=1', '--repeats=2']
  assert door.main([*arguments, '--compare_with=torch', '--json']) == 0
  assert json.loads(capsys.readouterr().out) == found
  assert {'tokens_per_second', 'milliseconds_per_step', 'compile_seconds', 'utilisation', 'peak_bytes'} <= set(found)
  assert door.main(arguments) == 0 and 'utilisation' in capsys.readouterr().out
  assert asked == [(4, 1, 2, 'torch'), (4, 1, 2, '')]


def test_it_runs_the_chunk_of_the_trainer():
  """A recipe of which `pretrain` could not make a step is refused in the same words."""
  with pytest.raises(InputError, match='devices'):
    bench.bench(config(**{'mesh.data': 3}), steps=1, repeats=1)


@pytest.mark.parametrize('changes, steps, repeats, said', [
    ({}, 0, 1, '--steps=0'), ({}, 1, 0, '--repeats=0'), ({'model.vocab_size': 5}, 1, 1, 'model.vocab_size=5')])
def test_nothing_to_time_is_refused(changes: dict, steps: int, repeats: int, said: str):
  with pytest.raises(InputError, match=said):
    bench.bench(config(**changes), steps, repeats)
