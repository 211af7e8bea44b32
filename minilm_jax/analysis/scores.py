"""Scores of many fine-tuning runs as one table: pre-trained against from scratch, with what chance
gives, averages over tasks, and paired differences of two recipes.

Values stay the logged shares or correlations; only a page multiplies them by 100. A score that is
not a number (a correlation with constant predictions) counts as undefined and is left out of the
mean. The held-out part of the training examples chooses the learning rate, and the epoch where
there is a choice; the reported split never does.
"""

import dataclasses
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from minilm_jax.analysis.runs import to_float
from minilm_jax.core.errors import InputError
from minilm_jax.tasks import metrics

ScoreLine = Mapping[str, Any]  # of scores.jsonl
NONE = '–'  # shown in place of a number
ALL = 'all'  # the split of minimal pairs that holds the others
FIELDS = tuple(
  (
    'task metric value low high headline split examples train_examples held_out pretrained '
    'checkpoint checkpoint_step filtered seed learning_rate member epoch epoch_choice '
    'validation_score majority frequency constant_prediction truncated'
  ).split()
)
# Tasks of the averages. WNLI's validation examples contradict its training examples, and tiny models
# score 0 on CoLA: papers leave out one or both.
GLUE = ('cola', 'sst2', 'mrpc', 'stsb', 'qqp', 'mnli', 'qnli', 'rte', 'wnli')
AVERAGES: dict[str, tuple[str, ...]] = {
  'all': (),
  'without WNLI': ('wnli',),
  'without CoLA': ('cola',),
  'without both': ('cola', 'wnli'),
}
# Of the two splits of MNLI the matched one counts, under the name of the other tasks' split.
_AVERAGED_SPLITS = {'validation_matched': 'validation', 'test_matched': 'test'}
_MISMATCHED_SPLITS = ('validation_mismatched', 'test_mismatched')
_ROW_FIELDS = tuple(
  'task metric split filtered checkpoint examples train_examples held_out'.split()
)
TRAININGS, TUNINGS = 'pre-trainings', 'seeds of fine-tuning'
BothScores = tuple[float, float]  # of the base and of the other recipe
RunPair = tuple[str, str]  # names of runs, the base's first
BySeed = Mapping[int, BothScores]  # seeds of fine-tuning


@dataclasses.dataclass(frozen=True)
class Group:
  """Scores of one arm over seeds: sample standard deviation, Student's interval of the mean.

  Attributes:
    learning_rate: the one that is shown; None where the scores are of no training.
    mean, std, n, low, high: of the values, each of a seed and a number.
    collapsed, undefined: how many seeds gave one answer to everything, and how many values are not
    a number. mean_example_low, mean_example_high: the ends of each seed's interval over examples,
    averaged over seeds. seeds, values: what the mean is of.
  """

  learning_rate: float | None
  mean: float
  std: float
  n: int
  low: float
  high: float
  collapsed: int
  undefined: int
  mean_example_low: float
  mean_example_high: float
  seeds: tuple[int, ...]
  values: tuple[float, ...]

  @property
  def by_seed(self) -> dict[int, float]:
    """The values by seed."""
    return dict(zip(self.seeds, self.values, strict=True))


@dataclasses.dataclass(frozen=True)
class Difference:
  """Pre-trained less from scratch, with its interval; `paired` by seed, or else Welch's."""

  mean: float
  low: float
  high: float
  paired: bool


@dataclasses.dataclass(frozen=True)
class ScoreRow:
  """One metric of one task from one checkpoint under one protocol; an arm without scores has n = 0.

  Attributes:
    step: of the checkpoint; None where only the arm from scratch was run.
    train_examples, held_out, epochs: the protocol: examples trained on and kept apart, and the last
    epoch.
    which: the epoch that was scored, 'last' or, by the held-out part, 'best'.
    shown: is this the row that pages show? The other `which` is for the file alone.
    majority, frequency: what the most frequent label, and labels guessed at their training
    frequencies, would score.
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


def score_table(lines: Iterable[ScoreLine]) -> list[ScoreRow]:
  """The rows of every task, split, filter, checkpoint, step and protocol, the headline metric of a
  task first.

  A checkpoint without a step of its own, which is how the arm from scratch is written, stands
  beside every step.

  Args:
    lines: of scores.jsonl. Of several that differ in nothing but their value, the last counts.

  Raises:
    InputError: a line lacks a field.
  """
  cells: dict[tuple[Any, ...], dict[bool, dict[int | None, list[ScoreLine]]]] = {}
  for line in lines:
    missing = [name for name in FIELDS if name not in line]
    if missing:
      raise InputError(
        'a table of scores',
        f'a line without {", ".join(missing)}: another version has written it',
        'fine-tune, or evaluate, again into a new --workdir',
      )
    key = tuple(
      line[name]
      for name in ('task', 'split', 'filtered', 'checkpoint', 'train_examples', 'held_out')
    )
    arms = cells.setdefault(key, {True: {}, False: {}})
    arms[line['pretrained']].setdefault(line['checkpoint_step'], []).append(line)
  rows: list[ScoreRow] = []
  for key in sorted(cells):
    pretrained = cells[key][True]
    scratch = [line for lines in cells[key][False].values() for line in lines]
    for step in sorted(pretrained, key=lambda step: -1 if step is None else step) or [None]:
      rows += _make_rows(step, pretrained.get(step, []), scratch)
  return rows


def choose_rates(lines: Iterable[ScoreLine]) -> tuple[float | None, ...]:
  """Returns the learning rate with the highest mean `validation_score` over seeds, of lines that
  differ in seed, rate and epoch only.

  The score is that of the epoch which is shown. One that is not a number counts as 0, as Matthews'
  correlation of constant predictions does. Of equal rates the lowest is taken.

  Returns:
    One rate; or all rates if nothing was held out to choose by.
  """
  lines = list(lines)
  rates = tuple(sorted({line['learning_rate'] for line in lines}, key=to_float))
  shown = [line for line in lines if line['epoch_choice'] == _choose_epoch(lines)]
  if len(rates) < 2 or all(line['validation_score'] is None for line in shown):
    return rates
  means = []
  for rate in rates:
    by_seed = {
      line['seed']: to_float(line['validation_score'])
      for line in shown
      if line['learning_rate'] == rate
    }
    values = [value if math.isfinite(value) else 0 for value in by_seed.values()]
    means.append(np.mean(values) if values else -math.inf)
  return (rates[int(np.argmax(means))],)


def _choose_epoch(lines: Iterable[ScoreLine]) -> str:
  return 'best' if any(line['epoch_choice'] == 'best' for line in lines) else 'last'


def _make_rows(
  step: int | None, pretrained: Sequence[ScoreLine], scratch: Sequence[ScoreLine]
) -> Iterator[ScoreRow]:
  """Yields the rows of one cell: by metric, by epoch, and by rate if nothing chose one."""
  arms = pretrained, scratch
  rates = tuple(map(choose_rates, arms))
  if max(map(len, rates)) > 1:
    rate_pairs = [((rate,), (rate,)) for rate in sorted({*rates[0], *rates[1]}, key=to_float)]
  else:
    rate_pairs = [rates]
  lines = [*pretrained, *scratch]
  shown_epoch = _choose_epoch(lines)
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
      )


def _group_lines(lines: Mapping[int, ScoreLine]) -> Group:
  values = {seed: to_float(line['value']) for seed, line in sorted(lines.items())}
  defined = {seed: value for seed, value in values.items() if math.isfinite(value)}
  low, high = (
    float(np.mean([to_float(line[end]) for line in lines.values()])) if lines else math.nan
    for end in ('low', 'high')
  )
  return dataclasses.replace(
    make_group(defined),
    learning_rate=next((line['learning_rate'] for line in lines.values()), None),
    collapsed=sum(bool(line['constant_prediction']) for line in lines.values()),
    undefined=len(values) - len(defined),
    mean_example_low=low,
    mean_example_high=high,
  )


def make_group(values: Mapping[int, float], collapsed: int = 0) -> Group:
  """Returns the group of one number a seed."""
  summary = metrics.summarize(list(values.values()))
  return Group(
    learning_rate=None,
    mean=summary['mean'],
    std=summary['std'],
    n=len(values),
    low=summary['low'],
    high=summary['high'],
    collapsed=collapsed,
    undefined=0,
    mean_example_low=math.nan,
    mean_example_high=math.nan,
    seeds=tuple(values),
    values=tuple(values.values()),
  )


def select_main(rows: Iterable[ScoreRow]) -> list[ScoreRow]:
  """Returns the rows that tables show: the epoch that counts, no phenomena, the last step of a
  checkpoint.
  """
  return [row for row, is_phenomenon in _mark_phenomena(rows) if not is_phenomenon]


def select_phenomena(rows: Iterable[ScoreRow]) -> list[ScoreRow]:
  """Returns the rows of single phenomena, of tasks with a split 'all' beside others."""
  return [row for row, is_phenomenon in _mark_phenomena(rows) if is_phenomenon]


def _mark_phenomena(rows: Iterable[ScoreRow]) -> list[tuple[ScoreRow, bool]]:
  """Returns the shown rows of the last step of each checkpoint; is each of one phenomenon?"""

  def key(row: ScoreRow) -> tuple[Any, ...]:
    return row.task, row.split, row.filtered, row.checkpoint, row.train_examples, row.held_out

  shown = [row for row in rows if row.shown]
  last_steps = {key(row): row.step for row in shown}  # rows come in the order of steps
  last = [row for row in shown if row.step == last_steps[key(row)]]
  paired_tasks = {row.task for row in last if row.split == ALL}
  return [(row, row.task in paired_tasks and row.split != ALL) for row in last]


def compute_difference(ours: Group, theirs: Group) -> Difference:
  """Returns the difference of the means of two groups: paired if their seeds are the same."""
  if not ours.n or not theirs.n:
    return Difference(math.nan, math.nan, math.nan, False)
  mean = ours.mean - theirs.mean
  if ours.seeds == theirs.seeds:
    interval = metrics.confidence_interval(
      np.subtract(ours.values, theirs.values), metrics.CONFIDENCE
    )
    return Difference(mean, *interval, True)
  if min(ours.n, theirs.n) < 2:
    return Difference(mean, math.nan, math.nan, False)
  with warnings.catch_warnings():
    # SciPy warns if one side has no spread; the other side still has.
    warnings.simplefilter('ignore')
    welch = stats.ttest_ind(ours.values, theirs.values, equal_var=False).confidence_interval(
      metrics.CONFIDENCE
    )
  return Difference(mean, float(welch.low), float(welch.high), False)


def format_points(share: float, sign: str = '') -> str:
  """Returns a share times 100.

  >>> format_points(0.6789), format_points(0.02, '+'), format_points(float('nan'))
  ('67.9', '+2.0', 'undefined')
  """
  return f'{100 * share:{sign}.1f}' if math.isfinite(share) else 'undefined'


def format_interval(
  value: float, low: float, high: float, form: str = '', scale: float = 1.0
) -> str:
  """Returns a mean with its interval; without the interval if its low end is nan, "–" if the mean
  is nan.

  Args:
    value, low, high: the mean and the ends of its interval.
    form: format of each number; '' shows shares times 100 with a sign, as `format_points` does.
    scale: factor of each number under a form.

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


@dataclasses.dataclass(frozen=True)
class Average:
  """The mean of the headline scores of some tasks, per seed, over seeds; an arm that lacks one of
  them has n = 0.

  If the seeds differ from task to task, or a score is undefined, an arm has a mean of means, n = 0
  and no interval.
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


def average_tasks(rows: Iterable[ScoreRow]) -> list[Average]:
  """Returns the averages of every checkpoint and step: over the tasks of both arms, and of each arm
  if it has others.

  A task with several rows, which are protocols or rates that nothing chose between, is in no
  average. An average needs two tasks.

  Args:
    rows: of `score_table`; shown rows of headline metrics count.
  """
  cells: dict[tuple[str, bool, str, int | None], dict[str, list[ScoreRow]]] = {}
  for row in filter(is_averaged, rows):
    key = (_AVERAGED_SPLITS.get(row.split, row.split), row.filtered, row.checkpoint, row.step)
    cells.setdefault(key, {}).setdefault(row.task, []).append(row)
  averages = []
  for key, tasks in cells.items():
    single = {task: tasks[task][0] for task in GLUE if len(tasks.get(task, ())) == 1}
    averages += _average_cell(key, single)
  return averages


def is_averaged(row: ScoreRow) -> bool:
  """Returns whether a row counts in an average over GLUE."""
  return row.task in GLUE and row.headline and row.shown and row.split not in _MISMATCHED_SPLITS


def _average_cell(
  key: tuple[str, bool, str, int | None], rows: Mapping[str, ScoreRow]
) -> Iterator[Average]:
  of_arm = [
    [task for task, row in rows.items() if getattr(row, arm).n] for arm in ('pretrained', 'scratch')
  ]
  seen = set()
  for candidates in ([task for task in of_arm[0] if task in of_arm[1]], *of_arm):
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
      yield Average(name, tasks, *key, pretrained, scratch, difference)


def _average_groups(groups: Sequence[Group]) -> Group:
  if not all(group.n for group in groups):
    return make_group({})
  collapsed = sum(group.collapsed for group in groups)
  if len({group.seeds for group in groups}) > 1:
    mean = float(np.mean([group.mean for group in groups]))
    return dataclasses.replace(make_group({}, collapsed), mean=mean)
  means = np.mean([group.values for group in groups], axis=0).tolist()
  return make_group(dict(zip(groups[0].seeds, means, strict=True)), collapsed)


def select_latest(rows: Sequence[Average]) -> list[Average]:
  """Returns the averages of the last step of each checkpoint."""
  last = {(row.split, row.filtered, row.checkpoint): row.step for row in rows}
  return [row for row in rows if row.step == last[row.split, row.filtered, row.checkpoint]]


class ScoreKey(NamedTuple):
  """The fields that two comparable scores share: task, metric and split of the examples."""

  task: str
  metric: str
  split: str
  filtered: bool
  train_examples: int
  held_out: int


PairedScores = dict[ScoreKey, dict[RunPair, BySeed]]


@dataclasses.dataclass(frozen=True)
class Contrast:
  """A paired difference of two recipes.

  Attributes:
    base, value: means over the pairs.
    difference, low, high: value less base, with its 95% interval; nan of one number.
    n, of: how many numbers the mean is over, and what each is of.
  """

  base: float
  value: float
  difference: float
  low: float
  high: float
  n: int
  of: str


NO_CONTRAST = Contrast(math.nan, math.nan, math.nan, math.nan, math.nan, 0, '')


def make_contrast(values: Sequence[BothScores], of: str) -> Contrast:
  """Returns the contrast of paired numbers, the base's first in each.

  >>> make_contrast([(5.0, 4.5)], TRAININGS)
  Contrast(base=5.0, value=4.5, difference=-0.5, low=nan, high=nan, n=1, of='pre-trainings')
  """
  base, other = np.array(values, float).T
  low, high = metrics.confidence_interval(other - base)
  difference = float((other - base).mean())
  return Contrast(float(base.mean()), float(other.mean()), difference, low, high, len(values), of)


def pair_scores(pairs: Iterable[RunPair], rows: Iterable[ScoreRow]) -> PairedScores:
  """Returns both headline scores of each seed of fine-tuning that both runs of a pair have.

  Args:
    pairs: of runs.
    rows: of `select_main`. A run with several rows of one key (rates that nothing chose between)
      has no score there.
  """
  by_key: dict[ScoreKey, dict[str, list[Group]]] = {}
  for row in rows:
    if row.headline:
      key = ScoreKey(*(getattr(row, field) for field in ScoreKey._fields))
      by_key.setdefault(key, {}).setdefault(row.checkpoint, []).append(row.pretrained)
  pairs = list(pairs)
  paired: PairedScores = {}
  for key, groups in by_key.items():
    by_run = {name: several[0].by_seed for name, several in groups.items() if len(several) == 1}
    for pair in pairs:
      base, other = (by_run.get(name, {}) for name in pair)
      by_seed = {seed: (score, other[seed]) for seed, score in base.items() if seed in other}
      if by_seed:
        paired.setdefault(key, {})[pair] = by_seed
  return paired


def average_contrast(tasks: Sequence[Mapping[RunPair, BySeed]]) -> Contrast:
  """Returns the contrast of the mean over tasks, which all have the same pairs.

  Several pairs are averaged over their seeds. Of a single pair the seeds count that all tasks have;
  without such a seed there is no contrast.
  """
  pairs = [[task[pair] for task in tasks] for pair in tasks[0]]
  if len(pairs) > 1:
    means = [_mean_pair([_mean_pair(list(seeds.values())) for seeds in pair]) for pair in pairs]
    return make_contrast(means, TRAININGS)
  seeds = sorted(set.intersection(*(set(by_seed) for by_seed in pairs[0])))
  if not seeds:
    return NO_CONTRAST
  return make_contrast([_mean_pair([task[seed] for task in pairs[0]]) for seed in seeds], TUNINGS)


def _mean_pair(values: Sequence[BothScores]) -> BothScores:
  base, other = np.mean(values, 0).tolist()
  return base, other
