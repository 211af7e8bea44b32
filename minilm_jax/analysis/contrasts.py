"""Two recipes of pre-training by the scores of what was fine-tuned from them, pair by pair.

A pair is a run of each recipe of the same seed. Of several pairs the differences are one number a pair, a mean over the
seeds of fine-tuning that both of it have; of a single pair they are one number a seed of fine-tuning. The interval is
Student's over these numbers.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from minilm_jax.analysis.scores import Group, ScoreRow
from minilm_jax.tasks import metrics

TRAININGS, TUNINGS = 'pre-trainings', 'seeds of fine-tuning'
Both = tuple[float, float]  # one number of each side
BySeed = Mapping[int, Both]  # of fine-tuning
Pair = tuple[str, str]  # names of runs, the base's first


class ScoreKey(NamedTuple):
  """What two scores have in common where they compare: task, metric and how the examples were split."""

  task: str
  metric: str
  split: str
  filtered: bool
  train_examples: int
  held_out: int


PairedScores = dict[ScoreKey, dict[Pair, BySeed]]


@dataclasses.dataclass(frozen=True)
class Contrast:
  """One number of both sides.

  Attributes:
    base, value: means over the pairs.
    difference, low, high: value less base, with its 95% interval; nan of one number.
    n, of: how many numbers it is the mean of, and what each is of.
  """

  base: float
  value: float
  difference: float
  low: float
  high: float
  n: int
  of: str


NO_CONTRAST = Contrast(math.nan, math.nan, math.nan, math.nan, math.nan, 0, '')


def contrast(values: Sequence[Both], of: str) -> Contrast:
  """What numbers of both sides say, the base's first in each.

  >>> contrast([(5.0, 4.5)], TRAININGS)
  Contrast(base=5.0, value=4.5, difference=-0.5, low=nan, high=nan, n=1, of='pre-trainings')
  """
  base, own = np.array(values, float).T
  low, high = metrics.interval(own - base)
  return Contrast(
    float(base.mean()), float(own.mean()), float((own - base).mean()), low, high, len(values), of
  )


def scored(pairs: Iterable[Pair], rows: Iterable[ScoreRow]) -> PairedScores:
  """Both headline scores of each seed of fine-tuning that both runs of a pair have, by what was scored and pair.

  Args:
    pairs: of runs.
    rows: of `scores.select_main`. A run with several rows of one key (rates that nothing chose
      between) has no score there.
  """
  places: dict[ScoreKey, dict[str, list[Group]]] = {}
  for row in rows:
    if row.headline:
      place = ScoreKey(*(getattr(row, field) for field in ScoreKey._fields))
      places.setdefault(place, {}).setdefault(row.checkpoint, []).append(row.pretrained)
  pairs, found = list(pairs), {}
  for place, groups in places.items():
    one = {name: several[0] for name, several in groups.items() if len(several) == 1}
    both = {
      pair: _common(*(one[name] for name in pair))
      for pair in pairs
      if all(name in one for name in pair)
    }
    found[place] = {pair: seeds for pair, seeds in both.items() if seeds}
  return {place: both for place, both in found.items() if both}


def _common(base: Group, own: Group) -> BySeed:
  sides = [dict(zip(group.seeds, group.values, strict=True)) for group in (base, own)]
  return {seed: (value, sides[1][seed]) for seed, value in sides[0].items() if seed in sides[1]}


def over_tasks(tasks: Sequence[Mapping[Pair, BySeed]]) -> Contrast:
  """The contrast of the mean over tasks, which all have the same pairs; of one task, its own.

  Of a single pair the seeds count that all of the tasks have; without one there is nothing.
  """
  pairs = [[task[pair] for task in tasks] for pair in tasks[0]]
  if len(pairs) > 1:
    return contrast(
      [_mean_of_pairs([_mean_of_pairs(list(seeds.values())) for seeds in own]) for own in pairs],
      TRAININGS,
    )
  seeds = sorted(set.intersection(*(set(seeds) for seeds in pairs[0])))
  return (
    contrast([_mean_of_pairs([task[seed] for task in pairs[0]]) for seed in seeds], TUNINGS)
    if seeds
    else NO_CONTRAST
  )


def _mean_of_pairs(values: Sequence[Both]) -> Both:
  base, own = np.mean(values, 0).tolist()
  return base, own
