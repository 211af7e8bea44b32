"""The stopwatch: turns are taken, workers compute only when told to and say what is wrong."""

import os
import time
from collections.abc import Callable

import pytest

from configs import tiny
from minilm_jax.bench import timing
from minilm_jax.core import recipe
from minilm_jax.core.errors import InputError


def test_contestants_take_turns():
  """So that what else the machine does hits all of them; the first round only warms up."""
  turns = []

  def one(name: str, seconds: float) -> Callable[[int], float]:
    return lambda steps: turns.append(name) or seconds * steps * (100 if len(turns) < 3 else 1)

  found = timing.time_interleaved(
    {'ours': one('ours', 1.0), 'theirs': one('theirs', 3.0)}, steps=4, repeats=2
  )
  assert turns == ['ours', 'theirs'] * 3 and found == {'ours': [1.0, 1.0], 'theirs': [3.0, 3.0]}


def counting() -> timing.TimedStep:
  """As many seconds as cores it may use, a step."""
  return lambda steps: float(steps * len(os.sched_getaffinity(0)))


def slow() -> timing.TimedStep:
  return lambda steps: time.sleep(30) or 1.0


def broken() -> timing.TimedStep:
  raise RuntimeError('no kernel\nand more')


def test_a_worker_has_its_own_cores():
  cores = sorted(os.sched_getaffinity(0))
  worker = timing.start_worker('one', counting, cores[:1])
  try:
    worker.begin(3)
    assert worker.end() == 3 and worker(2) == 2
  finally:
    worker.close()
  assert worker.process.exitcode == 0 and len(os.sched_getaffinity(0)) == len(cores)


@pytest.mark.parametrize(
  'make, said', [(slow, 'no answer within 2 seconds'), (broken, 'RuntimeError: no kernel')]
)
def test_a_worker_that_cannot_says_so(
  make: Callable[[], timing.TimedStep], said: str, monkeypatch: pytest.MonkeyPatch
):
  monkeypatch.setattr(timing, '_EXIT_SECONDS', 1)
  worker = timing.start_worker('another', make)
  try:
    with pytest.raises(InputError, match=said):
      worker(1, 2 if make is slow else None)
  finally:
    worker.close()
  assert not worker.process.is_alive()


def test_what_is_timed_is_the_chunk_of_a_run():
  made = tiny.get_config()
  made.update_from_flattened_dict(
    {'batch_size': 4, 'model.vocab_size': 100, 'model.num_layers': 1, 'mesh.data': 1}
  )
  config = recipe.resolve(made, 'pretrain')
  rows = timing.make_random_rows(config)
  assert rows.shape[1] == config.model.max_length and rows.max() < 100
  timed, compiling = timing.time_our_step(config, rows)
  assert 0 < timed(2) < compiling
