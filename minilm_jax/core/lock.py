"""Locks the output directory of a command, so that one process at a time writes to it.

The file `.lock` in the directory identifies the process that holds the lock, the holder. Its
modification time is the heartbeat of the holder. Other processes are refused unless the holder is
dead. A holder on this host is dead if it has ended, or if its PID belongs to a later process. A
holder on another host or in another container is dead if it has missed its heartbeats. Locks of
the operating system are not used, because they do not work on every network file system.

Locks are not re-entrant: a second attempt by the same process fails too. A lock covers one
directory, not its subdirectories.
"""

import contextlib
import json
import os
import pathlib
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from minilm_jax.core import files, progress
from minilm_jax.core.errors import COUNT, MAYBE, NUMBER, TEXT, InputError, find_schema_fault

LOCK_FILE = '.lock'
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0  # without a heartbeat, a holder on another host counts as dead
_MAX_LOCK_BYTES = 4096  # lock files have about 200 bytes
_MAX_PROCESS, _MAX_TIME = 1 << 31, 1 << 35
_MAX_HOST_CHARS = 255
_NO_HOST_CHARACTER = re.compile(r'[^\w.:-]', re.ASCII)  # such as a terminal control character


class LockedError(InputError):
  """Another process holds the lock of the directory."""


_Holder = dict[str, Any]  # content of a lock file
_SCHEMA = {
  'host': TEXT,
  'process': COUNT,
  'id': TEXT,
  'since?': NUMBER,
  'started?': MAYBE,  # start in clock ticks, which distinguishes processes with equal PID
  'namespace?': MAYBE,  # that of the PID, which differs between containers on one host
}


@contextlib.contextmanager
def hold_lock(workdir: epath.PathLike) -> Iterator[Callable[[], None]]:
  """Holds the lock of a directory inside the block.

  The directory is created if necessary; a new directory that stays empty is removed.

  Yields:
    A function that raises LockedError or InputError as soon as the lock is lost, for long loops.

  Raises:
    LockedError: another process holds the lock, or has taken it over inside the block.
    InputError: the directory cannot be created or written to, or was deleted inside the block.
  """
  folder = epath.Path(workdir)
  path, is_over, errors = folder / LOCK_FILE, threading.Event(), []
  new_folders = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
  files.make_folder(folder, f'a run in {folder}')
  holder = {
    'host': _read_host(),
    'process': os.getpid(),
    'id': uuid.uuid4().hex,
    'since': time.time(),
    'started': _read_start(os.getpid()),
    'namespace': _read_namespace(),
  }
  _acquire(path, holder)
  heartbeat = threading.Thread(target=_beat, args=(path, holder, is_over, errors), daemon=True)
  heartbeat.start()

  def check() -> None:
    if errors:
      raise errors[0]

  try:
    yield check
  except OSError:
    # A write can find the deletion before the next heartbeat.
    if not folder.exists():
      raise _make_deletion_error(folder) from None
    raise
  finally:
    is_over.set()
    heartbeat.join()
    with contextlib.suppress(OSError):
      if (current := _read(path)) and current['id'] == holder['id']:
        path.unlink(missing_ok=True)
      for new_folder in new_folders:
        os.rmdir(new_folder)  # raises OSError unless the folder is empty
  check()


def remove_stale_lock(workdir: epath.PathLike) -> None:
  """Removes the lock of a dead process from a finished directory; ignores write errors."""
  path = epath.Path(workdir) / LOCK_FILE
  with contextlib.suppress(OSError):
    if path.exists() and _is_dead(path, holder := _read(path)):
      _remove(path, holder)


def _read_host() -> str:
  """Returns the name of this host, with underscores for characters that a lock cannot have."""
  return _NO_HOST_CHARACTER.sub('_', socket.gethostname())[:_MAX_HOST_CHARS] or '_'


def _read_start(process: int) -> int | None:
  """Returns the start of a process in clock ticks since boot, or None without /proc."""
  try:
    stat = pathlib.Path(f'/proc/{process}/stat').read_bytes()
    return int(stat.rpartition(b')')[2].split()[19])  # field 22; field 2 is a name in parentheses
  except (OSError, ValueError, IndexError):
    return None


def _read_namespace() -> int | None:
  """Returns the number of the PID namespace of this process, or None without /proc."""
  try:
    return os.stat('/proc/self/ns/pid').st_ino
  except OSError:
    return None


def _acquire(path: epath.Path, holder: _Holder) -> None:
  """Writes the lock of this process; removes the lock of a dead process first."""
  try:
    if path.exists():
      current = _read(path)
      if not _is_dead(path, current):
        raise _make_error(path, current)
      _remove(path, current)
    _write(path, holder)
    current = _read(path)
  except OSError as error:
    raise InputError(
      f'a run in {path.parent}', f'a write error: {error}', 'give another --workdir'
    ) from None
  if current is None or current['id'] != holder['id']:
    raise _make_error(path, current)


def _remove(path: epath.Path, dead: _Holder | None) -> None:
  """Removes the lock of a dead process, with an exclusive file against concurrent removals."""
  if '://' in str(path):
    path.unlink(missing_ok=True)
    return
  clearing = path.parent / f'{LOCK_FILE}-clearing'
  with contextlib.suppress(FileNotFoundError):
    # A process that was killed leaves this file.
    if time.time() - files.read_status(clearing).changed_at > STALE_SECONDS:
      clearing.unlink()
  with contextlib.suppress(FileExistsError):  # another process removes the lock
    open(clearing, 'x', encoding='utf-8').close()
    try:
      if _read(path) == dead:
        path.unlink(missing_ok=True)
    finally:
      clearing.unlink(missing_ok=True)


def _write(path: epath.Path, holder: _Holder) -> None:
  """Creates the lock file, unless another process has created it first."""
  text = json.dumps(holder)
  if '://' in str(path):  # object stores have no exclusive creation: the last writer wins
    path.write_text(text)
    return
  try:
    with contextlib.suppress(FileExistsError), open(path, 'x', encoding='utf-8') as file:
      file.write(text)
  except OSError:  # on a full disk, an empty lock would refuse all processes until it is stale
    path.unlink(missing_ok=True)
    raise


def _make_error(path: epath.Path, holder: _Holder | None) -> LockedError:
  text, wait = 'a lock of another process', HEARTBEAT_SECONDS
  if holder:
    text, wait = f'a lock of process {holder["process"]} on {holder["host"]}', STALE_SECONDS
    if holder.get('since'):
      since = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(holder['since']))
      text += f' since {since} (local time)'
  return LockedError(
    f'the run in {path.parent}',
    text,
    f'wait for the process; if it crashed, the lock expires {wait:.0f} s after its last heartbeat',
  )


def _make_deletion_error(folder: epath.Path) -> InputError:
  return InputError(
    f'the run in {folder}',
    'the directory was deleted during the run',
    'restart the command, and keep its directory',
  )


def _beat(
  path: epath.Path, holder: _Holder, is_over: threading.Event, errors: list[InputError]
) -> None:
  """Renews the lock until the block is over; logs and stores an error if the lock is lost."""
  while not is_over.wait(HEARTBEAT_SECONDS):
    with contextlib.suppress(OSError):  # the next heartbeat may succeed
      if not path.parent.exists():
        errors.append(_make_deletion_error(path.parent))
      elif not path.exists():
        _write(path, holder)
      elif (current := _read(path)) and current['id'] != holder['id']:
        errors.append(_make_error(path, current))
      elif '://' in str(path):
        _write(path, holder)
      else:
        os.utime(path)  # leaves the content, so that readers never see a partial file
    if errors:
      progress.log(str(errors[0]))
      return


def _read(path: epath.Path) -> _Holder | None:
  """Returns the holder of a lock, or None if the file is missing, incomplete or invalid."""
  try:
    with path.open('rb') as file:
      record = files.parse_json(file.read(_MAX_LOCK_BYTES))
  except (FileNotFoundError, IsADirectoryError, ValueError):
    return None
  if find_schema_fault(record, _SCHEMA):
    return None
  host, process = record['host'], record['process']
  has_host = 0 < len(host) <= _MAX_HOST_CHARS and not _NO_HOST_CHARACTER.search(host)
  is_valid = has_host and 0 < process < _MAX_PROCESS
  return record if is_valid and 0 <= (record.get('since') or 0) < _MAX_TIME else None


def _is_dead(path: epath.Path, holder: _Holder | None) -> bool:
  """Returns whether the holder has ended, or has missed its heartbeats out of reach of this process.

  A process that runs on this host counts as alive without heartbeats, because it can be suspended.
  """
  places = None, _read_namespace()  # a lock of an earlier version has no namespace
  if holder and holder['host'] == _read_host() and holder.get('namespace') in places:
    try:
      os.kill(holder['process'], 0)
    except ProcessLookupError:
      return True
    except PermissionError:  # the process runs as another user
      pass
    started, known = _read_start(holder['process']), holder.get('started')
    if started is not None and known is not None:
      return started != known
  try:
    silent_seconds = time.time() - files.read_status(path).changed_at
  except FileNotFoundError:  # the holder has removed the lock
    return True
  return silent_seconds > (STALE_SECONDS if holder else HEARTBEAT_SECONDS)
