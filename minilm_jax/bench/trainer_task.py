"""The fine-tuning task of the Hugging Face `Trainer` benchmark.

The module is separate because `competitors` describes the task without torch, and `hf_trainer` runs
it with torch in another process.
"""

import dataclasses

import numpy as np

from minilm_jax.core.model_config import EncoderConfig


@dataclasses.dataclass(frozen=True)
class TrainerTask:
  """A fine-tuning with the Hugging Face `Trainer`.

  The model is the nearest plain `RobertaForSequenceClassification`. RoBERTa has no projection: its
  embedding tables have `shape.hidden_size` columns. Its head pools the first token and uses the
  dropout of the encoder.

  Attributes:
    rows: token ids `[N L]` with padding at the end; L is at most `shape.max_length`.
    labels: `[N]` class indices, or numbers if `classes` is 0.
    shape: sizes, segments, activation, dropout and norm_epsilon of the model.
    classes: number of classes; 0 for a regression.
    batch_size: rows of an update; the last update of an epoch may have fewer.
    learning_rate: the rate of the first update.
    seed: seed of weights, order and dropout.
  """

  rows: np.ndarray
  labels: np.ndarray
  shape: EncoderConfig
  classes: int
  batch_size: int
  learning_rate: float
  seed: int
