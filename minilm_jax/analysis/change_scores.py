"""What changes of a recipe do to GLUE, from runs fine-tuned on runs of both sides.

Each change is set against the base of its shape, pair by pair (`contrasts.py`): by seed of pre-training where several
are scored on both sides, else by seed of fine-tuning. Tasks are the headline scores of GLUE as `averages.py` counts
them. Their average is over the tasks that every such pair has; an average of one task is none.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence

from minilm_jax.analysis import averages, contrasts
from minilm_jax.analysis.changes import AblationAtSize
from minilm_jax.analysis.contrasts import NO_CONTRAST, Contrast, PairedScores
from minilm_jax.analysis.scores import ScoreRow

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
  counted = [row for row in rows if averages.counts(row)]
  found = []
  for change in part.changes:
    base, own = part.base.tracks, change.tracks
    both = contrasts.scored(
      [(base[seed].name, track.name) for seed, track in own.items() if seed in base], counted
    )
    found += [GlueRow(change.name, part.shape, *made) for made in _rows(both)]
  return found


def _rows(both: PairedScores) -> Iterator[tuple[str, tuple[str, ...], Contrast]]:
  """The average, where there is one, then the tasks; one that was fine-tuned in several ways is in no average."""
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
  mean = contrasts.over_tasks([both[place] for place in shared]) if len(shared) > 1 else NO_CONTRAST
  if mean.n:
    yield AVERAGE, tuple(names[place] for place in shared), mean
  for place, own in both.items():
    yield names[place], (), contrasts.over_tasks([own])
