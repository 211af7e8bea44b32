"""Plans a sweep: checks and shares its points, applies budgets, estimates the cost."""

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

from minilm_jax.bench import timing
from minilm_jax.cli import show
from minilm_jax.core import files, progress, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus
from minilm_jax.model.flops import actual_flops, flops_per_row

PointConfigs = Mapping[str, RunConfig]
_SHARD = re.compile(r'(\d+)/(\d+)')
_TIMED_POINTS, _TIMED_STEPS, _REPEATS = 3, 2, 3
_HEADINGS = (
  *('point', 'members', 'parameters', 'without embeddings', 'updates', 'tokens'),
  *('FLOPs (paper)', 'Kaplan', 'true', 'state and gradient', 'time'),
)


@dataclasses.dataclass(frozen=True)
class Budget:
  """Training length that replaces `num_steps`; at most one field is set, and zeros keep the recipe.

  Attributes:
    tokens: tokens of a member.
    flops: FLOPs of a member.
    seconds: training time of a point, from a short measurement.

  Raises:
    InputError: several budgets are set, or a budget is not a positive number.
  """

  tokens: float = 0.0
  flops: float = 0.0
  seconds: float = 0.0

  def __post_init__(self) -> None:
    budgets = {name: value for name, value in vars(self).items() if value}
    if len(budgets) > 1 or not all(0 < value < math.inf for value in budgets.values()):
      raise InputError(
        ' '.join(f'--{name}={value:g}' for name, value in budgets.items()),
        'several budgets, or a budget that is not a positive number',
        'give one positive number',
      )


NO_BUDGET = Budget()


def check_points(configs: PointConfigs) -> None:
  """Raises InputError if two points train the same model in the same way."""
  names: dict[RunConfig, str] = {}
  for name, config in configs.items():
    # `flops_heads` enters the FLOP count only.
    trained = dataclasses.replace(config, model=dataclasses.replace(config.model, flops_heads=1))
    if trained in names:
      raise InputError(
        f'a sweep of {len(configs)} points',
        f'{names[trained]} and {name} are the same recipe',
        f'remove {name}',
      )
    names[trained] = name


def count_flops(config: RunConfig) -> float:
  """Returns the FLOPs of an update of all members."""
  rows = config.batch_size * config.population.members
  return rows * flops_per_row(config.model, config.largest_mask)['actual']


def shard_points(configs: PointConfigs, shard: str) -> PointConfigs:
  """Returns every N-th point in the order of total FLOPs, so that shares cost about the same.

  Args:
    configs: all points.
    shard: K/N with K from 1 to N; '' selects all points.

  Raises:
    InputError: the shard has another form.
  """
  match = _SHARD.fullmatch(shard or '1/1')
  part, parts = map(int, match.groups()) if match else (0, 0)
  if not 1 <= part <= parts:
    raise InputError(
      f'--shard={shard}',
      'not K/N with K from 1 to N',
      'give for example --shard=1/4 to the first of four machines',
    )
  order = sorted(
    configs, key=lambda name: (count_flops(configs[name]) * configs[name].num_steps, name)
  )
  return {name: configs[name] for name in order[part - 1 :: parts]}


def apply_budget(configs: PointConfigs, budget: Budget) -> PointConfigs:
  """Returns the points with `num_steps` from a budget of tokens or FLOPs, rounded up."""
  if not budget.tokens and not budget.flops:
    return configs

  def count_steps(config: RunConfig) -> int:
    length = _read_row_length(config)
    row_flops = actual_flops(config.model, config.largest_mask, length)
    rows = budget.tokens / length or budget.flops / row_flops
    return math.ceil(rows / config.batch_size)

  return {
    name: dataclasses.replace(config, num_steps=count_steps(config))
    for name, config in configs.items()
  }


def _read_row_length(config: RunConfig) -> int:
  """Returns the tokens of a row: those of the corpus or, before it is built, of the model."""
  if not config.corpus or not (epath.Path(config.corpus) / run_dir.MANIFEST).exists():
    return config.model.max_length
  return min(config.model.max_length, corpus.read_manifest(config.corpus)['length'])


def apply_seconds(
  configs: PointConfigs,
  workdir: epath.PathLike,
  seconds: float,
  step_seconds: Mapping[str, float],
) -> PointConfigs:
  """Returns the points with `num_steps` from a budget of seconds.

  A point that already has a run directory keeps the stored `num_steps`.
  """
  points = {}
  for name, config in configs.items():
    stored = epath.Path(workdir) / name / run_dir.CONFIG
    num_steps = (
      files.read_json(stored, f'the recipe of {name}')['num_steps']
      if stored.exists()
      else max(1, math.floor(seconds / step_seconds[name]))
    )
    points[name] = dataclasses.replace(config, num_steps=num_steps)
  return points


def time_steps(configs: PointConfigs) -> dict[str, float]:
  """Returns the seconds of an update of each point.

  A few points are measured on random rows. The time of other points is interpolated in log FLOPs.
  """
  order = sorted(configs, key=lambda name: count_flops(configs[name]))
  timed = sorted({round(index) for index in np.linspace(0, len(order) - 1, _TIMED_POINTS)})
  flops, seconds = [], []
  with progress.track_progress('timing', len(timed), 'points') as update:
    for number, name in enumerate((order[index] for index in timed), 1):
      config = configs[name]
      step, _ = timing.time_our_step(config, timing.make_random_rows(config))
      times = timing.time_interleaved({'': step}, _TIMED_STEPS, _REPEATS)['']
      seconds.append(statistics.median(times))
      flops.append(count_flops(config))
      del step
      jax.clear_caches()
      update(number, f'{name} {1e3 * seconds[-1]:,.0f} ms an update')
  return {
    name: float(np.exp(np.interp(np.log(count_flops(config)), np.log(flops), np.log(seconds))))
    for name, config in configs.items()
  }


def describe_plan(configs: PointConfigs, step_seconds: Mapping[str, float]) -> list[dict[str, Any]]:
  """Returns the cost of each point as plain data."""
  devices = jax.local_devices()
  copies = len(devices) if devices[0].platform == 'cpu' else 1  # CPU devices share one memory
  rows = []
  for name, config in configs.items():
    facts = show.describe_pretraining(config)
    rows.append(
      {
        'point': name,
        **{key: facts[key] for key in ('members', 'parameters', 'updates', 'tokens', 'flops')},
        'bytes': copies * (facts['bytes']['state'] + facts['bytes']['gradient']),
        'seconds': config.num_steps * step_seconds[name],
      }
    )
  return rows


def make_plan_tables(rows: Sequence[Mapping[str, Any]]) -> list[rich_table.Table]:
  """Returns the rows of `describe_plan` as a table that ends with the total time."""
  table = rich_table.Table(
    title='Plan: FLOPs and tokens of one member; training time of all members'
  )
  for heading in _HEADINGS:
    table.add_column(heading, justify='left' if heading == 'point' else 'right')
  for row in rows:
    table.add_row(
      row['point'],
      str(row['members']),
      f'{row["parameters"]["total"]:,}',
      f'{row["parameters"]["other"]:,}',
      f'{row["updates"]:,}',
      f'{row["tokens"]:.3g}',
      *(f'{row["flops"][name]:.3g}' for name in ('honey', 'kaplan', 'actual')),
      f'{row["bytes"] / 2**20:,.0f} MiB',
      progress.format_duration(row['seconds']),
    )
  table.add_section()
  total = progress.format_duration(sum(row['seconds'] for row in rows))
  table.add_row(f'{len(rows)} points', *[''] * (len(_HEADINGS) - 2), total)
  return [table]
