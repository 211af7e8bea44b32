"""Scores of ablations on GLUE against the base, with a verdict by a pre-registered rule.

The verdict depends on the difference of the averages, ablation minus base. The 95% interval is over
pairs of pre-training seeds:

    no worse on GLUE     the interval lies above -1 point, the smallest relevant effect
    worse on GLUE        the interval lies below -1 point
    cannot be told       otherwise, and with one pair
"""

import collections
import dataclasses
import math
import operator
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from minilm_jax.analysis.ablations import AblationAtSize
from minilm_jax.analysis.runs import group_by, select_single
from minilm_jax.analysis.scores import ScoreRow, describe_differences, is_averaged
from minilm_jax.tasks import metrics

NO_WORSE, WORSE = 'no worse on GLUE', 'worse on GLUE'
OPEN, ONE_SEED = 'cannot be told', 'cannot be told from one seed'
GLUE_MARGIN = 0.01  # one point of score
AVERAGE = 'average'
TRAININGS, TUNINGS = 'pre-trainings', 'seeds of fine-tuning'
# Fields that comparable scores share.
_get_key = operator.attrgetter('task', 'metric', 'split', 'filtered', 'train_examples', 'protocol')
RunPair = tuple[str, str]  # names of the base run and of the ablation
BothScores = tuple[float, float]  # scores of the base and of the ablation
PairedScores = Mapping[RunPair, Mapping[int, BothScores]]  # by pair and seed of fine-tuning


@dataclasses.dataclass(frozen=True)
class Contrast:
  """A paired difference of two recipes.

  Attributes:
    base, value: means of the base and of the other recipe over the pairs.
    difference: `value` minus `base`.
    low, high: ends of the 95% interval of the difference; nan with one pair.
    of: TRAININGS or TUNINGS, the unit of a pair; '' without pairs.
  """

  base: float = math.nan
  value: float = math.nan
  difference: float = math.nan
  low: float = math.nan
  high: float = math.nan
  n: int = 0
  of: str = ''


@dataclasses.dataclass(frozen=True)
class GlueRow:
  """Scores of an ablation and the base on one task, or on average over tasks.

  Attributes:
    task: task of GLUE, or `AVERAGE`.
    tasks: tasks of the average.
    score: difference of the scores, as shares.
  """

  change: str
  shape: str
  task: str
  tasks: tuple[str, ...]
  score: Contrast


def find_glue_rows(part: AblationAtSize, rows: Sequence[ScoreRow]) -> list[GlueRow]:
  """Returns the average and the tasks of each ablation with a seed that the base also has.

  Args:
    rows: rows of `scores.select_main`.
  """
  averaged = [row for row in rows if is_averaged(row)]
  base = part.base.curves
  glue_rows = []
  for change in part.changes:
    pairs = [(base[seed].name, curve.name) for seed, curve in change.curves.items() if seed in base]
    for task, tasks, contrast in _contrast_tasks(_pair_scores(pairs, averaged)):
      glue_rows.append(GlueRow(change.name, part.shape, task, tasks, contrast))
  return glue_rows


def _pair_scores(
  pairs: Sequence[RunPair], rows: Sequence[ScoreRow]
) -> list[tuple[ScoreRow, PairedScores]]:
  """Returns the scores of both runs of each pair by common seed, after a row with their fields.

  A run with several rows of equal fields has no score there.
  """
  paired = []
  for same_key in group_by(rows, _get_key).values():
    by_run = select_single(group_by(same_key, lambda row: row.checkpoint))
    by_pair = {}
    for pair in pairs:
      base, other = (by_run[name].pretrained.by_seed if name in by_run else {} for name in pair)
      by_seed = {seed: (score, other[seed]) for seed, score in base.items() if seed in other}
      if by_seed:
        by_pair[pair] = by_seed
    if by_pair:
      paired.append((same_key[0], by_pair))
  return paired


def _contrast_tasks(
  paired: Sequence[tuple[ScoreRow, PairedScores]],
) -> Iterator[tuple[str, tuple[str, ...], Contrast]]:
  """Yields the average over tasks with one protocol, if possible, and then each task."""
  rows = [row for row, _ in paired]
  differences = describe_differences(
    rows, lambda row: row.task, ('split', 'train_examples', 'protocol')
  )
  by_name = {
    ', '.join(filter(None, (row.task_name, difference))): (row.task, by_pair)
    for (row, by_pair), difference in zip(paired, differences, strict=True)
  }
  counts = collections.Counter(row.task for row in rows)
  single = {name: by_pair for name, (task, by_pair) in by_name.items() if counts[task] == 1}
  pairs = set().union(*single.values())
  shared = {name: by_pair for name, by_pair in single.items() if by_pair.keys() == pairs}
  if len(shared) > 1:
    average = _average_contrast(list(shared.values()))
    if average.n:
      yield AVERAGE, tuple(shared), average
  for name, (_, by_pair) in by_name.items():
    yield name, (), _average_contrast([by_pair])


def _average_contrast(tasks: Sequence[PairedScores]) -> Contrast:
  """Returns the contrast of the mean over tasks.

  Several pairs of pre-training runs are averaged over seeds of fine-tuning. A single pair is
  compared by the seeds of fine-tuning that all tasks have.

  Args:
    tasks: scores by pair of runs; all tasks have the same pairs.
  """
  pairs = list(tasks[0])
  if len(pairs) > 1:
    unit = TRAININGS
    values = [
      np.mean([np.mean(list(task[pair].values()), axis=0) for task in tasks], axis=0)
      for pair in pairs
    ]
  else:
    unit = TUNINGS
    by_task = [task[pairs[0]] for task in tasks]
    seeds = sorted(set.intersection(*map(set, by_task)))
    values = [np.mean([by_seed[seed] for by_seed in by_task], axis=0) for seed in seeds]
  if not values:
    return Contrast()
  base, value = np.array(values).T
  return Contrast(
    float(base.mean()),
    float(value.mean()),
    float((value - base).mean()),
    *metrics.confidence_interval(value - base),
    n=len(values),
    of=unit,
  )


def classify_glue(score: Contrast) -> str:
  """Returns the verdict on the average of GLUE."""
  if score.of != TRAININGS or score.n < 2:
    return ONE_SEED if score.n else ''
  return NO_WORSE if score.low > -GLUE_MARGIN else WORSE if score.high < -GLUE_MARGIN else OPEN
