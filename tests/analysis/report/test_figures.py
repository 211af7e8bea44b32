"""Tests of `figures`: content of figures, colours of the page, literal names, equal bytes."""

import math
import xml.etree.ElementTree

import numpy as np
import pytest

from minilm_jax.analysis.report import figures
from minilm_jax.analysis.report.figures import Confusion, DotRow, Drawing, Panel
from minilm_jax.analysis.report.sections import Section, encode_figures
from minilm_jax.analysis.runs import RunLosses
from minilm_jax.analysis.scores import Group

CURVE = RunLosses('tiny', (1e6, 2e6, 3e6), (9.0, 7.0, 6.0), (2e6, 3e6), (6.9, 5.9))
DOTS = [
  DotRow(
    'cola',
    {'pre-trained': Group(mean=0.2, low=0.15, high=0.25), 'from scratch': Group(mean=0.1)},
    {'majority': 0.0},
  ),
  DotRow('$x$', {'pre-trained': Group()}, {'majority': math.nan}),
]
BANDS = {
  'pre-trained': {1.0: Group(mean=0.2, low=0.1, high=0.3), 2.0: Group(mean=0.3)},
  'from scratch': {1.0: Group(mean=0.1, low=0.05, high=0.15), 2.0: Group()},
}
PANEL = Panel('cola', BANDS, 0.03)
SVG = '{http://www.w3.org/2000/svg}'


def draw_panels() -> Drawing:
  scratch = {'from scratch': BANDS['from scratch']}
  return figures.draw_panels([PANEL, Panel('rte', scratch)] * 2, 'epoch', 'score', 100)


def draw_confusion() -> Drawing:
  counts = np.array([[3.0, 1.0], [0.0, 1234.0]])
  arms = {'pre-trained': counts, 'from scratch': 0 * counts}
  return figures.draw_confusion(Confusion('cola', ('no', 'yes'), arms))


def test_losses_have_every_point_of_every_run():
  train, validation = figures.draw_losses([CURVE]).figure.axes[0].lines
  np.testing.assert_array_equal(
    train.get_xydata(), np.transpose([CURVE.train_tokens, CURVE.train_loss])
  )
  np.testing.assert_array_equal(
    validation.get_xydata(), np.transpose([CURVE.validation_tokens, CURVE.validation_loss])
  )


def test_each_run_has_its_own_style():
  lines = figures.draw_losses([CURVE] * 20).figure.axes[0].lines
  styles = [(line.get_color(), line.get_linestyle()) for line in lines]
  assert styles[::2] == styles[1::2] and len(set(styles)) == 20


@pytest.mark.parametrize('name', ['_hidden', '$x', '$\\frac$', '<b>&amp;', 'größe', 'a' * 60])
def test_svg_has_literal_names(name: str):
  svg = figures.draw_losses([RunLosses(name, (1.0,), (2.0,), (1.0,), (2.0,))]).svg
  elements = list(xml.etree.ElementTree.fromstring(svg).iter())
  texts = [''.join(e.itertext()).strip() for e in elements if e.tag == f'{SVG}text']
  assert figures.shorten_name(name) in texts
  assert [e.text for e in elements if e.tag == f'{SVG}title'] == [name]


@pytest.mark.parametrize('values', [(math.nan, 5.0), (math.inf, 5.0), (math.nan, math.nan)])
def test_undefined_losses_leave_a_gap(values: tuple[float, float]):
  drawing = figures.draw_losses([RunLosses('a', (1.0, 2.0), values, (), ())])
  assert drawing.svg and all(map(math.isfinite, drawing.figure.axes[0].get_ylim()))


def test_dots_have_means_on_intervals_and_baselines():
  drawing = figures.draw_dots(DOTS, 'score', 100)
  (axes,) = drawing.figure.axes
  points = [list(line.get_xdata()) for line in axes.lines]
  assert [x for x in points if len(x) == 1] == [[20.0], [10.0], [0.0]] and [15.0, 25.0] in points
  assert [text.get_text().strip() for text in axes.texts] == ['cola', '$x$']
  legend = [text.get_text().strip() for text in drawing.figure.legends[0].get_texts()]
  assert legend == ['pre-trained', 'from scratch', 'majority']


@pytest.mark.filterwarnings('error')  # Matplotlib warns if no width remains for the axes
def test_long_names_keep_the_width_of_the_axes():
  rows = [DotRow('sst2 ' + 'without-rotary+sinusoidal' * 3, DOTS[0].arms, {})] * 2
  figure = figures.draw_dots(rows, 'x').figure
  figure.draw_without_rendering()
  assert figure.axes[0].get_window_extent().width > 3 * figure.dpi


def test_panels_share_styles_and_are_drawn_alone_too():
  drawing = draw_panels()
  first, second, *_ = drawing.figure.axes
  np.testing.assert_array_equal(first.lines[0].get_xydata(), [[1, 20], [2, 30]])
  assert len(first.lines) == 3 and len(second.lines) == 1
  assert first.lines[1].get_color() == second.lines[0].get_color() != first.lines[0].get_color()
  assert [axes.get_title().strip() for axes in drawing.figure.axes[:4]] == ['cola', 'rte'] * 2
  assert [len(panel.figure.axes) for panel in drawing.panels] == [1] * 4
  assert drawing.panels[1].figure.axes[0].lines[0].get_color() == second.lines[0].get_color()
  assert all(panel.figure.get_figwidth() == figures.WIDTH for panel in drawing.panels)


def test_confusion_matrix_has_its_counts_row_by_row():
  axes, empty = draw_confusion().figure.axes
  assert axes.yaxis_inverted()  # the first class is at the top
  assert [text.get_text() for text in axes.texts] == ['3', '1', '0', '1,234']
  np.testing.assert_allclose(axes.collections[0].get_array(), [[0.75, 0.25], [0, 1]])
  assert not empty.collections[0].get_array().any()


@pytest.mark.parametrize(
  'draw',
  [
    lambda: figures.draw_losses([CURVE]),
    lambda: figures.draw_dots(DOTS, 'x'),
    draw_panels,
    draw_confusion,
  ],
)
def test_figures_have_the_colour_of_the_page_and_equal_bytes(draw):
  svg, png = draw().svg, draw().to_png()
  xml.etree.ElementTree.fromstring(svg)
  assert figures.INK not in svg and 'currentColor' in svg
  assert '#ffffff' not in svg and '#000000' not in svg
  assert draw().svg == svg and draw().to_png() == png and png.startswith(b'\x89PNG')


def test_tooltips_enter_their_own_group_escaped():
  svg = '<svg xmlns="http://www.w3.org/2000/svg"><g id="a-1"/><g id="a-11"><path/></g></svg>'
  svg = figures.add_tooltips(svg, {'a-11': '<b> & "c"'})
  (first, second) = xml.etree.ElementTree.fromstring(svg)
  assert len(first) == 0 and second[0].text == '<b> & "c"'


def test_figures_of_sections_have_files_and_panels():
  drawings = {'learning': draw_panels(), 'dots': figures.draw_dots(DOTS, 'x')}
  files = encode_figures([Section('A', figures=drawings), Section('B')])
  assert set(files) == {
    f'{name}.{kind}' for name in ('learning', 'dots') for kind in ('svg', 'png')
  }
  assert [len(drawing.page_svgs) for drawing in drawings.values()] == [4, 1]
  assert drawings['dots'].page_svgs[0].encode() == files['dots.svg']
