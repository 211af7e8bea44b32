"""The step: a pure function of state and corpus, whose sums do not depend on how a batch is cut
up."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import tiny
from minilm_jax.core import recipe, rng
from minilm_jax.core.config import MeshConfig, RunConfig
from minilm_jax.core.corpus_config import BEGIN_ID, END_ID, MASK_ID, PAD_ID
from minilm_jax.data.corpus import Corpus
from minilm_jax.model import flops
from minilm_jax.training import masking, population, sharding, train_step
from minilm_jax.training.train_step import NonFinite
from tests import fast_jit, golden

ROWS, LENGTH, VOCABULARY = 24, 16, 64
MESH = sharding.make_mesh(MeshConfig(1, 1, 1))
WHY = f"""one of the first steps of a fixed training gives other numbers than before.
A bug, if nothing was meant to change the order of rows, masks, dropout, the model, the loss or the optimizer: look at
which sums moved. `masked` of step 0 tells rows and masks, `loss` of step 0 also start and model, later steps also
gradient and update. Intended, if the commit says so and the README warns that old runs cannot be resumed exactly; then
  {golden.COMMAND}
writes them anew."""


def run_config(dropout: float = 0.0, **changes: Any) -> RunConfig:
  made = tiny.get_config()
  made.update(batch_size=8, num_steps=10)
  # smaller, Adam makes whole steps of the rounding errors where a gradient is zero
  made.optimizer.epsilon = 1e-3
  made.model.update(
    vocab_size=VOCABULARY,
    max_length=LENGTH,
    hidden_size=16,
    embedding_size=16,
    intermediate_size=24,
    num_layers=1,
    dropout=dropout,
  )
  made.update_from_flattened_dict(changes)
  return recipe.resolve(made, 'pretrain')


@pytest.fixture(scope='module')
def corpus() -> Corpus:
  """Rows of very different lengths, so that micro-batches have very different numbers of masked
  tokens."""
  dice = np.random.default_rng(0)
  rows = dice.integers(5, VOCABULARY, (ROWS, LENGTH)).astype('uint16')
  for row, length in zip(rows, ([3, 4, 5] + [LENGTH] * 5) * (ROWS // 8)):
    row[0], row[length - 1], row[length:] = BEGIN_ID, END_ID, PAD_ID
  return jax.device_put(Corpus(jnp.asarray(rows), VOCABULARY, 'hash'), sharding.replicated(MESH))


@functools.cache
def start_of(config: RunConfig, seed: int = 0) -> train_step.TrainState:
  return jax.device_put(
    fast_jit.jit(lambda seed: train_step.init_state(seed, config))(seed), sharding.replicated(MESH)
  )


@functools.cache
def step_of(config: RunConfig) -> Any:
  def step(state: train_step.TrainState, corpus: Corpus) -> Any:
    settings, layout = (
      population.member_settings(config),
      population.shared_mask_layout(config, corpus.length),
    )
    return train_step.train_step(state, settings, corpus, layout, config, 'cpu')[:2]

  return fast_jit.jit(population.map_over_members(step, MESH, 'single'))


@functools.cache
def sums_of(count: int) -> Any:
  """Gradient and sums of a batch of eight in so many micro-batches."""

  def sums(state: train_step.TrainState, batch: masking.MaskedBatch) -> Any:
    key = rng.batch_key(state.seed, rng.Stream.DROPOUT, state.step, jnp.arange(8))
    return train_step.accumulate(
      functools.partial(train_step.compute_gradient, blocks=1), state.model, (batch, key), count
    )

  return fast_jit.jit(sums)


def batch_of(corpus: Corpus, config: RunConfig) -> masking.MaskedBatch:
  """The first eight rows."""
  make = fast_jit.jit(masking.mask_batch, static_argnums=(5, 6))
  shares = config.mask.rate, config.mask.random_share, config.mask.keep_share
  return make(
    corpus.tokens[:8],
    jnp.arange(8),
    jnp.zeros(8, jnp.uint32),
    0,
    shares,
    masking.mask_layout(config.mask, LENGTH),
    VOCABULARY,
  )


def close(found: Any, expected: Any, **tolerance: float) -> None:
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, **tolerance)


def test_golden():
  found, stored = golden.measure(), golden.read_stored()
  assert [s['masked'] for s in found['sums']] == [s['masked'] for s in stored['sums']], WHY
  for name in ('sums', 'norms'):
    assert jax.tree.structure(found[name]) == jax.tree.structure(stored[name]), WHY
    np.testing.assert_allclose(
      jax.tree.leaves(found[name]), jax.tree.leaves(stored[name]), rtol=1e-4, err_msg=WHY
    )


def test_a_start_is_of_arrays_and_follows_the_seed():
  config = run_config()
  init = fast_jit.jit(lambda seed: train_step.init_state(seed, config))
  first, again, other = (init(seed) for seed in (0, 0, 1))
  close(first, again, rtol=0)
  assert int(first.step) == 0 and int(other.seed) == 1
  kernel = [s.model.output.kernel[...] for s in (first, other)]
  assert np.abs(kernel[0] - kernel[1]).min() < np.abs(kernel[0] - kernel[1]).max()
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(first))


@pytest.mark.parametrize('count', [2, 4])
def test_accumulation_is_the_whole_batch(count: int, corpus: Corpus):
  """By tokens, not by means: micro-batches with few masked tokens weigh little.

  Each row drops what it drops anyway.
  """
  config = run_config(dropout=0.1)
  state, batch = start_of(config), batch_of(corpus, config)
  whole, parts = (sums_of(n)(state, batch) for n in (1, count))
  close(parts, whole, rtol=2e-4, atol=2e-5)
  weights = np.asarray(batch.weights).reshape(count, -1).sum(1)
  assert len(set(weights.tolist())) > 1  # else a mean of means would pass


def test_accumulated_steps_are_steps(corpus: Corpus):
  configs = [run_config(dropout=0.1, grad_accumulation_steps=n) for n in (1, 4)]
  states = [start_of(configs[0])] * 2
  for _ in range(3):
    states, sums = zip(*(step_of(config)(state, corpus) for config, state in zip(configs, states)))
    assert sums[0]['masked'] == sums[1]['masked']
    assert float(sums[0]['loss']) == pytest.approx(float(sums[1]['loss']), rel=1e-4)
  close(states[1].model, states[0].model, atol=2e-4)


@pytest.mark.parametrize(
  'changes, devices, expected',
  [
    ({'batch_size': 64}, 1, (2, 1)),
    ({'batch_size': 64}, 2, (1, 1)),
    ({'batch_size': 64, 'grad_accumulation_steps': 8}, 2, (8, 1)),
    ({'batch_size': 64, 'logit_chunks': 3}, 2, (1, 4)),
    ({'batch_size': 6, 'grad_accumulation_steps': 1}, 1, (1, 1)),
    ({'batch_size': 256, 'model.vocab_size': 19_010, 'grad_accumulation_steps': 1}, 2, (1, 8)),
  ],
)
def test_what_the_recipe_leaves_open_keeps_a_device_in_its_cache(
  changes: Any, devices: int, expected: tuple[int, int]
):
  config = run_config(**changes)
  positions = flops.max_masked_positions(LENGTH, config.mask.rate)
  assert (
    train_step.micro_batch_plan(config, config.batch_size // devices, LENGTH, positions, 'cpu')
    == expected
  )


def test_steps_in_bfloat16_stay_near(corpus: Corpus):
  """Losses of five steps, blocks made again, within 1% of those in float32; the state is float32,
  all of it.
  """
  losses = []
  for changes in (
    {},
    {'model.dtype': 'bfloat16', 'model.remat': True, 'grad_accumulation_steps': 2},
  ):
    config = run_config(dropout=0.1, **{'model.num_layers': 2, **changes})
    state, found = start_of(config), []
    for _ in range(5):
      state, sums = step_of(config)(state, corpus)
      found.append(float(sums['loss']) / float(sums['masked']))
    losses.append(found)
    floats = {
      leaf.dtype
      for leaf in jax.tree.leaves((state, sums))
      if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    assert floats == {jnp.dtype('float32')}
  np.testing.assert_allclose(*losses, rtol=0.01)
  assert losses[0] != losses[1]


def test_a_step_is_a_function_of_the_state(corpus: Corpus):
  """Steps 2 and 3 from a state that was put together from its parts are those of the run that it
  was taken from.
  """
  step, start = step_of(run_config(dropout=0.1)), start_of(run_config(dropout=0.1), 3)
  state, _ = step(start, corpus)
  copy = jax.device_put(jax.tree.map(np.asarray, state), sharding.replicated(MESH))
  for _ in range(2):
    (state, sums), (copy, again) = step(state, corpus), step(copy, corpus)
    close((state, sums), (copy, again), rtol=0)


def test_dropout_changes_with_the_step_and_the_seed(corpus: Corpus):
  config = run_config(dropout=0.3)
  batch, start = batch_of(corpus, config), start_of(config)
  losses = {
    float(
      sums_of(1)(dataclasses.replace(start, step=jnp.int32(step), seed=jnp.uint32(seed)), batch)[1][
        'loss'
      ]
    )
    for step, seed in ((0, 0), (1, 0), (0, 1))
  }
  assert len(losses) == 3


def test_the_loss_is_the_cross_entropy_where_something_is_hidden(corpus: Corpus):
  config = run_config()
  model, batch = start_of(config).model, batch_of(corpus, config)
  logits, loss = fast_jit.jit(
    lambda model: (
      model(batch.tokens, batch.mask, batch.positions),
      train_step.compute_loss(model, batch, None, 2),
    )
  )(model)
  logits = np.asarray(logits, np.float64)
  shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  expected = (
    -np.log(np.take_along_axis(shares, np.asarray(batch.targets)[..., None], -1)[..., 0])
    * batch.weights
  )
  np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)
  # one position at a time
  alone = jnp.eye(expected.size).reshape(-1, *expected.shape) * batch.weights[None]
  found = fast_jit.jit(
    jax.vmap(
      lambda w: train_step.compute_loss(model, dataclasses.replace(batch, weights=w), None, 2)
    )
  )(alone)
  np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-5)
  assert (np.asarray(batch.tokens) == MASK_ID).sum() == batch.weights.sum()


def test_the_norm_of_the_gradient_is_what_adam_sees(corpus: Corpus):
  """Of the mean over masked tokens, before it is clipped: the first moment starts as a share of the
  gradient.
  """
  config = run_config(**{'optimizer.clip': 0.0})
  after, sums = step_of(config)(start_of(config), corpus)
  moment = optax.tree.norm(optax.tree.get(after.optimizer, 'mu'))
  assert float(sums['gradient']) == pytest.approx(
    float(moment) / (1 - config.optimizer.beta1), rel=1e-5
  )


def test_a_step_moves_every_array_but_what_it_may_not(corpus: Corpus):
  state = start_of(run_config())
  after, sums = step_of(run_config())(state, corpus)
  assert int(after.step) == 1 and int(after.seed) == 0 and float(sums['masked']) > 0
  changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.model, after.model)
  still = [path for path, moved in jax.tree_util.tree_leaves_with_path(changed) if not moved]
  assert all(
    'key' in jax.tree_util.keystr(path) and 'bias' in jax.tree_util.keystr(path) for path in still
  )


def test_means_are_divided_once():
  assert train_step.mean_metrics({'loss': 6.0, 'masked': 3.0}) == {
    'loss': 2.0,
    'perplexity': math.exp(2),
  }
  assert train_step.mean_metrics({'loss': 6.0, 'masked': 3.0, 'padding': 9.0})['padded_loss'] == 0.5
  assert math.isnan(train_step.mean_metrics({'loss': math.nan, 'masked': 3.0})['perplexity'])
  assert train_step.mean_metrics({'loss': math.inf, 'masked': 3.0})['loss'] == math.inf


# updates that are not finite


@pytest.mark.parametrize(
  'loss, gradient, expected',
  [
    (1.0, (1.0, 2.0), (-1, 0)),
    (np.nan, (np.nan, np.nan), (7, 0)),
    (1.0, (1.0, np.inf), (7, 2)),
    (1.0, (np.nan, 1.0), (7, 1)),
    (np.inf, (1.0, 1.0), (7, 0)),
  ],
)
def test_the_first_tensor_that_is_not_finite(
  loss: float, gradient: tuple[float, float], expected: tuple[int, int]
):
  found = NonFinite.detect(jnp.float32(loss), [jnp.full((2, 3), g) for g in gradient], jnp.int32(7))
  assert (int(found.step), int(found.tensor)) == expected


def test_the_earlier_of_two_is_kept():
  early, late = NonFinite(jnp.int32(3), jnp.int32(1)), NonFinite(jnp.int32(5), jnp.int32(2))
  for old, new, expected in (
    (early, late, 3),
    (NonFinite.none(), late, 5),
    (early, NonFinite.none(), 3),
  ):
    assert int(old.or_later(new).step) == expected


def test_a_tensor_has_a_name():
  model = {'first': np.ones(2), 'second': np.ones(3)}
  assert (
    train_step.name_tensor(0, model) == 'the loss'
    and train_step.name_tensor(2, model) == 'the gradient of second'
  )
  assert train_step.name_tensor(0, model | {'second': np.array([np.nan])}) == 'the parameter second'
