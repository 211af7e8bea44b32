"""Populations: the program of one member, lifted to many (idea 2 of the design: write for one, lift at the edge).

Members lie along the mesh axis `population` and never communicate. How those of one device share it is a switch: one
after another (`loop`), or all in each operation (`vmap`). What all members read, such as a corpus, every device holds.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from minilm_jax.config import MeshConfig, PopulationConfig, RunConfig
from minilm_jax.training import sharding, steps

_MEMBERS = PartitionSpec('population')


def make_mesh(members: int) -> Mesh:
  """A mesh that spreads so many members over the devices there are, a device for each or all devices."""
  return sharding.make_mesh(MeshConfig(population=min(members, jax.device_count()), data=1, model=1))


def how(members: int, lift: str, platform: str) -> str:
  """How the members of a device share it: `alone` where there is one member, else `loop` or `vmap`.

  Where the recipe leaves it open (`auto`): a CPU keeps one member in its cache at a time, what is wider than a tiny
  model takes all of them at once.
  """
  if members == 1:
    return 'alone'
  if lift != 'auto':
    return lift
  return 'loop' if platform == 'cpu' else 'vmap'


def solo(config: RunConfig) -> list[RunConfig]:
  """The recipe of each member, as if it were alone."""
  names, of = range(config.population.members), config.population
  alone = PopulationConfig(1, 'auto', (), (), (), (), (), ())

  def given(values: tuple, number: int, otherwise: Any) -> Any:
    return values[number] if values else otherwise

  return [dataclasses.replace(
      config, seed=given(of.seeds, n, config.seed + n), population=alone,
      mesh=dataclasses.replace(config.mesh, population=0),
      optimizer=dataclasses.replace(config.optimizer,
                                    learning_rate=given(of.learning_rates, n, config.optimizer.learning_rate),
                                    weight_decay=given(of.weight_decays, n, config.optimizer.weight_decay)),
      mask=dataclasses.replace(config.mask, rate=given(of.mask_rates, n, config.mask.rate),
                               random=given(of.mask_randoms, n, config.mask.random),
                               keep=given(of.mask_keeps, n, config.mask.keep))) for n in names]


def seeds(config: RunConfig) -> np.ndarray:
  """The seed of each member."""
  return np.array([one.seed for one in solo(config)], np.uint32)


def settings(config: RunConfig, length: int) -> steps.Settings:
  """What the members differ in, for rows of this length; in a population with a leading axis `P`.

  All have as many positions as the member that predicts most; the others leave some of theirs unused.
  """
  each = [steps.settings(one, length) for one in solo(config)]
  if len(each) == 1:
    return jax.tree.map(jnp.float32, each[0])
  most = max(one.policy.positions for one in each)
  each = [dataclasses.replace(one, policy=dataclasses.replace(one.policy, positions=most)) for one in each]
  return jax.tree.map(lambda *numbers: jnp.array(numbers, jnp.float32), *each)


def lift(function: Callable[..., Any], mesh: Mesh, how: str = 'loop') -> Callable[..., Any]:
  """A function of one member, put on the devices of a mesh.

  Args:
    function: of one member's arrays, in one pytree, and of arguments that all members share. It runs on each device of
      the axis `data` and may add over them.
    mesh: whose axis `population` divides the members.
    how: `alone` for a single member; `loop` or `vmap` for a population, whose arrays have a leading axis `P`.
  """
  def own(members: Any, *shared: Any) -> Any:
    if how == 'alone':
      return function(members, *shared)
    over = jax.vmap if how == 'vmap' else lambda one: lambda members: jax.lax.map(one, members)
    return over(lambda member: function(member, *shared))(members)

  def lifted(members: Any, *shared: Any) -> Any:
    place = PartitionSpec() if how == 'alone' else _MEMBERS
    return jax.shard_map(own, mesh=mesh, in_specs=(place, *[PartitionSpec()] * len(shared)), out_specs=place,
                         axis_names={'population', 'data'}, check_vma=False)(members, *shared)

  return lifted


def place_of(mesh: Mesh, how: str) -> NamedSharding:
  """Where an array lies of which each member has one number."""
  return NamedSharding(mesh, PartitionSpec() if how == 'alone' else _MEMBERS)


def over_members(place: NamedSharding) -> NamedSharding:
  """Where the arrays of all members lie, from where those of one would."""
  return NamedSharding(place.mesh, PartitionSpec('population', *place.spec))


def place(members: Any, mesh: Mesh) -> Any:
  """Puts arrays with a leading axis `P` where `lift` wants them."""
  return jax.device_put(members, NamedSharding(mesh, _MEMBERS))


def take(members: Any, number: int) -> Any:
  """One member as if it had been alone."""
  return jax.tree.map(lambda x: jnp.asarray(x[number]), members)


def each(values: dict[str, Any], count: int) -> list[dict[str, Any]]:
  """What each member has, from arrays of all of them (or of the only one), on the host."""
  arrays = {name: np.reshape(value, count) for name, value in values.items()}
  return [{name: array[number].item() for name, array in arrays.items()} for number in range(count)]
