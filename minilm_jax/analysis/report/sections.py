"""Sections of a report: tables declared as columns, and their forms for a terminal and for CSV.

`html.py` has the form for a browser.
"""

import csv
import dataclasses
import io
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import rich.table

from minilm_jax.analysis.scores import NONE
from minilm_jax.core.errors import sanitize


def split_cell(cell: str) -> list[str]:
  """Returns the lines of a cell: it breaks at '; ' and before an interval.

  >>> split_cell('71.0 ± 1.0 (n = 3) [68.5, 73.5]; rate 0.0002')
  ['71.0 ± 1.0 (n = 3)', '[68.5, 73.5]', 'rate 0.0002']
  """
  return cell.replace(' [', '; [').split('; ')


@dataclasses.dataclass(frozen=True)
class Table:
  """Cells under headings: the first `words` columns hold words, the others numbers.

  A cell breaks into lines at '; ' and before an interval (`split_cell`).
  """

  headings: Sequence[str]
  words: int
  rows: Sequence[Sequence[str]]
  caption: str = ''

  def without_empty_columns(self) -> 'Table':
    """Returns the table without the columns that hold nothing."""
    columns = [
      column
      for column in range(len(self.headings))
      if any(row[column] not in (NONE, '') for row in self.rows)
    ]
    return Table(
      [self.headings[column] for column in columns],
      sum(column < self.words for column in columns),
      [[row[column] for column in columns] for row in self.rows],
      self.caption,
    )


@dataclasses.dataclass(frozen=True)
class TableFormat:
  """Columns of a table, each a heading and the function from a row to its cell.

  Attributes:
    words: number of first columns that hold words.
    columns: headings and functions from a row to a cell.
    caption: text above the table.
  """

  words: int
  columns: Sequence[tuple[str, Callable[[Any], str]]]
  caption: str = ''

  def fill(self, rows: Iterable[Any]) -> Table:
    """Returns the table of these rows."""
    return Table(
      [heading for heading, _ in self.columns],
      self.words,
      [[cell(row) for _, cell in self.columns] for row in rows],
      self.caption,
    )


@dataclasses.dataclass(frozen=True)
class Picture:
  """A figure of a page: an `<svg>` element and its caption."""

  svg: str
  caption: str = ''


@dataclasses.dataclass(frozen=True)
class Section:
  """One part of a report, in the order in which it is shown. Nothing in it is escaped yet.

  Attributes:
    title: the heading; '' continues the section before.
    text: paragraphs; one whose lines all begin with a space is shown as it stands.
    items: sentences of a list.
    figures: for a browser alone.
    table: the numbers.
    level: of the heading.
    folded: does a browser show the title alone, until a reader opens it?
  """

  title: str = ''
  text: Sequence[str] = ()
  items: Sequence[str] = ()
  figures: Sequence[Picture] = ()
  table: Table | None = None
  level: int = 2
  folded: bool = False


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
  elif section.title:
    parts.append(section.title)
  return [*parts, *section.text, *section.items]


def as_csv(kind: type, rows: Sequence[Any]) -> bytes:
  """Returns the rows as CSV under the names of the fields; a nested field is `outer_inner`.

  Spaces separate the values of a tuple, or `; ` if a value contains a space. An apostrophe precedes
  text that a spreadsheet would run as a formula.
  """
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  writer.writerow(_names(kind))
  writer.writerows(list(_values(row)) for row in rows)
  return file.getvalue().encode()


def _names(kind: type, prefix: str = '') -> Iterator[str]:
  for name, inner in typing.get_type_hints(kind).items():
    yield from (
      _names(inner, f'{prefix}{name}_')
      if isinstance(inner, type) and dataclasses.is_dataclass(inner)
      else (prefix + name,)
    )


def _values(row: Any) -> Iterator[Any]:
  for field in dataclasses.fields(row):
    value = getattr(row, field.name)
    if dataclasses.is_dataclass(value):
      yield from _values(value)
    else:
      yield _join(value) if isinstance(value, tuple) else _cell(value)


def _join(values: tuple[Any, ...]) -> str:
  words = [str(_cell(value)) for value in values]
  return ('; ' if any(' ' in word for word in words) else ' ').join(words)


def _cell(value: Any) -> Any:
  if not isinstance(value, str):
    return value
  return ("'" if value.startswith(('=', '+', '-', '@', '\t', '\r')) else '') + sanitize(value)
