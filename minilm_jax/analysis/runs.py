"""Run directories as a reader finds them: finished, under way, cut short or empty.

Only files are read; nothing here knows how a run was made. What a directory does not have yet is
None.
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
_CLOSED = (
  'checkpoints',
  'events',
  'profile',
  'wandb',
)  # folders of many small files with no run inside


@dataclasses.dataclass(frozen=True)
class RunLosses:
  """The losses of one run, in nats; a point that is not a number leaves a gap."""

  name: str
  train_tokens: tuple[float, ...]
  train_loss: tuple[float, ...]
  validation_tokens: tuple[float, ...]
  validation_loss: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class RunRow:
  """One run in a few numbers; its last validation loss is in nats."""

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


def find_runs(folders: Sequence[epath.PathLike]) -> dict[str, epath.Path]:
  """The runs in some folders at any depth, each once, by a name that tells them apart.

  Raises:
    InputError: a folder is missing or has no name, or there is no run under any of them.
  """
  paths: dict[str, epath.Path] = {}
  names: dict[str, str] = {}
  if not all(map(os.fspath, folders)):  # Path('') is the current folder, and nobody asked for that
    raise InputError(
      'the runs in a folder',
      'its name is empty',
      'give a run directory, or . for the current folder',
    )
  for folder in map(epath.Path, folders):
    if not folder.is_dir():
      raise InputError(
        f'the runs in {folder}',
        'no such folder',
        'give a run directory, or a folder that holds some',
      )
    for path in _walk(folder):
      key = str(path.resolve())
      if key not in paths:
        paths[key] = path
        names[key] = sanitize('/'.join(path.parts[len(folder.parts) :]) or path.resolve().name)
  if not paths:
    raise InputError(
      f'the runs in {", ".join(map(str, folders)) or "no folder"}',
      f'no {run_dir.CONFIG} of a run there',
      'give a run directory, or a folder that holds some',
    )
  taken = list(names.values())
  return {names[key] if taken.count(names[key]) == 1 else key: path for key, path in paths.items()}


def _walk(folder: epath.Path) -> Iterator[epath.Path]:
  config = folder / run_dir.CONFIG
  if config.exists() and read_kind(folder) in KINDS:
    yield folder
  for inner in _inside(folder):
    yield from _walk(inner)


def _inside(folder: epath.Path) -> list[epath.Path]:
  return [
    inner
    for inner in sorted(folder.iterdir())
    if inner.is_dir() and inner.name not in _CLOSED and not inner.name.startswith('.')
  ]


def read_failures(folders: Sequence[epath.PathLike]) -> dict[str, str]:
  """Why points of a sweep came to nothing, by their name, from the failure.json that is left in the
  folder of each.
  """
  found = {}
  for folder in map(epath.Path, folders):
    for path in _failed(folder):
      if (path / run_dir.RESULT).exists():
        continue  # a later attempt went well
      told = files.read_object(
        path / run_dir.FAILURE, f'the failure in {path}', {'asked?': TEXT, 'found?': TEXT}
      )
      name = '/'.join(path.parts[len(folder.parts) :]) or path.resolve().name
      words = [told[key] for key in ('asked', 'found') if key in told]
      found[sanitize(name)] = sanitize(': '.join(words))
  return found


def _failed(folder: epath.Path) -> Iterator[epath.Path]:
  if (folder / run_dir.FAILURE).exists():
    yield folder
  for inner in _inside(folder):
    yield from _failed(inner)


def read_kind(folder: epath.Path) -> str | None:
  """What a directory with a config.json is a run of: one of `KINDS`, or something that is no run."""
  found = read_config(folder)
  return found['kind'] if 'kind' in found else None


def read_config(folder: epath.Path) -> dict[str, Any]:
  """The recipe in a directory, of any kind and version.

  Raises:
    InputError: config.json is damaged.
  """
  return files.read_object(
    folder / run_dir.CONFIG, f'the recipe of the run in {folder}', {'kind?': TEXT}
  )


def read_manifest(folder: epath.Path) -> dict[str, Any]:
  """The manifest of a run, or nothing where there is none yet.

  Raises:
    InputError: it is damaged.
  """
  if not (folder / run_dir.MANIFEST).exists():
    return {}
  return files.read_object(
    folder / run_dir.MANIFEST, f'the manifest of {folder}', {'devices?': [TEXT]}
  )


def resolve_source(found: Mapping[str, epath.Path], path: epath.Path, checkpoint: str = '') -> str:
  """The run that a fine-tuning or an evaluation started from: by its name in `found`, or else by
  its path.

  Args:
    found: runs by name.
    path: of the run that started from another.
    checkpoint: the folder's name, as a line of scores has it; '' for the first that the recipe
      names.
  """
  names = {str(path.resolve()): name for name, path in found.items()}
  asked = _field(read_config(path), 'checkpoint') or checkpoint
  several = [asked] if isinstance(asked, str) else asked
  if fault := schema.find_schema_fault(several, [TEXT], 'checkpoint'):
    raise InputError(f'the recipe of the run in {path}', fault, f'restore {run_dir.CONFIG}')
  one = next((one for one in several if epath.Path(one).name == checkpoint), several[0])
  resolved = str(epath.Path(one).resolve())
  return names[resolved] if resolved in names else one


def read_scores(found: Mapping[str, epath.Path]) -> Iterator[dict[str, Any]]:
  """The scores of all runs; `checkpoint` is the run they started from, told as `source` does.

  Where several heads were fine-tuned on it, it says so: they are another contestant than the one
  head.
  """
  for path in found.values():
    of: dict[str, str] = {}
    copies = (
      _field(
        _field(files.read_json(path / run_dir.CONFIG, f'the recipe of {path}'), 'head') or {},
        'ensemble_size',
      )
      or 1
    )
    for line in run_dir.read_lines(path / run_dir.SCORES):
      name = _required(line, path / run_dir.SCORES, 'checkpoint')['checkpoint']
      if name not in of:
        of[name] = resolve_source(found, path, name) + (f', {copies} heads' if copies > 1 else '')
      line = {**line, 'checkpoint': of[name]}
      yield {
        key: sanitize(value) if isinstance(value, str) else value for key, value in line.items()
      }


def summarize_run(name: str, path: epath.Path) -> list[RunRow]:
  """What there is to say about one run, or about each member of a population that is pre-trained."""
  return [_row(name + of, path, lines) for of, lines in split_members(path).items()]


def split_members(path: epath.Path) -> dict[str, list[dict[str, Any]]]:
  """The lines of a log by whose they are: ` member N`, or nothing for one model, or for many that
  are fine-tuned.

  A member that was taken out into `member-N` inside the run stands there, and is left out here.
  """
  found: dict[str, list[dict[str, Any]]] = {}
  apart = read_kind(path) == 'pretrain'
  for line in run_dir.read_lines(path / run_dir.METRICS):
    _required(line, path / run_dir.METRICS, 'step', 'split')
    found.setdefault(f' member {line["member"]}' if apart and 'member' in line else '', []).append(
      line
    )
  taken = [
    name
    for name in found
    if name and (path / name.strip().replace(' ', '-') / run_dir.CONFIG).exists()
  ]
  return {name: lines for name, lines in found.items() if name not in taken} if found else {'': []}


def _row(name: str, path: epath.Path, lines: Sequence[dict[str, Any]]) -> RunRow:
  scored = sum(1 for _ in run_dir.read_lines(path / run_dir.SCORES))
  described = read_manifest(path)
  parameters = _field(described, 'parameters')
  parameters = _field(parameters, 'total') if isinstance(parameters, dict) else parameters
  if fault := schema.find_schema_fault(
    {} if parameters is None else {'parameters': parameters}, {'parameters?': COUNT}
  ):
    raise InputError(f'the manifest of {path}', fault, f'restore {run_dir.MANIFEST}')
  last = max(lines, key=lambda line: line['step'], default={})
  validation = next(
    (line for line in reversed(lines) if line['split'] == 'validation' and 'loss' in line), {}
  )
  return RunRow(
    name=name,
    kind=str(read_kind(path)),
    scores=scored,
    state='finished'
    if (path / run_dir.RESULT).exists()
    else 'incomplete'
    if lines or scored
    else 'empty',
    parameters=parameters,
    updates=_field(last, 'step'),
    tokens=_field(last, 'tokens'),
    flops=_field(last, 'flops'),
    seconds=_seconds(lines),
    evaluated=bool(validation),
    validation_loss=_field(validation, 'loss'),
    validation_perplexity=_field(validation, 'perplexity'),
    devices=', '.join(sorted(set(_field(described, 'devices') or ()))),
  )


def _seconds(lines: Sequence[Mapping[str, Any]]) -> float | None:
  """Time of training; what is trained together shares a clock."""
  return max(
    (line['seconds'] for line in lines if _field(line, 'seconds') is not None), default=None
  )


def read_losses(name: str, path: epath.Path) -> list[RunLosses]:
  """The losses of one pre-training run, or of each of its members, by the tokens they had seen;
  none before a line.
  """
  found = [_curve(name + of, lines) for of, lines in split_members(path).items()]
  return [curve for curve in found if curve is not None]


def _curve(name: str, lines: Sequence[dict[str, Any]]) -> RunLosses | None:
  series: dict[str, tuple[list[float], list[float]]] = {'train': ([], []), 'validation': ([], [])}
  for line in lines:
    if line['split'] in series and 'tokens' in line:  # fine-tuning logs none
      tokens, losses = series[line['split']]
      tokens.append(line['tokens'])
      losses.append(to_float(_field(line, 'loss')))
  if not any(tokens for tokens, _ in series.values()):
    return None
  return RunLosses(
    name, *(tuple(values) for split in ('train', 'validation') for values in series[split])
  )


def to_float(value: float | None) -> float:
  """A logged number; JSON has null for what is not one.

  >>> to_float(None)
  nan
  """
  return math.nan if value is None else float(value)


def _required(line: dict[str, Any], log: epath.Path, *names: str) -> dict[str, Any]:
  """The line, if it has these fields."""
  missing = [name for name in names if name not in line]
  if missing:
    raise InputError(
      f'the log {log}', f'a line without {", ".join(missing)}', 'remove that line, or run it again'
    )
  return line


def _field(record: Mapping[str, Any], name: str) -> Any:
  return record[name] if name in record else None


# Latencies: what `minilm latency --workdir` left behind, and which contestant has the shape of a
# run.
KIND = 'latency'
# What the time of an answer does not depend on, but for the head of a masked language model, which
# is not there.
_WITHOUT = (
  'vocab_size',
  'dropout',
  'initialization',
  'flops_heads',
  'tied',
  'norm_epsilon',
  'position_offset',
  'segment_embeddings_for_pairs',
)


@dataclasses.dataclass(frozen=True)
class LatencyRow:
  """One contestant at one batch size.

  Attributes:
    run: the run directory that it stands in.
    name, recipe: of the contestant, and of its one recipe; `shape` is the model's, as `shape` below
    writes it. members, heads, devices: heads of one member.
    median, low, high, p95: milliseconds; the interval is that of the median.
    over_member: the median over that of the member alone.
    machine, calls: where, and how many rounds.
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


def latency_shape(model: Mapping[str, Any]) -> str:
  """All of a model that the time of an answer depends on: equal of models that a latency is shared
  by.
  """
  model = {**old_names.ADDED_FIELDS['model'], **model}
  return json.dumps(
    {name: value for name, value in model.items() if name not in _WITHOUT}, sort_keys=True
  )


def read_latencies(found: Mapping[str, epath.Path]) -> list[LatencyRow]:
  """The rows of every latency among some runs that has ended.

  Args:
    found: runs by name, of `runs.find`.

  Raises:
    InputError: a result that is damaged.
  """
  rows = []
  for name, path in found.items():
    if read_kind(path) != KIND or not (path / run_dir.RESULT).exists():
      continue
    models = files.read_json(path / run_dir.CONFIG, f'the recipe of {path}')['models']
    result = files.read_json(path / run_dir.RESULT, f'the latency in {path}')
    own = [field.name for field in dataclasses.fields(LatencyRow)]
    try:
      for row in result['rows']:
        flat = row | {
          end: to_float(row['milliseconds'][end]) for end in ('median', 'low', 'high', 'p95')
        }
        rows.append(
          LatencyRow(
            run=name,
            shape=latency_shape(models[row['recipe']]),
            machine=result['machine'],
            calls=result['calls'],
            **{field: flat[field] for field in own if field in flat},
          )
        )
    except (KeyError, TypeError) as error:
      raise InputError(
        f'the latency in {path}',
        f'{run_dir.RESULT} lacks {error}',
        'time it again into a new --workdir: another version has written this one',
      ) from None
  return rows
