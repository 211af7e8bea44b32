"""A sweep: a grid of points, each a run of its own, trained one after another.

    S/POINT/                    the run: one model, or a population of seeds and learning rates
    S/POINT/member-0/           a member of a finished population, a run like any other
    S/POINT/bits_per_word.json  bits per word of the model (`evaluation/likelihood.py`)
    S/POINT/failure.json        the error of the point, until it succeeds
    S/corpora/8000/             the corpus under another tokenizer, for points of another vocabulary

Several machines that share the folder train a share of the points each, without coordination. The
same command again continues: finished points are skipped, interrupted points are resumed, failed
points are tried again.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from rich import table as rich_table

from minilm_jax.cli import sweep_plan
from minilm_jax.cli.sweep_plan import NO_BUDGET, Budget, PointConfigs
from minilm_jax.core import files, lock, old_names, progress, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import build, corpus
from minilm_jax.evaluation import evaluate
from minilm_jax.training import pretrain, pretrained

# Rows of a vocabulary beyond the pieces of its tokenizer, as in the released code of paper 1.
_EXTRA_VOCAB_ROWS = 10
_POLL_SECONDS = 5.0
FINISHED, FAILED, LEFT = 'finished', 'failed', 'left to another process'


def run_sweep(
  configs: PointConfigs,
  workdir: epath.PathLike,
  shard: str = '',
  budget: Budget = NO_BUDGET,
  dry_run: bool = False,
) -> list[dict[str, Any]]:
  """Trains the points of a sweep from the cheapest to the most expensive.

  Args:
    configs: recipes by the names of their points.
    workdir: folder of the sweep.
    shard: k/n, the share of this process; '' is all.
    budget: length of the training in place of the recipes.
    dry_run: train nothing and return the cost of each point.

  Returns:
    A row a point: its cost, or its state and losses.

  Raises:
    InputError: two points are the same, or the shard is invalid or empty.
  """
  sweep_plan.check_points(configs)
  workdir = epath.Path(workdir)
  points = sweep_plan.shard_points(sweep_plan.apply_budget(configs, budget), shard)
  if not points:
    raise InputError(
      f'--shard={shard}', f'{len(configs)} points, and none is left for it', 'give fewer shares'
    )
  step_seconds = sweep_plan.time_steps(points) if dry_run or budget.seconds else {}
  if budget.seconds:
    points = sweep_plan.apply_seconds(points, workdir, budget.seconds, step_seconds)
  if dry_run:
    return sweep_plan.describe_plan(points, step_seconds)
  rows = []
  for number, (name, config) in enumerate(points.items(), 1):
    progress.log(f'point {number} of {len(points)}: {name}')
    rows.append({'point': name, **_run_point(config, workdir, name)})
  return rows


def sweep_tables(rows: list[dict[str, Any]]) -> list[rich_table.Table]:
  """Returns the table of the rows of `run_sweep`, of a dry run too."""
  if 'state' not in rows[0]:
    return sweep_plan.plan_tables(rows)
  table = rich_table.Table(
    'point', 'state', 'test loss, nats', 'bits per word', 'time here', title='Sweep'
  )
  for row in rows:
    losses, bits = (
      ', '.join(f'{value:.3f}' for value in row[name] if value is not None)
      for name in ('test_loss', 'bits_per_word')
    )
    table.add_row(
      row['point'], row['state'], losses, bits, progress.format_duration(row['seconds'])
    )
  return [table]


def _run_point(config: RunConfig, workdir: epath.Path, name: str) -> dict[str, Any]:
  """Returns state and losses of a point; an error is stored in its folder and stops no other."""
  start_time, folder = time.monotonic(), workdir / name
  row: dict[str, Any] = {'state': FINISHED, 'test_loss': [], 'bits_per_word': []}
  try:
    row |= _train_point(config, workdir, folder)
    (folder / run_dir.FAILURE).unlink(missing_ok=True)
  except lock.LockedError as error:
    row['state'] = LEFT
    progress.log(f'{name} is left out: {error.found}')
  except InputError as error:
    row |= _record_failure(folder, error)
  except (jax.errors.JaxRuntimeError, MemoryError) as error:  # mostly a lack of memory
    first_line = str(error).strip().partition('\n')[0]
    row |= _record_failure(
      folder,
      InputError(
        f'the point {name}',
        f'{type(error).__name__}: {first_line}',
        'raise grad_accumulation_steps, lower batch_size or population.members',
      ),
    )
  jax.clear_caches()  # the next point has other shapes
  return row | {'seconds': time.monotonic() - start_time}


def _record_failure(folder: epath.Path, error: InputError) -> dict[str, Any]:
  files.make_folder(folder, error.asked)
  parts = {'asked': error.asked, 'found': error.found, 'remedy': error.remedy}
  files.write_json(folder / run_dir.FAILURE, parts)
  progress.log(f'{error}\nit stands in {folder / run_dir.FAILURE}; the sweep goes on')
  return {'state': FAILED, 'reason': f'{error.asked}: {error.found}'}


def _train_point(config: RunConfig, workdir: epath.Path, folder: epath.Path) -> dict[str, Any]:
  config = dataclasses.replace(config, corpus=str(_find_corpus(config, workdir)))
  result = pretrain.pretrain(config, folder)
  models = [folder]
  if config.population.members > 1:
    models = [folder / f'member-{number}' for number in range(config.population.members)]
    for number, model in enumerate(models):
      if not (model / run_dir.RESULT).exists():
        pretrained.extract_member(folder, number, model)
  members = result['members'] if 'members' in result else [result]
  return {
    'test_loss': [member.get('test_loss') for member in members],
    'bits_per_word': [_measure_word_bits(model) for model in models],
  }


def _measure_word_bits(model: epath.Path) -> float | None:
  """Returns bits per word of a run on the validation split, stored once; None without that split."""
  path = old_names.find_file(model / run_dir.BITS_PER_WORD)
  if not path.exists():
    folder = files.read_json(model / run_dir.MANIFEST, f'the manifest of {model}')['corpus_folder']
    if not corpus.read_manifest(folder)['splits']['validation']['rows']:
      return None
    files.write_json(path, evaluate.evaluate_word_bits(model, 'validation'))
  return files.read_json(path, f'bits per word of {model}')['bits_per_word']


def _find_corpus(config: RunConfig, workdir: epath.Path) -> epath.PathLike:
  """Returns the corpus of a point, rebuilt if its tokenizer does not fit `vocab_size`.

  Raises:
    InputError: the corpus cannot be read or built.
  """
  if not config.corpus or config.corpus.partition(':')[0].endswith('.py'):
    return config.corpus  # missing, which pretrain refuses; or a recipe, which has its own size
  pieces, rows = corpus.read_manifest(config.corpus)['vocabulary'], config.model.vocab_size
  if pieces <= rows <= pieces + _EXTRA_VOCAB_ROWS:
    return config.corpus
  stored = files.read_json(
    epath.Path(config.corpus) / run_dir.CONFIG, f'the recipe of {config.corpus}'
  )
  corpus_config = recipe.resolve(stored, 'corpus')
  size = rows - _EXTRA_VOCAB_ROWS
  tokenizer_config = dataclasses.replace(corpus_config.tokenizer, path='', size=size)
  corpus_config = dataclasses.replace(corpus_config, tokenizer=tokenizer_config)
  folder = workdir / 'corpora' / str(size)
  return _wait_for_lock(folder.parent, functools.partial(build.build_corpus, corpus_config, folder))


def _wait_for_lock(folder: epath.Path, make: Callable[[], epath.Path]) -> epath.Path:
  """Calls `make` while no other process works in the folder."""
  is_logged = False
  while True:
    try:
      with lock.hold_lock(folder):
        return make()
    except lock.LockedError as error:
      if not is_logged:
        progress.log(f'waiting: {error.found}')
      is_logged = True
      time.sleep(_POLL_SECONDS)
