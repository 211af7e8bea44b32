"""Where heads look: shares that add up to 1, that pads get none of, and that the encoder itself goes by."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minilm_jax.model import encoder, looking
from tests import fast_jit
from tests.tiny_encoders import SMALL, draw_tokens, encode, make_model, pad_tokens

FRONT = {'positions': 'rotary', 'convolutions': 1, 'kernel': (3, 3), 'channels': 2}
CHANGES = ({}, {'norm': 'pre', 'positions': 'relative'}, {'positions': 'rotary', 'num_layers': 2, 'remat': True}, FRONT,
           FRONT | {'convolution': 'fixed', 'norm': 'pre'})
shares = fast_jit.jit(looking.attention_shares)


@pytest.mark.parametrize('changes', CHANGES)
def test_they_add_up_to_1_over_tokens(changes: dict[str, Any]):
  model, tokens = make_model(changes).encoder, pad_tokens(draw_tokens(2, 7), 9)
  found = shares(model, tokens, tokens != 1)
  assert len(found) == model.config.num_layers
  for layer in found:
    assert layer.shape == (2, model.config.num_heads, 9, 9) and layer.min() >= 0
    np.testing.assert_allclose(layer.sum(-1), 1, rtol=1e-5)
    assert layer[..., 7:].max() == 0 and layer[..., :7].min() > 0


@pytest.mark.parametrize('norm', ['pre', 'post'])
def test_they_are_those_that_the_encoder_goes_by(norm: str, monkeypatch: pytest.MonkeyPatch):
  """With these in the place of its own, the encoder gives what it gives."""
  model, tokens = make_model({'norm': norm, 'num_layers': 2}).encoder, draw_tokens(2, 9)
  expected, found = encode(model, tokens, tokens != 1), iter(shares(model, tokens, tokens != 1))
  monkeypatch.setattr(encoder.Attention, 'shares', lambda self, x, mask: next(found))
  given = fast_jit.jit(lambda model: model(tokens, tokens != 1))(model)
  np.testing.assert_allclose(given, expected, atol=1e-5)


def test_nothing_is_dropped_and_nothing_is_changed():
  tokens = draw_tokens(2, 9)
  model, sober = (make_model({'dropout': rate, 'num_layers': 2, 'remat': True}).encoder for rate in (0.5, 0.0))
  blocks, config = model.blocks, model.config
  for one, other in zip(shares(model, tokens, tokens != 1), shares(sober, tokens, tokens != 1), strict=True):
    np.testing.assert_array_equal(one, other)
  jax.eval_shape(lambda: looking.attention_shares(model, tokens, tokens != 1))
  assert model.blocks is blocks and model.config is config


def test_a_bias_to_the_left_neighbour_is_a_share_of_1_there():
  model, tokens = make_model({'positions': 'relative'}).encoder, draw_tokens(2, 9)
  left = jnp.arange(2 * SMALL.max_length - 1) == SMALL.max_length - 2
  model.blocks[0].attention.distance_bias = nnx.Param(jnp.tile(jnp.where(left, 100.0, 0.0), (SMALL.num_heads, 1)))
  found, = shares(model, tokens, tokens != 1)
  np.testing.assert_allclose(jnp.diagonal(found, offset=-1, axis1=2, axis2=3), 1, atol=1e-5)
