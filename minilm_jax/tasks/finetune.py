"""Checkpoints of one run, a task, seeds and learning rates: scores.

All members share one compiled program: on a CPU one a core at a time, on an accelerator all in each
operation. A member whose scores are in scores.jsonl is not run again; those that were on their way
go on from `interim.py`'s file.
"""

import dataclasses
import functools
import glob
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from minilm_jax.core import files, lock, progress, recipe, run_dir, signals
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.data.tokenizer import Tokenizer
from minilm_jax.tasks import (
  classifier,
  examples,
  finetune_results,
  finetune_resume,
  finetune_step,
  metrics,
  task_data,
)
from minilm_jax.tasks.finetune_results import EpochResult, MemberSpec
from minilm_jax.tasks.finetune_step import FinetuneProgram
from minilm_jax.tasks.task import VALIDATION_PART, find_task
from minilm_jax.tasks.task_data import TRAIN_SPLIT, TaskData
from minilm_jax.training import checkpoint, population, pretrained

_STEPS_PER_CHUNK = 200  # of a dispatch at most, so that progress is seen
LogScores = Callable[[dict[str, Any]], None]
Update = Callable[[int, str], None]


def finetune(
  config: FinetuneConfig,
  source: epath.PathLike,
  workdir: epath.PathLike,
  starts: Sequence[int | None],
) -> list[dict[str, Any]]:
  """Fine-tunes on a task, once for each start, learning rate and seed.

  Args:
    config: the recipe; examples are cut at its `length` or at that of the model, whichever is
      shorter.
    source: the pre-training run, for the shape of the model, its tokenizer and its checkpoints.
    workdir: where config.json, metrics.jsonl, scores.jsonl and result.json go.
    starts: steps of checkpoints, or None: a fresh encoder a seed, which is the control of every
      comparison.

  Returns:
    The score lines of all members.

  Raises:
    Held: another process fine-tunes there.
    InputError: the run, a checkpoint or the examples cannot be used, or no member kept a finite
      loss.
  """
  source = epath.Path(source)
  model = dataclasses.replace(
    pretrained.load_single_config(source).model, dropout=config.head.dropout
  )
  tokenizer = pretrained.load_tokenizer(source)
  saved = {step: load_encoder(source, model, step) for step in starts if step is not None}
  ready = task_data.prepare_task_data(
    config, model.max_length, tokenizer, model.batch_norm, bool(model.encoder)
  )
  with lock.hold_lock(workdir):
    workdir = run_dir.open_run(
      workdir, {**recipe.as_dict(config), 'checkpoint': str(source), 'starts': list(starts)}
    )
    return _continue(config, source, workdir, starts, model, tokenizer, saved, ready)


def _continue(
  config: FinetuneConfig,
  source: epath.Path,
  workdir: epath.Path,
  starts: Sequence[int | None],
  model: EncoderConfig,
  tokenizer: Tokenizer,
  saved: dict[int, Any],
  ready: TaskData,
) -> list[dict[str, Any]]:
  """Runs the members that are left."""
  entries = finetune_results.member_specs(config, starts)
  common = {
    'train_examples': len(ready.rows[TRAIN_SPLIT].labels),
    'checkpoint': source.name,
    'truncated': ready.truncated,
    'held_out': len(ready.rows[VALIDATION_PART].labels) if config.validation_fraction else 0,
    'filtered': config.task.filtered,
  }
  left = _remaining_members(config, ready, entries, workdir)
  if left:
    shape = finetune_step.StepShape(
      ready.task.kind, len(ready.task.labels), common['train_examples'], ready.lengths
    )
    program = finetune_step.build_finetune_program(shape, config, model, len(entries))
    _drop_partial_scores(workdir, left, program.together)
    encoders, numbers, whole = _encoders(saved, None in starts, model, config, ready)
    origins = {
      entry: (entry.seed, entry.learning_rate, numbers[entry.step, entry.seed]) for entry in left
    }
    keep = functools.partial(
      _save_classifier, origins, whole, ready, config, model, tokenizer, source, workdir
    )
    _fit_all(program, origins, encoders, ready, config, workdir, common, len(entries), keep)
  finetune_resume.remove_state(workdir)  # also where a kill came between the last score and this
  return _member_result(config, ready, workdir, common)


def load_encoder(source: epath.PathLike, model: EncoderConfig, step: int) -> Any:
  """Loads the encoder of a checkpoint of a run onto the host."""
  encoder = pretrained.load(source, step, 'encoder', changes={'dropout': model.dropout}).model
  # restored arrays are bound to a device, and steps that start from them would be compiled once
  # more
  return jax.tree.map(np.asarray, encoder)


def _encoders(
  saved: dict[int, Any], fresh: bool, model: EncoderConfig, config: FinetuneConfig, ready: TaskData
) -> tuple[Any, dict[tuple[int | None, int], int], np.ndarray]:
  """All encoders that members start from, stacked, the number of each member's by step and seed,
  their tables.
  """
  stacks = [jax.tree.map(lambda x: x[None], encoder) for encoder in saved.values()]
  numbers = {(step, seed): number for number, step in enumerate(saved) for seed in config.seeds}
  if fresh:
    stacks.append(
      finetune_step.init_encoders(model, config.head)(np.array(config.seeds, np.uint32))
    )
    numbers |= {(None, seed): len(saved) + number for number, seed in enumerate(config.seeds)}
  whole = np.zeros(0)
  if not model.encoder:
    whole = np.concatenate([encoders.table for encoders in stacks])
    stacks = [finetune_step.prune_embedding(encoders, ready.used) for encoders in stacks]
  return jax.tree.map(lambda *parts: np.concatenate(parts), *stacks), numbers, whole


def _remaining_members(
  config: FinetuneConfig, ready: TaskData, entries: Sequence[MemberSpec], workdir: epath.Path
) -> list[MemberSpec]:
  """The members that have not all of their scores, and their classifier where it is kept."""
  whole = (
    len(finetune_results.reported_epochs(config)) * len(ready.reported) * len(ready.task.metrics)
  )
  members = [line['member'] for line in run_dir.read_lines(workdir / run_dir.SCORES)]
  done = {
    member
    for member in members
    if members.count(member) == whole
    and not (
      config.save_classifiers
      and classifier.missing_files(workdir / classifier.classifier_dir(member))
    )
  }
  return [entry for entry in entries if entry.member not in done]


def _drop_partial_scores(workdir: epath.Path, left: Sequence[MemberSpec], together: int) -> None:
  """Takes out of the logs what the members that are left have written, up to where the first of
  them go on.
  """
  again, first = {entry.member for entry in left}, {entry.member for entry in left[:together]}
  step = finetune_resume.state_step(workdir, left[:together])
  for log in (run_dir.SCORES, run_dir.METRICS, run_dir.PREDICTIONS):
    if (workdir / log).exists():
      run_dir.keep_lines(
        workdir / log,
        lambda line: (
          line['member'] not in again
          or (log == run_dir.METRICS and line['member'] in first and line['step'] <= step)
        ),
      )


def _fit_all(
  program: FinetuneProgram,
  origins: dict[MemberSpec, tuple],
  encoders: Any,
  ready: TaskData,
  config: FinetuneConfig,
  workdir: epath.Path,
  common: dict[str, Any],
  members: int,
  keep: Callable[[MemberSpec, dict[str, EpochResult]], None],
) -> None:
  """Runs the members that are left, as many together as the program takes."""
  labels = {split: ready.rows[split].labels for split in ready.reported}
  train = np.concatenate(
    [ready.rows[name].labels for name in (TRAIN_SPLIT, VALIDATION_PART) if name in ready.rows]
  )
  floors = {
    split: {
      'majority': metrics.majority_baseline(ready.task, train, right),
      'frequency': metrics.frequency_baseline(ready.task, train, right),
    }
    for split, right in labels.items()
  }
  data = finetune_step.replicate(ready.rows[TRAIN_SPLIT], program)
  names = [name for name in ready.rows if name != TRAIN_SPLIT]
  batches, places = task_data.iter_batches([ready.rows[name] for name in names], program.scored)
  judged = finetune_step.replicate(batches, program), dict(zip(names, places, strict=True))
  entries, total, log = list(origins), members * program.updates, _log(workdir)
  before = total - len(entries) * program.updates
  with (
    progress.track_progress(f'fine-tuning {ready.task.name}', total, 'updates', before) as tick,
    signals.note_signals() as flag,
  ):
    for first in range(0, len(entries), program.together):
      some = entries[first : first + program.together]
      member = program.start(
        finetune_step.group_members(program, [origins[entry] for entry in some]), encoders
      )
      reached = finetune_resume.load_state(workdir, some, member) or finetune_resume.init_state(
        member, len(some)
      )
      rest = finetune_resume.make_saver(workdir, some, reached, flag)
      found = _fit(
        program,
        reached,
        data,
        judged,
        some,
        ready,
        config,
        log,
        lambda done, note: tick(before + done * len(some), note),
        rest,
      )
      before += len(some) * program.updates
      if config.patience:  # some may have stopped early
        tick(before, '')
      for entry, kept in zip(some, found, strict=True):
        if config.predictions:
          finetune_results.save_test_outputs(workdir, ready, entry, kept)
        if config.save_classifiers:
          keep(entry, kept)
        for line in finetune_results.score_lines(ready.task, entry, kept, labels, floors):
          run_dir.append_line(workdir / run_dir.SCORES, {**line, **common})


def _fit(
  program: FinetuneProgram,
  reached: finetune_resume.FinetuneState,
  data: Any,
  judged: tuple[Any, dict],
  entries: Sequence[MemberSpec],
  ready: TaskData,
  config: FinetuneConfig,
  log: LogScores,
  tick: Update,
  rest: Callable[[], None],
) -> list[dict[str, EpochResult]]:
  """Trains some members together, an epoch at a time; gives what is reported of each."""
  kept, best, going, first = reached.kept, reached.best, reached.going, 0
  for epoch, end in finetune_results.epoch_ends(program.updates, config.epochs):
    if not going:
      break
    if reached.step >= end:  # it went on after this epoch
      first = end
      continue
    losses = _epoch(program, reached, data, first, end, tick, rest)
    member, step, first = reached.member, end, end
    outputs = np.asarray(program.outputs(member.state.model, judged[0]))
    for number in sorted(going):
      where = {'step': step, 'epoch': epoch, **entries[number].fields()}
      log({**where, 'split': TRAIN_SPLIT, 'loss': losses[number]})
      own = {name: outputs[number, place] for name, place in judged[1].items()}
      heads = {
        name: finetune_results.headline_value(ready.task, own[name], ready.rows[name].labels)
        for name in own
        if name not in ready.unlabelled
      }
      for name, value in heads.items():
        log({**where, 'split': name, ready.task.headline: value})
      now = EpochResult(
        epoch, heads[VALIDATION_PART] if config.validation_fraction else math.nan, own
      )
      if config.save_classifiers and (
        not config.validation_fraction
        or finetune_results.is_better(now, kept[number].get(finetune_results.BEST_EPOCH))
      ):
        now = dataclasses.replace(
          now, model=jax.tree.map(np.asarray, population.select_member(member.state.model, number))
        )
      if config.validation_fraction and finetune_results.is_better(
        now, kept[number].get(finetune_results.BEST_EPOCH)
      ):
        kept[number][finetune_results.BEST_EPOCH], best[number] = now, epoch
      kept[number][finetune_results.LAST_EPOCH] = now
      if (
        not math.isfinite(losses[number])
        or config.patience
        and epoch - best[number] >= config.patience
      ):
        going.discard(number)
    rest()
  return kept


def _save_classifier(
  origins: dict[MemberSpec, tuple],
  whole: np.ndarray,
  ready: TaskData,
  config: FinetuneConfig,
  model: EncoderConfig,
  tokenizer: Tokenizer,
  source: epath.Path,
  workdir: epath.Path,
  entry: MemberSpec,
  kept: dict[str, EpochResult],
) -> None:
  """Saves a member of the epoch that is reported first as a classifier of its own."""
  which = finetune_results.reported_epochs(config)[0]
  scored, task = kept[which], ready.task
  card = classifier.Card(
    classifier.CLASSIFIER_KIND,
    task.name,
    task.kind,
    task.labels,
    task.fields,
    task.concatenate_fields,
    task.headline,
    min(model.max_length, config.length),
    model,
    config.head,
    tokenizer.sha256,
    entry.seed,
    entry.learning_rate,
    str(source),
    -1 if entry.step is None else entry.step,
    which,
    scored.epoch,
  )
  outputs = {split: (scored.outputs[split], ready.rows[split].labels) for split in ready.reported}
  fitted = (
    scored.model
    if model.encoder
    else finetune_step.widen_embedding(scored.model, whole[origins[entry][2]], ready.used)
  )
  classifier.save_classifier(
    workdir / classifier.classifier_dir(entry.member),
    card,
    fitted,
    tokenizer,
    outputs,
    ready.digests,
  )


def _log(workdir: epath.Path) -> LogScores:
  """Appends lines to metrics.jsonl, with the seconds since now."""
  started = time.monotonic()
  return lambda line: run_dir.append_line(
    workdir / run_dir.METRICS, {**line, 'seconds': round(time.monotonic() - started, 3)}
  )


def _epoch(
  program: FinetuneProgram,
  reached: finetune_resume.FinetuneState,
  data: Any,
  first: int,
  end: int,
  tick: Update,
  rest: Callable[[], None],
) -> list[float]:
  """Goes on to the end of an epoch that began after update `first`; the mean loss of each member in
  it.
  """
  while reached.step < end:
    some = min(_STEPS_PER_CHUNK, end - reached.step)
    reached.member, losses = program.chunk(reached.member, data, jnp.int32(some))
    reached.totals = reached.totals + np.asarray(losses)
    reached.step += some
    tick(reached.step, f'loss {np.mean(reached.totals) / (reached.step - first):.3f}')
    if reached.step < end:  # at the end there is a score to come
      rest()
  means = (reached.totals / (end - first)).tolist()
  reached.totals = np.zeros_like(reached.totals)
  return means


def _member_result(
  config: FinetuneConfig, ready: TaskData, workdir: epath.Path, common: dict[str, Any]
) -> list[dict[str, Any]]:
  """Writes result.json and, where they are wanted, predictions for the GLUE server; gives all score
  lines.
  """
  lines = list(run_dir.read_lines(workdir / run_dir.SCORES))
  lost = {
    line['member']: line
    for line in run_dir.read_lines(workdir / run_dir.METRICS)
    if line['split'] == TRAIN_SPLIT and line['loss'] is None
  }
  for line in lost.values():
    who = f'seed {line["seed"]} with learning rate {line["learning_rate"]}'
    progress.log(f'{ready.task.name}: the loss of {who} was no number by update {line["step"]}')
  if len(lost) == len({line['member'] for line in lines}):
    raise InputError(
      f'a finite loss on {ready.task.name}',
      f'none of {len(lost)} members kept one',
      'lower optimizer.learning_rate, and give another --workdir',
    )
  if config.predictions:
    finetune_results.write_submission(
      workdir, ready, lines, finetune_results.reported_epochs(config)[0]
    )
  files.write_json(
    workdir / run_dir.RESULT,
    {
      'task': ready.task.name,
      **common,
      'seeds': len(config.seeds),
      'scores': finetune_results.summary_lines(lines),
    },
  )
  return lines


# Several tasks and checkpoints as one command: small tasks first, each in a folder of its own.
_STEP = re.compile(r'(.+)@(\d+|all)')
ScoreLines = list[dict[str, Any]]


def expand_checkpoints(given: str) -> dict[str, list[int]]:
  """The runs that `--checkpoint` names, with commas between, and the steps of each: `run`,
  `run@4000` or `run@all`.

  A name with a star in it, such as `runs/sweep/*/member-*`, is every run with a checkpoint that it
  fits.

  Raises:
    InputError: no run is named, or one has no such checkpoint.
  """
  found: dict[str, list[int]] = {}
  for word in filter(None, map(str.strip, given.split(','))):
    match = _STEP.fullmatch(word)
    source, wanted = match.groups() if match else (word, '')
    fitting = (
      [one for one in sorted(glob.glob(source)) if checkpoint.list_steps(one)]
      if '*' in source
      else [source]
    )
    if not fitting:
      raise InputError(
        f'the checkpoints of {source}', 'no run with a checkpoint there', 'pre-train first'
      )
    for one in fitting:
      mine = found.setdefault(one, [])
      mine += [step for step in _steps(one, wanted) if step not in mine]
  if not found:
    raise InputError(
      f'--checkpoint={given}', 'it names no run', 'give one, or some with commas between'
    )
  return found


def _steps(source: str, wanted: str) -> list[int]:
  there = checkpoint.list_steps(source)
  if not there:
    raise InputError(
      f'the checkpoint of {source}', 'none saved there', 'pre-train first, or give another run'
    )
  steps = there if wanted == 'all' else [int(wanted)] if wanted else there[-1:]
  if steps[0] not in there:
    raise InputError(
      f'the checkpoint of step {steps[0]} in {source}',
      f'there are {", ".join(map(str, there))}',
      'give one of them; checkpoint.keep_last says how many a run keeps',
    )
  return steps


def starting_points(steps: Sequence[int], from_scratch: bool, control: bool) -> list[int | None]:
  """What members start from: the checkpoints, a fresh encoder (None) instead of them, or both.

  Raises:
    InputError: `from_scratch` and `control`.
  """
  if from_scratch and control:
    raise InputError(
      '--from_scratch and --with_scratch',
      'the one leaves the checkpoints out, the other keeps them',
      'give one of them',
    )
  return [None] if from_scratch else [*steps, None] if control else list(steps)


def finetune_all(
  configs: Mapping[str, FinetuneConfig],
  given: str,
  workdir: epath.PathLike,
  from_scratch: bool,
  control: bool,
) -> tuple[ScoreLines, list[InputError]]:
  """Fine-tunes checkpoints on every task of a table of recipes.

  Args:
    configs: recipes by name.
    given: runs and steps, as in `checkpoints`.
    workdir: of a single run on a single task; else it holds a folder for each, `run/task`, `run` or
      `task`.
    from_scratch: start from fresh encoders instead.
    control: start from fresh encoders, too.

  Returns:
    The score lines of all, and why tasks were left out.

  Raises:
    InputError: there is no such task or checkpoint, or nothing could be run; of a single task,
      whatever it lacks.
  """
  for config in configs.values():
    find_task(config.task.name)  # a misspelt name is no task that lacks something
  runs, workdir = expand_checkpoints(given), epath.Path(workdir)
  begin = {source: starting_points(steps, from_scratch, control) for source, steps in runs.items()}
  if len(configs) == len(runs) == 1:
    (source, these), (config,) = *begin.items(), configs.values()
    return finetune(config, source, workdir, these), []
  names = task_folders(list(runs))
  lines: ScoreLines = []
  failed: list[InputError] = []
  sizes = _sizes(configs, failed)
  for number, task in enumerate(sorted(sizes, key=sizes.__getitem__), 1):
    for source, these in begin.items():
      place = workdir / names[source] if len(runs) > 1 else workdir
      progress.log(f'task {number} of {len(sizes)}: {task}, from {source}')
      try:
        found = finetune(configs[task], source, place / task if len(configs) > 1 else place, these)
        # members of sweeps are all called member-0
        lines += [{**line, 'checkpoint': names[source]} for line in found]
      except InputError as error:
        failed.append(error)
        progress.log(str(error))
  if not lines:
    raise failed[0]
  return lines, failed


def task_folders(sources: Sequence[str]) -> dict[str, str]:
  """A folder for each run, by as much of the end of its path as tells them apart.

  >>> task_folders(['runs/a/member-0', 'runs/b/member-0'])
  {'runs/a/member-0': 'a/member-0', 'runs/b/member-0': 'b/member-0'}

  Raises:
    InputError: two are one run.
  """
  parts = {source: epath.Path(source).resolve().parts for source in sources}
  for count in range(1, max(map(len, parts.values())) + 1):
    found = {source: '/'.join(some[-count:]) for source, some in parts.items()}
    if len(set(found.values())) == len(found):
      return found
  raise InputError(
    f'a folder for each of {", ".join(sources)}', 'two of them are one run', 'name it once'
  )


def _sizes(configs: Mapping[str, FinetuneConfig], failed: list[InputError]) -> dict[str, float]:
  """Training examples times epochs of each task; why tasks cannot be read goes into `failed`."""
  found = {}
  for name, config in configs.items():
    try:
      found[name] = config.epochs * len(
        examples.read_examples(examples.complete_task(config.task), config.task, 'train').labels
      )
    except InputError as error:
      failed.append(error)
      progress.log(str(error))
  return found
