"""Run directories as tracks: what they hold, members and the runs they became, and what is left
out.
"""

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


def names(folder: pathlib.Path) -> list[str]:
  return [track.name for track in loss_curves.read_runs(runs.find_runs([folder])).curves]


def change(path: pathlib.Path, **values: object) -> None:
  files.write_json(path, json.loads(path.read_text()) | values)


def test_a_run_is_the_track_that_its_files_say(tmp_path: pathlib.Path):
  folder = fake_runs.write_scaling_run(tmp_path / 'runs' / 'a', hidden=64, heads=2, seed=3)
  (track,) = loss_curves.read_runs(runs.find_runs([tmp_path / 'runs'])).curves
  # the heads that the paper's formula is given
  assert track.shape == ModelShape(32, 64, 64, 2, 1, 1000)
  assert (track.name, track.seed, track.learning_rate, track.warmup, track.tied) == (
    'a',
    3,
    1e-3,
    20,
    False,
  )
  assert (
    track.parameters == json.loads((folder / run_dir.MANIFEST).read_text())['parameters']['total']
  )
  assert (
    track.updates == tuple(range(100, 801, 100)) and track.length == 128 and track.non_finite == 0
  )
  lines = [
    line for line in run_dir.read_lines(folder / run_dir.METRICS) if line['split'] == 'validation'
  ]
  assert track.loss == tuple(line['loss'] for line in lines)
  assert track.tokens.tolist() == [line['tokens'] for line in lines]
  assert track.flops('actual').tolist() == pytest.approx([line['flops'] for line in lines])
  assert track.finished and track.test_loss == pytest.approx(track.loss[-1] + 0.01)
  assert track.bits_per_word is None


def test_shorter_rows_of_the_corpus_cost_less(tmp_path: pathlib.Path):
  whole = fake_runs.write_scaling_run(tmp_path / 'whole')
  half = fake_runs.write_scaling_run(tmp_path / 'half')
  lines = [
    {**line, 'tokens': line['tokens'] / 2, 'flops': line['flops'] / 2.5}
    for line in run_dir.read_lines(half / run_dir.METRICS)
  ]
  run_dir.write_lines(half / run_dir.METRICS, lines)
  one, other = (loss_curves.read_runs(runs.find_runs([path])).curves[0] for path in (whole, half))
  assert (one.length, other.length) == (128, 64) and one.rows == other.rows
  assert other.flops_per_row['kaplan'] == one.flops_per_row['kaplan'] / 2
  assert other.flops_per_row['actual'] == pytest.approx(one.flops_per_row['actual'] / 2.5)


def test_members_have_their_own_seeds_and_rates(tmp_path: pathlib.Path):
  folder = fake_runs.write_scaling_run(
    tmp_path / 'both', members=2, seed=5, population={'learning_rates': [1e-3, 2e-3]}
  )
  first, second = loss_curves.read_runs(runs.find_runs([folder])).curves
  assert (first.name, second.name) == ('both member 0', 'both member 1')
  assert (first.seed, second.seed, first.learning_rate, second.learning_rate) == (5, 6, 1e-3, 2e-3)
  # they are taken of members that are runs of their own
  assert first.bits_per_word is second.bits_per_word is None
  assert first.loss != second.loss and first.finished
  change(folder / run_dir.CONFIG, population={'members': 2, 'seeds': [9, 2], 'learning_rates': []})
  assert [track.seed for track in loss_curves.read_runs(runs.find_runs([folder])).curves] == [9, 2]


def test_a_member_that_became_a_run_is_there_once(tmp_path: pathlib.Path):
  folder = fake_runs.write_scaling_run(tmp_path / 'runs' / 'both', members=2)
  fake_runs.write_scaling_run(folder / 'member-1', seed=1)
  files.write_json(
    folder / 'member-1' / run_dir.BITS_PER_WORD, {'bits_per_word': 4.0, 'bits_per_byte': 1.0}
  )
  assert names(tmp_path / 'runs') == ['both member 0', 'both/member-1']
  assert loss_curves.read_runs(runs.find_runs([tmp_path / 'runs'])).curves[1].bits_per_word == 4.0
  assert [row.name for row in runs.summarize_run('both', epath.Path(folder))] == ['both member 0']
  assert [curve.name for curve in runs.read_losses('both', epath.Path(folder))] == ['both member 0']
  fake_runs.write_scaling_run(folder / 'member-0')
  assert names(tmp_path / 'runs') == ['both/member-0', 'both/member-1']
  assert runs.summarize_run('both', epath.Path(folder)) == []


def test_runs_under_way_and_cut_logs_are_unfinished_tracks(tmp_path: pathlib.Path):
  cut = fake_runs.write_scaling_run(tmp_path / 'cut', updates=300, finished=False)
  with (cut / run_dir.METRICS).open('a') as file:
    file.write('{"step": 400, "spl')
  # the population ended, this member before it
  fake_runs.write_scaling_run(tmp_path / 'dropped', updates=300)
  tracks = loss_curves.read_runs(runs.find_runs([tmp_path])).curves
  assert [(track.updates[-1], track.finished, track.test_loss) for track in tracks] == [
    (300, False, None)
  ] * 2


def test_losses_that_are_no_numbers_are_counted(tmp_path: pathlib.Path):
  folder = fake_runs.write_scaling_run(tmp_path / 'a')
  lines = [
    line | ({'loss': None} if line['step'] == 300 else {})
    for line in run_dir.read_lines(folder / run_dir.METRICS)
  ]
  run_dir.write_lines(folder / run_dir.METRICS, lines)
  (track,) = loss_curves.read_runs(runs.find_runs([folder])).curves
  assert track.non_finite == 1 and 300 not in track.updates and np.isfinite(track.loss).all()


def test_what_lacks_something_is_left_out_with_the_reason(tmp_path: pathlib.Path):
  fake_runs.write_scaling_run(tmp_path / 'good')
  fake_runs.write_scaling_run(tmp_path / 'early', updates=0, finished=False)
  (fake_runs.write_scaling_run(tmp_path / 'bare') / run_dir.MANIFEST).unlink()
  run_dir.open_run(tmp_path / 'old', {'kind': 'pretrain', 'num_steps': 3})
  change(fake_runs.write_scaling_run(tmp_path / 'strange') / run_dir.MANIFEST, parameters=1_000_000)
  run_dir.open_run(tmp_path / 'task', {'kind': 'finetune'})
  found = loss_curves.read_runs(runs.find_runs([tmp_path]))
  assert [track.name for track in found.curves] == ['good']
  told = dict(text.split(': ', 1) for text in found.left_out)
  assert set(told) == {'early', 'bare', 'old', 'strange'}
  assert (
    'no validation loss yet' in told['early']
    and "'flops_per_row'" in told['bare']
    and "'model'" in told['old']
  )
  (tmp_path / 'good' / run_dir.MANIFEST).write_text('{')
  with pytest.raises(InputError, match='not JSON'):
    loss_curves.read_runs(runs.find_runs([tmp_path]))


def test_points_that_failed_are_told_until_they_succeed(tmp_path: pathlib.Path):
  told = {'asked': 'a finite train loss', 'found': 'nan', 'remedy': 'lower the rate'}
  for name in ('a', 'b'):
    (tmp_path / 'sweep' / name).mkdir(parents=True)
    files.write_json(tmp_path / 'sweep' / name / run_dir.FAILURE, told)
  assert runs.read_failures([tmp_path / 'sweep']) == dict.fromkeys('ab', 'a finite train loss: nan')
  files.write_json(tmp_path / 'sweep' / 'a' / run_dir.RESULT, {})
  assert list(runs.read_failures([tmp_path / 'sweep'])) == ['b']


def test_the_logs_of_the_paper_are_42_runs_of_36_evaluations(data: pathlib.Path):
  tracks = loss_curves.read_csv(data / 'honey_logs' / 'eval_results.csv.gz')
  assert len(tracks) == 42 and {len(track.loss) for track in tracks} == {36}
  assert {track.shape.vocabulary for track in tracks} == {19010} and {
    track.length for track in tracks
  } == {128}
  assert all(track.finished and track.non_finite == 0 for track in tracks)
  assert (
    sum(track.tied is True for track in tracks) == 7
    and sum(track.tied is False for track in tracks) == 35
  )
  assert sum(track.flops()[-1] for track in tracks) == pytest.approx(2.20e18, rel=0.005)
  bee = next(track for track in tracks if track.name == 'magic-bee-26')
  assert bee.parameters == 1_250_722 and bee.flops_per_row['honey'] == 943_964_160
  assert bee.updates[0] == 1000 and math.exp(bee.loss[0]) == pytest.approx(56.92, abs=0.01)
  assert bee.test_loss == pytest.approx(3.1106, abs=1e-4) and bee.rows[0] == 256_000


def test_the_same_table_plain_and_gzipped_in_any_order_is_the_same(tmp_path: pathlib.Path):
  rows = [
    make_log_row(name, updates, 5 - updates / 100) for name in 'ab' for updates in (100, 200, 300)
  ]
  tracks = loss_curves.read_csv(write_log_table(tmp_path / 'x.csv', rows))
  assert tracks == loss_curves.read_csv(
    write_log_table(tmp_path / 'y.csv.gz', [*rows[2::-1], *rows[3:]])
  )
  assert (
    tracks[0].updates == (100, 200, 300)
    and tracks[0].rows == (25600, 51200, 76800)
    and tracks[0].loss == (4, 3, 2)
  )


def test_a_perplexity_stands_for_a_loss_and_what_was_not_logged_is_none(tmp_path: pathlib.Path):
  some = {key: value for key, value in make_log_row().items() if key != 'eval/loss'} | {
    'eval/perplexity': math.e**2
  }
  (track,) = loss_curves.read_csv(write_log_table(tmp_path / 'x.csv', [some]))
  assert track.loss == pytest.approx((2,))
  assert (track.seed, track.learning_rate, track.warmup, track.test_loss, track.bits_per_word) == (
    None,
  ) * 5
  (track,) = loss_curves.read_csv(
    write_log_table(
      tmp_path / 'x.csv', [some | {'seed': 3, 'learning_rate': 5e-4, 'test/loss': 2.5}]
    )
  )
  assert (track.seed, track.learning_rate, track.test_loss) == (3, 5e-4, 2.5)


def test_losses_that_are_no_numbers_are_counted_and_told(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
  rows = [
    make_log_row('a', 100, 3.0),
    make_log_row('a', 200, 'nan'),
    make_log_row('a', 300, ''),
    make_log_row('gone', 100, 'inf'),
  ]
  (track,) = loss_curves.read_csv(write_log_table(tmp_path / 'x.csv', rows))
  assert (track.name, track.updates, track.non_finite) == ('a', (100,), 2)
  assert 'left out 3 evaluations' in capsys.readouterr().err
  with pytest.raises(InputError, match='no loss in it is a number'):
    loss_curves.read_csv(write_log_table(tmp_path / 'x.csv', rows[1:]))


@pytest.mark.parametrize(
  'tested, finished',
  [((2.9, 2.8), (True, True)), (('', ''), (True, False)), (('', 2.8), (False, True))],
)
def test_a_run_has_ended_by_its_test_or_else_by_the_last_update(
  tmp_path: pathlib.Path, tested: tuple, finished: tuple
):
  rows = [
    make_log_row('a', 1000, **{'test/loss': tested[0]}),
    make_log_row('b', 500, **{'test/loss': tested[1]}),
  ]
  assert (
    tuple(
      track.finished for track in loss_curves.read_csv(write_log_table(tmp_path / 'x.csv', rows))
    )
    == finished
  )


@pytest.mark.parametrize(
  'rows, said',
  [
    ([make_log_row(), make_log_row()], 'line 3.*\n.*line 2 too'),
    ([make_log_row(), make_log_row(updates=200, embedding_size=64)], 'embedding_size is 32 and 64'),
    ([make_log_row(), make_log_row(updates=200, Tokens=5)], 'line 3.*\n.*Tokens is 5'),
    ([make_log_row(loss='three')], "line 2\n.*'three'"),
    ([make_log_row(), make_log_row(updates='2e')], "line 3\n.*eval/updates is '2e'"),
    ([make_log_row(hidden_size=1.5)], 'hidden_size is'),
    ([make_log_row(**{'Embedding parameters': 612609})], 'add a column vocabulary'),
    ([make_log_row(**{'FLOPS Kaplan per sequence': 1e9})], 'add a column sequence_length'),
    (
      [
        {key: value for key, value in make_log_row().items() if key != 'hidden_size'}
        | {'hidden size': 32}
      ],
      "no column 'hidden_size'\nto do.*did you mean 'hidden size'",
    ),
  ],
)
def test_a_table_that_cannot_be_used_is_told_with_its_line(
  tmp_path: pathlib.Path, rows: list[dict[str, object]], said: str
):
  with pytest.raises(InputError, match=said):
    loss_curves.read_csv(write_log_table(tmp_path / 'x.csv', rows))


def test_an_evaluation_before_any_training_is_left_out(tmp_path: pathlib.Path):
  (track,) = loss_curves.read_csv(
    write_log_table(tmp_path / 'x.csv', [make_log_row(updates=0, loss=9.9), make_log_row()])
  )
  assert (track.updates, track.non_finite) == ((100,), 0)


def test_no_file_no_rows_and_cut_files_are_told(tmp_path: pathlib.Path):
  whole = write_log_table(
    tmp_path / 'eval.csv', [make_log_row(updates=n) for n in range(100, 2000, 100)]
  ).read_bytes()
  with pytest.raises(InputError, match="no such file\n.*'eval.csv'"):
    loss_curves.read_csv(tmp_path / 'evals.csv')
  for content, said in (
    (whole.splitlines()[0], 'columns and no row'),
    (b'', 'no column'),
    (whole[:-60], 'was cut off'),
    (b'\xff\xfe' + whole, 'damaged'),
    (whole[:-3], 'Tokens is'),
  ):
    (tmp_path / 'x.csv').write_bytes(content)
    with pytest.raises(InputError, match=said):
      loss_curves.read_csv(tmp_path / 'x.csv')
  (tmp_path / 'x.csv.gz').write_bytes(gzip.compress(whole)[:-9])
  with pytest.raises(InputError, match='damaged'):
    loss_curves.read_csv(tmp_path / 'x.csv.gz')
