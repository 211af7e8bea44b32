"""Save, restore, latest: Orbax behind a few functions.

A state is stored flat, one array a path (`model.encoder.blocks.0.attention.query.kernel`), whole and unsharded in
meaning: it comes back on any mesh. Restoring is exact or refused with the paths that differ. Every save gets its hashes
(`digests`): one that was damaged is named, and the one before it is used.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from minilm_jax import backend, hosts, run, signals
from minilm_jax.errors import InputError
from minilm_jax.model.initialization import path_name
from minilm_jax.training import digests, preservation

T = TypeVar('T')
FOLDER = 'checkpoints'
_UNWRITTEN = (OSError, ValueError, RuntimeError)  # what Orbax and TensorStore raise where a disk is full or gone
_UNREADABLE = (FileNotFoundError, ValueError, LookupError, TypeError)  # and where a file is not what it was


class Damaged(InputError):
  """A checkpoint is not what was saved."""


@dataclasses.dataclass
class Saves:
  """The checkpoints of a run that is being trained.

  `losses` are the validation losses by step, `pending` is the step whose digests are still to be written, and `began`
  when the last save did, or the run, by `time.monotonic()`.
  """

  manager: ocp.CheckpointManager
  losses: dict[int, float]
  pending: int | None
  began: float


@contextlib.contextmanager
def manager(workdir: epath.PathLike, keep: int, best: int = 0, losses: Mapping[int, float] = {}) -> Iterator[Saves]:
  """Writes the checkpoints of a run, in the background; a save is whole or absent. At its end all are on disk.

  Args:
    workdir: of the run.
    keep, best: the last so many stay, and so many with the lowest validation loss.
    losses: those that an earlier start has taken, by step.

  Raises:
    OSError: a checkpoint could not be written; those before it are as they were.
  """
  folder, losses = epath.Path(workdir).resolve() / FOLDER, dict(losses)
  policy = preservation.policy(keep, best, losses)
  options = ocp.CheckpointManagerOptions(create=True, cleanup_tmp_directories=True, preservation_policy=policy)
  with _writing(f'the folder {folder}'):
    made = ocp.CheckpointManager(folder, options=options)
  saves = Saves(made, losses, None, time.monotonic())
  try:
    with _writing(f'the folder {folder}'):
      preservation.clear(made, policy)
    yield saves
    finish(saves)
  finally:
    for _ in range(2):  # a save that has failed is told of once, and only then are its threads let go
      with contextlib.suppress(*_UNWRITTEN):
        finish(saves)
        made.close()


@contextlib.contextmanager
def _writing(what: str) -> Iterator[None]:
  """Makes one kind of error of what libraries raise."""
  try:
    yield
  except jax.errors.JaxRuntimeError:  # of a device, or of a process that has gone
    raise
  except _UNWRITTEN as error:
    raise OSError(f'{what} could not be written: {" ".join(str(error).split())}') from error


def flat(state: Any) -> dict[str, Any]:
  """The leaves of a state by path."""
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def save(saves: Saves, state: Any, step: int, loss: float | None = None) -> None:
  """Starts saving a TrainState, or that of a population, under a step; nothing happens where that or a later one is.

  `loss` is that on the validation split, where it was taken after this very step.

  Raises:
    OSError: this save, or the one before it, could not be written.
  """
  if step in saves.manager.all_steps():
    return
  finish(saves)
  if loss is not None:
    saves.losses[step] = loss
  with _writing(f'the checkpoint of update {step:,}'):
    # a copy, because the arrays themselves are donated to the next chunk while they are being written
    if saves.manager.save(step, args=ocp.args.StandardSave(jax.tree.map(jnp.copy, flat(state)))):
      saves.pending, saves.began = step, time.monotonic()


def settle(saves: Saves) -> None:
  """Writes the digests of the last save if it is on disk by now; waits for nothing.

  Raises:
    OSError: it could not be written.
  """
  if saves.pending is not None and not saves.manager.is_saving_in_progress():
    finish(saves)


def finish(saves: Saves) -> None:
  """Waits until the last save is on disk, and writes its digests: before another one may delete what it replaces.

  Raises:
    OSError: it could not be written.
  """
  if saves.pending is None:
    return
  step, saves.pending = saves.pending, None
  with _writing(f'the checkpoint of update {step:,}'):
    saves.manager.wait_until_finished()
    if hosts.leads():
      digests.write(saves.manager.directory / str(step))
  backend.release()


def steps(workdir: epath.PathLike) -> list[int]:
  """The steps of a run that were saved whole and are still there, in ascending order."""
  saves = (epath.Path(workdir) / FOLDER).glob('*')  # of a folder that is missing there are none
  return sorted(int(p.name) for p in saves if p.name.isdecimal() and ocp.utils.is_checkpoint_finalized(p))


def latest(workdir: epath.PathLike) -> int | None:
  """The last step of a run that was saved whole, or None."""
  return max(steps(workdir), default=None)


def check(workdir: epath.PathLike, step: int) -> None:
  """Checks a checkpoint by its digests, for who only reads it.

  Raises:
    Damaged: a file is not as it was; says which, and which checkpoint before it is whole.
  """
  found = digests.damage(folder_of(workdir, step))
  if found:
    raise _damaged(workdir, step, found)


def _damaged(workdir: epath.PathLike, step: int, found: str) -> Damaged:
  whole = (one for one in reversed(steps(workdir)) if one < step and not digests.damage(folder_of(workdir, one)))
  earlier = next(whole, None)
  remedy = ('bring it back from a copy, or train again: none before it is whole' if earlier is None else
            f'give {workdir}@{earlier} where a verb takes a step; or remove {run.RESULT} there, where it is, and '
            f'pre-train again, which goes on from step {earlier}')
  return Damaged(f'the checkpoint of step {step} in {workdir}', found, remedy)


def restore(workdir: epath.PathLike, like: T, step: int) -> T:
  """The state saved at `step`, with the structure and sharding of `like` (shapes with shardings are enough).

  Raises:
    Damaged: it cannot be read, and has no digests by which it would be whole.
    InputError: a path is missing, left over, or of another shape or type.
  """
  wanted = flat(like)
  with _reading(workdir, step), ocp.StandardCheckpointer() as reader:
    path = folder_of(workdir, step) / 'default'
    _compare(f'the checkpoint of step {step} in {workdir}', _described(reader, path, workdir, step), wanted)
    arrays = reader.restore(path, wanted)
  return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])


def restore_under(workdir: epath.PathLike, like: T, prefix: str, step: int | None = None) -> T:
  """The part of a run's checkpoint whose paths begin with `prefix`, such as 'model.encoder', shaped like `like`.

  Args:
    workdir: of the run.
    like: arrays or shapes.
    prefix: of the paths.
    step: of the checkpoint; the latest if not given.

  Raises:
    Damaged: a file of it is not what was saved.
    InputError: the run has no such checkpoint, or the part has another shape.
  """
  step = latest(workdir) if step is None else step
  if step is None:
    raise InputError(f'the checkpoint of {workdir}', 'none saved there', 'pre-train first, or give another run')
  check(workdir, step)
  wanted = {f'{prefix}.{name}': leaf for name, leaf in flat(like).items()}
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # the run may have had devices that are not here
  targets = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for name, x in wanted.items()}
  with _reading(workdir, step), ocp.PyTreeCheckpointer() as reader:
    path = folder_of(workdir, step) / 'default'
    there = _described(reader, path, workdir, step)
    inside = {name: x for name, x in there.items() if name.startswith(prefix + '.')}
    _compare(f'{prefix} of the checkpoint of step {step} in {workdir}', inside, wanted)
    arrays = reader.restore(path, args=ocp.args.PyTreeRestore(
        targets, restore_args=ocp.checkpoint_utils.construct_restore_args(targets), partial_restore=True))
  return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])


def folder_of(workdir: epath.PathLike, step: int) -> epath.Path:
  """Where a checkpoint is, or would be."""
  return epath.Path(workdir).resolve() / FOLDER / str(step)


@contextlib.contextmanager
def _reading(workdir: epath.PathLike, step: int) -> Iterator[None]:
  """Makes one kind of error of what libraries raise."""
  try:
    with signals.noted():  # where one is raised while it reads, Orbax makes an error of its own of it
      yield
  except _UNREADABLE as error:
    found = f'it cannot be read: {type(error).__name__}: {" ".join(str(error).split())}'
    if digests.written(folder_of(workdir, step)):  # its bytes are as they were, so that setting it aside helps nobody
      raise InputError(f'the checkpoint of step {step} in {workdir}', found,
                       'read it with the versions of jax and orbax-checkpoint that it was made with') from error
    raise _damaged(workdir, step, found) from error


def _described(reader: ocp.Checkpointer, path: epath.Path, workdir: epath.PathLike, step: int) -> dict[str, Any]:
  """Shape and type of every array of a checkpoint."""
  found = reader.metadata(path).item_metadata if path.exists() else None
  if found is None:
    raise _damaged(workdir, step, f'no arrays in {path}')
  return found.tree


def _compare(what: str, there: dict[str, Any], here: dict[str, Any]) -> None:
  """Raises where paths, shapes or types differ; values are whatever has a shape and a dtype."""
  found, wanted = ({name: (tuple(x.shape), str(x.dtype)) for name, x in tree.items()} for tree in (there, here))
  differing = [f'{k} is {found[k]} there and {wanted[k]} here' for k in wanted if k in found and found[k] != wanted[k]]
  differing += [f'{k} is missing there' for k in wanted if k not in found]
  differing += [f'{k} is not part of this model' for k in found if k not in wanted]
  if differing:
    more = f'; and {len(differing) - 4} more' if len(differing) > 4 else ''
    raise InputError(what, '; '.join(differing[:4]) + more, 'use the recipe that the checkpoint was made with')
