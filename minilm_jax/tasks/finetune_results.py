"""Lists the members of a fine-tuning run and writes scores, predictions and files for GLUE's server.

Members are all combinations of a start, a learning rate and a seed. Scores are of the last epoch
and, if `validation_fraction` is set, of the epoch with the best validation score. No choice uses a
reported split.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Shaped

from minilm_jax.core import files, progress, run_dir
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.errors import InputError
from minilm_jax.tasks import metrics
from minilm_jax.tasks.metrics import BEST_EPOCH, LAST_EPOCH
from minilm_jax.tasks.task import REGRESSION, Task
from minilm_jax.tasks.task_data import TRAIN_SPLIT, VALIDATION_PART, TaskData

_SUBMISSION_DIR = 'submission'  # folder of the files for the GLUE server
_SUMMARY_KEYS = (
  'pretrained',
  'checkpoint_step',
  'learning_rate',
  'epoch_choice',
  'split',
  'metric',
)
# The server expects label names for these tasks and numbers for all others.
_TASKS_WITH_LABEL_NAMES = ('mnli', 'ax', 'qnli', 'rte')
Outputs = Float[np.ndarray, 'N C']
Labels = Shaped[np.ndarray, 'N']


@dataclasses.dataclass(frozen=True)
class MemberSpec:
  """Specifies a member.

  Attributes:
    member: Number of the member in the run.
    step: Step of the checkpoint; None is a start from scratch.
    seed: Seed of the head, the order of examples and dropout.
  """

  member: int
  step: int | None
  seed: int
  learning_rate: float

  def log_fields(self) -> dict[str, Any]:
    """Returns the fields that identify the member in logs."""
    return {
      'pretrained': self.step is not None,
      'checkpoint_step': self.step,
      'seed': self.seed,
      'learning_rate': self.learning_rate,
      'member': self.member,
    }


@dataclasses.dataclass(frozen=True)
class EpochResult:
  """Stores the outputs of a member after an epoch.

  Attributes:
    epoch: Number of finished epochs.
    validation_score: Headline metric on the validation part; nan without a validation part.
    outputs: Outputs `[N C]` by split.
    model: Weights of the member if classifiers are saved, else None.
  """

  epoch: float
  validation_score: float
  outputs: Mapping[str, Outputs]
  model: Any = None


def list_members(config: FinetuneConfig, starts: Sequence[int | None]) -> list[MemberSpec]:
  """Returns the members, ordered by start, learning rate and seed."""
  rates = config.learning_rates or (config.optimizer.learning_rate,)
  settings = ((step, seed, rate) for step in starts for rate in rates for seed in config.seeds)
  return [MemberSpec(number, *setting) for number, setting in enumerate(settings)]


def list_epoch_ends(updates: int, epochs: float) -> list[tuple[float, int]]:
  """Returns (epoch, update) at the end of each epoch.

  The last epoch may be partial. Of several epochs that end at the same update, the last is listed.

  >>> list_epoch_ends(8, 2.5)
  [(1.0, 4), (2.0, 7), (2.5, 8)]
  """
  per_epoch = updates / Fraction(str(epochs))  # quotients of floats can exceed a whole number
  numbers = (min(float(number), epochs) for number in range(1, math.ceil(epochs) + 1))
  ends = {min(updates, math.ceil(Fraction(str(epoch)) * per_epoch)): epoch for epoch in numbers}
  return [(epoch, end) for end, epoch in ends.items()]


def list_epoch_choices(config: FinetuneConfig) -> tuple[str, ...]:
  """Returns the epoch choices that are reported, the main choice first."""
  return (BEST_EPOCH, LAST_EPOCH) if config.validation_fraction else (LAST_EPOCH,)


def decode_outputs(task: Task, outputs: Outputs) -> Labels:
  """Returns the predictions of outputs: class indices, or numbers in a regression."""
  return outputs[:, 0] if task.kind == REGRESSION else outputs.argmax(-1)


def compute_metrics(task: Task, outputs: Outputs, labels: Labels) -> dict[str, float]:
  """Returns each metric of the task; nan if an output is not finite."""
  if not np.isfinite(outputs).all():
    return dict.fromkeys(task.metrics, math.nan)
  return metrics.compute_metric(task.metrics, decode_outputs(task, outputs), labels)


def is_better(result: EpochResult, best: EpochResult | None) -> bool:
  """Returns whether a result replaces the best result; ties keep the earlier epoch."""
  if best is None:
    return True
  new, old = (
    -math.inf if math.isnan(score) else score
    for score in (result.validation_score, best.validation_score)
  )
  return new > old


def make_score_lines(
  data: TaskData, spec: MemberSpec, results: Mapping[str, EpochResult]
) -> Iterator[dict[str, Any]]:
  """Yields a score line of a member for each epoch choice, reported split and metric.

  Baselines use the labels of all training examples, including the validation part.
  """
  task = data.task
  train_labels = np.concatenate(
    [data.rows[part].labels for part in (TRAIN_SPLIT, VALIDATION_PART) if part in data.rows]
  )
  for epoch_choice, result in results.items():
    for split in data.reported:
      outputs, labels = result.outputs[split], data.rows[split].labels
      predictions = decode_outputs(task, outputs)
      majority = metrics.compute_majority_baseline(task, train_labels, labels)
      frequency = metrics.compute_frequency_baseline(task, train_labels, labels)
      intervals, constant = dict.fromkeys(task.metrics, (math.nan, math.nan)), True
      if np.isfinite(outputs).all():
        intervals = metrics.compute_intervals(task.metrics, predictions, labels)
        constant = metrics.is_constant(predictions)
      for metric, value in compute_metrics(task, outputs, labels).items():
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
          'majority': majority[metric],
          'frequency': frequency[metric],
          'constant_prediction': constant,
        }


def summarize_seeds(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns mean, standard deviation and interval over seeds.

  Lines with equal start, learning rate, epoch choice, split and metric form a group.
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
    InputError: The loss of every member became non-finite.
  """
  lines = list(run_dir.read_lines(workdir / run_dir.SCORES))
  diverged = {
    line['member']: line
    for line in run_dir.read_lines(workdir / run_dir.METRICS)
    if line['split'] == TRAIN_SPLIT and line['loss'] is None
  }
  for line in diverged.values():
    progress.log(
      f'{data.task.name}: non-finite loss of seed {line["seed"]} with learning rate '
      f'{line["learning_rate"]} by update {line["step"]}'
    )
  if len(diverged) == len({line['member'] for line in lines}):
    raise InputError(
      f'finite losses on {data.task.name}',
      f'non-finite losses of all {len(diverged)} members',
      'lower optimizer.learning_rate, and give another --workdir',
    )
  if config.predictions:
    write_submission(workdir, data, lines, list_epoch_choices(config)[0])
  files.write_json(
    workdir / run_dir.RESULT,
    {
      'task': data.task.name,
      **run_fields,
      'seeds': len(config.seeds),
      'scores': summarize_seeds(lines),
    },
  )
  return lines


def report_changed_examples(workdir: epath.Path, changes: Sequence[str]) -> list[dict[str, Any]]:
  """Adds `changed_examples` to the result of a finished run, and returns its score lines.

  The scores are those of the earlier examples, so that counts and predictions stay as they are.
  """
  result = files.read_object(workdir / run_dir.RESULT, f'the result of {workdir}')
  files.write_json(workdir / run_dir.RESULT, {**result, 'changed_examples': list(changes)})
  progress.log(
    f'{workdir}: finished with other examples than the task has now: {", ".join(changes)}; for '
    'new scores, give another --workdir'
  )
  return list(run_dir.read_lines(workdir / run_dir.SCORES))


def append_predictions(
  workdir: epath.Path, data: TaskData, spec: MemberSpec, results: Mapping[str, EpochResult]
) -> None:
  """Appends a member's predictions on reported and unlabelled splits to predictions.jsonl."""
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
  """Writes the files for the GLUE server from the predictions of a single member.

  The member has the best validation score; without validation, the first member is used. Members
  from checkpoints take precedence over members from scratch. The outputs of the member are finite.
  """
  if not data.unlabelled:
    return
  candidates = [line for line in lines if line['headline'] and line['epoch_choice'] == epoch_choice]
  if data.task.kind == REGRESSION:  # a constant finite prediction has no correlation
    undefined = {
      line['member']
      for line in run_dir.read_lines(workdir / run_dir.PREDICTIONS)
      if line['epoch_choice'] == epoch_choice and None in line['predictions']
    }
    candidates = [line for line in candidates if line['member'] not in undefined]
  else:
    candidates = [line for line in candidates if line['value'] is not None]
  if not candidates:
    progress.log(
      f'{data.task.name}: no predictions for the GLUE server, because no member has finite outputs'
    )
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
  folder = workdir / _SUBMISSION_DIR
  folder.mkdir(exist_ok=True)
  for split, task in data.unlabelled.items():
    files.write_bytes(
      folder / f'{_name_submission(task, split)}.tsv',
      format_submission(task, np.asarray(predictions[split]), data.numbers[split]),
    )
  progress.log(f'wrote predictions of seed {chosen["seed"]} for the GLUE server: {folder}')


def format_submission(
  task: Task, predictions: Shaped[np.ndarray, 'N'], numbers: Sequence[int]
) -> bytes:
  """Returns a file for the GLUE server with the numbers of the examples in the official file."""
  if task.kind == REGRESSION:
    texts = [f'{min(max(number, 0.0), 5.0):.3f}' for number in predictions.tolist()]
  elif task.name in _TASKS_WITH_LABEL_NAMES:
    texts = [task.labels[index] for index in predictions.tolist()]
  else:
    texts = list(map(str, predictions.tolist()))
  rows = (f'{number}\t{text}\n' for number, text in sorted(zip(numbers, texts, strict=True)))
  return ('index\tprediction\n' + ''.join(rows)).encode()


def _name_submission(task: Task, split: str) -> str:
  """Returns the file name of a split, such as MNLI-m for test_matched."""
  suffix = '-mm' if split.endswith('_mismatched') else '-m' if split.endswith('_matched') else ''
  return task.submission_name + suffix
