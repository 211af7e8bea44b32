"""The fine-tuning that Hugging Face's `Trainer` is timed with.

A module of its own: `competitors` describes the task without torch, `hf_trainer` runs it with torch
in another process.
"""

import dataclasses

import numpy as np

from minilm_jax.core.model_config import EncoderConfig


@dataclasses.dataclass(frozen=True)
class TrainerTask:
  """A fine-tuning by the `Trainer` of Hugging Face.

  The model is the nearest plain `RobertaForSequenceClassification`. It has no projection: if
  `shape.embedding_size` differs from `shape.hidden_size`, its tables have the hidden size. Its head
  is that of pooling 'first', with the dropout of its encoder.

  Attributes:
    rows: token ids `[N L]` with pads at the end; L is at most `shape.max_length`.
    labels: `[N]` of classes, or of numbers if `classes` is 0.
    shape: sizes, segments, activation, dropout and norm_epsilon of the model.
    classes: of a classification; 0 is a regression.
    batch_size: rows of an update; the last update of an epoch may have fewer.
    learning_rate: at the first update.
    seed: of weights, order and dropout.
    pad: 'longest' pads a batch to its longest row (DataCollatorWithPadding, the advice of Hugging
      Face), 'max' pads every row to L beforehand (the default of its run_glue.py).
  """

  rows: np.ndarray
  labels: np.ndarray
  shape: EncoderConfig
  classes: int
  batch_size: int
  learning_rate: float
  seed: int
  pad: str
