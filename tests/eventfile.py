"""Reads the TensorBoard events of a run and checks the checksum of each record."""

import pathlib
import struct


def read_events(file: pathlib.Path) -> list:
  """Returns the events of a file in order."""
  from tensorboardX.proto import event_pb2
  from tensorboardX.record_writer import masked_crc32c

  data, events = file.read_bytes(), []
  while data:
    header, (length, header_checksum) = data[:8], struct.unpack('<QI', data[:12])
    body, (checksum,) = data[12 : 12 + length], struct.unpack_from('<I', data, 12 + length)
    assert header_checksum == masked_crc32c(header) and checksum == masked_crc32c(body)
    events.append(event_pb2.Event.FromString(body))
    data = data[16 + length :]
  return events


def read_scalars(run: pathlib.Path) -> list[tuple[str, int, str, float]]:
  """Returns (member folder, step, tag, value) of the scalars of a run in file order.

  Tokens per second are left out. A restart empties the previous file, so that only one file of a
  member has content. No step may be repeated.
  """
  scalars = []
  for file in sorted((run / 'events').rglob('*tfevents*')):
    assert sum(path.stat().st_size > 0 for path in file.parent.glob('*tfevents*')) == 1
    member = file.parent.name
    for event in read_events(file):
      scalars += [
        (member, event.step, value.tag, value.simple_value)
        for value in event.summary.value
        if not value.tag.endswith('tokens_per_second')
      ]
  steps = [scalar[:3] for scalar in scalars]
  assert len(set(steps)) == len(steps)
  return scalars
