"""Heads give logits at positions, tied or not, by three poolings, several heads and dropout."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minilm_jax.core import rng
from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.model import heads, layers
from minilm_jax.model.initialization import count_parameters

SMALL = EncoderConfig(
  vocab_size=40,
  embedding_size=16,
  hidden_size=16,
  intermediate_size=24,
  num_heads=4,
  max_length=10,
  segments=0,
  projection=False,
  dropout=0.0,
)
TOKENS = jnp.array([[0, 7, 8, 9, 2, 1, 1, 1, 1, 1], [0, 11, 12, 13, 14, 15, 16, 17, 18, 2]])


def run(model: Any, *arguments: Any, key: Any = None, tokens: jax.Array = TOKENS) -> np.ndarray:
  return np.asarray(
    jax.jit(lambda model, key: model(tokens, tokens != 1, *arguments, key=key))(model, key)
  )


@pytest.mark.parametrize('tied', [False, True])
def test_logits_do_not_depend_on_other_positions(tied: bool):
  model = heads.init_masked_language_model(dataclasses.replace(SMALL, tied=tied), jax.random.key(0))
  everywhere = run(model, jnp.broadcast_to(jnp.arange(10), (2, 10)))
  positions = jnp.array([[3, 1, 1], [9, 0, 4]])
  expected = np.take_along_axis(everywhere, np.asarray(positions)[:, :, None], axis=1)
  np.testing.assert_allclose(run(model, positions), expected, atol=1e-5)


def test_a_tied_head_uses_the_embedding_table():
  model = heads.init_masked_language_model(dataclasses.replace(SMALL, tied=True), jax.random.key(0))
  assert not hasattr(model, 'output')
  positions, table = jnp.array([[2], [5]]), model.encoder.embedding.tokens.embedding
  before = run(model, positions)
  table[...] = table[...].at[39].add(1.0)  # no row has this token, so only the output uses it
  changed = run(model, positions) != before
  assert changed[..., 39].all() and not changed[..., :39].any()


def make_classifier(
  pooling: str, dropout: float = 0.0, classes: int = 3, copies: int = 1, **changes: Any
) -> heads.Classifier:
  config, head = (
    dataclasses.replace(SMALL, **changes),
    HeadConfig(pooling=pooling, dropout=dropout, ensemble_size=copies),
  )
  return heads.init_classifier(config, head, classes, jax.random.key(0))


def apply(linear: nnx.Linear, x: np.ndarray) -> np.ndarray:
  return x @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])


def test_poolings_equal_direct_computations():
  vectors = {}
  for pooling in ('first', 'mean', 'positions'):
    model = make_classifier(pooling)
    x = run(model.encoder)
    if pooling == 'positions':
      pooled = apply(model.pool, x.swapaxes(1, 2))[..., 0]  # pads included, as in paper 1
    else:
      vector = x[:, 0] if pooling == 'first' else np.stack([x[0, :5].mean(0), x[1].mean(0)])
      pooled = np.tanh(apply(model.dense, vector))
    vectors[pooling] = run(model)
    np.testing.assert_allclose(vectors[pooling], apply(model.output, pooled), atol=1e-5)
  assert all(v.shape == (2, 3) for v in vectors.values())


@pytest.mark.parametrize('pooling', ['first', 'mean'])
def test_pads_do_not_change_a_label(pooling: str):
  model, short = make_classifier(pooling), TOKENS[:1, :5]
  np.testing.assert_allclose(run(model, tokens=short), run(model)[:1], atol=1e-5)


@pytest.mark.parametrize('pooling', ['first', 'mean', 'positions'])
def test_logits_in_bfloat16_are_close_to_float32(pooling: str):
  """Logits have type float32 and differ by at most 2% of the largest."""
  tokens = jnp.tile(TOKENS, (8, 1)).at[:, 1].set(jnp.arange(5, 21))
  logits, expected = (
    run(make_classifier(pooling, dtype=compute), tokens=tokens)
    for compute in ('bfloat16', 'float32')
  )
  assert (
    logits.dtype == np.float32
    and 0 < np.abs(logits - expected).max() < 0.02 * np.abs(expected).max()
  )


def test_the_head_of_paper1_has_its_parameters():
  """Positions have 128 weights and a bias, and the output h C + C (paper 1, classification)."""
  config = dataclasses.replace(SMALL, max_length=128, hidden_size=16)
  shapes = jax.eval_shape(
    lambda: heads.init_classifier(config, HeadConfig('positions', 0.0, 1), 2, jax.random.key(0))
  )
  extra = count_parameters(shapes) - count_parameters(shapes.encoder)
  assert extra == 129 + 16 * 2 + 2


def logits_by_head(model: heads.Classifier, key: Any = None) -> list[np.ndarray]:
  call = jax.jit(lambda model, key: model.logits_by_head(TOKENS, TOKENS != 1, key=key))
  return [np.asarray(logits) for logits in call(model, key)]


@pytest.mark.parametrize('pooling', ['first', 'positions'])
def test_logits_are_means_over_heads_and_the_first_head_equals_a_single_head(pooling: str):
  single, several = make_classifier(pooling), make_classifier(pooling, copies=3)
  logits = logits_by_head(several)
  np.testing.assert_allclose(run(several), np.mean(logits, 0), atol=1e-6)
  np.testing.assert_array_equal(run(single), logits_by_head(single)[0])
  np.testing.assert_allclose(logits[0], run(single), atol=1e-6)
  assert min(np.abs(a - b).max() for a, b in itertools.pairwise(logits)) > 1e-3
  sizes = [count_parameters(model) - count_parameters(model.encoder) for model in (single, several)]
  assert sizes[1] == 3 * sizes[0]


def test_dropout_precedes_the_dense_layer_and_follows_the_tanh():
  """The order is that of RoBERTa (paper 1, classification); the first head equals a single head."""
  model = make_classifier('first', dropout=0.5, copies=2)
  key = rng.make_batch_keys(0, rng.Stream.DROPOUT, 0, jnp.arange(2))
  other = model.others[0]
  other.dense.kernel[...] = model.dense.kernel[...]
  other.output.kernel[...] = model.output.kernel[...]
  results, keys = logits_by_head(model, key), layers.split_key(key, 5)
  vector = jnp.asarray(run(model.encoder, key=keys[0])[:, 0])  # the encoder has no dropout
  for logits, before, after in zip(results, keys[1::2], keys[2::2], strict=True):
    hidden = np.tanh(apply(model.dense, np.asarray(layers.apply_dropout(vector, 0.5, before))))
    np.testing.assert_allclose(
      logits,
      apply(model.output, np.asarray(layers.apply_dropout(jnp.asarray(hidden), 0.5, after))),
      atol=1e-5,
    )
  assert np.abs(results[0] - results[1]).max() > 1e-3
  np.testing.assert_allclose(
    results[0], run(make_classifier('first', dropout=0.5), key=key), atol=1e-6
  )


def test_a_regressor_returns_one_number():
  model = make_classifier('first', classes=0)
  assert run(model).shape == (2, 1)


def test_the_head_drops_only_with_a_key():
  model = make_classifier('first', dropout=0.5)
  np.testing.assert_array_equal(run(model), run(model))
  first, second = (
    run(model, key=rng.make_batch_keys(seed, rng.Stream.DROPOUT, 0, jnp.arange(2)))
    for seed in (0, 1)
  )
  assert np.abs(first - second).max() > 1e-3


def test_models_of_one_configuration_are_built_once_and_share_nothing(
  monkeypatch: pytest.MonkeyPatch,
):
  """The first model loses a part and a parameter; the second has both."""
  config, built = dataclasses.replace(SMALL, vocab_size=47), []
  encoder = heads.Encoder
  monkeypatch.setattr(heads, 'Encoder', lambda *arguments: built.append(1) or encoder(*arguments))
  first, second, other = (
    heads.init_masked_language_model(config, jax.random.key(seed)) for seed in (0, 0, 1)
  )
  assert len(built) == 1
  jax.tree.map(np.testing.assert_array_equal, first, second)
  kernels = [np.asarray(model.transform.kernel[...]) for model in (second, other)]
  assert not np.array_equal(*kernels)
  first.encoder = None
  first.transform.kernel[...] = jnp.zeros(kernels[0].shape)
  third = heads.init_masked_language_model(config, jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, second, third)
