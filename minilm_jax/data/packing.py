"""Packs filtered text into rows of token ids: the last stage of a corpus.

A row is `<s> ids </s> <pad>...`. It holds several items, or one item that is truncated. Shards are
.npy files `[rows, length]` of little-endian integers in the order of the text; training permutes
the rows.
"""

import array
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt

from minilm_jax.core import files, progress
from minilm_jax.core.corpus_config import BEGIN_ID, END_ID, PAD_ID, SPLITS, TEXT_KINDS, RowsConfig
from minilm_jax.data import filtering
from minilm_jax.data.tokenizer import Tokenizer

_TOKENS_PER_WORD = 1.2  # estimate of paper 1, grouping into sequences
_MAX_SHARD_BYTES, _MAX_HEADER_BYTES = 64 << 20, 4096


def choose_dtype(vocab_size: int) -> np.dtype:
  """Returns the type of stored ids: two bytes if they suffice.

  >>> choose_dtype(19_000).name, choose_dtype(70_000).name
  ('uint16', 'uint32')
  """
  return np.dtype('<u2' if vocab_size <= 0xFFFF else '<u4')


def compute_shard_rows(length: int, dtype: np.dtype) -> int:
  """Returns the number of rows in a shard of 64 MiB."""
  return max(1, (_MAX_SHARD_BYTES - _MAX_HEADER_BYTES) // (length * dtype.itemsize))


def write_rows(
  config: RowsConfig, tokenizer: Tokenizer, text_folder: epath.Path, workdir: epath.Path
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Writes the shards of all splits into `workdir`.

  Returns:
    The entry of each split for the manifest, and the counts of the stage.
  """
  started, splits = time.monotonic(), {}
  truncated = Counter(rows_truncated=0, tokens_truncated=0)
  dtype = choose_dtype(tokenizer.size)
  with progress.track_progress('rows', 0, 'rows') as update:
    for split in SPLITS:
      ids = _encode_rows(config, tokenizer, text_folder, split, truncated)
      shards = _make_shards(ids, config.length, dtype)
      splits[split] = write_shards(shards, workdir, split, update)
  return splits, dict(truncated) | {'seconds': time.monotonic() - started}


def write_shards(
  shards: Iterable[UInt[np.ndarray, 'n L']],
  workdir: epath.Path,
  split: str,
  update: Callable[[int, str], None] = lambda rows, split: None,
) -> dict[str, Any]:
  """Writes arrays of rows as the shards of a split; returns its entry for the manifest."""
  entries, rows, tokens = [], 0, 0
  for shard in shards:
    path = workdir / f'{split}-{len(entries):05d}.npy'
    entries.append({'file': path.name, 'rows': len(shard), 'sha256': _save_array(path, shard)})
    rows, tokens = rows + len(shard), tokens + int(np.count_nonzero(shard != PAD_ID))
    update(rows, split)
  return {'rows': rows, 'tokens': tokens, 'shards': entries}


def group_by_words(items: Iterable[str], length: int) -> Iterator[str]:
  """Joins items while their words, at 1.2 tokens a word, stay below `length` (paper 1).

  Unlike in the released code, the last group is kept and no group is empty.

  >>> list(group_by_words(['a b', 'c', 'd e f', 'g'], 5))
  ['a b c', 'd e f', 'g']
  """
  group, num_fields = [], 1  # paper 1 counts the empty field after the last space
  for item in items:
    item_fields = item.count(' ') + 1
    if group and not (num_fields + item_fields) * _TOKENS_PER_WORD < length:
      yield ' '.join(group)
      group, num_fields = [], 1
    group.append(item)
    num_fields += item_fields
  if group:
    yield ' '.join(group)


def group_by_tokens(items: Iterable[list[int]], capacity: int) -> Iterator[list[int]]:
  """Joins items to groups of at most `capacity` ids; splits only items longer than that.

  >>> list(group_by_tokens([[1, 2], [3], [4, 5], [6, 7, 8, 9]], 3))
  [[1, 2, 3], [4, 5], [6, 7, 8], [9]]
  """
  group: list[int] = []
  for ids in items:
    if group and len(group) + len(ids) > capacity:
      yield group
      group = []
    start = 0
    while len(ids) - start > capacity:
      yield ids[start : start + capacity]
      start += capacity
    group = group + ids[start:]
  if group:
    yield group


def _encode_texts(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[int]]:
  for batch in filtering.split_into_batches(texts):
    yield from tokenizer.encode(batch)


def _encode_rows(
  config: RowsConfig,
  tokenizer: Tokenizer,
  text_folder: epath.Path,
  split: str,
  truncated: Counter[str],
) -> Iterator[list[int]]:
  """Yields the ids of each row between <s> and </s>; counts truncation in `truncated`.

  Sentences, spans and documents follow one another and never share a row.
  """
  capacity = config.length - 2
  for kind in TEXT_KINDS:
    items = filtering.read_items(text_folder, split, kind)
    if config.packing == 'tokens':
      yield from group_by_tokens(_encode_texts(tokenizer, items), capacity)
      continue
    texts = items if config.packing == 'articles' else group_by_words(items, config.length)
    for ids in _encode_texts(tokenizer, texts):
      excess = max(0, len(ids) - capacity)
      truncated.update(rows_truncated=excess > 0, tokens_truncated=excess)
      yield ids[:capacity]


def _make_shards(
  rows: Iterator[list[int]], length: int, dtype: np.dtype
) -> Iterator[UInt[np.ndarray, 'n L']]:
  """Yields arrays of at most 64 MiB; lists of integers would take 18 times the memory."""
  shard_rows = compute_shard_rows(length, dtype)
  while True:
    flat = array.array('H' if dtype.itemsize == 2 else 'I')
    for ids in itertools.islice(rows, shard_rows):
      flat.extend([BEGIN_ID, *ids, END_ID, *[PAD_ID] * (length - 2 - len(ids))])
    if not flat:
      return
    yield np.asarray(flat).astype(dtype, copy=False).reshape(-1, length)


def _save_array(path: epath.Path, shard: UInt[np.ndarray, 'n L']) -> str:
  """Writes a .npy file atomically without a copy in memory; returns its checksum."""
  with files.open_atomic(path) as file:
    np.save(file, shard, allow_pickle=False)
  return files.hash_file(path)
