"""Pictures: one function a figure, one style, no window system.

A figure is drawn without a background and with its ink in one colour, so that `svg` can hand out a picture which takes
the colour of the page around it, light or dark. What is drawn is decided elsewhere; nothing is read from disk here.
"""

import dataclasses
import io
import itertools
from collections.abc import Iterator, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

INK = '#010203'  # a colour that nothing else has: `svg` replaces it
# Told apart by colour-blind readers, and legible on white and on black (Okabe and Ito's, without yellow and black).
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00')
DASHES = ('-', '--', ':', '-.')
STYLE = {
    'axes.edgecolor': INK, 'axes.labelcolor': INK, 'xtick.color': INK, 'ytick.color': INK, 'text.color': INK,
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True, 'grid.alpha': 0.15, 'grid.color': INK,
    'font.size': 10, 'font.family': 'sans-serif', 'legend.frameon': False, 'lines.linewidth': 1.6,
    'text.parse_math': False,  # a run may be called $1
    'svg.fonttype': 'none', 'svg.hashsalt': 'minilm_jax', 'figure.constrained_layout.use': True,
}


@dataclasses.dataclass(frozen=True)
class Curve:
  """The losses of one run, in nats; a point that is not a number leaves a gap."""

  name: str
  train_tokens: tuple[float, ...]
  train_loss: tuple[float, ...]
  validation_tokens: tuple[float, ...]
  validation_loss: tuple[float, ...]


def loss(curves: Sequence[Curve]) -> Figure:
  """Validation loss (line with points) and training loss (faint line) of every run against the tokens it has seen."""
  with mpl.rc_context(STYLE):
    rows = max(1, len(curves))
    figure = Figure(figsize=(5.4, 3.2 + 0.2 * rows))
    axes = figure.add_subplot()
    handles = []
    for curve, (dash, color) in zip(curves, _looks()):
      axes.plot(curve.train_tokens, curve.train_loss, dash, color=color, alpha=0.5, linewidth=1)
      handles += axes.plot(curve.validation_tokens, curve.validation_loss, dash, color=color, marker='o', markersize=3)
    _label(axes, 'tokens seen', 'masked-token loss (nats)')
    axes.xaxis.set_major_formatter(EngFormatter(sep=''))
    names = [f' {curve.name}' for curve in curves]  # Matplotlib leaves out a name that begins with an underscore
    figure.legend(handles, names, loc='outside lower left', title='points: validation · faint: training',
                  alignment='left', fontsize=9, title_fontsize=9)
  return figure


def svg(figure: Figure) -> str:
  """The figure as an `<svg>` element that takes the colour of the text around it; the same bytes every time."""
  with mpl.rc_context(STYLE):
    file = io.StringIO()
    figure.savefig(file, format='svg', transparent=True, metadata={'Date': None, 'Creator': None})
  text = file.getvalue()
  return text[text.index('<svg'):].replace(INK, 'currentColor')


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


def _label(axes: Axes, x: str, y: str) -> None:
  axes.set_xlabel(x)
  axes.set_ylabel(y)
  axes.xaxis.set_major_locator(MaxNLocator(5))
  axes.yaxis.set_major_locator(MaxNLocator(7))
