"""SIGTERM and SIGINT: the first ends in order or is noted, the second leaves at once, and nothing
stays changed.
"""

import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from minilm_jax.core import signals

ROOT = pathlib.Path(__file__).resolve().parents[2]
BOTH = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[list]:
  """The handlers before a test, which are put back after it."""
  old_handlers = [signal.getsignal(number) for number in BOTH]
  yield old_handlers
  for number, old in zip(BOTH, old_handlers, strict=True):
    signal.signal(number, old)


def raised(number: int) -> None:
  os.kill(os.getpid(), number)


@pytest.mark.parametrize(
  'number, status, name', [(signal.SIGTERM, 143, 'SIGTERM'), (signal.SIGINT, 130, 'SIGINT')]
)
def test_a_signal_that_is_noted_lets_the_block_end(
  number: int, status: int, name: str, handlers: list
):
  went_on = False
  with pytest.raises(signals.Interrupted, match=f'stopped by {name}; ') as ended:
    with signals.note_signals() as flag:
      assert flag.number == 0
      raised(number)
      assert flag.number == number
      went_on = True
  assert (
    went_on
    and ended.value.status == status
    and not isinstance(ended.value, signals.InterruptedAfterSave)
  )
  assert [signal.getsignal(number) for number in BOTH] == handlers


def test_no_signal_changes_nothing(handlers: list):
  with signals.raise_on_signals(), signals.note_signals() as flag:
    pass
  assert not flag.number and [signal.getsignal(number) for number in BOTH] == handlers


def test_elsewhere_the_first_signal_raises_where_it_comes():
  after = False
  with pytest.raises(signals.Interrupted):
    with signals.raise_on_signals():
      try:
        raised(signal.SIGTERM)
        after = True
      finally:
        ended_in_order = True
  assert ended_in_order and not after


def test_one_program_after_another_hears_its_own_first_signal():
  for _ in range(2):
    with pytest.raises(signals.InterruptedAfterSave, match='^stopped by SIGTERM at update 4$'):
      with signals.note_signals() as flag:
        raised(signal.SIGTERM)
        raise signals.InterruptedAfterSave(flag.number, ' at update 4')


def test_in_another_thread_nothing_is_done(handlers: list):
  state = []

  def block() -> None:
    with signals.raise_on_signals(), signals.note_signals() as flag:
      state.extend([flag.number, *(signal.getsignal(number) for number in BOTH)])

  thread = threading.Thread(target=block)
  thread.start()
  thread.join()
  assert state == [0, *handlers]


def test_what_the_process_was_told_to_ignore_stays_ignored():
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with signals.note_signals() as flag:
    raised(signal.SIGINT)
  assert not flag.number


PROGRAM = """
import os, signal, sys, time
from minilm_jax.core import signals
name, first, second = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
try:
  with signals.raise_on_signals():
    if name == 'loop':
      with signals.note_signals():
        os.kill(os.getpid(), first)
        print('noted', flush=True)
        os.kill(os.getpid(), second)
    else:
      os.kill(os.getpid(), first)
except signals.Interrupted:
  print('leaving', flush=True)
  os.kill(os.getpid(), second)
print('still here', flush=True)
"""


@pytest.mark.parametrize('block, output', [('loop', 'noted\n'), ('verb', 'leaving\n')])
def test_a_second_signal_leaves_at_once(block: str, output: str):
  for first, second in (BOTH, BOTH[::-1]):
    done = subprocess.run(
      [sys.executable, '-c', PROGRAM, block, str(int(first)), str(int(second))],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + second, output, '')
