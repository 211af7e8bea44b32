"""Tables of a scaling study: laws, frontier, plateaus, cost, correlations, depth and models."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minilm_jax.analysis.correlation import Estimate
from minilm_jax.analysis.cost_effectiveness import Depth, Step
from minilm_jax.analysis.laws.power_laws import Fit, clip_exp
from minilm_jax.analysis.loss_curves import ACTUAL, HONEY, KAPLAN, LossCurve
from minilm_jax.analysis.number_format import NONE, format_interval
from minilm_jax.analysis.report.sections import TableFormat


def format_number(value: float | None, form: str = ',.4g') -> str:
  """Returns a number, or "–" for None, infinity and nan.

  >>> format_number(2.2e15), format_number(0.0931), format_number(None), format_number(float('nan'))
  ('2.2e+15', '0.0931', '–', '–')
  """
  return NONE if value is None or not math.isfinite(value) else f'{value:{form}}'


def format_perplexity(value: float) -> str:
  """Returns a perplexity with two decimals, or three digits above a million.

  >>> format_perplexity(34.567), format_perplexity(1e300)
  ('34.57', '1e+300')
  """
  return f'{value:.2f}' if value < 1e6 else f'{value:.3g}'


def format_gain(value: float) -> str:
  """Returns points of perplexity: two digits, or all digits above 100.

  >>> format_gain(0.0264), format_gain(3170.2)
  ('0.026', '3,170')
  """
  return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.2g}'


def format_estimate(coefficient: Estimate) -> str:
  """Returns a coefficient with its interval."""
  if not math.isfinite(coefficient.value):
    return 'undefined: a side is constant'
  return format_interval(coefficient.value, coefficient.low, coefficient.high, '+.2f')


def _format_constants(fit: Fit) -> str:
  constants = []
  for name, value in fit.constants.items():
    ends = [format_number(end) for end in fit.intervals[name]] if name in fit.intervals else []
    interval = f' ({" to ".join(ends)})' if ends else ''
    constants.append(f'{name} {format_number(value)}{interval}')
  return '; '.join(constants)


def _format_step_note(step: Step) -> str:
  return '; '.join(filter(None, (step.also, 'gains nothing' if step.dominated else ''))) or NONE


@dataclasses.dataclass(frozen=True)
class DepthSummary:
  """Differences of all matched pairs in one quantity, deeper minus shallower.

  Attributes:
    better: number of pairs in which the deeper model is better.
    digits: decimals of the mean.
  """

  matched: str
  compared: str
  differences: Sequence[float]
  better: int
  digits: int


def summarize_depths(depths: Sequence[Depth]) -> Iterator[DepthSummary]:
  """Yields the validation loss and each score of all matched pairs."""
  for matched in dict.fromkeys(depth.matched for depth in depths):
    pairs = [depth for depth in depths if depth.matched == matched]
    losses = list({(pair.shallow, pair.deep): pair.loss for pair in pairs}.values())
    yield DepthSummary(matched, 'validation loss', losses, sum(loss < 0 for loss in losses), 3)
    for series in dict.fromkeys(pair.series for pair in pairs if pair.series):
      scores = [100 * pair.score for pair in pairs if pair.series == series]
      scores = [score for score in scores if math.isfinite(score)]
      if scores:
        yield DepthSummary(
          matched, f'{series}, × 100', scores, sum(score > 0 for score in scores), 1
        )


def compute_run_flops(curve: LossCurve, count: str) -> float | None:
  """Returns the FLOPs of a whole run; None without this count."""
  return float(curve.flops(count)[-1]) if count in curve.flops_per_row else None


# Columns of models.csv: shape, size, FLOPs of the whole run by each count, losses in nats.
MODEL_COLUMNS: dict[str, Callable[[LossCurve], Any]] = {
  'name': lambda curve: curve.name,
  'embedding': lambda curve: curve.shape.embedding,
  'hidden': lambda curve: curve.shape.hidden,
  'feed_forward': lambda curve: curve.shape.feed_forward,
  'heads': lambda curve: curve.shape.heads,
  'layers': lambda curve: curve.shape.layers,
  'vocabulary': lambda curve: curve.shape.vocabulary,
  'tied': lambda curve: curve.tied,
  'seed': lambda curve: curve.seed,
  'learning_rate': lambda curve: curve.learning_rate,
  'embedding_parameters': lambda curve: curve.embedding_parameters,
  'other_parameters': lambda curve: curve.other_parameters,
  'parameters': lambda curve: curve.parameters,
  'updates': lambda curve: curve.updates[-1],
  'tokens': lambda curve: float(curve.tokens[-1]),
  'honey_flops': lambda curve: compute_run_flops(curve, HONEY),
  'kaplan_flops': lambda curve: compute_run_flops(curve, KAPLAN),
  'actual_flops': lambda curve: compute_run_flops(curve, ACTUAL),
  'validation_loss': lambda curve: curve.loss[-1],
  'test_loss': lambda curve: curve.test_loss,
  'bits_per_word': lambda curve: curve.bits_per_word,
  'bits_per_byte': lambda curve: curve.bits_per_byte,
  'evaluations': lambda curve: len(curve.loss),
  'lost': lambda curve: curve.non_finite,
  'finished': lambda curve: curve.finished,
}
FIT_FORMAT = TableFormat(
  2,
  (
    ('law; fitted to; by', lambda fit: f'{fit.form}; {fit.name}; {fit.method}'),
    ('constants, 95% interval', _format_constants),
    ('R²', lambda fit: format_number(fit.r2, '.3f')),
    ('BIC', lambda fit: format_number(fit.bic, ',.1f')),
    ('points', lambda fit: f'{fit.n:,}'),
    ('FLOPs', lambda fit: f'{format_number(fit.low, ".2e")} to; {format_number(fit.high, ".2e")}'),
  ),
  'Loss L in nats by FLOPs C of training, with 95% intervals; fits.json has all digits.',
  (
    'Intervals of fits to a frontier resample runs. They measure the effect of the choice of runs, not '
    'the distance of a law from the truth.',
    'BIC compares forms fitted to the same points; lower is better.',
  ),
)
FRONTIER_FORMAT = TableFormat(
  1,
  (
    ('run', lambda point: point.run),
    ('FLOPs', lambda point: f'{point.flops:.3e}'),
    ('loss', lambda point: f'{point.loss:.4f}'),
    ('perplexity', lambda point: format_perplexity(clip_exp(point.loss))),
    ('tokens', lambda point: f'{point.tokens:.2e}'),
    ('parameters', lambda point: f'{point.parameters:,}'),
  ),
  'The lowest loss in each bin of compute.',
)
ENVELOPE_FORMAT = dataclasses.replace(
  FRONTIER_FORMAT, caption='Evaluations without a cheaper one of lower loss.'
)
PLATEAU_FORMAT = TableFormat(
  1,
  (
    ('run', lambda plateau: plateau.run),
    ('level', lambda plateau: f'{plateau.level:.3f}'),
    ('enters at; update', lambda plateau: f'{plateau.entry:,}'),
    ('leaves at; update', lambda plateau: format_number(plateau.exit, ',.0f')),
    ('leaves at; FLOPs', lambda plateau: format_number(plateau.exit_flops, '.2e')),
    ('loss; at exit', lambda plateau: format_number(plateau.exit_loss, '.3f')),
    ('evaluations; on it', lambda plateau: str(plateau.seen)),
    ('warm-up until', lambda plateau: format_number(plateau.warmup, ',.0f')),
  ),
  'Plateau of the loss of each run before it dropped. Runs without an exit ended on the plateau.',
)
STEP_FORMAT = TableFormat(
  2,
  (
    ('factor', lambda step: step.factor.replace('_', '-')),
    ('others', lambda step: step.others),
    ('step', lambda step: f'{step.from_value:,} to {step.to_value:,}'),
    ('points; gained', lambda step: format_number(step.perplexity_gain, '.3f')),
    ('for FLOPs', lambda step: format_number(step.flops, '.2e')),
    (
      'points a; 1e15 FLOPs',
      lambda step: format_interval(step.per_1e15, step.low, step.high, '.3g'),
    ),
    ('FLOPs a; point', lambda step: format_number(step.flops_per_point, '.2e')),
    ('bits per word; a 1e15 FLOPs', lambda step: format_number(step.bits_per_1e15, '.3g')),
    ('other; differences', _format_step_note),
  ),
  'Steps in one factor: points of perplexity gained for each additional 1e15 FLOPs [95% interval over seeds].',
  (
    'Factors: e embedding, h hidden, i feed-forward, a heads, l layers, V vocabulary.',
    'The best of several models of one shape stands for the shape; the last column lists other '
    'differences.',
  ),
)
CORRELATION_FORMAT = TableFormat(
  2,
  (
    ('score', lambda row: row.series),
    ('against', lambda row: row.measure + (', with untrained' if row.from_scratch else '')),
    ('models', lambda row: str(row.models)),
    ('Pearson', lambda row: format_estimate(row.pearson)),
    ('Spearman', lambda row: format_estimate(row.spearman)),
    ('Kendall', lambda row: format_estimate(row.kendall)),
    ('Spearman; at equal size', lambda row: format_estimate(row.partial)),
    ('undefined; resamples', lambda row: f'{row.degenerate:.1%}'),
  ),
  'Correlation over models with 95% intervals; a negative one pairs a lower loss with a higher score.',
  (
    'Intervals resample models. Runs that differ in their seeds alone are one model, with their means.',
    'Log-perplexity is the validation loss.',
    'The interval of a coefficient of 1 or -1 has no width, as each resample is in perfect order too.',
    '“At equal size” is the partial coefficient at a constant number of parameters.',
    '“With untrained” adds each model before training, with a loss of ln V and its score from '
    'scratch.',
  ),
)
TRAINING_CORRELATION_FORMAT = TableFormat(
  2,
  (
    ('score', lambda row: row.series),
    ('run', lambda row: row.run),
    ('checkpoints', lambda row: str(row.checkpoints)),
    ('Spearman', lambda row: f'{row.spearman:+.2f}' if math.isfinite(row.spearman) else NONE),
    ('loss', lambda row: f'{row.low_loss:.2f} to {row.high_loss:.2f}'),
    ('scores', lambda row: f'{100 * row.low_score:.1f} to {100 * row.high_score:.1f}'),
  ),
  'Rank correlation of loss and score over the checkpoints of one run.',
  ('There is no interval, because successive checkpoints are not independent.',),
)
DEPTH_SUMMARY_FORMAT = TableFormat(
  2,
  (
    ('matched', lambda row: row.matched),
    ('compared', lambda row: row.compared),
    ('pairs', lambda row: str(len(row.differences))),
    ('deeper; is better', lambda row: str(row.better)),
    ('deeper minus; shallower, mean', lambda row: f'{np.mean(row.differences):+.{row.digits}f}'),
  ),
  'Pairs of models of different depth; differences are deeper minus shallower.',
  (
    'Parameters, or FLOPs of the whole run, of a pair are within 10% of each other. Both models have '
    'the same recipe.',
    'Runs that differ in their seeds alone are one model, with their means.',
  ),
)
DEPTH_FORMAT = TableFormat(
  3,
  (
    ('shallower', lambda depth: depth.shallow),
    ('deeper', lambda depth: depth.deep),
    ('score', lambda depth: depth.series or NONE),
    ('layers', lambda depth: f'{depth.shallow_layers} to {depth.deep_layers}'),
    ('matched', lambda depth: depth.matched),
    ('ratio', lambda depth: f'{depth.ratio:.3f}'),
    ('loss', lambda depth: f'{depth.loss:+.3f}'),
    ('score × 100', lambda depth: format_number(100 * depth.score, '+.1f')),
  ),
)


def model_format(numbers: Mapping[str, int]) -> TableFormat:
  """Returns the format of a table of loss curves.

  Args:
    numbers: of the points in figures, by run.
  """
  return TableFormat(
    2,
    (
      ('#', lambda curve: str(numbers[curve.name])),
      ('run', lambda curve: curve.name),
      ('e', lambda curve: f'{curve.shape.embedding:,}'),
      ('h', lambda curve: f'{curve.shape.hidden:,}'),
      ('i', lambda curve: f'{curve.shape.feed_forward:,}'),
      ('a', lambda curve: f'{curve.shape.heads:,}'),
      ('l', lambda curve: f'{curve.shape.layers:,}'),
      ('V', lambda curve: f'{curve.shape.vocabulary:,}'),
      ('head', lambda curve: {True: 'tied', False: 'untied', None: NONE}[curve.tied]),
      ('parameters', lambda curve: f'{curve.parameters:,}'),
      ('embedding', lambda curve: f'{curve.embedding_parameters:,}'),
      ('other', lambda curve: f'{curve.other_parameters:,}'),
      (
        'test; perplexity',
        lambda curve: (
          NONE if curve.test_loss is None else format_perplexity(clip_exp(curve.test_loss))
        ),
      ),
      ('test; loss', lambda curve: format_number(curve.test_loss, '.4f')),
      ('validation; loss', lambda curve: f'{curve.loss[-1]:.4f}'),
      ('bits; per word', lambda curve: format_number(curve.bits_per_word, '.3f')),
      ('tokens', lambda curve: f'{curve.tokens[-1]:.2e}'),
      ('FLOPs,; paper', lambda curve: format_number(compute_run_flops(curve, HONEY), '.3e')),
      ('FLOPs,; Kaplan', lambda curve: format_number(compute_run_flops(curve, KAPLAN), '.3e')),
      ('FLOPs,; program', lambda curve: format_number(compute_run_flops(curve, ACTUAL), '.3e')),
      ('state', lambda curve: 'finished' if curve.finished else 'unfinished'),
    ),
    'Models by FLOPs; losses are in nats a masked token.',
    (
      'Counts of FLOPs: paper has the formula of 2305.17266, Kaplan has 6 N a token, and program has '
      'the executed matrix products.',
      'Columns: e embedding, h hidden, i feed-forward, a heads, l layers, V vocabulary.',
    ),
  )
