"""Loads rows of a task from TFDS, a folder, named files or the microworld; selects some of them.

A row is a dict from column to value, as its source has it; `examples` interprets it. Rows of the
microworld are of seed 0, in the numbers of `MICROWORLD`.
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

TASK_SPLITS = ('train', 'validation', 'test')
TABLE_FORMATS = (
  *(
    form + packing
    for form in ('.jsonl', '.csv', '.tsv', '.json')
    for packing in ('', '.gz', '.xz', '.zst')
  ),
  '.parquet',
)
MICROWORLD = {'train': 4000, 'validation': 1000, 'test': 1000}  # Examples by split.
# Marks of entities in FewRel. They are lower-case letters, because brackets and digits may be
# unknown to a tokenizer of a small language. No word is written so, and the four stay different
# where a tokenizer splits them into letters.
HEAD_MARKER, TAIL_MARKER = ('qj', 'jq'), ('qz', 'zq')
_SAMPLE_SEED = 42  # Of paper 2.
_VALIDATION_SALT = 'held out\0'  # Separates the validation part from the examples of a small limit.


class MissingSplit(InputError):
  """The source has no such split; it may have others."""


def name_location(config: TaskConfig) -> dict[str, str]:
  """Returns the files that a recipe names, by split."""
  paths = (config.train, config.validation, config.test)
  return {split: path for split, path in zip(TASK_SPLITS, paths, strict=True) if path}


def shares_training_file(config: TaskConfig) -> bool:
  """Returns whether the training file also gives the split that is reported."""
  return (
    bool(config.train) and config.split in TASK_SPLITS and config.split not in name_location(config)
  )


def read_rows(task: Task, config: TaskConfig, split: str) -> Iterator[dict[str, Any]]:
  """Returns the rows of a split, in the order of their source.

  Raises:
    MissingSplit: the source has no such split.
    InputError: no source is given, or it cannot be read.
  """
  if task.predicted_by and split == 'train':
    raise MissingSplit(
      f'training examples of {task.name}',
      'it has a test split alone',
      f'fine-tune on {task.predicted_by}, whose models predict it',
    )
  if config.data_dir:
    return _read_tfds(task, config, split)
  if config.folder:
    return _read_table(_find_file(epath.Path(config.folder).expanduser(), split), config)
  if paths := name_location(config):
    if split not in TASK_SPLITS:
      raise InputError(f'the split {split!r}', 'no such split', suggest_name(split, TASK_SPLITS))
    if split not in paths:
      raise MissingSplit(
        f'the {split} split of {task.name}',
        f'no file; given are {", ".join(paths.values())}',
        f'give task.{split}',
      )
    return _read_table(epath.Path(paths[split]).expanduser(), config)
  if task.microworld:
    count = MICROWORLD[split] if split in MICROWORLD else 0
    return iter(microworld.generate_examples(task.microworld, split, 0, count))
  sources = 'task.folder'
  if task.tfds:
    sources = f'task.data_dir, where TFDS prepared {task.tfds}, or task.folder'
  raise InputError(
    f'examples of {task.name}',
    'no place to read them from',
    f'give {sources}, or files: task.train, task.validation, task.test',
  )


def _read_tfds(task: Task, config: TaskConfig, split: str) -> Iterator[dict[str, Any]]:
  if not task.tfds:
    raise InputError(
      f'{task.name} from task.data_dir', 'TFDS does not have this task', 'give task.folder instead'
    )
  try:
    return documents.read_tfds_rows(task.tfds, split, config.data_dir)
  except InputError as error:  # Opening failed; an error inside the split appears later.
    try:
      tfds.find_dataset(task.tfds, config.data_dir)
    except InputError:
      parts = ('train', *(f'validation_{part}' for part in task.parts))
      files = ', '.join(parts if task.parts else TASK_SPLITS[:2])
      raise MissingSplit(
        f'{task.tfds} in task.data_dir={config.data_dir}',
        f'TFDS has not prepared it in {config.data_dir}',
        f"where there is a network: tfds.builder('{task.tfds}', data_dir=...)"
        ".download_and_prepare(file_format='array_record'); or give task.folder, with the files "
        f'{files}',
      ) from None
    raise MissingSplit(error.asked, error.found, error.remedy) from None


def _read_table(path: epath.Path, config: TaskConfig) -> Iterator[dict[str, Any]]:
  if is_fewrel_file(path):
    return read_fewrel_rows(path, config.markers)
  return documents.read_table_rows(str(path), errors='strict')


def _find_file(folder: epath.Path, split: str) -> epath.Path:
  """Returns the single file of a split."""
  if not folder.is_dir():
    raise InputError(f'examples in {folder}', 'no such folder', 'check task.folder')
  paths = [path for form in TABLE_FORMATS if (path := folder / (split + form)).exists()]
  if len(paths) > 1:
    raise InputError(
      f'the file of the {split} split',
      f'{" and ".join(path.name for path in paths)} in {folder}',
      'leave one of them',
    )
  if not paths:
    names = ', '.join(sorted(path.name for path in folder.iterdir())[:10]) or 'nothing'
    raise MissingSplit(
      f'{split}.jsonl, .csv, .tsv (each also .gz, .xz, .zst) or .parquet in {folder}',
      f'there: {names}',
      'name the file after the split, or give another task.folder',
    )
  return paths[0]


def is_fewrel_file(path: epath.PathLike) -> bool:
  """Returns whether a name ends as those of FewRel's files.

  >>> is_fewrel_file('val_wiki.json.xz'), is_fewrel_file('train.jsonl')
  (True, False)
  """
  stem, _, suffix = str(path).lower().rpartition('.')
  return suffix == 'json' or suffix in readers.COMPRESSIONS and stem.endswith('.json')


def read_fewrel_rows(path: epath.PathLike, markers: bool) -> Iterator[dict[str, Any]]:
  """Yields a row for each sentence: its tokens joined as `text`, its relation as `label`.

  FewRel's files have sentences by the relation between a head and a tail entity.

  Args:
    path: the file.
    markers: adds `marked`, the text with `qj`, `jq` around every mention of the head, and `qz`,
      `zq` around those of the tail.

  Raises:
    InputError: the file cannot be read, is too large or has another form; for markers, a mention
      lies outside its sentence.
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
      yield row | {'marked': _mark_entities(tokens, item, where)} if markers else row


def _mark_entities(tokens: list[str], item: dict[str, Any], where: str) -> str:
  before, after = [[] for _ in tokens], [[] for _ in tokens]
  for entity, (start, end) in (('h', HEAD_MARKER), ('t', TAIL_MARKER)):
    for first, last in _find_mentions(item, entity, len(tokens), where):
      before[first].append(start)
      after[last].insert(0, end)
  parts = ([*starts, token, *ends] for starts, token, ends in zip(before, tokens, after))
  return ' '.join(itertools.chain.from_iterable(parts))


def _find_mentions(
  item: dict[str, Any], entity: str, length: int, where: str
) -> list[tuple[int, int]]:
  """Returns the first and the last token of each mention."""
  fields = item[entity] if entity in item else None
  mentions = fields[2] if isinstance(fields, list) and len(fields) == 3 else []
  mentions = mentions if isinstance(mentions, list) else []
  for mention in mentions:
    if (
      not isinstance(mention, list)
      or not mention
      or not all(type(i) is int and 0 <= i < length for i in mention)
    ):
      raise _malformed(where, f'{mention!r} as a mention among {length} tokens')
  if not mentions:
    raise _malformed(where, f'no mention in {entity!r}')
  return [(min(mention), max(mention)) for mention in mentions]


def _malformed(where: str, found: str) -> InputError:
  return InputError(
    f'relations in {where}',
    found,
    'give FewRel\'s form: {relation: [{"tokens": [...], "h": [name, id, [[index, ...]]], "t": ...}]}',
  )


def first_by_hash(texts: Sequence[str], count: int) -> list[int]:
  """Returns `count` indices by hash of the text: a part of those of a larger count."""
  return sorted(range(len(texts)), key=lambda i: (_digest(texts[i]), i))[:count]


def split_validation(texts: Sequence[str], share: float) -> set[int]:
  """Returns the first round(share n) indices by another hash of the text.

  Equal texts are taken together, or not at all where they do not fit.

  >>> split_validation(['a', 'b', 'a', 'c', 'a'], 0.4) & {0, 2, 4}
  set()
  """
  count, indices = round(share * len(texts)), collections.defaultdict(list)
  for index, text in enumerate(texts):
    indices[text].append(index)
  validation: set[int] = set()
  for text in sorted(indices, key=lambda text: _digest(_VALIDATION_SALT + text)):
    if len(validation) + len(indices[text]) <= count:
      validation.update(indices[text])
  return validation


def sample_balanced(labels: Sequence[str], count: int) -> list[int]:
  """Returns `count` indices of each label, ascending, drawn as in paper 2; 0 takes all.

  Python's `random.sample` draws with seed 42, labels in the order of their first example.

  Raises:
    InputError: a label has fewer examples.
  """
  if not count:
    return list(range(len(labels)))
  return sorted(itertools.chain.from_iterable(_draw(labels, count)))


def sample_balanced_splits(
  texts: Sequence[str], labels: Sequence[str], train_count: int, eval_count: int
) -> tuple[list[int], list[int]]:
  """Returns two balanced samples of the same examples that share no text.

  They are drawn together as in `sample_balanced`. A text that occurs twice, such as a sentence with
  two relations, is for training.

  Args:
    texts: of the examples.
    labels: of the examples.
    train_count: examples of each label in the first sample.
    eval_count: examples of each label in the second sample.

  Raises:
    InputError: a label has too few examples, or too few with a unique text.
  """
  counts, train, evaluation = collections.Counter(texts), [], []
  for drawn in _draw(labels, train_count + eval_count):
    unique = [index for index in drawn if counts[texts[index]] == 1][:eval_count]
    if len(unique) < eval_count:
      raise InputError(
        f'{eval_count:,} examples of {labels[drawn[0]]!r} that training does not show',
        f'{len(unique):,} whose text stands nowhere else',
        'ask for fewer, or give a file of their own',
      )
    evaluation += unique
    train += set(drawn).difference(unique)
  return sorted(train), sorted(evaluation)


def _draw(labels: Sequence[str], count: int) -> list[list[int]]:
  """Returns `count` indices of each label, in the order drawn."""
  generator, indices = random.Random(_SAMPLE_SEED), collections.defaultdict(list)
  for index, label in enumerate(labels):
    indices[label].append(index)
  for label, label_indices in indices.items():
    if len(label_indices) < count:
      raise InputError(
        f'{count:,} examples of each label',
        f'{len(label_indices):,} of {label!r}',
        'lower task.per_label and task.eval_per_label, or give more examples',
      )
  return [generator.sample(label_indices, count) for label_indices in indices.values()]


def _digest(text: str) -> bytes:
  return hashlib.sha256(text.encode()).digest()
