"""Pre-trains a masked language model, or a population of them, chunk by chunk.

With several processes, all of them run this loop together.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from minilm_jax.core import distributed, progress, signals
from minilm_jax.core.config import EvaluationConfig, RunConfig
from minilm_jax.data.corpus import Corpus, read_manifest
from minilm_jax.training import (
  checkpoint,
  log_sinks,
  metrics_log,
  population,
  recovery,
  run_setup,
  train_step,
)
from minilm_jax.training.batches import load_resident, open_batches
from minilm_jax.training.pretrained import Origin
from minilm_jax.training.program import TrainProgram, build_program, compile_chunk, step_count
from minilm_jax.training.train_step import TrainState

Record = Callable[[int, int], contextlib.AbstractContextManager[None]]


def pretrain(
  config: RunConfig,
  workdir: epath.PathLike,
  record: Record = lambda first, last: contextlib.nullcontext(),
  origin: Origin | None = None,
) -> dict[str, Any]:
  """Pre-trains to the end of the recipe, from the last checkpoint or from the start.

  Args:
    config: The recipe.
    workdir: The run directory.
    record: `record(first, last)` returns a context manager; the chunk of the updates `first + 1 ...
      last` runs inside it. `profiler.Recorder.record` is such a function.
    origin: The checkpoint that gives a new run its weights; random weights by default.

  Returns:
    The content of result.json: last losses, tokens, FLOPs and seconds. For a population, it has
    these numbers for each member. Tokens and FLOPs exclude those of the origin.

  Raises:
    LockedError: Another process uses the directory.
    InputError: Corpus, work directory, origin or machine do not fit the recipe.
    DistributedError: An update was not finite, and the recipe stops at non-finite updates.
    OSError: A file of the run could not be written; earlier checkpoints stay.
    signals.InterruptedAfterSave: A signal came, and the run was saved after the chunk.
  """
  with distributed.raise_together():
    origin_record = recovery.resolve_origin(config, workdir, origin)
  run_setup.check_recipe(config, workdir, origin_record)
  with distributed.raise_together():
    program = build_program(config)
  workdir, corpus_folder = distributed.primary_first(
    lambda: run_setup.open_or_create_run(config, workdir, origin_record)
  )
  if (result := run_setup.read_result(config, workdir)) is not None:
    return result
  with run_setup.lock_run(workdir) as check_lock:
    start = recovery.restore_or_init(config, workdir, program)
    with signals.note_signals() as interrupt:
      with _open_outputs(config, workdir, program, corpus_folder, start.lines) as outputs:
        state, active = start.state, start.active
        # A run may have been stopped between its last checkpoint and its result.
        if start.step < config.num_steps:
          state, active = _run_chunks(start, outputs, corpus_folder, check_lock, interrupt, record)
        outputs.evaluate('test', state, active, config.num_steps)
      return distributed.primary_first(lambda: metrics_log.write_result(config, workdir))


def _run_chunks(
  start: recovery.StartPoint,
  outputs: 'Outputs',
  corpus_folder: epath.Path,
  check_lock: Callable[[], None],
  interrupt: signals.SignalFlag,
  record: Record,
) -> tuple[TrainState, list[int]]:
  """Trains to the end of the recipe; returns the state and the members that reached the end."""
  config, program, checkpoints = outputs.config, outputs.program, outputs.checkpoints
  state, active = start.state, start.active
  with (
    open_batches(config, program, corpus_folder) as batches,
    progress.track_progress('pre-training', config.num_steps, 'updates', start.step) as update,
  ):
    with distributed.raise_together():
      run_chunk = compile_chunk(program, batches.spec)
    for chunk in schedule(config, start.step):
      with distributed.raise_together():
        check_lock()
        rows = batches.take(chunk.first, chunk.steps)
      with record(chunk.first, chunk.last):
        started = time.monotonic()
        state, sums, faults = run_chunk(state, rows, step_count(program, chunk.steps))
        sums, faults = distributed.to_host((sums, faults))
        seconds = time.monotonic() - started
      active = recovery.drop_non_finite(
        config, outputs.workdir, checkpoints, state, faults, active, chunk.last
      )
      update(chunk.last, outputs.log_train(chunk, sums, active, seconds))
      loss = outputs.evaluate('validation', state, active, chunk.last) if chunk.evaluate else None
      signal, is_due, is_requested = _poll(interrupt, checkpoints, config.checkpoint.every_minutes)
      if chunk.save or signal or is_due or is_requested:
        checkpoints.save(state, chunk.last, loss)
      checkpoints.settle()
      if signal:
        checkpoints.finish()
        raise signals.InterruptedAfterSave(
          signal, f' at update {chunk.last:,}; saved; the same command resumes from this update'
        )
      if is_requested:
        checkpoints.finish()
        progress.log(f'saved at update {chunk.last:,} after SIGUSR1; the run continues')
  return state, active


@dataclasses.dataclass(frozen=True)
class Chunk:
  """The updates `first + 1 ... last`, and whether an evaluation and a save follow them."""

  first: int
  last: int
  evaluate: bool
  save: bool

  @property
  def steps(self) -> int:
    """Number of updates."""
    return self.last - self.first


def schedule(config: RunConfig, step: int) -> Iterator[Chunk]:
  """Yields the chunks of a run from `step` to its end.

  A chunk ends at a line of the log, at an early evaluation, or at the end of the run.
  """
  while step < config.num_steps:
    next_line = step - step % config.log.every + config.log.every
    last = min(next_line, config.num_steps, *_find_early_evaluation(config.eval, step))
    is_end = last == config.num_steps
    yield Chunk(
      step,
      last,
      is_end or _is_evaluated(config.eval, last),
      is_end or last % config.checkpoint.every == 0,
    )
    step = last


def _find_early_evaluation(config: EvaluationConfig, step: int) -> tuple[int, ...]:
  """Returns the next doubling of `config.first_at`, or nothing from `config.every` on."""
  if not config.first_at or step >= config.every:
    return ()
  return (config.first_at << (step // config.first_at).bit_length(),)


def _is_evaluated(config: EvaluationConfig, step: int) -> bool:
  """Returns whether an evaluation follows a step.

  Evaluations follow multiples of `every` and, before step `every`, doublings of `first_at`.
  """
  if step % config.every == 0:
    return True
  if not config.first_at or step > config.every:
    return False
  multiple, remainder = divmod(step, config.first_at)
  return remainder == 0 and multiple.bit_count() == 1


@dataclasses.dataclass(frozen=True)
class Outputs:
  """The outputs of the loop: log, evaluations and checkpoints.

  Attributes:
    config: The recipe.
    workdir: The run directory.
    program: The compiled functions of the run.
    log: The writer of metrics.jsonl.
    checkpoints: The writer of checkpoints.
    row_length: Tokens of a row of the corpus.
    splits: The evaluated splits on the devices, by name.
  """

  config: RunConfig
  workdir: epath.Path
  program: TrainProgram
  log: metrics_log.MetricsLog
  checkpoints: checkpoint.CheckpointWriter
  row_length: int
  splits: Mapping[str, Corpus]

  def log_train(self, chunk: Chunk, sums: dict[str, Any], active: list[int], seconds: float) -> str:
    """Logs the metrics of a chunk, and returns a line for the progress display."""
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
    """Logs the metrics of a split; returns the mean loss, or None if the corpus lacks the split."""
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
  """Yields the outputs of a run; `lines` are the lines of the log from earlier starts."""
  manifest = read_manifest(corpus_folder)
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
) -> tuple[int, bool, bool]:
  """Returns the signal of any process, or 0, and whether clock or signal ask for a save.

  The clock is that of the first process.
  """
  is_due = minutes > 0 and time.monotonic() - checkpoints.saved_at >= 60 * minutes
  reports = distributed.allgather_ints(interrupt.number, is_due, interrupt.take_save_request())
  numbers, _, requests = zip(*reports, strict=True)
  return max(numbers), bool(reports[0][1]), any(requests)
