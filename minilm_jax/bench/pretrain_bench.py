"""Measures the training speed of a recipe on this machine, and the speed of populations.

The benchmark times the chunk that `pretrain` runs, on random rows. The first step compiles and is
timed separately. One chunk runs untimed; `repeats` chunks of `steps` updates are then timed. On a
CPU, a second process loads the same program from the compilation cache, as a repeated run does.
This process and competitors run in turns with ours, chunk by chunk. Peak FLOP/s and memory
bandwidth of the machine are measured right after. The benchmark reports no share of the memory
bandwidth, because the byte counts of XLA include a loop body once and ignore caches.
"""

import contextlib
import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from rich import table as rich_table

from minilm_jax.bench import competitors, machine, timing
from minilm_jax.core import backend, progress
from minilm_jax.core.config import PopulationConfig, RunConfig
from minilm_jax.core.errors import at_most
from minilm_jax.model.flops import count_parameters_by_part, flops_per_row
from minilm_jax.training import population

STRATEGIES = ('map', 'vmap', 'solo', 'processes')
MAX_STEPS = 1_000_000  # a block of more steps would take hours
_MEMORY_FRACTION_VARIABLE = 'XLA_PYTHON_CLIENT_MEM_FRACTION'


def bench_pretraining(
  config: RunConfig, steps: int, repeats: int, competitor: str = ''
) -> dict[str, Any]:
  """Times the training step of a recipe.

  Args:
    config: the recipe.
    steps: updates in a timed chunk.
    repeats: timed chunks.
    competitor: 'torch' also times the model in PyTorch, with the released code of paper 1 and with
      the fastest implementation; '' times ours alone.

  Returns:
    tokens_per_second (median), milliseconds_per_step (median, lowest, highest) and peak_bytes.
    compile_seconds includes the first step. page_faults_per_step counts minor page faults. The
    prefix cached_ marks the times of the program from the compilation cache, on a CPU.
    flops_per_second is the true count; utilisation is its share of peak_flops_per_second.
    bytes_per_second is the memory bandwidth. Machine, load and versions follow. A competitor adds
    its tokens_per_second and milliseconds_per_step, with the prefixes released_ and best_torch_,
    and the ratio of our speed to its speed.

  Raises:
    InputError: `steps` or `repeats` is below 1, the vocabulary has special tokens alone, or the
      competitor cannot run the recipe.
  """
  check_bench(config, steps, repeats)
  platform = jax.default_backend()
  competitors.check_competitor(config, competitor, platform)
  load = machine.read_load()
  rows = timing.make_random_rows(config)
  progress.log('compiling')
  with timing.disable_compilation_cache():
    our_step, compile_seconds = timing.time_our_step(config, rows)
  with (
    _start_cached_step(config, platform, rows) as cached,
    competitors.start_competitors(config, competitor, platform, rows) as workers,
  ):
    timed_steps = {'': our_step, **cached, **workers}
    seconds = timing.time_interleaved(timed_steps, steps, repeats, 'training')
    options = {name: worker.name for name, worker in workers.items()}
  page_faults = machine.count_page_faults()
  our_step(steps)
  page_faults = machine.count_page_faults() - page_faults
  peak_bytes = machine.read_peak_memory()  # before the measurements below, which allocate memory
  median = statistics.median(seconds[''])
  rows_per_step = config.batch_size * config.population.members
  flops = flops_per_row(config.model, config.largest_mask)['actual'] * rows_per_step / median
  dtype, side = machine.choose_matrix_product()
  peak_flops = machine.measure_peak_flops(dtype, side)
  result = _summarize_speed('', seconds[''], config) | {
    'compile_seconds': compile_seconds,
    'page_faults_per_step': page_faults / steps,
    'peak_bytes': peak_bytes,
    'flops_per_second': flops,
    'utilisation': flops / peak_flops,
    'peak_flops_per_second': peak_flops,
    'peak_product': f'{dtype} {side} x {side}',
    'bytes_per_second': machine.measure_bandwidth(),
    'parameters': count_parameters_by_part(config.model)['total'],
    'members': config.population.members,
    'batch': [config.batch_size, config.model.max_length],
    'steps': steps,
    'repeats': repeats,
    **machine.describe_conditions(load, *([competitor] if competitor else [])),
  }
  for name in (*cached, *options):
    result |= _summarize_speed(f'{name}_', seconds[name], config)
    result[f'ours_over_{name}'] = statistics.median(seconds[name]) / median
  return result | {f'{name}_way': option for name, option in options.items()}


@contextlib.contextmanager
def _start_cached_step(
  config: RunConfig, platform: str, rows: np.ndarray
) -> Iterator[dict[str, timing.TimedStep]]:
  """Yields `cached`, a process that loads the program from the compilation cache.

  Another process fills the cache first. Processes cannot share an accelerator, so that only a CPU
  has this step.
  """
  if platform != 'cpu':
    yield {}
    return
  make_step = functools.partial(_make_worker_step, config, rows)
  with contextlib.closing(
    timing.start_worker('filling the compilation cache', make_step)
  ) as worker:
    worker(1)
  with contextlib.closing(timing.start_worker('the cached program', make_step)) as worker:
    yield {'cached': worker}


def check_bench(config: RunConfig, steps: int, repeats: int) -> None:
  """Raises InputError if there are no steps to time, or too many, or no ordinary tokens."""
  at_most(MAX_STEPS)('--steps', steps)
  timing.check_minimums(
    ('--steps', steps, 1),
    ('--repeats', repeats, 1),
    ('model.vocab_size', config.model.vocab_size, timing.MIN_VOCAB_SIZE),
  )


def _summarize_speed(prefix: str, seconds: list[float], config: RunConfig) -> dict[str, Any]:
  tokens = config.population.members * config.batch_size * config.model.max_length
  return {
    f'{prefix}tokens_per_second': tokens / statistics.median(seconds),
    f'{prefix}milliseconds_per_step': timing.summarize_times(seconds),
  }


def make_bench_tables(result: dict[str, Any]) -> list[rich_table.Table]:
  """Returns the tables of `bench_pretraining`."""
  speed = rich_table.Table(
    '', 'tokens/s', 'ms a step, median (lowest, highest)', 'speed-up of ours', title='Speed'
  )
  for name, prefix in (
    ('ours', ''),
    ('ours, from the compilation cache', 'cached_'),
    ('PyTorch, released', 'released_'),
    ('PyTorch, best', 'best_torch_'),
  ):
    if f'{prefix}tokens_per_second' in result:
      speed.add_row(
        name,
        f'{result[f"{prefix}tokens_per_second"]:,.0f}',
        timing.format_times(result[f'{prefix}milliseconds_per_step']),
        f'{result[f"ours_over_{prefix[:-1]}"]:.2f}' if prefix else '',
      )
  facts = rich_table.Table('quantity', 'value', title='Machine and recipe')
  for name, value in (
    ('compilation and first step', f'{result["compile_seconds"]:.1f} s'),
    ('peak memory', f'{result["peak_bytes"] / 2**20:,.0f} MiB'),
    ('page faults a step', f'{result["page_faults_per_step"]:,.0f}'),
    ('compute', f'{result["flops_per_second"] / 1e9:,.1f} GFLOP/s'),
    (
      f'peak compute, {result["peak_product"]}',
      f'{result["peak_flops_per_second"] / 1e9:,.1f} GFLOP/s',
    ),
    ('utilisation', f'{result["utilisation"]:.1%}'),
    ('memory bandwidth', f'{result["bytes_per_second"] / 1e9:,.1f} GB/s'),
    ('parameters', f'{result["parameters"]:,}'),
    ('members', str(result['members'])),
    ('batch of a member', ' x '.join(map(str, result['batch']))),
    ('timed', f'{result["repeats"]} chunks of {result["steps"]} steps'),
    *([('PyTorch, best', result['best_torch_way'])] if 'best_torch_way' in result else []),
    *machine.format_conditions(result),
  ):
    facts.add_row(name, value)
  return [speed, facts]


def bench_population(
  config: RunConfig, sizes: Sequence[int], steps: int, repeats: int
) -> dict[str, Any]:
  """Times populations of several sizes under each strategy.

  Args:
    config: the recipe of one member.
    sizes: numbers of members, each at least 1.
    steps: updates in a timed chunk.
    repeats: timed chunks.

  Returns:
    `populations` has an entry for each number of `members`. `milliseconds` (median, lowest,
    highest) and `tokens_per_second` are those of one update of every member, by strategy. `fastest`
    is the fastest strategy, `auto` the strategy of `population.strategy='auto'`. The settings and
    the machine follow.

  Raises:
    InputError: `steps` or `repeats` is below 1, or the vocabulary has special tokens alone.
  """
  check_bench(config, steps, repeats)
  load = machine.read_load()
  rows = timing.make_random_rows(config)
  progress.log('compiling')
  solo_step, _ = timing.time_our_step(_with_members(config, 1, 'auto'), rows)
  return {
    'populations': [_bench_size(config, solo_step, rows, n, steps, repeats) for n in sizes],
    'steps': steps,
    'repeats': repeats,
    'batch': [config.batch_size, config.model.max_length],
    **machine.describe_conditions(load),
  }


def _with_members(config: RunConfig, members: int, strategy: str) -> RunConfig:
  """Returns a recipe with equal members, whose masks have the largest rate of a member."""
  return dataclasses.replace(
    config,
    population=PopulationConfig(members, strategy),
    mask=config.largest_mask,
    mesh=dataclasses.replace(config.mesh, population=0),
  )


def _bench_size(
  config: RunConfig,
  solo_step: timing.TimedStep,
  rows: np.ndarray,
  members: int,
  steps: int,
  repeats: int,
) -> dict[str, Any]:
  """Times one population size; a solo step stands for every member of the strategy `solo`."""
  timed_steps: dict[str, timing.TimedStep] = {'solo': lambda steps: members * solo_step(steps)}
  with contextlib.ExitStack() as stack:
    if members > 1:
      progress.log(f'population of {members}: compiling')
      for strategy in ('map', 'vmap'):
        step, _ = timing.time_our_step(_with_members(config, members, strategy), rows)
        timed_steps[strategy] = step
      timed_steps['processes'] = _start_processes(config, rows, members, stack)
    seconds = timing.time_interleaved(timed_steps, steps, repeats, f'population of {members}')
  medians = {strategy: statistics.median(times) for strategy, times in seconds.items()}
  tokens = members * config.batch_size * config.model.max_length
  return {
    'members': members,
    'fastest': min(medians, key=medians.__getitem__),
    'auto': population.choose_strategy(members, 'auto', jax.default_backend()),
    'milliseconds': {name: timing.summarize_times(times) for name, times in seconds.items()},
    'tokens_per_second': {name: tokens / median for name, median in medians.items()},
  }


def _start_processes(
  config: RunConfig, rows: np.ndarray, count: int, stack: contextlib.ExitStack
) -> timing.TimedStep:
  """Starts solo runs in parallel processes; a step takes until the last process ends."""
  cores: list[int] = []  # macOS has no affinity
  if jax.default_backend() == 'cpu' and hasattr(os, 'sched_getaffinity'):
    cores = sorted(os.sched_getaffinity(0))
  groups = [cores[n :: min(count, len(cores))] for n in range(min(count, len(cores)))] or [[]]
  if not cores:
    # The workers share 40% of the memory; this process holds the populations in the other part.
    os.environ[_MEMORY_FRACTION_VARIABLE] = f'{0.4 / count:.3f}'
  make_step = functools.partial(_make_worker_step, _with_members(config, 1, 'auto'), rows)
  workers = [
    timing.start_worker(f'process {n}', make_step, groups[n % len(groups)]) for n in range(count)
  ]
  for worker in workers:
    stack.callback(worker.close)
  for worker in workers:  # in turns, so that the first fills the compilation cache for the others
    worker(1)

  def time_steps(steps: int) -> float:
    start = time.perf_counter()
    for worker in workers:
      worker.begin(steps)
    for worker in workers:
      worker.end()
    return time.perf_counter() - start

  return time_steps


def _make_worker_step(config: RunConfig, rows: np.ndarray) -> timing.TimedStep:
  backend.prepare()
  return timing.time_our_step(config, rows)[0]


def make_population_tables(result: dict[str, Any]) -> list[rich_table.Table]:
  """Returns the table of `bench_population`."""
  title = 'ms of one update of every member, median (lowest, highest)'
  table = rich_table.Table('members', *STRATEGIES, 'fastest', 'auto', title=title)
  for row in result['populations']:
    times = row['milliseconds']
    cells = (timing.format_times(times[name]) if name in times else '' for name in STRATEGIES)
    table.add_row(str(row['members']), *cells, row['fastest'], row['auto'])
  return [table]
