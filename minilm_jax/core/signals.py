"""Handles signals by an exception, or by a flag so that a loop can save first.

| signal | sender |
|---|---|
| SIGTERM | a scheduler, or `kill` |
| SIGINT | Control-C |
| SIGHUP | a closed terminal |
| SIGUSR1 | Slurm and submitit, some time before the limit of a job |

Python runs a handler in the main thread between two instructions. The exception of the first signal
therefore runs every `finally`. A second signal exits a command immediately. In a program that calls
this package, such as a notebook, it raises an exception. Other threads and ignored signals are
unaffected; a shell ignores SIGINT for background processes, and `nohup` ignores SIGHUP.

In a job of Slurm, SIGUSR1 asks for a save alone, and the program goes on. Slurm sends SIGTERM at
the limit.
"""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator

# Windows has neither SIGHUP nor SIGUSR1.
SIGNALS = tuple(
  getattr(signal, name)
  for name in ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1')
  if hasattr(signal, name)
)
_EXIT_OFFSET = 128  # shells define the exit status after a signal as 128 plus its number
# Number of open blocks, and whether a signal arrived in the outermost block.
_num_blocks, _is_signaled = 0, False
_is_command = False  # a block of `raise_on_signals` is open
_is_save_requested = False


class Interrupted(KeyboardInterrupt):
  """The end of the program by a signal, with the number of the signal and the exit status."""

  def __init__(self, number: int, details: str = '; repeat the command to resume'):
    super().__init__(f'stopped by {signal.Signals(number).name}{details}')
    self.number, self.status = number, _EXIT_OFFSET + number


class InterruptedAfterSave(Interrupted):
  """The end of training by a signal, after a checkpoint and in all processes of the run."""


@dataclasses.dataclass
class SignalFlag:
  """Number of the first signal, or 0."""

  number: int = 0

  def take_save_request(self) -> bool:
    """Returns whether a signal asked for a save since the last call."""
    global _is_save_requested
    is_requested, _is_save_requested = _is_save_requested, False
    return is_requested


def ignore_in_worker() -> None:
  """Ignores all signals but SIGTERM in a worker process, which the main process ends."""
  for number in SIGNALS:
    if number != signal.SIGTERM:
      signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
  """Raises `Interrupted` in the main thread at the first signal inside the block.

  After a signal, the handlers remain, so that a second signal ends the process during its exit.
  """

  def interrupt(number: int) -> None:
    raise Interrupted(number)

  with _handle_signals(interrupt, is_command=True):
    yield


@contextlib.contextmanager
def note_signals() -> Iterator[SignalFlag]:
  """Yields a flag that the first signal sets, for loops that save before they end.

  Raises:
    Interrupted: a signal arrived, and the block ended without an exception.
  """
  flag = SignalFlag()

  def note(number: int) -> None:
    flag.number = number

  with _handle_signals(note):
    yield flag
  if flag.number:
    raise Interrupted(flag.number)


@contextlib.contextmanager
def _handle_signals(on_first: Callable[[int], None], is_command: bool = False) -> Iterator[None]:
  """Calls `on_first` with the number of the first signal.

  The second signal exits the process of a command, or raises `Interrupted`.
  """
  global _num_blocks, _is_signaled, _is_command
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def handler(number: int, _: object) -> None:
    global _is_signaled, _is_save_requested
    if 'SLURM_JOB_ID' in os.environ and signal.Signals(number).name == 'SIGUSR1':
      _is_save_requested = True
      return
    if _is_signaled and _is_command:
      os._exit(_EXIT_OFFSET + number)
    if _is_signaled:
      raise Interrupted(number)
    _is_signaled = True
    on_first(number)

  _num_blocks, _is_signaled = _num_blocks + 1, _is_signaled and _num_blocks > 0
  _is_command = is_command or (_is_command and _num_blocks > 1)
  old_handlers = {
    number: signal.signal(number, handler)
    for number in SIGNALS
    if signal.getsignal(number) != signal.SIG_IGN
  }
  try:
    yield
  finally:
    _num_blocks -= 1
    if not (is_command and _is_signaled):
      _is_command = _is_command and not is_command
      for number, old_handler in old_handlers.items():
        signal.signal(number, old_handler or signal.SIG_DFL)  # None is a handler set by C code
