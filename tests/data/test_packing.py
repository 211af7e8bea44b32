"""Rows: the paper's grouping, nothing lost by exact filling, and shards that read back as the text."""

import random

import numpy as np
import pytest
from etils import epath

from minilm_jax.core import corpus_config, files
from minilm_jax.core.corpus_config import RowsConfig
from minilm_jax.data import filtering, packing, tokenizer


def sentences(count: int, seed: int = 0) -> list[str]:
  dice = random.Random(seed)
  words = [''.join(dice.choices('abcdefg', k=dice.randint(1, 6))) for _ in range(60)]
  return [' '.join(dice.choices(words, k=dice.randint(1, 30))) for _ in range(count)]


def released(items: list[str], length: int) -> list[str]:
  """The rule of the paper in its own terms: a growing string and its space-separated fields."""
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
def test_grouping_by_words_is_the_papers(length: int):
  items = sentences(300)
  expected = [text.rstrip(' ') for text in released(items, length) if text]
  assert list(packing.group_by_words(iter(items), length)) == expected


def test_a_full_span_stands_alone():
  span = ' '.join(['word'] * 110)
  assert list(packing.group_by_words([span] * 3, 128)) == [span] * 3
  assert list(packing.group_by_words(['word ' * 49 + 'word'] * 2, 128)) == [
    ' '.join(['word'] * 100)
  ]


def test_nothing_to_group():
  assert list(packing.group_by_words([], 128)) == [] == list(packing.group_by_tokens([], 126))


@pytest.mark.parametrize('room', [1, 5, 30])
def test_grouping_by_tokens_loses_nothing(room: int):
  dice = random.Random(room)
  items = [[dice.randrange(100) for _ in range(dice.randint(1, 40))] for _ in range(200)]
  groups = list(packing.group_by_tokens(iter(items), room))
  assert [i for group in groups for i in group] == [i for item in items for i in item]
  assert all(0 < len(group) <= room for group in groups)
  if room == 30:  # neighbours that would fit into one row are in one row
    assert all(
      len(a) + len(b) > room for a, b in zip(groups[:-1], groups[1:]) if len(b) == len(items[0])
    )


def test_a_short_item_is_never_cut():
  items = [[i] * 7 for i in range(20)]
  for group in packing.group_by_tokens(items, 20):
    assert len(group) == 14


@pytest.fixture
def kept(tmp_path) -> epath.Path:
  folder = epath.Path(tmp_path) / 'kept'
  folder.mkdir()
  for number, split in enumerate(corpus_config.SPLITS):
    for kind in filtering.TEXT_KINDS:
      items = [] if split == 'test' else sentences(200, seed=10 * number + len(kind))
      filtering.text_path(folder, split, kind).write_text(''.join(f'{item}\n' for item in items))
  return folder


@pytest.fixture
def pieces(tmp_path) -> tokenizer.Tokenizer:
  return tokenizer.train_tokenizer(sentences(300), 'bpe', 120, tmp_path / 'tokenizer.model')


def inner(row: np.ndarray) -> list[int]:
  ids = row[row != tokenizer.PAD_ID].tolist()
  assert row.tolist() == ids + [tokenizer.PAD_ID] * (len(row) - len(ids))
  assert ids[0] == tokenizer.BEGIN_ID and ids[-1] == tokenizer.END_ID
  assert not {tokenizer.BEGIN_ID, tokenizer.END_ID, tokenizer.MASK_ID} & set(ids[1:-1])
  return ids[1:-1]


def read(folder: epath.Path, entry: dict) -> np.ndarray:
  shards = [np.load(folder / shard['file'], allow_pickle=False) for shard in entry['shards']]
  for array, shard in zip(shards, entry['shards'], strict=True):
    assert (
      len(array) == shard['rows'] and files.hash_file(folder / shard['file']) == shard['sha256']
    )
  return np.concatenate(shards)


def test_rows_filled_exactly_hold_all_the_text(kept, pieces):
  splits, numbers = packing.write_rows(
    RowsConfig(length=24, packing='tokens'), pieces, kept, kept.parent
  )
  for split in ('train', 'validation'):
    found = read(kept.parent, splits[split])
    assert found.dtype == np.uint16 and found.shape == (splits[split]['rows'], 24)
    text = [
      item for kind in filtering.TEXT_KINDS for item in filtering.read_items(kept, split, kind)
    ]
    expected = [i for ids in pieces.encode(text) for i in ids]
    assert [i for row in found for i in inner(row)] == expected
    assert splits[split]['tokens'] == len(expected) + 2 * len(found)
  assert numbers['tokens_truncated'] == 0
  assert splits['test'] == {'rows': 0, 'tokens': 0, 'shards': []}


def test_truncated_tokens_are_counted(kept, pieces):
  splits, numbers = packing.write_rows(
    RowsConfig(length=24, packing='words'), pieces, kept, kept.parent
  )
  total = kept_tokens = 0
  for split in ('train', 'validation'):
    found = [inner(row) for row in read(kept.parent, splits[split])]
    texts = [
      text
      for kind in filtering.TEXT_KINDS
      for text in packing.group_by_words(filtering.read_items(kept, split, kind), 24)
    ]
    encoded = pieces.encode(texts)
    assert found == [ids[:22] for ids in encoded]
    total, kept_tokens = total + sum(map(len, encoded)), kept_tokens + sum(map(len, found))
  assert numbers['tokens_truncated'] == total - kept_tokens > 0
  assert numbers['rows_truncated'] > 0


def test_many_shards_are_one_array(kept, pieces, monkeypatch):
  config = RowsConfig(length=24, packing='tokens')
  whole, _ = packing.write_rows(config, pieces, kept, kept.parent)
  expected = read(kept.parent, whole['train'])
  monkeypatch.setattr(packing, '_MAX_SHARD_BYTES', packing._MAX_HEADER_BYTES + 24 * 2 * 50)
  parts, _ = packing.write_rows(config, pieces, kept, kept.parent)
  shards = parts['train']['shards']
  assert [shard['file'] for shard in shards[:2]] == ['train-00000.npy', 'train-00001.npy']
  assert {shard['rows'] for shard in shards[:-1]} == {50}
  assert all(
    (kept.parent / shard['file']).stat().length <= packing._MAX_SHARD_BYTES for shard in shards
  )
  np.testing.assert_array_equal(read(kept.parent, parts['train']), expected)
  assert not [path for path in kept.parent.iterdir() if 'partial' in path.name]


def test_large_vocabularies_take_four_bytes(kept, pieces):
  assert packing.choose_dtype(65_535) == np.uint16 and packing.choose_dtype(65_536) == np.uint32
  pieces.size = 70_000
  splits, _ = packing.write_rows(RowsConfig(length=24, packing='words'), pieces, kept, kept.parent)
  found = read(kept.parent, splits['train'])
  assert found.dtype == np.uint32 and found.max() < 120


def test_an_article_is_a_row_cut_at_its_end(kept, pieces):
  splits, numbers = packing.write_rows(
    RowsConfig(length=24, packing='articles'), pieces, kept, kept.parent
  )
  for split in ('train', 'validation'):
    items = [
      item for kind in filtering.TEXT_KINDS for item in filtering.read_items(kept, split, kind)
    ]
    encoded = pieces.encode(items)
    assert [inner(row) for row in read(kept.parent, splits[split])] == [ids[:22] for ids in encoded]
    assert splits[split]['rows'] == len(items)
  assert 0 < numbers['rows_truncated'] < splits['train']['rows'] + splits['validation']['rows']
