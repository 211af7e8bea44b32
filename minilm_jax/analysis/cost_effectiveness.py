"""Incremental cost-effectiveness: what a larger model buys, one factor of its shape at a time, and
which are worth it.

With C the FLOPs of a whole run and PPL its perplexity, the step from one value of a factor to the
next gains

    (PPL_from - PPL_to) / ((C_to - C_from) / 1e15)

points a 1e15 FLOPs; the inverse is the price of a point (paper 1; papers.md 1.10 has the definition
and its table). Only runs that have ended count, and only such are compared as saw the same rows.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from minilm_jax.analysis.loss_curves import HONEY, LossCurve, ModelShape
from minilm_jax.tasks.metrics import CONFIDENCE

FACTORS = tuple(field.name for field in dataclasses.fields(ModelShape))
UNIT = 1e15  # FLOPs
_MAX_ROW_DIFFERENCE = (
  0.01  # runs whose rows differ by less saw the same: the paper's do, by one update
)


@dataclasses.dataclass(frozen=True)
class Arm:
  """Runs that differ in nothing but their seeds, and stand as one option.

  Attributes:
    runs: names.
    perplexity: of each run; on the test split where there is one, else at its last evaluation.
    bits: bits per word of each run; none where one of them lacks it.
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
  """From one value of a factor to the next, all others equal.

  Attributes:
    others: the values of the other factors, in words.
    also: what else differs between the two sides: the tied head, the learning rate, the nominal
      head count.
    from_value, to_value: of the factor; `to_value` is the larger.
    from_runs, to_runs: the runs on either side, one a seed.
    perplexity_gain: points of perplexity that the step takes off; not a number where the vocabulary
      is the factor, for perplexities over other vocabularies cannot be compared.
    bits_gain: bits per word that it takes off, where they were taken.
    flops: that it adds to a run.
    per_1e15, low, high: perplexity gained a 1e15 FLOPs, with its interval over seeds, where both
    sides have two.
    flops_per_point: the inverse; not a number where nothing is gained.
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

  `dominated` by another option that costs no more and is no worse, and not its equal; over the same
  vocabulary.
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
  """The runs that have ended, those that differ in their seeds alone as one, by their cost."""
  groups: dict[tuple[object, ...], list[LossCurve]] = {}
  for curve in curves:
    if curve.finished:
      key = (
        curve.shape,
        curve.tied,
        curve.learning_rate,
        curve.warmup,
        curve.length,
        curve.rows[-1],
      )
      groups.setdefault(key, []).append(curve)
  found = []
  for own in groups.values():
    losses = [curve.loss[-1] if curve.test_loss is None else curve.test_loss for curve in own]
    bits = [curve.bits_per_word for curve in own if curve.bits_per_word is not None]
    found.append(
      Arm(
        own[0].shape,
        own[0].tied,
        own[0].learning_rate,
        tuple(curve.name for curve in own),
        tuple(map(math.exp, losses)),
        tuple(bits) if len(bits) == len(own) else (),
        float(np.mean([curve.flops(HONEY)[-1] for curve in own])),
        float(own[0].rows[-1]),
      )
    )
  return sorted(found, key=lambda arm: (arm.flops, arm.runs))


def find_steps(curves: Sequence[LossCurve], draws: int = 1000, seed: int = 0) -> list[Step]:
  """Every step along one factor whose sides are equal in all others, and each next to the other
  along it.

  Of arms of one shape (a tied head, another learning rate) the one of lowest mean perplexity stands
  for it; where the sides then differ in that, the step says so in `also`. The head count changes no
  parameter, and that of the logs is nominal, so where it alone keeps two models from being a step
  they are one, which says so too.

  Args:
    curves: of a grid.
    draws: resamples of the seeds of each side for an interval.
    seed: of the resampling.
  """
  found: list[Step] = []
  options = group_seeds(curves)
  for factor in FACTORS:
    strict = list(_neighbours(options, factor, ()))
    if factor != 'heads':
      strict += [
        sides
        for sides in _neighbours(options, factor, ('heads',))
        if not any(_same_but_heads(sides, other) for other in strict)
      ]
    found += [_step(factor, *sides, draws, seed) for sides in strict]
  return found


def _same_but_heads(sides: tuple[Arm, Arm], other: tuple[Arm, Arm]) -> bool:
  """Are two steps between the same shapes, but for the head count?"""
  bare = [[dataclasses.replace(arm.shape, heads=0) for arm in each] for each in (sides, other)]
  return bare[0] == bare[1] and _saw_the_same(sides[0].rows, other[0].rows)


def _saw_the_same(rows: float, others: float) -> bool:
  return abs(rows - others) <= _MAX_ROW_DIFFERENCE * others


def _neighbours(
  options: Sequence[Arm], factor: str, free: tuple[str, ...]
) -> Iterator[tuple[Arm, Arm]]:
  """The sides of each step along a factor; factors that are `free` may differ between them."""
  fixed = [name for name in FACTORS if name != factor and name not in free]
  chains: list[tuple[tuple[int, ...], float, dict[int, Arm]]] = []
  for arm in options:
    key = tuple(getattr(arm.shape, name) for name in fixed)
    best = next(
      (chain for other, rows, chain in chains if other == key and _saw_the_same(arm.rows, rows)),
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


def _step(factor: str, one: Arm, two: Arm, draws: int, seed: int) -> Step:
  comparable = factor != 'vocabulary'
  gain = one.mean - two.mean if comparable else math.nan
  flops = two.flops - one.flops
  bits = float(np.mean(one.bits) - np.mean(two.bits)) if one.bits and two.bits else math.nan
  ends = (
    _interval(
      lambda rng: _means(one.perplexity, draws, rng) - _means(two.perplexity, draws, rng), seed
    )
    if (comparable and min(len(one.runs), len(two.runs)) > 1)
    else (math.nan, math.nan)
  )
  better = gain > 0 if comparable else bits > 0
  unknown = not comparable and math.isnan(bits)
  costs = flops / UNIT if flops > 0 else math.nan
  return Step(
    factor=factor,
    others=describe_others(one.shape, factor),
    also='; '.join(_also(factor, one, two)),
    from_value=getattr(one.shape, factor),
    to_value=getattr(two.shape, factor),
    from_runs=one.runs,
    to_runs=two.runs,
    perplexity_gain=gain,
    bits_gain=bits,
    flops=flops,
    per_1e15=gain / costs,
    low=ends[0] / costs,
    high=ends[1] / costs,
    bits_per_1e15=bits / costs,
    flops_per_point=flops / gain if gain > 0 else math.nan,
    dominated=flops >= 0 and not better and not unknown,
  )


def describe_others(shape: ModelShape, factor: str) -> str:
  """The other factors in words: e embedding, h hidden, i feed-forward, a heads, l layers, V
  vocabulary.

  >>> describe_others(ModelShape(32, 64, 128, 1, 2, 19010), 'hidden')
  'e 32, i 128, a 1, l 2, V 19010'
  """
  letters = dict(zip(FACTORS, 'ehialV', strict=True))
  return ', '.join(
    f'{letter} {getattr(shape, name)}' for name, letter in letters.items() if name != factor
  )


def _also(factor: str, one: Arm, two: Arm) -> Iterator[str]:
  if factor != 'heads' and one.shape.heads != two.shape.heads:
    yield f'heads {one.shape.heads} to {two.shape.heads}'
  if one.tied != two.tied:
    words = {True: 'tied', False: 'untied', None: 'unknown'}
    yield f'head {words[one.tied]} to {words[two.tied]}'
  if one.learning_rate != two.learning_rate:
    yield f'learning rate {one.learning_rate} to {two.learning_rate}'


def list_options(curves: Sequence[LossCurve], draws: int = 1000, seed: int = 0) -> list[Option]:
  """Every model by its cost, the FLOPs of the whole run, with its perplexity; see `Option`.

  Args:
    curves: of a grid.
    draws: resamples of the seeds of a model for its interval.
    seed: of the resampling.
  """
  options = group_seeds(curves)
  found = []
  for arm in options:
    ends = (math.nan, math.nan)
    if len(arm.runs) > 1:
      ends = _interval(lambda rng, arm=arm: _means(arm.perplexity, draws, rng), seed)
    name = arm.runs[0] + (f' and {len(arm.runs) - 1} more' if len(arm.runs) > 1 else '')
    found.append(
      Option(
        name,
        arm.runs,
        arm.shape,
        arm.flops,
        arm.mean,
        *ends,
        any(_dominates(other, arm) for other in options),
      )
    )
  return found


def _dominates(other: Arm, arm: Arm) -> bool:
  theirs, ours = (other.flops, other.mean), (arm.flops, arm.mean)
  return (
    other.shape.vocabulary == arm.shape.vocabulary
    and theirs[0] <= ours[0]
    and theirs[1] <= ours[1]
    and theirs != ours
  )


def _means(
  values: Sequence[float], draws: int, rng: np.random.Generator
) -> Float[np.ndarray, 'draws']:
  return rng.choice(np.asarray(values), (draws, len(values))).mean(1)


def _interval(
  resample: Callable[[np.random.Generator], Float[np.ndarray, 'draws']], seed: int
) -> tuple[float, float]:
  """The percentiles of a resampled statistic; of two or three seeds they are narrower than the
  truth.
  """
  low, high = np.quantile(
    resample(np.random.default_rng(seed)), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
  )
  return float(low), float(high)
