"""The first signal raises or sets a flag, the second exits a command; handlers are restored."""

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
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[list]:
  """Returns the handlers before a test, and restores them after the test."""
  old_handlers = [signal.getsignal(number) for number in SIGNALS]
  yield old_handlers
  for number, old in zip(SIGNALS, old_handlers, strict=True):
    signal.signal(number, old)


def send(number: int) -> None:
  os.kill(os.getpid(), number)


@pytest.mark.parametrize(
  'number, status, name',
  [
    (signal.SIGTERM, 143, 'SIGTERM'),
    (signal.SIGINT, 130, 'SIGINT'),
    (signal.SIGHUP, 129, 'SIGHUP'),
    (signal.SIGUSR1, 138, 'SIGUSR1'),
  ],
)
def test_a_flagged_signal_lets_the_block_end(number: int, status: int, name: str, handlers):
  is_finished = False
  with pytest.raises(signals.Interrupted, match=f'stopped by {name}; ') as error:
    with signals.note_signals() as flag:
      assert flag.number == 0
      send(number)
      assert flag.number == number
      is_finished = True
  assert (
    is_finished
    and error.value.status == status
    and not isinstance(error.value, signals.InterruptedAfterSave)
  )
  assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_without_a_signal_handlers_are_restored(handlers):
  with signals.raise_on_signals(), signals.note_signals() as flag:
    pass
  assert not flag.number and [signal.getsignal(number) for number in SIGNALS] == handlers


def test_the_first_signal_raises_and_runs_finally():
  is_reached = False
  with pytest.raises(signals.Interrupted):
    with signals.raise_on_signals():
      try:
        send(signal.SIGTERM)
        is_reached = True
      finally:
        is_cleaned_up = True
  assert is_cleaned_up and not is_reached


def test_outside_of_a_command_the_second_signal_raises(handlers):
  with pytest.raises(KeyboardInterrupt, match='SIGINT'):
    with signals.note_signals() as flag:
      send(signal.SIGTERM)
      send(signal.SIGINT)
      pytest.fail('the block went on')
  assert flag.number == signal.SIGTERM
  assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_consecutive_blocks_each_flag_their_first_signal():
  for _ in range(2):
    with pytest.raises(signals.InterruptedAfterSave, match='^stopped by SIGTERM at update 4$'):
      with signals.note_signals() as flag:
        send(signal.SIGTERM)
        raise signals.InterruptedAfterSave(flag.number, ' at update 4')


def test_other_threads_keep_the_handlers(handlers):
  state = []

  def block() -> None:
    with signals.raise_on_signals(), signals.note_signals() as flag:
      state.extend([flag.number, *(signal.getsignal(number) for number in SIGNALS)])

  thread = threading.Thread(target=block)
  thread.start()
  thread.join()
  assert state == [0, *handlers]


def test_ignored_signals_stay_ignored():
  for number in (signal.SIGINT, signal.SIGHUP):  # of a background process, and of nohup
    signal.signal(number, signal.SIG_IGN)
    with signals.note_signals() as flag:
      send(number)
    assert not flag.number


def test_a_notice_of_slurm_asks_for_a_save_alone(monkeypatch):
  monkeypatch.setenv('SLURM_JOB_ID', '7')
  with signals.raise_on_signals(), signals.note_signals() as flag:
    assert not flag.take_save_request()
    send(signal.SIGUSR1)
    send(signal.SIGUSR1)
    assert flag.number == 0 and flag.take_save_request() and not flag.take_save_request()


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


@pytest.mark.parametrize('block, output', [('loop', 'noted\n'), ('command', 'leaving\n')])
def test_a_second_signal_exits_immediately(block: str, output: str):
  for first, second in (SIGNALS[:2], SIGNALS[2:], SIGNALS[1::-1]):
    process = subprocess.run(
      [sys.executable, '-c', PROGRAM, block, str(int(first)), str(int(second))],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    assert (process.returncode, process.stdout, process.stderr) == (128 + second, output, '')
