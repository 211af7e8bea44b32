"""Figures of a scaling study and of the gap: compute, cost, scores, size and overlap.

The number beside a point is that of the table of models. Every point has a tooltip, as numbers that
would overlap are left out.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
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
from minilm_jax.analysis.laws import power_laws
from minilm_jax.analysis.laws.power_laws import PIECES, Fit, clip_exp
from minilm_jax.analysis.loss_curves import LossCurve
from minilm_jax.analysis.number_format import format_interval
from minilm_jax.analysis.paper2.pretraining_gap import SIZE, Gap
from minilm_jax.analysis.report.figures import (
  COLORS,
  DASHES,
  INK,
  STYLE,
  WIDTH,
  Drawing,
  add_legend,
  arrange_panels,
  shorten_lines,
  styles_by_name,
)
from minilm_jax.analysis.report.scaling_tables import format_perplexity

SCORE, GAIN = 'score', 'gain'  # fields of ScoredModel in a figure
_ROUND_NUMBERS = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)  # readable ticks of one decade
_MARKER = {'markersize': 4.5, 'markeredgewidth': 1}
_TITLE_CHARS = 28  # in a line
_NUMBER_SIZE = (16, 12)  # points (1/72 inch) that a number covers
# By the number of layers; legible on white and on black.
_DEPTH_COLORS = ('#56b4e9', '#0072b2', '#009e73', '#e69f00', '#d55e00', '#cc79a7')


@mpl.rc_context(STYLE)
def draw_compute(
  curves: Sequence[LossCurve],
  frontier: Sequence[Point],
  laws: Sequence[Fit],
) -> Drawing:
  """Draws loss against compute on logarithmic axes: runs, frontier, laws and their break.

  Args:
    laws: of the forms POWER and PIECES.
  """
  tooltips: dict[str, str] = {}
  figure = Figure(figsize=(WIDTH, 5.2))
  axes = figure.add_subplot()
  depths = sorted({curve.shape.layers for curve in curves})
  colors = dict(zip(depths, itertools.cycle(_DEPTH_COLORS)))
  for number, curve in enumerate(sorted(curves, key=lambda curve: curve.name)):
    gid, color = f'curve-{number}', colors[curve.shape.layers]
    flops = curve.flops()
    axes.plot(flops, curve.loss, '-', color=color, alpha=0.45, linewidth=0.9, gid=gid)
    shape = cost_effectiveness.describe_others(curve.shape, 'vocabulary')
    tooltips[gid] = f'{curve.name}: {shape}, {curve.parameters:,} parameters'
  handles: dict[str, Any] = {
    f'{layers} {"layer" if layers == 1 else "layers"}': Line2D([], [], color=color)
    for layers, color in colors.items()
  }
  for law, dash in zip(laws, itertools.cycle(DASHES)):
    handles |= _draw_law(axes, law, dash)
  for number, point in enumerate(frontier):
    gid = f'frontier-{number}'
    (handles['frontier'],) = axes.plot(
      [point.flops], [point.loss], 'o', color=COLORS[1], gid=gid, **_MARKER
    )
    tooltips[gid] = (
      f'{point.run}: loss {point.loss:.3f} at {point.flops:.2e} FLOPs, {point.tokens:.2e} tokens'
    )
  losses = [loss for curve in curves for loss in curve.loss]
  # The limits follow the measurements: a law extends beyond them.
  axes.set_ylim(min(losses) / 1.06, max(losses) * 1.06)
  set_log_axes(axes, 'FLOPs of training', 'validation loss (nats)')
  add_legend(figure, handles)
  return Drawing(figure, tooltips)


def _draw_law(axes: Axes, law: Fit, dash: str) -> dict[str, Any]:
  """Draws a law and, with two pieces, the break and its interval; returns handles by name."""
  handles: dict[str, Any] = {}
  flops = np.geomspace(law.low, law.high, 400)
  loss = power_laws.predict(law, flops)
  if law.form == PIECES:
    split = law.constants['C0']
    # The pieces need not meet at the break; nan draws a gap.
    index = int(np.searchsorted(flops, split))
    flops, loss = np.insert(flops, index, split), np.insert(loss, index, np.nan)
    name = f'two laws, C^-{law.constants["b1"]:.3f}, C^-{law.constants["b2"]:.3f}'
    if 'C0' in law.intervals:
      handles[f'break, {split:.1e} FLOPs'] = axes.axvspan(
        *law.intervals['C0'], color=INK, alpha=0.1, linewidth=0
      )
    axes.axvline(split, color=INK, alpha=0.6, linestyle=':', linewidth=1)
  else:
    name = f'one law, C^-{law.constants["b"]:.3f}'
  (handles[name],) = axes.plot(flops, loss, dash, color=INK, linewidth=1.4)
  return handles


@mpl.rc_context(STYLE)
def draw_plane(options: Sequence[Option], numbers: Mapping[str, int]) -> Drawing:
  """Draws the cost of each model against its perplexity; dominated models are hollow."""
  tooltips: dict[str, str] = {}
  figure = Figure(figsize=(WIDTH, 4.0))
  axes = figure.add_subplot()
  handles: dict[str, Any] = {}
  best = sorted((option.flops, option.perplexity) for option in options if not option.dominated)
  axes.plot(*zip(*best), '-', color=COLORS[0], alpha=0.4, linewidth=1, drawstyle='steps-post')
  for index, option in enumerate(options):
    gid = f'option-{index}'
    kind = 'dominated' if option.dominated else 'not dominated'
    x, y = [option.flops], [option.perplexity]
    if math.isfinite(option.low):
      interval = [option.low, option.high]
      axes.plot(x * 2, interval, '-', color=COLORS[0], alpha=0.6, linewidth=1.2)
    face = 'none' if option.dominated else COLORS[0]
    (handles[kind],) = axes.plot(
      x, y, 'o', color=COLORS[0], gid=gid, markerfacecolor=face, **_MARKER
    )
    number = numbers.get(option.runs[0])
    name = option.name if number is None else f'{number}, {option.name}'
    tooltips[gid] = (
      f'{name}: perplexity {format_perplexity(option.perplexity)} for {option.flops:.2e} FLOPs, {kind}'
    )
  set_log_axes(axes, 'FLOPs of the whole run', 'perplexity')
  _number_points(
    axes,
    {
      numbers[option.runs[0]]: (option.flops, option.perplexity)
      for option in sorted(options, key=lambda option: option.dominated)
      if option.runs[0] in numbers
    },
  )
  add_legend(figure, handles)
  return Drawing(figure, tooltips)


def draw_models(
  kind: str,
  series: Mapping[str, Sequence[ScoredModel]],
  numbers: Mapping[str, int],
  notes: Mapping[str, str],
) -> Drawing:
  """Draws a panel a task with its note in the title, and a dot a model.

  A dot is the score against perplexity or, with its interval, the gain of pre-training against
  parameters. Both are times 100.

  Args:
    kind: SCORE or GAIN.
    series: models by task; each task has a model with a score or a gain.
    numbers: numbers of the table of models, by run.
    notes: texts by task.
  """
  names = list(series)

  def draw(axes: Axes, name: str) -> dict[str, str]:
    tooltips, points = {}, {}
    if kind == GAIN:
      axes.axhline(0, color=INK, alpha=0.5, linestyle=':', linewidth=1)
    scored = [model for model in series[name] if math.isfinite(getattr(model, kind))]
    for index, model in enumerate(scored):
      gid, y = f'{kind}-{names.index(name)}-{index}', 100 * getattr(model, kind)
      if kind == GAIN:
        x = model.parameters
        tooltips[gid] = f'{model.name}: {name} {y:+.1f} by pre-training, {x:,} parameters'
        if math.isfinite(model.low):
          interval = [100 * model.low, 100 * model.high]
          axes.plot([x] * 2, interval, '-', color=COLORS[0], alpha=0.6)
      else:
        x = clip_exp(model.loss)
        tooltips[gid] = f'{model.name}: {name} {y:.1f} at perplexity {format_perplexity(x)}'
      axes.plot([x], [y], 'o', color=COLORS[0], gid=gid, **_MARKER)
      points[numbers[model.name]] = (x, y)
    axes.set_xscale('log')
    axes.margins(0.12)
    set_log_ticks(axes.xaxis, 4)
    axes.set_title(_wrap_title(f'{name}\n{notes[name]}' if name in notes else name))
    _number_points(axes, points)
    return tooltips

  labels = {SCORE: ('perplexity', 'score × 100'), GAIN: ('parameters', 'gain × 100')}
  return arrange_panels(names, draw, {}, *labels[kind])


def _wrap_title(title: str) -> str:
  """Returns a title with line breaks at its commas; an average names many tasks."""
  lines = ['']
  for part in title.split(', '):
    if lines[-1] and len(lines[-1]) + len(part) > _TITLE_CHARS:
      lines.append('')
    lines[-1] += (', ' if lines[-1] else '') + part
  return shorten_lines('\n'.join(lines))


def _number_points(axes: Axes, points: Mapping[int, tuple[float, float]]) -> None:
  """Writes numbers beside points, except those that would overlap an earlier number."""
  drawn: list[tuple[float, float]] = []
  for number, point in points.items():
    x, y = axes.transData.transform(point) * 72 / mpl.rcParams['figure.dpi']
    if all(
      abs(x - x_drawn) > _NUMBER_SIZE[0] or abs(y - y_drawn) > _NUMBER_SIZE[1]
      for x_drawn, y_drawn in drawn
    ):
      drawn.append((x, y))
      axes.annotate(str(number), point, xytext=(3, 2), textcoords='offset points', alpha=0.8)


def set_log_axes(axes: Axes, x_label: str, y_label: str) -> None:
  """Sets logarithmic axes: powers of ten from left to right, plain numbers upwards."""
  axes.set_xscale('log')
  axes.set_yscale('log')
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)
  axes.xaxis.set_major_locator(LogLocator(numticks=6))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:.0e}'.replace('e+', 'e')))
  axes.xaxis.set_minor_formatter(NullFormatter())
  set_log_ticks(axes.yaxis, 8)


def set_log_ticks(axis: Axis, max_ticks: int) -> None:
  """Sets plain numbers at round positions of a logarithmic axis."""
  low, high = axis.get_view_interval()
  positions = [
    step * 10.0**power
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for step in _ROUND_NUMBERS
    if low <= step * 10.0**power <= high
  ]
  if len(positions) < 4:  # below a factor of two, linear positions are finer
    ticks = MaxNLocator(5).tick_values(low, high)
    positions = [position for position in ticks if low <= position <= high]
  _set_ticks(axis, positions, max_ticks)


def _set_ticks(axis: Axis, positions: Sequence[float], max_ticks: int) -> None:
  axis.set_major_locator(FixedLocator(positions[:: math.ceil(len(positions) / max_ticks) or 1]))
  axis.set_minor_locator(NullLocator())
  axis.set_major_formatter(FuncFormatter(lambda value, _: _abbreviate(value)))


def _abbreviate(value: float) -> str:
  """Returns a number with three digits and a unit prefix.

  >>> [_abbreviate(value) for value in (1.5, 20, 19000, 3_656_538, 320_000)]
  ['1.5', '20', '19k', '3.66M', '320k']
  """
  for size, prefix in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= size:
      return f'{value / size:.3g}{prefix}'
  return f'{value:.3g}'


def draw_gaps(points: Sequence[Gap]) -> Drawing:
  """Draws the gap times 100 with its 95% interval by tokens (logarithmic) or by overlap.

  Args:
    points: of one axis.
  """
  is_size = points[0].axis == SIZE
  series = list(dict.fromkeys(point.series for point in points))
  styles = styles_by_name(point.comparison for point in points)
  sizes = sorted({_position(point) for point in points})
  handles: dict[str, Any] = {}

  def draw(axes: Axes, name: str) -> dict[str, str]:
    tooltips: dict[str, str] = {}
    axes.axhline(0, color=INK, alpha=0.5, linestyle=':', linewidth=1)
    axes.set_xscale('log' if is_size else 'linear')
    for comparison, (dash, color) in styles.items():
      compared = sorted(
        (point for point in points if (point.series, point.comparison) == (name, comparison)),
        key=lambda point: (_position(point), point.checkpoint),
      )
      means: dict[float, list[float]] = {}
      for point in compared:
        means.setdefault(_position(point), []).append(100 * point.gap.mean)
      (handles[comparison],) = axes.plot(
        list(means),
        [sum(values) / len(values) for values in means.values()],
        dash,
        color=color,
        alpha=0.7,
        linewidth=1.2,
      )
      for point in compared:
        gid = f'gap-{point.axis}-{series.index(name)}-{len(tooltips)}'
        x, low, high = [_position(point)], 100 * point.gap.low, 100 * point.gap.high
        if math.isfinite(low):
          axes.plot(x * 2, [low, high], '-', color=color, alpha=0.5)
        axes.plot(x, [100 * point.gap.mean], 'o', color=color, markersize=4.5, gid=gid)
        tooltips[gid] = _describe_gap(point)
    axes.margins(0.12)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    if is_size:
      _set_ticks(axes.xaxis, sizes, 4)
    else:
      axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(_wrap_title(name))
    return tooltips

  x_label = 'tokens of the pre-training set' if is_size else 'token overlap × 100'
  return arrange_panels(series, draw, handles, x_label, 'gap × 100')


def _position(point: Gap) -> float:
  return float(point.tokens) if point.axis == SIZE else 100 * point.overlap


def _describe_gap(point: Gap) -> str:
  gap = format_interval(point.gap.mean, point.gap.low, point.gap.high)
  overlap = f', overlap {100 * point.overlap:.1f}' if math.isfinite(point.overlap) else ''
  return (
    f'{point.checkpoint}: {gap}, {point.rows:,} rows, {point.tokens:,} tokens, '
    f'{point.epochs:.3g} epochs{overlap}'
  )
