"""Examples as rows of token ids: `<s> A </s>` or `<s> A </s></s> B </s>` (paper 1, fine-tuning; BERT has one between).

Two things make rows cheap without changing what a model says of them: they are no longer than their batch needs, and
they count pieces by their place in the list of those that the task uses at all, so that only that part of an embedding
table has to be trained. A piece that no example holds has no gradient, and no example ever reads its vector.
"""

import dataclasses
import typing
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from minilm_jax.language import tokenizer as pieces
from minilm_jax.language.tokenizer import Tokenizer
from minilm_jax.tasks.sources import Examples

_STEP = 16  # lengths are rounded up to a multiple of this, so that few shapes are compiled
_SHARES = (0.4, 0.7, 0.95, 1.0)  # of the examples, that each of the lengths holds: few pads for sorted batches of 32


@typing.no_type_check  # JAX puts shapes, stacks and tracers of its own into the fields of a pytree
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TaskRows:
  """Encoded examples: `tokens [N L]`, how many are no pads, and their `labels [N]`, class indices or numbers."""

  tokens: Int32[Array, 'N L']
  lengths: Int32[Array, 'N']
  labels: Int32[Array, 'N'] | Float[Array, 'N']


def encode(examples: Examples, tokenizer: Tokenizer, longest: int) -> tuple[list[list[int]], int]:
  """Ids of each example with the special ones, and how many examples lost their end.

  Text is in the case of the tokenizer. What is longer than `longest` loses tokens from the end of its longer half.
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
    ids = [pieces.BEGIN, *parts[0], pieces.END]
    if len(parts) == 2:
      ids += [*[pieces.END] * (tokenizer.between - 1), *parts[1], pieces.END]
    found.append(ids)
  return found, shortened


def bucket(sequences: list[list[int]], longest: int) -> int:
  """The length that holds all of them: a multiple of 16, at most `longest`."""
  return min(longest, _rounded(max(map(len, sequences))))


def lengths(rows: TaskRows) -> tuple[int, ...]:
  """The few lengths that batches of these rows are cut to: multiples of 16, the last one holds every row.

  >>> one = TaskRows(np.zeros((4, 48), np.int32), np.array([9, 10, 12, 40], np.int32), np.zeros(4, np.int32))
  >>> lengths(one)
  (16, 48)
  """
  whole = rows.tokens.shape[1]
  wanted = np.quantile(np.asarray(rows.lengths), _SHARES, method='higher')
  return tuple(sorted({min(whole, _rounded(int(length))) for length in wanted[:-1]} | {whole}))


def _rounded(length: int) -> int:
  return -(-length // _STEP) * _STEP


def task_rows(sequences: list[list[int]], labels: np.ndarray, length: int) -> TaskRows:
  """Sequences, padded to `length`, on the host."""
  tokens = np.full((len(sequences), length), pieces.PAD, np.int32)
  for row, ids in zip(tokens, sequences, strict=True):
    row[:len(ids)] = ids
  return TaskRows(tokens, np.array([len(ids) for ids in sequences], np.int32), labels)


def used(splits: Sequence[TaskRows]) -> Int[np.ndarray, 'U']:
  """The pieces that these rows hold, and the special ones, which keep their numbers: in ascending order."""
  return np.unique(np.concatenate([np.arange(len(pieces.SPECIAL)), *(rows.tokens.ravel() for rows in splits)]))


def narrow(rows: TaskRows, used: Int[np.ndarray, 'U']) -> TaskRows:
  """The rows with each piece numbered by its place among those used."""
  return dataclasses.replace(rows, tokens=np.searchsorted(used, rows.tokens).astype(np.int32))


def in_batches(parts: Sequence[TaskRows], size: int) -> tuple[Int32[np.ndarray, 'M B L'], list[Int[np.ndarray, 'N']]]:
  """Batches of tokens in rows of nearly one length, and where the rows of each part are; the last row fills up."""
  tokens, lengths = (np.concatenate(arrays) for arrays in zip(*((part.tokens, part.lengths) for part in parts)))
  order = np.argsort(lengths, kind='stable')
  count = -(-len(order) // size)
  filled = np.pad(order, (0, count * size - len(order)), mode='edge')
  place = np.empty_like(order)
  place[order] = np.arange(len(order))
  ends = np.cumsum([len(part.lengths) for part in parts])
  return tokens[filled].reshape(count, size, -1), np.split(place, ends[:-1])
