"""Laws of one variable: how loss falls with compute, fitted to points that someone else chose.

Every fit is a `Fit`: its form, its constants by name, how well it fits. `breaks.py` has the forms with two exponents,
`surface.py` the law over parameters and tokens; `intervals.py` and `resample.py` say how sure the constants are.
Fits are either least squares in log L, right where noise is a percentage of the loss, or non-linear least squares in L
itself, which is what the first paper's constants below its break are. Both weigh points equally.

BIC is n log(RSS / n) + k log n with the residuals of log L whatever was minimised, so that forms fitted to the same
points compare; k counts the constants. `choose` takes the lowest.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from minilm_jax.analysis.descent import descend
from minilm_jax.errors import InputError

POWER = 'L = a C^-b'
OFFSET = 'L = E + a C^-b'
PIECES = 'L = a1 C^-b1 below C0, a2 C^-b2 above'
SMOOTH = 'L = a C^-b1 (1 + (C / C0)^(1 / s))^(-(b2 - b1) s)'
SURFACE = 'L = E + A N^-alpha + B D^-beta'
ONE = 'y = C^k'
LOGS, LINEAR, HUBER = 'log-log least squares', 'non-linear least squares', 'Huber, log'
Array = Float[np.ndarray, 'N']


@dataclasses.dataclass(frozen=True)
class Fit:
  """A law with its constants.

  Attributes:
    name: of what it was fitted to.
    form: the law as text, one of this file's.
    method: what was minimised.
    constants: by the letters of the form.
    r2: share of the variance that is explained, of log L for fits in logs, of L (or y) for non-linear least squares.
    bic: of log L, comparable between fits to the same points.
    n: points.
    low, high: FLOPs of the cheapest and the dearest point.
    intervals: 95%, by constant; empty until someone works them out.
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


def as_json(fit: Fit) -> dict[str, Any]:
  """The fields of a fit; numbers that JSON has no word for (an undefined R2) become None."""

  def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
      return {key: plain(one) for key, one in value.items()}
    if isinstance(value, tuple):
      return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

  return {field.name: plain(getattr(fit, field.name)) for field in dataclasses.fields(fit)}


def checked(what: str, needs: int, *values: Array) -> list[Array]:
  """The arrays as float64, sorted by the first, once there are enough points and all are positive numbers.

  Raises:
    InputError: fewer than `needs` distinct values of the first, or a value that is no positive number.
  """
  found = [np.asarray(one, float) for one in values]
  wrong = sum(int(np.sum(~(np.isfinite(one) & (one > 0)))) for one in found)
  if wrong:
    raise InputError(
      what, f'{wrong} values that are not positive numbers', 'leave those points out'
    )
  distinct = len(np.unique(found[0]))
  if distinct < needs:
    raise InputError(what, f'{distinct} points of different compute', f'give at least {needs}')
  order = np.argsort(found[0], kind='stable')
  return [one[order] for one in found]


def made(
  name: str,
  form: str,
  method: str,
  constants: Mapping[str, float],
  compute: Array,
  loss: Array,
  fitted: Array,
  free: int | None = None,
) -> Fit:
  """A `Fit` from what a law says at its own points; `free` of its constants, else all, could be chosen."""
  logs, said = np.log(loss), np.log(fitted)
  squares = float(np.sum((logs - said) ** 2))
  observed, residual = (loss, loss - fitted) if method == LINEAR else (logs, logs - said)
  spread = float(np.sum((observed - observed.mean()) ** 2))
  n, k = len(loss), len(constants) if free is None else free
  # Points that lie on the law have no finite BIC: rounding is the least that a residual can be.
  bic = n * math.log(max(squares / n, 1e-30)) + k * math.log(n)
  r2 = 1 - float(np.sum(residual**2)) / spread if spread else math.nan
  return Fit(
    name,
    form,
    method,
    {key: float(value) for key, value in constants.items()},
    r2,
    bic,
    n,
    float(compute.min()),
    float(compute.max()),
  )


def log_power(compute: Array, loss: Array, name: str = 'power law') -> Fit:
  """L = a C^-b, a straight line through log L over log C by least squares.

  Raises:
    InputError: fewer than 3 points of different compute, or values that are not positive numbers.
  """
  compute, loss = checked('a power law', 3, compute, loss)
  level, slope, centre = _line(np.log(compute), np.log(loss))
  return made(
    name,
    POWER,
    LOGS,
    {'a': math.exp(level - slope * centre), 'b': -slope},
    compute,
    loss,
    np.exp(level + slope * (np.log(compute) - centre)),
  )


def power(compute: Array, loss: Array, name: str = 'power law') -> Fit:
  """L = a C^-b by least squares in L itself: absolute errors count, so points of high loss weigh more.

  Raises:
    InputError: as `log_power`.
  """
  compute, loss = checked('a power law', 3, compute, loss)
  level, slope, centre = _line(np.log(compute), np.log(loss))
  x = np.log(compute) - centre

  def curve(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.exp(np.clip(at[0] - at[1] * x, -200, 200))
    return values, np.stack([values, -x * values], 1)

  (level, b), fitted = descend(curve, np.array([level, -slope]), loss)
  return made(
    name, POWER, LINEAR, {'a': math.exp(level + b * centre), 'b': b}, compute, loss, fitted
  )


def offset_power(compute: Array, loss: Array, name: str = 'power law above a floor') -> Fit:
  """L = E + a C^-b with E >= 0, by least squares in log L.

  E, what no compute gets below, is found from how the line bends: without a bend it is 0.

  Raises:
    InputError: fewer than 4 points of different compute, or values that are not positive numbers.
  """
  compute, loss = checked('a power law above a floor', 4, compute, loss)
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
  found, said = descend(
    curve,
    np.array([floors[start], above[start].mean(), -slopes[start]]),
    logs,
    least=np.array([0.0, -200, -20]),
    tolerance=1e-8,
  )
  if np.sum((logs - said) ** 2) < np.sum((logs - fitted) ** 2):
    best, fitted = found, said
  floor, level, b = best
  return made(
    name,
    OFFSET,
    LOGS,
    {'E': floor, 'a': math.exp(min(level + b * centre, 700)), 'b': b},
    compute,
    loss,
    np.exp(fitted),
  )


def one_parameter(compute: Array, y: Array, name: str = 'tokens') -> Fit:
  """y = C^k, the prefactor fixed at 1, by least squares in y itself: the form of the first paper's notebook.

  R2 is of y, about its mean, and can be negative. In logs the paper's frontier gives other exponents than it reports.

  Raises:
    InputError: fewer than 3 points of different compute, or values that are not positive numbers.
  """
  compute, y = checked('an exponent', 3, compute, y)
  x = np.log(compute)

  def curve(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.exp(np.clip(at[0] * x, -200, 200))
    return values, (x * values)[:, None]

  (k,), fitted = descend(curve, np.array([np.sum(x * np.log(y)) / np.sum(x * x)]), y)
  return made(name, ONE, LINEAR, {'k': k}, compute, y, fitted)


def predict(fit: Fit, compute: Array) -> Array:
  """What a law of compute says at each compute; outside the range it was fitted in, that is extrapolation.

  Raises:
    InputError: the law over parameters and tokens, which compute alone does not decide.
  """
  at, x = fit.constants, np.log(np.asarray(compute, float))
  if fit.form == POWER:
    return np.exp(math.log(at['a']) - at['b'] * x)
  if fit.form == OFFSET:
    return at['E'] + np.exp(math.log(at['a']) - at['b'] * x)
  if fit.form == ONE:
    return np.exp(at['k'] * x)
  if fit.form == PIECES:
    low, high = (math.log(at[f'a{side}']) - at[f'b{side}'] * x for side in (1, 2))
    return np.exp(np.where(x < math.log(at['C0']), low, high))
  if fit.form == SMOOTH:
    bend = at['s'] * np.logaddexp(0, (x - math.log(at['C0'])) / at['s'])
    return np.exp(math.log(at['a']) - at['b1'] * x - (at['b2'] - at['b1']) * bend)
  raise InputError(
    'a loss from compute alone', fit.form, 'use surface.predict_surface with parameters and tokens'
  )


def held_out(
  form: Callable[[Array, Array], Fit], compute: Array, loss: Array, points: int
) -> float:
  """The root mean square error, in log L, at the dearest `points` points of the law fitted to all the others.

  A form that fits what it has seen and fails here does not extrapolate.

  Raises:
    InputError: what the form raises where too few points are left.
  """
  compute, loss = checked('a test on held-out points', points + 1, compute, loss)
  said = predict(form(compute[:-points], loss[:-points]), compute[-points:])
  return float(np.sqrt(np.mean((np.log(said) - np.log(loss[-points:])) ** 2)))


def choose(fits: Sequence[Fit]) -> Fit:
  """The fit with the lowest BIC; a difference below 2 decides nothing, one above 10 does.

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
