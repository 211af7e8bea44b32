"""The law over parameters and tokens, L = E + A N^-alpha + B D^-beta.

It is the third approach of Hoffmann et al., Training Compute-Optimal Large Language Models (2022).
"""

import dataclasses
import itertools
import math

import numpy as np

from minilm_jax.analysis import laws
from minilm_jax.analysis.descent import descend
from minilm_jax.analysis.laws import Array, Fit
from minilm_jax.errors import InputError

DELTA = (
  1e-3  # of the Huber loss, as in the paper: but for the smallest errors it is the absolute error
)
NEEDS = 8
_KEYS = ('E', 'A', 'alpha', 'B', 'beta')
_LOWER_BOUNDS = np.array([-10.0, -50.0, 0.0, -50.0, 0.0])


def chinchilla(
  parameters: Array,
  tokens: Array,
  loss: Array,
  compute: Array,
  name: str = 'parameters and tokens',
  start: Fit | None = None,
) -> Fit:
  """L = E + A N^-alpha + B D^-beta, alpha and beta >= 0, by the Huber loss of log L.

  Its minimum is looked for from a grid of starts, or from the constants of another fit alone, as a bootstrap does. A
  and B are at 1 parameter and 1 token, far outside the data: only their products with the powers are well known.

  Args:
    parameters, tokens, loss: of evaluations.
    compute: their FLOPs, for the range that the fit is valid in; not part of the law.
    name: of the fit.
    start: an earlier fit of this form.

  Raises:
    InputError: fewer than 8 points, or 3 different numbers of parameters or of tokens, or values that are not positive
      numbers.
  """
  parameters, tokens, loss, compute = laws.checked(
    'a law over parameters and tokens', 3, parameters, tokens, loss, compute
  )
  if len(np.unique(tokens)) < 3 or len(loss) < NEEDS:
    raise InputError(
      'a law over parameters and tokens',
      f'{len(loss)} points with {len(np.unique(tokens))} different numbers of tokens',
      f'give at least {NEEDS} points, and 3 different numbers of tokens',
    )
  n, d, logs = np.log(parameters), np.log(tokens), np.log(loss)
  middle = np.array([n.mean(), d.mean()])

  def curve(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n_part = at[1] - at[2] * (n - middle[0])
    d_part = at[3] - at[4] * (d - middle[1])
    total = np.logaddexp(at[0], np.logaddexp(n_part, d_part))
    shares = np.exp(np.stack([np.full_like(total, at[0]), n_part, d_part], 1) - total[:, None])
    return total, np.stack(
      [
        shares[:, 0],
        shares[:, 1],
        -shares[:, 1] * (n - middle[0]),
        shares[:, 2],
        -shares[:, 2] * (d - middle[1]),
      ],
      1,
    )

  tolerance = 1e-10 if start is None else 1e-5  # the absolute error is slow to come down at the end
  found = [
    descend(curve, one, logs, least=_LOWER_BOUNDS, huber=DELTA, tolerance=tolerance)
    for one in _starts(loss, start, middle)
  ]
  at, said = min(found, key=lambda pair: _huber(logs - pair[1]))
  constants = {
    'E': math.exp(at[0]),
    'A': laws.exp_clipped(at[1] + at[2] * middle[0]),
    'alpha': at[2],
    'B': laws.exp_clipped(at[3] + at[4] * middle[1]),
    'beta': at[4],
  }
  fit = laws.made(name, laws.SURFACE, laws.HUBER, constants, parameters, loss, np.exp(said))
  return dataclasses.replace(fit, low=float(compute.min()), high=float(compute.max()))


def predict_surface(fit: Fit, parameters: Array, tokens: Array) -> Array:
  """The loss that the law gives for so many parameters and tokens."""
  floor, a, alpha, b, beta = (fit.constants[key] for key in _KEYS)
  return (
    floor
    + np.exp(math.log(a) - alpha * np.log(np.asarray(parameters, float)))
    + np.exp(math.log(b) - beta * np.log(np.asarray(tokens, float)))
  )


def _starts(loss: Array, start: Fit | None, middle: np.ndarray) -> list[np.ndarray]:
  if start is not None:
    floor, a, alpha, b, beta = (start.constants[key] for key in _KEYS)
    return [
      np.array(
        [
          math.log(floor),
          math.log(a) - alpha * middle[0],
          alpha,
          math.log(b) - beta * middle[1],
          beta,
        ]
      )
    ]
  rest = float(np.median(loss))
  return [
    np.array(
      [
        math.log(share * rest),
        math.log(part * (1 - share) * rest),
        alpha,
        math.log((1 - part) * (1 - share) * rest),
        beta,
      ]
    )
    for share, part, alpha, beta in itertools.product(
      (0.2, 0.6), (0.3, 0.7), (0.2, 0.6), (0.2, 0.6)
    )
  ]


def _huber(error: np.ndarray) -> float:
  size = np.abs(error)
  return float(np.sum(np.where(size <= DELTA, size * size, DELTA * (2 * size - DELTA))))
