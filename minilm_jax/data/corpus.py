"""Reads the corpus folder: manifest, rows on the device or in files, and subsets of rows.

`build.py` writes the folder. A tokenised tiny language fits on the accelerator as `uint16`, so
there is no data iterator: the rows of a batch are arithmetic on `(seed, step)`, the same on any
mesh and after any resumption. A corpus that does not fit stays in its files, and the same rows come
to the device a chunk at a time.

Subsets of the training split are nested: in one fixed random order the first n rows are inside the
first m > n. If a row is a document (`rows.packing=articles`) they are the first n articles of a
shuffled list, as in paper 2.
"""

import dataclasses
import os
import tokenize
import typing
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Bool, Int, UInt, UInt16, UInt32, UInt64

from minilm_jax.core import files, rng, run_dir, schema
from minilm_jax.core.config import SubsetConfig
from minilm_jax.core.corpus_config import FORMAT, PAD_ID, SPLITS
from minilm_jax.core.errors import PARSE_ERRORS, InputError
from minilm_jax.core.schema import ANY, COUNT, TEXT

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
# NumPy evaluates the header of a .npy as a Python literal, which raises any of these.
_NPY_ERRORS = (*PARSE_ERRORS, SyntaxError, EOFError, RecursionError, tokenize.TokenError)
# Rounds of the Feistel network: four pass tests of randomness, six leave no visible trace of order.
_FEISTEL_ROUNDS = 6
_ROWS_PER_BLOCK = 1 << 16  # of a count of tokens
# Constants of SplitMix64.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


# JAX puts shapes, shardings and tracers of its own into the fields of a pytree
@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Corpus:
  """One split, on the device or on its way there: `tokens [rows, length]`, and what it is."""

  tokens: UInt16[Array, 'N L'] | UInt32[Array, 'N L']
  vocab_size: int = dataclasses.field(metadata=dict(static=True))
  hash: str = dataclasses.field(metadata=dict(static=True))

  @property
  def rows(self) -> int:
    """N, the rows of the split."""
    return self.tokens.shape[0]

  @property
  def length(self) -> int:
    """L, the token ids of a row."""
    return self.tokens.shape[1]

  def gather(
    self, step: Int[Array, ''], row: Int[Array, 'b'], index: Int[Array, 'b']
  ) -> UInt[Array, 'b L']:
    """Returns rows of a batch; a Corpus ignores the step and the indices within the batch."""
    return self.tokens[row]

  def contains_step(self, step: Int[Array, '']) -> Bool[Array, '']:
    """Returns whether the rows of a step are here: always."""
    return jnp.bool_(True)


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchWindow:
  """The batches of one chunk, in place of a Corpus: `tokens [S B L]` from step `first` on.

  In a population both arrays have a leading axis `P`.
  """

  tokens: UInt16[Array, '*P S B L'] | UInt32[Array, '*P S B L']
  first: Int[Array, '*P']
  rows: int = dataclasses.field(metadata=dict(static=True))
  vocab_size: int = dataclasses.field(metadata=dict(static=True))
  hash: str = dataclasses.field(metadata=dict(static=True))

  @property
  def length(self) -> int:
    """L, the token ids of a row."""
    return self.tokens.shape[-1]

  def gather(
    self, step: Int[Array, ''], row: Int[Array, 'b'], index: Int[Array, 'b']
  ) -> UInt[Array, 'b L']:
    """Returns rows of the batch of a step, by their indices within it."""
    return self.tokens[step - self.first, index]

  def contains_step(self, step: Int[Array, '']) -> Bool[Array, '']:
    """Returns whether the rows of a step are here; those of a member that stopped earlier are not."""
    return step >= self.first


class CorpusFiles:
  """The rows of a split in memory-mapped shards; `files[rows]` reads some of them."""

  def __init__(self, folder: epath.PathLike, split: str):
    """Checks every shard, which reads it once.

    Raises:
      InputError: a shard is missing, damaged, or holds ids past the vocabulary.
    """
    self.manifest = read_manifest(folder)
    self.shards = _open_shards(epath.Path(folder), split, self.manifest)
    self.ends = np.cumsum([len(shard) for shard in self.shards])

  def __getitem__(self, rows: Int[np.ndarray, '*S']) -> UInt[np.ndarray, '*S L']:
    flat = rows.ravel()
    tokens = np.empty((flat.size, self.manifest['length']), self.shards[0].dtype)
    shard_of_row = np.searchsorted(self.ends, flat, side='right')
    for number, shard in enumerate(self.shards):
      inside = shard_of_row == number
      tokens[inside] = shard[flat[inside] - (self.ends[number] - len(shard))]
    return tokens.reshape(*rows.shape, -1)


def read_manifest(folder: epath.PathLike) -> dict[str, Any]:
  """Returns the manifest of a corpus folder.

  Raises:
    InputError: the folder is no finished corpus, or has a format that this version does not read.
  """
  path, what = epath.Path(folder) / run_dir.MANIFEST, f'the corpus {epath.Path(folder)}'
  if not path.exists():
    raise InputError(
      what, 'no manifest.json there', 'make it with minilm corpus, or check the path'
    )
  manifest = files.read_json(path, what)
  if not isinstance(manifest, dict) or 'format' not in manifest or 'splits' not in manifest:
    raise InputError(
      what,
      'a manifest.json that is not a corpus manifest',
      'give the folder that minilm corpus made',
    )
  if manifest['format'] != FORMAT:
    raise InputError(
      what, f'format {manifest["format"]!r}', f'make it again: this version reads format {FORMAT}'
    )
  fault = schema.find_schema_fault(manifest, _MANIFEST_SCHEMA)
  if not fault:
    length, vocab_size, dtype = (manifest[name] for name in ('length', 'vocabulary', 'dtype'))
    if not length or not vocab_size or dtype not in ('uint16', 'uint32'):
      fault = f'rows of {length} {dtype} in a vocabulary of {vocab_size}'
  if fault:
    raise InputError(
      what, f'a manifest.json that is damaged: {fault}', 'make it again, or copy it again'
    )
  return manifest


def load_split(folder: epath.PathLike, split: str, max_rows: int | None = None) -> Corpus:
  """Reads one split, or its first rows, into the memory of the host.

  Raises:
    InputError: a shard is missing, damaged, or holds ids past the vocabulary.
  """
  manifest = read_manifest(folder)
  tokens = np.concatenate(_open_shards(epath.Path(folder), split, manifest))[:max_rows]
  return Corpus(typing.cast(Array, tokens), manifest['vocabulary'], manifest['hash'])


def _open_shards(folder: epath.Path, split: str, manifest: dict[str, Any]) -> list[np.ndarray]:
  what, vocab_size = f'the {split} split of {folder}', manifest['vocabulary']
  entry = manifest['splits'][split]
  shards = [_open_shard(folder, shard, manifest) for shard in entry['shards']]
  if not shards:
    raise InputError(what, 'no rows', f'build the corpus with splits.{split} above 0')
  remedy = 'build it again: its shards and its manifest differ'
  if (max_id := max(shard.max() for shard in shards)) >= vocab_size:
    raise InputError(what, f'id {max_id} in a vocabulary of {vocab_size}', remedy)
  if (rows := sum(map(len, shards))) != entry['rows']:
    raise InputError(
      what, f'{rows:,} rows in its shards, {entry["rows"]:,} in its manifest', remedy
    )
  return shards


def _open_shard(folder: epath.Path, shard: dict[str, Any], manifest: dict[str, Any]) -> np.ndarray:
  path = files.resolve_inside(folder, shard['file'], f'a shard of {folder}')
  what, remedy = f'the shard {path}', 'build the corpus again, or copy it again'
  shape, dtype = (shard['rows'], manifest['length']), np.dtype(manifest['dtype'])
  if not path.is_file():
    raise InputError(what, 'no such file in the folder', remedy)
  max_bytes = shape[0] * shape[1] * dtype.itemsize + _MAX_NPY_HEADER_BYTES
  if (size := path.stat().length) > max_bytes:
    raise InputError(
      what, f'{size:,} bytes, and the manifest has no more than {max_bytes:,}', remedy
    )
  if files.hash_file(path) != shard['sha256']:
    raise InputError(what, 'bytes that differ from the manifest (sha256)', remedy)
  try:
    if os.path.exists(path):
      rows = np.lib.format.open_memmap(path, mode='r')
    else:  # in a bucket
      with path.open('rb') as file:
        rows = np.lib.format.read_array(file, allow_pickle=False)
  except _NPY_ERRORS as error:
    raise InputError(what, f'no plain array: {error}', remedy) from None
  if rows.shape != shape or rows.dtype != dtype:
    raise InputError(what, f'{rows.dtype} {rows.shape}', remedy)
  return rows


def permute_rows(
  index: UInt32[Array, '*S'], size: int, key: UInt32[Array, 'rounds']
) -> UInt32[Array, '*S']:
  """Applies a keyed bijection of 0..size-1 to `index`, which gives an epoch a random order.

  A Feistel network over the next power of two is repeated until the value lies inside. An item of
  the order is computed and never stored, so that a run can begin at any step at no cost.
  """
  bits = max(2, (size - 1).bit_length())
  low = bits // 2
  low_mask, high_mask = jnp.uint32((1 << low) - 1), jnp.uint32((1 << (bits - low)) - 1)

  def shuffle(x: UInt32[Array, '*S']) -> UInt32[Array, '*S']:
    left, right = x >> low, x & low_mask
    for turn in range(_FEISTEL_ROUNDS):
      if turn % 2:
        right ^= rng.mix_bits(left, key[turn]) & low_mask
      else:
        left ^= rng.mix_bits(right, key[turn]) & high_mask
    return left << low | right

  return jax.lax.while_loop(
    lambda x: jnp.any(x >= size), lambda x: jnp.where(x >= size, shuffle(x), x), shuffle(index)
  )


def rows_at_step(
  seed: rng.Counter,
  step: rng.Counter,
  batch_size: int,
  count: int,
  indices: Int[Array, 'b'] | None = None,
) -> tuple[Int[Array, 'b'], UInt32[Array, 'b']]:
  """Returns the row and the epoch of each example of a batch.

  Each row comes once an epoch, in an order that differs by epoch.

  Args:
    seed: of the run.
    step: updates done before this one.
    batch_size: B.
    count: rows of the split; an epoch may end inside a batch.
    indices: examples of the batch; all if not given.
  """
  indices = jnp.arange(batch_size) if indices is None else indices
  number = jnp.asarray(step, jnp.uint32) * jnp.uint32(batch_size) + indices.astype(jnp.uint32)
  epoch, within = number // jnp.uint32(count), number % jnp.uint32(count)

  def pick_row(epoch: UInt32[Array, ''], within: UInt32[Array, '']) -> UInt[Array, '']:
    key = rng.make_key(seed, rng.Stream.ORDER, epoch)
    return permute_rows(within, count, jax.random.bits(key, (_FEISTEL_ROUNDS,), 'uint32'))

  return jax.vmap(pick_row)(epoch, within).astype(jnp.int32), epoch


def _mix_bits(number: UInt64[np.ndarray, '*S']) -> UInt64[np.ndarray, '*S']:
  """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014), a bijection of 64-bit numbers."""
  with np.errstate(over='ignore'):  # arithmetic modulo 2^64
    number = number + _INCREMENT
    for shift, multiplier in _MULTIPLIERS:
      number = (number ^ number >> np.uint64(shift)) * np.uint64(multiplier)
  return number ^ number >> np.uint64(31)


def order_rows(count: int, seed: int) -> Int[np.ndarray, 'N']:
  """Returns the row numbers 0..count-1 in a random order that depends on the seed alone.

  The order of two rows does not depend on `count`, on the machine or on any library.

  >>> order_rows(5, 0).tolist() == [row for row in order_rows(9, 0).tolist() if row < 5]
  True
  """
  key = _mix_bits(np.array([seed], np.uint64))
  return np.argsort(_mix_bits(np.arange(count, dtype=np.uint64) ^ key), kind='stable')


def count_row_tokens(corpus_files: CorpusFiles) -> Int[np.ndarray, 'N']:
  """Returns the tokens of each row, `<s>` and `</s>` counted, pads not."""
  return np.concatenate(
    [
      np.count_nonzero(shard[start : start + _ROWS_PER_BLOCK] != PAD_ID, axis=1)
      for shard in corpus_files.shards
      for start in range(0, len(shard), _ROWS_PER_BLOCK)
    ]
  )


def check_subset(config: SubsetConfig, manifest: Mapping[str, Any], folder: epath.PathLike) -> None:
  """Refuses a subset that is larger than the training split.

  Raises:
    InputError: names both sizes, and the folder of the corpus.
  """
  entry = manifest['splits'][TRAIN_SPLIT]
  for name in ('rows', 'tokens'):
    size = getattr(config, name)
    if size > entry[name]:
      raise InputError(
        f'subset.{name}={size:,}',
        f'the training split of {folder} has {entry[name]:,} {name}',
        f'give {entry[name]:,} or less, 0 for all, or a corpus of more text',
      )
  if 0 < config.tokens < manifest['length']:
    raise InputError(
      f'subset.tokens={config.tokens:,}',
      f'a row of {folder} has up to {manifest["length"]} tokens',
      'give enough for a row',
    )


def select_rows(config: SubsetConfig, corpus_files: CorpusFiles) -> Int[np.ndarray, 'n'] | None:
  """Returns the training rows of a recipe in ascending order, or None for all rows.

  A subset of tokens has the first rows of the fixed order, until the next would exceed the number.
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
  """Returns rows and tokens of the subset that a recipe trains on."""
  if not config.rows and not config.tokens:
    return {name: manifest['splits'][TRAIN_SPLIT][name] for name in ('rows', 'tokens')}
  corpus_files = CorpusFiles(folder, TRAIN_SPLIT)
  tokens = count_row_tokens(corpus_files)[select_rows(config, corpus_files)]
  return {'rows': len(tokens), 'tokens': int(tokens.sum())}
