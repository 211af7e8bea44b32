"""Records a JAX profile of some updates of a run: RUN/profile, for XProf, TensorBoard or Perfetto.

    minilm pretrain ... --profile=100:110
    pip install xprof; xprof --logdir=RUN/profile
    pip install tensorboard xprof; tensorboard --logdir=RUN/profile    (the tab Profile)

https://ui.perfetto.dev opens RUN/profile/**/perfetto_trace.json.gz without an installation. One
dispatch runs a chunk of updates, so complete chunks are recorded. With several processes, the first
process records its devices.
"""

import contextlib
import re
import time
from collections.abc import Iterator

import jax
from etils import epath

from minilm_jax.core import distributed, progress
from minilm_jax.core.errors import InputError, sanitize

FOLDER = 'profile'
_SPAN = re.compile('([0-9]{1,10}):([0-9]{1,10})', re.ASCII)


def parse_span(span: str, updates: int, workdir: epath.PathLike) -> tuple[int, int]:
  """Returns the numbers of --profile: (100, 110) for '100:110', (0, 0) for ''.

  Raises:
    InputError: `span` is not a pair of increasing numbers up to `updates`, or the work directory is
      not on this machine.
  """
  if not span:
    return 0, 0
  match = _SPAN.fullmatch(span)
  if not match:
    raise InputError(
      f'--profile={span}',
      'not two numbers of updates with a colon in between',
      'give two numbers, as in --profile=100:110',
    )
  first, last = int(match[1]), int(match[2])
  if first >= last or last > updates:
    fault = 'no updates in between' if first >= last else f'the run ends at update {updates:,}'
    raise InputError(
      f'--profile={span}', fault, f'give two numbers from 0 to {updates}, the smaller first'
    )
  if '://' in str(workdir):
    raise InputError(
      f'--profile={span}',
      f'{workdir} is not on this machine, and JAX writes profiles to files',
      'give a local --workdir',
    )
  return first, last


@contextlib.contextmanager
def open_recorder(span: str, updates: int, workdir: epath.PathLike) -> Iterator['Recorder']:
  """Yields the recorder of the updates of --profile."""
  recorder = Recorder(epath.Path(workdir), *parse_span(span, updates, workdir))
  with contextlib.closing(recorder):
    yield recorder


class Recorder:
  """Records the chunks with the updates `first + 1 ... last`.

  A failure to write the profile is reported once and does not stop training.
  """

  def __init__(self, workdir: epath.Path, first: int, last: int):
    self._folder, self._first, self._last = workdir / FOLDER, first, last
    self._from, self._to = -1, -1  # number of updates at the start and end of the recording

  @contextlib.contextmanager
  def record(self, first: int, last: int) -> Iterator[None]:
    """Records the block, which runs the updates `first + 1 ... last`, if the recording needs it."""
    self._begin(first, last)
    yield
    if self._from >= 0:
      self._to = last
      if last >= self._last:
        self.close()

  def _begin(self, step: int, end: int) -> None:
    """Begins to record if the updates from `step` to `end` contain the first update to record."""
    if self._from >= 0 or end <= self._first or not distributed.is_primary():
      return
    if step >= self._last:
      if self._last:
        progress.log(f'no profile: an earlier start ran the updates until {self._last:,}')
      self._last = 0
      return
    options = jax.profiler.ProfileOptions()
    # Python events would fill the file, and Python does little between chunks.
    options.python_tracer_level = 0
    try:
      jax.profiler.start_trace(
        str(self._folder), create_perfetto_trace=True, profiler_options=options
      )
    except (OSError, RuntimeError) as error:
      self._report_failure(error)
      return
    self._from = self._to = step

  def close(self) -> None:
    """Ends the recording and logs its updates; does nothing without a recording."""
    if self._from < 0:
      return
    started = time.monotonic()
    first, self._from, self._last = self._from, -1, 0
    try:
      jax.profiler.stop_trace()
    except (OSError, RuntimeError) as error:
      self._report_failure(error)
      return
    progress.log(
      f'a profile of updates {first + 1:,} to {self._to:,} was written in '
      f'{time.monotonic() - started:.1f} s; to view the profile: '
      f'pip install xprof; xprof --logdir={self._folder}'
    )

  def _report_failure(self, error: Exception) -> None:
    self._last = 0
    progress.log(f'no profile, and training continues: {sanitize(str(error))}')
