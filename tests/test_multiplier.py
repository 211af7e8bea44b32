"""How much sooner: crossings, ratios over seeds with their intervals, and what is only a bound."""

import doctest
import math

import numpy as np
import pytest

from minilm_jax.analysis import multiplier
from minilm_jax.analysis.multiplier import AT_LEAST, AT_MOST, NEITHER_LEFT, ratio
from minilm_jax.tasks import metrics
from tests.fake_runs import make_loss_curve


def there(*values: float, first: int = 0) -> dict[int, tuple[float, bool]]:
  return {seed: (value, True) for seed, value in enumerate(values, first)}


def short(*values: float) -> dict[int, tuple[float, bool]]:
  return {seed: (value, False) for seed, value in enumerate(values)}


def track(*loss: float):
  return make_loss_curve('run', [2**n for n in range(1, len(loss) + 1)], loss, per_row=1.0, counts=('actual',))


def test_examples_in_docstrings():
  assert doctest.testmod(multiplier).failed == 0


def test_a_power_law_is_crossed_where_it_says():
  run = track(*(10 * (256 * 2**n) ** -0.2 for n in range(1, 9)))
  for flops in (600.0, 1024.0, 50_000.0):
    loss = 10 * flops**-0.2
    assert multiplier.flops_to(run, loss) == pytest.approx(flops)
    assert multiplier.loss_at(run, flops) == pytest.approx(loss)


def test_it_is_the_first_time_that_a_loss_is_reached():
  run = track(8, 4, 6, 4, 2)
  assert multiplier.flops_to(run, 4) == 1024 and multiplier.flops_to(run, 8) == 512
  assert multiplier.flops_to(run, 9) == 512 and math.isnan(multiplier.flops_to(run, 1.9))
  assert multiplier.flops_to(run, 3.9) > 4096  # not before it has come back


def test_nothing_is_extrapolated():
  run = track(8, 4, 2)
  assert math.isnan(multiplier.loss_at(run, 500)) and math.isnan(multiplier.loss_at(run, 2100))
  assert multiplier.loss_at(run, 2070) == 2  # a last evaluation that is one hundredth short


def test_pairs_take_out_what_seeds_share():
  base = there(100.0, 200.0, 400.0)
  paired = ratio(base, there(50.0, 100.0, 200.0))
  assert paired.paired and (paired.value, paired.low, paired.high) == pytest.approx((2, 2, 2))
  apart = ratio(base, there(50.0, 100.0, 200.0, first=7))
  assert not apart.paired and apart.value == pytest.approx(2) and apart.low < 1 < apart.high
  some = ratio(base, there(100.0, 200.0, first=1))  # the seeds 1 and 2 of both
  assert some.paired and (some.base_seeds, some.seeds) == (2, 2) and some.value == pytest.approx(2)


def test_the_interval_is_students_of_the_logarithms():
  base, change = (8.0, 9.0, 11.0), (3.0, 2.5, 2.0)
  low, high = metrics.interval(np.log(base) - np.log(change))
  found = ratio(there(*base), there(*change))
  assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))
  assert found.value == pytest.approx(math.exp(np.mean(np.log(base) - np.log(change))))


def test_one_seed_gives_no_interval():
  for base, change in ((there(8.0), there(2.0)), (there(8.0, 16.0), there(2.0)), (there(8.0), there(2.0, first=3))):
    found = ratio(base, change)
    assert math.isnan(found.low) and math.isnan(found.high) and found.value > 3.9
  assert ratio(there(8.0, 100.0), there(2.0)).value == pytest.approx(4)  # of the seed that both have
  assert ratio({}, there(2.0)) == multiplier.NO_RATIO


def test_a_run_that_never_got_there_gives_a_bound():
  least = ratio(short(8.0, 8.0), there(2.0, 1.9))
  assert least.bound == AT_LEAST and least.high == math.inf and 2.9 < least.low < least.value
  most = ratio(there(4.0, 4.4), short(8.0, 8.0))
  assert most.bound == AT_MOST and most.low == 0 and most.value < most.high < 1
  neither = ratio(short(8.0, 8.0), {0: (2.0, True), 1: (8.0, False)})
  assert neither.bound == NEITHER_LEFT and math.isnan(neither.value) and str(neither) == 'neither left'
  assert str(ratio(short(8.0), there(2.0))) == 'at least 4.00'


def test_the_open_end_of_a_bound_is_as_sure_as_an_interval():
  """Of changes that take a third, and bases that are cut short at times, the end lies below 3 in 97.5% or more."""
  random, held = np.random.default_rng(0), 0
  for _ in range(400):
    base, change = (np.exp(random.normal(np.log(middle), 0.2, 4)).tolist() for middle in (300, 100))
    cut = {seed: (min(value, 320.0), value < 320) for seed, value in enumerate(base)}
    held += ratio(cut, there(*change)).low <= 3
  assert held / 400 > 0.96
