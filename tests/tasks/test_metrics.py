"""Tests metrics, baselines and intervals against scikit-learn, SciPy and simulations."""

import math
import types
import warnings

import numpy as np
import pytest
from scipy import stats

from minilm_jax.core.errors import InputError
from minilm_jax.tasks import metrics
from minilm_jax.tasks.task import Task, find_task

COLA, MRPC, STSB = map(find_task, ('cola', 'mrpc', 'stsb'))


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
  return metrics.score_probabilities(probabilities, labels)['calibration error']


def test_a_calibrated_sample_has_nearly_no_calibration_error():
  draw = np.random.default_rng(0)
  confidence = draw.uniform(0.5, 1, 200_000)
  labels = (draw.uniform(size=confidence.size) >= confidence).astype(int)
  probabilities = np.stack([confidence, 1 - confidence], -1)
  assert calibration_error(probabilities, labels) < 0.005
  assert calibration_error(probabilities, 1 - labels) > 0.4


def test_calibration_error_equals_hand_computed_values():
  labels = np.repeat([0, 1], [70, 30])
  probabilities = np.tile([0.95, 0.05], (100, 1))  # 70% correct
  assert calibration_error(probabilities, labels) == pytest.approx(0.25)
  probabilities[:50] = 0.8, 0.2  # 50 of 50 correct at 0.8, then 20 of 50 at 0.95
  assert calibration_error(probabilities, labels) == pytest.approx(0.5 * 0.2 + 0.5 * 0.55)
  probabilities = np.array([[1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]])
  assert calibration_error(probabilities, np.array([0, 0])) == pytest.approx((1 - 1 / 3) / 2)
  # 0.6 = 9 / 15 ends a bin and 0.61 is in the next bin, so errors do not cancel.
  probabilities = np.array([[0.6, 0.4], [0.61, 0.39]])
  assert calibration_error(probabilities, np.array([0, 1])) == pytest.approx((0.4 + 0.61) / 2)


def test_probability_scores_of_uniform_and_certain_predictions():
  probabilities, labels = np.full((12, 4), 0.25), np.arange(12) % 4
  scores = metrics.score_probabilities(probabilities, labels)
  assert scores['negative log-likelihood'] == pytest.approx(math.log(4))
  assert scores['Brier score'] == pytest.approx(0.75)
  certain, wrong = np.eye(3), np.array([1, 2, 0])
  assert list(metrics.score_probabilities(certain, np.arange(3)).values()) == [0, 0, 0]
  scores = metrics.score_probabilities(certain, wrong)
  assert scores['Brier score'] == 2 and 20 < scores['negative log-likelihood'] < 30


@pytest.mark.parametrize(
  'rows, labels, match',
  [
    (2, [0], '2 rows for 1 '),
    (0, [], '0 rows for 0 '),
    (2, [0, 5], '0 to 5'),
    (2, [0, -1], '-1 to 0'),
  ],
)
def test_invalid_labels_of_probabilities_are_refused(rows: int, labels: list, match: str):
  with pytest.raises(InputError, match=match):
    metrics.score_probabilities(np.full((rows, 3), 1 / 3), np.array(labels, int))


random = np.random.default_rng(0)
LABELS = random.integers(0, 2, 200)
CLASSES = {
  'random': random.integers(0, 2, 200),
  'perfect': LABELS,
  'inverted': 1 - LABELS,
  'all 0': np.zeros(200, np.int64),
  'all 1': np.ones(200, np.int64),
  'mostly right': np.where(random.random(200) < 0.9, LABELS, 1 - LABELS),
  'int32': LABELS.astype(np.int32),
}
TARGETS = random.random(200) * 5
NUMBERS = {
  'random': random.normal(size=200),
  'perfect': TARGETS,
  'inverted': -TARGETS,
  'constant': np.full(200, 2.5),
  'ties': np.round(TARGETS + random.normal(size=200)),
  'single precision': (TARGETS**2).astype(np.float32),
}


@pytest.fixture(scope='module')
def reference() -> types.ModuleType:
  return pytest.importorskip('sklearn.metrics')


def approximate(values: dict[str, float]) -> object:
  return pytest.approx(values, abs=1e-9, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize('name', CLASSES)
@pytest.mark.parametrize('label_name', ['perfect', 'all 0', 'all 1'])
def test_class_metrics_equal_scikit_learn(name: str, label_name: str, reference: types.ModuleType):
  predictions, labels = CLASSES[name], CLASSES[label_name]
  values = metrics.compute_metric(tuple(metrics.CLASS_METRICS), predictions, labels)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    accuracy = reference.accuracy_score(labels, predictions)
    f1 = reference.f1_score(labels, predictions, zero_division=0)
    matthews = reference.matthews_corrcoef(labels, predictions)
  assert values == approximate(
    {'accuracy': accuracy, 'f1': f1, 'accuracy_f1': (accuracy + f1) / 2, 'matthews': matthews}
  )


def test_metrics_of_many_classes_equal_scikit_learn(reference: types.ModuleType):
  labels, predictions = random.integers(0, 5, 300), random.integers(1, 7, 300)
  predictions[:100] = labels[:100]
  assert metrics.compute_metric(('matthews', 'accuracy'), predictions, labels) == approximate(
    {
      'matthews': reference.matthews_corrcoef(labels, predictions),
      'accuracy': reference.accuracy_score(labels, predictions),
    }
  )
  np.testing.assert_array_equal(
    metrics.confusion_matrix(predictions, labels, 7),
    reference.confusion_matrix(labels, predictions),
  )


def test_metrics_are_vectorized_over_matrices():
  counts = random.integers(0, 4, (5, 3, 2, 2)).astype(np.float64)
  counts[0, 0] = [[3, 0], [2, 0]]  # a constant prediction, for which two metrics are undefined
  for name, metric in metrics.CLASS_METRICS.items():
    values = [[float(metric(matrix)) for matrix in row] for row in counts]
    np.testing.assert_allclose(metric(counts), values, err_msg=name)


@pytest.mark.parametrize('name', NUMBERS)
@pytest.mark.parametrize('target_name', ['perfect', 'ties', 'constant'])
def test_correlations_equal_scipy_without_warnings(name: str, target_name: str):
  predictions, targets = NUMBERS[name], NUMBERS[target_name]
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    pearson = stats.pearsonr(predictions.astype(np.float64), targets).statistic
    spearman = stats.spearmanr(predictions, targets).statistic
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    values = metrics.compute_metric(tuple(metrics.NUMBER_METRICS), predictions, targets)
  mean = (pearson + spearman) / 2
  assert values == approximate({'pearson': pearson, 'spearman': spearman, 'pearson_spearman': mean})


def test_correlations_of_non_finite_or_single_values_are_nan():
  targets = np.array([1.0, 2.0, 3.0])
  assert math.isnan(metrics.pearson(np.array([1.0, math.nan, 2.0]), targets))
  assert math.isnan(metrics.spearman(np.array([1.0, math.inf, 2.0]), targets))
  assert math.isnan(metrics.pearson(targets[:1], targets[:1]))


@pytest.mark.parametrize(
  'names, predictions, labels, match',
  [
    (('acuracy',), [1], [1], "'accuracy'"),
    (('accuracy',), [1, 0], [1], r'predictions \(2,\), labels \(1,\)'),
    (('accuracy',), np.zeros(0, int), np.zeros(0, int), r'predictions \(0,\)'),
    (('accuracy', 'f1'), [1, 0], [-1, -1], 'found: 2 '),
    (('accuracy',), [0.5, 1.0], [0, 1], 'predictions float64'),
  ],
)
def test_invalid_predictions_are_refused(names: tuple, predictions: list, labels: list, match: str):
  with pytest.raises(InputError, match=match):
    metrics.compute_metric(names, np.array(predictions), np.array(labels))


def test_the_majority_baseline_predicts_the_most_frequent_training_label():
  scores = metrics.compute_majority_baseline(MRPC, np.array([1, 1, 0]), np.array([1, 0, 0, 0]))
  assert scores == {'accuracy': 0.25, 'f1': 0.4, 'accuracy_f1': 0.325}
  scores = metrics.compute_majority_baseline(COLA, np.array([1, 1, 0]), np.array([1, 0]))
  assert scores['matthews'] == 0
  scores = metrics.compute_majority_baseline(MRPC, np.array([0, 1]), np.array([0, 0, 1]))
  assert scores['accuracy'] == pytest.approx(2 / 3)
  assert math.isnan(metrics.compute_majority_baseline(STSB, TARGETS, TARGETS)['pearson_spearman'])


@pytest.mark.parametrize('task', [MRPC, COLA], ids=lambda task: task.name)
def test_the_frequency_baseline_is_the_mean_score_of_random_predictions(task: Task):
  train, labels = np.repeat([0, 1], [100, 300]), random.integers(0, 2, 2000)
  scores = [
    metrics.compute_metric(task.metrics, random.choice(train, 2000), labels) for _ in range(100)
  ]
  means = {name: np.mean([score[name] for score in scores]) for name in task.metrics}
  baseline = metrics.compute_frequency_baseline(task, train, labels)
  assert baseline == pytest.approx(means, abs=0.005)
  assert baseline.get('matthews', 0) == pytest.approx(0, abs=1e-12)
  constant = metrics.compute_frequency_baseline(task, np.ones(5, np.int64), labels)
  majority = metrics.compute_majority_baseline(task, np.ones(5, np.int64), labels)
  assert constant == pytest.approx(majority)


def test_a_regression_has_no_frequency_baseline():
  scores = metrics.compute_frequency_baseline(STSB, TARGETS, TARGETS)
  assert set(scores) == set(STSB.metrics) and all(map(math.isnan, scores.values()))


def measure_coverage(intervals: list[dict], truth: dict[str, float]) -> dict[str, float]:
  """Returns the fraction of intervals that contain the true value of each metric."""
  return {
    name: np.mean([low <= value <= high for low, high in (ends[name] for ends in intervals)])
    for name, value in truth.items()
  }


def test_intervals_of_class_metrics_cover_the_true_value():
  shares = np.array([[0.32, 0.08], [0.12, 0.48]])
  truth = {name: float(metric(shares)) for name, metric in metrics.CLASS_METRICS.items()}
  labels = (random.random((300, 150)) < 0.6).astype(np.int64)
  predictions = np.where(random.random((300, 150)) < 0.8, labels, 1 - labels)
  intervals = [
    metrics.compute_intervals(tuple(truth), *sample)
    for sample in zip(predictions, labels, strict=True)
  ]
  assert measure_coverage(intervals, truth) == pytest.approx(dict.fromkeys(truth, 0.95), abs=0.05)


def test_accuracy_of_many_classes_needs_little_memory():
  """Draws of the confusion matrix would take 64 GB."""
  labels = np.arange(2000)
  predictions = np.where(labels < 1000, labels, 0)
  low, high = metrics.compute_intervals(('accuracy',), predictions, labels)['accuracy']
  assert (round(low, 4), round(high, 4)) == (0.4781, 0.5219)


def test_intervals_of_correlations_cover_the_true_value():
  rho = 0.7
  truth = {'pearson': rho, 'spearman': 6 / math.pi * math.asin(rho / 2)}  # of a bivariate normal
  truth['pearson_spearman'] = (truth['pearson'] + truth['spearman']) / 2
  samples = random.multivariate_normal([0, 0], [[1, rho], [rho, 1]], (300, 100))
  intervals = [
    metrics.compute_intervals(tuple(truth), sample[:, 0], sample[:, 1]) for sample in samples
  ]
  assert measure_coverage(intervals, truth) == pytest.approx(dict.fromkeys(truth, 0.95), abs=0.05)


@pytest.mark.parametrize('name', ['random', 'perfect', 'inverted', 'all 0'])
def test_an_interval_contains_its_score_and_has_a_width(name: str):
  names = tuple(metrics.CLASS_METRICS)
  intervals = metrics.compute_intervals(names, CLASSES[name], LABELS)
  scores = metrics.compute_metric(names, CLASSES[name], LABELS)
  for metric, (low, high) in intervals.items():
    is_undefined = math.isnan(low) and math.isnan(high)
    assert is_undefined or low < high and low <= scores[metric] <= high, metric
  ends = intervals['accuracy']
  assert all(0 <= end <= 1 for end in ends) and np.ptp(ends) > 0.01
  assert intervals == metrics.compute_intervals(names, CLASSES[name], LABELS)


def test_a_perfect_or_undefined_correlation_has_no_interval():
  samples = [(predictions, TARGETS) for predictions in (TARGETS, -TARGETS, np.full(200, 2.5))]
  for sample in (*samples, (np.array([1.0, 3.0, 2.0]), np.arange(3.0))):
    for ends in metrics.compute_intervals(('pearson', 'spearman'), *sample).values():
      assert all(map(math.isnan, ends))


@pytest.mark.parametrize(
  'predictions, expected',
  [
    ([1, 1, 1], True),
    ([0, 0, 1], False),
    ([0.3, 0.3], True),
    ([0.3, 0.30000001], True),
    ([0.3, 0.31], False),
    ([-2.0, 2.0], False),
    ([1.0, math.nan], True),
    ([0.0, 0.0], True),
  ],
)
def test_constant_predictions_are_equal_or_not_finite(predictions: list, expected: bool):
  assert metrics.is_constant(np.array(predictions)) is expected


def test_confidence_intervals_equal_scipy():
  values = [0.61, 0.64, 0.58, 0.66, 0.62]
  expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
  assert metrics.confidence_interval(values) == pytest.approx(expected)
  assert metrics.confidence_interval([0.5, 0.5]) == (0.5, 0.5)


def test_confidence_intervals_cover_the_true_mean():
  intervals = map(metrics.confidence_interval, random.normal(size=(2000, 5)))
  coverage = np.mean([low <= 0 <= high for low, high in intervals])
  assert abs(coverage - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_a_summary_of_few_values_has_nan_for_undefined_fields():
  line = metrics.summarize([1.0, 2.0, 3.0])
  assert (line['mean'], line['std'], line['n']) == (2.0, 1.0, 3) and line['low'] < 2 < line['high']
  line = metrics.summarize([0.7])
  assert (line['mean'], line['n']) == (0.7, 1)
  assert all(math.isnan(line[name]) for name in ('std', 'low', 'high'))
  for values in ([], [0.5, math.nan]):
    assert math.isnan(metrics.summarize(values)['mean'])


@pytest.mark.parametrize(
  'values, effect',
  [
    # By tables of Student's t: (2.776 + 0.941) / sqrt(5), and (12.706 + 1.376) / sqrt(2).
    ([3.0, 3.0 + math.sqrt(2), 3.0 - math.sqrt(2), 3.0, 3.0], 1.662),
    ([0.0, math.sqrt(2)], 9.957),
  ],
)
def test_a_design_detects_effects_above_its_noise(values: list[float], effect: float):
  assert metrics.smallest_detectable_effect(values) == pytest.approx(effect, abs=2e-3)


def test_one_value_detects_no_effect():
  assert math.isnan(metrics.smallest_detectable_effect([3.0]))
