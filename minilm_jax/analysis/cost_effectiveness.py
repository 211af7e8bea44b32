"""Incremental cost-effectiveness: the perplexity that a larger model gains per FLOP (paper 1).

A step goes from one value of a factor of the model shape to the next. C is the FLOPs of a run and
PPL the perplexity. In points of perplexity per 1e15 FLOPs, a step gains

    (PPL_from - PPL_to) / ((C_to - C_from) / 1e15)

Only finished runs with equal numbers of rows are compared.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Sequence

import numpy as np

from minilm_jax.analysis.laws import power_laws
from minilm_jax.analysis.loss_curves import HONEY, LossCurve, ModelShape
from minilm_jax.analysis.runs import group_by
from minilm_jax.analysis.scores import Difference, Group, compute_difference, make_group
from minilm_jax.tasks import metrics

FACTORS = tuple(field.name for field in dataclasses.fields(ModelShape))
UNIT = 1e15  # FLOPs
# Recipe fields that may differ between the ends of a step.
_STEP_FIELDS = ('model.vocab_size', 'model.tied', 'optimizer.learning_rate')
# Relative difference of equal numbers of rows; runs of the paper differ by one update.
_MAX_ROW_DIFFERENCE = 0.01


@dataclasses.dataclass(frozen=True)
class Arm:
  """Runs that differ in their seeds alone.

  Attributes:
    tied: the head shares the embedding table; None if not logged.
    learning_rate: peak learning rate; None if not logged.
    perplexity: test perplexity by seed or, if not logged, that of the last validation. Runs of one
      seed count once, and runs without a logged seed count as different seeds.
    bits: bits per word of each run; empty if a run has none.
    recipe: fields that do not differ between the ends of a step, as JSON.
  """

  shape: ModelShape
  tied: bool | None
  learning_rate: float | None
  runs: tuple[str, ...]
  perplexity: Group
  bits: tuple[float, ...]
  flops: float
  rows: float
  recipe: str = ''


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


def group_seeds(curves: Sequence[LossCurve]) -> list[Arm]:
  """Returns the finished runs by cost; runs that differ in their seeds alone form one arm."""
  finished = (curve for curve in curves if curve.finished)
  groups = group_by(finished, lambda curve: (curve.arm, curve.rows[-1]))
  arms = []
  unknown_seeds = itertools.count(-1, -1)  # no two arms share one, so they are not paired
  for group in groups.values():
    bits = tuple(curve.bits_per_word for curve in group if curve.bits_per_word is not None)
    arms.append(
      Arm(
        shape=group[0].shape,
        tied=group[0].tied,
        learning_rate=group[0].learning_rate,
        runs=tuple(curve.name for curve in group),
        perplexity=_group_perplexity(group, unknown_seeds),
        bits=bits if len(bits) == len(group) else (),
        flops=float(np.mean([curve.flops(HONEY)[-1] for curve in group])),
        rows=float(group[0].rows[-1]),
        recipe=_format_recipe(group[0]),
      )
    )
  return sorted(arms, key=lambda arm: (arm.flops, arm.runs))


def _group_perplexity(curves: Sequence[LossCurve], unknown_seeds: Iterator[int]) -> Group:
  """Returns the mean perplexity of each seed."""
  by_seed = group_by(
    curves, lambda curve: next(unknown_seeds) if curve.seed is None else curve.seed
  )
  return make_group(
    {
      seed: float(np.mean([_compute_perplexity(curve) for curve in group]))
      for seed, group in sorted(by_seed.items())
    }
  )


def _compute_perplexity(curve: LossCurve) -> float:
  return power_laws.clip_exp(curve.loss[-1] if curve.test_loss is None else curve.test_loss)


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
    [dataclasses.replace(arm.shape, heads=0) for arm in pair] for pair in (sides, others)
  )
  return shapes == other_shapes and saw_same_rows(sides[0].rows, others[0].rows)


def saw_same_rows(rows: float, other_rows: float) -> bool:
  """Returns whether two numbers of rows are within 1%."""
  return abs(rows - other_rows) <= _MAX_ROW_DIFFERENCE * other_rows


def _find_neighbours(
  arms: Sequence[Arm], factor: str, free: tuple[str, ...]
) -> Iterator[tuple[Arm, Arm]]:
  """Yields the arms of each step along a factor; `free` factors may also differ."""
  fixed = [name for name in FACTORS if name != factor and name not in free]
  chains: list[tuple[tuple[int | str, ...], float, dict[int, Arm]]] = []
  for arm in arms:
    key = (*(getattr(arm.shape, name) for name in fixed), arm.recipe)
    best = next(
      (best for other, rows, best in chains if other == key and saw_same_rows(arm.rows, rows)),
      None,
    )
    if best is None:
      best = {}
      chains.append((key, arm.rows, best))
    value = getattr(arm.shape, factor)
    if value not in best or arm.perplexity.mean < best[value].perplexity.mean:
      best[value] = arm
  for _, _, best in chains:
    values = sorted(best)
    for low, high in zip(values, values[1:]):
      yield best[low], best[high]


def _make_step(factor: str, small: Arm, large: Arm) -> Step:
  is_comparable = factor != 'vocabulary'
  difference = (
    compute_difference(small.perplexity, large.perplexity) if is_comparable else Difference()
  )
  gain = difference.mean
  bits = math.nan
  if small.bits and large.bits:
    bits = float(np.mean(small.bits) - np.mean(large.bits))
  is_better = gain > 0 if is_comparable else bits > 0
  is_unknown = not is_comparable and math.isnan(bits)
  flops = large.flops - small.flops
  units = flops / UNIT if flops > 0 else math.nan
  return Step(
    factor=factor,
    others=describe_others(small.shape, factor),
    also='; '.join(_describe_changes(factor, small, large)),
    from_value=getattr(small.shape, factor),
    to_value=getattr(large.shape, factor),
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


def _describe_changes(factor: str, small: Arm, large: Arm) -> Iterator[str]:
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
    options.append(
      Option(
        name_arm(arm.runs),
        arm.runs,
        arm.flops,
        perplexity.mean,
        low,
        high,
        is_dominated,
      )
    )
  return options


def name_arm(runs: Sequence[str]) -> str:
  """Returns the name of the first run, with the number of further runs.

  >>> name_arm(['a', 'b', 'c'])
  'a and 2 more'
  """
  return runs[0] if len(runs) == 1 else f'{runs[0]} and {len(runs) - 1} more'


def _dominates(other: Arm, arm: Arm) -> bool:
  return (
    other.shape.vocabulary == arm.shape.vocabulary
    and other.flops <= arm.flops
    and other.perplexity.mean <= arm.perplexity.mean
    and (other.flops, other.perplexity.mean) != (arm.flops, arm.perplexity.mean)
  )
