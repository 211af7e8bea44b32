"""Masks as a pure function of rows and keys: a fixed number of positions a row, so that shapes never change.

What is masked in a row depends on `(seed, epoch, row)` alone in training, and on the row alone in evaluation. Pads are
never predicted.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, Key, UInt

from minilm_jax import rng
from minilm_jax.config import MaskConfig
from minilm_jax.language import tokenizer
from minilm_jax.model.size import masked_positions

EVALUATION = MaskConfig(rate=0.15, random=0.0, keep=0.0, special=False, span=0)  # frozen, whatever a run trains with
Number = float | Float[Array, '*P']


@typing.no_type_check  # JAX puts shapes, shardings and tracers of its own into the fields of a pytree
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskedBatch:
  """Rows with some tokens hidden: `tokens [B L]`, and at `positions [B K]` what was there and whether it counts."""

  tokens: Int[Array, 'B L']
  positions: Int[Array, 'B K']
  targets: Int[Array, 'B K']
  weights: Float[Array, 'B K']

  @property
  def mask(self) -> Bool[Array, 'B L']:
    """True where there is a token and no pad."""
    return self.tokens != tokenizer.PAD


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Policy:
  """A MaskConfig for rows of one length: numbers in which members of a population may differ, and what they share."""

  rate: Number
  random: Number
  keep: Number
  special: bool = dataclasses.field(metadata=dict(static=True))
  span: int = dataclasses.field(metadata=dict(static=True))
  positions: int = dataclasses.field(metadata=dict(static=True))  # K, the most that are predicted in a row


def policy(config: MaskConfig, length: int) -> Policy:
  """What the recipe says, for rows of this length."""
  return Policy(config.rate, config.random, config.keep, config.special, config.span,
                masked_positions(length, config.rate))


def hide(row: Int[Array, 'L'], key: Key[Array, ''], policy: Policy, vocabulary: int) -> MaskedBatch:
  """Masks one row (a MaskedBatch without its batch axis).

  Of n tokens that may be predicted, rate * n are, rounded up or down at random so that the rate is exact on average;
  at least one. A share `random` of them becomes any ordinary token, a share `keep` stays, the rest becomes `<mask>`.

  With spans, whole ones are taken from a row that is cut into spans at a random place, and the last is cut short where
  the number is reached; so the number is what it is without.
  """
  choose, count, replace, draw = jax.random.split(key, 4)
  eligible = row != tokenizer.PAD
  if not policy.special:
    eligible &= (row != tokenizer.BEGIN) & (row != tokenizer.END)
  n = eligible.sum()
  order = jax.random.uniform(choose, row.shape)
  if policy.span:  # neighbours share a number; where the first span begins is drawn too
    order = order[(jnp.arange(row.size) + jax.random.randint(jax.random.fold_in(choose, 0), (), 0, policy.span))
                  // policy.span]
  order = jnp.where(eligible, order, -1)
  _, positions = jax.lax.top_k(order, policy.positions)
  wanted = jnp.maximum(jnp.floor(policy.rate * n + jax.random.uniform(count)), 1)
  chosen = jnp.arange(positions.size) < jnp.minimum(wanted, n)
  targets = row[positions]
  fate = jax.random.uniform(replace, positions.shape)
  other = jax.random.randint(draw, positions.shape, len(tokenizer.SPECIAL), vocabulary)
  shown = jnp.where(fate < policy.random, other, jnp.where(fate < policy.random + policy.keep, targets, tokenizer.MASK))
  tokens = row.at[positions].set(jnp.where(chosen, shown, targets))
  return MaskedBatch(tokens, positions, targets, chosen.astype(jnp.float32))


def training_batch(tokens: Integer[Array, 'B L'], rows: Int[Array, 'B'], epochs: UInt[Array, 'B'], seed: rng.Counter,
                   policy: Policy, vocabulary: int) -> MaskedBatch:
  """Masks rows anew in each epoch."""
  keys = jax.vmap(lambda row, epoch: rng.key(seed, rng.Stream.MASK, epoch, row))(rows, epochs)
  return jax.vmap(lambda row, key: hide(row, key, policy, vocabulary))(tokens.astype(jnp.int32), keys)


def frozen_batch(tokens: Integer[Array, 'B L'], rows: Int[Array, 'B'], vocabulary: int) -> MaskedBatch:
  """Masks rows for evaluation: 15%, always `<mask>`, the same for every run and every time."""
  keys = jax.vmap(lambda row: rng.key(rng.FROZEN_SEED, rng.Stream.FROZEN_MASK, row))(rows)
  frozen = policy(EVALUATION, tokens.shape[1])
  return jax.vmap(lambda row, key: hide(row, key, frozen, vocabulary))(tokens.astype(jnp.int32), keys)
