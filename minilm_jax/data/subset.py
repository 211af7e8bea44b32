"""Parts of the training split of a corpus: nested ones by a fixed random order, and corpora made of
chosen rows.

A part of a corpus has its tokenizer and its validation and test splits, so that losses on them
compare. In one order the first n rows are inside the first m > n, whatever n and m are; where a row
is a document (`rows.packing=articles`) they are the first n articles of a shuffled list, as in
paper 2. Which rows are worth choosing is for others to say.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int, UInt64

from minilm_jax.core import lock, progress, run_dir
from minilm_jax.core.config import SubsetConfig
from minilm_jax.core.corpus_config import SPLITS
from minilm_jax.core.errors import InputError
from minilm_jax.core.files import hash_file, read_bytes, resolve_inside, write_bytes, write_json
from minilm_jax.data import corpus, tokenizer

TRAIN_SPLIT = 'train'
_STEP, _FIRST, _SECOND = (
  np.uint64(0x9E3779B97F4A7C15),
  np.uint64(0xBF58476D1CE4E5B9),
  np.uint64(0x94D049BB133111EB),
)
_ROWS_PER_BLOCK = 1 << 16  # rows that are looked at together


def _mixed(number: UInt64[np.ndarray, '*S']) -> UInt64[np.ndarray, '*S']:
  """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014), a bijection of 64-bit numbers."""
  with np.errstate(over='ignore'):  # arithmetic modulo 2^64
    number = number + _STEP
    number = (number ^ number >> np.uint64(30)) * _FIRST
    number = (number ^ number >> np.uint64(27)) * _SECOND
  return number ^ number >> np.uint64(31)


def order_rows(count: int, seed: int) -> Int[np.ndarray, 'N']:
  """The row numbers 0..count-1 in a random order that depends on the seed alone.

  A row's place before or behind another one does not depend on `count`, on the machine or on any
  library.

  >>> order_rows(5, 0).tolist() == [row for row in order_rows(9, 0).tolist() if row < 5]
  True
  """
  key = _mixed(np.array([seed], np.uint64))
  return np.argsort(_mixed(np.arange(count, dtype=np.uint64) ^ key), kind='stable')


def first_rows(lengths: Int[np.ndarray, 'N'], tokens: int, seed: int) -> Int[np.ndarray, 'n']:
  """The first rows of the fixed order, in ascending order, until the next one would exceed so many
  tokens.

  Args:
    lengths: tokens of each row, pads not counted.
    tokens: more than those of the result by less than a row, where there are enough.
    seed: of the order.
  """
  ordered = order_rows(len(lengths), seed)
  return np.sort(ordered[: np.searchsorted(np.cumsum(lengths[ordered]), tokens, 'right')])


def row_lengths(files: corpus.CorpusFiles) -> Int[np.ndarray, 'N']:
  """Tokens of each row, `<s>` and `</s>` counted, pads not."""
  found = [
    np.count_nonzero(shard[at : at + _ROWS_PER_BLOCK] != tokenizer.PAD_ID, axis=1)
    for shard in files.shards
    for at in range(0, len(shard), _ROWS_PER_BLOCK)
  ]
  return np.concatenate(found)


def check_subset(
  config: SubsetConfig, described: Mapping[str, Any], corpus: epath.PathLike
) -> None:
  """Refuses a part that is larger than the training split.

  Args:
    config: of a recipe.
    described: the manifest of the corpus.
    corpus: where it is.

  Raises:
    InputError: says both sizes.
  """
  there = described['splits'][TRAIN_SPLIT]
  for name, asked in (('rows', config.rows), ('tokens', config.tokens)):
    if asked > there[name]:
      raise InputError(
        f'subset.{name}={asked:,}',
        f'the training split of {corpus} has {there[name]:,} {name}',
        f'give {there[name]:,} or less, 0 for all, or a corpus of more text',
      )
  if 0 < config.tokens < described['length']:
    raise InputError(
      f'subset.tokens={config.tokens:,}',
      f'a row of {corpus} has up to {described["length"]} tokens',
      'give enough for a row',
    )


def select_rows(config: SubsetConfig, files: corpus.CorpusFiles) -> Int[np.ndarray, 'n'] | None:
  """The rows of the training split that a recipe trains on, in ascending order; None where that is
  all of them.
  """
  if config.rows:
    return np.sort(order_rows(int(files.ends[-1]), config.shuffle_seed)[: config.rows])
  return (
    first_rows(row_lengths(files), config.tokens, config.shuffle_seed) if config.tokens else None
  )


def subset_size(
  config: SubsetConfig, folder: epath.PathLike, described: Mapping[str, Any]
) -> dict[str, int]:
  """Rows and tokens of what a recipe trains on."""
  if not config.rows and not config.tokens:
    return {name: described['splits'][TRAIN_SPLIT][name] for name in ('rows', 'tokens')}
  files = corpus.CorpusFiles(folder, TRAIN_SPLIT)
  some = select_rows(config, files)
  return {'rows': len(some), 'tokens': int(row_lengths(files)[some].sum())}


def write_subset(
  folder: epath.PathLike,
  some: Int[np.ndarray, 'n'],
  workdir: epath.PathLike,
  settings: dict[str, Any],
  more: Mapping[str, Any],
) -> epath.Path:
  """Makes a corpus of some training rows of another; a finished one is left as it is.

  Args:
    folder: the other corpus.
    some: row numbers of its training split, in the order in which they are written.
    workdir: the new corpus; its manifest comes last, and without it no verb takes the folder.
    settings: what the rows were chosen by, for config.json.
    more: what the manifest says of the part besides its numbers, under `subset`.

  Raises:
    Held: another process writes there.
    InputError: no row is chosen, the corpus is damaged, or the folder belongs to something else.
  """
  folder, described = epath.Path(folder), corpus.read_manifest(folder)
  if not len(some):
    raise InputError(f'a part of {folder}', 'no row was chosen', 'choose more')
  with lock.hold_lock(workdir):
    workdir = run_dir.open_run(workdir, settings)
    if (workdir / run_dir.MANIFEST).exists():
      progress.log(f'{workdir} holds this part already: nothing to do')
    else:
      _write(folder, described, some, workdir, more)
  return workdir


def _write(
  folder: epath.Path,
  described: dict[str, Any],
  some: Int[np.ndarray, 'n'],
  workdir: epath.Path,
  more: Mapping[str, Any],
) -> None:
  from minilm_jax.data import (
    build,
    packing,  # training reads parts of a corpus and writes none
  )

  files = corpus.CorpusFiles(folder, TRAIN_SPLIT)
  most = packing.max_shard_rows(described['length'], np.dtype(described['dtype']))
  parts = (files[some[at : at + most]] for at in range(0, len(some), most))
  splits = {TRAIN_SPLIT: packing.store_rows(parts, workdir, TRAIN_SPLIT)}
  for split in SPLITS[1:]:
    splits[split] = described['splits'][split]
    if splits[split]['rows']:
      corpus.CorpusFiles(folder, split)  # checks them
    for shard in splits[split]['shards']:
      what = f'a shard of {folder}'
      copied = read_bytes(resolve_inside(folder, shard['file'], what), what)
      write_bytes(resolve_inside(workdir, shard['file'], what), copied)
  name, what = described['tokenizer']['file'], f'the tokenizer of {folder}'
  file = resolve_inside(folder, name, what)
  if hash_file(file) != described['tokenizer']['sha256']:
    raise InputError(what, 'not the file that the corpus was made with', 'copy it again')
  write_bytes(resolve_inside(workdir, name, what), read_bytes(file, what))
  write_json(
    workdir / run_dir.MANIFEST,
    described
    | {
      'splits': splits,
      'subset': {
        'of': described['hash'],
        'of_rows': described['splits'][TRAIN_SPLIT]['rows'],
        **more,
      },
      'hash': build.corpus_hashes(described['tokenizer']['sha256'], described['length'], splits),
    },
  )
