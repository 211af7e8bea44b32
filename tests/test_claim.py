"""A directory has one holder, who is missed when it has been silent."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minilm_jax import claim


def written(folder: Path, **changes: object) -> Path:
  """The claim of a process on another host, with the fields given instead."""
  path = folder / claim.CLAIM
  path.write_text(json.dumps({'host': 'elsewhere', 'process': 1, 'id': 'theirs'} | changes))
  return path


def test_a_held_directory_is_refused_and_free_afterwards(tmp_path: Path):
  with claim.held(tmp_path):
    with pytest.raises(claim.Held, match=f'process {os.getpid()} on {socket.gethostname()} is at work there'):
      with claim.held(tmp_path):
        pass
    assert (tmp_path / claim.CLAIM).exists()  # who was refused takes nothing away
  assert not (tmp_path / claim.CLAIM).exists()
  with claim.held(tmp_path):
    pass


def test_it_is_free_after_an_error(tmp_path: Path):
  with pytest.raises(ZeroDivisionError):
    with claim.held(tmp_path):
      raise ZeroDivisionError
  assert not (tmp_path / claim.CLAIM).exists()


def test_another_process_is_refused(tmp_path: Path):
  program = ('import sys\nfrom minilm_jax import claim\n'
             f'with claim.held({str(tmp_path)!r}):\n  print("in", flush=True)\n  sys.stdin.read()')
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
  with subprocess.Popen([sys.executable, '-c', program], **pipes) as other:
    assert other.stdout.readline() == 'in\n'
    with pytest.raises(claim.Held, match=f'process {other.pid} '):
      with claim.held(tmp_path):
        pass
    other.kill()
  with claim.held(tmp_path):  # its holder is dead, and was on this host
    pass


def test_a_claim_from_elsewhere_counts_until_it_has_been_silent(tmp_path: Path):
  path = written(tmp_path)
  with pytest.raises(claim.Held, match='process 1 on elsewhere'):
    with claim.held(tmp_path):
      pass
  long_ago = time.time() - claim.ABANDONED - 1
  os.utime(path, (long_ago, long_ago))
  with claim.held(tmp_path):
    assert json.loads(path.read_text())['host'] == socket.gethostname()


def test_a_claim_that_is_being_written_counts(tmp_path: Path):
  (tmp_path / claim.CLAIM).touch()
  with pytest.raises(claim.Held, match='another process is at work'):
    with claim.held(tmp_path):
      pass


def test_it_is_renewed_and_who_lost_it_leaves_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr(claim, 'RENEWED', 0.01)
  path = tmp_path / claim.CLAIM
  with claim.held(tmp_path):
    os.utime(path, (0, 0))
    until = time.time() + 10
    while path.stat().st_mtime == 0 and time.time() < until:
      time.sleep(0.01)
    assert path.stat().st_mtime > 0
    monkeypatch.setattr(claim, 'RENEWED', 1000.0)
    path.unlink()
    written(tmp_path)
    time.sleep(0.1)
  assert json.loads(path.read_text())['id'] == 'theirs'
