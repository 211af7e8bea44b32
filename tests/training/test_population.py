"""A member of a population equals its solo computation, and members never communicate."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax.training import population, sharding


def compute(seed: Any, shared: Any) -> dict[str, Any]:
  """Returns the result of random numbers, a loop and a product with a shared matrix."""

  def multiply(_: Any, x: Any) -> Any:
    return jnp.tanh(x @ shared)

  x = jax.lax.fori_loop(0, 3, multiply, jax.random.normal(jax.random.key(seed), (4, 4)))
  return {'x': x, 'norm': jnp.linalg.norm(x)}


@pytest.mark.parametrize('members', [1, 3, 8])
def test_a_member_equals_its_solo_computation(members: int):
  mesh, shared = population.make_member_mesh(members), jnp.linspace(-1, 1, 16).reshape(4, 4)
  assert mesh.shape['population'] == members and mesh.devices.size == members
  seeds = population.shard_members(np.arange(members, dtype=np.uint32), mesh)
  together = jax.jit(population.map_over_members(compute, mesh))(
    seeds, jax.device_put(shared, sharding.replicated(mesh))
  )
  assert len(together['x'].sharding.device_set) == members
  for seed in range(members):
    alone, member = (
      jax.jit(compute)(jnp.uint32(seed), shared),
      population.select_member(together, seed),
    )
    jax.tree.map(np.testing.assert_array_equal, alone, member)


def test_more_members_share_the_devices():
  mesh = population.make_member_mesh(16)
  mapped = jax.jit(population.map_over_members(compute, mesh))(
    population.shard_members(np.arange(16, dtype=np.uint32), mesh), jnp.eye(4)
  )
  assert mapped['x'].shape == (16, 4, 4) and mesh.devices.size == 8
  np.testing.assert_array_equal(mapped['x'][13], jax.jit(compute)(jnp.uint32(13), jnp.eye(4))['x'])


def test_vmap_equals_map_up_to_roundings():
  mesh, shared = population.make_member_mesh(16), jnp.linspace(-1, 1, 16).reshape(4, 4)
  seeds = population.shard_members(np.arange(16, dtype=np.uint32), mesh)
  first, other = (
    jax.jit(population.map_over_members(compute, mesh, strategy))(seeds, shared)
    for strategy in ('map', 'vmap')
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), first, other)
  assert other['x'].shape == (16, 4, 4) and other['x'].sharding == first['x'].sharding


@pytest.mark.parametrize(
  'members, strategy, platform, expected',
  [
    (1, 'auto', 'cpu', 'single'),
    (1, 'vmap', 'gpu', 'single'),
    (2, 'auto', 'cpu', 'map'),
    (2, 'auto', 'gpu', 'vmap'),
    (2, 'auto', 'tpu', 'vmap'),
    (2, 'map', 'gpu', 'map'),
    (2, 'vmap', 'cpu', 'vmap'),
  ],
)
def test_auto_chooses_a_strategy_for_the_platform(
  members: int, strategy: str, platform: str, expected: str
):
  assert population.choose_strategy(members, strategy, platform) == expected


def test_members_do_not_communicate():
  mesh = population.make_member_mesh(8)
  program = (
    jax.jit(population.map_over_members(compute, mesh))
    .lower(jnp.arange(8, dtype=jnp.uint32), jnp.eye(4))
    .compile()
    .as_text()
  )
  assert not any(
    word in program for word in ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute')
  )
