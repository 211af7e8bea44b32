"""Where the processes of one run wait for each other before JAX is told of them, and miss who goes away.

JAX itself ends a process whose peers do not come with a stack trace, and one whose peers die after minutes. Here
process 0 listens at the address where its coordinator will be, the others say their numbers there, and all are told at
once to go, or why not. The connections stay: one that ends without a goodbye is that of a process that died.

Each message is a line: `minilm 1 of 2`, `go` or `stop` with the three parts of an error; `bye`, or `lost` and a number.
"""

import contextlib
import json
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable

from minilm_jax.errors import InputError

Links = list[tuple[int, socket.socket]]  # the number at the other end, and the connection
_GO, _BYE = b'go\n', b'bye\n'
_HELLO = re.compile(rb'minilm (\d{1,9}) of (\d{1,9})\n')
_LOST = re.compile(rb'lost (\d{1,9})\n')
_SECONDS = 5.0  # for what takes no time where all is well: to connect, to say one line
_PAUSE = 0.1  # seconds between two attempts to connect


def parse(address: str) -> tuple[str, int]:
  """Host and port of an address.

  >>> parse('trainer-0:1234'), parse('[::1]:80')
  (('trainer-0', 1234), ('::1', 80))

  Raises:
    InputError: it has not both.
  """
  host, _, port = address.rpartition(':')
  host = host.removeprefix('[').removesuffix(']')
  if not re.fullmatch(r'[\w.:%-]+', host) or not re.fullmatch(r'\d{1,5}', port) or not 0 < int(port) < 1 << 16:
    raise InputError(f'--coordinator={address}', 'not a host and a port',
                     'give the address of process 0 and a port that is free there, as in trainer-0:1234')
  return host, int(port)


def meet(address: str, processes: int, process: int, wait: float) -> Links:
  """Waits until all processes are there.

  Args:
    address: host and port of process 0.
    processes: how many there are.
    process: the number of this one, from 0.
    wait: seconds, at most.

  Returns:
    What `watch` watches: the connections of process 0 to all, or of another process to that one.

  Raises:
    InputError: one has not come in time, a number is given twice or out of range, or the port cannot be used.
  """
  host, port = parse(address)
  if processes < 1:
    raise InputError(f'--processes={processes}', 'none', 'give at least 1')
  if not 0 <= process < processes:
    raise InputError(f'--process={process}', f'--processes={processes}', f'give a number from 0 to {processes - 1}')
  return _follow(host, port, processes, process, wait) if process else _lead(address, port, processes, wait)


def watch(links: Links, lost: Callable[[int], None]) -> None:
  """Calls `lost` with the number of the first process that goes away without a goodbye, from a thread of its own."""
  watched = selectors.DefaultSelector()
  for number, link in links:
    watched.register(link, selectors.EVENT_READ, number)

  def look() -> None:
    while watched.get_map():
      for key, _ in watched.select():
        watched.unregister(key.fileobj)
        said = _line(key.fileobj)
        if said == _BYE:
          continue
        told = _LOST.fullmatch(said)  # by process 0, who sees all of them
        number = int(told[1]) if told else key.data
        _tell(links, b'lost %d\n' % number)
        lost(number)
        return

  threading.Thread(target=look, daemon=True).start()


def part(links: Links, orderly: bool) -> None:
  """Says goodbye, for the end of this process is nothing to worry about; or else lets the others miss it at once."""
  if orderly:
    _tell(links, _BYE)
    return
  for _, link in links:
    link.close()


def _lead(address: str, port: int, processes: int, wait: float) -> Links:
  """Process 0: collects the others and tells them."""
  deadline = time.monotonic() + wait
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(_listen(address, port))
    callers: Links = []
    try:
      while missing := set(range(1, processes)) - {number for number, caller in callers if not _gone(caller)}:
        caller = stack.enter_context(_accept(server, deadline, missing, processes, wait))
        found = _HELLO.fullmatch(_line(caller))
        if not found:  # a stranger
          caller.close()
          continue
        number, count = map(int, found.groups())
        callers.append((number, caller))
        _check(number, count, number in missing, processes)
    except InputError as error:
      _tell(callers, b'stop ' + json.dumps([error.asked, error.found, error.remedy]).encode() + b'\n')
      raise
    _tell(callers, _GO)
    server.close()
    stack.pop_all()
    return callers


def _check(number: int, count: int, is_missing: bool, processes: int) -> None:
  if count != processes:
    raise InputError(f'process {number} of {count}', f'process 0 is one of {processes}',
                     'give all the same --processes')
  if not is_missing:
    raise InputError(f'{processes} processes', f'one more that has --process={number}',
                     f'give each a number of its own, from 0 to {processes - 1}')


def bound(host: str) -> str:
  """Where process 0 listens: for this machine alone where that is what was asked for, else for all that reach it.

  >>> bound('localhost'), bound('127.0.0.1'), bound('::1'), bound('trainer-0')
  ('127.0.0.1', '127.0.0.1', '::1', '')
  """
  return '127.0.0.1' if host == 'localhost' else host if host == '::1' or re.fullmatch(r'127(\.\d+){3}', host) else ''


def _listen(address: str, port: int) -> socket.socket:
  host = bound(parse(address)[0])
  try:
    if host:
      return socket.create_server((host, port), family=socket.AF_INET6 if ':' in host else socket.AF_INET)
    if socket.has_dualstack_ipv6():
      return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(('', port))
  except OSError as error:
    raise InputError(f'process 0 at {address}', f'port {port} cannot be used: {error.strerror}',
                     'give another port to all processes, or end the program that has it') from None


def _accept(server: socket.socket, deadline: float, missing: set[int], processes: int, wait: float) -> socket.socket:
  server.settimeout(max(deadline - time.monotonic(), _PAUSE))
  try:
    return server.accept()[0]
  except TimeoutError:
    names = f'process{"es" * (len(missing) > 1)} {", ".join(map(str, sorted(missing)))}'
    raise InputError(f'{processes} processes', f'{names} did not come within {wait:g} seconds',
                     'look at what they say, and let them reach this address; or raise --wait') from None


def _line(connection: socket.socket) -> bytes:
  """What the other side says, up to the end of a line; nothing where it says none."""
  try:
    connection.settimeout(_SECONDS)
    return connection.makefile('rb').readline(1 << 16)
  except OSError:
    return b''


def _gone(connection: socket.socket) -> bool:
  """Has the other side left? It says nothing more while it waits."""
  connection.setblocking(False)
  try:
    connection.recv(1)
  except BlockingIOError:
    return False
  except OSError:
    pass
  return True


def _tell(links: Links, text: bytes) -> None:
  for _, link in links:
    with contextlib.suppress(OSError):
      link.settimeout(_SECONDS)
      link.sendall(text)


def _follow(host: str, port: int, processes: int, process: int, wait: float) -> Links:
  """Another process: says its number until it is answered."""
  deadline, found = time.monotonic() + wait, ''
  while (left := deadline - time.monotonic()) > 0:
    try:
      with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((host, port), timeout=min(left, _SECONDS)))
        connection.sendall(b'minilm %d of %d\n' % (process, processes))
        found = 'process 0 is there, and waits for others'
        connection.settimeout(max(deadline - time.monotonic(), _PAUSE))
        answer = connection.makefile('rb').readline(1 << 16)
        if answer == _GO:
          stack.pop_all()
          return [(0, connection)]
      if answer.startswith(b'stop '):
        raise InputError(*json.loads(answer.removeprefix(b'stop ')))
      found = 'what answers there is no process 0'
    except TimeoutError:
      continue
    except OSError as error:
      found = error.strerror or str(error)
    time.sleep(_PAUSE)
  raise InputError(f'process 0 at {host}:{port}', f'no start within {wait:g} seconds: {found or "no answer"}',
                   'start process 0 there with the same --coordinator, and look at what it says; or raise --wait')
