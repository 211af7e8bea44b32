"""Who is trained on a task, and what of it is reported.

Members are every pair of a start, a learning rate and a seed. Each is scored after its last epoch and, where a part of
the training examples is held out, after the epoch that was best there: nothing is ever chosen on what is reported.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from minilm_jax.config import FinetuneConfig
from minilm_jax.tasks import metrics
from minilm_jax.tasks.table import REGRESSION, Task

HELD_OUT = 'held_out'  # in the place of a split
BEST, LAST = 'best', 'last'
_SUMMARISED = ('pretrained', 'checkpoint_step', 'learning_rate', 'epoch_choice', 'split', 'metric')
Outputs = Float[np.ndarray, 'N C']
Labels = Shaped[np.ndarray, 'N']


@dataclasses.dataclass(frozen=True)
class Entry:
  """One member: its number, the step of the checkpoint that it starts from (None: from scratch), its seed and rate."""

  member: int
  step: int | None
  seed: int
  learning_rate: float

  def fields(self) -> dict[str, Any]:
    """How lines of the run's logs name it."""
    return {'pretrained': self.step is not None, 'checkpoint_step': self.step, 'seed': self.seed,
            'learning_rate': self.learning_rate, 'member': self.member}


@dataclasses.dataclass(frozen=True)
class Scored:
  """A member after some epochs: its headline on what is held out (nan without), its outputs on each split `[N C]`.

  `model` is the member then, where it is to be kept.
  """

  epoch: float
  selection: float
  outputs: Mapping[str, Outputs]
  model: Any = None


def entries(config: FinetuneConfig, starts: Sequence[int | None]) -> list[Entry]:
  """The members: for each start, for each learning rate, one a seed."""
  rates = config.learning_rates or (config.optimizer.learning_rate,)
  each = ((step, seed, rate) for step in starts for rate in rates for seed in config.seeds)
  return [Entry(number, *one) for number, one in enumerate(each)]


def epoch_ends(updates: int, epochs: float) -> list[tuple[float, int]]:
  """(epoch, update) of the end of each epoch; the last may be a part of one, and several may end with one update.

  >>> epoch_ends(8, 2.5)
  [(1.0, 4), (2.0, 7), (2.5, 8)]
  """
  passed = (min(float(number), epochs) for number in range(1, math.ceil(epochs) + 1))
  ends = {min(updates, math.ceil(epoch * updates / epochs)): epoch for epoch in passed}
  return [(epoch, end) for end, epoch in ends.items()]


def epochs_reported(config: FinetuneConfig) -> tuple[str, ...]:
  """Which epochs of a member are scored."""
  return (BEST, LAST) if config.validation_fraction else (LAST,)


def predictions(task: Task, outputs: Outputs) -> Labels:
  """What a model says: class indices, or numbers."""
  return outputs[:, 0] if task.kind == REGRESSION else outputs.argmax(-1)


def values(task: Task, outputs: Outputs, labels: Labels) -> dict[str, float]:
  """Each metric of the task; nan throughout where the model has outputs that are no numbers."""
  if not np.isfinite(outputs).all():
    return dict.fromkeys(task.metrics, math.nan)
  return metrics.compute(task.metrics, predictions(task, outputs), labels)


def headline(task: Task, outputs: Outputs, labels: Labels) -> float:
  """The one number that the task is judged by."""
  return values(task, outputs, labels)[task.headline]


def better(now: Scored, before: Scored | None) -> bool:
  """Whether an epoch is to be kept as the best; of equal ones the first is."""
  return before is None or _or_least(now.selection) > _or_least(before.selection)


def _or_least(value: float) -> float:
  return -math.inf if math.isnan(value) else value


def lines(task: Task, entry: Entry, kept: Mapping[str, Scored], labels: Mapping[str, Labels],
          floors: Mapping[str, Mapping[str, dict[str, float]]]) -> Iterator[dict[str, Any]]:
  """The score lines of a member: for each epoch and split that is reported, one a metric.

  Args:
    task: with metrics and headline.
    entry: whose they are.
    kept: what was scored, by `best` and `last`.
    labels: of each reported split.
    floors: the baselines `majority` and `frequency` of each reported split, by metric.
  """
  for which, scored in kept.items():
    for split, right in labels.items():
      outputs = scored.outputs[split]
      fine = np.isfinite(outputs).all()
      said = predictions(task, outputs)
      spread = metrics.spread(task.metrics, said, right) if fine else dict.fromkeys(task.metrics, (math.nan,) * 2)
      for metric, value in values(task, outputs, right).items():
        yield {'task': task.name, 'metric': metric, 'value': value, 'low': spread[metric][0], 'high': spread[metric][1],
               'headline': metric == task.headline, 'split': split, 'examples': len(right), **entry.fields(),
               'epoch_choice': which, 'epoch': scored.epoch, 'validation_score': scored.selection,
               **{name: floor[metric] for name, floor in floors[split].items()},
               'constant_prediction': not fine or metrics.collapsed(said)}


def summaries(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Mean, standard deviation and interval over seeds, for each start, learning rate, epoch, split and metric."""
  groups: dict[tuple[Any, ...], list[float]] = {}
  for line in lines:
    key = tuple(line[name] for name in _SUMMARISED)
    groups.setdefault(key, []).append(math.nan if line['value'] is None else line['value'])
  return [dict(zip(_SUMMARISED, key, strict=True)) | metrics.summary(found) for key, found in groups.items()]
