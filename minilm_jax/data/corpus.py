"""Reads a corpus folder: its manifest, its rows, and subsets of rows; `build.py` writes the folder.

Subsets of the training split are the first rows of a fixed random order, so smaller subsets lie
inside larger subsets. With `rows.packing=articles`, a subset is the first n articles of a shuffled
list, as in paper 2.
"""

import os
import tokenize
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Array, Int, UInt, UInt64

from minilm_jax.core import files, run_dir
from minilm_jax.core.config import SubsetConfig
from minilm_jax.core.corpus_config import FORMAT, PAD_ID, SPLITS
from minilm_jax.core.errors import ANY, COUNT, PARSE_ERRORS, TEXT, InputError, find_schema_fault
from minilm_jax.data.rows import Corpus

TRAIN_SPLIT = 'train'
_SHARD_SCHEMA = {'file': TEXT, 'rows': COUNT, 'sha256': TEXT}
_SPLIT_SCHEMA = {'rows': COUNT, 'tokens': COUNT, 'shards': [_SHARD_SCHEMA]}
_MANIFEST_SCHEMA = {
  'length': COUNT,
  'vocabulary': COUNT,
  'dtype': TEXT,
  'hash': TEXT,
  'subset?': ANY,
  'tokenizer': {'file': TEXT, 'sha256': TEXT},
  'splits': {split: _SPLIT_SCHEMA for split in SPLITS},
}
_MAX_NPY_HEADER_BYTES = 1 << 16
# NumPy evaluates the header of a .npy file as a Python literal, which raises any of these.
_NPY_ERRORS = (*PARSE_ERRORS, SyntaxError, EOFError, RecursionError, tokenize.TokenError)
_ROWS_PER_BLOCK = 1 << 14
_REBUILD = 'build or copy the corpus again'
# Constants of SplitMix64.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


class CorpusFiles:
  """The rows of a split in memory-mapped shards; `corpus_files[rows]` reads rows by number."""

  def __init__(self, folder: epath.PathLike, split: str):
    """Opens all shards and verifies their checksums.

    Raises:
      InputError: A shard is missing, damaged, or has ids outside the vocabulary.
    """
    folder, self.manifest = epath.Path(folder), read_manifest(folder)
    entry, vocab_size = self.manifest['splits'][split], self.manifest['vocabulary']
    self.shards = [_open_shard(folder, shard, self.manifest) for shard in entry['shards']]
    self.ends = np.cumsum([len(shard) for shard in self.shards])
    subject = f'the {split} split of {folder}'
    if not (rows := sum(map(len, self.shards))):
      raise InputError(subject, 'no rows', f'build the corpus with splits.{split} above 0')
    if (max_id := max(shard.max(initial=0) for shard in self.shards)) >= vocab_size:
      raise InputError(subject, f'id {max_id} in a vocabulary of {vocab_size}', _REBUILD)
    if rows != entry['rows']:
      fault = f'{rows:,} rows in the shards, {entry["rows"]:,} in the manifest'
      raise InputError(subject, fault, _REBUILD)

  def __getitem__(self, rows: Int[np.ndarray, '*S']) -> UInt[np.ndarray, '*S L']:
    flat = rows.ravel()
    tokens = np.empty((flat.size, self.manifest['length']), self.shards[0].dtype)
    shard_of_row = np.searchsorted(self.ends, flat, side='right')
    for number, shard in enumerate(self.shards):
      inside = shard_of_row == number
      tokens[inside] = shard[flat[inside] - (self.ends[number] - len(shard))]
    return tokens.reshape(*rows.shape, -1)

  def read_blocks(
    self, rows: Int[np.ndarray, 'n'] | None = None
  ) -> Iterator[UInt[np.ndarray, 'b L']]:
    """Yields the tokens of rows by number, or of all rows, in blocks."""
    total = int(self.ends[-1]) if rows is None else len(rows)
    for start in range(0, total, _ROWS_PER_BLOCK):
      end = min(start + _ROWS_PER_BLOCK, total)
      yield self[np.arange(start, end) if rows is None else rows[start:end]]


def read_manifest(folder: epath.PathLike) -> dict[str, Any]:
  """Returns the validated manifest of a corpus folder.

  Raises:
    InputError: The folder is not a finished corpus, or has another format version.
  """
  path, subject = epath.Path(folder) / run_dir.MANIFEST, f'the corpus {epath.Path(folder)}'
  if not path.exists():
    raise InputError(subject, 'no manifest.json', 'build it by minilm corpus, or check the path')
  manifest = files.read_json(path, subject)
  if not isinstance(manifest, dict) or 'format' not in manifest or 'splits' not in manifest:
    raise InputError(subject, 'not a corpus in manifest.json', 'give a folder of minilm corpus')
  if manifest['format'] != FORMAT:
    fault = f'format {manifest["format"]!r}, but this version reads {FORMAT}'
    raise InputError(subject, fault, 'build it again')
  fault = find_schema_fault(manifest, _MANIFEST_SCHEMA)
  if not fault:
    length, vocab_size, dtype = (manifest[name] for name in ('length', 'vocabulary', 'dtype'))
    if not length or not vocab_size or dtype not in ('uint16', 'uint32'):
      fault = f'rows of {length} {dtype} in a vocabulary of {vocab_size}'
  if fault:
    raise InputError(subject, f'a damaged manifest.json: {fault}', 'build or copy it again')
  return manifest


def load_split(folder: epath.PathLike, split: str, max_rows: int | None = None) -> Corpus:
  """Reads one split, or its first `max_rows` rows, into the memory of the host.

  Raises:
    InputError: A shard is missing, damaged, or has ids outside the vocabulary.
  """
  corpus_files = CorpusFiles(folder, split)
  tokens, manifest = np.concatenate(corpus_files.shards)[:max_rows], corpus_files.manifest
  return Corpus(typing.cast(Array, tokens), manifest['vocabulary'], manifest['hash'])


def _open_shard(folder: epath.Path, shard: dict[str, Any], manifest: dict[str, Any]) -> np.ndarray:
  path = files.resolve_inside(folder, shard['file'], f'a shard of {folder}')
  subject = f'the shard {path}'
  shape, dtype = (shard['rows'], manifest['length']), np.dtype(manifest['dtype'])
  if not path.is_file():
    raise InputError(subject, 'no such file', _REBUILD)
  max_bytes = shape[0] * shape[1] * dtype.itemsize + _MAX_NPY_HEADER_BYTES
  if (size := files.read_status(path).size) > max_bytes:
    fault = f'{size:,} bytes, but at most {max_bytes:,} by the manifest'
    raise InputError(subject, fault, _REBUILD)
  if files.hash_file(path) != shard['sha256']:
    raise InputError(subject, 'another sha256 than in the manifest', _REBUILD)
  try:
    if os.path.exists(path):
      rows = np.lib.format.open_memmap(path, mode='r')
    else:  # remote, such as gs://
      with path.open('rb') as file:
        rows = np.lib.format.read_array(file, allow_pickle=False)
  except _NPY_ERRORS as error:
    raise InputError(subject, f'not a plain array: {error}', _REBUILD) from None
  if rows.shape != shape or rows.dtype != dtype:
    fault = f'{rows.dtype} {rows.shape}, not {dtype} {shape}'
    raise InputError(subject, fault, _REBUILD)
  return rows


def _mix_bits(number: UInt64[np.ndarray, '*S']) -> UInt64[np.ndarray, '*S']:
  """Applies the finaliser of SplitMix64 (Steele et al., 2014), a bijection of 64-bit numbers."""
  with np.errstate(over='ignore'):  # arithmetic modulo 2^64
    number = number + _INCREMENT
    for shift, multiplier in _MULTIPLIERS:
      number = (number ^ number >> np.uint64(shift)) * np.uint64(multiplier)
  return number ^ number >> np.uint64(31)


def order_rows(count: int, seed: int) -> Int[np.ndarray, 'N']:
  """Returns the row numbers 0..count-1 in a random order.

  The order of two rows depends on the seed alone, not on `count`, the machine or a library.

  >>> order_rows(5, 0).tolist() == [row for row in order_rows(9, 0).tolist() if row < 5]
  True
  """
  key = _mix_bits(np.array([seed], np.uint64))
  return np.argsort(_mix_bits(np.arange(count, dtype=np.uint64) ^ key), kind='stable')


def count_row_tokens(corpus_files: CorpusFiles) -> Int[np.ndarray, 'N']:
  """Returns the number of tokens of each row, without pads."""
  return np.concatenate(
    [
      np.count_nonzero(shard[first : first + _ROWS_PER_BLOCK] != PAD_ID, axis=1)
      for shard in corpus_files.shards
      for first in range(0, len(shard), _ROWS_PER_BLOCK)
    ]
  )


def check_subset(config: SubsetConfig, manifest: Mapping[str, Any], folder: epath.PathLike) -> None:
  """Refuses a subset that is larger than the training split or smaller than a row.

  Raises:
    InputError: The error names both sizes and the folder of the corpus.
  """
  entry = manifest['splits'][TRAIN_SPLIT]
  for name in ('rows', 'tokens'):
    size = getattr(config, name)
    if size > entry[name]:
      raise InputError(
        f'subset.{name}={size:,}',
        f'{entry[name]:,} {name} in the training split of {folder}',
        f'give at most {entry[name]:,}, 0 for all, or a larger corpus',
      )
  if 0 < config.tokens < manifest['length']:
    raise InputError(
      f'subset.tokens={config.tokens:,}',
      f'rows of up to {manifest["length"]} tokens in {folder}',
      f'give at least {manifest["length"]}',
    )


def select_rows(config: SubsetConfig, corpus_files: CorpusFiles) -> Int[np.ndarray, 'n'] | None:
  """Returns the sorted training rows of a recipe, or None for all rows.

  A subset by tokens has the first rows of the fixed order without exceeding the number of tokens.
  """
  if config.rows:
    return np.sort(order_rows(int(corpus_files.ends[-1]), config.shuffle_seed)[: config.rows])
  if not config.tokens:
    return None
  tokens = count_row_tokens(corpus_files)
  order = order_rows(len(tokens), config.shuffle_seed)
  return np.sort(order[: np.searchsorted(np.cumsum(tokens[order]), config.tokens, 'right')])


def measure_subset(
  config: SubsetConfig, folder: epath.PathLike, manifest: Mapping[str, Any]
) -> dict[str, int]:
  """Returns the numbers of rows and tokens of the training rows of a recipe."""
  if not config.rows and not config.tokens:
    return {name: manifest['splits'][TRAIN_SPLIT][name] for name in ('rows', 'tokens')}
  corpus_files = CorpusFiles(folder, TRAIN_SPLIT)
  tokens = count_row_tokens(corpus_files)[select_rows(config, corpus_files)]
  return {'rows': len(tokens), 'tokens': int(tokens.sum())}
