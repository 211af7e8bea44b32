"""Verdicts on the four claims of paper 2: holds, does not hold, or cannot be told at this size.

`configs/paper2_data_sizes.py` has the rules, which were written before any run. Each statistic is
one number a seed of fine-tuning; scores of one seed are paired. Intervals are Student's intervals
over these seeds. They do not include the variance between pre-training runs.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from minilm_jax.analysis import committee_study, pretraining_gap, runs, scores
from minilm_jax.analysis.committee_study import CommitteeComparison, Match, Measurements
from minilm_jax.analysis.loss_curves import LossCurve
from minilm_jax.analysis.pretraining_gap import OVERLAP, SIZE, Gap, TrainingSet
from minilm_jax.analysis.runs import LatencyRow
from minilm_jax.analysis.scores import ScoreRow, make_score_table, select_main
from minilm_jax.core import files, paths, run_dir
from minilm_jax.tasks import metrics

HOLDS, FAILS, OPEN = 'holds', 'does not hold', 'cannot be told at this size'
# One point of score is the smallest relevant gain (claims 1-3) and the largest tolerated loss (4).
MARGIN = 0.01
TOPICS = ('fewrel', 'ag_news', 'dbpedia_14')  # scores of these tasks of the paper require verdicts
CLAIMS = {
  1: 'Pre-trained models score higher than the same models from scratch.',
  2: 'The gap between them grows with the pre-training set.',
  3: 'The gap grows with the token overlap between pre-training set and task.',
  4: (
    'A soft committee of shallow convolutional models is as accurate as the deep model, with lower '
    'latency.'
  ),
}
STATISTICS = {
  1: 'score pre-trained minus from scratch, on the largest set',
  2: 'growth of the gap for twice the pre-training set',
  3: 'growth of the gap for 10 points more overlap',
  4: 'score of the committee minus the deep model',
}
_KINDS_WITH_RESULT = ('pretrain', 'finetune', 'committee', 'latency')
BySeed = Mapping[int, float]  # seed of fine-tuning: number
BySeries = Mapping[str, Mapping[str, ScoreRow]]  # series: run: row


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The verdict on one claim.

  Attributes:
    verdict: HOLDS, FAILS or OPEN.
    value: mean over seeds, as a share of a score; nan without runs.
    low, high: ends of the 95% interval; nan with fewer than two seeds.
    collapsed: number of scores from constant predictions.
    latency: ratio of latencies, committee over deep model; nan except for claim 4.
    latency_low: lower end of the interval of the ratio.
    latency_high: upper end.
    of: tasks and runs of the value.
    missing: runs that are needed for a decision, or ''.
  """

  claim: int
  verdict: str
  statistic: str
  value: float
  low: float
  high: float
  seeds: int
  collapsed: int
  latency: float = math.nan
  latency_low: float = math.nan
  latency_high: float = math.nan
  of: str = ''
  missing: str = ''


@dataclasses.dataclass(frozen=True)
class ClaimResults:
  """The verdicts on paper 2.

  Attributes:
    verdicts: one for each claim; empty if the runs are of other studies.
    excluded: excluded runs with the reason.
    matched: comparisons of the committee of claim 4 at equal cost.
  """

  verdicts: Sequence[Verdict]
  excluded: Sequence[str]
  matched: Sequence[Match]


def find_verdicts(
  run_paths: Mapping[str, epath.Path], failed: Mapping[str, str], curves: Sequence[LossCurve]
) -> ClaimResults:
  """Returns the verdicts on the four claims.

  Raises:
    InputError: a file of a run is damaged.
  """
  excluded = _find_excluded(run_paths, failed)
  included = {name: path for name, path in run_paths.items() if name not in excluded}
  rows = select_main(make_score_table(runs.read_scores(included)))
  sets = {
    training_set.name: training_set for training_set in pretraining_gap.read_training_sets(included)
  }
  by_series, _ = pretraining_gap.select_single_rows(rows, sets)
  gaps = pretraining_gap.find_gaps(included, rows, 1).points
  committees = committee_study.read_seed_committees(included, sets)
  latencies = runs.read_latencies(included)
  if not (gaps or committees or latencies or any(row.task in TOPICS for row in rows)):
    return ClaimResults([], [], [])
  comparison = committee_study.compare_with_deep(committees, rows, sets)
  by_name = {curve.name: curve for curve in curves}
  measurements = Measurements(committees, rows, sets, by_name, latencies, comparison.deep_shape)
  return ClaimResults(
    [
      _decide_gain(by_series, sets),
      _decide_growth(2, SIZE, gaps, by_series),
      _decide_growth(3, OVERLAP, gaps, by_series),
      _decide_committee(comparison, latencies),
    ],
    [f'{name}: {reason}' for name, reason in excluded.items()],
    committee_study.find_matches(comparison, measurements),
  )


def _find_excluded(
  run_paths: Mapping[str, epath.Path], failed: Mapping[str, str]
) -> dict[str, str]:
  """Returns failed, unfinished and continued runs, and committees with them, with the reason."""
  excluded = dict(failed)
  for name, path in run_paths.items():
    has_ended = runs.read_kind(path) not in _KINDS_WITH_RESULT or (path / run_dir.RESULT).exists()
    if name not in failed and not has_ended:
      excluded[name] = f'the run is unfinished: it has no {run_dir.RESULT}'
    elif name not in failed and (reason := runs.explain_origin(path)):
      excluded[name] = reason
  names = {paths.resolve_links(run_paths[name]): name for name in excluded if name in run_paths}
  for name, path in run_paths.items():
    if name in excluded or runs.read_kind(path) != committee_study.KIND:
      continue
    for member in files.read_json(path / run_dir.MANIFEST, f'the members of {path}')['members']:
      source = paths.resolve_links(committee_study.find_source(path, member))
      if source in names:
        excluded[name] = f'a member was trained from the excluded run {names[source]}'
        break
  return excluded


def _decide_gain(by_series: BySeries, sets: Mapping[str, TrainingSet]) -> Verdict:
  """Decides claim 1 by the runs of each task and model on the largest set that no task selected."""
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
      max_rows = max((sets[name].rows for name in candidates), default=0)
      largest = [name for name in candidates if sets[name].rows == max_rows]
      pairs = [
        (rows[name].pretrained, rows[name].scratch if rows[name].scratch.n else scratch)
        for name in largest
      ]
      if pairs:
        by_pair = [scores.subtract_by_seed(*(group.by_seed for group in pair)) for pair in pairs]
        differences[f'{series} ({", ".join(largest)})'] = _average_common_seeds(by_pair)
        collapsed += sum(group.collapsed for pair in pairs for group in pair)
  return _decide(1, differences, collapsed, 'scores of one task, pre-trained and from scratch')


def _decide_growth(claim: int, axis: str, gaps: Sequence[Gap], by_series: BySeries) -> Verdict:
  """Decides claim 2 or 3 by the slopes of the gap along an axis.

  Comparisons by size are those with equal updates or, without such, with equal epochs.
  """
  along = [gap for gap in gaps if gap.axis == axis]
  if axis == SIZE:
    same_updates = [gap for gap in along if 'same updates' in gap.comparison]
    along = same_updates or [gap for gap in along if 'same epochs' in gap.comparison]
  by_line = runs.group_by(along, lambda gap: (gap.series, gap.comparison))
  slopes, collapsed = {}, 0
  for (series, comparison), line in by_line.items():
    scale = 10 if axis == OVERLAP else 1
    slopes[f'{series}, {comparison} ({len(line)} runs)'] = {
      seed: scale * slope for seed, slope in pretraining_gap.fit_seed_slopes(line).items()
    }
    rows = [by_series[series][gap.checkpoint] for gap in line]
    collapsed += sum(row.pretrained.collapsed + row.scratch.collapsed for row in rows)
  needed = 'two overlaps with the task, in runs on sets of one size (minilm overlap-subsets)'
  if axis == SIZE:
    needed = 'two sizes of the pre-training set, in runs with equal updates or epochs'
  return _decide(claim, slopes, collapsed, f'{needed}, with scores pre-trained and from scratch')


def _decide_committee(comparison: CommitteeComparison, latencies: Sequence[LatencyRow]) -> Verdict:
  """Decides claim 4 by score and latency: the claim fails if either part fails."""
  accuracy = _decide(
    4, comparison.differences, comparison.collapsed, comparison.missing, -MARGIN, -MARGIN
  )
  latency, contestants, missing = committee_study.compare_latency(comparison, latencies)
  value, low, high = latency
  latency_verdict = HOLDS if high < 1 else FAILS if low > 1 else OPEN
  if latency_verdict == OPEN and not missing:
    missing = 'more rounds of minilm latency, as the interval of the ratio contains 1'
  parts = (accuracy.verdict, latency_verdict)
  verdict = FAILS if FAILS in parts else OPEN if OPEN in parts else HOLDS
  return dataclasses.replace(
    accuracy,
    verdict=verdict,
    latency=value,
    latency_low=low,
    latency_high=high,
    of='; '.join(filter(None, (accuracy.of, contestants))),
    missing='; '.join(filter(None, (accuracy.missing, missing))) if verdict == OPEN else '',
  )


def _decide(
  claim: int,
  numbers: Mapping[str, BySeed],
  collapsed: int,
  needed: str,
  above: float = 0.0,
  below: float = MARGIN,
) -> Verdict:
  """Returns the verdict on the mean over tasks and comparisons, by seed.

  Args:
    numbers: numbers by description and seed; descriptions without seeds are ignored.
    needed: description of the missing runs, if there are no numbers.
    above: the claim holds if the interval lies above this bound.
    below: otherwise, the claim fails if the interval lies below this bound.
  """
  with_seeds = {name: by_seed for name, by_seed in numbers.items() if by_seed}
  values = list(_average_common_seeds(list(with_seeds.values())).values())
  low, high = metrics.confidence_interval(values)
  verdict = HOLDS if low > above else FAILS if high < below else OPEN
  missing = ''
  if verdict == OPEN:
    missing = f'a narrower interval, from more than {len(values)} seeds or larger runs'
    if not numbers:
      missing = needed
    elif len(values) < 2:
      missing = (
        'two seeds of fine-tuning that are scored in every task, pre-trained and from scratch'
      )
  return Verdict(
    claim=claim,
    verdict=verdict,
    statistic=STATISTICS[claim],
    value=float(np.mean(values)) if values else math.nan,
    low=low,
    high=high,
    seeds=len(values),
    collapsed=collapsed,
    of='; '.join(with_seeds),
    missing=missing,
  )


def _average_common_seeds(numbers: Sequence[BySeed]) -> dict[int, float]:
  """Returns the mean for each seed that all mappings have."""
  common = set.intersection(*map(set, numbers)) if numbers else set()
  return {seed: float(np.mean([by_seed[seed] for by_seed in numbers])) for seed in sorted(common)}
