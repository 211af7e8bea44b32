"""Bootstrap intervals draw runs by the seed and leave out failed draws."""

import math
import pathlib

import numpy as np
import pytest

from minilm_jax.analysis import frontier, scaling_fits
from minilm_jax.analysis.laws import power_laws
from minilm_jax.core.errors import InputError
from minilm_jax.tasks import metrics
from tests.fake_runs import make_loss_curve, read_paper1_curves


def test_bootstrap_intervals_of_a_mean_follow_the_standard_error():
  values = list(np.random.default_rng(0).normal(5, 2, size=400))
  means = scaling_fits.bootstrap(values, lambda drawn: {'mean': np.mean(drawn)}, draws=2000)['mean']
  half = 1.96 * np.std(values) / 20
  assert metrics.percentile_interval(means) == pytest.approx(
    (np.mean(values) - half, np.mean(values) + half), abs=0.1 * half
  )
  assert len(means) == 2000


def test_bootstrap_draws_as_many_runs_as_given():
  seen = []
  scaling_fits.bootstrap(
    [(1, 2), (3, 4), (5, 6)], lambda drawn: seen.append(drawn) or {'constant': 1.0}, draws=50
  )
  assert all(len(drawn) == 3 and set(drawn) <= {(1, 2), (3, 4), (5, 6)} for drawn in seen)
  assert any(len(set(drawn)) < 3 for drawn in seen) and len({tuple(drawn) for drawn in seen}) > 10


def test_points_of_one_run_are_drawn_together():
  random = np.random.default_rng(1)
  runs = [tuple(value + 0.01 * random.normal(size=30)) for value in random.normal(size=20)]
  widths = []
  for units in (runs, [(value,) for run in runs for value in run]):
    means = scaling_fits.bootstrap(
      units, lambda drawn: {'mean': np.mean(np.concatenate(drawn))}, draws=300
    )['mean']
    widths.append(np.ptp(metrics.percentile_interval(means)))
  assert widths[0] > 3 * widths[1]


def test_equal_seeds_give_equal_draws():
  runs = list(range(10))
  first, same, other = (
    scaling_fits.bootstrap(runs, lambda drawn: {'sum': sum(drawn)}, 100, seed) for seed in (3, 3, 4)
  )
  assert first == same != other


def test_failed_draws_are_left_out():
  def statistic(drawn: list[int]) -> dict[str, float]:
    if 0 not in drawn:
      raise InputError('a sum', 'no zero', 'draw one')
    return {'sum': sum(drawn), 'odd': sum(drawn) if sum(drawn) % 2 else math.nan}

  sums = scaling_fits.bootstrap([0, 1, 2], statistic, draws=300)
  assert 300 - len(sums['sum']) == pytest.approx(300 * 8 / 27, abs=40)
  assert len(sums['odd']) < len(sums['sum'])
  with pytest.raises(InputError, match='1000 draws of 2 runs\n.*a sum: no zero'):
    scaling_fits.bootstrap([1, 2], statistic)
  for runs, draws in (([0], 10), ([0, 0], 0)):
    with pytest.raises(InputError, match='draws of runs'):
      scaling_fits.bootstrap(runs, statistic, draws)


def test_repeated_runs_do_not_change_an_envelope():
  runs = [
    make_loss_curve(name, [1, 2, 3, 4], loss)
    for name, loss in (('a', [4, 3, 2.5, 2.2]), ('b', [4.1, 3.1, 2.6, 2.3]))
  ]
  envelope = frontier.find_lower_envelope(runs[:1])
  assert frontier.find_lower_envelope([runs[0], runs[0]]) == envelope
  constants = scaling_fits.bootstrap(
    runs,
    lambda drawn: (
      power_laws.fit_log_power(*frontier.to_arrays(frontier.find_lower_envelope(drawn))).constants
    ),
  )
  exact = power_laws.fit_log_power(*frontier.to_arrays(envelope)).constants['b']
  low, high = metrics.percentile_interval(constants['b'])
  assert low <= exact <= high


def test_the_interval_of_the_logged_exponent_covers_that_of_the_paper(data: pathlib.Path):
  curves = read_paper1_curves(data)

  def statistic(drawn):
    compute, loss = frontier.to_arrays(frontier.find_percentile_frontier(drawn))
    return power_laws.fit_log_power(compute[compute > 2.7e15], loss[compute > 2.7e15]).constants

  exponents = scaling_fits.bootstrap(curves, statistic, draws=200)['b']
  low, high = metrics.percentile_interval(exponents)
  assert low < 0.1399 < high and 0.01 < high - low < 0.1
