"""Where a run goes on: at its newest checkpoint that is whole; what is damaged is named, set aside
and kept.
"""

import pathlib
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax.core import files
from minilm_jax.core.errors import InputError
from minilm_jax.training import checkpoint, recovery

LIKE = {'kernel': jnp.zeros((40, 5)), 'step': jnp.int32(0)}


def state(step: int) -> dict[str, Any]:
  return {'kernel': jnp.arange(200.0).reshape(40, 5) + step, 'step': jnp.int32(step)}


@pytest.fixture(scope='module')
def three(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A run with checkpoints of steps 4, 8 and 12."""
  folder = tmp_path_factory.mktemp('three')
  with checkpoint.open_writer(folder, 3) as writer:
    for step in (4, 8, 12):
      writer.save(state(step), step)
  return folder


@pytest.fixture
def workdir(three: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(three, tmp_path / 'run'))


def folder_of(workdir: pathlib.Path, step: int) -> pathlib.Path:
  return pathlib.Path(checkpoint.step_folder(workdir, step))


def arrays(workdir: pathlib.Path, step: int) -> pathlib.Path:
  """The file that the numbers of a checkpoint are in: the largest."""
  return max(folder_of(workdir, step).glob('default/d/*'), key=lambda path: path.stat().st_size)


def flip(file: pathlib.Path) -> None:
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def goes_on_at(workdir: pathlib.Path, step: int | None) -> None:
  found, restored = recovery.restore_latest(workdir, LIKE)
  assert found == step
  if step is not None:
    for name, leaf in state(step).items():
      np.testing.assert_array_equal(restored[name], leaf)


def test_every_save_has_digests_and_the_last_one_is_used(workdir: pathlib.Path, capsys):
  assert all(checkpoint.has_checksums(folder_of(workdir, step)) for step in (4, 8, 12))
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
  goes_on_at(workdir, 12)
  assert {path: path.stat().st_mtime_ns for path in workdir.rglob('*')} == before
  assert not capsys.readouterr().err


def test_damaged_ones_are_named_set_aside_and_passed_over(workdir: pathlib.Path, capsys):
  flipped = arrays(workdir, 12)
  flip(flipped)
  (folder_of(workdir, 8) / 'default' / 'manifest.ocdbt').unlink()
  goes_on_at(workdir, 4)
  first, second = capsys.readouterr().err.splitlines()
  assert f'update 12 in {workdir}' in first and f'default/d/{flipped.name}' in first
  assert '12.corrupt' in first
  assert 'update 8 in' in second and 'default/manifest.ocdbt' in second and '8.corrupt' in second
  assert checkpoint.list_steps(workdir) == [4]
  assert (folder_of(workdir, 12).with_name('12.corrupt') / 'default' / 'd' / flipped.name).exists()
  with checkpoint.open_writer(workdir, 3) as writer:  # nor does Orbax know of them
    assert list(writer.manager.all_steps()) == [4]
    writer.save(state(12), 12)
  goes_on_at(workdir, 12)
  flip(arrays(workdir, 12))
  goes_on_at(workdir, 4)  # and once more, in place of the one before
  assert sorted(path.name for path in folder_of(workdir, 4).parent.iterdir()) == [
    '12.corrupt',
    '4',
    '8.corrupt',
  ]


def test_where_none_is_left_training_begins_anew(workdir: pathlib.Path, capsys):
  for step in (4, 8, 12):
    flip(arrays(workdir, step))
  goes_on_at(workdir, None)
  assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_checkpoint_without_digests_is_used_if_it_can_be_read(workdir: pathlib.Path, capsys):
  """Its process was killed before it could write them, or is of an earlier version."""
  (folder_of(workdir, 12) / checkpoint.CHECKSUMS).unlink()
  goes_on_at(workdir, 12)
  assert not capsys.readouterr().err and checkpoint.has_checksums(folder_of(workdir, 12))
  (folder_of(workdir, 12) / checkpoint.CHECKSUMS).unlink()
  arrays(workdir, 12).write_bytes(b'')
  goes_on_at(workdir, 8)
  assert 'update 12' in capsys.readouterr().err


def test_what_is_whole_and_does_not_fit_is_not_set_aside(workdir: pathlib.Path, monkeypatch):
  with pytest.raises(InputError, match='kernel is .*there and'):
    recovery.restore_latest(workdir, {**LIKE, 'kernel': jnp.zeros(3)})
  monkeypatch.setattr(checkpoint, '_metadata', lambda *_: {}['a library that has changed'])
  with pytest.raises(InputError, match='orbax-checkpoint'):
    recovery.restore_latest(workdir, LIKE)
  assert checkpoint.list_steps(workdir) == [4, 8, 12]


def test_a_disk_that_cannot_be_read_is_no_damage(workdir: pathlib.Path, monkeypatch):
  def lost(*_: Any) -> None:
    raise OSError(116, 'Stale file handle')

  monkeypatch.setattr(files, 'hash_file', lost)
  with pytest.raises(OSError, match='Stale'):
    recovery.restore_latest(workdir, LIKE)
  assert checkpoint.list_steps(workdir) == [4, 8, 12]


@pytest.mark.parametrize(
  'read',
  [
    lambda workdir: checkpoint.restore_part(workdir, {}, 'nothing'),
    lambda workdir: checkpoint.verify(workdir, 12),
  ],
)
def test_who_only_reads_is_told_and_changes_nothing(read: Any, workdir: pathlib.Path):
  flip(arrays(workdir, 12))
  (folder_of(workdir, 8) / checkpoint.CHECKSUMS).write_text('{')
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
  with pytest.raises(checkpoint.CorruptCheckpointError, match='default/d/') as refused:
    read(workdir)
  assert (
    'the checkpoint of step 12' in refused.value.asked and f'{workdir}@4' in refused.value.remedy
  )
  assert {path: path.stat().st_mtime_ns for path in workdir.rglob('*')} == before
  for step in (4, 8):
    shutil.rmtree(folder_of(workdir, step))
  with pytest.raises(checkpoint.CorruptCheckpointError):
    read(workdir)
