"""Recovers runs: resumes from the newest intact checkpoint, and handles non-finite updates."""

import dataclasses
from typing import Any, TypeVar

import numpy as np
from etils import epath

from minilm_jax.core import distributed, progress, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.training import checkpoint, population, train_step
from minilm_jax.training.program import TrainProgram
from minilm_jax.training.train_step import NonFinite, TrainState

T = TypeVar('T')
CORRUPT_SUFFIX = '.corrupt'


@dataclasses.dataclass(frozen=True)
class StartPoint:
  """The point from which a run continues.

  Attributes:
    state: restored or initial.
    step: of the state; of a population that of its members ahead.
    active: the members that are not behind this step.
    lines: of the log up to this step.
  """

  state: TrainState
  step: int
  active: list[int]
  lines: list[dict[str, Any]]


def restore_or_init(config: RunConfig, workdir: epath.Path, program: TrainProgram) -> StartPoint:
  """Restores the newest intact checkpoint of a run, or initializes its state.

  Removes later lines of the log.

  Raises:
    InputError: members have stopped before that step, and the recipe stops at non-finite updates.
  """
  saved_step, state = restore_latest(workdir, program.shapes)
  lines = distributed.primary_first(
    lambda: run_dir.keep_lines(
      workdir / run_dir.METRICS,
      lambda line: line['step'] <= (saved_step or 0) and line['split'] != 'test',
    )
  )
  if saved_step is None or state is None:
    state = program.init()
  else:
    progress.log(f'resuming from the checkpoint of update {saved_step:,}')
  member_steps = np.ravel(distributed.to_host(state.step))
  step = int(member_steps.max())
  active = [member for member, member_step in enumerate(member_steps) if member_step == step]
  stopped = len(member_steps) - len(active)
  if stopped and config.nonfinite == 'stop':
    raise InputError(
      f'the run in {workdir}',
      f'{stopped} members had an update that was not finite',
      'lower optimizer.learning_rate or set optimizer.clip, in another --workdir',
    )
  return StartPoint(state, step, active, lines)


def restore_latest(workdir: epath.PathLike, like: T) -> tuple[int | None, T | None]:
  """Restores the newest checkpoint that is intact by its checksums, or readable without them.

  Corrupt checkpoints are set aside with a message. With several processes, the first one checks the
  files; a checkpoint that fails only while all of them read it stops them.

  Args:
    workdir: of the run.
    like: as in `checkpoint.restore`.

  Returns:
    Its step and its state; None and None if the run has none.

  Raises:
    InputError: it does not fit `like`, or is intact and cannot be read.
    OSError: its files cannot be reached.
  """
  while True:
    step = distributed.primary_first(lambda: _find_intact_step(workdir))
    distributed.assert_equal('the last checkpoint', str(step))
    if step is None:
      return None, None
    try:
      with distributed.raise_together():
        state = checkpoint.restore(workdir, like, step)
    except checkpoint.CorruptCheckpointError as error:
      _set_aside(workdir, step, error.found)
      continue
    folder = checkpoint.step_folder(workdir, step)
    # a process that was killed may not have written them
    if distributed.is_primary() and not checkpoint.has_checksums(folder):
      checkpoint.write_checksums(folder)
    return step, state


def _find_intact_step(workdir: epath.PathLike) -> int | None:
  """Returns the last step with an intact checkpoint, after setting corrupt ones aside."""
  for step in reversed(checkpoint.list_steps(workdir)):
    damage = (
      checkpoint.find_damage(checkpoint.step_folder(workdir, step))
      if distributed.is_primary()
      else ''
    )
    if not damage:
      return step
    _set_aside(workdir, step, damage)
  return None


def _set_aside(workdir: epath.PathLike, step: int, damage: str) -> None:
  """Renames a checkpoint to `STEP.corrupt`, which no command reads."""
  folder = checkpoint.step_folder(workdir, step)
  aside = folder.with_name(f'{step}{CORRUPT_SUFFIX}')
  if aside.exists():
    aside.rmtree()
  folder.rename(aside)
  restart = (
    ''
    if checkpoint.list_steps(workdir)
    else '; no other checkpoint is left, and training starts again'
  )
  progress.log(
    f'the checkpoint of update {step:,} in {workdir} is corrupt: {damage}; '
    f'it is set aside as {aside.name}'
    f'{restart}'
  )


def drop_non_finite(
  config: RunConfig,
  workdir: epath.Path,
  checkpoints: checkpoint.CheckpointWriter,
  state: TrainState,
  records: NonFinite,
  active: list[int],
  step: int,
) -> list[int]:
  """Returns the members that continue after a chunk, by the policy for non-finite updates.

  Args:
    config: the recipe.
    workdir: of the run.
    checkpoints: the writer of the run.
    state: after the chunk.
    records: of the chunk, on the host.
    active: members before the chunk.
    step: of the run, after the chunk.

  Raises:
    DistributedError: an update was not finite, and the recipe stops or no member is left; the state
      is saved.
  """
  remaining, is_population = list(active), config.population.members > 1
  for member in active:
    failed_step, tensor = (int(np.ravel(field)[member]) for field in records)
    if failed_step < 0:
      continue
    model = distributed.to_host(state.model)
    model = population.select_member(model, member) if is_population else model
    of_member = f' of member {member}' if is_population else ''
    what = f'update {failed_step + 1}{of_member}'
    found = f'{train_step.name_tensor(tensor, model)} is not finite'
    if config.nonfinite == 'skip':
      progress.log(f'{what} is skipped: {found}')
      continue
    remaining.remove(member)
    if config.nonfinite == 'drop-member' and remaining:
      progress.log(f'{what} is skipped, and the member stops: {found}')
      continue
    checkpoints.save(state, step if is_population else failed_step)
    checkpoints.finish()
    raise distributed.DistributedError(
      f'a finite {what} in {workdir}',
      f'{found}; the last checkpoint is of the state before it',
      'lower optimizer.learning_rate, set optimizer.clip, or give --config.nonfinite=skip',
    )
  return remaining
