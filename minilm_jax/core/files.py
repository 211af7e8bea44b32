"""Files that appear whole, JSON, and reads that are bounded.

A file is written under a temporary name and renamed. A file that must be in memory as a whole is
read up to a size limit, and a manifest names only files of its own folder. Text and tables are
streamed (`data/readers.py`). Paths are `etils.epath`: `gs://` works like a local path.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, TypeVar

from etils import epath

from minilm_jax.core import distributed, old_names, schema
from minilm_jax.core.errors import InputError

# Well above the largest file of known use, the 57 MB of FewRel's training file. JSON of this size
# can take twenty times as much in Python, which a machine may have.
MAX_FILE_BYTES = 96 << 20
# For rows of a task or words of a list, which grow little in Python.
MAX_CACHED_BYTES = 40 * MAX_FILE_BYTES
_MIN_ITEM_BYTES = 64  # that an item takes besides its text
_HASH_BLOCK_BYTES = 1 << 20
_MAX_JSON_DEPTH = 64  # a recipe has three levels
_T = TypeVar('_T')


def read_limited(stream: io.BufferedIOBase | IO[bytes], what: str) -> bytes:
  """Returns all bytes of a stream, such as a decompressed file.

  Args:
    stream: where reading starts.
    what: names the stream in an error.

  Raises:
    InputError: more than `MAX_FILE_BYTES`.
  """
  data = stream.read(MAX_FILE_BYTES + 1)
  if len(data) > MAX_FILE_BYTES:
    raise InputError(
      what,
      f'more than {MAX_FILE_BYTES:,} bytes, and it must be read at once',
      'give a smaller file; this is larger than any that is known to be of use',
    )
  return data


def limit_items(items: Iterable[_T], size: Callable[[_T], int], what: str) -> Iterator[_T]:
  """Yields the items of a file that the caller keeps in memory.

  Args:
    items: items as they are read.
    size: characters of an item.
    what: names the file in an error.

  Raises:
    InputError: more than `MAX_CACHED_BYTES` together.
  """
  total = 0
  for item in items:
    total += size(item) + _MIN_ITEM_BYTES
    if total > MAX_CACHED_BYTES:
      raise InputError(
        what,
        f'more than {MAX_CACHED_BYTES:,} bytes of it, and all must be kept in memory',
        'give a part of it',
      )
    yield item


def read_bytes(path: epath.PathLike, what: str) -> bytes:
  """Returns all bytes of a file.

  Raises:
    InputError: more than `MAX_FILE_BYTES`.
    OSError: the file cannot be read.
  """
  with epath.Path(path).open('rb') as stream:
    return read_limited(stream, what)


def resolve_inside(folder: epath.PathLike, name: Any, what: str) -> epath.Path:
  """Returns the path that a manifest in `folder` names, which need not exist; follows links.

  Args:
    folder: the folder, which may be a link itself.
    name: parts with `/` between; of any type, as JSON has it.
    what: names the path in an error.

  Raises:
    InputError: the name is absolute, goes up, or is a link that leads out of the folder.
  """
  folder = epath.Path(folder)
  parts = re.split(r'[/\\]', name) if isinstance(name, str) else ['']
  is_inside = not {'', '.', '..'} & set(parts) and ':' not in parts[0] and '\0' not in name
  if is_inside and '://' not in str(folder):
    home = os.path.realpath(folder)
    is_inside = os.path.commonpath([home, os.path.realpath(folder / name)]) == home
  if not is_inside:
    raise InputError(
      what,
      f'no such file in the folder {folder}: {name!r:.200} leads elsewhere',
      'copy what it names into the folder, and name it so',
    )
  return folder / name


def make_folder(folder: epath.PathLike, asked: str) -> None:
  """Creates a folder and those above it; raises InputError where that fails."""
  try:
    epath.Path(folder).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      asked, f'the directory cannot be made: {error}', 'give another --workdir'
    ) from None


def write_bytes(path: epath.PathLike, data: bytes) -> None:
  """Writes a file atomically; on a local disk also with respect to a power failure.

  Process 0 of a multi-process run writes; the others check that they see its file.

  Raises:
    OSError: the file cannot be written; an earlier file of this name is unchanged.
    InputError: this process does not see the file of process 0.
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
  is_written = False
  try:
    with temporary.open('wb') as file:
      file.write(data)
      file.flush()
      if '://' not in str(path):
        os.fsync(file.fileno())  # else the new name may reach the disk before the bytes
    temporary.replace(path)
    is_written = True
  finally:
    if not is_written:  # on a full disk it would take the remaining space
      with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def write_json(path: epath.PathLike, value: Any) -> None:
  """Writes indented JSON atomically."""
  write_bytes(path, (json.dumps(_to_plain(value), indent=2, ensure_ascii=False) + '\n').encode())


def format_json_line(record: Mapping[str, Any]) -> str:
  """Returns a record as a line of JSON."""
  return json.dumps(_to_plain(record), ensure_ascii=False) + '\n'


def _to_plain(value: Any) -> Any:
  """Returns a value as JSON has it: Python numbers, and null for NaN and infinity."""
  if isinstance(value, Mapping):
    return {name: _to_plain(inner) for name, inner in value.items()}
  if isinstance(value, (list, tuple)):
    return [_to_plain(inner) for inner in value]
  if hasattr(value, 'item'):
    value = value.item()
  return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: epath.PathLike, what: str) -> Any:
  """Returns the value of a JSON file, under the names of today (`old_names`).

  Args:
    path: the file.
    what: names the purpose of the file in an error.

  Raises:
    InputError: the file is missing, cannot be read, is too large, or is not JSON in UTF-8 of at
      most 64 levels.
  """
  path = epath.Path(path)
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
    raise InputError(
      what, f'{path} is not JSON: {error}', 'restore the file or make it again'
    ) from None


def read_object(
  path: epath.PathLike, what: str, form: schema.Schema | None = None
) -> dict[str, Any]:
  """Returns the JSON object of a file, checked against a schema.

  Raises:
    InputError: as `read_json`; or a field is missing or has another type.
  """
  record = read_json(path, what)
  if fault := schema.find_schema_fault(record, form or {}):
    raise InputError(what, f'{path}: {fault}', 'restore the file or make it again')
  return record


def parse_json(raw: bytes) -> Any:
  """Returns the value of JSON; raises ValueError for anything that `_to_plain` does not write."""
  try:
    value = json.loads(raw.decode(), parse_constant=_refuse_constant)
    _check_depth(value, _MAX_JSON_DEPTH)
  except RecursionError:
    raise ValueError('nested too deep') from None
  return value


def _refuse_constant(name: str) -> None:
  raise ValueError(f'{name} is no number there')


def _check_depth(value: Any, levels: int) -> None:
  """Raises ValueError where recursive functions could not walk the value."""
  if not levels:
    raise ValueError(f'nested more than {_MAX_JSON_DEPTH} levels deep')
  if isinstance(value, (dict, list)):
    for inner in value.values() if isinstance(value, dict) else value:
      _check_depth(inner, levels - 1)


def hash_file(path: epath.PathLike) -> str:
  """Returns the SHA-256 of the bytes of a file as hexadecimal digits."""
  digest = hashlib.sha256()
  with epath.Path(path).open('rb') as file:
    while block := file.read(_HASH_BLOCK_BYTES):
      digest.update(block)
  return digest.hexdigest()
