"""Curves of runs in a terminal and in a pipe: what is there, what is not yet, and nothing that
steers a terminal.
"""

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


def made(
  folder: pathlib.Path, losses: list[float | None], members: int = 1, **more: Any
) -> pathlib.Path:
  """A run directory with a line every ten updates, and of validation every twenty, `more` in those
  of training.
  """
  folder.mkdir(parents=True)
  files.write_json(folder / run_dir.CONFIG, {'kind': 'pretrain', 'num_steps': 100})
  for n, loss in enumerate(losses, 1):
    for member in range(members):
      whose = {'member': member} if members > 1 else {}
      base = {'step': 10 * n, **whose, 'tokens': 1000 * n, 'flops': 1e9 * n, 'seconds': 0.5 * n}
      loss_of = None if loss is None else loss + member
      run_dir.append_line(
        folder / run_dir.METRICS, {**base, 'split': 'train', 'loss': loss_of, **more}
      )
      if n % 2 == 0:
        run_dir.append_line(folder / run_dir.METRICS, {**base, 'split': 'validation', 'loss': 9.0})
  return folder


def seen(capsys: pytest.CaptureFixture, *arguments: str) -> str:
  """What `minilm watch` prints; it must end well."""
  capsys.readouterr()
  status = main.main(['watch', *arguments])
  out, err = capsys.readouterr()
  assert status == 0, err
  return out


def braille(text: str) -> int:
  return sum(0x2800 < ord(sign) < 0x2900 for sign in text)


def test_a_falling_line_goes_from_the_top_left_to_the_bottom_right():
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


def test_each_curve_keeps_its_color_and_the_last_lies_on_top():
  curves = [[(0, 0), (1, 0)], [(0, 1), (1, 1)], [(0, 0), (1, 0)]]
  rows = watch.draw_curves(curves, ['braille'] * 3, (6, 5, 3), 30, 10).splitlines()
  top, *_, bottom = (row for row in rows if braille(row))
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
def test_any_numbers_fit_the_frame(
  points: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
):
  monkeypatch.setenv('COLUMNS', '200')
  monkeypatch.setenv('LINES', '70')
  for columns, rows in ((1, 1), (60, 10), (200, 60)):
    lines = watch.draw_curves([points], ['braille'], (), columns, rows).splitlines()
    assert (
      len(lines) == max(rows, 10)
      and max(map(len, lines)) <= max(columns, 24)
      and braille(''.join(lines))
    )


def test_one_run_in_a_pipe(tmp_path: pathlib.Path, monkeypatch, capsys):
  monkeypatch.setenv('COLUMNS', '60')
  made(tmp_path / 'tiny', [6.0, 5.0, 4.5, 4.0], tokens_per_second=123_456)
  out = seen(capsys, str(tmp_path / 'tiny'))
  assert ESCAPE not in out and all(len(line) <= 60 for line in out.splitlines()) and braille(out)
  assert (
    'tiny' in out and ' 40 ' in out and '4.000' in out and '9.000' in out and '123,456' not in out
  )
  monkeypatch.setenv('COLUMNS', '100')
  out = seen(capsys, str(tmp_path / 'tiny'))
  assert ' 100 ' in out and '123,456' in out
  first, *_ = seen(capsys, str(tmp_path), '--split=validation', '--axis=flops').splitlines()
  assert 'validation' in first and 'FLOPs' in first


def test_runs_and_members_lie_over_each_other(tmp_path: pathlib.Path, capsys):
  """Each with a letter, which the table explains; a run without a line is named."""
  made(tmp_path / 'runs' / 'one', [6.0, 5.0])
  made(tmp_path / 'runs' / 'pair', [4.0, 3.0], members=2)
  made(tmp_path / 'runs' / 'young', [])
  out = seen(capsys, str(tmp_path / 'runs'))
  for name, letter in (('one', 'a'), ('pair member 0', 'b'), ('pair member 1', 'c')):
    assert any(line.startswith(letter) and name in line for line in out.splitlines()), out
  assert [line for line in out.splitlines() if line.endswith(': young')] and 'stopped' in out
  alone = seen(capsys, str(tmp_path / 'runs' / 'young'))
  assert not braille(alone) and [line for line in alone.splitlines() if line.endswith(': young')]


def test_what_is_running_and_what_has_ended(tmp_path: pathlib.Path):
  folder = made(tmp_path / 'r', [3.0])
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


def test_it_follows_until_all_have_ended(tmp_path: pathlib.Path, monkeypatch, capsys):
  folder, looks = made(tmp_path / 'r', [6.0]), [0]

  def passes(_: float) -> None:
    looks[0] += 1
    if looks[0] == 2:
      run_dir.append_line(folder / run_dir.METRICS, {'step': 20, 'split': 'train', 'loss': 1.5})
    if looks[0] == 3:
      files.write_json(folder / run_dir.RESULT, {})

  monkeypatch.setattr(watch.time, 'sleep', passes)
  out = seen(capsys, str(folder), '--follow')
  assert looks[0] == 3 and out.count('┌') == 3  # the first, and where something had changed
  assert '1.500' in out and ESCAPE not in out


def test_the_last_line_may_be_half_written_and_numbers_missing(tmp_path: pathlib.Path, capsys):
  folder = made(tmp_path / 'r', [5.0, None, 4.0])
  with (folder / run_dir.METRICS).open('a') as file:
    file.write('{"step": 40, "split": "tra')
  run_of = seen(capsys, str(folder), '--axis=tokens')
  assert '4.000' in run_of and ' 30 ' in run_of


@pytest.mark.parametrize(
  'spoil, named',
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
def test_what_is_no_run_is_refused(spoil: Any, named: str, tmp_path: pathlib.Path):
  spoil(made(tmp_path / 'r', [5.0]))
  with pytest.raises(InputError, match=named):
    watch.watch_runs([tmp_path / 'r'], 'step', 'train', False)


def test_names_of_strangers_steer_no_terminal(tmp_path: pathlib.Path, monkeypatch):
  made(tmp_path / 'a\x1b[2Jb\nc\u202ed[red]', [5.0, 4.0])
  for coloured in (True, False):
    to = watch.rich_console.Console(
      file=io.StringIO(),
      force_terminal=coloured,
      width=60,
      markup=False,
      emoji=False,
      highlight=False,
      legacy_windows=False,
      _environ={'TERM': 'xterm-256color'},
    )
    result = watch._find_runs([tmp_path])
    to.print(watch._render(watch.read_statuses(result, 'step', 'train'), 'step', 'train', to))
    out = to.file.getvalue()
    assert '[2J' in out and f'{ESCAPE}[2J' not in out and '\u202e' not in out and '[red]' in out
    assert (ESCAPE in out) == coloured


@pytest.mark.parametrize('count', [1, 2, 9])
def test_who_knows_ascii_alone_gets_ascii(count: int, tmp_path: pathlib.Path):
  """And more runs than there are colours have letters."""
  for n in range(count):
    made(tmp_path / f'größer {n}', [5.0 - n, 4.0])
  file = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
  to = watch.rich_console.Console(
    file=file, force_terminal=True, width=80, height=30, _environ={'TERM': 'xterm'}
  )
  to.print(
    watch._render(
      watch.read_statuses(watch._find_runs([tmp_path]), 'step', 'train'), 'step', 'train', to
    )
  )
  file.flush()
  assert f'gr??er {count - 1}' in file.buffer.getvalue().decode('ascii')


def test_a_terminal_is_drawn_over_and_ends_with_130(tmp_path: pathlib.Path):
  """Sixty columns wide; the cursor comes back."""
  folder = made(tmp_path / 'r', [6.0, 5.0, 4.0])
  ours, theirs = pty.openpty()
  command = [sys.executable, '-m', 'minilm_jax', 'watch', str(folder), '--follow']
  environment = os.environ | {
    'PYTHONPATH': str(ROOT),
    'TERM': 'xterm',
    'COLUMNS': '60',
    'LINES': '20',
  }
  with subprocess.Popen(
    command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
  ) as process:
    os.close(theirs)
    text = b''
    while b'stopped' not in text:
      text += os.read(ours, 4096)
    process.send_signal(2)
    try:
      while more := os.read(ours, 4096):
        text += more
    except OSError:
      pass  # the other end is closed
    assert process.wait(60) == 130
  os.close(ours)
  assert b'\x1b[?25l' in text and b'\x1b[?25h' in text and b'SIGINT' in text
