"""Tests of `tables`: answers and cells have the numbers of their rows."""

import math

import pytest

from minilm_jax.analysis import scores
from minilm_jax.analysis.report import tables
from minilm_jax.analysis.scores import ScoreRow, make_score_table
from tests.fake_runs import make_score_line


def make_phenomena() -> list[ScoreRow]:
  return make_score_table(
    [
      make_score_line(
        0.5 + n / 10,
        task='blimp',
        metric='accuracy',
        split=split,
        headline=split == 'all',
        low=0.4,
        high=0.8,
        frequency=0.6,
        learning_rate=None,
        epoch=None,
        train_examples=0,
      )
      for n, split in enumerate(('all', 'ellipsis', 'islands'))
    ]
  )


def test_tables_have_the_last_step_and_the_best_epoch():
  rows = make_score_table(
    [
      make_score_line(0.1, checkpoint_step=step, epoch_choice=which)
      for step in (50, 200)
      for which in ('best', 'last')
    ]
  )
  assert len(rows) == 4
  assert [(row.step, row.which) for row in scores.select_main(rows)] == [(200, 'best')]
  assert len(list(tables.answer_scores(rows))) == 1


def test_phenomena_have_their_own_table():
  rows = make_phenomena()
  assert [row.split for row in scores.select_main(rows)] == ['all']
  assert tables.PHENOMENON_FORMAT.fill(scores.select_main(rows, phenomena=True)).rows == [
    ['ellipsis', 'blimp', 'tiny; step 100', '60.0 [40.0, 80.0]', '60.0', '1,043'],
    ['islands', 'blimp', 'tiny; step 100', '70.0 [40.0, 80.0]', '60.0', '1,043'],
  ]
  (answer,) = tables.answer_scores(rows)
  assert 'blimp' in answer.question and '50.0' in answer.number and '1,043' in answer.notes[0]
  assert tables.describe_protocol(rows) == ''  # nothing was trained


@pytest.mark.parametrize(
  'pretrained, scratch, verdict, number',
  [
    ([0.7, 0.71, 0.72], [0.6, 0.62, 0.61], 'yes', '+10.0 points [+7.5, +12.5] (n = 3)'),
    ([0.6, 0.62, 0.61], [0.7, 0.71, 0.72], 'no, lower', '-10.0 points [-12.5, -7.5] (n = 3)'),
    ([0.7], [0.6], 'undecided', '+10.0 points (n = 1, no interval)'),
    ([0.7, 0.5], [0.6, 0.61], 'undecided', '-0.5 points [-133.9, +132.9] (n = 2)'),
    ([0.7, 0.71, 0.72], [0.6, 0.61], 'yes', '+10.5 points [+8.0, +13.0] (n = 3 and 2)'),
    ([0.7, 0.71], [], 'not measured', '70.5 [64.1, 76.9] pre-trained (n = 2)'),
    ([], [0.7, 0.71], 'not measured', '70.5 [64.1, 76.9] from scratch (n = 2)'),
    ([math.nan] * 2, [0.7, 0.71], 'not measured', '70.5 [64.1, 76.9] from scratch (n = 2)'),
  ],
)
def test_answers_follow_the_interval(
  pretrained: list[float], scratch: list[float], verdict: str, number: str
):
  rows = make_score_table(
    make_score_line(value, seed, arm)
    for arm, values in ((True, pretrained), (False, scratch))
    for seed, value in enumerate(values)
  )
  (answer,) = tables.answer_scores(rows)
  assert (answer.verdict, answer.number) == (verdict, number)
  # (t_0.975 + t_0.8) s / sqrt(3) of the differences 0.1, 0.09 and 0.11, with 2 degrees of freedom.
  assert any('3.1 points' in note for note in answer.notes) == (
    len(pretrained) == len(scratch) == 3
  )


def test_many_scores_have_one_answer():
  rows = make_score_table(
    make_score_line(0.5 + (gain + 0.01 * (seed - 1)) * arm, seed, arm, task=f'task{number}')
    for number, gain in enumerate([0.2] * 10 + [0.0] * 3 + [-0.2])
    for arm in (True, False)
    for seed in range(3)
  )
  (answer,) = tables.answer_scores(rows)
  assert answer.verdict == 'in 10 of 14'
  assert '3 of 14' in answer.number and '-20.0 to +20.0' in answer.number


@pytest.mark.parametrize(
  'collapsed, note',
  [
    ((True, True), 'All models, pre-trained and from scratch, predict one class.'),
    ((False, True), ''),
    ((True, False), ''),
    ((False, False), ''),
  ],
)
def test_two_arms_of_constant_predictions_decide_nothing(collapsed: tuple[bool, bool], note: str):
  noise = (0.0, 0.01, -0.01)
  lines = [
    make_score_line(
      0.56 + noise[seed] if arm else 0.44,
      seed,
      arm,
      task=f'task{task}',
      constant_prediction=collapsed[0] if arm else collapsed[1],
    )
    for task in range(10)
    for arm in (True, False)
    for seed in range(3)
  ]
  (answer,) = tables.answer_scores(make_score_table(lines[:6]))
  assert answer.verdict == ('undecided' if note else 'yes')
  assert ('power' in answer.notes[-1]) == (not note)
  assert not note or note in answer.notes
  (answer,) = tables.answer_scores(make_score_table(lines))
  assert answer.verdict == ('in 0 of 10' if note else 'in 10 of 10')


@pytest.mark.parametrize('num_scratch', [2, 3])  # with Welch's interval, and paired by seed
def test_seeds_without_variance_decide_nothing(num_scratch: int):
  rows = make_score_table(
    make_score_line(0.7 if arm else 0.6, seed, arm)
    for arm, seeds in ((True, 3), (False, num_scratch))
    for seed in range(seeds)
  )
  (answer,) = tables.answer_scores(rows)
  assert answer.verdict == 'undecided' and not any('power' in note for note in answer.notes)


def test_a_model_of_one_class_among_others_keeps_the_verdict():
  rows = make_score_table(
    make_score_line(0.7 * arm + 0.01 * seed * arm, seed, arm, constant_prediction=seed == 0)
    for arm in (True, False)
    for seed in range(3)
  )
  (answer,) = tables.answer_scores(rows)
  assert answer.verdict == 'yes'


def test_questions_have_the_settings_in_which_scores_differ():
  lines = [
    {**make_score_line(0.5, task=task, **fields), 'protocol': {'epochs': epochs}}
    for task, epochs, fields in (
      ('sst2', 3, {'learning_rate': 1e-4}),
      ('sst2', 3, {'learning_rate': 5e-4}),
      ('mnli', 3, {'split': 'validation_matched'}),
      ('mnli', 3, {'split': 'validation_mismatched'}),
      ('rte', 3, {'train_examples': 100}),
      ('rte', 3, {'train_examples': 2490}),
      ('cola', 3, {'held_out': 100}),
      ('cola', 10, {'held_out': 0}),
      ('mrpc', 3, {}),
    )
  ]
  questions = [answer.question for answer in tables.answer_scores(make_score_table(lines))]
  assert sorted(question.split(' on ')[1] for question in questions) == [
    'cola from tiny with held_out=0, epochs=10?',
    'cola from tiny with held_out=100, epochs=3?',
    'mnli from tiny with validation_matched?',
    'mnli from tiny with validation_mismatched?',
    'mrpc from tiny?',
    'rte from tiny with 100 training examples?',
    'rte from tiny with 2,490 training examples?',
    'sst2 from tiny with rate 0.0001?',
    'sst2 from tiny with rate 0.0005?',
  ]


def test_rates_that_held_out_examples_chose_are_in_no_question():
  rows = make_score_table(
    make_score_line(0.5, checkpoint=name, learning_rate=rate, held_out=10, validation_score=0.5)
    for name, rate in (('a', 1e-4), ('b', 5e-4))
  )
  assert tables.describe_rows(rows) == ['', '']


def test_cells_have_rate_baselines_and_collapse():
  (row,) = make_score_table(
    [
      make_score_line(
        0.5, seed, majority=0.4, frequency=0.3, learning_rate=2e-4, constant_prediction=True
      )
      for seed in range(2)
    ]
  )
  text = ' | '.join(tables.SCORE_FORMAT.fill([row]).rows[0])
  assert '50.0 ± 0.0 (n = 2) [50.0, 50.0]; rate 0.0002; 2 collapsed' in text
  assert '40.0 majority; 30.0 by frequency' in text and '1,043 validation' in text
  (row,) = make_score_table(
    [make_score_line(0.5, low=0.45, high=0.55, majority=None, frequency=None)]
  )
  (cells,) = tables.SCORE_FORMAT.fill([row]).rows
  assert cells[3].startswith('50.0 (n = 1); 45.0 to 55.0') and cells[6] == 'undefined'


@pytest.mark.parametrize(
  'lines, protocol',
  [
    ([make_score_line(0.5)], 'Protocol: 1 seed; no held-out part, no selection; 3 epochs.'),
    (
      [
        make_score_line(0.5, seed, held_out=100, train_examples=900, epoch_choice='best', epoch=5.0)
        for seed in range(3)
      ]
      + [make_score_line(0.5, task='rte', epoch=10.0)],
      'Protocol: 1 to 3 seeds; 10% of the training examples of some tasks held out to select the '
      'learning rate of each arm and the epoch of each seed; 5 to 10 epochs.',
    ),
  ],
)
def test_protocol_has_seeds_selection_and_epochs(lines: list, protocol: str):
  assert tables.describe_protocol(make_score_table(lines)) == protocol


def test_averages_list_their_tasks():
  (average,) = scores.average_tasks(
    make_score_table(
      [
        make_score_line(0.5, seed, task=task)
        for task, n in (('sst2', 2), ('rte', 1))
        for seed in range(n)
      ]
    )
  )
  name, _, pretrained, scratch, _, tasks = tables.AVERAGE_FORMAT.fill([average]).rows[0]
  assert (name, pretrained, scratch) == ('all, validation', '50.0; seeds differ', '–')
  assert tasks == 'sst2, rte'
