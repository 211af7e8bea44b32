"""Layers that every part of a model shares: activation, dropout, LayerNorm and the linear layer.

They depend on no shape of a model. `encoder.py`, `convolution.py` and `heads.py` combine them, and
so may an encoder of your own (`custom.py`).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from minilm_jax.core import rng
from minilm_jax.core.model_config import EncoderConfig

# Share of the observed statistic in a running one after an update; PyTorch's default.
BATCH_NORM_MOMENTUM = 0.1
_ACTIVATIONS = {
  # jax.nn.gelu uses erfc, which takes twice as long as erf.
  'gelu': lambda x: 0.5 * x * (1 + jax.lax.erf(x / math.sqrt(2))),
  'gelu_tanh': jax.nn.gelu,
  'relu': jax.nn.relu,
  'silu': jax.nn.silu,
}


def apply_activation(name: str, x: Float[Array, '*S F']) -> Float[Array, '*S F']:
  """Applies the activation that `EncoderConfig.activation` names."""
  return _ACTIVATIONS[name](x)


def apply_dropout(
  x: Float[Array, 'B *S'], rate: float, key: Key[Array, 'B'] | None
) -> Float[Array, 'B *S']:
  """Zeroes a share `rate` of `x` and scales the remainder; returns `x` itself without a key.

  Each element takes 16 random bits, so that the rate is off by less than 2^-16.

  Args:
    x: any array whose first axis is the batch.
    rate: share of elements to drop.
    key: one key a row, so that a row does not depend on its neighbours; None in evaluation.
  """
  if key is None or rate == 0:
    return x
  threshold = round(rate * 65536)
  keep = rng.draw_coins(key, x.shape[1:]) >= threshold
  # In bfloat16 the factor itself would be off by 0.2%.
  scaled = x.astype(jnp.float32) * (65536 / (65536 - threshold))
  return jnp.where(keep, scaled, 0).astype(x.dtype)


def split_key(key: Key[Array, 'B'] | None, count: int) -> list[Key[Array, 'B'] | None]:
  """Returns keys for `count` parts of a module, or as many None without a key."""
  return [None] * count if key is None else [rng.fold_in(key, part) for part in range(count)]


def build_layer_norm(
  size: int, config: EncoderConfig, rngs: nnx.Rngs, two_passes: bool = False
) -> nnx.LayerNorm:
  """Returns a LayerNorm that computes in float32 and gives `config.dtype`.

  Args:
    size: features to normalise over.
    config: its `norm_epsilon` and `dtype` are used.
    rngs: as Flax requires.
    two_passes: subtract the mean before squaring, for few numbers that are close to each other.
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
  """Returns the inputs of a norm as they are; Flax would round them to its output type."""
  return arrays


def _multiply_matrices(
  x: Float[Array, '*S D'], kernel: Float[Array, 'D F']
) -> Float[Array, '*S F']:
  return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


class Linear(nnx.Linear):
  """x W + b, with the product in `config.dtype` and the bias added in float32.

  The gradient of the bias is thus summed in float32. On a CPU the product is one of two matrices:
  for more axes XLA takes its gradient through a transposed copy, for a tenth of a step more. For a
  TPU the two matrices would add a third to the step of a small model.
  """

  bias: nnx.Param

  def __init__(self, inputs: int, outputs: int, config: EncoderConfig, rngs: nnx.Rngs):
    super().__init__(inputs, outputs, dtype=jnp.dtype(config.dtype), rngs=rngs)

  def __call__(self, x: Float[Array, '*S D']) -> Float[Array, '*S F']:
    operands = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
    product = jax.lax.platform_dependent(*operands, cpu=_multiply_matrices, default=jnp.matmul)
    return (product + self.bias[...].reshape(*[1] * (x.ndim - 1), -1)).astype(self.dtype)
