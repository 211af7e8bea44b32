"""A run is a fold: chunks, interruptions and full disks do not change its final state."""

import dataclasses
import errno
import functools
import itertools
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from minilm_jax.cli import profiler
from minilm_jax.core import files, lock, recipe, run_dir, signals
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus, tokenizer
from minilm_jax.model.initialization import flatten
from minilm_jax.training import (
  checkpoint,
  pretrain,
  pretrained,
  run,
  train_step,
)
from minilm_jax.training.batches import load_resident
from minilm_jax.training.program import step_count
from tests import eventfile
from tests.run_files import bits, read_log, read_times
from tests.shared_programs import cache_programs
from tests.tiny_config import UPDATES, make_run_config

pytestmark = pytest.mark.usefixtures('share_programs')


def final_bits(folder: pathlib.Path, config: RunConfig) -> dict[str, bytes]:
  return bits(checkpoint.restore(folder, run.build_program(config).shapes, UPDATES))


finished_bits = functools.cache(final_bits)  # of runs that tests do not change


def check_equals_finished(
  folder: pathlib.Path, finished_run: pathlib.Path, config: RunConfig
) -> None:
  assert final_bits(folder, config) == finished_bits(finished_run, config)
  assert read_log(folder) == read_log(finished_run)


@pytest.mark.parametrize(
  'changes, step, ends, evaluated, saved',
  [
    ({}, 0, [2, 4, 6, 8, 10, 12], [4, 8, 12], [4, 8, 12]),
    ({}, 6, [8, 10, 12], [8, 12], [8, 12]),
    ({}, 5, [6, 8, 10, 12], [8, 12], [8, 12]),
    ({}, 12, [], [], []),
    ({'log.every': 12, 'eval.every': 12, 'checkpoint.every': 12}, 0, [12], [12], [12]),
    ({'num_steps': 5, 'log.every': 4}, 0, [4, 5], [4, 5], [4, 5]),
    (
      {'eval.first_at': 1, 'eval.every': 6},
      0,
      [1, 2, 4, 6, 8, 10, 12],
      [1, 2, 4, 6, 12],
      [4, 8, 12],
    ),
    ({'eval.first_at': 3, 'eval.every': 8}, 0, [2, 3, 4, 6, 8, 10, 12], [3, 6, 8, 12], [4, 8, 12]),
    ({'eval.first_at': 3, 'eval.every': 8}, 3, [4, 6, 8, 10, 12], [6, 8, 12], [4, 8, 12]),
  ],
)
def test_a_schedule_is_a_function_of_the_recipe_and_the_step(
  changes: dict[str, int], step: int, ends: list[int], evaluated: list[int], saved: list[int]
):
  chunks = list(pretrain.schedule(make_run_config(pathlib.Path('corpus'), **changes), step))
  assert [chunk.last for chunk in chunks] == ends
  assert [chunk.first for chunk in chunks] == [step, *ends][: len(ends)]
  assert all(chunk.steps == chunk.last - chunk.first > 0 for chunk in chunks)
  assert [chunk.last for chunk in chunks if chunk.evaluate] == evaluated
  assert [chunk.last for chunk in chunks if chunk.save] == saved


@pytest.fixture(scope='module')
def finished_run(tiny_corpus, tmp_path_factory) -> pathlib.Path:
  """A run without interruption."""
  folder = tmp_path_factory.mktemp('uninterrupted')
  run.pretrain(make_run_config(tiny_corpus), folder)
  return folder


def test_early_evaluations_come_at_doublings_and_change_nothing(
  finished_run, tiny_corpus, tmp_path
):
  config = make_run_config(tiny_corpus, **{'eval.first_at': 1, 'eval.every': 6})
  run.pretrain(config, tmp_path)
  steps = [line['step'] for line in read_log(tmp_path) if line['split'] == 'validation']
  assert steps == [1, 2, 4, 6, 12]
  assert final_bits(tmp_path, config) == finished_bits(finished_run, config)


class Killed(BaseException):
  """Stands for a signal."""


def kill_at(call: int, patch: pytest.MonkeyPatch, module: Any, name: str) -> None:
  """Ends the process in a call (from 1) of a function."""
  call_at(call, patch, module, name, raise_killed)


def raise_killed() -> None:
  raise Killed


def call_at(
  call: int, patch: pytest.MonkeyPatch, module: Any, name: str, act: Callable[[], Any]
) -> None:
  """Calls `act` before a call (from 1) of a function."""
  original, calls = getattr(module, name), itertools.count(1)

  def replacement(*arguments: Any) -> Any:
    if next(calls) == call:
      act()
    return original(*arguments)

  patch.setattr(module, name, replacement)


@pytest.mark.parametrize(
  'module, name, call',
  [
    (train_step, 'mean_metrics', 1),  # before the first line
    (checkpoint.CheckpointWriter, 'save', 1),  # after lines, before a checkpoint
    (train_step, 'mean_metrics', 5),  # with lines after the last checkpoint
    (run_dir, 'append_line', 8),  # between the lines of one step
    (checkpoint.CheckpointWriter, 'save', 3),  # before the last checkpoint
    (run_dir, 'append_line', 10),  # after the last checkpoint, before the test line
    (files, 'write_json', 3),  # before the checksums of the first checkpoint
    (files, 'write_json', 6),  # before the result
  ],
)
def test_a_resumed_run_equals_an_uninterrupted_run(
  module: Any, name: str, call: int, finished_run, tiny_corpus, tmp_path
):
  """State and lines are equal; seconds of earlier starts count."""
  config = make_run_config(tiny_corpus)
  with pytest.MonkeyPatch.context() as patch:
    kill_at(call, patch, module, name)
    with pytest.raises(Killed):
      run.pretrain(config, tmp_path)
  assert not (tmp_path / run_dir.RESULT).exists()
  result = run.pretrain(config, tmp_path)
  check_equals_finished(tmp_path, finished_run, config)
  assert eventfile.read_scalars(tmp_path) == eventfile.read_scalars(finished_run)
  seconds = [line['seconds'] for line in run_dir.read_lines(tmp_path / run_dir.METRICS)]
  assert seconds == sorted(seconds) and seconds[0] > 0
  assert {**result, 'seconds': 0} == {
    **json.loads((finished_run / run_dir.RESULT).read_text()),
    'seconds': 0,
  }


def continue_config(folder: pathlib.Path, **changes: Any) -> RunConfig:
  """Returns a recipe that fits the weights of `tiny_run`."""
  return make_run_config(folder, **{'model.vocab_size': 520, **changes})


@pytest.fixture(scope='module')
def continued_run(tiny_run, tiny_corpus, tmp_path_factory) -> pathlib.Path:
  """A run without interruption that starts with the weights and the optimizer of `tiny_run`."""
  folder = tmp_path_factory.mktemp('continued')
  start = {'init_from': f'{tiny_run}@4', 'init_optimizer': True}
  run.pretrain(continue_config(tiny_corpus), folder, **start)
  return folder


@pytest.mark.parametrize(
  'module, name, call, has_flags',
  [
    (run, 'restore_latest', 1, True),  # with a manifest that lacks the checksum
    (checkpoint.CheckpointWriter, 'save', 1, True),  # before a checkpoint
    (checkpoint.CheckpointWriter, 'save', 1, False),
    (checkpoint.CheckpointWriter, 'save', 2, True),  # after a checkpoint
  ],
)
def test_a_continued_run_resumes(
  module: Any, name: str, call: int, has_flags: bool, continued_run, tiny_run, tiny_corpus, tmp_path
):
  """The origin is read at step 0 alone; the repeated command needs no flags."""
  config, copy = continue_config(tiny_corpus), tmp_path / 'origin'
  shutil.copytree(tiny_run, copy)
  start = {'init_from': f'{copy}@4', 'init_optimizer': True}
  with pytest.MonkeyPatch.context() as patch:
    kill_at(call, patch, module, name)
    with pytest.raises(Killed):
      run.pretrain(config, tmp_path / 'run', **start)
  if checkpoint.list_steps(tmp_path / 'run'):
    shutil.rmtree(copy)
  run.pretrain(config, tmp_path / 'run', **start if has_flags else {})
  check_equals_finished(tmp_path / 'run', continued_run, config)
  first, second = map(run_dir.read_origin, (tmp_path / 'run', continued_run))
  assert first['weights'] == second['weights'] and first['checkpoint'] == str(copy)


def test_a_continued_run_has_the_weights_of_its_origin_and_a_log_of_its_own(
  tiny_run, tiny_corpus, tmp_path
):
  """At a rate of 0, all members keep the weights."""
  config = continue_config(
    tiny_corpus, **{'optimizer.learning_rate': 0.0, 'population.members': 2, 'batch_size': 8}
  )
  result = run.pretrain(config, tmp_path / 'run', init_from=f'{tiny_run}@4')
  saved = checkpoint.restore(tmp_path / 'run', run.build_program(config).shapes, UPDATES)
  source = pretrained.load(tiny_run, 4).model
  for name, leaf in flatten(source).items():
    for member in range(2):
      np.testing.assert_array_equal(flatten(saved.model)[name][member], leaf, err_msg=name)
  assert saved.step.tolist() == [UPDATES] * 2 and saved.seed.tolist() == [0, 1]
  lines = read_log(tmp_path / 'run')
  assert lines[0]['step'] == 2 and lines[0]['tokens'] == 2 * 8 * 64
  assert result['origin'] == f'{tiny_run}@4'
  record = run_dir.read_origin(tmp_path / 'run')
  assert record == {
    'checkpoint': str(tiny_run),
    'checkpoint_link': os.path.relpath(tiny_run, tmp_path / 'run'),
    'checkpoint_step': 4,
    'optimizer': False,
    'weights': pretrained.hash_weights(source),
  }
  assert pretrained.hash_weights(pretrained.load(tiny_run, 8).model) != record['weights']
  pretrained.extract_member(tmp_path / 'run', 1, tmp_path / 'deep' / 'member')
  extracted = run_dir.read_origin(tmp_path / 'deep' / 'member')
  assert extracted['checkpoint_link'] == os.path.relpath(tiny_run, tmp_path / 'deep' / 'member')
  assert json.loads((tmp_path / 'run' / run_dir.RESULT).read_text()) == result


def test_a_run_resumes_in_a_folder_of_any_name(finished_run, tiny_corpus, tmp_path):
  names = 'x [1]', 'a*b?', 'lr=3e-3,wd=0.1', 'tiny@2', 'größe 一'
  config, folder = make_run_config(tiny_corpus), tmp_path.joinpath(*names, 'run')
  with pytest.MonkeyPatch.context() as patch:
    kill_at(3, patch, checkpoint.CheckpointWriter, 'save')
    with pytest.raises(Killed):
      run.pretrain(config, folder)
  assert checkpoint.list_steps(folder) == [4, 8]
  steps: list[int] = []
  with pytest.MonkeyPatch.context() as patch:
    schedule = pretrain.schedule
    patch.setattr(pretrain, 'schedule', lambda run, step: steps.append(step) or schedule(run, step))
    run.pretrain(config, folder)
  assert steps[0] == 8
  check_equals_finished(folder, finished_run, config)
  assert eventfile.read_scalars(folder) == eventfile.read_scalars(finished_run)


def test_a_run_without_remaining_steps_compiles_no_chunk(
  finished_run, tiny_corpus, tmp_path, monkeypatch
):
  folder = shutil.copytree(finished_run, tmp_path / 'run')
  (folder / run_dir.RESULT).unlink()
  monkeypatch.setattr(pretrain, 'compile_chunk', lambda config, program, rows: pytest.fail())
  run.pretrain(make_run_config(tiny_corpus), folder)
  assert read_log(folder) == read_log(finished_run) and (folder / run_dir.RESULT).exists()


@pytest.mark.parametrize(
  'call, number, saved',
  [
    (4, signal.SIGTERM, [4, 6]),
    (8, signal.SIGINT, [8, 12]),
    (10, signal.SIGTERM, [8, 12]),
    (4, signal.SIGHUP, [4, 6]),
    (4, signal.SIGUSR1, [4, 6]),
  ],
)
def test_a_signal_saves_at_the_end_of_the_chunk(
  call: int, number: int, saved: list[int], finished_run, tiny_corpus, tmp_path
):
  """The resumed run equals an uninterrupted run; after the last checkpoint, nothing is saved."""
  config = make_run_config(tiny_corpus)
  with pytest.MonkeyPatch.context() as patch, pytest.raises(signals.Interrupted) as error:
    call_at(call, patch, run_dir, 'append_line', lambda: os.kill(os.getpid(), number))
    run.pretrain(config, tmp_path)
  assert error.value.status == 128 + number
  assert (
    isinstance(error.value, signals.InterruptedAfterSave)
    == (call < 10)
    == (not (tmp_path / run_dir.RESULT).exists())
  )
  assert checkpoint.list_steps(tmp_path) == saved
  assert not any(checkpoint.find_damage(checkpoint.step_folder(tmp_path, step)) for step in saved)
  run.pretrain(config, tmp_path)
  check_equals_finished(tmp_path, finished_run, config)


def test_a_notice_of_slurm_saves_and_the_run_continues(
  finished_run, tiny_corpus, tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv('SLURM_JOB_ID', '7')
  config = make_run_config(tiny_corpus, **{'checkpoint.every': 12})
  call_at(4, monkeypatch, run_dir, 'append_line', lambda: os.kill(os.getpid(), signal.SIGUSR1))
  run.pretrain(config, tmp_path)
  assert checkpoint.list_steps(tmp_path) == [6, 12]
  assert 'saved at update 6 after SIGUSR1; the run continues\n' in capsys.readouterr().err
  assert read_log(tmp_path) == read_log(finished_run)


def test_a_run_whose_lock_another_process_took_stops(tiny_corpus, tmp_path, monkeypatch):
  """A process that lost its lock stops at the end of the chunk, without logging or saving."""
  monkeypatch.setattr(lock, 'HEARTBEAT_SECONDS', 0.01)
  is_noticed = threading.Event()
  monkeypatch.setattr(
    lock.progress, 'log', lambda line: is_noticed.set() if 'elsewhere' in line else None
  )

  def take_lock() -> None:
    holder = {'host': 'elsewhere', 'process': 1, 'id': 'other'}
    (tmp_path / lock.LOCK_FILE).write_text(json.dumps(holder))
    assert is_noticed.wait(10)

  call_at(1, monkeypatch, run_dir, 'append_line', take_lock)
  with pytest.raises(lock.LockedError, match='elsewhere'):
    run.pretrain(make_run_config(tiny_corpus), tmp_path)
  assert {line['step'] for line in read_log(tmp_path)} == {2} and not checkpoint.list_steps(
    tmp_path
  )
  assert json.loads((tmp_path / lock.LOCK_FILE).read_text())['id'] == 'other'


@pytest.mark.parametrize('damaged', [1, 2])
def test_a_run_resumes_from_the_newest_intact_checkpoint(
  damaged: int, finished_run, tiny_corpus, tmp_path, capsys
):
  """The run resumes from update 8 or from the start."""
  config = make_run_config(tiny_corpus)
  with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
    kill_at(10, patch, run_dir, 'append_line')
    run.pretrain(config, tmp_path)
  for step in checkpoint.list_steps(tmp_path)[-damaged:]:
    file = next(checkpoint.step_folder(tmp_path, step).glob('default/d/*'))
    file.write_bytes(file.read_bytes()[:-1])
  capsys.readouterr()
  run.pretrain(config, tmp_path)
  assert capsys.readouterr().err.count(': default/d/') == damaged
  check_equals_finished(tmp_path, finished_run, config)


def test_a_run_resumes_with_its_rows_in_files(finished_run, tiny_corpus, tmp_path):
  with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
    kill_at(10, patch, run_dir, 'append_line')
    run.pretrain(make_run_config(tiny_corpus), tmp_path)
  config = make_run_config(tiny_corpus, corpus_placement='host')
  run.pretrain(config, tmp_path)
  check_equals_finished(tmp_path, finished_run, config)


def test_saves_by_the_clock_change_nothing_else(finished_run, tiny_corpus, tmp_path):
  for minutes, saved in ((1e-9, [2, 4, 6, 8, 10, 12]), (1e3, [4, 8, 12])):
    config = make_run_config(
      tiny_corpus, **{'checkpoint.every_minutes': minutes, 'checkpoint.keep_last': 9}
    )
    folder = tmp_path / str(minutes)
    run.pretrain(config, folder)
    assert checkpoint.list_steps(folder) == saved
    check_equals_finished(folder, finished_run, config)


@pytest.mark.parametrize('stop', [0, 3])
def test_the_best_checkpoint_stays(stop: int, tiny_corpus, tmp_path):
  """The best checkpoint also survives an interruption; the loss is the mean of the members."""
  config = make_run_config(
    tiny_corpus, **{'checkpoint.keep_best': 1, 'checkpoint.keep_last': 1, 'population.members': 2}
  )
  losses = iter([(3.0, 1.0), (2.0, 2.1), *[(4.0, 2.0)] * (2 if stop else 1), (5.0, 5.0)])

  def evaluate(*_: Any) -> list[dict[str, float]]:
    return [{'loss': loss, 'perplexity': math.exp(loss)} for loss in next(losses)]

  with pytest.MonkeyPatch.context() as patch:
    program = dataclasses.replace(run.build_program(config), evaluate=evaluate)
    patch.setattr(run, 'build_program', lambda config: program)
    if stop:
      with pytest.MonkeyPatch.context() as inner, pytest.raises(Killed):
        kill_at(stop, inner, checkpoint.CheckpointWriter, 'save')
        run.pretrain(config, tmp_path)
    run.pretrain(config, tmp_path)
  assert checkpoint.list_steps(tmp_path) == [4, 12]


def test_a_run_of_an_earlier_version_continues(finished_run, tiny_corpus, tmp_path, capsys):
  """The recipe lacks later fields, and the checkpoint has no checksums."""
  folder, config = shutil.copytree(finished_run, tmp_path / 'run'), make_run_config(tiny_corpus)
  stored = json.loads((folder / run_dir.CONFIG).read_text())
  del stored['checkpoint']['every_minutes'], stored['checkpoint']['keep_best']
  stored['log'] = {'every': stored['log']['every']}
  del stored['optimizer']['algorithm'], stored['model']['short_convolution']
  (folder / run_dir.CONFIG).write_text(json.dumps(stored))
  (folder / run_dir.RESULT).unlink()
  shutil.rmtree(checkpoint.step_folder(folder, UPDATES))
  (checkpoint.step_folder(folder, 8) / checkpoint.CHECKSUMS).unlink()
  assert pretrained.load_config(folder) == dataclasses.replace(
    config, log=dataclasses.replace(config.log, sinks=())
  )
  run.pretrain(config, folder)
  assert 'update 8' in capsys.readouterr().err
  check_equals_finished(folder, finished_run, config)


def test_sinks_and_a_profile_change_nothing(
  finished_run, tiny_corpus, tmp_path, monkeypatch, capsys
):
  calls: list[str] = []
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda *_, **__: calls.append('start'))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: calls.append('stop'))
  config = make_run_config(tiny_corpus)
  with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
    kill_at(5, patch, train_step, 'mean_metrics')
    run.pretrain(config, tmp_path)
  other_sinks = make_run_config(tiny_corpus, **{'log.sinks': 'json', 'log.name': 'x'})
  with profiler.open_recorder('5:7', UPDATES, tmp_path) as recorder:
    run.pretrain(other_sinks, tmp_path, recorder.record)
  out, err = capsys.readouterr()
  assert [json.loads(line)['step'] for line in out.splitlines()] == [6, 8, 8, 10, 12, 12, 12]
  assert calls == ['start', 'stop'] and '5 to 8' in err
  check_equals_finished(tmp_path, finished_run, config)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[pathlib.Path]:
  """A file system of 4 MB."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'none', str(folder)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip('needs the right to mount a file system')
  yield folder
  subprocess.run(['umount', '-l', folder], check=True)


@pytest.mark.parametrize('free_bytes', [0, 40_000])
def test_a_full_disk_harms_no_checkpoint(free_bytes: int, small_disk, finished_run, tiny_corpus):
  """The disk is full, or has space for lines and a part of a checkpoint."""
  config, workdir, filler = make_run_config(tiny_corpus), small_disk / 'run', small_disk / 'filler'

  def fill() -> None:
    free = os.statvfs(small_disk)
    filler.write_bytes(bytes(free.f_bavail * free.f_bsize - free_bytes))

  with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError):
    # The first checkpoint is written before the disk is full.
    patch.setattr(checkpoint.CheckpointWriter, 'settle', checkpoint.CheckpointWriter.finish)
    call_at(5, patch, run_dir, 'append_line', fill)
    run.pretrain(config, workdir)
  assert filler.exists() and checkpoint.list_steps(workdir) == [4]
  folder = checkpoint.step_folder(workdir, 4)
  assert checkpoint.has_checksums(folder) and not checkpoint.find_damage(folder)
  assert not list(workdir.rglob('*.partial')) and not (workdir / run_dir.RESULT).exists()
  with pytest.raises(OSError):
    run.pretrain(config, workdir)  # the disk is still full
  filler.unlink()
  run.pretrain(config, workdir)
  check_equals_finished(workdir, finished_run, config)
  assert eventfile.read_scalars(workdir) == eventfile.read_scalars(finished_run)


@pytest.mark.parametrize(
  'name, call, number',
  [
    ('append_line', 5, errno.EROFS),
    ('append_line', 9, errno.ESTALE),
    ('write_json', 4, errno.EDQUOT),
  ],
)
def test_a_failing_disk_harms_no_checkpoint(
  name: str, call: int, number: int, finished_run, tiny_corpus, tmp_path
):
  config, module = make_run_config(tiny_corpus), files if name == 'write_json' else run_dir

  def fail() -> None:
    raise OSError(number, os.strerror(number))

  with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match=os.strerror(number)):
    call_at(call, patch, module, name, fail)
    run.pretrain(config, tmp_path)
  saved = checkpoint.list_steps(tmp_path)
  assert saved and not any(
    checkpoint.find_damage(checkpoint.step_folder(tmp_path, step)) for step in saved
  )
  run.pretrain(config, tmp_path)
  check_equals_finished(tmp_path, finished_run, config)


def test_a_run_logs_every_chunk_and_evaluation(finished_run):
  log = read_log(finished_run)
  assert [(line['split'], line['step']) for line in log] == [
    ('train', 2),
    ('train', 4),
    ('validation', 4),
    ('train', 6),
    ('train', 8),
    ('validation', 8),
    ('train', 10),
    ('train', 12),
    ('validation', 12),
    ('test', 12),
  ]
  for line in log:
    assert {'loss', 'perplexity', 'tokens', 'flops'} < line.keys()
    for name in ('learning_rate', 'gradient_norm', 'parameter_norm'):
      assert (name in line) == (line['split'] == 'train')
    assert line['tokens'] == line['step'] * 16 * 64 and line['flops'] % (line['step'] * 16) == 0
    assert line['perplexity'] == pytest.approx(np.exp(line['loss']))
  assert checkpoint.latest_step(finished_run) == UPDATES
  result = json.loads((finished_run / run_dir.RESULT).read_text())
  assert result['updates'] == UPDATES and result['test_loss'] == log[-1]['loss']


def test_a_finished_run_is_not_changed(finished_run, tiny_corpus):
  times = read_times(finished_run)
  result = run.pretrain(make_run_config(tiny_corpus), finished_run)
  assert result == json.loads((finished_run / run_dir.RESULT).read_text())
  assert read_times(finished_run) == times


def test_a_loss_that_is_not_finite_ends_the_run(tiny_corpus, tmp_path):
  changes = {'optimizer.learning_rate': 1e30, 'optimizer.schedule': 'constant'}
  with pytest.raises(InputError, match='optimizer.learning_rate') as error:
    run.pretrain(make_run_config(tiny_corpus, **changes), tmp_path)
  assert 'update 2' in error.value.asked and 'loss' in error.value.found
  assert not read_log(tmp_path) and not (tmp_path / run_dir.RESULT).exists()
  assert checkpoint.latest_step(tmp_path) == 1


def test_a_state_whose_validation_loss_is_not_finite_is_not_saved(
  tiny_corpus, tmp_path, monkeypatch
):
  losses = iter([1.0, 1.0, math.nan])
  monkeypatch.setattr(
    train_step, 'mean_metrics', lambda sums: dict.fromkeys(('loss', 'perplexity'), next(losses))
  )
  with pytest.raises(InputError, match='validation .*update 4'):
    run.pretrain(make_run_config(tiny_corpus), tmp_path)
  assert checkpoint.latest_step(tmp_path) is None


@functools.cache
def cache_broken_programs(*_: Any) -> Callable[..., Any]:
  """Returns the cache of programs with the same broken updates."""
  return cache_programs()


def break_gradients(patch: pytest.MonkeyPatch, at: tuple[int, ...], seed: int = 0) -> None:
  """Makes the gradient of the member with this seed non-finite at some updates."""
  patch.setattr(run, 'build_program', cache_broken_programs(at, seed))
  original_step, original_gradient = train_step.train_step, train_step.compute_gradient

  def step(state: Any, *arguments: Any) -> Any:
    is_broken = (state.seed == seed) & jnp.isin(state.step, jnp.array(at))

    def compute_gradient(*inputs: Any, blocks: int) -> Any:
      gradient, sums = original_gradient(*inputs, blocks=blocks)
      return jax.tree.map(lambda g: jnp.where(is_broken, jnp.inf, g), gradient), sums

    with pytest.MonkeyPatch.context() as inner:  # while this one step is traced
      inner.setattr(train_step, 'compute_gradient', compute_gradient)
      return original_step(state, *arguments)

  patch.setattr(train_step, 'train_step', step)


def test_stop_saves_the_state_before_the_update(tiny_corpus, tmp_path, monkeypatch):
  """The saved state equals that of a run of six updates; another start raises the same error."""
  config = make_run_config(tiny_corpus)
  break_gradients(monkeypatch, (6,))
  program = run.build_program(config)
  expected, _, _ = program.chunk(
    program.init(), load_resident(program, tiny_corpus, 'train'), step_count(program, 6)
  )
  for _ in range(2):
    with pytest.raises(InputError, match='update 7') as error:
      run.pretrain(config, tmp_path)
    assert 'encoder.blocks.0.attention.key.bias' in error.value.found
    assert checkpoint.latest_step(tmp_path) == 6
  saved = flatten(checkpoint.restore(tmp_path, program.shapes, 6))
  assert all(np.array_equal(leaf, saved[name]) for name, leaf in flatten(expected).items())


def test_skip_continues_with_the_next_batch(tiny_corpus, tmp_path, monkeypatch, capsys):
  break_gradients(monkeypatch, (4, 6, 7))
  result = run.pretrain(make_run_config(tiny_corpus, nonfinite='skip'), tmp_path)
  err = capsys.readouterr().err
  assert 'update 5' in err and 'update 7' in err
  assert result['updates'] == UPDATES and np.isfinite(result['train_loss'])
  steps = [line['step'] for line in read_log(tmp_path) if line['split'] == 'train']
  assert steps == [2, 4, 6, 10, 12]  # updates 7 and 8 were both skipped


def test_a_member_is_dropped_and_the_others_continue(tiny_corpus, tmp_path, monkeypatch, capsys):
  """The other members do not change."""
  config = make_run_config(
    tiny_corpus, nonfinite='drop-member', **{'population.members': 3, 'mesh.population': 1}
  )
  run.pretrain(config, tmp_path / 'fine')
  break_gradients(monkeypatch, (5,), seed=1)
  run.pretrain(config, tmp_path / 'dropped')
  assert 'update 6 of member 1' in capsys.readouterr().err

  fine, dropped = (
    {(line['step'], line['member'], line['split']): line['loss'] for line in read_log(folder)}
    for folder in (tmp_path / 'fine', tmp_path / 'dropped')
  )
  assert dropped.keys() == {key for key in fine if key[1] != 1 or key[0] < 6}
  assert dropped == pytest.approx({key: fine[key] for key in dropped}, rel=1e-5)
  state = checkpoint.restore(tmp_path / 'dropped', run.build_program(config).shapes, UPDATES)
  assert np.asarray(state.step).tolist() == [UPDATES, 5, UPDATES]


def test_a_population_stops_at_each_start_after_a_failed_member(tiny_corpus, tmp_path, monkeypatch):
  break_gradients(monkeypatch, (5,), seed=1)
  config = make_run_config(tiny_corpus, **{'population.members': 3, 'mesh.population': 1})
  for value in ('update 6 of member 1', '1 members'):
    with pytest.raises(InputError, match=value):
      run.pretrain(config, tmp_path)


def test_a_run_without_remaining_members_stops(tiny_corpus, tmp_path, monkeypatch):
  break_gradients(monkeypatch, (6,))
  with pytest.raises(InputError, match='update 7'):
    run.pretrain(make_run_config(tiny_corpus, nonfinite='drop-member'), tmp_path)


def unigram_loss(folder: pathlib.Path) -> float:
  """Returns the loss of the training split's token frequencies on the test split, in nats."""
  train, test = (
    np.asarray(corpus.load_split(folder, split).tokens).ravel() for split in ('train', 'test')
  )
  counts = np.bincount(train, minlength=512)[len(tokenizer.SPECIAL_TOKENS) :] + 1
  test = test[test >= len(tokenizer.SPECIAL_TOKENS)] - len(tokenizer.SPECIAL_TOKENS)
  return float(-np.log(counts / counts.sum())[test].mean())


def test_the_microworld_is_learned(tiny_corpus, tmp_path):
  """The loss is far below that of token frequencies; rows are shorter than `max_length`."""
  config = tiny.get_config()
  config.update(corpus=str(tiny_corpus), num_steps=300)
  config.model.max_length, config.mesh.data = 100, 1
  result = run.pretrain(recipe.resolve(config, 'pretrain'), tmp_path)
  assert result['test_loss'] < unigram_loss(tiny_corpus) - 1
  assert result['tokens'] == 300 * 16 * 64
