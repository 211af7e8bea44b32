"""Tables of scores have the means and intervals of SciPy and separate rows for each protocol."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from minilm_jax.analysis.scores import make_score_table
from minilm_jax.core.errors import InputError
from minilm_jax.tasks.metrics import choose_rates
from tests.fake_runs import make_score_line


def make_lines(pretrained: list[float], scratch: list[float]) -> list[dict[str, Any]]:
  return [
    make_score_line(value, seed, side)
    for side, values in ((True, pretrained), (False, scratch))
    for seed, value in enumerate(values)
  ]


def test_a_group_has_the_mean_deviation_and_students_interval():
  values = [0.1, 0.25, 0.4, 0.2]
  (row,) = make_score_table(make_lines(values, []))
  assert row.pretrained.n == 4 and row.scratch.n == 0 and math.isnan(row.scratch.mean)
  np.testing.assert_allclose(
    [row.pretrained.mean, row.pretrained.std], [np.mean(values), np.std(values, ddof=1)]
  )
  expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
  np.testing.assert_allclose([row.pretrained.low, row.pretrained.high], expected)
  assert math.isnan(row.difference.mean)


def test_equal_seeds_have_a_paired_difference():
  pretrained, scratch = [0.1, 0.3, 0.5], [0.0, 0.19, 0.41]
  (row,) = make_score_table(make_lines(pretrained, scratch))
  expected = stats.ttest_rel(pretrained, scratch).confidence_interval(0.95)
  assert row.difference.paired
  np.testing.assert_allclose([row.difference.low, row.difference.high], expected)
  np.testing.assert_allclose(row.difference.mean, 0.1)


def test_different_seeds_have_welchs_difference():
  pretrained, scratch = [0.1, 0.3, 0.5], [0.0, 0.19]
  (row,) = make_score_table(make_lines(pretrained, scratch))
  expected = stats.ttest_ind(pretrained, scratch, equal_var=False).confidence_interval(0.95)
  assert not row.difference.paired
  np.testing.assert_allclose([row.difference.low, row.difference.high], expected)


def test_a_single_seed_has_no_interval():
  (row,) = make_score_table(make_lines([0.3], [0.1]))
  assert row.difference.mean == pytest.approx(0.2)
  assert all(map(math.isnan, (row.pretrained.std, row.pretrained.low, row.difference.low)))


def test_undefined_scores_are_counted_and_left_out():
  scratch = [make_score_line(0.1, seed, pretrained=False) for seed in range(3)]
  (row,) = make_score_table(
    [make_score_line(None, 0), make_score_line(0.2, 1), make_score_line(0.3, 2), *scratch]
  )
  assert (row.pretrained.n, row.pretrained.undefined, row.pretrained.mean) == (
    2,
    1,
    pytest.approx(0.25),
  )
  assert not row.difference.paired  # the arms have different seeds
  (row,) = make_score_table([make_score_line(None, 0), make_score_line(float('nan'), 1)])
  assert row.pretrained.n == 0 and row.pretrained.undefined == 2 and math.isnan(row.pretrained.mean)


@pytest.mark.parametrize(
  'fields',
  [
    {'task': 'rte'},
    {'metric': 'accuracy', 'headline': False},
    {'split': 'test'},
    {'filtered': True},
    {'checkpoint': 'large'},
    {'checkpoint_step': 7},
    {'train_examples': 300},
    {'held_out': 9},
    {'epoch_choice': 'best'},
  ],
)
def test_lines_that_differ_in_a_field_are_separate_rows(fields: dict[str, Any]):
  rows = make_score_table([make_score_line(0.1), make_score_line(0.9, **fields)])
  assert sorted(row.pretrained.mean for row in rows) == [0.1, 0.9]


def test_a_repeated_seed_counts_once():
  (row,) = make_score_table([make_score_line(0.1), make_score_line(0.5)])
  assert (row.pretrained.n, row.pretrained.mean) == (1, 0.5)


def test_constant_predictions_are_counted():
  (row,) = make_score_table(
    [
      make_score_line(0.0, 0, constant_prediction=True),
      make_score_line(0.0, 1, constant_prediction=True),
      make_score_line(0.2, 2),
    ]
  )
  assert row.pretrained.collapsed == 2 and row.scratch.collapsed == 0


def test_headlines_come_first_for_any_order_of_lines():
  lines = [
    make_score_line(0.5, metric='accuracy', headline=False),
    make_score_line(0.1),
    make_score_line(0.6, task='boolq', metric='accuracy'),
  ]
  for order in (lines, lines[::-1]):
    assert [(row.task, row.metric) for row in make_score_table(order)] == [
      ('boolq', 'accuracy'),
      ('cola', 'matthews'),
      ('cola', 'accuracy'),
    ]


def make_search(
  scores: dict[float, list[float | None]], epoch_choice: str = 'last', **fields: Any
) -> list[dict[str, Any]]:
  """Returns a line for each rate and seed; the value equals the rate."""
  return [
    make_score_line(
      rate,
      seed,
      learning_rate=rate,
      validation_score=score,
      epoch_choice=epoch_choice,
      held_out=100,
      **fields,
    )
    for rate, seed_scores in scores.items()
    for seed, score in enumerate(seed_scores)
  ]


def test_held_out_examples_choose_the_learning_rate():
  # The means are 0.55, 0.5 and 0.475.
  lines = make_search({1e-4: [0.5, 0.6], 2e-4: [0.9, 0.1], 5e-4: [0.4, 0.55]})
  assert choose_rates(lines) == choose_rates(lines[::-1]) == (1e-4,)
  (row,) = make_score_table(lines)
  assert (row.pretrained.learning_rate, row.pretrained.mean, row.pretrained.n) == (
    1e-4,
    pytest.approx(1e-4),
    2,
  )
  assert row.held_out == 100 and row.epochs == 3


def test_undefined_scores_count_as_zero_and_ties_take_the_lowest_rate():
  assert choose_rates(make_search({1e-4: [0.3, 0.3], 2e-4: [0.5, None]})) == (1e-4,)
  assert choose_rates(make_search({1e-4: [-0.3], 2e-4: [None]})) == (2e-4,)
  assert choose_rates(make_search({2e-4: [0.3], 1e-4: [0.3]})) == (1e-4,)


def test_an_arm_whose_held_out_scores_are_all_undefined_has_one_rate():
  scratch = make_search(
    {1e-4: [None, None], 2e-4: [None, None]}, pretrained=False, checkpoint_step=None
  )
  assert choose_rates(scratch) == (1e-4,)
  (row,) = make_score_table([*make_search({1e-4: [0.2, 0.2], 2e-4: [0.6, 0.6]}), *scratch])
  assert (row.pretrained.learning_rate, row.scratch.learning_rate) == (2e-4, 1e-4)


def test_arms_with_different_rates_are_paired_by_seed():
  pretrained, scratch = (
    make_search({1e-4: [0.1, 0.1], 2e-4: [0.5, 0.5]}),
    make_search({1e-4: [0.9, 0.9], 2e-4: [0.5, 0.5]}, pretrained=False, checkpoint_step=None),
  )
  (row,) = make_score_table(pretrained + scratch)
  assert (row.pretrained.learning_rate, row.scratch.learning_rate) == (2e-4, 1e-4)
  assert row.difference.paired and row.difference.mean == pytest.approx(1e-4)


def test_each_rate_is_a_row_without_held_out_examples():
  lines = [
    make_score_line(value, learning_rate=rate, pretrained=arm)
    for rate in (1e-4, 2e-4)
    for arm, value in ((True, rate), (False, -rate))
  ]
  assert choose_rates(lines) == (1e-4, 2e-4)
  rows = make_score_table(lines)
  assert [(row.pretrained.learning_rate, row.scratch.learning_rate) for row in rows] == [
    (1e-4, 1e-4),
    (2e-4, 2e-4),
  ]
  assert [row.difference.mean for row in rows] == pytest.approx([2e-4, 4e-4])


def test_the_best_epoch_is_reported_and_chooses_the_rate_of_both_rows():
  lines = make_search({1e-4: [0.6], 2e-4: [0.7]}, 'best') + make_search(
    {1e-4: [0.6], 2e-4: [0.1]}, 'last'
  )
  best, last = make_score_table(lines)
  assert (best.which, best.shown, last.which, last.shown) == ('best', True, 'last', False)
  assert best.pretrained.learning_rate == last.pretrained.learning_rate == 2e-4
  (row,) = make_score_table([make_score_line(0.1)])
  assert row.which == 'last' and row.shown


def test_scores_from_scratch_are_compared_with_every_step():
  rows = make_score_table(
    [
      make_score_line(0.3, checkpoint_step=200),
      make_score_line(0.2, checkpoint_step=50),
      make_score_line(0.1, pretrained=False),
    ]
  )
  assert [(row.step, row.pretrained.mean, row.scratch.mean) for row in rows] == [
    (50, 0.2, 0.1),
    (200, 0.3, 0.1),
  ]
  (row,) = make_score_table([make_score_line(0.1, pretrained=False)])
  assert row.step is None and row.scratch.n == 1


def test_rows_have_baselines_and_intervals_over_examples():
  (row,) = make_score_table(
    [
      make_score_line(0.5, 0, low=0.4, high=0.6, majority=0.1, frequency=0.2),
      make_score_line(0.5, 1, low=0.2, high=0.8),
    ]
  )
  assert (row.majority, row.frequency) == (0.1, 0.2)
  assert (row.pretrained.mean_example_low, row.pretrained.mean_example_high) == pytest.approx(
    (0.3, 0.7)
  )
  (row,) = make_score_table([make_score_line(0.5, majority=None, frequency=None)])
  assert all(map(math.isnan, (row.majority, row.frequency, row.pretrained.mean_example_low)))


def test_lines_without_a_field_are_refused():
  line = make_score_line(0.1)
  del line['held_out']
  with pytest.raises(InputError, match='held_out'):
    make_score_table([line])


def test_scores_of_other_protocols_have_rows_of_their_own():
  lines = [
    {**make_score_line(value, seed=seed), 'protocol': {'epochs': epochs, 'length': 64}}
    for epochs, values in ((3.0, (0.7, 0.6)), (10.0, (0.9,)))
    for seed, value in enumerate(values)
  ]
  rows = make_score_table(lines)
  assert [(row.protocol, row.pretrained.values) for row in rows] == [
    ('epochs=3.0', (0.7, 0.6)),
    ('epochs=10.0', (0.9,)),
  ]
  (row,) = make_score_table(lines[:2])
  assert row.protocol == ''


def test_protocols_are_named_by_the_differences_between_checkpoints():
  lines = [
    {
      **make_score_line(0.5, task=task, checkpoint=name, examples=examples),
      'protocol': {'epochs': epochs, 'length': 64, **added},
    }
    for task, name, examples, epochs, added in (
      ('rte', 'a', 277, 3.0, {}),
      ('rte', 'b', 277, 10.0, {'patience': None}),  # a field that the first recipe lacks
      ('rte', 'c', 20, 10.0, {}),
      ('cola', 'a', 1043, 3.0, {}),
      ('cola', 'b', 1043, 3.0, {}),
    )
  ]
  rows = {(row.task, row.checkpoint): row.protocol for row in make_score_table(lines)}
  assert rows == {
    ('cola', 'a'): '',
    ('cola', 'b'): '',
    ('rte', 'a'): 'examples=277, epochs=3.0',
    ('rte', 'b'): 'examples=277, epochs=10.0',
    ('rte', 'c'): 'examples=20, epochs=10.0',
  }


def test_scores_on_other_numbers_of_examples_have_rows_of_their_own():
  rows = make_score_table(
    [make_score_line(value, examples=examples) for value, examples in ((0.5, 100), (0.9, 10))]
  )
  assert [(row.examples, row.pretrained.values) for row in rows] == [(100, (0.5,)), (10, (0.9,))]
