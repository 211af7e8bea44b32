"""Results of ablations: speed-up over the base, GLUE, and verdicts by pre-registered rules.

The speed-up is the number of tokens until the exit of the plateau, base over ablation. The verdict
on a changed field is the first that applies to the 95% interval of the speed-up over seeds:

    causes the plateau   the interval lies above 2
    shortens it          the interval lies above 1
    lengthens it         the interval lies below 1
    does not             the interval lies below 1.5
    cannot be told       otherwise, and with one seed

An ablation of several fields has no verdict, as the cause could be any of the fields. The verdict on
GLUE is that of `ablation_glue.py`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from minilm_jax.analysis import frontier
from minilm_jax.analysis.ablation_glue import (
  AVERAGE,
  ONE_SEED,
  OPEN,
  Contrast,
  GlueRow,
  classify_glue,
)
from minilm_jax.analysis.ablations import WORDS, Ablation, AblationAtSize, Comparison
from minilm_jax.analysis.loss_curves import ACTUAL, LossCurve
from minilm_jax.analysis.number_format import format_interval
from minilm_jax.analysis.runs import group_by, to_float
from minilm_jax.analysis.seed_groups import compute_difference, make_group
from minilm_jax.tasks import metrics

CAUSES, SHORTENS, LENGTHENS, NOT = 'causes the plateau', 'shortens it', 'lengthens it', 'does not'
CAUSES_ABOVE, SHORTENS_ABOVE, UNCHANGED_BELOW = 2.0, 1.0, 1.5
AT_LEAST, AT_MOST, NEITHER_LEFT = 'at least', 'at most', 'neither left'
_LOSS_PARTS = 0.25, 0.5, 1.0  # shares of the FLOPs of the base run
# The last loss of a run counts up to this factor of its FLOPs, as ablations differ little in cost.
_MAX_OVERSHOOT = 1.02
# The cost of a run until it reaches a target, and its bound: AT_LEAST for the cost of a run that
# ends before, AT_MOST for that of the first evaluation of a run that is then past the target, or ''.
CostToReach = tuple[float, str]
Levels = Mapping[str, float | None]  # loss of the plateau by tokenizer, '' is that of the base


@dataclasses.dataclass(frozen=True)
class PairedRatio:
  """The cost of the base over the cost of an ablation.

  Attributes:
    value: geometric mean over seeds; nan if unknown.
    low, high: ends of the 95% interval, 0 or infinity for a bound; nan if a side has one seed.
    bound: AT_LEAST, AT_MOST or NEITHER_LEFT if the cost of some run is a bound; else ''.
  """

  value: float = math.nan
  low: float = math.nan
  high: float = math.nan
  bound: str = ''
  base_seeds: int = 0
  seeds: int = 0
  paired: bool = False

  def __str__(self) -> str:
    """Returns the ratio, as in `3.10 [2.20, 4.40]` or `at least 3.10`, or else the bound."""
    if not math.isfinite(self.value):
      return self.bound
    return f'{self.bound} {format_interval(self.value, self.low, self.high, ".2f")}'.strip()


@dataclasses.dataclass(frozen=True)
class AblationRow:
  """One ablation at one shape, or the base itself.

  Attributes:
    under_way: number of unfinished runs.
    level: loss of the plateau in nats; nan without a plateau.
    updates_to_leave: updates at the exit of the plateau for each seed, or 'not within' N updates.
    tokens_to_leave: tokens at the exit.
    speed: ratio of the tokens at the exit, base over ablation.
    verdict: verdict on the changed field; '' for the base and for several fields.
    multiplier: ratio of the FLOPs to reach `loss`, base over ablation.
    loss: lowest loss in nats that all runs of both reach; nan if losses are not comparable.
    loss_at_whole: mean loss over seeds at the FLOPs of the base run; others are at parts of these.
    validation_loss: mean loss at the end of the schedule; nan with unfinished runs.
    low, high: ends of the 95% interval of the validation loss over seeds.
    test_loss: mean test loss at the end of the schedule.
    glue: average of GLUE, ablation against base; n is 0 without an average.
    glue_verdict: verdict on GLUE; '' without an average.
    note: reasons for missing values.
  """

  change: str
  shape: str
  fields: tuple[str, ...]
  runs: tuple[str, ...]
  seeds: tuple[int, ...]
  under_way: int
  parameters: int
  level: float
  updates_to_leave: tuple[str, ...]
  tokens_to_leave: tuple[str, ...]
  flops_to_leave: tuple[str, ...]
  speed: PairedRatio
  verdict: str
  multiplier: PairedRatio
  loss: float
  loss_at_quarter: float
  loss_at_half: float
  loss_at_whole: float
  validation_loss: float
  low: float
  high: float
  test_loss: float
  glue: Contrast
  glue_tasks: tuple[str, ...]
  glue_verdict: str
  note: str


def compute_ratio(
  base: Mapping[int, CostToReach], change: Mapping[int, CostToReach]
) -> PairedRatio:
  """Returns the ratio of costs, base over ablation, from the costs by seed.

  >>> str(compute_ratio({0: (8.0, ''), 1: (9.0, '')}, {0: (2.0, '')}))
  '4.00'
  >>> str(compute_ratio({0: (8.0, AT_LEAST), 1: (8.0, AT_LEAST)}, {0: (2.0, ''), 1: (2.0, '')}))
  'at least 4.00 [4.00, ∞]'
  """
  common = base.keys() & change.keys()
  if len(common) > 1 or common and min(len(base), len(change)) < 2:
    base, change = ({seed: side[seed] for seed in sorted(common)} for side in (base, change))
  if not base or not change:
    return PairedRatio()
  base_bounds, change_bounds = ({bound for _, bound in side.values()} for side in (base, change))
  is_at_least = AT_LEAST in base_bounds or AT_MOST in change_bounds
  is_at_most = AT_MOST in base_bounds or AT_LEAST in change_bounds
  counts = len(base), len(change), base.keys() == change.keys()
  if is_at_least and is_at_most:
    return PairedRatio(math.nan, math.nan, math.nan, NEITHER_LEFT, *counts)
  logs = compute_difference(
    *(
      make_group({seed: math.log(cost) for seed, (cost, _) in side.items()})
      for side in (base, change)
    )
  )
  low, high = math.exp(logs.low), math.exp(logs.high)
  if math.isfinite(low):
    low, high = 0.0 if is_at_most else low, math.inf if is_at_least else high
  bound = AT_LEAST if is_at_least else AT_MOST if is_at_most else ''
  return PairedRatio(math.exp(logs.mean), low, high, bound, *counts)


def _find_exits(change: Ablation, levels: Levels) -> dict[int, int]:
  """Returns the index of the exit of each seed, or -1, the last evaluation, without an exit.

  Without a loss of the plateau, there are no exits.
  """
  level = levels[change.tokenizer]
  exits = {}
  for seed, curve in change.curves.items() if level is not None else ():
    plateau = frontier.find_plateau(curve, level, ACTUAL)
    exits[seed] = plateau.end if plateau is not None and plateau.exit is not None else -1
  return exits


def measure_speed_up(base: Ablation, change: Ablation, levels: Levels) -> PairedRatio:
  """Returns the ratio of tokens at the exit of the plateau, base over ablation.

  Args:
    levels: losses of the plateau, of `find_levels`; None gives no ratio.
  """
  return compute_ratio(
    *(
      {
        seed: (float(side.curves[seed].tokens[index]), AT_LEAST if index == -1 else '')
        for seed, index in _find_exits(side, levels).items()
      }
      for side in (base, change)
    )
  )


def find_shared_loss(*sides: Ablation) -> float:
  """Returns the lowest loss that every run of these ablations reaches."""
  return max(min(curve.loss) for side in sides for curve in side.curves.values())


def measure_multiplier(base: Ablation, change: Ablation, loss: float) -> PairedRatio:
  """Returns the ratio of FLOPs to reach a loss, base over ablation; other seeds are left out.

  The ratio is a bound if a run has a lower loss at its first evaluation. It is unknown if runs of
  both sides have.
  """
  ratio = compute_ratio(
    *(
      {
        seed: (flops, AT_MOST if curve.loss[0] < loss else '')
        for seed, curve in side.curves.items()
        if math.isfinite(flops := interpolate_flops(curve, loss))
      }
      for side in (base, change)
    )
  )
  return PairedRatio() if ratio.bound == NEITHER_LEFT else ratio


def interpolate_flops(curve: LossCurve, loss: float) -> float:
  """Returns the FLOPs at which a run first reaches a loss; nan if the run does not.

  A run with a lower loss at its first evaluation has the FLOPs of that evaluation, an upper bound.
  """
  lowest, flops = np.minimum.accumulate(curve.loss), curve.flops(ACTUAL)
  index = int(np.searchsorted(-lowest, -loss))
  if index == len(lowest):
    return math.nan
  if index == 0:
    return float(flops[0])
  before, after = lowest[index - 1], lowest[index]
  share = math.log(before / loss) / math.log(before / after)
  return float(flops[index - 1] * (flops[index] / flops[index - 1]) ** share)


def interpolate_loss(curve: LossCurve, flops: float) -> float:
  """Returns the loss at these FLOPs, log-log interpolated; nan outside of the training."""
  logged = curve.flops(ACTUAL)
  if not logged[0] <= flops <= _MAX_OVERSHOOT * logged[-1]:
    return math.nan
  return float(np.exp(np.interp(math.log(flops), np.log(logged), np.log(curve.loss))))


def _average(values: Iterable[float | None]) -> float:
  """Returns the mean over seeds; nan without seeds or with a missing value."""
  numbers = [to_float(value) for value in values]
  return float(np.mean(numbers)) if numbers else math.nan


def find_levels(comparison: Comparison, base_level: float | None = None) -> Levels:
  """Returns the loss of the plateau by tokenizer; '' is the tokenizer of the base.

  For the base, `base_level` takes precedence over the loss of the unigram baseline, and the latter
  over the estimate from the runs.
  """
  changes = [change for part in comparison.shapes for change in (part.base, *part.changes)]
  levels = {
    tokenizer: frontier.find_plateau_level(
      [curve for change in same_tokenizer for curve in change.curves.values()]
    )
    for tokenizer, same_tokenizer in group_by(changes, lambda change: change.tokenizer).items()
  }
  if base_level is None:
    base_level = comparison.ngram_losses.get(WORDS)
  return levels if base_level is None else levels | {'': base_level}


def make_rows(
  part: AblationAtSize, levels: Levels, glue: Sequence[GlueRow] = ()
) -> list[AblationRow]:
  """Returns the base, then the ablations by decreasing multiplier."""
  averages = {row.change: row for row in glue if row.task == AVERAGE}
  base, *rows = (
    _make_row(part, change, levels, averages.get(change.name))
    for change in (part.base, *part.changes)
  )

  def make_key(row: AblationRow) -> tuple[float, str]:
    value = row.multiplier.value
    return -value if math.isfinite(value) else math.inf, row.change

  return [base, *sorted(rows, key=make_key)]


def classify_speed_up(fields: Sequence[str], speed: PairedRatio) -> str:
  """Returns the verdict on the changed field; '' without a field or with several."""
  if len(fields) != 1:
    return ''
  if speed.bound == NEITHER_LEFT or not math.isfinite(speed.value):
    return OPEN
  if min(speed.base_seeds, speed.seeds) < 2:
    return ONE_SEED
  rules = (
    (CAUSES, speed.low > CAUSES_ABOVE),
    (SHORTENS, speed.low > SHORTENS_ABOVE),
    (LENGTHENS, speed.high < SHORTENS_ABOVE),
    (NOT, speed.high < UNCHANGED_BELOW),
  )
  return next((verdict for verdict, holds in rules if holds), OPEN)


def _make_row(
  part: AblationAtSize, change: Ablation, levels: Levels, glue: GlueRow | None
) -> AblationRow:
  base, level, curves = part.base, levels[change.tokenizer], change.curves.values()
  is_comparable = not change.tokenizer
  speed, multiplier, loss = PairedRatio(), PairedRatio(), math.nan
  if change is not base:
    speed = measure_speed_up(base, change, levels)
    if is_comparable:
      loss = find_shared_loss(base, change)
      multiplier = measure_multiplier(base, change, loss)
  planned = min(run.planned for run in base.runs)
  at_quarter, at_half, at_whole = (
    _average(interpolate_loss(curve, share * planned) for curve in curves)
    if is_comparable
    else math.nan
    for share in _LOSS_PARTS
  )
  finished = curves if is_comparable and all(curve.finished for curve in curves) else []
  last_losses = [curve.loss[-1] for curve in finished]
  low, high = metrics.confidence_interval(last_losses)
  score = Contrast() if glue is None else glue.score
  return AblationRow(
    change=change.name,
    shape=part.shape,
    fields=change.fields,
    runs=tuple(curve.name for curve in curves),
    seeds=tuple(change.curves),
    under_way=sum(not curve.finished for curve in curves),
    parameters=change.runs[0].curve.parameters,
    level=math.nan if level is None else level,
    **_format_exits(change, levels),
    speed=speed,
    verdict=classify_speed_up(change.fields, speed),
    multiplier=multiplier,
    loss=loss,
    loss_at_quarter=at_quarter,
    loss_at_half=at_half,
    loss_at_whole=at_whole,
    validation_loss=_average(last_losses),
    low=low,
    high=high,
    test_loss=_average(curve.test_loss for curve in finished),
    glue=score,
    glue_tasks=() if glue is None else glue.tasks,
    glue_verdict=classify_glue(score),
    note='; '.join(_list_notes(change, level)),
  )


def _format_exits(change: Ablation, levels: Levels) -> dict[str, tuple[str, ...]]:
  """Returns the updates, tokens and FLOPs of each seed at the exit of the plateau.

  Without an exit, the text is 'not within' and the length of the run.
  """
  exits = _find_exits(change, levels)
  formats: dict[str, Callable[[LossCurve, int], str]] = {
    'updates_to_leave': lambda curve, index: f'{curve.updates[index]}',
    'tokens_to_leave': lambda curve, index: f'{curve.tokens[index]:.0f}',
    'flops_to_leave': lambda curve, index: f'{curve.flops(ACTUAL)[index]:.4g}',
  }
  return {
    field: tuple(
      ('not within ' if index == -1 else '') + form(change.curves[seed], index)
      for seed, index in exits.items()
    )
    for field, form in formats.items()
  }


def _list_notes(change: Ablation, level: float | None) -> Iterator[str]:
  if change.tokenizer:
    yield 'losses with another tokenizer are not comparable'
  if change.tokenizer and level is None:
    yield 'the runs show no plateau'
  if len({run.planned for run in change.runs}) > 1:
    yield 'the runs have different lengths'
