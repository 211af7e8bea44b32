"""Counts tokens by context, with probabilities by absolute discounting (Ney, Essen, Kneser, 1994).

    p(t | c) = max(n(c, t) - d, 0) / n(c)  +  d n+(c) / n(c)  p'(t)

The context c is any set of positions around the token t; n+(c) is the number of distinct tokens
seen in c, and p' is the probability in a smaller context. For an unseen context, p is p'. The
discount d is (n1 + 1) / (n1 + 2 n2 + 2), where n1 and n2 combinations were seen once and twice. It
is the leave-one-out estimate n1 / (n1 + 2 n2) of the paper, smoothed to lie between 0 and 1.

A combination of context and token is a 64-bit key. Sorted keys place the tokens of a context next
to one another, and a look-up is a binary search. Memory is about 16 bytes for each distinct
combination, and more while counting.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt64

from minilm_jax.core.corpus_config import BEGIN_ID, END_ID, MASK_ID, PAD_ID
from minilm_jax.core.errors import InputError

UNPREDICTED_IDS = (BEGIN_ID, PAD_ID, END_ID, MASK_ID)  # occur in contexts only
_TOKENS_PER_BLOCK = 1 << 22


@dataclasses.dataclass(frozen=True)
class NgramCounts:
  """Counts of tokens in one kind of context.

  Attributes:
    vocab_size: V; ids are smaller than this.
    keys: context * V + token of each seen combination, ascending.
    shares: max(n(c, t) - d, 0) / n(c) of each combination.
    contexts: Seen contexts, ascending.
    starts: Index of the first combination of each context, and the number of combinations.
    backoffs: d n+(c) / n(c) of each context.
  """

  vocab_size: int
  keys: UInt64[np.ndarray, 'K']
  shares: Float[np.ndarray, 'K']
  contexts: UInt64[np.ndarray, 'c']
  starts: Int[np.ndarray, 'd']
  backoffs: Float[np.ndarray, 'c']

  def find_shares(
    self, contexts: UInt64[np.ndarray, 'N'], tokens: Integer[np.ndarray, 'N']
  ) -> Float[np.ndarray, 'N']:
    """Returns the first term of p(t | c) for pairs of context and token."""
    keys = contexts * np.uint64(self.vocab_size) + tokens.astype(np.uint64)
    index, is_seen = _search(self.keys, keys)
    return np.where(is_seen, self.shares[index], 0.0)

  def find_backoffs(self, contexts: UInt64[np.ndarray, 'N']) -> Float[np.ndarray, 'N']:
    """Returns the factor of p'(t) for each context."""
    index, is_seen = _search(self.contexts, contexts)
    return np.where(is_seen, self.backoffs[index], 1.0)

  def count_types(self, contexts: UInt64[np.ndarray, 'N']) -> Int[np.ndarray, 'N']:
    """Returns n+(c) for each context."""
    index, is_seen = _search(self.contexts, contexts)
    return np.where(is_seen, np.diff(self.starts)[index], 0)


def shift_tokens(tokens: Integer[np.ndarray, 'N L'], offset: int) -> Integer[np.ndarray, 'N L']:
  """Returns the token at an offset from each position of each row, or `<pad>` outside the row.

  >>> shift_tokens(np.array([[5, 6, 7]]), -1).tolist()
  [[1, 5, 6]]
  """
  shifted, length = np.full_like(tokens, PAD_ID), tokens.shape[1]
  inside = tokens[:, max(0, offset) : length + min(0, offset)]
  shifted[:, max(0, -offset) : length - offset] = inside
  return shifted


def pack_keys(contexts: Integer[np.ndarray, 'N k'], vocab_size: int) -> UInt64[np.ndarray, 'N']:
  """Returns k tokens as one 64-bit key; three tokens fit below a vocabulary of 2.6 million."""
  keys = np.zeros(len(contexts), np.uint64)
  for tokens in contexts.T:
    keys = keys * np.uint64(vocab_size) + tokens.astype(np.uint64)
  return keys


def count_ngrams(
  blocks: Iterable[Integer[np.ndarray, 'n L']], offsets: Sequence[int], vocab_size: int
) -> NgramCounts:
  """Counts the tokens of a text by context, without special tokens.

  Args:
    offsets: Positions of the context relative to the token; none give frequencies.

  Raises:
    InputError: The text has no tokens.
  """
  runs: list[tuple[np.ndarray, np.ndarray]] = []
  for tokens in blocks:
    is_counted = ~np.isin(tokens, UNPREDICTED_IDS)
    if not is_counted.any():
      continue
    columns = [shift_tokens(tokens, offset)[is_counted] for offset in (*offsets, 0)]
    keys = pack_keys(np.stack(columns, axis=1), vocab_size)
    runs.append(np.unique(keys, return_counts=True))
    # Merging runs of similar sizes merges each key about log2(blocks) times.
    while len(runs) > 1 and len(runs[-2][0]) <= 2 * len(runs[-1][0]):
      runs.append(_merge_counts([runs.pop(), runs.pop()]))
  if not runs:
    raise InputError('n-gram counts', 'a text without tokens', 'give more text')
  keys, counts = _merge_counts(runs)
  once, twice = (int(np.sum(counts == number)) for number in (1, 2))
  discount = (once + 1) / (once + 2 * twice + 2)
  contexts, starts = np.unique(keys // np.uint64(vocab_size), return_index=True)
  total, starts = np.add.reduceat(counts, starts), np.append(starts, len(keys))
  types = np.diff(starts)
  shares, backoffs = (counts - discount) / np.repeat(total, types), discount * types / total
  return NgramCounts(vocab_size, keys, shares, contexts, starts, backoffs)


def measure_agreement(
  left_counts: NgramCounts,
  right_counts: NgramCounts,
  left_contexts: UInt64[np.ndarray, 'N'],
  right_contexts: UInt64[np.ndarray, 'N'],
  base: Float[np.ndarray, 'V'],
) -> Float[np.ndarray, 'N']:
  """Returns sum_t share(t | left) share(t | right) / base(t) for pairs of contexts.

  Each sum is over the tokens of the context with fewer types.
  """
  is_left = left_counts.count_types(left_contexts) <= right_counts.count_types(right_contexts)
  agreement = np.empty(len(left_contexts))
  agreement[is_left] = _sum_over_tokens(
    left_counts, right_counts, left_contexts[is_left], right_contexts[is_left], base
  )
  agreement[~is_left] = _sum_over_tokens(
    right_counts, left_counts, right_contexts[~is_left], left_contexts[~is_left], base
  )
  return agreement


def _sum_over_tokens(
  rarer: NgramCounts,
  other: NgramCounts,
  contexts: UInt64[np.ndarray, 'N'],
  other_contexts: UInt64[np.ndarray, 'N'],
  base: Float[np.ndarray, 'V'],
) -> Float[np.ndarray, 'N']:
  index, types = _search(rarer.contexts, contexts)[0], rarer.count_types(contexts)
  total = np.zeros(len(contexts))
  cuts = np.flatnonzero(np.diff(np.cumsum(types) // _TOKENS_PER_BLOCK)) + 1
  for block in np.split(np.arange(len(contexts)), cuts):
    owner, before = np.repeat(block, types[block]), np.cumsum(types[block]) - types[block]
    entry = rarer.starts[index[owner]] + np.arange(len(owner)) - np.repeat(before, types[block])
    tokens = (rarer.keys[entry] % np.uint64(rarer.vocab_size)).astype(int)
    products = rarer.shares[entry] * other.find_shares(other_contexts[owner], tokens) / base[tokens]
    total += np.bincount(owner, products, len(contexts))
  return total


def _search(
  ascending: UInt64[np.ndarray, 'K'], numbers: UInt64[np.ndarray, 'N']
) -> tuple[Int[np.ndarray, 'N'], Bool[np.ndarray, 'N']]:
  """Returns the index of each number in a sorted array, and whether the array has the number."""
  index = np.minimum(np.searchsorted(ascending, numbers), len(ascending) - 1)
  return index, ascending[index] == numbers


def _merge_counts(
  runs: Sequence[tuple[UInt64[np.ndarray, '_'], Int[np.ndarray, '_']]],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the sorted distinct keys of several runs, and the sums of their counts."""
  keys, counts = (np.concatenate(parts) for parts in zip(*runs, strict=True))
  order = np.argsort(keys, kind='stable')
  keys = keys[order]
  starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
  return keys[starts], np.add.reduceat(counts[order], starts)
