"""Points of the gap and lines through them: how steep, and how sure that is. `gap.py` says which runs compare."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from minilm_jax.analysis.scores import Difference

SIZE, OVERLAP = 'size', 'overlap'  # axes
MIN_LEVELS = 2  # levels of one of them
_POINT = 100  # a slope by overlap is for 0.01
_SAME = {
  SIZE: 0.02,
  OVERLAP: 0.2,
}  # doublings, and points of overlap: levels that are nearer are one


@dataclasses.dataclass(frozen=True)
class Gap:
  """One point of one comparison; scores are shares or correlations.

  Attributes:
    axis: SIZE or OVERLAP.
    series: the task, its metric and split.
    comparison: the shape, and what else the runs share.
    borrowed: is the arm from scratch that of another run?
    seeds, values: the differences of each seed, where they are paired.
  """

  axis: str
  series: str
  comparison: str
  checkpoint: str
  rows: int
  tokens: int
  epochs: float
  overlap: float
  pretrained: float
  scratch: float
  gap: Difference
  borrowed: bool
  seeds: tuple[int, ...]
  values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Slope:
  """A line through the points of one comparison; shares of a score for a doubling of tokens, or for 0.01 of overlap.

  Attributes:
    axis, series, comparison: as of its points; a series of several tasks is their mean.
    points, levels: runs, and sizes or overlaps among them.
    tasks, seeds: that the slope is of; seeds are those of fine-tuning that all runs have.
    slope: least squares.
    low, high: the middle 95% over resamples; nan where there is one seed and one task.
    note: what keeps it from saying more, or ''.
  """

  axis: str
  series: str
  comparison: str
  points: int
  levels: int
  tasks: int
  seeds: int
  slope: float
  low: float
  high: float
  note: str


@dataclasses.dataclass(frozen=True)
class _Series:
  """The points of one series and comparison: `x [R]`, and `y [S R]` by seed, one row alone where seeds differ."""

  x: Float[np.ndarray, 'R']
  y: Float[np.ndarray, 'S R']
  levels: Int[np.ndarray, 'R']
  paired: bool


def slopes(points: Iterable[Gap], draws: int, seed: int = 0) -> list[Slope]:
  """The line of each series and, where a comparison has several series, of their mean.

  Args:
    points: of `gap.find_gaps`.
    draws, seed: of the resamples, which the seed decides.
  """
  grouped: dict[tuple[str, str], dict[str, list[Gap]]] = {}
  for point in points:
    grouped.setdefault((point.axis, point.comparison), {}).setdefault(point.series, []).append(
      point
    )
  found = []
  for (axis, comparison), by_series in grouped.items():
    ready = {name: _ready(axis, own) for name, own in by_series.items()}
    ready = {name: one for name, one in ready.items() if one.levels.max() + 1 >= MIN_LEVELS}
    for name, one in ready.items():
      found.append(_slope(axis, name, comparison, [one], draws, seed))
    if len(ready) > 1:
      found.append(
        _slope(axis, f'mean of {len(ready)} tasks', comparison, list(ready.values()), draws, seed)
      )
  return found


def by_seed(own: Sequence[Gap]) -> dict[int, float]:
  """The slope of each seed of fine-tuning that all points of one line have; none where they are at one level."""
  one = _ready(own[0].axis, own)
  if one.levels.max() + 1 < MIN_LEVELS or not one.paired:
    return {}
  return {seed: _fit(one.x, y) for seed, y in zip(_common(own), one.y, strict=True)}


def _common(own: Sequence[Gap]) -> list[int]:
  return sorted(set.intersection(*(set(point.seeds) for point in own)))


def _ready(axis: str, own: Sequence[Gap]) -> _Series:
  x = np.array(
    [math.log2(point.tokens) if axis == SIZE else _POINT * point.overlap for point in own]
  )
  order = np.argsort(x, kind='stable')
  levels = np.empty(len(x), int)
  levels[order] = np.cumsum(np.diff(x[order], prepend=x[order[0]]) > _SAME[axis])
  common = _common(own)
  if len(common) > 1:
    values = [dict(zip(point.seeds, point.values, strict=True)) for point in own]
    return _Series(x, np.array([[of[one] for of in values] for one in common]), levels, True)
  return _Series(x, np.array([[point.pretrained - point.scratch for point in own]]), levels, False)


def _fit(x: Float[np.ndarray, 'R'], y: Float[np.ndarray, 'R']) -> float:
  """The slope of the least-squares line."""
  dx = x - x.mean()
  return float(dx @ y / (dx @ dx))


def _drawn(one: _Series, random: np.random.Generator) -> float:
  """The slope of resampled seeds and, inside each level that has several, resampled runs."""
  seeds = random.integers(len(one.y), size=len(one.y))
  runs = np.concatenate(
    [
      random.choice(np.flatnonzero(one.levels == level), int((one.levels == level).sum()))
      for level in range(one.levels.max() + 1)
    ]
  )
  return _fit(one.x[runs], one.y[seeds].mean(0)[runs])


def _slope(
  axis: str, name: str, comparison: str, several: Sequence[_Series], draws: int, seed: int
) -> Slope:
  value = float(np.mean([_fit(one.x, one.y.mean(0)) for one in several]))
  low = high = math.nan
  if len(several) > 1 or several[0].paired:
    random, made = np.random.default_rng(seed), []
    for _ in range(draws):
      tasks = random.integers(len(several), size=len(several)) if len(several) > 1 else (0,)
      made.append(np.mean([_drawn(several[task], random) for task in tasks]))
    low, high = (float(end) for end in np.percentile(made, (2.5, 97.5)))
  levels = min(int(one.levels.max()) + 1 for one in several)
  return Slope(
    axis,
    name,
    comparison,
    max(len(one.x) for one in several),
    levels,
    len(several),
    min(len(one.y) if one.paired else 0 for one in several),
    value,
    low,
    high,
    '; '.join(_notes(several)),
  )


def _notes(several: Sequence[_Series]) -> Iterator[str]:
  if any(int(one.levels.max()) + 1 == MIN_LEVELS for one in several):
    yield 'two levels: nothing is known between or beyond them'
  if not all(one.paired for one in several):
    yield 'fewer than two seeds that all arms share: none were resampled'
  if all(len(one.x) == int(one.levels.max()) + 1 for one in several):
    yield 'one pre-training run a level: what another would change is not in the interval'
