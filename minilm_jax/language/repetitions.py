"""Which items were kept before: of equal ones the first in the order of the text stays.

Items are known by digests of 8 bytes. Where one process reads all text, `Seen` remembers what it has met. Where many
read parts of it, each hands on `buckets`, digests with the numbers of their items; those of one bucket meet, and
`repeated` tells each part which of its items came before. What meets at once is a 256th of 24 bytes an item.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Bool, UInt64

_BUCKETS = 256
_BITS = np.uint64(56)  # below those that name the bucket


class Seen:
  """Digests met so far, in sorted runs that merge when they are of like size: 8 bytes an item, 16 during a merge."""

  def __init__(self) -> None:
    self._runs: list[UInt64[np.ndarray, 'n']] = []

  def fresh(self, digests: UInt64[np.ndarray, 'n']) -> Bool[np.ndarray, 'n']:
    """Which were never met, the first of several equal ones among them; all are met from now on."""
    new = np.zeros(len(digests), bool)
    new[np.unique(digests, return_index=True)[1]] = True
    for run in self._runs:
      new &= run[np.searchsorted(run, digests).clip(max=len(run) - 1)] != digests
    if new.any():
      self._runs.append(np.sort(digests[new]))
    while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
      self._runs.append(np.sort(np.concatenate([self._runs.pop(), self._runs.pop()])))
    return new


def buckets(first: int, digests: UInt64[np.ndarray, 'n']) -> Iterator[tuple[int, bytes, bytes]]:
  """Bucket, numbers and digests of some items of a part, whose numbers count on from `first`; arrays of `<u8`."""
  order = np.argsort(digests >> _BITS, kind='stable')
  bounds = np.searchsorted((digests >> _BITS)[order], np.arange(_BUCKETS + 1, dtype=np.uint64))
  for bucket in np.flatnonzero(np.diff(bounds)).tolist():
    of = order[bounds[bucket]:bounds[bucket + 1]]
    yield bucket, (first + of).astype('<u8').tobytes(), digests[of].astype('<u8').tobytes()


def repeated(met: Iterable[tuple[int, bytes, bytes]]) -> Iterator[tuple[int, bytes]]:
  """Of parts, numbers and digests that meet in a bucket: the parts that repeat, and the numbers of what comes again."""
  parts, numbers, digests = zip(*met, strict=True)
  parts = np.repeat(np.array(parts), [len(some) // 8 for some in numbers])
  numbers, digests = (np.frombuffer(b''.join(some), '<u8') for some in (numbers, digests))
  order = np.lexsort((numbers, parts, digests))
  again = order[1:][digests[order[1:]] == digests[order[:-1]]]
  again = again[np.lexsort((numbers[again], parts[again]))]
  found, starts = np.unique(parts[again], return_index=True)
  for part, some in zip(found.tolist(), np.split(numbers[again], starts[1:]), strict=False):
    yield part, some.tobytes()
