"""The error for invalid input, in three parts: what was asked, what was found, what to do.

Every module raises `InputError` for input that it cannot use; `cli/main.py` prints it and exits
with status 2. Errors of the program itself keep their Python types and their traceback.
"""

import difflib
import importlib.util
import re
from collections.abc import Iterable

# Parsers raise these on damaged or hostile data, besides errors of their own.
PARSE_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, MemoryError)
# Large libraries raise these on damaged input or a wrong environment.
LIBRARY_ERRORS = (
  *PARSE_ERRORS,
  OSError,
  EOFError,
  ImportError,
  RuntimeError,
  AttributeError,
  AssertionError,
)
_MAX_PART_CHARS = 2000  # a part may quote an untrusted file
# Control characters except tab and line feed, direction marks, and halves of surrogate pairs.
_UNSAFE_CHARACTERS = re.compile(
  '[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]'
)


def sanitize(text: str) -> str:
  """Returns untrusted text with U+FFFD for characters that steer a terminal or reorder text.

  >>> sanitize('a\\x1b[2Jb').isprintable()
  True
  """
  return _UNSAFE_CHARACTERS.sub('\ufffd', text)


class InputError(Exception):
  """Input that cannot be used, with a part for the request, the fact and the remedy.

  >>> print(InputError('a batch of 0 rows', 'batch_size=0', 'give a positive batch_size'))
  asked: a batch of 0 rows
  found: batch_size=0
  to do: give a positive batch_size
  """

  def __init__(self, asked: str, found: str, remedy: str):
    self.asked, self.found, self.remedy = map(_as_one_line, (asked, found, remedy))
    super().__init__(f'asked: {self.asked}\nfound: {self.found}\nto do: {self.remedy}')


def _as_one_line(text: str) -> str:
  """Returns text in one line of limited length; characters that do not print are escaped."""
  text = str(text)
  if len(text) > _MAX_PART_CHARS:
    text = f'{text[:_MAX_PART_CHARS]}...'
  return ''.join(
    letter if letter.isprintable() else letter.encode('unicode_escape').decode() for letter in text
  )


def require_library(library: str, extra: str, asked: str) -> None:
  """Raises InputError if a library of an extra of setup.py is not installed.

  >>> require_library('json', 'none', 'a row')
  """
  if importlib.util.find_spec(library) is None:
    raise InputError(asked, f'{library} is not installed', f"pip install 'minilm_jax[{extra}]'")


def suggest_name(name: str, known: Iterable[str]) -> str:
  """Returns a clause with the nearest known name, or with all names if none is near.

  >>> suggest_name('batchsize', ['batch_size', 'seed'])
  "did you mean 'batch_size'?"
  """
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  if close:
    return f'did you mean {close[0]!r}?'
  return 'known names are ' + (', '.join(known) or '(none)')
