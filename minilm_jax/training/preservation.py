"""Which checkpoints of a run stay: the last ones, and those with the lowest validation loss.

The choice follows from the steps that are there and their losses alone, so that a run that was stopped keeps what it
would have kept. Orbax asks for it at every save, and deletes the others when the new one is whole on disk.
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp

kinds = ocp.checkpoint_managers


@dataclasses.dataclass
class Best(kinds.PreservationPolicy):
  """Preserves the `number` checkpoints of the lowest loss, of equal ones the later; those without one have no part.

  Orbax's own `BestN` keeps those without one too while there are few, and its losses in files beside the arrays; ours
  are in metrics.jsonl.
  """

  number: int
  losses: Mapping[int, float]

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    judged = [one.step for one in checkpoints if one.step in self.losses]
    kept = sorted(judged, key=lambda step: (self.losses[step], -step))[:self.number]
    return [one.step in kept for one in checkpoints]


def policy(keep: int, best: int, losses: Mapping[int, float]) -> kinds.AnyPreservationPolicy:
  """The last `keep` and the `best` by `losses`, validation losses by step, which may grow while it is in use."""
  return kinds.AnyPreservationPolicy([kinds.LatestN(keep), Best(best, losses)])


def clear(manager: ocp.CheckpointManager, wanted: kinds.AnyPreservationPolicy) -> None:
  """Deletes what is not preserved: a process that was killed may have left it, or a part of it."""
  there = [types.SimpleNamespace(step=step) for step in sorted(manager.all_steps())]
  kept = wanted.should_preserve(there, context=kinds.PreservationContext())
  for one, stays in zip(there, kept, strict=True):
    if not stays:
      manager.delete(one.step)
