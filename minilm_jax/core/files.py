"""What others made, taken with care: a file is read at once only up to a size, and a folder names
only what is in it.

Text and tables stream (`data/readers.py`), bounded by line and by row; here is what must be in
memory whole.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from etils import epath

from minilm_jax.core import distributed, old_names, schema
from minilm_jax.core.errors import InputError

# Bytes of a file that is read at once. Well above the largest that is known to be of use, the 57 MB
# of FewRel's training file; and what JSON of this size can become in Python, some twenty times as
# much, is what a machine may have.
MAX_FILE_BYTES = 96 << 20
# Bytes of the items of a file that are kept one by one, rows of a task or words of a list: text
# grows little in Python.
MAX_CACHED_ITEMS = 40 * MAX_FILE_BYTES
_ITEM = 64  # bytes that an item takes besides its text, at least
_T = TypeVar('_T')


def read_limited(stream: io.BufferedIOBase, what: str) -> bytes:
  """All bytes of a stream, which may be what a small file decompresses to.

  Args:
    stream: from where it is.
    what: it is, for an error.

  Raises:
    InputError: more than `LARGEST`.
  """
  found = stream.read(MAX_FILE_BYTES + 1)
  if len(found) > MAX_FILE_BYTES:
    raise InputError(
      what,
      f'more than {MAX_FILE_BYTES:,} bytes, and it must be read at once',
      'give a smaller file; this is larger than any that is known to be of use',
    )
  return found


def cached(items: Iterable[_T], size: Callable[[_T], int], what: str) -> Iterator[_T]:
  """The items of a file of which all are kept.

  Args:
    items: as they are read.
    size: characters of one.
    what: they are, for an error.

  Raises:
    InputError: more than `KEPT` together.
  """
  total = 0
  for item in items:
    total += size(item) + _ITEM
    if total > MAX_CACHED_ITEMS:
      raise InputError(
        what,
        f'more than {MAX_CACHED_ITEMS:,} bytes of it, and all must be kept in memory',
        'give a part of it',
      )
    yield item


def read_bytes(path: epath.PathLike, what: str) -> bytes:
  """All bytes of a file.

  Raises:
    InputError: more than `LARGEST`.
    OSError: it cannot be read.
  """
  with epath.Path(path).open('rb') as stream:
    return read_limited(stream, what)


def resolve_inside(folder: epath.PathLike, name: Any, what: str) -> epath.Path:
  """The file or folder that a manifest in `folder` names, there or not; links are followed.

  Args:
    folder: may be a link itself.
    name: with `/` between its parts; of any type, as JSON has it.
    what: names it, for an error.

  Raises:
    InputError: the name is absolute, goes up, or is a link that leads out of the folder.
  """
  folder = epath.Path(folder)
  parts = re.split(r'[/\\]', name) if isinstance(name, str) else ['']
  plain = not {'', '.', '..'} & set(parts) and ':' not in parts[0] and '\0' not in name
  if plain and '://' not in str(folder):
    home = os.path.realpath(folder)
    plain = os.path.commonpath([home, os.path.realpath(folder / name)]) == home
  if not plain:
    raise InputError(
      what,
      f'no such file in the folder {folder}: {name!r:.200} leads elsewhere',
      'copy what it names into the folder, and name it so',
    )
  return folder / name


_HASH_BLOCK_BYTES = 1 << 20
_MAX_JSON_DEPTH = 64  # of JSON inside JSON; a recipe has three


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


def hash_file(path: epath.PathLike) -> str:
  """Hex digest of a file's bytes."""
  digest = hashlib.sha256()
  with epath.Path(path).open('rb') as file:
    while block := file.read(_HASH_BLOCK_BYTES):
      digest.update(block)
  return digest.hexdigest()
