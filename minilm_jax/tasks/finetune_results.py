"""Who is trained on a task, and what of it is reported.

Members are every pair of a start, a learning rate and a seed. Each is scored after its last epoch
and, where a part of the training examples is held out, after the epoch that was best there: nothing
is ever chosen on what is reported.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Shaped

from minilm_jax.core import files, progress, run_dir
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.tasks import metrics
from minilm_jax.tasks.task import REGRESSION, Task
from minilm_jax.tasks.task_data import TaskData

BEST_EPOCH, LAST_EPOCH = 'best', 'last'
_SUMMARISED = ('pretrained', 'checkpoint_step', 'learning_rate', 'epoch_choice', 'split', 'metric')
Outputs = Float[np.ndarray, 'N C']
Labels = Shaped[np.ndarray, 'N']


@dataclasses.dataclass(frozen=True)
class MemberSpec:
  """One member: its number, the step of the checkpoint that it starts from (None: from scratch),
  its seed and rate.
  """

  member: int
  step: int | None
  seed: int
  learning_rate: float

  def fields(self) -> dict[str, Any]:
    """How lines of the run's logs name it."""
    return {
      'pretrained': self.step is not None,
      'checkpoint_step': self.step,
      'seed': self.seed,
      'learning_rate': self.learning_rate,
      'member': self.member,
    }


@dataclasses.dataclass(frozen=True)
class EpochResult:
  """A member after some epochs: its headline on what is held out (nan without), its outputs on each
  split `[N C]`.

  `model` is the member then, where it is to be kept.
  """

  epoch: float
  selection: float
  outputs: Mapping[str, Outputs]
  model: Any = None


def member_specs(config: FinetuneConfig, starts: Sequence[int | None]) -> list[MemberSpec]:
  """The members: for each start, for each learning rate, one a seed."""
  rates = config.learning_rates or (config.optimizer.learning_rate,)
  each = ((step, seed, rate) for step in starts for rate in rates for seed in config.seeds)
  return [MemberSpec(number, *one) for number, one in enumerate(each)]


def epoch_ends(updates: int, epochs: float) -> list[tuple[float, int]]:
  """(epoch, update) of the end of each epoch; the last may be a part of one, and several may end
  with one update.

  >>> epoch_ends(8, 2.5)
  [(1.0, 4), (2.0, 7), (2.5, 8)]
  """
  passed = (min(float(number), epochs) for number in range(1, math.ceil(epochs) + 1))
  ends = {min(updates, math.ceil(epoch * updates / epochs)): epoch for epoch in passed}
  return [(epoch, end) for end, epoch in ends.items()]


def reported_epochs(config: FinetuneConfig) -> tuple[str, ...]:
  """Which epochs of a member are scored."""
  return (BEST_EPOCH, LAST_EPOCH) if config.validation_fraction else (LAST_EPOCH,)


def decode_outputs(task: Task, outputs: Outputs) -> Labels:
  """What a model says: class indices, or numbers."""
  return outputs[:, 0] if task.kind == REGRESSION else outputs.argmax(-1)


def metric_values(task: Task, outputs: Outputs, labels: Labels) -> dict[str, float]:
  """Each metric of the task; nan throughout where the model has outputs that are no numbers."""
  if not np.isfinite(outputs).all():
    return dict.fromkeys(task.metrics, math.nan)
  return metrics.compute_metric(task.metrics, decode_outputs(task, outputs), labels)


def headline_value(task: Task, outputs: Outputs, labels: Labels) -> float:
  """The one number that the task is judged by."""
  return metric_values(task, outputs, labels)[task.headline]


def is_better(now: EpochResult, before: EpochResult | None) -> bool:
  """Whether an epoch is to be kept as the best; of equal ones the first is."""
  return before is None or _or_minimum(now.selection) > _or_minimum(before.selection)


def _or_minimum(value: float) -> float:
  return -math.inf if math.isnan(value) else value


def score_lines(
  task: Task,
  entry: MemberSpec,
  kept: Mapping[str, EpochResult],
  labels: Mapping[str, Labels],
  floors: Mapping[str, Mapping[str, dict[str, float]]],
) -> Iterator[dict[str, Any]]:
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
      said = decode_outputs(task, outputs)
      spread = (
        metrics.resample_counts(task.metrics, said, right)
        if fine
        else dict.fromkeys(task.metrics, (math.nan,) * 2)
      )
      for metric, value in metric_values(task, outputs, right).items():
        yield {
          'task': task.name,
          'metric': metric,
          'value': value,
          'low': spread[metric][0],
          'high': spread[metric][1],
          'headline': metric == task.headline,
          'split': split,
          'examples': len(right),
          **entry.fields(),
          'epoch_choice': which,
          'epoch': scored.epoch,
          'validation_score': scored.selection,
          **{name: floor[metric] for name, floor in floors[split].items()},
          'constant_prediction': not fine or metrics.is_constant(said),
        }


def summary_lines(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Mean, standard deviation and interval over seeds, for each start, learning rate, epoch, split
  and metric.
  """
  groups: dict[tuple[Any, ...], list[float]] = {}
  for line in lines:
    key = tuple(line[name] for name in _SUMMARISED)
    groups.setdefault(key, []).append(math.nan if line['value'] is None else line['value'])
  return [
    dict(zip(_SUMMARISED, key, strict=True)) | metrics.summarize(found)
    for key, found in groups.items()
  ]


# What was predicted: of every member beside the right labels, and of one in the files that the GLUE
# server takes.
SUBMISSION_DIR = 'submission'  # the folder of the server's files
_NAMED = ('mnli', 'ax', 'qnli', 'rte')


def save_test_outputs(
  workdir: epath.Path, ready: TaskData, entry: MemberSpec, kept: Mapping[str, EpochResult]
) -> None:
  """Appends what a member predicted of each reported and each unlabelled split to
  predictions.jsonl.
  """
  for which, scored in kept.items():
    for split in (*ready.reported, *ready.unlabelled):
      said = decode_outputs(ready.task, scored.outputs[split]).tolist()
      right = {} if split in ready.unlabelled else {'labels': ready.rows[split].labels.tolist()}
      run_dir.append_line(
        workdir / run_dir.PREDICTIONS,
        {
          'task': ready.task.name,
          'split': split,
          'epoch_choice': which,
          **entry.fields(),
          'predictions': said,
          **right,
        },
      )


def write_submission(
  workdir: epath.Path, ready: TaskData, lines: Sequence[Mapping[str, Any]], which: str
) -> None:
  """Writes the files of the server, from the member that was best on what was held out, or else the
  first.
  """
  if not ready.unlabelled:
    return
  candidates = [
    line
    for line in lines
    if line['headline'] and line['epoch_choice'] == which and line['value'] is not None
  ]
  if not candidates:
    return
  chosen = max(
    candidates,
    key=lambda line: (line['pretrained'], line['validation_score'] or 0, -line['member']),
  )
  found = {
    line['split']: line['predictions']
    for line in run_dir.read_lines(workdir / run_dir.PREDICTIONS)
    if line['member'] == chosen['member'] and line['epoch_choice'] == which
  }
  (workdir / SUBMISSION_DIR).mkdir(exist_ok=True)
  for split, task in ready.unlabelled.items():
    path = workdir / SUBMISSION_DIR / f'{_submission_path(task, split)}.tsv'
    files.write_bytes(path, submission_rows(task, np.asarray(found[split]), ready.numbers[split]))
  progress.log(
    f'predictions for the GLUE server, of seed {chosen["seed"]}: {workdir / SUBMISSION_DIR}'
  )


def submission_rows(
  task: Task, predictions: Shaped[np.ndarray, 'N'], numbers: Sequence[int]
) -> bytes:
  """One file.

  Args:
    task: whose labels are predicted.
    predictions: class indices, or numbers.
    numbers: of the examples in the official file.
  """
  if task.kind == REGRESSION:
    said = [f'{min(max(number, 0.0), 5.0):.3f}' for number in predictions.tolist()]
  else:
    said = [
      task.labels[number] if task.name in _NAMED else str(number) for number in predictions.tolist()
    ]
  rows = (f'{number}\t{text}\n' for number, text in sorted(zip(numbers, said, strict=True)))
  return ('index\tprediction\n' + ''.join(rows)).encode()


def _submission_path(task: Task, split: str) -> str:
  """`MNLI-m` of the part `matched`, `MNLI-mm` of the other."""
  return task.submission_name + (
    '-mm' if split.endswith('_mismatched') else '-m' if split.endswith('_matched') else ''
  )
