"""Labels: those found in a file are known by name, those of the table also by index."""

import dataclasses

import pytest

from minilm_jax.errors import InputError
from minilm_jax.tasks import labels, table

SENTIMENT = table.find('sentiment')


def open_task(*names: str) -> table.Task:
  return dataclasses.replace(table.find('own'), labels=names, labels_from_data=True)


@pytest.mark.parametrize('values, names', [
    ([2, 10, 1], ('1', '2', '10')), (['2', 10, '-1'], ('-1', '2', '10')), (['b', 'a', 'b'], ('a', 'b')),
    (['2', '10', 'a'], ('10', '2', 'a')), (['1.5', '1'], ('1', '1.5')),
])
def test_classes_are_sorted_as_what_they_are(values: list, names: tuple[str, ...]):
  assert labels.found(values, 'the file') == names == labels.found(values[::-1] * 2, 'the file')


@pytest.mark.parametrize('values, said', [
    ([], 'no example'), (['a', 'a'], 'one label alone'), (['a', ''], 'row 2'), (['a', None], 'None'),
    ([1, True], 'True'), ([0.5, 1.5], 'kind=regression'), ([1, [2]], r'\[2\]'),
])
def test_what_names_no_class_is_refused(values: list, said: str):
  with pytest.raises(InputError, match=said):
    labels.found(values, 'the file')


def test_a_number_is_a_name_where_labels_were_found_and_an_index_elsewhere():
  stars = open_task('1', '2', '3')
  assert [labels.index(value, stars, 'here') for value in (1, '2', 3, -1, '-1')] == [0, 1, 2, -1, -1]
  with pytest.raises(InputError, match='training never shows'):
    labels.index(0, stars, 'here')
  assert [labels.index(value, SENTIMENT, 'here') for value in (1, '0', 'positive', -1)] == [1, 0, 1, -1]
  stance = open_task('-1', '0', '1')
  assert [labels.index(value, stance, 'here') for value in (-1, 0, 1)] == [0, 1, 2]
  with pytest.raises(InputError, match="did you mean 'ham'"):
    labels.index('hamm', open_task('ham', 'spam'), 'here')


def test_a_missing_column_is_named_with_those_there():
  labels.require({'text': '', 'label': 0}, ('text', 'label'), 'row 1')
  with pytest.raises(InputError, match="the column 'text'(.|\n)*row 1 has body, label(.|\n)*columns text and label"):
    labels.require({'body': '', 'label': 0}, ('text', 'label'), 'row 1')


@pytest.mark.parametrize('value, number', [(1, 1.0), ('2.5', 2.5), (-0.5, -0.5)])
def test_a_number_is_read_as_text_too(value: object, number: float):
  assert labels.number(value, 'here') == number
