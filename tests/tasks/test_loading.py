"""Tests sources of rows: equal rows from all sources, missing sources, samples."""

import collections
import dataclasses
import json
import pathlib
import random

import pytest

from configs import base
from minilm_jax.core import recipe
from minilm_jax.core.config import TaskConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import tfds
from minilm_jax.tasks import loading, task
from minilm_jax.tasks.task import find_task

CONFIG = recipe.build(TaskConfig, base.finetune().task.to_dict())
ROWS = [{'text': 'a', 'label': 'x'}, {'text': 'b', 'label': 'y'}]
OWN = task.find_task('own')


@pytest.fixture(name='folder')
def _folder(tmp_path: pathlib.Path) -> pathlib.Path:
  for split in ('train', 'test'):
    (tmp_path / f'{split}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
  return tmp_path


def test_a_folder_and_its_files_give_equal_rows(folder: pathlib.Path):
  files = dataclasses.replace(
    CONFIG, train=str(folder / 'train.jsonl'), test=str(folder / 'test.jsonl')
  )
  for config in (dataclasses.replace(CONFIG, folder=str(folder)), files):
    for split in ('train', 'test'):
      assert list(loading.read_rows(OWN, config, split)) == ROWS
    with pytest.raises(loading.MissingSplit):
      loading.read_rows(OWN, config, 'validation')
  assert list(loading.list_named_files(files)) == ['train', 'test']


def test_a_json_array_is_a_table(tmp_path: pathlib.Path):
  rows = [{'text': 'the cat sees', 'label': 'neg'}, {'text': 'the dog eats', 'label': 'pos'}]
  (tmp_path / 'a.json').write_text(json.dumps(rows))
  config = dataclasses.replace(CONFIG, train=str(tmp_path / 'a.json'))
  assert list(loading.read_rows(find_task('own'), config, 'train')) == rows


def test_a_json_file_is_read_as_fewrel(tmp_path: pathlib.Path):
  item = {'tokens': ['a', 'b'], 'h': ['', '', [[0]]], 't': ['', '', [[1]]]}
  (tmp_path / 'train.json').write_text(json.dumps({'r': [item]}))
  row = {'text': 'a b', 'label': 'r'}
  config = dataclasses.replace(CONFIG, folder=str(tmp_path))
  assert list(loading.read_rows(find_task('fewrel'), config, 'train')) == [row]
  marked = dataclasses.replace(CONFIG, train=str(tmp_path / 'train.json'), markers=True)
  assert list(loading.read_rows(find_task('fewrel'), marked, 'train')) == [
    row | {'marked': 'qj a jq qz b zq'}
  ]


@pytest.mark.parametrize(
  'split, changes, splits',
  [
    ('validation', {'train': 'a'}, True),
    ('test', {'train': 'a', 'validation': 'b'}, True),
    ('test', {'test': 'b'}, False),
    ('test', {'train': 'a', 'test': 'b'}, False),
    ('train', {'train': 'a'}, False),
    ('tset', {'train': 'a'}, False),
    ('validation', {'folder': 'a'}, False),
  ],
)
def test_the_training_file_is_split_if_the_reported_split_has_no_file(
  split: str, changes: dict, splits: bool
):
  config = dataclasses.replace(CONFIG, split=split, **changes)
  assert loading.splits_training_file(config) == splits


@pytest.mark.parametrize('name', [name for name, task in task.TASKS.items() if task.tfds])
def test_a_missing_data_set_is_refused_with_tfds_code(name: str, tmp_path: pathlib.Path):
  task, folder = find_task(name), tmp_path / 'tfds'
  config = dataclasses.replace(CONFIG, name=name, data_dir=str(folder))
  match = rf'{folder}(.|\n)*{task.tfds}.+array_record.+task.folder'
  with pytest.raises(InputError, match=match):
    loading.read_rows(task, config, 'test')
  with pytest.raises(InputError, match=rf'task.data_dir .*{task.tfds} .*task.folder'):
    loading.read_rows(task, CONFIG, 'test')


def test_a_split_that_a_data_set_lacks_is_a_missing_split(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  def raise_error(name: str, split: str):
    raise InputError(f'the split {split!r}', 'no such split', 'name another')

  monkeypatch.setattr(tfds, 'find_dataset', lambda name, data_dir: 'somewhere')
  monkeypatch.setattr(tfds, 'read_examples', raise_error)
  config = dataclasses.replace(CONFIG, data_dir=str(tmp_path))
  with pytest.raises(loading.MissingSplit, match="'validation"):
    loading.read_rows(find_task('mnli'), config, 'validation')


def test_a_task_without_training_examples_names_the_task_that_predicts_it(tmp_path: pathlib.Path):
  config = dataclasses.replace(CONFIG, folder=str(tmp_path))
  with pytest.raises(loading.MissingSplit, match='fine-tune on mnli'):
    loading.read_rows(find_task('ax'), config, 'train')


@pytest.mark.parametrize(
  'changes, split, match',
  [
    ({}, 'train', 'examples of own'),
    ({'train': 'no.csv'}, 'tset', "'test'"),
    ({'test': 'no.csv'}, 'train', 'task.train'),
    ({'train': 'no.csv'}, 'train', 'no.csv'),
    ({'train': 'no.docx'}, 'train', 'no.docx'),
    ({'train': 'no.json'}, 'train', 'no.json'),
    ({'folder': 'no'}, 'train', 'task.folder'),
    ({'data_dir': 'no'}, 'train', 'task.data_dir'),
  ],
)
def test_a_missing_source_is_named(changes: dict, split: str, match: str):
  with pytest.raises(InputError, match=match):
    list(loading.read_rows(OWN, dataclasses.replace(CONFIG, **changes), split))


TEXTS = [f'text {i}' for i in range(200)]


def test_the_validation_part_is_independent_of_the_training_limit():
  first = set(loading.select_by_hash(TEXTS, 40))
  held = loading.split_validation(TEXTS, 0.2)
  assert len(held) == 40 and 0 < len(first & held) < 20
  assert loading.split_validation(TEXTS, 0.1) < held


def test_equal_texts_stay_together():
  texts = [text for text in TEXTS[:50] for _ in range(4)]
  held = loading.split_validation(texts, 0.25)
  assert 48 <= len(held) <= 50 and all({i ^ 1, i ^ 2} <= held for i in held)
  assert loading.split_validation(['same'] * 10, 0.2) == set()


def change_text(text: str, number: int) -> str:
  """Returns a text that a model reads as the same pieces."""
  return (text, text.upper(), f' {text}\n', text.replace(' ', '\t  '), f'{text}\u00a0')[number % 5]


def test_texts_that_differ_in_case_or_white_space_stay_together():
  pairs = [f'{text}\0{text} Cafe\u0301' for text in TEXTS[:50]]
  texts = [change_text(text, number) for text in pairs for number in range(4)]
  texts[3] = ' \0'.join(texts[3].split('\0'))
  held = loading.split_validation(texts, 0.25)
  assert 48 <= len(held) <= 50 and all({i ^ 1, i ^ 2} <= held for i in held)
  # The first text of a group gives the hash, so changes of later texts move no group.
  assert held == loading.split_validation([text for text in pairs for _ in range(4)], 0.25)
  assert loading.split_validation(['a b\0c', 'a\0b c'] * 2, 0.5) in ({0, 2}, {1, 3})


def test_a_balanced_evaluation_sample_has_no_changed_training_text():
  labels = ['abcd'[i % 4] for i in range(200)]
  texts = [*TEXTS[:180], *(change_text(text, i + 1) for i, text in enumerate(TEXTS[:20]))]
  equal = loading.sample_balanced_splits([*TEXTS[:180], *TEXTS[:20]], labels, 30, 15)
  assert loading.sample_balanced_splits(texts, labels, 30, 15) == equal


def test_a_balanced_sample_is_drawn_as_in_paper_2():
  labels = ['b', 'a', 'b', 'a', 'b', 'a', 'b', 'a']
  generator = random.Random(42)
  # 'b' is seen first
  expected = [*generator.sample([0, 2, 4, 6], 2), *generator.sample([1, 3, 5, 7], 2)]
  assert loading.sample_balanced(labels, 2) == sorted(expected)
  assert loading.sample_balanced(labels, 4) == list(range(8))
  with pytest.raises(InputError, match="5 (.|\n)*4 of 'b'(.|\n)*task.per_label"):
    loading.sample_balanced(labels, 5)


def test_balanced_training_and_evaluation_samples_share_no_text():
  labels = ['abcd'[i % 4] for i in range(200)]
  texts = [*TEXTS[:180], *TEXTS[:20]]  # twenty sentences twice, with another label or the same
  first, second = loading.sample_balanced_splits(texts, labels, 30, 15)
  assert collections.Counter(labels[i] for i in first) == dict.fromkeys('abcd', 30)
  assert collections.Counter(labels[i] for i in second) == dict.fromkeys('abcd', 15)
  assert not {texts[i] for i in first} & {texts[i] for i in second} and not set(first) & set(second)
  with pytest.raises(InputError, match='45 of'):
    loading.sample_balanced_splits(texts[:180], labels[:180], 40, 6)
  with pytest.raises(InputError, match="5 .*'a'(.|\n)*task.eval_per_label"):
    loading.sample_balanced_splits(TEXTS[:2] * 20, ['ab'[i % 2] for i in range(40)], 10, 5)
