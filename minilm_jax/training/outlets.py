"""Where the lines of a run's log go beside metrics.jsonl: as `log.to` says, to TensorBoard, W&B or standard output.

None of them may end the training: one that fails is named once, on standard error, and left out from there on. Of
several processes the first writes.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from minilm_jax import hosts, progress, run
from minilm_jax.config import RunConfig
from minilm_jax.errors import shown
from minilm_jax.training import events, tracker

Lines = Sequence[dict[str, Any]]
Send = Callable[[Lines], None]


def check(config: RunConfig) -> None:
  """Checks that what `log.to` names is there.

  Raises:
    InputError: the library of W&B is not installed.
  """
  if 'wandb' in config.log.to:
    tracker.library()


@contextlib.contextmanager
def opened(config: RunConfig, workdir: epath.Path, lines: Lines) -> Iterator[Send]:
  """Yields `send(lines)`, which hands on the lines of one moment of the log.

  Args:
    config: the recipe.
    workdir: of the run.
    lines: those that the run goes on after.
  """
  outlets: dict[str, Send] = {}

  def send(new: Lines) -> None:
    for name, outlet in list(outlets.items()):
      with _harmless(name, outlets):
        outlet(new)

  with contextlib.ExitStack() as stack:
    for name in config.log.to if hosts.leads() else ():
      with _harmless(name, outlets):
        outlets[name] = stack.enter_context(_OUTLETS[name](config, workdir, lines))
    yield send


@contextlib.contextmanager
def _harmless(name: str, outlets: dict[str, Send]) -> Iterator[None]:
  """Leaves an outlet out where it fails."""
  try:
    yield
  except (OSError, ImportError, tracker.Lost) as error:
    outlets.pop(name, None)
    progress.say(f'lines of the log go to {name} no more, and training goes on: {shown(f"{error}")}')


@contextlib.contextmanager
def _tensorboard(config: RunConfig, workdir: epath.Path, lines: Lines) -> Iterator[Send]:
  yield events.Events(workdir, config.population.members, lines).append


@contextlib.contextmanager
def _json(config: RunConfig, workdir: epath.Path, lines: Lines) -> Iterator[Send]:
  yield lambda new: print(''.join(map(run.as_line, new)), end='', flush=True)


_OUTLETS = {'tensorboard': _tensorboard, 'wandb': tracker.opened, 'json': _json}
