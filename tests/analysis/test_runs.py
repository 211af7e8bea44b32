"""Runs in folders: each once, whatever the number of ways to it."""

import os
import pathlib
import time

import pytest

from minilm_jax.analysis import runs
from minilm_jax.analysis.report import report
from minilm_jax.core import run_dir
from tests import fake_runs


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
  """Returns a folder with the runs `a/tiny` and `other`."""
  folder = tmp_path / 'runs'
  fake_runs.write_pretraining_run(folder / 'a' / 'tiny')
  fake_runs.write_pretraining_run(folder / 'other')
  return folder


def test_links_to_runs_and_to_parents_add_no_runs(home: pathlib.Path):
  os.symlink('a/tiny', home / 'Latest')
  for folder in (home, home / 'a', home / 'other'):
    os.symlink(home, folder / 'loop')
    os.symlink('..', folder / 'up')
  started = time.monotonic()
  assert runs.find_runs([home]) == {'a/tiny': home / 'a' / 'tiny', 'other': home / 'other'}
  assert len(runs.find_runs([home / 'Latest', home])) == 2
  assert runs.read_failures([home]) == {}
  assert time.monotonic() - started < 20
  report.report([home], home / 'report')
  rows = (home / 'report' / 'runs.csv').read_text().splitlines()[1:]
  assert sorted(row.split(',')[0] for row in rows) == ['a/tiny', 'other']


def test_a_run_outside_of_a_folder_is_reached_by_its_link(home: pathlib.Path):
  os.symlink('../other', home / 'a' / 'link')
  os.symlink('link', home / 'a' / 'link2')
  assert list(runs.find_runs([home / 'a'])) == ['link', 'tiny']


def test_a_failure_is_read_once(home: pathlib.Path):
  (home / 'failed').mkdir()
  (home / 'failed' / run_dir.FAILURE).write_text('{"asked": "a", "found": "b", "remedy": "c"}')
  os.symlink('.', home / 'loop')
  assert runs.read_failures([home]) == {'failed': 'a: b'}
