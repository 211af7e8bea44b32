"""The scaling study of a sweep: its frontiers, the laws fitted to them with intervals, its plateau,
and the conclusions.

Results that a sweep is too small for are left out with the reason; nothing here raises for that.
Intervals of fits to a frontier are by drawing runs; those of fits to the ends of runs, which are
independent points, are of `broken_laws.py`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from minilm_jax.analysis import broken_laws, frontier, power_laws, scaling_fits
from minilm_jax.analysis.frontier import Plateau, Point
from minilm_jax.analysis.loss_curves import HONEY, LossCurve
from minilm_jax.analysis.power_laws import LOGS, PIECES, POWER, Fit
from minilm_jax.analysis.scaling_fits import ENDS, ENVELOPE, FRONTIER, WITHOUT, SweepRun
from minilm_jax.analysis.scores import format_interval
from minilm_jax.core.errors import InputError

# FLOPs of the paper's split of its frontier; its published constants are those of either side.
PAPER_SPLIT = 2.7e15
_HELD_OUT_DIVISOR = 5  # the fifth of points with the highest compute is predicted from the others
# By the keys of fits.json.
_HELD_OUT_FORMS = {
  'log_power': power_laws.fit_log_power,
  'offset_power': power_laws.fit_offset_power,
  'two_piece': broken_laws.fit_two_piece,
  'smooth_break': broken_laws.fit_smooth_break,
}
MIN_BIC_GAIN = 2  # a smaller difference of BIC decides nothing between two forms
# Causes of a break of the frontier.
NO_BREAK, PLATEAU, NOT_PLATEAU, UNKNOWN = 'no break', 'plateau', 'not the plateau', 'unknown'
CONCLUSIONS = {
  NO_BREAK: 'So these runs show no break.',
  UNKNOWN: 'So the break is there, and these runs do not tell whether a plateau makes it.',
  PLATEAU: (
    'So the break is where the frontier passes from runs on the plateau to runs that have left it: '
    'it belongs to the course of training, and these runs give no law of compute below it.'
  ),
  NOT_PLATEAU: 'So the plateau does not account for the break.',
}
T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class ScalingStudy:
  """The results of the study of one sweep.

  Attributes:
    count: how the FLOPs were counted.
    runs, evaluations: that counted.
    frontier, envelope: `frontier.percentile` and `frontier.envelope`.
    without: the percentile frontier of the evaluations after the plateau.
    ends: the last evaluation of each finished run.
    fits: every law; its name says to which points.
    chosen: of the laws of the whole frontier, the one with the lowest BIC.
    held_out: by form, the error in log L of the law fitted to the rest at the dearest fifth of the
      frontier.
    level: loss of the plateau; None where no run shows one.
    plateaus: of the runs that were on it.
    split: FLOPs where the two pieces part: as asked, or as estimated from the frontier.
    split_interval: 95%, over draws of runs, where it was estimated.
    below, below_on_plateau: points of the frontier below the split, and those of runs that had not
      yet left the plateau.
    above_on_plateau: those above.
    sentences: the conclusions, for the top of a page.
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
  """Returns everything that the loss curves of a sweep allow.

  Args:
    curves: of a sweep over one corpus.
    draws, seed: of runs, for the intervals of fits to frontiers.
    unfinished: do runs count that have not reached the end of their schedule?
    count: of FLOPs, of `loss_curves.py`; runs without it are left out.
    split: FLOPs at which the frontier is parted; by default the best break of two pieces. The
      paper's split is added if the sweep spans it and the count is the paper's.
  """
  left_out: list[str] = []
  counted = [
    curve for curve in curves if (curve.finished or unfinished) and count in curve.flops_per_row
  ]
  if len(counted) < len(curves):
    left_out.append(
      f'{len(curves) - len(counted)} of {len(curves)} runs: not at the end of their schedule, or '
      f'without FLOPs by the count {count!r}'
    )
  level = frontier.find_plateau_level(counted)
  runs = [
    SweepRun(curve, None if level is None else frontier.find_plateau(curve, level, count))
    for curve in counted
  ]
  plateaus = [run.plateau for run in runs if run.plateau is not None]
  points = {
    kind: _try(lambda kind=kind: scaling_fits.select_points(kind, runs, count), left_out) or []
    for kind in (FRONTIER, ENVELOPE, WITHOUT)
  }
  ends = _select_ends(counted, count)
  fits, reasons = _fit_laws(runs, points[FRONTIER], count, split, (draws, seed), left_out)
  end_fits, end_reasons = scaling_fits.fit_run_ends(ends, count)
  of_frontier = [fit for fit in fits if fit.name == FRONTIER]
  pieces = next((fit for fit in of_frontier if fit.form == PIECES and fit.method == LOGS), None)
  split_interval = None
  if split is None and pieces is not None:
    split, split_interval = pieces.constants['C0'], pieces.intervals.get('C0')
  num_points = _count_on_plateau(points[FRONTIER], plateaus, split)
  study = ScalingStudy(
    count=count,
    runs=len(counted),
    evaluations=sum(len(curve.loss) for curve in counted),
    frontier=points[FRONTIER],
    envelope=points[ENVELOPE],
    without=points[WITHOUT],
    ends=ends,
    fits=fits + end_fits,
    chosen=power_laws.choose_fit(of_frontier) if of_frontier else None,
    held_out=_measure_held_out(points[FRONTIER], left_out),
    level=level,
    plateaus=plateaus,
    split=split,
    split_interval=split_interval,
    below=num_points[0],
    below_on_plateau=num_points[1],
    above_on_plateau=num_points[2],
    sentences=[],
    left_out=list(dict.fromkeys([*left_out, *reasons[0], *end_reasons, *reasons[1]])),
  )
  return dataclasses.replace(study, sentences=write_sentences(study, counted))


def _select_ends(curves: Sequence[LossCurve], count: str) -> list[Point]:
  return [
    frontier.make_point(curve, -1, count)
    for curve in curves
    if curve.finished and curve.loss and curve.rows[-1] > 0
  ]


def _fit_laws(
  runs: Sequence[SweepRun],
  points: Sequence[Point],
  count: str,
  split: float | None,
  sampling: tuple[int, int],
  left_out: list[str],
) -> tuple[list[Fit], tuple[list[str], list[str]]]:
  """Returns the fits to frontiers, and the reasons for missing fits and missing intervals.

  Args:
    runs, count, split: of the study.
    points: of the frontier.
    sampling: draws and seed.
    left_out: gets the reason for a missing law over parameters and tokens.
  """
  splits = [] if split is None else [split]
  if count == HONEY and split != PAPER_SPLIT:
    below = sum(point.flops < PAPER_SPLIT for point in points)
    if min(below, len(points) - below) >= broken_laws.MIN_POINTS_A_SIDE:
      splits.append(PAPER_SPLIT)
  other_counts = scaling_fits.list_other_counts([run.curve for run in runs], count)
  laws = scaling_fits.list_laws(count, other_counts, splits)
  fits, reasons = scaling_fits.fit_all(runs, laws)
  surface = _try(lambda: scaling_fits.fit_evaluations(runs, count), left_out)
  fits, unsure = scaling_fits.add_intervals(runs, laws, fits, surface, *sampling)
  return fits, (reasons, unsure)


def _count_on_plateau(
  points: Sequence[Point], plateaus: Sequence[Plateau], split: float | None
) -> tuple[int, int, int]:
  """Returns the points below the split, and the points below and above it of runs that had not left
  the plateau.
  """
  if split is None:
    return 0, 0, 0
  exits = {
    plateau.run: math.inf if plateau.exit_flops is None else plateau.exit_flops
    for plateau in plateaus
  }
  on_plateau = [point for point in points if point.flops < exits.get(point.run, -math.inf)]
  below = sum(point.flops < split for point in on_plateau)
  return sum(point.flops < split for point in points), below, len(on_plateau) - below


def _measure_held_out(points: Sequence[Point], left_out: list[str]) -> dict[str, float]:
  errors = {}
  arrays = frontier.to_arrays(points)
  num_held_out = max(1, len(points) // _HELD_OUT_DIVISOR)
  for name, form in _HELD_OUT_FORMS.items() if points else ():
    error = _try(
      lambda form=form: power_laws.measure_held_out_error(form, *arrays, num_held_out), left_out
    )
    if error is not None:
      errors[name] = error
  return errors


def _try(compute: Callable[[], T], left_out: list[str]) -> T | None:
  try:
    return compute()
  except InputError as error:
    left_out.append(f'{error.asked}: {error.found}')
    return None


def write_sentences(study: ScalingStudy, curves: Sequence[LossCurve]) -> list[str]:
  """Returns the conclusions of a study, most important first: is its break a law or a schedule?

  Args:
    study: its sentences still missing.
    curves: of the study, for their warm-up.
  """
  if not study.frontier:
    return ['There is no frontier: no finished run was evaluated.']
  first, last = study.frontier[0], study.frontier[-1]
  sentences = [
    f'The frontier has {len(study.frontier)} points from {len({p.run for p in study.frontier})} of '
    f'{study.runs} runs, {first.flops:.2g} to {last.flops:.2g} FLOPs ({study.evaluations:,} '
    'evaluations).'
  ]
  by_form = {
    kind: {fit.form: fit for fit in study.fits if fit.name == kind and fit.method == LOGS}
    for kind in (FRONTIER, WITHOUT)
  }
  if PIECES in by_form[FRONTIER] and study.split is not None:
    power, pieces = by_form[FRONTIER][POWER], by_form[FRONTIER][PIECES]
    sentences += [
      _compare_pieces(power, pieces),
      *_describe_plateau(study, study.split, by_form[WITHOUT]),
      *_describe_schedule(study, study.split, curves),
      CONCLUSIONS[classify_break(study)],
    ]
  ends = next((fit for fit in study.fits if fit.name == ENDS and fit.form == POWER), None)
  if ends is not None:
    sentences.append(
      f'Over the ends of {ends.n} runs, whatever their shape, loss falls with exponent '
      f'{_format_constant(ends, "b")}, R2 {ends.r2:.3f}.'
    )
  return sentences


def _compare_pieces(power: Fit, pieces: Fit) -> str:
  place = f'{pieces.constants["C0"]:.3g} FLOPs'
  if 'C0' in pieces.intervals:
    low, high = pieces.intervals['C0']
    place += f' ({low:.2g} to {high:.2g} over draws of runs)'
  gain = power.bic - pieces.bic
  better = 'much better' if gain > 10 else 'better' if gain > 2 else 'no better'
  return (
    f'Two power laws that part at {place} fit it {better} than one (BIC lower by {gain:.0f}, R2 '
    f'{pieces.r2:.3f} against {power.r2:.3f}): exponent {_format_constant(pieces, "b1")} below and '
    f'{_format_constant(pieces, "b2")} above.'
  )


def _describe_plateau(study: ScalingStudy, split: float, after: Mapping[str, Fit]) -> list[str]:
  if study.level is None:
    return ['No run shows a plateau that its evaluations are close enough to see.']
  num_left = sum(plateau.left for plateau in study.plateaus)
  sentences = [
    f'Runs stand still at {study.level:.2f} nats, and {num_left} of {len(study.plateaus)} leave that '
    f'plateau: {study.below_on_plateau} of the {study.below} points of the frontier below '
    f'{split:.3g} FLOPs are of runs that had not left it, and {study.above_on_plateau} of the '
    f'{len(study.frontier) - study.below} above.'
  ]
  if POWER in after and PIECES in after:
    power, pieces = after[POWER], after[PIECES]
    sentences.append(
      f'Without evaluations until there, the frontier begins at {power.low:.2g} FLOPs; one power law '
      f'then has R2 {power.r2:.3f} and exponent {_format_constant(power, "b")}, and two, parting at '
      f'{pieces.constants["C0"]:.2g} FLOPs, R2 {pieces.r2:.3f} (BIC lower by '
      f'{power.bic - pieces.bic:.0f}).'
    )
  return sentences


def _describe_schedule(study: ScalingStudy, split: float, curves: Sequence[LossCurve]) -> list[str]:
  sentences = []
  cheapest = min((point.flops for point in study.ends), default=None)
  if cheapest is not None and cheapest > split:
    sentences.append(
      f'No schedule ends below that break: the cheapest run that reached its end took '
      f'{cheapest:.2g} FLOPs, so every point below is of a run in the middle of its schedule.'
    )
  runs_below = {point.run for point in study.frontier if point.flops < split}
  warmups = [
    plateau.warmup_flops
    for plateau in study.plateaus
    if plateau.run in runs_below and plateau.warmup_flops is not None
  ]
  if warmups:
    is_inside = min(warmups) <= split <= max(warmups)
    sentences.append(
      f'Warm-up of the runs below the break ends between {min(warmups):.2g} and {max(warmups):.2g} '
      f'FLOPs; the break {"lies within that" if is_inside else "is outside of that"}.'
    )
  elif all(curve.warmup is None for curve in curves):
    sentences.append('Where warm-up ends was not logged, so it cannot be compared with the break.')
  return sentences


def classify_break(study: ScalingStudy) -> str:
  """Returns NO_BREAK, PLATEAU, NOT_PLATEAU or UNKNOWN, the cause of the break; '' without a fit."""
  by_form = {fit.form: fit for fit in study.fits if fit.name == FRONTIER and fit.method == LOGS}
  if PIECES not in by_form or study.split is None:
    return ''
  if by_form[POWER].bic - by_form[PIECES].bic <= MIN_BIC_GAIN:
    return NO_BREAK
  if study.level is None:
    return UNKNOWN
  above = len(study.frontier) - study.below
  share_below = study.below_on_plateau / study.below if study.below else 0.0
  share_above = study.above_on_plateau / above if above else 0.0
  return PLATEAU if share_below >= 0.8 and share_above <= 0.2 else NOT_PLATEAU


def _format_constant(fit: Fit, key: str) -> str:
  low, high = fit.intervals.get(key, (math.nan, math.nan))
  return format_interval(fit.constants[key], low, high, '.3f')
