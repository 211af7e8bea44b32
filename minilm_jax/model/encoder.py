"""Encodes token ids as vectors (paper 1, `LanModel`: RoBERTa with a factorised embedding, post-LN).

Axis letters in all packages: `B` batch, `L` length, `K` masked positions, `E` embedding, `D`
hidden, `H` heads, `F` feed-forward, `V` vocabulary, `P` population, `C` classes.

Layers are Flax NNX modules, used as pytrees under plain JAX transforms. A call takes one key a row,
so the dropout of a row does not depend on other rows; `key=None` drops nothing. `heads.py` has the
heads.

Two fields trade exactness or work for speed and memory. `dtype='bfloat16'` is the type of matrix
products and of activations between layers. Parameters, gradients and sums (norms, softmax, biases,
embedding tables, outputs of a head) stay float32. `remat` stores the input of each block and
recomputes its activations.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Integer, Key

from minilm_jax.core.corpus_config import END_ID, PAD_ID
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.model.convolution import FrontEnd
from minilm_jax.model.layers import (
  Linear,
  apply_activation,
  apply_dropout,
  build_layer_norm,
  split_key,
)

_PAD_SCORE = -1e30  # added to the scores of pads; finite, so a row of pads gives no NaN
_MAX_PERIOD = 10_000.0  # of rotary and sinusoidal positions
_SINUSOID_SCALE = 0.02  # standard deviation of initial token vectors


class ShortConvolution(nnx.Module):
  """Adds the depthwise convolution of a row over the tokens to the row, in float32."""

  def __init__(self, config: EncoderConfig):
    self.kernel = nnx.Param(jnp.zeros((config.short_convolution, config.hidden_size)))
    self.bias = nnx.Param(jnp.zeros((config.hidden_size,)))

  def __call__(self, x: Float[Array, 'B L D'], mask: Bool[Array, 'B L']) -> Float[Array, 'B L D']:
    # A sum of shifted rows replaces a convolution with `feature_group_count`, which XLA runs 170 to
    # 500 times slower on a CPU inside a loop, such as a chunk of steps. Measured: 79 ms and 0.46 ms,
    # forward and backward, for 16 rows of 64 tokens, 64 features, 3 taps.
    kernel, length = self.kernel[...], x.shape[1]
    side = len(kernel) // 2
    padded = jnp.pad(jnp.where(mask[:, :, None], x, 0), ((0, 0), (side, side), (0, 0)))
    taps = (padded[:, i : i + length] * kernel[None, i : i + 1] for i in range(len(kernel)))
    return (x + sum(taps, self.bias[...].reshape(1, 1, -1))).astype(x.dtype)


def _compute_angles(length: int, half: int) -> Float[np.ndarray, 'L half']:
  """Returns the angles of rotary and sinusoidal positions.

  Sines and cosines of NumPy are constants of the program. Those of JAX would be computed again for
  each row and head of a batch, by scalar instructions on a CPU.
  """
  return np.arange(length)[:, None] * _MAX_PERIOD ** (-np.arange(half) / half)


def _rotate(x: Float[Array, 'B L H dim']) -> Float[Array, 'B L H dim']:
  """Applies rotary positions: rotates each pair of features by an angle that grows with position."""
  half = x.shape[-1] // 2
  angles = _compute_angles(x.shape[1], half)[None, :, None]
  cos, sin = np.float32(np.cos(angles)), np.float32(np.sin(angles))
  first, second = x[..., :half], x[..., half:]
  return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(
    x.dtype
  )


def _build_sinusoids(length: int, width: int) -> Float[Array, 'L E']:
  """Returns the sinusoidal positions of Vaswani et al. (2017): alternating sine and cosine.

  The paper adds this table to token vectors of N(0, 1 / E) times sqrt(E). Token vectors of this
  encoder start at 0.02 N(0, 1), so a factor of 0.02 keeps the proportion.
  """
  angles = _compute_angles(length, width // 2)
  pairs = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
  return jnp.asarray(_SINUSOID_SCALE * pairs.reshape(length, width), jnp.float32)


class Embedding(nnx.Module):
  """Sums and normalises token, position and segment vectors.

  Learned positions start at row `position_offset` of the table (RoBERTa 2, BERT 0). Relative and
  rotary positions belong to attention. All tokens have the first segment. With
  `segment_embeddings_for_pairs`, tokens after the first `</s>` have the second segment.
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
    self.norm = build_layer_norm(config.embedding_size, config, rngs)

  def __call__(
    self, tokens: Integer[Array, 'B L'], key: Key[Array, 'B'] | None
  ) -> Float[Array, 'B L E']:
    x = self.tokens(tokens.astype(jnp.int32))
    if self.config.positions == 'learned':
      x += self.positions(jnp.arange(tokens.shape[1]) + self.config.position_offset)[None]
    if self.config.positions == 'sinusoidal':
      x += _build_sinusoids(*x.shape[1:])[None]
    if self.config.segments:
      segment = jnp.zeros((1, 1), jnp.int32)
      if self.config.segment_embeddings_for_pairs:
        ends = (tokens == END_ID).astype(jnp.int32)
        segment = (jnp.cumsum(ends, axis=1) > ends).astype(jnp.int32)  # 1 after the first end
      x += self.segments(segment)
    return apply_dropout(self.norm(x), self.config.dropout, key)


class Projection(nnx.Module):
  """Applies Linear(E, D) and, with `projection_norm`, LayerNorm; paper 1 has both even if E = D."""

  def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
    self.linear = Linear(config.embedding_size, config.hidden_size, config, rngs)
    self.has_norm = config.projection_norm
    if self.has_norm:
      self.norm = build_layer_norm(config.hidden_size, config, rngs)

  def __call__(self, x: Float[Array, 'B L E']) -> Float[Array, 'B L D']:
    return self.norm(self.linear(x)) if self.has_norm else self.linear(x)


def _mix(
  weights: Float[Array, 'B H L M'], x: Float[Array, 'B M H dim']
) -> Float[Array, 'B L H dim']:
  """Returns the sum over tokens, weighted for each head and query.

  On a CPU, this order of the operands is up to 2.7 times as fast as the other for narrow heads.
  """
  return jnp.einsum('BMHd,BHLM->BLHd', x, weights)


@jax.custom_vjp
def _compute_scores(
  q: Float[Array, 'B L H dim'], k: Float[Array, 'B M H dim']
) -> Float[Array, 'B H L M']:
  """Returns each query times each key in float32; the gradient has products in the input type."""
  return jnp.einsum('BLHd,BMHd->BHLM', q, k, preferred_element_type=jnp.float32)


def _compute_scores_backward(inputs: tuple, gradient: Float[Array, 'B H L M']) -> tuple:
  q, k = inputs
  gradient = gradient.astype(k.dtype)
  return _mix(gradient, k), jnp.einsum('BHLM,BLHd->BMHd', gradient, q)


_compute_scores.defvjp(lambda q, k: (_compute_scores(q, k), (q, k)), _compute_scores_backward)


class Attention(nnx.Module):
  """Applies scaled dot-product attention over the tokens without pads.

  Relative positions add `distance_bias[h, j - i + max_length - 1]` to a score, a learned number for
  each head and distance.
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
    v = self._split_heads(self.value(x))
    exponentials = self.exponentials(x, mask)
    weights = apply_dropout(exponentials, self.config.dropout, key).astype(v.dtype)
    # Softmax divides after the product, in arrays that are narrower by the ratio of length to width.
    sums = exponentials.sum(-1).swapaxes(1, 2)[..., None]
    return self.output((_mix(weights, v) / sums).astype(v.dtype).reshape(x.shape))

  def weights(self, x: Float[Array, 'B L D'], mask: Bool[Array, 'B L']) -> Float[Array, 'B H L L']:
    """Returns attention weights in float32, without dropout; weights sum to 1 over the last axis.

    The third axis is the token that attends, the fourth the attended token.
    """
    exponentials = self.exponentials(x, mask)
    return exponentials / exponentials.sum(-1, keepdims=True)

  def exponentials(
    self, x: Float[Array, 'B L D'], mask: Bool[Array, 'B L']
  ) -> Float[Array, 'B H L L']:
    """Returns the numerators of softmax in float32; the largest of each token is 1."""
    config, length = self.config, x.shape[1]
    q, k = self._split_heads(self.query(x)), self._split_heads(self.key(x))
    if config.positions == 'rotary':
      q, k = _rotate(q), _rotate(k)
    scores = _compute_scores(q / math.sqrt(q.shape[-1]), k)
    if config.positions == 'relative':
      distance = jnp.arange(length)[None, :] - jnp.arange(length)[:, None] + config.max_length - 1
      scores += self.distance_bias[...][:, distance][None]
    scores += jnp.where(mask, 0.0, _PAD_SCORE)[:, None, None]
    return jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))

  def _split_heads(self, x: Float[Array, 'B L D']) -> Float[Array, 'B L H dim']:
    return x.reshape(*x.shape[:2], self.config.num_heads, -1)


class FeedForward(nnx.Module):
  """Applies Linear(D, F), activation, Linear(F, D)."""

  def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
    self.activation = config.activation
    self.up = Linear(config.hidden_size, config.intermediate_size, config, rngs)
    self.down = Linear(config.intermediate_size, config.hidden_size, config, rngs)

  def __call__(self, x: Float[Array, 'B L D']) -> Float[Array, 'B L D']:
    return self.down(apply_activation(self.activation, self.up(x)))


class Block(nnx.Module):
  """Applies attention and feed-forward, each with dropout and a residual.

  LayerNorm follows each sum (`norm='post'`) or precedes each part (`norm='pre'`).
  """

  def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
    self.config = config
    self.attention = Attention(config, rngs)
    self.attention_norm = build_layer_norm(config.hidden_size, config, rngs)
    self.feed_forward = FeedForward(config, rngs)
    self.feed_forward_norm = build_layer_norm(config.hidden_size, config, rngs)

  def __call__(
    self, x: Float[Array, 'B L D'], mask: Bool[Array, 'B L'], key: Key[Array, 'B'] | None
  ) -> Float[Array, 'B L D']:
    weights_key, attention_key, feed_forward_key = split_key(key, 3)
    rate = self.config.dropout
    if self.config.norm == 'pre':
      mixed = self.attention(self.attention_norm(x), mask, weights_key)
      x = x + apply_dropout(mixed, rate, attention_key)
      return x + apply_dropout(self.feed_forward(self.feed_forward_norm(x)), rate, feed_forward_key)
    mixed = self.attention(x, mask, weights_key)
    x = self.attention_norm(x + apply_dropout(mixed, rate, attention_key))
    return self.feed_forward_norm(x + apply_dropout(self.feed_forward(x), rate, feed_forward_key))


class Encoder(nnx.Module):
  """Encodes token ids as one vector a token.

  The program unrolls the blocks. A loop over blocks saves 10 to 25% of the compilation, some
  seconds a shape. However, a loop adds 8 to 12% to a step (4 and 8 layers, two CPU cores).

  BatchNorm depends on the pads of a row, so a model with BatchNorm pads every row to `max_length`.
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
      self.norm = build_layer_norm(config.hidden_size, config, rngs)

  @property
  def table(self) -> Float[Array | np.ndarray, '*S V E']:
    """Vectors of the tokens; a tied head uses them as its kernel."""
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
      tokens: Ids; a row may be shorter than `config.max_length`.
      mask: True at tokens, false at pads, which receive no attention.
      key: A key for each row in training, for dropout and batch statistics; None in evaluation.
    """
    length = tokens.shape[1]
    tokens, mask = self._pad_rows(tokens, mask)
    embedding_key, *block_keys, front_end_key = split_key(key, 2 + len(self.blocks))
    x = self._embed(tokens, mask, embedding_key, front_end_key)
    blocks = zip(self.blocks, block_keys, strict=True)
    if self.config.remat:
      # A loop, because a compiler may merge both computations of an unrolled block and store it.
      def apply_block(x: Any, block_and_key: tuple[Block, Any]) -> tuple[Any, None]:
        block, block_key = block_and_key
        return block(x, mask, block_key), None

      stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
      x = jax.lax.scan(jax.checkpoint(apply_block, prevent_cse=False), x, stacked)[0]
    else:
      for block, block_key in blocks:
        x = block(x, mask, block_key)
    return (self.norm(x) if self.config.norm == 'pre' else x)[:, :length]

  def attention_weights(
    self, tokens: Integer[Array, 'B L'], mask: Bool[Array, 'B L']
  ) -> list[Float[Array, 'B H L L']]:
    """Returns the attention weights of each layer in evaluation.

    The third axis is the token that attends, the fourth the attended token.

    Args:
      mask: True at tokens, false at pads, which have weight 0.
    """
    length = tokens.shape[1]
    tokens, mask = self._pad_rows(tokens, mask)
    x = self._embed(tokens, mask, None, None)
    weights = []
    for block in self.blocks:
      inputs = block.attention_norm(x) if self.config.norm == 'pre' else x
      weights.append(block.attention.weights(inputs, mask)[..., :length, :length])
      x = block(x, mask, None)
    return weights

  def _pad_rows(
    self, tokens: Integer[Array, 'B L'], mask: Bool[Array, 'B L']
  ) -> tuple[Integer[Array, 'B M'], Bool[Array, 'B M']]:
    if not self.config.batch_norm:
      return tokens, mask
    widths = ((0, 0), (0, self.config.max_length - tokens.shape[1]))
    return jnp.pad(tokens, widths, constant_values=PAD_ID), jnp.pad(mask, widths)

  def _embed(
    self,
    tokens: Integer[Array, 'B L'],
    mask: Bool[Array, 'B L'],
    embedding_key: Key[Array, 'B'] | None,
    front_end_key: Key[Array, 'B'] | None,
  ) -> Float[Array, 'B L D']:
    """Returns the input of the first block."""
    x = self.embedding(tokens, embedding_key)
    if self.config.projection:
      x = self.projection(x)
    if self.config.short_convolution:
      x = self.short_convolution(x, mask)
    if self.config.convolutions:
      x = self.convolution(x, mask, front_end_key)
    return x
