"""Reads the examples of a task: checks each row, filters, selects and converts labels.

Examples are text and labels. `loading` gives their rows and selects some; `task_data` encodes them.
"""

import dataclasses
import hashlib
import json
import math
import numbers
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from minilm_jax.core import progress, schema
from minilm_jax.core.config import TaskConfig
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.data import filters
from minilm_jax.tasks import loading
from minilm_jax.tasks.task import REGRESSION, Task, convert_task, find_task

UNLABELLED = -1  # Label index of TFDS for an example without a public label.
_EVAL_SHARE = 0.2  # Of a training file that also gives the split that is reported.
_INTEGER = re.compile('-?[0-9]{1,9}')
_INDEX = re.compile('[0-9]{1,18}')


class _Example(NamedTuple):
  """Texts and label of an example, and its number in the official file."""

  texts: tuple[str, ...]
  label: int | float
  number: int

  @property
  def joined(self) -> str:
    """Returns all text as one string."""
    return '\0'.join(self.texts)


@dataclasses.dataclass(frozen=True)
class Examples:
  """Examples of a split.

  Attributes:
    first: first texts.
    second: second texts; empty where the task has one text.
    labels: class indices, -1 where unknown, or numbers in a regression.
    numbers: values of the column `idx`, the place in GLUE's official files; else counted from 0.
  """

  first: tuple[str, ...]
  second: tuple[str, ...]
  labels: Int32[np.ndarray, 'n'] | Float32[np.ndarray, 'n']
  numbers: tuple[int, ...] = ()

  @property
  def pairs(self) -> list[tuple[str, str]]:
    """Returns both texts of each example, '' for a missing second one."""
    return list(zip(self.first, self.second or ('',) * len(self.first), strict=True))

  def select(self, indices: Sequence[int]) -> 'Examples':
    """Returns the examples at some indices."""
    return Examples(
      tuple(self.first[i] for i in indices),
      tuple(self.second[i] for i in indices) if self.second else (),
      self.labels[np.array(indices, int)],
      tuple(self.numbers[i] for i in indices) if self.numbers else (),
    )


def require_columns(row: Collection[str], columns: Iterable[str], where: str) -> None:
  """Checks that a row has all of these columns.

  Raises:
    InputError: one is missing.
  """
  columns = tuple(columns)
  for column in columns:
    if column not in row:
      raise InputError(
        f'the column {column!r}',
        f'{where} has {", ".join(map(str, row)) or "nothing"}',
        f'give the columns {", ".join(columns[:-1])} and {columns[-1]}; in a recipe, task.fields '
        'and task.label name others',
      )


def collect_labels(values: Iterable[Any], where: str) -> tuple[str, ...]:
  """Returns the classes in a label column as text, sorted as numbers if all are whole numbers.

  Args:
    values: the column, of text or whole numbers.
    where: name of the rows, as in 'the train split of own'.

  Raises:
    InputError: a value is neither, or there are not two classes.
  """
  names = {
    _class_name(value, f'row {number:,} of {where}') for number, value in enumerate(values, 1)
  }
  if len(names) < 2:
    raise InputError(
      f'the classes of {where}',
      f'one label alone, {min(names)!r}' if names else 'no example',
      'give examples of two classes or more',
    )
  return tuple(sorted(names, key=int if all(map(_INTEGER.fullmatch, names)) else None))


def label_index(value: Any, task: Task, where: str) -> int:
  """Returns the class index of a label.

  Raises:
    InputError: it is none of the task's.
  """
  if task.labels_from_data:
    name = _class_name(value, where)
    if name in task.labels:
      return task.labels.index(name)
    if name == str(UNLABELLED):
      return UNLABELLED
    raise InputError(
      f'a label of {task.name}',
      f'{name!r} in {where}, which training never shows',
      f'{suggest_name(name, task.labels)} (-1 where unknown)',
    )
  if value in task.labels:
    return task.labels.index(value)
  is_text = isinstance(value, str)
  number: Any = int(value) if is_text and _INTEGER.fullmatch(value) else value
  is_number = isinstance(number, numbers.Real) and not isinstance(number, bool)
  if is_number and number in range(UNLABELLED, len(task.labels)):
    return int(float(number))
  known = ', '.join(f'{i} or {name!r}' for i, name in enumerate(task.labels))
  hint = f'{suggest_name(value, task.labels)} ' if is_text and number is value else ''
  raise InputError(
    f'a label of {task.name}',
    f'{value!r} in {where}',
    f'{hint}(labels are {known}; -1 where unknown)',
  )


def parse_number(value: Any, where: str) -> float:
  """Returns the finite number of a label.

  Raises:
    InputError: it is none.
  """
  try:
    number = math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError, OverflowError):
    number = math.nan
  if not math.isfinite(number):
    raise InputError('a number as label', f'{value!r} in {where}', 'give a finite number')
  return number


def _class_name(value: Any, where: str) -> str:
  """Returns the name of a class."""
  if isinstance(value, numbers.Integral) and not isinstance(value, bool):
    return str(int(value))
  if not isinstance(value, str) or not value.strip() or schema.NO_TEXT.search(value):
    raise InputError(
      'the name of a class',
      f'{value!r} in {where}',
      'give text or a whole number; for a number to predict, --config.task.kind=regression',
    )
  return value


def complete_task(config: TaskConfig) -> Task:
  """Returns the task of a recipe, with the fields, label column and kind that the recipe changes.

  A classification without labels gets those of its training file.

  Raises:
    InputError: there is no such task, the recipe contradicts it, or its labels cannot be found.
  """
  task = dataclasses.replace(convert_task(find_task(config.name), config.kind), label=config.label)
  if config.fields:
    task = dataclasses.replace(task, fields=config.fields, filter_fields=config.fields)
  if config.markers:
    if task.fields != ('text',):
      raise InputError(
        f'task.markers of {task.name}',
        f'text in {", ".join(task.fields)}',
        'leave them out: only the files of FewRel say where entities are',
      )
    # The filter still reads the text without markers.
    task = dataclasses.replace(task, fields=('marked',))
  if loading.name_location(config):  # One file a split.
    task = dataclasses.replace(task, parts=())
  if task.kind == REGRESSION and (config.per_label or config.eval_per_label):
    raise InputError(
      f'task.per_label of {task.name}',
      'a regression, which has no labels to draw from',
      'give task.max_train_examples instead',
    )
  if task.labels or task.kind == REGRESSION:
    return task
  labels = collect_labels(_label_column(task, config), f'the train split of {task.name}')
  return dataclasses.replace(task, labels=labels, labels_from_data=True)


def available_splits(task: Task, split: str) -> tuple[str, ...]:
  """Returns the full names of a split, the headline's first: several where the task has parts.

  >>> available_splits(find_task('mnli'), 'validation'), available_splits(find_task('mnli'), 'train')
  (('validation_matched', 'validation_mismatched'), ('train',))
  """
  if split in ('validation', 'test') and task.parts:
    return tuple(f'{split}_{part}' for part in task.parts)
  return (split,)


def read_examples(task: Task, config: TaskConfig, split: str) -> Examples:
  """Reads the examples of a split, after the filter if `config.filtered`, in their order.

  Of the training split, `config.max_train_examples` keeps the first by hash of their text: a smaller
  limit takes a part of a larger one, in no order of labels. `config.per_label` draws so many of each
  label instead, `config.eval_per_label` of the split that is reported. Where that split has no file
  of its own, it is a part of the training file, and 'train' is the remainder: a fifth by hash as in
  `hold_out_examples`, or the two drawn numbers.

  Args:
    task: as `complete_task` returns it.
    config: source and selection of the examples.
    split: a full name, one of `available_splits`.

  Raises:
    InputError: no source is given, it has no such split, a column is missing, a text of a pair is
      empty, a label is unknown to the task, too few are there to draw from, or nothing is left.
  """
  selected = _select(task, config, split)
  if not selected:
    raise InputError(
      f'the {split} split of {task.name}',
      'no example stays inside the word list' if config.filtered else 'it is empty',
      'give other examples, or another word list',
    )
  if loading.shares_training_file(config) and split == config.split:
    drawn = config.per_label and config.eval_per_label
    progress.log(
      f'{task.name}: no file for the {split} split: {len(selected):,} examples of {config.train} '
      f'are kept from training for it, {"of each label" if drawn else "by hash of their text"}'
    )
  first, *second = zip(*(example.texts for example in selected), strict=True)
  dtype = np.float32 if task.kind == REGRESSION else np.int32
  return Examples(
    first,
    second[0] if second else (),
    np.array([example.label for example in selected], dtype),
    tuple(example.number for example in selected),
  )


def count_examples(task: Task, config: TaskConfig) -> dict[str, int]:
  """Returns the number of examples of each split or part; 0 where the source has no such split.

  Raises:
    InputError: as `read_examples`, except for missing or empty splits; the source has no split.
  """
  counts, missing = {}, []
  for split in (full for name in loading.TASK_SPLITS for full in available_splits(task, name)):
    try:
      counts[split] = len(_select(task, config, split))
    except loading.MissingSplit as error:
      counts[split] = 0
      missing.append(error)
  if len(missing) == len(counts):
    raise missing[0]
  return counts


def hold_out_examples(examples: Examples, share: float) -> tuple[Examples, Examples]:
  """Returns (training, validation), the latter the first round(share n) by a hash of their text.

  Equal texts are on the same side, in training where they do not fit; each side keeps its order.

  Raises:
    InputError: a side would be empty.
  """
  held_out = loading.split_validation(['\0'.join(pair) for pair in examples.pairs], share)
  indices = range(len(examples.first))
  if not 0 < len(held_out) < len(indices):
    raise InputError(
      f'a share of {share} of {len(indices):,} examples',
      f'{len(held_out):,} on one side of the cut',
      'give more examples, or another share',
    )
  return examples.select([i for i in indices if i not in held_out]), examples.select(
    [i for i in indices if i in held_out]
  )


def check_task(task: Task, train: Examples, *others: Examples) -> None:
  """Checks that a classifier can learn all labels from the training examples.

  Unknown labels and regressions pass.

  Raises:
    InputError: another split has a label that training never shows, or a class has fewer than two
      training examples.
  """
  if task.kind == REGRESSION:
    return
  counts = np.bincount(train.labels[train.labels != UNLABELLED], minlength=len(task.labels))
  for label in sorted({label for other in others for label in other.labels.tolist()}):
    if label != UNLABELLED and not counts[label]:
      raise InputError(
        f'the label {task.labels[label]!r} of {task.name}',
        'training never shows it',
        'train on more examples, or leave it out of the other splits',
      )
  for name, count in zip(task.labels, counts.tolist(), strict=True):
    if count < 2:
      raise InputError(
        f'the label {name!r} of {task.name}',
        f'{count} training example{"s" * (count != 1)}',
        'give two or more of each label; for a number to predict, --config.task.kind=regression',
      )


def check_labelled(examples: Examples, purpose: str) -> Examples:
  """Returns the examples, if every label is known.

  Args:
    examples: of a split.
    purpose: use of the labels, as in 'training on cola' or 'scores on the test split of cola'.

  Raises:
    InputError: a label is unknown.
  """
  unknown = int(np.sum(examples.labels == UNLABELLED))
  if unknown:
    raise InputError(
      purpose,
      f'{unknown:,} of {len(examples.labels):,} examples have no label',
      'use a split with labels: the test splits of GLUE have none, validation has',
    )
  return examples


def hash_examples(examples: Examples) -> str:
  """Returns a hash of texts and labels in their order."""
  rows = [
    (*pair, label) for pair, label in zip(examples.pairs, examples.labels.tolist(), strict=True)
  ]
  return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


def _select(task: Task, config: TaskConfig, split: str) -> list[_Example]:
  """Returns the examples of a split that the recipe uses."""
  is_train, is_reported = split == 'train', split in available_splits(task, config.split)
  if loading.shares_training_file(config) and (is_train or is_reported):
    examples = list(_read(task, config, 'train'))
    texts = [example.joined for example in examples]
    if config.per_label and config.eval_per_label:
      train, evaluation = loading.sample_balanced_splits(
        texts, _label_names(task, examples), config.per_label, config.eval_per_label
      )
      return [examples[i] for i in (train if is_train else evaluation)]
    held_out = loading.split_validation(texts, _EVAL_SHARE)
    examples = [example for i, example in enumerate(examples) if (i in held_out) != is_train]
  else:
    examples = list(_read(task, config, split))
  per_label = config.per_label if is_train else config.eval_per_label if is_reported else 0
  if per_label:
    indices = loading.sample_balanced(_label_names(task, examples), per_label)
    examples = [examples[i] for i in indices]
  if is_train and 0 < config.max_train_examples < len(examples):
    texts = [example.joined for example in examples]
    examples = [examples[i] for i in loading.first_by_hash(texts, config.max_train_examples)]
  return examples


def _label_column(task: Task, config: TaskConfig) -> Iterator[Any]:
  columns = (*task.fields, task.label)
  for number, row in enumerate(loading.read_rows(task, config, 'train'), 1):
    require_columns(row, columns, f'row {number:,} of the train split of {task.name}')
    yield row[task.label]


def _label_names(task: Task, examples: Sequence[_Example]) -> list[str]:
  if any(example.label == UNLABELLED for example in examples):
    raise InputError(
      f'so many examples of each label of {task.name}',
      'some have no label',
      'draw from labelled ones',
    )
  return [task.labels[int(example.label)] for example in examples]


def _read(task: Task, config: TaskConfig, split: str) -> Iterator[_Example]:
  """Yields each example that the filter keeps."""
  words = filters.load_word_list(config.word_list).words if config.filtered else frozenset()
  for number, row in enumerate(loading.read_rows(task, config, split), 1):
    where = f'row {number:,} of the {split} split of {task.name}'
    require_columns(row, (*task.fields, task.label), where)
    texts = tuple(row[field] for field in task.fields)
    for field, text in zip(task.fields, texts, strict=True):
      if not isinstance(text, str) or schema.NO_TEXT.search(text):
        raise InputError(
          f'text in {field!r}',
          f'{text!r} in {where}',
          'give a string, without NUL or halves of pairs',
        )
      # A published data set may hold empty texts, and predictions need every row of it.
      is_pair = len(texts) == 2 and not task.concatenate_fields
      if is_pair and not config.data_dir and not text.strip():
        raise InputError(
          f'two texts in {where}', f'{field!r} is empty', 'fill it in, or remove the row'
        )
    value = row[task.label]
    label = (
      parse_number(value, where) if task.kind == REGRESSION else label_index(value, task, where)
    )
    if task.concatenate_fields:
      texts = (' '.join(text for text in texts if text),)
    if config.filtered:
      filtered = texts if task.concatenate_fields else [row[field] for field in task.filter_fields]
      if not filters.is_inside_word_list(' '.join(filtered), words):
        continue
    has_number = _INDEX.fullmatch(str(row.get('idx')))
    yield _Example(texts, label, int(row['idx']) if has_number else number - 1)
