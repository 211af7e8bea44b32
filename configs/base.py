"""Recipes with the default of every field; other recipes start from here and change numbers.

`pretrain()` is one pre-training run, `corpus()` text to rows, `finetune()` a checkpoint on a task.
The fields, with type, range, default and reason, are declared in `minilm_jax/core/config.py`,
`model_config.py` and `corpus_config.py`. A field with several values takes a string with commas, as
on the command line.
"""

import dataclasses

from ml_collections import config_dict

from minilm_jax.core.config import FinetuneConfig, OptimizerConfig, RunConfig
from minilm_jax.core.corpus_config import CorpusConfig
from minilm_jax.core.model_config import EncoderConfig


def _as_recipe(values):
  recipe = config_dict.ConfigDict()
  for name, value in values.items():
    if isinstance(value, dict):
      recipe[name] = _as_recipe(value)
    else:
      recipe[name] = ','.join(map(str, value)) if isinstance(value, tuple) else value
  return recipe


def recipe_defaults(config_type):
  """Returns a ConfigDict with the default of every field of a configuration type."""
  return _as_recipe(dataclasses.asdict(config_type()))


def optimizer():
  """Returns the group `optimizer` of pre-training."""
  return recipe_defaults(OptimizerConfig)


def model():
  """Returns the group `model`."""
  return recipe_defaults(EncoderConfig)


def pretrain():
  """Returns the recipe of one pre-training run."""
  return recipe_defaults(RunConfig)


def corpus():
  """Returns the recipe of a corpus: text to rows."""
  return recipe_defaults(CorpusConfig)


def finetune():
  """Returns the recipe of a checkpoint on a task, with several seeds and learning rates."""
  return recipe_defaults(FinetuneConfig)


def get_config():
  """Returns the recipe of `--config=configs/base.py`: the smallest model of paper 1, without a
  corpus.
  """
  return pretrain()
