"""Reads data sets that TFDS has prepared as random access records, without TensorFlow or network.

`tfds.builder(NAME).download_and_prepare(file_format='array_record')` prepares a data set in
`data_dir/name/version` or `data_dir/name/config/version`. Reading needs the extra [data].

TFDS imports the modules that features.json names. A data set must not run code, so modules outside
TFDS are refused before TFDS reads the file.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from minilm_jax.core import files, paths
from minilm_jax.core.errors import LIBRARY_ERRORS, InputError, require_library, suggest_name
from minilm_jax.data import readers

_DEFAULT_DATA_DIR = '~/tensorflow_datasets'
_FEATURES_FILE = 'features.json'
_MAX_METADATA_BYTES = 1 << 26  # per file
_CLASS_FIELDS = ('type', 'pythonClassName', 'python_class_name')
_TFDS_FEATURES = 'tensorflow_datasets.core.features.'
_RECORDS_PER_READ = 1000  # three times as fast as single reads
_REMEDY = 'prepare or copy the data set again'


def find_dataset(name: str, data_dir: str) -> str:
  """Returns the folder of a prepared data set.

  Args:
    name: As in 'glue/sst2' or 'glue/sst2:2.0.0'. The default is the newest version and the only
      configuration.
    data_dir: Folder of prepared data sets; '' takes TFDS_DATA_DIR or the default of TFDS.

  Raises:
    InputError: No data set or several data sets have the name.
  """
  root = epath.Path(data_dir or os.environ.get('TFDS_DATA_DIR', _DEFAULT_DATA_DIR)).expanduser()
  folders = {}
  for depth in ('*/*', '*/*/*'):
    for path in paths.list_matches(root, f'{depth}/dataset_info.json'):
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
      f'no such file, and no such data set prepared by TFDS in {root}',
      f'{remedy}; or prepare it by tfds.builder(NAME).download_and_prepare(file_format="array_record")',
    )
  return folders[max(matches, key=lambda key: [int(part) for part in re.findall(r'\d+', key[1])])]


def read_examples(
  folder: str, split: str, start: int = 0, stop: int | None = None
) -> Iterator[dict[str, Any]]:
  """Yields the examples of a split as plain Python values, with UTF-8 bytes decoded.

  Raises:
    InputError: The split is missing, damaged, or not stored for random access.
  """
  records, subject = _open_records(folder, split)
  return _read_records(records, start, len(records) if stop is None else stop, subject)


def count_examples(folder: str, split: str) -> int:
  """Returns the number of examples of a split; raises the errors of `read_examples`."""
  return len(_open_records(folder, split)[0])


def _open_records(folder: str, split: str) -> tuple[Sequence[Any], str]:
  """Returns the records of a split and its name for errors."""
  builder = _open_builder(folder)
  subject = f'the split {split!r} of {builder.info.full_name}'
  try:
    records = builder.as_data_source(split)
    len(records)
  except _get_damage_errors() as error:
    raise InputError(
      subject,
      ' '.join(str(error).split()),
      f'give one of {", ".join(builder.info.splits)}, prepared with file_format=array_record',
    ) from None
  return records, subject


def _read_records(records: Any, start: int, stop: int, subject: str) -> Iterator[dict[str, Any]]:
  for first in range(start, stop, _RECORDS_PER_READ):
    try:
      examples = [
        {key: _to_plain(value) for key, value in record.items()}
        for record in records.__getitems__(range(first, min(first + _RECORDS_PER_READ, stop)))
      ]
    except _get_damage_errors() as error:
      raise InputError(subject, f'unreadable from record {first:,} on: {error}', _REMEDY) from None
    yield from examples


def fingerprint_dataset(folder: str) -> dict[str, Any]:
  """Returns the recorded 'bytes' and 'dataset', the full name with version, of a data set."""
  info = _open_builder(folder).info
  return {'bytes': int(info.dataset_size), 'dataset': info.full_name}


def _open_builder(folder: str) -> Any:
  subject = f'the data set {folder}'
  require_library('tensorflow_datasets', 'data', subject)
  import tensorflow_datasets as tfds  # slow to import

  for path in paths.list_matches(folder, '*.json'):
    if files.read_status(path).size > _MAX_METADATA_BYTES:
      fault = f'{path.name} has more than {_MAX_METADATA_BYTES:,} bytes'
      raise InputError(subject, fault, _REMEDY)
  _check_classes(files.read_object(epath.Path(folder) / _FEATURES_FILE, subject), subject)
  try:
    return tfds.builder_from_directory(paths.LiteralPath(folder))
  except _get_damage_errors() as error:
    fault = f'TFDS reports: {" ".join(str(error).split())}'
    raise InputError(subject, fault, _REMEDY) from None


def _get_damage_errors() -> tuple[type[Exception], ...]:
  """Returns the exceptions that TFDS and its decoders raise for a damaged folder."""
  from tensorflow_datasets.core.features import feature  # re-exports protobuf

  return *LIBRARY_ERRORS, SystemError, feature.json_format.Error, feature.message.Error


def _check_classes(value: Any, subject: str) -> None:
  """Refuses features whose class is outside TFDS, because TFDS imports the module of any class."""
  # Older versions nest JSON in strings.
  if isinstance(value, str) and value.lstrip().startswith('{'):
    try:
      value = json.loads(value)
    except (ValueError, RecursionError):
      return
  if isinstance(value, dict):
    for name, inner in value.items():
      is_class = name in _CLASS_FIELDS and isinstance(inner, str) and '.' in inner
      if is_class and not inner.startswith(_TFDS_FEATURES):
        raise InputError(
          subject,
          f'{_FEATURES_FILE} names the class {inner!r} outside TFDS',
          'prepare the data set with features of TFDS alone',
        )
      _check_classes(inner, subject)
  elif isinstance(value, list):
    for inner in value:
      _check_classes(inner, subject)


def _to_plain(value: Any) -> Any:
  if isinstance(value, bytes):
    return readers.decode_bytes(value)
  if isinstance(value, (list, tuple)) or getattr(value, 'dtype', None) == 'object':
    return [_to_plain(item) for item in value]
  return value.item() if getattr(value, 'ndim', None) == 0 else value
