"""Figures: what is drawn is what was given, in the colours of the page, with names taken literally."""

import math
import xml.etree.ElementTree

import numpy as np
import pytest

from minilm_jax.analysis.report import figures
from minilm_jax.analysis.report.figures import DotRow, MeanBand, Panel
from minilm_jax.analysis.runs import RunLosses

CURVE = RunLosses('tiny', (1e6, 2e6, 3e6), (9.0, 7.0, 6.0), (2e6, 3e6), (6.9, 5.9))


def test_every_point_of_every_run_is_drawn():
  train, validation = figures.loss([CURVE]).axes[0].lines
  np.testing.assert_array_equal(
    train.get_xydata(), np.transpose([CURVE.train_tokens, CURVE.train_loss])
  )
  np.testing.assert_array_equal(
    validation.get_xydata(), np.transpose([CURVE.validation_tokens, CURVE.validation_loss])
  )


def test_runs_look_different_and_the_two_lines_of_a_run_alike():
  lines = figures.loss([CURVE] * 20).axes[0].lines
  looks = [(line.get_color(), line.get_linestyle()) for line in lines]
  assert looks[::2] == looks[1::2] and len(set(looks)) == 20


def test_the_picture_takes_the_colour_of_the_page_and_draws_no_ground():
  text = figures.svg(figures.loss([CURVE]))
  assert figures.INK not in text and 'currentColor' in text
  assert '#ffffff' not in text and '#000000' not in text
  xml.etree.ElementTree.fromstring(text)


@pytest.mark.parametrize('name', ['_hidden', '$x', '$\\frac$', '<b>&amp;', 'größe', 'a' * 60])
def test_names_are_taken_literally(name: str):
  picture = xml.etree.ElementTree.fromstring(
    figures.svg(figures.loss([RunLosses(name, (1.0,), (2.0,), (1.0,), (2.0,))]))
  )
  assert name in [
    ''.join(element.itertext()).strip()
    for element in picture.iter('{http://www.w3.org/2000/svg}text')
  ]


@pytest.mark.parametrize('values', [(math.nan, 5.0), (math.inf, 5.0), (math.nan, math.nan)])
def test_what_is_no_number_leaves_a_gap(values: tuple[float, float]):
  figure = figures.loss([RunLosses('a', (1.0, 2.0), values, (), ())])
  assert figures.svg(figure)
  assert all(map(math.isfinite, figure.axes[0].get_ylim()))


def test_the_same_curves_give_the_same_bytes():
  assert figures.svg(figures.loss([CURVE])) == figures.svg(figures.loss([CURVE]))
  first = figures.png(figures.loss([CURVE]))
  assert first == figures.png(figures.loss([CURVE])) and first.startswith(b'\x89PNG')


DOTS = [
  DotRow(
    'cola',
    {'pre-trained': (20.0, 15.0, 25.0), 'from scratch': (10.0, math.nan, math.nan)},
    {'majority': 0.0},
  ),
  DotRow('$x$', {'pre-trained': (math.nan, math.nan, math.nan)}, {'majority': math.nan}),
]
PANEL = Panel(
  'cola',
  (
    MeanBand('pre-trained', (1.0, 2.0), (20.0, 30.0), (10.0, math.nan), (30.0, math.nan)),
    MeanBand('from scratch', (1.0, 2.0), (10.0, math.nan), (5.0, math.nan), (15.0, math.nan)),
  ),
  3.0,
)


def test_a_row_of_dots_has_each_mean_on_its_interval_and_the_levels():
  figure = figures.dots(DOTS, 'score')
  drawn = [line.get_xdata() for line in figure.axes[0].lines]
  assert [list(x) for x in drawn if len(x) == 1] == [[20.0], [10.0], [0.0]] and [15.0, 25.0] in map(
    list, drawn
  )
  assert [label.get_text().strip() for label in figure.axes[0].get_yticklabels()] == ['cola', '$x$']
  assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == [
    'pre-trained',
    'from scratch',
    'majority',
  ]


@pytest.mark.filterwarnings('error')  # Matplotlib warns where nothing is left for the axes
def test_long_names_leave_room_for_the_dots():
  figure = figures.dots(
    [DotRow('sst2 ' + 'without-rotary+sinusoidal' * 3, DOTS[0].arms, {})] * 2, 'x'
  )
  figure.draw_without_rendering()
  assert figure.axes[0].get_window_extent().width > 2 * figure.dpi


@pytest.mark.parametrize('draw', [figures.learning, figures.trajectory])
def test_a_panel_has_its_bands_and_its_level_and_arms_look_alike_in_all(draw):
  figure = draw([PANEL, Panel('rte', PANEL.bands[1:])] * 2, 'score')
  first, second, *_ = figure.axes
  np.testing.assert_array_equal(first.lines[0].get_ydata(), PANEL.bands[0].mean)
  assert len(first.lines) == 3 and len(second.lines) == 1
  assert first.lines[1].get_color() == second.lines[0].get_color() != first.lines[0].get_color()
  assert first.get_title().strip() == 'cola'


def test_a_confusion_matrix_shows_its_counts_row_by_row():
  counts = np.array([[3.0, 1.0], [0.0, 1234.0]])
  axes, empty = figures.confusion(
    'cola', ('no', 'yes'), {'pre-trained': counts, 'from scratch': 0 * counts}
  ).axes
  assert axes.yaxis_inverted()  # the first class is above
  assert [text.get_text() for text in axes.texts] == ['3', '1', '0', '1,234']
  np.testing.assert_allclose(axes.collections[0].get_array(), [[0.75, 0.25], [0, 1]])
  assert not empty.collections[0].get_array().any()


@pytest.mark.parametrize(
  'figure',
  [
    lambda: figures.dots(DOTS, 'x'),
    lambda: figures.learning([PANEL], 'y'),
    lambda: figures.confusion('a', ('b', 'c'), {'d': np.eye(2)}),
  ],
)
def test_every_figure_takes_the_colour_of_the_page_and_gives_the_same_bytes(figure):
  text = figures.svg(figure())
  assert figures.INK not in text and 'currentColor' in text and '#ffffff' not in text
  assert figures.svg(figure()) == text and figures.png(figure()) == figures.png(figure())
