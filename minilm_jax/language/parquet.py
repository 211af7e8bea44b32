"""The rows of a Parquet file, some at a time.

Memory is bounded by the sizes that the file states of itself, and at worst by a page, which has up to 2 GiB.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

from minilm_jax import untrusted
from minilm_jax.errors import InputError, needs

_BATCH = 128  # rows at once
_ROW = 1 << 16  # bytes of a row besides text, at most: numbers, and how the file is ordered
# Errors of Arrow derive from these; and so do those of a moment past the year 9999, or of a zone that nobody knows.
_DAMAGED = (OSError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, NotImplementedError, ImportError)


def rows(stream: BinaryIO, what: str, longest: int) -> Iterator[dict[str, Any]]:
  """Every row as a dict.

  Args:
    stream: of the file's bytes.
    what: it is, for an error.
    longest: characters in a row.

  Raises:
    InputError: it is damaged, a row is longer, or pyarrow is not installed.
  """
  needs('pyarrow', 'data', what)
  from pyarrow import parquet
  most = 4 * longest + _ROW
  try:
    file = parquet.ParquetFile(stream)
    for number in range(file.num_row_groups):
      group = file.metadata.row_group(number)
      size = sum(group.column(i).total_uncompressed_size for i in range(group.num_columns))
      if size > most * max(1, group.num_rows):
        raise _too_long(what, longest)
      # A value may be as large as all that is stored, and stand in every row.
      at_once = min(_BATCH, max(1, untrusted.LARGEST // max(1, size)))
      for batch in file.iter_batches(at_once, [number]):
        if batch.nbytes <= most:
          yield from batch.to_pylist()
          continue
        for place in range(len(batch)):
          row = batch.slice(place, 1)
          if row.nbytes > most:
            raise _too_long(what, longest)
          yield from row.to_pylist()
  except _DAMAGED as error:
    said = ' '.join(str(error).split())
    raise InputError(what, f'not Parquet: {said}', 'check that it is whole') from None


def _too_long(what: str, longest: int) -> InputError:
  return InputError(what, f'a row of more than {longest:,} characters', 'cut it, or raise documents.max_chars')
