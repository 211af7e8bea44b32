"""Which recipes are compared with a base recipe, and in what each differs from it.

A change is the set of fields of a recipe in which a run differs from the base of its shape. The
base of a shape is what `--base` names there and, at other shapes, the runs whose recipes differ
from it in the five fields of the shape alone: embedding, hidden, feed_forward, heads, layers. Runs
of one change and shape are seeds of each other. Which fields count stands in `entrants.py`.

Losses compare on the same tokens alone: evaluation hides the same ones whatever a recipe hides in
training. A run on another corpus, or evaluated on another number of rows, is left out by name. One
with another tokenizer stays, for when it leaves its own plateau; its losses are not compared.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from minilm_jax.analysis import loss_curves, runs
from minilm_jax.analysis.loss_curves import ACTUAL, LossCurve
from minilm_jax.core import files, model_config, old_names, run_dir
from minilm_jax.core.errors import InputError, sanitize
from minilm_jax.core.schema import ANY, COUNT, NUMBER, TEXT

# What one run brings to a comparison: its evaluations, its shape, and the fields of its recipe that
# count.
_ASIDE = (
  'kind',
  'seed',
  'num_steps',
  'eval',
  'checkpoint',
  'log',
  'mesh',
  'population',
  'grad_accumulation_steps',
  'corpus',
  'logit_chunks',
  'corpus_placement',
  'nonfinite',
  'model.remat',
  'model.flops_heads',
  *(f'model.{one}' for one in model_config.SHAPE_FIELDS.values()),
)
_OF_MEMBERS = {
  'optimizer.learning_rate': 'learning_rates',
  'optimizer.weight_decay': 'weight_decays',
  'mask.rate': 'mask_rates',
  'mask.random_share': 'mask_randoms',
  'mask.keep_share': 'mask_keeps',
}


@dataclasses.dataclass(frozen=True)
class AblationRun:
  """One run, or one member of a population.

  Attributes:
    curve: its evaluations.
    folder: the directory of the run; `home` its name.
    shape: as in e64-h64-f256-a8-l2.
    fields: of its recipe, those that are compared, by their names with dots.
    corpus, tokenizer: hashes.
    evaluated: rows that its loss is taken on.
    planned: FLOPs of the whole run, as its recipe has it.
  """

  curve: LossCurve
  folder: epath.Path
  shape: str
  fields: Mapping[str, Any]
  corpus: str
  tokenizer: str
  evaluated: int
  planned: float

  @property
  def home(self) -> str:
    """The name of its folder; of a member that a sweep took out, that of the folder of its
    population.
    """
    folder = self.folder.resolve()
    return sanitize((folder.parent if (folder.parent / run_dir.CONFIG).exists() else folder).name)


def describe_differences(fields: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
  """What differs from the base, as `field=value`; a field that one lacks and the other does not use
  is no difference.

  >>> describe_differences({'model.norm': 'pre', 'mask.rate': 0.3, 'model.gate': False}, {'model.norm': 'post', 'mask.rate': 0.3})
  ['norm=pre']
  """

  def used(of: Mapping[str, Any], name: str) -> Any:
    return of[name] if name in of and of[name] else None  # 0, False, '' and () are not used

  return [
    f'{sanitize(name.removeprefix("model.").removeprefix("optimizer."))}={_written(fields, name)}'
    for name in sorted({*base, *fields})
    if used(fields, name) != used(base, name)
  ]


def _written(fields: Mapping[str, Any], name: str) -> str:
  value = fields[name] if name in fields else ''
  if isinstance(value, list):
    value = ','.join(map(str, value))
  return sanitize(f'{value:g}' if isinstance(value, float) else str(value)) or 'none'


def read_ablation_runs(found: Mapping[str, epath.Path]) -> tuple[list[AblationRun], list[str]]:
  """Every run that was evaluated, from runs by name, and what the others lack.

  Raises:
    InputError: a file of a run is damaged.
  """
  curves = loss_curves.read_runs(found)
  there, left_out = [], list(curves.left_out)
  for curve in curves.curves:
    name, _, member = curve.name.partition(' member ')
    try:
      there.append(_entrant(curve, found[name], int(member or 0)))
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
      left_out.append(f'{curve.name}: {loss_curves.describe_missing(error)}')
  return there, left_out


def _entrant(curve: LossCurve, folder: epath.Path, member: int) -> AblationRun:
  config, manifest = runs.read_config(folder), runs.read_manifest(folder)
  flops = curve.flops(ACTUAL)
  if min(curve.loss) <= 0 or flops[0] <= 0 or not np.isfinite(flops[-1]) or not curve.tokens[0] > 0:
    raise ValueError('losses, tokens and FLOPs must be positive')
  fields = run_dir.flatten(old_names.complete_recipe(config))
  of = config['population']
  fields |= {
    name: of[values][member] for name, values in _OF_MEMBERS.items() if values in of and of[values]
  }
  kept = {
    name: value
    for name, value in fields.items()
    if name not in _ASIDE and name.partition('.')[0] not in _ASIDE
  }
  shape = model_config.short_shape(config['model'])
  planned = float(
    int(config['num_steps']) * int(config['batch_size']) * curve.flops_per_row[ACTUAL]
  )
  return AblationRun(
    curve,
    folder,
    shape,
    kept,
    str(manifest['corpus']),
    str(manifest['tokenizer']),
    int(config['eval']['rows']),
    planned,
  )


# What counts alone reach on the hidden tokens of a comparison, from run directories of `minilm
# ngram-baselines`.
WORDS = 'word frequencies'
# Those that are drawn; the right neighbour tells as much as the left one, and the others lie close
# to these.
NAMES = {
  'unigram': WORDS,
  'left': 'left neighbour',
  'mixture': 'mean of both neighbours',
  'both': 'both neighbours',
}
_RECIPE = {
  'corpus': TEXT,
  'rows': COUNT,
  'subset': {'rows': ANY, 'tokens': ANY, 'shuffle_seed': ANY},
}
_RESULT = {'rows': [{'predictor': TEXT, 'split': TEXT, 'loss': NUMBER}]}


def read_ngram_baselines(
  found: Mapping[str, epath.Path], base: AblationRun
) -> tuple[dict[str, float], list[str]]:
  """Losses on the validation split by the `NAMES` of predictors, nats, and why some baselines are
  not used.

  Args:
    found: runs of any kind, by name.
    base: on whose corpus and rows they must be, and on whose subset they must have counted.

  Raises:
    InputError: a file is damaged.
  """
  losses: dict[str, float] = {}
  left_out = []
  for name, path in found.items():
    if runs.read_kind(path) != 'baselines':
      continue
    if reason := _unlike_base(path, base):
      left_out.append(f'{name}: {reason}')
      continue
    for row in files.read_object(path / run_dir.RESULT, f'the baselines in {path}', _RESULT)[
      'rows'
    ]:
      loss = runs.to_float(row['loss'])
      if (
        row['split'] == 'validation'
        and row['predictor'] in NAMES
        and math.isfinite(loss)
        and loss > 0
      ):
        losses[NAMES[row['predictor']]] = loss
  return {name: losses[name] for name in NAMES.values() if name in losses}, left_out


def _unlike_base(path: epath.Path, base: AblationRun) -> str:
  """Why these baselines say nothing beside the base; '' where they do."""
  recipe = files.read_object(
    path / run_dir.CONFIG, f'the recipe of the baselines in {path}', _RECIPE
  )
  if recipe['corpus'] != base.corpus:
    corpora = (sanitize(corpus[:8]) for corpus in (recipe['corpus'], base.corpus))
    return 'baselines on another corpus, {}, than that of the base, {}'.format(*corpora)
  if recipe['rows'] != base.evaluated:
    return f'baselines on {recipe["rows"]:,} rows, the base on {base.evaluated:,}'
  if any(base.fields[f'subset.{field}'] != value for field, value in recipe['subset'].items()):
    return 'baselines that counted another part of the corpus than the base was trained on'
  return '' if (path / run_dir.RESULT).exists() else 'baselines under way'


BASE = 'base'
NAMED = 4  # fields that make the name of a change; of more it is the name of the folder
_TOKENIZER = 'tokenizer'


@dataclasses.dataclass(frozen=True)
class Ablation:
  """Runs that differ from the base of their shape in the same fields, one a seed.

  Attributes:
    name: the fields in short, `base`, or the folder of the first run where there are more than
      `NAMED`.
    fields: as in positions=relative; those of the model and of the optimizer without these words.
    runs: by seed. Where one has ended, those that are under way are not among them.
    tokenizer: the hash, where it is another than the base's; else ''.
  """

  name: str
  fields: tuple[str, ...]
  runs: tuple[AblationRun, ...]
  tokenizer: str

  @property
  def curves(self) -> dict[int, LossCurve]:
    """By seed."""
    return {one.curve.seed: one.curve for one in self.runs}


@dataclasses.dataclass(frozen=True)
class AblationAtSize:
  """The base of one shape and the changes that were tried there."""

  shape: str
  base: Ablation
  changes: tuple[Ablation, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What was tried.

  Attributes:
    shapes: the base's own first.
    found: runs of every kind, by the names that the curves have.
    ngram_losses: what counts alone reach on the rows of the base, nats by name (`counted.py`).
    under_way: runs that have not ended.
    left_out: runs that are in none of these, and why.
  """

  shapes: list[AblationAtSize]
  found: Mapping[str, epath.Path]
  ngram_losses: Mapping[str, float]
  under_way: list[str]
  left_out: list[str]


def read_comparison(
  bases: Sequence[epath.PathLike], folders: Sequence[epath.PathLike]
) -> Comparison:
  """Who is compared with whom.

  Args:
    bases: run directories of one recipe; they need not be in the folders.
    folders: run directories, or folders that hold them at any depth.

  Raises:
    InputError: a folder is missing or without runs; the base was never evaluated, or is of several
      recipes; nothing differs from it; a file is damaged.
  """
  found = runs.find_runs([*folders, *bases])
  read_from = {str(path.resolve()) for path in runs.find_runs(bases).values()}
  there, left_out = read_ablation_runs(found)
  asked = f'a comparison with the base {", ".join(map(str, bases))}'
  own = [one for one in there if str(one.folder.resolve()) in read_from]
  if not own:
    raise InputError(
      asked,
      '; '.join(['no pre-training run there that was evaluated', *left_out]),
      'give --base=RUN, a run directory of pre-training',
    )
  first = own[0]
  for other in own[1:]:
    if differ := _unlike(first, other) or ', '.join(_fields(other, first)):
      raise InputError(
        asked,
        f'{other.curve.name} is another recipe than {first.curve.name}: {differ}',
        'give runs of one recipe, or name one run of them',
      )
  by_shape: dict[str, dict[tuple[str, ...], list[AblationRun]]] = {first.shape: {}}
  for one in there:
    if reason := _unlike(first, one):
      left_out.append(f'{one.curve.name}: {reason}')
    else:
      by_shape.setdefault(one.shape, {}).setdefault(_fields(one, first), []).append(one)
  left_out += [
    f'{one.curve.name}: no run of the base recipe has its shape, {shape}'
    for shape, of in by_shape.items()
    if () not in of
    for some in of.values()
    for one in some
  ]
  shapes = [_at_shape(shape, of, first, left_out) for shape, of in by_shape.items() if () in of]
  shapes = [part for part in shapes if part.changes]
  if not shapes:
    raise InputError(
      asked,
      '; '.join(['no run that differs from it in its recipe', *left_out]),
      'give folders with other recipes on the same corpus: minilm ablations --base=RUN FOLDER',
    )
  left_out += [f'{name}: {why}' for name, why in runs.read_failures(folders).items()]
  under_way = [
    f'{one.name}, after {one.tokens[-1]:,.0f} tokens'
    for part in shapes
    for change in (part.base, *part.changes)
    for one in change.curves.values()
    if not one.finished
  ]
  reached, unlike = read_ngram_baselines(found, first)
  return Comparison(shapes, found, reached, under_way, [*left_out, *unlike])


def _unlike(first: AblationRun, other: AblationRun) -> str:
  """Why losses of one say nothing beside those of the other; '' where they do, or the tokenizer was
  changed.
  """
  if other.tokenizer == first.tokenizer and other.corpus != first.corpus:
    return f'another corpus, {sanitize(other.corpus[:8])}, than that of the base, {sanitize(first.corpus[:8])}'
  if other.evaluated != first.evaluated:
    return f'evaluated on {other.evaluated:,} rows, the base on {first.evaluated:,}'
  return ''


def _fields(one: AblationRun, base: AblationRun) -> tuple[str, ...]:
  """The change; another tokenizer shows in the vocabulary, or else by its hash."""
  made = describe_differences(one.fields, base.fields)
  if one.tokenizer != base.tokenizer and not any(field.startswith('vocab_size=') for field in made):
    made.append(f'{_TOKENIZER}={sanitize(one.tokenizer[:8])}')
  return tuple(made)


def _at_shape(
  shape: str,
  by_fields: Mapping[tuple[str, ...], list[AblationRun]],
  first: AblationRun,
  left_out: list[str],
) -> AblationAtSize:
  taken: set[str] = set()
  made = []
  for fields in sorted(by_fields, key=lambda fields: (len(fields), fields)):
    some = _seeds(by_fields[fields], left_out)
    name = BASE if not fields else ', '.join(fields) if len(fields) <= NAMED else some[0].home
    name = some[0].curve.name if name in taken else name
    taken.add(name)
    other = some[0].tokenizer
    made.append(Ablation(name, fields, some, '' if other == first.tokenizer else other))
  return AblationAtSize(shape, made[0], tuple(made[1:]))


def _seeds(some: Iterable[AblationRun], left_out: list[str]) -> tuple[AblationRun, ...]:
  """One run a seed, the longest; none under way where another has ended."""
  some = sorted(some, key=lambda one: (-one.curve.rows[-1], one.curve.name))
  ended = [one for one in some if one.curve.finished]
  kept: dict[int, AblationRun] = {}
  for one in ended or some:
    if one.curve.seed in kept:
      left_out.append(
        f'{one.curve.name}: seed {one.curve.seed} of this recipe once more, '
        f'beside {kept[one.curve.seed].curve.name}'
      )
    else:
      kept[one.curve.seed] = one
  if ended:
    left_out += [
      f'{one.curve.name}: under way, and other seeds of this recipe have ended'
      for one in some
      if not one.curve.finished
    ]
  return tuple(kept[seed] for seed in sorted(kept))
