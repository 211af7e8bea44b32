"""The table of random streams. Every random bit of the program is a pure function of the keys made
here.

A key is `(seed, stream, *counters)`: what it is for and where in the run it is used. Nothing splits
keys in chains and no module stores one, so a run can be resumed, resharded or re-chunked without
any generator state to save.
"""

import enum
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, UInt, UInt32

Counter = int | Int[Array, ''] | UInt[Array, '']


class Stream(enum.IntEnum):
  """What a key is for, and the counters that follow it.

  Numbers are part of every stored run: never renumber.
  """

  INIT = 0  # parameters of a fresh model; no counter
  ORDER = 1  # the order of rows; epoch
  MASK = 2  # masked positions and what replaces them; epoch, row
  FROZEN_MASK = 3  # masks of evaluation; row (the seed is always FROZEN_SEED)
  DROPOUT = 4  # units dropped; step, place in the batch
  HEAD = 5  # parameters of a fine-tuning head; no counter


# evaluation masks never depend on the run, so that losses of different runs compare
FROZEN_SEED = 0


def make_key(seed: Counter, stream: Stream, *counters: Counter) -> Key[Array, '']:
  """The key of one use of one stream.

  Args:
    seed: the seed of the run (an array under a population).
    stream: a row of the table above.
    *counters: where in the run, in the order that the table gives.
  """
  folded = jax.random.fold_in(jax.random.key(seed), int(stream))
  for counter in counters:
    folded = jax.random.fold_in(folded, counter)
  return folded


def batch_key(
  seed: Counter, stream: Stream, step: Counter, places: Int[Array, 'B']
) -> Key[Array, 'B']:
  """A key for each of these places in the batch of a step."""
  return jax.vmap(lambda place: make_key(seed, stream, step, place))(places)


def fold_in(keys: Key[Array, 'B'], number: int) -> Key[Array, 'B']:
  """Other keys from these, for the part of a module that has this number."""
  return jax.vmap(lambda one: jax.random.fold_in(one, number))(keys)


def mix_bits(x: UInt32[Array, '...'], key: UInt32[Array, '...']) -> UInt32[Array, '...']:
  """A 32-bit hash of `x` under `key`: multiply and xor-shift, one to one for each key."""
  x = (x ^ key) * jnp.uint32(0x9E3779B1)
  x = (x ^ (x >> 15)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def draw_coins(keys: Key[Array, 'B'], shape: tuple[int, ...]) -> UInt32[Array, 'B *S']:
  """16 random bits an element of `[B, *shape]`, cheap enough for a coin a unit: hashes of places
  under the row's key.

  `jax.random.bits` draws 32 bits also where 16 are asked for, by a cipher that takes half of a
  small model's step on a CPU; here each hash serves two. A row's bits depend on its key alone: on
  no device, member or micro-batch.
  """
  *outer, last = shape
  drawn = (1, *outer, (last + 1) // 2)
  place = sum(
    jax.lax.broadcasted_iota(jnp.uint32, drawn, axis) * jnp.uint32(math.prod(drawn[axis + 1 :]))
    for axis in range(len(drawn))
  )
  first, second = jax.vmap(
    lambda key: jax.random.bits(key, (2, *[1] * len(shape)), 'uint32'), out_axes=1
  )(keys)
  hashed = mix_bits(mix_bits(place, first), second)
  return jnp.concatenate([hashed & 0xFFFF, hashed >> 16], axis=-1)[..., :last]
