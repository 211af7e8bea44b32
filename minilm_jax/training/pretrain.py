"""Trains a masked language model, or a population of them, chunk by chunk.

The loop takes state, rows, log and checkpoints as values; `run.py` opens them. With several
processes, all of them run this loop together.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from etils import epath

from minilm_jax.core import distributed, progress, signals
from minilm_jax.core.config import EvaluationConfig, RunConfig
from minilm_jax.data.rows import Corpus
from minilm_jax.training import population, train_step
from minilm_jax.training.program import Rows, TrainProgram, compile_chunk, step_count
from minilm_jax.training.train_step import NonFinite, TrainState

ProfileContext = Callable[[int, int], contextlib.AbstractContextManager[None]]


@runtime_checkable
class BatchSource(Protocol):
  """Supplies the rows of chunks, as the classes of `batches.py`."""

  @property
  def spec(self) -> Rows:
    """Arrays, or shapes with shardings, of the rows of a chunk."""
    ...

  def take(self, step: int, count: int) -> Rows:
    """Returns the rows of the chunk of `count` steps after `step`."""
    ...


@runtime_checkable
class Checkpoints(Protocol):
  """Saves states, as `checkpoint.CheckpointWriter`."""

  saved_at: float

  def save(self, state: Any, step: int, loss: float | None = None) -> None:
    """Starts to save a state."""

  def settle(self) -> None:
    """Completes the last checkpoint if it is on disk."""

  def finish(self) -> None:
    """Waits until the last checkpoint is complete."""


@dataclasses.dataclass(frozen=True)
class Outputs:
  """The programs and outputs of a run.

  Attributes:
    write_log: `write_log(split, step, metrics of each member)` returns a summary of the losses.
    splits: The evaluated splits on the devices, by name.
  """

  config: RunConfig
  workdir: epath.Path
  program: TrainProgram
  write_log: Callable[[str, int, Mapping[int, dict[str, float]]], str]
  checkpoints: Checkpoints
  row_length: int
  splits: Mapping[str, Corpus]

  def log_train(
    self, chunk: 'Chunk', sums: dict[str, Any], active: list[int], seconds: float
  ) -> str:
    """Logs the metrics of a chunk, and returns a line for the progress display."""
    members = self.config.population.members
    member_sums = population.unstack(sums, members)
    tokens_per_second = round(chunk.steps * self.config.batch_size * self.row_length / seconds)
    metrics = {
      n: train_step.mean_metrics(member_sums[n]) | {'tokens_per_second': tokens_per_second}
      for n in active
      if member_sums[n]['updates']
    }
    summary = self.write_log('train', chunk.last, metrics)
    return f'{summary}, {members * tokens_per_second:,} tokens/s'

  def evaluate(self, split: str, state: TrainState, active: list[int], step: int) -> float | None:
    """Logs the metrics of a split; returns the mean loss, or None if the corpus lacks the split."""
    if split not in self.splits:
      return None
    metrics = self.program.evaluate(state.model, self.splits[split])
    self.write_log(split, step, {n: metrics[n] for n in active})
    return float(np.mean([metrics[n]['loss'] for n in active]))


def train(
  state: TrainState,
  outputs: Outputs,
  batches: BatchSource,
  check_lock: Callable[[], None],
  interrupt: signals.SignalFlag,
  profile: ProfileContext,
) -> tuple[TrainState, list[int]]:
  """Trains to the end of the recipe; returns the state and the members that reached the end.

  Args:
    interrupt: The first signal, after which the loop saves and ends.
    profile: `profile(first, last)` returns the context of the updates `first + 1 ... last`.

  Raises:
    DistributedError: An update was not finite, and the recipe stops at non-finite updates.
    OSError: A file of the run could not be written; earlier checkpoints stay.
    signals.InterruptedAfterSave: A signal came, and the run was saved after the chunk.
  """
  config, program, checkpoints = outputs.config, outputs.program, outputs.checkpoints
  step, active = find_progress(state)
  with progress.track_progress('pre-training', config.num_steps, 'updates', step) as update:
    with distributed.raise_together():
      run_chunk = compile_chunk(config, program, batches.spec)
    for chunk in schedule(config, step):
      with distributed.raise_together():
        check_lock()
        rows = batches.take(chunk.first, chunk.steps)
      with profile(chunk.first, chunk.last):
        started = time.monotonic()
        state, sums, faults = run_chunk(state, rows, step_count(program, chunk.steps))
        sums, faults = distributed.to_host((sums, faults))
        seconds = time.monotonic() - started
      active = _drop_non_finite(outputs, state, faults, active, chunk.last)
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


def find_progress(state: TrainState) -> tuple[int, list[int]]:
  """Returns the number of updates of a run, and the members that have all of them.

  The other members of a population stopped earlier, at a non-finite update.
  """
  steps = np.ravel(distributed.to_host(state.step))
  return int(steps.max()), np.flatnonzero(steps == steps.max()).tolist()


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
    early_evaluation = _find_early_evaluation(config.eval, step)
    last = min(next_line, config.num_steps, *early_evaluation)
    is_end = last == config.num_steps
    is_evaluated = is_end or last % config.eval.every == 0 or last in early_evaluation
    yield Chunk(step, last, is_evaluated, is_end or last % config.checkpoint.every == 0)
    step = last


def _find_early_evaluation(config: EvaluationConfig, step: int) -> tuple[int, ...]:
  """Returns the next doubling of `config.first_at`, or nothing from `config.every` on."""
  if not config.first_at or step >= config.every:
    return ()
  return (config.first_at << (step // config.first_at).bit_length(),)


def _drop_non_finite(
  outputs: Outputs, state: TrainState, records: NonFinite, active: list[int], step: int
) -> list[int]:
  """Returns the members that continue after a chunk, by the policy for non-finite updates.

  Raises:
    DistributedError: An update was not finite, and the recipe stops or no member remains. The state
      before the update is saved.
  """
  policy, is_population = outputs.config.nonfinite, outputs.config.population.members > 1
  remaining = list(active)
  for member in active:
    failed_step, tensor = (int(np.ravel(field)[member]) for field in records)
    if failed_step < 0:
      continue
    model = distributed.to_host(state.model)
    model = population.select_member(model, member) if is_population else model
    of_member = f' of member {member}' if is_population else ''
    update = f'update {failed_step + 1}{of_member}'
    fault = f'{train_step.name_tensor(tensor, model)} is not finite'
    if policy == 'skip':
      progress.log(f'{update} is skipped: {fault}')
      continue
    remaining.remove(member)
    if policy == 'drop-member' and remaining:
      progress.log(f'{update} is skipped, and the member stops: {fault}')
      continue
    outputs.checkpoints.save(state, step if is_population else failed_step)
    outputs.checkpoints.finish()
    raise distributed.DistributedError(
      f'a finite {update} in {outputs.workdir}',
      f'{fault}; the last checkpoint is the state before this update',
      'lower optimizer.learning_rate, set optimizer.clip, or give --config.nonfinite=skip, and give '
      'another --workdir',
    )
  return remaining


def _poll(
  interrupt: signals.SignalFlag, checkpoints: Checkpoints, minutes: float
) -> tuple[int, bool, bool]:
  """Returns the signal of any process, or 0, and whether clock or signal ask for a save.

  The clock is that of the first process.
  """
  is_due = minutes > 0 and time.monotonic() - checkpoints.saved_at >= 60 * minutes
  reports = distributed.allgather_ints(interrupt.number, is_due, interrupt.take_save_request())
  numbers, _, requests = zip(*reports, strict=True)
  return max(numbers), bool(reports[0][1]), any(requests)
