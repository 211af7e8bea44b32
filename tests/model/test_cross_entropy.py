"""The fused head: the plain cross-entropy and its gradient, however many blocks it is taken in."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from minilm_jax.model import cross_entropy
from tests import fast_jit

B, K, D, V = 12, 3, 5, 40


@pytest.fixture(scope='module')
def arguments() -> tuple[Any, ...]:
  """Logits of tens, so that an unsafe exponential would show; some positions count nothing, some
  targets come twice.
  """
  dice = np.random.default_rng(0)
  x, kernel, bias = (
    jnp.asarray(dice.normal(size=s) * 5, jnp.float32) for s in ((B, K, D), (D, V), (V,))
  )
  targets, weights = dice.integers(0, V, (B, K)), dice.integers(0, 3, (B, K))
  return x, kernel, bias, jnp.asarray(targets), jnp.asarray(weights, jnp.float32)


def plain(x: Any, kernel: Any, bias: Any, targets: Any, weights: Any, count: int) -> jax.Array:
  return (
    optax.softmax_cross_entropy_with_integer_labels(x @ kernel + bias[None, None], targets)
    * weights
  ).sum()


def doubled(loss: Any, count: int) -> Any:
  """Loss and gradient of twice the loss: what comes back must be scaled too."""
  return fast_jit.jit(jax.value_and_grad(lambda *a: 2 * loss(*a, count), argnums=(0, 1, 2)))


@pytest.mark.parametrize('count', [1, 3, 12])
def test_loss_and_gradient_are_the_plain_ones(arguments: tuple[Any, ...], count: int):
  found, expected = (
    doubled(loss, count)(*arguments) for loss in (cross_entropy.cross_entropy_sum, plain)
  )
  # without a gradient it takes another way
  alone = cross_entropy.cross_entropy_sum(*arguments, count)
  np.testing.assert_allclose(2 * alone, expected[0], rtol=1e-6)
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


def narrow(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
  """What is read in bfloat16; kernel and bias hold numbers that bfloat16 has, so that the loss is
  exact.
  """
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
  """Products of bfloat16 are exact in float32; the gradient is multiplied once more, rounded to
  0.4%.
  """
  given = narrow(arguments)
  found, gradient = doubled(cross_entropy.cross_entropy_sum, count)(*given)
  text = doubled(cross_entropy.cross_entropy_sum, count).lower(*given).as_text()
  products = re.findall(
    r'dot_general .*: \(tensor<[\dx]*(\w+)>, tensor<[\dx]*(\w+)>\) -> tensor<[\dx]*(\w+)>', text
  )
  assert products == [('bf16', 'bf16', 'f32')] * 3
  expected, wanted = doubled(plain, count)(given[0].astype(jnp.float32), *given[1:])
  np.testing.assert_allclose(
    [found, 2 * cross_entropy.cross_entropy_sum(*given, count)], [expected] * 2, rtol=1e-5
  )
  assert [g.dtype for g in gradient] == [jnp.bfloat16, jnp.float32, jnp.float32]
  for one, other in zip(gradient, wanted, strict=True):
    assert np.linalg.norm(one.astype(jnp.float32) - other) < 0.01 * np.linalg.norm(other)


def test_in_bfloat16_the_normaliser_is_float32():
  """Of 19,010 equal pieces: no number of bfloat16 is within 0.02 of its log, and a sum of ones
  stops at 256.
  """
  x, kernel, targets = (
    jnp.ones((2, 3, 8), jnp.bfloat16),
    jnp.zeros((8, 19_010)),
    jnp.zeros((2, 3), jnp.int32),
  )
  loss, gradient = doubled(cross_entropy.cross_entropy_sum, 2)(
    x, kernel, jnp.zeros(19_010), targets, jnp.ones((2, 3))
  )
  assert float(loss) == pytest.approx(2 * 6 * math.log(19_010), rel=1e-6)
  np.testing.assert_allclose(gradient[2][1:], 2 * 6 / 19_010, rtol=0.004)
  assert float(gradient[2].sum()) == pytest.approx(0, abs=0.004 * 12)


def test_logits_are_never_whole(arguments: tuple[Any, ...]):
  """No array of the compiled program is as large as the logits, forward or backward."""
  largest = {}
  for loss in (cross_entropy.cross_entropy_sum, plain):
    shapes = re.findall(r'f32\[([\d,]+)\]', doubled(loss, 12).lower(*arguments).compile().as_text())
    largest[loss] = max(math.prod(map(int, shape.split(','))) for shape in shapes)
  assert largest[cross_entropy.cross_entropy_sum] < B * K * V <= largest[plain]


@pytest.mark.parametrize(
  'rows, platform, count',
  [(64, 'cpu', 16), (4, 'cpu', 1), (7, 'cpu', 7), (32, 'tpu', 1), (64, 'tpu', 2)],
)
def test_blocks_divide_the_rows_and_stay_in_cache(rows: int, platform: str, count: int):
  assert cross_entropy.logit_blocks(rows, 20, 19_010, platform) == count


def test_a_small_head_is_taken_at_once():
  assert cross_entropy.logit_blocks(64, 20, 400, 'cpu') == 1
