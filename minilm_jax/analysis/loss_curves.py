"""Loss curves of pre-training, which run directories and logged tables contain."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from minilm_jax.analysis import runs
from minilm_jax.core import files, model_config, old_names, run_dir
from minilm_jax.core.errors import NUMBER

HONEY, KAPLAN, ACTUAL = 'honey', 'kaplan', 'actual'  # counts of FLOPs, see `model/flops.py`
# Errors for runs whose files lack a field, or have a field of another type.
RUN_ERRORS = (KeyError, TypeError, IndexError, ArithmeticError, ValueError, AttributeError)
_SHAPE_FIELDS = {
  'embedding': 'embedding_size',
  'hidden': 'hidden_size',
  'feed_forward': 'intermediate_size',
  'heads': 'flops_heads',
  'layers': 'num_layers',
  'vocabulary': 'vocab_size',
}
# Fields that do not distinguish recipes of one shape.
_IGNORED_FIELDS = (
  *'kind seed num_steps eval checkpoint log mesh population grad_accumulation_steps corpus'.split(),
  *'logit_chunks corpus_placement nonfinite model.remat model.flops_heads'.split(),
  *(f'model.{field}' for field in model_config.SHAPE_FIELDS.values()),
)
# Fields with one value for each member of a population, and the lists of these values.
_MEMBER_FIELDS = {
  'optimizer.learning_rate': 'learning_rates',
  'optimizer.weight_decay': 'weight_decays',
  'mask.rate': 'mask_rates',
  'mask.random_share': 'mask_randoms',
  'mask.keep_share': 'mask_keeps',
}
_BITS_SCHEMA = {'bits_per_word?': NUMBER, 'bits_per_byte?': NUMBER}


@dataclasses.dataclass(frozen=True, order=True)
class ModelShape:
  """The dimensions of a model; `heads` is the number of heads in the FLOPs formula of paper 1."""

  embedding: int
  hidden: int
  feed_forward: int
  heads: int
  layers: int
  vocabulary: int


@dataclasses.dataclass(frozen=True)
class LossCurve:
  """One pre-trained model and its evaluations in the order of its updates.

  Attributes:
    name: name of the run, with the number of a member of a population.
    length: tokens in a row.
    flops_per_row: FLOPs of the forward and backward pass of a row, by the name of the count;
      every curve has `HONEY`.
    rows: rows seen at each evaluation.
    loss: validation loss at each evaluation, in nats a masked token.
    non_finite: number of evaluations without a finite positive loss, which are left out.
    finished: the run has a finite loss at the end of its schedule.
    learning_rate: peak learning rate; None if not logged.
    tied: the head shares the embedding table; None if not logged.
    test_loss: loss on the test split at the end, in nats a masked token; None if not logged.
    bits_per_word: bits per masked word (`evaluation/likelihood.py`); None if not measured.
    num_heads: attention heads of a layer; None if not logged.
    recipe: fields that distinguish recipes of one shape, by dotted name; empty if not logged.
  """

  name: str
  shape: ModelShape
  embedding_parameters: int
  other_parameters: int
  length: int
  flops_per_row: Mapping[str, float]
  updates: tuple[int, ...]
  rows: tuple[int, ...]
  loss: tuple[float, ...]
  non_finite: int = 0
  finished: bool = False
  seed: int | None = None
  learning_rate: float | None = None
  warmup: int | None = None
  tied: bool | None = None
  test_loss: float | None = None
  bits_per_word: float | None = None
  bits_per_byte: float | None = None
  num_heads: int | None = None
  recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def parameters(self) -> int:
    """Number of parameters, with embeddings."""
    return self.embedding_parameters + self.other_parameters

  @property
  def arm(self) -> tuple[Any, ...]:
    """Fields that are equal if curves of as many rows differ in their seeds alone."""
    recipe = json.dumps(dict(self.recipe), sort_keys=True)
    fields = (self.shape, self.num_heads, self.tied, self.learning_rate, self.warmup, self.length)
    return *fields, recipe

  @property
  def tokens(self) -> Float[np.ndarray, 'N']:
    """Tokens seen at each evaluation, with padding."""
    return np.asarray(self.rows, float) * self.length

  def flops(self, count: str = HONEY) -> Float[np.ndarray, 'N']:
    """Returns the FLOPs of training up to each evaluation."""
    return np.asarray(self.rows, float) * self.flops_per_row[count]


def read_runs(run_paths: Mapping[str, epath.Path]) -> tuple[list[LossCurve], list[str]]:
  """Returns the loss curves, and the reasons for pre-training runs without a curve.

  Each pre-training run has a curve or, as `<run> member N`, each of its members has. Members that
  were extracted to `<run>/member-N` have the curve of that run alone. For shorter rows than the
  maximal length, FLOPs are scaled in proportion; actual FLOPs are those of the log. A run that
  started with the weights of another run is left out.

  Raises:
    InputError: a file of a run is damaged.
  """
  curves, left_out = [], []
  for name, path in runs.select_kind(run_paths, 'pretrain').items():
    if reason := runs.explain_origin(path):
      left_out.append(f'{name}: {reason}')
      continue
    config, manifest = runs.read_config(path), runs.read_manifest(path)
    bits_path = old_names.find_file(path / run_dir.BITS_PER_WORD)
    bits: dict[str, Any] = {}
    if bits_path.exists():
      stored = files.read_object(bits_path, f'the bits per word of {path}', _BITS_SCHEMA)
      bits = {field: stored.get(field) for field in ('bits_per_word', 'bits_per_byte')}
    has_result = (path / run_dir.RESULT).exists()
    for member, lines in runs.split_members(path).items():
      try:
        curve = _make_run_curve(name, member, config, manifest, lines)
      except RUN_ERRORS as error:
        left_out.append(f'{name}{member}: {describe_missing(error)}')
        continue
      if curve.loss:
        # A run whose loss is not finite at the end has no result, although it made all updates.
        is_finished = has_result and curve.updates[-1] >= config['num_steps']
        curves.append(dataclasses.replace(curve, finished=is_finished, **bits))
      else:
        left_out.append(f'{curve.name}: no validation loss yet')
  return curves, left_out


def _select_recipe_fields(config: Mapping[str, Any], member: int) -> dict[str, Any]:
  """Returns the fields that distinguish recipes of one shape, with the values of a member."""
  population = config['population']
  fields = run_dir.flatten(old_names.complete_recipe(config)) | {
    name: population[values][member]
    for name, values in _MEMBER_FIELDS.items()
    if population.get(values)
  }
  return {
    name: value
    for name, value in fields.items()
    if name not in _IGNORED_FIELDS and name.partition('.')[0] not in _IGNORED_FIELDS
  }


def describe_missing(error: Exception) -> str:
  """Returns the reason in one of `RUN_ERRORS`, the missing or invalid field of the run."""
  names = f'{run_dir.CONFIG}, {run_dir.MANIFEST} or {run_dir.METRICS}'
  if isinstance(error, KeyError):
    return f'the field {error.args[0]!r} is missing in {names}'
  return f'a field in {names} is invalid ({error})'


def _make_run_curve(
  name: str,
  member_name: str,
  config: Mapping[str, Any],
  manifest: Mapping[str, Any],
  lines: Sequence[Mapping[str, Any]],
) -> LossCurve:
  member = int(member_name.split()[-1]) if member_name else 0
  model, population = config['model'], config['population']
  validation = {
    line['step']: line
    for line in lines
    if line['split'] == 'validation' and 'loss' in line and line['step'] > 0
  }  # evaluations at step 0 have no compute
  finite = {
    step: line
    for step, line in sorted(validation.items())
    if 0 < runs.to_float(line['loss']) < math.inf  # studies take the logarithm
  }
  test = [
    runs.to_float(line['loss']) for line in lines if line['split'] == 'test' and 'loss' in line
  ]
  batch_size = config['batch_size']
  last = finite[max(finite)] if finite else None
  length = run_dir.compute_row_length(last, batch_size) if last else model['max_length']
  flops = {
    count: float(value) * length / model['max_length']
    for count, value in manifest['flops_per_row'].items()
  }
  if HONEY not in flops:  # every study needs this count
    raise KeyError(HONEY)
  if last and 'flops' in last and ACTUAL in flops and length != model['max_length']:
    flops[ACTUAL] = last['flops'] / (last['step'] * batch_size)
  seeds, rates = population['seeds'], population['learning_rates']
  return LossCurve(
    name=name + member_name,
    shape=ModelShape(**{field: int(model[key]) for field, key in _SHAPE_FIELDS.items()}),
    embedding_parameters=int(manifest['parameters']['embedding']),
    other_parameters=int(manifest['parameters']['other']),
    seed=int(seeds[member] if seeds else config['seed'] + member),
    learning_rate=float(rates[member] if rates else config['optimizer']['learning_rate']),
    warmup=int(manifest['warmup']),
    tied=bool(model['tied']),
    num_heads=int(model['num_heads']),
    recipe=_select_recipe_fields(config, member),
    length=length,
    flops_per_row=flops,
    updates=tuple(finite),
    rows=tuple(step * batch_size for step in finite),
    loss=tuple(float(line['loss']) for line in finite.values()),
    non_finite=len(validation) - len(finite),
    test_loss=test[-1] if test and math.isfinite(test[-1]) else None,
  )
