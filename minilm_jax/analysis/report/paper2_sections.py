"""Answers, sections and files of a report on paper 2 (2507.14871).

The numbers on claims, gap, committees and latencies come from `claims`, `pretraining_gap`,
`committee_study` and `latencies`.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from minilm_jax.analysis import runs, training_sets
from minilm_jax.analysis.loss_curves import LossCurve
from minilm_jax.analysis.number_format import (
  NONE,
  format_interval,
  format_points,
  format_points_interval,
)
from minilm_jax.analysis.paper2 import claims, committee_study, latencies, pretraining_gap
from minilm_jax.analysis.paper2.claims import CLAIMS, ClaimResults, Verdict
from minilm_jax.analysis.paper2.committee_study import CommitteeRow
from minilm_jax.analysis.paper2.equal_cost import Match
from minilm_jax.analysis.paper2.latencies import LatencyRow
from minilm_jax.analysis.paper2.pretraining_gap import OVERLAP, SIZE, Gap, GapStudy, Slope
from minilm_jax.analysis.report import scaling_figures
from minilm_jax.analysis.report.figures import COLORS, DASHES, Drawing, arrange_panels
from minilm_jax.analysis.report.sections import Answer, Section, TableFormat, as_csv, list_section
from minilm_jax.analysis.scores import ScoreRow
from minilm_jax.tasks import committee_scores
from minilm_jax.tasks.committee_scores import LOGIT, MEMBERS, PROBABILITY

_LIKELIHOOD = 'negative log-likelihood'
_SHARES = ('accuracy', 'calibration error', committee_scores.DISAGREEMENT)  # shown times 100
_METRICS = ('accuracy', _LIKELIHOOD, 'calibration error', 'Brier score', _SHARES[-1])
_COMBINATIONS = {MEMBERS: 'one member', LOGIT: 'mean logit', PROBABILITY: 'mean probability'}
_HEADLINE = ''  # key of the headline metric among scores by metric
# Titles, captions and notes of the figures of gaps, by axis.
_GAP_FIGURES = {
  SIZE: (
    'Gap by pre-training set size',
    'Pre-trained minus from scratch by tokens of the pre-training set, with 95% intervals.',
    'Tokens exclude pads. Intervals are over seeds of fine-tuning.',
  ),
  OVERLAP: (
    'Gap by token overlap',
    'Pre-trained minus from scratch by token overlap with the task, with 95% intervals.',
    'Overlap is the share of running words in the training texts of the task that the pre-training '
    'set contains. The sets have one size but differ in subject too.',
  ),
}


@dataclasses.dataclass(frozen=True)
class Paper2Study:
  """Numbers of a report on paper 2: committees, latencies, claims and gaps."""

  committees: Sequence[CommitteeRow]
  latencies: Sequence[LatencyRow]
  claims: ClaimResults
  gaps: GapStudy


def study_paper2(
  run_paths: Mapping[str, epath.Path],
  failed: Mapping[str, str],
  curves: Sequence[LossCurve],
  score_rows: Sequence[ScoreRow],
) -> Paper2Study:
  """Returns the numbers on paper 2 in these runs."""
  return Paper2Study(
    committee_study.read_committee_rows(run_paths),
    latencies.read_latencies(run_paths),
    claims.find_verdicts(run_paths, failed, curves),
    pretraining_gap.find_gaps(training_sets.read_training_sets(run_paths), score_rows),
  )


def make_files(study: Paper2Study) -> dict[str, bytes]:
  """Returns the CSV files that have content, by name."""
  contents = {
    f'{name}.csv': as_csv(kind, rows)
    for name, kind, rows in (
      ('committees', CommitteeRow, study.committees),
      ('latency', LatencyRow, study.latencies),
      ('verdicts', Verdict, study.claims.verdicts),
      ('matches', Match, study.claims.matched),
      ('gap', Gap, study.gaps.points),
    )
    if rows
  }
  if study.gaps.points:
    contents['slopes.csv'] = as_csv(Slope, study.gaps.slopes)
  return contents


def answer_questions(study: Paper2Study) -> Iterator[Answer]:
  """Yields the verdicts on the claims, the growth of the gap, and the gain of each committee."""
  yield from map(_answer_claim, study.claims.verdicts)
  means = {(slope.axis, slope.comparison) for slope in study.gaps.slopes if slope.tasks > 1}
  for slope in study.gaps.slopes:
    if slope.tasks > 1 or (slope.axis, slope.comparison) not in means:
      yield _answer_slope(slope)
  yield from map(_answer_committee, group_by_committee(study.committees).values())


def _answer_claim(verdict: Verdict) -> Answer:
  number, notes = '', []
  if math.isfinite(verdict.value):
    interval = format_points_interval(verdict.value, verdict.low, verdict.high)
    number = f'{interval} ({verdict.seeds} seeds of {verdict.seeds_of})'
    notes.append(f'Statistic: {verdict.statistic}.')
  if math.isfinite(verdict.latency):
    latency = format_interval(verdict.latency, verdict.latency_low, verdict.latency_high, '.2f')
    number = '; '.join(filter(None, (number, f'latency ratio {latency}')))
    notes.append('The latency ratio is committee over deep model.')
  if math.isfinite(verdict.detectable):
    effect = format_points(verdict.detectable)
    notes.append(f'These seeds find an effect of {effect} points with a power of 80%.')
  if verdict.limits:
    notes.append(f'Limits of the budget: {verdict.limits}.')
  if verdict.missing:
    notes.append(f'Missing: {verdict.missing}.')
  return Answer(
    f'{verdict.claim}. {CLAIMS[verdict.claim]}', verdict.verdict, number or 'not measured', notes
  )


def _answer_slope(slope: Slope) -> Answer:
  unit = 'doubling of tokens' if slope.axis == SIZE else 'point of overlap'
  axis = 'pre-training set' if slope.axis == SIZE else 'token overlap'
  interval = format_points_interval(slope.slope, slope.low, slope.high)
  verdict = 'yes' if slope.low > 0 else 'no, it shrinks' if slope.high < 0 else 'undecided'
  note = f' Limits: {slope.note}.' if slope.note else ''
  return Answer(
    f'Does the gap grow with the {axis} ({slope.series}, {slope.comparison})?',
    verdict,
    f'{interval} for each {unit}',
    [f'The slope has {slope.levels} levels.{note}'],
  )


def _answer_committee(rows: Sequence[CommitteeRow]) -> Answer:
  first = rows[0]
  full = {row.combined: row for row in rows if row.headline and row.size == first.members}
  # The preregistered rule is the mean probability; a choice by these scores would favor committees.
  gain = full[PROBABILITY].mean - full[MEMBERS].mean
  heads = f' with {", ".join(map(str, first.heads))} heads' if max(first.heads) > 1 else ''
  scores = ', '.join(
    f'{format_points(full[key].mean)} by {_COMBINATIONS[key]}' for key in (PROBABILITY, LOGIT)
  )
  return Answer(
    f'Does committee {first.committee} beat a single member on {first.task} ({first.split})?',
    'yes' if gain > 0 else 'no',
    f'{format_points(gain, "+")} points {full[PROBABILITY].metric}, one subset without interval',
    [
      f'{first.committee}: {first.members} members{heads}, {first.examples:,} examples. Scores: {scores}, '
      f'{format_points(full[MEMBERS].mean)} by one member on average.'
    ],
  )


def make_sections(study: Paper2Study) -> Iterator[Section]:
  """Yields the sections with content: claims, gap, committees, equal cost, latencies."""
  results = study.claims
  if results.verdicts:
    yield Section('Claims of paper 2', table=CLAIM_FORMAT.fill(results.verdicts))
    yield from list_section('Runs excluded from the claims', 'run: reason', results.excluded)
  yield from _make_gap_sections(study.gaps)
  for number, rows in enumerate(group_by_committee(study.committees).values(), 1):
    title = f'Committee {rows[0].committee}, {rows[0].task}, {rows[0].split}'
    yield Section(
      title,
      figures={f'committee-{number}': draw_committee(rows)},
      caption='Score and likelihood by committee size: mean and middle 95% over subsets.',
    )
    yield Section(f'{title}: sizes', table=COMMITTEE_FORMAT.fill(group_by_metric(rows)))
  if results.matched:
    yield Section('Committee at equal cost', table=MATCH_FORMAT.fill(results.matched))
  for name in dict.fromkeys(row.run for row in study.latencies):
    rows = [row for row in study.latencies if row.run == name]
    yield Section(
      f'Latency: {name}',
      f'{rows[0].calls} answers each on {rows[0].machine}.',
      table=LATENCY_FORMAT.fill(rows),
    )


def _make_gap_sections(study: GapStudy) -> Iterator[Section]:
  for axis, (title, caption, note) in _GAP_FIGURES.items():
    points = [point for point in study.points if point.axis == axis]
    slopes = [slope for slope in study.slopes if slope.axis == axis]
    if points:
      figure = {f'gap-{axis}': scaling_figures.draw_gaps(points)}
      yield Section(title, figures=figure, caption=caption, notes=[note])
      if slopes:
        yield Section(f'{title}: slopes', table=SLOPE_FORMAT.fill(slopes))
      yield Section(f'{title}: runs', table=GAP_FORMAT.fill(points))
  yield from list_section('Left out of the gap', 'result: reason', study.left_out)


def group_by_committee(rows: Sequence[CommitteeRow]) -> dict[tuple[str, str], list[CommitteeRow]]:
  """Returns the rows of each committee and split."""
  return runs.group_by(rows, lambda row: (row.committee, row.split))


def group_by_metric(rows: Sequence[CommitteeRow]) -> list[dict[str, CommitteeRow]]:
  """Returns the scores of one committee by metric, for each size and combination with a headline."""
  order = list(_COMBINATIONS)
  groups = runs.group_by(rows, lambda row: (row.size, order.index(row.combined)))
  by_metric = [
    {key: row for row in groups[group] for key in (row.metric, *([_HEADLINE] * row.headline))}
    for group in sorted(groups)
  ]
  return [scores for scores in by_metric if _HEADLINE in scores]


def draw_committee(rows: Sequence[CommitteeRow]) -> Drawing:
  """Draws headline score and likelihood of one committee by size, with bands over subsets."""
  headline = next(row.metric for row in rows if row.headline)
  handles = {}

  def draw(axes: Axes, metric: str) -> None:
    scale = 100 if metric == headline else 1
    for (combined, name), dash, color in zip(_COMBINATIONS.items(), DASHES, COLORS):
      scores = sorted(
        (row for row in rows if (row.combined, row.metric) == (combined, metric)),
        key=lambda row: row.size,
      )
      sizes = [row.size for row in scores]
      ends = np.array([(row.mean, row.low, row.high) for row in scores]).reshape(-1, 3)
      mean, low, high = scale * ends.T
      if combined != MEMBERS:
        low, high = (np.where(np.isnan(end), mean, end) for end in (low, high))
        axes.fill_between(sizes, low, high, color=color, alpha=0.15, linewidth=0)
      (handles[name],) = axes.plot(sizes, mean, dash, color=color, marker='o', markersize=3)
    axes.set_title(f'{metric} × 100' if scale == 100 else f'{metric} (nats)')
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

  return arrange_panels([headline, _LIKELIHOOD], draw, handles, 'members', '')


def _format_metric(metric: str, scores: Mapping[str, CommitteeRow]) -> str:
  if metric not in scores:
    return NONE
  row = scores[metric]
  form, scale = ('.1f', 100) if row.headline or row.metric in _SHARES else ('.3f', 1)
  return format_interval(row.mean, row.low, row.high, form, scale)


COMMITTEE_FORMAT = TableFormat(
  3,
  (
    ('size', lambda scores: str(scores[_HEADLINE].size)),
    (
      'subsets',
      lambda scores: f'{scores[_HEADLINE].subsets}{"" if scores[_HEADLINE].every else " drawn"}',
    ),
    ('combined by', lambda scores: _COMBINATIONS[scores[_HEADLINE].combined]),
    ('score × 100', functools.partial(_format_metric, _HEADLINE)),
    *(
      (metric + (' × 100' if metric in _SHARES else ''), functools.partial(_format_metric, metric))
      for metric in _METRICS
    ),
  ),
  'Mean over subsets of the members [middle 95%]; the full committee is a single subset.',
  (
    'One member: mean score of single members.',
    'Negative log-likelihood is in nats. Calibration error has 15 equal bins. Disagreement is the share '
    'of examples that two members classify differently. Smaller is better in all three.',
  ),
)
CLAIM_FORMAT = TableFormat(
  3,
  (
    ('claim', lambda verdict: f'{verdict.claim}. {CLAIMS[verdict.claim]}'),
    ('verdict', lambda verdict: verdict.verdict),
    ('statistic', lambda verdict: verdict.statistic),
    (
      'points [95% interval]',
      lambda verdict: format_interval(verdict.value, verdict.low, verdict.high),
    ),
    ('seeds', lambda verdict: f'{verdict.seeds} of {verdict.seeds_of}'),
    ('constant prediction', lambda verdict: str(verdict.collapsed)),
    ('tasks and runs', lambda verdict: verdict.of or NONE),
  ),
  'Points of the headline score, paired by seed of fine-tuning. Intervals are over the seeds in the table.',
  (
    'The rules are preregistered in configs/paper2_data_sizes.py.',
    'Constant prediction: number of members that predict a single class; the scores include them.',
  ),
)
MATCH_FORMAT = TableFormat(
  3,
  (
    ('task', lambda match: match.task),
    ('rival', lambda match: match.rival),
    ('equal cost', lambda match: match.cost),
    ('committee of', lambda match: f'{match.members} of {match.of}'),
    ('cost ratio', lambda match: f'{match.ratio:.2f}'),
    ('committee', lambda match: format_points(match.committee)),
    ('rival', lambda match: format_points(match.theirs)),
    (
      'difference [95% interval]',
      lambda match: format_interval(match.difference, match.low, match.high),
    ),
    ('seeds', lambda match: str(match.seeds)),
  ),
  'Scores times 100 of the committee size with the cost nearest to the rival.',
  (
    'Cost ratio: committee over rival. A ratio far from 1 is no match.',
    'Intervals are over seeds of fine-tuning.',
  ),
)
LATENCY_FORMAT = TableFormat(
  1,
  (
    ('answers', lambda row: row.name),
    ('batch', lambda row: str(row.batch)),
    ('ms, median [95% interval]', lambda row: f'{row.median:.3f} [{row.low:.3f}, {row.high:.3f}]'),
    ('p95', lambda row: f'{row.p95:.3f}'),
    ('over one member', lambda row: f'{row.over_member:.2f}'),
    ('heads', lambda row: str(row.members * row.heads)),
    ('depth', lambda row: str(row.depth)),
    ('parameters', lambda row: f'{row.parameters:,}'),
    ('MFLOPs a row', lambda row: f'{row.flops / 1e6:,.1f}'),
  ),
  'Milliseconds from token ids to probabilities, with fresh weights and alternating models.',
  (
    'Heads are those of all members. Depth counts the blocks and convolutions that run in sequence.',
  ),
)
SLOPE_FORMAT = TableFormat(
  2,
  (
    ('task', lambda slope: slope.series),
    ('comparison', lambda slope: slope.comparison),
    ('runs', lambda slope: str(slope.points)),
    ('levels', lambda slope: str(slope.levels)),
    ('seeds', lambda slope: f'{slope.seeds} of {slope.seeds_of}' if slope.seeds else NONE),
    ('slope [95% interval]', lambda slope: format_interval(slope.slope, slope.low, slope.high)),
    ('note', lambda slope: slope.note or NONE),
  ),
  'Slope of the gap: points for each doubling of tokens, or for each point of overlap.',
  (
    'Slopes are least squares through the runs. Intervals are Student’s over seeds of fine-tuning or '
    'of pre-training; the wider interval counts.',
  ),
)
GAP_FORMAT = TableFormat(
  3,
  (
    ('task', lambda point: point.series),
    ('comparison', lambda point: point.comparison),
    ('run', lambda point: point.checkpoint),
    ('rows', lambda point: f'{point.rows:,}'),
    ('tokens', lambda point: f'{point.tokens:,}'),
    ('epochs', lambda point: f'{point.epochs:.3g}'),
    (
      'overlap',
      lambda point: f'{100 * point.overlap:.2f}' if math.isfinite(point.overlap) else NONE,
    ),
    ('pre-trained', lambda point: format_points(point.pretrained)),
    ('from scratch', lambda point: format_points(point.scratch) + (' *' if point.borrowed else '')),
    (
      'gap [95% interval]',
      lambda point: format_interval(point.gap.mean, point.gap.low, point.gap.high),
    ),
  ),
  'Scores times 100, paired by seed if both arms have the same seeds.',
  ('A star marks a score from scratch that belongs to another run.',),
)
