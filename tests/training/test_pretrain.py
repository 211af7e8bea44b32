"""The loop: a run is a fold, however it is cut into chunks, spread over devices or stopped on the
way."""

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
from minilm_jax.core import files, lock, recipe, run_dir, signals
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import build, corpus, tokenizer
from minilm_jax.training import checkpoint, pretrain, pretrained, train_step
from minilm_jax.training.batches import load_resident
from minilm_jax.training.checkpoint import flatten
from minilm_jax.training.program import build_program, step_count
from tests import eventfile
from tests.tiny_config import UPDATES, run_config


@pytest.fixture(scope='module', autouse=True)
def share_programs(fast_compile: None) -> Iterator[None]:
  """Lets runs of one recipe share their compiled programs."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pretrain, 'build_program', functools.cache(build_program))
    patch.setattr(pretrain, 'compile_chunk', lambda program, rows: program.chunk)
    yield


def bits(tree: Any) -> dict[str, bytes]:
  return {name: np.asarray(leaf).tobytes() for name, leaf in flatten(tree).items()}


def lines(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The log without its times."""
  return [
    {k: v for k, v in line.items() if k not in ('seconds', 'tokens_per_second')}
    for line in run_dir.read_lines(folder / run_dir.METRICS)
  ]


def final(folder: pathlib.Path, config: RunConfig) -> dict[str, bytes]:
  return bits(checkpoint.restore(folder, build_program(config).shapes, UPDATES))


# the schedule


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
  chunks = list(pretrain.schedule(run_config(pathlib.Path('corpus'), **changes), step))
  assert [chunk.last for chunk in chunks] == ends
  assert [chunk.first for chunk in chunks] == [step, *ends][: len(ends)]
  assert all(chunk.steps == chunk.last - chunk.first > 0 for chunk in chunks)
  assert [chunk.last for chunk in chunks if chunk.evaluate] == evaluated
  assert [chunk.last for chunk in chunks if chunk.save] == saved


@pytest.fixture(scope='module')
def whole(tiny_corpus: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A run that nothing interrupted."""
  folder = tmp_path_factory.mktemp('whole')
  pretrain.pretrain(run_config(tiny_corpus), folder)
  return folder


def test_early_evaluations_come_at_doublings_and_change_nothing(
  whole: pathlib.Path, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  config = run_config(tiny_corpus, **{'eval.first_at': 1, 'eval.every': 6})
  pretrain.pretrain(config, tmp_path)
  judged = [line['step'] for line in lines(tmp_path) if line['split'] == 'validation']
  assert judged == [1, 2, 4, 6, 12]
  assert final(tmp_path, config) == final(whole, config)


# a run that was stopped goes on


class Killed(BaseException):
  """Stands for a signal."""


def killed_at(call: int, patch: pytest.MonkeyPatch, module: Any, name: str) -> None:
  """The process ends in the given call (from 1) of a function."""
  original, calls = getattr(module, name), [0]

  def dying(*arguments: Any) -> Any:
    calls[0] += 1
    if calls[0] == call:
      raise Killed
    return original(*arguments)

  patch.setattr(module, name, dying)


@pytest.mark.parametrize(
  'module, name, call',
  [
    (train_step, 'mean_metrics', 1),  # before there is a line
    (checkpoint.CheckpointWriter, 'save', 1),  # after lines, before a checkpoint
    (train_step, 'mean_metrics', 5),  # with lines after the last checkpoint
    (run_dir, 'append_line', 8),  # between the lines of one step
    (checkpoint.CheckpointWriter, 'save', 3),  # before the last checkpoint
    (run_dir, 'append_line', 10),  # after the last checkpoint, before the test line
    (files, 'write_json', 3),  # before the checksums of the first checkpoint
    (files, 'write_json', 6),  # before the result
  ],
)
def test_a_stopped_run_ends_as_if_it_had_not_been(
  module: Any,
  name: str,
  call: int,
  whole: pathlib.Path,
  tiny_corpus: pathlib.Path,
  tmp_path: pathlib.Path,
):
  """State bit for bit, every line once and in order; the time that was spent before is not lost."""
  config = run_config(tiny_corpus)
  with pytest.MonkeyPatch.context() as patch:
    killed_at(call, patch, module, name)
    with pytest.raises(Killed):
      pretrain.pretrain(config, tmp_path)
  assert not (tmp_path / run_dir.RESULT).exists()
  result = pretrain.pretrain(config, tmp_path)
  assert final(tmp_path, config) == final(whole, config)
  assert lines(tmp_path) == lines(whole) and eventfile.scalars(tmp_path) == eventfile.scalars(whole)
  seconds = [line['seconds'] for line in run_dir.read_lines(tmp_path / run_dir.METRICS)]
  assert seconds == sorted(seconds) and seconds[0] > 0
  assert {**result, 'seconds': 0} == {
    **json.loads((whole / run_dir.RESULT).read_text()),
    'seconds': 0,
  }


def stopped_at(call: int, patch: pytest.MonkeyPatch, number: int) -> None:
  """A signal comes in the given call (from 1) of run.append_line."""
  original, calls = run_dir.append_line, itertools.count(1)

  def interrupted(*arguments: Any) -> None:
    if next(calls) == call:
      os.kill(os.getpid(), number)
    original(*arguments)

  patch.setattr(run_dir, 'append_line', interrupted)


@pytest.mark.parametrize(
  'call, number, saved',
  [(4, signal.SIGTERM, [4, 6]), (8, signal.SIGINT, [8, 12]), (10, signal.SIGTERM, [8, 12])],
)
def test_a_signal_saves_at_the_end_of_the_chunk(
  call: int,
  number: int,
  saved: list[int],
  whole: pathlib.Path,
  tiny_corpus: pathlib.Path,
  tmp_path: pathlib.Path,
):
  """And the run goes on as if it had not come; in the last moment there is nothing left to save."""
  config = run_config(tiny_corpus)
  with pytest.MonkeyPatch.context() as patch, pytest.raises(signals.Interrupted) as ended:
    stopped_at(call, patch, number)
    pretrain.pretrain(config, tmp_path)
  assert signal.Signals(number).name in str(ended.value) and ended.value.status == 128 + number
  assert (
    isinstance(ended.value, signals.InterruptedAfterSave)
    == (call < 10)
    == (not (tmp_path / run_dir.RESULT).exists())
  )
  assert checkpoint.list_steps(tmp_path) == saved
  assert not any(checkpoint.find_damage(checkpoint.step_folder(tmp_path, step)) for step in saved)
  pretrain.pretrain(config, tmp_path)
  assert final(tmp_path, config) == final(whole, config) and lines(tmp_path) == lines(whole)


def test_a_run_that_another_process_has_taken_over_stops_at_the_end_of_the_chunk(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  """As one that was asleep for long, on another host: it neither logs nor saves into what is no
  longer its own.
  """
  monkeypatch.setattr(lock, 'HEARTBEAT_SECONDS', 0.01)
  said = threading.Event()
  monkeypatch.setattr(
    lock.progress, 'say', lambda line: said.set() if 'elsewhere' in line else None
  )

  def taken(*arguments: Any) -> None:
    if not said.is_set():
      (tmp_path / lock.LOCK_FILE).write_text(
        json.dumps({'host': 'elsewhere', 'process': 1, 'id': 'theirs'})
      )
      assert said.wait(10)
    original(*arguments)

  original = run_dir.append_line
  monkeypatch.setattr(run_dir, 'append_line', taken)
  with pytest.raises(lock.LockedError, match='process 1 on elsewhere is at work there'):
    pretrain.pretrain(run_config(tiny_corpus), tmp_path)
  assert {line['step'] for line in lines(tmp_path)} == {2} and not checkpoint.list_steps(tmp_path)
  assert json.loads((tmp_path / lock.LOCK_FILE).read_text())['id'] == 'theirs'


@pytest.mark.parametrize('damaged', [1, 2])
def test_a_run_goes_on_before_what_was_damaged(
  damaged: int, whole: pathlib.Path, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, capsys
):
  """From update 8, or where nothing is left from the start; it ends where it would have ended."""
  config = run_config(tiny_corpus)
  with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
    killed_at(10, patch, run_dir, 'append_line')
    pretrain.pretrain(config, tmp_path)
  for step in checkpoint.list_steps(tmp_path)[-damaged:]:
    file = next(checkpoint.step_folder(tmp_path, step).glob('default/d/*'))
    file.write_bytes(file.read_bytes()[:-1])
  capsys.readouterr()
  pretrain.pretrain(config, tmp_path)
  assert capsys.readouterr().err.count(': default/d/') == damaged
  assert final(tmp_path, config) == final(whole, config) and lines(tmp_path) == lines(whole)


def test_saves_by_the_clock_change_nothing_else(
  whole: pathlib.Path, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  for minutes, saved in ((1e-9, [2, 4, 6, 8, 10, 12]), (1e3, [4, 8, 12])):
    config = run_config(
      tiny_corpus, **{'checkpoint.every_minutes': minutes, 'checkpoint.keep_last': 9}
    )
    folder = tmp_path / str(minutes)
    pretrain.pretrain(config, folder)
    assert checkpoint.list_steps(folder) == saved
    assert final(folder, config) == final(whole, config) and lines(folder) == lines(whole)


@pytest.mark.parametrize('stop', [0, 3])
def test_the_best_checkpoint_stays(stop: int, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path):
  """Also where the run was stopped after it; the loss is the mean of the members."""
  config = run_config(
    tiny_corpus, **{'checkpoint.keep_best': 1, 'checkpoint.keep_last': 1, 'population.members': 2}
  )
  losses = iter([(3.0, 1.0), (2.0, 2.1), *[(4.0, 2.0)] * (2 if stop else 1), (5.0, 5.0)])

  def evaluate(*_: Any) -> list[dict[str, float]]:
    return [{'loss': loss, 'perplexity': math.exp(loss)} for loss in next(losses)]

  with pytest.MonkeyPatch.context() as patch:
    program = dataclasses.replace(build_program(config), evaluate=evaluate)
    patch.setattr(pretrain, 'build_program', lambda config: program)
    if stop:
      with pytest.MonkeyPatch.context() as inner, pytest.raises(Killed):
        killed_at(stop, inner, checkpoint.CheckpointWriter, 'save')
        pretrain.pretrain(config, tmp_path)
    pretrain.pretrain(config, tmp_path)
  assert checkpoint.list_steps(tmp_path) == [4, 12]


def test_a_run_of_an_earlier_version_is_read_and_gone_on_with(
  whole: pathlib.Path, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, capsys
):
  """Its recipe lacks what came later, its checkpoints have no digests."""
  folder, config = shutil.copytree(whole, tmp_path / 'run'), run_config(tiny_corpus)
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
  pretrain.pretrain(config, folder)
  assert 'the checkpoint of update 8' in capsys.readouterr().err
  assert final(folder, config) == final(whole, config) and lines(folder) == lines(whole)


def test_who_is_told_and_a_profile_change_nothing(
  whole: pathlib.Path, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch, capsys
):
  """Another start may tell others."""
  calls: list[str] = []
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda *_, **__: calls.append('start'))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: calls.append('stop'))
  config = run_config(tiny_corpus)
  with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
    killed_at(5, patch, train_step, 'mean_metrics')
    pretrain.pretrain(config, tmp_path)
  pretrain.pretrain(
    run_config(tiny_corpus, **{'log.sinks': 'json', 'log.name': 'x'}), tmp_path, recorder.record
  )
  out, err = capsys.readouterr()
  assert [json.loads(line)['step'] for line in out.splitlines()] == [6, 8, 8, 10, 12, 12, 12]
  assert calls == ['start', 'stop'] and 'a profile of updates 5 to 8 was' in err
  assert final(tmp_path, config) == final(whole, config) and lines(tmp_path) == lines(whole)


# a disk that does not take what is written


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A file system of 4 MB."""
  place = tmp_path / 'disk'
  place.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'none', str(place)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip('needs the right to mount a file system')
  yield place
  subprocess.run(['umount', '-l', place], check=True)


@pytest.mark.parametrize('left', [0, 40_000])
def test_a_full_disk_harms_nothing_that_was_good(
  left: int, small_disk: pathlib.Path, whole: pathlib.Path, tiny_corpus: pathlib.Path
):
  """With room for nothing, or for lines and a part of a checkpoint."""
  config, workdir, filler = run_config(tiny_corpus), small_disk / 'run', small_disk / 'filler'

  def fill() -> None:
    free = os.statvfs(small_disk)
    filler.write_bytes(bytes(free.f_bavail * free.f_bsize - left))

  with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match='No space left'):
    original, calls = run_dir.append_line, itertools.count(1)
    # the first checkpoint is on disk before it is full
    patch.setattr(checkpoint.CheckpointWriter, 'settle', checkpoint.CheckpointWriter.finish)
    patch.setattr(
      run_dir,
      'append_line',
      lambda *given: (fill() if next(calls) == 5 else None, original(*given)),
    )
    pretrain.pretrain(config, workdir)
  assert filler.exists() and checkpoint.list_steps(workdir) == [4]
  assert checkpoint.has_checksums(
    checkpoint.step_folder(workdir, 4)
  ) and not checkpoint.find_damage(checkpoint.step_folder(workdir, 4))
  assert not list(workdir.rglob('*.partial')) and not (workdir / run_dir.RESULT).exists()
  with pytest.raises(OSError):
    pretrain.pretrain(config, workdir)  # which is no better yet, and no worse
  filler.unlink()
  pretrain.pretrain(config, workdir)
  assert final(workdir, config) == final(whole, config) and lines(workdir) == lines(whole)
  assert eventfile.scalars(workdir) == eventfile.scalars(whole)


@pytest.mark.parametrize(
  'name, call, number',
  [
    ('append_line', 5, errno.EROFS),
    ('append_line', 9, errno.ESTALE),
    ('write_json', 4, errno.EDQUOT),
  ],
)
def test_a_disk_that_goes_away_harms_nothing(
  name: str,
  call: int,
  number: int,
  whole: pathlib.Path,
  tiny_corpus: pathlib.Path,
  tmp_path: pathlib.Path,
):
  module = files if name == 'write_json' else run_dir
  config, original, calls = run_config(tiny_corpus), getattr(module, name), itertools.count(1)

  def failing(*arguments: Any) -> None:
    if next(calls) == call:
      raise OSError(number, os.strerror(number))
    original(*arguments)

  with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match=os.strerror(number)):
    patch.setattr(module, name, failing)
    pretrain.pretrain(config, tmp_path)
  saved = checkpoint.list_steps(tmp_path)
  assert saved and not any(
    checkpoint.find_damage(checkpoint.step_folder(tmp_path, step)) for step in saved
  )
  pretrain.pretrain(config, tmp_path)
  assert final(tmp_path, config) == final(whole, config) and lines(tmp_path) == lines(whole)


# what a run writes


def test_what_a_run_writes(whole: pathlib.Path, tiny_corpus: pathlib.Path):
  found = lines(whole)
  assert [(line['split'], line['step']) for line in found] == [
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
  for line in found:
    assert {'loss', 'perplexity', 'tokens', 'flops'} < line.keys()
    for name in ('learning_rate', 'gradient_norm', 'parameter_norm'):
      assert (name in line) == (line['split'] == 'train')
    assert line['tokens'] == line['step'] * 16 * 64 and line['flops'] % (line['step'] * 16) == 0
    assert line['perplexity'] == pytest.approx(np.exp(line['loss']))
  manifest = json.loads((whole / run_dir.MANIFEST).read_text())
  assert manifest['corpus'] == corpus.read_manifest(tiny_corpus)['hash']
  assert files.hash_file(whole / build.TOKENIZER) == manifest['tokenizer']
  assert checkpoint.latest_step(whole) == UPDATES
  result = json.loads((whole / run_dir.RESULT).read_text())
  assert result['updates'] == UPDATES and result['test_loss'] == found[-1]['loss']


def test_a_finished_run_has_nothing_to_do(whole: pathlib.Path, tiny_corpus: pathlib.Path, capsys):
  before = contents(whole)
  (whole / lock.LOCK_FILE).touch()
  os.utime(whole / lock.LOCK_FILE, (0, 0))  # of one that was killed just after its result
  result = pretrain.pretrain(run_config(tiny_corpus), whole)
  assert 'nothing to do' in ''.join(capsys.readouterr())
  assert result == json.loads((whole / run_dir.RESULT).read_text())
  assert contents(whole) == before


# what does not fit is refused


def contents(folder: pathlib.Path) -> dict[str, int]:
  """When each file was last written."""
  return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob('*')}


def started(tiny_corpus: pathlib.Path, folder: pathlib.Path) -> RunConfig:
  """A run in `folder` that was stopped after its first checkpoint."""
  config = run_config(tiny_corpus)
  with pytest.MonkeyPatch.context() as patch:
    killed_at(4, patch, train_step, 'mean_metrics')
    with pytest.raises(Killed):
      pretrain.pretrain(config, folder)
  return config


@pytest.mark.parametrize('part', ['corpus', 'tokenizer'])
def test_a_run_goes_on_with_its_own_corpus_only(
  part: str, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  config = started(tiny_corpus, tmp_path)
  path = tmp_path / run_dir.MANIFEST
  # as if it had begun with another
  path.write_text(json.dumps({**json.loads(path.read_text()), part: '0' * 64}))
  before = contents(tmp_path)
  with pytest.raises(InputError, match=f'it was trained on another {part}'):
    pretrain.pretrain(config, tmp_path)
  assert contents(tmp_path) == before


def test_a_run_goes_on_with_its_corpus_wherever_that_is(
  whole: pathlib.Path, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, capsys
):
  config, moved = started(tiny_corpus, tmp_path / 'run'), tmp_path / 'moved'
  shutil.copytree(tiny_corpus, moved)
  pretrain.pretrain(dataclasses.replace(config, corpus=str(moved)), tmp_path / 'run')
  assert f'was {tiny_corpus} and is {moved} now' in capsys.readouterr().err
  assert run_dir.read_corpus_hashes(tmp_path / 'run')['corpus_folder'] == str(moved)
  assert final(tmp_path / 'run', config) == final(whole, config) and lines(
    tmp_path / 'run'
  ) == lines(whole)


def test_another_recipe_is_refused_and_changes_nothing(
  whole: pathlib.Path, tiny_corpus: pathlib.Path
):
  before = contents(whole)
  with pytest.raises(InputError, match='seed is 0 there and 1 here'):
    pretrain.pretrain(run_config(tiny_corpus, seed=1), whole)
  assert contents(whole) == before


def a_tokenizer_that_was_swapped(folder: pathlib.Path) -> None:
  (folder / 'tokenizer.model').write_bytes(b'another')


def no_tokenizer(folder: pathlib.Path) -> None:
  (folder / 'tokenizer.model').unlink()


@pytest.mark.parametrize('change', [a_tokenizer_that_was_swapped, no_tokenizer])
def test_a_corpus_with_another_tokenizer_than_it_says_is_refused(
  change: Callable[[pathlib.Path], None], tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  corpus = shutil.copytree(tiny_corpus, tmp_path / 'corpus')
  change(corpus)
  with pytest.raises(InputError, match='not the file that the corpus was made with'):
    pretrain.pretrain(run_config(corpus), tmp_path / 'run')


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'model.vocab_size': 500}, 'give --config.model.vocab_size=512'),
    ({'model.max_length': 60}, 'model.max_length=64'),
    ({'corpus': ''}, 'give --config.corpus=FOLDER'),
    ({'corpus': '/nowhere'}, 'no manifest.json there'),
    ({'corpus': 'configs/nowhere.py:corpus'}, 'no such file'),
    ({'corpus': 'configs/tiny.py:corpus', 'model.vocab_size': 100}, 'model.vocab_size=512'),
  ],
)
def test_a_corpus_that_does_not_fit_leaves_no_trace(
  changes: dict[str, Any], said: str, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  """So that the command may be given again, mended, with the same work directory."""
  with pytest.raises(InputError) as refused:
    pretrain.pretrain(run_config(tiny_corpus, **changes), tmp_path / 'run')
  assert said in str(refused.value) and not (tmp_path / 'run').exists()


def test_a_loss_that_is_no_number_ends_the_run_with_a_sentence(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  config = run_config(
    tiny_corpus, **{'optimizer.learning_rate': 1e30, 'optimizer.schedule': 'constant'}
  )
  with pytest.raises(InputError, match='lower optimizer.learning_rate') as refused:
    pretrain.pretrain(config, tmp_path)
  assert 'update 2' in refused.value.asked and 'the loss' in refused.value.found
  assert not lines(tmp_path) and not (tmp_path / run_dir.RESULT).exists()
  assert checkpoint.latest_step(tmp_path) == 1  # what was before it


def test_a_validation_loss_that_is_no_number_is_seen_too(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  """The last update may be the one that breaks a model; such a state is not saved."""
  with pytest.MonkeyPatch.context() as patch:
    answers = iter(
      [{'loss': 1.0, 'perplexity': 1.0}] * 2 + [{'loss': math.nan, 'perplexity': math.nan}]
    )
    patch.setattr(train_step, 'mean_metrics', lambda sums: next(answers))
    with pytest.raises(InputError, match='validation loss at update 4'):
      pretrain.pretrain(run_config(tiny_corpus), tmp_path)
  assert checkpoint.latest_step(tmp_path) is None


# updates that are not finite


def breaking(patch: pytest.MonkeyPatch, at: tuple[int, ...], seed: int = 0) -> None:
  """From now on the gradient of the member with this seed is not finite at some updates."""
  patch.setattr(pretrain, 'build_program', build_program)  # not a program that was compiled before
  original, sums = train_step.train_step, train_step.compute_gradient

  def step(state: Any, *rest: Any) -> Any:
    bad = (state.seed == seed) & jnp.isin(state.step, jnp.array(at))

    def broken(*inputs: Any, blocks: int) -> Any:
      gradient, found = sums(*inputs, blocks=blocks)
      return jax.tree.map(lambda g: jnp.where(bad, jnp.inf, g), gradient), found

    with pytest.MonkeyPatch.context() as inner:  # while this one step is traced
      inner.setattr(train_step, 'compute_gradient', broken)
      return original(state, *rest)

  patch.setattr(train_step, 'train_step', step)


def test_stop_keeps_what_was_before(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  """The checkpoint of update 6 is that of a run that ends there; to start again says the same
  again."""
  config = run_config(tiny_corpus)
  breaking(monkeypatch, (6,))
  program = build_program(config)
  good, _, _ = program.chunk(
    program.init(), load_resident(program, tiny_corpus, 'train'), step_count(program, 6)
  )
  for _ in range(2):
    with pytest.raises(InputError, match='a finite update 7') as refused:
      pretrain.pretrain(config, tmp_path)
    assert 'encoder.blocks.0.attention.key.bias' in refused.value.found
    assert checkpoint.latest_step(tmp_path) == 6
  kept = checkpoint.restore(tmp_path, program.shapes, 6)
  assert all(np.array_equal(leaf, flatten(kept)[name]) for name, leaf in flatten(good).items())


def test_skip_goes_on_with_the_next_batch(
  tiny_corpus: pathlib.Path,
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
  capsys: pytest.CaptureFixture,
):
  breaking(monkeypatch, (4, 6, 7))
  result = pretrain.pretrain(run_config(tiny_corpus, nonfinite='skip'), tmp_path)
  said = capsys.readouterr().err
  assert 'update 5' in said and 'update 7' in said
  assert result['updates'] == UPDATES and np.isfinite(result['train_loss'])
  logged = [
    line['step']
    for line in run_dir.read_lines(tmp_path / run_dir.METRICS)
    if line['split'] == 'train'
  ]
  assert logged == [2, 4, 6, 10, 12]  # of updates 7 and 8 nothing was left to log


def test_a_member_is_dropped_and_the_others_go_on(
  tiny_corpus: pathlib.Path,
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
  capsys: pytest.CaptureFixture,
):
  """They end as if nothing had been; so does a run that was resumed after it."""
  config = run_config(
    tiny_corpus, nonfinite='drop-member', **{'population.members': 3, 'mesh.population': 1}
  )
  pretrain.pretrain(config, tmp_path / 'fine')
  breaking(monkeypatch, (5,), seed=1)
  pretrain.pretrain(config, tmp_path / 'dropped')
  assert 'update 6 of member 1' in capsys.readouterr().err

  def logged(name: str) -> dict[tuple[int, int, str], float]:
    found = run_dir.read_lines(tmp_path / name / run_dir.METRICS)
    return {
      (line['step'], line['member'], line['split']): line['loss']
      for line in found
      if line['member'] != 1 or line['step'] < 6
    }

  assert logged('dropped') == pytest.approx(logged('fine'), rel=1e-5)
  found = list(run_dir.read_lines(tmp_path / 'dropped' / run_dir.METRICS))
  assert max(line['step'] for line in found if line['member'] == 1) == 4
  state = checkpoint.restore(tmp_path / 'dropped', build_program(config).shapes, UPDATES)
  assert np.asarray(state.step).tolist() == [UPDATES, 5, UPDATES]


def test_a_population_that_stopped_says_so_when_it_is_started_again(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  breaking(monkeypatch, (5,), seed=1)
  config = run_config(tiny_corpus, **{'population.members': 3, 'mesh.population': 1})
  with pytest.raises(InputError, match='a finite update 6 of member 1'):
    pretrain.pretrain(config, tmp_path)
  with pytest.raises(InputError, match='1 members'):
    pretrain.pretrain(config, tmp_path)


def test_without_a_member_left_a_run_stops(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  breaking(monkeypatch, (3,))
  with pytest.raises(InputError, match='a finite update 4'):
    pretrain.pretrain(run_config(tiny_corpus, nonfinite='drop-member'), tmp_path)


# and it learns


def unigram_loss(folder: pathlib.Path) -> float:
  """Nats a token of the test split that the frequencies of the training split leave open."""
  train, test = (
    np.asarray(corpus.load_split(folder, split).tokens).ravel() for split in ('train', 'test')
  )
  counts = np.bincount(train, minlength=512)[len(tokenizer.SPECIAL_TOKENS) :] + 1
  test = test[test >= len(tokenizer.SPECIAL_TOKENS)] - len(tokenizer.SPECIAL_TOKENS)
  return float(-np.log(counts / counts.sum())[test].mean())


def test_the_microworld_is_learned(tiny_corpus: pathlib.Path, tmp_path: pathlib.Path):
  """Well below what frequencies of tokens explain; by a model that could read longer rows than
  there are.
  """
  recipe_of_a_minute = tiny.get_config()
  recipe_of_a_minute.update(corpus=str(tiny_corpus), num_steps=300)
  recipe_of_a_minute.model.max_length, recipe_of_a_minute.mesh.data = 100, 1
  result = pretrain.pretrain(recipe.resolve(recipe_of_a_minute, 'pretrain'), tmp_path)
  assert result['test_loss'] < unigram_loss(tiny_corpus) - 1
  assert result['tokens'] == 300 * 16 * 64  # those of the rows, not of what the model could read
