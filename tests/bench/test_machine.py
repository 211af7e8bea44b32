"""Rates of the machine: plausible, and summed over devices and repetitions."""

import time

import jax
import jax.numpy as jnp
import pytest

from minilm_jax.bench import machine


@pytest.fixture(autouse=True)
def shorten_loops(monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr(machine, '_MIN_SECONDS', 0.005)
  monkeypatch.setattr(machine, '_NUM_REPEATS', 3)


def test_the_peak_is_near_the_rate_of_a_product():
  side = 512
  x = jnp.full((side, side), 1 / side)
  product = jax.jit(lambda x: x @ x)
  jax.block_until_ready(product(x))
  start = time.perf_counter()
  jax.block_until_ready(product(x))
  rate = 2 * side**3 / (time.perf_counter() - start)
  peak = machine.measure_peak_flops('float32', side)
  assert rate / 20 < peak < 1e15, 'the peak is far from the rate of one product'


def test_a_rate_counts_every_device_and_repetition(monkeypatch):
  """A fake clock on which every call takes one second."""
  ticks = iter(range(100))
  monkeypatch.setattr(machine, '_MIN_SECONDS', 7)
  monkeypatch.setattr(machine.time, 'perf_counter', lambda: next(ticks))
  rate = machine.measure_rate(lambda x, y: x + y, lambda key: jnp.ones(4), 10)
  assert rate == pytest.approx(10 * jax.device_count() * 7)


def test_the_bandwidth_is_plausible():
  assert 1e8 < machine.measure_bandwidth(1 << 20) < 1e13


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_products_of_both_types_are_measured(dtype: str):
  assert machine.measure_peak_flops(dtype, 64) > 0


def test_the_machine_is_described():
  assert machine.choose_matrix_product()[0] in ('float32', 'bfloat16')
  assert machine.describe_machine().startswith(f'{jax.device_count()} x ')
  assert {'python', 'jax', 'numpy'} <= set(machine.list_versions('rich')) and machine.list_versions(
    'rich'
  )['rich']
  assert machine.read_peak_memory() > 1 << 20 and machine.read_load() >= 0
