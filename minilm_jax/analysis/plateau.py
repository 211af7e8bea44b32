"""The plateau that tiny masked language models pass through: early in training the loss stands still, then drops.

On the first paper's corpus every run falls to about 3.2 nats, little below what the frequencies of words alone give,
stays there for hundreds to tens of thousands of updates, and leaves abruptly. Small and one-layer models leave last. A
frontier that goes from runs on the plateau to runs that have left it has a break there, whatever law either follows.

How it is found. The slope of a curve is minus the change of log loss over the change of log updates, between
evaluations at least 20% of updates apart, else noise decides; evaluations within 10% of log V, V the vocabulary, have
learned nothing yet and are left out. A stretch is shallow where the slope is below 0.05. The plateau of a run is its
longest shallow stretch, over log updates, that has a slope of at least 0.15 after it and, unless it is the first
thing seen, before it; its updates grow by 40% or more. Its level is the median loss there.

Some runs pass too fast for their evaluations, and one that never left looks like one that has converged. So runs of a
sweep, which share a corpus, are judged together: their `level` is the median of those whose plateau can be seen, if
most of these are within 5% of it; else noise was taken for a plateau and there is none. A run enters at its first
evaluation at most 2% above that level, and has left at its first evaluation more than 5.5% below it (on the paper's
corpus, perplexity 20).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from minilm_jax.analysis.tracks import HONEY, LossCurve

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
    entry, exit: updates at its first evaluation there and at its first one that has left; exit is None if none has.
    entry_flops, exit_flops: of training until these.
    exit_loss: nats; None without an exit.
    start, end: places of both evaluations in the track; without an exit, end is how many evaluations there are.
    seen: evaluations on the plateau. With 0 the run was through before its first evaluation.
    warmup, warmup_flops: the updates and FLOPs at which the learning rate was at its top; None where not logged.
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


def find(track: LossCurve, level: float | None = None, count: str = HONEY) -> Plateau | None:
  """The plateau of one run; None where its curve has none, or never comes down to the level.

  Args:
    track: of any spacing of evaluations.
    level: of its sweep, from `level`; without one the run's own, for which it must have left and its evaluations must
      be close enough to show it. With one, a run too coarse for that enters at its first evaluation at or below it.
    count: of FLOPs, one of `tracks.py`.
  """
  if level is None:
    level = _own(track)
    if level is None:
      return None
  loss = np.asarray(track.loss, float)
  at = np.flatnonzero(loss <= ABOVE * level)
  if not len(at):
    return None
  start = int(at[0])
  below = np.flatnonzero(loss[start:] < BELOW * level)
  left = len(below) > 0
  end = start + int(below[0]) if left else len(loss)
  flops = track.flops(count)
  warmup_flops = None
  if track.warmup is not None and track.updates[-1]:
    warmup_flops = float(track.warmup * flops[-1] / track.updates[-1])
  return Plateau(
    track.name,
    float(level),
    track.updates[start],
    float(flops[start]),
    track.updates[end] if left else None,
    float(flops[end]) if left else None,
    float(loss[end]) if left else None,
    start,
    end,
    end - start,
    track.warmup,
    warmup_flops,
  )


def level(tracks: Sequence[LossCurve]) -> float | None:
  """The loss of the plateau of a sweep: the median over the runs that show one; None if none does or they disagree."""
  found = np.array([own for own in map(_own, tracks) if own is not None])
  if not len(found):
    return None
  middle = float(np.median(found))
  return middle if np.mean(np.abs(found / middle - 1) < AGREE) > 0.5 else None


def without_plateau(
  tracks: Sequence[LossCurve], plateaus: Sequence[Plateau | None]
) -> list[LossCurve]:
  """Tracks from where each run has left the plateau; runs that never did are left out, runs without one stay whole.

  What comes before the plateau goes as well: it is the fall towards it.

  Args:
    tracks: of a sweep.
    plateaus: of `find`, one a track, in the same order.
  """
  kept = []
  for track, plateau in zip(tracks, plateaus, strict=True):
    if plateau is None:
      kept.append(track)
    elif plateau.left:
      kept.append(
        dataclasses.replace(
          track,
          **{field: getattr(track, field)[plateau.end :] for field in ('updates', 'rows', 'loss')},
        )
      )
  return kept


def _own(track: LossCurve) -> float | None:
  """The loss of a run's longest shallow stretch before a drop; None without one."""
  learned = [
    one
    for one, loss in enumerate(track.loss)
    if track.updates[one] > 0 and loss < _UNTAUGHT * np.log(track.shape.vocabulary)
  ]
  kept: list[int] = []
  for one in learned:
    if not kept or track.updates[one] >= APART * track.updates[kept[-1]]:
      kept.append(one)
  if len(kept) < 2:
    return None
  x, y = np.log(np.array(track.updates)[kept]), np.log(np.array(track.loss)[kept])
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
