"""The log of a run for TensorBoard: event files in RUN/events, or in RUN/events/member-3 for each of a population.

    tensorboard --logdir=RUN/events

They say what the curves of metrics.jsonl say and nothing else. Each start makes them anew from the lines that it keeps,
and then appends to them; so no step is there twice after a run was stopped, what a full disk took comes back, and a run
that was made without them gets its past too.

The messages and their checksum are tensorboardX's. Its `SummaryWriter` is left alone: it writes in a thread that a full
disk ends, and then the queue before it holds the training up for ever; nor could it append, or write what gs:// names.
"""

import math
import struct
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

from minilm_jax import run

FOLDER = 'events'
_SCALARS = ('loss', 'perplexity', 'learning_rate', 'tokens_per_second', 'gradient_norm', 'parameter_norm')
_SPLITS = ('train', 'validation')  # of the test split there is one number, in result.json, and no curve
_NAME, _VERSION = 'events.out.tfevents', 'brain.Event:2'  # what TensorBoard knows an event file by, and its form
_OURS = 'minilm'  # ends the names of our files: those of others in the folder stay


class Events:
  """The event files of one start of a run: made from the lines before it, then appended to.

  Raises:
    ImportError: tensorboardX is not installed.
    OSError: a file could not be written.
  """

  def __init__(self, workdir: epath.Path, members: int, lines: Sequence[dict[str, Any]]):
    names = [f'member-{number}' for number in range(members)] if members > 1 else ['']
    self._files: list[epath.Path] = []
    self._began = time.time() - (lines[-1]['seconds'] if lines else 0)  # as if the run had never stood still
    for number, name in enumerate(names):
      folder = workdir / FOLDER / name if name else workdir / FOLDER
      own = [line for line in lines if 'member' not in line or line['member'] == number]
      self._files.append(_made(folder, _head(self._began) + self._told(own)))

  def append(self, lines: Sequence[dict[str, Any]]) -> None:
    """Adds lines of the log, each to the file of its member.

    Raises:
      OSError: a file could not be written.
    """
    for line in lines:
      with self._files[line['member'] if 'member' in line else 0].open('ab') as file:
        file.write(self._told([line]))

  def _told(self, lines: Sequence[dict[str, Any]]) -> bytes:
    """The scalars of each line, as `train/loss`; those that are no finite number are left out."""
    from tensorboardX.proto import event_pb2, summary_pb2
    records = []
    for line in lines:
      if line['split'] not in _SPLITS:
        continue
      values = [summary_pb2.Summary.Value(tag=f'{line["split"]}/{name}', simple_value=line[name]) for name in _SCALARS
                if name in line and line[name] is not None and math.isfinite(line[name])]
      records.append(_record(event_pb2.Event(wall_time=self._began + line['seconds'], step=line['step'],
                                             summary=summary_pb2.Summary(value=values))))
    return b''.join(records)


def _made(folder: epath.Path, data: bytes) -> epath.Path:
  """Writes the event file of a start, the only one of the folder with anything in it from then on.

  It has a name of its own, after that of the start before, whose file stays and is empty: a viewer that is open reads
  on in the file that it has come to, and would wait for ever for one that was replaced or deleted.
  """
  folder.mkdir(parents=True, exist_ok=True)
  before = sorted(folder.glob(f'{_NAME}.*.{_OURS}'))
  starts = [int(path.name.split('.')[3]) for path in before if path.name.split('.')[3].isdecimal()]
  # numbers of one length: files are read in the order of their names
  path = folder / f'{_NAME}.{max(starts, default=0) + 1:010d}.{_OURS}'
  run.write_bytes(path, data)
  for old in before[-1:]:
    old.write_bytes(b'')
  for old in before[:-1]:
    old.unlink(missing_ok=True)
  return path


def _head(began: float) -> bytes:
  """What a file begins with: its form, and that whatever was seen of the run before is void."""
  from tensorboardX.proto import event_pb2
  start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
  return (_record(event_pb2.Event(wall_time=began, file_version=_VERSION)) +
          _record(event_pb2.Event(wall_time=began, step=0, session_log=start)))


def _record(event: Any) -> bytes:
  """A message as TFRecord frames it: its length and its bytes, each with a masked CRC-32C."""
  from tensorboardX import record_writer
  data = event.SerializeToString()
  length = struct.pack('<Q', len(data))
  checks = [struct.pack('<I', record_writer.masked_crc32c(part)) for part in (length, data)]
  return length + checks[0] + data + checks[1]
