"""Reads the examples of a task: validates rows, filters and draws samples.

`labels` converts labels; `loading` reads the rows and draws the samples; `task_data` encodes the
examples as token ids.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from minilm_jax.core import progress
from minilm_jax.core.config import TaskConfig
from minilm_jax.core.errors import NO_TEXT, InputError
from minilm_jax.data import filters
from minilm_jax.tasks import labels, loading
from minilm_jax.tasks.task import REGRESSION, Task, convert_task, find_task

# Fraction of a training file that is reported if the recipe names no file for that split.
_EVAL_FRACTION = 0.2
_INDEX_COLUMN = 'idx'
_INDEX = re.compile(r'([0-9]{1,18})(?:\.0*)?')  # tables write whole numbers as floats, as in 12.0


class _Example(NamedTuple):
  """Stores the texts and the label of an example.

  Attributes:
    label: Class index or number; -1 or NaN if the label is unknown.
    row: Row number in the source, from 1.
    number: Index in GLUE's official file.
  """

  texts: tuple[str, ...]
  label: int | float
  row: int
  number: int

  @property
  def joined_text(self) -> str:
    """All texts as one string."""
    return '\0'.join(self.texts)


@dataclasses.dataclass(frozen=True)
class Examples:
  """Stores the examples of a split.

  Attributes:
    second: Second texts; empty if an example is one text.
    labels: Class indices, -1 for unknown labels; in a regression numbers, NaN for unknown labels.
    numbers: Values of the column `idx`, the index in GLUE's official files, or row numbers from 0.
  """

  first: tuple[str, ...]
  second: tuple[str, ...]
  labels: Int32[np.ndarray, 'n'] | Float32[np.ndarray, 'n']
  numbers: tuple[int, ...] = ()

  @property
  def pairs(self) -> list[tuple[str, str]]:
    """Both texts of each example; '' for a missing second text."""
    return list(zip(self.first, self.second or ('',) * len(self.first), strict=True))

  def select(self, indices: Sequence[int]) -> 'Examples':
    """Returns the examples at the given indices."""
    return Examples(
      tuple(self.first[i] for i in indices),
      tuple(self.second[i] for i in indices) if self.second else (),
      self.labels[np.array(indices, int)],
      tuple(self.numbers[i] for i in indices) if self.numbers else (),
    )


def require_columns(row: Collection[str], columns: Iterable[str], where: str) -> None:
  """Raises InputError if a row lacks a column; `where` names the row."""
  columns = tuple(columns)
  for column in columns:
    if column not in row:
      raise InputError(
        f'the column {column!r}',
        f'{where} has {", ".join(map(str, row)) or "nothing"}',
        f'give {" and ".join(filter(None, (", ".join(columns[:-1]), columns[-1])))}, or name other '
        'columns in task.fields and task.label',
      )


def require_text(value: Any, subject: str, where: str) -> None:
  """Raises InputError if a cell is not text; `where` names its row."""
  if not isinstance(value, str) or NO_TEXT.search(value):
    raise InputError(
      subject,
      f'{value!r:.200} in {where}',
      'give a string without NUL and without lone surrogates',
    )


def complete_task(config: TaskConfig) -> Task:
  """Returns the task of a recipe, with the recipe's fields, label column and kind.

  A classification without labels gets the labels of its training file.

  Raises:
    InputError: The task does not exist, the recipe contradicts it, or the training file is invalid.
  """
  task = dataclasses.replace(convert_task(find_task(config.name), config.kind), label=config.label)
  if config.fields:
    task = dataclasses.replace(task, fields=config.fields, filter_fields=config.fields)
  if config.markers:
    if task.fields != ('text',):
      raise InputError(
        f'task.markers of {task.name}',
        f'the text columns {", ".join(task.fields)}',
        'remove task.markers: only FewRel files mark entities',
      )
    # The filter reads the text without markers.
    task = dataclasses.replace(task, fields=('marked',))
  if loading.list_named_files(config):  # one file for each split
    task = dataclasses.replace(task, parts=())
  if task.kind == REGRESSION and (config.per_label or config.eval_per_label):
    raise InputError(
      f'task.per_label of {task.name}',
      'a regression, which has no classes',
      'set task.max_train_examples instead',
    )
  if task.labels or task.kind == REGRESSION:
    return task
  where = f'the train split of {task.name}'
  names = labels.collect_labels(_read_label_column(task, config), where)
  return dataclasses.replace(task, labels=names, labels_from_data=True)


def list_splits(task: Task, split: str) -> tuple[str, ...]:
  """Returns the full names of a split: several if the task has parts, the headline's first.

  >>> list_splits(find_task('mnli'), 'validation'), list_splits(find_task('mnli'), 'train')
  (('validation_matched', 'validation_mismatched'), ('train',))
  """
  if split in ('validation', 'test') and task.parts:
    return tuple(f'{split}_{part}' for part in task.parts)
  return (split,)


def list_reported_splits(task: Task, config: TaskConfig) -> tuple[str, ...]:
  """Returns the full names of the reported split, as `list_splits`.

  Raises:
    InputError: The split is the training split.
  """
  if config.split == 'train':
    raise InputError(
      'scores on task.split=train',
      'the split that trains the models',
      'give --config.task.split=validation or test',
    )
  return list_splits(task, config.split)


def read_examples(task: Task, config: TaskConfig, split: str) -> Examples:
  """Reads the examples of a split in file order, after the filter if `config.filtered`.

  `config.max_train_examples` limits the training split to the first examples by hash of their text.
  A smaller sample thus lies inside a larger sample. `config.per_label` instead draws a number of
  examples of each label, and `config.eval_per_label` does so for the reported split. If the recipe
  names a training file but no file for the reported split, the training file gives both splits: a
  fifth is reported, by hash as in `hold_out_examples`, or two disjoint samples are drawn. Two
  examples of each class stay in training.

  Raises:
    InputError: The source lacks the split, a row is invalid, a training example has no label, a
      label has too few examples to draw from, or no example remains.
  """
  selected = _select(task, config, split)
  if not selected:
    raise InputError(
      f'the {split} split of {task.name}',
      'no example inside the word list' if config.filtered else 'no examples',
      'give more examples or, for filtered=True, another word list',
    )
  if loading.splits_training_file(config) and split == config.split:
    drawn = config.per_label and config.eval_per_label
    progress.log(
      f'{task.name}: no {split} file, so {len(selected):,} examples of {config.train} form the '
      f'{split} split, {"an equal number of each label" if drawn else "selected by hash"}'
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
  """Returns the number of examples of each split or part; 0 for a missing split.

  Raises:
    InputError: The source has no split at all, a row is invalid, or the recipe reports the training
      split or an unknown split.
  """
  counts, missing = {}, []
  splits = [full for name in loading.TASK_SPLITS for full in list_splits(task, name)]
  for split in dict.fromkeys((*splits, *list_reported_splits(task, config))):
    try:
      counts[split] = len(_select(task, config, split))
    except loading.MissingSplit as error:
      counts[split] = 0
      missing.append(error)
  if len(missing) == len(counts):
    raise missing[0]
  return counts


def hold_out_examples(examples: Examples, fraction: float) -> tuple[Examples, Examples]:
  """Returns training and validation examples; validation has round(fraction n), chosen by hash.

  Texts that differ only in case or white space stay in the same part. Each part keeps the order of
  the examples, and training keeps two examples of each class.

  Raises:
    InputError: A part would be empty.
  """
  classes = None if examples.labels.dtype.kind == 'f' else examples.labels.tolist()
  texts = ['\0'.join(pair) for pair in examples.pairs]
  held_out = loading.split_validation(texts, fraction, classes)
  indices = range(len(texts))
  if not held_out or round(fraction * len(indices)) == len(indices):
    raise InputError(
      f'validation_fraction={fraction} of {len(indices):,} examples',
      f'{len(held_out):,} validation examples',
      'give more examples, or another fraction',
    )
  return examples.select([i for i in indices if i not in held_out]), examples.select(
    [i for i in indices if i in held_out]
  )


def check_task(task: Task, train: Examples, *others: Examples) -> None:
  """Checks that training has at least two examples of each label; regressions pass.

  Raises:
    InputError: Another split has a label without training examples, or a label has fewer than two.
  """
  if task.kind == REGRESSION:
    return
  labelled = train.labels[~labels.mask_unlabelled(train.labels)]
  counts = np.bincount(labelled, minlength=len(task.labels))
  for label in sorted({label for other in others for label in other.labels.tolist()}):
    if label != labels.UNLABELLED and not counts[label]:
      raise InputError(
        f'the label {task.labels[label]!r} of {task.name}',
        'no training examples, but examples in another split',
        'add training examples of the label, raise a limit of training examples in the recipe, or '
        'remove the label from the other splits',
      )
  for name, count in zip(task.labels, counts.tolist(), strict=True):
    if count < loading.MIN_CLASS_SIZE:
      raise InputError(
        f'the label {name!r} of {task.name}',
        f'{count} training example{"s" * (count != 1)}',
        'give at least two of each label; to predict numbers, set --config.task.kind=regression',
      )


def check_labelled(examples: Examples, purpose: str) -> Examples:
  """Returns the examples if every label is known, else raises InputError with the purpose."""
  unknown = np.flatnonzero(labels.mask_unlabelled(examples.labels))
  if len(unknown):
    raise InputError(
      purpose,
      f'{len(unknown):,} of {len(examples.labels):,} examples without a label, the first '
      f'{examples.first[unknown[0]]!r:.60}',
      'label or remove these examples, or use another split; the test splits of GLUE have no labels',
    )
  return examples


def hash_examples(examples: Examples) -> str:
  """Returns the SHA-256 checksum of the texts and labels in their order."""
  rows = [
    (*pair, label) for pair, label in zip(examples.pairs, examples.labels.tolist(), strict=True)
  ]
  return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


def _select(task: Task, config: TaskConfig, split: str) -> list[_Example]:
  """Returns the examples of a split that the recipe selects."""
  is_train, is_reported = split == 'train', split in list_splits(task, config.split)
  if loading.splits_training_file(config) and (is_train or is_reported):
    examples = _read_training_examples(task, config)
    texts = [example.joined_text for example in examples]
    if config.per_label and config.eval_per_label:
      train, evaluation = loading.sample_balanced_splits(
        texts, _list_label_names(task, examples), config.per_label, config.eval_per_label
      )
      return [examples[i] for i in (train if is_train else evaluation)]
    classes = None if task.kind == REGRESSION else [example.label for example in examples]
    held_out = loading.split_validation(texts, _EVAL_FRACTION, classes)
    examples = [example for i, example in enumerate(examples) if (i in held_out) != is_train]
  elif is_train:
    examples = _read_training_examples(task, config)
  else:
    examples = list(_read(task, config, split))
  per_label = config.per_label if is_train else config.eval_per_label if is_reported else 0
  if per_label:
    indices = loading.sample_balanced(_list_label_names(task, examples), per_label)
    examples = [examples[i] for i in indices]
  if is_train and 0 < config.max_train_examples < len(examples):
    texts = [example.joined_text for example in examples]
    examples = [examples[i] for i in loading.select_by_hash(texts, config.max_train_examples)]
  return examples


def _read_label_column(task: Task, config: TaskConfig) -> Iterator[Any]:
  columns = (*task.fields, task.label)
  for number, row in enumerate(loading.read_rows(task, config, 'train'), 1):
    require_columns(row, columns, f'row {number:,} of the train split of {task.name}')
    yield row[task.label]


def _read_training_examples(task: Task, config: TaskConfig) -> list[_Example]:
  """Returns the examples of the training split before any selection by hash or label.

  Raises:
    InputError: A label is unknown.
  """
  examples = list(_read(task, config, 'train'))
  unlabelled = [example for example in examples if labels.is_unknown(example.label, task)]
  if unlabelled:
    first = unlabelled[0]
    raise InputError(
      f'training on {task.name}',
      f'{len(unlabelled):,} of {len(examples):,} examples without a label, the first in row '
      f'{first.row:,}: {first.texts[0]!r:.60}',
      'label these rows or remove them from the training file',
    )
  return examples


def _list_label_names(task: Task, examples: Sequence[_Example]) -> list[str]:
  if any(example.label == labels.UNLABELLED for example in examples):
    raise InputError(
      f'a number of examples of each label of {task.name}',
      'examples without a label',
      'give a split with labels',
    )
  return [task.labels[int(example.label)] for example in examples]


def _read(task: Task, config: TaskConfig, split: str) -> Iterator[_Example]:
  """Yields each example that the filter keeps."""
  words = filters.load_word_list(config.word_list).words if config.filtered else frozenset()
  is_unscored = split.startswith('test') and split not in list_splits(task, config.split)
  # Published data sets may have empty texts, and their predictions need every row.
  is_published = bool(config.data_dir or task.submission_name)
  for number, row in enumerate(loading.read_rows(task, config, split), 1):
    where = f'row {number:,} of the {split} split of {task.name}'
    # Files of test splits for predictions alone have no label column.
    is_unlabelled = is_unscored and task.label not in row
    require_columns(row, task.fields if is_unlabelled else (*task.fields, task.label), where)
    texts = tuple(row[field] for field in task.fields)
    for field, text in zip(task.fields, texts, strict=True):
      require_text(text, f'text in {field!r}', where)
      is_pair = len(texts) == 2 and not task.concatenate_fields
      if is_pair and not is_published and not text.strip():
        raise InputError(
          f'two texts in {where}', f'an empty {field!r}', 'add the text, or remove the row'
        )
    label = labels.parse_label(None if is_unlabelled else row[task.label], task, where)
    if task.concatenate_fields:
      texts = (' '.join(text for text in texts if text),)
    if config.filtered:
      filtered = texts if task.concatenate_fields else [row[field] for field in task.filter_fields]
      if not filters.is_inside_word_list(' '.join(filtered), words):
        continue
    has_submission = is_unscored and bool(task.submission_name)
    yield _Example(texts, label, number, _find_index(row, number - 1, has_submission, where))


def _find_index(row: Mapping[str, Any], default: int, is_required: bool, where: str) -> int:
  """Returns the value of the column `idx`, or the default without such a column.

  Raises:
    InputError: The value is not a whole number, and a submission needs it.
  """
  if _INDEX_COLUMN not in row:
    return default
  match = _INDEX.fullmatch(str(row[_INDEX_COLUMN]))
  if match:
    return int(match[1])
  if is_required:
    raise InputError(
      f'the number of an example in the column {_INDEX_COLUMN!r}',
      f'{row[_INDEX_COLUMN]!r} in {where}',
      "give the whole numbers of GLUE's file, or remove the column to number the rows from 0",
    )
  return default
