"""Curves as text: lines of dots in braille, eight to a character, or of letters where colours or characters lack.

Nothing here knows of terminals, of colours or of what the numbers are.
"""

import math
from collections.abc import Sequence

Points = Sequence[tuple[float, float]]
Spans = list[tuple[str, int | None]]  # text, and the number of the curve that it is of

# Bits of a braille character by column and row of its dots, from the top; it stands at this code point and up.
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BRAILLE, _ACROSS, _DOWN = 0x2800, 2, 4
_LEAST = 8  # columns and rows that are drawn in, whatever is asked: less shows nothing


def short(value: float) -> str:
  """A number in a few characters.

  >>> [short(x) for x in (0, 7.25, 3.14159, 12_345, 1_500_000, 2.2e15, 0.00012)]
  ['0', '7.25', '3.142', '12.3k', '1.5M', '2.2P', '0.00012']
  """
  for power, letter in ((15, 'P'), (12, 'T'), (9, 'G'), (6, 'M'), (4, 'k')):
    if abs(value) >= 10**power:
      return f'{value / 10**(power - power % 3):.3g}{letter}' if abs(value) < 1e18 else f'{value:.2g}'
  return f'{value:.4g}'


def draw(curves: Sequence[Points], width: int, height: int, letters: str = '', plain: bool = False) -> list[Spans]:
  """The curves in one frame, with numbers at its sides.

  Args:
    curves: points (x, y) from left to right; those that are not finite are left out. The last curve lies on top.
    width: columns of the whole.
    height: rows of the whole.
    letters: what each curve is drawn with, from the first on and round again; '' is dots.
    plain: draw the frame in ASCII.

  Returns:
    Rows from the top, none where no curve has a point.
  """
  curves = [[(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for points in curves]
  xs, ys = [x for points in curves for x, _ in points], [y for points in curves for _, y in points]
  if not xs:
    return []
  (left, right), (low, high) = _range(xs), _range(ys)
  rows = max(height - 2, _LEAST)
  labels = {row: short(high - (high - low) * row / (rows - 1)) for row in (0, rows // 2, rows - 1)}
  gutter = max(map(len, labels.values()))
  columns = max(width - gutter - 2, _LEAST)
  cells = _cells(curves, (left, right, low, high), columns, rows, letters)
  side, corner, floor = ('|', '+', '-') if plain else ('│', '└', '─')
  found: list[Spans] = []
  for row in range(rows):
    label = labels[row] if row in labels else ''
    found.append([(f'{label:>{gutter}} {side}', None), *cells[row]])
  ends = short(left), short((left + right) / 2), short(right)
  room = columns - sum(map(len, ends))
  below = f'{ends[0]}{"":{room // 2}}{ends[1]}{"":{room - room // 2}}{ends[2]}' if room > 1 else f'{ends[0]} {ends[2]}'
  return [*found, [(f'{"":{gutter}} {corner}{floor * columns}', None)], [(f'{"":{gutter}}  {below}', None)]]


def _range(values: Sequence[float]) -> tuple[float, float]:
  low, high = min(values), max(values)
  pad = 0.5 if low == high == 0 else abs(low) / 10 if low == high else 0  # a flat curve lies in the middle
  return low - pad, high + pad


def _cells(curves: Sequence[Points], within: tuple[float, float, float, float], columns: int, rows: int,
           letters: str) -> list[Spans]:
  """What stands in each row, as spans of one curve each."""
  left, right, low, high = within
  wide, tall = columns * _ACROSS - 1, rows * _DOWN - 1
  bits, whose = [[0] * columns for _ in range(rows)], [[None] * columns for _ in range(rows)]
  for number, points in enumerate(curves):
    places = [(round((x - left) / (right - left) * wide), round((high - y) / (high - low) * tall)) for x, y in points]
    for one, other in zip(places, places[1:] or places):
      for across, down in _line(one, other):
        row, column = down // _DOWN, across // _ACROSS
        bits[row][column] |= _BITS[across % _ACROSS][down % _DOWN]
        whose[row][column] = number
  found = []
  for row in range(rows):
    spans: Spans = []
    for dots, number in zip(bits[row], whose[row]):
      sign = ' ' if number is None else letters[number % len(letters)] if letters else chr(_BRAILLE + dots)
      if spans and spans[-1][1] == number:
        spans[-1] = spans[-1][0] + sign, number
      else:
        spans.append((sign, number))
    found.append(spans)
  return found


def _line(one: tuple[int, int], other: tuple[int, int]) -> list[tuple[int, int]]:
  """The dots from one to another."""
  steps = max(abs(other[0] - one[0]), abs(other[1] - one[1]), 1)
  return [(round(one[0] + (other[0] - one[0]) * n / steps), round(one[1] + (other[1] - one[1]) * n / steps))
          for n in range(steps + 1)]
