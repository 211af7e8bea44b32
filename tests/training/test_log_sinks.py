"""Sinks send the log to standard output, TensorBoard and W&B, and never stop training."""

import errno
import importlib.machinery
import importlib.util
import json
import math
import os
import pathlib
import sys
import types
from typing import Any

import pytest
from etils import epath

from minilm_jax.core import distributed
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.training import log_sinks
from minilm_jax.training.log_sinks import EVENTS_FOLDER, EventFiles
from tests import eventfile
from tests.tiny_config import make_run_config

needs_tensorboardx = pytest.mark.skipif(
  importlib.util.find_spec('tensorboardX') is None,
  reason='needs tensorboardX: pip install tensorboardX',
)

LINE = {'step': 2, 'split': 'train', 'loss': 3.5, 'seconds': 1.0}


def sink_config(sinks: str, **changes: Any) -> RunConfig:
  return make_run_config(pathlib.Path('corpus'), **{'log.sinks': sinks, **changes})


def send_lines(sinks: str, workdir: pathlib.Path, times: int = 1) -> None:
  with log_sinks.open_sinks(sink_config(sinks), epath.Path(workdir), []) as send:
    for _ in range(times):
      send([LINE, {**LINE, 'step': 4}])


def test_json_lines_go_to_standard_output(tmp_path, capsys):
  send_lines('json', tmp_path)
  out, err = capsys.readouterr()
  assert [json.loads(line) for line in out.splitlines()] == [LINE, {**LINE, 'step': 4}] and not err
  send_lines('', tmp_path)
  assert capsys.readouterr() == ('', '') and not list(tmp_path.iterdir())


def test_only_the_first_process_writes(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(distributed, '_process', 1)
  send_lines('json,tensorboard', tmp_path)
  assert capsys.readouterr() == ('', '') and not list(tmp_path.iterdir())


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize('name', ['__init__', 'append'])
def test_a_failing_sink_is_reported_once_and_disabled(
  name: str, number: int, tmp_path, monkeypatch, capsys
):
  calls = []

  def fails(*_: Any) -> None:
    calls.append(1)
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(log_sinks.EventFiles, '__init__', lambda *_: None)
  monkeypatch.setattr(log_sinks.EventFiles, name, fails)
  send_lines('tensorboard,json', tmp_path, times=3)
  out, err = capsys.readouterr()
  assert len(out.splitlines()) == 6 and len(calls) == 1
  assert err.count('\n') == 1 and 'tensorboard' in err and os.strerror(number) in err


def test_a_sink_without_its_library_is_disabled(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  monkeypatch.setitem(sys.modules, 'tensorboardX.proto', None)
  send_lines('tensorboard', tmp_path, times=2)
  err = capsys.readouterr().err
  assert err.count('\n') == 1 and 'tensorboardX' in err


def test_a_closed_pipe_does_not_stop_training(tmp_path, monkeypatch, capsys):
  read_end, write_end = os.pipe()
  os.close(read_end)
  with os.fdopen(write_end, 'w') as pipe:
    monkeypatch.setattr(sys, 'stdout', pipe)
    send_lines('json', tmp_path, times=2)
    monkeypatch.undo()
    assert 'json' in capsys.readouterr().err
    with pytest.raises(BrokenPipeError):
      pipe.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), pipe.fileno())


@pytest.mark.parametrize('project', ['a/b', ''])
def test_a_project_that_wandb_refuses_is_refused(project: str):
  with pytest.raises(InputError, match='log.project'):
    sink_config('wandb', **{'log.project': project})


def test_a_missing_extra_is_named_with_its_command(monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(InputError, match=r"pip install 'minilm_jax\[wandb\]'"):
    log_sinks.check_sinks(sink_config('tensorboard,wandb').log)
  log_sinks.check_sinks(sink_config('tensorboard').log)


# TensorBoard.


def line(step: int, split: str = 'train', **fields: Any) -> dict[str, Any]:
  return {
    'step': step,
    'split': split,
    'loss': 5 - step / 8,
    'perplexity': 2.0,
    'tokens': 100 * step,
    'seconds': step / 2,
    **fields,
  }


def open_events(folder: pathlib.Path, lines: list[dict[str, Any]], members: int = 1) -> EventFiles:
  return EventFiles(epath.Path(folder), members, lines)


def event_steps(folder: pathlib.Path, tag: str = 'train/loss') -> list[int]:
  return [step for _, step, name, _ in eventfile.read_scalars(folder) if name == tag]


@needs_tensorboardx
def test_lines_become_scalars(tmp_path):
  """Finite metrics have tags with the split; the test split has no curve."""
  event_files = open_events(tmp_path, [])
  event_files.append([line(2, gradient_norm=1.5, learning_rate=0.25, parameter_norm=math.inf)])
  event_files.append([line(2, 'validation', padded_loss=0.5, gradient_norm=None), line(2, 'test')])
  assert eventfile.read_scalars(tmp_path) == [
    ('events', 2, 'train/loss', 4.75),
    ('events', 2, 'train/perplexity', 2.0),
    ('events', 2, 'train/gradient_norm', 1.5),
    ('events', 2, 'train/learning_rate', 0.25),
    ('events', 2, 'validation/loss', 4.75),
    ('events', 2, 'validation/perplexity', 2.0),
    ('events', 2, 'validation/padded_loss', 0.5),
  ]


@needs_tensorboardx
def test_each_start_writes_the_event_files_again(tmp_path):
  """Lines after the last save are absent; times have no gap."""
  open_events(tmp_path, []).append([line(2), line(4), line(6)])
  first = list((tmp_path / EVENTS_FOLDER).iterdir())
  event_files = open_events(tmp_path, [line(2), line(4)])
  assert event_steps(tmp_path) == [2, 4]
  event_files.append([line(6)])
  assert event_steps(tmp_path) == [2, 4, 6]
  empty, file = sorted((tmp_path / EVENTS_FOLDER).iterdir())
  assert empty == first[0] and not empty.stat().st_size
  open_events(tmp_path, [line(2)])
  assert event_steps(tmp_path) == [2] and first[0] not in (tmp_path / EVENTS_FOLDER).iterdir()
  open_events(tmp_path, [line(2), line(4), line(6)])
  *_, file = sorted((tmp_path / EVENTS_FOLDER).iterdir())
  head, start, *later_events = eventfile.read_events(file)
  assert head.file_version == 'brain.Event:2' and start.step == 0 and start.session_log.status == 1
  assert [event.wall_time - later_events[0].wall_time for event in later_events] == [0, 1, 2]


@needs_tensorboardx
def test_other_event_files_stay(tmp_path):
  other = tmp_path / EVENTS_FOLDER / 'events.out.tfevents.1700000000.host'
  other.parent.mkdir()
  other.write_bytes(b'')
  open_events(tmp_path, [])
  open_events(tmp_path, [])
  open_events(tmp_path, [])
  assert other.exists() and len(list(other.parent.iterdir())) == 3


@needs_tensorboardx
def test_each_member_has_a_folder(tmp_path):
  event_files = open_events(tmp_path, [line(2, member=0), line(2, member=1)], members=2)
  event_files.append([line(4, member=1)])
  assert [
    (folder, step)
    for folder, step, tag, _ in eventfile.read_scalars(tmp_path)
    if tag == 'train/loss'
  ] == [('member-0', 2), ('member-1', 2), ('member-1', 4)]


@needs_tensorboardx
def test_tensorboard_reads_one_curve_after_a_restart(tmp_path):
  """A viewer that was open during the restart reads the same curve."""
  reader = pytest.importorskip(
    'tensorboard.backend.event_processing.event_accumulator',
    reason='needs TensorBoard: pip install tensorboard',
  )
  open_events(tmp_path, []).append([line(2), line(4), line(6), line(8)])
  viewer = reader.EventAccumulator(str(tmp_path / EVENTS_FOLDER))
  viewer.Reload()
  assert [event.step for event in viewer.Scalars('train/loss')] == [2, 4, 6, 8]
  open_events(tmp_path, [line(2), line(4)]).append([line(6)])
  fresh = reader.EventAccumulator(str(tmp_path / EVENTS_FOLDER))
  for log_reader in (viewer, fresh):
    log_reader.Reload()
    assert [(event.step, event.value) for event in log_reader.Scalars('train/loss')] == [
      (2, 4.75),
      (4, 4.5),
      (6, 4.25),
    ]


# W&B, with a fake library.

KEY = 'k' * 40
WANDB_LINES = [
  {'step': 2, 'split': 'train', 'loss': 3.5, 'seconds': 1.0},
  {'step': 2, 'split': 'validation', 'loss': 4.0, 'member': 1},
]


class FakeWandb(types.ModuleType):
  """Records calls of the library; fails in calls named in `refuses`: login, online, log, ..."""

  class Error(Exception):
    """The error of the library."""

  def __init__(self, refuses: str = '', logged_in: bool = True):
    super().__init__('wandb')
    self.refuses, self.logged_in = refuses.split(','), logged_in
    self.calls: list[tuple[str, Any]] = []
    self.Settings, self.__spec__ = dict, importlib.machinery.ModuleSpec('wandb', None)

  def _call(self, name: str, arguments: Any = None) -> None:
    self.calls.append((name, arguments))
    if name in self.refuses:
      raise self.Error(f'{name}: no \x1b[2Jnetwork\nand more')

  def login(self, **arguments: Any) -> bool:
    self._call('login', arguments)
    return self.logged_in

  def teardown(self) -> None:
    self._call('teardown')

  def init(self, mode: str = 'online', **arguments: Any) -> Any:
    self._call(mode, arguments)
    run = types.SimpleNamespace(
      url='https://wandb.ai/me/minilm/runs/x' if mode == 'online' else None
    )
    run.log = lambda values, step: self._call('log', (step, values))
    run.finish = lambda: self._call('finish')
    return run

  def calls_of(self, name: str) -> list[Any]:
    return [arguments for call, arguments in self.calls if call == name]


def send_to_wandb(
  library: FakeWandb, workdir: pathlib.Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> FakeWandb:
  """Sends two events of a log, and returns the library."""
  workdir.mkdir(exist_ok=True)
  monkeypatch.setitem(sys.modules, 'wandb', library)
  monkeypatch.setenv('WANDB_API_KEY', KEY)
  config = sink_config('wandb', **changes)
  with log_sinks.open_sinks(config, epath.Path(workdir), []) as send:
    send(WANDB_LINES)
    send([{**WANDB_LINES[0], 'step': 4}])
  return library


def test_a_wandb_run_has_recipe_and_metrics(tmp_path, monkeypatch, capsys):
  library = send_to_wandb(
    FakeWandb(), tmp_path / 'tiny', monkeypatch, **{'log.project': 'small ones'}
  )
  (arguments,) = library.calls_of('online')
  assert (arguments['project'], arguments['name'], arguments['resume']) == (
    'small ones',
    'tiny',
    'allow',
  )
  assert arguments['config']['num_steps'] == 12 and arguments['dir'] == str(tmp_path / 'tiny')
  assert library.calls_of('log') == [
    (2, {'train/loss': 3.5, 'train/seconds': 1.0}),
    (2, {'member-1/validation/loss': 4.0}),
    (4, {'train/loss': 3.5, 'train/seconds': 1.0}),
  ]
  assert len(library.calls_of('finish')) == 1
  assert 'https://wandb.ai/me/minilm/runs/x' in capsys.readouterr().err


def test_the_next_start_resumes_the_wandb_run(tmp_path, monkeypatch):
  ids = [
    send_to_wandb(FakeWandb(), tmp_path, monkeypatch, **{'log.name': name}).calls_of('online')[0][
      'id'
    ]
    for name in ('a', 'b')
  ]
  assert ids[0] == ids[1] == json.loads((tmp_path / log_sinks.WANDB_FILE).read_text())['id']
  other = send_to_wandb(FakeWandb(), tmp_path / 'other', monkeypatch).calls_of('online')[0]
  assert other['id'] != ids[0]


@pytest.mark.parametrize(
  'library, reason',
  [
    (FakeWandb(logged_in=False), 'wandb login'),
    (FakeWandb('login'), 'login: no'),
    (FakeWandb('online'), 'online: no'),
  ],
)
def test_without_login_or_network_wandb_writes_files(
  library: FakeWandb, reason: str, tmp_path, monkeypatch, capsys
):
  """The sink logs one line and never prompts for a key."""
  send_to_wandb(library, tmp_path, monkeypatch)
  assert len(library.calls_of('offline')) == 1 and len(library.calls_of('log')) == 3
  assert library.calls_of('login')[0]['prompt'] is False
  err = capsys.readouterr().err
  assert err.count('\n') == 1 and 'wandb sync' in err and reason in err and '\x1b' not in err


@pytest.mark.parametrize('mode', ['offline', 'disabled'])
def test_the_mode_of_the_environment_applies(mode: str, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('WANDB_MODE', mode)
  library = send_to_wandb(FakeWandb('login'), tmp_path, monkeypatch)
  assert len(library.calls_of(mode)) == 1 and not library.calls_of('login')
  err = capsys.readouterr().err
  assert f'WANDB_MODE={mode}' in err and ('wandb sync' in err) == (mode == 'offline')


@pytest.mark.parametrize('refuses, logged', [('online,offline', 0), ('log', 1)])
def test_training_continues_if_wandb_fails(
  refuses: str, logged: int, tmp_path, monkeypatch, capsys
):
  library = send_to_wandb(FakeWandb(refuses), tmp_path, monkeypatch)
  assert len(library.calls_of('log')) == logged and len(library.calls_of('finish')) == logged
  assert capsys.readouterr().err.count(f'{refuses.rpartition(",")[2]}: no') == 1


def test_a_failure_at_the_end_is_reported(tmp_path, monkeypatch, capsys):
  send_to_wandb(FakeWandb('finish'), tmp_path, monkeypatch)
  assert 'finish: no' in capsys.readouterr().err


def test_the_key_is_neither_stored_nor_printed(tmp_path, monkeypatch, capsys):
  library = send_to_wandb(FakeWandb(), tmp_path, monkeypatch)
  assert KEY not in repr(library.calls) + ''.join(capsys.readouterr())
  assert not [
    path for path in tmp_path.rglob('*') if path.is_file() and KEY.encode() in path.read_bytes()
  ]


def test_a_failing_run_finishes_its_wandb_run(tmp_path, monkeypatch):
  library = FakeWandb()
  monkeypatch.setitem(sys.modules, 'wandb', library)
  with pytest.raises(RuntimeError, match='the training'):
    with log_sinks.open_sinks(sink_config('wandb'), epath.Path(tmp_path), []):
      raise RuntimeError('the training')
  assert len(library.calls_of('finish')) == 1
