"""Rules that a configuration annotates its fields with, and the base class that applies them.

@dataclasses.dataclass(frozen=True)
class MeshConfig(Checked):
  where = 'mesh.'
  data: Annotated[int, at_least(0)]
"""

import dataclasses
import math
import re
import reprlib
import typing
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from minilm_jax.core.errors import InputError, suggest_name

FieldRule = Callable[[str, Any], None]


def at_least(least: float) -> FieldRule:
  """A number that is not smaller."""

  def check(field: str, value: float) -> None:
    if not value >= least:
      raise InputError(f'{field}={value}', f'a value below {least}', f'give at least {least}')

  return check


def at_most(most: float) -> FieldRule:
  """A number that is not larger: what would fill any memory is refused before anything is made of
  it.
  """

  def check(field: str, value: float) -> None:
    if value > most:
      raise InputError(f'{field}={value}', f'a value above {most:,}', f'give at most {most}')

  return check


def check_share(field: str, value: float) -> None:
  """A number from 0 to 1."""
  if not 0 <= value <= 1:
    raise InputError(f'{field}={value}', 'not a share between 0 and 1', 'give a number from 0 to 1')


def check_seed(field: str, value: int | tuple[int, ...]) -> None:
  """What a random stream can start from, 32 bits; every item of a tuple is checked."""
  for number in (value,) if isinstance(value, int) else value:
    if not 0 <= number < 2**32:
      raise InputError(f'{field}={number}', 'not a number from 0 to 2^32 - 1', 'give one that is')


def one_of(*known: str) -> FieldRule:
  """One of a few words; every item of a tuple is checked."""

  def check(field: str, value: str | tuple[str, ...]) -> None:
    for word in (value,) if isinstance(value, str) else value:
      if word not in known:
        raise InputError(
          f'{field}={word!r}',
          'no such choice',
          f'{suggest_name(word, known)} (choices: {", ".join(known)})',
        )

  return check


PositiveInt, NonNegativeInt, Fraction = (
  Annotated[int, at_least(1)],
  Annotated[int, at_least(0)],
  Annotated[float, check_share],
)
NonNegativeFloat = Annotated[float, at_least(0)]
MAX_AXIS_SIZE = 2**24  # of one axis of anything that is made in memory
AxisSize = Annotated[int, at_least(1), at_most(MAX_AXIS_SIZE)]


class Checked:
  """Applies the rules that a dataclass annotates its fields with, and lets no number pass that is
  not finite.

  `where` is what recipes call the group.
  """

  where: ClassVar[str] = ''

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      kind = typing.get_type_hints(type(self), include_extras=True)[field.name]
      value = getattr(self, field.name)
      for rule in getattr(kind, '__metadata__', ()):
        rule(self.where + field.name, value)
      for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):  # config.json could not hold it
          raise InputError(
            f'{self.where}{field.name}={number}',
            'no number, or one that has no end',
            'give a finite number',
          )


# What data from a file must look like before anything reads it: forms of JSON, and what keeps a
# value from its form.
TEXT, COUNT, NUMBER, FLAG, ANY = (
  'text',
  'a whole number from 0',
  'a number or null',
  'true or false',
  'anything',
)
MAYBE = 'a whole number from 0 or null'
Schema = str | list | dict
# JSON can hold halves of surrogate pairs, which is also how Python hands on arguments that are not
# UTF-8.
NO_TEXT = re.compile('[\0\ud800-\udfff]')
_COUNTED, _LARGEST = 2**63, 10**300  # what fits an array, and what fits a float


def find_schema_fault(value: Any, form: Schema, name: str = 'it') -> str:
  """What keeps a value from having a form, in words; '' where nothing does.

  >>> find_schema_fault({'step': -1, 'more': 0}, {'step': COUNT, 'loss?': NUMBER})
  'step is -1, not a whole number from 0'
  >>> find_schema_fault([{'file': 'a'}, {}], [{'file': TEXT}], 'shards')
  'no file in shards[1]'
  """
  if isinstance(form, dict):
    if not isinstance(value, dict):
      return f'{name} is {reprlib.repr(value)}, not an object'
    inside = '' if name == 'it' else f'{name}.'
    for field, inner in form.items():
      key = field.removesuffix('?')
      if key not in value and key == field:
        return f'no {key} in {name}'
      if key in value and (found := find_schema_fault(value[key], inner, inside + key)):
        return found
    return ''
  if isinstance(form, list):
    if not isinstance(value, list):
      return f'{name} is {reprlib.repr(value)}, not a list'
    return next(
      (
        found
        for i, item in enumerate(value)
        if (found := find_schema_fault(item, form[0], f'{name}[{i}]'))
      ),
      '',
    )
  return '' if _has(value, form) else f'{name} is {reprlib.repr(value)}, not {form}'


def _has(value: Any, form: str) -> bool:
  if form == ANY or value is None and form in (NUMBER, MAYBE):
    return True
  if form == TEXT:
    return isinstance(value, str) and not NO_TEXT.search(value)
  if isinstance(value, bool) or form == FLAG:
    return isinstance(value, bool) and form == FLAG
  if form == NUMBER:
    return isinstance(value, float) or isinstance(value, int) and abs(value) < _LARGEST
  return isinstance(value, int) and 0 <= value < _COUNTED
