"""Breaks come back where they were made, sharp, joined or smooth, and sums from the left equal fits side by side."""

import pathlib

import numpy as np
import pytest

from minilm_jax.analysis import breaks, frontier, laws
from minilm_jax.errors import InputError
from tests.fake_runs import draw_run_ends, read_paper1_curves

COMPUTE = np.geomspace(1e14, 1e18, 25)


def test_a_break_between_pieces_that_do_not_meet():
  loss = np.where(COMPUTE < 2e15, 80 * COMPUTE ** -0.09, 300 * COMPUTE ** -0.14)
  fit = breaks.two_piece(COMPUTE, loss)
  low, high = COMPUTE[COMPUTE < 2e15].max(), COMPUTE[COMPUTE >= 2e15].min()
  assert low < fit.constants['C0'] < high
  assert [fit.constants[key] for key in ('a1', 'b1', 'a2', 'b2')] == pytest.approx([80, 0.09, 300, 0.14], rel=1e-6)
  assert laws.predict(fit, COMPUTE) == pytest.approx(loss)


def test_every_break_is_tried_and_costs_what_two_lines_leave():
  compute, loss = draw_run_ends(lambda c: 100 * c ** -0.1, 0.05, 3, points=20)
  x = np.sort(np.log(compute))
  x[5] = x[4]  # a run drawn twice: no break between its points
  places, squares = breaks.piece_squares(x, np.log(loss))
  assert list(places) == [place for place in range(3, 18) if place != 5]
  for place, left in zip(places, squares, strict=True):
    sides = [(x[:place], np.log(loss)[:place]), (x[place:], np.log(loss)[place:])]
    apart = sum(np.sum((y - np.polyval(np.polyfit(at, y, 1), at)) ** 2) for at, y in sides)
    assert left == pytest.approx(apart, rel=1e-6)


def test_the_paper_s_frontier_parts_where_its_constants_come_from(data: pathlib.Path):
  compute, loss = frontier.arrays(frontier.percentile(read_paper1_curves(data)))
  fit = breaks.two_piece(compute, loss)
  assert 2.625e15 < fit.constants['C0'] < 2.935e15
  assert [round(fit.constants[key], 4) for key in ('b1', 'b2')] == [0.0870, 0.1399]
  asked = breaks.two_piece(compute, loss, split=2.2e15)
  assert [round(asked.constants[key], 4) for key in ('b1', 'b2')] == [0.0843, 0.1596] and asked.bic > fit.bic
  assert fit.bic < laws.log_power(compute, loss).bic - 10


def test_pieces_that_meet_have_no_step():
  law = lambda c: np.where(c < 1e16, 100 * c ** -0.08, 100 * 1e16 ** 0.06 * c ** -0.14)  # noqa: E731
  fit = breaks.joined(COMPUTE, law(COMPUTE))
  assert fit.constants['C0'] == pytest.approx(1e16, rel=0.02)
  assert [fit.constants[key] for key in ('b1', 'b2')] == pytest.approx([0.08, 0.14], rel=0.01)
  beside = laws.predict(fit, fit.constants['C0'] * np.array([1 - 1e-9, 1 + 1e-9]))
  assert beside[0] == pytest.approx(beside[1], rel=1e-6)
  three = breaks.smooth_break(COMPUTE, law(COMPUTE))
  assert fit.bic < three.bic  # a corner needs no width


def test_a_smooth_break_comes_back_with_its_width():
  law = lambda c: 100 * c ** -0.08 * (1 + (c / 1e16) ** (1 / 0.7)) ** (-0.08 * 0.7)  # noqa: E731
  fit = breaks.smooth_break(COMPUTE, law(COMPUTE))
  assert fit.constants['C0'] == pytest.approx(1e16, rel=0.1) and fit.constants['s'] == pytest.approx(0.7, rel=0.15)
  assert [fit.constants[key] for key in ('b1', 'b2')] == pytest.approx([0.08, 0.16], rel=0.02)
  assert laws.predict(fit, COMPUTE) == pytest.approx(law(COMPUTE), rel=1e-3)


def test_a_split_with_too_little_on_one_side():
  with pytest.raises(InputError, match='2 points'):
    breaks.two_piece(COMPUTE, COMPUTE ** -0.1, split=COMPUTE[2])


def test_columns_that_say_the_same_have_no_squares():
  columns = np.ones((1, 5, 2))
  assert np.isinf(breaks.linear(columns, np.arange(5.0))[1][0])
