"""Defines the configuration of a tiny RoBERTa with its head, loads weights and draws token rows."""

from collections.abc import Mapping

import jax
import numpy as np

from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.data import tokenizer
from minilm_jax.interop import hf_weights
from minilm_jax.model import heads

SMALL = EncoderConfig(
  vocab_size=60,
  embedding_size=16,
  hidden_size=16,
  intermediate_size=24,
  num_heads=4,
  num_layers=2,
  max_length=12,
  segments=1,
  projection=False,
  dropout=0.0,
)
HEAD = HeadConfig(pooling='first', dropout=0.0, ensemble_size=1)
CLASSES = 3


def load_classifier(
  weights: Mapping[str, np.ndarray], config: EncoderConfig = SMALL, classes: int = CLASSES
) -> heads.Classifier:
  """Returns a classifier with the weights of a `RobertaForSequenceClassification`."""
  model = jax.eval_shape(lambda: heads.init_classifier(config, HEAD, classes, jax.random.key(0)))
  return hf_weights.load_weights(model, weights, hf_weights.ROBERTA_CLASSIFIER_MODULES)


def draw_rows(count: int, padded: bool, seed: int = 0) -> np.ndarray:
  """Returns rows `<s> ... </s>` of random pieces, with random lengths if `padded`."""
  generator = np.random.default_rng(seed)
  rows = generator.integers(
    len(tokenizer.SPECIAL_TOKENS), SMALL.vocab_size, (count, SMALL.max_length), np.int64
  )
  rows[:, 0] = tokenizer.BEGIN_ID
  for row, length in zip(rows, generator.integers(3, SMALL.max_length + 1, count), strict=True):
    end = (length if padded else SMALL.max_length) - 1
    row[end], row[end + 1 :] = tokenizer.END_ID, tokenizer.PAD_ID
  return rows
