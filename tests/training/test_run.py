"""A run resumes from its newest intact checkpoint; corrupt checkpoints are renamed and stay."""

import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax.core import files
from minilm_jax.core.errors import InputError
from minilm_jax.training import checkpoint, run
from tests.run_files import read_times

LIKE = {'kernel': jnp.zeros((40, 5)), 'step': jnp.int32(0)}


def state(step: int) -> dict[str, Any]:
  return {'kernel': jnp.arange(200.0).reshape(40, 5) + step, 'step': jnp.int32(step)}


@pytest.fixture(scope='module')
def saved_run(tmp_path_factory) -> pathlib.Path:
  """A run with checkpoints of steps 4, 8 and 12."""
  folder = tmp_path_factory.mktemp('saved')
  with checkpoint.open_writer(folder, 3) as writer:
    for step in (4, 8, 12):
      writer.save(state(step), step)
  return folder


@pytest.fixture
def workdir(saved_run, tmp_path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(saved_run, tmp_path / 'run'))


def folder_of(workdir: pathlib.Path, step: int) -> pathlib.Path:
  return pathlib.Path(checkpoint.step_folder(workdir, step))


def array_file(workdir: pathlib.Path, step: int) -> pathlib.Path:
  """Returns the file with the arrays of a checkpoint, which is the largest."""
  return max(folder_of(workdir, step).glob('default/d/*'), key=lambda path: path.stat().st_size)


def flip_bit(file: pathlib.Path) -> None:
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def check_resumes_from(workdir: pathlib.Path, step: int | None) -> None:
  restored_step, restored = run.restore_latest(workdir, LIKE)
  assert restored_step == step
  if step is not None:
    for name, leaf in state(step).items():
      np.testing.assert_array_equal(restored[name], leaf)


def test_every_save_has_checksums_and_the_last_is_used(workdir, capsys):
  assert all(checkpoint.has_checksums(folder_of(workdir, step)) for step in (4, 8, 12))
  before = read_times(workdir)
  check_resumes_from(workdir, 12)
  assert read_times(workdir) == before
  assert not capsys.readouterr().err


def test_corrupt_checkpoints_are_named_and_renamed(workdir, capsys):
  flipped = array_file(workdir, 12)
  flip_bit(flipped)
  (folder_of(workdir, 8) / 'default' / 'manifest.ocdbt').unlink()
  check_resumes_from(workdir, 4)
  first, second = capsys.readouterr().err.splitlines()
  assert f'update 12 in {workdir}' in first and f'default/d/{flipped.name}' in first
  assert '12.corrupt' in first
  assert 'update 8 in' in second and 'default/manifest.ocdbt' in second and '8.corrupt' in second
  assert checkpoint.list_steps(workdir) == [4]
  assert (folder_of(workdir, 12).with_name('12.corrupt') / 'default' / 'd' / flipped.name).exists()
  with checkpoint.open_writer(workdir, 3) as writer:  # Orbax ignores renamed checkpoints
    assert list(writer.manager.all_steps()) == [4]
    writer.save(state(12), 12)
  check_resumes_from(workdir, 12)
  flip_bit(array_file(workdir, 12))
  check_resumes_from(workdir, 4)  # replaces the earlier 12.corrupt
  assert sorted(path.name for path in folder_of(workdir, 4).parent.iterdir()) == [
    '12.corrupt',
    '4',
    '8.corrupt',
  ]


def test_without_an_intact_checkpoint_training_starts_again(workdir, capsys):
  for step in (4, 8, 12):
    flip_bit(array_file(workdir, step))
  check_resumes_from(workdir, None)
  assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_checkpoint_without_checksums_is_used_if_readable(workdir, capsys):
  """A killed process or an earlier version saved the checkpoint."""
  (folder_of(workdir, 12) / checkpoint.CHECKSUMS).unlink()
  check_resumes_from(workdir, 12)
  assert not capsys.readouterr().err and checkpoint.has_checksums(folder_of(workdir, 12))
  (folder_of(workdir, 12) / checkpoint.CHECKSUMS).unlink()
  array_file(workdir, 12).write_bytes(b'')
  check_resumes_from(workdir, 8)
  assert 'update 12' in capsys.readouterr().err


@pytest.mark.parametrize(
  'damage',
  [
    lambda workdir: array_file(workdir, 12).write_bytes(b''),
    lambda workdir: array_file(workdir, 12).unlink(),
    lambda workdir: (folder_of(workdir, 12) / 'default' / '_METADATA').write_text('[]'),
  ],
  ids=['empty', 'missing', 'metadata'],
)
def test_an_unreadable_checkpoint_without_checksums_is_renamed(damage: Any, workdir):
  (folder_of(workdir, 12) / checkpoint.CHECKSUMS).unlink()
  damage(workdir)
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[1])
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), LIKE)
  assert run.restore_latest(workdir, like)[0] == 8
  assert folder_of(workdir, 12).with_name('12.corrupt').exists()


def test_an_intact_checkpoint_that_does_not_fit_is_not_renamed(workdir, monkeypatch):
  with pytest.raises(InputError, match=r'kernel .*\(40, 5\).*\(3,\)'):
    run.restore_latest(workdir, {**LIKE, 'kernel': jnp.zeros(3)})
  reader = checkpoint.ocp.PyTreeCheckpointer
  monkeypatch.setattr(reader, 'metadata', lambda *_: {}['a key of another version'])
  with pytest.raises(InputError, match='orbax-checkpoint'):
    run.restore_latest(workdir, LIKE)
  assert checkpoint.list_steps(workdir) == [4, 8, 12]


def test_an_unreadable_disk_is_no_damage(workdir, monkeypatch):
  def fail(*_: Any) -> None:
    raise OSError(116, 'Stale file handle')

  monkeypatch.setattr(files, 'hash_file', fail)
  with pytest.raises(OSError, match='Stale'):
    run.restore_latest(workdir, LIKE)
  assert checkpoint.list_steps(workdir) == [4, 8, 12]


@pytest.mark.parametrize(
  'read',
  [
    lambda workdir: checkpoint.restore_part(workdir, {}, 'nothing'),
    lambda workdir: checkpoint.verify(workdir, 12),
  ],
)
def test_a_reader_refuses_a_corrupt_checkpoint_and_changes_nothing(read: Any, workdir):
  flip_bit(array_file(workdir, 12))
  (folder_of(workdir, 8) / checkpoint.CHECKSUMS).write_text('{')
  before = read_times(workdir)
  with pytest.raises(checkpoint.CorruptCheckpointError, match='default/d/') as error:
    read(workdir)
  assert f'12 in {workdir}' in error.value.asked and f'{workdir}@4' in error.value.remedy
  assert read_times(workdir) == before
  for step in (4, 8):
    shutil.rmtree(folder_of(workdir, step))
  with pytest.raises(checkpoint.CorruptCheckpointError):
    read(workdir)
