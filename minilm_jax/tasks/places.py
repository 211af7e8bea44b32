"""Where the examples of a task lie: rows of a split from TFDS, a folder, files named one by one, or made on the spot.

Rows are as they stand there, a dict from column to value; what they mean is the matter of `sources.py`. The
microworld's are of seed 0, in the numbers of `MICROWORLD`.
"""

from collections.abc import Iterator
from typing import Any

from etils import epath

from minilm_jax.config import TaskConfig
from minilm_jax.errors import InputError, nearest
from minilm_jax.language import datasets, documents, microworld
from minilm_jax.tasks import fewrel
from minilm_jax.tasks.table import Task

SPLITS = ('train', 'validation', 'test')
FORMS = (*(form + packing for form in ('.jsonl', '.csv', '.tsv', '.json') for packing in ('', '.gz', '.xz', '.zst')),
         '.parquet')
MICROWORLD = {'train': 4000, 'validation': 1000, 'test': 1000}


class NoSplit(InputError):
  """The place has no such split; it may have others."""


def named(config: TaskConfig) -> dict[str, str]:
  """The files that a recipe names, by split."""
  paths = (config.train, config.validation, config.test)
  return {split: path for split, path in zip(SPLITS, paths, strict=True) if path}


def shared(config: TaskConfig) -> bool:
  """Must the training file also give the split that is reported?"""
  return bool(config.train) and config.split in SPLITS and config.split not in named(config)


def rows(task: Task, config: TaskConfig, split: str) -> Iterator[dict[str, Any]]:
  """The rows of a split, in the order of their source.

  Raises:
    InputError: no place is given, the place has no such split (`NoSplit`) or cannot be read.
  """
  if task.predicted_by and split == 'train':
    raise NoSplit(f'training examples of {task.name}', 'it has a test split alone',
                  f'fine-tune on {task.predicted_by}, whose models predict it')
  if config.data_dir:
    return _tfds(task, config, split)
  if config.folder:
    return _table(_in_folder(epath.Path(config.folder).expanduser(), split), config)
  if files := named(config):
    if split not in SPLITS:
      raise InputError(f'the split {split!r}', 'no such split', nearest(split, SPLITS))
    if split not in files:
      raise NoSplit(f'the {split} split of {task.name}', f'no file; given are {", ".join(files.values())}',
                    f'give task.{split}')
    return _table(epath.Path(files[split]).expanduser(), config)
  if task.microworld:
    return iter(microworld.examples(task.microworld, split, 0, MICROWORLD[split] if split in MICROWORLD else 0))
  places = f'task.data_dir, where TFDS prepared {task.tfds}, or task.folder' if task.tfds else 'task.folder'
  raise InputError(f'examples of {task.name}', 'no place to read them from',
                   f'give {places}, or files: task.train, task.validation, task.test')


def _tfds(task: Task, config: TaskConfig, split: str) -> Iterator[dict[str, Any]]:
  if not task.tfds:
    raise InputError(f'{task.name} from task.data_dir', 'TFDS does not have this task', 'give task.folder instead')
  try:
    return documents.tfds_rows(task.tfds, split, config.data_dir)
  except InputError as error:  # opening failed; a fault inside the split appears later and stays what it is
    try:
      datasets.folder(task.tfds, config.data_dir)
    except InputError:
      files = ', '.join(('train', *(f'validation_{part}' for part in task.parts)) if task.parts else SPLITS[:2])
      raise NoSplit(
          f'{task.tfds} in task.data_dir={config.data_dir}', f'TFDS has not prepared it in {config.data_dir}',
          f"where there is a network: tfds.builder('{task.tfds}', data_dir=...)"
          f".download_and_prepare(file_format='array_record'); or give task.folder, with the files {files}") from None
    raise NoSplit(error.asked, error.found, error.remedy) from None


def _table(path: epath.Path, config: TaskConfig) -> Iterator[dict[str, Any]]:
  if fewrel.is_file(path):
    return fewrel.rows(path, config.markers)
  return documents.table_rows(str(path), errors='strict')


def _in_folder(folder: epath.Path, split: str) -> epath.Path:
  """The one file of a split."""
  if not folder.is_dir():
    raise InputError(f'examples in {folder}', 'no such folder', 'check task.folder')
  found = [folder / (split + form) for form in FORMS if (folder / (split + form)).exists()]
  if len(found) > 1:
    raise InputError(f'the file of the {split} split', f'{" and ".join(path.name for path in found)} in {folder}',
                     'leave one of them')
  if not found:
    there = ', '.join(sorted(path.name for path in folder.iterdir())[:10]) or 'nothing'
    raise NoSplit(f'{split}.jsonl, .csv, .tsv (each also .gz, .xz, .zst) or .parquet in {folder}', f'there: {there}',
                  'name the file after the split, or give another task.folder')
  return found[0]
