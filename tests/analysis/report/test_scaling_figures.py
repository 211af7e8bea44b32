"""Figures of a grid: what they draw, that points say what they are, the same bytes every time."""

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from minilm_jax.analysis import cost_effectiveness, frontier
from minilm_jax.analysis.correlation import ScoredModel
from minilm_jax.analysis.report import figures, scaling_figures
from minilm_jax.analysis.report.scaling_figures import FigureWithTooltips, FittedLine
from tests import fake_runs

TRACKS = [
  fake_runs.make_scaling_curve(f'h{h} l{layers} <&>', hidden=h, layers=layers)
  for h in (32, 64, 256)
  for layers in (1, 2)
]
NUMBERS = {track.name: number for number, track in enumerate(TRACKS, 1)}
MODELS = [
  ScoredModel(
    track.name,
    track.loss[-1],
    math.nan,
    7.0,
    track.parameters,
    0.5 + n / 50,
    0.4,
    0.1,
    0.2 + n / 50,
  )
  for n, track in enumerate(TRACKS)
]
NAME = '{http://www.w3.org/2000/svg}'


def compute() -> FigureWithTooltips:
  x = np.geomspace(1e13, 1e15, 50)
  return scaling_figures.compute(
    TRACKS,
    frontier.percentile_frontier(TRACKS),
    [FittedLine('one law', x, 100 * x**-0.1)],
    (1e14, 5e13, 2e14),
  )


DRAWN = {
  'compute': compute,
  'plane': lambda: scaling_figures.plane(cost_effectiveness.list_options(TRACKS), NUMBERS),
  'scores': lambda: scaling_figures.scores(
    {'cola': MODELS, 'a, b': MODELS[:2]}, NUMBERS, {'cola': 'ρ +1.00'}
  ),
  'gain': lambda: scaling_figures.gain({'cola': MODELS}, NUMBERS),
}


def titles(svg: str) -> dict[str, str]:
  """The title of each group of an SVG that has one, by the group's id; fails where it is not
  well-formed.
  """
  found = {}
  for group in ET.fromstring(svg).iter(f'{NAME}g'):
    title = group.find(f'{NAME}title')
    if title is not None:
      assert group[0] is title  # a browser shows the first child alone
      found[group.attrib['id']] = title.text
  return found


@pytest.mark.parametrize('name', DRAWN)
def test_every_point_says_what_it_is(name: str):
  drawn = DRAWN[name]()
  svg = drawn.svg()
  assert drawn.titles and titles(svg) == drawn.titles
  assert figures.INK not in svg and 'currentColor' in svg and '<script' not in svg
  assert figures.png(drawn.figure).startswith(b'\x89PNG')


@pytest.mark.parametrize('name', DRAWN)
def test_the_same_bytes_every_time(name: str):
  assert DRAWN[name]().svg() == DRAWN[name]().svg()


def test_all_runs_the_frontier_and_the_break_are_drawn():
  drawn = compute()
  (axes,) = drawn.figure.axes
  assert axes.get_xscale() == axes.get_yscale() == 'log'
  assert sum(name.startswith('curve') for name in drawn.titles) == len(TRACKS)
  points = frontier.percentile_frontier(TRACKS)
  dots = [line for line in axes.lines if str(line.get_gid()).startswith('frontier')]
  assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in dots] == [
    (one.flops, one.loss) for one in points
  ]
  legend = {text.get_text().strip() for text in drawn.figure.legends[0].get_texts()}
  assert legend == {'1 layer', '2 layers', 'break, 1.0e+14 FLOPs', 'one law', 'frontier'}
  assert (
    len({line.get_color() for line in axes.lines if str(line.get_gid()).startswith('curve')}) == 2
  )
  losses = [loss for track in TRACKS for loss in track.loss]
  assert axes.get_ylim()[0] < min(losses) < max(losses) < axes.get_ylim()[1] < 2 * max(losses)


def test_a_break_without_interval_and_no_frontier_are_no_trouble():
  one = scaling_figures.compute(TRACKS, [], [], (1e14, math.nan, math.nan))
  assert not one.figure.axes[0].patches and titles(one.svg())
  assert len(compute().figure.axes[0].patches) == 1


def test_dominated_options_are_hollow():
  options = cost_effectiveness.list_options(
    [fake_runs.make_scaling_curve('good', 2.0), fake_runs.make_scaling_curve('bad', 3.0, hidden=64)]
  )
  drawn = scaling_figures.plane(options, {'good': 1, 'bad': 2})
  (axes,) = drawn.figure.axes
  faces = {
    line.get_gid(): line.get_markerfacecolor()
    for line in axes.lines
    if str(line.get_gid()).startswith('option')
  }
  assert [faces[f'option-{n}'] == 'none' for n, option in enumerate(options)] == [
    option.dominated for option in options
  ]
  assert {text.get_text() for text in axes.texts} == {'1', '2'}


def test_scores_and_gains_are_times_100_and_undefined_ones_are_not_drawn():
  undefined = ScoredModel('h32 l1 <&>', 2.0, math.nan, 7.0, 10, math.nan, 0.1, math.nan, math.nan)
  drawn = scaling_figures.scores({'cola': [*MODELS[1:], undefined]}, NUMBERS, {})
  assert [line.get_ydata()[0] for line in drawn.figure.axes[0].lines] == [
    100 * model.score for model in MODELS[1:]
  ]
  drawn = scaling_figures.gain({'cola': [*MODELS, undefined], 'rte': [undefined]}, NUMBERS)
  assert len(drawn.titles) == len(MODELS) and '+10.0 by pre-training' in drawn.titles['gain-0-0']


def test_titles_go_into_their_own_group_escaped():
  svg = '<svg xmlns="http://www.w3.org/2000/svg"><g id="a-1"/><g id="a-11"><path/></g></svg>'
  found = titles(scaling_figures.titled(svg, {'a-11': '<b> & "c"'}))
  assert found == {'a-11': '<b> & "c"'}
