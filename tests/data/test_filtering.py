"""The pool: order, bounds, errors that arrive, and nobody left behind."""

import collections
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from minilm_jax.core.corpus_config import SplitConfig
from minilm_jax.data import filtering


def test_splits_take_their_shares():
  found = Counter(
    filtering.assign_split(f'document {i}', SplitConfig(0.2, 0.1)) for i in range(5000)
  )
  assert abs(found['validation'] / 5000 - 0.2) < 0.03
  assert abs(found['test'] / 5000 - 0.1) < 0.03
  assert {filtering.assign_split(f'document {i}', SplitConfig(0.0, 0.0)) for i in range(500)} == {
    'train'
  }


def test_a_split_depends_on_the_text_alone():
  splits = SplitConfig(0.3, 0.3)
  for i in range(50):
    assert filtering.assign_split(f'The King\nof  {i} ', splits) == filtering.assign_split(
      f'the king of {i}', splits
    )


def test_a_larger_share_only_adds():
  texts = [f'document {i}' for i in range(1000)]
  few, more = (
    {t for t in texts if filtering.assign_split(t, SplitConfig(0.0, share)) == 'test'}
    for share in (0.1, 0.2)
  )
  assert few < more


def slow_size(batch: list[str]) -> int:
  time.sleep(random.random() / 200)
  return sum(map(len, batch))


def test_the_pool_keeps_order_and_is_bounded():
  pulled = []

  def batches():
    for i in range(60):
      pulled.append(i)
      yield ['x' * i, 'y']

  results = filtering.ordered_map(slow_size, batches(), workers=2)
  assert next(results) == 1
  assert len(pulled) <= 6
  assert list(results) == [i + 1 for i in range(1, 60)]
  assert list(filtering.ordered_map(slow_size, batches(), workers=1)) == [i + 1 for i in range(60)]


def fail(batch: list[str]) -> None:
  raise KeyError(batch[0])


def test_an_error_in_a_worker_arrives():
  with pytest.raises(KeyError, match='first'):
    list(filtering.ordered_map(fail, iter([['first'], ['second']]), workers=2))


PROGRAM = """
import os, time
from minilm_jax.data import filtering
def work(batch):
  return os.getpid()
def batches():
  for _ in range(50):
    yield ['text']
  time.sleep(60)
if __name__ == '__main__':
  for pid in filtering.ordered_map(work, batches(), 2):
    print(pid, flush=True)
"""


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='looks for processes in /proc')
def test_workers_leave_with_a_killed_parent(tmp_path):
  (tmp_path / 'program.py').write_text(PROGRAM)
  here = pathlib.Path(filtering.__file__).parents[2]
  with subprocess.Popen(
    [sys.executable, str(tmp_path / 'program.py')],
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {'PYTHONPATH': str(here)},
  ) as parent:
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


ENDED = """
import os, signal, sys, threading, time
from minilm_jax.core import signals
from minilm_jax.core.errors import InputError
from minilm_jax.data import filtering
def work(batch):
  if batch[0] == 'die':
    os._exit(1)
  return os.getpid()
if __name__ == '__main__':
  try:
    with signals.raise_on_signals():
      for number, pid in enumerate(filtering.ordered_map(work, ([text] for text in sys.argv[1:]), 2)):
        print(pid, flush=True)
        if number == 3:
          os.kill(os.getpid(), signal.SIGTERM)
  except signals.Interrupted as error:
    sys.exit(error.status)
  except InputError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(
  'texts, status, said',
  [
    (['text'] * 40, 143, ''),
    (['text', 'text', 'die', 'text'], 1, 'one of them was ended from outside'),
  ],
)
def test_a_signal_or_a_death_ends_the_pool_in_order(
  texts: list[str], status: int, said: str, tmp_path
):
  """No worker stays, and nothing is said but the sentence."""
  (tmp_path / 'program.py').write_text(ENDED)
  here = pathlib.Path(filtering.__file__).parents[2]
  done = subprocess.run(
    [sys.executable, str(tmp_path / 'program.py'), *texts],
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONPATH': str(here)},
    timeout=120,
    check=False,
  )
  assert done.returncode == status and said in done.stderr and 'Traceback' not in done.stderr, (
    done.stderr
  )
  assert not [pid for pid in map(int, done.stdout.split()) if alive(pid)]


def test_seen_equals_a_set():
  dice, seen, known = random.Random(0), filtering.Deduplicator(), set()
  for _ in range(60):
    batch = np.array([dice.randrange(3000) * 2**52 for _ in range(dice.randint(0, 120))], np.uint64)
    expected = []
    for digest in batch.tolist():
      expected.append(digest not in known)
      known.add(digest)
    assert seen.fresh(batch).tolist() == expected
  assert sum(map(len, seen._runs)) == len(known)
  assert len(seen._runs) < 12


@pytest.mark.parametrize('spread', [1, 2**44, 2**56])  # all in one bucket, in few, in many
def test_parts_that_meet_tell_what_one_process_tells(spread: int):
  """Whatever comes first, in whatever order what meets in a bucket arrives."""
  dice = random.Random(spread)
  for _ in range(20):
    parts = [
      np.array(
        [dice.randrange(200) * spread % 2**64 for _ in range(dice.choice([0, 1, 50, 90]))],
        np.uint64,
      )
      for _ in range(dice.randint(1, 6))
    ]
    met = collections.defaultdict(list)
    for part, digests in enumerate(parts):
      middle = len(digests) // 2
      for bucket, numbers, some in [
        *filtering.split_into_buckets(0, digests[:middle]),
        *filtering.split_into_buckets(middle, digests[middle:]),
      ]:
        met[bucket].append((part, numbers, some))
    fresh = [np.ones(len(digests), bool) for digests in parts]
    for some in met.values():
      dice.shuffle(some)
      for part, numbers in filtering.find_repeated(some):
        fresh[part][np.frombuffer(numbers, '<u8')] = False
    seen = filtering.Deduplicator()
    assert [one.tolist() for one in fresh] == [seen.fresh(digests).tolist() for digests in parts]
