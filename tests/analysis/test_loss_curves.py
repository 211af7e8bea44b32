"""Loss curves have the values of run directories and logged tables; invalid files are refused."""

import gzip
import json
import math
import pathlib

import numpy as np
import pytest
from etils import epath

from minilm_jax.analysis import loss_curves, runs
from minilm_jax.analysis.loss_curves import ModelShape
from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from tests import fake_runs
from tests.fake_runs import make_log_row, write_log_table


def list_names(folder: pathlib.Path) -> list[str]:
  return [curve.name for curve in loss_curves.read_runs(runs.find_runs([folder])).curves]


def change_file(path: pathlib.Path, **values: object) -> None:
  files.write_json(path, json.loads(path.read_text()) | values)


def test_a_curve_has_the_values_in_the_files_of_the_run(tmp_path: pathlib.Path):
  folder = fake_runs.write_scaling_run(tmp_path / 'runs' / 'a', hidden=64, heads=2, seed=3)
  (curve,) = loss_curves.read_runs(runs.find_runs([tmp_path / 'runs'])).curves
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
    loss_curves.read_runs(runs.find_runs([path])).curves[0] for path in (full_run, half_run)
  )
  assert (full.length, half.length) == (128, 64) and full.rows == half.rows
  assert half.flops_per_row['kaplan'] == full.flops_per_row['kaplan'] / 2
  assert half.flops_per_row['actual'] == pytest.approx(full.flops_per_row['actual'] / 2.5)


def test_members_have_separate_seeds_and_learning_rates(tmp_path: pathlib.Path):
  folder = fake_runs.write_scaling_run(
    tmp_path / 'both', members=2, seed=5, population={'learning_rates': [1e-3, 2e-3]}
  )
  first, second = loss_curves.read_runs(runs.find_runs([folder])).curves
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
  assert [curve.seed for curve in loss_curves.read_runs(runs.find_runs([folder])).curves] == [9, 2]


def test_an_extracted_member_is_listed_once(tmp_path: pathlib.Path):
  folder = fake_runs.write_scaling_run(tmp_path / 'runs' / 'both', members=2)
  fake_runs.write_scaling_run(folder / 'member-1', seed=1)
  files.write_json(
    folder / 'member-1' / run_dir.BITS_PER_WORD, {'bits_per_word': 4.0, 'bits_per_byte': 1.0}
  )
  assert list_names(tmp_path / 'runs') == ['both member 0', 'both/member-1']
  assert loss_curves.read_runs(runs.find_runs([tmp_path / 'runs'])).curves[1].bits_per_word == 4.0
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
  curves = loss_curves.read_runs(runs.find_runs([tmp_path])).curves
  assert [(curve.updates[-1], curve.finished, curve.test_loss) for curve in curves] == [
    (300, False, None)
  ] * 2


def test_continued_runs_have_no_curve(tmp_path: pathlib.Path):
  """Their tokens and FLOPs are those of the last part of their training."""
  fake_runs.write_scaling_run(tmp_path / 'runs' / 'a')
  fake_runs.continue_run(fake_runs.write_scaling_run(tmp_path / 'runs' / 'b'), 'runs/a', 800)
  curves = loss_curves.read_runs(runs.find_runs([tmp_path / 'runs']))
  assert [curve.name for curve in curves.curves] == ['a']
  assert len(curves.left_out) == 1 and 'runs/a@800' in curves.left_out[0]


def test_null_losses_of_a_run_are_counted(tmp_path: pathlib.Path):
  folder = fake_runs.write_scaling_run(tmp_path / 'a')
  lines = [
    line | ({'loss': None} if line['step'] == 300 else {})
    for line in run_dir.read_lines(folder / run_dir.METRICS)
  ]
  run_dir.write_lines(folder / run_dir.METRICS, lines)
  (curve,) = loss_curves.read_runs(runs.find_runs([folder])).curves
  assert curve.non_finite == 1 and 300 not in curve.updates and np.isfinite(curve.loss).all()


def test_runs_without_a_field_are_left_out_with_the_reason(tmp_path: pathlib.Path):
  fake_runs.write_scaling_run(tmp_path / 'good')
  fake_runs.write_scaling_run(tmp_path / 'early', updates=0, finished=False)
  (fake_runs.write_scaling_run(tmp_path / 'bare') / run_dir.MANIFEST).unlink()
  run_dir.open_run(tmp_path / 'old', {'kind': 'pretrain', 'num_steps': 3})
  change_file(
    fake_runs.write_scaling_run(tmp_path / 'strange') / run_dir.MANIFEST, parameters=1_000_000
  )
  run_dir.open_run(tmp_path / 'task', {'kind': 'finetune'})
  result = loss_curves.read_runs(runs.find_runs([tmp_path]))
  assert [curve.name for curve in result.curves] == ['good']
  reasons = dict(text.split(': ', 1) for text in result.left_out)
  assert set(reasons) == {'early', 'bare', 'old', 'strange'}
  assert (
    'validation loss' in reasons['early']
    and "'flops_per_row'" in reasons['bare']
    and "'model'" in reasons['old']
  )
  (tmp_path / 'good' / run_dir.MANIFEST).write_text('{')
  with pytest.raises(InputError, match='not JSON'):
    loss_curves.read_runs(runs.find_runs([tmp_path]))


def test_failed_points_are_listed_until_they_succeed(tmp_path: pathlib.Path):
  failure = {'asked': 'a finite train loss', 'found': 'nan', 'remedy': 'lower the rate'}
  for name in ('a', 'b'):
    (tmp_path / 'sweep' / name).mkdir(parents=True)
    files.write_json(tmp_path / 'sweep' / name / run_dir.FAILURE, failure)
  assert runs.read_failures([tmp_path / 'sweep']) == dict.fromkeys('ab', 'a finite train loss: nan')
  files.write_json(tmp_path / 'sweep' / 'a' / run_dir.RESULT, {})
  assert list(runs.read_failures([tmp_path / 'sweep'])) == ['b']


def test_the_logs_of_the_paper_are_42_runs_of_36_evaluations(data: pathlib.Path):
  curves = loss_curves.read_csv(data / 'honey_logs' / 'eval_results.csv.gz')
  assert len(curves) == 42 and {len(curve.loss) for curve in curves} == {36}
  assert {curve.shape.vocabulary for curve in curves} == {19010} and {
    curve.length for curve in curves
  } == {128}
  assert all(curve.finished and curve.non_finite == 0 for curve in curves)
  assert (
    sum(curve.tied is True for curve in curves) == 7
    and sum(curve.tied is False for curve in curves) == 35
  )
  assert sum(curve.flops()[-1] for curve in curves) == pytest.approx(2.20e18, rel=0.005)
  bee = next(curve for curve in curves if curve.name == 'magic-bee-26')
  assert bee.parameters == 1_250_722 and bee.flops_per_row['honey'] == 943_964_160
  assert bee.updates[0] == 1000 and math.exp(bee.loss[0]) == pytest.approx(56.92, abs=0.01)
  assert bee.test_loss == pytest.approx(3.1106, abs=1e-4) and bee.rows[0] == 256_000


def test_order_and_compression_of_a_table_do_not_matter(tmp_path: pathlib.Path):
  rows = [
    make_log_row(name, updates, 5 - updates / 100) for name in 'ab' for updates in (100, 200, 300)
  ]
  curves = loss_curves.read_csv(write_log_table(tmp_path / 'x.csv', rows))
  assert curves == loss_curves.read_csv(
    write_log_table(tmp_path / 'y.csv.gz', [*rows[2::-1], *rows[3:]])
  )
  assert (
    curves[0].updates == (100, 200, 300)
    and curves[0].rows == (25600, 51200, 76800)
    and curves[0].loss == (4, 3, 2)
  )


def test_a_perplexity_replaces_a_loss_and_missing_values_are_none(tmp_path: pathlib.Path):
  row = {key: value for key, value in make_log_row().items() if key != 'eval/loss'} | {
    'eval/perplexity': math.e**2
  }
  (curve,) = loss_curves.read_csv(write_log_table(tmp_path / 'x.csv', [row]))
  assert curve.loss == pytest.approx((2,))
  assert (curve.seed, curve.learning_rate, curve.warmup, curve.test_loss, curve.bits_per_word) == (
    None,
  ) * 5
  (curve,) = loss_curves.read_csv(
    write_log_table(
      tmp_path / 'x.csv', [row | {'seed': 3, 'learning_rate': 5e-4, 'test/loss': 2.5}]
    )
  )
  assert (curve.seed, curve.learning_rate, curve.test_loss) == (3, 5e-4, 2.5)


def test_losses_that_are_not_finite_are_counted_and_logged(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
  rows = [
    make_log_row('a', 100, 3.0),
    make_log_row('a', 200, 'nan'),
    make_log_row('a', 300, ''),
    make_log_row('gone', 100, 'inf'),
  ]
  (curve,) = loss_curves.read_csv(write_log_table(tmp_path / 'x.csv', rows))
  assert (curve.name, curve.updates, curve.non_finite) == ('a', (100,), 2)
  assert '3 evaluations' in capsys.readouterr().err
  with pytest.raises(InputError, match='no finite loss'):
    loss_curves.read_csv(write_log_table(tmp_path / 'x.csv', rows[1:]))


@pytest.mark.parametrize(
  'test_losses, finished',
  [((2.9, 2.8), (True, True)), (('', ''), (True, False)), (('', 2.8), (False, True))],
)
def test_a_run_is_finished_by_its_test_loss_or_else_by_the_last_update(
  tmp_path: pathlib.Path, test_losses: tuple, finished: tuple
):
  rows = [
    make_log_row('a', 1000, **{'test/loss': test_losses[0]}),
    make_log_row('b', 500, **{'test/loss': test_losses[1]}),
  ]
  assert (
    tuple(
      curve.finished for curve in loss_curves.read_csv(write_log_table(tmp_path / 'x.csv', rows))
    )
    == finished
  )


@pytest.mark.parametrize(
  'rows, pattern',
  [
    ([make_log_row(), make_log_row()], 'line 3.*\n.*line 2'),
    ([make_log_row(), make_log_row(updates=200, embedding_size=64)], 'embedding_size is 32 and 64'),
    ([make_log_row(), make_log_row(updates=200, Tokens=5)], 'line 3.*\n.*Tokens is 5'),
    ([make_log_row(loss='three')], "line 2\n.*'three'"),
    ([make_log_row(), make_log_row(updates='2e')], "line 3\n.*eval/updates is '2e'"),
    ([make_log_row(hidden_size=1.5)], 'hidden_size is'),
    ([make_log_row(**{'Embedding parameters': 612609})], 'column vocabulary'),
    ([make_log_row(**{'FLOPS Kaplan per sequence': 1e9})], 'column sequence_length'),
    (
      [
        {key: value for key, value in make_log_row().items() if key != 'hidden_size'}
        | {'hidden size': 32}
      ],
      "'hidden_size'\nto do.*'hidden size'",
    ),
  ],
)
def test_invalid_tables_are_refused_with_line_and_column(
  tmp_path: pathlib.Path, rows: list[dict[str, object]], pattern: str
):
  with pytest.raises(InputError, match=pattern):
    loss_curves.read_csv(write_log_table(tmp_path / 'x.csv', rows))


KAPLAN_COLUMN = 'FLOPS Kaplan per sequence'


@pytest.mark.parametrize('kaplan', [4.9e8, 490_071_000, 1e9])
def test_a_line_whose_flops_disagree_is_named(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, kaplan: float
):
  """Rows of make_log_row have 128 tokens; the run `c` has no line that agrees."""
  rows = [make_log_row(name, updates) for name in 'ab' for updates in (100, 200, 300)]
  rows[4][KAPLAN_COLUMN] = kaplan
  rows.append(make_log_row('c', 100, **{KAPLAN_COLUMN: kaplan}))
  curves = loss_curves.read_csv(write_log_table(tmp_path / 'x.csv', rows))
  assert [curve.length for curve in curves] == [128, 128, 128]
  assert {curve.flops_per_row[loss_curves.KAPLAN] for curve in curves} == {490_071_552}
  assert [curve.rows for curve in curves] == [(25_600, 51_200, 76_800)] * 2 + [(25_600,)]
  assert '2 lines that disagree with the length of their rows: 6, 8\n' in capsys.readouterr().err


def test_flops_without_a_majority_are_refused(tmp_path: pathlib.Path):
  rows = [make_log_row(), make_log_row(updates=200, **{KAPLAN_COLUMN: 2 * 490_071_552})]
  with pytest.raises(InputError, match='Kaplan per sequence is 4.*and 9.*\n.*different names'):
    loss_curves.read_csv(write_log_table(tmp_path / 'x.csv', rows))
  other_batch = make_log_row('b', Tokens=100 * 65536, **{KAPLAN_COLUMN: 4.9e8})
  with pytest.raises(InputError, match='line 3.*\n.*4.9e.08.*\n.*column sequence_length'):
    loss_curves.read_csv(write_log_table(tmp_path / 'y.csv', [rows[0], other_batch]))


def test_an_evaluation_before_training_is_left_out(tmp_path: pathlib.Path):
  (curve,) = loss_curves.read_csv(
    write_log_table(tmp_path / 'x.csv', [make_log_row(updates=0, loss=9.9), make_log_row()])
  )
  assert (curve.updates, curve.non_finite) == ((100,), 0)


def test_missing_empty_and_truncated_tables_are_refused(tmp_path: pathlib.Path):
  table = write_log_table(
    tmp_path / 'eval.csv', [make_log_row(updates=n) for n in range(100, 2000, 100)]
  ).read_bytes()
  with pytest.raises(InputError, match="no such file\n.*'eval.csv'"):
    loss_curves.read_csv(tmp_path / 'evals.csv')
  for content, pattern in (
    (table.splitlines()[0], 'without rows'),
    (b'', 'no column'),
    (table[:-60], '[0-9]+ cells for [0-9]+ columns'),
    (b'\xff\xfe' + table, 'damaged'),
    (table[:-3], 'Tokens is'),
  ):
    (tmp_path / 'x.csv').write_bytes(content)
    with pytest.raises(InputError, match=pattern):
      loss_curves.read_csv(tmp_path / 'x.csv')
  (tmp_path / 'x.csv.gz').write_bytes(gzip.compress(table)[:-9])
  with pytest.raises(InputError, match='damaged'):
    loss_curves.read_csv(tmp_path / 'x.csv.gz')
