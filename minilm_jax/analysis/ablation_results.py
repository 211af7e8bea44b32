"""What becomes of each change: its numbers, and the verdict on those of a single field.

The rules, fixed before the runs that they judge. The speed of a change is how many times fewer
tokens it takes to leave the plateau than the base does (`multiplier.py`). By the 95% interval of
the speed over seeds the field that was changed

    causes the plateau   the interval lies above 2: the change leaves at no more than half the tokens
    shortens it          else, it lies above 1
    lengthens it         else, it lies below 1
    does not             else, it lies below 1.5: the change cannot be as much as one and a half times as fast
    cannot be told       else; and from one seed, whatever its number, which is an indication

The first that fits holds. A change of several fields is described and gets no verdict: it does not
say which of them.

By the 95% interval of the average of GLUE less the base's (`change_scores.py`), over pairs of
pre-training seeds, a change of any number of fields is

    no worse on GLUE     the interval lies above minus one point, the least that matters
    worse on GLUE        it lies below minus one point
    cannot be told       else; and from one pair, whatever the seeds of fine-tuning, which is an indication
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from minilm_jax.analysis import frontier, scores
from minilm_jax.analysis.ablations import WORDS, Ablation, AblationAtSize, Comparison
from minilm_jax.analysis.frontier import Plateau, find_plateau
from minilm_jax.analysis.loss_curves import ACTUAL, LossCurve
from minilm_jax.analysis.scores import NO_CONTRAST, TRAININGS, Contrast, PairedScores, ScoreRow
from minilm_jax.tasks import metrics

# What changes of a recipe do to GLUE, from runs fine-tuned on runs of both sides.
AVERAGE = 'average'


@dataclasses.dataclass(frozen=True)
class GlueRow:
  """One task of one change, or the average over its tasks; scores are shares.

  Attributes:
    change, shape: names.
    task: of GLUE, or `AVERAGE`.
    tasks: that the average is of.
    score: the base's and the change's.
  """

  change: str
  shape: str
  task: str
  tasks: tuple[str, ...]
  score: Contrast


def find_glue_rows(part: AblationAtSize, rows: Sequence[ScoreRow]) -> list[GlueRow]:
  """The average and the tasks of each change that has a scored seed in common with the base.

  Args:
    part: what was compared, at one shape.
    rows: of `scores.select_main`.
  """
  counted = [row for row in rows if scores.is_averaged(row)]
  found = []
  for change in part.changes:
    base, own = part.base.curves, change.curves
    both = scores.pair_scores(
      [(base[seed].name, curve.name) for seed, curve in own.items() if seed in base], counted
    )
    found += [GlueRow(change.name, part.shape, *made) for made in _rows(both)]
  return found


def _rows(both: PairedScores) -> Iterator[tuple[str, tuple[str, ...], Contrast]]:
  """The average, where there is one, then the tasks; one that was fine-tuned in several ways is in
  no average.
  """
  often = collections.Counter(place.task for place in both)
  names = {
    place: place.task
    + (' (filtered)' if place.filtered else '')
    + (f', {place.train_examples:,} examples' if often[place.task] > 1 else '')
    for place in both
  }
  alone = [place for place in both if often[place.task] == 1]
  pairs = set().union(*(both[place] for place in alone))
  shared = [place for place in alone if both[place].keys() == pairs]
  mean = (
    scores.average_contrast([both[place] for place in shared]) if len(shared) > 1 else NO_CONTRAST
  )
  if mean.n:
    yield AVERAGE, tuple(names[place] for place in shared), mean
  for place, own in both.items():
    yield names[place], (), scores.average_contrast([own])


# How many times sooner than the base a change gets somewhere: off the plateau, in tokens, or to a
# loss, in FLOPs.
AT_LEAST, AT_MOST, NEITHER_LEFT = 'at least', 'at most', 'neither left'
# FLOPs beyond the last evaluation at which its loss still counts: another ablation costs a little
# less.
_MAX_OVERSHOOT = 1.02
CostToReach = tuple[float, bool]  # how much a run took to get there, and whether it did


@dataclasses.dataclass(frozen=True)
class PairedRatio:
  """What the base took over what the change took.

  Attributes:
    value: the geometric mean over seeds; nan where nothing is known.
    low, high: its 95% interval; nan where a side has one seed. Of a bound one end is open: 0 or
    infinity.
    bound: AT_LEAST, AT_MOST, or NEITHER_LEFT of them got there; '' where all did.
    base_seeds, seeds: how many of each side it is the mean of.
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


def compute_ratio(
  base: Mapping[int, CostToReach], change: Mapping[int, CostToReach]
) -> PairedRatio:
  """The ratio over seeds, from what each took, by seed.

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
  open_base, open_change = (not all(there for _, there in side.values()) for side in (base, change))
  counts = len(base), len(change), base.keys() == change.keys()
  if open_base and open_change:
    return PairedRatio(math.nan, math.nan, math.nan, NEITHER_LEFT, *counts)
  found = scores.compute_difference(
    *(
      scores.make_group({seed: math.log(taken) for seed, (taken, _) in side.items()})
      for side in (base, change)
    )
  )
  low, high = math.exp(found.low), math.exp(found.high)
  if math.isfinite(low):
    low, high = 0.0 if open_change else low, math.inf if open_base else high
  bound = AT_LEAST if open_base else AT_MOST if open_change else ''
  return PairedRatio(math.exp(found.mean), low, high, bound, *counts)


def find_plateaus(change: Ablation, level: float) -> dict[int, Plateau | None]:
  """Where each seed was on the plateau; None where it never came down to it."""
  return {seed: find_plateau(curve, level, ACTUAL) for seed, curve in change.curves.items()}


def measure_speed_up(
  base: Ablation, change: Ablation, base_level: float | None, level: float | None
) -> PairedRatio:
  """How many times fewer tokens a change takes to leave the plateau; nothing where there is no
  level.
  """
  if base_level is None or level is None:
    return NO_RATIO
  return compute_ratio(
    *(
      {seed: _tokens(curve, places[seed]) for seed, curve in side.curves.items()}
      for side, places in (
        (base, find_plateaus(base, base_level)),
        (change, find_plateaus(change, level)),
      )
    )
  )


def _tokens(curve: LossCurve, place: Plateau | None) -> CostToReach:
  left = place is not None and place.left
  return float(curve.tokens[place.end if left else -1]), left


def find_shared_loss(*sides: Ablation) -> float:
  """The lowest loss that every run of these has reached."""
  return max(min(curve.loss) for side in sides for curve in side.curves.values())


def measure_multiplier(base: Ablation, change: Ablation, loss: float) -> PairedRatio:
  """How many times fewer FLOPs a change takes to reach a loss, over the seeds that have reached it
  on either side.
  """
  taken = [
    {
      seed: (flops, True)
      for seed, curve in side.curves.items()
      if math.isfinite(flops := interpolate_flops(curve, loss))
    }
    for side in (base, change)
  ]
  return compute_ratio(*taken)


def interpolate_flops(curve: LossCurve, loss: float) -> float:
  """FLOPs until a run first had this loss or less; nan where it never had."""
  lowest, flops = np.minimum.accumulate(curve.loss), curve.flops(ACTUAL)
  at = int(np.searchsorted(-lowest, -loss))
  if at == len(lowest):
    return math.nan
  if at == 0:
    return float(flops[0])
  share = math.log(lowest[at - 1] / loss) / math.log(lowest[at - 1] / lowest[at])
  return float(flops[at - 1] * (flops[at] / flops[at - 1]) ** share)


def interpolate_loss(curve: LossCurve, flops: float) -> float:
  """The loss at some FLOPs, on a straight line between evaluations in logarithms; nan outside of
  what was trained.
  """
  own = curve.flops(ACTUAL)
  if not own[0] <= flops <= _MAX_OVERSHOOT * own[-1]:
    return math.nan
  return float(np.exp(np.interp(math.log(flops), np.log(own), np.log(curve.loss))))


def mean(values: Iterable[float | None]) -> float:
  """The mean over seeds; nan where one of them has none."""
  values = [math.nan if value is None else value for value in values]
  return float(np.mean(values)) if values else math.nan


CAUSES, SHORTENS, LENGTHENS, NOT = 'causes the plateau', 'shortens it', 'lengthens it', 'does not'
OPEN, ONE_SEED = 'cannot be told', 'cannot be told from one seed'
NO_WORSE, WORSE = 'no worse on GLUE', 'worse on GLUE'
CAUSES_ABOVE, SHORTENS_ABOVE, UNCHANGED_BELOW = 2.0, 1.0, 1.5
GLUE_MARGIN = 0.01  # of a score, which is a share
PARTS = {'quarter': 0.25, 'half': 0.5, 'whole': 1.0}  # of the FLOPs of the whole run of the base


@dataclasses.dataclass(frozen=True)
class AblationRow:
  """One change at one shape, or the base itself.

  Attributes:
    change, shape: names.
    fields: in which it differs.
    runs, seeds: one a seed.
    under_way: how many of these have not reached the end of their schedule.
    parameters: of the model.
    level: of the plateau, nats; nan where none can be seen.
    updates_to_leave, tokens_to_leave, flops_to_leave: of each seed, or 'not within' what it was
    trained for.
    speed: how many times fewer tokens it takes to leave than the base.
    verdict: by the rules above; '' of the base and of several fields.
    multiplier: how many times fewer FLOPs it takes to reach `loss` than the base.
    loss: the lowest that all runs of both have reached, nats; nan where losses do not compare.
    loss_at_quarter, loss_at_half, loss_at_whole: means over seeds at these parts of the FLOPs of
    the base's whole run. validation_loss, low, high: at the end of the schedule, mean over seeds
    with its 95% interval; nan under way.
    test_loss: the same.
    glue: the average of GLUE, the change's beside the base's; n is 0 where there is none.
    glue_tasks: that it is of.
    glue_verdict: by the rules above; '' without an average.
    note: why something is missing.
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


def find_levels(compared: Comparison, given: float | None = None) -> dict[str, float | None]:
  """The level of the plateau under each tokenizer, '' being the base's.

  There it is what is given, or else the loss of word frequencies, where it was counted; else what
  the runs agree on.
  """
  by_tokenizer: dict[str, list] = {}
  for part in compared.shapes:
    for change in (part.base, *part.changes):
      by_tokenizer.setdefault(change.tokenizer, []).extend(change.curves.values())
  found = {
    tokenizer: frontier.find_plateau_level(curves) for tokenizer, curves in by_tokenizer.items()
  }
  given = (
    compared.ngram_losses[WORDS] if given is None and WORDS in compared.ngram_losses else given
  )
  return found if given is None else found | {'': given}


def make_rows(
  part: AblationAtSize, levels: dict[str, float | None], glue: Sequence[GlueRow] = ()
) -> list[AblationRow]:
  """The base, then the changes from the highest multiplier to the lowest; last those without one.

  Args:
    part: what was compared.
    levels: of the plateau.
    glue: of `change_scores.find_glue_rows`.
  """
  averages = {row.change: row for row in glue if row.task == AVERAGE}
  made = [_row(part, change, levels, averages) for change in part.changes]
  return [
    _row(part, part.base, levels, averages),
    *sorted(
      made,
      key=lambda row: (
        -row.multiplier.value if math.isfinite(row.multiplier.value) else math.inf,
        row.change,
      ),
    ),
  ]


def judge_speed(fields: Sequence[str], speed: PairedRatio) -> str:
  """What the rules say of a change of these fields; '' where they say nothing."""
  if len(fields) != 1:
    return ''
  if speed.bound == NEITHER_LEFT or not math.isfinite(speed.value):
    return OPEN
  if min(speed.base_seeds, speed.seeds) < 2:
    return ONE_SEED
  fitting = (
    (CAUSES, speed.low > CAUSES_ABOVE),
    (SHORTENS, speed.low > SHORTENS_ABOVE),
    (LENGTHENS, speed.high < SHORTENS_ABOVE),
    (NOT, speed.high < UNCHANGED_BELOW),
  )
  return next((name for name, fits in fitting if fits), OPEN)


def judge_glue(score: Contrast) -> str:
  """What the rules say of an average of GLUE."""
  if score.of != TRAININGS or score.n < 2:
    return ONE_SEED if score.n else ''
  return NO_WORSE if score.low > -GLUE_MARGIN else WORSE if score.high < -GLUE_MARGIN else OPEN


def _row(
  part: AblationAtSize,
  change: Ablation,
  levels: dict[str, float | None],
  glue: Mapping[str, GlueRow],
) -> AblationRow:
  base, level, curves = part.base, levels[change.tokenizer], change.curves.values()
  compares, changed = not change.tokenizer, change is not base
  speed = measure_speed_up(base, change, levels[''], level) if changed else NO_RATIO
  loss = find_shared_loss(base, change) if compares and changed else math.nan
  planned = min(one.planned for one in base.runs)
  at = {
    f'loss_at_{name}': mean(interpolate_loss(curve, share * planned) for curve in curves)
    if compares
    else math.nan
    for name, share in PARTS.items()
  }
  ended = curves if compares and all(curve.finished for curve in curves) else []
  ends = [curve.loss[-1] for curve in ended]
  low, high = metrics.confidence_interval(ends)
  score, tasks = (
    (glue[change.name].score, glue[change.name].tasks)
    if change.name in glue
    else (scores.NO_CONTRAST, ())
  )
  return AblationRow(
    change=change.name,
    shape=part.shape,
    fields=change.fields,
    runs=tuple(curve.name for curve in curves),
    seeds=tuple(change.curves),
    under_way=sum(not curve.finished for curve in curves),
    parameters=change.runs[0].curve.parameters,
    level=math.nan if level is None else level,
    **_leaving(change, level),
    speed=speed,
    verdict=judge_speed(change.fields, speed),
    multiplier=measure_multiplier(base, change, loss) if math.isfinite(loss) else NO_RATIO,
    loss=loss,
    **at,
    validation_loss=mean(ends),
    low=low,
    high=high,
    test_loss=mean(curve.test_loss for curve in ended),
    glue=score,
    glue_tasks=tasks,
    glue_verdict=judge_glue(score),
    note=_note(change, level),
  )


def _leaving(change: Ablation, level: float | None) -> dict[str, tuple[str, ...]]:
  """Updates, tokens and FLOPs at which each seed leaves, or 'not within' all of its own; nothing
  without a level.
  """
  found: dict[str, list[str]] = {
    'updates_to_leave': [],
    'tokens_to_leave': [],
    'flops_to_leave': [],
  }
  for seed, place in find_plateaus(change, level).items() if level is not None else ():
    curve, left = change.curves[seed], place is not None and place.left
    at = place.end if left else -1
    values = f'{curve.updates[at]}', f'{curve.tokens[at]:.0f}', f'{curve.flops(ACTUAL)[at]:.4g}'
    for texts, value in zip(found.values(), values, strict=True):
      texts.append(value if left else f'not within {value}')
  return {name: tuple(texts) for name, texts in found.items()}


def _note(change: Ablation, level: float | None) -> str:
  said = []
  if change.tokenizer:
    said.append('another tokenizer: a loss a token is another number, and is not compared')
  if change.tokenizer and level is None:
    said.append('its own plateau cannot be seen')
  if len({one.planned for one in change.runs}) > 1:
    said.append('its runs are of several lengths')
  return '; '.join(said)
