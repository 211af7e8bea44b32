"""Words and cells: they say what a row holds and no more."""

import doctest

import pytest

from minilm_jax.analysis import scores
from minilm_jax.analysis.report import tables
from minilm_jax.analysis.scores import score_table
from tests.fake_runs import make_score_line


def test_examples_in_docstrings():
  assert doctest.testmod(tables).failed == 0


def test_tables_show_the_last_step_and_the_epoch_that_counts():
  rows = score_table(
    [
      make_score_line(0.1, checkpoint_step=step, epoch_choice=which)
      for step in (50, 200)
      for which in ('best', 'last')
    ]
  )
  assert len(rows) == 4
  assert [(row.step, row.which) for row in scores.select_main(rows)] == [(200, 'best')]
  assert len(tables.sentences(rows)) == 1


def test_phenomena_have_a_table_of_their_own():
  rows = score_table(
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
  assert [row.split for row in scores.select_main(rows)] == ['all']
  assert tables.PHENOMENON_FORMAT.fill(scores.select_phenomena(rows)).rows == [
    ['ellipsis', 'blimp', 'tiny; step 100', '60.0 [40.0, 80.0]', '60.0', '1,043'],
    ['islands', 'blimp', 'tiny; step 100', '70.0 [40.0, 80.0]', '60.0', '1,043'],
  ]
  (sentence,) = tables.sentences(rows)
  assert sentence.startswith('On blimp, 1,043 examples, from tiny: accuracy 50.0')
  assert tables.protocol(rows) == ''  # nothing was trained


def test_a_cell_names_rate_baselines_and_collapse():
  (row,) = score_table(
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
  (row,) = score_table([make_score_line(0.5, low=0.45, high=0.55, majority=None, frequency=None)])
  (cells,) = tables.SCORE_FORMAT.fill([row]).rows
  assert '50.0 (n = 1); 45.0 to 55.0 over examples' in cells[3]
  assert cells[6] == 'undefined'


@pytest.mark.parametrize(
  'given, said',
  [
    ([make_score_line(0.5)], 'Protocol: 1 seed; nothing held out, nothing chosen; 3 epochs.'),
    (
      [
        make_score_line(0.5, seed, held_out=100, train_examples=900, epoch_choice='best', epoch=5.0)
        for seed in range(3)
      ]
      + [make_score_line(0.5, task='rte', epoch=10.0)],
      'Protocol: 1 to 3 seeds; of some tasks 10% of the training examples held out, which chose the learning rate of each '
      'arm and the epoch of each seed; 5 to 10 epochs.',
    ),
  ],
)
def test_the_protocol_is_told(given: list, said: str):
  assert tables.protocol(score_table(given)) == said


def test_an_average_names_its_tasks():
  (average,) = scores.average_tasks(
    score_table(
      [
        make_score_line(0.5, seed, task=task)
        for task, n in (('sst2', 2), ('rte', 1))
        for seed in range(n)
      ]
    )
  )
  name, _, ours, theirs, _, tasks = tables.AVERAGE_FORMAT.fill([average]).rows[0]
  assert (name, ours, theirs, tasks) == ('all, validation', '50.0; seeds differ', '–', 'sst2, rte')
