"""Draws the figures of a report: losses, scores, panels and confusion matrices, in one style.

Figures have no background and a single ink. `Drawing.svg` replaces the ink with the text colour
of the page, light or dark. A width of 4 inches keeps text readable on a screen of 400 pixels.
"""

import dataclasses
import functools
import html
import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from minilm_jax.analysis.runs import RunLosses
from minilm_jax.analysis.seed_groups import Group
from minilm_jax.core.errors import sanitize

INK = '#010203'  # occurs nowhere else, so that an SVG can replace it with the colour of the page
# Distinct for colour-blind readers, and legible on white and on black (Okabe and Ito, without
# yellow and black).
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00')
DASHES = ('-', '--', ':', '-.')
WIDTH = 4.0  # inches of a figure with one panel
_PANEL_WIDTH, _PANEL_HEIGHT = 3.2, 2.6  # inches
_LINE_HEIGHT = 0.23  # inches of a line of a legend
_MAX_COLUMNS = 3
_MAX_NUMBERED_CLASSES = 14  # counts do not fit the cells of a larger confusion matrix
_MAX_NAME_CHARS = 36
STYLE: dict[Any, Any] = {  # for matplotlib.rc_context
  'axes.edgecolor': INK,
  'axes.labelcolor': INK,
  'xtick.color': INK,
  'ytick.color': INK,
  'text.color': INK,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'grid.alpha': 0.15,
  'grid.color': INK,
  'font.size': 11.5,
  'font.family': 'sans-serif',
  **{
    f'{part}size': 11.5
    for part in (
      *('axes.label', 'axes.title', 'xtick.label', 'ytick.label', 'figure.label', 'figure.title'),
      *('legend.font', 'legend.title_font'),
    )
  },
  'legend.frameon': False,
  'lines.linewidth': 1.6,
  'text.parse_math': False,  # a run may be called $1
  'svg.fonttype': 'none',
  'svg.hashsalt': 'minilm_jax',
  'figure.constrained_layout.use': True,
}


@dataclasses.dataclass(frozen=True)
class Drawing:
  """A figure of a report.

  Attributes:
    figure: all panels.
    tooltips: text by the id of a drawn point or line.
    panels: the panels one by one, for a page that arranges them by its width; empty for one panel.
  """

  figure: Figure
  tooltips: Mapping[str, str] = dataclasses.field(default_factory=dict)
  panels: Sequence['Drawing'] = ()

  @functools.cached_property
  def svg(self) -> str:
    """The figure as an `<svg>` element with tooltips, in the colour of the text around it.

    Equal figures give equal bytes.
    """
    file = io.StringIO()
    with mpl.rc_context(STYLE):
      metadata = {'Date': None, 'Creator': None}
      self.figure.savefig(file, format='svg', transparent=True, metadata=metadata)
    text = file.getvalue()
    svg = sanitize(text[text.index('<svg') :]).replace(INK, 'currentColor')
    return add_tooltips(svg, self.tooltips)

  @property
  def page_svgs(self) -> list[str]:
    """The `<svg>` elements of a page: those of the panels or, without panels, of the figure."""
    return [panel.svg for panel in self.panels] or [self.svg]

  @mpl.rc_context(STYLE)
  def to_png(self) -> bytes:
    """Returns the figure on white, for slides and papers."""
    file, canvas = io.BytesIO(), self.figure.canvas
    FigureCanvasAgg(self.figure)
    self.figure.savefig(file, format='png', dpi=200, facecolor='white', metadata={'Software': None})
    self.figure.set_canvas(canvas)  # the other canvas holds a bitmap of several MB
    return file.getvalue()


def add_tooltips(svg: str, tooltips: Mapping[str, str]) -> str:
  """Adds a `<title>` to the groups of an SVG with these ids; browsers show it under the pointer.

  >>> add_tooltips('<g id="a"><path/></g>', {'a': 'x < y'})
  '<g id="a"><title>x &lt; y</title><path/></g>'
  """
  for name, text in tooltips.items():
    group = f'<g id="{name}">'
    svg = svg.replace(group, f'{group}<title>{html.escape(sanitize(text))}</title>', 1)
  return svg


@dataclasses.dataclass(frozen=True)
class Panel:
  """A panel with mean bands and the score of the majority class.

  Attributes:
    bands: numbers over seeds by name and x; an interval with nan is not drawn.
  """

  title: str
  bands: Mapping[str, Mapping[float, Group]]
  majority: float = math.nan


@dataclasses.dataclass(frozen=True)
class Confusion:
  """The confusion matrices of one task, split, checkpoint and protocol, which the title names.

  Attributes:
    classes: names of the classes, or their numbers.
    arms: `[true, predicted]` counts summed over seeds, by arm; absent arms were not run.
  """

  title: str
  classes: tuple[str, ...]
  arms: Mapping[str, Float[np.ndarray, 'C C']]


@dataclasses.dataclass(frozen=True)
class DotRow:
  """One row of a dot plot: the numbers over seeds of each arm, and baselines, by name."""

  name: str
  arms: Mapping[str, Group]
  baselines: Mapping[str, float]


@mpl.rc_context(STYLE)
def draw_losses(curves: Sequence[RunLosses]) -> Drawing:
  """Draws the validation loss (points) and training loss (faint) of each run by tokens."""
  figure = Figure(figsize=(WIDTH, 3.4 + _LINE_HEIGHT * len(curves)))
  axes = figure.add_subplot()
  handles, tooltips = [], {}
  for number, (curve, (dash, color)) in enumerate(zip(curves, line_styles())):
    tooltips[f'loss-{number}'] = curve.name
    axes.plot(curve.train_tokens, curve.train_loss, dash, color=color, alpha=0.5, linewidth=1)
    handles += axes.plot(
      curve.validation_tokens,
      curve.validation_loss,
      dash,
      color=color,
      marker='o',
      markersize=3,
      gid=f'loss-{number}',
    )
  axes.set_xlabel('tokens')
  axes.set_ylabel('masked-token loss (nats)')
  axes.xaxis.set_major_locator(MaxNLocator(4))
  axes.yaxis.set_major_locator(MaxNLocator(7))
  axes.xaxis.set_major_formatter(EngFormatter(sep=''))
  figure.legend(
    handles,
    [f' {shorten_name(curve.name)}' for curve in curves],
    loc='outside lower left',
    title='points: validation; faint: training',
    alignment='left',
  )
  return Drawing(figure, tooltips)


@mpl.rc_context(STYLE)
def draw_dots(rows: Sequence[DotRow], x_label: str, scale: float = 1) -> Drawing:
  """Draws a row a task: the mean of each arm as a dot on its interval, and baselines as marks.

  Args:
    scale: factor of all numbers, of which `x_label` names the unit.
  """
  arms = styles_by_name(name for row in rows for name in row.arms)
  baselines = dict.fromkeys(name for row in rows for name in row.baselines)
  marks = dict(zip(baselines, itertools.cycle('|xd')))
  figure = Figure(figsize=(WIDTH, 1.1 + 0.6 * len(rows) + _LINE_HEIGHT * len(arms)))
  axes = figure.add_subplot()
  handles: dict[str, Any] = dict.fromkeys(arms)  # arms precede baselines in the legend
  for index, row in enumerate(rows):
    for number, (name, (_, color)) in enumerate(arms.items()):
      if name not in row.arms or not math.isfinite(row.arms[name].mean):
        continue
      mean, low, high = _scale_interval(row.arms[name], scale)
      y = index + 0.1 + 0.24 * number / max(1, len(arms) - 1)
      axes.plot([low, high], [y, y], '-', color=color, alpha=0.6)  # draws nothing for nan
      (handles[name],) = axes.plot([mean], [y], 'o', color=color, markersize=5)
    for name, baseline in row.baselines.items():
      if math.isfinite(baseline):
        (handles[name],) = axes.plot(
          [scale * baseline], [index + 0.22], marks[name], color=INK, alpha=0.7, markersize=7
        )
  label_rows(axes, [row.name for row in rows])
  axes.set_xlabel(x_label)
  axes.xaxis.set_major_locator(MaxNLocator(6))
  handles = {name: handle for name, handle in handles.items() if handle is not None}
  add_legend(figure, handles, ncols=2)
  return Drawing(figure)


def label_rows(axes: Axes, names: Sequence[str]) -> None:
  """Writes the name of each row of dots above the row: a long name then hides no dot."""
  axes.set_yticks([])
  axes.set_ylim(len(names) - 0.5, -0.5)
  for index, name in enumerate(names):
    axes.text(
      0.01,
      index - 0.08,
      f' {shorten_name(name)}',
      transform=axes.get_yaxis_transform(),
      va='bottom',
    )


def _scale_interval(group: Group, scale: float) -> tuple[float, float, float]:
  return scale * group.mean, scale * group.low, scale * group.high


def draw_panels(panels: Sequence[Panel], x_label: str, y_label: str, scale: float = 1) -> Drawing:
  """Draws mean bands, a panel a task.

  Args:
    scale: factor of all numbers, of which `y_label` names the unit.
  """
  styles = styles_by_name(name for panel in panels for name in panel.bands)
  handles: dict[str, Any] = {}

  def draw(axes: Axes, panel: Panel) -> None:
    for name, groups in panel.bands.items():
      dash, color = styles[name]
      x = list(groups)
      mean, low, high = zip(*(_scale_interval(group, scale) for group in groups.values()))
      axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
      (handles[name],) = axes.plot(x, mean, dash, color=color, marker='o', markersize=2.5)
    if math.isfinite(panel.majority):
      handles['majority'] = axes.axhline(
        scale * panel.majority, color=INK, alpha=0.5, linestyle=':', linewidth=1
      )
    axes.set_title(shorten_lines(panel.title))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(EngFormatter(sep=''))

  return arrange_panels(panels, draw, handles, x_label, y_label)


def arrange_panels(
  panels: Sequence[Any],
  draw: Callable[[Axes, Any], Mapping[str, str] | None],
  handles: dict[str, Any],
  x_label: str,
  y_label: str,
) -> Drawing:
  """Returns a drawing of panels in rows, and of each panel alone.

  Args:
    panels: at least one.
    draw: draws a panel on axes and returns its tooltips, if any.
    handles: of the legend; `draw` fills it.
    x_label, y_label: of all panels.
  """

  @mpl.rc_context(STYLE)
  def arrange(subset: Sequence[Any]) -> Drawing:
    handles.clear()
    columns = min(_MAX_COLUMNS, len(subset))
    rows = math.ceil(len(subset) / columns)
    width = WIDTH if columns == 1 else _PANEL_WIDTH * columns
    tooltips: dict[str, str] = {}
    figure = Figure()
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for number, (axes, panel) in enumerate(zip(grid, subset)):
      tooltips |= draw(axes, panel) or {}
      if number + columns >= len(subset):  # a label of the figure would cover the legend
        axes.set_xlabel(x_label)
    for axes in grid[len(subset) :]:
      axes.set_axis_off()
    figure.supylabel(y_label)
    lines = math.ceil(len(handles) / columns)
    figure.set_size_inches(width, 0.4 + _PANEL_HEIGHT * rows + _LINE_HEIGHT * lines)
    if handles:
      add_legend(figure, handles, columns)
    return Drawing(figure, tooltips)

  single = [arrange([panel]) for panel in panels] if len(panels) > 1 else ()
  return dataclasses.replace(arrange(panels), panels=single)


def draw_confusion(confusion: Confusion) -> Drawing:
  """Draws a matrix an arm: the share of each true class (row) predicted as each class, and counts."""
  arms, classes = confusion.arms, confusion.classes
  ticks = range(len(classes))

  @mpl.rc_context(STYLE)
  def draw(names: Sequence[str]) -> Drawing:
    side = max(2.4, 0.5 * len(classes))
    figure = Figure(figsize=(1.6 + side * max(1, len(names)), 1.8 + side))
    figure.suptitle(shorten_lines(confusion.title))
    grid = figure.subplots(1, max(1, len(names)), squeeze=False).flat
    for axes, name in zip(grid, names):
      _draw_matrix(axes, arms[name])
      axes.set_title(name)
      axes.set_xticks(ticks, classes, rotation=90)
      axes.set_yticks(ticks, classes if axes is figure.axes[0] else [])
      axes.set_xlabel('predicted')
    figure.axes[0].set_ylabel('true')
    return Drawing(figure)

  panels = [draw([name]) for name in arms] if len(arms) > 1 else ()
  return dataclasses.replace(draw(list(arms)), panels=panels)


def _draw_matrix(axes: Axes, counts: Float[np.ndarray, 'C C']) -> None:
  size = len(counts)
  edges = np.arange(size + 1) - 0.5
  axes.pcolormesh(
    edges,
    edges,
    counts / np.maximum(counts.sum(1, keepdims=True), 1),
    vmin=0,
    vmax=1.5,  # keeps the number readable in the darkest cell
    cmap=LinearSegmentedColormap.from_list('share', [(*to_rgb(COLORS[0]), 0), COLORS[0]]),
  )
  axes.grid(False)
  axes.set_aspect('equal')
  axes.invert_yaxis()
  if size <= _MAX_NUMBERED_CLASSES:
    for (true, predicted), count in np.ndenumerate(counts):
      axes.text(predicted, true, f'{count:,.0f}', ha='center', va='center')


def line_styles() -> Iterator[tuple[str, str]]:
  """Yields dashes and colours without end: colours change first."""
  return itertools.cycle(itertools.product(DASHES, COLORS))


def styles_by_name(names: Iterable[str]) -> dict[str, tuple[str, str]]:
  """Returns the dash and colour of each name."""
  return dict(zip(dict.fromkeys(names), line_styles()))


def add_legend(figure: Figure, handles: Mapping[str, Any], ncols: int = 1) -> None:
  """Adds a legend below a figure; Matplotlib omits names that begin with an underscore."""
  names = [f' {shorten_name(name)}' for name in handles]
  figure.legend(list(handles.values()), names, loc='outside lower left', ncols=ncols)


def shorten_name(name: str) -> str:
  """Returns a name that fits the width of a figure, without its middle if it is long.

  >>> shorten_name('abc'), shorten_name('runs/' + 'a' * 60 + '/b')
  ('abc', 'runs/aaaaaaaaaaaaaaaaa…aaaaaaaaaaa/b')
  """
  if len(name) <= _MAX_NAME_CHARS:
    return name
  tail = (_MAX_NAME_CHARS - 1) * 3 // 8
  return f'{name[: _MAX_NAME_CHARS - 1 - tail]}…{name[-tail:]}'


def shorten_lines(title: str) -> str:
  """Returns a title with each of its lines shortened."""
  return '\n'.join(f' {shorten_name(line)}' for line in title.split('\n'))
