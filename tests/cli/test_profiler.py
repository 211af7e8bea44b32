"""A profile records complete chunks with the requested updates, once, and never stops training."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from minilm_jax.cli import profiler
from minilm_jax.core import distributed
from minilm_jax.core.errors import InputError


@pytest.mark.parametrize(
  'span, workdir',
  [
    *((span, 'runs/x') for span in ('100', 'a:b', '-1:5', '1:2:3', '²:3', '5:5', '9:3', '90:101')),
    ('0:1', 'gs://bucket/run'),
  ],
)
def test_other_spans_are_refused(span: str, workdir: str):
  with pytest.raises(InputError) as error:
    profiler.parse_span(span, 100, workdir)
  assert error.value.asked == f'--profile={span}'


def test_a_span_is_a_pair_of_updates():
  assert profiler.parse_span('', 100, 'gs://x') == (0, 0)
  assert profiler.parse_span('0:100', 100, 'runs/x') == (0, 100)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
  """Calls of JAX's profiler, and the chunks in between."""
  names: list[str] = []
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda *_, **__: names.append('start'))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: names.append('stop'))
  return names


def run_chunks(workdir: pathlib.Path, span: str, calls: list[str], first: int = 0) -> list[str]:
  """Runs 100 updates in chunks of ten; returns the calls."""
  with profiler.open_recorder(span, 100, workdir) as recorder:
    for step in range(first, 100, 10):
      with recorder.record(step, step + 10):
        calls.append(str(step))
  return calls


@pytest.mark.parametrize(
  'span, recorded, updates',
  [
    ('25:27', ['start', '20', 'stop', '30'], '21 to 30'),
    ('20:30', ['start', '20', 'stop', '30'], '21 to 30'),
    ('29:31', ['start', '20', '30', 'stop', '40'], '21 to 40'),
    ('95:100', ['start', '90', 'stop'], '91 to 100'),
  ],
)
def test_complete_chunks_are_recorded_once(
  span: str, recorded: list[str], updates: str, calls: list[str], tmp_path: pathlib.Path, capsys
):
  run_chunks(tmp_path, span, calls)
  start = calls.index('start')
  assert calls[start : start + len(recorded)] == recorded
  assert calls.count('start') == calls.count('stop') == 1
  err = capsys.readouterr().err
  assert updates in err and f'--logdir={tmp_path}/profile' in err and err.count('\n') == 1


def test_updates_of_an_earlier_start_are_reported(calls: list[str], tmp_path: pathlib.Path, capsys):
  """The same command may run again, so earlier updates are no error."""
  assert 'start' not in run_chunks(tmp_path, '10:20', calls, first=50)
  assert capsys.readouterr().err.count('\n') == 1


def test_nothing_is_recorded_without_a_span_or_in_another_process(
  calls: list[str], tmp_path: pathlib.Path, monkeypatch, capsys
):
  assert 'start' not in run_chunks(tmp_path, '', calls)
  monkeypatch.setattr(distributed, '_process', 1)
  assert 'start' not in run_chunks(tmp_path, '0:10', calls)
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize('name', ['start_trace', 'stop_trace'])
def test_a_failing_profile_does_not_stop_training(
  name: str, calls: list[str], tmp_path: pathlib.Path, monkeypatch, capsys
):
  def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError('disk full')

  monkeypatch.setattr(jax.profiler, name, fail)
  run_chunks(tmp_path, '10:20', calls)
  assert calls[-1] == '90'
  err = capsys.readouterr().err
  assert err.count('disk full') == err.count('\n') == 1


def test_an_interrupted_run_keeps_its_profile(calls: list[str], tmp_path: pathlib.Path, capsys):
  with pytest.raises(KeyboardInterrupt):
    with profiler.open_recorder('0:100', 100, tmp_path) as recorder:
      with recorder.record(0, 10):
        pass
      raise KeyboardInterrupt
  assert calls == ['start', 'stop'] and '1 to 10 ' in capsys.readouterr().err


def test_jax_writes_the_files_of_viewers(tmp_path: pathlib.Path):
  with profiler.Recorder(epath.Path(tmp_path), 0, 1).record(0, 1):
    jax.block_until_ready(jnp.ones(3) + 1)
  files = [path for path in (tmp_path / profiler.FOLDER).rglob('*') if path.is_file()]
  assert {'xplane.pb', 'json.gz'} <= {path.name.partition('.')[2] for path in files}
