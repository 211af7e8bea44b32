"""Curves of runs in a terminal and in a pipe: what is there, what is not yet, and nothing that steers a terminal."""

import io
import os
import pathlib
import pty
import subprocess
import sys
from typing import Any

import pytest

from minilm_jax import claim, run, watch
from minilm_jax import __main__ as door
from minilm_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parent.parent
ESCAPE = '\x1b'


def made(folder: pathlib.Path, losses: list[float | None], members: int = 1, **more: Any) -> pathlib.Path:
  """A run directory with a line every ten updates, and of validation every twenty, `more` in those of training."""
  folder.mkdir(parents=True)
  run.write_json(folder / run.CONFIG, {'kind': 'pretrain', 'updates': 100})
  for n, loss in enumerate(losses, 1):
    for member in range(members):
      whose = {'member': member} if members > 1 else {}
      base = {'step': 10 * n, **whose, 'tokens': 1000 * n, 'flops': 1e9 * n, 'seconds': 0.5 * n}
      loss_of = None if loss is None else loss + member
      run.append_line(folder / run.METRICS, {**base, 'split': 'train', 'loss': loss_of, **more})
      if n % 2 == 0:
        run.append_line(folder / run.METRICS, {**base, 'split': 'validation', 'loss': 9.0})
  return folder


def seen(capsys: pytest.CaptureFixture, *arguments: str) -> str:
  """What `minilm watch` prints; it must end well."""
  capsys.readouterr()
  status = door.main(['watch', *arguments])
  out, err = capsys.readouterr()
  assert status == 0, err
  return out


def test_one_run_in_a_pipe(tmp_path: pathlib.Path, monkeypatch, capsys):
  monkeypatch.setenv('COLUMNS', '60')
  made(tmp_path / 'tiny', [6.0, 5.0, 4.5, 4.0], tokens_per_second=123_456)
  out = seen(capsys, str(tmp_path / 'tiny'))
  assert 'train loss by updates' in out and ESCAPE not in out
  assert all(len(line) <= 60 for line in out.splitlines())
  assert 'tiny' in out and ' 40 ' in out and '4.000' in out and '9.000' in out and '123k' not in out
  assert any(0x2800 < ord(sign) < 0x2900 for sign in out)
  monkeypatch.setenv('COLUMNS', '100')
  out = seen(capsys, str(tmp_path / 'tiny'))
  assert ' 100 ' in out and '123k' in out
  assert 'validation loss by FLOPs' in seen(capsys, str(tmp_path), '--split=validation', '--axis=flops')


def test_runs_and_members_lie_over_each_other(tmp_path: pathlib.Path, capsys):
  """Each with a letter, which the table explains; one without a line is said."""
  made(tmp_path / 'runs' / 'one', [6.0, 5.0])
  made(tmp_path / 'runs' / 'pair', [4.0, 3.0], members=2)
  made(tmp_path / 'runs' / 'young', [])
  out = seen(capsys, str(tmp_path / 'runs'))
  for name, letter in (('one', 'a'), ('pair member 0', 'b'), ('pair member 1', 'c')):
    assert any(line.startswith(letter) and name in line for line in out.splitlines()), out
  assert 'no train line yet: young' in out and 'stopped' in out
  assert 'no train line yet: young' in seen(capsys, str(tmp_path / 'runs' / 'young'))


def test_what_is_running_and_what_has_ended(tmp_path: pathlib.Path):
  folder = made(tmp_path / 'r', [3.0])
  states = []
  for change in (lambda: None, lambda: (folder / claim.CLAIM).write_text('{}'),
                 lambda: os.utime(folder / claim.CLAIM, (0, 0)), lambda: run.write_json(folder / run.RESULT, {})):
    change()
    states.append(watch.tracks({'r': watch.epath.Path(folder)}, 'step', 'train')[0].state)
  assert states == ['stopped', 'running', 'stopped', 'ended']


def test_it_follows_until_all_have_ended(tmp_path: pathlib.Path, monkeypatch, capsys):
  folder, looks = made(tmp_path / 'r', [6.0]), [0]

  def passes(_: float) -> None:
    looks[0] += 1
    if looks[0] == 2:
      run.append_line(folder / run.METRICS, {'step': 20, 'split': 'train', 'loss': 1.5})
    if looks[0] == 3:
      run.write_json(folder / run.RESULT, {})

  monkeypatch.setattr(watch.time, 'sleep', passes)
  out = seen(capsys, str(folder), '--follow')
  assert looks[0] == 3 and out.count('train loss by updates') == 3  # the first, and where something had changed
  assert '1.500' in out and ESCAPE not in out


def test_the_last_line_may_be_half_written_and_numbers_missing(tmp_path: pathlib.Path, capsys):
  folder = made(tmp_path / 'r', [5.0, None, 4.0])
  with (folder / run.METRICS).open('a') as file:
    file.write('{"step": 40, "split": "tra')
  run_of = seen(capsys, str(folder), '--axis=tokens')
  assert '4.000' in run_of and ' 30 ' in run_of


@pytest.mark.parametrize('spoil, said', [
    (lambda folder: (folder / run.METRICS).write_text('nonsense\n{}\n'), 'line 1 is not JSON'),
    (lambda folder: (folder / run.METRICS).write_text('{"loss": 1}\n'), 'without step, split'),
    (lambda folder: (folder / run.CONFIG).write_text('{"kind": "finetune"}'), 'none of pre-training'),
    (lambda folder: (folder / run.CONFIG).unlink(), 'no config.json of a run there')])
def test_what_is_no_run_is_refused(spoil: Any, said: str, tmp_path: pathlib.Path):
  spoil(made(tmp_path / 'r', [5.0]))
  with pytest.raises(InputError, match=said):
    watch.watch([tmp_path / 'r'], 'step', 'train', False)


def test_names_of_strangers_steer_no_terminal(tmp_path: pathlib.Path, monkeypatch):
  made(tmp_path / 'a\x1b[2Jb\nc\u202ed[red]', [5.0, 4.0])
  for coloured in (True, False):
    to = watch.rich_console.Console(file=io.StringIO(), force_terminal=coloured, width=60, markup=False, emoji=False,
                                    highlight=False, legacy_windows=False, _environ={'TERM': 'xterm-256color'})
    found = watch._runs([tmp_path])
    to.print(watch._picture(watch.tracks(found, 'step', 'train'), 'step', 'train', to))
    out = to.file.getvalue()
    assert '[2J' in out and f'{ESCAPE}[2J' not in out and '\u202e' not in out and '[red]' in out
    assert (ESCAPE in out) == coloured


@pytest.mark.parametrize('count', [1, 2, 9])
def test_who_knows_ascii_alone_gets_ascii(count: int, tmp_path: pathlib.Path):
  """And more runs than there are colours have letters."""
  for n in range(count):
    made(tmp_path / f'größer {n}', [5.0 - n, 4.0])
  file = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
  to = watch.rich_console.Console(file=file, force_terminal=True, width=80, height=30, _environ={'TERM': 'xterm'})
  to.print(watch._picture(watch.tracks(watch._runs([tmp_path]), 'step', 'train'), 'step', 'train', to))
  file.flush()
  assert f'gr??er {count - 1}' in file.buffer.getvalue().decode('ascii')


def test_a_terminal_is_drawn_over_and_ends_with_130(tmp_path: pathlib.Path):
  """Sixty columns wide; the cursor comes back."""
  folder = made(tmp_path / 'r', [6.0, 5.0, 4.0])
  ours, theirs = pty.openpty()
  command = [sys.executable, '-m', 'minilm_jax', 'watch', str(folder), '--follow']
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'TERM': 'xterm', 'COLUMNS': '60', 'LINES': '20'}
  with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
    os.close(theirs)
    said = b''
    while b'stopped' not in said:
      said += os.read(ours, 4096)
    process.send_signal(2)
    try:
      while more := os.read(ours, 4096):
        said += more
    except OSError:
      pass  # the other end is closed
    assert process.wait(60) == 130
  os.close(ours)
  assert b'\x1b[?25l' in said and b'\x1b[?25h' in said and b'stopped by SIGINT' in said
