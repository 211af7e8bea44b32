"""The processes that train one run together, each with the devices of its host: how they start, agree and stop.

All of them run the same program. What they compute lies on the devices of all; what one reads, writes or raises is its
own, so that here they compare it, and stop together where it differs. Process 0 alone writes and speaks: `leads()`.
Where there is one process, nothing here does anything, and JAX is not imported.
"""

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from minilm_jax import rendezvous, signals
from minilm_jax.errors import InputError

T = TypeVar('T')
AUTO = 'auto'
_HEARTBEAT = 10  # seconds without a sign of life that JAX allows a process, at least
_LOST = 2  # exit status of a process whose peers have gone
_AGAIN = 'see why, and start all again: the run goes on from its last checkpoint'
_PAUSE = 1.0  # seconds
_SEPARATOR = '\0'
_process, _processes = 0, 1


class Stopped(InputError):
  """An error that all processes raise, so that they end together."""


@contextlib.contextmanager
def joined(coordinator: str, processes: int | None, process: int | None, wait: int) -> Iterator[None]:
  """Makes this process one of several, before JAX has made its devices; does nothing where nothing is given.

  Inside, when one of them goes away the others say so and end at once: what they are about, such as a checkpoint that
  is being written, would wait for it.

  Args:
    coordinator: host and port of process 0; `auto` leaves everything to what JAX knows of SLURM, Open MPI or Cloud TPU,
      which is also what nothing means on a host of a TPU pod.
    processes: how many there are.
    process: the number of this one, from 0.
    wait: seconds for all to come.

  Raises:
    InputError: an address or number cannot be used, one has not come in time, or they have not as many devices each.
  """
  links = _join(coordinator, processes, process, wait)
  if _processes == 1:
    yield
    return
  import jax
  rendezvous.watch(links, lambda number: _lost(f'process {number} has gone'))
  orderly = False
  try:
    yield
    orderly = True
  except (Stopped, signals.Saved):
    orderly = True
    raise
  except jax.errors.JaxRuntimeError as error:
    time.sleep(_PAUSE)  # who watches may know which has gone, and say so
    _lost(f'process {_process} cannot compute with the others: {str(error).splitlines()[0]}')
  finally:
    rendezvous.part(links, orderly)


def _lost(found: str) -> None:
  sys.stderr.write(f'{InputError(f"training on {_processes} processes", found, _AGAIN)}\n')
  leave(_LOST)


def _join(coordinator: str, processes: int | None, process: int | None, wait: int) -> rendezvous.Links:
  given = ' '.join(f'--{name}={value}' for name, value in (('processes', processes), ('process', process))
                   if value is not None)
  if wait < 1:
    raise InputError(f'--wait={wait}', 'no time to come', 'give seconds, such as 300')
  if not coordinator and ',' in os.environ.get('TPU_WORKER_HOSTNAMES', ''):
    coordinator = AUTO
  if coordinator in ('', AUTO):
    if given:
      found = f'--coordinator={coordinator}' if coordinator else 'no --coordinator'
      raise InputError(given, found, 'give --coordinator=HOST:PORT of process 0')
    if coordinator:
      _initialize(wait)
    return []
  if processes is None or process is None:
    raise InputError(f'--coordinator={coordinator}', given or 'neither --processes nor --process',
                     'give --processes=N, the same to all, and --process=I, from 0 to N - 1')
  links = rendezvous.meet(coordinator, processes, process, wait)
  if links:
    _initialize(wait, coordinator, processes, process)
  return links


def _initialize(wait: int, *where: Any) -> None:
  """Tells JAX, and checks that all processes have as many devices."""
  global _process, _processes
  import jax
  # libraries in C++ say on standard output whom they have found: that goes to standard error, and results stay alone
  sys.stdout.flush()
  results = os.dup(1)
  os.dup2(2, 1)
  sys.stdout = os.fdopen(results, 'w', encoding=sys.stdout.encoding)
  jax.config.update('jax_enable_preemption_service', False)  # `signals` says what SIGTERM does
  host, port = rendezvous.parse(where[0]) if where else ('', 0)
  host = rendezvous.bound(host)
  home = f'[{host}]:{port}' if ':' in host else f'{host}:{port}' if host else None  # None: for all that reach it
  try:
    jax.distributed.initialize(*where, coordinator_bind_address=home, initialization_timeout=wait,
                               shutdown_timeout_seconds=wait, heartbeat_timeout_seconds=max(_HEARTBEAT, wait))
  except (RuntimeError, ValueError) as error:
    raise InputError(' '.join(map(str, where)) or f'--coordinator={AUTO}', f'JAX says: {error}',
                     'give --coordinator=HOST:PORT --processes=N --process=I') from None
  _process, _processes = jax.process_index(), jax.process_count()
  devices = [sum(device.process_index == n for device in jax.devices()) for n in range(_processes)]
  if len(set(devices)) > 1:
    found = ', '.join(f'process {n} has {count}' for n, count in enumerate(devices))
    raise Stopped(f'as many devices in each of {_processes} processes', found,
                  'give all the same, on CPUs with JAX_NUM_CPU_DEVICES')


def check() -> None:
  """Raises InputError where JAX computes with devices of other processes, as in a TPU pod, which have not joined."""
  import jax
  if jax.process_count() != _processes:
    raise InputError('training in one process', f'JAX sees the devices of {jax.process_count()}',
                     f'give all of them --coordinator={AUTO}')


def leads() -> bool:
  """Is this process 0, who writes and speaks for all?"""
  return _process == 0


def leave(status: int) -> int:
  """Ends this process at once if there are others: at an ordinary exit JAX waits for them, who may wait for this one.

  Returns:
    The status, where there are none.
  """
  if _processes > 1:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  return status


def agree(what: str, value: str) -> None:
  """Checks that all processes have the same.

  Raises:
    Stopped: they have not; says which have what, as the first 12 digits of its SHA-256.
  """
  if _processes == 1:
    return
  digests = _exchange(hashlib.sha256(value.encode()).hexdigest()[:12])
  if len(set(digests)) > 1:
    found = ', '.join(f'process {n} has {digest}' for n, digest in enumerate(digests))
    raise Stopped(f'{what} to be the same in {_processes} processes', found, 'give all of them the same')


@contextlib.contextmanager
def together() -> Iterator[None]:
  """What each process does by itself: where it fails on one, all stop, so that none waits for another for ever.

  Raises:
    Stopped: one could not use its input or its files; each raises its own error, or else that of the first.
  """
  if _processes == 1:
    yield
    return
  own = ''
  try:
    yield
  except Stopped:
    raise
  except InputError as error:
    own = _SEPARATOR.join((error.asked, error.found, error.remedy))
  except OSError as error:
    own = _SEPARATOR.join(('files of the run', f'{type(error).__name__}: {error}', 'make room, or mend the path'))
  said = _exchange(own)
  failed = [n for n in (_process, *range(_processes)) if said[n]]
  if failed:
    asked, found, remedy = said[failed[0]].split(_SEPARATOR)
    raise Stopped(asked, found if own else f'on process {failed[0]}: {found}', remedy)


def in_turn(function: Callable[[], T]) -> T:
  """What each process makes of a function that may write files: process 0 first, then the others, who find them.

  Raises:
    Stopped: as `together`.
  """
  with together():
    result = function() if leads() else None
  with together():
    return result if leads() else function()


def fetch(tree: Any) -> Any:
  """The arrays of a tree on this host, also those that lie on the devices of several processes."""
  import jax
  from jax.experimental import multihost_utils

  def here(x: Any) -> Any:
    spread = isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
    return multihost_utils.process_allgather(x, tiled=True) if spread else x

  return jax.device_get(jax.tree.map(here, tree))


def numbers(*mine: int) -> list[tuple[int, ...]]:
  """Small whole numbers of each process, by its number; of several in one exchange, which all of them make."""
  if _processes == 1:
    return [mine]
  import numpy as np
  from jax.experimental import multihost_utils
  return [tuple(row) for row in multihost_utils.process_allgather(np.array(mine, np.int32)).tolist()]


def _exchange(text: str) -> list[str]:
  """What each process says, by its number."""
  import numpy as np
  from jax.experimental import multihost_utils
  data = np.frombuffer(text.encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(data.size))
  room = np.zeros(max(sizes), np.uint8)
  if not room.size:
    return [''] * _processes
  room[:data.size] = data
  rows = multihost_utils.process_allgather(room)
  return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]
