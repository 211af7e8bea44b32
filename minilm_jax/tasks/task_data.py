"""Encodes the splits of a task as rows of token ids.

A row is `<s> A </s>` or `<s> A </s></s> B </s>` (paper 1, fine-tuning). BERT's rows have a single
`</s>` between A and B.
"""

import dataclasses
import typing
from collections.abc import Iterable, Sequence, Sized
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Int32

from minilm_jax.core import progress
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.data.tokenizer import BEGIN_ID, END_ID, PAD_ID, SPECIAL_TOKENS, Tokenizer
from minilm_jax.tasks import loading
from minilm_jax.tasks.examples import (
  Examples,
  check_labelled,
  check_task,
  complete_task,
  hash_examples,
  hold_out_examples,
  list_reported_splits,
  list_splits,
  read_examples,
)
from minilm_jax.tasks.task import TASKS, Task

TRAIN_SPLIT = 'train'
VALIDATION_PART = 'held_out'  # name of the validation part of the training split
_LENGTH_MULTIPLE = 16  # of row lengths, so that few shapes are compiled
_LENGTH_QUANTILES = (0.4, 0.7, 0.95)  # of batch lengths: few pads in sorted batches of 32


@typing.no_type_check  # JAX stores shapes, stacks and tracers in the fields of a pytree.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TaskRows:
  """Stores encoded examples; arrays are NumPy's on the host and JAX's in programs.

  Attributes:
    tokens: Token ids `[N L]`.
    lengths: Numbers of tokens without pads `[N]`.
    labels: Class indices or numbers `[N]`.
  """

  tokens: Int32[Any, 'N L']
  lengths: Int32[Any, 'N']
  labels: Int32[Any, 'N'] | Float[Any, 'N']


@dataclasses.dataclass(frozen=True)
class TaskData:
  """Stores the encoded splits of a task.

  Attributes:
    task: Task with its labels.
    rows: Rows of 'train', of 'held_out' if validation_fraction is set, and of all splits to
      predict. Token ids are indices into `used_ids`.
    reported: Names of the splits that are scored; the headline is of the first.
    unlabelled: Tasks of the splits that are predicted without scores, by name.
    used_ids: Token ids in the rows, ascending.
    lengths: Lengths of batches.
    numbers: Example numbers in the official file of each unlabelled split.
    truncated: Number of truncated examples.
    digests: Checksums of the texts and labels of each split, to match several runs.
  """

  task: Task
  rows: dict[str, TaskRows]
  reported: tuple[str, ...]
  unlabelled: dict[str, Task]
  used_ids: Int[np.ndarray, 'U']
  lengths: tuple[int, ...]
  numbers: dict[str, tuple[int, ...]]
  truncated: int
  digests: dict[str, str]


def encode_examples(
  examples: Examples, tokenizer: Tokenizer, max_length: int
) -> tuple[list[list[int]], int]:
  """Returns the ids of each example with special tokens, and the number of truncated examples.

  The tokenizer folds the case. Truncation removes tokens from the end of the longer text.
  """
  texts = [side for side in (examples.first, examples.second) if side]
  halves = [tokenizer.encode([tokenizer.fold(text) for text in side]) for side in texts]
  sequences, truncated = [], 0
  for example in zip(*halves, strict=True):
    parts = [list(part) for part in example]
    max_tokens = max_length - (2 if len(parts) == 1 else 2 + tokenizer.between)
    truncated += sum(map(len, parts)) > max_tokens
    while sum(map(len, parts)) > max_tokens:
      max(parts, key=len).pop()
    ids = [BEGIN_ID, *parts[0], END_ID]
    if len(parts) == 2:
      ids += [*[END_ID] * (tokenizer.between - 1), *parts[1], END_ID]
    sequences.append(ids)
  return sequences, truncated


def log_truncated(truncated: int, texts: int, max_length: int) -> None:
  """Logs the number of truncated texts or pairs, if any."""
  if truncated:
    progress.log(f'truncated {truncated:,} of {texts:,} texts to {max_length} tokens')


def bucket_length(sequences: Iterable[Sized], max_length: int) -> int:
  """Returns the smallest multiple of 16 that fits all sequences, at most `max_length`."""
  return min(max_length, _round_up(max(map(len, sequences))))


def choose_lengths(rows: TaskRows) -> tuple[int, ...]:
  """Returns up to four lengths of batches of the rows: multiples of 16, then the full length.

  >>> rows = TaskRows(np.zeros((4, 48), np.int32), np.array([9, 10, 12, 40]), np.zeros(4, np.int32))
  >>> choose_lengths(rows)
  (16, 48)
  """
  full_length = rows.tokens.shape[1]
  quantiles = np.quantile(np.asarray(rows.lengths), _LENGTH_QUANTILES, method='higher')
  lengths = {min(full_length, _round_up(int(length))) for length in quantiles}
  return tuple(sorted(lengths | {full_length}))


def _round_up(length: int) -> int:
  return -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE


def pad_sequences(sequences: Sequence[list[int]], length: int) -> Int32[np.ndarray, 'N L']:
  """Returns sequences padded to `length`."""
  tokens = np.full((len(sequences), length), PAD_ID, np.int32)
  for row, ids in zip(tokens, sequences, strict=True):
    row[: len(ids)] = ids
  return tokens


def build_task_rows(sequences: Sequence[list[int]], labels: np.ndarray, length: int) -> TaskRows:
  """Returns sequences padded to `length` on the host."""
  lengths = np.array([len(ids) for ids in sequences], np.int32)
  return TaskRows(pad_sequences(sequences, length), lengths, labels)


def list_used_ids(splits: Sequence[TaskRows]) -> Int[np.ndarray, 'U']:
  """Returns all ids in the rows and all special ids, ascending."""
  return np.unique(
    np.concatenate([np.arange(len(SPECIAL_TOKENS)), *(rows.tokens.ravel() for rows in splits)])
  )


def narrow_ids(rows: TaskRows, used_ids: Int[np.ndarray, 'U']) -> TaskRows:
  """Returns rows with the index into `used_ids` for each token id."""
  return dataclasses.replace(rows, tokens=np.searchsorted(used_ids, rows.tokens).astype(np.int32))


def batch_rows(
  splits: Sequence[TaskRows], size: int
) -> tuple[Int32[np.ndarray, 'M B L'], list[Int[np.ndarray, 'N']]]:
  """Returns batches of rows sorted by length, and the flat indices of each split's rows.

  Copies of the longest row fill the last batch.
  """
  tokens = np.concatenate([rows.tokens for rows in splits])
  lengths = np.concatenate([rows.lengths for rows in splits])
  order = np.argsort(lengths, kind='stable')
  num_batches = -(-len(order) // size)
  padded = np.pad(order, (0, num_batches * size - len(order)), mode='edge')
  places = np.empty_like(order)
  places[order] = np.arange(len(order))
  ends = np.cumsum([len(rows.lengths) for rows in splits])
  return tokens[padded].reshape(num_batches, size, -1), np.split(places, ends[:-1])


def batch_sequences(
  sequences: Sequence[list[int]], max_rows: int, length: int
) -> tuple[Int32[np.ndarray, 'M B L'], Int[np.ndarray, 'N']]:
  """Returns padded batches of sequences, and the flat index of each sequence, as `batch_rows`.

  Batches have `max_rows` rows or, for fewer sequences, a power of two, so that few shapes are
  compiled.
  """
  rows = build_task_rows(sequences, np.zeros(len(sequences), np.int32), length)
  tokens, (places,) = batch_rows([rows], min(max_rows, 1 << (len(sequences) - 1).bit_length()))
  return tokens, places


def prepare_task_data(
  config: FinetuneConfig,
  max_length: int,
  tokenizer: Tokenizer,
  full_length: bool = False,
  all_ids: bool = False,
) -> TaskData:
  """Reads and encodes the splits of a task, with at most `max_length` tokens a row.

  Args:
    full_length: Pads all rows to `max_length`, for models with outputs that depend on pads.
    all_ids: Keeps all token ids, for encoders that may not read ids from an embedding table.

  Raises:
    InputError: A split is missing, empty or unlabelled, or has labels that training lacks; or the
      training split is reported.
  """
  task = complete_task(config.task)
  reported = list_reported_splits(task, config.task)
  splits = _read_splits(config, task, reported)
  unlabelled = _read_unlabelled(task, config, reported) if config.predictions else {}
  splits |= {split: examples for split, (_, examples) in unlabelled.items()}
  max_tokens = min(max_length, config.length)
  encoded = {
    name: encode_examples(examples, tokenizer, max_tokens) for name, examples in splits.items()
  }
  # A head with weights for each position needs full rows.
  full_length = full_length or config.head.pooling == 'positions'
  length = max_length
  if not full_length:
    length = bucket_length([ids for sequences, _ in encoded.values() for ids in sequences], length)
  rows = {
    name: build_task_rows(sequences, splits[name].labels, length)
    for name, (sequences, _) in encoded.items()
  }
  used_ids = np.arange(tokenizer.size) if all_ids else list_used_ids(tuple(rows.values()))
  truncated = sum(count for _, count in encoded.values())
  if truncated:
    progress.log(f'{task.name}: truncated {truncated:,} examples to {max_tokens} tokens')
  return TaskData(
    task=task,
    rows={name: narrow_ids(split_rows, used_ids) for name, split_rows in rows.items()},
    reported=reported,
    unlabelled={split: split_task for split, (split_task, _) in unlabelled.items()},
    used_ids=used_ids,
    lengths=(length,) if full_length else choose_lengths(rows[TRAIN_SPLIT]),
    numbers={split: examples.numbers for split, (_, examples) in unlabelled.items()},
    truncated=truncated,
    digests={split: hash_examples(examples) for split, examples in splits.items()},
  )


def _read_splits(
  config: FinetuneConfig, task: Task, reported: tuple[str, ...]
) -> dict[str, Examples]:
  """Reads the labelled splits: training, its validation part and the reported splits.

  Raises:
    InputError: A split is invalid.
  """
  train = read_examples(task, config.task, TRAIN_SPLIT)
  splits = {TRAIN_SPLIT: train}
  if config.validation_fraction:
    splits[TRAIN_SPLIT], splits[VALIDATION_PART] = hold_out_examples(
      train, config.validation_fraction
    )
  for split in reported:
    purpose = f'scores on the {split} split of {task.name}'
    splits[split] = check_labelled(read_examples(task, config.task, split), purpose)
  check_task(task, *splits.values())
  return splits


def _read_unlabelled(
  task: Task, config: FinetuneConfig, reported: tuple[str, ...]
) -> dict[str, tuple[Task, Examples]]:
  """Reads the unlabelled examples for the GLUE server, by split.

  The examples are the test splits of the task and of tasks that its models predict. The log names
  missing splits.

  Raises:
    InputError: A split is invalid.
  """
  if not task.submission_name:
    if loading.has_split(config.task, 'test') and 'test' not in reported:
      progress.log(
        f'{task.name}: no predictions of the test split, because GLUE has no such task; minilm '
        'predict --file reads the texts of a table'
      )
    return {}
  if config.task.filtered:
    progress.log(
      f'{task.name}: no files for the GLUE server, because it requires all test examples and the '
      'recipe sets filtered=True'
    )
    return {}
  predicted = [other for other in TASKS.values() if other.predicted_by == task.name]
  unlabelled = {}
  # The files of a recipe belong to one task.
  for other in (task,) if loading.list_named_files(config.task) else (task, *predicted):
    other_config = dataclasses.replace(config.task, name=other.name)
    for split in list_splits(other, 'test'):
      if other is task and split in reported:  # a labelled split
        continue
      name = split if other is task else f'{other.name} {split}'
      try:
        unlabelled[name] = other, read_examples(other, other_config, split)
      except loading.MissingSplit as error:
        progress.log(f'no predictions of {other.name} {split}: {error.found}')
  return unlabelled
