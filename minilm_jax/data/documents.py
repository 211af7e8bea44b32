"""Streams documents from any source: memory holds a line, a row or a document of the input.

A source is one of

- a file or a glob of files, local or `gs://`, ending in .txt, .jsonl, .csv, .tsv or .parquet, all
  but the last also followed by .gz, .xz or .zst; or in .json with an object a line, as in
  `c4-train.*.json.gz`;
- a data set that TFDS has prepared in `data_dir` with random access, as in `glue/sst2` or
  `glue/sst2:2.0.0`;
- `microworld` or `microworld:COUNT`, so many documents of the built-in language (20,000 without a
  number).

The recipe's `document_unit` defines the documents of a .txt: a `line`, the whole `file`, or
`paragraphs`, the lines up to an empty one; there, a file without empty lines has a document a line.
One source may differ: `books/*.txt@file`. In tables a document is the value of one column.

Text is left as it is, white space included; empty documents are skipped. Nothing is downloaded,
nothing is filtered.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from minilm_jax.core import files, schema
from minilm_jax.core.corpus_config import DocumentsConfig
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.data import microworld, readers, tfds
from minilm_jax.data.readers import detect_format

UNITS = ('paragraphs', 'line', 'file')
_GLOB_SIGNS = '*?['
_MAX_TABLE_LINE_CHARS = 10_000_000  # of a table that no recipe bounds
_MICROWORLD_DOCUMENTS = 20_000
_REPLACE_REMEDY = 'give text, or go on with documents.on_invalid_utf8=replace'


@dataclasses.dataclass(frozen=True)
class Source:
  """One file, data set or generator.

  `name` is for the user; `form` is one of `readers.FORMATS`, 'tfds' or 'microworld'.
  """

  name: str
  path: str
  form: str
  unit: str = ''  # of a .txt that differs from the recipe
  start: int = 0  # of a data set, the first record
  stop: int | None = None  # and the record after the last one
  num_bytes: int = 0  # as stored, for the progress


def expand_sources(config: DocumentsConfig) -> tuple[Source, ...]:
  """Returns the sources of a recipe in the order given, files of a glob sorted, each once.

  Raises:
    InputError: a source matches nothing, or its form is unknown.
  """
  if not config.sources:
    raise InputError(
      'text to read', 'documents.sources is empty', 'give files, globs, TFDS names or microworld'
    )
  by_name: dict[str, Source] = {}
  for pattern in config.sources:
    try:
      sources = _match_sources(pattern, config.data_dir)
    except (OSError, ImportError) as error:  # ImportError: no library for gs://
      raise InputError(
        pattern, f'it cannot be looked up: {error}', 'check the path and its permissions'
      ) from None
    for source in sources:
      by_name.setdefault(source.name, source)
  return tuple(by_name.values())


def _match_sources(pattern: str, data_dir: str) -> list[Source]:
  kind, _, count = pattern.partition(':')
  if kind == 'microworld':
    if count and not (count.isdecimal() and int(count)):
      raise InputError(
        pattern, f'{count!r} is not a number of documents', 'give one, as in microworld:20000'
      )
    count = str(int(count or _MICROWORLD_DOCUMENTS))
    return [Source(f'microworld:{count}', count, 'microworld')]
  path, at, unit = pattern.rpartition('@')
  if not at or '/' in unit or epath.Path(pattern).exists():
    path, unit = pattern, ''
  elif unit not in UNITS:
    raise InputError(pattern, f'no such unit as {unit!r}', suggest_name(unit, UNITS))
  if any(sign in path for sign in _GLOB_SIGNS):
    return [_make_file_source(name, unit) for name in _expand_glob(path)]
  if detect_format(path) or epath.Path(path).exists():
    return [_make_file_source(path, unit)]
  return [Source(pattern, tfds.find_dataset(pattern, data_dir), 'tfds')]


def _expand_glob(pattern: str) -> list[str]:
  parts = pattern.split('/')
  fixed = next(i for i, part in enumerate(parts) if any(sign in part for sign in _GLOB_SIGNS))
  folder = epath.Path('/'.join(parts[:fixed]) or ('/' if fixed else '.'))
  paths = folder.glob('/'.join(parts[fixed:]))
  names = sorted(str(path) for path in paths if detect_format(path) or not path.is_dir())
  if not names:
    fault = 'no file matches' if folder.exists() else f'no folder {folder}'
    raise InputError(pattern, fault, 'check the path')
  return names


def _make_file_source(name: str, unit: str) -> Source:
  path, form = epath.Path(name), detect_format(name)
  if not path.exists():
    raise InputError(
      name, 'no such file', 'check the path; a glob such as folder/*.txt.xz will do too'
    )
  if path.is_dir():
    raise InputError(name, 'a folder', f'name its files, as in {name.rstrip("/")}/*.txt')
  if form is None:
    raise InputError(name, 'a file of no known form', f'forms are .{", .".join(readers.FORMATS)}')
  if unit and form != 'txt':
    raise InputError(
      f'{name}@{unit}', f'a .{form} has no units', 'leave @ out: documents are its rows'
    )
  return Source(name, name, form, unit)


def fingerprint_source(source: Source) -> dict[str, Any]:
  """Returns the identity of the content: 'name', 'bytes' and 'sha256' of the stored file.

  Of a data set of TFDS the full name with version takes the place of the digest.
  """
  if source.form == 'tfds':
    return {'name': source.name} | tfds.fingerprint_dataset(source.path)
  if source.form == 'microworld':
    digest, size = hashlib.sha256(), 0
    for text in _generate_microworld(source):
      line = text.encode() + b'\n'
      digest.update(line)
      size += len(line)
    return {'name': source.name, 'bytes': size, 'sha256': digest.hexdigest()}
  try:
    size, checksum = epath.Path(source.path).stat().length, files.hash_file(source.path)
  except OSError as error:
    raise InputError(
      f'the file {source.path}',
      f'it cannot be read: {error}',
      'check the path and its permissions',
    ) from None
  return {'name': source.name, 'bytes': size, 'sha256': checksum}


def read_documents(source: Source, config: DocumentsConfig) -> Iterator[str]:
  """Yields the documents of a source, one string each.

  Raises:
    InputError: the source is missing, damaged, not UTF-8, holds NUL, has no such column, or a line
      or document has more than `config.max_chars` characters. If `config.on_invalid_utf8` is
      'replace', U+FFFD takes the place of what is not text.
  """
  for text in _read_texts(source, config):
    if len(text) > config.max_chars:
      raise InputError(
        source.name,
        f'a document of more than {config.max_chars:,} characters',
        'raise documents.max_chars',
      )
    if text and not text.isspace():
      yield text


def _read_texts(source: Source, config: DocumentsConfig) -> Iterator[str]:
  if source.form == 'microworld':
    return _generate_microworld(source)
  if source.form == 'txt':
    lines = readers.read_lines(source.path, config.on_invalid_utf8, config.max_chars)
    lines = (line.removesuffix('\r') for line in lines)
    unit = source.unit or config.document_unit
    if unit == 'line':
      return lines
    if unit == 'paragraphs' and not source.unit:
      return _join_paragraphs_or_lines(lines, source.name, config.max_chars)
    return _join_lines(lines, source.name, config.max_chars, whole=unit == 'file')
  if source.form == 'tfds':
    rows = tfds.read_examples(source.path, config.split, source.start, source.stop)
  else:
    rows = readers.read_rows(source.path, config.on_invalid_utf8, config.max_chars)
  return (
    _get_text(row, config, f'{source.name}, row {number}')
    for number, row in enumerate(rows, source.start + 1)
  )


def _get_text(row: dict[str, Any], config: DocumentsConfig, where: str) -> str:
  if config.field not in row:
    raise InputError(
      f'the column {config.field!r} of {where}',
      f'columns are {", ".join(map(str, row))}',
      'name one of them in documents.field',
    )
  text, is_strict = row[config.field], config.on_invalid_utf8 == 'strict'
  if isinstance(text, bytes):
    if is_strict:
      raise InputError(where, f'{config.field!r} is not UTF-8', _REPLACE_REMEDY)
    text = text.decode('utf-8', 'replace')
  if not isinstance(text, str):
    raise InputError(
      where, f'{config.field!r} is no text but {text!r}', 'name a column of text in documents.field'
    )
  if match := schema.NO_TEXT.search(text):
    if is_strict:
      raise InputError(
        where, f'U+{ord(match[0]):04X} at character {match.start()} is no text', _REPLACE_REMEDY
      )
    text = schema.NO_TEXT.sub('\ufffd', text)
  return text


def _join_lines(lines: Iterable[str], name: str, max_chars: int, whole: bool) -> Iterator[str]:
  document, size = [], 0
  for line in lines:
    if whole or line.strip():
      document.append(line)
      size += len(line) + 1
      if size > max_chars + 1:
        raise _make_length_error(name, max_chars)
    elif document:
      yield '\n'.join(document)
      document, size = [], 0
  yield '\n'.join(document)


def _join_paragraphs_or_lines(lines: Iterator[str], name: str, max_chars: int) -> Iterator[str]:
  head, size = [], 0
  for line in lines:
    head.append(line)
    size += len(line) + 1
    if not line.strip():
      yield from _join_lines(itertools.chain(head, lines), name, max_chars, whole=False)
      return
    if size > max_chars + 1:
      break
  yield from head
  after_empty = False
  for line in lines:
    if after_empty and line.strip():  # after all, the lines so far were one document
      raise _make_length_error(name, max_chars)
    after_empty = after_empty or not line.strip()
    yield line


def _make_length_error(name: str, max_chars: int) -> InputError:
  return InputError(
    name,
    f'a document of more than {max_chars:,} characters',
    f'if a line is a document, say {name.partition("@")[0]}@line; or raise documents.max_chars',
  )


def _generate_microworld(source: Source) -> Iterator[str]:
  return microworld.generate_documents(seed=0, count=int(source.path))


def read_table_rows(path: str, errors: str) -> Iterator[dict[str, Any]]:
  """Yields the rows of a .jsonl, .csv, .tsv or .parquet file, for a caller that keeps all of them.

  Raises:
    InputError: the file is damaged, not a table or not UTF-8 (unless `errors` is 'replace'), a line
      is no row, or the rows together are too large.
  """

  def size(row: dict[str, Any]) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, (str, bytes)))

  rows = readers.read_rows(path, errors, _MAX_TABLE_LINE_CHARS)
  return files.limit_items(rows, size, f'the table {path}')


def read_tfds_rows(name: str, split: str, data_dir: str) -> Iterator[dict[str, Any]]:
  """Yields the examples of a data set that TFDS has prepared; arguments and errors as in `tfds`."""
  return tfds.read_examples(tfds.find_dataset(name, data_dir), split)
