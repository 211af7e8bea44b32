"""Where the examples of a task lie: rows of a split from TFDS, a folder, files named one by one, or
made on the spot.

Rows are as they stand there, a dict from column to value; what they mean is the matter of
`sources.py`. The microworld's are of seed 0, in the numbers of `MICROWORLD`.
"""

import collections
import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from minilm_jax.core.config import TaskConfig
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.data import documents, microworld, readers, tfds
from minilm_jax.tasks.task import Task

# FewRel's files: sentences by the relation that they state between a head and a tail entity.
# Letters alone: brackets and digits may be no character of a tokenizer that learned from a small
# language, and would all become <unk>; capitals would be lost. No word is written so, and the four
# remain four different ones where a tokenizer takes them apart into letters.
HEAD_MARKER, TAIL_MARKER = ('qj', 'jq'), ('qz', 'zq')


def is_fewrel_file(path: epath.PathLike) -> bool:
  """Does a name end as FewRel's files do?

  >>> is_fewrel_file('val_wiki.json.xz'), is_fewrel_file('train.jsonl')
  (True, False)
  """
  stem, _, last = str(path).lower().rpartition('.')
  return last == 'json' or last in readers.COMPRESSIONS and stem.endswith('.json')


def read_fewrel_rows(path: epath.PathLike, markers: bool) -> Iterator[dict[str, Any]]:
  """One row a sentence, in the order of the file: its tokens with spaces between as `text`, its
  relation as `label`.

  Args:
    path: the file.
    markers: also give `marked`, the text with `qj`, `jq` round every mention of the head, `qz`,
      `zq` of the tail.

  Raises:
    InputError: the file cannot be read or is too large, is not of this form, or (for markers) a
      mention lies outside its sentence.
  """
  try:
    relations = json.loads(readers.read_decompressed(path))
  except (ValueError, RecursionError) as error:
    raise InputError(
      f'relations in {path}', f'not JSON: {error}', 'give a .jsonl a name that ends so'
    ) from None
  if not isinstance(relations, dict) or not all(
    isinstance(items, list) for items in relations.values()
  ):
    raise _malformed(str(path), 'no object of lists')
  for relation, items in relations.items():
    for number, item in enumerate(items, 1):
      where = f'{path}, {relation}, example {number:,}'
      tokens = item['tokens'] if isinstance(item, dict) and 'tokens' in item else None
      if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise _malformed(where, 'no list of tokens')
      row = {'text': ' '.join(tokens), 'label': relation}
      yield row | {'marked': _marked(tokens, item, where)} if markers else row


def _marked(tokens: list[str], item: dict[str, Any], where: str) -> str:
  before, after = [[] for _ in tokens], [[] for _ in tokens]
  for name, (start, end) in (('h', HEAD_MARKER), ('t', TAIL_MARKER)):
    for first, last in _mentions(item, name, len(tokens), where):
      before[first].append(start)
      after[last].insert(0, end)
  return ' '.join(
    itertools.chain.from_iterable([*a, token, *b] for a, token, b in zip(before, tokens, after))
  )


def _mentions(item: dict[str, Any], name: str, length: int, where: str) -> list[tuple[int, int]]:
  """The first and the last token of each mention."""
  entity = item[name] if name in item else None
  found = (
    entity[2]
    if isinstance(entity, list) and len(entity) == 3 and isinstance(entity[2], list)
    else []
  )
  for places in found:
    if (
      not isinstance(places, list)
      or not places
      or not all(type(i) is int and 0 <= i < length for i in places)
    ):
      raise _malformed(where, f'{places!r} as a mention among {length} tokens')
  if not found:
    raise _malformed(where, f'no mention in {name!r}')
  return [(min(places), max(places)) for places in found]


def _malformed(where: str, found: str) -> InputError:
  return InputError(
    f'relations in {where}',
    found,
    'give FewRel\'s form: {relation: [{"tokens": [...], "h": [name, id, [[index, ...]]], "t": ...}]}',
  )


# Which examples of many are taken: by hash of their text, or so many of each label.
_SEED = 42  # of paper 2
_VALIDATION_SALT = 'held out\0'  # else what is held out would be what a small limit takes first


def first_by_hash(texts: Sequence[str], count: int) -> list[int]:
  """The `count` first places by hash of the text: a part of what a larger count gives, and in no
  order by label.
  """
  return sorted(range(len(texts)), key=lambda i: (_digest(texts[i]), i))[:count]


def split_validation(texts: Sequence[str], share: float) -> set[int]:
  """The first round(share n) places by another hash of the text; equal texts go together, or stay
  if they do not fit.

  >>> split_validation(['a', 'b', 'a', 'c', 'a'], 0.4) & {0, 2, 4}
  set()
  """
  count, places = round(share * len(texts)), collections.defaultdict(list)
  for place, text in enumerate(texts):
    places[text].append(place)
  held = set()
  for text in sorted(places, key=lambda text: _digest(_VALIDATION_SALT + text)):
    if len(held) + len(places[text]) <= count:
      held.update(places[text])
  return held


def sample_balanced(labels: Sequence[str], count: int) -> list[int]:
  """So many places of each label, in ascending order, drawn as paper 2 draws them; 0 takes all.

  Python's `random.sample` of seed 42, labels in the order in which they first appear.

  Raises:
    InputError: a label has fewer examples.
  """
  return (
    sorted(place for drawn in _draw(labels, count) for place in drawn)
    if count
    else list(range(len(labels)))
  )


def sample_balanced_splits(
  texts: Sequence[str], labels: Sequence[str], first: int, second: int
) -> tuple[list[int], list[int]]:
  """Two balanced samples of the same examples that share no text: `first` of each label, and
  `second` of each.

  Drawn together as `balanced` draws. What is in the second stands nowhere else among the examples:
  a sentence that states two relations is for training.

  Raises:
    InputError: a label has fewer examples than both ask for, or too few whose text is its own.
  """
  counts, taken, reported = collections.Counter(texts), [], []
  for drawn in _draw(labels, first + second):
    alone = [place for place in drawn if counts[texts[place]] == 1][:second]
    if len(alone) < second:
      raise InputError(
        f'{second:,} examples of {labels[drawn[0]]!r} that training does not show',
        f'{len(alone):,} whose text stands nowhere else',
        'ask for fewer, or give a file of their own',
      )
    reported += alone
    taken += set(drawn).difference(alone)
  return sorted(taken), sorted(reported)


def _draw(labels: Sequence[str], count: int) -> list[list[int]]:
  """So many places of each label, in the order drawn."""
  generator, places = random.Random(_SEED), collections.defaultdict(list)
  for place, label in enumerate(labels):
    places[label].append(place)
  for label, found in places.items():
    if len(found) < count:
      raise InputError(
        f'{count:,} examples of each label',
        f'{len(found):,} of {label!r}',
        'lower task.per_label and task.eval_per_label, or give more examples',
      )
  return [generator.sample(found, count) for found in places.values()]


def _digest(text: str) -> bytes:
  return hashlib.sha256(text.encode()).digest()


TASK_SPLITS = ('train', 'validation', 'test')
TABLE_FORMATS = (
  *(
    form + packing
    for form in ('.jsonl', '.csv', '.tsv', '.json')
    for packing in ('', '.gz', '.xz', '.zst')
  ),
  '.parquet',
)
MICROWORLD = {'train': 4000, 'validation': 1000, 'test': 1000}


class MissingSplit(InputError):
  """The place has no such split; it may have others."""


def name_location(config: TaskConfig) -> dict[str, str]:
  """The files that a recipe names, by split."""
  paths = (config.train, config.validation, config.test)
  return {split: path for split, path in zip(TASK_SPLITS, paths, strict=True) if path}


def resolve_shared(config: TaskConfig) -> bool:
  """Must the training file also give the split that is reported?"""
  return (
    bool(config.train) and config.split in TASK_SPLITS and config.split not in name_location(config)
  )


def read_rows(task: Task, config: TaskConfig, split: str) -> Iterator[dict[str, Any]]:
  """The rows of a split, in the order of their source.

  Raises:
    InputError: no place is given, the place has no such split (`NoSplit`) or cannot be read.
  """
  if task.predicted_by and split == 'train':
    raise MissingSplit(
      f'training examples of {task.name}',
      'it has a test split alone',
      f'fine-tune on {task.predicted_by}, whose models predict it',
    )
  if config.data_dir:
    return _tfds(task, config, split)
  if config.folder:
    return _table(_in_folder(epath.Path(config.folder).expanduser(), split), config)
  if files := name_location(config):
    if split not in TASK_SPLITS:
      raise InputError(f'the split {split!r}', 'no such split', suggest_name(split, TASK_SPLITS))
    if split not in files:
      raise MissingSplit(
        f'the {split} split of {task.name}',
        f'no file; given are {", ".join(files.values())}',
        f'give task.{split}',
      )
    return _table(epath.Path(files[split]).expanduser(), config)
  if task.microworld:
    return iter(
      microworld.generate_examples(
        task.microworld, split, 0, MICROWORLD[split] if split in MICROWORLD else 0
      )
    )
  places = (
    f'task.data_dir, where TFDS prepared {task.tfds}, or task.folder'
    if task.tfds
    else 'task.folder'
  )
  raise InputError(
    f'examples of {task.name}',
    'no place to read them from',
    f'give {places}, or files: task.train, task.validation, task.test',
  )


def _tfds(task: Task, config: TaskConfig, split: str) -> Iterator[dict[str, Any]]:
  if not task.tfds:
    raise InputError(
      f'{task.name} from task.data_dir', 'TFDS does not have this task', 'give task.folder instead'
    )
  try:
    return documents.read_tfds_rows(task.tfds, split, config.data_dir)
  except (
    InputError
  ) as error:  # opening failed; a fault inside the split appears later and stays what it is
    try:
      tfds.find_dataset(task.tfds, config.data_dir)
    except InputError:
      files = ', '.join(
        ('train', *(f'validation_{part}' for part in task.parts)) if task.parts else TASK_SPLITS[:2]
      )
      raise MissingSplit(
        f'{task.tfds} in task.data_dir={config.data_dir}',
        f'TFDS has not prepared it in {config.data_dir}',
        f"where there is a network: tfds.builder('{task.tfds}', data_dir=...)"
        f".download_and_prepare(file_format='array_record'); or give task.folder, with the files {files}",
      ) from None
    raise MissingSplit(error.asked, error.found, error.remedy) from None


def _table(path: epath.Path, config: TaskConfig) -> Iterator[dict[str, Any]]:
  if is_fewrel_file(path):
    return read_fewrel_rows(path, config.markers)
  return documents.read_table_rows(str(path), errors='strict')


def _in_folder(folder: epath.Path, split: str) -> epath.Path:
  """The one file of a split."""
  if not folder.is_dir():
    raise InputError(f'examples in {folder}', 'no such folder', 'check task.folder')
  found = [folder / (split + form) for form in TABLE_FORMATS if (folder / (split + form)).exists()]
  if len(found) > 1:
    raise InputError(
      f'the file of the {split} split',
      f'{" and ".join(path.name for path in found)} in {folder}',
      'leave one of them',
    )
  if not found:
    there = ', '.join(sorted(path.name for path in folder.iterdir())[:10]) or 'nothing'
    raise MissingSplit(
      f'{split}.jsonl, .csv, .tsv (each also .gz, .xz, .zst) or .parquet in {folder}',
      f'there: {there}',
      'name the file after the split, or give another task.folder',
    )
  return found[0]
