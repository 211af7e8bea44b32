"""Writes the log of a run, metrics.jsonl, and its summary, result.json.

The log has one line for each member and event: a chunk of updates or an evaluation. The summary is
computed from these lines.
"""

import collections
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from minilm_jax.core import distributed, files, progress, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.model import flops
from minilm_jax.training import log_sinks, optimizer, population

SPIKE_WINDOW = 10  # earlier lines in the comparison of a loss
SPIKE_DEVIATIONS = 5.0  # median absolute deviations
SPIKE_SHARE = 0.05  # of the median


class MetricsLog:
  """Appends lines to metrics.jsonl, and sends them to the sinks.

  Args:
    length: Tokens of a row of the corpus, at most the `max_length` of the model.
    lines: Lines of earlier starts; their seconds count too.
  """

  def __init__(
    self,
    config: RunConfig,
    workdir: epath.Path,
    length: int,
    lines: list[dict[str, Any]],
    send: log_sinks.Send = lambda lines: None,
  ):
    self._config, self._workdir, self._length, self._send = config, workdir, length, send
    members = population.member_configs(config)
    self._has_members = len(members) > 1
    self._schedules = [
      optimizer.build_schedule(member.optimizer, member.num_steps) for member in members
    ]
    self._flops_per_row = flops.actual_flops(config.model, config.largest_mask, length)
    self._started = time.monotonic() - (lines[-1]['seconds'] if lines else 0)
    train = [line for line in lines if line['split'] == 'train']
    self._recent_losses = [
      collections.deque(
        (line['loss'] for line in train if line.get('member', member) == member), SPIKE_WINDOW
      )
      for member in range(len(members))
    ]

  @distributed.raise_together()
  def write(self, split: str, step: int, metrics: Mapping[int, dict[str, float]]) -> str:
    """Writes a line for each member, and returns a summary of their losses.

    Raises:
      InputError: A loss is not finite.
      OSError: Metrics.jsonl could not be written.
    """
    rows, seconds = step * self._config.batch_size, round(time.monotonic() - self._started, 3)
    records = []
    for member, values in metrics.items():
      member_field = {'member': member} if self._has_members else {}
      of_member = f' of member {member}' if self._has_members else ''
      if not math.isfinite(values['loss']):
        raise InputError(
          f'a finite {split} loss at update {step}{of_member}',
          f'loss={values["loss"]}',
          'lower optimizer.learning_rate or set optimizer.clip; '
          f'{self._workdir} has the last checkpoint',
        )
      record = {
        'step': step,
        'split': split,
        **member_field,
        **values,
        'tokens': rows * self._length,
        'flops': rows * self._flops_per_row,
        'seconds': seconds,
      }
      if split == 'train':
        record['learning_rate'] = np.asarray(self._schedules[member](step - 1)).item()
        self._check_spike(member, step, values['loss'], of_member)
      run_dir.append_line(self._workdir / run_dir.METRICS, record)
      records.append(record)
    self._send(records)
    return _summarize([values['loss'] for values in metrics.values()], rows * self._flops_per_row)

  def _check_spike(self, member: int, step: int, loss: float, of_member: str) -> None:
    """Logs a spike of the training loss, and adds the loss to the window."""
    recent = self._recent_losses[member]
    if is_spike(recent, loss):
      progress.log(
        f'a spike at update {step:,}: the loss{of_member} is {loss:.3f}; the median of the '
        f'{SPIKE_WINDOW} lines before is {np.median(recent):.3f}'
      )
    recent.append(loss)


def _summarize(losses: list[float], flops: float) -> str:
  if not losses:
    return 'no loss'
  spread = (
    f' ({min(losses):.3f} to {max(losses):.3f}, {len(losses)} members)' if len(losses) > 1 else ''
  )
  return f'loss {np.mean(losses):.3f}{spread}, {flops:.2e} FLOPs'


def is_spike(losses: Sequence[float], loss: float) -> bool:
  """Returns whether a training loss is far above the ten earlier losses.

  A spike exceeds their median by five median absolute deviations and by 5%.

  >>> is_spike([3.0, 3.1] * 5, 3.2), is_spike([3.0, 3.1] * 5, 4.0), is_spike([3.0, 3.1], 4.0)
  (False, True, False)
  """
  if len(losses) < SPIKE_WINDOW:
    return False
  median = np.median(losses)
  deviation = np.median(np.abs(np.array(losses) - median))
  return bool(loss - median > max(SPIKE_DEVIATIONS * deviation, SPIKE_SHARE * abs(median)))


def line_fields(config: RunConfig) -> tuple[str, ...]:
  """Returns the fields that each line of the log of a run has."""
  return (*run_dir.RUN_LINE, 'member') if config.population.members > 1 else run_dir.RUN_LINE


def validation_losses(lines: Sequence[dict[str, Any]]) -> dict[int, float]:
  """Returns the validation loss by step; the mean over members for a population."""
  losses: dict[int, list[float]] = {}
  for line in lines:
    if line['split'] == 'validation':
      losses.setdefault(line['step'], []).append(line['loss'])
  return {step: float(np.mean(values)) for step, values in losses.items()}


def write_result(config: RunConfig, workdir: epath.Path) -> dict[str, Any]:
  """Writes result.json from the log of the run, and returns its content."""
  lines = list(run_dir.read_lines(workdir / run_dir.METRICS, line_fields(config)))
  result: dict[str, Any] = {'updates': config.num_steps}
  if origin := run_dir.name_origin(workdir):
    result[run_dir.ORIGIN] = origin
  if config.population.members == 1:
    result |= _summarize_run(lines)
  else:
    result['members'] = [
      {
        'member': n,
        'seed': member.seed,
        **_summarize_run([line for line in lines if line['member'] == n]),
      }
      for n, member in enumerate(population.member_configs(config))
    ]
  files.write_json(workdir / run_dir.RESULT, result)
  return result


def _summarize_run(lines: list[dict[str, Any]]) -> dict[str, Any]:
  """Returns the last training line of a member, the steps of its spikes, and its test loss."""
  train = [line for line in lines if line['split'] == 'train']
  if not train:
    return {}
  test = next((line for line in lines if line['split'] == 'test'), None)
  losses = [line['loss'] for line in train]
  spikes = [
    line['step']
    for n, line in enumerate(train)
    if is_spike(losses[max(n - SPIKE_WINDOW, 0) : n], line['loss'])
  ]
  result = {
    'train_loss': losses[-1],
    **{name: train[-1][name] for name in ('tokens', 'flops', 'seconds')},
    'spikes': spikes,
  }
  return result | (
    {'test_loss': test['loss'], 'test_perplexity': test['perplexity']} if test else {}
  )
