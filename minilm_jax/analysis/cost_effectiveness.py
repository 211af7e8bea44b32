"""Compares models of different shape: cost-effectiveness (paper 1), and depth at equal size or cost.

Cost-effectiveness is the perplexity that a larger model gains per FLOP. A step goes from one value
of a factor of the model shape to the next. C is the FLOPs of a run and PPL the perplexity. In points
of perplexity per 1e15 FLOPs, a step gains

    (PPL_from - PPL_to) / ((C_to - C_from) / 1e15)

Only finished runs with equal numbers of rows are compared.
"""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minilm_jax.analysis.correlation import ScoredModel
from minilm_jax.analysis.laws import power_laws
from minilm_jax.analysis.loss_curves import ACTUAL, HONEY, LossCurve, ModelShape
from minilm_jax.analysis.runs import group_by, to_float
from minilm_jax.analysis.seed_groups import Difference, Group, compute_difference, make_group
from minilm_jax.tasks import metrics

FACTORS = tuple(field.name for field in dataclasses.fields(ModelShape))
UNIT = 1e15  # FLOPs
# Recipe fields that may differ between the ends of a step.
_STEP_FIELDS = ('model.vocab_size', 'model.tied', 'optimizer.learning_rate')
# Relative difference of equal numbers of rows; runs of the paper differ by one update.
_MAX_ROW_DIFFERENCE = 0.01
_MAX_DEPTH_DIFFERENCE = 0.1  # relative, between matched sizes or costs of two depths


@dataclasses.dataclass(frozen=True)
class Arm:
  """Runs that differ in their seeds alone.

  Attributes:
    perplexity: test perplexity by seed or, if not logged, that of the last validation. Runs of one
      seed count once, and runs without a logged seed count as different seeds.
  """

  curves: Sequence[LossCurve]
  perplexity: Group

  @property
  def first(self) -> LossCurve:
    """The first run, with shape, recipe and number of rows of all runs."""
    return self.curves[0]

  @property
  def runs(self) -> tuple[str, ...]:
    """Names of the runs."""
    return tuple(curve.name for curve in self.curves)

  @property
  def name(self) -> str:
    """Name of the first run, with the number of further runs."""
    others = f' and {len(self.curves) - 1} more' if len(self.curves) > 1 else ''
    return self.first.name + others

  @functools.cached_property
  def flops(self) -> float:
    """FLOPs of a run."""
    return float(np.mean([curve.flops(HONEY)[-1] for curve in self.curves]))

  @functools.cached_property
  def bits(self) -> float:
    """Mean bits per word; nan if a run has none."""
    return float(np.mean([to_float(curve.bits_per_word) for curve in self.curves]))


@dataclasses.dataclass(frozen=True)
class Step:
  """A step from one value of a factor to the next larger value, with equal other factors.

  Attributes:
    factor: field of `ModelShape`.
    also: further differences, in the tied head, the learning rate or the nominal number of heads.
    from_value: smaller value of the factor.
    from_runs: runs of the smaller value, one a seed.
    perplexity_gain: decrease of the perplexity; nan for the vocabulary, as perplexities of
      different vocabularies are not comparable.
    bits_gain: decrease of bits per word; nan if not measured.
    flops: additional FLOPs of a run.
    low, high: ends of the 95% interval over seeds, paired if both sides have the same seeds and
      else Welch's; nan with fewer than two seeds on a side.
    flops_per_point: FLOPs per point of perplexity; nan without a decrease.
    dominated: the step costs FLOPs without any gain.
  """

  factor: str
  others: str
  also: str
  from_value: int
  to_value: int
  from_runs: tuple[str, ...]
  to_runs: tuple[str, ...]
  perplexity_gain: float
  bits_gain: float
  flops: float
  per_1e15: float
  low: float
  high: float
  bits_per_1e15: float
  flops_per_point: float
  dominated: bool


@dataclasses.dataclass(frozen=True)
class Option:
  """One model by cost and perplexity, with Student's 95% interval over seeds.

  A model is `dominated` if another model with the same vocabulary is no worse in cost and
  perplexity, and better in one of them.
  """

  name: str
  runs: tuple[str, ...]
  flops: float
  perplexity: float
  low: float
  high: float
  dominated: bool


@dataclasses.dataclass(frozen=True)
class Depth:
  """The difference between a deeper and a shallower model of similar size or cost.

  Numbers are means over the runs that differ in their seeds alone.

  Attributes:
    shallow, deep: name of the first run of each model, with the number of further runs.
    matched: matched quantity, parameters or FLOPs.
    ratio: ratio of the matched quantity, deeper over shallower.
    loss: difference of the validation losses in nats, deeper minus shallower.
    series: name of the scores; '' without scores.
  """

  shallow: str
  deep: str
  shallow_layers: int
  deep_layers: int
  matched: str
  ratio: float
  loss: float
  series: str
  score: float


def group_seeds(curves: Sequence[LossCurve]) -> list[Arm]:
  """Returns the finished runs by cost; runs that differ in their seeds alone form one arm."""
  finished = (curve for curve in curves if curve.finished)
  unknown_seeds = itertools.count(-1, -1)  # no two arms share one, so they are not paired
  arms = []
  for group in group_by(finished, lambda curve: (curve.arm, curve.rows[-1])).values():
    losses: dict[int, list[float]] = {}
    for curve in group:
      seed = next(unknown_seeds) if curve.seed is None else curve.seed
      loss = curve.loss[-1] if curve.test_loss is None else curve.test_loss
      losses.setdefault(seed, []).append(loss)
    perplexity = {
      seed: float(np.mean([power_laws.clip_exp(loss) for loss in same_seed]))
      for seed, same_seed in sorted(losses.items())
    }
    arms.append(Arm(group, make_group(perplexity)))
  return sorted(arms, key=lambda arm: (arm.flops, arm.runs))


def _format_recipe(curve: LossCurve) -> str:
  """Returns the fields of a recipe that both ends of a step share; steps name other differences."""
  fields = {name: value for name, value in curve.recipe.items() if name not in _STEP_FIELDS}
  return json.dumps(fields, sort_keys=True)


def find_steps(curves: Sequence[LossCurve]) -> list[Step]:
  """Returns every step along one factor between neighbouring values.

  Of several arms with one shape, such as different learning rates, the arm with the lowest mean
  perplexity counts. The number of heads changes no parameter, and in the logs of the paper it is
  nominal. So models may also differ in the number of heads, unless the step exists with equal
  numbers. `also` lists such differences.
  """
  steps: list[Step] = []
  arms = group_seeds(curves)
  for factor in FACTORS:
    sides = list(_find_neighbours(arms, factor, ()))
    if factor != 'heads':
      sides += [
        pair
        for pair in _find_neighbours(arms, factor, ('heads',))
        if not any(_differ_in_heads_only(pair, other) for other in sides)
      ]
    steps += [_make_step(factor, *pair) for pair in sides]
  return steps


def _differ_in_heads_only(sides: tuple[Arm, Arm], others: tuple[Arm, Arm]) -> bool:
  """Returns whether two steps are between the same shapes, except for the number of heads."""
  shapes, other_shapes = (
    [dataclasses.replace(arm.first.shape, heads=0) for arm in pair] for pair in (sides, others)
  )
  return shapes == other_shapes and _saw_same_rows(sides[0].first, others[0].first)


def _saw_same_rows(curve: LossCurve, other: LossCurve) -> bool:
  """Returns whether the numbers of rows of two runs are within 1%."""
  return abs(curve.rows[-1] - other.rows[-1]) <= _MAX_ROW_DIFFERENCE * other.rows[-1]


def _find_neighbours(
  arms: Sequence[Arm], factor: str, free: tuple[str, ...]
) -> Iterator[tuple[Arm, Arm]]:
  """Yields the arms of each step along a factor; `free` factors may also differ."""
  fixed = [name for name in FACTORS if name != factor and name not in free]
  chains: list[tuple[tuple[int | str, ...], list[Arm]]] = []
  for arm in arms:
    key = (*(getattr(arm.first.shape, name) for name in fixed), _format_recipe(arm.first))
    same = (
      chain for other, chain in chains if other == key and _saw_same_rows(arm.first, chain[0].first)
    )
    if chain := next(same, None):
      chain.append(arm)
    else:
      chains.append((key, [arm]))
  for _, chain in chains:
    by_value = group_by(chain, lambda arm: getattr(arm.first.shape, factor))
    best = [min(by_value[value], key=lambda arm: arm.perplexity.mean) for value in sorted(by_value)]
    yield from itertools.pairwise(best)


def _make_step(factor: str, small: Arm, large: Arm) -> Step:
  is_comparable = factor != 'vocabulary'
  difference = (
    compute_difference(small.perplexity, large.perplexity) if is_comparable else Difference()
  )
  gain = difference.mean
  bits = small.bits - large.bits
  is_better = gain > 0 if is_comparable else bits > 0
  is_unknown = not is_comparable and math.isnan(bits)
  flops = large.flops - small.flops
  units = flops / UNIT if flops > 0 else math.nan
  return Step(
    factor=factor,
    others=describe_others(small.first.shape, factor),
    also='; '.join(_describe_changes(factor, small.first, large.first)),
    from_value=getattr(small.first.shape, factor),
    to_value=getattr(large.first.shape, factor),
    from_runs=small.runs,
    to_runs=large.runs,
    perplexity_gain=gain,
    bits_gain=bits,
    flops=flops,
    per_1e15=gain / units,
    low=difference.low / units,
    high=difference.high / units,
    bits_per_1e15=bits / units,
    flops_per_point=flops / gain if gain > 0 else math.nan,
    dominated=flops >= 0 and not is_better and not is_unknown,
  )


def describe_others(shape: ModelShape, factor: str) -> str:
  """Returns the values of the other factors.

  Letters are e embedding, h hidden, i feed-forward, a heads, l layers, V vocabulary.

  >>> describe_others(ModelShape(32, 64, 128, 1, 2, 19010), 'hidden')
  'e 32, i 128, a 1, l 2, V 19010'
  """
  letters = dict(zip(FACTORS, 'ehialV', strict=True))
  return ', '.join(
    f'{letter} {getattr(shape, name)}' for name, letter in letters.items() if name != factor
  )


def _describe_changes(factor: str, small: LossCurve, large: LossCurve) -> Iterator[str]:
  if factor != 'heads' and small.shape.heads != large.shape.heads:
    yield f'heads {small.shape.heads} to {large.shape.heads}'
  if small.tied != large.tied:
    names = {True: 'tied', False: 'untied', None: 'unknown'}
    yield f'head {names[small.tied]} to {names[large.tied]}'
  if small.learning_rate != large.learning_rate:
    yield f'learning rate {small.learning_rate} to {large.learning_rate}'


def list_options(curves: Sequence[LossCurve]) -> list[Option]:
  """Returns the perplexity of every model by the FLOPs of its run."""
  arms = group_seeds(curves)
  options = []
  for arm in arms:
    perplexity = arm.perplexity
    # Of the logarithm, because a perplexity of few seeds would have a negative end.
    low, high = map(power_laws.clip_exp, metrics.confidence_interval(np.log(perplexity.values)))
    is_dominated = any(_dominates(other, arm) for other in arms)
    options.append(Option(arm.name, arm.runs, arm.flops, perplexity.mean, low, high, is_dominated))
  return options


def _dominates(other: Arm, arm: Arm) -> bool:
  return (
    other.first.shape.vocabulary == arm.first.shape.vocabulary
    and other.flops <= arm.flops
    and other.perplexity.mean <= arm.perplexity.mean
    and (other.flops, other.perplexity.mean) != (arm.flops, arm.perplexity.mean)
  )


def compare_depths(
  curves: Sequence[LossCurve], models: Mapping[str, Sequence[ScoredModel]]
) -> list[Depth]:
  """Returns the differences between models whose parameters or FLOPs of a run are within 10%.

  Runs are finished. The two models have one vocabulary and the same recipe, apart from the shape.
  Models of equal FLOPs may differ in the number of updates. FLOPs are the actual FLOPs if both
  models have them, else those of the count of paper 1. The loss is that of the last evaluation.
  """
  scores = {
    series: {model.name: model.score for model in series_models}
    for series, series_models in models.items()
  }
  arms = sorted(
    group_seeds(sorted(curves, key=lambda curve: curve.name)),
    key=lambda arm: (arm.first.shape.layers, arm.first.name),
  )
  depths: list[Depth] = []
  for same_recipe in group_by(arms, lambda arm: _describe_recipe(arm.first)).values():
    for shallow, deep in itertools.combinations(same_recipe, 2):
      if deep.first.shape.layers != shallow.first.shape.layers:
        depths += _compare_pair(shallow, deep, scores)
  return depths


def _describe_recipe(curve: LossCurve) -> tuple[Any, ...]:
  """Returns the recipe without the shape and the number of updates, which set the warm-up too."""
  recipe = json.dumps(dict(curve.recipe), sort_keys=True)
  return curve.shape.vocabulary, curve.tied, curve.learning_rate, curve.length, recipe


def _compare_pair(
  shallow: Arm, deep: Arm, scores: Mapping[str, Mapping[str, float]]
) -> Iterator[Depth]:
  """Yields the differences in each series of scores that both models have."""
  differences = {
    series: _average_scores(deep, by_name) - _average_scores(shallow, by_name)
    for series, by_name in scores.items()
    if all(any(name in by_name for name in arm.runs) for arm in (shallow, deep))
  } or {'': math.nan}
  losses = [np.mean([curve.loss[-1] for curve in arm.curves]) for arm in (shallow, deep)]
  for matched, ratio in _compute_ratios(shallow.first, deep.first).items():
    if min(ratio, 1 / ratio) < 1 - _MAX_DEPTH_DIFFERENCE:
      continue
    for series, score in differences.items():
      yield Depth(
        shallow=shallow.name,
        deep=deep.name,
        shallow_layers=shallow.first.shape.layers,
        deep_layers=deep.first.shape.layers,
        matched=matched,
        ratio=ratio,
        loss=float(losses[1] - losses[0]),
        series=series,
        score=score,
      )


def _average_scores(arm: Arm, by_name: Mapping[str, float]) -> float:
  """Returns the mean finite score of the runs; nan without one."""
  finite = [by_name[name] for name in arm.runs if math.isfinite(by_name.get(name, math.nan))]
  return float(np.mean(finite)) if finite else math.nan


def _compute_ratios(shallow: LossCurve, deep: LossCurve) -> dict[str, float]:
  have_actual = ACTUAL in shallow.flops_per_row and ACTUAL in deep.flops_per_row
  count = ACTUAL if have_actual else HONEY
  ratios = {'FLOPs': float(deep.flops(count)[-1] / shallow.flops(count)[-1])}
  if _saw_same_rows(shallow, deep):
    ratios = {'parameters': deep.parameters / shallow.parameters} | ratios
  return ratios
