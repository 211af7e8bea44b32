"""Do pre-training losses tell downstream scores? Correlations over models, and depth at matched
size or compute.

A model is one pre-training run with the scores that were fine-tuned, or evaluated, from it. Its
loss, the logarithm of its perplexity, is that of the evaluation the checkpoint was taken at. An
untrained model of V pieces has a loss of ln V: that is where the arm from scratch stands.
Correlation is no cause, and a few models decide little: see the intervals.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from minilm_jax.analysis.loss_curves import ACTUAL, HONEY, LossCurve
from minilm_jax.analysis.scores import Average, ScoreRow
from minilm_jax.tasks.metrics import CONFIDENCE

MIN_MODELS = 4  # models, below which nothing is said
LOSS, BITS = 'log-perplexity', 'bits per word'
_MAX_RELATIVE_DIFFERENCE = 0.1  # sizes or costs that differ by less are matched


@dataclasses.dataclass(frozen=True)
class ScoredModel:
  """What one model says about one series of scores: shares or correlations, a mean over seeds; nan
  where none is.
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


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A coefficient with its percentile interval over resampled models; nan where a side is constant."""

  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Correlation:
  """How a measure of pre-training goes with a score; negative where a lower loss goes with a higher
  score.

  Attributes:
    series: the task, or the average, and its protocol.
    measure: LOSS or BITS.
    from_scratch: do untrained models count too, each beside its pre-trained one?
    models, points: that the coefficients are over; models are what is resampled.
    degenerate: share of resamples with a constant side, which say nothing and are left out of the
      intervals.
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

  `ratio` is that of what is matched, deeper over shallower; `series` is empty where there are no
  scores.
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
  """The models of each task's headline and of each average, and what was left out, with the reason.

  A row belongs to the curve of the name of its checkpoint, at its step: the loss is that of the
  last evaluation until there. Of several steps the last counts. A task of which a model has several
  rows, which are protocols or rates that nothing chose between, is left out for that model.

  Args:
    curves: of pre-training runs.
    scores: of `scores.score_table`.
    averages: of `averages.averages`.
  """
  by_name = {curve.name: curve for curve in curves}
  rows: dict[str, dict[str, list[ScoreRow | Average]]] = {}
  unknown: dict[str, None] = {}
  for row in [*(row for row in scores if row.headline and row.shown), *averages]:
    if row.checkpoint in by_name:
      rows.setdefault(_series(row), {}).setdefault(row.checkpoint, []).append(row)
    else:
      unknown[row.checkpoint] = None
  left_out = [
    f'scores of {name or "a checkpoint without a name"}: its pre-training is not among these runs'
    for name in unknown
  ]
  found: dict[str, list[ScoredModel]] = {}
  for series, of in rows.items():
    for name, own in of.items():
      last = max(-1 if row.step is None else row.step for row in own)
      own = [row for row in own if (-1 if row.step is None else row.step) == last]
      if len(own) > 1:
        left_out.append(f'{series} of {name}: {len(own)} rows that nothing chose between')
      else:
        found.setdefault(series, []).append(_model(by_name[name], own[0]))
  return found, left_out


def _series(row: ScoreRow | Average) -> str:
  filtered = ' (filtered)' if row.filtered else ''
  if isinstance(row, Average):
    return f'average of {", ".join(row.tasks)}{filtered}, {row.split}'
  return f'{row.task}{filtered}, {row.metric}, {row.split}'


def _model(curve: LossCurve, row: ScoreRow | Average) -> ScoredModel:
  seen = [
    loss
    for step, loss in zip(curve.updates, curve.loss, strict=True)
    if row.step is None or step <= row.step
  ]
  bits = (
    curve.bits_per_word if row.step is None or row.step >= curve.updates[-1] else None
  )  # taken at the end
  return ScoredModel(
    curve.name,
    seen[-1] if seen else math.log(curve.shape.vocabulary),
    math.nan if bits is None else bits,
    math.log(curve.shape.vocabulary),
    curve.parameters,
    row.pretrained.mean,
    row.scratch.mean,
    row.difference.low,
    row.difference.high,
  )


def correlate(
  found: Mapping[str, Sequence[ScoredModel]],
  vocabularies: int = 1,
  draws: int = 1000,
  seed: int = 0,
) -> tuple[list[Correlation], list[str]]:
  """The correlations of every series that enough models have, and what was left out, with the
  reason.

  Args:
    found: of `models`.
    vocabularies: how many different ones the models have: losses a token over several cannot be
      compared.
    draws: resamples of the models.
    seed: of the resampling.
  """
  made, left_out = [], []
  for series, own in found.items():
    for measure in (LOSS, BITS):
      known = [
        model
        for model in own
        if math.isfinite(model.score)
        and math.isfinite(model.loss if measure == LOSS else model.bits)
      ]
      if measure == BITS and not known:
        continue
      if len(known) < MIN_MODELS:
        left_out.append(
          f'{series} against {measure}: {len(known)} models, and fewer than {MIN_MODELS} say nothing'
        )
      elif measure == LOSS and vocabularies > 1:
        left_out.append(
          f'{series} against {measure}: losses a token over {vocabularies} vocabularies do not compare'
        )
      else:
        made.append(_correlation(series, measure, known, False, draws, seed))
        both = [model for model in known if math.isfinite(model.scratch)]
        if measure == LOSS and len(both) >= MIN_MODELS:
          made.append(_correlation(series, measure, both, True, draws, seed))
  return made, left_out


def _correlation(
  series: str, measure: str, known: Sequence[ScoredModel], scratch: bool, draws: int, seed: int
) -> Correlation:
  x = np.array(
    [[model.loss if measure == LOSS else model.bits, model.untrained] for model in known]
  )
  y = np.array([[model.score, model.scratch] for model in known])
  if not scratch:
    x, y = x[:, :1], y[:, :1]
  drawn = np.random.default_rng(seed).integers(len(known), size=(draws, len(known)))
  whole = compute_coefficients(x.reshape(1, -1), y.reshape(1, -1))
  resampled = compute_coefficients(x[drawn].reshape(draws, -1), y[drawn].reshape(draws, -1))
  defined = np.isfinite(resampled[0])
  estimates = []
  for value, values in zip(whole, resampled, strict=True):
    ends = [math.nan] * 2
    if np.isfinite(value[0]) and defined.any():
      ends = np.quantile(values[defined], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    estimates.append(Estimate(float(value[0]), *ends))
  return Correlation(
    series, measure, scratch, len(known), y.size, *estimates, float(1 - defined.mean())
  )


def compute_coefficients(
  x: Float[np.ndarray, 'S N'], y: Float[np.ndarray, 'S N']
) -> Float[np.ndarray, '3 S']:
  """Pearson's, Spearman's and Kendall's (tau-b) coefficients of each of S samples; nan where a side
  is constant.
  """
  ranks = [stats.rankdata(side, axis=1) for side in (x, y)]
  return np.stack([_pearson(x, y), _pearson(*ranks), _kendall(x, y)])


def _pearson(x: Float[np.ndarray, 'S N'], y: Float[np.ndarray, 'S N']) -> Float[np.ndarray, 'S']:
  constant = (np.ptp(x, 1) == 0) | (np.ptp(y, 1) == 0)
  dx, dy = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
  below = np.sqrt((dx**2).sum(1) * (dy**2).sum(1))
  return np.where(constant, np.nan, np.clip((dx * dy).sum(1) / np.where(constant, 1, below), -1, 1))


def _kendall(x: Float[np.ndarray, 'S N'], y: Float[np.ndarray, 'S N']) -> Float[np.ndarray, 'S']:
  one, two = np.triu_indices(x.shape[1], 1)
  signs = [np.sign(side[:, one] - side[:, two]) for side in (x, y)]
  below = np.sqrt((signs[0] ** 2).sum(1) * (signs[1] ** 2).sum(1))
  return np.divide(
    (signs[0] * signs[1]).sum(1), below, out=np.full(len(x), np.nan), where=below > 0
  )


def compare_depths(
  curves: Sequence[LossCurve], found: Mapping[str, Sequence[ScoredModel]]
) -> list[Depth]:
  """Pairs of models of other depths whose parameters, or FLOPs of the whole run, are within 10%:
  deeper less shallower.

  Both have ended, over one vocabulary. FLOPs are the true ones where both runs have them, else the
  paper's count. The loss is that of the last evaluation.
  """
  scores = {series: {model.name: model.score for model in own} for series, own in found.items()}
  made = []
  ended = sorted(
    (curve for curve in curves if curve.finished),
    key=lambda curve: (curve.shape.layers, curve.name),
  )
  for place, shallow in enumerate(ended):
    for deep in ended[place + 1 :]:
      if (
        deep.shape.layers == shallow.shape.layers
        or deep.shape.vocabulary != shallow.shape.vocabulary
      ):
        continue
      for matched, ratio in _ratios(shallow, deep).items():
        if not 1 - _MAX_RELATIVE_DIFFERENCE <= min(ratio, 1 / ratio):
          continue
        both = {
          series: of for series, of in scores.items() if shallow.name in of and deep.name in of
        }
        common = (
          shallow.name,
          deep.name,
          shallow.shape.layers,
          deep.shape.layers,
          matched,
          ratio,
          deep.loss[-1] - shallow.loss[-1],
        )
        made += [
          Depth(*common, series, of[deep.name] - of[shallow.name]) for series, of in both.items()
        ] or [Depth(*common, '', math.nan)]
  return made


def _ratios(shallow: LossCurve, deep: LossCurve) -> dict[str, float]:
  count = ACTUAL if ACTUAL in shallow.flops_per_row and ACTUAL in deep.flops_per_row else HONEY
  return {
    'parameters': deep.parameters / shallow.parameters,
    'FLOPs': float(deep.flops(count)[-1] / shallow.flops(count)[-1]),
  }
