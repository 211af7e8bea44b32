"""Recipes with the default of every field; other recipes start from here and change numbers.

`pretrain()` is one pre-training run, `corpus()` text to rows, `finetune()` a checkpoint on a task.
The fields, with type, range, default and reason, are declared in `minilm_jax/core/config.py`,
`model_config.py` and `corpus_config.py`. A field with several values takes a string with commas, as
on the command line.
"""

import dataclasses

from ml_collections import config_dict

from minilm_jax.core.config import FinetuneConfig, RunConfig
from minilm_jax.core.corpus_config import CorpusConfig


def _make_recipe(fields):
  """Returns a ConfigDict of nested fields, with comma-separated text for several values."""
  recipe = config_dict.ConfigDict()
  for name, value in fields.items():
    if isinstance(value, dict):
      value = _make_recipe(value)
    recipe[name] = ','.join(map(str, value)) if isinstance(value, tuple) else value
  return recipe


def pretrain():
  """Returns the recipe of one pre-training run."""
  return _make_recipe(dataclasses.asdict(RunConfig()))


def corpus():
  """Returns the recipe of a corpus: text to rows."""
  return _make_recipe(dataclasses.asdict(CorpusConfig()))


def finetune():
  """Returns the recipe of a checkpoint on a task, with several seeds and learning rates."""
  return _make_recipe(dataclasses.asdict(FinetuneConfig()))


def get_config():
  """Returns the recipe of `--config=configs/base.py`: the smallest model of paper 1, without a
  corpus.
  """
  return pretrain()
