"""The figures of a comparison: loss against FLOPs, how much sooner the plateau is left, the
multiplier by the loss.

What is drawn is decided in `outcomes.py` and `multiplier.py`. Style and `<title>`s are those of the
other figures.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minilm_jax.analysis import ablation_results
from minilm_jax.analysis.ablation_results import AT_LEAST, AblationRow
from minilm_jax.analysis.ablations import Ablation, AblationAtSize
from minilm_jax.analysis.loss_curves import ACTUAL
from minilm_jax.analysis.report.figures import COLORS, DASHES, INK, STYLE, add_legend
from minilm_jax.analysis.report.scaling_figures import FigureWithTooltips, logarithmic, ticks

MAX_CURVES = 12  # changes in one figure of curves; the others are in the table alone
_NUM_LOSSES = 32  # at which multipliers are taken
_LINES = (':', '-.', '--', (0, (8, 2)), (0, (1, 4)))  # of levels
_MAX_NAME_CHARS = 44  # letters of a name


def figures(
  part: AblationAtSize, rows: Sequence[AblationRow], level: float | None, lines: Mapping[str, float]
) -> Iterator[tuple[str, FigureWithTooltips]]:
  """The figures that have something to show, by their names.

  Args:
    part: what was compared.
    rows: of `outcomes.rows`, the base first.
    level: of the plateau, nats.
    lines: other losses to draw, by their names.
  """
  drawn = chosen(part, rows)
  if level is not None and not any(math.isclose(level, n, rel_tol=1e-3) for n in lines.values()):
    lines = {'plateau': level, **lines}
  yield 'curves', curves(part.base, drawn, lines)
  timed = [row for row in rows[1:] if math.isfinite(row.speed.value)]
  if timed:
    yield 'dots', dots(timed)
  if any(_multipliers(part.base, change) for change in drawn):
    yield 'multiplier', multipliers(part.base, drawn)


def chosen(part: AblationAtSize, rows: Sequence[AblationRow]) -> list[Ablation]:
  """The changes whose losses compare, those that change most first."""
  far = {
    row.change: abs(math.log(row.multiplier.value))
    for row in rows
    if math.isfinite(row.multiplier.value)
  }
  some = [change for change in part.changes if change.name in far]
  return sorted(some, key=lambda one: (-far[one.name], one.name))[:MAX_CURVES]


def curves(
  base: Ablation, changes: Sequence[Ablation], levels: Mapping[str, float]
) -> FigureWithTooltips:
  """Validation loss against FLOPs, in logarithms: thin lines, the base thick; `levels` are other
  losses by name.
  """
  titles: dict[str, str] = {}
  with mpl.rc_context(STYLE):
    figure, axes = _new(len(changes) + 1 + len(levels), 4.0)
    handles = {}
    for track in base.curves.values():
      (handles[base.name],) = axes.plot(
        track.flops(ACTUAL), track.loss, '-', color=INK, linewidth=3.5, alpha=0.4
      )
    for place, (change, (dash, color)) in enumerate(_looks(changes)):
      for track in change.curves.values():
        gid = f'run-{place}-{len(titles)}'
        (handles[change.name],) = axes.plot(
          track.flops(ACTUAL), track.loss, dash, color=color, linewidth=1.1, gid=gid
        )
        titles[gid] = (
          f'{track.name}: {change.name}, loss {track.loss[-1]:.3f} at {track.flops(ACTUAL)[-1]:.2e} FLOPs'
        )
    for (name, loss), dash in zip(levels.items(), itertools.cycle(_LINES)):
      handles[f'{name}, {loss:.2f} nats'] = axes.axhline(
        loss, color=INK, alpha=0.5, linestyle=dash, linewidth=1
      )
    logarithmic(axes, 'FLOPs of training', 'validation loss (nats a masked token)')
    add_legend(figure, {_short(name)[1:]: handle for name, handle in handles.items()}, fontsize=8)
  return FigureWithTooltips(figure, titles)


def dots(rows: Sequence[AblationRow]) -> FigureWithTooltips:
  """How many times fewer tokens each change takes to leave the plateau; what is a bound is a hollow
  triangle.
  """
  titles: dict[str, str] = {}
  rows = sorted(rows, key=lambda row: (-row.speed.value, row.change))
  with mpl.rc_context(STYLE):
    figure = Figure(figsize=(5.4, 1.3 + 0.26 * len(rows)))
    axes = figure.add_subplot()
    axes.axvline(1, color=INK, alpha=0.5, linestyle=':', linewidth=1)
    axes.set_xscale('log')
    ends = [
      end
      for row in rows
      for end in (row.speed.value, row.speed.low, row.speed.high)
      if math.isfinite(end) and end > 0
    ]
    axes.set_xlim(min([*ends, 1]) / 1.3, max([*ends, 1]) * 1.3)
    for place, row in enumerate(rows):
      own, gid = row.speed, f'speed-{place}'
      if not math.isnan(own.low):
        low, high = axes.get_xlim()
        axes.plot(
          [max(own.low, low), min(own.high, high)], [place, place], '-', color=COLORS[0], alpha=0.5
        )
      axes.plot(
        [own.value],
        [place],
        ('>' if own.bound == AT_LEAST else '<') if own.bound else 'o',
        color=COLORS[0],
        markersize=5,
        markerfacecolor='none' if own.bound else COLORS[0],
        gid=gid,
      )
      titles[gid] = f'{row.change}: speed {own}'
    axes.set_yticks(range(len(rows)), [_short(row.change) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel('speed: tokens that the base takes to leave the plateau / its own', fontsize=9)
    ticks(axes.xaxis, 8)
  return FigureWithTooltips(figure, titles)


def multipliers(base: Ablation, changes: Sequence[Ablation]) -> FigureWithTooltips:
  """The multiplier of each change at losses along its curve, with its 95% interval over seeds, both
  in logarithms.
  """
  with mpl.rc_context(STYLE):
    figure, axes = _new(len(changes), 3.4)
    axes.axhline(1, color=INK, alpha=0.5, linestyle=':', linewidth=1)
    handles = {}
    for change, (dash, color) in _looks(changes):
      found = _multipliers(base, change)
      losses, values = list(found), list(found.values())
      axes.fill_between(
        losses,
        [one.low for one in values],
        [one.high for one in values],
        color=color,
        alpha=0.12,
        linewidth=0,
      )
      (handles[change.name],) = axes.plot(
        losses, [one.value for one in values], dash, color=color, linewidth=1.3
      )
    logarithmic(axes, 'validation loss (nats a masked token), falling', 'compute multiplier')
    ticks(axes.xaxis, 8)
    axes.invert_xaxis()
    add_legend(figure, {_short(name)[1:]: handle for name, handle in handles.items()}, fontsize=8)
  return FigureWithTooltips(figure, {})


def _multipliers(base: Ablation, change: Ablation) -> dict[float, ablation_results.PairedRatio]:
  """By loss, from what all runs had to reach after their first evaluation down to the lowest that
  all have reached.
  """
  tracks = [track for side in (base, change) for track in side.curves.values()]
  high, low = (
    min(track.loss[0] for track in tracks),
    ablation_results.find_shared_loss(base, change),
  )
  if not low < high:
    return {}
  return {
    float(loss): ablation_results.measure_multiplier(base, change, float(loss))
    for loss in np.geomspace(low, high, _NUM_LOSSES)
  }


def _new(names: int, height: float) -> tuple[Figure, Axes]:
  figure = Figure(figsize=(5.4, height + 0.2 * math.ceil(names / 2)))
  return figure, figure.add_subplot()


def _looks(changes: Sequence[Ablation]) -> Iterator[tuple[Ablation, tuple[str, str]]]:
  return zip(changes, itertools.cycle(itertools.product(DASHES, COLORS)))


def _short(name: str) -> str:
  return f' {name}' if len(name) <= _MAX_NAME_CHARS else f' {name[: _MAX_NAME_CHARS - 1]}…'
