"""The encoder: token ids to one vector a token (paper 1, `LanModel`: a factorised, post-LN
RoBERTa), and its switches.

Axis letters here and in every room above: `B` batch, `L` length, `K` masked positions, `E`
embedding, `D` hidden, `H` heads, `F` feed-forward, `V` vocabulary, `P` population, `C` classes.

Flax NNX layers, used as pytrees under plain JAX transforms. Keys are passed at the call, one a row,
so that what a row drops does not depend on its neighbours; `key=None` drops nothing. What is left
out: the heads (`heads.py`) and everything about training.

Two switches trade exactness or work for speed and memory. `compute='bfloat16'` is the type that
matrix products read and that layers pass on; parameters, their gradients, and everything else that
is summed (norms, softmax, biases and tables over tokens, what comes out of a head) stay float32.
`remat` keeps what goes into each block and makes the rest again.
"""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Integer, Key

from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.data import tokenizer
from minilm_jax.model.convolution import FrontEnd
from minilm_jax.model.layers import Linear, activation, dropout, layer_norm, split_key

# A short convolution over the tokens, before the blocks: each feature of a token sees that of its
# neighbours.


class ShortConvolution(nnx.Module):
  """The row and its depthwise convolution, added; in float32, for element-wise work is what it is.
  """

  def __init__(self, config: EncoderConfig):
    self.kernel = nnx.Param(jnp.zeros((config.short_convolution, config.hidden_size)))
    self.bias = nnx.Param(jnp.zeros((config.hidden_size,)))

  def __call__(self, x: Float[Array, 'B L D'], mask: Bool[Array, 'B L']) -> Float[Array, 'B L D']:
    """The sum over taps is of shifted rows.

    As a convolution with `feature_group_count` it would take XLA 170 to 500 times as long on a CPU,
    inside a loop, which a chunk of steps is: 79 ms against 0.46, forward and backward, for 16 rows
    of 64 tokens, 64 features, 3 taps.
    """
    kernel, length = self.kernel[...], x.shape[1]
    side = len(kernel) // 2
    near = jnp.pad(jnp.where(mask[:, :, None], x, 0), ((0, 0), (side, side), (0, 0)))
    taps = (near[:, tap : tap + length] * kernel[None, tap : tap + 1] for tap in range(len(kernel)))
    return (x + sum(taps, self.bias[...].reshape(1, 1, -1))).astype(x.dtype)


def count_short_convolution_parameters(config: EncoderConfig) -> int:
  """How many parameters it has."""
  return (config.short_convolution + 1) * config.hidden_size if config.short_convolution else 0


def count_short_convolution_flops(config: EncoderConfig, length: int) -> int:
  """FLOPs of its products over a row of `length`: two a multiply-add, those with the zeros round it
  included.
  """
  return 2 * config.short_convolution * length * config.hidden_size


_FAR = -1e30  # added to the score of a pad; finite, so that a row of pads alone gives numbers too
_BASE = 10_000.0  # of the slowest turn of rotary and sinusoidal positions
_SINUSOID = 0.02  # how large the fixed table is: as the vectors of the tokens start


def _angles(length: int, half: int) -> Float[Array, 'L half']:
  """Position times frequency, of which there are so many for twice as many features."""
  return jnp.arange(length)[:, None] * _BASE ** (-jnp.arange(half) / half)[None]


def _rotate(x: Float[Array, 'B L H dim']) -> Float[Array, 'B L H dim']:
  """Rotary positions: each pair of features turned by an angle that grows with the position."""
  half = x.shape[-1] // 2
  angles = _angles(x.shape[1], half)
  cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
  first, second = x[..., :half], x[..., half:]
  return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(
    x.dtype
  )


def _sinusoids(length: int, width: int) -> Float[Array, 'L E']:
  """The fixed table of Vaswani et al. (2017): sine and cosine, by turns, of angles as those of
  rotary positions.

  There it is added to token vectors that start at N(0, 1 / E) and are then multiplied by sqrt(E).
  Ours start at 0.02 N(0, 1) and are not, so the table is made as much smaller, and the two have the
  proportion of that paper.
  """
  angles = _angles(length, width // 2)
  return _SINUSOID * jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(length, width)


class Embedding(nnx.Module):
  """Token, position and segment vectors, summed and normalised; relative and rotary positions are
  in attention.

  Learned positions count from `position_offset`: the table has `length + position_offset` rows, and
  those before the first are never used. RoBERTa counts from 2, BERT from 0. All tokens are of the
  first segment but where `segment_embeddings_for_pairs` says that those after the first `</s>`, a
  second text, are of the second.
  """

  def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
    self.config = config
    self.tokens = nnx.Embed(config.vocab_size, config.embedding_size, rngs=rngs)
    if config.positions == 'learned':
      self.positions = nnx.Embed(
        config.max_length + config.position_offset, config.embedding_size, rngs=rngs
      )
    if config.segments:
      self.segments = nnx.Embed(config.segments, config.embedding_size, rngs=rngs)
    self.norm = layer_norm(config.embedding_size, config, rngs)

  def __call__(
    self, tokens: Integer[Array, 'B L'], key: Key[Array, 'B'] | None
  ) -> Float[Array, 'B L E']:
    x = self.tokens(tokens.astype(jnp.int32))
    if self.config.positions == 'learned':
      x += self.positions(jnp.arange(tokens.shape[1]) + self.config.position_offset)[None]
    if self.config.positions == 'sinusoidal':
      x += _sinusoids(*x.shape[1:])[None]
    if self.config.segments:
      segment = jnp.zeros((1, 1), jnp.int32)
      if self.config.segment_embeddings_for_pairs:
        ends = (tokens == tokenizer.END_ID).astype(jnp.int32)
        # has one ended before this place?
        segment = (jnp.cumsum(ends, axis=1) > ends).astype(jnp.int32)
      x += self.segments(segment)
    return dropout(self.norm(x), self.config.dropout, key)


class Projection(nnx.Module):
  """From the embedding's width to the hidden width; always there in the paper, also where the two
  are equal.

  `projection_norm=False` leaves its norm out.
  """

  def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
    self.linear = Linear(config.embedding_size, config.hidden_size, config, rngs)
    self.bare = not config.projection_norm
    if not self.bare:
      self.norm = layer_norm(config.hidden_size, config, rngs)

  def __call__(self, x: Float[Array, 'B L E']) -> Float[Array, 'B L D']:
    return self.linear(x) if self.bare else self.norm(self.linear(x))


@jax.custom_vjp
def _scores(q: Float[Array, 'B L H dim'], k: Float[Array, 'B M H dim']) -> Float[Array, 'B H L M']:
  """Each query times each key, in float32; the gradient is taken by products as narrow as this one.
  """
  return jnp.einsum('BLHd,BMHd->BHLM', q, k, preferred_element_type=jnp.float32)


def _scores_backward(inputs: tuple, gradient: Float[Array, 'B H L M']) -> tuple:
  q, k = inputs
  gradient = gradient.astype(k.dtype)
  return jnp.einsum('BHLM,BMHd->BLHd', gradient, k), jnp.einsum('BHLM,BLHd->BMHd', gradient, q)


_scores.defvjp(lambda q, k: (_scores(q, k), (q, k)), _scores_backward)


class Attention(nnx.Module):
  """Scaled dot-product attention over the tokens that are not pads.

  With relative positions a score gains `distance_bias[h, j - i + length - 1]`, one learned number a
  head and distance.
  """

  def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
    self.config = config
    linears = (Linear(config.hidden_size, config.hidden_size, config, rngs) for _ in range(4))
    self.query, self.key, self.value, self.output = linears
    if config.positions == 'relative':
      self.distance_bias = nnx.Param(jnp.zeros((config.num_heads, 2 * config.max_length - 1)))

  def __call__(
    self, x: Float[Array, 'B L D'], mask: Bool[Array, 'B L'], key: Key[Array, 'B'] | None
  ) -> Float[Array, 'B L D']:
    v = self._split(self.value(x))
    shares = dropout(self.shares(x, mask), self.config.dropout, key).astype(v.dtype)
    return self.output(jnp.einsum('BHLM,BMHd->BLHd', shares, v).reshape(x.shape))

  def shares(self, x: Float[Array, 'B L D'], mask: Bool[Array, 'B L']) -> Float[Array, 'B H L L']:
    """How much of its attention each head gives from each place to each, in float32: 1 in all from
    every place.
    """
    length = x.shape[1]
    q, k = self._split(self.query(x)), self._split(self.key(x))
    if self.config.positions == 'rotary':
      q, k = _rotate(q), _rotate(k)
    scores = _scores(q / math.sqrt(q.shape[-1]), k)
    if self.config.positions == 'relative':
      distance = (
        jnp.arange(length)[None, :] - jnp.arange(length)[:, None] + self.config.max_length - 1
      )
      scores += self.distance_bias[...][:, distance][None]
    scores += jnp.where(mask, 0.0, _FAR)[:, None, None]
    return jax.nn.softmax(scores, axis=-1)

  def _split(self, x: Float[Array, 'B L D']) -> Float[Array, 'B L H dim']:
    return x.reshape(*x.shape[:2], self.config.num_heads, -1)


class FeedForward(nnx.Module):
  """Linear(D, F), activation, Linear(F, D)."""

  def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
    self.activation = config.activation
    self.up = Linear(config.hidden_size, config.intermediate_size, config, rngs)
    self.down = Linear(config.intermediate_size, config.hidden_size, config, rngs)

  def __call__(self, x: Float[Array, 'B L D']) -> Float[Array, 'B L D']:
    return self.down(activation(self.activation, self.up(x)))


class Block(nnx.Module):
  """Attention and feed-forward, each with dropout, a residual, and a LayerNorm after the sum (post)
  or first (pre).
  """

  def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
    self.config = config
    self.attention, self.attention_norm = (
      Attention(config, rngs),
      layer_norm(config.hidden_size, config, rngs),
    )
    self.feed_forward, self.feed_forward_norm = (
      FeedForward(config, rngs),
      layer_norm(config.hidden_size, config, rngs),
    )

  def __call__(
    self, x: Float[Array, 'B L D'], mask: Bool[Array, 'B L'], key: Key[Array, 'B'] | None
  ) -> Float[Array, 'B L D']:
    inside, after, last = split_key(key, 3)
    rate = self.config.dropout
    if self.config.norm == 'pre':
      x = x + dropout(self.attention(self.attention_norm(x), mask, inside), rate, after)
      return x + dropout(self.feed_forward(self.feed_forward_norm(x)), rate, last)
    x = self.attention_norm(x + dropout(self.attention(x, mask, inside), rate, after))
    return self.feed_forward_norm(x + dropout(self.feed_forward(x), rate, last))


class Encoder(nnx.Module):
  """Token ids to one vector a token.

  Blocks stand side by side in the program. A loop over them compiles in 0.75 to 0.9 of the time,
  which is some seconds a shape, and takes 8 to 12% longer a step (4 and 8 layers, two CPU cores).

  What BatchNorm makes of an image depends on its pads, so a model that has it is always shown whole
  rows: shorter ones are filled up with pads, and so mean the same however they come.
  """

  def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
    self.config = config
    self.embedding = Embedding(config, rngs)
    if config.projection:
      self.projection = Projection(config, rngs)
    if config.short_convolution:
      self.short_convolution = ShortConvolution(config)
    if config.convolutions:
      self.convolution = FrontEnd(config, rngs)
    self.blocks = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
    if config.norm == 'pre':
      self.norm = layer_norm(config.hidden_size, config, rngs)

  @property
  def table(self) -> Float[Array | np.ndarray, '*S V E']:
    """The vectors of the pieces, which a tied head reads."""
    return self.embedding.tokens.embedding[...]

  def __call__(
    self,
    tokens: Integer[Array, 'B L'],
    mask: Bool[Array, 'B L'],
    *,
    key: Key[Array, 'B'] | None = None,
  ) -> Float[Array, 'B L D']:
    """Encodes a batch.

    Args:
      tokens: ids; a row may be shorter than `config.length`.
      mask: true where there is a token, false at pads, which nothing attends to.
      key: one a row: training, which drops units and takes statistics of the batch; None is
        evaluation.
    """
    given = tokens.shape[1]
    if self.config.batch_norm:
      fill = ((0, 0), (0, self.config.max_length - given))
      tokens, mask = jnp.pad(tokens, fill, constant_values=tokenizer.PAD_ID), jnp.pad(mask, fill)
    first, *rest, front = split_key(key, 2 + len(self.blocks))
    x = self.embedding(tokens, first)
    if self.config.projection:
      x = self.projection(x)
    if self.config.short_convolution:
      x = self.short_convolution(x, mask)
    if self.config.convolutions:
      x = self.convolution(x, mask, front)
    parts = zip(self.blocks, rest, strict=True)
    # in a loop: side by side, a compiler may find what is made twice and keep it after all
    if self.config.remat:

      def one(
        x: Float[Array, 'B L D'], part: tuple[Block, Key[Array, 'B'] | None]
      ) -> tuple[Any, None]:
        return part[0](x, mask, part[1]), None

      stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
      x = jax.lax.scan(jax.checkpoint(one, prevent_cse=False), x, stacked)[0]
    else:
      for block, block_key in parts:
        x = block(x, mask, block_key)
    return (self.norm(x) if self.config.norm == 'pre' else x)[:, :given]


# Where an encoder looks: the shares of attention of each head, as they are in evaluation.


def attention_weights(
  encoder: Encoder, tokens: Integer[Array, 'B L'], mask: Bool[Array, 'B L']
) -> list[Float[Array, 'B H L L']]:
  """Of each layer the share that a head gives from a place (third axis) to a place (fourth);
  nothing is dropped.

  Args:
    encoder: ours; one of the user's own need not have any attention.
    tokens: ids.
    mask: true where there is a token, false at pads, which get no share.
  """
  found = []

  def telling(block: Block) -> Callable[..., Float[Array, 'B L D']]:
    def call(
      x: Float[Array, 'B L D'], mask: Bool[Array, 'B L'], key: None
    ) -> Float[Array, 'B L D']:
      seen = block.attention_norm(x) if block.config.norm == 'pre' else x
      # which the block takes once more; a compiler takes it once
      found.append(block.attention.shares(seen, mask))
      return block(x, mask, key)

    return call

  # which takes blocks as arrays
  told, config = copy.copy(encoder), dataclasses.replace(encoder.config, remat=False)
  vars(told).update(blocks=[telling(block) for block in encoder.blocks], config=config)
  told(tokens, mask)
  given = tokens.shape[1]
  # a model with BatchNorm has filled the rows up with pads
  return [shares[..., :given, :given] for shares in found]
