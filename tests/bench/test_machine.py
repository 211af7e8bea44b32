"""What the machine can do: rates are of work that was really done, and are never below what a step
achieves.
"""

import time

import jax
import jax.numpy as jnp
import pytest

from minilm_jax.bench import machine


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr(machine, '_MIN_SECONDS', 0.005)
  monkeypatch.setattr(machine, '_NUM_REPEATS', 3)


def test_the_peak_is_near_what_products_take():
  side = 512
  x = jnp.full((side, side), 1 / side)
  product = jax.jit(lambda x: x @ x)
  jax.block_until_ready(product(x))
  start = time.perf_counter()
  jax.block_until_ready(product(x))
  one = 2 * side**3 / (time.perf_counter() - start)
  peak = machine.measure_peak_flops('float32', side)
  assert one / 20 < peak < 1e15, 'far from the rate of a product timed by hand'


def test_a_rate_counts_every_device_and_every_pass(monkeypatch):
  """With a clock on which a call takes a second, the rate is the work of a call."""
  ticks = iter(range(100))
  monkeypatch.setattr(machine, '_MIN_SECONDS', 7)
  monkeypatch.setattr(machine.time, 'perf_counter', lambda: next(ticks))
  rate = machine._rate(lambda x, y: x + y, lambda key: jnp.ones(4), 10)
  assert rate == pytest.approx(10 * jax.device_count() * 7)


def test_memory_is_not_a_cache():
  assert 1e8 < machine.measure_bandwidth(1 << 20) < 1e13


@pytest.mark.parametrize('kind', ['float32', 'bfloat16'])
def test_numbers_stay_of_one_size_and_kind(kind: str):
  """Else the loop would soon multiply infinities or denormals, which some processors do slowly."""
  assert machine.measure_peak_flops(kind, 64) > 0


def test_it_says_what_it_is():
  assert machine.time_matrix_product()[0] in ('float32', 'bfloat16')
  assert machine.describe_machine().startswith(f'{jax.device_count()} x ')
  assert {'python', 'jax', 'numpy'} <= set(machine.list_versions('rich')) and machine.list_versions(
    'rich'
  )['rich']
  assert machine.read_peak_memory() > 1 << 20 and machine.read_load() >= 0
