"""One file of text or of rows, whatever its form and compression: decompressed, decoded and checked as it streams.

The name tells the form: .txt, .jsonl, .csv, .tsv or .parquet, all but the last also followed by .gz, .xz or .zst. Paths
may be local or `gs://`. A .json has an object a line, as C4's do, and is read as a .jsonl. A .tsv has no quoting, as in
GLUE's own files. What the rows mean is the caller's to know. For .parquet and .zst there is the extra [data].

However much a file decompresses to, memory holds a line or a row of it; what a decompressor keeps for itself is
bounded too.
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

from minilm_jax import untrusted
from minilm_jax.errors import InputError, needs
from minilm_jax.language import parquet

FORMS, COMPRESSIONS = ('txt', 'jsonl', 'json', 'csv', 'tsv', 'parquet'), ('gz', 'xz', 'zst')

_BLOCK = 1 << 20  # bytes
_BAD_BYTES = 'give UTF-8, or go on with documents.on_invalid_utf8=replace'


def form_of(path: epath.PathLike) -> str | None:
  """The form that a file's name tells, or None.

  >>> form_of('books/one.txt.xz'), form_of('one.parquet'), form_of('glue/sst2')
  ('txt', 'parquet', None)
  """
  *parts, last = str(path).rsplit('/', 1)[-1].lower().split('.')
  if parts and last in COMPRESSIONS:
    *parts, last = parts
    return last if parts and last in FORMS and last != 'parquet' else None
  return last if parts and last in FORMS else None


class _Xz(io.RawIOBase):
  """The bytes of .xz streams, one after another; `lzma.LZMAFile` would take as much memory as the file asks for."""

  def __init__(self, stream: BinaryIO):
    self._stream, self._one = stream, self._next()

  def _next(self) -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=untrusted.LARGEST)  # of its dictionary: 65 MiB after xz -9, by choice 1.5 GiB

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    while True:
      ahead = b''
      if self._one.eof:
        ahead = self._one.unused_data.lstrip(b'\0')  # zeros may stand between
        ahead = ahead or self._stream.read(_BLOCK).lstrip(b'\0')
        if not ahead:
          return 0
        self._one = self._next()
      elif self._one.needs_input and not (ahead := self._stream.read(_BLOCK)):
        raise EOFError('it ends too early')
      found = self._one.decompress(ahead, len(buffer))
      if found:
        buffer[:len(found)] = found
        return len(found)


@contextlib.contextmanager
def opened(path: epath.PathLike) -> Iterator[BinaryIO]:
  """A buffered stream of a file's bytes, decompressed by its suffix.

  Raises:
    InputError: on opening or later inside the `with`: the file is missing, unreadable, truncated or damaged, or it is
      .zst and pyarrow is not installed.
  """
  path = epath.Path(path)
  suffix = path.suffix.lower()
  try:
    with contextlib.ExitStack() as stack:
      stream = stack.enter_context(path.open('rb'))
      if suffix == '.gz':
        stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
      elif suffix == '.xz':
        stream = stack.enter_context(_Xz(stream))
      elif suffix == '.zst':
        needs('pyarrow', 'data', f'the file {path}')
        import pyarrow  # its reader notices a truncated stream, that of zstandard does not
        stream = stack.enter_context(pyarrow.CompressedInputStream(stream, 'zstd'))
      yield io.BufferedReader(stream, _BLOCK)
  except FileNotFoundError:
    raise InputError(f'the file {path}', 'no such file', 'check the path') from None
  except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
    found = f'it cannot be read: {error}'
    raise InputError(f'the file {path}', found, 'check that it is whole and yours to read') from None


def whole(path: epath.PathLike) -> bytes:
  """All bytes of a file, decompressed.

  Raises:
    InputError: as `opened`; or there are more than are read at once.
  """
  with opened(path) as stream:
    return untrusted.whole(stream, f'the file {path}')


def lines(path: epath.PathLike, errors: str, longest: int) -> Iterator[str]:
  """The lines of a text file, without the line feed.

  Args:
    path: the file.
    errors: 'strict' refuses bytes that are not UTF-8 and NUL, 'replace' turns them into U+FFFD.
    longest: characters in a line.

  Raises:
    InputError: the file cannot be read, is not text (names the byte), or has a longer line.
  """
  offset, most = 0, 4 * longest + 8  # a character has at most four bytes; a mark may open the line, a line feed ends it
  with opened(path) as stream:
    for number in itertools.count(1):
      raw = stream.readline(most)
      if not raw:
        return
      # What is cut short may end inside a character: it is not decoded.
      text = '' if len(raw) == most else _decoded(raw, errors, f'{path}, line {number}', offset).removesuffix('\n')
      if len(text) > longest or len(raw) == most:
        raise InputError(f'{path}, line {number}', f'it has more than {longest:,} characters',
                         'break the line, or raise documents.max_chars')
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
      raise InputError(where, found, _BAD_BYTES) from None
    text = raw.decode(errors='replace')
  if '\0' in text:
    if errors == 'strict':
      raise InputError(where, f'byte {offset + raw.index(0):,} of the text is NUL', _BAD_BYTES)
    text = text.replace('\0', '\ufffd')
  return text


def rows(path: epath.PathLike, errors: str, longest: int) -> Iterator[dict[str, Any]]:
  """The rows of a .jsonl, .json, .csv, .tsv or .parquet file; of a .csv or .tsv with the first line as names.

  Raises:
    InputError: as `lines`; or the form is none of these, or a line is no row (names the line).
  """
  form = form_of(path)
  if form not in _READERS:
    raise InputError(f'the rows of {path}', 'not a table by its name', f'tables are .{", .".join(_READERS)}')
  return _READERS[form](path, errors, longest)


def _jsonl(path: epath.PathLike, errors: str, longest: int) -> Iterator[dict[str, Any]]:
  for number, line in enumerate(lines(path, errors, longest), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise InputError(f'{path}, line {number}', f'not JSON: {error}', 'give one JSON object a line') from None
    if not isinstance(row, dict):
      raise InputError(f'{path}, line {number}', f'not an object but {line[:40]}', 'give one JSON object a line')
    yield row


def _delimited(path: epath.PathLike, errors: str, longest: int) -> Iterator[dict[str, Any]]:
  csv.field_size_limit(max(csv.field_size_limit(), longest))
  held = 0  # characters of lines since the last row: one in quotes goes on in the next line

  def whole_lines() -> Iterator[str]:
    nonlocal held
    for number, line in enumerate(lines(path, errors, longest), 1):
      held += len(line)
      if held > longest:
        raise InputError(f'{path}, line {number}', f'its row has more than {longest:,} characters',
                         'close its quotes, or raise documents.max_chars')
      yield line + '\n'

  feed = whole_lines()
  if form_of(path) == 'tsv':
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
    raise InputError(f'{path}, line {reader.line_num}', f'not CSV: {error}', 'correct or remove the line') from None


def _parquet(path: epath.PathLike, errors: str, longest: int) -> Iterator[dict[str, Any]]:
  del errors  # Parquet says itself what is text
  with opened(path) as stream:
    yield from parquet.rows(stream, f'the file {path}', longest)


_READERS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    'jsonl': _jsonl, 'json': _jsonl, 'csv': _delimited, 'tsv': _delimited, 'parquet': _parquet}
