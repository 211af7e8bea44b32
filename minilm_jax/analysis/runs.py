"""Run directories as readers find them: finished, under way, cut short or empty.

Only files are read, and nothing here imports JAX. What a directory does not hold yet is None.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from minilm_jax.core import files, old_names, run_dir, schema
from minilm_jax.core.errors import InputError, sanitize
from minilm_jax.core.schema import COUNT, TEXT

KINDS = ('pretrain', 'finetune', 'evaluate', 'committee', 'latency', 'baselines', 'attention')
# Folders of many small files that hold no run.
_SKIPPED_FOLDERS = ('checkpoints', 'events', 'profile', 'wandb')
# Model fields that the latency of an answer does not depend on.
_LATENCY_FREE_FIELDS = tuple(
  (
    'vocab_size dropout initialization flops_heads tied norm_epsilon position_offset '
    'segment_embeddings_for_pairs'
  ).split()
)
Line = dict[str, Any]  # of a log


@dataclasses.dataclass(frozen=True)
class RunLosses:
  """The losses of one run, in nats; a loss that is not a number leaves a gap."""

  name: str
  train_tokens: tuple[float, ...]
  train_loss: tuple[float, ...]
  validation_tokens: tuple[float, ...]
  validation_loss: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class RunRow:
  """The summary of one run; its last validation loss is in nats."""

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
  scores: int
  devices: str


@dataclasses.dataclass(frozen=True)
class LatencyRow:
  """The latency of one contestant at one batch size, from `minilm latency --workdir`.

  Attributes:
    run: name of the run directory.
    name, recipe: of the contestant, and of its one recipe.
    shape: of the model, as `latency_shape` writes it.
    members, heads, devices: heads are those of one member.
    median, low, high, p95: milliseconds; low and high bound the median.
    over_member: the median over that of one member alone.
    machine, calls: the machine, and the number of rounds.
  """

  run: str
  name: str
  recipe: str
  shape: str
  batch: int
  length: int
  members: int
  heads: int
  devices: int
  depth: int
  parameters: int
  flops: int
  median: float
  low: float
  high: float
  p95: float
  over_member: float
  machine: str
  calls: int


def find_runs(folders: Sequence[epath.PathLike]) -> dict[str, epath.Path]:
  """Returns the runs below some folders at any depth, each once, by a distinct name.

  Raises:
    InputError: a folder is missing or has no name, or none of them holds a run.
  """
  if not all(os.fspath(folder) for folder in folders):  # Path('') is the current folder
    raise InputError(
      'the runs in a folder',
      'its name is empty',
      'give a run directory, or . for the current folder',
    )
  paths: dict[str, epath.Path] = {}
  names: dict[str, str] = {}
  for folder in map(epath.Path, folders):
    if not folder.is_dir():
      raise InputError(
        f'the runs in {folder}',
        'no such folder',
        'give a run directory, or a folder that holds some',
      )
    for path in _walk(folder):
      if (path / run_dir.CONFIG).exists() and read_kind(path) in KINDS:
        key = str(path.resolve())
        paths.setdefault(key, path)
        names.setdefault(key, _relative_name(folder, path))
  if not paths:
    raise InputError(
      f'the runs in {", ".join(map(str, folders)) or "no folder"}',
      f'no {run_dir.CONFIG} of a run there',
      'give a run directory, or a folder that holds some',
    )
  taken = list(names.values())
  return {names[key] if taken.count(names[key]) == 1 else key: path for key, path in paths.items()}


def _walk(folder: epath.Path) -> Iterator[epath.Path]:
  yield folder
  for inner in sorted(folder.iterdir()):
    if inner.is_dir() and inner.name not in _SKIPPED_FOLDERS and not inner.name.startswith('.'):
      yield from _walk(inner)


def _relative_name(folder: epath.Path, path: epath.Path) -> str:
  return sanitize('/'.join(path.parts[len(folder.parts) :]) or path.resolve().name)


def read_failures(folders: Sequence[epath.PathLike]) -> dict[str, str]:
  """Returns the reasons in failure.json of the points of a sweep that failed, by name."""
  failures = {}
  for folder in map(epath.Path, folders):
    for path in _walk(folder):
      if not (path / run_dir.FAILURE).exists() or (path / run_dir.RESULT).exists():
        continue  # no failure, or a later attempt succeeded
      record = files.read_object(
        path / run_dir.FAILURE, f'the failure in {path}', {'asked?': TEXT, 'found?': TEXT}
      )
      parts = [record[key] for key in ('asked', 'found') if key in record]
      failures[_relative_name(folder, path)] = sanitize(': '.join(parts))
  return failures


def read_kind(folder: epath.Path) -> str | None:
  """Returns the kind of run in a directory with a config.json: one of `KINDS` if it is a run."""
  return _get(read_config(folder), 'kind')


def read_config(folder: epath.Path) -> dict[str, Any]:
  """Returns the recipe in a directory, of any kind and version.

  Raises:
    InputError: config.json is damaged.
  """
  return files.read_object(
    folder / run_dir.CONFIG, f'the recipe of the run in {folder}', {'kind?': TEXT}
  )


def read_manifest(folder: epath.Path) -> dict[str, Any]:
  """Returns the manifest of a run, empty if there is none yet.

  Raises:
    InputError: it is damaged.
  """
  path = folder / run_dir.MANIFEST
  if not path.exists():
    return {}
  return files.read_object(path, f'the manifest of {folder}', {'devices?': [TEXT]})


def resolve_source(found: Mapping[str, epath.Path], path: epath.Path, checkpoint: str = '') -> str:
  """Returns the run that a fine-tuning or evaluation started from: its name in `found`, or its path.

  Args:
    found: runs by name.
    path: of the run that started from another.
    checkpoint: name of the folder, as in a line of scores; '' takes the first of the recipe.
  """
  sources = _get(read_config(path), 'checkpoint') or checkpoint
  sources = [sources] if isinstance(sources, str) else sources
  if fault := schema.find_schema_fault(sources, [TEXT], 'checkpoint'):
    raise InputError(f'the recipe of the run in {path}', fault, f'restore {run_dir.CONFIG}')
  source = next((name for name in sources if epath.Path(name).name == checkpoint), sources[0])
  resolved = epath.Path(source).resolve()
  return next((name for name, run in found.items() if run.resolve() == resolved), source)


def read_scores(found: Mapping[str, epath.Path]) -> Iterator[Line]:
  """Yields the score lines of all runs, `checkpoint` being the run of `resolve_source`.

  Several heads on one encoder are named after it: they are another contestant than one head.
  """
  for path in found.values():
    sources: dict[str, str] = {}
    head = _get(files.read_json(path / run_dir.CONFIG, f'the recipe of {path}'), 'head') or {}
    heads = _get(head, 'ensemble_size') or 1
    for line in run_dir.read_lines(path / run_dir.SCORES):
      _check_fields(line, path / run_dir.SCORES, 'checkpoint')
      name = line['checkpoint']
      if name not in sources:
        sources[name] = resolve_source(found, path, name) + (
          f', {heads} heads' if heads > 1 else ''
        )
      line = {**line, 'checkpoint': sources[name]}
      yield {
        key: sanitize(value) if isinstance(value, str) else value for key, value in line.items()
      }


def summarize_run(name: str, path: epath.Path) -> list[RunRow]:
  """Returns the summary of a run, or of each member of a population that is pre-trained."""
  num_scores = sum(1 for _ in run_dir.read_lines(path / run_dir.SCORES))
  manifest = read_manifest(path)
  parameters = _get(manifest, 'parameters')
  parameters = _get(parameters, 'total') if isinstance(parameters, dict) else parameters
  if parameters is not None and (
    fault := schema.find_schema_fault(parameters, COUNT, 'parameters')
  ):
    raise InputError(f'the manifest of {path}', fault, f'restore {run_dir.MANIFEST}')
  rows = []
  for member, lines in split_members(path).items():
    last = max(lines, key=lambda line: line['step'], default={})
    validation = next(
      (line for line in reversed(lines) if line['split'] == 'validation' and 'loss' in line), {}
    )
    state = 'incomplete' if lines or num_scores else 'empty'
    seconds = [line['seconds'] for line in lines if _get(line, 'seconds') is not None]
    rows.append(
      RunRow(
        name=name + member,
        kind=str(read_kind(path)),
        state='finished' if (path / run_dir.RESULT).exists() else state,
        parameters=parameters,
        updates=_get(last, 'step'),
        tokens=_get(last, 'tokens'),
        flops=_get(last, 'flops'),
        seconds=max(seconds, default=None),
        evaluated=bool(validation),
        validation_loss=_get(validation, 'loss'),
        validation_perplexity=_get(validation, 'perplexity'),
        scores=num_scores,
        devices=', '.join(sorted(set(_get(manifest, 'devices') or ()))),
      )
    )
  return rows


def split_members(path: epath.Path) -> dict[str, list[Line]]:
  """Returns the lines of a log by ` member N`, or by '' for one model and for fine-tuning.

  A member that was extracted to `member-N` inside the run is a run of its own and left out here.
  """
  is_pretraining = read_kind(path) == 'pretrain'
  members: dict[str, list[Line]] = {}
  for line in run_dir.read_lines(path / run_dir.METRICS):
    _check_fields(line, path / run_dir.METRICS, 'step', 'split')
    member = f' member {line["member"]}' if is_pretraining and 'member' in line else ''
    members.setdefault(member, []).append(line)
  if not members:
    return {'': []}
  return {
    member: lines
    for member, lines in members.items()
    if not member or not (path / member.strip().replace(' ', '-') / run_dir.CONFIG).exists()
  }


def read_losses(name: str, path: epath.Path) -> list[RunLosses]:
  """Returns the losses of a pre-training run, or of each member, by the tokens seen."""
  losses = [_losses_of(name + member, lines) for member, lines in split_members(path).items()]
  return [of_run for of_run in losses if of_run.train_tokens or of_run.validation_tokens]


def _losses_of(name: str, lines: Sequence[Line]) -> RunLosses:
  columns = []
  for split in ('train', 'validation'):
    # Lines of fine-tuning have no tokens.
    logged = [line for line in lines if line['split'] == split and 'tokens' in line]
    columns.append(tuple(line['tokens'] for line in logged))
    columns.append(tuple(to_float(_get(line, 'loss')) for line in logged))
  return RunLosses(name, *columns)


def latency_shape(model: Mapping[str, Any]) -> str:
  """Returns the model fields that latency depends on, as JSON: equal for models that share one."""
  model = {**old_names.ADDED_FIELDS['model'], **model}
  return json.dumps(
    {name: value for name, value in model.items() if name not in _LATENCY_FREE_FIELDS},
    sort_keys=True,
  )


def read_latencies(found: Mapping[str, epath.Path]) -> list[LatencyRow]:
  """Returns the rows of every finished latency run among `found`, runs by name.

  Raises:
    InputError: a result is damaged.
  """
  fields = [field.name for field in dataclasses.fields(LatencyRow)]
  rows = []
  for name, path in found.items():
    if read_kind(path) != 'latency' or not (path / run_dir.RESULT).exists():
      continue
    models = files.read_json(path / run_dir.CONFIG, f'the recipe of {path}')['models']
    result = files.read_json(path / run_dir.RESULT, f'the latency in {path}')
    try:
      for row in result['rows']:
        milliseconds = {
          end: to_float(row['milliseconds'][end]) for end in ('median', 'low', 'high', 'p95')
        }
        values = {
          **row,
          **milliseconds,
          'run': name,
          'shape': latency_shape(models[row['recipe']]),
          'machine': result['machine'],
          'calls': result['calls'],
        }
        rows.append(LatencyRow(**{field: values[field] for field in fields if field in values}))
    except (KeyError, TypeError) as error:
      raise InputError(
        f'the latency in {path}',
        f'{run_dir.RESULT} lacks {error}',
        'time it again into a new --workdir: another version has written this one',
      ) from None
  return rows


def to_float(value: float | None) -> float:
  """Returns a logged number; JSON has null for what is not a number.

  >>> to_float(None)
  nan
  """
  return math.nan if value is None else float(value)


def _check_fields(line: Line, log: epath.Path, *names: str) -> None:
  missing = [name for name in names if name not in line]
  if missing:
    raise InputError(
      f'the log {log}', f'a line without {", ".join(missing)}', 'remove that line, or run it again'
    )


def _get(record: Mapping[str, Any], name: str) -> Any:
  return record[name] if name in record else None
