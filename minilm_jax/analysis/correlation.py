"""Correlates pre-training losses with downstream scores.

A model is a pre-training run with its scores. Its loss, the logarithm of the perplexity, is that of
the evaluation at the checkpoint. With V pieces, an untrained model has the loss ln V, which is the
loss of the arm from scratch.
"""

import bisect
import dataclasses
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from minilm_jax.analysis.loss_curves import LossCurve
from minilm_jax.analysis.runs import group_by, select_single, to_float
from minilm_jax.analysis.scores import Average, ScoreRow, describe_differences
from minilm_jax.tasks.metrics import CONFIDENCE, POWER, percentile_interval

MIN_MODELS = 4  # in a correlation; also the checkpoints of one run
# In a verdict. The exact test of 4 models never decides, and resamples decide too often below 6.
MIN_VERDICT_MODELS = 6
LOSS, BITS = 'log-perplexity', 'bits per word'
_MIN_UNEXPLAINED = 1e-9  # rounding of a correlation of 1


@dataclasses.dataclass(frozen=True)
class ScoredModel:
  """The loss of a model and its mean score over seeds in one series; nan if missing.

  Attributes:
    arm: equal for models that differ in their seeds of pre-training alone.
  """

  name: str
  loss: float
  bits: float
  untrained: float
  parameters: int
  score: float
  scratch: float
  low: float
  high: float
  arm: tuple[Any, ...]

  @property
  def gain(self) -> float:
    """Score pre-trained minus from scratch, with the interval from `low` to `high`."""
    return self.score - self.scratch


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A coefficient with its percentile interval over models; nan if a variable is constant."""

  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Correlation:
  """The correlation of a measure of pre-training with a score.

  A negative coefficient means that models with lower losses have higher scores.

  Attributes:
    series: name of the task or the average, with its protocol.
    from_scratch: each model also counts untrained, with its score from scratch.
    models: number of models, which are resampled. Runs that differ in their seeds alone are one
      model with their mean loss and score.
    partial: Spearman's coefficient at a constant number of parameters.
    degenerate: share of resamples with a constant variable, which the intervals leave out.
  """

  series: str
  measure: str
  from_scratch: bool
  models: int
  points: int
  pearson: Estimate
  spearman: Estimate
  kendall: Estimate
  partial: Estimate
  degenerate: float


@dataclasses.dataclass(frozen=True)
class TrainingCorrelation:
  """Spearman's coefficient of loss and score over the checkpoints of one run.

  It has no interval, because successive checkpoints are not independent.

  Attributes:
    series: name of the task or the average, with its protocol.
    spearman: nan if a variable is constant.
    low_loss, high_loss: range of the losses in nats.
    low_score, high_score: range of the scores.
  """

  series: str
  run: str
  checkpoints: int
  spearman: float
  low_loss: float
  high_loss: float
  low_score: float
  high_score: float


def match_scores(
  curves: Sequence[LossCurve], scores: Iterable[ScoreRow], averages: Iterable[Average]
) -> tuple[dict[str, list[ScoredModel]], list[str]]:
  """Returns the scored models by task and average, and the reasons for omissions.

  The loss of a model is that of the last evaluation up to the step of the checkpoint. Of several
  steps the last counts. Scores of different protocols are different series. A model with several
  rows in a series, of several learning rates, has no score there.
  """
  scored = _select_headlines(scores, averages)
  by_name = {curve.name: curve for curve in curves}
  left_out = [
    f'scores of {name or "a checkpoint without a name"}: the pre-training run is missing'
    for name in dict.fromkeys(row.checkpoint for row in scored)
    if name not in by_name
  ]
  models: dict[str, list[ScoredModel]] = {}
  for series, name, rows in _group_by_run(scored, by_name):
    last_step = max((row.step for row in rows if row.step is not None), default=None)
    last = [row for row in rows if row.step == last_step]
    if len(last) > 1:
      left_out.append(f'{series} of {name}: {len(last)} learning rates, of which none was chosen')
    else:
      models.setdefault(series, []).append(_score_model(by_name[name], last[0]))
  return models, left_out


def correlate_checkpoints(
  curves: Sequence[LossCurve], scores: Iterable[ScoreRow], averages: Iterable[Average]
) -> list[TrainingCorrelation]:
  """Returns the correlation of each run and series with `MIN_MODELS` scored checkpoints or more.

  A checkpoint with several rows in a series, of several learning rates, is left out.
  """
  by_name = {curve.name: curve for curve in curves}
  correlations = []
  for series, name, rows in _group_by_run(_select_headlines(scores, averages), by_name):
    trained = [row for row in rows if row.step is not None and math.isfinite(row.pretrained.mean)]
    by_step = select_single(group_by(trained, lambda row: row.step))
    scored = (_score_model(by_name[name], row) for row in by_step.values())
    models = [model for model in scored if math.isfinite(model.loss)]
    if len(models) < MIN_MODELS:
      continue
    losses, values = (
      np.array([[getattr(model, field) for model in models]]) for field in ('loss', 'score')
    )
    spearman = _compute_pearson(*(stats.rankdata(numbers, axis=1) for numbers in (losses, values)))
    ranges = (float(end) for numbers in (losses, values) for end in (numbers.min(), numbers.max()))
    correlations.append(TrainingCorrelation(series, name, len(models), float(spearman[0]), *ranges))
  return correlations


def _select_headlines(
  scores: Iterable[ScoreRow], averages: Iterable[Average]
) -> list[ScoreRow | Average]:
  return [*(row for row in scores if row.headline and row.shown), *averages]


def _group_by_run(
  scored: Sequence[ScoreRow | Average], names: Container[str]
) -> Iterator[tuple[str, str, list[ScoreRow | Average]]]:
  """Yields the rows of each series and each of the named runs."""
  known = [row for row in scored if row.checkpoint in names]
  differences = describe_differences(known, _name_series, ('train_examples', 'protocol'))
  named = [
    (', '.join(filter(None, (_name_series(row), difference))), row)
    for row, difference in zip(known, differences, strict=True)
  ]
  for series, pairs in group_by(named, lambda pair: pair[0]).items():
    for name, of_run in group_by((row for _, row in pairs), lambda row: row.checkpoint).items():
      yield series, name, of_run


def _name_series(row: ScoreRow | Average) -> str:
  if isinstance(row, ScoreRow):
    return f'{row.task_name}, {row.metric}, {row.split}'
  filtered = ' (filtered)' if row.filtered else ''
  return f'average of {", ".join(row.tasks)}{filtered}, {row.split}'


def _score_model(curve: LossCurve, row: ScoreRow | Average) -> ScoredModel:
  untrained = math.log(curve.shape.vocabulary)
  count = len(curve.updates) if row.step is None else bisect.bisect(curve.updates, row.step)
  loss, rows = (curve.loss[count - 1], curve.rows[count - 1]) if count else (untrained, 0)
  if not count and row.step:  # a checkpoint before the first evaluation has no known loss
    loss = math.nan
  is_last = count == len(curve.updates)  # bits are measured at the end
  return ScoredModel(
    name=curve.name,
    loss=loss,
    bits=to_float(curve.bits_per_word) if is_last else math.nan,
    untrained=untrained,
    parameters=curve.parameters,
    score=row.pretrained.mean,
    scratch=row.scratch.mean,
    low=row.difference.low,
    high=row.difference.high,
    arm=(curve.arm, rows),
  )


def correlate(
  models: Mapping[str, Sequence[ScoredModel]],
  vocabularies: int = 1,
  draws: int = 1000,
  seed: int = 0,
) -> tuple[list[Correlation], list[str]]:
  """Returns the correlations of every series with enough models, and the reasons for omissions.

  Args:
    vocabularies: number of vocabularies; losses of different vocabularies are not comparable.
  """
  correlations, left_out = [], []
  for series, series_models in models.items():
    for measure in (LOSS, BITS):
      measured = [
        model
        for model in series_models
        if math.isfinite(model.score)
        and math.isfinite(model.loss if measure == LOSS else model.bits)
      ]
      if measure == BITS and not measured:
        continue
      arms = _average_arms(measured)
      if len(arms) < MIN_MODELS:
        left_out.append(f'{series} against {measure}: {len(arms)} models, fewer than {MIN_MODELS}')
      elif measure == LOSS and vocabularies > 1:
        left_out.append(
          f'{series} against {measure}: losses of {vocabularies} vocabularies are not comparable'
        )
      else:
        correlations.append(_correlate_series(series, measure, arms, False, draws, seed))
        paired = _average_arms(model for model in measured if math.isfinite(model.scratch))
        if measure == LOSS and len(paired) >= MIN_MODELS:
          correlations.append(_correlate_series(series, measure, paired, True, draws, seed))
  return correlations, left_out


def _average_arms(models: Iterable[ScoredModel]) -> list[ScoredModel]:
  """Returns one model for each arm, because seeds of one recipe are no independent models."""
  fields = ('loss', 'bits', 'score', 'scratch')
  return [
    dataclasses.replace(
      arm[0],
      **{field: float(np.mean([getattr(model, field) for model in arm])) for field in fields},
    )
    for arm in group_by(models, lambda model: model.arm).values()
  ]


def smallest_detectable_coefficient(models: int) -> float:
  """Returns the smallest absolute correlation that a test at 5% finds with a power of 80%.

  By Fisher's transformation, with a standard error of 1 / sqrt(n - 3); 1 below four models. The
  power is 83 to 84% for 10 to 14 models and normally distributed variables.

  >>> round(smallest_detectable_coefficient(14), 2)
  0.69
  """
  if models < 4:
    return 1.0
  quantiles = stats.norm.ppf([(1 + CONFIDENCE) / 2, POWER])
  return math.tanh(quantiles.sum() / math.sqrt(models - 3))


def _correlate_series(
  series: str,
  measure: str,
  models: Sequence[ScoredModel],
  from_scratch: bool,
  draws: int,
  seed: int,
) -> Correlation:
  states = 2 if from_scratch else 1  # trained, and untrained
  x = np.array(
    [[model.loss if measure == LOSS else model.bits, model.untrained][:states] for model in models]
  )
  y = np.array([[model.score, model.scratch][:states] for model in models])
  size = np.array([[model.parameters] * states for model in models], float)
  drawn = np.random.default_rng(seed).integers(len(models), size=(draws, len(models)))
  values = compute_coefficients(*(values.reshape(1, -1) for values in (x, y, size)))[:, 0]
  resampled = compute_coefficients(*(values[drawn].reshape(draws, -1) for values in (x, y, size)))
  estimates = []
  for value, drawn_values in zip(values, resampled, strict=True):
    finite = drawn_values[np.isfinite(drawn_values)]
    has_interval = np.isfinite(value) and finite.size
    interval = percentile_interval(finite) if has_interval else (math.nan, math.nan)
    estimates.append(Estimate(float(value), *interval))
  return Correlation(
    series,
    measure,
    from_scratch,
    len(models),
    y.size,
    *estimates,
    degenerate=float(1 - np.isfinite(resampled[0]).mean()),
  )


def compute_coefficients(
  x: Float[np.ndarray, 'S N'], y: Float[np.ndarray, 'S N'], size: Float[np.ndarray, 'S N']
) -> Float[np.ndarray, '4 S']:
  """Returns four coefficients of each of S samples; nan if a variable is constant.

  They are those of Pearson, Spearman and Kendall (tau-b), and Spearman's partial coefficient at a
  constant size. The partial coefficient is also nan if the size determines x or y.
  """
  x_ranks, y_ranks, size_ranks = (stats.rankdata(values, axis=1) for values in (x, y, size))
  spearman = _compute_pearson(x_ranks, y_ranks)
  x_size, y_size = (_compute_pearson(ranks, size_ranks) for ranks in (x_ranks, y_ranks))
  unexplained = np.sqrt((1 - x_size**2) * (1 - y_size**2))
  partial = np.divide(
    spearman - x_size * y_size,
    unexplained,
    out=np.full_like(spearman, np.nan),
    where=unexplained > _MIN_UNEXPLAINED,
  )
  return np.stack([_compute_pearson(x, y), spearman, _compute_kendall(x, y), partial])


def _compute_pearson(
  x: Float[np.ndarray, 'S N'], y: Float[np.ndarray, 'S N']
) -> Float[np.ndarray, 'S']:
  is_constant = (np.ptp(x, 1) == 0) | (np.ptp(y, 1) == 0)
  dx, dy = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
  norm = np.where(is_constant, 1, np.sqrt((dx**2).sum(1) * (dy**2).sum(1)))
  return np.where(is_constant, np.nan, np.clip((dx * dy).sum(1) / norm, -1, 1))


def _compute_kendall(
  x: Float[np.ndarray, 'S N'], y: Float[np.ndarray, 'S N']
) -> Float[np.ndarray, 'S']:
  i, j = np.triu_indices(x.shape[1], 1)
  x_signs, y_signs = (np.sign(values[:, i] - values[:, j]) for values in (x, y))
  norm = np.sqrt((x_signs**2).sum(1) * (y_signs**2).sum(1))
  return np.divide((x_signs * y_signs).sum(1), norm, out=np.full(len(x), np.nan), where=norm > 0)
