"""The run directory: config.json, manifest.json, metrics.jsonl, scores.jsonl, predictions.jsonl,
result.json.

Files appear whole: they are written under a temporary name and renamed. Lines of a log are appended
one at a time, and a reader ignores a last line that a crash cut short. Paths are `etils.epath`, so
`gs://` works like a local path. Of several processes that train together the first writes.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from minilm_jax.core import distributed, files, old_names, schema
from minilm_jax.core.config import completed
from minilm_jax.core.errors import InputError
from minilm_jax.core.schema import COUNT, FLAG, MAYBE, NUMBER, TEXT

CONFIG, MANIFEST, RESULT = 'config.json', 'manifest.json', 'result.json'
TOKENIZER = 'tokenizer.model'  # also in the folder of a corpus
# of a point of a sweep: why it failed; what its words cost
FAILURE, BITS_PER_WORD = 'failure.json', 'bits_per_word.json'
METRICS, SCORES, PREDICTIONS = 'metrics.jsonl', 'scores.jsonl', 'predictions.jsonl'
# What the fields of our logs are where they are there; which must be there is for the reader to
# know.
_COMMON_FIELDS = {
  'task?': TEXT,
  'split?': TEXT,
  'epoch_choice?': TEXT,
  'checkpoint?': TEXT,
  'member?': COUNT,
  'seed?': COUNT,
  'pretrained?': FLAG,
  'learning_rate?': NUMBER,
  'epoch?': NUMBER,
  'checkpoint_step?': MAYBE,
}
_LINE_SCHEMAS = {
  METRICS: _COMMON_FIELDS
  | {
    'step?': COUNT,
    'loss?': NUMBER,
    'perplexity?': NUMBER,
    'tokens?': NUMBER,
    'flops?': NUMBER,
    'seconds?': NUMBER,
    'gradient_norm?': NUMBER,
    'parameter_norm?': NUMBER,
    'tokens_per_second?': NUMBER,
  },
  SCORES: _COMMON_FIELDS
  | {
    'metric?': TEXT,
    'value?': NUMBER,
    'low?': NUMBER,
    'high?': NUMBER,
    'headline?': FLAG,
    'examples?': COUNT,
    'train_examples?': COUNT,
    'held_out?': COUNT,
    'filtered?': FLAG,
    'validation_score?': NUMBER,
    'majority?': NUMBER,
    'frequency?': NUMBER,
    'constant_prediction?': FLAG,
    'truncated?': COUNT,
  },
  PREDICTIONS: _COMMON_FIELDS | {'predictions?': [NUMBER], 'labels?': [NUMBER]},
}
# of a recipe: who is told of a run may change from start to start
_CHANGEABLE_FIELDS = ('log.sinks', 'log.project', 'log.name')
_HASH_BLOCK_BYTES = 1 << 20
_MAX_JSON_DEPTH = 64  # of JSON inside JSON; a recipe has three
_MAX_LINE_BYTES = 1 << 24  # bytes of a line of a log; ours have thousands


def write_bytes(path: epath.PathLike, data: bytes) -> None:
  """Writes a file that is either whole or absent, also after the power went where the file system
  is local.

  Raises:
    OSError: it could not be written, and what was there before is as it was.
    InputError: this is one of the processes that leave writing to the first, and does not see what
      that one wrote.
  """
  path = epath.Path(path)
  if not distributed.is_primary():
    if not path.exists():
      raise InputError(
        f'the file {path}',
        'process 0 wrote it, and it is not here',
        'give a --workdir that all hosts share',
      )
    return
  temporary = path.parent / f'.{path.name}.partial'
  written = False
  try:
    with temporary.open('wb') as file:
      file.write(data)
      file.flush()
      if '://' not in str(path):
        os.fsync(file.fileno())  # else the new name may reach the disk before the bytes do
    temporary.replace(path)
    written = True
  finally:
    if not written:  # on a full disk it would take what little room there is
      with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def _to_plain(value: Any) -> Any:
  """JSON has no NaN or infinity: what is not a number becomes null."""
  if isinstance(value, dict):
    return {k: _to_plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_to_plain(v) for v in value]
  if hasattr(value, 'item'):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def write_json(path: epath.PathLike, value: Any) -> None:
  """Writes indented JSON, whole or not at all."""
  write_bytes(path, (json.dumps(_to_plain(value), indent=2, ensure_ascii=False) + '\n').encode())


def read_json(path: epath.PathLike, what: str) -> Any:
  """Reads JSON; `what` says in an error what the file is for.

  Raises:
    InputError: no such file, or it cannot be read, is too large, not JSON in UTF-8, or nested
      deeper than any of ours.
  """
  path, remedy = epath.Path(path), 'restore the file or make it again'
  try:
    raw = read_bytes(path, what)
  except (FileNotFoundError, NotADirectoryError):
    raise InputError(what, f'no file {path}', 'check the path, or make it first') from None
  except OSError as error:
    raise InputError(
      what, f'{path} cannot be read: {error}', 'check the path and its permissions'
    ) from None
  try:
    return old_names.rename_record(path.name, parse_json(raw))
  except ValueError as error:
    raise InputError(what, f'{path} is not JSON: {error}', remedy) from None


def read_object(
  path: epath.PathLike, what: str, form: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Reads JSON that is an object of a form of `shape`.

  Raises:
    InputError: as `read_json`; or a field is missing or something else.
  """
  found = read_json(path, what)
  if fault := schema.find_schema_fault(found, dict(form or {})):
    raise InputError(what, f'{path}: {fault}', 'restore the file or make it again')
  return found


def parse_json(raw: bytes) -> Any:
  """The value of JSON in UTF-8; ValueError where it is none, or is nested too deep."""
  try:
    return _check_depth(json.loads(raw.decode(), parse_constant=_refuse_constant))
  except RecursionError:
    raise ValueError('nested too deep') from None


def _refuse_constant(name: str) -> None:
  # Python would take it; what we write has null instead
  raise ValueError(f'{name} is no number there')


def _check_depth(value: Any, left: int = _MAX_JSON_DEPTH) -> Any:
  """The value, where functions that call themselves can go through it."""
  if not left:
    raise ValueError(f'nested more than {_MAX_JSON_DEPTH} levels deep')
  for inner in (
    value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
  ):
    _check_depth(inner, left - 1)
  return value


def format_json_line(record: dict[str, Any]) -> str:
  """A record as a line of a JSON-lines log."""
  return json.dumps(_to_plain(record), ensure_ascii=False) + '\n'


def append_line(path: epath.PathLike, record: dict[str, Any]) -> None:
  """Appends one JSON line, if this process is the one that writes."""
  if not distributed.is_primary():
    return
  with epath.Path(path).open('a') as file:
    file.write(files.format_json_line(record))


def read_lines(path: epath.PathLike) -> Iterator[dict[str, Any]]:
  """The records of a JSON-lines log; a last line that was cut short is left out. No file, no
  records.

  Raises:
    InputError: the log cannot be read, or a line that was written whole is not a JSON object, or
      not one of our logs'.
  """
  path = epath.Path(path)
  if not path.exists():
    return
  try:
    with path.open('rb') as file:
      for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b''), 1):
        if not line.strip():
          continue
        try:
          found = files.parse_json(line)
        except ValueError as error:
          # The write of the last one was interrupted; what a file system had not written yet is
          # NUL.
          if (
            not line.endswith(b'\n')
            and len(line) < _MAX_LINE_BYTES
            and (line.startswith(b'{') or not line.strip(b'\0'))
          ):
            return
          raise InputError(
            f'the log {path}', f'line {number} is not JSON: {error}', 'remove that line'
          ) from None
        if path.name in _LINE_SCHEMAS and isinstance(found, dict):
          found = old_names.rename_columns(found)
        if fault := schema.find_schema_fault(
          found, _LINE_SCHEMAS[path.name] if path.name in _LINE_SCHEMAS else {}, f'line {number}'
        ):
          raise InputError(f'the log {path}', fault, 'remove that line')
        yield found
  except OSError as error:
    raise InputError(
      f'the log {path}', f'it cannot be read: {error}', 'check the path and its permissions'
    ) from None


def keep_lines(
  path: epath.PathLike, wanted: Callable[[dict[str, Any]], bool]
) -> list[dict[str, Any]]:
  """Cuts a log down to the wanted records, which is what a run that goes on does with what came
  after its last save.
  """
  kept = [record for record in read_lines(path) if wanted(record)]
  write_lines(path, kept)
  return kept


def write_lines(path: epath.PathLike, records: Sequence[dict[str, Any]]) -> None:
  """Writes a JSON-lines log, whole or not at all."""
  files.write_bytes(path, ''.join(map(files.format_json_line, records)).encode())


def hash_file(path: epath.PathLike) -> str:
  """Hex digest of a file's bytes."""
  digest = hashlib.sha256()
  with epath.Path(path).open('rb') as file:
    while block := file.read(_HASH_BLOCK_BYTES):
      digest.update(block)
  return digest.hexdigest()


def open_run(
  workdir: epath.PathLike, config: dict[str, Any], free: Sequence[str] = ()
) -> epath.Path:
  """Makes the run directory, or enters the one that an earlier start of the same recipe made.

  Args:
    workdir: the directory.
    config: the resolved recipe as plain data.
    free: fields that may be others than there, beside those that say who is told of the run.

  Raises:
    InputError: the directory belongs to another recipe, or cannot be made.
  """
  workdir = epath.Path(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      f'a run in {workdir}', f'the directory cannot be made: {error}', 'give another --workdir'
    ) from None
  config = json.loads(json.dumps(files._to_plain(config)))
  path = workdir / CONFIG
  if not path.exists():
    files.write_json(path, config)
    return workdir
  old, new = (
    flatten(completed(one))
    for one in (files.read_object(path, f'the recipe of the run in {workdir}'), config)
  )
  # fields that an earlier version did not have, and not used
  off = {k for k in new.keys() - old.keys() if not new[k]}
  changed = sorted(
    k
    for k in (old.keys() | new.keys()).difference(off, _CHANGEABLE_FIELDS, free)
    if old.get(k, '(absent)') != new.get(k, '(absent)')
  )
  if changed:
    found = '; '.join(
      f'{k} is {old.get(k, "(absent)")!r} there and {new.get(k, "(absent)")!r} here'
      for k in changed[:6]
    )
    raise InputError(
      f'a run in {workdir}',
      f'it belongs to another recipe: {found}',
      'give another --workdir, or the recipe that the directory was made with',
    )
  return workdir


def flatten(tree: Any, prefix: str = '') -> dict[str, Any]:
  """Returns the leaves of nested dicts by their names with dots."""
  if not isinstance(tree, dict):
    return {prefix: tree}
  return {
    k: v
    for name, sub in tree.items()
    for k, v in flatten(sub, f'{prefix}.{name}' if prefix else name).items()
  }
