"""Subsets of a committee: which are taken, what is exact, what must hold of any members."""

import doctest
import itertools
import math

import numpy as np
import pytest

from minilm_jax.errors import InputError
from minilm_jax.tasks import calibration, subsets
from minilm_jax.tasks.calibration import softmax
from minilm_jax.tasks.subsets import LOGIT, MEMBERS, PROBABILITY


def some(members: int, examples: int = 60, classes: int = 3, seed: int = 0, scale: float = 2.0):
  dice = np.random.default_rng(seed)
  labels = dice.integers(0, classes, examples)
  signal = np.eye(classes)[labels]
  return scale * (signal + dice.normal(size=(members, examples, classes))), labels


def by(lines: list[subsets.Line]) -> dict[tuple, subsets.Line]:
  return {(line.size, line.combined, line.metric): line for line in lines}


def test_docstrings():
  assert doctest.testmod(subsets).failed == 0


def test_the_whole_committee_is_one_subset_and_has_no_interval():
  for members in (1, 2, 5):
    logits, labels = some(members)
    own = [line for line in subsets.study(logits, labels, 'accuracy', 'test') if line.size == members]
    assert own and all(line.subsets == 1 and line.every and math.isnan(line.low) and math.isnan(line.high) for line in own)


def test_all_subsets_are_taken_where_they_are_few_and_means_are_exact():
  logits, labels = some(4)
  found = by(subsets.study(logits, labels, 'accuracy', 'test'))
  pairs = [np.mean(logits[list(pair)].mean(0).argmax(-1) == labels) for pair in itertools.combinations(range(4), 2)]
  line = found[2, LOGIT, 'accuracy']
  assert line.subsets == 6 and line.every and line.mean == pytest.approx(np.mean(pairs))
  assert (line.low, line.high) == pytest.approx(tuple(np.percentile(pairs, (2.5, 97.5))))
  alone = [np.mean(one.argmax(-1) == labels) for one in logits]
  assert all(found[size, MEMBERS, 'accuracy'].mean == pytest.approx(np.mean(alone)) for size in range(1, 5))


def test_a_sample_of_subsets_is_fixed_different_and_of_every_member():
  first = subsets.subsets(12, 6)
  assert first == subsets.subsets(12, 6) and len(set(first)) == subsets.MOST
  assert all(list(one) == sorted(set(one)) and len(one) == 6 for one in first)
  assert set(itertools.chain(*first)) == set(range(12))


def test_a_committee_of_one_is_its_member_however_it_is_combined():
  logits, labels = some(3)
  found = by(subsets.study(logits, labels, 'accuracy', 'test'))
  for metric in ('accuracy', 'negative log-likelihood', 'calibration error', 'Brier score'):
    values = [found[1, how, metric].mean for how in (LOGIT, PROBABILITY, MEMBERS)]
    assert values == pytest.approx([values[0]] * 3)


@pytest.mark.parametrize('seed', range(20))
def test_the_mean_probability_is_no_worse_than_members_are_on_average(seed: int):
  """Jensen: -ln and the square are convex. Of the mean logit it holds of -ln softmax, convex in the logits too."""
  logits, labels = some(2 + seed % 5, classes=2 + seed % 4, seed=seed, scale=10.0 ** (seed % 3 - 1))
  lines = subsets.study(logits, labels, 'accuracy', 'test')
  found = by(lines)
  for line in lines:
    if line.metric in ('negative log-likelihood', 'Brier score') and line.combined == PROBABILITY:
      assert line.mean <= found[line.size, MEMBERS, line.metric].mean + 1e-12
    if line.metric == 'negative log-likelihood' and line.combined == LOGIT:
      assert line.mean <= found[line.size, MEMBERS, line.metric].mean + 1e-12


def test_disagreement_is_that_of_pairs():
  logits, labels = some(3)
  logits[1] = logits[0]
  found = by(subsets.study(logits, labels, 'accuracy', 'test'))
  apart = np.mean(logits[0].argmax(-1) != logits[2].argmax(-1))
  assert found[3, MEMBERS, subsets.DISAGREEMENT].mean == pytest.approx(2 / 3 * apart) and apart > 0
  assert (1, MEMBERS, subsets.DISAGREEMENT) not in found


def test_another_headline_is_scored_beside_accuracy():
  logits, labels = some(2, classes=2)
  lines = subsets.study(logits, labels, 'matthews', 'test')
  assert {line.metric for line in lines if line.headline} == {'matthews'} and any(line.metric == 'accuracy' for line in lines)


def test_the_order_of_members_moves_no_whole_committee():
  logits, labels = some(5)
  for how in (LOGIT, PROBABILITY):
    np.testing.assert_allclose(subsets.combine(logits, how), subsets.combine(logits[::-1], how), rtol=1e-12)
  np.testing.assert_allclose(subsets.combine(logits[:1], PROBABILITY), softmax(logits[0]))
  assert calibration.softmax is softmax


def test_what_has_no_score_is_refused():
  logits, labels = some(2)
  with pytest.raises(InputError, match='no members'):
    subsets.study(logits[:0], labels, 'accuracy', 'test')
  logits[0, 0, 0] = np.nan
  with pytest.raises(InputError, match='no numbers'):
    subsets.study(logits, labels, 'accuracy', 'test')
