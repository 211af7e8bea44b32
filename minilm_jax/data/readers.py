"""Streams one file of text or of rows: decompressed, decoded and checked on the way.

The name gives the format: .txt, .jsonl, .csv, .tsv or .parquet, all but the last also followed by
.gz, .xz or .zst. Paths may be local or `gs://`. A .json has an object a line, as C4's do, and is
read as a .jsonl. A .tsv has no quoting, as in GLUE's own files. The extra [data] reads .parquet and
.zst.

However much a file decompresses to, memory holds a line or a row of it; the memory of the
decompressor is bounded too.
"""

import contextlib
import csv
import functools
import gzip
import io
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from etils import epath

from minilm_jax.core import files
from minilm_jax.core.errors import PARSE_ERRORS, InputError, require_library

FORMATS, COMPRESSIONS = ('txt', 'jsonl', 'json', 'csv', 'tsv', 'parquet'), ('gz', 'xz', 'zst')
_BLOCK_BYTES = 1 << 20
_MAX_UTF8_BYTES = 4  # of one character
_ROWS_PER_PARQUET_BATCH = 128
_MAX_PARQUET_ROW_BYTES = 1 << 16  # besides text: numbers, and the layout of the file
# Errors of Arrow derive from these, as do those of moments past the year 9999 or of unknown zones.
_PARQUET_ERRORS = (*PARSE_ERRORS, OSError, NotImplementedError, ImportError)
_INVALID_UTF8_REMEDY = 'give UTF-8, or go on with documents.on_invalid_utf8=replace'
_LONG_ROW_REMEDY = 'cut it, or raise documents.max_chars'


def detect_format(path: epath.PathLike) -> str | None:
  """Returns the format of a file by its name, or None.

  >>> detect_format('books/one.txt.xz'), detect_format('one.parquet'), detect_format('glue/sst2')
  ('txt', 'parquet', None)
  """
  *stem, suffix = str(path).rsplit('/', 1)[-1].lower().split('.')
  if not stem:
    return None
  if suffix in COMPRESSIONS:
    *stem, suffix = stem
    return suffix if stem and suffix in FORMATS and suffix != 'parquet' else None
  return suffix if suffix in FORMATS else None


# The limit is on the dictionary: 65 MiB after xz -9, by choice 1.5 GiB.
_make_xz_decompressor = functools.partial(lzma.LZMADecompressor, memlimit=files.MAX_FILE_BYTES)


class _XzStream(io.RawIOBase):
  """Decompresses .xz streams, one after another, in bounded memory.

  `lzma.LZMAFile` would take as much memory as the file demands.
  """

  def __init__(self, stream: BinaryIO):
    self._stream, self._decompressor = stream, _make_xz_decompressor()

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    while True:
      compressed = b''
      if self._decompressor.eof:
        compressed = self._decompressor.unused_data.lstrip(b'\0')  # zeros may separate streams
        compressed = compressed or self._stream.read(_BLOCK_BYTES).lstrip(b'\0')
        if not compressed:
          return 0
        self._decompressor = _make_xz_decompressor()
      elif self._decompressor.needs_input:
        compressed = self._stream.read(_BLOCK_BYTES)
        if not compressed:
          raise EOFError('it ends too early')
      data = self._decompressor.decompress(compressed, len(buffer))
      if data:
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def open_file(path: epath.PathLike) -> Iterator[io.BufferedReader]:
  """Yields a buffered stream of a file's bytes, decompressed by its suffix.

  Raises:
    InputError: on opening or later inside the `with`: the file is missing, unreadable, truncated or
      damaged, or it is .zst and pyarrow is not installed.
  """
  path = epath.Path(path)
  suffix = path.suffix.lower()
  try:
    with contextlib.ExitStack() as stack:
      stream = cast(BinaryIO, stack.enter_context(path.open('rb')))
      if suffix == '.gz':
        stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
      elif suffix == '.xz':
        stream = stack.enter_context(_XzStream(stream))
      elif suffix == '.zst':
        require_library('pyarrow', 'data', f'the file {path}')
        import pyarrow  # its reader notices a truncated stream, that of zstandard does not

        stream = stack.enter_context(pyarrow.CompressedInputStream(stream, 'zstd'))
      yield io.BufferedReader(cast(io.RawIOBase, stream), _BLOCK_BYTES)
  except FileNotFoundError:
    raise InputError(f'the file {path}', 'no such file', 'check the path') from None
  except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
    raise InputError(
      f'the file {path}', f'it cannot be read: {error}', 'check that it is whole and yours to read'
    ) from None


def read_decompressed(path: epath.PathLike) -> bytes:
  """Returns all bytes of a file, decompressed.

  Raises:
    InputError: the file cannot be read, or has more bytes than are read at once.
  """
  with open_file(path) as stream:
    return files.read_limited(stream, f'the file {path}')


def read_lines(path: epath.PathLike, errors: str, max_chars: int) -> Iterator[str]:
  """Yields the lines of a text file, without the line feed.

  `errors='strict'` refuses bytes that are not UTF-8 and NUL, 'replace' turns them into U+FFFD.

  Raises:
    InputError: the file cannot be read, is not text (names the byte), or has a longer line.
  """
  offset = 0
  max_bytes = _MAX_UTF8_BYTES * max_chars + 8  # with a byte order mark and a line feed
  with open_file(path) as stream:
    for number in itertools.count(1):
      raw = stream.readline(max_bytes)
      if not raw:
        return
      where, text = f'{path}, line {number}', ''
      is_cut = len(raw) == max_bytes  # perhaps inside a character, so that it is not decoded
      if not is_cut:
        text = _decode(raw, errors, where, offset).removesuffix('\n')
      if is_cut or len(text) > max_chars:
        raise InputError(
          where,
          f'it has more than {max_chars:,} characters',
          'break the line, or raise documents.max_chars',
        )
      yield text.removeprefix('\ufeff') if number == 1 else text
      offset += len(raw)


def _decode(raw: bytes, errors: str, where: str, offset: int) -> str:
  try:
    text = raw.decode()
  except UnicodeDecodeError as error:
    if errors == 'strict':
      fault = f'byte {offset + error.start:,} (0x{raw[error.start]:02x}) of the text is not UTF-8'
      raise InputError(where, fault, _INVALID_UTF8_REMEDY) from None
    text = raw.decode(errors='replace')
  if '\0' in text:
    if errors == 'strict':
      fault = f'byte {offset + raw.index(0):,} of the text is NUL'
      raise InputError(where, fault, _INVALID_UTF8_REMEDY)
    text = text.replace('\0', '\ufffd')
  return text


def read_rows(path: epath.PathLike, errors: str, max_chars: int) -> Iterator[dict[str, Any]]:
  """Yields the rows of a .jsonl, .json, .csv, .tsv or .parquet file.

  The first line of a .csv or .tsv has the names of the columns.

  Raises:
    InputError: as `read_lines`; or the format is none of these, or a line is no row (names the
      line).
  """
  reader = _ROW_READERS.get(detect_format(path) or '')
  if reader is None:
    tables = ', .'.join(_ROW_READERS)
    raise InputError(f'the rows of {path}', 'not a table by its name', f'tables are .{tables}')
  return reader(path, errors, max_chars)


def _read_jsonl(path: epath.PathLike, errors: str, max_chars: int) -> Iterator[dict[str, Any]]:
  remedy = 'give one JSON object a line'
  for number, line in enumerate(read_lines(path, errors, max_chars), 1):
    if not line.strip():
      continue
    where = f'{path}, line {number}'
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise InputError(where, f'not JSON: {error}', remedy) from None
    if not isinstance(row, dict):
      raise InputError(where, f'not an object but {line[:40]}', remedy)
    yield row


def _read_delimited(path: epath.PathLike, errors: str, max_chars: int) -> Iterator[dict[str, Any]]:
  csv.field_size_limit(max(csv.field_size_limit(), max_chars))
  row_chars = 0  # of the lines since the last row: a quoted cell may span lines

  def read_bounded() -> Iterator[str]:
    nonlocal row_chars
    for number, line in enumerate(read_lines(path, errors, max_chars), 1):
      row_chars += len(line)
      if row_chars > max_chars:
        raise InputError(
          f'{path}, line {number}',
          f'its row has more than {max_chars:,} characters',
          'close its quotes, or raise documents.max_chars',
        )
      yield line + '\n'

  if detect_format(path) == 'tsv':
    reader = csv.reader(read_bounded(), delimiter='\t', quoting=csv.QUOTE_NONE)
  else:
    reader = csv.reader(read_bounded(), strict=True)
  remedy = 'correct or remove the line'
  try:
    names = next(reader, [])
    row_chars = 0
    for row in reader:
      row_chars = 0
      if len(row) == len(names):
        yield dict(zip(names, row, strict=True))
      elif row:
        fault = f'{len(row)} fields where the first line names {len(names)}'
        raise InputError(f'{path}, line {reader.line_num}', fault, remedy)
  except csv.Error as error:
    raise InputError(f'{path}, line {reader.line_num}', f'not CSV: {error}', remedy) from None


def _read_parquet(path: epath.PathLike, errors: str, max_chars: int) -> Iterator[dict[str, Any]]:
  """Yields every row; `errors` does not matter, as the types of Parquet say what is text."""
  what = f'the file {path}'
  require_library('pyarrow', 'data', what)
  from pyarrow import parquet

  too_long = InputError(what, f'a row of more than {max_chars:,} characters', _LONG_ROW_REMEDY)
  max_bytes = _MAX_UTF8_BYTES * max_chars + _MAX_PARQUET_ROW_BYTES
  with open_file(path) as stream:
    try:
      file = parquet.ParquetFile(stream)
      for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        size = sum(group.column(i).total_uncompressed_size for i in range(group.num_columns))
        if size > max_bytes * max(1, group.num_rows):
          raise too_long
        # A value may be as large as the whole group, and occur in every row.
        batch_rows = min(_ROWS_PER_PARQUET_BATCH, max(1, files.MAX_FILE_BYTES // max(1, size)))
        for batch in file.iter_batches(batch_rows, [number]):
          if batch.nbytes <= max_bytes:
            yield from batch.to_pylist()
            continue
          for index in range(len(batch)):
            row = batch.slice(index, 1)
            if row.nbytes > max_bytes:
              raise too_long
            yield from row.to_pylist()
    except _PARQUET_ERRORS as error:
      reason = ' '.join(str(error).split())
      raise InputError(what, f'not Parquet: {reason}', 'check that it is whole') from None


_ROW_READERS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
  'jsonl': _read_jsonl,
  'json': _read_jsonl,
  'csv': _read_delimited,
  'tsv': _read_delimited,
  'parquet': _read_parquet,
}
