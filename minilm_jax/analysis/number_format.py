"""Texts of scores and of other numbers with intervals, as pages, tables and tooltips show them."""

import math

NONE = '–'  # text of a missing number


def format_points(share: float, sign: str = '') -> str:
  """Returns a share times 100.

  >>> format_points(0.6789), format_points(0.02, '+'), format_points(float('nan'))
  ('67.9', '+2.0', 'undefined')
  """
  return f'{100 * share:{sign}.1f}' if math.isfinite(share) else 'undefined'


def format_interval(
  value: float, low: float, high: float, form: str = '', scale: float = 1.0
) -> str:
  """Returns a mean with its interval as text.

  Args:
    value: mean; the text is "–" if it is not finite.
    low, high: ends of the interval; nan omits the interval.
    form: format of each number; '' is a share times 100 with a sign, as in `format_points`.
    scale: factor of each number, if `form` is given.

  >>> format_interval(0.01, -0.002, 0.022)
  '+1.0 [-0.2, +2.2]'
  >>> format_interval(3.1, 2.2, math.inf, '.2f'), format_interval(3.1, math.nan, math.nan, '.2f')
  ('3.10 [2.20, ∞]', '3.10')
  """

  def format_number(number: float) -> str:
    if math.isinf(number):
      return '∞' if number > 0 else '-∞'
    return f'{scale * number:{form}}' if form else format_points(number, '+')

  if not math.isfinite(value):
    return NONE
  mean = format_number(value)
  return mean if math.isnan(low) else f'{mean} [{format_number(low)}, {format_number(high)}]'


def format_points_interval(value: float, low: float, high: float) -> str:
  """Returns a difference of scores with unit and interval.

  >>> format_points_interval(0.01, -0.002, 0.022), format_points_interval(0.01, math.nan, math.nan)
  ('+1.0 points [-0.2, +2.2]', '+1.0 points')
  """
  mean, bracket, interval = format_interval(value, low, high).partition(' [')
  return f'{mean} points{bracket}{interval}'
