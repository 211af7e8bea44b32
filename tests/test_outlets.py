"""Where lines of the log go beside metrics.jsonl: as the recipe says, and never at the price of the training."""

import errno
import json
import os
import pathlib
import sys
from typing import Any

import pytest
from etils import epath

from minilm_jax import hosts
from minilm_jax.config import RunConfig
from minilm_jax.errors import InputError
from minilm_jax.training import events, outlets
from tests.small import run_config

LINE = {'step': 2, 'split': 'train', 'loss': 3.5, 'seconds': 1.0}


def config(to: str, **changes: Any) -> RunConfig:
  return run_config(pathlib.Path('corpus'), **{'log.to': to, **changes})


def sent(to: str, workdir: pathlib.Path, times: int = 1) -> None:
  with outlets.opened(config(to), epath.Path(workdir), []) as send:
    for _ in range(times):
      send([LINE, {**LINE, 'step': 4}])


def test_json_lines_go_to_standard_output(tmp_path: pathlib.Path, capsys):
  sent('json', tmp_path)
  out, err = capsys.readouterr()
  assert [json.loads(line) for line in out.splitlines()] == [LINE, {**LINE, 'step': 4}] and not err
  sent('', tmp_path)
  assert capsys.readouterr() == ('', '') and not list(tmp_path.iterdir())


def test_the_default_is_tensorboard():
  assert run_config(pathlib.Path('corpus')).log.to == ('tensorboard',)


def test_one_process_of_several_writes(tmp_path: pathlib.Path, monkeypatch, capsys):
  monkeypatch.setattr(hosts, 'leads', lambda: False)
  sent('json,tensorboard', tmp_path)
  assert capsys.readouterr() == ('', '') and not list(tmp_path.iterdir())


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize('name', ['__init__', 'append'])
def test_what_fails_is_said_once_and_left_out(name: str, number: int, tmp_path: pathlib.Path, monkeypatch, capsys):
  calls = []

  def fails(*_: Any) -> None:
    calls.append(1)
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(events.Events, '__init__', lambda *_: None)
  monkeypatch.setattr(events.Events, name, fails)
  sent('tensorboard,json', tmp_path, times=3)
  out, err = capsys.readouterr()
  assert len(out.splitlines()) == 6 and len(calls) == 1  # the other goes on
  assert err.count('\n') == 1 and 'to tensorboard no more, and training goes on' in err and os.strerror(number) in err


def test_a_library_that_is_not_there_is_left_out(tmp_path: pathlib.Path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  monkeypatch.setitem(sys.modules, 'tensorboardX.proto', None)
  sent('tensorboard', tmp_path, times=2)
  err = capsys.readouterr().err
  assert err.count('\n') == 1 and 'tensorboardX' in err


def test_a_reader_that_left_ends_nothing(tmp_path: pathlib.Path, monkeypatch, capsys):
  ours, theirs = os.pipe()
  os.close(ours)
  with os.fdopen(theirs, 'w') as pipe:
    monkeypatch.setattr(sys, 'stdout', pipe)
    sent('json', tmp_path, times=2)
    monkeypatch.undo()
    assert 'to json no more' in capsys.readouterr().err
    with pytest.raises(BrokenPipeError):
      pipe.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), pipe.fileno())


@pytest.mark.parametrize('changes, said', [
    ({'log.to': 'tensorbord'}, "did you mean 'tensorboard'"), ({'log.to': 'tensorboard,x'}, 'choices: tensorboard, wandb'),
    ({'log.to': 'wandb', 'log.project': 'a/b'}, 'no name that W&B takes'),
    ({'log.to': 'wandb', 'log.project': ''}, 'no name that W&B takes')])
def test_what_cannot_be_is_refused(changes: dict[str, str], said: str):
  with pytest.raises(InputError, match=said):
    config(**{'to': '', **changes})


def test_a_missing_extra_is_named_with_its_command(monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(InputError, match=r"pip install 'minilm_jax\[wandb\]'"):
    outlets.check(config('tensorboard,wandb'))
  outlets.check(config('tensorboard'))
