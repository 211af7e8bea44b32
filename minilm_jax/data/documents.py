"""Documents from anywhere, streamed: however large the input, memory holds a line, a row or a
document of it.

A source is one of

- a file or a glob of files, local or `gs://`, ending in .txt, .jsonl, .csv, .tsv or .parquet, all
but the last also
  followed by .gz, .xz or .zst; or in .json, where it has an object a line, as in
  `c4-train.*.json.gz`;
- a data set that TFDS has prepared in `data_dir` with random access, as in `glue/sst2` or
`glue/sst2:2.0.0`;
- `microworld` or `microworld:COUNT`, so many documents of the built-in language (20,000 where no
number is given).

What a document of a .txt is, the recipe's `unit` says: a `line`, the whole `file`, or `paragraphs`,
the lines up to an empty one; there, a file without empty lines has a document a line. One source
may differ: `books/*.txt@file`. In tables a document is the value of one column. A .tsv has no
quoting, as in GLUE's own files.

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
from minilm_jax.data import readers, tfds
from minilm_jax.data.readers import detect_format

UNITS = ('paragraphs', 'line', 'file')

_MAX_LINE_CHARS = 10_000_000  # characters in a line of a table that no recipe bounds
_MICROWORLD = 20_000


@dataclasses.dataclass(frozen=True)
class Source:
  """One file, data set or generator; `name` is what the user sees, `form` one of FORMS, 'tfds' or
  'microworld'.
  """

  name: str
  path: str
  form: str
  unit: str = ''  # of a .txt that differs from the recipe
  start: int = 0  # of a data set, the records from this one
  stop: int | None = None  # to before this one


def expand_sources(config: DocumentsConfig) -> tuple[Source, ...]:
  """The sources of a recipe in the order given, files of a glob sorted, repetitions left out.

  Raises:
    InputError: a source matches nothing, or its form is unknown.
  """
  if not config.sources:
    raise InputError(
      'text to read', 'documents.sources is empty', 'give files, globs, TFDS names or microworld'
    )
  found = {}
  for given in config.sources:
    try:
      sources = _matches(given, config.data_dir)
    except (OSError, ImportError) as error:  # ImportError: no library for gs://
      raise InputError(
        given, f'it cannot be looked up: {error}', 'check the path and its permissions'
      ) from None
    for source in sources:
      found.setdefault(source.name, source)
  return tuple(found.values())


def _matches(given: str, data_dir: str) -> list[Source]:
  kind, _, count = given.partition(':')
  if kind == 'microworld':
    if count and not (count.isdecimal() and int(count)):
      raise InputError(
        given, f'{count!r} is not a number of documents', 'give one, as in microworld:20000'
      )
    count = str(int(count or _MICROWORLD))
    return [Source(f'microworld:{count}', count, 'microworld')]
  path, at, unit = given.rpartition('@')
  if not at or '/' in unit or epath.Path(given).exists():
    path, unit = given, ''
  elif unit not in UNITS:
    raise InputError(given, f'no such unit as {unit!r}', suggest_name(unit, UNITS))
  if any(sign in path for sign in '*?['):
    paths = _glob(path)
  elif detect_format(path) or epath.Path(path).exists():
    paths = [path]
  else:
    return [Source(given, tfds.dataset_dir(given, data_dir), 'tfds')]
  return [_file(name, unit) for name in paths]


def _glob(pattern: str) -> list[str]:
  parts = pattern.split('/')
  fixed = next(i for i, part in enumerate(parts) if any(sign in part for sign in '*?['))
  folder = '/'.join(parts[:fixed]) or ('/' if fixed else '.')
  paths = epath.Path(folder).glob('/'.join(parts[fixed:]))
  found = sorted(str(path) for path in paths if detect_format(path) or not path.is_dir())
  if not found:
    there = epath.Path(folder).exists()
    raise InputError(
      pattern, 'no file matches' if there else f'no folder {folder}', 'check the path'
    )
  return found


def _file(name: str, unit: str) -> Source:
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


def fingerprint_sources(source: Source) -> dict[str, Any]:
  """What identifies the content: 'name', 'bytes' and 'sha256' of the stored file; of TFDS the full
  name and version.
  """
  if source.form == 'tfds':
    return {'name': source.name} | tfds.fingerprint(source.path)
  if source.form == 'microworld':
    digest, size = hashlib.sha256(), 0
    for text in _microworld(source):
      digest.update(data := text.encode() + b'\n')
      size += len(data)
    return {'name': source.name, 'bytes': size, 'sha256': digest.hexdigest()}
  try:
    return {
      'name': source.name,
      'bytes': epath.Path(source.path).stat().length,
      'sha256': files.hash_file(source.path),
    }
  except OSError as error:
    found = f'it cannot be read: {error}'
    raise InputError(
      f'the file {source.path}', found, 'check the path and its permissions'
    ) from None


def read_documents(source: Source, config: DocumentsConfig) -> Iterator[str]:
  """The documents of a source, one string each.

  Raises:
    InputError: the source is missing, damaged, not UTF-8, holds NUL, has no such column, or a line
      or document has more than `config.longest` characters. Where `config.errors` is 'replace',
      what is not text becomes U+FFFD instead.
  """
  for text in _texts(source, config):
    if len(text) > config.max_chars:
      raise InputError(
        source.name,
        f'a document of more than {config.max_chars:,} characters',
        'raise documents.max_chars',
      )
    if text and not text.isspace():
      yield text


def _texts(source: Source, config: DocumentsConfig) -> Iterator[str]:
  if source.form == 'microworld':
    return _microworld(source)
  if source.form == 'txt':
    lines = (
      line.removesuffix('\r')
      for line in readers.read_lines(source.path, config.on_invalid_utf8, config.max_chars)
    )
    unit = source.unit or config.document_unit
    if unit == 'line':
      return lines
    if unit == 'paragraphs' and not source.unit:
      return _paragraphs_or_lines(lines, source.name, config.max_chars)
    return _joined(lines, source.name, config.max_chars, whole=unit == 'file')
  if source.form == 'tfds':
    rows = tfds.read_examples(source.path, config.split, source.start, source.stop)
  else:
    rows = readers.read_rows(source.path, config.on_invalid_utf8, config.max_chars)
  return (
    _column(row, config, f'{source.name}, row {number}')
    for number, row in enumerate(rows, source.start + 1)
  )


def _column(row: dict[str, Any], config: DocumentsConfig, where: str) -> str:
  if config.field not in row:
    raise InputError(
      f'the column {config.field!r} of {where}',
      f'columns are {", ".join(map(str, row))}',
      'name one of them in documents.field',
    )
  text = row[config.field]
  if isinstance(text, bytes):
    if config.on_invalid_utf8 == 'strict':
      raise InputError(
        where,
        f'{config.field!r} is not UTF-8',
        'give text, or go on with documents.on_invalid_utf8=replace',
      )
    text = text.decode('utf-8', 'replace')
  if not isinstance(text, str):
    raise InputError(
      where, f'{config.field!r} is no text but {text!r}', 'name a column of text in documents.field'
    )
  if found := schema.NO_TEXT.search(text):
    if config.on_invalid_utf8 == 'strict':
      raise InputError(
        where,
        f'U+{ord(found[0]):04X} at character {found.start()} is no text',
        'give text, or go on with documents.on_invalid_utf8=replace',
      )
    text = schema.NO_TEXT.sub('\ufffd', text)
  return text


def _joined(lines: Iterable[str], name: str, longest: int, whole: bool) -> Iterator[str]:
  held, size = [], 0
  for line in lines:
    if whole or line.strip():
      held.append(line)
      size += len(line) + 1
      if size > longest + 1:
        raise _too_long(name, longest)
    elif held:
      yield '\n'.join(held)
      held, size = [], 0
  yield '\n'.join(held)


def _paragraphs_or_lines(lines: Iterator[str], name: str, longest: int) -> Iterator[str]:
  held, size = [], 0
  for line in lines:
    held.append(line)
    size += len(line) + 1
    if not line.strip():
      yield from _joined(itertools.chain(held, lines), name, longest, whole=False)
      return
    if size > longest + 1:
      break
  yield from held
  emptied = False
  for line in lines:
    if emptied and line.strip():  # after all, what was taken for lines was one document
      raise _too_long(name, longest)
    emptied = emptied or not line.strip()
    yield line


def _too_long(name: str, longest: int) -> InputError:
  return InputError(
    name,
    f'a document of more than {longest:,} characters',
    f'if a line is a document, say {name.partition("@")[0]}@line; or raise documents.max_chars',
  )


def _microworld(source: Source) -> Iterator[str]:
  from minilm_jax.data import microworld

  return microworld.generate_documents(seed=0, count=int(source.path))


def read_table_rows(path: str, errors: str) -> Iterator[dict[str, Any]]:
  """The rows of a .jsonl, .csv, .tsv or .parquet file, compressed or not, for who keeps all of
  them.

  Raises:
    InputError: the file is damaged, not a table or not UTF-8 (unless `errors` is 'replace'), a line
      is no row, or there is too much of it.
  """

  def size(row: dict[str, Any]) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, (str, bytes)))

  return files.cached(readers.read_rows(path, errors, _MAX_LINE_CHARS), size, f'the table {path}')


def read_tfds_rows(name: str, split: str, data_dir: str) -> Iterator[dict[str, Any]]:
  """The examples of a data set that TFDS has prepared, as plain Python values, bytes decoded.

  Args:
    name: as in 'glue/sst2' or 'glue/sst2:2.0.0'; without a version the newest.
    split: as TFDS has it, slices included.
    data_dir: where it was prepared; '' is TFDS's own place.

  Raises:
    InputError: no such data set or split, or none that can be read without TensorFlow.
  """
  return tfds.read_examples(tfds.dataset_dir(name, data_dir), split)
