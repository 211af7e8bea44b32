"""What a committee gains with its size: scores of subsets of its members, from what each said of the same examples.

Members are combined in two ways, by their mean logit and by their mean probability, since the paper on committees does
not say which (paper 2, soft committee). `members` is the mean of what each scores alone: what one member gives.

Of each size all subsets count where there are at most 100; else 100 different ones that a fixed seed draws. An interval
is the middle 95% over subsets: how a score moves with the members that happen to be taken. Subsets share members, so it
is no interval for committees of other members, and at the size of the whole committee there is none. Where every subset
of a size counts, means over them are exact: no draw is in them.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from minilm_jax.errors import InputError
from minilm_jax.tasks import calibration, metrics
from minilm_jax.tasks.calibration import softmax

MOST, _SEED = 100, 0
LOGIT, PROBABILITY, MEMBERS = 'mean logit', 'mean probability', 'members'
_QUALITY: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    'negative log-likelihood': calibration.negative_log_likelihood, 'calibration error': calibration.calibration_error,
    'Brier score': calibration.brier}
DISAGREEMENT = 'disagreement'


@dataclasses.dataclass(frozen=True)
class Line:
  """One number: a metric of committees of one size, combined in one way.

  `mean` is over the subsets, `low` and `high` hold their middle 95% (nan of one subset), `every` says whether all
  subsets of that size were taken.
  """

  split: str
  size: int
  combined: str
  metric: str
  headline: bool
  mean: float
  low: float
  high: float
  subsets: int
  every: bool


def combine(logits: Float[np.ndarray, 'M N C'], how: str) -> Float[np.ndarray, 'N C']:
  """Probabilities of a committee from its members' logits: softmax of their mean, or the mean of their softmax."""
  return softmax(np.mean(logits, 0, np.float64)) if how == LOGIT else softmax(logits).mean(0)


def subsets(members: int, size: int, most: int = MOST) -> list[tuple[int, ...]]:
  """Subsets of a size, each in ascending order: all, or `most` different ones of a fixed seed.

  >>> subsets(3, 2)
  [(0, 1), (0, 2), (1, 2)]
  """
  if math.comb(members, size) <= most:
    return list(itertools.combinations(range(members), size))
  random, found = np.random.default_rng([_SEED, members, size]), dict[tuple[int, ...], None]()
  while len(found) < most:
    found[tuple(sorted(random.choice(members, size, replace=False).tolist()))] = None
  return list(found)


def disagreement(logits: Float[np.ndarray, 'M N C']) -> Float[np.ndarray, 'M M']:
  """For each two members the share of examples that they put into different classes."""
  said = logits.argmax(-1)
  return (said[:, None] != said[None]).mean(-1)


def study(logits: Float[np.ndarray, 'M N C'], labels: Int[np.ndarray, 'N'], headline: str, split: str,
          most: int = MOST) -> list[Line]:
  """Scores of committees of every size up to M.

  Args:
    logits: of every member on the same examples.
    labels: class indices.
    headline: the metric of the task; accuracy is there too.
    split: the name of the examples.
    most: subsets of a size, at most.

  Raises:
    InputError: no members, or logits that are no numbers.
  """
  if not len(logits) or not np.isfinite(logits).all():
    found = 'logits that are no numbers' if len(logits) else 'no members'
    raise InputError(f'scores of a committee on {split}', found,
                     'leave the members out whose loss was no number')
  names = tuple(dict.fromkeys((headline, 'accuracy')))
  alone = [_scores(softmax(one), labels, names) for one in logits]
  apart = disagreement(logits)
  lines = []
  for size in range(1, len(logits) + 1):
    some = subsets(len(logits), size, most)
    every = len(some) == math.comb(len(logits), size)
    columns: dict[tuple[str, str], list[float]] = {}
    for subset in some:
      for key, value in _of_subset(logits, labels, names, alone, apart, subset):
        columns.setdefault(key, []).append(value)
    for (how, metric), values in columns.items():
      lines.append(Line(split, size, how, metric, metric == headline, float(np.mean(values)), *_ends(values),
                        len(some), every))
  return lines


def _of_subset(logits: np.ndarray, labels: np.ndarray, names: tuple[str, ...], alone: Sequence[dict[str, float]],
               apart: np.ndarray, subset: Sequence[int]) -> Iterator[tuple[tuple[str, str], float]]:
  """(how, metric) and value of one committee."""
  for how in (LOGIT, PROBABILITY):
    for metric, value in _scores(combine(logits[list(subset)], how), labels, names).items():
      yield (how, metric), value
  for metric in alone[0]:
    yield (MEMBERS, metric), float(np.mean([alone[member][metric] for member in subset]))
  if len(subset) > 1:
    pairs = list(itertools.combinations(subset, 2))
    yield (MEMBERS, DISAGREEMENT), float(np.mean([apart[pair] for pair in pairs]))


def _scores(probabilities: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
  own = metrics.compute(names, probabilities.argmax(-1), labels)
  return own | {name: score(probabilities, labels) for name, score in _QUALITY.items()}


def _ends(values: Sequence[float]) -> tuple[float, float]:
  if len(values) < 2:
    return math.nan, math.nan
  return tuple(float(end) for end in np.percentile(values, (2.5, 97.5)))


def as_dict(line: Line) -> dict[str, Any]:
  """A line as plain data; what is not a number is None, as JSON has it."""
  return {name: None if isinstance(value, float) and math.isnan(value) else value
          for name, value in dataclasses.asdict(line).items()}
