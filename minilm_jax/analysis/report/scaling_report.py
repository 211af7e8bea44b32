"""Answers, sections and files of a scaling study in a report.

The numbers come from `scaling_study`, `cost_effectiveness` and `correlation`.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minilm_jax.analysis import correlation, cost_effectiveness, scaling_study
from minilm_jax.analysis.correlation import (
  LOSS,
  MIN_VERDICT_MODELS,
  Correlation,
  ScoredModel,
  TrainingCorrelation,
  smallest_detectable_coefficient,
)
from minilm_jax.analysis.cost_effectiveness import Depth, Option, Step
from minilm_jax.analysis.frontier import Point
from minilm_jax.analysis.laws.power_laws import PIECES, POWER, Fit
from minilm_jax.analysis.loss_curves import HONEY, LossCurve
from minilm_jax.analysis.number_format import format_interval
from minilm_jax.analysis.report import scaling_figures, scaling_tables
from minilm_jax.analysis.report.scaling_figures import GAIN, SCORE
from minilm_jax.analysis.report.scaling_tables import (
  MODEL_COLUMNS,
  DepthSummary,
  format_estimate,
  format_gain,
  summarize_depths,
)
from minilm_jax.analysis.report.sections import (
  Answer,
  Section,
  TableFormat,
  as_csv,
  columns_as_csv,
  list_section,
)
from minilm_jax.analysis.scaling_study import (
  MIN_BIC_GAIN,
  ScalingStudy,
  format_constant,
  select_laws,
)
from minilm_jax.analysis.scores import Average, ScoreRow, select_latest
from minilm_jax.core.errors import InputError, to_json_types

MIN_MODELS = 2  # of a scaling study
_MAX_DRAWS = 1_000_000
_MAX_PANELS = 12  # of a figure; the tables have all tasks
_BREAK_VERDICTS = {
  scaling_study.NO_BREAK: 'no break',
  scaling_study.UNKNOWN: 'undecided',
  scaling_study.PLATEAU: 'yes',
  scaling_study.NOT_PLATEAU: 'no',
}


@dataclasses.dataclass(frozen=True)
class ScalingReport:
  """All results on the models of a report.

  Attributes:
    curves: loss curves by increasing FLOPs.
    study: None with fewer than `MIN_MODELS` models, which have no other results either.
    steps, options: of cost-effectiveness.
    models: scored models by task or average.
  """

  curves: Sequence[LossCurve]
  left_out: Sequence[str]
  failed: Mapping[str, str]
  study: ScalingStudy | None = None
  steps: Sequence[Step] = ()
  options: Sequence[Option] = ()
  models: Mapping[str, Sequence[ScoredModel]] = dataclasses.field(default_factory=dict)
  correlations: Sequence[Correlation] = ()
  training_correlations: Sequence[TrainingCorrelation] = ()
  depths: Sequence[Depth] = ()

  @property
  def numbers(self) -> dict[str, int]:
    """Numbers of the table of models, by run."""
    return {curve.name: number for number, curve in enumerate(self.curves, 1)}


def study_models(
  curves: Sequence[LossCurve],
  scores: Iterable[ScoreRow],
  averages: Sequence[Average],
  left_out: Sequence[str],
  failed: Mapping[str, str],
  draws: int = 1000,
  unfinished: bool = False,
) -> ScalingReport:
  """Returns all results that the curves and scores allow.

  Args:
    scores, averages: rows of every step, also of other checkpoints.
    draws: resamples for each interval of a law or correlation.
    unfinished: include runs before the end of their schedule in the laws.

  Raises:
    InputError: the number of draws is out of range.
  """
  if not 1 <= draws <= _MAX_DRAWS:
    raise InputError(
      f'--bootstrap_samples={draws}',
      f'a number outside 1 to {_MAX_DRAWS:,}',
      'give --bootstrap_samples=1000',
    )
  curves = sorted(curves, key=lambda curve: (curve.flops(HONEY)[-1], curve.name))
  left_out = list(left_out)
  if len(curves) < MIN_MODELS:
    if curves or left_out:
      left_out.append(
        f'scaling study: {MIN_MODELS} evaluated models are needed, there are {len(curves)}'
      )
    return ScalingReport(curves, left_out, failed)
  models, reasons = correlation.match_scores(curves, scores, select_latest(averages))
  left_out += reasons
  vocabularies = {curve.name: curve.shape.vocabulary for curve in curves}
  scored = {model.name for of_task in models.values() for model in of_task}
  num_vocabularies = len({vocabularies[name] for name in scored})
  correlations, reasons = correlation.correlate(models, num_vocabularies, draws)
  left_out += reasons
  steps = cost_effectiveness.find_steps(curves)
  options = cost_effectiveness.list_options(curves)
  if not options:
    left_out.append('cost-effectiveness and depth: no run reached the end of its schedule')
  elif not steps:
    left_out.append('steps of cost-effectiveness: no two finished models differ in a single factor')
  if not models:
    left_out.append('perplexity and scores: these models have no scores')
  return ScalingReport(
    curves,
    left_out,
    failed,
    study=scaling_study.study_scaling(curves, draws, unfinished=unfinished),
    steps=steps,
    options=options,
    models=models,
    correlations=correlations,
    training_correlations=correlation.correlate_checkpoints(curves, scores, averages),
    depths=cost_effectiveness.compare_depths(curves, models),
  )


def answer_questions(results: ScalingReport) -> Iterator[Answer]:
  """Yields the answers on laws, break, cost, depth and correlation; nothing without a study."""
  if results.study is None:
    return
  yield from _answer_laws(results.study)
  yield from _answer_steps(results.steps)
  for summary in summarize_depths(results.depths):
    if summary.compared == 'validation loss':
      yield _answer_depth(summary)
  yield from _answer_correlations(results.correlations)
  yield from _answer_training(results.training_correlations)


def _answer_laws(study: ScalingStudy) -> Iterator[Answer]:
  question = 'Does one power law of compute fit the frontier?'
  laws = select_laws(study.fits)
  cause = scaling_study.classify_break(study)
  if POWER not in laws:
    yield Answer(question, 'not measured', '', [' '.join(study.sentences)])
    return
  exponent = f'exponent {format_constant(laws[POWER], "b")}'
  if not cause or cause == scaling_study.NO_BREAK:
    verdict = 'yes' if cause else 'one law is fitted'
    yield Answer(
      question, verdict, f'{exponent}, R² {laws[POWER].r2:.3f}', [' '.join(study.sentences)]
    )
    return
  pieces = laws[PIECES]
  exponents = f'{format_constant(pieces, "b1")} below and {format_constant(pieces, "b2")} above'
  location = format_interval(
    pieces.constants['C0'], *pieces.intervals.get('C0', (math.nan, math.nan)), '.2g'
  )
  gain = laws[POWER].bic - pieces.bic
  yield Answer(
    question,
    'no, two laws fit better',
    f'break at {location} FLOPs, BIC lower by {gain:.0f}',
    [
      f'Exponents of the two laws: {exponents}. One law: {exponent}.',
      ' '.join(study.sentences[:2]),
    ],
  )
  above = len(study.frontier) - study.below
  number = (
    f'{study.below_before_exit} of {study.below} points below the break are of runs that had '
    f'not left the plateau, {study.above_before_exit} of {above} above'
  )
  yield Answer(
    'Is the break the end of a plateau in training?',
    _BREAK_VERDICTS[cause],
    'no plateau is visible' if study.level is None else number,
    [
      'Yes: runs that had not left the plateau have at least 80% of the points below the break, and at '
      'most 20% of the points above.',
      ' '.join(study.sentences[2:]),
    ],
  )


def _answer_steps(steps: Sequence[Step]) -> Iterator[Answer]:
  """Yields the gains of each factor from, or to, the model that most factors share."""
  gains: dict[tuple[str, str], dict[str, Step]] = {}
  for step in steps:
    if math.isfinite(step.per_1e15):
      for direction, name in (('from', step.from_runs[0]), ('to', step.to_runs[0])):
        factor = step.factor.replace('_', '-')
        gains.setdefault((direction, name), {})[factor] = step
  (direction, name), by_factor = max(
    gains.items(), key=lambda item: len(item[1]), default=(('', ''), {})
  )
  if len(by_factor) < 2:
    return
  ranked = sorted(by_factor.items(), key=lambda item: -item[1].per_1e15)
  others = ', '.join(
    f'{format_gain(step.per_1e15)} by {factor}' + (f' ({step.also})' if step.also else '')
    for factor, step in ranked
  )
  best, step = ranked[0]
  interval = format_interval(step.per_1e15, step.low, step.high, '.3g')
  yield Answer(
    f'Which factor lowers perplexity most, one step {direction} {name}?',
    best,
    f'{interval} points for 1e15 FLOPs',
    [f'Points of perplexity for 1e15 additional FLOPs: {others}.'],
  )


def _answer_depth(summary: DepthSummary) -> Answer:
  pairs = len(summary.differences)
  return Answer(
    f'Is a deeper model better at equal {summary.matched}?',
    f'in {summary.better} of {pairs} pairs',
    f'mean difference of the validation loss {np.mean(summary.differences):+.3f} nats',
  )


def _answer_correlations(correlations: Sequence[Correlation]) -> Iterator[Answer]:
  """Yields the rank correlation of the loss with the first average, or else the first task."""
  of_loss = [entry for entry in correlations if entry.measure == LOSS and not entry.from_scratch]
  averages = [entry for entry in of_loss if entry.series.startswith('average')]
  for entry in (averages or of_loss)[:1]:
    rho = entry.spearman
    verdict = 'yes' if rho.high < 0 else 'no, lower scores' if rho.low > 0 else 'undecided'
    notes = [
      f'So many models find a coefficient of {smallest_detectable_coefficient(entry.models):.2f} '
      'with a power of 80%.'
    ]
    if entry.models < MIN_VERDICT_MODELS:
      verdict = 'undecided'
      notes.append(f'A verdict needs {MIN_VERDICT_MODELS} models or more.')
    yield Answer(
      f'Does a lower validation loss come with a higher score ({entry.series})?',
      verdict,
      f'Spearman’s ρ {format_estimate(rho)} over {entry.models} models',
      notes,
    )


def _answer_training(correlations: Sequence[TrainingCorrelation]) -> Iterator[Answer]:
  """Yields the coefficients of the runs for the first average, or else the first task."""
  averages = [entry for entry in correlations if entry.series.startswith('average')]
  chosen = averages or correlations
  runs = [entry for entry in chosen if entry.series == chosen[0].series]
  defined = [entry.spearman for entry in runs if math.isfinite(entry.spearman)]
  if not defined:
    return
  falls = sum(value < 0 for value in defined)
  yield Answer(
    f'Do scores rise as the loss of a run falls ({runs[0].series})?',
    f'in {falls} of {len(runs)} runs',
    f'Spearman’s ρ {min(defined):+.2f} to {max(defined):+.2f}',
    ['Successive checkpoints of a run are not independent, so there is no interval.'],
  )


def make_sections(results: ScalingReport) -> Iterator[Section]:
  """Yields the sections with content; tables have no empty columns."""
  left_out = list(results.left_out)
  if results.study is not None:
    left_out += results.study.left_out
    yield from _make_figure_sections(results, results.study)
    for title, form, rows in _list_tables(results, results.study):
      if rows:
        yield Section(title, table=form.fill(rows).without_empty_columns())
  failed = [f'{name}: {reason}' for name, reason in results.failed.items()]
  yield from list_section('Failed points', 'point: reason', failed)
  yield from list_section('Left out', 'result: reason', left_out)


def _list_tables(
  results: ScalingReport, study: ScalingStudy
) -> list[tuple[str, TableFormat, Sequence[Any]]]:
  """Returns the title, the format and the rows of each table."""
  return [
    ('Fitted laws', scaling_tables.FIT_FORMAT, study.fits),
    ('Cost-effectiveness', scaling_tables.STEP_FORMAT, results.steps),
    ('Correlations', scaling_tables.CORRELATION_FORMAT, results.correlations),
    (
      'Correlations during training',
      scaling_tables.TRAINING_CORRELATION_FORMAT,
      results.training_correlations,
    ),
    ('Depth', scaling_tables.DEPTH_SUMMARY_FORMAT, list(summarize_depths(results.depths))),
    ('Pairs of depths', scaling_tables.DEPTH_FORMAT, results.depths),
    ('Frontier', scaling_tables.FRONTIER_FORMAT, study.frontier),
    ('Lower envelope', scaling_tables.ENVELOPE_FORMAT, study.envelope),
    ('Plateaus', scaling_tables.PLATEAU_FORMAT, study.plateaus),
    ('Models', scaling_tables.model_format(results.numbers), results.curves),
  ]


def make_files(results: ScalingReport) -> dict[str, bytes]:
  """Returns the tables of a study as files by name; none without a study."""
  if results.study is None:
    return {}
  fits = [to_json_types(dataclasses.asdict(fit)) for fit in results.study.fits]
  contents = {
    'frontier.csv': as_csv(Point, results.study.frontier),
    'cost.csv': as_csv(Step, results.steps),
    'correlation.csv': as_csv(Correlation, results.correlations),
    'depth.csv': as_csv(Depth, results.depths),
    'models.csv': encode_models(results.curves),
    'fits.json': (json.dumps(fits, indent=2) + '\n').encode(),
  }
  if results.training_correlations:
    contents['training_correlation.csv'] = as_csv(
      TrainingCorrelation, results.training_correlations
    )
  return contents


def encode_models(curves: Sequence[LossCurve]) -> bytes:
  """Returns models.csv."""
  return columns_as_csv(MODEL_COLUMNS, curves)


def _make_figure_sections(results: ScalingReport, study: ScalingStudy) -> Iterator[Section]:
  """Yields the figures that have content."""
  compute = scaling_figures.draw_compute(results.curves, study.frontier, _select_drawn_laws(study))
  yield Section(
    'Loss by compute',
    figures={'compute': compute},
    caption='Runs, frontier and fitted laws. Point at a curve or dot for its run.',
    notes=[
      'Faint curves are runs, coloured by depth. The frontier is the lowest loss in each bin of '
      'compute, as in paper 1 (2305.17266). The band is the 95% interval of the break.',
    ],
  )
  if results.options:
    yield Section(
      'Perplexity by cost',
      figures={'plane': scaling_figures.draw_plane(results.options, results.numbers)},
      caption='Models by FLOPs of the whole run; numbers are those of the table of models.',
      notes=['A hollow model is dominated: another costs no more and is no worse.'],
    )
  coefficients = {
    entry.series: f'ρ {entry.spearman.value:+.2f}'
    for entry in results.correlations
    if entry.measure == LOSS and not entry.from_scratch and math.isfinite(entry.spearman.value)
  }
  scored = _select_series(results.models, SCORE)
  if scored:
    drawing = scaling_figures.draw_models(SCORE, scored, results.numbers, coefficients)
    yield Section(
      'Scores by perplexity',
      figures={'against': drawing},
      caption='Headline scores times 100; ρ is Spearman’s over means of seeds.',
    )
  compared = _select_series(results.models, GAIN)
  if compared:
    yield Section(
      'Gain of pre-training by size',
      figures={'gain': scaling_figures.draw_models(GAIN, compared, results.numbers, {})},
      caption='Scores pre-trained minus from scratch, with the 95% interval over seeds.',
    )


def _select_series(
  models: Mapping[str, Sequence[ScoredModel]], kind: str
) -> dict[str, Sequence[ScoredModel]]:
  """Returns the first series with two or more models of finite SCORE or GAIN."""
  series = {
    task: scored
    for task, scored in models.items()
    if sum(math.isfinite(getattr(model, kind)) for model in scored) > 1
  }
  return dict(itertools.islice(series.items(), _MAX_PANELS))


def _select_drawn_laws(study: ScalingStudy) -> list[Fit]:
  """Returns the law of the frontier, preceded by the two laws beside a break if they fit better."""
  laws = select_laws(study.fits)
  fits = [laws[form] for form in (PIECES, POWER) if form in laws]
  keep_all = len(fits) < 2 or fits[1].bic - fits[0].bic > MIN_BIC_GAIN
  return fits if keep_all else fits[1:]
