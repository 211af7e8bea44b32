"""Tables of fine-tuning scores: pre-trained against from scratch, averages, paired differences.

Values are the logged shares or correlations; reports multiply them by 100. Undefined scores, such
as a correlation with constant predictions, are counted and left out of means. Validation examples
that are held out of the training split choose the learning rate and, if configured, the epoch. The
reported split chooses nothing.
"""

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy import stats

from minilm_jax.analysis.runs import group_by, select_single, to_float
from minilm_jax.core.errors import InputError, sanitize
from minilm_jax.tasks import metrics

ScoreLine = Mapping[str, Any]  # a line of scores.jsonl
NONE = '–'  # text of a missing number
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
  'task metric split filtered checkpoint examples train_examples held_out'.split()
)
TRAININGS, TUNINGS = 'pre-trainings', 'seeds of fine-tuning'
BothScores = tuple[float, float]  # scores of the base and of the other recipe
RunPair = tuple[str, str]  # names of the base run and of the other run
BySeed = Mapping[int, BothScores]  # seed of fine-tuning: scores
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
  protocols = name_protocols(lines)
  cells: dict[tuple[Any, ...], dict[str, list[ScoreLine]]] = {}
  for line, protocol in zip(lines, protocols, strict=True):
    cell = cells.setdefault(tuple(line[name] for name in _CELL_FIELDS), {})
    cell.setdefault(protocol, []).append(line)
  rows: list[ScoreRow] = []
  for key in sorted(cells):
    for protocol, lines_of_protocol in cells[key].items():
      pretrained, scratch = (
        [line for line in lines_of_protocol if line['pretrained'] == arm] for arm in (True, False)
      )
      by_step = group_by(pretrained, lambda line: line['checkpoint_step'])
      for step in sorted(by_step, key=lambda step: -1 if step is None else step) or [None]:
        rows += _make_rows(protocol, step, by_step.get(step, []), scratch)
  return rows


def name_protocols(lines: Sequence[ScoreLine]) -> list[str]:
  """Returns the settings of each line in which the lines of its task differ, as in `epochs=3`.

  The lines of all checkpoints count, so that lines with equal names compare. The settings are
  the field `protocol` of the line and its numbers of scored and held-out examples.
  """
  scopes = [tuple(line[name] for name in _PROTOCOL_SCOPE) for line in lines]
  settings = [
    {name: line[name] for name in ('examples', 'held_out')}
    | (line['protocol'] if 'protocol' in line else {})
    for line in lines
  ]
  return name_differences(scopes, settings)


def name_differences(
  scopes: Sequence[Hashable], settings: Sequence[Mapping[str, Any]]
) -> list[str]:
  """Returns the settings in which those of an equal scope differ, as in `epochs=3`."""
  return [
    sanitize(', '.join(f'{name}={each.get(name)}' for name in names))
    for each, names in zip(settings, _find_differences(scopes, settings), strict=True)
  ]


def _find_differences(
  scopes: Sequence[Hashable], settings: Sequence[Mapping[str, Any]]
) -> list[list[str]]:
  """Returns the names of the settings in which those of an equal scope differ."""
  different: dict[Hashable, list[str]] = {}
  for scope, group in group_by(zip(scopes, settings, strict=True), lambda pair: pair[0]).items():
    names = dict.fromkeys(name for _, each in group for name in each)
    first = group[0][1]
    different[scope] = [
      name for name in names if any(each.get(name) != first.get(name) for _, each in group)
    ]
  return [different[scope] for scope in scopes]


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
  return [
    ', '.join(filter(None, (text[field] for field in names)))
    for text, names in zip(texts, _find_differences([*map(make_key, rows)], texts), strict=True)
  ]


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
  kinds = sorted(
    {
      (
        not line['headline'],
        line['metric'],
        line['epoch_choice'] != shown_epoch,
        line['epoch_choice'],
      )
      for line in lines
    }
  )
  for is_minor, metric, is_hidden, epoch_choice in kinds:
    for rate_pair in rate_pairs:
      by_seed = [
        {
          line['seed']: line
          for line in arm
          if (line['metric'], line['epoch_choice']) == (metric, epoch_choice)
          and line['learning_rate'] in arm_rates
        }
        for arm, arm_rates in zip(arms, rate_pair, strict=True)
      ]
      first = next((line for arm in by_seed for line in arm.values()), None)
      if first is None:
        continue
      groups = [_group_lines(arm) for arm in by_seed]
      yield ScoreRow(
        **{name: first[name] for name in _ROW_FIELDS},
        headline=not is_minor,
        step=step,
        epochs=max(to_float(line['epoch']) for line in lines),
        which=epoch_choice,
        shown=not is_hidden,
        majority=to_float(first['majority']),
        frequency=to_float(first['frequency']),
        pretrained=groups[0],
        scratch=groups[1],
        difference=compute_difference(*groups),
        protocol=protocol,
        settings=json.dumps(first['protocol'] if 'protocol' in first else {}, sort_keys=True),
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

  def make_key(row: ScoreRow) -> tuple[Any, ...]:
    return (*(getattr(row, field) for field in _CELL_FIELDS), row.protocol)

  reported = [row for row in rows if row.shown]
  last_steps = {make_key(row): row.step for row in reported}  # rows are in the order of steps
  chosen = [row for row in reported if every_step or row.step == last_steps[make_key(row)]]
  paired_tasks = {row.task for row in chosen if row.split == ALL}
  return [row for row in chosen if (row.task in paired_tasks and row.split != ALL) == phenomena]


def compute_difference(group: Group, subtrahend: Group) -> Difference:
  """Returns the difference of the means of two groups, paired if their seeds are equal."""
  if not group.n or not subtrahend.n:
    return Difference()
  mean = group.mean - subtrahend.mean
  if group.seeds == subtrahend.seeds:
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


def format_points(share: float, sign: str = '') -> str:
  """Returns a share times 100.

  >>> format_points(0.6789), format_points(0.02, '+'), format_points(float('nan'))
  ('67.9', '+2.0', 'undefined')
  """
  return f'{100 * share:{sign}.1f}' if math.isfinite(share) else 'undefined'


def format_interval(
  value: float, low: float, high: float, form: str = '', scale: float = 1.0
) -> str:
  """Returns a mean with its interval as text.

  Args:
    value: mean; the text is "–" if it is not finite.
    low, high: ends of the interval; nan omits the interval.
    form: format of each number; '' is a share times 100 with a sign, as in `format_points`.
    scale: factor of each number, if `form` is given.

  >>> format_interval(0.01, -0.002, 0.022)
  '+1.0 [-0.2, +2.2]'
  >>> format_interval(3.1, 2.2, math.inf, '.2f'), format_interval(3.1, math.nan, math.nan, '.2f')
  ('3.10 [2.20, ∞]', '3.10')
  """

  def format_number(number: float) -> str:
    if math.isinf(number):
      return '∞' if number > 0 else '-∞'
    return f'{scale * number:{form}}' if form else format_points(number, '+')

  if not math.isfinite(value):
    return NONE
  mean = format_number(value)
  return mean if math.isnan(low) else f'{mean} [{format_number(low)}, {format_number(high)}]'


def format_points_interval(value: float, low: float, high: float) -> str:
  """Returns a difference of scores with unit and interval.

  >>> format_points_interval(0.01, -0.002, 0.022), format_points_interval(0.01, math.nan, math.nan)
  ('+1.0 points [-0.2, +2.2]', '+1.0 points')
  """
  mean, bracket, interval = format_interval(value, low, high).partition(' [')
  return f'{mean} points{bracket}{interval}'


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
      if not (pretrained.n and scratch.n):
        difference = dataclasses.replace(difference, mean=pretrained.mean - scratch.mean)
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

  def make_key(row: Average) -> tuple[str, bool, str]:
    return row.split, row.filtered, row.checkpoint

  last: dict[tuple[str, bool, str], int] = {}
  for row in rows:
    if row.step is not None:
      last[make_key(row)] = max(row.step, last.get(make_key(row), row.step))
  return [row for row in rows if row.step == last.get(make_key(row))]


class ScoreKey(NamedTuple):
  """The fields that comparable scores share."""

  task: str
  metric: str
  split: str
  filtered: bool
  train_examples: int
  protocol: str


PairedScores = dict[ScoreKey, dict[RunPair, BySeed]]


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


def make_contrast(values: Sequence[BothScores], of: str) -> Contrast:
  """Returns the contrast of pairs of a base and another number.

  >>> make_contrast([(5.0, 4.5)], TRAININGS)
  Contrast(base=5.0, value=4.5, difference=-0.5, low=nan, high=nan, n=1, of='pre-trainings')
  """
  base, other = np.array(values, float).T
  low, high = metrics.confidence_interval(other - base)
  difference = float((other - base).mean())
  return Contrast(float(base.mean()), float(other.mean()), difference, low, high, len(values), of)


def pair_scores(pairs: Iterable[RunPair], rows: Iterable[ScoreRow]) -> PairedScores:
  """Returns the headline scores of both runs of a pair, for each common seed of fine-tuning.

  Args:
    rows: rows of `select_main`; a run with several rows of one key has no score under this key.
  """
  by_key = group_by(
    (row for row in rows if row.headline),
    lambda row: ScoreKey(*(getattr(row, field) for field in ScoreKey._fields)),
  )
  pairs = list(pairs)
  paired: PairedScores = {}
  for key, same_key in by_key.items():
    by_run = select_single(group_by(same_key, lambda row: row.checkpoint))
    for pair in pairs:
      base, other = (by_run[name].pretrained.by_seed if name in by_run else {} for name in pair)
      by_seed = {seed: (score, other[seed]) for seed, score in base.items() if seed in other}
      if by_seed:
        paired.setdefault(key, {})[pair] = by_seed
  return paired


def average_contrast(tasks: Sequence[Mapping[RunPair, BySeed]]) -> Contrast:
  """Returns the contrast of the mean over tasks.

  Several pairs of pre-training runs are averaged over seeds of fine-tuning. A single pair is
  compared by the seeds of fine-tuning that all tasks have.

  Args:
    tasks: scores by pair of runs; all tasks have the same pairs.
  """
  pairs = [[task[pair] for task in tasks] for pair in tasks[0]]
  if len(pairs) > 1:
    means = [_mean_pair([_mean_pair(list(seeds.values())) for seeds in pair]) for pair in pairs]
    return make_contrast(means, TRAININGS)
  seeds = sorted(set.intersection(*(set(by_seed) for by_seed in pairs[0])))
  if not seeds:
    return Contrast()
  return make_contrast([_mean_pair([task[seed] for task in pairs[0]]) for seed in seeds], TUNINGS)


def _mean_pair(values: Sequence[BothScores]) -> BothScores:
  base, other = np.mean(values, 0).tolist()
  return base, other
