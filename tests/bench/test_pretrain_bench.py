"""The benchmark of pre-training: consistent numbers, tables, and refused settings."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import rich.console

from configs import tiny
from minilm_jax.bench import device_check, machine, pretrain_bench, timing
from minilm_jax.cli import main
from minilm_jax.core import recipe
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.model.flops import flops_per_row


def make_config(**changes: object) -> RunConfig:
  source = tiny.get_config()
  source.update_from_flattened_dict(
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
  return recipe.resolve(source, 'pretrain')


@pytest.fixture(scope='module')
def result() -> dict:
  """Returns the result of a benchmark with fixed limits of the machine."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(machine, 'measure_peak_flops', lambda dtype, side: 2e11)
    patch.setattr(machine, 'measure_bandwidth', lambda: 3e10)
    patch.setattr(machine, 'count_page_faults', iter((100, 140)).__next__)
    return pretrain_bench.bench_pretraining(make_config(), steps=2, repeats=3)


def test_numbers_are_consistent(result: dict):
  step = result['milliseconds_per_step']
  assert 0 < step['lowest'] <= step['median'] <= step['highest']
  assert result['tokens_per_second'] == pytest.approx(4 * 64 / step['median'] * 1e3)
  flops = flops_per_row(make_config().model, make_config().mask)['actual']
  assert result['flops_per_second'] == pytest.approx(4 * flops / step['median'] * 1e3)
  assert result['compile_seconds'] > 5 * step['median'] / 1e3  # only the first chunk compiles
  assert result['peak_bytes'] > 4 * result['parameters'] and result['batch'] == [4, 64]
  assert (result['steps'], result['repeats']) == (2, 3) and 'jax' in result['versions']
  assert (
    result['utilisation'] == result['flops_per_second'] / 2e11
    and result['bytes_per_second'] == 3e10
  )
  assert not any('torch' in name or 'released' in name for name in result)
  values = dict(device_check.list_values(result))
  assert values['tokens/s'] == f'{result["tokens_per_second"]:,.0f}' and 'peak memory' in values
  assert result['page_faults_per_step'] == 20  # 40 faults in a chunk of 2 steps
  cached = result['cached_milliseconds_per_step']['median']
  assert result['ours_over_cached'] == pytest.approx(cached / step['median'])


def test_a_program_compiles_without_the_cache_and_uses_it_again_later(tmp_path: pathlib.Path):
  """The setting of JAX, which JAX reads once, changes in the middle of a process."""
  program = (
    'import jax, pathlib\nfrom minilm_jax.bench import timing\n'
    'jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)\n'
    'def compile(): jax.jit(lambda x: x + 1)(1.0)\n'
    f'def count(): return len(list(pathlib.Path("{tmp_path}").glob("*cache")))\n'
    'compile(); first = count(); jax.clear_caches()\n'
    'with timing.disable_compilation_cache(): jax.jit(lambda x: x + 2)(1.0)\n'
    'second = count(); jax.jit(lambda x: x + 3)(1.0); print(first, second, count())'
  )
  process = subprocess.run(
    [sys.executable, '-c', program],
    env=os.environ | {'JAX_COMPILATION_CACHE_DIR': str(tmp_path)},
    capture_output=True,
    text=True,
  )
  first, second, third = map(int, process.stdout.split())
  assert 0 < first == second < third, process


@pytest.mark.parametrize('competitor', ['', 'torch'])
def test_tables_contain_the_numbers(competitor: str, result: dict, capsys):
  if competitor:
    for name in ('released', 'best_torch'):
      result = (
        result
        | pretrain_bench._summarize_speed(f'{name}_', [0.5], make_config())
        | {f'{name}_way': 'eager', f'ours_over_{name}': 6.7}
      )
  console = rich.console.Console(width=200)
  for table in pretrain_bench.make_bench_tables(result):
    console.print(table)
  out = capsys.readouterr().out
  assert (
    f'{result["tokens_per_second"]:,.0f}' in out
    and f'{result["utilisation"]:.1%}' in out
    and '30.0 GB/s' in out
  )
  assert out.count('6.70') == (2 if competitor else 0) and ('eager' in out) == bool(competitor)


def test_the_command_passes_its_flags_and_prints_json(result: dict, monkeypatch, capsys):
  calls = []
  monkeypatch.setattr(
    pretrain_bench,
    'bench_pretraining',
    lambda config, *arguments_of_call: (
      calls.append((config.batch_size, *arguments_of_call)) or result
    ),
  )
  arguments = [
    'bench',
    '--config=configs/tiny.py',
    '--config.batch_size=4',
    '--steps=1',
    '--repeats=2',
  ]
  assert main.main([*arguments, '--compare_with=torch', '--json']) == 0
  assert json.loads(capsys.readouterr().out) == result
  assert {
    'tokens_per_second',
    'milliseconds_per_step',
    'compile_seconds',
    'utilisation',
    'peak_bytes',
  } <= set(result)
  assert main.main(arguments) == 0 and 'utilisation' in capsys.readouterr().out
  assert calls == [(4, 1, 2, 'torch'), (4, 1, 2, '')]


@pytest.mark.parametrize(
  'changes, part',
  [({'mesh.data': 3}, 'devices'), ({'model.vocab_size': 5}, 'model.vocab_size=5')],
)
def test_an_impossible_recipe_is_refused(changes: dict, part: str):
  with pytest.raises(InputError, match=part):
    pretrain_bench.bench_pretraining(make_config(**changes), steps=1, repeats=1)


def test_each_strategy_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
  monkeypatch.setattr(timing, '_NUM_ROWS', 64)
  result = pretrain_bench.bench_population(
    make_config(**{'mesh.data': 0}), [1, 2], steps=1, repeats=2
  )
  single, pair = result['populations']
  assert (
    set(single['milliseconds']) == {'solo'}
    and single['auto'] == 'single'
    and single['members'] == 1
  )
  assert set(pair['milliseconds']) == set(pretrain_bench.STRATEGIES) and pair['auto'] == 'map'
  for strategy, times in pair['milliseconds'].items():
    assert 0 < times['lowest'] <= times['median'] <= times['highest']
    assert pair['tokens_per_second'][strategy] == pytest.approx(2 * 4 * 64 / times['median'] * 1e3)
  assert pair['milliseconds'][pair['fastest']]['median'] == min(
    t['median'] for t in pair['milliseconds'].values()
  )
  for table in pretrain_bench.make_population_tables(result):
    rich.console.Console(width=200).print(table)
  out, err = capsys.readouterr()
  assert pair['fastest'] in out
  assert [line.partition(', in about')[0] for line in err.splitlines()] == [
    'compiling',
    'population of 1: timing 2 rounds',
    'population of 2: compiling',
    'population of 2: timing 2 rounds',
  ]
  json.dumps(result)


def test_populations_of_every_size_have_equal_members_and_the_largest_mask():
  values = {'population.learning_rates': '1e-3,2e-3', 'population.mask_rates': '0.1,0.4'}
  config = make_config(**{'population.members': 2, 'mask.rate': 0.2, **values})
  larger = pretrain_bench._with_members(config, 5, 'vmap')
  assert larger.population.members == 5 and larger.population.strategy == 'vmap'
  assert larger.mask.rate == larger.largest_mask.rate == 0.4


def test_processes_share_all_cores_without_affinity(monkeypatch: pytest.MonkeyPatch):
  groups = []

  class Worker:
    def __call__(self, steps: int) -> float:
      return 1.0

    def close(self) -> None:
      pass

  monkeypatch.delattr(os, 'sched_getaffinity', raising=False)  # as on macOS
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '')
  monkeypatch.setattr(
    timing, 'start_worker', lambda name, step, cores: groups.append(cores) or Worker()
  )
  with contextlib.ExitStack() as stack:
    pretrain_bench._start_processes(make_config(), np.zeros((4, 64)), 3, stack)
  assert groups == [[]] * 3


@pytest.mark.parametrize('sizes', ['0', '1,x', ','])
def test_invalid_sizes_are_refused(sizes: str, capsys: pytest.CaptureFixture):
  assert main.main(['bench', '--config=configs/tiny.py', f'--population={sizes}']) == 2
  assert f'--population={sizes}' in capsys.readouterr().err
