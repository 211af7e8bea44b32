"""The engine: a chunk is a fold of steps, compiled once, the same on any mesh; and it says what it takes."""

import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax.errors import InputError
from minilm_jax.training import engine as engines
from minilm_jax.training import feed, sharding
from minilm_jax.training.checkpoint import flat
from tests.tiny_config import CONVOLVED, HELPED, run_config


@pytest.fixture(scope='module', autouse=True)
def quickly() -> Any:
  """Compiled with little optimisation: that takes nothing from what is tested."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def bits(tree: Any) -> dict[str, bytes]:
  return {name: np.asarray(leaf).tobytes() for name, leaf in flat(tree).items()}


@pytest.mark.parametrize('changes', [{}, HELPED], ids=str)
def test_one_chunk_is_many(changes: dict[str, Any], tiny_corpus: pathlib.Path):
  """Bit for bit, dropout included; and no length of a chunk, nor a state from a file, compiles anything again."""
  engine = engines.make_engine(run_config(tiny_corpus, **changes))
  corpus = feed.resident(engine, tiny_corpus, 'train')
  together, total, _ = engine.chunk(engine.init(), corpus, jnp.int32(5))
  state, sums = engine.init(), []
  for _ in range(5):
    state, found, _ = engine.chunk(state, corpus, jnp.int32(1))
    sums.append(found)
  assert int(state.step) == 5 and bits(state) == bits(together)
  assert float(total['masked']) == sum(float(s['masked']) for s in sums)
  assert float(total['gradient']) == pytest.approx(sum(float(s['gradient']) for s in sums), rel=1e-6)
  norm = np.sqrt(sum(float(np.square(np.asarray(leaf, np.float64)).sum()) for leaf in flat(state.model).values()))
  assert float(total['parameters']) == float(sums[-1]['parameters']) == pytest.approx(norm, rel=1e-5)
  state = jax.device_put(jax.tree.map(np.asarray, state), jax.tree.map(lambda x: x.sharding, engine.shapes))
  engine.chunk(state, corpus, jnp.int32(2))
  assert engine.chunk._cache_size() == 1


def test_a_warm_chunk_moves_nothing_between_host_and_device(tiny_corpus: pathlib.Path):
  engine = engines.make_engine(run_config(tiny_corpus))
  corpus, count = feed.resident(engine, tiny_corpus, 'train'), jax.device_put(jnp.int32(2), sharding.replicated(engine.mesh))
  state, _, _ = engine.chunk(engine.init(), corpus, count)
  with jax.transfer_guard('disallow'):
    state, sums, _ = engine.chunk(state, corpus, count)
    jax.block_until_ready(sums)
  assert int(state.step) == 4


@pytest.mark.parametrize('own, mesh', [
    ({}, {'mesh.data': 8}), ({}, {'mesh.data': 4, 'mesh.model': 2}), (HELPED, {'mesh.data': 4, 'mesh.model': 2})],
                         ids=str)
def test_devices_change_nothing_but_roundings(own: dict[str, Any], mesh: dict[str, int], tiny_corpus: pathlib.Path):
  """Rows, masks and dropped units are the same, whatever the mesh; sums are taken in another order."""
  found = []
  for config in (run_config(tiny_corpus, **own), run_config(tiny_corpus, **own, **mesh)):
    engine = engines.make_engine(config)
    state, sums, _ = engine.chunk(engine.init(), feed.resident(engine, tiny_corpus, 'train'), jnp.int32(6))
    found.append((jax.device_get(flat(state.model)), jax.device_get(sums)))
  (model, sums), (other, others) = found
  assert sums['masked'] == others['masked']
  assert float(sums['loss']) == pytest.approx(float(others['loss']), rel=1e-5)
  for name, leaf in model.items():
    np.testing.assert_allclose(other[name], leaf, atol=5e-5, err_msg=name)


@pytest.mark.parametrize('accumulation', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batch_statistics_do_not_depend_on_the_mesh(accumulation: int, tiny_corpus: pathlib.Path):
  """Of a micro-batch the rows are the same on any mesh, and so are loss, statistics and parameters, but for roundings.

  Cut into two it is another training, and so the batch is left whole where nothing is asked.
  """
  found, changes = [], {**CONVOLVED, 'accumulation': accumulation}
  other = {'accumulation': 1 if accumulation else 2}
  meshes = [{}, {'mesh.data': 8}, {'mesh.data': 4, 'mesh.model': 2}, other]
  for mesh in meshes:
    engine = engines.make_engine(run_config(tiny_corpus, **changes | mesh))
    state, sums, _ = engine.chunk(engine.init(), feed.resident(engine, tiny_corpus, 'train'), jnp.int32(2))
    found.append((jax.device_get(flat(state.model)), jax.device_get(sums)))
  name = 'encoder.convolution.layers.0.norm.running_mean'
  (model, sums), *same, (other, _) = found
  for others, more in same:
    assert sums['masked'] == more['masked'] and float(sums['loss']) == pytest.approx(float(more['loss']), rel=1e-5)
    for path, leaf in model.items():
      np.testing.assert_allclose(others[path], leaf, atol=5e-5, err_msg=path)
  assert np.abs(model[name]).min() > 1e-4
  assert max(np.abs(other[path] - leaf).max() for path, leaf in model.items()) > 2e-4


def test_each_device_computes_its_own_rows(tiny_corpus: pathlib.Path):
  """Also where a batch is accumulated: the work of a device is the batch's, divided by the devices."""
  def flops(**changes: int) -> float:
    engine = engines.make_engine(run_config(tiny_corpus, batch_size=64, **changes))
    corpus = feed.resident(engine, tiny_corpus, 'train')
    return engine.chunk.lower(engine.shapes, corpus, jnp.int32(1)).compile().cost_analysis()['flops']

  one = flops(accumulation=1)
  assert flops(**{'mesh.data': 8, 'accumulation': 1}) < one / 8 * 1.5
  assert flops(**{'mesh.data': 8, 'accumulation': 4}) < one / 8 / 4 * 2.5  # XLA counts the body of a loop once


def test_devices_that_do_not_divide_a_micro_batch_are_refused(tiny_corpus: pathlib.Path):
  with pytest.raises(InputError, match='micro-batches of 4 rows over 8 devices'):
    engines.make_engine(run_config(tiny_corpus, accumulation=4, **{'mesh.data': 8}))


def test_memory_that_cannot_suffice_is_said_before_the_first_step(tiny_corpus: pathlib.Path,
                                                                  monkeypatch: pytest.MonkeyPatch, capsys):
  engine = engines.make_engine(run_config(tiny_corpus))
  rows = feed.resident(engine, tiny_corpus, 'train')
  engines.compiled(engine, rows)
  need = int(capsys.readouterr().err.partition('state and step take ')[2].split()[0])
  state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(engine.shapes))
  assert need * 2**20 > state
  monkeypatch.setattr(engines.backend, 'free_bytes', lambda device: 1000)
  with pytest.raises(InputError, match='0.0 GiB are free'):
    engines.compiled(engine, rows)


def test_a_population_holds_no_collective_along_its_axis(tiny_corpus: pathlib.Path):
  """What is added over devices is added over `data` alone: the groups of every collective stay in one member's row."""
  engine = engines.make_engine(run_config(tiny_corpus, **{'population.members': 4, 'mesh.population': 4, 'mesh.data': 2}))
  rows = feed.resident(engine, tiny_corpus, 'train')
  text = engine.chunk.lower(engine.shapes, rows, engines.count(engine, 1)).compile().as_text()
  found = [line for line in text.splitlines() if re.search(r' = .*(all-|collective-|reduce-scatter)[a-z-]*\(', line)]
  assert found and all('all-reduce' in line for line in found)
  groups = {line.partition('replica_groups=')[2].partition(', ')[0] for line in found}
  mesh = "mesh['population'=4,'data'=2,'model'=1] {'data'}"  # as JAX 0.12 has it printed
  assert groups <= {'{{0,1},{2,3},{4,5},{6,7}}', '[4,2]<=[8]', mesh}, groups
