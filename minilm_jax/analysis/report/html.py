"""The HTML page of a report: one file without scripts, fonts or styles from the network.

All text of runs is escaped.
"""

import dataclasses
import html
from collections.abc import Iterator, Mapping, Sequence

from minilm_jax.analysis.report import sections, tables
from minilm_jax.analysis.report.sections import Picture, Section, Table
from minilm_jax.analysis.runs import RunRow
from minilm_jax.analysis.scores import Average, ScoreRow, select_main, select_phenomena
from minilm_jax.core.errors import sanitize

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --faint: #5f6670; --line: #d9dce1; --flag: #a33b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --paper: #15171a; --faint: #9aa2ad; --line: #353a41; --flag: #ff9d66; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p, ul { max-width: 44rem; } .faint { color: var(--faint); font-size: .9rem; } ul { padding-left: 1.2rem; }
.wide { overflow-x: auto; } pre { font-size: .85rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; }
th.word, td.word { text-align: left; } .flag { color: var(--flag); }
figure { margin: 0; } figure svg { max-width: 100%; height: auto; }
summary { cursor: pointer; } details { margin: .5rem 0; } .lead { font-size: 1.05rem; }
"""
FOLDED = 9  # sentences about scores, one a task and checkpoint, above which they are folded
FLAGGED = ('incomplete', 'empty', 'unfinished', 'gains nothing')
# The pictures of the page in order: the beginning of their names, the heading above them, their
# caption.
PICTURES = (
  (
    'learning',
    'Fine-tuning',
    'Scores times 100 by epoch on the held-out part or, without one, on the reported '
    'split: mean over seeds, with its 95% interval.',
  ),
  ('training', 'Fine-tuning loss', 'The training loss of the same runs, by epoch.'),
  (
    'trajectory',
    'Along pre-training',
    'Headline scores times 100 by the step of the checkpoint; dotted: majority.',
  ),
  (
    'confusion',
    'Confusion',
    'Examples by true class and answer, summed over seeds; the darker, the larger the share '
    'of the true class.',
  ),
)


def render(
  scores: Sequence[ScoreRow],
  averages: Sequence[Average],
  runs: Sequence[RunRow],
  pictures: Mapping[str, str],
  lead: tuple[str, str] = ('', ''),
  studies: Sequence[Section] = (),
) -> str:
  """Returns the whole page.

  Args:
    scores, averages, runs: rows of its tables; without runs it is about a logged table.
    pictures: `<svg>` elements by name, each of which may be missing.
    lead: a question and its answer, above everything else.
    studies: sections of studies of several runs, before the scores.
  """
  parts = ['<h1>Tiny language models: what these runs found</h1>']
  if any(lead):
    parts.append(f'<p class="lead"><strong>{escape(lead[0])}</strong> {escape(lead[1])}</p>')
  if runs:
    parts += [to_html(_sentences(tables.sentences(scores))), _count_runs(runs)]
  sections = [*studies, *_scores(scores, averages, pictures), *_pictures(pictures)]
  if runs:
    without = () if 'loss' in pictures else ('No run has logged a loss yet.',)
    sections += [
      Section(
        'Loss', text=without, figures=[Picture(pictures['loss'])] if 'loss' in pictures else ()
      ),
      Section('Runs', table=tables.RUN_FORMAT.fill(runs)),
    ]
  return frame('Report', [*parts, *map(to_html, sections)])


def frame(title: str, parts: Sequence[str]) -> str:
  """Returns a whole page of these parts of HTML, in colours that follow the reader's choice of
  light or dark.
  """
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
    f'<style>{STYLE}</style>\n</head>\n<body>\n' + '\n'.join(parts) + '\n</body>\n</html>\n'
  )


def to_html(section: Section) -> str:
  """Returns a section as HTML, all text escaped."""
  parts = (
    []
    if section.folded or not section.title
    else [f'<h{section.level}>{escape(section.title)}</h{section.level}>']
  )
  parts += map(_paragraph, section.text)
  if section.items:
    parts.append(
      '<ul>\n' + '\n'.join(f'<li>{escape(text)}</li>' for text in section.items) + '\n</ul>'
    )
  for picture in section.figures:
    if picture.caption:
      parts.append(f'<p class="faint">{escape(picture.caption)}</p>')
    parts.append(f'<figure>{picture.svg}</figure>')
  if section.table is not None:
    parts.append(_table(section.table))
  inside = '\n'.join(parts)
  return (
    f'<details><summary>{escape(section.title)}</summary>\n{inside}</details>'
    if section.folded
    else inside
  )


def _paragraph(text: str) -> str:
  preformatted = all(line.startswith(' ') for line in text.splitlines())
  return f'<pre class="wide">{escape(text)}</pre>' if preformatted else f'<p>{escape(text)}</p>'


def _table(table: Table) -> str:
  """Returns a table under its caption; it scrolls where the page is narrow."""

  def line(tag: str, row: Sequence[str]) -> str:
    kinds = ('word' if column < table.words else 'number' for column in range(len(row)))
    flags = (' flag' if cell in FLAGGED or 'collapsed' in cell else '' for cell in row)
    return (
      '<tr>'
      + ''.join(
        f'<{tag} class="{kind}{flag}">{_lines(cell)}</{tag}>'
        for cell, kind, flag in zip(row, kinds, flags)
      )
      + '</tr>'
    )

  return (
    f'<p class="faint">{escape(table.caption)}</p>\n<div class="wide"><table>\n'
    f'<thead>{line("th", table.headings)}</thead>\n'
    '<tbody>' + '\n'.join(line('td', row) for row in table.rows) + '</tbody></table></div>'
  )


def _sentences(texts: Sequence[str]) -> Section:
  """Returns a list, folded where it would hide the sections after it."""
  return Section(
    f'{len(texts)} scores in words' if len(texts) > FOLDED else '',
    items=texts,
    folded=len(texts) > FOLDED,
  )


def _count_runs(runs: Sequence[RunRow]) -> str:
  devices = sorted({row.devices for row in runs if row.devices})
  unfinished = sum(row.state != 'finished' for row in runs)
  return (
    f'<p class="faint">{len(runs)} {"run" if len(runs) == 1 else "runs"}'
    + (f', of which <span class="flag">{unfinished} not finished</span>' if unfinished else '')
    + (f'. Run on {escape("; ".join(devices))}' if devices else '')
    + '.</p>'
  )


def _scores(
  scores: Sequence[ScoreRow], averages: Sequence[Average], pictures: Mapping[str, str]
) -> Iterator[Section]:
  rows, phenomena = select_main(scores), select_phenomena(scores)
  if rows:
    table = tables.SCORE_FORMAT.fill(rows)
    caption = ' '.join(part for part in (tables.protocol(scores), table.caption) if part)
    yield Section(
      'Scores',
      figures=[Picture(pictures['scores'])] if 'scores' in pictures else (),
      table=dataclasses.replace(table, caption=caption),
    )
  if averages:
    yield Section('Averages', table=tables.AVERAGE_FORMAT.fill(averages))
  if phenomena:
    yield Section('Phenomena', table=tables.PHENOMENON_FORMAT.fill(phenomena))


def _pictures(pictures: Mapping[str, str]) -> Iterator[Section]:
  for beginning, heading, caption in PICTURES:
    drawn = [picture for name, picture in pictures.items() if name.startswith(beginning)]
    if drawn:
      yield Section(heading, figures=[Picture(drawn[0], caption), *map(Picture, drawn[1:])])


def _lines(cell: str) -> str:
  return '<br>'.join(map(escape, sections.split_cell(cell)))


def escape(text: str) -> str:
  """Text that is no markup, and that is read in the order in which it stands."""
  return html.escape(sanitize(text))
