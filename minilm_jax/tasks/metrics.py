"""How predictions are scored, what is no achievement, and how sure a score is, over examples and
over seeds.

A classification is scored from its confusion matrix, `[true, said]` counts, so that one function
serves a set of examples, thousands of resampled ones, and what a guess would give in expectation.
Values are those of scikit-learn and SciPy, also where a metric is undefined, and are shares or
correlations, never percentages. What is predicted, and from what, is left to others.
"""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import stats

from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.tasks.task import REGRESSION, Task

# How good probabilities are: negative log-likelihood, Brier score, calibration error.
NUM_BINS = 15
_MIN_PROBABILITY = 1e-12  # a probability that has underflowed costs 27.6 nats, and not everything
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
  _check_probabilities(probabilities, labels)
  return float(
    -np.log(np.maximum(_label_probabilities(probabilities, labels), _MIN_PROBABILITY)).mean()
  )


def brier_score(probabilities: Float[np.ndarray, 'N C'], labels: Labels) -> float:
  """Mean over examples of sum_c (p_c - [c is the label])^2, from 0 to 2 (Brier, 1950).

  >>> brier_score(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([0, 1]))
  0.25
  """
  _check_probabilities(probabilities, labels)
  return float(
    ((probabilities**2).sum(-1) - 2 * _label_probabilities(probabilities, labels) + 1).mean()
  )


def calibration_error(
  probabilities: Float[np.ndarray, 'N C'], labels: Labels, bins: int = NUM_BINS
) -> float:
  """Expected calibration error: does a model that is p sure of its class get the share p right?

  The probability of the class that is said falls into one of `bins` bins of equal width, ((b - 1) /
  bins, b / bins]. The error is sum_b n_b / N |right_b - sure_b|, with the share of right answers
  and the mean probability of each bin (Guo et al., 2017). It is not below 0, so that even a perfect
  model has some on few examples: about sqrt(2 / pi) times the mean over bins of the standard error
  of a share.

  >>> round(calibration_error(np.array([[0.9, 0.1]] * 4), np.array([0, 0, 1, 1])), 4)
  0.4
  """
  _check_probabilities(probabilities, labels)
  sure, right = probabilities.max(-1), probabilities.argmax(-1) == labels
  place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
  gaps = np.bincount(place, weights=right - sure, minlength=bins)
  return float(np.abs(gaps).sum() / len(labels))


def _label_probabilities(
  probabilities: Float[np.ndarray, 'N C'], labels: Labels
) -> Float[np.ndarray, 'n']:
  return np.take_along_axis(probabilities, labels[:, None].astype(np.int64), axis=-1)[:, 0]


def _check_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> None:
  if not len(labels) or len(labels) != len(probabilities):
    raise InputError(
      'a score of probabilities',
      f'{len(probabilities)} rows for {len(labels)} labels',
      'give one row a label, and at least one',
    )
  if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
    raise InputError(
      f'a score of {probabilities.shape[1]} probabilities an example',
      f'labels from {labels.min()} to {labels.max()}',
      'give labels that are class indices',
    )


Values = Shaped[np.ndarray, '...']  # one an example; `compute` says so where they are not
Counts = Float[np.ndarray, '*a C C']  # true, said
CONFIDENCE = 0.95
_NUM_BOOTSTRAP, _SEED = 2000, 0  # of fewer draws the ends would move in their second digit


def confusion_matrix(
  predictions: Int[np.ndarray, 'n'], labels: Int[np.ndarray, 'n'], classes: int
) -> Float[np.ndarray, 'classes classes']:
  """How many examples of each true class (row) were said to be of each class (column).

  >>> confusion_matrix(np.array([1, 1, 0]), np.array([1, 0, 0]), 2)
  array([[1., 1.],
         [0., 1.]])
  """
  places = labels.astype(np.int64) * classes + predictions
  return np.bincount(places, minlength=classes**2).reshape(classes, classes).astype(np.float64)


def accuracy(counts: Counts) -> Float[np.ndarray, '*a']:
  """The share of examples on the diagonal."""
  return np.asarray(np.trace(counts, axis1=-2, axis2=-1) / counts.sum((-2, -1)))


def f1(counts: Counts) -> Float[np.ndarray, '*a']:
  """2 TP / (2 TP + FP + FN) of class 1; 0 where nothing is, and nothing is said to be, of class 1."""
  either = counts[..., 1, :].sum(-1) + counts[..., :, 1].sum(-1)
  return _ratio(2 * counts[..., 1, 1], either, either > 0)


def matthews(counts: Counts) -> Float[np.ndarray, '*a']:
  """Matthews' correlation, for any number of classes (Gorodkin, 2004); 0 where either side is
  constant.

  (s c - t . p) / sqrt((s^2 - t . t) (s^2 - p . p)), with s examples, c of them right, t true and p
  said of each class.

  >>> matthews(np.array([[1.0, 0.0], [1.0, 2.0]])).round(4)
  np.float64(0.5774)
  """
  true, said, total = counts.sum(-1), counts.sum(-2), counts.sum((-2, -1))
  above = total * np.trace(counts, axis1=-2, axis2=-1) - (true * said).sum(-1)
  below = (total**2 - (true**2).sum(-1)) * (total**2 - (said**2).sum(-1))
  return _ratio(above, np.sqrt(np.maximum(below, 0)), below > 0)


def _ratio(
  above: Float[np.ndarray | np.float64, '*a'],
  below: Float[np.ndarray | np.float64, '*a'],
  defined: Bool[np.ndarray | np.bool, '*a'],
) -> Float[np.ndarray, '*a']:
  return np.asarray(np.divide(above, below, out=np.zeros(np.shape(above)), where=defined))


def pearson(predictions: Float[np.ndarray, 'n'], labels: Float[np.ndarray, 'n']) -> float:
  """The linear correlation; nan where either side is constant or not finite, or with fewer than two
  examples.
  """
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


OF_COUNTS: dict[str, Callable] = {
  'accuracy': accuracy,
  'f1': f1,
  'accuracy_f1': lambda counts: (accuracy(counts) + f1(counts)) / 2,
  'matthews': matthews,
}
OF_NUMBERS: dict[str, Callable] = {
  'pearson': pearson,
  'spearman': spearman,
  'pearson_spearman': lambda *both: (pearson(*both) + spearman(*both)) / 2,
}
METRICS = OF_COUNTS | OF_NUMBERS


def compute_metric(names: tuple[str, ...], predictions: Values, labels: Values) -> dict[str, float]:
  """Each metric by name.

  Args:
    names: rows of `METRICS`.
    predictions: class indices or, in a regression, numbers.
    labels: of the same kind.

  Raises:
    InputError: no such metric, nothing to score, not one prediction a label, labels that are
      unknown, or numbers where classes are scored.
  """
  predictions, labels = _checked(names, predictions, labels)
  counts = _counts(predictions, labels) if set(names) & OF_COUNTS.keys() else None
  return {
    name: float(
      OF_COUNTS[name](counts) if name in OF_COUNTS else OF_NUMBERS[name](predictions, labels)
    )
    for name in names
  }


def _checked(names: tuple[str, ...], predictions: Values, labels: Values) -> tuple[Values, Values]:
  predictions, labels = np.asarray(predictions), np.asarray(labels)
  what = f'scores by {", ".join(names)}'
  for name in names:
    if name not in METRICS:
      raise InputError(f'the metric {name!r}', 'no such metric', suggest_name(name, METRICS))
  if predictions.shape != labels.shape or labels.ndim != 1 or not labels.size:
    raise InputError(
      what,
      f'predictions {predictions.shape}, labels {labels.shape}',
      'give one prediction for each of at least one label',
    )
  whole = np.issubdtype(labels.dtype, np.integer) and np.issubdtype(predictions.dtype, np.integer)
  if set(names) & OF_COUNTS.keys() and not whole:
    raise InputError(
      what,
      f'predictions {predictions.dtype}, labels {labels.dtype}',
      'give classes as whole numbers, or judge numbers by pearson and spearman',
    )
  if whole and labels.min() < 0:
    raise InputError(
      what,
      f'{np.sum(labels < 0):,} examples without a label',
      'score a split with labels: the test splits of GLUE have none',
    )
  return predictions, labels


def _counts(
  predictions: Int[np.ndarray, 'n'], labels: Int[np.ndarray, 'n']
) -> Float[np.ndarray, 'C C']:
  """Classes are those up to the highest that occurs, and at least two; one that never occurs
  changes no metric.
  """
  return confusion_matrix(predictions, labels, int(max(predictions.max(), labels.max(), 1)) + 1)


def resample_counts(
  names: tuple[str, ...], predictions: Values, labels: Values
) -> dict[str, tuple[float, float]]:
  """The 95% interval of each metric over examples: what another sample of as many examples might
  have given.

  It says nothing about other seeds. Accuracy, a share of independent trials, has Wilson's interval,
  which keeps a width where all or none are right. Its fellows have percentiles of 2,000 multinomial
  draws of the confusion matrix, the same ones every time; 'accuracy_f1' is a mean within each draw.
  Correlations have Fisher's z with variance 1 / (n - 3), for ranks (1 + r^2 / 2) / (n - 3) (Bonett
  and Wright, 2000); 'pearson_spearman' has the means of their ends: right as far as the two go up
  and down together, and too wide otherwise.

  Args:
    names, predictions, labels: as for `compute`.

  Returns:
    (low, high) by name; nan where the method is blind: all draws agree (predictions that are
    perfect or constant), a correlation is perfect or undefined, or there are fewer than four
    examples to correlate.

  Raises:
    InputError: as `compute` does.
  """
  predictions, labels = _checked(names, predictions, labels)
  counts = _counts(predictions, labels) if set(names) & OF_COUNTS.keys() else None
  drawn = None
  if set(names) & (OF_COUNTS.keys() - {'accuracy'}):
    shares, random = counts.ravel() / len(labels), np.random.default_rng(_SEED)
    drawn = (
      random.multinomial(len(labels), shares, _NUM_BOOTSTRAP)
      .reshape(-1, *counts.shape)
      .astype(np.float64)
    )
  found = {}
  for name in names:
    if name == 'accuracy':
      trials = stats.binomtest(int(np.trace(counts)), len(labels))
      found[name] = tuple(map(float, trials.proportion_ci(CONFIDENCE, 'wilson')))
    elif name in OF_COUNTS:
      low, high = np.percentile(
        OF_COUNTS[name](drawn), [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)]
      ).tolist()
      found[name] = (low, high) if low < high else (math.nan, math.nan)
    else:
      found[name] = _fisher(name, predictions, labels)
  return found


def _fisher(name: str, predictions: Values, labels: Values) -> tuple[float, float]:
  if name == 'pearson_spearman':
    (a, b), (c, d) = (_fisher(part, predictions, labels) for part in ('pearson', 'spearman'))
    return (a + c) / 2, (b + d) / 2
  r, n = OF_NUMBERS[name](predictions, labels), len(labels)
  if not abs(r) < 1 - 1e-12 or n < 4:  # also where r is nan
    return math.nan, math.nan
  variance = (1 + r**2 / 2 if name == 'spearman' else 1) / (n - 3)
  half = stats.norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt(variance)
  return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def majority_baseline(task: Task, train_labels: Values, labels: Values) -> dict[str, float]:
  """What always saying the most frequent class of the training labels scores (in a regression,
  their mean).

  Of classes that are equally frequent it is the first.
  """
  train_labels = _require_examples(task, train_labels)
  always = train_labels.mean() if task.kind == REGRESSION else np.argmax(np.bincount(train_labels))
  return compute_metric(task.metrics, np.full(len(labels), always), labels)


def frequency_baseline(task: Task, train_labels: Values, labels: Values) -> dict[str, float]:
  """What saying each class as often as it stands in the training labels, at random, scores in
  expectation.

  The metric of the expected confusion matrix, which is the expected metric itself for accuracy and
  nearly so for the others. In a regression it is undefined: numbers drawn at random correlate with
  nothing, but not by exactly 0.
  """
  train_labels, labels = _require_examples(task, train_labels), np.asarray(labels)
  if task.kind == REGRESSION:
    return dict.fromkeys(task.metrics, math.nan)
  _checked(task.metrics, labels, labels)
  classes = int(max(train_labels.max(), labels.max(), 1)) + 1
  said = np.bincount(train_labels, minlength=classes) / len(train_labels)
  counts = np.bincount(labels, minlength=classes)[:, None] * said[None]
  return {name: float(OF_COUNTS[name](counts)) for name in task.metrics}


def _require_examples(task: Task, train_labels: Values) -> Values:
  train_labels = np.asarray(train_labels)
  if not train_labels.size:
    raise InputError(
      f'what the training labels of {task.name} say', 'no training labels', 'give at least one'
    )
  return train_labels


def is_constant(predictions: Values) -> bool:
  """Has the model given up: is the prediction the same for every example (or not a number)?

  >>> is_constant(np.array([1, 1, 1])), is_constant(np.array([0.1, 0.2]))
  (True, False)
  """
  predictions = np.asarray(predictions)
  if not np.isfinite(predictions).all():
    return True
  # Outputs that differ by rounding alone say no more than equal ones.
  return bool(np.ptp(predictions) <= 1e-6 * np.abs(predictions).max()) if predictions.size else True


def confidence_interval(
  values: Sequence[float] | Float[np.ndarray, 'n'], level: float = 0.95
) -> tuple[float, float]:
  """The interval of Student's t for the mean of independent values, such as one a seed; nan below
  two values.
  """
  n = len(values)
  if n < 2:
    return math.nan, math.nan
  half = float(stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
  mean = float(np.mean(values))
  return mean - half, mean + half


def summarize(values: Sequence[float] | Float[np.ndarray, 'n']) -> dict[str, float]:
  """The line of a table: 'mean', 'std' (n - 1 below it), 'n', and 'low' and 'high', the 95%
  interval of the mean.

  A value that is nan makes all but 'n' nan: the mean is not known.
  """
  low, high = confidence_interval(values)
  n = len(values)
  mean, std = (
    (float(np.mean(values)) if n else math.nan),
    (float(np.std(values, ddof=1)) if n > 1 else math.nan),
  )
  return {'mean': mean, 'std': std, 'n': n, 'low': low, 'high': high}
