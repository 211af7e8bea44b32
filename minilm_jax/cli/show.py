"""Facts of a recipe or run without running it: fields, arrays with sharding, FLOPs, memory."""

import functools
import math
from typing import Any

import jax
from etils import epath
from rich import table as rich_table

from minilm_jax.core import recipe, run_dir
from minilm_jax.core.config import FinetuneConfig, RunConfig
from minilm_jax.core.corpus_config import CorpusConfig
from minilm_jax.data import documents
from minilm_jax.model.flops import count_parameters, flops_per_row, max_masked_positions
from minilm_jax.model.initialization import path_name
from minilm_jax.tasks import examples
from minilm_jax.training import optimizer, pretrained, sharding, train_step


def describe_recipe(config: RunConfig | CorpusConfig | FinetuneConfig) -> dict[str, Any]:
  """Returns the facts of a recipe as plain data."""
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
  """Returns the cost of pre-training: tokens and FLOPs of a member, bytes of all, arrays by path."""
  shapes = jax.eval_shape(functools.partial(train_step.init_state, config=config), config.seed)
  mesh = sharding.make_mesh(
    config.mesh,
    config.batch_size // (config.grad_accumulation_steps or 1),
    config.population.members,
  )
  shardings = sharding.state_sharding(shapes, mesh)
  arrays = zip(
    jax.tree.leaves_with_path(shapes.model), jax.tree.leaves(shardings.model), strict=True
  )
  flops = flops_per_row(config.model, config.mask)
  rows = config.num_steps * config.batch_size
  num_masked = max_masked_positions(config.model.max_length, config.mask.rate)
  devices = mesh.shape['data']
  parts = devices * math.prod(
    train_step.micro_batch_plan(
      config,
      config.batch_size // devices,
      config.model.max_length,
      num_masked,
      mesh.devices.flat[0].platform,
    )
  )
  return {
    'parameters': count_parameters(config.model),
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
      'gradient': 4 * count_parameters(config.model)['total'],
      'logits': 4 * config.batch_size // parts * num_masked * config.model.vocab_size,
    },
    'arrays': [
      {'path': path_name(path), 'shape': list(leaf.shape), 'spec': str(where.spec)}
      for (path, leaf), where in arrays
    ],
  }


def describe_run(folder: epath.PathLike) -> dict[str, Any]:
  """Returns the facts of the run in a folder; of an imported run its source and shape.

  Raises:
    InputError: the folder holds neither a pre-training run nor an imported one.
  """
  facts, record = (
    describe_recipe(pretrained.load_config(folder)),
    run_dir.read_import_record(folder),
  )
  if not record:
    return facts
  arrays = [row for row in facts['arrays'] if record['head'] or row['path'].startswith('encoder.')]
  return {
    'recipe': {'kind': run_dir.IMPORTED, 'model': facts['recipe']['model']},
    run_dir.IMPORTED: record,
    'parameters': sum(math.prod(row['shape']) for row in arrays),
    'arrays': arrays,
  }


def show_tables(described: dict[str, Any]) -> list[rich_table.Table]:
  """Returns the tables of the facts of a recipe or run."""
  tables = []
  if 'arrays' in described:
    arrays = rich_table.Table('parameter', 'shape', 'sharding', title='Parameters')
    for row in described['arrays']:
      arrays.add_row(row['path'], ' x '.join(map(str, row['shape'])), row['spec'])
    tables.append(arrays)
  facts = rich_table.Table('what', 'value', title='Recipe')
  for name, value in described.items():
    if name != 'arrays':
      _add_rows(facts, name, value)
  return [*tables, facts]


def _add_rows(facts: rich_table.Table, name: str, value: Any) -> None:
  if isinstance(value, dict):
    for part, inner in value.items():
      _add_rows(facts, part if name == 'recipe' else f'{name}.{part}', inner)
  else:
    facts.add_row(
      name, f'{value:,}' if isinstance(value, int) and not isinstance(value, bool) else str(value)
    )
