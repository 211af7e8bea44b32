"""Places: whatever holds the rows, the same come out, and what is missing is named with how to get
it.
"""

import collections
import dataclasses
import gzip
import json
import lzma
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

TOKENS = 'Ann Lee met her brother , Tom , near Lee .'.split()
ITEM = {'tokens': TOKENS, 'h': ['ann lee', 'Q1', [[0, 1], [9]]], 't': ['tom', 'Q2', [[6]]]}


def written(tmp_path: pathlib.Path, content: object) -> str:
  path = tmp_path / 'relations.json'
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return str(path)


def test_a_sentence_is_its_tokens_and_every_mention_is_marked(tmp_path: pathlib.Path):
  path = written(tmp_path, {'sibling': [ITEM], 'spouse': [ITEM, ITEM]})
  assert [row['label'] for row in loading.read_fewrel_rows(path, False)] == [
    'sibling',
    'spouse',
    'spouse',
  ]
  plain, marked = (
    next(loading.read_fewrel_rows(path, False)),
    next(loading.read_fewrel_rows(path, True)),
  )
  assert plain == {'text': ' '.join(TOKENS), 'label': 'sibling'}
  assert marked['marked'] == 'qj Ann Lee jq met her brother , qz Tom zq , near qj Lee jq .'
  assert marked['text'] == plain['text']


def test_marks_survive_what_a_tokenizer_does():
  marks = [*loading.HEAD_MARKER, *loading.TAIL_MARKER]
  assert len(set(marks)) == 4 and all(
    mark.isascii() and mark.isalpha() and mark == mark.lower() for mark in marks
  )


def test_an_entity_inside_another_is_marked_inside(tmp_path: pathlib.Path):
  item = {'tokens': ['New', 'York', 'Times'], 'h': ['', '', [[0, 1, 2]]], 't': ['', '', [[0, 1]]]}
  assert (
    next(loading.read_fewrel_rows(written(tmp_path, {'r': [item]}), True))['marked']
    == 'qj qz New York zq Times jq'
  )


def test_a_compressed_file_is_the_same(tmp_path: pathlib.Path):
  path = pathlib.Path(written(tmp_path, {'sibling': [ITEM] * 3}))
  (tmp_path / 'a.json.xz').write_bytes(lzma.compress(path.read_bytes()))
  (tmp_path / 'a.json.gz').write_bytes(gzip.compress(path.read_bytes()))
  for name in ('a.json.xz', 'a.json.gz'):
    assert list(loading.read_fewrel_rows(tmp_path / name, True)) == list(
      loading.read_fewrel_rows(path, True)
    )


@pytest.mark.parametrize(
  'content, said',
  [
    ('{"r": ', 'not JSON'),
    ([ITEM], 'no object of lists'),
    ({'r': ITEM}, 'no object of lists'),
    ({'r': [ITEM, {'text': 'x'}]}, 'r, example 2(.|\n)*no list of tokens'),
    ({'r': [3]}, 'no list of tokens'),
    ({'r': [{'tokens': ['a']}]}, "no mention in 'h'"),
    ({'r': [{**ITEM, 't': ['', '', []]}]}, "no mention in 't'"),
    ({'r': [{**ITEM, 't': ['', '', [[11]]]}]}, 'among 11 tokens'),
    ({'r': [{**ITEM, 'h': ['', '', [[-1]]]}]}, 'among 11 tokens'),
    ({'r': [{**ITEM, 'h': ['', '', ['0']]}]}, 'as a mention'),
  ],
)
def test_what_is_no_such_file_is_refused(tmp_path: pathlib.Path, content: object, said: str):
  with pytest.raises(InputError, match=said):
    list(loading.read_fewrel_rows(written(tmp_path, content), True))


@pytest.mark.parametrize(
  'name, examples, relations',
  [
    ('wiki', 11_200, 16),
    ('nyt', 2_500, 25),
    ('semeval', 8_851, 17),
    ('pubmed', 1_000, 10),
  ],
)
def test_the_official_files_are_read_whole(
  data: pathlib.Path, name: str, examples: int, relations: int
):
  rows = list(loading.read_fewrel_rows(data / 'fewrel' / f'val_{name}.json.xz', True))
  assert len(rows) == examples and len({row['label'] for row in rows}) == relations
  marks = [*loading.HEAD_MARKER, *loading.TAIL_MARKER]
  for row in rows:
    assert not set(marks) & set(row['text'].lower().split()) and all(
      mark in row['marked'].split() for mark in marks
    )


CONFIG = recipe.build(TaskConfig, base.finetune().task.to_dict())
ROWS = [{'text': 'a', 'label': 'x'}, {'text': 'b', 'label': 'y'}]
OWN = task.find_task('own')


@pytest.fixture(name='folder')
def _folder(tmp_path: pathlib.Path) -> pathlib.Path:
  for split in ('train', 'test'):
    (tmp_path / f'{split}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
  return tmp_path


def test_a_folder_and_its_files_hold_the_same(folder: pathlib.Path):
  files = dataclasses.replace(
    CONFIG, train=str(folder / 'train.jsonl'), test=str(folder / 'test.jsonl')
  )
  for config in (dataclasses.replace(CONFIG, folder=str(folder)), files):
    for split in ('train', 'test'):
      assert list(loading.read_rows(OWN, config, split)) == ROWS
    with pytest.raises(loading.MissingSplit):
      loading.read_rows(OWN, config, 'validation')
  assert list(loading.name_location(files)) == ['train', 'test']


def test_a_relation_file_is_known_by_its_name(tmp_path: pathlib.Path):
  item = {'tokens': ['a', 'b'], 'h': ['', '', [[0]]], 't': ['', '', [[1]]]}
  (tmp_path / 'train.json').write_text(json.dumps({'r': [item]}))
  config = dataclasses.replace(CONFIG, folder=str(tmp_path))
  assert list(loading.read_rows(task.find_task('fewrel'), config, 'train')) == [
    {'text': 'a b', 'label': 'r'}
  ]
  marked = dataclasses.replace(CONFIG, train=str(tmp_path / 'train.json'), markers=True)
  assert [
    row['marked'] for row in loading.read_rows(task.find_task('fewrel'), marked, 'train')
  ] == ['qj a jq qz b zq']


@pytest.mark.parametrize(
  'split, given, shared',
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
def test_training_gives_the_reported_split_where_no_file_does(
  split: str, given: dict, shared: bool
):
  assert loading.shares_training_file(dataclasses.replace(CONFIG, split=split, **given)) == shared


@pytest.mark.parametrize('name', [name for name, task in task.TASKS.items() if task.tfds])
def test_a_data_set_that_was_not_prepared_is_named_with_how_to_get_it(
  name: str, tmp_path: pathlib.Path
):
  task, config = (
    find_task(name),
    dataclasses.replace(CONFIG, name=name, data_dir=str(tmp_path / 'tfds')),
  )
  with pytest.raises(
    InputError, match=rf'not prepared it in \S+tfds(.|\n)*{task.tfds}.+array_record.+task.folder'
  ):
    loading.read_rows(task, config, 'test')
  with pytest.raises(
    InputError, match=rf'task.data_dir, where TFDS prepared {task.tfds}, or task.folder'
  ):
    loading.read_rows(task, CONFIG, 'test')


def test_a_split_that_a_data_set_lacks_is_another_matter(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  def no_split(where: str, split: str):
    raise InputError(f'the split {split!r}', 'no such split', 'name another')

  monkeypatch.setattr(tfds, 'find_dataset', lambda name, data_dir: 'somewhere')
  monkeypatch.setattr(tfds, 'read_examples', no_split)
  with pytest.raises(loading.MissingSplit, match='no such split'):
    loading.read_rows(
      task.find_task('mnli'), dataclasses.replace(CONFIG, data_dir=str(tmp_path)), 'validation'
    )


def test_what_has_no_training_examples_says_whose_models_predict_it(tmp_path: pathlib.Path):
  with pytest.raises(loading.MissingSplit, match='fine-tune on mnli'):
    loading.read_rows(
      task.find_task('ax'), dataclasses.replace(CONFIG, folder=str(tmp_path)), 'train'
    )


@pytest.mark.parametrize(
  'changes, split, said',
  [
    ({}, 'train', 'no place'),
    ({'train': 'no.csv'}, 'tset', "did you mean 'test'"),
    ({'test': 'no.csv'}, 'train', 'give task.train'),
    ({'train': 'no.csv'}, 'train', 'no such file'),
    ({'train': 'no.docx'}, 'train', 'not a table format'),
    ({'train': 'no.json'}, 'train', 'no such file'),
    ({'folder': 'no'}, 'train', 'no such folder'),
    ({'data_dir': 'no'}, 'train', 'TFDS does not have this task'),
  ],
)
def test_what_is_not_there_is_named(changes: dict, split: str, said: str):
  with pytest.raises(InputError, match=said):
    list(loading.read_rows(OWN, dataclasses.replace(CONFIG, **changes), split))


TEXTS = [f'text {i}' for i in range(200)]


def test_what_is_held_out_is_not_what_a_limit_takes_first():
  first = set(loading.first_by_hash(TEXTS, 40))
  held = loading.split_validation(TEXTS, 0.2)
  assert len(held) == 40 and 0 < len(first & held) < 20
  assert loading.split_validation(TEXTS, 0.1) < held


def test_equal_texts_stay_together():
  texts = [text for text in TEXTS[:50] for _ in range(4)]
  held = loading.split_validation(texts, 0.25)
  assert 48 <= len(held) <= 50 and all({i ^ 1, i ^ 2} <= held for i in held)
  assert loading.split_validation(['same'] * 10, 0.2) == set()


def test_a_balanced_sample_is_drawn_as_in_the_second_paper():
  labels = ['b', 'a', 'b', 'a', 'b', 'a', 'b', 'a']
  generator = random.Random(42)
  # 'b' is seen first
  expected = [*generator.sample([0, 2, 4, 6], 2), *generator.sample([1, 3, 5, 7], 2)]
  assert loading.sample_balanced(labels, 2) == sorted(expected)
  assert loading.sample_balanced(labels, 0) == list(range(8)) == loading.sample_balanced(labels, 4)
  with pytest.raises(InputError, match="5 examples of each label(.|\n)*4 of 'b'"):
    loading.sample_balanced(labels, 5)


def test_two_samples_of_the_same_examples_share_no_text():
  labels = ['abcd'[i % 4] for i in range(200)]
  texts = [*TEXTS[:180], *TEXTS[:20]]  # twenty sentences twice, with another label or the same
  first, second = loading.sample_balanced_splits(texts, labels, 30, 15)
  assert collections.Counter(labels[i] for i in first) == dict.fromkeys('abcd', 30)
  assert collections.Counter(labels[i] for i in second) == dict.fromkeys('abcd', 15)
  assert not {texts[i] for i in first} & {texts[i] for i in second} and not set(first) & set(second)
  with pytest.raises(InputError, match='45 of'):
    loading.sample_balanced_splits(texts[:180], labels[:180], 40, 6)
  with pytest.raises(InputError, match='text stands nowhere else'):
    loading.sample_balanced_splits(TEXTS[:2] * 20, ['ab'[i % 2] for i in range(40)], 10, 5)
