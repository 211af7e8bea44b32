"""How numbers look: cells of tables, and sentences about them. Scores are shown times 100.

A cell breaks at '; ' and before an interval, so that tables stay narrow.
"""

import math
from collections.abc import Sequence

from minilm_jax.analysis.averages import Average
from minilm_jax.analysis.runs import RunRow
from minilm_jax.analysis.scores import (
  ALL,
  NONE,
  Group,
  ScoreRow,
  points,
  select_main,
  with_interval,
)
from minilm_jax.progress import duration

SCORE_HEADINGS = (
  'task',
  'metric',
  'checkpoint',
  'pre-trained',
  'from scratch',
  'difference [95% interval]',
  'without a model',
  'examples',
)
SCORE_WORDS = 3  # the first so many columns hold words
AVERAGE_HEADINGS = (
  'average',
  'checkpoint',
  'pre-trained',
  'from scratch',
  'difference [95% interval]',
  'tasks',
)
AVERAGE_WORDS = 2
PHENOMENON_HEADINGS = ('phenomenon', 'task', 'checkpoint', 'accuracy', 'by frequency', 'pairs')
PHENOMENON_WORDS = 3
RUN_HEADINGS = (
  'run',
  'kind',
  'state',
  'parameters',
  'updates',
  'tokens',
  'FLOPs',
  'time',
  'validation loss',
  'perplexity',
  'scores',
)
RUN_WORDS = 3


def sentences(scores: Sequence[ScoreRow]) -> list[str]:
  """What the headline scores say, one sentence a row."""
  return [_sentence(row) for row in select_main(scores) if row.headline] or [
    'There are no scores yet.'
  ]


def _sentence(row: ScoreRow) -> str:
  split = '' if row.split == ALL else f'{row.split} '
  where = f'On {row.task}{" (filtered)" if row.filtered else ""}, {row.examples:,} {split}examples'
  where += f', from {row.checkpoint}' if row.checkpoint else ''
  if not row.pretrained.n or not row.scratch.n:
    name, group = (
      ('pre-trained', row.pretrained) if row.pretrained.n else ('from scratch', row.scratch)
    )
    other = 'from scratch' if row.pretrained.n else 'pre-trained'
    return f'{where}: {row.metric} {points(group.mean)} {name} (n = {group.n}); nothing {other} to compare with.'
  n = (
    f'n = {row.pretrained.n}'
    if row.difference.paired
    else f'n = {row.pretrained.n} and {row.scratch.n}'
  )
  text = (
    f'{where}: {row.metric} {points(row.pretrained.mean)} pre-trained against {points(row.scratch.mean)} '
    'from scratch'
  )
  if not math.isfinite(row.difference.low):
    return f'{text}, a difference of {points(row.difference.mean, "+")} ({n}: no interval).'
  text += (
    f', a difference of {points(row.difference.mean, "+")} (95% interval {points(row.difference.low, "+")} to '
    f'{points(row.difference.high, "+")}, {"paired by seed" if row.difference.paired else "Welch"}, {n})'
  )
  return (
    f'{text}; the interval contains zero.'
    if row.difference.low <= 0 <= row.difference.high
    else f'{text}.'
  )


def protocol(scores: Sequence[ScoreRow]) -> str:
  """How scores were got: seeds, the share of examples held out, epochs. Empty where nothing was trained."""
  rows = [row for row in select_main(scores) if row.train_examples]
  if not rows:
    return ''
  seeds = _range(
    [one.n + one.undefined for row in rows for one in (row.pretrained, row.scratch) if one.seeds],
    ' seed',
    's',
  )
  held = [row for row in rows if row.held_out]
  share = _range(
    [round(100 * row.held_out / (row.held_out + row.train_examples)) for row in held], '%'
  )
  best = any(row.which == 'best' for row in held)
  apart = 'nothing held out, nothing chosen'
  if held:
    apart = (
      f'{"of some tasks " if len(held) < len(rows) else ""}{share} of the training examples held out, which '
      f'chose the learning rate of each arm{" and the epoch of each seed" if best else ""}'
    )
  epochs = _range([row.epochs for row in rows if math.isfinite(row.epochs)], ' epoch', 's')
  return f'Protocol: {seeds}; {apart}; {epochs}.'


def _range(values: Sequence[float], unit: str, plural: str = '') -> str:
  """One number or two, with their unit: '1 seed', '3 to 5 seeds'."""
  ends = list(dict.fromkeys(f'{end:g}' for end in (min(values), max(values)))) if values else ['0']
  return ' to '.join(ends) + unit + ('' if ends == ['1'] else plural)


def broken(cell: str) -> list[str]:
  """The lines of a cell.

  >>> broken('71.0 ± 1.0 (n = 3) [68.5, 73.5]; rate 0.0002')
  ['71.0 ± 1.0 (n = 3)', '[68.5, 73.5]', 'rate 0.0002']
  """
  return cell.replace(' [', '; [').split('; ')


def score_cells(row: ScoreRow) -> list[str]:
  """The cells under `SCORE_HEADINGS`."""
  floors = [
    f'{points(value)} {name}'
    for value, name in ((row.majority, 'majority'), (row.frequency, 'by frequency'))
    if math.isfinite(value)
  ]
  return [
    row.task + (' (filtered)' if row.filtered else ''),
    row.metric,
    _checkpoint(row),
    _group(row.pretrained),
    _group(row.scratch),
    with_interval(row.difference.mean, row.difference.low, row.difference.high),
    '; '.join(floors) or 'undefined',
    f'{row.examples:,} {row.split}' + ('; best epoch' if row.which == 'best' else ''),
  ]


def average_cells(row: Average) -> list[str]:
  """The cells under `AVERAGE_HEADINGS`."""
  tasks = [', '.join(row.tasks[place : place + 3]) for place in range(0, len(row.tasks), 3)]
  return [
    f'{row.name}{" (filtered)" if row.filtered else ""}, {row.split}',
    _checkpoint(row),
    _group(row.pretrained),
    _group(row.scratch),
    with_interval(row.difference.mean, row.difference.low, row.difference.high),
    '; '.join(tasks),
  ]


def phenomenon_cells(row: ScoreRow) -> list[str]:
  """The cells under `PHENOMENON_HEADINGS`."""
  group = row.pretrained if row.pretrained.n else row.scratch
  text = points(group.mean) + (f' ± {points(group.std)}' if group.n > 1 else '')
  if math.isfinite(group.mean_example_low):
    text += f' [{points(group.mean_example_low)}, {points(group.mean_example_high)}]'
  frequency = points(row.frequency) if math.isfinite(row.frequency) else NONE
  return [row.split, row.task, _checkpoint(row), text, frequency, f'{row.examples:,}']


def _checkpoint(row: ScoreRow | Average) -> str:
  step = '' if row.step is None else f'; step {row.step:,}'
  return (row.checkpoint or NONE) + step


def _group(group: Group) -> str:
  if not group.n + group.undefined:
    return f'{points(group.mean)}; seeds differ' if math.isfinite(group.mean) else NONE
  text = f'{points(group.mean)} ± {points(group.std)}' if group.n > 1 else points(group.mean)
  text += f' (n = {group.n})' + (
    f' [{points(group.low)}, {points(group.high)}]' if group.n > 1 else ''
  )
  if group.n == 1 and math.isfinite(group.mean_example_low):
    text += f'; {points(group.mean_example_low)} to {points(group.mean_example_high)} over examples'
  text += f'; rate {group.learning_rate:g}' if group.learning_rate is not None else ''
  text += f'; {group.undefined} undefined' if group.undefined and group.n else ''
  return text + (f'; {group.collapsed} collapsed' if group.collapsed else '')


def run_cells(row: RunRow) -> list[str]:
  """The cells under `RUN_HEADINGS`."""
  missing = 'undefined' if row.evaluated else NONE
  losses = [
    missing if value is None else f'{value:,.{digits}f}'
    for value, digits in ((row.validation_loss, 3), (row.validation_perplexity, 1))
  ]
  return [
    row.name,
    row.kind,
    row.state,
    _count(row.parameters),
    _count(row.updates),
    _count(row.tokens),
    NONE if row.flops is None else f'{row.flops:.2e}',
    NONE if row.seconds is None else duration(row.seconds),
    *losses,
    str(row.scores) if row.scores else NONE,
  ]


def _count(value: float | None) -> str:
  return NONE if value is None else f'{value:,.0f}'
