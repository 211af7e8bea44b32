"""Whole runs are drawn, the seed decides which, and draws that give no number are counted."""

import math
import pathlib

import numpy as np
import pytest

from minilm_jax.analysis import frontier, power_laws, scaling_fits
from minilm_jax.core.errors import InputError
from tests.fake_runs import make_loss_curve, read_paper1_curves


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
  values = list(np.random.default_rng(0).normal(5, 2, size=400))
  found = scaling_fits.bootstrap(values, lambda drawn: {'mean': np.mean(drawn)}, draws=2000)['mean']
  half = 1.96 * np.std(values) / 20
  assert (found.low, found.high) == pytest.approx(
    (np.mean(values) - half, np.mean(values) + half), abs=0.1 * half
  )
  assert (found.draws, found.failed) == (2000, 0)


def test_runs_are_drawn_whole_and_as_many_as_there_are():
  seen = []
  scaling_fits.bootstrap(
    [(1, 2), (3, 4), (5, 6)], lambda drawn: seen.append(drawn) or {'one': 1.0}, draws=50
  )
  assert all(len(drawn) == 3 and set(drawn) <= {(1, 2), (3, 4), (5, 6)} for drawn in seen)
  assert any(len(set(drawn)) < 3 for drawn in seen) and len({tuple(drawn) for drawn in seen}) > 10


def test_points_of_one_run_are_not_independent():
  random = np.random.default_rng(1)
  runs = [tuple(value + 0.01 * random.normal(size=30)) for value in random.normal(size=20)]
  spread = []
  for some in (runs, [(one,) for run in runs for one in run]):
    found = scaling_fits.bootstrap(
      some, lambda drawn: {'mean': np.mean(np.concatenate(drawn))}, draws=300
    )['mean']
    spread.append(found.high - found.low)
  assert spread[0] > 3 * spread[1]  # 30 points that say the same are one


def test_the_seed_decides():
  runs = list(range(10))
  one, same, other = (
    scaling_fits.bootstrap(runs, lambda drawn: {'sum': sum(drawn)}, 100, seed) for seed in (3, 3, 4)
  )
  assert one == same != other


def test_draws_that_fail_are_counted():
  def statistic(drawn: list[int]) -> dict[str, float]:
    if 0 not in drawn:
      raise InputError('a sum', 'no zero', 'draw one')
    return {'sum': sum(drawn), 'odd': sum(drawn) if sum(drawn) % 2 else math.nan}

  found = scaling_fits.bootstrap([0, 1, 2], statistic, draws=300)
  assert found['sum'].draws + found['sum'].failed == 300 and found['sum'].failed == pytest.approx(
    300 * 8 / 27, abs=40
  )
  assert found['odd'].draws < found['sum'].draws
  with pytest.raises(InputError, match='no draw gave a number; a sum: no zero'):
    scaling_fits.bootstrap([1, 2], statistic)
  for runs, draws in (([0], 10), ([0, 0], 0)):
    with pytest.raises(InputError, match='at least 2 runs'):
      scaling_fits.bootstrap(runs, statistic, draws)


def test_a_run_that_is_drawn_twice_changes_no_envelope():
  runs = [
    make_loss_curve(name, [1, 2, 3, 4], loss)
    for name, loss in (('a', [4, 3, 2.5, 2.2]), ('b', [4.1, 3.1, 2.6, 2.3]))
  ]
  alone = frontier.lower_envelope(runs[:1])
  assert frontier.lower_envelope([runs[0], runs[0]]) == alone
  found = scaling_fits.bootstrap(
    runs,
    lambda drawn: (
      power_laws.fit_log_power(*frontier.to_arrays(frontier.lower_envelope(drawn))).constants
    ),
  )
  exact = power_laws.fit_log_power(*frontier.to_arrays(alone)).constants['b']
  assert found['b'].low <= exact <= found['b'].high


def test_what_differs_between_runs_of_the_logs_is_in_the_interval(data: pathlib.Path):
  tracks = read_paper1_curves(data)

  def statistic(drawn):
    compute, loss = frontier.to_arrays(frontier.percentile_frontier(drawn))
    return power_laws.fit_log_power(compute[compute > 2.7e15], loss[compute > 2.7e15]).constants

  found = scaling_fits.bootstrap(tracks, statistic, draws=200)['b']
  assert found.low < 0.1399 < found.high and 0.01 < found.high - found.low < 0.1
