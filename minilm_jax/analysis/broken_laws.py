"""Laws with two exponents, and 95% intervals of the constants of a law for independent points.

A loss that falls slowly up to some compute and faster beyond it, or the other way, has a break C0.

Independent points are the ends of runs, one a run. Points of a frontier are not: a run gives
several, each chosen for being low; `scaling_fits.bootstrap` draws whole runs there.

The interval of a constant holds every value with which the law fits nearly as well: its sum of
squares in log L, all other constants being free, is at most (1 + q) S, where S is the minimum. For
laws without a break q is F / (N - P), F the 95% point of the F distribution with 1 and N - P degrees
of freedom; for a straight line that is the t interval exactly. With a break the squares are not a
parabola near their minimum, and that q covers 88-95%; there q is the 95% point of the same quantity
at the true value in 500 data sets drawn from the fitted law with normal errors in log L. If two
pieces need not meet, C0 has q = 7.35 / N (Hansen, Sample splitting and threshold estimation,
Econometrica 68, 2000), which covers more than 95% if the step is large.

Coverage was measured with `tests/analysis/test_broken_laws.py`: of 1,000 data sets of 40 runs, power
law 96%; with a floor, E and b 96%; pieces that meet, C0, b1 and b2 95-97%; of 400, pieces with a
step 94-100%, smooth break 94-97%.

An interval that ends at the edge of the possible breaks, or an interval of E that begins at 0, means
that the data does not decide.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from minilm_jax.analysis import power_laws
from minilm_jax.analysis.power_laws import Array, Fit

MIN_POINTS_A_SIDE = 3  # different computes on either side of a break: two lie on any line
_WIDTHS = np.geomspace(0.02, 2, 8)  # of a smooth break, in factors of e of compute
_NUM_DRAWS = 500
_HANSEN_BOUND = 7.35  # -2 log(1 - sqrt(0.95))
_MIN_SQUARED_ERROR = 1e-12  # of an exact fit in log L
_NUM_CORNERS, _INTERVAL_WIDTHS = 120, np.geomspace(0.02, 2, 16)
Intervals = dict[str, tuple[float, float]]


def fit_two_piece(
  compute: Array, loss: Array, name: str = 'two pieces', split: float | None = None
) -> Fit:
  """Fits one power law below the break C0 and another above it, which need not meet, by least squares in
  log L.

  Without a split, C0 is the geometric mean of the two neighbouring points that it must lie between
  for the least sum of squares: nothing decides where between them.

  Raises:
    InputError: fewer than 6 points of different compute, or fewer than 3 on one side of the split,
      or values that are not positive numbers.
  """
  compute, loss = power_laws.check_points('two power laws', 2 * MIN_POINTS_A_SIDE, compute, loss)
  x, y = np.log(compute), np.log(loss)
  if split is None:
    places, squares = measure_piece_squares(x, y)
    first = int(places[np.argmin(squares)])
    split = math.exp((x[first - 1] + x[first]) / 2)
  low = compute < split
  below = power_laws.fit_log_power(compute[low], loss[low]).constants
  above = power_laws.fit_log_power(compute[~low], loss[~low]).constants
  constants = {'a1': below['a'], 'b1': below['b'], 'a2': above['a'], 'b2': above['b'], 'C0': split}
  return _make_fit(name, power_laws.PIECES, constants, (compute, loss))


def fit_joined(compute: Array, loss: Array, name: str = 'two pieces, joined') -> Fit:
  """Fits two power laws that meet at C0, by least squares in log L.

  Raises:
    InputError: fewer than 6 points of different compute, or values that are not positive numbers.
  """
  compute, loss = power_laws.check_points(
    'two power laws that meet', 2 * MIN_POINTS_A_SIDE, compute, loss
  )
  x, y = np.log(compute), np.log(loss)
  centre, (corner, _) = float(x.mean()), _search(x, y, (0.0,))
  level, b1, b2 = solve_linear(hinge_columns(x, np.array([corner]), np.array([0.0]), centre), y)[0][
    0
  ]
  a1 = level + b1 * centre
  return _make_fit(
    name,
    power_laws.PIECES,
    {
      'a1': power_laws.exp_clipped(a1),
      'b1': b1,
      'a2': power_laws.exp_clipped(a1 + (b2 - b1) * corner),
      'b2': b2,
      'C0': math.exp(corner),
    },
    (compute, loss),
    power_laws.LOGS + ', joined',
    num_free=4,
  )


def fit_smooth_break(compute: Array, loss: Array, name: str = 'smooth break') -> Fit:
  """Fits L = a C^-b1 (1 + (C / C0)^(1 / s))^(-(b2 - b1) s): the exponent goes from b1 to b2 around C0,
  by least squares in log L.

  s is the width of the change in factors of e of compute: three quarters of it lie between C0
  e^(-2s) and C0 e^(2s). The search covers 0.02, which is a corner, to 2.

  Raises:
    InputError: fewer than 7 points of different compute, or values that are not positive numbers.
  """
  compute, loss = power_laws.check_points(
    'a smooth break', 2 * MIN_POINTS_A_SIDE + 1, compute, loss
  )
  x, y = np.log(compute), np.log(loss)
  centre, (middle, width) = float(x.mean()), _search(x, y, _WIDTHS)
  level, b1, b2 = solve_linear(hinge_columns(x, np.array([middle]), np.array([width]), centre), y)[
    0
  ][0]
  return _make_fit(
    name,
    power_laws.SMOOTH,
    {
      'a': power_laws.exp_clipped(level + b1 * centre),
      'b1': b1,
      'b2': b2,
      'C0': math.exp(middle),
      's': width,
    },
    (compute, loss),
  )


def measure_piece_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the squares left by a straight line on each side of a break, for every possible break.

  Args:
    x, y: logarithms, sorted by x [N].

  Returns:
    The number of points below the break [K], and the sum of squares [K], in O(N).
  """
  x, y = x - x.mean(), y - y.mean()
  sums = np.cumsum([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
  distinct = 1 + np.cumsum(np.diff(x) > 0)  # different computes among the first 2, 3, ...
  places = np.arange(1, len(x))
  below = np.concatenate([[1], distinct])[places - 1]
  free = (
    (np.diff(x) > 0) & (below >= MIN_POINTS_A_SIDE) & (distinct[-1] - below >= MIN_POINTS_A_SIDE)
  )
  places = places[free]
  left = sums[:, places - 1]
  return places, _residual_squares(left) + _residual_squares(sums[:, -1:] - left)


def hinge_columns(
  x: np.ndarray, corners: np.ndarray, widths: np.ndarray, centre: float
) -> np.ndarray:
  """Returns the columns [G N 3] that log L is linear in, for G corners of given widths: its level
  at the centre, and minus b1 and b2.
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
    columns: [G N P].
    y: [N].

  Returns:
    Constants [G P], sums of squares [G] (infinite where columns are not independent), and the
    diagonal of the inverse of their products [G P], which times the variance of a residual is the
    variance of a constant.
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


def inner_range(x: np.ndarray) -> tuple[float, float]:
  """Returns the range of log compute of a corner: two different computes lie beyond either end."""
  distinct = np.unique(x)
  return float(distinct[1]), float(distinct[-2])


def _search(
  x: np.ndarray, y: np.ndarray, widths: Sequence[float] | np.ndarray
) -> tuple[float, float]:
  """Returns log C0 and width of the least squares by successively finer grids."""
  (low, high), widths = inner_range(x), np.asarray(widths, float)
  corners, step = np.linspace(low, high, 40), (high - low) / 39
  for _ in range(4):
    grid = [axis.ravel() for axis in np.meshgrid(corners, widths)]
    best = int(np.argmin(solve_linear(hinge_columns(x, *grid, float(x.mean())), y)[1]))
    corner, width = float(grid[0][best]), float(grid[1][best])
    corners, step = np.clip(corner + step * np.linspace(-1, 1, 9), low, high), step / 4
    if len(widths) > 1:
      ratio = (widths[1] / widths[0]) ** 0.4
      widths = np.clip(width * ratio ** np.arange(-2, 3), _WIDTHS[0], _WIDTHS[-1])
  return corner, width


def _residual_squares(sums: np.ndarray) -> np.ndarray:
  n, x, y, xx, yy, xy = sums
  across, slope = xx - x * x / n, xy - x * y / n
  return np.maximum(yy - y * y / n - slope**2 / np.maximum(across, 1e-300), 0)


def _make_fit(
  name: str,
  form: str,
  constants: dict[str, float],
  points: tuple[Array, Array],
  method: str = power_laws.LOGS,
  num_free: int | None = None,
) -> Fit:
  fitted = power_laws.evaluate_law(form, constants, points[0])
  return power_laws.make_fit(name, form, method, constants, points, fitted, num_free)


def find_power_intervals(compute: Array, loss: Array) -> Intervals:
  """Returns intervals of a and b of L = a C^-b, fitted in log L.

  Raises:
    InputError: fewer than 3 points of different compute, or values that are not positive numbers.
  """
  compute, loss = power_laws.check_points('intervals of a power law', 3, compute, loss)
  x, y = np.log(compute), np.log(loss)
  constants, (squares,), (spread,) = solve_linear(_columns(x)[None], y)
  half = np.sqrt(spread * (_bound(squares, len(x), 2) - squares))
  low, high = constants[0] - half, constants[0] + half
  return {'a': _exp_interval((low[0], high[0])), 'b': (float(low[1]), float(high[1]))}


def find_joined_intervals(compute: Array, loss: Array) -> Intervals:
  """Returns intervals of a1, b1, b2 and C0 of two power laws that meet.

  Raises:
    InputError: fewer than 7 points of different compute, or values that are not positive numbers.
  """
  compute, loss = power_laws.check_points(
    'intervals of two power laws that meet', 2 * MIN_POINTS_A_SIDE + 1, compute, loss
  )
  x = np.log(compute)
  corners = np.linspace(*inner_range(x), _NUM_CORNERS)
  return _profile_intervals(
    hinge_columns(x, corners, np.zeros_like(corners), 0.0),
    np.log(loss),
    4,
    {'a1': 0, 'b1': 1, 'b2': 2},
    {'C0': np.exp(corners)},
  )


def find_smooth_break_intervals(compute: Array, loss: Array) -> Intervals:
  """Returns intervals of a, b1, b2, C0 and s of a smooth break.

  Raises:
    InputError: fewer than 7 points of different compute, or values that are not positive numbers.
  """
  compute, loss = power_laws.check_points(
    'intervals of a smooth break', 2 * MIN_POINTS_A_SIDE + 1, compute, loss
  )
  x = np.log(compute)
  corners, widths = (
    axis.ravel()
    for axis in np.meshgrid(np.linspace(*inner_range(x), _NUM_CORNERS), _INTERVAL_WIDTHS)
  )
  return _profile_intervals(
    hinge_columns(x, corners, widths, 0.0),
    np.log(loss),
    5,
    {'a': 0, 'b1': 1, 'b2': 2},
    {'C0': np.exp(corners), 's': widths},
  )


def find_two_piece_intervals(compute: Array, loss: Array) -> Intervals:
  """Returns intervals of a1, b1, a2, b2 and C0 of two power laws that need not meet.

  The interval of C0 ends at points: every break between two neighbours leaves the same squares.

  Raises:
    InputError: fewer than 7 points of different compute, or values that are not positive numbers.
  """
  compute, loss = power_laws.check_points(
    'intervals of two power laws', 2 * MIN_POINTS_A_SIDE + 1, compute, loss
  )
  x, y = np.log(compute), np.log(loss)
  places, squares = measure_piece_squares(x, y)
  near = places[squares <= squares.min() * (1 + _HANSEN_BOUND / len(x))]
  low = np.arange(len(x)) < places[:, None]
  columns = np.concatenate([_columns(x) * side[..., None] for side in (low, ~low)], 2)
  return {
    **_profile_intervals(columns, y, 5, {'a1': 0, 'b1': 1, 'a2': 2, 'b2': 3}, {}),
    'C0': (float(compute[near[0] - 1]), float(compute[near[-1]])),
  }


def find_offset_power_intervals(compute: Array, loss: Array) -> Intervals:
  """Returns intervals of E, a and b of L = E + a C^-b, fitted in log L.

  Raises:
    InputError: fewer than 4 points of different compute, or values that are not positive numbers.
  """
  fit = power_laws.fit_offset_power(compute, loss)
  compute, loss = power_laws.check_points('intervals of a law above a floor', 4, compute, loss)
  x, y = np.log(compute), np.log(loss)
  best = np.array([fit.constants['E'], math.log(fit.constants['a']), fit.constants['b']])
  least = float(np.sum((y - np.log(power_laws.predict(fit, compute))) ** 2))
  bound = _bound(least, len(x), 3)
  above = np.exp(best[1] - best[2] * x)
  slopes = np.stack([np.ones_like(x), above, -x * above], 1) / (best[0] + above)[:, None]
  steps = np.sqrt(solve_linear(slopes[None], y)[2][0] * least / (len(x) - 3))
  limits = {'E': (0.0, float(loss.max())), 'a': (-700.0, 700.0), 'b': (-10.0, 10.0)}
  intervals: Intervals = {}
  for place, (key, (low, high)) in enumerate(limits.items()):
    step = 2.4 * float(np.clip(steps[place], 1e-3 * max(abs(best[place]), 0.1), 0.2 * (high - low)))
    intervals[key] = (
      _find_crossing(_make_profile(x, y, best, place), (least, bound), best[place], -step, low),
      _find_crossing(_make_profile(x, y, best, place), (least, bound), best[place], step, high),
    )
  return {**intervals, 'a': _exp_interval(intervals['a'])}


def _columns(x: np.ndarray) -> np.ndarray:
  return np.stack([np.ones_like(x), -x], 1)


def _exp_interval(interval: tuple[float, float]) -> tuple[float, float]:
  return power_laws.exp_clipped(interval[0]), power_laws.exp_clipped(interval[1])


def _bound(least: float, n: int, num_constants: int) -> float:
  return least * (1 + float(stats.f.ppf(0.95, 1, n - num_constants)) / (n - num_constants))


def _profile_intervals(
  columns: np.ndarray,
  y: np.ndarray,
  num_constants: int,
  places: dict[str, int],
  grid: dict[str, np.ndarray],
) -> Intervals:
  """Returns intervals by a grid over the constants that log L is not linear in.

  At each place of the grid the squares are a parabola in every other constant, so the least of them
  for any value of it is known without a search.

  Args:
    columns: [G N Q], of the constants that log L is linear in.
    y: log L.
    num_constants: in all.
    places: of the constants among the columns; a, a1 and a2 are logarithms there.
    grid: the constants that the grid is over, [G] each.
  """
  good = np.isfinite(solve_linear(columns, y)[1])
  columns, grid = columns[good], {key: values[good] for key, values in grid.items()}
  constants, squares, spread = solve_linear(columns, y)
  best, least = int(np.argmin(squares)), max(float(squares.min()), _MIN_SQUARED_ERROR * len(y))
  errors = np.random.default_rng(0).normal(size=(len(y), _NUM_DRAWS))
  drawn = (columns[best] @ constants[best])[:, None] + math.sqrt(
    least / (len(y) - num_constants)
  ) * errors
  solved, drawn_squares = _solve_draws(columns, drawn)
  smallest = drawn_squares.min(0)
  intervals = {
    key: _grid_interval(values, squares, drawn_squares, best, least) for key, values in grid.items()
  }
  for key, place in places.items():
    apart = solved[:, place] - constants[best, place]
    q = np.quantile((drawn_squares + apart**2 / spread[:, place, None]).min(0) / smallest, 0.95)
    near = squares <= q * least
    half = np.sqrt(spread[near, place] * (q * least - squares[near]))
    low = float(np.min(constants[near, place] - half))
    high = float(np.max(constants[near, place] + half))
    is_logarithm = key.startswith('a')
    intervals[key] = _exp_interval((low, high)) if is_logarithm else (low, high)
  return intervals


def _grid_interval(
  values: np.ndarray, squares: np.ndarray, drawn: np.ndarray, best: int, smallest: float
) -> tuple[float, float]:
  """Returns where the minimal squares over a grid pass the bound, interpolated in logarithms."""
  q = np.quantile(drawn[values == values[best]].min(0) / drawn.min(0), 0.95)
  bound = max(float(q), 1.0) * smallest
  at = np.unique(values)
  least = np.array([squares[values == value].min() for value in at])
  near, logs = np.flatnonzero(least <= bound), np.log(at)
  ends = []
  for inside, outside in ((near[0], near[0] - 1), (near[-1], near[-1] + 1)):
    end = logs[inside]
    if 0 <= outside < len(at):
      end += (logs[outside] - end) * (bound - least[inside]) / (least[outside] - least[inside])
    ends.append(power_laws.exp_clipped(float(end)))
  return ends[0], ends[1]


def _solve_draws(columns: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns constants [G Q S] and squares [G S] of the columns [G N Q] fitted to S data sets [N S]."""
  directions, corners = np.linalg.qr(columns)
  along = np.einsum('gnq,ns->gqs', directions, drawn, optimize=True)
  return np.linalg.solve(corners, along), np.sum(drawn**2, 0) - np.sum(along**2, 1)


def _make_profile(
  x: np.ndarray, y: np.ndarray, best: np.ndarray, place: int
) -> Callable[[float], float]:
  """Returns the minimal squares of log(E + a C^-b) as a function of one of (E, log a, b).

  The level of a C^-b in the middle of the data replaces log a, which lies far outside of the data
  and is correlated with b.
  """
  middle = float(x.mean())
  level = best[1] - best[2] * middle
  start = np.array([level, best[2]]) if place == 0 else np.array([best[0], level])
  lower_bounds = np.array([-700.0, -50.0]) if place == 0 else np.array([0.0, -700.0])

  def curve(at: np.ndarray, fixed: float) -> tuple[np.ndarray, np.ndarray]:
    floor, level = (fixed, at[0]) if place == 0 else at
    b = at[1] if place == 0 else (fixed - level) / middle if place == 1 else fixed
    above = np.exp(np.clip(level - b * (x - middle), -300, 300))
    total = floor + above
    by_level = above * x / middle if place == 1 else above  # with a fixed, b follows the level
    slopes = [by_level, -(x - middle) * above] if place == 0 else [np.ones_like(x), by_level]
    return np.log(total), np.stack(slopes, 1) / total[:, None]

  def squares(value: float) -> float:
    nonlocal start  # the next value is near
    start, fitted = power_laws.levenberg_marquardt(
      lambda at: curve(at, value), start, y, lower_bounds=lower_bounds, tolerance=1e-8
    )
    return float(np.sum((y - fitted) ** 2))

  return squares


def _find_crossing(
  squares: Callable[[float], float],
  bounds: tuple[float, float],
  start: float,
  step: float,
  end: float,
) -> float:
  """Returns where the squares pass the upper bound, on the way from `start` to `end`.

  Steps grow until one passes the bound; chords then find it to a thousandth of the way. The square
  root of the distance from the minimum is nearly linear, as the squares are nearly a parabola.

  Args:
    squares: of a constant.
    bounds: the minimal squares, at `start`, and the squares to look for.
    start, step, end: of the search.
  """
  least, bound = bounds
  goal = math.sqrt(max(bound - least, 0))

  def excess(at: float) -> float:
    return math.sqrt(max(squares(at) - least, 0)) - goal

  inside, below = start, -goal
  while inside != end:
    outside = max(inside + step, end) if step < 0 else min(inside + step, end)
    above = excess(outside)
    if above > 0:
      break
    inside, below, step = outside, above, 1.6 * step
  else:
    return end
  at = inside
  for _ in range(20):
    at = inside + (outside - inside) * min(max(below / (below - above), 0.05), 0.95)
    value = excess(at)
    if abs(value) <= 1e-3 * goal:
      break
    if value > 0:
      outside, above = at, value
    else:
      inside, below = at, value
  return float(at)
