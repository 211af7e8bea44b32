"""The compute-optimal frontier of a sweep, and the plateau that tiny masked language models show.

The frontier is the set of evaluations of all runs with the lowest loss for their compute.
`percentile_frontier` is the procedure of the first paper's figure: it keeps one evaluation a bin
whether or not a cheaper one is better, so its points are not monotone, and the bins determine their
number. `lower_envelope` has no bins: it keeps an evaluation if none of at most its cost is as good.
Evaluations before the first update cost nothing and are in neither.

On the plateau the loss stands still early in training, then drops.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from minilm_jax.analysis.loss_curves import HONEY, LossCurve
from minilm_jax.core.errors import InputError

# Slopes, -d log(loss) / d log(updates): of the plateau, and of the drops around it.
_MAX_PLATEAU_SLOPE, _MIN_DROP_SLOPE = 0.05, 0.15
# A run is on the plateau between these factors of its level.
_ENTRY_FACTOR, _EXIT_FACTOR = 1.02, 0.945
# Ratios of updates: between evaluations of a slope, and of the shortest plateau.
_MIN_STEP_RATIO, _MIN_LENGTH_RATIO = 1.2, 1.4
_MAX_LEVEL_DIFFERENCE = 0.05  # relative, between runs of one sweep
_MAX_LEARNED_LOSS = 0.9  # of log V; above, nothing is learned yet


@dataclasses.dataclass(frozen=True)
class Point:
  """One evaluation on a frontier.

  Attributes:
    flops: of training until there; of which count, the caller chose.
    loss: nats a masked token, on the validation split.
    run: its name.
    tokens: seen until there, pads included.
    parameters: of the model, with embeddings.
  """

  flops: float
  loss: float
  run: str
  tokens: float
  parameters: int


def percentile_frontier(curves: Sequence[LossCurve], count: str = HONEY) -> list[Point]:
  """Returns the frontier of the first paper: the lowest loss in each of up to 44 bins of compute.

  Edges of the bins are 0 and the 0th, 5th, ..., 100th percentiles p0, p5, ..., p100 of the FLOPs of
  all evaluations, by linear interpolation. [0, p0] and [p0, p5] are each cut into 10 equal parts
  and [p5, p10] into 5. A bin includes its upper edge and not its lower one: the cheapest evaluation,
  p0 itself, has the last part of [0, p0] to itself. Empty bins give no point. Of equal losses in a
  bin the cheapest counts.

  Args:
    curves: all of their evaluations count, of unfinished runs too, as in the paper.
    count: of FLOPs, of `loss_curves.py`.

  Raises:
    InputError: no evaluations, or a curve without that count.
  """
  pool = _pool(curves, count)
  at = np.percentile(pool.flops, np.arange(0, 101, 5))
  parts = [np.linspace(0, at[0], 11), np.linspace(at[0], at[1], 11), np.linspace(at[1], at[2], 6)]
  edges = np.unique(np.concatenate([*parts, at[2:]]))
  bins = np.digitize(pool.flops, edges, right=True)
  order = np.lexsort((pool.flops, pool.loss, bins))
  first = np.flatnonzero(np.diff(bins[order], prepend=-1))
  return pool.take_points(order[first])


def lower_envelope(
  curves: Sequence[LossCurve], count: str = HONEY, unfinished: bool = False, ends: bool = False
) -> list[Point]:
  """Returns each evaluation whose loss is below that of all others with at most as much compute.

  Compute and loss of its points are strictly monotone.

  An evaluation in the middle of a schedule is made at a high learning rate: a run whose schedule
  ended there would have reached a lower loss. `ends` leaves those out; then a point is what its
  compute can buy, but a sweep has only one such evaluation a run.

  Args:
    curves: of a sweep.
    count: of FLOPs, of `loss_curves.py`.
    unfinished: do runs count that have not reached the end of their schedule?
    ends: does only the last evaluation of each run count?

  Raises:
    InputError: no evaluations of runs that count, or a curve without that count.
  """
  counted = [curve for curve in curves if curve.finished or unfinished]
  if curves and not counted:
    raise InputError(
      'the frontier of finished runs',
      f'{len(curves)} runs, none at the end of its schedule',
      'let them finish, or count unfinished ones too',
    )
  pool = _pool(counted, count)
  chosen = np.flatnonzero(np.diff(pool.owner, append=-1)) if ends else np.arange(len(pool.loss))
  order = chosen[np.lexsort((pool.loss[chosen], pool.flops[chosen]))]
  best = np.minimum.accumulate(pool.loss[order])
  is_record = np.concatenate([[True], pool.loss[order][1:] < best[:-1]])
  return pool.take_points(order[is_record])


def to_arrays(points: Sequence[Point]) -> tuple[Float[np.ndarray, 'N'], Float[np.ndarray, 'N']]:
  """Returns FLOPs and losses, as the fits take them."""
  return np.array([point.flops for point in points], float), np.array(
    [point.loss for point in points], float
  )


def make_point(curve: LossCurve, index: int, count: str) -> Point:
  """Returns one evaluation of a curve."""
  flops, tokens = curve.rows[index] * curve.flops_per_row[count], curve.rows[index] * curve.length
  return Point(float(flops), curve.loss[index], curve.name, float(tokens), curve.parameters)


@dataclasses.dataclass(frozen=True)
class _Pool:
  """All evaluations of some curves: FLOPs, loss, the curve that owns each, and its index there."""

  curves: Sequence[LossCurve]
  count: str
  flops: np.ndarray
  loss: np.ndarray
  owner: np.ndarray
  index: np.ndarray

  def take_points(self, places: np.ndarray) -> list[Point]:
    return [
      make_point(self.curves[int(self.owner[place])], int(self.index[place]), self.count)
      for place in places
    ]


def _pool(curves: Sequence[LossCurve], count: str) -> _Pool:
  without = [curve.name for curve in curves if count not in curve.flops_per_row]
  if without:
    raise InputError(
      f'a frontier over FLOPs by the count {count!r}',
      f'{len(without)} runs without it, {without[0]} the first',
      'choose a count that every run has',
    )
  flops = np.concatenate([np.zeros(0), *(curve.flops(count) for curve in curves)])
  paid = np.flatnonzero(flops > 0)
  if not len(paid):
    raise InputError(
      'a frontier',
      f'{len(curves)} runs, no evaluation after an update',
      'give runs that were evaluated',
    )
  lengths = [len(curve.loss) for curve in curves]
  loss = np.concatenate([np.asarray(curve.loss, float) for curve in curves])
  index = np.concatenate([np.arange(length) for length in lengths])
  owner = np.repeat(np.arange(len(curves)), lengths)
  return _Pool(curves, count, flops[paid], loss[paid], owner[paid], index[paid])


@dataclasses.dataclass(frozen=True)
class Plateau:
  """The part of one run on the plateau.

  Attributes:
    run: its name.
    level: loss of the plateau, nats.
    entry, exit: updates at its first evaluation there and at its first one that has left; exit is
      None if none has.
    entry_flops, exit_flops: of training until these.
    exit_loss: nats; None without an exit.
    start, end: indices of both evaluations in the curve; without an exit, end is the number of
      evaluations.
    seen: evaluations on the plateau; 0 if the run left it before its first evaluation.
    warmup, warmup_flops: updates and FLOPs at the peak learning rate; None if not logged.
  """

  run: str
  level: float
  entry: int
  entry_flops: float
  exit: int | None
  exit_flops: float | None
  exit_loss: float | None
  start: int
  end: int
  seen: int
  warmup: int | None
  warmup_flops: float | None

  @property
  def left(self) -> bool:
    """Did the run ever leave it?"""
    return self.exit is not None


def find_plateau(
  curve: LossCurve, level: float | None = None, count: str = HONEY
) -> Plateau | None:
  """Returns the plateau of one run; None if its curve has none, or never comes down to the level.

  Args:
    curve: of any spacing of evaluations.
    level: of its sweep, from `find_plateau_level`. By default that of the run, which must then have
      left the plateau and show it in its evaluations. With a level, a run of few evaluations enters
      at its first evaluation at or below it.
    count: of FLOPs, of `loss_curves.py`.
  """
  if level is None:
    level = _find_level(curve)
    if level is None:
      return None
  loss = np.asarray(curve.loss, float)
  reached = np.flatnonzero(loss <= _ENTRY_FACTOR * level)
  if not len(reached):
    return None
  start = int(reached[0])
  below = np.flatnonzero(loss[start:] < _EXIT_FACTOR * level)
  has_left = len(below) > 0
  end = start + int(below[0]) if has_left else len(loss)
  flops = curve.flops(count)
  warmup_flops = None
  if curve.warmup is not None and curve.updates[-1]:
    warmup_flops = float(curve.warmup * flops[-1] / curve.updates[-1])
  return Plateau(
    curve.name,
    float(level),
    entry=curve.updates[start],
    entry_flops=float(flops[start]),
    exit=curve.updates[end] if has_left else None,
    exit_flops=float(flops[end]) if has_left else None,
    exit_loss=float(loss[end]) if has_left else None,
    start=start,
    end=end,
    seen=end - start,
    warmup=curve.warmup,
    warmup_flops=warmup_flops,
  )


def find_plateau_level(curves: Sequence[LossCurve]) -> float | None:
  """Returns the plateau loss of a sweep: the median over the runs that show one; None if no run
  does or they disagree.
  """
  levels = np.array([level for curve in curves if (level := _find_level(curve)) is not None])
  if not len(levels):
    return None
  median = float(np.median(levels))
  agree = np.mean(np.abs(levels / median - 1) < _MAX_LEVEL_DIFFERENCE) > 0.5
  return median if agree else None


def drop_plateau(
  curves: Sequence[LossCurve], plateaus: Sequence[Plateau | None]
) -> list[LossCurve]:
  """Returns curves from the exit of the plateau on, without runs that never left it.

  Runs without a plateau stay whole.

  Args:
    curves: of a sweep.
    plateaus: of `find_plateau`, one a curve, in the same order.
  """
  after = []
  for curve, plateau in zip(curves, plateaus, strict=True):
    if plateau is None:
      after.append(curve)
    elif plateau.left:
      fields = ('updates', 'rows', 'loss')
      cut = {field: getattr(curve, field)[plateau.end :] for field in fields}
      after.append(dataclasses.replace(curve, **cut))
  return after


def _find_level(curve: LossCurve) -> float | None:
  """Returns the loss of the longest shallow stretch before a drop; None without one."""
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
  # Slopes first to end - 1 are between evaluations first to end.
  for first, end in zip(flips[::2], flips[1::2], strict=True):
    drops_before = first == 0 or np.any(slopes[:first] >= _MIN_DROP_SLOPE)
    drops_after = np.any(slopes[end:] >= _MIN_DROP_SLOPE)
    if drops_before and drops_after and x[end] - x[first] > longest:
      level, longest = float(np.exp(np.median(y[first : end + 1]))), x[end] - x[first]
  return level
