"""Derives all random keys of the program from the table of streams.

A key is a function of `(seed, stream, *counters)`: the purpose and the position in the run. No key
is split in a chain or stored in a module. A run can therefore be resumed, resharded or divided into
other chunks without generator state.
"""

import enum
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, UInt, UInt32

from minilm_jax.core.errors import InputError

Counter = int | Int[Array, ''] | UInt[Array, '']


class Stream(enum.IntEnum):
  """Purpose of a key. The numbers must not change, because stored runs depend on them."""

  INIT = 0  # initialization of a masked language model; no counters
  ORDER = 1  # order of rows; counter: epoch
  MASK = 2  # masked positions and replacement tokens; counters: epoch, row
  FROZEN_MASK = 3  # masks of evaluation, always with FROZEN_SEED; counter: row
  DROPOUT = 4  # dropped units; counters: step, index in the batch
  HEAD = 5  # initialization of a classifier, or of an encoder from scratch; no counters


_MAX_HASHES = 2**32  # distinct indices of `draw_coins`
FROZEN_SEED = 0  # evaluation masks are equal in all runs, so that losses are comparable


def make_key(seed: Counter, stream: Stream, *counters: Counter) -> Key[Array, '']:
  """Returns the key of a stream at a position in the run.

  Args:
    seed: seed of the run; a traced array for a member of a population.
  """
  key = jax.random.fold_in(jax.random.key(seed), int(stream))
  for counter in counters:
    key = jax.random.fold_in(key, counter)
  return key


def make_batch_keys(
  seed: Counter, stream: Stream, step: Counter, indices: Int[Array, 'B']
) -> Key[Array, 'B']:
  """Returns a key for each index in the batch of a step."""
  return jax.vmap(lambda index: make_key(seed, stream, step, index))(indices)


def fold_in(keys: Key[Array, 'B'], number: int) -> Key[Array, 'B']:
  """Returns keys derived from `keys` by `number`, the number of a submodule."""
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def mix_bits(x: UInt32[Array, '...'], key: UInt32[Array, '...']) -> UInt32[Array, '...']:
  """Returns a 32-bit hash of `x` by multiplication and xor-shift, a bijection for each key."""
  x = (x ^ key) * jnp.uint32(0x9E3779B1)
  x = (x ^ (x >> 15)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def draw_coins(keys: Key[Array, 'B'], shape: tuple[int, ...]) -> UInt32[Array, 'B *S']:
  """Returns 16 random bits for each element of `[B, *shape]`: a hash of its index by the row's key.

  `jax.random.bits` draws 32 bits with a cipher, which takes half of the step time of a small model
  on a CPU. One cheap hash serves two elements. The bits of a row depend on its key alone, not on
  device, member or micro-batch.

  Raises:
    InputError: a row needs 2^32 hashes or more.
  """
  *outer, last = shape
  hash_shape = (1, *outer, (last + 1) // 2)
  if math.prod(hash_shape) >= _MAX_HASHES:
    raise InputError(
      f'dropout of an array of {" x ".join(map(str, shape))} elements a row',
      'more than 2^32 hashes',
      'lower model.max_length, or give model.dropout=0',
    )
  index = jnp.uint32(0)
  for axis in range(len(hash_shape)):
    stride = jnp.uint32(math.prod(hash_shape[axis + 1 :]))
    index += jax.lax.broadcasted_iota(jnp.uint32, hash_shape, axis) * stride
  first, second = jax.vmap(
    lambda key: jax.random.bits(key, (2, *[1] * len(shape)), 'uint32'), out_axes=1
  )(keys)
  hashed = mix_bits(mix_bits(index, first), second)
  # XLA fuses the stack with dropout. A concatenation takes twice the time on a CPU.
  halves = jnp.stack([hashed & 0xFFFF, hashed >> 16], axis=-2)
  return halves.reshape(*hashed.shape[:-1], -1)[..., :last]
