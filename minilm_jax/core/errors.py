"""Defines InputError, the error for invalid input, and the checks of fields and of JSON.

Every module raises `InputError` for unusable input. `cli/main.py` prints the error and exits with
status 2. Errors of the program itself remain Python exceptions with a traceback.

    @dataclasses.dataclass(frozen=True)
    class MeshConfig(Checked):
      prefix = 'mesh.'
      data: Annotated[int, at_least(0)] = 0

    find_schema_fault(json.loads(text), {'step': COUNT, 'loss?': NUMBER, 'shards': [{'file': TEXT}]})

A rule of a field raises InputError with its name and value. A schema is a type such as `COUNT`, a
dict for an object, or a list with the schema of its items. In a dict, `?` marks optional fields;
unlisted fields are allowed.
"""

import dataclasses
import difflib
import importlib.util
import math
import re
import reprlib
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar

# Built-in exceptions that parsers raise for damaged or hostile data.
PARSE_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, MemoryError)
# Built-in exceptions that large libraries raise for damaged data or a wrong environment.
LIBRARY_ERRORS = (
  *PARSE_ERRORS,
  OSError,
  EOFError,
  ImportError,
  RuntimeError,
  AttributeError,
  AssertionError,
)
_MAX_PART_CHARS = 2000  # a part can quote an untrusted file
# Control characters except tab and line feed, direction marks and surrogates.
_UNSAFE_CHARACTERS = re.compile(
  '[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]'
)


def sanitize(text: str) -> str:
  """Returns untrusted text with U+FFFD for characters that control a terminal or reorder text.

  >>> sanitize('a\\x1b[2Jb').isprintable()
  True
  """
  return _UNSAFE_CHARACTERS.sub('\ufffd', text)


class InputError(Exception):
  """Describes invalid input by three parts: the request, the fact and the remedy.

  Each part is printed on one line, escaped and limited to 2,000 characters.

  Example:
    >>> print(InputError('a batch of 0 rows', 'batch_size=0', 'give a positive batch_size'))
    asked: a batch of 0 rows
    found: batch_size=0
    to do: give a positive batch_size
  """

  def __init__(self, asked: str, found: str, remedy: str):
    self.asked, self.found, self.remedy = map(_format_line, (asked, found, remedy))
    super().__init__(f'asked: {self.asked}\nfound: {self.found}\nto do: {self.remedy}')


def _format_line(text: str) -> str:
  """Returns text of limited length with escapes for unprintable characters and line breaks."""
  text = str(text)
  if len(text) > _MAX_PART_CHARS:
    text = f'{text[:_MAX_PART_CHARS]}...'
  return ''.join(
    letter if letter.isprintable() else letter.encode('unicode_escape').decode() for letter in text
  )


def require_library(library: str, extra: str, subject: str) -> None:
  """Raises InputError if a library is not installed.

  >>> require_library('json', 'none', 'a row')
  """
  if importlib.util.find_spec(library) is None:
    raise InputError(
      subject, f'{library} is not installed', f"run pip install 'minilm_jax[{extra}]'"
    )


def suggest_name(name: str, known: Iterable[str]) -> str:
  """Returns a question with the nearest known name, or a list of all known names.

  >>> suggest_name('batchsize', ['batch_size', 'seed'])
  "did you mean 'batch_size'?"
  """
  known = sorted(set(known))
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  if close:
    return f'did you mean {close[0]!r}?'
  return 'known names are ' + (', '.join(known) or '(none)')


def check_name(asked: str, kind: str, name: str, known: Iterable[str]) -> None:
  """Raises InputError with the nearest known name if a name is unknown.

  Args:
    asked: The request, the first part of the error.
    kind: Kind of the name, such as 'metric'.
  """
  if name not in known:
    raise InputError(asked, f'no such {kind}', suggest_name(name, known))


FieldRule = Callable[[str, Any], None]
MAX_AXIS_SIZE = 2**24  # elements along an axis of an array
TEXT, COUNT, NUMBER = 'text', 'a whole number from 0', 'a number or null'
FLAG, ANY, MAYBE = 'true or false', 'anything', 'a whole number from 0 or null'
Schema = str | list | Mapping[str, Any]
# NUL, and surrogates, which JSON and undecodable arguments of a process can contain.
NO_TEXT = re.compile('[\0\ud800-\udfff]')
_COUNT_LIMIT, _NUMBER_LIMIT = 2**63, 10**300  # limits of int64 and of float64


def at_least(minimum: float) -> FieldRule:
  """Returns the rule that a number is at least `minimum`."""

  def check(field: str, value: float) -> None:
    if not value >= minimum:
      raise InputError(f'{field}={value}', f'a value below {minimum}', f'give at least {minimum}')

  return check


def at_most(maximum: float) -> FieldRule:
  """Returns the rule that a number is at most `maximum`, which protects memory."""

  def check(field: str, value: float) -> None:
    if value > maximum:
      raise InputError(f'{field}={value}', f'a value above {maximum:,}', f'give at most {maximum}')

  return check


def one_of(*choices: str) -> FieldRule:
  """Returns the rule that a word is one of `choices`."""

  def check(field: str, value: str) -> None:
    if value not in choices:
      raise InputError(
        f'{field}={value!r}',
        'an unknown value',
        f'{suggest_name(value, choices)} (choices: {", ".join(choices)})',
      )

  return check


def check_seed(field: str, value: int) -> None:
  """Raises InputError for a number outside uint32, the type of seeds."""
  if not 0 <= value < 2**32:
    raise InputError(
      f'{field}={value}', 'a number outside 0 to 2^32 - 1', 'give a number such as 0'
    )


PATH = 'path'  # marks the type of a field that names a file or folder
PathText = Annotated[str, PATH]
PositiveInt = Annotated[int, at_least(1)]
NonNegativeInt = Annotated[int, at_least(0)]
NonNegativeFloat = Annotated[float, at_least(0)]
Fraction = Annotated[float, at_least(0), at_most(1)]
AxisSize = Annotated[int, at_least(1), at_most(MAX_AXIS_SIZE)]
OptionalAxisSize = Annotated[int, at_least(0), at_most(MAX_AXIS_SIZE)]
RowLength = Annotated[int, at_least(4), at_most(MAX_AXIS_SIZE)]


@dataclasses.dataclass(frozen=True)
class Checked:
  """Base class that applies the rules of its fields on construction and refuses NaN and infinity.

  The rules of a field with a tuple apply to each item. `check_together` adds rules on several fields.

  Attributes:
    prefix: name of the group in recipes followed by a dot, such as `mesh.`.
  """

  prefix: ClassVar[str] = ''

  def __post_init__(self) -> None:
    hints = typing.get_type_hints(type(self), include_extras=True)
    for field in dataclasses.fields(self):
      name, value = self.prefix + field.name, getattr(self, field.name)
      rules = [rule for rule in getattr(hints[field.name], '__metadata__', ()) if rule != PATH]
      for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, float) and not math.isfinite(item):  # config.json cannot hold it
          raise InputError(f'{name}={item}', 'NaN or infinity', 'give a finite number')
        for rule in rules:
          rule(name, item)
    self.check_together()

  def check_together(self) -> None:
    """Raises InputError for fields that do not fit together."""

  def format_fields(self, *names: str) -> str:
    """Returns fields as on the command line, such as 'mask.rate=0.15, mask.span=0'."""
    values = {name: getattr(self, name) for name in names}
    return ', '.join(
      f'{self.prefix}{name}={",".join(map(str, value)) if isinstance(value, tuple) else value}'
      for name, value in values.items()
    )

  def refuse_both(self, first: str, second: str, found: str) -> None:
    """Raises InputError if two alternative fields are both set."""
    if getattr(self, first) and getattr(self, second):
      raise InputError(
        self.format_fields(first, second), found, "set one field to its default, 0 or ''"
      )


def find_schema_fault(value: Any, form: Schema, name: str = 'it') -> str:
  """Returns the first difference between a JSON value and its schema in words, or ''.

  >>> find_schema_fault({'step': -1, 'more': 0}, {'step': COUNT, 'loss?': NUMBER})
  'step is -1, not a whole number from 0'
  >>> find_schema_fault([{'file': 'a'}, {}], [{'file': TEXT}], 'shards')
  'no file in shards[1]'
  """
  if isinstance(form, str):
    return '' if _has_type(value, form) else f'{name} is {reprlib.repr(value)}, not {form}'
  if isinstance(form, list):
    if not isinstance(value, list):
      return f'{name} is {reprlib.repr(value)}, not a list'
    faults = (find_schema_fault(item, form[0], f'{name}[{i}]') for i, item in enumerate(value))
    return next(filter(None, faults), '')
  if not isinstance(value, dict):
    return f'{name} is {reprlib.repr(value)}, not an object'
  prefix = '' if name == 'it' else f'{name}.'
  for key, inner in form.items():
    field = key.removesuffix('?')
    if field in value:
      if fault := find_schema_fault(value[field], inner, prefix + field):
        return fault
    elif field == key:
      return f'no {field} in {name}'
  return ''


def _has_type(value: Any, form: str) -> bool:
  if form == ANY or value is None:
    return form in (ANY, NUMBER, MAYBE)
  if form == TEXT:
    return isinstance(value, str) and not NO_TEXT.search(value)
  if form == FLAG or isinstance(value, bool):
    return form == FLAG and isinstance(value, bool)
  if form == NUMBER:
    return isinstance(value, float) or isinstance(value, int) and abs(value) < _NUMBER_LIMIT
  return isinstance(value, int) and 0 <= value < _COUNT_LIMIT


def to_json_types(value: Any) -> Any:
  """Returns a value in the types of JSON, with None for NaN and infinity."""
  if isinstance(value, Mapping):
    return {name: to_json_types(inner) for name, inner in value.items()}
  if isinstance(value, (list, tuple)):
    return [to_json_types(inner) for inner in value]
  if hasattr(value, 'item'):
    value = value.item()
  return None if isinstance(value, float) and not math.isfinite(value) else value
