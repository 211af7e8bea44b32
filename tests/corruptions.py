"""Ways in which an input can be bad: what a disk, an editor or an enemy leaves of a good one.

Everything is seeded.
"""

import functools
import gzip
import json
import lzma
import pathlib
import random
from collections.abc import Callable

import zstandard

WAYS = (
  'missing',
  'empty',
  'swapped',
  'other type',
  'truncated',
  'flipped',
  'UTF-16',
  'Latin-1',
  'huge',
  'hostile',
)
PACK: dict[str, Callable[[bytes], bytes]] = {
  '': bytes,
  '.gz': functools.partial(gzip.compress, mtime=0),
  '.xz': lzma.compress,
  '.zst': zstandard.ZstdCompressor().compress,
}
UNPACK: dict[str, Callable[[bytes], bytes]] = {
  '': bytes,
  '.gz': gzip.decompress,
  '.xz': lzma.decompress,
  '.zst': zstandard.ZstdDecompressor().decompress,
}
HUGE = 1 << 29  # bytes, of which a reader may hold less than half
OTHERS = (
  b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR' + bytes(range(64)),
  b'PAR1' + bytes(60),
  b'PK\x03\x04' + bytes(60),
  b'\x7fELF' + bytes(60),
  gzip.compress(b'text\n' * 9, mtime=0),
  b'%PDF-1.7\n%\xe2\xe3\xcf\xd3\n',
)
# What JSON may hold that no JSON of ours does.
VALUES = (
  '-1',
  '1e999',
  'NaN',
  '1000000000000000000',
  '1' + '0' * 4000,
  '9' * 5000,
  '""',
  '"%s%n{0.__class__}"',
  '"../../x"',
  '"\\ud800"',
  '"a\\u0000b"',
  'null',
  '[]',
  '{}',
  'true',
  '"3"',
  '[' * 5000,
  '{"a":' * 5000,
  '"' + 'x' * 9999 + '"',
)


def truncated(good: bytes) -> list[bytes]:
  """Its beginnings."""
  return [
    good[:n]
    for n in sorted({1, len(good) // 3, 2 * len(good) // 3, len(good) - 1})
    if 0 < n < len(good)
  ]


def flipped(good: bytes, times: int = 4, seed: int = 0) -> list[bytes]:
  """Copies in each of which some bits, all in one place, are others."""
  dice, found = random.Random(seed), []
  for number in range(times):
    data = bytearray(good)
    place = dice.randrange(len(data)) if number else 0
    for i in range(place, min(place + 1 + number % 3, len(data))):
      data[i] ^= 1 << dice.randrange(8)
    found.append(bytes(data))
  return found


def values(good: bytes) -> list[bytes]:
  """JSON whose fields are, one after another, something else, or not there; of several lines the
  first is changed.
  """
  first, mark, rest = (
    good.partition(b'\n')
    if good.count(b'\n') > 1 and not good.startswith(b'{\n')
    else (good, b'', b'')
  )
  tree, found = json.loads(first), []
  places = list(_places(tree))
  for number, value in enumerate(VALUES):  # each somewhere, and each place something
    found.append(_changed(tree, places[number * 7 % len(places)], value))
  for number, place in enumerate(places):
    found.append(_changed(tree, place, VALUES[number % 15]))
  found += [_changed(tree, place, None) for place in places]
  return [one + mark + rest for one in (*found, *(value.encode() for value in VALUES))]


def _places(tree: object, above: tuple = ()):
  for key in (
    tree if isinstance(tree, dict) else range(min(len(tree), 2)) if isinstance(tree, list) else ()
  ):
    yield (*above, key)
    yield from _places(tree[key], (*above, key))


def _changed(tree: object, place: tuple, value: str | None) -> bytes:
  """The JSON of a tree in which one place has another value, given as its text, or is gone."""
  tree = json.loads(json.dumps(tree))
  inner = functools.reduce(lambda found, key: found[key], place[:-1], tree)
  if value is None:
    del inner[place[-1]]
    return json.dumps(tree).encode()
  inner[place[-1]] = '@here@'
  return json.dumps(tree).replace('"@here@"', value, 1).encode()


@functools.cache
def zeros(packing: str, size: int) -> bytes:
  """So many NUL bytes, packed: several streams, which is as good as one and made in no time."""
  part = 1 << 22
  return PACK[packing](bytes(part)) * (size // part)


def sparse(path: pathlib.Path, head: bytes = b'') -> None:
  """A file of `HUGE` bytes that takes no room on the disk: a head, and NUL."""
  with path.open('wb') as file:
    file.write(head)
    file.truncate(HUGE)
