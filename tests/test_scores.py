"""The table of scores: means and intervals as SciPy gives them, nothing mixed that differs."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from minilm_jax.analysis.scores import score_table


def line(value: float | None, seed: int = 0, **fields: Any) -> dict[str, Any]:
  return {'task': 'cola', 'metric': 'matthews', 'value': value, 'seed': seed, 'split': 'validation', 'examples': 1043,
          'pretrained': True, 'filtered': False, 'headline': True, 'majority': 0.0, 'collapsed': False,
          'checkpoint': 'tiny', **fields}


def lines(ours: list[float], theirs: list[float]) -> list[dict[str, Any]]:
  return [line(value, seed, pretrained=side) for side, values in ((True, ours), (False, theirs))
          for seed, value in enumerate(values)]


def test_mean_deviation_and_interval_of_a_side():
  values = [0.1, 0.25, 0.4, 0.2]
  row, = score_table(lines(values, []))
  assert row.pretrained.n == 4 and row.scratch.n == 0 and math.isnan(row.scratch.mean)
  np.testing.assert_allclose([row.pretrained.mean, row.pretrained.std], [np.mean(values), np.std(values, ddof=1)])
  expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
  np.testing.assert_allclose([row.pretrained.low, row.pretrained.high], expected)
  assert math.isnan(row.difference.mean)


def test_the_same_seeds_are_compared_pair_by_pair():
  ours, theirs = [0.1, 0.3, 0.5], [0.0, 0.19, 0.41]
  row, = score_table(lines(ours, theirs))
  expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
  assert row.difference.paired
  np.testing.assert_allclose([row.difference.low, row.difference.high], expected)
  np.testing.assert_allclose(row.difference.mean, 0.1)


def test_other_seeds_are_compared_by_welch():
  ours, theirs = [0.1, 0.3, 0.5], [0.0, 0.19]
  row, = score_table(lines(ours, theirs))
  expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
  assert not row.difference.paired
  np.testing.assert_allclose([row.difference.low, row.difference.high], expected)


def test_a_single_seed_has_no_interval():
  row, = score_table(lines([0.3], [0.1]))
  assert row.difference.mean == pytest.approx(0.2)
  assert all(map(math.isnan, (row.pretrained.std, row.pretrained.low, row.difference.low)))


def test_what_is_undefined_is_counted_and_left_out_on_both_sides():
  scratch = [line(0.1, seed, pretrained=False) for seed in range(3)]
  row, = score_table([line(None, 0), line(0.2, 1), line(0.3, 2), *scratch])
  assert (row.pretrained.n, row.pretrained.undefined, row.pretrained.mean) == (2, 1, pytest.approx(0.25))
  assert not row.difference.paired  # seeds are no longer the same
  row, = score_table([line(None, 0), line(float('nan'), 1)])
  assert row.pretrained.n == 0 and row.pretrained.undefined == 2 and math.isnan(row.pretrained.mean)


@pytest.mark.parametrize('fields', [{'task': 'rte'}, {'metric': 'accuracy', 'headline': False}, {'split': 'test'},
                                    {'filtered': True}, {'checkpoint': 'large'}])
def test_nothing_is_mixed_that_differs(fields: dict[str, Any]):
  rows = score_table([line(0.1), line(0.9, **fields)])
  assert sorted(row.pretrained.mean for row in rows) == [0.1, 0.9]


def test_a_seed_that_was_run_again_counts_once():
  row, = score_table([line(0.1), line(0.5)])
  assert (row.pretrained.n, row.pretrained.mean) == (1, 0.5)


def test_collapsed_runs_are_counted():
  row, = score_table([line(0.0, 0, collapsed=True), line(0.0, 1, collapsed=True), line(0.2, 2)])
  assert row.pretrained.collapsed == 2 and row.scratch.collapsed == 0


def test_the_headline_of_a_task_comes_first_whatever_the_order_of_the_lines():
  given = [line(0.5, metric='accuracy', headline=False), line(0.1), line(0.6, task='boolq', metric='accuracy')]
  for order in (given, given[::-1]):
    assert [(row.task, row.metric) for row in score_table(order)] == [
        ('boolq', 'accuracy'), ('cola', 'matthews'), ('cola', 'accuracy')]
