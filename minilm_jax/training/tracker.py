"""The log of a run in W&B: one W&B run for each run directory, which every start of it goes on with.

Its id is kept in RUN/wandb.json, and its own files in RUN/wandb. Without a login or a network it writes those files
alone, for `wandb sync` to send later. Nobody is asked for a key, and none is read, shown or kept here: the library
itself finds that of `wandb login` or of WANDB_API_KEY.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from minilm_jax import progress, recipe, run
from minilm_jax.config import RunConfig
from minilm_jax.errors import InputError, shown
from minilm_jax.shape import TEXT

FILE = 'wandb.json'
_PATIENCE = 30.0  # seconds for W&B to answer
_MODE, _APART = 'WANDB_MODE', ('offline', 'disabled')  # where W&B reads its mode, and those without a network
_OURS = ('step', 'split', 'member')  # fields that say which number a line holds, and none to draw


class Lost(Exception):
  """W&B takes no more lines."""


def library() -> Any:
  """The library of W&B.

  Raises:
    InputError: it is not installed.
  """
  try:
    import wandb
  except ImportError:
    raise InputError('--config.log.to=wandb', 'the library wandb is not installed',
                     "pip install 'minilm_jax[wandb]', or leave wandb out of log.to") from None
  return wandb


@contextlib.contextmanager
def opened(config: RunConfig, workdir: epath.Path, lines: Any) -> Iterator[Callable[[Sequence[dict[str, Any]]], None]]:
  """Yields `send(lines)`; `lines` of an earlier start are in W&B already, for that one sent them.

  Lines up to the step that W&B has seen, which a run that was killed makes once more, are left out by W&B itself: they
  are the same again.

  Raises:
    Lost: W&B cannot be used, even without a network.
  """
  wandb = library()
  tracked = _begin(wandb, config, workdir)
  try:
    yield lambda new: _send(wandb, tracked, new)
  finally:
    try:
      tracked.finish()
    except (wandb.Error, TimeoutError) as error:
      progress.say(f'W&B may lack the last lines: {shown(str(error))}')


def _begin(wandb: Any, config: RunConfig, workdir: epath.Path) -> Any:
  """The W&B run: where W&B can be reached one that can be watched, else one in files."""
  local = '://' not in str(workdir)  # the library writes to this machine only
  folder = str(workdir) if local else tempfile.mkdtemp(prefix='minilm-wandb-')
  what = {'project': config.log.project, 'name': config.log.name or workdir.resolve().name, 'id': _identity(workdir),
          'config': recipe.as_dict(config), 'dir': folder, 'resume': 'allow', 'save_code': False,
          'settings': wandb.Settings(console='off', silent=True, disable_git=True, init_timeout=_PATIENCE,
                                      finish_timeout=_PATIENCE, finish_timeout_raises=True)}
  mode, why = os.environ.get(_MODE, ''), f'{_MODE} says so'
  try:
    if mode not in _APART:
      if wandb.login(prompt=False, verify=False):
        tracked = wandb.init(**what)
        progress.say(f'W&B: {shown(str(tracked.url))}')
        return tracked
      mode, why = 'offline', 'nobody is logged in there (wandb login, or WANDB_API_KEY)'
  except wandb.Error as error:
    mode, why = 'offline', shown(str(error).partition('\n')[0])
    wandb.teardown()  # it holds the id of the run that could not begin
  try:
    tracked = wandb.init(**what, mode=mode)
  except wandb.Error as error:
    raise Lost(str(error)) from error
  kept = f', lines are kept for `wandb sync {folder}/wandb/offline-run-*`' if mode == 'offline' else ''
  progress.say(f'W&B is {mode}{kept}: {why}')
  return tracked


def _identity(workdir: epath.Path) -> str:
  """The id of the W&B run, which the first start of the run chose."""
  path = workdir / FILE
  if path.exists():
    return run.read_object(path, f'the W&B run of {workdir}', {'id': TEXT})['id']
  chosen = uuid.uuid4().hex
  run.write_json(path, {'id': chosen})
  return chosen


def _send(wandb: Any, tracked: Any, lines: Sequence[dict[str, Any]]) -> None:
  try:
    for line in lines:
      whose = f'member-{line["member"]}/' if 'member' in line else ''
      values = {f'{whose}{line["split"]}/{name}': value for name, value in line.items() if name not in _OURS}
      tracked.log(values, step=line['step'])
  except wandb.Error as error:
    raise Lost(str(error)) from error
