"""What changes of a recipe do to GLUE, from runs fine-tuned on runs of both sides.

Each change is set against the base of its shape, pair by pair (`contrasts.py`): by seed of pre-training where several
are scored on both sides, else by seed of fine-tuning. Tasks are the headline scores of GLUE as `averages.py` counts
them. Their average is over the tasks that every such pair has; an average of one task is none.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence

from minilm_jax.analysis import averages, contrasts
from minilm_jax.analysis.cells import NONE, points
from minilm_jax.analysis.changes import AtShape
from minilm_jax.analysis.contrasts import NOTHING, TRAININGS, Contrast, Scored
from minilm_jax.analysis.scores import ScoreRow

AVERAGE = 'average'
WORDS = 1
CAPTION = (
    'Headline scores times 100 of runs fine-tuned on runs of the change and of the base: the change’s against the '
    'base’s, n pairs, and the difference with its 95% interval. Pairs are seeds of pre-training where several are '
    'scored, else seeds of fine-tuning (f), which do not hold what another pre-training would change. The average is '
    'over the tasks that all pairs of its line have; averages over other tasks are other numbers.')


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


def find(part: AtShape, rows: Sequence[ScoreRow]) -> list[GlueRow]:
  """The average and the tasks of each change that has a scored seed in common with the base.

  Args:
    part: what was compared, at one shape.
    rows: of `cells.main`.
  """
  counted = [row for row in rows if averages.counts(row)]
  found = []
  for change in part.changes:
    base, own = part.base.tracks, change.tracks
    both = contrasts.scored([(base[seed].name, track.name) for seed, track in own.items() if seed in base], counted)
    found += [GlueRow(change.name, part.shape, *made) for made in _rows(both)]
  return found


def _rows(both: Scored) -> Iterator[tuple[str, tuple[str, ...], Contrast]]:
  """The average, where there is one, then the tasks; one that was fine-tuned in several ways is in no average."""
  often = collections.Counter(place.task for place in both)
  names = {place: place.task + (' (filtered)' if place.filtered else '')
           + (f', {place.train_examples:,} examples' if often[place.task] > 1 else '') for place in both}
  alone = [place for place in both if often[place.task] == 1]
  pairs = set().union(*(both[place] for place in alone))
  shared = [place for place in alone if both[place].keys() == pairs]
  mean = contrasts.over_tasks([both[place] for place in shared]) if len(shared) > 1 else NOTHING
  if mean.n:
    yield AVERAGE, tuple(names[place] for place in shared), mean
  for place, own in both.items():
    yield names[place], (), contrasts.over_tasks([own])


def table(rows: Sequence[GlueRow]) -> tuple[list[str], list[list[str]]]:
  """Headings and cells of a page: a line a change, a column a task."""
  tasks = sorted({row.task for row in rows}, key=lambda task: (task != AVERAGE, task))
  cells: dict[str, dict[str, str]] = {}
  for row in rows:
    cells.setdefault(row.change, {})[row.task] = _cell(row)
  return ['change', *tasks], [[change, *(own[task] if task in own else NONE for task in tasks)]
                              for change, own in cells.items()]


def _cell(row: GlueRow) -> str:
  own = row.score
  tasks = f'; {len(row.tasks)} tasks' if row.tasks else ''
  return (f'{points(own.value)} against {points(own.base)}; n = {own.n}{"" if own.of == TRAININGS else " f"}{tasks}; '
          f'{shown(own)}')


def shown(score: Contrast) -> str:
  """The difference with its interval, times 100.

  >>> shown(Contrast(0.5, 0.51, 0.01, -0.002, 0.022, 3, TRAININGS))
  '+1.0 [-0.2, +2.2]'
  """
  ends = f' [{points(score.low, "+")}, {points(score.high, "+")}]' if math.isfinite(score.low) else ''
  return points(score.difference, '+') + ends
