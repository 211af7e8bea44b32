"""The table of scores: means and intervals as SciPy gives them, nothing mixed that differs."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from minilm_jax.analysis.scores import Average, average_tasks, choose_rates, score_table
from minilm_jax.core.errors import InputError
from tests.fake_runs import make_score_line


def found(
  scores: dict[str, list[float | None]],
  scratch: dict[str, list[float | None]] | None = None,
  **fields: object,
) -> dict[str, Average]:
  lines = [
    make_score_line(value, seed, arm, task=task, **fields)
    for arm, tasks in ((True, scores), (False, scratch or {}))
    for task, values in tasks.items()
    for seed, value in enumerate(values)
  ]
  return {average.name: average for average in average_tasks(score_table(lines))}


OURS = {
  'cola': [0.1, 0.2, 0.0],
  'sst2': [0.8, 0.7, 0.75],
  'rte': [0.5, 0.6, 0.55],
  'wnli': [0.3, 0.5, 0.4],
}


def test_an_average_is_taken_for_each_seed_and_then_over_seeds():
  made = found(OURS)
  assert list(made) == ['all', 'without WNLI', 'without CoLA', 'without both']
  assert made['all'].tasks == ('cola', 'sst2', 'rte', 'wnli') and made['without both'].tasks == (
    'sst2',
    'rte',
  )
  seeds = [1.4 / 3, 0.5, 1.3 / 3]  # of cola, sst2 and rte
  group = made['without WNLI'].pretrained
  assert (
    group.values == pytest.approx(seeds)
    and group.n == 3
    and group.mean == pytest.approx(sum(seeds) / 3)
  )
  assert (group.low, group.high) == pytest.approx(
    stats.t.interval(0.95, 2, group.mean, stats.sem(seeds))
  )
  assert made['all'].scratch.n == 0 and math.isnan(made['all'].difference.mean)


def test_the_difference_is_paired_by_seed():
  theirs = {task: [value - 0.1 for value in values] for task, values in OURS.items()}
  for average in found(OURS, theirs).values():
    assert average.difference.paired and average.difference.mean == pytest.approx(0.1)
    # every seed differs by as much
    assert average.difference.low == pytest.approx(0.1) == average.difference.high


def test_arms_are_compared_on_the_tasks_of_both():
  first, *_ = made = list(
    average_tasks(
      score_table(
        [
          make_score_line(0.5, seed, arm, task=task)
          for seed in range(2)
          for arm, tasks in ((True, ('sst2', 'rte', 'qnli')), (False, ('sst2', 'rte')))
          for task in tasks
        ]
      )
    )
  )
  assert first.tasks == ('sst2', 'rte') and first.difference.paired
  assert [(average.tasks, average.pretrained.n, average.scratch.n) for average in made[1:]] == [
    (('sst2', 'qnli', 'rte'), 2, 0)
  ]


@pytest.mark.parametrize('rte', [[0.5], [0.5, None]])
def test_other_seeds_have_a_mean_without_an_interval(rte: list[float | None]):
  group = found({'sst2': [0.7, 0.8], 'rte': rte})['all'].pretrained
  assert group.mean == pytest.approx((0.75 + 0.5) / 2) and group.n == 0 and math.isnan(group.low)


def test_mnli_counts_once_by_its_matched_part():
  rows = score_table(
    [
      make_score_line(0.5, task='sst2'),
      make_score_line(0.6, task='mnli', split='validation_matched'),
      make_score_line(0.1, task='mnli', split='validation_mismatched'),
    ]
  )
  (average,) = average_tasks(rows)
  assert average.tasks == ('sst2', 'mnli') and average.split == 'validation'
  assert average.pretrained.mean == pytest.approx(0.55)


def test_what_is_minor_not_shown_or_no_task_of_glue_is_in_no_average():
  given = [
    make_score_line(0.5, task='sst2'),
    make_score_line(0.7, task='rte'),
    make_score_line(0.0, task='rte', metric='f1', headline=False),
    make_score_line(0.0, task='blimp', split='all'),
    make_score_line(0.0, task='rte', split='test'),
  ]
  (average,) = average_tasks(score_table(given))
  assert average.pretrained.mean == pytest.approx(0.6)
  best = [make_score_line(0.9, task=task, epoch_choice='best') for task in ('sst2', 'rte')]
  (average,) = average_tasks(score_table(given[:2] + best))
  assert average.pretrained.mean == pytest.approx(0.9)


def test_a_task_alone_or_of_two_protocols_makes_no_average():
  assert average_tasks(score_table([make_score_line(0.5)])) == []
  two = [make_score_line(0.5, task='rte', train_examples=n) for n in (100, 200)]
  assert average_tasks(score_table([make_score_line(0.5, task='sst2'), *two])) == []


def test_steps_checkpoints_and_filters_stay_apart():
  given = [
    make_score_line(value, task=task, **fields)
    for task in ('sst2', 'rte')
    for value, fields in (
      (0.1, {}),
      (0.2, {'checkpoint_step': 7}),
      (0.3, {'checkpoint': 'large'}),
      (0.4, {'filtered': True}),
    )
  ]
  assert sorted(
    average.pretrained.mean for average in average_tasks(score_table(given))
  ) == pytest.approx([0.1, 0.2, 0.3, 0.4])


def lines(ours: list[float], theirs: list[float]) -> list[dict[str, Any]]:
  return [
    make_score_line(value, seed, side)
    for side, values in ((True, ours), (False, theirs))
    for seed, value in enumerate(values)
  ]


def test_mean_deviation_and_interval_of_a_side():
  values = [0.1, 0.25, 0.4, 0.2]
  (row,) = score_table(lines(values, []))
  assert row.pretrained.n == 4 and row.scratch.n == 0 and math.isnan(row.scratch.mean)
  np.testing.assert_allclose(
    [row.pretrained.mean, row.pretrained.std], [np.mean(values), np.std(values, ddof=1)]
  )
  expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
  np.testing.assert_allclose([row.pretrained.low, row.pretrained.high], expected)
  assert math.isnan(row.difference.mean)


def test_the_same_seeds_are_compared_pair_by_pair():
  ours, theirs = [0.1, 0.3, 0.5], [0.0, 0.19, 0.41]
  (row,) = score_table(lines(ours, theirs))
  expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
  assert row.difference.paired
  np.testing.assert_allclose([row.difference.low, row.difference.high], expected)
  np.testing.assert_allclose(row.difference.mean, 0.1)


def test_other_seeds_are_compared_by_welch():
  ours, theirs = [0.1, 0.3, 0.5], [0.0, 0.19]
  (row,) = score_table(lines(ours, theirs))
  expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
  assert not row.difference.paired
  np.testing.assert_allclose([row.difference.low, row.difference.high], expected)


def test_a_single_seed_has_no_interval():
  (row,) = score_table(lines([0.3], [0.1]))
  assert row.difference.mean == pytest.approx(0.2)
  assert all(map(math.isnan, (row.pretrained.std, row.pretrained.low, row.difference.low)))


def test_what_is_undefined_is_counted_and_left_out_on_both_sides():
  scratch = [make_score_line(0.1, seed, pretrained=False) for seed in range(3)]
  (row,) = score_table(
    [make_score_line(None, 0), make_score_line(0.2, 1), make_score_line(0.3, 2), *scratch]
  )
  assert (row.pretrained.n, row.pretrained.undefined, row.pretrained.mean) == (
    2,
    1,
    pytest.approx(0.25),
  )
  assert not row.difference.paired  # seeds are no longer the same
  (row,) = score_table([make_score_line(None, 0), make_score_line(float('nan'), 1)])
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
def test_nothing_is_mixed_that_differs(fields: dict[str, Any]):
  rows = score_table([make_score_line(0.1), make_score_line(0.9, **fields)])
  assert sorted(row.pretrained.mean for row in rows) == [0.1, 0.9]


def test_a_seed_that_was_run_again_counts_once():
  (row,) = score_table([make_score_line(0.1), make_score_line(0.5)])
  assert (row.pretrained.n, row.pretrained.mean) == (1, 0.5)


def test_collapsed_runs_are_counted():
  (row,) = score_table(
    [
      make_score_line(0.0, 0, constant_prediction=True),
      make_score_line(0.0, 1, constant_prediction=True),
      make_score_line(0.2, 2),
    ]
  )
  assert row.pretrained.collapsed == 2 and row.scratch.collapsed == 0


def test_the_headline_of_a_task_comes_first_whatever_the_order_of_the_lines():
  given = [
    make_score_line(0.5, metric='accuracy', headline=False),
    make_score_line(0.1),
    make_score_line(0.6, task='boolq', metric='accuracy'),
  ]
  for order in (given, given[::-1]):
    assert [(row.task, row.metric) for row in score_table(order)] == [
      ('boolq', 'accuracy'),
      ('cola', 'matthews'),
      ('cola', 'accuracy'),
    ]


def searched(
  selections: dict[float, list[float | None]], which: str = 'last', **fields: Any
) -> list[dict[str, Any]]:
  """A line a rate and seed, whose value tells the rate."""
  return [
    make_score_line(
      rate,
      seed,
      learning_rate=rate,
      validation_score=selection,
      epoch_choice=which,
      held_out=100,
      **fields,
    )
    for rate, of_seeds in selections.items()
    for seed, selection in enumerate(of_seeds)
  ]


def test_the_rate_is_chosen_by_the_held_out_part_not_by_the_reported_split():
  # means 0.55, 0.5, 0.475
  given = searched({1e-4: [0.5, 0.6], 2e-4: [0.9, 0.1], 5e-4: [0.4, 0.55]})
  assert choose_rates(given) == choose_rates(given[::-1]) == (1e-4,)
  (row,) = score_table(given)
  assert (row.pretrained.learning_rate, row.pretrained.mean, row.pretrained.n) == (
    1e-4,
    pytest.approx(1e-4),
    2,
  )
  assert row.held_out == 100 and row.epochs == 3


def test_an_undefined_selection_counts_as_nothing_and_equals_go_to_the_lowest_rate():
  assert choose_rates(searched({1e-4: [0.3, 0.3], 2e-4: [0.5, None]})) == (1e-4,)
  assert choose_rates(searched({1e-4: [-0.3], 2e-4: [None]})) == (2e-4,)
  assert choose_rates(searched({2e-4: [0.3], 1e-4: [0.3]})) == (1e-4,)


def test_each_arm_has_its_own_rate_and_seeds_are_still_paired():
  ours, theirs = (
    searched({1e-4: [0.1, 0.1], 2e-4: [0.5, 0.5]}),
    searched({1e-4: [0.9, 0.9], 2e-4: [0.5, 0.5]}, pretrained=False, checkpoint_step=None),
  )
  (row,) = score_table(ours + theirs)
  assert (row.pretrained.learning_rate, row.scratch.learning_rate) == (2e-4, 1e-4)
  assert row.difference.paired and row.difference.mean == pytest.approx(1e-4)


def test_without_a_held_out_part_nothing_is_chosen_and_each_rate_is_a_row():
  given = [
    make_score_line(value, learning_rate=rate, pretrained=arm)
    for rate in (1e-4, 2e-4)
    for arm, value in ((True, rate), (False, -rate))
  ]
  assert choose_rates(given) == (1e-4, 2e-4)
  rows = score_table(given)
  assert [(row.pretrained.learning_rate, row.scratch.learning_rate) for row in rows] == [
    (1e-4, 1e-4),
    (2e-4, 2e-4),
  ]
  assert [row.difference.mean for row in rows] == pytest.approx([2e-4, 4e-4])


def test_the_best_epoch_is_shown_and_chooses_the_rate_of_both_rows():
  given = searched({1e-4: [0.6], 2e-4: [0.7]}, 'best') + searched(
    {1e-4: [0.6], 2e-4: [0.1]}, 'last'
  )
  best, last = score_table(given)
  assert (best.which, best.shown, last.which, last.shown) == ('best', True, 'last', False)
  assert best.pretrained.learning_rate == last.pretrained.learning_rate == 2e-4
  (row,) = score_table([make_score_line(0.1)])
  assert row.which == 'last' and row.shown


def test_scratch_stands_beside_every_step_of_its_checkpoint():
  rows = score_table(
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
  (row,) = score_table([make_score_line(0.1, pretrained=False)])
  assert row.step is None and row.scratch.n == 1


def test_baselines_and_the_ends_over_examples_are_there():
  (row,) = score_table(
    [
      make_score_line(0.5, 0, low=0.4, high=0.6, majority=0.1, frequency=0.2),
      make_score_line(0.5, 1, low=0.2, high=0.8),
    ]
  )
  assert (row.majority, row.frequency) == (0.1, 0.2)
  assert (row.pretrained.mean_example_low, row.pretrained.mean_example_high) == pytest.approx(
    (0.3, 0.7)
  )
  (row,) = score_table([make_score_line(0.5, majority=None, frequency=None)])
  assert all(map(math.isnan, (row.majority, row.frequency, row.pretrained.mean_example_low)))


def test_lines_of_another_version_are_refused():
  old = make_score_line(0.1)
  del old['held_out']
  with pytest.raises(InputError, match='without held_out'):
    score_table([old])
