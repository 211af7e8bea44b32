"""Subsets of the training split: nested ones by a fixed random order, and corpora of chosen rows.

A subset of a corpus has its tokenizer and its validation and test splits, so that losses on them
compare. In one order the first n rows are inside the first m > n, whatever n and m are; if a row
is a document (`rows.packing=articles`) they are the first n articles of a shuffled list, as in
paper 2.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int, UInt64

from minilm_jax.core import files, lock, progress, run_dir
from minilm_jax.core.config import SubsetConfig
from minilm_jax.core.corpus_config import SPLITS
from minilm_jax.core.errors import InputError
from minilm_jax.data import build, packing, tokenizer
from minilm_jax.data.corpus import CorpusFiles, read_manifest

TRAIN_SPLIT = 'train'
_ROWS_PER_BLOCK = 1 << 16  # of a count of tokens
# constants of SplitMix64
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


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
      np.count_nonzero(shard[start : start + _ROWS_PER_BLOCK] != tokenizer.PAD_ID, axis=1)
      for shard in corpus_files.shards
      for start in range(0, len(shard), _ROWS_PER_BLOCK)
    ]
  )


def check_subset(config: SubsetConfig, manifest: Mapping[str, Any], folder: epath.PathLike) -> None:
  """Refuses a subset that is larger than the training split.

  Args:
    config: of a recipe.
    manifest: of the corpus.
    folder: of the corpus, for the error.

  Raises:
    InputError: names both sizes.
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


def write_subset(
  folder: epath.PathLike,
  rows: Int[np.ndarray, 'n'],
  workdir: epath.PathLike,
  settings: dict[str, Any],
  description: Mapping[str, Any],
) -> epath.Path:
  """Makes a corpus of some training rows of another; a finished one is left as it is.

  Args:
    folder: the other corpus.
    rows: row numbers of its training split, in the order of the new corpus.
    workdir: the new corpus; its manifest comes last, and without it no command takes the folder.
    settings: the rule of the choice of rows, for config.json.
    description: of the subset, for the manifest besides its numbers, under `subset`.

  Raises:
    LockedError: another process writes there.
    InputError: no row is chosen, the corpus is damaged, or the folder belongs to something else.
  """
  folder, manifest = epath.Path(folder), read_manifest(folder)
  if not len(rows):
    raise InputError(f'a part of {folder}', 'no row was chosen', 'choose more')
  with lock.hold_lock(workdir):
    workdir = run_dir.open_run(workdir, settings)
    if (workdir / run_dir.MANIFEST).exists():
      progress.log(f'{workdir} holds this part already: nothing to do')
    else:
      _write_files(folder, manifest, rows, workdir, description)
  return workdir


def _write_files(
  folder: epath.Path,
  manifest: dict[str, Any],
  rows: Int[np.ndarray, 'n'],
  workdir: epath.Path,
  description: Mapping[str, Any],
) -> None:
  corpus_files, length = CorpusFiles(folder, TRAIN_SPLIT), manifest['length']
  shard_rows = packing.max_shard_rows(length, np.dtype(manifest['dtype']))
  shards = (
    corpus_files[rows[start : start + shard_rows]] for start in range(0, len(rows), shard_rows)
  )
  splits = {TRAIN_SPLIT: packing.write_shards(shards, workdir, TRAIN_SPLIT)}
  for split in SPLITS[1:]:
    splits[split] = manifest['splits'][split]
    if splits[split]['rows']:
      CorpusFiles(folder, split)  # checks them
    for shard in splits[split]['shards']:
      _copy_file(folder, shard['file'], workdir, f'a shard of {folder}')
  name, checksum = manifest['tokenizer']['file'], manifest['tokenizer']['sha256']
  what = f'the tokenizer of {folder}'
  if files.hash_file(files.resolve_inside(folder, name, what)) != checksum:
    raise InputError(what, 'not the file that the corpus was made with', 'copy it again')
  _copy_file(folder, name, workdir, what)
  origin = {'of': manifest['hash'], 'of_rows': manifest['splits'][TRAIN_SPLIT]['rows']}
  changes = {
    'splits': splits,
    'subset': {**origin, **description},
    'hash': build.corpus_hash(checksum, length, splits),
  }
  files.write_json(workdir / run_dir.MANIFEST, manifest | changes)


def _copy_file(folder: epath.Path, name: str, workdir: epath.Path, what: str) -> None:
  data = files.read_bytes(files.resolve_inside(folder, name, what), what)
  files.write_bytes(files.resolve_inside(workdir, name, what), data)
