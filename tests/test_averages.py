"""Averages over tasks: of the same seeds, of tasks that are named, and of none that was not run."""

import math

import pytest
from scipy import stats

from minilm_jax.analysis.averages import Average, averages
from minilm_jax.analysis.scores import score_table
from tests.fake_runs import make_score_line


def found(scores: dict[str, list[float | None]], scratch: dict[str, list[float | None]] | None = None,
          **fields: object) -> dict[str, Average]:
  lines = [make_score_line(value, seed, arm, task=task, **fields) for arm, tasks in ((True, scores), (False, scratch or {}))
           for task, values in tasks.items() for seed, value in enumerate(values)]
  return {average.name: average for average in averages(score_table(lines))}


OURS = {'cola': [0.1, 0.2, 0.0], 'sst2': [0.8, 0.7, 0.75], 'rte': [0.5, 0.6, 0.55], 'wnli': [0.3, 0.5, 0.4]}


def test_an_average_is_taken_for_each_seed_and_then_over_seeds():
  made = found(OURS)
  assert list(made) == ['all', 'without WNLI', 'without CoLA', 'without both']
  assert made['all'].tasks == ('cola', 'sst2', 'rte', 'wnli') and made['without both'].tasks == ('sst2', 'rte')
  seeds = [1.4 / 3, 0.5, 1.3 / 3]  # of cola, sst2 and rte
  group = made['without WNLI'].pretrained
  assert group.values == pytest.approx(seeds) and group.n == 3 and group.mean == pytest.approx(sum(seeds) / 3)
  assert (group.low, group.high) == pytest.approx(stats.t.interval(0.95, 2, group.mean, stats.sem(seeds)))
  assert made['all'].scratch.n == 0 and math.isnan(made['all'].difference.mean)


def test_the_difference_is_paired_by_seed():
  theirs = {task: [value - 0.1 for value in values] for task, values in OURS.items()}
  for average in found(OURS, theirs).values():
    assert average.difference.paired and average.difference.mean == pytest.approx(0.1)
    assert average.difference.low == pytest.approx(0.1) == average.difference.high  # every seed differs by as much


def test_arms_are_compared_on_the_tasks_of_both():
  first, *_ = made = list(averages(score_table([
      make_score_line(0.5, seed, arm, task=task) for seed in range(2) for arm, tasks in (
          (True, ('sst2', 'rte', 'qnli')), (False, ('sst2', 'rte'))) for task in tasks])))
  assert first.tasks == ('sst2', 'rte') and first.difference.paired
  assert [(average.tasks, average.pretrained.n, average.scratch.n) for average in made[1:]] == [
      (('sst2', 'qnli', 'rte'), 2, 0)]


@pytest.mark.parametrize('rte', [[0.5], [0.5, None]])
def test_other_seeds_have_a_mean_without_an_interval(rte: list[float | None]):
  group = found({'sst2': [0.7, 0.8], 'rte': rte})['all'].pretrained
  assert group.mean == pytest.approx((0.75 + 0.5) / 2) and group.n == 0 and math.isnan(group.low)


def test_mnli_counts_once_by_its_matched_part():
  rows = score_table([make_score_line(0.5, task='sst2'), make_score_line(0.6, task='mnli', split='validation_matched'),
                      make_score_line(0.1, task='mnli', split='validation_mismatched')])
  average, = averages(rows)
  assert average.tasks == ('sst2', 'mnli') and average.split == 'validation'
  assert average.pretrained.mean == pytest.approx(0.55)


def test_what_is_minor_not_shown_or_no_task_of_glue_is_in_no_average():
  given = [make_score_line(0.5, task='sst2'), make_score_line(0.7, task='rte'), make_score_line(0.0, task='rte', metric='f1', headline=False),
           make_score_line(0.0, task='blimp', split='all'), make_score_line(0.0, task='rte', split='test')]
  average, = averages(score_table(given))
  assert average.pretrained.mean == pytest.approx(0.6)
  best = [make_score_line(0.9, task=task, epoch_choice='best') for task in ('sst2', 'rte')]
  average, = averages(score_table(given[:2] + best))
  assert average.pretrained.mean == pytest.approx(0.9)


def test_a_task_alone_or_of_two_protocols_makes_no_average():
  assert averages(score_table([make_score_line(0.5)])) == []
  two = [make_score_line(0.5, task='rte', train_examples=n) for n in (100, 200)]
  assert averages(score_table([make_score_line(0.5, task='sst2'), *two])) == []


def test_steps_checkpoints_and_filters_stay_apart():
  given = [make_score_line(value, task=task, **fields) for task in ('sst2', 'rte') for value, fields in (
      (0.1, {}), (0.2, {'checkpoint_step': 7}), (0.3, {'checkpoint': 'large'}), (0.4, {'filtered': True}))]
  assert sorted(average.pretrained.mean for average in averages(score_table(given))) == pytest.approx([.1, .2, .3, .4])
