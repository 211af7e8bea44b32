"""What others made, taken with care: a file is read at once only up to a size, and a folder names only what is in it.

Text and tables stream (`language/files.py`), bounded by line and by row; here is what must be in memory whole.
"""

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from etils import epath

from minilm_jax.errors import InputError

# Bytes of a file that is read at once. Well above the largest that is known to be of use, the 57 MB of FewRel's
# training file; and what JSON of this size can become in Python, some twenty times as much, is what a machine may have.
LARGEST = 96 << 20
# Bytes of the items of a file that are kept one by one, rows of a task or words of a list: text grows little in Python.
KEPT = 40 * LARGEST
_ITEM = 64  # bytes that an item takes besides its text, at least

_T = TypeVar('_T')


def whole(stream: io.BufferedIOBase, what: str) -> bytes:
  """All bytes of a stream, which may be what a small file decompresses to.

  Args:
    stream: from where it is.
    what: it is, for an error.

  Raises:
    InputError: more than `LARGEST`.
  """
  found = stream.read(LARGEST + 1)
  if len(found) > LARGEST:
    raise InputError(what, f'more than {LARGEST:,} bytes, and it must be read at once',
                     'give a smaller file; this is larger than any that is known to be of use')
  return found


def kept(items: Iterable[_T], size: Callable[[_T], int], what: str) -> Iterator[_T]:
  """The items of a file of which all are kept.

  Args:
    items: as they are read.
    size: characters of one.
    what: they are, for an error.

  Raises:
    InputError: more than `KEPT` together.
  """
  total = 0
  for item in items:
    total += size(item) + _ITEM
    if total > KEPT:
      raise InputError(what, f'more than {KEPT:,} bytes of it, and all must be kept in memory', 'give a part of it')
    yield item


def read_bytes(path: epath.PathLike, what: str) -> bytes:
  """All bytes of a file.

  Raises:
    InputError: more than `LARGEST`.
    OSError: it cannot be read.
  """
  with epath.Path(path).open('rb') as stream:
    return whole(stream, what)


def inside(folder: epath.PathLike, name: Any, what: str) -> epath.Path:
  """The file or folder that a manifest in `folder` names, there or not; links are followed.

  Args:
    folder: may be a link itself.
    name: with `/` between its parts; of any type, as JSON has it.
    what: names it, for an error.

  Raises:
    InputError: the name is absolute, goes up, or is a link that leads out of the folder.
  """
  folder = epath.Path(folder)
  parts = re.split(r'[/\\]', name) if isinstance(name, str) else ['']
  plain = not {'', '.', '..'} & set(parts) and ':' not in parts[0] and '\0' not in name
  if plain and '://' not in str(folder):
    home = os.path.realpath(folder)
    plain = os.path.commonpath([home, os.path.realpath(folder / name)]) == home
  if not plain:
    raise InputError(what, f'no such file in the folder {folder}: {name!r:.200} leads elsewhere',
                     'copy what it names into the folder, and name it so')
  return folder / name
