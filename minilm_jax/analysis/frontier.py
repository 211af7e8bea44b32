"""The compute-optimal frontier: of all evaluations of all runs, those with the lowest loss for
their compute.

`percentile` is the procedure behind the first paper's figure. It keeps one evaluation a bin,
whether or not a cheaper one is better, so its points are not monotone, and the number of bins
decides how many there are. `envelope` has no
bins: it keeps an evaluation if nothing that cost as much or less is as good. Evaluations before the
first update cost nothing and are in neither. Laws are fitted to either in `laws.py` and
`breaks.py`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from minilm_jax.analysis.loss_curves import HONEY, LossCurve
from minilm_jax.core.errors import InputError


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
  """The frontier of the first paper: the lowest loss in each of up to 44 bins of compute, by
  increasing compute.

  Edges of the bins are 0 and the 0th, 5th, ..., 100th percentiles of the FLOPs of all evaluations,
  p0, p5, ..., p100, by linear interpolation between evaluations. [0, p0] and [p0, p5] are each cut
  into 10 equal parts and [p5, p10] into 5. A bin holds what lies above its lower edge and at or
  below its upper edge: so the cheapest evaluation, which is p0 itself, closes the last part of [0,
  p0] and has that bin to itself, and the dearest is in the last bin. Empty bins give no point. Of
  equal losses in a bin the cheapest counts.

  Args:
    curves: all of their evaluations count, of unfinished ones too: the authors had no others.
    count: of FLOPs, one of `curves.py`.

  Raises:
    InputError: no evaluations, or a curve without that count.
  """
  flops, loss, owner, place = _pool(curves, count)
  at = np.percentile(flops, np.arange(0, 101, 5))
  edges = np.unique(
    np.concatenate(
      [
        np.linspace(0, at[0], 11),
        np.linspace(at[0], at[1], 11),
        np.linspace(at[1], at[2], 6),
        at[2:],
      ]
    )
  )
  bins = np.digitize(flops, edges, right=True)
  order = np.lexsort((flops, loss, bins))
  first = np.flatnonzero(np.diff(bins[order], prepend=-1))
  return _points(curves, count, owner, place, order[first])


def lower_envelope(
  curves: Sequence[LossCurve], count: str = HONEY, unfinished: bool = False, ends: bool = False
) -> list[Point]:
  """The lower envelope: each evaluation whose loss is below that of every other with at most as
  much compute.

  Compute and loss of its points are strictly monotone, and it has as many points as the data has
  records.

  An evaluation in the middle of a schedule is made at a high learning rate: a run whose schedule
  ended there would have reached a lower loss. `ends` leaves those out, and then a point is what its
  compute can buy, but a sweep has only one such evaluation a run, and none cheaper than its
  cheapest run.

  Args:
    curves: of a sweep.
    count: of FLOPs, one of `curves.py`.
    unfinished: do runs count that have not reached the end of their schedule?
    ends: does only the last evaluation of each run count?

  Raises:
    InputError: no evaluations of runs that count, or a curve without that count.
  """
  chosen = [curve for curve in curves if curve.finished or unfinished]
  if curves and not chosen:
    raise InputError(
      'the frontier of finished runs',
      f'{len(curves)} runs, none at the end of its schedule',
      'let them finish, or count unfinished ones too',
    )
  flops, loss, owner, place = _pool(chosen, count)
  if ends:
    last = np.flatnonzero(np.diff(owner, append=-1))
    flops, loss, owner, place = flops[last], loss[last], owner[last], place[last]
  order = np.lexsort((loss, flops))
  best = np.minimum.accumulate(loss[order])
  record = np.concatenate([[True], loss[order][1:] < best[:-1]])
  return _points(chosen, count, owner, place, order[record])


def to_arrays(points: Sequence[Point]) -> tuple[Float[np.ndarray, 'N'], Float[np.ndarray, 'N']]:
  """FLOPs and losses, as the fits take them."""
  return np.array([point.flops for point in points], float), np.array(
    [point.loss for point in points], float
  )


def _pool(
  curves: Sequence[LossCurve], count: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """FLOPs and loss of every evaluation, the curve it is of, and its place there."""
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
  place = np.concatenate([np.arange(length) for length in lengths])
  return flops[paid], loss[paid], np.repeat(np.arange(len(curves)), lengths)[paid], place[paid]


def _points(
  curves: Sequence[LossCurve], count: str, owner: np.ndarray, place: np.ndarray, kept: np.ndarray
) -> list[Point]:
  found = []
  for one in kept:
    curve, at = curves[owner[one]], int(place[one])
    found.append(
      Point(
        float(curve.rows[at] * curve.flops_per_row[count]),
        curve.loss[at],
        curve.name,
        float(curve.rows[at] * curve.length),
        curve.parameters,
      )
    )
  return found


# The plateau that tiny masked language models pass through: early in training the loss stands
# still, then drops.
SHALLOW, STEEP = 0.05, 0.15
ABOVE, BELOW = 1.02, 0.945
APART, LONG = (
  1.2,
  1.4,
)  # ratios of updates: between evaluations that a slope is taken from; of a stretch
AGREE = 0.05
_UNTAUGHT = 0.9  # of log V


@dataclasses.dataclass(frozen=True)
class Plateau:
  """Where one run was on the plateau.

  Attributes:
    run: its name.
    level: loss of the plateau, nats.
    entry, exit: updates at its first evaluation there and at its first one that has left; exit is
    None if none has. entry_flops, exit_flops: of training until these.
    exit_loss: nats; None without an exit.
    start, end: places of both evaluations in the curve; without an exit, end is how many
    evaluations there are.
    seen: evaluations on the plateau. With 0 the run was through before its first evaluation.
    warmup, warmup_flops: the updates and FLOPs at which the learning rate was at its top; None
    where not logged.
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
  """The plateau of one run; None where its curve has none, or never comes down to the level.

  Args:
    curve: of any spacing of evaluations.
    level: of its sweep, from `level`; without one the run's own, for which it must have left and
      its evaluations must be close enough to show it. With one, a run too coarse for that enters at
      its first evaluation at or below it.
    count: of FLOPs, one of `curves.py`.
  """
  if level is None:
    level = _own(curve)
    if level is None:
      return None
  loss = np.asarray(curve.loss, float)
  at = np.flatnonzero(loss <= ABOVE * level)
  if not len(at):
    return None
  start = int(at[0])
  below = np.flatnonzero(loss[start:] < BELOW * level)
  left = len(below) > 0
  end = start + int(below[0]) if left else len(loss)
  flops = curve.flops(count)
  warmup_flops = None
  if curve.warmup is not None and curve.updates[-1]:
    warmup_flops = float(curve.warmup * flops[-1] / curve.updates[-1])
  return Plateau(
    curve.name,
    float(level),
    curve.updates[start],
    float(flops[start]),
    curve.updates[end] if left else None,
    float(flops[end]) if left else None,
    float(loss[end]) if left else None,
    start,
    end,
    end - start,
    curve.warmup,
    warmup_flops,
  )


def find_plateau_level(curves: Sequence[LossCurve]) -> float | None:
  """The loss of the plateau of a sweep: the median over the runs that show one; None if none does
  or they disagree.
  """
  found = np.array([own for own in map(_own, curves) if own is not None])
  if not len(found):
    return None
  middle = float(np.median(found))
  return middle if np.mean(np.abs(found / middle - 1) < AGREE) > 0.5 else None


def drop_plateau(
  curves: Sequence[LossCurve], plateaus: Sequence[Plateau | None]
) -> list[LossCurve]:
  """Tracks from where each run has left the plateau; runs that never did are left out, runs without
  one stay whole.

  What comes before the plateau goes as well: it is the fall towards it.

  Args:
    curves: of a sweep.
    plateaus: of `find`, one a curve, in the same order.
  """
  kept = []
  for curve, plateau in zip(curves, plateaus, strict=True):
    if plateau is None:
      kept.append(curve)
    elif plateau.left:
      kept.append(
        dataclasses.replace(
          curve,
          **{field: getattr(curve, field)[plateau.end :] for field in ('updates', 'rows', 'loss')},
        )
      )
  return kept


def _own(curve: LossCurve) -> float | None:
  """The loss of a run's longest shallow stretch before a drop; None without one."""
  learned = [
    one
    for one, loss in enumerate(curve.loss)
    if curve.updates[one] > 0 and loss < _UNTAUGHT * np.log(curve.shape.vocabulary)
  ]
  kept: list[int] = []
  for one in learned:
    if not kept or curve.updates[one] >= APART * curve.updates[kept[-1]]:
      kept.append(one)
  if len(kept) < 2:
    return None
  x, y = np.log(np.array(curve.updates)[kept]), np.log(np.array(curve.loss)[kept])
  slopes = -np.diff(y) / np.diff(x)
  flips = np.flatnonzero(np.diff(np.concatenate([[0], slopes < SHALLOW, [0]]).astype(int)))
  best, longest = None, np.log(LONG)
  for first, end in zip(
    flips[::2], flips[1::2], strict=True
  ):  # slopes first .. end - 1, evaluations first .. end
    before, after = first == 0 or np.any(slopes[:first] >= STEEP), np.any(slopes[end:] >= STEEP)
    if before and after and x[end] - x[first] > longest:
      best, longest = float(np.exp(np.median(y[first : end + 1]))), x[end] - x[first]
  return best
