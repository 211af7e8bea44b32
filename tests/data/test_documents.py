"""Documents: what a source matches, what a document is, what is refused."""

import dataclasses
import gzip
import json
import lzma
import pathlib
import pickle

import pytest

from minilm_jax.core.corpus_config import DocumentsConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import documents

CONFIG = DocumentsConfig(
  sources=(),
  field='text',
  split='train',
  data_dir='',
  document_unit='paragraphs',
  on_invalid_utf8='strict',
  max_chars=1000,
)


def settings(*sources: object, **changes: object) -> DocumentsConfig:
  return dataclasses.replace(CONFIG, sources=tuple(map(str, sources)), **changes)


def texts(*sources: object, **changes: object) -> list[str]:
  config = settings(*sources, **changes)
  return [
    text
    for source in documents.expand_sources(config)
    for text in documents.read_documents(source, config)
  ]


def refused(*sources: object, **changes: object) -> str:
  with pytest.raises(InputError) as caught:
    texts(*sources, **changes)
  return str(caught.value)


@pytest.fixture
def book(tmp_path: pathlib.Path) -> pathlib.Path:
  """Two documents of two lines each, the second with white space to keep."""
  path = tmp_path / 'book.txt'
  path.write_bytes(b'a\nb\n\n\nc  d \r\n e\n')
  return path


@pytest.mark.parametrize(
  'unit, there',
  [
    ('paragraphs', ['a\nb', 'c  d \n e']),
    ('line', ['a', 'b', 'c  d ', ' e']),
    ('file', ['a\nb\n\n\nc  d \n e']),
  ],
)
def test_a_unit_says_what_a_document_is(book, unit, there):
  assert texts(book, unit=unit) == there
  assert texts(f'{book}@{unit}') == there  # one source may differ from the recipe


def test_a_file_without_empty_lines_has_a_document_a_line(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('one\ntwo\n')
  assert texts(path) == ['one', 'two']
  assert texts(f'{path}@paragraphs') == ['one\ntwo']
  path.write_text('word\n' * 1000)  # more than `longest` characters
  assert len(texts(path)) == 1000
  path.write_text('word\n' * 1000 + '\nword\n')  # so the first thousand lines were one document
  assert '@line' in refused(path)
  assert len(texts(f'{path}@line')) == 1001


def test_a_document_may_be_as_long_as_allowed_and_no_longer(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('1234\n6789\n\nb\n')
  assert texts(path, longest=9) == ['1234\n6789', 'b']
  assert '@line' in refused(path, longest=8)


def test_sources_are_mixed_in_order_and_read_once(tmp_path, book):
  (tmp_path / 'b.jsonl.gz').write_bytes(gzip.compress(b'{"text": "j"}\n'))
  (tmp_path / 'a.txt.xz').write_bytes(lzma.compress(b'x\n'))
  config = settings(tmp_path / 'b.*', tmp_path / '*.txt*', book)
  sources = documents.expand_sources(config)
  assert [pathlib.Path(source.name).name for source in sources] == [
    'b.jsonl.gz',
    'a.txt.xz',
    'book.txt',
  ]
  assert [source.form for source in sources] == ['jsonl', 'txt', 'txt']
  assert pickle.loads(pickle.dumps(sources)) == sources
  assert texts(*config.sources) == ['j', 'x', 'a\nb', 'c  d \n e']


@pytest.mark.parametrize(
  'name, said',
  [
    ('none.txt', 'no such file'),
    ('*.tsv', 'no file matches'),
    ('nowhere/*.txt', 'no folder'),
    ('.', 'a folder'),
    ('notes.pdf', 'no known form'),
    ('book.txt@lines', "did you mean 'line'"),
    ('table.csv@line', 'has no units'),
    ('nodata', 'neither a file nor a data set'),
  ],
)
def test_a_source_that_matches_nothing_is_refused(tmp_path, book, name, said):
  for other in ('notes.pdf', 'table.csv'):
    (tmp_path / other).write_text('text\n')
  assert said in refused(name if name == 'nodata' else f'{tmp_path}/{name}', data_dir=str(tmp_path))


def test_no_source_is_refused():
  assert 'documents.sources is empty' in refused()


def test_columns(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text('body,text\nb,t\n,\n')
  assert texts(path) == ['t']
  assert texts(path, field='body') == ['b']
  assert 'columns are body, text' in refused(path, field='sentence')


def test_lines_of_json_under_the_name_that_c4_gives_them(tmp_path):
  path = tmp_path / 'c4-train.00000-of-01024.json.gz'
  path.write_bytes(gzip.compress(b'{"text": "one", "url": "x"}\n{"text": "two", "url": "y"}\n'))
  assert texts(f'{tmp_path}/c4-train.*.json.gz') == ['one', 'two']
  relations = tmp_path / 'relations.json'  # one object in a line, as FewRel's
  relations.write_text('{"P1": [], "P2": []}\n')
  assert 'columns are P1, P2' in refused(relations)


@pytest.mark.parametrize('text', ['{\n  "text": "spread"\n}\n', '[{"text": "a"}]\n', 'text\n'])
def test_a_json_without_an_object_a_line_is_refused(tmp_path, text):
  path = tmp_path / 'a.json'
  path.write_text(text)
  assert 'a.json, line 1' in refused(path) and 'one JSON object a line' in refused(path)


@pytest.mark.parametrize(
  'value, said', [(7, 'no text but 7'), ('x\0', 'U+0000 at character 1'), ('\ud800', 'U+D800')]
)
def test_values_that_are_no_text_are_refused(tmp_path, value, said):
  path = tmp_path / 'a.jsonl'
  path.write_text(json.dumps({'text': 'fine'}) + '\n' + json.dumps({'text': value}))
  assert said in refused(path) and 'row 2' in refused(path)
  if isinstance(value, str):
    assert texts(path, errors='replace') == ['fine', value[:-1] + '\ufffd']


def test_microworld_is_a_source():
  few = texts('microworld:5', longest=10_000)
  assert len(few) == 5 and few == texts('microworld:9', longest=10_000)[:5]
  assert documents.expand_sources(settings('microworld'))[0].name == 'microworld:20000'
  assert 'not a number' in refused('microworld:many')


def test_fingerprints_follow_the_content(book):
  (source,) = documents.expand_sources(settings(book))
  before = documents.fingerprint_source(source)
  assert before['bytes'] == book.stat().st_size and before == documents.fingerprint_source(source)
  book.write_bytes(book.read_bytes().replace(b'a', b'z'))
  assert documents.fingerprint_source(source) != before


def test_the_count_of_real_documents(data):
  there = {
    'switchboard/switchboard': 1155,
    'nltk_corpora/brown': 500,
    'novels_100/novels_100': 100,
    'wikipedia_2014/wikipedia_2014.0': 29159,
  }
  for name, count in there.items():
    assert len(texts(data / f'{name}.txt.xz', longest=10_000_000)) == count, name
