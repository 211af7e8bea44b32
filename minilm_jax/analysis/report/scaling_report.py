"""The study of a grid of models in a report: question, answer, figures and tables.

The numbers come from `scaling_study`, `cost_effectiveness` and `correlation`.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minilm_jax.analysis import (
  correlation,
  cost_effectiveness,
  power_laws,
  scaling_fits,
  scaling_study,
)
from minilm_jax.analysis.correlation import LOSS, Correlation, Depth, ScoredModel
from minilm_jax.analysis.cost_effectiveness import Option, Step
from minilm_jax.analysis.frontier import Point
from minilm_jax.analysis.loss_curves import HONEY, LossCurve
from minilm_jax.analysis.report import scaling_figures, tables
from minilm_jax.analysis.report.scaling_figures import FigureWithTooltips, FittedLine
from minilm_jax.analysis.report.sections import Picture, Section, Table, TableFormat, as_csv
from minilm_jax.analysis.report.tables import ModelRow, format_estimate, format_gain, model_row
from minilm_jax.analysis.scaling_study import ScalingStudy
from minilm_jax.analysis.scores import Average, ScoreRow
from minilm_jax.core.errors import InputError

QUESTION = (
  'How do loss, compute, shape and score hang together in these {n} models, and what does it pay to make '
  'larger?'
)
COMPUTE = (
  'Each faint curve is a run, by its layers; dots are the frontier of the first paper, the lowest loss in '
  'each bin of compute; lines are laws fitted to it; the band is the 95% interval of the break. Point at '
  'anything to read what it is.'
)
PLANE = (
  'Every model by the FLOPs of its whole run. Hollow: another costs no more and is no worse. Numbers are those '
  'of the table of models.'
)
SCORES = 'Numbers are those of the table of models; ρ is Spearman’s.'
GAIN = 'Scores pre-trained less from scratch, with the 95% interval over seeds.'


@dataclasses.dataclass(frozen=True)
class Findings:
  """All that is said about a grid; `failed` are points of a sweep that came to nothing, with the
  reason.

  `numbers` are those of the table of models, by run; `study` is None where there are not two
  models.
  """

  tracks: Sequence[LossCurve]
  numbers: Mapping[str, int]
  study: ScalingStudy | None
  steps: Sequence[Step]
  options: Sequence[Option]
  models: Mapping[str, Sequence[ScoredModel]]
  correlations: Sequence[Correlation]
  depths: Sequence[Depth]
  left_out: Sequence[str]
  failed: Mapping[str, str]


def opening(findings: Findings) -> tuple[str, str]:
  """Returns the question, and the answer in one paragraph; both are '' without a study."""
  if findings.study is None:
    return '', ''
  answer = [
    *findings.study.sentences,
    *_of_steps(findings.steps),
    *_of_correlations(findings.correlations),
  ]
  return QUESTION.format(n=len(findings.tracks)), ' '.join(answer)


def _of_steps(steps: Sequence[Step]) -> Iterator[str]:
  """What 1e15 FLOPs buy by each factor, on from or up to the model that most of them share: others
  do not compare.
  """
  found: dict[tuple[str, str], dict[str, Step]] = {}
  for step in steps:
    if math.isfinite(step.per_1e15):
      for way, name in (('on from', step.from_runs[0]), ('up to', step.to_runs[0])):
        found.setdefault((way, name), {})[step.factor.replace('_', '-')] = step
  (way, name), gains = max(found.items(), key=lambda item: len(item[1]), default=(('', ''), {}))
  if len(gains) > 1:
    ranked = sorted(gains.items(), key=lambda item: -item[1].per_1e15)
    told = ', '.join(
      f'{format_gain(step.per_1e15)} by {factor}' + (f' ({step.also})' if step.also else '')
      for factor, step in ranked
    )
    yield f'One step {way} {name}, points of perplexity gained for 1e15 FLOPs more: {told}.'


def _of_correlations(correlations: Sequence[Correlation]) -> Iterator[str]:
  """The rank correlation of each average, or of the one task there is, with the loss."""
  of_loss = [one for one in correlations if one.measure == LOSS and not one.from_scratch]
  shown = [one for one in of_loss if one.series.startswith('average')][:1] or of_loss[:1]
  for one in shown:
    yield (
      f'Over {one.models} models, validation loss and the {one.series} have a rank correlation of '
      f'{format_estimate(one.spearman)}.'
    )


def make_sections(findings: Findings, pictures: Mapping[str, str]) -> Iterator[Section]:
  """Yields the sections that have something to show; `pictures` are `<svg>` elements by name."""

  def drawn(name: str, caption: str) -> list[Picture]:
    return [Picture(pictures[name], caption)] if name in pictures else []

  if findings.study is not None:
    yield Section('Loss against compute', figures=drawn('compute', COMPUTE))
    yield from _laws(findings.study)
  if findings.steps or 'plane' in pictures:
    yield Section(
      'Cost-effectiveness',
      figures=drawn('plane', PLANE),
      table=_table(tables.STEP_FORMAT, findings.steps),
    )
  if findings.correlations or 'against' in pictures:
    yield Section(
      'Perplexity and scores',
      figures=drawn('against', SCORES),
      table=_table(tables.CORRELATION_FORMAT, findings.correlations),
    )
  if 'gain' in pictures:
    yield Section('What pre-training adds, by size', figures=drawn('gain', GAIN))
  if findings.depths:
    yield from _depths(findings.depths)
  if findings.study is not None:
    rows = map(model_row, findings.tracks)
    yield Section('Models', table=_table(tables.model_format(findings.numbers), rows))
  if findings.failed:
    yield Section(
      'Points that failed', items=[f'{name}: {why}' for name, why in findings.failed.items()]
    )
  left_out = [*findings.left_out, *(findings.study.left_out if findings.study is not None else ())]
  if left_out:
    yield Section('Left out', items=left_out)


def _laws(study: ScalingStudy) -> Iterator[Section]:
  if study.fits:
    yield Section('Laws', table=_table(tables.FIT_FORMAT, study.fits))
  for name, points, caption in (
    ('frontier', study.frontier, 'The lowest loss in each bin of compute.'),
    ('lower envelope', study.envelope, 'Each evaluation that nothing as cheap betters.'),
  ):
    yield from _folded(
      f'The {name}: {len(points)} points',
      _table(dataclasses.replace(tables.POINT_FORMAT, caption=caption), points),
    )
  if study.plateaus:
    yield Section(
      f'Plateaus: {len(study.plateaus)} runs',
      folded=True,
      table=tables.PLATEAU_FORMAT.fill(study.plateaus),
    )


def _table(form: TableFormat, rows: Iterable[Any]) -> Table | None:
  """Returns a table without its empty columns, or None without rows."""
  rows = list(rows)
  return form.fill(rows).without_empty_columns() if rows else None


def _folded(title: str, table: Table | None) -> Iterator[Section]:
  if table is not None:
    yield Section(title, table=table, folded=True)


def _depths(depths: Sequence[Depth]) -> Iterator[Section]:
  yield Section('Depth', table=_table(tables.DEPTH_SUMMARY_FORMAT, tables.summarize_depths(depths)))
  yield from _folded(
    f'All {len(depths)} comparisons',
    _table(tables.DEPTH_FORMAT, depths),
  )


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
  models, reasons = correlation.match_scores(tracks, scores, means)
  left_out += reasons
  by_name = {track.name: track.shape.vocabulary for track in tracks}
  vocabularies = len({by_name[model.name] for of in models.values() for model in of})
  correlations, reasons = correlation.correlate(models, vocabularies, draws)
  left_out += reasons
  steps, options = (
    cost_effectiveness.find_steps(tracks, draws),
    cost_effectiveness.list_options(tracks, draws),
  )
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
    scaling_study.study_scaling(tracks, draws, unfinished=unfinished),
    steps,
    options,
    models,
    correlations,
    correlation.compare_depths(tracks, models),
    left_out,
    failed,
  )


def make_files(findings: Findings) -> tuple[dict[str, bytes], dict[str, str]]:
  """Returns the files of a study, and its figures as `<svg>` elements; none without a study."""
  if findings.study is None:
    return {}, {}
  files, pictures = scaling_figures.encode_figures(draw_figures(findings))
  fits = [power_laws.fit_to_json(fit) for fit in findings.study.fits]
  return files | {
    'frontier.csv': as_csv(Point, findings.study.frontier),
    'cost.csv': as_csv(Step, findings.steps),
    'correlation.csv': as_csv(Correlation, findings.correlations),
    'depth.csv': as_csv(Depth, findings.depths),
    'models.csv': as_csv(ModelRow, [model_row(track) for track in findings.tracks]),
    'fits.json': (json.dumps(fits, indent=2) + '\n').encode(),
  }, pictures


def draw_figures(findings: Findings) -> Iterator[tuple[str, FigureWithTooltips]]:
  """Yields the figures that have content, with the names of their files."""
  if findings.study is None:
    return
  yield 'compute', _compute(findings.tracks, findings.study)
  if findings.options:
    yield 'plane', scaling_figures.plane(findings.options, findings.numbers)
  scored = {
    name: of
    for name, of in findings.models.items()
    if sum(math.isfinite(model.score) for model in of) > 1
  }
  if scored:
    notes = {
      one.series: f'ρ {one.spearman.value:+.2f}'
      for one in findings.correlations
      if one.measure == correlation.LOSS
      and not one.from_scratch
      and math.isfinite(one.spearman.value)
    }
    yield 'against', scaling_figures.scores(_first(scored), findings.numbers, notes)
  gains = {
    name: of
    for name, of in findings.models.items()
    if sum(math.isfinite(model.score - model.scratch) for model in of) > 1
  }
  if gains:
    yield 'gain', scaling_figures.gain(_first(gains), findings.numbers)


def _first(series: Mapping[str, Any]) -> dict[str, Any]:
  return dict(list(series.items())[:_MAX_PANELS])


def _compute(tracks: Sequence[LossCurve], found: ScalingStudy) -> FigureWithTooltips:
  """Loss against compute with the one law of the whole frontier and, where they fit better, the two
  that part.
  """
  whole = {
    fit.form: fit
    for fit in found.fits
    if fit.name == scaling_fits.FRONTIER and fit.method == power_laws.LOGS
  }
  shown = [whole[form] for form in (power_laws.PIECES, power_laws.POWER) if form in whole]
  if len(shown) > 1 and shown[1].bic - shown[0].bic <= _MIN_BIC_DIFFERENCE:
    shown = shown[1:]
  lines = []
  for fit in shown:
    flops = np.geomspace(fit.low, fit.high, 400)
    loss = power_laws.predict(fit, flops)
    if fit.form == power_laws.PIECES:  # they need not meet: a gap is honest
      at = int(np.searchsorted(flops, fit.constants['C0']))
      flops, loss = np.insert(flops, at, fit.constants['C0']), np.insert(loss, at, np.nan)
      name = f'two laws, C^-{fit.constants["b1"]:.3f} and C^-{fit.constants["b2"]:.3f}'
    else:
      name = f'one law, C^-{fit.constants["b"]:.3f}'
    lines.append(FittedLine(name, flops, loss))
  breaks = None
  if power_laws.PIECES in {fit.form for fit in shown} and found.split is not None:
    breaks = (found.split, *(found.split_interval or (math.nan, math.nan)))
  return scaling_figures.compute(tracks, found.frontier, lines, breaks, found.count)
