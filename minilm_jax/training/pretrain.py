"""Pre-trains a masked language model, or a population of them, chunk by chunk.

With several processes, all of them run this loop together.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from minilm_jax.core import distributed, files, lock, progress, recipe, run_dir, signals
from minilm_jax.core.config import EvaluationConfig, RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus, subset
from minilm_jax.data.corpus import Corpus
from minilm_jax.training import (
  checkpoint,
  log_sinks,
  metrics_log,
  population,
  pretrained,
  profiler,
  recovery,
  train_step,
)
from minilm_jax.training.batches import load_resident, open_batches
from minilm_jax.training.program import TrainProgram, build_program, compile_chunk, step_count
from minilm_jax.training.train_step import TrainState


def pretrain(config: RunConfig, workdir: epath.PathLike, profile: str = '') -> dict[str, Any]:
  """Pre-trains to the end of the recipe, from the last checkpoint or from the start.

  Args:
    config: the recipe.
    workdir: the run directory.
    profile: updates of which JAX records a profile, as in '100:110'.

  Returns:
    The content of result.json: the last losses, tokens, FLOPs, seconds; of a population, those of
    each member.

  Raises:
    LockedError: another process uses the directory.
    InputError: corpus, work directory or machine do not fit the recipe; an update was not finite
      and the recipe stops.
    OSError: a file of the run could not be written; earlier checkpoints stay.
    signals.InterruptedAfterSave: SIGTERM or SIGINT came, and the run was saved after the chunk.
  """
  profiled = profiler.parse_span(profile, config.num_steps, workdir)
  program = agree_on_program(config, workdir)
  workdir, corpus_folder = distributed.primary_first(lambda: open_or_create_run(config, workdir))
  if (workdir / run_dir.RESULT).exists():
    return _read_result(config, workdir)
  with (
    _lock(workdir) as check_lock,
    contextlib.closing(profiler.Recorder(workdir, *profiled)) as recorder,
  ):
    return _train(config, workdir, corpus_folder, program, check_lock, recorder)


def _train(
  config: RunConfig,
  workdir: epath.Path,
  corpus_folder: epath.Path,
  program: TrainProgram,
  check_lock: Callable[[], None],
  recorder: profiler.Recorder,
) -> dict[str, Any]:
  """Trains from the last checkpoint to the end, and returns the result."""
  state, step, active, lines = recovery.restore_or_init(config, workdir, program)
  with open_batches(config, program, corpus_folder) as batches, signals.note_signals() as interrupt:
    with (
      _open_outputs(config, workdir, program, corpus_folder, lines) as outputs,
      progress.track_progress('pre-training', config.num_steps, 'updates', step) as update,
    ):
      with distributed.raise_together():
        run_chunk = compile_chunk(program, batches.spec)
      for chunk in schedule(config, step):
        with distributed.raise_together():
          check_lock()
          rows = batches.take(chunk.first, chunk.steps)
        recorder.before(chunk.first, chunk.steps)
        started = time.monotonic()
        state, sums, records = run_chunk(state, rows, step_count(program, chunk.steps))
        sums, records = distributed.to_host((sums, records))
        seconds = time.monotonic() - started
        recorder.after(chunk.last)
        active = recovery.drop_non_finite(
          config, workdir, outputs.checkpoints, state, records, active, chunk.last
        )
        update(chunk.last, outputs.log_train(chunk, sums, active, seconds))
        loss = outputs.evaluate('validation', state, active, chunk.last) if chunk.evaluate else None
        signal, is_due = _poll(interrupt, outputs.checkpoints, config.checkpoint.every_minutes)
        if chunk.save or signal or is_due:
          outputs.checkpoints.save(state, chunk.last, loss)
        outputs.checkpoints.settle()
        if signal:
          outputs.checkpoints.finish()
          raise signals.InterruptedAfterSave(
            signal, f' at update {chunk.last:,}; saved; the same command resumes from there'
          )
      outputs.evaluate('test', state, active, config.num_steps)
    return distributed.primary_first(lambda: metrics_log.write_result(config, workdir))


@dataclasses.dataclass(frozen=True)
class Chunk:
  """The updates `first + 1 ... last` of a run, and what follows them."""

  first: int
  last: int
  evaluate: bool
  save: bool

  @property
  def steps(self) -> int:
    """The number of updates."""
    return self.last - self.first


def schedule(config: RunConfig, step: int) -> Iterator[Chunk]:
  """Yields the chunks of a run from `step` to its end.

  A chunk ends at a line of the log, at an early evaluation, or at the end of the run.
  """
  while step < config.num_steps:
    next_line = step - step % config.log.every + config.log.every
    last = min(next_line, config.num_steps, *_early_evaluations(config.eval, step))
    is_end = last == config.num_steps
    yield Chunk(
      step,
      last,
      is_end or _is_evaluated(config.eval, last),
      is_end or last % config.checkpoint.every == 0,
    )
    step = last


def _early_evaluations(config: EvaluationConfig, step: int) -> tuple[int, ...]:
  """Returns the next doubling of `config.first_at`; nothing from `config.every` on."""
  if not config.first_at or step >= config.every:
    return ()
  return (config.first_at << (step // config.first_at).bit_length(),)


def _is_evaluated(config: EvaluationConfig, step: int) -> bool:
  """Returns whether an evaluation follows a step.

  It follows each multiple of `every`, and before the first one each doubling of `first_at`.
  """
  if step % config.every == 0:
    return True
  if not config.first_at or step > config.every:
    return False
  multiple, remainder = divmod(step, config.first_at)
  return remainder == 0 and multiple.bit_count() == 1


@dataclasses.dataclass(frozen=True)
class Outputs:
  """Everything that the loop writes: the log, the evaluations and the checkpoints."""

  config: RunConfig
  workdir: epath.Path
  program: TrainProgram
  log: metrics_log.MetricsLog
  checkpoints: checkpoint.CheckpointWriter
  row_length: int
  splits: Mapping[str, Corpus]

  def log_train(self, chunk: Chunk, sums: dict[str, Any], active: list[int], seconds: float) -> str:
    """Logs the metrics of a chunk, and returns a summary."""
    members = self.config.population.members
    member_sums = population.unstack(sums, members)
    tokens_per_second = round(chunk.steps * self.config.batch_size * self.row_length / seconds)
    metrics = {
      n: train_step.mean_metrics(member_sums[n]) | {'tokens_per_second': tokens_per_second}
      for n in active
      if member_sums[n]['updates']
    }
    summary = self.log.write('train', chunk.last, metrics)
    return f'{summary}, {members * tokens_per_second:,} tokens/s'

  def evaluate(self, split: str, state: TrainState, active: list[int], step: int) -> float | None:
    """Logs the metrics of a split, and returns the mean loss; None without such a split."""
    if split not in self.splits:
      return None
    metrics = self.program.evaluate(state.model, self.splits[split])
    self.log.write(split, step, {n: metrics[n] for n in active})
    return float(np.mean([metrics[n]['loss'] for n in active]))


@contextlib.contextmanager
def _open_outputs(
  config: RunConfig,
  workdir: epath.Path,
  program: TrainProgram,
  corpus_folder: epath.Path,
  lines: list[dict[str, Any]],
) -> Iterator[Outputs]:
  """Yields the outputs of a run; `lines` are those of earlier starts."""
  manifest = corpus.read_manifest(corpus_folder)
  with distributed.raise_together():
    splits = {
      name: load_resident(program, corpus_folder, name, config.eval.rows)
      for name in ('validation', 'test')
      if manifest['splits'][name]['rows']
    }
  losses = metrics_log.validation_losses(lines)
  with (
    log_sinks.open_sinks(config, workdir, lines) as send,
    checkpoint.open_writer(
      workdir, config.checkpoint.keep_last, config.checkpoint.keep_best, losses
    ) as checkpoints,
  ):
    log = metrics_log.MetricsLog(config, workdir, manifest['length'], lines, send)
    yield Outputs(config, workdir, program, log, checkpoints, manifest['length'], splits)


def _poll(
  interrupt: signals.SignalFlag, checkpoints: checkpoint.CheckpointWriter, minutes: float
) -> tuple[int, bool]:
  """Returns the signal that a process received, or 0, and whether a save is due by the clock.

  The clock is that of the first process.
  """
  is_due = minutes > 0 and time.monotonic() - checkpoints.saved_at >= 60 * minutes
  reports = distributed.allgather_ints(interrupt.number, is_due)
  return max(number for number, _ in reports), bool(reports[0][1])


@contextlib.contextmanager
def _lock(workdir: epath.Path) -> Iterator[Callable[[], None]]:
  """Locks the run directory in the first process; yields a function that checks the lock."""
  with contextlib.ExitStack() as stack:
    with distributed.raise_together():
      check = (
        stack.enter_context(lock.hold_lock(workdir)) if distributed.is_primary() else lambda: None
      )
    yield check


def _read_result(config: RunConfig, workdir: epath.Path) -> dict[str, Any]:
  """Returns the result of a finished run."""
  if distributed.is_primary():
    # a process that was killed just after its result leaves its lock
    lock.remove_stale_lock(workdir)
  progress.log(f'nothing to do: {workdir} has run its {config.num_steps:,} updates')
  return files.read_json(workdir / run_dir.RESULT, 'the result of the run')


def agree_on_program(config: RunConfig, workdir: epath.PathLike) -> TrainProgram:
  """Validates the recipe, compares it across processes, and builds its programs; writes nothing.

  Raises:
    InputError: corpus or machine do not fit the recipe.
  """
  distributed.check_processes()
  distributed.assert_equal('the recipe', json.dumps(recipe.as_dict(config)))
  distributed.assert_equal('the work directory', str(epath.Path(workdir).resolve()))
  with distributed.raise_together():
    program = build_program(config)
    log_sinks.check_sinks(config.log)
    corpus_hash = validate(config)
  distributed.assert_equal('the corpus', corpus_hash)
  return program


def validate(config: RunConfig) -> str:
  """Checks that the corpus of the recipe, built or described by a recipe, fits the model.

  Returns:
    The hash of the corpus, or '' if it is still to be built.

  Raises:
    InputError: the corpus does not fit, or is missing.
  """
  if not _is_recipe(config.corpus):
    return validate_corpus(config, epath.Path(config.corpus))['hash']
  # only a run that builds its corpus needs the text pipeline
  from minilm_jax.data import documents

  corpus_config = recipe.resolve(recipe.load(config.corpus), 'corpus')
  # an existing tokenizer determines its own size
  vocab_size = 0 if corpus_config.tokenizer.path else corpus_config.tokenizer.size
  _check_model_size(config, f'the corpus of {config.corpus}', vocab_size, corpus_config.rows.length)
  documents.expand_sources(corpus_config.documents)
  return ''


def _is_recipe(name: str) -> bool:
  return name.partition(':')[0].endswith('.py')


def _check_model_size(config: RunConfig, what: str, vocab_size: int, length: int) -> None:
  for name, model_size, corpus_size in (
    ('vocab_size', config.model.vocab_size, vocab_size),
    ('max_length', config.model.max_length, length),
  ):
    if model_size < corpus_size:
      raise InputError(
        f'model.{name}={model_size}',
        f'{what} has {name} {corpus_size}',
        f'give --config.model.{name}={corpus_size}',
      )


def validate_corpus(config: RunConfig, folder: epath.Path) -> dict[str, Any]:
  """Returns the manifest of a corpus that fits the recipe.

  Raises:
    InputError: no corpus is named or found, the model is too small for it, or it is smaller than
      `config.subset`.
  """
  if not config.corpus:
    raise InputError(
      'a corpus to train on', "corpus=''", 'give --config.corpus=FOLDER; minilm corpus makes one'
    )
  manifest = corpus.read_manifest(folder)
  _check_model_size(config, f'the corpus {folder}', manifest['vocabulary'], manifest['length'])
  if not manifest['splits']['train']['rows']:
    raise InputError(
      f'the training split of {folder}', 'no rows', 'build the corpus from more text'
    )
  subset.check_subset(config.subset, manifest, folder)
  return manifest


def open_or_create_run(config: RunConfig, workdir: epath.PathLike) -> tuple[epath.Path, epath.Path]:
  """Creates or opens the work directory, and builds the corpus if it is given as a recipe.

  Returns:
    The work directory and the folder of the corpus.

  Raises:
    InputError: the directory belongs to another recipe, corpus or tokenizer, or to an imported
      model.
  """
  if record := pretrained.import_record(workdir):
    raise InputError(
      f'pre-training in {workdir}',
      f'it holds a model that was imported from {record["from"]}',
      'give another --workdir; fine-tune an imported model: minilm finetune --checkpoint',
    )
  is_recipe = _is_recipe(config.corpus)
  # the manifest has the hash of the corpus, so that its folder may have moved
  has_manifest = (epath.Path(workdir) / run_dir.MANIFEST).exists()
  free = ['corpus'] if has_manifest and not is_recipe else []
  workdir = run_dir.open_run(workdir, recipe.as_dict(config), free)
  folder = epath.Path(config.corpus)
  if is_recipe:
    # only a run that builds its corpus needs the text pipeline
    from minilm_jax.data import build

    folder = build.build_corpus(
      recipe.resolve(recipe.load(config.corpus), 'corpus'), workdir / 'corpus'
    )
  manifest = validate_corpus(config, folder)
  if has_manifest:
    pretrained.check_manifest(workdir, folder, manifest)
  else:
    pretrained.write_manifest(config, workdir, folder, manifest)
  return workdir, folder
