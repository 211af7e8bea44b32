"""Figures: what is drawn is what was given, in the colours of the page, with names taken literally."""

import math
import xml.etree.ElementTree

import numpy as np
import pytest

from minilm_jax.analysis import figures
from minilm_jax.analysis.figures import Curve

CURVE = Curve('tiny', (1e6, 2e6, 3e6), (9.0, 7.0, 6.0), (2e6, 3e6), (6.9, 5.9))


def test_every_point_of_every_run_is_drawn():
  train, validation = figures.loss([CURVE]).axes[0].lines
  np.testing.assert_array_equal(train.get_xydata(), np.transpose([CURVE.train_tokens, CURVE.train_loss]))
  np.testing.assert_array_equal(validation.get_xydata(), np.transpose([CURVE.validation_tokens, CURVE.validation_loss]))


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
  picture = xml.etree.ElementTree.fromstring(figures.svg(figures.loss([Curve(name, (1.0,), (2.0,), (1.0,), (2.0,))])))
  assert name in [''.join(element.itertext()).strip() for element in picture.iter('{http://www.w3.org/2000/svg}text')]


@pytest.mark.parametrize('values', [(math.nan, 5.0), (math.inf, 5.0), (math.nan, math.nan)])
def test_what_is_no_number_leaves_a_gap(values: tuple[float, float]):
  figure = figures.loss([Curve('a', (1.0, 2.0), values, (), ())])
  assert figures.svg(figure)
  assert all(map(math.isfinite, figure.axes[0].get_ylim()))


def test_the_same_curves_give_the_same_bytes():
  assert figures.svg(figures.loss([CURVE])) == figures.svg(figures.loss([CURVE]))
  first = figures.png(figures.loss([CURVE]))
  assert first == figures.png(figures.loss([CURVE])) and first.startswith(b'\x89PNG')
