"""Sends the log of a run to TensorBoard, W&B or standard output, besides metrics.jsonl.

Sinks never stop training: a failing sink is reported once on standard error, and disabled. With
several processes, the first process writes.

TensorBoard reads event files in RUN/events, or in RUN/events/member-3 for each member of a
population:

    tensorboard --logdir=RUN/events

Each start of a run writes the event files again from the lines of metrics.jsonl, and then appends.
So a resumed run has no step twice and recovers lines that a full disk lost. The files also include
lines from before the sink was enabled. tensorboardX supplies the messages and the checksum, but not
its `SummaryWriter`: a full disk ends the thread of a SummaryWriter, and its queue then blocks
training forever. A SummaryWriter cannot append or write to gs:// paths either.

W&B has one run for each run directory, which every start resumes. RUN/wandb.json stores the id of
the W&B run, and RUN/wandb its files. Without a login or a network, W&B writes only these files, and
`wandb sync` sends them later. This module never reads, prints or stores an API key; the library
takes the key from `wandb login` or WANDB_API_KEY.
"""

import contextlib
import math
import os
import struct
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from minilm_jax.core import distributed, files, paths, progress, recipe
from minilm_jax.core.config import LogConfig, RunConfig
from minilm_jax.core.errors import TEXT, InputError, require_library, sanitize

EVENTS_FOLDER = 'events'
WANDB_FILE = 'wandb.json'
WANDB_TIMEOUT_SECONDS = 30.0
_CURVE_SPLITS = ('train', 'validation')  # the test split has a single number, in result.json
# TensorBoard recognizes event files by this name and version.
_EVENTS_NAME, _EVENTS_VERSION = 'events.out.tfevents', 'brain.Event:2'
_EVENTS_SUFFIX = 'minilm'  # files with another suffix are not deleted
_WANDB_MODE = 'WANDB_MODE'  # an environment variable
_MODES_WITHOUT_NETWORK = ('offline', 'disabled')  # values of WANDB_MODE
_LINE_KEYS = ('step', 'split', 'member')  # keys of a line that are not metrics
_NOT_CURVES = (*_LINE_KEYS, 'tokens', 'flops', 'seconds')  # the last three grow with the step

Lines = Sequence[dict[str, Any]]
Send = Callable[[Lines], None]


class WandbUnavailable(Exception):
  """W&B cannot be used."""


def check_sinks(config: LogConfig) -> None:
  """Checks that the libraries of the sinks are installed.

  Raises:
    InputError: The library of W&B is not installed.
  """
  if 'wandb' in config.sinks:
    require_library('wandb', 'wandb', '--config.log.sinks=wandb')


@contextlib.contextmanager
def open_sinks(config: RunConfig, workdir: epath.Path, lines: Lines) -> Iterator[Send]:
  """Yields `send(lines)`, which sends new lines of the log to all sinks."""
  sinks: dict[str, Send] = {}

  def send(new: Lines) -> None:
    for name, sink in list(sinks.items()):
      with _disable_on_failure(name, sinks):
        sink(new)

  with contextlib.ExitStack() as stack:
    for name in config.log.sinks if distributed.is_primary() else ():
      with _disable_on_failure(name, sinks):
        sinks[name] = stack.enter_context(_SINKS[name](config, workdir, lines))
    yield send


@contextlib.contextmanager
def _disable_on_failure(name: str, sinks: dict[str, Send]) -> Iterator[None]:
  try:
    yield
  except (OSError, ImportError, InputError, WandbUnavailable) as error:
    sinks.pop(name, None)
    progress.log(f'the log sink {name} is disabled, and training continues: {sanitize(f"{error}")}')


@contextlib.contextmanager
def _open_json(config: RunConfig, workdir: epath.Path, lines: Lines) -> Iterator[Send]:
  yield lambda new: print(''.join(map(files.format_json_line, new)), end='', flush=True)


@contextlib.contextmanager
def _open_tensorboard(config: RunConfig, workdir: epath.Path, lines: Lines) -> Iterator[Send]:
  yield EventFiles(workdir, config.population.members, lines).append


class EventFiles:
  """Writes event files from the lines of earlier starts, and appends new lines.

  Raises:
    ImportError: tensorboardX is not installed.
    OSError: A file could not be written.
  """

  def __init__(self, workdir: epath.Path, members: int, lines: Lines):
    names = [f'member-{member}' for member in range(members)] if members > 1 else ['']
    # Pauses between starts do not count.
    self._began = time.time() - (lines[-1]['seconds'] if lines else 0)
    # The version of the file, and a session start that voids old events.
    header = _encode_event(wall_time=self._began, file_version=_EVENTS_VERSION) + _encode_event(
      wall_time=self._began, step=0, session_log={'status': 'START'}
    )
    self._files: list[epath.Path] = []
    for member, name in enumerate(names):
      member_lines = [line for line in lines if line.get('member', member) == member]
      folder = workdir / EVENTS_FOLDER / name if name else workdir / EVENTS_FOLDER
      self._files.append(_begin_file(folder, header + self._encode(member_lines)))

  def append(self, lines: Lines) -> None:
    """Appends lines of the log, each to the event file of a member.

    Raises:
      OSError: A file could not be written.
    """
    for line in lines:
      files.append_bytes(self._files[line.get('member', 0)], self._encode([line]))

  def _encode(self, lines: Lines) -> bytes:
    """Returns the finite scalars of each line as records, with tags such as `train/loss`."""
    return b''.join(
      _encode_event(
        wall_time=self._began + line['seconds'],
        step=line['step'],
        summary={
          'value': [
            {'tag': f'{line["split"]}/{name}', 'simple_value': value}
            for name, value in line.items()
            if name not in _NOT_CURVES and value is not None and math.isfinite(value)
          ]
        },
      )
      for line in lines
      if line['split'] in _CURVE_SPLITS
    )


def _begin_file(folder: epath.Path, data: bytes) -> epath.Path:
  """Writes a new event file, empties the previous file and deletes older files.

  The number in the name increases with each start. The previous file stays, empty, because an open
  TensorBoard moves on to the next file only while the current file exists.
  """
  folder.mkdir(parents=True, exist_ok=True)
  earlier = paths.list_matches(folder, f'{_EVENTS_NAME}.*.{_EVENTS_SUFFIX}')
  numbers = [
    int(path.name.split('.')[3]) for path in earlier if path.name.split('.')[3].isdecimal()
  ]
  # Numbers have equal length, because TensorBoard reads files in the order of their names.
  path = folder / f'{_EVENTS_NAME}.{max(numbers, default=0) + 1:010d}.{_EVENTS_SUFFIX}'
  files.write_bytes(path, data)
  for last in earlier[-1:]:
    last.write_bytes(b'')
  for file in earlier[:-1]:
    file.unlink(missing_ok=True)
  return path


def _encode_event(**fields: Any) -> bytes:
  """Returns an event as a TFRecord: length and bytes, each with a masked CRC-32C."""
  from tensorboardX import record_writer
  from tensorboardX.proto import event_pb2

  # protobuf creates the message classes at run time.
  event = event_pb2.Event(**fields)  # pyright: ignore[reportAttributeAccessIssue]
  data = event.SerializeToString()
  length = struct.pack('<Q', len(data))
  checksums = [struct.pack('<I', record_writer.masked_crc32c(part)) for part in (length, data)]
  return length + checksums[0] + data + checksums[1]


@contextlib.contextmanager
def _open_wandb(config: RunConfig, workdir: epath.Path, lines: Lines) -> Iterator[Send]:
  """Yields `send(lines)`; W&B already has the `lines` of earlier starts.

  A run that was killed repeats some lines. W&B ignores lines up to its last step.

  Raises:
    WandbUnavailable: W&B cannot be used, online or offline.
  """
  import wandb

  wandb_run = _begin_wandb_run(wandb, config, workdir)
  try:
    yield lambda new: _send_to_wandb(wandb, wandb_run, new)
  finally:
    try:
      wandb_run.finish()
    except (wandb.Error, TimeoutError) as error:
      progress.log(f'W&B may lack the last lines: {sanitize(str(error))}')


def _begin_wandb_run(wandb: Any, config: RunConfig, workdir: epath.Path) -> Any:
  """Returns a W&B run, which is online if W&B can be reached, and otherwise in files."""
  is_local = '://' not in str(workdir)  # the library writes to this machine only
  folder = str(workdir) if is_local else tempfile.mkdtemp(prefix='minilm-wandb-')
  settings = wandb.Settings(
    console='off',
    silent=True,
    disable_git=True,
    init_timeout=WANDB_TIMEOUT_SECONDS,
    finish_timeout=WANDB_TIMEOUT_SECONDS,
    finish_timeout_raises=True,
  )
  arguments = {
    'project': config.log.project,
    'name': config.log.name or workdir.resolve().name,
    'id': _read_wandb_id(workdir),
    'config': recipe.as_dict(config),
    'dir': folder,
    'resume': 'allow',
    'save_code': False,
    'settings': settings,
  }
  mode = os.environ.get(_WANDB_MODE, '')
  reason = f'{_WANDB_MODE}={mode}'
  try:
    if mode not in _MODES_WITHOUT_NETWORK:
      if wandb.login(prompt=False, verify=False):
        wandb_run = wandb.init(**arguments)
        progress.log(f'W&B: {sanitize(str(wandb_run.url))}')
        return wandb_run
      mode, reason = 'offline', 'no login (wandb login, or WANDB_API_KEY)'
  except wandb.Error as error:
    mode, reason = 'offline', sanitize(str(error).partition('\n')[0])
    wandb.teardown()  # frees the id of the run that could not start
  try:
    wandb_run = wandb.init(**arguments, mode=mode)
  except wandb.Error as error:
    raise WandbUnavailable(str(error)) from error
  hint = (
    f'; to send the lines: wandb sync {folder}/wandb/offline-run-*' if mode == 'offline' else ''
  )
  progress.log(f'W&B is {mode}: {reason}{hint}')
  return wandb_run


def _read_wandb_id(workdir: epath.Path) -> str:
  """Returns the id of the W&B run from RUN/wandb.json, which the first start writes."""
  path = workdir / WANDB_FILE
  if path.exists():
    return files.read_object(path, f'the W&B run of {workdir}', {'id': TEXT})['id']
  wandb_id = uuid.uuid4().hex
  files.write_json(path, {'id': wandb_id})
  return wandb_id


def _send_to_wandb(wandb: Any, wandb_run: Any, lines: Lines) -> None:
  try:
    for line in lines:
      prefix = f'member-{line["member"]}/' if 'member' in line else ''
      values = {
        f'{prefix}{line["split"]}/{name}': value
        for name, value in line.items()
        if name not in _LINE_KEYS
      }
      wandb_run.log(values, step=line['step'])
  except wandb.Error as error:
    raise WandbUnavailable(str(error)) from error


_SINKS = {'tensorboard': _open_tensorboard, 'wandb': _open_wandb, 'json': _open_json}
