"""Examples: the filter's counts on real data, the same rows whatever the file, and faults named."""

import collections
import csv
import dataclasses
import gzip
import json
import pathlib

import numpy as np
import pytest

from minilm_jax.config import TaskConfig
from minilm_jax.errors import InputError
from minilm_jax.language import documents
from minilm_jax.tasks import sources, table

TASK = TaskConfig('sentiment', data_dir='', folder='', filtered=False, word_list='', split='validation', limit=0)
SENTIMENT, PAIRS, SIMILARITY = table.find('sentiment'), table.find('rte'), table.find('stsb')
# Examples that stay inside the paper's word list: train, validation, test (None: not in the data folder).
KEPT = {
    'cola': (5259, 653, 681), 'sst2': (21493, 113, 271), 'mrpc': (392, 39, 159), 'stsb': (2122, 611, 731),
    'rte': (150, 14, 202), 'wnli': (277, 39, 40), 'qnli': (None, 510, 504),
}


def written(folder: pathlib.Path, split: str, rows: list[dict]) -> TaskConfig:
  folder.mkdir(exist_ok=True)
  (folder / f'{split}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return dataclasses.replace(TASK, folder=str(folder))


@pytest.mark.parametrize('name', KEPT)
def test_the_filter_keeps_what_the_paper_keeps(data: pathlib.Path, name: str):
  config = dataclasses.replace(TASK, name=name, folder=str(data / 'glue' / name), filtered=True,
                               word_list=str(data / 'aochildes' / 'AOChildes_word_frequency.csv'))
  counts = sources.sizes(table.find(name), config)
  assert tuple(counts.values()) == tuple(n or 0 for n in KEPT[name])


def test_the_filter_keeps_the_classes_that_the_paper_keeps(data: pathlib.Path):
  config = dataclasses.replace(TASK, name='rte', folder=str(data / 'glue' / 'rte'), filtered=True,
                               word_list=str(data / 'aochildes' / 'AOChildes_word_frequency.csv'))
  assert np.bincount(sources.read(PAIRS, config, 'train').labels).tolist() == [71, 79]
  assert np.bincount(sources.read(PAIRS, config, 'validation').labels).tolist() == [7, 7]
  assert set(sources.read(PAIRS, config, 'test').labels) == {sources.UNLABELLED}


def test_every_form_of_file_gives_the_same_examples(tmp_path: pathlib.Path):
  rows = [{'sentence': 'it was good', 'label': 1}, {'sentence': 'no, "bad" .', 'label': 0}]
  texts, labels = ('it was good', 'no, "bad" .'), [1, 0]
  written(tmp_path / 'jsonl', 'train', rows)
  for name in ('csv', 'tsv', 'gz', 'parquet'):
    (tmp_path / name).mkdir()
  with (tmp_path / 'csv' / 'train.csv').open('w', newline='') as file:
    csv.writer(file).writerows([('label', 'sentence'), ('positive', texts[0]), ('negative', texts[1])])
  (tmp_path / 'tsv' / 'train.tsv').write_text('sentence\tlabel\nit was good\t1\nno, "bad" .\t0\n')
  (tmp_path / 'gz' / 'train.jsonl.gz').write_bytes(gzip.compress((tmp_path / 'jsonl' / 'train.jsonl').read_bytes()))
  import pyarrow
  from pyarrow import parquet
  parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / 'parquet' / 'train.parquet')
  for name in ('jsonl', 'csv', 'tsv', 'gz', 'parquet'):
    found = sources.read(SENTIMENT, dataclasses.replace(TASK, folder=str(tmp_path / name)), 'train')
    assert found.first == texts and found.second == () and found.labels.tolist() == labels, name
    assert found.labels.dtype == np.int32


def test_a_pair_and_a_number_are_read_from_tfds(monkeypatch: pytest.MonkeyPatch):
  asked = []

  def rows(name: str, split: str, data_dir: str):
    asked.append((name, split, data_dir))
    return iter([{'sentence1': 'a', 'sentence2': 'b', 'label': 2.5, 'idx': 0}])

  monkeypatch.setattr(documents, 'tfds_rows', rows)
  found = sources.read(SIMILARITY, dataclasses.replace(TASK, name='stsb', data_dir='TFDS'), 'validation')
  assert asked == [('glue/stsb', 'validation', 'TFDS')]
  assert (found.first, found.second, found.labels.tolist(), found.labels.dtype) == (('a',), ('b',), [2.5], np.float32)


@pytest.mark.parametrize('name', ['microworld/acceptability', 'microworld/entailment', 'microworld/sentiment'])
def test_the_microworld_needs_no_place(name: str, monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr(sources, 'MICROWORLD', {'train': 200, 'validation': 100, 'test': 100})
  task = table.find(name)
  assert sources.sizes(task, TASK) == sources.MICROWORLD
  found = sources.read(task, TASK, 'validation')
  assert len(found.second) == (len(found.first) if len(task.fields) == 2 else 0)
  assert set(found.labels) == {0, 1}
  with pytest.raises(InputError, match="did you mean 'test'"):
    sources.read(task, TASK, 'tests')


def test_a_limit_takes_the_same_unsorted_part_of_training_alone(tmp_path: pathlib.Path):
  rows = [{'sentence': f'sentence {i}', 'label': int(i >= 500)} for i in range(1000)]
  written(tmp_path, 'train', rows)
  config = written(tmp_path, 'validation', rows)
  few, more = (sources.read(SENTIMENT, dataclasses.replace(config, limit=n), 'train') for n in (50, 200))
  assert few.first == more.first[:50] and len(more.first) == 200
  assert 60 < more.labels.sum() < 140
  assert all((int(text.split()[1]) >= 500) == label for text, label in zip(more.first, more.labels, strict=True))
  assert len(sources.read(SENTIMENT, dataclasses.replace(config, limit=50), 'validation').first) == 1000
  assert sources.sizes(SENTIMENT, dataclasses.replace(config, limit=50)) == {'train': 50, 'validation': 1000, 'test': 0}
  reordered = written(tmp_path / 'reordered', 'train', rows[::-1])
  assert sources.read(SENTIMENT, dataclasses.replace(reordered, limit=50), 'train').first == few.first


@pytest.mark.parametrize('label, index', [
    (0, 0), (1, 1), (1.0, 1), ('1', 1), ('positive', 1), ('negative', 0), (-1, -1), ('-1', -1),
])
def test_a_label_is_an_index_or_a_name(tmp_path: pathlib.Path, label: object, index: int):
  config = written(tmp_path, 'train', [{'sentence': 'x', 'label': label}])
  assert sources.read(SENTIMENT, config, 'train').labels.tolist() == [index]


@pytest.mark.parametrize('label, said', [
    (2, '0 or .negative., 1 or .positive.'), (-2, 'labels are'), (0.5, 'labels are'),
    ('positve', 'did you mean .positive.'), (None, 'None in row 1 of the train split'), (True, 'labels are'),
    ('', 'labels are'), ([1], 'labels are'), ('9' * 5000, 'labels are'),
])
def test_a_label_outside_the_table_is_refused(tmp_path: pathlib.Path, label: object, said: str):
  config = written(tmp_path, 'train', [{'sentence': 'x', 'label': label}])
  with pytest.raises(InputError, match=said):
    sources.read(SENTIMENT, config, 'train')


@pytest.mark.parametrize('label', ['high', None, True, 'nan', 'inf', ''])
def test_a_score_that_is_no_number_is_refused(tmp_path: pathlib.Path, label: object):
  config = written(tmp_path, 'train', [{'sentence1': 'x', 'sentence2': 'y', 'label': label}])
  with pytest.raises(InputError, match='a number as label'):
    sources.read(SIMILARITY, config, 'train')


def test_what_is_not_there_is_named(tmp_path: pathlib.Path):
  config = written(tmp_path, 'train', [{'text': 'x', 'label': 1}])
  with pytest.raises(InputError, match=r"the column 'sentence'(.|\n)*has text, label"):
    sources.read(SENTIMENT, config, 'train')
  with pytest.raises(InputError, match=r'validation.jsonl, .csv(.|\n)*there: train.jsonl'):
    sources.read(SENTIMENT, config, 'validation')
  with pytest.raises(InputError, match='no such folder'):
    sources.read(SENTIMENT, dataclasses.replace(TASK, folder=str(tmp_path / 'no')), 'train')
  with pytest.raises(InputError, match='task.folder'):
    sources.read(SENTIMENT, TASK, 'train')
  with pytest.raises(InputError, match=r'task.data_dir(.|\n)*or task.folder'):
    sources.read(PAIRS, TASK, 'train')
  with pytest.raises(InputError, match='TFDS does not have this task'):
    sources.read(SENTIMENT, dataclasses.replace(TASK, data_dir='TFDS'), 'train')
  with pytest.raises(InputError, match='text in .sentence.'):
    sources.read(SENTIMENT, written(tmp_path, 'train', [{'sentence': 3, 'label': 1}]), 'train')


def test_two_files_of_a_split_and_no_file_at_all_are_refused(tmp_path: pathlib.Path):
  config = written(tmp_path, 'train', [{'sentence': 'x', 'label': 1}])
  (tmp_path / 'train.tsv').write_text('sentence\tlabel\nx\t1\n')
  with pytest.raises(InputError, match='train.jsonl and train.tsv'):
    sources.sizes(SENTIMENT, config)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(InputError, match='there: nothing'):
    sources.sizes(SENTIMENT, dataclasses.replace(TASK, folder=str(tmp_path / 'empty')))
  with pytest.raises(InputError):
    sources.sizes(PAIRS, dataclasses.replace(TASK, data_dir=str(tmp_path)))


def test_nothing_left_says_whether_the_filter_took_it(tmp_path: pathlib.Path):
  with pytest.raises(InputError, match='it is empty'):
    sources.read(SENTIMENT, written(tmp_path, 'test', []), 'test')
  (tmp_path / 'words.txt').write_text('good\n')
  config = dataclasses.replace(written(tmp_path, 'test', [{'sentence': 'bad', 'label': 0}]),
                               filtered=True, word_list=str(tmp_path / 'words.txt'))
  with pytest.raises(InputError, match='no example stays inside the word list'):
    sources.read(SENTIMENT, config, 'test')
  assert sources.sizes(SENTIMENT, config) == {'train': 0, 'validation': 0, 'test': 0}


def test_unknown_labels_are_read_but_neither_trained_on_nor_scored(tmp_path: pathlib.Path):
  config = written(tmp_path, 'test', [{'sentence': 'x', 'label': -1}, {'sentence': 'y', 'label': 1}])
  found = sources.read(SENTIMENT, config, 'test')
  assert found.labels.tolist() == [-1, 1]
  with pytest.raises(InputError, match='1 of 2 examples have no label'):
    sources.require_labels(found, 'scores')
  known = sources.Examples(('y',), (), np.array([1], np.int32))
  assert sources.require_labels(known, 'scores') is known


def test_splits_of_the_data_folder_are_read_whole(data: pathlib.Path):
  config = dataclasses.replace(TASK, name='cola', folder=str(data / 'glue' / 'cola'))
  assert sources.sizes(table.find('cola'), config) == {'train': 8551, 'validation': 1043, 'test': 1063}
  labels = collections.Counter(sources.read(table.find('cola'), config, 'train').labels.tolist())
  assert labels == {0: 2528, 1: 6023}
