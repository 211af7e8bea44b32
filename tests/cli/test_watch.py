"""Plots of runs in a terminal and in a pipe: complete, current, without control characters."""

import io
import os
import pathlib
import pty
import subprocess
import sys
from typing import Any

import pytest

from minilm_jax.cli import main, watch
from minilm_jax.core import files, lock, run_dir
from minilm_jax.core.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
ESCAPE = '\x1b'


def write_run(
  folder: pathlib.Path, losses: list[float | None], members: int = 1, **extra: Any
) -> pathlib.Path:
  """Writes a run with a training line every 10 updates and a validation line every 20."""
  folder.mkdir(parents=True)
  files.write_json(folder / run_dir.CONFIG, {'kind': 'pretrain', 'num_steps': 100})
  for n, loss in enumerate(losses, 1):
    for member in range(members):
      member_field = {'member': member} if members > 1 else {}
      base = {
        'step': 10 * n,
        **member_field,
        'tokens': 1000 * n,
        'flops': 1e9 * n,
        'seconds': 0.5 * n,
      }
      member_loss = None if loss is None else loss + member
      run_dir.append_line(
        folder / run_dir.METRICS, {**base, 'split': 'train', 'loss': member_loss, **extra}
      )
      if n % 2 == 0:
        run_dir.append_line(folder / run_dir.METRICS, {**base, 'split': 'validation', 'loss': 9.0})
  return folder


def print_curves(capsys: pytest.CaptureFixture, *arguments: str) -> str:
  """Returns the output of `minilm watch`, which must succeed."""
  capsys.readouterr()
  status = main.main(['watch', *arguments])
  out, err = capsys.readouterr()
  assert status == 0, err
  return out


def count_braille(text: str) -> int:
  return sum(0x2800 < ord(sign) < 0x2900 for sign in text)


def test_a_falling_curve_descends_from_left_to_right():
  rows = watch.draw_curves([[(x, 100 - x) for x in range(101)]], ['a'], (), 40, 12).splitlines()
  assert all(len(row) <= 40 for row in rows) and len(rows) == 12
  columns = [row.index('a') for row in rows if 'a' in row]
  assert len(columns) >= 8 and columns == sorted(columns)
  assert (
    '100' in rows[1]
    and 'a' in rows[1]
    and 'a' not in rows[0]
    and rows[-3].rstrip('│').endswith('a')
  )


def test_curves_keep_their_colors_and_the_last_is_on_top():
  curves = [[(0, 0), (1, 0)], [(0, 1), (1, 1)], [(0, 0), (1, 0)]]
  rows = watch.draw_curves(curves, ['braille'] * 3, (6, 5, 3), 30, 10).splitlines()
  top, *_, bottom = (row for row in rows if count_braille(row))
  assert '38;5;5m' in top and '38;5;3m' in bottom and '38;5;6m' not in ''.join(rows)
  assert ESCAPE not in watch.draw_curves(curves, ['a', 'b', 'c'], (), 30, 10)


@pytest.mark.parametrize(
  'points',
  [
    [(5, 2.0)],
    [(0, 0.0)],
    [(1, 3.0), (2, 3.0)],
    [(1, 1e300), (2, -1e300)],
    [(1, 1e-300), (2, 2e-300)],
    [(2**62, 1.0), (2**62 + 1, 2.0)],
  ],
)
def test_extreme_numbers_fit_the_frame(
  points: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
):
  monkeypatch.setenv('COLUMNS', '200')
  monkeypatch.setenv('LINES', '70')
  for columns, rows in ((1, 1), (60, 10), (200, 60)):
    lines = watch.draw_curves([points], ['braille'], (), columns, rows).splitlines()
    assert (
      len(lines) == max(rows, 10)
      and max(map(len, lines)) <= max(columns, 24)
      and count_braille(''.join(lines))
    )


def test_a_pipe_gets_plain_text_of_its_width(tmp_path: pathlib.Path, monkeypatch, capsys):
  monkeypatch.setenv('COLUMNS', '60')
  write_run(tmp_path / 'tiny', [6.0, 5.0, 4.5, 4.0], tokens_per_second=123_456)
  out = print_curves(capsys, str(tmp_path / 'tiny'))
  assert (
    ESCAPE not in out and all(len(line) <= 60 for line in out.splitlines()) and count_braille(out)
  )
  assert (
    'tiny' in out and ' 40 ' in out and '4.000' in out and '9.000' in out and '123,456' not in out
  )
  monkeypatch.setenv('COLUMNS', '100')
  out = print_curves(capsys, str(tmp_path / 'tiny'))
  assert ' 100 ' in out and '123,456' in out
  first, *_ = print_curves(capsys, str(tmp_path), '--split=validation', '--axis=flops').splitlines()
  assert 'validation' in first and 'FLOPs' in first


def test_each_run_and_member_has_a_letter(tmp_path: pathlib.Path, capsys):
  """The table explains the letters; a run without a line is listed."""
  write_run(tmp_path / 'runs' / 'one', [6.0, 5.0])
  write_run(tmp_path / 'runs' / 'pair', [4.0, 3.0], members=2)
  write_run(tmp_path / 'runs' / 'young', [])
  out = print_curves(capsys, str(tmp_path / 'runs'))
  for name, letter in (('one', 'a'), ('pair member 0', 'b'), ('pair member 1', 'c')):
    assert any(line.startswith(letter) and name in line for line in out.splitlines()), out
  assert [line for line in out.splitlines() if line.endswith(': young')] and 'stopped' in out
  single_output = print_curves(capsys, str(tmp_path / 'runs' / 'young'))
  assert not count_braille(single_output) and [
    line for line in single_output.splitlines() if line.endswith(': young')
  ]


def test_the_state_follows_lock_and_result(tmp_path: pathlib.Path):
  folder = write_run(tmp_path / 'r', [3.0])
  states = []
  for change in (
    lambda: None,
    lambda: (folder / lock.LOCK_FILE).write_text('{}'),
    lambda: os.utime(folder / lock.LOCK_FILE, (0, 0)),
    lambda: files.write_json(folder / run_dir.RESULT, {}),
  ):
    change()
    states.append(watch.read_statuses({'r': watch.epath.Path(folder)}, 'step', 'train')[0].state)
  assert states == ['stopped', 'running', 'stopped', 'ended']


def test_follow_stops_when_all_runs_have_ended(tmp_path: pathlib.Path, monkeypatch, capsys):
  folder, num_polls = write_run(tmp_path / 'r', [6.0]), [0]

  def poll(_: float) -> None:
    num_polls[0] += 1
    if num_polls[0] == 2:
      run_dir.append_line(folder / run_dir.METRICS, {'step': 20, 'split': 'train', 'loss': 1.5})
    if num_polls[0] == 3:
      files.write_json(folder / run_dir.RESULT, {})

  monkeypatch.setattr(watch.time, 'sleep', poll)
  out = print_curves(capsys, str(folder), '--follow')
  assert num_polls[0] == 3 and out.count('┌') == 3  # the first plot, and a plot after each change
  assert '1.500' in out and ESCAPE not in out


def test_incomplete_lines_and_missing_numbers_are_skipped(tmp_path: pathlib.Path, capsys):
  folder = write_run(tmp_path / 'r', [5.0, None, 4.0])
  with (folder / run_dir.METRICS).open('a') as file:
    file.write('{"step": 40, "split": "tra')
  out = print_curves(capsys, str(folder), '--axis=tokens')
  assert '4.000' in out and ' 30 ' in out


@pytest.mark.parametrize(
  'damage, part',
  [
    (lambda folder: (folder / run_dir.METRICS).write_text('nonsense\n{}\n'), run_dir.METRICS),
    (lambda folder: (folder / run_dir.METRICS).write_text('{"loss": 1}\n'), 'step, split'),
    (
      lambda folder: (folder / run_dir.CONFIG).write_text('{"kind": "finetune"}'),
      'minilm pretrain',
    ),
    (lambda folder: (folder / run_dir.CONFIG).unlink(), run_dir.CONFIG),
  ],
)
def test_an_invalid_run_is_refused(damage: Any, part: str, tmp_path: pathlib.Path):
  damage(write_run(tmp_path / 'r', [5.0]))
  with pytest.raises(InputError, match=part):
    watch.watch_runs([tmp_path / 'r'], 'step', 'train', False)


def test_control_characters_in_names_are_not_printed(tmp_path: pathlib.Path, monkeypatch):
  write_run(tmp_path / 'a\x1b[2Jb\nc\u202ed[red]', [5.0, 4.0])
  for colored in (True, False):
    console = watch.rich_console.Console(
      file=io.StringIO(),
      force_terminal=colored,
      width=60,
      markup=False,
      emoji=False,
      highlight=False,
      legacy_windows=False,
      _environ={'TERM': 'xterm-256color'},
    )
    paths = watch._find_runs([tmp_path])
    console.print(
      watch._render(watch.read_statuses(paths, 'step', 'train'), 'step', 'train', console)
    )
    out = console.file.getvalue()
    assert '[2J' in out and f'{ESCAPE}[2J' not in out and '\u202e' not in out and '[red]' in out
    assert (ESCAPE in out) == colored


@pytest.mark.parametrize('count', [1, 2, 9])
def test_an_ascii_terminal_gets_ascii(count: int, tmp_path: pathlib.Path):
  """Nine runs exceed the colors, so letters mark the curves."""
  for n in range(count):
    write_run(tmp_path / f'größer {n}', [5.0 - n, 4.0])
  file = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
  console = watch.rich_console.Console(
    file=file, force_terminal=True, width=80, height=30, _environ={'TERM': 'xterm'}
  )
  console.print(
    watch._render(
      watch.read_statuses(watch._find_runs([tmp_path]), 'step', 'train'), 'step', 'train', console
    )
  )
  file.flush()
  assert f'gr??er {count - 1}' in file.buffer.getvalue().decode('ascii')


def test_a_signal_restores_the_cursor_and_returns_130(tmp_path: pathlib.Path):
  """The terminal has 60 columns."""
  folder = write_run(tmp_path / 'r', [6.0, 5.0, 4.0])
  leader, follower = pty.openpty()
  command = [sys.executable, '-m', 'minilm_jax', 'watch', str(folder), '--follow']
  environment = os.environ | {
    'PYTHONPATH': str(ROOT),
    'TERM': 'xterm',
    'COLUMNS': '60',
    'LINES': '20',
  }
  with subprocess.Popen(
    command, stdin=follower, stdout=follower, stderr=follower, env=environment
  ) as process:
    os.close(follower)
    text = b''
    while b'stopped' not in text:
      text += os.read(leader, 4096)
    process.send_signal(2)
    try:
      while extra := os.read(leader, 4096):
        text += extra
    except OSError:
      pass  # the process closed its end
    assert process.wait(60) == 130
  os.close(leader)
  assert b'\x1b[?25l' in text and b'\x1b[?25h' in text and b'SIGINT' in text
