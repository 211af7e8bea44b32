"""What the members that run together have reached in their fine-tuning, in one file: a stop costs a
minute of it.

The file holds arrays and a line of JSON; nothing is unpickled. It is whole or absent, and one that
is damaged, or of other members, counts as absent: they start again. It goes when they have ended.
"""

import dataclasses
import io
import json
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from minilm_jax.core import files, old_names, signals
from minilm_jax.tasks.finetune_results import EpochResult, MemberSpec
from minilm_jax.tasks.finetune_step import MemberState
from minilm_jax.training import population

STATE_FILE = '.finetune_state.npz'
SAVE_SECONDS = 60.0  # between two saves
_WARNED = 'said'  # the name of the JSON among the arrays


@dataclasses.dataclass
class FinetuneState:
  """How far members have come: after `step` updates; `totals` has the losses since the epoch began,
  summed.
  """

  member: MemberState
  step: int
  totals: Float[np.ndarray, 'P']
  kept: list[dict[str, EpochResult]]  # of each member, by what is reported
  best: list[float]  # the epoch that was best on what is held out
  going: set[int]


def init_state(member: MemberState, members: int) -> FinetuneState:
  """Before the first update."""
  places = len(member.state.seed)
  return FinetuneState(
    member, 0, np.zeros(places), [{} for _ in range(members)], [0.0] * members, set(range(members))
  )


def save_state(
  workdir: epath.PathLike, entries: Sequence[MemberSpec], reached: FinetuneState
) -> None:
  """Writes what the members have reached, in place of what they had before."""
  arrays = {
    f'member {n}': np.asarray(leaf) for n, leaf in enumerate(jax.tree.leaves(reached.member))
  }
  arrays['totals'] = reached.totals
  kept = []
  for number, own in enumerate(reached.kept):
    kept.append(
      {
        which: {
          'epoch': one.epoch,
          'selection': repr(one.selection),
          'model': one.model is not None,
        }
        for which, one in own.items()
      }
    )
    for which, one in own.items():
      arrays |= {f'{number} {which} outputs {split}': array for split, array in one.outputs.items()}
      arrays |= {
        f'{number} {which} model {n}': leaf for n, leaf in enumerate(jax.tree.leaves(one.model))
      }
  said = {
    'entries': [dataclasses.asdict(entry) for entry in entries],
    'step': reached.step,
    'kept': kept,
    'best': reached.best,
    'going': sorted(reached.going),
  }
  data = io.BytesIO()
  np.savez(data, **arrays, **{_WARNED: np.frombuffer(json.dumps(said).encode(), np.uint8)})
  files.write_bytes(epath.Path(workdir) / STATE_FILE, data.getvalue())


def load_state(
  workdir: epath.PathLike, entries: Sequence[MemberSpec], start: MemberState
) -> FinetuneState | None:
  """What these members have reached, laid out as their start is; None where nothing of theirs is
  there.
  """
  found = _read(workdir, entries)
  if found is None:
    return None
  said, arrays = found
  leaves, tree = jax.tree.flatten(start)
  member = jax.tree.unflatten(
    tree, [jax.device_put(arrays[f'member {n}'], leaf.sharding) for n, leaf in enumerate(leaves)]
  )
  shape = jax.tree.structure(population.select_member(start.state.model, 0))
  kept = [
    {which: _scored(f'{number} {which}', one, arrays, shape) for which, one in own.items()}
    for number, own in enumerate(said['kept'])
  ]
  return FinetuneState(
    member, said['step'], arrays['totals'], kept, said['best'], set(said['going'])
  )


def make_saver(
  workdir: epath.PathLike,
  entries: Sequence[MemberSpec],
  reached: FinetuneState,
  flag: signals.SignalFlag,
) -> Callable[[], None]:
  """A function that saves what the members have reached, where the last save is long enough ago or
  a signal has come.

  It raises signals.Ended after a signal.
  """
  saved = time.monotonic()

  def keep() -> None:
    nonlocal saved
    if flag.number or time.monotonic() - saved >= SAVE_SECONDS:
      save_state(workdir, entries, reached)
      saved = time.monotonic()
    if flag.number:
      raise signals.Interrupted(
        flag.number,
        f' after {reached.step:,} updates of the members in training; saved; '
        'the same command goes on from there',
      )

  return keep


def state_step(workdir: epath.PathLike, entries: Sequence[MemberSpec]) -> int:
  """The update that these members have reached; 0 where nothing of theirs is there."""
  found = _read(workdir, entries)
  return 0 if found is None else found[0]['step']


def remove_state(workdir: epath.PathLike) -> None:
  """Their scores are written: what they reached on their way is of no use any more."""
  old_names.find_file(epath.Path(workdir) / STATE_FILE).unlink(missing_ok=True)


def _read(
  workdir: epath.PathLike, entries: Sequence[MemberSpec]
) -> tuple[dict[str, Any], Mapping[str, np.ndarray]] | None:
  if not old_names.find_file(epath.Path(workdir) / STATE_FILE).exists():
    return None
  try:
    with (
      old_names.find_file(epath.Path(workdir) / STATE_FILE).open('rb') as stream,
      np.load(stream, allow_pickle=False) as file,
    ):
      arrays = dict(file)
    said = json.loads(arrays.pop(_WARNED).tobytes())
  except (
    ValueError,
    KeyError,
    EOFError,
    OSError,
    zipfile.BadZipFile,
    zlib.error,
  ):  # flipped bytes fail its CRC
    return None
  return (
    (said, arrays) if said['entries'] == [dataclasses.asdict(entry) for entry in entries] else None
  )


def _scored(
  prefix: str, one: dict[str, Any], arrays: Mapping[str, np.ndarray], shape: Any
) -> EpochResult:
  outputs = {
    name.removeprefix(f'{prefix} outputs '): array
    for name, array in arrays.items()
    if name.startswith(f'{prefix} outputs ')
  }
  model = (
    jax.tree.unflatten(shape, [arrays[f'{prefix} model {n}'] for n in range(shape.num_leaves)])
    if one['model']
    else None
  )
  return EpochResult(one['epoch'], float(one['selection']), outputs, model)
