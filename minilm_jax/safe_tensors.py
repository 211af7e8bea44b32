"""Arrays of a .safetensors file, which may be anybody's.

    8 bytes: the length of the header; the header, JSON: {name: {dtype, shape, data_offsets}}; the bytes of all arrays

Nothing is taken on trust: the header is bounded, and every array must have as many bytes as its shape and type say,
beginning where the one before it ends, from the first byte to the last. So no more is ever in memory than the file
holds. Left out: writing, and models that are cut into several files.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from minilm_jax import run, shape, untrusted
from minilm_jax.errors import InputError
from minilm_jax.shape import COUNT, TEXT

LARGEST = 2 << 30  # bytes of a file: RoBERTa-large in float32 has 1.4e9
_LENGTH, _AXES = 8, 8  # bytes of the header's length, axes of an array
_METADATA = '__metadata__'
_ENTRY = {'dtype': TEXT, 'shape': [COUNT], 'data_offsets': [COUNT]}
_TYPES = {'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': jnp.bfloat16, 'I64': np.int64,
          'I32': np.int32, 'I16': np.int16, 'I8': np.int8, 'U8': np.uint8, 'BOOL': np.bool_}
_REMEDY = 'download or save it again'


def load(path: epath.PathLike) -> dict[str, np.ndarray]:
  """Every array of a file by name, in the type that it has there.

  Raises:
    InputError: no such file, one that is too large, or no whole .safetensors file; says what is wrong with it.
  """
  path, what = epath.Path(path), f'the weights {path}'
  try:
    size = path.stat().length
    if size > LARGEST:
      raise InputError(what, f'{size:,} bytes', f'give an encoder of at most {LARGEST:,}')
    with path.open('rb') as file:
      header, begin = _header(file, size)
      found = {}
      for name, kind, dimensions, first, end in _entries(header, size - begin):
        file.seek(begin + first)
        found[name] = np.frombuffer(file.read(end - first), kind).reshape(dimensions)
      return found
  except OSError as error:
    raise InputError(what, f'it cannot be read: {error}', 'check the path') from None
  except ValueError as error:
    raise InputError(what, f'no whole .safetensors file: {error}', _REMEDY) from None


def _header(file: Any, size: int) -> tuple[dict[str, Any], int]:
  """The header and where it ends; ValueError where there is none."""
  start = file.read(_LENGTH)
  length = int.from_bytes(start, 'little')
  most = min(untrusted.LARGEST, size - _LENGTH)
  if len(start) < _LENGTH or length > most:
    raise ValueError(f'a header of {length:,} bytes in a file of {size:,}')
  header = run.parsed(file.read(length))
  if not isinstance(header, dict):
    raise ValueError('a header that is no object')
  header.pop(_METADATA, None)
  return header, _LENGTH + length


def _entries(header: dict[str, Any], size: int) -> list[tuple[str, Any, list[int], int, int]]:
  """Name, type, shape and place of every array, checked against the size of all; ValueError where they do not fit."""
  if fault := next((found for name, one in header.items() if (found := shape.fault(one, _ENTRY, name))), ''):
    raise ValueError(fault)
  place, found = 0, []
  for name, one in sorted(header.items(), key=lambda item: item[1]['data_offsets']):
    if one['dtype'] not in _TYPES:
      raise ValueError(f'{name} has the type {one["dtype"]!r}, not one of {", ".join(_TYPES)}')
    kind, offsets = np.dtype(_TYPES[one['dtype']]), one['data_offsets']
    if len(one['shape']) > _AXES:
      raise ValueError(f'{name} has {len(one["shape"])} axes')
    needed = math.prod(one['shape']) * kind.itemsize
    if len(offsets) != 2 or offsets[0] != place or offsets[1] - offsets[0] != needed:
      raise ValueError(f'{name} of {needed:,} bytes has the place {offsets}, and the array before it ends at {place}')
    place = offsets[1]
    found.append((name, kind, one['shape'], *offsets))
  if place != size:
    raise ValueError(f'arrays of {place:,} bytes, and there are {size:,}')
  return found
