"""Token rows and a slow n-gram counter to compare with."""

import collections

import numpy as np

from minilm_jax.core.corpus_config import BEGIN_ID, END_ID, PAD_ID
from minilm_jax.evaluation import ngrams

VOCABULARY = 30
CANDIDATES = np.setdiff1d(np.arange(VOCABULARY), ngrams.UNPREDICTED_IDS)


def draw_rows(rows: int, length: int = 12, seed: int = 0) -> np.ndarray:
  """Returns padded rows of random lengths whose tokens have unequal frequencies."""
  generator = np.random.default_rng(seed)
  tokens = np.minimum(5 + generator.geometric(0.2, (rows, length)), VOCABULARY - 1).astype('uint16')
  for row, end in zip(tokens, generator.integers(1, length, rows)):
    row[0], row[end], row[end + 1 :] = BEGIN_ID, END_ID, PAD_ID
  return tokens


def count_by_dictionary(
  tokens: np.ndarray, offsets: tuple[int, ...]
) -> dict[tuple[int, ...], collections.Counter]:
  """Returns the counts of tokens by context; a context is the tokens at `offsets`."""
  counts: dict[tuple[int, ...], collections.Counter] = collections.defaultdict(collections.Counter)
  for row in tokens.tolist():
    for index, token in enumerate(row):
      if token not in ngrams.UNPREDICTED_IDS:
        context = [row[index + n] if 0 <= index + n < len(row) else PAD_ID for n in offsets]
        counts[tuple(context)][token] += 1
  return counts
