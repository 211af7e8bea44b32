"""The bench: it times what `pretrain` runs, and its numbers belong together."""

import json

import pytest
import rich.console

from configs import tiny
from minilm_jax.bench import machine, pretrain_bench, timing
from minilm_jax.cli import main
from minilm_jax.core import recipe
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.model.flops import flops_per_row


def config(**changes: object) -> RunConfig:
  made = tiny.get_config()
  made.update_from_flattened_dict(
    {
      'batch_size': 4,
      'model.hidden_size': 16,
      'model.embedding_size': 16,
      'model.num_layers': 1,
      'model.vocab_size': 100,
      'mesh.data': 1,
      **changes,
    }
  )
  return recipe.resolve(made, 'pretrain')


@pytest.fixture(scope='module')
def found() -> dict:
  """A bench on a machine whose limits are known; they are measured in test_machine.py."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(machine, 'measure_peak_flops', lambda kind, side: 2e11)
    patch.setattr(machine, 'measure_bandwidth', lambda: 3e10)
    return pretrain_bench.bench_pretraining(config(), steps=2, repeats=3)


def test_its_numbers_belong_together(found: dict):
  step = found['milliseconds_per_step']
  assert 0 < step['lowest'] <= step['median'] <= step['highest']
  assert found['tokens_per_second'] == pytest.approx(4 * 64 / step['median'] * 1e3)
  flops = flops_per_row(config().model, config().mask)['actual']
  assert found['flops_per_second'] == pytest.approx(4 * flops / step['median'] * 1e3)
  assert found['compile_seconds'] > 5 * step['median'] / 1e3  # only the first chunk compiles
  assert found['peak_bytes'] > 4 * found['parameters'] and found['batch'] == [4, 64]
  assert (found['steps'], found['repeats']) == (2, 3) and 'jax' in found['versions']
  assert (
    found['utilisation'] == found['flops_per_second'] / 2e11 and found['bytes_per_second'] == 3e10
  )
  assert not any('torch' in name or 'released' in name for name in found)


@pytest.mark.parametrize('against', ['', 'torch'])
def test_a_reader_sees_a_table(against: str, found: dict, capsys):
  if against:
    for name in ('released', 'best_torch'):
      found = (
        found
        | pretrain_bench._speed(f'{name}_', [0.5], config())
        | {f'{name}_way': 'eager', f'ours_over_{name}': 6.7}
      )
  console = rich.console.Console(width=200)
  for table in pretrain_bench.bench_tables(found):
    console.print(table)
  out = capsys.readouterr().out
  assert (
    f'{found["tokens_per_second"]:,.0f}' in out
    and f'{found["utilisation"]:.1%}' in out
    and '30.0 GB/s' in out
  )
  assert out.count('6.70 times') == (2 if against else 0) and ('eager' in out) == bool(against)


def test_it_prints_one_object(found: dict, monkeypatch, capsys):
  asked = []
  monkeypatch.setattr(
    pretrain_bench,
    'bench_pretraining',
    lambda config, *given: asked.append((config.batch_size, *given)) or found,
  )
  arguments = [
    'bench',
    '--config=configs/tiny.py',
    '--config.batch_size=4',
    '--steps=1',
    '--repeats=2',
  ]
  assert main.main([*arguments, '--compare_with=torch', '--json']) == 0
  assert json.loads(capsys.readouterr().out) == found
  assert {
    'tokens_per_second',
    'milliseconds_per_step',
    'compile_seconds',
    'utilisation',
    'peak_bytes',
  } <= set(found)
  assert main.main(arguments) == 0 and 'utilisation' in capsys.readouterr().out
  assert asked == [(4, 1, 2, 'torch'), (4, 1, 2, '')]


def test_it_runs_the_chunk_of_the_trainer():
  """A recipe of which `pretrain` could not make a step is refused in the same words."""
  with pytest.raises(InputError, match='devices'):
    pretrain_bench.bench_pretraining(config(**{'mesh.data': 3}), steps=1, repeats=1)


@pytest.mark.parametrize(
  'changes, steps, repeats, said',
  [
    ({}, 0, 1, '--steps=0'),
    ({}, 1, 0, '--repeats=0'),
    ({'model.vocab_size': 5}, 1, 1, 'model.vocab_size=5'),
  ],
)
def test_nothing_to_time_is_refused(changes: dict, steps: int, repeats: int, said: str):
  with pytest.raises(InputError, match=said):
    pretrain_bench.bench_pretraining(config(**changes), steps, repeats)


def config_break_even() -> RunConfig:
  made = tiny.get_config()
  made.update_from_flattened_dict(
    {
      'batch_size': 4,
      'model.hidden_size': 16,
      'model.embedding_size': 16,
      'model.num_layers': 1,
      'model.vocab_size': 100,
    }
  )
  return recipe.resolve(made, 'pretrain')


def test_each_way_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
  """Two members as a population, looped and in each operation, one after the other, and in two
  processes.
  """
  monkeypatch.setattr(timing, '_NUM_ROWS', 64)
  found = pretrain_bench.bench_population(config_break_even(), [1, 2], steps=1, repeats=2)
  one, two = found['populations']
  assert set(one['milliseconds']) == {'solo'} and one['auto'] == 'single' and one['members'] == 1
  assert set(two['milliseconds']) == set(pretrain_bench.STRATEGIES) and two['auto'] == 'map'
  for way, times in two['milliseconds'].items():
    assert 0 < times['lowest'] <= times['median'] <= times['highest']
    assert two['tokens_per_second'][way] == pytest.approx(2 * 4 * 64 / times['median'] * 1e3)
  assert two['milliseconds'][two['fastest']]['median'] == min(
    t['median'] for t in two['milliseconds'].values()
  )
  for table in pretrain_bench.population_tables(found):
    rich.console.Console(width=200).print(table)
  shown, said = capsys.readouterr()
  assert two['fastest'] in shown
  assert [line.partition(', in about')[0] for line in said.splitlines()] == [
    'compiling',
    'population of 1: timing 2 rounds of 1 updates',
    'population of 2: compiling',
    'population of 2: timing 2 rounds of 1 updates',
  ]
  json.dumps(found)


@pytest.mark.parametrize(
  'given, said', [('0', 'no number of members'), ('1,x', 'not whole numbers'), (',', 'not whole')]
)
def test_nothing_to_compare_is_refused(given: str, said: str, capsys: pytest.CaptureFixture):
  assert main.main(['bench', '--config=configs/tiny.py', f'--population={given}']) == 2
  assert said in capsys.readouterr().err
