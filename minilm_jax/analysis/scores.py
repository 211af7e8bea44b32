"""Tables of fine-tuning scores, pre-trained against from scratch, and averages over tasks of GLUE.

Values are the logged shares or correlations; reports multiply them by 100. Undefined scores, such
as a correlation with constant predictions, are counted and left out of means. Validation examples
that are held out of the training split choose the learning rate and, if configured, the epoch. The
reported split chooses nothing.
"""

import dataclasses
import json
import math
import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from minilm_jax.analysis.runs import group_by, select_single, to_float
from minilm_jax.analysis.seed_groups import Difference, Group, compute_difference, make_group
from minilm_jax.core.errors import InputError, sanitize
from minilm_jax.tasks import metrics

ScoreLine = Mapping[str, Any]  # a line of scores.jsonl
ALL = 'all'  # split of minimal pairs that contains the other splits
FIELDS = tuple(
  (
    'task metric value low high headline split examples train_examples held_out pretrained '
    'checkpoint checkpoint_step filtered seed learning_rate member epoch epoch_choice '
    'validation_score majority frequency constant_prediction truncated'
  ).split()
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
_CELL_FIELDS = ('task', 'split', 'filtered', 'checkpoint', 'train_examples', 'held_out')
# Fields of lines whose protocols are named by their differences.
_PROTOCOL_SCOPE = ('task', 'split', 'filtered', 'train_examples')
_ROW_FIELDS = tuple(
  'task metric headline split filtered checkpoint examples train_examples held_out'.split()
)
R = TypeVar('R')  # a row or a key of rows
StepRow = TypeVar('StepRow', 'ScoreRow', 'Average')


@dataclasses.dataclass(frozen=True)
class ScoreRow:
  """One metric of one task and checkpoint; an arm without scores has n = 0.

  Attributes:
    step: step of the checkpoint; None if only the arm from scratch was run.
    held_out: number of examples that are held out for validation.
    epochs: last epoch.
    which: scored epoch, 'last' or 'best'; the held-out examples choose the best epoch.
    shown: reports include this row; rows of the other epoch are in scores.csv alone.
    majority: score of the most frequent label.
    frequency: score of random labels with the frequencies of the training labels.
    protocol: settings in which the runs on this task, split and number of training examples differ,
      of all checkpoints; '' if they are equal. Rows with different protocols do not compare.
    settings: all settings of `runs.read_protocol`, as JSON.
  """

  task: str
  metric: str
  headline: bool
  split: str
  filtered: bool
  checkpoint: str
  step: int | None
  examples: int
  train_examples: int
  held_out: int
  epochs: float
  which: str
  shown: bool
  majority: float
  frequency: float
  pretrained: Group
  scratch: Group
  difference: Difference
  protocol: str = ''
  settings: str = '{}'

  @property
  def task_name(self) -> str:
    """Name of the task, which tells whether its examples are filtered."""
    return self.task + (' (filtered)' if self.filtered else '')


def make_score_table(lines: Iterable[ScoreLine]) -> list[ScoreRow]:
  """Returns a row for each task, metric, checkpoint, step and protocol, headlines first.

  Scores from scratch have no step and are compared with every step of the checkpoint.

  Args:
    lines: lines of scores.jsonl; of lines that differ in their value alone, the last counts.

  Raises:
    InputError: a line lacks a field.
  """
  lines = list(lines)
  for line in lines:
    missing = [name for name in FIELDS if name not in line]
    if missing:
      raise InputError(
        'a table of scores',
        f'a line without {", ".join(missing)}',
        'fine-tune or evaluate again with a new --workdir',
      )
  cells = group_by(
    zip(lines, _name_protocols(lines), strict=True),
    lambda pair: (tuple(pair[0][name] for name in _CELL_FIELDS), pair[1]),
  )
  rows: list[ScoreRow] = []
  for (_, protocol), pairs in sorted(cells.items(), key=lambda item: item[0][0]):
    pretrained, scratch = (
      [line for line, _ in pairs if line['pretrained'] == arm] for arm in (True, False)
    )
    by_step = group_by(pretrained, lambda line: line['checkpoint_step'])
    for step in sorted(by_step, key=_order_steps) or [None]:
      rows += _make_rows(protocol, step, by_step.get(step, []), scratch)
  return rows


def _order_steps(step: int | None) -> int:
  return -1 if step is None else step


def _name_protocols(lines: Sequence[ScoreLine]) -> list[str]:
  """Returns the settings of each line in which the lines of its task differ, as in `epochs=3`.

  The lines of all checkpoints count, so that lines with equal names compare. The settings are
  the field `protocol` of the line and its numbers of scored and held-out examples.
  """
  scopes = [tuple(line[name] for name in _PROTOCOL_SCOPE) for line in lines]
  settings = [
    {name: line[name] for name in ('examples', 'held_out')} | line.get('protocol', {})
    for line in lines
  ]
  return name_differences(scopes, settings)


def name_differences(
  scopes: Sequence[Hashable], settings: Sequence[Mapping[str, Any]]
) -> list[str]:
  """Returns the settings in which those of an equal scope differ, as in `epochs=3`."""
  return [
    sanitize(', '.join(f'{name}={value}' for name, value in different.items()))
    for different in _select_differences(scopes, settings)
  ]


def _select_differences(
  scopes: Sequence[Hashable], settings: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
  """Returns those settings in which the settings of an equal scope differ."""
  names: dict[Hashable, list[str]] = {}
  for scope, group in group_by(zip(scopes, settings, strict=True), lambda pair: pair[0]).items():
    first = group[0][1]
    names[scope] = [
      name
      for name in dict.fromkeys(name for _, each in group for name in each)
      if any(each.get(name) != first.get(name) for _, each in group)
    ]
  return [
    {name: each.get(name) for name in names[scope]}
    for scope, each in zip(scopes, settings, strict=True)
  ]


def describe_differences(
  rows: Sequence[R], make_key: Callable[[R], Hashable], fields: Sequence[str]
) -> list[str]:
  """Returns the values of each row in the fields in which the rows of its key differ.

  Args:
    fields: names of attributes; `train_examples` has its unit in the text.
  """

  def describe(row: R, field: str) -> str:
    value = getattr(row, field)
    return f'{value:,} training examples' if field == 'train_examples' else str(value)

  texts = [{field: describe(row, field) for field in fields} for row in rows]
  differences = _select_differences(list(map(make_key, rows)), texts)
  return [', '.join(filter(None, different.values())) for different in differences]


def _make_rows(
  protocol: str,
  step: int | None,
  pretrained: Sequence[ScoreLine],
  scratch: Sequence[ScoreLine],
) -> Iterator[ScoreRow]:
  """Yields a row for each metric and epoch, and for each rate if no rate was chosen."""
  arms = pretrained, scratch
  rates = tuple(map(metrics.choose_rates, arms))
  if max(map(len, rates)) > 1:
    rate_pairs = [((rate,), (rate,)) for rate in sorted({*rates[0], *rates[1]}, key=to_float)]
  else:
    rate_pairs = [rates]
  lines = [*pretrained, *scratch]
  shown_epoch = metrics.choose_epoch(lines)

  def get_kind(line: ScoreLine) -> tuple[bool, str, bool, str]:
    """Returns the metric and the epoch of a line, with those of reports first."""
    epoch = line['epoch_choice']
    return not line['headline'], line['metric'], epoch != shown_epoch, epoch

  for kind in sorted(set(map(get_kind, lines))):
    for rate_pair in rate_pairs:
      by_seed = [
        {
          line['seed']: line
          for line in arm
          if get_kind(line)[1:] == kind[1:] and line['learning_rate'] in arm_rates
        }
        for arm, arm_rates in zip(arms, rate_pair, strict=True)
      ]
      first = next((line for arm in by_seed for line in arm.values()), None)
      if first is None:
        continue
      groups = [_group_lines(arm) for arm in by_seed]
      yield ScoreRow(
        **{name: first[name] for name in _ROW_FIELDS},
        step=step,
        epochs=max(to_float(line['epoch']) for line in lines),
        which=first['epoch_choice'],
        shown=first['epoch_choice'] == shown_epoch,
        majority=to_float(first['majority']),
        frequency=to_float(first['frequency']),
        pretrained=groups[0],
        scratch=groups[1],
        difference=compute_difference(*groups),
        protocol=protocol,
        settings=json.dumps(first.get('protocol', {}), sort_keys=True),
      )


def _group_lines(lines: Mapping[int, ScoreLine]) -> Group:
  values = {seed: to_float(line['value']) for seed, line in sorted(lines.items())}
  defined = {seed: value for seed, value in values.items() if math.isfinite(value)}
  low, high = (
    float(np.mean([to_float(line[end]) for line in lines.values()])) if lines else math.nan
    for end in ('low', 'high')
  )
  return make_group(
    defined,
    learning_rate=next((line['learning_rate'] for line in lines.values()), None),
    collapsed=sum(bool(line['constant_prediction']) for line in lines.values()),
    undefined=len(values) - len(defined),
    mean_example_low=low,
    mean_example_high=high,
  )


def select_main(
  rows: Iterable[ScoreRow], every_step: bool = False, phenomena: bool = False
) -> list[ScoreRow]:
  """Returns the rows of reports: the chosen epoch and the last step, without single phenomena.

  Args:
    every_step: rows of all steps.
    phenomena: instead the rows of single phenomena, of tasks that also have a split `all`.
  """
  chosen = [row for row in rows if row.shown]
  if not every_step:
    chosen = _select_last_steps(chosen, (*_CELL_FIELDS, 'protocol'))
  paired_tasks = {row.task for row in chosen if row.split == ALL}
  return [row for row in chosen if (row.task in paired_tasks and row.split != ALL) == phenomena]


def _select_last_steps(rows: Sequence[StepRow], fields: Sequence[str]) -> list[StepRow]:
  """Returns the rows of the last step among the rows with equal fields; None is the first step."""
  get_key = operator.attrgetter(*fields)
  ordered = sorted(rows, key=lambda row: _order_steps(row.step))
  last_steps = {get_key(row): row.step for row in ordered}
  return [row for row in rows if row.step == last_steps[get_key(row)]]


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
  has two or more tasks. Tasks with several rows, of several protocols or learning rates, are in no
  average.

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
  return _select_last_steps(rows, ('split', 'filtered', 'checkpoint'))
