"""Fits the laws of a scaling study to points of a sweep, with bootstrap intervals over runs."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from minilm_jax.analysis import frontier
from minilm_jax.analysis.frontier import Point, SweepRun
from minilm_jax.analysis.laws import broken_laws, power_laws
from minilm_jax.analysis.laws.power_laws import Fit
from minilm_jax.analysis.loss_curves import ACTUAL, HONEY, KAPLAN, LossCurve
from minilm_jax.core.errors import InputError
from minilm_jax.tasks.metrics import percentile_interval

# Kinds of points, which begin `Fit.name`.
FRONTIER, ENVELOPE, WITHOUT_PLATEAU, ENDS = (
  'frontier',
  'envelope',
  'frontier without the plateau',
  'ends of runs',
)
EVALUATIONS = 'evaluations after the plateau'
_MIN_SHARE_OF_DRAWS = 0.5  # of the draws must define a constant for its interval
_MAIN_FORMS = (power_laws.fit_log_power, power_laws.fit_offset_power, broken_laws.fit_two_piece)
_FORMS = {
  FRONTIER: (
    power_laws.fit_log_power,
    power_laws.fit_power,
    power_laws.fit_offset_power,
    broken_laws.fit_two_piece,
    broken_laws.fit_joined,
    broken_laws.fit_smooth_break,
  ),
  ENVELOPE: _MAIN_FORMS,
  WITHOUT_PLATEAU: _MAIN_FORMS,
}
K = TypeVar('K', bound=Hashable)
T = TypeVar('T')


def bootstrap(
  runs: Sequence[T],
  statistic: Callable[[list[T]], Mapping[K, float]],
  draws: int = 1000,
  seed: int = 0,
) -> dict[K, list[float]]:
  """Returns the numbers of a statistic in draws of runs with replacement.

  Args:
    statistic: returns numbers by name for drawn runs. A number fails in a draw if it is missing or
      not finite, or if the function raises InputError.

  Returns:
    Numbers by name, one for each draw that defines the number. If many draws do not, an interval of
    the numbers is biased.

  Raises:
    InputError: there are fewer than 2 runs, no draws, or the statistic fails in every draw.
  """
  if len(runs) < 2 or draws < 1:
    raise InputError(
      f'{draws} draws of runs', f'{len(runs)} runs', 'give at least 2 runs and 1 draw'
    )
  random = np.random.default_rng(seed)
  drawn_values: dict[K, list[float]] = {}
  reason = ''
  for _ in range(draws):
    drawn = random.integers(len(runs), size=len(runs))
    try:
      values = statistic([runs[index] for index in drawn])
    except InputError as error:
      reason = f'{error.asked}: {error.found}'
      continue
    for key, value in values.items():
      if np.isfinite(value):
        drawn_values.setdefault(key, []).append(float(value))
  if not drawn_values:
    raise InputError(
      f'an interval from {draws} draws of {len(runs)} runs',
      f'no draw defines a number; {reason}',
      'give more runs',
    )
  return drawn_values


@dataclasses.dataclass(frozen=True)
class Law:
  """A form that is fitted to points of one kind, by one count of FLOPs.

  Attributes:
    field: field of the points that follows from their FLOPs.
    low, high: range of the FLOPs of the points, without `high`.
  """

  source: str
  form: Callable[..., Fit]
  name: str
  count: str = HONEY
  field: str = 'loss'
  low: float = 0.0
  high: float = math.inf

  def fit(self, points: Sequence[Point]) -> Fit:
    """Returns the fit to these points of the kind.

    Raises:
      InputError: there are too few points.
    """
    points = [point for point in points if self.low <= point.flops < self.high]
    flops, _ = frontier.to_arrays(points)
    values = np.array([getattr(point, self.field) for point in points], float)
    return dataclasses.replace(self.form(flops, values, self.name), count=self.count)


Fits = dict[Law | str, Fit]  # `EVALUATIONS` is the law over parameters and tokens


def list_laws(curves: Sequence[LossCurve], splits: Sequence[float]) -> list[Law]:
  """Returns the laws of the study whose intervals are over draws of runs.

  Args:
    curves: curves of the runs; other counts of FLOPs that all of them have get two laws.
    splits: FLOPs at which the frontier is split, in addition to the estimated break.
  """
  other_counts = [
    other for other in (KAPLAN, ACTUAL) if all(other in curve.flops_per_row for curve in curves)
  ]
  laws = [Law(kind, form, kind) for kind in _FORMS for form in _FORMS[kind]]
  laws += [
    Law(FRONTIER, form, f'{FRONTIER} {side} {split:.3g} FLOPs', low=low, high=high)
    for split in splits
    for side, low, high in (('below', 0.0, split), ('above', split, math.inf))
    for form in (power_laws.fit_log_power, power_laws.fit_power)
  ]
  laws += [
    Law(FRONTIER, power_laws.fit_one_parameter, f'{field} along the {FRONTIER}', field=field)
    for field in ('tokens', 'parameters')
  ]
  return laws + [
    Law(FRONTIER, form, f'{FRONTIER}, {other} count', other)
    for other in other_counts
    for form in (power_laws.fit_log_power, broken_laws.fit_two_piece)
  ]


def select_points(kind: str, runs: Sequence[SweepRun], count: str) -> list[Point]:
  """Returns the points of one kind.

  Raises:
    InputError: there are no such points.
  """
  curves = [curve for curve, _ in runs]
  if kind == FRONTIER:
    return frontier.find_percentile_frontier(curves, count)
  if kind == ENVELOPE:
    return frontier.find_lower_envelope(curves, count)
  if not any(plateau for _, plateau in runs):
    raise InputError(
      'the frontier without the plateau', 'no run with a plateau', 'use the frontier of all runs'
    )
  return frontier.find_percentile_frontier(frontier.drop_plateau(runs), count)


def fit_all(runs: Sequence[SweepRun], laws: Sequence[Law]) -> tuple[Fits, list[str]]:
  """Returns the fits by law, and the reasons for laws without a fit."""
  points: dict[tuple[str, str], list[Point]] = {}
  fits: Fits = {}
  reasons: list[str] = []
  for law in laws:
    key, suffix = (law.source, law.count), ''
    try:
      if key not in points:
        points[key] = select_points(law.source, runs, law.count)
      suffix = f' ({law.source})'
      fits[law] = law.fit(points[key])
    except InputError as error:
      reasons.append(f'{error.asked}: {error.found}{suffix}')
  return fits, list(dict.fromkeys(reasons))


def add_intervals(runs: Sequence[SweepRun], fits: Fits, draws: int) -> tuple[list[Fit], list[str]]:
  """Returns the fits with intervals over draws of runs, and the reasons for missing intervals.

  Args:
    fits: results of `fit_all`, and of `fit_evaluations` by `EVALUATIONS`.
    draws: number of draws; 0 gives no intervals.
  """
  fitted = list(fits.values())
  if draws < 1 or not fitted:
    return fitted, ['intervals: the number of draws is 0'] if fitted else []
  laws = [law for law in fits if isinstance(law, Law)]

  def draw_constants(drawn: list[SweepRun]) -> dict[tuple[Law | str, str], float]:
    drawn_fits, _ = fit_all(drawn, laws)
    if EVALUATIONS in fits:
      with contextlib.suppress(InputError):
        drawn_fits[EVALUATIONS] = fit_evaluations(drawn, fits[EVALUATIONS])
    return {
      (law, key): value for law, fit in drawn_fits.items() for key, value in fit.constants.items()
    }

  try:
    drawn_values = bootstrap(runs, draw_constants, draws)
  except InputError as error:
    return fitted, [f'intervals: {error.found}']
  with_intervals, reasons = [], []
  for law, fit in fits.items():
    constant_intervals = {
      key: percentile_interval(drawn_values[law, key])
      for key in fit.constants
      if len(drawn_values.get((law, key), ())) >= _MIN_SHARE_OF_DRAWS * draws
    }
    if len(constant_intervals) < len(fit.constants):
      reasons.append(f'intervals of {fit.name}, {fit.form}: most draws have too few points')
    with_intervals.append(dataclasses.replace(fit, intervals=constant_intervals))
  return with_intervals, reasons


def fit_evaluations(runs: Sequence[SweepRun], start: Fit | None = None) -> Fit:
  """Fits the law over parameters and tokens to all evaluations after the plateau.

  Most evaluations are in the middle of a schedule. The law thus does not predict the final loss of
  shorter schedules.

  Raises:
    InputError: there are too few evaluations.
  """
  columns = [
    np.stack([np.full(len(curve.loss), curve.parameters), curve.tokens, curve.loss, curve.flops()])
    for curve in frontier.drop_plateau(runs)
  ]
  parameters, tokens, loss, flops = np.concatenate([np.zeros((4, 0)), *columns], axis=1)
  trained = tokens > 0
  return power_laws.fit_chinchilla(
    parameters[trained], tokens[trained], loss[trained], flops[trained], EVALUATIONS, start
  )


def fit_run_ends(points: Sequence[Point]) -> tuple[list[Fit], list[str]]:
  """Fits laws to the last evaluations of runs, with intervals for independent points."""
  fits, reasons = [], []
  for form, find_intervals in (
    (power_laws.fit_log_power, broken_laws.find_power_intervals),
    (power_laws.fit_offset_power, broken_laws.find_offset_power_intervals),
    (broken_laws.fit_joined, broken_laws.find_joined_intervals),
  ):
    arrays = frontier.to_arrays(points)
    try:
      fit = form(*arrays, ENDS)
      fits.append(dataclasses.replace(fit, intervals=find_intervals(*arrays)))
    except InputError as error:
      reasons.append(f'{error.asked}: {error.found} ({ENDS})')
  return fits, reasons
