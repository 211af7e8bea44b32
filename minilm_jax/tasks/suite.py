"""Fine-tunes several checkpoints on several tasks, small tasks first, in a folder for each."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from minilm_jax.core import paths, progress, run_dir
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.errors import InputError
from minilm_jax.tasks import finetune, loading
from minilm_jax.tasks.examples import complete_task, read_examples
from minilm_jax.tasks.task import find_task
from minilm_jax.tasks.task_data import TRAIN_SPLIT
from minilm_jax.training import checkpoint, pretrained


def expand_checkpoints(names: str) -> dict[str, list[int]]:
  """Returns the steps of each run that `--checkpoint` names.

  Args:
    names: Comma-separated runs as `run` for the latest checkpoint, `run@4000` or `run@all`. Patterns
      such as `runs/sweep/*/member-*` name all matching pre-training runs with checkpoints. A run
      whose folder exists is literal, see `paths`.

  Raises:
    InputError: No run is named, a folder is a classifier, or a run lacks the checkpoint.
  """
  steps: dict[str, list[int]] = {}
  for name in paths.split_names(names):
    pattern, step = paths.split_step(name)
    sources = paths.expand_pattern(pattern)
    if sources != [pattern]:
      sources = [
        source
        for source in paths.drop_links(sources)
        if checkpoint.list_steps(source) and not _is_classifier(source)
      ]
    if not sources:
      raise InputError(
        f'the checkpoints of {pattern}', 'no matching run with checkpoints', 'pre-train first'
      )
    for source in sources:
      selected = steps.setdefault(source, [])
      selected += [number for number in _select_steps(source, step) if number not in selected]
  if not steps:
    raise InputError(
      f'--checkpoint={names}', 'no run', 'give a run, or several with commas between them'
    )
  return steps


def _is_classifier(source: str) -> bool:
  return (epath.Path(source) / run_dir.CLASSIFIER).exists()


def _select_steps(source: str, step: str) -> list[int]:
  """Returns all steps of a run ('all'), the latest step ('') or the given step."""
  if not checkpoint.list_steps(source) or _is_classifier(source):
    _check_run(source)
  is_number = step not in ('', 'all')
  selected = checkpoint.resolve_step(source, int(step) if is_number else None)
  return checkpoint.list_steps(source) if step == 'all' else [selected]


def _check_run(source: str) -> None:
  """Raises InputError if a folder is not a pre-training run."""
  subject, folder = f'the checkpoint of {source}', epath.Path(source)
  if not folder.is_dir():
    raise InputError(subject, 'no such folder', 'check the path')
  if not (folder / run_dir.CONFIG).exists() and not _is_classifier(source):
    raise InputError(
      subject, f'no {run_dir.CONFIG} of a run', f"give a run, or runs by a pattern: '{folder}/*'"
    )
  pretrained.load_config(source)


def choose_starts(steps: Sequence[int], from_scratch: bool, with_scratch: bool) -> list[int | None]:
  """Returns the starts of members: checkpoints, a fresh encoder (None), or both kinds.

  Raises:
    InputError: Both `from_scratch` and `with_scratch` are set.
  """
  if from_scratch and with_scratch:
    raise InputError(
      '--from_scratch and --with_scratch',
      'two contradictory flags: the first excludes checkpoints, the second includes them',
      'give only one of the flags',
    )
  return [None] if from_scratch else [*steps, None] if with_scratch else list(steps)


def finetune_all(
  configs: Mapping[str, FinetuneConfig],
  checkpoints: str,
  workdir: epath.PathLike,
  from_scratch: bool,
  with_scratch: bool,
) -> tuple[list[dict[str, Any]], list[InputError]]:
  """Fine-tunes checkpoints on every task of a table of recipes.

  Args:
    configs: Recipes by name.
    checkpoints: Runs and steps, as for `expand_checkpoints`.
    workdir: Work directory. Several runs or tasks have subfolders: `run/task`, `run` or `task`.
    from_scratch: Starts from fresh encoders instead of checkpoints; `with_scratch` from both.

  Returns:
    The score lines of all runs, and the errors of skipped tasks.

  Raises:
    InputError: A task or checkpoint does not exist, tasks share the files of one task, or no task
      could run. With a single run and task, any error is raised.
  """
  for config in configs.values():
    find_task(config.task.name)  # refuses a misspelt name before any training
  _check_files(configs.values())
  workdir = epath.Path(workdir)
  starts = {
    source: choose_starts(steps, from_scratch, with_scratch)
    for source, steps in expand_checkpoints(checkpoints).items()
  }
  if len(configs) == len(starts) == 1:
    ((source, source_starts),), (config,) = starts.items(), configs.values()
    return finetune.finetune(config, source, workdir, source_starts), []
  run_names = name_folders(list(starts))
  lines: list[dict[str, Any]] = []
  errors: list[InputError] = []
  sizes = _training_sizes(configs, errors)
  for number, task in enumerate(sorted(sizes, key=sizes.__getitem__), 1):
    for source, source_starts in starts.items():
      folder = workdir / run_names[source] if len(starts) > 1 else workdir
      folder = folder / task if len(configs) > 1 else folder
      progress.log(f'task {number} of {len(sizes)}: {task}, from {source}')
      try:
        task_lines = finetune.finetune(configs[task], source, folder, source_starts)
      except InputError as error:
        errors.append(error)
        progress.log(str(error))
      else:  # the runs of a sweep may all be called member-0
        lines += [{**line, 'checkpoint': run_names[source]} for line in task_lines]
  if not lines:
    raise errors[0]
  return lines, errors


def _check_files(configs: Iterable[FinetuneConfig]) -> None:
  """Raises InputError if two tasks read the same columns of the same folder or file."""
  tasks: dict[tuple[Any, ...], str] = {}
  for task in (config.task for config in configs):
    names = filter(None, (task.folder, *loading.list_named_files(task).values()))
    for name in names:
      first = tasks.setdefault((paths.resolve_links(name), task.fields, task.label), task.name)
      if first != task.name:
        raise InputError(
          f'the tasks {first} and {task.name}',
          f'the examples in {name} for both',
          'give each task in a separate command with its own folder or files',
        )


def name_folders(sources: Sequence[str]) -> dict[str, str]:
  """Returns a folder name for each run: the shortest distinct ends of the paths.

  >>> name_folders(['runs/a/member-0', 'runs/b/member-0'])
  {'runs/a/member-0': 'a/member-0', 'runs/b/member-0': 'b/member-0'}

  Raises:
    InputError: Two paths are the same run.
  """
  parts = {source: epath.Path(source).resolve().parts for source in sources}
  for count in range(1, max(map(len, parts.values())) + 1):
    names = {source: '/'.join(path_parts[-count:]) for source, path_parts in parts.items()}
    if len(set(names.values())) == len(names):
      return names
  raise InputError(
    f'a folder for each of {", ".join(sources)}', 'a run named twice', 'name every run once'
  )


def _training_sizes(
  configs: Mapping[str, FinetuneConfig], errors: list[InputError]
) -> dict[str, float]:
  """Returns training examples times epochs of each task; appends errors of unreadable tasks."""
  sizes = {}
  for name, config in configs.items():
    try:
      train = read_examples(complete_task(config.task), config.task, TRAIN_SPLIT)
      sizes[name] = config.epochs * len(train.labels)
    except InputError as error:
      errors.append(error)
      progress.log(str(error))
  return sizes
