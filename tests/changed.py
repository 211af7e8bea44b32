"""For tests of comparisons: runs of a base recipe and of changes of it, that leave the plateau where they are told.

And what is found beside them: runs that were fine-tuned on them, and baselines of counts.
"""

import math
import pathlib
from typing import Any

from configs import base
from minilm_jax import recipe, run
from tests import scored

LENGTH, BATCH, EVERY, PLATEAU = 128, 32, 50, 6.0
PER_ROW = 1e8  # FLOPs


def loss(update: float, leaves: float, seed: int = 0) -> float:
  """Falls to the plateau by update 200, stands there, and drops from when it leaves."""
  value = PLATEAU * max(1.0, (update / 200) ** -0.3) * min(1.0, (update / leaves) ** -0.4)
  return value * (1 + 0.002 * math.sin(seed))


def trained(folder: pathlib.Path, leaves: float | list[float] = 1000, updates: int = 4000, planned: int = 4000,
            seed: int = 0, corpus: str = 'c0ffee', tokenizer: str = 'abc', per_row: float = PER_ROW, **fields: Any) -> pathlib.Path:
  """A run, or a population with a number a member; a field of a recipe has `__` for its dot."""
  each = leaves if isinstance(leaves, list) else [leaves]
  made = recipe.as_dict(recipe.resolve(base.pretrain(), 'pretrain')) | {
      'seed': seed, 'updates': planned, 'batch_size': BATCH, 'corpus': str(folder)}
  made['population']['members'] = len(each)
  for name, value in fields.items():
    group, _, field = name.rpartition('__')
    part = made[group] if group else made
    if field not in part:
      raise TypeError(f'no such field of a recipe: {name}')
    part[field] = value
  folder.mkdir(parents=True)
  run.write_json(folder / run.CONFIG, made)
  run.write_json(folder / run.MANIFEST, {
      'corpus': corpus, 'tokenizer': tokenizer, 'parameters': {'embedding': 600, 'other': 400, 'total': 1000},
      'flops_per_row': {'honey': per_row, 'kaplan': per_row, 'actual': per_row}, 'warmup': 50, 'devices': ['cpu']})
  lines = []
  for step in range(EVERY, updates + 1, EVERY):
    for member, one in enumerate(each):
      whose = {'member': member} if len(each) > 1 else {}
      lines.append({'step': step, 'split': 'validation', **whose, 'loss': loss(step, one, seed + member),
                    'tokens': step * made['batch_size'] * LENGTH, 'flops': step * made['batch_size'] * per_row})
      if step == planned:
        lines.append(lines[-1] | {'split': 'test', 'loss': lines[-1]['loss'] + 0.1})
  run.write_lines(folder / run.METRICS, lines)
  if updates == planned:
    run.write_json(folder / run.RESULT, {'updates': updates})
  return folder


def tuned(source: pathlib.Path, task: str, values: dict[int, float], **fields: Any) -> pathlib.Path:
  """A run fine-tuned on `source`, in a folder `glue` beside it, with a headline score a seed."""
  folder = source.parent / 'glue' / f'{source.name}-{task}-{len(fields)}'
  folder.mkdir(parents=True)
  run.write_json(folder / run.CONFIG, {'kind': 'finetune', 'checkpoint': str(source), 'task': {'name': task}})
  run.write_lines(folder / run.SCORES, [scored.line(value, seed, task=task, metric='accuracy', checkpoint=source.name,
                                                    **fields) for seed, value in values.items()])
  return folder


def counted(folder: pathlib.Path, losses: dict[str, float], corpus: str = 'c0ffee', rows: int = 2000, order: int = 0,
            split: str = 'validation') -> pathlib.Path:
  """Baselines on the corpus of `trained`, by predictor."""
  folder.mkdir(parents=True)
  run.write_json(folder / run.CONFIG, {'kind': 'baselines', 'corpus': corpus, 'rows': rows,
                                      'subset': {'rows': 0, 'tokens': 0, 'order': order}})
  run.write_json(folder / run.RESULT, {'rows': [{'predictor': name, 'split': split, 'loss': loss}
                                               for name, loss in losses.items()]})
  return folder
