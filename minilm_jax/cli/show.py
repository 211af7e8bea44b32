"""Describes a recipe or run without training: fields, arrays with sharding, FLOPs, memory."""

import functools
import math
from typing import Any

import jax
import numpy as np
from etils import epath
from rich import table as rich_table

from minilm_jax.core import recipe, run_dir
from minilm_jax.core.config import FinetuneConfig, RunConfig
from minilm_jax.core.corpus_config import CorpusConfig
from minilm_jax.data import documents
from minilm_jax.model.flops import count_parameters_by_part, flops_per_row
from minilm_jax.model.initialization import path_name
from minilm_jax.tasks import examples
from minilm_jax.training import optimizer, pretrained, sharding, train_step


def describe_recipe(config: RunConfig | CorpusConfig | FinetuneConfig) -> dict[str, Any]:
  """Returns fields and cost of a recipe as plain data; tasks and sources of other kinds."""
  facts: dict[str, Any] = {'recipe': recipe.as_dict(config)}
  if isinstance(config, RunConfig):
    return facts | describe_pretraining(config)
  if isinstance(config, FinetuneConfig):
    task = examples.complete_task(config.task)
    return facts | {
      'headline': task.headline,
      'examples': examples.count_examples(task, config.task),
    }
  return facts | {'sources': [source.name for source in documents.expand_sources(config.documents)]}


def describe_pretraining(config: RunConfig) -> dict[str, Any]:
  """Returns the cost of pre-training as plain data.

  `tokens` and `flops` are those of one member, and `bytes` is the memory of all members. `arrays`
  has path, shape and sharding of each parameter.
  """
  init = functools.partial(train_step.init_state, config=config)
  shapes = jax.eval_shape(init, np.uint32(config.seed))
  mesh = sharding.make_mesh(
    config.mesh,
    config.batch_size // (config.grad_accumulation_steps or 1),
    config.population.members,
  )
  shardings = sharding.state_sharding(shapes, mesh)
  arrays = zip(
    jax.tree.leaves_with_path(shapes.model), jax.tree.leaves(shardings.model), strict=True
  )
  flops = flops_per_row(config.model, config.largest_mask)
  rows = config.num_steps * config.batch_size
  num_masked = config.largest_mask.max_positions(config.model.max_length)
  devices = mesh.shape['data']
  parts = devices * math.prod(
    train_step.micro_batch_plan(
      config, config.batch_size // devices, config.model.max_length, mesh.devices.flat[0]
    )
  )
  return {
    'parameters': count_parameters_by_part(config.model),
    'flops_per_row': flops,
    'updates': config.num_steps,
    'warmup': optimizer.warmup_steps(config.optimizer, config.num_steps),
    'rows': rows,
    'tokens': rows * config.model.max_length,
    'flops': {name: count * rows for name, count in flops.items()},
    'masked_positions': num_masked,
    'members': config.population.members,
    'mesh': dict(mesh.shape),
    'bytes': {
      'state': config.population.members
      * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)),
      'gradient': 4 * count_parameters_by_part(config.model)['total'],
      'logits': 4 * config.batch_size // parts * num_masked * config.model.vocab_size,
    },
    'arrays': [
      {'path': path_name(path), 'shape': list(leaf.shape), 'spec': str(array_sharding.spec)}
      for (path, leaf), array_sharding in arrays
    ],
  }


def describe_run(folder: epath.PathLike) -> dict[str, Any]:
  """Returns the facts of the run in a folder; for an imported run its source and arrays.

  A run that started with the weights of another run has the facts of its manifest in `origin`.

  Raises:
    InputError: the folder is neither a pre-training run nor an imported run.
  """
  facts, record = (
    describe_recipe(pretrained.load_config(folder)),
    run_dir.read_import_record(folder),
  )
  if not record:
    origin = run_dir.read_origin(folder)
    return facts | ({run_dir.ORIGIN: origin} if origin else {})
  arrays = [row for row in facts['arrays'] if record['head'] or row['path'].startswith('encoder.')]
  return {
    'recipe': {'kind': run_dir.IMPORTED, 'model': facts['recipe']['model']},
    run_dir.IMPORTED: record,
    'parameters': sum(math.prod(row['shape']) for row in arrays),
    'arrays': arrays,
  }


def make_show_tables(facts: dict[str, Any]) -> list[rich_table.Table]:
  """Returns the facts of a recipe or run as tables."""
  tables = []
  if 'arrays' in facts:
    arrays = rich_table.Table('parameter', 'shape', 'sharding', title='Parameters')
    for row in facts['arrays']:
      arrays.add_row(row['path'], ' x '.join(map(str, row['shape'])), row['spec'])
    tables.append(arrays)
  fields = rich_table.Table('field', 'value', title='Recipe')
  for name, value in facts.items():
    if name != 'arrays':
      _add_rows(fields, name, value)
  return [*tables, fields]


def _add_rows(fields: rich_table.Table, name: str, value: Any) -> None:
  if isinstance(value, dict):
    for part, inner in value.items():
      _add_rows(fields, part if name == 'recipe' else f'{name}.{part}', inner)
  else:
    fields.add_row(
      name, f'{value:,}' if isinstance(value, int) and not isinstance(value, bool) else str(value)
    )
