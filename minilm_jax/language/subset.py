"""Parts of the training split of a corpus: nested ones by a fixed random order, and corpora made of chosen rows.

A part of a corpus has its tokenizer and its validation and test splits, so that losses on them compare. In one order
the first n rows are inside the first m > n, whatever n and m are; where a row is a document (`rows.packing=articles`)
they are the first n articles of a shuffled list, as in paper 2. Which rows are worth choosing is for others to say.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int, UInt64

from minilm_jax import claim, progress, run, untrusted
from minilm_jax.config import SubsetConfig
from minilm_jax.corpus_config import SPLITS
from minilm_jax.errors import InputError
from minilm_jax.language import tokenizer
from minilm_jax.language import corpus as corpora

TRAIN = 'train'
_STEP, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_AT_ONCE = 1 << 16  # rows that are looked at together


def _mixed(number: UInt64[np.ndarray, '*S']) -> UInt64[np.ndarray, '*S']:
  """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014), a bijection of 64-bit numbers."""
  with np.errstate(over='ignore'):  # arithmetic modulo 2^64
    number = number + _STEP
    number = (number ^ number >> np.uint64(30)) * _FIRST
    number = (number ^ number >> np.uint64(27)) * _SECOND
  return number ^ number >> np.uint64(31)


def order(count: int, seed: int) -> Int[np.ndarray, 'N']:
  """The row numbers 0..count-1 in a random order that depends on the seed alone.

  A row's place before or behind another one does not depend on `count`, on the machine or on any library.

  >>> order(5, 0).tolist() == [row for row in order(9, 0).tolist() if row < 5]
  True
  """
  key = _mixed(np.array([seed], np.uint64))
  return np.argsort(_mixed(np.arange(count, dtype=np.uint64) ^ key), kind='stable')


def first(lengths: Int[np.ndarray, 'N'], tokens: int, seed: int) -> Int[np.ndarray, 'n']:
  """The first rows of the fixed order, in ascending order, until the next one would exceed so many tokens.

  Args:
    lengths: tokens of each row, pads not counted.
    tokens: more than those of the result by less than a row, where there are enough.
    seed: of the order.
  """
  ordered = order(len(lengths), seed)
  return np.sort(ordered[:np.searchsorted(np.cumsum(lengths[ordered]), tokens, 'right')])


def lengths(files: corpora.Files) -> Int[np.ndarray, 'N']:
  """Tokens of each row, `<s>` and `</s>` counted, pads not."""
  found = [np.count_nonzero(shard[at:at + _AT_ONCE] != tokenizer.PAD, axis=1)
           for shard in files.shards for at in range(0, len(shard), _AT_ONCE)]
  return np.concatenate(found)


def check(config: SubsetConfig, described: Mapping[str, Any], corpus: epath.PathLike) -> None:
  """Refuses a part that is larger than the training split.

  Args:
    config: of a recipe.
    described: the manifest of the corpus.
    corpus: where it is.

  Raises:
    InputError: says both sizes.
  """
  there = described['splits'][TRAIN]
  for name, asked in (('rows', config.rows), ('tokens', config.tokens)):
    if asked > there[name]:
      raise InputError(f'subset.{name}={asked:,}', f'the training split of {corpus} has {there[name]:,} {name}',
                       f'give {there[name]:,} or less, 0 for all, or a corpus of more text')
  if 0 < config.tokens < described['length']:
    raise InputError(f'subset.tokens={config.tokens:,}', f'a row of {corpus} has up to {described["length"]} tokens',
                     'give enough for a row')


def chosen(config: SubsetConfig, files: corpora.Files) -> Int[np.ndarray, 'n'] | None:
  """The rows of the training split that a recipe trains on, in ascending order; None where that is all of them."""
  if config.rows:
    return np.sort(order(int(files.ends[-1]), config.shuffle_seed)[:config.rows])
  return first(lengths(files), config.tokens, config.shuffle_seed) if config.tokens else None


def size(config: SubsetConfig, folder: epath.PathLike, described: Mapping[str, Any]) -> dict[str, int]:
  """Rows and tokens of what a recipe trains on."""
  if not config.rows and not config.tokens:
    return {name: described['splits'][TRAIN][name] for name in ('rows', 'tokens')}
  files = corpora.Files(folder, TRAIN)
  some = chosen(config, files)
  return {'rows': len(some), 'tokens': int(lengths(files)[some].sum())}


def write(folder: epath.PathLike, some: Int[np.ndarray, 'n'], workdir: epath.PathLike, settings: dict[str, Any],
          more: Mapping[str, Any]) -> epath.Path:
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
  folder, described = epath.Path(folder), corpora.manifest(folder)
  if not len(some):
    raise InputError(f'a part of {folder}', 'no row was chosen', 'choose more')
  with claim.held(workdir):
    workdir = run.open_run(workdir, settings)
    if (workdir / run.MANIFEST).exists():
      progress.say(f'{workdir} holds this part already: nothing to do')
    else:
      _write(folder, described, some, workdir, more)
  return workdir


def _write(folder: epath.Path, described: dict[str, Any], some: Int[np.ndarray, 'n'], workdir: epath.Path,
           more: Mapping[str, Any]) -> None:
  from minilm_jax.language import build, rows  # training reads parts of a corpus and writes none
  files = corpora.Files(folder, TRAIN)
  most = rows.most_in_shard(described['length'], np.dtype(described['dtype']))
  parts = (files[some[at:at + most]] for at in range(0, len(some), most))
  splits = {TRAIN: rows.store(parts, workdir, TRAIN)}
  for split in SPLITS[1:]:
    splits[split] = described['splits'][split]
    if splits[split]['rows']:
      corpora.Files(folder, split)  # checks them
    for shard in splits[split]['shards']:
      what = f'a shard of {folder}'
      copied = untrusted.read_bytes(untrusted.inside(folder, shard['file'], what), what)
      run.write_bytes(untrusted.inside(workdir, shard['file'], what), copied)
  name, what = described['tokenizer']['file'], f'the tokenizer of {folder}'
  file = untrusted.inside(folder, name, what)
  if run.sha256(file) != described['tokenizer']['sha256']:
    raise InputError(what, 'not the file that the corpus was made with', 'copy it again')
  run.write_bytes(untrusted.inside(workdir, name, what), untrusted.read_bytes(file, what))
  run.write_json(workdir / run.MANIFEST, described | {
      'splits': splits, 'subset': {'of': described['hash'], 'of_rows': described['splits'][TRAIN]['rows'], **more},
      'hash': build.identity(described['tokenizer']['sha256'], described['length'], splits)})
