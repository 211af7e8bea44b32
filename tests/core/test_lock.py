"""The lock of a directory: one holder at a time, takeover from dead processes."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs import glue, tiny
from minilm_jax.analysis.report import report
from minilm_jax.cli import quickstart
from minilm_jax.core import files, lock, recipe, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data import build
from minilm_jax.evaluation import minimal_pairs, ngram_baselines, overlap_subsets
from minilm_jax.tasks import finetune


def write_lock(folder: Path, **changes: object) -> Path:
  """Writes the lock of a process on another host, with some fields changed."""
  path = folder / lock.LOCK_FILE
  path.write_text(json.dumps({'host': 'elsewhere', 'process': 1, 'id': 'other'} | changes))
  return path


def check_refused(folder: Path, pattern: str = '') -> None:
  with pytest.raises(lock.LockedError, match=pattern), lock.hold_lock(folder):
    pass


def test_a_locked_directory_is_refused_until_the_end_of_the_block(tmp_path):
  with lock.hold_lock(tmp_path):
    check_refused(tmp_path, f'{os.getpid()} on {socket.gethostname()}')
    assert (tmp_path / lock.LOCK_FILE).exists()  # a refused process leaves the lock
  assert not (tmp_path / lock.LOCK_FILE).exists()
  with lock.hold_lock(tmp_path):
    pass


def test_an_error_releases_the_lock(tmp_path):
  with pytest.raises(ZeroDivisionError):
    with lock.hold_lock(tmp_path):
      raise ZeroDivisionError
  assert not (tmp_path / lock.LOCK_FILE).exists()


def test_another_process_is_refused(tmp_path):
  program = (
    'import sys\nfrom minilm_jax.core import lock\n'
    f'with lock.hold_lock({str(tmp_path)!r}):\n  print("in", flush=True)\n  sys.stdin.read()'
  )
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
  with subprocess.Popen([sys.executable, '-c', program], **pipes) as process:
    assert process.stdout.readline() == 'in\n'
    check_refused(tmp_path, f'process {process.pid} ')
    process.kill()
  with lock.hold_lock(tmp_path):  # the holder was on this host and is dead
    pass


def test_a_lock_of_another_host_is_valid_until_it_is_stale(tmp_path):
  path = write_lock(tmp_path)
  check_refused(tmp_path, 'process 1 on elsewhere')
  long_ago = time.time() - lock.STALE_SECONDS - 1
  os.utime(path, (long_ago, long_ago))
  with lock.hold_lock(tmp_path):
    assert json.loads(path.read_text())['host'] == socket.gethostname()


def test_a_lock_of_another_container_is_valid_until_it_is_stale(tmp_path):
  """Containers on one host have equal host names and PIDs of their own."""
  content = {'host': socket.gethostname(), 'process': 2**22 + 1, 'id': 'x', 'namespace': 1}
  path = tmp_path / lock.LOCK_FILE
  path.write_text(json.dumps(content))
  with pytest.raises(lock.LockedError), lock.hold_lock(tmp_path):
    pass
  stale = time.time() - 2 * lock.STALE_SECONDS
  os.utime(path, (stale, stale))
  with lock.hold_lock(tmp_path):
    assert json.loads(path.read_text())['namespace'] == os.stat('/proc/self/ns/pid').st_ino


def test_a_host_name_may_have_any_characters(tmp_path, monkeypatch):
  monkeypatch.setattr(socket, 'gethostname', lambda: 'müller pc')
  with lock.hold_lock(tmp_path):
    check_refused(tmp_path, f'{os.getpid()} on m_ller_pc')
  write_lock(tmp_path, host='m_ller_pc', process=2**22 + 1)  # above the largest PID of Linux
  with lock.hold_lock(tmp_path):
    pass


def test_an_empty_lock_is_valid(tmp_path):
  (tmp_path / lock.LOCK_FILE).touch()
  check_refused(tmp_path)


def test_heartbeats_renew_the_lock_until_it_is_lost(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(lock, 'HEARTBEAT_SECONDS', 0.01)
  path = tmp_path / lock.LOCK_FILE
  # at the end of the block, not inside
  with pytest.raises(lock.LockedError, match='1 on elsewhere'):
    with lock.hold_lock(tmp_path):
      os.utime(path, (0, 0))
      wait_until(lambda: path.stat().st_mtime > 0)
      write_lock(tmp_path)
      wait_until(lambda: 'process 1 on elsewhere' in capsys.readouterr().err)
  assert json.loads(path.read_text())['id'] == 'other'


def wait_until(condition: Callable[[], bool]) -> None:
  deadline = time.time() + 10
  while not condition():
    assert time.time() < deadline
    time.sleep(0.01)


def test_a_refusal_names_process_host_and_time(tmp_path):
  write_lock(tmp_path, since=time.mktime((2031, 2, 3, 4, 5, 6, 0, 0, -1)))
  check_refused(tmp_path, '1 on elsewhere.* 2031-02-03 04:05:06')


@pytest.mark.parametrize(
  'content',
  [{}, {'process': os.getpid()}, {'process': os.getpid(), 'started': None}, {'process': 1}],
)
def test_a_running_process_without_a_start_time_is_valid_until_it_is_stale(tmp_path, content: dict):
  """Locks of hosts without /proc have no start time."""
  path = write_lock(tmp_path, host=socket.gethostname(), **content)
  check_refused(tmp_path)
  os.utime(path, (0, 0))
  with lock.hold_lock(tmp_path):
    pass


def test_only_stale_locks_of_finished_directories_are_removed(tmp_path):
  lock.remove_stale_lock(tmp_path)  # no lock exists
  path = write_lock(tmp_path)
  lock.remove_stale_lock(tmp_path)
  assert path.exists()
  os.utime(path, (0, 0))
  lock.remove_stale_lock(tmp_path)
  assert not path.exists() and not list(tmp_path.iterdir())


def test_a_stale_lock_in_a_read_only_directory_remains(tmp_path, monkeypatch):
  path = write_lock(tmp_path)
  os.utime(path, (0, 0))

  def refuse(*_: object) -> None:
    raise PermissionError(13, 'read-only')

  monkeypatch.setattr(lock, '_remove', refuse)
  lock.remove_stale_lock(tmp_path)
  assert path.exists()


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='needs /proc')
def test_a_reused_pid_does_not_hold_the_lock(tmp_path):
  with lock.hold_lock(tmp_path):
    record = json.loads((tmp_path / lock.LOCK_FILE).read_text())
  write_lock(tmp_path, **record | {'started': record['started'] - 1})
  with lock.hold_lock(tmp_path):
    pass
  # a running process keeps the lock without heartbeats
  path = write_lock(tmp_path, **record)
  os.utime(path, (0, 0))
  check_refused(tmp_path)


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'{"host": "elsew',
    b'\xff\xfe',
    b'[1]',
    b'7',
    b'{"id": 1}',
    b'[' * 100_000,
    b'{"id": 1e999}' + b' ' * 9999,
    json.dumps({'host': '\x1b[2J', 'process': 1, 'id': 'x'}).encode(),
    json.dumps({'host': 'x', 'process': -1, 'id': 'x'}).encode(),
    json.dumps({'host': 'x', 'process': 10**30, 'id': 'x'}).encode(),
    json.dumps({'host': 'x', 'process': 1, 'id': 'x', 'since': 1e300}).encode(),
  ],
)
def test_an_invalid_lock_is_valid_for_one_heartbeat(tmp_path, content: bytes):
  path = tmp_path / lock.LOCK_FILE
  path.write_bytes(content)
  check_refused(tmp_path)
  long_ago = time.time() - lock.HEARTBEAT_SECONDS - 1
  os.utime(path, (long_ago, long_ago))
  with lock.hold_lock(tmp_path):
    assert json.loads(path.read_text())['process'] == os.getpid()


def test_one_of_many_threads_takes_over_a_dead_lock(tmp_path):
  os.utime(write_lock(tmp_path), (0, 0))
  start, inside, refused = threading.Barrier(8), [], []

  def enter() -> None:
    start.wait()
    try:
      with lock.hold_lock(tmp_path):
        inside.append(1)
        finished.wait(10)
    except lock.LockedError:
      refused.append(1)

  finished = threading.Event()
  threads = [threading.Thread(target=enter) for _ in range(8)]
  for thread in threads:
    thread.start()
  wait_until(lambda: len(inside) + len(refused) == 8)
  finished.set()
  for thread in threads:
    thread.join()
  assert len(inside) == 1 and not list(tmp_path.iterdir())


def test_a_late_process_does_not_remove_the_next_lock(tmp_path, monkeypatch):
  path = write_lock(tmp_path, id='dead')
  # another process takes the lock over after it was read
  monkeypatch.setattr(lock, '_is_dead', lambda *_: bool(write_lock(tmp_path, id='next')))
  check_refused(tmp_path)
  assert json.loads(path.read_text())['id'] == 'next' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('age', [0, lock.STALE_SECONDS + 1])
def test_a_removal_in_progress_excludes_others_until_it_is_stale(tmp_path, age: float):
  os.utime(write_lock(tmp_path), (0, 0))
  clearing = tmp_path / f'{lock.LOCK_FILE}-clearing'
  clearing.touch()
  os.utime(clearing, (time.time() - age,) * 2)
  with contextlib.nullcontext() if age else pytest.raises(lock.LockedError):
    with lock.hold_lock(tmp_path):
      assert not clearing.exists()
  assert clearing.exists() == (not age)


def test_a_deleted_directory_is_an_input_error(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(lock, 'HEARTBEAT_SECONDS', 0.01)
  monkeypatch.setattr(
    threading, 'excepthook', lambda content: pytest.fail(f'in the thread: {content.exc_value}')
  )
  with pytest.raises(InputError, match=str(tmp_path / 'run')):
    with lock.hold_lock(tmp_path / 'run'):
      shutil.rmtree(tmp_path / 'run')
      wait_until(lambda: str(tmp_path / 'run') in capsys.readouterr().err)


def test_a_write_into_a_deleted_directory_is_an_input_error(tmp_path):
  folder = tmp_path / 'run'
  with pytest.raises(InputError, match=f'{folder}\n.*was deleted during the run'):
    with lock.hold_lock(folder):
      shutil.rmtree(folder)
      (folder / 'metrics.jsonl').write_text('')
  with pytest.raises(FileNotFoundError):
    with lock.hold_lock(folder):
      (folder / 'missing' / 'metrics.jsonl').write_text('')


def test_a_removed_lock_is_restored(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, 'HEARTBEAT_SECONDS', 0.01)
  with lock.hold_lock(tmp_path):
    (tmp_path / lock.LOCK_FILE).unlink()
    wait_until((tmp_path / lock.LOCK_FILE).exists)


def test_an_empty_new_directory_is_removed(tmp_path):
  with lock.hold_lock(tmp_path / 'a' / 'b'):
    pass
  assert not (tmp_path / 'a').exists()
  with lock.hold_lock(tmp_path / 'a' / 'b'):
    (tmp_path / 'a' / 'b' / 'file').touch()
  assert (tmp_path / 'a' / 'b' / 'file').exists()


def test_a_directory_that_cannot_be_created_is_refused(tmp_path):
  (tmp_path / 'x').write_text('a file')
  with pytest.raises(InputError, match=str(tmp_path / 'x')):
    with lock.hold_lock(tmp_path / 'x'):
      pass


def _evaluate(folder: Path, corpus: Path, run: Path) -> None:
  (folder.parent / 'pairs.jsonl').write_text(
    json.dumps({'sentence_good': 'the dog', 'sentence_bad': 'dog the'})
  )
  minimal_pairs.evaluate_pairs(run, folder.parent / 'pairs.jsonl', 'original', '', str(folder))


def _measure_baselines(folder: Path, corpus: Path, run: Path) -> None:
  config = tiny.get_config()
  config.corpus = str(corpus)
  ngram_baselines.measure_baselines(recipe.resolve(config, 'pretrain'), folder)


def _finetune(folder: Path, corpus: Path, run: Path) -> None:
  config = glue.get_config('microworld/sentiment')
  finetune.finetune(recipe.resolve(config, 'finetune'), run, folder, [8])


COMMANDS = {
  'corpus': lambda folder, corpus, run: build.build_corpus(
    recipe.resolve(files.read_json(corpus / run_dir.CONFIG, '') | {'workers': 1}, 'corpus'), folder
  ),
  'subset': lambda folder, corpus, run: overlap_subsets.write_subset(
    corpus, np.arange(3), folder, {'kind': 'subset'}, {}
  ),
  'evaluate': _evaluate,
  'finetune': _finetune,
  'baselines': _measure_baselines,
  'report': lambda folder, corpus, run: report.report([run], folder),
  'quickstart': lambda folder, corpus, run: quickstart.run_quickstart('microworld', folder),
}


@pytest.mark.parametrize('command', COMMANDS)
def test_commands_refuse_a_locked_directory(command: str, tiny_corpus, tiny_run, tmp_path):
  folder = tmp_path / 'work'
  with lock.hold_lock(folder):
    with pytest.raises(lock.LockedError, match=f'process {os.getpid()} on '):
      COMMANDS[command](folder, tiny_corpus, tiny_run)
    # the refused command wrote nothing
    assert [path.name for path in folder.iterdir()] == [lock.LOCK_FILE]
