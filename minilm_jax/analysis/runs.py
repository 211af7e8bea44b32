"""Finds and reads run directories, which may be finished, unfinished or empty.

Functions read files alone and do not import JAX. Missing values are None.
"""

import collections
import dataclasses
import math
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from minilm_jax.core import files, old_names, paths, run_dir
from minilm_jax.core.errors import COUNT, TEXT, InputError, find_schema_fault, sanitize

KINDS = ('pretrain', 'finetune', 'evaluate', 'committee', 'latency', 'baselines', 'attention')
# Subfolders of runs that contain many small files and no run.
_SKIPPED_FOLDERS = ('checkpoints', 'events', 'profile', 'wandb')
# Settings of a protocol besides those of head and optimizer.
_PROTOCOL_FIELDS = ('batch_size', 'epochs', 'length', 'patience', 'likelihood')
# Rows of scores have the rate as a field, and the number of heads in the name of the checkpoint.
_PROTOCOL_FREE_FIELDS = ('optimizer.learning_rate', 'head.ensemble_size')
# Settings that distinguish custom tasks, which have one name; of paths, the last part.
_CUSTOM_TASK = 'own'
_CUSTOM_TASK_FIELDS = ('task.fields', 'task.label', 'task.kind', 'task.markers')
_CUSTOM_TASK_PATHS = ('task.folder', 'task.train')
K = TypeVar('K', bound=Hashable)
T = TypeVar('T')
Line = dict[str, Any]  # of metrics.jsonl or scores.jsonl


@dataclasses.dataclass(frozen=True)
class RunLosses:
  """The losses of one run by tokens seen, in nats; nan for a loss that is not finite."""

  name: str
  train_tokens: tuple[float, ...]
  train_loss: tuple[float, ...]
  validation_tokens: tuple[float, ...]
  validation_loss: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class RunRow:
  """A summary of one run; the validation loss is that of the last evaluation, in nats.

  Updates, tokens, FLOPs and seconds exclude those of `origin`, the RUN@STEP that gave the first
  weights; '' for random weights.
  """

  name: str
  kind: str
  state: str
  parameters: int | None
  updates: int | None
  tokens: float | None
  flops: float | None
  seconds: float | None
  evaluated: bool
  validation_loss: float | None
  validation_perplexity: float | None
  validation_tokens: float | None
  scores: int
  devices: str
  origin: str


def find_runs(folders: Sequence[epath.PathLike]) -> dict[str, epath.Path]:
  """Returns the runs in these folders, at any depth, by distinct names; see `paths.list_folders`.

  Raises:
    InputError: a folder is missing, a name is empty, or no folder contains a run.
  """
  if not all(os.fspath(folder) for folder in folders):  # Path('') is the current folder
    raise InputError(
      'the runs in a folder',
      'the name of the folder is empty',
      'give a run directory, or . for the current folder',
    )
  by_target: dict[str, tuple[str, epath.Path]] = {}  # name and path
  for folder in map(epath.Path, folders):
    if not folder.is_dir():
      raise InputError(
        f'the runs in {folder}',
        'no such folder',
        'give a run directory, or a folder that contains run directories',
      )
    for path in paths.list_folders(folder, _SKIPPED_FOLDERS):
      if (path / run_dir.CONFIG).exists() and read_kind(path) in KINDS:
        name = _make_relative_name(folder, path)
        by_target.setdefault(paths.resolve_links(path), (name, path))
  if not by_target:
    raise InputError(
      f'the runs in {", ".join(map(str, folders)) or "no folder"}',
      f'no {run_dir.CONFIG} of a run',
      'give a run directory, or a folder that contains run directories',
    )
  counts = collections.Counter(name for name, _ in by_target.values())
  return {
    name if counts[name] == 1 else str(path.resolve()): path for name, path in by_target.values()
  }


def _make_relative_name(folder: epath.Path, path: epath.Path) -> str:
  return sanitize('/'.join(path.parts[len(folder.parts) :]) or path.resolve().name)


def read_failures(
  folders: Sequence[epath.PathLike], run_paths: Mapping[str, epath.Path]
) -> dict[str, str]:
  """Returns the reasons in failure.json of failed points of a sweep, by name.

  A point without config.json is in no run path. It has its whole path as name if a run or another
  point has its relative name.
  """
  names = {paths.resolve_links(path): name for name, path in run_paths.items()}
  failures: dict[str, str] = {}
  for folder in map(epath.Path, folders):
    for path in paths.list_folders(folder, _SKIPPED_FOLDERS):
      if not (path / run_dir.FAILURE).exists() or (path / run_dir.RESULT).exists():
        continue  # without a failure, or with a later success
      schema = {'asked?': TEXT, 'found?': TEXT}
      record = files.read_object(path / run_dir.FAILURE, f'the failure in {path}', schema)
      parts = [record[key] for key in ('asked', 'found') if key in record]
      target = paths.resolve_links(path)
      name = names.get(target, _make_relative_name(folder, path))
      if name in failures or (name in run_paths and target not in names):
        name = sanitize(str(path.resolve()))
      failures[name] = sanitize(': '.join(parts))
  return failures


def read_kind(folder: epath.Path) -> str | None:
  """Returns the kind in config.json, which is one of `KINDS` for runs."""
  return read_config(folder).get('kind')


def select_kind(run_paths: Mapping[str, epath.Path], kind: str) -> dict[str, epath.Path]:
  """Returns the runs of one kind by name."""
  return {name: path for name, path in run_paths.items() if read_kind(path) == kind}


def read_config(folder: epath.Path) -> dict[str, Any]:
  """Returns config.json of a directory, of any kind and version.

  Raises:
    InputError: config.json is damaged.
  """
  return files.read_object(
    folder / run_dir.CONFIG, f'the recipe of the run in {folder}', {'kind?': TEXT}
  )


def read_manifest(folder: epath.Path) -> dict[str, Any]:
  """Returns the manifest of a run; an empty one if the file is missing.

  Raises:
    InputError: the manifest is damaged.
  """
  path = folder / run_dir.MANIFEST
  if not path.exists():
    return {}
  return files.read_object(path, f'the manifest of {folder}', {'devices?': [TEXT]})


def resolve_source(
  run_paths: Mapping[str, epath.Path], path: epath.Path, checkpoint: str = ''
) -> str:
  """Returns the pre-training run of a fine-tuning or evaluation, by name or else by path.

  A fine-tuning with several heads on an encoder has their number after the name, so that tables and
  figures keep it apart from one with a single head.

  Args:
    checkpoint: folder name of the pre-training run; '' is the first in the recipe.
  """
  stored = read_config(path)
  sources = stored.get('checkpoint') or checkpoint
  sources = [sources] if isinstance(sources, str) else sources
  if fault := find_schema_fault(sources, [TEXT], 'checkpoint'):
    raise InputError(f'the recipe of the run in {path}', fault, f'restore {run_dir.CONFIG}')
  source = next((name for name in sources if epath.Path(name).name == checkpoint), sources[0])
  target = paths.resolve_links(run_dir.find_source(path, stored, source))
  matches = (name for name, run in run_paths.items() if paths.resolve_links(run) == target)
  heads = (stored.get('head') or {}).get('ensemble_size') or 1
  return next(matches, source) + (f', {heads} heads' if heads > 1 else '')


def read_protocol(path: epath.Path) -> dict[str, Any]:
  """Returns the settings of a fine-tuning or evaluation that its scores do not have as fields."""
  fields = run_dir.flatten(old_names.complete_recipe(read_config(path)))
  groups = ('head', 'optimizer')
  protocol = {
    name: value
    for name, value in fields.items()
    if name in _PROTOCOL_FIELDS
    or (name.partition('.')[0] in groups and name not in _PROTOCOL_FREE_FIELDS)
  }
  if 'task.name' in fields and fields['task.name'] == _CUSTOM_TASK:
    protocol |= {name: fields[name] for name in _CUSTOM_TASK_FIELDS if name in fields}
    protocol |= {
      name: epath.Path(fields[name]).name for name in _CUSTOM_TASK_PATHS if name in fields
    }
  return protocol


def read_scores(run_paths: Mapping[str, epath.Path]) -> Iterator[Line]:
  """Yields the score lines of all runs.

  The field `checkpoint` becomes the name of `resolve_source`. The field `protocol` has the
  settings that scores of one protocol share.
  """
  for path in run_paths.values():
    sources: dict[str, str] = {}
    protocol = read_protocol(path)
    for line in run_dir.read_lines(path / run_dir.SCORES, ('checkpoint',)):
      name = line['checkpoint']
      if name not in sources:
        sources[name] = resolve_source(run_paths, path, name)
      line = {**line, 'checkpoint': sources[name], 'protocol': protocol}
      yield {
        key: sanitize(value) if isinstance(value, str) else value for key, value in line.items()
      }


def summarize_run(name: str, path: epath.Path) -> list[RunRow]:
  """Returns the summary of a run, or of each member of a pre-trained population."""
  num_scores = sum(1 for _ in run_dir.read_lines(path / run_dir.SCORES))
  manifest = read_manifest(path)
  parameters = manifest.get('parameters')
  parameters = parameters.get('total') if isinstance(parameters, dict) else parameters
  if parameters is not None and (fault := find_schema_fault(parameters, COUNT, 'parameters')):
    raise InputError(f'the manifest of {path}', fault, f'restore {run_dir.MANIFEST}')
  rows = []
  for member, lines in split_members(path).items():
    last = max(lines, key=lambda line: line['step'], default={})
    validation = next(
      (line for line in reversed(lines) if line['split'] == 'validation' and 'loss' in line), {}
    )
    state = 'incomplete' if lines or num_scores else 'empty'
    seconds = [line['seconds'] for line in lines if line.get('seconds') is not None]
    rows.append(
      RunRow(
        name=name + member,
        kind=str(read_kind(path)),
        state='finished' if (path / run_dir.RESULT).exists() else state,
        parameters=parameters,
        updates=last.get('step'),
        tokens=last.get('tokens'),
        flops=last.get('flops'),
        seconds=max(seconds, default=None),
        evaluated=bool(validation),
        validation_loss=validation.get('loss'),
        validation_perplexity=validation.get('perplexity'),
        validation_tokens=validation.get('tokens'),
        scores=num_scores,
        devices=', '.join(sorted(set(manifest.get('devices') or ()))),
        origin=sanitize(run_dir.name_origin(path)),
      )
    )
  return rows


def split_members(path: epath.Path) -> dict[str, list[Line]]:
  """Returns the lines of metrics.jsonl by member: ` member N`, or '' without a population.

  Members that were extracted to `member-N` inside the run are separate runs and are left out.
  """
  is_pretraining = read_kind(path) == 'pretrain'
  all_lines = list(run_dir.read_lines(path / run_dir.METRICS, ('step', 'split')))
  members = group_by(
    all_lines,
    lambda line: f' member {line["member"]}' if is_pretraining and 'member' in line else '',
  ) or {'': []}
  return {
    member: lines
    for member, lines in members.items()
    if not member or not (path / member.strip().replace(' ', '-') / run_dir.CONFIG).exists()
  }


def explain_origin(path: epath.Path) -> str:
  """Returns the reason to leave a continued run out of studies of training; '' for other runs."""
  origin = sanitize(run_dir.name_origin(path))
  return (
    f'continued from {origin}: tokens and FLOPs are those of the new run alone' if origin else ''
  )


def read_losses(name: str, path: epath.Path) -> list[RunLosses]:
  """Returns the losses of a pre-training run, or of each member."""
  losses = []
  for member, lines in split_members(path).items():
    columns: list[tuple[float, ...]] = []
    for split in ('train', 'validation'):
      # Lines of fine-tuning have no tokens.
      logged = [line for line in lines if line['split'] == split and 'tokens' in line]
      columns.append(tuple(line['tokens'] for line in logged))
      columns.append(tuple(to_float(line.get('loss')) for line in logged))
    if any(columns):
      losses.append(RunLosses(name + member, *columns))
  return losses


def group_by(items: Iterable[T], make_key: Callable[[T], K]) -> dict[K, list[T]]:
  """Returns the items by key; keys and items are in the order of their first occurrence.

  >>> group_by([1, 2, 3], lambda number: number % 2)
  {1: [1, 3], 0: [2]}
  """
  groups: dict[K, list[T]] = {}
  for item in items:
    groups.setdefault(make_key(item), []).append(item)
  return groups


def select_single(groups: Mapping[K, Sequence[T]]) -> dict[K, T]:
  """Returns the item of each group with one item."""
  return {key: items[0] for key, items in groups.items() if len(items) == 1}


def to_float(value: float | None) -> float:
  """Returns a logged number; null in JSON stands for nan.

  >>> to_float(None)
  nan
  """
  return math.nan if value is None else float(value)
