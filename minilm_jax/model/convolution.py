"""The convolutional front-end of paper 2, which stands before the blocks, and a mended form of it.

A row of vectors is seen as an image of one channel: height is tokens, width is features. `paper` is
what was released (paper 2, models):

    n times: Conv2d, BatchNorm2d, GELU;   then: Conv2d 1 x 1 to one channel, BatchNorm2d, GELU

It knows no pads: they are part of the image, of its statistics, and of their neighbours within the
reach of a kernel. There is no residual, so that all of the embedding passes through the kernels,
and nothing below -0.17 comes out. What a row becomes in training depends on the batch. `mended` is
the same stack with these four taken away: pads are zeroed before each convolution, each pixel is
normalised over its channels, a residual goes round the whole, and a LayerNorm stands where those of
a block do.

BatchNorm keeps a mean and a variance of what it has seen, for evaluation. They are arrays of the
model like any other, so they are saved, lifted and carried over with it, but no gradient moves
them: in training the "gradient" of a running statistic is what was observed, and the optimizer
moves the statistic towards it (`training/optimizer.py`). So they pass through sums over
micro-batches and devices as gradients do, and the step stays pure. Flax has the same device for the
scales of 8-bit products.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.model.layers import activation, dropout, layer_norm

# The convolution of an image and its gradient: as XLA has it, and on a CPU in the forms that are
# fast there.
# before and after the image, in height and width
PaddingRule = tuple[tuple[int, int], tuple[int, int]]


@jax.custom_vjp
def convolve(
  x: Float[Array, 'B L D I'], kernel: Float[Array, 'kh kw I O']
) -> Float[Array, 'B L D O']:
  """The image under a kernel, as large as before, in the type of `x`; the gradient of the kernel is
  in its own.

  A kernel of k has (k - 1) // 2 pixels of zeros before the image and k // 2 after it: 7 and 8 for
  16.
  """
  return _products(x, kernel, _around(kernel))


def _backward(inputs: tuple, gradient: Float[Array, 'B L D O']) -> tuple:
  x, kernel = inputs
  zeros = _around(kernel)
  of_x = _products(gradient, kernel[::-1, ::-1].swapaxes(2, 3), tuple(ends[::-1] for ends in zeros))
  of_kernel = jax.lax.platform_dependent(
    x,
    gradient,
    cpu=functools.partial(_of_kernel, zeros=zeros),
    default=lambda x, gradient: jax.linear_transpose(
      lambda kernel: _plain(x, kernel, zeros), kernel
    )(gradient)[0],
  )
  return of_x, of_kernel


convolve.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), _backward)


def _around(kernel: Float[Array, 'kh kw I O']) -> PaddingRule:
  return tuple(((size - 1) // 2, size // 2) for size in kernel.shape[:2])


def _plain(
  x: Float[Array, 'B L D I'], kernel: Float[Array, 'kh kw I O'], zeros: PaddingRule
) -> Float[Array, 'B M E O']:
  """The products, in the type of `x`."""
  return jax.lax.conv_general_dilated(
    x, kernel.astype(x.dtype), (1, 1), zeros, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def _products(
  x: Float[Array, 'B L D I'], kernel: Float[Array, 'kh kw I O'], zeros: PaddingRule
) -> Float[Array, 'B L D O']:
  """As `_plain`, of an image that stays as large."""
  inputs, outputs = kernel.shape[2:]
  on_cpu = _from_one if inputs == 1 else _to_one if outputs == 1 else _in_turn
  return jax.lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(on_cpu, zeros=zeros),
    default=functools.partial(_plain, zeros=zeros),
  )


def _from_one(
  x: Float[Array, 'B L D 1'], kernel: Float[Array, 'kh kw 1 O'], zeros: PaddingRule
) -> Float[Array, 'B L D O']:
  weights = kernel.astype(x.dtype).astype(jnp.float32).reshape(-1, 1, 1, 1, kernel.shape[3])
  images = _shifted(itertools.repeat(x[..., 0].astype(jnp.float32)), kernel.shape[:2], zeros)
  return sum(image[..., None] * weight for image, weight in zip(images, weights)).astype(x.dtype)


def _to_one(
  x: Float[Array, 'B L D I'], kernel: Float[Array, 'kh kw I 1'], zeros: PaddingRule
) -> Float[Array, 'B L D 1']:
  weights, pixels = kernel.astype(x.dtype).reshape(-1, x.shape[3]), x.reshape(-1, x.shape[3])
  images = jnp.matmul(weights, pixels.T, preferred_element_type=jnp.float32).reshape(
    len(weights), *x.shape[:3]
  )
  return sum(_shifted(images, kernel.shape[:2], zeros))[..., None].astype(x.dtype)


def _shifted(
  images: Iterable[Float[Array, 'B L D']], sizes: tuple[int, ...], zeros: PaddingRule
) -> Iterator[Float[Array, 'B L D']]:
  """An image for each weight of a kernel, moved to the pixels that the weight counts for."""
  for shift, image in zip(itertools.product(*map(range, sizes)), images):
    padded = jnp.pad(image, ((0, 0), *zeros))
    yield padded[:, *(slice(by, by + size) for by, size in zip(shift, image.shape[1:]))]


def _of_kernel(
  x: Float[Array, 'B L D I'], gradient: Float[Array, 'B L D O'], zeros: PaddingRule
) -> Float[Array, 'kh kw I O']:
  """The gradient of the kernel: channels of the image convolved by those of the gradient."""
  channels, pixels = x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)
  return _in_turn(channels.astype(jnp.float32), pixels.astype(jnp.float32), zeros).transpose(
    1, 2, 0, 3
  )


def _in_turn(
  x: Float[Array, 'B L D I'], kernel: Float[Array, 'kh kw I O'], zeros: PaddingRule
) -> Float[Array, 'B M E O']:
  """As `_plain`; under `vmap` one model after another."""
  return _mapped(zeros)(x, kernel)


@functools.cache
def _mapped(zeros: PaddingRule) -> jax.custom_batching.custom_vmap:
  plain = functools.partial(_plain, zeros=zeros)
  mapped = jax.custom_batching.custom_vmap(plain)

  @mapped.def_vmap
  def in_turn(count: int, batched: Sequence[bool], x: Array, kernel: Array) -> tuple[Array, bool]:
    each = [[one] * count if not many else list(one) for one, many in zip((x, kernel), batched)]
    return jnp.stack([mapped(*one) for one in zip(*each)]), True

  return mapped


# share of what was observed in a running statistic after an update; PyTorch's default
MOMENTUM = 0.1
_EPSILON = 1e-5  # PyTorch's default for BatchNorm2d; `norm_epsilon` is that of LayerNorm
_AXES = (0, 1, 2)  # of an image, those that BatchNorm takes its statistics over


class Convolution(nnx.Module):
  """Conv2d as PyTorch has it: stride 1, as large out as in, a bias."""

  def __init__(self, kernel: tuple[int, int], inputs: int, outputs: int, config: EncoderConfig):
    self.dtype = jnp.dtype(config.dtype)
    self.kernel = nnx.Param(jnp.zeros((*kernel, inputs, outputs)))
    self.bias = nnx.Param(jnp.zeros((outputs,)))

  def __call__(self, x: Float[Array, 'B L D I']) -> Float[Array, 'B L D O']:
    x = convolve(x.astype(self.dtype), self.kernel[...])
    return (x + self.bias[...].reshape(1, 1, 1, -1)).astype(self.dtype)


class BatchNorm(nnx.Module):
  """BatchNorm2d as PyTorch has it, in float32: biased variance to divide by, unbiased variance to
  remember.

  In training the statistics are those of the rows that one call sees; in a program that is spread
  over the mesh axis `data`, those of the rows of all its devices, so that they do not depend on the
  mesh. A batch that is summed over micro-batches has statistics of each, and remembers their mean
  once.
  """

  def __init__(self, channels: int, config: EncoderConfig):
    self.dtype = jnp.dtype(config.dtype)
    self.scale, self.bias = nnx.Param(jnp.ones((channels,))), nnx.Param(jnp.zeros((channels,)))
    self.running_mean = nnx.BatchStat(jnp.zeros((channels,)))
    self.running_variance = nnx.BatchStat(jnp.ones((channels,)))

  def __call__(self, x: Float[Array, 'B L D I'], training: bool) -> Float[Array, 'B L D I']:
    mean, variance = self.running_mean[...], self.running_variance[...]
    x = x.astype(jnp.float32)
    if training:
      devices = _devices()
      count = x.shape[0] * x.shape[1] * x.shape[2] * devices
      found = _over_devices(x.sum(_AXES)) / count
      mean = _remember(found, found / devices, mean)
      found = _over_devices(jnp.square(x - found.reshape(1, 1, 1, -1)).sum(_AXES))
      variance = _remember(found / count, found / max(count - 1, 1) / devices, variance)
    factor = self.scale[...] * jax.lax.rsqrt(variance + _EPSILON)
    x = (x - mean.reshape(1, 1, 1, -1)) * factor.reshape(1, 1, 1, -1) + self.bias[...].reshape(
      1, 1, 1, -1
    )
    return x.astype(self.dtype)


@jax.custom_vjp
def _remember(
  used: Float[Array, 'I'], observed: Float[Array, 'I'], running: Float[Array, 'I']
) -> Float[Array, 'I']:
  """`used`; going backward, `running` gets `observed` in place of a gradient, whatever is
  differentiated.
  """
  return used


_remember.defvjp(
  lambda used, observed, running: (used, observed),
  lambda observed, gradient: (gradient, jnp.zeros_like(observed), observed),
)


def _is_spread() -> bool:
  return 'data' in jax.sharding.get_abstract_mesh().manual_axes


def _devices() -> int:
  return jax.lax.axis_size('data') if _is_spread() else 1


def _over_devices(x: Float[Array, 'I']) -> Float[Array, 'I']:
  return jax.lax.psum(x, 'data') if _is_spread() else x


class ConvolutionLayer(nnx.Module):
  """Convolution, normalisation, activation; `mended`, of an image whose pads are zeroed first."""

  def __init__(
    self, kernel: tuple[int, int], inputs: int, outputs: int, config: EncoderConfig, rngs: nnx.Rngs
  ):
    self.config = config
    self.convolution = Convolution(kernel, inputs, outputs, config)
    self.norm = (
      BatchNorm(outputs, config)
      if config.batch_norm
      else layer_norm(outputs, config, rngs, two_passes=True)
    )

  def __call__(
    self, x: Float[Array, 'B L D I'], mask: Bool[Array, 'B L'], training: bool
  ) -> Float[Array, 'B L D O']:
    if self.config.batch_norm:
      x = self.norm(self.convolution(x), training)
    else:
      x = self.norm(self.convolution(zero_pads(x, mask)))
    return activation(self.config.activation, x)


class FrontEnd(nnx.Module):
  """`convolutions` layers of `channels`, one channel again; `mended`, with the residual and
  LayerNorm of a block.
  """

  def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
    self.config = config
    inputs = [1] + [config.channels] * (config.convolutions - 1)
    self.layers = nnx.List(
      [ConvolutionLayer(config.kernel, count, config.channels, config, rngs) for count in inputs]
    )
    if config.batch_norm:
      self.last = ConvolutionLayer((1, 1), config.channels, 1, config, rngs)
    else:
      self.last = Convolution((1, 1), config.channels, 1, config)
      self.norm = layer_norm(config.hidden_size, config, rngs)

  def __call__(
    self, x: Float[Array, 'B L D'], mask: Bool[Array, 'B L'], key: Key[Array, 'B'] | None
  ) -> Float[Array, 'B L D']:
    """What the blocks read; a key asks for statistics of the batch, in the paper's form, and drops
    units of the mended.

    The mended form passes over pads: no token is changed by how many there are or by what is in
    them.
    """
    if self.config.batch_norm:
      return self._stack(x, mask, key is not None)
    rate = self.config.dropout
    if self.config.norm == 'pre':
      return x + dropout(self._stack(self.norm(x), mask, False), rate, key)
    return self.norm(x + dropout(self._stack(x, mask, False), rate, key))

  def _stack(
    self, x: Float[Array, 'B L D'], mask: Bool[Array, 'B L'], training: bool
  ) -> Float[Array, 'B L D']:
    image = x[..., None]
    for layer in self.layers:
      image = self._run(layer, image, mask, training)
    last = (
      self._run(self.last, image, mask, training) if self.config.batch_norm else self.last(image)
    )
    return last[..., 0]

  def _run(
    self,
    layer: ConvolutionLayer,
    image: Float[Array, 'B L D I'],
    mask: Bool[Array, 'B L'],
    training: bool,
  ) -> Float[Array, 'B L D O']:
    """A layer; with `remat` all that is kept of it is its input, for images are what takes the
    memory.
    """
    run = functools.partial(ConvolutionLayer.__call__, training=training)
    return (jax.checkpoint(run) if self.config.remat else run)(layer, image, mask)


def zero_pads(x: Float[Array, 'B L D I'], mask: Bool[Array, 'B L']) -> Float[Array, 'B L D I']:
  """The image with zeros at pads, which is what lies beyond its edges too."""
  return jnp.where(mask[:, :, None, None], x, 0)


def count_parameters(config: EncoderConfig) -> int:
  """How many parameters the front-end has; running statistics are none."""
  if not config.convolutions:
    return 0
  sizes, d = [1] + [config.channels] * (config.convolutions - 1), config.channels
  layers = sum(inputs * d * math.prod(config.kernel) + 3 * d for inputs in sizes)
  return layers + d + 1 + (2 if config.batch_norm else 2 * config.hidden_size)


def count_flops(config: EncoderConfig, length: int) -> int:
  """FLOPs of its products over a row of `length`: two a multiply-add; those with zeros beyond the
  image are none.
  """
  if not config.convolutions:
    return 0
  sizes, d = [1] + [config.channels] * (config.convolutions - 1), config.channels
  inside = _inside(length, config.kernel[0]) * _inside(config.hidden_size, config.kernel[1])
  return 2 * (sum(sizes) * d * inside + d * length * config.hidden_size)


def _inside(size: int, kernel: int) -> int:
  """Pairs of a pixel and a weight that meet inside an edge of `size` pixels.

  >>> _inside(4, 3), _inside(4, 1)
  (10, 4)
  """
  before, after = (kernel - 1) // 2, kernel // 2
  return size * kernel - before * (before + 1) // 2 - after * (after + 1) // 2
