"""How long fine-tuning takes: all members of a recipe as one population, as separate runs, in
Hugging Face's Trainer.

Protocol: every one of ours is the command `minilm finetune` in a process of its own, from its start
to its end, with a cache of compiled programs that is empty at first. The populations of all tasks
are one command. Of each task a single member runs twice, the first time compiling, and stands for
all others as it runs the second time. The Trainer fine-tunes one seed, untimed until it is warm,
without evaluation, with one thread and with one a core, of which the faster counts; it stands for
all members.
"""

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

from minilm_jax.bench import competitors, machine, trainer_task
from minilm_jax.core import backend, progress, recipe
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.errors import InputError
from minilm_jax.tasks import finetune_results, suite, task_data
from minilm_jax.training import pretrained

_RECIPES = '''"""Settings, as they were given."""
import json
from ml_collections import config_dict


def get_config(task):
  return config_dict.ConfigDict(json.loads({text!r})[task])
'''
TRAINER_COMPETITOR = 'hf'
_SOLO_RECIPE = '-alone'


def bench_finetuning(
  configs: Mapping[str, FinetuneConfig], checkpoints: str, against: str
) -> dict[str, Any]:
  """Times the fine-tuning of one checkpoint on every task of a table of recipes.

  Args:
    configs: recipes by name.
    checkpoints: a pre-training run, as for `suite.expand_checkpoints`.
    against: 'hf' times Hugging Face's Trainer too; '' does not.

  Returns:
    Of each task seconds of the first and of the next separate run, of one run of the Trainer, and
    how many members there are; over all tasks, every member counted, seconds of each way and ratios
    to the population.

  Raises:
    InputError: nobody to be compared with, more than one checkpoint, a model or a head that the
      Trainer's RoBERTa cannot have, or what fine-tuning itself refuses.
  """
  if against not in ('', TRAINER_COMPETITOR):
    raise InputError(
      f'--compare_with={against}',
      'nobody of that name fine-tunes here',
      f'give --compare_with={TRAINER_COMPETITOR} or none',
    )
  runs = suite.expand_checkpoints(checkpoints)
  if [len(steps) for steps in runs.values()] != [1]:
    raise InputError(
      f'--checkpoint={checkpoints}', 'not one checkpoint', 'give one pre-training run'
    )
  (source,) = runs
  if against:
    _check_peer(configs, source)
  load, found = machine.read_load(), {}
  ready = {name: _prepare_data(config, source) for name, config in configs.items()}
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'recipes.py'
    alone = {f'{name}{_SOLO_RECIPE}': _time_solo(config) for name, config in configs.items()}
    file.write_text(
      _RECIPES.format(
        text=json.dumps({name: recipe.as_dict(config) for name, config in configs.items()} | alone)
      )
    )
    progress.log(f'timing the populations of {", ".join(configs)}')
    population = _seconds(file, ','.join(configs), source, 'population')
    for number, (name, config) in enumerate(configs.items()):
      progress.log(f'timing separate runs of task {number + 1} of {len(configs)}: {name}')
      found[name] = {
        'members': len(finetune_results.member_specs(config, [0])),
        **{
          again: _seconds(file, name + _SOLO_RECIPE, source, again) for again in ('first', 'next')
        },
      }
      if against:
        found[name] |= _trainer(config, source, ready[name])
  separate = sum(one['first'] + (one['members'] - 1) * one['next'] for one in found.values())
  totals = {'population': population, 'separate': separate}
  if against:
    totals[TRAINER_COMPETITOR] = sum(
      one[TRAINER_COMPETITOR] * one['members'] for one in found.values()
    )
  return {
    'tasks': found,
    'seconds': totals,
    **{
      f'faster_than_{way}': totals[way] / totals['population']
      for way in totals
      if way != 'population'
    },
    'machine': machine.describe_machine(),
    'load_before': load,
    'versions': machine.list_versions(*(['torch', 'transformers'] if against else [])),
  }


def _check_peer(configs: Mapping[str, FinetuneConfig], source: str) -> None:
  """Refuses what would be compared with another model than it is."""
  model = pretrained.load_single_config(source).model
  others = ('convolutions', 'short_convolution', 'encoder')
  found = [(f'model.{name}', getattr(model, name)) for name in others if getattr(model, name)]
  found += [
    (f'head.ensemble_size of {name}', one.head.ensemble_size)
    for name, one in configs.items()
    if one.head.ensemble_size > 1
  ]
  for name, value in found:
    raise InputError(
      f'--compare_with={TRAINER_COMPETITOR} for {source}',
      f'{name} is {value}: a RoBERTa has no convolutions and one head',
      'leave --compare_with out, or give a model and a recipe without them',
    )


def _prepare_data(config: FinetuneConfig, source: str) -> task_data.TaskData:
  return task_data.prepare_task_data(
    config,
    pretrained.load_single_config(source).model.max_length,
    pretrained.load_tokenizer(source),
  )


def _time_solo(config: FinetuneConfig) -> dict[str, Any]:
  """The recipe of the first member alone."""
  first = finetune_results.member_specs(config, [0])[0]
  alone = {**recipe.as_dict(config), 'seeds': [first.seed], 'learning_rates': []}
  return alone | {'optimizer': {**alone['optimizer'], 'learning_rate': first.learning_rate}}


def _seconds(file: pathlib.Path, names: str, source: str, what: str) -> float:
  """Of the command, in a process of its own; compiled programs are kept in a folder that recipes of
  one name share.
  """
  workdir, cache = (file.parent / f'{what}-{names}', file.parent / f'cache-{names}')
  command = [
    sys.executable,
    '-m',
    'minilm_jax',
    'finetune',
    f'--config={file}:{names}',
    f'--checkpoint={source}',
    f'--workdir={workdir}',
    f'--trust={recipe.allowed_modules()}',
  ]
  began = time.perf_counter()
  done = subprocess.run(
    command,
    capture_output=True,
    text=True,
    check=False,
    env=os.environ | {'XDG_CACHE_HOME': str(cache)},
  )
  if done.returncode:
    said = [f'exit status {done.returncode}', *done.stderr.strip().splitlines()]
    found = [line.removeprefix('found: ') for line in said if line.startswith('found: ')] or said
    raise InputError(' '.join(command[2:]), found[-1], 'fix the cause and run the command again')
  return time.perf_counter() - began


def _trainer(config: FinetuneConfig, source: str, ready: task_data.TaskData) -> dict[str, Any]:
  """Seconds of one seed in Hugging Face's Trainer, by the faster number of threads."""
  rows = ready.rows[task_data.TRAIN_SPLIT]
  shape = pretrained.load_single_config(source).model
  tokens = np.asarray(ready.used_ids)[rows.tokens].astype(np.int32)
  task = trainer_task.TrainerTask(
    tokens,
    rows.labels,
    shape,
    len(ready.task.labels),
    config.batch_size,
    finetune_results.member_specs(config, [0])[0].learning_rate,
    config.seeds[0],
    'longest',
  )
  seconds = {
    threads: competitors.time_hf_trainer(task, config.epochs, threads)['seconds']
    for threads in sorted({1, backend.count_cores()})
  }
  best = min(seconds, key=seconds.__getitem__)
  return {TRAINER_COMPETITOR: seconds[best], f'{TRAINER_COMPETITOR}_threads': best}


def finetune_bench_tables(found: dict[str, Any]) -> list[rich_table.Table]:
  """The same for a reader."""
  names = {
    'population': 'one population',
    'separate': 'separate runs',
    TRAINER_COMPETITOR: "Hugging Face's Trainer",
  }
  runs = [
    name
    for name in ('first', 'next', TRAINER_COMPETITOR)
    if all(name in one for one in found['tasks'].values())
  ]
  single = rich_table.Table(
    'task',
    'members',
    *(names.get(name, f'the {name} of ours') for name in runs),
    title='Seconds of one member alone',
  )
  for task, one in found['tasks'].items():
    single.add_row(task, str(one['members']), *(f'{one[name]:,.1f}' for name in runs))
  several = rich_table.Table(
    *(names[way] for way in found['seconds']), title='Seconds of all members of all tasks'
  )
  several.add_row(*(f'{seconds:,.0f}' for seconds in found['seconds'].values()))
  facts = rich_table.Table('what', 'value')
  for way in found['seconds']:
    if way != 'population':
      facts.add_row(
        f'the population is faster than {names[way]}', f'{found[f"faster_than_{way}"]:.1f} times'
      )
  facts.add_row('machine', found['machine'])
  facts.add_row('load in the minute before', f'{found["load_before"]:.2f}')
  facts.add_row(
    'versions', ', '.join(f'{name} {version}' for name, version in found['versions'].items())
  )
  return [single, several, facts]
