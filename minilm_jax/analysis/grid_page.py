"""The study of a grid as HTML: the question and its answer, then figures, tables, and what was left out and why.

Numbers come from `study.py`, `cost.py` and `correlation.py`; the page around these sections is `page.py`'s.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from minilm_jax.analysis import grid_cells
from minilm_jax.analysis.correlation import LOSS, Correlation, Depth, Model
from minilm_jax.analysis.cost import Option, Step
from minilm_jax.analysis.page import escape, figure, table
from minilm_jax.analysis.study import Study
from minilm_jax.analysis.tracks import Track

QUESTION = ('How do loss, compute, shape and score hang together in these {n} models, and what does it pay to make '
            'larger?')
COMPUTE = ('Each faint curve is a run, by its layers; dots are the frontier of the first paper, the lowest loss in '
           'each bin of compute; lines are laws fitted to it; the band is the 95% interval of the break. Point at '
           'anything to read what it is.')
FITS = ('L is the loss in nats, C the FLOPs of training. In brackets the 95% interval; that of a fit to a frontier is '
        'over draws of runs: it says how much the choice of runs matters, not how far the law is from the truth. BIC '
        'compares forms fitted to the same points, the lower the better. fits.json has all digits.')
PLATEAU = ('Where a run’s loss stood still before it dropped. An exit that is missing: the run ended on the plateau.')
COST = ('One factor grows, all others stay: points of perplexity gained for each 1e15 FLOPs that a whole run costs '
        'more, and the FLOPs that a point costs; in brackets the 95% interval over seeds. e embedding, h hidden, i '
        'feed-forward, a heads, l layers, V vocabulary. Of several models of one shape the best stands for it; what '
        'else then differs is told.')
PLANE = ('Every model by the FLOPs of its whole run. Hollow: another costs no more and is no worse. Numbers are those '
         'of the table of models.')
CORRELATION = ('Over models, with 95% intervals from resampled models; below 0, a lower loss goes with a higher score. '
               'Log-perplexity is the validation loss. “with untrained” adds each model before any training, '
               'whose loss is ln V, with its score from scratch.')
SCORES = 'Numbers are those of the table of models; ρ is Spearman’s.'
GAIN = 'Scores pre-trained less from scratch, with the 95% interval over seeds.'
DEPTH = ('Pairs of models of other depths whose parameters, or FLOPs of the whole run, are within 10% of each other. '
         'Differences are deeper less shallower.')
MODELS = ('FLOPs of the whole run, counted three ways: by the formula of the first paper, as 6 N a token after Kaplan, '
          'and as the matrix products that the program runs. The losses are in nats a masked token.')


@dataclasses.dataclass(frozen=True)
class Findings:
  """All that is said about a grid; `failed` are points of a sweep that came to nothing, with the reason.

  `numbers` are those of the table of models, by run; `study` is None where there are not two models.
  """

  tracks: Sequence[Track]
  numbers: Mapping[str, int]
  study: Study | None
  steps: Sequence[Step]
  options: Sequence[Option]
  models: Mapping[str, Sequence[Model]]
  correlations: Sequence[Correlation]
  depths: Sequence[Depth]
  left_out: Sequence[str]
  failed: Mapping[str, str]


def opening(found: Findings) -> Iterator[str]:
  """The question, and the answer in one paragraph."""
  if found.study is not None:
    said = [*found.study.sentences, *_of_steps(found.steps), *_of_correlations(found.correlations)]
    yield (f'<p class="lead"><strong>{QUESTION.format(n=len(found.tracks))}</strong> '
           f'{escape(" ".join(said))}</p>')


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
    told = ', '.join(f'{grid_cells.gain(step.per_1e15)} by {factor}' + (f' ({step.also})' if step.also else '')
                     for factor, step in ranked)
    yield f'One step {way} {name}, points of perplexity gained for 1e15 FLOPs more: {told}.'


def _of_correlations(correlations: Sequence[Correlation]) -> Iterator[str]:
  """The rank correlation of each average, or of the one task there is, with the loss."""
  of_loss = [one for one in correlations if one.measure == LOSS and not one.from_scratch]
  shown = [one for one in of_loss if one.series.startswith('average')][:1] or of_loss[:1]
  for one in shown:
    yield (f'Over {one.models} models, validation loss and the {one.series} have a rank correlation of '
           f'{grid_cells.estimate(one.spearman)}.')


def sections(found: Findings, pictures: Mapping[str, str]) -> Iterator[str]:
  """The sections that have something to show; `pictures` are `<svg>` elements by name."""
  if found.study is not None:
    yield from _pictured('Loss against compute', COMPUTE, pictures, 'compute')
    yield from _laws(found.study)
  if found.steps or 'plane' in pictures:
    yield from _pictured('Cost-effectiveness', PLANE, pictures, 'plane')
  if found.steps:
    yield _table(grid_cells.STEP_HEADINGS, 2, [grid_cells.step_cells(step) for step in found.steps], COST)
  if found.correlations or 'against' in pictures:
    yield from _pictured('Perplexity and scores', SCORES, pictures, 'against')
  if found.correlations:
    yield _table(grid_cells.CORRELATION_HEADINGS, 2,
                [grid_cells.correlation_cells(one) for one in found.correlations], CORRELATION)
  if 'gain' in pictures:
    yield from _pictured('What pre-training adds, by size', GAIN, pictures, 'gain')
  if found.depths:
    yield from _depths(found.depths)
  if found.study is not None:
    yield '<h2>Models</h2>'
    rows = [grid_cells.model_cells(track, found.numbers) for track in found.tracks]
    yield _table(grid_cells.MODEL_HEADINGS, 2, rows, MODELS)
  if found.failed:
    yield f'<h2>Points that failed</h2>\n<ul>{_items(f"{name}: {why}" for name, why in found.failed.items())}</ul>'
  left_out = [*found.left_out, *(found.study.left_out if found.study is not None else ())]
  if left_out:
    yield f'<h2>Left out</h2>\n<ul>{_items(left_out)}</ul>'


def _items(texts: Iterator[str] | Sequence[str]) -> str:
  return ''.join(f'<li>{escape(text)}</li>' for text in texts)


def _pictured(heading: str, caption: str, pictures: Mapping[str, str], name: str) -> Iterator[str]:
  yield f'<h2>{heading}</h2>'
  if name in pictures:
    yield f'<p class="faint">{escape(caption)}</p>\n{figure(pictures[name])}'


def _laws(study: Study) -> Iterator[str]:
  if study.fits:
    yield '<h2>Laws</h2>'
    yield _table(grid_cells.FIT_HEADINGS, 2, [grid_cells.fit_cells(fit) for fit in study.fits], FITS)
  for name, points, caption in (
      ('frontier', study.frontier, 'The lowest loss in each bin of compute.'),
      ('lower envelope', study.envelope, 'Each evaluation that nothing as cheap betters.')):
    if points:
      rows = [grid_cells.point_cells(point) for point in points]
      yield _folded(f'The {name}: {len(points)} points',
                    _table(grid_cells.POINT_HEADINGS, 1, rows, caption))
  if study.plateaus:
    yield _folded(f'Plateaus: {len(study.plateaus)} runs', table(
        grid_cells.PLATEAU_HEADINGS, 1, [grid_cells.plateau_cells(plateau) for plateau in study.plateaus], PLATEAU))


def _table(headings: Sequence[str], words: int, rows: Sequence[Sequence[str]], caption: str) -> str:
  """A table without the columns that have nothing in them."""
  kept = [place for place in range(len(headings)) if any(row[place] not in (grid_cells.NONE, '') for row in rows)]
  return table([headings[place] for place in kept], sum(place < words for place in kept),
               [[row[place] for place in kept] for row in rows], caption)


def _folded(summary: str, inside: str) -> str:
  return f'<details><summary>{escape(summary)}</summary>\n{inside}</details>'


def _depths(depths: Sequence[Depth]) -> Iterator[str]:
  yield '<h2>Depth</h2>'
  yield _table(grid_cells.MATCHED_HEADINGS, 2, list(grid_cells.matched_rows(depths)), DEPTH)
  rows = [grid_cells.depth_cells(one) for one in depths]
  yield _folded(f'All {len(rows)} comparisons', _table(grid_cells.DEPTH_HEADINGS, 3, rows, ''))
