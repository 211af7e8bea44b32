"""Places: whatever holds the rows, the same come out, and what is missing is named with how to get it."""

import dataclasses
import json
import pathlib

import pytest

from configs import base
from minilm_jax import recipe
from minilm_jax.config import TaskConfig
from minilm_jax.errors import InputError
from minilm_jax.language import datasets
from minilm_jax.tasks import places, table

CONFIG = recipe.build(TaskConfig, base.finetune().task.to_dict())
ROWS = [{'text': 'a', 'label': 'x'}, {'text': 'b', 'label': 'y'}]
OWN = table.find('own')


@pytest.fixture(name='folder')
def _folder(tmp_path: pathlib.Path) -> pathlib.Path:
  for split in ('train', 'test'):
    (tmp_path / f'{split}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
  return tmp_path


def test_a_folder_and_its_files_hold_the_same(folder: pathlib.Path):
  files = dataclasses.replace(CONFIG, train=str(folder / 'train.jsonl'), test=str(folder / 'test.jsonl'))
  for config in (dataclasses.replace(CONFIG, folder=str(folder)), files):
    for split in ('train', 'test'):
      assert list(places.rows(OWN, config, split)) == ROWS
    with pytest.raises(places.NoSplit):
      places.rows(OWN, config, 'validation')
  assert list(places.named(files)) == ['train', 'test']


def test_a_relation_file_is_known_by_its_name(tmp_path: pathlib.Path):
  item = {'tokens': ['a', 'b'], 'h': ['', '', [[0]]], 't': ['', '', [[1]]]}
  (tmp_path / 'train.json').write_text(json.dumps({'r': [item]}))
  config = dataclasses.replace(CONFIG, folder=str(tmp_path))
  assert list(places.rows(table.find('fewrel'), config, 'train')) == [{'text': 'a b', 'label': 'r'}]
  marked = dataclasses.replace(CONFIG, train=str(tmp_path / 'train.json'), markers=True)
  assert [row['marked'] for row in places.rows(table.find('fewrel'), marked, 'train')] == ['qj a jq qz b zq']


@pytest.mark.parametrize('split, given, shared', [
    ('validation', {'train': 'a'}, True), ('test', {'train': 'a', 'validation': 'b'}, True),
    ('test', {'test': 'b'}, False), ('test', {'train': 'a', 'test': 'b'}, False), ('train', {'train': 'a'}, False),
    ('tset', {'train': 'a'}, False), ('validation', {'folder': 'a'}, False),
])
def test_training_gives_the_reported_split_where_no_file_does(split: str, given: dict, shared: bool):
  assert places.shared(dataclasses.replace(CONFIG, split=split, **given)) == shared


@pytest.mark.parametrize('name', [name for name, task in table.TASKS.items() if task.tfds])
def test_a_data_set_that_was_not_prepared_is_named_with_how_to_get_it(name: str, tmp_path: pathlib.Path):
  task, config = table.find(name), dataclasses.replace(CONFIG, name=name, data_dir=str(tmp_path / 'tfds'))
  with pytest.raises(InputError, match=rf'not prepared it in \S+tfds(.|\n)*{task.tfds}.+array_record.+task.folder'):
    places.rows(task, config, 'test')
  with pytest.raises(InputError, match=rf'task.data_dir, where TFDS prepared {task.tfds}, or task.folder'):
    places.rows(task, CONFIG, 'test')


def test_a_split_that_a_data_set_lacks_is_another_matter(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
  def no_split(where: str, split: str):
    raise InputError(f'the split {split!r}', 'no such split', 'name another')

  monkeypatch.setattr(datasets, 'folder', lambda name, data_dir: 'somewhere')
  monkeypatch.setattr(datasets, 'examples', no_split)
  with pytest.raises(places.NoSplit, match='no such split'):
    places.rows(table.find('mnli'), dataclasses.replace(CONFIG, data_dir=str(tmp_path)), 'validation')


def test_what_has_no_training_examples_says_whose_models_predict_it(tmp_path: pathlib.Path):
  with pytest.raises(places.NoSplit, match='fine-tune on mnli'):
    places.rows(table.find('ax'), dataclasses.replace(CONFIG, folder=str(tmp_path)), 'train')


@pytest.mark.parametrize('changes, split, said', [
    ({}, 'train', 'no place'), ({'train': 'no.csv'}, 'tset', "did you mean 'test'"),
    ({'test': 'no.csv'}, 'train', 'give task.train'), ({'train': 'no.csv'}, 'train', 'no such file'),
    ({'train': 'no.docx'}, 'train', 'not a table by its name'),
    ({'train': 'no.json'}, 'train', 'no such file'), ({'folder': 'no'}, 'train', 'no such folder'),
    ({'data_dir': 'no'}, 'train', 'TFDS does not have this task'),
])
def test_what_is_not_there_is_named(changes: dict, split: str, said: str):
  with pytest.raises(InputError, match=said):
    list(places.rows(OWN, dataclasses.replace(CONFIG, **changes), split))
