"""Verdicts on the four claims of paper 2: holds, does not hold, or undecided at this budget.

`configs/paper2_data_sizes.py` has the rules. Each statistic is one number a seed of fine-tuning;
scores of one seed are paired. Intervals are Student's intervals over these seeds. If every set of
claims 1 to 3 has several pre-training runs, the statistic is also one number a seed of pre-training,
and the wider interval counts. A limit of the budget, such as fewer epochs than in the paper, leaves
a claim undecided that the interval alone would refuse.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from etils import epath

from minilm_jax.analysis import frontier, runs, training_sets
from minilm_jax.analysis.loss_curves import ACTUAL, LossCurve
from minilm_jax.analysis.paper2 import committee_study, equal_cost, pretraining_gap
from minilm_jax.analysis.paper2.committee_study import CommitteeComparison
from minilm_jax.analysis.paper2.equal_cost import Match, Measurements
from minilm_jax.analysis.paper2.latencies import LatencyRow, encode_latency_shape, read_latencies
from minilm_jax.analysis.paper2.pretraining_gap import OVERLAP, SIZE, BySeed, Gap
from minilm_jax.analysis.scores import ScoreRow, make_score_table, select_main
from minilm_jax.analysis.seed_groups import subtract_by_seed
from minilm_jax.analysis.training_sets import TrainingSet
from minilm_jax.core import paths, run_dir
from minilm_jax.tasks import metrics

HOLDS, FAILS, OPEN = 'holds', 'does not hold', 'undecided at this budget'
# One point of score is the smallest relevant gain (claims 1-3) and the largest tolerated loss (4).
MARGIN = 0.01
PAPER_EPOCHS = 50  # of every pre-training set
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
BySeries = Mapping[str, Mapping[str, ScoreRow]]  # series: run: row


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The verdict on one claim.

  Attributes:
    verdict: HOLDS, FAILS or OPEN.
    value: mean over seeds, as a share of a score; nan without runs.
    low, high: ends of the 95% interval; nan with fewer than two seeds.
    seeds: number of seeds of the interval.
    seeds_of: `pretraining_gap.FINETUNING` or `pretraining_gap.PRETRAINING`.
    collapsed: number of scores from constant predictions.
    latency: ratio of latencies, committee over deep model; nan except for claim 4.
    latency_low, latency_high: ends of the interval of the ratio.
    of: tasks and runs of the value.
    missing: runs that are needed for a decision, or ''.
    detectable: smallest effect that a test of these seeds at 5% finds with a power of 80%, as a share
      of a score; nan with fewer than two seeds.
    limits: limits of the budget, or ''.
  """

  claim: int
  verdict: str
  statistic: str
  value: float
  low: float
  high: float
  seeds: int
  seeds_of: str
  collapsed: int
  latency: float = math.nan
  latency_low: float = math.nan
  latency_high: float = math.nan
  of: str = ''
  missing: str = ''
  detectable: float = math.nan
  limits: str = ''


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
  sets = training_sets.read_training_sets(included)
  by_series, _ = pretraining_gap.select_single_rows(rows, sets)
  gaps = pretraining_gap.find_gaps(sets, rows).points
  committees = committee_study.read_seed_committees(included, sets)
  latencies = read_latencies(included)
  if not (gaps or committees or latencies or any(row.task in TOPICS for row in rows)):
    return ClaimResults([], [], [])
  comparison = committee_study.compare_with_deep(committees, rows, sets)
  by_name = {curve.name: curve for curve in curves}
  limits = find_limits(sets, by_name)
  measurements = Measurements(committees, rows, sets, by_name, latencies, comparison.deep_shape)
  return ClaimResults(
    [
      _decide_gain(by_series, sets, limits),
      _decide_growth(2, SIZE, gaps, by_series, limits),
      _decide_growth(3, OVERLAP, gaps, by_series, limits),
      _decide_committee(comparison, latencies, sets, limits),
    ],
    [f'{name}: {reason}' for name, reason in excluded.items()],
    equal_cost.find_matches(comparison, measurements),
  )


def find_limits(
  sets: Mapping[str, TrainingSet], curves: Mapping[str, LossCurve]
) -> dict[str, list[str]]:
  """Returns the limits of the budget of each pre-training run: its data and its plateau."""
  limits: dict[str, list[str]] = {name: [] for name in sets}
  by_tokenizer = runs.group_by(sets.values(), lambda training_set: training_set.tokenizer)
  for same_tokenizer in by_tokenizer.values():
    names = [training_set.name for training_set in same_tokenizer if training_set.name in curves]
    level = frontier.find_plateau_level([curves[name] for name in names])
    for name in names:
      plateau = frontier.find_plateau(curves[name], level, ACTUAL)
      if plateau is not None and plateau.exit is None:
        limits[name].append(f'{name} is on the plateau of word frequencies')
  for name, training_set in sets.items():
    if training_set.epochs < PAPER_EPOCHS:
      epochs = f'{training_set.epochs:.2g} of {PAPER_EPOCHS} epochs'
      limits[name].append(f'{name} has {epochs} of the paper')
  return limits


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
  for name, path in runs.select_kind(run_paths, committee_study.KIND).items():
    if name in excluded:
      continue
    for member in committee_study.read_members(path):
      source = paths.resolve_links(committee_study.find_source(path, member))
      if source in names:
        excluded[name] = f'a member was trained from the excluded run {names[source]}'
        break
  return excluded


def _decide_gain(
  by_series: BySeries, sets: Mapping[str, TrainingSet], limits: Mapping[str, list[str]]
) -> Verdict:
  """Decides claim 1 by the runs of each task and model on the largest set that no task selected."""
  differences, by_pretraining, collapsed, used = {}, {}, 0, []
  for series, rows in by_series.items():
    for same_model in runs.group_by(rows, lambda name: sets[name].key).values():
      borrowed = next((rows[name].scratch for name in same_model if rows[name].scratch.n), None)
      candidates = [
        name for name in same_model if not sets[name].selected and rows[name].pretrained.n
      ]
      if borrowed is None or not candidates:
        continue
      max_rows = max(sets[name].rows for name in candidates)
      largest = [name for name in candidates if sets[name].rows == max_rows]
      used += largest
      by_run = {}
      for name in largest:
        pretrained = rows[name].pretrained
        scratch = rows[name].scratch if rows[name].scratch.n else borrowed
        by_run[name] = subtract_by_seed(pretrained.by_seed, scratch.by_seed)
        collapsed += pretrained.collapsed + scratch.collapsed
      title = f'{series} ({", ".join(largest)})'
      differences[title] = pretraining_gap.average_common_seeds(list(by_run.values()))
      by_seed = runs.group_by(largest, lambda name: sets[name].seed)
      by_pretraining[title] = {
        seed: float(
          np.mean([by_run[name][tuning] for name in names for tuning in differences[title]])
        )
        for seed, names in by_seed.items()
        if differences[title]
      }
  needed = 'scores of one task, pre-trained and from scratch'
  return _decide(
    1, differences, collapsed, needed, _join_limits(used, limits), by_pretraining=by_pretraining
  )


def _join_limits(names: Iterable[str], limits: Mapping[str, list[str]]) -> list[str]:
  """Returns the limits of runs, each run once."""
  return [limit for name in dict.fromkeys(names) for limit in limits[name]]


def _decide_growth(
  claim: int,
  axis: str,
  gaps: Sequence[Gap],
  by_series: BySeries,
  limits: Mapping[str, list[str]],
) -> Verdict:
  """Decides claim 2 or 3 by the slopes of the gap along an axis.

  Comparisons by size are those with equal updates or, without such, with equal epochs.
  """
  along = [gap for gap in gaps if gap.axis == axis]
  if axis == SIZE:
    same_updates = [gap for gap in along if 'same updates' in gap.comparison]
    along = same_updates or [gap for gap in along if 'same epochs' in gap.comparison]
  by_line = runs.group_by(along, lambda gap: (gap.series, gap.comparison))
  slopes, by_pretraining, collapsed = {}, {}, 0
  scale = 10 if axis == OVERLAP else 1
  for (series, comparison), line in by_line.items():
    title = f'{series}, {comparison} ({len(line)} runs)'
    by_seed = pretraining_gap.fit_seed_slopes(line)
    slopes[title] = {seed: scale * slope for seed, slope in by_seed.items()}
    by_seed = pretraining_gap.fit_pretraining_slopes(line)
    by_pretraining[title] = {seed: scale * slope for seed, slope in by_seed.items()}
    rows = [by_series[series][gap.checkpoint] for gap in line]
    collapsed += sum(row.pretrained.collapsed + row.scratch.collapsed for row in rows)
  needed = 'two overlaps with the task, in runs on sets of one size (minilm overlap-subsets)'
  if axis == SIZE:
    needed = 'two sizes of the pre-training set, in runs with equal updates or epochs'
  needed += ', with scores pre-trained and from scratch'
  along_limits = _join_limits((gap.checkpoint for gap in along), limits)
  return _decide(claim, slopes, collapsed, needed, along_limits, by_pretraining=by_pretraining)


def _decide_committee(
  comparison: CommitteeComparison,
  latencies: Sequence[LatencyRow],
  sets: Mapping[str, TrainingSet],
  limits: Mapping[str, list[str]],
) -> Verdict:
  """Decides claim 4 by score and latency: the claim fails if either part fails."""
  shapes = {*comparison.shapes, comparison.deep_shape}
  contestants = [
    name
    for name, training_set in sets.items()
    if encode_latency_shape(training_set.model) in shapes
  ]
  accuracy = _decide(
    4,
    comparison.differences,
    comparison.collapsed,
    comparison.missing,
    _join_limits(contestants, limits),
    (-MARGIN, -MARGIN),
  )
  (value, low, high), timed, missing = committee_study.compare_latency(comparison, latencies)
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
    of='; '.join(filter(None, (accuracy.of, timed))),
    missing='; '.join(filter(None, (accuracy.missing, missing))) if verdict == OPEN else '',
  )


def _decide(
  claim: int,
  numbers: Mapping[str, BySeed],
  collapsed: int,
  needed: str,
  limits: Sequence[str],
  bounds: tuple[float, float] = (0.0, MARGIN),
  by_pretraining: Mapping[str, BySeed] | None = None,
) -> Verdict:
  """Returns the verdict on the mean over tasks and comparisons, by seed.

  Args:
    numbers: numbers by description and seed of fine-tuning; descriptions without seeds are ignored.
    needed: description of the missing runs, if there are no numbers.
    limits: limits of the budget, with which no claim fails.
    bounds: the claim holds if the interval lies above the first bound. Otherwise, the claim fails if
      the interval lies below the second bound.
    by_pretraining: the same numbers by seed of pre-training. They count if their interval is wider.
  """
  numbers_of_kinds = (
    [by_seed for by_seed in mapping.values() if by_seed]
    for mapping in (numbers, by_pretraining or {})
  )
  means, seeds_of = pretraining_gap.average_seeds(*numbers_of_kinds)
  above, below = bounds
  if collapsed:
    limits = [*limits, f'{collapsed} scores are of constant predictions']
  is_below = means.low <= above and means.high < below
  verdict = HOLDS if means.low > above else FAILS if is_below and not limits else OPEN
  missing = f'a narrower interval, from more than {means.n} seeds of {seeds_of} or larger runs'
  if verdict != OPEN:
    missing = ''
  elif is_below:
    missing = 'runs without the limits of the budget'
  elif not numbers:
    missing = needed
  elif means.n < 2:
    missing = 'two seeds of fine-tuning that are scored in every task, pre-trained and from scratch'
  return Verdict(
    claim=claim,
    verdict=verdict,
    statistic=STATISTICS[claim],
    value=means.mean,
    low=means.low,
    high=means.high,
    seeds=means.n,
    seeds_of=seeds_of,
    collapsed=collapsed,
    of='; '.join(name for name, by_seed in numbers.items() if by_seed),
    missing=missing,
    detectable=metrics.smallest_detectable_effect(means.values),
    limits='; '.join(limits),
  )
