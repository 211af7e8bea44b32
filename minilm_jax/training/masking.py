"""Masks rows as a pure function of rows and keys.

All rows have the same number of positions to predict, so shapes are static. The mask of a row
depends only on `(seed, epoch, row)` in training, and only on the row in evaluation. Pads are never
predicted.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, Key, UInt

from minilm_jax.core import rng
from minilm_jax.core.config import MaskConfig
from minilm_jax.core.corpus_config import BEGIN_ID, END_ID, MASK_ID, PAD_ID, SPECIAL_TOKENS

# All runs are evaluated with this mask, so their losses are comparable.
EVAL_MASK = MaskConfig(rate=0.15, random_share=0.0, keep_share=0.0, special=False, span=0)
Number = float | Float[Array, '']
Shares = tuple[Number, Number, Number]


@typing.no_type_check  # JAX also stores shapes, shardings and tracers in the fields of a pytree
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskedBatch:
  """Rows with masked tokens.

  Attributes:
    tokens: Input token ids `[B L]`.
    positions: Positions to predict `[B K]`.
    targets: Original token ids at the positions `[B K]`.
    weights: 1 for positions that count in the loss, else 0 `[B K]`.
  """

  tokens: Int[Array, 'B L']
  positions: Int[Array, 'B K']
  targets: Int[Array, 'B K']
  weights: Float[Array, 'B K']

  @property
  def mask(self) -> Bool[Array, 'B L']:
    """True for tokens, False for pads."""
    return self.tokens != PAD_ID


def mask_row(
  row: Int[Array, 'L'], key: Key[Array, ''], shares: Shares, config: MaskConfig, vocab_size: int
) -> MaskedBatch:
  """Masks one row.

  A row with n eligible tokens has `rate * n` predicted tokens, at least one. The number is rounded
  up or down at random, so the rate is exact on average. With spans, the row is divided into spans
  from a random offset, and whole spans are selected. The last selected span is shortened to keep
  the number of predicted tokens.

  Args:
    shares: Rate of predicted tokens, share of them with a random token as input, share with the
      original token as input. The remaining predicted tokens become `<mask>`. The shares are those
      of a member, and replace those of `config`.
    config: Mask with the largest rate of any member, which gives K, the number of positions.
    vocab_size: Random tokens are drawn from the ids between the special tokens and this number.

  Returns:
    A MaskedBatch without its batch axis.
  """
  rate, random_share, keep_share = shares
  order_key, count_key, fate_key, token_key = jax.random.split(key, 4)
  eligible = row != PAD_ID
  if not config.special:
    eligible &= (row != BEGIN_ID) & (row != END_ID)
  num_eligible = eligible.sum()
  order = jax.random.uniform(order_key, row.shape)
  if config.span:  # the tokens of a span share a number; the offset of the first span is random
    offset = jax.random.randint(jax.random.fold_in(order_key, 0), (), 0, config.span)
    order = order[(jnp.arange(row.size) + offset) // config.span]
  order = jnp.where(eligible, order, -1)
  _, positions = jax.lax.top_k(order, config.max_positions(row.size))
  num_masked = jnp.maximum(jnp.floor(rate * num_eligible + jax.random.uniform(count_key)), 1)
  chosen = jnp.arange(positions.size) < jnp.minimum(num_masked, num_eligible)
  targets = row[positions]
  fate = jax.random.uniform(fate_key, positions.shape)
  random_tokens = jax.random.randint(token_key, positions.shape, len(SPECIAL_TOKENS), vocab_size)
  original_or_mask = jnp.where(fate < random_share + keep_share, targets, MASK_ID)
  inputs = jnp.where(fate < random_share, random_tokens, original_or_mask)
  tokens = row.at[positions].set(jnp.where(chosen, inputs, targets))
  return MaskedBatch(tokens, positions, targets, chosen.astype(jnp.float32))


def mask_batch(
  tokens: Integer[Array, 'B L'],
  rows: Int[Array, 'B'],
  epochs: UInt[Array, 'B'],
  seed: rng.Counter,
  shares: Shares,
  config: MaskConfig,
  vocab_size: int,
) -> MaskedBatch:
  """Masks rows for training, differently in each epoch; see `mask_row` for the arguments."""
  keys = jax.vmap(lambda row, epoch: rng.make_key(seed, rng.Stream.MASK, epoch, row))(rows, epochs)
  return jax.vmap(lambda row, key: mask_row(row, key, shares, config, vocab_size))(
    tokens.astype(jnp.int32), keys
  )


def mask_eval_batch(
  tokens: Integer[Array, 'B L'], rows: Int[Array, 'B'], vocab_size: int
) -> MaskedBatch:
  """Replaces 15% of the tokens by `<mask>` for evaluation, equally in every run."""
  keys = jax.vmap(lambda row: rng.make_key(rng.FROZEN_SEED, rng.Stream.FROZEN_MASK, row))(rows)
  shares = EVAL_MASK.rate, EVAL_MASK.random_share, EVAL_MASK.keep_share
  return jax.vmap(lambda row, key: mask_row(row, key, shares, EVAL_MASK, vocab_size))(
    tokens.astype(jnp.int32), keys
  )
