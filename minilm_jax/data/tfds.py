"""Data sets that TFDS has prepared, read as random access records: without TensorFlow or network.

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
from minilm_jax.core.errors import LIBRARY_ERRORS, InputError, require_library, suggest_name

_DEFAULT_DATA_DIR = '~/tensorflow_datasets'  # of TFDS, unless TFDS_DATA_DIR is set
_FEATURES_FILE = 'features.json'
_MAX_METADATA_BYTES = 1 << 26  # of one file; those of GLUE have thousands
_CLASS_FIELDS = ('type', 'pythonClassName', 'python_class_name')
_TFDS_FEATURES = 'tensorflow_datasets.core.features.'
_RECORDS_PER_READ = 1000  # one by one costs three times as long
_REMEDY = 'prepare it, or copy it, again'


def find_dataset(name: str, data_dir: str) -> str:
  """Returns the folder of a data set.

  Args:
    name: as in 'glue/sst2' or 'glue/sst2:2.0.0'; without a version the newest. A lone configuration
      may be left out.
    data_dir: where data sets were prepared; '' is TFDS's own folder.

  Raises:
    InputError: there is none of that name, or there are several.
  """
  root = epath.Path(data_dir or os.environ.get('TFDS_DATA_DIR', _DEFAULT_DATA_DIR)).expanduser()
  folders = {}
  for depth in ('*/*', '*/*/*'):
    for path in root.glob(f'{depth}/dataset_info.json'):
      *parts, version = path.parent.relative_to(root).parts
      folders['/'.join(parts), version] = str(path.parent)
  matches = [
    (dataset, version)
    for dataset, version in folders
    if name in (dataset, f'{dataset}:{version}') or dataset.startswith(f'{name}/')
  ]
  datasets = {dataset for dataset, _ in matches}
  if len(datasets) != 1:
    remedy = suggest_name(name, datasets or {dataset for dataset, _ in folders})
    raise InputError(
      name,
      f'neither a file nor a data set that TFDS has prepared in {root}',
      f'{remedy}; tfds.builder(NAME).download_and_prepare(file_format="array_record") prepares one',
    )
  return folders[max(matches, key=lambda key: [int(part) for part in re.findall(r'\d+', key[1])])]


def read_examples(
  folder: str, split: str, start: int = 0, stop: int | None = None
) -> Iterator[dict[str, Any]]:
  """Yields the examples of a split as plain Python values, bytes decoded if they are UTF-8.

  Args:
    folder: the result of `find_dataset`.
    split: in the notation of TFDS, slices included.
    start: the first record.
    stop: the record after the last one; None for all.

  Raises:
    InputError: there is no such split, or it is not stored for random access.
  """
  records, what = _open_records(folder, split)
  return _read_records(records, start, len(records) if stop is None else stop, what)


def count_examples(folder: str, split: str) -> int:
  """Returns the number of examples of a split; raises as `read_examples`."""
  return len(_open_records(folder, split)[0])


def _open_records(folder: str, split: str) -> tuple[Sequence[Any], str]:
  """Returns the records of a split, and their name for an error."""
  builder = _open_builder(folder)
  what = f'the split {split!r} of {builder.info.full_name}'
  try:
    records = builder.as_data_source(split)
    len(records)
  except _damage_errors() as error:
    raise InputError(
      what,
      ' '.join(str(error).split()),
      f'name one of {", ".join(builder.info.splits)}, prepared with file_format=array_record',
    ) from None
  return records, what


def _read_records(records: Any, start: int, stop: int, what: str) -> Iterator[dict[str, Any]]:
  for first in range(start, stop, _RECORDS_PER_READ):
    try:
      examples = [
        {key: _to_plain(value) for key, value in record.items()}
        for record in records.__getitems__(range(first, min(first + _RECORDS_PER_READ, stop)))
      ]
    except _damage_errors() as error:
      raise InputError(
        what, f'it cannot be read from record {first:,} on: {error}', _REMEDY
      ) from None
    yield from examples


def fingerprint_dataset(folder: str) -> dict[str, Any]:
  """Returns the full name with version, and the size in bytes, as TFDS recorded them."""
  info = _open_builder(folder).info
  return {'bytes': int(info.dataset_size), 'dataset': info.full_name}


def _open_builder(folder: str) -> Any:
  what = f'the data set {folder}'
  require_library('tensorflow_datasets', 'data', what)
  import tensorflow_datasets as tfds  # slow to import, and few corpora need it

  for path in epath.Path(folder).glob('*.json'):
    if path.stat().length > _MAX_METADATA_BYTES:
      raise InputError(what, f'{path.name} has more than {_MAX_METADATA_BYTES:,} bytes', _REMEDY)
  _check_classes(files.read_object(epath.Path(folder) / _FEATURES_FILE, what), what)
  try:
    return tfds.builder_from_directory(folder)
  except _damage_errors() as error:
    raise InputError(
      what, f'TFDS cannot read it: {" ".join(str(error).split())}', _REMEDY
    ) from None


def _damage_errors() -> tuple[type[Exception], ...]:
  """Returns the errors of TFDS and of its decoders for a folder that is not as TFDS wrote it."""
  from tensorflow_datasets.core.features import feature  # for its errors of protobuf

  return *LIBRARY_ERRORS, SystemError, feature.json_format.Error, feature.message.Error


def _check_classes(value: Any, what: str) -> None:
  """Refuses features whose class is not of TFDS, for TFDS imports the module of any class."""
  # older versions have JSON inside JSON
  if isinstance(value, str) and value.lstrip().startswith('{'):
    try:
      value = json.loads(value)
    except (ValueError, RecursionError):
      return  # TFDS cannot read it either
  if isinstance(value, dict):
    for name, inner in value.items():
      is_class = name in _CLASS_FIELDS and isinstance(inner, str) and '.' in inner
      if is_class and not inner.startswith(_TFDS_FEATURES):
        raise InputError(
          what,
          f'{_FEATURES_FILE} names the class {inner!r}, which is not of TFDS',
          'prepare it with features of TFDS alone: a class that a data set names is not run',
        )
      _check_classes(inner, what)
  elif isinstance(value, list):
    for inner in value:
      _check_classes(inner, what)


def _to_plain(value: Any) -> Any:
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:  # no text
      return value
  if isinstance(value, (list, tuple)) or getattr(value, 'dtype', None) == 'object':
    return [_to_plain(item) for item in value]
  return value.item() if getattr(value, 'ndim', None) == 0 else value
