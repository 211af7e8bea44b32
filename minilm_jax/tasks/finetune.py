"""Fine-tunes checkpoints of a run on a task, for each seed and learning rate.

All members share a compiled program. A CPU core trains one member at a time; an accelerator trains
all members in each operation. Members with scores in scores.jsonl are not trained again, and
interrupted members resume from the state file of `finetune_resume`.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float, Int

from minilm_jax.core import lock, progress, recipe, run_dir, signals
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.data.tokenizer import Tokenizer
from minilm_jax.tasks import classifier, finetune_results, finetune_resume, finetune_step, task_data
from minilm_jax.tasks.finetune_results import BEST_EPOCH, LAST_EPOCH, EpochResult, MemberSpec
from minilm_jax.tasks.finetune_resume import FinetuneState
from minilm_jax.tasks.finetune_step import FinetuneProgram
from minilm_jax.tasks.task_data import TRAIN_SPLIT, VALIDATION_PART, TaskData, TaskRows
from minilm_jax.training import population, pretrained

_STEPS_PER_CHUNK = 200  # maximum updates of a dispatch, so that progress is visible


@dataclasses.dataclass(frozen=True)
class FinetuneRun:
  """Stores the inputs that all members of a run share.

  Attributes:
    source: Directory of the pre-training run.
    starts: Steps of checkpoints; None is a start from a fresh encoder.
    model: Shape of the encoder, with the dropout of the recipe.
    encoders: Encoder of each checkpoint on the host, by step.
  """

  config: FinetuneConfig
  source: epath.Path
  workdir: epath.Path
  starts: tuple[int | None, ...]
  model: EncoderConfig
  tokenizer: Tokenizer
  encoders: dict[int, Any]
  task_data: TaskData

  @property
  def score_fields(self) -> dict[str, Any]:
    """Fields that all score lines of the run share."""
    rows = self.task_data.rows
    return {
      'train_examples': len(rows[TRAIN_SPLIT].labels),
      'checkpoint': self.source.name,
      'truncated': self.task_data.truncated,
      'held_out': len(rows[VALIDATION_PART].labels) if self.config.validation_fraction else 0,
      'filtered': self.config.task.filtered,
    }


@dataclasses.dataclass(frozen=True)
class EncoderStack:
  """Stores the initial encoders of all members.

  Attributes:
    encoders: Encoders stacked on the first axis, with the embedding rows that the task uses.
    index: Index into the stack by step and seed.
    embedding_tables: Full embedding tables `[S V E]`; empty for a custom encoder.
  """

  encoders: Any
  index: dict[tuple[int | None, int], int]
  embedding_tables: np.ndarray


@dataclasses.dataclass(frozen=True)
class DeviceData:
  """Stores the rows of a task on all devices.

  Attributes:
    eval_batches: Batches of the rows of all other splits.
    places: Flat indices of each split's rows in the batches.
  """

  train: TaskRows
  eval_batches: Int[jax.Array, 'M B L']
  places: dict[str, Int[np.ndarray, 'N']]


@dataclasses.dataclass(frozen=True)
class Group:
  """Stores members that train together.

  Attributes:
    state: Training state, modified by training.
    updates_before: Number of updates of all earlier groups.
    log: Appends a line to metrics.jsonl.
    maybe_save: Saves the state if a save is due.
  """

  state: FinetuneState
  updates_before: int
  update_progress: Callable[[int, str], None]
  log: Callable[[dict[str, Any]], None]
  maybe_save: Callable[[], None]


def finetune(
  config: FinetuneConfig,
  source: epath.PathLike,
  workdir: epath.PathLike,
  starts: Sequence[int | None],
) -> list[dict[str, Any]]:
  """Fine-tunes on a task, once for each start, learning rate and seed.

  Args:
    config: Fine-tuning recipe; `length` and the model's maximum length limit the examples.
    source: Pre-training run with model shape, tokenizer and checkpoints.
    workdir: Directory for config.json, metrics.jsonl, scores.jsonl and result.json.
    starts: Steps of checkpoints; None starts from a fresh encoder for each seed, as a control.

  Returns:
    The score lines of all members.

  Raises:
    LockedError: Another process uses the work directory.
    InputError: The run, a checkpoint or the examples are invalid, a checkpoint or the examples of an
      unfinished run have changed, or the losses of all members became non-finite.
  """
  run = prepare(config, source, workdir, starts)
  with lock.hold_lock(workdir):
    run_dir.open_run(
      workdir, {**recipe.as_dict(config), 'checkpoint': str(run.source), 'starts': list(starts)}
    )
    members = finetune_results.list_members(config, starts)
    remaining = finetune_resume.find_remaining_members(config, run.task_data, members, run.workdir)
    is_finished = not remaining and (run.workdir / run_dir.RESULT).exists()
    changes = finetune_resume.check_inputs(run.workdir, run.task_data, run.encoders, is_finished)
    if changes:
      return finetune_results.report_changed_examples(run.workdir, changes)
    if remaining:
      program = build_program(run, len(members))
      finetune_resume.drop_partial_lines(run.workdir, remaining, program.group_size)
      train_members(run, program, remaining, len(members))
    # A run that was killed after its last score may have left a state file.
    finetune_resume.remove_state(run.workdir)
    return finetune_results.write_result(run.workdir, config, run.task_data, run.score_fields)


def prepare(
  config: FinetuneConfig,
  source: epath.PathLike,
  workdir: epath.PathLike,
  starts: Sequence[int | None],
) -> FinetuneRun:
  """Loads model shape, tokenizer, encoders and examples; writes nothing."""
  source = epath.Path(source)
  model = dataclasses.replace(
    pretrained.load_single_config(source).model, dropout=config.head.dropout
  )
  finetune_step.check_optimizer(config, model)
  tokenizer = pretrained.load_tokenizer(source)
  encoders = {step: load_encoder(source, model, step) for step in starts if step is not None}
  encoded = task_data.prepare_task_data(
    config, model.max_length, tokenizer, model.batch_norm, bool(model.encoder)
  )
  return FinetuneRun(
    config, source, epath.Path(workdir), tuple(starts), model, tokenizer, encoders, encoded
  )


def load_encoder(source: epath.PathLike, model: EncoderConfig, step: int) -> Any:
  """Loads the encoder of a checkpoint onto the host."""
  encoder = pretrained.load(source, step, 'encoder', changes={'dropout': model.dropout}).model
  # Restored arrays are committed to a device, and committed arguments compile a second program.
  return jax.tree.map(np.asarray, encoder)


def build_program(run: FinetuneRun, num_members: int) -> FinetuneProgram:
  """Builds the functions that train and score the members of a run."""
  task, rows = run.task_data.task, run.task_data.rows
  shape = finetune_step.StepShape(
    task.kind, len(task.labels), len(rows[TRAIN_SPLIT].labels), run.task_data.lengths
  )
  return finetune_step.build_finetune_program(shape, run.config, run.model, num_members)


def stack_encoders(run: FinetuneRun) -> EncoderStack:
  """Stacks the encoders of all checkpoints and, for starts from scratch, a fresh encoder a seed."""
  seeds = run.config.seeds
  stacks = [jax.tree.map(lambda x: x[None], encoder) for encoder in run.encoders.values()]
  index: dict[tuple[int | None, int], int] = {
    (step, seed): number for number, step in enumerate(run.encoders) for seed in seeds
  }
  if None in run.starts:
    stacks.append(
      finetune_step.init_encoders(run.model, run.config.head)(np.array(seeds, np.uint32))
    )
    index |= {(None, seed): number for number, seed in enumerate(seeds, len(run.encoders))}
  embedding_tables = np.zeros(0)
  if not run.model.encoder:
    embedding_tables = np.concatenate([encoders.table for encoders in stacks])
    stacks = [
      finetune_step.prune_embedding(encoders, run.task_data.used_ids) for encoders in stacks
    ]
  stacked = jax.tree.map(lambda *parts: np.concatenate(parts), *stacks)
  return EncoderStack(stacked, index, embedding_tables)


def place_data(data: TaskData, program: FinetuneProgram) -> DeviceData:
  """Copies the rows of all splits to every device."""
  scored_splits = [split for split in data.rows if split != TRAIN_SPLIT]
  batches, places = task_data.batch_rows(
    [data.rows[split] for split in scored_splits], program.eval_rows
  )
  return DeviceData(
    finetune_step.replicate_arrays(data.rows[TRAIN_SPLIT], program),
    finetune_step.replicate_arrays(batches, program),
    dict(zip(scored_splits, places, strict=True)),
  )


def train_members(
  run: FinetuneRun, program: FinetuneProgram, remaining: Sequence[MemberSpec], num_members: int
) -> None:
  """Trains the remaining of `num_members` members in groups, and writes their scores."""
  data, stack = place_data(run.task_data, program), stack_encoders(run)
  total, started = num_members * program.updates, time.monotonic()
  done = total - len(remaining) * program.updates

  def log(line: dict[str, Any]) -> None:
    seconds = round(time.monotonic() - started, 3)
    run_dir.append_line(run.workdir / run_dir.METRICS, {**line, 'seconds': seconds})

  with (
    progress.track_progress(
      f'fine-tuning {run.task_data.task.name}', total, 'updates', done
    ) as update_progress,
    signals.note_signals() as flag,
  ):
    for first in range(0, len(remaining), program.group_size):
      specs = remaining[first : first + program.group_size]
      inits = [(spec.seed, spec.learning_rate, stack.index[spec.step, spec.seed]) for spec in specs]
      members = program.start(finetune_step.group_members(program, inits), stack.encoders)
      state = finetune_resume.load_state(run.workdir, specs, members)
      state = state or finetune_resume.start_group(specs, members)
      maybe_save = finetune_resume.make_saver(run.workdir, state, flag)
      train_group(run, program, data, Group(state, done, update_progress, log, maybe_save))
      done += len(specs) * program.updates
      if run.config.patience:  # members may have stopped early
        update_progress(done, '')
      for spec, results in zip(specs, state.results, strict=True):
        if run.config.predictions:
          finetune_results.append_predictions(run.workdir, run.task_data, spec, results)
        if run.config.save_classifiers:
          save_member(run, stack, spec, results)
        for line in finetune_results.make_score_lines(run.task_data, spec, results):
          run_dir.append_line(run.workdir / run_dir.SCORES, {**line, **run.score_fields})


def train_group(run: FinetuneRun, program: FinetuneProgram, data: DeviceData, group: Group) -> None:
  """Trains a group and scores it after each epoch; stores the results in the group's state."""
  state, epoch_start = group.state, 0
  for epoch, epoch_end in finetune_results.list_epoch_ends(program.updates, run.config.epochs):
    if not state.active:
      break
    if state.step < epoch_end:  # a resumed state may be at the end of the epoch
      losses = train_epoch(program, data.train, group, epoch_start, epoch_end)
      outputs = np.asarray(program.outputs(state.members.state.model, data.eval_batches))
      for index in sorted(state.active):
        split_outputs = {split: outputs[index, places] for split, places in data.places.items()}
        result = _score_epoch(run, group, index, epoch, losses[index], split_outputs)
        _record_result(run.config, state, index, losses[index], result)
      group.maybe_save()
    epoch_start = epoch_end


def train_epoch(
  program: FinetuneProgram, train: TaskRows, group: Group, epoch_start: int, epoch_end: int
) -> list[float]:
  """Trains a group to the end of an epoch and returns the mean loss of each member in the epoch."""
  state = group.state
  while state.step < epoch_end:
    updates = min(_STEPS_PER_CHUNK, epoch_end - state.step)
    state.members, losses = program.chunk(state.members, train, jnp.int32(updates))
    state.loss_sums = state.loss_sums + np.asarray(losses)
    state.step += updates
    group.update_progress(
      group.updates_before + state.step * len(state.specs),
      f'loss {np.mean(state.loss_sums[sorted(state.active)]) / (state.step - epoch_start):.3f}',
    )
    if state.step < epoch_end:  # at the end of an epoch, scoring precedes the save
      group.maybe_save()
  means = (state.loss_sums / (epoch_end - epoch_start)).tolist()
  state.loss_sums = np.zeros_like(state.loss_sums)
  return means


def _score_epoch(
  run: FinetuneRun,
  group: Group,
  index: int,
  epoch: float,
  loss: float,
  outputs: dict[str, Float[np.ndarray, 'N C']],
) -> EpochResult:
  """Logs the loss and headline scores of a member after an epoch; returns the result."""
  data = run.task_data
  fields = {'step': group.state.step, 'epoch': epoch, **group.state.specs[index].log_fields()}
  group.log({**fields, 'split': TRAIN_SPLIT, 'loss': loss})
  scores, headline = {}, data.task.headline
  for split, split_outputs in outputs.items():
    if split not in data.unlabelled:
      labels = data.rows[split].labels
      scores[split] = finetune_results.compute_metrics(data.task, split_outputs, labels)[headline]
      group.log({**fields, 'split': split, headline: scores[split]})
  validation_score = scores[VALIDATION_PART] if run.config.validation_fraction else math.nan
  return EpochResult(epoch, validation_score, outputs)


def _record_result(
  config: FinetuneConfig, state: FinetuneState, index: int, loss: float, result: EpochResult
) -> None:
  """Stores the best and the last result of a member; stops it on a non-finite loss or by patience."""
  results = state.results[index]
  is_best = bool(config.validation_fraction) and finetune_results.is_better(
    result, results.get(BEST_EPOCH)
  )
  if config.save_classifiers and (is_best or not config.validation_fraction):
    model = population.select_member(state.members.state.model, index)
    result = dataclasses.replace(result, model=jax.tree.map(np.asarray, model))
  if is_best:
    results[BEST_EPOCH] = result
  results[LAST_EPOCH] = result
  stagnant = config.patience and result.epoch - results[BEST_EPOCH].epoch >= config.patience
  if stagnant or not math.isfinite(loss):
    state.active.discard(index)


def save_member(
  run: FinetuneRun, stack: EncoderStack, spec: MemberSpec, results: dict[str, EpochResult]
) -> None:
  """Saves a member as a classifier: its best epoch, or the last epoch without validation."""
  data, task = run.task_data, run.task_data.task
  epoch_choice = finetune_results.list_epoch_choices(run.config)[0]
  result = results[epoch_choice]
  card = classifier.Card(
    kind=classifier.CLASSIFIER_KIND,
    task=task.name,
    task_kind=task.kind,
    labels=task.labels,
    fields=task.fields,
    concatenate_fields=task.concatenate_fields,
    headline=task.headline,
    length=min(run.model.max_length, run.config.length),
    model=run.model,
    head=run.config.head,
    tokenizer=run.tokenizer.sha256,
    seed=spec.seed,
    learning_rate=spec.learning_rate,
    checkpoint=str(run.source),
    step=-1 if spec.step is None else spec.step,
    epoch_choice=epoch_choice,
    epoch=result.epoch,
  )
  model = result.model
  if not run.model.encoder:
    table = stack.embedding_tables[stack.index[spec.step, spec.seed]]
    model = finetune_step.widen_embedding(model, table, data.used_ids)
  classifier.save_classifier(
    run.workdir / classifier.name_member_folder(spec.member),
    card,
    model,
    run.tokenizer,
    {split: (result.outputs[split], data.rows[split].labels) for split in data.reported},
    {split: data.digests[split] for split in data.reported},
  )
