"""The pool: order, bounds, errors that arrive, and nobody left behind."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from minilm_jax.language import pool


def slow_size(batch: list[str]) -> int:
  time.sleep(random.random() / 200)
  return sum(map(len, batch))


def test_the_pool_keeps_order_and_is_bounded():
  pulled = []

  def batches():
    for i in range(60):
      pulled.append(i)
      yield ['x' * i, 'y']

  results = pool.in_order(slow_size, batches(), workers=2)
  assert next(results) == 1
  assert len(pulled) <= 6
  assert list(results) == [i + 1 for i in range(1, 60)]
  assert list(pool.in_order(slow_size, batches(), workers=1)) == [i + 1 for i in range(60)]


def fail(batch: list[str]) -> None:
  raise KeyError(batch[0])


def test_an_error_in_a_worker_arrives():
  with pytest.raises(KeyError, match='first'):
    list(pool.in_order(fail, iter([['first'], ['second']]), workers=2))


PROGRAM = '''
import os, time
from minilm_jax.language import pool
def work(batch):
  return os.getpid()
def batches():
  for _ in range(50):
    yield ['text']
  time.sleep(60)
if __name__ == '__main__':
  for pid in pool.in_order(work, batches(), 2):
    print(pid, flush=True)
'''


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='looks for processes in /proc')
def test_workers_leave_with_a_killed_parent(tmp_path):
  (tmp_path / 'program.py').write_text(PROGRAM)
  here = pathlib.Path(pool.__file__).parents[2]
  with subprocess.Popen([sys.executable, str(tmp_path / 'program.py')], stdout=subprocess.PIPE, text=True,
                        env=os.environ | {'PYTHONPATH': str(here)}) as parent:
    pids = {int(parent.stdout.readline()) for _ in range(40)}
    assert any(os.path.exists(f'/proc/{pid}') for pid in pids)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
  until = time.monotonic() + 10
  while time.monotonic() < until and any(alive(pid) for pid in pids):
    time.sleep(0.05)
  assert not [pid for pid in pids if alive(pid)]


def alive(pid: int) -> bool:
  try:
    with open(f'/proc/{pid}/stat', encoding='utf-8') as file:
      return file.read().rpartition(')')[2].split()[0] != 'Z'
  except OSError:
    return False


ENDED = '''
import os, signal, sys, threading, time
from minilm_jax import signals
from minilm_jax.errors import InputError
from minilm_jax.language import pool
def work(batch):
  if batch[0] == 'die':
    os._exit(1)
  return os.getpid()
if __name__ == '__main__':
  try:
    with signals.ending():
      for number, pid in enumerate(pool.in_order(work, ([text] for text in sys.argv[1:]), 2)):
        print(pid, flush=True)
        if number == 3:
          os.kill(os.getpid(), signal.SIGTERM)
  except signals.Ended as error:
    sys.exit(error.status)
  except InputError as error:
    sys.exit(str(error))
'''


@pytest.mark.parametrize('texts, status, said', [
    (['text'] * 40, 143, ''), (['text', 'text', 'die', 'text'], 1, 'one of them was ended from outside')])
def test_a_signal_or_a_death_ends_the_pool_in_order(texts: list[str], status: int, said: str, tmp_path):
  """No worker stays, and nothing is said but the sentence."""
  (tmp_path / 'program.py').write_text(ENDED)
  here = pathlib.Path(pool.__file__).parents[2]
  done = subprocess.run([sys.executable, str(tmp_path / 'program.py'), *texts], capture_output=True, text=True,
                        env=os.environ | {'PYTHONPATH': str(here)}, timeout=120, check=False)
  assert done.returncode == status and said in done.stderr and 'Traceback' not in done.stderr, done.stderr
  assert not [pid for pid in map(int, done.stdout.split()) if alive(pid)]
