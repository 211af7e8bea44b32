"""A profile of some updates of a run, as JAX records it: RUN/profile, for XProf, TensorBoard or Perfetto.

    minilm pretrain ... --profile=100:110
    pip install xprof; xprof --logdir=RUN/profile
    pip install tensorboard xprof; tensorboard --logdir=RUN/profile    (the tab Profile)

perfetto_trace.json.gz in it needs neither: https://ui.perfetto.dev opens it. An update is part of a chunk, which one
dispatch runs, so whole chunks are recorded. Of several processes the first records what its own devices do.
"""

import re
import time

import jax
from etils import epath

from minilm_jax import hosts, progress
from minilm_jax.errors import InputError, shown

FOLDER = 'profile'
_SPAN = re.compile('([0-9]{1,10}):([0-9]{1,10})', re.ASCII)


def span(given: str, updates: int, workdir: epath.PathLike) -> tuple[int, int]:
  """What --profile names: '100:110' is after update 100 up to update 110; nothing, (0, 0).

  Raises:
    InputError: it is no such pair, it ends after the run does, or the work directory is not on this machine.
  """
  if not given:
    return 0, 0
  found = _SPAN.fullmatch(given)
  if not found:
    raise InputError(f'--profile={given}', 'not two numbers of updates with a colon between',
                     'give some, as in --profile=100:110')
  first, last = int(found[1]), int(found[2])
  if first >= last or last > updates:
    why = 'nothing between them' if first >= last else f'the run ends at update {updates:,}'
    raise InputError(f'--profile={given}', why, f'give two numbers from 0 to {updates}, the smaller first')
  if '://' in str(workdir):
    raise InputError(f'--profile={given}', f'{workdir} is not on this machine, and JAX writes profiles to files',
                     'give a local --workdir for the run that is profiled')
  return first, last


class Recorder:
  """Records the chunks that hold the updates `first + 1 ... last`; where nothing is wanted, or it fails, nothing.

  A profile that cannot be written does not end the training: that is said, once.
  """

  def __init__(self, workdir: epath.Path, first: int, last: int):
    self._folder, self._first, self._last = workdir / FOLDER, first, last
    self._from, self._reached = -1, -1  # updates done before the recording, and since

  def before(self, done: int, count: int) -> None:
    """Begins, if the next `count` updates, after `done`, are the first wanted ones."""
    if self._from >= 0 or done + count <= self._first or not hosts.leads():
      return
    if done >= self._last:
      if self._last:
        progress.say(f'no profile: the updates up to {self._last:,} were run by an earlier start')
      self._last = 0
      return
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # what Python does between chunks is hardly anything, and would fill the file
    try:
      jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True, profiler_options=options)
    except (OSError, RuntimeError) as error:
      self._fails(error)
      return
    self._from = self._reached = done

  def after(self, done: int) -> None:
    """Ends, if all that is wanted has been recorded."""
    if self._from >= 0:
      self._reached = done
      if done >= self._last:
        self.close()

  def close(self) -> None:
    """Ends, and says which updates were recorded and how to see them; does nothing where none are being recorded."""
    if self._from < 0:
      return
    before = time.monotonic()
    first, self._from, self._last = self._from, -1, 0
    try:
      jax.profiler.stop_trace()
    except (OSError, RuntimeError) as error:
      self._fails(error)
      return
    progress.say(f'a profile of updates {first + 1:,} to {self._reached:,} was written in '
                 f'{time.monotonic() - before:.1f} s; see it with: pip install xprof; xprof --logdir={self._folder}')

  def _fails(self, error: Exception) -> None:
    self._last = 0
    progress.say(f'no profile, and training goes on: {shown(str(error))}')
