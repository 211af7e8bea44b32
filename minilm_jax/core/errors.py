"""The one error a user sees: what was asked, what was found, what to do.

Every room raises `InputError` for input it cannot use; the door (`__main__`) prints it and exits
with status 2. Errors in the program itself keep their ordinary Python types and their traceback.
"""

import difflib
import importlib.util
import re
from collections.abc import Iterable

# characters of a part: what a hostile file holds is shown, but not all of it
_MAX_PART_CHARS = 2000
# Control characters but tab and line feed, signs that turn the direction of text, and halves of
# characters.
_UNSAFE_CHARACTERS = re.compile(
  '[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]'
)


def sanitize(text: str) -> str:
  """Text of others as a reader may see it: what steers a terminal, or lets it be read in another
  order, is U+FFFD.

  >>> sanitize('a\\x1b[2Jb').isprintable()
  True
  """
  return _UNSAFE_CHARACTERS.sub('\ufffd', text)


class InputError(Exception):
  """Input that cannot be used.

  >>> print(InputError('a batch of 0 rows', 'batch_size=0', 'give a positive batch_size'))
  asked: a batch of 0 rows
  found: batch_size=0
  to do: give a positive batch_size
  """

  def __init__(self, asked: str, found: str, remedy: str):
    self.asked, self.found, self.remedy = (
      _as_one_line(asked),
      _as_one_line(found),
      _as_one_line(remedy),
    )
    super().__init__(f'asked: {self.asked}\nfound: {self.found}\nto do: {self.remedy}')


def _as_one_line(text: str) -> str:
  """One line that a terminal can show: what does not print, which might move its cursor, is
  escaped.
  """
  text = str(text) if len(str(text)) <= _MAX_PART_CHARS else f'{str(text)[:_MAX_PART_CHARS]}...'
  return (
    text
    if text.isprintable()
    else ''.join(
      letter if letter.isprintable() else letter.encode('unicode_escape').decode()
      for letter in text
    )
  )


def require_library(library: str, extra: str, asked: str) -> None:
  """Raises InputError where a library is not installed that only an extra of setup.py brings.

  >>> require_library('json', 'none', 'a row')
  """
  if importlib.util.find_spec(library) is None:
    raise InputError(asked, f'{library} is not installed', f"pip install 'minilm_jax[{extra}]'")


def suggest_name(name: str, known: Iterable[str]) -> str:
  """A clause that names what was probably meant, or everything there is when nothing comes near.

  >>> suggest_name('batchsize', ['batch_size', 'seed'])
  "did you mean 'batch_size'?"
  """
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  if close:
    return f'did you mean {close[0]!r}?'
  return 'known names are ' + (', '.join(known) or '(none)')
