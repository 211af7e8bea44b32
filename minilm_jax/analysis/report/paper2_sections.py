"""Sections of a report on paper 2 (2507.14871): claims, gap, committees, latencies.

The numbers come from `claims`, `pretraining_gap`, `committee_study` and `runs`.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import matplotlib as mpl
from etils import epath
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from minilm_jax.analysis import claims, committee_study, pretraining_gap, runs, scores
from minilm_jax.analysis.claims import CLAIMS, ClaimResults, Verdict
from minilm_jax.analysis.committee_study import CommitteeRow, Match
from minilm_jax.analysis.loss_curves import LossCurve
from minilm_jax.analysis.pretraining_gap import OVERLAP, SIZE, Gap, GapStudy, Slope
from minilm_jax.analysis.report import scaling_figures
from minilm_jax.analysis.report.figures import COLORS, DASHES, STYLE, add_legend
from minilm_jax.analysis.report.sections import Picture, Section, Table, TableFormat, as_csv
from minilm_jax.analysis.runs import LatencyRow
from minilm_jax.analysis.scores import NONE, ScoreRow, format_interval, format_points
from minilm_jax.tasks import committee_scores
from minilm_jax.tasks.committee_scores import LOGIT, MEMBERS, PROBABILITY

COMMITTEE_HEADINGS = (
  'size',
  'subsets',
  'combined by',
  'score × 100',
  'accuracy × 100',
  'negative log-likelihood',
  'calibration error × 100',
  'Brier score',
  'disagreement × 100',
)
COMMITTEE_WORDS = 3
COMMITTEE_CAPTION = (
  'Mean over subsets of the members, [their middle 95%]; the whole committee is one subset and has none. One member: '
  'what one of them scores alone, on average. Negative log-likelihood in nats; calibration error of 15 equal bins; '
  'disagreement: the share of examples that two members put into different classes. Smaller is better in all three.'
)
_METRICS = (
  'accuracy',
  'negative log-likelihood',
  'calibration error',
  'Brier score',
  committee_scores.DISAGREEMENT,
)
_SHARES = ('accuracy', 'calibration error', committee_scores.DISAGREEMENT)  # shown times 100
_NAMES = {MEMBERS: 'one member', LOGIT: 'mean logit', PROBABILITY: 'mean probability'}


def panels(rows: Sequence[CommitteeRow]) -> dict[tuple[str, str], list[CommitteeRow]]:
  """The rows of each committee and split."""
  found: dict[tuple[str, str], list[CommitteeRow]] = {}
  for row in rows:
    found.setdefault((row.committee, row.split), []).append(row)
  return found


def figure(rows: Sequence[CommitteeRow]) -> Figure:
  """Headline score and negative log-likelihood of one committee by its size, each with its band
  over subsets.
  """
  headline = next(row.metric for row in rows if row.headline)
  with mpl.rc_context(STYLE):
    drawn = Figure(figsize=(7, 3.4))
    handles = {}
    for axes, metric, scale in zip(
      drawn.subplots(1, 2), (headline, 'negative log-likelihood'), (100, 1)
    ):
      for (how, name), dash, color in zip(_NAMES.items(), DASHES, COLORS):
        own = sorted(
          (row for row in rows if (row.combined, row.metric) == (how, metric)),
          key=lambda row: row.size,
        )
        sizes, mean, low, high = (
          [getattr(row, field) * (1 if field == 'size' else scale) for row in own]
          for field in ('size', 'mean', 'low', 'high')
        )
        if how != MEMBERS:
          low, high = (
            [middle if math.isnan(end) else end for end, middle in zip(ends, mean)]
            for ends in (low, high)
          )
          axes.fill_between(sizes, low, high, color=color, alpha=0.15, linewidth=0)
        (handles[name],) = axes.plot(sizes, mean, dash, color=color, marker='o', markersize=3)
      axes.set_xlabel('members')
      axes.set_ylabel(f'{metric} × 100' if scale == 100 else f'{metric} (nats)')
      axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    add_legend(drawn, handles, ncols=3)
  return drawn


def committee_cells(rows: Sequence[CommitteeRow]) -> list[list[str]]:
  """The cells under `COMMITTEE_HEADINGS` of one committee: a line a size and way."""
  by = {(row.size, row.combined, row.metric): row for row in rows}
  headline = next(row.metric for row in rows if row.headline)
  lines = []
  for size in sorted({row.size for row in rows}):
    for how, name in _NAMES.items():
      own = [
        by[size, how, metric] if (size, how, metric) in by else None
        for metric in (headline, *_METRICS)
      ]
      first = own[0]
      if first is not None:
        lines.append(
          [
            str(size),
            f'{first.subsets}{"" if first.every else " drawn"}',
            name,
            *(scores.NONE if one is None else _cell(one) for one in own),
          ]
        )
  return lines


def _cell(row: CommitteeRow) -> str:
  if row.headline or row.metric in _SHARES:
    return scores.format_interval(row.mean, row.low, row.high, '.1f', 100)
  return scores.format_interval(row.mean, row.low, row.high, '.3f')


def committee_sentence(rows: Sequence[CommitteeRow]) -> str:
  """What the whole committee scores, against its members."""
  first = rows[0]
  whole = {row.combined: row for row in rows if row.headline and row.size == first.members}
  said = ' and '.join(
    f'{scores.format_points(whole[how].mean)} by the {_NAMES[how]}' for how in (PROBABILITY, LOGIT)
  )
  heads = f' with {", ".join(map(str, first.heads))} heads' if max(first.heads) > 1 else ''
  return (
    f'{first.committee}: on {first.task}, {first.examples:,} {first.split} examples, {first.members} members'
    f'{heads} reach {whole[LOGIT].metric} {said}; one of them alone {scores.format_points(whole[MEMBERS].mean)} on '
    'average.'
  )


def committee_sections(rows: Sequence[CommitteeRow], drawn: Mapping[str, str]) -> Iterator[Section]:
  """Yields a committee and split each, nothing without committees.

  Args:
    rows: of `committee_study.read_committee_rows`.
    drawn: `<svg>` elements by the names of `figures`.
  """
  for number, panel in enumerate(panels(rows).values(), 1):
    yield Section(
      'Committees' if number == 1 else '',
      text=[committee_sentence(panel)],
      figures=[Picture(drawn[f'committee-{number}'])],
      table=Table(COMMITTEE_HEADINGS, COMMITTEE_WORDS, committee_cells(panel), COMMITTEE_CAPTION),
    )


def figures(rows: Sequence[CommitteeRow]) -> dict[str, Figure]:
  """A figure a committee and split, by the name of its files."""
  return {f'committee-{number}': figure(own) for number, own in enumerate(panels(rows).values(), 1)}


GAP_TITLES = {
  SIZE: 'The gap and the size of the pre-training set',
  OVERLAP: 'The gap and token overlap',
}
GAP_FIGURES = {
  SIZE: 'Scores pre-trained less from scratch by the tokens of the pre-training set, pads not counted, with the 95% '
  'interval over seeds of fine-tuning. Point at a dot to read what it is.',
  OVERLAP: 'The same by the share of the running words of the task’s training texts that the pre-training set has, '
  'in sets of one size. What else differs between such sets, their subject above all, is not told apart.',
}


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
    ('seeds', lambda verdict: str(verdict.seeds)),
    ('constant prediction', lambda verdict: str(verdict.collapsed)),
    ('of what', lambda verdict: verdict.of or NONE),
  ),
  (
    'Points of the headline score, paired by seed of fine-tuning; the rules are those at the head of '
    'configs/paper2_data_sizes.py. Collapsed: members that gave one answer to everything; they are counted and kept.'
  ),
)

MATCH_FORMAT = TableFormat(
  3,
  (
    ('task', lambda match: match.task),
    ('rival', lambda match: match.rival),
    ('at the same', lambda match: match.cost),
    ('committee of', lambda match: f'{match.members} of {match.of}'),
    ('its cost over the rival’s', lambda match: f'{match.ratio:.2f}'),
    ('committee', lambda match: format_points(match.committee)),
    ('rival', lambda match: format_points(match.theirs)),
    (
      'difference [95% interval]',
      lambda match: format_interval(match.difference, match.low, match.high),
    ),
    ('seeds', lambda match: str(match.seeds)),
  ),
  (
    'Scores times 100. The committee is cut to the size whose cost is nearest to the rival’s: 1.00 is a match, '
    'and where it is far from 1 there is none. The interval is over seeds of fine-tuning.'
  ),
)

LATENCY_FORMAT = TableFormat(
  1,
  (
    ('answers', lambda row: row.name),
    ('batch', lambda row: str(row.batch)),
    ('ms, median [95% interval]', lambda row: f'{row.median:.3f} [{row.low:.3f}, {row.high:.3f}]'),
    ('p95', lambda row: f'{row.p95:.3f}'),
    ('to the member', lambda row: f'{row.over_member:.2f}'),
    ('heads', lambda row: str(row.members * row.heads)),
    ('depth', lambda row: str(row.depth)),
    ('parameters', lambda row: f'{row.parameters:,}'),
    ('MFLOPs a row', lambda row: f'{row.flops / 1e6:,.1f}'),
  ),
  (
    'Milliseconds from token ids to probabilities, with fresh weights; contestants take turns. Heads: of all '
    'members. Depth: blocks and convolutions that must run one after another.'
  ),
)

SLOPE_FORMAT = TableFormat(
  2,
  (
    ('task', lambda slope: slope.series),
    ('comparison', lambda slope: slope.comparison),
    ('runs', lambda slope: str(slope.points)),
    ('levels', lambda slope: str(slope.levels)),
    ('seeds', lambda slope: str(slope.seeds) if slope.seeds else NONE),
    ('slope [95% interval]', lambda slope: format_interval(slope.slope, slope.low, slope.high)),
    ('note', lambda slope: slope.note or NONE),
  ),
  (
    'Least squares through the runs: points of score (times 100) for twice the tokens, or for one point more of '
    'overlap. The interval resamples seeds of fine-tuning, runs of one size and, of several tasks, tasks.'
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
  'Times 100, paired by seed where both arms have the same. A star: from scratch is that of another run.',
)


@dataclasses.dataclass(frozen=True)
class Paper2Study:
  """Numbers of a report on paper 2: committees, latencies, claims and gaps."""

  committees: Sequence[CommitteeRow]
  latencies: Sequence[LatencyRow]
  statement: ClaimResults
  gaps: GapStudy


def study_paper2(
  run_paths: Mapping[str, epath.Path],
  failed: Mapping[str, str],
  curves: Sequence[LossCurve],
  score_rows: Sequence[ScoreRow],
  draws: int,
) -> Paper2Study:
  """Returns the numbers on paper 2 in these runs.

  Args:
    run_paths: runs by name.
    failed: failed points of a sweep, with the reason.
    curves: loss curves of the pre-training runs.
    score_rows: rows of the main table of scores.
    draws: number of resamples for each interval.
  """
  return Paper2Study(
    committee_study.read_committee_rows(run_paths),
    runs.read_latencies(run_paths),
    claims.find_verdicts(run_paths, failed, curves),
    pretraining_gap.find_gaps(run_paths, score_rows, draws),
  )


def make_files(study: Paper2Study) -> tuple[dict[str, bytes], dict[str, str]]:
  """Returns the tables and figures of the gap that have rows, and its `<svg>` elements by name."""
  contents, pictures = scaling_figures.encode_figures(
    (f'gap-{axis}', scaling_figures.gaps([p for p in study.gaps.points if p.axis == axis]))
    for axis in dict.fromkeys(point.axis for point in study.gaps.points)
  )
  for name, kind, rows in (
    ('committees', CommitteeRow, study.committees),
    ('latency', LatencyRow, study.latencies),
    ('verdicts', Verdict, study.statement.verdicts),
    ('matches', Match, study.statement.matched),
    ('gap', Gap, study.gaps.points),
  ):
    if rows:
      contents[f'{name}.csv'] = as_csv(kind, rows)
  if study.gaps.points:
    contents['slopes.csv'] = as_csv(Slope, study.gaps.slopes)
  return contents, pictures


def claim_sections(statement: ClaimResults) -> Iterator[Section]:
  """Yields the verdicts with a sentence each, and the runs that are in none of them; nothing
  without verdicts.
  """
  if not statement.verdicts:
    return
  yield Section(
    'What becomes of the paper’s claims',
    items=list(map(claim_sentence, statement.verdicts)),
    table=CLAIM_FORMAT.fill(statement.verdicts),
  )
  if statement.excluded:
    yield Section(text=['In none of these:'], items=statement.excluded)


def claim_sentence(verdict: Verdict) -> str:
  """Returns a claim, its verdict, the statistic with its interval, and what is missing."""
  text = (
    f'{verdict.claim}. {CLAIMS[verdict.claim]} {verdict.verdict[0].upper()}{verdict.verdict[1:]}'
  )
  if math.isfinite(verdict.value):
    ends = (
      f' (95% interval {format_points(verdict.low, "+")} to {format_points(verdict.high, "+")})'
      if math.isfinite(verdict.low)
      else ''
    )
    text += (
      f': {verdict.statistic} {format_points(verdict.value, "+")} points{ends}, n = {verdict.seeds}'
    )
  if math.isfinite(verdict.latency):
    text += f'; latency {verdict.latency:.2f} of the deep one ({verdict.latency_low:.2f} to {verdict.latency_high:.2f})'
  return f'{text}. Missing: {verdict.missing}.' if verdict.missing else f'{text}.'


def match_sections(matches: Sequence[Match]) -> Iterator[Section]:
  """Yields the committee at equal costs; nothing without a committee and a rival."""
  if matches:
    yield Section(
      'The committee at the same cost',
      table=MATCH_FORMAT.fill(matches),
    )


def latency_sections(rows: Sequence[LatencyRow]) -> Iterator[Section]:
  """Yields a table a run; nothing without latencies."""
  for number, name in enumerate(dict.fromkeys(row.run for row in rows)):
    of_run = [row for row in rows if row.run == name]
    yield Section(
      '' if number else 'Latency',
      text=[f'{name}: {of_run[0].calls} answers each, {of_run[0].machine}'],
      table=LATENCY_FORMAT.fill(of_run),
    )


def gap_sections(study: GapStudy, pictures: Mapping[str, str]) -> Iterator[Section]:
  """Yields the axes that have points: slopes with a figure, then the points.

  Args:
    study: of `pretraining_gap.find_gaps`.
    pictures: `<svg>` elements by name.
  """
  for axis, title in GAP_TITLES.items():
    points_of_axis = [point for point in study.points if point.axis == axis]
    slopes = [slope for slope in study.slopes if slope.axis == axis]
    if not points_of_axis:
      continue
    drawn = (
      [Picture(pictures[f'gap-{axis}'], GAP_FIGURES[axis])] if f'gap-{axis}' in pictures else []
    )
    yield Section(
      title,
      items=list(map(slope_sentence, slopes)),
      figures=drawn,
      table=SLOPE_FORMAT.fill(slopes) if slopes else None,
    )
    yield Section(table=GAP_FORMAT.fill(points_of_axis))
  if study.left_out:
    yield Section('The gap: left out', items=study.left_out)


def slope_sentence(slope: Slope) -> str:
  """What a line says, and whether its interval tells it from none."""
  unit = 'a doubling of the pre-training set' if slope.axis == SIZE else 'a point more of overlap'
  text = f'{slope.series}, {slope.comparison}: {format_points(slope.slope, "+")} points for {unit}'
  if not math.isfinite(slope.low):
    return f'{text}, over {slope.levels} levels; no interval: {slope.note}.'
  text += f' (95% interval {format_points(slope.low, "+")} to {format_points(slope.high, "+")}, {slope.levels} levels)'
  return f'{text}; the interval contains zero.' if slope.low <= 0 <= slope.high else f'{text}.'
