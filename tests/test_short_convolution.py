"""The short convolution: XLA's own depthwise one added to the row, pads as zeros; a model starts as one without it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minilm_jax.errors import InputError
from minilm_jax.model import heads, short_convolution, size
from minilm_jax.model.initialization import path_name
from tests import fast_jit
from tests.tiny_encoders import SMALL


def made(width: int, **changes: Any) -> short_convolution.ShortConvolution:
  """A layer with random weights."""
  found = short_convolution.ShortConvolution(dataclasses.replace(SMALL, short_convolution=width, **changes))
  first, second = jax.random.split(jax.random.key(1))
  found.kernel = nnx.Param(jax.random.normal(first, found.kernel.shape))
  found.bias = nnx.Param(jax.random.normal(second, found.bias.shape))
  return found


def some(rows: int = 3, length: int = 9) -> tuple[jax.Array, jax.Array]:
  """Rows of 9, 6 and 2 tokens; what is at pads is large."""
  mask = jnp.arange(length)[None] < jnp.array([9, 6, 2])[:rows, None]
  x = jax.random.normal(jax.random.key(0), (rows, length, SMALL.hidden_size))
  return jnp.where(mask[:, :, None], x, 1e3), mask


def by_xla(layer: short_convolution.ShortConvolution, x: jax.Array, mask: jax.Array) -> jax.Array:
  kernel = layer.kernel[...]
  near = jax.lax.conv_general_dilated(jnp.where(mask[:, :, None], x, 0), kernel[:, None], (1,), 'SAME',
                                      dimension_numbers=('NWC', 'WIO', 'NWC'), feature_group_count=kernel.shape[1])
  return x + near + layer.bias[...].reshape(1, 1, -1)


@pytest.mark.parametrize('width', [1, 3, 7])
def test_it_is_the_depthwise_convolution_of_xla(width: int):
  """Outputs, and the gradients of weights and of what is read."""
  layer, (x, mask) = made(width), some()
  toward = jax.random.normal(jax.random.key(2), x.shape)
  found, expected = (fast_jit.jit(jax.value_and_grad(lambda layer, x, f=f: (f(layer, x, mask) * toward).sum(), (0, 1)))(
      layer, x) for f in (lambda layer, x, mask: layer(x, mask), by_xla))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)
  np.testing.assert_array_equal(found[1][1][~mask], toward[~mask])  # of a pad, through the residual alone


def test_in_bfloat16_the_sum_is_taken_in_float32():
  layer, (x, mask) = made(7, dtype='bfloat16'), some()
  narrow = x.astype(jnp.bfloat16)
  found = layer(narrow, mask)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_array_equal(found, layer(narrow.astype(jnp.float32), mask).astype(jnp.bfloat16))


@pytest.mark.parametrize('rule', ['standard', 'paper1', 'bert'])
def test_a_model_starts_as_the_one_without_it_and_learns_it_from_the_first_step(rule: str):
  configs = [dataclasses.replace(SMALL, initialization=rule, short_convolution=width) for width in (0, 3)]
  without, model = (fast_jit.jit(lambda c=c: heads.masked_language_model(c, jax.random.key(0)))() for c in configs)
  found, expected = ({path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(one)}
                     for one in (model, without))
  own = {name: found.pop(name) for name in list(found) if 'short_convolution' in name}
  assert list(own) == ['encoder.short_convolution.bias', 'encoder.short_convolution.kernel']
  assert not any(np.any(leaf) for leaf in own.values())
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  tokens = jax.random.randint(jax.random.key(3), (4, 12), 5, SMALL.vocab_size)

  def loss(model: heads.MaskedLanguageModel) -> tuple[jax.Array, jax.Array]:
    x = model(tokens, tokens > 0, jnp.broadcast_to(jnp.arange(12), tokens.shape))
    return jnp.sin(1e3 * x).sum(), x

  (gradient, x), (_, y) = (fast_jit.jit(jax.grad(loss, has_aux=True))(one) for one in (model, without))
  np.testing.assert_array_equal(x, y)
  assert np.abs(gradient.encoder.short_convolution.kernel[...]).min() > 0


def test_xla_confirms_its_flops():
  """Of each tap, forward; the residual and the zeros at pads are element-wise work."""
  x, mask = some()
  counted = [jax.jit(lambda layer, x: layer(x, mask)).lower(made(width), x).cost_analysis()['flops']
             for width in (1, 3, 7)]
  configs = [dataclasses.replace(SMALL, short_convolution=width) for width in (1, 3, 7)]
  ours = [len(x) * short_convolution.flops(config, x.shape[1]) for config in configs]
  assert all(0 <= found - own - 2 * x.size <= 2 for found, own in zip(counted, ours))  # and a scalar or two
  assert size.encoder_flops(configs[1], 9) - size.encoder_flops(SMALL, 9) == 2 * 9 * 3 * SMALL.hidden_size


@pytest.mark.parametrize('width, said', [(2, 'no odd number'), (13, 'more than the 12 of a row'), (-1, 'at least 0')])
def test_what_is_no_width_is_refused(width: int, said: str):
  with pytest.raises(InputError, match=said):
    dataclasses.replace(SMALL, short_convolution=width)
