"""Streams a text file or table: decompresses, decodes and checks each line or row.

The file name gives the format: .txt, .jsonl, .json, .csv, .tsv or .parquet. All formats except
.parquet may be compressed (.gz, .xz, .zst). Paths are local or `gs://`. A .json file has one object
a line, as C4 has, or is an array of objects. A .tsv file has no quoting, as in GLUE. The formats
.parquet and .zst need the extra [data].

Memory is bounded by one line or row and by the limit of the decompressor, not by the file size.
"""

import codecs
import collections
import contextlib
import csv
import functools
import gzip
import io
import itertools
import json
import lzma
import shlex
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, cast

from etils import epath

from minilm_jax.core import files
from minilm_jax.core.errors import PARSE_ERRORS, InputError, require_library

TABLE_FORMATS = ('jsonl', 'json', 'csv', 'tsv', 'parquet')
FORMATS, COMPRESSIONS = ('txt', *TABLE_FORMATS), ('gz', 'xz', 'zst')
_BLOCK_BYTES = 1 << 20
_MAX_BYTES_PER_CHAR = 4  # UTF-8
_ROWS_PER_PARQUET_BATCH = 128
_MAX_PARQUET_ROW_BYTES = 1 << 16  # numbers and file layout, in addition to the text
# Arrow raises these for damaged files.
_PARQUET_ERRORS = (*PARSE_ERRORS, OSError, NotImplementedError, ImportError)
_DECOMPRESSORS = {'gz': 'gzip', 'xz': 'xz', 'zst': 'zstd'}
_BYTE_ORDER_MARKS = (
  (codecs.BOM_UTF32_LE, 'UTF-32'),  # begins with the mark of UTF-16
  (codecs.BOM_UTF32_BE, 'UTF-32'),
  (codecs.BOM_UTF16_LE, 'UTF-16'),
  (codecs.BOM_UTF16_BE, 'UTF-16'),
)
_HEAD_BYTES = 256  # of a file, to guess its encoding
_INVALID_UTF8_FIELD = 'set documents.on_invalid_utf8=replace'
# Names of delimiters, and the suffix of a table that uses them.
_DELIMITERS = {',': ('commas', '.csv'), '\t': ('tabs', '.tsv'), ';': ('semicolons', '')}


def detect_format(path: epath.PathLike) -> str | None:
  """Returns the format that a file name implies, or None.

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


def is_table(path: epath.PathLike) -> bool:
  """Returns whether a file name implies a format of `read_rows`."""
  return detect_format(path) in TABLE_FORMATS


def name_table(path: epath.PathLike) -> str:
  """Returns the name of a file without the suffixes of its compression and its format.

  >>> name_table('pairs/v1.2.jsonl.xz')
  'v1.2'
  """
  name = epath.Path(path).name
  for suffixes in (COMPRESSIONS, FORMATS):
    stem, _, suffix = name.rpartition('.')
    name = stem if stem and suffix.lower() in suffixes else name
  return name


class TextError(InputError):
  """Raised for text that a field of the corpus recipe can admit.

  Attributes:
    corpus_remedy: Remedy in the recipe of a corpus; other commands do not have the field.
  """

  def __init__(self, asked: str, found: str, remedy: str, corpus_remedy: str):
    super().__init__(asked, found, remedy)
    self.corpus_remedy = corpus_remedy


def make_length_error(location: str, unit: str, max_chars: int, remedy: str = '') -> TextError:
  """Returns the error for a line, row or document that is too long."""
  fault = f'a {unit} of more than {max_chars:,} characters'
  return TextError(location, fault, remedy or f'shorten the {unit}', 'raise documents.max_chars')


# The limit bounds the dictionary, which takes 65 MiB with `xz -9` but may be set to 1.5 GiB.
_make_xz_decompressor = functools.partial(lzma.LZMADecompressor, memlimit=files.MAX_FILE_BYTES)


class _AmbiguousRow(dict[str, Any]):
  """Row of a file that repeats column names; raises InputError if a repeated column is read."""

  def __init__(self, location: str, cells: Sequence[tuple[str, Any]]):
    super().__init__(cells)
    self._location = location
    counts = collections.Counter(name for name, _ in cells)
    self._repeated = {name for name, count in counts.items() if count > 1}

  def __getitem__(self, name: str) -> Any:
    if name in self._repeated:
      raise InputError(
        f'the column {name!r} of {self._location}',
        'several columns of this name',
        'rename or remove all but one of them',
      )
    return super().__getitem__(name)

  def get(self, name: str, default: Any = None) -> Any:
    return self[name] if name in self else default


def _make_row(location: str, cells: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  row = dict(cells)
  return row if len(row) == len(cells) else _AmbiguousRow(location, cells)


class _XzStream(io.RawIOBase):
  """Decompresses concatenated .xz streams in bounded memory; `lzma.LZMAFile` has no memory limit."""

  def __init__(self, stream: BinaryIO):
    self._stream, self._decompressor = stream, _make_xz_decompressor()

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    while True:
      compressed = b''
      if self._decompressor.eof:
        compressed = self._decompressor.unused_data.lstrip(b'\0')  # stream padding
        compressed = compressed or self._stream.read(_BLOCK_BYTES).lstrip(b'\0')
        if not compressed:
          return 0
        self._decompressor = _make_xz_decompressor()
      elif self._decompressor.needs_input:
        compressed = self._stream.read(_BLOCK_BYTES)
        if not compressed:
          raise EOFError('the stream is truncated')
      data = self._decompressor.decompress(compressed, len(buffer))
      if data:
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def open_file(path: epath.PathLike) -> Iterator[io.BufferedReader]:
  """Yields a buffered stream of a file's bytes, decompressed according to its suffix.

  Raises:
    InputError: The file is missing, unreadable, truncated or damaged, or a .zst file is read
      without pyarrow. Reading inside the `with` block raises it too.
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
        import pyarrow  # detects truncated streams, unlike zstandard

        stream = stack.enter_context(pyarrow.CompressedInputStream(stream, 'zstd'))
      yield io.BufferedReader(cast(io.RawIOBase, stream), _BLOCK_BYTES)
  except FileNotFoundError:
    raise InputError(f'the file {path}', 'no such file', 'check the path') from None
  except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
    raise InputError(
      f'the file {path}', f'unreadable: {error}', 'check its permissions, or copy it again'
    ) from None


def read_decompressed(path: epath.PathLike) -> bytes:
  """Returns the decompressed content of a file.

  Raises:
    InputError: The file is unreadable or larger than `files.MAX_FILE_BYTES`.
  """
  with open_file(path) as stream:
    return files.read_limited(stream, f'the file {path}')


def read_lines(path: epath.PathLike, errors: str, max_chars: int) -> Iterator[str]:
  """Yields the lines of a text file without line feeds.

  Args:
    errors: 'strict' refuses invalid UTF-8 and NUL; 'replace' turns both into U+FFFD.

  Raises:
    InputError: The file is unreadable, not text (the error names the byte), or has a longer line.
  """
  offset, head = 0, b''
  max_bytes = _MAX_BYTES_PER_CHAR * max_chars + 8  # includes byte order mark and line feed
  with open_file(path) as stream:
    for number in itertools.count(1):
      raw = stream.readline(max_bytes)
      if not raw:
        return
      head = head if len(head) >= _HEAD_BYTES else (head + raw)[:_HEAD_BYTES]
      location, text = f'{path}, line {number}', ''
      is_cut = len(raw) == max_bytes  # may end inside a character: do not decode
      if not is_cut:
        text, fault = _decode(raw)
        if fault is not None and errors == 'strict':
          raise _make_encoding_error(path, location, offset + fault, raw[fault], head)
        text = text.removesuffix('\n')
      if is_cut or len(text) > max_chars:
        raise make_length_error(location, 'line', max_chars)
      yield text.removeprefix('\ufeff') if number == 1 else text
      offset += len(raw)


def _decode(raw: bytes) -> tuple[str, int | None]:
  """Returns text, with U+FFFD for other bytes, and the index of the first other byte, if any."""
  try:
    text, index = raw.decode(), raw.find(0)
  except UnicodeDecodeError as error:
    text, index = raw.decode(errors='replace'), error.start
  return (text, None) if index < 0 else (text.replace('\0', '\ufffd'), index)


def _make_encoding_error(
  path: epath.PathLike, location: str, offset: int, byte: int, head: bytes
) -> TextError:
  """Returns the error for a byte that is not text, with a command that converts the file."""
  encoding = _guess_encoding(byte, head)
  if not encoding:
    fault = f'byte {offset:,} is NUL'
    return TextError(
      location, fault, 'remove the byte, or copy the file again', _INVALID_UTF8_FIELD
    )
  fault = f'byte {offset:,} (0x{byte:02x}) is not UTF-8; '
  fault += (
    f'in {encoding} it is {bytes([byte]).decode(encoding)!r}'
    if encoding == 'cp1252'
    else f'the file looks like {encoding}'
  )
  name = epath.Path(path).name
  convert, suffix = f'iconv -f {encoding} -t UTF-8', name.rpartition('.')[-1].lower()
  if suffix in _DECOMPRESSORS:
    program = _DECOMPRESSORS[suffix]
    convert = f'{program} -dc {shlex.quote(str(path))} | {convert} | {program}'
  else:
    convert += f' {shlex.quote(str(path))}'
  remedy = f'convert the file to UTF-8: {convert} > {shlex.quote("utf8-" + name)}'
  return TextError(location, fault, remedy, _INVALID_UTF8_FIELD)


def _guess_encoding(byte: int, head: bytes) -> str:
  """Returns the likely encoding of a file with a byte that is not UTF-8; '' for a mere NUL."""
  for mark, encoding in _BYTE_ORDER_MARKS:
    if head.startswith(mark):
      return encoding
  # Every second byte of western text in UTF-16 is NUL.
  for start, encoding in ((1, 'UTF-16LE'), (0, 'UTF-16BE')):
    if 2 * head[start::2].count(0) > len(head) // 2:
      return encoding
  if not byte:
    return ''
  try:
    bytes([byte]).decode('cp1252')
  except UnicodeDecodeError:
    return 'latin-1'
  return 'cp1252'


def read_rows(path: epath.PathLike, errors: str, max_chars: int) -> Iterator[dict[str, Any]]:
  """Yields the rows of a .jsonl, .json, .csv, .tsv or .parquet file.

  The first line of a .csv or .tsv file holds the column names. A row of a file that repeats a name
  raises InputError as soon as that column is read.

  Raises:
    InputError: As `read_lines`; or the format is not a table, or a line is not a row (the error
      names the line).
  """
  reader = _ROW_READERS.get(detect_format(path) or '')
  if reader is None:
    raise InputError(
      f'the rows of {path}', 'not a table format', f'give .{", .".join(_ROW_READERS)}'
    )
  return reader(path, errors, max_chars)


def _read_jsonl(path: epath.PathLike, errors: str, max_chars: int) -> Iterator[dict[str, Any]]:
  remedy = 'give one JSON object a line'
  decoder = json.JSONDecoder(object_pairs_hook=functools.partial(_make_row, str(path)))
  for number, line in enumerate(read_lines(path, errors, max_chars), 1):
    if not line.strip():
      continue
    location = f'{path}, line {number}'
    try:
      row = decoder.decode(line)
    except (ValueError, RecursionError) as error:
      if '\r' in line.strip():
        raise _make_line_end_error(path) from None
      raise InputError(location, f'not JSON: {error}', remedy) from None
    if not isinstance(row, dict):
      raise InputError(location, f'not an object but {line[:40]}', remedy)
    yield row


def is_json_array(path: epath.PathLike) -> bool:
  """Returns whether the content of a .json file begins with a bracket, after blanks."""
  with open_file(path) as stream:
    return stream.read(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b'[')


def _read_json(path: epath.PathLike, errors: str, max_chars: int) -> Iterator[dict[str, Any]]:
  """Yields the objects of a JSON array that fits in memory, or of JSON lines."""
  if not is_json_array(path):
    yield from _read_jsonl(path, errors, max_chars)
    return
  raw = read_decompressed(path).removeprefix(codecs.BOM_UTF8)
  text, fault = _decode(raw)
  if fault is not None and errors == 'strict':
    raise _make_encoding_error(path, str(path), fault, raw[fault], raw[:_HEAD_BYTES])
  remedy = 'give an array of objects, or one JSON object a line'
  decoder = json.JSONDecoder(object_pairs_hook=functools.partial(_make_row, str(path)))
  try:
    rows = decoder.decode(text)
  except (ValueError, RecursionError) as error:
    raise InputError(str(path), f'not JSON: {error}', remedy) from None
  for number, row in enumerate(rows, 1):
    if not isinstance(row, dict):
      raise InputError(f'{path}, item {number:,}', f'not an object but {str(row)[:40]}', remedy)
    yield row


def _make_line_end_error(path: epath.PathLike) -> InputError:
  name = shlex.quote(f'lines-{epath.Path(path).name}')
  return InputError(
    f'{path}, line 1',
    'carriage returns alone as line ends',
    f"convert them: tr '\\r' '\\n' < {shlex.quote(str(path))} > {name}",
  )


def _check_first_line(path: epath.PathLike, line: str, delimiter: str) -> None:
  """Raises InputError for the first line of a table with other line ends or delimiters."""
  if '\r' in line.rstrip('\r') and '"' not in line:
    raise _make_line_end_error(path)
  used = max(_DELIMITERS, key=line.count)
  if delimiter not in line and used in line:
    name, suffix = _DELIMITERS[used]
    raise InputError(
      f'{path}, line 1',
      f'columns separated by {name}, not by {_DELIMITERS[delimiter][0]}: {line[:60]}',
      f'give the file a name in {suffix}' if suffix else 'save the table with commas or with tabs',
    )


def read_delimited(
  path: epath.PathLike,
  errors: str,
  max_chars: int,
  names: Sequence[str] = (),
  on_bad_row: Callable[[InputError], None] | None = None,
) -> Iterator[dict[str, Any]]:
  """Yields the rows of a .csv or .tsv file as `read_rows`.

  Args:
    names: Names of the columns of a file without a header.
    on_bad_row: Function that gets the error of a row with another number of fields; the row is
      skipped. None raises the error.
  """
  csv.field_size_limit(max(csv.field_size_limit(), max_chars))
  delimiter = '\t' if detect_format(path) == 'tsv' else ','
  row_chars = 0  # since the last row: a quoted cell may span lines

  def read_bounded() -> Iterator[str]:
    nonlocal row_chars
    for number, line in enumerate(read_lines(path, errors, max_chars), 1):
      if number == 1:
        _check_first_line(path, line, delimiter)
      row_chars += len(line)
      if row_chars > max_chars:
        location = f'{path}, line {number}'
        raise make_length_error(location, 'row', max_chars, 'close the quotes')
      yield line + '\n'

  if delimiter == '\t':
    reader = csv.reader(read_bounded(), delimiter=delimiter, quoting=csv.QUOTE_NONE)
  else:
    reader = csv.reader(read_bounded(), strict=True)
  remedy = 'correct or remove the line'
  try:
    names = names or next(reader, [])
    row_chars = 0
    for row in reader:
      row_chars = 0
      if len(row) == len(names):
        yield _make_row(str(path), list(zip(names, row, strict=True)))
      elif row:
        fault = f'{len(row)} fields, but the first line names {len(names)} columns'
        error = InputError(f'{path}, line {reader.line_num}', fault, remedy)
        if on_bad_row is None:
          raise error
        on_bad_row(error)
  except csv.Error as error:
    raise InputError(f'{path}, line {reader.line_num}', f'not CSV: {error}', remedy) from None


def _read_parquet(path: epath.PathLike, errors: str, max_chars: int) -> Iterator[dict[str, Any]]:
  """Yields every row; ignores `errors`, because Parquet columns are typed.

  Binary values that are UTF-8 are text. Columns with dates or times are omitted: no task reads
  them, and some of their values have no Python type.
  """
  subject = f'the file {path}'
  require_library('pyarrow', 'data', subject)
  from pyarrow import parquet

  too_long = make_length_error(subject, 'row', max_chars)
  max_bytes = _MAX_BYTES_PER_CHAR * max_chars + _MAX_PARQUET_ROW_BYTES
  with open_file(path) as stream:
    try:
      file = parquet.ParquetFile(stream)
      for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        size = sum(group.column(i).total_uncompressed_size for i in range(group.num_columns))
        if size > max_bytes * max(1, group.num_rows):
          raise too_long
        # A dictionary value may be as large as the group and occur in every row.
        batch_rows = min(_ROWS_PER_PARQUET_BATCH, max(1, files.MAX_FILE_BYTES // max(1, size)))
        for batch in file.iter_batches(batch_rows, [number]):
          if batch.nbytes <= max_bytes:
            yield from _list_batch_rows(str(path), batch)
            continue
          for index in range(len(batch)):
            row = batch.slice(index, 1)
            if row.nbytes > max_bytes:
              raise too_long
            yield from _list_batch_rows(str(path), row)
    except _PARQUET_ERRORS as error:
      reason = ' '.join(str(error).split())
      raise InputError(subject, f'not Parquet: {reason}', 'copy or write it again') from None


def decode_bytes(value: Any) -> Any:
  """Returns the text of bytes that are UTF-8, or else the value."""
  try:
    return value.decode() if isinstance(value, bytes) else value
  except UnicodeDecodeError:
    return value


def _list_batch_rows(location: str, batch: Any) -> list[dict[str, Any]]:
  """Returns the rows of a batch of Arrow."""
  names, columns = [], []
  for field, column in zip(batch.schema, batch.columns, strict=True):
    if not _has_times(field.type):
      values = column.to_pylist()
      names.append(field.name)
      columns.append(map(decode_bytes, values) if 'binary' in str(field.type) else values)
  rows = zip(*columns, strict=True) if columns else [()] * len(batch)
  return [_make_row(location, list(zip(names, row, strict=True))) for row in rows]


def _has_times(kind: Any) -> bool:
  """Returns whether a type of Arrow, or a part of a nested type, is a date, a time or a duration."""
  import pyarrow

  if pyarrow.types.is_dictionary(kind):
    return _has_times(kind.value_type)
  parts = (kind.field(index).type for index in range(kind.num_fields))
  return pyarrow.types.is_temporal(kind) or any(map(_has_times, parts))


_ROW_READERS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
  'jsonl': _read_jsonl,
  'json': _read_json,
  'csv': read_delimited,
  'tsv': read_delimited,
  'parquet': _read_parquet,
}
