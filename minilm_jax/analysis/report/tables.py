"""Cells of the tables of a report: scores, runs, and the models of a scaling study.

Scores are shown times 100. A cell breaks at '; ' and before an interval (`sections.split_cell`).
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from minilm_jax.analysis.correlation import Correlation, Depth, Estimate
from minilm_jax.analysis.cost_effectiveness import Step
from minilm_jax.analysis.frontier import Plateau, Point
from minilm_jax.analysis.loss_curves import ACTUAL, HONEY, KAPLAN, LossCurve
from minilm_jax.analysis.power_laws import Fit
from minilm_jax.analysis.runs import RunRow
from minilm_jax.analysis.scores import (
  ALL,
  NONE,
  Average,
  Group,
  ScoreRow,
  format_interval,
  format_points,
  select_main,
)
from minilm_jax.core.progress import format_duration

# How numbers look: cells of tables, and sentences about them. Scores are shown times 100.
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
    return f'{where}: {row.metric} {format_points(group.mean)} {name} (n = {group.n}); nothing {other} to compare with.'
  n = (
    f'n = {row.pretrained.n}'
    if row.difference.paired
    else f'n = {row.pretrained.n} and {row.scratch.n}'
  )
  text = (
    f'{where}: {row.metric} {format_points(row.pretrained.mean)} pre-trained against {format_points(row.scratch.mean)} '
    'from scratch'
  )
  if not math.isfinite(row.difference.low):
    return f'{text}, a difference of {format_points(row.difference.mean, "+")} ({n}: no interval).'
  text += (
    f', a difference of {format_points(row.difference.mean, "+")} (95% interval {format_points(row.difference.low, "+")} to '
    f'{format_points(row.difference.high, "+")}, {"paired by seed" if row.difference.paired else "Welch"}, {n})'
  )
  return (
    f'{text}; the interval contains zero.'
    if row.difference.low <= 0 <= row.difference.high
    else f'{text}.'
  )


def protocol(scores: Sequence[ScoreRow]) -> str:
  """How scores were got: seeds, the share of examples held out, epochs.

  Empty where nothing was trained.
  """
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


def score_cells(row: ScoreRow) -> list[str]:
  """The cells under `SCORE_HEADINGS`."""
  floors = [
    f'{format_points(value)} {name}'
    for value, name in ((row.majority, 'majority'), (row.frequency, 'by frequency'))
    if math.isfinite(value)
  ]
  return [
    row.task + (' (filtered)' if row.filtered else ''),
    row.metric,
    _checkpoint(row),
    _group(row.pretrained),
    _group(row.scratch),
    format_interval(row.difference.mean, row.difference.low, row.difference.high),
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
    format_interval(row.difference.mean, row.difference.low, row.difference.high),
    '; '.join(tasks),
  ]


def phenomenon_cells(row: ScoreRow) -> list[str]:
  """The cells under `PHENOMENON_HEADINGS`."""
  group = row.pretrained if row.pretrained.n else row.scratch
  text = format_points(group.mean) + (f' ± {format_points(group.std)}' if group.n > 1 else '')
  if math.isfinite(group.mean_example_low):
    text += f' [{format_points(group.mean_example_low)}, {format_points(group.mean_example_high)}]'
  frequency = format_points(row.frequency) if math.isfinite(row.frequency) else NONE
  return [row.split, row.task, _checkpoint(row), text, frequency, f'{row.examples:,}']


def _checkpoint(row: ScoreRow | Average) -> str:
  step = '' if row.step is None else f'; step {row.step:,}'
  return (row.checkpoint or NONE) + step


def _group(group: Group) -> str:
  if not group.n + group.undefined:
    return f'{format_points(group.mean)}; seeds differ' if math.isfinite(group.mean) else NONE
  text = (
    f'{format_points(group.mean)} ± {format_points(group.std)}'
    if group.n > 1
    else format_points(group.mean)
  )
  text += f' (n = {group.n})' + (
    f' [{format_points(group.low)}, {format_points(group.high)}]' if group.n > 1 else ''
  )
  if group.n == 1 and math.isfinite(group.mean_example_low):
    text += f'; {format_points(group.mean_example_low)} to {format_points(group.mean_example_high)} over examples'
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
    NONE if row.seconds is None else format_duration(row.seconds),
    *losses,
    str(row.scores) if row.scores else NONE,
  ]


def _count(value: float | None) -> str:
  return NONE if value is None else f'{value:,.0f}'


FIT_HEADINGS = ('law; fitted to; by', 'constants, 95% interval', 'R²', 'BIC', 'points', 'FLOPs')
POINT_HEADINGS = ('run', 'FLOPs', 'loss', 'perplexity', 'tokens', 'parameters')
PLATEAU_HEADINGS = (
  'run',
  'level',
  'enters at; update',
  'leaves at; update',
  'leaves at; FLOPs',
  'loss; then',
  'evaluations; on it',
  'warm-up until',
)
STEP_HEADINGS = (
  'factor',
  'others',
  'step',
  'points; gained',
  'for FLOPs',
  'points a; 1e15 FLOPs',
  'FLOPs a; point',
  'bits per word; a 1e15 FLOPs',
  'what else; differs',
)
CORRELATION_HEADINGS = (
  'score',
  'against',
  'models',
  'Pearson',
  'Spearman',
  'Kendall',
  'undefined; resamples',
)
MATCHED_HEADINGS = (
  'at like',
  'compared',
  'pairs',
  'deeper; is better',
  'deeper less; shallower, mean',
)
DEPTH_HEADINGS = (
  'shallower',
  'deeper',
  'score',
  'layers',
  'matched',
  'ratio',
  'loss',
  'score × 100',
)
MODEL_HEADINGS = (
  '#',
  'run',
  'e',
  'h',
  'i',
  'a',
  'l',
  'V',
  'head',
  'parameters',
  'embedding',
  'other',
  'test; perplexity',
  'test; loss',
  'validation; loss',
  'bits; per word',
  'tokens',
  'FLOPs,; paper',
  'FLOPs,; Kaplan',
  'FLOPs,; true',
  'state',
)


def number(value: float | None, form: str = ',.4g') -> str:
  """A cell: large and small numbers by their powers of ten, others as they are.

  >>> number(2.2e15), number(0.0931), number(None), number(float('nan'))
  ('2.2e+15', '0.0931', '–', '–')
  """
  return NONE if value is None or not math.isfinite(value) else f'{value:{form}}'


def fit_cells(fit: Fit) -> list[str]:
  """The cells under `FIT_HEADINGS`."""
  constants = []
  for name, value in fit.constants.items():
    ends = [number(end) for end in fit.intervals[name]] if name in fit.intervals else []
    constants.append(f'{name} {number(value)}' + (f' ({" to ".join(ends)})' if ends else ''))
  return [
    f'{fit.form}; {fit.name}; {fit.method}',
    '; '.join(constants),
    number(fit.r2, '.3f'),
    number(fit.bic, ',.1f'),
    f'{fit.n:,}',
    f'{number(fit.low, ".2e")} to; {number(fit.high, ".2e")}',
  ]


def point_cells(point: Point) -> list[str]:
  """The cells under `POINT_HEADINGS`."""
  return [
    point.run,
    f'{point.flops:.3e}',
    f'{point.loss:.4f}',
    f'{math.exp(point.loss):.2f}',
    f'{point.tokens:.2e}',
    f'{point.parameters:,}',
  ]


def plateau_cells(one: Plateau) -> list[str]:
  """The cells under `PLATEAU_HEADINGS`."""
  return [
    one.run,
    f'{one.level:.3f}',
    f'{one.entry:,}',
    number(one.exit, ',.0f'),
    number(one.exit_flops, '.2e'),
    number(one.exit_loss, '.3f'),
    str(one.seen),
    number(one.warmup, ',.0f'),
  ]


def gain(value: float) -> str:
  """Points of perplexity in a sentence.

  >>> gain(0.0264), gain(3170.2)
  ('0.026', '3,170')
  """
  return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.2g}'


def step_cells(step: Step) -> list[str]:
  """The cells under `STEP_HEADINGS`."""
  each = format_interval(step.per_1e15, step.low, step.high, '.3g')
  also = '; '.join(filter(None, (step.also, 'gains nothing' if step.dominated else '')))
  return [
    step.factor.replace('_', '-'),
    step.others,
    f'{step.from_value:,} to {step.to_value:,}',
    number(step.perplexity_gain, '.3f'),
    number(step.flops, '.2e'),
    each,
    number(step.flops_per_point, '.2e'),
    number(step.bits_per_1e15, '.3g'),
    also or NONE,
  ]


def correlation_cells(one: Correlation) -> list[str]:
  """The cells under `CORRELATION_HEADINGS`."""
  return [
    one.series,
    one.measure + (', with untrained' if one.from_scratch else ''),
    str(one.models),
    *map(estimate, (one.pearson, one.spearman, one.kendall)),
    f'{one.degenerate:.1%}',
  ]


def estimate(one: Estimate) -> str:
  """A coefficient with its interval."""
  if not math.isfinite(one.value):
    return 'undefined: a side is constant'
  return format_interval(one.value, one.low, one.high, '+.2f')


def matched_rows(depths: Sequence[Depth]) -> Iterator[list[str]]:
  """The rows under `MATCHED_HEADINGS`: over all pairs, is the deeper model better in loss and in
  each score?
  """
  for matched in dict.fromkeys(one.matched for one in depths):
    own = [one for one in depths if one.matched == matched]
    losses = list({(one.shallow, one.deep): one.loss for one in own}.values())
    lower = sum(loss < 0 for loss in losses)
    yield [matched, 'validation loss', str(len(losses)), str(lower), f'{np.mean(losses):+.3f}']
    for series in dict.fromkeys(one.series for one in own if one.series):
      found = [100 * one.score for one in own if one.series == series and math.isfinite(one.score)]
      if found:
        yield [
          matched,
          f'{series}, × 100',
          str(len(found)),
          str(sum(score > 0 for score in found)),
          f'{np.mean(found):+.1f}',
        ]


def depth_cells(one: Depth) -> list[str]:
  """The cells under `DEPTH_HEADINGS`."""
  return [
    one.shallow,
    one.deep,
    one.series or NONE,
    f'{one.shallow_layers} to {one.deep_layers}',
    one.matched,
    f'{one.ratio:.3f}',
    f'{one.loss:+.3f}',
    number(100 * one.score, '+.1f'),
  ]


@dataclasses.dataclass(frozen=True)
class ModelRow:
  """One model in a file: its shape, size, what it cost by each count (FLOPs of the whole run), its
  losses in nats.
  """

  name: str
  embedding: int
  hidden: int
  feed_forward: int
  heads: int
  layers: int
  vocabulary: int
  tied: bool | None
  seed: int | None
  learning_rate: float | None
  embedding_parameters: int
  other_parameters: int
  parameters: int
  updates: int
  tokens: float
  honey_flops: float | None
  kaplan_flops: float | None
  actual_flops: float | None
  validation_loss: float
  test_loss: float | None
  bits_per_word: float | None
  bits_per_byte: float | None
  evaluations: int
  lost: int
  finished: bool


def model_row(track: LossCurve) -> ModelRow:
  """The line of a track in a file."""
  flops = [
    float(track.flops(count)[-1]) if count in track.flops_per_row else None
    for count in (HONEY, KAPLAN, ACTUAL)
  ]
  return ModelRow(
    track.name,
    *dataclasses.astuple(track.shape),
    track.tied,
    track.seed,
    track.learning_rate,
    track.embedding_parameters,
    track.other_parameters,
    track.parameters,
    track.updates[-1],
    float(track.tokens[-1]),
    *flops,
    track.loss[-1],
    track.test_loss,
    track.bits_per_word,
    track.bits_per_byte,
    len(track.loss),
    track.non_finite,
    track.finished,
  )


def model_cells(track: LossCurve, numbers: Mapping[str, int]) -> list[str]:
  """The cells under `MODEL_HEADINGS`."""
  row = model_row(track)
  head = {True: 'tied', False: 'untied', None: NONE}[row.tied]
  perplexity = None if row.test_loss is None else math.exp(row.test_loss)
  return [
    str(numbers[row.name]),
    row.name,
    *(f'{size:,}' for size in dataclasses.astuple(track.shape)),
    head,
    f'{row.parameters:,}',
    f'{row.embedding_parameters:,}',
    f'{row.other_parameters:,}',
    number(perplexity, '.2f'),
    number(row.test_loss, '.4f'),
    f'{row.validation_loss:.4f}',
    number(row.bits_per_word, '.3f'),
    f'{row.tokens:.2e}',
    *(number(value, '.3e') for value in (row.honey_flops, row.kaplan_flops, row.actual_flops)),
    'finished' if row.finished else 'unfinished',
  ]
