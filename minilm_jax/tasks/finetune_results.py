"""Members of a fine-tuning, their scores, predictions and files for the GLUE server.

Members are all combinations of a start, a learning rate and a seed. Each is scored after its last
epoch and, where training examples are held out for validation, after the epoch with the best
validation score. The reported splits never choose anything.
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
from minilm_jax.core.errors import InputError
from minilm_jax.tasks import metrics
from minilm_jax.tasks.task import REGRESSION, Task
from minilm_jax.tasks.task_data import TRAIN_SPLIT, VALIDATION_PART, TaskData

BEST_EPOCH, LAST_EPOCH = 'best', 'last'
SUBMISSION_DIR = 'submission'  # Folder of the files for the GLUE server.
_SUMMARY_KEYS = (
  'pretrained',
  'checkpoint_step',
  'learning_rate',
  'epoch_choice',
  'split',
  'metric',
)
_TASKS_WITH_LABEL_NAMES = ('mnli', 'ax', 'qnli', 'rte')  # The server takes numbers for the others.
Outputs = Float[np.ndarray, 'N C']
Labels = Shaped[np.ndarray, 'N']


@dataclasses.dataclass(frozen=True)
class MemberSpec:
  """A member: its number, the step of its checkpoint (None: from scratch), seed and rate."""

  member: int
  step: int | None
  seed: int
  learning_rate: float

  def log_fields(self) -> dict[str, Any]:
    """Returns the fields that name the member in logs."""
    return {
      'pretrained': self.step is not None,
      'checkpoint_step': self.step,
      'seed': self.seed,
      'learning_rate': self.learning_rate,
      'member': self.member,
    }


@dataclasses.dataclass(frozen=True)
class EpochResult:
  """A member after some epochs.

  Attributes:
    epoch: epochs done.
    validation_score: headline metric on the validation part; nan without one.
    outputs: of each split `[N C]`.
    model: the member, where classifiers are saved.
  """

  epoch: float
  validation_score: float
  outputs: Mapping[str, Outputs]
  model: Any = None


def member_specs(config: FinetuneConfig, starts: Sequence[int | None]) -> list[MemberSpec]:
  """Returns the members: for each start, for each learning rate, one a seed."""
  rates = config.learning_rates or (config.optimizer.learning_rate,)
  settings = ((step, seed, rate) for step in starts for rate in rates for seed in config.seeds)
  return [MemberSpec(number, *setting) for number, setting in enumerate(settings)]


def epoch_ends(updates: int, epochs: float) -> list[tuple[float, int]]:
  """Returns (epoch, update) of the end of each epoch.

  The last epoch may be a part of one, and several epochs may end with one update.

  >>> epoch_ends(8, 2.5)
  [(1.0, 4), (2.0, 7), (2.5, 8)]
  """
  numbers = (min(float(number), epochs) for number in range(1, math.ceil(epochs) + 1))
  ends = {min(updates, math.ceil(epoch * updates / epochs)): epoch for epoch in numbers}
  return [(epoch, end) for end, epoch in ends.items()]


def reported_epochs(config: FinetuneConfig) -> tuple[str, ...]:
  """Returns the epochs at which members are scored."""
  return (BEST_EPOCH, LAST_EPOCH) if config.validation_fraction else (LAST_EPOCH,)


def decode_outputs(task: Task, outputs: Outputs) -> Labels:
  """Returns the predictions: class indices, or numbers."""
  return outputs[:, 0] if task.kind == REGRESSION else outputs.argmax(-1)


def metric_values(task: Task, outputs: Outputs, labels: Labels) -> dict[str, float]:
  """Returns each metric of the task; nan where an output is not finite."""
  if not np.isfinite(outputs).all():
    return dict.fromkeys(task.metrics, math.nan)
  return metrics.compute_metric(task.metrics, decode_outputs(task, outputs), labels)


def headline_value(task: Task, outputs: Outputs, labels: Labels) -> float:
  """Returns the headline metric of the task."""
  return metric_values(task, outputs, labels)[task.headline]


def is_better(result: EpochResult, best: EpochResult | None) -> bool:
  """Returns whether a result replaces the best one; equal scores keep the earlier epoch."""
  if best is None:
    return True
  new, old = (
    -math.inf if math.isnan(score) else score
    for score in (result.validation_score, best.validation_score)
  )
  return new > old


def baseline_scores(data: TaskData) -> dict[str, dict[str, dict[str, float]]]:
  """Returns the baselines `majority` and `frequency` of each reported split, by metric.

  Their labels are those of all training examples, the validation part included.
  """
  train_labels = np.concatenate(
    [data.rows[part].labels for part in (TRAIN_SPLIT, VALIDATION_PART) if part in data.rows]
  )
  return {
    split: {
      'majority': metrics.majority_baseline(data.task, train_labels, data.rows[split].labels),
      'frequency': metrics.frequency_baseline(data.task, train_labels, data.rows[split].labels),
    }
    for split in data.reported
  }


def score_lines(
  data: TaskData,
  spec: MemberSpec,
  results: Mapping[str, EpochResult],
  baselines: Mapping[str, Mapping[str, dict[str, float]]],
) -> Iterator[dict[str, Any]]:
  """Yields the score lines of a member: one for each epoch choice, reported split and metric.

  Args:
    data: the task and the labels of its splits.
    spec: the member.
    results: of the member, by epoch choice.
    baselines: as `baseline_scores` returns them.
  """
  task = data.task
  for epoch_choice, result in results.items():
    for split in data.reported:
      outputs, labels = result.outputs[split], data.rows[split].labels
      predictions = decode_outputs(task, outputs)
      intervals, constant = dict.fromkeys(task.metrics, (math.nan, math.nan)), True
      if np.isfinite(outputs).all():
        intervals = metrics.metric_intervals(task.metrics, predictions, labels)
        constant = metrics.is_constant(predictions)
      for metric, value in metric_values(task, outputs, labels).items():
        yield {
          'task': task.name,
          'metric': metric,
          'value': value,
          'low': intervals[metric][0],
          'high': intervals[metric][1],
          'headline': metric == task.headline,
          'split': split,
          'examples': len(labels),
          **spec.log_fields(),
          'epoch_choice': epoch_choice,
          'epoch': result.epoch,
          'validation_score': result.validation_score,
          **{name: values[metric] for name, values in baselines[split].items()},
          'constant_prediction': constant,
        }


def summary_lines(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns mean, standard deviation and interval over seeds.

  One line has a start, learning rate, epoch choice, split and metric.
  """
  groups: dict[tuple[Any, ...], list[float]] = {}
  for line in lines:
    key = tuple(line[name] for name in _SUMMARY_KEYS)
    groups.setdefault(key, []).append(math.nan if line['value'] is None else line['value'])
  return [
    dict(zip(_SUMMARY_KEYS, key, strict=True)) | metrics.summarize(values)
    for key, values in groups.items()
  ]


def write_result(
  workdir: epath.Path, config: FinetuneConfig, data: TaskData, run_fields: dict[str, Any]
) -> list[dict[str, Any]]:
  """Writes result.json and, if requested, predictions for the GLUE server.

  Returns:
    The score lines of all members.

  Raises:
    InputError: no member kept a finite loss.
  """
  lines = list(run_dir.read_lines(workdir / run_dir.SCORES))
  lost = {
    line['member']: line
    for line in run_dir.read_lines(workdir / run_dir.METRICS)
    if line['split'] == TRAIN_SPLIT and line['loss'] is None
  }
  for line in lost.values():
    progress.log(
      f'{data.task.name}: the loss of seed {line["seed"]} with learning rate '
      f'{line["learning_rate"]} was no number by update {line["step"]}'
    )
  if len(lost) == len({line['member'] for line in lines}):
    raise InputError(
      f'a finite loss on {data.task.name}',
      f'none of {len(lost)} members kept one',
      'lower optimizer.learning_rate, and give another --workdir',
    )
  if config.predictions:
    write_submission(workdir, data, lines, reported_epochs(config)[0])
  files.write_json(
    workdir / run_dir.RESULT,
    {
      'task': data.task.name,
      **run_fields,
      'seeds': len(config.seeds),
      'scores': summary_lines(lines),
    },
  )
  return lines


def save_test_outputs(
  workdir: epath.Path, data: TaskData, spec: MemberSpec, results: Mapping[str, EpochResult]
) -> None:
  """Appends a member's predictions of reported and unlabelled splits to predictions.jsonl."""
  for epoch_choice, result in results.items():
    for split in (*data.reported, *data.unlabelled):
      line = {
        'task': data.task.name,
        'split': split,
        'epoch_choice': epoch_choice,
        **spec.log_fields(),
        'predictions': decode_outputs(data.task, result.outputs[split]).tolist(),
      }
      if split not in data.unlabelled:
        line['labels'] = data.rows[split].labels.tolist()
      run_dir.append_line(workdir / run_dir.PREDICTIONS, line)


def write_submission(
  workdir: epath.Path, data: TaskData, lines: Sequence[Mapping[str, Any]], epoch_choice: str
) -> None:
  """Writes the files of the GLUE server from the predictions of one member.

  The member has the best validation score; without validation it is the first one. Pre-trained
  members precede those from scratch.
  """
  candidates = [
    line
    for line in lines
    if line['headline'] and line['epoch_choice'] == epoch_choice and line['value'] is not None
  ]
  if not data.unlabelled or not candidates:
    return
  chosen = max(
    candidates,
    key=lambda line: (line['pretrained'], line['validation_score'] or 0, -line['member']),
  )
  predictions = {
    line['split']: line['predictions']
    for line in run_dir.read_lines(workdir / run_dir.PREDICTIONS)
    if line['member'] == chosen['member'] and line['epoch_choice'] == epoch_choice
  }
  folder = workdir / SUBMISSION_DIR
  folder.mkdir(exist_ok=True)
  for split, task in data.unlabelled.items():
    files.write_bytes(
      folder / f'{_submission_name(task, split)}.tsv',
      submission_rows(task, np.asarray(predictions[split]), data.numbers[split]),
    )
  progress.log(f'predictions for the GLUE server, of seed {chosen["seed"]}: {folder}')


def submission_rows(
  task: Task, predictions: Shaped[np.ndarray, 'N'], numbers: Sequence[int]
) -> bytes:
  """Returns the content of one file.

  Args:
    task: whose labels are predicted.
    predictions: class indices, or numbers.
    numbers: of the examples in the official file.
  """
  if task.kind == REGRESSION:
    texts = [f'{min(max(number, 0.0), 5.0):.3f}' for number in predictions.tolist()]
  elif task.name in _TASKS_WITH_LABEL_NAMES:
    texts = [task.labels[index] for index in predictions.tolist()]
  else:
    texts = list(map(str, predictions.tolist()))
  rows = (f'{number}\t{text}\n' for number, text in sorted(zip(numbers, texts, strict=True)))
  return ('index\tprediction\n' + ''.join(rows)).encode()


def _submission_name(task: Task, split: str) -> str:
  """Returns `MNLI-m` for the part `matched`, `MNLI-mm` for the other."""
  suffix = '-mm' if split.endswith('_mismatched') else '-m' if split.endswith('_matched') else ''
  return task.submission_name + suffix
