"""Saves and restores the state of a run with Orbax, and verifies it by checksums.

A state is stored flat, one array a path (`model.encoder.blocks.0.attention.query.kernel`),
independent of its sharding: it can be restored on any mesh. A restore is exact, or it is refused
with the paths that differ.

Every checkpoint has the checksums of its files, so that a truncated or changed file is detected:

    STEP/checksums.json  {'files': {'default/manifest.ocdbt': {'bytes': 123, 'sha256': '...'}, ...}}

They are written last. A checkpoint without them was saved by a process that ended before that, or
by an earlier version.
"""

import contextlib
import dataclasses
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from minilm_jax.core import backend, distributed, files, old_names, progress, run_dir, signals
from minilm_jax.core.errors import InputError
from minilm_jax.model.initialization import path_name

T = TypeVar('T')
FOLDER = 'checkpoints'
CHECKSUMS = 'checksums.json'
# Errors of Orbax and TensorStore: on a disk that is full or gone, and on a changed file.
_WRITE_ERRORS = (OSError, ValueError, RuntimeError)
_READ_ERRORS = (FileNotFoundError, ValueError, LookupError, TypeError)


class CorruptCheckpointError(InputError):
  """A checkpoint differs from what was saved."""


@dataclasses.dataclass
class RetentionPolicy(ocp.checkpoint_managers.PreservationPolicy):
  """Keeps the last checkpoints of a run, and those with the lowest validation loss.

  Ties keep the later checkpoint; checkpoints without a validation loss do not count as best. The
  choice depends only on the steps and their losses, so that a run that was stopped keeps what it
  would have kept. Orbax's `BestN` keeps checkpoints without a loss too while there are few, and
  stores losses beside the arrays; ours are in metrics.jsonl.

  Attributes:
    keep_last: number of last checkpoints.
    keep_best: number of checkpoints with the lowest loss.
    losses: validation losses by step; may grow while the policy is in use.
  """

  keep_last: int
  keep_best: int
  losses: Mapping[int, float]

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    """Returns for each checkpoint, in ascending order of steps, whether it stays."""
    latest = ocp.checkpoint_managers.LatestN(self.keep_last)
    is_latest = latest.should_preserve(checkpoints, context=context)
    evaluated = [checkpoint.step for checkpoint in checkpoints if checkpoint.step in self.losses]
    best = sorted(evaluated, key=lambda step: (self.losses[step], -step))[: self.keep_best]
    is_best = [checkpoint.step in best for checkpoint in checkpoints]
    return [any(reasons) for reasons in zip(is_latest, is_best, strict=True)]


class CheckpointWriter:
  """Writes the checkpoints of a run in the background; a checkpoint is whole or absent.

  Attributes:
    manager: of Orbax.
    saved_at: time of the last save, or of the start, by `time.monotonic()`.
  """

  def __init__(self, manager: ocp.CheckpointManager, losses: dict[int, float]):
    self.manager, self.saved_at = manager, time.monotonic()
    self._losses = losses
    self._pending: int | None = None  # the step whose checksums are still to be written

  def save(self, state: Any, step: int, loss: float | None = None) -> None:
    """Starts to save a state; does nothing if a checkpoint of this step or of a later one exists.

    Args:
      state: a TrainState, or that of a population.
      step: its number of updates.
      loss: on the validation split, if it was computed after this step.

    Raises:
      OSError: this checkpoint, or the one before it, could not be written.
    """
    if step in self.manager.all_steps():
      return
    self.finish()
    if loss is not None:
      self._losses[step] = loss
    with _writing(f'the checkpoint of update {step:,}'):
      # the next chunk takes the arrays themselves while the copies are written
      copies = jax.tree.map(jnp.copy, flatten(state))
      if self.manager.save(step, args=ocp.args.StandardSave(copies)):
        self._pending, self.saved_at = step, time.monotonic()

  def settle(self) -> None:
    """Writes the checksums of the last checkpoint if it is on disk by now; does not wait.

    Raises:
      OSError: they could not be written.
    """
    if self._pending is not None and not self.manager.is_saving_in_progress():
      self.finish()

  def finish(self) -> None:
    """Waits until the last checkpoint is on disk, and writes its checksums.

    Raises:
      OSError: it could not be written.
    """
    if self._pending is None:
      return
    step, self._pending = self._pending, None
    with _writing(f'the checkpoint of update {step:,}'):
      self.manager.wait_until_finished()
      if distributed.is_primary():
        write_checksums(self.manager.directory / str(step))
    backend.release()

  def delete_surplus(self, policy: RetentionPolicy) -> None:
    """Deletes checkpoints that the policy does not keep, which a killed process may leave."""
    checkpoints = [types.SimpleNamespace(step=step) for step in sorted(self.manager.all_steps())]
    context = ocp.checkpoint_managers.PreservationContext()
    is_kept = policy.should_preserve(checkpoints, context=context)
    for checkpoint, stays in zip(checkpoints, is_kept, strict=True):
      if not stays:
        self.manager.delete(checkpoint.step)


@contextlib.contextmanager
def open_writer(
  workdir: epath.PathLike, keep_last: int, keep_best: int = 0, losses: Mapping[int, float] = {}
) -> Iterator[CheckpointWriter]:
  """Yields the writer of a run's checkpoints; at the end of the block all are on disk.

  Args:
    workdir: of the run.
    keep_last: number of last checkpoints that stay.
    keep_best: number of checkpoints with the lowest validation loss that stay.
    losses: validation losses of an earlier start, by step.

  Raises:
    OSError: a checkpoint could not be written; earlier ones are unchanged.
  """
  folder, losses = epath.Path(workdir).resolve() / FOLDER, dict(losses)
  policy = RetentionPolicy(keep_last, keep_best, losses)
  options = ocp.CheckpointManagerOptions(
    create=True, cleanup_tmp_directories=True, preservation_policy=policy
  )
  with _writing(f'the folder {folder}'):
    manager = ocp.CheckpointManager(folder, options=options)
  writer = CheckpointWriter(manager, losses)
  try:
    with _writing(f'the folder {folder}'):
      writer.delete_surplus(policy)
    yield writer
    writer.finish()
  finally:
    # the first call after a failed save raises its error; the second one ends the threads
    for _ in range(2):
      with contextlib.suppress(*_WRITE_ERRORS):
        writer.finish()
        manager.close()


@contextlib.contextmanager
def _writing(what: str) -> Iterator[None]:
  """Turns the errors of Orbax and TensorStore into OSError."""
  try:
    yield
  except jax.errors.JaxRuntimeError:  # of a device, or of a process that has gone
    raise
  except _WRITE_ERRORS as error:
    raise OSError(f'{what} could not be written: {" ".join(str(error).split())}') from error


def flatten(state: Any) -> dict[str, Any]:
  """Returns the leaves of a state by path."""
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def list_steps(workdir: epath.PathLike) -> list[int]:
  """Returns the steps of the complete checkpoints of a run, in ascending order."""
  paths = (epath.Path(workdir) / FOLDER).glob('*')  # none if the folder is missing
  return sorted(
    int(p.name) for p in paths if p.name.isdecimal() and ocp.utils.is_checkpoint_finalized(p)
  )


def latest_step(workdir: epath.PathLike) -> int | None:
  """Returns the step of the last complete checkpoint of a run, or None."""
  return max(list_steps(workdir), default=None)


def resolve_step(workdir: epath.PathLike, step: int | None = None) -> int:
  """Returns a step, or that of the last complete checkpoint if it is None.

  Raises:
    InputError: the run has no complete checkpoint.
  """
  step = latest_step(workdir) if step is None else step
  if step is None:
    raise InputError(
      f'the checkpoint of {workdir}', 'none saved there', 'pre-train first, or give another run'
    )
  return step


def step_folder(workdir: epath.PathLike, step: int) -> epath.Path:
  """Returns the folder of a checkpoint, which need not exist."""
  return epath.Path(workdir).resolve() / FOLDER / str(step)


def write_checksums(folder: epath.PathLike) -> None:
  """Writes size and SHA-256 of every file of a checkpoint into its folder, atomically."""
  folder = epath.Path(folder)
  checksums = {
    name: {'bytes': file.stat().length, 'sha256': files.hash_file(file)}
    for name, file in sorted(_files(folder))
  }
  files.write_json(folder / CHECKSUMS, {'files': checksums})


def has_checksums(folder: epath.PathLike) -> bool:
  """Returns whether a checkpoint has its checksums."""
  return old_names.find_file(epath.Path(folder) / CHECKSUMS).exists()


def find_damage(folder: epath.PathLike) -> str:
  """Returns a description of the first file that differs from its checksum, or ''.

  Raises:
    OSError: a file exists and cannot be read.
  """
  folder = epath.Path(folder)
  if not has_checksums(folder):
    return ''
  try:
    record = files.read_json(old_names.find_file(folder / CHECKSUMS), 'checksums')
    checksums = {name: (file['bytes'], file['sha256']) for name, file in record['files'].items()}
  except (InputError, LookupError, TypeError, AttributeError):
    return f'{CHECKSUMS} cannot be read'
  paths = dict(_files(folder))
  for name, (size, digest) in checksums.items():
    if name not in paths:
      return f'{name} is missing'
    length = paths[name].stat().length
    if length != size:
      return f'{name} has {length:,} bytes, and had {size}'
    if files.hash_file(paths[name]) != digest:
      return f'{name} has other bytes than when it was saved'
  return ''


def _files(folder: epath.Path, prefix: str = '') -> Iterator[tuple[str, epath.Path]]:
  """Yields every file below a folder with its relative name, except the checksums."""
  for path in folder.iterdir():
    if path.is_dir():
      yield from _files(path, f'{prefix}{path.name}/')
    elif prefix or CHECKSUMS not in path.name:
      yield prefix + path.name, path


def verify(workdir: epath.PathLike, step: int) -> None:
  """Verifies a checkpoint by its checksums, and changes nothing.

  Raises:
    CorruptCheckpointError: a file differs; names it, and the last intact checkpoint before it.
  """
  damage = find_damage(step_folder(workdir, step))
  if damage:
    raise _corrupt(workdir, step, damage)


def _corrupt(workdir: epath.PathLike, step: int, damage: str) -> CorruptCheckpointError:
  earlier_steps = (earlier for earlier in reversed(list_steps(workdir)) if earlier < step)
  intact = next(
    (earlier for earlier in earlier_steps if not find_damage(step_folder(workdir, earlier))), None
  )
  remedy = 'restore it from a copy, or train again: none before it is intact'
  if intact is not None:
    remedy = (
      f'give {workdir}@{intact} where a command takes a step; or remove {run_dir.RESULT} there, '
      f'if it exists, and pre-train again, which resumes from step {intact}'
    )
  return CorruptCheckpointError(f'the checkpoint of step {step} in {workdir}', damage, remedy)


def restore(workdir: epath.PathLike, like: T, step: int) -> T:
  """Restores the state saved at `step`, with the structure and sharding of `like`.

  `like` may have shapes with shardings in place of arrays.

  Raises:
    CorruptCheckpointError: it cannot be read, and has no checksums.
    InputError: a path is missing, left over, or of another shape or type.
  """
  targets = flatten(like)
  with _reading(workdir, step), ocp.StandardCheckpointer() as reader:
    path = step_folder(workdir, step) / 'default'
    _check_same_arrays(
      f'the checkpoint of step {step} in {workdir}', _metadata(reader, path, workdir, step), targets
    )
    arrays = reader.restore(path, targets)
  return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in targets])


def restore_part(workdir: epath.PathLike, like: T, prefix: str, step: int | None = None) -> T:
  """Restores the part of a checkpoint below a path, such as 'model.encoder', onto the first device.

  Args:
    workdir: of the run.
    like: arrays or shapes, whose structure the result has.
    prefix: of the paths.
    step: of the checkpoint; the latest by default.

  Raises:
    CorruptCheckpointError: a file differs from what was saved.
    InputError: there is no such checkpoint, or the part has other arrays.
  """
  step = resolve_step(workdir, step)
  verify(workdir, step)
  # the devices of the run may not be here
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  targets = {
    f'{prefix}.{name}': jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)
    for name, x in flatten(like).items()
  }
  with _reading(workdir, step), ocp.PyTreeCheckpointer() as reader:
    path = step_folder(workdir, step) / 'default'
    metadata = _metadata(reader, path, workdir, step)
    part = {name: x for name, x in metadata.items() if name.startswith(prefix + '.')}
    _check_same_arrays(f'{prefix} of the checkpoint of step {step} in {workdir}', part, targets)
    restore_args = ocp.checkpoint_utils.construct_restore_args(targets)
    arguments = ocp.args.PyTreeRestore(targets, restore_args=restore_args, partial_restore=True)
    arrays = reader.restore(path, args=arguments)
  return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in targets])


@contextlib.contextmanager
def _reading(workdir: epath.PathLike, step: int) -> Iterator[None]:
  """Turns the errors of Orbax and TensorStore into ours, and disables the logging of Orbax."""
  try:
    # Orbax would turn an exception of a signal into an error of its own
    with progress.silence(), signals.note_signals():
      yield
  except _READ_ERRORS as error:
    found = f'it cannot be read: {type(error).__name__}: {" ".join(str(error).split())}'
    # with intact bytes, setting it aside would not help
    if has_checksums(step_folder(workdir, step)):
      raise InputError(
        f'the checkpoint of step {step} in {workdir}',
        found,
        'read it with the versions of jax and orbax-checkpoint that saved it',
      ) from error
    raise _corrupt(workdir, step, found) from error


def _metadata(
  reader: ocp.Checkpointer, path: epath.Path, workdir: epath.PathLike, step: int
) -> dict[str, Any]:
  """Returns shape and type of every array of a checkpoint."""
  metadata = reader.metadata(path).item_metadata if path.exists() else None
  if metadata is None:
    raise _corrupt(workdir, step, f'no arrays in {path}')
  return metadata.tree


def _check_same_arrays(what: str, saved: dict[str, Any], targets: dict[str, Any]) -> None:
  """Raises InputError where paths, shapes or types differ."""
  there, here = (
    {name: (tuple(x.shape), str(x.dtype)) for name, x in tree.items()} for tree in (saved, targets)
  )
  shared = [k for k in here if k in there and there[k] != here[k]]
  differences = [f'{k} is {there[k]} there and {here[k]} here' for k in shared]
  differences += [f'{k} is missing there' for k in here if k not in there]
  differences += [f'{k} is not part of this model' for k in there if k not in here]
  if differences:
    more = f'; and {len(differences) - 4} more' if len(differences) > 4 else ''
    raise InputError(
      what, '; '.join(differences[:4]) + more, 'use the recipe that the checkpoint was made with'
    )
