"""The study of the gap as HTML: what it says in words, figures, tables. Numbers come from `gap.py` and `lines.py`."""

import math
from collections.abc import Iterator, Mapping

from minilm_jax.analysis.cells import NONE, points
from minilm_jax.analysis.gap import Study
from minilm_jax.analysis.lines import OVERLAP, SIZE, Gap, Slope
from minilm_jax.analysis.page import escape, figure, table

HEADINGS = {SIZE: 'The gap and the size of the pre-training set', OVERLAP: 'The gap and token overlap'}
CAPTIONS = {
    SIZE: 'Scores pre-trained less from scratch by the tokens of the pre-training set, pads not counted, with the 95% '
          'interval over seeds of fine-tuning. Point at a dot to read what it is.',
    OVERLAP: 'The same by the share of the running words of the task’s training texts that the pre-training set has, '
             'in sets of one size. What else differs between such sets, their subject above all, is not told apart.'}
POINTS = 'Times 100, paired by seed where both arms have the same. A star: from scratch is that of another run.'
POINT_HEADINGS = ('task', 'comparison', 'run', 'rows', 'tokens', 'epochs', 'overlap', 'pre-trained', 'from scratch',
                  'gap [95% interval]')
SLOPES = ('Least squares through the runs: points of score (times 100) for twice the tokens, or for one point more of '
          'overlap. The interval resamples seeds of fine-tuning, runs of one size and, of several tasks, tasks.')
SLOPE_HEADINGS = ('task', 'comparison', 'runs', 'levels', 'seeds', 'slope [95% interval]', 'note')


def sections(found: Study, pictures: Mapping[str, str]) -> Iterator[str]:
  """The sections that have points; `pictures` are `<svg>` elements by name."""
  for axis, heading in HEADINGS.items():
    own = [point for point in found.points if point.axis == axis]
    lines = [slope for slope in found.slopes if slope.axis == axis]
    if not own:
      continue
    yield f'<h2>{heading}</h2>'
    if lines:
      yield '<ul>' + ''.join(f'<li>{escape(sentence(slope))}</li>' for slope in lines) + '</ul>'
    if f'gap-{axis}' in pictures:
      yield f'<p class="faint">{escape(CAPTIONS[axis])}</p>\n{figure(pictures[f"gap-{axis}"])}'
    if lines:
      yield table(SLOPE_HEADINGS, 2, [slope_cells(slope) for slope in lines], SLOPES)
    yield table(POINT_HEADINGS, 3, [point_cells(point) for point in own], POINTS)
  if found.left_out:
    yield '<h2>The gap: left out</h2>\n<ul>' + ''.join(f'<li>{escape(text)}</li>' for text in found.left_out) + '</ul>'


def sentence(slope: Slope) -> str:
  """What a line says, and whether its interval tells it from none."""
  unit = 'a doubling of the pre-training set' if slope.axis == SIZE else 'a point more of overlap'
  text = f'{slope.series}, {slope.comparison}: {points(slope.slope, "+")} points for {unit}'
  if not math.isfinite(slope.low):
    return f'{text}, over {slope.levels} levels; no interval: {slope.note}.'
  text += f' (95% interval {points(slope.low, "+")} to {points(slope.high, "+")}, {slope.levels} levels)'
  return f'{text}; the interval contains zero.' if slope.low <= 0 <= slope.high else f'{text}.'


def slope_cells(slope: Slope) -> list[str]:
  """The cells under `SLOPE_HEADINGS`."""
  seeds = str(slope.seeds) if slope.seeds else NONE
  return [slope.series, slope.comparison, str(slope.points), str(slope.levels), seeds,
          _interval(slope.slope, slope.low, slope.high), slope.note or NONE]


def point_cells(point: Gap) -> list[str]:
  """The cells under `POINT_HEADINGS`."""
  overlap = f'{100 * point.overlap:.2f}' if math.isfinite(point.overlap) else NONE
  return [point.series, point.comparison, point.checkpoint, f'{point.rows:,}', f'{point.tokens:,}',
          f'{point.epochs:.3g}', overlap, points(point.pretrained),
          points(point.scratch) + (' *' if point.borrowed else ''),
          _interval(point.gap.mean, point.gap.low, point.gap.high)]


def _interval(mean: float, low: float, high: float) -> str:
  ends = f' [{points(low, "+")}, {points(high, "+")}]' if math.isfinite(low) else ''
  return points(mean, '+') + ends
