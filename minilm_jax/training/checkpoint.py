"""Save, restore, latest: Orbax behind a few functions.

A state is stored flat, one array a path (`model.encoder.blocks.0.attention.query.kernel`), whole and unsharded in
meaning: it comes back on any mesh. Restoring is exact or refused with the paths that differ.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from minilm_jax.errors import InputError
from minilm_jax.model.initialization import path_name

T = TypeVar('T')
FOLDER = 'checkpoints'


def manager(workdir: epath.PathLike, keep: int) -> ocp.CheckpointManager:
  """Writes the checkpoints of a run, in the background; a save is whole or absent. Keeps the last `keep`."""
  folder = epath.Path(workdir).resolve() / FOLDER
  return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(
      max_to_keep=keep, create=True, cleanup_tmp_directories=True))


def flat(state: Any) -> dict[str, Any]:
  """The leaves of a state by path."""
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def save(saves: ocp.CheckpointManager, state: Any, step: int) -> None:
  """Starts saving a TrainState, or that of a population, under a step; nothing happens when that is there already."""
  if step in saves.all_steps():
    return
  # a copy, because the arrays themselves are donated to the next chunk while they are being written
  saves.save(step, args=ocp.args.StandardSave(jax.tree.map(jnp.copy, flat(state))))


def steps(workdir: epath.PathLike) -> list[int]:
  """The steps of a run that were saved whole and are still there, in ascending order."""
  folder = epath.Path(workdir) / FOLDER
  saves = [p for p in folder.iterdir() if p.name.isdecimal()] if folder.exists() else []
  return sorted(int(p.name) for p in saves if ocp.utils.is_checkpoint_finalized(p))


def latest(workdir: epath.PathLike) -> int | None:
  """The last step of a run that was saved whole, or None."""
  return max(steps(workdir), default=None)


def restore(workdir: epath.PathLike, like: T, step: int) -> T:
  """The state saved at `step`, with the structure and sharding of `like` (shapes with shardings are enough).

  Raises:
    InputError: a path is missing, left over, or of another shape or type.
  """
  wanted = flat(like)
  with ocp.StandardCheckpointer() as reader:
    path = _arrays(workdir, step)
    what = f'the checkpoint of step {step} in {workdir}'
    _compare(what, _described(reader, path, what), wanted)
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
    InputError: the run has no such checkpoint, or the part has another shape.
  """
  step = latest(workdir) if step is None else step
  if step is None:
    raise InputError(f'the checkpoint of {workdir}', 'none saved there', 'pre-train first, or give another run')
  wanted = {f'{prefix}.{name}': leaf for name, leaf in flat(like).items()}
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # the run may have had devices that are not here
  targets = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for name, x in wanted.items()}
  with ocp.PyTreeCheckpointer() as reader:
    path = _arrays(workdir, step)
    what = f'{prefix} of the checkpoint of step {step} in {workdir}'
    inside = {name: x for name, x in _described(reader, path, what).items() if name.startswith(prefix + '.')}
    _compare(what, inside, wanted)
    arrays = reader.restore(path, args=ocp.args.PyTreeRestore(
        targets, restore_args=ocp.checkpoint_utils.construct_restore_args(targets), partial_restore=True))
  return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])


def _arrays(workdir: epath.PathLike, step: int) -> epath.Path:
  return epath.Path(workdir).resolve() / FOLDER / str(step) / 'default'


def _described(reader: ocp.Checkpointer, path: epath.Path, what: str) -> dict[str, Any]:
  """Shape and type of every array of a checkpoint."""
  found = reader.metadata(path).item_metadata if path.exists() else None
  if found is None:
    raise InputError(what, f'no arrays in {path}', 'restore that folder, or remove it: an earlier one may be there')
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
