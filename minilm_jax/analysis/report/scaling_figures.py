"""Figures of a scaling study and of the gap: compute, cost, scores, size and overlap.

A point tells what it is: the number beside it is its number in the table of models, and in the SVG
it carries a `<title>`, which any browser shows under the pointer without a script. Style and files
are those of `figures.py`.
"""

import dataclasses
import html
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
  FixedLocator,
  FuncFormatter,
  LogLocator,
  MaxNLocator,
  NullFormatter,
  NullLocator,
)

from minilm_jax.analysis import cost_effectiveness
from minilm_jax.analysis.correlation import ScoredModel
from minilm_jax.analysis.cost_effectiveness import Option
from minilm_jax.analysis.frontier import Point
from minilm_jax.analysis.loss_curves import HONEY, LossCurve
from minilm_jax.analysis.pretraining_gap import SIZE, Gap
from minilm_jax.analysis.report import figures
from minilm_jax.analysis.report.figures import COLORS, DASHES, INK, STYLE, add_legend
from minilm_jax.core.errors import sanitize

_ROUND = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)  # readable ticks of one decade
_SIZES = {'markersize': 4.5, 'markeredgewidth': 1}
# Depths in order; legible on white and on black.
_DEPTHS = ('#56b4e9', '#0072b2', '#009e73', '#e69f00', '#d55e00', '#cc79a7')


@dataclasses.dataclass(frozen=True)
class FittedLine:
  """A line to draw: the loss that a law says at some FLOPs."""

  name: str
  flops: Float[np.ndarray, 'N']
  loss: Float[np.ndarray, 'N']


@dataclasses.dataclass(frozen=True)
class FigureWithTooltips:
  """A figure and, by the id of a drawn thing, what it says of itself."""

  figure: Figure
  titles: dict[str, str]

  def svg(self) -> str:
    """The `<svg>` element of `figures.svg` with a `<title>` in each thing that has one."""
    return titled(figures.svg(self.figure), self.titles)


def encode_figures(
  figures_by_name: Iterable[tuple[str, FigureWithTooltips]],
) -> tuple[dict[str, bytes], dict[str, str]]:
  """Returns the .svg and .png files of figures, and their `<svg>` elements by name."""
  files, pictures = {}, {}
  for name, drawing in figures_by_name:
    pictures[name] = drawing.svg()
    files[f'{name}.svg'] = pictures[name].encode()
    files[f'{name}.png'] = figures.png(drawing.figure)
  return files, pictures


def titled(svg: str, titles: Mapping[str, str]) -> str:
  """Puts a `<title>` into the groups of an SVG that have these ids.

  >>> titled('<g id="a"><path/></g>', {'a': 'x < y'})
  '<g id="a"><title>x &lt; y</title><path/></g>'
  """
  for name, text in titles.items():
    svg = svg.replace(
      f'<g id="{name}">', f'<g id="{name}"><title>{html.escape(sanitize(text))}</title>', 1
    )
  return svg


def compute(
  tracks: Sequence[LossCurve],
  frontier: Sequence[Point],
  laws: Sequence[FittedLine],
  breaks: tuple[float, float, float] | None,
  count: str = HONEY,
) -> FigureWithTooltips:
  """Loss against compute, both in logarithms: every run by its depth, the frontier, laws, and where
  they break.

  Args:
    tracks: whose evaluations are the faint curves.
    frontier: the dots.
    laws: lines through them.
    breaks: FLOPs of the break with the ends of its interval, which is the band (nan: none).
    count: of FLOPs.
  """
  titles: dict[str, str] = {}
  with mpl.rc_context(STYLE):
    figure = Figure(figsize=(5.4, 4.8))
    axes = figure.add_subplot()
    depths = dict(zip(sorted({track.shape.layers for track in tracks}), itertools.cycle(_DEPTHS)))
    handles: dict[str, Any] = {}
    for number, track in enumerate(sorted(tracks, key=lambda track: track.name)):
      axes.plot(
        track.flops(count),
        track.loss,
        '-',
        color=depths[track.shape.layers],
        alpha=0.45,
        linewidth=0.9,
        gid=f'curve-{number}',
      )
      shape = cost_effectiveness.describe_others(track.shape, 'vocabulary')
      titles[f'curve-{number}'] = f'{track.name}: {shape}, {track.parameters:,} parameters'
    for layers, color in depths.items():
      handles[f'{layers} {"layer" if layers == 1 else "layers"}'] = Line2D([], [], color=color)
    if breaks and all(map(math.isfinite, breaks)):
      handles[f'break, {breaks[0]:.1e} FLOPs'] = axes.axvspan(
        *breaks[1:], color=INK, alpha=0.1, linewidth=0
      )
    if breaks and math.isfinite(breaks[0]):
      axes.axvline(breaks[0], color=INK, alpha=0.6, linestyle=':', linewidth=1)
    for law, dash in zip(laws, itertools.cycle(DASHES)):
      (handles[law.name],) = axes.plot(law.flops, law.loss, dash, color=INK, linewidth=1.4)
    for number, point in enumerate(frontier):
      name = f'frontier-{number}'
      (handles['frontier'],) = axes.plot(
        [point.flops], [point.loss], 'o', color=COLORS[1], gid=name, **_SIZES
      )
      titles[name] = (
        f'{point.run}: loss {point.loss:.3f} at {point.flops:.2e} FLOPs, {point.tokens:.2e} tokens'
      )
    losses = [loss for track in tracks for loss in track.loss]
    axes.set_ylim(
      min(losses) / 1.06, max(losses) * 1.06
    )  # a law that goes on far must not squeeze what was measured
    logarithmic(axes, 'FLOPs of training', 'validation loss (nats a masked token)')
    figures.add_legend(figure, handles)
  return FigureWithTooltips(figure, titles)


def plane(options: Sequence[Option], numbers: Mapping[str, int]) -> FigureWithTooltips:
  """The cost of each model against its perplexity, in logarithms: what another dominates is hollow.

  Args:
    options: of `cost.plane`.
    numbers: of the models in the page's table, by the name of a run.
  """
  titles: dict[str, str] = {}
  with mpl.rc_context(STYLE):
    figure = Figure(figsize=(5.4, 4.2))
    axes = figure.add_subplot()
    handles: dict[str, Any] = {}
    best = sorted((option.flops, option.perplexity) for option in options if not option.dominated)
    axes.plot(*zip(*best), '-', color=COLORS[0], alpha=0.4, linewidth=1, drawstyle='steps-post')
    for number, option in enumerate(options):
      name = f'option-{number}'
      kind = 'dominated' if option.dominated else 'not dominated'
      if math.isfinite(option.low):
        axes.plot(
          [option.flops] * 2,
          [option.low, option.high],
          '-',
          color=COLORS[0],
          alpha=0.6,
          linewidth=1.2,
        )
      (handles[kind],) = axes.plot(
        [option.flops],
        [option.perplexity],
        'o',
        color=COLORS[0],
        gid=name,
        markerfacecolor='none' if option.dominated else COLORS[0],
        **_SIZES,
      )
      titles[name] = (
        f'{option.name}: perplexity {option.perplexity:.2f} for {option.flops:.2e} FLOPs, {kind}'
      )
      if option.runs[0] in numbers:
        _number(axes, option.flops, option.perplexity, numbers[option.runs[0]])
    logarithmic(axes, 'FLOPs of the whole run', 'perplexity')
    figures.add_legend(figure, handles)
  return FigureWithTooltips(figure, titles)


def scores(
  series: Mapping[str, Sequence[ScoredModel]], numbers: Mapping[str, int], notes: Mapping[str, str]
) -> FigureWithTooltips:
  """Scores times 100 against perplexity, a panel a task; `notes` stand in its title."""

  def draw(axes: Axes, name: str, of: Sequence[ScoredModel], own: str) -> dict[str, str]:
    titles = {}
    for number, model in enumerate(of):
      gid, perplexity = f'{own}-{number}', math.exp(model.loss)
      axes.plot([perplexity], [100 * model.score], 'o', color=COLORS[0], gid=gid, **_SIZES)
      titles[gid] = f'{model.name}: {name} {100 * model.score:.1f} at perplexity {perplexity:.2f}'
      _number(axes, perplexity, 100 * model.score, numbers[model.name])
    return titles

  kept = {
    name: [model for model in of if math.isfinite(model.score)] for name, of in series.items()
  }
  return _panels(
    {name: of for name, of in kept.items() if of}, notes, draw, 'score', 'perplexity', 'score × 100'
  )


def gain(
  series: Mapping[str, Sequence[ScoredModel]], numbers: Mapping[str, int]
) -> FigureWithTooltips:
  """What pre-training adds to each score, times 100, against the parameters, with its interval; a
  panel a task.
  """

  def draw(axes: Axes, name: str, of: Sequence[ScoredModel], own: str) -> dict[str, str]:
    titles = {}
    axes.axhline(0, color=INK, alpha=0.5, linestyle=':', linewidth=1)
    for number, model in enumerate(of):
      gid, value = f'{own}-{number}', 100 * (model.score - model.scratch)
      if math.isfinite(model.low):
        axes.plot(
          [model.parameters] * 2,
          [100 * model.low, 100 * model.high],
          '-',
          color=COLORS[0],
          alpha=0.6,
        )
      axes.plot([model.parameters], [value], 'o', color=COLORS[0], gid=gid, **_SIZES)
      titles[gid] = (
        f'{model.name}: {name} {value:+.1f} by pre-training, {model.parameters:,} parameters'
      )
      _number(axes, model.parameters, value, numbers[model.name])
    return titles

  kept = {
    name: [model for model in of if math.isfinite(model.score - model.scratch)]
    for name, of in series.items()
  }
  return _panels(
    {name: of for name, of in kept.items() if of},
    {},
    draw,
    'gain',
    'parameters',
    'pre-trained less from scratch × 100',
  )


def _panels(
  series: Mapping[str, Sequence[ScoredModel]],
  notes: Mapping[str, str],
  draw: Any,
  own: str,
  x: str,
  y: str,
) -> FigureWithTooltips:
  titles: dict[str, str] = {}
  columns = min(2, max(1, len(series)))
  lines = math.ceil(max(1, len(series)) / columns)
  with mpl.rc_context(STYLE):
    figure = Figure(figsize=(0.8 + 2.3 * columns, 0.6 + 2.2 * lines))
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for number, (axes, (name, of)) in enumerate(zip(panels, series.items())):
      titles |= draw(axes, name, of, f'{own}-{number}')
      axes.set_xscale('log')
      axes.margins(0.12)
      ticks(axes.xaxis, 4)
      axes.tick_params(labelsize=8)
      axes.set_title(
        f' {_broken(name)}' + (f'\n{notes[name]}' if name in notes else ''), fontsize=8
      )
    for axes in panels[len(series) :]:
      axes.set_axis_off()
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)
  return FigureWithTooltips(figure, titles)


def _broken(name: str, width: int = 34) -> str:
  """A title in lines, cut at its commas; averages name many tasks."""
  lines = ['']
  for part in name.split(', '):
    if lines[-1] and len(lines[-1]) + len(part) > width:
      lines.append('')
    lines[-1] += (', ' if lines[-1] else '') + part
  return '\n'.join(lines)


def _number(axes: Axes, x: float, y: float, number: int) -> None:
  axes.annotate(
    str(number), (x, y), xytext=(3, 2), textcoords='offset points', fontsize=6, alpha=0.8
  )


def logarithmic(axes: Axes, x: str, y: str) -> None:
  """Both axes in logarithms, under their labels: FLOPs from left to right, plain numbers upwards."""
  axes.set_xscale('log')
  axes.set_yscale('log')
  axes.set_xlabel(x)
  axes.set_ylabel(y)
  axes.xaxis.set_major_locator(LogLocator(numticks=8))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:.0e}'.replace('e+', 'e')))
  axes.xaxis.set_minor_formatter(NullFormatter())
  ticks(axes.yaxis, 10)


def ticks(axis: Any, most: int) -> None:
  """Plain numbers at round places of a logarithmic axis, not too many."""
  low, high = axis.get_view_interval()
  places = [
    step * 10.0**power
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for step in _ROUND
    if low <= step * 10.0**power <= high
  ]
  if len(places) < 4:  # less than a factor of two: as on a linear axis
    places = [place for place in MaxNLocator(5).tick_values(low, high) if low <= place <= high]
  axis.set_major_locator(FixedLocator(places[:: math.ceil(len(places) / most) or 1]))
  axis.set_minor_locator(NullLocator())
  axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))


def _plain(value: float) -> str:
  """Few letters for a tick.

  >>> [_plain(value) for value in (1.5, 20, 19000, 2.5e6)]
  ['1.5', '20', '19k', '2.5M']
  """
  for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= size:
      return f'{value / size:g}{letter}'
  return f'{value:g}'


def gaps(points: Sequence[Gap]) -> FigureWithTooltips:
  """The gap times 100 with its 95% interval, against tokens (in logarithms) or overlap; all points
  are of one axis.
  """
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
