"""The convolution of an image and its gradient: as XLA has it, and on a CPU in the forms that are fast there.

On a CPU XLA has one fast convolution, of one model's NHWC image, and what is asked of it is brought to that form:

- an image of one channel, in or out, is a sum of shifted images;
- the gradient of a kernel is the convolution of channels by pixels, the rows of the batch in the place of channels.
  Inside a loop, which a chunk of steps is, XLA's own is without its library of convolutions (jax-ml/jax#12868);
- many models go one after another, for XLA makes one grouped convolution of them.

Measured on one thread beside other work, the front-end's three convolutions of 8 channels on 16 rows of 128 x 64
pixels, against XLA's: forward half the time, with gradients in a loop 0.4 of it; of five models under `vmap` a quarter
and a seventh.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Zeros = tuple[tuple[int, int], tuple[int, int]]  # before and after the image, in height and width


@jax.custom_vjp
def convolve(x: Float[Array, 'B L D I'], kernel: Float[Array, 'kh kw I O']) -> Float[Array, 'B L D O']:
  """The image under a kernel, as large as before, in the type of `x`; the gradient of the kernel is in its own.

  A kernel of k has (k - 1) // 2 pixels of zeros before the image and k // 2 after it: 7 and 8 for 16.
  """
  return _products(x, kernel, _around(kernel))


def _backward(inputs: tuple, gradient: Float[Array, 'B L D O']) -> tuple:
  x, kernel = inputs
  zeros = _around(kernel)
  of_x = _products(gradient, kernel[::-1, ::-1].swapaxes(2, 3), tuple(ends[::-1] for ends in zeros))
  of_kernel = jax.lax.platform_dependent(
      x, gradient, cpu=functools.partial(_of_kernel, zeros=zeros),
      default=lambda x, gradient: jax.linear_transpose(lambda kernel: _plain(x, kernel, zeros), kernel)(gradient)[0])
  return of_x, of_kernel


convolve.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), _backward)


def _around(kernel: Float[Array, 'kh kw I O']) -> Zeros:
  return tuple(((size - 1) // 2, size // 2) for size in kernel.shape[:2])


def _plain(x: Float[Array, 'B L D I'], kernel: Float[Array, 'kh kw I O'], zeros: Zeros) -> Float[Array, 'B M E O']:
  """The products, in the type of `x`."""
  return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), (1, 1), zeros,
                                      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _products(x: Float[Array, 'B L D I'], kernel: Float[Array, 'kh kw I O'], zeros: Zeros) -> Float[Array, 'B L D O']:
  """As `_plain`, of an image that stays as large."""
  inputs, outputs = kernel.shape[2:]
  on_cpu = _from_one if inputs == 1 else _to_one if outputs == 1 else _in_turn
  return jax.lax.platform_dependent(x, kernel, cpu=functools.partial(on_cpu, zeros=zeros),
                                    default=functools.partial(_plain, zeros=zeros))


def _from_one(x: Float[Array, 'B L D 1'], kernel: Float[Array, 'kh kw 1 O'], zeros: Zeros) -> Float[Array, 'B L D O']:
  weights = kernel.astype(x.dtype).astype(jnp.float32).reshape(-1, 1, 1, 1, kernel.shape[3])
  images = _shifted(itertools.repeat(x[..., 0].astype(jnp.float32)), kernel.shape[:2], zeros)
  return sum(image[..., None] * weight for image, weight in zip(images, weights)).astype(x.dtype)


def _to_one(x: Float[Array, 'B L D I'], kernel: Float[Array, 'kh kw I 1'], zeros: Zeros) -> Float[Array, 'B L D 1']:
  weights, pixels = kernel.astype(x.dtype).reshape(-1, x.shape[3]), x.reshape(-1, x.shape[3])
  images = jnp.matmul(weights, pixels.T, preferred_element_type=jnp.float32).reshape(len(weights), *x.shape[:3])
  return sum(_shifted(images, kernel.shape[:2], zeros))[..., None].astype(x.dtype)


def _shifted(images: Iterable[Float[Array, 'B L D']], sizes: tuple[int, ...],
             zeros: Zeros) -> Iterator[Float[Array, 'B L D']]:
  """An image for each weight of a kernel, moved to the pixels that the weight counts for."""
  for shift, image in zip(itertools.product(*map(range, sizes)), images):
    padded = jnp.pad(image, ((0, 0), *zeros))
    yield padded[:, *(slice(by, by + size) for by, size in zip(shift, image.shape[1:]))]


def _of_kernel(x: Float[Array, 'B L D I'], gradient: Float[Array, 'B L D O'],
               zeros: Zeros) -> Float[Array, 'kh kw I O']:
  """The gradient of the kernel: channels of the image convolved by those of the gradient."""
  channels, pixels = x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)
  return _in_turn(channels.astype(jnp.float32), pixels.astype(jnp.float32), zeros).transpose(1, 2, 0, 3)


def _in_turn(x: Float[Array, 'B L D I'], kernel: Float[Array, 'kh kw I O'], zeros: Zeros) -> Float[Array, 'B M E O']:
  """As `_plain`; under `vmap` one model after another."""
  return _mapped(zeros)(x, kernel)


@functools.cache
def _mapped(zeros: Zeros) -> jax.custom_batching.custom_vmap:
  plain = functools.partial(_plain, zeros=zeros)
  mapped = jax.custom_batching.custom_vmap(plain)

  @mapped.def_vmap
  def in_turn(count: int, batched: Sequence[bool], x: Array, kernel: Array) -> tuple[Array, bool]:
    each = [[one] * count if not many else list(one) for one, many in zip((x, kernel), batched)]
    return jnp.stack([mapped(*one) for one in zip(*each)]), True

  return mapped
