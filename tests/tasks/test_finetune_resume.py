"""What members have reached comes back as it was, or not at all."""

import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax.core import files, signals
from minilm_jax.tasks import finetune_resume
from minilm_jax.tasks.finetune_results import EpochResult, MemberSpec
from minilm_jax.tasks.finetune_step import MemberState
from minilm_jax.training.train_step import TrainState

ENTRIES = [MemberSpec(member, None, seed, 1e-3) for member, seed in ((3, 0), (4, 1))]


def member(value: float) -> MemberState:
  """Two models of one vector."""
  weights = {'kernel': jnp.full((2, 3), value)}
  return MemberState(
    TrainState(jnp.zeros(2, jnp.int32), jnp.arange(2, dtype=jnp.uint32), weights, weights),
    jnp.ones(2),
  )


@pytest.fixture
def reached(tmp_path: pathlib.Path) -> finetune_resume.FinetuneState:
  """Of which the first member has a score and its model, and the second none."""
  found = finetune_resume.init_state(member(0.25), 2)
  found.step, found.totals, found.best = 7, np.array([1.5, 2.5]), [1.0, 0.0]
  found.kept[0]['last'] = EpochResult(
    1.0,
    float('nan'),
    {'validation': np.eye(2, dtype=np.float32)},
    {'kernel': np.arange(3, dtype=np.float32)},
  )
  found.going = {1}
  finetune_resume.save_state(tmp_path, ENTRIES, found)
  return found


def test_everything_comes_back(reached: finetune_resume.FinetuneState, tmp_path: pathlib.Path):
  found = finetune_resume.load_state(tmp_path, ENTRIES, member(0))
  assert found.step == finetune_resume.state_step(tmp_path, ENTRIES) == 7
  assert (found.best, found.going, found.totals.tolist()) == ([1.0, 0.0], {1}, [1.5, 2.5])
  jax.tree.map(np.testing.assert_array_equal, found.member, reached.member)
  ((which, one),) = found.kept[0].items()
  assert which == 'last' and one.epoch == 1 and np.isnan(one.selection) and found.kept[1] == {}
  np.testing.assert_array_equal(one.outputs['validation'], np.eye(2))
  np.testing.assert_array_equal(one.model['kernel'], np.arange(3))


@pytest.mark.parametrize('entries', [ENTRIES[:1], ENTRIES[::-1], []])
def test_of_other_members_it_is_no_use(
  reached: finetune_resume.FinetuneState, tmp_path: pathlib.Path, entries: list
):
  assert (
    finetune_resume.load_state(tmp_path, entries, member(0)) is None
    and finetune_resume.state_step(tmp_path, entries) == 0
  )


def test_nor_is_it_damaged(reached: finetune_resume.FinetuneState, tmp_path: pathlib.Path):
  """Cut short anywhere, or with a byte changed in what it holds."""
  data = (tmp_path / finetune_resume.STATE_FILE).read_bytes()
  inside = data.index(np.full((2, 3), 0.25, np.float32).tobytes())
  broken = [data[:cut] for cut in (0, 1, 100, len(data) // 2, len(data) - 1)]
  for one in [*broken, data[:inside] + b'\xff' + data[inside + 1 :]]:
    (tmp_path / finetune_resume.STATE_FILE).write_bytes(one)
    assert (
      finetune_resume.load_state(tmp_path, ENTRIES, member(0)) is None
      and finetune_resume.state_step(tmp_path, ENTRIES) == 0
    )


def test_pickles_are_not_read(tmp_path: pathlib.Path):
  np.savez(tmp_path / 'hostile.npz', said=np.array([object()], dtype=object))
  files.write_bytes(tmp_path / finetune_resume.STATE_FILE, (tmp_path / 'hostile.npz').read_bytes())
  assert finetune_resume.state_step(tmp_path, ENTRIES) == 0


def test_after_a_signal_it_is_saved_at_once(
  reached: finetune_resume.FinetuneState, tmp_path: pathlib.Path
):
  finetune_resume.remove_state(tmp_path)
  flag = signals.SignalFlag()
  keep = finetune_resume.make_saver(tmp_path, ENTRIES, reached, flag)
  keep()
  assert finetune_resume.state_step(tmp_path, ENTRIES) == 0  # the last save is a moment ago
  flag.number = signal.SIGTERM
  said = 'stopped by SIGTERM after 7 updates of the members in training; saved'
  with pytest.raises(signals.Interrupted, match=said) as found:
    keep()
  assert found.value.status == 143 and finetune_resume.state_step(tmp_path, ENTRIES) == 7


def test_when_all_is_said_it_goes(reached: finetune_resume.FinetuneState, tmp_path: pathlib.Path):
  finetune_resume.remove_state(tmp_path)
  finetune_resume.remove_state(tmp_path)
  assert not (tmp_path / finetune_resume.STATE_FILE).exists()
