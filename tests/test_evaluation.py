"""Evaluation: sums over rows at frozen masks, the same however they are batched."""

import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from minilm_jax import recipe
from minilm_jax.config import EvaluationConfig, MeshConfig
from minilm_jax.language import corpus, tokenizer
from minilm_jax.language.corpus import Corpus
from minilm_jax.model import heads
from minilm_jax.training import masking, program, sharding, train_step
from tests import fast_jit


@pytest.fixture(scope='module')
def model() -> heads.MaskedLanguageModel:
  config = tiny.get_config()
  config.model.update(embedding=8, hidden=8, feed_forward=8, layers=1)
  made = recipe.resolve(config, 'pretrain').model
  fresh = fast_jit.jit(lambda: heads.masked_language_model(made, jax.random.key(0)))()
  return jax.tree.map(lambda x: 5 * x, fresh)  # losses that differ much from token to token


@pytest.fixture(scope='module')
def rows(tiny_corpus: pathlib.Path) -> Corpus:
  return corpus.load(tiny_corpus, 'test')


MESH = sharding.make_mesh(MeshConfig(1, 1, 1))


def by_hand(model: heads.MaskedLanguageModel, rows: Corpus, count: int) -> dict[str, float]:
  """All rows in one batch; sums in float64."""
  batch = fast_jit.jit(masking.mask_eval_batch, static_argnums=2)(rows.tokens, jnp.arange(rows.rows), rows.vocabulary)
  batch = dataclasses.replace(batch, weights=batch.weights * (jnp.arange(rows.rows) < count)[:, None])
  losses = float(fast_jit.jit(lambda m: train_step.compute_loss(m, batch, None, 1))(model))
  masked, pads = np.asarray(batch.weights).sum(), (np.asarray(rows.tokens)[:count] == tokenizer.PAD).sum()
  return {'loss': losses / masked, 'perplexity': math.exp(losses / masked), 'padded_loss': losses / (masked + pads)}


@pytest.mark.parametrize('count, batch_size', [(10_000, 64), (30, 7)])
def test_the_loss_is_a_sum_over_rows_divided_once(model, rows: Corpus, count: int, batch_size: int):
  """Whatever the batch; also where the last one is short, and where fewer rows are asked for than there are."""
  assert rows.rows % 64 and rows.rows > 30
  evaluate = program.build_evaluate(EvaluationConfig(every=1, first=0, rows=count, batch_size=batch_size), MESH)
  found, = evaluate(model, rows)
  assert found == pytest.approx(by_hand(model, rows, count), rel=1e-4)
  assert [found] == evaluate(model, rows)
  assert found['padded_loss'] < found['loss']
  untrained, = evaluate(jax.tree.map(jnp.zeros_like, model), rows)
  assert untrained['loss'] == pytest.approx(math.log(model.config.vocabulary), rel=1e-5)


def test_nothing_is_dropped(model, rows: Corpus):
  """Nor does anything else depend on what a run trains with."""
  other = dataclasses.replace(model.config, dropout=0.9)
  structure = jax.tree.structure(jax.eval_shape(lambda: heads.masked_language_model(other, jax.random.key(0))))
  dropping = jax.tree.unflatten(structure, jax.tree.leaves(model))
  evaluate = program.build_evaluate(EvaluationConfig(every=1, first=0, rows=10_000, batch_size=64), MESH)
  assert evaluate(dropping, rows)[0] == pytest.approx(by_hand(model, rows, 10_000), rel=1e-4)


def test_devices_share_the_rows(model, rows: Corpus):
  """Also where the batches are fewer than the devices, and where they are not a multiple of them."""
  mesh = sharding.make_mesh(MeshConfig(1, 8, 1))
  spread = jax.device_put((model, rows), sharding.replicated(mesh))
  for count, batch_size in ((10_000, 8), (30, 7), (5, 64)):
    config = EvaluationConfig(every=1, first=0, rows=count, batch_size=batch_size)
    found, = program.build_evaluate(config, mesh)(*spread)
    expected, = program.build_evaluate(config, MESH)(model, rows)
    for scores in (found, expected):  # a loss of 76 nats is rounded, and its exponential is off by 76 times as much
      assert math.log(scores.pop('perplexity')) == pytest.approx(scores['loss'], rel=1e-12)
    assert found == pytest.approx(expected, rel=1e-6)
