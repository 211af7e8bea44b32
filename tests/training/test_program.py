"""A chunk is a fold of steps, compiled once, equal on any mesh; evaluation uses fixed masks."""

import dataclasses
import math
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs import tiny
from minilm_jax.core import backend, recipe
from minilm_jax.core.config import EvaluationConfig, MeshConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus, tokenizer
from minilm_jax.data.rows import Corpus
from minilm_jax.model import heads
from minilm_jax.model.initialization import flatten
from minilm_jax.training import masking, sharding, train_step
from minilm_jax.training.batches import load_resident, open_batches
from minilm_jax.training.program import build_evaluate, build_program, compile_chunk, step_count
from tests.run_files import bits
from tests.tiny_config import ALTERNATIVE_PARTS, CONVOLUTION, make_run_config


@pytest.mark.parametrize('changes', [{}, ALTERNATIVE_PARTS], ids=str)
def test_a_chunk_equals_its_steps(changes: dict[str, Any], tiny_corpus):
  """Bits are equal, dropout included; another length or a copied state compiles nothing."""
  program = build_program(make_run_config(tiny_corpus, **changes))
  corpus = load_resident(program, tiny_corpus, 'train')
  together, total, _ = program.chunk(program.init(), corpus, jnp.int32(5))
  state, sums = program.init(), []
  for _ in range(5):
    state, step_sums, _ = program.chunk(state, corpus, jnp.int32(1))
    sums.append(step_sums)
  assert int(state.step) == 5 and bits(state) == bits(together)
  assert float(total['masked']) == sum(float(s['masked']) for s in sums)
  assert float(total['gradient_norm']) == pytest.approx(
    sum(float(s['gradient_norm']) for s in sums), rel=1e-6
  )
  norm = np.sqrt(
    sum(
      float(np.square(np.asarray(leaf, np.float64)).sum()) for leaf in flatten(state.model).values()
    )
  )
  assert (
    float(total['parameter_norm'])
    == float(sums[-1]['parameter_norm'])
    == pytest.approx(norm, rel=1e-5)
  )
  state = jax.device_put(
    jax.tree.map(np.asarray, state), jax.tree.map(lambda x: x.sharding, program.shapes)
  )
  program.chunk(state, corpus, jnp.int32(2))
  assert program.chunk._cache_size() == 1


@pytest.mark.parametrize('devices', [1, 2])
def test_shardings_are_constrained_only_if_model_divides_arrays(devices: int, tiny_corpus):
  program = build_program(make_run_config(tiny_corpus, **{'mesh.model': devices}))
  corpus = load_resident(program, tiny_corpus, 'train')
  text = program.chunk.lower(program.shapes, corpus, jnp.int32(1)).as_text()
  assert ('sharding_constraint' in text) == (devices > 1)


def test_a_warm_chunk_moves_nothing_between_host_and_device(tiny_corpus):
  program = build_program(make_run_config(tiny_corpus))
  corpus, count = (
    load_resident(program, tiny_corpus, 'train'),
    jax.device_put(jnp.int32(2), sharding.replicated(program.mesh)),
  )
  state, _, _ = program.chunk(program.init(), corpus, count)
  with jax.transfer_guard('disallow'):
    state, sums, _ = program.chunk(state, corpus, count)
    jax.block_until_ready(sums)
  assert int(state.step) == 4


@pytest.mark.parametrize(
  'changes, mesh',
  [
    ({}, {'mesh.data': 8}),
    ({}, {'mesh.data': 4, 'mesh.model': 2}),
    (ALTERNATIVE_PARTS, {'mesh.data': 4, 'mesh.model': 2}),
  ],
  ids=str,
)
def test_devices_change_nothing_but_roundings(
  changes: dict[str, Any], mesh: dict[str, int], tiny_corpus
):
  """Rows, masks and dropped units do not depend on the mesh; the order of sums does."""
  results = []
  for config in (
    make_run_config(tiny_corpus, **changes),
    make_run_config(tiny_corpus, **changes, **mesh),
  ):
    program = build_program(config)
    state, sums, _ = program.chunk(
      program.init(), load_resident(program, tiny_corpus, 'train'), jnp.int32(6)
    )
    results.append((jax.device_get(flatten(state.model)), jax.device_get(sums)))
  (model, sums), (other, others) = results
  assert sums['masked'] == others['masked']
  assert float(sums['loss']) == pytest.approx(float(others['loss']), rel=1e-5)
  for name, leaf in model.items():
    np.testing.assert_allclose(other[name], leaf, atol=5e-5, err_msg=name)


@pytest.mark.parametrize('accumulation', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batch_statistics_do_not_depend_on_the_mesh(accumulation: int, tiny_corpus):
  """A micro-batch has the same rows on any mesh; the number of micro-batches changes training."""
  results, changes = [], {**CONVOLUTION, 'grad_accumulation_steps': accumulation}
  other = {'grad_accumulation_steps': 1 if accumulation else 2}
  meshes = [{}, {'mesh.data': 8}, {'mesh.data': 4, 'mesh.model': 2}, other]
  for mesh in meshes:
    program = build_program(make_run_config(tiny_corpus, **changes | mesh))
    state, sums, _ = program.chunk(
      program.init(), load_resident(program, tiny_corpus, 'train'), jnp.int32(2)
    )
    results.append((jax.device_get(flatten(state.model)), jax.device_get(sums)))
  name = 'encoder.convolution.layers.0.norm.running_mean'
  (model, sums), *same, (other, _) = results
  for others, more in same:
    assert sums['masked'] == more['masked'] and float(sums['loss']) == pytest.approx(
      float(more['loss']), rel=1e-5
    )
    for path, leaf in model.items():
      np.testing.assert_allclose(others[path], leaf, atol=5e-5, err_msg=path)
  assert np.abs(model[name]).min() > 1e-4
  assert max(np.abs(other[path] - leaf).max() for path, leaf in model.items()) > 2e-4


def test_each_device_computes_its_own_rows(tiny_corpus):
  """The FLOPs of a device are those of the batch divided by the devices, also with accumulation."""

  def flops(**changes: int) -> float:
    program = build_program(make_run_config(tiny_corpus, batch_size=64, **changes))
    corpus = load_resident(program, tiny_corpus, 'train')
    return (
      program.chunk.lower(program.shapes, corpus, jnp.int32(1)).compile().cost_analysis()['flops']
    )

  single_flops = flops(grad_accumulation_steps=1)
  assert flops(**{'mesh.data': 8, 'grad_accumulation_steps': 1}) < single_flops / 8 * 1.5
  # XLA counts the body of a loop once
  assert flops(**{'mesh.data': 8, 'grad_accumulation_steps': 4}) < single_flops / 8 / 4 * 2.5


def test_devices_that_do_not_divide_a_micro_batch_are_refused(tiny_corpus):
  with pytest.raises(InputError, match='batch_size, grad_accumulation_steps or mesh.data'):
    build_program(make_run_config(tiny_corpus, grad_accumulation_steps=4, **{'mesh.data': 8}))


def test_too_little_memory_is_refused_before_the_first_step(tiny_corpus, monkeypatch, capsys):
  config = make_run_config(tiny_corpus)
  program = build_program(config)
  rows = load_resident(program, tiny_corpus, 'train')
  compile_chunk(config, program, rows)
  need = int(re.search(r'(\d+) MiB', capsys.readouterr().err)[1])
  state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.shapes))
  assert need * 2**20 > state
  monkeypatch.setattr(backend, 'read_free_bytes', lambda device: 1000)
  with pytest.raises(InputError, match='grad_accumulation_steps'):
    compile_chunk(config, program, rows)


@pytest.fixture
def empty_cache(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Returns an empty folder that is the compilation cache."""
  folder, old = tmp_path / 'cache', backend.read_setting('jax_compilation_cache_dir')
  folder.mkdir()
  compilation_cache.reset_cache()
  jax.config.update('jax_compilation_cache_dir', str(folder))
  yield folder
  compilation_cache.reset_cache()
  jax.config.update('jax_compilation_cache_dir', old)


@pytest.mark.skipif(not backend._load_glibc(), reason='needs glibc')
@pytest.mark.parametrize(
  'changes', [{}, {'population.members': 2, 'mesh.data': 4, 'corpus_placement': 'host'}]
)
def test_another_process_compiles_the_chunk_of_a_long_run_once(
  changes, empty_cache, tiny_corpus, monkeypatch
):
  """This process adds no program to those that the other process leaves in the cache."""
  config, run_process, cached = make_run_config(tiny_corpus, **changes), subprocess.run, []

  def list_chunks() -> list[str]:
    return sorted(path.name for path in empty_cache.glob('jit_chunk-*-cache'))

  def run_and_list(*arguments, **options):
    process = run_process(*arguments, **options)
    cached.append(list_chunks())
    return process

  monkeypatch.setattr(subprocess, 'run', run_and_list)
  program = build_program(config)
  with open_batches(config, program, tiny_corpus) as source:
    compile_chunk(config, program, source.spec)
    assert not cached  # the run is short
    for path in empty_cache.iterdir():
      path.unlink()
    monkeypatch.setattr(backend, '_MIN_FLOPS_OF_COMPILER', 0)
    for _ in range(2):
      compile_chunk(config, program, source.spec)
  assert [len(names) for names in cached] == [1] and list_chunks() == cached[0]


@pytest.mark.skipif(not backend._load_glibc(), reason='needs glibc')
@pytest.mark.parametrize('executable, num_marks', [('/bin/false', 1), ('/missing', 0)])
def test_this_process_compiles_if_the_other_fails(
  executable: str, num_marks: int, empty_cache, tiny_corpus, monkeypatch
):
  """A process that started and failed is not started again."""
  monkeypatch.setattr(backend, '_MIN_FLOPS_OF_COMPILER', 0)
  monkeypatch.setattr(sys, 'executable', executable)
  config = make_run_config(tiny_corpus)
  program = build_program(config)
  compile_chunk(config, program, load_resident(program, tiny_corpus, 'train'))
  assert len(list(empty_cache.glob('jit_chunk-*-cache'))) == 1
  assert len(list(empty_cache.glob('*.compiled'))) == num_marks


def test_a_population_has_no_collective_along_its_axis(tiny_corpus):
  """Every collective adds over `data`, among the devices of one member."""
  program = build_program(
    make_run_config(tiny_corpus, **{'population.members': 4, 'mesh.population': 4, 'mesh.data': 2})
  )
  rows = load_resident(program, tiny_corpus, 'train')
  text = program.chunk.lower(program.shapes, rows, step_count(program, 1)).compile().as_text()
  collectives = [
    line
    for line in text.splitlines()
    if re.search(r' = .*(all-|collective-|reduce-scatter)[a-z-]*\(', line)
  ]
  assert collectives and all('all-reduce' in line for line in collectives)
  groups = {line.partition('replica_groups=')[2].partition(', ')[0] for line in collectives}
  mesh = "mesh['population'=4,'data'=2,'model'=1] {'data'}"  # the format of JAX 0.12
  assert groups <= {'{{0,1},{2,3},{4,5},{6,7}}', '[4,2]<=[8]', mesh}, groups


# Evaluation.


@pytest.fixture(scope='module')
def model() -> heads.MaskedLanguageModel:
  config = tiny.get_config()
  config.model.update(embedding_size=8, hidden_size=8, intermediate_size=8, num_layers=1)
  model_config = recipe.resolve(config, 'pretrain').model
  fresh = jax.jit(lambda: heads.init_masked_language_model(model_config, jax.random.key(0)))()
  return jax.tree.map(lambda x: 5 * x, fresh)  # losses then differ much between tokens


@pytest.fixture(scope='module')
def rows(tiny_corpus) -> Corpus:
  return corpus.load_split(tiny_corpus, 'test')


MESH = sharding.make_mesh(MeshConfig(1, 1, 1))


def evaluate_directly(
  model: heads.MaskedLanguageModel, rows: Corpus, count: int
) -> dict[str, float]:
  """Returns the metrics of the first rows, from one batch."""
  batch = jax.jit(masking.mask_eval_batch, static_argnums=2)(
    rows.tokens, jnp.arange(rows.rows), rows.vocab_size
  )
  batch = dataclasses.replace(
    batch, weights=batch.weights * (jnp.arange(rows.rows) < count)[:, None]
  )
  losses = float(jax.jit(lambda m: train_step.compute_loss(m, batch, None, 1))(model))
  masked, pads = (
    np.asarray(batch.weights).sum(),
    (np.asarray(rows.tokens)[:count] == tokenizer.PAD_ID).sum(),
  )
  return {
    'loss': losses / masked,
    'perplexity': math.exp(losses / masked),
    'padded_loss': losses / (masked + pads),
  }


@pytest.mark.parametrize('count, batch_size', [(10_000, 64), (30, 7)])
def test_the_loss_does_not_depend_on_the_batch_size(model, rows, count: int, batch_size: int):
  assert rows.rows % 64 and rows.rows > 30
  evaluate = build_evaluate(
    EvaluationConfig(every=1, first_at=0, rows=count, batch_size=batch_size), MESH
  )
  (metrics,) = evaluate(model, rows)
  assert metrics == pytest.approx(evaluate_directly(model, rows, count), rel=1e-4)
  assert [metrics] == evaluate(model, rows)
  assert metrics['padded_loss'] < metrics['loss']
  (untrained,) = evaluate(jax.tree.map(jnp.zeros_like, model), rows)
  assert untrained['loss'] == pytest.approx(math.log(model.config.vocab_size), rel=1e-5)


def test_evaluation_drops_nothing(model, rows):
  other = dataclasses.replace(model.config, dropout=0.9)
  structure = jax.tree.structure(
    jax.eval_shape(lambda: heads.init_masked_language_model(other, jax.random.key(0)))
  )
  dropping = jax.tree.unflatten(structure, jax.tree.leaves(model))
  evaluate = build_evaluate(EvaluationConfig(every=1, first_at=0, rows=10_000, batch_size=64), MESH)
  assert evaluate(dropping, rows)[0] == pytest.approx(
    evaluate_directly(model, rows, 10_000), rel=1e-4
  )


def test_devices_share_the_rows_of_an_evaluation(model, rows):
  """The number of batches may be smaller than the number of devices, or no multiple."""
  mesh = sharding.make_mesh(MeshConfig(1, 8, 1))
  spread = jax.device_put((model, rows), sharding.replicated(mesh))
  for count, batch_size in ((10_000, 8), (30, 7), (5, 64)):
    config = EvaluationConfig(every=1, first_at=0, rows=count, batch_size=batch_size)
    (metrics,) = build_evaluate(config, mesh)(*spread)
    (expected,) = build_evaluate(config, MESH)(model, rows)
    # The exponential of a loss of 76 nats has 76 times its rounding error.
    for scores in (metrics, expected):
      assert math.log(scores.pop('perplexity')) == pytest.approx(scores['loss'], rel=1e-12)
    assert metrics == pytest.approx(expected, rel=1e-6)
