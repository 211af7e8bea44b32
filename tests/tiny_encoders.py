"""Tiny encoders with random weights, their token rows and their compiled calls."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.model import heads
from minilm_jax.model.initialization import path_name

SMALL = EncoderConfig(
  vocab_size=50,
  embedding_size=12,
  hidden_size=16,
  intermediate_size=24,
  num_heads=4,
  max_length=12,
)


def draw_arrays(shapes: Any, seed: int = 0) -> Any:
  """Returns a model with random arrays, so that all parts affect the output.

  Scales are near 1 and variances are positive. numpy draws the arrays without compilation.
  """
  generator = np.random.default_rng(seed)

  def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    name = path_name(path)
    if name.endswith('variance'):
      return jnp.asarray(generator.uniform(0.5, 2, leaf.shape), jnp.float32)
    values = name.endswith('scale') + 0.3 * generator.standard_normal(leaf.shape)
    return jnp.asarray(values, jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def make_model(
  changes: dict[str, Any], seed: int = 0, config: EncoderConfig = SMALL
) -> heads.MaskedLanguageModel:
  """Returns a model of `config` with some fields changed and with random arrays."""
  config = dataclasses.replace(config, **changes)
  shapes = jax.eval_shape(lambda: heads.init_masked_language_model(config, jax.random.key(0)))
  return draw_arrays(shapes, seed)


def compute_logits(model: heads.MaskedLanguageModel, tokens: jax.Array) -> jax.Array:
  """Returns logits at all positions."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  return model(tokens, tokens != 1, positions)


logits = jax.jit(compute_logits)
encode = jax.jit(lambda model, tokens, mask: model(tokens, mask))


def draw_tokens(rows: int, length: int, seed: int = 0) -> jax.Array:
  return jax.random.randint(jax.random.key(seed), (rows, length), 5, SMALL.vocab_size)


def pad_tokens(tokens: jax.Array, length: int) -> jax.Array:
  return jnp.pad(tokens, ((0, 0), (0, length - tokens.shape[1])), constant_values=1)
