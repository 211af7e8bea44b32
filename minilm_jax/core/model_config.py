"""Declares every field of an encoder and of a classification head: type, range, default and reason.

The types are frozen, hashable and checked when they are made: compiled programs are cached by them.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any

from minilm_jax.core.errors import InputError
from minilm_jax.core.schema import (
  AxisSize,
  Checked,
  Fraction,
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
      f'{field}={value!r}', 'no name of a class', "give package.module:Class, or '' for our encoder"
    )


SHAPE_FIELDS = {
  'e': 'embedding_size',
  'h': 'hidden_size',
  'f': 'intermediate_size',
  'a': 'num_heads',
  'l': 'num_layers',
}


def short_shape(model: Mapping[str, Any]) -> str:
  """Returns the sizes of an encoder in short.

  Args:
    model: fields of an encoder by name.

  Raises:
    KeyError: a size is missing.

  >>> sizes = {'hidden_size': 64, 'intermediate_size': 256, 'num_heads': 8, 'num_layers': 2}
  >>> short_shape({'embedding_size': 64, **sizes})
  'e64-h64-f256-a8-l2'
  """
  return '-'.join(f'{letter}{int(model[field])}' for letter, field in SHAPE_FIELDS.items())


@dataclasses.dataclass(frozen=True)
class EncoderConfig(Checked):
  """Shape and switches of an encoder (paper 1, `LanModel`)."""

  where = 'model.'
  # package.module:Class, a custom Flax module; '' takes the encoder of this package.
  encoder: Annotated[str, _check_class_path] = ''
  vocab_size: AxisSize = 19010  # Rows of the embedding table; at least the size of the tokenizer.
  embedding_size: AxisSize = 32  # Axis E.
  hidden_size: AxisSize = 32  # Axis D.
  intermediate_size: AxisSize = 64  # Axis F.
  num_heads: AxisSize = 8  # Axis H.
  num_layers: Annotated[int, at_least(1), at_most(MAX_LAYERS)] = 1
  max_length: RowLength = 128  # Axis L, the longest row in tokens.
  # Layers of the convolutional front-end before the blocks (paper 2); 0 leaves it out.
  convolutions: Annotated[int, at_least(0), at_most(MAX_LAYERS)] = 0
  kernel: tuple[int, ...] = ()  # Size of each kernel: tokens, features, as in 3,3.
  channels: OptionalAxisSize = 0  # Output channels of each convolution.
  # paper2 (BatchNorm over the batch with its pads, no residual) or fixed (pads excluded, residual).
  convolution: Annotated[str, one_of('paper2', 'fixed')] = 'paper2'
  norm: Annotated[str, one_of('post', 'pre')] = 'post'  # post (paper 1) or pre.
  # learned, sinusoidal (fixed), relative (a bias for each head and distance), rotary, or none.
  positions: Annotated[str, one_of('learned', 'sinusoidal', 'relative', 'rotary', 'none')] = (
    'learned'
  )
  # Number of the first learned position: 2 in RoBERTa and paper 1, 0 in BERT and paper 2.
  position_offset: OptionalAxisSize = 2
  # Rows of the segment table, of which only the first is used; 0 leaves the table out.
  segments: OptionalAxisSize = 2
  projection: bool = True  # Linear(E, D) and LayerNorm between embedding and blocks.
  tied: bool = False  # The head shares the embedding table; E must equal D.
  # gelu (exact), gelu_tanh (its approximation, for models trained with it), relu, or silu.
  activation: Annotated[str, one_of('gelu', 'gelu_tanh', 'relu', 'silu')] = 'gelu'
  dropout: Fraction = 0.1
  # standard; paper1, as in its released code; bert, N(0, 0.02).
  initialization: Annotated[str, one_of('standard', 'paper1', 'bert')] = 'standard'
  norm_epsilon: NonNegativeFloat = 1e-5
  # Heads in the FLOP formula of paper 1; the logged runs have another value than `num_heads`.
  flops_heads: AxisSize = 8
  # Type of matrix products and activations; bfloat16 is for accelerators. All else is float32.
  dtype: Annotated[str, one_of('float32', 'bfloat16')] = 'float32'
  # Recomputes activations in the backward pass: up to a third more work, memory of one block.
  remat: bool = False
  # LayerNorm after the projection; False leaves it out, as in ELECTRA.
  projection_norm: bool = True
  # Tokens after the first </s> take the second row of the segment table, as in BERT.
  segment_embeddings_for_pairs: bool = False
  # Width in tokens (odd) of a depthwise convolution before the blocks; 0 leaves it out.
  short_convolution: OptionalAxisSize = 0

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.hidden_size % self.num_heads:
      divisors = [
        n for n in range(1, min(self.hidden_size, 1 << 16) + 1) if self.hidden_size % n == 0
      ]
      nearest = sorted(divisors, key=lambda n: abs(n - self.num_heads))[:3]
      raise InputError(
        f'model.num_heads={self.num_heads}',
        f'model.hidden_size={self.hidden_size} is not a multiple of it',
        f'give one of the nearest that divide it: {", ".join(map(str, sorted(nearest)))}',
      )
    if self.positions == 'rotary' and self.hidden_size // self.num_heads % 2:
      raise InputError(
        'rotary positions',
        f'an odd head size of {self.hidden_size // self.num_heads}',
        'give fewer heads',
      )
    if self.positions == 'sinusoidal' and self.embedding_size % 2:
      raise InputError(
        'sinusoidal positions',
        f'an odd model.embedding_size of {self.embedding_size}',
        'give an even one: each cosine has its sine',
      )
    for name, needs_equal in (('projection=False', not self.projection), ('tied=True', self.tied)):
      if needs_equal and self.embedding_size != self.hidden_size:
        raise InputError(
          f'model.{name}',
          f'embedding_size {self.embedding_size} differs from hidden_size {self.hidden_size}',
          'make them equal, or change the switch',
        )
    if not self.projection_norm and not self.projection:
      raise InputError(
        'model.projection_norm=False', 'model.projection=False', 'give both, or neither'
      )
    if self.segment_embeddings_for_pairs and self.segments < 2:
      raise InputError(
        'model.segment_embeddings_for_pairs=True',
        f'model.segments={self.segments}',
        'give at least 2',
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
        f'no odd number of tokens, or more than the {self.max_length} of a row',
        'give a width such as 3',
      )
    kernel = ','.join(map(str, self.kernel))
    asked = f'model.convolutions={self.convolutions}, model.kernel={kernel}, model.channels={self.channels}'
    if not self.convolutions:
      if self.kernel or self.channels:
        raise InputError(
          asked,
          'a kernel or channels of no convolution',
          "give a number of convolutions, or '' and 0",
        )
      return
    if len(self.kernel) != 2 or min(self.kernel) < 1 or not self.channels:
      raise InputError(
        asked,
        'not two sizes of a kernel (tokens, features) and a number of channels',
        'give them, as in model.kernel=3,3 and model.channels=64',
      )
    if self.kernel[0] > self.max_length or self.kernel[1] > self.hidden_size:
      raise InputError(
        asked,
        f'a kernel larger than the image of {self.max_length} tokens x {self.hidden_size} features',
        'give a smaller one',
      )

  @property
  def batch_norm(self) -> bool:
    """Whether it normalizes over the batch, pads included: rows and batches are never cut then."""
    return self.convolutions > 0 and self.convolution == 'paper2'


@dataclasses.dataclass(frozen=True)
class HeadConfig(Checked):
  """The head that makes one vector of a sentence."""

  where = 'head.'
  # The vector of <s> (first), the mean over tokens (mean), or the weights of the paper (positions).
  pooling: Annotated[str, one_of('first', 'mean', 'positions')] = 'first'
  dropout: Fraction = 0.1
  # Heads on one encoder, each with its own start and dropout; their mean logits are the answer.
  ensemble_size: PositiveInt = 1
