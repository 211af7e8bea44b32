"""Competitors that train the same model, each in a process of its own.

PyTorch pre-trains, the `Trainer` of Hugging Face fine-tunes. Separate processes keep thread pools
and allocators apart; because the caller waits for the answer, only one of them computes at a time.
The steps are in `pytorch_model` and `hf_trainer`; this module needs neither torch nor transformers.
"""

import contextlib
import functools
import importlib.util
import itertools
import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from minilm_jax.bench import timing
from minilm_jax.bench.timing import TimedWorker
from minilm_jax.bench.trainer_task import TrainerTask
from minilm_jax.core import backend, progress
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.core.model_config import EncoderConfig

COMPETITORS = ('torch',)
# What the model of paper 1 is; the step is written for nothing else.
_WRITTEN_FOR = {
  'model.norm': 'post',
  'model.positions': 'learned',
  'model.activation': 'gelu',
  'model.segments': 2,
  'model.projection': True,
  'model.tied': False,
  'mask.random_share': 0,
  'mask.keep_share': 0,
  'model.convolutions': 0,
  'model.position_offset': 2,
  'model.encoder': '',
  'mask.span': 0,
  'model.short_convolution': 0,
  'optimizer.algorithm': 'adamw',
}
_MICRO_BATCH_ROWS = (16, 4)  # tried on a CPU besides the whole batch
_PATIENCE = 300  # seconds for a first step, which may compile
_TRIALS = 3
_TRAINER_NEEDS = ('torch', 'transformers', 'accelerate')
_PADS = ('longest', 'max')


def check_competitor(config: RunConfig, against: str, platform: str) -> None:
  """Refuses what there is no peer for; '' is nobody.

  Raises:
    InputError: an unknown peer, one that is not installed, a device or a recipe that its step is
      not written for.
  """
  if not against:
    return
  if against not in COMPETITORS:
    raise InputError(
      f'--compare_with={against}', 'no such peer', suggest_name(against, COMPETITORS)
    )
  if importlib.util.find_spec('torch') is None:
    raise InputError(
      '--compare_with=torch', 'PyTorch is not installed', "pip install 'minilm_jax[peers]'"
    )
  if platform not in ('cpu', 'gpu'):
    raise InputError(
      '--compare_with=torch', f'JAX computes on a {platform}', 'compare on a CPU or a GPU'
    )
  for path, value in _WRITTEN_FOR.items():
    found = operator.attrgetter(path)(config)
    if found != value:
      raise InputError(
        '--compare_with=torch',
        f'{path}={found!r}',
        f'give a recipe of paper 1, where it is {value!r}',
      )


@contextlib.contextmanager
def start_competitors(
  config: RunConfig, against: str, platform: str, rows: np.ndarray
) -> Iterator[dict[str, TimedWorker]]:
  """Yields `released` and `best_torch`, warm and ready to be timed; nothing where `against` is ''.

  Which way is the best is tried here: micro-batches of several sizes, with and without PyTorch's
  loss in blocks, then the fastest of them with torch.compile.

  Args:
    rows: token ids `[N L]` to train on.

  Raises:
    InputError: PyTorch cannot take a step.
  """
  if not against:
    yield {}
    return
  with contextlib.ExitStack() as stack:

    def start(how: dict[str, Any]) -> TimedWorker:
      device = 'cpu' if platform == 'cpu' else 'cuda'
      worker = timing.start_worker(
        _name(how), functools.partial(_pytorch, config, rows, device, **how)
      )
      stack.callback(worker.close)
      return worker

    best, way, best_seconds = None, {}, math.inf

    def consider(**how: Any) -> None:
      nonlocal best, way, best_seconds
      rival = start(how)
      seconds = _trial(rival)
      if seconds < best_seconds:
        best, way, best_seconds, rival = rival, how, seconds, best
      if rival:
        rival.close()

    released = start({})
    released(1, _PATIENCE)
    sizes = [
      config.batch_size,
      *(n for n in _MICRO_BATCH_ROWS if n < config.batch_size and platform == 'cpu'),
    ]
    for at_once, fused_loss in itertools.product(sizes, (False, True)):
      consider(at_once=at_once, fused_loss=fused_loss, compiled=False)
    if not best:
      raise InputError(
        'a step of PyTorch',
        'none of its ways works',
        'fix the causes logged above, or leave PyTorch out',
      )
    consider(**way | {'compiled': True})
    yield {'released': released, 'best_torch': best}


def _trial(peer: TimedWorker) -> float:
  """Seconds of one step, infinitely many where it fails: after the first, which may compile, the
  best of a few.
  """
  try:
    peer(1, _PATIENCE)
    seconds = min(peer(1) for _ in range(_TRIALS))
  except InputError as error:
    progress.log(f'PyTorch, {peer.name}: {error.found}; going on without')
    return math.inf
  progress.log(f'PyTorch, {peer.name}: {1e3 * seconds:,.0f} ms a step')
  return seconds


def _name(how: dict[str, Any]) -> str:
  """A way in words; no way at all is that of the released code."""
  if not how:
    return 'as released'
  loss = ', fused loss' if how['fused_loss'] else ''
  return f'{"compiled" if how["compiled"] else "eager"}, {how["at_once"]} rows at once{loss}'


def _pytorch(*arguments: Any, **how: Any) -> timing.TimedStep:
  from minilm_jax.bench import (
    pytorch_model,  # in the process of the peer: this one does without torch
  )

  return pytorch_model.time_pytorch_step(backend.count_cores(), *arguments, **how)


def time_hf_trainer(
  task: TrainerTask, epochs: int | float, threads: int | None = None
) -> dict[str, float]:
  """Measures the seconds in which Hugging Face's `Trainer` fine-tunes a RoBERTa of random weights.

  The time is that of `trainer.train()` alone, in float32 on the CPU, after a few steps of another
  Trainer and model. Nothing is logged, evaluated or saved. AdamW, linear decay without warm-up and
  clipping at 1 are its defaults.

  Args:
    task: model, examples and settings.
    epochs: may be a fraction.
    threads: of one operation; None is one a core. For a tiny model, or on a busy machine, 1 can be
      much faster, because threads that wait for each other spin.

  Returns:
    `seconds`, `updates` and `final_loss`: the mean over the rows after training, without dropout;
    its time is not counted.

  Raises:
    InputError: transformers is not installed; RoBERTa has no such shape; rows or labels do not fit.
  """
  _check_trainer(task.shape, task.pad)
  _check_examples(task.rows, task.labels, task.shape, task.classes)
  threads = backend.count_cores() if threads is None else threads
  for name, value in (
    ('batch_size', task.batch_size),
    ('epochs', epochs),
    ('learning_rate', task.learning_rate),
    ('threads', threads),
  ):
    if not 0 < value < math.inf:
      raise InputError(f'{name}={value}', 'not a positive finite number', 'give one')
  updates = math.ceil(epochs * math.ceil(len(task.rows) / task.batch_size))
  worker = timing.start_worker(
    "Hugging Face's Trainer", functools.partial(_build_trainer, threads, task)
  )
  try:
    return worker(updates)
  finally:
    worker.close()


def _check_trainer(shape: EncoderConfig, pad: str) -> None:
  absent = [name for name in _TRAINER_NEEDS if importlib.util.find_spec(name) is None]
  if absent:
    raise InputError(
      "Hugging Face's Trainer", f'{", ".join(absent)} not installed', "pip install 'minilm_jax[hf]'"
    )
  if pad not in _PADS:
    raise InputError(f'pad={pad!r}', 'no such way to pad', suggest_name(pad, _PADS))
  for field, value in (('encoder', ''), ('norm', 'post'), ('positions', 'learned')):
    if getattr(shape, field) != value:
      raise InputError(
        "Hugging Face's Trainer",
        f'model.{field}={getattr(shape, field)!r}',
        f'give {value!r}: RoBERTa has no other',
      )


def _check_examples(
  rows: np.ndarray, labels: np.ndarray, shape: EncoderConfig, classes: int
) -> None:
  if rows.ndim != 2 or labels.shape != rows.shape[:1] or not rows.size:
    raise InputError(
      'rows [N L] and labels [N]', f'{rows.shape} and {labels.shape}', 'give one label a row'
    )
  if rows.shape[1] > shape.max_length or rows.min() < 0 or rows.max() >= shape.vocab_size:
    raise InputError(
      f'rows of at most {shape.max_length} ids below {shape.vocab_size}',
      f'{rows.shape[1]} ids from {rows.min()} to {rows.max()}',
      'give the shape that they are made for',
    )
  if classes < 0 or classes == 1 or classes and (labels.min() < 0 or labels.max() >= classes):
    raise InputError(
      f'{classes} classes',
      f'labels from {labels.min()} to {labels.max()}',
      'give 0 for a regression, else one more than the greatest label',
    )


def _build_trainer(threads: int, task: TrainerTask) -> timing.TimedStep:
  from minilm_jax.bench import hf_trainer  # imports torch: in the process of the competitor alone

  return hf_trainer.time_trainer(threads, task)
