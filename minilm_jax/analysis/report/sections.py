"""Parts of a report: answers, tables and sections, and their forms for a terminal and for CSV.

`html.py` renders the same parts for a browser.
"""

import csv
import dataclasses
import io
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import rich.table

from minilm_jax.analysis.number_format import NONE
from minilm_jax.core.errors import sanitize


@dataclasses.dataclass(frozen=True)
class Answer:
  """The answer to one question: a line at the top of a page.

  Attributes:
    notes: statistical details, which a page shows as footnotes.
  """

  question: str
  verdict: str
  number: str = ''
  notes: Sequence[str] = ()

  def __str__(self) -> str:
    number = f': {self.number}' if self.number else ''
    return ' '.join([f'{self.question} {self.verdict}{number}.', *self.notes])


def split_cell(cell: str) -> list[str]:
  """Returns the lines of a cell: it breaks at '; ' and before an interval.

  >>> split_cell('71.0 ± 1.0 (n = 3) [68.5, 73.5]; rate 0.0002')
  ['71.0 ± 1.0 (n = 3)', '[68.5, 73.5]', 'rate 0.0002']
  """
  return cell.replace(' [', '; [').split('; ')


@dataclasses.dataclass(frozen=True)
class Table:
  """Cells under headings. A cell breaks into lines as `split_cell` does.

  Attributes:
    headings: one a column.
    words: number of first columns that hold words; the others hold numbers.
    notes: statistical details, which a page shows as footnotes.
  """

  headings: Sequence[str]
  words: int
  rows: Sequence[Sequence[str]]
  caption: str = ''
  notes: Sequence[str] = ()

  def without_empty_columns(self) -> 'Table':
    """Returns the table without its empty columns."""
    columns = [
      column
      for column in range(len(self.headings))
      if any(row[column] not in (NONE, '') for row in self.rows)
    ]
    return dataclasses.replace(
      self,
      headings=[self.headings[column] for column in columns],
      words=sum(column < self.words for column in columns),
      rows=[[row[column] for column in columns] for row in self.rows],
    )


@dataclasses.dataclass(frozen=True)
class TableFormat:
  """Columns of a table, each a heading and the function from a row to its cell.

  Attributes:
    caption, notes: as in `Table`.
  """

  words: int
  columns: Sequence[tuple[str, Callable[[Any], str]]]
  caption: str = ''
  notes: Sequence[str] = ()

  def fill(self, rows: Iterable[Any], notes: Sequence[str] = ()) -> Table:
    """Returns the table of these rows, with further notes."""
    return Table(
      [heading for heading, _ in self.columns],
      self.words,
      [[cell(row) for _, cell in self.columns] for row in rows],
      self.caption,
      [*self.notes, *notes],
    )


@dataclasses.dataclass(frozen=True)
class Section:
  """One part of a report: text, and figures or a table. Nothing in it is escaped yet.

  Attributes:
    figures: each `figures.Drawing` by the name of its files; only a browser shows them.
    notes: statistical details of the figures, which a page shows as footnotes.
  """

  title: str
  text: str = ''
  figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  caption: str = ''
  notes: Sequence[str] = ()
  table: Table | None = None


def list_section(title: str, heading: str, lines: Sequence[str]) -> Iterator[Section]:
  """Yields a table of one column, or nothing without lines."""
  if lines:
    yield Section(title, table=Table([heading], 1, [[line] for line in lines]))


def encode_figures(sections: Iterable[Section]) -> dict[str, bytes]:
  """Returns the figures of sections as files, an SVG and a PNG each, by their names."""
  contents = {}
  for section in sections:
    for name, drawing in section.figures.items():
      png = drawing.to_png()  # before the SVG, which frees the bitmap that texts refer to
      contents |= {f'{name}.svg': drawing.svg.encode(), f'{name}.png': png}
  return contents


def to_terminal(section: Section) -> list[rich.table.Table | str]:
  """Returns the table of a section under its title, then its text."""
  parts: list[rich.table.Table | str] = []
  if section.table is not None:
    table = rich.table.Table(title=section.title, title_justify='left')
    for column, heading in enumerate(section.table.headings):
      table.add_column(
        '\n'.join(split_cell(heading)),
        overflow='fold',
        justify='left' if column < section.table.words else 'right',
      )
    for row in section.table.rows:
      table.add_row(*('\n'.join(split_cell(cell)) for cell in row))
    parts.append(table)
  else:
    parts.append(section.title)
  return [*parts, section.text] if section.text else parts


def as_csv(kind: type, rows: Sequence[Any]) -> bytes:
  """Returns the rows as CSV under the names of the fields; a nested field is `outer_inner`.

  Spaces separate the values of a tuple, or `; ` if a value contains a space. An apostrophe precedes
  text that a spreadsheet would run as a formula.
  """
  return _write_csv(_list_columns(kind), map(_list_values, rows))


def columns_as_csv(columns: Mapping[str, Callable[[Any], Any]], rows: Iterable[Any]) -> bytes:
  """Returns the rows as CSV with columns by heading, each a function of the row."""
  cells = ([_format_value(value(row)) for value in columns.values()] for row in rows)
  return _write_csv(columns, cells)


def _write_csv(headings: Iterable[str], rows: Iterable[Iterable[Any]]) -> bytes:
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  writer.writerow(headings)
  writer.writerows(rows)
  return file.getvalue().encode()


def _list_columns(kind: type, prefix: str = '') -> Iterator[str]:
  for name, inner in typing.get_type_hints(kind).items():
    yield from (
      _list_columns(inner, f'{prefix}{name}_')
      if isinstance(inner, type) and dataclasses.is_dataclass(inner)
      else (prefix + name,)
    )


def _list_values(row: Any) -> Iterator[Any]:
  for field in dataclasses.fields(row):
    value = getattr(row, field.name)
    if dataclasses.is_dataclass(value):
      yield from _list_values(value)
    else:
      yield _format_value(value)


def _format_value(value: Any) -> Any:
  if isinstance(value, tuple):
    words = [str(_format_value(word)) for word in value]
    return ('; ' if any(' ' in word for word in words) else ' ').join(words)
  if isinstance(value, str):
    return ("'" if value.startswith(('=', '+', '-', '@', '\t', '\r')) else '') + sanitize(value)
  return value
