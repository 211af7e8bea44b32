"""Masks have static shapes and an exact rate, and are functions of rows and keys."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from minilm_jax.core.config import MaskConfig
from minilm_jax.core.corpus_config import BEGIN_ID, END_ID, MASK_ID, PAD_ID, SPECIAL_TOKENS
from minilm_jax.training import masking

LENGTH, VOCABULARY = 64, 100
PAPER = MaskConfig(rate=0.15, random_share=0.0, keep_share=0.0, special=False, span=0)
mask_batch = jax.jit(masking.mask_batch, static_argnums=(5, 6))
mask_eval_batch = jax.jit(masking.mask_eval_batch, static_argnums=2)


def mask_arguments(config: MaskConfig) -> tuple[Any, MaskConfig, int]:
  """Returns the last arguments of `mask_row` and `mask_batch`."""
  return (
    (config.rate, config.random_share, config.keep_share),
    config,
    VOCABULARY,
  )


def draw_rows(count: int, shortest: int = 2, longest: int = LENGTH, seed: int = 0) -> jax.Array:
  """Returns rows `<s> ids </s> <pad>...` of between `shortest` and `longest` tokens."""
  dice = np.random.default_rng(seed)
  rows = dice.integers(len(SPECIAL_TOKENS), VOCABULARY, (count, LENGTH))
  lengths = dice.integers(shortest, longest + 1, count)
  positions = np.arange(LENGTH)[None]
  rows = np.where(positions < lengths[:, None], rows, PAD_ID)
  rows[:, 0], rows[np.arange(count), lengths - 1] = BEGIN_ID, END_ID
  return jnp.asarray(rows, jnp.uint16)


def mask(rows: jax.Array, config: MaskConfig = PAPER, seed: int = 0, epoch: int = 0) -> Any:
  """Returns the fields of a MaskedBatch as numpy arrays."""
  epochs = jnp.full(len(rows), epoch, jnp.uint32)
  batch = mask_batch(rows, jnp.arange(len(rows)), epochs, seed, *mask_arguments(config))
  return jax.tree.map(np.asarray, dataclasses.asdict(batch))


@pytest.mark.parametrize(
  'config',
  [
    PAPER,
    MaskConfig(rate=0.15, random_share=0.1, keep_share=0.1, special=True, span=0),
    MaskConfig(rate=0.4, random_share=0.5, keep_share=0.2, special=False, span=0),
    MaskConfig(rate=1.0, random_share=0.0, keep_share=0.0, special=True, span=5),
  ],
)
@pytest.mark.parametrize('shortest, longest', [(2, 6), (2, LENGTH), (LENGTH, LENGTH)])
def test_only_eligible_tokens_are_masked(config: MaskConfig, shortest: int, longest: int):
  """Rows may have fewer tokens than positions."""
  rows = np.asarray(draw_rows(200, shortest, longest), int)
  batch = mask(jnp.asarray(rows, jnp.uint16), config)
  count = config.max_positions(LENGTH)
  assert (
    batch['positions'].shape == batch['targets'].shape == batch['weights'].shape == (200, count)
  )
  counted = batch['weights'] == 1
  assert set(np.unique(batch['weights'])) <= {0, 1}
  assert all(len(set(row)) == count for row in batch['positions'].tolist())
  np.testing.assert_array_equal(
    batch['targets'], np.take_along_axis(rows, batch['positions'], axis=1)
  )
  excluded = (PAD_ID,) if config.special else (PAD_ID, BEGIN_ID, END_ID)
  assert not np.isin(batch['targets'][counted], excluded).any()
  predicted = np.zeros(rows.shape, bool)
  np.put_along_axis(predicted, batch['positions'], counted, axis=1)
  np.testing.assert_array_equal(batch['tokens'][~predicted], rows[~predicted])
  if config.random_share == config.keep_share == 0:
    assert (batch['tokens'][predicted] == MASK_ID).all()
  # A row with an eligible token has a prediction.
  np.testing.assert_array_equal(counted.any(1), (~np.isin(rows, excluded)).any(1))


def test_all_spans_but_the_last_are_complete():
  """Spans do not change the number of predicted tokens, and start at random offsets."""
  rows = np.asarray(draw_rows(200, 20), int)
  separate = mask(jnp.asarray(rows, jnp.uint16), dataclasses.replace(PAPER, rate=0.3))
  batch = mask(jnp.asarray(rows, jnp.uint16), dataclasses.replace(PAPER, rate=0.3, span=3))
  np.testing.assert_array_equal(batch['weights'].sum(1), separate['weights'].sum(1))
  unique_offsets = set()
  for row, masked in zip(rows, batch['tokens'] == MASK_ID, strict=True):
    eligible = ~np.isin(row, (PAD_ID, BEGIN_ID, END_ID))
    offsets = set()
    for offset in range(3):
      spans = (np.arange(LENGTH) + offset) // 3
      parts = [masked[eligible & (spans == span)] for span in range(LENGTH)]
      if sum(any(part) and not all(part) for part in parts) <= 1:
        offsets.add(offset)
    assert offsets
    unique_offsets |= offsets if len(offsets) == 1 else set()
  assert unique_offsets == {0, 1, 2}


def test_the_rate_is_exact():
  """The mean equals the rate for rows with at least 1 / rate tokens; a row is off by less than 1."""
  rows = draw_rows(4000, shortest=9)
  eligible = (np.asarray(rows) >= len(SPECIAL_TOKENS)).sum(1)
  counts = np.mean([mask(rows, seed=seed)['weights'].sum(1) for seed in range(5)], axis=0)
  masked, expected = counts.sum(), 0.15 * eligible.sum()
  # 4 sigma: the rounding of a row has a standard deviation of at most 0.5.
  assert abs(masked - expected) < 4 * 0.5 * np.sqrt(4000 / 5)
  once = mask(rows)['weights'].sum(1)
  assert (np.abs(once - np.maximum(0.15 * eligible, 1)) < 1 + 1e-4).all()


def test_all_tokens_are_equally_likely():
  rows = draw_rows(1, LENGTH)
  masked = np.zeros(LENGTH)
  for epoch in range(3):
    batch = jax.jit(
      jax.vmap(lambda key: masking.mask_row(rows[0].astype(jnp.int32), key, *mask_arguments(PAPER)))
    )(jax.random.split(jax.random.key(epoch), 3000))
    np.add.at(masked, np.asarray(batch.positions)[np.asarray(batch.weights) == 1], 1)
  assert masked[0] == masked[-1] == 0  # <s> and </s>
  expected = 9000 * 0.15
  assert (np.abs(masked[1:-1] - expected) < 5 * np.sqrt(expected)).all()


def test_shares_of_random_and_original_tokens():
  config = MaskConfig(rate=0.15, random_share=0.1, keep_share=0.1, special=False, span=0)
  batch = mask(draw_rows(8000, shortest=20), config)
  counted = batch['weights'] == 1
  inputs = np.take_along_axis(batch['tokens'], batch['positions'], axis=1)[counted]
  targets, n = batch['targets'][counted], counted.sum()
  ordinary = VOCABULARY - len(SPECIAL_TOKENS)
  by_chance = 0.1 / ordinary  # a random token may equal the target
  other = inputs[(inputs != MASK_ID) & (inputs != targets)]
  for share, expected in (
    ((inputs == MASK_ID).mean(), 0.8),
    ((inputs == targets).mean(), 0.1 + by_chance),
    (len(other) / n, 0.1 - by_chance),
  ):
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / n)
  assert other.min() >= len(SPECIAL_TOKENS) and other.max() == VOCABULARY - 1
  assert len(set(other.tolist())) == ordinary


def test_masks_depend_only_on_seed_epoch_and_row():
  rows = draw_rows(200, shortest=30)
  first = mask(rows)
  assert not np.array_equal(first['positions'], mask(rows, epoch=1)['positions'])
  assert not np.array_equal(first['positions'], mask(rows, seed=1)['positions'])
  swapped = mask_batch(
    rows[::-1], jnp.arange(200)[::-1], jnp.zeros(200, jnp.uint32), 0, *mask_arguments(PAPER)
  )
  for name, value in first.items():
    np.testing.assert_array_equal(value[::-1], getattr(swapped, name), err_msg=name)
  single = mask_batch(
    rows[7:8], jnp.array([7]), jnp.zeros(1, jnp.uint32), 0, *mask_arguments(PAPER)
  )
  np.testing.assert_array_equal(single.tokens[0], first['tokens'][7])


def test_rows_of_equal_tokens_are_masked_differently():
  same = jnp.tile(draw_rows(1, LENGTH), (200, 1))
  assert len({tuple(row) for row in mask(same)['tokens'].tolist()}) == 200


def test_masks_of_evaluation_depend_only_on_the_row():
  rows = draw_rows(40, shortest=30)
  first = mask_eval_batch(rows, jnp.arange(40), VOCABULARY)
  later = mask_eval_batch(jnp.roll(rows, 7, axis=0), jnp.roll(jnp.arange(40), 7), VOCABULARY)
  np.testing.assert_array_equal(jnp.roll(first.tokens, 7, axis=0), later.tokens)
  np.testing.assert_array_equal(jnp.roll(first.positions, 7, axis=0), later.positions)


def test_masks_of_evaluation_equal_stored_masks():
  """Losses of different versions are comparable only with equal masks."""
  batch = mask_eval_batch(jnp.full((40, LENGTH), 10, jnp.uint16), jnp.arange(40), VOCABULARY)
  positions = np.array([10, 11, 21, 32, 36, 43, 56, 58, 60, 61])
  np.testing.assert_array_equal(
    np.flatnonzero(batch.tokens[5] == MASK_ID),
    positions,
    'masks of evaluation changed, so losses are not comparable with those of earlier versions. If '
    'JAX changed its generator, say so in the README and update the positions; else it is a bug',
  )


def test_masks_do_not_depend_on_the_number_of_devices():
  rows = draw_rows(200)
  config = MaskConfig(rate=0.15, random_share=0.1, keep_share=0.1, special=True, span=0)
  mesh = Mesh(np.array(jax.devices()), ('data',), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, PartitionSpec('data'))
  arguments = jax.device_put((rows, jnp.arange(200), jnp.zeros(200, jnp.uint32)), split)
  batch = mask_batch(*arguments, 0, *mask_arguments(config))
  for name, value in mask(rows, config).items():
    np.testing.assert_array_equal(getattr(batch, name), value, err_msg=name)


def test_the_mask_of_a_batch_excludes_pads():
  rows = draw_rows(40)
  batch = mask_eval_batch(rows, jnp.arange(40), VOCABULARY)
  np.testing.assert_array_equal(batch.mask, np.asarray(rows) != PAD_ID)
