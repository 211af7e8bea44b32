"""Where minimal pairs come from: BLiMP as it is published, as TFDS has prepared it, or any table of that form.

A table has the columns `sentence_good` and `sentence_bad`, and may name a paradigm (`paradigm` or `UID`) and a
phenomenon (`phenomenon` or `linguistics_term`). What is made of the pairs is left to `minimal_pairs`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from etils import epath

from minilm_jax import shape
from minilm_jax.errors import InputError, nearest
from minilm_jax.language import documents, files

EVERYTHING = 'all'  # no phenomenon may have this name: it is the mean over all

_TABLES = tuple(form for form in files.FORMS if form not in ('txt', 'json'))  # a .json beside tables tells of them
_SENTENCES = ('sentence_good', 'sentence_bad')
_PARADIGM, _PHENOMENON = ('paradigm', 'UID'), ('phenomenon', 'linguistics_term')  # the first column that is there


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two sentences that differ in one respect; of the first speakers say that it is good."""

  good: str
  bad: str
  paradigm: str
  phenomenon: str


def read(source: epath.PathLike) -> list[Pair]:
  """The pairs of a .jsonl, .csv, .tsv or .parquet, of a folder of these, or of the `blimp/*` in a data_dir of TFDS.

  A paradigm without a name has that of its file, a phenomenon that of its paradigm.

  Raises:
    InputError: nothing is there, a file is damaged or empty, a column is missing, or a sentence is no text.
  """
  return [pair for table, rows in _tables(source)[1] for pair in _pairs(table, rows)]


def name(source: epath.PathLike) -> str:
  """What a set is called: `blimp` in a data_dir of TFDS, else as its file or folder, without what tells the form.

  Raises:
    InputError: nothing is there.
  """
  return _tables(source)[0]


def _tables(source: epath.PathLike) -> tuple[str, list[tuple[str, Iterator[dict[str, Any]]]]]:
  """The name of a set, and its tables by the names of their files."""
  path = epath.Path(source).expanduser()
  asked = f'minimal pairs in {source}'
  if not str(source) or not path.exists():
    raise InputError(asked, 'no such file or folder', f'give a table with {" and ".join(_SENTENCES)}, a folder of '
                     'tables, or a data_dir where TFDS prepared blimp')
  if not path.is_dir():
    return _stem(path), [(_stem(path), documents.table_rows(str(path), 'strict'))]
  tables = sorted(inner for inner in path.iterdir() if files.form_of(inner) in _TABLES)
  if tables:
    return path.name or 'pairs', [(_stem(inner), documents.table_rows(str(inner), 'strict')) for inner in tables]
  root = path.parent if path.name == 'blimp' else path
  found = sorted({inner.parent.parent.name for inner in (root / 'blimp').glob('*/*/dataset_info.json')})
  if not found:
    there = ', '.join(sorted(inner.name for inner in path.iterdir())[:10]) or 'nothing'
    raise InputError(asked, f'neither a table nor blimp as TFDS prepares it; there: {there}',
                     f'tables are .{", .".join(_TABLES)}')
  return 'blimp', [(one, documents.tfds_rows(f'blimp/{one}', 'train', str(root))) for one in found]


def _stem(path: epath.Path) -> str:
  return path.name.partition('.')[0] or path.name


def _pairs(table: str, rows: Iterator[dict[str, Any]]) -> Iterator[Pair]:
  """The pairs of one table."""
  number = 0
  for number, row in enumerate(rows, 1):
    where = f'row {number:,} of {table}'
    for column in _SENTENCES:
      if column not in row:
        raise InputError(f'the column {column!r}', f'{where} has {", ".join(map(str, row)) or "nothing"}',
                         nearest(column, map(str, row)))
      if not isinstance(row[column], str) or not row[column].strip() or shape.NO_TEXT.search(row[column]):
        raise InputError(f'a sentence in {column!r}', f'{row[column]!r} in {where}', 'give text, or leave the row out')
    paradigm = _named(row, _PARADIGM) or table
    phenomenon = _named(row, _PHENOMENON) or paradigm
    if found := shape.NO_TEXT.search(paradigm + phenomenon):
      raise InputError(f'a name in {where}', f'U+{ord(found[0]):04X}, which is no text', 'name it otherwise')
    if phenomenon == EVERYTHING:
      raise InputError(f'a phenomenon {phenomenon!r}', f'{where} has it', 'name it otherwise: it is the mean over all')
    yield Pair(row['sentence_good'], row['sentence_bad'], paradigm, phenomenon)
  if not number:
    raise InputError(f'minimal pairs in {table}', 'no row', f'give rows with {" and ".join(_SENTENCES)}')


def _named(row: dict[str, Any], columns: tuple[str, ...]) -> str:
  return next((str(row[column]) for column in columns if column in row and row[column] not in (None, '')), '')
