"""A .safetensors file is read as it was written, and one that was not written so is refused."""

import json
import pathlib
import re
import struct
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax import safe_tensors
from minilm_jax.errors import InputError
from tests import hugging

ARRAYS = {'b': np.arange(6, dtype=np.float32).reshape(2, 3), 'a': np.ones((4,), np.float32),
          'none': np.zeros((0, 2), np.float32), 'number': np.float32(7).reshape(())}


def test_arrays_come_back(tmp_path: pathlib.Path):
  (tmp_path / 'x').write_bytes(hugging.tensors(ARRAYS))
  found = safe_tensors.load(tmp_path / 'x')
  assert found.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(found[name], array)
    assert found[name].shape == array.shape and found[name].dtype == np.float32


def test_what_their_library_writes_is_read(tmp_path: pathlib.Path):
  theirs = pytest.importorskip('safetensors.numpy', reason='needs safetensors, which is of the extra [hf]')
  kinds = ('float32', 'float16', 'float64', 'int64', 'bool')
  arrays = {kind: np.arange(6).reshape(2, 3).astype(kind) for kind in kinds}
  theirs.save_file(arrays, tmp_path / 'x', metadata={'format': 'np'})
  for name, array in safe_tensors.load(tmp_path / 'x').items():
    np.testing.assert_array_equal(array, arrays[name])
    assert array.dtype == arrays[name].dtype


def test_bfloat16_is_read(tmp_path: pathlib.Path):
  text = json.dumps({'x': {'dtype': 'BF16', 'shape': [2], 'data_offsets': [0, 4]}}).encode()
  data = np.array([1.5, -2], jnp.bfloat16).tobytes()
  (tmp_path / 'x').write_bytes(struct.pack('<Q', len(text)) + text + data)
  assert safe_tensors.load(tmp_path / 'x')['x'].tolist() == [1.5, -2]


def entry(first: int, end: int, shape: Any = (4,), kind: Any = 'F32') -> dict[str, Any]:
  return {'dtype': kind, 'shape': list(shape), 'data_offsets': [first, end]}


WHOLE = hugging.tensors({'a': np.ones(4), 'b': np.zeros(4)})


def changed(**header: Any) -> bytes:
  return hugging.tensors({'a': np.ones(4), 'b': np.zeros(4)}, **header)


@pytest.mark.parametrize('data, said', [
    (b'', 'a header of 0 bytes'), (WHOLE[:7], 'a header of'), (WHOLE[:40], 'a header of'), (WHOLE[:-1], 'there are 31'),
    (WHOLE + b'x', 'there are 33'), (struct.pack('<Q', 2**63) + WHOLE[8:], 'a header of 9,223'),
    (struct.pack('<Q', 2) + b'[]', 'no object'), (struct.pack('<Q', 4) + b'{"a"', 'Expecting'),
    (struct.pack('<Q', 9) + b'{"a": NaN', 'NaN'), (struct.pack('<Q', 3) + b'{\xff}', 'utf-8'),
    (changed(b=entry(0, 16)), 'ends at 16'), (changed(b=entry(8, 24)), 'ends at 16'),
    (changed(b=entry(16, 32, (5,))), 'of 20 bytes'), (changed(b=entry(16, 32, (2**62, 2**62))), 'of 85,'),
    (changed(b=entry(16, 16, (0,))), 'arrays of 16 bytes'), (changed(b=entry(20, 32, (3,))), 'ends at 16'),
    (changed(b=entry(16, 32, (4,), 'F8_E4M3')), "type 'F8_E4M3'"), (changed(b=entry(16, 32, [1] * 9)), '9 axes'),
    (changed(b=entry(16, 32, (-4,))), 'not a whole number'), (changed(b=7), 'not an object'),
    (changed(b={'dtype': 'F32', 'shape': [4]}), 'no data_offsets'), (changed(b=entry(16, 32, (True,))), 'whole number'),
    (changed(b={'dtype': 'F32', 'shape': [4], 'data_offsets': [16]}), 'ends at 16')])
def test_what_is_no_whole_file_is_refused(data: bytes, said: str, tmp_path: pathlib.Path):
  (tmp_path / 'x').write_bytes(data)
  with pytest.raises(InputError, match=f'no whole .safetensors file: .*{re.escape(said)}'):
    safe_tensors.load(tmp_path / 'x')


def test_what_is_no_file_or_too_large_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
  with pytest.raises(InputError, match='cannot be read'):
    safe_tensors.load(tmp_path / 'x')
  (tmp_path / 'x').write_bytes(WHOLE)
  monkeypatch.setattr(safe_tensors, 'LARGEST', len(WHOLE) - 1)
  with pytest.raises(InputError, match='give an encoder of at most'):
    safe_tensors.load(tmp_path / 'x')
