"""From how many members on a population pays: one program against solo runs one after another, and against processes.

All ways are timed in turns, repeat by repeat, for each number of members; what is compared is the time in which every
member makes one update. The ways: `loop` and `vmap`, how a population shares a device; `solo`, a run after the other,
each on all devices; `processes`, solo runs side by side, each with a share of the cores or of the GPU.
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

from minilm_jax import backend, bench, machine, progress, stopwatch
from minilm_jax.config import RunConfig
from minilm_jax.errors import InputError
from minilm_jax.training import population

WAYS = ('map', 'vmap', 'solo', 'processes')
_WAY_OF_STRATEGY = {'single': 'single', 'map': 'map', 'vmap': 'vmap'}
_FRACTION = 'XLA_PYTHON_CLIENT_MEM_FRACTION'


def break_even(config: RunConfig, members: Sequence[int], steps: int, repeats: int) -> dict[str, Any]:
  """Times populations of several sizes.

  Args:
    config: the recipe of one member.
    members: the sizes.
    steps: updates timed at once.
    repeats: times that they are timed.

  Returns:
    `populations`: a row for each size with `members` and, for each way, the median, lowest and highest milliseconds in
    which every member makes one update, its tokens a second, `fastest`, and `auto`: the way that a recipe gets which
    leaves it open. Beside it the protocol and the machine.

  Raises:
    InputError: nothing to time.
  """
  bench.check(config, steps, repeats)
  if not members or min(members) < 1:
    raise InputError(f'--population={",".join(map(str, members))}', 'no number of members', 'give some, as in 1,2,4,8')
  load, rows, solo = machine.load(), stopwatch.random_rows(config), _of(config, 1, 'auto')
  progress.say('compiling')
  alone, _ = stopwatch.ours(solo, rows)
  return {'populations': [_row(config, solo, alone, rows, count, steps, repeats) for count in members], 'steps': steps,
          'repeats': repeats, 'batch': [config.batch_size, config.model.max_length], 'machine': machine.describe(),
          'load_before': load, 'versions': machine.versions()}


def _of(config: RunConfig, count: int, lift: str) -> RunConfig:
  many = dataclasses.replace(config.population, members=count, strategy=lift)
  return dataclasses.replace(config, population=many, mesh=dataclasses.replace(config.mesh, population=0))


def _row(config: RunConfig, solo: RunConfig, alone: stopwatch.Timed, rows: np.ndarray, count: int, steps: int,
         repeats: int) -> dict[str, Any]:
  timed = {'solo': lambda steps: count * alone(steps)}
  with contextlib.ExitStack() as stack:
    if count > 1:
      progress.say(f'population of {count}: compiling')
      timed |= {lift: stopwatch.ours(_of(config, count, lift), rows)[0] for lift in ('map', 'vmap')}
      timed['processes'] = _processes(solo, rows, count, stack)
    seconds = stopwatch.interleaved(timed, steps, repeats, f'population of {count}')
  middle = {way: statistics.median(times) for way, times in seconds.items()}
  tokens = count * config.batch_size * config.model.max_length
  return {'members': count, 'fastest': min(middle, key=middle.__getitem__),
          'auto': _WAY_OF_STRATEGY[population.choose_strategy(count, 'auto', jax.default_backend())],
          'milliseconds': {way: {'median': 1e3 * middle[way], 'lowest': 1e3 * min(times), 'highest': 1e3 * max(times)}
                           for way, times in seconds.items()},
          'tokens_per_second': {way: tokens / middle[way] for way in seconds}}


def _processes(solo: RunConfig, rows: np.ndarray, count: int, stack: contextlib.ExitStack) -> stopwatch.Timed:
  """So many solo runs side by side; the time is that of the last to end."""
  cores = sorted(os.sched_getaffinity(0)) if jax.default_backend() == 'cpu' else []
  groups = [cores[n::min(count, len(cores))] for n in range(min(count, len(cores)))] or [[]]
  if not cores:
    os.environ[_FRACTION] = f'{0.4 / count:.3f}'  # of what this process, which holds the populations, leaves
  workers = [stopwatch.start(f'process {n}', functools.partial(_worker, solo, rows), groups[n % len(groups)])
             for n in range(count)]
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


def _worker(solo: RunConfig, rows: np.ndarray) -> stopwatch.Timed:
  backend.prepare()
  return stopwatch.ours(solo, rows)[0]


def tables(found: dict[str, Any]) -> list[rich_table.Table]:
  """The same for a reader."""
  title = 'ms in which every member makes one update, median (lowest, highest)'
  table = rich_table.Table('members', *WAYS, 'fastest', 'auto', title=title)
  for row in found['populations']:
    times = (row['milliseconds'][way] if way in row['milliseconds'] else None for way in WAYS)
    cells = (f'{t["median"]:,.1f} ({t["lowest"]:,.1f}, {t["highest"]:,.1f})' if t else '' for t in times)
    table.add_row(str(row['members']), *cells, row['fastest'], row['auto'])
  return [table]
