"""The rendezvous: all come, or each is told in one sentence why it does not start."""

import queue
import socket
import threading
import time

import pytest

from minilm_jax import rendezvous
from minilm_jax.errors import InputError


@pytest.fixture
def address() -> str:
  with socket.create_server(('', 0)) as server:
    return f'localhost:{server.getsockname()[1]}'


def meeting(address: str, *numbers: int, processes: int = 3, wait: float = 10) -> dict[int, str]:
  """What each of the processes with these numbers ends with, '' where it may start; they come in this order."""
  found: dict[int, str] = {}

  def come(place: int, number: int) -> None:
    try:
      rendezvous.meet(address, processes, number, wait)
      found[place] = ''
    except InputError as error:
      found[place] = f'{error.asked}: {error.found}'

  threads = [threading.Thread(target=come, args=case) for case in enumerate(numbers)]
  for thread in threads:
    thread.start()
    time.sleep(0.05)
  for thread in threads:
    thread.join(wait + 5)
  return {numbers[place]: said for place, said in found.items()}


def connected(address: str) -> socket.socket:
  """To process 0, when it listens."""
  for _ in range(100):
    try:
      return socket.create_connection(rendezvous.parse(address))
    except ConnectionRefusedError:
      time.sleep(0.02)
  raise TimeoutError(address)


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 1, 0)])
def test_all_start_when_all_are_there(order: tuple[int, ...], address: str):
  assert meeting(address, *order) == {0: '', 1: '', 2: ''}
  with socket.create_server(('', rendezvous.parse(address)[1])):  # the port is free again
    pass


def test_one_process_waits_for_nobody(address: str):
  assert meeting(address, 0, processes=1) == {0: ''}


def test_who_does_not_come_is_named_to_all_who_did(address: str):
  began = time.monotonic()
  said = '3 processes: process 2 did not come within 1 seconds'
  assert meeting(address, 0, 1, wait=1) == {0: said, 1: said}
  assert meeting(address, 0, processes=4, wait=0.2)[0].endswith('processes 1, 2, 3 did not come within 0.2 seconds')
  assert time.monotonic() - began < 4


def test_nobody_at_the_address(address: str):
  assert meeting(address, 1, wait=0.5)[1] == f'process 0 at {address}: no start within 0.5 seconds: Connection refused'


def test_something_else_at_the_address(address: str):
  with socket.create_server(rendezvous.parse(address)) as server:
    def answer() -> None:
      while True:
        try:
          connection = server.accept()[0]
        except OSError:
          return
        connection.sendall(b'HTTP/1.1 400 Bad Request\r\n')
        connection.close()

    thread = threading.Thread(target=answer)
    thread.start()
    said = meeting(address, 1, wait=0.5)[1]
    server.shutdown(socket.SHUT_RDWR)
    thread.join()
  assert said.endswith('no start within 0.5 seconds: what answers there is no process 0')


def test_a_number_that_is_given_twice_stops_all(address: str):
  found = meeting(address, 0, 1, 1)
  assert set(found.values()) == {'3 processes: one more that has --process=1'}


def test_all_count_alike(address: str):
  leader = threading.Thread(target=lambda: found.update(meeting(address, 0)))
  found: dict[int, str] = {}
  leader.start()
  other = meeting(address, 1, processes=2)
  leader.join()
  assert found[0] == other[1] == 'process 1 of 2: process 0 is one of 3'


@pytest.mark.parametrize('process, processes', [(-1, 2), (2, 2), (0, 0)])
def test_numbers_out_of_range(process: int, processes: int, address: str):
  assert f'--process{"es=0" if not processes else f"={process}"}' in meeting(address, process, processes=processes)[process]


def test_a_port_that_is_taken():
  with socket.create_server(('', 0)) as server:
    said = meeting(f'localhost:{server.getsockname()[1]}', 0)[0]
  assert 'cannot be used: Address already in use' in said


@pytest.mark.parametrize('text', ['', 'localhost', 'localhost:', ':80', 'host:port', 'host:0', 'host:65536', 'a b:80',
                                  'http://host:80', 'host:-1', 'host:80 '])
def test_nonsense_addresses(text: str):
  with pytest.raises(InputError, match='not a host and a port'):
    rendezvous.parse(text)


@pytest.mark.parametrize('said', [b'GET / HTTP/1.1\r\n\r\n', b'minilm x of 3\n', b''])
def test_strangers_disturb_nobody(said: bytes, address: str):
  leader = threading.Thread(target=lambda: found.update(meeting(address, 0)))
  found: dict[int, str] = {}
  leader.start()
  with connected(address) as stranger:
    stranger.sendall(said)
  found |= meeting(address, 1, 2)
  leader.join()
  assert found == {0: '', 1: '', 2: ''}


def test_who_left_may_come_again(address: str):
  leader = threading.Thread(target=lambda: found.update(meeting(address, 0)))
  found: dict[int, str] = {}
  leader.start()
  with connected(address) as caller:
    caller.sendall(b'minilm 2 of 3\n')
    time.sleep(0.1)
  found |= meeting(address, 1, 2)
  leader.join()
  assert found == {0: '', 1: '', 2: ''}


def linked(address: str) -> dict[int, rendezvous.Links]:
  """The connections of three processes that have met."""
  links: dict[int, rendezvous.Links] = {}
  threads = [threading.Thread(target=lambda n=n: links.update({n: rendezvous.meet(address, 3, n, 10)})) for n in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return links


@pytest.mark.parametrize('gone', range(3))
def test_who_goes_away_is_missed_by_all(gone: int, address: str):
  links, missed = linked(address), queue.Queue()
  for number in {0, 1, 2} - {gone}:
    rendezvous.watch(links[number], lambda lost, number=number: missed.put((number, lost)))
  rendezvous.part(links[gone], orderly=False)
  assert {missed.get(timeout=5), missed.get(timeout=5)} == {(number, gone) for number in {0, 1, 2} - {gone}}


def test_who_says_goodbye_is_not(address: str):
  links, missed = linked(address), queue.Queue()
  for number in range(3):
    rendezvous.watch(links[number], lambda lost: missed.put(lost))
  for number in (1, 0, 2):
    rendezvous.part(links[number], orderly=True)
  with pytest.raises(queue.Empty):
    missed.get(timeout=0.5)


def test_who_asks_for_this_machine_alone_is_reached_from_nowhere_else(address: str):
  port = rendezvous.parse(address)[1]
  with rendezvous._listen(address, port) as server:
    assert server.getsockname()[0] == '127.0.0.1'
  with rendezvous._listen(f'trainer-0:{port}', port) as server:
    assert server.getsockname()[0] in ('::', '0.0.0.0')
