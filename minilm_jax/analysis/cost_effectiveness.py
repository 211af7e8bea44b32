"""Incremental cost-effectiveness: the perplexity that a larger model gains for its FLOPs.

With C the FLOPs of a whole run and PPL its perplexity, the step from one value of a factor of the
shape to the next gains

    (PPL_from - PPL_to) / ((C_to - C_from) / 1e15)

points a 1e15 FLOPs; the inverse is the price of a point (paper 1; papers.md 1.10 has the definition
and its table). Only finished runs count, and only runs that saw the same rows are compared.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from minilm_jax.analysis.loss_curves import HONEY, LossCurve, ModelShape
from minilm_jax.tasks.metrics import CONFIDENCE

FACTORS = tuple(field.name for field in dataclasses.fields(ModelShape))
UNIT = 1e15  # FLOPs
# Relative difference of rows seen that counts as the same: the paper's runs differ by one update.
_MAX_ROW_DIFFERENCE = 0.01


@dataclasses.dataclass(frozen=True)
class Arm:
  """Runs that differ in nothing but their seeds.

  Attributes:
    runs: names.
    perplexity: of each run; on the test split if logged, else at its last evaluation.
    bits: bits per word of each run; empty if one of them lacks it.
    flops: of the whole run, the mean.
    rows: that each saw.
  """

  shape: ModelShape
  tied: bool | None
  learning_rate: float | None
  runs: tuple[str, ...]
  perplexity: tuple[float, ...]
  bits: tuple[float, ...]
  flops: float
  rows: float

  @property
  def mean(self) -> float:
    """Perplexity, the mean over seeds."""
    return float(np.mean(self.perplexity))


@dataclasses.dataclass(frozen=True)
class Step:
  """A step from one value of a factor to the next, all others equal.

  Attributes:
    others: the values of the other factors.
    also: what else differs between the two sides: the tied head, the learning rate, the nominal
      head count.
    from_value, to_value: of the factor; `to_value` is the larger.
    from_runs, to_runs: the runs on either side, one a seed.
    perplexity_gain: reduction of perplexity; nan if the vocabulary is the factor, as perplexities
      over different vocabularies do not compare.
    bits_gain: reduction of bits per word, if measured.
    flops: FLOPs that a run costs more.
    per_1e15, low, high: perplexity gained per 1e15 FLOPs, with its interval over seeds if both sides
      have two.
    flops_per_point: the inverse; nan if nothing is gained.
    dominated: does the step cost more and gain nothing?
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
  """One model on the plane of cost and perplexity, with the interval of its mean over seeds.

  An option is `dominated` by another of the same vocabulary that costs no more and is no worse, and
  not its equal.
  """

  name: str
  runs: tuple[str, ...]
  shape: ModelShape
  flops: float
  perplexity: float
  low: float
  high: float
  dominated: bool


def group_seeds(curves: Sequence[LossCurve]) -> list[Arm]:
  """Returns the finished runs, those that differ only in their seeds as one arm, by cost."""
  groups: dict[tuple[object, ...], list[LossCurve]] = {}
  for curve in curves:
    if curve.finished:
      schedule = (curve.learning_rate, curve.warmup, curve.length, curve.rows[-1])
      groups.setdefault((curve.shape, curve.tied, *schedule), []).append(curve)
  arms = []
  for group in groups.values():
    losses = [curve.loss[-1] if curve.test_loss is None else curve.test_loss for curve in group]
    bits = tuple(curve.bits_per_word for curve in group if curve.bits_per_word is not None)
    arms.append(
      Arm(
        shape=group[0].shape,
        tied=group[0].tied,
        learning_rate=group[0].learning_rate,
        runs=tuple(curve.name for curve in group),
        perplexity=tuple(map(math.exp, losses)),
        bits=bits if len(bits) == len(group) else (),
        flops=float(np.mean([curve.flops(HONEY)[-1] for curve in group])),
        rows=float(group[0].rows[-1]),
      )
    )
  return sorted(arms, key=lambda arm: (arm.flops, arm.runs))


def find_steps(curves: Sequence[LossCurve], draws: int = 1000, seed: int = 0) -> list[Step]:
  """Returns every step along one factor between neighbours that are equal in all others.

  Of arms of one shape (a tied head, another learning rate) the one of lowest mean perplexity counts;
  if the sides differ in that, `also` says so. The head count changes no parameter, and that of the
  logs is nominal: two models that differ in it besides the factor are a step too, marked in `also`,
  unless the same step exists with equal head counts.

  Args:
    curves: of a sweep.
    draws: resamples of the seeds of each side for an interval.
    seed: of the resampling.
  """
  steps: list[Step] = []
  arms = group_seeds(curves)
  for factor in FACTORS:
    sides = list(_find_neighbours(arms, factor, ()))
    if factor != 'heads':
      sides += [
        pair
        for pair in _find_neighbours(arms, factor, ('heads',))
        if not any(_equal_but_heads(pair, other) for other in sides)
      ]
    steps += [_make_step(factor, *pair, draws, seed) for pair in sides]
  return steps


def _equal_but_heads(sides: tuple[Arm, Arm], others: tuple[Arm, Arm]) -> bool:
  """Returns whether two steps are between the same shapes, except for the head count."""
  shapes, other_shapes = (
    [dataclasses.replace(arm.shape, heads=0) for arm in pair] for pair in (sides, others)
  )
  return shapes == other_shapes and _saw_same_rows(sides[0].rows, others[0].rows)


def _saw_same_rows(rows: float, others: float) -> bool:
  return abs(rows - others) <= _MAX_ROW_DIFFERENCE * others


def _find_neighbours(
  arms: Sequence[Arm], factor: str, free: tuple[str, ...]
) -> Iterator[tuple[Arm, Arm]]:
  """Yields the sides of each step along a factor; factors that are `free` may differ too."""
  fixed = [name for name in FACTORS if name != factor and name not in free]
  chains: list[tuple[tuple[int, ...], float, dict[int, Arm]]] = []
  for arm in arms:
    key = tuple(getattr(arm.shape, name) for name in fixed)
    best = next(
      (best for other, rows, best in chains if other == key and _saw_same_rows(arm.rows, rows)),
      None,
    )
    if best is None:
      best = {}
      chains.append((key, arm.rows, best))
    value = getattr(arm.shape, factor)
    if value not in best or arm.mean < best[value].mean:
      best[value] = arm
  for _, _, best in chains:
    values = sorted(best)
    for low, high in zip(values, values[1:]):
      yield best[low], best[high]


def _make_step(factor: str, small: Arm, large: Arm, draws: int, seed: int) -> Step:
  is_comparable = factor != 'vocabulary'
  gain = small.mean - large.mean if is_comparable else math.nan
  bits = math.nan
  if small.bits and large.bits:
    bits = float(np.mean(small.bits) - np.mean(large.bits))
  low = high = math.nan
  if is_comparable and min(len(small.runs), len(large.runs)) > 1:
    low, high = _resample_interval((small.perplexity, large.perplexity), draws, seed)
  gains = gain > 0 if is_comparable else bits > 0
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
    low=low / units,
    high=high / units,
    bits_per_1e15=bits / units,
    flops_per_point=flops / gain if gain > 0 else math.nan,
    dominated=flops >= 0 and not gains and not is_unknown,
  )


def describe_others(shape: ModelShape, factor: str) -> str:
  """Returns the other factors: e embedding, h hidden, i feed-forward, a heads, l layers, V
  vocabulary.

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


def list_options(curves: Sequence[LossCurve], draws: int = 1000, seed: int = 0) -> list[Option]:
  """Returns every model by its cost, the FLOPs of the whole run, with its perplexity.

  Args:
    curves: of a sweep.
    draws: resamples of the seeds of a model for its interval.
    seed: of the resampling.
  """
  arms = group_seeds(curves)
  options = []
  for arm in arms:
    name, low, high = arm.runs[0], math.nan, math.nan
    if len(arm.runs) > 1:
      name += f' and {len(arm.runs) - 1} more'
      low, high = _resample_interval((arm.perplexity,), draws, seed)
    is_dominated = any(_dominates(other, arm) for other in arms)
    options.append(Option(name, arm.runs, arm.shape, arm.flops, arm.mean, low, high, is_dominated))
  return options


def _dominates(other: Arm, arm: Arm) -> bool:
  return (
    other.shape.vocabulary == arm.shape.vocabulary
    and other.flops <= arm.flops
    and other.mean <= arm.mean
    and (other.flops, other.mean) != (arm.flops, arm.mean)
  )


def _resample_interval(
  sides: Sequence[Sequence[float]], draws: int, seed: int
) -> tuple[float, float]:
  """Returns the percentile interval of the mean of one side, or of the difference of two means.

  Of two or three seeds it is too narrow.
  """
  rng = np.random.default_rng(seed)
  means = [rng.choice(np.asarray(side), (draws, len(side))).mean(1) for side in sides]
  values = means[0] - means[1] if len(means) == 2 else means[0]
  low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
  return float(low), float(high)
