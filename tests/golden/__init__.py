"""Measures three steps of a tiny training run, to compare with the stored numbers.

`python -m tests.golden` writes steps.json again.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import tiny
from minilm_jax.core import recipe
from minilm_jax.core.config import MeshConfig
from minilm_jax.data import tokenizer
from minilm_jax.data.rows import Corpus
from minilm_jax.model.initialization import flatten
from minilm_jax.training import population, sharding, train_step

FILE = pathlib.Path(__file__).parent / 'steps.json'
COMMAND = 'python -m tests.golden'
# The defaults of XLA, which the flags of conftest.py replace in all other tests.
DEFAULT_OPTIONS = {
  'xla_backend_optimization_level': 3,
  'xla_llvm_disable_expensive_passes': False,
  'xla_cpu_use_fusion_emitters': True,
  'xla_cpu_parallel_codegen_split_count': 32,
}


def measure(options: dict[str, Any] | None = None) -> dict[str, Any]:
  """Returns the losses of three steps, and the norms of the weight matrices afterwards.

  The numbers depend on rows, masks, dropout, loss, gradients and updates. `options` go to the
  compiler.
  """
  values = tiny.get_config()
  values.update(batch_size=4, num_steps=3)
  values.model.update(
    vocab_size=64,
    max_length=16,
    hidden_size=16,
    embedding_size=8,
    intermediate_size=24,
    num_layers=1,
    dropout=0.1,
  )
  values.mask.update(random_share=0.1, keep_share=0.1)
  config = recipe.resolve(values, 'pretrain')
  rows = (
    np.random.default_rng(0).integers(len(tokenizer.SPECIAL_TOKENS), 60, (10, 16)).astype('uint16')
  )
  rows[:, 0], rows[::2, 9], rows[::2, 10:] = tokenizer.BEGIN_ID, tokenizer.END_ID, tokenizer.PAD_ID
  corpus, mesh = Corpus(jnp.asarray(rows), 60, ''), sharding.make_mesh(MeshConfig(1, 1, 1))
  settings = population.member_settings(config)

  def member_step(state: train_step.TrainState) -> Any:
    return train_step.train_step(state, settings, corpus, config, jax.devices()[0])[:2]

  step = jax.jit(population.map_over_members(member_step, mesh, 'single'), compiler_options=options)
  init = lambda: train_step.init_state(0, config)
  state, sums = jax.jit(init, out_shardings=sharding.replicated(mesh))(), []
  for _ in range(3):
    state, step_sums = step(state)
    sums.append({name: float(step_sums[name]) for name in ('loss', 'masked')})
  norms = {
    name: float(jnp.linalg.norm(leaf))
    for name, leaf in flatten(state.model).items()
    if leaf.ndim == 2
  }
  return {'sums': sums, 'norms': norms}


def read_stored() -> dict[str, Any]:
  """Returns the numbers in steps.json."""
  return json.loads(FILE.read_text())
