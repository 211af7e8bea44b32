"""What the study of a grid is made from: the evaluations of one pre-trained model after another.

A track is the same whether it was read from a run directory (`grid.py`) or from a logged table (`logged.py`).
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

HONEY, KAPLAN, ACTUAL = 'honey', 'kaplan', 'actual'  # counts of FLOPs, `model/size.py`


@dataclasses.dataclass(frozen=True, order=True)
class ModelShape:
  """What a grid varies; `heads` is the count that the paper's formula is given."""

  embedding: int
  hidden: int
  feed_forward: int
  heads: int
  layers: int
  vocabulary: int


@dataclasses.dataclass(frozen=True)
class LossCurve:
  """One pre-trained model and its evaluations in the order of its updates.

  Attributes:
    name: of the run; of a member of a population, with its number.
    shape, embedding_parameters, other_parameters: of the model.
    seed, learning_rate, warmup: at the top of the schedule, and the updates until there; None where nobody logged them.
    tied: does the head share the embedding table? None where nobody logged it.
    length: tokens of a row.
    flops_per_row: forward and backward, by how they are counted; what cannot be known is left out.
    updates, rows, loss: of each evaluation: updates made, rows seen, nats a masked token on the validation split.
    lost: evaluations whose loss is no number; they are in none of these.
    finished: has the run reached the end of its schedule?
    test_loss: nats a masked token, after the end.
    bits_per_word, bits_per_byte: of masked words, where they were taken (`tasks/words.py`).
  """

  name: str
  shape: ModelShape
  embedding_parameters: int
  other_parameters: int
  seed: int | None
  learning_rate: float | None
  warmup: int | None
  tied: bool | None
  length: int
  flops_per_row: Mapping[str, float]
  updates: tuple[int, ...]
  rows: tuple[int, ...]
  loss: tuple[float, ...]
  lost: int
  finished: bool
  test_loss: float | None
  bits_per_word: float | None
  bits_per_byte: float | None

  @property
  def parameters(self) -> int:
    """With embeddings."""
    return self.embedding_parameters + self.other_parameters

  @property
  def tokens(self) -> Float[np.ndarray, 'N']:
    """Tokens seen at each evaluation, pads included."""
    return np.asarray(self.rows, float) * self.length

  def flops(self, count: str = HONEY) -> Float[np.ndarray, 'N']:
    """FLOPs of training until each evaluation."""
    return np.asarray(self.rows, float) * self.flops_per_row[count]
