"""Packing: the grouping of paper 1, lossless filling of rows, and shards that decode to the text."""

import random

import numpy as np
import pytest
from etils import epath

from minilm_jax.core import files
from minilm_jax.core.corpus_config import (
  BEGIN_ID,
  END_ID,
  MASK_ID,
  PAD_ID,
  SPLITS,
  TEXT_KINDS,
  RowsConfig,
)
from minilm_jax.data import filtering, packing
from minilm_jax.data.tokenizer import Tokenizer, train_tokenizer

LENGTH = 24


def draw_sentences(count: int, seed: int = 0) -> list[str]:
  dice = random.Random(seed)
  words = [''.join(dice.choices('abcdefg', k=dice.randint(1, 6))) for _ in range(60)]
  return [' '.join(dice.choices(words, k=dice.randint(1, 30))) for _ in range(count)]


def group_as_released(items: list[str], length: int) -> list[str]:
  """Groups items by the released code of paper 1: a growing string and its fields."""
  groups, text = [], ''
  for item in items:
    longer = text + item + ' '
    if len(longer.split(' ')) * 1.2 < length:
      text = longer
    else:
      groups.append(text)
      text = item + ' '
  return groups + [text]


@pytest.mark.parametrize('length', [8, 32, 128])
def test_grouping_by_words_equals_paper_1(length: int):
  items = draw_sentences(300)
  expected = [text.rstrip(' ') for text in group_as_released(items, length) if text]
  assert list(packing.group_by_words(iter(items), length)) == expected


def test_a_full_span_is_one_group():
  span, half = ' '.join(['word'] * 110), ' '.join(['word'] * 50)
  assert list(packing.group_by_words([span] * 3, 128)) == [span] * 3
  assert list(packing.group_by_words([half] * 2, 128)) == [' '.join(['word'] * 100)]


def test_no_items_give_no_groups():
  assert list(packing.group_by_words([], 128)) == [] == list(packing.group_by_tokens([], 126))


@pytest.mark.parametrize('capacity', [1, 5, 30])
def test_grouping_by_tokens_loses_nothing(capacity: int):
  dice = random.Random(capacity)
  items = [[dice.randrange(100) for _ in range(dice.randint(1, 40))] for _ in range(200)]
  items.insert(1, [])
  groups = list(packing.group_by_tokens(iter(items), capacity))
  assert [i for group in groups for i in group] == [i for item in items for i in item]
  assert all(0 < len(group) <= capacity for group in groups)
  if capacity == 30:  # neighbours are joined if they fit into a row
    pairs = [(a, b) for a, b in zip(groups[:-1], groups[1:]) if len(b) == len(items[0])]
    assert all(len(a) + len(b) > capacity for a, b in pairs)


def test_a_short_item_is_not_split():
  groups = packing.group_by_tokens([[i] * 7 for i in range(20)], 20)
  assert {len(group) for group in groups} == {14}


class CountedList(list):
  """A list that counts the integers that its slices copy."""

  copied = 0

  def __getitem__(self, key):
    part = CountedList(super().__getitem__(key)) if isinstance(key, slice) else None
    if part is None:
      return super().__getitem__(key)
    CountedList.copied += len(part)
    return part


def test_the_work_on_a_long_item_is_linear():
  CountedList.copied = 0
  groups = list(packing.group_by_tokens([CountedList(range(5000))], 10))
  assert len(groups) == 500 and groups[-1] == list(range(4990, 5000))
  assert CountedList.copied <= 5000


@pytest.fixture
def text_folder(tmp_path) -> epath.Path:
  folder = epath.Path(tmp_path) / 'text'
  folder.mkdir()
  for number, split in enumerate(SPLITS):
    for kind in TEXT_KINDS:
      items = [] if split == 'test' else draw_sentences(200, seed=10 * number + len(kind))
      filtering.locate_items(folder, split, kind).write_text(''.join(f'{item}\n' for item in items))
  return folder


@pytest.fixture
def tokenizer() -> Tokenizer:
  return train_tokenizer(draw_sentences(300), 'bpe', 120)


def write_rows(rule: str, tokenizer: Tokenizer, folder: epath.Path) -> tuple[dict, dict]:
  return packing.write_rows(RowsConfig(LENGTH, rule), tokenizer, folder, folder.parent)


def strip(row: np.ndarray) -> list[int]:
  """Returns the ids of a row between <s> and </s>."""
  ids = row[row != PAD_ID].tolist()
  assert row.tolist() == ids + [PAD_ID] * (len(row) - len(ids))
  assert ids[0] == BEGIN_ID and ids[-1] == END_ID
  assert not {BEGIN_ID, END_ID, MASK_ID} & set(ids[1:-1])
  return ids[1:-1]


def read_rows(folder: epath.Path, entry: dict) -> np.ndarray:
  shards = []
  for shard in entry['shards']:
    shards.append(np.load(folder / shard['file'], allow_pickle=False))
    assert len(shards[-1]) == shard['rows']
    assert files.hash_file(folder / shard['file']) == shard['sha256']
  return np.concatenate(shards)


def read_texts(folder: epath.Path, split: str) -> list[str]:
  return [item for kind in TEXT_KINDS for item in filtering.read_items(folder, split, kind)]


def test_full_rows_have_all_tokens_of_the_text(text_folder, tokenizer):
  splits, numbers = write_rows('tokens', tokenizer, text_folder)
  for split in ('train', 'validation'):
    rows = read_rows(text_folder.parent, splits[split])
    assert rows.dtype == np.uint16 and rows.shape == (splits[split]['rows'], LENGTH)
    expected = [i for ids in tokenizer.encode(read_texts(text_folder, split)) for i in ids]
    assert [i for row in rows for i in strip(row)] == expected
    assert splits[split]['tokens'] == len(expected) + 2 * len(rows)
  assert numbers['tokens_truncated'] == 0
  assert splits['test'] == {'rows': 0, 'tokens': 0, 'shards': []}


def test_truncated_tokens_are_counted(text_folder, tokenizer):
  splits, numbers = write_rows('words', tokenizer, text_folder)
  truncated = 0
  for split in ('train', 'validation'):
    rows = [strip(row) for row in read_rows(text_folder.parent, splits[split])]
    texts = [
      text
      for kind in TEXT_KINDS
      for text in packing.group_by_words(filtering.read_items(text_folder, split, kind), LENGTH)
    ]
    encoded = tokenizer.encode(texts)
    assert rows == [ids[: LENGTH - 2] for ids in encoded]
    truncated += sum(map(len, encoded)) - sum(map(len, rows))
  assert numbers['tokens_truncated'] == truncated > 0
  assert numbers['rows_truncated'] > 0


def test_shards_concatenate_to_one_array(text_folder, tokenizer, monkeypatch):
  single, _ = write_rows('tokens', tokenizer, text_folder)
  expected = read_rows(text_folder.parent, single['train'])
  max_bytes = packing._MAX_HEADER_BYTES + LENGTH * 2 * 50
  monkeypatch.setattr(packing, '_MAX_SHARD_BYTES', max_bytes)
  many, _ = write_rows('tokens', tokenizer, text_folder)
  shards = many['train']['shards']
  assert [shard['file'] for shard in shards[:2]] == ['train-00000.npy', 'train-00001.npy']
  assert {shard['rows'] for shard in shards[:-1]} == {50}
  assert all((text_folder.parent / shard['file']).stat().length <= max_bytes for shard in shards)
  np.testing.assert_array_equal(read_rows(text_folder.parent, many['train']), expected)
  assert not [path for path in text_folder.parent.iterdir() if 'partial' in path.name]


def test_ids_of_large_vocabularies_have_four_bytes(text_folder, tokenizer):
  assert packing.choose_dtype(65_535) == np.uint16 and packing.choose_dtype(65_536) == np.uint32
  tokenizer.size = 70_000
  splits, _ = write_rows('words', tokenizer, text_folder)
  rows = read_rows(text_folder.parent, splits['train'])
  assert rows.dtype == np.uint32 and rows.max() < 120


def test_long_items_are_encoded_in_few_characters_at_once(tokenizer, monkeypatch):
  sizes, text = [], 'a' * 600_000

  def encode(texts: list[str]) -> list[list[int]]:
    sizes.append(sum(map(len, texts)))
    return [[len(text)] for text in texts]

  monkeypatch.setattr(tokenizer, 'encode', encode)
  assert list(packing._encode_texts(tokenizer, iter([text] * 9))) == [[600_000]] * 9
  assert sum(sizes) == 9 * 600_000 and max(sizes) < 2_000_000


def test_an_article_is_one_truncated_row(text_folder, tokenizer):
  splits, numbers = write_rows('articles', tokenizer, text_folder)
  for split in ('train', 'validation'):
    encoded = tokenizer.encode(read_texts(text_folder, split))
    rows = [strip(row) for row in read_rows(text_folder.parent, splits[split])]
    assert rows == [ids[: LENGTH - 2] for ids in encoded]
    assert splits[split]['rows'] == len(encoded)
  assert 0 < numbers['rows_truncated'] < splits['train']['rows'] + splits['validation']['rows']
