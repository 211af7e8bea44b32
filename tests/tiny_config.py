"""A pre-training recipe of a dozen updates on one device, evaluated and saved after every four."""

import dataclasses
import pathlib
from typing import Any

from configs import base, glue, tiny
from minilm_jax.core import recipe
from minilm_jax.core.config import FinetuneConfig, OptimizerConfig, RunConfig

UPDATES = 12
# With the front-end of paper 2, whose statistics are of a batch.
CONVOLVED = {'model.convolutions': 1, 'model.kernel': '3,3', 'model.channels': 3}

# What may help a model off the plateau, together.
HELPED = {
  'model.positions': 'sinusoidal',
  'model.short_convolution': 3,
  'optimizer.algorithm': 'muon',
}


def run_config(folder: pathlib.Path, **changes: Any) -> RunConfig:
  """The recipe on the corpus in `folder`; changes are named with dots."""
  made = tiny.get_config()
  made.corpus = str(folder)
  made.update(batch_size=16, num_steps=UPDATES)
  made.model.update(
    embedding_size=16, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, dropout=0.1
  )
  # smaller, Adam makes whole steps of the rounding errors where a gradient is zero
  made.optimizer.epsilon = 1e-3
  made.eval.update(every=4, rows=64)
  made.checkpoint.every, made.log.every, made.mesh.data = 4, 2, 1
  made.update_from_flattened_dict(changes)
  return recipe.resolve(made, 'pretrain')


def make_optimizer_config(**changes: Any) -> OptimizerConfig:
  """Returns the optimizer part of the base recipe with some fields changed."""
  return dataclasses.replace(recipe.resolve(base.pretrain(), 'pretrain').optimizer, **changes)


def finetune_config(task: str = 'microworld/sentiment', **changes: Any) -> FinetuneConfig:
  """Returns the GLUE recipe of a task; changes are named with dots."""
  config = glue.get_config(task)
  config.update_from_flattened_dict(changes)
  return recipe.resolve(config, 'finetune')
