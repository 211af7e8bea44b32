"""How good probabilities are: negative log-likelihood, Brier score, calibration error.

All take probabilities `[N C]` of N examples and their labels `[N]`, on the host, and are means over examples.
"""

import numpy as np
from jaxtyping import Float, Int

from minilm_jax.errors import InputError

BINS = 15
_LEAST = 1e-12  # a probability that has underflowed costs 27.6 nats, and not everything
Labels = Int[np.ndarray, 'n']  # as many as rows; what is scored says so where they are not


def softmax(logits: Float[np.ndarray, '*M N C']) -> Float[np.ndarray, '*M N C']:
  """Probabilities in float64: exp(z) / sum exp(z) over the last axis.

  >>> softmax(np.array([[0.0, 0.0]]))
  array([[0.5, 0.5]])
  """
  shifted = np.asarray(logits, np.float64)
  shifted = np.exp(shifted - shifted.max(-1, keepdims=True))
  return shifted / shifted.sum(-1, keepdims=True)


def negative_log_likelihood(probabilities: Float[np.ndarray, 'N C'], labels: Labels) -> float:
  """Mean of -ln p(label), in nats.

  >>> round(negative_log_likelihood(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([0, 1])), 4)
  0.3466
  """
  _check(probabilities, labels)
  return float(-np.log(np.maximum(_of_labels(probabilities, labels), _LEAST)).mean())


def brier(probabilities: Float[np.ndarray, 'N C'], labels: Labels) -> float:
  """Mean over examples of sum_c (p_c - [c is the label])^2, from 0 to 2 (Brier, 1950).

  >>> brier(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([0, 1]))
  0.25
  """
  _check(probabilities, labels)
  return float(((probabilities**2).sum(-1) - 2 * _of_labels(probabilities, labels) + 1).mean())


def calibration_error(probabilities: Float[np.ndarray, 'N C'], labels: Labels, bins: int = BINS) -> float:
  """Expected calibration error: does a model that is p sure of its class get the share p right?

  The probability of the class that is said falls into one of `bins` bins of equal width, ((b - 1) / bins, b / bins].
  The error is sum_b n_b / N |right_b - sure_b|, with the share of right answers and the mean probability of each bin
  (Guo et al., 2017). It is not below 0, so that even a perfect model has some on few examples: about
  sqrt(2 / pi) times the mean over bins of the standard error of a share.

  >>> round(calibration_error(np.array([[0.9, 0.1]] * 4), np.array([0, 0, 1, 1])), 4)
  0.4
  """
  _check(probabilities, labels)
  sure, right = probabilities.max(-1), probabilities.argmax(-1) == labels
  place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
  gaps = np.bincount(place, weights=right - sure, minlength=bins)
  return float(np.abs(gaps).sum() / len(labels))


def _of_labels(probabilities: Float[np.ndarray, 'N C'], labels: Labels) -> Float[np.ndarray, 'n']:
  return np.take_along_axis(probabilities, labels[:, None].astype(np.int64), axis=-1)[:, 0]


def _check(probabilities: np.ndarray, labels: np.ndarray) -> None:
  if not len(labels) or len(labels) != len(probabilities):
    raise InputError('a score of probabilities', f'{len(probabilities)} rows for {len(labels)} labels',
                     'give one row a label, and at least one')
  if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
    raise InputError(f'a score of {probabilities.shape[1]} probabilities an example',
                     f'labels from {labels.min()} to {labels.max()}', 'give labels that are class indices')
