"""What the label column of a row says: a class index by number or name, a number, or that the label is unknown.

Labels of the table are known by name and by index. Those found in a training file are known by name alone: there '1' is
the class called 1, wherever it stands in the order, and -1 too is a class if training shows it.
"""

import math
import numbers
import re
from collections.abc import Collection, Iterable
from typing import Any

from minilm_jax import shape
from minilm_jax.errors import InputError, nearest
from minilm_jax.tasks.table import Task

UNLABELLED = -1  # as TFDS marks an example whose label is not public

_WHOLE = re.compile('-?[0-9]{1,9}')


def require(row: Collection[str], columns: Iterable[str], where: str) -> None:
  """Lets a row pass that has all these columns.

  Raises:
    InputError: one is missing.
  """
  columns = tuple(columns)
  for column in columns:
    if column not in row:
      raise InputError(f'the column {column!r}', f'{where} has {", ".join(map(str, row)) or "nothing"}',
                       f'give the columns {", ".join(columns[:-1])} and {columns[-1]}; in a recipe, task.fields and '
                       'task.label name others')


def found(values: Iterable[Any], where: str) -> tuple[str, ...]:
  """The classes that a label column shows, as text: in their order if all are whole numbers, else in the alphabet's.

  Args:
    values: the column, of which each is text or a whole number.
    where: what the rows are called, as in 'the train split of own'.

  Raises:
    InputError: a value is neither, or there are not two classes.
  """
  names = {_name(value, f'row {number:,} of {where}') for number, value in enumerate(values, 1)}
  if len(names) < 2:
    raise InputError(f'the classes of {where}', f'one label alone, {min(names)!r}' if names else 'no example',
                     'give examples of two classes or more')
  return tuple(sorted(names, key=int if all(map(_WHOLE.fullmatch, names)) else None))


def index(value: Any, task: Task, where: str) -> int:
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
    raise InputError(f'a label of {task.name}', f'{name!r} in {where}, which training never shows',
                     f'{nearest(name, task.labels)} (-1 where unknown)')
  if value in task.labels:
    return task.labels.index(value)
  number = int(value) if isinstance(value, str) and _WHOLE.fullmatch(value) else value
  real = isinstance(number, numbers.Real) and not isinstance(number, bool)
  if real and number in range(UNLABELLED, len(task.labels)):
    return int(number)
  known = ', '.join(f'{i} or {name!r}' for i, name in enumerate(task.labels))
  hint = f'{nearest(value, task.labels)} ' if isinstance(value, str) and number is value else ''
  raise InputError(f'a label of {task.name}', f'{value!r} in {where}', f'{hint}(labels are {known}; -1 where unknown)')


def number(value: Any, where: str) -> float:
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
  if not isinstance(value, str) or not value.strip() or shape.NO_TEXT.search(value):
    raise InputError('the name of a class', f'{value!r} in {where}',
                     'give text or a whole number; for a number to predict, --config.task.kind=regression')
  return value
