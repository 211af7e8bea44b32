"""Declares every field of an encoder and of a classification head: type, range, default, meaning.

The types are frozen and hashable, because they are cache keys of compiled programs. They are
validated on construction.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any

from minilm_jax.core.errors import (
  AxisSize,
  Checked,
  Fraction,
  InputError,
  NonNegativeFloat,
  OptionalAxisSize,
  PositiveInt,
  RowLength,
  at_least,
  at_most,
  one_of,
)

MAX_LAYERS = 10_000
_CLASS_PATH = re.compile(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*', re.ASCII)


def _check_class_path(field: str, value: str) -> None:
  if value and not _CLASS_PATH.fullmatch(value):
    raise InputError(
      f'{field}={value!r}',
      'not of the form package.module:Class',
      "give package.module:Class, or '' for the built-in encoder",
    )


# Names of transformers for the activations.
TRANSFORMERS_ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_tanh': 'gelu_pytorch_tanh',
  'relu': 'relu',
  'silu': 'silu',
}
SHAPE_FIELDS = {
  'e': 'embedding_size',
  'h': 'hidden_size',
  'f': 'intermediate_size',
  'a': 'num_heads',
  'l': 'num_layers',
}


def format_shape(model: Mapping[str, Any]) -> str:
  """Returns the sizes of an encoder as a short name.

  Args:
    model: fields of an encoder by name.

  Raises:
    KeyError: a size is missing.

  >>> sizes = {'hidden_size': 64, 'intermediate_size': 256, 'num_heads': 8, 'num_layers': 2}
  >>> format_shape({'embedding_size': 64, **sizes})
  'e64-h64-f256-a8-l2'
  """
  return '-'.join(f'{letter}{int(model[field])}' for letter, field in SHAPE_FIELDS.items())


@dataclasses.dataclass(frozen=True)
class EncoderConfig(Checked):
  """Sizes and switches of an encoder (paper 1, `LanModel`)."""

  prefix = 'model.'
  # Custom Flax module as package.module:Class; '' takes the encoder of this package.
  encoder: Annotated[str, _check_class_path] = ''
  vocab_size: AxisSize = 19010  # Rows of the embedding table; at least the size of the tokenizer.
  embedding_size: AxisSize = 32  # Axis E.
  hidden_size: AxisSize = 32  # Axis D.
  intermediate_size: AxisSize = 64  # Axis F, the hidden size of the feed-forward layers.
  num_heads: AxisSize = 8  # Axis H, attention heads.
  num_layers: Annotated[int, at_least(1), at_most(MAX_LAYERS)] = 1  # Number of blocks.
  max_length: RowLength = 128  # Axis L, the maximum number of tokens in a row.
  # Layers of the convolutional front-end before the blocks (paper 2); 0 has no front-end.
  convolutions: Annotated[int, at_least(0), at_most(MAX_LAYERS)] = 0
  kernel: tuple[int, ...] = ()  # Kernel size of the front-end: tokens, features, such as 3,3.
  channels: OptionalAxisSize = 0  # Output channels of each convolution of the front-end.
  # Front-end of paper2 (BatchNorm over the batch including <pad>, no residual), or fixed (without
  # <pad>, with residual).
  convolution: Annotated[str, one_of('paper2', 'fixed')] = 'paper2'
  norm: Annotated[str, one_of('post', 'pre')] = (
    'post'  # LayerNorm after (paper 1) or before a layer.
  )
  # learned, sinusoidal (fixed), relative (a bias for each head and distance), rotary, or none.
  positions: Annotated[str, one_of('learned', 'sinusoidal', 'relative', 'rotary', 'none')] = (
    'learned'
  )
  # Index of the first learned position: 2 in RoBERTa and paper 1, 0 in BERT and paper 2.
  position_offset: OptionalAxisSize = 2
  # Rows of the segment table; all tokens use the first row. 0 has no table.
  segments: OptionalAxisSize = 2
  projection: bool = True  # Linear(E, D) and LayerNorm between embedding and blocks.
  tied: bool = False  # Share the embedding table with the output layer; requires E = D.
  # gelu (exact), gelu_tanh (approximation), relu, or silu.
  activation: Annotated[str, one_of(*TRANSFORMERS_ACTIVATIONS)] = 'gelu'
  dropout: Fraction = 0.1  # Dropout rate of embeddings, attention weights and outputs of layers.
  # standard, paper1 (as in its released code), or bert: N(0, 0.02).
  initialization: Annotated[str, one_of('standard', 'paper1', 'bert')] = 'standard'
  norm_epsilon: NonNegativeFloat = 1e-5  # Variance offset of LayerNorm.
  # Heads in the FLOP formula of paper 1, whose logged runs differ from num_heads.
  flops_heads: AxisSize = 8
  # Type of matrix products and activations; bfloat16 suits accelerators. Other values are float32.
  dtype: Annotated[str, one_of('float32', 'bfloat16')] = 'float32'
  # Recompute activations in the backward pass: memory of one block, up to a third more FLOPs.
  remat: bool = False
  projection_norm: bool = True  # LayerNorm after the projection; False in ELECTRA.
  # Give tokens after the first </s> the second row of the segment table, as in BERT.
  segment_embeddings_for_pairs: bool = False
  # Width in tokens (odd) of a depthwise convolution before the blocks; 0 has no convolution.
  short_convolution: OptionalAxisSize = 0

  def check_together(self) -> None:
    if self.hidden_size % self.num_heads:
      divisors = [
        n for n in range(1, min(self.hidden_size, 1 << 16) + 1) if self.hidden_size % n == 0
      ]
      nearest = sorted(divisors, key=lambda n: abs(n - self.num_heads))[:3]
      raise InputError(
        f'model.num_heads={self.num_heads}',
        f'model.hidden_size={self.hidden_size}, which is not a multiple',
        f'give a divisor of it, such as {", ".join(map(str, sorted(nearest)))}',
      )
    if self.positions == 'rotary' and self.hidden_size // self.num_heads % 2:
      raise InputError(
        'model.positions=rotary',
        f'an odd head size: hidden_size {self.hidden_size} / num_heads {self.num_heads}',
        'change model.num_heads, so that the head size is even',
      )
    if self.positions == 'sinusoidal' and self.embedding_size % 2:
      raise InputError(
        'model.positions=sinusoidal',
        f'model.embedding_size={self.embedding_size}, an odd number',
        'give an even model.embedding_size for pairs of sine and cosine',
      )
    for name, needs_equal in (('projection=False', not self.projection), ('tied=True', self.tied)):
      if needs_equal and self.embedding_size != self.hidden_size:
        raise InputError(
          f'model.{name}',
          f'embedding_size {self.embedding_size} differs from hidden_size {self.hidden_size}',
          f'make the sizes equal, or change model.{name.partition("=")[0]}',
        )
    if not self.projection_norm and not self.projection:
      raise InputError(
        'model.projection_norm=False',
        'model.projection=False',
        'set model.projection or model.projection_norm to True',
      )
    if self.segment_embeddings_for_pairs and self.segments < 2:
      raise InputError(
        'model.segment_embeddings_for_pairs=True',
        f'model.segments={self.segments}',
        'give model.segments=2',
      )
    self._check_convolutions()

  def _check_convolutions(self) -> None:
    for name in ('convolutions', 'short_convolution'):
      if self.encoder and getattr(self, name):
        raise InputError(
          f'model.encoder={self.encoder}',
          f'model.{name}={getattr(self, name)}, a part of the built-in encoder',
          f'give model.{name}=0',
        )
    if self.short_convolution and (
      self.short_convolution % 2 == 0 or self.short_convolution > self.max_length
    ):
      raise InputError(
        f'model.short_convolution={self.short_convolution}',
        f'not an odd number up to model.max_length={self.max_length}',
        'give an odd width, such as 3',
      )
    settings = self.format_fields('convolutions', 'kernel', 'channels')
    if not self.convolutions:
      if self.kernel or self.channels:
        raise InputError(
          settings,
          'a kernel or channels without convolutions',
          "give model.convolutions above 0, or model.kernel='' and model.channels=0",
        )
      return
    if len(self.kernel) != 2 or min(self.kernel) < 1 or not self.channels:
      raise InputError(
        settings,
        'not two kernel sizes (tokens, features) and a number of channels',
        'give for example model.kernel=3,3 and model.channels=64',
      )
    if self.kernel[0] > self.max_length or self.kernel[1] > self.hidden_size:
      raise InputError(
        settings,
        f'a kernel larger than the input of {self.max_length} tokens x {self.hidden_size} features',
        'give a smaller kernel',
      )

  @property
  def batch_norm(self) -> bool:
    """Whether BatchNorm covers the batch and its pads, so that batches must not be split."""
    return self.convolutions > 0 and self.convolution == 'paper2'


@dataclasses.dataclass(frozen=True)
class HeadConfig(Checked):
  """Classification or regression head: pooling over tokens, and the number of heads."""

  prefix = 'head.'
  # Pooling: hidden state of <s> (first), mean over tokens (mean), or a learned weight for each
  # position as in paper 1 (positions).
  pooling: Annotated[str, one_of('first', 'mean', 'positions')] = 'first'
  # Dropout rate of the head and, in place of model.dropout, of the encoder in fine-tuning.
  dropout: Fraction = 0.1
  # Number of heads with separate initialization and dropout, whose logits are averaged.
  ensemble_size: PositiveInt = 1
