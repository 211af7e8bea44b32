"""What one task gives to train on and to be judged by: its splits as rows, and the pieces they use.
"""

import dataclasses
import typing
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from minilm_jax.core import progress
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer
from minilm_jax.data.tokenizer import BEGIN_ID, END_ID, Tokenizer
from minilm_jax.tasks import examples, loading
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
from minilm_jax.tasks.task import TASKS, VALIDATION_PART, Task

# Examples as rows of token ids: `<s> A </s>` or `<s> A </s></s> B </s>` (paper 1, fine-tuning; BERT
# has one between).
_BUCKET_STEP = 16  # lengths are rounded up to a multiple of this, so that few shapes are compiled
# of the examples, that each of the lengths holds: few pads for sorted batches of 32
_BUCKET_SHARES = (0.4, 0.7, 0.95, 1.0)


@typing.no_type_check  # JAX puts shapes, stacks and tracers of its own into the fields of a pytree
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TaskRows:
  """Encoded examples: `tokens [N L]`, how many are no pads, and their `labels [N]`, class indices
  or numbers.
  """

  tokens: Int32[Array, 'N L']
  lengths: Int32[Array, 'N']
  labels: Int32[Array, 'N'] | Float[Array, 'N']


def encode_examples(
  examples: Examples, tokenizer: Tokenizer, longest: int
) -> tuple[list[list[int]], int]:
  """Ids of each example with the special ones, and how many examples lost their end.

  Text is in the case of the tokenizer. What is longer than `longest` loses tokens from the end of
  its longer half.
  """
  sides = [side for side in (examples.first, examples.second) if side]
  halves = [tokenizer.encode([tokenizer.fold(text) for text in side]) for side in sides]
  found, shortened = [], 0
  for parts in zip(*halves, strict=True):
    parts = [list(part) for part in parts]
    room = longest - (2 if len(parts) == 1 else 2 + tokenizer.between)
    shortened += sum(map(len, parts)) > room
    while sum(map(len, parts)) > room:
      max(parts, key=len).pop()
    ids = [BEGIN_ID, *parts[0], END_ID]
    if len(parts) == 2:
      ids += [*[END_ID] * (tokenizer.between - 1), *parts[1], END_ID]
    found.append(ids)
  return found, shortened


def bucket_length(sequences: list[list[int]], longest: int) -> int:
  """The length that holds all of them: a multiple of 16, at most `longest`."""
  return min(longest, _rounded(max(map(len, sequences))))


def row_lengths(rows: TaskRows) -> tuple[int, ...]:
  """The few lengths that batches of these rows are cut to: multiples of 16, the last one holds
  every row.

  >>> one = TaskRows(np.zeros((4, 48), np.int32), np.array([9, 10, 12, 40], np.int32), np.zeros(4, np.int32))
  >>> row_lengths(one)
  (16, 48)
  """
  whole = rows.tokens.shape[1]
  wanted = np.quantile(np.asarray(rows.lengths), _BUCKET_SHARES, method='higher')
  return tuple(sorted({min(whole, _rounded(int(length))) for length in wanted[:-1]} | {whole}))


def _rounded(length: int) -> int:
  return -(-length // _BUCKET_STEP) * _BUCKET_STEP


def build_task_rows(sequences: list[list[int]], labels: np.ndarray, length: int) -> TaskRows:
  """Sequences, padded to `length`, on the host."""
  tokens = np.full((len(sequences), length), tokenizer.PAD_ID, np.int32)
  for row, ids in zip(tokens, sequences, strict=True):
    row[: len(ids)] = ids
  return TaskRows(tokens, np.array([len(ids) for ids in sequences], np.int32), labels)


def used_token_ids(splits: Sequence[TaskRows]) -> Int[np.ndarray, 'U']:
  """The pieces that these rows hold, and the special ones, which keep their numbers: in ascending
  order.
  """
  return np.unique(
    np.concatenate(
      [np.arange(len(tokenizer.SPECIAL_TOKENS)), *(rows.tokens.ravel() for rows in splits)]
    )
  )


def narrow_ids(rows: TaskRows, used: Int[np.ndarray, 'U']) -> TaskRows:
  """The rows with each piece numbered by its place among those used."""
  return dataclasses.replace(rows, tokens=np.searchsorted(used, rows.tokens).astype(np.int32))


def iter_batches(
  parts: Sequence[TaskRows], size: int
) -> tuple[Int32[np.ndarray, 'M B L'], list[Int[np.ndarray, 'N']]]:
  """Batches of tokens in rows of nearly one length, and where the rows of each part are; the last
  row fills up.
  """
  tokens, lengths = (
    np.concatenate(arrays) for arrays in zip(*((part.tokens, part.lengths) for part in parts))
  )
  order = np.argsort(lengths, kind='stable')
  count = -(-len(order) // size)
  filled = np.pad(order, (0, count * size - len(order)), mode='edge')
  place = np.empty_like(order)
  place[order] = np.arange(len(order))
  ends = np.cumsum([len(part.lengths) for part in parts])
  return tokens[filled].reshape(count, size, -1), np.split(place, ends[:-1])


TRAIN_SPLIT = 'train'


@dataclasses.dataclass(frozen=True)
class TaskData:
  """A task as a model reads it.

  Attributes:
    task: with its labels.
    rows: of 'train', of 'held_out' where there is such a part, and of every split that outputs are
      wanted of. Pieces are numbered by their place in `used`.
    reported: the splits that are scored; the first is the one that headlines stand on.
    unlabelled: the splits that only predictions are wanted of: by split, the task that its examples
      belong to.
    used: the pieces that the rows hold.
    lengths: that batches are cut to.
    numbers: of the examples of each unlabelled split in the official file.
    truncated: examples that lost their end.
    digests: a hash of the texts and labels of each reported split, by which outputs of several runs
      are told to belong together.
  """

  task: Task
  rows: dict[str, TaskRows]
  reported: tuple[str, ...]
  unlabelled: dict[str, Task]
  used: Int[np.ndarray, 'U']
  lengths: tuple[int, ...]
  numbers: dict[str, tuple[int, ...]]
  truncated: int
  digests: dict[str, str]


def prepare_task_data(
  config: FinetuneConfig,
  longest: int,
  tokenizer: Tokenizer,
  whole: bool = False,
  every: bool = False,
) -> TaskData:
  """Reads the splits of the recipe's task and encodes them, at most `longest` tokens a row.

  Args:
    config: the recipe.
    longest: row that the model reads.
    tokenizer: of the model.
    whole: must all rows be as long as that? So it is where pads are part of what the model makes of
      a row.
    every: keep the numbers of all pieces? So it is where an encoder may read them otherwise than
      from its table.

  Raises:
    InputError: a split is missing, empty or without labels, or has labels that the training split
      does not show.
  """
  task = complete_task(config.task)
  train = check_labelled(read_examples(task, config.task, TRAIN_SPLIT), f'training on {task.name}')
  splits = {TRAIN_SPLIT: train}
  if config.validation_fraction:
    splits[TRAIN_SPLIT], splits[VALIDATION_PART] = hold_out_examples(
      train, config.validation_fraction
    )
  reported = available_splits(task, config.task.split)
  for split in reported:
    purpose = f'scores on the {split} split of {task.name}'
    splits[split] = check_labelled(read_examples(task, config.task, split), purpose)
  check_task(task, *splits.values())
  unlabelled = (
    _unlabelled(task, config, reported) if config.predictions and task.submission_name else {}
  )
  splits |= {split: examples for split, (_, examples) in unlabelled.items()}
  cut = min(longest, config.length)
  encoded = {name: encode_examples(examples, tokenizer, cut) for name, examples in splits.items()}
  # a weight a position, pads included, wants every position there; other heads are as well served
  # by shorter rows
  whole = whole or config.head.pooling == 'positions'
  length = (
    longest
    if whole
    else bucket_length([ids for found, _ in encoded.values() for ids in found], longest)
  )
  rows = {
    name: build_task_rows(sequences, splits[name].labels, length)
    for name, (sequences, _) in encoded.items()
  }
  used = np.arange(tokenizer.size) if every else used_token_ids(tuple(rows.values()))
  truncated = sum(shortened for _, shortened in encoded.values())
  if truncated:
    progress.log(
      f'{task.name}: {truncated:,} examples are longer than {cut} tokens and lose their end'
    )
  return TaskData(
    task,
    {name: narrow_ids(part, used) for name, part in rows.items()},
    reported,
    {split: of for split, (of, _) in unlabelled.items()},
    used,
    (length,) if whole else row_lengths(rows[TRAIN_SPLIT]),
    {split: examples.numbers for split, (_, examples) in unlabelled.items()},
    truncated,
    {split: hash_examples(splits[split]) for split in reported},
  )


def _unlabelled(
  task: Task, config: FinetuneConfig, reported: tuple[str, ...]
) -> dict[str, tuple[Task, Examples]]:
  """The examples that the GLUE server wants predictions of: the task's test splits, and sets that
  its models serve.
  """
  if config.task.filtered:
    progress.log(
      f'{task.name}: no files for the GLUE server, which wants every example, not those of a word list'
    )
    return {}
  served = [one for one in TASKS.values() if one.predicted_by == task.name]
  found = {}
  # files that are named are of one task
  for other in (task, *served) if not loading.name_location(config.task) else (task,):
    own = dataclasses.replace(config.task, name=other.name)
    for split in examples.available_splits(other, 'test'):
      if other is task and split in reported:  # it has labels
        continue
      try:
        found[split if other is task else f'{other.name} {split}'] = (
          other,
          examples.read_examples(other, own, split),
        )
      except InputError as error:
        progress.log(f'no predictions of {other.name} {split}: {error.found}')
  return found
