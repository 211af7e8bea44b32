"""Writes corpora of selected training rows of another corpus.

The new corpus has the tokenizer and the validation and test splits of the original corpus, so
losses are comparable.
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
  """Writes a corpus of selected training rows; returns its folder.

  Args:
    folder: Original corpus.
    rows: Row numbers of its training split, in the order of the new corpus.
    workdir: Folder of the new corpus; a finished corpus is unchanged.
    settings: Rule of the selection, for config.json.
    description: Further fields of `subset` in the manifest.

  Raises:
    LockedError: Another process writes to the folder.
    InputError: No row is selected, the original corpus is damaged, or the folder has other content.
  """
  folder, manifest = epath.Path(folder), read_manifest(folder)
  if not len(rows):
    raise InputError(f'a subset of {folder}', 'no row', 'select at least one row')
  with lock.hold_lock(workdir):
    workdir = run_dir.open_run(workdir, settings)
    if (workdir / run_dir.MANIFEST).exists():
      progress.log(f'{workdir} has this subset: nothing to do')
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
  shard_rows = packing.compute_shard_rows(length, np.dtype(manifest['dtype']))
  shards = (
    corpus_files[rows[start : start + shard_rows]] for start in range(0, len(rows), shard_rows)
  )
  splits = {TRAIN_SPLIT: packing.write_shards(shards, workdir, TRAIN_SPLIT)}
  for split in SPLITS[1:]:
    splits[split] = manifest['splits'][split]
    if splits[split]['rows']:
      CorpusFiles(folder, split)  # verifies checksums
    for shard in splits[split]['shards']:
      _copy_file(folder, shard['file'], workdir, f'a shard of {folder}')
  name, checksum = manifest['tokenizer']['file'], manifest['tokenizer']['sha256']
  subject = f'the tokenizer of {folder}'
  if files.hash_file(files.resolve_inside(folder, name, subject)) != checksum:
    raise InputError(subject, 'another sha256 than in the manifest', 'copy the corpus again')
  _copy_file(folder, name, workdir, subject)
  origin = {'of': manifest['hash'], 'of_rows': manifest['splits'][TRAIN_SPLIT]['rows']}
  changes = {
    'splits': splits,
    'subset': {**origin, **description},
    'hash': build.hash_corpus(checksum, length, splits),
  }
  files.write_json(workdir / run_dir.MANIFEST, manifest | changes)


def _copy_file(folder: epath.Path, name: str, workdir: epath.Path, subject: str) -> None:
  data = files.read_bytes(files.resolve_inside(folder, name, subject), subject)
  files.write_bytes(files.resolve_inside(workdir, name, subject), data)
