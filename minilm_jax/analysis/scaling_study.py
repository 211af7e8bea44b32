"""Studies the scaling of a sweep: frontiers, fitted laws with intervals, plateau, conclusions.

Intervals of fits to a frontier are over draws of runs. The ends of runs are independent points, so
their intervals are those of `broken_laws.py`. Results that need a larger sweep are left out with
the reason.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from minilm_jax.analysis import frontier, scaling_fits
from minilm_jax.analysis.frontier import Plateau, Point
from minilm_jax.analysis.laws import broken_laws
from minilm_jax.analysis.laws.power_laws import LOGS, PIECES, POWER, Fit
from minilm_jax.analysis.loss_curves import HONEY, LossCurve
from minilm_jax.analysis.number_format import format_interval
from minilm_jax.analysis.scaling_fits import (
  ENDS,
  ENVELOPE,
  FRONTIER,
  WITHOUT_PLATEAU,
  select_points,
)
from minilm_jax.core.errors import InputError

# FLOPs at which paper 1 splits its frontier; the published constants are those of the two sides.
PAPER_SPLIT = 2.7e15
MIN_BIC_GAIN = 2  # a smaller difference of BIC decides nothing between two forms
# Causes of a break of the frontier.
NO_BREAK, PLATEAU, NOT_PLATEAU, UNKNOWN = 'no break', 'plateau', 'not the plateau', 'unknown'
CONCLUSIONS = {
  NO_BREAK: 'These runs show no break of the frontier.',
  UNKNOWN: 'The frontier has a break; these runs do not show whether the plateau is the cause.',
  PLATEAU: (
    'The break separates runs that had not left the plateau from runs that had. The break thus reflects '
    'the course of training, and these runs give no power law of compute below the break.'
  ),
  NOT_PLATEAU: 'The plateau does not explain the break of the frontier.',
}
T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class ScalingStudy:
  """The results of the study of one sweep.

  Attributes:
    ends: last evaluation of each finished run.
    fits: all fitted laws, with the points in their names.
    level: loss of the plateau in nats; None without a plateau.
    split: FLOPs of the break, as estimated from the frontier.
    below: number of points of the frontier below the break.
    below_before_exit, above_before_exit: number of points of runs that had not left the plateau, on
      each side.
    sentences: conclusions for the top of a report.
  """

  runs: int
  evaluations: int
  frontier: list[Point]
  envelope: list[Point]
  ends: list[Point]
  fits: list[Fit]
  level: float | None
  plateaus: list[Plateau]
  split: float | None
  below: int
  below_before_exit: int
  above_before_exit: int
  sentences: list[str]
  left_out: list[str]


def study_scaling(
  curves: Sequence[LossCurve], draws: int = 1000, unfinished: bool = False
) -> ScalingStudy:
  """Returns the study of a sweep over one corpus, by the FLOPs of paper 1.

  Args:
    draws: number of draws of runs, for the intervals of fits to frontiers.
    unfinished: include runs that have not reached the end of their schedule.
  """
  left_out: list[str] = []
  counted = [curve for curve in curves if curve.finished or unfinished]
  if len(counted) < len(curves):
    left_out.append(f'{len(curves) - len(counted)} of {len(curves)} runs: unfinished or diverged')
  level = frontier.find_plateau_level(counted)
  runs = [(curve, frontier.find_plateau(curve, level)) for curve in counted]
  plateaus = [plateau for _, plateau in runs if plateau is not None]
  points = {
    kind: _compute_or_explain(lambda kind=kind: select_points(kind, runs, HONEY), left_out) or []
    for kind in (FRONTIER, ENVELOPE, WITHOUT_PLATEAU)
  }
  ends = [
    frontier.make_point(curve, -1, HONEY)
    for curve in counted
    if curve.finished and curve.loss and curve.rows[-1] > 0
  ]
  laws = scaling_fits.list_laws(counted, _list_splits(points[FRONTIER]))
  fits, reasons = scaling_fits.fit_all(runs, laws)
  surface = _compute_or_explain(lambda: scaling_fits.fit_evaluations(runs), left_out)
  fits |= {scaling_fits.EVALUATIONS: surface} if surface else {}
  law_fits, interval_reasons = scaling_fits.add_intervals(runs, fits, draws)
  end_fits, end_reasons = scaling_fits.fit_run_ends(ends)
  pieces = select_laws(law_fits).get(PIECES)
  split = pieces.constants['C0'] if pieces else None
  below, below_before_exit, above_before_exit = _count_before_exit(
    points[FRONTIER], plateaus, split
  )
  study = ScalingStudy(
    runs=len(counted),
    evaluations=sum(len(curve.loss) for curve in counted),
    frontier=points[FRONTIER],
    envelope=points[ENVELOPE],
    ends=ends,
    fits=law_fits + end_fits,
    level=level,
    plateaus=plateaus,
    split=split,
    below=below,
    below_before_exit=below_before_exit,
    above_before_exit=above_before_exit,
    sentences=[],
    left_out=list(dict.fromkeys([*left_out, *reasons, *end_reasons, *interval_reasons])),
  )
  return dataclasses.replace(study, sentences=write_sentences(study, counted))


def select_laws(fits: Iterable[Fit], points: str = FRONTIER) -> dict[str, Fit]:
  """Returns the laws of all points of one kind, fitted to logarithms, by form."""
  return {fit.form: fit for fit in fits if (fit.name, fit.method) == (points, LOGS)}


def _list_splits(points: Sequence[Point]) -> list[float]:
  """Returns the split of paper 1 if both sides have enough points."""
  below = sum(point.flops < PAPER_SPLIT for point in points)
  enough = min(below, len(points) - below) >= broken_laws.MIN_POINTS_A_SIDE
  return [PAPER_SPLIT] if enough else []


def _count_before_exit(
  points: Sequence[Point], plateaus: Sequence[Plateau], split: float | None
) -> tuple[int, int, int]:
  """Counts the points below the split, and those before an exit below and above the split."""
  if split is None:
    return 0, 0, 0
  exits = {
    plateau.run: math.inf if plateau.exit_flops is None else plateau.exit_flops
    for plateau in plateaus
  }
  before_exit = [point for point in points if point.flops < exits.get(point.run, -math.inf)]
  below = sum(point.flops < split for point in before_exit)
  return sum(point.flops < split for point in points), below, len(before_exit) - below


def _compute_or_explain(compute: Callable[[], T], left_out: list[str]) -> T | None:
  """Returns the result; if it needs more points, returns None and adds the reason to `left_out`."""
  try:
    return compute()
  except InputError as error:
    left_out.append(f'{error.asked}: {error.found}')
    return None


def write_sentences(study: ScalingStudy, curves: Sequence[LossCurve]) -> list[str]:
  """Returns the conclusions of a study."""
  if not study.frontier:
    return ['There is no frontier, because no finished run was evaluated.']
  first, last = study.frontier[0], study.frontier[-1]
  sentences = [
    f'The frontier has {len(study.frontier)} points from {len({p.run for p in study.frontier})} of '
    f'{study.runs} runs, between {first.flops:.2g} and {last.flops:.2g} FLOPs '
    f'({study.evaluations:,} evaluations).'
  ]
  laws = select_laws(study.fits)
  if PIECES in laws and study.split is not None:
    sentences += [
      _compare_pieces(laws[POWER], laws[PIECES]),
      *_describe_plateau(study, study.split, select_laws(study.fits, WITHOUT_PLATEAU)),
      *_describe_schedule(study, study.split, curves),
      CONCLUSIONS[classify_break(study)],
    ]
  if ends := select_laws(study.fits, ENDS).get(POWER):
    sentences.append(
      f'The final losses of {ends.n} runs of all shapes follow a power law with exponent '
      f'{format_constant(ends, "b")} (R2 {ends.r2:.3f}).'
    )
  return sentences


def _compare_pieces(power: Fit, pieces: Fit) -> str:
  place = f'{pieces.constants["C0"]:.3g} FLOPs'
  if 'C0' in pieces.intervals:
    low, high = pieces.intervals['C0']
    place += f' ({low:.2g} to {high:.2g} over draws of runs)'
  gain = power.bic - pieces.bic
  better = 'much better' if gain > 10 else 'better' if gain > MIN_BIC_GAIN else 'no better'
  return (
    f'Two power laws with a break at {place} fit the frontier {better} than one power law: the BIC '
    f'is {_format_gain(gain)}, and R2 is {pieces.r2:.3f} instead of {power.r2:.3f}. The exponent is '
    f'{format_constant(pieces, "b1")} below the break and {format_constant(pieces, "b2")} above.'
  )


def _describe_plateau(study: ScalingStudy, split: float, after: Mapping[str, Fit]) -> list[str]:
  if study.level is None:
    return ['The evaluations of these runs show no plateau.']
  num_exits = sum(plateau.exit is not None for plateau in study.plateaus)
  sentences = [
    f'Runs have a plateau at {study.level:.2f} nats; {num_exits} of {len(study.plateaus)} runs leave '
    f'the plateau. Below {split:.3g} FLOPs, {study.below_before_exit} of {study.below} points of the '
    f'frontier are from runs that had not left the plateau. Above, {study.above_before_exit} of '
    f'{len(study.frontier) - study.below} points are.'
  ]
  if POWER in after and PIECES in after:
    power, pieces = after[POWER], after[PIECES]
    sentences.append(
      f'The frontier of evaluations after the plateau begins at {power.low:.2g} FLOPs. There, one '
      f'power law has exponent {format_constant(power, "b")} and R2 {power.r2:.3f}; two with a '
      f'break at {pieces.constants["C0"]:.2g} FLOPs have R2 {pieces.r2:.3f} and a BIC that is '
      f'{_format_gain(power.bic - pieces.bic)}.'
    )
  return sentences


def _describe_schedule(study: ScalingStudy, split: float, curves: Sequence[LossCurve]) -> list[str]:
  sentences = []
  cheapest = min((point.flops for point in study.ends), default=None)
  if cheapest is not None and cheapest > split:
    sentences.append(
      f'No schedule ends below the break: the cheapest finished run took {cheapest:.2g} FLOPs. All '
      'points below the break are thus from the middle of a schedule.'
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
      f'In runs below the break, the warm-up ends between {min(warmups):.2g} and '
      f'{max(warmups):.2g} FLOPs. The break is {"inside" if is_inside else "outside"} this range.'
    )
  elif all(curve.warmup is None for curve in curves):
    sentences.append(
      'The logs lack the length of the warm-up, so no comparison with the break is possible.'
    )
  return sentences


def classify_break(study: ScalingStudy) -> str:
  """Returns NO_BREAK, PLATEAU, NOT_PLATEAU or UNKNOWN, the cause of the break; '' without a fit."""
  laws = select_laws(study.fits)
  if PIECES not in laws or study.split is None:
    return ''
  if laws[POWER].bic - laws[PIECES].bic <= MIN_BIC_GAIN:
    return NO_BREAK
  if study.level is None:
    return UNKNOWN
  above = len(study.frontier) - study.below
  share_below = study.below_before_exit / study.below if study.below else 0.0
  share_above = study.above_before_exit / above if above else 0.0
  return PLATEAU if share_below >= 0.8 and share_above <= 0.2 else NOT_PLATEAU


def _format_gain(gain: float) -> str:
  return f'{"lower" if gain >= 0 else "higher"} by {abs(gain):.0f}'


def format_constant(fit: Fit, key: str) -> str:
  """Returns a constant of a law with its interval."""
  low, high = fit.intervals.get(key, (math.nan, math.nan))
  return format_interval(fit.constants[key], low, high, '.3f')
