"""The study of a grid: its frontiers, every law fitted to them with intervals, its plateau, and
what follows from them.

What a sweep is too small for is left out, with the reason; nothing here raises for that. Only
numbers and sentences are
made: pictures are `grid_figures.py`, the page `grid_page.py`.

Intervals of fits to a frontier are by drawing runs (`resample.py`); those of fits to the ends of
runs, which are independent points, are by `intervals.py`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from minilm_jax.analysis import broken_laws, frontier, power_laws, scaling_fits
from minilm_jax.analysis.frontier import Plateau, Point
from minilm_jax.analysis.loss_curves import HONEY, LossCurve
from minilm_jax.analysis.power_laws import Fit
from minilm_jax.analysis.scaling_fits import ENDS, FRONTIER, WITHOUT, SweepRun
from minilm_jax.analysis.scores import format_interval
from minilm_jax.core.errors import InputError

# FLOPs; parts the paper's frontier so that its published constants come out on either side
PAPER_SPLIT = 2.7e15
_HELD_OUT = 5  # one point in so many, the dearest, is predicted from the others
T = TypeVar('T')
_HELD_OUT_FORMS = {
  'log_power': power_laws.fit_log_power,
  'offset_power': power_laws.fit_offset_power,
  'two_piece': broken_laws.fit_two_piece,
  'smooth_break': broken_laws.fit_smooth_break,
}


@dataclasses.dataclass(frozen=True)
class ScalingStudy:
  """All of it.

  Attributes:
    count: how the FLOPs were counted.
    runs, evaluations: that counted.
    frontier, envelope: `frontier.percentile` and `frontier.envelope`.
    without: the percentile frontier of the evaluations after the plateau.
    ends: the last evaluation of each finished run.
    fits: every law; what each was fitted to is its name.
    chosen: of the laws of the whole frontier, the one with the lowest BIC.
    held_out: by form, the error in log L of the law fitted to the rest at the dearest fifth of the
      frontier.
    level: loss of the plateau; None where no run shows one.
    plateaus: of the runs that were on it.
    split: FLOPs where the two pieces part: as asked, or as estimated from the frontier.
    split_interval: 95%, over draws of runs, where it was estimated.
    below, below_on_plateau: points of the frontier below the split, and how many of them are of
    runs that had not yet
      left the plateau.
    above_on_plateau: those above.
    sentences: what follows from the numbers, for the top of a page.
    left_out: what could not be computed, and why.
  """

  count: str
  runs: int
  evaluations: int
  frontier: list[Point]
  envelope: list[Point]
  without: list[Point]
  ends: list[Point]
  fits: list[Fit]
  chosen: Fit | None
  held_out: Mapping[str, float]
  level: float | None
  plateaus: list[Plateau]
  split: float | None
  split_interval: tuple[float, float] | None
  below: int
  below_on_plateau: int
  above_on_plateau: int
  sentences: list[str]
  left_out: list[str]


def study_scaling(
  curves: Sequence[LossCurve],
  draws: int = 1000,
  seed: int = 0,
  unfinished: bool = False,
  count: str = HONEY,
  split: float | None = None,
) -> ScalingStudy:
  """Everything that the curves of a sweep allow.

  Args:
    curves: of a sweep over one corpus.
    draws, seed: of runs, for the intervals of fits to frontiers.
    unfinished: do runs count that have not reached the end of their schedule?
    count: of FLOPs, one of `curves.py`; runs without it are left out.
    split: FLOPs at which the frontier is parted; else where two pieces fit best. The paper's is
      compared with wherever the sweep spans it and the count is the paper's.
  """
  left_out: list[str] = []
  chosen = [
    curve for curve in curves if (curve.finished or unfinished) and count in curve.flops_per_row
  ]
  if len(chosen) < len(curves):
    left_out.append(
      f'{len(curves) - len(chosen)} of {len(curves)} runs: not at the end of their schedule, or without '
      f'FLOPs by the count {count!r}'
    )
  level = frontier.find_plateau_level(chosen)
  places = [
    None if level is None else frontier.find_plateau(curve, level, count) for curve in chosen
  ]
  runs = [SweepRun(curve, place) for curve, place in zip(chosen, places, strict=True)]
  points = {
    name: _or_none(lambda name=name: scaling_fits.select_points(name, runs, count), left_out) or []
    for name in (FRONTIER, scaling_fits.ENVELOPE, WITHOUT)
  }
  ends = _ends([curve for curve in chosen if curve.finished], count)
  splits = [one for one in (split, PAPER_SPLIT if count == HONEY else None) if one is not None]
  table = scaling_fits.list_laws(
    count,
    tuple(scaling_fits.list_other_counts(chosen, count)),
    [one for one in dict.fromkeys(splits) if one == split or _spans(points[FRONTIER], one)],
  )
  fits, reasons = scaling_fits.fit_all(runs, table)
  law = _or_none(lambda: scaling_fits.fit_evaluations(runs, count), left_out)
  fits, unsure = scaling_fits.add_intervals(runs, table, fits, law, draws, seed)
  of_ends, end_reasons = scaling_fits.fit_run_ends(ends, count)
  fits += of_ends
  whole = [fit for fit in fits if fit.name == FRONTIER]
  pieces = next(
    (fit for fit in whole if fit.form == power_laws.PIECES and fit.method == power_laws.LOGS), None
  )
  at = split if split is not None else pieces.constants['C0'] if pieces else None
  interval = (
    pieces.intervals['C0'] if split is None and pieces and 'C0' in pieces.intervals else None
  )
  below, on_below, on_above = _on_plateau(
    points[FRONTIER], [place for place in places if place], at
  )
  found = ScalingStudy(
    count,
    len(chosen),
    sum(len(curve.loss) for curve in chosen),
    points[FRONTIER],
    points[scaling_fits.ENVELOPE],
    points[WITHOUT],
    ends,
    fits,
    power_laws.choose_fit(whole) if whole else None,
    _held_out(points[FRONTIER], left_out),
    level,
    [place for place in places if place],
    at,
    interval,
    below,
    on_below,
    on_above,
    [],
    list(dict.fromkeys([*left_out, *reasons, *end_reasons, *unsure])),
  )
  return dataclasses.replace(found, sentences=write_sentences(found, chosen))


def write_sentences(found: ScalingStudy, curves: Sequence[LossCurve]) -> list[str]:
  """What the numbers of a study say, most important first; first of all whether its break is a law
  or a schedule.

  Args:
    found: a study, its sentences still missing.
    curves: that it was made from, for their warm-up.
  """
  if not found.frontier:
    return ['There is no frontier: no finished run was evaluated.']
  said = [_of_frontier(found)]
  whole = {
    fit.form: fit for fit in found.fits if fit.name == FRONTIER and fit.method == power_laws.LOGS
  }
  after = {
    fit.form: fit for fit in found.fits if fit.name == WITHOUT and fit.method == power_laws.LOGS
  }
  if power_laws.PIECES in whole and found.split is not None:
    said.append(_of_pieces(whole, found))
    reasons = [*_of_plateau(found, after), *_of_schedule(found, curves)]
    said += [*reasons, _verdict(found, whole)]
  ends = next(
    (fit for fit in found.fits if fit.name == ENDS and fit.form == power_laws.POWER), None
  )
  if ends is not None:
    said.append(
      f'Over the ends of {ends.n} runs, whatever their shape, loss falls with exponent '
      f'{_number(ends, "b")}, R2 {ends.r2:.3f}.'
    )
  return said


def _of_frontier(found: ScalingStudy) -> str:
  runs, ends = (
    len({point.run for point in found.frontier}),
    [found.frontier[0].flops, found.frontier[-1].flops],
  )
  return (
    f'The frontier has {len(found.frontier)} points from {runs} of {found.runs} runs, {ends[0]:.2g} to '
    f'{ends[1]:.2g} FLOPs ({found.evaluations:,} evaluations).'
  )


def _of_pieces(whole: Mapping[str, Fit], found: ScalingStudy) -> str:
  one, two = whole[power_laws.POWER], whole[power_laws.PIECES]
  where = f'{two.constants["C0"]:.3g} FLOPs'
  if 'C0' in two.intervals:
    low, high = two.intervals['C0']
    where += f' ({low:.2g} to {high:.2g} over draws of runs)'
  better = one.bic - two.bic
  much = 'much better' if better > 10 else 'better' if better > 2 else 'no better'
  return (
    f'Two power laws that part at {where} fit it {much} than one (BIC lower by {better:.0f}, R2 {two.r2:.3f} '
    f'against {one.r2:.3f}): exponent {_number(two, "b1")} below and {_number(two, "b2")} above.'
  )


def _of_plateau(found: ScalingStudy, after: Mapping[str, Fit]) -> list[str]:
  if found.level is None:
    return ['No run shows a plateau that its evaluations are close enough to see.']
  left = sum(place.left for place in found.plateaus)
  above = len(found.frontier) - found.below
  said = [
    f'Runs stand still at {found.level:.2f} nats, and {left} of {len(found.plateaus)} leave that plateau: '
    f'{found.below_on_plateau} of the {found.below} points of the frontier below {found.split:.3g} FLOPs are of '
    f'runs that had not left it, and {found.above_on_plateau} of the {above} above.'
  ]
  if power_laws.POWER in after and power_laws.PIECES in after:
    one, two = after[power_laws.POWER], after[power_laws.PIECES]
    said.append(
      f'Without evaluations until there, the frontier begins at {one.low:.2g} FLOPs; one power law then has '
      f'R2 {one.r2:.3f} and exponent {_number(one, "b")}, and two, parting at {two.constants["C0"]:.2g} '
      f'FLOPs, R2 {two.r2:.3f} (BIC lower by {one.bic - two.bic:.0f}).'
    )
  return said


def _of_schedule(found: ScalingStudy, curves: Sequence[LossCurve]) -> list[str]:
  said = []
  cheapest = min((point.flops for point in found.ends), default=None)
  if cheapest is not None and cheapest > found.split:
    said.append(
      f'No schedule ends below that break: the cheapest run that reached its end took {cheapest:.2g} FLOPs, '
      'so every point below is of a run in the middle of its schedule.'
    )
  on_frontier = {point.run for point in found.frontier if point.flops < found.split}
  tops = [
    place.warmup_flops
    for place in found.plateaus
    if place.run in on_frontier and place.warmup_flops is not None
  ]
  if tops:
    inside = 'lies within that' if min(tops) <= found.split <= max(tops) else 'is outside of that'
    said.append(
      f'Warm-up of the runs below the break ends between {min(tops):.2g} and {max(tops):.2g} FLOPs; the '
      f'break {inside}.'
    )
  elif all(curve.warmup is None for curve in curves):
    said.append('Where warm-up ends was not logged, so it cannot be compared with the break.')
  return said


def _verdict(found: ScalingStudy, whole: Mapping[str, Fit]) -> str:
  if whole[power_laws.POWER].bic - whole[power_laws.PIECES].bic <= 2:
    return 'So these runs show no break.'
  if found.level is None:
    return 'So the break is there, and these runs do not tell whether a plateau makes it.'
  shares = [
    on / of if of else 0.0
    for on, of in (
      (found.below_on_plateau, found.below),
      (found.above_on_plateau, len(found.frontier) - found.below),
    )
  ]
  if shares[0] >= 0.8 and shares[1] <= 0.2:
    return (
      'So the break is where the frontier passes from runs on the plateau to runs that have left it: it belongs '
      'to the course of training, and these runs give no law of compute below it.'
    )
  return 'So the plateau does not account for the break.'


def _number(fit: Fit, key: str) -> str:
  low, high = fit.intervals[key] if key in fit.intervals else (math.nan, math.nan)
  return format_interval(fit.constants[key], low, high, '.3f')


def _on_plateau(
  points: Sequence[Point], places: Sequence[Plateau], split: float | None
) -> tuple[int, int, int]:
  """Points below the split, and points below and above it of runs that had not left the plateau."""
  if split is None:
    return 0, 0, 0
  leaves = {place.run: place.exit_flops for place in places}
  on = [
    point
    for point in points
    if point.run in leaves and (leaves[point.run] is None or point.flops < leaves[point.run])
  ]
  below = sum(point.flops < split for point in on)
  return sum(point.flops < split for point in points), below, len(on) - below


def _ends(curves: Sequence[LossCurve], count: str) -> list[Point]:
  return [
    Point(
      float(curve.flops(count)[-1]),
      curve.loss[-1],
      curve.name,
      float(curve.tokens[-1]),
      curve.parameters,
    )
    for curve in curves
    if curve.loss and curve.rows[-1] > 0
  ]


def _spans(points: Sequence[Point], split: float) -> bool:
  below = sum(point.flops < split for point in points)
  return min(below, len(points) - below) >= broken_laws.MIN_POINTS_A_SIDE


def _held_out(points: Sequence[Point], left_out: list[str]) -> dict[str, float]:
  if not points:
    return {}
  found = {}
  for name, form in _HELD_OUT_FORMS.items():
    error = _or_none(
      lambda form=form: power_laws.measure_held_out_error(
        form, *frontier.to_arrays(points), max(1, len(points) // _HELD_OUT)
      ),
      left_out,
    )
    if error is not None:
      found[name] = error
  return found


def _or_none(make: Callable[[], T], left_out: list[str]) -> T | None:
  try:
    return make()
  except InputError as error:
    left_out.append(f'{error.asked}: {error.found}')
    return None
