"""Starts and recovers runs: from random weights, another run or the newest intact checkpoint.

Also handles non-finite updates.
"""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from minilm_jax.core import distributed, files, paths, progress, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.training import checkpoint, optimizer, population, pretrained, sharding, train_step
from minilm_jax.training.pretrained import Origin
from minilm_jax.training.program import TrainProgram
from minilm_jax.training.train_step import NonFinite, TrainState

T = TypeVar('T')
CORRUPT_SUFFIX = '.corrupt'


@dataclasses.dataclass(frozen=True)
class StartPoint:
  """The point from which a run continues.

  Attributes:
    state: The restored or initial state.
    step: Number of updates of the state; the largest number of any member of a population.
    active: Members at this step; the others stopped at a non-finite update.
    lines: Lines of the log up to this step.
  """

  state: TrainState
  step: int
  active: list[int]
  lines: list[dict[str, Any]]


def resolve_origin(
  config: RunConfig, workdir: epath.PathLike, origin: Origin | None
) -> dict[str, Any]:
  """Returns the field `origin` of the manifest of a new run; {} without an origin, or on resuming.

  Raises:
    InputError: The model does not fit the origin, see `pretrained.check_origin`. The run directory
      has a run from another origin; the origin of a resumed run is not read.
  """
  if origin is None:
    return {}
  if not (epath.Path(workdir) / run_dir.MANIFEST).exists():
    step = pretrained.check_origin(config, origin)
    link = run_dir.link_source(origin.folder, workdir)
    fields = {'checkpoint_step': step, 'optimizer': origin.optimizer}
    return {'checkpoint': origin.folder, **link, **fields}
  stored = _read_origin(workdir)
  if (
    stored is None
    or not paths.is_same(stored.folder, origin.folder)
    or origin.step not in (None, stored.step)
    or origin.optimizer != stored.optimizer
  ):
    raise InputError(
      f'a run from {origin} in {workdir}',
      f'a run from {"random weights" if stored is None else stored}',
      'give another --workdir, or omit --init_from and --init_optimizer to resume this run',
    )
  return {}


def _read_origin(workdir: epath.PathLike) -> Origin | None:
  """Returns the origin in the manifest of a run."""
  record = run_dir.read_origin(workdir)
  if not record:
    return None
  folder = run_dir.find_source(workdir, record, record['checkpoint'])
  return Origin(folder, record['checkpoint_step'], record['optimizer'])


def restore_or_init(config: RunConfig, workdir: epath.Path, program: TrainProgram) -> StartPoint:
  """Restores the newest intact checkpoint of a run, or initializes its state.

  Removes later lines from the log.

  Raises:
    InputError: Some members stopped earlier, and the recipe stops at non-finite updates. The weights
      of the origin have changed since the start.
  """
  saved_step, state = restore_latest(workdir, program.shapes)
  lines = distributed.primary_first(
    lambda: run_dir.keep_lines(
      workdir / run_dir.METRICS,
      lambda line: line['step'] <= (saved_step or 0) and line['split'] != 'test',
    )
  )
  if saved_step is None or state is None:
    state = _init_state(config, workdir, program)
  else:
    progress.log(f'resuming from the checkpoint of update {saved_step:,}')
  member_steps = np.ravel(distributed.to_host(state.step))
  step = int(member_steps.max())
  active = [member for member, member_step in enumerate(member_steps) if member_step == step]
  stopped = len(member_steps) - len(active)
  if stopped and config.nonfinite == 'stop':
    raise InputError(
      f'the run in {workdir}',
      f'{stopped} members with a non-finite update',
      'lower optimizer.learning_rate or set optimizer.clip, and give another --workdir',
    )
  return StartPoint(state, step, active, lines)


def _init_state(config: RunConfig, workdir: epath.Path, program: TrainProgram) -> TrainState:
  """Returns the state before the first step; all members have the weights of an origin."""
  state, origin = program.init(), _read_origin(workdir)
  if origin is None:
    return state
  model, moments = pretrained.load_origin(config, origin, sharding.replicated(program.mesh))
  checksum = pretrained.hash_weights(model)
  distributed.primary_first(lambda: _check_weights(workdir, checksum))
  progress.log(f'starting with the weights of {run_dir.name_origin(workdir)}')

  def start(state: TrainState, model: Any, moments: Any) -> TrainState:
    fresh = state.optimizer
    return dataclasses.replace(
      state,
      model=jax.tree.map(lambda new, old: jnp.broadcast_to(old, new.shape), state.model, model),
      optimizer=fresh if moments is None else optimizer.continue_moments(fresh, moments),
    )

  shardings = jax.tree.map(lambda shape: shape.sharding, program.shapes)
  return jax.jit(start, out_shardings=shardings)(state, model, moments)


def _check_weights(workdir: epath.Path, checksum: str) -> None:
  """Stores the checksum of the weights of the origin, or compares it with the stored one."""
  manifest = files.read_object(workdir / run_dir.MANIFEST, f'the manifest of {workdir}')
  origin = manifest[run_dir.ORIGIN]
  if 'weights' not in origin:
    manifest[run_dir.ORIGIN] = origin | {'weights': checksum}
    files.write_json(workdir / run_dir.MANIFEST, manifest)
  elif origin['weights'] != checksum:
    raise InputError(
      f'the weights of {run_dir.name_origin(workdir)}, from which the run in {workdir} started',
      f'weights with the checksum {checksum[:12]}, not {origin["weights"][:12]}',
      'restore the checkpoint from a copy, or give another --workdir',
    )


def restore_latest(workdir: epath.PathLike, like: T) -> tuple[int | None, T | None]:
  """Restores the newest checkpoint that matches its checksums or, without checksums, is readable.

  Renames corrupt checkpoints and logs their names. With several processes, the first process checks
  the files. An error while all processes read a checkpoint stops all of them.

  Args:
    workdir: The run directory.
    like: Arrays or shapes of the state, as in `checkpoint.restore`.

  Returns:
    Step and state of the checkpoint, or None and None if the run has no checkpoint.

  Raises:
    InputError: The checkpoint does not fit `like`, or matches its checksums and cannot be read.
    OSError: The files of the checkpoint cannot be reached.
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
      _rename_corrupt(workdir, step, error.found)
      continue
    folder = checkpoint.step_folder(workdir, step)
    # A killed process may have saved the checkpoint without checksums.
    if distributed.is_primary() and not checkpoint.has_checksums(folder):
      checkpoint.write_checksums(folder)
    return step, state


def _find_intact_step(workdir: epath.PathLike) -> int | None:
  """Renames corrupt checkpoints, and returns the last step with an intact checkpoint."""
  for step in reversed(checkpoint.list_steps(workdir)):
    damage = (
      checkpoint.find_damage(checkpoint.step_folder(workdir, step))
      if distributed.is_primary()
      else ''
    )
    if not damage:
      return step
    _rename_corrupt(workdir, step, damage)
  return None


def _rename_corrupt(workdir: epath.PathLike, step: int, damage: str) -> None:
  """Renames a checkpoint to `STEP.corrupt`, which no command reads."""
  folder = checkpoint.step_folder(workdir, step)
  renamed = folder.with_name(f'{step}{CORRUPT_SUFFIX}')
  if renamed.exists():
    renamed.rmtree()
  folder.rename(renamed)
  restart = '' if checkpoint.list_steps(workdir) else '; training starts again from update 0'
  progress.log(
    f'the checkpoint of update {step:,} in {workdir} is corrupt: {damage}; '
    f'renamed to {renamed.name}{restart}'
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
    config: The recipe.
    workdir: The run directory.
    checkpoints: The writer of checkpoints.
    state: State after the chunk.
    records: Records of the chunk, on the host.
    active: Members that trained in the chunk.
    step: Number of updates after the chunk.

  Raises:
    DistributedError: An update was not finite, and the recipe stops or no member remains. The state
      before the update is saved.
  """
  remaining, is_population = list(active), config.population.members > 1
  for member in active:
    failed_step, tensor = (int(np.ravel(field)[member]) for field in records)
    if failed_step < 0:
      continue
    model = distributed.to_host(state.model)
    model = population.select_member(model, member) if is_population else model
    of_member = f' of member {member}' if is_population else ''
    update = f'update {failed_step + 1}{of_member}'
    fault = f'{train_step.name_tensor(tensor, model)} is not finite'
    if config.nonfinite == 'skip':
      progress.log(f'{update} is skipped: {fault}')
      continue
    remaining.remove(member)
    if config.nonfinite == 'drop-member' and remaining:
      progress.log(f'{update} is skipped, and the member stops: {fault}')
      continue
    checkpoints.save(state, step if is_population else failed_step)
    checkpoints.finish()
    raise distributed.DistributedError(
      f'a finite {update} in {workdir}',
      f'{fault}; the last checkpoint is the state before this update',
      'lower optimizer.learning_rate, set optimizer.clip, or give --config.nonfinite=skip',
    )
  return remaining
