"""Data of the figures of fine-tuning: panels by epoch and by checkpoint step, confusion matrices.

A panel has a band for each arm: the mean over seeds with its 95% interval. `figures.py` draws them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from minilm_jax.analysis import runs
from minilm_jax.analysis.report.figures import Confusion, Panel
from minilm_jax.analysis.scores import ScoreRow, describe_differences, name_differences
from minilm_jax.analysis.seed_groups import Group, make_group
from minilm_jax.core import files, old_names, run_dir
from minilm_jax.core.errors import FLAG, NUMBER, TEXT, InputError, sanitize
from minilm_jax.tasks import metrics
from minilm_jax.tasks.task import TASKS

_ARMS = {True: 'pre-trained', False: 'from scratch'}
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
_LOG_FIELDS = ('epoch', 'split', 'seed', 'learning_rate', 'member', 'pretrained')
_CONFIG_SCHEMA = {'task': {'name': TEXT, 'filtered': FLAG}, 'epochs': NUMBER}
LogLine = dict[str, Any]
# Settings of a recipe besides those of `runs.read_protocol` that separate panels and matrices.
_SETTINGS = (
  'task.split',
  'task.max_train_examples',
  'task.per_label',
  'task.eval_per_label',
  'validation_fraction',
)
# Epoch choice, learning rate and checkpoint step of the displayed scores, by arm.
DisplayedScores = Mapping[bool, tuple[Any, ...]]


def read_confusions(
  run_paths: Mapping[str, epath.Path], rows: Sequence[ScoreRow]
) -> list[Confusion]:
  """Returns the matrices of every classification, at the rates and epochs of the table of scores.

  Args:
    rows: of `scores.make_score_table`, of the same runs; the last step of a checkpoint counts.

  Raises:
    InputError: no run has logged predictions of classes, a line lacks a field, or predictions and
      labels differ in number.
  """
  lines: dict[tuple[str, ...], list[LogLine]] = {}
  displayed: dict[tuple[str, ...], list[DisplayedScores]] = {}
  all_settings: dict[str, dict[str, Any]] = {}
  for path in run_paths.values():
    settings = _read_settings(path)
    protocol = json.dumps(settings, sort_keys=True)
    all_settings[protocol] = settings
    for line in run_dir.read_lines(path / run_dir.PREDICTIONS):
      _check_predictions(path, line)
      labels = line['labels'] if 'labels' in line else [None]
      if all(isinstance(label, int) for label in labels):  # regressions have fractions
        parts = line['task'], line['split'], runs.resolve_source(run_paths, path)
        key = (*(sanitize(str(part)) for part in parts), protocol)
        if key not in lines:
          shown = _match_rows(path, settings['filtered'], rows)
          displayed[key] = _find_displayed(shown, *key[:3])
        lines.setdefault(key, []).append(line)
  if not lines:
    raise InputError(
      'confusion matrices',
      f'no {run_dir.PREDICTIONS} with classes in these runs',
      'fine-tune again to write predictions, or leave out --confusion',
    )
  keys = sorted(lines)
  differences = name_differences(
    [(task, split, all_settings[protocol]['filtered']) for task, split, _, protocol in keys],
    [all_settings[protocol] for *_, protocol in keys],
  )
  confusions = []
  for key, difference in zip(keys, differences, strict=True):
    task, split, checkpoint, protocol = key
    name = _name_task(task, all_settings[protocol]['filtered'])
    for shown in displayed[key]:
      rate = shown[True][1] or shown[False][1] if len(displayed[key]) > 1 else None
      parts = [name, split, difference, f'learning rate {rate:g}' if rate else '']
      title = _format_title(parts, checkpoint)
      confusions.append(_count_confusions(title, task, lines[key], shown))
  return confusions


def _read_settings(path: epath.Path) -> dict[str, Any]:
  """Returns the settings of a run whose scores are in one figure, and whether its task is filtered."""
  fields = run_dir.flatten(old_names.complete_recipe(runs.read_config(path)))
  return {
    'filtered': bool(fields.get('task.filtered')),
    **{name: fields[name] for name in _SETTINGS if name in fields},
    **runs.read_protocol(path),
  }


def _match_rows(path: epath.Path, is_filtered: bool, rows: Sequence[ScoreRow]) -> list[ScoreRow]:
  """Returns the displayed rows of the scores of a run, of all checkpoints and steps."""
  settings = json.dumps(runs.read_protocol(path), sort_keys=True)
  # Runs under way have no scores, and their numbers of examples are unknown.
  sizes = {
    (line['train_examples'], line['held_out']) for line in run_dir.read_lines(path / run_dir.SCORES)
  }
  return [
    row
    for row in rows
    if row.shown
    and (row.filtered, row.settings) == (is_filtered, settings)
    and (not sizes or (row.train_examples, row.held_out) in sizes)
  ]


def _find_displayed(
  rows: Iterable[ScoreRow], task: str, split: str, checkpoint: str
) -> list[DisplayedScores]:
  """Returns the scores of the last step of a checkpoint, one item a row of the table."""
  key = task, split, checkpoint
  shown = [row for row in rows if row.headline and (row.task, row.split, row.checkpoint) == key]
  # Rows are in the order of steps.
  return [
    {
      True: (row.which, row.pretrained.learning_rate, row.step),
      False: (row.which, row.scratch.learning_rate, None),
    }
    for row in shown
    if row.step == shown[-1].step
  ] or [{}]


def _check_predictions(path: epath.Path, line: LogLine) -> None:
  missing = [name for name in _PREDICTION_FIELDS if name not in line]
  if missing:
    problem = f'a line without {", ".join(missing)}'
  elif 'labels' in line and len(line['labels']) != len(line['predictions']):
    problem = f'{len(line["predictions"])} predictions for {len(line["labels"])} labels'
  else:
    return
  raise InputError(
    f'the predictions of {path}', problem, f'remove {run_dir.PREDICTIONS} and fine-tune again'
  )


def _count_confusions(
  title: str, task: str, lines: Sequence[LogLine], displayed: DisplayedScores
) -> Confusion:
  names = TASKS[task].labels if task in TASKS else ()
  highest = max(max(line[side]) for line in lines for side in ('labels', 'predictions'))
  size = max(1 + highest, len(names), 2)
  arms = {}
  for arm, name in _ARMS.items():
    by_seed = {
      line['seed']: line
      for line in lines
      if line['pretrained'] == arm
      and (
        not displayed
        or (line['epoch_choice'], line['learning_rate'], line['checkpoint_step']) == displayed[arm]
      )
    }
    if by_seed:
      arms[name] = sum(
        metrics.confusion_matrix(np.array(line['predictions']), np.array(line['labels']), size)
        for line in by_seed.values()
      )
  classes = tuple(names) if len(names) == size else tuple(map(str, range(size)))
  return Confusion(title, classes, arms)


def read_learning_curves(
  run_paths: Mapping[str, epath.Path], rows: Sequence[ScoreRow]
) -> tuple[list[Panel], list[Panel]]:
  """Returns panels of scores and of training losses by epoch, one a task, checkpoint and protocol.

  Scores are headline scores on the held-out part, or else on the reported split. Panels
  have the learning rates of the table of scores and the last step of each checkpoint.

  Raises:
    InputError: a line of a log lacks a field.
  """
  lines: dict[tuple[str, str, str], list[LogLine]] = {}
  all_settings: dict[str, dict[str, Any]] = {}
  for name, path in run_paths.items():
    if runs.read_kind(path) != 'finetune':
      continue
    config = files.read_object(path / run_dir.CONFIG, f'the recipe of {path}', _CONFIG_SCHEMA)
    task = _name_task(config['task']['name'], config['task']['filtered'])
    settings = _read_settings(path)
    protocol = json.dumps(settings, sort_keys=True)
    all_settings[protocol] = settings
    rates: dict[tuple[str, bool], set[float | None]] = {}
    for row in _match_rows(path, settings['filtered'], rows):
      for arm, group in ((True, row.pretrained), (False, row.scratch)):
        if row.task_name == task and group.n + group.undefined:
          rates.setdefault((row.checkpoint, arm), set()).add(group.learning_rate)
    for checkpoint, line in _read_log(run_paths, name):
      arm_key = (checkpoint, line['pretrained'])
      if arm_key not in rates or line['learning_rate'] in rates[arm_key]:
        lines.setdefault((task, checkpoint, protocol), []).append(line)
  has_several = len({checkpoint for _, checkpoint, _ in lines}) > 1
  keys = sorted(lines)
  differences = name_differences(
    [task for task, *_ in keys], [all_settings[protocol] for *_, protocol in keys]
  )
  scores, losses = [], []
  for (task, checkpoint, protocol), difference in zip(keys, differences, strict=True):
    log_lines = lines[task, checkpoint, protocol]
    title = _format_title([task, difference], checkpoint if has_several else '')
    if values := _select_headline(log_lines):
      scores.append(Panel(title, _make_bands(values)))
    if values := _select_losses(log_lines):
      losses.append(Panel(title, _make_bands(values)))
  return scores, losses


def make_trajectories(rows: Iterable[ScoreRow]) -> list[Panel]:
  """Returns panels of headline scores by checkpoint step, of tasks with several steps."""
  by_cell = runs.group_by(
    (row for row in rows if row.headline and row.shown and row.step is not None),
    lambda row: (
      *(row.task, row.filtered, row.checkpoint),
      *(row.split, row.train_examples, row.held_out, row.protocol),
    ),
  )
  cells = [cell for cell in by_cell.values() if len({row.step for row in cell}) > 1]
  has_several = len({cell[0].checkpoint for cell in cells}) > 1
  differences = describe_differences(
    [cell[0] for cell in cells],
    lambda row: row.task_name,
    ('split', 'train_examples', 'protocol'),
  )
  panels = []
  for cell, difference in zip(cells, differences, strict=True):
    # A step has several rows if no held-out part selected a learning rate.
    has_rates = len(cell) > len({row.step for row in cell})
    bands: dict[str, dict[float, Group]] = {}
    for row in cell:
      for arm, group in ((True, row.pretrained), (False, row.scratch)):
        if group.n and row.step is not None:
          name = _format_arm(arm, group.learning_rate, has_rates)
          bands.setdefault(name, {})[float(row.step)] = group
    first = cell[0]
    title = _format_title([first.task_name, difference], first.checkpoint if has_several else '')
    panels.append(Panel(title, bands, first.majority))
  return panels


def _name_task(task: str, filtered: bool) -> str:
  return task + (' (filtered)' if filtered else '')


def _format_title(parts: Sequence[str], checkpoint: str) -> str:
  return ', '.join(filter(None, parts)) + (f'\n{checkpoint}' if checkpoint else '')


def _format_arm(arm: bool, rate: float | None, has_rates: bool) -> str:
  return f'{_ARMS[arm]}, {rate:g}' if has_rates and rate is not None else _ARMS[arm]


def _read_log(run_paths: Mapping[str, epath.Path], name: str) -> Iterator[tuple[str, LogLine]]:
  """Yields the checkpoint and each line of a log, of the last step of each checkpoint."""
  path = run_paths[name]
  source = runs.resolve_source(run_paths, path)
  score_lines = list(run_dir.read_lines(path / run_dir.SCORES))
  names = {
    checkpoint: runs.resolve_source(run_paths, path, checkpoint)
    for checkpoint in {line['checkpoint'] for line in score_lines}
  }
  starts = {
    line['member']: (names[line['checkpoint']], line['checkpoint_step']) for line in score_lines
  }
  # In ascending order, the last step of a checkpoint remains.
  last_steps = dict(sorted(start for start in starts.values() if start[1] is not None))
  for line in run_dir.read_lines(path / run_dir.METRICS):
    missing = [field for field in _LOG_FIELDS if field not in line]
    if missing:
      raise InputError(
        f'the learning curves of {name}',
        f'a line of {run_dir.METRICS} without {", ".join(missing)}',
        'fine-tune again into a new --workdir: another version wrote this log',
      )
    checkpoint, step = starts.get(line['member'], (source, None))
    if step is None or step == last_steps[checkpoint]:
      yield checkpoint, line


def _select_headline(lines: Sequence[LogLine]) -> list[LogLine]:
  """Returns the score lines of the held-out part, or else of one split, with a field 'value'."""
  score_lines = [
    {**line, 'value': line[name]} for line in lines for name in line if name in metrics.METRICS
  ]
  splits = {line['split'] for line in score_lines}
  split = min(splits, key=lambda split: (split != 'held_out', split), default='')
  return [line for line in score_lines if line['split'] == split]


def _select_losses(lines: Sequence[LogLine]) -> list[LogLine]:
  return [{**line, 'value': line['loss']} for line in lines if line['split'] == 'train']


def _make_bands(lines: Sequence[LogLine]) -> dict[str, dict[float, Group]]:
  """Returns a band for each arm and learning rate, with the numbers over seeds at each epoch."""
  curves = runs.group_by(lines, lambda line: (line['pretrained'], line['learning_rate']))
  bands = {}
  for arm, rate in sorted(curves, key=lambda curve: (not curve[0], runs.to_float(curve[1]))):
    by_epoch = runs.group_by(curves[arm, rate], lambda line: float(line['epoch']))
    has_rates = sum(other == arm for other, _ in curves) > 1
    bands[_format_arm(arm, rate, has_rates)] = {
      epoch: make_group({line['seed']: runs.to_float(line['value']) for line in by_epoch[epoch]})
      for epoch in sorted(by_epoch)
    }
  return bands
