"""Averages of headline scores over the tasks of GLUE, with and without the two whose scores are mostly noise or zero.

An average is over the tasks that were run, and names them; two averages over other tasks are not to be compared. It is
first taken for each seed and then summed up over seeds, so that its interval is that of a mean over seeds. MNLI counts
once, by its matched part.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from minilm_jax.analysis import scores
from minilm_jax.analysis.scores import Difference, Group, ScoreRow

GLUE = ('cola', 'sst2', 'mrpc', 'stsb', 'qqp', 'mnli', 'qnli', 'rte', 'wnli')
# WNLI's validation examples contradict its training ones, and tiny models stay at 0 on CoLA: papers differ in these.
WITHOUT: dict[str, tuple[str, ...]] = {
  'all': (),
  'without WNLI': ('wnli',),
  'without CoLA': ('cola',),
  'without both': ('cola', 'wnli'),
}
_COUNTED = {'validation_matched': 'validation', 'test_matched': 'test'}
_UNCOUNTED = ('validation_mismatched', 'test_mismatched')


@dataclasses.dataclass(frozen=True)
class Average:
  """The mean of the headline scores of some tasks, per seed, over seeds; an arm that lacks one of them has n = 0.

  Where the seeds differ from task to task, or a score is undefined, an arm has a mean of means, n = 0 and no interval.
  """

  name: str
  tasks: tuple[str, ...]
  split: str
  filtered: bool
  checkpoint: str
  step: int | None
  pretrained: Group
  scratch: Group
  difference: Difference


def averages(rows: Iterable[ScoreRow]) -> list[Average]:
  """The averages of every checkpoint and step: over the tasks of both arms, and of each arm where it has others.

  A task with several rows, which are other protocols or rates that nothing chose between, is in no average, and an
  average of one task is none.

  Args:
    rows: of `scores.score_table`; those of headline metrics that are shown count.
  """
  cells: dict[tuple[str, bool, str, int | None], dict[str, list[ScoreRow]]] = {}
  for row in rows:
    if counts(row):
      split = _COUNTED[row.split] if row.split in _COUNTED else row.split
      key = (split, row.filtered, row.checkpoint, row.step)
      cells.setdefault(key, {}).setdefault(row.task, []).append(row)
  return [
    average
    for key, tasks in cells.items()
    for average in _averages(
      key, {task: tasks[task][0] for task in GLUE if len(tasks.get(task, ())) == 1}
    )
  ]


def counts(row: ScoreRow) -> bool:
  """Is it one that an average over GLUE is made of?"""
  return row.task in GLUE and row.headline and row.shown and row.split not in _UNCOUNTED


def _averages(
  key: tuple[str, bool, str, int | None], rows: Mapping[str, ScoreRow]
) -> Iterator[Average]:
  ours = [task for task, row in rows.items() if row.pretrained.n]
  theirs = [task for task, row in rows.items() if row.scratch.n]
  seen = set()
  for some in ([task for task in ours if task in theirs], ours, theirs):
    for name, without in WITHOUT.items():
      tasks = tuple(task for task in some if task not in without)
      if len(tasks) < 2 or tasks in seen:
        continue
      seen.add(tasks)
      arms = [
        _arm([getattr(rows[task], arm) for task in tasks]) for arm in ('pretrained', 'scratch')
      ]
      yield Average(name, tasks, *key, *arms, _difference(*arms))


def _arm(groups: Sequence[Group]) -> Group:
  if not all(one.n for one in groups):
    return scores.group({})
  collapsed = sum(one.collapsed for one in groups)
  if len({one.seeds for one in groups}) > 1:
    mean = float(np.mean([one.mean for one in groups]))
    return dataclasses.replace(scores.group({}, collapsed=collapsed), mean=mean)
  means = np.mean([one.values for one in groups], axis=0).tolist()
  return scores.group(dict(zip(groups[0].seeds, means, strict=True)), collapsed=collapsed)


def _difference(ours: Group, theirs: Group) -> Difference:
  if ours.n and theirs.n:
    return scores.difference(ours, theirs)
  return Difference(ours.mean - theirs.mean, math.nan, math.nan, False)


def select_latest(rows: Sequence[Average]) -> list[Average]:
  """Returns the averages of the last step of each checkpoint."""
  last = {(row.split, row.filtered, row.checkpoint): row.step for row in rows}
  return [row for row in rows if row.step == last[row.split, row.filtered, row.checkpoint]]
