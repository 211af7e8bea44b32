"""Runs competitors that train the same model, each in a separate process.

PyTorch pre-trains, and the `Trainer` of Hugging Face fine-tunes. Separate processes have separate
thread pools and allocators. The caller waits for each result, so that one process computes at a
time. `pytorch_model` and `hf_trainer` have the steps; this module imports neither torch nor
transformers.
"""

import contextlib
import functools
import itertools
import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from minilm_jax.bench import timing
from minilm_jax.bench.timing import TimedWorker
from minilm_jax.core import backend, progress
from minilm_jax.core.config import FinetuneConfig, RunConfig
from minilm_jax.core.errors import InputError, check_name, require_library
from minilm_jax.core.model_config import EncoderConfig

COMPETITORS = ('torch',)
# Fields of the model and masks of paper 1, which the PyTorch step implements.
_SUPPORTED_VALUES = {
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
  'population.members': 1,
}
_MICRO_BATCH_ROWS = (16, 4)  # sizes to try on a CPU, in addition to the batch
_FIRST_STEP_SECONDS = 300  # time limit of a first step, which can compile
_TRIALS = 3


def check_competitor(config: RunConfig, competitor: str, platform: str) -> None:
  """Checks that a competitor can run the recipe; '' is no competitor.

  Args:
    config: the recipe.
    competitor: one of `COMPETITORS`, or ''.
    platform: platform of the devices of JAX.

  Raises:
    InputError: the competitor is unknown or not installed, or lacks the device or a field of the
      recipe.
  """
  if not competitor:
    return
  flag = f'--compare_with={competitor}'
  check_name(flag, 'competitor', competitor, COMPETITORS)
  require_library('torch', 'peers', flag)
  if platform not in ('cpu', 'gpu'):
    raise InputError(flag, f'JAX devices of the platform {platform}', 'compare on a CPU or a GPU')
  for field, value in _SUPPORTED_VALUES.items():
    actual = operator.attrgetter(field)(config)
    if actual != value:
      raise InputError(
        flag, f'{field}={actual!r}', f'give {field}={value!r}, as in the recipes of paper 1'
      )


@contextlib.contextmanager
def start_competitors(
  config: RunConfig, competitor: str, platform: str, rows: np.ndarray
) -> Iterator[dict[str, TimedWorker]]:
  """Yields warm workers: `released`, the released code, and `best_torch`, the fastest PyTorch step.

  Trials find the fastest step. They vary the size of micro-batches, and the loss with or without
  blocks. The last trial compiles the fastest of these steps with torch.compile.

  Args:
    config: the recipe.
    competitor: 'torch'; '' yields no workers.
    platform: platform of the devices of JAX, 'cpu' or 'gpu'.
    rows: token ids `[N L]` to train on.

  Raises:
    InputError: PyTorch cannot make a step.
  """
  if not competitor:
    yield {}
    return
  with contextlib.ExitStack() as stack:

    def start(options: dict[str, Any]) -> TimedWorker:
      device = 'cpu' if platform == 'cpu' else 'cuda'
      make_step = functools.partial(_make_pytorch_step, config, rows, device, **options)
      worker = timing.start_worker(_format_options(options), make_step)
      stack.callback(worker.close)
      return worker

    best, best_options, best_seconds = None, {}, math.inf

    def try_options(**options: Any) -> None:
      nonlocal best, best_options, best_seconds
      slower = start(options)
      seconds = _time_trial(slower)
      if seconds < best_seconds:
        best, best_options, best_seconds, slower = slower, options, seconds, best
      if slower:
        slower.close()

    released = start({})
    released(1, _FIRST_STEP_SECONDS)
    sizes = [
      config.batch_size,
      *(n for n in _MICRO_BATCH_ROWS if n < config.batch_size and platform == 'cpu'),
    ]
    for micro_batch_rows, fused_loss in itertools.product(sizes, (False, True)):
      try_options(micro_batch_rows=micro_batch_rows, fused_loss=fused_loss, compiled=False)
    if not best:
      raise InputError(
        'a step of PyTorch',
        'an error with all options',
        'fix the errors in the log, or remove --compare_with',
      )
    try_options(**best_options | {'compiled': True})
    yield {'released': released, 'best_torch': best}


def _time_trial(worker: TimedWorker) -> float:
  """Returns the seconds of the fastest of a few steps after the first; infinity for an error."""
  try:
    worker(1, _FIRST_STEP_SECONDS)
    seconds = min(worker(1) for _ in range(_TRIALS))
  except InputError as error:
    progress.log(f'PyTorch, {worker.name}: skipped, {error.found}')
    return math.inf
  progress.log(f'PyTorch, {worker.name}: {1e3 * seconds:,.0f} ms a step')
  return seconds


def _format_options(options: dict[str, Any]) -> str:
  if not options:
    return 'as released'
  mode = 'compiled' if options['compiled'] else 'eager'
  loss = ', fused loss' if options['fused_loss'] else ''
  return f'{mode}, {options["micro_batch_rows"]} rows at once{loss}'


def _make_pytorch_step(*arguments: Any, **options: Any) -> timing.TimedStep:
  from minilm_jax.bench import pytorch_model  # imports torch, in the worker process only

  return pytorch_model.time_pytorch_step(backend.count_cores(), *arguments, **options)


def time_hf_trainer(
  config: FinetuneConfig,
  shape: EncoderConfig,
  rows: np.ndarray,
  labels: np.ndarray,
  classes: int,
  threads: int,
) -> dict[str, float]:
  """Times the fine-tuning of a RoBERTa of random weights by the `Trainer` of Hugging Face.

  The time is that of `trainer.train()`, in float32, after a few steps of another Trainer and model.
  The Trainer uses a GPU where PyTorch finds one, and the CPU elsewhere. Logs, evaluation and
  checkpoints are off. The optimizer is the default: AdamW, linear decay without warm-up, clipping at 1.

  Args:
    config: the recipe; its first seed and `optimizer.learning_rate` count.
    shape: sizes, segments, activation, dropout and norm_epsilon of the model.
    rows: token ids `[N L]` with padding at the end; L is at most `shape.max_length`.
    labels: `[N]` class indices, or numbers if `classes` is 0.
    classes: number of classes; 0 for a regression.
    threads: threads of an operation. One thread can be much faster for a tiny model or on a busy
      machine, because waiting threads spin.

  Returns:
    `seconds` and `updates`.
  """
  updates = math.ceil(config.epochs * math.ceil(len(rows) / config.batch_size))
  make_step = functools.partial(_build_trainer, threads, config, shape, rows, labels, classes)
  with contextlib.closing(timing.start_worker('Hugging Face Trainer', make_step)) as worker:
    return worker(updates)


def _build_trainer(*arguments: Any) -> timing.TimedStep:
  from minilm_jax.bench import hf_trainer  # imports torch, in the worker process only

  return hf_trainer.time_trainer(*arguments)
