"""Applies the convolutional front-end of paper 2 before the blocks, in two forms.

A row of vectors is an image with one channel: the height is tokens, the width is features. The form
`paper2` is the released model (paper 2, models):

    n times: Conv2d, BatchNorm2d, GELU;   then: Conv2d 1 x 1 to one channel, BatchNorm2d, GELU

The form `fixed` corrects four properties of `paper2`:

- Pads are part of the image; `fixed` zeroes pads before each convolution.
- A row depends on its batch in training; `fixed` normalises each pixel over its channels.
- There is no residual, so the embedding passes through the kernels; `fixed` adds a residual.
- No output is below -0.17, the minimum of GELU; `fixed` ends with the LayerNorm of a block.

BatchNorm keeps a running mean and variance for evaluation. These statistics are arrays of the
model, so saving, stacking and copying include them. In training, the "gradient" of a running
statistic is the observed value, and the optimizer moves the statistic towards this value
(`training/optimizer.py`). Sums over micro-batches and devices therefore work as for gradients, and
the step stays pure. Flax treats the scales of 8-bit products in the same way.
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

Padding = tuple[tuple[int, int], ...]  # zeros before and after the image, in height and width
_EPSILON = 1e-5  # default of PyTorch's BatchNorm2d; `config.norm_epsilon` belongs to LayerNorm
_STATISTICS_AXES = (0, 1, 2)


@jax.custom_vjp
def convolve(
  x: Float[Array, 'B L D I'], kernel: Float[Array, 'kh kw I O']
) -> Float[Array, 'B L D O']:
  """Returns the convolution of an image, with the size of the image and the type of `x`.

  The gradient of the kernel has the type of the kernel. A kernel of size k has (k - 1) // 2 zeros
  before and k // 2 zeros after the image, such as 7 and 8 for k = 16. On a CPU, sums of shifted
  images replace XLA's convolution, which is slower for one input or output channel.
  """
  return _convolve_same(x, kernel, _compute_padding(kernel))


def _convolve_backward(inputs: tuple, gradient: Float[Array, 'B L D O']) -> tuple:
  x, kernel = inputs
  padding = _compute_padding(kernel)
  flipped = kernel[::-1, ::-1].swapaxes(2, 3)
  x_gradient = _convolve_same(
    gradient, flipped, tuple((after, before) for before, after in padding)
  )
  kernel_gradient = jax.lax.platform_dependent(
    x,
    gradient,
    cpu=functools.partial(_compute_kernel_gradient, padding=padding),
    default=lambda x, gradient: jax.linear_transpose(
      lambda kernel: _convolve_xla(x, kernel, padding), kernel
    )(gradient)[0],
  )
  return x_gradient, kernel_gradient


convolve.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), _convolve_backward)


def _compute_padding(kernel: Float[Array, 'kh kw I O']) -> Padding:
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
  """Computes `_convolve_xla` for an output of the size of the image, in a fast way on CPUs."""
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
  """Yields an image for each weight of a kernel, shifted by the position of the weight."""
  for shift, image in zip(itertools.product(*map(range, sizes)), images):
    padded = jnp.pad(image, ((0, 0), *padding))
    yield padded[:, *(slice(by, by + size) for by, size in zip(shift, image.shape[1:]))]


def _compute_kernel_gradient(
  x: Float[Array, 'B L D I'], gradient: Float[Array, 'B L D O'], padding: Padding
) -> Float[Array, 'kh kw I O']:
  """Returns the convolution of the channels of the image with the channels of the gradient."""
  channels, pixels = x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)
  product = _convolve_each_model(channels.astype(jnp.float32), pixels.astype(jnp.float32), padding)
  return product.transpose(1, 2, 0, 3)


def _convolve_each_model(
  x: Float[Array, 'B L D I'], kernel: Float[Array, 'kh kw I O'], padding: Padding
) -> Float[Array, 'B M E O']:
  """Computes `_convolve_xla`, for one model after another under `vmap`."""
  return _unbatched_convolution(padding)(x, kernel)


@functools.cache
def _unbatched_convolution(padding: Padding) -> jax.custom_batching.custom_vmap:
  convolution = jax.custom_batching.custom_vmap(functools.partial(_convolve_xla, padding=padding))

  @convolution.def_vmap
  def convolve_models(
    count: int, batched: Sequence[bool], x: Array, kernel: Array
  ) -> tuple[Array, bool]:
    operands = [
      list(array) if is_batched else [array] * count
      for array, is_batched in zip((x, kernel), batched)
    ]
    return jnp.stack([convolution(*pair) for pair in zip(*operands)]), True

  return convolution


class Convolution(nnx.Module):
  """Conv2d of PyTorch with stride 1, an output of the size of the input, and a bias."""

  def __init__(self, kernel: tuple[int, ...], inputs: int, outputs: int, config: EncoderConfig):
    self.dtype = jnp.dtype(config.dtype)
    self.kernel = nnx.Param(jnp.zeros((*kernel, inputs, outputs)))
    self.bias = nnx.Param(jnp.zeros((outputs,)))

  def __call__(self, x: Float[Array, 'B L D I']) -> Float[Array, 'B L D O']:
    x = convolve(x.astype(self.dtype), self.kernel[...])
    return (x + self.bias[...].reshape(1, 1, 1, -1)).astype(self.dtype)


class BatchNorm(nnx.Module):
  """BatchNorm2d of PyTorch in float32: divides by the biased variance, stores the unbiased variance.

  Training uses the statistics of the rows of a call. Over the mesh axis `data`, a call has the rows
  of all devices, so statistics do not depend on the mesh. With several micro-batches, each uses its
  statistics, and the running statistics move once, towards their mean.
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
  """Returns `value`; the backward pass gives `observed` as the gradient of `running`."""
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
  """Applies convolution, normalisation and activation; the form `fixed` zeroes pads first."""

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
  """Applies `convolutions` layers of `channels`, then one channel.

  The form `fixed` adds a residual and LayerNorm.
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
      self.norm = build_layer_norm(config.hidden_size, config, rngs)

  def __call__(
    self, x: Float[Array, 'B L D'], mask: Bool[Array, 'B L'], key: Key[Array, 'B'] | None
  ) -> Float[Array, 'B L D']:
    """Returns the input of the blocks.

    In the form `fixed`, neither number nor content of pads changes the vector of a token.

    Args:
      mask: True at tokens, false at pads.
      key: A key for each row in training: `paper2` uses batch statistics, `fixed` drops units.
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
      run = jax.checkpoint(run)  # stores only the input of a layer: images use most of the memory
    image = x[..., None]
    for layer in self.layers:
      image = run(layer, image, mask)
    if isinstance(self.last, ConvolutionLayer):
      return run(self.last, image, mask)[..., 0]
    return self.last(image)[..., 0]
