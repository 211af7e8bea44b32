"""Tests GLUE's own .tsv files and the .json files of FewRel: columns, broken rows, marked entities."""

import dataclasses
import gzip
import json
import lzma
import pathlib

import pytest

from configs import base
from minilm_jax.core import recipe
from minilm_jax.core.config import TaskConfig
from minilm_jax.core.errors import InputError
from minilm_jax.tasks import examples, finetune, task_files
from minilm_jax.tasks.examples import Examples
from tests.tiny_config import make_finetune_config

TASK = recipe.build(TaskConfig, base.finetune().task.to_dict())
# A row of each published file, with its header.
PUBLISHED = {
  'sst2': ('sentence\tlabel', 'fine film\t1'),
  'mrpc': ('\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String', '1\t7\t8\tone "text\tother'),
  'qqp': ('id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate', '5\t1\t2\tone "text\tother\t1'),
  'stsb': (
    'index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore',
    '0\ta\tb\tc\td\te\tf\tone "text\tother\t1.000',
  ),
  'mnli': (
    'index\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label',
    '0\tp\tg\tone "text\tother\tentailment\tneutral',
  ),
  'qnli': ('index\tquestion\tsentence\tlabel', '0\tone "text\tother\tnot_entailment'),
  'rte': ('index\tsentence1\tsentence2\tlabel', '0\tone "text\tother\tnot_entailment'),
  'cola': ('', 'gj04\t1\t\tfine film'),
}


def read(folder: pathlib.Path, name: str, split: str) -> Examples:
  config = dataclasses.replace(TASK, name=name, folder=str(folder))
  return examples.read_examples(examples.complete_task(config), config, split)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_files_are_read_as_downloaded(tmp_path: pathlib.Path, name: str):
  header, row = PUBLISHED[name]
  content = f'{header}\n{row}\n{row}\n' if header else f'{row}\n{row}\n'
  suffix = '_matched' if name == 'mnli' else ''
  for file in ('train', f'dev{suffix}'):
    (tmp_path / f'{file}.tsv').write_text(content)
  for split in ('train', f'validation{suffix}'):
    rows = read(tmp_path, name, split)
    assert rows.labels.tolist() == [1, 1]
    texts = ('fine film', '') if name in ('sst2', 'cola') else ('one "text', 'other')
    assert rows.pairs == [texts] * 2


@pytest.mark.parametrize('num_rows, num_broken', [(10, 3), (1000, 10)])
def test_a_few_broken_rows_are_skipped_and_counted(
  tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, num_rows: int, num_broken: int
):
  header, row = PUBLISHED['qqp']
  broken = '\twas he a real figure ?\t0'
  lines = [header, *[row] * num_rows, *[broken] * num_broken]
  (tmp_path / 'train.tsv').write_text('\n'.join(lines) + '\n')
  assert len(read(tmp_path, 'qqp', 'train').labels) == num_rows
  message = f'skipped {num_broken} of {num_rows + num_broken:,} rows'
  assert message in ' '.join(capsys.readouterr().err.split())
  (tmp_path / 'train.tsv').write_text('\n'.join([*lines, broken]) + '\n')
  with pytest.raises(InputError, match=f'line {num_rows + 2}'):
    read(tmp_path, 'qqp', 'train')
  test = 'id\tquestion1\tquestion2\n0\ta\tb\n1\ta\n'
  (tmp_path / 'test.tsv').write_text(test)
  with pytest.raises(InputError, match='line 3'):
    read(tmp_path, 'qqp', 'test')


def test_a_test_file_without_labels_gives_a_submission(tiny_run: pathlib.Path, tmp_path):
  rows = [f'film {i} is {word}\t{i % 2}\n' for i, word in enumerate(('bad', 'good') * 8)]
  for name in ('train', 'dev'):
    (tmp_path / f'{name}.tsv').write_text('sentence\tlabel\n' + ''.join(rows))
  (tmp_path / 'test.tsv').write_text('index\tsentence\n0\tan odd film\n1\ta fine one\n')
  fields = {'seeds': '0', 'epochs': 1.0, 'batch_size': 16, 'predictions': True}
  config = make_finetune_config('sst2', **fields, **{'task.folder': str(tmp_path)})
  counts = examples.count_examples(examples.complete_task(config.task), config.task)
  assert counts == {'train': 16, 'validation': 16, 'test': 2}
  finetune.finetune(config, tiny_run, tmp_path / 'run', [8])
  lines = (tmp_path / 'run' / 'submission' / 'SST-2.tsv').read_text().splitlines()
  assert lines[0] == 'index\tprediction' and [line[:2] for line in lines[1:]] == ['0\t', '1\t']
  scored = dataclasses.replace(config.task, split='test')
  with pytest.raises(InputError, match="'label'"):
    examples.read_examples(examples.complete_task(scored), scored, 'test')


def test_the_log_tells_that_a_custom_task_has_no_submission(tiny_run, tmp_path, capsys):
  for name, cells in (('train', ('x\ta', 'y\tb') * 8), ('validation', ('x\ta', 'y\tb'))):
    (tmp_path / f'{name}.tsv').write_text('text\tlabel\n' + '\n'.join(cells) + '\n')
  (tmp_path / 'test.tsv').write_text('text\nz\n')
  fields = {'seeds': '0', 'epochs': 1.0, 'predictions': True}
  config = make_finetune_config('own', **fields, **{'task.folder': str(tmp_path)})
  finetune.prepare(config, tiny_run, tmp_path / 'run', [None])
  assert 'own: no predictions of the test split' in ' '.join(capsys.readouterr().err.split())


TOKENS = 'Ann Lee met her brother , Tom , near Lee .'.split()
MARKERS = {*task_files.HEAD_MARKER, *task_files.TAIL_MARKER}
ITEM = {'tokens': TOKENS, 'h': ['ann lee', 'Q1', [[0, 1], [9]]], 't': ['tom', 'Q2', [[6]]]}


def write_relations(tmp_path: pathlib.Path, content: object) -> str:
  path = tmp_path / 'relations.json'
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return str(path)


def test_fewrel_rows_have_joined_tokens_and_marked_mentions(tmp_path: pathlib.Path):
  path = pathlib.Path(write_relations(tmp_path, {'sibling': [ITEM], 'spouse': [ITEM, ITEM]}))
  rows = list(task_files.read_fewrel_rows(path, False))
  assert [row['label'] for row in rows] == ['sibling', 'spouse', 'spouse']
  assert rows[0] == {'text': ' '.join(TOKENS), 'label': 'sibling'}
  marked_rows = list(task_files.read_fewrel_rows(path, True))
  marked = 'qj Ann Lee jq met her brother , qz Tom zq , near qj Lee jq .'
  assert marked_rows == [row | {'marked': marked} for row in rows]
  (tmp_path / 'a.json.xz').write_bytes(lzma.compress(path.read_bytes()))
  (tmp_path / 'a.json.gz').write_bytes(gzip.compress(path.read_bytes()))
  for name in ('a.json.xz', 'a.json.gz'):
    assert list(task_files.read_fewrel_rows(tmp_path / name, True)) == marked_rows


def test_markers_are_four_different_words_of_lower_case_letters():
  assert len(set(MARKERS)) == 4
  assert all(mark.isascii() and mark.isalpha() and mark == mark.lower() for mark in MARKERS)


def test_an_entity_inside_another_is_marked_inside(tmp_path: pathlib.Path):
  item = {'tokens': ['New', 'York', 'Times'], 'h': ['', '', [[0, 1, 2]]], 't': ['', '', [[0, 1]]]}
  (row,) = task_files.read_fewrel_rows(write_relations(tmp_path, {'r': [item]}), True)
  assert row['marked'] == 'qj qz New York zq Times jq'


@pytest.mark.parametrize(
  'content, match',
  [
    ('{"r": ', 'JSON'),
    ([ITEM], 'relations.json'),
    ({'r': ITEM}, 'relations.json'),
    ({'r': [ITEM, {'text': 'x'}]}, 'r, example 2'),
    ({'r': [3]}, 'r, example 1'),
    ({'r': [{'tokens': ['a']}]}, "'h'"),
    ({'r': [{**ITEM, 't': ['', '', []]}]}, "'t'"),
    ({'r': [{**ITEM, 't': ['', '', [[11]]]}]}, r'\[11\] in 11 tokens'),
    ({'r': [{**ITEM, 'h': ['', '', [[-1]]]}]}, r'\[-1\] in 11 tokens'),
    ({'r': [{**ITEM, 'h': ['', '', ['0']]}]}, "'0' in 11 tokens"),
  ],
)
def test_a_malformed_fewrel_file_is_refused(tmp_path: pathlib.Path, content: object, match: str):
  with pytest.raises(InputError, match=match):
    list(task_files.read_fewrel_rows(write_relations(tmp_path, content), True))


@pytest.mark.parametrize(
  'name, examples, relations',
  [('wiki', 11_200, 16), ('nyt', 2_500, 25), ('semeval', 8_851, 17), ('pubmed', 1_000, 10)],
)
def test_the_official_files_have_known_counts(
  data: pathlib.Path, name: str, examples: int, relations: int
):
  rows = list(task_files.read_fewrel_rows(data / 'fewrel' / f'val_{name}.json.xz', True))
  assert len(rows) == examples and len({row['label'] for row in rows}) == relations
  for row in rows:
    assert not MARKERS & set(row['text'].lower().split())
    assert MARKERS <= set(row['marked'].split())


def test_a_relation_listed_twice_is_refused(tmp_path: pathlib.Path):
  item = '[{"tokens": ["a"]}]'
  (tmp_path / 'a.json').write_text(f'{{"P1": {item}, "P2": {item}, "P1": {item}}}')
  with pytest.raises(InputError, match="'P1' twice"):
    list(task_files.read_fewrel_rows(tmp_path / 'a.json', False))


def test_an_empty_text_of_a_published_pair_is_read(tmp_path: pathlib.Path):
  """Predictions for the GLUE server need every row."""
  header, row = PUBLISHED['qqp']
  (tmp_path / 'train.tsv').write_text(f'{header}\n{row}\n7\t3\t4\twhat\t\t0\n')
  assert read(tmp_path, 'qqp', 'train').pairs == [('one "text', 'other'), ('what', '')]


def test_markers_of_a_table_are_refused(tmp_path: pathlib.Path):
  (tmp_path / 'train.csv').write_text('text,label\na,x\nb,y\n')
  config = dataclasses.replace(TASK, name='fewrel', train=str(tmp_path / 'train.csv'), markers=True)
  with pytest.raises(InputError, match='train.csv(.|\n)*remove task.markers'):
    examples.complete_task(config)
