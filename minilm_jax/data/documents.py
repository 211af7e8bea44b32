"""Streams documents from files, prepared TFDS data sets or the built-in microworld.

A source is

- a file or a glob, local or `gs://`, in a format of `readers.py`, as in `c4-train.*.json.gz`; a
  part `**` matches subfolders at any depth, and a file that exists is no glob;
- a data set that TFDS has prepared in `data_dir`, as in `glue/sst2` or `glue/sst2:2.0.0`;
- `microworld` or `microworld:COUNT`, generated documents (20,000 by default).

In a .txt file, `document_unit` defines a document: a `line`, the whole `file`, or `paragraphs`,
the lines up to an empty line. Spaces replace the line ends of a paragraph if all of its lines have
at most 100 characters, as in hard-wrapped text. With `paragraphs`, each line is a document if no
line is empty. A suffix overrides the unit for one source: `books/*.txt@file`. In a table, a
document is the value of one column.

Text is normalised to NFC and otherwise unchanged, including white space. Empty documents and null
values of a table are skipped. Memory holds one document.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from minilm_jax.core import files, paths
from minilm_jax.core.corpus_config import DOCUMENT_UNITS, DocumentsConfig
from minilm_jax.core.errors import NO_TEXT, InputError, suggest_name
from minilm_jax.data import microworld, readers, tfds
from minilm_jax.data.normalization import normalize_text
from minilm_jax.data.readers import detect_format

_MAX_TABLE_LINE_CHARS = 10_000_000
_MAX_WRAPPED_CHARS = 100  # of a line of hard-wrapped text
_MICROWORLD_DOCUMENTS = 20_000
_REPLACE_REMEDY = 'correct the text, or set documents.on_invalid_utf8=replace'


@dataclasses.dataclass(frozen=True)
class Source:
  """A file, a range of records of a data set, or the microworld.

  Attributes:
    name: Name for messages and manifests.
    path: Path of the file or data set, or the number of microworld documents.
    format: One of `readers.FORMATS`, 'tfds' or 'microworld'.
    unit: Document unit of a .txt file; '' takes that of the recipe.
    num_bytes: Stored size, for the progress.
  """

  name: str
  path: str
  format: str
  unit: str = ''
  start: int = 0
  stop: int | None = None
  num_bytes: int = 0


def expand_sources(config: DocumentsConfig) -> tuple[Source, ...]:
  """Returns the distinct sources of a recipe in order; the files of a glob are sorted.

  Raises:
    InputError: A source matches nothing, or its format is unknown.
  """
  if not config.sources:
    raise InputError(
      'documents.sources', 'no source', 'give files, globs, TFDS names or microworld'
    )
  by_name: dict[str, Source] = {}
  for pattern in config.sources:
    try:
      sources = _match_sources(pattern, config.data_dir)
    except OSError as error:
      raise InputError(
        pattern, f'the lookup failed: {error}', 'check the path and its permissions'
      ) from None
    for source in sources:
      by_name.setdefault(source.name, source)
  return tuple(by_name.values())


def _match_sources(pattern: str, data_dir: str) -> list[Source]:
  kind, _, count = pattern.partition(':')
  if kind == 'microworld':
    if count and not (count.isdecimal() and int(count)):
      raise InputError(
        pattern, f'{count!r} is not a positive number', 'give a number, as in microworld:20000'
      )
    count = str(int(count or _MICROWORLD_DOCUMENTS))
    return [Source(f'microworld:{count}', count, 'microworld')]
  pattern = paths.expand_home(pattern)
  path, at, unit = pattern.rpartition('@')
  # A name of a file may contain the letter too, as in `text/*@home.txt`.
  is_name = '/' in unit or '.' in unit or paths.is_pattern(unit)
  if not at or is_name or epath.Path(pattern).exists():
    path, unit = pattern, ''
  elif unit not in DOCUMENT_UNITS:
    raise InputError(pattern, f'no unit {unit!r}', suggest_name(unit, DOCUMENT_UNITS))
  if epath.Path(path).exists():
    return [_make_file_source(path, unit)]
  if paths.is_pattern(path):
    return [_make_file_source(name, unit) for name in _match_files(path)]
  if detect_format(path):
    return [_make_file_source(path, unit)]
  return [Source(pattern, tfds.find_dataset(pattern, data_dir), 'tfds')]


def _match_files(pattern: str) -> list[str]:
  """Returns the sorted paths of a pattern, without folders whose names have no known format."""
  names = [
    name
    for name in paths.expand_pattern(pattern)
    if detect_format(name) or not epath.Path(name).is_dir()
  ]
  if not names:
    folder = paths.split_pattern(pattern)[0] or '.'
    fault = 'no match' if epath.Path(folder).exists() else f'no folder {folder}'
    raise InputError(pattern, fault, 'check the path')
  return names


def _make_file_source(name: str, unit: str) -> Source:
  path, format = epath.Path(name), detect_format(name)
  if not path.exists():
    raise InputError(name, 'no such file', 'check the path, or give a glob')
  if path.is_dir():
    raise InputError(name, 'a folder', f'give its files, as in {name.rstrip("/")}/*.txt')
  if format is None:
    raise InputError(name, 'an unknown format', f'give .{", .".join(readers.FORMATS)}')
  if unit and format != 'txt':
    raise InputError(
      f'{name}@{unit}', f'a .{format} file has no units', f'remove @{unit}: a row is a document'
    )
  return Source(name, name, format, unit)


def fingerprint_source(source: Source) -> dict[str, Any]:
  """Returns 'name', 'bytes' and 'sha256' of a source.

  TFDS data sets have 'dataset', the full name with version, instead of 'sha256'.
  """
  if source.format == 'tfds':
    return {'name': source.name} | tfds.fingerprint_dataset(source.path)
  if source.format == 'microworld':
    digest, size = hashlib.sha256(), 0
    for text in microworld.generate_documents(seed=0, count=int(source.path)):
      line = text.encode() + b'\n'
      digest.update(line)
      size += len(line)
    return {'name': source.name, 'bytes': size, 'sha256': digest.hexdigest()}
  try:
    size, checksum = files.read_status(source.path).size, files.hash_file(source.path)
  except OSError as error:
    raise InputError(
      f'the file {source.path}', f'unreadable: {error}', 'check the path and its permissions'
    ) from None
  return {'name': source.name, 'bytes': size, 'sha256': checksum}


def read_documents(source: Source, config: DocumentsConfig) -> Iterator[str]:
  """Yields the documents of a source in NFC.

  Raises:
    InputError: The source is missing, damaged or lacks the column; or a line or document has more
      than `config.max_chars` characters; or, unless `config.on_invalid_utf8` is 'replace', bytes
      are not UTF-8 or are NUL.
  """
  try:
    for text in _read_texts(source, config):
      if len(text) > config.max_chars:
        raise readers.make_length_error(source.name, 'document', config.max_chars)
      if text and not text.isspace():
        yield normalize_text(text)
  except readers.TextError as error:
    raise InputError(
      error.asked, error.found, f'{error.remedy}; or {error.corpus_remedy}'
    ) from None


def _read_texts(source: Source, config: DocumentsConfig) -> Iterator[str]:
  if source.format == 'microworld':
    return microworld.generate_documents(seed=0, count=int(source.path))
  if source.format == 'txt':
    lines = readers.read_lines(source.path, config.on_invalid_utf8, config.max_chars)
    lines = (line.removesuffix('\r') for line in lines)
    unit = source.unit or config.document_unit
    if unit == 'line':
      return lines
    if unit == 'paragraphs' and not source.unit:
      return _join_paragraphs_or_lines(lines, source.name, config.max_chars)
    return _join_lines(lines, source.name, config.max_chars, unit == 'file')
  if source.format == 'tfds':
    rows = tfds.read_examples(source.path, config.split, source.start, source.stop)
  else:
    rows = readers.read_rows(source.path, config.on_invalid_utf8, config.max_chars)
  return (
    _get_text(row, config, f'{source.name}, row {number}')
    for number, row in enumerate(rows, source.start + 1)
  )


def _get_text(row: dict[str, Any], config: DocumentsConfig, location: str) -> str:
  if config.field not in row:
    raise InputError(
      f'documents.field={config.field} of {location}',
      f'the columns are {", ".join(map(str, row))}',
      'set documents.field to one of the columns',
    )
  text, is_strict = row[config.field], config.on_invalid_utf8 == 'strict'
  if text is None:
    return ''
  if isinstance(text, bytes):
    if is_strict:
      raise InputError(location, f'{config.field!r} is not UTF-8', _REPLACE_REMEDY)
    text = text.decode('utf-8', 'replace')
  if not isinstance(text, str):
    raise InputError(
      location, f'{config.field!r} is {text!r}', 'set documents.field to a column of text'
    )
  if match := NO_TEXT.search(text):
    if is_strict:
      raise InputError(
        location, f'U+{ord(match[0]):04X} at character {match.start()}', _REPLACE_REMEDY
      )
    text = NO_TEXT.sub('\ufffd', text)
  return text


def _join_lines(
  lines: Iterable[str], name: str, max_chars: int, is_file: bool = False
) -> Iterator[str]:
  """Yields the paragraphs of a file, or with `is_file` all lines as one document.

  The line ends of a hard-wrapped paragraph become spaces, because its sentences continue on the
  next line. Long lines are not wrapped; their ends stay, because each is a paragraph.
  """

  def join(lines: list[str]) -> str:
    is_wrapped = not is_file and max(map(len, lines), default=0) <= _MAX_WRAPPED_CHARS
    return (' ' if is_wrapped else '\n').join(lines)

  document, size = [], 0
  for line in lines:
    if is_file or line.strip():
      document.append(line)
      size += len(line) + 1
      if size > max_chars + 1:
        raise _make_length_error(name, max_chars)
    elif document:
      yield join(document)
      document, size = [], 0
  yield join(document)


def _join_paragraphs_or_lines(lines: Iterator[str], name: str, max_chars: int) -> Iterator[str]:
  """Yields paragraphs, or lines if no line is empty; buffers at most `max_chars` characters."""
  head, size = [], 0
  for line in lines:
    head.append(line)
    size += len(line) + 1
    if not line.strip():
      yield from _join_lines(itertools.chain(head, lines), name, max_chars)
      return
    if size > max_chars + 1:
      break
  yield from head
  after_empty = False
  for line in lines:
    if after_empty and line.strip():  # the lines so far were one document
      raise _make_length_error(name, max_chars)
    after_empty = after_empty or not line.strip()
    yield line


def _make_length_error(name: str, max_chars: int) -> InputError:
  remedy = f'give {name}@line if a line is a document'
  return readers.make_length_error(name, 'document', max_chars, remedy)


def read_table_rows(path: str) -> Iterator[dict[str, Any]]:
  """Yields the rows of a table that fits in memory.

  Raises:
    InputError: As `readers.read_rows`; or the rows exceed `files.MAX_CACHED_BYTES`.
  """

  def size(row: dict[str, Any]) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, (str, bytes)))

  rows = readers.read_rows(path, 'strict', _MAX_TABLE_LINE_CHARS)
  return files.limit_items(rows, size, f'the table {path}')
