"""95% intervals of the constants of a law, for points that are independent of each other.

Such points are the ends of runs, one a run. Those of a frontier are not: one run gives several, and
each was chosen for being low; there `resample.py` draws whole runs.

A constant's interval holds every value with which the law still fits nearly as well: its sum of
squares in log L, all other constants being free, is at most (1 + q) S, where S is the least there
is. For laws without a break q is F / (N - P), F the 95% point of the F distribution with 1 and N -
P degrees of freedom; for a straight line that is the t interval exactly. With a break the squares
are no parabola near their least, and that q covers 88-95%; there q is the 95% point of what the
same quantity is, at the true value, in 500 data sets drawn from the fitted law with normal errors
in log L. Where two pieces need not meet, C0 has q = 7.35 / N, of Hansen, Sample splitting and
threshold estimation, Econometrica 68 (2000), which covers more than 95% where the step is large.

What each covers was measured, with `tests/analysis/test_broken_laws.py`: of 1,000 data sets of 40
runs, power law 96%; with a floor, E and b 96%; pieces that meet, C0, b1 and b2 95-97%; of 400,
pieces with a step 94-100%, smooth break 94-97%.

An interval that ends where a break could no longer be told, or a floor E whose interval begins at
0, says that the data does not decide.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from minilm_jax.analysis import power_laws
from minilm_jax.analysis.power_laws import Array, Fit, levenberg_marquardt

# Laws with two exponents: a frontier that falls slowly up to some compute and faster beyond it, or
# the other way.
MIN_POINTS_A_SIDE = 3  # different computes on either side of a break: two would lie on any line
_WIDTHS = np.geomspace(0.02, 2, 8)  # of a smooth break, in factors of e of compute


def fit_two_piece(
  compute: Array, loss: Array, name: str = 'two pieces', split: float | None = None
) -> Fit:
  """One power law below the break C0 and another above it, which need not meet, by least squares in
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
  one = power_laws.fit_log_power(compute[low], loss[low])
  two = power_laws.fit_log_power(compute[~low], loss[~low])
  constants = {
    'a1': one.constants['a'],
    'b1': one.constants['b'],
    'a2': two.constants['a'],
    'b2': two.constants['b'],
    'C0': split,
  }
  return _made(name, power_laws.PIECES, constants, compute, loss)


def fit_joined(compute: Array, loss: Array, name: str = 'two pieces, joined') -> Fit:
  """Two power laws that meet at C0, by least squares in log L.

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
  return _made(
    name,
    power_laws.PIECES,
    {
      'a1': power_laws.exp_clipped(a1),
      'b1': b1,
      'a2': power_laws.exp_clipped(a1 + (b2 - b1) * corner),
      'b2': b2,
      'C0': math.exp(corner),
    },
    compute,
    loss,
    power_laws.LOGS + ', joined',
    free=4,
  )


def fit_smooth_break(compute: Array, loss: Array, name: str = 'smooth break') -> Fit:
  """L = a C^-b1 (1 + (C / C0)^(1 / s))^(-(b2 - b1) s): the exponent goes from b1 to b2 around C0,
  by least squares in log L.

  s is the width of the change in factors of e of compute: three quarters of it lie between C0
  e^(-2s) and C0 e^(2s). It is looked for from 0.02, which is a corner, to 2.

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
  return _made(
    name,
    power_laws.SMOOTH,
    {
      'a': power_laws.exp_clipped(level + b1 * centre),
      'b1': b1,
      'b2': b2,
      'C0': math.exp(middle),
      's': width,
    },
    compute,
    loss,
  )


def measure_piece_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """For every place that a break can have, the squares left by a straight line on each side of it.

  Args:
    x, y: logarithms, sorted by x [N].

  Returns:
    How many points are below the break [K], and the sum of squares [K]; by sums from the left, in
    O(N).
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
  return places, _left_over(left) + _left_over(sums[:, -1:] - left)


def hinge_columns(
  x: np.ndarray, corners: np.ndarray, widths: np.ndarray, centre: float
) -> np.ndarray:
  """What log L is linear in, [G N 3], for G corners of given widths: its level at the centre, and
  minus b1 and b2.
  """
  above = x - corners[:, None]
  narrow = np.maximum(widths, 1e-9)[:, None]
  bend = np.where(
    widths[:, None] > 0, narrow * np.logaddexp(0, above / narrow), np.maximum(above, 0)
  )
  return np.stack([np.ones_like(bend), bend - (x - centre), -bend], 2)


def solve_linear(columns: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Least squares for each of G sets of columns.

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
  """Between which log computes a corner can be told: two different ones, at least, lie beyond
  either end.
  """
  distinct = np.unique(x)
  return float(distinct[1]), float(distinct[-2])


def _search(
  x: np.ndarray, y: np.ndarray, widths: Sequence[float] | np.ndarray
) -> tuple[float, float]:
  """Log C0 and width of the least squares: a grid, and finer ones around its best place."""
  (low, high), widths = inner_range(x), np.asarray(widths, float)
  corners, step = np.linspace(low, high, 40), (high - low) / 39
  for _ in range(4):
    grid = [one.ravel() for one in np.meshgrid(corners, widths)]
    best = int(np.argmin(solve_linear(hinge_columns(x, *grid, float(x.mean())), y)[1]))
    corner, width = float(grid[0][best]), float(grid[1][best])
    corners, step = np.clip(corner + step * np.linspace(-1, 1, 9), low, high), step / 4
    if len(widths) > 1:
      ratio = (widths[1] / widths[0]) ** 0.4
      widths = np.clip(width * ratio ** np.arange(-2, 3), _WIDTHS[0], _WIDTHS[-1])
  return corner, width


def _left_over(sums: np.ndarray) -> np.ndarray:
  n, x, y, xx, yy, xy = sums
  across, slope = xx - x * x / n, xy - x * y / n
  return np.maximum(yy - y * y / n - slope**2 / np.maximum(across, 1e-300), 0)


def _made(
  name: str,
  form: str,
  constants: dict[str, float],
  compute: Array,
  loss: Array,
  method: str = power_laws.LOGS,
  free: int | None = None,
) -> Fit:
  fit = power_laws.make_fit(name, form, method, constants, compute, loss, loss)
  return power_laws.make_fit(
    name, form, method, constants, compute, loss, power_laws.predict(fit, compute), free
  )


_DRAWS, _STEP = 500, 7.35  # -2 log(1 - sqrt(0.95))
_EXACT = 1e-12  # squares of an error in log L that is none
_CORNERS, _INTERVAL_WIDTHS = 120, np.geomspace(0.02, 2, 16)
Pairs = dict[str, tuple[float, float]]


def find_power_intervals(compute: Array, loss: Array) -> Pairs:
  """Intervals of a and b of L = a C^-b, fitted in log L.

  Raises:
    InputError: fewer than 3 points of different compute, or values that are not positive numbers.
  """
  compute, loss = power_laws.check_points('intervals of a power law', 3, compute, loss)
  x, y = np.log(compute), np.log(loss)
  constants, (squares,), (spread,) = solve_linear(_columns(x)[None], y)
  half = np.sqrt(spread * (_bound(squares, len(x), 2) - squares))
  low, high = constants[0] - half, constants[0] + half
  return {
    'a': (power_laws.exp_clipped(low[0]), power_laws.exp_clipped(high[0])),
    'b': (float(low[1]), float(high[1])),
  }


def find_joined_intervals(compute: Array, loss: Array) -> Pairs:
  """Intervals of a1, b1, b2 and C0 of two power laws that meet.

  Raises:
    InputError: fewer than 7 points of different compute, or values that are not positive numbers.
  """
  compute, loss = power_laws.check_points(
    'intervals of two power laws that meet', 2 * MIN_POINTS_A_SIDE + 1, compute, loss
  )
  x = np.log(compute)
  corners = np.linspace(*inner_range(x), _CORNERS)
  return _over(
    hinge_columns(x, corners, np.zeros_like(corners), 0.0),
    np.log(loss),
    4,
    {'a1': 0, 'b1': 1, 'b2': 2},
    {'C0': np.exp(corners)},
  )


def find_smooth_break_intervals(compute: Array, loss: Array) -> Pairs:
  """Intervals of a, b1, b2, C0 and s of a smooth break.

  Raises:
    InputError: fewer than 7 points of different compute, or values that are not positive numbers.
  """
  compute, loss = power_laws.check_points(
    'intervals of a smooth break', 2 * MIN_POINTS_A_SIDE + 1, compute, loss
  )
  x = np.log(compute)
  corners, widths = (
    one.ravel() for one in np.meshgrid(np.linspace(*inner_range(x), _CORNERS), _INTERVAL_WIDTHS)
  )
  return _over(
    hinge_columns(x, corners, widths, 0.0),
    np.log(loss),
    5,
    {'a': 0, 'b1': 1, 'b2': 2},
    {'C0': np.exp(corners), 's': widths},
  )


def find_two_piece_intervals(compute: Array, loss: Array) -> Pairs:
  """Intervals of a1, b1, a2, b2 and C0 of two power laws that need not meet.

  That of C0 goes from point to point: a break anywhere between two neighbours leaves the same
  squares.

  Raises:
    InputError: fewer than 7 points of different compute, or values that are not positive numbers.
  """
  compute, loss = power_laws.check_points(
    'intervals of two power laws', 2 * MIN_POINTS_A_SIDE + 1, compute, loss
  )
  x, y = np.log(compute), np.log(loss)
  places, squares = measure_piece_squares(x, y)
  near = places[squares <= squares.min() * (1 + _STEP / len(x))]
  low = np.arange(len(x)) < places[:, None]
  columns = np.concatenate([_columns(x) * side[..., None] for side in (low, ~low)], 2)
  return {
    **_over(columns, y, 5, {'a1': 0, 'b1': 1, 'a2': 2, 'b2': 3}, {}),
    'C0': (float(compute[near[0] - 1]), float(compute[near[-1]])),
  }


def find_offset_power_intervals(compute: Array, loss: Array) -> Pairs:
  """Intervals of E, a and b of L = E + a C^-b, fitted in log L.

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
  found = {}
  for place, (key, (low, high)) in enumerate(limits.items()):
    step = 2.4 * float(np.clip(steps[place], 1e-3 * max(abs(best[place]), 0.1), 0.2 * (high - low)))
    found[key] = tuple(
      _walk(_profile(x, y, best, place), bound, least, best[place], way * step, end)
      for way, end in ((-1, low), (1, high))
    )
  return {
    **found,
    'a': (power_laws.exp_clipped(found['a'][0]), power_laws.exp_clipped(found['a'][1])),
  }


def _columns(x: np.ndarray) -> np.ndarray:
  return np.stack([np.ones_like(x), -x], 1)


def _bound(least: float, n: int, p: int) -> float:
  return least * (1 + float(stats.f.ppf(0.95, 1, n - p)) / (n - p))


def _over(
  columns: np.ndarray, y: np.ndarray, p: int, places: dict[str, int], given: dict[str, np.ndarray]
) -> Pairs:
  """Intervals over a grid of what log L is not linear in.

  At each place of the grid the squares are a parabola in every other constant, so the least of them
  for any value of it is known without a search.

  Args:
    columns: [G N Q], of the constants that log L is linear in.
    y: log L.
    p: constants in all.
    places: of the constants among the columns; those called a, a1, a2 are there as logarithms.
    given: what the grid is over, [G] each.
  """
  good = np.isfinite(solve_linear(columns, y)[1])
  columns, given = columns[good], {key: values[good] for key, values in given.items()}
  constants, squares, spread = solve_linear(columns, y)
  best, least = int(np.argmin(squares)), max(float(squares.min()), _EXACT * len(y))
  errors = np.random.default_rng(0).normal(size=(len(y), _DRAWS))
  drawn = (columns[best] @ constants[best])[:, None] + math.sqrt(least / (len(y) - p)) * errors
  solved, drawn_squares = _solved(columns, drawn)
  smallest = drawn_squares.min(0)
  found = {key: _ends(values, squares, drawn_squares, best, least) for key, values in given.items()}
  for key, place in places.items():
    apart = solved[:, place] - constants[best, place]
    q = np.quantile((drawn_squares + apart**2 / spread[:, place, None]).min(0) / smallest, 0.95)
    near = squares <= q * least
    half = np.sqrt(spread[near, place] * (q * least - squares[near]))
    low, high = (
      float(np.min(constants[near, place] - half)),
      float(np.max(constants[near, place] + half)),
    )
    found[key] = (
      (power_laws.exp_clipped(low), power_laws.exp_clipped(high))
      if key.startswith('a')
      else (low, high)
    )
  return found


def _ends(
  values: np.ndarray, squares: np.ndarray, drawn: np.ndarray, best: int, smallest: float
) -> tuple[float, float]:
  """Where the least squares for each value of a grid pass the bound; between two values by their
  logarithms.
  """
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
    ends.append(power_laws.exp_clipped(end))
  return ends[0], ends[1]


def _solved(columns: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Constants [G Q S] and squares [G S] of the columns [G N Q] fitted to S data sets [N S]."""
  directions, corners = np.linalg.qr(columns)
  along = np.einsum('gnq,ns->gqs', directions, drawn, optimize=True)
  return np.linalg.solve(corners, along), np.sum(drawn**2, 0) - np.sum(along**2, 1)


def _profile(
  x: np.ndarray, y: np.ndarray, best: np.ndarray, place: int
) -> Callable[[float], float]:
  """The least squares of log(E + a C^-b) with one of (E, log a, b) fixed.

  The other two are solved for with the level of a C^-b in the middle of the data instead of log a,
  which lies far outside of it and goes up and down with b.
  """
  middle = float(x.mean())
  level = best[1] - best[2] * middle
  start = np.array([level, best[2]]) if place == 0 else np.array([best[0], level])
  least = np.array([-700.0, -50.0]) if place == 0 else np.array([0.0, -700.0])

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
    start, said = levenberg_marquardt(
      lambda at: curve(at, value), start, y, least=least, tolerance=1e-8
    )
    return float(np.sum((y - said) ** 2))

  return squares


def _walk(
  squares: Callable[[float], float],
  bound: float,
  least: float,
  start: float,
  step: float,
  end: float,
) -> float:
  """Where the squares pass the bound, on the way from the start, where they are least, to the end
  in longer steps.

  It is the root of the distance from the least, as its own square root: what is nearly a parabola
  becomes nearly a line, so that a few chords find it, to a thousandth of the way.
  """
  goal = math.sqrt(max(bound - least, 0))
  inside, below = start, -goal
  while inside != end:
    outside = max(inside + step, end) if step < 0 else min(inside + step, end)
    over = math.sqrt(max(squares(outside) - least, 0)) - goal
    if over > 0:
      break
    inside, below, step = outside, over, 1.6 * step
  else:
    return end
  for _ in range(20):
    at = inside + (outside - inside) * min(max(below / (below - over), 0.05), 0.95)
    found = math.sqrt(max(squares(at) - least, 0)) - goal
    if abs(found) <= 1e-3 * goal:
      break
    if found > 0:
      outside, over = at, found
    else:
      inside, below = at, found
  return float(at)
