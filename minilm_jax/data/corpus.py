"""The corpus folder as the program sees it: a manifest, a tokenizer, and rows that are to lie on
the device.

`build.py` writes the folder; this room reads it. A tokenised tiny language fits on the accelerator
as `uint16`, so there is no data iterator: which rows make a batch is arithmetic on `(seed, step)`,
the same on any mesh and after any resumption. A corpus that does not fit stays in its files, and
the same rows come to the device a chunk at a time.
"""

import dataclasses
import os
import tokenize
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Bool, Int, UInt, UInt16, UInt32

from minilm_jax.core import files, rng, run_dir, schema
from minilm_jax.core.corpus_config import FORMAT, SPLITS
from minilm_jax.core.errors import InputError
from minilm_jax.core.schema import ANY, COUNT, TEXT

_SHARD = {'file': TEXT, 'rows': COUNT, 'sha256': TEXT}
_SPLIT = {'rows': COUNT, 'tokens': COUNT, 'shards': [_SHARD]}
_MANIFEST = {
  'length': COUNT,
  'vocabulary': COUNT,
  'dtype': TEXT,
  'hash': TEXT,
  'subset?': ANY,
  'tokenizer': {'file': TEXT, 'sha256': TEXT},
  'splits': {split: _SPLIT for split in SPLITS},
}
_HEADER = 1 << 16  # bytes, more than the header of a .npy takes
# What the header of a .npy, which is a Python expression, can make of the one who reads it.
_NO_ARRAY = (
  ValueError,
  TypeError,
  LookupError,
  SyntaxError,
  ArithmeticError,
  EOFError,
  MemoryError,
  RecursionError,
  tokenize.TokenError,
)
# of the Feistel network; four already pass for random, six leave no visible trace of the order
_ROUNDS = 6


# JAX puts shapes, shardings and tracers of its own into the fields of a pytree
@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Corpus:
  """One split, on the device or on its way there: `tokens [rows, length]`, and what it is."""

  tokens: UInt16[Array, 'N L'] | UInt32[Array, 'N L']
  vocabulary: int = dataclasses.field(metadata=dict(static=True))
  hash: str = dataclasses.field(metadata=dict(static=True))

  @property
  def rows(self) -> int:
    """N, the rows of the split."""
    return self.tokens.shape[0]

  @property
  def length(self) -> int:
    """L, the token ids of a row."""
    return self.tokens.shape[1]

  def take(
    self, step: Int[Array, ''], row: Int[Array, 'b'], place: Int[Array, 'b']
  ) -> UInt[Array, 'b L']:
    """The rows of a batch; of a Corpus the step and the places in the batch do not matter."""
    return self.tokens[row]

  def covers(self, step: Int[Array, '']) -> Bool[Array, '']:
    """Whether the rows of a step are here: always."""
    return jnp.bool_(True)


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchWindow:
  """What a Corpus is for the steps of one chunk: `tokens [S B L]`, the batches of step `first` and
  of those after.

  In a population both arrays have a leading axis `P`.
  """

  tokens: UInt16[Array, '*P S B L'] | UInt32[Array, '*P S B L']
  first: Int[Array, '*P']
  rows: int = dataclasses.field(metadata=dict(static=True))
  vocabulary: int = dataclasses.field(metadata=dict(static=True))
  hash: str = dataclasses.field(metadata=dict(static=True))

  @property
  def length(self) -> int:
    """L, the token ids of a row."""
    return self.tokens.shape[-1]

  def take(
    self, step: Int[Array, ''], row: Int[Array, 'b'], place: Int[Array, 'b']
  ) -> UInt[Array, 'b L']:
    """The rows of a batch, by their places in it."""
    return self.tokens[step - self.first, place]

  def covers(self, step: Int[Array, '']) -> Bool[Array, '']:
    """Whether the rows of a step are here: not those of a member that stands still since an earlier
    chunk.
    """
    return step >= self.first


class CorpusFiles:
  """The rows of a split where they are, in memory-mapped shards; `files[rows]` reads some."""

  def __init__(self, folder: epath.PathLike, split: str):
    """Checks every shard, which reads it once.

    Raises:
      InputError: a shard is missing, damaged, or holds ids past the vocabulary.
    """
    folder, self.manifest = epath.Path(folder), read_manifest(folder)
    self.shards = _shards(folder, split, self.manifest)
    self.ends = np.cumsum([len(shard) for shard in self.shards])

  def __getitem__(self, rows: Int[np.ndarray, '*S']) -> UInt[np.ndarray, '*S L']:
    flat = rows.ravel()
    found = np.empty((flat.size, self.manifest['length']), self.shards[0].dtype)
    home = np.searchsorted(self.ends, flat, side='right')
    for number, shard in enumerate(self.shards):
      here = home == number
      found[here] = shard[flat[here] - (self.ends[number] - len(shard))]
    return found.reshape(*rows.shape, -1)


def read_manifest(folder: epath.PathLike) -> dict[str, Any]:
  """The manifest of a corpus folder.

  Raises:
    InputError: the folder is no finished corpus, or one of a format that this version does not
      read.
  """
  folder = epath.Path(folder)
  what = f'the corpus {folder}'
  if not (folder / run_dir.MANIFEST).exists():
    raise InputError(
      what, 'no manifest.json there', 'make it with minilm corpus, or check the path'
    )
  found = files.read_json(folder / run_dir.MANIFEST, what)
  if not isinstance(found, dict) or 'format' not in found or 'splits' not in found:
    raise InputError(
      what,
      'a manifest.json that is not a corpus manifest',
      'give the folder that minilm corpus made',
    )
  if found['format'] != FORMAT:
    raise InputError(
      what, f'format {found["format"]!r}', f'make it again: this version reads format {FORMAT}'
    )
  fault = schema.find_schema_fault(found, _MANIFEST)
  if not fault and (
    not found['length'] or not found['vocabulary'] or found['dtype'] not in ('uint16', 'uint32')
  ):
    fault = f'rows of {found["length"]} {found["dtype"]} in a vocabulary of {found["vocabulary"]}'
  if fault:
    raise InputError(
      what, f'a manifest.json that is damaged: {fault}', 'make it again, or copy it again'
    )
  return found


def load_split(folder: epath.PathLike, split: str, most: int | None = None) -> Corpus:
  """Reads one split, or its first rows, into the memory of the host.

  Raises:
    InputError: a shard is missing, damaged, or holds ids past the vocabulary.
  """
  described = read_manifest(folder)
  tokens = np.concatenate(_shards(epath.Path(folder), split, described))[:most]
  return Corpus(tokens, described['vocabulary'], described['hash'])


def _shards(folder: epath.Path, split: str, described: dict[str, Any]) -> list[np.ndarray]:
  shards = [_shard(folder, shard, described) for shard in described['splits'][split]['shards']]
  if not shards:
    raise InputError(
      f'the {split} split of {folder}', 'no rows', f'build the corpus with splits.{split} above 0'
    )
  if (last := max(shard.max() for shard in shards)) >= described['vocabulary']:
    found = f'id {last} in a vocabulary of {described["vocabulary"]}'
    raise InputError(
      f'the {split} split of {folder}', found, 'build it again: its shards and its manifest differ'
    )
  if (rows := sum(map(len, shards))) != described['splits'][split]['rows']:
    found = f'{rows:,} rows in its shards, {described["splits"][split]["rows"]:,} in its manifest'
    raise InputError(
      f'the {split} split of {folder}', found, 'build it again: its shards and its manifest differ'
    )
  return shards


def _shard(folder: epath.Path, shard: dict[str, Any], described: dict[str, Any]) -> np.ndarray:
  path = files.resolve_inside(folder, shard['file'], f'a shard of {folder}')
  what, remedy = f'the shard {path}', 'build the corpus again, or copy it again'
  if not path.is_file():
    raise InputError(what, 'no such file in the folder', remedy)
  most = shard['rows'] * described['length'] * np.dtype(described['dtype']).itemsize + _HEADER
  if (size := path.stat().length) > most:
    raise InputError(what, f'{size:,} bytes, and the manifest has no more than {most:,}', remedy)
  if files.hash_file(path) != shard['sha256']:
    raise InputError(what, 'bytes that differ from the manifest (sha256)', remedy)
  try:
    if os.path.exists(path):
      rows = np.lib.format.open_memmap(path, mode='r')
    else:  # in a bucket
      with path.open('rb') as file:
        rows = np.lib.format.read_array(file, allow_pickle=False)
  except _NO_ARRAY as error:
    raise InputError(what, f'no plain array: {error}', remedy) from None
  if rows.shape != (shard['rows'], described['length']) or rows.dtype != described['dtype']:
    raise InputError(what, f'{rows.dtype} {rows.shape}', remedy)
  return rows


def permute_rows(
  index: UInt32[Array, '*S'], size: int, key: UInt32[Array, 'rounds']
) -> UInt32[Array, '*S']:
  """Where a keyed bijection of 0..size-1 sends `index`: row number `index` of an epoch in random
  order.

  A Feistel network over the next power of two, walked until it lands inside: item i of an order is
  computed, never stored, so that a run can begin at any step at no cost.
  """
  bits = max(2, (size - 1).bit_length())
  low = bits // 2
  low_mask, high_mask = jnp.uint32((1 << low) - 1), jnp.uint32((1 << (bits - low)) - 1)

  def shuffle(x: UInt32[Array, '*S']) -> UInt32[Array, '*S']:
    left, right = x >> low, x & low_mask
    for turn in range(_ROUNDS):
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
  places: Int[Array, 'b'] | None = None,
) -> tuple[Int[Array, 'b'], UInt32[Array, 'b']]:
  """Which rows make the batch of a step, each row once an epoch, in an order of its own each epoch.

  Args:
    seed: of the run.
    step: updates done before this one.
    batch_size: B.
    count: rows of the split; an epoch may end inside a batch.
    places: those of the batch that are asked for; all if not given.

  Returns:
    The row and the epoch of each example.
  """
  places = jnp.arange(batch_size) if places is None else places
  number = jnp.asarray(step, jnp.uint32) * jnp.uint32(batch_size) + places.astype(jnp.uint32)
  epoch, within = number // jnp.uint32(count), number % jnp.uint32(count)

  def row(epoch: UInt32[Array, ''], within: UInt32[Array, '']) -> UInt[Array, '']:
    return permute_rows(
      within,
      count,
      jax.random.bits(rng.make_key(seed, rng.Stream.ORDER, epoch), (_ROUNDS,), 'uint32'),
    )

  return jax.vmap(row)(epoch, within).astype(jnp.int32), epoch
