"""Tables of scores have the means and intervals of SciPy and separate rows for each protocol."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from minilm_jax.analysis.scores import Average, average_tasks, make_score_table, select_latest
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


def make_averages(
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
  return {average.name: average for average in average_tasks(make_score_table(lines))}


SCORES = {
  'cola': [0.1, 0.2, 0.0],
  'sst2': [0.8, 0.7, 0.75],
  'rte': [0.5, 0.6, 0.55],
  'wnli': [0.3, 0.5, 0.4],
}


def test_an_average_is_taken_for_each_seed_and_then_over_seeds():
  averages = make_averages(SCORES)
  assert list(averages) == ['all', 'without WNLI', 'without CoLA', 'without both']
  assert averages['all'].tasks == ('cola', 'sst2', 'rte', 'wnli') and averages[
    'without both'
  ].tasks == ('sst2', 'rte')
  seeds = [1.4 / 3, 0.5, 1.3 / 3]  # of cola, sst2 and rte
  group = averages['without WNLI'].pretrained
  assert (
    group.values == pytest.approx(seeds)
    and group.n == 3
    and group.mean == pytest.approx(sum(seeds) / 3)
  )
  assert (group.low, group.high) == pytest.approx(
    stats.t.interval(0.95, 2, group.mean, stats.sem(seeds))
  )
  assert averages['all'].scratch.n == 0 and math.isnan(averages['all'].difference.mean)


def test_differences_of_averages_are_paired_by_seed():
  scratch = {task: [value - 0.1 for value in values] for task, values in SCORES.items()}
  for average in make_averages(SCORES, scratch).values():
    assert average.difference.paired and average.difference.mean == pytest.approx(0.1)
    # All seeds have the same difference.
    assert average.difference.low == pytest.approx(0.1) == average.difference.high


def test_averages_are_over_the_tasks_of_both_arms():
  first, *_ = averages = list(
    average_tasks(
      make_score_table(
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
  assert [(average.tasks, average.pretrained.n, average.scratch.n) for average in averages[1:]] == [
    (('sst2', 'qnli', 'rte'), 2, 0)
  ]


@pytest.mark.parametrize('rte', [[0.5], [0.5, None]])
def test_tasks_with_different_seeds_have_a_mean_without_an_interval(rte: list[float | None]):
  group = make_averages({'sst2': [0.7, 0.8], 'rte': rte})['all'].pretrained
  assert group.mean == pytest.approx((0.75 + 0.5) / 2) and group.n == 0 and math.isnan(group.low)


def test_averages_use_the_matched_split_of_mnli():
  rows = make_score_table(
    [
      make_score_line(0.5, task='sst2'),
      make_score_line(0.6, task='mnli', split='validation_matched'),
      make_score_line(0.1, task='mnli', split='validation_mismatched'),
    ]
  )
  (average,) = average_tasks(rows)
  assert average.tasks == ('sst2', 'mnli') and average.split == 'validation'
  assert average.pretrained.mean == pytest.approx(0.55)


def test_averages_omit_minor_metrics_other_epochs_and_other_tasks():
  lines = [
    make_score_line(0.5, task='sst2'),
    make_score_line(0.7, task='rte'),
    make_score_line(0.0, task='rte', metric='f1', headline=False),
    make_score_line(0.0, task='blimp', split='all'),
    make_score_line(0.0, task='rte', split='test'),
  ]
  (average,) = average_tasks(make_score_table(lines))
  assert average.pretrained.mean == pytest.approx(0.6)
  best = [make_score_line(0.9, task=task, epoch_choice='best') for task in ('sst2', 'rte')]
  (average,) = average_tasks(make_score_table(lines[:2] + best))
  assert average.pretrained.mean == pytest.approx(0.9)


def test_a_single_task_or_two_protocols_give_no_average():
  assert average_tasks(make_score_table([make_score_line(0.5)])) == []
  protocols = [make_score_line(0.5, task='rte', train_examples=n) for n in (100, 200)]
  assert average_tasks(make_score_table([make_score_line(0.5, task='sst2'), *protocols])) == []


def test_steps_checkpoints_and_filters_have_separate_averages():
  lines = [
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
    average.pretrained.mean for average in average_tasks(make_score_table(lines))
  ) == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_the_latest_averages_have_the_last_step_of_a_checkpoint():
  """Tasks may have been scored in any order, and some only from scratch."""
  lines = [
    make_score_line(0.5 + step / 1000, task=task, checkpoint_step=step)
    for task, steps in (('cola', (200,)), ('mrpc', (100, 200)), ('sst2', (100, 200)))
    for step in steps
  ]
  lines += [
    make_score_line(0.4, task=task, pretrained=False, checkpoint_step=None)
    for task in ('rte', 'qnli')
  ]
  latest = select_latest(average_tasks(make_score_table(lines)))
  assert {average.step for average in latest} == {200}
  assert {average.tasks for average in latest} == {('cola', 'sst2', 'mrpc'), ('sst2', 'mrpc')}


def test_averages_have_the_protocol_of_their_tasks():
  lines = [
    {
      **make_score_line(0.5, task=task, checkpoint=name, train_examples=100),
      'protocol': {'epochs': epochs},
    }
    for name, rte, cola in (('a', 3.0, 3.0), ('b', 10.0, 3.0), ('c', 10.0, 10.0))
    for task, epochs in (('rte', rte), ('cola', cola))
  ]
  averages = {average.checkpoint: average for average in average_tasks(make_score_table(lines))}
  assert averages['a'].protocol == 'epochs=3.0' and averages['c'].protocol == 'epochs=10.0'
  assert averages['b'].protocol == 'cola: epochs=3.0; rte: epochs=10.0'
  assert averages['a'].train_examples == 200
