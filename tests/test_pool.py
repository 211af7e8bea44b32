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
