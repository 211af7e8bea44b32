"""Curves as text: every point has its place, whatever the numbers are."""

import math

import pytest

from minilm_jax import plot


def text(rows: list[plot.Spans]) -> list[str]:
  return [''.join(part for part, _ in row) for row in rows]


def test_a_falling_line_goes_from_the_top_left_to_the_bottom_right():
  rows = text(plot.draw([[(x, 100 - x) for x in range(101)]], 40, 12, 'a', plain=True))
  assert all(len(row) <= 40 for row in rows) and len(rows) == 12
  assert rows[0].startswith('  100 |a') and rows[-3].startswith('    0 |') and rows[-3].endswith('a')
  columns = [row.index('a') for row in rows[:-2]]
  assert columns == sorted(columns)
  assert rows[-2] == '      +' + '-' * 33 and rows[-1].split() == ['0', '50', '100']


def test_dots_are_eight_to_a_character():
  """Two points in the far corners: the first dot and the last, and a line of dots between them."""
  rows = plot.draw([[(0, 1), (1, 0)]], 20, 10)
  signs = [sign for row in rows[:-2] for part, number in row if number == 0 for sign in part]
  assert all(0x2800 < ord(sign) < 0x2900 for sign in signs)
  assert ord(signs[0]) & 0x01 and ord(signs[-1]) & 0x80


def test_each_curve_keeps_its_own_number_and_the_last_lies_on_top():
  rows = plot.draw([[(0, 0), (1, 0)], [(0, 1), (1, 1)], [(0, 0), (1, 0)]], 30, 10, 'abc')
  top, bottom = ({number for _, number in rows[n] if number is not None} for n in (0, -3))
  assert top == {1} and bottom == {2}


@pytest.mark.parametrize('points', [
    [(5, 2.0)], [(0, 0.0)], [(1, 3.0), (2, 3.0)], [(1, 1e300), (2, -1e300)], [(0, math.nan), (1, 2.0), (2, math.inf)],
    [(1, 1e-300), (2, 2e-300)], [(2**62, 1.0), (2**62 + 1, 2.0)]])
def test_any_numbers_fit_the_frame(points: list[tuple[float, float]]):
  for width, height in ((1, 1), (60, 10), (200, 60)):
    rows = text(plot.draw([points], width, height))
    assert rows and len({len(row) for row in rows[:-1]}) == 1
    assert len(rows[0]) <= max(width, 24) and any(0x2800 < ord(sign) for row in rows for sign in row)


def test_nothing_to_draw_is_nothing():
  assert plot.draw([], 60, 10) == [] and plot.draw([[], [(1, math.nan)]], 60, 10) == []
