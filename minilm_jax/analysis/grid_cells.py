"""How the numbers of a grid look: cells of its tables, and the line of a model in a file.

A cell breaks at '; ' and before an interval, as those of `cells.py` do.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from minilm_jax.analysis.scores import NONE, with_interval
from minilm_jax.analysis.correlation import Correlation, Depth, Estimate
from minilm_jax.analysis.cost import Step
from minilm_jax.analysis.frontier import Point
from minilm_jax.analysis.laws import Fit
from minilm_jax.analysis.plateau import Plateau
from minilm_jax.analysis.tracks import ACTUAL, HONEY, KAPLAN, LossCurve

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
  each = with_interval(step.per_1e15, step.low, step.high, '.3g')
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
  return with_interval(one.value, one.low, one.high, '+.2f')


def matched_rows(depths: Sequence[Depth]) -> Iterator[list[str]]:
  """The rows under `MATCHED_HEADINGS`: over all pairs, is the deeper model better in loss and in each score?"""
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
  """One model in a file: its shape, size, what it cost by each count (FLOPs of the whole run), its losses in nats."""

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
    track.lost,
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
