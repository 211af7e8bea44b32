"""Laws of loss over compute, and over parameters and tokens, fitted to chosen points.

A `Fit` holds the form, the constants by name and the quality of the fit. Fits minimise least squares
in log L, right where noise is a percentage of the loss, or non-linear least squares in L itself,
which gives the first paper's constants below its break. Points have equal weights.
`broken_laws.py` has the forms with two exponents, and the intervals of constants.

BIC is n log(RSS / n) + k log n with the residuals of log L whatever was minimised, so that forms
fitted to the same points compare; k counts the free constants. `choose_fit` takes the lowest.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from minilm_jax.core.errors import InputError

POWER = 'L = a C^-b'
OFFSET = 'L = E + a C^-b'
PIECES = 'L = a1 C^-b1 below C0, a2 C^-b2 above'
SMOOTH = 'L = a C^-b1 (1 + (C / C0)^(1 / s))^(-(b2 - b1) s)'
SURFACE = 'L = E + A N^-alpha + B D^-beta'
ONE = 'y = C^k'
LOGS, LINEAR, HUBER = 'log-log least squares', 'non-linear least squares', 'Huber, log'
_MIN_DAMPING = 1e-15  # adding less changes nothing
# Of the Huber loss, as in the paper; it is the absolute error except for the smallest errors.
HUBER_DELTA = 1e-3
_MIN_SURFACE_POINTS = 8
_SURFACE_CONSTANTS = ('E', 'A', 'alpha', 'B', 'beta')
_SURFACE_LOWER_BOUNDS = np.array([-10.0, -50.0, 0.0, -50.0, 0.0])
Array = Float[np.ndarray, 'N']
# Constants [P] -> values [N] and their derivatives [N P].
Curve = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def levenberg_marquardt(
  curve: Curve,
  start: np.ndarray,
  y: np.ndarray,
  lower_bounds: np.ndarray | None = None,
  huber: float = math.inf,
  tolerance: float = 1e-10,
) -> tuple[np.ndarray, np.ndarray]:
  """Minimises the squared or Huber error with damping by the diagonal.

  The Huber loss is iteratively reweighted least squares.

  Args:
    curve: values and derivatives of the law.
    start: constants to begin with.
    y: what the values should be.
    lower_bounds: of the constants.
    huber: residuals beyond this count linearly; infinite is least squares.
    tolerance: it ends at a step that lowers the cost by less than this share of it.

  Returns:
    The constants and the values there.
  """
  at, (values, slopes) = start, curve(start)
  cost, damping = _cost(y - values, huber), 1e-3
  for _ in range(200):
    error = y - values
    weight = (
      np.ones_like(error)
      if math.isinf(huber)
      else np.minimum(1, huber / np.maximum(np.abs(error), 1e-300))
    )
    gradient = slopes.T @ (weight * error)
    # Constants held at their bound do not move.
    free = np.ones(len(at), bool) if lower_bounds is None else (at > lower_bounds) | (gradient > 0)
    square = (slopes.T @ (weight[:, None] * slopes))[free][:, free]
    scale = np.diag(square) + 1e-14 * np.trace(square) + 1e-300
    new = at.copy()
    try:
      new[free] += np.linalg.solve(square + damping * np.diag(scale), gradient[free])
    except np.linalg.LinAlgError:  # a constant that the values no longer depend on
      damping *= 10
      continue
    new = new if lower_bounds is None else np.maximum(new, lower_bounds)
    trial, trial_slopes = curve(new)
    trial_cost = _cost(y - trial, huber)
    if trial_cost < cost:
      gain = (cost - trial_cost) / cost
      at, values, slopes, cost = new, trial, trial_slopes, trial_cost
      damping = max(damping / 10, _MIN_DAMPING)
      if gain < tolerance:
        break
    else:
      damping *= 10
      if damping > 1e8:
        break
  return at, values


def _cost(error: np.ndarray, huber: float) -> float:
  size = np.abs(error)
  if math.isinf(huber):
    return float(np.sum(size * size))
  return float(np.sum(np.where(size <= huber, size * size, huber * (2 * size - huber))))


@dataclasses.dataclass(frozen=True)
class Fit:
  """A law with its constants.

  Attributes:
    name: of the points.
    form: the law as text, one of this module.
    method: what was minimised.
    constants: by the letters of the form.
    r2: share of the variance that is explained, of log L for fits in logs, of L (or y) for
      non-linear least squares.
    bic: of log L, comparable between fits to the same points.
    n: points.
    low, high: FLOPs of the cheapest and the dearest point.
    intervals: 95%, by constant; empty until computed.
    count: how the FLOPs were counted.
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


def fit_to_json(fit: Fit) -> dict[str, Any]:
  """Returns the fields of a fit; numbers that are not finite become None."""

  def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
      return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
      return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

  return {field.name: plain(getattr(fit, field.name)) for field in dataclasses.fields(fit)}


def check_points(what: str, min_points: int, *values: Array) -> list[Array]:
  """Returns the arrays as float64, sorted by the first.

  Raises:
    InputError: fewer than `min_points` distinct values of the first, or a value that is not a
      positive number.
  """
  arrays = [np.asarray(array, float) for array in values]
  num_invalid = sum(int(np.sum(~(np.isfinite(array) & (array > 0)))) for array in arrays)
  if num_invalid:
    raise InputError(
      what, f'{num_invalid} values that are not positive numbers', 'leave those points out'
    )
  distinct = len(np.unique(arrays[0]))
  if distinct < min_points:
    raise InputError(what, f'{distinct} points of different compute', f'give at least {min_points}')
  order = np.argsort(arrays[0], kind='stable')
  return [array[order] for array in arrays]


def make_fit(
  name: str,
  form: str,
  method: str,
  constants: Mapping[str, float],
  points: tuple[Array, Array],
  fitted: Array,
  num_free: int | None = None,
) -> Fit:
  """Returns a `Fit` from the values of a law at its own points.

  Args:
    name, form, method, constants: of the fit.
    points: compute and loss.
    fitted: the loss that the law gives there.
    num_free: number of free constants; all by default.
  """
  compute, loss = points
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
    # Points on the law have no finite BIC: rounding is the smallest residual.
    bic=n * math.log(max(squares / n, 1e-30)) + k * math.log(n),
    n=n,
    low=float(compute.min()),
    high=float(compute.max()),
  )


def fit_log_power(compute: Array, loss: Array, name: str = 'power law') -> Fit:
  """Fits L = a C^-b, a straight line through log L over log C by least squares.

  Raises:
    InputError: fewer than 3 points of different compute, or values that are not positive numbers.
  """
  compute, loss = check_points('a power law', 3, compute, loss)
  level, slope, centre = _line(np.log(compute), np.log(loss))
  return make_fit(
    name,
    POWER,
    LOGS,
    {'a': math.exp(level - slope * centre), 'b': -slope},
    (compute, loss),
    np.exp(level + slope * (np.log(compute) - centre)),
  )


def fit_power(compute: Array, loss: Array, name: str = 'power law') -> Fit:
  """Fits L = a C^-b by least squares in L itself: absolute errors count, so points of high loss weigh
  more.

  Raises:
    InputError: as `log_power`.
  """
  compute, loss = check_points('a power law', 3, compute, loss)
  level, slope, centre = _line(np.log(compute), np.log(loss))
  x = np.log(compute) - centre

  def curve(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.exp(np.clip(at[0] - at[1] * x, -200, 200))
    return values, np.stack([values, -x * values], 1)

  (level, b), fitted = levenberg_marquardt(curve, np.array([level, -slope]), loss)
  return make_fit(
    name, POWER, LINEAR, {'a': math.exp(level + b * centre), 'b': b}, (compute, loss), fitted
  )


def fit_offset_power(compute: Array, loss: Array, name: str = 'power law above a floor') -> Fit:
  """Fits L = E + a C^-b with E >= 0, by least squares in log L.

  E, the loss of infinite compute, follows from the bend of the line: without a bend it is 0.

  Raises:
    InputError: fewer than 4 points of different compute, or values that are not positive numbers.
  """
  compute, loss = check_points('a power law above a floor', 4, compute, loss)
  logs = np.log(loss)
  level, slope, centre = _line(np.log(compute), logs)
  x = np.log(compute) - centre

  def curve(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    above = np.exp(np.clip(at[1] - at[2] * x, -200, 200))
    total = at[0] + above
    return np.log(total), np.stack([1 / total, above / total, -x * above / total], 1)

  best, fitted = np.array([0.0, level, -slope]), level + slope * x
  floors = np.linspace(0.05, 0.95, 10) * loss.min()
  above = np.log(loss - floors[:, None])
  slopes = above @ x / np.sum(x * x)
  lines = above.mean(1, keepdims=True) + slopes[:, None] * x
  start = int(np.argmin(np.sum((logs - np.log(floors[:, None] + np.exp(lines))) ** 2, 1)))
  bent, bent_logs = levenberg_marquardt(
    curve,
    np.array([floors[start], above[start].mean(), -slopes[start]]),
    logs,
    lower_bounds=np.array([0.0, -200, -20]),
    tolerance=1e-8,
  )
  if np.sum((logs - bent_logs) ** 2) < np.sum((logs - fitted) ** 2):
    best, fitted = bent, bent_logs
  floor, level, b = best
  return make_fit(
    name,
    OFFSET,
    LOGS,
    {'E': floor, 'a': math.exp(min(level + b * centre, 700)), 'b': b},
    (compute, loss),
    np.exp(fitted),
  )


def fit_one_parameter(compute: Array, y: Array, name: str = 'tokens') -> Fit:
  """Fits y = C^k, the prefactor fixed at 1, by least squares in y itself: the form of the first paper's
  notebook.

  R2 is of y, about its mean, and can be negative. In logs the paper's frontier gives other
  exponents than it reports.

  Raises:
    InputError: fewer than 3 points of different compute, or values that are not positive numbers.
  """
  compute, y = check_points('an exponent', 3, compute, y)
  x = np.log(compute)

  def curve(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.exp(np.clip(at[0] * x, -200, 200))
    return values, (x * values)[:, None]

  (k,), fitted = levenberg_marquardt(curve, np.array([np.sum(x * np.log(y)) / np.sum(x * x)]), y)
  return make_fit(name, ONE, LINEAR, {'k': k}, (compute, y), fitted)


def predict(fit: Fit, compute: Array) -> Array:
  """Returns the loss that a law of compute gives; outside of its range that is extrapolation.

  Raises:
    InputError: the law over parameters and tokens, which compute alone does not determine.
  """
  return evaluate_law(fit.form, fit.constants, compute)


def evaluate_law(form: str, constants: Mapping[str, float], compute: Array) -> Array:
  """Returns the loss at each compute; see `predict`."""
  at, x = constants, np.log(np.asarray(compute, float))
  if form == POWER:
    return np.exp(math.log(at['a']) - at['b'] * x)
  if form == OFFSET:
    return at['E'] + np.exp(math.log(at['a']) - at['b'] * x)
  if form == ONE:
    return np.exp(at['k'] * x)
  if form == PIECES:
    low, high = (math.log(at[f'a{side}']) - at[f'b{side}'] * x for side in (1, 2))
    return np.exp(np.where(x < math.log(at['C0']), low, high))
  if form == SMOOTH:
    bend = at['s'] * np.logaddexp(0, (x - math.log(at['C0'])) / at['s'])
    return np.exp(math.log(at['a']) - at['b1'] * x - (at['b2'] - at['b1']) * bend)
  raise InputError(
    'a loss from compute alone', form, 'call predict_surface with parameters and tokens'
  )


def measure_held_out_error(
  form: Callable[[Array, Array], Fit], compute: Array, loss: Array, points: int
) -> float:
  """Returns the root mean square error, in log L, at the `points` points of highest compute of the
  law fitted to all others.

  Raises:
    InputError: what the form raises where too few points are left.
  """
  compute, loss = check_points('a test on held-out points', points + 1, compute, loss)
  predicted = predict(form(compute[:-points], loss[:-points]), compute[-points:])
  return float(np.sqrt(np.mean((np.log(predicted) - np.log(loss[-points:])) ** 2)))


def choose_fit(fits: Sequence[Fit]) -> Fit:
  """Returns the fit with the lowest BIC; a difference below 2 decides nothing, one above 10 does.

  Raises:
    InputError: no fits, or fits to different points.
  """
  if len({(fit.n, fit.low, fit.high) for fit in fits}) != 1:
    raise InputError(
      'a choice between laws',
      f'{len(fits)} fits, not all to the same points',
      'fit the same points',
    )
  return min(fits, key=lambda fit: fit.bic)


def exp_clipped(value: float) -> float:
  """Returns e to the power of a value, between the least and the largest float."""
  return math.exp(min(max(value, -700), 700))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
  """Height at the centre, slope, centre of the least-squares line."""
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
  """Fits L = E + A N^-alpha + B D^-beta, alpha and beta >= 0, by the Huber loss of log L.

  The search begins at a grid of starts, or at the constants of another fit alone, as in a bootstrap. A and B are at 1 parameter and 1 token, far outside the data: only their products
  with the powers are well known.

  Args:
    parameters, tokens, loss: of evaluations.
    compute: their FLOPs, for the range that the fit is valid in; not part of the law.
    name: of the fit.
    start: an earlier fit of this form.

  Raises:
    InputError: fewer than 8 points, or 3 different numbers of parameters or of tokens, or values
      that are not positive numbers.
  """
  parameters, tokens, loss, compute = check_points(
    'a law over parameters and tokens', 3, parameters, tokens, loss, compute
  )
  if len(np.unique(tokens)) < 3 or len(loss) < _MIN_SURFACE_POINTS:
    raise InputError(
      'a law over parameters and tokens',
      f'{len(loss)} points with {len(np.unique(tokens))} different numbers of tokens',
      f'give at least {_MIN_SURFACE_POINTS} points, and 3 different numbers of tokens',
    )
  n, d, logs = np.log(parameters), np.log(tokens), np.log(loss)
  middle = np.array([n.mean(), d.mean()])

  def curve(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n_part = at[1] - at[2] * (n - middle[0])
    d_part = at[3] - at[4] * (d - middle[1])
    total = np.logaddexp(at[0], np.logaddexp(n_part, d_part))
    shares = np.exp(np.stack([np.full_like(total, at[0]), n_part, d_part], 1) - total[:, None])
    by_n, by_d = -shares[:, 1] * (n - middle[0]), -shares[:, 2] * (d - middle[1])
    return total, np.stack([shares[:, 0], shares[:, 1], by_n, shares[:, 2], by_d], 1)

  tolerance = 1e-10 if start is None else 1e-5  # the absolute error is slow to come down at the end
  minima = [
    levenberg_marquardt(curve, first, logs, _SURFACE_LOWER_BOUNDS, HUBER_DELTA, tolerance)
    for first in _starts(loss, start, middle)
  ]
  at, fitted = min(minima, key=lambda minimum: _cost(logs - minimum[1], HUBER_DELTA))
  constants = {
    'E': math.exp(at[0]),
    'A': exp_clipped(at[1] + at[2] * middle[0]),
    'alpha': at[2],
    'B': exp_clipped(at[3] + at[4] * middle[1]),
    'beta': at[4],
  }
  fit = make_fit(name, SURFACE, HUBER, constants, (parameters, loss), np.exp(fitted))
  return dataclasses.replace(fit, low=float(compute.min()), high=float(compute.max()))


def predict_surface(fit: Fit, parameters: Array, tokens: Array) -> Array:
  """The loss that the law gives for so many parameters and tokens."""
  floor, a, alpha, b, beta = (fit.constants[key] for key in _SURFACE_CONSTANTS)
  return (
    floor
    + np.exp(math.log(a) - alpha * np.log(np.asarray(parameters, float)))
    + np.exp(math.log(b) - beta * np.log(np.asarray(tokens, float)))
  )


def _starts(loss: Array, start: Fit | None, middle: np.ndarray) -> list[np.ndarray]:
  if start is not None:
    floor, a, alpha, b, beta = (start.constants[key] for key in _SURFACE_CONSTANTS)
    level_n = math.log(a) - alpha * middle[0]
    level_d = math.log(b) - beta * middle[1]
    return [np.array([math.log(floor), level_n, alpha, level_d, beta])]
  median = float(np.median(loss))
  starts = []
  for share, part, alpha, beta in itertools.product((0.2, 0.6), (0.3, 0.7), (0.2, 0.6), (0.2, 0.6)):
    level_n = math.log(part * (1 - share) * median)
    level_d = math.log((1 - part) * (1 - share) * median)
    starts.append(np.array([math.log(share * median), level_n, alpha, level_d, beta]))
  return starts
