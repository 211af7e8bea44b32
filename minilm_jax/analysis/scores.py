"""Tables of fine-tuning scores: pre-trained against from scratch, with paired differences.

Values are the logged shares or correlations; reports multiply them by 100. Undefined scores, such
as a correlation with constant predictions, are counted and left out of means. Validation examples
that are held out of the training split choose the learning rate and, if configured, the epoch. The
reported split chooses nothing.
"""

import dataclasses
import json
import math
import operator
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy import stats

from minilm_jax.analysis.runs import group_by, to_float
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
_CELL_FIELDS = ('task', 'split', 'filtered', 'checkpoint', 'train_examples', 'held_out')
# Fields of lines whose protocols are named by their differences.
_PROTOCOL_SCOPE = ('task', 'split', 'filtered', 'train_examples')
_ROW_FIELDS = tuple(
  'task metric headline split filtered checkpoint examples train_examples held_out'.split()
)
R = TypeVar('R')  # a row or a key of rows


@dataclasses.dataclass(frozen=True)
class Group:
  """Scores over seeds of one arm, pre-trained or from scratch.

  Attributes:
    learning_rate: None without training.
    mean, std, n: of the values; std is the sample standard deviation.
    low, high: ends of Student's 95% interval of the mean.
    collapsed: number of seeds with constant predictions.
    undefined: number of seeds whose score is not finite.
    mean_example_low, mean_example_high: interval over examples, its ends averaged over seeds.
    seeds, values: finite scores, one a seed.
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
  """Score pre-trained minus from scratch with its 95% interval, paired by seed or else Welch's."""

  mean: float = math.nan
  low: float = math.nan
  high: float = math.nan
  paired: bool = False


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
          if get_kind(line) == kind and line['learning_rate'] in arm_rates
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


def make_group(values: Mapping[int, float], **fields: Any) -> Group:
  """Returns the group of these values by seed, with other fields of `Group`."""
  numbers = tuple(values.values())
  return Group(**metrics.summarize(numbers), seeds=tuple(values), values=numbers, **fields)


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
    chosen = select_last_steps(chosen, (*_CELL_FIELDS, 'protocol'))
  paired_tasks = {row.task for row in chosen if row.split == ALL}
  return [row for row in chosen if (row.task in paired_tasks and row.split != ALL) == phenomena]


def select_last_steps(rows: Sequence[R], fields: Sequence[str]) -> list[R]:
  """Returns the rows of the last step among the rows with equal fields; None is the first step."""
  get_key = operator.attrgetter(*fields)
  ordered = sorted(rows, key=lambda row: _order_steps(row.step))
  last_steps = {get_key(row): row.step for row in ordered}
  return [row for row in rows if row.step == last_steps[get_key(row)]]


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
