"""Deterministic corruptions of a valid input, as disks, editors and attackers cause them."""

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
HUGE = 1 << 29  # bytes; readers must use less than half of that memory
OTHER_FORMATS = (
  b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR' + bytes(range(64)),
  b'PAR1' + bytes(60),
  b'PK\x03\x04' + bytes(60),
  b'\x7fELF' + bytes(60),
  gzip.compress(b'text\n' * 9, mtime=0),
  b'%PDF-1.7\n%\xe2\xe3\xcf\xd3\n',
)
# JSON values that no file of this package contains.
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


def truncate(content: bytes) -> list[bytes]:
  """Returns prefixes of the content."""
  return [
    content[:n]
    for n in sorted({1, len(content) // 3, 2 * len(content) // 3, len(content) - 1})
    if 0 < n < len(content)
  ]


def flip_bits(content: bytes, num_copies: int = 4, seed: int = 0) -> list[bytes]:
  """Returns copies with a few flipped bits in adjacent bytes."""
  generator, copies = random.Random(seed), []
  for number in range(num_copies):
    data = bytearray(content)
    start = generator.randrange(len(data)) if number else 0
    for i in range(start, min(start + 1 + number % 3, len(data))):
      data[i] ^= 1 << generator.randrange(8)
    copies.append(bytes(data))
  return copies


def replace_values(content: bytes) -> list[bytes]:
  """Returns JSON with each value in turn replaced or removed; changes the first of several lines."""
  first, line_feed, remainder = (
    content.partition(b'\n')
    if content.count(b'\n') > 1 and not content.startswith(b'{\n')
    else (content, b'', b'')
  )
  tree, contents = json.loads(first), []
  paths = list(_list_paths(tree))
  for number, value in enumerate(VALUES):  # each value once, then each path once
    contents.append(_replace_value(tree, paths[number * 7 % len(paths)], value))
  for number, path in enumerate(paths):
    contents.append(_replace_value(tree, path, VALUES[number % 15]))
  contents += [_replace_value(tree, path, None) for path in paths]
  contents += [value.encode() for value in VALUES]
  return [content + line_feed + remainder for content in contents]


def _list_paths(tree: object, parents: tuple = ()):
  for key in (
    tree if isinstance(tree, dict) else range(min(len(tree), 2)) if isinstance(tree, list) else ()
  ):
    yield (*parents, key)
    yield from _list_paths(tree[key], (*parents, key))


def _replace_value(tree: object, path: tuple, value: str | None) -> bytes:
  """Returns the JSON of a tree with the value at a path replaced by text, or removed (None)."""
  tree = json.loads(json.dumps(tree))
  inner = functools.reduce(lambda node, key: node[key], path[:-1], tree)
  if value is None:
    del inner[path[-1]]
    return json.dumps(tree).encode()
  inner[path[-1]] = '@value@'
  return json.dumps(tree).replace('"@value@"', value, 1).encode()


@functools.cache
def make_zeros(packing: str, size: int) -> bytes:
  """Returns compressed NUL bytes of a size, as several streams, which are fast to make."""
  part = 1 << 22
  return PACK[packing](bytes(part)) * (size // part)


def write_sparse_file(path: pathlib.Path, head: bytes = b'') -> None:
  """Writes a sparse file of `HUGE` bytes: a head, then NUL."""
  with path.open('wb') as file:
    file.write(head)
    file.truncate(HUGE)
