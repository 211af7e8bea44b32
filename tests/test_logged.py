"""Logged tables: the paper's own, tables that users bring, and what is wrong with some."""

import csv
import gzip
import math
import pathlib

import pytest

from minilm_jax.analysis import logged
from minilm_jax.errors import InputError

Rows = list[dict[str, object]]


def row(name: str = 'a', updates: int = 100, loss: object = 3.0, **fields: object) -> dict[str, object]:
  """An evaluation of (32, 32, 64, 1, 1) over 19,010 pieces: the paper's smallest run."""
  return {'run_name': name, 'eval/updates': updates, 'eval/loss': loss, 'embedding_size': 32.0, 'hidden_size': 32,
          'intermediate_size': 64, 'num_attention_heads': 1, 'num_hidden_layers': 1, 'Embedding parameters': 612608,
          'Non-embedding parameters': 638114, 'FLOPS Hoffman per sequence': 943964160,
          'FLOPS Kaplan per sequence': 6 * 638114 * 128, 'Tokens': updates * 32768, **fields}


def write(path: pathlib.Path, rows: Rows) -> pathlib.Path:
  opened = gzip.open if path.suffix == '.gz' else open
  with opened(path, 'wt', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  return path


def test_the_logs_of_the_paper_are_42_runs_of_36_evaluations(data: pathlib.Path):
  tracks = logged.read(data / 'honey_logs' / 'eval_results.csv.gz')
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
  rows = [row(name, updates, 5 - updates / 100) for name in 'ab' for updates in (100, 200, 300)]
  tracks = logged.read(write(tmp_path / 'x.csv', rows))
  assert tracks == logged.read(write(tmp_path / 'y.csv.gz', [*rows[2::-1], *rows[3:]]))
  assert tracks[0].updates == (100, 200, 300) and tracks[0].rows == (25600, 51200, 76800) and tracks[0].loss == (4, 3, 2)


def test_a_perplexity_stands_for_a_loss_and_what_was_not_logged_is_none(tmp_path: pathlib.Path):
  some = {key: value for key, value in row().items() if key != 'eval/loss'} | {'eval/perplexity': math.e**2}
  track, = logged.read(write(tmp_path / 'x.csv', [some]))
  assert track.loss == pytest.approx((2,))
  assert (track.seed, track.learning_rate, track.warmup, track.test_loss, track.bits_per_word) == (None,) * 5
  track, = logged.read(write(tmp_path / 'x.csv', [some | {'seed': 3, 'learning_rate': 5e-4, 'test/loss': 2.5}]))
  assert (track.seed, track.learning_rate, track.test_loss) == (3, 5e-4, 2.5)


def test_losses_that_are_no_numbers_are_counted_and_told(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
  rows = [row('a', 100, 3.0), row('a', 200, 'nan'), row('a', 300, ''), row('gone', 100, 'inf')]
  track, = logged.read(write(tmp_path / 'x.csv', rows))
  assert (track.name, track.updates, track.lost) == ('a', (100,), 2)
  assert 'left out 3 evaluations' in capsys.readouterr().err
  with pytest.raises(InputError, match='no loss in it is a number'):
    logged.read(write(tmp_path / 'x.csv', rows[1:]))


@pytest.mark.parametrize('tested, finished', [((2.9, 2.8), (True, True)), (('', ''), (True, False)),
                                              (('', 2.8), (False, True))])
def test_a_run_has_ended_by_its_test_or_else_by_the_last_update(
    tmp_path: pathlib.Path, tested: tuple, finished: tuple):
  rows = [row('a', 1000, **{'test/loss': tested[0]}), row('b', 500, **{'test/loss': tested[1]})]
  assert tuple(track.finished for track in logged.read(write(tmp_path / 'x.csv', rows))) == finished


@pytest.mark.parametrize('rows, said', [
    ([row(), row()], 'line 3.*\n.*line 2 too'),
    ([row(), row(updates=200, embedding_size=64)], 'embedding_size is 32 and 64'),
    ([row(), row(updates=200, Tokens=5)], 'line 3.*\n.*Tokens is 5'),
    ([row(loss='three')], "line 2\n.*'three'"),
    ([row(), row(updates='2e')], "line 3\n.*eval/updates is '2e'"),
    ([row(hidden_size=1.5)], 'hidden_size is'),
    ([row(**{'Embedding parameters': 612609})], 'add a column vocabulary'),
    ([row(**{'FLOPS Kaplan per sequence': 1e9})], 'add a column sequence_length'),
    ([{key: value for key, value in row().items() if key != 'hidden_size'} | {'hidden size': 32}],
     "no column 'hidden_size'\nto do.*did you mean 'hidden size'"),
])
def test_a_table_that_cannot_be_used_is_told_with_its_line(tmp_path: pathlib.Path, rows: Rows, said: str):
  with pytest.raises(InputError, match=said):
    logged.read(write(tmp_path / 'x.csv', rows))


def test_an_evaluation_before_any_training_is_left_out(tmp_path: pathlib.Path):
  track, = logged.read(write(tmp_path / 'x.csv', [row(updates=0, loss=9.9), row()]))
  assert (track.updates, track.lost) == ((100,), 0)


def test_no_file_no_rows_and_cut_files_are_told(tmp_path: pathlib.Path):
  whole = write(tmp_path / 'eval.csv', [row(updates=n) for n in range(100, 2000, 100)]).read_bytes()
  with pytest.raises(InputError, match="no such file\n.*'eval.csv'"):
    logged.read(tmp_path / 'evals.csv')
  for content, said in ((whole.splitlines()[0], 'columns and no row'), (b'', 'no column'), (whole[:-60], 'was cut off'),
                        (b'\xff\xfe' + whole, 'damaged'), (whole[:-3], 'Tokens is')):
    (tmp_path / 'x.csv').write_bytes(content)
    with pytest.raises(InputError, match=said):
      logged.read(tmp_path / 'x.csv')
  (tmp_path / 'x.csv.gz').write_bytes(gzip.compress(whole)[:-9])
  with pytest.raises(InputError, match='damaged'):
    logged.read(tmp_path / 'x.csv.gz')
