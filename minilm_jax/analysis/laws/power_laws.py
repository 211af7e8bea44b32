"""Power laws of the loss L over compute C, or over parameters N and tokens D.

A `Fit` has the form, the constants by name and the quality of the fit. Most fits are least squares
in log L, for noise in proportion to the loss. Non-linear least squares in L reproduce the constants
of paper 1 below its break. Points have equal weights. `broken_laws.py` has forms with two exponents
and the intervals of constants.

Functions that fit raise InputError for fewer than the given number of points of different compute,
and for values that are not positive numbers.

BIC is n log(RSS / n) + k log n with the residuals of log L and k free constants. BIC thus compares
forms that are fitted to the same points by different methods.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float
from scipy import special

from minilm_jax.core.errors import InputError

POWER = 'L = a C^-b'
OFFSET = 'L = E + a C^-b'
PIECES = 'L = a1 C^-b1 below C0, a2 C^-b2 above'
SMOOTH = 'L = a C^-b1 (1 + (C / C0)^(1 / s))^(-(b2 - b1) s)'
SURFACE = 'L = E + A N^-alpha + B D^-beta'
EXPONENT_ONLY = 'y = C^k'
LOGS, LINEAR, HUBER = 'log-log least squares', 'non-linear least squares', 'Huber, log'
_MIN_DAMPING = 1e-15  # smaller damping is lost in rounding
HUBER_DELTA = 1e-3  # as in the Chinchilla paper (2203.15556, section 3.3)
_MIN_SURFACE_POINTS = 8
_MAX_LOG = 700  # logarithm of a prefactor that a float can hold
_SURFACE_LOWER_BOUNDS = np.array([-10.0, -50.0, 0.0, -50.0, 0.0])
Array = Float[np.ndarray, 'N']
# Maps constants [P] to values [N] and their derivatives [N P].
Curve = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def minimize_residuals(
  curve: Curve,
  start: np.ndarray,
  y: np.ndarray,
  lower_bounds: np.ndarray | None = None,
  huber: float = math.inf,
  tolerance: float = 1e-10,
) -> tuple[np.ndarray, np.ndarray]:
  """Minimizes the squared or Huber error by the Levenberg-Marquardt method.

  The Huber error is minimized by iteratively reweighted least squares. In a bootstrap,
  `scipy.optimize.least_squares` takes several times as long.

  Args:
    curve: returns values and derivatives for constants.
    huber: residuals beyond this bound count linearly; infinity is least squares.
    tolerance: relative decrease of the error that ends the iteration.

  Returns:
    The constants and the values of the curve.
  """
  constants, (values, slopes) = start, curve(start)
  cost, damping = _compute_cost(y - values, huber), 1e-3
  for _ in range(200):
    error = y - values
    weight = np.minimum(1, huber / np.maximum(np.abs(error), 1e-300))
    gradient = slopes.T @ (weight * error)
    # Constants at their bound stay fixed.
    free = np.ones(len(constants), bool)
    if lower_bounds is not None:
      free = (constants > lower_bounds) | (gradient > 0)
    square = (slopes.T @ (weight[:, None] * slopes))[free][:, free]
    scale = np.diag(square) + 1e-14 * np.trace(square) + 1e-300
    new = constants.copy()
    try:
      new[free] += np.linalg.solve(square + damping * np.diag(scale), gradient[free])
    except np.linalg.LinAlgError:  # the values do not depend on some constant
      damping *= 10
      continue
    new = new if lower_bounds is None else np.maximum(new, lower_bounds)
    trial, trial_slopes = curve(new)
    trial_cost = _compute_cost(y - trial, huber)
    if trial_cost < cost:
      gain = (cost - trial_cost) / cost
      constants, values, slopes, cost = new, trial, trial_slopes, trial_cost
      damping = max(damping / 10, _MIN_DAMPING)
      if gain < tolerance:
        break
    else:
      damping *= 10
      if damping > 1e8:
        break
  return constants, values


def _compute_cost(error: np.ndarray, huber: float) -> float:
  return 2 * float(np.sum(special.huber(huber, error)))


@dataclasses.dataclass(frozen=True)
class Fit:
  """A fitted power law.

  Attributes:
    name: name of the points.
    form, method: constants of this module.
    constants: constants by their letters in the formula.
    r2: explained share of the variance, of log L or, for non-linear least squares, of L (or y).
    bic: Bayesian information criterion of log L.
    n: number of points.
    low, high: range of the FLOPs of the points.
    intervals: 95% intervals by constant; empty until computed.
    count: name of the count of FLOPs.
  """

  name: str
  form: str
  method: str
  constants: Mapping[str, float]
  r2: float
  bic: float
  n: int
  low: float
  high: float
  intervals: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  count: str = 'honey'


def check_points(request: str, min_points: int, *values: Array) -> list[Array]:
  """Returns the arrays as float64, sorted by the first array.

  Args:
    min_points: minimal number of distinct values in the first array.

  Raises:
    InputError: there are too few distinct values, or values are not positive numbers.
  """
  arrays = [np.asarray(array, float) for array in values]
  num_invalid = sum(int(np.sum(~(np.isfinite(array) & (array > 0)))) for array in arrays)
  if num_invalid:
    raise InputError(
      request,
      f'{num_invalid} values that are not positive numbers',
      'leave out the points with these values',
    )
  distinct = len(np.unique(np.log(arrays[0])))  # nearly equal numbers have equal logarithms
  if distinct < min_points:
    raise InputError(
      request, f'{distinct} points of different compute', f'give at least {min_points} points'
    )
  order = np.argsort(arrays[0], kind='stable')
  return [array[order] for array in arrays]


def make_fit(
  name: str,
  form: str,
  method: str,
  constants: Mapping[str, float],
  points: tuple[Array, Array],
  fitted: Array | None = None,
  num_free: int | None = None,
) -> Fit:
  """Returns a `Fit` with its quality at the points.

  Args:
    name, form, method, constants: fields of the fit.
    points: compute and loss.
    fitted: losses of the law at the points, by default those of `evaluate_law`.
    num_free: number of free constants; by default, all constants are free.
  """
  compute, loss = points
  fitted = evaluate_law(form, constants, compute) if fitted is None else fitted
  logs, fitted_logs = np.log(loss), np.log(fitted)
  squares = float(np.sum((logs - fitted_logs) ** 2))
  observed, residual = (loss, loss - fitted) if method == LINEAR else (logs, logs - fitted_logs)
  spread = float(np.sum((observed - observed.mean()) ** 2))
  n, k = len(loss), len(constants) if num_free is None else num_free
  return Fit(
    name,
    form,
    method,
    {key: float(value) for key, value in constants.items()},
    r2=1 - float(np.sum(residual**2)) / spread if spread else math.nan,
    # The bound stands for the rounding error of points that lie on the law.
    bic=n * math.log(max(squares / n, 1e-30)) + k * math.log(n),
    n=n,
    low=float(compute.min()),
    high=float(compute.max()),
  )


def fit_log_power(compute: Array, loss: Array, name: str = 'power law') -> Fit:
  """Fits L = a C^-b to 3 or more points, by least squares in log L."""
  compute, loss = check_points('a power law', 3, compute, loss)
  level, slope, centre = _fit_line(np.log(compute), np.log(loss))
  constants = {'a': exponentiate('a power law', level - slope * centre), 'b': -slope}
  return make_fit(name, POWER, LOGS, constants, (compute, loss))


def fit_power(compute: Array, loss: Array, name: str = 'power law') -> Fit:
  """Fits L = a C^-b to 3 or more points by least squares in L, so high losses count more."""
  compute, loss = check_points('a power law', 3, compute, loss)
  level, slope, centre = _fit_line(np.log(compute), np.log(loss))
  x = np.log(compute) - centre

  def evaluate(c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.exp(np.clip(c[0] - c[1] * x, -200, 200))
    return values, np.stack([values, -x * values], 1)

  (level, b), _ = minimize_residuals(evaluate, np.array([level, -slope]), loss)
  constants = {'a': exponentiate('a power law', level + b * centre), 'b': b}
  return make_fit(name, POWER, LINEAR, constants, (compute, loss))


def fit_offset_power(compute: Array, loss: Array, name: str = 'power law with offset') -> Fit:
  """Fits L = E + a C^-b with E >= 0 to 4 or more points, by least squares in log L.

  The offset E, the loss of infinite compute, follows from the curvature of log L over log C.
  """
  compute, loss = check_points('a power law with offset', 4, compute, loss)
  logs = np.log(loss)
  level, slope, centre = _fit_line(np.log(compute), logs)
  x = np.log(compute) - centre

  def evaluate(c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    above = np.exp(np.clip(c[1] - c[2] * x, -200, 200))
    total = c[0] + above
    return np.log(total), np.stack([1 / total, above / total, -x * above / total], 1)

  offsets = np.linspace(0.05, 0.95, 10) * loss.min()
  above = np.log(loss - offsets[:, None])
  slopes = above @ x / np.sum(x * x)
  lines = above.mean(1, keepdims=True) + slopes[:, None] * x
  start = int(np.argmin(np.sum((logs - np.log(offsets[:, None] + np.exp(lines))) ** 2, 1)))
  bent, bent_logs = minimize_residuals(
    evaluate,
    np.array([offsets[start], above[start].mean(), -slopes[start]]),
    logs,
    lower_bounds=np.array([0.0, -200, -20]),
    tolerance=1e-8,
  )
  is_bent = np.sum((logs - bent_logs) ** 2) < np.sum((logs - level - slope * x) ** 2)
  offset, level, b = bent if is_bent else (0.0, level, -slope)
  prefactor = exponentiate('a power law with offset', level + b * centre)
  return make_fit(name, OFFSET, LOGS, {'E': offset, 'a': prefactor, 'b': b}, (compute, loss))


def fit_one_parameter(compute: Array, y: Array, name: str = 'tokens') -> Fit:
  """Fits y = C^k to 3 or more points by least squares in y, as in the notebook of paper 1.

  R2 can be negative. Least squares in log y would not reproduce the exponents of the paper.
  """
  compute, y = check_points('an exponent', 3, compute, y)
  x = np.log(compute)

  def evaluate(c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.exp(np.clip(c[0] * x, -200, 200))
    return values, (x * values)[:, None]

  (k,), _ = minimize_residuals(evaluate, np.array([np.sum(x * np.log(y)) / np.sum(x * x)]), y)
  return make_fit(name, EXPONENT_ONLY, LINEAR, {'k': k}, (compute, y))


def predict(fit: Fit, compute: Array) -> Array:
  """Returns the loss of a law over compute at each compute."""
  return evaluate_law(fit.form, fit.constants, compute)


def evaluate_law(form: str, constants: Mapping[str, float], compute: Array) -> Array:
  """Returns the loss of a form over compute with these constants at each compute."""
  c, x = constants, np.log(np.asarray(compute, float))
  if form == POWER:
    return np.exp(math.log(c['a']) - c['b'] * x)
  if form == OFFSET:
    return c['E'] + np.exp(math.log(c['a']) - c['b'] * x)
  if form == EXPONENT_ONLY:
    return np.exp(c['k'] * x)
  if form == PIECES:
    low, high = (math.log(c[f'a{side}']) - c[f'b{side}'] * x for side in (1, 2))
    return np.exp(np.where(x < math.log(c['C0']), low, high))
  bend = c['s'] * np.logaddexp(0, (x - math.log(c['C0'])) / c['s'])  # of SMOOTH
  return np.exp(math.log(c['a']) - c['b1'] * x - (c['b2'] - c['b1']) * bend)


def clip_exp(value: float) -> float:
  """Returns the exponential of a value that is clipped to +-700, so that it stays finite."""
  return math.exp(min(max(value, -_MAX_LOG), _MAX_LOG))


def exponentiate(law: str, log_prefactor: float) -> float:
  """Returns the prefactor of a law from its logarithm.

  Points of nearly equal compute can give an exponent so steep that the prefactor, the loss at 1
  FLOP, exceeds the range of a float.

  Raises:
    InputError: the prefactor is not finite, or too large or too small for a float.
  """
  if not abs(log_prefactor) <= _MAX_LOG:
    raise InputError(
      law,
      f'a prefactor of e^{log_prefactor:.0f}, because the loss changes much over little compute',
      'give points of more different compute',
    )
  return math.exp(log_prefactor)


def _fit_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
  """Returns the height at the centre, the slope and the centre of the least-squares line."""
  centre = float(x.mean())
  return float(y.mean()), float(np.sum((x - centre) * y) / np.sum((x - centre) ** 2)), centre


def fit_chinchilla(
  parameters: Array,
  tokens: Array,
  loss: Array,
  compute: Array,
  name: str = 'parameters and tokens',
  start: Fit | None = None,
) -> Fit:
  """Fits L = E + A N^-alpha + B D^-beta with alpha, beta >= 0 by the Huber loss of log L.

  The law is that of Chinchilla (2203.15556). The data determines A and B poorly, as they are losses
  at 1 parameter and 1 token. The fit needs 8 points with 3 different numbers of parameters and of
  tokens.

  Args:
    parameters: number of parameters N of each evaluation.
    tokens: number of tokens D.
    compute: FLOPs, for the range of the fit alone.
    start: an earlier fit as the only initial value, as in a bootstrap; by default, a grid.
  """
  parameters, tokens, loss, compute = check_points(
    'a law over parameters and tokens', 3, parameters, tokens, loss, compute
  )
  if len(np.unique(tokens)) < 3 or len(loss) < _MIN_SURFACE_POINTS:
    raise InputError(
      'a law over parameters and tokens',
      f'{len(loss)} points with {len(np.unique(tokens))} different numbers of tokens',
      f'give at least {_MIN_SURFACE_POINTS} points with 3 different numbers of tokens',
    )
  n, d, logs = np.log(parameters), np.log(tokens), np.log(loss)
  middle = np.array([n.mean(), d.mean()])

  def evaluate(c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n_part = c[1] - c[2] * (n - middle[0])
    d_part = c[3] - c[4] * (d - middle[1])
    total = np.logaddexp(c[0], np.logaddexp(n_part, d_part))
    shares = np.exp(np.stack([np.full_like(total, c[0]), n_part, d_part], 1) - total[:, None])
    by_n, by_d = -shares[:, 1] * (n - middle[0]), -shares[:, 2] * (d - middle[1])
    return total, np.stack([shares[:, 0], shares[:, 1], by_n, shares[:, 2], by_d], 1)

  tolerance = 1e-10 if start is None else 1e-5  # the absolute error converges slowly
  minima = [
    minimize_residuals(evaluate, first, logs, _SURFACE_LOWER_BOUNDS, HUBER_DELTA, tolerance)
    for first in _list_starts(loss, start, middle)
  ]
  c, fitted = min(minima, key=lambda minimum: _compute_cost(logs - minimum[1], HUBER_DELTA))
  constants = {
    'E': math.exp(c[0]),
    'A': exponentiate('a law over parameters and tokens', c[1] + c[2] * middle[0]),
    'alpha': c[2],
    'B': exponentiate('a law over parameters and tokens', c[3] + c[4] * middle[1]),
    'beta': c[4],
  }
  return make_fit(name, SURFACE, HUBER, constants, (compute, loss), np.exp(fitted))


def _list_starts(loss: Array, start: Fit | None, middle: np.ndarray) -> list[np.ndarray]:
  if start is not None:
    offset, a, alpha, b, beta = (start.constants[key] for key in ('E', 'A', 'alpha', 'B', 'beta'))
    level_n = math.log(a) - alpha * middle[0]
    level_d = math.log(b) - beta * middle[1]
    return [np.array([math.log(offset), level_n, alpha, level_d, beta])]
  median = float(np.median(loss))
  starts = []
  for share, part, alpha, beta in itertools.product((0.2, 0.6), (0.3, 0.7), (0.2, 0.6), (0.2, 0.6)):
    level_n = math.log(part * (1 - share) * median)
    level_d = math.log((1 - part) * (1 - share) * median)
    starts.append(np.array([math.log(share * median), level_n, alpha, level_d, beta]))
  return starts
