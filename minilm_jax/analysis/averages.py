"""Averages of the headline scores over the tasks of GLUE."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from minilm_jax.analysis.runs import group_by, select_single
from minilm_jax.analysis.scores import (
  Difference,
  Group,
  ScoreRow,
  compute_difference,
  make_group,
  select_last_steps,
)

# Tasks of the averages. Papers often leave out WNLI, as its validation examples contradict its
# training examples, and CoLA, as tiny models score 0.
GLUE = ('cola', 'sst2', 'mrpc', 'stsb', 'qqp', 'mnli', 'qnli', 'rte', 'wnli')
AVERAGES: dict[str, tuple[str, ...]] = {
  'all': (),
  'without WNLI': ('wnli',),
  'without CoLA': ('cola',),
  'without both': ('cola', 'wnli'),
}
# Averages use the matched split of MNLI under the split name of the other tasks.
_AVERAGED_SPLITS = {'validation_matched': 'validation', 'test_matched': 'test'}
_MISMATCHED_SPLITS = ('validation_mismatched', 'test_mismatched')


@dataclasses.dataclass(frozen=True)
class Average:
  """The mean of the headline scores of several tasks.

  The mean over tasks is taken for each seed. If the seeds differ between tasks, an arm has the mean
  of the task means, n = 0 and no interval. An arm without one of the tasks has n = 0.

  Attributes:
    train_examples: sum over tasks.
    protocol: that of the rows, see `ScoreRow`; each after its task if they differ.
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
  train_examples: int
  protocol: str


def average_tasks(rows: Iterable[ScoreRow]) -> list[Average]:
  """Returns the averages over GLUE for every checkpoint and step.

  Averages are over the tasks of both arms and, separately, over all tasks of each arm. An average
  has two or more tasks. Tasks with several rows, of several protocols or learning
  rates, are in no average.

  Args:
    rows: rows of `make_score_table`; headline metrics that are in reports count.
  """
  cells = group_by(
    filter(is_averaged, rows),
    lambda row: (
      _AVERAGED_SPLITS.get(row.split, row.split),
      row.filtered,
      row.checkpoint,
      row.step,
    ),
  )
  averages = []
  for key, cell_rows in cells.items():
    by_task = select_single(group_by(cell_rows, lambda row: row.task))
    averages += _average_cell(key, {task: by_task[task] for task in GLUE if task in by_task})
  return averages


def is_averaged(row: ScoreRow) -> bool:
  """Returns whether a row counts in an average over GLUE."""
  return row.task in GLUE and row.headline and row.shown and row.split not in _MISMATCHED_SPLITS


def _average_cell(
  key: tuple[str, bool, str, int | None], rows: Mapping[str, ScoreRow]
) -> Iterator[Average]:
  arms = [
    [task for task, row in rows.items() if getattr(row, arm).n] for arm in ('pretrained', 'scratch')
  ]
  seen = set()
  for candidates in ([task for task in arms[0] if task in arms[1]], *arms):
    for name, excluded in AVERAGES.items():
      tasks = tuple(task for task in candidates if task not in excluded)
      if len(tasks) < 2 or tasks in seen:
        continue
      seen.add(tasks)
      pretrained = _average_groups([rows[task].pretrained for task in tasks])
      scratch = _average_groups([rows[task].scratch for task in tasks])
      difference = compute_difference(pretrained, scratch)
      protocols = {task: rows[task].protocol for task in tasks}
      protocol = protocols[tasks[0]]
      if len(set(protocols.values())) > 1:
        protocol = '; '.join(f'{task}: {text}' for task, text in protocols.items() if text)
      train_examples = sum(rows[task].train_examples for task in tasks)
      yield Average(name, tasks, *key, pretrained, scratch, difference, train_examples, protocol)


def _average_groups(groups: Sequence[Group]) -> Group:
  if not all(group.n for group in groups):
    return Group()
  collapsed = sum(group.collapsed for group in groups)
  if len({group.seeds for group in groups}) > 1:
    return Group(mean=float(np.mean([group.mean for group in groups])), collapsed=collapsed)
  means = np.mean([group.values for group in groups], axis=0).tolist()
  return make_group(dict(zip(groups[0].seeds, means, strict=True)), collapsed=collapsed)


def select_latest(rows: Sequence[Average]) -> list[Average]:
  """Returns the averages of the last step of each checkpoint."""
  return select_last_steps(rows, ('split', 'filtered', 'checkpoint'))
