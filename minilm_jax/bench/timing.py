"""Times steps: the chunk that `pretrain` runs, on random rows, here or in worker processes.

A worker keeps its own thread pools and allocators and computes only on request, so that competitors
can be timed in turns or side by side.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from minilm_jax.core import progress
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer
from minilm_jax.data.corpus import Corpus
from minilm_jax.training import program, sharding

_NUM_ROWS = 4096
_EXIT_SECONDS = 10  # seconds for a worker to end in
# From a number of steps to their seconds, or to a dict with the seconds and other numbers.
TimedStep = Callable[[int], Any]


def make_random_rows(config: RunConfig) -> np.ndarray:
  """Rows of ordinary pieces, as many as no cache of a processor holds twice."""
  kind = np.uint16 if config.model.vocab_size <= 1 << 16 else np.uint32
  random = np.random.default_rng(config.seed)
  rows = random.integers(
    len(tokenizer.SPECIAL_TOKENS),
    config.model.vocab_size,
    (_NUM_ROWS, config.model.max_length),
    kind,
  )
  rows[:, 0], rows[:, -1] = tokenizer.BEGIN_ID, tokenizer.END_ID
  return rows


def time_our_step(config: RunConfig, rows: np.ndarray) -> tuple[Callable[[int], float], float]:
  """A function from a number of steps to the seconds they take, and the seconds of the first, which
  compiles.
  """
  engine = program.build_program(config)
  corpus = jax.device_put(
    Corpus(typing.cast(Array, rows), config.model.vocab_size, 'random'),
    sharding.replicated(engine.mesh),
  )
  state = engine.init()

  def timed(count: int) -> float:
    nonlocal state
    start = time.perf_counter()
    state, sums, _ = engine.chunk(state, corpus, program.step_count(engine, count))
    jax.block_until_ready(sums)
    return time.perf_counter() - start

  return timed, timed(1)


def time_interleaved(
  timed: Mapping[str, TimedStep], steps: int, repeats: int, what: str = ''
) -> dict[str, list[float]]:
  """Seconds a step of each contestant in each repeat; one round before is not counted, and tells
  how long they take.
  """
  start = time.perf_counter()
  for step in timed.values():
    step(steps)
  # a line, and no bar: a bar draws from a thread of its own, which would be timed with the rounds
  if what:
    about = progress.format_duration(repeats * (time.perf_counter() - start))
    progress.log(f'{what}: timing {repeats:,} rounds of {steps:,} updates, in about {about}')
  rounds = [{name: step(steps) / steps for name, step in timed.items()} for _ in range(repeats)]
  return {name: [times[name] for times in rounds] for name in timed}


@dataclasses.dataclass(frozen=True)
class TimedWorker:
  """A process that trains a model when it is called, and is still otherwise."""

  name: str
  process: Any
  pipe: Any  # an end of multiprocessing.Pipe

  def __call__(self, steps: int, patience: float | None = None) -> Any:
    """Seconds that so many steps take, and whatever else is said of them there.

    Raises:
      InputError: it cannot take them, or not within `patience` seconds.
    """
    self.begin(steps)
    return self.end(patience)

  def begin(self, steps: int) -> None:
    """Lets it take so many steps, and does not wait."""
    with contextlib.suppress(OSError):  # it has gone, which is said where its answer is waited for
      self.pipe.send(steps)

  def end(self, patience: float | None = None) -> Any:
    """Waits for what was begun, and gives its answer."""
    try:
      reply = (
        self.pipe.recv() if self.pipe.poll(patience) else f'no answer within {patience} seconds'
      )
    except (EOFError, OSError):
      self.process.join(_EXIT_SECONDS)
      reply = f'its process ended with status {self.process.exitcode}'
    if isinstance(reply, str):
      raise InputError(
        f'a step of {self.name}', reply, 'install what it needs, or leave the competitor out'
      )
    return reply

  def close(self) -> None:
    """Ends the process: it leaves by itself when the pipe is closed, unless it is still at a step."""
    self.pipe.close()
    self.process.join(_EXIT_SECONDS)
    self.process.kill()
    self.process.join()


def start_worker(
  name: str, make: Callable[[], TimedStep], cores: Sequence[int] = ()
) -> TimedWorker:
  """A worker that holds what `make` gives there, on the given cores or on all."""
  # a fork would copy whatever threads and devices the caller has
  context = multiprocessing.get_context('spawn')
  here, there = context.Pipe()
  process = context.Process(target=_serve, args=(there, make, cores))
  process.start()
  there.close()
  return TimedWorker(name, process, here)


def _serve(pipe: Any, make: Callable[[], TimedStep], cores: Sequence[int]) -> None:
  """The life of a worker: so many steps for each number that comes in, their seconds or what is
  wrong out.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends it
  if cores:
    os.sched_setaffinity(0, cores)
  try:
    seconds = make()
    while True:
      pipe.send(seconds(pipe.recv()))
  except (EOFError, BrokenPipeError):  # the main process has closed the pipe, or has ended
    return
  except (
    ImportError,
    AssertionError,
    RuntimeError,
    InputError,
  ) as error:  # also what torch.compile and CUDA raise
    pipe.send(f'{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}')
