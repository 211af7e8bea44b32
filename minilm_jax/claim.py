"""One process at a time in a run directory.

A process that trains in a directory holds a file there, `.claim`, and says every few seconds that it is still alive.
Another one finds the file and leaves, or takes the claim over when it has not been renewed for a while: its holder was
killed. Locks of the file system itself are left out: they do not work over every network file system.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from minilm_jax.errors import InputError

CLAIM = '.claim'
RENEWED = 10.0  # seconds between two signs of life
ABANDONED = 120.0  # seconds without one, after which the holder counts as dead


class Held(InputError):
  """Another process works in the directory."""


@contextlib.contextmanager
def held(workdir: epath.PathLike) -> Iterator[None]:
  """Holds a directory, which exists, as long as the block runs.

  Raises:
    Held: another process holds it, or has taken it.
  """
  path = epath.Path(workdir) / CLAIM
  mine = {'host': socket.gethostname(), 'process': os.getpid(), 'id': uuid.uuid4().hex}
  _take(path, mine)
  over = threading.Event()
  renewing = threading.Thread(target=_renew, args=(path, mine, over), daemon=True)
  renewing.start()
  try:
    yield
  finally:
    over.set()
    renewing.join()
    if _owner(path) == mine['id']:
      path.unlink(missing_ok=True)


def _take(path: epath.Path, mine: dict[str, Any]) -> None:
  found = _read(path)
  if found is not None and not _is_dead(path, found):
    raise _refusal(path, found)
  path.unlink(missing_ok=True)
  if '://' in str(path):  # a bucket has no such mode: of several that come at once the last holds it
    path.write_text(json.dumps(mine))
  else:
    with contextlib.suppress(FileExistsError), open(path, 'x', encoding='utf-8') as file:  # of several one succeeds
      file.write(json.dumps(mine))
  if _owner(path) != mine['id']:
    raise _refusal(path, _read(path) or {})


def _refusal(path: epath.Path, found: dict[str, Any]) -> Held:
  who = f'process {found["process"]} on {found["host"]}' if found else 'another process'
  return Held(f'the run in {path.parent}', f'{who} is at work there',
              f'let it end; if it was killed, this works again {ABANDONED:.0f} seconds after its last sign of life')


def _renew(path: epath.Path, mine: dict[str, Any], over: threading.Event) -> None:
  while not over.wait(RENEWED):
    with contextlib.suppress(OSError):  # the next sign of life may succeed
      if _owner(path) == mine['id']:
        path.write_text(json.dumps(mine))


def _read(path: epath.Path) -> dict[str, Any] | None:
  """What a claim says; nothing where there is none, {} where one is being written."""
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except json.JSONDecodeError:
    return {}


def _owner(path: epath.Path) -> str | None:
  found = _read(path)
  return found['id'] if found else None


def _is_dead(path: epath.Path, found: dict[str, Any]) -> bool:
  """Has its holder been silent for long or, where it ran on this host, ended?"""
  if found and found['host'] == socket.gethostname():
    try:
      os.kill(found['process'], 0)
    except ProcessLookupError:
      return True
    except PermissionError:  # it runs, as another user
      return False
  try:
    return time.time() - path.stat().mtime > ABANDONED
  except FileNotFoundError:  # it has just ended
    return True
