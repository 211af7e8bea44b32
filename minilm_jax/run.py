"""The run directory: config.json, manifest.json, metrics.jsonl, scores.jsonl, predictions.jsonl, result.json.

Files appear whole: they are written under a temporary name and renamed. Lines of a log are appended one at a time, and
a reader ignores a last line that a crash cut short. Paths are `etils.epath`, so `gs://` works like a local path. Of
several processes that train together the first writes.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from minilm_jax import hosts
from minilm_jax.errors import InputError

CONFIG, MANIFEST, RESULT = 'config.json', 'manifest.json', 'result.json'
FAILURE, WORDS = 'failure.json', 'words.json'  # of a point of a sweep: why it failed; what its words cost
METRICS, SCORES, PREDICTIONS = 'metrics.jsonl', 'scores.jsonl', 'predictions.jsonl'
_BLOCK = 1 << 20


def write_bytes(path: epath.PathLike, data: bytes) -> None:
  """Writes a file that is either whole or absent.

  Raises:
    InputError: this is one of the processes that leave writing to the first, and does not see what that one wrote.
  """
  path = epath.Path(path)
  if not hosts.leads():
    if not path.exists():
      raise InputError(f'the file {path}', 'process 0 wrote it, and it is not here',
                       'give a --workdir that all hosts share')
    return
  temporary = path.parent / f'.{path.name}.partial'
  temporary.write_bytes(data)
  temporary.replace(path)


def _plain(value: Any) -> Any:
  """JSON has no NaN or infinity: what is not a number becomes null."""
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  if hasattr(value, 'item'):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def write_json(path: epath.PathLike, value: Any) -> None:
  """Writes indented JSON, whole or not at all."""
  write_bytes(path, (json.dumps(_plain(value), indent=2, ensure_ascii=False) + '\n').encode())


def read_json(path: epath.PathLike, what: str) -> Any:
  """Reads JSON; `what` says in an error what the file is for."""
  path = epath.Path(path)
  try:
    return json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError):
    raise InputError(what, f'no file {path}', 'check the path, or make it first') from None
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise InputError(what, f'{path} is not JSON: {error}', 'restore the file or make it again') from None


def append_line(path: epath.PathLike, record: dict[str, Any]) -> None:
  """Appends one JSON line, if this process is the one that writes."""
  if not hosts.leads():
    return
  with epath.Path(path).open('a') as file:
    file.write(json.dumps(_plain(record), ensure_ascii=False) + '\n')


def read_lines(path: epath.PathLike) -> Iterator[dict[str, Any]]:
  """The records of a JSON-lines log; a last line that was cut short is left out. No file, no records.

  Raises:
    InputError: a line in the middle is not JSON.
  """
  path = epath.Path(path)
  if not path.exists():
    return
  lines = path.read_bytes().split(b'\n')
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      yield json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
      if number == len(lines):  # no newline after it: the write was interrupted
        return
      raise InputError(f'the log {path}', f'line {number} is not JSON: {error}', 'remove that line') from None


def keep_lines(path: epath.PathLike, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
  """Cuts a log down to the wanted records, which is what a run that goes on does with what came after its last save."""
  kept = [record for record in read_lines(path) if wanted(record)]
  write_lines(path, kept)
  return kept


def write_lines(path: epath.PathLike, records: Sequence[dict[str, Any]]) -> None:
  """Writes a JSON-lines log, whole or not at all."""
  write_bytes(path, ''.join(json.dumps(_plain(r), ensure_ascii=False) + '\n' for r in records).encode())


def sha256(path: epath.PathLike) -> str:
  """Hex digest of a file's bytes."""
  digest = hashlib.sha256()
  with epath.Path(path).open('rb') as file:
    while block := file.read(_BLOCK):
      digest.update(block)
  return digest.hexdigest()


def open_run(workdir: epath.PathLike, config: dict[str, Any]) -> epath.Path:
  """Makes the run directory, or enters the one that an earlier start of the same recipe made.

  Args:
    workdir: the directory.
    config: the resolved recipe as plain data.

  Raises:
    InputError: the directory belongs to another recipe, or cannot be made.
  """
  workdir = epath.Path(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f'a run in {workdir}', f'the directory cannot be made: {error}',
                     'give another --workdir') from None
  config = json.loads(json.dumps(_plain(config)))
  path = workdir / CONFIG
  if not path.exists():
    write_json(path, config)
    return workdir
  old, new = _flat(read_json(path, f'the recipe of the run in {workdir}')), _flat(config)
  changed = sorted(k for k in old.keys() | new.keys() if old.get(k, '(absent)') != new.get(k, '(absent)'))
  if changed:
    found = '; '.join(f'{k} is {old.get(k, "(absent)")!r} there and {new.get(k, "(absent)")!r} here'
                      for k in changed[:6])
    raise InputError(f'a run in {workdir}', f'it belongs to another recipe: {found}',
                     'give another --workdir, or the recipe that the directory was made with')
  return workdir


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {prefix: tree}
  return {k: v for name, sub in tree.items() for k, v in _flat(sub, f'{prefix}.{name}' if prefix else name).items()}
