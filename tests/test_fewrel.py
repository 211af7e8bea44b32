"""FewRel: sentences of its files, marks round their entities, and what is no such file."""

import doctest
import gzip
import json
import lzma
import pathlib

import pytest

from minilm_jax.errors import InputError
from minilm_jax.tasks import fewrel

TOKENS = 'Ann Lee met her brother , Tom , near Lee .'.split()
ITEM = {'tokens': TOKENS, 'h': ['ann lee', 'Q1', [[0, 1], [9]]], 't': ['tom', 'Q2', [[6]]]}


def written(tmp_path: pathlib.Path, content: object) -> str:
  path = tmp_path / 'relations.json'
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return str(path)


def test_examples_in_docstrings():
  assert doctest.testmod(fewrel).failed == 0


def test_a_sentence_is_its_tokens_and_every_mention_is_marked(tmp_path: pathlib.Path):
  path = written(tmp_path, {'sibling': [ITEM], 'spouse': [ITEM, ITEM]})
  assert [row['label'] for row in fewrel.rows(path, False)] == ['sibling', 'spouse', 'spouse']
  plain, marked = next(fewrel.rows(path, False)), next(fewrel.rows(path, True))
  assert plain == {'text': ' '.join(TOKENS), 'label': 'sibling'}
  assert marked['marked'] == 'qj Ann Lee jq met her brother , qz Tom zq , near qj Lee jq .'
  assert marked['text'] == plain['text']


def test_marks_survive_what_a_tokenizer_does():
  marks = [*fewrel.HEAD, *fewrel.TAIL]
  assert len(set(marks)) == 4 and all(mark.isascii() and mark.isalpha() and mark == mark.lower() for mark in marks)


def test_an_entity_inside_another_is_marked_inside(tmp_path: pathlib.Path):
  item = {'tokens': ['New', 'York', 'Times'], 'h': ['', '', [[0, 1, 2]]], 't': ['', '', [[0, 1]]]}
  assert next(fewrel.rows(written(tmp_path, {'r': [item]}), True))['marked'] == 'qj qz New York zq Times jq'


def test_a_compressed_file_is_the_same(tmp_path: pathlib.Path):
  path = pathlib.Path(written(tmp_path, {'sibling': [ITEM] * 3}))
  (tmp_path / 'a.json.xz').write_bytes(lzma.compress(path.read_bytes()))
  (tmp_path / 'a.json.gz').write_bytes(gzip.compress(path.read_bytes()))
  for name in ('a.json.xz', 'a.json.gz'):
    assert list(fewrel.rows(tmp_path / name, True)) == list(fewrel.rows(path, True))


@pytest.mark.parametrize('content, said', [
    ('{"r": ', 'not JSON'), ([ITEM], 'no object of lists'), ({'r': ITEM}, 'no object of lists'),
    ({'r': [ITEM, {'text': 'x'}]}, 'r, example 2(.|\n)*no list of tokens'), ({'r': [3]}, 'no list of tokens'),
    ({'r': [{'tokens': ['a']}]}, "no mention in 'h'"), ({'r': [{**ITEM, 't': ['', '', []]}]}, "no mention in 't'"),
    ({'r': [{**ITEM, 't': ['', '', [[11]]]}]}, 'among 11 tokens'),
    ({'r': [{**ITEM, 'h': ['', '', [[-1]]]}]}, 'among 11 tokens'),
    ({'r': [{**ITEM, 'h': ['', '', ['0']]}]}, 'as a mention'),
])
def test_what_is_no_such_file_is_refused(tmp_path: pathlib.Path, content: object, said: str):
  with pytest.raises(InputError, match=said):
    list(fewrel.rows(written(tmp_path, content), True))


@pytest.mark.parametrize('name, examples, relations', [
    ('wiki', 11_200, 16), ('nyt', 2_500, 25), ('semeval', 8_851, 17), ('pubmed', 1_000, 10),
])
def test_the_official_files_are_read_whole(data: pathlib.Path, name: str, examples: int, relations: int):
  rows = list(fewrel.rows(data / 'fewrel' / f'val_{name}.json.xz', True))
  assert len(rows) == examples and len({row['label'] for row in rows}) == relations
  marks = [*fewrel.HEAD, *fewrel.TAIL]
  for row in rows:
    assert not set(marks) & set(row['text'].lower().split()) and all(mark in row['marked'].split() for mark in marks)
