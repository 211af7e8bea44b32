"""Compute-optimal frontiers of a sweep, and the plateau of tiny masked language models.

A frontier contains the evaluations of all runs with the lowest loss for their compute. Evaluations
before the first update are left out. There are two kinds:

- `find_percentile_frontier` is the procedure of paper 1. It selects one evaluation in each bin of
  compute, so the losses need not be monotone.
- `find_lower_envelope` has no bins. It selects an evaluation if no cheaper evaluation has a lower
  or equal loss.

The plateau is a phase early in training with a nearly constant loss before a steep drop.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int

from minilm_jax.analysis.loss_curves import HONEY, LossCurve
from minilm_jax.core.errors import InputError

# Slopes, -d log(loss) / d log(updates), on the plateau and on the drops around the plateau.
_MAX_PLATEAU_SLOPE, _MIN_DROP_SLOPE = 0.05, 0.15
# A run is on the plateau while its loss is between these factors of the plateau loss.
_ENTRY_FACTOR, _EXIT_FACTOR = 1.02, 0.945
# Ratios of updates, between the evaluations of a slope and over the shortest plateau.
_MIN_STEP_RATIO, _MIN_LENGTH_RATIO = 1.2, 1.4
_MAX_LEVEL_DIFFERENCE = 0.05  # relative, of plateau losses in one sweep
_MAX_LEARNED_LOSS = 0.9  # times log V; above this loss, nothing is learned yet


@dataclasses.dataclass(frozen=True)
class Point:
  """One evaluation on a frontier.

  Attributes:
    flops: FLOPs of training up to the evaluation.
    loss: validation loss in nats a masked token.
    tokens: tokens seen up to the evaluation, with padding.
    parameters: parameters of the model, with embeddings.
  """

  flops: float
  loss: float
  run: str
  tokens: float
  parameters: int


def find_percentile_frontier(curves: Sequence[LossCurve], count: str = HONEY) -> list[Point]:
  """Returns the frontier of paper 1: the lowest loss in each of up to 44 bins of compute.

  The edges of the bins are 0 and the percentiles p0, p5, ..., p100 of the FLOPs of all evaluations.
  The ranges [0, p0] and [p0, p5] are divided into 10 equal bins each, and
  [p5, p10] into 5. A bin includes its upper edge alone. Empty bins have no point. Of equal losses
  in a bin, the cheapest evaluation counts.

  Raises:
    InputError: there are no evaluations, or a curve lacks the count.
  """
  evaluations, flops, loss = _pool_evaluations(curves, count)
  percentiles = np.percentile(flops, np.arange(0, 101, 5))
  p0, p5, p10 = percentiles[:3]
  parts = [np.linspace(0, p0, 11), np.linspace(p0, p5, 11), np.linspace(p5, p10, 6)]
  edges = np.unique(np.concatenate([*parts, percentiles[2:]]))
  bins = np.digitize(flops, edges, right=True)
  order = np.lexsort((flops, loss, bins))
  first = np.flatnonzero(np.diff(bins[order], prepend=-1))
  return _make_points(evaluations, order[first], count)


def find_lower_envelope(curves: Sequence[LossCurve], count: str = HONEY) -> list[Point]:
  """Returns each evaluation whose loss is below that of every evaluation of at most its compute.

  Compute and loss of the points are strictly monotone. Evaluations in the middle of a schedule have
  a high learning rate, so a shorter schedule would reach a lower loss.

  Raises:
    InputError: there are no evaluations, or a curve lacks the count.
  """
  evaluations, flops, loss = _pool_evaluations(curves, count)
  order = np.lexsort((loss, flops))
  best = np.minimum.accumulate(loss[order])
  is_record = np.concatenate([[True], loss[order][1:] < best[:-1]])
  return _make_points(evaluations, order[is_record], count)


def to_arrays(points: Sequence[Point]) -> tuple[Float[np.ndarray, 'N'], Float[np.ndarray, 'N']]:
  """Returns the FLOPs and the losses of points."""
  flops, loss = ([getattr(point, field) for point in points] for field in ('flops', 'loss'))
  return np.array(flops, float), np.array(loss, float)


def make_point(curve: LossCurve, index: int, count: str) -> Point:
  """Returns an evaluation of a curve as a point."""
  flops, tokens = curve.rows[index] * curve.flops_per_row[count], curve.rows[index] * curve.length
  return Point(float(flops), curve.loss[index], curve.name, float(tokens), curve.parameters)


def _make_points(
  evaluations: Sequence[tuple[LossCurve, int]], indices: Int[np.ndarray, 'n'], count: str
) -> list[Point]:
  selected = (evaluations[number] for number in indices.tolist())
  return [make_point(curve, index, count) for curve, index in selected]


def _pool_evaluations(
  curves: Sequence[LossCurve], count: str
) -> tuple[list[tuple[LossCurve, int]], Float[np.ndarray, 'N'], Float[np.ndarray, 'N']]:
  """Returns the evaluations of all curves, as curve and index, with their FLOPs and losses."""
  without_count = [curve.name for curve in curves if count not in curve.flops_per_row]
  if without_count:
    raise InputError(
      f'a frontier over FLOPs by the count {count!r}',
      f'{len(without_count)} runs without this count, such as {without_count[0]}',
      'choose a count of FLOPs that every run has',
    )
  flops = np.concatenate([np.zeros(0), *(curve.flops(count) for curve in curves)])
  is_paid = flops > 0
  if not is_paid.any():
    raise InputError(
      'a frontier',
      f'{len(curves)} runs without an evaluation after the first update',
      'give runs with evaluations',
    )
  loss = np.concatenate([np.asarray(curve.loss, float) for curve in curves])
  evaluations = [(curve, index) for curve in curves for index in range(len(curve.loss))]
  return list(itertools.compress(evaluations, is_paid)), flops[is_paid], loss[is_paid]


@dataclasses.dataclass(frozen=True)
class Plateau:
  """The plateau of one run.

  Attributes:
    level: loss of the plateau in nats.
    entry: updates at the first evaluation on the plateau.
    exit: updates at the first evaluation after the plateau; None if there is none.
    exit_loss: loss at the exit in nats; None without an exit.
    end: index of the exit in the curve; the number of evaluations without an exit.
    seen: number of evaluations on the plateau.
    warmup_flops: FLOPs until the peak learning rate; None if not logged.
  """

  run: str
  level: float
  entry: int
  exit: int | None
  exit_flops: float | None
  exit_loss: float | None
  end: int
  seen: int
  warmup: int | None
  warmup_flops: float | None


SweepRun = tuple[LossCurve, Plateau | None]  # None for a run without a plateau


def find_plateau(curve: LossCurve, level: float | None, count: str = HONEY) -> Plateau | None:
  """Returns the plateau of one run; None without a plateau.

  Args:
    level: loss of the plateau, of `find_plateau_level`; None gives None.
  """
  if level is None:
    return None
  loss = np.asarray(curve.loss, float)
  reached = np.flatnonzero(loss <= _ENTRY_FACTOR * level)
  if not len(reached):
    return None
  start = int(reached[0])
  below = np.flatnonzero(loss[start:] < _EXIT_FACTOR * level)
  has_exit = len(below) > 0
  end = start + int(below[0]) if has_exit else len(loss)
  flops = curve.flops(count)
  warmup_flops = None
  if curve.warmup is not None and curve.updates[-1]:
    warmup_flops = float(curve.warmup * flops[-1] / curve.updates[-1])
  return Plateau(
    curve.name,
    float(level),
    entry=curve.updates[start],
    exit=curve.updates[end] if has_exit else None,
    exit_flops=float(flops[end]) if has_exit else None,
    exit_loss=float(loss[end]) if has_exit else None,
    end=end,
    seen=end - start,
    warmup=curve.warmup,
    warmup_flops=warmup_flops,
  )


def find_plateau_level(curves: Sequence[LossCurve]) -> float | None:
  """Returns the median plateau loss of a sweep; None without a plateau or if most runs differ."""
  levels = np.array([level for curve in curves if (level := _find_level(curve)) is not None])
  if not len(levels):
    return None
  median = float(np.median(levels))
  agree = np.mean(np.abs(levels / median - 1) < _MAX_LEVEL_DIFFERENCE) > 0.5
  return median if agree else None


def drop_plateau(runs: Iterable[SweepRun]) -> list[LossCurve]:
  """Returns the parts of curves after the plateau, without runs that never left the plateau.

  Curves without a plateau stay unchanged.
  """
  after = []
  for curve, plateau in runs:
    if plateau is None:
      after.append(curve)
    elif plateau.exit is not None:
      fields = ('updates', 'rows', 'loss')
      cut = {field: getattr(curve, field)[plateau.end :] for field in fields}
      after.append(dataclasses.replace(curve, **cut))
  return after


def _find_level(curve: LossCurve) -> float | None:
  """Returns the loss of the longest shallow part of a curve before a drop, or None."""
  spaced: list[int] = []
  for index, loss in enumerate(curve.loss):
    has_learned = loss < _MAX_LEARNED_LOSS * np.log(curve.shape.vocabulary)
    if (
      curve.updates[index] > 0
      and has_learned
      and (not spaced or curve.updates[index] >= _MIN_STEP_RATIO * curve.updates[spaced[-1]])
    ):
      spaced.append(index)
  if len(spaced) < 2:
    return None
  x, y = np.log(np.array(curve.updates)[spaced]), np.log(np.array(curve.loss)[spaced])
  slopes = -np.diff(y) / np.diff(x)
  is_shallow = np.concatenate([[0], slopes < _MAX_PLATEAU_SLOPE, [0]]).astype(int)
  flips = np.flatnonzero(np.diff(is_shallow))
  level, longest = None, np.log(_MIN_LENGTH_RATIO)
  # Slopes first, ..., end - 1 lie between evaluations first and end.
  for first, end in zip(flips[::2], flips[1::2], strict=True):
    drops_before = first == 0 or np.any(slopes[:first] >= _MIN_DROP_SLOPE)
    drops_after = np.any(slopes[end:] >= _MIN_DROP_SLOPE)
    if drops_before and drops_after and x[end] - x[first] > longest:
      level, longest = float(np.exp(np.median(y[first : end + 1]))), x[end] - x[first]
  return level
