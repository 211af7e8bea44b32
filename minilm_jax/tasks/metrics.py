"""Computes metrics, baselines and intervals, and chooses learning rates by held-out scores.

Metrics of a classification are functions of the confusion matrix, counts `[true, predicted]`. The
same functions thus serve a set of examples, bootstrap samples and the expectation of a random
prediction. Values equal those of scikit-learn and SciPy, also for undefined metrics. All values are
shares or correlations, not percentages.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import stats

from minilm_jax.core.errors import InputError, check_name
from minilm_jax.tasks.task import REGRESSION, Task

CONFIDENCE = 0.95
BEST_EPOCH, LAST_EPOCH = 'best', 'last'  # epochs of reported scores; best on held-out examples
POWER = 0.8  # of a test, for the smallest detectable effect
_NUM_BINS = 15  # of the calibration error
_NUM_BOOTSTRAP = 2000  # samples; fewer samples would change the second digit of an interval
_BOOTSTRAP_SEED = 0
_MIN_PROBABILITY = 1e-12  # bounds the loss of an underflowed probability to 27.6 nats
Labels = Int[np.ndarray, 'n']  # functions check n against the other arguments
Values = Shaped[np.ndarray, '...']  # functions check the shape against the other arguments
Counts = Float[np.ndarray, '*a C C']  # true class, predicted class


def score_probabilities(
  probabilities: Float[np.ndarray, 'N C'], labels: Labels
) -> dict[str, float]:
  """Returns the scores of the probabilities of classes.

  - 'negative log-likelihood': the mean of -ln p(label), in nats.
  - 'calibration error': the expected calibration error (Guo et al., 2017). Examples are binned by
    confidence, the probability of the predicted class, into the intervals ((b - 1) / 15, b / 15].
    The error is sum_b n_b / N |accuracy_b - confidence_b|. On few examples, a calibrated model also
    has a positive error: about sqrt(2 / pi) times the mean over bins of the standard error of a
    share.
  - 'Brier score': the mean of sum_c (p_c - [c is the label])^2, from 0 to 2 (Brier, 1950).

  Raises:
    InputError: The labels are empty, not as many as the rows, or not class indices.

  >>> scores = score_probabilities(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([0, 1]))
  >>> {name: round(score, 4) for name, score in scores.items()}
  {'negative log-likelihood': 0.3466, 'calibration error': 0.25, 'Brier score': 0.25}
  """
  if not len(labels) or len(labels) != len(probabilities):
    raise InputError(
      'a score of probabilities',
      f'{len(probabilities)} rows for {len(labels)} labels',
      'give at least one label, and a row for each label',
    )
  if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
    raise InputError(
      f'a score of {probabilities.shape[1]} probabilities an example',
      f'labels from {labels.min()} to {labels.max()}',
      'give labels that are class indices',
    )
  of_label = np.take_along_axis(probabilities, labels[:, None].astype(np.int64), axis=-1)[:, 0]
  confidence, correct = probabilities.max(-1), probabilities.argmax(-1) == labels
  bin_indices = np.clip(np.ceil(confidence * _NUM_BINS).astype(int) - 1, 0, _NUM_BINS - 1)
  gaps = np.bincount(bin_indices, weights=correct - confidence, minlength=_NUM_BINS)
  return {
    'negative log-likelihood': float(-np.log(np.maximum(of_label, _MIN_PROBABILITY)).mean()),
    'calibration error': float(np.abs(gaps).sum() / len(labels)),
    'Brier score': float(((probabilities**2).sum(-1) - 2 * of_label + 1).mean()),
  }


def confusion_matrix(
  predictions: Int[np.ndarray, 'n'], labels: Int[np.ndarray, 'n'], classes: int
) -> Float[np.ndarray, 'classes classes']:
  """Returns counts of examples by true class (row) and predicted class (column).

  >>> confusion_matrix(np.array([1, 1, 0]), np.array([1, 0, 0]), 2)
  array([[1., 1.],
         [0., 1.]])
  """
  cells = labels.astype(np.int64) * classes + predictions
  return np.bincount(cells, minlength=classes**2).reshape(classes, classes).astype(np.float64)


def accuracy(counts: Counts) -> Float[np.ndarray, '*a']:
  """Returns the share of examples on the diagonal."""
  return np.asarray(np.trace(counts, axis1=-2, axis2=-1) / counts.sum((-2, -1)))


def f1(counts: Counts) -> Float[np.ndarray, '*a']:
  """Returns 2 TP / (2 TP + FP + FN) of class 1; 0 if neither labels nor predictions have it."""
  total = counts[..., 1, :].sum(-1) + counts[..., :, 1].sum(-1)
  return _ratio(2 * counts[..., 1, 1], total, total > 0)


def matthews(counts: Counts) -> Float[np.ndarray, '*a']:
  """Returns the Matthews correlation of any number of classes (Gorodkin, 2004).

  The value is (s c - t . p) / sqrt((s^2 - t . t) (s^2 - p . p)), for s examples, c correct
  predictions, and counts t and p of true and predicted classes. Constant labels or predictions
  give 0.

  >>> matthews(np.array([[1.0, 0.0], [1.0, 2.0]])).round(4)
  np.float64(0.5774)
  """
  true, predicted, total = counts.sum(-1), counts.sum(-2), counts.sum((-2, -1))
  covariance = total * np.trace(counts, axis1=-2, axis2=-1) - (true * predicted).sum(-1)
  variances = (total**2 - (true**2).sum(-1)) * (total**2 - (predicted**2).sum(-1))
  return _ratio(covariance, np.sqrt(np.maximum(variances, 0)), variances > 0)


def _ratio(
  numerator: Float[np.ndarray | np.float64, '*a'],
  denominator: Float[np.ndarray | np.float64, '*a'],
  defined: Bool[np.ndarray | np.bool, '*a'],
) -> Float[np.ndarray, '*a']:
  zeros = np.zeros(np.shape(numerator))
  return np.asarray(np.divide(numerator, denominator, out=zeros, where=defined))


def pearson(predictions: Float[np.ndarray, 'n'], labels: Float[np.ndarray, 'n']) -> float:
  """Returns the linear correlation; nan for constant or non-finite values or a single example."""
  return _correlate(stats.pearsonr, predictions, labels)


def spearman(predictions: Float[np.ndarray, 'n'], labels: Float[np.ndarray, 'n']) -> float:
  """Returns the correlation of ranks, with mean ranks of ties; nan as for `pearson`."""
  return _correlate(stats.spearmanr, predictions, labels)


def _correlate(function: Callable, predictions: Values, labels: Values) -> float:
  if len(labels) < 2 or not (np.isfinite(predictions).all() and np.isfinite(labels).all()):
    return math.nan
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # constant values give nan
    return float(function(predictions.astype(np.float64), labels.astype(np.float64)).statistic)


CLASS_METRICS: dict[str, Callable] = {
  'accuracy': accuracy,
  'f1': f1,
  'accuracy_f1': lambda counts: (accuracy(counts) + f1(counts)) / 2,
  'matthews': matthews,
}
NUMBER_METRICS: dict[str, Callable] = {
  'pearson': pearson,
  'spearman': spearman,
  'pearson_spearman': lambda *arrays: (pearson(*arrays) + spearman(*arrays)) / 2,
}
METRICS = CLASS_METRICS | NUMBER_METRICS


def compute_metric(names: tuple[str, ...], predictions: Values, labels: Values) -> dict[str, float]:
  """Returns each metric of `METRICS` by name, of class indices or of numbers.

  Raises:
    InputError: A metric or label is unknown, the arrays are empty or differ in shape, or classes
      are not integers.
  """
  predictions, labels, counts = _check_predictions(names, predictions, labels)
  return {
    name: float(
      CLASS_METRICS[name](counts)
      if name in CLASS_METRICS
      else NUMBER_METRICS[name](predictions, labels)
    )
    for name in names
  }


def _check_predictions(
  names: tuple[str, ...], predictions: Values, labels: Values
) -> tuple[Values, Values, Counts | None]:
  """Returns valid arrays and, if a name is of a metric of classes, their confusion matrix.

  The matrix has the classes 0 to the highest index, at least two. Absent classes do not change any
  metric.
  """
  predictions, labels = np.asarray(predictions), np.asarray(labels)
  subject = f'the metrics {", ".join(names)}'
  for name in names:
    check_name(f'the metric {name!r}', 'metric', name, METRICS)
  if predictions.shape != labels.shape or labels.ndim != 1 or not labels.size:
    raise InputError(
      subject,
      f'predictions {predictions.shape}, labels {labels.shape}',
      'give at least one label, and a prediction for each label',
    )
  is_classes = all(np.issubdtype(array.dtype, np.integer) for array in (labels, predictions))
  needs_classes = bool(set(names) & CLASS_METRICS.keys())
  if needs_classes and not is_classes:
    raise InputError(
      subject,
      f'predictions {predictions.dtype}, labels {labels.dtype}',
      'give class indices as integers, or score numbers by pearson and spearman',
    )
  if is_classes and labels.min() < 0:
    raise InputError(
      subject,
      f'{np.sum(labels < 0):,} examples without a label',
      'use a labelled split; the test splits of GLUE have no labels',
    )
  if not needs_classes:
    return predictions, labels, None
  classes = int(max(predictions.max(), labels.max(), 1)) + 1
  return predictions, labels, confusion_matrix(predictions, labels, classes)


def compute_intervals(
  names: tuple[str, ...], predictions: Values, labels: Values
) -> dict[str, tuple[float, float]]:
  """Returns the 95% interval of each metric over samples of equally many examples.

  - Accuracy: Wilson's interval, which has a positive width also at 0 and 1.
  - Other metrics of classes: percentiles of 2,000 multinomial draws of the confusion matrix with a
    fixed seed; 'accuracy_f1' is the mean within each draw.
  - Correlations: Fisher's z with variance 1 / (n - 3), and (1 + r^2 / 2) / (n - 3) for ranks
    (Bonett and Wright, 2000). 'pearson_spearman' has the mean ends of both intervals, which are
    too wide if the two correlations vary independently.

  The variation between seeds is not included.

  Returns:
    (low, high) by name. Both are nan if all draws agree, as for perfect or constant predictions.
    Correlations also have nan if they are perfect or undefined, or of fewer than four examples.

  Raises:
    InputError: As for `compute_metric`.
  """
  predictions, labels, counts = _check_predictions(names, predictions, labels)
  intervals = {
    name: _fisher_interval(name, predictions, labels) for name in names if name in NUMBER_METRICS
  }
  if counts is not None and 'accuracy' in names:
    trials = stats.binomtest(int(np.trace(counts)), len(labels))
    low, high = trials.proportion_ci(CONFIDENCE, 'wilson')
    intervals['accuracy'] = (float(low), float(high))
  # The draws take 2,000 times the memory of the confusion matrix.
  if counts is not None and (drawn := CLASS_METRICS.keys() & set(names) - {'accuracy'}):
    shares, random = counts.ravel() / len(labels), np.random.default_rng(_BOOTSTRAP_SEED)
    draws = random.multinomial(len(labels), shares, _NUM_BOOTSTRAP)
    draws = draws.reshape(-1, *counts.shape).astype(np.float64)
    percentiles = [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)]
    for name in drawn:
      low, high = np.percentile(CLASS_METRICS[name](draws), percentiles).tolist()
      intervals[name] = (low, high) if low < high else (math.nan, math.nan)
  return {name: intervals[name] for name in names}


def _fisher_interval(name: str, predictions: Values, labels: Values) -> tuple[float, float]:
  if name == 'pearson_spearman':
    low, high = np.mean(
      [_fisher_interval(part, predictions, labels) for part in ('pearson', 'spearman')], 0
    )
    return float(low), float(high)
  r, n = NUMBER_METRICS[name](predictions, labels), len(labels)
  if not abs(r) < 1 - 1e-12 or n < 4:  # also true if r is nan
    return math.nan, math.nan
  variance = (1 + r**2 / 2 if name == 'spearman' else 1) / (n - 3)
  margin = stats.norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt(variance)
  return math.tanh(math.atanh(r) - margin), math.tanh(math.atanh(r) + margin)


def compute_majority_baseline(task: Task, train_labels: Values, labels: Values) -> dict[str, float]:
  """Returns the scores of a constant prediction: the most frequent training class.

  Ties predict the class with the smaller index. A regression predicts the mean training label.
  """
  constant = (
    train_labels.mean() if task.kind == REGRESSION else np.argmax(np.bincount(train_labels))
  )
  return compute_metric(task.metrics, np.full(len(labels), constant), labels)


def compute_frequency_baseline(
  task: Task, train_labels: Values, labels: Values
) -> dict[str, float]:
  """Returns the expected scores of random predictions with the frequencies of training labels.

  Scores are metrics of the expected confusion matrix, which is exact for accuracy and approximate
  for other metrics. A regression has nan.
  """
  if task.kind == REGRESSION:
    return dict.fromkeys(task.metrics, math.nan)
  classes = int(max(train_labels.max(), labels.max(), 1)) + 1
  frequencies = np.bincount(train_labels, minlength=classes) / len(train_labels)
  counts = np.bincount(labels, minlength=classes)[:, None] * frequencies[None]
  return {name: float(CLASS_METRICS[name](counts)) for name in task.metrics}


def is_constant(predictions: Values) -> bool:
  """Returns whether all predictions are equal or a prediction is not finite.

  >>> is_constant(np.array([1, 1, 1])), is_constant(np.array([0.1, 0.2]))
  (True, False)
  """
  predictions = np.asarray(predictions)
  if not np.isfinite(predictions).all():
    return True
  # Predictions that differ only by rounding count as equal.
  return bool(np.ptp(predictions) <= 1e-6 * np.abs(predictions).max()) if predictions.size else True


def confidence_interval(
  values: Sequence[float] | Float[np.ndarray, 'n'],
) -> tuple[float, float]:
  """Returns Student's 95% interval of the mean of independent values; nan below two values."""
  n = len(values)
  if n < 2:
    return math.nan, math.nan
  margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
  mean = float(np.mean(values))
  return mean - margin, mean + margin


def smallest_detectable_effect(values: Sequence[float]) -> float:
  """Returns the smallest mean that a two-sided t test at 5% finds with a power of 80%.

  The approximation (t_0.975 + t_0.8) s / sqrt(n) is for n independent values of standard deviation
  s; nan below two values.
  """
  n = len(values)
  if n < 2:
    return math.nan
  quantiles = stats.t.ppf([(1 + CONFIDENCE) / 2, POWER], n - 1)
  return float(quantiles.sum() * np.std(values, ddof=1) / np.sqrt(n))


def percentile_interval(values: Sequence[float] | Float[np.ndarray, 'n']) -> tuple[float, float]:
  """Returns the 95% interval of a number from its resampled values."""
  low, high = np.percentile(values, (2.5, 97.5))
  return float(low), float(high)


def summarize(values: Sequence[float] | Float[np.ndarray, 'n']) -> dict[str, Any]:
  """Returns 'mean', 'std' (divided by n - 1), 'n', and the 95% interval 'low', 'high' of the mean.

  A nan value makes all but 'n' nan.
  """
  low, high = confidence_interval(values)
  n = len(values)
  return {
    'mean': float(np.mean(values)) if n else math.nan,
    'std': float(np.std(values, ddof=1)) if n > 1 else math.nan,
    'n': n,
    'low': low,
    'high': high,
  }


def choose_rates(lines: Iterable[Mapping[str, Any]]) -> tuple[float | None, ...]:
  """Returns the learning rate with the highest mean `validation_score` over seeds.

  Scores that are not finite count as 0, also if all are. Of rates with equal scores the lowest is
  chosen. Without held-out examples all rates are returned.

  Args:
    lines: lines of scores.jsonl that differ in seed, learning rate, metric and epoch alone.
  """
  lines = list(lines)
  epoch_choice = choose_epoch(lines)
  by_rate: dict[float | None, dict[int, float]] = {}
  for line in lines:
    scores = by_rate.setdefault(line['learning_rate'], {})
    if line['epoch_choice'] == epoch_choice:
      score = line['validation_score']
      scores[line['seed']] = score if score is not None and math.isfinite(score) else 0.0
  rates = tuple(sorted(by_rate, key=lambda rate: -math.inf if rate is None else rate))
  if len(rates) < 2 or not any(line['held_out'] for line in lines):
    return rates
  means = {rate: np.mean([*scores.values()]) for rate, scores in by_rate.items() if scores}
  return (max(rates, key=lambda rate: means.get(rate, -math.inf)),)


def choose_epoch(lines: Iterable[Mapping[str, Any]]) -> str:
  """Returns the epoch choice that reports show."""
  return BEST_EPOCH if any(line['epoch_choice'] == BEST_EPOCH for line in lines) else LAST_EPOCH
