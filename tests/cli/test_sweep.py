"""A sweep: each point is a run, failures are isolated, and a repeat changes nothing."""

import dataclasses
import pathlib
from typing import Any

import jax
import pytest

from minilm_jax.cli import main, sweep, sweep_plan
from minilm_jax.core import files, lock, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus
from tests.tiny_config import UPDATES, make_run_config


@pytest.fixture(scope='module', autouse=True)
def keep_programs(share_programs) -> Any:
  """Lets points of one recipe share their compiled programs."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'clear_caches', lambda: None)
    yield


def point(folder: pathlib.Path, **changes: Any) -> RunConfig:
  """Returns a recipe that evaluates and saves once."""
  return make_run_config(folder, **{'eval.every': UPDATES, 'checkpoint.every': UPDATES, **changes})


def grid(folder: pathlib.Path) -> dict[str, RunConfig]:
  """Returns one model and a population of two."""
  return {
    'single': point(folder),
    'twins': point(folder, **{'population.members': 2, 'mesh.population': 1, 'seed': 5}),
  }


@pytest.fixture(scope='module')
def swept(
  tiny_corpus: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, list[dict]]:
  folder = tmp_path_factory.mktemp('sweep')
  return folder, sweep.run_sweep(grid(tiny_corpus), folder)


def test_every_point_and_every_member_is_a_run(swept):
  folder, rows = swept
  assert [row['point'] for row in rows] == ['single', 'twins'] and {
    row['state'] for row in rows
  } == {sweep.FINISHED}
  assert [len(row['bits_per_word']) for row in rows] == [1, 2]
  for name in ('single', 'twins', 'twins/member-0', 'twins/member-1'):
    assert files.read_json(folder / name / run_dir.RESULT, 'it')['updates'] == UPDATES
  for row, names in zip(rows, (['single'], ['twins/member-0', 'twins/member-1'])):
    words = [files.read_json(folder / name / run_dir.BITS_PER_WORD, 'it') for name in names]
    assert [member['bits_per_word'] for member in words] == row['bits_per_word']
    results = [files.read_json(folder / name / run_dir.RESULT, 'it') for name in names]
    assert [member['test_loss'] for member in results] == row['test_loss']
  assert not list(folder.glob('**/.lock')) and not list(folder.glob('**/failure.json'))


def test_a_repeat_changes_no_file(swept, tiny_corpus: pathlib.Path):
  folder, rows = swept
  old_files = {path: path.stat().st_mtime_ns for path in folder.glob('**/*') if path.is_file()}
  repeated_rows = sweep.run_sweep(grid(tiny_corpus), folder)
  assert [{**row, 'seconds': 0} for row in repeated_rows] == [{**row, 'seconds': 0} for row in rows]
  assert {
    path: path.stat().st_mtime_ns for path in folder.glob('**/*') if path.is_file()
  } == old_files


def test_shares_together_are_the_sweep(swept, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path):
  rows = [
    row for part in (2, 1) for row in sweep.run_sweep(grid(tiny_corpus), tmp_path, f'{part}/2')
  ]
  by_name = sorted(({**row, 'seconds': 0} for row in rows), key=lambda row: row['point'])
  assert by_name == [{**row, 'seconds': 0} for row in swept[1]]


def test_a_failure_is_stored_and_other_points_are_trained(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
  points = {'broken': point(tmp_path / 'nowhere'), 'fine': grid(tiny_corpus)['twins']}
  rows = {row['point']: row for row in sweep.run_sweep(points, tmp_path)}
  assert rows['broken']['state'] == sweep.FAILED and rows['fine']['state'] == sweep.FINISHED
  record = files.read_json(tmp_path / 'broken' / run_dir.FAILURE, 'it')
  assert record.keys() == {'asked', 'found', 'remedy'} and 'manifest.json' in record['found']
  assert str(tmp_path / 'broken' / run_dir.FAILURE) in capsys.readouterr().err
  points['broken'] = dataclasses.replace(points['broken'], corpus=str(tiny_corpus))
  assert {row['state'] for row in sweep.run_sweep(points, tmp_path)} == {sweep.FINISHED}
  assert not (tmp_path / 'broken' / run_dir.FAILURE).exists()


def test_an_out_of_memory_error_fails_one_point(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  def out_of_memory(config: RunConfig, folder: Any):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory\nand more')

  monkeypatch.setattr(sweep.run, 'pretrain', out_of_memory)
  (row,) = sweep.run_sweep({'single': point(tiny_corpus)}, tmp_path)
  assert row['state'] == sweep.FAILED and row['reason'].endswith(
    'RESOURCE_EXHAUSTED: Out of memory'
  )


def test_a_locked_point_is_skipped(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
  (tmp_path / 'single').mkdir()
  with lock.hold_lock(tmp_path / 'single'):
    (row,) = sweep.run_sweep({'single': point(tiny_corpus)}, tmp_path)
  assert row['state'] == sweep.LOCKED and 'skipping single' in capsys.readouterr().err
  assert (
    not (tmp_path / 'single' / run_dir.METRICS).exists()
    and not (tmp_path / 'single' / run_dir.FAILURE).exists()
  )


def test_another_vocab_size_builds_another_corpus(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  points = {'small': point(tiny_corpus, **{'model.vocab_size': 210}), 'large': point(tiny_corpus)}
  rows = sweep.run_sweep(points, tmp_path)
  assert {row['state'] for row in rows} == {sweep.FINISHED}
  assert corpus.read_manifest(tmp_path / 'corpora' / '200')['vocabulary'] == 200
  corpora = {
    name: files.read_json(tmp_path / name / run_dir.MANIFEST, 'it')['corpus_folder']
    for name in points
  }
  assert corpora == {'small': str(tmp_path / 'corpora' / '200'), 'large': str(tiny_corpus)}
  words = {
    name: files.read_json(tmp_path / name / run_dir.BITS_PER_WORD, 'it')['word_masks'][0]
    for name in points
  }
  assert (
    words['small']['tokens'] / words['small']['words']
    > words['large']['tokens'] / words['large']['words']
  )


def test_a_dry_run_writes_nothing(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  monkeypatch.setattr(
    sweep_plan.timing, 'time_our_step', lambda *_: (lambda steps: 1e-3 * steps, 0.0)
  )
  budget = sweep_plan.Budget(tokens=1e5)
  rows = sweep.run_sweep(grid(tiny_corpus), tmp_path, budget=budget, dry_run=True)
  assert not list(tmp_path.iterdir())
  assert [row['updates'] for row in rows] == [98, 98] and all(row['seconds'] > 0 for row in rows)


def test_an_empty_share_is_refused(tiny_corpus: pathlib.Path, tmp_path: pathlib.Path):
  with pytest.raises(InputError, match='--shard=3/3'):
    sweep.run_sweep(grid(tiny_corpus), tmp_path, '3/3')


def test_the_command_returns_status_2_after_a_failure(
  monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
  row = {'test_loss': [6.5, None], 'bits_per_word': [9.25], 'seconds': 61.0}
  rows = [
    row | {'point': 'fine', 'state': sweep.FINISHED},
    row | {'point': 'bad', 'state': sweep.FAILED, 'reason': 'the corpus X: no such folder'},
  ]
  monkeypatch.setattr(sweep, 'run_sweep', lambda configs, *others: rows)
  assert main.main(['sweep', '--config=configs/paper1_grids.py', '--workdir=S']) == 2
  output = capsys.readouterr()
  assert 'bad failed: the corpus X: no such folder' in output.err
  assert all(
    word in output.out for word in ('fine', 'finished', 'failed', '6.500', '9.250', '0:01:01')
  )
