"""The configuration of a tiny RoBERTa, its head and its token rows."""

import numpy as np

from minilm_jax.config import EncoderConfig, HeadConfig
from minilm_jax.language import tokenizer as pieces

SMALL = EncoderConfig(
    encoder='', vocabulary=60, embedding=16, hidden=16, feed_forward=24, heads=4, layers=2, length=12, norm='post',
    positions='learned', segments=1, projection=False, tied=False, activation='gelu', dropout=0.0,
    initialization='standard', norm_epsilon=1e-5, nominal_heads=4, compute='float32', remat=False,
    bare_projection=False, second_segment=False, short_convolution=0,
    first_position=2, convolutions=0, kernel=(), channels=0, convolution='paper')
HEAD = HeadConfig(pooling='first', dropout=0.0, copies=1)
CLASSES = 3


def draw_rows(count: int, padded: bool, seed: int = 0) -> np.ndarray:
  """Rows `<s> ... </s>` of random pieces, of all lengths or of the full one."""
  random = np.random.default_rng(seed)
  rows = random.integers(len(pieces.SPECIAL), SMALL.vocabulary, (count, SMALL.length), np.int64)
  rows[:, 0] = pieces.BEGIN
  for row, length in zip(rows, random.integers(3, SMALL.length + 1, count), strict=True):
    row[(length if padded else SMALL.length) - 1:] = pieces.PAD
    row[(length if padded else SMALL.length) - 1] = pieces.END
  return rows
