"""Times training steps in this process or in worker processes.

The timed program is the chunk that `pretrain` runs, on random rows. A worker process has separate
thread pools and allocators. It computes on request, so that competitors can be timed in turns or in
parallel.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import statistics
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import Array

from minilm_jax.core import backend, progress, signals
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer
from minilm_jax.data.rows import Corpus
from minilm_jax.training import program, sharding

MIN_VOCAB_SIZE = len(tokenizer.SPECIAL_TOKENS) + 1
_NUM_ROWS = 4096
_EXIT_SECONDS = 10  # time limit for a worker to exit
# Maps a number of steps to their duration in seconds, or to a dict of `seconds` and other numbers.
TimedStep = Callable[[int], Any]


def check_minimums(*limits: tuple[str, int, int]) -> None:
  """Checks triples of a name, its value and the smallest valid value.

  Raises:
    InputError: a value is below its minimum.
  """
  for name, value, minimum in limits:
    if value < minimum:
      raise InputError(f'{name}={value}', f'the minimum is {minimum}', f'give at least {minimum}')


def draw_rows(vocab_size: int, shape: tuple[int, int], seed: int, dtype: Any) -> np.ndarray:
  """Returns random rows without padding: a begin token, ordinary tokens and an end token."""
  random = np.random.default_rng(seed)
  rows = random.integers(len(tokenizer.SPECIAL_TOKENS), vocab_size, shape, dtype)
  rows[:, 0], rows[:, -1] = tokenizer.BEGIN_ID, tokenizer.END_ID
  return rows


def make_random_rows(config: RunConfig) -> np.ndarray:
  """Returns enough random training rows to exceed the caches of a processor."""
  model = config.model
  dtype = np.uint16 if model.vocab_size <= 1 << 16 else np.uint32
  return draw_rows(model.vocab_size, (_NUM_ROWS, model.max_length), config.seed, dtype)


def time_our_step(config: RunConfig, rows: np.ndarray) -> tuple[Callable[[int], float], float]:
  """Returns a function that times steps, and the seconds of the first step with its compilation."""
  train_program = program.build_program(config)
  corpus = jax.device_put(
    Corpus(typing.cast(Array, rows), config.model.vocab_size, 'random'),
    sharding.replicated(train_program.mesh),
  )
  state = train_program.init()

  def time_steps(count: int) -> float:
    nonlocal state
    start = time.perf_counter()
    state, sums, _ = train_program.chunk(state, corpus, program.step_count(train_program, count))
    jax.block_until_ready(sums)
    return time.perf_counter() - start

  return time_steps, time_steps(1)


@contextlib.contextmanager
def disable_compilation_cache() -> Iterator[None]:
  """Compiles without the persistent compilation cache."""
  is_enabled = backend.read_setting('jax_enable_compilation_cache')

  def enable(value: bool) -> None:
    compilation_cache.reset_cache()  # JAX reads the setting once, at the first compilation
    jax.config.update('jax_enable_compilation_cache', value)

  enable(False)
  try:
    yield
  finally:
    enable(is_enabled)


def time_interleaved(
  timed_steps: Mapping[str, TimedStep], steps: int, repeats: int, label: str = ''
) -> dict[str, list[float]]:
  """Times competitors in turns, so that other load on the machine affects all of them.

  Args:
    timed_steps: the competitors by name.
    steps: steps of each competitor in a round.
    repeats: timed rounds; one more round runs before them and is not counted.
    label: prefix of the log line with the expected duration; '' logs nothing.

  Returns:
    Seconds a step of each competitor, by round.
  """
  start = time.perf_counter()
  for step in timed_steps.values():
    step(steps)
  # A progress bar would draw from a thread of its own during the timed rounds.
  if label:
    duration = progress.format_duration(repeats * (time.perf_counter() - start))
    progress.log(f'{label}: timing {repeats:,} rounds, in about {duration}')
  rounds = [
    {name: step(steps) / steps for name, step in timed_steps.items()} for _ in range(repeats)
  ]
  return {name: [seconds[name] for seconds in rounds] for name in timed_steps}


def summarize_times(seconds: Sequence[float]) -> dict[str, float]:
  """Returns the median, lowest and highest of times, in milliseconds."""
  return {
    'median': 1e3 * statistics.median(seconds),
    'lowest': 1e3 * min(seconds),
    'highest': 1e3 * max(seconds),
  }


def format_times(summary: Mapping[str, float]) -> str:
  """Returns the table cell of `summarize_times`."""
  return f'{summary["median"]:,.1f} ({summary["lowest"]:,.1f}, {summary["highest"]:,.1f})'


@dataclasses.dataclass(frozen=True)
class TimedWorker:
  """A process that trains a model on request and is idle otherwise.

  Attributes:
    name: the competitor, as errors name it.
    process: the worker process.
    pipe: the connection of `multiprocessing.Pipe` to the worker.
  """

  name: str
  process: Any
  pipe: Any

  def __call__(self, steps: int, timeout: float | None = None) -> Any:
    """Runs steps and returns the answer of the worker: seconds, or a dict with `seconds`.

    Raises:
      InputError: the worker cannot run the steps, or exceeds `timeout` seconds.
    """
    self.begin(steps)
    return self.end(timeout)

  def begin(self, steps: int) -> None:
    """Requests steps without waiting for them."""
    with contextlib.suppress(OSError):  # `end` reports a worker that has exited
      self.pipe.send(steps)

  def end(self, timeout: float | None = None) -> Any:
    """Waits for the requested steps and returns the answer of the worker."""
    try:
      answered = self.pipe.poll(timeout)
      reply = self.pipe.recv() if answered else f'no answer within {timeout} seconds'
    except (EOFError, OSError):
      self.process.join(_EXIT_SECONDS)
      reply = f'the process exited with status {self.process.exitcode}'
    if isinstance(reply, str):
      raise InputError(
        f'a step of {self.name}',
        reply,
        'install the libraries that it needs, or remove --compare_with',
      )
    return reply

  def close(self) -> None:
    """Closes the pipe, which ends an idle worker, and kills a worker that is still computing."""
    self.pipe.close()
    self.process.join(_EXIT_SECONDS)
    self.process.kill()
    self.process.join()


def start_worker(
  name: str, make_step: Callable[[], TimedStep], cores: Sequence[int] = ()
) -> TimedWorker:
  """Starts a worker that runs the step from `make_step`, on the given cores or on all cores."""
  # A fork would copy the threads and devices of this process.
  context = multiprocessing.get_context('spawn')
  pipe, worker_pipe = context.Pipe()
  process = context.Process(target=_serve, args=(worker_pipe, make_step, cores))
  process.start()
  worker_pipe.close()
  return TimedWorker(name, process, pipe)


def _serve(pipe: Any, make_step: Callable[[], TimedStep], cores: Sequence[int]) -> None:
  """Answers each received number of steps with their times; sends the text of an error."""
  signals.ignore_in_worker()
  if cores:
    os.sched_setaffinity(0, cores)
  try:
    step = make_step()
    while True:
      pipe.send(step(pipe.recv()))
  except (EOFError, BrokenPipeError):  # the main process closed the pipe or exited
    return
  # torch.compile and CUDA raise RuntimeError and AssertionError.
  except (ImportError, AssertionError, RuntimeError, InputError) as error:
    pipe.send(f'{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}')
