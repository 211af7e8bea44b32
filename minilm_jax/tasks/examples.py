"""How the examples of a task are read: checked row by row, filtered, cut, their labels made
indices.

Examples are text and labels. Where their rows lie is left to `places.py`, what a label column says
to `labels.py`, which of many are taken to `sampling.py`, how text becomes tokens to `encoding.py`.
"""

import dataclasses
import hashlib
import json
import math
import numbers
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from minilm_jax.core import progress, schema
from minilm_jax.core.config import TaskConfig
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.data import filters
from minilm_jax.tasks import loading
from minilm_jax.tasks.task import REGRESSION, Task, find_task, tasks_of_kind

# What the label column of a row says: a class index by number or name, a number, or that the label
# is unknown.
UNLABELLED = -1  # as TFDS marks an example whose label is not public
_INTEGER = re.compile('-?[0-9]{1,9}')


def require_labels(row: Collection[str], columns: Iterable[str], where: str) -> None:
  """Lets a row pass that has all these columns.

  Raises:
    InputError: one is missing.
  """
  columns = tuple(columns)
  for column in columns:
    if column not in row:
      raise InputError(
        f'the column {column!r}',
        f'{where} has {", ".join(map(str, row)) or "nothing"}',
        f'give the columns {", ".join(columns[:-1])} and {columns[-1]}; in a recipe, task.fields and '
        'task.label name others',
      )


def collect_labels(values: Iterable[Any], where: str) -> tuple[str, ...]:
  """The classes that a label column shows, as text: in their order if all are whole numbers, else
  in the alphabet's.

  Args:
    values: the column, of which each is text or a whole number.
    where: what the rows are called, as in 'the train split of own'.

  Raises:
    InputError: a value is neither, or there are not two classes.
  """
  names = {_name(value, f'row {number:,} of {where}') for number, value in enumerate(values, 1)}
  if len(names) < 2:
    raise InputError(
      f'the classes of {where}',
      f'one label alone, {min(names)!r}' if names else 'no example',
      'give examples of two classes or more',
    )
  return tuple(sorted(names, key=int if all(map(_INTEGER.fullmatch, names)) else None))


def label_index(value: Any, task: Task, where: str) -> int:
  """The class index that a label says.

  Raises:
    InputError: it is none of the task's.
  """
  if task.labels_from_data:
    name = _name(value, where)
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
  number = int(value) if isinstance(value, str) and _INTEGER.fullmatch(value) else value
  real = isinstance(number, numbers.Real) and not isinstance(number, bool)
  if real and number in range(UNLABELLED, len(task.labels)):
    return int(number)
  known = ', '.join(f'{i} or {name!r}' for i, name in enumerate(task.labels))
  hint = (
    f'{suggest_name(value, task.labels)} ' if isinstance(value, str) and number is value else ''
  )
  raise InputError(
    f'a label of {task.name}',
    f'{value!r} in {where}',
    f'{hint}(labels are {known}; -1 where unknown)',
  )


def parse_number(value: Any, where: str) -> float:
  """The finite number that a label says.

  Raises:
    InputError: it is none.
  """
  try:
    said = math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError, OverflowError):
    said = math.nan
  if not math.isfinite(said):
    raise InputError('a number as label', f'{value!r} in {where}', 'give a finite number')
  return said


def _name(value: Any, where: str) -> str:
  """What a class is called."""
  if isinstance(value, numbers.Integral) and not isinstance(value, bool):
    return str(int(value))
  if not isinstance(value, str) or not value.strip() or schema.NO_TEXT.search(value):
    raise InputError(
      'the name of a class',
      f'{value!r} in {where}',
      'give text or a whole number; for a number to predict, --config.task.kind=regression',
    )
  return value


_INDEX = re.compile('[0-9]{1,18}')
_EVAL_SALT = 0.2  # of a training file that also gives the split that is reported
# texts, label, and the number in the official file
_Example = tuple[tuple[str, ...], int | float, int]


@dataclasses.dataclass(frozen=True)
class Examples:
  """Examples of a split: `first[i]`, `second[i]` (empty where the task has one text) and
  `labels[i]` belong together.

  Labels are class indices or, in a regression, numbers; -1 where the label is unknown. `numbers`
  are those of a column `idx`, which is where GLUE's examples stand in the official files; without
  one they count up.
  """

  first: tuple[str, ...]
  second: tuple[str, ...]
  labels: Int32[np.ndarray, 'n'] | Float32[np.ndarray, 'n']
  numbers: tuple[int, ...] = ()

  def take(self, places: Sequence[int]) -> 'Examples':
    """Those at some places."""
    second = tuple(self.second[i] for i in places) if self.second else ()
    return Examples(
      tuple(self.first[i] for i in places),
      second,
      self.labels[np.array(places, int)],
      tuple(self.numbers[i] for i in places) if self.numbers else (),
    )


def complete_task(config: TaskConfig) -> Task:
  """The row that a recipe names, with the fields, label column and kind that it changes.

  A classification without labels gets those that its training file shows, as text: whole numbers in
  their order, else all in that of the alphabet.

  Raises:
    InputError: no such row, the recipe asks of it what it cannot be, or its labels cannot be found.
  """
  task = dataclasses.replace(tasks_of_kind(find_task(config.name), config.kind), label=config.label)
  if config.fields:
    task = dataclasses.replace(task, fields=config.fields, filter_fields=config.fields)
  if config.markers and task.fields != ('text',):
    raise InputError(
      f'task.markers of {task.name}',
      f'text in {", ".join(task.fields)}',
      'leave them out: only the files of FewRel say where entities are',
    )
  if config.markers:  # the word list knows no marks
    task = dataclasses.replace(task, fields=('marked',))
  if loading.name_location(config):  # which has one file a split
    task = dataclasses.replace(task, parts=())
  if task.kind == REGRESSION and (config.per_label or config.eval_per_label):
    raise InputError(
      f'task.per_label of {task.name}',
      'a regression, which has no labels to draw from',
      'give task.max_train_examples instead',
    )
  if task.labels or task.kind == REGRESSION:
    return task
  return dataclasses.replace(
    task,
    labels=collect_labels(_label_column(task, config), f'the train split of {task.name}'),
    labels_from_data=True,
  )


def available_splits(task: Task, name: str) -> tuple[str, ...]:
  """The full names of a split: of its parts where the task has some, the one that is judged first.

  >>> available_splits(task.find_task('mnli'), 'validation'), available_splits(task.find_task('mnli'), 'train')
  (('validation_matched', 'validation_mismatched'), ('train',))
  """
  return (
    tuple(f'{name}_{part}' for part in task.parts)
    if name in ('validation', 'test') and task.parts
    else (name,)
  )


def read_examples(task: Task, config: TaskConfig, split: str) -> Examples:
  """The examples of a split, after the filter if `config.filtered`, in the order of the source.

  Of the training split, `config.limit` keeps only so many: those first by hash of their text, so
  that a smaller limit takes a part of what a larger one takes, and neither follows an order by
  label. `config.per_label` draws so many of each label instead, `config.eval_per_label` of the
  split that is reported. Where that has no file of its own, it is a part of the training file and
  'train' is the rest: a fifth by hash as in `hold_out`, or what both numbers draw.

  Args:
    task: what `complete` gave.
    config: where the examples are, and which.
    split: a full name, one of `splits`.

  Raises:
    InputError: no place is given, the place has no such split, a column is missing, a text of a
      pair is empty, a label is none of the task's, too few are there to draw from, or nothing is
      left.
  """
  kept = _chosen(task, config, split)
  if not kept:
    found = 'no example stays inside the word list' if config.filtered else 'it is empty'
    raise InputError(
      f'the {split} split of {task.name}', found, 'give other examples, or another word list'
    )
  if loading.resolve_shared(config) and split == config.split:
    how = 'of each label' if config.per_label and config.eval_per_label else 'by hash of their text'
    progress.log(
      f'{task.name}: no file for the {split} split: {len(kept):,} examples of {config.train} are kept from '
      f'training for it, {how}'
    )
  texts, values, numbers = zip(*kept, strict=True)
  first, *second = zip(*texts, strict=True)
  values = np.array(values, np.float32 if task.kind == REGRESSION else np.int32)
  return Examples(first, *second or ((),), values, numbers)


def count_examples(task: Task, config: TaskConfig) -> dict[str, int]:
  """How many examples `read` gives of train, validation and test, or their parts; 0 where the place
  has no such split.

  Raises:
    InputError: as `read` does, but for splits that are missing or empty; the place has no split at
      all.
  """
  counts, missing = {}, []
  for split in (full for name in loading.TASK_SPLITS for full in available_splits(task, name)):
    try:
      counts[split] = len(_chosen(task, config, split))
    except loading.MissingSplit as error:
      counts[split] = 0
      missing.append(error)
  if len(missing) == len(counts):
    raise missing[0]
  return counts


def hold_out_examples(examples: Examples, share: float) -> tuple[Examples, Examples]:
  """(kept, held): the held are the first round(share n) by a hash of their text, so that no order
  matters.

  Equal texts fall on the same side, those that do not fit among the kept; each side keeps its
  order.

  Raises:
    InputError: a side would be empty.
  """
  pairs = examples.second or ('',) * len(examples.first)
  held = loading.split_validation(
    ['\0'.join(pair) for pair in zip(examples.first, pairs, strict=True)], share
  )
  if not 0 < len(held) < len(examples.first):
    raise InputError(
      f'a share of {share} of {len(examples.first):,} examples',
      f'{len(held):,} on one side of the cut',
      'give more examples, or another share',
    )
  kept, held = (
    [i for i in range(len(examples.first)) if (i in held) == side] for side in (False, True)
  )
  return examples.take(kept), examples.take(held)


def check_task(task: Task, train: Examples, *others: Examples) -> None:
  """Lets examples pass that a classifier can learn from; unknown labels are no matter of this, nor
  is a regression.

  Raises:
    InputError: another split has a label that training never shows, or a class has fewer than two
      training examples.
  """
  if task.kind == REGRESSION:
    return
  counts = np.bincount(train.labels[train.labels != UNLABELLED], minlength=len(task.labels))
  for label in np.unique(
    np.concatenate([np.zeros(0, np.int32), *(other.labels for other in others)])
  ):
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
  """The examples, if every label is known.

  Args:
    examples: of a split.
    purpose: what the labels are for, as in 'training on cola' or 'scores on the test split of
      cola'.

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
  """A hash of texts and labels in their order: equal where two runs were judged on the same
  examples.
  """
  rows = zip(
    examples.first,
    examples.second or ('',) * len(examples.first),
    examples.labels.tolist(),
    strict=True,
  )
  return hashlib.sha256(json.dumps(list(rows), ensure_ascii=False).encode()).hexdigest()


def _chosen(task: Task, config: TaskConfig, split: str) -> list[_Example]:
  """The examples of a split that are used."""
  train, reported = split == 'train', split in available_splits(task, config.split)
  if loading.resolve_shared(config) and (train or reported):
    found = list(_examples(task, config, 'train'))
    texts = ['\0'.join(text) for text, *_ in found]
    if config.per_label and config.eval_per_label:
      sides = loading.sample_balanced_splits(
        texts, _names(task, found), config.per_label, config.eval_per_label
      )
      return [found[i] for i in sides[not train]]
    held = loading.split_validation(texts, _EVAL_SALT)
    found = [example for i, example in enumerate(found) if (i in held) != train]
  else:
    found = list(_examples(task, config, split))
  if per_label := config.per_label if train else config.eval_per_label if reported else 0:
    found = [found[i] for i in loading.sample_balanced(_names(task, found), per_label)]
  if train and 0 < config.max_train_examples < len(found):
    found = [
      found[i]
      for i in loading.first_by_hash(
        ['\0'.join(text) for text, *_ in found], config.max_train_examples
      )
    ]
  return found


def _label_column(task: Task, config: TaskConfig) -> Iterator[Any]:
  for number, row in enumerate(loading.read_rows(task, config, 'train'), 1):
    require_labels(
      row, (*task.fields, task.label), f'row {number:,} of the train split of {task.name}'
    )
    yield row[task.label]


def _names(task: Task, examples: list[_Example]) -> list[str]:
  if any(label == UNLABELLED for _, label, _ in examples):
    raise InputError(
      f'so many examples of each label of {task.name}',
      'some have no label',
      'draw from labelled ones',
    )
  return [task.labels[label] for _, label, _ in examples]


def _examples(task: Task, config: TaskConfig, split: str) -> Iterator[_Example]:
  """Each example that the filter keeps."""
  words = filters.load_word_list(config.word_list).words if config.filtered else frozenset()
  for number, row in enumerate(loading.read_rows(task, config, split), 1):
    where = f'row {number:,} of the {split} split of {task.name}'
    require_labels(row, (*task.fields, task.label), where)
    texts = tuple(row[field] for field in task.fields)
    for field, text in zip(task.fields, texts, strict=True):
      if not isinstance(text, str) or schema.NO_TEXT.search(text):
        raise InputError(
          f'text in {field!r}',
          f'{text!r} in {where}',
          'give a string, without NUL or halves of pairs',
        )
      # As published, a data set may hold some, and predictions are due on every row of it.
      if (
        len(texts) == 2 and not task.concatenate_fields and not config.data_dir and not text.strip()
      ):
        raise InputError(
          f'two texts in {where}', f'{field!r} is empty', 'fill it in, or remove the row'
        )
    value = row[task.label]
    label = (
      parse_number(value, where) if task.kind == REGRESSION else label_index(value, task, where)
    )
    if task.concatenate_fields:
      texts = (' '.join(text for text in texts if text),)
    looked_at = texts if task.concatenate_fields else (row[field] for field in task.filter_fields)
    if not config.filtered or filters.is_inside_word_list(' '.join(looked_at), words):
      yield texts, label, int(row['idx']) if _INDEX.fullmatch(str(row.get('idx'))) else number - 1
