"""A laboratory for language models of 1-20 million parameters, in JAX and Flax.

The command `minilm` does the work; in a notebook or a script

    import minilm_jax
    model = minilm_jax.load('runs/tiny')

opens what it has made. Importing the package imports nothing heavy: JAX comes with the first model.
"""

import os
import typing

from minilm_jax.core.errors import InputError as InputError

if typing.TYPE_CHECKING:
  from minilm_jax.evaluation.inference import Model

__version__ = '0.1.0'


def load(folder: str | os.PathLike, trust: str = '') -> 'Model':
  """Opens a trained model: a pre-training run, a classifier that fine-tuning has kept, or a
  committee of these.

  >>> model = minilm_jax.load('runs/tiny')  # doctest: +SKIP
  >>> model  # doctest: +SKIP
  LanguageModel('runs/tiny', update 600: 2 layers, hidden 64, 512 pieces, rows of 64 tokens, 142,528
  parameters)
  >>> model.encode(['the dog sleeps .', 'a pie rots .']).shape  # doctest: +SKIP
  (2, 64)
  >>> model.fill_mask('the dog <mask> near the tree .', best=1)  # doctest: +SKIP
  [Guess(hole=1, piece='▁sleeps', probability=0.11)]
  >>> minilm_jax.load('runs/about/classifier-0').predict('the dog sleeps .')[0]['label']  # doctest: +SKIP
  'animal'

  Args:
    folder: the run directory, or that of a classifier or a committee; local or, with the extra gcs,
      gs://.
    trust: modules whose code may run where the run names an encoder of its own, as in
      'package.module'; a run may come from a stranger, and what it names is imported only if it
      stands here.

  Raises:
    InputError: there is no such model, something of it is damaged, or it names code that is not
      trusted.
  """
  from minilm_jax.evaluation import inference

  return inference.load_model(folder, trust)
