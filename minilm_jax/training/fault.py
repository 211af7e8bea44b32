"""Updates whose loss or gradient is not finite: found in the step, for nothing; undone; and told by name.

The first such update of a chunk is kept as two numbers on the device. What a member was before it stays as it was:
with the policies `stop` and `drop-member` the member stands still from there on, for the same update fails again; with
`skip` it goes on to the next batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from minilm_jax.model.initialization import path_name


class Fault(NamedTuple):
  """An update that failed, or -1; and the first tensor that was not finite: 0 the loss, then gradients in order."""

  step: Int[Array, '*P']
  tensor: Int[Array, '*P']


def none() -> Fault:
  """Nothing failed."""
  return Fault(jnp.int32(-1), jnp.int32(0))


def find(loss: Float[Array, ''], gradient: Any, step: Int[Array, '']) -> Fault:
  """What is not finite in an update, by sums of squares that the logged norm is made of too: XLA takes them once."""
  sums = jnp.stack([loss, *[jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(gradient)]])
  bad = ~jnp.isfinite(sums)
  return Fault(jnp.where(bad.any(), step, -1), jnp.argmax(bad).astype(jnp.int32))


def first(old: Fault, new: Fault) -> Fault:
  """The earlier of two."""
  return jax.tree.map(lambda a, b: jnp.where(old.step >= 0, a, b), old, new)


def tensor(number: int, model: Any) -> str:
  """What to call the tensor of this number; `model` is what was kept of the member, and may itself not be finite."""
  leaves = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(model)]
  broken = [name for name, leaf in leaves if not np.isfinite(np.asarray(leaf)).all()]
  if broken:
    return f'the parameter {broken[0]}'
  return 'the loss' if number == 0 else f'the gradient of {leaves[number - 1][0]}'
