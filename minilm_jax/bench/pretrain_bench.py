"""How fast a recipe trains on this machine: the very chunk that `pretrain` runs, on random rows.

Protocol: the first chunk compiles and is timed by itself, one more warms up untimed, then `repeats`
chunks of `steps` updates are timed and their median and range printed. What PyTorch needs for the
same model is timed in between, repeat by repeat, and what the machine could do at best right after.
The share of the memory bandwidth is left out: XLA counts the bytes of a loop's body once, however
often it runs, and cannot say which of them a cache answers.
"""

import contextlib
import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich import table as rich_table

from minilm_jax.bench import competitors, machine, timing
from minilm_jax.core import backend, progress
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer
from minilm_jax.model.flops import count_parameters, flops_per_row
from minilm_jax.training import population


def bench_pretraining(
  config: RunConfig, steps: int, repeats: int, against: str = ''
) -> dict[str, Any]:
  """Times the training step of a recipe.

  Args:
    against: 'torch' times the same model in PyTorch too, as the released code of paper 1 has it and
      at its best.

  Returns:
    tokens_per_second (median), milliseconds_per_step (median, lowest, highest), compile_seconds
    (with the first step; little where the program was compiled before), peak_bytes;
    flops_per_second by the true count, and utilisation, its share of peak_flops_per_second;
    bytes_per_second of memory; the machine and versions. With `against` also released_ and
    best_torch_ tokens_per_second and milliseconds_per_step, and our speed over theirs.

  Raises:
    InputError: nothing to time, a vocabulary of special ids alone, or nobody to be compared with.
  """
  check_bench(config, steps, repeats)
  platform = jax.default_backend()
  competitors.check_competitor(config, against, platform)
  load = machine.read_load()
  rows = timing.make_random_rows(config)
  progress.log('compiling')
  ours, compiling = timing.time_our_step(config, rows)
  with competitors.start_competitors(config, against, platform, rows) as others:
    seconds = timing.time_interleaved({'': ours, **others}, steps, repeats, 'training')
    ways = {name: peer.name for name, peer in others.items()}
  peak_bytes = machine.read_peak_memory()  # before the machine is measured, which takes memory too
  middle = statistics.median(seconds[''])
  rows_a_step = config.batch_size * config.population.members
  flops = flops_per_row(config.model, config.mask)['actual'] * rows_a_step / middle
  kind, side = machine.time_matrix_product()
  peak = machine.measure_peak_flops(kind, side)
  found = _speed('', seconds[''], config) | {
    'compile_seconds': compiling,
    'peak_bytes': peak_bytes,
    'flops_per_second': flops,
    'utilisation': flops / peak,
    'peak_flops_per_second': peak,
    'peak_product': f'{kind} {side} x {side}',
    'bytes_per_second': machine.measure_bandwidth(),
    'parameters': count_parameters(config.model)['total'],
    'members': config.population.members,
    'batch': [config.batch_size, config.model.max_length],
    'steps': steps,
    'repeats': repeats,
    'machine': machine.describe_machine(),
    'load_before': load,
    'versions': machine.list_versions(*([against] if against else [])),
  }
  for name, way in ways.items():
    found |= _speed(f'{name}_', seconds[name], config)
    found |= {f'{name}_way': way, f'ours_over_{name}': statistics.median(seconds[name]) / middle}
  return found


def check_bench(config: RunConfig, steps: int, repeats: int) -> None:
  """Refuses what gives nothing to time."""
  for name, value, least in (
    ('--steps', steps, 1),
    ('--repeats', repeats, 1),
    ('model.vocab_size', config.model.vocab_size, len(tokenizer.SPECIAL_TOKENS) + 1),
  ):
    if value < least:
      raise InputError(f'{name}={value}', f'a value below {least}', f'give at least {least}')


def _speed(prefix: str, seconds: list[float], config: RunConfig) -> dict[str, Any]:
  middle = statistics.median(seconds)
  spread = {'median': 1e3 * middle, 'lowest': 1e3 * min(seconds), 'highest': 1e3 * max(seconds)}
  tokens = config.population.members * config.batch_size * config.model.max_length
  return {f'{prefix}tokens_per_second': tokens / middle, f'{prefix}milliseconds_per_step': spread}


def bench_tables(found: dict[str, Any]) -> list[rich_table.Table]:
  """The same for a reader."""
  speed = rich_table.Table(
    '', 'tokens/s', 'ms a step, median (lowest, highest)', 'ours is faster', title='Speed'
  )
  for name, prefix in (
    ('ours', ''),
    ('PyTorch, released', 'released_'),
    ('PyTorch, best', 'best_torch_'),
  ):
    if f'{prefix}tokens_per_second' in found:
      step = found[f'{prefix}milliseconds_per_step']
      times = f'{found[f"ours_over_{prefix[:-1]}"]:.2f} times' if prefix else ''
      speed.add_row(
        name,
        f'{found[f"{prefix}tokens_per_second"]:,.0f}',
        f'{step["median"]:,.1f} ({step["lowest"]:,.1f}, {step["highest"]:,.1f})',
        times,
      )
  facts = rich_table.Table('what', 'value', title='This machine and this recipe')
  for name, value in (
    ('compiling and the first step', f'{found["compile_seconds"]:.1f} s'),
    ('peak memory', f'{found["peak_bytes"] / 2**20:,.0f} MiB'),
    ('work', f'{found["flops_per_second"] / 1e9:,.1f} GFLOP/s'),
    (
      f'the best this machine does, {found["peak_product"]}',
      f'{found["peak_flops_per_second"] / 1e9:,.1f} GFLOP/s',
    ),
    ('utilisation', f'{found["utilisation"]:.1%}'),
    ('memory bandwidth', f'{found["bytes_per_second"] / 1e9:,.1f} GB/s'),
    ('parameters', f'{found["parameters"]:,}'),
    ('members', str(found['members'])),
    ('batch of each', ' x '.join(map(str, found['batch']))),
    ('timed', f'{found["repeats"]} times {found["steps"]} steps'),
    *([('the best of PyTorch', found['best_torch_way'])] if 'best_torch_way' in found else []),
    ('machine', found['machine']),
    ('load in the minute before', f'{found["load_before"]:.2f}'),
    ('versions', ', '.join(f'{name} {version}' for name, version in found['versions'].items())),
  ):
    facts.add_row(name, value)
  return [speed, facts]


STRATEGIES = ('map', 'vmap', 'solo', 'processes')
_FRACTION = 'XLA_PYTHON_CLIENT_MEM_FRACTION'


def bench_population(
  config: RunConfig, members: Sequence[int], steps: int, repeats: int
) -> dict[str, Any]:
  """Times populations of several sizes.

  Args:
    config: the recipe of one member.
    members: the sizes.
    steps: updates timed at once.
    repeats: times that they are timed.

  Returns:
    `populations`: a row for each size with `members` and, for each way, the median, lowest and
      highest milliseconds in
    which every member makes one update, its tokens a second, `fastest`, and `auto`: the way that a
    recipe gets which leaves it open. Beside it the protocol and the machine.

  Raises:
    InputError: nothing to time.
  """
  check_bench(config, steps, repeats)
  if not members or min(members) < 1:
    raise InputError(
      f'--population={",".join(map(str, members))}',
      'no number of members',
      'give some, as in 1,2,4,8',
    )
  load, rows, solo = (
    machine.read_load(),
    timing.make_random_rows(config),
    _with_members(config, 1, 'auto'),
  )
  progress.log('compiling')
  alone, _ = timing.time_our_step(solo, rows)
  return {
    'populations': [_row(config, solo, alone, rows, count, steps, repeats) for count in members],
    'steps': steps,
    'repeats': repeats,
    'batch': [config.batch_size, config.model.max_length],
    'machine': machine.describe_machine(),
    'load_before': load,
    'versions': machine.list_versions(),
  }


def _with_members(config: RunConfig, count: int, strategy: str) -> RunConfig:
  many = dataclasses.replace(config.population, members=count, strategy=strategy)
  return dataclasses.replace(
    config, population=many, mesh=dataclasses.replace(config.mesh, population=0)
  )


def _row(
  config: RunConfig,
  solo: RunConfig,
  alone: timing.TimedStep,
  rows: np.ndarray,
  count: int,
  steps: int,
  repeats: int,
) -> dict[str, Any]:
  timed: dict[str, timing.TimedStep] = {'solo': lambda steps: count * alone(steps)}
  with contextlib.ExitStack() as stack:
    if count > 1:
      progress.log(f'population of {count}: compiling')
      timed |= {
        strategy: timing.time_our_step(_with_members(config, count, strategy), rows)[0]
        for strategy in ('map', 'vmap')
      }
      timed['processes'] = _processes(solo, rows, count, stack)
    seconds = timing.time_interleaved(timed, steps, repeats, f'population of {count}')
  middle = {way: statistics.median(times) for way, times in seconds.items()}
  tokens = count * config.batch_size * config.model.max_length
  return {
    'members': count,
    'fastest': min(middle, key=middle.__getitem__),
    'auto': population.choose_strategy(count, 'auto', jax.default_backend()),
    'milliseconds': {
      way: {'median': 1e3 * middle[way], 'lowest': 1e3 * min(times), 'highest': 1e3 * max(times)}
      for way, times in seconds.items()
    },
    'tokens_per_second': {way: tokens / middle[way] for way in seconds},
  }


def _processes(
  solo: RunConfig, rows: np.ndarray, count: int, stack: contextlib.ExitStack
) -> timing.TimedStep:
  """So many solo runs side by side; the time is that of the last to end."""
  cores = sorted(os.sched_getaffinity(0)) if jax.default_backend() == 'cpu' else []
  groups = [cores[n :: min(count, len(cores))] for n in range(min(count, len(cores)))] or [[]]
  if not cores:
    # of what this process, which holds the populations, leaves
    os.environ[_FRACTION] = f'{0.4 / count:.3f}'
  workers = [
    timing.start_worker(
      f'process {n}', functools.partial(_worker, solo, rows), groups[n % len(groups)]
    )
    for n in range(count)
  ]
  for worker in workers:
    stack.callback(worker.close)
  for worker in workers:  # one at a time: what the first compiles the others find
    worker(1)

  def timed(steps: int) -> float:
    begin = time.perf_counter()
    for worker in workers:
      worker.begin(steps)
    for worker in workers:
      worker.end()
    return time.perf_counter() - begin

  return timed


def _worker(solo: RunConfig, rows: np.ndarray) -> timing.TimedStep:
  backend.prepare()
  return timing.time_our_step(solo, rows)[0]


def population_tables(found: dict[str, Any]) -> list[rich_table.Table]:
  """The same for a reader."""
  title = 'ms in which every member makes one update, median (lowest, highest)'
  table = rich_table.Table('members', *STRATEGIES, 'fastest', 'auto', title=title)
  for row in found['populations']:
    times = (row['milliseconds'][way] if way in row['milliseconds'] else None for way in STRATEGIES)
    cells = (
      f'{t["median"]:,.1f} ({t["lowest"]:,.1f}, {t["highest"]:,.1f})' if t else '' for t in times
    )
    table.add_row(str(row['members']), *cells, row['fastest'], row['auto'])
  return [table]
