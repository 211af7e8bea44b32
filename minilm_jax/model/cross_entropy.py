"""Cross-entropy fused with the output projection: logits and their gradient exist for one block of
rows at a time.

    loss = sum_n w_n (log sum_v exp(x_n k_v + b_v) - x_n k_t(n) - b_t(n))

Logits `[B K V]` are the largest array of a tiny model's step by far, and a step that writes them
out and reads them back waits for memory. The loss is a sum, so its gradient by a block of logits is
known, up to one factor for all of them, while that block still lies in cache: each block is passed
once, forward and backward together, and what is kept for the backward pass is as small as the
gradient itself.

The three products take the type of `x`; logits, exponentials, sums and the loss are float32.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

# of logits in a block; cpu measured, others guessed
_MAX_LOGIT_BYTES = {'cpu': 6 << 20, 'gpu': 256 << 20, 'tpu': 64 << 20}


def smallest_divisor(rows: int, least: int) -> int:
  """The least number of equal parts of `rows` that is not below `least`; one row a part where none
  is.

  >>> smallest_divisor(64, 5), smallest_divisor(7, 2), smallest_divisor(6, 9)
  (8, 7, 6)
  """
  return next(count for count in range(max(1, min(least, rows)), rows + 1) if rows % count == 0)


def logit_blocks(rows: int, positions: int, vocabulary: int, platform: str) -> int:
  """Into how many blocks the `rows` of a device are cut, so that the logits of one stay in cache; 1
  is all at once.
  """
  return smallest_divisor(
    rows, math.ceil(4 * rows * positions * vocabulary / _MAX_LOGIT_BYTES[platform])
  )


def split_rows(x: Shaped[Array, 'B *S'], count: int) -> Shaped[Array, 'count b *S']:
  """The rows of a batch in `count` parts."""
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
  """Summed cross-entropy in nats, weighted, in float32.

  Args:
    x: what the output projection reads, in the type of the products; its gradient is of that type
      too.
    kernel: the output projection.
    bias: its bias.
    targets: the right piece at each position.
    weights: what each position counts; nothing is differentiated by them.
    count: blocks, which divide B.
  """
  kernel, bias = _cast(x, kernel, bias)
  whole, parts = _with_bias(x, kernel, bias, weights, count)
  loss = jax.lax.scan(
    lambda sum_, part: (sum_ + _log_normalizer(*part, whole)[0], None), jnp.zeros(()), parts
  )[0]
  return loss - _target_logits(x, kernel, bias, targets, weights)[0]


def _forward(
  x: Any, kernel: Any, bias: Any, targets: Any, weights: Any, count: int
) -> tuple[Any, Any]:
  """The loss; and its gradient by `x`, `kernel` and `bias`, to which the targets add their share at
  the end.
  """
  kernel, bias = _cast(x, kernel, bias)
  whole, parts = _with_bias(x, kernel, bias, weights, count)

  def one(total: Any, part: Any) -> tuple[Any, Any]:
    loss, powers, share = _log_normalizer(*part, whole)
    scaled = (part[0] * share).astype(x.dtype)  # here, where the array is small
    by_whole = jnp.einsum('bKD,bKV->DV', scaled, powers, preferred_element_type=jnp.float32)
    by_x = jnp.einsum('bKV,DV->bKD', powers, kernel, preferred_element_type=jnp.float32) * share
    return (total[0] + loss, total[1] + by_whole), by_x

  (loss, by_whole), by_x = jax.lax.scan(one, (jnp.zeros(()), jnp.zeros(whole.shape)), parts)
  aimed, kernel_rows = _target_logits(x, kernel, bias, targets, weights)
  by_kernel = by_whole[:-1].at[:, targets].add(-jnp.moveaxis(x * weights[..., None], -1, 0))
  by_x = by_x.reshape(x.shape) - kernel_rows * weights[..., None]
  return loss - aimed, (by_x.astype(x.dtype), by_kernel, by_whole[-1].at[targets].add(-weights))


def _backward(count: int, gradient: Any, factor: Float[Array, '']) -> tuple[Any, ...]:
  return *jax.tree.map(lambda g: (g * factor).astype(g.dtype), gradient), None, None


cross_entropy_sum.defvjp(_forward, _backward)


def _cast(x: Any, *arrays: Any) -> tuple[Any, ...]:
  """Kernel and bias in the type of `x`: the logits of the targets must be of the same numbers as
  all others.
  """
  return tuple(array.astype(x.dtype) for array in arrays)


def _with_bias(x: Any, kernel: Any, bias: Any, weights: Any, count: int) -> tuple[Any, Any]:
  """Kernel and bias as one matrix, so that one product does for both, and what each block reads."""
  ones = jnp.ones((*x.shape[:2], 1), x.dtype)
  return jnp.concatenate([kernel, bias[None]]), (
    split_rows(jnp.concatenate([x, ones], -1), count),
    split_rows(weights, count),
  )


def _log_normalizer(x: Any, weight: Any, whole: Any) -> tuple[Any, Any, Any]:
  """Of a block: the log-normalisers, summed; exp(logits) up to a factor; and what makes it weighted
  probabilities.
  """
  logits = jnp.matmul(x, whole, preferred_element_type=jnp.float32)
  top = logits.max(-1, keepdims=True)
  powers = jnp.exp(logits - top)
  normal = powers.sum(-1)
  return (
    jnp.sum((jnp.log(normal) + top[..., 0]) * weight),
    powers.astype(x.dtype),
    (weight / normal)[..., None],
  )


def _target_logits(x: Any, kernel: Any, bias: Any, targets: Any, weights: Any) -> tuple[Any, Any]:
  """The logits of the targets, summed, and the columns of the kernel that they come from."""
  columns = jnp.moveaxis(kernel[:, targets], 0, -1)
  return jnp.sum((jnp.sum(x.astype(jnp.float32) * columns, -1) + bias[targets]) * weights), columns
