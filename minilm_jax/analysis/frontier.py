"""The compute-optimal frontier: of all evaluations of all runs, those with the lowest loss for their compute.

`percentile` is the procedure behind the first paper's figure. It keeps one evaluation a bin, whether or not a cheaper
one is better, so its points are not monotone, and the number of bins decides how many there are. `envelope` has no
bins: it keeps an evaluation if nothing that cost as much or less is as good. Evaluations before the first update cost
nothing and are in neither. Laws are fitted to either in `laws.py` and
`breaks.py`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from minilm_jax.analysis.tracks import HONEY, LossCurve
from minilm_jax.errors import InputError


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


def percentile(tracks: Sequence[LossCurve], count: str = HONEY) -> list[Point]:
  """The frontier of the first paper: the lowest loss in each of up to 44 bins of compute, by increasing compute.

  Edges of the bins are 0 and the 0th, 5th, ..., 100th percentiles of the FLOPs of all evaluations, p0, p5, ..., p100,
  by linear interpolation between evaluations. [0, p0] and [p0, p5] are each cut into 10 equal parts and [p5, p10] into
  5. A bin holds what lies above its lower edge and at or below its upper edge: so the cheapest evaluation, which is p0
  itself, closes the last part of [0, p0] and has that bin to itself, and the dearest is in the last bin. Empty bins
  give no point. Of equal losses in a bin the cheapest counts.

  Args:
    tracks: all of their evaluations count, of unfinished ones too: the authors had no others.
    count: of FLOPs, one of `tracks.py`.

  Raises:
    InputError: no evaluations, or a track without that count.
  """
  flops, loss, owner, place = _pool(tracks, count)
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
  return _points(tracks, count, owner, place, order[first])


def envelope(
  tracks: Sequence[LossCurve], count: str = HONEY, unfinished: bool = False, ends: bool = False
) -> list[Point]:
  """The lower envelope: each evaluation whose loss is below that of every other with at most as much compute.

  Compute and loss of its points are strictly monotone, and it has as many points as the data has records.

  An evaluation in the middle of a schedule is made at a high learning rate: a run whose schedule ended there would
  have reached a lower loss. `ends` leaves those out, and then a point is what its compute can buy, but a sweep has only
  one such evaluation a run, and none cheaper than its cheapest run.

  Args:
    tracks: of a sweep.
    count: of FLOPs, one of `tracks.py`.
    unfinished: do runs count that have not reached the end of their schedule?
    ends: does only the last evaluation of each run count?

  Raises:
    InputError: no evaluations of runs that count, or a track without that count.
  """
  chosen = [track for track in tracks if track.finished or unfinished]
  if tracks and not chosen:
    raise InputError(
      'the frontier of finished runs',
      f'{len(tracks)} runs, none at the end of its schedule',
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


def arrays(points: Sequence[Point]) -> tuple[Float[np.ndarray, 'N'], Float[np.ndarray, 'N']]:
  """FLOPs and losses, as the fits take them."""
  return np.array([point.flops for point in points], float), np.array(
    [point.loss for point in points], float
  )


def _pool(
  tracks: Sequence[LossCurve], count: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """FLOPs and loss of every evaluation, the track it is of, and its place there."""
  without = [track.name for track in tracks if count not in track.flops_per_row]
  if without:
    raise InputError(
      f'a frontier over FLOPs by the count {count!r}',
      f'{len(without)} runs without it, {without[0]} the first',
      'choose a count that every run has',
    )
  flops = np.concatenate([np.zeros(0), *(track.flops(count) for track in tracks)])
  paid = np.flatnonzero(flops > 0)
  if not len(paid):
    raise InputError(
      'a frontier',
      f'{len(tracks)} runs, no evaluation after an update',
      'give runs that were evaluated',
    )
  lengths = [len(track.loss) for track in tracks]
  loss = np.concatenate([np.asarray(track.loss, float) for track in tracks])
  place = np.concatenate([np.arange(length) for length in lengths])
  return flops[paid], loss[paid], np.repeat(np.arange(len(tracks)), lengths)[paid], place[paid]


def _points(
  tracks: Sequence[LossCurve], count: str, owner: np.ndarray, place: np.ndarray, kept: np.ndarray
) -> list[Point]:
  found = []
  for one in kept:
    track, at = tracks[owner[one]], int(place[one])
    found.append(
      Point(
        float(track.rows[at] * track.flops_per_row[count]),
        track.loss[at],
        track.name,
        float(track.rows[at] * track.length),
        track.parameters,
      )
    )
  return found
