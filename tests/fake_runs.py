"""Writes run directories, score lines and loss curves without training.

The configurations come from the real recipe types.
"""

import csv
import functools
import gzip
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from configs import base, glue
from minilm_jax.analysis import logged_table
from minilm_jax.analysis.loss_curves import LossCurve, ModelShape
from minilm_jax.core import files, recipe, run_dir

ROW_LENGTH = 128  # tokens
PLATEAU_BATCH_SIZE, PLATEAU_LOSS, PLATEAU_EVALUATION_STEPS = 32, 6.0, 50
PLATEAU_FLOPS_PER_ROW = 1e8
SCALING_BATCH_SIZE, SCALING_VOCAB_SIZE = 256, 1000
GAP_MODEL = {
  'embedding_size': 32,
  'hidden_size': 32,
  'intermediate_size': 64,
  'num_heads': 2,
  'num_layers': 1,
  'vocab_size': 500,
}


# Configurations.


@functools.cache
def _default_config(kind: str) -> str:
  config = base.pretrain() if kind == 'pretrain' else glue.get_config('microworld/sentiment')
  return json.dumps(recipe.as_dict(recipe.resolve(config, kind)))


def make_config(kind: str, **fields: Any) -> dict[str, Any]:
  """Returns the configuration of a run as config.json holds it.

  Args:
    kind: 'pretrain' or 'finetune'.
    **fields: changed fields of the recipe, with `__` in place of a dot.

  Raises:
    TypeError: the recipe type has no such field.
  """
  config = json.loads(_default_config(kind))
  for name, value in fields.items():
    group, _, field = name.rpartition('__')
    section = config[group] if group else config
    if field not in section:
      raise TypeError(f'no such field of a recipe: {name}')
    section[field] = value
  return config


def _write_run(
  folder: pathlib.Path,
  config: dict[str, Any],
  manifest: dict[str, Any] | None = None,
  lines: Sequence[dict[str, Any]] | None = None,
  result: dict[str, Any] | None = None,
) -> pathlib.Path:
  """Writes a run into a new folder: its recipe, and the other files that are given."""
  folder.mkdir(parents=True)
  for name, content in (
    (run_dir.CONFIG, config),
    (run_dir.MANIFEST, manifest),
    (run_dir.RESULT, result),
  ):
    if content is not None:
      files.write_json(folder / name, content)
  if lines is not None:
    run_dir.write_lines(folder / run_dir.METRICS, lines)
  return folder


# Pre-training runs.


def write_pretraining_run(
  folder: pathlib.Path, *, updates: int = 300, finished: bool = True, nan_at: int = -1
) -> pathlib.Path:
  """Writes a run of 300 planned steps without model sizes.

  `updates` steps are logged. The loss at step `nan_at` is NaN.
  """
  manifest = {
    'parameters': {'embedding': 600_000, 'other': 650_000, 'total': 1_250_000},
    'devices': ['cpu', 'cpu'],
  }
  lines = []
  for step in range(50, updates + 1, 50):
    loss = math.nan if step == nan_at else 4 + 5 * math.exp(-step / 100)
    common = {'step': step, 'tokens': step * 32768, 'flops': step * 2.5e11, 'seconds': step * 0.4}
    lines.append(
      {
        **common,
        'split': 'train',
        'loss': loss + 0.1,
        'perplexity': math.exp(4),
        'learning_rate': 1e-3,
      }
    )
    if step % 100 == 0:
      lines.append({**common, 'split': 'validation', 'loss': loss, 'perplexity': math.exp(loss)})
  result = {'updates': updates} if finished else None
  return _write_run(folder, make_config('pretrain', num_steps=300), manifest, lines, result)


def write_subset_run(
  folder: pathlib.Path,
  rows: int,
  updates: int = 100,
  overlap: float | None = None,
  by: str = 'overlap',
  task: str = 'ag_news',
  of_rows: int = 100_000,
  tokenizer: str = 'abc',
  seed: int = 0,
  **model: Any,
) -> pathlib.Path:
  """Writes a pre-training run on a subset of the corpus: `rows` of `of_rows` rows of 100 tokens."""
  subset = None
  if overlap is not None:
    subset = {
      'of': 'whole',
      'task': task,
      'by': by,
      'overlap': {'value': overlap, 'low': None, 'high': None},
    }
    of_rows = rows
  changes = {f'model__{name}': value for name, value in (GAP_MODEL | model).items()}
  config = make_config('pretrain', num_steps=updates, batch_size=32, seed=seed, **changes)
  manifest = {
    'tokenizer': tokenizer,
    'corpus': folder.name if subset else 'whole',
    'parameters': {'total': 1000},
    'training': {
      'rows': rows,
      'tokens': 100 * rows,
      'of_rows': of_rows,
      'of_tokens': 100 * of_rows,
      'subset': subset,
    },
  }
  return _write_run(folder, config, manifest)


def continue_run(folder: pathlib.Path, source: str, step: int) -> pathlib.Path:
  """Changes the manifest of a run: its first weights are those of a checkpoint of another run."""
  manifest = files.read_json(folder / run_dir.MANIFEST, 'manifest')
  origin = {'checkpoint': source, 'checkpoint_step': step, 'optimizer': False, 'weights': 'c0ffee'}
  files.write_json(folder / run_dir.MANIFEST, manifest | {run_dir.ORIGIN: origin})
  return folder


def compute_plateau_loss(step: float, exit_step: float, seed: int = 0) -> float:
  """Returns a loss that stays on the plateau from step 200 to step `exit_step`."""
  loss = PLATEAU_LOSS * max(1.0, (step / 200) ** -0.3) * min(1.0, (step / exit_step) ** -0.4)
  return loss * (1 + 0.002 * math.sin(seed))


def write_plateau_run(
  folder: pathlib.Path,
  exit_step: float | list[float] = 1000,
  updates: int = 4000,
  planned: int = 4000,
  seed: int = 0,
  corpus: str = 'c0ffee',
  tokenizer: str = 'abc',
  per_row: float = PLATEAU_FLOPS_PER_ROW,
  **fields: Any,
) -> pathlib.Path:
  """Writes a run that leaves the plateau at step `exit_step`, or a population with a step a member.

  `updates` of the `planned` steps are logged. `fields` are changed fields of the recipe as in
  `make_config`.
  """
  departures = exit_step if isinstance(exit_step, list) else [exit_step]
  config = make_config(
    'pretrain',
    **{
      'seed': seed,
      'num_steps': planned,
      'batch_size': PLATEAU_BATCH_SIZE,
      'corpus': str(folder),
      'population__members': len(departures),
      **fields,
    },
  )
  manifest = {
    'corpus': corpus,
    'tokenizer': tokenizer,
    'parameters': {'embedding': 600, 'other': 400, 'total': 1000},
    'flops_per_row': {'honey': per_row, 'kaplan': per_row, 'actual': per_row},
    'warmup': 50,
    'devices': ['cpu'],
  }
  lines = []
  for step in range(PLATEAU_EVALUATION_STEPS, updates + 1, PLATEAU_EVALUATION_STEPS):
    rows = step * config['batch_size']
    for member, departure in enumerate(departures):
      label = {'member': member} if len(departures) > 1 else {}
      lines.append(
        {
          'step': step,
          'split': 'validation',
          **label,
          'loss': compute_plateau_loss(step, departure, seed + member),
          'tokens': rows * ROW_LENGTH,
          'flops': rows * per_row,
        }
      )
      if step == planned:
        lines.append(lines[-1] | {'split': 'test', 'loss': lines[-1]['loss'] + 0.1})
  result = {'updates': updates} if updates == planned else None
  return _write_run(folder, config, manifest, lines, result)


def count_parameters(shape: ModelShape) -> tuple[int, int, float]:
  """Returns embedding and other parameters of an untied model (papers.md 1.1), and FLOPs a row."""
  e, h, f, layers, v = (
    shape.embedding,
    shape.hidden,
    shape.feed_forward,
    shape.layers,
    shape.vocabulary,
  )
  embedding = (v + 134) * e
  other = e * h + 3 * h + layers * (4 * h * h + 9 * h + 2 * h * f + f) + h * h + 3 * h + h * v + v
  return embedding, other, 6.0 * ROW_LENGTH * (embedding + other)


def compute_scaling_loss(shape: ModelShape, step: int, seed: int = 0) -> float:
  """Returns a loss that falls with the steps and with the size of the model."""
  capacity = math.log(shape.hidden * shape.layers**0.5 * shape.embedding**0.25)
  return 1 + 9 / capacity + 4 / step**0.4 + 0.01 * math.sin(7 * seed + shape.layers)


def write_scaling_run(
  folder: pathlib.Path,
  *,
  updates: int = 800,
  planned: int = 800,
  every: int = 100,
  members: int = 1,
  population: dict[str, Any] | None = None,
  seed: int = 0,
  finished: bool = True,
  **shape: int,
) -> pathlib.Path:
  """Writes a run, or a population, with the losses of `compute_scaling_loss`.

  `shape` has fields of ModelShape as in `make_scaling_curve`.
  """
  model = make_scaling_curve(**shape).shape
  embedding, other, flops = count_parameters(model)
  changes = {
    f'population__{name}': value
    for name, value in ({'members': members} | (population or {})).items()
  }
  config = make_config(
    'pretrain',
    seed=seed,
    batch_size=SCALING_BATCH_SIZE,
    num_steps=planned,
    optimizer__learning_rate=1e-3,
    model__embedding_size=model.embedding,
    model__hidden_size=model.hidden,
    model__intermediate_size=model.feed_forward,
    model__flops_heads=model.heads,
    model__num_layers=model.layers,
    model__vocab_size=model.vocabulary,
    model__max_length=ROW_LENGTH,
    **changes,
  )
  manifest = {
    'parameters': {'embedding': embedding, 'other': other, 'total': embedding + other},
    'warmup': 20,
    'flops_per_row': {'honey': flops, 'kaplan': 6.0 * other * ROW_LENGTH, 'actual': flops / 3},
    'devices': ['cpu'],
  }
  lines = []
  for step in range(every, updates + 1, every):
    rows = step * SCALING_BATCH_SIZE
    for member in range(members):
      label = {'member': member} if members > 1 else {}
      for split in ('train', 'validation') + (('test',) if step == planned else ()):
        loss = compute_scaling_loss(model, step, seed + member) + (0.01 if split == 'test' else 0)
        lines.append(
          {
            'step': step,
            'split': split,
            **label,
            'loss': loss,
            'perplexity': math.exp(loss),
            'seconds': step * 0.1,
            'tokens': rows * ROW_LENGTH,
            'flops': rows * flops / 3,
          }
        )
  result = {'updates': updates} if finished else None
  return _write_run(folder, config, manifest, lines or None, result)


# Fine-tuning runs.


def make_score_line(
  value: float | None, seed: int = 0, pretrained: bool = True, **fields: Any
) -> dict[str, Any]:
  """Returns a line of scores.jsonl; `fields` replace those of a headline of CoLA."""
  line = {
    'task': 'cola',
    'metric': 'matthews',
    'value': value,
    'low': None,
    'high': None,
    'headline': True,
    'split': 'validation',
    'examples': 1043,
    'train_examples': 8551,
    'held_out': 0,
    'pretrained': pretrained,
    'checkpoint': 'tiny',
    'checkpoint_step': 100 if pretrained else None,
    'filtered': False,
    'seed': seed,
    'learning_rate': 1e-4,
    'member': 0,
    'epoch': 3.0,
    'epoch_choice': 'last',
    'validation_score': None,
    'majority': 0.0,
    'frequency': 0.0,
    'constant_prediction': False,
    'truncated': 0,
  }
  if fields.keys() - line.keys():
    raise TypeError(f'no such field of a line of scores: {fields.keys() - line.keys()}')
  return line | fields


def write_finetune_config(
  folder: pathlib.Path,
  checkpoint: str,
  task: str,
  starts: Sequence[int | None] = (100,),
  epochs: float = 3.0,
  **task_fields: Any,
) -> None:
  """Writes the config.json of a fine-tuning run into a new folder.

  `starts` are the steps of the checkpoints; None stands for fresh weights.
  """
  changes = {f'task__{name}': value for name, value in task_fields.items()}
  config = make_config('finetune', task__name=task, epochs=epochs, **changes)
  _write_run(folder, {**config, 'checkpoint': checkpoint, 'starts': list(starts)})


def write_finetune_run(
  folder: pathlib.Path,
  source: pathlib.Path,
  values: Sequence[float],
  pretrained: bool = True,
  task: str = 'ag_news',
  seeds: Sequence[int] | None = None,
  **fields: Any,
) -> pathlib.Path:
  """Writes a run fine-tuned from `source` with one accuracy a seed.

  `fields` replace those of the score lines.
  """
  write_finetune_config(folder, str(source), task, (100 if pretrained else None,))
  run_dir.write_lines(
    folder / run_dir.SCORES,
    [
      make_score_line(
        value,
        seed,
        pretrained,
        **{
          'task': task,
          'metric': 'accuracy',
          'checkpoint': source.name,
          'member': member,
          **fields,
        },
      )
      for member, (seed, value) in enumerate(zip(seeds or range(len(values)), values, strict=True))
    ],
  )
  files.write_json(folder / run_dir.RESULT, {})
  return folder


def change_config(folder: pathlib.Path, **fields: Any) -> None:
  """Replaces top-level fields of the config.json of a run."""
  files.write_json(
    folder / run_dir.CONFIG, files.read_json(folder / run_dir.CONFIG, 'the recipe') | fields
  )


def write_finetune_log(folder: pathlib.Path) -> pathlib.Path:
  """Adds metrics.jsonl to a fine-tuning run: one epoch of 100 steps for each of its score lines."""
  lines = []
  for line in run_dir.read_lines(folder / run_dir.SCORES):
    common = {name: line[name] for name in ('seed', 'learning_rate', 'member', 'pretrained')}
    common |= {'step': 100, 'epoch': 1.0}
    lines += [
      {**common, 'split': 'train', 'loss': 0.6, 'seconds': 5.0},
      {**common, 'split': 'held_out', 'accuracy': line['value']},
    ]
  run_dir.write_lines(folder / run_dir.METRICS, lines)
  return folder


def write_finetune_pair(
  home: pathlib.Path,
  source: pathlib.Path,
  pretrained: list[float],
  scratch: list[float],
  task: str = 'ag_news',
  seeds: Sequence[int] = (0, 1, 2),
) -> None:
  """Writes two runs into `home`/tasks: fine-tuned from `source`, and from fresh weights."""
  for arm, values in (('p', pretrained), ('s', scratch)):
    write_finetune_run(
      home / 'tasks' / f'{source.name}-{task}-{arm}', source, values, arm == 'p', task, seeds
    )


def write_glue_run(
  source: pathlib.Path, task: str, values: dict[int, float], **fields: Any
) -> pathlib.Path:
  """Writes a run fine-tuned from `source` into the sibling folder `glue` of `source`.

  `values` maps seeds to accuracies.
  """
  folder = source.parent / 'glue' / f'{source.name}-{task}-{len(fields)}'
  return write_finetune_run(
    folder, source, list(values.values()), task=task, seeds=list(values), **fields
  )


# Other files.


def write_ngram_baselines(
  folder: pathlib.Path,
  losses: dict[str, Any],
  corpus: str = 'c0ffee',
  rows: int = 2000,
  shuffle_seed: int = 0,
  split: str = 'validation',
) -> pathlib.Path:
  """Writes n-gram baselines, one loss a predictor, on the corpus of `write_plateau_run`."""
  config = {
    'kind': 'baselines',
    'corpus': corpus,
    'rows': rows,
    'subset': {'rows': 0, 'tokens': 0, 'shuffle_seed': shuffle_seed},
  }
  measured = [{'predictor': name, 'split': split, 'loss': loss} for name, loss in losses.items()]
  return _write_run(folder, config, result={'rows': measured})


def write_examples(folder: pathlib.Path, **splits: list[dict[str, Any]]) -> str:
  """Writes one file of examples a split and returns the folder."""
  folder.mkdir(exist_ok=True)
  for split, rows in splits.items():
    (folder / f'{split}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(folder)


def make_log_row(
  name: str = 'a', updates: int = 100, loss: object = 3.0, **fields: object
) -> dict[str, object]:
  """Returns a row of a logged table: an evaluation of the smallest run of paper 1."""
  return {
    'run_name': name,
    'eval/updates': updates,
    'eval/loss': loss,
    'embedding_size': 32.0,
    'hidden_size': 32,
    'intermediate_size': 64,
    'num_attention_heads': 1,
    'num_hidden_layers': 1,
    'Embedding parameters': 612608,
    'Non-embedding parameters': 638114,
    'FLOPS Hoffman per sequence': 943964160,
    'FLOPS Kaplan per sequence': 6 * 638114 * 128,
    'Tokens': updates * 32768,
    **fields,
  }


def write_log_table(path: pathlib.Path, rows: list[dict[str, object]]) -> pathlib.Path:
  """Writes a logged table as CSV, compressed if the name ends in .gz."""
  open_file = gzip.open if path.suffix == '.gz' else open
  with open_file(path, 'wt', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  return path


# Loss curves.


def make_scaling_curve(
  name: str = 'a', last: float | None = None, evaluations: int = 8, every: int = 100, **changes: Any
) -> LossCurve:
  """Returns a loss curve of shape (32, 32, 64, 1, 1) that ends at the loss `last`.

  `changes` replace fields of the shape or of the curve.
  """
  shape = ModelShape(32, 32, 64, 1, 1, SCALING_VOCAB_SIZE)
  shape = ModelShape(
    **{field: changes.pop(field, getattr(shape, field)) for field in shape.__dataclass_fields__}
  )
  embedding, other, flops = count_parameters(shape)
  steps = tuple(range(every, every * evaluations + 1, every))
  losses = [compute_scaling_loss(shape, step, changes.get('seed') or 0) for step in steps]
  if last is not None:
    losses = [loss - losses[-1] + last for loss in losses]
  fields = {
    'name': name,
    'shape': shape,
    'embedding_parameters': embedding,
    'other_parameters': other,
    'tied': False,
    'length': ROW_LENGTH,
    'flops_per_row': {'honey': flops, 'kaplan': 6.0 * other * ROW_LENGTH},
    'updates': steps,
    'rows': tuple(SCALING_BATCH_SIZE * step for step in steps),
    'loss': tuple(losses),
    'finished': True,
    'test_loss': losses[-1],
  }
  return LossCurve(**fields | changes)


def make_loss_curve(
  name: str,
  updates: Sequence[int],
  loss: Sequence[float],
  per_row: float = 1e9,
  finished: bool = True,
  warmup: int | None = None,
  parameters: int = 1_000_000,
  counts: Sequence[str] = ('honey',),
) -> LossCurve:
  """Returns the loss curve of a run with 256 rows a step."""
  return LossCurve(
    name,
    ModelShape(32, 32, 64, 1, 1, 19010),
    parameters // 2,
    parameters - parameters // 2,
    128,
    {count: per_row for count in counts},
    tuple(updates),
    tuple(256 * step for step in updates),
    tuple(float(value) for value in loss),
    finished=finished,
    seed=0,
    learning_rate=5e-4,
    warmup=warmup,
    tied=False,
  )


def read_paper1_curves(data: pathlib.Path) -> list[LossCurve]:
  """Returns the 42 logged loss curves of paper 1; skips the test if the table is missing."""
  path = data / 'honey_logs' / 'eval_results.csv.gz'
  if not path.is_file():
    pytest.skip(f'needs the logged table; {path} does not exist')
  return logged_table.read_csv(path)


def draw_run_ends(
  law: Callable[[np.ndarray], np.ndarray],
  noise: float,
  seed: int | tuple[int, ...],
  points: int = 40,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns compute between 1e14 and 1e18 FLOPs, and losses of `law` with log-normal errors."""
  generator = np.random.default_rng(seed)
  compute = np.exp(generator.uniform(np.log(1e14), np.log(1e18), points))
  return compute, law(compute) * np.exp(noise * generator.normal(size=points))
