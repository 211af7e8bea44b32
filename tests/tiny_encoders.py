"""Tiny encoders with random weights, their token rows and their compiled calls."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.model import heads
from minilm_jax.model.initialization import path_name
from tests import fast_jit

SMALL = EncoderConfig(
  encoder='',
  vocab_size=50,
  embedding_size=12,
  hidden_size=16,
  intermediate_size=24,
  num_heads=4,
  num_layers=1,
  max_length=12,
  norm='post',
  positions='learned',
  segments=2,
  projection=True,
  tied=False,
  activation='gelu',
  dropout=0.1,
  initialization='standard',
  norm_epsilon=1e-5,
  flops_heads=4,
  dtype='float32',
  remat=False,
  projection_norm=True,
  segment_embeddings_for_pairs=False,
  short_convolution=0,
  position_offset=2,
  convolutions=0,
  kernel=(),
  channels=0,
  convolution='paper2',
)


def make_model(changes: dict[str, Any], seed: int = 0) -> heads.MaskedLanguageModel:
  """A model whose every array is random, so that no part is without effect; numpy draws it, which
  compiles nothing.
  """
  config, dice = dataclasses.replace(SMALL, **changes), np.random.default_rng(seed)

  def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    around = 1 if path_name(path).endswith('.scale') else 0
    return jnp.asarray(around + 0.3 * dice.standard_normal(leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(
    draw, jax.eval_shape(lambda: heads.init_masked_language_model(config, jax.random.key(0)))
  )


def every_logit(model: heads.MaskedLanguageModel, tokens: jax.Array) -> jax.Array:
  """Logits at all positions."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  return model(tokens, tokens != 1, positions)


logits = fast_jit.jit(every_logit)
encode = fast_jit.jit(lambda model, tokens, mask: model(tokens, mask))


def draw_tokens(rows: int, length: int, seed: int = 0) -> jax.Array:
  return jax.random.randint(jax.random.key(seed), (rows, length), 5, SMALL.vocab_size)


def pad_tokens(tokens: jax.Array, length: int) -> jax.Array:
  return jnp.pad(tokens, ((0, 0), (0, length - tokens.shape[1])), constant_values=1)
