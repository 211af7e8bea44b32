"""Adds heads to an encoder: masked language modelling, classification, regression.

Logits are computed only at predicted positions, because the output projection is most of the
arithmetic of a tiny model. Logits are float32 for every `config.dtype`.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Integer, Key

from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.model.encoder import Encoder
from minilm_jax.model.initialization import cache_by_encoder, initialize
from minilm_jax.model.layers import (
  Linear,
  apply_activation,
  apply_dropout,
  build_layer_norm,
  split_key,
)

M = TypeVar('M', bound=nnx.Module)


def _build_encoder(config: EncoderConfig, rngs: nnx.Rngs) -> Any:
  """Returns the encoder of this package, or the custom encoder of `config.encoder`."""
  if not config.encoder:
    return Encoder(config, rngs)
  # Imported late, because only a recipe with a custom encoder needs the loader.
  from minilm_jax.model.custom import load_custom_encoder

  return load_custom_encoder(config)(config, rngs)


class MaskedLanguageModel(nnx.Module):
  """Applies Linear(D, D), activation, LayerNorm, Linear(D, V) to some positions of an encoder.

  With `tied`, the kernel of Linear(D, V) is the embedding table.
  """

  def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
    self.config = config
    self.encoder = _build_encoder(config, rngs)
    self.transform = Linear(config.hidden_size, config.hidden_size, config, rngs)
    self.norm = build_layer_norm(config.hidden_size, config, rngs)
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
    """Returns logits at `positions` of each row."""
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
    """Returns the input of the output projection at `positions` of each row."""
    x = self.encoder(tokens, mask, key=key)
    x = jnp.take_along_axis(x, positions[:, :, None], axis=1)
    return self.norm(apply_activation(self.config.activation, self.transform(x)))

  def output_weights(self) -> tuple[Float[Array, 'D V'], Float[Array, 'V']]:
    """Returns kernel and bias of the output projection in float32."""
    if self.config.tied:
      return self.encoder.table[...].T, self.output_bias[...]
    bias = cast(nnx.Param, self.output.bias)
    return self.output.kernel[...], bias[...]


class Head(nnx.Module):
  """Maps the vectors of a row to logits; see `Classifier` for the poolings."""

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
    """Returns logits of each row.

    Args:
      mask: True at tokens, false at pads.
      before: Keys of the dropout before the dense layer.
      after: Keys of the dropout after the dense layer.
    """
    if self.head.pooling == 'positions':
      return self.output(self.pool(x.swapaxes(1, 2))[..., 0])
    if self.head.pooling == 'mean':
      x = jnp.where(mask[:, :, None], x, 0).sum(1) / jnp.maximum(mask.sum(1), 1)[:, None]
    else:
      x = x[:, 0]
    x = jnp.tanh(self.dense(apply_dropout(x, self.head.dropout, before)))
    return self.output(apply_dropout(x, self.head.dropout, after))


class Classifier(Head):
  """Predicts one of `classes` labels a row.

  `head.pooling` is one of:

  - `first` (RoBERTa): the vector of `<s>`, dropout, Linear(D, D), tanh, dropout, Linear(D, C).
  - `mean`: as `first`, with the mean of the vectors of all tokens.
  - `positions` (released classification model of paper 1): a learned weight for each position, pads
    included, then Linear(D, C).

  `head.ensemble_size` heads share the encoder: the classifier itself and `others`, which differ in
  initialization and dropout. The first head equals the head of a model without `others`. Logits and
  losses are means over the heads. This ensemble is a control of low cost for a committee, after
  Multi-CLS BERT (arXiv 2210.05043).
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
    """Returns logits of each row, averaged over the heads."""
    head_logits = self.logits_by_head(tokens, mask, key=key)
    return functools.reduce(jnp.add, head_logits) / self.head.ensemble_size

  def logits_by_head(
    self,
    tokens: Integer[Array, 'B L'],
    mask: Bool[Array, 'B L'],
    *,
    key: Key[Array, 'B'] | None = None,
  ) -> list[Float[Array, 'B C']]:
    """Returns logits of each row by each head."""
    encoder_key, *head_keys = split_key(key, 1 + 2 * self.head.ensemble_size)
    x = self.encoder(tokens, mask, key=encoder_key)
    heads = (self, *self.others)
    return [
      head.logits(x, mask, before, after)
      for head, before, after in zip(heads, head_keys[::2], head_keys[1::2], strict=True)
    ]


def init_masked_language_model(config: EncoderConfig, key: Key[Array, '']) -> MaskedLanguageModel:
  """Returns a model with initial parameters for pre-training."""
  return _initialize(MaskedLanguageModel, (config,), key)


def init_classifier(
  config: EncoderConfig, head: HeadConfig, classes: int, key: Key[Array, '']
) -> Classifier:
  """Returns a model with initial parameters for a task; `classes=0` is a regression."""
  return _initialize(Classifier, (config, head, classes or 1), key)


@cache_by_encoder()
def trace_masked_language_model(config: EncoderConfig) -> MaskedLanguageModel:
  """Returns a model for pre-training with shapes in place of parameters."""
  if config.encoder:
    return jax.eval_shape(lambda: init_masked_language_model(config, jax.random.key(0)))
  return _trace_shapes(MaskedLanguageModel, (config,))


def _initialize(
  model_class: Callable[..., M], arguments: tuple[Any, ...], key: Key[Array, '']
) -> M:
  config = arguments[0]
  if config.encoder:
    # A custom encoder initializes its parameters in __init__.
    return initialize(
      model_class(*arguments, nnx.Rngs(key)), config.initialization, key, 'encoder.'
    )
  return initialize(_trace_shapes(model_class, arguments), config.initialization, key)


class _ConstantRngs(nnx.Rngs):
  """Has one key for all parameters, whose values are not used.

  The counter of `nnx.Rngs` takes most of the time of tracing a model.
  """

  def params(self) -> Key[Array, '']:
    return jax.random.key(0)


@functools.lru_cache(maxsize=64)
def _trace_shapes(model_class: Callable[..., M], arguments: tuple[Any, ...]) -> M:
  """Returns a model with shapes in place of parameters, as `initialize` draws all of them."""
  return jax.eval_shape(lambda: model_class(*arguments, _ConstantRngs()))
