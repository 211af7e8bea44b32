"""Defines InputError, the error for invalid input: request, fact and remedy.

Every module raises `InputError` for unusable input. `cli/main.py` prints the error and exits with
status 2. Errors of the program itself remain Python exceptions with a traceback.
"""

import difflib
import importlib.util
import re
from collections.abc import Iterable

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

  Attributes:
    asked: the request, with its values.
    found: the fact that prevents it.
    remedy: the action that helps.

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

  Args:
    library: name of the module.
    extra: extra of setup.py that installs the library.
    subject: what needs the library, for the error.

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
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  if close:
    return f'did you mean {close[0]!r}?'
  return 'known names are ' + (', '.join(known) or '(none)')
