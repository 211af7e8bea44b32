"""Counts of tokens by what stands beside them, and probabilities by absolute discounting (Ney,
Essen, Kneser, 1994).

    p(t | c) = max(n(c, t) - d, 0) / n(c)  +  d n+(c) / n(c)  p'(t)

The context `c` is any number of places beside the token, on either side; n+(c) is how many
different tokens it was seen with, and p' what a smaller context says, to which a context that was
never seen leaves everything. The discount is theirs by leaving one out, n1 / (n1 + 2 n2) of the
combinations seen once and twice, here (n1 + 1) / (n1 + 2 n2 + 2), so that it lies between 0 and 1
whatever was seen. Nothing is fitted.

A combination of context and token is one number of 64 bits, and what was counted is these numbers
in ascending order: the tokens of a context lie side by side, and every look-up is a binary search.
Nothing loops over tokens. Memory goes by different combinations, some 16 bytes each and more while
they are counted, not by the length of the text.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt64

from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer

# counted beside others, but never predicted
UNSEEN_LOG_PROBABILITY = (tokenizer.BEGIN_ID, tokenizer.PAD_ID, tokenizer.END_ID, tokenizer.MASK_ID)
_TOKENS_PER_BLOCK = 1 << 22  # pairs of two contexts' tokens that are looked at together


@dataclasses.dataclass(frozen=True)
class NgramCounts:
  """What was counted of tokens in one kind of context.

  Attributes:
    vocabulary: V, ids are below it.
    keys: context * V + token of each combination that was seen, ascending.
    shares: max(n(c, t) - d, 0) / n(c) of each.
    contexts: those that were seen, ascending.
    first: where the combinations of each begin, and the end of the last.
    spare: d n+(c) / n(c) of each, what is left for a smaller context.
  """

  vocabulary: int
  keys: UInt64[np.ndarray, 'K']
  shares: Float[np.ndarray, 'K']
  contexts: UInt64[np.ndarray, 'c']
  first: Int[np.ndarray, 'd']
  spare: Float[np.ndarray, 'c']

  def share(
    self, context: UInt64[np.ndarray, 'N'], token: Integer[np.ndarray, 'N']
  ) -> Float[np.ndarray, 'N']:
    """The first term of p(t | c)."""
    place, seen = _lookup(self.keys, context * np.uint64(self.vocabulary) + token.astype(np.uint64))
    return np.where(seen, self.shares[place], 0.0)

  def rest(self, context: UInt64[np.ndarray, 'N']) -> Float[np.ndarray, 'N']:
    """What p'(t) is multiplied by."""
    place, seen = _lookup(self.contexts, context)
    return np.where(seen, self.spare[place], 1.0)


def context_keys(tokens: Integer[np.ndarray, 'N L'], offset: int) -> Integer[np.ndarray, 'N L']:
  """The token so many places further right (left below 0) of each place of each row, `<pad>` beyond
  its ends.

  >>> context_keys(np.array([[5, 6, 7]]), -1).tolist()
  [[1, 5, 6]]
  """
  found, length = np.full_like(tokens, tokenizer.PAD_ID), tokens.shape[1]
  found[:, max(0, -offset) : length - offset] = tokens[:, max(0, offset) : length + min(0, offset)]
  return found


def pack_keys(places: Integer[np.ndarray, 'N k'], vocabulary: int) -> UInt64[np.ndarray, 'N']:
  """One number for the tokens at k places, up to three of a vocabulary below 2.6 million; of no
  place it is 0.
  """
  found = np.zeros(len(places), np.uint64)
  for tokens in places.T:
    found = found * np.uint64(vocabulary) + tokens.astype(np.uint64)
  return found


def count_ngrams(
  blocks: Iterable[Integer[np.ndarray, 'n L']], offsets: Sequence[int], vocabulary: int
) -> NgramCounts:
  """Counts every token of a text that can be predicted, by the tokens at some offsets from it;
  none: frequencies.

  Raises:
    InputError: there is nothing to count.
  """
  found: list[tuple[np.ndarray, np.ndarray]] = []
  for tokens in blocks:
    some = ~np.isin(tokens, UNSEEN_LOG_PROBABILITY)
    if not some.any():
      continue
    places = np.stack([context_keys(tokens, offset)[some] for offset in (*offsets, 0)], axis=1)
    found.append(np.unique(pack_keys(places, vocabulary), return_counts=True))
    # a number is merged some log2(blocks) times
    while len(found) > 1 and len(found[-2][0]) <= 2 * len(found[-1][0]):
      found.append(_merge_counts([found.pop(), found.pop()]))
  if not found:
    raise InputError('counts of a text', 'no token in it', 'give more text')
  keys, times = _merge_counts(found)
  once, twice = (int(np.sum(times == number)) for number in (1, 2))
  discount = (once + 1) / (once + 2 * twice + 2)
  contexts, first = np.unique(keys // np.uint64(vocabulary), return_index=True)
  total, first = np.add.reduceat(times, first), np.append(first, len(keys))
  kinds = np.diff(first)
  return NgramCounts(
    vocabulary,
    keys,
    (times - discount) / np.repeat(total, kinds),
    contexts,
    first,
    discount * kinds / total,
  )


def measure_agreement(
  one: NgramCounts,
  other: NgramCounts,
  here: UInt64[np.ndarray, 'N'],
  there: UInt64[np.ndarray, 'N'],
  base: Float[np.ndarray, 'V'],
) -> Float[np.ndarray, 'N']:
  """sum_t share(t | here) share'(t | there) / base(t), of a context of each; over the tokens of the
  rarer of both.
  """
  fewer, found = _num_types(one, here) <= _num_types(other, there), np.empty(len(here))
  found[fewer] = _agreement(one, other, here[fewer], there[fewer], base)
  found[~fewer] = _agreement(other, one, there[~fewer], here[~fewer], base)
  return found


def _agreement(
  one: NgramCounts,
  other: NgramCounts,
  here: UInt64[np.ndarray, 'N'],
  there: UInt64[np.ndarray, 'N'],
  base: Float[np.ndarray, 'V'],
) -> Float[np.ndarray, 'N']:
  place, kinds = _lookup(one.contexts, here)[0], _num_types(one, here)
  found = np.zeros(len(here))
  for part in np.split(
    np.arange(len(here)), np.flatnonzero(np.diff(np.cumsum(kinds) // _TOKENS_PER_BLOCK)) + 1
  ):
    owner, before = np.repeat(part, kinds[part]), np.cumsum(kinds[part]) - kinds[part]
    entry = one.first[place[owner]] + np.arange(len(owner)) - np.repeat(before, kinds[part])
    token = (one.keys[entry] % np.uint64(one.vocabulary)).astype(int)
    found += np.bincount(
      owner, one.shares[entry] * other.share(there[owner], token) / base[token], len(here)
    )
  return found


def _num_types(counts: NgramCounts, context: UInt64[np.ndarray, 'N']) -> Int[np.ndarray, 'N']:
  """n+(c), 0 of a context that was never seen."""
  place, seen = _lookup(counts.contexts, context)
  return np.where(seen, np.diff(counts.first)[place], 0)


def _lookup(
  there: UInt64[np.ndarray, 'K'], wanted: UInt64[np.ndarray, 'N']
) -> tuple[Int[np.ndarray, 'N'], Bool[np.ndarray, 'N']]:
  """Where each wanted number is among ascending ones, and whether it is there at all."""
  place = np.minimum(np.searchsorted(there, wanted), len(there) - 1)
  return place, there[place] == wanted


def _merge_counts(
  found: Sequence[tuple[UInt64[np.ndarray, '_'], Int[np.ndarray, '_']]],
) -> tuple[np.ndarray, np.ndarray]:
  """Numbers, ascending, and how often each was seen, of several such lists."""
  keys, times = (np.concatenate(parts) for parts in zip(*found, strict=True))
  order = np.argsort(keys, kind='stable')
  keys = keys[order]
  first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
  return keys[first], np.add.reduceat(times[order], first)
