"""Labels: a class has one name and one index in every format; unknown labels are marked."""

import dataclasses
import math
import re

import numpy as np
import pytest

from minilm_jax.core.errors import InputError
from minilm_jax.tasks import labels
from minilm_jax.tasks.task import Task, convert_task, find_task

SENTIMENT = find_task('sentiment')


def make_open_task(*names: str) -> Task:
  """Returns a task whose labels are from a training file."""
  return dataclasses.replace(find_task('own'), labels=names, labels_from_data=True)


@pytest.mark.parametrize(
  'values, names',
  [
    ([2, 10, 1], ('1', '2', '10')),
    (['2', 10, '-1'], ('-1', '2', '10')),
    (['b', 'a', 'b'], ('a', 'b')),
    (['2', '10', 'a'], ('10', '2', 'a')),
    (['1.5', '1'], ('1', '1.5')),
    ([0.0, '1.0', 1, '1.', ' 0', None], ('0', '1')),
    (['10.0', '9.0', '-1.0'], ('-1', '9', '10')),
    (['pos ', 'pos', '\tneg', ''], ('neg', 'pos')),
    ([True, False, 'True'], ('False', 'True')),
    (['-', 'neutral', 'entailment'], ('entailment', 'neutral')),
    (['-', '+'], ('+', '-')),
  ],
)
def test_labels_are_sorted_as_numbers_or_text(values: list, names: tuple[str, ...]):
  for column in (values, values[::-1] * 2):
    assert labels.collect_labels(column, 'the file') == names


def test_words_for_missing_values_are_classes():
  assert labels.collect_labels(['null', 'NA', 'None', '', None], 'x') == ('NA', 'None', 'null')


def test_codes_of_equal_value_have_one_order():
  codes = ['7', '07', '007', '0007', '8', '08', '008', '0008', '9', '09', '009', '0009']
  names = ('0007', '007', '07', '7', '0008', '008', '08', '8', '0009', '009', '09', '9')
  assert labels.collect_labels(codes, 'the file') == names


@pytest.mark.parametrize(
  'values, value',
  [
    ([], 'the file'),
    (['a', 'a'], "'a'"),
    (['a', '', ' ', None], "'a'"),
    (['', None], 'no examples with a label'),
    (['1', 1.0, '1.0', ' 1 '], "'1'"),
    (['entailment', '-'], "'entailment'"),
    ([0.5, 1.5], 'task.kind=regression'),
    ([1, [2]], r'\[2\]'),
  ],
)
def test_a_column_without_two_classes_is_refused(values: list, value: str):
  with pytest.raises(InputError, match=value):
    labels.collect_labels(values, 'the file')


@pytest.mark.parametrize(
  'task, values, indices',
  [
    (make_open_task('1', '2', '3'), (1, '2', 3), [0, 1, 2]),
    (make_open_task('-1', '0', '1'), (-1, 0, 1), [0, 1, 2]),
    (make_open_task('0', '1'), (1.0, '1.0', ' 1', '0.0'), [1, 1, 1, 0]),
    (make_open_task('False', 'True'), (True, False, 'True'), [1, 0, 1]),
    (make_open_task('+', '-'), ('-', '+'), [1, 0]),
    (make_open_task('entailment', 'neutral'), ('-', 'neutral '), [-1, 1]),
    (find_task('mnli'), ('-', 'contradiction ', '2.0'), [-1, 2, 2]),
    (find_task('sst2'), (-1, '-1', -1.0, '-1.0', 0, '1'), [-1, -1, -1, -1, 0, 1]),
    (
      SENTIMENT,
      (0, 1, 1.0, '1', '0', 'positive', 'negative', '1.0', '0.0', 'positive '),
      [0, 1, 1, 1, 0, 1, 0, 1, 0, 1],
    ),
  ],
)
def test_a_number_is_a_name_if_labels_are_from_data_and_else_an_index(
  task: Task, values: tuple, indices: list[int]
):
  assert [labels.find_label_index(value, task, 'row 1') for value in values] == indices


@pytest.mark.parametrize(
  'task, value, match',
  [
    (make_open_task('1', '2', '3'), 0, "'0' in row 1"),
    (make_open_task('ham', 'spam'), 'hamm', "'ham'"),
    (SENTIMENT, 2, '0 or .negative., 1 or .positive.'),
    (SENTIMENT, 'positve', "'positive'"),
    (make_open_task('0', '1'), -1, "'-1' in row 1"),
    (find_task('sst2'), -2, '-2 in row 1'),
    *(
      (SENTIMENT, value, "1 or 'positive'")
      for value in (-1, '-1', 0.5, None, True, '', [1], '9' * 5000)
    ),
  ],
)
def test_a_label_outside_the_task_is_refused(task: Task, value: object, match: str):
  with pytest.raises(InputError, match=match):
    labels.find_label_index(value, task, 'row 1')


def test_numeric_labels_are_finite_and_may_be_text():
  values = (1, '2.5', -0.5)
  assert [labels.parse_number(value, 'row 1') for value in values] == [1.0, 2.5, -0.5]
  assert labels.parse_number('-3.4e38', 'row 1') == -3.4e38
  for value in ('high', None, True, 'nan', 'inf', '', 1e39, '-1e39', 10**400):
    with pytest.raises(InputError, match=re.escape(f'{value!r} in row 1')):
      labels.parse_number(value, 'row 1')


def test_an_empty_cell_is_an_unknown_label_of_every_task():
  own = make_open_task('ham', 'spam')
  for value in ('', ' ', None):
    assert labels.parse_label(value, own, 'row 1') == -1
    assert labels.parse_label(value, SENTIMENT, 'row 1') == -1
    assert math.isnan(labels.parse_label(value, find_task('stsb'), 'row 1'))
  classes, numbers = np.array([0, -1, 1], np.int32), np.array([0.0, -1.0, math.nan], np.float32)
  assert labels.mask_unlabelled(classes).tolist() == [False, True, False]
  assert labels.mask_unlabelled(numbers).tolist() == [False, False, True]


def test_minus_one_is_a_number_in_a_regression_outside_glue():
  own = convert_task(find_task('own'), 'regression')
  assert [labels.parse_label(value, own, 'row 1') for value in (-1, '-1', '-1.0')] == [-1.0] * 3
  assert math.isnan(labels.parse_label(-1.0, find_task('stsb'), 'row 1'))
  assert labels.parse_label('-1.5', find_task('stsb'), 'row 1') == -1.5
