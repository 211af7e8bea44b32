"""Rows as a table: for a reader on the terminal, and for a spreadsheet as CSV."""

import csv
import dataclasses
import io
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import rich.table

from minilm_jax.analysis import cells
from minilm_jax.errors import shown


def as_table(title: str, headings: Sequence[str], words: int, rows: Sequence[Sequence[str]]) -> rich.table.Table:
  """A table whose first columns hold words; a long cell goes on in the next line."""
  table = rich.table.Table(title=title, title_justify='left')
  for number, heading in enumerate(headings):
    table.add_column('\n'.join(cells.broken(heading)), justify='left' if number < words else 'right', overflow='fold')
  for row in rows:
    table.add_row(*('\n'.join(cells.broken(cell)) for cell in row))
  return table


def as_csv(kind: type, rows: Sequence[Any]) -> bytes:
  """A row a line under the names of the fields; a field inside a field is `outer_inner`.

  Several values stand with spaces between, or with `; ` where one has a space itself. Text that a spreadsheet would run
  as a formula has an apostrophe before it; numbers, also negative ones, stay as they are.
  """
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  writer.writerow(_names(kind))
  writer.writerows(list(_values(row)) for row in rows)
  return file.getvalue().encode()


def _names(kind: type, prefix: str = '') -> Iterator[str]:
  for name, inner in typing.get_type_hints(kind).items():
    yield from _names(inner, f'{prefix}{name}_') if dataclasses.is_dataclass(inner) else (prefix + name,)


def _values(row: Any) -> Iterator[Any]:
  for field in dataclasses.fields(row):
    value = getattr(row, field.name)
    if dataclasses.is_dataclass(value):
      yield from _values(value)
    else:
      words = [str(_cell(word)) for word in value] if isinstance(value, tuple) else []
      yield ('; ' if any(' ' in word for word in words) else ' ').join(words) if words else (
          '' if isinstance(value, tuple) else _cell(value))


def _cell(value: Any) -> Any:
  if not isinstance(value, str):
    return value
  return ("'" if value.startswith(('=', '+', '-', '@', '\t', '\r')) else '') + shown(value)
