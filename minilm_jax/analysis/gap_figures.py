"""The figures of the gap: a panel a task, a line a comparison. Style and `<title>`s are those of the other figures."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from minilm_jax.analysis.figures import COLORS, DASHES, INK, STYLE, add_legend
from minilm_jax.analysis.grid_figures import FigureWithTooltips
from minilm_jax.analysis.lines import SIZE, Gap


def gaps(points: Sequence[Gap]) -> FigureWithTooltips:
  """The gap times 100 with its 95% interval, against tokens (in logarithms) or overlap; all points are of one axis."""
  titles: dict[str, str] = {}
  size = points[0].axis == SIZE
  series = list(dict.fromkeys(point.series for point in points))
  looks = dict(
    zip(
      dict.fromkeys(point.comparison for point in points),
      itertools.cycle(itertools.product(DASHES, COLORS)),
    )
  )
  columns = min(2, len(series))
  rows = math.ceil(len(series) / columns)
  handles: dict[str, Any] = {}
  with mpl.rc_context(STYLE):
    figure = Figure(figsize=(0.8 + 2.5 * columns, 0.8 + 2.2 * rows + 0.2 * len(looks)))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for number, (axes, name) in enumerate(zip(panels, series)):
      axes.axhline(0, color=INK, alpha=0.5, linestyle=':', linewidth=1)
      axes.set_xscale('log' if size else 'linear')
      for place, (comparison, (dash, color)) in enumerate(looks.items()):
        own = sorted(
          (_x(point), point.checkpoint, point)
          for point in points
          if (point.series, point.comparison) == (name, comparison)
        )
        means = {x: [100 * point.gap.mean for at, _, point in own if at == x] for x, *_ in own}
        (handles[comparison],) = axes.plot(
          list(means),
          [sum(of) / len(of) for of in means.values()],
          dash,
          color=color,
          alpha=0.7,
          linewidth=1.2,
        )
        for x, _, point in own:
          gid = f'gap-{points[0].axis}-{number}-{place}-{len(titles)}'
          low, high = 100 * point.gap.low, 100 * point.gap.high
          if math.isfinite(low):
            axes.plot([x, x], [low, high], '-', color=color, alpha=0.5)
          axes.plot([x], [100 * point.gap.mean], 'o', color=color, markersize=4.5, gid=gid)
          titles[gid] = _title(point)
      _dress(axes, name, sorted({_x(point) for point in points}) if size else ())
    for axes in panels[len(series) :]:
      axes.set_axis_off()
    for axes in panels[
      max(0, len(series) - columns) : len(series)
    ]:  # a label of the figure would lie under the legend
      axes.set_xlabel(
        'tokens of the pre-training set' if size else 'token overlap of words × 100', fontsize=9
      )
    figure.supylabel('pre-trained less from scratch × 100', fontsize=9)
    add_legend(figure, handles, ncols=1)
  return FigureWithTooltips(figure, titles)


def _x(point: Gap) -> float:
  return point.tokens if point.axis == SIZE else 100 * point.overlap


def _title(point: Gap) -> str:
  text = f'{point.checkpoint}: {100 * point.gap.mean:+.1f}'
  if math.isfinite(point.gap.low):
    text += f' [{100 * point.gap.low:+.1f}, {100 * point.gap.high:+.1f}]'
  overlap = f', overlap {100 * point.overlap:.1f}' if math.isfinite(point.overlap) else ''
  return f'{text}, {point.rows:,} rows, {point.tokens:,} tokens, {point.epochs:.3g} epochs{overlap}'


def _dress(axes: Any, name: str, places: Sequence[float]) -> None:
  """Title and ticks; the sizes themselves are the ticks of a size axis, as far as they have room."""
  axes.margins(0.12)
  axes.tick_params(labelsize=8)
  axes.yaxis.set_major_locator(MaxNLocator(6))
  if places:
    axes.xaxis.set_major_locator(FixedLocator(places[:: math.ceil(len(places) / 5)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(float(value))))
  else:
    axes.xaxis.set_major_locator(MaxNLocator(5))
  words = name.split(', ')
  axes.set_title(f' {", ".join(words[:2])}\n{", ".join(words[2:])}', fontsize=8)


def _short(value: float) -> str:
  """A count in few letters.

  >>> _short(3_656_538), _short(320_000)
  ('3.66M', '320k')
  """
  for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= size:
      return f'{value / size:.3g}{letter}'
  return f'{value:.3g}'
