"""Pictures: one function a figure, one style, no window system.

A figure is drawn without a background and with its ink in one colour, so that `svg` can hand out a
picture which takes the colour of the page around it, light or dark. What is drawn is decided
elsewhere; nothing is read from disk here.
"""

import dataclasses
import io
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from minilm_jax.core.errors import sanitize

INK = '#010203'  # a colour that nothing else has: `svg` replaces it
# Told apart by colour-blind readers, and legible on white and on black (Okabe and Ito's, without
# yellow and black).
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00')
DASHES = ('-', '--', ':', '-.')
_MAX_NUMBERED_CLASSES = 14  # classes of a confusion matrix up to which numbers fit its squares
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
  'font.size': 10,
  'font.family': 'sans-serif',
  'legend.frameon': False,
  'lines.linewidth': 1.6,
  'text.parse_math': False,  # a run may be called $1
  'svg.fonttype': 'none',
  'svg.hashsalt': 'minilm_jax',
  'figure.constrained_layout.use': True,
}


@dataclasses.dataclass(frozen=True)
class MeanBand:
  """A mean with its interval at each x; ends that are not numbers draw no band."""

  name: str
  x: tuple[float, ...]
  mean: tuple[float, ...]
  low: tuple[float, ...]
  high: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Panel:
  """A small picture of some bands, and of a level that is reached without a model."""

  title: str
  bands: tuple[MeanBand, ...]
  level: float = math.nan


@dataclasses.dataclass(frozen=True)
class DotRow:
  """One row of a dot plot: (mean, low, high) of each arm by name, and levels that are reached
  without a model.
  """

  name: str
  arms: Mapping[str, tuple[float, float, float]]
  levels: Mapping[str, float]


def loss(curves: Sequence[RunLosses]) -> Figure:
  """Validation loss (line with points) and training loss (faint line) of every run against the
  tokens it has seen.
  """
  with mpl.rc_context(STYLE):
    rows = max(1, len(curves))
    figure = Figure(figsize=(5.4, 3.2 + 0.2 * rows))
    axes = figure.add_subplot()
    handles = []
    for curve, (dash, color) in zip(curves, _looks()):
      axes.plot(curve.train_tokens, curve.train_loss, dash, color=color, alpha=0.5, linewidth=1)
      handles += axes.plot(
        curve.validation_tokens, curve.validation_loss, dash, color=color, marker='o', markersize=3
      )
    _label(axes, 'tokens seen', 'masked-token loss (nats)')
    axes.xaxis.set_major_formatter(EngFormatter(sep=''))
    names = [
      f' {curve.name}' for curve in curves
    ]  # Matplotlib leaves out a name that begins with an underscore
    figure.legend(
      handles,
      names,
      loc='outside lower left',
      title='points: validation · faint: training',
      alignment='left',
      fontsize=9,
      title_fontsize=9,
    )
  return figure


def dots(rows: Sequence[DotRow], x: str) -> Figure:
  """A row a task: the mean of each arm as a dot on its interval, and what takes no model as marks."""
  with mpl.rc_context(STYLE):
    longest = max((len(row.name) for row in rows), default=0)
    # Beside names longer than 30 nothing would be left for the dots; one of any length makes no
    # figure of any width.
    width = 5.4 + 0.08 * min(max(0, longest - 30), 120)
    figure = Figure(figsize=(width, 1.3 + 0.45 * max(1, len(rows))))
    axes = figure.add_subplot()
    arms = _looks_of(name for row in rows for name in row.arms)
    marks = dict(
      zip(dict.fromkeys(name for row in rows for name in row.levels), itertools.cycle('|xd'))
    )
    handles: dict[str, Any] = dict.fromkeys(arms)  # they come first
    for place, row in enumerate(rows):
      for number, (name, (_, color)) in enumerate(arms.items()):
        if name in row.arms and math.isfinite(row.arms[name][0]):
          (mean, low, high), y = (
            row.arms[name],
            place + 0.3 * (number / max(1, len(arms) - 1) - 0.5),
          )
          axes.plot(
            [low, high], [y, y], '-', color=color, alpha=0.6
          )  # without an interval there is none to see
          (handles[name],) = axes.plot([mean], [y], 'o', color=color, markersize=5)
      for name, level in row.levels.items():
        if math.isfinite(level):
          (handles[name],) = axes.plot(
            [level], [place], marks[name], color=INK, alpha=0.7, markersize=9 - len(marks)
          )
    axes.set_yticks(range(len(rows)), [f' {row.name}' for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(x)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    add_legend(figure, {name: handle for name, handle in handles.items() if handle is not None})
  return figure


def learning(rows: Sequence[Panel], y: str) -> Figure:
  """Fine-tuning by epoch, a small panel a task."""
  return _panels(rows, 'epoch', y)


def trajectory(rows: Sequence[Panel], y: str) -> Figure:
  """A score by the step of the checkpoint it was fine-tuned from, a small panel a task."""
  return _panels(rows, 'step of the checkpoint', y)


def _panels(panels: Sequence[Panel], x: str, y: str) -> Figure:
  with mpl.rc_context(STYLE):
    columns = min(3, max(1, len(panels)))
    lines = math.ceil(max(1, len(panels)) / columns)
    looks = _looks_of(band.name for panel in panels for band in panel.bands)
    figure = Figure(
      figsize=(1 + 2.2 * columns, 0.6 + 1.9 * lines + 0.2 * math.ceil(len(looks) / 2))
    )
    handles: dict[str, Any] = {}
    for number, (axes, panel) in enumerate(
      zip(figure.subplots(lines, columns, squeeze=False).flat, panels)
    ):
      for band in panel.bands:
        dash, color = looks[band.name]
        axes.fill_between(band.x, band.low, band.high, color=color, alpha=0.2, linewidth=0)
        (handles[band.name],) = axes.plot(
          band.x, band.mean, dash, color=color, marker='o', markersize=2.5
        )
      if math.isfinite(panel.level):
        handles['majority'] = axes.axhline(
          panel.level, color=INK, alpha=0.5, linestyle=':', linewidth=1
        )
      axes.set_title(f' {panel.title}', fontsize=9)
      _label(axes, '', '')
      if number + columns >= len(
        panels
      ):  # one label of the whole figure would lie under the legend
        axes.set_xlabel(x, fontsize=9)
      axes.xaxis.set_major_formatter(EngFormatter(sep=''))
      axes.tick_params(labelsize=8)
    for axes in figure.axes[len(panels) :]:
      axes.set_axis_off()
    figure.supylabel(y, fontsize=9)
    add_legend(figure, handles)
  return figure


def confusion(
  title: str, classes: Sequence[str], arms: Mapping[str, Float[np.ndarray, 'C C']]
) -> Figure:
  """A square an arm: the share of each true class (row) that was said to be each class (column),
  with counts.
  """
  without_grid: dict[Any, Any] = STYLE | {'axes.grid': False}
  with mpl.rc_context(without_grid):
    size = len(classes)
    figure = Figure(figsize=(1 + (1.2 + 0.45 * size) * max(1, len(arms)), 1.4 + 0.45 * size))
    figure.suptitle(f' {title}', fontsize=10)
    for axes, (name, counts) in zip(
      figure.subplots(1, max(1, len(arms)), squeeze=False).flat, arms.items()
    ):
      shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
      edges = np.arange(size + 1) - 0.5
      axes.pcolormesh(
        edges,
        edges,
        shares,
        vmin=0,
        vmax=1.5,  # the darkest square still lets its number be read
        cmap=LinearSegmentedColormap.from_list('share', [(*to_rgb(COLORS[0]), 0), COLORS[0]]),
      )
      axes.set_aspect('equal')
      axes.invert_yaxis()
      for (true, said), count in np.ndenumerate(counts):
        if size <= _MAX_NUMBERED_CLASSES:
          axes.text(said, true, f'{count:,.0f}', ha='center', va='center', fontsize=8)
      axes.set_title(name, fontsize=9)
      axes.set_xticks(range(size), classes, rotation=90, fontsize=8)
      axes.set_yticks(range(size), classes if axes is figure.axes[0] else [], fontsize=8)
      axes.set_xlabel('said', fontsize=9)
    figure.axes[0].set_ylabel('true', fontsize=9)
  return figure


def svg(figure: Figure) -> str:
  """The figure as an `<svg>` element that takes the colour of the text around it; the same bytes
  every time.
  """
  with mpl.rc_context(STYLE):
    file = io.StringIO()
    figure.savefig(file, format='svg', transparent=True, metadata={'Date': None, 'Creator': None})
  text = file.getvalue()
  return sanitize(text[text.index('<svg') :]).replace(INK, 'currentColor')


def png(figure: Figure) -> bytes:
  """The figure on white, for slides and papers."""
  with mpl.rc_context(STYLE):
    file = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(file, format='png', dpi=200, facecolor='white', metadata={'Software': None})
  return file.getvalue()


def _looks() -> Iterator[tuple[str, str]]:
  """Line styles without end: colours first, then dashes."""
  return itertools.cycle(itertools.product(DASHES, COLORS))


def add_legend(
  figure: Figure, handles: Mapping[str, Any], fontsize: int = 9, ncols: int = 2
) -> None:
  """Adds a legend of named lines below a figure."""
  names = [
    f' {name}' for name in handles
  ]  # Matplotlib leaves out a name that begins with an underscore
  figure.legend(
    list(handles.values()), names, loc='outside lower left', ncols=ncols, fontsize=fontsize
  )


def _looks_of(names: Iterable[str]) -> dict[str, tuple[str, str]]:
  return dict(zip(dict.fromkeys(names), _looks()))


def _label(axes: Axes, x: str, y: str) -> None:
  axes.set_xlabel(x)
  axes.set_ylabel(y)
  axes.xaxis.set_major_locator(MaxNLocator(5))
  axes.yaxis.set_major_locator(MaxNLocator(7))
