"""The committee beside what the same training, the same parameters or the same time would have bought instead.

A rival is a deeper model without convolutions, alone or as a committee of its own seeds, or one shallow body with
several heads. For each rival and each cost the committee is cut to the size whose cost is nearest, and the table says
how near that is. Scores are paired by the seed of fine-tuning; those of a part of a committee are the mean over its
subsets.

Training is that of all pre-training runs, forward and backward, as the products are (`model/size.py`); fine-tuning is
left out. The time of an answer is taken over that of the deep model alone in the same measurement, so that rivals which
were timed on different days compare.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from minilm_jax.analysis import contrasts, latencies
from minilm_jax.analysis.contests import CommitteeComparison, SeedCommittee
from minilm_jax.analysis.contrasts import TUNINGS
from minilm_jax.analysis.gap import Trained
from minilm_jax.analysis.latencies import LatencyRow
from minilm_jax.analysis.scores import ScoreRow
from minilm_jax.analysis.tracks import ACTUAL, LossCurve

TRAINING, PARAMETERS, LATENCY = COSTS = ('training FLOPs', 'parameters', 'latency')


@dataclasses.dataclass(frozen=True)
class Match:
  """One rival and the committee of nearest cost.

  Attributes:
    task: with the split.
    rival, cost: who, and one of `COSTS`.
    members, of: size of the committee, and of the largest that its members make.
    ratio: the committee's cost over the rival's.
    committee, theirs: mean scores over the seeds that both have, as shares.
    difference, low, high: the committee's less the rival's, with its 95% interval; nan of one seed.
    seeds: that both have.
  """

  task: str
  rival: str
  cost: str
  members: int
  of: int
  ratio: float
  committee: float
  theirs: float
  difference: float
  low: float
  high: float
  seeds: int


@dataclasses.dataclass(frozen=True)
class _Side:
  """A contestant on one task: its costs, nan of those that are not known, and its score by seed."""

  name: str
  costs: Mapping[str, float]
  scores: Mapping[int, float]


def find_matches(
  contest: CommitteeComparison,
  made: Sequence[SeedCommittee],
  rows: Sequence[ScoreRow],
  there: Mapping[str, Trained],
  tracks: Sequence[LossCurve],
  timed: Sequence[LatencyRow],
) -> list[Match]:
  """Every rival of the committee of a contest at every cost that is known of both.

  Args:
    contest: of `contests.contest`, on the same arguments.
    made: of `contests.committees`.
    rows: of `scores.select_main`.
    there: pre-training runs by name.
    tracks: of `grid.read_runs`, for what the runs cost.
    timed: of `latencies.read_latencies`.
  """
  by_name, found = {track.name: track for track in tracks}, []
  own = [one for one in made if contest.deep and one.convolved and one.shapes == contest.shapes]
  for task, split in dict.fromkeys((one.task, one.split) for one in own):
    some = [one for one in own if (one.task, one.split) == (task, split)]
    sides = [
      _part(some, size, by_name, timed, contest.deep) for size in range(1, len(contest.shapes) + 1)
    ]
    for rival in _rivals(some[0], made, rows, there, by_name, timed, contest.deep):
      if sides[0].scores.keys() & rival.scores.keys():
        found += [
          _match(f'{task}, {split}', rival, cost, sides)
          for cost in COSTS
          if any(math.isfinite(side.costs[cost] / rival.costs[cost]) for side in sides)
        ]
  return found


def _part(
  some: Sequence[SeedCommittee],
  size: int,
  tracks: Mapping[str, LossCurve],
  timed: Sequence[LatencyRow],
  deep: str,
) -> _Side:
  """So many members of the committees of one task, one a seed."""
  first = some[0]
  starts = [tracks[name] for name in first.checkpoints if name in tracks]
  share = size / len(starts) if len(starts) == len(first.shapes) else math.nan
  shape = first.shapes[0] if len(set(first.shapes)) == 1 else ''
  return _Side(
    first.folder,
    _costs(starts, share, size, _over_deep(timed, deep, shape, size)),
    {one.seed: one.values[size - 1] for one in some},
  )


def _rivals(
  one: SeedCommittee,
  made: Sequence[SeedCommittee],
  rows: Sequence[ScoreRow],
  there: Mapping[str, Trained],
  tracks: Mapping[str, LossCurve],
  timed: Sequence[LatencyRow],
  deep: str,
) -> Iterator[_Side]:
  """The rivals on the examples that a committee was scored on."""
  place = one.task, one.split, one.examples, one.headline
  for row in rows:
    name, _, heads = (
      row.checkpoint.rpartition(', ')
      if row.checkpoint.endswith(' heads')
      else (row.checkpoint, '', '')
    )
    if (
      not row.headline
      or (row.task, row.split, row.examples, row.metric) != place
      or name not in there
    ):
      continue
    start = there[name]
    if name in tracks and (
      name in one.checkpoints if heads else start.plain and start.model['num_layers'] > one.layers
    ):
      latency = _over_deep(
        timed, deep, latencies.shape(start.model), 1, int(heads.split()[0]) if heads else 1
      )
      yield _Side(
        row.checkpoint,
        _costs([tracks[name]], 1, 1, latency),
        dict(zip(row.pretrained.seeds, row.pretrained.values, strict=True)),
      )
  several: dict[str, list[SeedCommittee]] = {}
  for other in made:
    if (
      (other.task, other.split, other.examples, other.headline) == place
      and not other.convolved
      and (other.layers > one.layers)
    ):
      several.setdefault(other.folder, []).append(other)
  for folder, some in several.items():
    part = _part(some, len(some[0].shapes), tracks, timed, deep)
    yield dataclasses.replace(part, name=f'{folder}, a committee of {len(some[0].shapes)}')


def _costs(
  starts: Sequence[LossCurve], share: float, members: int, latency: float
) -> dict[str, float]:
  """Of a share of some pre-training runs, and of so many models of their size."""
  if not starts:
    return {TRAINING: math.nan, PARAMETERS: math.nan, LATENCY: latency}
  training = sum(
    float(start.flops(ACTUAL)[-1]) if ACTUAL in start.flops_per_row else math.nan
    for start in starts
  )
  return {
    TRAINING: share * training,
    PARAMETERS: float(members * np.mean([start.parameters for start in starts])),
    LATENCY: latency,
  }


def _over_deep(
  timed: Sequence[LatencyRow], deep: str, shape: str, members: int, heads: int = 1
) -> float:
  """The fastest way's median at batch 1 over that of the deep model in the same measurement, the largest of several."""
  found = []
  for name in dict.fromkeys(row.run for row in timed):
    own = [row for row in timed if row.run == name and row.batch == 1]
    ours = [
      row.median for row in own if (row.shape, row.members, row.heads) == (shape, members, heads)
    ]
    theirs = [row.median for row in own if (row.shape, row.members, row.heads) == (deep, 1, 1)]
    found += [min(ours) / theirs[0]] if ours and theirs else []
  return max(found, default=math.nan)


def _match(task: str, rival: _Side, cost: str, sides: Sequence[_Side]) -> Match:
  ratios = {size: side.costs[cost] / rival.costs[cost] for size, side in enumerate(sides, 1)}
  known = [size for size, ratio in ratios.items() if math.isfinite(ratio)]
  size = min(known, key=lambda size: abs(math.log(ratios[size])))
  ours, theirs = sides[size - 1].scores, rival.scores
  both = contrasts.contrast(
    [(theirs[seed], ours[seed]) for seed in sorted(ours.keys() & theirs.keys())], TUNINGS
  )
  return Match(
    task,
    rival.name,
    cost,
    size,
    len(sides),
    ratios[size],
    both.value,
    both.base,
    both.difference,
    both.low,
    both.high,
    both.n,
  )
