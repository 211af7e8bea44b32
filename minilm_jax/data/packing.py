"""Kept text to rows: the last stage of a corpus.

Items are grouped to the length of a row, or each cut at it, encoded, and written as shards `[rows,
length]` of little-endian integers; a row is `<s> ids </s> <pad>...`. Rows stay in the order of the
text: training permutes them.
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

from minilm_jax.core import corpus_config, files, progress
from minilm_jax.core.corpus_config import RowsConfig
from minilm_jax.data import filtering, tokenizer

_TOKENS_PER_WORD = 1.2  # the paper's estimate (paper 1, grouping into sequences)
_SHARD = 64 << 20  # bytes of one .npy at most
_HEADER = 4096  # bytes, more than the header of a .npy takes
_TEXTS_PER_BATCH = 4096  # texts encoded by one call


def choose_dtype(vocabulary: int) -> np.dtype:
  """What ids are stored as: two bytes while they are enough.

  >>> choose_dtype(19_000).name, choose_dtype(70_000).name
  ('uint16', 'uint32')
  """
  return np.dtype('<u2' if vocabulary <= 0xFFFF else '<u4')


def write_rows(
  config: RowsConfig, pieces: tokenizer.Tokenizer, kept: epath.Path, workdir: epath.Path
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Writes the shards of all splits, each file whole or not at all.

  Args:
    config: length and grouping.
    pieces: the tokenizer.
    kept: the folder that `keep.keep` made.
    workdir: where the shards go.

  Returns:
    The entry of each split for the manifest, and the numbers of the stage.
  """
  started, lost, splits = time.monotonic(), Counter(rows_truncated=0, tokens_truncated=0), {}
  dtype = choose_dtype(pieces.size)
  with progress.track_progress('rows', 0, 'rows') as tick:
    for split in corpus_config.SPLITS:
      shards = _shards(_iter_ids(config, pieces, kept, split, lost), config.length, dtype)
      splits[split] = store_rows(shards, workdir, split, tick)
  return splits, dict(lost) | {'seconds': time.monotonic() - started}


def store_rows(
  arrays: Iterable[UInt[np.ndarray, 'n L']],
  workdir: epath.Path,
  split: str,
  tick: Callable[[int, str], None] = lambda written, split: None,
) -> dict[str, Any]:
  """Writes arrays of rows as the shards of a split; gives its entry for the manifest."""
  shards, tokens, written = [], 0, 0
  for shard in arrays:
    path = workdir / f'{split}-{len(shards):05d}.npy'
    shards.append({'file': path.name, 'rows': len(shard), 'sha256': _save(path, shard)})
    tokens, written = (
      tokens + int(np.count_nonzero(shard != tokenizer.PAD_ID)),
      written + len(shard),
    )
    tick(written, split)
  return {'rows': written, 'tokens': tokens, 'shards': shards}


def max_shard_rows(length: int, dtype: np.dtype) -> int:
  """Rows of a shard of 64 MiB."""
  return max(1, (_SHARD - _HEADER) // (length * dtype.itemsize))


def group_by_words(items: Iterable[str], length: int) -> Iterator[str]:
  """Joins items while their words, at 1.2 tokens each, stay below `length` (paper 1, grouping into
  sequences).

  Unlike the released code, the last group is kept, and no group is empty.

  >>> list(group_by_words(['a b', 'c', 'd e f', 'g'], 5))
  ['a b c', 'd e f', 'g']
  """
  group, fields = [], 1  # the paper counts the empty field after the last space
  for item in items:
    more = item.count(' ') + 1
    if group and not (fields + more) * _TOKENS_PER_WORD < length:
      yield ' '.join(group)
      group, fields = [], 1
    group.append(item)
    fields += more
  if group:
    yield ' '.join(group)


def group_by_tokens(items: Iterable[list[int]], room: int) -> Iterator[list[int]]:
  """Fills rows of `room` ids with whole items; an item longer than that is cut, and nothing is
  lost.

  >>> list(group_by_tokens([[1, 2], [3], [4, 5], [6, 7, 8, 9]], 3))
  [[1, 2, 3], [4, 5], [6, 7, 8], [9]]
  """
  group: list[int] = []
  for ids in items:
    if group and len(group) + len(ids) > room:
      yield group
      group = []
    while len(ids) > room:
      yield ids[:room]
      ids = ids[room:]
    group = group + ids
  if group:
    yield group


def _encode(pieces: tokenizer.Tokenizer, texts: Iterable[str]) -> Iterator[list[int]]:
  texts = iter(texts)
  while some := list(itertools.islice(texts, _TEXTS_PER_BATCH)):
    yield from pieces.encode(some)


def _iter_ids(
  config: RowsConfig, pieces: tokenizer.Tokenizer, kept: epath.Path, split: str, lost: Counter[str]
) -> Iterator[list[int]]:
  """The ids of each row between <s> and </s>; sentences first, then spans, then documents, which
  never share a row.
  """
  room = config.length - 2
  for kind in filtering.TEXT_KINDS:
    items = filtering.read_items(kept, split, kind)
    if config.packing == 'tokens':
      yield from group_by_tokens(_encode(pieces, items), room)
      continue
    texts = items if config.packing == 'articles' else group_by_words(items, config.length)
    for ids in _encode(pieces, texts):
      lost.update(rows_truncated=len(ids) > room, tokens_truncated=max(0, len(ids) - room))
      yield ids[:room]


def _shards(
  ids: Iterator[list[int]], length: int, dtype: np.dtype
) -> Iterator[UInt[np.ndarray, 'n L']]:
  """Rows in arrays of at most 64 MiB; ids never pile up as Python integers, which take 18 times the
  space.
  """
  most = max_shard_rows(length, dtype)
  while True:
    flat = array.array('H' if dtype.itemsize == 2 else 'I')
    for inner in itertools.islice(ids, most):
      flat.extend(
        [
          tokenizer.BEGIN_ID,
          *inner,
          tokenizer.END_ID,
          *[tokenizer.PAD_ID] * (length - 2 - len(inner)),
        ]
      )
    if not flat:
      return
    yield np.asarray(flat).astype(dtype, copy=False).reshape(-1, length)


def _save(path: epath.Path, shard: UInt[np.ndarray, 'n L']) -> str:
  """Writes a .npy that is whole or absent, without a second copy in memory; its digest."""
  partial = path.parent / f'.{path.name}.partial'
  with partial.open('wb') as file:
    np.save(file, shard, allow_pickle=False)
  partial.replace(path)
  return files.hash_file(path)
