"""Makes typed configurations for tests from the shipped recipes."""

import dataclasses
import pathlib
from typing import Any

from configs import base, paper1_tasks, tiny
from minilm_jax.core import recipe
from minilm_jax.core.config import FinetuneConfig, OptimizerConfig, RunConfig

UPDATES = 12
# The convolution of paper 2 normalizes over the batch, so that its rows depend on each other.
CONVOLUTION = {'model.convolutions': 1, 'model.kernel': '3,3', 'model.channels': 3}
# Parts that differ from the recipe of paper 1.
ALTERNATIVE_PARTS = {
  'model.positions': 'sinusoidal',
  'model.short_convolution': 3,
  'optimizer.algorithm': 'muon',
}


def make_run_config(corpus: pathlib.Path, /, **changes: Any) -> RunConfig:
  """Returns a pre-training recipe of 12 steps on one device with evaluations and saves every 4.

  Args:
    corpus: the corpus folder.
    **changes: changed fields by dotted name.
  """
  config = tiny.get_config()
  config.corpus = str(corpus)
  config.update(batch_size=16, num_steps=UPDATES)
  config.model.update(
    embedding_size=16, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, dropout=0.1
  )
  # With a smaller epsilon, Adam turns rounding errors of zero gradients into full updates.
  config.optimizer.epsilon = 1e-3
  config.eval.update(every=4, rows=64)
  config.checkpoint.every, config.log.every, config.mesh.data = 4, 2, 1
  config.update_from_flattened_dict(changes)
  return recipe.resolve(config, 'pretrain')


def make_optimizer_config(**changes: Any) -> OptimizerConfig:
  """Returns the optimizer part of the base recipe with some fields changed."""
  return dataclasses.replace(recipe.resolve(base.pretrain(), 'pretrain').optimizer, **changes)


def make_finetune_config(task: str = 'microworld/sentiment', **changes: Any) -> FinetuneConfig:
  """Returns the recipe of paper 1 for a task; `changes` are fields by dotted name."""
  config = paper1_tasks.get_config(task)
  config.update_from_flattened_dict(changes)
  return recipe.resolve(config, 'finetune')
