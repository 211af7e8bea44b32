"""Reads the files of a task: tables, and files in the forms in which GLUE and FewRel are published.

GLUE's .tsv files differ from TFDS: other column names, no header in CoLA, and a few rows of QQP with
too few columns. Such rows are skipped and counted, except in test splits: a submission needs every
row. FewRel's .json files list sentences by the relation between a head and a tail entity.
"""

import functools
import itertools
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from minilm_jax.core import files, progress
from minilm_jax.core.errors import InputError
from minilm_jax.data import documents, readers
from minilm_jax.tasks.task import Task

# Start and end of entities in FewRel. Lower-case letters are known to any tokenizer of a small
# language; brackets and digits may not be. No word contains the markers, and they stay different
# after a split into letters.
HEAD_MARKER, TAIL_MARKER = ('qj', 'jq'), ('qz', 'zq')
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


def read_file(path: epath.Path, task: Task, split: str, markers: bool) -> Iterator[dict[str, Any]]:
  """Returns the rows of a file: a table, or a file in the form of GLUE or FewRel.

  Raises:
    InputError: Markers are requested, and the file is not in the form of FewRel.
  """
  form = readers.detect_format(path)
  if form == 'tsv' and task.submission_name:
    return read_glue_rows(path, task, split)
  if form == 'json' and not readers.is_json_array(path):
    return read_fewrel_rows(path, markers)
  if markers:
    raise InputError(
      f'task.markers of {task.name}',
      f'the table {path}',
      'remove task.markers: only FewRel files mark entities',
    )
  return documents.read_table_rows(str(path))


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


def read_fewrel_rows(path: epath.PathLike, markers: bool) -> Iterator[dict[str, Any]]:
  """Yields a row for each sentence: the joined tokens as `text`, the relation as `label`.

  With `markers`, a row has `marked`, the text with markers around every mention of an entity: `qj`
  and `jq` for the head, `qz` and `zq` for the tail.

  Raises:
    InputError: The file is unreadable, too large or malformed; with markers, a mention lies outside
      its sentence.
  """
  try:
    relations = json.loads(
      readers.read_decompressed(path), object_pairs_hook=functools.partial(_make_object, path)
    )
  except (ValueError, RecursionError) as error:
    raise InputError(
      f'relations in {path}', f'invalid JSON: {error}', 'rename JSON lines to .jsonl'
    ) from None
  if not isinstance(relations, dict) or not all(
    isinstance(items, list) for items in relations.values()
  ):
    raise _make_fewrel_error(str(path), 'no object of lists')
  for relation, items in relations.items():
    for number, item in enumerate(items, 1):
      where = f'{path}, {relation}, example {number:,}'
      tokens = item['tokens'] if isinstance(item, dict) and 'tokens' in item else None
      if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise _make_fewrel_error(where, 'no list of tokens')
      row = {'text': ' '.join(tokens), 'label': relation}
      yield row | {'marked': _mark_entities(tokens, item, where)} if markers else row


def _make_object(path: epath.PathLike, items: list[tuple[str, Any]]) -> dict[str, Any]:
  """Returns a JSON object; raises InputError if a key occurs twice."""
  record = dict(items)
  if len(record) < len(items):
    names = [name for name, _ in items]
    repeated = next(name for name in names if names.count(name) > 1)
    raise _make_fewrel_error(str(path), f'the key {repeated!r} twice in one object')
  return record


def _mark_entities(tokens: list[str], item: dict[str, Any], where: str) -> str:
  before, after = [[] for _ in tokens], [[] for _ in tokens]
  for entity, (start, end) in (('h', HEAD_MARKER), ('t', TAIL_MARKER)):
    for first, last in _find_mentions(item, entity, len(tokens), where):
      before[first].append(start)
      after[last].insert(0, end)
  parts = ([*starts, token, *ends] for starts, token, ends in zip(before, tokens, after))
  return ' '.join(itertools.chain.from_iterable(parts))


def _find_mentions(
  item: dict[str, Any], entity: str, length: int, where: str
) -> list[tuple[int, int]]:
  """Returns the first and the last token of each mention."""
  fields = item[entity] if entity in item else None
  mentions = fields[2] if isinstance(fields, list) and len(fields) == 3 else []
  mentions = mentions if isinstance(mentions, list) else []
  for mention in mentions:
    if (
      not isinstance(mention, list)
      or not mention
      or not all(type(i) is int and 0 <= i < length for i in mention)
    ):
      raise _make_fewrel_error(where, f'the mention {mention!r} in {length} tokens')
  if not mentions:
    raise _make_fewrel_error(where, f'no mention in {entity!r}')
  return [(min(mention), max(mention)) for mention in mentions]


def _make_fewrel_error(where: str, fault: str) -> InputError:
  return InputError(
    f'relations in {where}',
    fault,
    'use the format {relation: [{"tokens": [...], "h": [name, id, [[index, ...]]], "t": ...}]}',
  )
