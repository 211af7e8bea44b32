"""Updates that are not finite: found, undone, told by name, and treated as the recipe says."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax import run
from minilm_jax.errors import InputError
from minilm_jax.training import batches, checkpoint, pretrain, program, train_step
from minilm_jax.training.checkpoint import flatten
from tests.tiny_config import UPDATES, run_config


@pytest.fixture(scope='module', autouse=True)
def quickly() -> Any:
  """Compiled with little optimisation: that takes nothing from what is tested."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.mark.parametrize('loss, gradient, expected', [
    (1.0, (1.0, 2.0), (-1, 0)), (np.nan, (np.nan, np.nan), (7, 0)), (1.0, (1.0, np.inf), (7, 2)),
    (1.0, (np.nan, 1.0), (7, 1)), (np.inf, (1.0, 1.0), (7, 0))])
def test_the_first_tensor_that_is_not_finite(loss: float, gradient: tuple[float, float], expected: tuple[int, int]):
  found = fault.find(jnp.float32(loss), [jnp.full((2, 3), g) for g in gradient], jnp.int32(7))
  assert (int(found.step), int(found.tensor)) == expected


def test_the_earlier_of_two_is_kept():
  early, late = fault.Fault(jnp.int32(3), jnp.int32(1)), fault.Fault(jnp.int32(5), jnp.int32(2))
  for old, new, expected in ((early, late, 3), (fault.none(), late, 5), (early, fault.none(), 3)):
    assert int(fault.first(old, new).step) == expected


def test_a_tensor_has_a_name():
  model = {'first': np.ones(2), 'second': np.ones(3)}
  assert fault.tensor(0, model) == 'the loss' and fault.tensor(2, model) == 'the gradient of second'
  assert fault.tensor(0, model | {'second': np.array([np.nan])}) == 'the parameter second'


def breaking(patch: pytest.MonkeyPatch, at: tuple[int, ...], seed: int = 0) -> None:
  """From now on the gradient of the member with this seed is not finite at some updates."""
  original, sums = train_step.train_step, train_step.compute_gradient

  def step(state: Any, *rest: Any) -> Any:
    bad = (state.seed == seed) & jnp.isin(state.step, jnp.array(at))

    def broken(*inputs: Any, blocks: int) -> Any:
      gradient, found = sums(*inputs, blocks=blocks)
      return jax.tree.map(lambda g: jnp.where(bad, jnp.inf, g), gradient), found

    with pytest.MonkeyPatch.context() as inner:  # while this one step is traced
      inner.setattr(steps, 'gradient_sums', broken)
      return original(state, *rest)

  patch.setattr(steps, 'train_step', step)


def test_stop_keeps_what_was_before(tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
  """The checkpoint of update 6 is that of a run that ends there; to start again says the same again."""
  config = run_config(tiny_corpus)
  breaking(monkeypatch, (6,))
  engine = program.build_program(config)
  good, _, _ = engine.chunk(engine.init(), batches.load_resident(engine, tiny_corpus, 'train'), program.step_count(engine, 6))
  for _ in range(2):
    with pytest.raises(InputError, match='a finite update 7') as refused:
      pretrain.pretrain(config, tmp_path)
    assert 'the gradient of encoder.blocks.0.attention.key.bias was not finite' in refused.value.found
    assert checkpoint.latest_step(tmp_path) == 6
  kept = checkpoint.restore(tmp_path, engine.shapes, 6)
  assert all(np.array_equal(leaf, flatten(kept)[name]) for name, leaf in flatten(good).items())


def test_skip_goes_on_with_the_next_batch(tiny_corpus: pathlib.Path, tmp_path: pathlib.Path,
                                          monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
  breaking(monkeypatch, (4, 6, 7))
  result = pretrain.pretrain(run_config(tiny_corpus, nonfinite='skip'), tmp_path)
  said = capsys.readouterr().err
  assert 'update 5 was not made, and is skipped' in said and 'update 7' in said
  assert result['updates'] == UPDATES and np.isfinite(result['train_loss'])
  logged = [line['step'] for line in run.read_lines(tmp_path / run.METRICS) if line['split'] == 'train']
  assert logged == [2, 4, 6, 10, 12]  # of updates 7 and 8 nothing was left to log


def test_a_member_is_dropped_and_the_others_go_on(tiny_corpus: pathlib.Path, tmp_path: pathlib.Path,
                                                  monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
  """They end as if nothing had been; so does a run that was resumed after it."""
  config = run_config(tiny_corpus, nonfinite='drop-member', **{'population.members': 3, 'mesh.population': 1})
  pretrain.pretrain(config, tmp_path / 'fine')
  breaking(monkeypatch, (5,), seed=1)
  pretrain.pretrain(config, tmp_path / 'dropped')
  assert 'update 6 of member 1 was not made' in capsys.readouterr().err

  def logged(name: str) -> dict[tuple[int, int, str], float]:
    found = run.read_lines(tmp_path / name / run.METRICS)
    return {(line['step'], line['member'], line['split']): line['loss'] for line in found
            if line['member'] != 1 or line['step'] < 6}

  assert logged('dropped') == pytest.approx(logged('fine'), rel=1e-5)
  found = list(run.read_lines(tmp_path / 'dropped' / run.METRICS))
  assert max(line['step'] for line in found if line['member'] == 1) == 4
  state = checkpoint.restore(tmp_path / 'dropped', program.build_program(config).shapes, UPDATES)
  assert np.asarray(state.step).tolist() == [UPDATES, 5, UPDATES]


def test_a_population_that_stopped_says_so_when_it_is_started_again(
    tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
  breaking(monkeypatch, (5,), seed=1)
  config = run_config(tiny_corpus, **{'population.members': 3, 'mesh.population': 1})
  with pytest.raises(InputError, match='a finite update 6 of member 1'):
    pretrain.pretrain(config, tmp_path)
  with pytest.raises(InputError, match='1 members had an update that was not finite'):
    pretrain.pretrain(config, tmp_path)


def test_without_a_member_left_a_run_stops(tiny_corpus: pathlib.Path, tmp_path: pathlib.Path,
                                           monkeypatch: pytest.MonkeyPatch):
  breaking(monkeypatch, (3,))
  with pytest.raises(InputError, match='a finite update 4'):
    pretrain.pretrain(run_config(tiny_corpus, nonfinite='drop-member'), tmp_path)
