"""Shared layers of all models: activation, dropout, LayerNorm and the linear layer.

These layers do not depend on the structure of a model. `encoder.py`, `convolution.py` and
`heads.py` use them, and a custom encoder (`custom.py`) may use them too.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from minilm_jax.core import rng
from minilm_jax.core.model_config import EncoderConfig

# Weight of the observed value in an update of a running statistic; the default of PyTorch.
BATCH_NORM_MOMENTUM = 0.1
_ACTIVATIONS = {
  # jax.nn.gelu uses erfc, which takes twice as long as erf.
  'gelu': lambda x: 0.5 * x * (1 + jax.lax.erf(x / math.sqrt(2))),
  'gelu_tanh': jax.nn.gelu,
  'relu': jax.nn.relu,
  'silu': jax.nn.silu,
}


def apply_activation(name: str, x: Float[Array, '*S F']) -> Float[Array, '*S F']:
  """Applies the activation of a name, as in `EncoderConfig.activation`."""
  return _ACTIVATIONS[name](x)


def apply_dropout(
  x: Float[Array, 'B *S'], rate: float, key: Key[Array, 'B'] | None
) -> Float[Array, 'B *S']:
  """Zeroes a share `rate` of `x` and scales the remainder; returns `x` unchanged without a key.

  Each element takes 16 random bits, so the rate is off by less than 2^-16. A rate of 1 zeroes all
  elements.

  Args:
    key: A key for each row, so a row does not depend on other rows; None in evaluation.
  """
  if key is None or rate == 0:
    return x
  threshold = round(rate * 65536)
  if threshold == 65536:  # the scaling factor would be infinite
    return jnp.zeros_like(x)
  keep = rng.draw_coins(key, x.shape[1:]) >= threshold
  # In bfloat16, the scaling factor would be off by 0.2%.
  scaled = x.astype(jnp.float32) * (65536 / (65536 - threshold))
  return jnp.where(keep, scaled, 0).astype(x.dtype)


def split_key(key: Key[Array, 'B'] | None, count: int) -> list[Key[Array, 'B'] | None]:
  """Returns keys for `count` parts of a module, or `count` times None without a key."""
  return [None] * count if key is None else [rng.fold_in(key, part) for part in range(count)]


def build_layer_norm(
  size: int, config: EncoderConfig, rngs: nnx.Rngs, two_passes: bool = False
) -> nnx.LayerNorm:
  """Returns a LayerNorm that computes in float32 and returns `config.dtype`.

  Args:
    rngs: Unused random streams that Flax requires.
    two_passes: Whether to subtract the mean before squaring, for few features of similar value.
  """
  return nnx.LayerNorm(
    size,
    epsilon=config.norm_epsilon,
    dtype=jnp.dtype(config.dtype),
    promote_dtype=_keep_types,
    use_fast_variance=not two_passes,
    rngs=rngs,
  )


def _keep_types(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
  """Returns the inputs of a norm unchanged; Flax would round them to the output type."""
  return arrays


def _multiply_matrices(
  x: Float[Array, '*S D'], kernel: Float[Array, 'D F']
) -> Float[Array, '*S F']:
  return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


class Linear(nnx.Linear):
  """Computes x W + b, with the product in `config.dtype` and the bias added in float32.

  The gradient of the bias is therefore summed in float32. On a CPU, the leading axes of `x` are
  merged: with more axes, XLA computes the gradient through a transposed copy, which adds 10% to a
  step. On a TPU, merging adds a third to the step of a small model, so other platforms do not
  merge.
  """

  bias: nnx.Param

  def __init__(self, inputs: int, outputs: int, config: EncoderConfig, rngs: nnx.Rngs):
    super().__init__(inputs, outputs, dtype=jnp.dtype(config.dtype), rngs=rngs)

  def __call__(self, x: Float[Array, '*S D']) -> Float[Array, '*S F']:
    operands = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
    product = jax.lax.platform_dependent(*operands, cpu=_multiply_matrices, default=jnp.matmul)
    return (product + self.bias[...].reshape(*[1] * (x.ndim - 1), -1)).astype(self.dtype)
