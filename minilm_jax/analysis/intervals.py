"""95% intervals of the constants of a law, for points that are independent of each other.

Such points are the ends of runs, one a run. Those of a frontier are not: one run gives several, and each was chosen for
being low; there `resample.py` draws whole runs.

A constant's interval holds every value with which the law still fits nearly as well: its sum of squares in log L, all
other constants being free, is at most (1 + q) S, where S is the least there is. For laws without a break q is
F / (N - P), F the 95% point of the F distribution with 1 and N - P degrees of freedom; for a straight line that is the
t interval exactly. With a break the squares are no parabola near their least, and that q covers 88-95%; there q is the
95% point of what the same quantity is, at the true value, in 500 data sets drawn from the fitted law with normal errors
in log L. Where two pieces need not meet, C0 has q = 7.35 / N, of Hansen, Sample splitting and threshold estimation,
Econometrica 68 (2000), which covers more than 95% where the step is large.

What each covers was measured, with `tests/test_intervals.py`: of 1,000 data sets of 40 runs, power law 96%; with a
floor, E and b 96%; pieces that meet, C0, b1 and b2 95-97%; of 400, pieces with a step 94-100%, smooth break 94-97%.

An interval that ends where a break could no longer be told, or a floor E whose interval begins at 0, says that the data
does not decide.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from minilm_jax.analysis import breaks, laws
from minilm_jax.analysis.descent import descend
from minilm_jax.analysis.laws import Array

_DRAWS, _STEP = 500, 7.35  # -2 log(1 - sqrt(0.95))
_EXACT = 1e-12  # squares of an error in log L that is none
_CORNERS, _INTERVAL_WIDTHS = 120, np.geomspace(0.02, 2, 16)
Pairs = dict[str, tuple[float, float]]


def power_intervals(compute: Array, loss: Array) -> Pairs:
  """Intervals of a and b of L = a C^-b, fitted in log L.

  Raises:
    InputError: fewer than 3 points of different compute, or values that are not positive numbers.
  """
  compute, loss = laws.checked('intervals of a power law', 3, compute, loss)
  x, y = np.log(compute), np.log(loss)
  constants, (squares,), (spread,) = breaks.linear(_columns(x)[None], y)
  half = np.sqrt(spread * (_bound(squares, len(x), 2) - squares))
  low, high = constants[0] - half, constants[0] + half
  return {
    'a': (laws.exp_clipped(low[0]), laws.exp_clipped(high[0])),
    'b': (float(low[1]), float(high[1])),
  }


def joined_intervals(compute: Array, loss: Array) -> Pairs:
  """Intervals of a1, b1, b2 and C0 of two power laws that meet.

  Raises:
    InputError: fewer than 7 points of different compute, or values that are not positive numbers.
  """
  compute, loss = laws.checked(
    'intervals of two power laws that meet', 2 * breaks.SIDE + 1, compute, loss
  )
  x = np.log(compute)
  corners = np.linspace(*breaks.inner(x), _CORNERS)
  return _over(
    breaks.hinge(x, corners, np.zeros_like(corners), 0.0),
    np.log(loss),
    4,
    {'a1': 0, 'b1': 1, 'b2': 2},
    {'C0': np.exp(corners)},
  )


def smooth_break_intervals(compute: Array, loss: Array) -> Pairs:
  """Intervals of a, b1, b2, C0 and s of a smooth break.

  Raises:
    InputError: fewer than 7 points of different compute, or values that are not positive numbers.
  """
  compute, loss = laws.checked('intervals of a smooth break', 2 * breaks.SIDE + 1, compute, loss)
  x = np.log(compute)
  corners, widths = (
    one.ravel() for one in np.meshgrid(np.linspace(*breaks.inner(x), _CORNERS), _INTERVAL_WIDTHS)
  )
  return _over(
    breaks.hinge(x, corners, widths, 0.0),
    np.log(loss),
    5,
    {'a': 0, 'b1': 1, 'b2': 2},
    {'C0': np.exp(corners), 's': widths},
  )


def two_piece_intervals(compute: Array, loss: Array) -> Pairs:
  """Intervals of a1, b1, a2, b2 and C0 of two power laws that need not meet.

  That of C0 goes from point to point: a break anywhere between two neighbours leaves the same squares.

  Raises:
    InputError: fewer than 7 points of different compute, or values that are not positive numbers.
  """
  compute, loss = laws.checked('intervals of two power laws', 2 * breaks.SIDE + 1, compute, loss)
  x, y = np.log(compute), np.log(loss)
  places, squares = breaks.piece_squares(x, y)
  near = places[squares <= squares.min() * (1 + _STEP / len(x))]
  low = np.arange(len(x)) < places[:, None]
  columns = np.concatenate([_columns(x) * side[..., None] for side in (low, ~low)], 2)
  return {
    **_over(columns, y, 5, {'a1': 0, 'b1': 1, 'a2': 2, 'b2': 3}, {}),
    'C0': (float(compute[near[0] - 1]), float(compute[near[-1]])),
  }


def offset_power_intervals(compute: Array, loss: Array) -> Pairs:
  """Intervals of E, a and b of L = E + a C^-b, fitted in log L.

  Raises:
    InputError: fewer than 4 points of different compute, or values that are not positive numbers.
  """
  fit = laws.offset_power(compute, loss)
  compute, loss = laws.checked('intervals of a law above a floor', 4, compute, loss)
  x, y = np.log(compute), np.log(loss)
  best = np.array([fit.constants['E'], math.log(fit.constants['a']), fit.constants['b']])
  least = float(np.sum((y - np.log(laws.predict(fit, compute))) ** 2))
  bound = _bound(least, len(x), 3)
  above = np.exp(best[1] - best[2] * x)
  slopes = np.stack([np.ones_like(x), above, -x * above], 1) / (best[0] + above)[:, None]
  steps = np.sqrt(breaks.linear(slopes[None], y)[2][0] * least / (len(x) - 3))
  limits = {'E': (0.0, float(loss.max())), 'a': (-700.0, 700.0), 'b': (-10.0, 10.0)}
  found = {}
  for place, (key, (low, high)) in enumerate(limits.items()):
    step = 2.4 * float(np.clip(steps[place], 1e-3 * max(abs(best[place]), 0.1), 0.2 * (high - low)))
    found[key] = tuple(
      _walk(_profile(x, y, best, place), bound, least, best[place], way * step, end)
      for way, end in ((-1, low), (1, high))
    )
  return {**found, 'a': (laws.exp_clipped(found['a'][0]), laws.exp_clipped(found['a'][1]))}


def _columns(x: np.ndarray) -> np.ndarray:
  return np.stack([np.ones_like(x), -x], 1)


def _bound(least: float, n: int, p: int) -> float:
  return least * (1 + float(stats.f.ppf(0.95, 1, n - p)) / (n - p))


def _over(
  columns: np.ndarray, y: np.ndarray, p: int, places: dict[str, int], given: dict[str, np.ndarray]
) -> Pairs:
  """Intervals over a grid of what log L is not linear in.

  At each place of the grid the squares are a parabola in every other constant, so the least of them for any value of
  it is known without a search.

  Args:
    columns: [G N Q], of the constants that log L is linear in.
    y: log L.
    p: constants in all.
    places: of the constants among the columns; those called a, a1, a2 are there as logarithms.
    given: what the grid is over, [G] each.
  """
  good = np.isfinite(breaks.linear(columns, y)[1])
  columns, given = columns[good], {key: values[good] for key, values in given.items()}
  constants, squares, spread = breaks.linear(columns, y)
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
      (laws.exp_clipped(low), laws.exp_clipped(high)) if key.startswith('a') else (low, high)
    )
  return found


def _ends(
  values: np.ndarray, squares: np.ndarray, drawn: np.ndarray, best: int, smallest: float
) -> tuple[float, float]:
  """Where the least squares for each value of a grid pass the bound; between two values by their logarithms."""
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
    ends.append(laws.exp_clipped(end))
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

  The other two are solved for with the level of a C^-b in the middle of the data instead of log a, which lies far
  outside of it and goes up and down with b.
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
    start, said = descend(lambda at: curve(at, value), start, y, least=least, tolerance=1e-8)
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
  """Where the squares pass the bound, on the way from the start, where they are least, to the end in longer steps.

  It is the root of the distance from the least, as its own square root: what is nearly a parabola becomes nearly a
  line, so that a few chords find it, to a thousandth of the way.
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
