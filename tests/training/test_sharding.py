"""Meshes fit devices, rows and members; every rule applies, also to the moments of parameters."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs import base
from minilm_jax.core import recipe
from minilm_jax.core.config import MeshConfig, RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.model.initialization import flatten
from minilm_jax.training import sharding, train_step


def run_config(**changes: int) -> RunConfig:
  config = base.pretrain()
  config.model.update({'vocab_size': 64, **changes})
  return recipe.resolve(config, 'pretrain')


def shapes(config: RunConfig) -> train_step.TrainState:
  return jax.eval_shape(lambda: train_step.init_state(0, config))


def partition_specs(config: RunConfig, mesh: MeshConfig) -> dict[str, PartitionSpec]:
  shardings = sharding.state_sharding(shapes(config), sharding.make_mesh(mesh))
  return {name: leaf_sharding.spec for name, leaf_sharding in flatten(shardings).items()}


@pytest.mark.parametrize(
  'config, shape',
  [
    (MeshConfig(1, 0, 1), (1, 8, 1)),
    (MeshConfig(1, 0, 2), (1, 4, 2)),
    (MeshConfig(2, 2, 2), (2, 2, 2)),
    (MeshConfig(1, 1, 1), (1, 1, 1)),
    (MeshConfig(1, 0, 3), (1, 2, 3)),
    (MeshConfig(4, 0, 1), (4, 2, 1)),
  ],
)
def test_the_data_axis_takes_the_remaining_devices(config: MeshConfig, shape: tuple[int, ...]):
  mesh = sharding.make_mesh(config)
  assert mesh.axis_names == sharding.AXES and mesh.devices.shape == shape
  assert len({device.id for device in mesh.devices.flat}) == mesh.devices.size


@pytest.mark.parametrize('config', [MeshConfig(1, 9, 1), MeshConfig(3, 3, 1), MeshConfig(1, 0, 16)])
def test_a_mesh_larger_than_the_machine_is_refused(config: MeshConfig):
  with pytest.raises(InputError, match='8 devices'):
    sharding.make_mesh(config)


def test_a_rule_that_matches_nothing_is_refused(monkeypatch):
  """A rule that never applies, because an earlier rule matches first, is refused too."""
  for rule in ((r'no\.such\.path$', PartitionSpec()), sharding.RULES[0]):
    monkeypatch.setattr(sharding, 'RULES', (*sharding.RULES, (rule[0] + '()', rule[1])))
    with pytest.raises(InputError, match=re.escape(rule[0])):
      partition_specs(run_config(), MeshConfig(1, 0, 2))
    monkeypatch.undo()


def test_a_large_array_without_a_rule_is_refused(monkeypatch):
  # The rule of the output matrix is missing.
  monkeypatch.setattr(sharding, 'RULES', (sharding.RULES[0], *sharding.RULES[2:]))
  with pytest.raises(InputError, match=r'output.kernel \(\d+, 19010\)'):
    partition_specs(run_config(vocab_size=19_010), MeshConfig(1, 0, 2))


@pytest.mark.parametrize('tied', [True, False])
def test_a_vocabulary_of_any_size_is_sharded(tied: bool):
  specs = partition_specs(run_config(vocab_size=250_002, tied=tied), MeshConfig(1, 0, 2))
  assert not any(specs['model.output_bias' if tied else 'model.output.bias'])


def test_the_model_axis_splits_five_matrices():
  specs = partition_specs(run_config(), MeshConfig(1, 0, 2))
  split = {
    name.removeprefix('model.'): spec
    for name, spec in specs.items()
    if name.startswith('model.') and any(spec)
  }
  assert split == {
    'encoder.embedding.tokens.embedding': PartitionSpec('model', None),
    'encoder.blocks.0.attention.output.kernel': PartitionSpec(None, 'model'),
    'encoder.blocks.0.feed_forward.up.kernel': PartitionSpec(None, 'model'),
    'encoder.blocks.0.feed_forward.down.kernel': PartitionSpec('model', None),
    'output.kernel': PartitionSpec(None, 'model'),
  }


def test_large_arrays_are_split():
  """At the sizes of paper 1, arrays of a million elements or more are not replicated."""
  config = run_config(
    vocab_size=19_010, embedding_size=256, hidden_size=256, intermediate_size=1024, num_layers=8
  )
  specs = partition_specs(config, MeshConfig(1, 0, 2))
  replicated = [
    name
    for name, leaf in flatten(shapes(config)).items()
    if leaf.size >= 1e6 and not any(specs[name])
  ]
  assert not replicated, f'add rules to minilm_jax/training/sharding.py for {replicated}'


@pytest.mark.parametrize('rows, data', [(0, 8), (16, 8), (12, 6), (7, 7), (11, 1)])
def test_the_data_axis_divides_the_batch(rows: int, data: int):
  assert sharding.make_mesh(MeshConfig(1, 0, 1), rows).shape['data'] == data


@pytest.mark.parametrize('algorithm', ['adamw', 'muon'])
def test_moments_have_the_sharding_of_their_parameters(algorithm: str):
  config = run_config(short_convolution=3)
  config = dataclasses.replace(
    config, optimizer=dataclasses.replace(config.optimizer, algorithm=algorithm)
  )
  specs = partition_specs(config, MeshConfig(1, 0, 2))
  for name, spec in specs.items():
    if parameter := re.search(r'\.(mu|nu)\.(.*)', name):
      assert spec == specs[f'model.{parameter[2]}'], name
  assert sum('.mu.' in name for name in specs) == sum(name.startswith('model.') for name in specs)


def test_an_axis_that_does_not_divide_an_array_is_refused():
  with pytest.raises(InputError, match=r'embedding.tokens.embedding \(65, 32\)'):
    partition_specs(run_config(vocab_size=65), MeshConfig(1, 0, 2))


def test_every_device_has_a_copy_of_a_replicated_array():
  mesh = sharding.make_mesh(MeshConfig(1, 0, 1))
  x = jnp.zeros((16, 4))
  assert {
    s.data.shape for s in jax.device_put(x, sharding.replicated(mesh)).addressable_shards
  } == {(16, 4)}


def test_a_process_without_a_device_in_the_mesh_is_refused(monkeypatch):
  devices = [types.SimpleNamespace(process_index=number // 2) for number in range(6)]
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  with pytest.raises(InputError, match='process 2'):
    sharding.make_mesh(MeshConfig(1, 0, 1), rows=16)


def test_arrays_of_the_host_are_replicated():
  mesh = sharding.make_mesh(MeshConfig(1, 0, 1))
  copies = sharding.replicate({'rows': np.arange(6).reshape(3, 2), 'count': np.int32(4)}, mesh)
  assert (
    copies['rows'].sharding == sharding.replicated(mesh)
    and len(copies['rows'].addressable_shards) == mesh.size
  )
  assert copies['rows'].tolist() == [[0, 1], [2, 3], [4, 5]] and int(copies['count']) == 4
