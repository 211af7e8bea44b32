"""One process at a time in a directory that a verb writes to.

A process that works in a directory holds a file there, `.lock`, that says who it is, and gives a
sign of life every few seconds. Another one finds the file and leaves, or takes the claim over when
its holder is dead: it has ended, its number now belongs to another program, or it ran elsewhere and
has been silent for a while. Locks of the file system itself are left out: they do not work over
every network file system.

Whoever writes files into a directory holds that directory and no other: a folder inside it has a
claim of its own, and the steps of a longer verb hold the folders of their own. So none holds a
directory and calls what holds the same one, there is nothing to count, and a second hold by the
same process is refused like anyone's.
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

from minilm_jax.core import progress
from minilm_jax.core.errors import InputError

LOCK_FILE = '.lock'
HEARTBEAT_SECONDS = 10.0  # seconds between two signs of life
STALE_SECONDS = 120.0  # seconds without one, after which a holder elsewhere counts as dead
_MAX_LOCK_BYTES = 4096  # bytes; a claim has some two hundred
# what is shown in an error must not steer a terminal
_HOST = re.compile(r'[\w.:-]{1,255}', re.ASCII)


class LockedError(InputError):
  """Another process works in the directory."""


@contextlib.contextmanager
def hold_lock(workdir: epath.PathLike) -> Iterator[Callable[[], None]]:
  """Holds a directory as long as the block runs; makes it where it is missing, and not if nothing
  came into it.

  Gives a function that raises what the end of the block would, for a loop that is not to go on when
  it has lost it.

  Raises:
    Held: another process holds it or, at the end of the block, has taken it: what was written since
      is not alone.
    InputError: the directory cannot be made or written to, or was deleted while the block ran.
  """
  folder = epath.Path(workdir)
  path, over, lost = folder / LOCK_FILE, threading.Event(), []
  made = _make(folder)
  mine = {**_identity(), 'since': time.time(), 'id': uuid.uuid4().hex}
  _take(path, mine)
  renewing = threading.Thread(target=_renew, args=(path, mine, over, lost), daemon=True)
  renewing.start()

  def check() -> None:
    if lost:
      raise lost[0]

  try:
    yield check
  finally:
    over.set()
    renewing.join()
    with contextlib.suppress(OSError):
      if _owner(path) == mine['id']:
        path.unlink(missing_ok=True)
      for one in made:
        os.rmdir(one)  # only where it is empty
  check()


def remove_stale_lock(workdir: epath.PathLike) -> None:
  """Removes the claim of a dead process from a finished directory; leaves one that may only be read
  as it is.
  """
  path = epath.Path(workdir) / LOCK_FILE
  with contextlib.suppress(OSError):
    found = _read(path)
    if found is not None and _is_dead(path, found):
      _clear(path, found)


def _make(folder: epath.Path) -> list[epath.Path]:
  """Makes a directory; gives those that were missing, the innermost first."""
  made = (
    []
    if '://' in str(folder)
    else [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
  )
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      f'a run in {folder}', f'the directory cannot be made: {error}', 'give another --workdir'
    ) from None
  return made


def _identity() -> dict[str, Any]:
  return {
    'host': socket.gethostname(),
    'space': _space(),
    'process': os.getpid(),
    'started': _started(os.getpid()),
  }


def _space() -> str:
  """Within what a process number means one process: this boot, this container.

  Nothing where /proc does not say.
  """
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return ''


def _started(process: int) -> int | None:
  """When a process of this host started, in ticks since its boot; None where that cannot be known.
  """
  try:
    found = pathlib.Path(f'/proc/{process}/stat').read_bytes()
    # the 22nd field; the second, a name, may hold anything
    return int(found.rpartition(b')')[2].split()[19])
  except (OSError, ValueError, IndexError):
    return None


def _take(path: epath.Path, mine: dict[str, Any]) -> None:
  found = _read(path)
  if found is not None and not _is_dead(path, found):
    raise _refusal(path, found)
  try:
    if found is not None:
      _clear(path, found)
    _write(path, mine)
    owner = _owner(path)
  except OSError as error:
    raise InputError(
      f'a run in {path.parent}', f'it cannot be written to: {error}', 'give another --workdir'
    ) from None
  if owner != mine['id']:
    raise _refusal(path, _read(path) or {})


def _clear(path: epath.Path, dead: dict[str, Any]) -> None:
  """Removes a dead claim, one process at a time: none of several that read it may remove that of
  the next holder.
  """
  if '://' in str(path):
    path.unlink(missing_ok=True)
    return
  clearing = path.parent / f'{LOCK_FILE}-clearing'
  with contextlib.suppress(FileNotFoundError):
    # who made it was killed between two lines of this function
    if time.time() - clearing.stat().mtime > STALE_SECONDS:
      clearing.unlink()
  # another one clears: of all who come then one gets to write
  with contextlib.suppress(FileExistsError):
    open(clearing, 'x', encoding='utf-8').close()
    try:
      if _read(path) == dead:
        path.unlink(missing_ok=True)
    finally:
      clearing.unlink(missing_ok=True)


def _write(path: epath.Path, mine: dict[str, Any]) -> None:
  # a bucket has no such mode: of several that come at once the last holds it
  if '://' in str(path):
    path.write_text(json.dumps(mine))
    return
  try:
    # of several one succeeds
    with contextlib.suppress(FileExistsError), open(path, 'x', encoding='utf-8') as file:
      file.write(json.dumps(mine))
  except OSError:  # a full disk: an empty claim would keep everybody out for a while
    path.unlink(missing_ok=True)
    raise


def _refusal(path: epath.Path, found: dict[str, Any]) -> LockedError:
  who, wait = 'another process is at work there', HEARTBEAT_SECONDS
  if found:
    who, wait = f'process {found["process"]} on {found["host"]} is at work there', STALE_SECONDS
    if 'since' in found:
      who += (
        f' since {time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["since"]))}, local time'
      )
  return LockedError(
    f'the run in {path.parent}',
    who,
    f'let it end; if it was killed, this works again {wait:.0f} seconds after its last sign of life',
  )


def _renew(
  path: epath.Path, mine: dict[str, Any], over: threading.Event, lost: list[InputError]
) -> None:
  """Gives signs of life; says so once when the claim is lost, and keeps the error for the end of
  the block.
  """
  while not over.wait(HEARTBEAT_SECONDS):
    with contextlib.suppress(OSError):  # the next sign of life may succeed
      if not path.parent.exists():
        lost.append(
          InputError(
            f'the run in {path.parent}',
            'the directory was deleted under it',
            'start again in a directory that stays',
          )
        )
      elif (found := _read(path)) is None:
        _write(path, mine)
      elif found and found['id'] != mine['id']:
        lost.append(_refusal(path, found))
      elif '://' in str(path):
        _write(path, mine)
      else:
        os.utime(path)  # its bytes stay: a reader never finds half of them
    if lost:
      progress.log(str(lost[0]))
      return


def _read(path: epath.Path) -> dict[str, Any] | None:
  """What a claim says; nothing where there is none, {} where one is being written, was cut short or
  is garbage.
  """
  try:
    with path.open('rb') as file:
      found = json.loads(file.read(_MAX_LOCK_BYTES))
  except FileNotFoundError:
    return None
  except (ValueError, RecursionError, IsADirectoryError):
    return {}
  whole = (
    isinstance(found, dict)
    and isinstance(found.get('id'), str)
    and (type(found.get('process')) is int and 0 < found['process'] < 1 << 31)
    and (isinstance(found.get('host'), str) and _HOST.fullmatch(found['host']))
    and (type(found.get('since', 0)) in (int, float) and 0 <= found.get('since', 0) < 1 << 35)
  )
  return found if whole else {}


def _owner(path: epath.Path) -> str | None:
  found = _read(path)
  return found['id'] if found else None


def _is_dead(path: epath.Path, found: dict[str, Any]) -> bool:
  """Has its holder ended or, where that cannot be known from here, been silent for long?

  A process that runs is alive however silent it is: it may have been stopped, and go on.
  """
  if found and found['host'] == socket.gethostname() and found.get('space', _space()) == _space():
    try:
      os.kill(found['process'], 0)
    except ProcessLookupError:
      return True
    except PermissionError:  # it runs, as another user
      pass
    if (started := _started(found['process'])) is not None and isinstance(
      found.get('started'), int
    ):
      return started != found['started']
  try:
    silent = time.time() - path.stat().mtime
  except FileNotFoundError:  # it has just ended
    return True
  # no claim is half written for so long
  return silent > (STALE_SECONDS if found else HEARTBEAT_SECONDS)
