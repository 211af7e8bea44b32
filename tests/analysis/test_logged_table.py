"""Logged tables become the loss curves of their rows; invalid tables are refused."""

import gzip
import math
import pathlib

import pytest

from minilm_jax.analysis import logged_table, loss_curves
from minilm_jax.core.errors import InputError
from tests.fake_runs import make_log_row, write_log_table


def test_the_logs_of_the_paper_are_42_runs_of_36_evaluations(data: pathlib.Path):
  curves = logged_table.read_csv(data / 'honey_logs' / 'eval_results.csv.gz')
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
  curves = logged_table.read_csv(write_log_table(tmp_path / 'x.csv', rows))
  assert curves == logged_table.read_csv(
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
  (curve,) = logged_table.read_csv(write_log_table(tmp_path / 'x.csv', [row]))
  assert curve.loss == pytest.approx((2,))
  assert (curve.seed, curve.learning_rate, curve.warmup, curve.test_loss, curve.bits_per_word) == (
    None,
  ) * 5
  (curve,) = logged_table.read_csv(
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
  (curve,) = logged_table.read_csv(write_log_table(tmp_path / 'x.csv', rows))
  assert (curve.name, curve.updates, curve.non_finite) == ('a', (100,), 2)
  assert '3 evaluations' in capsys.readouterr().err
  with pytest.raises(InputError, match='no finite loss'):
    logged_table.read_csv(write_log_table(tmp_path / 'x.csv', rows[1:]))


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
      curve.finished for curve in logged_table.read_csv(write_log_table(tmp_path / 'x.csv', rows))
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
    logged_table.read_csv(write_log_table(tmp_path / 'x.csv', rows))


KAPLAN_COLUMN = 'FLOPS Kaplan per sequence'


@pytest.mark.parametrize('kaplan', [4.9e8, 490_071_000, 1e9])
def test_a_line_whose_flops_disagree_is_named(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, kaplan: float
):
  """Rows of make_log_row have 128 tokens; the run `c` has no line that agrees."""
  rows = [make_log_row(name, updates) for name in 'ab' for updates in (100, 200, 300)]
  rows[4][KAPLAN_COLUMN] = kaplan
  rows.append(make_log_row('c', 100, **{KAPLAN_COLUMN: kaplan}))
  curves = logged_table.read_csv(write_log_table(tmp_path / 'x.csv', rows))
  assert [curve.length for curve in curves] == [128, 128, 128]
  assert {curve.flops_per_row[loss_curves.KAPLAN] for curve in curves} == {490_071_552}
  assert [curve.rows for curve in curves] == [(25_600, 51_200, 76_800)] * 2 + [(25_600,)]
  assert '2 lines that disagree with the length of their rows: 6, 8\n' in capsys.readouterr().err


def test_flops_without_a_majority_are_refused(tmp_path: pathlib.Path):
  rows = [make_log_row(), make_log_row(updates=200, **{KAPLAN_COLUMN: 2 * 490_071_552})]
  with pytest.raises(InputError, match='Kaplan per sequence is 4.*and 9.*\n.*different names'):
    logged_table.read_csv(write_log_table(tmp_path / 'x.csv', rows))
  other_batch = make_log_row('b', Tokens=100 * 65536, **{KAPLAN_COLUMN: 4.9e8})
  with pytest.raises(InputError, match='line 3.*\n.*4.9e.08.*\n.*column sequence_length'):
    logged_table.read_csv(write_log_table(tmp_path / 'y.csv', [rows[0], other_batch]))


def test_a_run_that_diverged_is_unfinished(tmp_path: pathlib.Path):
  rows = [
    make_log_row(name, updates, 'nan' if name == 'diverged' and updates > 300 else 3.0)
    for name in ('ok', 'diverged', 'never')
    for updates in range(100, 801, 100)
  ]
  rows = [row | {'eval/loss': 'nan'} if row['run_name'] == 'never' else row for row in rows]
  curves = logged_table.read_csv(write_log_table(tmp_path / 'x.csv', rows))
  assert [(curve.name, curve.finished) for curve in curves] == [('ok', True), ('diverged', False)]


def test_an_evaluation_before_training_is_left_out(tmp_path: pathlib.Path):
  (curve,) = logged_table.read_csv(
    write_log_table(tmp_path / 'x.csv', [make_log_row(updates=0, loss=9.9), make_log_row()])
  )
  assert (curve.updates, curve.non_finite) == ((100,), 0)


def test_missing_empty_and_truncated_tables_are_refused(tmp_path: pathlib.Path):
  table = write_log_table(
    tmp_path / 'eval.csv', [make_log_row(updates=n) for n in range(100, 2000, 100)]
  ).read_bytes()
  with pytest.raises(InputError, match="no such file\n.*'eval.csv'"):
    logged_table.read_csv(tmp_path / 'evals.csv')
  for content, pattern in (
    (table.splitlines()[0], 'without rows'),
    (b'', 'no column'),
    (table[:-60], '[0-9]+ cells for [0-9]+ columns'),
    (b'\xff\xfe' + table, 'damaged'),
    (table[:-3], 'Tokens is'),
  ):
    (tmp_path / 'x.csv').write_bytes(content)
    with pytest.raises(InputError, match=pattern):
      logged_table.read_csv(tmp_path / 'x.csv')
  (tmp_path / 'x.csv.gz').write_bytes(gzip.compress(table)[:-9])
  with pytest.raises(InputError, match='damaged'):
    logged_table.read_csv(tmp_path / 'x.csv.gz')
