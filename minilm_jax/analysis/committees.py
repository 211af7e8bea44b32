"""Soft committees on the page: what a committee gains with its size, from the committee.json that each left behind.

Nothing is computed anew. An interval is over subsets of the members there are, as `tasks/subsets.py` says: it is none
for a committee of other members.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import matplotlib as mpl
from etils import epath
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from minilm_jax import run
from minilm_jax.analysis import runs, scores
from minilm_jax.analysis.figures import COLORS, DASHES, STYLE, add_legend
from minilm_jax.analysis.sheets import Picture, Section, Table
from minilm_jax.errors import InputError
from minilm_jax.tasks import subsets
from minilm_jax.tasks.subsets import LOGIT, MEMBERS, PROBABILITY

KIND, STUDY = 'committee', 'committee.json'
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
  subsets.DISAGREEMENT,
)
_SHARES = ('accuracy', 'calibration error', subsets.DISAGREEMENT)  # shown times 100
_NAMES = {MEMBERS: 'one member', LOGIT: 'mean logit', PROBABILITY: 'mean probability'}


@dataclasses.dataclass(frozen=True)
class CommitteeRow(subsets.Line):
  """One number of a committee: a line of its study with the names of committee and task; `heads` are each member's."""

  committee: str
  task: str
  members: int
  heads: tuple[int, ...]
  examples: int


def read_committees(found: Mapping[str, epath.Path]) -> list[CommitteeRow]:
  """The lines of every committee among some runs; none of one that was cut short or has no scores.

  Args:
    found: runs by name, of `runs.find`.

  Raises:
    InputError: a study that is damaged.
  """
  rows = []
  for name, path in found.items():
    if runs.kind(path) != KIND or not (path / STUDY).exists():
      continue
    study = run.read_object(path / STUDY, f'the study of the committee {path}')
    try:
      heads = (
        tuple(study['heads']) if 'heads' in study else (1,) * study['members']
      )  # before there could be several
      rows += [
        CommitteeRow(
          committee=name,
          task=study['task'],
          members=study['members'],
          heads=heads,
          examples=study['examples'][line['split']],
          **{
            field: runs.number(value) if field in ('mean', 'low', 'high') else value
            for field, value in line.items()
          },
        )
        for line in study['lines']
      ]
    except (KeyError, TypeError, ValueError) as error:
      raise InputError(
        f'the study of the committee {path}',
        f'{STUDY} lacks {error}',
        'make the committee again: another version has written this one',
      ) from None
  return rows


def panels(rows: Sequence[CommitteeRow]) -> dict[tuple[str, str], list[CommitteeRow]]:
  """The rows of each committee and split."""
  found: dict[tuple[str, str], list[CommitteeRow]] = {}
  for row in rows:
    found.setdefault((row.committee, row.split), []).append(row)
  return found


def figure(rows: Sequence[CommitteeRow]) -> Figure:
  """Headline score and negative log-likelihood of one committee by its size, each with its band over subsets."""
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
    return scores.with_interval(row.mean, row.low, row.high, '.1f', 100)
  return scores.with_interval(row.mean, row.low, row.high, '.3f')


def committee_sentence(rows: Sequence[CommitteeRow]) -> str:
  """What the whole committee scores, against its members."""
  first = rows[0]
  whole = {row.combined: row for row in rows if row.headline and row.size == first.members}
  said = ' and '.join(
    f'{scores.points(whole[how].mean)} by the {_NAMES[how]}' for how in (PROBABILITY, LOGIT)
  )
  heads = f' with {", ".join(map(str, first.heads))} heads' if max(first.heads) > 1 else ''
  return (
    f'{first.committee}: on {first.task}, {first.examples:,} {first.split} examples, {first.members} members'
    f'{heads} reach {whole[LOGIT].metric} {said}; one of them alone {scores.points(whole[MEMBERS].mean)} on '
    'average.'
  )


def committee_sections(rows: Sequence[CommitteeRow], drawn: Mapping[str, str]) -> Iterator[Section]:
  """Yields a committee and split each, nothing without committees.

  Args:
    rows: of `read`.
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
