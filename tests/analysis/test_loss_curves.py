"""Loss curves have the values of run directories; invalid files are refused."""

import json
import pathlib

import numpy as np
import pytest
from etils import epath

from minilm_jax.analysis import loss_curves, runs
from minilm_jax.analysis.loss_curves import ModelShape
from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from tests import fake_runs


def list_names(folder: pathlib.Path) -> list[str]:
  return [curve.name for curve in loss_curves.read_runs(runs.find_runs([folder]))[0]]


def change_file(path: pathlib.Path, **values: object) -> None:
  files.write_json(path, json.loads(path.read_text()) | values)


def test_a_curve_has_the_values_in_the_files_of_the_run(tmp_path: pathlib.Path):
  folder = fake_runs.write_scaling_run(tmp_path / 'runs' / 'a', hidden=64, heads=2, seed=3)
  (curve,) = loss_curves.read_runs(runs.find_runs([tmp_path / 'runs']))[0]
  # The number of heads is that of the FLOPs formula.
  assert curve.shape == ModelShape(32, 64, 64, 2, 1, 1000)
  assert (curve.name, curve.seed, curve.learning_rate, curve.warmup, curve.tied) == (
    'a',
    3,
    1e-3,
    20,
    False,
  )
  assert (
    curve.parameters == json.loads((folder / run_dir.MANIFEST).read_text())['parameters']['total']
  )
  assert (
    curve.updates == tuple(range(100, 801, 100)) and curve.length == 128 and curve.non_finite == 0
  )
  lines = [
    line for line in run_dir.read_lines(folder / run_dir.METRICS) if line['split'] == 'validation'
  ]
  assert curve.loss == tuple(line['loss'] for line in lines)
  assert curve.tokens.tolist() == [line['tokens'] for line in lines]
  assert curve.flops('actual').tolist() == pytest.approx([line['flops'] for line in lines])
  assert curve.finished and curve.test_loss == pytest.approx(curve.loss[-1] + 0.01)
  assert curve.bits_per_word is None


def test_shorter_rows_of_the_corpus_cost_less(tmp_path: pathlib.Path):
  full_run = fake_runs.write_scaling_run(tmp_path / 'whole')
  half_run = fake_runs.write_scaling_run(tmp_path / 'half')
  lines = [
    {**line, 'tokens': line['tokens'] / 2, 'flops': line['flops'] / 2.5}
    for line in run_dir.read_lines(half_run / run_dir.METRICS)
  ]
  run_dir.write_lines(half_run / run_dir.METRICS, lines)
  full, half = (
    loss_curves.read_runs(runs.find_runs([path]))[0][0] for path in (full_run, half_run)
  )
  assert (full.length, half.length) == (128, 64) and full.rows == half.rows
  assert half.flops_per_row['kaplan'] == full.flops_per_row['kaplan'] / 2
  assert half.flops_per_row['actual'] == pytest.approx(full.flops_per_row['actual'] / 2.5)


def test_members_have_separate_seeds_and_learning_rates(tmp_path: pathlib.Path):
  folder = fake_runs.write_scaling_run(
    tmp_path / 'both', members=2, seed=5, population={'learning_rates': [1e-3, 2e-3]}
  )
  first, second = loss_curves.read_runs(runs.find_runs([folder]))[0]
  assert (first.name, second.name) == ('both member 0', 'both member 1')
  summaries = runs.summarize_run('both', epath.Path(folder))
  assert [(row.name, row.validation_loss) for row in summaries] == [
    (curve.name, curve.loss[-1]) for curve in (first, second)
  ]
  assert [losses.name for losses in runs.read_losses('both', epath.Path(folder))] == [
    first.name,
    second.name,
  ]
  assert (first.seed, second.seed, first.learning_rate, second.learning_rate) == (5, 6, 1e-3, 2e-3)
  # Bits per word are measured for extracted members alone.
  assert first.bits_per_word is second.bits_per_word is None
  assert first.loss != second.loss and first.finished
  change_file(
    folder / run_dir.CONFIG, population={'members': 2, 'seeds': [9, 2], 'learning_rates': []}
  )
  assert [curve.seed for curve in loss_curves.read_runs(runs.find_runs([folder]))[0]] == [9, 2]


def test_an_extracted_member_is_listed_once(tmp_path: pathlib.Path):
  folder = fake_runs.write_scaling_run(tmp_path / 'runs' / 'both', members=2)
  fake_runs.write_scaling_run(folder / 'member-1', seed=1)
  files.write_json(
    folder / 'member-1' / run_dir.BITS_PER_WORD, {'bits_per_word': 4.0, 'bits_per_byte': 1.0}
  )
  assert list_names(tmp_path / 'runs') == ['both member 0', 'both/member-1']
  assert loss_curves.read_runs(runs.find_runs([tmp_path / 'runs']))[0][1].bits_per_word == 4.0
  assert [row.name for row in runs.summarize_run('both', epath.Path(folder))] == ['both member 0']
  assert [curve.name for curve in runs.read_losses('both', epath.Path(folder))] == ['both member 0']
  fake_runs.write_scaling_run(folder / 'member-0')
  assert list_names(tmp_path / 'runs') == ['both/member-0', 'both/member-1']
  assert runs.summarize_run('both', epath.Path(folder)) == []


def test_unfinished_runs_and_truncated_logs_are_unfinished_curves(tmp_path: pathlib.Path):
  truncated = fake_runs.write_scaling_run(tmp_path / 'cut', updates=300, finished=False)
  with (truncated / run_dir.METRICS).open('a') as file:
    file.write('{"step": 400, "spl')
  # This member of a finished population is unfinished.
  fake_runs.write_scaling_run(tmp_path / 'dropped', updates=300)
  curves = loss_curves.read_runs(runs.find_runs([tmp_path]))[0]
  assert [(curve.updates[-1], curve.finished, curve.test_loss) for curve in curves] == [
    (300, False, None)
  ] * 2


def test_continued_runs_have_no_curve(tmp_path: pathlib.Path):
  """Their tokens and FLOPs are those of the last part of their training."""
  fake_runs.write_scaling_run(tmp_path / 'runs' / 'a')
  fake_runs.continue_run(fake_runs.write_scaling_run(tmp_path / 'runs' / 'b'), 'runs/a', 800)
  curves, left_out = loss_curves.read_runs(runs.find_runs([tmp_path / 'runs']))
  assert [curve.name for curve in curves] == ['a']
  assert len(left_out) == 1 and 'runs/a@800' in left_out[0]


def test_null_losses_of_a_run_are_counted(tmp_path: pathlib.Path):
  folder = fake_runs.write_scaling_run(tmp_path / 'a')
  lines = [
    line | ({'loss': None} if line['step'] == 300 else {})
    for line in run_dir.read_lines(folder / run_dir.METRICS)
  ]
  run_dir.write_lines(folder / run_dir.METRICS, lines)
  (curve,) = loss_curves.read_runs(runs.find_runs([folder]))[0]
  assert curve.non_finite == 1 and 300 not in curve.updates and np.isfinite(curve.loss).all()


def test_a_run_that_diverged_is_unfinished(tmp_path: pathlib.Path):
  path = fake_runs.write_scaling_run(tmp_path / 'run')
  lines = run_dir.read_lines(path / run_dir.METRICS)
  diverged = [line | {'loss': float('nan')} if line['step'] > 400 else line for line in lines]
  run_dir.write_lines(path / run_dir.METRICS, diverged)
  (curve,) = loss_curves.read_runs(runs.find_runs([str(tmp_path)]))[0]
  assert curve.updates[-1] == 400 and curve.non_finite == 4 and not curve.finished


def test_runs_without_a_field_are_left_out_with_the_reason(tmp_path: pathlib.Path):
  fake_runs.write_scaling_run(tmp_path / 'good')
  fake_runs.write_scaling_run(tmp_path / 'early', updates=0, finished=False)
  (fake_runs.write_scaling_run(tmp_path / 'bare') / run_dir.MANIFEST).unlink()
  run_dir.open_run(tmp_path / 'old', {'kind': 'pretrain', 'num_steps': 3})
  change_file(
    fake_runs.write_scaling_run(tmp_path / 'strange') / run_dir.MANIFEST, parameters=1_000_000
  )
  change_file(
    fake_runs.write_scaling_run(tmp_path / 'count') / run_dir.MANIFEST, flops_per_row={'actual': 9}
  )
  zero = fake_runs.write_scaling_run(tmp_path / 'zero')
  lines = run_dir.read_lines(zero / run_dir.METRICS)
  run_dir.write_lines(zero / run_dir.METRICS, [line | {'loss': 0.0} for line in lines])
  run_dir.open_run(tmp_path / 'task', {'kind': 'finetune'})
  curves, left_out = loss_curves.read_runs(runs.find_runs([tmp_path]))
  assert [curve.name for curve in curves] == ['good']
  reasons = dict(text.split(': ', 1) for text in left_out)
  assert set(reasons) == {'early', 'bare', 'old', 'strange', 'count', 'zero'}
  assert (
    'validation loss' in reasons['early']
    and "'flops_per_row'" in reasons['bare']
    and "'honey'" in reasons['count']
    and 'validation loss' in reasons['zero']
    and "'model'" in reasons['old']
  )
  (tmp_path / 'good' / run_dir.MANIFEST).write_text('{')
  with pytest.raises(InputError, match='not JSON'):
    loss_curves.read_runs(runs.find_runs([tmp_path]))
