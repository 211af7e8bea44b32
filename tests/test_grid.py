"""Run directories as tracks: what they hold, members and the runs they became, and what is left out."""

import json
import pathlib

import numpy as np
import pytest
from etils import epath

from minilm_jax import run
from minilm_jax.analysis import grid, runs
from minilm_jax.analysis.tracks import ModelShape
from minilm_jax.errors import InputError
from tests import fake_runs


def names(folder: pathlib.Path) -> list[str]:
  return [track.name for track in grid.tracks(runs.find([folder]))]


def change(path: pathlib.Path, **values: object) -> None:
  run.write_json(path, json.loads(path.read_text()) | values)


def test_a_run_is_the_track_that_its_files_say(tmp_path: pathlib.Path):
  folder = fake_runs.write_scaling_run(tmp_path / 'runs' / 'a', hidden=64, heads=2, seed=3)
  track, = grid.tracks(runs.find([tmp_path / 'runs']))
  assert track.shape == ModelShape(32, 64, 64, 2, 1, 1000)  # the heads that the paper's formula is given
  assert (track.name, track.seed, track.learning_rate, track.warmup, track.tied) == ('a', 3, 1e-3, 20, False)
  assert track.parameters == json.loads((folder / run.MANIFEST).read_text())['parameters']['total']
  assert track.updates == tuple(range(100, 801, 100)) and track.length == 128 and track.lost == 0
  lines = [line for line in run.read_lines(folder / run.METRICS) if line['split'] == 'validation']
  assert track.loss == tuple(line['loss'] for line in lines)
  assert track.tokens.tolist() == [line['tokens'] for line in lines]
  assert track.flops('actual').tolist() == pytest.approx([line['flops'] for line in lines])
  assert track.finished and track.test_loss == pytest.approx(track.loss[-1] + 0.01)
  assert track.bits_per_word is None


def test_shorter_rows_of_the_corpus_cost_less(tmp_path: pathlib.Path):
  whole = fake_runs.write_scaling_run(tmp_path / 'whole')
  half = fake_runs.write_scaling_run(tmp_path / 'half')
  lines = [{**line, 'tokens': line['tokens'] / 2, 'flops': line['flops'] / 2.5}
           for line in run.read_lines(half / run.METRICS)]
  run.write_lines(half / run.METRICS, lines)
  one, other = (grid.tracks(runs.find([path]))[0] for path in (whole, half))
  assert (one.length, other.length) == (128, 64) and one.rows == other.rows
  assert other.flops_per_row['kaplan'] == one.flops_per_row['kaplan'] / 2
  assert other.flops_per_row['actual'] == pytest.approx(one.flops_per_row['actual'] / 2.5)


def test_members_have_their_own_seeds_and_rates(tmp_path: pathlib.Path):
  folder = fake_runs.write_scaling_run(tmp_path / 'both', members=2, seed=5, population={'learning_rates': [1e-3, 2e-3]})
  first, second = grid.tracks(runs.find([folder]))
  assert (first.name, second.name) == ('both member 0', 'both member 1')
  assert (first.seed, second.seed, first.learning_rate, second.learning_rate) == (5, 6, 1e-3, 2e-3)
  assert first.bits_per_word is second.bits_per_word is None  # they are taken of members that are runs of their own
  assert first.loss != second.loss and first.finished
  change(folder / run.CONFIG, population={'members': 2, 'seeds': [9, 2], 'learning_rates': []})
  assert [track.seed for track in grid.tracks(runs.find([folder]))] == [9, 2]


def test_a_member_that_became_a_run_is_there_once(tmp_path: pathlib.Path):
  folder = fake_runs.write_scaling_run(tmp_path / 'runs' / 'both', members=2)
  fake_runs.write_scaling_run(folder / 'member-1', seed=1)
  run.write_json(folder / 'member-1' / run.WORDS, {'bits_per_word': 4.0, 'bits_per_byte': 1.0})
  assert names(tmp_path / 'runs') == ['both member 0', 'both/member-1']
  assert grid.tracks(runs.find([tmp_path / 'runs']))[1].bits_per_word == 4.0
  assert [row.name for row in runs.rows('both', epath.Path(folder))] == ['both member 0']
  assert [curve.name for curve in runs.curves('both', epath.Path(folder))] == ['both member 0']
  fake_runs.write_scaling_run(folder / 'member-0')
  assert names(tmp_path / 'runs') == ['both/member-0', 'both/member-1']
  assert runs.rows('both', epath.Path(folder)) == []


def test_runs_under_way_and_cut_logs_are_unfinished_tracks(tmp_path: pathlib.Path):
  cut = fake_runs.write_scaling_run(tmp_path / 'cut', updates=300, finished=False)
  with (cut / run.METRICS).open('a') as file:
    file.write('{"step": 400, "spl')
  fake_runs.write_scaling_run(tmp_path / 'dropped', updates=300)  # the population ended, this member before it
  tracks = grid.tracks(runs.find([tmp_path]))
  assert [(track.updates[-1], track.finished, track.test_loss) for track in tracks] == [(300, False, None)] * 2


def test_losses_that_are_no_numbers_are_counted(tmp_path: pathlib.Path):
  folder = fake_runs.write_scaling_run(tmp_path / 'a')
  lines = [line | ({'loss': None} if line['step'] == 300 else {}) for line in run.read_lines(folder / run.METRICS)]
  run.write_lines(folder / run.METRICS, lines)
  track, = grid.tracks(runs.find([folder]))
  assert track.lost == 1 and 300 not in track.updates and np.isfinite(track.loss).all()


def test_what_lacks_something_is_left_out_with_the_reason(tmp_path: pathlib.Path):
  fake_runs.write_scaling_run(tmp_path / 'good')
  fake_runs.write_scaling_run(tmp_path / 'early', updates=0, finished=False)
  (fake_runs.write_scaling_run(tmp_path / 'bare') / run.MANIFEST).unlink()
  run.open_run(tmp_path / 'old', {'kind': 'pretrain', 'num_steps': 3})
  change(fake_runs.write_scaling_run(tmp_path / 'strange') / run.MANIFEST, parameters=1_000_000)
  run.open_run(tmp_path / 'task', {'kind': 'finetune'})
  found = grid.read_runs(runs.find([tmp_path]))
  assert [track.name for track in found.tracks] == ['good']
  told = dict(text.split(': ', 1) for text in found.left_out)
  assert set(told) == {'early', 'bare', 'old', 'strange'}
  assert 'no validation loss yet' in told['early'] and "'flops_per_row'" in told['bare'] and "'model'" in told['old']
  (tmp_path / 'good' / run.MANIFEST).write_text('{')
  with pytest.raises(InputError, match='not JSON'):
    grid.read_runs(runs.find([tmp_path]))


def test_points_that_failed_are_told_until_they_succeed(tmp_path: pathlib.Path):
  told = {'asked': 'a finite train loss', 'found': 'nan', 'remedy': 'lower the rate'}
  for name in ('a', 'b'):
    (tmp_path / 'sweep' / name).mkdir(parents=True)
    run.write_json(tmp_path / 'sweep' / name / run.FAILURE, told)
  assert runs.failures([tmp_path / 'sweep']) == dict.fromkeys('ab', 'a finite train loss: nan')
  run.write_json(tmp_path / 'sweep' / 'a' / run.RESULT, {})
  assert list(runs.failures([tmp_path / 'sweep'])) == ['b']
