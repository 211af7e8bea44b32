"""Fits recover the constants of synthetic data, and those of paper 1 from its logs."""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest

from minilm_jax.analysis import frontier
from minilm_jax.analysis.laws import broken_laws, power_laws
from minilm_jax.core.errors import InputError, to_json_types
from tests.fake_runs import draw_run_ends, read_paper1_curves

COMPUTE = np.geomspace(1e14, 1e18, 12)
FORMS = (
  power_laws.fit_log_power,
  power_laws.fit_power,
  power_laws.fit_offset_power,
  broken_laws.fit_two_piece,
  broken_laws.fit_joined,
  broken_laws.fit_smooth_break,
)


@pytest.fixture(scope='module')
def points(data: pathlib.Path) -> list[frontier.Point]:
  return frontier.find_percentile_frontier(read_paper1_curves(data))


@pytest.mark.parametrize(
  'form, split, side, a, b, r2',
  [
    (power_laws.fit_power, 2.7e15, 'below', 7.82e1, 0.0923, 0.682),
    (power_laws.fit_log_power, 2.7e15, 'above', 3.64e2, 0.1399, 0.991),
    (power_laws.fit_log_power, 2.7e15, 'below', 6.49e1, 0.0870, 0.688),
    (power_laws.fit_power, 2.7e15, 'above', 4.07e2, 0.1429, 0.990),
    (power_laws.fit_log_power, 2.2e15, 'below', 5.93e1, 0.0843, 0.650),
    (power_laws.fit_log_power, 2.2e15, 'above', 7.70e2, 0.1596, 0.951),
  ],
)
def test_laws_of_the_logged_frontier_are_those_of_the_paper(
  points, form, split: float, side: str, a: float, b: float, r2: float
):
  compute, loss = frontier.to_arrays(points)
  chosen = compute < split if side == 'below' else compute >= split
  fit = form(compute[chosen], loss[chosen])
  assert fit.constants['a'] == pytest.approx(a, rel=1e-3) and round(fit.constants['b'], 4) == b
  assert round(fit.r2, 3) == r2


def test_exponents_of_the_logged_frontier_are_those_of_the_paper(points):
  compute, _ = frontier.to_arrays(points)
  for field, k, r2 in (('tokens', 0.5255, 0.824), ('parameters', 0.4227, 0.766)):
    y = np.array([getattr(point, field) for point in points], float)
    fit = power_laws.fit_one_parameter(compute, y)
    assert round(fit.constants['k'], 4) == k and round(fit.r2, 3) == r2
    in_logs = np.sum(np.log(compute) * np.log(y)) / np.sum(np.log(compute) ** 2)
    assert round(in_logs, 4) != k  # the notebook fits y, not its logarithm


@pytest.mark.parametrize(
  'form', [power_laws.fit_log_power, power_laws.fit_power, power_laws.fit_offset_power]
)
def test_fits_recover_a_power_law(form):
  fit = form(COMPUTE[::-1], 300 * COMPUTE[::-1] ** -0.13)
  assert fit.constants['a'] == pytest.approx(300, rel=1e-5) and fit.constants['b'] == pytest.approx(
    0.13, rel=1e-6
  )
  assert fit.r2 == pytest.approx(1) and (fit.low, fit.high, fit.n) == (
    1e14,
    pytest.approx(1e18),
    12,
  )


def test_fits_recover_an_offset_which_is_zero_without_curvature():
  fit = power_laws.fit_offset_power(COMPUTE, 1.5 + 2e4 * COMPUTE**-0.25)
  assert [fit.constants[key] for key in ('E', 'a', 'b')] == pytest.approx(
    [1.5, 2e4, 0.25], rel=1e-4
  )
  concave = np.exp(5 - 0.01 * np.log(COMPUTE / 1e14) ** 2)  # with the opposite curvature
  assert power_laws.fit_offset_power(COMPUTE, concave).constants['E'] == 0


def test_linear_fits_weight_high_losses_more():
  loss = 300 * COMPUTE**-0.13
  loss[0] *= 1.2
  slopes = [
    form(COMPUTE, loss).constants['b'] for form in (power_laws.fit_log_power, power_laws.fit_power)
  ]
  assert 0.13 < slopes[0] < slopes[1]  # the cheapest point has the highest loss


def test_predictions_give_the_r2_of_the_fit():
  loss = draw_run_ends(lambda c: 1 + 1e4 * c**-0.22, 0.02, 0)[1]
  compute = draw_run_ends(lambda c: c, 0.0, 0)[0]
  for form in FORMS:
    fit = form(compute, loss)
    predicted = power_laws.predict(fit, np.sort(compute))
    order = np.argsort(compute)
    residual = (
      loss[order] - predicted
      if fit.method == power_laws.LINEAR
      else np.log(loss[order] / predicted)
    )
    spread = loss if fit.method == power_laws.LINEAR else np.log(loss)
    assert 1 - np.sum(residual**2) / np.sum((spread - spread.mean()) ** 2) == pytest.approx(
      fit.r2, abs=1e-9
    ), form
    assert compute.min() == fit.low


@pytest.mark.parametrize(
  'form, min_points',
  [
    (power_laws.fit_log_power, 3),
    (power_laws.fit_power, 3),
    (power_laws.fit_offset_power, 4),
    (broken_laws.fit_two_piece, 6),
    (broken_laws.fit_joined, 6),
    (broken_laws.fit_smooth_break, 7),
  ],
)
def test_too_few_points_and_invalid_numbers_are_refused(form, min_points: int):
  compute, loss = COMPUTE[:min_points], 300 * COMPUTE[:min_points] ** -0.13
  assert form(compute, loss).n == min_points
  with pytest.raises(InputError, match=f'{min_points - 1} points.*\n.*{min_points}'):
    form(compute[:-1], loss[:-1])
  with pytest.raises(InputError, match='1 points'):
    form(np.full(9, 1e15), np.linspace(2, 3, 9))
  for invalid in (math.nan, -1.0, 0.0, math.inf):
    with pytest.raises(InputError, match='1 values'):
      form(np.append(COMPUTE, 1e19), np.append(300 * COMPUTE**-0.13, invalid))


@pytest.mark.parametrize('exponent', [-150.0, -40.0, -12.0, 12.0, 40.0, 150.0])
@pytest.mark.parametrize('form', FORMS)
def test_a_law_of_nearly_equal_compute_reproduces_its_points_or_is_refused(form, exponent: float):
  """A prefactor beyond the range of a float has no constants that reproduce the points."""
  compute = 1e16 * np.linspace(1, 1.02, 12)
  loss = 3 * (compute / 1e16) ** -exponent
  try:
    fit = form(compute, loss)
  except InputError as error:
    assert 'a prefactor of e^' in error.found and abs(exponent) > 15
  else:
    np.testing.assert_allclose(power_laws.predict(fit, compute), loss, rtol=1e-3)
    assert abs(exponent) < 15


def test_compute_that_differs_by_rounding_alone_is_one_point():
  compute = 1e16 + 2.0 * np.arange(9)
  for form in FORMS:
    with pytest.raises(InputError, match='1 points'):
      form(compute, np.linspace(2, 3, 9))


def test_the_true_form_has_the_lowest_bic():
  straight, offset = (lambda c: 200 * c**-0.12), (lambda c: 1.2 + 2e4 * c**-0.25)
  stepped = lambda c: np.where(c < 1e16, 100 * c**-0.08, 770 * c**-0.14)  # noqa: E731
  for law, true_form in (
    (straight, power_laws.fit_log_power),
    (offset, power_laws.fit_offset_power),
    (stepped, broken_laws.fit_two_piece),
  ):
    compute, loss = draw_run_ends(law, 0.01, 1)
    forms = (power_laws.fit_log_power, power_laws.fit_offset_power, broken_laws.fit_two_piece)
    assert min(forms, key=lambda form: form(compute, loss).bic) == true_form


def test_a_fit_converts_to_json():
  # R2 is undefined for constant losses.
  fit = power_laws.fit_log_power(COMPUTE, np.full(12, 2.0))
  text = json.dumps(to_json_types(dataclasses.asdict(fit)), allow_nan=False)
  assert json.loads(text)['r2'] is None and json.loads(text)['constants']['b'] == pytest.approx(0)
  assert {
    'name',
    'form',
    'method',
    'constants',
    'intervals',
    'r2',
    'bic',
    'n',
    'count',
  } <= json.loads(text).keys()


def test_levenberg_marquardt_respects_lower_bounds():
  x = np.linspace(0, 1, 9)
  line = lambda at: (at[0] + at[1] * x, np.stack([np.ones(9), x], 1))  # noqa: E731
  free, _ = power_laws.minimize_residuals(line, np.zeros(2), 3 * x - 1)
  assert free == pytest.approx([-1, 3])
  bound, values = power_laws.minimize_residuals(
    line, np.ones(2), 3 * x - 1, lower_bounds=np.zeros(2)
  )
  assert bound[0] == 0 and bound[1] == pytest.approx(np.sum(x * (3 * x - 1)) / np.sum(x * x))
  assert values == pytest.approx(bound[1] * x)


def test_the_chinchilla_fit_ignores_outliers():
  random = np.random.default_rng(0)
  n, d = (
    np.exp(random.uniform(np.log(low), np.log(high), 200)) for low, high in ((1e6, 2e7), (3e7, 1e9))
  )
  loss = 1.2 + 400 * n**-0.45 + 900 * d**-0.4
  loss[:10] *= 1.5  # outliers
  fit = power_laws.fit_chinchilla(n, d, loss, 6 * n * d)
  assert [fit.constants[key] for key in ('E', 'alpha', 'beta')] == pytest.approx(
    [1.2, 0.45, 0.4], rel=0.02
  )
  assert [fit.constants[key] for key in 'AB'] == pytest.approx([400, 900], rel=0.2)
  refit = power_laws.fit_chinchilla(n, d, loss, 6 * n * d, start=fit)
  assert refit.constants['beta'] == pytest.approx(fit.constants['beta'], rel=1e-2)
  assert (fit.low, fit.high) == ((6 * n * d).min(), (6 * n * d).max())
  with pytest.raises(InputError, match='1 different'):
    power_laws.fit_chinchilla(n, np.full(200, 1e9), loss, 6 * n * d)
  with pytest.raises(InputError):
    power_laws.fit_chinchilla(n[:5], d[:5], loss[:5], d[:5])


def test_levenberg_marquardt_handles_dependent_constants():
  x = np.linspace(1, 2, 8)

  def curve(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.exp(at[0] + at[1]) * x
    return values, np.stack([values, values], 1)

  at, values = power_laws.minimize_residuals(curve, np.array([10.0, 10.0]), x)
  assert at.sum() == pytest.approx(0, abs=1e-6) and values == pytest.approx(x)
