"""Laws with two exponents: a frontier that falls slowly up to some compute and faster beyond it, or the other way.

Three ways to join the two: not at all (`two_piece`, as in the first paper's figure), at a corner (`joined`), or over a
range (`smooth_break`). Given where the break is, and how wide, log L is linear in all other constants; so each is
solved by trying every break, and `intervals.py` uses the same.
"""

import math
from collections.abc import Sequence

import numpy as np

from minilm_jax.analysis import laws
from minilm_jax.analysis.laws import Array, Fit

SIDE = 3  # different computes on either side of a break: two would lie on any line
_WIDTHS = np.geomspace(0.02, 2, 8)  # of a smooth break, in factors of e of compute


def two_piece(
  compute: Array, loss: Array, name: str = 'two pieces', split: float | None = None
) -> Fit:
  """One power law below the break C0 and another above it, which need not meet, by least squares in log L.

  Without a split, C0 is the geometric mean of the two neighbouring points that it must lie between for the least sum
  of squares: nothing decides where between them.

  Raises:
    InputError: fewer than 6 points of different compute, or fewer than 3 on one side of the split, or values that are
      not positive numbers.
  """
  compute, loss = laws.checked('two power laws', 2 * SIDE, compute, loss)
  x, y = np.log(compute), np.log(loss)
  if split is None:
    places, squares = piece_squares(x, y)
    first = int(places[np.argmin(squares)])
    split = math.exp((x[first - 1] + x[first]) / 2)
  low = compute < split
  one = laws.log_power(compute[low], loss[low])
  two = laws.log_power(compute[~low], loss[~low])
  constants = {
    'a1': one.constants['a'],
    'b1': one.constants['b'],
    'a2': two.constants['a'],
    'b2': two.constants['b'],
    'C0': split,
  }
  return _made(name, laws.PIECES, constants, compute, loss)


def joined(compute: Array, loss: Array, name: str = 'two pieces, joined') -> Fit:
  """Two power laws that meet at C0, by least squares in log L.

  Raises:
    InputError: fewer than 6 points of different compute, or values that are not positive numbers.
  """
  compute, loss = laws.checked('two power laws that meet', 2 * SIDE, compute, loss)
  x, y = np.log(compute), np.log(loss)
  centre, (corner, _) = float(x.mean()), _search(x, y, (0.0,))
  level, b1, b2 = linear(hinge(x, np.array([corner]), np.array([0.0]), centre), y)[0][0]
  a1 = level + b1 * centre
  return _made(
    name,
    laws.PIECES,
    {
      'a1': laws.exp_clipped(a1),
      'b1': b1,
      'a2': laws.exp_clipped(a1 + (b2 - b1) * corner),
      'b2': b2,
      'C0': math.exp(corner),
    },
    compute,
    loss,
    laws.LOGS + ', joined',
    free=4,
  )


def smooth_break(compute: Array, loss: Array, name: str = 'smooth break') -> Fit:
  """L = a C^-b1 (1 + (C / C0)^(1 / s))^(-(b2 - b1) s): the exponent goes from b1 to b2 around C0, by least squares in
  log L.

  s is the width of the change in factors of e of compute: three quarters of it lie between C0 e^(-2s) and C0 e^(2s).
  It is looked for from 0.02, which is a corner, to 2.

  Raises:
    InputError: fewer than 7 points of different compute, or values that are not positive numbers.
  """
  compute, loss = laws.checked('a smooth break', 2 * SIDE + 1, compute, loss)
  x, y = np.log(compute), np.log(loss)
  centre, (middle, width) = float(x.mean()), _search(x, y, _WIDTHS)
  level, b1, b2 = linear(hinge(x, np.array([middle]), np.array([width]), centre), y)[0][0]
  return _made(
    name,
    laws.SMOOTH,
    {
      'a': laws.exp_clipped(level + b1 * centre),
      'b1': b1,
      'b2': b2,
      'C0': math.exp(middle),
      's': width,
    },
    compute,
    loss,
  )


def piece_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """For every place that a break can have, the squares left by a straight line on each side of it.

  Args:
    x, y: logarithms, sorted by x [N].

  Returns:
    How many points are below the break [K], and the sum of squares [K]; by sums from the left, in O(N).
  """
  x, y = x - x.mean(), y - y.mean()
  sums = np.cumsum([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
  distinct = 1 + np.cumsum(np.diff(x) > 0)  # different computes among the first 2, 3, ...
  places = np.arange(1, len(x))
  below = np.concatenate([[1], distinct])[places - 1]
  free = (np.diff(x) > 0) & (below >= SIDE) & (distinct[-1] - below >= SIDE)
  places = places[free]
  left = sums[:, places - 1]
  return places, _left_over(left) + _left_over(sums[:, -1:] - left)


def hinge(x: np.ndarray, corners: np.ndarray, widths: np.ndarray, centre: float) -> np.ndarray:
  """What log L is linear in, [G N 3], for G corners of given widths: its level at the centre, and minus b1 and b2."""
  above = x - corners[:, None]
  narrow = np.maximum(widths, 1e-9)[:, None]
  bend = np.where(
    widths[:, None] > 0, narrow * np.logaddexp(0, above / narrow), np.maximum(above, 0)
  )
  return np.stack([np.ones_like(bend), bend - (x - centre), -bend], 2)


def linear(columns: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Least squares for each of G sets of columns.

  Args:
    columns: [G N P].
    y: [N].

  Returns:
    Constants [G P], sums of squares [G] (infinite where columns are not independent), and the diagonal of the inverse
    of their products [G P], which times the variance of a residual is the variance of a constant.
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


def inner(x: np.ndarray) -> tuple[float, float]:
  """Between which log computes a corner can be told: two different ones, at least, lie beyond either end."""
  distinct = np.unique(x)
  return float(distinct[1]), float(distinct[-2])


def _search(
  x: np.ndarray, y: np.ndarray, widths: Sequence[float] | np.ndarray
) -> tuple[float, float]:
  """Log C0 and width of the least squares: a grid, and finer ones around its best place."""
  (low, high), widths = inner(x), np.asarray(widths, float)
  corners, step = np.linspace(low, high, 40), (high - low) / 39
  for _ in range(4):
    grid = [one.ravel() for one in np.meshgrid(corners, widths)]
    best = int(np.argmin(linear(hinge(x, *grid, float(x.mean())), y)[1]))
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
  method: str = laws.LOGS,
  free: int | None = None,
) -> Fit:
  fit = laws.made(name, form, method, constants, compute, loss, loss)
  return laws.made(name, form, method, constants, compute, loss, laws.predict(fit, compute), free)
