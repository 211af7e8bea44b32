"""Reads a corpus folder: its manifest, its rows on the device or in files, and subsets of rows.

`build.py` writes the folder. A tokenised tiny language fits on the accelerator as `uint16`, so no
data iterator is needed. The rows of a batch are a function of `(seed, step)`, equal on any mesh and
after any resumption. A larger corpus stays in files, and chunks of the same rows are copied to the
device.

Subsets of the training split are the first rows of a fixed random order, so smaller subsets lie
inside larger subsets. With `rows.packing=articles`, a subset is the first n articles of a shuffled
list, as in paper 2.
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

from minilm_jax.core import files, rng
from minilm_jax.core.config import SubsetConfig
from minilm_jax.core.corpus_config import FORMAT, PAD_ID, SPLITS
from minilm_jax.core.errors import ANY, COUNT, PARSE_ERRORS, TEXT, InputError, find_schema_fault

MANIFEST, TRAIN_SPLIT = 'manifest.json', 'train'
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
_FEISTEL_ROUNDS = 6  # four rounds already pass tests of randomness
_ROWS_PER_BLOCK = 1 << 16
_REBUILD = 'build or copy the corpus again'
# Constants of SplitMix64.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


# JAX also stores shapes, shardings and tracers in the fields of a pytree.
@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Corpus:
  """The rows of one split in memory of the host or of a device.

  Attributes:
    tokens: Token ids `[N L]`.
    vocab_size: Ids are smaller than this.
  """

  tokens: UInt16[Array, 'N L'] | UInt32[Array, 'N L']
  vocab_size: int = dataclasses.field(metadata=dict(static=True))
  hash: str = dataclasses.field(metadata=dict(static=True))

  @property
  def rows(self) -> int:
    """Number of rows, N."""
    return self.tokens.shape[0]

  @property
  def length(self) -> int:
    """Number of token ids in a row, L."""
    return self.tokens.shape[1]

  def gather(
    self, step: Int[Array, ''], row: Int[Array, 'b'], index: Int[Array, 'b']
  ) -> UInt[Array, 'b L']:
    """Returns rows by number; ignores the step and the index within the batch."""
    return self.tokens[row]

  def contains_step(self, step: Int[Array, '']) -> Bool[Array, '']:
    """Returns True: all rows are in memory."""
    return jnp.bool_(True)


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchWindow:
  """The batches of one chunk, in place of a Corpus.

  Attributes:
    tokens: Token ids `[S B L]` of S steps; `[P S B L]` for a population.
    first: First step of the chunk; `[P]` for a population.
    rows: Number of rows of the split or subset.
  """

  tokens: UInt16[Array, '*P S B L'] | UInt32[Array, '*P S B L']
  first: Int[Array, '*P']
  rows: int = dataclasses.field(metadata=dict(static=True))
  vocab_size: int = dataclasses.field(metadata=dict(static=True))
  hash: str = dataclasses.field(metadata=dict(static=True))

  @property
  def length(self) -> int:
    """Number of token ids in a row, L."""
    return self.tokens.shape[-1]

  def gather(
    self, step: Int[Array, ''], row: Int[Array, 'b'], index: Int[Array, 'b']
  ) -> UInt[Array, 'b L']:
    """Returns rows by step and index within the batch; ignores the row number."""
    return self.tokens[step - self.first, index]

  def contains_step(self, step: Int[Array, '']) -> Bool[Array, '']:
    """Returns whether the window has a step; members that stopped earlier are at smaller steps."""
    return step >= self.first


class CorpusFiles:
  """The rows of a split in memory-mapped shards; `corpus_files[rows]` reads rows by number."""

  def __init__(self, folder: epath.PathLike, split: str):
    """Opens all shards and verifies their checksums.

    Raises:
      InputError: A shard is missing, damaged, or has ids outside the vocabulary.
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
  """Returns the validated manifest of a corpus folder.

  Raises:
    InputError: The folder is not a finished corpus, or has another format version.
  """
  path, subject = epath.Path(folder) / MANIFEST, f'the corpus {epath.Path(folder)}'
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
  manifest = read_manifest(folder)
  tokens = np.concatenate(_open_shards(epath.Path(folder), split, manifest))[:max_rows]
  return Corpus(typing.cast(Array, tokens), manifest['vocabulary'], manifest['hash'])


def _open_shards(folder: epath.Path, split: str, manifest: dict[str, Any]) -> list[np.ndarray]:
  subject, vocab_size = f'the {split} split of {folder}', manifest['vocabulary']
  entry = manifest['splits'][split]
  shards = [_open_shard(folder, shard, manifest) for shard in entry['shards']]
  if not shards:
    raise InputError(subject, 'no rows', f'build the corpus with splits.{split} above 0')
  if (max_id := max(shard.max() for shard in shards)) >= vocab_size:
    raise InputError(subject, f'id {max_id} in a vocabulary of {vocab_size}', _REBUILD)
  if (rows := sum(map(len, shards))) != entry['rows']:
    fault = f'{rows:,} rows in the shards, {entry["rows"]:,} in the manifest'
    raise InputError(subject, fault, _REBUILD)
  return shards


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


def permute_rows(
  index: UInt32[Array, '*S'], size: int, key: UInt32[Array, 'rounds']
) -> UInt32[Array, '*S']:
  """Applies a keyed bijection of 0..size-1 to `index`: the random order of an epoch.

  A Feistel network over the next power of two is repeated until the value is below `size`. The
  order is computed and never stored, so a run can start at any step.
  """
  bits = max(2, (size - 1).bit_length())
  low_bits = bits // 2
  low_mask, high_mask = jnp.uint32((1 << low_bits) - 1), jnp.uint32((1 << (bits - low_bits)) - 1)

  def shuffle(x: UInt32[Array, '*S']) -> UInt32[Array, '*S']:
    high, low = x >> low_bits, x & low_mask
    for turn in range(_FEISTEL_ROUNDS):
      if turn % 2:
        low ^= rng.mix_bits(high, key[turn]) & low_mask
      else:
        high ^= rng.mix_bits(low, key[turn]) & high_mask
    return high << low_bits | low

  return jax.lax.while_loop(
    lambda x: jnp.any(x >= size), lambda x: jnp.where(x >= size, shuffle(x), x), shuffle(index)
  )


def select_batch_rows(
  seed: rng.Counter,
  step: rng.Counter,
  batch_size: int,
  count: int,
  indices: Int[Array, 'b'] | None = None,
) -> tuple[Int[Array, 'b'], UInt32[Array, 'b']]:
  """Returns the row and the epoch of each example of a batch.

  Each row occurs once an epoch, in an order that differs between epochs.

  Args:
    count: Rows of the split; an epoch may end inside a batch.
    indices: Indices within the batch; None takes all.
  """
  indices = jnp.arange(batch_size) if indices is None else indices
  number = jnp.asarray(step, jnp.uint32) * jnp.uint32(batch_size) + indices.astype(jnp.uint32)
  epoch, within = number // jnp.uint32(count), number % jnp.uint32(count)

  def pick_row(epoch: UInt32[Array, ''], within: UInt32[Array, '']) -> UInt[Array, '']:
    key = rng.make_key(seed, rng.Stream.ORDER, epoch)
    return permute_rows(within, count, jax.random.bits(key, (_FEISTEL_ROUNDS,), 'uint32'))

  return jax.vmap(pick_row)(epoch, within).astype(jnp.int32), epoch


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
      np.count_nonzero(shard[start : start + _ROWS_PER_BLOCK] != PAD_ID, axis=1)
      for shard in corpus_files.shards
      for start in range(0, len(shard), _ROWS_PER_BLOCK)
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
