"""SIGTERM and SIGINT: they raise an exception, or set a flag so that a loop can save first.

Python runs a handler in the main thread between two instructions, so that the exception of the
first signal runs every `finally`. A second signal ends the process at once. Nothing is done in
other threads, and for ignored signals (a shell ignores SIGINT for background processes).
"""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator

_EXIT_OFFSET = 128  # the exit status after a signal is this plus its number, as in a shell
_num_blocks, _is_signaled = 0, False  # entered blocks; a signal came since the outermost began


class Interrupted(KeyboardInterrupt):
  """A signal ended the program: its number, the exit status, and a message."""

  def __init__(self, number: int, details: str = '; the same command goes on from what is on disk'):
    super().__init__(f'stopped by {signal.Signals(number).name}{details}')
    self.number, self.status = number, _EXIT_OFFSET + number


class InterruptedAfterSave(Interrupted):
  """A signal ended training after a checkpoint; all processes of a run raise it together."""


@dataclasses.dataclass
class SignalFlag:
  """The number of the signal that has come, or 0."""

  number: int = 0


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
  """Raises `Interrupted` in the main thread at the first signal, for a whole program.

  The handlers stay after a signal: another one also ends the process while it exits.
  """

  def interrupt(number: int) -> None:
    raise Interrupted(number)

  with _handle_signals(interrupt, stay=True):
    yield


@contextlib.contextmanager
def note_signals() -> Iterator[SignalFlag]:
  """Yields a flag that the first signal sets, for a loop that saves before it ends.

  Raises:
    Interrupted: a signal came, and the block ended without an exception.
  """
  flag = SignalFlag()

  def note(number: int) -> None:
    flag.number = number

  with _handle_signals(note):
    yield flag
  if flag.number:
    raise Interrupted(flag.number)


@contextlib.contextmanager
def _handle_signals(on_first: Callable[[int], None], stay: bool = False) -> Iterator[None]:
  """Calls `on_first` with the number of the first signal; the next one exits, in any block."""
  global _num_blocks, _is_signaled
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def handler(number: int, _: object) -> None:
    global _is_signaled
    if _is_signaled:
      os._exit(_EXIT_OFFSET + number)
    _is_signaled = True
    on_first(number)

  _num_blocks, _is_signaled = _num_blocks + 1, _is_signaled and _num_blocks > 0
  old_handlers = {
    number: signal.signal(number, handler)
    for number in (signal.SIGTERM, signal.SIGINT)
    if signal.getsignal(number) != signal.SIG_IGN
  }
  try:
    yield
  finally:
    _num_blocks -= 1
    if not (stay and _is_signaled):
      for number, old_handler in old_handlers.items():
        signal.signal(number, old_handler or signal.SIG_DFL)  # None: set outside of Python
