"""Figures of a comparison of ablations: loss by FLOPs, tokens to leave the plateau, multipliers.

The numbers come from `ablation_results`.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from minilm_jax.analysis import ablation_results
from minilm_jax.analysis.ablation_results import AT_LEAST, AblationRow, PairedRatio
from minilm_jax.analysis.ablations import Ablation, AblationAtSize
from minilm_jax.analysis.loss_curves import ACTUAL
from minilm_jax.analysis.report.figures import (
  COLORS,
  INK,
  STYLE,
  WIDTH,
  Drawing,
  add_legend,
  label_rows,
  line_styles,
)
from minilm_jax.analysis.report.scaling_figures import set_log_axes, set_log_ticks
from minilm_jax.analysis.report.sections import Section

_MAX_CURVES = 12  # ablations in one figure; the table has all
_NUM_LOSSES = 32  # losses at which multipliers are measured
_LEVEL_DASHES = (':', '-.', '--', (0, (8, 2)), (0, (1, 4)))


def make_figure_sections(
  part: AblationAtSize,
  rows: Sequence[AblationRow],
  level: float | None,
  lines: Mapping[str, float],
  shape: str,
) -> Iterator[Section]:
  """Yields the figures that have content.

  Args:
    rows: of `ablation_results.make_rows`, the base first.
    shape: name of the shape in titles and names of files; '' with a single shape.
  """
  scope, suffix = (f', {shape}', f'-{shape}') if shape else ('', '')
  ablations = select_ablations(part, rows)
  if level is not None and not any(math.isclose(level, n, rel_tol=1e-3) for n in lines.values()):
    lines = {'plateau': level, **lines}
  yield Section(
    f'Loss by FLOPs{scope}',
    figures={f'curves{suffix}': draw_curves(part.base, ablations, lines)},
    caption='Validation loss, a line a run; point at a line for its run.',
    notes=[f'The figure has the {_MAX_CURVES} ablations with the largest effects.'],
  )
  timed = [row for row in rows[1:] if math.isfinite(row.speed.value)]
  if timed:
    yield Section(
      f'Tokens to leave the plateau{scope}',
      figures={f'dots{suffix}': draw_speeds(timed)},
      caption='Speed: tokens of the base over tokens of the ablation, with the 95% interval.',
      notes=['A hollow triangle is a bound: some run never left the plateau.'],
    )
  multipliers = {ablation.name: _measure_multipliers(part.base, ablation) for ablation in ablations}
  if any(multipliers.values()):
    yield Section(
      f'Compute multiplier by loss{scope}',
      figures={f'multiplier{suffix}': draw_multipliers(multipliers)},
      caption='FLOPs of the base to a loss over FLOPs of the ablation to the same loss.',
      notes=['Bands are 95% intervals over seeds.'],
    )


def select_ablations(part: AblationAtSize, rows: Sequence[AblationRow]) -> list[Ablation]:
  """Returns the ablations with comparable losses, the largest effects first."""
  effects = {
    row.change: abs(math.log(row.multiplier.value))
    for row in rows
    if math.isfinite(row.multiplier.value)
  }
  comparable = [ablation for ablation in part.changes if ablation.name in effects]
  comparable.sort(key=lambda ablation: (-effects[ablation.name], ablation.name))
  return comparable[:_MAX_CURVES]


@mpl.rc_context(STYLE)
def draw_curves(
  base: Ablation, ablations: Sequence[Ablation], levels: Mapping[str, float]
) -> Drawing:
  """Draws validation loss by FLOPs on logarithmic axes, with the base thick and levels by name."""
  tooltips: dict[str, str] = {}
  figure = _new_figure(len(ablations) + 1 + len(levels))
  axes = figure.add_subplot()
  handles = {}
  for curve in base.curves.values():
    (handles[base.name],) = axes.plot(
      curve.flops(ACTUAL), curve.loss, '-', color=INK, linewidth=3.5, alpha=0.4
    )
  for number, (ablation, (dash, color)) in enumerate(zip(ablations, line_styles())):
    for curve in ablation.curves.values():
      gid, flops = f'run-{number}-{len(tooltips)}', curve.flops(ACTUAL)
      (handles[ablation.name],) = axes.plot(
        flops, curve.loss, dash, color=color, linewidth=1.1, gid=gid
      )
      tooltips[gid] = (
        f'{curve.name}: {ablation.name}, loss {curve.loss[-1]:.3f} at {flops[-1]:.2e} FLOPs'
      )
  for (name, loss), dash in zip(levels.items(), itertools.cycle(_LEVEL_DASHES)):
    handles[f'{name}, {loss:.2f} nats'] = axes.axhline(
      loss, color=INK, alpha=0.5, linestyle=dash, linewidth=1
    )
  set_log_axes(axes, 'FLOPs of training', 'validation loss (nats)')
  add_legend(figure, handles)
  return Drawing(figure, tooltips)


@mpl.rc_context(STYLE)
def draw_speeds(rows: Sequence[AblationRow]) -> Drawing:
  """Draws the speed of each ablation with its interval; a bound is a hollow triangle."""
  tooltips: dict[str, str] = {}
  rows = sorted(rows, key=lambda row: (-row.speed.value, row.change))
  figure = Figure(figsize=(WIDTH, 1.2 + 0.5 * len(rows)))
  axes = figure.add_subplot()
  axes.axvline(1, color=INK, alpha=0.5, linestyle=':', linewidth=1)
  axes.set_xscale('log')
  ends = [
    end
    for row in rows
    for end in (row.speed.value, row.speed.low, row.speed.high)
    if math.isfinite(end) and end > 0
  ]
  low, high = min([*ends, 1]) / 1.3, max([*ends, 1]) * 1.3
  axes.set_xlim(low, high)
  for index, row in enumerate(rows):
    speed, gid, y = row.speed, f'speed-{index}', index + 0.15
    if not math.isnan(speed.low):
      interval = [max(speed.low, low), min(speed.high, high)]
      axes.plot(interval, [y, y], '-', color=COLORS[0], alpha=0.5)
    axes.plot(
      [speed.value],
      [y],
      ('>' if speed.bound == AT_LEAST else '<') if speed.bound else 'o',
      color=COLORS[0],
      markersize=5,
      markerfacecolor='none' if speed.bound else COLORS[0],
      gid=gid,
    )
    tooltips[gid] = f'{row.change}: speed {speed}'
  label_rows(axes, [row.change for row in rows])
  axes.set_xlabel('speed: tokens of the base / tokens')
  set_log_ticks(axes.xaxis, 6)
  return Drawing(figure, tooltips)


@mpl.rc_context(STYLE)
def draw_multipliers(multipliers: Mapping[str, Mapping[float, PairedRatio]]) -> Drawing:
  """Draws the compute multiplier of each ablation along the loss, with its 95% interval."""
  figure = _new_figure(len(multipliers))
  axes = figure.add_subplot()
  axes.axhline(1, color=INK, alpha=0.5, linestyle=':', linewidth=1)
  handles = {}
  for (name, by_loss), (dash, color) in zip(multipliers.items(), line_styles()):
    losses, ratios = list(by_loss), list(by_loss.values())
    low, high = [ratio.low for ratio in ratios], [ratio.high for ratio in ratios]
    axes.fill_between(losses, low, high, color=color, alpha=0.12, linewidth=0)
    (handles[name],) = axes.plot(
      losses, [ratio.value for ratio in ratios], dash, color=color, linewidth=1.3
    )
  set_log_axes(axes, 'validation loss (nats), falling', 'compute multiplier')
  set_log_ticks(axes.xaxis, 6)
  axes.invert_xaxis()
  add_legend(figure, handles)
  return Drawing(figure)


def _measure_multipliers(base: Ablation, ablation: Ablation) -> dict[float, PairedRatio]:
  """Returns multipliers by loss, between the first loss of every run and the lowest shared loss."""
  curves = [curve for side in (base, ablation) for curve in side.curves.values()]
  high = min(curve.loss[0] for curve in curves)
  low = ablation_results.find_shared_loss(base, ablation)
  if not low < high:
    return {}
  return {
    float(loss): ablation_results.measure_multiplier(base, ablation, float(loss))
    for loss in np.geomspace(low, high, _NUM_LOSSES)
  }


def _new_figure(num_names: int) -> Figure:
  return Figure(figsize=(WIDTH, 3.4 + 0.23 * num_names))
