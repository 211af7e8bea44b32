"""What becomes of each change: its numbers, and the verdict on those of a single field.

The rules, fixed before the runs that they judge. The speed of a change is how many times fewer tokens it takes to leave
the plateau than the base does (`multiplier.py`). By the 95% interval of the speed over seeds the field that was changed

    causes the plateau   the interval lies above 2: the change leaves at no more than half the tokens
    shortens it          else, it lies above 1
    lengthens it         else, it lies below 1
    does not             else, it lies below 1.5: the change cannot be as much as one and a half times as fast
    cannot be told       else; and from one seed, whatever its number, which is an indication

The first that fits holds. A change of several fields is described and gets no verdict: it does not say which of them.

By the 95% interval of the average of GLUE less the base's (`change_scores.py`), over pairs of pre-training seeds, a
change of any number of fields is

    no worse on GLUE     the interval lies above minus one point, the least that matters
    worse on GLUE        it lies below minus one point
    cannot be told       else; and from one pair, whatever the seeds of fine-tuning, which is an indication
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from minilm_jax.analysis import contrasts, multiplier, plateau
from minilm_jax.analysis.change_scores import AVERAGE, GlueRow
from minilm_jax.analysis.changes import Ablation, Comparison, AblationAtSize
from minilm_jax.analysis.contrasts import TRAININGS, Contrast
from minilm_jax.analysis.counted import WORDS
from minilm_jax.analysis.multiplier import NEITHER_LEFT, NO_RATIO, PairedRatio
from minilm_jax.analysis.tracks import ACTUAL
from minilm_jax.tasks import metrics

CAUSES, SHORTENS, LENGTHENS, NOT = 'causes the plateau', 'shortens it', 'lengthens it', 'does not'
OPEN, ONE_SEED = 'cannot be told', 'cannot be told from one seed'
NO_WORSE, WORSE = 'no worse on GLUE', 'worse on GLUE'
HALF, SAME, LITTLE = 2.0, 1.0, 1.5
POINT = 0.01  # of a score, which is a share
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
    updates_to_leave, tokens_to_leave, flops_to_leave: of each seed, or 'not within' what it was trained for.
    speed: how many times fewer tokens it takes to leave than the base.
    verdict: by the rules above; '' of the base and of several fields.
    multiplier: how many times fewer FLOPs it takes to reach `loss` than the base.
    loss: the lowest that all runs of both have reached, nats; nan where losses do not compare.
    loss_at_quarter, loss_at_half, loss_at_whole: means over seeds at these parts of the FLOPs of the base's whole run.
    validation_loss, low, high: at the end of the schedule, mean over seeds with its 95% interval; nan under way.
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


def levels(compared: Comparison, given: float | None = None) -> dict[str, float | None]:
  """The level of the plateau under each tokenizer, '' being the base's.

  There it is what is given, or else the loss of word frequencies, where it was counted; else what the runs agree on.
  """
  by_tokenizer: dict[str, list] = {}
  for part in compared.shapes:
    for change in (part.base, *part.changes):
      by_tokenizer.setdefault(change.tokenizer, []).extend(change.tracks.values())
  found = {tokenizer: plateau.level(tracks) for tokenizer, tracks in by_tokenizer.items()}
  given = (
    compared.ngram_losses[WORDS] if given is None and WORDS in compared.ngram_losses else given
  )
  return found if given is None else found | {'': given}


def rows(
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


def verdict(fields: Sequence[str], speed: PairedRatio) -> str:
  """What the rules say of a change of these fields; '' where they say nothing."""
  if len(fields) != 1:
    return ''
  if speed.bound == NEITHER_LEFT or not math.isfinite(speed.value):
    return OPEN
  if min(speed.base_seeds, speed.seeds) < 2:
    return ONE_SEED
  fitting = (
    (CAUSES, speed.low > HALF),
    (SHORTENS, speed.low > SAME),
    (LENGTHENS, speed.high < SAME),
    (NOT, speed.high < LITTLE),
  )
  return next((name for name, fits in fitting if fits), OPEN)


def glue_verdict(score: Contrast) -> str:
  """What the rules say of an average of GLUE."""
  if score.of != TRAININGS or score.n < 2:
    return ONE_SEED if score.n else ''
  return NO_WORSE if score.low > -POINT else WORSE if score.high < -POINT else OPEN


def _row(
  part: AblationAtSize,
  change: Ablation,
  levels: dict[str, float | None],
  glue: Mapping[str, GlueRow],
) -> AblationRow:
  base, level, tracks = part.base, levels[change.tokenizer], change.tracks.values()
  compares, changed = not change.tokenizer, change is not base
  speed = multiplier.speed(base, change, levels[''], level) if changed else NO_RATIO
  loss = multiplier.shared_loss(base, change) if compares and changed else math.nan
  planned = min(one.planned for one in base.runs)
  at = {
    f'loss_at_{name}': multiplier.mean(
      multiplier.loss_at(track, share * planned) for track in tracks
    )
    if compares
    else math.nan
    for name, share in PARTS.items()
  }
  ended = tracks if compares and all(track.finished for track in tracks) else []
  ends = [track.loss[-1] for track in ended]
  low, high = metrics.interval(ends)
  score, tasks = (
    (glue[change.name].score, glue[change.name].tasks)
    if change.name in glue
    else (contrasts.NO_CONTRAST, ())
  )
  return AblationRow(
    change=change.name,
    shape=part.shape,
    fields=change.fields,
    runs=tuple(track.name for track in tracks),
    seeds=tuple(change.tracks),
    under_way=sum(not track.finished for track in tracks),
    parameters=change.runs[0].track.parameters,
    level=math.nan if level is None else level,
    **_leaving(change, level),
    speed=speed,
    verdict=verdict(change.fields, speed),
    multiplier=multiplier.multiplier(base, change, loss) if math.isfinite(loss) else NO_RATIO,
    loss=loss,
    **at,
    validation_loss=multiplier.mean(ends),
    low=low,
    high=high,
    test_loss=multiplier.mean(track.test_loss for track in ended),
    glue=score,
    glue_tasks=tasks,
    glue_verdict=glue_verdict(score),
    note=_note(change, level),
  )


def _leaving(change: Ablation, level: float | None) -> dict[str, tuple[str, ...]]:
  """Updates, tokens and FLOPs at which each seed leaves, or 'not within' all of its own; nothing without a level."""
  found: dict[str, list[str]] = {
    'updates_to_leave': [],
    'tokens_to_leave': [],
    'flops_to_leave': [],
  }
  for seed, place in multiplier.leaving(change, level).items() if level is not None else ():
    track, left = change.tracks[seed], place is not None and place.left
    at = place.end if left else -1
    values = f'{track.updates[at]}', f'{track.tokens[at]:.0f}', f'{track.flops(ACTUAL)[at]:.4g}'
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
