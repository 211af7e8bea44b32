"""A custom encoder: pre-norm blocks of rotary attention and SwiGLU, with RMSNorm and without biases.

configs/examples/own_encoder.py trains it; minilm_jax/model/custom.py describes the interface.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from minilm_jax.model.layers import apply_dropout, split_key


def rotate(x):  # [B L H dim]
  """Rotates pairs of features by angles proportional to the position."""
  length, half = x.shape[1], x.shape[-1] // 2
  angle = (np.arange(length)[:, None] * 1e4 ** (-np.arange(half) / half))[None, :, None]
  cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))  # constants of the program
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x.dtype)


class Block(nnx.Module):
  def __init__(self, config, rngs):
    linear = lambda i, o: nnx.Linear(i, o, use_bias=False, dtype=config.dtype, rngs=rngs)  # noqa: E731
    d, f = config.hidden_size, config.intermediate_size
    self.num_heads, self.dropout = config.num_heads, config.dropout
    self.norm, self.feed_norm = (nnx.RMSNorm(d, dtype=config.dtype, rngs=rngs) for _ in range(2))
    self.qkv, self.output = linear(d, 3 * d), linear(d, d)
    self.up, self.down = linear(d, 2 * f), linear(f, d)

  def __call__(self, x, mask, key):  # [B L D], [B L], a key for each row or None -> [B L D]
    attention_key, feed_key = split_key(key, 2)
    parts = jnp.split(self.qkv(self.norm(x)), 3, -1)
    q, k, v = (part.reshape(*x.shape[:2], self.num_heads, -1) for part in parts)
    # The mask excludes pads.
    mixed = jax.nn.dot_product_attention(rotate(q), rotate(k), v, mask=mask[:, None, None])
    x = x + apply_dropout(self.output(mixed.reshape(x.shape)), self.dropout, attention_key)
    gate, value = jnp.split(self.up(self.feed_norm(x)), 2, -1)
    return x + apply_dropout(self.down(jax.nn.silu(gate) * value), self.dropout, feed_key)


class Encoder(nnx.Module):
  def __init__(self, config, rngs):
    v, d, dtype = config.vocab_size, config.hidden_size, config.dtype
    start = nnx.initializers.normal(0.02)
    self.embedding = nnx.Embed(v, d, embedding_init=start, dtype=dtype, rngs=rngs)
    self.blocks = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
    self.norm = nnx.RMSNorm(d, dtype=dtype, rngs=rngs)

  @property
  def table(self):  # [V D], for a tied head
    return self.embedding.embedding[...]

  def __call__(self, tokens, mask, *, key=None):  # [B L], [B L], [B] or None -> [B L D]
    x = self.embedding(tokens)
    for block, block_key in zip(self.blocks, split_key(key, len(self.blocks)), strict=True):
      x = block(x, mask, block_key)
    return self.norm(x)
