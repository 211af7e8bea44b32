"""Checkpoints are restored bit for bit on any mesh, or refused with the paths that differ."""

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
from minilm_jax.model.initialization import flatten
from minilm_jax.training import batches, checkpoint, sharding, train_step
from minilm_jax.training.program import build_program
from tests import tiny_config

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_config(mesh: dict[str, int], **model: Any) -> RunConfig:
  config = tiny.get_config()
  config.model.update(
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
  config.optimizer.algorithm = 'muon'  # has arrays of AdamW and of Muon
  config.mesh.update(mesh)
  return recipe.resolve(config, 'pretrain')


def shapes(config: RunConfig) -> train_step.TrainState:
  """Returns shapes with shardings, as `build_program` makes them."""
  state_shapes = jax.eval_shape(lambda: train_step.init_state(0, config))
  shardings = sharding.state_sharding(state_shapes, sharding.make_mesh(config.mesh))
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state_shapes, shardings
  )


def draw_state(config: RunConfig, step: int = 5) -> train_step.TrainState:
  """Returns a state of random bits, with subnormal numbers and NaN."""
  dice = np.random.default_rng(0)

  def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    values = dice.integers(0, 2**32, leaf.shape, np.uint32).view(leaf.dtype)
    return jax.device_put(values.reshape(leaf.shape), leaf.sharding)

  state = jax.tree.map(draw, shapes(config))
  return dataclasses.replace(state, step=jax.device_put(jnp.int32(step), state.step.sharding))


def bits(state: Any) -> list[bytes]:
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


ONE, EIGHT, SPLIT = {'data': 1}, {'data': 8}, {'data': 4, 'model': 2}


def test_a_save_of_a_replicated_state_compiles_one_program(tmp_path, caplog):
  state = draw_state(run_config(EIGHT, vocab_size=72))
  with jax.log_compiles(), checkpoint.open_writer(tmp_path, 1) as writer:
    writer.save(state, 5)
  compiled = [record.getMessage() for record in caplog.records if 'Compiling' in record.msg]
  assert len(compiled) == 1 and 'copy' in compiled[0]


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> tuple[pathlib.Path, train_step.TrainState]:
  """A run directory with a checkpoint from eight devices, with some arrays split over two."""
  folder, state = tmp_path_factory.mktemp('saved'), draw_state(run_config(SPLIT))
  with checkpoint.open_writer(folder, 2) as writer:
    writer.save(state, int(state.step))
  return folder, state


@pytest.mark.parametrize('mesh', [SPLIT, ONE, EIGHT, {'data': 1, 'model': 4}])
def test_a_state_is_restored_bit_for_bit_on_any_mesh(mesh: dict[str, int], saved):
  folder, state = saved
  like = shapes(run_config(mesh))
  restored = checkpoint.restore(folder, like, 5)
  assert jax.tree.structure(restored) == jax.tree.structure(state) and bits(restored) == bits(state)
  for leaf, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
    assert leaf.sharding == expected.sharding and leaf.dtype == expected.dtype


def test_a_save_is_not_affected_by_the_next_chunk(tmp_path):
  """The next chunk takes the donated arrays while the copies are written."""
  state = draw_state(run_config(EIGHT))
  before = bits(state)
  overwrite = jax.jit(lambda state: jax.tree.map(jnp.zeros_like, state), donate_argnums=0)
  with checkpoint.open_writer(tmp_path, 2) as writer:
    writer.save(state, int(state.step))
    overwrite(state)
  assert bits(checkpoint.restore(tmp_path, shapes(run_config(ONE)), 5)) == before


def test_the_last_saves_stay_and_a_step_is_saved_once(tmp_path):
  config = run_config(ONE)
  assert checkpoint.latest_step(tmp_path) is None
  with checkpoint.open_writer(tmp_path, 2) as writer:
    for step in (1, 2, 2, 10, 9):
      writer.save(draw_state(config, step), step)
  assert checkpoint.latest_step(tmp_path) == 10
  assert len(list((tmp_path / checkpoint.FOLDER).iterdir())) == 2


def test_an_incomplete_save_is_ignored_and_deleted(tmp_path):
  with checkpoint.open_writer(tmp_path, 2) as writer:
    writer.save(draw_state(run_config(ONE)), 5)
  folder = tmp_path / checkpoint.FOLDER
  incomplete = folder / '9.orbax-checkpoint-tmp-1732180000000000'
  (incomplete / 'default').mkdir(parents=True)
  (folder / 'notes.txt').write_text('a file of the user')
  assert checkpoint.latest_step(tmp_path) == 5
  with checkpoint.open_writer(tmp_path, 2) as writer:
    writer.save(draw_state(run_config(ONE), 6), 6)
  assert not incomplete.exists() and checkpoint.latest_step(tmp_path) == 6


LOSSES = {4: 3.0, 8: 2.0, 12: 2.5, 16: 2.0, 20: 2.7}


@pytest.mark.parametrize('stops', [(), (4, 6, 8, 12, 16, 20), (12,)])
def test_the_last_and_the_best_stay_regardless_of_interruptions(stops: tuple[int, ...], tmp_path):
  """Steps 6 and 22 have no validation loss."""
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
  with checkpoint.open_writer(tmp_path, 1, 1, LOSSES):  # the later of equal losses stays
    pass
  assert checkpoint.list_steps(tmp_path) == [16, 22]


def test_surplus_checkpoints_of_a_killed_process_are_deleted(tmp_path):
  """The process was killed while it deleted a checkpoint."""
  for step in (4, 8):
    with checkpoint.open_writer(tmp_path, 2) as writer:
      writer.save({'a': jnp.ones(3)}, step)
  shutil.rmtree(tmp_path / checkpoint.FOLDER / '4' / 'default')
  with checkpoint.open_writer(tmp_path, 1):
    pass
  assert checkpoint.list_steps(tmp_path) == [8]


@pytest.mark.parametrize(
  'changes, values',
  [
    ({'positions': 'learned'}, ['attention.distance_bias ', 'positions.embedding ']),
    ({'vocab_size': 66}, ['tokens.embedding ', '(64, 8)', '(66, 8)', ' 5 ']),
    ({'num_layers': 2}, ['blocks.1.attention.distance_bias ']),
  ],
)
def test_another_model_is_refused_by_path(changes: dict[str, Any], values: list[str], saved):
  with pytest.raises(InputError) as error:
    checkpoint.restore(saved[0], shapes(run_config(ONE, **changes)), 5)
  assert f'step 5 in {saved[0]}' in error.value.asked
  assert all(value in error.value.found for value in values), error.value.found


def test_a_checkpoint_without_arrays_is_refused(tmp_path):
  like = shapes(run_config(ONE))
  (tmp_path / checkpoint.FOLDER / '7').mkdir(parents=True)
  for restoring in (
    lambda: checkpoint.restore(tmp_path, like, 7),
    lambda: checkpoint.restore_part(tmp_path, like.model, 'model'),
  ):
    with pytest.raises(InputError, match='/7/default'):
      restoring()


def test_another_type_is_refused(saved):
  like = shapes(run_config(ONE))
  like = dataclasses.replace(
    like, seed=jax.ShapeDtypeStruct((), jnp.float32, sharding=like.seed.sharding)
  )
  with pytest.raises(InputError, match='seed .*uint32.*float32'):
    checkpoint.restore(saved[0], like, 5)


def test_a_part_is_restored_to_the_first_device(saved):
  folder, state = saved
  part = jax.eval_shape(
    functools.partial(train_step.init_state, config=run_config(ONE)), 0
  ).model.encoder
  restored = checkpoint.restore_part(folder, part, 'model.encoder')
  assert bits(restored) == bits(state.model.encoder)
  assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(restored))


def test_a_part_of_another_shape_is_refused(saved):
  part = jax.eval_shape(
    functools.partial(train_step.init_state, config=run_config(ONE, hidden_size=16)), 0
  ).model.encoder
  with pytest.raises(InputError, match='model.encoder.blocks.0'):
    checkpoint.restore_part(saved[0], part, 'model.encoder')


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
  with pytest.raises(InputError, match=str(tmp_path)):
    checkpoint.restore_part(tmp_path, {}, 'model')


@pytest.mark.parametrize('data', [1, pytest.param(8, marks=pytest.mark.slow)])
def test_running_statistics_are_saved_and_restored(data: int, tiny_corpus, tmp_path):
  """A resumed run equals an uninterrupted run bit for bit."""
  program = build_program(
    tiny_config.make_run_config(tiny_corpus, **tiny_config.CONVOLUTION, **{'mesh.data': data})
  )
  rows = batches.load_resident(program, tiny_corpus, 'train')
  uninterrupted, _, _ = program.chunk(program.init(), rows, jnp.int32(4))
  part, _, _ = program.chunk(program.init(), rows, jnp.int32(2))
  with checkpoint.open_writer(tmp_path, 2) as writer:
    writer.save(part, 2)
  again, _, _ = program.chunk(checkpoint.restore(tmp_path, program.shapes, 2), rows, jnp.int32(2))
  assert bits(again) == bits(uninterrupted)
  name = 'encoder.convolution.layers.0.norm.running_variance'
  saved_statistic = flatten(checkpoint.restore(tmp_path, program.shapes, 2).model)[name]
  assert np.all(np.asarray(saved_statistic) != 1) and np.all(
    saved_statistic != flatten(uninterrupted.model)[name]
  )


def test_a_process_with_one_device_restores_a_checkpoint_of_eight(saved):
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


def test_a_signal_during_a_restore_is_raised_afterwards(saved, monkeypatch):
  """Orbax converts exceptions that a signal handler raises during a read."""
  workdir, _ = saved
  read = checkpoint.ocp.PyTreeCheckpointer.restore

  def interrupted(*arguments: Any, **options: Any) -> Any:
    try:
      os.kill(os.getpid(), signal.SIGTERM)
    except BaseException as error:
      raise Exception('Encountered error while reading array') from error  # noqa: TRY002, as Orbax does
    return read(*arguments, **options)

  monkeypatch.setattr(checkpoint.ocp.PyTreeCheckpointer, 'restore', interrupted)
  with pytest.raises(signals.Interrupted, match='SIGTERM'), signals.raise_on_signals():
    checkpoint.restore(workdir, shapes(run_config(ONE)), checkpoint.latest_step(workdir))


# Checksums.


@pytest.fixture
def step_folder(tmp_path) -> pathlib.Path:
  """A folder with the files of a checkpoint."""
  folder = tmp_path / '8'
  (folder / 'default' / 'd').mkdir(parents=True)
  (folder / 'METADATA').write_text('{}')
  (folder / 'default' / 'd' / 'numbers').write_bytes(bytes(range(256)))
  checkpoint.write_checksums(folder)
  return folder


def test_an_unchanged_checkpoint_is_intact(step_folder):
  assert checkpoint.has_checksums(step_folder) and checkpoint.find_damage(step_folder) == ''
  checksums = json.loads((step_folder / checkpoint.CHECKSUMS).read_text())['files']
  assert sorted(checksums) == ['METADATA', 'default/d/numbers']
  assert checksums['default/d/numbers'] == {
    'bytes': 256,
    'sha256': files.hash_file(step_folder / 'default/d/numbers'),
  }
  before = (step_folder / checkpoint.CHECKSUMS).read_bytes()
  checkpoint.write_checksums(step_folder)
  # The file of checksums has no checksum of itself.
  assert (step_folder / checkpoint.CHECKSUMS).read_bytes() == before


@pytest.mark.parametrize(
  'change, sizes',
  [
    (lambda file: file.unlink(), []),
    (lambda file: file.write_bytes(b''), [' 0 ', ' 256 ']),
    (lambda file: file.write_bytes(file.read_bytes()[:-1]), [' 255 ', ' 256 ']),
    (lambda file: file.write_bytes(file.read_bytes() + b'x'), [' 257 ', ' 256 ']),
    (lambda file: file.write_bytes(b'\x01' + file.read_bytes()[1:]), []),
  ],
)
def test_a_changed_file_is_named(
  change: Callable[[pathlib.Path], None], sizes: list[str], step_folder
):
  change(step_folder / 'default' / 'd' / 'numbers')
  damage = checkpoint.find_damage(step_folder)
  assert all(value in damage for value in ('default/d/numbers', *sizes))


def test_every_flipped_bit_is_detected(step_folder):
  file = step_folder / 'default' / 'd' / 'numbers'
  data = file.read_bytes()
  for bit in range(0, 8 * len(data), 61):
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    file.write_bytes(flipped)
    assert checkpoint.find_damage(step_folder)
  file.write_bytes(data)
  assert not checkpoint.find_damage(step_folder)


def test_without_checksums_no_damage_is_detected(step_folder):
  # A killed process leaves a partial file.
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
def test_unreadable_checksums_are_damage(text: str, step_folder):
  (step_folder / checkpoint.CHECKSUMS).write_text(text)
  assert 'checksums.json' in checkpoint.find_damage(step_folder)


def test_files_outside_the_folder_are_not_read(step_folder):
  (step_folder.parent / 'secret').write_bytes(b'x')
  entry = {'bytes': 1, 'sha256': files.hash_file(step_folder.parent / 'secret')}
  (step_folder / checkpoint.CHECKSUMS).write_text(json.dumps({'files': {'../secret': entry}}))
  assert '../secret' in checkpoint.find_damage(step_folder)


def test_the_folder_of_a_checkpoint_in_a_bucket_stays_in_the_bucket():
  folder = checkpoint.step_folder('gs://bucket/runs/../run/', 4)
  assert str(folder) == 'gs://bucket/run/checkpoints/4'
