"""Runs in folders: each once, whatever the number of ways to it."""

import json
import os
import pathlib
import time

import pytest

from minilm_jax.analysis import runs
from minilm_jax.analysis.report import report
from minilm_jax.analysis.scores import make_score_table
from minilm_jax.core import files, run_dir
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
  assert runs.read_failures([home], runs.find_runs([home])) == {}
  assert time.monotonic() - started < 20
  report.report([home], home / 'report')
  rows = (home / 'report' / 'runs.csv').read_text().splitlines()[1:]
  assert sorted(row.split(',')[0] for row in rows) == ['a/tiny', 'other']


def test_a_failure_has_the_name_of_its_own_folder(home: pathlib.Path, tmp_path: pathlib.Path):
  """A point that failed before config.json exists is no run, and another run may have its name."""
  for folder in ('first', 'second'):
    (tmp_path / folder / 'other').mkdir(parents=True)
    (tmp_path / folder / 'other' / 'failure.json').write_text('{"asked": "a corpus"}')
  (home / 'other' / 'result.json').unlink(missing_ok=True)
  (home / 'other' / 'failure.json').write_text('{"asked": "memory"}')
  folders = [tmp_path / 'first', tmp_path / 'second', home]
  assert runs.read_failures(folders, runs.find_runs(folders)) == {
    str(tmp_path / 'first' / 'other'): 'a corpus',
    str(tmp_path / 'second' / 'other'): 'a corpus',
    'other': 'memory',
  }
  names = runs.read_failures(folders[:2], {})
  assert names == {'other': 'a corpus', str(tmp_path / 'second' / 'other'): 'a corpus'}


def test_a_run_outside_of_a_folder_is_reached_by_its_link(home: pathlib.Path):
  os.symlink('../other', home / 'a' / 'link')
  os.symlink('link', home / 'a' / 'link2')
  assert list(runs.find_runs([home / 'a'])) == ['link', 'tiny']


def test_a_failure_is_read_once(home: pathlib.Path):
  (home / 'failed').mkdir()
  (home / 'failed' / run_dir.FAILURE).write_text('{"asked": "a", "found": "b", "remedy": "c"}')
  os.symlink('.', home / 'loop')
  assert runs.read_failures([home], {}) == {'failed': 'a: b'}


@pytest.mark.parametrize('is_absolute, has_link', [(True, True), (False, True), (False, False)])
def test_runs_that_moved_together_stay_connected(
  tmp_path: pathlib.Path, monkeypatch, is_absolute: bool, has_link: bool
):
  """A run of the same name in the working directory is not taken for the checkpoint."""
  source = fake_runs.write_pretraining_run(tmp_path / 'old' / 'runs' / 'tiny')
  fake_runs.write_pretraining_run(tmp_path / 'elsewhere' / 'runs' / 'tiny')
  name = source if is_absolute else pathlib.Path('runs/tiny')
  folder = fake_runs.write_finetune_run(source.parent / 'ft', name, [0.7, 0.8])
  if has_link:
    config = json.loads((folder / run_dir.CONFIG).read_text())
    (folder / run_dir.CONFIG).write_text(json.dumps({**config, 'checkpoint_link': '../tiny'}))
  (tmp_path / 'old').rename(tmp_path / 'new')
  monkeypatch.chdir(tmp_path / 'elsewhere')
  run_paths = runs.find_runs([tmp_path / 'new', tmp_path / 'elsewhere' / 'runs'])
  assert set(run_paths) == {'runs/tiny', 'runs/ft', 'tiny'}
  assert runs.resolve_source(run_paths, run_paths['runs/ft']) == 'runs/tiny'
  assert {line['checkpoint'] for line in runs.read_scores(run_paths)} == {'runs/tiny'}


def test_failed_points_are_listed_until_they_succeed(tmp_path: pathlib.Path):
  failure = {'asked': 'a finite train loss', 'found': 'nan', 'remedy': 'lower the rate'}
  for name in ('a', 'b'):
    (tmp_path / 'sweep' / name).mkdir(parents=True)
    files.write_json(tmp_path / 'sweep' / name / run_dir.FAILURE, failure)
  assert runs.read_failures([tmp_path / 'sweep'], {}) == dict.fromkeys(
    'ab', 'a finite train loss: nan'
  )
  files.write_json(tmp_path / 'sweep' / 'a' / run_dir.RESULT, {})
  assert list(runs.read_failures([tmp_path / 'sweep'], {})) == ['b']


def test_scores_have_the_settings_of_their_protocol(tmp_path):
  folder = fake_runs.write_finetune_run(tmp_path / 'ft', pathlib.Path('tiny'), [0.7])
  config = json.loads((folder / run_dir.CONFIG).read_text())
  config |= {'epochs': 3.0, 'seeds': [0], 'head': {'pooling': 'mean'}}
  (folder / run_dir.CONFIG).write_text(json.dumps(config))
  (line,) = runs.read_scores(runs.find_runs([folder]))
  assert line['protocol']['epochs'] == 3.0 and line['protocol']['head.pooling'] == 'mean'
  assert not {'seeds', 'checkpoint', 'optimizer.learning_rate'} & set(line['protocol'])


def test_custom_tasks_of_one_name_are_different_tasks(tmp_path):
  for name, label, train in (('a', 'about', 'x/two.csv'), ('b', 'mood', 'y/two.csv')):
    folder = fake_runs.write_finetune_run(tmp_path / name, pathlib.Path('tiny'), [0.7])
    config = json.loads((folder / run_dir.CONFIG).read_text())
    config |= {'task': {'name': 'own', 'label': label, 'train': train}}
    (folder / run_dir.CONFIG).write_text(json.dumps(config))
  rows = make_score_table(runs.read_scores(runs.find_runs([tmp_path])))
  assert [row.protocol for row in rows] == ['task.label=about', 'task.label=mood']
