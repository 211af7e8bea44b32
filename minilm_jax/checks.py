"""Rules that a configuration annotates its fields with, and the base class that applies them.

    @dataclasses.dataclass(frozen=True)
    class MeshConfig(Checked):
      where = 'mesh.'
      data: Annotated[int, at_least(0)]
"""

import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from minilm_jax.errors import InputError, nearest

Rule = Callable[[str, Any], None]


def at_least(least: float) -> Rule:
  """A number that is not smaller."""
  def check(field: str, value: float) -> None:
    if not value >= least:
      raise InputError(f'{field}={value}', f'a value below {least}', f'give at least {least}')
  return check


def at_most(most: float) -> Rule:
  """A number that is not larger: what would fill any memory is refused before anything is made of it."""
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


def one_of(*known: str) -> Rule:
  """One of a few words; every item of a tuple is checked."""
  def check(field: str, value: str | tuple[str, ...]) -> None:
    for word in (value,) if isinstance(value, str) else value:
      if word not in known:
        raise InputError(f'{field}={word!r}', 'no such choice', f'{nearest(word, known)} (choices: {", ".join(known)})')
  return check


Positive, Count, Share = Annotated[int, at_least(1)], Annotated[int, at_least(0)], Annotated[float, check_share]
Amount = Annotated[float, at_least(0)]
MOST_SIZE = 2**24  # of one axis of anything that is made in memory
Size = Annotated[int, at_least(1), at_most(MOST_SIZE)]


class Checked:
  """Applies the rules that a dataclass annotates its fields with, and lets no number pass that is not finite.

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
          raise InputError(f'{self.where}{field.name}={number}', 'no number, or one that has no end',
                           'give a finite number')
