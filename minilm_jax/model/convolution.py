"""The convolutional front-end of paper 2, before the blocks, and a corrected form of it.

A row of vectors is an image of one channel: height is tokens, width is features. `paper2` is the
released form (paper 2, models):

    n times: Conv2d, BatchNorm2d, GELU;   then: Conv2d 1 x 1 to one channel, BatchNorm2d, GELU

It treats pads as part of the image and of the batch statistics, so a row depends on its pads and,
in training, on its batch. It has no residual: the embedding passes through the kernels, and no
output is below -0.17. `fixed` is the same stack without these four: it zeroes pads before each
convolution, normalises each pixel over its channels, and adds a residual and the LayerNorm of a
block.

BatchNorm keeps a running mean and variance for evaluation. They are arrays of the model, so that
saving, stacking and copying include them, but no gradient moves them. In training the "gradient" of
a running statistic is the observed value, and the optimizer moves the statistic towards it
(`training/optimizer.py`). Sums over micro-batches and devices thus apply to them as to gradients,
and the step stays pure. Flax treats the scales of 8-bit products alike.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.model.layers import apply_activation, apply_dropout, build_layer_norm

Padding = tuple[tuple[int, int], ...]  # Zeros before and after the image, in height and width.
_EPSILON = 1e-5  # PyTorch's default for BatchNorm2d; `norm_epsilon` is that of LayerNorm.
_STATISTICS_AXES = (0, 1, 2)


@jax.custom_vjp
def convolve(
  x: Float[Array, 'B L D I'], kernel: Float[Array, 'kh kw I O']
) -> Float[Array, 'B L D O']:
  """Returns the convolution of an image, as large as the image and in the type of `x`.

  The gradient of the kernel has the type of the kernel. A kernel of size k takes (k - 1) // 2 zeros
  before the image and k // 2 after it: 7 and 8 for 16. On a CPU both passes use the forms that are
  fast there.
  """
  return _convolve_same(x, kernel, _same_padding(kernel))


def _convolve_backward(inputs: tuple, gradient: Float[Array, 'B L D O']) -> tuple:
  x, kernel = inputs
  padding = _same_padding(kernel)
  flipped = kernel[::-1, ::-1].swapaxes(2, 3)
  x_gradient = _convolve_same(
    gradient, flipped, tuple((after, before) for before, after in padding)
  )
  kernel_gradient = jax.lax.platform_dependent(
    x,
    gradient,
    cpu=functools.partial(_kernel_gradient, padding=padding),
    default=lambda x, gradient: jax.linear_transpose(
      lambda kernel: _convolve_xla(x, kernel, padding), kernel
    )(gradient)[0],
  )
  return x_gradient, kernel_gradient


convolve.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), _convolve_backward)


def _same_padding(kernel: Float[Array, 'kh kw I O']) -> Padding:
  return tuple(((size - 1) // 2, size // 2) for size in kernel.shape[:2])


def _convolve_xla(
  x: Float[Array, 'B L D I'], kernel: Float[Array, 'kh kw I O'], padding: Padding
) -> Float[Array, 'B M E O']:
  return jax.lax.conv_general_dilated(
    x, kernel.astype(x.dtype), (1, 1), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def _convolve_same(
  x: Float[Array, 'B L D I'], kernel: Float[Array, 'kh kw I O'], padding: Padding
) -> Float[Array, 'B L D O']:
  """As `_convolve_xla` with an output as large as the image, by the form of the platform."""
  inputs, outputs = kernel.shape[2:]
  if inputs == 1:
    on_cpu = _convolve_one_input
  else:
    on_cpu = _convolve_one_output if outputs == 1 else _convolve_each_model
  return jax.lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(on_cpu, padding=padding),
    default=functools.partial(_convolve_xla, padding=padding),
  )


def _convolve_one_input(
  x: Float[Array, 'B L D 1'], kernel: Float[Array, 'kh kw 1 O'], padding: Padding
) -> Float[Array, 'B L D O']:
  weights = kernel.astype(x.dtype).astype(jnp.float32).reshape(-1, 1, 1, 1, kernel.shape[3])
  images = _shift_images(itertools.repeat(x[..., 0].astype(jnp.float32)), kernel.shape[:2], padding)
  products = (image[..., None] * weight for image, weight in zip(images, weights))
  return sum(products, jnp.zeros(())).astype(x.dtype)


def _convolve_one_output(
  x: Float[Array, 'B L D I'], kernel: Float[Array, 'kh kw I 1'], padding: Padding
) -> Float[Array, 'B L D 1']:
  weights, pixels = kernel.astype(x.dtype).reshape(-1, x.shape[3]), x.reshape(-1, x.shape[3])
  images = jnp.matmul(weights, pixels.T, preferred_element_type=jnp.float32).reshape(
    len(weights), *x.shape[:3]
  )
  total = sum(_shift_images(images, kernel.shape[:2], padding), jnp.zeros(()))
  return total[..., None].astype(x.dtype)


def _shift_images(
  images: Iterable[Float[Array, 'B L D']], sizes: tuple[int, ...], padding: Padding
) -> Iterator[Float[Array, 'B L D']]:
  """Yields one image for each weight of a kernel, moved to the pixels that the weight acts on."""
  for shift, image in zip(itertools.product(*map(range, sizes)), images):
    padded = jnp.pad(image, ((0, 0), *padding))
    yield padded[:, *(slice(by, by + size) for by, size in zip(shift, image.shape[1:]))]


def _kernel_gradient(
  x: Float[Array, 'B L D I'], gradient: Float[Array, 'B L D O'], padding: Padding
) -> Float[Array, 'kh kw I O']:
  """Returns the channels of the image convolved with those of the gradient."""
  channels, pixels = x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)
  product = _convolve_each_model(channels.astype(jnp.float32), pixels.astype(jnp.float32), padding)
  return product.transpose(1, 2, 0, 3)


def _convolve_each_model(
  x: Float[Array, 'B L D I'], kernel: Float[Array, 'kh kw I O'], padding: Padding
) -> Float[Array, 'B M E O']:
  """As `_convolve_xla`; under `vmap` it convolves one model after another."""
  return _unbatched_convolution(padding)(x, kernel)


@functools.cache
def _unbatched_convolution(padding: Padding) -> jax.custom_batching.custom_vmap:
  convolution = jax.custom_batching.custom_vmap(functools.partial(_convolve_xla, padding=padding))

  @convolution.def_vmap
  def convolve_in_turn(
    count: int, batched: Sequence[bool], x: Array, kernel: Array
  ) -> tuple[Array, bool]:
    operands = [
      list(array) if is_batched else [array] * count
      for array, is_batched in zip((x, kernel), batched)
    ]
    return jnp.stack([convolution(*pair) for pair in zip(*operands)]), True

  return convolution


class Convolution(nnx.Module):
  """Conv2d as in PyTorch: stride 1, output as large as the input, a bias."""

  def __init__(self, kernel: tuple[int, ...], inputs: int, outputs: int, config: EncoderConfig):
    self.dtype = jnp.dtype(config.dtype)
    self.kernel = nnx.Param(jnp.zeros((*kernel, inputs, outputs)))
    self.bias = nnx.Param(jnp.zeros((outputs,)))

  def __call__(self, x: Float[Array, 'B L D I']) -> Float[Array, 'B L D O']:
    x = convolve(x.astype(self.dtype), self.kernel[...])
    return (x + self.bias[...].reshape(1, 1, 1, -1)).astype(self.dtype)


class BatchNorm(nnx.Module):
  """BatchNorm2d as in PyTorch, in float32: divides by the biased variance, keeps the unbiased one.

  The statistics in training are those of the rows of one call. In a program over the mesh axis
  `data` they are those of the rows of all its devices, so that they do not depend on the mesh. A
  batch of several micro-batches has statistics of each and keeps their mean once.
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
      devices = jax.lax.axis_size('data') if _is_spread() else 1
      count = x.shape[0] * x.shape[1] * x.shape[2] * devices
      batch_mean = _sum_over_devices(x.sum(_STATISTICS_AXES)) / count
      mean = _record_statistic(batch_mean, batch_mean / devices, mean)
      centred = x - batch_mean.reshape(1, 1, 1, -1)
      squares = _sum_over_devices(jnp.square(centred).sum(_STATISTICS_AXES))
      unbiased = squares / max(count - 1, 1) / devices
      variance = _record_statistic(squares / count, unbiased, variance)
    factor = self.scale[...] * jax.lax.rsqrt(variance + _EPSILON)
    mean, factor, bias = (a.reshape(1, 1, 1, -1) for a in (mean, factor, self.bias[...]))
    return ((x - mean) * factor + bias).astype(self.dtype)


@jax.custom_vjp
def _record_statistic(
  value: Float[Array, 'I'], observed: Float[Array, 'I'], running: Float[Array, 'I']
) -> Float[Array, 'I']:
  """Returns `value`; in the backward pass the gradient of `running` is `observed`."""
  return value


_record_statistic.defvjp(
  lambda value, observed, running: (value, observed),
  lambda observed, gradient: (gradient, jnp.zeros_like(observed), observed),
)


def _is_spread() -> bool:
  return 'data' in jax.sharding.get_abstract_mesh().manual_axes


def _sum_over_devices(x: Float[Array, 'I']) -> Float[Array, 'I']:
  return jax.lax.psum(x, 'data') if _is_spread() else x


class ConvolutionLayer(nnx.Module):
  """Convolution, normalisation, activation; the `fixed` form zeroes the pads of its input."""

  def __init__(
    self, kernel: tuple[int, ...], inputs: int, outputs: int, config: EncoderConfig, rngs: nnx.Rngs
  ):
    self.activation = config.activation
    self.convolution = Convolution(kernel, inputs, outputs, config)
    if config.batch_norm:
      self.norm = BatchNorm(outputs, config)
    else:
      self.norm = build_layer_norm(outputs, config, rngs, two_passes=True)

  def __call__(
    self, x: Float[Array, 'B L D I'], mask: Bool[Array, 'B L'], training: bool
  ) -> Float[Array, 'B L D O']:
    if isinstance(self.norm, BatchNorm):
      x = self.norm(self.convolution(x), training)
    else:
      x = self.norm(self.convolution(jnp.where(mask[:, :, None, None], x, 0)))
    return apply_activation(self.activation, x)


class FrontEnd(nnx.Module):
  """`convolutions` layers of `channels`, then one channel; `fixed` adds residual and LayerNorm."""

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
      self.norm = build_layer_norm(config.hidden_size, config, rngs)

  def __call__(
    self, x: Float[Array, 'B L D'], mask: Bool[Array, 'B L'], key: Key[Array, 'B'] | None
  ) -> Float[Array, 'B L D']:
    """Returns the input of the blocks.

    In the `fixed` form neither the number of pads nor their content changes a token.

    Args:
      x: vectors of the tokens.
      mask: true at tokens, false at pads.
      key: one a row in training: `paper2` then takes statistics of the batch, `fixed` drops units.
    """
    if self.config.batch_norm:
      return self._stack(x, mask, key is not None)
    rate = self.config.dropout
    if self.config.norm == 'pre':
      return x + apply_dropout(self._stack(self.norm(x), mask, False), rate, key)
    return self.norm(x + apply_dropout(self._stack(x, mask, False), rate, key))

  def _stack(
    self, x: Float[Array, 'B L D'], mask: Bool[Array, 'B L'], training: bool
  ) -> Float[Array, 'B L D']:
    run = functools.partial(ConvolutionLayer.__call__, training=training)
    if self.config.remat:
      run = jax.checkpoint(run)  # of a layer only its input is kept: images take the memory
    image = x[..., None]
    for layer in self.layers:
      image = run(layer, image, mask)
    if isinstance(self.last, ConvolutionLayer):
      return run(self.last, image, mask)[..., 0]
    return self.last(image)[..., 0]
