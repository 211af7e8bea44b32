"""Splits, the process pool (order, bounds, errors, end of processes) and deduplication."""

import collections
import contextlib
import dataclasses
import gzip
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
from etils import epath

from minilm_jax.core import progress
from minilm_jax.core.corpus_config import DocumentsConfig, SplitConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import documents, filtering

ENVIRONMENT = os.environ | {'PYTHONPATH': str(pathlib.Path(filtering.__file__).parents[2])}


def test_splits_have_their_shares():
  counts = Counter(
    filtering.assign_split(f'document {i}', SplitConfig(0.2, 0.1)) for i in range(5000)
  )
  assert abs(counts['validation'] / 5000 - 0.2) < 0.03
  assert abs(counts['test'] / 5000 - 0.1) < 0.03
  assert {filtering.assign_split(f'{i}', SplitConfig(0.0, 0.0)) for i in range(500)} == {'train'}


def test_a_split_depends_on_the_text_alone():
  splits = SplitConfig(0.3, 0.3)
  for i in range(50):
    texts = (f'The King\nof  {i} ', f'the king of {i}')
    assert len({filtering.assign_split(text, splits) for text in texts}) == 1


def test_a_larger_share_only_adds_documents():
  texts = [f'document {i}' for i in range(1000)]
  smaller, larger = (
    {text for text in texts if filtering.assign_split(text, SplitConfig(0.0, share)) == 'test'}
    for share in (0.1, 0.2)
  )
  assert smaller < larger


def measure_slowly(batch: list[str]) -> int:
  time.sleep(random.random() / 200)
  return sum(map(len, batch))


def test_the_pool_keeps_order_and_reads_few_batches_ahead():
  requested = []

  def batches():
    for i in range(60):
      requested.append(i)
      yield ['x' * i, 'y']

  results = filtering.map_in_order(measure_slowly, batches(), workers=2)
  assert next(results) == 1
  assert len(requested) <= 6
  assert list(results) == [i + 1 for i in range(1, 60)]
  single = filtering.map_in_order(measure_slowly, batches(), workers=1)
  assert list(single) == [i + 1 for i in range(60)]


def fail(batch: list[str]) -> None:
  raise KeyError(batch[0])


def test_an_error_in_a_worker_is_raised():
  with pytest.raises(KeyError, match='first'):
    list(filtering.map_in_order(fail, iter([['first'], ['second']]), workers=2))


def is_alive(pid: int) -> bool:
  try:
    with open(f'/proc/{pid}/stat', encoding='utf-8') as file:
      return file.read().rpartition(')')[2].split()[0] != 'Z'
  except OSError:
    return False


# Workers import the function, because they do not execute the program.
WORK = """
import os
def work(batch):
  if batch[0] == 'die':
    os._exit(1)
  return os.getpid()
"""
ENDLESS_PROGRAM = """
import os, time
from minilm_jax.data import filtering
from work import work
def batches():
  for _ in range(50):
    yield ['text']
  time.sleep(60)
if __name__ == '__main__':
  for pid in filtering.map_in_order(work, batches(), 2):
    print(pid, flush=True)
"""


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='looks for processes in /proc')
def test_workers_end_with_a_killed_parent(tmp_path):
  program = tmp_path / 'program.py'
  (tmp_path / 'work.py').write_text(WORK)
  program.write_text(ENDLESS_PROGRAM)
  with subprocess.Popen(
    [sys.executable, str(program)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
  ) as parent:
    pids = {int(parent.stdout.readline()) for _ in range(40)}
    assert any(os.path.exists(f'/proc/{pid}') for pid in pids)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
  deadline = time.monotonic() + 10
  while time.monotonic() < deadline and any(map(is_alive, pids)):
    time.sleep(0.05)
  assert not [pid for pid in pids if is_alive(pid)]


ENDING_PROGRAM = """
import os, signal, sys, threading, time
from minilm_jax.core import signals
from minilm_jax.core.errors import InputError
from minilm_jax.data import filtering
from work import work
if __name__ == '__main__':
  try:
    with signals.raise_on_signals():
      for number, pid in enumerate(filtering.map_in_order(work, ([text] for text in sys.argv[1:]), 2)):
        print(pid, flush=True)
        if number == 3:
          os.kill(os.getpid(), signal.SIGTERM)
  except signals.Interrupted as error:
    sys.exit(error.status)
  except InputError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(
  'texts, status, message',
  [(['text'] * 40, 143, ''), (['text', 'text', 'die', 'text'], 1, 'asked: workers=2')],
)
def test_a_signal_or_a_killed_worker_ends_the_pool(
  texts: list[str], status: int, message: str, tmp_path
):
  """No worker remains, and the only output is the error."""
  program = tmp_path / 'program.py'
  (tmp_path / 'work.py').write_text(WORK)
  program.write_text(ENDING_PROGRAM)
  done = subprocess.run(
    [sys.executable, str(program), *texts],
    capture_output=True,
    text=True,
    env=ENVIRONMENT,
    timeout=120,
    check=False,
  )
  assert done.returncode == status and message in done.stderr, done.stderr
  assert 'Traceback' not in done.stderr, done.stderr
  assert not [pid for pid in map(int, done.stdout.split()) if is_alive(pid)]


def test_progress_ends_with_the_last_source(tmp_path, monkeypatch):
  for name in 'ab':
    lines = '\n'.join('the dog sleeps' for _ in range(4000))
    (tmp_path / f'{name}.txt.gz').write_bytes(gzip.compress(lines.encode()))
  config = DocumentsConfig(sources=(f'{tmp_path}/*.gz',))
  sources = [
    dataclasses.replace(source, num_bytes=documents.fingerprint_source(source)['bytes'])
    for source in documents.expand_sources(config)
  ]
  monkeypatch.setattr(filtering, '_CHARS_PER_BATCH', 1000)
  positions, totals = [], []

  @contextlib.contextmanager
  def track_progress(task, total, unit):
    totals.append(total)
    yield lambda done, note='': positions.append(done)

  monkeypatch.setattr(progress, 'track_progress', track_progress)
  assert len(list(filtering._read_documents(config, sources, 'reading'))) == 8000
  assert positions == sorted(positions) and len(positions) > 50
  assert positions.count(totals[0]) == 1 and positions[-1] == totals[0]


def test_deduplication_equals_a_set():
  dice, deduplicator, known = random.Random(0), filtering.Deduplicator(), set()
  for _ in range(60):
    batch = np.array([dice.randrange(3000) * 2**52 for _ in range(dice.randint(0, 120))], np.uint64)
    expected = []
    for digest in batch.tolist():
      expected.append(digest not in known)
      known.add(digest)
    assert deduplicator.first_seen(batch).tolist() == expected
  assert sum(map(len, deduplicator._runs)) == len(known)
  assert len(deduplicator._runs) < 12


@pytest.mark.parametrize('factor', [1, 2**44, 2**56])  # one bucket, several buckets, many buckets
def test_buckets_in_any_order_find_the_repetitions_of_one_process(factor: int):
  dice = random.Random(factor)
  for _ in range(20):
    sizes = [dice.choice([0, 1, 50, 90]) for _ in range(dice.randint(1, 6))]
    shards = [
      np.array([dice.randrange(200) * factor % 2**64 for _ in range(size)], np.uint64)
      for size in sizes
    ]
    buckets = collections.defaultdict(list)
    for shard, digests in enumerate(shards):
      middle = len(digests) // 2
      for first, part in ((0, digests[:middle]), (middle, digests[middle:])):
        for bucket, entry in filtering.split_into_buckets(shard, first, part):
          buckets[bucket].append(entry)
    is_first = [np.ones(len(digests), bool) for digests in shards]
    for entries in buckets.values():
      dice.shuffle(entries)
      for shard, numbers in filtering.find_repeated(entries):
        is_first[shard][np.frombuffer(numbers, '<u8')] = False
    deduplicator = filtering.Deduplicator()
    expected = [deduplicator.first_seen(digests).tolist() for digests in shards]
    assert [mask.tolist() for mask in is_first] == expected


def test_workers_do_not_execute_the_script_of_the_user(tmp_path):
  """A script without a test of `__name__` would otherwise start again in each worker."""
  script = tmp_path / 'script.py'
  script.write_text(
    'import pathlib, sys\n'
    'from minilm_jax.data import filtering\n'
    f'with open({str(tmp_path / "starts")!r}, "a") as file:\n'
    '  file.write("started ")\n'
    'print(list(filtering.map_in_order(len, iter([["a"], ["b", "c"]]), 2)), __file__)\n'
  )
  environment = os.environ | {'PYTHONPATH': os.getcwd()}
  result = subprocess.run(
    [sys.executable, script], capture_output=True, text=True, env=environment, check=False
  )
  assert result.stdout.split() == ['[1,', '2]', str(script)], result.stderr
  assert (tmp_path / 'starts').read_text() == 'started '


def test_a_refusal_passes_a_partial_folder_that_does_not_exist(tmp_path):
  """In a bucket, a folder without files does not exist."""
  folder = epath.Path(tmp_path) / 'keep'
  with pytest.raises(InputError, match='no text'):
    with filtering.create_atomic_folder(folder) as partial:
      partial.rmtree()
      raise InputError('a', 'no text', 'b')
  assert not folder.exists()
