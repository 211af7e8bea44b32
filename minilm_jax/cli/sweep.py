"""A grid of points, each a run of its own in the folder of the sweep, trained one after another.

    S/POINT/            the run: of one model, or of the population of its seeds and learning rates
    S/POINT/member-0/   of a population, each member taken out when it has ended: a run like any other
    S/POINT/bits_per_word.json  what words cost the model (`evaluation/likelihood.py`); of a population in the folders of its members
    S/POINT/failure.json  why it failed, until it succeeds
    S/corpora/8000/     the corpus once more under another tokenizer, for points of another vocabulary

Several machines that share the folder take a share of the points each and need no coordinator. The
same command again goes on: what has ended is left alone, what was cut off is resumed, what failed
is tried again.
"""

import dataclasses
import functools
import math
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from rich import table as rich_table

from minilm_jax.bench import timing
from minilm_jax.cli import show
from minilm_jax.core import files, lock, old_names, progress, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.core.progress import format_duration
from minilm_jax.data import build, corpus
from minilm_jax.evaluation import evaluate
from minilm_jax.model import flops
from minilm_jax.model.flops import flops_per_row
from minilm_jax.training import pretrain, pretrained

# What a sweep is to do: its points and whose they are, how long each is trained, what that takes.
_SHARD = re.compile(r'(\d+)/(\d+)')
_TIMED = 3  # points that are timed; the others follow from these
_TIMED_STEPS = 2  # updates of a repeat
PointConfigs = Mapping[str, RunConfig]


def check_points(configs: PointConfigs) -> None:
  """Refuses a sweep that has a point twice, by whatever names.

  Raises:
    InputError: names both.
  """
  seen: dict[RunConfig, str] = {}
  for name, config in configs.items():
    # that trains nothing
    same = dataclasses.replace(config, model=dataclasses.replace(config.model, flops_heads=1))
    if same in seen:
      raise InputError(
        f'a sweep of {len(configs)} points',
        f'{seen[same]} and {name} are the same point',
        'leave one of them out',
      )
    seen[same] = name


def total_flops(config: RunConfig) -> float:
  """FLOPs of an update, of all members."""
  rows = config.batch_size * config.population.members
  return rows * flops.flops_per_row(config.model, config.mask)['actual']


def shard_points(configs: PointConfigs, shard: str) -> PointConfigs:
  """The points that are one machine's, from the cheapest: every n-th, so that all machines have
  cheap and dear ones.

  Args:
    configs: all points.
    shard: k/n, from 1/n to n/n; '' is all of them.

  Raises:
    InputError: it is no such share.
  """
  match = _SHARD.fullmatch(shard or '1/1')
  part, parts = map(int, match.groups()) if match else (0, 0)
  if not 1 <= part <= parts:
    raise InputError(
      f'--shard={shard}',
      'not k/n with k from 1 to n',
      'give --shard=1/4 to the first machine of four',
    )
  order = sorted(
    configs, key=lambda name: (total_flops(configs[name]) * configs[name].num_steps, name)
  )
  return {name: configs[name] for name in order[part - 1 :: parts]}


def apply_budget(configs: PointConfigs, tokens: float, flops: float) -> PointConfigs:
  """The points with as many updates as give each member so many tokens or FLOPs; 0 and 0 leave them
  as they are.
  """

  def updates(config: RunConfig) -> int:
    rows = (
      tokens / config.model.max_length or flops / flops_per_row(config.model, config.mask)['actual']
    )
    return math.ceil(rows / config.batch_size)

  if not tokens and not flops:
    return configs
  return {
    name: dataclasses.replace(config, num_steps=updates(config)) for name, config in configs.items()
  }


def time_points(
  configs: PointConfigs, workdir: epath.PathLike, seconds: float, each: Mapping[str, float]
) -> PointConfigs:
  """The points with as many updates as take so many seconds each; one that has begun keeps its
  number.
  """
  found = {}
  for name, config in configs.items():
    begun = epath.Path(workdir) / name / run_dir.CONFIG
    updates = (
      files.read_json(begun, f'the recipe of {name}')['num_steps']
      if begun.exists()
      else max(1, math.floor(seconds / each[name]))
    )
    found[name] = dataclasses.replace(config, num_steps=updates)
  return found


def check_budget(tokens: float, flops: float, seconds: float) -> None:
  """Refuses more than one budget, and what is none.

  Raises:
    InputError: says which.
  """
  given = {
    name: value
    for name, value in (('tokens', tokens), ('flops', flops), ('seconds', seconds))
    if value
  }
  asked = ' '.join(f'--{name}={value:g}' for name, value in given.items())
  if len(given) > 1 or not all(0 < value < math.inf for value in given.values()):
    raise InputError(
      asked, 'more than one budget, or one that is not a positive number', 'give one'
    )


def seconds_per_step(configs: PointConfigs) -> dict[str, float]:
  """Seconds of an update of each point: some are timed on random rows, the others lie between them
  by their FLOPs.
  """
  order = sorted(configs, key=lambda name: total_flops(configs[name]))
  places = sorted({round(place) for place in np.linspace(0, len(order) - 1, _TIMED)})
  flops, found = [], []
  with progress.track_progress('timing', len(places), 'points') as tick:
    for number, name in enumerate((order[place] for place in places), 1):
      config = configs[name]
      step, _ = timing.time_our_step(config, timing.make_random_rows(config))
      found.append(statistics.median(timing.time_interleaved({'': step}, _TIMED_STEPS, 3)['']))
      flops.append(total_flops(config))
      del step
      jax.clear_caches()
      tick(number, f'{name} {1e3 * found[-1]:,.0f} ms an update')
  return {
    name: float(np.exp(np.interp(np.log(total_flops(config)), np.log(flops), np.log(found))))
    for name, config in configs.items()
  }


def describe_plan(configs: PointConfigs, each: Mapping[str, float]) -> list[dict[str, Any]]:
  """What each point takes: plain data, in order."""
  devices = jax.local_devices()
  copies = len(devices) if devices[0].platform == 'cpu' else 1  # those of a CPU have one memory
  found = []
  for name, config in configs.items():
    takes = show.describe_pretraining(config)
    found.append(
      {
        'point': name,
        **{key: takes[key] for key in ('members', 'parameters', 'updates', 'tokens', 'flops')},
        'bytes': copies * (takes['bytes']['state'] + takes['bytes']['gradient']),
        'seconds': config.num_steps * each[name],
      }
    )
  return found


def plan_tables(described: Sequence[Mapping[str, Any]]) -> list[rich_table.Table]:
  """The same for a reader, with the sum of the times."""
  found = rich_table.Table(
    title='FLOPs and tokens of one member; time of training alone, of all members'
  )
  for heading in (
    'point',
    'members',
    'parameters',
    'without embeddings',
    'updates',
    'tokens',
    'FLOPs (paper)',
    'Kaplan',
    'true',
    'state and gradient',
    'time',
  ):
    found.add_column(heading, justify='left' if heading == 'point' else 'right')
  for row in described:
    flops, parameters = row['flops'], row['parameters']
    counts = (f'{flops[name]:.3g}' for name in ('honey', 'kaplan', 'actual'))
    found.add_row(
      row['point'],
      str(row['members']),
      f'{parameters["total"]:,}',
      f'{parameters["other"]:,}',
      f'{row["updates"]:,}',
      f'{row["tokens"]:.3g}',
      *counts,
      f'{row["bytes"] / 2**20:,.0f} MiB',
      format_duration(row['seconds']),
    )
  found.add_section()
  found.add_row(
    f'{len(described)} points',
    *[''] * 8,
    '',
    format_duration(sum(row['seconds'] for row in described)),
  )
  return [found]


# rows of a vocabulary beyond the pieces of its tokenizer, as in the released code of paper 1
_SPARE = 10
_LOOK = 5.0  # seconds between two looks at what another process makes
FINISHED, FAILED, LEFT = 'finished', 'failed', 'left to another process'


def run_sweep(
  configs: Mapping[str, RunConfig],
  workdir: epath.PathLike,
  shard: str = '',
  tokens: float = 0.0,
  flops: float = 0.0,
  seconds: float = 0.0,
  dry_run: bool = False,
) -> list[dict[str, Any]]:
  """Trains the points of a grid, from the cheapest to the dearest.

  Args:
    configs: recipes by the names of their points.
    workdir: of the sweep.
    shard: k/n, the share of this process; '' is all.
    tokens, flops: that each member is trained for, whatever its recipe says; 0 and 0 ask the
    recipe.
    seconds: the same for each point, by a short measurement.
    dry_run: train nothing and say what each point takes.

  Returns:
    A row a point: what it takes, or what became of it.

  Raises:
    InputError: a point twice, no such share, or more than one budget.
  """
  check_budget(tokens, flops, seconds)
  check_points(configs)
  workdir = epath.Path(workdir)
  mine = shard_points(apply_budget(configs, tokens, flops), shard)
  if not mine:
    raise InputError(
      f'--shard={shard}', f'{len(configs)} points, and none is left for it', 'give fewer shares'
    )
  each = seconds_per_step(mine) if dry_run or seconds else {}
  if seconds:
    mine = time_points(mine, workdir, seconds, each)
  if dry_run:
    return describe_plan(mine, each)
  found = []
  for number, (name, config) in enumerate(mine.items(), 1):
    progress.log(f'point {number} of {len(mine)}: {name}')
    found.append({'point': name, **_run_point(config, workdir, name)})
  return found


def sweep_tables(found: list[dict[str, Any]]) -> list[rich_table.Table]:
  """What became of the points, or in a dry run what they take, for a reader."""
  if 'state' not in found[0]:
    return plan_tables(found)
  table = rich_table.Table(
    'point', 'state', 'test loss, nats', 'bits per word', 'time here', title='Sweep'
  )
  for row in found:
    losses, bits = (
      ', '.join(f'{value:.3f}' for value in row[name] if value is not None)
      for name in ('test_loss', 'bits_per_word')
    )
    table.add_row(
      row['point'], row['state'], losses, bits, progress.format_duration(row['seconds'])
    )
  return [table]


def _run_point(config: RunConfig, workdir: epath.Path, name: str) -> dict[str, Any]:
  """What became of a point; a reason to fail goes into its folder and stops no other."""
  started, folder = time.monotonic(), workdir / name
  found: dict[str, Any] = {'state': FINISHED, 'test_loss': [], 'bits_per_word': []}
  try:
    found |= _point(config, workdir, folder)
    (folder / run_dir.FAILURE).unlink(missing_ok=True)
  except lock.LockedError as error:
    found['state'] = LEFT
    progress.log(f'{name} is left out: {error.found}')
  except InputError as error:
    found |= _record_failure(folder, error)
  except (jax.errors.JaxRuntimeError, MemoryError) as error:  # of the machine: most often memory
    said = str(error).strip().partition('\n')[0]
    found |= _record_failure(
      folder,
      InputError(
        f'the point {name}',
        f'{type(error).__name__}: {said}',
        'raise grad_accumulation_steps, lower batch_size or population.members',
      ),
    )
  jax.clear_caches()  # what another shape compiles is of no use to the next
  return found | {'seconds': time.monotonic() - started}


def _record_failure(folder: epath.Path, error: InputError) -> dict[str, Any]:
  said = {'asked': error.asked, 'found': error.found, 'remedy': error.remedy}
  folder.mkdir(parents=True, exist_ok=True)
  files.write_json(folder / run_dir.FAILURE, said)
  progress.log(f'{error}\nit stands in {folder / run_dir.FAILURE}; the sweep goes on')
  return {'state': FAILED, 'reason': f'{error.asked}: {error.found}'}


def _point(config: RunConfig, workdir: epath.Path, folder: epath.Path) -> dict[str, Any]:
  config = dataclasses.replace(config, corpus=str(_corpus(config, workdir)))
  result = pretrain.pretrain(config, folder)
  models = [folder]
  if config.population.members > 1:
    models = [folder / f'member-{number}' for number in range(config.population.members)]
    for number, model in enumerate(models):
      if not (model / run_dir.RESULT).exists():
        pretrained.extract_member(folder, number, model)
  bits = [_measure_words(model) for model in models]
  members = result['members'] if 'members' in result else [result]
  return {
    'test_loss': [one['test_loss'] if 'test_loss' in one else None for one in members],
    'bits_per_word': bits,
  }


def _measure_words(model: epath.Path) -> float | None:
  """Bits per word of a run on the validation split, now or from before; None without that split."""
  path = old_names.find_file(model / run_dir.BITS_PER_WORD)
  if not path.exists():
    folder = files.read_json(model / run_dir.MANIFEST, f'the manifest of {model}')['corpus_folder']
    if not corpus.read_manifest(folder)['splits']['validation']['rows']:
      return None
    files.write_json(path, evaluate.evaluate_word_bits(model, 'validation'))
  return files.read_json(path, f'what words cost {model}')['bits_per_word']


def _corpus(config: RunConfig, workdir: epath.Path) -> epath.PathLike:
  """The corpus of a point: the one it names, or that once more under a tokenizer that fits the
  vocabulary.

  Raises:
    InputError: it cannot be read or made.
  """
  if not config.corpus or config.corpus.partition(':')[0].endswith('.py'):
    # none, which is refused where it is looked for; or a recipe, which says the size itself
    return config.corpus
  pieces, rows = corpus.read_manifest(config.corpus)['vocabulary'], config.model.vocab_size
  if pieces <= rows <= pieces + _SPARE:
    return config.corpus
  made = files.read_json(
    epath.Path(config.corpus) / run_dir.CONFIG, f'the recipe of {config.corpus}'
  )
  made = recipe.resolve(made, 'corpus')
  made = dataclasses.replace(
    made, tokenizer=dataclasses.replace(made.tokenizer, path='', size=rows - _SPARE)
  )
  folder = workdir / 'corpora' / str(rows - _SPARE)
  folder.parent.mkdir(parents=True, exist_ok=True)
  return _run_alone(folder.parent, functools.partial(build.build_corpus, made, folder))


def _run_alone(folder: epath.Path, make: Any) -> Any:
  """What `make` gives, when no other process makes something in the folder."""
  said = False
  while True:
    try:
      with lock.hold_lock(folder):
        return make()
    except lock.LockedError as error:
      if not said:
        progress.log(f'waiting: {error.found}')
      said = True
      time.sleep(_LOOK)
