"""A grid of points, each a run of its own in the folder of the sweep, trained one after another.

    S/POINT/            the run: of one model, or of the population of its seeds and learning rates
    S/POINT/member-0/   of a population, each member taken out when it has ended: a run like any other
    S/POINT/bits_per_word.json  what words cost the model (`tasks/words.py`); of a population in the folders of its members
    S/POINT/failure.json  why it failed, until it succeeds
    S/corpora/8000/     the corpus once more under another tokenizer, for points of another vocabulary

Several machines that share the folder take a share of the points each and need no coordinator. The same command again
goes on: what has ended is left alone, what was cut off is resumed, what failed is tried again.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from rich import table as rich_table

from minilm_jax import claim, old_names, plan, progress, recipe, run
from minilm_jax.config import RunConfig
from minilm_jax.errors import InputError
from minilm_jax.language import build
from minilm_jax.language import corpus as corpora
from minilm_jax.tasks import evaluate
from minilm_jax.training import pretrain, pretrained

_SPARE = 10  # rows of a vocabulary beyond the pieces of its tokenizer, as in the released code of paper 1
_LOOK = 5.0  # seconds between two looks at what another process makes
FINISHED, FAILED, LEFT = 'finished', 'failed', 'left to another process'


def sweep(configs: Mapping[str, RunConfig], workdir: epath.PathLike, shard: str = '', tokens: float = 0.0,
          flops: float = 0.0, seconds: float = 0.0, dry_run: bool = False) -> list[dict[str, Any]]:
  """Trains the points of a grid, from the cheapest to the dearest.

  Args:
    configs: recipes by the names of their points.
    workdir: of the sweep.
    shard: k/n, the share of this process; '' is all.
    tokens, flops: that each member is trained for, whatever its recipe says; 0 and 0 ask the recipe.
    seconds: the same for each point, by a short measurement.
    dry_run: train nothing and say what each point takes.

  Returns:
    A row a point: what it takes, or what became of it.

  Raises:
    InputError: a point twice, no such share, or more than one budget.
  """
  plan.check_budget(tokens, flops, seconds)
  plan.check(configs)
  workdir = epath.Path(workdir)
  mine = plan.share(plan.budgeted(configs, tokens, flops), shard)
  if not mine:
    raise InputError(f'--shard={shard}', f'{len(configs)} points, and none is left for it', 'give fewer shares')
  each = plan.seconds_per_update(mine) if dry_run or seconds else {}
  if seconds:
    mine = plan.timed(mine, workdir, seconds, each)
  if dry_run:
    return plan.describe(mine, each)
  found = []
  for number, (name, config) in enumerate(mine.items(), 1):
    progress.say(f'point {number} of {len(mine)}: {name}')
    found.append({'point': name, **_tried(config, workdir, name)})
  return found


def tables(found: list[dict[str, Any]]) -> list[rich_table.Table]:
  """What became of the points, or in a dry run what they take, for a reader."""
  if 'state' not in found[0]:
    return plan.tables(found)
  table = rich_table.Table('point', 'state', 'test loss, nats', 'bits per word', 'time here', title='Sweep')
  for row in found:
    losses, bits = (', '.join(f'{value:.3f}' for value in row[name] if value is not None)
                    for name in ('test_loss', 'bits_per_word'))
    table.add_row(row['point'], row['state'], losses, bits, progress.duration(row['seconds']))
  return [table]


def _tried(config: RunConfig, workdir: epath.Path, name: str) -> dict[str, Any]:
  """What became of a point; a reason to fail goes into its folder and stops no other."""
  started, folder = time.monotonic(), workdir / name
  found: dict[str, Any] = {'state': FINISHED, 'test_loss': [], 'bits_per_word': []}
  try:
    found |= _point(config, workdir, folder)
    (folder / run.FAILURE).unlink(missing_ok=True)
  except claim.Held as error:
    found['state'] = LEFT
    progress.say(f'{name} is left out: {error.found}')
  except InputError as error:
    found |= _failure(folder, error)
  except (jax.errors.JaxRuntimeError, MemoryError) as error:  # of the machine: most often memory
    said = str(error).strip().partition('\n')[0]
    found |= _failure(folder, InputError(f'the point {name}', f'{type(error).__name__}: {said}',
                                         'raise grad_accumulation_steps, lower batch_size or population.members'))
  jax.clear_caches()  # what another shape compiles is of no use to the next
  return found | {'seconds': time.monotonic() - started}


def _failure(folder: epath.Path, error: InputError) -> dict[str, Any]:
  said = {'asked': error.asked, 'found': error.found, 'remedy': error.remedy}
  folder.mkdir(parents=True, exist_ok=True)
  run.write_json(folder / run.FAILURE, said)
  progress.say(f'{error}\nit stands in {folder / run.FAILURE}; the sweep goes on')
  return {'state': FAILED, 'reason': f'{error.asked}: {error.found}'}


def _point(config: RunConfig, workdir: epath.Path, folder: epath.Path) -> dict[str, Any]:
  config = dataclasses.replace(config, corpus=str(_corpus(config, workdir)))
  result = pretrain.pretrain(config, folder)
  models = [folder]
  if config.population.members > 1:
    models = [folder / f'member-{number}' for number in range(config.population.members)]
    for number, model in enumerate(models):
      if not (model / run.RESULT).exists():
        pretrained.extract_member(folder, number, model)
  bits = [_words(model) for model in models]
  members = result['members'] if 'members' in result else [result]
  return {'test_loss': [one['test_loss'] if 'test_loss' in one else None for one in members], 'bits_per_word': bits}


def _words(model: epath.Path) -> float | None:
  """Bits per word of a run on the validation split, now or from before; None without that split."""
  path = old_names.find_file(model / run.WORDS)
  if not path.exists():
    folder = run.read_json(model / run.MANIFEST, f'the manifest of {model}')['corpus_folder']
    if not corpora.manifest(folder)['splits']['validation']['rows']:
      return None
    run.write_json(path, evaluate.word_bits(model, 'validation'))
  return run.read_json(path, f'what words cost {model}')['bits_per_word']


def _corpus(config: RunConfig, workdir: epath.Path) -> epath.PathLike:
  """The corpus of a point: the one it names, or that once more under a tokenizer that fits the vocabulary.

  Raises:
    InputError: it cannot be read or made.
  """
  if not config.corpus or config.corpus.partition(':')[0].endswith('.py'):
    return config.corpus  # none, which is refused where it is looked for; or a recipe, which says the size itself
  pieces, rows = corpora.manifest(config.corpus)['vocabulary'], config.model.vocab_size
  if pieces <= rows <= pieces + _SPARE:
    return config.corpus
  made = run.read_json(epath.Path(config.corpus) / run.CONFIG, f'the recipe of {config.corpus}')
  made = recipe.resolve(made, 'corpus')
  made = dataclasses.replace(made, tokenizer=dataclasses.replace(made.tokenizer, path='', size=rows - _SPARE))
  folder = workdir / 'corpora' / str(rows - _SPARE)
  folder.parent.mkdir(parents=True, exist_ok=True)
  return _alone(folder.parent, functools.partial(build.build, made, folder))


def _alone(folder: epath.Path, make: Any) -> Any:
  """What `make` gives, when no other process makes something in the folder."""
  said = False
  while True:
    try:
      with claim.held(folder):
        return make()
    except claim.Held as error:
      if not said:
        progress.say(f'waiting: {error.found}')
      said = True
      time.sleep(_LOOK)
