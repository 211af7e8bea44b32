"""The table of random streams: every random bit of the program comes from a key made here.

A key is `(seed, stream, *counters)`: its purpose and its place in the run. Keys are never split in
chains or stored in a module: a run is resumed, resharded or re-chunked without generator state.
"""

import enum
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, UInt, UInt32

Counter = int | Int[Array, ''] | UInt[Array, '']


class Stream(enum.IntEnum):
  """Purpose of a key; the comments name the counters. Stored runs depend on the numbers."""

  INIT = 0  # parameters of a fresh model; no counter
  ORDER = 1  # the order of rows; epoch
  MASK = 2  # masked positions and what replaces them; epoch, row
  FROZEN_MASK = 3  # masks of evaluation; row (the seed is always FROZEN_SEED)
  DROPOUT = 4  # units dropped; step, place in the batch
  HEAD = 5  # parameters of a fine-tuning head; no counter


FROZEN_SEED = 0  # evaluation masks do not depend on the run, so that losses of runs compare


def make_key(seed: Counter, stream: Stream, *counters: Counter) -> Key[Array, '']:
  """Returns the key of one use of a stream.

  Args:
    seed: the seed of the run (an array under a population).
    stream: the purpose.
    *counters: the place in the run, in the order of the table.
  """
  key = jax.random.fold_in(jax.random.key(seed), int(stream))
  for counter in counters:
    key = jax.random.fold_in(key, counter)
  return key


def batch_key(
  seed: Counter, stream: Stream, step: Counter, places: Int[Array, 'B']
) -> Key[Array, 'B']:
  """Returns a key for each of some places in the batch of a step."""
  return jax.vmap(lambda place: make_key(seed, stream, step, place))(places)


def fold_in(keys: Key[Array, 'B'], number: int) -> Key[Array, 'B']:
  """Returns other keys from these, for the part of a module with this number."""
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def mix_bits(x: UInt32[Array, '...'], key: UInt32[Array, '...']) -> UInt32[Array, '...']:
  """Returns a 32-bit hash of `x` under `key`: multiply and xor-shift, one to one for each key."""
  x = (x ^ key) * jnp.uint32(0x9E3779B1)
  x = (x ^ (x >> 15)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def draw_coins(keys: Key[Array, 'B'], shape: tuple[int, ...]) -> UInt32[Array, 'B *S']:
  """Returns 16 random bits for each element of `[B, *shape]`: hashes of its place by the row's key.

  `jax.random.bits` always draws 32 bits, by a cipher that takes half of a small model's step on a
  CPU; here a cheap hash serves two elements. The bits of a row depend on its key alone, not on
  device, member or micro-batch.
  """
  *outer, last = shape
  hash_shape = (1, *outer, (last + 1) // 2)
  place = jnp.uint32(0)
  for axis in range(len(hash_shape)):
    stride = jnp.uint32(math.prod(hash_shape[axis + 1 :]))
    place += jax.lax.broadcasted_iota(jnp.uint32, hash_shape, axis) * stride
  first, second = jax.vmap(
    lambda key: jax.random.bits(key, (2, *[1] * len(shape)), 'uint32'), out_axes=1
  )(keys)
  hashed = mix_bits(mix_bits(place, first), second)
  return jnp.concatenate([hashed & 0xFFFF, hashed >> 16], axis=-1)[..., :last]
