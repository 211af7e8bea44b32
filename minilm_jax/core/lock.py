"""A lock on the directory that a command writes to: one process at a time.

The process that works in a directory holds the file `.lock` there, which identifies it and whose
time is its heartbeat. Another process is refused, or takes the lock over if its holder is dead: it
has ended, its number belongs to another program now, or it ran elsewhere and missed its heartbeats.
Locks of the file system are not used: they do not work on every network file system.

Locks are not re-entrant: a second attempt by the same process fails too. A lock covers one
directory, not the folders inside it.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from etils import epath

from minilm_jax.core import files, progress, schema
from minilm_jax.core.errors import InputError
from minilm_jax.core.schema import COUNT, MAYBE, NUMBER, TEXT

LOCK_FILE = '.lock'
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0  # without a heartbeat, after which a holder elsewhere counts as dead
_MAX_LOCK_BYTES = 4096  # a lock has about 200
_MAX_PROCESS, _MAX_TIME = 1 << 31, 1 << 35
_HOST = re.compile(r'[\w.:-]{1,255}', re.ASCII)  # printed in errors: must not steer a terminal


class LockedError(InputError):
  """Another process works in the directory."""


@dataclasses.dataclass(frozen=True)
class _Holder:
  """The content of a lock file; `started` tells a process from a later one of its number."""

  host: str
  process: int
  id: str
  since: float | None = None  # seconds since the epoch
  started: int | None = None


_FIELDS = {field.name for field in dataclasses.fields(_Holder)}
_SCHEMA = {'host': TEXT, 'process': COUNT, 'id': TEXT, 'since?': NUMBER, 'started?': MAYBE}


@contextlib.contextmanager
def hold_lock(workdir: epath.PathLike) -> Iterator[Callable[[], None]]:
  """Holds the lock of a directory inside the block; creates the directory, removes it if empty.

  Yields:
    A function that raises what the end of the block would raise, for long loops.

  Raises:
    LockedError: another process holds the lock; or, at the end of the block, has taken it over.
    InputError: the directory cannot be made or written to, or was deleted inside the block.
  """
  folder = epath.Path(workdir)
  path, is_over, errors = folder / LOCK_FILE, threading.Event(), []
  new_folders = _missing_folders(folder)
  files.make_folder(folder, f'a run in {folder}')
  holder = _Holder(
    socket.gethostname(), os.getpid(), uuid.uuid4().hex, time.time(), _started(os.getpid())
  )
  _take(path, holder)
  heartbeat = threading.Thread(target=_beat, args=(path, holder, is_over, errors), daemon=True)
  heartbeat.start()

  def check() -> None:
    if errors:
      raise errors[0]

  try:
    yield check
  finally:
    is_over.set()
    heartbeat.join()
    with contextlib.suppress(OSError):
      if (current := _read(path)) and current.id == holder.id:
        path.unlink(missing_ok=True)
      for new_folder in new_folders:
        os.rmdir(new_folder)  # fails unless it is empty
  check()


def remove_stale_lock(workdir: epath.PathLike) -> None:
  """Removes the lock of a dead process from a finished directory, if that may be written to."""
  path = epath.Path(workdir) / LOCK_FILE
  with contextlib.suppress(OSError):
    if path.exists() and _is_dead(path, holder := _read(path)):
      _remove(path, holder)


def _missing_folders(folder: epath.Path) -> list[epath.Path]:
  """Returns a local folder and those above it that do not exist, the innermost first."""
  if '://' in str(folder):
    return []
  return [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def _started(process: int) -> int | None:
  """Returns the start of a process in ticks since the boot, None without /proc."""
  try:
    stat = pathlib.Path(f'/proc/{process}/stat').read_bytes()
    return int(stat.rpartition(b')')[2].split()[19])  # field 22; field 2, a name, holds any bytes
  except (OSError, ValueError, IndexError):
    return None


def _take(path: epath.Path, holder: _Holder) -> None:
  """Writes the lock of this process, after that of a dead one is removed."""
  try:
    if path.exists():
      current = _read(path)
      if not _is_dead(path, current):
        raise _refusal(path, current)
      _remove(path, current)
    _write(path, holder)
    current = _read(path)
  except OSError as error:
    raise InputError(
      f'a run in {path.parent}', f'it cannot be written to: {error}', 'give another --workdir'
    ) from None
  if current is None or current.id != holder.id:
    raise _refusal(path, current)


def _remove(path: epath.Path, dead: _Holder | None) -> None:
  """Removes a dead lock, one process at a time: none of several removes the lock of the next."""
  if '://' in str(path):
    path.unlink(missing_ok=True)
    return
  clearing = path.parent / f'{LOCK_FILE}-clearing'
  with contextlib.suppress(FileNotFoundError):
    if time.time() - clearing.stat().mtime > STALE_SECONDS:  # its process was killed right here
      clearing.unlink()
  with contextlib.suppress(FileExistsError):  # another process removes the lock
    open(clearing, 'x', encoding='utf-8').close()
    try:
      if _read(path) == dead:
        path.unlink(missing_ok=True)
    finally:
      clearing.unlink(missing_ok=True)


def _write(path: epath.Path, holder: _Holder) -> None:
  """Creates the lock file, or leaves the one that another process created first."""
  text = json.dumps(dataclasses.asdict(holder))
  if '://' in str(path):  # object stores cannot create exclusively: the last writer holds the lock
    path.write_text(text)
    return
  try:
    with contextlib.suppress(FileExistsError), open(path, 'x', encoding='utf-8') as file:
      file.write(text)
  except OSError:  # on a full disk an empty lock would refuse everybody for a while
    path.unlink(missing_ok=True)
    raise


def _refusal(path: epath.Path, holder: _Holder | None) -> LockedError:
  text, wait = 'another process is at work there', HEARTBEAT_SECONDS
  if holder:
    text, wait = f'process {holder.process} on {holder.host} is at work there', STALE_SECONDS
    if holder.since:
      since = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(holder.since))
      text += f' since {since}, local time'
  return LockedError(
    f'the run in {path.parent}',
    text,
    f'wait until it ends; if it was killed, the lock expires {wait:.0f} s after its last heartbeat',
  )


def _beat(
  path: epath.Path, holder: _Holder, is_over: threading.Event, errors: list[InputError]
) -> None:
  """Renews the lock until the block is over; logs and stores the error when the lock is lost."""
  while not is_over.wait(HEARTBEAT_SECONDS):
    with contextlib.suppress(OSError):  # the next heartbeat may succeed
      if not path.parent.exists():
        errors.append(
          InputError(
            f'the run in {path.parent}',
            'the directory was deleted under it',
            'start again in a directory that stays',
          )
        )
      elif not path.exists():
        _write(path, holder)
      elif (current := _read(path)) and current.id != holder.id:
        errors.append(_refusal(path, current))
      elif '://' in str(path):
        _write(path, holder)
      else:
        os.utime(path)  # the bytes stay: a reader never sees half of them
    if errors:
      progress.log(str(errors[0]))
      return


def _read(path: epath.Path) -> _Holder | None:
  """Returns the holder of a lock, None if its file is missing, half written or invalid."""
  try:
    with path.open('rb') as file:
      record = files.parse_json(file.read(_MAX_LOCK_BYTES))
  except (FileNotFoundError, IsADirectoryError, ValueError):
    return None
  if schema.find_schema_fault(record, _SCHEMA):
    return None
  holder = _Holder(**{name: record[name] for name in _FIELDS if name in record})
  is_valid = _HOST.fullmatch(holder.host) and 0 < holder.process < _MAX_PROCESS
  return holder if is_valid and 0 <= (holder.since or 0) < _MAX_TIME else None


def _is_dead(path: epath.Path, holder: _Holder | None) -> bool:
  """Returns whether the holder has ended or, if that cannot be known here, was silent for long.

  A running process is alive however silent it is: it may have been stopped, and continue.
  """
  if holder and holder.host == socket.gethostname():
    try:
      os.kill(holder.process, 0)
    except ProcessLookupError:
      return True
    except PermissionError:  # it runs, as another user
      pass
    started = _started(holder.process)
    if started is not None and holder.started is not None:
      return started != holder.started
  try:
    silent_seconds = time.time() - path.stat().mtime
  except FileNotFoundError:  # it has just ended
    return True
  return silent_seconds > (STALE_SECONDS if holder else HEARTBEAT_SECONDS)
