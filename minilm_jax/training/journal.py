"""The log of a run: a line of metrics for each member and chunk, and the result that follows from the lines."""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from minilm_jax import hosts, progress, run
from minilm_jax.config import RunConfig
from minilm_jax.errors import InputError
from minilm_jax.model import size
from minilm_jax.training import optimizer, outlets, population

Log = Callable[[str, int, Mapping[int, dict[str, float]]], str]
_BEFORE, _DEVIATIONS, _SHARE = 10, 5.0, 0.05  # lines that a loss is held against, and how far above them a spike is


def writer(config: RunConfig, workdir: epath.Path, length: int, lines: list[dict[str, Any]],
           send: outlets.Send = lambda lines: None) -> Log:
  """A function that appends a line for each member to metrics.jsonl and says the loss in a few words.

  Args:
    config: the recipe.
    workdir: of the run.
    length: tokens of a row of the corpus; the model may be able to read longer ones.
    lines: what an earlier start left, whose time counts too.
    send: is given the lines of each moment too.
  """
  members = population.solo(config)
  rates = [optimizer.schedule(one.optimizer, one.updates) for one in members]
  most = max(members, key=lambda one: one.mask.rate).mask  # what the program computes for all
  flops_per_row = size.flops_per_row(dataclasses.replace(config.model, length=length), most)['actual']
  started = time.monotonic() - (lines[-1]['seconds'] if lines else 0)
  recent = [collections.deque((line['loss'] for line in _training(lines, number)), _BEFORE)
            for number in range(len(members))]

  @hosts.together()
  def log(split: str, done: int, values: Mapping[int, dict[str, float]]) -> str:
    rows, seconds = done * config.batch_size, round(time.monotonic() - started, 3)
    records = []
    for number, found in values.items():
      whose = {'member': number} if len(members) > 1 else {}
      if not math.isfinite(found['loss']):
        of = f' of member {number}' if whose else ''
        raise InputError(f'a finite {split} loss at update {done}{of}', f'{found["loss"]}',
                         f'lower optimizer.learning_rate or set optimizer.clip; {workdir} keeps its last checkpoint')
      record = {'step': done, 'split': split, **whose, **found, 'tokens': rows * length, 'flops': rows * flops_per_row,
                'seconds': seconds}
      if split == 'train':
        record['learning_rate'] = float(rates[number](done - 1))
        if is_spike(recent[number], found['loss']):
          of = f' of member {number}' if whose else ''
          progress.say(f'a spike at update {done:,}: the loss{of} is {found["loss"]:.3f}, and the median of the '
                       f'{_BEFORE} lines before it {np.median(recent[number]):.3f}')
        recent[number].append(found['loss'])
      run.append_line(workdir / run.METRICS, record)
      records.append(record)
    send(records)
    losses = [found['loss'] for found in values.values()]
    return _in_words(losses, rows * flops_per_row)

  return log


def _in_words(losses: list[float], flops: float) -> str:
  if not losses:
    return 'no loss'
  spread = f' ({min(losses):.3f} to {max(losses):.3f}, {len(losses)} members)' if len(losses) > 1 else ''
  return f'loss {np.mean(losses):.3f}{spread}, {flops:.2e} FLOPs'


def is_spike(before: Sequence[float], loss: float) -> bool:
  """Is a training loss far above the ten lines before it? By five of their median absolute deviations and by 5%.

  >>> is_spike([3.0, 3.1] * 5, 3.2), is_spike([3.0, 3.1] * 5, 4.0), is_spike([3.0, 3.1], 4.0)
  (False, True, False)
  """
  if len(before) < _BEFORE:
    return False
  median = np.median(before)
  deviation = np.median(np.abs(np.array(before) - median))
  return bool(loss - median > max(_DEVIATIONS * deviation, _SHARE * abs(median)))


def validation_losses(lines: Sequence[dict[str, Any]]) -> dict[int, float]:
  """The validation loss by step, of a population the mean of its members, as `trainer` gives it to the saves."""
  found: dict[int, list[float]] = {}
  for line in lines:
    if line['split'] == 'validation':
      found.setdefault(line['step'], []).append(line['loss'])
  return {step: float(np.mean(losses)) for step, losses in found.items()}


def _training(lines: Sequence[dict[str, Any]], number: int) -> list[dict[str, Any]]:
  """The training lines of one member; those of a run of one model name none."""
  return [line for line in lines if line['split'] == 'train' and ('member' not in line or line['member'] == number)]


def finish(config: RunConfig, workdir: epath.Path) -> dict[str, Any]:
  """Writes result.json from the lines of the run, and returns it."""
  lines = list(run.read_lines(workdir / run.METRICS))
  result: dict[str, Any] = {'updates': config.updates}
  if config.population.members == 1:
    result |= _last(lines)
  else:
    result['members'] = [{'member': n, 'seed': one.seed, **_last([line for line in lines if line['member'] == n])}
                         for n, one in enumerate(population.solo(config))]
  run.write_json(workdir / run.RESULT, result)
  return result


def _last(lines: list[dict[str, Any]]) -> dict[str, Any]:
  """Where one member stands at its end: the last line of training, the steps of its spikes, and the test."""
  train = [line for line in lines if line['split'] == 'train']
  if not train:
    return {}
  test = next((line for line in lines if line['split'] == 'test'), None)
  losses = [line['loss'] for line in train]
  spikes = [line['step'] for n, line in enumerate(train) if is_spike(losses[max(n - _BEFORE, 0):n], line['loss'])]
  found = {'train_loss': losses[-1], **{name: train[-1][name] for name in ('tokens', 'flops', 'seconds')},
           'spikes': spikes}
  return found | ({'test_loss': test['loss'], 'test_perplexity': test['perplexity']} if test else {})
