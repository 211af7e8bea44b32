"""Reads the .tsv files of GLUE in the form in which GLUE publishes them.

The files differ from TFDS: other column names, no header in CoLA, and a few rows of QQP with too
few columns. Such rows are skipped and counted, except in test splits: a submission needs every row.
"""

from collections.abc import Iterator
from typing import Any

from etils import epath

from minilm_jax.core import files, progress
from minilm_jax.core.errors import InputError
from minilm_jax.data import readers
from minilm_jax.tasks.task import Task

_COLA_COLUMNS = ('source', 'label', 'mark', 'sentence')
_NUMBERS = {'index': 'idx', 'id': 'idx'}
_NLI_TEXTS = {'sentence1': 'premise', 'sentence2': 'hypothesis'}
# TFDS's name of each column of GLUE, by task.
_COLUMNS = {
  'mrpc': {'#1 String': 'sentence1', '#2 String': 'sentence2', 'Quality': 'label'},
  'qqp': {'is_duplicate': 'label'},
  'stsb': {'score': 'label'},
  'mnli': {**_NLI_TEXTS, 'gold_label': 'label'},
  'ax': _NLI_TEXTS,
}
_MAX_SKIPPED_SHARE, _MIN_SKIPPED_ROWS = 0.01, 3  # a small file may have a few such rows
_MAX_ROW_CHARS = 10_000_000


def is_glue_file(path: epath.PathLike, task: Task) -> bool:
  """Returns whether a file is a .tsv file of a task of GLUE."""
  return bool(task.submission_name) and readers.detect_format(path) == 'tsv'


def read_glue_rows(path: epath.PathLike, task: Task, split: str) -> Iterator[dict[str, Any]]:
  """Yields rows with the columns of the file, and with the same values under TFDS's names.

  Raises:
    InputError: As `readers.read_rows`; or more than 1% of the rows have another number of columns.
  """
  names = _COLA_COLUMNS if task.name == 'cola' and _lacks_header(path) else ()
  columns = _NUMBERS | (_COLUMNS[task.name] if task.name in _COLUMNS else {})
  skipped: list[InputError] = []
  rows = readers.read_delimited(
    path, 'strict', _MAX_ROW_CHARS, names, None if split.startswith('test') else skipped.append
  )
  count = 0
  rows = files.limit_items(rows, lambda row: sum(map(len, row.values())), f'the table {path}')
  for row in rows:
    count += 1
    row |= {new: row[old] for old, new in columns.items() if old in row and new not in row}
    yield row
  if len(skipped) > max(_MIN_SKIPPED_ROWS, _MAX_SKIPPED_SHARE * count):
    raise skipped[0]
  if skipped:
    progress.log(
      f'{path}: skipped {len(skipped):,} of {count + len(skipped):,} rows with another number of '
      f'columns, first {skipped[0].asked.rpartition(", ")[2]}'
    )


def _lacks_header(path: epath.PathLike) -> bool:
  """Returns whether the first line of a file is a row of CoLA: source, 0 or 1, mark, sentence."""
  line = next(readers.read_lines(path, 'strict', _MAX_ROW_CHARS), '')
  cells = line.split('\t')
  return len(cells) == len(_COLA_COLUMNS) and cells[1] in ('0', '1')
