"""One function over many batches of text, in processes of their own, results in order.

Batches are drawn only as results are taken, so memory stays flat however long the input. Workers import what the
function needs and no more; they are no place for JAX.
"""

import collections
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures import process
from typing import Any, TypeVar

from minilm_jax.errors import InputError

_T = TypeVar('_T')


def in_order(work: Callable[[list[str]], _T], batches: Iterable[list[str]], workers: int) -> Iterator[_T]:
  """`map(work, batches)` in `workers` processes, with few batches under way; in this process where workers is 1.

  Args:
    work: a function that can be pickled; it travels once to each worker.
    batches: its arguments.
    workers: processes.

  Raises:
    InputError: a process was ended from outside.
  """
  if workers == 1:
    yield from map(work, batches)
    return
  context = multiprocessing.get_context('spawn')  # a fork would copy whatever threads and devices the caller has
  with futures.ProcessPoolExecutor(workers, context, _arm, (work,)) as pool:
    under_way: collections.deque[futures.Future[_T]] = collections.deque()
    try:
      for batch in batches:
        under_way.append(pool.submit(_call, batch))
        if len(under_way) > 2 * workers:
          yield under_way.popleft().result()
      while under_way:
        yield under_way.popleft().result()
    except process.BrokenProcessPool:
      raise InputError(f'work in {workers} processes', 'one of them was ended from outside, as where memory runs out',
                       'run it again, with fewer workers where memory is short') from None
    finally:
      pool.shutdown(cancel_futures=True)


_work: Callable[[list[str]], Any]  # of a worker process, set once by _arm


def _arm(work: Callable[[list[str]], Any]) -> None:
  global _work
  _work = work
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the pool
  threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
  multiprocessing.parent_process().join()  # one that is killed closes no pool: its workers would wait for ever
  os._exit(1)


def _call(batch: list[str]) -> Any:
  return _work(batch)
