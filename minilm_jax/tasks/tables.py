"""The table of token vectors in fine-tuning: only the rows of pieces that a task uses are stacked, trained and moved.

So it is of our encoder, which reads its ids from this one table and nowhere else. Of an encoder of the user's own
nobody knows that, and its table stays whole.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Shaped

from minilm_jax.model.encoder import Encoder
from minilm_jax.model.heads import Classifier
from minilm_jax.model.initialization import path_name

_TABLE = 'embedding.tokens.embedding'


def replaced(model: Any, table: Float[Array, '*S U E'] | Float[np.ndarray, '*S U E']) -> Any:
  """A classifier or an encoder with another table of token vectors."""
  return jax.tree_util.tree_map_with_path(lambda path, x: table if path_name(path).endswith(_TABLE) else x, model)


def keep_used(encoder: Encoder, used: Shaped[Array, 'U'] | Shaped[np.ndarray, 'U']) -> Encoder:
  """An encoder (or a stack) with a table of vectors for the pieces that the task uses: no other is read or moved."""
  return replaced(encoder, encoder.table[..., used, :])


def widen(model: Classifier, table: Float[np.ndarray, 'V E'], used: Shaped[np.ndarray, 'U']) -> Classifier:
  """A member on the host with the whole table that its encoder started from, the rows that the task uses as trained."""
  whole = np.array(table)
  whole[used] = np.asarray(model.encoder.table)
  return jax.tree.map(np.asarray, replaced(model, whole))
