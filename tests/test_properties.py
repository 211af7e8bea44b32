"""Properties of arbitrary input: written data are restored, and invalid data are refused."""

import dataclasses
import difflib
import functools
import json
import pathlib
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from etils import epath

from minilm_jax.core import corpus_config, files, recipe, run_dir
from minilm_jax.core.errors import NO_TEXT, InputError
from minilm_jax.data import build, corpus, documents, filters, packing, tokenizer
from tests import corruptions, input_cases

hypothesis = pytest.importorskip('hypothesis', reason='pip install hypothesis>=6.100')
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

# Few, deterministic examples. Set derandomize=False and --hypothesis-seed to try others.
settings.register_profile('quick', max_examples=25, deadline=None, derandomize=True, database=None)
quick = settings.get_profile('quick')

compose = functools.partial(unicodedata.normalize, 'NFC')  # a corpus has composed accents
TEXT = st.text(st.characters(exclude_categories=('Cs',), exclude_characters='\0')).map(compose)
LINE = st.text(
  st.characters(exclude_categories=('Cs',), exclude_characters='\0\n\r'), max_size=40
).map(compose)
DOCUMENT = LINE.filter(
  lambda text: text.strip() and text == text.strip() and not text.startswith('\ufeff')
)
PACKINGS = st.sampled_from(sorted(corruptions.PACK))
WORDS = st.text('abcde', min_size=1, max_size=6)


def write_file(name: str, content: bytes) -> Any:
  """Writes a temporary file; hypothesis calls a test many times with one instance of a fixture."""
  folder = tempfile.TemporaryDirectory()
  path = pathlib.Path(folder.name) / name
  path.write_bytes(content)
  return folder, path


def read_documents_of(name: str, content: bytes, **changes: Any) -> list[str]:
  """Returns the documents of a file with this name and content."""
  folder, path = write_file(name, content)
  with folder:
    config = dataclasses.replace(default_config().documents, sources=(str(path),), **changes)
    return [
      text
      for source in documents.expand_sources(config)
      for text in documents.read_documents(source, config)
    ]


@functools.cache
def default_config() -> Any:
  from configs import base

  return recipe.resolve(base.corpus(), 'corpus')


# Documents.


@quick
@given(st.lists(DOCUMENT, min_size=1), PACKINGS)
def test_documents_of_lines_are_restored(texts: list[str], packing: str):
  content = corruptions.PACK[packing](''.join(text + '\n' for text in texts).encode())
  assert read_documents_of(f'a.txt{packing}', content, document_unit='line') == texts


@quick
@given(st.lists(st.lists(DOCUMENT, min_size=1, max_size=3), min_size=1, max_size=5), PACKINGS)
def test_documents_of_paragraphs_are_restored(paragraphs: list[list[str]], packing: str):
  texts = ['\n'.join(lines) for lines in paragraphs]
  content = corruptions.PACK[packing](''.join(text + '\n\n' for text in texts).encode())
  documents = read_documents_of(f'a.txt{packing}', content)
  assert [text.replace('\n', ' ') for text in documents] == [' '.join(x) for x in paragraphs]


@quick
@given(st.lists(TEXT, min_size=1), st.sampled_from(('jsonl', 'parquet')), PACKINGS)
def test_documents_of_tables_are_restored(texts: list[str], form: str, packing: str):
  packing = '' if form == 'parquet' else packing
  content = corruptions.PACK[packing](
    input_cases.format_table(form, [{'n': i, 'text': text} for i, text in enumerate(texts)])
  )
  name = f'a.{form}{packing}'
  assert read_documents_of(name, content) == [text for text in texts if text and not text.isspace()]


@quick
@given(st.lists(DOCUMENT, min_size=1), st.sampled_from(('csv', 'tsv')), PACKINGS)
def test_documents_of_delimited_files_are_restored(texts: list[str], form: str, packing: str):
  texts = [text.replace('\t', ' ') for text in texts]
  content = input_cases.format_table(form, [{'n': i, 'text': text} for i, text in enumerate(texts)])
  assert read_documents_of(f'a.{form}{packing}', corruptions.PACK[packing](content)) == texts


@quick
@given(
  st.binary(max_size=400),
  st.sampled_from(('a.txt', 'a.jsonl', 'a.csv.gz', 'a.tsv.xz', 'a.txt.zst', 'a.parquet')),
)
def test_any_bytes_are_documents_or_refused(content: bytes, name: str):
  try:
    texts = read_documents_of(name, content)
  except InputError as error:
    assert error.asked and error.found and error.remedy
  else:
    assert all(text.strip() and not NO_TEXT.search(text) for text in texts)


# Vocabulary.


@quick
@given(TEXT, st.sampled_from(('paper1', 'plain')))
def test_counted_words_are_lower_case_and_stable(text: str, word_rule: str):
  for field in text.split():
    words = filters.extract_words(field, word_rule)
    assert all(word == word.lower() and not any(map(str.isspace, word)) for word in words)
    assert filters.extract_words(field.lower(), word_rule) == words  # case does not matter
    if (
      word_rule == 'plain' and '_' not in field
    ):  # an underscore hides a number from the rule of numbers
      assert all(
        filters.extract_words(word, word_rule) == (word,) for word in words if word.isascii()
      )


@quick
@given(
  st.lists(st.lists(WORDS, min_size=1, max_size=12), min_size=1, max_size=6),
  st.sets(WORDS, min_size=1, max_size=30),
  st.sampled_from(('paper1', 'plain')),
)
def test_filtered_text_has_words_of_the_list_only(
  texts: list[list[str]], words: set[str], word_rule: str
):
  from minilm_jax.data import filters

  config = dataclasses.replace(
    default_config().vocabulary,
    word_rule=word_rule,
    min_words_per_sentence=1,
    span_words=3,
    span_stride=1,
    min_words_per_span=1,
  )
  word_list = filters.WordList(frozenset(words), 'test', '')
  result = filters.Filter(word_list, config).apply([' '.join(text) + ' .' for text in texts])
  for _, _, item in result.items:
    assert all(
      word in words for field in item.split() for word in filters.extract_words(field, word_rule)
    ), item


@quick
@given(st.dictionaries(WORDS, st.integers(1, 9), min_size=1), st.integers(1, 9))
def test_selected_words_are_the_most_frequent(counts: dict[str, int], n: int):
  words = filters.select_frequent_words(counts, n).words
  assert len(words) == min(n, len(counts))
  assert min(counts[word] for word in words) >= max(
    (counts[word] for word in counts if word not in words), default=0
  )


# Tokenizer.


@pytest.fixture(scope='module')
def pieces() -> tokenizer.Tokenizer:
  """Returns a tokenizer with byte fallback, which encodes any text."""
  texts = [
    f'{input_cases.TEXTS[i % len(input_cases.TEXTS)]} {i * 2654435761 % 2**40:x}'
    for i in range(1, 500)
  ]
  return tokenizer.train_tokenizer(texts, 'bpe', 600)


@quick
@given(texts=st.lists(LINE, max_size=4))
def test_text_is_restored_from_valid_ids(texts: list[str], pieces: tokenizer.Tokenizer):
  # encoding normalizes spaces only, and reads U+FDD0 as U+2581
  normal = [' '.join(filter(None, text.split(' '))) for text in texts]
  for text, ids in zip(normal, pieces.encode(normal), strict=True):
    assert all(tokenizer.UNKNOWN_ID <= i < pieces.size and i != tokenizer.MASK_ID for i in ids)
    assert pieces.decode(ids) == text.replace('\ufdd0', '\u2581')


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
def test_rows_of_a_corpus_are_restored(case: tuple[int, dict[str, Any]], size: int):
  length, split_rows = case
  with tempfile.TemporaryDirectory() as folder:
    folder, splits = epath.Path(folder), {}
    for split in corpus_config.SPLITS:
      array = np.array(split_rows.get(split, []), '<u2').reshape(-1, length)
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
      rows = split_rows.get(split, [])
      if not rows:
        with pytest.raises(InputError, match='no rows'):
          corpus.load_split(folder, split)
        continue
      assert corpus.load_split(folder, split).tokens.tolist() == rows
      corpus_files = corpus.CorpusFiles(folder, split)
      order = np.arange(len(rows))[::-1]
      assert corpus_files[order].tolist() == rows[::-1]
      for shard in splits[split]['shards']:
        assert files.hash_file(folder / shard['file']) == shard['sha256']


# Recipes.


def draw_values(kind: Any, old: Any) -> st.SearchStrategy:
  """Returns values of the type of a field."""
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


def copy_recipe(kind: str) -> dict[str, Any]:
  return json.loads(json.dumps(recipes()[kind]))


KINDS = st.sampled_from(('pretrain', 'corpus', 'finetune'))


@quick
@given(KINDS, st.data())
def test_a_resolved_recipe_is_stable_as_data_and_json(kind: str, data: st.DataObject):
  tree = copy_recipe(kind)
  config = recipe.resolve(tree, kind)
  for name, value in list(tree.items()):  # changes random fields
    if isinstance(value, (int, float)) and not isinstance(value, bool) and data.draw(st.booleans()):
      tree[name] = data.draw(draw_values(type(value), value))
  try:
    config = recipe.resolve(tree, kind)
  except InputError:  # the combination of fields is invalid
    pass
  stored = recipe.as_dict(config)
  assert recipe.resolve(stored, kind) == config
  assert recipe.resolve(json.loads(json.dumps(stored)), kind) == config
  assert hash(recipe.resolve(stored, kind)) == hash(config)


def list_groups(tree: dict[str, Any], parents: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
  yield parents
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from list_groups(value, (*parents, name))


def similarity(name: str, other: str) -> float:
  return difflib.SequenceMatcher(None, other, name).ratio()


@quick
@given(KINDS, st.data())
def test_a_misspelt_field_is_refused_with_the_nearest_name(kind: str, data: st.DataObject):
  tree = copy_recipe(kind)
  path = data.draw(st.sampled_from(list(list_groups(tree))))
  group = functools.reduce(lambda tree, name: tree[name], path, tree)
  name = data.draw(st.sampled_from(sorted(field for field in group if len(field) > 4)))
  index = data.draw(st.integers(1, len(name) - 2))
  typo = name[:index] + name[index + 1] + name[index] + name[index + 2 :]  # swaps two letters
  hypothesis.assume(typo not in group)
  group[typo] = group.pop(name) if data.draw(st.booleans()) else group[name]
  with pytest.raises(InputError) as error:
    recipe.resolve(tree, kind)
  assert error.value.asked == f'the field {".".join((*path, typo))}'
  suggestion = re.fullmatch(r"did you mean '(\w+)'\?", error.value.remedy)[1]
  assert suggestion in {name, *group}
  assert similarity(suggestion, typo) >= similarity(name, typo)


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=5,
)


@settings(quick, max_examples=60)
@given(KINDS, JSON, st.data())
def test_any_value_of_a_field_is_accepted_or_refused(kind: str, value: Any, data: st.DataObject):
  tree = copy_recipe(kind)
  path = data.draw(st.sampled_from(list(list_groups(tree))))
  group = functools.reduce(lambda tree, name: tree[name], path, tree)
  group[data.draw(st.sampled_from(sorted(group)))] = value
  try:
    config = recipe.resolve(tree, kind)
  except InputError as error:
    assert error.asked and error.found and error.remedy
  else:
    assert recipe.resolve(recipe.as_dict(config), kind) == config
    json.dumps(recipe.as_dict(config), ensure_ascii=False).encode()


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
def test_appended_records_are_restored(records: list[dict[str, Any]]):
  with tempfile.TemporaryDirectory() as folder:
    path = epath.Path(folder) / 'log.jsonl'
    for record in records:
      run_dir.append_line(path, record)
    assert list(run_dir.read_lines(path)) == records
    copy = epath.Path(folder) / 'copy.jsonl'
    run_dir.write_lines(copy, records)
    assert copy.exists() and list(run_dir.read_lines(copy)) == records


@quick
@given(RECORDS.filter(bool), st.data())
def test_only_an_incomplete_last_line_is_skipped(
  records: list[dict[str, Any]], data: st.DataObject
):
  lines = [(json.dumps(record, ensure_ascii=False) + '\n').encode() for record in records]
  length = data.draw(st.integers(0, len(lines[-1])))
  folder, path = write_file('log.jsonl', b''.join(lines[:-1]) + lines[-1][:length])
  with folder:
    assert list(run_dir.read_lines(path)) == (
      records if length >= len(lines[-1]) - 1 else records[:-1]
    )


@quick
@given(RECORDS, st.integers(0, 5))
def test_filtering_a_log_is_idempotent(records: list[dict[str, Any]], seed: int):
  def is_valid(record: dict[str, Any]) -> bool:
    return (len(json.dumps(record)) + seed) % 3 > 0

  with tempfile.TemporaryDirectory() as folder:
    path = epath.Path(folder) / 'log.jsonl'
    run_dir.write_lines(path, records)
    expected = [record for record in records if is_valid(record)]
    assert run_dir.keep_lines(path, is_valid) == expected
    content = path.read_bytes()
    assert run_dir.keep_lines(path, is_valid) == expected and path.read_bytes() == content


@quick
@given(st.binary(max_size=200))
def test_any_bytes_are_a_log_or_refused(content: bytes):
  folder, path = write_file(run_dir.METRICS, content)
  with folder:
    try:
      assert all(isinstance(record, dict) for record in run_dir.read_lines(path))
    except InputError as error:
      assert error.asked and error.found and error.remedy
