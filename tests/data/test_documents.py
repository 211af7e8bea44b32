"""Documents: sources match files, units split text, and invalid input is refused."""

import dataclasses
import gzip
import json
import lzma
import pathlib
import pickle

import pyarrow
import pytest
from pyarrow import parquet

from minilm_jax.core.corpus_config import DocumentsConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import documents


def make_config(*sources: object, **changes: object) -> DocumentsConfig:
  config = DocumentsConfig(sources=tuple(map(str, sources)), max_chars=1000)
  return dataclasses.replace(config, **changes)


def read_sources(*sources: object, **changes: object) -> list[str]:
  config = make_config(*sources, **changes)
  return [
    text
    for source in documents.expand_sources(config)
    for text in documents.read_documents(source, config)
  ]


def refuse(*sources: object, **changes: object) -> str:
  with pytest.raises(InputError) as refused:
    read_sources(*sources, **changes)
  return str(refused.value)


@pytest.fixture
def book(tmp_path) -> pathlib.Path:
  """Two documents of two lines each, the second with white space to keep."""
  path = tmp_path / 'book.txt'
  path.write_bytes(b'a\nb\n\n\nc  d \r\n e\n')
  return path


@pytest.mark.parametrize(
  'unit, texts',
  [
    ('paragraphs', ['a b', 'c  d   e']),
    ('line', ['a', 'b', 'c  d ', ' e']),
    ('file', ['a\nb\n\n\nc  d \n e']),
  ],
)
def test_a_unit_defines_a_document(book, unit, texts):
  assert read_sources(book, document_unit=unit) == texts
  assert read_sources(f'{book}@{unit}') == texts  # one source may differ from the recipe


def test_each_line_is_a_document_if_no_line_is_empty(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('one\ntwo\n')
  assert read_sources(path) == ['one', 'two']
  assert read_sources(f'{path}@paragraphs') == ['one two']
  path.write_text('word\n' * 1000)  # more than max_chars characters
  assert len(read_sources(path)) == 1000
  path.write_text('word\n' * 1000 + '\nword\n')  # the first thousand lines are one document
  assert '@line' in refuse(path)
  assert len(read_sources(f'{path}@line')) == 1001


def test_a_letter_of_a_unit_in_a_file_name(tmp_path):
  (tmp_path / 'a@home.txt').write_text('one')
  (tmp_path / 'b@home.txt').write_text('two')
  assert read_sources(tmp_path / '*@home.txt') == ['one', 'two']


def test_line_ends_of_long_lines_are_kept(tmp_path):
  path, long_line = tmp_path / 'a.txt', 'A long line is a paragraph of its own. ' * 4
  path.write_text(f'{long_line}\nHe said\n\nHe came\nlate.\n')
  assert read_sources(path, max_chars=1000) == [f'{long_line}\nHe said', 'He came late.']


def test_a_document_has_at_most_max_chars(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('1234\n6789\n\nb\n')
  assert read_sources(path, max_chars=9) == ['1234 6789', 'b']
  assert '@line' in refuse(path, max_chars=8)


def test_sources_keep_their_order_and_are_read_once(tmp_path, book):
  (tmp_path / 'b.jsonl.gz').write_bytes(gzip.compress(b'{"text": "j"}\n'))
  (tmp_path / 'a.txt.xz').write_bytes(lzma.compress(b'x\n'))
  config = make_config(tmp_path / 'b.*', tmp_path / '*.txt*', book)
  sources = documents.expand_sources(config)
  assert [(pathlib.Path(source.name).name, source.format) for source in sources] == [
    ('b.jsonl.gz', 'jsonl'),
    ('a.txt.xz', 'txt'),
    ('book.txt', 'txt'),
  ]
  assert pickle.loads(pickle.dumps(sources)) == sources
  assert read_sources(*config.sources) == ['j', 'x', 'a b', 'c  d   e']


@pytest.mark.parametrize(
  'source, texts',
  [
    ('texts [old]/Emma [1815].txt', ['emma']),
    ('texts [old]/*.txt', ['emma', 'other']),
    ('texts [old]/*@file', ['emma', 'other']),
    ('what?.txt', ['what']),
    ('what?.txt@line', ['what']),
    ('Dickens, Bleak House.txt', ['bleak']),
    ('a@file.txt', ['at']),
    ('t/**/*.txt', ['y', 'x']),
    ('t/*/*/*.txt', ['y']),
    ('t/**.txt', ['x']),
  ],
)
def test_names_of_files_are_literal_or_patterns(
  source: str, texts: list[str], tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  for name, text in (
    ('texts [old]/Emma [1815].txt', 'emma'),
    ('texts [old]/other.txt', 'other'),
    ('what?.txt', 'what'),
    ('whats.txt', 'whats'),
    ('Dickens, Bleak House.txt', 'bleak'),
    ('a@file.txt', 'at'),
    ('t/a/b/y.txt', 'y'),
    ('t/x.txt', 'x'),
  ):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
  assert read_sources(source) == texts
  assert read_sources(tmp_path / source) == texts


@pytest.mark.parametrize(
  'name, part',
  [
    ('none.txt', 'no such file'),
    ('*.tsv', 'no match'),
    ('nowhere/*.txt', 'no folder'),
    ('.', 'a folder'),
    ('notes.pdf', '.parquet'),
    ('book.txt@lines', "'line'"),
    ('table.csv@line', '.csv'),
    ('nodata', 'TFDS'),
  ],
)
def test_a_source_without_a_match_is_refused(tmp_path, book, name, part):
  for file in ('notes.pdf', 'table.csv'):
    (tmp_path / file).write_text('text\n')
  error = refuse(name if name == 'nodata' else f'{tmp_path}/{name}', data_dir=str(tmp_path))
  assert part in error and name in error


def test_an_empty_list_of_sources_is_refused():
  assert 'documents.sources' in refuse()


def test_a_field_selects_the_column(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text('body,text\nb,t\n,\n')
  assert read_sources(path) == ['t']
  assert read_sources(path, field='body') == ['b']
  assert 'body, text' in refuse(path, field='sentence')


def test_files_named_as_in_c4_have_an_object_a_line(tmp_path):
  path = tmp_path / 'c4-train.00000-of-01024.json.gz'
  path.write_bytes(gzip.compress(b'{"text": "one", "url": "x"}\n{"text": "two", "url": "y"}\n'))
  assert read_sources(f'{tmp_path}/c4-train.*.json.gz') == ['one', 'two']
  relations = tmp_path / 'relations.json'  # one object in one line, as in FewRel
  relations.write_text('{"P1": [], "P2": []}\n')
  assert 'P1, P2' in refuse(relations)


@pytest.mark.parametrize(
  'text, location',
  [('{\n  "text": "spread"\n}\n', 'line 1'), ('text\n', 'line 1'), ('["a"]\n', 'item 1')],
)
def test_a_json_file_needs_an_object_a_line(tmp_path, text, location):
  path = tmp_path / 'a.json'
  path.write_text(text)
  assert f'a.json, {location}' in refuse(path)


@pytest.mark.parametrize(
  'value, part', [(7, '7'), ('x\0', 'U+0000 at character 1'), ('\ud800', 'U+D800')]
)
def test_values_that_are_not_text_are_refused(tmp_path, value, part):
  path = tmp_path / 'a.jsonl'
  path.write_text(json.dumps({'text': 'fine'}) + '\n' + json.dumps({'text': value}))
  error = refuse(path)
  assert part in error and 'row 2' in error
  if isinstance(value, str):
    assert read_sources(path, on_invalid_utf8='replace') == ['fine', value[:-1] + '\ufffd']


def test_null_values_are_skipped_and_binary_text_is_decoded(tmp_path):
  texts = ['one', None, 'größe', '']
  (tmp_path / 'a.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
  binary = pyarrow.array([text and text.encode() for text in texts], 'binary')
  for name, column in (
    ('b', pyarrow.array(texts)),
    ('c', binary),
    ('d', binary.cast('large_binary')),
  ):
    parquet.write_table(pyarrow.table({'text': column}), tmp_path / f'{name}.parquet')
  for name in ('a.jsonl', 'b.parquet', 'c.parquet', 'd.parquet'):
    assert read_sources(tmp_path / name) == ['one', 'größe']
  damaged = pyarrow.table({'text': [b'fine', b'a\xff']})
  parquet.write_table(damaged, tmp_path / 'e.parquet')
  assert 'not UTF-8' in refuse(tmp_path / 'e.parquet')
  assert read_sources(tmp_path / 'e.parquet', on_invalid_utf8='replace') == ['fine', 'a\ufffd']


def test_the_microworld_is_a_source():
  texts = read_sources('microworld:5', max_chars=10_000)
  assert len(texts) == 5 and texts == read_sources('microworld:9', max_chars=10_000)[:5]
  assert documents.expand_sources(make_config('microworld'))[0].name == 'microworld:20000'
  assert "'many'" in refuse('microworld:many')


def test_fingerprints_follow_the_content(book):
  (source,) = documents.expand_sources(make_config(book))
  before = documents.fingerprint_source(source)
  assert before['bytes'] == book.stat().st_size and before == documents.fingerprint_source(source)
  book.write_bytes(book.read_bytes().replace(b'a', b'z'))
  assert documents.fingerprint_source(source) != before


@pytest.mark.parametrize(
  'name, count',
  [
    ('switchboard/switchboard', 1155),
    ('nltk_corpora/brown', 500),
    ('novels_100/novels_100', 100),
    ('wikipedia_2014/wikipedia_2014.0', 29159),
  ],
)
def test_real_files_have_their_number_of_documents(data, name: str, count: int):
  assert len(read_sources(data / f'{name}.txt.xz', max_chars=10_000_000)) == count
