"""Orders of rows are bijections; the rows of a batch depend on seed and step alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax.data.rows import Corpus, permute_rows, select_batch_rows

SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 100, 255, 256, 257, 1000, 4097)


def make_key(seed: int | jax.Array) -> jax.Array:
  return jax.random.bits(jax.random.key(seed), (6,), 'uint32')


def draw_batches(
  seed: int, batch_size: int, count: int, steps: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns rows and epochs of the first steps, `[steps, batch_size]`."""
  draw = jax.jit(jax.vmap(lambda step: select_batch_rows(seed, step, batch_size, count)))
  return tuple(np.asarray(x) for x in draw(jnp.arange(steps)))


@pytest.mark.parametrize('size', SIZES)
def test_orders_are_permutations(size: int):
  rows = jnp.arange(size, dtype=jnp.uint32)
  draw = jax.jit(jax.vmap(lambda seed: permute_rows(rows, size, make_key(seed))))
  for order in np.asarray(draw(jnp.arange(3))):
    assert sorted(order.tolist()) == list(range(size))


def test_orders_of_many_rows_do_not_overflow():
  size, low = 2**31 - 1, jnp.arange(1000, dtype=jnp.uint32)
  index = jnp.concatenate([low, jnp.uint32(size - 1) - low])
  order = np.asarray(permute_rows(index, size, make_key(0)))
  assert len(set(order.tolist())) == 2000 and order.max() < size


def test_orders_look_random():
  """Over many keys, rows are uniform at each position, and so are differences of neighbours."""
  size, draws = 37, 4000
  draw = jax.jit(
    jax.vmap(lambda seed: permute_rows(jnp.arange(size, dtype=jnp.uint32), size, make_key(seed)))
  )
  orders = np.asarray(draw(jnp.arange(draws)))
  for values in (orders[:, 0], orders[:, 17], (orders[:, 9] - orders[:, 8].astype(int)) % size):
    counts = np.bincount(values, minlength=size)
    expected = counts[counts > 0].mean()  # a difference of 0 cannot be
    # chi-square, 5 sigma
    assert ((counts[counts > 0] - expected) ** 2 / expected).sum() < 36 + 5 * np.sqrt(2 * 36)


@pytest.mark.parametrize('count, batch_size', [(10, 4), (7, 7), (3, 8), (64, 16), (1, 3)])
def test_each_row_occurs_once_an_epoch(count: int, batch_size: int):
  """Epochs may end inside a batch, and a batch may have several epochs."""
  rows, epochs = draw_batches(0, batch_size, count, steps=-(-3 * count // batch_size))
  np.testing.assert_array_equal(epochs.ravel(), np.arange(epochs.size) // count)
  for epoch in range(3):
    assert sorted(rows[epochs == epoch].tolist()) == list(range(count))


def test_orders_differ_by_epoch_and_by_seed():
  orders = [order for seed in (0, 1) for order in draw_batches(seed, 50, 50, steps=2)[0].tolist()]
  assert len(set(map(tuple, orders))) == 4


def test_a_step_does_not_depend_on_earlier_steps():
  rows, epochs = draw_batches(3, 4, 10, steps=20)
  for step in (0, 7, 19):
    row, epoch = select_batch_rows(3, step, 4, 10)
    np.testing.assert_array_equal(row, rows[step])
    np.testing.assert_array_equal(epoch, epochs[step])


def test_the_last_step_of_the_longest_run_does_not_overflow():
  _, epochs = select_batch_rows(0, 2**24 - 1, 256, 1000)
  np.testing.assert_array_equal(epochs, ((2**24 - 1) * 256 + np.arange(256)) // 1000)


def test_the_tokens_are_the_only_leaf_of_a_corpus():
  rows = Corpus(jnp.ones((3, 4), jnp.uint16), 9, 'a hash')
  assert jax.tree.leaves(rows) == [rows.tokens] and (rows.rows, rows.length) == (3, 4)
  assert jax.jit(lambda c: c)(rows).hash == rows.hash
