"""Coordinates the processes of a multi-process run: start, comparison of inputs, common end.

All processes run the same program, and each process controls the devices of its host. Inputs, files
and errors are local to a process. The functions of this module compare inputs, and raise errors in
all processes together. Only process 0 writes files and messages. In a run of one process, the
functions do nothing and do not import JAX.
"""

import atexit
import concurrent.futures
import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from minilm_jax.core import signals
from minilm_jax.core.errors import InputError

T = TypeVar('T')
AUTO = 'auto'
MIN_HEARTBEAT_SECONDS = 10
JAX_EXTRA_SECONDS = 60  # JAX aborts the process at its time-out; ours raises an error before
LOST_PEER_STATUS = 2
_REMEDY = (
  'read the messages of all processes and fix the cause, then restart all processes: the run resumes '
  'from its last checkpoint'
)
# Errors of a collective whose peer is gone; others, such as RESOURCE_EXHAUSTED, are of this process.
_LOST_PEER = re.compile(r'UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|CANCELLED|Gloo|NCCL', re.IGNORECASE)
# Numbers of tasks on each node of a Slurm step, as in 4(x2),1, and on the host in Open MPI.
_TASKS_OF_NODES = ('SLURM_STEP_TASKS_PER_NODE', 'OMPI_COMM_WORLD_LOCAL_SIZE')
_is_started = False  # whether jax.distributed.initialize was called, even without success
_process, _processes = 0, 1
_exit_lock = threading.Lock()  # acquired by the thread that reports a lost process, never released


class DistributedError(InputError):
  """An error that all processes raise together, so that each can exit normally."""


@contextlib.contextmanager
def initialized(
  coordinator: str, processes: int | None, process: int | None, wait: int
) -> Iterator[None]:
  """Joins the processes of a run inside the block; does nothing without arguments.

  JAX must not have created its devices. If a process dies inside the block, the other processes end
  with an error and status 2.

  Args:
    coordinator: host and port of process 0. `auto` uses the detection of JAX for SLURM, Open MPI
      and Cloud TPU; it is the default on a host of a TPU pod.
    wait: seconds to wait for all processes; also the heartbeat time-out, at least 10 seconds.

  Raises:
    InputError: an argument is invalid, a process is late, or the processes have different numbers
      of devices.
  """
  is_orderly = False
  try:
    _start(coordinator, processes, process, wait)
    yield
    is_orderly = True
  except (DistributedError, signals.InterruptedAfterSave):
    is_orderly = True
    raise
  except (RuntimeError, ValueError) as error:
    import jax

    # On a CPU, a collective is of Gloo, which raises ValueError.
    is_collective = isinstance(error, jax.errors.JaxRuntimeError) or 'Gloo' in str(error)
    if _processes == 1 or not is_collective:
      raise
    text = str(error).splitlines()[0]
    if not _LOST_PEER.search(text):
      traceback.print_exc()
      _end_after_loss(f'process {_process} failed: {text}')
    _end_after_loss(f'process {_process} lost the connection to a process: {text}')
  finally:
    if _processes > 1 and not is_orderly:
      # runs before the exit handler of JAX, which waits for the other processes
      atexit.register(exit_now, 1)


def _end_after_loss(details: str) -> None:
  """Reports a lost process on standard error and exits; a second thread waits for the exit."""
  with _exit_lock:
    os.write(2, f'{InputError(f"training on {_processes} processes", details, _REMEDY)}\n'.encode())
    os._exit(LOST_PEER_STATUS)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _end_on_abort(_: int) -> None:
  _end_after_loss(
    f'the distributed service of JAX aborted process {_process} (see the lines above)'
  )


def _handle_abort() -> None:
  """Replaces the abort of JAX by an error and status 2.

  JAX calls abort() in a separate thread if a process misses its heartbeats or process 0 is lost.
  `jax.distributed` has no parameter for this, and the callback of the jaxlib client fails in Python
  (std::bad_cast in 0.10.2). A handler of Python's `signal` would run in the main thread, too late.
  A C handler runs in the aborting thread, and ctypes acquires the GIL.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
  libc.signal(signal.SIGABRT, ctypes.cast(_end_on_abort, ctypes.c_void_p))


def parse_address(address: str) -> tuple[str, int]:
  """Returns host and port of an address.

  >>> parse_address('trainer-0:1234'), parse_address('[::1]:80')
  (('trainer-0', 1234), ('::1', 80))

  Raises:
    InputError: the host or the port is missing or invalid.
  """
  host, _, port = address.rpartition(':')
  host = host.removeprefix('[').removesuffix(']')
  if (
    not re.fullmatch(r'[\w.:%-]+', host)
    or not re.fullmatch(r'\d{1,5}', port)
    or not 0 < int(port) < 1 << 16
  ):
    raise InputError(
      f'--coordinator={address}',
      'not a host and a port',
      'give the host of process 0 and a free port, such as trainer-0:1234',
    )
  return host, int(port)


def bind_address(host: str, port: int) -> str | None:
  """Returns the address on which process 0 listens; None is every interface.

  >>> [bind_address(host, 80) for host in ('localhost', '127.0.0.1', '::1', 'host-0')]
  ['127.0.0.1:80', '127.0.0.1:80', '[::1]:80', None]
  """
  if host == '::1':
    return f'[{host}]:{port}'
  if host == 'localhost':
    return f'127.0.0.1:{port}'
  return f'{host}:{port}' if re.fullmatch(r'127(\.\d+){3}', host) else None


def _check_port(coordinator: str, host: str, port: int) -> None:
  """Raises InputError for a port in use, on which jaxlib can crash with a segmentation fault."""
  interface = '' if bind_address(host, port) is None else host
  family = socket.AF_INET6 if ':' in interface else socket.AF_INET
  try:
    with socket.socket(family) as probe:  # bound but not listening, so that no process connects
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      probe.bind((interface, port))
  except OSError as error:
    if error.errno == errno.EADDRINUSE:
      raise InputError(
        f'--coordinator={coordinator}', f'port {port} is in use', 'give a free port of process 0'
      ) from None


def _start(coordinator: str, processes: int | None, process: int | None, wait: int) -> None:
  """Checks the flags, and starts the distributed system of JAX for several processes."""
  flags = ' '.join(
    f'--{name}={value}'
    for name, value in (('processes', processes), ('process', process))
    if value is not None
  )
  if wait < 1:
    raise InputError(f'--timeout={wait}', 'less than 1 second', 'give seconds, such as 300')
  if not coordinator and ',' in os.environ.get('TPU_WORKER_HOSTNAMES', ''):
    coordinator = AUTO
  if coordinator in ('', AUTO):
    if flags:
      address = f'--coordinator={coordinator}' if coordinator else 'no --coordinator'
      raise InputError(flags, address, 'give --coordinator=HOST:PORT of process 0')
    if coordinator:
      _initialize_jax(wait)
    return
  if processes is None or process is None:
    raise InputError(
      f'--coordinator={coordinator}',
      flags or 'neither --processes nor --process',
      'give the same --processes=N to all processes, and --process=I from 0 to N - 1',
    )
  host, port = parse_address(coordinator)
  if processes < 1:
    raise InputError(f'--processes={processes}', 'no process', 'give at least 1')
  if not 0 <= process < processes:
    raise InputError(
      f'--process={process}', f'--processes={processes}', f'give a number from 0 to {processes - 1}'
    )
  if processes > 1:
    if process == 0:
      _check_port(coordinator, host, port)
    _initialize_jax(
      wait,
      coordinator_address=coordinator,
      num_processes=processes,
      process_id=process,
      coordinator_bind_address=bind_address(host, port),
    )


def _choose_local_devices() -> list[int] | None:
  """Returns [], which is all devices of the host, or None if the host runs several processes.

  In a job of Slurm or Open MPI, JAX would give each process the device of its local number alone.
  """
  tasks = [
    int(count)
    for name in _TASKS_OF_NODES
    for count in re.findall(r'(\d+)(?=\(x|,|$)', os.environ.get(name, ''))
  ]
  return None if 'JAX_LOCAL_DEVICE_IDS' in os.environ or max(tasks, default=1) > 1 else []


def _initialize_jax(wait: int, **arguments: Any) -> None:
  """Calls jax.distributed.initialize; requires the same number of devices in each process."""
  global _is_started, _process, _processes
  import jax

  # Redirects messages of C++ libraries from standard output to standard error.
  sys.stdout.flush()
  results = os.dup(1)
  os.dup2(2, 1)
  sys.stdout = os.fdopen(results, 'w', encoding=sys.stdout.encoding, errors=sys.stdout.errors)
  jax.config.update('jax_enable_preemption_service', False)  # `signals` handles SIGTERM
  _is_started = True
  _processes = arguments.get('num_processes', 1)
  _process = arguments.get('process_id', 0)
  _handle_abort()
  address = arguments.get('coordinator_address', AUTO)
  # The main thread must stay in Python to handle signals.
  executor = concurrent.futures.ThreadPoolExecutor(1)
  start = executor.submit(
    jax.distributed.initialize,
    initialization_timeout=wait + JAX_EXTRA_SECONDS,
    heartbeat_timeout_seconds=max(MIN_HEARTBEAT_SECONDS, wait),
    shutdown_timeout_seconds=wait,
    local_device_ids=_choose_local_devices(),
    **arguments,
  )
  try:
    start.result(timeout=wait)
  except TimeoutError:
    raise InputError(
      f'--coordinator={address}',
      f'processes missing after {wait} seconds',
      'start all processes with this --coordinator and the same --processes, or raise --timeout',
    ) from None
  except (RuntimeError, ValueError) as error:
    raise InputError(
      f'--coordinator={address}',
      f'JAX: {error}',
      'give a free port of process 0: --coordinator=HOST:PORT --processes=N --process=I',
    ) from None
  executor.shutdown(wait=False)
  _process, _processes = jax.process_index(), jax.process_count()
  devices = [sum(device.process_index == n for device in jax.devices()) for n in range(_processes)]
  if len(set(devices)) > 1:
    raise DistributedError(
      f'the same number of devices in {_processes} processes',
      ', '.join(f'process {n} has {count}' for n, count in enumerate(devices)),
      'use equal hosts, or on CPUs set JAX_NUM_CPU_DEVICES',
    )


def check_processes() -> None:
  """Raises InputError if JAX has joined other processes (as in a TPU pod) without `initialized`."""
  import jax

  if jax.process_count() != _processes:
    raise InputError(
      f'work in {_processes} process',
      f'devices of {jax.process_count()} processes in JAX',
      f'start minilm pretrain --coordinator={AUTO} on all hosts; other commands need a single host',
    )


def is_primary() -> bool:
  """Returns whether this is process 0, which writes files and messages."""
  return _process == 0


def exit_now(status: int) -> int:
  """Exits immediately in a multi-process run; returns the status in a run of one process.

  A normal exit would wait for processes that wait for this process.
  """
  if _is_started:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  return status


def assert_equal(name: str, value: str) -> None:
  """Checks that all processes have the same value.

  Raises:
    DistributedError: the values differ. The error has 12 digits of the SHA-256 of each value.
  """
  if _processes == 1:
    return
  digests = _allgather_text(hashlib.sha256(value.encode()).hexdigest()[:12])
  if len(set(digests)) > 1:
    raise DistributedError(
      f'{name} in {_processes} processes',
      f'different checksums: {", ".join(f"process {n} has {d}" for n, d in enumerate(digests))}',
      f'give all processes the same {name.removeprefix("the ")}',
    )


@contextlib.contextmanager
def raise_together() -> Iterator[None]:
  """Raises an error in all processes if the block fails in any, so that no process waits forever.

  Raises:
    DistributedError: the block raised InputError or OSError in a process. A process without an
      error raises the error of the first process that failed.
  """
  if _processes == 1:
    yield
    return
  parts = []
  try:
    yield
  except DistributedError:
    raise
  except InputError as error:
    parts = [error.asked, error.found, error.remedy]
  except OSError as error:
    fault = f'{type(error).__name__}: {error}'
    parts = ['files of the run', fault, 'free disk space or fix the path']
  errors = _allgather_text(json.dumps(parts) if parts else '')
  failed = [n for n in (_process, *range(_processes)) if errors[n]]
  if failed:
    request, fact, remedy = json.loads(errors[failed[0]])
    raise DistributedError(request, fact if parts else f'in process {failed[0]}: {fact}', remedy)


def primary_first(function: Callable[[], T]) -> T:
  """Calls a function in process 0, which may write files, then in the other processes.

  Returns:
    The result of this process.

  Raises:
    DistributedError: the function raised InputError or OSError in a process.
  """
  results: list[T] = []
  for is_turn in (is_primary(), not is_primary()):
    with raise_together():
      if is_turn:
        results.append(function())
  return results[0]


def to_host(tree: Any) -> Any:
  """Returns a tree of NumPy arrays; gathers arrays on devices of several processes."""
  import jax
  from jax.experimental import multihost_utils

  def gather(x: Any) -> Any:
    is_spread = isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
    return multihost_utils.process_allgather(x, tiled=True) if is_spread else x

  return jax.device_get(jax.tree.map(gather, tree))


def allgather_ints(*values: int) -> list[tuple[int, ...]]:
  """Returns the int32 values of all processes by process index; all processes must call it."""
  if _processes == 1:
    return [values]
  import numpy as np
  from jax.experimental import multihost_utils

  return [
    tuple(row) for row in multihost_utils.process_allgather(np.array(values, np.int32)).tolist()
  ]


def _allgather_text(text: str) -> list[str]:
  """Returns the texts of all processes by process index, in one exchange if all are empty."""
  import numpy as np
  from jax.experimental import multihost_utils

  data = np.frombuffer(text.encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(data.size))
  buffer = np.zeros(max(sizes), np.uint8)
  if not buffer.size:
    return [''] * _processes
  buffer[: data.size] = data
  rows = multihost_utils.process_allgather(buffer)
  return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]
