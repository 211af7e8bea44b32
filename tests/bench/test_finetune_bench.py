"""The benchmark of fine-tuning: commands, sums of times, and refused settings."""

import dataclasses
import importlib.util
import pathlib
import subprocess
from typing import Any

import pytest

from configs import glue
from minilm_jax.bench import competitors, finetune_bench
from minilm_jax.core import recipe
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.errors import InputError

SECONDS = {'population': 120.0, 'first': 30.0, 'next': 10.0}


def make_config(**changes: Any) -> FinetuneConfig:
  source = glue.get_config('microworld/sentiment')
  source.update_from_flattened_dict(
    {
      'task.max_train_examples': 48,
      'epochs': 1.0,
      'seeds': '4,5,6',
      'validation_fraction': 0.2,
      'learning_rates': '1e-3,2e-3',
      **changes,
    }
  )
  return recipe.resolve(source, 'finetune')


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], list[FinetuneConfig]]:
  """Replaces the commands; returns their recipes by label and names."""
  recipes = {}

  def time_command(file: pathlib.Path, names: str, source: str, label: str) -> float:
    recipes[label, names] = [
      recipe.resolve(recipe.load(f'{file}:{name}'), 'finetune') for name in names.split(',')
    ]
    return SECONDS[label]

  monkeypatch.setattr(finetune_bench, '_time_command', time_command)
  return recipes


def test_populations_share_a_command_and_separate_runs_have_one_member(
  commands: dict, tiny_run: pathlib.Path
):
  configs = {'a': make_config(), 'b': make_config(seeds='1')}
  finetune_bench.bench_finetuning(configs, str(tiny_run), '')
  rate = {'learning_rates': '', 'optimizer.learning_rate': 1e-3}
  first, second = ([make_config(seeds=seed, **rate)] for seed in '41')
  assert commands == {
    ('population', 'a,b'): list(configs.values()),
    ('first', 'a-alone'): first,
    ('next', 'a-alone'): first,
    ('first', 'b-alone'): second,
    ('next', 'b-alone'): second,
  }


def test_the_first_run_counts_once_and_the_next_run_for_other_members(
  commands: dict, tiny_run: pathlib.Path
):
  result = finetune_bench.bench_finetuning(
    {'a': make_config(), 'b': make_config(seeds='1')}, str(tiny_run), ''
  )
  assert [row['members'] for row in result['tasks'].values()] == [6, 2]
  assert result['seconds'] == {'population': 120.0, 'separate': 30 + 5 * 10 + 30 + 10}
  assert result['faster_than_separate'] == pytest.approx(1.0)
  single, several, facts = finetune_bench.make_finetune_bench_tables(result)
  assert (single.row_count, several.row_count, facts.row_count) == (2, 1, 4)


def test_the_trainer_counts_for_each_member_with_the_faster_threads(
  commands: dict, tiny_run: pathlib.Path, monkeypatch
):
  calls = []

  def time_trainer(config, shape, rows, labels, classes, threads) -> dict[str, float]:
    settings = classes, config.batch_size, config.optimizer.learning_rate, config.seeds
    calls.append((rows.max(), len(rows) == len(labels), *settings, config.epochs, threads))
    return {'seconds': 7.0 + threads}

  monkeypatch.setattr(competitors, 'time_hf_trainer', time_trainer)
  monkeypatch.setattr(finetune_bench, '_check_trainer', lambda *_: None)  # RoBERTa is post-norm
  monkeypatch.setattr(finetune_bench.backend, 'count_cores', lambda: 4)
  monkeypatch.setattr(
    finetune_bench.machine, 'list_versions', lambda *names: dict.fromkeys(names, '1')
  )
  result = finetune_bench.bench_finetuning({'it': make_config()}, str(tiny_run), 'hf')
  assert result['seconds']['hf'] == 6 * 8 and result['tasks']['it']['hf_threads'] == 1
  assert result['faster_than_hf'] == pytest.approx(48 / 120)
  largest, is_paired, *settings = calls[0]
  # ids of the tokenizer, not indices of the used ids
  assert 5 < largest < 520 and is_paired
  assert settings == [2, 32, 1e-3, (4,), 1.0, 1] and calls[1][-1] == 4
  assert finetune_bench.make_finetune_bench_tables(result)[2].row_count == 5


@pytest.mark.parametrize(
  'sources, competitor, part',
  [
    ('{run}', 'keras', 'keras'),
    ('{run}@all', '', '@all'),
    ('{run}-2', '', 'checkpoint of .*-2'),
  ],
)
def test_invalid_settings_are_refused(
  sources: str, competitor: str, part: str, commands: dict, tiny_run: pathlib.Path
):
  with pytest.raises(InputError, match=part):
    finetune_bench.bench_finetuning({'it': make_config()}, sources.format(run=tiny_run), competitor)
  assert not commands


@pytest.mark.parametrize(
  'model, heads, part',
  [
    ({'norm': 'pre'}, 1, "model.norm='pre'"),
    ({'positions': 'rotary'}, 1, "model.positions='rotary'"),
    ({'convolutions': 2, 'kernel': (3, 3), 'channels': 4}, 1, 'model.convolutions=2'),
    ({}, 3, 'head.ensemble_size of it=3'),
  ],
)
def test_models_that_roberta_lacks_are_refused_with_the_trainer_only(
  model: dict, heads: int, part: str, commands: dict, tiny_run: pathlib.Path, monkeypatch
):
  run = finetune_bench.pretrained.load_single_config(tiny_run)
  fields = {'norm': 'post', 'positions': 'learned', **model}
  run = dataclasses.replace(run, model=dataclasses.replace(run.model, **fields))
  monkeypatch.setattr(finetune_bench.pretrained, 'load_single_config', lambda source: run)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: 'installed')
  configs = {'it': make_config(**{'head.ensemble_size': heads})}
  with pytest.raises(InputError, match=part):
    finetune_bench.bench_finetuning(configs, str(tiny_run), 'hf')
  assert not commands
  result = finetune_bench.bench_finetuning(configs, str(tiny_run), '')
  assert result['seconds']['population'] == SECONDS['population']


@pytest.mark.parametrize('missing', ['torch', 'transformers', 'accelerate'])
def test_a_missing_library_of_the_trainer_is_refused_before_any_timing(
  missing: str, commands: dict, tiny_run: pathlib.Path, monkeypatch
):
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name: None if name == missing else 'installed'
  )
  with pytest.raises(InputError, match=rf'{missing}(.|\n)*minilm_jax\[hf\]'):
    finetune_bench.bench_finetuning({'it': make_config()}, str(tiny_run), 'hf')
  assert not commands


def test_a_timed_command_ignores_the_compilation_cache_of_the_user(
  tmp_path: pathlib.Path, monkeypatch
):
  environments = []

  def run(command: list[str], **options: Any) -> subprocess.CompletedProcess:
    environments.append(options['env'])
    return subprocess.CompletedProcess(command, 0)

  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/warm')
  monkeypatch.setattr(subprocess, 'run', run)
  for names in ('a', 'a', 'b'):
    finetune_bench._time_command(tmp_path / 'recipes.py', names, 'run', 'first')
  first, second, other = (env['JAX_COMPILATION_CACHE_DIR'] for env in environments)
  assert first == second != other and str(tmp_path) in first and str(tmp_path) in other


def test_a_failing_command_reports_its_error(tmp_path: pathlib.Path):
  file = tmp_path / 'recipe.py'
  file.write_text('def get_config(task):\n  return 3\n')
  with pytest.raises(InputError, match='int'):
    finetune_bench._time_command(file, 'together', 'nowhere', 'population')


@pytest.mark.slow
def test_the_command_is_timed(tiny_run: pathlib.Path):
  result = finetune_bench.bench_finetuning({'it': make_config()}, str(tiny_run), '')
  assert 0 < result['tasks']['it']['next'] < result['tasks']['it']['first']
  assert 0 < result['seconds']['population'] < result['seconds']['separate']
