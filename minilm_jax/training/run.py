"""Runs pre-training from a recipe to its result: directory, state, loop and summary.

A run starts from random weights, the weights of another run, or its newest intact checkpoint.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

from etils import epath

from minilm_jax.core import distributed, progress, run_dir, signals
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.training import checkpoint, log_sinks, metrics_log, run_setup
from minilm_jax.training.batches import load_resident, open_batches
from minilm_jax.training.origin import make_start_state, parse_origin, resolve_origin
from minilm_jax.training.pretrain import Outputs, ProfileContext, find_progress, train
from minilm_jax.training.program import TrainProgram, build_program
from minilm_jax.training.train_step import TrainState

T = TypeVar('T')
CORRUPT_SUFFIX = '.corrupt'


def pretrain(
  config: RunConfig,
  workdir: epath.PathLike,
  profile: ProfileContext = lambda first, last: contextlib.nullcontext(),
  init_from: str = '',
  init_optimizer: bool = False,
) -> dict[str, Any]:
  """Pre-trains to the end of the recipe, from the last checkpoint or from the start.

  Args:
    profile: `profile(first, last)` returns the context of the updates `first + 1 ... last`, as
      `Recorder.record` of `cli/profiler.py`.
    init_from: RUN or RUN@STEP that gives a new run its weights; '' for random weights.
    init_optimizer: Whether that run also gives the moments of the optimizer.

  Returns:
    The content of result.json: last losses, tokens, FLOPs and seconds. For a population, it has
    these numbers for each member. Tokens and FLOPs exclude those of the origin.

  Raises:
    LockedError: Another process uses the directory.
    InputError: Corpus, work directory, origin or machine do not fit the recipe.
    DistributedError: An update was not finite, and the recipe stops at non-finite updates.
    OSError: A file of the run could not be written; earlier checkpoints stay.
    signals.InterruptedAfterSave: A signal came, and the run was saved after the chunk.
  """
  with distributed.raise_together():
    origin = parse_origin(init_from, init_optimizer)
    origin_record = resolve_origin(config, workdir, origin)
  run_setup.check_recipe(config, workdir, origin_record)
  with distributed.raise_together():
    program = build_program(config)
  workdir, corpus_folder, manifest = distributed.primary_first(
    lambda: run_setup.open_or_create_run(config, workdir, origin_record)
  )
  if (result := run_setup.read_result(config, workdir)) is not None:
    return result
  with run_setup.lock_run(config, workdir) as check_lock:
    state, lines = restore_or_init(config, workdir, program)
    with signals.note_signals() as interrupt:
      with _open_outputs(config, workdir, program, corpus_folder, manifest, lines) as outputs:
        step, active = find_progress(state)
        # A run may have been stopped between its last checkpoint and its result.
        if step < config.num_steps:
          with open_batches(config, program, corpus_folder) as batches:
            state, active = train(state, outputs, batches, check_lock, interrupt, profile)
        outputs.evaluate('test', state, active, config.num_steps)
      return distributed.primary_first(lambda: metrics_log.write_result(config, workdir))


@contextlib.contextmanager
def _open_outputs(
  config: RunConfig,
  workdir: epath.Path,
  program: TrainProgram,
  corpus_folder: epath.Path,
  manifest: dict[str, Any],
  lines: list[dict[str, Any]],
) -> Iterator[Outputs]:
  """Yields the outputs of a run.

  Args:
    manifest: Manifest of the corpus.
    lines: Lines of the log from earlier starts.
  """
  with distributed.raise_together():
    splits = {
      name: load_resident(program, corpus_folder, name, config.eval.rows)
      for name in ('validation', 'test')
      if manifest['splits'][name]['rows']
    }
  losses = metrics_log.validation_losses(lines)
  with (
    log_sinks.open_sinks(config, workdir, lines) as send,
    checkpoint.open_writer(
      workdir, config.checkpoint.keep_last, config.checkpoint.keep_best, losses
    ) as checkpoints,
  ):
    log = metrics_log.MetricsLog(config, workdir, manifest['length'], lines, send)
    yield Outputs(config, workdir, program, log.write, checkpoints, manifest['length'], splits)


def restore_or_init(
  config: RunConfig, workdir: epath.Path, program: TrainProgram
) -> tuple[TrainState, list[dict[str, Any]]]:
  """Restores the newest intact checkpoint of a run, or initializes its state.

  Removes later lines from the log, and returns the lines up to the step of the state.

  Raises:
    InputError: Some members stopped earlier, and the recipe stops at non-finite updates. The weights
      of the origin have changed since the start.
  """
  saved_step, state = restore_latest(workdir, program.shapes)
  lines = distributed.primary_first(
    lambda: run_dir.keep_lines(
      workdir / run_dir.METRICS,
      lambda line: line['step'] <= (saved_step or 0) and line['split'] != 'test',
      metrics_log.line_fields(config),
    )
  )
  if saved_step is None or state is None:
    state = make_start_state(config, workdir, program)
  else:
    progress.log(f'resuming from the checkpoint of update {saved_step:,}')
  stopped = config.population.members - len(find_progress(state)[1])
  if stopped and config.nonfinite == 'stop':
    raise InputError(
      f'the run in {workdir}',
      f'{stopped} members with a non-finite update',
      'lower optimizer.learning_rate or set optimizer.clip, and give another --workdir',
    )
  return state, lines


def restore_latest(workdir: epath.PathLike, like: T) -> tuple[int | None, T | None]:
  """Restores the newest checkpoint that matches its checksums or, without checksums, is readable.

  Renames corrupt checkpoints and logs their names. With several processes, the first process checks
  the files. An error while all processes read a checkpoint stops all of them.

  Returns:
    Step and state of the checkpoint, or None and None if the run has no checkpoint.

  Raises:
    InputError: The checkpoint does not fit `like`, or matches its checksums and cannot be read.
    OSError: The files of the checkpoint cannot be reached.
  """
  while True:
    step = distributed.primary_first(lambda: _find_intact_step(workdir))
    distributed.assert_equal('the last checkpoint', str(step))
    if step is None:
      return None, None
    try:
      with distributed.raise_together():
        state = checkpoint.restore(workdir, like, step)
    except checkpoint.CorruptCheckpointError as error:
      _rename_corrupt(workdir, step, error.found)
      continue
    folder = checkpoint.step_folder(workdir, step)
    # A killed process may have saved the checkpoint without checksums.
    if distributed.is_primary() and not checkpoint.has_checksums(folder):
      checkpoint.write_checksums(folder)
    return step, state


def _find_intact_step(workdir: epath.PathLike) -> int | None:
  """Renames corrupt checkpoints, and returns the last step with an intact checkpoint."""
  for step in reversed(checkpoint.list_steps(workdir)):
    damage = (
      checkpoint.find_damage(checkpoint.step_folder(workdir, step))
      if distributed.is_primary()
      else ''
    )
    if not damage:
      return step
    _rename_corrupt(workdir, step, damage)
  return None


def _rename_corrupt(workdir: epath.PathLike, step: int, damage: str) -> None:
  """Renames a checkpoint to `STEP.corrupt`, which no command reads."""
  folder = checkpoint.step_folder(workdir, step)
  renamed = folder.with_name(f'{step}{CORRUPT_SUFFIX}')
  renamed.rmtree(missing_ok=True)
  folder.rename(renamed)
  restart = '' if checkpoint.list_steps(workdir) else '; training starts again from update 0'
  progress.log(
    f'the checkpoint of update {step:,} in {workdir} is corrupt: {damage}; '
    f'renamed to {renamed.name}{restart}'
  )
