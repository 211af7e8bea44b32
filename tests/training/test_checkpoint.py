"""Checkpoints: bit for bit back, onto any devices, or refused with the paths that differ."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from minilm_jax.core import files, recipe, signals
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.training import batches, checkpoint, sharding, train_step
from minilm_jax.training.program import build_program
from tests import tiny_config

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_config(mesh: dict[str, int], **model: Any) -> RunConfig:
  made = tiny.get_config()
  made.model.update(
    {
      'vocab_size': 64,
      'embedding_size': 8,
      'hidden_size': 8,
      'intermediate_size': 8,
      'num_heads': 2,
      'num_layers': 1,
      'positions': 'relative',
      **model,
    }
  )
  made.optimizer.algorithm = 'muon'  # which has arrays of AdamW's, and of its own
  made.mesh.update(mesh)
  return recipe.resolve(made, 'pretrain')


def shapes(config: RunConfig) -> train_step.TrainState:
  """Shapes with shardings, as a run that goes on has them."""
  found = jax.eval_shape(lambda: train_step.init_state(0, config))
  places = sharding.state_sharding(found, sharding.make_mesh(config.mesh))
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), found, places
  )


def some_state(config: RunConfig, step: int = 5) -> train_step.TrainState:
  """Numbers of all kinds in every array, subnormal ones and a NaN included."""
  dice = np.random.default_rng(0)

  def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    values = dice.integers(0, 2**32, leaf.shape, np.uint32).view(leaf.dtype)
    return jax.device_put(values.reshape(leaf.shape), leaf.sharding)

  state = jax.tree.map(draw, shapes(config))
  return dataclasses.replace(state, step=jax.device_put(jnp.int32(step), state.step.sharding))


def bits(state: Any) -> list[bytes]:
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


ONE, EIGHT, SPLIT = {'data': 1}, {'data': 8}, {'data': 4, 'model': 2}


@pytest.fixture(scope='module')
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, train_step.TrainState]:
  """A run directory with one checkpoint that was saved from eight devices, some arrays split over
  two.
  """
  folder, state = tmp_path_factory.mktemp('saved'), some_state(run_config(SPLIT))
  with checkpoint.open_writer(folder, 2) as writer:
    writer.save(state, int(state.step))
  return folder, state


@pytest.mark.parametrize('mesh', [SPLIT, ONE, EIGHT, {'data': 1, 'model': 4}])
def test_a_state_comes_back_bit_for_bit_on_any_mesh(mesh: dict[str, int], saved):
  folder, state = saved
  like = shapes(run_config(mesh))
  found = checkpoint.restore(folder, like, 5)
  assert jax.tree.structure(found) == jax.tree.structure(state) and bits(found) == bits(state)
  for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(like), strict=True):
    assert leaf.sharding == wanted.sharding and leaf.dtype == wanted.dtype


def test_a_save_holds_the_state_of_its_step_while_training_goes_on(tmp_path: pathlib.Path):
  """Arrays are donated to the next chunk while they are being written."""
  state = some_state(run_config(EIGHT))
  before = bits(state)
  overwrite = jax.jit(lambda state: jax.tree.map(jnp.zeros_like, state), donate_argnums=0)
  with checkpoint.open_writer(tmp_path, 2) as writer:
    writer.save(state, int(state.step))
    overwrite(state)
  assert bits(checkpoint.restore(tmp_path, shapes(run_config(ONE)), 5)) == before


def test_the_last_few_saves_are_kept_and_a_step_is_saved_once(tmp_path: pathlib.Path):
  config = run_config(ONE)
  assert checkpoint.latest_step(tmp_path) is None
  with checkpoint.open_writer(tmp_path, 2) as writer:
    for step in (1, 2, 2, 10, 9):
      writer.save(some_state(config, step), step)
  assert checkpoint.latest_step(tmp_path) == 10
  assert (
    sorted(int(p.name) for p in (tmp_path / checkpoint.FOLDER).iterdir() if p.name.isdecimal())[-1]
    == 10
  )
  assert len(list((tmp_path / checkpoint.FOLDER).iterdir())) == 2


def test_a_save_that_was_cut_short_is_passed_over_and_cleared_away(tmp_path: pathlib.Path):
  with checkpoint.open_writer(tmp_path, 2) as writer:
    writer.save(some_state(run_config(ONE)), 5)
  folder = tmp_path / checkpoint.FOLDER
  torn = folder / '9.orbax-checkpoint-tmp-1732180000000000'
  torn.mkdir()
  (torn / 'default').mkdir()
  (folder / 'notes.txt').write_text('kept for later')
  assert checkpoint.latest_step(tmp_path) == 5
  with checkpoint.open_writer(tmp_path, 2) as writer:
    writer.save(some_state(run_config(ONE), 6), 6)
  assert not torn.exists() and checkpoint.latest_step(tmp_path) == 6


LOSSES = {4: 3.0, 8: 2.0, 12: 2.5, 16: 2.0, 20: 2.7}


@pytest.mark.parametrize('stops', [(), (4, 6, 8, 12, 16, 20), (12,)])
def test_the_last_and_the_best_are_kept_wherever_the_run_was_stopped(
  stops: tuple[int, ...], tmp_path: pathlib.Path
):
  """Steps 6 and 22 were not judged."""
  done = 0
  for stop in (*stops, 22):
    known = {step: loss for step, loss in LOSSES.items() if step <= done}
    with checkpoint.open_writer(tmp_path, 1, 2, known) as writer:
      for step in (4, 6, 8, 12, 16, 20, 22):
        if done < step <= stop:
          writer.save({'a': jnp.full(3, step)}, step, LOSSES[step] if step in LOSSES else None)
    assert checkpoint.latest_step(tmp_path) == stop
    done = stop
  assert checkpoint.list_steps(tmp_path) == [8, 16, 22]
  with checkpoint.open_writer(tmp_path, 1, 1, LOSSES):  # of equal ones the later
    pass
  assert checkpoint.list_steps(tmp_path) == [16, 22]


def test_what_a_killed_process_left_is_deleted(tmp_path: pathlib.Path):
  """It had begun to delete a checkpoint when the next one was whole."""
  for step in (4, 8):
    with checkpoint.open_writer(tmp_path, 2) as writer:
      writer.save({'a': jnp.ones(3)}, step)
  shutil.rmtree(tmp_path / checkpoint.FOLDER / '4' / 'default')
  with checkpoint.open_writer(tmp_path, 1):
    pass
  assert checkpoint.list_steps(tmp_path) == [8]


@pytest.mark.parametrize(
  'changes, said',
  [
    (
      {'positions': 'learned'},
      ['distance_bias is not part of this model', 'positions.embedding is missing there'],
    ),
    ({'vocab_size': 66}, ['tokens.embedding is ((64, 8), ', 'there and ((66, 8), ', 'and 5 more']),
    ({'num_layers': 2}, ['blocks.1.attention.distance_bias is missing there']),
  ],
)
def test_another_model_is_refused_by_path(changes: dict[str, Any], said: list[str], saved):
  with pytest.raises(InputError) as refused:
    checkpoint.restore(saved[0], shapes(run_config(ONE, **changes)), 5)
  assert 'the checkpoint of step 5' in refused.value.asked
  assert all(part in refused.value.found for part in said), refused.value.found


def test_a_checkpoint_that_lost_its_arrays_is_refused(tmp_path: pathlib.Path):
  like = shapes(run_config(ONE))
  (tmp_path / checkpoint.FOLDER / '7').mkdir(parents=True)
  for restoring in (
    lambda: checkpoint.restore(tmp_path, like, 7),
    lambda: checkpoint.restore_part(tmp_path, like.model, 'model'),
  ):
    with pytest.raises(InputError, match='no arrays in .*/7/default'):
      restoring()


def test_another_type_is_refused(saved):
  like = shapes(run_config(ONE))
  like = dataclasses.replace(
    like, seed=jax.ShapeDtypeStruct((), jnp.float32, sharding=like.seed.sharding)
  )
  with pytest.raises(InputError, match='seed is .*uint32.* there and .*float32.* here'):
    checkpoint.restore(saved[0], like, 5)


def test_a_part_comes_back_alone(saved):
  folder, state = saved
  part = jax.eval_shape(
    functools.partial(train_step.init_state, config=run_config(ONE)), 0
  ).model.encoder
  found = checkpoint.restore_part(folder, part, 'model.encoder')
  assert bits(found) == bits(state.model.encoder)
  assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(found))


def test_a_part_of_another_shape_is_refused(saved):
  part = jax.eval_shape(
    functools.partial(train_step.init_state, config=run_config(ONE, hidden_size=16)), 0
  ).model.encoder
  with pytest.raises(InputError, match='model.encoder.blocks.0'):
    checkpoint.restore_part(saved[0], part, 'model.encoder')


def test_a_run_without_a_checkpoint_is_refused(tmp_path: pathlib.Path):
  with pytest.raises(InputError, match='none saved there'):
    checkpoint.restore_part(tmp_path, {}, 'model')


@pytest.mark.parametrize('data', [1, pytest.param(8, marks=pytest.mark.slow)])
def test_running_statistics_are_saved_and_gone_on_with(
  data: int, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  """Resumed is uninterrupted, bit for bit."""
  program = build_program(
    tiny_config.make_run_config(tiny_corpus, **tiny_config.CONVOLUTION, **{'mesh.data': data})
  )
  rows = batches.load_resident(program, tiny_corpus, 'train')
  whole, _, _ = program.chunk(program.init(), rows, jnp.int32(4))
  part, _, _ = program.chunk(program.init(), rows, jnp.int32(2))
  with checkpoint.open_writer(tmp_path, 2) as writer:
    writer.save(part, 2)
  again, _, _ = program.chunk(checkpoint.restore(tmp_path, program.shapes, 2), rows, jnp.int32(2))
  assert bits(again) == bits(whole)
  name = 'encoder.convolution.layers.0.norm.running_variance'
  saved_statistic = checkpoint.flatten(checkpoint.restore(tmp_path, program.shapes, 2).model)[name]
  assert np.all(np.asarray(saved_statistic) != 1) and np.all(
    saved_statistic != checkpoint.flatten(whole.model)[name]
  )


def test_what_eight_devices_saved_one_can_read(saved):
  """In a process that has one device only, as on the laptop that a run was copied to."""
  program = (
    'import sys, jax, numpy as np\n'
    'from tests.training.test_checkpoint import ONE, run_config, shapes\n'
    'from minilm_jax.training import checkpoint\n'
    'like = shapes(run_config(ONE))\n'
    'part = checkpoint.restore_part(sys.argv[1], like.model, "model")\n'
    'whole = checkpoint.restore(sys.argv[1], like, 5)\n'
    'print(jax.device_count(), *(float(np.sum(model.transform.bias)) for model in (part, whole.model)))\n'
  )
  environment = {**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(
    [sys.executable, '-c', program, str(saved[0])],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  expected = float(np.sum(np.asarray(saved[1].model.transform.bias[...])))
  assert done.stdout.split() == ['1', str(expected), str(expected)]


def test_a_signal_while_a_checkpoint_is_read_is_no_error_of_reading(saved: tuple, monkeypatch):
  """Orbax makes an error of whatever is raised there; so nothing is, and the signal is told when it
  has been read.
  """
  workdir, _ = saved
  read = checkpoint.ocp.StandardCheckpointer.restore

  def interrupted(*arguments: Any) -> Any:
    try:
      os.kill(os.getpid(), signal.SIGTERM)
    except BaseException as error:
      raise Exception('Encountered error while reading array') from error  # noqa: TRY002, as Orbax does
    return read(*arguments)

  monkeypatch.setattr(checkpoint.ocp.StandardCheckpointer, 'restore', interrupted)
  with pytest.raises(signals.Interrupted, match='SIGTERM'), signals.raise_on_signals():
    checkpoint.restore(workdir, shapes(run_config(ONE)), checkpoint.latest_step(workdir))


# checksums


@pytest.fixture
def step_folder(tmp_path: pathlib.Path) -> pathlib.Path:
  """A folder like that of a checkpoint."""
  folder = tmp_path / '8'
  (folder / 'default' / 'd').mkdir(parents=True)
  (folder / 'METADATA').write_text('{}')
  (folder / 'default' / 'd' / 'numbers').write_bytes(bytes(range(256)))
  checkpoint.write_checksums(folder)
  return folder


def test_what_is_as_it_was_is_whole(step_folder: pathlib.Path):
  assert checkpoint.has_checksums(step_folder) and checkpoint.find_damage(step_folder) == ''
  found = json.loads((step_folder / checkpoint.CHECKSUMS).read_text())['files']
  assert sorted(found) == ['METADATA', 'default/d/numbers']
  assert found['default/d/numbers'] == {
    'bytes': 256,
    'sha256': files.hash_file(step_folder / 'default/d/numbers'),
  }
  before = (step_folder / checkpoint.CHECKSUMS).read_bytes()
  checkpoint.write_checksums(step_folder)
  assert (step_folder / checkpoint.CHECKSUMS).read_bytes() == before  # which does not count itself


@pytest.mark.parametrize(
  'change, said',
  [
    (lambda file: file.unlink(), 'default/d/numbers is missing'),
    (lambda file: file.write_bytes(b''), 'default/d/numbers has 0 bytes, and had 256'),
    (lambda file: file.write_bytes(file.read_bytes()[:-1]), 'has 255 bytes'),
    (lambda file: file.write_bytes(file.read_bytes() + b'x'), 'has 257 bytes'),
    (
      lambda file: file.write_bytes(b'\x01' + file.read_bytes()[1:]),
      'default/d/numbers has other bytes',
    ),
  ],
)
def test_what_is_not_is_named(
  change: Callable[[pathlib.Path], None], said: str, step_folder: pathlib.Path
):
  change(step_folder / 'default' / 'd' / 'numbers')
  assert said in checkpoint.find_damage(step_folder)


def test_every_flipped_bit_is_seen(step_folder: pathlib.Path):
  file = step_folder / 'default' / 'd' / 'numbers'
  data = file.read_bytes()
  for place in range(0, 8 * len(data), 61):
    flipped = bytearray(data)
    flipped[place // 8] ^= 1 << place % 8
    file.write_bytes(flipped)
    assert checkpoint.find_damage(step_folder)
  file.write_bytes(data)
  assert not checkpoint.find_damage(step_folder)


def test_without_digests_nothing_is_known(step_folder: pathlib.Path):
  # as a process that was killed leaves it
  (step_folder / checkpoint.CHECKSUMS).rename(step_folder / f'.{checkpoint.CHECKSUMS}.partial')
  (step_folder / 'METADATA').unlink()
  assert not checkpoint.has_checksums(step_folder) and checkpoint.find_damage(step_folder) == ''
  checkpoint.write_checksums(step_folder)
  assert list(json.loads((step_folder / checkpoint.CHECKSUMS).read_text())['files']) == [
    'default/d/numbers'
  ]


@pytest.mark.parametrize(
  'text', ['', '{', '[]', '{"files": []}', '{"files": {"a": 1}}', '{"files": {"a": {}}}', '\x00']
)
def test_digests_that_cannot_be_read_are_damage(text: str, step_folder: pathlib.Path):
  (step_folder / checkpoint.CHECKSUMS).write_text(text)
  assert 'checksums.json' in checkpoint.find_damage(step_folder)


def test_nothing_outside_the_folder_is_looked_at(step_folder: pathlib.Path):
  (step_folder.parent / 'secret').write_bytes(b'x')
  one = {'bytes': 1, 'sha256': files.hash_file(step_folder.parent / 'secret')}
  (step_folder / checkpoint.CHECKSUMS).write_text(json.dumps({'files': {'../secret': one}}))
  assert checkpoint.find_damage(step_folder) == '../secret is missing'
