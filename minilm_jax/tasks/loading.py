"""Reads rows of a task from TFDS, a folder, named files or the microworld; draws samples of rows.

A row is a dict from column to the value in the source; `examples` interprets it.
"""

import collections
import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from minilm_jax.core.config import TaskConfig
from minilm_jax.core.errors import InputError, check_name
from minilm_jax.data import microworld, normalization, readers, tfds
from minilm_jax.tasks import task_files
from minilm_jax.tasks.task import Task

TASK_SPLITS = ('train', 'validation', 'test')
MICROWORLD_SIZES = {'train': 4000, 'validation': 1000, 'test': 1000}  # examples of each split
MIN_CLASS_SIZE = 2  # training examples of a class
_SAMPLE_SEED = 42  # seed of paper 2
# Makes the hash of the validation part independent of the hash behind max_train_examples.
_VALIDATION_SALT = 'held out\0'


class MissingSplit(InputError):
  """Raised if the source lacks a split; it may have other splits."""


def list_named_files(config: TaskConfig) -> dict[str, str]:
  """Returns the file of each split that the recipe names."""
  paths = (config.train, config.validation, config.test)
  return {split: path for split, path in zip(TASK_SPLITS, paths, strict=True) if path}


def splits_training_file(config: TaskConfig) -> bool:
  """Returns whether the training file also supplies the reported split."""
  return (
    bool(config.train)
    and config.split in TASK_SPLITS
    and config.split not in list_named_files(config)
  )


def read_rows(task: Task, config: TaskConfig, split: str) -> Iterator[dict[str, Any]]:
  """Returns the rows of a split in the order of their source.

  Raises:
    MissingSplit: The source lacks the split.
    InputError: The recipe has no source, or the source is unreadable.
  """
  if task.predicted_by and split == 'train':
    raise MissingSplit(
      f'training examples of {task.name}',
      'only a test split',
      f'fine-tune on {task.predicted_by}; its models predict {task.name}',
    )
  if config.data_dir:
    return _read_tfds(task, config, split)
  if config.folder:
    path = _find_file(epath.Path(config.folder), split)
    return task_files.read_file(path, task, split, config.markers)
  if paths := list_named_files(config):
    check_name(f'the split {split!r}', 'split', split, TASK_SPLITS)
    if split not in paths:
      raise MissingSplit(
        f'the {split} split of {task.name}',
        f'the files {", ".join(paths.values())}',
        f'set task.{split}',
      )
    return task_files.read_file(epath.Path(paths[split]), task, split, config.markers)
  if task.microworld:
    count = MICROWORLD_SIZES[split] if split in MICROWORLD_SIZES else 0
    return iter(microworld.generate_examples(task.microworld, split, 0, count))
  sources = 'task.folder'
  if task.tfds:
    sources = f'task.data_dir with {task.tfds} as TFDS prepares it, or task.folder'
  raise InputError(
    f'examples of {task.name}',
    'no source in the recipe',
    f'set {sources}, or the files task.train, task.validation, task.test',
  )


def has_split(config: TaskConfig, split: str) -> bool:
  """Returns whether the folder or the named files of a recipe have a split."""
  if not config.folder:
    return split in list_named_files(config)
  try:
    return bool(_find_file(epath.Path(config.folder), split))
  except MissingSplit:
    return False


def _read_tfds(task: Task, config: TaskConfig, split: str) -> Iterator[dict[str, Any]]:
  if not task.tfds:
    raise InputError(
      f'{task.name} from task.data_dir', 'a task that TFDS lacks', 'set task.folder instead'
    )
  try:
    folder = tfds.find_dataset(task.tfds, config.data_dir)
  except InputError:
    parts = ('train', *(f'validation_{part}' for part in task.parts))
    files = ', '.join(parts if task.parts else TASK_SPLITS[:2])
    raise MissingSplit(
      f'{task.tfds} in task.data_dir={config.data_dir}',
      'no prepared data set',
      f"on a machine with a network, run tfds.builder('{task.tfds}', data_dir=...)"
      f".download_and_prepare(file_format='array_record'); or set task.folder with {files}",
    ) from None
  try:
    return tfds.read_examples(folder, split)
  except InputError as error:  # opening failed; damaged rows raise errors later
    raise MissingSplit(error.asked, error.found, error.remedy) from None


def _find_file(folder: epath.Path, split: str) -> epath.Path:
  """Returns the only file of a split."""
  if not folder.is_dir():
    raise InputError(f'examples in {folder}', 'no such folder', 'check task.folder')
  files = sorted(folder.iterdir())
  for name in (split, split.replace('validation', 'dev')):  # GLUE publishes dev.tsv
    paths = [path for path in files if readers.is_table(path) and readers.name_table(path) == name]
    if paths:
      break
  if len(paths) > 1:
    raise InputError(
      f'the file of the {split} split',
      f'{" and ".join(path.name for path in paths)} in {folder}',
      'remove all but the correct file',
    )
  if not paths:
    names = [path.name for path in files if not path.name.startswith('.')]
    raise MissingSplit(
      f'{split}.jsonl, .csv, .tsv (each also .gz, .xz, .zst) or .parquet in {folder}',
      f'the files {", ".join(names[:10]) or "(none)"}',
      'name the file after the split, or set another task.folder',
    )
  return paths[0]


def select_by_hash(texts: Sequence[str], count: int) -> list[int]:
  """Returns the first `count` indices by hash of the text; smaller samples lie in larger samples."""
  return sorted(range(len(texts)), key=lambda i: (_hash_text(texts[i]), i))[:count]


def split_validation(
  texts: Sequence[str], fraction: float, labels: Sequence[Any] | None = None
) -> set[int]:
  """Returns the first round(fraction n) indices by a second hash of the text.

  Texts that are equal except for case and white space stay together, because a model of minilm
  pretrain reads the same pieces. The first of them gives the hash. A group of equal texts that
  exceeds the number is skipped. So is a group that would leave fewer than two training examples of
  its class, if `labels` has the classes.

  >>> split_validation(['a', 'b', 'A', 'c', ' a'], 0.4) & {0, 2, 4}
  set()
  """
  count, groups = round(fraction * len(texts)), collections.defaultdict(list)
  for index, text in enumerate(texts):
    groups[_make_key(text)].append(index)
  remaining = collections.Counter(labels)
  validation: set[int] = set()

  def hash_group(indices: list[int]) -> bytes:
    return _hash_text(_VALIDATION_SALT + texts[indices[0]])

  for indices in sorted(groups.values(), key=hash_group):
    group = collections.Counter(labels[i] for i in indices) if labels else {}
    is_rare = any(remaining[label] - number < MIN_CLASS_SIZE for label, number in group.items())
    if not is_rare and len(validation) + len(indices) <= count:
      validation.update(indices)
      remaining.subtract(group)
  return validation


def _make_key(text: str) -> str:
  """Returns a text, or texts joined by NUL, as a pre-trained model reads it, with single spaces."""
  return ' '.join(normalization.fold_text(text).replace('\0', ' \0 ').split())


def sample_balanced(labels: Sequence[str], count: int) -> list[int]:
  """Returns `count` ascending indices of each label, drawn as in paper 2.

  Python's `random.sample` draws with seed 42, for labels in the order of their first example.

  Raises:
    InputError: A label has fewer examples.
  """
  return sorted(itertools.chain.from_iterable(_draw(labels, count)))


def sample_balanced_splits(
  texts: Sequence[str], labels: Sequence[str], train_count: int, eval_count: int
) -> tuple[list[int], list[int]]:
  """Returns balanced training and evaluation samples that share no text.

  Both are drawn at once as in `sample_balanced`, with the counts for each label. Repeated texts,
  such as a sentence with two relations, are used for training. Case and white space do not
  distinguish texts.

  Raises:
    InputError: A label has too few examples, or too few with a unique text.
  """
  keys = [_make_key(text) for text in texts]
  counts, train, evaluation = collections.Counter(keys), [], []
  for drawn in _draw(labels, train_count + eval_count):
    unique = [index for index in drawn if counts[keys[index]] == 1][:eval_count]
    if len(unique) < eval_count:
      raise InputError(
        f'{eval_count:,} evaluation examples of {labels[drawn[0]]!r} with unique texts',
        f'{len(unique):,} such examples',
        'lower task.eval_per_label, or name a separate file',
      )
    evaluation += unique
    train += set(drawn).difference(unique)
  return sorted(train), sorted(evaluation)


def _draw(labels: Sequence[str], count: int) -> list[list[int]]:
  """Returns `count` indices of each label in the order of the draws."""
  generator, indices = random.Random(_SAMPLE_SEED), collections.defaultdict(list)
  for index, label in enumerate(labels):
    indices[label].append(index)
  for label, label_indices in indices.items():
    if len(label_indices) < count:
      raise InputError(
        f'{count:,} examples of each label',
        f'{len(label_indices):,} of {label!r}',
        'lower task.per_label or task.eval_per_label, or give more examples',
      )
  return [generator.sample(label_indices, count) for label_indices in indices.values()]


def _hash_text(text: str) -> bytes:
  return hashlib.sha256(text.encode()).digest()
