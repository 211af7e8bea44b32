"""From tracks and scores to all that a report says about a grid: findings, tables for files, figures.

What each part needs is decided here, and a part that lacks it is left out with the reason. Writing is left to
`report.py`, looks to `grid_page.py` and `grid_figures.py`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minilm_jax.analysis import correlation, cost, grid_cells, grid_figures, grid_fits, laws, study
from minilm_jax.analysis.averages import Average
from minilm_jax.analysis.correlation import Correlation, Depth
from minilm_jax.analysis.cost import Step
from minilm_jax.analysis.frontier import Point
from minilm_jax.analysis.grid_cells import ModelRow
from minilm_jax.analysis.grid_figures import FigureWithTooltips, FittedLine
from minilm_jax.analysis.grid_page import Findings
from minilm_jax.analysis.scores import ScoreRow
from minilm_jax.analysis.study import ScalingStudy
from minilm_jax.analysis.tracks import HONEY, LossCurve
from minilm_jax.errors import InputError

MIN_MODELS = 2  # models that make a grid
_MAX_DRAWS = 1_000_000
_MAX_PANELS = 12  # of a figure; more are in the table alone
_MIN_BIC_DIFFERENCE = 2  # of BIC: less decides nothing between two forms


def find(
  tracks: Sequence[LossCurve],
  scores: Iterable[ScoreRow],
  means: Sequence[Average],
  left_out: Sequence[str],
  failed: Mapping[str, str],
  draws: int = 1000,
  unfinished: bool = False,
) -> Findings:
  """All that the tracks and the scores allow.

  Args:
    tracks: of pre-training runs.
    scores, means: rows of scores and of averages, which may be of other checkpoints too.
    left_out: what has no track, and why.
    failed: points of a sweep that came to nothing, and why.
    draws: resamples for each interval.
    unfinished: do runs that have not reached the end of their schedule count in the laws?

  Raises:
    InputError: no draws.
  """
  if not 1 <= draws <= _MAX_DRAWS:
    found = (
      'nothing to take percentiles of'
      if draws < 1
      else f'more than {_MAX_DRAWS:,}, which would take days'
    )
    raise InputError(f'intervals from {draws} draws', found, 'give --bootstrap_samples=1000')
  tracks = sorted(
    tracks,
    key=lambda track: (track.flops(HONEY)[-1] if HONEY in track.flops_per_row else 0, track.name),
  )
  numbers = {track.name: number for number, track in enumerate(tracks, 1)}
  left_out = list(left_out)
  if len(tracks) < MIN_MODELS:
    if tracks or left_out:
      count = 'one model' if tracks else 'no model'
      left_out.append(f'the study of a grid: {count} was evaluated, and it needs {MIN_MODELS}')
    return Findings(tracks, numbers, None, [], [], {}, [], [], left_out, failed)
  models, reasons = correlation.models(tracks, scores, means)
  left_out += reasons
  by_name = {track.name: track.shape.vocabulary for track in tracks}
  vocabularies = len({by_name[model.name] for of in models.values() for model in of})
  correlations, reasons = correlation.correlations(models, vocabularies, draws)
  left_out += reasons
  steps, options = cost.steps(tracks, draws), cost.plane(tracks, draws)
  if not options:
    left_out.append('cost-effectiveness, and depth: no run has reached the end of its schedule')
  elif not steps:
    left_out.append(
      'steps of cost-effectiveness: no two finished models differ in one factor alone'
    )
  if not models:
    left_out.append('perplexity against scores: no scores of these models')
  return Findings(
    tracks,
    numbers,
    study.study(tracks, draws, unfinished=unfinished),
    steps,
    options,
    models,
    correlations,
    correlation.depths(tracks, models),
    left_out,
    failed,
  )


def tables(found: Findings) -> dict[str, tuple[type, Sequence[Any]]]:
  """The kind and the rows of each table, by the name of its file."""
  if found.study is None:
    return {}
  return {
    'frontier.csv': (Point, found.study.frontier),
    'cost.csv': (Step, found.steps),
    'correlation.csv': (Correlation, found.correlations),
    'depth.csv': (Depth, found.depths),
    'models.csv': (ModelRow, [grid_cells.model_row(track) for track in found.tracks]),
  }


def figures(found: Findings) -> Iterator[tuple[str, FigureWithTooltips]]:
  """The figures that have something to show, by the name of their files."""
  if found.study is None:
    return
  yield 'compute', _compute(found.tracks, found.study)
  if found.options:
    yield 'plane', grid_figures.plane(found.options, found.numbers)
  scored = {
    name: of
    for name, of in found.models.items()
    if sum(math.isfinite(model.score) for model in of) > 1
  }
  if scored:
    notes = {
      one.series: f'ρ {one.spearman.value:+.2f}'
      for one in found.correlations
      if one.measure == correlation.LOSS
      and not one.from_scratch
      and math.isfinite(one.spearman.value)
    }
    yield 'against', grid_figures.scores(_first(scored), found.numbers, notes)
  gains = {
    name: of
    for name, of in found.models.items()
    if sum(math.isfinite(model.score - model.scratch) for model in of) > 1
  }
  if gains:
    yield 'gain', grid_figures.gain(_first(gains), found.numbers)


def _first(series: Mapping[str, Any]) -> dict[str, Any]:
  return dict(list(series.items())[:_MAX_PANELS])


def _compute(tracks: Sequence[LossCurve], found: ScalingStudy) -> FigureWithTooltips:
  """Loss against compute with the one law of the whole frontier and, where they fit better, the two that part."""
  whole = {
    fit.form: fit
    for fit in found.fits
    if fit.name == grid_fits.FRONTIER and fit.method == laws.LOGS
  }
  shown = [whole[form] for form in (laws.PIECES, laws.POWER) if form in whole]
  if len(shown) > 1 and shown[1].bic - shown[0].bic <= _MIN_BIC_DIFFERENCE:
    shown = shown[1:]
  lines = []
  for fit in shown:
    flops = np.geomspace(fit.low, fit.high, 400)
    loss = laws.predict(fit, flops)
    if fit.form == laws.PIECES:  # they need not meet: a gap is honest
      at = int(np.searchsorted(flops, fit.constants['C0']))
      flops, loss = np.insert(flops, at, fit.constants['C0']), np.insert(loss, at, np.nan)
      name = f'two laws, C^-{fit.constants["b1"]:.3f} and C^-{fit.constants["b2"]:.3f}'
    else:
      name = f'one law, C^-{fit.constants["b"]:.3f}'
    lines.append(FittedLine(name, flops, loss))
  breaks = None
  if laws.PIECES in {fit.form for fit in shown} and found.split is not None:
    breaks = (found.split, *(found.split_interval or (math.nan, math.nan)))
  return grid_figures.compute(tracks, found.frontier, lines, breaks, found.count)
