"""What holds of any input that hypothesis can think of: what is written comes back, and what is
refused is refused.
"""

import dataclasses
import difflib
import functools
import json
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from etils import epath

from minilm_jax.core import corpus_config, files, recipe, run_dir, schema
from minilm_jax.core.errors import InputError
from minilm_jax.data import build, corpus, documents, filters, packing, tokenizer
from tests import corruptions, input_cases

hypothesis = pytest.importorskip('hypothesis', reason='pip install hypothesis>=6.100')
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

# The same examples every time, and few: what they find is found again. More: --hypothesis-seed with
# derandomize off.
settings.register_profile('quick', max_examples=25, deadline=None, derandomize=True, database=None)
quick = settings.get_profile('quick')

TEXT = st.text(st.characters(exclude_categories=('Cs',), exclude_characters='\0'))
LINE = st.text(st.characters(exclude_categories=('Cs',), exclude_characters='\0\n\r'), max_size=40)
DOCUMENT = LINE.filter(
  lambda text: text.strip() and text == text.strip() and not text.startswith('\ufeff')
)
PACKINGS = st.sampled_from(sorted(corruptions.PACK))
WORDS = st.text('abcde', min_size=1, max_size=6)


def written(name: str, content: bytes) -> Any:
  """A file for one example: hypothesis calls a test many times, and a fixture once."""
  folder = tempfile.TemporaryDirectory()
  path = pathlib.Path(folder.name) / name
  path.write_bytes(content)
  return folder, path


def read(name: str, content: bytes, **changes: Any) -> list[str]:
  """The documents of a file of this name and content."""
  folder, path = written(name, content)
  with folder:
    made = dataclasses.replace(defaults().documents, sources=(str(path),), **changes)
    return [
      text
      for source in documents.expand_sources(made)
      for text in documents.read_documents(source, made)
    ]


@functools.cache
def defaults() -> Any:
  from configs import base

  return recipe.resolve(base.corpus(), 'corpus')


# Documents.


@quick
@given(st.lists(DOCUMENT, min_size=1), PACKINGS)
def test_documents_of_lines_come_back(texts: list[str], packing: str):
  content = corruptions.PACK[packing](''.join(text + '\n' for text in texts).encode())
  assert read(f'a.txt{packing}', content, document_unit='line') == texts


@quick
@given(st.lists(st.lists(DOCUMENT, min_size=1, max_size=3), min_size=1, max_size=5), PACKINGS)
def test_documents_of_paragraphs_come_back(paragraphs: list[list[str]], packing: str):
  texts = ['\n'.join(lines) for lines in paragraphs]
  content = corruptions.PACK[packing](''.join(text + '\n\n' for text in texts).encode())
  assert read(f'a.txt{packing}', content) == texts


@quick
@given(st.lists(TEXT, min_size=1), st.sampled_from(('jsonl', 'parquet')), PACKINGS)
def test_documents_of_tables_come_back_whatever_is_in_them(
  texts: list[str], form: str, packing: str
):
  packing = '' if form == 'parquet' else packing
  content = corruptions.PACK[packing](
    input_cases.of_columns(form, [{'n': i, 'text': text} for i, text in enumerate(texts)])
  )
  name = f'a.{form}{packing}'
  assert read(name, content) == [text for text in texts if text and not text.isspace()]


@quick
@given(st.lists(DOCUMENT, min_size=1), st.sampled_from(('csv', 'tsv')), PACKINGS)
def test_documents_of_delimited_lines_come_back(texts: list[str], form: str, packing: str):
  texts = [text.replace('\t', ' ') for text in texts]
  quote = (lambda text: '"' + text.replace('"', '""') + '"') if form == 'csv' else str
  mark = ',' if form == 'csv' else '\t'
  content = f'n{mark}text\n' + ''.join(f'{i}{mark}{quote(text)}\n' for i, text in enumerate(texts))
  assert read(f'a.{form}{packing}', corruptions.PACK[packing](content.encode())) == texts


@quick
@given(
  st.binary(max_size=400),
  st.sampled_from(('a.txt', 'a.jsonl', 'a.csv.gz', 'a.tsv.xz', 'a.txt.zst', 'a.parquet')),
)
def test_any_bytes_are_documents_or_refused(content: bytes, name: str):
  try:
    found = read(name, content)
  except InputError as error:
    assert error.asked and error.found and error.remedy
  else:
    assert all(text.strip() and not schema.NO_TEXT.search(text) for text in found)


# Vocabulary.


@quick
@given(TEXT, st.sampled_from(('paper1', 'plain')))
def test_counted_words_are_lower_case_and_counting_them_again_changes_nothing(
  text: str, counting: str
):
  for field in text.split():
    found = filters.extract_words(field, counting)
    assert all(word == word.lower() and not any(map(str.isspace, word)) for word in found)
    assert filters.extract_words(field.lower(), counting) == found  # case is nothing
    if counting == 'plain' and '_' not in field:  # which hides a number from the rule of numbers
      assert all(
        filters.extract_words(word, counting) == (word,) for word in found if word.isascii()
      )


@quick
@given(
  st.lists(st.lists(WORDS, min_size=1, max_size=12), min_size=1, max_size=6),
  st.sets(WORDS, min_size=1, max_size=30),
  st.sampled_from(('paper1', 'plain')),
)
def test_kept_text_stays_inside_the_word_list(
  texts: list[list[str]], words: set[str], counting: str
):
  from minilm_jax.data import filters

  config = dataclasses.replace(
    defaults().vocabulary,
    word_rule=counting,
    min_words_per_sentence=1,
    span_words=3,
    span_stride=1,
    min_words_per_span=1,
  )
  known = filters.WordList(frozenset(words), 'some', '')
  kept = filters.Filter(known, config).apply([' '.join(text) + ' .' for text in texts])
  for _, _, item in kept.items:
    assert all(
      word in words for field in item.split() for word in filters.extract_words(field, counting)
    ), item


@quick
@given(st.dictionaries(WORDS, st.integers(1, 9), min_size=1), st.integers(1, 9))
def test_the_most_frequent_words_are_no_rarer_than_the_others(counts: dict[str, int], n: int):
  found = filters.select_frequent_words(counts, n).words
  assert len(found) == min(n, len(counts))
  assert min(counts[word] for word in found) >= max(
    (counts[word] for word in counts if word not in found), default=0
  )


@quick
@given(st.sets(WORDS, min_size=1), st.randoms(use_true_random=False), PACKINGS)
def test_a_word_list_is_the_same_in_any_order_and_form(words: set[str], dice: Any, packing: str):
  listed = list(words)
  dice.shuffle(listed)
  found = []
  for name, content in (
    ('a.txt' + packing, corruptions.PACK[packing]('\n'.join(listed).encode())),
    ('a.jsonl', input_cases.of_columns('jsonl', [{'word': word} for word in words])),
  ):
    folder, path = written(name, content)
    with folder:
      found.append(filters.load_word_list(path))
  assert found[0].words == found[1].words == words and found[0].sha256 == found[1].sha256


# Tokenizer.


@pytest.fixture(scope='module')
def pieces() -> tokenizer.Tokenizer:
  """One that spells in bytes what it does not know, so that any text can come back."""
  many = [
    f'{input_cases.TEXTS[i % len(input_cases.TEXTS)]} {i * 2654435761 % 2**40:x}'
    for i in range(1, 500)
  ]
  return tokenizer._train_sentencepiece(many, 'bpe', 600)


@quick
@given(texts=st.lists(LINE, max_size=4))
def test_text_comes_back_from_ids_that_are_in_range(texts: list[str], pieces: tokenizer.Tokenizer):
  # only spaces are squeezed
  normal = [' '.join(filter(None, text.replace('\u2581', ' ').split(' '))) for text in texts]
  for text, ids in zip(normal, pieces.encode(normal), strict=True):
    assert all(tokenizer.UNKNOWN_ID <= i < pieces.size and i != tokenizer.MASK_ID for i in ids)
    assert pieces.decode(ids) == text


# Corpora.


@quick
@given(
  st.integers(4, 12).flatmap(
    lambda length: st.tuples(
      st.just(length),
      st.dictionaries(
        st.sampled_from(corpus_config.SPLITS),
        st.lists(st.lists(st.integers(0, 59), min_size=length, max_size=length), max_size=9),
      ),
    )
  ),
  st.integers(1, 4),
)
def test_rows_come_back_and_the_manifest_knows_each_of_them(
  made: tuple[int, dict[str, Any]], size: int
):
  length, given_rows = made
  with tempfile.TemporaryDirectory() as folder:
    folder, splits = epath.Path(folder), {}
    for split in corpus_config.SPLITS:
      array = np.array(given_rows.get(split, []), '<u2').reshape(-1, length)
      splits[split] = packing.write_shards(
        (array[at : at + size] for at in range(0, len(array), size)), folder, split
      )
    files.write_json(
      folder / run_dir.MANIFEST,
      {
        'format': corpus_config.FORMAT,
        'length': length,
        'vocabulary': 60,
        'dtype': 'uint16',
        'splits': splits,
        'tokenizer': {'file': 'x', 'sha256': ''},
        'hash': build.hash_corpus('', length, splits),
      },
    )
    for split in corpus_config.SPLITS:
      wanted = given_rows.get(split, [])
      if not wanted:
        with pytest.raises(InputError, match='no rows'):
          corpus.load_split(folder, split)
        continue
      assert corpus.load_split(folder, split).tokens.tolist() == wanted
      found = corpus.CorpusFiles(folder, split)
      places = np.arange(len(wanted))[::-1]
      assert found[places].tolist() == wanted[::-1]
      for shard in splits[split]['shards']:
        assert files.hash_file(folder / shard['file']) == shard['sha256']


@quick
@given(st.lists(st.lists(st.integers(5, 99), max_size=9), max_size=9), st.integers(1, 7))
def test_grouping_loses_no_token_and_fills_no_row_beyond_its_room(
  items: list[list[int]], room: int
):
  found = list(packing.group_by_tokens(items, room))
  assert [i for group in found for i in group] == [i for item in items for i in item]
  assert all(0 < len(group) <= room for group in found)


# Recipes.


def values_of(kind: Any, old: Any) -> st.SearchStrategy:
  """Values that a field of this type may have."""
  if kind is bool:
    return st.booleans()
  if kind is int:
    return st.integers(max(1, old // 2), max(2, 2 * old)) if old > 0 else st.just(old)
  if kind is float:
    return st.floats(old / 2, old) if old > 0 else st.just(old)
  return st.just(old)


@functools.cache
def recipes() -> dict[str, Any]:
  from configs import base, tiny

  return {
    'pretrain': tiny.get_config().to_dict(),
    'corpus': base.corpus().to_dict(),
    'finetune': base.finetune().to_dict(),
  }


KINDS = st.sampled_from(('pretrain', 'corpus', 'finetune'))


@quick
@given(KINDS, st.data())
def test_a_resolved_recipe_resolves_to_itself_as_data_and_as_json(kind: str, data: st.DataObject):
  made = json.loads(json.dumps(recipes()[kind]))
  found = recipe.resolve(made, kind)
  for name, value in list(made.items()):  # a few fields are others
    if isinstance(value, (int, float)) and not isinstance(value, bool) and data.draw(st.booleans()):
      made[name] = data.draw(values_of(type(value), value))
  try:
    found = recipe.resolve(made, kind)
  except InputError:  # of fields that do not go together
    pass
  plain = recipe.as_dict(found)
  assert recipe.resolve(plain, kind) == found
  assert recipe.resolve(json.loads(json.dumps(plain)), kind) == found
  assert hash(recipe.resolve(plain, kind)) == hash(found)


def groups(tree: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
  yield above
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from groups(value, (*above, name))


def likeness(one: str, other: str) -> float:
  return difflib.SequenceMatcher(None, other, one).ratio()


@quick
@given(KINDS, st.data())
def test_an_unknown_field_is_refused_wherever_it_stands_with_what_was_meant(
  kind: str, data: st.DataObject
):
  made = json.loads(json.dumps(recipes()[kind]))
  place = data.draw(st.sampled_from(list(groups(made))))
  group = functools.reduce(lambda tree, name: tree[name], place, made)
  meant = data.draw(st.sampled_from(sorted(name for name in group if len(name) > 4)))
  at = data.draw(st.integers(1, len(meant) - 2))
  wrong = (
    meant[:at] + meant[at + 1] + meant[at] + meant[at + 2 :]
  )  # two letters have changed places
  hypothesis.assume(wrong not in group)
  group[wrong] = group.pop(meant) if data.draw(st.booleans()) else group[meant]
  with pytest.raises(InputError) as refused:
    recipe.resolve(made, kind)
  assert refused.value.asked == f'the field {".".join((*place, wrong))}'
  named = re.fullmatch(r"did you mean '(\w+)'\?", refused.value.remedy)[1]
  assert named in {meant, *group} and likeness(named, wrong) >= likeness(meant, wrong)


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=5,
)


@settings(quick, max_examples=60)
@given(KINDS, JSON, st.data())
def test_any_value_anywhere_is_taken_or_refused(kind: str, value: Any, data: st.DataObject):
  made = json.loads(json.dumps(recipes()[kind]))
  place = data.draw(st.sampled_from(list(groups(made))))
  group = functools.reduce(lambda tree, name: tree[name], place, made)
  group[data.draw(st.sampled_from(sorted(group)))] = value
  try:
    found = recipe.resolve(made, kind)
  except InputError as error:
    assert error.asked and error.found and error.remedy
  else:
    assert recipe.resolve(recipe.as_dict(found), kind) == found
    json.dumps(recipe.as_dict(found), ensure_ascii=False).encode()


# Logs.

RECORDS = st.lists(
  st.dictionaries(
    TEXT,
    st.none()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | st.lists(st.booleans(), max_size=3),
    max_size=4,
  ),
  max_size=6,
)


@quick
@given(RECORDS)
def test_lines_that_were_appended_come_back(records: list[dict[str, Any]]):
  with tempfile.TemporaryDirectory() as folder:
    path = epath.Path(folder) / 'log.jsonl'
    for record in records:
      run_dir.append_line(path, record)
    assert list(run_dir.read_lines(path)) == records
    again = epath.Path(folder) / 'again.jsonl'
    run_dir.write_lines(again, records)
    assert again.exists() and list(run_dir.read_lines(again)) == records


@quick
@given(RECORDS.filter(bool), st.data())
def test_a_last_line_that_was_cut_anywhere_is_left_out_and_no_other(
  records: list[dict[str, Any]], data: st.DataObject
):
  lines = [(json.dumps(record, ensure_ascii=False) + '\n').encode() for record in records]
  cut = data.draw(st.integers(0, len(lines[-1])))
  folder, path = written('log.jsonl', b''.join(lines[:-1]) + lines[-1][:cut])
  with folder:
    assert list(run_dir.read_lines(path)) == (
      records if cut >= len(lines[-1]) - 1 else records[:-1]
    )


@quick
@given(RECORDS, st.integers(0, 5))
def test_what_was_kept_is_kept_again(records: list[dict[str, Any]], seed: int):
  def wanted(record: dict[str, Any]) -> bool:
    return (len(json.dumps(record)) + seed) % 3 > 0

  with tempfile.TemporaryDirectory() as folder:
    path = epath.Path(folder) / 'log.jsonl'
    run_dir.write_lines(path, records)
    kept = run_dir.keep_lines(path, wanted)
    once = path.read_bytes()
    assert (
      kept == [record for record in records if wanted(record)] == run_dir.keep_lines(path, wanted)
    )
    assert path.read_bytes() == once


@quick
@given(st.binary(max_size=200))
def test_any_bytes_are_a_log_or_refused(content: bytes):
  folder, path = written(run_dir.METRICS, content)
  with folder:
    try:
      assert all(isinstance(record, dict) for record in run_dir.read_lines(path))
    except InputError as error:
      assert error.asked and error.found and error.remedy
