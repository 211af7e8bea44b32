"""The study of a grid as HTML: the question and its answer, then figures, tables, and what was left out and why.

Numbers come from `study.py`, `cost.py` and `correlation.py`; the page around these sections is `page.py`'s.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from minilm_jax.analysis import grid_cells
from minilm_jax.analysis.correlation import LOSS, Correlation, Depth, ScoredModel
from minilm_jax.analysis.cost import Option, Step
from minilm_jax.analysis.sheets import Picture, Section, Table
from minilm_jax.analysis.study import ScalingStudy
from minilm_jax.analysis.tracks import LossCurve

QUESTION = (
  'How do loss, compute, shape and score hang together in these {n} models, and what does it pay to make '
  'larger?'
)
COMPUTE = (
  'Each faint curve is a run, by its layers; dots are the frontier of the first paper, the lowest loss in '
  'each bin of compute; lines are laws fitted to it; the band is the 95% interval of the break. Point at '
  'anything to read what it is.'
)
FITS = (
  'L is the loss in nats, C the FLOPs of training. In brackets the 95% interval; that of a fit to a frontier is '
  'over draws of runs: it says how much the choice of runs matters, not how far the law is from the truth. BIC '
  'compares forms fitted to the same points, the lower the better. fits.json has all digits.'
)
PLATEAU = 'Where a run’s loss stood still before it dropped. An exit that is missing: the run ended on the plateau.'
COST = (
  'One factor grows, all others stay: points of perplexity gained for each 1e15 FLOPs that a whole run costs '
  'more, and the FLOPs that a point costs; in brackets the 95% interval over seeds. e embedding, h hidden, i '
  'feed-forward, a heads, l layers, V vocabulary. Of several models of one shape the best stands for it; what '
  'else then differs is told.'
)
PLANE = (
  'Every model by the FLOPs of its whole run. Hollow: another costs no more and is no worse. Numbers are those '
  'of the table of models.'
)
CORRELATION = (
  'Over models, with 95% intervals from resampled models; below 0, a lower loss goes with a higher score. '
  'Log-perplexity is the validation loss. “with untrained” adds each model before any training, '
  'whose loss is ln V, with its score from scratch.'
)
SCORES = 'Numbers are those of the table of models; ρ is Spearman’s.'
GAIN = 'Scores pre-trained less from scratch, with the 95% interval over seeds.'
DEPTH = (
  'Pairs of models of other depths whose parameters, or FLOPs of the whole run, are within 10% of each other. '
  'Differences are deeper less shallower.'
)
MODELS = (
  'FLOPs of the whole run, counted three ways: by the formula of the first paper, as 6 N a token after Kaplan, '
  'and as the matrix products that the program runs. The losses are in nats a masked token.'
)


@dataclasses.dataclass(frozen=True)
class Findings:
  """All that is said about a grid; `failed` are points of a sweep that came to nothing, with the reason.

  `numbers` are those of the table of models, by run; `study` is None where there are not two models.
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
  """What 1e15 FLOPs buy by each factor, on from or up to the model that most of them share: others do not compare."""
  found: dict[tuple[str, str], dict[str, Step]] = {}
  for step in steps:
    if math.isfinite(step.per_1e15):
      for way, name in (('on from', step.from_runs[0]), ('up to', step.to_runs[0])):
        found.setdefault((way, name), {})[step.factor.replace('_', '-')] = step
  (way, name), gains = max(found.items(), key=lambda item: len(item[1]), default=(('', ''), {}))
  if len(gains) > 1:
    ranked = sorted(gains.items(), key=lambda item: -item[1].per_1e15)
    told = ', '.join(
      f'{grid_cells.gain(step.per_1e15)} by {factor}' + (f' ({step.also})' if step.also else '')
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
      f'{grid_cells.estimate(one.spearman)}.'
    )


def sections(findings: Findings, pictures: Mapping[str, str]) -> Iterator[Section]:
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
      table=_table(grid_cells.STEP_HEADINGS, 2, map(grid_cells.step_cells, findings.steps), COST),
    )
  if findings.correlations or 'against' in pictures:
    yield Section(
      'Perplexity and scores',
      figures=drawn('against', SCORES),
      table=_table(
        grid_cells.CORRELATION_HEADINGS,
        2,
        map(grid_cells.correlation_cells, findings.correlations),
        CORRELATION,
      ),
    )
  if 'gain' in pictures:
    yield Section('What pre-training adds, by size', figures=drawn('gain', GAIN))
  if findings.depths:
    yield from _depths(findings.depths)
  if findings.study is not None:
    rows = (grid_cells.model_cells(track, findings.numbers) for track in findings.tracks)
    yield Section('Models', table=_table(grid_cells.MODEL_HEADINGS, 2, rows, MODELS))
  if findings.failed:
    yield Section(
      'Points that failed', items=[f'{name}: {why}' for name, why in findings.failed.items()]
    )
  left_out = [*findings.left_out, *(findings.study.left_out if findings.study is not None else ())]
  if left_out:
    yield Section('Left out', items=left_out)


def _laws(study: ScalingStudy) -> Iterator[Section]:
  if study.fits:
    yield Section(
      'Laws', table=_table(grid_cells.FIT_HEADINGS, 2, map(grid_cells.fit_cells, study.fits), FITS)
    )
  for name, points, caption in (
    ('frontier', study.frontier, 'The lowest loss in each bin of compute.'),
    ('lower envelope', study.envelope, 'Each evaluation that nothing as cheap betters.'),
  ):
    yield from _folded(
      f'The {name}: {len(points)} points',
      _table(grid_cells.POINT_HEADINGS, 1, map(grid_cells.point_cells, points), caption),
    )
  if study.plateaus:
    yield Section(
      f'Plateaus: {len(study.plateaus)} runs',
      folded=True,
      table=Table(
        grid_cells.PLATEAU_HEADINGS, 1, list(map(grid_cells.plateau_cells, study.plateaus)), PLATEAU
      ),
    )


def _table(
  headings: Sequence[str], words: int, rows: Iterable[Sequence[str]], caption: str
) -> Table | None:
  """Returns a table without its empty columns, or None without rows."""
  rows = list(rows)
  return Table(headings, words, rows, caption).without_empty_columns() if rows else None


def _folded(title: str, table: Table | None) -> Iterator[Section]:
  if table is not None:
    yield Section(title, table=table, folded=True)


def _depths(depths: Sequence[Depth]) -> Iterator[Section]:
  yield Section(
    'Depth', table=_table(grid_cells.MATCHED_HEADINGS, 2, grid_cells.matched_rows(depths), DEPTH)
  )
  yield from _folded(
    f'All {len(depths)} comparisons',
    _table(grid_cells.DEPTH_HEADINGS, 3, map(grid_cells.depth_cells, depths), ''),
  )
