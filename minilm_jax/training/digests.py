"""Hashes of the files of a checkpoint: one that was cut short, or whose bytes changed on disk, is not taken for whole.

    STEP/digests.json   {'files': {'default/manifest.ocdbt': {'bytes': 123, 'sha256': '...'}, ...}}

It is written when everything else in the folder is; a checkpoint without it was saved by a process that ended before
that, or by an earlier version. What to do with one that is damaged is left to `checkpoint`.
"""

from collections.abc import Iterator

from etils import epath

from minilm_jax import run
from minilm_jax.errors import InputError

DIGESTS = 'digests.json'


def write(folder: epath.PathLike) -> None:
  """Writes size and SHA-256 of every file of a checkpoint into its folder, whole or not at all."""
  folder = epath.Path(folder)
  run.write_json(folder / DIGESTS, {'files': {
      name: {'bytes': file.stat().length, 'sha256': run.sha256(file)} for name, file in sorted(_files(folder))}})


def written(folder: epath.PathLike) -> bool:
  """Does a checkpoint have its digests?"""
  return (epath.Path(folder) / DIGESTS).exists()


def damage(folder: epath.PathLike) -> str:
  """What is wrong with the first file of a checkpoint that is not as it was, in words; nothing where all are.

  Nothing is known against a checkpoint without digests.

  Raises:
    OSError: a file is there and cannot be read.
  """
  folder = epath.Path(folder)
  if not written(folder):
    return ''
  try:
    found = run.read_json(folder / DIGESTS, 'digests')
    wanted = {name: (one['bytes'], one['sha256']) for name, one in found['files'].items()}
  except (InputError, LookupError, TypeError, AttributeError):
    return f'{DIGESTS} cannot be read'
  there = dict(_files(folder))
  for name, (size, digest) in wanted.items():
    if name not in there:
      return f'{name} is missing'
    length = there[name].stat().length
    if length != size:
      return f'{name} has {length:,} bytes, and had {size}'
    if run.sha256(there[name]) != digest:
      return f'{name} has other bytes than when it was saved'
  return ''


def _files(folder: epath.Path, inside: str = '') -> Iterator[tuple[str, epath.Path]]:
  """Every file below a folder by its name from there, but for the digests, written or in the making."""
  for path in folder.iterdir():
    if path.is_dir():
      yield from _files(path, f'{inside}{path.name}/')
    elif inside or DIGESTS not in path.name:
      yield inside + path.name, path
