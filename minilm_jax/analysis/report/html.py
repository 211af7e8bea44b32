"""Renders a report as one HTML file without scripts, fonts or styles from the network.

A page starts with its answers; figures, tables and footnotes follow. All text of runs is escaped.
"""

import html
import re
from collections.abc import Sequence

from minilm_jax.analysis.report.sections import Answer, Section, Table, split_cell
from minilm_jax.core.errors import sanitize

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --faint: #5f6670; --line: #d9dce1; --flag: #a33b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --paper: #15171a; --faint: #9aa2ad; --line: #353a41; --flag: #ff9d66; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p, blockquote { max-width: 46rem; margin: .5rem 0; } a { color: inherit; }
.answers { list-style: none; margin: 0; padding: 0; border-top: 1px solid var(--line); }
.answers li { display: grid; grid-template-columns: 5fr 3fr 6fr; gap: 0 1.2rem; padding: .45rem 0;
  border-bottom: 1px solid var(--line); }
.answers strong::first-letter { text-transform: uppercase; }
.caption, .notes { color: var(--faint); font-size: .9rem; } .notes { padding-left: 1.6rem; }
.notes li { max-width: 46rem; margin: .25rem 0; } sup { font-size: .875rem; line-height: 0; }
.box { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; }
th.word, td.word { text-align: left; } .long { white-space: normal; min-width: 12rem; max-width: 28rem; }
.interval { white-space: nowrap; } .flag { color: var(--flag); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
figure { margin: 0; max-width: 32rem; } figure svg { width: 100%; height: auto; }
.gallery { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 2rem;
  grid-auto-flow: row dense; }
.gallery .wide { grid-column: 1 / -1; }
summary { cursor: pointer; } details { margin: .5rem 0; }
@media (max-width: 40rem) {
  body { padding: .75rem; } .answers li { grid-template-columns: 1fr; } h1 { font-size: 1.3rem; }
}
"""
MAX_OPEN_ROWS = 12  # longer tables and lists of answers are folded
_MAX_NUMBER_CHARS = 40  # cells with longer lines hold words
_MAX_WORD_CHARS = 30  # longer words wrap
_FLAGS = ('incomplete', 'empty', 'unfinished', 'gains nothing')


def render(
  title: str, answers: Sequence[Answer], sections: Sequence[Section], preregistration: str = ''
) -> str:
  """Returns a page: answers, figures, other sections, footnotes.

  Args:
    answers: one line each; those after the first `MAX_OPEN_ROWS` are folded.
    preregistration: text of a recipe, shown folded after the answers.
  """
  notes: dict[str, int] = {}
  parts = [f'<h1>{escape(title)}</h1>', _answer_list(answers[:MAX_OPEN_ROWS], notes)]
  if len(answers) > MAX_OPEN_ROWS:
    folded = answers[MAX_OPEN_ROWS:]
    parts.append(_fold(f'{len(folded)} more answers', _answer_list(folded, notes)))
  if preregistration:
    parts.append(_fold('Preregistration', _quote(preregistration)))
  gallery = [_section(section, notes) for section in sections if section.figures]
  if gallery:
    parts.append('<div class="gallery">\n' + '\n'.join(gallery) + '\n</div>')
  parts += [_section(section, notes) for section in sections if not section.figures]
  if notes:
    parts.append(_footnotes(notes))
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
    f'<style>{STYLE}</style>\n</head>\n<body>\n' + '\n'.join(parts) + '\n</body>\n</html>\n'
  )


def _answer_list(answers: Sequence[Answer], notes: dict[str, int]) -> str:
  lines = (
    f'<li><span>{escape(answer.question)}</span>\n<strong>{escape(answer.verdict)}</strong>\n'
    f'<span>{_keep_intervals(answer.number)}{_marks(answer.notes, notes)}</span></li>'
    for answer in answers
  )
  return '<ul class="answers">\n' + '\n'.join(lines) + '\n</ul>'


def _keep_intervals(text: str) -> str:
  """Returns escaped text without line breaks inside intervals."""
  return re.sub(r'\[[^]]{1,30}\]', r'<span class="interval">\g<0></span>', escape(text))


def _section(section: Section, notes: dict[str, int]) -> str:
  parts = [f'<h2>{escape(section.title)}</h2>']
  if section.text:
    parts.append(f'<p>{escape(section.text)}</p>')
  svgs = [svg for drawing in section.figures.values() for svg in drawing.page_svgs]
  if svgs:
    parts.append(_caption(section.caption, section.notes, notes))
    figures = '\n'.join(f'<figure>{svg}</figure>' for svg in svgs)
    parts.append(f'<div class="figures">{figures}</div>')
  if section.table is not None:
    parts.append(_caption(section.table.caption, section.table.notes, notes))
    table = _table(section.table)
    rows = len(section.table.rows)
    parts.append(_fold(f'Table of {rows} rows', table) if rows > MAX_OPEN_ROWS else table)
  kind = ' class="wide"' if len(svgs) > 1 else ''
  return f'<section{kind}>\n' + '\n'.join(filter(None, parts)) + '\n</section>'


def _caption(text: str, details: Sequence[str], notes: dict[str, int]) -> str:
  if not text and not details:
    return ''
  return f'<p class="caption">{escape(text)}{_marks(details, notes)}</p>'


def _marks(details: Sequence[str], notes: dict[str, int]) -> str:
  """Returns links to footnotes; equal footnotes share a number, and the first link has an id."""
  marks = []
  for detail in details:
    anchor = '' if detail in notes else f' id="mark-{len(notes) + 1}"'
    number = notes.setdefault(detail, len(notes) + 1)
    marks.append(f'<sup><a href="#note-{number}"{anchor}>{number}</a></sup>')
  return (' ' if marks else '') + ' '.join(marks)


def _footnotes(notes: dict[str, int]) -> str:
  lines = (
    f'<li id="note-{number}">{escape(detail)} <a href="#mark-{number}">↩</a></li>'
    for detail, number in notes.items()
  )
  return '<h2>Notes</h2>\n<ol class="notes">\n' + '\n'.join(lines) + '\n</ol>'


def _fold(title: str, content: str) -> str:
  return f'<details><summary>{escape(title)}</summary>\n{content}</details>'


def _quote(text: str) -> str:
  """Returns paragraphs as a quotation; indented ones keep their line breaks."""
  paragraphs = (
    f'<pre class="box">{escape(paragraph)}</pre>'
    if all(line.startswith(' ') for line in paragraph.splitlines())
    else f'<p>{escape(paragraph)}</p>'
    for paragraph in text.split('\n\n')
  )
  return '<blockquote>' + '\n'.join(paragraphs) + '</blockquote>'


def _table(table: Table) -> str:
  """Returns a table in a box that scrolls if the page is narrow."""

  def line(tag: str, row: Sequence[str]) -> str:
    kinds = (_cell_kind(cell, column < table.words) for column, cell in enumerate(row))
    flags = (' flag' if cell in _FLAGS or 'collapsed' in cell else '' for cell in row)
    return (
      '<tr>'
      + ''.join(
        f'<{tag} class="{kind}{flag}">{"<br>".join(map(escape, split_cell(cell)))}</{tag}>'
        for cell, kind, flag in zip(row, kinds, flags)
      )
      + '</tr>'
    )

  return (
    '<div class="box"><table>\n'
    f'<thead>{line("th", table.headings)}</thead>\n'
    '<tbody>' + '\n'.join(line('td', row) for row in table.rows) + '</tbody></table></div>'
  )


def _cell_kind(cell: str, is_word: bool) -> str:
  """Returns the CSS classes of a cell; long words wrap."""
  chars = max(map(len, split_cell(cell)))
  if is_word or chars > _MAX_NUMBER_CHARS:
    return 'word long' if chars > _MAX_WORD_CHARS else 'word'
  return 'number'


def escape(text: str) -> str:
  """Returns text without markup and without characters that reorder or hide it."""
  return html.escape(sanitize(text))
