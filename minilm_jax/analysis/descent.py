"""Least squares where the law is no straight line in its constants.

Small and warm-started, because a bootstrap solves it some ten thousand times; scipy's solvers take several times as
long over problems of this size.
"""

import math
from collections.abc import Callable

import numpy as np


_LEAST_DAMPING = 1e-15  # below, adding it changes nothing


def descend(curve: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], start: np.ndarray, y: np.ndarray,
            least: np.ndarray | None = None, huber: float = math.inf,
            tolerance: float = 1e-10) -> tuple[np.ndarray, np.ndarray]:
  """Levenberg-Marquardt with damping by the diagonal; a Huber loss by weights that are renewed at each step.

  Args:
    curve: constants [P] -> values [N] and their derivatives [N P].
    start: constants to begin with.
    y: what the values should be.
    least: lower bounds of the constants.
    huber: residuals beyond this count linearly; infinite is least squares.
    tolerance: it ends at a step that lowers the cost by less than this share of it.

  Returns:
    The constants and the values there.
  """
  at, (values, slopes) = start, curve(start)
  cost, damping = _cost(y - values, huber), 1e-3
  for _ in range(200):
    error = y - values
    weight = np.ones_like(error) if math.isinf(huber) else np.minimum(1, huber / np.maximum(np.abs(error), 1e-300))
    push = slopes.T @ (weight * error)
    free = np.ones(len(at), bool) if least is None else (at > least) | (push > 0)  # not those held at their bound
    square = (slopes.T @ (weight[:, None] * slopes))[free][:, free]
    scale = np.diag(square) + 1e-14 * np.trace(square) + 1e-300
    new = at.copy()
    try:
      new[free] += np.linalg.solve(square + damping * np.diag(scale), push[free])
    except np.linalg.LinAlgError:  # a constant that the values no longer depend on
      damping *= 10
      continue
    new = new if least is None else np.maximum(new, least)
    trial, trial_slopes = curve(new)
    found = _cost(y - trial, huber)
    if found < cost:
      gain, at, values, slopes, cost = (cost - found) / cost, new, trial, trial_slopes, found
      damping = max(damping / 10, _LEAST_DAMPING)
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
