"""What a sweep is to do: its points and whose they are, how long each is trained, what that takes.

Nothing is trained here but a few updates, to know how fast the machine is.
"""

import dataclasses
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from rich import table as rich_table

from minilm_jax import progress, run, show, stopwatch
from minilm_jax.config import RunConfig
from minilm_jax.errors import InputError
from minilm_jax.model import size
from minilm_jax.progress import duration

_SHARD = re.compile(r'(\d+)/(\d+)')
_TIMED = 3  # points that are timed; the others follow from these
_STEPS = 2  # updates of a repeat
Configs = Mapping[str, RunConfig]


def check(configs: Configs) -> None:
  """Refuses a sweep that has a point twice, by whatever names.

  Raises:
    InputError: names both.
  """
  seen: dict[RunConfig, str] = {}
  for name, config in configs.items():
    same = dataclasses.replace(config, model=dataclasses.replace(config.model, flops_heads=1))  # that trains nothing
    if same in seen:
      raise InputError(f'a sweep of {len(configs)} points', f'{seen[same]} and {name} are the same point',
                       'leave one of them out')
    seen[same] = name


def work(config: RunConfig) -> float:
  """FLOPs of an update, of all members."""
  rows = config.batch_size * config.population.members
  return rows * size.flops_per_row(config.model, config.mask)['actual']


def share(configs: Configs, shard: str) -> Configs:
  """The points that are one machine's, from the cheapest: every n-th, so that all machines have cheap and dear ones.

  Args:
    configs: all points.
    shard: k/n, from 1/n to n/n; '' is all of them.

  Raises:
    InputError: it is no such share.
  """
  match = _SHARD.fullmatch(shard or '1/1')
  part, parts = map(int, match.groups()) if match else (0, 0)
  if not 1 <= part <= parts:
    raise InputError(f'--shard={shard}', 'not k/n with k from 1 to n', 'give --shard=1/4 to the first machine of four')
  order = sorted(configs, key=lambda name: (work(configs[name]) * configs[name].num_steps, name))
  return {name: configs[name] for name in order[part - 1::parts]}


def budgeted(configs: Configs, tokens: float, flops: float) -> Configs:
  """The points with as many updates as give each member so many tokens or FLOPs; 0 and 0 leave them as they are."""
  def updates(config: RunConfig) -> int:
    rows = tokens / config.model.max_length or flops / size.flops_per_row(config.model, config.mask)['actual']
    return math.ceil(rows / config.batch_size)

  if not tokens and not flops:
    return configs
  return {name: dataclasses.replace(config, num_steps=updates(config)) for name, config in configs.items()}


def timed(configs: Configs, workdir: epath.PathLike, seconds: float, each: Mapping[str, float]) -> Configs:
  """The points with as many updates as take so many seconds each; one that has begun keeps its number."""
  found = {}
  for name, config in configs.items():
    begun = epath.Path(workdir) / name / run.CONFIG
    updates = (run.read_json(begun, f'the recipe of {name}')['updates'] if begun.exists()
               else max(1, math.floor(seconds / each[name])))
    found[name] = dataclasses.replace(config, num_steps=updates)
  return found


def check_budget(tokens: float, flops: float, seconds: float) -> None:
  """Refuses more than one budget, and what is none.

  Raises:
    InputError: says which.
  """
  given = {name: value for name, value in (('tokens', tokens), ('flops', flops), ('seconds', seconds)) if value}
  asked = ' '.join(f'--{name}={value:g}' for name, value in given.items())
  if len(given) > 1 or not all(0 < value < math.inf for value in given.values()):
    raise InputError(asked, 'more than one budget, or one that is not a positive number', 'give one')


def seconds_per_update(configs: Configs) -> dict[str, float]:
  """Seconds of an update of each point: some are timed on random rows, the others lie between them by their FLOPs."""
  order = sorted(configs, key=lambda name: work(configs[name]))
  places = sorted({round(place) for place in np.linspace(0, len(order) - 1, _TIMED)})
  flops, found = [], []
  with progress.track('timing', len(places), 'points') as tick:
    for number, name in enumerate((order[place] for place in places), 1):
      config = configs[name]
      step, _ = stopwatch.ours(config, stopwatch.random_rows(config))
      found.append(statistics.median(stopwatch.interleaved({'': step}, _STEPS, 3)['']))
      flops.append(work(config))
      del step
      jax.clear_caches()
      tick(number, f'{name} {1e3 * found[-1]:,.0f} ms an update')
  return {name: float(np.exp(np.interp(np.log(work(config)), np.log(flops), np.log(found))))
          for name, config in configs.items()}


def describe(configs: Configs, each: Mapping[str, float]) -> list[dict[str, Any]]:
  """What each point takes: plain data, in order."""
  devices = jax.local_devices()
  copies = len(devices) if devices[0].platform == 'cpu' else 1  # those of a CPU have one memory
  found = []
  for name, config in configs.items():
    takes = show.pretraining(config)
    found.append({
        'point': name, **{key: takes[key] for key in ('members', 'parameters', 'updates', 'tokens', 'flops')},
        'bytes': copies * (takes['bytes']['state'] + takes['bytes']['gradient']),
        'seconds': config.num_steps * each[name]})
  return found


def tables(described: Sequence[Mapping[str, Any]]) -> list[rich_table.Table]:
  """The same for a reader, with the sum of the times."""
  found = rich_table.Table(title='FLOPs and tokens of one member; time of training alone, of all members')
  for heading in ('point', 'members', 'parameters', 'without embeddings', 'updates', 'tokens', 'FLOPs (paper)',
                  'Kaplan', 'true', 'state and gradient', 'time'):
    found.add_column(heading, justify='left' if heading == 'point' else 'right')
  for row in described:
    flops, parameters = row['flops'], row['parameters']
    counts = (f'{flops[name]:.3g}' for name in ('honey', 'kaplan', 'actual'))
    found.add_row(row['point'], str(row['members']), f'{parameters["total"]:,}', f'{parameters["other"]:,}',
                  f'{row["updates"]:,}', f'{row["tokens"]:.3g}', *counts,
                  f'{row["bytes"] / 2**20:,.0f} MiB', duration(row['seconds']))
  found.add_section()
  found.add_row(f'{len(described)} points', *[''] * 8, '', duration(sum(row['seconds'] for row in described)))
  return [found]
