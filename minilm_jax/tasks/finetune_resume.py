"""Resumes fine-tuning: finds remaining members and changed inputs; saves and loads the state.

The state file contains arrays and a JSON record; nothing is unpickled, and writes are atomic. A
file that is damaged or belongs to other members is ignored, and training restarts. The file is
removed as soon as all members have scores.
"""

import dataclasses
import io
import json
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from minilm_jax.core import files, old_names, progress, run_dir, signals
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.errors import TEXT, InputError
from minilm_jax.tasks import classifier, finetune_results
from minilm_jax.tasks.finetune_results import EpochResult, MemberSpec
from minilm_jax.tasks.finetune_step import MemberState
from minilm_jax.tasks.task_data import TaskData
from minilm_jax.training import population, pretrained

STATE_FILE = '.finetune_state.npz'
_INPUTS_FILE = 'examples.json'  # labels; checksums of the examples of splits and of encoders
_INPUTS_SCHEMA = {'labels': [TEXT], 'sha256': {}, 'weights?': {}}
SAVE_SECONDS = 60.0  # between two saves
_RECORD_ARRAY = 'said'  # the JSON record; names in the file are those of earlier versions


@dataclasses.dataclass
class FinetuneState:
  """Stores the progress of the members of a group.

  Attributes:
    specs: Specifications of the members, in the order of the stack.
    members: Stacked models and optimizer states.
    loss_sums: Sum of the losses of each member in the current epoch.
    results: Results of each member, by epoch choice.
    active: Indices of the members that still train.
  """

  specs: Sequence[MemberSpec]
  members: MemberState
  step: int
  loss_sums: Float[np.ndarray, 'P']
  results: list[dict[str, EpochResult]]
  active: set[int]


def check_inputs(
  workdir: epath.Path, data: TaskData, encoders: Mapping[int, Any], is_finished: bool
) -> list[str]:
  """Returns the splits, and 'labels', of a finished run that differ from those of its start.

  A run without saved state or scores stores the checksums of its examples and encoders instead, and
  so does a run of an earlier version without the file.

  Args:
    encoders: Encoder of each checkpoint, by step.

  Raises:
    InputError: An encoder differs, the examples of an unfinished run differ, or the file of
      checksums is damaged.
  """
  path = workdir / _INPUTS_FILE
  weights = {str(step): pretrained.hash_weights(encoder) for step, encoder in encoders.items()}
  is_started = old_names.find_file(workdir / STATE_FILE).exists() or any(
    run_dir.read_lines(workdir / run_dir.SCORES)
  )
  if not is_started or not path.exists():
    files.write_json(path, {'labels': data.task.labels, 'sha256': data.digests, 'weights': weights})
    return []
  stored = files.read_object(path, f'the checksums of {workdir}', _INPUTS_SCHEMA)
  # Folders of earlier versions lack the checksums of encoders.
  if 'weights' in stored and stored['weights'] != weights:
    raise InputError(
      f'the fine-tuning in {workdir}',
      'other weights than at its start in the checkpoint',
      'restore the checkpoint, or give another --workdir',
    )
  old, new = stored['sha256'], data.digests
  changes = [split for split in sorted({*old, *new}) if old.get(split) != new.get(split)]
  if stored['labels'] != list(data.task.labels):
    changes.append('labels')
  if changes and not is_finished:
    raise InputError(
      f'to resume the fine-tuning in {workdir}',
      f'other examples than at its start: {", ".join(changes)}',
      'restore the files of the task, or give another --workdir',
    )
  return changes


def find_remaining_members(
  config: FinetuneConfig, data: TaskData, members: Sequence[MemberSpec], workdir: epath.Path
) -> list[MemberSpec]:
  """Returns the members without all scores or without a requested classifier."""
  scores_per_member = (
    len(finetune_results.list_epoch_choices(config)) * len(data.reported) * len(data.task.metrics)
  )
  scored = [line['member'] for line in run_dir.read_lines(workdir / run_dir.SCORES)]
  return [
    spec
    for spec in members
    if scored.count(spec.member) != scores_per_member
    or config.save_classifiers
    and classifier.is_incomplete(workdir / classifier.name_member_folder(spec.member))
  ]


def drop_partial_lines(
  workdir: epath.Path, remaining: Sequence[MemberSpec], group_size: int
) -> None:
  """Removes the lines of remaining members from the logs.

  Metrics of the first group up to the step of its saved state stay.
  """
  resumed = remaining[:group_size]
  step = read_state_step(workdir, resumed)
  numbers, resumed_numbers = ({spec.member for spec in specs} for specs in (remaining, resumed))

  def is_finished(line: dict[str, Any]) -> bool:
    return line['member'] not in numbers

  def is_before_resume(line: dict[str, Any]) -> bool:
    return is_finished(line) or line['member'] in resumed_numbers and line['step'] <= step

  for log in (run_dir.SCORES, run_dir.METRICS, run_dir.PREDICTIONS):
    if (workdir / log).exists():
      run_dir.keep_lines(workdir / log, is_before_resume if log == run_dir.METRICS else is_finished)


def start_group(specs: Sequence[MemberSpec], members: MemberState) -> FinetuneState:
  """Returns the state before the first update; the stack may be longer than the specifications."""
  loss_sums = np.zeros(len(members.state.seed))
  return FinetuneState(specs, members, 0, loss_sums, [{} for _ in specs], set(range(len(specs))))


def save_state(workdir: epath.PathLike, state: FinetuneState) -> None:
  """Writes the state of a group and replaces an earlier state."""
  arrays: dict[str, Any] = {
    f'member {n}': np.asarray(leaf) for n, leaf in enumerate(jax.tree.leaves(state.members))
  }
  arrays['totals'] = state.loss_sums
  for index, results in enumerate(state.results):
    for choice, result in results.items():
      prefix = f'{index} {choice}'
      arrays |= {f'{prefix} outputs {split}': array for split, array in result.outputs.items()}
      arrays |= {
        f'{prefix} model {n}': leaf for n, leaf in enumerate(jax.tree.leaves(result.model))
      }
  record = {
    'entries': [dataclasses.asdict(spec) for spec in state.specs],
    'step': state.step,
    'kept': [
      {
        choice: {
          'epoch': result.epoch,
          'selection': repr(result.validation_score),
          'model': result.model is not None,
        }
        for choice, result in results.items()
      }
      for results in state.results
    ],
    'going': sorted(state.active),
  }
  arrays[_RECORD_ARRAY] = np.frombuffer(json.dumps(record).encode(), np.uint8)
  data = io.BytesIO()
  np.savez(data, **arrays)
  files.write_bytes(epath.Path(workdir) / STATE_FILE, data.getvalue())


def load_state(
  workdir: epath.PathLike, specs: Sequence[MemberSpec], start: MemberState
) -> FinetuneState | None:
  """Returns the saved state of the members, or None; arrays are sharded like those of `start`.

  Raises:
    InputError: An array has another shape than in `start`.
  """
  saved = _read(workdir, specs)
  if saved is None:
    return None
  record, arrays = saved
  leaves, tree = jax.tree.flatten(start)
  if any(arrays[f'member {n}'].shape[1:] != leaf.shape[1:] for n, leaf in enumerate(leaves)):
    raise InputError(
      f'to resume the fine-tuning in {workdir}',
      'a saved state with other shapes, as of a version that encoded the examples differently',
      'give another --workdir',
    )
  # Repeats of the last member fill a group, and their number depends on the devices.
  members_and_fill = np.minimum(np.arange(len(leaves[0])), len(specs) - 1)
  members = jax.tree.unflatten(
    tree,
    [
      jax.device_put(arrays[f'member {n}'][members_and_fill], leaf.sharding)
      for n, leaf in enumerate(leaves)
    ],
  )
  model_tree = jax.tree.structure(population.select_member(start.state.model, 0))
  results = [
    {
      choice: _load_result(f'{index} {choice}', fields, arrays, model_tree)
      for choice, fields in choices.items()
    }
    for index, choices in enumerate(record['kept'])
  ]
  return FinetuneState(
    specs,
    members,
    record['step'],
    arrays['totals'][members_and_fill],
    results,
    set(record['going']),
  )


def make_saver(
  workdir: epath.PathLike, state: FinetuneState, flag: signals.SignalFlag
) -> Callable[[], None]:
  """Returns a function that saves every `SAVE_SECONDS`, and raises Interrupted after a signal."""
  last_save = time.monotonic()

  def maybe_save() -> None:
    nonlocal last_save
    is_requested = flag.take_save_request()
    if flag.number or is_requested or time.monotonic() - last_save >= SAVE_SECONDS:
      save_state(workdir, state)
      last_save = time.monotonic()
    if is_requested and not flag.number:
      progress.log(f'saved after {state.step:,} updates after SIGUSR1; the run continues')
    if flag.number:
      raise signals.Interrupted(
        flag.number,
        f' after {state.step:,} updates of the members in training; state saved; '
        'run the same command to resume',
      )

  return maybe_save


def read_state_step(workdir: epath.PathLike, specs: Sequence[MemberSpec]) -> int:
  """Returns the step of the saved state of the members; 0 without a saved state."""
  saved = _read(workdir, specs)
  return 0 if saved is None else saved[0]['step']


def remove_state(workdir: epath.PathLike) -> None:
  """Removes the state file."""
  old_names.find_file(epath.Path(workdir) / STATE_FILE).unlink(missing_ok=True)


def _read(
  workdir: epath.PathLike, specs: Sequence[MemberSpec]
) -> tuple[dict[str, Any], Mapping[str, np.ndarray]] | None:
  """Returns record and arrays of the state file; None if it is damaged or of other members."""
  path = old_names.find_file(epath.Path(workdir) / STATE_FILE)
  if not path.exists():
    return None
  try:
    with path.open('rb') as stream, np.load(stream, allow_pickle=False) as file:
      arrays = dict(file)
    record = json.loads(arrays.pop(_RECORD_ARRAY).tobytes())
  # The CRC of the archive detects changed bytes.
  except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error):
    return None
  same_members = record['entries'] == [dataclasses.asdict(spec) for spec in specs]
  return (record, arrays) if same_members else None


def _load_result(
  prefix: str, fields: dict[str, Any], arrays: Mapping[str, np.ndarray], model_tree: Any
) -> EpochResult:
  """Returns the result of a member for an epoch choice."""
  outputs_prefix = f'{prefix} outputs '
  outputs = {
    name.removeprefix(outputs_prefix): array
    for name, array in arrays.items()
    if name.startswith(outputs_prefix)
  }
  model = None
  if fields['model']:
    leaves = [arrays[f'{prefix} model {n}'] for n in range(model_tree.num_leaves)]
    model = jax.tree.unflatten(model_tree, leaves)
  return EpochResult(fields['epoch'], float(fields['selection']), outputs, model)
