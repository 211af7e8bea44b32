"""What happens on the way: fine-tuning by epoch, and scores by the step of the checkpoint they
start from.

Both become panels, small pictures with a line for each arm: the mean over seeds and its 95%
interval. How a panel looks is left to `figures.py`.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from minilm_jax.analysis import runs
from minilm_jax.analysis.report.figures import MeanBand, Panel
from minilm_jax.analysis.scores import Group, ScoreRow
from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError, sanitize
from minilm_jax.core.schema import FLAG, NUMBER, TEXT
from minilm_jax.tasks import metrics
from minilm_jax.tasks.task import TASKS

# Confusion matrices from logged predictions: which class each task's models take for which, summed
# over seeds.
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
  """One task's matrices, `[true, said]` counts summed over seeds, by arm; arms that were not run
  are left out.
  """

  task: str
  split: str
  checkpoint: str
  classes: tuple[str, ...]
  arms: Mapping[str, np.ndarray]


def confusions(found: Mapping[str, epath.Path], rows: Iterable[ScoreRow]) -> list[Confusion]:
  """The matrices of every classification, of the rates and epochs that the table of scores shows.

  Args:
    found: runs by name, of `runs.find`.
    rows: of `scores.score_table`, of the same runs; of several steps of a checkpoint the last is
      taken.

  Raises:
    InputError: no run has logged predictions of a classification, or a line is not one prediction a
      label.
  """
  lines: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
  for path in found.values():
    for line in run_dir.read_lines(path / run_dir.PREDICTIONS):
      missing = [name for name in _PREDICTION_FIELDS if name not in line]
      if missing:
        raise InputError(
          f'the predictions of {path}',
          f'a line without {", ".join(missing)}',
          f'remove {run_dir.PREDICTIONS} and fine-tune again',
        )
      if 'labels' in line and all(
        isinstance(label, int) for label in line['labels']
      ):  # a regression has fractions
        if len(line['labels']) != len(line['predictions']):
          raise InputError(
            f'the predictions of {path}',
            f'{len(line["predictions"])} of them for {len(line["labels"])} labels',
            f'remove {run_dir.PREDICTIONS} and fine-tune again',
          )
        task, split, source = (
          sanitize(str(part))
          for part in (line['task'], line['split'], runs.resolve_source(found, path))
        )
        lines.setdefault((task, split, source), []).append(line)
  if not lines:
    raise InputError(
      'confusion matrices',
      f'no {run_dir.PREDICTIONS} with classes in these runs',
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
  names = TASKS[task].labels if task in TASKS else ()
  size = max(size, len(names), 2)
  arms = {}
  for arm, name in ((True, 'pre-trained'), (False, 'from scratch')):
    own = {
      line['seed']: line
      for line in lines
      if line['pretrained'] == arm
      and (
        not wanted
        or (line['epoch_choice'], line['learning_rate'], line['checkpoint_step']) == wanted[arm]
      )
    }
    if own:
      arms[name] = sum(
        metrics.confusion_matrix(np.array(line['predictions']), np.array(line['labels']), size)
        for line in own.values()
      )
  return Confusion(
    task,
    split,
    checkpoint,
    tuple(names) if len(names) == size else tuple(map(str, range(size))),
    arms,
  )


ARMS = {True: 'pre-trained', False: 'from scratch'}
_LOG_FIELDS = (
  'epoch',
  'split',
  'seed',
  'learning_rate',
  'member',
  'pretrained',
)  # of each line that fine-tuning logs
_RECIPE = {'task': {'name': TEXT, 'filtered': FLAG}, 'epochs': NUMBER}  # what is read of it
LogLine = dict[str, Any]


def learning(
  found: Mapping[str, epath.Path], rows: Iterable[ScoreRow]
) -> tuple[list[Panel], list[Panel]]:
  """Fine-tuning by epoch: the headline on the held-out part, or else on the reported split, and the
  training loss.

  Where a table shows one rate of an arm its others are not drawn, and of several steps of a
  checkpoint only the last.

  Args:
    found: runs by name, of `runs.find`.
    rows: of `scores.score_table`, of the same runs.

  Returns:
    Panels of scores times 100 and panels of losses, one a task, checkpoint and protocol.

  Raises:
    InputError: a log of fine-tuning is of another form.
  """
  rates: dict[tuple[str, bool, str, bool], set[float | None]] = {}
  for row in rows:
    if row.shown:
      for arm, group in ((True, row.pretrained), (False, row.scratch)):
        if group.n + group.undefined:
          rates.setdefault((row.task, row.filtered, row.checkpoint, arm), set()).add(
            group.learning_rate
          )
  lines: dict[tuple[str, bool, str, str], list[LogLine]] = {}
  for name, path in found.items():
    if runs.read_kind(path) == 'finetune':
      config = files.read_object(path / run_dir.CONFIG, f'the recipe of {path}', _RECIPE)
      task, protocol = config['task'], json.dumps([config['task'], config['epochs']])
      for checkpoint, line in _log(found, name):
        key = (task['name'], task['filtered'], checkpoint)
        arm = (*key, line['pretrained'])
        if arm not in rates or line['learning_rate'] in rates[arm]:
          lines.setdefault((*key, protocol), []).append(line)
  several = len({checkpoint for _, _, checkpoint, _ in lines}) > 1
  panels: tuple[list[Panel], list[Panel]] = ([], [])
  for (task, filtered, checkpoint, _), own in sorted(lines.items()):
    title = _title(task, filtered, checkpoint if several else '')
    for some, wanted, scale in ((panels[0], _headline(own), 100), (panels[1], _losses(own), 1)):
      if wanted:
        some.append(Panel(title, tuple(_bands(wanted, scale))))
  return panels


def trajectories(rows: Iterable[ScoreRow]) -> list[Panel]:
  """Headline scores times 100 by the step of the checkpoint, one panel a task; none where there is
  one step.
  """
  cells: dict[tuple[Any, ...], list[ScoreRow]] = {}
  for row in rows:
    if row.headline and row.shown and row.step is not None:
      key = (row.task, row.split, row.filtered, row.checkpoint, row.train_examples, row.held_out)
      cells.setdefault(key, []).append(row)
  cells = {key: own for key, own in cells.items() if len({row.step for row in own}) > 1}
  several = len({key[3] for key in cells}) > 1
  panels = []
  for (task, _, filtered, checkpoint, *_), own in cells.items():
    bands: dict[str, list[tuple[int, Group]]] = {}
    many = {
      arm: len(own) > len({row.step for row in own}) for arm in ARMS
    }  # rates that nothing chose between
    for row in own:
      for arm, group in ((True, row.pretrained), (False, row.scratch)):
        if group.n and row.step is not None:
          bands.setdefault(_name(arm, group.learning_rate, many[arm]), []).append((row.step, group))
    panels.append(
      Panel(
        _title(task, filtered, checkpoint if several else ''),
        tuple(
          MeanBand(
            name,
            tuple(float(step) for step, _ in points),
            *(
              tuple(100 * getattr(group, end) for _, group in points)
              for end in ('mean', 'low', 'high')
            ),
          )
          for name, points in bands.items()
        ),
        100 * own[0].majority,
      )
    )
  return panels


def _title(task: str, filtered: bool, checkpoint: str) -> str:
  return task + (' (filtered)' if filtered else '') + (f'\n{checkpoint}' if checkpoint else '')


def _name(arm: bool, rate: float | None, many: bool) -> str:
  return f'{ARMS[arm]}, {rate:g}' if many and rate is not None else ARMS[arm]


def _log(found: Mapping[str, epath.Path], name: str) -> Iterator[tuple[str, LogLine]]:
  """The checkpoint and each line of a log; of members that start from several steps of one, those
  of the last step.
  """
  path, first = found[name], runs.resolve_source(found, found[name])
  scored = list(run_dir.read_lines(path / run_dir.SCORES))
  names = {
    one: runs.resolve_source(found, path, one) for one in {line['checkpoint'] for line in scored}
  }
  starts = {line['member']: (names[line['checkpoint']], line['checkpoint_step']) for line in scored}
  last: dict[str, int] = {}
  for checkpoint, step in starts.values():
    if step is not None:
      last[checkpoint] = max(step, last[checkpoint] if checkpoint in last else step)
  for line in run_dir.read_lines(path / run_dir.METRICS):
    missing = [field for field in _LOG_FIELDS if field not in line]
    if missing:
      raise InputError(
        f'the learning curves of {name}',
        f'a line of {run_dir.METRICS} without {", ".join(missing)}',
        'fine-tune again into a new --workdir: another version has written this one',
      )
    checkpoint, step = starts[line['member']] if line['member'] in starts else (first, None)
    if step is None or step == last[checkpoint]:
      yield checkpoint, line


def _headline(lines: Sequence[LogLine]) -> list[LogLine]:
  """The scored lines of one split, the held-out part before all others, with their metric as
  'value'.
  """
  scored = [
    {**line, 'value': line[name]} for line in lines for name in line if name in metrics.METRICS
  ]
  split = min(
    (line['split'] for line in scored), key=lambda split: (split != 'held_out', split), default=''
  )
  return [line for line in scored if line['split'] == split]


def _losses(lines: Sequence[LogLine]) -> list[LogLine]:
  return [{**line, 'value': line['loss']} for line in lines if line['split'] == 'train']


def _bands(lines: Sequence[LogLine], scale: float) -> Iterator[MeanBand]:
  for arm in ARMS:
    own = [line for line in lines if line['pretrained'] == arm]
    rates = sorted({line['learning_rate'] for line in own}, key=runs.to_float)
    for rate in rates:
      points: dict[float, dict[int, float]] = {}
      for line in own:
        if line['learning_rate'] == rate:
          points.setdefault(line['epoch'], {})[line['seed']] = scale * runs.to_float(line['value'])
      found = [metrics.summarize(list(points[epoch].values())) for epoch in sorted(points)]
      yield MeanBand(
        _name(arm, rate, len(rates) > 1),
        tuple(float(epoch) for epoch in sorted(points)),
        *(tuple(one[end] for one in found) for end in ('mean', 'low', 'high')),
      )
