"""Intervals of each law contain the true constant in about 95% of the data sets.

The standard deviation of a share of 95% is 1.5% over 200 data sets, and 0.7% over 1,000.
"""

import pathlib

import numpy as np
import pytest
from scipy import stats

from minilm_jax.analysis import frontier
from minilm_jax.analysis.laws import broken_laws, power_laws
from minilm_jax.core.errors import InputError
from tests.fake_runs import draw_run_ends, read_paper1_curves

COMPUTE = np.geomspace(1e14, 1e18, 25)


def test_fits_recover_two_pieces_with_a_step():
  loss = np.where(COMPUTE < 2e15, 80 * COMPUTE**-0.09, 300 * COMPUTE**-0.14)
  fit = broken_laws.fit_two_piece(COMPUTE, loss)
  low, high = COMPUTE[COMPUTE < 2e15].max(), COMPUTE[COMPUTE >= 2e15].min()
  assert low < fit.constants['C0'] < high
  assert [fit.constants[key] for key in ('a1', 'b1', 'a2', 'b2')] == pytest.approx(
    [80, 0.09, 300, 0.14], rel=1e-6
  )
  assert power_laws.predict(fit, COMPUTE) == pytest.approx(loss)


def test_piece_squares_are_those_of_two_lines():
  compute, loss = draw_run_ends(lambda c: 100 * c**-0.1, 0.05, 3, points=20)
  x = np.sort(np.log(compute))
  x[5] = x[4]  # no break lies between equal points
  counts, squares = broken_laws.measure_piece_squares(x, np.log(loss))
  assert list(counts) == [count for count in range(3, 18) if count != 5]
  for count, sum_of_squares in zip(counts, squares, strict=True):
    sides = [(x[:count], np.log(loss)[:count]), (x[count:], np.log(loss)[count:])]
    expected = sum(
      np.sum((side_y - np.polyval(np.polyfit(side_x, side_y, 1), side_x)) ** 2)
      for side_x, side_y in sides
    )
    assert sum_of_squares == pytest.approx(expected, rel=1e-6)


def test_the_break_of_the_logged_frontier_is_that_of_the_paper(data: pathlib.Path):
  compute, loss = frontier.to_arrays(frontier.find_percentile_frontier(read_paper1_curves(data)))
  fit = broken_laws.fit_two_piece(compute, loss)
  assert 2.625e15 < fit.constants['C0'] < 2.935e15
  assert [round(fit.constants[key], 4) for key in ('b1', 'b2')] == [0.0870, 0.1399]
  assert fit.bic < power_laws.fit_log_power(compute, loss).bic - 10


def test_joined_pieces_are_continuous():
  law = lambda c: np.where(c < 1e16, 100 * c**-0.08, 100 * 1e16**0.06 * c**-0.14)  # noqa: E731
  fit = broken_laws.fit_joined(COMPUTE, law(COMPUTE))
  assert fit.constants['C0'] == pytest.approx(1e16, rel=0.02)
  assert [fit.constants[key] for key in ('b1', 'b2')] == pytest.approx([0.08, 0.14], rel=0.01)
  neighbours = power_laws.predict(fit, fit.constants['C0'] * np.array([1 - 1e-9, 1 + 1e-9]))
  assert neighbours[0] == pytest.approx(neighbours[1], rel=1e-6)
  smooth_fit = broken_laws.fit_smooth_break(COMPUTE, law(COMPUTE))
  assert fit.bic < smooth_fit.bic  # a corner needs no width


def test_fits_recover_a_smooth_break():
  law = lambda c: 100 * c**-0.08 * (1 + (c / 1e16) ** (1 / 0.7)) ** (-0.08 * 0.7)  # noqa: E731
  fit = broken_laws.fit_smooth_break(COMPUTE, law(COMPUTE))
  assert fit.constants['C0'] == pytest.approx(1e16, rel=0.1) and fit.constants[
    's'
  ] == pytest.approx(0.7, rel=0.15)
  assert [fit.constants[key] for key in ('b1', 'b2')] == pytest.approx([0.08, 0.16], rel=0.02)
  assert power_laws.predict(fit, COMPUTE) == pytest.approx(law(COMPUTE), rel=1e-3)


def test_dependent_columns_have_infinite_squares():
  columns = np.ones((1, 5, 2))
  assert np.isinf(broken_laws.solve_linear(columns, np.arange(5.0))[1][0])


def power_law(c):
  """Returns a power law."""
  return 200 * c**-0.12


def offset_law(c):
  """Returns a power law with an offset of 1.2 nats."""
  return 1.2 + 2e4 * c**-0.25


def joined_law(c):
  """Returns two power laws that meet at 1e16 FLOPs."""
  return np.where(c < 1e16, 100 * c**-0.08, 100 * 1e16**0.06 * c**-0.14)


# Intervals and fit of a law, the law, the noise and the true constants.
DESIGNS = [
  (
    broken_laws.find_power_intervals,
    power_laws.fit_log_power,
    power_law,
    0.02,
    {'b': 0.12, 'a': 200},
  ),
  (
    broken_laws.find_offset_power_intervals,
    power_laws.fit_offset_power,
    offset_law,
    0.01,
    {'E': 1.2, 'b': 0.25, 'a': 2e4},
  ),
  (
    broken_laws.find_joined_intervals,
    broken_laws.fit_joined,
    joined_law,
    0.02,
    {'C0': 1e16, 'b1': 0.08, 'b2': 0.14},
  ),
]
all_designs = pytest.mark.parametrize(
  'form, fit_law, law, noise, true', DESIGNS, ids=lambda value: getattr(value, '__name__', '')
)


def measure_coverage(
  form, law, noise: float, true: dict[str, float], sets: int
) -> dict[str, float]:
  """Returns the share of data sets of 40 runs whose intervals contain the true constants."""
  hits = dict.fromkeys(true, 0)
  for number in range(sets):
    intervals = form(*draw_run_ends(law, noise, (0, number)))
    for key, value in true.items():
      hits[key] += intervals[key][0] <= value <= intervals[key][1]
  return {key: count / sets for key, count in hits.items()}


@pytest.mark.parametrize(
  'sets, low, high', [(200, 0.90, 0.99), pytest.param(1000, 0.93, 0.97, marks=pytest.mark.slow)]
)
@all_designs
def test_coverage(form, fit_law, law, noise, true: dict[str, float], sets: int, low, high):
  for key, share in measure_coverage(form, law, noise, true, sets).items():
    assert low <= share <= high, (key, share)


def test_the_interval_of_a_power_law_is_the_t_interval():
  compute, loss = draw_run_ends(power_law, 0.03, 5, points=8)
  line = stats.linregress(np.log(compute), np.log(loss))
  half = stats.t.ppf(0.975, 6) * line.stderr
  assert broken_laws.find_power_intervals(compute, loss)['b'] == pytest.approx(
    (-line.slope - half, -line.slope + half)
  )
  half = stats.t.ppf(0.975, 6) * line.intercept_stderr
  assert np.log(broken_laws.find_power_intervals(compute, loss)['a']) == pytest.approx(
    (line.intercept - half, line.intercept + half)
  )


@all_designs
def test_intervals_contain_the_estimate_and_narrow_with_the_noise(form, fit_law, law, noise, true):
  wide, narrow, exact = (form(*draw_run_ends(law, scale, 6)) for scale in (0.02, 0.004, 0.0))
  estimate = fit_law(*draw_run_ends(law, 0.02, 6)).constants
  assert wide.keys() <= estimate.keys() and narrow.keys() == wide.keys()
  for key, (low, high) in wide.items():
    assert low < high and low * 0.99 <= estimate[key] <= high * 1.01, key
    assert exact[key][1] / exact[key][0] < 1.2, key
    if not key.startswith('a'):
      assert narrow[key][1] - narrow[key][0] < high - low
  assert form(*draw_run_ends(law, 0.02, 6)) == wide  # the seed is fixed


def test_noisy_data_has_wide_intervals_around_the_estimate():
  compute, loss = draw_run_ends(offset_law, 0.4, 3)
  intervals, estimate = (
    broken_laws.find_offset_power_intervals(compute, loss),
    power_laws.fit_offset_power(compute, loss).constants,
  )
  for key, (low, high) in intervals.items():
    assert low <= estimate[key] < high, key
  assert intervals['E'][0] == 0 and intervals['a'][1] > 3 * estimate['a']


@pytest.mark.parametrize('points, noise', [(6, 0.02), (8, 0.05), (20, 0.05)])
def test_intervals_of_few_runs_do_not_end_at_the_estimate(points: int, noise: float):
  """The law has no offset, so that searches can end in a corner."""
  hits = 0
  for number in range(40):
    compute, loss = draw_run_ends(lambda c: 48 * c**-0.08, noise, (1, number), points=points)
    low, high = broken_laws.find_offset_power_intervals(compute, loss)['b']
    estimate = power_laws.fit_offset_power(compute, loss).constants['b']
    assert low < 0.9999 * estimate and 1.0001 * estimate < high, number
    hits += low <= 0.08 <= high
  assert hits >= 33


def test_the_offset_of_a_power_law_may_be_zero():
  low, high = broken_laws.find_offset_power_intervals(*draw_run_ends(power_law, 0.02, 1))['E']
  assert low == 0 and high > 0


def test_increasing_losses_have_a_negative_exponent():
  compute, _ = draw_run_ends(power_law, 0.0, 7)
  low, high = broken_laws.find_offset_power_intervals(compute, compute**0.05)['b']
  assert low <= -0.05 * 0.99 and high < 0.05


@pytest.mark.parametrize(
  'form, min_points',
  [
    (broken_laws.find_power_intervals, 3),
    (broken_laws.find_offset_power_intervals, 4),
    (broken_laws.find_joined_intervals, 7),
  ],
)
def test_too_few_points_are_refused(form, min_points: int):
  compute, loss = draw_run_ends(power_law, 0.02, 1, points=min_points - 1)
  with pytest.raises(InputError, match=f'{min_points - 1} points'):
    form(compute, loss)
