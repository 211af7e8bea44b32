"""How the examples of a task are read, filtered and cut: from TFDS, from a folder of files, or built in.

Examples are text and labels; how text becomes tokens is left to fine-tuning. The microworld's examples are made on the
spot, of seed 0, in the numbers of `MICROWORLD`.
"""

import dataclasses
import hashlib
import math
import numbers
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float32, Int32

from minilm_jax.config import TaskConfig
from minilm_jax.errors import InputError, nearest
from minilm_jax.language import documents, microworld, vocabulary
from minilm_jax.tasks.table import REGRESSION, Task

SPLITS = ('train', 'validation', 'test')
UNLABELLED = -1  # as TFDS marks an example whose label is not public
FORMS = (*(form + packing for form in ('.jsonl', '.csv', '.tsv') for packing in ('', '.gz', '.xz', '.zst')),
         '.parquet')
MICROWORLD = {'train': 4000, 'validation': 1000, 'test': 1000}


@dataclasses.dataclass(frozen=True)
class Examples:
  """Examples of a split: `first[i]`, `second[i]` (empty where the task has one field) and `labels[i]` belong together.

  Labels are class indices or, in a regression, numbers; -1 where the label is unknown.
  """

  first: tuple[str, ...]
  second: tuple[str, ...]
  labels: Int32[np.ndarray, 'n'] | Float32[np.ndarray, 'n']


class _NoSplit(InputError):
  """The place has no such split; it may have others."""


def read(task: Task, config: TaskConfig, split: str) -> Examples:
  """The examples of a split, after the filter if `config.filtered`, in the order of the source.

  Of the training split, `config.limit` keeps only so many: those first by hash of their text, so that a smaller limit
  takes a part of what a larger one takes, and neither follows an order by label.

  Raises:
    InputError: no place is given, the place has no such split, a column is missing, a label is none of the task's, or
      nothing is left.
  """
  kept = list(_examples(task, config, split))
  if not kept:
    found = 'no example stays inside the word list' if config.filtered else 'it is empty'
    raise InputError(f'the {split} split of {task.name}', found, 'give other examples, or another word list')
  if split == 'train' and 0 < config.limit < len(kept):
    first = sorted(range(len(kept)), key=lambda i: (hashlib.sha256('\0'.join(kept[i][0]).encode()).digest(), i))
    kept = [kept[i] for i in first[:config.limit]]
  texts = tuple(zip(*(text for text, _ in kept), strict=True))
  labels = np.array([label for _, label in kept], np.float32 if task.kind == REGRESSION else np.int32)
  return Examples(texts[0], texts[1] if len(texts) > 1 else (), labels)


def sizes(task: Task, config: TaskConfig) -> dict[str, int]:
  """How many examples `read` gives of 'train', 'validation' and 'test'; 0 for a split that the place does not have.

  Raises:
    InputError: as `read` does, but for splits that are missing or empty; the place has no split at all.
  """
  counts, missing = {}, []
  for split in SPLITS:
    try:
      counts[split] = sum(1 for _ in _examples(task, config, split))
    except _NoSplit as error:
      counts[split] = 0
      missing.append(error)
  if len(missing) == len(SPLITS):
    raise missing[0]
  if config.limit:
    counts['train'] = min(counts['train'], config.limit)
  return counts


def require_labels(examples: Examples, purpose: str) -> Examples:
  """The examples, if every label is known.

  Args:
    examples: of a split.
    purpose: what the labels are for, as in 'training on cola' or 'scores on the test split of cola'.

  Raises:
    InputError: a label is unknown.
  """
  unknown = int(np.sum(examples.labels == UNLABELLED))
  if unknown:
    raise InputError(purpose, f'{unknown:,} of {len(examples.labels):,} examples have no label',
                     'use a split with labels: the test splits of GLUE have none, validation has')
  return examples


def _examples(task: Task, config: TaskConfig, split: str) -> Iterator[tuple[tuple[str, ...], int | float]]:
  """(texts, label) of each example that the filter keeps."""
  words = vocabulary.load(config.word_list).words if config.filtered else frozenset()
  for number, row in enumerate(_rows(task, config, split), 1):
    where = f'row {number:,} of the {split} split of {task.name}'
    for column in (*task.fields, 'label'):
      if column not in row:
        raise InputError(f'the column {column!r}', f'{where} has {", ".join(map(str, row)) or "nothing"}',
                         f'give the columns {", ".join(task.fields)} and label')
    for field in task.fields:
      if not isinstance(row[field], str):
        raise InputError(f'text in {field!r}', f'{row[field]!r} in {where}', 'give a string')
    label = _number(row['label'], where) if task.kind == REGRESSION else _index(row['label'], task, where)
    if not config.filtered or vocabulary.glue_inside(' '.join(row[field] for field in task.filter_fields), words):
      yield tuple(row[field] for field in task.fields), label


def _rows(task: Task, config: TaskConfig, split: str) -> Iterator[dict[str, Any]]:
  if config.folder:
    return documents.table_rows(str(_file(epath.Path(config.folder).expanduser(), split)), errors='strict')
  if config.data_dir and not task.tfds:
    raise InputError(f'{task.name} from task.data_dir', 'TFDS does not have this task', 'give task.folder instead')
  if config.data_dir:
    try:
      return documents.tfds_rows(task.tfds, split, config.data_dir)
    except InputError as error:  # opening failed; a fault inside the split appears later and stays what it is
      raise _NoSplit(error.asked, error.found, error.remedy) from None
  if task.microworld:
    return iter(microworld.examples(task.microworld, split, 0, MICROWORLD[split] if split in MICROWORLD else 0))
  places = 'task.data_dir, where TFDS prepared it, or task.folder' if task.tfds else 'task.folder'
  raise InputError(f'examples of {task.name}', 'no place to read them from', f'give {places}')


def _file(folder: epath.Path, split: str) -> epath.Path:
  """The one file of a split."""
  if not folder.is_dir():
    raise InputError(f'examples in {folder}', 'no such folder', 'check task.folder')
  found = [folder / (split + form) for form in FORMS if (folder / (split + form)).exists()]
  if len(found) > 1:
    raise InputError(f'the file of the {split} split', f'{" and ".join(path.name for path in found)} in {folder}',
                     'leave one of them')
  if not found:
    there = ', '.join(sorted(path.name for path in folder.iterdir())[:10]) or 'nothing'
    raise _NoSplit(f'{split}.jsonl, .csv, .tsv (each also .gz, .xz, .zst) or .parquet in {folder}', f'there: {there}',
                   'name the file after the split, or give another task.folder')
  return found[0]


def _index(value: Any, task: Task, where: str) -> int:
  """The class index that a label says, by number or by name."""
  if value in task.labels:
    return task.labels.index(value)
  number = int(value) if isinstance(value, str) and re.fullmatch('-?[0-9]{1,9}', value) else value
  real = isinstance(number, numbers.Real) and not isinstance(number, bool)
  if real and number in range(UNLABELLED, len(task.labels)):
    return int(number)
  known = ', '.join(f'{i} or {name!r}' for i, name in enumerate(task.labels))
  hint = f'{nearest(value, task.labels)} ' if isinstance(value, str) and number is value else ''
  raise InputError(f'a label of {task.name}', f'{value!r} in {where}', f'{hint}(labels are {known}; -1 where unknown)')


def _number(value: Any, where: str) -> float:
  """The number that a label says."""
  try:
    number = math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError):
    number = math.nan
  if not math.isfinite(number):
    raise InputError('a number as label', f'{value!r} in {where}', 'give a finite number')
  return number
