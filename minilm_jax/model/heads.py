"""Heads on an Encoder: masked language modelling, classification, regression.

Logits exist only where something is predicted: the output matrix is most of the arithmetic of a
tiny model. They are float32, whatever the model computes in.
"""

import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Integer, Key

from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.model import custom
from minilm_jax.model.encoder import Encoder
from minilm_jax.model.initialization import initialize
from minilm_jax.model.layers import Linear, activation, dropout, layer_norm, split_key


def _build_encoder(config: EncoderConfig, rngs: nnx.Rngs) -> Any:
  """Ours, or the one of the user's own that the recipe names; a call of either is tokens and mask
  to `[B L D]`.
  """
  return custom.build_encoder(config)(config, rngs) if config.encoder else Encoder(config, rngs)


class MaskedLanguageModel(nnx.Module):
  """Linear(D, D), activation, LayerNorm, Linear(D, V), at chosen positions; tied, the last is the
  embedding table.
  """

  def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
    self.config = config
    self.encoder = _build_encoder(config, rngs)
    self.transform = Linear(config.hidden_size, config.hidden_size, config, rngs)
    self.norm = layer_norm(config.hidden_size, config, rngs)
    if config.tied:
      self.output_bias = nnx.Param(jnp.zeros((config.vocab_size,)))
    else:
      self.output = nnx.Linear(config.hidden_size, config.vocab_size, rngs=rngs)

  def __call__(
    self,
    tokens: Integer[Array, 'B L'],
    mask: Bool[Array, 'B L'],
    positions: Integer[Array, 'B K'],
    *,
    key: Key[Array, 'B'] | None = None,
  ) -> Float[Array, 'B K V']:
    """Logits at `positions` of each row."""
    kernel, bias = self.output_weights()
    x = self.features(tokens, mask, positions, key=key)
    return (
      jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32) + bias[None, None]
    )

  def features(
    self,
    tokens: Integer[Array, 'B L'],
    mask: Bool[Array, 'B L'],
    positions: Integer[Array, 'B K'],
    *,
    key: Key[Array, 'B'] | None = None,
  ) -> Float[Array, 'B K D']:
    """What the output projection reads at `positions` of each row."""
    x = self.encoder(tokens, mask, key=key)
    x = jnp.take_along_axis(x, positions[:, :, None], axis=1)
    return self.norm(activation(self.config.activation, self.transform(x)))

  def output_weights(self) -> tuple[Float[Array, 'D V'], Float[Array, 'V']]:
    """Kernel and bias of the output projection, as they are kept: in float32."""
    if self.config.tied:
      return self.encoder.table[...].T, self.output_bias[...]
    return self.output.kernel[...], self.output.bias[...]


class Head(nnx.Module):
  """From the vectors of a row to its logits, as `Classifier` describes."""

  def __init__(self, config: EncoderConfig, head: HeadConfig, classes: int, rngs: nnx.Rngs):
    self.head = head
    if head.pooling == 'positions':
      self.pool = Linear(config.max_length, 1, config, rngs)
    else:
      self.dense = Linear(config.hidden_size, config.hidden_size, config, rngs)
    self.output = nnx.Linear(config.hidden_size, classes, rngs=rngs)

  def logits(
    self,
    x: Float[Array, 'B L D'],
    mask: Bool[Array, 'B L'],
    before: Key[Array, 'B'] | None,
    after: Key[Array, 'B'] | None,
  ) -> Float[Array, 'B C']:
    """Logits of each row; the keys are those of dropout before the dense layer and after it."""
    if self.head.pooling == 'positions':
      return self.output(self.pool(x.swapaxes(1, 2))[..., 0])
    if self.head.pooling == 'mean':
      x = jnp.where(mask[:, :, None], x, 0).sum(1) / jnp.maximum(mask.sum(1), 1)[:, None]
    else:
      x = x[:, 0]
    x = jnp.tanh(self.dense(dropout(x, self.head.dropout, before)))
    return self.output(dropout(x, self.head.dropout, after))


class Classifier(Head):
  """One of `classes` labels a row.

  Pooling `first` is RoBERTa's head: the vector of `<s>`, dropout, Linear(D, D), tanh, dropout,
  Linear(D, C); `mean` is the same over the mean of the tokens; `positions` is the paper's own head,
  one learned weight a position, pads included, then Linear(D, C) and nothing between (paper 1, the
  released classification model).

  `head.ensemble_size` such heads stand on the one encoder: this one and `others`, each with a start
  and dropout of its own, so that the first is what it would be alone. The answer is the mean of
  their logits, the loss the mean of their
  losses: the cheap control of a committee, after Multi-CLS BERT (arXiv 2210.05043).
  """

  def __init__(self, config: EncoderConfig, head: HeadConfig, classes: int, rngs: nnx.Rngs):
    super().__init__(config, head, classes, rngs)
    self.config = config
    self.encoder = _build_encoder(config, rngs)
    self.others = nnx.List(
      [Head(config, head, classes, rngs) for _ in range(head.ensemble_size - 1)]
    )

  def __call__(
    self,
    tokens: Integer[Array, 'B L'],
    mask: Bool[Array, 'B L'],
    *,
    key: Key[Array, 'B'] | None = None,
  ) -> Float[Array, 'B C']:
    """Logits of each row."""
    return functools.reduce(jnp.add, self.each(tokens, mask, key=key)) / self.head.ensemble_size

  def each(
    self,
    tokens: Integer[Array, 'B L'],
    mask: Bool[Array, 'B L'],
    *,
    key: Key[Array, 'B'] | None = None,
  ) -> list[Float[Array, 'B C']]:
    """Logits of each row by each head."""
    below, *own = split_key(key, 1 + 2 * self.head.ensemble_size)
    x = self.encoder(tokens, mask, key=below)
    pairs = zip(own[::2], own[1::2], strict=True)
    return [
      one.logits(x, mask, *pair) for one, pair in zip((self, *self.others), pairs, strict=True)
    ]


class Regressor(Classifier):
  """One number a row."""

  def __init__(self, config: EncoderConfig, head: HeadConfig, rngs: nnx.Rngs):
    super().__init__(config, head, 1, rngs)


def init_masked_language_model(config: EncoderConfig, key: Key[Array, '']) -> MaskedLanguageModel:
  """A fresh model for pre-training."""
  return initialize(
    MaskedLanguageModel(config, nnx.Rngs(key)), config.initialization, key, _initialize(config)
  )


def init_classifier(
  config: EncoderConfig, head: HeadConfig, classes: int, key: Key[Array, '']
) -> Classifier:
  """A fresh model for a task; `classes=0` is a regression."""
  rngs = nnx.Rngs(key)
  model = Classifier(config, head, classes, rngs) if classes else Regressor(config, head, rngs)
  return initialize(model, config.initialization, key, _initialize(config))


def _initialize(config: EncoderConfig) -> str:
  """The paths that have started as they were made: a class of the user's own has its own way to
  start.
  """
  return 'encoder.' if config.encoder else ''
