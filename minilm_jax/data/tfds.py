"""Data sets that TFDS has prepared, read as random access records: no TensorFlow, no network,
nothing is prepared here.

A data set lies in `data_dir/name/version` or `data_dir/name/config/version`;
`tfds.builder(...).download_and_prepare` made it there, with file_format='array_record'. Reading
needs the extra [data].

TFDS imports the modules that a data set's features.json names. A data set is data: one that names a
module that is not of TFDS is refused before TFDS sees it.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from minilm_jax.core import files
from minilm_jax.core.errors import InputError, require_library, suggest_name

# where TFDS prepares, unless TFDS_DATA_DIR says otherwise
_FEATURES, _DEFAULT_DATA_DIR = 'features.json', '~/tensorflow_datasets'
_MAX_RECORD_BYTES = 1 << 26  # bytes of what describes a data set; those of GLUE have thousands
_CLASSES, _SUPPORTED_FORMATS = (
  ('type', 'pythonClassName', 'python_class_name'),
  'tensorflow_datasets.core.features.',
)
# What TFDS, the records below it and their decoding make of a folder that is not as they wrote it,
# beside errors of protobuf, which derive from none of these.
_RECORD_ERRORS = (
  OSError,
  ValueError,
  TypeError,
  LookupError,
  AttributeError,
  AssertionError,
  RuntimeError,
  ArithmeticError,
  ImportError,
  MemoryError,
  EOFError,
  SystemError,
)
_RECORDS_PER_READ = 1000  # records read at once: one by one costs three times as long


def dataset_dir(name: str, data_dir: str) -> str:
  """Where a data set lies.

  Args:
    name: as in 'glue/sst2' or 'glue/sst2:2.0.0'; without a version the newest. A lone configuration
      may be left out.
    data_dir: where data sets were prepared; '' is TFDS's own place.

  Raises:
    InputError: there is none of that name, or there are several.
  """
  root, there = (
    epath.Path(data_dir or os.environ.get('TFDS_DATA_DIR', _DEFAULT_DATA_DIR)).expanduser(),
    {},
  )
  for depth in ('*/*', '*/*/*'):
    for path in root.glob(f'{depth}/dataset_info.json'):
      *parts, version = path.parent.relative_to(root).parts
      there[f'{"/".join(parts)}:{version}'] = path.parent
  found = [key for key in there if key == name or key.startswith((f'{name}:', f'{name}/'))]
  names = {key.partition(':')[0] for key in found}
  if len(names) != 1:
    remedy = suggest_name(name, names or {key.partition(':')[0] for key in there})
    raise InputError(
      name,
      f'neither a file nor a data set that TFDS has prepared in {root}',
      f'{remedy}; tfds.builder(NAME).download_and_prepare(file_format="array_record") prepares one',
    )
  return str(
    there[
      max(found, key=lambda key: [int(part) for part in re.findall(r'\d+', key.partition(':')[2])])
    ]
  )


def read_examples(
  where: str, split: str, start: int = 0, stop: int | None = None
) -> Iterator[dict[str, Any]]:
  """The examples of a split as plain Python values, bytes decoded where they are UTF-8.

  Args:
    where: what `folder` gave.
    split: as TFDS has it, slices included.
    start: the first record.
    stop: the one behind the last; None for all.

  Raises:
    InputError: there is no such split, or it is not stored for random access.
  """
  records, what = _records(where, split)
  return _examples(records, start, len(records) if stop is None else stop, what)


def count_examples(where: str, split: str) -> int:
  """How many examples a split has; raises as `examples`."""
  return len(_records(where, split)[0])


def _records(where: str, split: str) -> tuple[Sequence[Any], str]:
  """The records of a split, and what they are called in an error."""
  builder = _builder(where)
  try:
    records = builder.as_data_source(split)
    len(records)
  except _damaged() as error:
    raise InputError(
      f'the split {split!r} of {builder.info.full_name}',
      ' '.join(str(error).split()),
      f'name one of {", ".join(builder.info.splits)}, prepared with file_format=array_record',
    ) from None
  return records, f'the split {split!r} of {builder.info.full_name}'


def _examples(records: Sequence[Any], first: int, stop: int, what: str) -> Iterator[dict[str, Any]]:
  for start in range(first, stop, _RECORDS_PER_READ):
    try:
      found = [
        {key: _plain(value) for key, value in record.items()}
        for record in records.__getitems__(range(start, min(start + _RECORDS_PER_READ, stop)))
      ]
    except _damaged() as error:
      raise InputError(
        what,
        f'it cannot be read from record {start:,} on: {error}',
        'prepare it, or copy it, again',
      ) from None
    yield from found


def fingerprint(where: str) -> dict[str, Any]:
  """Full name with version, and size in bytes, as TFDS recorded them."""
  info = _builder(where).info
  return {'bytes': int(info.dataset_size), 'dataset': info.full_name}


def _builder(where: str) -> Any:
  what = f'the data set {where}'
  require_library('tensorflow_datasets', 'data', what)
  import tensorflow_datasets as tfds  # slow to import, and few corpora need it

  for path in epath.Path(where).glob('*.json'):
    if path.stat().length > _MAX_RECORD_BYTES:
      raise InputError(
        what,
        f'{path.name} has more than {_MAX_RECORD_BYTES:,} bytes',
        'prepare it, or copy it, again',
      )
  _check_classes(files.read_object(epath.Path(where) / _FEATURES, what), what)
  try:
    return tfds.builder_from_directory(where)
  except _damaged() as error:
    raise InputError(
      what, f'TFDS cannot read it: {" ".join(str(error).split())}', 'prepare it, or copy it, again'
    ) from None


def _damaged() -> tuple[type[Exception], ...]:
  """What a folder may raise that is not as TFDS wrote it."""
  from tensorflow_datasets.core.features import feature  # for its errors of protobuf

  return *_RECORD_ERRORS, feature.json_format.Error, feature.message.Error


def _check_classes(found: Any, what: str) -> None:
  """Lets features pass whose classes are of TFDS, which would import any module that is named: data
  is not code.
  """
  # of older versions, JSON inside JSON
  if isinstance(found, str) and found.lstrip().startswith('{'):
    try:
      found = json.loads(found)
    except (ValueError, RecursionError):
      return  # TFDS cannot read it either
  if isinstance(found, dict):
    for name, value in found.items():
      if (
        name in _CLASSES
        and isinstance(value, str)
        and '.' in value
        and not value.startswith(_SUPPORTED_FORMATS)
      ):
        raise InputError(
          what,
          f'{_FEATURES} names the class {value!r}, which is not of TFDS',
          'prepare it with features of TFDS alone: what a data set names is not run',
        )
      _check_classes(value, what)
  elif isinstance(found, list):
    for value in found:
      _check_classes(value, what)


def _plain(value: Any) -> Any:
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:  # no text
      return value
  if isinstance(value, (list, tuple)) or getattr(value, 'dtype', None) == object:
    return [_plain(item) for item in value]
  return value.item() if getattr(value, 'ndim', None) == 0 else value
