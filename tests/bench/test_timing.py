"""Timing: competitors run in turns; workers compute on request and report errors."""

import os
import time
from collections.abc import Callable

import pytest

from configs import tiny
from minilm_jax.bench import timing
from minilm_jax.core import recipe
from minilm_jax.core.errors import InputError


def test_competitors_run_in_turns():
  """The first round warms up and is not counted."""
  turns = []

  def make_step(name: str, seconds: float) -> Callable[[int], float]:
    return lambda steps: turns.append(name) or seconds * steps * (100 if len(turns) < 3 else 1)

  seconds = timing.time_interleaved(
    {'a': make_step('a', 1.0), 'b': make_step('b', 3.0)}, steps=4, repeats=2
  )
  assert turns == ['a', 'b'] * 3 and seconds == {'a': [1.0, 1.0], 'b': [3.0, 3.0]}


def make_core_counter() -> timing.TimedStep:
  """Returns a step whose seconds are the number of its cores."""
  return lambda steps: float(steps * len(os.sched_getaffinity(0)))


def make_slow_step() -> timing.TimedStep:
  return lambda steps: time.sleep(30) or 1.0


def make_broken_step() -> timing.TimedStep:
  raise RuntimeError('no kernel\nand more')


def test_a_worker_has_its_own_cores():
  cores = sorted(os.sched_getaffinity(0))
  worker = timing.start_worker('counter', make_core_counter, cores[:1])
  try:
    worker.begin(3)
    assert worker.end() == 3 and worker(2) == 2
  finally:
    worker.close()
  assert worker.process.exitcode == 0 and len(os.sched_getaffinity(0)) == len(cores)


@pytest.mark.parametrize(
  'make_worker, part',
  [(make_slow_step, 'no answer within 2 seconds'), (make_broken_step, 'RuntimeError: no kernel')],
)
def test_a_failing_worker_reports_its_error(
  make_worker: Callable[[], timing.TimedStep], part: str, monkeypatch: pytest.MonkeyPatch
):
  monkeypatch.setattr(timing, '_EXIT_SECONDS', 1)
  worker = timing.start_worker('another', make_worker)
  try:
    with pytest.raises(InputError, match=part):
      worker(1, 2 if make_worker is make_slow_step else None)
  finally:
    worker.close()
  assert not worker.process.is_alive()


def test_the_timed_step_is_that_of_a_run():
  source = tiny.get_config()
  source.update_from_flattened_dict(
    {'batch_size': 4, 'model.vocab_size': 100, 'model.num_layers': 1, 'mesh.data': 1}
  )
  config = recipe.resolve(source, 'pretrain')
  rows = timing.make_random_rows(config)
  assert rows.shape[1] == config.model.max_length and rows.max() < 100
  time_steps, compile_seconds = timing.time_our_step(config, rows)
  assert 0 < time_steps(2) < compile_seconds
