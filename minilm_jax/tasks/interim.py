"""What the members that run together have reached in their fine-tuning, in one file: a stop costs a minute of it.

The file holds arrays and a line of JSON; nothing is unpickled. It is whole or absent, and one that is damaged, or of
other members, counts as absent: they start again. It goes when they have ended.
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

from minilm_jax import old_names, run, signals
from minilm_jax.tasks.fitting import Member
from minilm_jax.tasks.protocol import Entry, Scored
from minilm_jax.training import population

FILE = '.finetune_state.npz'
SECONDS = 60.0  # between two saves
_SAID = 'said'  # the name of the JSON among the arrays


@dataclasses.dataclass
class Reached:
  """How far members have come: after `step` updates; `totals` has the losses since the epoch began, summed."""

  member: Member
  step: int
  totals: Float[np.ndarray, 'P']
  kept: list[dict[str, Scored]]  # of each member, by what is reported
  best: list[float]  # the epoch that was best on what is held out
  going: set[int]


def begin(member: Member, members: int) -> Reached:
  """Before the first update."""
  places = len(member.state.seed)
  return Reached(member, 0, np.zeros(places), [{} for _ in range(members)], [0.0] * members, set(range(members)))


def save(workdir: epath.PathLike, entries: Sequence[Entry], reached: Reached) -> None:
  """Writes what the members have reached, in place of what they had before."""
  arrays = {f'member {n}': np.asarray(leaf) for n, leaf in enumerate(jax.tree.leaves(reached.member))}
  arrays['totals'] = reached.totals
  kept = []
  for number, own in enumerate(reached.kept):
    kept.append({which: {'epoch': one.epoch, 'selection': repr(one.selection), 'model': one.model is not None}
                 for which, one in own.items()})
    for which, one in own.items():
      arrays |= {f'{number} {which} outputs {split}': array for split, array in one.outputs.items()}
      arrays |= {f'{number} {which} model {n}': leaf for n, leaf in enumerate(jax.tree.leaves(one.model))}
  said = {'entries': [dataclasses.asdict(entry) for entry in entries], 'step': reached.step, 'kept': kept,
          'best': reached.best, 'going': sorted(reached.going)}
  data = io.BytesIO()
  np.savez(data, **arrays, **{_SAID: np.frombuffer(json.dumps(said).encode(), np.uint8)})
  run.write_bytes(epath.Path(workdir) / FILE, data.getvalue())


def load(workdir: epath.PathLike, entries: Sequence[Entry], start: Member) -> Reached | None:
  """What these members have reached, laid out as their start is; None where nothing of theirs is there."""
  found = _read(workdir, entries)
  if found is None:
    return None
  said, arrays = found
  leaves, tree = jax.tree.flatten(start)
  member = jax.tree.unflatten(tree, [jax.device_put(arrays[f'member {n}'], leaf.sharding)
                                     for n, leaf in enumerate(leaves)])
  shape = jax.tree.structure(population.select_member(start.state.model, 0))
  kept = [{which: _scored(f'{number} {which}', one, arrays, shape) for which, one in own.items()}
          for number, own in enumerate(said['kept'])]
  return Reached(member, said['step'], arrays['totals'], kept, said['best'], set(said['going']))


def keeper(workdir: epath.PathLike, entries: Sequence[Entry], reached: Reached,
           flag: signals.Flag) -> Callable[[], None]:
  """A function that saves what the members have reached, where the last save is long enough ago or a signal has come.

  It raises signals.Ended after a signal.
  """
  saved = time.monotonic()

  def keep() -> None:
    nonlocal saved
    if flag.number or time.monotonic() - saved >= SECONDS:
      save(workdir, entries, reached)
      saved = time.monotonic()
    if flag.number:
      raise signals.Ended(flag.number, f' after {reached.step:,} updates of the members in training; saved; '
                          'the same command goes on from there')

  return keep


def step(workdir: epath.PathLike, entries: Sequence[Entry]) -> int:
  """The update that these members have reached; 0 where nothing of theirs is there."""
  found = _read(workdir, entries)
  return 0 if found is None else found[0]['step']


def remove(workdir: epath.PathLike) -> None:
  """Their scores are written: what they reached on their way is of no use any more."""
  old_names.find_file(epath.Path(workdir) / FILE).unlink(missing_ok=True)


def _read(workdir: epath.PathLike, entries: Sequence[Entry]) -> tuple[dict[str, Any], Mapping[str, np.ndarray]] | None:
  if not old_names.find_file(epath.Path(workdir) / FILE).exists():
    return None
  try:
    with old_names.find_file(epath.Path(workdir) / FILE).open('rb') as stream, np.load(stream, allow_pickle=False) as file:
      arrays = dict(file)
    said = json.loads(arrays.pop(_SAID).tobytes())
  except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error):  # flipped bytes fail its CRC
    return None
  return (said, arrays) if said['entries'] == [dataclasses.asdict(entry) for entry in entries] else None


def _scored(prefix: str, one: dict[str, Any], arrays: Mapping[str, np.ndarray], shape: Any) -> Scored:
  outputs = {name.removeprefix(f'{prefix} outputs '): array for name, array in arrays.items()
             if name.startswith(f'{prefix} outputs ')}
  model = jax.tree.unflatten(shape, [arrays[f'{prefix} model {n}'] for n in range(shape.num_leaves)]
                             ) if one['model'] else None
  return Scored(one['epoch'], float(one['selection']), outputs, model)
