"""Prepares standard output and error, so that no encoding and no closed stream ends a command.

| stream | handling |
|---|---|
| closed at the start (`>&-`) | opened on the null device, so that no file takes its descriptor |
| output that is not UTF-8 | ASCII in place of typographic characters, escapes for all others |
| error whose reader has exited, or whose terminal is closed | further messages are dropped |

A closed reader of standard output raises BrokenPipeError, which ends a command with status 0.
"""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

_ERROR_HANDLER = 'minilm_jax_ascii'
_ASCII = {
  '×': 'x',
  '±': '+-',
  '▁': '_',
  '–': '-',
  '—': '-',
  '…': '...',
  '‘': "'",
  '’': "'",
  '“': '"',
  '”': '"',
  '²': '2',
  'ρ': 'rho',
  '→': '->',
  '≤': '<=',
  '≥': '>=',
}


class TolerantStream:
  """A text stream that drops what it cannot write, for messages."""

  def __init__(self, stream: Any):
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Writes text, and returns the number of its characters."""
    with contextlib.suppress(OSError):
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    """Writes the buffer."""
    with contextlib.suppress(OSError):
      self._stream.flush()


@contextlib.contextmanager
def prepare_streams() -> Iterator[None]:
  """Prepares standard output and error; restores standard error after the block."""
  _open_missing()
  codecs.register_error(_ERROR_HANDLER, _replace_characters)
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors=_ERROR_HANDLER)
  messages = sys.stderr
  sys.stderr = cast(TextIO, TolerantStream(messages))
  try:
    yield
  finally:
    sys.stderr = messages


def _open_missing() -> None:
  """Opens the null device in place of the standard streams that are closed."""
  for descriptor in range(3):
    try:
      os.fstat(descriptor)
    except OSError:
      opened = os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor
      os.set_inheritable(opened, True)
  if sys.stdout is None:
    sys.stdout = open(1, 'w', encoding='utf-8', closefd=False)
  if sys.stderr is None:
    sys.stderr = open(2, 'w', encoding='utf-8', closefd=False)


def _replace_characters(error: UnicodeError) -> tuple[str, int]:
  """Returns ASCII for characters that an encoding lacks, and the index after them."""
  if not isinstance(error, UnicodeEncodeError):
    raise error
  letters = error.object[error.start : error.end]
  replaced = (
    _ASCII.get(letter) or letter.encode('ascii', 'backslashreplace').decode() for letter in letters
  )
  return ''.join(replaced), error.end
