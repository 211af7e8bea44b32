"""Measures the duration of fine-tuning: one population, separate runs, or the Hugging Face Trainer.

Our times are durations of the command `minilm finetune` in a separate process. The compilation
cache is empty at first. One command fine-tunes the populations of all tasks. A single member of
each task runs twice: the first run compiles, and the second run stands for all other members. The
Trainer fine-tunes one seed, which stands for all members. It runs after a warm-up, without
evaluation, with one thread and with one thread a core. The faster time counts.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich import table as rich_table

from minilm_jax.bench import competitors, machine
from minilm_jax.core import backend, progress, recipe
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.errors import InputError, require_library
from minilm_jax.tasks import finetune_results, suite, task_data
from minilm_jax.training import pretrained

_RECIPE_FILE = '''"""The recipes of a fine-tuning benchmark."""
import json
from ml_collections import config_dict


def get_config(task):
  return config_dict.ConfigDict(json.loads({text!r})[task])
'''
TRAINER_COMPETITOR = 'hf'
_SOLO_SUFFIX = '-alone'
# Fields of the model that a RoBERTa of the same sizes has.
_ROBERTA = {
  'encoder': '',
  'norm': 'post',
  'positions': 'learned',
  'convolutions': 0,
  'short_convolution': 0,
}


def bench_finetuning(
  configs: Mapping[str, FinetuneConfig], checkpoint: str, competitor: str
) -> dict[str, Any]:
  """Times the fine-tuning of one checkpoint on several tasks.

  Args:
    configs: recipes by name.
    checkpoint: a pre-training run, as for `suite.expand_checkpoints`.
    competitor: 'hf' also times the Hugging Face Trainer; '' times ours alone.

  Returns:
    `tasks` has by name the number of `members`, and the seconds of the `first` and the `next`
    separate run and of the Trainer (`hf`). `seconds` has the total of all members and tasks by
    method. `faster_than_METHOD` is the ratio to the population. Machine, load and versions follow.

  Raises:
    InputError: an unknown or missing competitor, more than one checkpoint, a model or head that
      RoBERTa lacks, or a fine-tuning that fails.
  """
  if competitor not in ('', TRAINER_COMPETITOR):
    raise InputError(
      f'--compare_with={competitor}',
      'no such competitor for fine-tuning',
      f'give --compare_with={TRAINER_COMPETITOR}, or remove the flag',
    )
  runs = suite.expand_checkpoints(checkpoint)
  if [len(steps) for steps in runs.values()] != [1]:
    count = sum(map(len, runs.values()))
    raise InputError(f'--checkpoint={checkpoint}', f'{count} checkpoints', 'give one checkpoint')
  (source,) = runs
  if competitor:
    _check_trainer(configs, source)
  load, tasks = machine.read_load(), {}
  datasets = {name: _prepare_data(config, source) for name, config in configs.items()}
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'recipes.py'
    solo_configs = {f'{name}{_SOLO_SUFFIX}': _make_solo(config) for name, config in configs.items()}
    recipes = {name: recipe.as_dict(config) for name, config in {**configs, **solo_configs}.items()}
    file.write_text(_RECIPE_FILE.format(text=json.dumps(recipes)))
    progress.log(f'timing the populations of {", ".join(configs)}')
    population = _time_command(file, ','.join(configs), source, 'population')
    for number, (name, config) in enumerate(configs.items()):
      progress.log(f'timing separate runs of task {number + 1} of {len(configs)}: {name}')
      tasks[name] = {'members': len(finetune_results.list_members(config, [0]))}
      for label in ('first', 'next'):
        tasks[name][label] = _time_command(file, name + _SOLO_SUFFIX, source, label)
      if competitor:
        tasks[name] |= _time_trainer(config, source, datasets[name])
  separate = sum(row['first'] + (row['members'] - 1) * row['next'] for row in tasks.values())
  seconds = {'population': population, 'separate': separate}
  if competitor:
    trainer = sum(row['members'] * row[TRAINER_COMPETITOR] for row in tasks.values())
    seconds[TRAINER_COMPETITOR] = trainer
  ratios = {f'faster_than_{name}': value / population for name, value in seconds.items()}
  del ratios['faster_than_population']
  libraries = ['torch', 'transformers'] if competitor else []
  conditions = machine.describe_conditions(load, *libraries)
  return {'tasks': tasks, 'seconds': seconds, **ratios, **conditions}


def _check_trainer(configs: Mapping[str, FinetuneConfig], source: str) -> None:
  """Raises InputError if the Trainer is not installed, or RoBERTa lacks a part of model or head."""
  subject = f'--compare_with={TRAINER_COMPETITOR} for {source}'
  for library in ('torch', 'transformers', 'accelerate'):
    require_library(library, 'hf', subject)
  model = pretrained.load_single_config(source).model
  parts = [
    (f'head.ensemble_size of {name}', config.head.ensemble_size, 1)
    for name, config in configs.items()
  ]
  parts += [(f'model.{name}', getattr(model, name), value) for name, value in _ROBERTA.items()]
  for name, value, of_roberta in parts:
    if value != of_roberta:
      raise InputError(
        subject,
        f'{name}={value!r}; RoBERTa has {of_roberta!r}',
        'remove --compare_with, or give another model or recipe',
      )


def _prepare_data(config: FinetuneConfig, source: str) -> task_data.TaskData:
  length = pretrained.load_single_config(source).model.max_length
  return task_data.prepare_task_data(config, length, pretrained.load_tokenizer(source))


def _make_solo(config: FinetuneConfig) -> FinetuneConfig:
  """Returns the recipe of the first member alone."""
  first = finetune_results.list_members(config, [0])[0]
  optimizer = dataclasses.replace(config.optimizer, learning_rate=first.learning_rate)
  return dataclasses.replace(config, seeds=(first.seed,), learning_rates=(), optimizer=optimizer)


def _time_command(file: pathlib.Path, names: str, source: str, label: str) -> float:
  """Returns the seconds of `minilm finetune` in a process; recipes of equal names share a cache."""
  workdir, cache = file.parent / f'{label}-{names}', file.parent / f'cache-{names}'
  command = [
    sys.executable,
    '-m',
    'minilm_jax',
    'finetune',
    f'--config={file}:{names}',
    f'--checkpoint={source}',
    f'--workdir={workdir}',
    f'--trust={recipe.list_allowed_modules()}',
  ]
  caches = dict.fromkeys(('XDG_CACHE_HOME', 'JAX_COMPILATION_CACHE_DIR'), str(cache))
  environment = os.environ | caches
  start = time.perf_counter()
  process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
  if process.returncode:
    lines = [f'exit status {process.returncode}', *process.stderr.strip().splitlines()]
    causes = [line.removeprefix('found: ') for line in lines if line.startswith('found: ')]
    cause = (causes or lines)[-1]
    raise InputError(' '.join(command[2:]), cause, 'fix the cause and run the command again')
  return time.perf_counter() - start


def _time_trainer(config: FinetuneConfig, source: str, data: task_data.TaskData) -> dict[str, Any]:
  """Times one seed in the Hugging Face Trainer with one thread and with one thread a core."""
  rows = data.rows[task_data.TRAIN_SPLIT]
  seconds = {}
  for threads in sorted({1, backend.count_cores()}):
    seconds[threads] = competitors.time_hf_trainer(
      _make_solo(config),
      pretrained.load_single_config(source).model,
      np.asarray(data.used_ids)[rows.tokens].astype(np.int32),
      rows.labels,
      len(data.task.labels),
      threads,
    )['seconds']
  fastest = min(seconds, key=seconds.__getitem__)
  return {TRAINER_COMPETITOR: seconds[fastest], f'{TRAINER_COMPETITOR}_threads': fastest}


def make_finetune_bench_tables(result: dict[str, Any]) -> list[rich_table.Table]:
  """Returns the tables of `bench_finetuning`."""
  methods = {
    'population': 'one population',
    'separate': 'separate runs',
    TRAINER_COMPETITOR: 'Hugging Face Trainer',
  }
  columns = {'first': 'first run', 'next': 'next run'}
  if TRAINER_COMPETITOR in result['seconds']:
    columns[TRAINER_COMPETITOR] = methods[TRAINER_COMPETITOR]
  single = rich_table.Table('task', 'members', *columns.values(), title='Seconds of one member')
  for task, row in result['tasks'].items():
    single.add_row(task, str(row['members']), *(f'{row[name]:,.1f}' for name in columns))
  seconds = result['seconds']
  total = rich_table.Table(
    *(methods[name] for name in seconds), title='Seconds of all members of all tasks'
  )
  total.add_row(*(f'{value:,.0f}' for value in seconds.values()))
  facts = rich_table.Table('quantity', 'value')
  for name in seconds:
    if name != 'population':
      ratio = result[f'faster_than_{name}']
      facts.add_row(f'speed-up of the population over {methods[name]}', f'{ratio:.1f}')
  for name, value in machine.format_conditions(result):
    facts.add_row(name, value)
  return [single, total, facts]
