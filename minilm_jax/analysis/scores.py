"""Scores of many fine-tuning runs as one table: pre-trained against from scratch, with what chance
alone would give.

Values stay shares or correlations as they were logged; only a page multiplies them by 100. A score
that is not a number (a correlation with constant predictions) is counted as undefined and left out
of the mean. Each arm is shown at a learning rate, and where there is a choice at an epoch, that the
held-out part of the training examples chose for it, never the split that is reported. Averages over
tasks are left to `averages.py`.
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
FIELDS = (
  'task',
  'metric',
  'value',
  'low',
  'high',
  'headline',
  'split',
  'examples',
  'train_examples',
  'held_out',
  'pretrained',
  'checkpoint',
  'checkpoint_step',
  'filtered',
  'seed',
  'learning_rate',
  'member',
  'epoch',
  'epoch_choice',
  'validation_score',
  'majority',
  'frequency',
  'constant_prediction',
  'truncated',
)


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
    ours = cells[key][True]
    theirs = [line for lines in cells[key][False].values() for line in lines]
    for step in sorted(ours, key=lambda step: -1 if step is None else step) or [None]:
      rows += _rows(step, ours[step] if step in ours else [], theirs)
  return rows


def choose_rates(lines: Iterable[ScoreLine]) -> tuple[float | None, ...]:
  """The learning rate whose mean `selection` over seeds is highest, of lines that differ in seed,
  rate and epoch only.

  The selection is that of the epoch which is shown. One that is not a number counts as 0, which is
  what a model that gives one answer has in Matthews' correlation too; of equals the lowest rate is
  taken.

  Returns:
    One rate; or each of several where nothing was held out to choose by: they are shown side by
    side, for to choose by the reported split would flatter.
  """
  lines = list(lines)
  rates = tuple(sorted({line['learning_rate'] for line in lines}, key=to_float))
  shown = [line for line in lines if line['epoch_choice'] == _shown(lines)]
  if len(rates) < 2 or all(line['validation_score'] is None for line in shown):
    return rates
  means = []
  for rate in rates:
    seeds = {
      line['seed']: to_float(line['validation_score'])
      for line in shown
      if line['learning_rate'] == rate
    }
    means.append(
      np.mean([value if math.isfinite(value) else 0 for value in seeds.values()])
      if seeds
      else -math.inf
    )
  return (rates[int(np.argmax(means))],)


def _shown(lines: Iterable[ScoreLine]) -> str:
  return 'best' if any(line['epoch_choice'] == 'best' for line in lines) else 'last'


def _rows(
  step: int | None, ours: Sequence[ScoreLine], theirs: Sequence[ScoreLine]
) -> Iterator[ScoreRow]:
  """The rows of one cell: by metric, by epoch, and by rate where nothing chose one."""
  rates = choose_rates(ours), choose_rates(theirs)
  if max(map(len, rates)) > 1:
    pairs = [((rate,), (rate,)) for rate in sorted({*rates[0], *rates[1]}, key=to_float)]
  else:
    pairs = [rates]
  lines = [*ours, *theirs]
  shown = _shown(lines)
  kinds = {
    (not line['headline'], line['metric'], line['epoch_choice'] != shown, line['epoch_choice'])
    for line in lines
  }
  for minor, metric, other, which in sorted(kinds):
    for pair in pairs:
      arms = [
        {
          line['seed']: line
          for line in arm
          if (line['metric'], line['epoch_choice']) == (metric, which)
          and line['learning_rate'] in rate
        }
        for arm, rate in zip((ours, theirs), pair, strict=True)
      ]
      some = [*arms[0].values(), *arms[1].values()]
      if not some:
        continue
      one, groups = some[0], [_group(arm) for arm in arms]
      yield ScoreRow(
        **{
          name: one[name]
          for name in (
            'task',
            'metric',
            'split',
            'filtered',
            'checkpoint',
            'examples',
            'train_examples',
            'held_out',
          )
        },
        headline=not minor,
        step=step,
        epochs=max(to_float(line['epoch']) for line in lines),
        which=which,
        shown=not other,
        majority=to_float(one['majority']),
        frequency=to_float(one['frequency']),
        pretrained=groups[0],
        scratch=groups[1],
        difference=compute_difference(*groups),
      )


def _group(lines: Mapping[int, ScoreLine]) -> Group:
  values = {seed: to_float(line['value']) for seed, line in sorted(lines.items())}
  defined = {seed: value for seed, value in values.items() if math.isfinite(value)}
  ends = [[to_float(line[end]) for line in lines.values()] for end in ('low', 'high')]
  return make_group(
    defined,
    rate=next((line['learning_rate'] for line in lines.values()), None),
    collapsed=sum(bool(line['constant_prediction']) for line in lines.values()),
    undefined=len(values) - len(defined),
    ends=[_mean(values) for values in ends],
  )


def make_group(
  values: Mapping[int, float],
  rate: float | None = None,
  collapsed: int = 0,
  undefined: int = 0,
  ends: Sequence[float] = (math.nan, math.nan),
) -> Group:
  """The line of a table for one value a seed; all of them numbers."""
  found = metrics.summarize(list(values.values()))
  return Group(
    learning_rate=rate,
    **found,
    collapsed=collapsed,
    undefined=undefined,
    mean_example_low=ends[0],
    mean_example_high=ends[1],
    seeds=tuple(values),
    values=tuple(values.values()),
  )


def _mean(values: Sequence[float]) -> float:
  return float(np.mean(values)) if values else math.nan


def select_main(rows: Iterable[ScoreRow]) -> list[ScoreRow]:
  """Returns the rows that tables show: the epoch that counts, no phenomena, the last step of a
  checkpoint.
  """
  last = _last_steps(rows)
  paired = _tasks_of_pairs(last)
  return [row for row in last if row.task not in paired or row.split == ALL]


def select_phenomena(rows: Iterable[ScoreRow]) -> list[ScoreRow]:
  """Returns the rows of single phenomena, of tasks with a split 'all' beside others."""
  last = _last_steps(rows)
  paired = _tasks_of_pairs(last)
  return [row for row in last if row.task in paired and row.split != ALL]


def _last_steps(rows: Iterable[ScoreRow]) -> list[ScoreRow]:
  def key(row: ScoreRow) -> tuple[Any, ...]:
    return row.task, row.split, row.filtered, row.checkpoint, row.train_examples, row.held_out

  rows = [row for row in rows if row.shown]
  last = {key(row): row.step for row in rows}  # rows come in the order of steps
  return [row for row in rows if row.step == last[key(row)]]


def _tasks_of_pairs(rows: Iterable[ScoreRow]) -> set[str]:
  return {row.task for row in rows if row.split == ALL}


def compute_difference(ours: Group, theirs: Group) -> Difference:
  """The difference of the means of two groups: paired where their seeds are the same."""
  if not ours.n or not theirs.n:
    return Difference(math.nan, math.nan, math.nan, False)
  mean = ours.mean - theirs.mean
  if ours.seeds == theirs.seeds:
    return Difference(
      mean,
      *metrics.confidence_interval(np.subtract(ours.values, theirs.values), metrics.CONFIDENCE),
      True,
    )
  if min(ours.n, theirs.n) < 2:
    return Difference(mean, math.nan, math.nan, False)
  with warnings.catch_warnings():
    warnings.simplefilter(
      'ignore'
    )  # about seeds that all score the same: the other side still has a spread
    welch = stats.ttest_ind(ours.values, theirs.values, equal_var=False).confidence_interval(
      metrics.CONFIDENCE
    )
  return Difference(mean, float(welch.low), float(welch.high), False)


def format_points(share: float, sign: str = '') -> str:
  """A share times 100.

  >>> format_points(0.6789), points(0.02, '+'), points(float('nan'))
  ('67.9', '+2.0', 'undefined')
  """
  return f'{100 * share:{sign}.1f}' if math.isfinite(share) else 'undefined'


def format_interval(
  value: float, low: float, high: float, form: str = '', scale: float = 1.0
) -> str:
  """Returns a mean with its interval; without the interval where its low end is nan, "–" where the
  mean is nan.

  Args:
    value, low, high: the mean and the ends of its interval.
    form: format of each number; '' shows shares times 100 with a sign, as `points` does.
    scale: factor of each number under a form.

  >>> format_interval(0.01, -0.002, 0.022)
  '+1.0 [-0.2, +2.2]'
  >>> format_interval(3.1, 2.2, math.inf, '.2f'), with_interval(3.1, math.nan, math.nan, '.2f')
  ('3.10 [2.20, ∞]', '3.10')
  """

  def text(number: float) -> str:
    if math.isinf(number):
      return '∞' if number > 0 else '-∞'
    return f'{scale * number:{form}}' if form else format_points(number, '+')

  if not math.isfinite(value):
    return NONE
  return text(value) if math.isnan(low) else f'{text(value)} [{text(low)}, {text(high)}]'


# Averages of headline scores over the tasks of GLUE, with and without the two whose scores are
# mostly noise or zero.
GLUE = ('cola', 'sst2', 'mrpc', 'stsb', 'qqp', 'mnli', 'qnli', 'rte', 'wnli')
# WNLI's validation examples contradict its training ones, and tiny models stay at 0 on CoLA: papers
# differ in these.
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
  """The mean of the headline scores of some tasks, per seed, over seeds; an arm that lacks one of
  them has n = 0.

  Where the seeds differ from task to task, or a score is undefined, an arm has a mean of means, n =
  0 and no interval.
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
  """The averages of every checkpoint and step: over the tasks of both arms, and of each arm where
  it has others.

  A task with several rows, which are other protocols or rates that nothing chose between, is in no
  average, and an average of one task is none.

  Args:
    rows: of `scores.score_table`; those of headline metrics that are shown count.
  """
  cells: dict[tuple[str, bool, str, int | None], dict[str, list[ScoreRow]]] = {}
  for row in rows:
    if is_averaged(row):
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


def is_averaged(row: ScoreRow) -> bool:
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
    return make_group({})
  collapsed = sum(one.collapsed for one in groups)
  if len({one.seeds for one in groups}) > 1:
    mean = float(np.mean([one.mean for one in groups]))
    return dataclasses.replace(make_group({}, collapsed=collapsed), mean=mean)
  means = np.mean([one.values for one in groups], axis=0).tolist()
  return make_group(dict(zip(groups[0].seeds, means, strict=True)), collapsed=collapsed)


def _difference(ours: Group, theirs: Group) -> Difference:
  if ours.n and theirs.n:
    return compute_difference(ours, theirs)
  return Difference(ours.mean - theirs.mean, math.nan, math.nan, False)


def select_latest(rows: Sequence[Average]) -> list[Average]:
  """Returns the averages of the last step of each checkpoint."""
  last = {(row.split, row.filtered, row.checkpoint): row.step for row in rows}
  return [row for row in rows if row.step == last[row.split, row.filtered, row.checkpoint]]


# Two recipes of pre-training by the scores of what was fine-tuned from them, pair by pair.
TRAININGS, TUNINGS = 'pre-trainings', 'seeds of fine-tuning'
Both = tuple[float, float]  # one number of each side
BySeed = Mapping[int, Both]  # of fine-tuning
Pair = tuple[str, str]  # names of runs, the base's first


class ScoreKey(NamedTuple):
  """What two scores have in common where they compare: task, metric and how the examples were
  split.
  """

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


def make_contrast(values: Sequence[Both], of: str) -> Contrast:
  """What numbers of both sides say, the base's first in each.

  >>> make_contrast([(5.0, 4.5)], TRAININGS)
  Contrast(base=5.0, value=4.5, difference=-0.5, low=nan, high=nan, n=1, of='pre-trainings')
  """
  base, own = np.array(values, float).T
  low, high = metrics.confidence_interval(own - base)
  return Contrast(
    float(base.mean()), float(own.mean()), float((own - base).mean()), low, high, len(values), of
  )


def pair_scores(pairs: Iterable[Pair], rows: Iterable[ScoreRow]) -> PairedScores:
  """Both headline scores of each seed of fine-tuning that both runs of a pair have, by what was
  scored and pair.

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


def average_contrast(tasks: Sequence[Mapping[Pair, BySeed]]) -> Contrast:
  """The contrast of the mean over tasks, which all have the same pairs; of one task, its own.

  Of a single pair the seeds count that all of the tasks have; without one there is nothing.
  """
  pairs = [[task[pair] for task in tasks] for pair in tasks[0]]
  if len(pairs) > 1:
    return make_contrast(
      [_mean_of_pairs([_mean_of_pairs(list(seeds.values())) for seeds in own]) for own in pairs],
      TRAININGS,
    )
  seeds = sorted(set.intersection(*(set(seeds) for seeds in pairs[0])))
  return (
    make_contrast([_mean_of_pairs([task[seed] for task in pairs[0]]) for seed in seeds], TUNINGS)
    if seeds
    else NO_CONTRAST
  )


def _mean_of_pairs(values: Sequence[Both]) -> Both:
  base, own = np.mean(values, 0).tolist()
  return base, own
