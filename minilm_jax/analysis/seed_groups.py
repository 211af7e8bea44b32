"""Numbers by seed: their means with intervals, and the differences of two groups."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from minilm_jax.tasks import metrics


@dataclasses.dataclass(frozen=True)
class Group:
  """Numbers by seed, such as the scores of one arm, pre-trained or from scratch.

  Attributes:
    learning_rate: None without training.
    mean, std, n: of the values; std is the sample standard deviation.
    low, high: ends of Student's 95% interval of the mean.
    collapsed: number of seeds with constant predictions.
    undefined: number of seeds whose score is not finite.
    mean_example_low, mean_example_high: interval over examples, its ends averaged over seeds.
    seeds, values: finite numbers, one a seed.
  """

  learning_rate: float | None = None
  mean: float = math.nan
  std: float = math.nan
  n: int = 0
  low: float = math.nan
  high: float = math.nan
  collapsed: int = 0
  undefined: int = 0
  mean_example_low: float = math.nan
  mean_example_high: float = math.nan
  seeds: tuple[int, ...] = ()
  values: tuple[float, ...] = ()

  @property
  def by_seed(self) -> dict[int, float]:
    """Values by seed."""
    return dict(zip(self.seeds, self.values, strict=True))


@dataclasses.dataclass(frozen=True)
class Difference:
  """A difference of means with its 95% interval, paired by seed or else Welch's."""

  mean: float = math.nan
  low: float = math.nan
  high: float = math.nan
  paired: bool = False


def make_group(values: Mapping[int, float], **fields: Any) -> Group:
  """Returns the group of these values by seed, with other fields of `Group`."""
  numbers = tuple(values.values())
  return Group(**metrics.summarize(numbers), seeds=tuple(values), values=numbers, **fields)


def compute_difference(group: Group, subtrahend: Group) -> Difference:
  """Returns the difference of the means of two groups, paired if their seeds are equal."""
  mean = group.mean - subtrahend.mean
  if group.n and group.seeds == subtrahend.seeds:
    interval = metrics.confidence_interval(np.subtract(group.values, subtrahend.values))
    return Difference(mean, *interval, True)
  if min(group.n, subtrahend.n) < 2:
    return Difference(mean)
  with warnings.catch_warnings():
    # SciPy warns if one group has no variance, although the interval is defined.
    warnings.simplefilter('ignore')
    welch = stats.ttest_ind(group.values, subtrahend.values, equal_var=False).confidence_interval(
      metrics.CONFIDENCE
    )
  return Difference(mean, float(welch.low), float(welch.high))


def subtract_by_seed(
  values: Mapping[int, float], subtrahend: Mapping[int, float]
) -> dict[int, float]:
  """Returns the difference for each seed that both have, in the order of the seeds."""
  common = sorted(values.keys() & subtrahend.keys())
  return {seed: values[seed] - subtrahend[seed] for seed in common}
