"""The fused cross-entropy equals optax in loss and gradient, for any number of blocks."""

import math
import re
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from minilm_jax.model import cross_entropy

B, K, D, V = 12, 3, 5, 40


@pytest.fixture(scope='module')
def arguments() -> tuple[Any, ...]:
  """Inputs with large logits, which would overflow exp, weights of 0, and repeated targets."""
  dice = np.random.default_rng(0)
  x, kernel, bias = (
    jnp.asarray(dice.normal(size=s) * 5, jnp.float32) for s in ((B, K, D), (D, V), (V,))
  )
  targets, weights = dice.integers(0, V, (B, K)), dice.integers(0, 3, (B, K))
  return x, kernel, bias, jnp.asarray(targets), jnp.asarray(weights, jnp.float32)


def compute_by_optax(
  x: Any, kernel: Any, bias: Any, targets: Any, weights: Any, count: int
) -> jax.Array:
  return (
    optax.softmax_cross_entropy_with_integer_labels(x @ kernel + bias[None, None], targets)
    * weights
  ).sum()


def double_and_grad(loss: Any, count: int) -> Any:
  """Returns a function to twice the loss and its gradient, so the backward pass must scale."""
  return jax.jit(jax.value_and_grad(lambda *a: 2 * loss(*a, count), argnums=(0, 1, 2)))


@pytest.mark.parametrize('count', [1, 3, 12])
def test_loss_and_gradient_equal_optax(arguments: tuple[Any, ...], count: int):
  results, expected = (
    double_and_grad(loss, count)(*arguments)
    for loss in (cross_entropy.cross_entropy_sum, compute_by_optax)
  )
  # Without a gradient, another function computes the loss.
  loss = cross_entropy.cross_entropy_sum(*arguments, count)
  np.testing.assert_allclose(2 * loss, expected[0], rtol=1e-6)
  for result, other in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(result, other, rtol=1e-5, atol=1e-4)


def round_to_bfloat16(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
  """Returns inputs in bfloat16, and float32 kernel and bias with values that bfloat16 has."""
  x, *others, targets, weights = arguments
  return (
    x.astype(jnp.bfloat16),
    *(a.astype(jnp.bfloat16).astype(jnp.float32) for a in others),
    targets,
    weights,
  )


@pytest.mark.parametrize('count', [1, 3])
def test_in_bfloat16_the_loss_is_exact_and_the_gradient_near(
  arguments: tuple[Any, ...], count: int
):
  """Products of bfloat16 are exact in float32; the gradient has one product rounded to 0.4%."""
  narrowed = round_to_bfloat16(arguments)
  loss, gradient = double_and_grad(cross_entropy.cross_entropy_sum, count)(*narrowed)
  text = double_and_grad(cross_entropy.cross_entropy_sum, count).lower(*narrowed).as_text()
  products = re.findall(
    r'dot_general .*: \(tensor<[\dx]*(\w+)>, tensor<[\dx]*(\w+)>\) -> tensor<[\dx]*(\w+)>', text
  )
  assert products == [('bf16', 'bf16', 'f32')] * 3
  expected, expected_gradient = double_and_grad(compute_by_optax, count)(
    narrowed[0].astype(jnp.float32), *narrowed[1:]
  )
  np.testing.assert_allclose(
    [loss, 2 * cross_entropy.cross_entropy_sum(*narrowed, count)], [expected] * 2, rtol=1e-5
  )
  assert [g.dtype for g in gradient] == [jnp.bfloat16, jnp.float32, jnp.float32]
  for part, other in zip(gradient, expected_gradient, strict=True):
    assert np.linalg.norm(part.astype(jnp.float32) - other) < 0.01 * np.linalg.norm(other)


def test_in_bfloat16_the_normaliser_is_float32():
  """With 19,010 equal logits, bfloat16 is off by 0.02 in the log, and its sum of ones stops at 256."""
  x, kernel, targets = (
    jnp.ones((2, 3, 8), jnp.bfloat16),
    jnp.zeros((8, 19_010)),
    jnp.zeros((2, 3), jnp.int32),
  )
  loss, gradient = double_and_grad(cross_entropy.cross_entropy_sum, 2)(
    x, kernel, jnp.zeros(19_010), targets, jnp.ones((2, 3))
  )
  assert float(loss) == pytest.approx(2 * 6 * math.log(19_010), rel=1e-6)
  np.testing.assert_allclose(gradient[2][1:], 2 * 6 / 19_010, rtol=0.004)
  assert float(gradient[2].sum()) == pytest.approx(0, abs=0.004 * 12)


def test_products_have_a_multiple_of_64_columns(arguments: tuple[Any, ...]):
  """The 40 columns of the kernel become 64, in the logits and in the gradient of the kernel."""
  text = double_and_grad(cross_entropy.cross_entropy_sum, 3).lower(*arguments).as_text()
  results = re.findall(r'dot_general .* -> tensor<([\dx]+)xf32>', text)
  assert sorted(results) == ['4x3x5', '4x3x64', '6x64']


def test_no_array_is_as_large_as_the_logits(arguments: tuple[Any, ...]):
  """The check reads the shapes in the compiled program, forward and backward."""
  largest = {}
  for loss in (cross_entropy.cross_entropy_sum, compute_by_optax):
    shapes = re.findall(
      r'f32\[([\d,]+)\]', double_and_grad(loss, 12).lower(*arguments).compile().as_text()
    )
    largest[loss] = max(math.prod(map(int, shape.split(','))) for shape in shapes)
  assert largest[cross_entropy.cross_entropy_sum] < B * K * V <= largest[compute_by_optax]


@pytest.mark.parametrize(
  'rows, platform, kind, count',
  [
    (64, 'cpu', '', 16),
    (4, 'cpu', '', 1),
    (7, 'cpu', '', 7),
    (32, 'tpu', '', 1),
    (64, 'tpu', '', 2),
    (256, 'gpu', 'NVIDIA H100 80GB HBM3', 2),
    (256, 'gpu', 'Tesla V100-SXM2-16GB', 8),
    (256, 'gpu', 'NVIDIA L4', 4),
    (256, 'gpu', 'NVIDIA H200', 1),
    (256, 'gpu', 'NVIDIA TITAN V', 16),  # the limit of its allocator is 6 GiB
  ],
)
def test_blocks_divide_the_rows_and_fit(rows: int, platform: str, kind: str, count: int):
  device = mock.Mock(spec=jax.Device, platform=platform, device_kind=kind)
  device.memory_stats.return_value = {'bytes_limit': 6 << 30}
  assert cross_entropy.logit_blocks(rows, 20, 19_010, device) == count


def test_a_small_head_has_one_block():
  assert cross_entropy.logit_blocks(64, 20, 400, jax.devices()[0]) == 1
