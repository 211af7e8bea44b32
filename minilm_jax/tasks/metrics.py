"""How predictions are scored, what is no achievement, and how sure a mean over seeds is.

Values are those of scikit-learn and SciPy, also where a metric is undefined, and are shares or correlations, never
percentages. What is predicted, and from what, is left to others.
"""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import stats

from minilm_jax.errors import InputError, nearest
from minilm_jax.tasks.table import REGRESSION, Task

Values = Shaped[np.ndarray, '...']  # one an example; `compute` says so where they are not


def accuracy(predictions: Int[np.ndarray, 'n'], labels: Int[np.ndarray, 'n']) -> float:
  """The share of predictions that are right."""
  return float(np.mean(predictions == labels))


def f1(predictions: Int[np.ndarray, 'n'], labels: Int[np.ndarray, 'n']) -> float:
  """2 TP / (2 TP + FP + FN) of class 1; 0 where nothing is, and nothing is said to be, of class 1."""
  right = np.sum((predictions == 1) & (labels == 1))
  said = np.sum(predictions == 1) + np.sum(labels == 1)
  return float(2 * right / said) if said else 0.0


def matthews(predictions: Int[np.ndarray, 'n'], labels: Int[np.ndarray, 'n']) -> float:
  """Matthews' correlation, for any number of classes (Gorodkin's form); 0 where either side is constant.

  >>> matthews(np.array([1, 1, 0, 0]), np.array([1, 1, 0, 1])).__round__(4)
  0.5774
  """
  classes = np.union1d(predictions, labels)
  said = (predictions[:, None] == classes).astype(np.float64)
  are = (labels[:, None] == classes).astype(np.float64)
  said, are = said - said.mean(0), are - are.mean(0)
  spread = np.sum(said**2) * np.sum(are**2)
  return float(np.sum(said * are) / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(predictions: Float[np.ndarray, 'n'], labels: Float[np.ndarray, 'n']) -> float:
  """The linear correlation; nan where either side is constant or not finite, or with fewer than two examples."""
  return _correlation(stats.pearsonr, predictions, labels)


def spearman(predictions: Float[np.ndarray, 'n'], labels: Float[np.ndarray, 'n']) -> float:
  """The correlation of ranks, ties sharing their mean rank; nan where `pearson` is."""
  return _correlation(stats.spearmanr, predictions, labels)


def _correlation(function: Callable, predictions: Values, labels: Values) -> float:
  if len(labels) < 2 or not (np.isfinite(predictions).all() and np.isfinite(labels).all()):
    return math.nan
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # a constant side is told by the nan, and by `collapsed`
    return float(function(predictions.astype(np.float64), labels.astype(np.float64)).statistic)


def _mean_of(*metrics: Callable[[Values, Values], float]) -> Callable[[Values, Values], float]:
  return lambda predictions, labels: sum(metric(predictions, labels) for metric in metrics) / len(metrics)


METRICS: dict[str, Callable[[Values, Values], float]] = {
    'accuracy': accuracy, 'f1': f1, 'accuracy_f1': _mean_of(accuracy, f1), 'matthews': matthews,
    'pearson': pearson, 'spearman': spearman, 'pearson_spearman': _mean_of(pearson, spearman),
}


def compute(names: tuple[str, ...], predictions: Values, labels: Values) -> dict[str, float]:
  """Each metric by name.

  Args:
    names: rows of `METRICS`.
    predictions: class indices or, in a regression, numbers.
    labels: of the same kind.

  Raises:
    InputError: no such metric, nothing to score, not one prediction a label, or class labels that are unknown.
  """
  predictions, labels = np.asarray(predictions), np.asarray(labels)
  for name in names:
    if name not in METRICS:
      raise InputError(f'the metric {name!r}', 'no such metric', nearest(name, METRICS))
  if predictions.shape != labels.shape or labels.ndim != 1 or not labels.size:
    raise InputError(f'scores by {", ".join(names)}', f'predictions {predictions.shape}, labels {labels.shape}',
                     'give one prediction for each of at least one label')
  if np.issubdtype(labels.dtype, np.integer) and labels.min() < 0:
    raise InputError(f'scores by {", ".join(names)}', f'{np.sum(labels < 0):,} examples without a label',
                     'score a split with labels: the test splits of GLUE have none')
  return {name: METRICS[name](predictions, labels) for name in names}


def majority(task: Task, train_labels: Values, labels: Values) -> dict[str, float]:
  """What always saying the most frequent class of the training labels scores (in a regression, their mean).

  Of classes that are equally frequent it is the first.
  """
  train_labels = np.asarray(train_labels)
  if not train_labels.size:
    raise InputError(f'the majority class of {task.name}', 'no training labels', 'give at least one')
  always = np.mean(train_labels) if task.kind == REGRESSION else np.argmax(np.bincount(train_labels))
  return compute(task.metrics, np.full(len(labels), always), labels)


def collapsed(predictions: Values) -> bool:
  """Has the model given up: is the prediction the same for every example (or not a number)?

  >>> collapsed(np.array([1, 1, 1])), collapsed(np.array([0.1, 0.2]))
  (True, False)
  """
  predictions = np.asarray(predictions)
  if not np.isfinite(predictions).all():
    return True
  # Outputs that differ by rounding alone say no more than equal ones.
  return bool(np.ptp(predictions) <= 1e-6 * np.abs(predictions).max()) if predictions.size else True


def interval(values: Sequence[float] | Float[np.ndarray, 'n'], level: float = 0.95) -> tuple[float, float]:
  """The interval of Student's t for the mean of independent values, such as one a seed; nan below two values."""
  n = len(values)
  if n < 2:
    return math.nan, math.nan
  half = float(stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
  mean = float(np.mean(values))
  return mean - half, mean + half


def summary(values: Sequence[float] | Float[np.ndarray, 'n']) -> dict[str, float]:
  """The line of a table: 'mean', 'std' (n - 1 below it), 'n', and 'low' and 'high', the 95% interval of the mean.

  A value that is nan makes all but 'n' nan: the mean is not known.
  """
  low, high = interval(values)
  n = len(values)
  mean, std = (float(np.mean(values)) if n else math.nan), (float(np.std(values, ddof=1)) if n > 1 else math.nan)
  return {'mean': mean, 'std': std, 'n': n, 'low': low, 'high': high}
