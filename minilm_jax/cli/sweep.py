"""Trains a grid of points one after another; each point is a run.

    S/POINT/                    run directory of one model, or of a population (seeds and rates)
    S/POINT/member-0/           run directory of one member of a finished population
    S/POINT/bits_per_word.json  bits per word of the model (`evaluation/likelihood.py`)
    S/POINT/failure.json        error of the last attempt, removed on success
    S/corpora/8000/             corpus with a tokenizer of 8,000 pieces, for points of that size

Machines that share the folder train disjoint shares of the points, without coordination. A repeated
command skips finished points, resumes interrupted points and retries failed points.
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
from minilm_jax.training import pretrained, run

# Rows of the embedding table beyond the tokenizer, as in the released code of paper 1.
_EXTRA_VOCAB_ROWS = 10
_POLL_SECONDS = 5.0
FINISHED, FAILED, LOCKED = 'finished', 'failed', 'left to another process'


def run_sweep(
  configs: PointConfigs,
  workdir: epath.PathLike,
  shard: str = '',
  budget: Budget = NO_BUDGET,
  dry_run: bool = False,
) -> list[dict[str, Any]]:
  """Trains the points of a sweep in the order of their FLOPs.

  Args:
    configs: recipes by point name.
    workdir: folder of the sweep.
    shard: share of this process, as K/N; '' trains all points.
    budget: training length that replaces `num_steps` of the recipes.
    dry_run: return the cost of each point without training.

  Returns:
    One row a point, with its cost (dry run) or its state and losses.

  Raises:
    InputError: two points are identical, or the shard is invalid or empty.
  """
  sweep_plan.check_points(configs)
  workdir = epath.Path(workdir)
  points = sweep_plan.shard_points(sweep_plan.apply_budget(configs, budget), shard)
  if not points:
    raise InputError(
      f'--shard={shard}', f'no point in this share of {len(configs)} points', 'give fewer shares'
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


def make_sweep_tables(rows: list[dict[str, Any]]) -> list[rich_table.Table]:
  """Returns the rows of `run_sweep` as a table."""
  if 'state' not in rows[0]:
    return sweep_plan.make_plan_tables(rows)
  table = rich_table.Table(
    'point', 'state', 'test loss, nats', 'bits per word', 'time in this process', title='Sweep'
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
  """Trains a point and returns its state and losses; stores an error and returns normally."""
  start_time, folder = time.monotonic(), workdir / name
  row: dict[str, Any] = {'state': FINISHED, 'test_loss': [], 'bits_per_word': []}
  try:
    row |= _train_point(config, workdir, folder)
    (folder / run_dir.FAILURE).unlink(missing_ok=True)
  except lock.LockedError as error:
    row['state'] = LOCKED
    progress.log(f'skipping {name}: {error.found}')
  except InputError as error:
    row |= _record_failure(folder, error)
  except (jax.errors.JaxRuntimeError, MemoryError) as error:  # mostly out of memory
    first_line = str(error).strip().partition('\n')[0]
    row |= _record_failure(
      folder,
      InputError(
        f'the point {name}',
        f'{type(error).__name__}: {first_line}',
        'raise grad_accumulation_steps, or lower batch_size or population.members, and give another '
        '--workdir',
      ),
    )
  jax.clear_caches()  # compiled programs do not fit the shapes of the next point
  return row | {'seconds': time.monotonic() - start_time}


def _record_failure(folder: epath.Path, error: InputError) -> dict[str, Any]:
  files.make_folder(folder, error.asked)
  parts = {'asked': error.asked, 'found': error.found, 'remedy': error.remedy}
  files.write_json(folder / run_dir.FAILURE, parts)
  progress.log(f'{error}\nstored in {folder / run_dir.FAILURE}; the sweep continues')
  return {'state': FAILED, 'reason': f'{error.asked}: {error.found}'}


def _train_point(config: RunConfig, workdir: epath.Path, folder: epath.Path) -> dict[str, Any]:
  config = dataclasses.replace(config, corpus=str(_find_corpus(config, workdir)))
  result = run.pretrain(config, folder)
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
  """Returns bits per word on the validation split, from a stored result if present.

  Returns None for a corpus without validation rows, or with too few complete words in them.
  """
  path = old_names.find_file(model / run_dir.BITS_PER_WORD)
  if not path.exists():
    folder = run_dir.read_corpus_hashes(model)['corpus_folder']
    if not corpus.read_manifest(folder)['splits']['validation']['rows']:
      return None
    files.write_json(path, evaluate.evaluate_loss(model, '', 'validation', bits_only=True))
  return files.read_json(path, f'bits per word of {model}')['bits_per_word']


def _find_corpus(config: RunConfig, workdir: epath.Path) -> epath.PathLike:
  """Returns the corpus of a point; rebuilds it if the tokenizer does not fit `vocab_size`.

  Raises:
    InputError: the corpus cannot be read or built.
  """
  if not config.corpus or recipe.split_argument(config.corpus)[0].endswith('.py'):
    return config.corpus  # pretrain refuses '', and builds the corpus of a recipe
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
  """Returns `make()`, called under the lock of the folder; waits while another process holds it."""
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
