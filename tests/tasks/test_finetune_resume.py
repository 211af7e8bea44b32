"""Tests the state file: it is loaded bit for bit, or ignored if damaged or of other members."""

import os
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax.core import files, signals
from minilm_jax.core.errors import InputError
from minilm_jax.tasks import finetune_resume
from minilm_jax.tasks.finetune_results import EpochResult, MemberSpec
from minilm_jax.tasks.finetune_resume import FinetuneState
from minilm_jax.tasks.finetune_step import MemberState
from minilm_jax.training.train_step import TrainState

SPECS = [MemberSpec(member, None, seed, 1e-3) for member, seed in ((3, 0), (4, 1))]


def make_members(value: float) -> MemberState:
  """Returns two members with a single kernel each."""
  weights = {'kernel': jnp.full((2, 3), value)}
  return MemberState(
    TrainState(jnp.zeros(2, jnp.int32), jnp.arange(2, dtype=jnp.uint32), weights, weights),
    jnp.ones(2),
  )


@pytest.fixture
def state(tmp_path: pathlib.Path) -> FinetuneState:
  """Saves a state in which only the first member has a result and a model."""
  state = finetune_resume.start_group(SPECS, make_members(0.25))
  state.step, state.loss_sums = 7, np.array([1.5, 2.5])
  outputs, kernel = np.eye(2, dtype=np.float32), np.arange(3, dtype=np.float32)
  state.results[0]['last'] = EpochResult(
    1.0, float('nan'), {'validation': outputs}, {'kernel': kernel}
  )
  state.active = {1}
  finetune_resume.save_state(tmp_path, state)
  return state


def test_a_loaded_state_equals_the_saved_state(state: FinetuneState, tmp_path: pathlib.Path):
  loaded = finetune_resume.load_state(tmp_path, SPECS, make_members(0))
  assert loaded.step == finetune_resume.read_state_step(tmp_path, SPECS) == 7
  assert loaded.active == {1}
  assert loaded.loss_sums.tolist() == [1.5, 2.5]
  jax.tree.map(np.testing.assert_array_equal, loaded.members, state.members)
  ((epoch_choice, result),) = loaded.results[0].items()
  assert epoch_choice == 'last' and result.epoch == 1 and np.isnan(result.validation_score)
  assert loaded.results[1] == {}
  np.testing.assert_array_equal(result.outputs['validation'], np.eye(2))
  np.testing.assert_array_equal(result.model['kernel'], np.arange(3))


@pytest.mark.parametrize('size', [1, 2, 4])
def test_a_group_filled_for_other_devices_resumes(size: int, tmp_path: pathlib.Path):
  """One member was saved in a group of two, and resumes in a group of `size`."""
  specs = SPECS[:1]
  saved = finetune_resume.start_group(specs, make_members(0.25))
  saved.loss_sums = np.array([1.5, 2.5])
  finetune_resume.save_state(tmp_path, saved)
  start = jax.tree.map(lambda x: jnp.stack([x[0]] * size), make_members(0))
  loaded = finetune_resume.load_state(tmp_path, specs, start)
  assert loaded.loss_sums.tolist() == [1.5] * size
  assert loaded.members.state.model['kernel'].tolist() == [[0.25] * 3] * size


def test_a_state_of_other_shapes_is_refused(state: FinetuneState, tmp_path: pathlib.Path):
  """An earlier version may have encoded the examples with other pieces."""
  wider = jax.tree.map(lambda x: jnp.concatenate([x, x], -1) if x.ndim == 2 else x, state.members)
  with pytest.raises(InputError, match='--workdir'):
    finetune_resume.load_state(tmp_path, SPECS, wider)


def is_absent(folder: pathlib.Path, specs: list[MemberSpec] = SPECS) -> bool:
  loaded = finetune_resume.load_state(folder, specs, make_members(0))
  return loaded is None and finetune_resume.read_state_step(folder, specs) == 0


@pytest.mark.parametrize('specs', [SPECS[:1], SPECS[::-1], []])
def test_a_state_of_other_members_is_ignored(
  state: FinetuneState, tmp_path: pathlib.Path, specs: list
):
  assert is_absent(tmp_path, specs)


def test_a_damaged_state_is_ignored(state: FinetuneState, tmp_path: pathlib.Path):
  data = (tmp_path / finetune_resume.STATE_FILE).read_bytes()
  inside = data.index(np.full((2, 3), 0.25, np.float32).tobytes())
  broken = [data[:cut] for cut in (0, 1, 100, len(data) // 2, len(data) - 1)]
  for damaged in [*broken, data[:inside] + b'\xff' + data[inside + 1 :]]:
    (tmp_path / finetune_resume.STATE_FILE).write_bytes(damaged)
    assert is_absent(tmp_path)


def test_pickles_are_ignored(tmp_path: pathlib.Path):
  np.savez(tmp_path / 'hostile.npz', said=np.array([object()], dtype=object))
  files.write_bytes(tmp_path / finetune_resume.STATE_FILE, (tmp_path / 'hostile.npz').read_bytes())
  assert finetune_resume.read_state_step(tmp_path, SPECS) == 0


def test_a_signal_saves_the_state_at_once(state: FinetuneState, tmp_path: pathlib.Path):
  finetune_resume.remove_state(tmp_path)
  flag = signals.SignalFlag()
  maybe_save = finetune_resume.make_saver(tmp_path, state, flag)
  maybe_save()
  assert finetune_resume.read_state_step(tmp_path, SPECS) == 0  # no save is due
  flag.number = signal.SIGTERM
  with pytest.raises(signals.Interrupted, match='SIGTERM after 7 updates') as error:
    maybe_save()
  assert error.value.status == 143 and finetune_resume.read_state_step(tmp_path, SPECS) == 7


def test_a_notice_of_slurm_saves_the_state(
  state: FinetuneState,
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
  capsys: pytest.CaptureFixture,
):
  monkeypatch.setenv('SLURM_JOB_ID', '7')
  with signals.note_signals() as flag:
    maybe_save = finetune_resume.make_saver(tmp_path, state, flag)
    os.kill(os.getpid(), signal.SIGUSR1)
    maybe_save()
  assert finetune_resume.read_state_step(tmp_path, SPECS) == 7
  assert 'SIGUSR1; the run continues' in capsys.readouterr().err


def test_a_missing_state_can_be_removed(state: FinetuneState, tmp_path: pathlib.Path):
  finetune_resume.remove_state(tmp_path)
  finetune_resume.remove_state(tmp_path)
  assert not (tmp_path / finetune_resume.STATE_FILE).exists()
