"""Correlations of pre-training losses with downstream scores over models, and depth at matched size
or compute.

A model is one pre-training run with the scores that were fine-tuned, or evaluated, from it. Its
loss, the logarithm of its perplexity, is that of the evaluation at the checkpoint. An untrained
model of V pieces has a loss of ln V: that is the loss of the arm from scratch. Correlation is not
causation, and few models give wide intervals.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from minilm_jax.analysis.loss_curves import ACTUAL, HONEY, LossCurve
from minilm_jax.analysis.scores import Average, ScoreRow
from minilm_jax.tasks.metrics import CONFIDENCE

MIN_MODELS = 4  # of a correlation
LOSS, BITS = 'log-perplexity', 'bits per word'
_MAX_RELATIVE_DIFFERENCE = 0.1  # of matched sizes or costs


@dataclasses.dataclass(frozen=True)
class ScoredModel:
  """The loss of one model and its mean score over seeds in one series; nan if missing."""

  name: str
  loss: float
  bits: float
  untrained: float
  parameters: int
  score: float
  scratch: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A coefficient with its percentile interval over resampled models; nan where a side is constant."""

  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Correlation:
  """The correlation of a measure of pre-training with a score; negative if a lower loss comes with a
  higher score.

  Attributes:
    series: the task, or the average, and its protocol.
    measure: LOSS or BITS.
    from_scratch: do untrained models count too, each beside its pre-trained one?
    models, points: of the coefficients; models are resampled.
    degenerate: share of resamples with a constant side, left out of the intervals.
  """

  series: str
  measure: str
  from_scratch: bool
  models: int
  points: int
  pearson: Estimate
  spearman: Estimate
  kendall: Estimate
  degenerate: float


@dataclasses.dataclass(frozen=True)
class Depth:
  """A deeper model less a shallower one of like size or cost; scores are shares, `losses` nats on
  the validation split.

  `ratio` is that of the matched quantity, deeper over shallower; `series` is empty without scores.
  """

  shallow: str
  deep: str
  shallow_layers: int
  deep_layers: int
  matched: str
  ratio: float
  loss: float
  series: str
  score: float


def match_scores(
  curves: Sequence[LossCurve], scores: Iterable[ScoreRow], averages: Iterable[Average]
) -> tuple[dict[str, list[ScoredModel]], list[str]]:
  """Returns the models of each task's headline and of each average, and the reasons for omissions.

  A row belongs to the curve of the name of its checkpoint, at its step: the loss is that of the last
  evaluation until there. Of several steps the last counts. A task of which a model has several rows,
  which are protocols or rates that nothing chose between, is left out for that model.

  Args:
    curves: of pre-training runs.
    scores: of `scores.score_table`.
    averages: of `scores.average_tasks`.
  """
  by_name = {curve.name: curve for curve in curves}
  by_series: dict[str, dict[str, list[ScoreRow | Average]]] = {}
  unknown: dict[str, None] = {}
  for row in [*(row for row in scores if row.headline and row.shown), *averages]:
    if row.checkpoint in by_name:
      by_series.setdefault(_name_series(row), {}).setdefault(row.checkpoint, []).append(row)
    else:
      unknown[row.checkpoint] = None
  left_out = [
    f'scores of {name or "a checkpoint without a name"}: its pre-training is not among these runs'
    for name in unknown
  ]
  models: dict[str, list[ScoredModel]] = {}
  for series, by_checkpoint in by_series.items():
    for name, rows in by_checkpoint.items():
      steps = [-1 if row.step is None else row.step for row in rows]
      last = [row for row, step in zip(rows, steps, strict=True) if step == max(steps)]
      if len(last) > 1:
        left_out.append(f'{series} of {name}: {len(last)} rows that nothing chose between')
      else:
        models.setdefault(series, []).append(_score_model(by_name[name], last[0]))
  return models, left_out


def _name_series(row: ScoreRow | Average) -> str:
  filtered = ' (filtered)' if row.filtered else ''
  if isinstance(row, Average):
    return f'average of {", ".join(row.tasks)}{filtered}, {row.split}'
  return f'{row.task}{filtered}, {row.metric}, {row.split}'


def _score_model(curve: LossCurve, row: ScoreRow | Average) -> ScoredModel:
  untrained = math.log(curve.shape.vocabulary)
  losses = [
    loss
    for step, loss in zip(curve.updates, curve.loss, strict=True)
    if row.step is None or step <= row.step
  ]
  is_last = row.step is None or row.step >= curve.updates[-1]  # bits are measured at the end
  return ScoredModel(
    name=curve.name,
    loss=losses[-1] if losses else untrained,
    bits=curve.bits_per_word if is_last and curve.bits_per_word is not None else math.nan,
    untrained=untrained,
    parameters=curve.parameters,
    score=row.pretrained.mean,
    scratch=row.scratch.mean,
    low=row.difference.low,
    high=row.difference.high,
  )


def correlate(
  models: Mapping[str, Sequence[ScoredModel]],
  vocabularies: int = 1,
  draws: int = 1000,
  seed: int = 0,
) -> tuple[list[Correlation], list[str]]:
  """Returns the correlations of every series with enough models, and the reasons for omissions.

  Args:
    models: of `match_scores`.
    vocabularies: number of different ones: losses a token over several do not compare.
    draws: resamples of the models.
    seed: of the resampling.
  """
  correlations, left_out = [], []
  for series, of_series in models.items():
    for measure in (LOSS, BITS):
      measured = [
        model
        for model in of_series
        if math.isfinite(model.score)
        and math.isfinite(model.loss if measure == LOSS else model.bits)
      ]
      if measure == BITS and not measured:
        continue
      if len(measured) < MIN_MODELS:
        left_out.append(
          f'{series} against {measure}: {len(measured)} models, and fewer than {MIN_MODELS} say nothing'
        )
      elif measure == LOSS and vocabularies > 1:
        left_out.append(
          f'{series} against {measure}: losses a token over {vocabularies} vocabularies do not compare'
        )
      else:
        correlations.append(_correlate_series(series, measure, measured, False, draws, seed))
        both = [model for model in measured if math.isfinite(model.scratch)]
        if measure == LOSS and len(both) >= MIN_MODELS:
          correlations.append(_correlate_series(series, measure, both, True, draws, seed))
  return correlations, left_out


def _correlate_series(
  series: str,
  measure: str,
  models: Sequence[ScoredModel],
  from_scratch: bool,
  draws: int,
  seed: int,
) -> Correlation:
  x = np.array(
    [[model.loss if measure == LOSS else model.bits, model.untrained] for model in models]
  )
  y = np.array([[model.score, model.scratch] for model in models])
  if not from_scratch:
    x, y = x[:, :1], y[:, :1]
  drawn = np.random.default_rng(seed).integers(len(models), size=(draws, len(models)))
  values = compute_coefficients(x.reshape(1, -1), y.reshape(1, -1))[:, 0]
  resampled = compute_coefficients(x[drawn].reshape(draws, -1), y[drawn].reshape(draws, -1))
  is_defined = np.isfinite(resampled[0])
  estimates = []
  for value, of_draws in zip(values, resampled, strict=True):
    low = high = math.nan
    if np.isfinite(value) and is_defined.any():
      ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
      low, high = np.quantile(of_draws[is_defined], ends).tolist()
    estimates.append(Estimate(float(value), low, high))
  pearson, spearman, kendall = estimates
  return Correlation(
    series=series,
    measure=measure,
    from_scratch=from_scratch,
    models=len(models),
    points=y.size,
    pearson=pearson,
    spearman=spearman,
    kendall=kendall,
    degenerate=float(1 - is_defined.mean()),
  )


def compute_coefficients(
  x: Float[np.ndarray, 'S N'], y: Float[np.ndarray, 'S N']
) -> Float[np.ndarray, '3 S']:
  """Returns Pearson's, Spearman's and Kendall's (tau-b) coefficients of each of S samples; nan if a
  side is constant.
  """
  x_ranks, y_ranks = (stats.rankdata(side, axis=1) for side in (x, y))
  return np.stack([_pearson(x, y), _pearson(x_ranks, y_ranks), _kendall(x, y)])


def _pearson(x: Float[np.ndarray, 'S N'], y: Float[np.ndarray, 'S N']) -> Float[np.ndarray, 'S']:
  is_constant = (np.ptp(x, 1) == 0) | (np.ptp(y, 1) == 0)
  dx, dy = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
  norm = np.where(is_constant, 1, np.sqrt((dx**2).sum(1) * (dy**2).sum(1)))
  return np.where(is_constant, np.nan, np.clip((dx * dy).sum(1) / norm, -1, 1))


def _kendall(x: Float[np.ndarray, 'S N'], y: Float[np.ndarray, 'S N']) -> Float[np.ndarray, 'S']:
  i, j = np.triu_indices(x.shape[1], 1)
  x_signs, y_signs = (np.sign(side[:, i] - side[:, j]) for side in (x, y))
  norm = np.sqrt((x_signs**2).sum(1) * (y_signs**2).sum(1))
  return np.divide((x_signs * y_signs).sum(1), norm, out=np.full(len(x), np.nan), where=norm > 0)


def compare_depths(
  curves: Sequence[LossCurve], models: Mapping[str, Sequence[ScoredModel]]
) -> list[Depth]:
  """Returns pairs of models of different depths whose parameters, or FLOPs of the whole run, are
  within 10%: deeper less shallower.

  Both runs have ended, over one vocabulary. FLOPs are the actual ones if both runs have them, else
  the paper's count. The loss is that of the last evaluation.
  """
  scores = {
    series: {model.name: model.score for model in of_series} for series, of_series in models.items()
  }
  depths = []
  for shallow, deep in _pair_depths(curves):
    common_scores = {
      series: by_name[deep.name] - by_name[shallow.name]
      for series, by_name in scores.items()
      if shallow.name in by_name and deep.name in by_name
    } or {'': math.nan}
    for matched, ratio in _compute_ratios(shallow, deep).items():
      if min(ratio, 1 / ratio) < 1 - _MAX_RELATIVE_DIFFERENCE:
        continue
      depths += [
        Depth(
          shallow=shallow.name,
          deep=deep.name,
          shallow_layers=shallow.shape.layers,
          deep_layers=deep.shape.layers,
          matched=matched,
          ratio=ratio,
          loss=deep.loss[-1] - shallow.loss[-1],
          series=series,
          score=score,
        )
        for series, score in common_scores.items()
      ]
  return depths


def _pair_depths(curves: Sequence[LossCurve]) -> Iterator[tuple[LossCurve, LossCurve]]:
  finished = sorted(
    (curve for curve in curves if curve.finished),
    key=lambda curve: (curve.shape.layers, curve.name),
  )
  for index, shallow in enumerate(finished):
    for deep in finished[index + 1 :]:
      is_deeper = deep.shape.layers != shallow.shape.layers
      if is_deeper and deep.shape.vocabulary == shallow.shape.vocabulary:
        yield shallow, deep


def _compute_ratios(shallow: LossCurve, deep: LossCurve) -> dict[str, float]:
  have_actual = ACTUAL in shallow.flops_per_row and ACTUAL in deep.flops_per_row
  count = ACTUAL if have_actual else HONEY
  return {
    'parameters': deep.parameters / shallow.parameters,
    'FLOPs': float(deep.flops(count)[-1] / shallow.flops(count)[-1]),
  }
