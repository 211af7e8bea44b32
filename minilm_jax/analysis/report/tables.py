"""Tables of a report: scores, runs and the models of a scaling study, with sentences about scores.

Scores are shown times 100. A cell breaks at '; ' and before an interval (`sections.split_cell`).
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from minilm_jax.analysis.correlation import Depth, Estimate
from minilm_jax.analysis.cost_effectiveness import Step
from minilm_jax.analysis.loss_curves import ACTUAL, HONEY, KAPLAN, LossCurve
from minilm_jax.analysis.power_laws import Fit
from minilm_jax.analysis.report.sections import TableFormat
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


def sentences(scores: Sequence[ScoreRow]) -> list[str]:
  """Returns a sentence for each headline score."""
  return [_sentence(row) for row in select_main(scores) if row.headline] or [
    'There are no scores yet.'
  ]


def _sentence(row: ScoreRow) -> str:
  split = '' if row.split == ALL else f'{row.split} '
  scope = f'On {row.task}{" (filtered)" if row.filtered else ""}, {row.examples:,} {split}examples'
  scope += f', from {row.checkpoint}' if row.checkpoint else ''
  if not row.pretrained.n or not row.scratch.n:
    name, group = (
      ('pre-trained', row.pretrained) if row.pretrained.n else ('from scratch', row.scratch)
    )
    other = 'from scratch' if row.pretrained.n else 'pre-trained'
    return f'{scope}: {row.metric} {format_points(group.mean)} {name} (n = {group.n}); nothing {other} to compare with.'
  n = (
    f'n = {row.pretrained.n}'
    if row.difference.paired
    else f'n = {row.pretrained.n} and {row.scratch.n}'
  )
  text = (
    f'{scope}: {row.metric} {format_points(row.pretrained.mean)} pre-trained against {format_points(row.scratch.mean)} '
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
  """Returns seeds, share of examples held out and epochs of the scores, or '' without training."""
  rows = [row for row in select_main(scores) if row.train_examples]
  if not rows:
    return ''
  groups = [group for row in rows for group in (row.pretrained, row.scratch) if group.seeds]
  seeds = _range([group.n + group.undefined for group in groups], ' seed', 's')
  held = [row for row in rows if row.held_out]
  share = _range(
    [round(100 * row.held_out / (row.held_out + row.train_examples)) for row in held], '%'
  )
  best = any(row.which == 'best' for row in held)
  selection = 'nothing held out, nothing chosen'
  if held:
    selection = (
      f'{"of some tasks " if len(held) < len(rows) else ""}{share} of the training examples held out, which '
      f'chose the learning rate of each arm{" and the epoch of each seed" if best else ""}'
    )
  epochs = _range([row.epochs for row in rows if math.isfinite(row.epochs)], ' epoch', 's')
  return f'Protocol: {seeds}; {selection}; {epochs}.'


def _range(values: Sequence[float], unit: str, plural: str = '') -> str:
  """Returns one number or two, with their unit: '1 seed', '3 to 5 seeds'."""
  ends = list(dict.fromkeys(f'{end:g}' for end in (min(values), max(values)))) if values else ['0']
  return ' to '.join(ends) + unit + ('' if ends == ['1'] else plural)


def _join_by_three(names: Sequence[str]) -> Iterator[str]:
  return (', '.join(names[first : first + 3]) for first in range(0, len(names), 3))


def _filtered(row: ScoreRow | Average) -> str:
  return ' (filtered)' if row.filtered else ''


def _difference(row: ScoreRow | Average) -> str:
  return format_interval(row.difference.mean, row.difference.low, row.difference.high)


def _points(share: float) -> str:
  return format_points(share) if math.isfinite(share) else NONE


def _baselines(row: ScoreRow) -> str:
  """Returns the scores that need no model."""
  baselines = ((row.majority, 'majority'), (row.frequency, 'by frequency'))
  cells = [f'{format_points(value)} {name}' for value, name in baselines if math.isfinite(value)]
  return '; '.join(cells) or 'undefined'


def _phenomenon(row: ScoreRow) -> str:
  group = row.pretrained if row.pretrained.n else row.scratch
  text = format_points(group.mean) + (f' ± {format_points(group.std)}' if group.n > 1 else '')
  if not math.isfinite(group.mean_example_low):
    return text
  return (
    f'{text} [{format_points(group.mean_example_low)}, {format_points(group.mean_example_high)}]'
  )


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


def _loss(row: RunRow, value: float | None, digits: int) -> str:
  if value is not None:
    return f'{value:,.{digits}f}'
  return 'undefined' if row.evaluated else NONE


def _count(value: float | None) -> str:
  return NONE if value is None else f'{value:,.0f}'


def format_number(value: float | None, form: str = ',.4g') -> str:
  """Returns a cell: large and small numbers by their powers of ten, others as they are.

  >>> format_number(2.2e15), format_number(0.0931), format_number(None), format_number(float('nan'))
  ('2.2e+15', '0.0931', '–', '–')
  """
  return NONE if value is None or not math.isfinite(value) else f'{value:{form}}'


def format_gain(value: float) -> str:
  """Returns points of perplexity for a sentence.

  >>> format_gain(0.0264), format_gain(3170.2)
  ('0.026', '3,170')
  """
  return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.2g}'


def format_estimate(coefficient: Estimate) -> str:
  """Returns a coefficient with its interval."""
  if not math.isfinite(coefficient.value):
    return 'undefined: a side is constant'
  return format_interval(coefficient.value, coefficient.low, coefficient.high, '+.2f')


def _constants(fit: Fit) -> str:
  constants = []
  for name, value in fit.constants.items():
    ends = [format_number(end) for end in fit.intervals[name]] if name in fit.intervals else []
    interval = f' ({" to ".join(ends)})' if ends else ''
    constants.append(f'{name} {format_number(value)}{interval}')
  return '; '.join(constants)


def _step_note(step: Step) -> str:
  return '; '.join(filter(None, (step.also, 'gains nothing' if step.dominated else ''))) or NONE


@dataclasses.dataclass(frozen=True)
class DepthSummary:
  """Differences of all matched pairs in one quantity, deeper minus shallower.

  Attributes:
    matched: the quantity in which the pairs are alike.
    compared: the loss or score.
    differences: one a pair.
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


@dataclasses.dataclass(frozen=True)
class ModelRow:
  """One model: shape, size, FLOPs of the whole run by each count, losses in nats."""

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


def model_row(curve: LossCurve) -> ModelRow:
  """Returns the line of a loss curve in models.csv."""
  honey, kaplan, actual = (
    float(curve.flops(count)[-1]) if count in curve.flops_per_row else None
    for count in (HONEY, KAPLAN, ACTUAL)
  )
  return ModelRow(
    name=curve.name,
    **dataclasses.asdict(curve.shape),
    tied=curve.tied,
    seed=curve.seed,
    learning_rate=curve.learning_rate,
    embedding_parameters=curve.embedding_parameters,
    other_parameters=curve.other_parameters,
    parameters=curve.parameters,
    updates=curve.updates[-1],
    tokens=float(curve.tokens[-1]),
    honey_flops=honey,
    kaplan_flops=kaplan,
    actual_flops=actual,
    validation_loss=curve.loss[-1],
    test_loss=curve.test_loss,
    bits_per_word=curve.bits_per_word,
    bits_per_byte=curve.bits_per_byte,
    evaluations=len(curve.loss),
    lost=curve.non_finite,
    finished=curve.finished,
  )


SCORE_FORMAT = TableFormat(
  3,
  (
    ('task', lambda row: row.task + _filtered(row)),
    ('metric', lambda row: row.metric),
    ('checkpoint', _checkpoint),
    ('pre-trained', lambda row: _group(row.pretrained)),
    ('from scratch', lambda row: _group(row.scratch)),
    ('difference [95% interval]', _difference),
    ('without a model', _baselines),
    (
      'examples',
      lambda row: f'{row.examples:,} {row.split}' + ('; best epoch' if row.which == 'best' else ''),
    ),
  ),
  'Times 100, mean ± sample standard deviation, n seeds, [95% interval of the mean over seeds]. Majority: what the '
  'most frequent answer alone would score; by frequency: answers guessed as often as in training or, of pairs of '
  'sentences, by the frequency of their words. Collapsed: a model that gives one answer to everything. Of several '
  'steps of a checkpoint the last; scores.csv has all.',
)
AVERAGE_FORMAT = TableFormat(
  2,
  (
    ('average', lambda row: f'{row.name}{_filtered(row)}, {row.split}'),
    ('checkpoint', _checkpoint),
    ('pre-trained', lambda row: _group(row.pretrained)),
    ('from scratch', lambda row: _group(row.scratch)),
    ('difference [95% interval]', _difference),
    ('tasks', lambda row: '; '.join(_join_by_three(row.tasks))),
  ),
  'Means of the headline scores of the tasks that were run, per seed, then over seeds. Averages over other tasks are '
  'other numbers.',
)
PHENOMENON_FORMAT = TableFormat(
  3,
  (
    ('phenomenon', lambda row: row.split),
    ('task', lambda row: row.task),
    ('checkpoint', _checkpoint),
    ('accuracy', _phenomenon),
    ('by frequency', lambda row: _points(row.frequency)),
    ('pairs', lambda row: f'{row.examples:,}'),
  ),
  'Accuracy times 100 on pairs of sentences, [95% interval over pairs]; chance is 50.',
)
RUN_FORMAT = TableFormat(
  3,
  (
    ('run', lambda row: row.name),
    ('kind', lambda row: row.kind),
    ('state', lambda row: row.state),
    ('parameters', lambda row: _count(row.parameters)),
    ('updates', lambda row: _count(row.updates)),
    ('tokens', lambda row: _count(row.tokens)),
    ('FLOPs', lambda row: NONE if row.flops is None else f'{row.flops:.2e}'),
    ('time', lambda row: NONE if row.seconds is None else format_duration(row.seconds)),
    ('validation loss', lambda row: _loss(row, row.validation_loss, 3)),
    ('perplexity', lambda row: _loss(row, row.validation_perplexity, 1)),
    ('scores', lambda row: str(row.scores) if row.scores else NONE),
  ),
  'The loss is that of masked tokens at frozen masks, in nats, at the last evaluation.',
)
FIT_FORMAT = TableFormat(
  2,
  (
    ('law; fitted to; by', lambda fit: f'{fit.form}; {fit.name}; {fit.method}'),
    ('constants, 95% interval', _constants),
    ('R²', lambda fit: format_number(fit.r2, '.3f')),
    ('BIC', lambda fit: format_number(fit.bic, ',.1f')),
    ('points', lambda fit: f'{fit.n:,}'),
    (
      'FLOPs',
      lambda fit: f'{format_number(fit.low, ".2e")} to; {format_number(fit.high, ".2e")}',
    ),
  ),
  'L is the loss in nats, C the FLOPs of training. In brackets the 95% interval; that of a fit to a frontier is '
  'over draws of runs: it says how much the choice of runs matters, not how far the law is from the truth. BIC '
  'compares forms fitted to the same points, the lower the better. fits.json has all digits.',
)
POINT_FORMAT = TableFormat(
  1,
  (
    ('run', lambda point: point.run),
    ('FLOPs', lambda point: f'{point.flops:.3e}'),
    ('loss', lambda point: f'{point.loss:.4f}'),
    ('perplexity', lambda point: f'{math.exp(point.loss):.2f}'),
    ('tokens', lambda point: f'{point.tokens:.2e}'),
    ('parameters', lambda point: f'{point.parameters:,}'),
  ),
)
PLATEAU_FORMAT = TableFormat(
  1,
  (
    ('run', lambda plateau: plateau.run),
    ('level', lambda plateau: f'{plateau.level:.3f}'),
    ('enters at; update', lambda plateau: f'{plateau.entry:,}'),
    ('leaves at; update', lambda plateau: format_number(plateau.exit, ',.0f')),
    ('leaves at; FLOPs', lambda plateau: format_number(plateau.exit_flops, '.2e')),
    ('loss; then', lambda plateau: format_number(plateau.exit_loss, '.3f')),
    ('evaluations; on it', lambda plateau: str(plateau.seen)),
    ('warm-up until', lambda plateau: format_number(plateau.warmup, ',.0f')),
  ),
  'Where a run’s loss stood still before it dropped. An exit that is missing: the run ended on the plateau.',
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
    ('what else; differs', _step_note),
  ),
  'One factor grows, all others stay: points of perplexity gained for each 1e15 FLOPs that a whole run costs '
  'more, and the FLOPs that a point costs; in brackets the 95% interval over seeds. e embedding, h hidden, i '
  'feed-forward, a heads, l layers, V vocabulary. Of several models of one shape the best stands for it; what '
  'else then differs is told.',
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
    ('undefined; resamples', lambda row: f'{row.degenerate:.1%}'),
  ),
  'Over models, with 95% intervals from resampled models; below 0, a lower loss goes with a higher score. '
  'Log-perplexity is the validation loss. “with untrained” adds each model before any training, '
  'whose loss is ln V, with its score from scratch.',
)
DEPTH_SUMMARY_FORMAT = TableFormat(
  2,
  (
    ('at like', lambda row: row.matched),
    ('compared', lambda row: row.compared),
    ('pairs', lambda row: str(len(row.differences))),
    ('deeper; is better', lambda row: str(row.better)),
    ('deeper less; shallower, mean', lambda row: f'{np.mean(row.differences):+.{row.digits}f}'),
  ),
  'Pairs of models of other depths whose parameters, or FLOPs of the whole run, are within 10% of each other. '
  'Differences are deeper less shallower.',
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
  """Returns the table of `ModelRow`s; `numbers` are those beside the points of figures, by run."""
  return TableFormat(
    2,
    (
      ('#', lambda row: str(numbers[row.name])),
      ('run', lambda row: row.name),
      ('e', lambda row: f'{row.embedding:,}'),
      ('h', lambda row: f'{row.hidden:,}'),
      ('i', lambda row: f'{row.feed_forward:,}'),
      ('a', lambda row: f'{row.heads:,}'),
      ('l', lambda row: f'{row.layers:,}'),
      ('V', lambda row: f'{row.vocabulary:,}'),
      ('head', lambda row: {True: 'tied', False: 'untied', None: NONE}[row.tied]),
      ('parameters', lambda row: f'{row.parameters:,}'),
      ('embedding', lambda row: f'{row.embedding_parameters:,}'),
      ('other', lambda row: f'{row.other_parameters:,}'),
      (
        'test; perplexity',
        lambda row: (
          NONE if row.test_loss is None else format_number(math.exp(row.test_loss), '.2f')
        ),
      ),
      ('test; loss', lambda row: format_number(row.test_loss, '.4f')),
      ('validation; loss', lambda row: f'{row.validation_loss:.4f}'),
      ('bits; per word', lambda row: format_number(row.bits_per_word, '.3f')),
      ('tokens', lambda row: f'{row.tokens:.2e}'),
      ('FLOPs,; paper', lambda row: format_number(row.honey_flops, '.3e')),
      ('FLOPs,; Kaplan', lambda row: format_number(row.kaplan_flops, '.3e')),
      ('FLOPs,; true', lambda row: format_number(row.actual_flops, '.3e')),
      ('state', lambda row: 'finished' if row.finished else 'unfinished'),
    ),
    'FLOPs of the whole run, counted three ways: by the formula of the first paper, as 6 N a token after Kaplan, '
    'and as the matrix products that the program runs. The losses are in nats a masked token.',
  )
