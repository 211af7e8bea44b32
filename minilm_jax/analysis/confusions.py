"""Confusion matrices from logged predictions: which class each task's models take for which, summed over seeds."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from minilm_jax import run
from minilm_jax.analysis import runs
from minilm_jax.analysis.scores import ScoreRow
from minilm_jax.errors import InputError, shown
from minilm_jax.tasks import metrics, table


_PREDICTION_FIELDS = (
  'task',
  'split',
  'predictions',
  'seed',
  'pretrained',
  'epoch_choice',
  'learning_rate',
  'checkpoint_step',
)


@dataclasses.dataclass(frozen=True)
class Confusion:
  """One task's matrices, `[true, said]` counts summed over seeds, by arm; arms that were not run are left out."""

  task: str
  split: str
  checkpoint: str
  classes: tuple[str, ...]
  arms: Mapping[str, np.ndarray]


def confusions(found: Mapping[str, epath.Path], rows: Iterable[ScoreRow]) -> list[Confusion]:
  """The matrices of every classification, of the rates and epochs that the table of scores shows.

  Args:
    found: runs by name, of `runs.find`.
    rows: of `scores.score_table`, of the same runs; of several steps of a checkpoint the last is taken.

  Raises:
    InputError: no run has logged predictions of a classification, or a line is not one prediction a label.
  """
  lines: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
  for path in found.values():
    for line in run.read_lines(path / run.PREDICTIONS):
      missing = [name for name in _PREDICTION_FIELDS if name not in line]
      if missing:
        raise InputError(
          f'the predictions of {path}',
          f'a line without {", ".join(missing)}',
          f'remove {run.PREDICTIONS} and fine-tune again',
        )
      if 'labels' in line and all(
        isinstance(label, int) for label in line['labels']
      ):  # a regression has fractions
        if len(line['labels']) != len(line['predictions']):
          raise InputError(
            f'the predictions of {path}',
            f'{len(line["predictions"])} of them for {len(line["labels"])} labels',
            f'remove {run.PREDICTIONS} and fine-tune again',
          )
        key = (line['task'], line['split'], runs.source(found, path))
        lines.setdefault(tuple(shown(str(part)) for part in key), []).append(line)
  if not lines:
    raise InputError(
      'confusion matrices',
      f'no {run.PREDICTIONS} with classes in these runs',
      'fine-tune so that predictions are written, or leave out --confusion',
    )
  wanted = {
    key: _wanted(row)
    for row in rows
    if row.headline and row.shown
    for key in [(row.task, row.split, row.checkpoint)]
  }  # rows come by step: the last stays
  return [
    _confusion(key, own, wanted[key] if key in wanted else {}) for key, own in sorted(lines.items())
  ]


def _wanted(row: ScoreRow) -> dict[bool, tuple[Any, ...]]:
  return {
    True: (row.which, row.pretrained.learning_rate, row.step),
    False: (row.which, row.scratch.learning_rate, None),
  }


def _confusion(
  key: tuple[str, str, str], lines: list[dict[str, Any]], wanted: dict[bool, tuple[Any, ...]]
) -> Confusion:
  task, split, checkpoint = key
  size = 1 + max(max(line[side]) for line in lines for side in ('labels', 'predictions'))
  names = table.TASKS[task].labels if task in table.TASKS else ()
  size = max(size, len(names), 2)
  arms = {}
  for arm, name in ((True, 'pre-trained'), (False, 'from scratch')):
    own = {
      line['seed']: line
      for line in lines
      if line['pretrained'] == arm
      and (
        not wanted or (line['epoch_choice'], line['learning_rate'], line['checkpoint_step']) == wanted[arm]
      )
    }
    if own:
      arms[name] = sum(
        metrics.confusion(np.array(line['predictions']), np.array(line['labels']), size)
        for line in own.values()
      )
  return Confusion(
    task,
    split,
    checkpoint,
    tuple(names) if len(names) == size else tuple(map(str, range(size))),
    arms,
  )
