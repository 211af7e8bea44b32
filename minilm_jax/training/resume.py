"""Where a run that was stopped goes on: at its newest checkpoint that is whole; what is damaged is set aside."""

from typing import TypeVar

from etils import epath

from minilm_jax import hosts, progress
from minilm_jax.training import checkpoint, digests

T = TypeVar('T')


def restore(workdir: epath.PathLike, like: T) -> tuple[int | None, T | None]:
  """The newest checkpoint of a run that is whole by its digests, or by being read where it has none.

  Damaged ones on the way are set aside and said. Of several processes the first looks for them; one that shows only
  when all of them read it stops them.

  Args:
    workdir: of the run.
    like: as in `checkpoint.restore`.

  Returns:
    Its step and its state; None and None where the run has none.

  Raises:
    InputError: it does not fit `like`, or is whole and cannot be read.
    OSError: its files cannot be reached.
  """
  while True:
    step = hosts.in_turn(lambda: _newest(workdir))
    hosts.agree('the last checkpoint', str(step))
    if step is None:
      return None, None
    try:
      with hosts.together():
        state = checkpoint.restore(workdir, like, step)
    except checkpoint.Damaged as error:
      _set_aside(workdir, step, error.found)
      continue
    folder = checkpoint.folder_of(workdir, step)
    if hosts.leads() and not digests.written(folder):  # the process was killed before it could
      digests.write(folder)
    return step, state


def _newest(workdir: epath.PathLike) -> int | None:
  """The last step whose checkpoint is not known to be damaged, after setting aside those that are."""
  for step in reversed(checkpoint.steps(workdir)):
    found = digests.damage(checkpoint.folder_of(workdir, step)) if hosts.leads() else ''
    if not found:
      return step
    _set_aside(workdir, step, found)
  return None


def _set_aside(workdir: epath.PathLike, step: int, why: str) -> None:
  """Renames a checkpoint to `STEP.damaged`, which nobody reads, in place of an earlier one of that name."""
  folder = checkpoint.folder_of(workdir, step)
  aside = folder.with_name(f'{step}.damaged')
  if aside.exists():
    aside.rmtree()
  folder.rename(aside)
  left = '' if checkpoint.steps(workdir) else ', and no other is left: training begins from the start'
  progress.say(f'the checkpoint of update {step:,} in {workdir} is damaged: {why}; it is set aside as {aside.name}'
               f'{left}')
