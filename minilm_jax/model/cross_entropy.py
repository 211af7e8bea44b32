"""Computes cross-entropy fused with the output projection, one block of rows at a time.

    loss = sum_n w_n (log sum_v exp(x_n k_v + b_v) - x_n k_t(n) - b_t(n))

Logits `[B K V]` are the largest array in the step of a tiny model, and writing and reading them
limits the speed. The loss is a sum. So the gradient of a block of logits is known, up to a common
factor, while the block is in cache. Each block is computed once for both passes. The
residuals of the backward pass are only as large as the gradient.

The three products have the type of `x`; logits, exponentials, sums and the loss are float32.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from minilm_jax.core import backend

# Bytes of the logits of a block; measured for CPUs, estimated for TPUs.
_MAX_LOGIT_BYTES = {'cpu': 6 << 20, 'tpu': 64 << 20}
# A block takes this share of the memory of a GPU, 320 MiB of 80 GiB. On an H200, a step of
# magic-bee-26 with 256 rows (bfloat16) takes 1.67 ms with one block, and 1.87 ms with eight blocks,
# which fit in the L2 cache (docs/results/gpu.md).
_GPU_MEMORY_SHARE = 1 / 256
# The output projection gets columns of probability 0. Otherwise XLA copies bfloat16 matrices for
# cuBLAS if their width is no multiple of 8. With 19,010 tokens, a step of magic-bee-26 takes 92% of
# the time on an H200, and 96% on two cores. A multiple of 64 is 2% faster on the H200 than one of 8.
_COLUMN_MULTIPLE = 64


def smallest_divisor(rows: int, minimum: int) -> int:
  """Returns the smallest divisor of `rows` that is at least `minimum`, or `rows` itself.

  >>> smallest_divisor(64, 5), smallest_divisor(7, 2), smallest_divisor(6, 9)
  (8, 7, 6)
  """
  return next(count for count in range(max(1, min(minimum, rows)), rows + 1) if rows % count == 0)


def logit_blocks(rows: int, positions: int, vocab_size: int, device: jax.Device) -> int:
  """Returns the number of blocks of rows for the logits of a device.

  A block fits in the cache of a CPU or TPU, and takes a fixed share of the memory of a GPU.
  """
  if device.platform == 'gpu':
    max_bytes = _GPU_MEMORY_SHARE * backend.read_gpu_bytes(device)
  else:
    max_bytes = _MAX_LOGIT_BYTES[device.platform]
  return smallest_divisor(rows, math.ceil(4 * rows * positions * vocab_size / max_bytes))


def split_rows(x: Shaped[Array, 'B *S'], count: int) -> Shaped[Array, 'count b *S']:
  """Returns the rows of a batch in `count` equal parts."""
  return x.reshape(count, -1, *x.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def cross_entropy_sum(
  x: Float[Array, 'B K D'],
  kernel: Float[Array, 'D V'],
  bias: Float[Array, 'V'],
  targets: Int[Array, 'B K'],
  weights: Float[Array, 'B K'],
  count: int,
) -> Float[Array, '']:
  """Returns the weighted sum of cross-entropies in nats, in float32.

  Args:
    x: Input of the output projection, in the type of the products and of its own gradient.
    targets: Correct token at each position.
    weights: Weight of each position, without a gradient.
    count: Number of blocks, a divisor of B.
  """
  kernel, bias = _cast(x, kernel, bias)
  matrix, blocks = _join_bias(x, kernel, bias, weights, count)

  def add_block(total: Any, block: tuple[Any, Any]) -> tuple[Any, None]:
    return total + _log_normalizer(*block, matrix)[0], None

  loss = jax.lax.scan(add_block, jnp.zeros(()), blocks)[0]
  return loss - _target_logits(x, kernel, bias, targets, weights)[0]


def _forward(
  x: Any, kernel: Any, bias: Any, targets: Any, weights: Any, count: int
) -> tuple[Any, Any]:
  """Returns the loss and its gradient with respect to `x`, `kernel` and `bias`."""
  kernel, bias = _cast(x, kernel, bias)
  matrix, blocks = _join_bias(x, kernel, bias, weights, count)

  def add_block(totals: Any, block: tuple[Any, Any]) -> tuple[Any, Any]:
    loss, powers, factor = _log_normalizer(*block, matrix)
    scaled = (block[0] * factor).astype(x.dtype)  # smaller than the powers
    d_matrix = jnp.einsum('bKD,bKV->DV', scaled, powers, preferred_element_type=jnp.float32)
    d_x = (
      jnp.einsum('bKV,DV->bKD', powers, matrix[:-1], preferred_element_type=jnp.float32) * factor
    )
    return (totals[0] + loss, totals[1] + d_matrix), d_x

  start = jnp.zeros(()), jnp.zeros(matrix.shape)
  (loss, d_matrix), d_x = jax.lax.scan(add_block, start, blocks)
  target_sum, columns = _target_logits(x, kernel, bias, targets, weights)
  d_matrix = d_matrix[:, : kernel.shape[1]]
  d_kernel = d_matrix[:-1].at[:, targets].add(-jnp.moveaxis(x * weights[..., None], -1, 0))
  d_bias = d_matrix[-1].at[targets].add(-weights)
  d_x = d_x.reshape(x.shape) - columns * weights[..., None]
  return loss - target_sum, (d_x.astype(x.dtype), d_kernel, d_bias)


def _backward(count: int, gradient: Any, factor: Float[Array, '']) -> tuple[Any, ...]:
  return *jax.tree.map(lambda g: (g * factor).astype(g.dtype), gradient), None, None


cross_entropy_sum.defvjp(_forward, _backward)


def _cast(x: Any, *arrays: Any) -> tuple[Any, ...]:
  """Returns arrays in the type of `x`, so all logits use the same rounded numbers."""
  return tuple(array.astype(x.dtype) for array in arrays)


def _join_bias(x: Any, kernel: Any, bias: Any, weights: Any, count: int) -> tuple[Any, Any]:
  """Returns kernel and bias as one matrix, and blocks of inputs with a 1 appended and of weights.

  The number of columns is a multiple of `_COLUMN_MULTIPLE`, and added logits are minus infinity.
  """
  extra = -kernel.shape[1] % _COLUMN_MULTIPLE
  wide_kernel = jnp.pad(kernel, ((0, 0), (0, extra)))
  wide_bias = jnp.pad(bias, (0, extra), constant_values=-jnp.inf)
  ones = jnp.ones((*x.shape[:2], 1), x.dtype)
  return jnp.concatenate([wide_kernel, wide_bias[None]]), (
    split_rows(jnp.concatenate([x, ones], -1), count),
    split_rows(weights, count),
  )


def _log_normalizer(x: Any, weights: Any, matrix: Any) -> tuple[Any, Any, Any]:
  """Returns the weighted sum of log-normalizers of a block, scaled exp(logits), and factors.

  The product of scaled exp(logits) and factors is the weighted probabilities.
  """
  logits = jnp.matmul(x, matrix, preferred_element_type=jnp.float32)
  top = logits.max(-1, keepdims=True)
  powers = jnp.exp(logits - top)
  normalizer = powers.sum(-1)
  return (
    jnp.sum((jnp.log(normalizer) + top[..., 0]) * weights),
    powers.astype(x.dtype),
    (weights / normalizer)[..., None],
  )


def _target_logits(x: Any, kernel: Any, bias: Any, targets: Any, weights: Any) -> tuple[Any, Any]:
  """Returns the weighted sum of the logits of targets, and the kernel columns of targets."""
  columns = jnp.moveaxis(kernel[:, targets], 0, -1)
  return jnp.sum((jnp.sum(x.astype(jnp.float32) * columns, -1) + bias[targets]) * weights), columns
