"""Power laws with a break, and 95% intervals of the constants of laws for independent points.

The exponent of a broken law changes at the compute C0. The intervals assume independent points,
such as the last evaluations of runs. A run has several points on a frontier, so
`scaling_fits.bootstrap` draws whole runs there.

Let S(v) be the minimal sum of squares in log L with one constant fixed to v, S its minimum, N the
number of points and P of constants. The interval contains all v with S(v) <= (1 + q) S:

- Without a break, q is F / (N - P). F is the 95% quantile of the F distribution with 1 and N - P
  degrees of freedom. For a straight line this gives the t interval.
- With two pieces that meet, this q would cover 88-95%. There q is a 95% quantile over 500 data
  sets, which are drawn from the fitted law with normal errors in log L.

Laws with a break need 6 points of different compute; the smooth break and the intervals of pieces
that meet need 7. With fewer, functions raise InputError, as in `power_laws.py`.

`tests/analysis/laws/test_broken_laws.py` measures the coverage on data sets of 40 runs. It is 96% for
the power law and the law with offset, and 95-97% for pieces that meet.

If the interval of C0 ends at the edge of the possible breaks, the data does not determine C0. The
same holds for E if its interval begins at 0.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from minilm_jax.analysis.laws import power_laws
from minilm_jax.analysis.laws.power_laws import Array, Fit

MIN_POINTS_A_SIDE = 3  # of different compute on each side of a break; any line fits two
_WIDTHS = np.geomspace(0.02, 2, 8)  # of a smooth break, in units of log C
_NUM_DRAWS = 500
_MIN_SQUARED_ERROR = 1e-12  # in log L, stands for the rounding error of exact fits
_NUM_CORNERS = 120  # of the grid of an interval
Intervals = dict[str, tuple[float, float]]


def fit_two_piece(compute: Array, loss: Array, name: str = 'two pieces') -> Fit:
  """Fits a power law below the break C0 and another above, which need not meet, in log L.

  The two neighbouring points around C0 minimize the sum of squares. C0 is their geometric mean.
  """
  compute, loss = power_laws.check_points('two power laws', 2 * MIN_POINTS_A_SIDE, compute, loss)
  x = np.log(compute)
  counts, squares = measure_piece_squares(x, np.log(loss))
  first = int(counts[np.argmin(squares)])
  split = math.exp((x[first - 1] + x[first]) / 2)
  below = power_laws.fit_log_power(compute[:first], loss[:first]).constants
  above = power_laws.fit_log_power(compute[first:], loss[first:]).constants
  constants = {'a1': below['a'], 'b1': below['b'], 'a2': above['a'], 'b2': above['b'], 'C0': split}
  return power_laws.make_fit(name, power_laws.PIECES, power_laws.LOGS, constants, (compute, loss))


def fit_joined(compute: Array, loss: Array, name: str = 'two pieces, joined') -> Fit:
  """Fits two power laws that meet at C0, by least squares in log L."""
  law = 'two power laws that meet'
  compute, loss = power_laws.check_points(law, 2 * MIN_POINTS_A_SIDE, compute, loss)
  a1, b1, b2, corner, _ = _fit_hinge(np.log(compute), np.log(loss), np.zeros(1))
  constants = {
    'a1': power_laws.exponentiate(law, a1),
    'b1': b1,
    'a2': power_laws.exponentiate(law, a1 + (b2 - b1) * corner),
    'b2': b2,
    'C0': math.exp(corner),
  }
  method = power_laws.LOGS + ', joined'
  return power_laws.make_fit(
    name, power_laws.PIECES, method, constants, (compute, loss), num_free=4
  )


def fit_smooth_break(compute: Array, loss: Array, name: str = 'smooth break') -> Fit:
  """Fits L = a C^-b1 (1 + (C / C0)^(1 / s))^(-(b2 - b1) s) by least squares in log L.

  The exponent changes from b1 to b2 around C0. The width s is in units of log C: three quarters of
  the change lie between C0 e^(-2s) and C0 e^(2s). The search covers widths from 0.02 to 2.
  """
  law = 'a smooth break'
  compute, loss = power_laws.check_points(law, 2 * MIN_POINTS_A_SIDE + 1, compute, loss)
  a, b1, b2, corner, width = _fit_hinge(np.log(compute), np.log(loss), _WIDTHS)
  prefactor = power_laws.exponentiate(law, a)
  constants = {'a': prefactor, 'b1': b1, 'b2': b2, 'C0': math.exp(corner), 's': width}
  return power_laws.make_fit(name, power_laws.SMOOTH, power_laws.LOGS, constants, (compute, loss))


def measure_piece_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the residual squares of a line on each side of a break, for every possible break.

  Args:
    x: log C [N], in ascending order.
    y: log L [N].

  Returns:
    The number of points below each break [K], and the sum of squares [K]; the time is O(N).
  """
  x, y = x - x.mean(), y - y.mean()
  sums = np.cumsum([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
  is_step = np.diff(x) > 0
  below = 1 + np.cumsum(is_step) - is_step  # distinct values of the first 1, 2, ... points
  above = 1 + np.sum(is_step) - below
  counts = 1 + np.flatnonzero(is_step & (np.minimum(below, above) >= MIN_POINTS_A_SIDE))
  sums_below = sums[:, counts - 1]
  squares_below = _compute_residual_squares(sums_below)
  return counts, squares_below + _compute_residual_squares(sums[:, -1:] - sums_below)


def make_hinge_columns(
  x: np.ndarray, corners: np.ndarray, widths: np.ndarray, centre: float
) -> np.ndarray:
  """Returns the columns [G N 3] of the linear model of log L for G corners.

  The constants of the columns are the level of log L at the centre, b1 and b2.

  Args:
    x: log C [N].
    corners: log C0 [G].
    widths: widths of the break [G]; 0 is a corner.
    centre: log C of the level.
  """
  above = x - corners[:, None]
  narrow = np.maximum(widths, 1e-9)[:, None]
  bend = np.where(
    widths[:, None] > 0, narrow * np.logaddexp(0, above / narrow), np.maximum(above, 0)
  )
  return np.stack([np.ones_like(bend), bend - (x - centre), -bend], 2)


def solve_linear(columns: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Solves least squares for each of G sets of columns.

  Args:
    columns: columns of the linear model [G N P].
    y: log L [N].

  Returns:
    The constants [G P]; the sums of squares [G], infinite for dependent columns; and the variance
    of each constant over the variance of a residual [G P].
  """
  product = np.einsum('gnp,gnq->gpq', columns, columns)
  size = np.sqrt(np.einsum('gpp->gp', product) + 1e-300)
  scaled = product / size[:, :, None] / size[:, None, :]
  good = np.linalg.det(scaled) > 1e-10
  inverse = np.linalg.inv(np.where(good[:, None, None], scaled, np.eye(columns.shape[2])))
  inverse = inverse / size[:, :, None] / size[:, None, :]
  constants = np.einsum('gpq,gq->gp', inverse, np.einsum('gnp,n->gp', columns, y))
  squares = np.sum((y - np.einsum('gnp,gp->gn', columns, constants)) ** 2, 1)
  return constants, np.where(good, squares, np.inf), np.einsum('gpp->gp', inverse)


def find_inner_range(x: np.ndarray) -> tuple[float, float]:
  """Returns the range of possible corners, the second lowest and second highest log C."""
  distinct = np.unique(x)
  return float(distinct[1]), float(distinct[-2])


def _fit_hinge(
  x: np.ndarray, y: np.ndarray, widths: np.ndarray
) -> tuple[float, float, float, float, float]:
  """Returns log a, b1, b2, log C0 and the width of least squares, on successively finer grids."""
  (low, high), centre = find_inner_range(x), float(x.mean())
  corners, step = np.linspace(low, high, 40), (high - low) / 39
  for _ in range(4):
    grid = [axis.ravel() for axis in np.meshgrid(corners, widths)]
    best = int(np.argmin(solve_linear(make_hinge_columns(x, *grid, centre), y)[1]))
    corner, width = float(grid[0][best]), float(grid[1][best])
    corners, step = np.clip(corner + step * np.linspace(-1, 1, 9), low, high), step / 4
    if len(widths) > 1:
      ratio = (widths[1] / widths[0]) ** 0.4
      widths = np.clip(width * ratio ** np.arange(-2, 3), _WIDTHS[0], _WIDTHS[-1])
  best_columns = make_hinge_columns(x, np.array([corner]), np.array([width]), centre)
  level, b1, b2 = solve_linear(best_columns, y)[0][0]
  return level + b1 * centre, b1, b2, corner, width


def _compute_residual_squares(sums: np.ndarray) -> np.ndarray:
  n, x, y, xx, yy, xy = sums
  across, slope = xx - x * x / n, xy - x * y / n
  return np.maximum(yy - y * y / n - slope**2 / np.maximum(across, 1e-300), 0)


def find_power_intervals(compute: Array, loss: Array) -> Intervals:
  """Returns intervals of a and b of L = a C^-b, fitted in log L to 3 or more points."""
  compute, loss = power_laws.check_points('intervals of a power law', 3, compute, loss)
  x, y = np.log(compute), np.log(loss)
  columns = np.stack([np.ones_like(x), -x], 1)[None]
  constants, (squares,), (spread,) = solve_linear(columns, y)
  half = np.sqrt(spread * (_compute_bound(squares, len(x), 2) - squares))
  low, high = constants[0] - half, constants[0] + half
  return {'a': _exponentiate_interval((low[0], high[0])), 'b': (float(low[1]), float(high[1]))}


def find_joined_intervals(compute: Array, loss: Array) -> Intervals:
  """Returns intervals of a1, b1, b2 and C0 of two power laws that meet."""
  compute, loss = power_laws.check_points(
    'intervals of two power laws that meet', 2 * MIN_POINTS_A_SIDE + 1, compute, loss
  )
  x, y = np.log(compute), np.log(loss)
  corners = np.linspace(*find_inner_range(x), _NUM_CORNERS)
  columns = make_hinge_columns(x, corners, np.zeros(_NUM_CORNERS), 0.0)
  return _profile_intervals(columns, y, np.exp(corners))


def find_offset_power_intervals(compute: Array, loss: Array) -> Intervals:
  """Returns intervals of E, a and b of L = E + a C^-b, fitted in log L to 4 or more points."""
  fit = power_laws.fit_offset_power(compute, loss)
  compute, loss = power_laws.check_points('intervals of a power law with offset', 4, compute, loss)
  x, y = np.log(compute), np.log(loss)
  best = np.array([fit.constants['E'], math.log(fit.constants['a']), fit.constants['b']])
  minimum = float(np.sum((y - np.log(power_laws.predict(fit, compute))) ** 2))
  bound = _compute_bound(minimum, len(x), 3)
  above = np.exp(best[1] - best[2] * x)
  slopes = np.stack([np.ones_like(x), above, -x * above], 1) / (best[0] + above)[:, None]
  steps = np.sqrt(solve_linear(slopes[None], y)[2][0] * minimum / (len(x) - 3))
  limits = {'E': (0.0, float(loss.max())), 'a': (-700.0, 700.0), 'b': (-10.0, 10.0)}
  intervals: Intervals = {}
  for index, (key, (low, high)) in enumerate(limits.items()):
    value = best[index]
    step = 2.4 * float(np.clip(steps[index], 1e-3 * max(abs(value), 0.1), 0.2 * (high - low)))
    profile = _make_profile(x, y, best, index)
    intervals[key] = (
      _find_crossing(profile, (minimum, bound), value, -step, low),
      _find_crossing(profile, (minimum, bound), value, step, high),
    )
  return {**intervals, 'a': _exponentiate_interval(intervals['a'])}


def _exponentiate_interval(interval: tuple[float, float]) -> tuple[float, float]:
  return power_laws.clip_exp(interval[0]), power_laws.clip_exp(interval[1])


def _compute_bound(minimum: float, n: int, num_constants: int) -> float:
  return minimum * (1 + float(stats.f.ppf(0.95, 1, n - num_constants)) / (n - num_constants))


def _profile_intervals(columns: np.ndarray, y: np.ndarray, breaks: np.ndarray) -> Intervals:
  """Returns intervals of a1, b1, b2 and C0 from a grid over C0.

  At each point of the grid, the sum of squares is a parabola in every linear constant. Minima thus
  need no search.

  Args:
    columns: columns of log a1, b1 and b2 [G N 3].
    y: log L [N].
    breaks: values of C0 [G].
  """
  good = np.isfinite(solve_linear(columns, y)[1])
  columns, breaks = columns[good], breaks[good]
  constants, squares, spread = solve_linear(columns, y)
  best, minimum = int(np.argmin(squares)), max(float(squares.min()), _MIN_SQUARED_ERROR * len(y))
  errors = np.random.default_rng(0).normal(size=(len(y), _NUM_DRAWS))
  sigma = math.sqrt(minimum / (len(y) - 4))
  drawn = (columns[best] @ constants[best])[:, None] + sigma * errors
  solved, drawn_squares = _solve_draws(columns, drawn)
  drawn_minima = drawn_squares.min(0)
  q = float(np.quantile(drawn_squares[best] / drawn_minima, 0.95))
  intervals = {'C0': _find_grid_interval(breaks, squares, max(q, 1.0) * minimum)}
  for index, key in enumerate(('a1', 'b1', 'b2')):
    errors = solved[:, index] - constants[best, index]
    profile = (drawn_squares + errors**2 / spread[:, index, None]).min(0)
    q = np.quantile(profile / drawn_minima, 0.95)
    near = squares <= q * minimum
    half = np.sqrt(spread[near, index] * (q * minimum - squares[near]))
    low = float(np.min(constants[near, index] - half))
    high = float(np.max(constants[near, index] + half))
    intervals[key] = _exponentiate_interval((low, high)) if key == 'a1' else (low, high)
  return intervals


def _find_grid_interval(
  values: np.ndarray, squares: np.ndarray, bound: float
) -> tuple[float, float]:
  """Returns the values at which the squares cross the bound, interpolated in logarithms."""
  near, logs = np.flatnonzero(squares <= bound), np.log(values)
  ends = []
  for inside, outside in ((near[0], near[0] - 1), (near[-1], near[-1] + 1)):
    end = logs[inside]
    if 0 <= outside < len(values):
      share = (bound - squares[inside]) / (squares[outside] - squares[inside])
      end += (logs[outside] - end) * share
    ends.append(power_laws.clip_exp(float(end)))
  return ends[0], ends[1]


def _solve_draws(columns: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns constants [G Q S] and squares [G S] of columns [G N Q] for S data sets [N S]."""
  directions, corners = np.linalg.qr(columns)
  along = np.einsum('gnq,ns->gqs', directions, drawn, optimize=True)
  return np.linalg.solve(corners, along), np.sum(drawn**2, 0) - np.sum(along**2, 1)


def _make_profile(
  x: np.ndarray, y: np.ndarray, best: np.ndarray, index: int
) -> Callable[[float], float]:
  """Returns the minimal squares of log(E + a C^-b) as a function of one of (E, log a, b).

  The search replaces log a by the level in the middle of the data, as log a correlates with b.
  """
  middle = float(x.mean())
  level = best[1] - best[2] * middle
  start = np.array([level, best[2]]) if index == 0 else np.array([best[0], level])
  lower_bounds = np.array([-700.0, -50.0]) if index == 0 else np.array([0.0, -700.0])

  def evaluate(c: np.ndarray, fixed: float) -> tuple[np.ndarray, np.ndarray]:
    offset, level = (fixed, c[0]) if index == 0 else c
    b = c[1] if index == 0 else (fixed - level) / middle if index == 1 else fixed
    above = np.exp(np.clip(level - b * (x - middle), -300, 300))
    total = offset + above
    by_level = above * x / middle if index == 1 else above  # with a fixed, b depends on the level
    slopes = [by_level, -(x - middle) * above] if index == 0 else [np.ones_like(x), by_level]
    return np.log(total), np.stack(slopes, 1) / total[:, None]

  def compute_squares(value: float) -> float:
    # Each search starts from the best fit: a start from the value before can stay in a corner.
    _, fitted = power_laws.minimize_residuals(
      lambda c: evaluate(c, value), start, y, lower_bounds=lower_bounds, tolerance=1e-8
    )
    return float(np.sum((y - fitted) ** 2))

  return compute_squares


def _find_crossing(
  squares: Callable[[float], float],
  bounds: tuple[float, float],
  start: float,
  step: float,
  end: float,
) -> float:
  """Returns the value between `start` and `end` at which the squares cross the bound.

  Steps grow until the squares exceed the bound; the secant method then finds the crossing to 0.1%.
  As the squares are nearly a parabola, the square root of their distance from the minimum is nearly
  linear.

  Args:
    squares: minimal squares as a function of a constant.
    bounds: the minimal squares, at `start`, and the bound.
    start: value of the constant with the minimal squares.
    step: first step.
    end: limit of the search, which is returned without a crossing.
  """
  minimum, bound = bounds
  target = math.sqrt(max(bound - minimum, 0))

  def compute_excess(value: float) -> float:
    return math.sqrt(max(squares(value) - minimum, 0)) - target

  inside, below = start, -target
  while inside != end:
    outside = max(inside + step, end) if step < 0 else min(inside + step, end)
    above = compute_excess(outside)
    if above > 0:
      break
    inside, below, step = outside, above, 1.6 * step
  else:
    return end
  value = inside
  for _ in range(20):
    value = inside + (outside - inside) * min(max(below / (below - above), 0.05), 0.95)
    excess = compute_excess(value)
    if abs(excess) <= 1e-3 * target:
      break
    if excess > 0:
      outside, above = value, excess
    else:
      inside, below = value, excess
  return float(value)
