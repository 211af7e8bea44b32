"""Converts the values of a label column to class indices or numbers.

A class has the same name in every format: `1.0` is `1`, as tables write whole numbers of a column
with gaps; JSON's `true` is `True`, as pandas writes it to CSV; and blanks around a name do not
count. An empty cell and null are unknown labels. So is -1 in the tasks of GLUE, but not in others,
and SNLI's `-` in a task with the class `entailment`.
"""

import math
import numbers
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32

from minilm_jax.core.errors import NO_TEXT, InputError, suggest_name
from minilm_jax.tasks.task import REGRESSION, Task

UNLABELLED = -1  # TFDS's label index of an example without a public label
_GLUE_PREFIX = 'glue/'  # of names in TFDS
_ENTAILMENT, _NO_CONSENSUS = 'entailment', '-'  # a class of NLI, and SNLI's mark of disagreement
_MAX_NUMBER = float(np.finfo(np.float32).max)  # of the labels of a regression
_INTEGER = re.compile('-?[0-9]{1,9}')
_WHOLE_FLOAT = re.compile(r'(-?[0-9]+)\.0*')
Labels = Int32[np.ndarray, 'n'] | Float32[np.ndarray, 'n']


def collect_labels(values: Iterable[Any], where: str) -> tuple[str, ...]:
  """Returns the classes in a label column as text, sorted as numbers if all are integers.

  Unknown labels are skipped. Errors name the rows by `where`, such as 'the train split of own'.

  Raises:
    InputError: A value is neither text nor an integer, or the column has fewer than two classes.
  """
  names = {
    _parse_class_name(value, f'row {number:,} of {where}')
    for number, value in enumerate(values, 1)
    if not _is_empty(value)
  }
  if _ENTAILMENT in names:
    names.discard(_NO_CONSENSUS)
  if len(names) < 2:
    raise InputError(
      f'the classes of {where}',
      f'only the label {min(names)!r}' if names else 'no examples with a label',
      'give examples of at least two classes',
    )
  if not all(map(_INTEGER.fullmatch, names)):
    return tuple(sorted(names))
  # The names `7` and `07` are equal numbers: without the text, the hash seed would order them.
  return tuple(sorted(names, key=lambda name: (int(name), name)))


def parse_label(value: Any, task: Task, where: str) -> int | float:
  """Returns a class index or, in a regression, a number; -1 or NaN if the label is unknown.

  Raises:
    InputError: The value is not a label of the task.
  """
  if task.kind != REGRESSION:
    return UNLABELLED if _is_empty(value) else find_label_index(value, task, where)
  if _is_empty(value):
    return math.nan
  number = parse_number(value, where)
  return math.nan if _is_glue(task) and number == UNLABELLED else number


def find_label_index(value: Any, task: Task, where: str) -> int:
  """Returns the class index of a label value, or -1 if the value marks an unknown label.

  Raises:
    InputError: The value is not a label of the task.
  """
  is_text = isinstance(value, str)
  name = _parse_class_name(value, where) if is_text or task.labels_from_data else value
  if name in task.labels:
    return task.labels.index(name)
  if name == _NO_CONSENSUS and _ENTAILMENT in task.labels:
    return UNLABELLED
  if _is_glue(task) and name in (UNLABELLED, str(UNLABELLED)):
    return UNLABELLED
  if task.labels_from_data:
    raise InputError(
      f'a label of {task.name}',
      f'{name!r} in {where}, absent from the training examples',
      f'{suggest_name(name, task.labels)} (an empty cell marks an unknown label)',
    )
  number: Any = int(name) if is_text and _INTEGER.fullmatch(name) else name
  is_number = isinstance(number, numbers.Real) and not isinstance(number, bool)
  if is_number and number in range(len(task.labels)):
    return int(float(number))
  known = ', '.join(f'{i} or {label!r}' for i, label in enumerate(task.labels))
  question = f'{suggest_name(name, task.labels)} ' if is_text and number is name else ''
  raise InputError(
    f'a label of {task.name}',
    f'{value!r} in {where}',
    f'{question}(labels are {known}; an empty cell marks an unknown label)',
  )


def parse_number(value: Any, where: str) -> float:
  """Returns a label as a number.

  Raises:
    InputError: The value is not a finite number in float32.
  """
  try:
    number = math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError, OverflowError):
    number = math.nan
  if not abs(number) <= _MAX_NUMBER:  # also true if the number is nan
    raise InputError(
      'a numeric label',
      f'{value!r} in {where}',
      f'give a finite number between {-_MAX_NUMBER:.1e} and {_MAX_NUMBER:.1e}',
    )
  return number


def is_unknown(label: int | float, task: Task) -> bool:
  """Returns whether a result of `parse_label` marks an unknown label."""
  return math.isnan(label) if task.kind == REGRESSION else label == UNLABELLED


def mask_unlabelled(labels: Labels) -> Bool[np.ndarray, 'n']:
  """Returns whether each label is unknown: -1 among class indices, NaN among numbers."""
  return np.isnan(labels) if labels.dtype.kind == 'f' else labels == UNLABELLED


def _is_glue(task: Task) -> bool:
  return task.tfds.startswith(_GLUE_PREFIX)


def _is_empty(value: Any) -> bool:
  return value is None or isinstance(value, str) and not value.strip()


def _parse_class_name(value: Any, where: str) -> str:
  if isinstance(value, (bool, np.bool_)):
    return str(bool(value))
  is_whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
  if isinstance(value, numbers.Integral) or is_whole:
    return str(int(value))
  if not isinstance(value, str) or NO_TEXT.search(value):
    raise InputError(
      'the name of a class',
      f'{value!r} in {where}',
      'give text or an integer; to predict numbers, set --config.task.kind=regression',
    )
  name = value.strip()
  whole_float = _WHOLE_FLOAT.fullmatch(name)
  return whole_float[1] if whole_float else name
