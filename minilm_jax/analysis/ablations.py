"""Ablations: the recipes that are compared with a base recipe, and their differences from it.

An ablation is the set of recipe fields in which a run differs from the base of its shape. The base
of a shape is the run of `--base` there and, at other shapes, the runs whose recipes differ from it
in the five fields of the shape alone. Runs of one ablation and shape are seeds of each other.

Losses compare on the same tokens alone: evaluation masks the same ones whatever a recipe masks in
training. A run on another corpus, or evaluated on another number of rows, is left out by name. A run
with another tokenizer stays, for when it leaves its own plateau; its losses are not compared.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from minilm_jax.analysis import loss_curves, runs
from minilm_jax.analysis.loss_curves import ACTUAL, RUN_ERRORS, LossCurve
from minilm_jax.core import files, model_config, old_names, run_dir
from minilm_jax.core.errors import InputError, sanitize
from minilm_jax.core.schema import ANY, COUNT, NUMBER, TEXT

BASE = 'base'
MAX_FIELDS = 4  # in the name of an ablation; one of more fields has the name of its folder
WORDS = 'word frequencies'
# Predictors that are drawn; the right neighbour predicts as well as the left one.
PREDICTORS = {
  'unigram': WORDS,
  'left': 'left neighbour',
  'mixture': 'mean of both neighbours',
  'both': 'both neighbours',
}
# Fields that are no part of an ablation.
_IGNORED_FIELDS = (
  *'kind seed num_steps eval checkpoint log mesh population grad_accumulation_steps corpus'.split(),
  *'logit_chunks corpus_placement nonfinite model.remat model.flops_heads'.split(),
  *(f'model.{field}' for field in model_config.SHAPE_FIELDS.values()),
)
# Fields that members of a population have lists of.
_MEMBER_FIELDS = {
  'optimizer.learning_rate': 'learning_rates',
  'optimizer.weight_decay': 'weight_decays',
  'mask.rate': 'mask_rates',
  'mask.random_share': 'mask_randoms',
  'mask.keep_share': 'mask_keeps',
}
_BASELINE_RECIPE = {
  'corpus': TEXT,
  'rows': COUNT,
  'subset': {'rows': ANY, 'tokens': ANY, 'shuffle_seed': ANY},
}
_BASELINE_RESULT = {'rows': [{'predictor': TEXT, 'split': TEXT, 'loss': NUMBER}]}


@dataclasses.dataclass(frozen=True)
class AblationRun:
  """One run, or one member of a population.

  Attributes:
    curve: its evaluations.
    seed: of the curve.
    folder: the directory of the run.
    shape: as in e64-h64-f256-a8-l2.
    fields: compared fields of its recipe, by dotted name.
    corpus, tokenizer: hashes.
    evaluated: rows of its validation loss.
    planned: FLOPs of the whole run by its recipe.
  """

  curve: LossCurve
  seed: int
  folder: epath.Path
  shape: str
  fields: Mapping[str, Any]
  corpus: str
  tokenizer: str
  evaluated: int
  planned: float

  @property
  def home(self) -> str:
    """The name of its folder; of an extracted member, that of the folder of its population."""
    folder = self.folder.resolve()
    return sanitize((folder.parent if (folder.parent / run_dir.CONFIG).exists() else folder).name)


def describe_differences(fields: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
  """Returns the differences from the base, as `field=value`; a field that one recipe lacks and the
  other does not use is no difference.

  >>> describe_differences({'model.norm': 'pre', 'mask.rate': 0.3, 'model.gate': False}, {'model.norm': 'post', 'mask.rate': 0.3})
  ['norm=pre']
  """
  return [
    f'{sanitize(name.removeprefix("model.").removeprefix("optimizer."))}='
    f'{_format_value(fields.get(name, ""))}'
    for name in sorted({*base, *fields})
    if (fields.get(name) or None) != (base.get(name) or None)  # 0, False, '' and () are not used
  ]


def _format_value(value: Any) -> str:
  if isinstance(value, list):
    value = ','.join(map(str, value))
  return sanitize(f'{value:g}' if isinstance(value, float) else str(value)) or 'none'


@dataclasses.dataclass(frozen=True)
class Ablation:
  """Runs that differ from the base of their shape in the same fields, one a seed.

  Attributes:
    name: the fields, `base`, or the folder of the first run if there are more than `MAX_FIELDS`.
    fields: as in positions=relative; those of the model and the optimizer without the group.
    runs: by seed; without unfinished runs if one has ended.
    tokenizer: its hash if it differs from the base's; else ''.
  """

  name: str
  fields: tuple[str, ...]
  runs: tuple[AblationRun, ...]
  tokenizer: str

  @property
  def curves(self) -> dict[int, LossCurve]:
    """By seed."""
    return {run.seed: run.curve for run in self.runs}


@dataclasses.dataclass(frozen=True)
class AblationAtSize:
  """The base of one shape and its ablations."""

  shape: str
  base: Ablation
  changes: tuple[Ablation, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The ablations of a base recipe.

  Attributes:
    shapes: the base's own first.
    found: runs of every kind, by name of their curves.
    ngram_losses: losses of n-gram baselines on the rows of the base, nats by name.
    under_way: runs that have not ended.
    left_out: the other runs with the reason.
  """

  shapes: list[AblationAtSize]
  found: Mapping[str, epath.Path]
  ngram_losses: Mapping[str, float]
  under_way: list[str]
  left_out: list[str]


def read_comparison(
  bases: Sequence[epath.PathLike], folders: Sequence[epath.PathLike]
) -> Comparison:
  """Returns the ablations of a base recipe.

  Args:
    bases: run directories of one recipe; they need not be in the folders.
    folders: run directories, or folders that hold them at any depth.

  Raises:
    InputError: a folder is missing or without runs; the base was never evaluated, or is of several
      recipes; nothing differs from it; a file is damaged.
  """
  found = runs.find_runs([*folders, *bases])
  asked = f'a comparison with the base {", ".join(map(str, bases))}'
  ablation_runs, left_out = read_ablation_runs(found)
  base = _find_base(asked, bases, ablation_runs, left_out)
  by_shape: dict[str, dict[tuple[str, ...], list[AblationRun]]] = {base.shape: {}}
  for run in ablation_runs:
    if reason := _explain_unlike(base, run):
      left_out.append(f'{run.curve.name}: {reason}')
    else:
      by_shape.setdefault(run.shape, {}).setdefault(_list_fields(run, base), []).append(run)
  shapes = []
  for shape, by_fields in by_shape.items():
    if () not in by_fields:
      left_out += [
        f'{run.curve.name}: no run of the base recipe has its shape, {shape}'
        for same_fields in by_fields.values()
        for run in same_fields
      ]
  for shape, by_fields in by_shape.items():
    if () in by_fields:
      at_size = _make_ablations(shape, by_fields, base, left_out)
      shapes += [at_size] if at_size.changes else []
  if not shapes:
    raise InputError(
      asked,
      '; '.join(['no run that differs from it in its recipe', *left_out]),
      'give folders with other recipes on the same corpus: minilm ablations --base=RUN FOLDER',
    )
  left_out += [f'{name}: {reason}' for name, reason in runs.read_failures(folders).items()]
  under_way = [
    f'{curve.name}, after {curve.tokens[-1]:,.0f} tokens'
    for at_size in shapes
    for ablation in (at_size.base, *at_size.changes)
    for curve in ablation.curves.values()
    if not curve.finished
  ]
  ngram_losses, unlike = read_ngram_baselines(found, base)
  return Comparison(shapes, found, ngram_losses, under_way, [*left_out, *unlike])


def read_ablation_runs(
  found: Mapping[str, epath.Path],
) -> tuple[list[AblationRun], list[str]]:
  """Returns every run that was evaluated, from runs by name, and the reasons for omissions.

  Raises:
    InputError: a file of a run is damaged.
  """
  loss_curves_found = loss_curves.read_runs(found)
  ablation_runs, left_out = [], list(loss_curves_found.left_out)
  for curve in loss_curves_found.curves:
    name, _, member = curve.name.partition(' member ')
    try:
      ablation_runs.append(_make_run(curve, found[name], int(member or 0)))
    except RUN_ERRORS as error:
      left_out.append(f'{curve.name}: {loss_curves.describe_missing(error)}')
  return ablation_runs, left_out


def _make_run(curve: LossCurve, folder: epath.Path, member: int) -> AblationRun:
  config, manifest = runs.read_config(folder), runs.read_manifest(folder)
  flops = curve.flops(ACTUAL)
  if curve.seed is None:
    raise ValueError('a run without a seed')
  if min(curve.loss) <= 0 or flops[0] <= 0 or not np.isfinite(flops[-1]) or not curve.tokens[0] > 0:
    raise ValueError('losses, tokens and FLOPs must be positive')
  population = config['population']
  of_member = {
    name: population[values][member]
    for name, values in _MEMBER_FIELDS.items()
    if population.get(values)
  }
  fields = run_dir.flatten(old_names.complete_recipe(config)) | of_member
  num_rows = int(config['num_steps']) * int(config['batch_size'])
  return AblationRun(
    curve=curve,
    seed=curve.seed,
    folder=folder,
    shape=model_config.short_shape(config['model']),
    fields={
      name: value
      for name, value in fields.items()
      if name not in _IGNORED_FIELDS and name.partition('.')[0] not in _IGNORED_FIELDS
    },
    corpus=str(manifest['corpus']),
    tokenizer=str(manifest['tokenizer']),
    evaluated=int(config['eval']['rows']),
    planned=float(num_rows * curve.flops_per_row[ACTUAL]),
  )


def read_ngram_baselines(
  found: Mapping[str, epath.Path], base: AblationRun
) -> tuple[dict[str, float], list[str]]:
  """Returns validation losses of `minilm ngram-baselines` by the names of `PREDICTORS`, nats, and
  the reasons for unused baselines.

  Args:
    found: runs of any kind, by name.
    base: the baselines must share its corpus, evaluated rows and subset.

  Raises:
    InputError: a file is damaged.
  """
  losses: dict[str, float] = {}
  left_out = []
  for name, path in found.items():
    if runs.read_kind(path) != 'baselines':
      continue
    if reason := _explain_unlike_baselines(path, base):
      left_out.append(f'{name}: {reason}')
      continue
    result = files.read_object(path / run_dir.RESULT, f'the baselines in {path}', _BASELINE_RESULT)
    for row in result['rows']:
      loss = runs.to_float(row['loss'])
      is_drawn = row['split'] == 'validation' and row['predictor'] in PREDICTORS
      if is_drawn and math.isfinite(loss) and loss > 0:
        losses[PREDICTORS[row['predictor']]] = loss
  return {name: losses[name] for name in PREDICTORS.values() if name in losses}, left_out


def _explain_unlike_baselines(path: epath.Path, base: AblationRun) -> str:
  """Returns why baselines do not compare with the base; '' if they do."""
  recipe = files.read_object(
    path / run_dir.CONFIG, f'the recipe of the baselines in {path}', _BASELINE_RECIPE
  )
  if recipe['corpus'] != base.corpus:
    corpus, base_corpus = (sanitize(corpus[:8]) for corpus in (recipe['corpus'], base.corpus))
    return f'baselines on another corpus, {corpus}, than that of the base, {base_corpus}'
  if recipe['rows'] != base.evaluated:
    return f'baselines on {recipe["rows"]:,} rows, the base on {base.evaluated:,}'
  if any(base.fields[f'subset.{field}'] != value for field, value in recipe['subset'].items()):
    return 'baselines that counted another part of the corpus than the base was trained on'
  return '' if (path / run_dir.RESULT).exists() else 'baselines under way'


def _find_base(
  asked: str,
  bases: Sequence[epath.PathLike],
  ablation_runs: Sequence[AblationRun],
  left_out: Sequence[str],
) -> AblationRun:
  """Returns the first run of the base folders; all of them must be of one recipe."""
  base_paths = {str(path.resolve()) for path in runs.find_runs(bases).values()}
  base_runs = [run for run in ablation_runs if str(run.folder.resolve()) in base_paths]
  if not base_runs:
    raise InputError(
      asked,
      '; '.join(['no pre-training run there that was evaluated', *left_out]),
      'give --base=RUN, a run directory of pre-training',
    )
  base, *others = base_runs
  for run in others:
    if difference := _explain_unlike(base, run) or ', '.join(_list_fields(run, base)):
      raise InputError(
        asked,
        f'{run.curve.name} is another recipe than {base.curve.name}: {difference}',
        'give runs of one recipe, or name one run of them',
      )
  return base


def _explain_unlike(base: AblationRun, run: AblationRun) -> str:
  """Returns why the losses of a run do not compare with the base; '' if they do, or if the tokenizer
  was changed.
  """
  if run.tokenizer == base.tokenizer and run.corpus != base.corpus:
    return f'another corpus, {sanitize(run.corpus[:8])}, than that of the base, {sanitize(base.corpus[:8])}'
  if run.evaluated != base.evaluated:
    return f'evaluated on {run.evaluated:,} rows, the base on {base.evaluated:,}'
  return ''


def _list_fields(run: AblationRun, base: AblationRun) -> tuple[str, ...]:
  """Returns the changed fields; another tokenizer of the same size adds its hash."""
  fields = describe_differences(run.fields, base.fields)
  if run.tokenizer != base.tokenizer and not any(
    field.startswith('vocab_size=') for field in fields
  ):
    fields.append(f'tokenizer={sanitize(run.tokenizer[:8])}')
  return tuple(fields)


def _make_ablations(
  shape: str,
  by_fields: Mapping[tuple[str, ...], list[AblationRun]],
  base: AblationRun,
  left_out: list[str],
) -> AblationAtSize:
  names: set[str] = set()
  ablations = []
  for fields in sorted(by_fields, key=lambda fields: (len(fields), fields)):
    seeds = _select_seeds(by_fields[fields], left_out)
    name = ', '.join(fields) if len(fields) <= MAX_FIELDS else seeds[0].home
    name = seeds[0].curve.name if name in names else name or BASE
    names.add(name)
    tokenizer = seeds[0].tokenizer
    ablations.append(
      Ablation(name, fields, seeds, '' if tokenizer == base.tokenizer else tokenizer)
    )
  return AblationAtSize(shape, ablations[0], tuple(ablations[1:]))


def _select_seeds(
  same_fields: Iterable[AblationRun], left_out: list[str]
) -> tuple[AblationRun, ...]:
  """Returns one run a seed, the longest; none under way if another has ended."""
  longest_first = sorted(same_fields, key=lambda run: (-run.curve.rows[-1], run.curve.name))
  ended = [run for run in longest_first if run.curve.finished]
  by_seed: dict[int, AblationRun] = {}
  for run in ended or longest_first:
    first = by_seed.setdefault(run.seed, run)
    if first is not run:
      left_out.append(
        f'{run.curve.name}: seed {run.seed} of this recipe once more, beside {first.curve.name}'
      )
  if ended:
    left_out += [
      f'{run.curve.name}: under way, and other seeds of this recipe have ended'
      for run in longest_first
      if not run.curve.finished
    ]
  return tuple(by_seed[seed] for seed in sorted(by_seed))
