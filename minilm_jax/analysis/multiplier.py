"""How many times sooner than the base a change gets somewhere: off the plateau, in tokens, or to a loss, in FLOPs.

    speed       tokens of the base until it leaves the plateau / tokens of the change until it leaves
    multiplier  FLOPs of the base until it reaches a loss / FLOPs of the change until it reaches the same loss

Both are above 1 where the change is sooner. FLOPs are those that this program counts ('actual'), tokens include pads.
A run leaves the plateau at its first evaluation more than 5.5% below it (`plateau.py`), so its tokens are known to the
distance of two evaluations. A run reaches a loss where the lowest loss that it has had so far first comes down to it,
on a straight line between two evaluations in log loss over log FLOPs. The loss of a multiplier is the highest of the
lowest losses of all its runs: each has reached it, the base like the change, so nothing is extrapolated. A change that
never gets as low as the base is therefore judged at its own lowest loss; how much lower the base went on to, the losses
beside it say.

Over seeds a ratio is the geometric mean, with Student's 95% interval of the logarithms: of the ratios of the seeds that
both have, where these are two or more; else Welch's, of both sides apart. One seed of either side gives no interval.

A run that never left has taken at least the tokens that it was trained for. Then the ratio is a bound: at least so much
where it is the base that never left, at most where it is the change, and nothing where it is both. The interval keeps
the end that the bounds give and is open at the other: each true ratio lies beyond its bound, so their mean lies beyond
the mean of the bounds, which lies within the interval of the bounds with the same 95%.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np

from minilm_jax.analysis import scores
from minilm_jax.analysis.changes import Ablation
from minilm_jax.analysis.plateau import Plateau, find
from minilm_jax.analysis.tracks import ACTUAL, LossCurve

AT_LEAST, AT_MOST, NEITHER_LEFT = 'at least', 'at most', 'neither left'
# FLOPs beyond the last evaluation at which its loss still counts: another ablation costs a little less.
_MAX_OVERSHOOT = 1.02
CostToReach = tuple[float, bool]  # how much a run took to get there, and whether it did


@dataclasses.dataclass(frozen=True)
class PairedRatio:
  """What the base took over what the change took.

  Attributes:
    value: the geometric mean over seeds; nan where nothing is known.
    low, high: its 95% interval; nan where a side has one seed. Of a bound one end is open: 0 or infinity.
    bound: AT_LEAST, AT_MOST, or NEITHER_LEFT of them got there; '' where all did.
    base_seeds, seeds: how many of each side it is the mean of.
    paired: by seed?
  """

  value: float
  low: float
  high: float
  bound: str
  base_seeds: int
  seeds: int
  paired: bool

  def __str__(self) -> str:
    """As in `3.1 [2.2, 4.4]`, `at least 3.1`, or why there is none."""
    if not math.isfinite(self.value):
      return self.bound
    return f'{self.bound} {scores.with_interval(self.value, self.low, self.high, ".2f")}'.strip()


NO_RATIO = PairedRatio(math.nan, math.nan, math.nan, '', 0, 0, False)


def ratio(base: Mapping[int, CostToReach], change: Mapping[int, CostToReach]) -> PairedRatio:
  """The ratio over seeds, from what each took, by seed.

  >>> str(ratio({0: (8.0, True), 1: (9.0, True)}, {0: (2.0, True)}))
  '4.00'
  >>> str(ratio({0: (8.0, False), 1: (8.0, False)}, {0: (2.0, True), 1: (2.0, True)}))
  'at least 4.00 [4.00, ∞]'
  """
  common = base.keys() & change.keys()
  if len(common) > 1 or common and min(len(base), len(change)) < 2:
    base, change = ({seed: side[seed] for seed in sorted(common)} for side in (base, change))
  if not base or not change:
    return NO_RATIO
  open_base, open_change = (not all(there for _, there in side.values()) for side in (base, change))
  counts = len(base), len(change), base.keys() == change.keys()
  if open_base and open_change:
    return PairedRatio(math.nan, math.nan, math.nan, NEITHER_LEFT, *counts)
  found = scores.difference(
    *(
      scores.group({seed: math.log(taken) for seed, (taken, _) in side.items()})
      for side in (base, change)
    )
  )
  low, high = math.exp(found.low), math.exp(found.high)
  if math.isfinite(low):
    low, high = 0.0 if open_change else low, math.inf if open_base else high
  bound = AT_LEAST if open_base else AT_MOST if open_change else ''
  return PairedRatio(math.exp(found.mean), low, high, bound, *counts)


def leaving(change: Ablation, level: float) -> dict[int, Plateau | None]:
  """Where each seed was on the plateau; None where it never came down to it."""
  return {seed: find(track, level, ACTUAL) for seed, track in change.tracks.items()}


def speed(
  base: Ablation, change: Ablation, base_level: float | None, level: float | None
) -> PairedRatio:
  """How many times fewer tokens a change takes to leave the plateau; nothing where there is no level."""
  if base_level is None or level is None:
    return NO_RATIO
  return ratio(
    *(
      {seed: _tokens(track, places[seed]) for seed, track in side.tracks.items()}
      for side, places in ((base, leaving(base, base_level)), (change, leaving(change, level)))
    )
  )


def _tokens(track: LossCurve, place: Plateau | None) -> CostToReach:
  left = place is not None and place.left
  return float(track.tokens[place.end if left else -1]), left


def shared_loss(*sides: Ablation) -> float:
  """The lowest loss that every run of these has reached."""
  return max(min(track.loss) for side in sides for track in side.tracks.values())


def multiplier(base: Ablation, change: Ablation, loss: float) -> PairedRatio:
  """How many times fewer FLOPs a change takes to reach a loss, over the seeds that have reached it on either side."""
  taken = [
    {
      seed: (flops, True)
      for seed, track in side.tracks.items()
      if math.isfinite(flops := flops_to(track, loss))
    }
    for side in (base, change)
  ]
  return ratio(*taken)


def flops_to(track: LossCurve, loss: float) -> float:
  """FLOPs until a run first had this loss or less; nan where it never had."""
  lowest, flops = np.minimum.accumulate(track.loss), track.flops(ACTUAL)
  at = int(np.searchsorted(-lowest, -loss))
  if at == len(lowest):
    return math.nan
  if at == 0:
    return float(flops[0])
  share = math.log(lowest[at - 1] / loss) / math.log(lowest[at - 1] / lowest[at])
  return float(flops[at - 1] * (flops[at] / flops[at - 1]) ** share)


def loss_at(track: LossCurve, flops: float) -> float:
  """The loss at some FLOPs, on a straight line between evaluations in logarithms; nan outside of what was trained."""
  own = track.flops(ACTUAL)
  if not own[0] <= flops <= _MAX_OVERSHOOT * own[-1]:
    return math.nan
  return float(np.exp(np.interp(math.log(flops), np.log(own), np.log(track.loss))))


def mean(values: Iterable[float | None]) -> float:
  """The mean over seeds; nan where one of them has none."""
  values = [math.nan if value is None else value for value in values]
  return float(np.mean(values)) if values else math.nan
