"""Matches committees with rivals of equal training FLOPs, parameters or latency."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from minilm_jax.analysis import runs
from minilm_jax.analysis.loss_curves import ACTUAL, LossCurve
from minilm_jax.analysis.paper2.committee_study import (
  CommitteeComparison,
  SeedCommittee,
  average_by_seed,
  group_by_task,
)
from minilm_jax.analysis.paper2.latencies import LatencyRow, encode_latency_shape, find_slowest_pair
from minilm_jax.analysis.scores import ScoreRow
from minilm_jax.analysis.training_sets import TrainingSet
from minilm_jax.tasks import metrics

TRAINING, PARAMETERS, LATENCY = COSTS = ('training FLOPs', 'parameters', 'latency')


@dataclasses.dataclass(frozen=True)
class Match:
  """A rival and the committee of the most similar cost.

  Attributes:
    task: task with the split.
    cost: one of `COSTS`.
    members: size of the committee.
    of: number of all members.
    committee: mean score of the committee over the common seeds, as a share.
    low, high: ends of the 95% interval of the difference; nan with one seed.
    seeds: number of common seeds.
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
class _Contestant:
  """A committee or a rival on one task, with its costs (nan if unknown) and scores by seed."""

  name: str
  costs: Mapping[str, float]
  scores: Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Measurements:
  """The measurements of all runs, as input for `find_matches`."""

  committees: Sequence[SeedCommittee]
  rows: Sequence[ScoreRow]
  sets: Mapping[str, TrainingSet]
  curves: Mapping[str, LossCurve]
  latencies: Sequence[LatencyRow]
  deep_shape: str

  def compute_relative_latency(self, shape: str, members: int, heads: int = 1) -> float:
    """Returns the ratio of median latencies to the deep model, see `find_slowest_pair`."""
    pair = find_slowest_pair(self.latencies, (shape, members, heads), self.deep_shape)
    return pair[0].median / pair[1].median if pair else math.nan


def find_matches(comparison: CommitteeComparison, measurements: Measurements) -> list[Match]:
  """Returns a match for every rival of the committee and every known cost."""
  matches = []
  compared = [
    committee
    for committee in measurements.committees
    if comparison.deep_shape
    and committee.has_convolutions
    and committee.shapes == comparison.shapes
  ]
  for (task, split), same_task in group_by_task(compared).items():
    by_size = [
      _make_contestant(same_task, size, measurements)
      for size in range(1, len(comparison.shapes) + 1)
    ]
    for rival in _find_rivals(same_task[0], measurements):
      if by_size[0].scores.keys() & rival.scores.keys():
        for cost in COSTS:
          matches.append(_match_cost(f'{task}, {split}', rival, cost, by_size))
  return [match for match in matches if match is not None]


def _make_contestant(
  committees: Sequence[SeedCommittee], size: int, measurements: Measurements
) -> _Contestant:
  """Returns the committees of one task and of all seeds, with `size` of their members."""
  first = committees[0]
  curves = measurements.curves
  starts = [curves[name] for name in first.checkpoints if name in curves]
  share = size / len(starts) if len(starts) == len(first.shapes) else math.nan
  shape = first.shapes[0] if len(set(first.shapes)) == 1 else ''
  return _Contestant(
    first.folder,
    _list_costs(starts, share, size, measurements.compute_relative_latency(shape, size)),
    average_by_seed((committee.seed, committee.values[size - 1]) for committee in committees),
  )


def _find_rivals(committee: SeedCommittee, measurements: Measurements) -> Iterator[_Contestant]:
  """Yields the rivals of a committee that have scores on its examples.

  Rivals are deeper runs, members with several heads, and deeper committees.
  """
  for row in measurements.rows:
    name, heads = row.checkpoint, 1
    if has_heads := name.endswith(' heads'):
      name, _, suffix = name.rpartition(', ')
      heads = int(suffix.split()[0])
    if not committee.has_same_test(row) or not (
      name in measurements.sets and name in measurements.curves
    ):
      continue
    start = measurements.sets[name]
    if name in committee.checkpoints if has_heads else committee.is_shallower(start):
      latency = measurements.compute_relative_latency(encode_latency_shape(start.model), 1, heads)
      costs = _list_costs([measurements.curves[name]], 1, 1, latency)
      yield _Contestant(row.checkpoint, costs, row.pretrained.by_seed)
  deeper = [
    other
    for other in measurements.committees
    if not other.has_convolutions
    and other.layers > committee.layers
    and other.test == committee.test
  ]
  for folder, others in runs.group_by(deeper, lambda other: other.folder).items():
    size = len(others[0].shapes)
    contestant = _make_contestant(others, size, measurements)
    yield dataclasses.replace(contestant, name=f'{folder}, a committee of {size}')


def _list_costs(
  starts: Sequence[LossCurve], share: float, members: int, latency: float
) -> dict[str, float]:
  """Returns the costs of a contestant.

  Args:
    starts: loss curves of the pre-training runs of its members.
    share: share of these runs that the contestant uses.
    latency: its latency relative to the deep model.
  """
  training = parameters = math.nan
  if starts:
    parameters = float(members * np.mean([start.parameters for start in starts]))
    training = share * sum(
      float(start.flops(ACTUAL)[-1]) if ACTUAL in start.flops_per_row else math.nan
      for start in starts
    )
  return {TRAINING: training, PARAMETERS: parameters, LATENCY: latency}


def _match_cost(
  task: str, rival: _Contestant, cost: str, by_size: Sequence[_Contestant]
) -> Match | None:
  """Returns the match of a rival with the committee of the most similar cost, if known."""
  ratios = {
    size: committee.costs[cost] / rival.costs[cost] for size, committee in enumerate(by_size, 1)
  }
  known = [size for size, ratio in ratios.items() if math.isfinite(ratio)]
  if not known:
    return None
  size = min(known, key=lambda size: abs(math.log(ratios[size])))
  by_committee, by_rival = by_size[size - 1].scores, rival.scores
  seeds = sorted(by_committee.keys() & by_rival.keys())
  committee, theirs = np.array([(by_committee[seed], by_rival[seed]) for seed in seeds]).T
  low, high = metrics.confidence_interval(committee - theirs)
  return Match(
    task=task,
    rival=rival.name,
    cost=cost,
    members=size,
    of=len(by_size),
    ratio=ratios[size],
    committee=float(committee.mean()),
    theirs=float(theirs.mean()),
    difference=float((committee - theirs).mean()),
    low=low,
    high=high,
    seeds=len(seeds),
  )
