"""Digests: every file that is not as it was is named, and nothing else is."""

import json
import pathlib
from collections.abc import Callable

import pytest

from minilm_jax import run
from minilm_jax.training import checkpoint


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
  """A folder like that of a checkpoint."""
  folder = tmp_path / '8'
  (folder / 'default' / 'd').mkdir(parents=True)
  (folder / 'METADATA').write_text('{}')
  (folder / 'default' / 'd' / 'numbers').write_bytes(bytes(range(256)))
  checkpoint.write_checksums(folder)
  return folder


def test_what_is_as_it_was_is_whole(saved: pathlib.Path):
  assert checkpoint.has_checksums(saved) and checkpoint.find_damage(saved) == ''
  found = json.loads((saved / checkpoint.CHECKSUMS).read_text())['files']
  assert sorted(found) == ['METADATA', 'default/d/numbers']
  assert found['default/d/numbers'] == {'bytes': 256, 'sha256': run.sha256(saved / 'default/d/numbers')}
  before = (saved / checkpoint.CHECKSUMS).read_bytes()
  checkpoint.write_checksums(saved)
  assert (saved / checkpoint.CHECKSUMS).read_bytes() == before  # which does not count itself


@pytest.mark.parametrize('change, said', [
    (lambda file: file.unlink(), 'default/d/numbers is missing'),
    (lambda file: file.write_bytes(b''), 'default/d/numbers has 0 bytes, and had 256'),
    (lambda file: file.write_bytes(file.read_bytes()[:-1]), 'has 255 bytes'),
    (lambda file: file.write_bytes(file.read_bytes() + b'x'), 'has 257 bytes'),
    (lambda file: file.write_bytes(b'\x01' + file.read_bytes()[1:]), 'default/d/numbers has other bytes'),
])
def test_what_is_not_is_named(change: Callable[[pathlib.Path], None], said: str, saved: pathlib.Path):
  change(saved / 'default' / 'd' / 'numbers')
  assert said in checkpoint.find_damage(saved)


def test_every_flipped_bit_is_seen(saved: pathlib.Path):
  file = saved / 'default' / 'd' / 'numbers'
  data = file.read_bytes()
  for place in range(0, 8 * len(data), 61):
    flipped = bytearray(data)
    flipped[place // 8] ^= 1 << place % 8
    file.write_bytes(flipped)
    assert checkpoint.find_damage(saved)
  file.write_bytes(data)
  assert not checkpoint.find_damage(saved)


def test_without_digests_nothing_is_known(saved: pathlib.Path):
  (saved / checkpoint.CHECKSUMS).rename(saved / f'.{checkpoint.CHECKSUMS}.partial')  # as a process that was killed leaves it
  (saved / 'METADATA').unlink()
  assert not checkpoint.has_checksums(saved) and checkpoint.find_damage(saved) == ''
  checkpoint.write_checksums(saved)
  assert list(json.loads((saved / checkpoint.CHECKSUMS).read_text())['files']) == ['default/d/numbers']


@pytest.mark.parametrize('text', ['', '{', '[]', '{"files": []}', '{"files": {"a": 1}}', '{"files": {"a": {}}}', '\x00'])
def test_digests_that_cannot_be_read_are_damage(text: str, saved: pathlib.Path):
  (saved / checkpoint.CHECKSUMS).write_text(text)
  assert 'digests.json cannot be read' in checkpoint.find_damage(saved)


def test_nothing_outside_the_folder_is_looked_at(saved: pathlib.Path):
  (saved.parent / 'secret').write_bytes(b'x')
  one = {'bytes': 1, 'sha256': run.sha256(saved.parent / 'secret')}
  (saved / checkpoint.CHECKSUMS).write_text(json.dumps({'files': {'../secret': one}}))
  assert checkpoint.find_damage(saved) == '../secret is missing'
