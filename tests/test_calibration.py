"""Scores of probabilities: known values, bounds, and what must hold of any."""

import doctest
import math

import numpy as np
import pytest

from minilm_jax.errors import InputError
from minilm_jax.tasks import calibration
from minilm_jax.tasks.calibration import brier, calibration_error, negative_log_likelihood, softmax


def test_docstrings():
  assert doctest.testmod(calibration).failed == 0


def test_a_perfectly_calibrated_sample_has_nearly_no_error():
  dice = np.random.default_rng(0)
  sure = dice.uniform(0.5, 1, 200_000)
  labels = (dice.uniform(size=sure.size) >= sure).astype(int)  # the first class is right as often as it says
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
  assert brier(probabilities, labels) == pytest.approx(0.75)


def test_certainty_is_best_where_it_is_right_and_finite_where_it_is_wrong():
  right = np.eye(3)[[0, 1, 2]]
  assert (negative_log_likelihood(right, np.arange(3)), brier(right, np.arange(3)),
          calibration_error(right, np.arange(3))) == (0, 0, 0)
  assert brier(right, np.array([1, 2, 0])) == 2 and 20 < negative_log_likelihood(right, np.array([1, 2, 0])) < 30


def test_softmax_survives_large_logits():
  np.testing.assert_allclose(softmax(np.array([[1e4, 0.0], [-1e4, -1e4]])), [[1, 0], [0.5, 0.5]])


@pytest.mark.parametrize('score', [brier, calibration_error, negative_log_likelihood])
@pytest.mark.parametrize('rows, labels, said', [
    (2, [0], 'one row a label'), (0, [], 'at least one'), (2, [0, 5], 'class indices'), (2, [0, -1], 'class indices')])
def test_what_cannot_be_scored_is_refused(score, rows: int, labels: list, said: str):
  with pytest.raises(InputError, match=said):
    score(np.full((rows, 3), 1 / 3), np.array(labels, int))
