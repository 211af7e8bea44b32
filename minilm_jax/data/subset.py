"""Makes corpora of chosen training rows of another corpus.

Such a corpus has the tokenizer and the validation and test splits of the other, so that losses on
them compare.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from minilm_jax.core import files, lock, progress, run_dir
from minilm_jax.core.corpus_config import SPLITS
from minilm_jax.core.errors import InputError
from minilm_jax.data import build, packing
from minilm_jax.data.corpus import TRAIN_SPLIT, CorpusFiles, read_manifest


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
