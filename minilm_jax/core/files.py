"""Atomic writes, JSON, and safe reads of untrusted files.

A file is written under a temporary name and renamed. Reads into memory have a size limit, and paths
in a manifest must stay inside its folder. Text and tables are streamed (`data/readers.py`). Paths
are `etils.epath`: `gs://` works like a local path.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, TypeVar

from etils import epath

from minilm_jax.core import distributed, old_names
from minilm_jax.core.errors import InputError, Schema, find_schema_fault, to_json_types

# The largest useful file is the training file of FewRel, 57 MB. Parsed JSON can take twenty times
# the size of its file in memory.
MAX_FILE_BYTES = 96 << 20
# Limit for rows of a task or words of a list, which take little more memory than their text.
MAX_CACHED_BYTES = 40 * MAX_FILE_BYTES
_MIN_ITEM_BYTES = 64  # overhead of a Python object besides its text
_HASH_BLOCK_BYTES = 1 << 20
_MAX_JSON_DEPTH = 64  # recipes have three levels
_T = TypeVar('_T')


def read_limited(stream: io.BufferedIOBase | IO[bytes], subject: str) -> bytes:
  """Returns the remaining bytes of a stream, such as a decompressed file.

  Raises:
    InputError: the stream has more than `MAX_FILE_BYTES`.
  """
  data = stream.read(MAX_FILE_BYTES + 1)
  if len(data) > MAX_FILE_BYTES:
    raise InputError(
      subject, f'more than {MAX_FILE_BYTES:,} bytes, the limit of a read', 'give a smaller file'
    )
  return data


def limit_items(items: Iterable[_T], size: Callable[[_T], int], subject: str) -> Iterator[_T]:
  """Yields the items of a file up to a limit, for callers that keep all items in memory.

  Raises:
    InputError: the items have more than `MAX_CACHED_BYTES` together.
  """
  total = 0
  for item in items:
    total += size(item) + _MIN_ITEM_BYTES
    if total > MAX_CACHED_BYTES:
      raise InputError(
        subject,
        f'more than {MAX_CACHED_BYTES:,} bytes, the limit of data in memory',
        'give a part of the file',
      )
    yield item


def read_bytes(
  path: epath.PathLike, subject: str, remedy: str = 'check the path, or create the file'
) -> bytes:
  """Returns all bytes of a file.

  Args:
    remedy: remedy for a missing file.

  Raises:
    InputError: the file is missing, unreadable, or has more than `MAX_FILE_BYTES`.
  """
  try:
    with epath.Path(path).open('rb') as stream:
      return read_limited(stream, subject)
  except (FileNotFoundError, NotADirectoryError):
    raise InputError(subject, f'no file {path}', remedy) from None
  except OSError as error:
    raise InputError(
      subject, f'{path} cannot be read: {error}', 'check the path and its permissions'
    ) from None


def resolve_inside(folder: epath.PathLike, name: Any, subject: str) -> epath.Path:
  """Returns the path of a name in a manifest, which must stay inside `folder`.

  The path need not exist. Links are followed.

  Args:
    name: relative path with `/`; a value of another type is refused.

  Raises:
    InputError: the name is absolute, has a part `..`, or is a link to another folder.
  """
  folder = epath.Path(folder)
  parts = re.split(r'[/\\]', name) if isinstance(name, str) else ['']
  is_inside = not {'', '.', '..'} & set(parts) and ':' not in parts[0] and '\0' not in name
  if is_inside and '://' not in str(folder):
    root = os.path.realpath(folder)
    is_inside = os.path.commonpath([root, os.path.realpath(folder / name)]) == root
  if not is_inside:
    raise InputError(
      subject,
      f'the path {name!r:.200}, which is outside of {folder}',
      f'copy the file into {folder} and correct its name',
    )
  return folder / name


def make_folder(folder: epath.PathLike, subject: str) -> None:
  """Creates a folder and its parents; raises InputError if that fails."""
  try:
    epath.Path(folder).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      subject, f'the directory cannot be created: {error}', 'give another --workdir'
    ) from None


@contextlib.contextmanager
def open_atomic(path: epath.Path, suffix: str = 'partial') -> Iterator[IO[bytes]]:
  """Yields a file that gets its name when it is complete.

  On a local disk, the file survives a power failure. Writers of one path need different suffixes of
  the temporary name.

  Raises:
    OSError: the file cannot be written; an existing file is unchanged.
  """
  temporary, is_written = path.parent / f'.{path.name}.{suffix}', False
  try:
    with temporary.open('wb') as file:
      yield file
      file.flush()
      if '://' not in str(path):
        os.fsync(file.fileno())  # otherwise the disk can store the new name before the bytes
    temporary.replace(path)
    is_written = True
  finally:
    if not is_written:  # a partial file would occupy a full disk
      with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def append_bytes(path: epath.PathLike, data: bytes) -> None:
  """Appends to a file. A file in an object store, which cannot grow, is written again."""
  path, mode = epath.Path(path), 'ab'
  if '://' in str(path):
    data, mode = (path.read_bytes() if path.exists() else b'') + data, 'wb'
  with path.open(mode) as file:
    file.write(data)


def write_bytes(path: epath.PathLike, data: bytes) -> None:
  """Writes a file as `open_atomic`.

  Only process 0 of a multi-process run writes. Other processes check that the file is visible.

  Raises:
    OSError: the file cannot be written; an existing file is unchanged.
    InputError: the file of process 0 is not visible in this process.
  """
  path = epath.Path(path)
  if distributed.is_primary():
    with open_atomic(path) as file:
      file.write(data)
  elif not path.exists():
    raise InputError(
      f'the file {path}',
      'no such file on this host, although process 0 wrote it',
      'give a --workdir that all hosts share',
    )


def write_json(path: epath.PathLike, value: Any) -> None:
  """Writes indented JSON atomically."""
  write_bytes(
    path, (json.dumps(to_json_types(value), indent=2, ensure_ascii=False) + '\n').encode()
  )


def format_json_line(record: Mapping[str, Any]) -> str:
  """Returns a record as a line of JSON."""
  return json.dumps(to_json_types(record), ensure_ascii=False) + '\n'


def read_json(path: epath.PathLike, subject: str) -> Any:
  """Returns the value of a JSON file, with current field names (`old_names`).

  Raises:
    InputError: the file is missing, unreadable, too large, or not UTF-8 JSON of at most 64 levels.
  """
  path = epath.Path(path)
  raw = read_bytes(path, subject)
  try:
    return old_names.rename_record(path.name, parse_json(raw))
  except ValueError as error:
    raise InputError(
      subject, f'{path} is not JSON: {error}', 'restore the file or create it again'
    ) from None


def read_object(path: epath.PathLike, subject: str, form: Schema | None = None) -> dict[str, Any]:
  """Returns the JSON object of a file, validated against a schema.

  Raises:
    InputError: the file is not readable JSON, or a field is missing or has another type.
  """
  record = read_json(path, subject)
  if fault := find_schema_fault(record, form or {}):
    raise InputError(subject, f'{path}: {fault}', 'restore the file or create it again')
  return record


def parse_json(raw: bytes) -> Any:
  """Returns the value of UTF-8 JSON; raises ValueError for NaN, infinity and deep nesting."""
  try:
    value = json.loads(raw.decode(), parse_constant=_refuse_constant)
    _check_depth(value, _MAX_JSON_DEPTH)
  except RecursionError:
    raise ValueError('too many levels') from None
  return value


def _refuse_constant(name: str) -> None:
  raise ValueError(f'the number {name}')


def _check_depth(value: Any, levels: int) -> None:
  """Raises ValueError for a value that is too deep for recursive functions."""
  if not levels:
    raise ValueError(f'more than {_MAX_JSON_DEPTH} levels')
  if isinstance(value, (dict, list)):
    for inner in value.values() if isinstance(value, dict) else value:
      _check_depth(inner, levels - 1)


@dataclasses.dataclass(frozen=True)
class FileStatus:
  """Size of a file in bytes, and the time of its last change in seconds since 1970."""

  size: int
  changed_at: float


def read_status(path: epath.PathLike) -> FileStatus:
  """Returns the status of a file or folder.

  On a local disk, the status of epath would include the name of the owner. That status fails for
  an owner without a name, as in a container or on a network file system.

  Raises:
    OSError: there is no such file, or it cannot be read.
  """
  if '://' in os.fspath(path):
    status = epath.Path(path).stat()
    return FileStatus(status.length, status.mtime)
  local = os.stat(path)
  return FileStatus(local.st_size, int(local.st_mtime))


def hash_file(path: epath.PathLike) -> str:
  """Returns the SHA-256 of the bytes of a file as hexadecimal digits."""
  digest = hashlib.sha256()
  with epath.Path(path).open('rb') as file:
    while block := file.read(_HASH_BLOCK_BYTES):
      digest.update(block)
  return digest.hexdigest()
