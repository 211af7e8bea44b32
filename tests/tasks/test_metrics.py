"""Metrics equal those of scikit-learn and SciPy, also at their edges."""

import math
import types
import warnings

import numpy as np
import pytest
from scipy import stats

from minilm_jax.core.errors import InputError
from minilm_jax.tasks import metrics, task
from minilm_jax.tasks.metrics import (
  brier_score,
  calibration_error,
  negative_log_likelihood,
  softmax,
)
from minilm_jax.tasks.task import find_task


def test_a_perfectly_calibrated_sample_has_nearly_no_error():
  dice = np.random.default_rng(0)
  sure = dice.uniform(0.5, 1, 200_000)
  # the first class is right as often as it says
  labels = (dice.uniform(size=sure.size) >= sure).astype(int)
  probabilities = np.stack([sure, 1 - sure], -1)
  assert calibration_error(probabilities, labels) < 0.005
  assert calibration_error(probabilities, 1 - labels) > 0.4


def test_an_overconfident_sample_has_the_error_that_it_was_made_with():
  labels = np.repeat([0, 1], [70, 30])
  probabilities = np.tile([0.95, 0.05], (100, 1))  # right 70 times of 100, sure to 0.95
  assert calibration_error(probabilities, labels) == pytest.approx(0.25)
  probabilities[:50] = 0.8, 0.2  # another bin: 50 right of 50 at 0.8, then 20 right of 50 at 0.95
  assert calibration_error(probabilities, labels) == pytest.approx(0.5 * 0.2 + 0.5 * 0.55)


def test_bins_have_equal_width_and_own_their_upper_end():
  probabilities = np.array([[1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]])
  assert calibration_error(probabilities, np.array([0, 0])) == pytest.approx((1 - 1 / 3) / 2)
  one = np.array([[0.6, 0.4], [0.61, 0.39]])
  # 0.6 = 9 / 15 ends a bin, 0.61 is in the next one: errors do not cancel
  assert calibration_error(one, np.array([0, 1])) == pytest.approx((0.4 + 0.61) / 2)


def test_uniform_probabilities_cost_the_entropy_of_the_classes():
  probabilities, labels = np.full((12, 4), 0.25), np.arange(12) % 4
  assert negative_log_likelihood(probabilities, labels) == pytest.approx(math.log(4))
  assert brier_score(probabilities, labels) == pytest.approx(0.75)


def test_certainty_is_best_where_it_is_right_and_finite_where_it_is_wrong():
  right = np.eye(3)[[0, 1, 2]]
  assert (
    negative_log_likelihood(right, np.arange(3)),
    brier_score(right, np.arange(3)),
    calibration_error(right, np.arange(3)),
  ) == (0, 0, 0)
  assert (
    brier_score(right, np.array([1, 2, 0])) == 2
    and 20 < negative_log_likelihood(right, np.array([1, 2, 0])) < 30
  )


def test_softmax_survives_large_logits():
  np.testing.assert_allclose(softmax(np.array([[1e4, 0.0], [-1e4, -1e4]])), [[1, 0], [0.5, 0.5]])


@pytest.mark.parametrize('score', [brier_score, calibration_error, negative_log_likelihood])
@pytest.mark.parametrize(
  'rows, labels, said',
  [
    (2, [0], 'one row a label'),
    (0, [], 'at least one'),
    (2, [0, 5], 'class indices'),
    (2, [0, -1], 'class indices'),
  ],
)
def test_what_cannot_be_scored_is_refused(score, rows: int, labels: list, said: str):
  with pytest.raises(InputError, match=said):
    score(np.full((rows, 3), 1 / 3), np.array(labels, int))


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


def same(a: float, b: float) -> bool:
  return math.isclose(a, b, abs_tol=1e-9) or math.isnan(a) and math.isnan(b)


@pytest.mark.parametrize('name', CLASSES)
@pytest.mark.parametrize(
  'labels', [LABELS, CLASSES['all 0'], CLASSES['all 1']], ids=['both', 'all 0', 'all 1']
)
def test_class_metrics_are_those_of_scikit_learn(
  name: str, labels: np.ndarray, reference: types.ModuleType
):
  predictions = CLASSES[name]
  found = metrics.compute_metric(('accuracy', 'f1', 'matthews', 'accuracy_f1'), predictions, labels)
  accuracy, f1 = (
    reference.accuracy_score(labels, predictions),
    reference.f1_score(labels, predictions, zero_division=0),
  )
  assert same(found['accuracy'], accuracy) and same(found['f1'], f1)
  assert same(found['accuracy_f1'], (accuracy + f1) / 2)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    assert same(found['matthews'], reference.matthews_corrcoef(labels, predictions))


def test_metrics_of_many_classes_are_those_of_scikit_learn(reference: types.ModuleType):
  labels, predictions = random.integers(0, 5, 300), random.integers(1, 7, 300)
  predictions[:100] = labels[:100]
  found = metrics.compute_metric(('matthews', 'accuracy'), predictions, labels)
  assert same(found['matthews'], reference.matthews_corrcoef(labels, predictions))
  assert same(found['accuracy'], reference.accuracy_score(labels, predictions))
  np.testing.assert_array_equal(
    metrics.confusion_matrix(predictions, labels, 7),
    reference.confusion_matrix(labels, predictions),
  )


def test_many_matrices_are_scored_like_each_of_them():
  counts = random.integers(0, 4, (5, 3, 2, 2)).astype(np.float64)
  counts[0, 0] = [[3, 0], [2, 0]]  # all said to be of class 0: two metrics are undefined there
  for name, metric in metrics.CLASS_METRICS.items():
    each = [[float(metric(one)) for one in row] for row in counts]
    np.testing.assert_allclose(metric(counts), each, err_msg=name)


@pytest.mark.parametrize('name', NUMBERS)
@pytest.mark.parametrize(
  'targets', [TARGETS, NUMBERS['ties'], NUMBERS['constant']], ids=['all', 'ties', 'constant']
)
def test_correlations_are_those_of_scipy_without_its_warnings(name: str, targets: np.ndarray):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    pearson = stats.pearsonr(NUMBERS[name].astype(np.float64), targets).statistic
    spearman = stats.spearmanr(NUMBERS[name], targets).statistic
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    found = metrics.compute_metric(
      ('pearson', 'spearman', 'pearson_spearman'), NUMBERS[name], targets
    )
  assert same(found['pearson'], pearson) and same(found['spearman'], spearman)
  assert same(found['pearson_spearman'], (pearson + spearman) / 2)


def test_correlations_of_what_is_not_a_number_or_alone_are_nan():
  targets = np.array([1.0, 2.0, 3.0])
  assert math.isnan(metrics.pearson(np.array([1.0, math.nan, 2.0]), targets))
  assert math.isnan(metrics.spearman(np.array([1.0, math.inf, 2.0]), targets))
  assert math.isnan(metrics.pearson(targets[:1], targets[:1]))


@pytest.mark.parametrize(
  'names, predictions, labels, found',
  [
    (('acuracy',), [1], [1], "did you mean 'accuracy'"),
    (('accuracy',), [1, 0], [1], 'give one prediction for each'),
    (('accuracy',), [], [], 'at least one'),
    (('accuracy', 'f1'), [1, 0], [-1, -1], '2 examples without a label'),
  ],
)
def test_what_cannot_be_scored_is_refused_metrics(
  names: tuple, predictions: list, labels: list, found: str
):
  with pytest.raises(InputError, match=found):
    metrics.compute_metric(names, np.array(predictions, np.int64), np.array(labels, np.int64))


def test_the_majority_is_that_of_the_training_labels():
  floor = metrics.majority_baseline(
    task.find_task('mrpc'), np.array([1, 1, 0]), np.array([1, 0, 0, 0])
  )
  assert floor == {'accuracy': 0.25, 'f1': 0.4, 'accuracy_f1': 0.325}
  assert (
    metrics.majority_baseline(task.find_task('cola'), np.array([1, 1, 0]), np.array([1, 0]))[
      'matthews'
    ]
    == 0
  )
  assert metrics.majority_baseline(task.find_task('sst2'), np.array([0, 1]), np.array([0, 0, 1]))[
    'accuracy'
  ] == pytest.approx(2 / 3)
  assert math.isnan(
    metrics.majority_baseline(task.find_task('stsb'), TARGETS, TARGETS)['pearson_spearman']
  )
  with pytest.raises(InputError, match='no training labels'):
    metrics.majority_baseline(task.find_task('cola'), np.array([], np.int64), np.array([1]))


def test_classes_that_are_no_whole_numbers_are_refused():
  with pytest.raises(InputError, match='whole numbers'):
    metrics.compute_metric(('accuracy',), np.array([0.5, 1.0]), np.array([0, 1]))


@pytest.mark.parametrize('name', ['mrpc', 'cola', 'sst2'])
def test_guessing_at_the_training_frequencies_is_what_it_scores_on_average(name: str):
  task, train, labels = find_task(name), np.repeat([0, 1], [100, 300]), random.integers(0, 2, 2000)
  guessed = [
    metrics.compute_metric(task.metrics, random.choice(train, 2000), labels) for _ in range(100)
  ]
  for metric, value in metrics.frequency_baseline(task, train, labels).items():
    assert value == pytest.approx(np.mean([one[metric] for one in guessed]), abs=0.005), metric
  assert metrics.frequency_baseline(find_task('cola'), train, labels)['matthews'] == pytest.approx(
    0, abs=1e-12
  )
  # nothing to guess: the majority
  one_class = metrics.frequency_baseline(task, np.ones(5, np.int64), labels)
  assert one_class == pytest.approx(metrics.majority_baseline(task, np.ones(5, np.int64), labels))
  with pytest.raises(InputError, match='no training labels'):
    metrics.frequency_baseline(task, np.array([], np.int64), labels)


def test_guesses_of_numbers_have_no_expected_score():
  found = metrics.frequency_baseline(task.find_task('stsb'), TARGETS, TARGETS)
  assert set(found) == set(task.find_task('stsb').metrics) and all(map(math.isnan, found.values()))


def draws(n: int, times: int) -> tuple[np.ndarray, np.ndarray]:
  labels = (random.random((times, n)) < 0.6).astype(np.int64)
  return np.where(random.random((times, n)) < 0.8, labels, 1 - labels), labels


def test_the_spread_over_examples_holds_the_truth_about_as_often_as_it_says():
  names, times = ('accuracy', 'f1', 'matthews', 'accuracy_f1'), 300
  many = np.array([[0.32, 0.08], [0.12, 0.48]])  # what the draws are samples of
  truth = {name: float(metrics.CLASS_METRICS[name](many)) for name in names}
  found = [metrics.metric_intervals(names, *one) for one in zip(*draws(150, times), strict=True)]
  for name in names:
    assert (
      abs(np.mean([one[name][0] <= truth[name] <= one[name][1] for one in found]) - 0.95) < 0.05
    ), name


def test_the_spread_of_correlations_holds_the_truth_about_as_often_as_it_says():
  rho, names, times = 0.7, ('pearson', 'spearman', 'pearson_spearman'), 300
  truth = {'pearson': rho, 'spearman': 6 / math.pi * math.asin(rho / 2)}  # of a bivariate normal
  truth['pearson_spearman'] = (truth['pearson'] + truth['spearman']) / 2
  pairs = random.multivariate_normal([0, 0], [[1, rho], [rho, 1]], (times, 100))
  found = [metrics.metric_intervals(names, one[:, 0], one[:, 1]) for one in pairs]
  for name in names:
    assert (
      abs(np.mean([one[name][0] <= truth[name] <= one[name][1] for one in found]) - 0.95) < 0.05
    ), name


@pytest.mark.parametrize('name', ['random', 'perfect', 'inverted', 'all 0'])
def test_a_spread_holds_its_score_and_never_claims_certainty(name: str):
  names = tuple(metrics.CLASS_METRICS)
  found, scored = (
    metrics.metric_intervals(names, CLASSES[name], LABELS),
    metrics.compute_metric(names, CLASSES[name], LABELS),
  )
  for metric, (low, high) in found.items():
    assert math.isnan(low) and math.isnan(high) or low < high and low <= scored[metric] <= high, (
      metric
    )
  assert all(0 <= end <= 1 for end in found['accuracy']) and np.ptp(found['accuracy']) > 0.01
  assert found == metrics.metric_intervals(
    names, CLASSES[name], LABELS
  )  # the same draws every time


def test_a_perfect_correlation_or_none_has_no_spread():
  for predictions in (TARGETS, -TARGETS, np.full(200, 2.5)):
    (ends,) = metrics.metric_intervals(('pearson',), predictions, TARGETS).values()
    assert all(map(math.isnan, ends))
  assert math.isnan(
    metrics.metric_intervals(('spearman',), np.array([1.0, 3.0, 2.0]), np.arange(3.0))['spearman'][
      0
    ]
  )


@pytest.mark.parametrize(
  'predictions, given_up',
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
def test_collapse_is_one_output_for_all(predictions: list, given_up: bool):
  assert metrics.is_constant(np.array(predictions)) is given_up


def test_the_interval_is_that_of_students_t():
  values = [0.61, 0.64, 0.58, 0.66, 0.62]
  expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
  assert metrics.confidence_interval(values) == pytest.approx(expected)
  assert np.ptp(metrics.confidence_interval(values, 0.99)) > np.ptp(
    metrics.confidence_interval(values)
  )
  assert metrics.confidence_interval([0.5, 0.5]) == (0.5, 0.5)


def test_the_interval_holds_the_truth_as_often_as_it_says():
  held = [
    low <= 0 <= high
    for low, high in map(metrics.confidence_interval, random.normal(size=(2000, 5)))
  ]
  assert abs(np.mean(held) - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_a_summary_of_few_values_says_what_it_does_not_know():
  line = metrics.summarize([1.0, 2.0, 3.0])
  assert (line['mean'], line['std'], line['n']) == (2.0, 1.0, 3) and line['low'] < 2 < line['high']
  line = metrics.summarize([0.7])
  assert (
    line['mean'] == 0.7
    and line['n'] == 1
    and all(math.isnan(line[name]) for name in ('std', 'low', 'high'))
  )
  assert math.isnan(metrics.summarize([])['mean']) and math.isnan(
    metrics.summarize([0.5, math.nan])['mean']
  )
