"""Layers that every part of a model is made of: activation, dropout, LayerNorm, the linear layer.

They know of no shape of a model. What is put together of them is in `encoder.py`, `convolution.py`
and `heads.py`.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from minilm_jax.core import rng
from minilm_jax.core.model_config import EncoderConfig

# erf and not erfc, with which `jax.nn.gelu` can write the same and takes twice as long
_ACTIVATIONS = {
  'gelu': lambda x: 0.5 * x * (1 + jax.lax.erf(x / math.sqrt(2))),
  'gelu_tanh': jax.nn.gelu,
  'relu': jax.nn.relu,
  'silu': jax.nn.silu,
}


def activation(name: str, x: Float[Array, '*S F']) -> Float[Array, '*S F']:
  """The activation that `EncoderConfig.activation` names."""
  return _ACTIVATIONS[name](x)


def dropout(
  x: Float[Array, 'B *S'], rate: float, key: Key[Array, 'B'] | None
) -> Float[Array, 'B *S']:
  """Zeroes a share `rate` of `x` and scales the rest by its inverse; nothing without a key.

  16 random bits an element are enough: the rate is off by less than 2^-16.
  """
  if key is None or rate == 0:
    return x
  dropped = round(rate * 65536)
  keep = rng.draw_coins(key, x.shape[1:]) >= dropped
  # in bfloat16 the factor itself would be 0.2% off
  scaled = x.astype(jnp.float32) * (65536 / (65536 - dropped))
  return jnp.where(keep, scaled, 0).astype(x.dtype)


def split_key(key: Key[Array, 'B'] | None, count: int) -> list[Key[Array, 'B'] | None]:
  """Keys for each of the `count` parts of a module, or none."""
  return [None] * count if key is None else [rng.fold_in(key, part) for part in range(count)]


def layer_norm(
  size: int, config: EncoderConfig, rngs: nnx.Rngs, two_passes: bool = False
) -> nnx.LayerNorm:
  """The LayerNorm of every place in the model: float32 inside, whatever comes in; `config.compute`
  comes out.

  `two_passes` takes the mean before it squares: for few numbers, which may differ by much less than
  they are large.
  """
  return nnx.LayerNorm(
    size,
    epsilon=config.norm_epsilon,
    dtype=jnp.dtype(config.dtype),
    promote_dtype=_identity,
    use_fast_variance=not two_passes,
    rngs=rngs,
  )


def _identity(arrays: tuple, dtype: jnp.dtype) -> tuple:
  """What a norm reads, which Flax would round to the type that comes out."""
  return arrays


def _matrix_product(x: Float[Array, '*S D'], kernel: Float[Array, 'D F']) -> Float[Array, '*S F']:
  return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


class Linear(nnx.Linear):
  """x W + b: the product in `config.compute`, the bias added in its own type, so that its gradient
  is summed in it.

  On a CPU the product is one of two matrices: XLA takes the gradient of one with more axes through
  a transposed copy there, for a tenth of a step more. For a TPU its compiler gives the two matrices
  a third more in a small model's step.
  """

  def __init__(self, inputs: int, outputs: int, config: EncoderConfig, rngs: nnx.Rngs):
    super().__init__(inputs, outputs, dtype=jnp.dtype(config.dtype), rngs=rngs)

  def __call__(self, x: Float[Array, '*S D']) -> Float[Array, '*S F']:
    operands = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
    product = jax.lax.platform_dependent(*operands, cpu=_matrix_product, default=jnp.matmul)
    return (product + self.bias[...].reshape(*[1] * (x.ndim - 1), -1)).astype(self.dtype)
