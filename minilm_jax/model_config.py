"""The shape of a model: of an encoder, and of what turns its vectors into one.

What each field is for is said once, in `configs/base.py`; here is what it may be. Everything that is compiled for a
model follows from these, so they are hashable, complete and checked when they are made.
"""

import dataclasses
import re
from typing import Annotated

from minilm_jax.checks import MOST_SIZE, Amount, Checked, Positive, Share, Size, at_least, at_most, one_of
from minilm_jax.errors import InputError

MOST_LAYERS = 10_000
# What shapes of an earlier version lack: what they did.
LATER = {'bare_projection': False, 'second_segment': False, 'encoder': '', 'short_convolution': 0}
_SizeOrNone = Annotated[int, at_least(0), at_most(MOST_SIZE)]
_CLASS = re.compile(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*', re.ASCII)


def _class(field: str, value: str) -> None:
  if value and not _CLASS.fullmatch(value):
    raise InputError(f'{field}={value!r}', 'no name of a class', "give package.module:Class, or '' for our encoder")


@dataclasses.dataclass(frozen=True)
class EncoderConfig(Checked):
  """Shape and switches of an encoder (paper 1, `LanModel`)."""

  where = 'model.'
  encoder: Annotated[str, _class]
  vocabulary: Size
  embedding: Size
  hidden: Size
  feed_forward: Size
  heads: Size
  layers: Annotated[int, at_least(1), at_most(MOST_LAYERS)]
  length: Annotated[int, at_least(4), at_most(MOST_SIZE)]
  convolutions: Annotated[int, at_least(0), at_most(MOST_LAYERS)]
  kernel: tuple[int, ...]
  channels: _SizeOrNone
  convolution: Annotated[str, one_of('paper', 'mended')]
  norm: Annotated[str, one_of('post', 'pre')]
  positions: Annotated[str, one_of('learned', 'sinusoidal', 'relative', 'rotary', 'none')]
  first_position: _SizeOrNone
  segments: _SizeOrNone
  projection: bool
  tied: bool
  activation: Annotated[str, one_of('gelu', 'gelu_tanh', 'relu', 'silu')]
  dropout: Share
  initialization: Annotated[str, one_of('standard', 'honey', 'bert')]
  norm_epsilon: Amount
  nominal_heads: Size
  compute: Annotated[str, one_of('float32', 'bfloat16')]
  remat: bool
  bare_projection: bool
  second_segment: bool
  short_convolution: _SizeOrNone

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.hidden % self.heads:
      fitting = [n for n in range(1, min(self.hidden, 1 << 16) + 1) if self.hidden % n == 0]  # hidden may be anything
      close = sorted(fitting, key=lambda n: abs(n - self.heads))[:3]
      raise InputError(f'model.heads={self.heads}', f'model.hidden={self.hidden} is not a multiple of it',
                       f'give one of the nearest that divide it: {", ".join(map(str, sorted(close)))}')
    if self.positions == 'rotary' and self.hidden // self.heads % 2:
      raise InputError('rotary positions', f'an odd head size of {self.hidden // self.heads}', 'give fewer heads')
    if self.positions == 'sinusoidal' and self.embedding % 2:
      raise InputError('sinusoidal positions', f'an odd model.embedding of {self.embedding}',
                       'give an even one: each cosine has its sine')
    for name, needs_equal in (('projection=False', not self.projection), ('tied=True', self.tied)):
      if needs_equal and self.embedding != self.hidden:
        raise InputError(f'model.{name}', f'embedding {self.embedding} differs from hidden {self.hidden}',
                         'make them equal, or change the switch')
    if self.bare_projection and not self.projection:
      raise InputError('model.bare_projection=True', 'model.projection=False', 'give both, or neither')
    if self.second_segment and self.segments < 2:
      raise InputError('model.second_segment=True', f'model.segments={self.segments}', 'give at least 2')
    self._check_convolutions()

  def _check_convolutions(self) -> None:
    for name in ('convolutions', 'short_convolution'):
      if self.encoder and getattr(self, name):
        raise InputError(f'model.encoder={self.encoder}', f'model.{name}={getattr(self, name)}, which is of ours',
                         f'give model.{name}=0')
    if self.short_convolution and (self.short_convolution % 2 == 0 or self.short_convolution > self.length):
      raise InputError(f'model.short_convolution={self.short_convolution}',
                       f'no odd number of tokens, or more than the {self.length} of a row', 'give a width such as 3')
    kernel = ','.join(map(str, self.kernel))
    asked = f'model.convolutions={self.convolutions}, model.kernel={kernel}, model.channels={self.channels}'
    if not self.convolutions:
      if self.kernel or self.channels:
        raise InputError(asked, 'a kernel or channels of no convolution', "give a number of convolutions, or '' and 0")
      return
    if len(self.kernel) != 2 or min(self.kernel) < 1 or not self.channels:
      raise InputError(asked, 'not two sizes of a kernel (tokens, features) and a number of channels',
                       'give them, as in model.kernel=3,3 and model.channels=64')
    if self.kernel[0] > self.length or self.kernel[1] > self.hidden:
      raise InputError(asked, f'a kernel larger than the image of {self.length} tokens x {self.hidden} features',
                       'give a smaller one')

  @property
  def batch_norm(self) -> bool:
    """Does it normalise over the batch, pads included? Then rows are always whole and batches are not cut up."""
    return self.convolutions > 0 and self.convolution == 'paper'


@dataclasses.dataclass(frozen=True)
class HeadConfig(Checked):
  """How a sentence becomes one vector."""

  where = 'head.'
  pooling: Annotated[str, one_of('first', 'mean', 'positions')]
  dropout: Share
  copies: Positive
