"""Holds rows of token ids on the device, and computes the rows of a batch from seed and step.

A tokenised tiny language fits on the accelerator as `uint16`, so no data iterator is needed. The rows
of a batch are a function of `(seed, step)`, equal on any mesh and after any resumption. Of a larger
corpus, chunks of the same rows are copied to the device.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt, UInt16, UInt32

from minilm_jax.core import rng

_FEISTEL_ROUNDS = 6  # four rounds already pass tests of randomness


# JAX also stores shapes, shardings and tracers in the fields of a pytree.
@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Corpus:
  """The rows of one split in memory of the host or of a device.

  Attributes:
    tokens: Token ids `[N L]`.
    vocab_size: Ids are smaller than this.
  """

  tokens: UInt16[Array, 'N L'] | UInt32[Array, 'N L']
  vocab_size: int = dataclasses.field(metadata=dict(static=True))
  hash: str = dataclasses.field(metadata=dict(static=True))

  @property
  def rows(self) -> int:
    """Number of rows, N."""
    return self.tokens.shape[0]

  @property
  def length(self) -> int:
    """Number of token ids in a row, L."""
    return self.tokens.shape[1]

  def gather(
    self, step: Int[Array, ''], row: Int[Array, 'b'], index: Int[Array, 'b']
  ) -> UInt[Array, 'b L']:
    """Returns rows by number; ignores the step and the index within the batch."""
    return self.tokens[row]

  def contains_step(self, step: Int[Array, '']) -> Bool[Array, '']:
    """Returns True: all rows are in memory."""
    return jnp.bool_(True)


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchWindow:
  """The batches of one chunk, in place of a Corpus.

  Attributes:
    tokens: Token ids `[S B L]` of S steps; `[P S B L]` for a population.
    first: First step of the chunk; `[P]` for a population.
    rows: Number of rows of the split or subset.
  """

  tokens: UInt16[Array, '*P S B L'] | UInt32[Array, '*P S B L']
  first: Int[Array, '*P']
  rows: int = dataclasses.field(metadata=dict(static=True))
  vocab_size: int = dataclasses.field(metadata=dict(static=True))
  hash: str = dataclasses.field(metadata=dict(static=True))

  @property
  def length(self) -> int:
    """Number of token ids in a row, L."""
    return self.tokens.shape[-1]

  def gather(
    self, step: Int[Array, ''], row: Int[Array, 'b'], index: Int[Array, 'b']
  ) -> UInt[Array, 'b L']:
    """Returns rows by step and index within the batch; ignores the row number."""
    return self.tokens[step - self.first, index]

  def contains_step(self, step: Int[Array, '']) -> Bool[Array, '']:
    """Returns whether the window has a step; members that stopped earlier are at smaller steps."""
    return step >= self.first


def permute_rows(
  index: UInt32[Array, '*S'], size: int, key: UInt32[Array, 'rounds']
) -> UInt32[Array, '*S']:
  """Applies a keyed bijection of 0..size-1 to `index`: the random order of an epoch.

  A Feistel network over the next power of two is repeated until the value is below `size`. The
  order is computed and never stored, so a run can start at any step.
  """
  bits = max(2, (size - 1).bit_length())
  low_bits = bits // 2
  low_mask, high_mask = jnp.uint32((1 << low_bits) - 1), jnp.uint32((1 << (bits - low_bits)) - 1)

  def shuffle(x: UInt32[Array, '*S']) -> UInt32[Array, '*S']:
    high, low = x >> low_bits, x & low_mask
    for turn in range(_FEISTEL_ROUNDS):
      if turn % 2:
        low ^= rng.mix_bits(high, key[turn]) & low_mask
      else:
        high ^= rng.mix_bits(low, key[turn]) & high_mask
    return high << low_bits | low

  return jax.lax.while_loop(
    lambda x: jnp.any(x >= size), lambda x: jnp.where(x >= size, shuffle(x), x), shuffle(index)
  )


def select_batch_rows(
  seed: rng.Counter,
  step: rng.Counter,
  batch_size: int,
  count: int,
  indices: Int[Array, 'b'] | None = None,
) -> tuple[Int[Array, 'b'], UInt32[Array, 'b']]:
  """Returns the row and the epoch of each example of a batch.

  Each row occurs once an epoch, in an order that differs between epochs.

  Args:
    count: Rows of the split; an epoch may end inside a batch.
    indices: Indices within the batch; None takes all.
  """
  indices = jnp.arange(batch_size) if indices is None else indices
  number = jnp.asarray(step, jnp.uint32) * jnp.uint32(batch_size) + indices.astype(jnp.uint32)
  epoch, within = number // jnp.uint32(count), number % jnp.uint32(count)

  def pick_row(epoch: UInt32[Array, ''], within: UInt32[Array, '']) -> UInt[Array, '']:
    key = rng.make_key(seed, rng.Stream.ORDER, epoch)
    return permute_rows(within, count, jax.random.bits(key, (_FEISTEL_ROUNDS,), 'uint32'))

  return jax.vmap(pick_row)(epoch, within).astype(jnp.int32), epoch
