"""Several tasks and checkpoints as one command: small tasks first, each in a folder of its own.

What a task lacks (examples that are not on this machine, for one) stops that task alone; the others go on, and the end
says what is missing.
"""

import glob
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from minilm_jax import progress
from minilm_jax.config import FinetuneConfig
from minilm_jax.errors import InputError
from minilm_jax.tasks import finetune, sources, table
from minilm_jax.training import checkpoint

_STEP = re.compile(r'(.+)@(\d+|all)')
Lines = list[dict[str, Any]]


def checkpoints(given: str) -> dict[str, list[int]]:
  """The runs that `--checkpoint` names, with commas between, and the steps of each: `run`, `run@4000` or `run@all`.

  A name with a star in it, such as `runs/sweep/*/member-*`, is every run with a checkpoint that it fits.

  Raises:
    InputError: no run is named, or one has no such checkpoint.
  """
  found: dict[str, list[int]] = {}
  for word in filter(None, map(str.strip, given.split(','))):
    match = _STEP.fullmatch(word)
    source, wanted = match.groups() if match else (word, '')
    fitting = [one for one in sorted(glob.glob(source)) if checkpoint.list_steps(one)] if '*' in source else [source]
    if not fitting:
      raise InputError(f'the checkpoints of {source}', 'no run with a checkpoint there', 'pre-train first')
    for one in fitting:
      mine = found.setdefault(one, [])
      mine += [step for step in _steps(one, wanted) if step not in mine]
  if not found:
    raise InputError(f'--checkpoint={given}', 'it names no run', 'give one, or some with commas between')
  return found


def _steps(source: str, wanted: str) -> list[int]:
  there = checkpoint.list_steps(source)
  if not there:
    raise InputError(f'the checkpoint of {source}', 'none saved there', 'pre-train first, or give another run')
  steps = there if wanted == 'all' else [int(wanted)] if wanted else there[-1:]
  if steps[0] not in there:
    raise InputError(f'the checkpoint of step {steps[0]} in {source}', f'there are {", ".join(map(str, there))}',
                     'give one of them; checkpoint.keep_last says how many a run keeps')
  return steps


def starts(steps: Sequence[int], from_scratch: bool, control: bool) -> list[int | None]:
  """What members start from: the checkpoints, a fresh encoder (None) instead of them, or both.

  Raises:
    InputError: `from_scratch` and `control`.
  """
  if from_scratch and control:
    raise InputError('--from_scratch and --with_scratch', 'the one leaves the checkpoints out, the other keeps them',
                     'give one of them')
  return [None] if from_scratch else [*steps, None] if control else list(steps)


def finetune_all(configs: Mapping[str, FinetuneConfig], given: str, workdir: epath.PathLike, from_scratch: bool,
                 control: bool) -> tuple[Lines, list[InputError]]:
  """Fine-tunes checkpoints on every task of a table of recipes.

  Args:
    configs: recipes by name.
    given: runs and steps, as in `checkpoints`.
    workdir: of a single run on a single task; else it holds a folder for each, `run/task`, `run` or `task`.
    from_scratch: start from fresh encoders instead.
    control: start from fresh encoders, too.

  Returns:
    The score lines of all, and why tasks were left out.

  Raises:
    InputError: there is no such task or checkpoint, or nothing could be run; of a single task, whatever it lacks.
  """
  for config in configs.values():
    table.find(config.task.name)  # a misspelt name is no task that lacks something
  runs, workdir = checkpoints(given), epath.Path(workdir)
  begin = {source: starts(steps, from_scratch, control) for source, steps in runs.items()}
  if len(configs) == len(runs) == 1:
    (source, these), (config,) = *begin.items(), configs.values()
    return finetune.finetune(config, source, workdir, these), []
  names = folders(list(runs))
  lines: Lines = []
  failed: list[InputError] = []
  sizes = _sizes(configs, failed)
  for number, task in enumerate(sorted(sizes, key=sizes.__getitem__), 1):
    for source, these in begin.items():
      place = workdir / names[source] if len(runs) > 1 else workdir
      progress.say(f'task {number} of {len(sizes)}: {task}, from {source}')
      try:
        found = finetune.finetune(configs[task], source, place / task if len(configs) > 1 else place, these)
        lines += [{**line, 'checkpoint': names[source]} for line in found]  # members of sweeps are all called member-0
      except InputError as error:
        failed.append(error)
        progress.say(str(error))
  if not lines:
    raise failed[0]
  return lines, failed


def folders(sources: Sequence[str]) -> dict[str, str]:
  """A folder for each run, by as much of the end of its path as tells them apart.

  >>> folders(['runs/a/member-0', 'runs/b/member-0'])
  {'runs/a/member-0': 'a/member-0', 'runs/b/member-0': 'b/member-0'}

  Raises:
    InputError: two are one run.
  """
  parts = {source: epath.Path(source).resolve().parts for source in sources}
  for count in range(1, max(map(len, parts.values())) + 1):
    found = {source: '/'.join(some[-count:]) for source, some in parts.items()}
    if len(set(found.values())) == len(found):
      return found
  raise InputError(f'a folder for each of {", ".join(sources)}', 'two of them are one run', 'name it once')


def _sizes(configs: Mapping[str, FinetuneConfig], failed: list[InputError]) -> dict[str, float]:
  """Training examples times epochs of each task; why tasks cannot be read goes into `failed`."""
  found = {}
  for name, config in configs.items():
    try:
      found[name] = config.epochs * len(sources.read(sources.complete(config.task), config.task, 'train').labels)
    except InputError as error:
      failed.append(error)
      progress.say(str(error))
  return found
