"""Averages are over tasks for each seed, then over seeds."""

import math

import pytest
from scipy import stats

from minilm_jax.analysis.averages import Average, average_tasks, select_latest
from minilm_jax.analysis.scores import make_score_table
from tests.fake_runs import make_score_line


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
