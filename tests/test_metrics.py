"""Metrics equal those of scikit-learn and SciPy, also at their edges."""

import doctest
import math
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from minilm_jax.errors import InputError
from minilm_jax.tasks import metrics, table

random = np.random.default_rng(0)
LABELS = random.integers(0, 2, 200)
CLASSES = {
    'random': random.integers(0, 2, 200), 'perfect': LABELS, 'inverted': 1 - LABELS, 'all 0': np.zeros(200, np.int64),
    'all 1': np.ones(200, np.int64), 'mostly right': np.where(random.random(200) < 0.9, LABELS, 1 - LABELS),
    'int32': LABELS.astype(np.int32),
}
TARGETS = random.random(200) * 5
NUMBERS = {
    'random': random.normal(size=200), 'perfect': TARGETS, 'inverted': -TARGETS, 'constant': np.full(200, 2.5),
    'ties': np.round(TARGETS + random.normal(size=200)), 'single precision': (TARGETS**2).astype(np.float32),
}


def same(a: float, b: float) -> bool:
  return math.isclose(a, b, abs_tol=1e-9) or math.isnan(a) and math.isnan(b)


def test_examples_in_docstrings():
  assert doctest.testmod(metrics).failed == 0


@pytest.mark.parametrize('name', CLASSES)
@pytest.mark.parametrize('labels', [LABELS, CLASSES['all 0'], CLASSES['all 1']], ids=['both', 'all 0', 'all 1'])
def test_class_metrics_are_those_of_scikit_learn(name: str, labels: np.ndarray):
  predictions = CLASSES[name]
  found = metrics.compute(('accuracy', 'f1', 'matthews', 'accuracy_f1'), predictions, labels)
  accuracy, f1 = reference.accuracy_score(labels, predictions), reference.f1_score(labels, predictions, zero_division=0)
  assert same(found['accuracy'], accuracy) and same(found['f1'], f1)
  assert same(found['accuracy_f1'], (accuracy + f1) / 2)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    assert same(found['matthews'], reference.matthews_corrcoef(labels, predictions))


def test_matthews_of_many_classes_is_that_of_scikit_learn():
  labels, predictions = random.integers(0, 5, 300), random.integers(1, 7, 300)
  predictions[:100] = labels[:100]
  assert same(metrics.matthews(predictions, labels), reference.matthews_corrcoef(labels, predictions))


@pytest.mark.parametrize('name', NUMBERS)
@pytest.mark.parametrize('targets', [TARGETS, NUMBERS['ties'], NUMBERS['constant']], ids=['all', 'ties', 'constant'])
def test_correlations_are_those_of_scipy_without_its_warnings(name: str, targets: np.ndarray):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    pearson = stats.pearsonr(NUMBERS[name].astype(np.float64), targets).statistic
    spearman = stats.spearmanr(NUMBERS[name], targets).statistic
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    found = metrics.compute(('pearson', 'spearman', 'pearson_spearman'), NUMBERS[name], targets)
  assert same(found['pearson'], pearson) and same(found['spearman'], spearman)
  assert same(found['pearson_spearman'], (pearson + spearman) / 2)


def test_correlations_of_what_is_not_a_number_or_alone_are_nan():
  targets = np.array([1.0, 2.0, 3.0])
  assert math.isnan(metrics.pearson(np.array([1.0, math.nan, 2.0]), targets))
  assert math.isnan(metrics.spearman(np.array([1.0, math.inf, 2.0]), targets))
  assert math.isnan(metrics.pearson(targets[:1], targets[:1]))


@pytest.mark.parametrize('names, predictions, labels, found', [
    (('acuracy',), [1], [1], "did you mean 'accuracy'"), (('accuracy',), [1, 0], [1], 'give one prediction for each'),
    (('accuracy',), [], [], 'at least one'), (('accuracy', 'f1'), [1, 0], [-1, -1], '2 examples without a label'),
])
def test_what_cannot_be_scored_is_refused(names: tuple, predictions: list, labels: list, found: str):
  with pytest.raises(InputError, match=found):
    metrics.compute(names, np.array(predictions, np.int64), np.array(labels, np.int64))


def test_the_majority_is_that_of_the_training_labels():
  floor = metrics.majority(table.find('mrpc'), np.array([1, 1, 0]), np.array([1, 0, 0, 0]))
  assert floor == {'accuracy': 0.25, 'f1': 0.4, 'accuracy_f1': 0.325}
  assert metrics.majority(table.find('cola'), np.array([1, 1, 0]), np.array([1, 0]))['matthews'] == 0
  assert metrics.majority(table.find('sst2'), np.array([0, 1]), np.array([0, 0, 1]))['accuracy'] == pytest.approx(2 / 3)
  assert math.isnan(metrics.majority(table.find('stsb'), TARGETS, TARGETS)['pearson_spearman'])
  with pytest.raises(InputError, match='no training labels'):
    metrics.majority(table.find('cola'), np.array([], np.int64), np.array([1]))


@pytest.mark.parametrize('predictions, given_up', [
    ([1, 1, 1], True), ([0, 0, 1], False), ([0.3, 0.3], True), ([0.3, 0.30000001], True), ([0.3, 0.31], False),
    ([-2.0, 2.0], False), ([1.0, math.nan], True), ([0.0, 0.0], True),
])
def test_collapse_is_one_output_for_all(predictions: list, given_up: bool):
  assert metrics.collapsed(np.array(predictions)) is given_up


def test_the_interval_is_that_of_students_t():
  values = [0.61, 0.64, 0.58, 0.66, 0.62]
  expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
  assert metrics.interval(values) == pytest.approx(expected)
  assert np.ptp(metrics.interval(values, 0.99)) > np.ptp(metrics.interval(values))
  assert metrics.interval([0.5, 0.5]) == (0.5, 0.5)


def test_the_interval_holds_the_truth_as_often_as_it_says():
  held = [low <= 0 <= high for low, high in map(metrics.interval, random.normal(size=(2000, 5)))]
  assert abs(np.mean(held) - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_a_summary_of_few_values_says_what_it_does_not_know():
  line = metrics.summary([1.0, 2.0, 3.0])
  assert (line['mean'], line['std'], line['n']) == (2.0, 1.0, 3) and line['low'] < 2 < line['high']
  line = metrics.summary([0.7])
  assert line['mean'] == 0.7 and line['n'] == 1 and all(math.isnan(line[name]) for name in ('std', 'low', 'high'))
  assert math.isnan(metrics.summary([])['mean']) and math.isnan(metrics.summary([0.5, math.nan])['mean'])
