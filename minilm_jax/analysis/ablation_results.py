"""Results of ablations: speed-up over the base, GLUE, and verdicts.

The rules were fixed before the runs. The speed of an ablation is the number of tokens that the base
takes to leave the plateau over its own. By the 95% interval of the speed over seeds the changed
field

    causes the plateau   the interval lies above 2: it leaves at no more than half the tokens
    shortens it          else, it lies above 1
    lengthens it         else, it lies below 1
    does not             else, it lies below 1.5: the ablation cannot be 1.5 times as fast
    cannot be told       else; and from one seed, whatever its number, which is an indication

The first rule that fits holds. An ablation of several fields has no verdict, as it does not say
which of them is the cause.

By the 95% interval of the average of GLUE less the base's, over pairs of pre-training seeds, an
ablation of any number of fields is

    no worse on GLUE     the interval lies above minus one point, the least that matters
    worse on GLUE        it lies below minus one point
    cannot be told       else; and from one pair, whatever the seeds of fine-tuning
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from minilm_jax.analysis import frontier, scores
from minilm_jax.analysis.ablations import WORDS, Ablation, AblationAtSize, Comparison
from minilm_jax.analysis.frontier import Plateau
from minilm_jax.analysis.loss_curves import ACTUAL, LossCurve
from minilm_jax.analysis.scores import NO_CONTRAST, TRAININGS, Contrast, PairedScores, ScoreRow
from minilm_jax.tasks import metrics

CAUSES, SHORTENS, LENGTHENS, NOT = 'causes the plateau', 'shortens it', 'lengthens it', 'does not'
OPEN, ONE_SEED = 'cannot be told', 'cannot be told from one seed'
NO_WORSE, WORSE = 'no worse on GLUE', 'worse on GLUE'
CAUSES_ABOVE, SHORTENS_ABOVE, UNCHANGED_BELOW = 2.0, 1.0, 1.5
GLUE_MARGIN = 0.01  # of a score, which is a share
AVERAGE = 'average'
AT_LEAST, AT_MOST, NEITHER_LEFT = 'at least', 'at most', 'neither left'
_LOSS_PARTS = 0.25, 0.5, 1.0  # of the FLOPs of the whole run of the base
# FLOPs beyond the last evaluation at which its loss still counts: ablations differ a little in cost.
_MAX_OVERSHOOT = 1.02
CostToReach = tuple[
  float, bool
]  # the cost of a run until a goal or its end, and whether it got there


@dataclasses.dataclass(frozen=True)
class GlueRow:
  """One task of one ablation, or the average over its tasks; scores are shares.

  Attributes:
    change, shape: names.
    task: of GLUE, or `AVERAGE`.
    tasks: of the average.
    score: the base's and the ablation's.
  """

  change: str
  shape: str
  task: str
  tasks: tuple[str, ...]
  score: Contrast


@dataclasses.dataclass(frozen=True)
class PairedRatio:
  """The cost of the base over the cost of an ablation.

  Attributes:
    value: the geometric mean over seeds; nan if unknown.
    low, high: its 95% interval; nan if a side has one seed. One end of a bound is open: 0 or
      infinity.
    bound: AT_LEAST, AT_MOST or NEITHER_LEFT if runs did not get there; '' if all did.
    base_seeds, seeds: number of seeds of each side.
    paired: by seed?
  """

  value: float
  low: float
  high: float
  bound: str
  base_seeds: int
  seeds: int
  paired: bool

  def __str__(self) -> str:
    """As in `3.1 [2.2, 4.4]`, `at least 3.1`, or why there is none."""
    if not math.isfinite(self.value):
      return self.bound
    return f'{self.bound} {scores.format_interval(self.value, self.low, self.high, ".2f")}'.strip()


NO_RATIO = PairedRatio(math.nan, math.nan, math.nan, '', 0, 0, False)


@dataclasses.dataclass(frozen=True)
class AblationRow:
  """One ablation at one shape, or the base itself.

  Attributes:
    change, shape: names.
    fields: in which it differs.
    runs, seeds: one run a seed.
    under_way: number of unfinished runs.
    parameters: of the model.
    level: of the plateau, nats; nan if none can be seen.
    updates_to_leave, tokens_to_leave, flops_to_leave: of each seed, or 'not within' its length.
    speed: tokens of the base until it leaves over those of the ablation.
    verdict: by the rules above; '' of the base and of several fields.
    multiplier: FLOPs of the base to reach `loss` over those of the ablation.
    loss: the lowest that all runs of both have reached, nats; nan if losses do not compare.
    loss_at_quarter, loss_at_half, loss_at_whole: means over seeds at these parts of the FLOPs of
      the base's whole run.
    validation_loss, low, high: at the end of the schedule, mean over seeds with its 95% interval;
      nan under way.
    test_loss: the same.
    glue: the average of GLUE against the base's; n is 0 without one.
    glue_tasks: of the average.
    glue_verdict: by the rules above; '' without an average.
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


def find_glue_rows(part: AblationAtSize, rows: Sequence[ScoreRow]) -> list[GlueRow]:
  """Returns the average and the tasks of each ablation that shares a scored seed with the base.

  Args:
    part: the ablations at one shape.
    rows: of `scores.select_main`.
  """
  averaged = [row for row in rows if scores.is_averaged(row)]
  base = part.base.curves
  glue_rows = []
  for change in part.changes:
    pairs = [(base[seed].name, curve.name) for seed, curve in change.curves.items() if seed in base]
    for task, tasks, contrast in _contrast_tasks(scores.pair_scores(pairs, averaged)):
      glue_rows.append(GlueRow(change.name, part.shape, task, tasks, contrast))
  return glue_rows


def _contrast_tasks(paired: PairedScores) -> Iterator[tuple[str, tuple[str, ...], Contrast]]:
  """Yields the average, if there is one, then the tasks; a task that was fine-tuned in several ways
  is in no average.
  """
  counts = collections.Counter(key.task for key in paired)
  names = {
    key: key.task
    + (' (filtered)' if key.filtered else '')
    + (f', {key.train_examples:,} examples' if counts[key.task] > 1 else '')
    for key in paired
  }
  single = [key for key in paired if counts[key.task] == 1]
  pairs = set().union(*(paired[key] for key in single))
  shared = [key for key in single if paired[key].keys() == pairs]
  if len(shared) > 1:
    average = scores.average_contrast([paired[key] for key in shared])
    if average.n:
      yield AVERAGE, tuple(names[key] for key in shared), average
  for key, by_pair in paired.items():
    yield names[key], (), scores.average_contrast([by_pair])


def compute_ratio(
  base: Mapping[int, CostToReach], change: Mapping[int, CostToReach]
) -> PairedRatio:
  """Returns the ratio over seeds, from the costs by seed.

  >>> str(compute_ratio({0: (8.0, True), 1: (9.0, True)}, {0: (2.0, True)}))
  '4.00'
  >>> str(compute_ratio({0: (8.0, False), 1: (8.0, False)}, {0: (2.0, True), 1: (2.0, True)}))
  'at least 4.00 [4.00, ∞]'
  """
  common = base.keys() & change.keys()
  if len(common) > 1 or common and min(len(base), len(change)) < 2:
    base, change = ({seed: side[seed] for seed in sorted(common)} for side in (base, change))
  if not base or not change:
    return NO_RATIO
  is_base_open, is_change_open = (
    not all(has_reached for _, has_reached in side.values()) for side in (base, change)
  )
  counts = len(base), len(change), base.keys() == change.keys()
  if is_base_open and is_change_open:
    return PairedRatio(math.nan, math.nan, math.nan, NEITHER_LEFT, *counts)
  logs = scores.compute_difference(
    *(
      scores.make_group({seed: math.log(cost) for seed, (cost, _) in side.items()})
      for side in (base, change)
    )
  )
  low, high = math.exp(logs.low), math.exp(logs.high)
  if math.isfinite(low):
    low, high = 0.0 if is_change_open else low, math.inf if is_base_open else high
  bound = AT_LEAST if is_base_open else AT_MOST if is_change_open else ''
  return PairedRatio(math.exp(logs.mean), low, high, bound, *counts)


def find_plateaus(change: Ablation, level: float) -> dict[int, Plateau | None]:
  """Returns the plateau of each seed; None if it never came down to the level."""
  return {
    seed: frontier.find_plateau(curve, level, ACTUAL) for seed, curve in change.curves.items()
  }


def measure_speed_up(
  base: Ablation, change: Ablation, base_level: float | None, level: float | None
) -> PairedRatio:
  """Returns the tokens of the base until it leaves the plateau over those of the ablation; no ratio
  without a level.
  """
  if base_level is None or level is None:
    return NO_RATIO
  tokens = []
  for side, side_level in ((base, base_level), (change, level)):
    by_seed = {}
    for seed, plateau in find_plateaus(side, side_level).items():
      index, has_left = _find_exit(plateau)
      by_seed[seed] = (float(side.curves[seed].tokens[index]), has_left)
    tokens.append(by_seed)
  return compute_ratio(*tokens)


def _find_exit(plateau: Plateau | None) -> tuple[int, bool]:
  """Returns the evaluation at which a run left the plateau, else its last one; and whether it left."""
  return (plateau.end, True) if plateau is not None and plateau.left else (-1, False)


def find_shared_loss(*sides: Ablation) -> float:
  """Returns the lowest loss that every run of these has reached."""
  return max(min(curve.loss) for side in sides for curve in side.curves.values())


def measure_multiplier(base: Ablation, change: Ablation, loss: float) -> PairedRatio:
  """Returns the FLOPs of the base to reach a loss over those of the ablation, over the seeds that
  have reached it.
  """
  flops = (
    {seed: (interpolate_flops(curve, loss), True) for seed, curve in side.curves.items()}
    for side in (base, change)
  )
  return compute_ratio(
    *({seed: cost for seed, cost in side.items() if math.isfinite(cost[0])} for side in flops)
  )


def interpolate_flops(curve: LossCurve, loss: float) -> float:
  """Returns the FLOPs until a run first had this loss or less; nan if it never had."""
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
  """Returns the loss at some FLOPs, on a straight line between evaluations in logarithms; nan beyond
  the training.
  """
  logged = curve.flops(ACTUAL)
  if not logged[0] <= flops <= _MAX_OVERSHOOT * logged[-1]:
    return math.nan
  return float(np.exp(np.interp(math.log(flops), np.log(logged), np.log(curve.loss))))


def _mean(values: Iterable[float | None]) -> float:
  """Returns the mean over seeds; nan if one of them has none."""
  numbers = [math.nan if value is None else value for value in values]
  return float(np.mean(numbers)) if numbers else math.nan


def find_levels(compared: Comparison, base_level: float | None = None) -> dict[str, float | None]:
  """Returns the level of the plateau under each tokenizer, '' being the base's.

  The level of the base is `base_level`, else the loss of word frequencies if it was measured, else
  the level that the runs agree on.
  """
  by_tokenizer: dict[str, list[LossCurve]] = {}
  for part in compared.shapes:
    for change in (part.base, *part.changes):
      by_tokenizer.setdefault(change.tokenizer, []).extend(change.curves.values())
  levels = {
    tokenizer: frontier.find_plateau_level(curves) for tokenizer, curves in by_tokenizer.items()
  }
  if base_level is None:
    base_level = compared.ngram_losses.get(WORDS)
  return levels if base_level is None else levels | {'': base_level}


def make_rows(
  part: AblationAtSize, levels: dict[str, float | None], glue: Sequence[GlueRow] = ()
) -> list[AblationRow]:
  """Returns the base, then the ablations from the highest multiplier to the lowest, then those
  without one.

  Args:
    part: the ablations at one shape.
    levels: of the plateau, of `find_levels`.
    glue: of `find_glue_rows`.
  """
  averages = {row.change: row for row in glue if row.task == AVERAGE}
  base, *rows = (
    _make_row(part, change, levels, averages.get(change.name))
    for change in (part.base, *part.changes)
  )

  def key(row: AblationRow) -> tuple[float, str]:
    value = row.multiplier.value
    return -value if math.isfinite(value) else math.inf, row.change

  return [base, *sorted(rows, key=key)]


def judge_speed(fields: Sequence[str], speed: PairedRatio) -> str:
  """Returns the verdict on an ablation of these fields; '' of no field and of several."""
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


def judge_glue(score: Contrast) -> str:
  """Returns the verdict on an average of GLUE."""
  if score.of != TRAININGS or score.n < 2:
    return ONE_SEED if score.n else ''
  return NO_WORSE if score.low > -GLUE_MARGIN else WORSE if score.high < -GLUE_MARGIN else OPEN


def _make_row(
  part: AblationAtSize,
  change: Ablation,
  levels: dict[str, float | None],
  glue: GlueRow | None,
) -> AblationRow:
  base, level, curves = part.base, levels[change.tokenizer], change.curves.values()
  is_comparable = not change.tokenizer
  speed, multiplier, loss = NO_RATIO, NO_RATIO, math.nan
  if change is not base:
    speed = measure_speed_up(base, change, levels[''], level)
    if is_comparable:
      loss = find_shared_loss(base, change)
      multiplier = measure_multiplier(base, change, loss)
  planned = min(run.planned for run in base.runs)
  at_quarter, at_half, at_whole = (
    _mean(interpolate_loss(curve, share * planned) for curve in curves)
    if is_comparable
    else math.nan
    for share in _LOSS_PARTS
  )
  ended = curves if is_comparable and all(curve.finished for curve in curves) else []
  last_losses = [curve.loss[-1] for curve in ended]
  low, high = metrics.confidence_interval(last_losses)
  score = NO_CONTRAST if glue is None else glue.score
  return AblationRow(
    change=change.name,
    shape=part.shape,
    fields=change.fields,
    runs=tuple(curve.name for curve in curves),
    seeds=tuple(change.curves),
    under_way=sum(not curve.finished for curve in curves),
    parameters=change.runs[0].curve.parameters,
    level=math.nan if level is None else level,
    **_format_exits(change, level),
    speed=speed,
    verdict=judge_speed(change.fields, speed),
    multiplier=multiplier,
    loss=loss,
    loss_at_quarter=at_quarter,
    loss_at_half=at_half,
    loss_at_whole=at_whole,
    validation_loss=_mean(last_losses),
    low=low,
    high=high,
    test_loss=_mean(curve.test_loss for curve in ended),
    glue=score,
    glue_tasks=() if glue is None else glue.tasks,
    glue_verdict=judge_glue(score),
    note='; '.join(_list_notes(change, level)),
  )


def _format_exits(change: Ablation, level: float | None) -> dict[str, tuple[str, ...]]:
  """Returns the updates, tokens and FLOPs at which each seed leaves, or 'not within' its length;
  empty without a level.
  """
  exits: list[tuple[str, ...]] = []
  for seed, plateau in find_plateaus(change, level).items() if level is not None else ():
    curve, (index, has_left) = change.curves[seed], _find_exit(plateau)
    prefix = '' if has_left else 'not within '
    exits.append(
      (
        f'{prefix}{curve.updates[index]}',
        f'{prefix}{curve.tokens[index]:.0f}',
        f'{prefix}{curve.flops(ACTUAL)[index]:.4g}',
      )
    )
  updates, tokens, flops = zip(*exits, strict=True) if exits else ((), (), ())
  return {'updates_to_leave': updates, 'tokens_to_leave': tokens, 'flops_to_leave': flops}


def _list_notes(change: Ablation, level: float | None) -> Iterator[str]:
  if change.tokenizer:
    yield 'another tokenizer: a loss a token is another number, and is not compared'
  if change.tokenizer and level is None:
    yield 'its own plateau cannot be seen'
  if len({run.planned for run in change.runs}) > 1:
    yield 'its runs are of several lengths'
