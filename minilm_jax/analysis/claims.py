"""Verdicts on the four claims of paper 2: holds, does not hold, or cannot be told at this size.

The rules stand in `configs/paper2_data_sizes.py`, written before any run. Every statistic is one
number a seed of fine-tuning, which pairs the arms, and its interval is Student's over those seeds.
It says what other seeds would give, and nothing of other pre-training runs if there is one of each.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from minilm_jax.analysis import committee_study, pretraining_gap, runs
from minilm_jax.analysis.committee_study import CommitteeComparison, Match, Measurements
from minilm_jax.analysis.loss_curves import LossCurve
from minilm_jax.analysis.pretraining_gap import OVERLAP, SIZE, Gap, TrainingSet
from minilm_jax.analysis.runs import LatencyRow
from minilm_jax.analysis.scores import Group, ScoreRow, score_table, select_main
from minilm_jax.core import files, run_dir
from minilm_jax.tasks import metrics

HOLDS, FAILS, OPEN = 'holds', 'does not hold', 'cannot be told at this size'
# A point of score: the least effect of the first three claims, the most that the fourth may lose.
MARGIN = 0.01
TOPICS = ('fewrel', 'ag_news', 'dbpedia_14')  # tasks of the paper, which ask for the statement
CLAIMS = {
  1: 'Pre-trained models score higher than the same models from scratch.',
  2: 'The gap between them grows with the pre-training set.',
  3: 'The gap grows with the token overlap between pre-training set and task.',
  4: 'A soft committee of shallow convolutional models replaces the deep one: no less accurate, and sooner.',
}
STATISTICS = {
  1: 'pre-trained less from scratch, from the largest set',
  2: 'gap for twice the pre-training set',
  3: 'gap for 10 points more of overlap',
  4: 'committee less the deep model',
}
_KINDS_WITH_RESULT = ('pretrain', 'finetune', 'committee', 'latency')
BySeed = Mapping[int, float]  # numbers by seed of fine-tuning
BySeries = Mapping[str, Mapping[str, ScoreRow]]  # rows by series and run


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The verdict on one claim.

  Attributes:
    claim: its number.
    verdict: HOLDS, FAILS or OPEN.
    statistic: what was computed.
    value, low, high: shares of a score, with the 95% interval; nan of too few runs.
    seeds: how many numbers the value is the mean of.
    collapsed: members with constant predictions among those of the value.
    latency, latency_low, latency_high: the committee's over the deep model's, of claim 4.
    of: the runs that it was computed from.
    missing: the runs that a decision lacks, or ''.
  """

  claim: int
  verdict: str
  statistic: str
  value: float
  low: float
  high: float
  seeds: int
  collapsed: int
  latency: float
  latency_low: float
  latency_high: float
  of: str
  missing: str


@dataclasses.dataclass(frozen=True)
class Statement:
  """The four verdicts, empty if the runs ask for none; the excluded runs with the reason; and the
  committee of the fourth claim at equal costs.
  """

  verdicts: Sequence[Verdict]
  excluded: Sequence[str]
  matched: Sequence[Match]


def find_verdicts(
  found: Mapping[str, epath.Path], failed: Mapping[str, str], curves: Sequence[LossCurve]
) -> Statement:
  """Returns the statement on some runs.

  Args:
    found: runs by name, of `runs.find_runs`.
    failed: of `runs.read_failures`.
    curves: of `loss_curves.read_runs`, on the same runs.

  Raises:
    InputError: a file of a run is damaged.
  """
  excluded = _find_excluded(found, failed)
  included = {name: path for name, path in found.items() if name not in excluded}
  rows = select_main(score_table(runs.read_scores(included)))
  sets = {
    training_set.name: training_set for training_set in pretraining_gap.read_training_sets(included)
  }
  by_series, _ = pretraining_gap.select_single_rows(rows, sets)
  gaps = pretraining_gap.find_gaps(included, rows, 1).points
  committees = committee_study.read_seed_committees(included, sets)
  timed = runs.read_latencies(included)
  if not (gaps or committees or timed or any(row.task in TOPICS for row in rows)):
    return Statement([], [], [])
  comparison = committee_study.compare_with_deep(committees, rows, sets)
  by_name = {curve.name: curve for curve in curves}
  measurements = Measurements(committees, rows, sets, by_name, timed, comparison.deep)
  return Statement(
    [
      _judge_gain(by_series, sets),
      _judge_growth(2, SIZE, gaps, by_series),
      _judge_growth(3, OVERLAP, gaps, by_series),
      _judge_committee(comparison, timed),
    ],
    [f'{name}: {reason}' for name, reason in excluded.items()],
    committee_study.find_matches(comparison, measurements),
  )


def _find_excluded(found: Mapping[str, epath.Path], failed: Mapping[str, str]) -> dict[str, str]:
  """Returns runs that failed or did not end, and committees of them, with the reason."""
  excluded = dict(failed)
  for name, path in found.items():
    has_ended = runs.read_kind(path) not in _KINDS_WITH_RESULT or (path / run_dir.RESULT).exists()
    if name not in failed and not has_ended:
      excluded[name] = f'no {run_dir.RESULT}: under way or cut short'
  names = {str(found[name].resolve()): name for name in excluded if name in found}
  for name, path in found.items():
    if name in excluded or runs.read_kind(path) != committee_study.KIND:
      continue
    for member in files.read_json(path / run_dir.MANIFEST, f'the members of {path}')['members']:
      source = str(epath.Path(member['checkpoint']).resolve())
      if source in names:
        excluded[name] = f'a member of it started from {names[source]}'
        break
  return excluded


def _judge_gain(by_series: BySeries, sets: Mapping[str, TrainingSet]) -> Verdict:
  """Judges the runs on the largest set, of each task and model, that no task selected."""
  differences, collapsed = {}, 0
  for series, rows in by_series.items():
    for key in dict.fromkeys(sets[name].key for name in rows):
      same_model = [name for name in rows if sets[name].key == key]
      scratch = next((rows[name].scratch for name in same_model if rows[name].scratch.n), None)
      if scratch is None:
        continue
      candidates = [
        name for name in same_model if not sets[name].selected and rows[name].pretrained.n
      ]
      most_rows = max((sets[name].rows for name in candidates), default=0)
      largest = [name for name in candidates if sets[name].rows == most_rows]
      pairs = [
        (rows[name].pretrained, rows[name].scratch if rows[name].scratch.n else scratch)
        for name in largest
      ]
      if pairs:
        by_pair = [_subtract_by_seed(*pair) for pair in pairs]
        differences[f'{series} ({", ".join(largest)})'] = _average_common_seeds(by_pair)
        collapsed += sum(group.collapsed for pair in pairs for group in pair)
  return _judge(1, differences, collapsed, 'a task with both arms, pre-trained and from scratch')


def _judge_growth(claim: int, axis: str, gaps: Sequence[Gap], by_series: BySeries) -> Verdict:
  """Judges by size comparisons of the same updates or, without any, of the same epochs; by overlap
  all comparisons, for 10 points.
  """
  along = [gap for gap in gaps if gap.axis == axis]
  if axis == SIZE:
    same_updates = [gap for gap in along if 'same updates' in gap.comparison]
    along = same_updates or [gap for gap in along if 'same epochs' in gap.comparison]
  by_line: dict[tuple[str, str], list[Gap]] = {}
  for gap in along:
    by_line.setdefault((gap.series, gap.comparison), []).append(gap)
  slopes, collapsed = {}, 0
  for (series, comparison), line in by_line.items():
    scale = 10 if axis == OVERLAP else 1
    slopes[f'{series}, {comparison} ({len(line)} runs)'] = {
      seed: scale * slope for seed, slope in pretraining_gap.fit_seed_slopes(line).items()
    }
    rows = [by_series[series][gap.checkpoint] for gap in line]
    collapsed += sum(row.pretrained.collapsed + row.scratch.collapsed for row in rows)
  needed = 'overlaps with the task, in runs of one size (minilm overlap-subsets)'
  if axis == SIZE:
    needed = 'sizes of the pre-training set, in runs of the same updates or epochs'
  return _judge(claim, slopes, collapsed, f'two {needed}, with both arms')


def _judge_committee(comparison: CommitteeComparison, timed: Sequence[LatencyRow]) -> Verdict:
  """Judges accuracy, no worse than by a point, and latency; one of them false refutes the claim."""
  accuracy = _judge(
    4, comparison.differences, comparison.collapsed, comparison.missing, -MARGIN, -MARGIN
  )
  latency, contestants, untimed = committee_study.compare_latency(comparison, timed)
  value, low, high = latency
  sooner = HOLDS if high < 1 else FAILS if low > 1 else OPEN
  if sooner == OPEN and not untimed:
    untimed = 'more timed answers: the interval of the latency contains 1'
  both = (accuracy.verdict, sooner)
  verdict = FAILS if FAILS in both else OPEN if OPEN in both else HOLDS
  return dataclasses.replace(
    accuracy,
    verdict=verdict,
    latency=value,
    latency_low=low,
    latency_high=high,
    of='; '.join(filter(None, (accuracy.of, contestants))),
    missing='; '.join(filter(None, (accuracy.missing, untimed))) if verdict == OPEN else '',
  )


def _judge(
  claim: int,
  numbers: Mapping[str, BySeed],
  collapsed: int,
  needed: str,
  above: float = 0.0,
  below: float = MARGIN,
) -> Verdict:
  """Returns the verdict on the means by seed over several tasks and comparisons.

  Args:
    claim: its number.
    numbers: by description and seed; those without a seed do not count.
    collapsed: members among them with constant predictions.
    needed: the missing runs if there are no numbers.
    above, below: the claim holds if the interval lies above the first bound; else it fails if the
      interval lies below the second.
  """
  with_seeds = {name: by_seed for name, by_seed in numbers.items() if by_seed}
  values = list(_average_common_seeds(list(with_seeds.values())).values())
  low, high = metrics.confidence_interval(values)
  verdict = HOLDS if low > above else FAILS if high < below else OPEN
  missing = ''
  if verdict == OPEN:
    missing = f'a narrower interval: more than {len(values)} seeds, or larger runs'
    if not numbers:
      missing = needed
    elif len(values) < 2:
      missing = 'two seeds of fine-tuning that all arms and tasks share'
  return Verdict(
    claim=claim,
    verdict=verdict,
    statistic=STATISTICS[claim],
    value=float(np.mean(values)) if values else math.nan,
    low=low,
    high=high,
    seeds=len(values),
    collapsed=collapsed,
    latency=math.nan,
    latency_low=math.nan,
    latency_high=math.nan,
    of='; '.join(with_seeds),
    missing=missing,
  )


def _subtract_by_seed(ours: Group, theirs: Group) -> dict[int, float]:
  """Returns the differences of the seeds that both groups have."""
  other = theirs.by_seed
  return {seed: value - other[seed] for seed, value in ours.by_seed.items() if seed in other}


def _average_common_seeds(numbers: Sequence[BySeed]) -> dict[int, float]:
  """Returns the mean by seed, of the seeds that all have."""
  common = set.intersection(*map(set, numbers)) if numbers else set()
  return {seed: float(np.mean([by_seed[seed] for by_seed in numbers])) for seed in sorted(common)}
