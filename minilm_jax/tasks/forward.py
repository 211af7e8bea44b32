"""What fine-tuned classifiers say of examples: logits, many members in one program where their shapes are equal.

Members of one shape are stacked and run like any population: spread over devices, those of one device in turns on a
CPU, all in each operation elsewhere. Members of other shapes follow one after another. Rows are cut and padded as in
fine-tuning, so that outputs are those of its end but for rounding.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from minilm_jax.config import MeshConfig
from minilm_jax.language import tokenizer as pieces
from minilm_jax.model.heads import Classifier
from minilm_jax.tasks import encoding
from minilm_jax.tasks.classifiers import Fitted
from minilm_jax.tasks.sources import Examples
from minilm_jax.training import population, sharding

_BATCH = 32  # rows at one time; fewer where there are fewer, in powers of two, so that few shapes are compiled


def groups(members: Sequence[Fitted]) -> list[list[int]]:
  """The places of members that can be stacked, in the order of their first."""
  found: dict[Any, list[int]] = {}
  for number, member in enumerate(members):
    found.setdefault(member.card.shape, []).append(number)
  return list(found.values())


def spread(members: int) -> Mesh:
  """A mesh with as many devices as divide the members."""
  devices = max(n for n in range(1, jax.device_count() + 1) if members % n == 0)
  return sharding.make_mesh(MeshConfig(population=devices, data=1, model=1))


def probable(model: Classifier, tokens: Int[Array, 'B L']) -> Float[Array, 'B C']:
  """Logits of each row by one member."""
  return model(tokens, tokens != pieces.PAD)


@functools.lru_cache(maxsize=8)
def program(members: int, how: str) -> Callable[[Classifier, Int[np.ndarray, 'M B L']], Float[Array, 'P N C']]:
  """A jitted function of so many stacked members and of batches of tokens; `how` is a strategy of `population`."""
  def one(model: Classifier, tokens: Int[Array, 'M B L']) -> Float[Array, 'N C']:
    found = jax.lax.map(functools.partial(probable, model), tokens)
    return found.reshape(-1, found.shape[-1])

  return jax.jit(population.map_over_members(one, spread(members), 'vmap' if how == 'vmap' else 'map'))


def stacks(members: Sequence[Fitted]) -> list[Classifier]:
  """Each group of members as one pytree with a leading axis `P`, every member on its device."""
  found = []
  for places in groups(members):
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(members[place].model for place in places))
    found.append(population.shard_members(stacked, spread(len(places))))
  return found


def logits(members: Sequence[Fitted], examples: Examples, lift: str = 'auto',
           stacked: Sequence[Classifier] = ()) -> Float[np.ndarray, 'P N C']:
  """What each member says of each example: logits or, of regressions, numbers.

  Args:
    members: with one tokenizer; of any shapes.
    examples: texts; their labels are not looked at.
    lift: how members of one shape share a device: `loop`, `vmap`, or `auto`.
    stacked: what `stacks` made of these members, for who asks them again and again.
  """
  found: list[np.ndarray] = [np.zeros(0)] * len(members)
  for places, stack in zip(groups(members), stacked or stacks(members), strict=True):
    first = members[places[0]]
    card = first.card
    sequences, _ = encoding.encode(examples, first.tokenizer, card.length)
    whole = card.head.pooling == 'positions'  # a weight a position, pads included
    length = card.model.max_length if whole else encoding.bucket(sequences, card.model.max_length)
    rows = encoding.task_rows(sequences, np.zeros(len(sequences), np.int32), length)
    size = min(_BATCH, 1 << (len(sequences) - 1).bit_length())
    tokens, (where,) = encoding.in_batches([rows], size)
    how = population.choose_strategy(len(places), lift, jax.devices()[0].platform)
    outputs = np.asarray(program(len(places), how)(stack, jnp.asarray(tokens)))
    for place, own in zip(places, outputs, strict=True):
      found[place] = own[where]
  return np.stack(found)
