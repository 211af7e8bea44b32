"""Profiles: which updates are asked for, and that whole chunks of them are recorded once."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from minilm_jax.core import distributed
from minilm_jax.core.errors import InputError
from minilm_jax.training import profiler


@pytest.mark.parametrize(
  'given, said',
  [
    ('100', 'not two numbers'),
    ('a:b', 'not two numbers'),
    ('-1:5', 'not two numbers'),
    ('1:2:3', 'not two numbers'),
    ('5:5', 'nothing between'),
    ('9:3', 'nothing between'),
    ('90:101', 'the run ends at update 100'),
    ('²:3', 'not two'),
  ],
)
def test_what_is_no_part_of_the_run_is_refused(given: str, said: str):
  with pytest.raises(InputError, match=said):
    profiler.parse_span(given, 100, 'runs/x')


def test_what_is_asked_for():
  assert profiler.parse_span('', 100, 'gs://x') == (0, 0) and profiler.parse_span(
    '0:100', 100, 'runs/x'
  ) == (0, 100)
  with pytest.raises(InputError, match='not on this machine'):
    profiler.parse_span('0:1', 100, 'gs://bucket/run')


@pytest.fixture
def calls(monkeypatch) -> list[str]:
  """What JAX was asked for."""
  found: list[str] = []
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda *_, **__: found.append('start'))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: found.append('stop'))
  return found


def chunks(recorder: profiler.Recorder, calls: list[str], first: int = 0) -> list[str]:
  """What happens in a run of 100 updates in chunks of ten."""
  for done in range(first, 100, 10):
    recorder.before(done, 10)
    calls.append(str(done))
    recorder.after(done + 10)
  recorder.close()
  return calls


@pytest.mark.parametrize(
  'span, expected, said',
  [
    ((25, 27), ['20', 'stop', '30'], '21 to 30'),
    ((20, 30), ['20', 'stop', '30'], '21 to 30'),
    ((29, 31), ['20', '30', 'stop', '40'], '21 to 40'),
    ((95, 100), ['90', 'stop'], '91 to 100'),
  ],
)
def test_whole_chunks_are_recorded(
  span: tuple[int, int],
  expected: list[str],
  said: str,
  calls: list[str],
  tmp_path: pathlib.Path,
  capsys,
):
  found = chunks(profiler.Recorder(epath.Path(tmp_path), *span), calls)
  begun = found.index('start')
  assert (
    found[begun + 1 : begun + 1 + len(expected)] == expected
    and found.count('start') == found.count('stop') == 1
  )
  err = capsys.readouterr().err
  assert (
    f'a profile of updates {said}' in err
    and f'xprof --logdir={tmp_path}/profile' in err
    and err.count('\n') == 1
  )


def test_what_was_run_before_is_said(calls: list[str], tmp_path: pathlib.Path, capsys):
  """The same command may be given again, so that it is no error."""
  assert 'start' not in chunks(profiler.Recorder(epath.Path(tmp_path), 10, 20), calls, first=50)
  assert capsys.readouterr().err.count('no profile') == 1


def test_nothing_is_recorded_unasked_or_by_another_process(
  calls: list[str], tmp_path: pathlib.Path, monkeypatch, capsys
):
  assert 'start' not in chunks(profiler.Recorder(epath.Path(tmp_path), 0, 0), calls)
  monkeypatch.setattr(distributed, '_process', 1)
  assert 'start' not in chunks(profiler.Recorder(epath.Path(tmp_path), 0, 10), calls)
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize('name', ['start_trace', 'stop_trace'])
def test_a_profile_that_fails_ends_nothing(
  name: str, calls: list[str], tmp_path: pathlib.Path, monkeypatch, capsys
):
  def fails(*_: Any, **__: Any) -> None:
    raise RuntimeError('no room')

  monkeypatch.setattr(jax.profiler, name, fails)
  chunks(profiler.Recorder(epath.Path(tmp_path), 10, 20), calls)
  err = capsys.readouterr().err
  assert err.count('no room') == 1 and err.count('\n') == 1


def test_a_run_that_is_stopped_keeps_what_it_recorded(
  calls: list[str], tmp_path: pathlib.Path, capsys
):
  recorder = profiler.Recorder(epath.Path(tmp_path), 0, 100)
  recorder.before(0, 10)
  recorder.after(10)
  recorder.close()
  recorder.close()
  assert calls == ['start', 'stop'] and 'updates 1 to 10 ' in capsys.readouterr().err


def test_jax_writes_what_viewers_read(tmp_path: pathlib.Path):
  recorder = profiler.Recorder(epath.Path(tmp_path), 0, 1)
  recorder.before(0, 1)
  jax.block_until_ready(jnp.ones(3) + 1)
  recorder.after(1)
  names = {
    path.name.partition('.')[2]
    for path in (tmp_path / profiler.FOLDER).rglob('*')
    if path.is_file()
  }
  assert 'xplane.pb' in names and 'json.gz' in names
