"""One file of text or of rows, whatever its form and compression: decompressed, decoded and checked
as it streams.

The name tells the form: .txt, .jsonl, .csv, .tsv or .parquet, all but the last also followed by
.gz, .xz or .zst. Paths may be local or `gs://`. A .json has an object a line, as C4's do, and is
read as a .jsonl. A .tsv has no quoting, as in GLUE's own files. What the rows mean is the caller's
to know. For .parquet and .zst there is the extra [data].

However much a file decompresses to, memory holds a line or a row of it; what a decompressor keeps
for itself is bounded too.
"""

import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from etils import epath

from minilm_jax.core import files
from minilm_jax.core.errors import InputError, require_library

# The rows of a Parquet file, some at a time.
_PARQUET_BATCH_ROWS = 128  # rows at once
# bytes of a row besides text, at most: numbers, and how the file is ordered
_MAX_PARQUET_ROW_BYTES = 1 << 16
# Errors of Arrow derive from these; and so do those of a moment past the year 9999, or of a zone
# that nobody knows.
_PARQUET_ERRORS = (
  OSError,
  ValueError,
  TypeError,
  LookupError,
  ArithmeticError,
  MemoryError,
  NotImplementedError,
  ImportError,
)


def read_parquet(stream: BinaryIO, what: str, longest: int) -> Iterator[dict[str, Any]]:
  """Every row as a dict.

  Args:
    stream: of the file's bytes.
    what: it is, for an error.
    longest: characters in a row.

  Raises:
    InputError: it is damaged, a row is longer, or pyarrow is not installed.
  """
  require_library('pyarrow', 'data', what)
  from pyarrow import parquet

  most = 4 * longest + _MAX_PARQUET_ROW_BYTES
  try:
    file = parquet.ParquetFile(stream)
    for number in range(file.num_row_groups):
      group = file.metadata.row_group(number)
      size = sum(group.column(i).total_uncompressed_size for i in range(group.num_columns))
      if size > most * max(1, group.num_rows):
        raise _refuse_long_row(what, longest)
      # A value may be as large as all that is stored, and stand in every row.
      at_once = min(_PARQUET_BATCH_ROWS, max(1, files.MAX_FILE_BYTES // max(1, size)))
      for batch in file.iter_batches(at_once, [number]):
        if batch.nbytes <= most:
          yield from batch.to_pylist()
          continue
        for place in range(len(batch)):
          row = batch.slice(place, 1)
          if row.nbytes > most:
            raise _refuse_long_row(what, longest)
          yield from row.to_pylist()
  except _PARQUET_ERRORS as error:
    said = ' '.join(str(error).split())
    raise InputError(what, f'not Parquet: {said}', 'check that it is whole') from None


def _refuse_long_row(what: str, longest: int) -> InputError:
  return InputError(
    what, f'a row of more than {longest:,} characters', 'cut it, or raise documents.max_chars'
  )


FORMATS, COMPRESSIONS = ('txt', 'jsonl', 'json', 'csv', 'tsv', 'parquet'), ('gz', 'xz', 'zst')
_BLOCK_BYTES = 1 << 20  # bytes
_INVALID_UTF8 = 'give UTF-8, or go on with documents.on_invalid_utf8=replace'


def detect_format(path: epath.PathLike) -> str | None:
  """The form that a file's name tells, or None.

  >>> detect_format('books/one.txt.xz'), detect_format('one.parquet'), detect_format('glue/sst2')
  ('txt', 'parquet', None)
  """
  *parts, last = str(path).rsplit('/', 1)[-1].lower().split('.')
  if parts and last in COMPRESSIONS:
    *parts, last = parts
    return last if parts and last in FORMATS and last != 'parquet' else None
  return last if parts and last in FORMATS else None


class _XzStream(io.RawIOBase):
  """The bytes of .xz streams, one after another; `lzma.LZMAFile` would take as much memory as the
  file asks for.
  """

  def __init__(self, stream: BinaryIO):
    self._stream, self._one = stream, self._next()

  def _next(self) -> lzma.LZMADecompressor:
    # of its dictionary: 65 MiB after xz -9, by choice 1.5 GiB
    return lzma.LZMADecompressor(memlimit=files.MAX_FILE_BYTES)

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    while True:
      ahead = b''
      if self._one.eof:
        ahead = self._one.unused_data.lstrip(b'\0')  # zeros may stand between
        ahead = ahead or self._stream.read(_BLOCK_BYTES).lstrip(b'\0')
        if not ahead:
          return 0
        self._one = self._next()
      elif self._one.needs_input and not (ahead := self._stream.read(_BLOCK_BYTES)):
        raise EOFError('it ends too early')
      found = self._one.decompress(ahead, len(buffer))
      if found:
        buffer[: len(found)] = found
        return len(found)


@contextlib.contextmanager
def open_file(path: epath.PathLike) -> Iterator[BinaryIO]:
  """A buffered stream of a file's bytes, decompressed by its suffix.

  Raises:
    InputError: on opening or later inside the `with`: the file is missing, unreadable, truncated or
      damaged, or it is .zst and pyarrow is not installed.
  """
  path = epath.Path(path)
  suffix = path.suffix.lower()
  try:
    with contextlib.ExitStack() as stack:
      stream = stack.enter_context(path.open('rb'))
      if suffix == '.gz':
        stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
      elif suffix == '.xz':
        stream = stack.enter_context(_XzStream(stream))
      elif suffix == '.zst':
        require_library('pyarrow', 'data', f'the file {path}')
        import pyarrow  # its reader notices a truncated stream, that of zstandard does not

        stream = stack.enter_context(pyarrow.CompressedInputStream(stream, 'zstd'))
      yield io.BufferedReader(stream, _BLOCK_BYTES)
  except FileNotFoundError:
    raise InputError(f'the file {path}', 'no such file', 'check the path') from None
  except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
    found = f'it cannot be read: {error}'
    raise InputError(
      f'the file {path}', found, 'check that it is whole and yours to read'
    ) from None


def read_text(path: epath.PathLike) -> bytes:
  """All bytes of a file, decompressed.

  Raises:
    InputError: as `opened`; or there are more than are read at once.
  """
  with open_file(path) as stream:
    return files.read_limited(stream, f'the file {path}')


def read_lines(path: epath.PathLike, errors: str, longest: int) -> Iterator[str]:
  """The lines of a text file, without the line feed.

  Args:
    path: the file.
    errors: 'strict' refuses bytes that are not UTF-8 and NUL, 'replace' turns them into U+FFFD.
    longest: characters in a line.

  Raises:
    InputError: the file cannot be read, is not text (names the byte), or has a longer line.
  """
  # a character has at most four bytes; a mark may open the line, a line feed ends it
  offset, most = 0, 4 * longest + 8
  with open_file(path) as stream:
    for number in itertools.count(1):
      raw = stream.readline(most)
      if not raw:
        return
      # What is cut short may end inside a character: it is not decoded.
      text = (
        ''
        if len(raw) == most
        else _decoded(raw, errors, f'{path}, line {number}', offset).removesuffix('\n')
      )
      if len(text) > longest or len(raw) == most:
        raise InputError(
          f'{path}, line {number}',
          f'it has more than {longest:,} characters',
          'break the line, or raise documents.max_chars',
        )
      if number == 1:
        text = text.removeprefix('\ufeff')
      yield text
      offset += len(raw)


def _decoded(raw: bytes, errors: str, where: str, offset: int) -> str:
  try:
    text = raw.decode()
  except UnicodeDecodeError as error:
    if errors == 'strict':
      found = f'byte {offset + error.start:,} (0x{raw[error.start]:02x}) of the text is not UTF-8'
      raise InputError(where, found, _INVALID_UTF8) from None
    text = raw.decode(errors='replace')
  if '\0' in text:
    if errors == 'strict':
      raise InputError(where, f'byte {offset + raw.index(0):,} of the text is NUL', _INVALID_UTF8)
    text = text.replace('\0', '\ufffd')
  return text


def read_rows(path: epath.PathLike, errors: str, longest: int) -> Iterator[dict[str, Any]]:
  """The rows of a .jsonl, .json, .csv, .tsv or .parquet file; of a .csv or .tsv with the first line
  as names.

  Raises:
    InputError: as `lines`; or the form is none of these, or a line is no row (names the line).
  """
  form = detect_format(path)
  if form not in _READERS:
    raise InputError(
      f'the rows of {path}', 'not a table by its name', f'tables are .{", .".join(_READERS)}'
    )
  return _READERS[form](path, errors, longest)


def _jsonl(path: epath.PathLike, errors: str, longest: int) -> Iterator[dict[str, Any]]:
  for number, line in enumerate(read_lines(path, errors, longest), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise InputError(
        f'{path}, line {number}', f'not JSON: {error}', 'give one JSON object a line'
      ) from None
    if not isinstance(row, dict):
      raise InputError(
        f'{path}, line {number}', f'not an object but {line[:40]}', 'give one JSON object a line'
      )
    yield row


def _delimited(path: epath.PathLike, errors: str, longest: int) -> Iterator[dict[str, Any]]:
  csv.field_size_limit(max(csv.field_size_limit(), longest))
  held = 0  # characters of lines since the last row: one in quotes goes on in the next line

  def whole_lines() -> Iterator[str]:
    nonlocal held
    for number, line in enumerate(read_lines(path, errors, longest), 1):
      held += len(line)
      if held > longest:
        raise InputError(
          f'{path}, line {number}',
          f'its row has more than {longest:,} characters',
          'close its quotes, or raise documents.max_chars',
        )
      yield line + '\n'

  feed = whole_lines()
  if detect_format(path) == 'tsv':
    reader = csv.reader(feed, delimiter='\t', quoting=csv.QUOTE_NONE)
  else:
    reader = csv.reader(feed, strict=True)
  try:
    names = next(reader, [])
    held = 0
    for row in reader:
      held = 0
      if len(row) == len(names):
        yield dict(zip(names, row, strict=True))
      elif row:
        found = f'{len(row)} fields where the first line names {len(names)}'
        raise InputError(f'{path}, line {reader.line_num}', found, 'correct or remove the line')
  except csv.Error as error:
    raise InputError(
      f'{path}, line {reader.line_num}', f'not CSV: {error}', 'correct or remove the line'
    ) from None


def _parquet(path: epath.PathLike, errors: str, longest: int) -> Iterator[dict[str, Any]]:
  del errors  # Parquet says itself what is text
  with open_file(path) as stream:
    yield from read_parquet(stream, f'the file {path}', longest)


_READERS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
  'jsonl': _jsonl,
  'json': _jsonl,
  'csv': _delimited,
  'tsv': _delimited,
  'parquet': _parquet,
}
