"""What becomes of the four claims of paper 2: holds, does not hold, or cannot be told at this size.

The rules stand in `configs/paper2_data_sizes.py`, where they were written before any run; here they
are carried out. Every statistic is one number a seed of fine-tuning, which is what pairs the arms,
and its interval is Student's over those seeds. So it says what other seeds would give, and nothing
of other pre-training runs where there is one of each.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from minilm_jax.analysis import committee_study, pretraining_gap, runs
from minilm_jax.analysis.committee_study import CommitteeComparison, Match
from minilm_jax.analysis.loss_curves import LossCurve
from minilm_jax.analysis.pretraining_gap import OVERLAP, SIZE, Gap, TrainingSet
from minilm_jax.analysis.runs import LatencyRow
from minilm_jax.analysis.scores import Group, ScoreRow, score_table, select_main
from minilm_jax.core import files, run_dir
from minilm_jax.tasks import metrics

HOLDS, FAILS, OPEN = 'holds', 'does not hold', 'cannot be told at this size'
# one point of score: the least effect of the first three claims, the most that the fourth may lose
MARGIN = 0.01
TOPICS = (
  'fewrel',
  'ag_news',
  'dbpedia_14',
)  # tasks of the paper: with one of them the page has the statement
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
_ENDING = ('pretrain', 'finetune', 'committee', 'latency')  # kinds of run that end with a result


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What is said of one claim.

  Attributes:
    claim: its number.
    verdict: HOLDS, FAILS or OPEN.
    statistic: what was computed.
    value, low, high: shares of a score, with the 95% interval; nan where there is too little.
    seeds: how many numbers the value is the mean of.
    collapsed: members that gave one answer to everything, among those that it was computed from.
    latency, latency_low, latency_high: the committee's over the deep model's, of claim 4.
    of: what it was computed from.
    missing: what keeps it from being told, or ''.
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
  """The four verdicts, none where nothing asks for them; the runs that are in none of them, with
  the reason; and the committee of the fourth at equal costs."""

  verdicts: Sequence[Verdict]
  excluded: Sequence[str]
  matched: Sequence[Match]


def find_verdicts(
  found: Mapping[str, epath.Path], failed: Mapping[str, str], curves: Sequence[LossCurve]
) -> Statement:
  """The statement on some runs.

  Args:
    found: runs by name, of `runs.find`.
    failed: of `runs.failures`.
    curves: of `grid.read_runs`, on the same runs.

  Raises:
    InputError: a file of a run is damaged.
  """
  excluded = _excluded(found, failed)
  kept = {name: path for name, path in found.items() if name not in excluded}
  rows = select_main(score_table(runs.read_scores(kept)))
  there = {one.name: one for one in pretraining_gap.read_training_sets(kept)}
  by_series, _ = pretraining_gap.select_single_rows(rows, there)
  along, made, timed = (
    pretraining_gap.find_gaps(kept, rows, 1).points,
    committee_study.read_committees(kept, there),
    runs.read_latencies(kept),
  )
  if not (along or made or timed or any(row.task in TOPICS for row in rows)):
    return Statement([], [], [])
  contest = committee_study.compare_with_deep(made, rows, there)
  return Statement(
    [
      _first(by_series, there),
      *(_slope(claim, axis, along, by_series) for claim, axis in ((2, SIZE), (3, OVERLAP))),
      _fourth(contest, timed),
    ],
    [f'{name}: {why}' for name, why in excluded.items()],
    committee_study.find_matches(contest, made, rows, there, curves, timed),
  )


def _excluded(found: Mapping[str, epath.Path], failed: Mapping[str, str]) -> dict[str, str]:
  """Runs that failed or did not come to their end, and committees of them, with the reason."""
  kinds = {name: runs.read_kind(path) for name, path in found.items()}
  out = dict(failed) | {
    name: f'no {run_dir.RESULT}: under way or cut short'
    for name, path in found.items()
    if name not in failed and kinds[name] in _ENDING and not (path / run_dir.RESULT).exists()
  }
  lost = {str(found[name].resolve()): name for name in out if name in found}
  for name, path in found.items():
    if name not in out and kinds[name] == committee_study.KIND:
      members = files.read_json(path / run_dir.MANIFEST, f'the members of {path}')['members']
      starts = [
        lost[one]
        for one in (str(epath.Path(one['checkpoint']).resolve()) for one in members)
        if one in lost
      ]
      out |= {name: f'a member of it started from {start}' for start in starts[:1]}
  return out


def _first(
  by_series: Mapping[str, Mapping[str, ScoreRow]], there: Mapping[str, TrainingSet]
) -> Verdict:
  """Of each task and model the runs on its largest set that no task chose, their mean by seed."""
  each, collapsed = {}, 0
  for series, rows in by_series.items():
    for key in dict.fromkeys(there[name].key for name in rows):
      own = [one for one in map(there.get, rows) if one.key == key]
      scratch = next((rows[one.name].scratch for one in own if rows[one.name].scratch.n), None)
      some = (
        [one for one in own if not one.selected and rows[one.name].pretrained.n] if scratch else []
      )
      largest = [one.name for one in some if one.rows == max(other.rows for other in some)]
      pairs = [
        (rows[name].pretrained, rows[name].scratch if rows[name].scratch.n else scratch)
        for name in largest
      ]
      if pairs:
        each[f'{series} ({", ".join(largest)})'] = _mean([_differences(*pair) for pair in pairs])
        collapsed += sum(group.collapsed for pair in pairs for group in pair)
  return _told(1, each, collapsed, 'a task with both arms, pre-trained and from scratch')


def _slope(
  claim: int, axis: str, along: Sequence[Gap], by_series: Mapping[str, Mapping[str, ScoreRow]]
) -> Verdict:
  """By size, comparisons of the same updates or, without any, of the same epochs; by overlap, all,
  for 10 points.
  """
  own = [point for point in along if point.axis == axis]
  if axis == SIZE:
    own = next(
      (
        some
        for how in ('same updates', 'same epochs')
        if (some := [point for point in own if how in point.comparison])
      ),
      [],
    )
  each, collapsed = {}, 0
  for place in dict.fromkeys((point.series, point.comparison) for point in own):
    some = [point for point in own if (point.series, point.comparison) == place]
    each[f'{", ".join(place)} ({len(some)} runs)'] = {
      seed: (10 if axis == OVERLAP else 1) * value
      for seed, value in pretraining_gap.fit_seed_slopes(some).items()
    }
    rows = [by_series[place[0]][point.checkpoint] for point in some]
    collapsed += sum(row.pretrained.collapsed + row.scratch.collapsed for row in rows)
  what = (
    'sizes of the pre-training set, in runs of the same updates or epochs'
    if axis == SIZE
    else 'overlaps with the task, in runs of one size (minilm overlap-subsets)'
  )
  return _told(claim, each, collapsed, f'two {what}, with both arms')


def _fourth(contest: CommitteeComparison, timed: Sequence[LatencyRow]) -> Verdict:
  """No less accurate than by a point, and sooner; one of them false is enough against it."""
  told = _told(4, contest.differences, contest.collapsed, contest.missing, -MARGIN, -MARGIN)
  latency, of, untimed = committee_study.compare_latency(contest, timed)
  sooner = HOLDS if latency[2] < 1 else FAILS if latency[1] > 1 else OPEN
  if sooner == OPEN and not untimed:
    untimed = 'more timed answers: the interval of the latency contains 1'
  both = (told.verdict, sooner)
  verdict = FAILS if FAILS in both else OPEN if OPEN in both else HOLDS
  return dataclasses.replace(
    told,
    verdict=verdict,
    latency=latency[0],
    latency_low=latency[1],
    latency_high=latency[2],
    of='; '.join(filter(None, (told.of, of))),
    missing='; '.join(filter(None, (told.missing, untimed))) if verdict == OPEN else '',
  )


def _told(
  claim: int,
  each: Mapping[str, Mapping[int, float]],
  collapsed: int,
  needed: str,
  above: float = 0.0,
  below: float = MARGIN,
) -> Verdict:
  """The verdict on the means by seed of several tasks and comparisons: it holds above one bound,
  and not below another.

  Args:
    each: numbers by seed, by what they are of; those without a seed do not count.
    collapsed: members among them.
    needed: what is missing where there are none.
    above, below: what the interval must lie above to hold, and below to fail; to hold comes first.
  """
  filled = {name: of for name, of in each.items() if of}
  values = list(_mean(list(filled.values())).values())
  low, high = metrics.confidence_interval(values)
  verdict = HOLDS if low > above else FAILS if high < below else OPEN
  missing = ''
  if verdict == OPEN:
    missing = (
      needed
      if not each
      else 'two seeds of fine-tuning that all arms and tasks share'
      if len(values) < 2
      else f'a narrower interval: more than {len(values)} seeds, or larger runs'
    )
  value = float(np.mean(values)) if values else math.nan
  return Verdict(
    claim,
    verdict,
    STATISTICS[claim],
    value,
    low,
    high,
    len(values),
    collapsed,
    math.nan,
    math.nan,
    math.nan,
    '; '.join(filled),
    missing,
  )


def _differences(ours: Group, theirs: Group) -> dict[int, float]:
  """Of the seeds that both have."""
  other = dict(zip(theirs.seeds, theirs.values, strict=True))
  return {
    seed: value - other[seed]
    for seed, value in zip(ours.seeds, ours.values, strict=True)
    if seed in other
  }


def _mean(each: Sequence[Mapping[int, float]]) -> dict[int, float]:
  """The mean by seed, of the seeds that all have."""
  common = set.intersection(*map(set, each)) if each else set()
  return {seed: float(np.mean([one[seed] for one in each])) for seed in sorted(common)}
