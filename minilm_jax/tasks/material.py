"""What one task gives to train on and to be judged by: its splits as rows, and the pieces they use."""

import dataclasses

import numpy as np
from jaxtyping import Int

from minilm_jax import progress
from minilm_jax.config import FinetuneConfig
from minilm_jax.errors import InputError
from minilm_jax.language.tokenizer import Tokenizer
from minilm_jax.tasks import encoding, places, sources, table
from minilm_jax.tasks.encoding import TaskRows
from minilm_jax.tasks.protocol import HELD_OUT
from minilm_jax.tasks.sources import Examples
from minilm_jax.tasks.table import Task

TRAIN = 'train'


@dataclasses.dataclass(frozen=True)
class Material:
  """A task as a model reads it.

  Attributes:
    task: with its labels.
    rows: of 'train', of 'held_out' where there is such a part, and of every split that outputs are wanted of. Pieces
      are numbered by their place in `used`.
    reported: the splits that are scored; the first is the one that headlines stand on.
    unlabelled: the splits that only predictions are wanted of: by split, the task that its examples belong to.
    used: the pieces that the rows hold.
    lengths: that batches are cut to.
    numbers: of the examples of each unlabelled split in the official file.
    truncated: examples that lost their end.
    digests: a hash of the texts and labels of each reported split, by which outputs of several runs are told to belong
      together.
  """

  task: Task
  rows: dict[str, TaskRows]
  reported: tuple[str, ...]
  unlabelled: dict[str, Task]
  used: Int[np.ndarray, 'U']
  lengths: tuple[int, ...]
  numbers: dict[str, tuple[int, ...]]
  truncated: int
  digests: dict[str, str]


def prepare(config: FinetuneConfig, longest: int, tokenizer: Tokenizer, whole: bool = False,
            every: bool = False) -> Material:
  """Reads the splits of the recipe's task and encodes them, at most `longest` tokens a row.

  Args:
    config: the recipe.
    longest: row that the model reads.
    tokenizer: of the model.
    whole: must all rows be as long as that? So it is where pads are part of what the model makes of a row.
    every: keep the numbers of all pieces? So it is where an encoder may read them otherwise than from its table.

  Raises:
    InputError: a split is missing, empty or without labels, or has labels that the training split does not show.
  """
  task = sources.complete(config.task)
  train = sources.require_labels(sources.read(task, config.task, TRAIN), f'training on {task.name}')
  splits = {TRAIN: train}
  if config.validation_fraction:
    splits[TRAIN], splits[HELD_OUT] = sources.hold_out(train, config.validation_fraction)
  reported = sources.splits(task, config.task.split)
  for split in reported:
    purpose = f'scores on the {split} split of {task.name}'
    splits[split] = sources.require_labels(sources.read(task, config.task, split), purpose)
  sources.check(task, *splits.values())
  unlabelled = _unlabelled(task, config, reported) if config.predictions and task.submission_name else {}
  splits |= {split: examples for split, (_, examples) in unlabelled.items()}
  cut = min(longest, config.length)
  encoded = {name: encoding.encode(examples, tokenizer, cut) for name, examples in splits.items()}
  # a weight a position, pads included, wants every position there; other heads are as well served by shorter rows
  whole = whole or config.head.pooling == 'positions'
  length = longest if whole else encoding.bucket([ids for found, _ in encoded.values() for ids in found], longest)
  rows = {name: encoding.task_rows(sequences, splits[name].labels, length) for name, (sequences, _) in encoded.items()}
  used = np.arange(tokenizer.size) if every else encoding.used(tuple(rows.values()))
  truncated = sum(shortened for _, shortened in encoded.values())
  if truncated:
    progress.say(f'{task.name}: {truncated:,} examples are longer than {cut} tokens and lose their end')
  return Material(task, {name: encoding.narrow(part, used) for name, part in rows.items()}, reported,
                  {split: of for split, (of, _) in unlabelled.items()}, used,
                  (length,) if whole else encoding.lengths(rows[TRAIN]),
                  {split: examples.numbers for split, (_, examples) in unlabelled.items()}, truncated,
                  {split: sources.digest(splits[split]) for split in reported})


def _unlabelled(task: Task, config: FinetuneConfig, reported: tuple[str, ...]) -> dict[str, tuple[Task, Examples]]:
  """The examples that the GLUE server wants predictions of: the task's test splits, and sets that its models serve."""
  if config.task.filtered:
    progress.say(f'{task.name}: no files for the GLUE server, which wants every example, not those of a word list')
    return {}
  served = [one for one in table.TASKS.values() if one.predicted_by == task.name]
  found = {}
  for other in (task, *served) if not places.named(config.task) else (task,):  # files that are named are of one task
    own = dataclasses.replace(config.task, name=other.name)
    for split in sources.splits(other, 'test'):
      if other is task and split in reported:  # it has labels
        continue
      try:
        found[split if other is task else f'{other.name} {split}'] = other, sources.read(other, own, split)
      except InputError as error:
        progress.say(f'no predictions of {other.name} {split}: {error.found}')
  return found
