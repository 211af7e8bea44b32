"""Saves and restores the state of a run with Orbax, and verifies it by checksums.

A state is stored flat, one array a path (`model.encoder.blocks.0.attention.query.kernel`). Storage
does not depend on the sharding, so any mesh can restore the state. A restore is exact, or it fails
and lists the paths that differ.

Every checkpoint has the checksums of its files, so truncated and changed files are detected:

    STEP/checksums.json  {'files': {'default/manifest.ocdbt': {'bytes': 123, 'sha256': '...'}, ...}}

Checksums are written last. A checkpoint lacks them if the process ended before, or if an earlier
version saved it.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from minilm_jax.core import (
  backend,
  distributed,
  files,
  old_names,
  paths,
  progress,
  run_dir,
  signals,
)
from minilm_jax.core.errors import InputError
from minilm_jax.model.initialization import flatten

T = TypeVar('T')
FOLDER = 'checkpoints'
CHECKSUMS = 'checksums.json'
# Errors of Orbax and TensorStore for a full or missing disk, and for a changed file.
_WRITE_ERRORS = (OSError, ValueError, RuntimeError)
_READ_ERRORS = (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError)
# One device writes a replicated array. By default every device writes a slice, by a program that is
# compiled for each shape and slice.
_ARRAY_HANDLER = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)


class _RaiseCause(contextlib.AbstractContextManager[None]):
  """Raises the error of a read in place of the bare Exception in which Orbax wraps it."""

  def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
    if kind is Exception and error.__cause__ is not None:
      raise error.__cause__ from None


class CorruptCheckpointError(InputError):
  """A checkpoint differs from its checksums, or cannot be read."""


@dataclasses.dataclass
class RetentionPolicy(ocp.checkpoint_managers.PreservationPolicy):
  """Keeps the last checkpoints of a run, and the checkpoints with the lowest validation loss.

  Of equal losses, the later checkpoint stays. A checkpoint without a validation loss is never among
  the best. The choice depends only on steps and losses, so a resumed run keeps the same checkpoints
  as an uninterrupted run. Orbax's `BestN` is not used: it may keep checkpoints without a loss, and
  stores losses with the arrays instead of in metrics.jsonl.

  Attributes:
    losses: Validation losses by step, to which the writer adds.
  """

  keep_last: int
  keep_best: int
  losses: dict[int, float]

  def select_steps(self, steps: Sequence[int]) -> set[int]:
    """Returns the steps whose checkpoints stay; `steps` ascend."""
    evaluated = [step for step in steps if step in self.losses]
    best = sorted(evaluated, key=lambda step: (self.losses[step], -step))[: self.keep_best]
    return {*steps[-self.keep_last :], *best}

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    """Returns for each checkpoint, in ascending order of steps, whether it stays."""
    kept = self.select_steps([checkpoint.step for checkpoint in checkpoints])
    return [checkpoint.step in kept for checkpoint in checkpoints]


class CheckpointWriter:
  """Writes the checkpoints of a run in the background; a checkpoint is complete or absent.

  Attributes:
    saved_at: Time of the last save, or of the start, by `time.monotonic()`.
  """

  def __init__(self, manager: ocp.CheckpointManager, policy: RetentionPolicy):
    self.manager, self.saved_at = manager, time.monotonic()
    self._policy = policy
    self._pending: int | None = None  # step of the checkpoint without checksums

  def save(self, state: Any, step: int, loss: float | None = None) -> None:
    """Starts to save a state; does nothing if a checkpoint of this or a later step exists.

    Raises:
      OSError: This or the previous checkpoint could not be written.
    """
    if step in self.manager.all_steps():
      return
    self.finish()
    if loss is not None:
      self._policy.losses[step] = loss
    with _convert_write_errors(f'the checkpoint of update {step:,}'):
      # The next chunk reuses the memory of the state while the copies are written.
      if self.manager.save(step, args=ocp.args.PyTreeSave(_copy(flatten(state)))):
        self._pending, self.saved_at = step, time.monotonic()

  def settle(self) -> None:
    """Writes the checksums of the last checkpoint if it is on disk; does not wait.

    Raises:
      OSError: The checksums could not be written.
    """
    if self._pending is not None and not self.manager.is_saving_in_progress():
      self.finish()

  def finish(self) -> None:
    """Waits until the last checkpoint is on disk, and writes its checksums.

    Raises:
      OSError: The checkpoint could not be written.
    """
    if self._pending is None:
      return
    step, self._pending = self._pending, None
    with _convert_write_errors(f'the checkpoint of update {step:,}'):
      self.manager.wait_until_finished()
      if distributed.is_primary():
        write_checksums(self.manager.directory / str(step))
    backend.release()

  def delete_surplus(self) -> None:
    """Deletes checkpoints outside the policy, which a killed process may leave."""
    steps = sorted(self.manager.all_steps())
    for step in sorted(set(steps) - self._policy.select_steps(steps)):
      self.manager.delete(step)


@contextlib.contextmanager
def open_writer(
  workdir: epath.PathLike, keep_last: int, keep_best: int = 0, losses: Mapping[int, float] = {}
) -> Iterator[CheckpointWriter]:
  """Yields the writer of the checkpoints of a run; after the block, all checkpoints are on disk.

  Args:
    losses: Validation losses of earlier starts, by step.

  Raises:
    OSError: A checkpoint could not be written; earlier checkpoints are unchanged.
  """
  folder = paths.LiteralPath(paths.resolve_links(workdir)) / FOLDER
  policy = RetentionPolicy(keep_last, keep_best, dict(losses))
  options = ocp.CheckpointManagerOptions(
    create=True, cleanup_tmp_directories=True, preservation_policy=policy
  )
  with _convert_write_errors(f'the folder {folder}'):
    handlers = ocp.type_handlers.create_type_handler_registry((jax.Array, _ARRAY_HANDLER))
    manager = ocp.CheckpointManager(
      folder,
      options=options,
      item_handlers=ocp.PyTreeCheckpointHandler(type_handler_registry=handlers),
    )
  writer = CheckpointWriter(manager, policy)
  try:
    with _convert_write_errors(f'the folder {folder}'):
      writer.delete_surplus()
    yield writer
    writer.finish()
  finally:
    # After a failed save, the first call raises the error and the second call ends the threads.
    for _ in range(2):
      with contextlib.suppress(*_WRITE_ERRORS):
        writer.finish()
        manager.close()


@contextlib.contextmanager
def _convert_write_errors(subject: str) -> Iterator[None]:
  """Converts the errors of Orbax and TensorStore to OSError."""
  try:
    yield
  except jax.errors.JaxRuntimeError:  # a failed device or process, not a failed write
    raise
  except _WRITE_ERRORS as error:
    raise OSError(f'{subject} could not be written: {" ".join(str(error).split())}') from error


@jax.jit
def _copy(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Returns copies of arrays."""
  return jax.tree.map(jnp.copy, arrays)


def list_steps(workdir: epath.PathLike) -> list[int]:
  """Returns the steps of the complete checkpoints of a run, in ascending order."""
  names = paths.list_matches(epath.Path(workdir) / FOLDER, '*')
  return sorted(
    int(p.name) for p in names if p.name.isdecimal() and ocp.utils.is_checkpoint_finalized(p)
  )


def latest_step(workdir: epath.PathLike) -> int | None:
  """Returns the step of the last complete checkpoint of a run, or None."""
  return max(list_steps(workdir), default=None)


def resolve_step(workdir: epath.PathLike, step: int | None = None) -> int:
  """Returns `step`, or the step of the last complete checkpoint if `step` is None.

  Raises:
    InputError: The run has no complete checkpoint, or none of the step.
  """
  steps = list_steps(workdir)
  if not steps:
    raise InputError(
      f'the checkpoint of {workdir}',
      'no complete checkpoint',
      'run minilm pretrain, or give another run',
    )
  if step is not None and step not in steps:
    raise InputError(
      f'the checkpoint of step {step} in {workdir}',
      f'checkpoints of the steps {", ".join(map(str, steps))}',
      f'give a saved step, as in {workdir}@{steps[-1]}; checkpoint.keep_last is the number of '
      'checkpoints that a run keeps',
    )
  return steps[-1] if step is None else step


def step_folder(workdir: epath.PathLike, step: int) -> epath.Path:
  """Returns the folder of a checkpoint, without checking that it exists."""
  return paths.LiteralPath(paths.resolve_links(workdir)) / FOLDER / str(step)


def write_checksums(folder: epath.PathLike) -> None:
  """Writes size and SHA-256 of every file of a checkpoint into its folder, atomically."""
  folder = epath.Path(folder)
  checksums = {
    name: {'bytes': files.read_status(file).size, 'sha256': files.hash_file(file)}
    for name, file in sorted(_list_files(folder))
  }
  files.write_json(folder / CHECKSUMS, {'files': checksums})


def has_checksums(folder: epath.PathLike) -> bool:
  """Returns whether a checkpoint has checksums."""
  return old_names.find_file(epath.Path(folder) / CHECKSUMS).exists()


def find_damage(folder: epath.PathLike) -> str:
  """Returns a description of the first file that differs from its checksum, or ''.

  Raises:
    OSError: A file exists and cannot be read.
  """
  folder = epath.Path(folder)
  if not has_checksums(folder):
    return ''
  try:
    record = files.read_json(old_names.find_file(folder / CHECKSUMS), 'checksums')
    checksums = {name: (file['bytes'], file['sha256']) for name, file in record['files'].items()}
  except (InputError, LookupError, TypeError, AttributeError):
    return f'{CHECKSUMS} cannot be read'
  saved_files = dict(_list_files(folder))
  for name, (size, digest) in checksums.items():
    if name not in saved_files:
      return f'{name} is missing'
    length = files.read_status(saved_files[name]).size
    if length != size:
      return f'{name} has {length:,} bytes, but {size} were saved'
    if files.hash_file(saved_files[name]) != digest:
      return f'{name} has another sha256 than the saved file'
  return ''


def _list_files(folder: epath.Path, prefix: str = '') -> Iterator[tuple[str, epath.Path]]:
  """Yields every file below a folder with its relative name, except the checksums."""
  for path in folder.iterdir():
    if path.is_dir():
      yield from _list_files(path, f'{prefix}{path.name}/')
    elif prefix or CHECKSUMS not in path.name:
      yield prefix + path.name, path


def verify(workdir: epath.PathLike, step: int) -> None:
  """Verifies a checkpoint by its checksums; changes nothing.

  Raises:
    CorruptCheckpointError: A file differs. The error names the file and the last intact checkpoint
      before `step`.
  """
  damage = find_damage(step_folder(workdir, step))
  if damage:
    raise _make_corrupt_error(workdir, step, damage)


def _make_corrupt_error(workdir: epath.PathLike, step: int, damage: str) -> CorruptCheckpointError:
  earlier_steps = (earlier for earlier in reversed(list_steps(workdir)) if earlier < step)
  intact = next(
    (earlier for earlier in earlier_steps if not find_damage(step_folder(workdir, earlier))), None
  )
  remedy = 'restore the files from a copy, or train again: no earlier checkpoint is intact'
  if intact is not None:
    remedy = (
      f'give --checkpoint={workdir}@{intact}; or remove {run_dir.RESULT} from {workdir}, '
      f'if it exists, and run minilm pretrain again, which resumes from step {intact}'
    )
  return CorruptCheckpointError(f'the checkpoint of step {step} in {workdir}', damage, remedy)


def restore(workdir: epath.PathLike, like: T, step: int, prefix: str = '') -> T:
  """Restores the state saved at `step`, with the structure and sharding of `like`.

  Args:
    prefix: Restores the part of the state below this path; '' for the whole state.

  Raises:
    CorruptCheckpointError: The checkpoint has no checksums and cannot be read.
    InputError: Checkpoint and `like` differ in paths, shapes or types.
  """
  start, subject = f'{prefix}.' if prefix else '', f'the checkpoint of step {step} in {workdir}'
  targets = {start + name: leaf for name, leaf in flatten(like).items()}
  path = step_folder(workdir, step) / 'default'
  try:
    # Orbax would convert an exception that a signal raises.
    with progress.silence(), signals.note_signals(), ocp.PyTreeCheckpointer() as reader:
      metadata = reader.metadata(path).item_metadata if path.exists() else None
      if metadata is None:
        raise _make_corrupt_error(workdir, step, f'no arrays in {path}')
      saved = {name: x for name, x in metadata.tree.items() if name.startswith(start)}
      _check_same_arrays(f'{prefix} of {subject}' if prefix else subject, saved, targets)
      restore_args = ocp.checkpoint_utils.construct_restore_args(targets)
      arguments = ocp.args.PyTreeRestore(targets, restore_args=restore_args, partial_restore=True)
      with _RaiseCause():
        arrays = reader.restore(path, args=arguments)
  except _READ_ERRORS as error:
    fault = f'cannot be read: {type(error).__name__}: {" ".join(str(error).split())}'
    # The files are intact if they match their checksums, so an earlier checkpoint would not help.
    if has_checksums(step_folder(workdir, step)):
      raise InputError(
        subject, fault, 'use the versions of jax and orbax-checkpoint that saved the checkpoint'
      ) from error
    raise _make_corrupt_error(workdir, step, fault) from error
  return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in targets])


def restore_part(
  workdir: epath.PathLike,
  like: T,
  prefix: str,
  step: int | None = None,
  sharding: jax.sharding.Sharding | None = None,
) -> T:
  """Verifies a checkpoint, and restores its part below a path, such as 'model.encoder'.

  Args:
    sharding: Sharding of all arrays; the first device by default.

  Raises:
    CorruptCheckpointError: A file differs from its checksum.
    InputError: The checkpoint is missing, or its part and `like` differ in paths, shapes or types.
  """
  step = resolve_step(workdir, step)
  verify(workdir, step)
  # This machine may lack the devices of the run.
  sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  targets = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
  return restore(workdir, targets, step, prefix)


def _check_same_arrays(subject: str, saved: dict[str, Any], targets: dict[str, Any]) -> None:
  """Raises InputError if paths, shapes or types differ."""
  actual, expected = (
    {name: (tuple(x.shape), str(x.dtype)) for name, x in tree.items()} for tree in (saved, targets)
  )
  shared = [k for k in expected if k in actual and actual[k] != expected[k]]
  differences = [f'{k} is saved as {actual[k]}, not {expected[k]}' for k in shared]
  differences += [f'{k} is missing' for k in expected if k not in actual]
  differences += [f'{k} is not part of this model' for k in actual if k not in expected]
  if differences:
    more = f'; and {len(differences) - 4} more' if len(differences) > 4 else ''
    raise InputError(
      subject,
      '; '.join(differences[:4]) + more,
      'use the recipe of the checkpoint, and the version of minilm_jax that wrote it',
    )
