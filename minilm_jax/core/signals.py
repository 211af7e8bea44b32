"""SIGTERM and SIGINT: where they end the program in order, and where they are noted so that a loop
can save first.

Python runs a handler in the main thread between two of its instructions, so that what the first
signal begins goes through every `finally`. A second one ends the process at once. In another
thread, and for a signal that the process was told to ignore (as a shell does with SIGINT of what it
runs in the background), nothing here does anything.
"""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator

# a shell's status of a program that a signal ended is this and the number of the signal
_EXIT_OFFSET = 128
_blocks, _came = 0, False  # blocks that are entered; has a signal come since the outermost began?


class Interrupted(KeyboardInterrupt):
  """A signal asked for the end: its number, the exit status that tells of it, and a sentence."""

  def __init__(self, number: int, said: str = '; the same command goes on from what is on disk'):
    super().__init__(f'stopped by {signal.Signals(number).name}{said}')
    self.number, self.status = number, _EXIT_OFFSET + number


class InterruptedAfterSave(Interrupted):
  """All processes of a run raise it together, when what they had reached is on disk."""


@dataclasses.dataclass
class SignalFlag:
  """The number of the signal that has come, or 0."""

  number: int = 0


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
  """For a whole program: the first signal raises `Ended` wherever the main thread is.

  After one has come the handlers stay: also while the process leaves, another one ends it at once.
  """

  def end(number: int) -> None:
    raise Interrupted(number)

  with _handled(end, stay=True):
    yield


@contextlib.contextmanager
def note_signals() -> Iterator[SignalFlag]:
  """For a loop that looks at the flag and saves before it ends.

  Raises:
    Ended: a signal came, and the block ended as if none had.
  """
  flag = SignalFlag()

  def note(number: int) -> None:
    flag.number = number

  with _handled(note):
    yield flag
  if flag.number:
    raise Interrupted(flag.number)


@contextlib.contextmanager
def _handled(first: Callable[[int], None], stay: bool = False) -> Iterator[None]:
  """Calls `first` with the number of the first signal; the next one, in whatever block, leaves."""
  global _blocks, _came
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def handler(number: int, _: object) -> None:
    global _came
    if _came:
      os._exit(_EXIT_OFFSET + number)
    _came = True
    first(number)

  _blocks, _came = _blocks + 1, _came and _blocks > 0
  wanted = [
    number
    for number in (signal.SIGTERM, signal.SIGINT)
    if signal.getsignal(number) != signal.SIG_IGN
  ]
  before = {number: signal.signal(number, handler) for number in wanted}
  try:
    yield
  finally:
    _blocks -= 1
    if not (stay and _came):
      for number, old in before.items():
        signal.signal(number, old or signal.SIG_DFL)  # None: set by what is not Python
