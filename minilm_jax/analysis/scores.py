"""Scores of many fine-tuning runs as one table: pre-trained against from scratch, with what chance alone would give.

Values stay shares or correlations as they were logged; only a page multiplies them by 100. A score that is not a number
(a correlation with constant predictions) is counted as undefined and left out of the mean.
"""

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from minilm_jax.analysis.runs import number
from minilm_jax.tasks import metrics

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Group:
  """Scores of one model over seeds: sample standard deviation, Student's interval of the mean."""

  mean: float
  std: float
  n: int
  low: float
  high: float
  collapsed: int
  undefined: int


@dataclasses.dataclass(frozen=True)
class Difference:
  """Pre-trained less from scratch, with its interval; `paired` by seed, or else Welch's."""

  mean: float
  low: float
  high: float
  paired: bool


@dataclasses.dataclass(frozen=True)
class ScoreRow:
  """One metric of one task from one checkpoint; a side without scores has n = 0."""

  task: str
  metric: str
  headline: bool
  split: str
  filtered: bool
  checkpoint: str
  examples: int
  majority: float
  pretrained: Group
  scratch: Group
  difference: Difference


def score_table(scores: Iterable[Mapping[str, Any]]) -> list[ScoreRow]:
  """One row for each task, metric, split, filter and checkpoint, the headline metric of a task first.

  Args:
    scores: lines of scores.jsonl. Of several that differ in nothing but their value, the last counts.
  """
  sides: dict[tuple[Any, ...], dict[bool, dict[int, Mapping[str, Any]]]] = {}
  for score in scores:
    key = (score['task'], score['split'], score['filtered'], score['checkpoint'],
           not score['headline'], score['metric'])
    sides.setdefault(key, {True: {}, False: {}})[score['pretrained']][score['seed']] = score
  rows = []
  for key in sorted(sides):
    task, split, filtered, checkpoint, minor, metric = key
    ours, theirs = sides[key][True], sides[key][False]
    one = next(iter((ours or theirs).values()))
    rows.append(ScoreRow(
        task=task, metric=metric, headline=not minor, split=split, filtered=filtered, checkpoint=checkpoint,
        examples=one['examples'], majority=number(one['majority']), pretrained=_group(ours), scratch=_group(theirs),
        difference=_difference(_defined(ours), _defined(theirs))))
  return rows


def _defined(scores: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
  values = {seed: number(score['value']) for seed, score in scores.items()}
  return {seed: value for seed, value in values.items() if math.isfinite(value)}


def _group(scores: Mapping[int, Mapping[str, Any]]) -> Group:
  values = list(_defined(scores).values())
  low, high = _interval(values)
  return Group(
      mean=float(np.mean(values)) if values else math.nan,
      std=float(np.std(values, ddof=1)) if len(values) > 1 else math.nan, n=len(values), low=low, high=high,
      collapsed=sum(bool(score['collapsed']) for score in scores.values()), undefined=len(scores) - len(values))


def _difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
  if not ours or not theirs:
    return Difference(math.nan, math.nan, math.nan, False)
  mean = float(np.mean(list(ours.values())) - np.mean(list(theirs.values())))
  if ours.keys() == theirs.keys():
    return Difference(mean, *_interval([ours[seed] - theirs[seed] for seed in ours]), True)
  if min(len(ours), len(theirs)) < 2:
    return Difference(mean, math.nan, math.nan, False)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # about seeds that all score the same: the other side still has a spread
    welch = stats.ttest_ind(list(ours.values()), list(theirs.values()), equal_var=False).confidence_interval(LEVEL)
  return Difference(mean, float(welch.low), float(welch.high), False)


def _interval(values: Sequence[float]) -> tuple[float, float]:
  """One value says nothing about its spread."""
  return metrics.interval(values, LEVEL) if len(values) > 1 else (math.nan, math.nan)
