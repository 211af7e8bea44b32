"""Tests examples: filter counts on real data, equal rows in all formats, disjoint parts, errors."""

import collections
import dataclasses
import functools
import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest

from configs import base
from minilm_jax.core import recipe
from minilm_jax.core.config import TaskConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import filters, tfds
from minilm_jax.tasks import examples, loading
from minilm_jax.tasks.examples import Examples
from minilm_jax.tasks.task import find_task
from tests.fake_runs import write_examples

TASK = dataclasses.replace(
  recipe.build(TaskConfig, base.finetune().task.to_dict()), name='sentiment'
)
SENTIMENT, PAIRS, SIMILARITY = find_task('sentiment'), find_task('rte'), find_task('stsb')
# Examples inside paper 1's word list in train, validation and test; None is a missing split.
FILTERED = {
  'cola': (5259, 653, 681),
  'sst2': (21493, 113, 271),
  'mrpc': (392, 39, 159),
  'stsb': (2122, 611, 731),
  'rte': (150, 14, 202),
  'wnli': (277, 39, 40),
  'qnli': (None, 510, 504),
  'ax': (None, None, 270),
}
# Number of these examples in each class.
CLASSES = {
  ('cola', 'train'): (1611, 3648),
  ('cola', 'validation'): (209, 444),
  ('sst2', 'train'): (8593, 12900),
  ('sst2', 'validation'): (73, 40),
  ('mrpc', 'train'): (131, 261),
  ('mrpc', 'validation'): (13, 26),
  ('rte', 'train'): (71, 79),
  ('rte', 'validation'): (7, 7),
  ('wnli', 'train'): (138, 139),
  ('wnli', 'validation'): (21, 18),
  ('qnli', 'validation'): (230, 280),
}


load_word_list = functools.cache(filters.load_word_list)


def write(folder: pathlib.Path, split: str, rows: list[dict], **changes: Any) -> TaskConfig:
  """Writes a split into a folder and returns its recipe."""
  return dataclasses.replace(TASK, folder=write_examples(folder, **{split: rows}), **changes)


def write_file(
  folder: pathlib.Path, content: str, file: str = 'train.csv', **changes: Any
) -> TaskConfig:
  """Writes a training file of the task `own` and returns its recipe."""
  (folder / file).write_text(content)
  return dataclasses.replace(TASK, **{'name': 'own', 'train': str(folder / file), **changes})


def read(config: TaskConfig, split: str = 'train') -> Examples:
  return examples.read_examples(examples.complete_task(config), config, split)


def count(config: TaskConfig) -> dict[str, int]:
  return examples.count_examples(examples.complete_task(config), config)


@pytest.fixture(name='filtered_glue')
def _filtered_glue(data: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
  """Returns the recipe of a task of the data folder inside the paper's word list."""
  monkeypatch.setattr(filters, 'load_word_list', load_word_list)
  return lambda name, **changes: dataclasses.replace(
    TASK,
    name=name,
    folder=str(data / 'glue' / name),
    filtered=True,
    word_list=str(data / 'aochildes' / 'AOChildes_word_frequency.csv'),
    **changes,
  )


@pytest.mark.parametrize('name', FILTERED)
def test_filtered_tasks_have_the_counts_of_the_paper(filtered_glue, name: str):
  config = filtered_glue(name)
  for split, number in zip(loading.TASK_SPLITS, FILTERED[name], strict=True):
    if number is None:
      with pytest.raises(loading.MissingSplit):
        examples.read_examples(find_task(name), config, split)
      continue
    labels = examples.read_examples(find_task(name), config, split).labels
    assert len(labels) == number, split
    if (name, split) in CLASSES:
      assert tuple(np.bincount(labels).tolist()) == CLASSES[name, split]


@pytest.mark.parametrize('name', ['wnli', 'ax'])
def test_counts_of_filtered_tasks_are_those_of_the_paper(filtered_glue, name: str):
  counts = examples.count_examples(find_task(name), filtered_glue(name))
  assert tuple(counts.values()) == tuple(number or 0 for number in FILTERED[name])


def test_the_filter_reads_the_fields_of_the_recipe(filtered_glue):
  counts = count(filtered_glue('qnli', fields=('question', 'sentence')))
  assert (counts['validation'], counts['test']) == (408, 386)


def test_a_pair_and_a_number_are_read_from_tfds(monkeypatch: pytest.MonkeyPatch):
  calls = []

  def read_rows(folder: str, split: str):
    calls.append((folder, split))
    return iter([{'sentence1': 'a', 'sentence2': 'b', 'label': 2.5, 'idx': 0}])

  monkeypatch.setattr(tfds, 'find_dataset', lambda name, data_dir: f'{data_dir}/{name}')
  monkeypatch.setattr(tfds, 'read_examples', read_rows)
  pairs = read(dataclasses.replace(TASK, name='stsb', data_dir='TFDS'), 'validation')
  assert calls == [('TFDS/glue/stsb', 'validation')]
  assert (pairs.first, pairs.second, pairs.labels.tolist()) == (('a',), ('b',), [2.5])
  assert pairs.labels.dtype == np.float32


@pytest.mark.parametrize('name', ['acceptability', 'entailment', 'sentiment'])
def test_the_microworld_needs_no_files(name: str, monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr(loading, 'MICROWORLD_SIZES', {'train': 200, 'validation': 100, 'test': 100})
  task = find_task(f'microworld/{name}')
  assert examples.count_examples(task, TASK) == loading.MICROWORLD_SIZES
  validation = examples.read_examples(task, TASK, 'validation')
  assert len(validation.second) == (len(validation.first) if len(task.fields) == 2 else 0)
  assert set(validation.labels) == {0, 1}
  with pytest.raises(InputError, match="'test'"):
    examples.read_examples(task, TASK, 'tests')


def test_a_limit_takes_an_unsorted_part_of_training_alone(tmp_path: pathlib.Path):
  rows = [{'sentence': f'sentence {i}', 'label': int(i >= 500)} for i in range(1000)]
  write(tmp_path, 'train', rows)
  config = write(tmp_path, 'validation', rows, max_train_examples=50)
  few, more = read(config), read(dataclasses.replace(config, max_train_examples=200))
  assert few.first == more.first[:50] and len(more.first) == 200
  assert 60 < more.labels.sum() < 140
  for text, label in zip(more.first, more.labels, strict=True):
    assert (int(text.split()[1]) >= 500) == label
  assert count(config) == {'train': 50, 'validation': 1000, 'test': 0}
  reordered = write(tmp_path / 'reordered', 'train', rows[::-1], max_train_examples=50)
  assert read(reordered).first == few.first


@pytest.mark.parametrize(
  'changes, split, match',
  [
    ({}, 'train', 'task.folder'),
    ({'name': 'rte'}, 'train', 'task.data_dir(.|\n)*task.folder'),
    ({'data_dir': 'TFDS'}, 'train', 'sentiment from task.data_dir'),
    ({'folder': 'empty'}, 'train', r'train\.jsonl, \.csv'),
    ({'folder': 'text'}, 'train', "'sentence'(.|\n)*text, label(.|\n)*sentence and label"),
    ({'folder': 'text'}, 'validation', 'train.jsonl'),
    ({'folder': 'number'}, 'train', "'sentence'(.|\n)*3 in row 1"),
    ({'folder': 'twice'}, 'train', 'train.jsonl and train.tsv'),
    ({'folder': 'no_rows'}, 'train', 'train split of sentiment'),
  ],
)
def test_missing_and_invalid_examples_are_refused(
  tmp_path: pathlib.Path, monkeypatch, changes: dict, split: str, match: str
):
  monkeypatch.chdir(tmp_path)
  config = dataclasses.replace(TASK, **changes)
  for folder, rows in (
    ('text', [{'text': 'x', 'label': 1}]),
    ('number', [{'sentence': 3, 'label': 1}]),
    ('twice', [{'sentence': 'x', 'label': 1}]),
    ('no_rows', []),
  ):
    write(tmp_path / folder, 'train', rows)
  (tmp_path / 'twice' / 'train.tsv').write_text('sentence\tlabel\nx\t1\n')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(InputError, match=match):
    read(config, split)
  if split == 'train' and config.folder != 'no_rows':
    with pytest.raises(InputError):
      count(config)


def test_an_empty_split_is_refused_but_counted(tmp_path: pathlib.Path):
  (tmp_path / 'words.txt').write_text('good\n')
  words = {'filtered': True, 'word_list': str(tmp_path / 'words.txt')}
  config = write(tmp_path, 'test', [{'sentence': 'bad', 'label': 0}], **words)
  with pytest.raises(InputError, match='test split of sentiment(.|\n)*filtered'):
    read(config, 'test')
  assert count(config) == {'train': 0, 'validation': 0, 'test': 0}


def test_unknown_labels_are_read_but_neither_trained_on_nor_scored(tmp_path: pathlib.Path):
  rows = [{'sentence': 'x', 'label': None}, {'sentence': 'y', 'label': 1}]
  test = read(write(tmp_path, 'test', rows), 'test')
  assert test.labels.tolist() == [-1, 1]
  with pytest.raises(InputError, match='1 of 2'):
    examples.check_labelled(test, 'scores')
  known = test.select([1])
  assert known.first == ('y',) and examples.check_labelled(known, 'scores') is known


@pytest.mark.parametrize(
  'values, numbers',
  [
    ([12.0, 3.0], (12, 3)),
    (['12.0', '3.'], (12, 3)),
    ([0, '07'], (0, 7)),
    (['5', ''], None),
    ([5.0, None], None),
    ([5, 1.5], None),
    ([5, -1], None),
    ([5, 'a17'], None),
  ],
)
def test_numbers_of_a_submission_are_whole_in_any_notation(
  tmp_path: pathlib.Path, values: list, numbers: tuple[int, int] | None
):
  rows = [{'sentence': 'x', 'label': 0, 'idx': value} for value in values]
  folder = write_examples(tmp_path, test=rows, validation=rows)
  glue, sentiment = (
    dataclasses.replace(TASK, name=name, folder=folder) for name in ('sst2', 'sentiment')
  )
  if numbers:
    assert read(glue, 'test').numbers == numbers
  else:
    with pytest.raises(InputError, match="'idx'(.|\n)*row 2 of the test split"):
      read(glue, 'test')
    for config, split in ((glue, 'validation'), (sentiment, 'test')):  # without a submission
      assert read(config, split).numbers == (5, 1)


@pytest.mark.parametrize(
  'values, labels',
  [
    ([0, 1, 1, 0], ('0', '1')),
    ([10, 9, -1, 2], ('-1', '2', '9', '10')),
    (['spam', 'ham', 'spam', 'ham'], ('ham', 'spam')),
    (['1', 'x', '0', '10'], ('0', '1', '10', 'x')),
    ([True, False, False], ('False', 'True')),
  ],
)
def test_labels_of_the_training_file_are_equal_in_csv_and_json(
  tmp_path: pathlib.Path, values: list, labels: tuple[str, ...]
):
  lines = ''.join(json.dumps({'text': 'x', 'label': value}) + '\n' for value in values)
  for config in (
    write_file(tmp_path, 'text,label\n' + ''.join(f'x,{value}\n' for value in values)),
    write_file(tmp_path, lines, 'a.jsonl'),
  ):
    config = dataclasses.replace(config, split='train')
    task = examples.complete_task(config)
    assert task.labels == labels and task.kind == 'classification'
    assert [labels[i] for i in read(config).labels] == list(map(str, values))


@pytest.mark.parametrize('factor', [1, 2])
def test_a_regression_trains_on_scores_of_minus_one(tmp_path: pathlib.Path, factor: int):
  scores = [factor * score for score in (-1, -0.5, 0, 0.5, 1)] * 20
  content = 'text,label\n' + ''.join(f'film {i},{score}\n' for i, score in enumerate(scores))
  config = write_file(tmp_path, content, kind='regression')
  parts = [read(config, split) for split in ('train', 'validation')]
  labels = np.concatenate([examples.check_labelled(part, 'training').labels for part in parts])
  assert sorted(labels.tolist()) == sorted(scores)


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'per_label': 3},
    {'per_label': 3, 'eval_per_label': 2},
    {'max_train_examples': 5},
    {'kind': 'regression'},
  ],
)
def test_training_rows_without_a_label_are_refused_with_their_number(
  tmp_path: pathlib.Path, changes: dict[str, Any]
):
  rows = [f'film {i},{i % 2}\n' for i in range(100)]
  rows[16], rows[40], rows[99] = 'film 16,\n', 'film 40,  \n', 'film 99,\n'
  content = 'text,label\n' + ''.join(rows)
  config = write_file(tmp_path, content, **changes)
  for split in ('train', 'validation'):  # the training file gives both
    with pytest.raises(InputError) as refused:
      read(config, split)
    assert re.findall(r'\d+', refused.value.found) == ['3', '100', '17', '16']
  with pytest.raises(InputError, match='3 of 100'):
    count(config)
  (tmp_path / 'full.csv').write_text('text,label\n' + ''.join(rows[:16] + rows[17:40]))
  others = {'train': str(tmp_path / 'full.csv'), 'test': config.train, 'split': 'train'}
  test = read(dataclasses.replace(config, **others), 'test')
  assert np.isnan(test.labels).sum() + (test.labels == -1).sum() == 3 and len(test.labels) == 100


@pytest.mark.parametrize('name, labels', [('own', ('0', '1')), ('sst2', ('negative', 'positive'))])
def test_whole_floats_are_the_same_labels_in_every_format(
  tmp_path: pathlib.Path, name: str, labels: tuple[str, ...]
):
  import pyarrow
  from pyarrow import parquet

  values = [0.0, 1.0, 1.0, 0.0]
  rows = [{'text': f'x{i}', 'label': value} for i, value in enumerate(values)]
  cells = [f'{row["text"]},{row["label"]}\n' for row in rows]
  (tmp_path / 'a.csv').write_text('text,label\n' + ''.join(cells))
  (tmp_path / 'a.tsv').write_text(('text,label\n' + ''.join(cells)).replace(',', '\t'))
  (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / 'a.parquet')
  (tmp_path / 'integers.csv').write_text('text,label\nx,1\n')
  for suffix in ('csv', 'tsv', 'jsonl', 'parquet'):
    config = dataclasses.replace(
      TASK,
      name=name,
      fields=('text',),
      train=str(tmp_path / f'a.{suffix}'),
      validation=str(tmp_path / 'integers.csv'),
    )
    assert examples.complete_task(config).labels == labels
    train = read(config)
    assert train.first == ('x0', 'x1', 'x2', 'x3') and train.second == ()
    assert train.labels.tolist() == values and train.labels.dtype == np.int32
    assert read(config, 'validation').labels.tolist() == [1]


def test_columns_and_kind_are_those_of_the_recipe(tmp_path: pathlib.Path):
  config = write_file(
    tmp_path,
    'a\tb\tscore\n' + ''.join(f'a{i}\tb{i}\t{i / 2}\n' for i in range(10)),
    'train.tsv',
    fields=('b', 'a'),
    label='score',
    kind='regression',
    split='train',
  )
  task = examples.complete_task(config)
  assert (task.fields, task.label, task.kind) == (('b', 'a'), 'score', 'regression')
  assert task.headline == 'pearson_spearman'
  train = read(config)
  assert (train.first[3], train.second[3], train.labels[3]) == ('b3', 'a3', 1.5)
  assert train.labels.dtype == np.float32
  assert examples.complete_task(dataclasses.replace(TASK, name='cola')) == find_task('cola')
  renamed = dataclasses.replace(config, name='sst2', fields=('a',), kind='')
  assert examples.complete_task(renamed).labels == ('negative', 'positive')


def test_without_a_file_a_fifth_of_training_is_reported(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
  lines = [f'text {i},{"ab"[i % 2]}\n' for i in range(100)]
  config = write_file(tmp_path, 'text,label\n' + ''.join(lines))
  train, validation = read(config), read(config, 'validation')
  assert {*train.first, *validation.first} == {f'text {i}' for i in range(100)}
  assert (len(train.first), len(validation.first)) == (80, 20)
  assert f'20 examples of {config.train}' in capsys.readouterr().err
  assert count(config) == {'train': 80, 'validation': 20, 'test': 0}
  reordered = write_file(tmp_path, 'text,label\n' + ''.join(lines[::-1]), 'reversed.csv')
  assert read(reordered, 'validation').first == validation.first[::-1]
  with_file = dataclasses.replace(config, validation=config.train)
  assert count(with_file) == {'train': 100, 'validation': 100, 'test': 0}
  few = dataclasses.replace(config, per_label=3, eval_per_label=4)
  train, validation = read(few), read(few, 'validation')
  assert not {*train.first} & {*validation.first}
  for part, number in ((train, 3), (validation, 4)):
    assert np.bincount(part.labels).tolist() == [number, number]
  few = dataclasses.replace(config, per_label=3)
  assert count(few) == {'train': 6, 'validation': 20, 'test': 0}


def test_rare_examples_stay_in_training(tmp_path: pathlib.Path):
  for trial in range(10):
    rows = [f'{trial} common {i},{"ab"[i % 2]}\n' for i in range(98)]
    rows += [f'{trial} rare {i},c\n' for i in range(2)]
    config = write_file(tmp_path, 'text,label\n' + ''.join(rows))
    train, validation = read(config), read(config, 'validation')
    assert np.bincount(train.labels)[2] == 2 and set(validation.labels) == {0, 1}
    assert len(validation.labels) == 20
    remaining, held_out = examples.hold_out_examples(train, 0.5)
    assert np.bincount(remaining.labels)[2] == 2 and len(held_out.labels) == 40
    examples.check_task(examples.complete_task(config), remaining, held_out, validation)
  single = write_file(tmp_path, 'text,label\n' + ''.join(rows[:-1]))
  with pytest.raises(InputError, match="'c'(.|\n)*found: 1 "):
    examples.check_task(examples.complete_task(single), read(single))


def test_a_sample_of_each_label_is_of_the_reported_split(tmp_path: pathlib.Path):
  rows = [{'sentence': f'sentence {i}', 'label': int(i % 3 == 0)} for i in range(90)]
  for split in ('train', 'validation', 'test'):
    config = write(tmp_path, split, rows, per_label=5, eval_per_label=7)
  assert count(config) == {'train': 10, 'validation': 14, 'test': 90}
  numbers = [int(text.split()[1]) for text in read(config).first]
  assert numbers == sorted(numbers)
  with pytest.raises(InputError, match='30 of .positive.'):
    read(dataclasses.replace(config, per_label=31))
  with pytest.raises(InputError, match='task.per_label of stsb'):
    examples.complete_task(dataclasses.replace(config, name='stsb'))


def test_the_validation_part_does_not_depend_on_the_order():
  texts = tuple(f'text {i % 80}' for i in range(100))  # the last twenty repeat the first
  labelled = Examples(texts, (), np.arange(100, dtype=np.int32) % 2)
  train, validation = examples.hold_out_examples(labelled, 0.1)
  assert (len(train.first), len(validation.first)) == (90, 10)
  assert not set(train.first) & set(validation.first)
  assert validation.labels.tolist() == [int(text.split()[1]) % 2 for text in validation.first]
  mixed = labelled.select(np.random.default_rng(0).permutation(100).tolist())
  mixed_train, mixed_validation = examples.hold_out_examples(mixed, 0.1)
  assert sorted(mixed_validation.first) == sorted(validation.first)
  assert list(mixed_train.first) == [text for text in mixed.first if text in set(train.first)]
  assert len(examples.hold_out_examples(labelled, 0.5)[1].first) == 50


def test_both_texts_of_a_pair_are_held_out():
  pairs = Examples(('a',) * 10, tuple(map(str, range(10))), np.zeros(10, np.float32))
  train, validation = examples.hold_out_examples(pairs, 0.2)
  assert len(validation.first) == len(validation.second) == len(validation.labels) == 2
  assert {*train.second} | {*validation.second} == {*pairs.second}


@pytest.mark.parametrize('number, fraction', [(10, 0.0), (10, 1.0), (2, 0.2)])
def test_an_empty_part_is_refused(number: int, fraction: float):
  few = Examples(tuple(map(str, range(number))), (), np.zeros(number, np.int32))
  with pytest.raises(InputError, match=f'validation_fraction={fraction}'):
    examples.hold_out_examples(few, fraction)


def test_training_must_have_every_label_twice():
  def make_examples(*values: float) -> Examples:
    labels = np.array(values)
    dtype = np.int32 if np.issubdtype(labels.dtype, np.integer) else np.float32
    return Examples(('x',) * len(values), (), labels.astype(dtype))

  examples.check_task(SENTIMENT, make_examples(0, 1, 0, 1), make_examples(0, -1), make_examples(1))
  examples.check_task(SENTIMENT, make_examples(0, 1, 0, 1))
  examples.check_task(SIMILARITY, make_examples(1.0), make_examples(2.5))
  with pytest.raises(InputError, match="label 'positive'"):
    examples.check_task(SENTIMENT, make_examples(0, 0, -1), make_examples(0), make_examples(1))
  with pytest.raises(InputError, match="'positive'(.|\n)*found: 1 "):
    examples.check_task(SENTIMENT, make_examples(0, 1, 0), make_examples(1))


@pytest.mark.parametrize(
  'content, changes, match',
  [
    ('text,label\na,x\nb,x\n', {}, "'x'"),
    ('text,label\n', {}, 'train split of own'),
    ('text,label\na,\nb,x\n', {}, "only the label 'x'"),
    ('text,stars\na,1\nb,2\n', {}, "'label'(.|\n)*task.label"),
    ('text,label\na,x\nb,y\n', {'fields': ('body',)}, "'body'"),
    ('a,b,label\na,b,x\nb, ,y\n', {'fields': ('a', 'b')}, "'b'"),
    ('a,b,label\na,b,x\n,b,y\n', {'fields': ('a', 'b')}, "'a'"),
    ('text,label\na,high\n', {'kind': 'regression'}, "'high' in row 1"),
    ('text,label\na,x\nb,y\n', {'name': 'cola', 'markers': True}, 'task.markers of cola'),
    ('text,label\na,x\nb,y\n', {'name': 'owm'}, "'own'"),
  ],
)
def test_an_invalid_file_is_refused(
  tmp_path: pathlib.Path, content: str, changes: dict, match: str
):
  with pytest.raises(InputError, match=match):
    read(write_file(tmp_path, content, **{'split': 'train', **changes}))


def test_a_label_that_training_lacks_is_refused(tmp_path: pathlib.Path):
  (tmp_path / 'validation.csv').write_text('text,label\na,1\nb,4\n')
  config = write_file(
    tmp_path, 'text,label\na,1\nb,3\n', validation=str(tmp_path / 'validation.csv')
  )
  with pytest.raises(InputError, match="'4' in row 2 of the validation split of own"):
    read(config, 'validation')


@pytest.mark.parametrize(
  'changes',
  [
    {'folder': 'a', 'data_dir': 'b'},
    {'folder': 'a', 'train': 'b'},
    {'fields': ('a', 'b', 'c')},
    {'fields': ('label',)},
    {'max_train_examples': 1, 'per_label': 1},
    {'kind': 'ranking'},
    {'label': ''},
    {'per_label': -1},
  ],
)
def test_a_contradictory_recipe_is_refused(changes: dict):
  with pytest.raises(InputError, match=next(iter(changes))):
    dataclasses.replace(TASK, **changes)


def test_parts_are_separate_splits(tmp_path: pathlib.Path):
  task, row = find_task('mnli'), {'premise': 'a', 'hypothesis': 'b', 'label': 'neutral'}
  assert examples.list_splits(task, 'test') == ('test_matched', 'test_mismatched')
  assert examples.list_splits(task, 'validation_matched') == ('validation_matched',)
  assert examples.list_splits(SENTIMENT, 'validation') == ('validation',)
  for number, split in enumerate(('train', *examples.list_splits(task, 'validation')), 2):
    config = write(tmp_path, split, [row] * number, name='mnli', eval_per_label=1)
  assert count(config) == {
    'train': 2,
    'validation_matched': 1,
    'validation_mismatched': 1,
    'test_matched': 0,
    'test_mismatched': 0,
  }
  files = dataclasses.replace(config, folder='', train=str(tmp_path / 'train.jsonl'))
  assert examples.list_splits(examples.complete_task(files), 'validation') == ('validation',)


def test_two_fields_are_joined_to_a_text(tmp_path: pathlib.Path):
  rows = [
    {'title': 'A title', 'description': 'and more', 'label': 0},
    {'title': '', 'description': 'No Title', 'label': 3},
  ]
  config = write(tmp_path, 'train', rows, name='ag_news')
  train = read(config)
  assert (train.first, train.second) == (('A title and more', 'No Title'), ())
  assert train.labels.tolist() == [0, 3]
  (tmp_path / 'words.txt').write_text('no\nmore\n')
  filtered = dataclasses.replace(config, filtered=True, word_list=str(tmp_path / 'words.txt'))
  assert read(filtered).first == ('No Title',)  # a capitalized word counts as a name


def test_topics_of_the_data_folder_have_known_counts(data: pathlib.Path):
  news = dataclasses.replace(
    TASK,
    name='ag_news',
    train=str(data / 'ag_news' / 'train_sample.jsonl.gz'),
    test=str(data / 'ag_news' / 'test.jsonl.gz'),
    split='test',
  )
  train, test = read(news), read(news, 'test')
  assert np.bincount(train.labels).tolist() == [1481, 1960, 2440, 2914] and train.second == ()
  assert np.bincount(test.labels).tolist() == [1900] * 4
  assert test.first[0].startswith('Fears for T N pension after talks Unions representing')
  pedia = dataclasses.replace(
    TASK, name='dbpedia_14', folder=str(data / 'dbpedia_14_sample'), split='test'
  )
  pedia = dataclasses.replace(pedia, per_label=100, eval_per_label=100)
  task = examples.complete_task(pedia)
  assert task.labels == tuple(map(str, range(14)))
  assert examples.count_examples(task, pedia) == {'train': 1400, 'validation': 0, 'test': 1400}
  relations = dataclasses.replace(
    TASK,
    name='fewrel',
    train=str(data / 'fewrel' / 'val_wiki.json.xz'),
    split='test',
    per_label=630,
    eval_per_label=70,
  )
  task = examples.complete_task(relations)
  train, test = (examples.read_examples(task, relations, split) for split in ('train', 'test'))
  assert np.bincount(train.labels).tolist() == [630] * 16
  assert np.bincount(test.labels).tolist() == [70] * 16
  assert not set(train.first) & set(test.first)
  examples.check_task(task, train, test)


def test_cola_of_the_data_folder_has_known_counts_and_no_test_labels(data: pathlib.Path):
  config = dataclasses.replace(TASK, name='cola', folder=str(data / 'glue' / 'cola'))
  assert count(config) == {'train': 8551, 'validation': 1043, 'test': 1063}
  assert collections.Counter(read(config).labels.tolist()) == {0: 2528, 1: 6023}
  assert set(read(config, 'test').labels) == {-1}


@pytest.mark.parametrize('split, match', [('dev', "'dev'"), ('train', 'task.split=train')])
def test_a_split_that_fine_tuning_refuses_is_not_counted(
  tmp_path: pathlib.Path, split: str, match: str
):
  config = write_file(tmp_path, 'text,label\na,x\nb,y\n', split=split)
  with pytest.raises(InputError, match=match):
    count(config)


def test_an_empty_text_of_a_pair_is_refused_outside_glue(tmp_path: pathlib.Path):
  content = 'first,second,label\na,b,x\nc,,y\n'
  config = write_file(tmp_path, content, fields=('first', 'second'))
  with pytest.raises(InputError, match="two texts in row 2(.|\n)*'second'"):
    count(config)
