"""What was predicted: of every member beside the right labels, and of one in the files that the GLUE server takes.

A file of the server has a line an example, `index<TAB>prediction`, in the order of the official files; STS-B has
numbers from 0 to 5, the tasks in `_NAMED` the names of their classes, the others class indices.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Shaped

from minilm_jax import progress, run
from minilm_jax.tasks import protocol
from minilm_jax.tasks.material import Material
from minilm_jax.tasks.protocol import Entry, Scored
from minilm_jax.tasks.table import REGRESSION, Task

SUBMISSION = 'submission'  # the folder of the server's files
_NAMED = ('mnli', 'ax', 'qnli', 'rte')


def keep(workdir: epath.Path, ready: Material, entry: Entry, kept: Mapping[str, Scored]) -> None:
  """Appends what a member predicted of each reported and each unlabelled split to predictions.jsonl."""
  for which, scored in kept.items():
    for split in (*ready.reported, *ready.unlabelled):
      said = protocol.predictions(ready.task, scored.outputs[split]).tolist()
      right = {} if split in ready.unlabelled else {'labels': ready.rows[split].labels.tolist()}
      run.append_line(workdir / run.PREDICTIONS, {'task': ready.task.name, 'split': split, 'epoch_choice': which,
                                                  **entry.fields(), 'predictions': said, **right})


def write(workdir: epath.Path, ready: Material, lines: Sequence[Mapping[str, Any]], which: str) -> None:
  """Writes the files of the server, from the member that was best on what was held out, or else the first."""
  if not ready.unlabelled:
    return
  candidates = [line for line in lines if line['headline'] and line['epoch_choice'] == which and line['value'] is not None]
  if not candidates:
    return
  chosen = max(candidates, key=lambda line: (line['pretrained'], line['validation_score'] or 0, -line['member']))
  found = {line['split']: line['predictions'] for line in run.read_lines(workdir / run.PREDICTIONS)
           if line['member'] == chosen['member'] and line['epoch_choice'] == which}
  (workdir / SUBMISSION).mkdir(exist_ok=True)
  for split, task in ready.unlabelled.items():
    path = workdir / SUBMISSION / f'{_file(task, split)}.tsv'
    run.write_bytes(path, table(task, np.asarray(found[split]), ready.numbers[split]))
  progress.say(f'predictions for the GLUE server, of seed {chosen["seed"]}: {workdir / SUBMISSION}')


def table(task: Task, predictions: Shaped[np.ndarray, 'N'], numbers: Sequence[int]) -> bytes:
  """One file.

  Args:
    task: whose labels are predicted.
    predictions: class indices, or numbers.
    numbers: of the examples in the official file.
  """
  if task.kind == REGRESSION:
    said = [f'{min(max(number, 0.0), 5.0):.3f}' for number in predictions.tolist()]
  else:
    said = [task.labels[number] if task.name in _NAMED else str(number) for number in predictions.tolist()]
  rows = (f'{number}\t{text}\n' for number, text in sorted(zip(numbers, said, strict=True)))
  return ('index\tprediction\n' + ''.join(rows)).encode()


def _file(task: Task, split: str) -> str:
  """`MNLI-m` of the part `matched`, `MNLI-mm` of the other."""
  return task.submission_name + ('-mm' if split.endswith('_mismatched') else '-m' if split.endswith('_matched') else '')
