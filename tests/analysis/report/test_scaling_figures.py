"""Tests of `scaling_figures`: content, tooltips of points, equal bytes."""

import dataclasses
import math
import xml.etree.ElementTree

import pytest

from minilm_jax.analysis import cost_effectiveness, frontier
from minilm_jax.analysis.correlation import ScoredModel
from minilm_jax.analysis.laws import broken_laws, power_laws
from minilm_jax.analysis.report import figures, scaling_figures
from minilm_jax.analysis.report.figures import Drawing
from minilm_jax.analysis.report.scaling_figures import GAIN, SCORE
from tests import fake_runs

CURVES = [
  fake_runs.make_scaling_curve(f'h{hidden} l{layers} <&>', hidden=hidden, layers=layers)
  for hidden in (32, 64, 256)
  for layers in (1, 2)
]
POINTS = frontier.find_percentile_frontier(CURVES)
POWER = power_laws.fit_log_power(*frontier.to_arrays(POINTS))
PIECES = broken_laws.fit_two_piece(*frontier.to_arrays(POINTS))
BREAK = PIECES.constants['C0']
PIECES = dataclasses.replace(PIECES, intervals={'C0': (BREAK / 2, BREAK * 2)})
NUMBERS = {curve.name: number for number, curve in enumerate(CURVES, 1)}
MODELS = [
  ScoredModel(
    curve.name,
    curve.loss[-1],
    math.nan,
    7.0,
    curve.parameters,
    0.5 + index / 50,
    0.4,
    0.1,
    0.2 + index / 50,
    curve.arm,
  )
  for index, curve in enumerate(CURVES)
]
UNDEFINED = ScoredModel('h32 l1 <&>', 2.0, math.nan, 7.0, 10, math.nan, 0.1, math.nan, math.nan, ())
SVG = '{http://www.w3.org/2000/svg}'


def draw_compute() -> Drawing:
  return scaling_figures.draw_compute(CURVES, POINTS, [PIECES, POWER])


DRAWINGS = {
  'compute': draw_compute,
  'plane': lambda: scaling_figures.draw_plane(cost_effectiveness.list_options(CURVES), NUMBERS),
  'scores': lambda: scaling_figures.draw_models(
    SCORE, {'cola': MODELS, 'a, b': MODELS[:2]}, NUMBERS, {'cola': 'ρ +1.00'}
  ),
  'gains': lambda: scaling_figures.draw_models(GAIN, {'cola': MODELS}, NUMBERS, {}),
}


def read_tooltips(svg: str) -> dict[str, str]:
  """Returns the title of each group of an SVG; fails unless the title is the first child."""
  tooltips = {}
  for group in xml.etree.ElementTree.fromstring(svg).iter(f'{SVG}g'):
    title = group.find(f'{SVG}title')
    if title is not None:
      assert group[0] is title  # browsers show the first child only
      tooltips[group.attrib['id']] = title.text
  return tooltips


def select_lines(drawing: Drawing, prefix: str) -> list:
  (axes,) = drawing.figure.axes
  return [line for line in axes.lines if str(line.get_gid()).startswith(prefix)]


@pytest.mark.parametrize('name', DRAWINGS)
def test_every_point_has_a_tooltip_and_bytes_are_equal(name: str):
  drawing = DRAWINGS[name]()
  svg = drawing.svg
  assert drawing.tooltips and read_tooltips(svg) == drawing.tooltips
  assert figures.INK not in svg and 'currentColor' in svg and '<script' not in svg
  assert drawing.to_png().startswith(b'\x89PNG') and DRAWINGS[name]().svg == svg


def test_compute_has_all_runs_the_frontier_and_the_break():
  drawing = draw_compute()
  (axes,) = drawing.figure.axes
  assert axes.get_xscale() == axes.get_yscale() == 'log' and len(axes.patches) == 1
  assert sum(gid.startswith('curve') for gid in drawing.tooltips) == len(CURVES)
  dots = select_lines(drawing, 'frontier')
  assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in dots] == [
    (point.flops, point.loss) for point in POINTS
  ]
  legend = {text.get_text().strip() for text in drawing.figure.legends[0].get_texts()}
  constants = {**POWER.constants, **PIECES.constants}
  assert legend == {
    *('1 layer', '2 layers', f'break, {BREAK:.1e} FLOPs', 'frontier'),
    f'one law, C^-{constants["b"]:.3f}',
    figures.shorten_name(f'two laws, C^-{constants["b1"]:.3f}, C^-{constants["b2"]:.3f}'),
  }
  assert len({line.get_color() for line in select_lines(drawing, 'curve')}) == 2
  losses = [loss for curve in CURVES for loss in curve.loss]
  low, high = axes.get_ylim()
  assert low < min(losses) < max(losses) < high < 2 * max(losses)


def test_compute_without_interval_and_frontier():
  pieces = dataclasses.replace(PIECES, intervals={})
  drawing = scaling_figures.draw_compute(CURVES, [], [pieces])
  assert not drawing.figure.axes[0].patches and read_tooltips(drawing.svg)


def test_dominated_options_are_hollow():
  options = cost_effectiveness.list_options(
    [fake_runs.make_scaling_curve('good', 2.0), fake_runs.make_scaling_curve('bad', 3.0, hidden=64)]
  )
  drawing = scaling_figures.draw_plane(options, {'good': 1, 'bad': 2})
  is_hollow = {
    line.get_gid(): line.get_markerfacecolor() == 'none' for line in select_lines(drawing, 'option')
  }
  assert is_hollow == {f'option-{n}': option.dominated for n, option in enumerate(options)}
  assert {text.get_text() for text in drawing.figure.axes[0].texts} == {'1', '2'}


def test_numbers_that_would_overlap_are_left_out():
  options = cost_effectiveness.list_options(
    [fake_runs.make_scaling_curve(name, 2.0) for name in 'ab']
    + [fake_runs.make_scaling_curve('c', 3.0, hidden=64)]
  )
  drawing = scaling_figures.draw_plane(options * 2, {name: n for n, name in enumerate('abc')})
  assert len(drawing.figure.axes[0].texts) == len(options)


def test_scores_and_gains_are_times_100_and_omit_undefined_scores():
  drawing = scaling_figures.draw_models(SCORE, {'cola': [*MODELS[1:], UNDEFINED]}, NUMBERS, {})
  scores = [line.get_ydata()[0] for line in drawing.figure.axes[0].lines]
  assert scores == [100 * model.score for model in MODELS[1:]]
  drawing = scaling_figures.draw_models(GAIN, {'cola': [*MODELS, UNDEFINED]}, NUMBERS, {})
  assert len(drawing.tooltips) == len(MODELS) and '+10.0' in drawing.tooltips['gain-0-0']
