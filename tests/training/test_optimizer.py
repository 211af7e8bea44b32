"""Schedules have the rates of the papers; weight decay follows the paths of parameters."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base, paper1
from minilm_jax.core import recipe
from minilm_jax.core.errors import InputError
from minilm_jax.model import heads
from minilm_jax.model.initialization import path_name
from minilm_jax.training import optimizer, train_step
from tests.tiny_config import make_optimizer_config, make_run_config

UPDATES = 35_475
PARAMETERS = {
  'norm': {'scale': jnp.ones(3), 'bias': jnp.ones(3)},
  'up': {'kernel': jnp.ones((3, 3)), 'bias': jnp.ones(3)},
}


def rates(updates: int, **changes: Any) -> np.ndarray:
  """Returns the learning rate of each update of a run."""
  return np.asarray(
    jax.vmap(optimizer.build_schedule(make_optimizer_config(**changes), updates))(
      jnp.arange(updates)
    )
  )


def test_paper1_has_the_published_rates():
  paper = recipe.resolve(paper1.get_config(), 'pretrain')
  assert paper.num_steps == UPDATES and optimizer.warmup_steps(paper.optimizer, UPDATES) == 1773
  rate = optimizer.build_schedule(paper.optimizer, UPDATES)
  for s, expected in (
    (1, 2.82e-7),
    (100, 2.82e-5),
    (1773, 5.00e-4),
    (5000, 2.98e-4),
    (10_000, 2.11e-4),
    (20_000, 1.49e-4),
    (35_475, 1.12e-4),
  ):
    assert float(f'{rate(s):.2e}') == expected, f's = {s}'
    assert float(rate(s)) == pytest.approx(5e-4 * min(s / 1773, (1773 / s) ** 0.5), rel=1e-6)
  # The first two updates share a rate, as in the released code.
  assert float(rate(0)) == float(rate(1)) < float(rate(2))


@pytest.mark.parametrize(
  'updates, share, limit, expected',
  [
    (35_475, 0.05, 4000, 1773),
    (100_000, 0.05, 4000, 4000),
    (10, 0.05, 4000, 1),
    (10, 0.0, 4000, 0),
    (100, 0.5, 9, 9),
  ],
)
def test_warmup_is_a_share_with_a_minimum_and_a_maximum(
  updates: int, share: float, limit: int, expected: int
):
  assert (
    optimizer.warmup_steps(
      make_optimizer_config(warmup_fraction=share, max_warmup_steps=limit), updates
    )
    == expected
  )


@pytest.mark.parametrize('schedule', ['linear', 'cosine', 'warmup_stable_decay', 'constant'])
def test_schedules_rise_to_the_rate_and_never_start_at_zero(schedule: str):
  rate = rates(1000, schedule=schedule, learning_rate=1.0, warmup_fraction=0.1)
  assert (
    0 < rate[0] <= 0.01 + 1e-6 and rate[100] == pytest.approx(1.0, abs=1e-3) and rate.max() <= 1
  )
  np.testing.assert_allclose(np.diff(rate[:100]), rate[1] - rate[0], rtol=1e-3)


def test_schedules_fall_as_documented():
  def sample(schedule: str) -> tuple[float, float]:
    rate = rates(1000, schedule=schedule, learning_rate=1.0, warmup_fraction=0.0)
    assert (np.diff(rate) <= 0).all()
    return float(rate[500]), float(rate[-1])

  assert sample('linear') == pytest.approx((0.5, 0.001), abs=1e-5)
  assert sample('cosine') == pytest.approx((0.5, 0), abs=1e-4)
  assert sample('constant') == (1, 1)
  stable = rates(1000, schedule='warmup_stable_decay', learning_rate=1.0, decay_fraction=0.2)
  assert (stable[50:801] == 1).all()
  assert stable[850] == pytest.approx(0.5, abs=1e-5)  # 1 - sqrt(50 / 200)
  assert 0 < stable[-1] < 0.003
  # A decay that is longer than the rest of the run starts at the peak.
  early = rates(
    20, schedule='warmup_stable_decay', learning_rate=1.0, warmup_fraction=0.5, decay_fraction=0.8
  )
  assert early.argmax() == 10 and early[10] == 1


def test_a_run_may_have_a_single_update_or_only_warmup():
  for schedule in ('inverse_sqrt', 'linear', 'cosine', 'warmup_stable_decay', 'constant'):
    assert (
      np.isfinite(rates(1, schedule=schedule)).all() and (rates(1, schedule=schedule) > 0).all()
    )
    assert (rates(10, schedule=schedule, warmup_fraction=1.0) > 0).all()


def test_decay_skips_paths_with_a_pattern():
  assert optimizer.decay_mask(make_optimizer_config(no_decay=('bias', 'norm')), PARAMETERS) == {
    'norm': {'scale': False, 'bias': False},
    'up': {'kernel': True, 'bias': False},
  }
  assert all(jax.tree.leaves(optimizer.decay_mask(make_optimizer_config(no_decay=()), PARAMETERS)))


def test_a_pattern_that_matches_nothing_is_refused():
  with pytest.raises(InputError, match="no_decay='layernorm'"):
    optimizer.check_no_decay(make_optimizer_config(no_decay=('bias', 'layernorm')), PARAMETERS)


@pytest.mark.parametrize(
  'decays, is_refused', [((0.0, ()), False), ((0.1, ()), True), ((0.0, (0.0, 0.1)), True)]
)
def test_a_run_without_weight_decay_reads_no_pattern(
  decays: tuple[float, tuple[float, ...]], is_refused: bool
):
  config = make_run_config(
    '',
    **{
      'optimizer.no_decay': 'layernorm',
      'optimizer.weight_decay': decays[0],
      'population.weight_decays': ','.join(map(str, decays[1])),
      'population.members': max(1, len(decays[1])),
    },
  )
  with pytest.raises(InputError) if is_refused else contextlib.nullcontext():
    jax.eval_shape(functools.partial(train_step.init_state, config=config), np.uint32(0))


def first_update(gradient: Any, **changes: Any) -> Any:
  """Returns the change of the parameters by the first update."""
  optimizer_config = make_optimizer_config(
    warmup_fraction=0.0, schedule='constant', learning_rate=0.1, **changes
  )
  transform = optimizer.build_optimizer(optimizer_config, 10, PARAMETERS)
  return transform.update(gradient, transform.init(PARAMETERS), PARAMETERS)[0]


def test_without_a_gradient_only_decay_changes_a_parameter():
  change = first_update(
    jax.tree.map(jnp.zeros_like, PARAMETERS), no_decay=('bias', 'norm'), weight_decay=0.5
  )
  np.testing.assert_allclose(change['up']['kernel'], -0.1 * 0.5, rtol=1e-6)
  assert not any(np.any(x) for x in (change['up']['bias'], *jax.tree.leaves(change['norm'])))


def test_the_first_update_has_the_size_of_the_rate():
  gradient = jax.tree.map(lambda x: 7.0 * x, PARAMETERS)
  for clip in (0.0, 1e-3):  # the scale of a gradient does not change an update of Adam
    change = first_update(gradient, no_decay=(), weight_decay=0.0, clip=clip)
    np.testing.assert_allclose(jax.tree.leaves(change)[0], -0.1, rtol=1e-3)
  # Clipping precedes Adam: gradients near epsilon give smaller updates.
  slow = first_update(gradient, no_decay=(), weight_decay=0.0, clip=1e-9)
  assert np.abs(jax.tree.leaves(slow)[0]).max() < 0.05


def test_updates_equal_those_of_optax():
  """Ten updates equal `optax.adamw` at the same rates."""
  built = optimizer.build_optimizer(make_optimizer_config(no_decay=(), clip=0.0), 100, PARAMETERS)
  reference = optax.adamw(
    optimizer.build_schedule(make_optimizer_config(), 100), 0.9, 0.95, 1e-8, weight_decay=0.01
  )
  rates = []
  for transform in (built, reference):
    parameters, state = PARAMETERS, transform.init(PARAMETERS)
    for step in range(10):
      change, state = transform.update(
        jax.tree.map(lambda x, step=step: jnp.sin(x + step), parameters), state, parameters
      )
      parameters = optax.apply_updates(parameters, change)
    rates.append(parameters)
  jax.tree.map(np.testing.assert_array_equal, *rates)


ENCODER = {
  'encoder': {
    'up': {'kernel': jnp.ones((4, 6)), 'bias': jnp.ones(6)},
    'down': {'kernel': jnp.ones((6, 4))},
    'embedding': {'embedding_size': jnp.ones((8, 4))},
    'norm': {'scale': jnp.ones(4)},
    'short_convolution': {'kernel': jnp.ones((3, 4))},
  },
  'output': {'kernel': jnp.ones((4, 8))},
}


def train_randomly(updates: int, **changes: Any) -> Any:
  """Returns the last change after some updates with random gradients."""
  optimizer_config = make_optimizer_config(
    warmup_fraction=0.0, schedule='constant', learning_rate=0.1, **changes
  )
  transform, parameters = optimizer.build_optimizer(optimizer_config, 100, ENCODER), ENCODER
  state, update = transform.init(parameters), jax.jit(transform.update)
  dice = np.random.default_rng(0)
  for _ in range(updates):
    gradient = jax.tree.map(
      lambda x: jnp.asarray(dice.standard_normal(x.shape), jnp.float32), ENCODER
    )
    change, state = update(gradient, state, parameters)
    parameters = optax.apply_updates(parameters, change)
  return change


@pytest.mark.parametrize('updates', [1, 5])
def test_muon_orthogonalizes_updates_of_matrices_and_leaves_others_to_adamw(updates: int):
  last_change, adamw = (
    train_randomly(updates, algorithm=name, weight_decay=0.0, clip=0.5)
    for name in ('muon', 'adamw')
  )
  for name in ('up', 'down'):
    change = np.asarray(last_change['encoder'].pop(name)['kernel'])
    values = np.linalg.svd(change, compute_uv=False)
    # optax documents singular values between 0.5 and 1.5 after the Newton-Schulz steps.
    assert values.max() < 1.8 * values.min()
    assert np.sqrt(np.square(change).mean()) == pytest.approx(0.1 * 0.2, rel=0.3)
    assert np.linalg.cond(adamw['encoder'].pop(name)['kernel']) > 2
  jax.tree.map(np.testing.assert_array_equal, last_change, adamw)


def test_muon_decays_by_path():
  """Without a gradient only decay changes a parameter, by the same rate."""
  optimizer_config = make_optimizer_config(
    warmup_fraction=0.0,
    schedule='constant',
    learning_rate=0.1,
    weight_decay=0.5,
    algorithm='muon',
    no_decay=('bias', 'norm', 'embedding', 'down'),
  )
  transform = optimizer.build_optimizer(optimizer_config, 10, ENCODER)
  change, _ = transform.update(
    jax.tree.map(jnp.zeros_like, ENCODER), transform.init(ENCODER), ENCODER
  )
  moved = {
    path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(change) if np.any(leaf)
  }
  assert set(moved) == {'encoder.up.kernel', 'encoder.short_convolution.kernel', 'output.kernel'}
  for leaf in moved.values():
    np.testing.assert_allclose(leaf, -0.1 * 0.5, rtol=1e-6)


def make_blocks(number: int) -> dict[str, Any]:
  return {
    'encoder': {
      f'block{n}': {
        'up': {'kernel': jnp.full((4, 6), n + 1.0)},
        'down': {'kernel': jnp.full((6, 4), -1.0)},
      }
      for n in range(number)
    }
  }


def test_stacked_matrices_have_the_updates_and_moments_of_single_matrices():
  """The reference is `optax.contrib.muon` of each matrix; one block has no decay."""
  blocks = make_blocks(3)
  settings = {'warmup_fraction': 0.0, 'schedule': 'constant', 'learning_rate': 0.1, 'clip': 0.0}
  stacked = optimizer.build_optimizer(
    make_optimizer_config(algorithm='muon', weight_decay=0.5, no_decay=('block1',), **settings),
    10,
    blocks,
  )
  mask = jax.tree_util.tree_map_with_path(lambda path, x: path[1].key != 'block1', blocks)
  single = optax.contrib.muon(
    0.1, beta=0.95, weight_decay=0.5, weight_decay_mask=mask, consistent_rms=0.2
  )
  states, dice = [stacked.init(blocks), single.init(blocks)], np.random.default_rng(0)
  updates = [jax.jit(transform.update) for transform in (stacked, single)]
  for _ in range(3):
    gradient = jax.tree.map(
      lambda x: jnp.asarray(dice.standard_normal(x.shape), jnp.float32), blocks
    )
    (change, states[0]), (expected, states[1]) = (
      update(gradient, state, blocks) for update, state in zip(updates, states, strict=True)
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), change, expected)
  moments, expected = (
    {
      path_name(path).partition('.mu.')[2]: leaf
      for path, leaf in jax.tree.leaves_with_path(state)
      if '.mu.' in path_name(path)
    }
    for state in states
  )
  assert set(moments) == set(expected) and len(moments) == 6
  for name, leaf in moments.items():
    np.testing.assert_allclose(leaf, expected[name], rtol=1e-6)


def test_more_matrices_of_the_same_shapes_need_no_more_products():
  counts = []
  for number in (1, 3):
    blocks = make_blocks(number)
    transform = optimizer.build_optimizer(
      make_optimizer_config(algorithm='muon', no_decay=()), 10, blocks
    )
    program = jax.make_jaxpr(transform.update)(blocks, transform.init(blocks), blocks)
    counts.append(str(program).count('dot_general['))
  assert counts[0] == counts[1] > 0


@pytest.mark.parametrize('algorithm', ['adamw', 'muon'])
def test_a_continued_optimizer_keeps_its_moments_and_starts_its_schedule(algorithm: str):
  """After 3 of 10 updates, a linear schedule has 0.7 of its first rate; clipping may differ."""
  fields = {'algorithm': algorithm, 'schedule': 'linear', 'warmup_fraction': 0.0}
  earlier = optimizer.build_optimizer(make_optimizer_config(clip=0.0, **fields), 10, ENCODER)
  later = optimizer.build_optimizer(make_optimizer_config(clip=1e9, **fields), 10, ENCODER)
  saved, dice = earlier.init(ENCODER), np.random.default_rng(0)
  for _ in range(4):
    gradient = jax.tree.map(
      lambda x: jnp.asarray(dice.standard_normal(x.shape), jnp.float32), ENCODER
    )
    before = saved
    change, saved = earlier.update(gradient, saved, ENCODER)
  members = jax.vmap(lambda _: later.init(ENCODER))(jnp.arange(2))
  continued = optimizer.continue_moments(members, before)
  first, second = (
    later.update(gradient, jax.tree.map(lambda x, n=n: x[n], continued), ENCODER)[0]
    for n in range(2)
  )
  jax.tree.map(np.testing.assert_array_equal, first, second)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(0.7 * x, y, rtol=1e-5), first, change)


def test_muon_updates_the_matrices_of_projection_and_blocks():
  """Convolutions, head and distance biases have two axes too, and belong to AdamW."""
  config = base.pretrain()
  config.model.update(
    convolutions=1, kernel='3,3', channels=2, short_convolution=3, positions='relative'
  )
  shape = recipe.resolve(config, 'pretrain').model
  model = jax.eval_shape(lambda: heads.init_masked_language_model(shape, jax.random.key(0)))
  decayed = {
    path_name(path)
    for path, label in jax.tree.leaves_with_path(optimizer.label_parameters(model))
    if label == 'muon'
  }
  linears = (
    'attention.query',
    'attention.key',
    'attention.value',
    'attention.output',
    'feed_forward.up',
    'feed_forward.down',
  )
  assert decayed == {
    'encoder.projection.linear.kernel',
    *(f'encoder.blocks.0.{name}.kernel' for name in linears),
  }


@pytest.mark.parametrize('updates', [31_250, 62_500, 140_650])
def test_the_second_paper_changes_the_rate_once_an_epoch(updates: int):
  """The code starts with a rate of 0 and then falls by 49ths; the README falls by 50ths."""
  epoch_steps = updates // 50
  late = rates(
    updates, schedule='per_epoch_from_zero', epochs=50, learning_rate=5e-5, warmup_fraction=0.0
  )
  expected = 5e-5 * np.array([0, *(np.arange(49, 0, -1) / 49)])
  np.testing.assert_allclose(late, np.repeat(expected, epoch_steps), rtol=1e-6)
  assert (late[0], late[epoch_steps - 1]) == (0, 0) and late[epoch_steps] == np.float32(5e-5)
  assert late[-1] == pytest.approx(5e-5 / 49, rel=1e-6)
  early = rates(updates, schedule='per_epoch', epochs=50, learning_rate=5e-5)
  readme_rates = np.repeat(5e-5 * np.arange(50, 0, -1) / 50, epoch_steps)
  np.testing.assert_allclose(early, readme_rates, rtol=1e-6)


def test_epochs_differ_by_at_most_a_step():
  rate = rates(17, schedule='per_epoch', epochs=5, learning_rate=1.0)
  values, counts = np.unique(rate, return_counts=True)
  np.testing.assert_allclose(values, [0.2, 0.4, 0.6, 0.8, 1], rtol=1e-6)
  assert (
    counts.tolist()[::-1] == [4, 3, 4, 3, 3]
    and optimizer.warmup_steps(make_optimizer_config(schedule='per_epoch', epochs=5), 17) == 0
  )
  assert rates(3, schedule='per_epoch', epochs=5, learning_rate=1.0).tolist() == pytest.approx(
    [1, 0.8, 0.4]
  )


@pytest.mark.parametrize('schedule, epochs', [('per_epoch', 0), ('per_epoch_from_zero', 1)])
def test_a_schedule_by_the_epoch_needs_epochs(schedule: str, epochs: int):
  with pytest.raises(InputError, match=f'epochs={epochs}'):
    make_optimizer_config(schedule=schedule, epochs=epochs)


def test_the_peak_of_a_schedule_by_epoch_may_be_traced():
  optimizer_config = make_optimizer_config(schedule='per_epoch_from_zero', epochs=3)
  rate = jax.jit(lambda top: optimizer.build_schedule(optimizer_config, 6, top)(jnp.int32(3)))
  assert float(rate(jnp.float32(0.5))) == 0.5 and float(rate(jnp.float32(2.0))) == 2.0
