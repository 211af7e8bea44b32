"""The table of random streams. Every random bit of the program is a pure function of the keys made here.

A key is `(seed, stream, *counters)`: what it is for and where in the run it is used. Nothing splits keys in chains and
no module stores one, so a run can be resumed, resharded or re-chunked without any generator state to save.
"""

import enum

import jax
from jaxtyping import Array, Int, Key, UInt

Counter = int | Int[Array, ''] | UInt[Array, '']


class Stream(enum.IntEnum):
  """What a key is for, and the counters that follow it. Numbers are part of every stored run: never renumber."""

  INIT = 0  # parameters of a fresh model; no counter
  ORDER = 1  # the order of rows; epoch
  MASK = 2  # masked positions and what replaces them; epoch, row
  FROZEN_MASK = 3  # masks of evaluation; row (the seed is always FROZEN_SEED)
  DROPOUT = 4  # units dropped; step, micro-batch
  HEAD = 5  # parameters of a fine-tuning head; no counter


FROZEN_SEED = 0  # evaluation masks never depend on the run, so that losses of different runs compare


def key(seed: Counter, stream: Stream, *counters: Counter) -> Key[Array, '']:
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
