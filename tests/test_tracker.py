"""W&B, with a stand-in for its library: one W&B run for each run, without a network too, and no key anywhere."""

import json
import pathlib
import sys
import types
from typing import Any

import pytest
from etils import epath

from tests.tiny_config import run_config

KEY = 'k' * 40
LINES = [{'step': 2, 'split': 'train', 'loss': 3.5, 'seconds': 1.0}, {'step': 2, 'split': 'validation', 'loss': 4.0, 'member': 1}]


class Library(types.ModuleType):
  """What of the library is used; `refuses` are the calls that fail: login, online, offline, log, finish."""

  class Error(Exception):
    """The library's own."""

  def __init__(self, refuses: str = '', logged_in: bool = True):
    super().__init__('wandb')
    self.refuses, self.logged_in = refuses.split(','), logged_in
    self.calls: list[tuple[str, Any]] = []
    self.Settings = dict

  def _call(self, name: str, what: Any = None) -> None:
    self.calls.append((name, what))
    if name in self.refuses:
      raise self.Error(f'{name}: no \x1b[2Jnetwork\nand more')

  def login(self, **how: Any) -> bool:
    self._call('login', how)
    return self.logged_in

  def teardown(self) -> None:
    self._call('teardown')

  def init(self, mode: str = 'online', **what: Any) -> Any:
    self._call(mode, what)
    run = types.SimpleNamespace(url='https://wandb.ai/me/minilm/runs/x' if mode == 'online' else None)
    run.log = lambda values, step: self._call('log', (step, values))
    run.finish = lambda: self._call('finish')
    return run

  def named(self, name: str) -> list[Any]:
    return [what for called, what in self.calls if called == name]


def tracked(library: Library, workdir: pathlib.Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Library:
  """The library after a run has sent two moments of its log."""
  workdir.mkdir(exist_ok=True)
  monkeypatch.setitem(sys.modules, 'wandb', library)
  monkeypatch.setenv('WANDB_API_KEY', KEY)
  config = run_config(pathlib.Path('corpus'), **{'log.to': 'wandb', **changes})
  with outlets.opened(config, epath.Path(workdir), []) as send:
    send(LINES)
    send([{**LINES[0], 'step': 4}])
  return library


def test_what_is_sent(tmp_path: pathlib.Path, monkeypatch, capsys):
  library = tracked(Library(), tmp_path / 'tiny', monkeypatch, **{'log.project': 'small ones'})
  (what,) = library.named('online')
  assert (what['project'], what['name'], what['resume']) == ('small ones', 'tiny', 'allow')
  assert what['config']['updates'] == 12 and what['dir'] == str(tmp_path / 'tiny')
  assert library.named('log') == [(2, {'train/loss': 3.5, 'train/seconds': 1.0}), (2, {'member-1/validation/loss': 4.0}),
                                  (4, {'train/loss': 3.5, 'train/seconds': 1.0})]
  assert len(library.named('finish')) == 1
  assert 'https://wandb.ai/me/minilm/runs/x' in capsys.readouterr().err


def test_the_next_start_goes_on_with_the_same_run(tmp_path: pathlib.Path, monkeypatch):
  ids = [tracked(Library(), tmp_path, monkeypatch, **{'log.name': name}).named('online')[0]['id'] for name in ('a', 'b')]
  assert ids[0] == ids[1] == json.loads((tmp_path / tracker.FILE).read_text())['id']
  other = tracked(Library(), tmp_path / 'other', monkeypatch).named('online')[0]
  assert other['id'] != ids[0]


@pytest.mark.parametrize('library, why', [
    (Library(logged_in=False), 'nobody is logged in'), (Library('login'), 'login: no'), (Library('online'), 'online: no')])
def test_without_login_or_network_it_writes_files(library: Library, why: str, tmp_path: pathlib.Path, monkeypatch, capsys):
  """Said once; nobody is asked for a key."""
  tracked(library, tmp_path, monkeypatch)
  assert len(library.named('offline')) == 1 and len(library.named('log')) == 3
  assert library.named('login')[0]['prompt'] is False
  err = capsys.readouterr().err
  assert err.count('\n') == 1 and 'wandb sync' in err and why in err and '\x1b' not in err


@pytest.mark.parametrize('mode', ['offline', 'disabled'])
def test_the_mode_of_the_environment_is_kept(mode: str, tmp_path: pathlib.Path, monkeypatch, capsys):
  monkeypatch.setenv('WANDB_MODE', mode)
  library = tracked(Library('login'), tmp_path, monkeypatch)
  assert len(library.named(mode)) == 1 and not library.named('login')
  assert f'W&B is {mode}' in (err := capsys.readouterr().err) and ('wandb sync' in err) == (mode == 'offline')


@pytest.mark.parametrize('refuses, logged', [('online,offline', 0), ('log', 1)])
def test_where_it_cannot_be_used_at_all_training_goes_on(refuses: str, logged: int, tmp_path: pathlib.Path, monkeypatch,
                                                         capsys):
  library = tracked(Library(refuses), tmp_path, monkeypatch)
  assert len(library.named('log')) == logged and len(library.named('finish')) == logged
  assert capsys.readouterr().err.count('to wandb no more, and training goes on') == 1


def test_the_end_may_fail_too(tmp_path: pathlib.Path, monkeypatch, capsys):
  tracked(Library('finish'), tmp_path, monkeypatch)
  assert 'may lack the last lines' in capsys.readouterr().err


def test_no_key_is_written_handed_over_or_said(tmp_path: pathlib.Path, monkeypatch, capsys):
  library = tracked(Library(), tmp_path, monkeypatch)
  assert KEY not in repr(library.calls) + ''.join(capsys.readouterr())
  assert not [path for path in tmp_path.rglob('*') if path.is_file() and KEY.encode() in path.read_bytes()]


def test_a_training_that_fails_still_ends_it(tmp_path: pathlib.Path, monkeypatch):
  library = Library()
  monkeypatch.setitem(sys.modules, 'wandb', library)
  with pytest.raises(RuntimeError, match='the training'):
    with outlets.opened(run_config(pathlib.Path('corpus'), **{'log.to': 'wandb'}), epath.Path(tmp_path), []):
      raise RuntimeError('the training')
  assert len(library.named('finish')) == 1
