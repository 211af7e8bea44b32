"""Which laws are fitted to which points of a sweep, and their intervals.

It is a table, gone through once for the sweep itself and once for each draw of its runs.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from minilm_jax.analysis import broken_laws, frontier, power_laws
from minilm_jax.analysis.frontier import Plateau, Point
from minilm_jax.analysis.loss_curves import ACTUAL, HONEY, KAPLAN, LossCurve
from minilm_jax.analysis.power_laws import Fit
from minilm_jax.core.errors import InputError

# Intervals by drawing whole runs: how far a number moves with the choice of runs that were made.
T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Interval:
  """The middle 95% of what a number was over the draws.

  Attributes:
    low, high: its 2.5th and 97.5th percentiles.
    draws: it could be computed in.
    failed: draws in which it could not, for too few points; where they are many, low and high are
      those of lucky draws.
  """

  low: float
  high: float
  draws: int
  failed: int


def bootstrap(
  runs: Sequence[T],
  statistic: Callable[[list[T]], Mapping[str, float]],
  draws: int = 1000,
  seed: int = 0,
) -> dict[str, Interval]:
  """Percentile intervals of each number of a statistic, over draws of runs with replacement.

  Args:
    runs: curves, or anything that there is one of per run.
    statistic: drawn runs, some of them several times -> numbers by name. A number it leaves out, or
      that is not finite, has failed in that draw; if it raises InputError, all have.
    draws, seed: of the random draws, which the seed decides.

  Returns:
    Intervals by the names that at least one draw had.

  Raises:
    InputError: fewer than 2 runs, no draws, or a statistic that no draw allows.
  """
  if len(runs) < 2 or draws < 1:
    raise InputError(
      f'{draws} draws of runs', f'{len(runs)} runs', 'give at least 2 runs and 1 draw'
    )
  random = np.random.default_rng(seed)
  found: dict[str, list[float]] = {}
  reason = ''
  for _ in range(draws):
    drawn = random.integers(len(runs), size=len(runs))
    try:
      values = statistic([runs[one] for one in drawn])
    except InputError as error:
      reason = f'{error.asked}: {error.found}'
      continue
    for key, value in values.items():
      if np.isfinite(value):
        found.setdefault(key, []).append(float(value))
  if not found:
    raise InputError(
      f'an interval from {draws} draws of {len(runs)} runs',
      f'no draw gave a number; {reason}',
      'give more runs',
    )
  return {
    key: Interval(
      *(float(end) for end in np.percentile(values, (2.5, 97.5))), len(values), draws - len(values)
    )
    for key, values in found.items()
  }


# What is fitted to: the first word of `Fit.name`.
FRONTIER, ENVELOPE, WITHOUT, ENDS = (
  'frontier',
  'envelope',
  'frontier without the plateau',
  'ends of runs',
)
EVALUATIONS = 'evaluations after the plateau'
_MIN_SHARE_OF_DRAWS = (
  0.5  # of the draws must have a number: else its interval would be that of the lucky ones
)


@dataclasses.dataclass(frozen=True)
class SweepRun:
  """A curve and where it was on the plateau, so that draws of runs keep the two together."""

  curve: LossCurve
  plateau: Plateau | None


@dataclasses.dataclass(frozen=True)
class Law:
  """One law to fit: the form, to points of one kind by one count of FLOPs."""

  source: str
  count: str
  fit: Callable[[list[Point]], Fit]


def list_laws(count: str, others: Sequence[str], splits: Sequence[float]) -> list[Law]:
  """The table: every law that the study has an interval by draws for.

  Args:
    count: of FLOPs, of the study.
    others: counts that every run has as well; these get one law and two pieces.
    splits: FLOPs at which the frontier is parted, beside where its break is estimated.
  """
  table = [
    Law(source, count, _form(form, source))
    for source, forms in (
      (
        FRONTIER,
        (
          power_laws.fit_log_power,
          power_laws.fit_power,
          power_laws.fit_offset_power,
          broken_laws.fit_two_piece,
          broken_laws.fit_joined,
          broken_laws.fit_smooth_break,
        ),
      ),
      (
        ENVELOPE,
        (power_laws.fit_log_power, power_laws.fit_offset_power, broken_laws.fit_two_piece),
      ),
      (WITHOUT, (power_laws.fit_log_power, power_laws.fit_offset_power, broken_laws.fit_two_piece)),
    )
    for form in forms
  ]
  table += [
    Law(FRONTIER, count, _form(form, f'{FRONTIER} {side} {split:.3g} FLOPs', side, split))
    for split in splits
    for side in ('below', 'above')
    for form in (power_laws.fit_log_power, power_laws.fit_power)
  ]
  table += [Law(FRONTIER, count, _exponent(field)) for field in ('tokens', 'parameters')]
  return table + [
    Law(FRONTIER, other, _form(form, f'{FRONTIER}, {other} count'))
    for other in others
    for form in (power_laws.fit_log_power, broken_laws.fit_two_piece)
  ]


def select_points(name: str, runs: Sequence[SweepRun], count: str) -> list[Point]:
  """The points of one kind.

  Raises:
    InputError: there are none.
  """
  curves = [run.curve for run in runs]
  if name == FRONTIER:
    return frontier.percentile_frontier(curves, count)
  if name == ENVELOPE:
    return frontier.lower_envelope(curves, count, unfinished=True)  # who counts was decided before
  if all(run.plateau is None for run in runs):
    raise InputError(
      'the frontier without the plateau', 'no run that was on one', 'nothing is to do'
    )
  return frontier.percentile_frontier(
    frontier.drop_plateau(curves, [run.plateau for run in runs]), count
  )


def fit_all(runs: Sequence[SweepRun], table: Sequence[Law]) -> tuple[list[Fit | None], list[str]]:
  """Every law of the table, None where it cannot be fitted, and the reasons for these."""
  points: dict[tuple[str, str], list[Point]] = {}
  found: list[Fit | None] = []
  reasons: list[str] = []
  for part in table:
    key, where = (part.source, part.count), ''
    try:
      if key not in points:
        points[key] = select_points(part.source, runs, part.count)
      where = f' ({part.source})'
      found.append(dataclasses.replace(part.fit(points[key]), count=part.count))
    except InputError as error:
      found.append(None)
      reasons.append(f'{error.asked}: {error.found}{where}')
  return found, list(dict.fromkeys(reasons))


def add_intervals(
  runs: Sequence[SweepRun],
  table: Sequence[Law],
  fits: Sequence[Fit | None],
  law: Fit | None,
  draws: int,
  seed: int,
) -> tuple[list[Fit], list[str]]:
  """The fits that there are, with intervals over draws of runs, and what has none.

  Args:
    runs, table: of `fit_all`.
    fits: what it gave for these runs.
    law: over parameters and tokens, of `over_evaluations`; it is drawn along.
    draws, seed: of the draws; 0 draws, no intervals.
  """
  fitted = [fit for fit in (*fits, law) if fit is not None]
  if draws < 1 or not fitted:
    return fitted, ['intervals: no draws were asked for'] if fitted else []
  kept = [part for part, fit in zip(table, fits, strict=True) if fit is not None]

  def statistic(drawn: list[SweepRun]) -> dict[str, float]:
    found = fit_all(drawn, kept)[0]
    try:
      found.append(None if law is None else fit_evaluations(drawn, law.count, law))
    except InputError:
      found.append(None)
    return {
      f'{place} {key}': value
      for place, fit in enumerate(found)
      if fit is not None
      for key, value in fit.constants.items()
    }

  try:
    spans = bootstrap(runs, statistic, draws, seed)
  except InputError as error:
    return fitted, [f'intervals: {error.found}']
  done, without = [], []
  for place, fit in enumerate(fitted):
    own = {key: spans[f'{place} {key}'] for key in fit.constants if f'{place} {key}' in spans}
    enough = {
      key: (one.low, one.high)
      for key, one in own.items()
      if one.draws >= _MIN_SHARE_OF_DRAWS * draws
    }
    if len(enough) < len(fit.constants):
      without.append(f'intervals of {fit.name}, {fit.form}: most draws have too few points')
    done.append(dataclasses.replace(fit, intervals=enough))
  return done, without


def fit_evaluations(runs: Sequence[SweepRun], count: str, start: Fit | None = None) -> Fit:
  """The law over parameters and tokens, of all evaluations after the plateau.

  They are in the middle of schedules: the law is that of training, not of what schedules of other
  lengths would give.

  Raises:
    InputError: too few evaluations.
  """
  curves = frontier.drop_plateau([run.curve for run in runs], [run.plateau for run in runs])
  columns = [
    np.concatenate([np.zeros(0), *rows])
    for rows in (
      [np.full(len(curve.loss), float(curve.parameters)) for curve in curves],
      [curve.tokens for curve in curves],
      [np.asarray(curve.loss, float) for curve in curves],
      [curve.flops(count) for curve in curves],
    )
  ]
  paid = columns[1] > 0
  fit = power_laws.fit_chinchilla(*(column[paid] for column in columns), EVALUATIONS, start)
  return dataclasses.replace(fit, count=count)


def fit_run_ends(points: Sequence[Point], count: str) -> tuple[list[Fit], list[str]]:
  """Laws of the ends of runs, one point a run, with the intervals of independent points."""
  found, reasons = [], []
  for form, spans in (
    (power_laws.fit_log_power, broken_laws.find_power_intervals),
    (power_laws.fit_offset_power, broken_laws.find_offset_power_intervals),
    (broken_laws.fit_joined, broken_laws.find_joined_intervals),
  ):
    try:
      fit = form(*frontier.to_arrays(points), ENDS)
      found.append(
        dataclasses.replace(fit, intervals=spans(*frontier.to_arrays(points)), count=count)
      )
    except InputError as error:
      reasons.append(f'{error.asked}: {error.found} ({ENDS})')
  return found, reasons


def list_other_counts(curves: Sequence[LossCurve], count: str) -> Iterator[str]:
  """The counts of FLOPs, but for one, that every curve has."""
  return (
    other
    for other in (HONEY, KAPLAN, ACTUAL)
    if other != count and all(other in curve.flops_per_row for curve in curves)
  )


def _form(
  form: Callable[..., Fit], name: str, side: str = '', split: float = 0.0
) -> Callable[[list[Point]], Fit]:
  def fit(points: list[Point]) -> Fit:
    if side:
      points = [point for point in points if (point.flops < split) == (side == 'below')]
    return form(*frontier.to_arrays(points), name)

  return fit


def _exponent(field: str) -> Callable[[list[Point]], Fit]:
  def fit(points: list[Point]) -> Fit:
    return power_laws.fit_one_parameter(
      frontier.to_arrays(points)[0],
      np.array([getattr(one, field) for one in points], float),
      f'{field} along the {FRONTIER}',
    )

  return fit
