"""Finds ablations, the runs whose recipes differ from a base recipe, and lists the differences.

An ablation is a set of changed recipe fields at one model shape. Each shape has a base: the run of
`--base`, or runs that differ from it in the shape alone. Runs of one ablation and shape differ in
their seeds.

Losses are compared on the same tokens alone. Evaluation masks are the same for all recipes. Runs on
another corpus, or with another number of evaluation rows, are left out and listed. Runs with
another tokenizer stay for the comparison of plateaus; their losses are not compared.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from minilm_jax.analysis import loss_curves, runs
from minilm_jax.analysis.loss_curves import ACTUAL, RUN_ERRORS, LossCurve
from minilm_jax.core import files, model_config, paths, run_dir
from minilm_jax.core.errors import ANY, COUNT, NUMBER, TEXT, InputError, sanitize

BASE = 'base'
MAX_FIELDS = 4  # in the name of an ablation; with more fields, the name is that of the folder
WORDS = 'word frequencies'
# Predictors in figures; the right neighbour is left out as it predicts like the left one.
PREDICTORS = {
  'unigram': WORDS,
  'left': 'left neighbour',
  'mixture': 'mean of both neighbours',
  'both': 'both neighbours',
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
    shape: shape of the model, as in e64-h64-f256-a8-l2.
    eval_rows: number of rows of the validation loss.
    planned: FLOPs of the run according to the recipe.
  """

  curve: LossCurve
  seed: int
  folder: epath.Path
  shape: str
  corpus: str
  tokenizer: str
  eval_rows: int
  planned: float

  @property
  def folder_name(self) -> str:
    """Name of the run directory; for an extracted member, that of its population."""
    folder = self.folder.resolve()
    return sanitize((folder.parent if (folder.parent / run_dir.CONFIG).exists() else folder).name)


def list_changes(fields: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
  """Returns the differences from the base, as `field=value`.

  A field that a recipe lacks equals a field with the value 0, False or ''.

  >>> list_changes({'model.norm': 'pre', 'model.gate': False}, {'model.norm': 'post'})
  ['norm=pre']
  """
  return [
    f'{sanitize(name.removeprefix("model.").removeprefix("optimizer."))}='
    f'{_format_value(fields.get(name, ""))}'
    for name in sorted({*base, *fields})
    if (fields.get(name) or None) != (base.get(name) or None)
  ]


def _format_value(value: Any) -> str:
  if isinstance(value, list):
    value = ','.join(map(str, value))
  return sanitize(f'{value:g}' if isinstance(value, float) else str(value)) or 'none'


@dataclasses.dataclass(frozen=True)
class Ablation:
  """Runs of one shape that differ from the base in the same fields, one run a seed.

  Attributes:
    name: the fields or `base`; with more than `MAX_FIELDS` fields, the folder of the first run.
    fields: changed fields, as in positions=relative.
    runs: runs in the order of their seeds; if a run is finished, finished runs alone.
    tokenizer: hash of a tokenizer that differs from that of the base; else ''.
  """

  name: str
  fields: tuple[str, ...]
  runs: tuple[AblationRun, ...]
  tokenizer: str

  @property
  def curves(self) -> dict[int, LossCurve]:
    """Loss curves by seed."""
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
    shapes: ablations by shape, with the shape of the base first.
    run_paths: runs of every kind, by name.
    ngram_losses: losses of n-gram baselines on the rows of the base, by name, in nats.
    left_out: reasons for runs that are left out.
  """

  shapes: list[AblationAtSize]
  run_paths: Mapping[str, epath.Path]
  ngram_losses: Mapping[str, float]
  under_way: list[str]
  left_out: list[str]


def read_comparison(
  bases: Sequence[epath.PathLike], folders: Sequence[epath.PathLike]
) -> Comparison:
  """Returns the ablations of a base recipe.

  Args:
    bases: run directories of one recipe, inside or outside of the folders.
    folders: run directories, or folders that contain them at any depth.

  Raises:
    InputError: a folder is missing or without runs; the base has no evaluation or several recipes;
      no run differs from the base; a file is damaged.
  """
  run_paths = runs.find_runs([*folders, *bases])
  comparison = f'a comparison with the base {", ".join(map(str, bases))}'
  ablation_runs, left_out = read_ablation_runs(run_paths)
  base = _find_base(comparison, bases, ablation_runs, left_out)
  by_shape: dict[str, dict[tuple[str, ...], list[AblationRun]]] = {base.shape: {}}
  for run in ablation_runs:
    if reason := _explain_difference(base, run):
      left_out.append(f'{run.curve.name}: {reason}')
    else:
      by_shape.setdefault(run.shape, {}).setdefault(_list_fields(run, base), []).append(run)
  shapes = []
  for shape, by_fields in by_shape.items():
    if () not in by_fields:
      left_out += [
        f'{run.curve.name}: no run of the base recipe has the shape {shape}'
        for same_fields in by_fields.values()
        for run in same_fields
      ]
  for shape, by_fields in by_shape.items():
    if () in by_fields:
      at_size = _make_ablations(shape, by_fields, base, left_out)
      shapes += [at_size] if at_size.changes else []
  if not shapes:
    raise InputError(
      comparison,
      '; '.join(['no run with another recipe', *left_out]),
      'give folders with other recipes on the same corpus: minilm ablations --base=RUN FOLDER',
    )
  left_out += [
    f'{name}: {reason}' for name, reason in runs.read_failures(folders, run_paths).items()
  ]
  under_way = [
    f'{curve.name}, after {curve.tokens[-1]:,.0f} tokens'
    for at_size in shapes
    for ablation in (at_size.base, *at_size.changes)
    for curve in ablation.curves.values()
    if not curve.finished
  ]
  ngram_losses, reasons = read_ngram_baselines(run_paths, base)
  return Comparison(shapes, run_paths, ngram_losses, under_way, [*left_out, *reasons])


def read_ablation_runs(run_paths: Mapping[str, epath.Path]) -> tuple[list[AblationRun], list[str]]:
  """Returns every run with evaluations, from runs by name, and the reasons for omissions.

  Raises:
    InputError: a file of a run is damaged.
  """
  curves, left_out = loss_curves.read_runs(run_paths)
  ablation_runs = []
  for curve in curves:
    name, _, _ = curve.name.partition(' member ')
    try:
      ablation_runs.append(_make_run(curve, run_paths[name]))
    except RUN_ERRORS as error:
      left_out.append(f'{curve.name}: {loss_curves.describe_missing(error)}')
  return ablation_runs, left_out


def _make_run(curve: LossCurve, folder: epath.Path) -> AblationRun:
  config, manifest = runs.read_config(folder), runs.read_manifest(folder)
  flops = curve.flops(ACTUAL)
  if curve.seed is None:
    raise ValueError('no seed')
  if min(curve.loss) <= 0 or flops[0] <= 0 or not np.isfinite(flops[-1]) or not curve.tokens[0] > 0:
    raise ValueError('losses, tokens or FLOPs that are not positive')
  num_rows = int(config['num_steps']) * int(config['batch_size'])
  return AblationRun(
    curve=curve,
    seed=curve.seed,
    folder=folder,
    shape=model_config.format_shape(config['model']),
    corpus=str(manifest['corpus']),
    tokenizer=str(manifest['tokenizer']),
    eval_rows=int(config['eval']['rows']),
    planned=float(num_rows * curve.flops_per_row[ACTUAL]),
  )


def read_ngram_baselines(
  run_paths: Mapping[str, epath.Path], base: AblationRun
) -> tuple[dict[str, float], list[str]]:
  """Returns validation losses of `minilm ngram-baselines`, and the reasons for omissions.

  Losses are in nats, by the names in `PREDICTORS`.

  Args:
    run_paths: runs of any kind, by name.
    base: run with the corpus, the subset and the evaluation rows of the baselines.

  Raises:
    InputError: a file is damaged.
  """
  losses: dict[str, float] = {}
  left_out = []
  for name, path in runs.select_kind(run_paths, 'baselines').items():
    if reason := _explain_baseline_difference(path, base):
      left_out.append(f'{name}: {reason}')
      continue
    result = files.read_object(path / run_dir.RESULT, f'the baselines in {path}', _BASELINE_RESULT)
    for row in result['rows']:
      loss = runs.to_float(row['loss'])
      is_drawn = row['split'] == 'validation' and row['predictor'] in PREDICTORS
      if is_drawn and math.isfinite(loss) and loss > 0:
        losses[PREDICTORS[row['predictor']]] = loss
  return {name: losses[name] for name in PREDICTORS.values() if name in losses}, left_out


def _explain_baseline_difference(path: epath.Path, base: AblationRun) -> str:
  """Returns the reason for baselines that are not comparable with the base, or ''."""
  recipe = files.read_object(
    path / run_dir.CONFIG, f'the recipe of the baselines in {path}', _BASELINE_RECIPE
  )
  if recipe['corpus'] != base.corpus:
    corpus, base_corpus = (sanitize(corpus[:8]) for corpus in (recipe['corpus'], base.corpus))
    return f'baselines of the corpus {corpus}, but the base is on {base_corpus}'
  if recipe['rows'] != base.eval_rows:
    return f'baselines on {recipe["rows"]:,} rows, but the base is evaluated on {base.eval_rows:,}'
  subset = {f'subset.{field}': value for field, value in recipe['subset'].items()}
  if not subset.items() <= base.curve.recipe.items():
    return 'baselines of another subset of the corpus than that of the base'
  return '' if (path / run_dir.RESULT).exists() else 'unfinished baselines'


def _find_base(
  comparison: str,
  bases: Sequence[epath.PathLike],
  ablation_runs: Sequence[AblationRun],
  left_out: Sequence[str],
) -> AblationRun:
  """Returns the first run of the base folders, which all have one recipe."""
  base_paths = {paths.resolve_links(path) for path in runs.find_runs(bases).values()}
  base_runs = [run for run in ablation_runs if paths.resolve_links(run.folder) in base_paths]
  if not base_runs:
    raise InputError(
      comparison,
      '; '.join(['no pre-training run with evaluations', *left_out]),
      'give --base=RUN, a run directory of pre-training',
    )
  base, *others = base_runs
  for run in others:
    if difference := _explain_difference(base, run) or ', '.join(_list_fields(run, base)):
      raise InputError(
        comparison,
        f'{run.curve.name} and {base.curve.name} have different recipes: {difference}',
        'give base runs of one recipe',
      )
  return base


def _explain_difference(base: AblationRun, run: AblationRun) -> str:
  """Returns the reason for a run that is not comparable with the base, or ''."""
  if run.tokenizer == base.tokenizer and run.corpus != base.corpus:
    corpus, base_corpus = (sanitize(corpus[:8]) for corpus in (run.corpus, base.corpus))
    return f'the run is on the corpus {corpus}, but the base is on {base_corpus}'
  if run.eval_rows != base.eval_rows:
    return f'the run is evaluated on {run.eval_rows:,} rows, but the base on {base.eval_rows:,}'
  return ''


def _list_fields(run: AblationRun, base: AblationRun) -> tuple[str, ...]:
  """Returns the changed fields, with the hash of a changed tokenizer of equal size."""
  fields = list_changes(run.curve.recipe, base.curve.recipe)
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
    name = ', '.join(fields) if len(fields) <= MAX_FIELDS else seeds[0].folder_name
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
  """Returns the longest run of each seed; if a run is finished, finished runs alone."""
  longest_first = sorted(same_fields, key=lambda run: (-run.curve.rows[-1], run.curve.name))
  finished = [run for run in longest_first if run.curve.finished]
  by_seed: dict[int, AblationRun] = {}
  for run in finished or longest_first:
    first = by_seed.setdefault(run.seed, run)
    if first is not run:
      left_out.append(f'{run.curve.name}: a repetition of {first.curve.name}, with seed {run.seed}')
  if finished:
    left_out += [
      f'{run.curve.name}: unfinished or diverged, and other seeds of this recipe are finished'
      for run in longest_first
      if not run.curve.finished
    ]
  return tuple(by_seed[seed] for seed in sorted(by_seed))
