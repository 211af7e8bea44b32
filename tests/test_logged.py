"""Logged tables: the paper's own, tables that users bring, and what is wrong with some."""

import gzip
import math
import pathlib

import pytest

from minilm_jax.analysis import logged
from minilm_jax.errors import InputError
from tests.fake_runs import make_log_row, write_log_table

def test_the_logs_of_the_paper_are_42_runs_of_36_evaluations(data: pathlib.Path):
  tracks = logged.read_csv(data / 'honey_logs' / 'eval_results.csv.gz')
  assert len(tracks) == 42 and {len(track.loss) for track in tracks} == {36}
  assert {track.shape.vocabulary for track in tracks} == {19010} and {track.length for track in tracks} == {128}
  assert all(track.finished and track.lost == 0 for track in tracks)
  assert sum(track.tied is True for track in tracks) == 7 and sum(track.tied is False for track in tracks) == 35
  assert sum(track.flops()[-1] for track in tracks) == pytest.approx(2.20e18, rel=0.005)
  bee = next(track for track in tracks if track.name == 'magic-bee-26')
  assert bee.parameters == 1_250_722 and bee.flops_per_row['honey'] == 943_964_160
  assert bee.updates[0] == 1000 and math.exp(bee.loss[0]) == pytest.approx(56.92, abs=0.01)
  assert bee.test_loss == pytest.approx(3.1106, abs=1e-4) and bee.rows[0] == 256_000


def test_the_same_table_plain_and_gzipped_in_any_order_is_the_same(tmp_path: pathlib.Path):
  rows = [make_log_row(name, updates, 5 - updates / 100) for name in 'ab' for updates in (100, 200, 300)]
  tracks = logged.read_csv(write_log_table(tmp_path / 'x.csv', rows))
  assert tracks == logged.read_csv(write_log_table(tmp_path / 'y.csv.gz', [*rows[2::-1], *rows[3:]]))
  assert tracks[0].updates == (100, 200, 300) and tracks[0].rows == (25600, 51200, 76800) and tracks[0].loss == (4, 3, 2)


def test_a_perplexity_stands_for_a_loss_and_what_was_not_logged_is_none(tmp_path: pathlib.Path):
  some = {key: value for key, value in make_log_row().items() if key != 'eval/loss'} | {'eval/perplexity': math.e**2}
  track, = logged.read_csv(write_log_table(tmp_path / 'x.csv', [some]))
  assert track.loss == pytest.approx((2,))
  assert (track.seed, track.learning_rate, track.warmup, track.test_loss, track.bits_per_word) == (None,) * 5
  track, = logged.read_csv(write_log_table(tmp_path / 'x.csv', [some | {'seed': 3, 'learning_rate': 5e-4, 'test/loss': 2.5}]))
  assert (track.seed, track.learning_rate, track.test_loss) == (3, 5e-4, 2.5)


def test_losses_that_are_no_numbers_are_counted_and_told(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
  rows = [make_log_row('a', 100, 3.0), make_log_row('a', 200, 'nan'), make_log_row('a', 300, ''), make_log_row('gone', 100, 'inf')]
  track, = logged.read_csv(write_log_table(tmp_path / 'x.csv', rows))
  assert (track.name, track.updates, track.lost) == ('a', (100,), 2)
  assert 'left out 3 evaluations' in capsys.readouterr().err
  with pytest.raises(InputError, match='no loss in it is a number'):
    logged.read_csv(write_log_table(tmp_path / 'x.csv', rows[1:]))


@pytest.mark.parametrize('tested, finished', [((2.9, 2.8), (True, True)), (('', ''), (True, False)),
                                              (('', 2.8), (False, True))])
def test_a_run_has_ended_by_its_test_or_else_by_the_last_update(
    tmp_path: pathlib.Path, tested: tuple, finished: tuple):
  rows = [make_log_row('a', 1000, **{'test/loss': tested[0]}), make_log_row('b', 500, **{'test/loss': tested[1]})]
  assert tuple(track.finished for track in logged.read_csv(write_log_table(tmp_path / 'x.csv', rows))) == finished


@pytest.mark.parametrize('rows, said', [
    ([make_log_row(), make_log_row()], 'line 3.*\n.*line 2 too'),
    ([make_log_row(), make_log_row(updates=200, embedding_size=64)], 'embedding_size is 32 and 64'),
    ([make_log_row(), make_log_row(updates=200, Tokens=5)], 'line 3.*\n.*Tokens is 5'),
    ([make_log_row(loss='three')], "line 2\n.*'three'"),
    ([make_log_row(), make_log_row(updates='2e')], "line 3\n.*eval/updates is '2e'"),
    ([make_log_row(hidden_size=1.5)], 'hidden_size is'),
    ([make_log_row(**{'Embedding parameters': 612609})], 'add a column vocabulary'),
    ([make_log_row(**{'FLOPS Kaplan per sequence': 1e9})], 'add a column sequence_length'),
    ([{key: value for key, value in make_log_row().items() if key != 'hidden_size'} | {'hidden size': 32}],
     "no column 'hidden_size'\nto do.*did you mean 'hidden size'"),
])
def test_a_table_that_cannot_be_used_is_told_with_its_line(tmp_path: pathlib.Path, rows: list[dict[str, object]], said: str):
  with pytest.raises(InputError, match=said):
    logged.read_csv(write_log_table(tmp_path / 'x.csv', rows))


def test_an_evaluation_before_any_training_is_left_out(tmp_path: pathlib.Path):
  track, = logged.read_csv(write_log_table(tmp_path / 'x.csv', [make_log_row(updates=0, loss=9.9), make_log_row()]))
  assert (track.updates, track.lost) == ((100,), 0)


def test_no_file_no_rows_and_cut_files_are_told(tmp_path: pathlib.Path):
  whole = write_log_table(tmp_path / 'eval.csv', [make_log_row(updates=n) for n in range(100, 2000, 100)]).read_bytes()
  with pytest.raises(InputError, match="no such file\n.*'eval.csv'"):
    logged.read_csv(tmp_path / 'evals.csv')
  for content, said in ((whole.splitlines()[0], 'columns and no row'), (b'', 'no column'), (whole[:-60], 'was cut off'),
                        (b'\xff\xfe' + whole, 'damaged'), (whole[:-3], 'Tokens is')):
    (tmp_path / 'x.csv').write_bytes(content)
    with pytest.raises(InputError, match=said):
      logged.read_csv(tmp_path / 'x.csv')
  (tmp_path / 'x.csv.gz').write_bytes(gzip.compress(whole)[:-9])
  with pytest.raises(InputError, match='damaged'):
    logged.read_csv(tmp_path / 'x.csv.gz')
