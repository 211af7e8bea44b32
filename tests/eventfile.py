"""`scalars`: what the TensorBoard events of a run say, each record with its checksums checked."""

import pathlib
import struct


def events(file: pathlib.Path) -> list:
  """The events of one file, in order."""
  from tensorboardX.proto import event_pb2
  from tensorboardX.record_writer import masked_crc32c

  data, found = file.read_bytes(), []
  while data:
    length, check = struct.unpack('<QI', data[:12])
    body, rest = data[12 : 12 + length], data[12 + length :]
    assert check == masked_crc32c(data[:8]) and struct.unpack('<I', rest[:4])[0] == masked_crc32c(
      body
    )
    found.append(event_pb2.Event.FromString(body))
    data = rest[4:]
  return found


def scalars(folder: pathlib.Path) -> list[tuple[str, int, str, float]]:
  """(member folder, step, tag, value) of a run in the order of its files, without times; none where
  there is no file.

  No step may be there twice, and one file holds all: a start takes the place of the one before, and
  empties its file.
  """
  found = []
  for file in sorted((folder / 'events').rglob('*tfevents*')):
    assert sum(one.stat().st_size > 0 for one in file.parent.glob('*tfevents*')) == 1
    whose = file.parent.name
    for event in events(file):
      found += [
        (whose, event.step, value.tag, value.simple_value)
        for value in event.summary.value
        if not value.tag.endswith('tokens_per_second')
      ]
  places = [one[:3] for one in found]
  assert len(set(places)) == len(places)
  return found
