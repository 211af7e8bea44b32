"""Data sets that TFDS has prepared, read as random access records: no TensorFlow, no network, nothing is prepared here.

A data set lies in `data_dir/name/version` or `data_dir/name/config/version`; `tfds.builder(...).download_and_prepare`
made it there, with file_format='array_record'.
"""

import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from minilm_jax.errors import InputError, nearest

_CHUNK = 1000  # records read at once: one by one costs three times as long


def folder(name: str, data_dir: str) -> str:
  """Where a data set lies.

  Args:
    name: as in 'glue/sst2' or 'glue/sst2:2.0.0'; without a version the newest. A lone configuration may be left out.
    data_dir: where data sets were prepared; '' is TFDS's own place.

  Raises:
    InputError: there is none of that name, or there are several.
  """
  if not data_dir:
    from tensorflow_datasets.core import constants
    data_dir = constants.DATA_DIR
  root, there = epath.Path(data_dir).expanduser(), {}
  for depth in ('*/*', '*/*/*'):
    for path in root.glob(f'{depth}/dataset_info.json'):
      *parts, version = path.parent.relative_to(root).parts
      there[f'{"/".join(parts)}:{version}'] = path.parent
  found = [key for key in there if key == name or key.startswith((f'{name}:', f'{name}/'))]
  names = {key.partition(':')[0] for key in found}
  if len(names) != 1:
    remedy = nearest(name, names or {key.partition(':')[0] for key in there})
    raise InputError(name, f'neither a file nor a data set that TFDS has prepared in {root}',
                     f'{remedy}; tfds.builder(NAME).download_and_prepare(file_format="array_record") prepares one')
  return str(there[max(found, key=lambda key: [int(part) for part in re.findall(r'\d+', key.partition(':')[2])])])


def examples(where: str, split: str) -> Iterator[dict[str, Any]]:
  """The examples of a split as plain Python values, bytes decoded where they are UTF-8.

  Args:
    where: what `folder` gave.
    split: as TFDS has it, slices included.

  Raises:
    InputError: there is no such split, or it is not stored for random access.
  """
  builder = _builder(where)
  try:
    records = builder.as_data_source(split)
  except (ValueError, NotImplementedError) as error:
    raise InputError(f'the split {split!r} of {builder.info.full_name}', ' '.join(str(error).split()),
                     f'name one of {", ".join(builder.info.splits)}, prepared with file_format=array_record') from None
  chunks = (range(start, min(start + _CHUNK, len(records))) for start in range(0, len(records), _CHUNK))
  return ({key: _plain(value) for key, value in record.items()}
          for chunk in chunks for record in records.__getitems__(chunk))


def fingerprint(where: str) -> dict[str, Any]:
  """Full name with version, and size in bytes, as TFDS recorded them."""
  info = _builder(where).info
  return {'bytes': int(info.dataset_size), 'dataset': info.full_name}


def _builder(where: str) -> Any:
  import tensorflow_datasets as tfds  # slow to import, and few corpora need it
  return tfds.builder_from_directory(where)


def _plain(value: Any) -> Any:
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:  # no text
      return value
  if isinstance(value, (list, tuple)) or getattr(value, 'dtype', None) == object:
    return [_plain(item) for item in value]
  return value.item() if getattr(value, 'ndim', None) == 0 else value
