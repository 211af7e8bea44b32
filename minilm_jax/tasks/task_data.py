"""Encodes the splits of a task as rows of token ids.

A row is `<s> A </s>` or `<s> A </s></s> B </s>` (paper 1, fine-tuning; BERT has one `</s>` between).
"""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Int32

from minilm_jax.core import progress
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data.tokenizer import BEGIN_ID, END_ID, PAD_ID, SPECIAL_TOKENS, Tokenizer
from minilm_jax.tasks import loading
from minilm_jax.tasks.examples import (
  Examples,
  available_splits,
  check_labelled,
  check_task,
  complete_task,
  hash_examples,
  hold_out_examples,
  read_examples,
)
from minilm_jax.tasks.task import TASKS, Task

TRAIN_SPLIT = 'train'
VALIDATION_PART = 'held_out'  # Examples held out of the training split, in place of a split.
_LENGTH_MULTIPLE = 16  # Row lengths are multiples of it, so that few shapes are compiled.
# Shares of the examples that the lengths of batches hold: few pads in sorted batches of 32.
_LENGTH_QUANTILES = (0.4, 0.7, 0.95)


@typing.no_type_check  # JAX stores shapes, stacks and tracers in the fields of a pytree.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TaskRows:
  """Encoded examples `[N L]`, their lengths without pads and their labels `[N]`.

  Labels are class indices or numbers. Arrays are of NumPy on the host and of JAX in programs.
  """

  tokens: Int32[Any, 'N L']
  lengths: Int32[Any, 'N']
  labels: Int32[Any, 'N'] | Float[Any, 'N']


@dataclasses.dataclass(frozen=True)
class TaskData:
  """A task as a model reads it.

  Attributes:
    task: with its labels.
    rows: of 'train', of 'held_out' where there is such a part, and of every split to predict.
      Token ids are positions in `used_ids`.
    reported: the splits that are scored; headlines are of the first.
    unlabelled: the splits that are only predicted, with the task of their examples.
    used_ids: token ids in the rows, ascending.
    lengths: lengths of batches.
    numbers: of the examples of each unlabelled split in the official file.
    truncated: number of examples that lost their end.
    digests: hash of the texts and labels of each reported split, to match outputs of several runs.
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
  """Returns the ids of each example with special ones, and the number of truncated examples.

  Text is in the case of the tokenizer. A longer example loses tokens from the end of its longer
  half.
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


def bucket_length(sequences: Sequence[list[int]], max_length: int) -> int:
  """Returns the shortest length that holds all sequences: a multiple of 16, at most `max_length`."""
  return min(max_length, _round_up(max(map(len, sequences))))


def row_lengths(rows: TaskRows) -> tuple[int, ...]:
  """Returns the few lengths of batches of these rows: multiples of 16, the last holds every row.

  >>> rows = TaskRows(np.zeros((4, 48), np.int32), np.array([9, 10, 12, 40]), np.zeros(4, np.int32))
  >>> row_lengths(rows)
  (16, 48)
  """
  full_length = rows.tokens.shape[1]
  quantiles = np.quantile(np.asarray(rows.lengths), _LENGTH_QUANTILES, method='higher')
  lengths = {min(full_length, _round_up(int(length))) for length in quantiles}
  return tuple(sorted(lengths | {full_length}))


def _round_up(length: int) -> int:
  return -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE


def build_task_rows(sequences: Sequence[list[int]], labels: np.ndarray, length: int) -> TaskRows:
  """Returns sequences padded to `length`, on the host."""
  tokens = np.full((len(sequences), length), PAD_ID, np.int32)
  for row, ids in zip(tokens, sequences, strict=True):
    row[: len(ids)] = ids
  return TaskRows(tokens, np.array([len(ids) for ids in sequences], np.int32), labels)


def used_token_ids(splits: Sequence[TaskRows]) -> Int[np.ndarray, 'U']:
  """Returns the ids in these rows and the special ones, which keep their numbers, ascending."""
  return np.unique(
    np.concatenate([np.arange(len(SPECIAL_TOKENS)), *(rows.tokens.ravel() for rows in splits)])
  )


def narrow_ids(rows: TaskRows, used_ids: Int[np.ndarray, 'U']) -> TaskRows:
  """Replaces each token id by its position in `used_ids`."""
  return dataclasses.replace(rows, tokens=np.searchsorted(used_ids, rows.tokens).astype(np.int32))


def iter_batches(
  splits: Sequence[TaskRows], size: int
) -> tuple[Int32[np.ndarray, 'M B L'], list[Int[np.ndarray, 'N']]]:
  """Returns batches of rows sorted by length, and the places of each split's rows in them.

  The last row fills the last batch up.
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


def prepare_task_data(
  config: FinetuneConfig,
  max_length: int,
  tokenizer: Tokenizer,
  full_length: bool = False,
  all_ids: bool = False,
) -> TaskData:
  """Reads the splits of the recipe's task and encodes them, at most `max_length` tokens a row.

  Args:
    config: the recipe.
    max_length: longest row that the model reads.
    tokenizer: of the model.
    full_length: all rows have `max_length` tokens, for models whose outputs depend on pads.
    all_ids: keeps all token ids, for encoders that may not read them from a table.

  Raises:
    InputError: a split is missing, empty or without labels, or has labels that the training split
      does not show.
  """
  task = complete_task(config.task)
  reported = available_splits(task, config.task.split)
  splits = _read_splits(config, task, reported)
  unlabelled = (
    _read_unlabelled(task, config, reported) if config.predictions and task.submission_name else {}
  )
  splits |= {split: examples for split, (_, examples) in unlabelled.items()}
  cut = min(max_length, config.length)
  encoded = {name: encode_examples(examples, tokenizer, cut) for name, examples in splits.items()}
  # A head with a weight a position needs every position; for other heads shorter rows suffice.
  full_length = full_length or config.head.pooling == 'positions'
  length = max_length
  if not full_length:
    length = bucket_length([ids for sequences, _ in encoded.values() for ids in sequences], length)
  rows = {
    name: build_task_rows(sequences, splits[name].labels, length)
    for name, (sequences, _) in encoded.items()
  }
  used_ids = np.arange(tokenizer.size) if all_ids else used_token_ids(tuple(rows.values()))
  truncated = sum(count for _, count in encoded.values())
  if truncated:
    progress.log(
      f'{task.name}: {truncated:,} examples are longer than {cut} tokens and lose their end'
    )
  return TaskData(
    task=task,
    rows={name: narrow_ids(split_rows, used_ids) for name, split_rows in rows.items()},
    reported=reported,
    unlabelled={split: owner for split, (owner, _) in unlabelled.items()},
    used_ids=used_ids,
    lengths=(length,) if full_length else row_lengths(rows[TRAIN_SPLIT]),
    numbers={split: examples.numbers for split, (_, examples) in unlabelled.items()},
    truncated=truncated,
    digests={split: hash_examples(splits[split]) for split in reported},
  )


def _read_splits(
  config: FinetuneConfig, task: Task, reported: tuple[str, ...]
) -> dict[str, Examples]:
  """Reads the labelled splits: training, validation part and reported ones."""
  train = check_labelled(read_examples(task, config.task, TRAIN_SPLIT), f'training on {task.name}')
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
  """Reads the examples that the GLUE server wants predictions of.

  These are the test splits of the task and of tasks that its models predict.
  """
  if config.task.filtered:
    progress.log(
      f'{task.name}: no files for the GLUE server, which wants every example, not those of a word '
      'list'
    )
    return {}
  predicted = [other for other in TASKS.values() if other.predicted_by == task.name]
  unlabelled = {}
  # Files in a recipe are those of one task.
  for other in (task,) if loading.name_location(config.task) else (task, *predicted):
    other_config = dataclasses.replace(config.task, name=other.name)
    for split in available_splits(other, 'test'):
      if other is task and split in reported:  # It has labels.
        continue
      name = split if other is task else f'{other.name} {split}'
      try:
        unlabelled[name] = other, read_examples(other, other_config, split)
      except InputError as error:
        progress.log(f'no predictions of {other.name} {split}: {error.found}')
  return unlabelled
