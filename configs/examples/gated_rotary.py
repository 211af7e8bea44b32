"""Another encoder: blocks of rotary attention and a gated feed-forward (SwiGLU), pre-norm, RMSNorm,
no biases.

configs/examples/gated.py names it as config.model.encoder; minilm_jax/model/custom.py says what
such a class offers. Copy this file, change the block, and give
`--config.model.encoder=your_file:YourClass`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from minilm_jax.model.layers import dropout, keys


def rotate(x):  # [B L H d]: each pair of features turned by an angle that grows with the position
  length, half = x.shape[1], x.shape[-1] // 2
  angle = jnp.arange(length)[:, None] * 1e4 ** (-jnp.arange(half) / half)[None]
  cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
  first, second = x[..., :half], x[..., half:]
  return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], -1).astype(
    x.dtype
  )


class Block(nnx.Module):
  def __init__(self, config, rngs):
    def linear(inputs, outputs):
      return nnx.Linear(inputs, outputs, use_bias=False, dtype=config.dtype, rngs=rngs)

    self.heads, self.rate, hidden = config.num_heads, config.dropout, config.hidden_size
    self.norm, self.feed_norm = (
      nnx.RMSNorm(hidden, dtype=config.dtype, rngs=rngs) for _ in range(2)
    )
    self.qkv, self.output = linear(hidden, 3 * hidden), linear(hidden, hidden)
    self.up, self.down = (
      linear(hidden, 2 * config.intermediate_size),
      linear(config.intermediate_size, hidden),
    )

  def __call__(self, x, mask, key):
    after, last = keys(key, 2)
    q, k, v = (
      part.reshape(*x.shape[:2], self.heads, -1)
      for part in jnp.split(self.qkv(self.norm(x)), 3, -1)
    )
    # no pad is attended to
    mixed = jax.nn.dot_product_attention(rotate(q), rotate(k), v, mask=mask[:, None, None])
    x = x + dropout(self.output(mixed.reshape(x.shape)), self.rate, after)
    gate, value = jnp.split(self.up(self.feed_norm(x)), 2, -1)
    return x + dropout(self.down(jax.nn.silu(gate) * value), self.rate, last)


class Encoder(nnx.Module):
  def __init__(self, config, rngs):
    start = nnx.initializers.normal(0.02)
    self.embedding = nnx.Embed(
      config.vocab_size, config.hidden_size, embedding_init=start, dtype=config.dtype, rngs=rngs
    )
    self.blocks = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
    self.norm = nnx.RMSNorm(config.hidden_size, dtype=config.dtype, rngs=rngs)

  @property
  def table(self):  # [V D], for a tied head
    return self.embedding.embedding[...]

  def __call__(self, tokens, mask, *, key=None):
    x = self.embedding(tokens)
    for block, own in zip(self.blocks, keys(key, len(self.blocks)), strict=True):
      x = block(x, mask, own)
    return self.norm(x)
