"""Examples: the filter's counts on real data, the same rows whatever the file, cuts without
overlap, faults named.
"""

import collections
import csv
import dataclasses
import gzip
import json
import pathlib

import numpy as np
import pytest

from configs import base
from minilm_jax.core import recipe
from minilm_jax.core.config import TaskConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import documents
from minilm_jax.tasks import examples, loading, task
from minilm_jax.tasks.examples import Examples, hold_out_examples
from minilm_jax.tasks.task import find_task

SENTIMENT = task.find_task('sentiment')


def open_task(*names: str) -> task.Task:
  return dataclasses.replace(task.find_task('own'), labels=names, labels_from_data=True)


@pytest.mark.parametrize(
  'values, names',
  [
    ([2, 10, 1], ('1', '2', '10')),
    (['2', 10, '-1'], ('-1', '2', '10')),
    (['b', 'a', 'b'], ('a', 'b')),
    (['2', '10', 'a'], ('10', '2', 'a')),
    (['1.5', '1'], ('1', '1.5')),
  ],
)
def test_classes_are_sorted_as_what_they_are(values: list, names: tuple[str, ...]):
  assert (
    examples.collect_labels(values, 'the file')
    == names
    == examples.collect_labels(values[::-1] * 2, 'the file')
  )


@pytest.mark.parametrize(
  'values, said',
  [
    ([], 'no example'),
    (['a', 'a'], 'one label alone'),
    (['a', ''], 'row 2'),
    (['a', None], 'None'),
    ([1, True], 'True'),
    ([0.5, 1.5], 'kind=regression'),
    ([1, [2]], r'\[2\]'),
  ],
)
def test_what_names_no_class_is_refused(values: list, said: str):
  with pytest.raises(InputError, match=said):
    examples.collect_labels(values, 'the file')


def test_a_number_is_a_name_where_labels_were_found_and_an_index_elsewhere():
  stars = open_task('1', '2', '3')
  assert [examples.label_index(value, stars, 'here') for value in (1, '2', 3, -1, '-1')] == [
    0,
    1,
    2,
    -1,
    -1,
  ]
  with pytest.raises(InputError, match='training never shows'):
    examples.label_index(0, stars, 'here')
  assert [examples.label_index(value, SENTIMENT, 'here') for value in (1, '0', 'positive', -1)] == [
    1,
    0,
    1,
    -1,
  ]
  stance = open_task('-1', '0', '1')
  assert [examples.label_index(value, stance, 'here') for value in (-1, 0, 1)] == [0, 1, 2]
  with pytest.raises(InputError, match="did you mean 'ham'"):
    examples.label_index('hamm', open_task('ham', 'spam'), 'here')


def test_a_missing_column_is_named_with_those_there():
  examples.require_columns({'text': '', 'label': 0}, ('text', 'label'), 'row 1')
  with pytest.raises(
    InputError, match="the column 'text'(.|\n)*row 1 has body, label(.|\n)*columns text and label"
  ):
    examples.require_columns({'body': '', 'label': 0}, ('text', 'label'), 'row 1')


@pytest.mark.parametrize('value, number', [(1, 1.0), ('2.5', 2.5), (-0.5, -0.5)])
def test_a_number_is_read_as_text_too(value: object, number: float):
  assert examples.parse_number(value, 'here') == number


TASK = dataclasses.replace(
  recipe.build(TaskConfig, base.finetune().task.to_dict()), name='sentiment'
)
SOURCES_SENTIMENT, PAIRS, SIMILARITY = (
  task.find_task('sentiment'),
  task.find_task('rte'),
  task.find_task('stsb'),
)
# Examples that stay inside the paper's word list: train, validation, test (None: not in the data
# folder).
KEPT = {
  'cola': (5259, 653, 681),
  'sst2': (21493, 113, 271),
  'mrpc': (392, 39, 159),
  'stsb': (2122, 611, 731),
  'rte': (150, 14, 202),
  'wnli': (277, 39, 40),
  'qnli': (None, 510, 504),
  'ax': (None, None, 270),
}
# Of those, how many of each class.
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


def written(folder: pathlib.Path, split: str, rows: list[dict]) -> TaskConfig:
  folder.mkdir(exist_ok=True)
  (folder / f'{split}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return dataclasses.replace(TASK, folder=str(folder))


def glue(data: pathlib.Path, name: str, **changes) -> TaskConfig:
  return dataclasses.replace(TASK, name=name, folder=str(data / 'glue' / name), **changes)


@pytest.mark.parametrize('name', KEPT)
def test_the_filter_keeps_what_the_paper_keeps(data: pathlib.Path, name: str):
  config = glue(
    data, name, filtered=True, word_list=str(data / 'aochildes' / 'AOChildes_word_frequency.csv')
  )
  assert tuple(examples.count_examples(task.find_task(name), config).values()) == tuple(
    n or 0 for n in KEPT[name]
  )


@pytest.mark.parametrize('name, split', CLASSES)
def test_the_filter_keeps_the_classes_that_the_paper_keeps(
  data: pathlib.Path, name: str, split: str
):
  config = glue(
    data, name, filtered=True, word_list=str(data / 'aochildes' / 'AOChildes_word_frequency.csv')
  )
  found = examples.read_examples(task.find_task(name), config, split)
  assert tuple(np.bincount(found.labels).tolist()) == CLASSES[name, split]


@pytest.mark.parametrize('split, kept', [('validation', 408), ('test', 386)])
def test_the_filter_looks_at_the_fields_that_a_recipe_names(
  data: pathlib.Path, split: str, kept: int
):
  config = glue(
    data,
    'qnli',
    filtered=True,
    word_list=str(data / 'aochildes' / 'AOChildes_word_frequency.csv'),
    fields=('question', 'sentence'),
  )
  assert examples.count_examples(examples.complete_task(config), config)[split] == kept


def test_labels_of_a_test_split_are_unknown(data: pathlib.Path):
  assert set(examples.read_examples(PAIRS, glue(data, 'rte'), 'test').labels) == {
    examples.UNLABELLED
  }


def test_every_form_of_file_gives_the_same_examples(tmp_path: pathlib.Path):
  rows = [{'sentence': 'it was good', 'label': 1}, {'sentence': 'no, "bad" .', 'label': 0}]
  texts, labels = ('it was good', 'no, "bad" .'), [1, 0]
  written(tmp_path / 'jsonl', 'train', rows)
  for name in ('csv', 'tsv', 'gz', 'parquet'):
    (tmp_path / name).mkdir()
  with (tmp_path / 'csv' / 'train.csv').open('w', newline='') as file:
    csv.writer(file).writerows(
      [('label', 'sentence'), ('positive', texts[0]), ('negative', texts[1])]
    )
  (tmp_path / 'tsv' / 'train.tsv').write_text('sentence\tlabel\nit was good\t1\nno, "bad" .\t0\n')
  (tmp_path / 'gz' / 'train.jsonl.gz').write_bytes(
    gzip.compress((tmp_path / 'jsonl' / 'train.jsonl').read_bytes())
  )
  import pyarrow
  from pyarrow import parquet

  parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / 'parquet' / 'train.parquet')
  for name in ('jsonl', 'csv', 'tsv', 'gz', 'parquet'):
    found = examples.read_examples(
      SOURCES_SENTIMENT, dataclasses.replace(TASK, folder=str(tmp_path / name)), 'train'
    )
    assert found.first == texts and found.second == () and found.labels.tolist() == labels, name
    assert found.labels.dtype == np.int32


def test_a_pair_and_a_number_are_read_from_tfds(monkeypatch: pytest.MonkeyPatch):
  asked = []

  def rows(name: str, split: str, data_dir: str):
    asked.append((name, split, data_dir))
    return iter([{'sentence1': 'a', 'sentence2': 'b', 'label': 2.5, 'idx': 0}])

  monkeypatch.setattr(documents, 'read_tfds_rows', rows)
  found = examples.read_examples(
    SIMILARITY, dataclasses.replace(TASK, name='stsb', data_dir='TFDS'), 'validation'
  )
  assert asked == [('glue/stsb', 'validation', 'TFDS')]
  assert (found.first, found.second, found.labels.tolist(), found.labels.dtype) == (
    ('a',),
    ('b',),
    [2.5],
    np.float32,
  )


@pytest.mark.parametrize(
  'name', ['microworld/acceptability', 'microworld/entailment', 'microworld/sentiment']
)
def test_the_microworld_needs_no_place(name: str, monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr(loading, 'MICROWORLD', {'train': 200, 'validation': 100, 'test': 100})
  task = find_task(name)
  assert examples.count_examples(task, TASK) == loading.MICROWORLD
  found = examples.read_examples(task, TASK, 'validation')
  assert len(found.second) == (len(found.first) if len(task.fields) == 2 else 0)
  assert set(found.labels) == {0, 1}
  with pytest.raises(InputError, match="did you mean 'test'"):
    examples.read_examples(task, TASK, 'tests')


def test_a_limit_takes_the_same_unsorted_part_of_training_alone(tmp_path: pathlib.Path):
  rows = [{'sentence': f'sentence {i}', 'label': int(i >= 500)} for i in range(1000)]
  written(tmp_path, 'train', rows)
  config = written(tmp_path, 'validation', rows)
  few, more = (
    examples.read_examples(
      SOURCES_SENTIMENT, dataclasses.replace(config, max_train_examples=n), 'train'
    )
    for n in (50, 200)
  )
  assert few.first == more.first[:50] and len(more.first) == 200
  assert 60 < more.labels.sum() < 140
  assert all(
    (int(text.split()[1]) >= 500) == label
    for text, label in zip(more.first, more.labels, strict=True)
  )
  assert (
    len(
      examples.read_examples(
        SOURCES_SENTIMENT, dataclasses.replace(config, max_train_examples=50), 'validation'
      ).first
    )
    == 1000
  )
  assert examples.count_examples(
    SOURCES_SENTIMENT, dataclasses.replace(config, max_train_examples=50)
  ) == {'train': 50, 'validation': 1000, 'test': 0}
  reordered = written(tmp_path / 'reordered', 'train', rows[::-1])
  assert (
    examples.read_examples(
      SOURCES_SENTIMENT, dataclasses.replace(reordered, max_train_examples=50), 'train'
    ).first
    == few.first
  )


@pytest.mark.parametrize(
  'label, index',
  [
    (0, 0),
    (1, 1),
    (1.0, 1),
    ('1', 1),
    ('positive', 1),
    ('negative', 0),
    (-1, -1),
    ('-1', -1),
  ],
)
def test_a_label_is_an_index_or_a_name(tmp_path: pathlib.Path, label: object, index: int):
  config = written(tmp_path, 'train', [{'sentence': 'x', 'label': label}])
  assert examples.read_examples(SOURCES_SENTIMENT, config, 'train').labels.tolist() == [index]


@pytest.mark.parametrize(
  'label, said',
  [
    (2, '0 or .negative., 1 or .positive.'),
    (-2, 'labels are'),
    (0.5, 'labels are'),
    ('positve', 'did you mean .positive.'),
    (None, 'None in row 1 of the train split'),
    (True, 'labels are'),
    ('', 'labels are'),
    ([1], 'labels are'),
    ('9' * 5000, 'labels are'),
  ],
)
def test_a_label_outside_the_table_is_refused(tmp_path: pathlib.Path, label: object, said: str):
  config = written(tmp_path, 'train', [{'sentence': 'x', 'label': label}])
  with pytest.raises(InputError, match=said):
    examples.read_examples(SOURCES_SENTIMENT, config, 'train')


@pytest.mark.parametrize('label', ['high', None, True, 'nan', 'inf', ''])
def test_a_score_that_is_no_number_is_refused(tmp_path: pathlib.Path, label: object):
  config = written(tmp_path, 'train', [{'sentence1': 'x', 'sentence2': 'y', 'label': label}])
  with pytest.raises(InputError, match='a number as label'):
    examples.read_examples(SIMILARITY, config, 'train')


def test_what_is_not_there_is_named(tmp_path: pathlib.Path):
  config = written(tmp_path, 'train', [{'text': 'x', 'label': 1}])
  with pytest.raises(InputError, match=r"the column 'sentence'(.|\n)*has text, label"):
    examples.read_examples(SOURCES_SENTIMENT, config, 'train')
  with pytest.raises(InputError, match=r'validation.jsonl, .csv(.|\n)*there: train.jsonl'):
    examples.read_examples(SOURCES_SENTIMENT, config, 'validation')
  with pytest.raises(InputError, match='no such folder'):
    examples.read_examples(
      SOURCES_SENTIMENT, dataclasses.replace(TASK, folder=str(tmp_path / 'no')), 'train'
    )
  with pytest.raises(InputError, match='task.folder'):
    examples.read_examples(SOURCES_SENTIMENT, TASK, 'train')
  with pytest.raises(InputError, match=r'task.data_dir(.|\n)*or task.folder'):
    examples.read_examples(PAIRS, TASK, 'train')
  with pytest.raises(InputError, match='TFDS does not have this task'):
    examples.read_examples(SOURCES_SENTIMENT, dataclasses.replace(TASK, data_dir='TFDS'), 'train')
  with pytest.raises(InputError, match='text in .sentence.'):
    examples.read_examples(
      SOURCES_SENTIMENT, written(tmp_path, 'train', [{'sentence': 3, 'label': 1}]), 'train'
    )


def test_two_files_of_a_split_and_no_file_at_all_are_refused(tmp_path: pathlib.Path):
  config = written(tmp_path, 'train', [{'sentence': 'x', 'label': 1}])
  (tmp_path / 'train.tsv').write_text('sentence\tlabel\nx\t1\n')
  with pytest.raises(InputError, match='train.jsonl and train.tsv'):
    examples.count_examples(SOURCES_SENTIMENT, config)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(InputError, match='there: nothing'):
    examples.count_examples(
      SOURCES_SENTIMENT, dataclasses.replace(TASK, folder=str(tmp_path / 'empty'))
    )
  with pytest.raises(InputError):
    examples.count_examples(PAIRS, dataclasses.replace(TASK, data_dir=str(tmp_path)))


def test_nothing_left_says_whether_the_filter_took_it(tmp_path: pathlib.Path):
  with pytest.raises(InputError, match='it is empty'):
    examples.read_examples(SOURCES_SENTIMENT, written(tmp_path, 'test', []), 'test')
  (tmp_path / 'words.txt').write_text('good\n')
  config = dataclasses.replace(
    written(tmp_path, 'test', [{'sentence': 'bad', 'label': 0}]),
    filtered=True,
    word_list=str(tmp_path / 'words.txt'),
  )
  with pytest.raises(InputError, match='no example stays inside the word list'):
    examples.read_examples(SOURCES_SENTIMENT, config, 'test')
  assert examples.count_examples(SOURCES_SENTIMENT, config) == {
    'train': 0,
    'validation': 0,
    'test': 0,
  }


def test_unknown_labels_are_read_but_neither_trained_on_nor_scored(tmp_path: pathlib.Path):
  config = written(
    tmp_path, 'test', [{'sentence': 'x', 'label': -1}, {'sentence': 'y', 'label': 1}]
  )
  found = examples.read_examples(SOURCES_SENTIMENT, config, 'test')
  assert found.labels.tolist() == [-1, 1]
  with pytest.raises(InputError, match='1 of 2 examples have no label'):
    examples.check_labelled(found, 'scores')
  known = examples.Examples(('y',), (), np.array([1], np.int32))
  assert examples.check_labelled(known, 'scores') is known


def own(tmp_path: pathlib.Path, content: str, name: str = 'train.csv', **changes) -> TaskConfig:
  (tmp_path / name).write_text(content)
  return dataclasses.replace(TASK, name='own', train=str(tmp_path / name), **changes)


@pytest.mark.parametrize(
  'values, classes',
  [
    ('0 1 1 0', ('0', '1')),
    ('10 9 -1 2', ('-1', '2', '9', '10')),
    ('spam ham spam ham', ('ham', 'spam')),
    ('1 x 0 10', ('0', '1', '10', 'x')),
  ],
)
def test_labels_are_those_of_the_training_file(
  tmp_path: pathlib.Path, values: str, classes: tuple[str, ...]
):
  values = values.split()
  config = own(
    tmp_path,
    'text,label\n' + ''.join(f'text {i},{v}\n' for i, v in enumerate(values)),
    split='train',
  )
  task = examples.complete_task(config)
  assert task.labels == classes and task.kind == 'classification'
  assert [classes[i] for i in examples.read_examples(task, config, 'train').labels] == values


def test_labels_are_the_same_in_every_form_of_file(tmp_path: pathlib.Path):
  values = [3, 1, 3, 20]
  (tmp_path / 'a.csv').write_text('text,label\n' + ''.join(f'x,{v}\n' for v in values))
  (tmp_path / 'a.jsonl').write_text(
    ''.join(json.dumps({'text': 'x', 'label': v}) + '\n' for v in values)
  )
  for name in ('a.csv', 'a.jsonl'):
    config = dataclasses.replace(TASK, name='own', train=str(tmp_path / name), split='train')
    task = examples.complete_task(config)
    assert task.labels == ('1', '3', '20')
    assert examples.read_examples(task, config, 'train').labels.tolist() == [1, 0, 1, 2]


def test_columns_and_kind_are_those_of_the_recipe(tmp_path: pathlib.Path):
  config = own(
    tmp_path,
    'a\tb\tscore\n' + ''.join(f'a{i}\tb{i}\t{i / 2}\n' for i in range(10)),
    'train.tsv',
    fields=('b', 'a'),
    label='score',
    kind='regression',
    split='train',
  )
  task = examples.complete_task(config)
  assert (task.fields, task.label, task.kind, task.headline) == (
    ('b', 'a'),
    'score',
    'regression',
    'pearson_spearman',
  )
  found = examples.read_examples(task, config, 'train')
  assert (found.first[3], found.second[3], found.labels[3], found.labels.dtype) == (
    'b3',
    'a3',
    1.5,
    np.float32,
  )
  assert examples.complete_task(dataclasses.replace(TASK, name='cola')) == find_task('cola')
  renamed = dataclasses.replace(config, name='sst2', fields=('a',), kind='')
  assert examples.complete_task(renamed).labels == ('negative', 'positive')


def test_without_a_file_a_fifth_of_training_is_reported(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
  lines = [f'text {i},{"ab"[i % 2]}\n' for i in range(100)]
  config = own(tmp_path, 'text,label\n' + ''.join(lines))
  task = examples.complete_task(config)
  train, held = (
    examples.read_examples(task, config, 'train'),
    examples.read_examples(task, config, 'validation'),
  )
  assert len(held.first) == 20 and {*train.first, *held.first} == {f'text {i}' for i in range(100)}
  assert (
    len(train.first) == 80
    and 'no file for the validation split: 20 examples' in capsys.readouterr().err
  )
  assert examples.count_examples(task, config) == {'train': 80, 'validation': 20, 'test': 0}
  again = own(tmp_path, 'text,label\n' + ''.join(lines[::-1]), 'reversed.csv')
  assert examples.read_examples(task, again, 'validation').first == held.first[::-1]
  given = dataclasses.replace(config, validation=config.train)
  assert examples.count_examples(task, given) == {'train': 100, 'validation': 100, 'test': 0}
  few = dataclasses.replace(config, per_label=3, eval_per_label=4)
  train, held = (
    examples.read_examples(task, few, 'train'),
    examples.read_examples(task, few, 'validation'),
  )
  assert not {*train.first} & {*held.first}
  assert np.bincount(train.labels).tolist() == [3, 3] and np.bincount(held.labels).tolist() == [
    4,
    4,
  ]
  assert examples.count_examples(task, dataclasses.replace(config, per_label=3)) == {
    'train': 6,
    'validation': 20,
    'test': 0,
  }


def test_a_sample_of_each_label_follows_the_split_that_is_reported(tmp_path: pathlib.Path):
  rows = [{'sentence': f'sentence {i}', 'label': int(i % 3 == 0)} for i in range(90)]
  for split in ('train', 'validation', 'test'):
    config = written(tmp_path, split, rows)
  config = dataclasses.replace(config, per_label=5, eval_per_label=7)
  assert examples.count_examples(SOURCES_SENTIMENT, config) == {
    'train': 10,
    'validation': 14,
    'test': 90,
  }
  found = examples.read_examples(SOURCES_SENTIMENT, config, 'train')
  assert [int(text.split()[1]) for text in found.first] == sorted(
    int(text.split()[1]) for text in found.first
  )
  with pytest.raises(InputError, match='30 of .positive.'):
    examples.read_examples(SOURCES_SENTIMENT, dataclasses.replace(config, per_label=31), 'train')
  with pytest.raises(InputError, match='no labels to draw from'):
    examples.complete_task(dataclasses.replace(config, name='stsb'))


@pytest.fixture(name='examples')
def _examples() -> examples.Examples:
  texts = tuple(f'text {i % 80}' for i in range(100))  # the last twenty repeat the first
  return examples.Examples(texts, (), np.arange(100, dtype=np.int32) % 2)


def test_what_is_held_out_depends_on_no_order(examples: examples.Examples):
  kept, held = hold_out_examples(examples, 0.1)
  assert len(held.first) == 10 and len(kept.first) == 90 and not set(held.first) & set(kept.first)
  numbered = [int(text.split()[1]) for text in held.first]
  assert held.labels.tolist() == [n % 2 for n in numbered]
  order = np.random.default_rng(0).permutation(100)
  mixed = Examples(tuple(examples.first[i] for i in order), (), examples.labels[order])
  assert collections.Counter(hold_out_examples(mixed, 0.1)[1].first) == collections.Counter(
    held.first
  )
  kept_mixed = hold_out_examples(mixed, 0.1)[0]
  assert list(kept_mixed.first) == [text for text in mixed.first if text in set(kept.first)]
  more = hold_out_examples(examples, 0.5)[1]
  assert len(more.first) == 50


def test_a_pair_is_held_out_whole():
  pairs = examples.Examples(('a',) * 10, tuple(map(str, range(10))), np.zeros(10, np.float32))
  kept, held = examples.hold_out_examples(pairs, 0.2)
  assert len(held.first) == len(held.second) == len(held.labels) == 2
  assert {*kept.second} | {*held.second} == {*pairs.second}


@pytest.mark.parametrize('count, share', [(10, 0.0), (10, 1.0), (2, 0.2)])
def test_a_cut_with_nothing_on_one_side_is_refused(count: int, share: float):
  few = examples.Examples(tuple(map(str, range(count))), (), np.zeros(count, np.int32))
  with pytest.raises(InputError, match='on one side'):
    examples.hold_out_examples(few, share)


def test_training_must_show_every_label_twice():
  def labelled(*values: int) -> examples.Examples:
    return examples.Examples(('x',) * len(values), (), np.array(values, np.int32))

  examples.check_task(SOURCES_SENTIMENT, labelled(0, 1, 0, 1), labelled(0, -1), labelled(1))
  examples.check_task(SOURCES_SENTIMENT, labelled(0, 1, 0, 1))
  with pytest.raises(InputError, match='.positive.(.|\n)*training never shows'):
    examples.check_task(SOURCES_SENTIMENT, labelled(0, 0, -1), labelled(0), labelled(1))
  with pytest.raises(InputError, match='.positive.(.|\n)*1 training example\n'):
    examples.check_task(SOURCES_SENTIMENT, labelled(0, 1, 0), labelled(1))
  examples.check_task(
    SIMILARITY,
    examples.Examples(('x',), (), np.array([1.0], np.float32)),
    examples.Examples(('x',), (), np.array([2.5], np.float32)),
  )


@pytest.mark.parametrize(
  'content, changes, said',
  [
    ('text,label\na,x\nb,x\n', {}, 'one label alone'),
    ('text,label\n', {}, 'no example'),
    ('text,label\na,\nb,x\n', {}, 'name of a class'),
    ('text,stars\na,1\nb,2\n', {}, "the column 'label'(.|\n)*task.label"),
    ('text,label\na,x\nb,y\n', {'fields': ('body',)}, "the column 'body'"),
    ('a,b,label\na,b,x\nb, ,y\n', {'fields': ('a', 'b')}, "'b' is empty"),
    ('a,b,label\na,b,x\n,b,y\n', {'fields': ('a', 'b')}, "'a' is empty"),
    ('text,label\na,high\n', {'kind': 'regression'}, 'a number as label'),
    ('text,label\na,x\nb,y\n', {'name': 'cola', 'markers': True}, 'task.markers of cola'),
    ('text,label\na,x\nb,y\n', {'name': 'owm'}, "did you mean 'own'"),
  ],
)
def test_a_file_that_is_no_task_is_refused(
  tmp_path: pathlib.Path, content: str, changes: dict, said: str
):
  config = own(tmp_path, content, split='train')
  config = dataclasses.replace(config, **changes)
  with pytest.raises(InputError, match=said):
    examples.read_examples(examples.complete_task(config), config, 'train')


def test_a_label_that_training_never_shows_is_refused(tmp_path: pathlib.Path):
  (tmp_path / 'held.csv').write_text('text,label\na,1\nb,4\n')
  config = own(tmp_path, 'text,label\na,1\nb,3\n', validation=str(tmp_path / 'held.csv'))
  with pytest.raises(
    InputError, match='.4. in row 2 of the validation split of own, which training never shows'
  ):
    examples.read_examples(examples.complete_task(config), config, 'validation')


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'folder': 'a', 'data_dir': 'b'}, 'more than one place'),
    ({'folder': 'a', 'train': 'b'}, 'more than one place'),
    ({'fields': ('a', 'b', 'c')}, 'one or two columns'),
    ({'fields': ('label',)}, 'another for the label'),
    ({'max_train_examples': 1, 'per_label': 1}, 'two numbers'),
    ({'kind': 'ranking'}, 'choices'),
    ({'label': ''}, 'no column'),
    ({'per_label': -1}, 'at least 0'),
  ],
)
def test_a_recipe_that_says_two_things_is_refused(changes: dict, said: str):
  with pytest.raises(InputError, match=said):
    dataclasses.replace(TASK, **changes)


def test_parts_are_splits_of_their_own(tmp_path: pathlib.Path):
  task, row = find_task('mnli'), {'premise': 'a', 'hypothesis': 'b', 'label': 'neutral'}
  assert examples.available_splits(task, 'test') == ('test_matched', 'test_mismatched')
  assert examples.available_splits(task, 'validation_matched') == ('validation_matched',)
  assert examples.available_splits(SOURCES_SENTIMENT, 'validation') == ('validation',)
  for count, split in enumerate(('train', *examples.available_splits(task, 'validation')), 2):
    config = dataclasses.replace(
      written(tmp_path, split, [row] * count), name='mnli', eval_per_label=1
    )
  assert examples.count_examples(task, config) == {
    'train': 2,
    'validation_matched': 1,
    'validation_mismatched': 1,
    'test_matched': 0,
    'test_mismatched': 0,
  }
  files = dataclasses.replace(config, folder='', train=str(tmp_path / 'train.jsonl'))
  assert examples.available_splits(examples.complete_task(files), 'validation') == ('validation',)


def test_two_fields_may_be_one_text(tmp_path: pathlib.Path):
  rows = [
    {'title': 'A title', 'description': 'and more', 'label': 0},
    {'title': '', 'description': 'No Title', 'label': 3},
  ]
  config = dataclasses.replace(written(tmp_path, 'train', rows), name='ag_news')
  found = examples.read_examples(examples.complete_task(config), config, 'train')
  assert (found.first, found.second, found.labels.tolist()) == (
    ('A title and more', 'No Title'),
    (),
    [0, 3],
  )
  (tmp_path / 'words.txt').write_text('no\nmore\n')
  filtered = dataclasses.replace(config, filtered=True, word_list=str(tmp_path / 'words.txt'))
  # a name, passed over
  assert examples.read_examples(examples.complete_task(filtered), filtered, 'train').first == (
    'No Title',
  )


def test_topics_of_the_data_folder_are_read_whole(data: pathlib.Path):
  news = dataclasses.replace(
    TASK,
    name='ag_news',
    train=str(data / 'ag_news' / 'train_sample.jsonl.gz'),
    test=str(data / 'ag_news' / 'test.jsonl.gz'),
    split='test',
  )
  train, test = (
    examples.read_examples(examples.complete_task(news), news, split) for split in ('train', 'test')
  )
  assert np.bincount(train.labels).tolist() == [1481, 1960, 2440, 2914] and train.second == ()
  assert np.bincount(test.labels).tolist() == [1900] * 4
  assert test.first[0].startswith('Fears for T N pension after talks Unions representing')
  pedia = dataclasses.replace(
    TASK,
    name='dbpedia_14',
    folder=str(data / 'dbpedia_14_sample'),
    split='test',
    per_label=100,
    eval_per_label=100,
  )
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
  assert (
    np.bincount(train.labels).tolist() == [630] * 16
    and np.bincount(test.labels).tolist() == [70] * 16
  )
  assert not set(train.first) & set(test.first)
  examples.check_task(task, train, test)


def test_splits_of_the_data_folder_are_read_whole(data: pathlib.Path):
  config = dataclasses.replace(TASK, name='cola', folder=str(data / 'glue' / 'cola'))
  assert examples.count_examples(task.find_task('cola'), config) == {
    'train': 8551,
    'validation': 1043,
    'test': 1063,
  }
  labels = collections.Counter(
    examples.read_examples(task.find_task('cola'), config, 'train').labels.tolist()
  )
  assert labels == {0: 2528, 1: 6023}
