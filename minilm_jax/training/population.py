"""Maps the program of one model over the members of a population.

Members lie along the mesh axis `population` and never communicate. The strategy for the members on
one device is `map`, one member after another, or `vmap`, all members in each operation. Every
device has a copy of shared arrays, such as the corpus.
"""

import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from minilm_jax.core.config import MeshConfig, PopulationConfig, RunConfig
from minilm_jax.training import sharding

_MEMBER_AXIS = PartitionSpec('population')
Number = float | Float[Array, '*P']


@typing.no_type_check  # JAX also stores shapes, shardings and tracers in the fields of a pytree
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemberSettings:
  """The numbers in which members of a population may differ, besides their seed.

  Attributes:
    learning_rate: Peak of the schedule.
    weight_decay: Weight decay of AdamW and Muon.
    mask_rate: Share of the tokens that are predicted.
    random_share: Share of the predicted positions with a random token as input.
    keep_share: Share of the predicted positions with the original token as input.
  """

  learning_rate: Number
  weight_decay: Number
  mask_rate: Number
  random_share: Number
  keep_share: Number


def make_member_mesh(members: int, devices: Sequence[jax.Device] = ()) -> Mesh:
  """Returns a mesh with one device a member, or with all devices if there are fewer devices."""
  count = min(members, len(devices) or jax.device_count())
  return sharding.make_mesh(MeshConfig(population=count, data=1, model=1), devices=devices)


def make_even_mesh(members: int, devices: Sequence[jax.Device] = ()) -> Mesh:
  """Returns a mesh with the largest number of devices that divides the members."""
  return sharding.make_mesh(MeshConfig(data=1), members=members, devices=devices)


def choose_strategy(members: int, strategy: str, platform: str) -> str:
  """Returns the strategy for the members on one device: `single` for one member, `map` or `vmap`.

  `auto` is `map` on a CPU, whose cache holds one member, and `vmap` on other devices.
  """
  if members == 1:
    return 'single'
  if strategy != 'auto':
    return strategy
  return 'map' if platform == 'cpu' else 'vmap'


def member_configs(config: RunConfig) -> list[RunConfig]:
  """Returns for each member the recipe of an equal run of one model."""
  population = config.population
  single = PopulationConfig()

  def pick(values: tuple, member: int, default: Any) -> Any:
    return values[member] if values else default

  return [
    dataclasses.replace(
      config,
      seed=pick(population.seeds, n, config.seed + n),
      population=single,
      mesh=dataclasses.replace(config.mesh, population=0),
      optimizer=dataclasses.replace(
        config.optimizer,
        learning_rate=pick(population.learning_rates, n, config.optimizer.learning_rate),
        weight_decay=pick(population.weight_decays, n, config.optimizer.weight_decay),
      ),
      mask=dataclasses.replace(
        config.mask,
        rate=pick(population.mask_rates, n, config.mask.rate),
        random_share=pick(population.mask_randoms, n, config.mask.random_share),
        keep_share=pick(population.mask_keeps, n, config.mask.keep_share),
      ),
    )
    for n in range(population.members)
  ]


def member_seeds(config: RunConfig) -> np.ndarray:
  """Returns the seed of each member."""
  return np.array([member.seed for member in member_configs(config)], np.uint32)


def member_settings(config: RunConfig) -> MemberSettings:
  """Returns the settings in which members differ, with a leading axis `P` for a population."""
  settings = [
    MemberSettings(
      member.optimizer.learning_rate,
      member.optimizer.weight_decay,
      member.mask.rate,
      member.mask.random_share,
      member.mask.keep_share,
    )
    for member in member_configs(config)
  ]
  if len(settings) == 1:
    return jax.tree.map(jnp.float32, settings[0])
  return jax.tree.map(lambda *numbers: jnp.array(numbers, jnp.float32), *settings)


def map_over_members(
  function: Callable[..., Any], mesh: Mesh, strategy: str = 'map'
) -> Callable[..., Any]:
  """Returns a function of one member, mapped over all members on the devices of a mesh.

  Args:
    function: Takes a pytree of the arrays of one member, and arguments that members share. Each
      device of the axis `data` runs the function, which may add over this axis.
    strategy: `single` for one member; `map` or `vmap` for arrays with a leading axis `P`.
  """

  def device_function(members: Any, *shared: Any) -> Any:
    if strategy == 'single':
      return function(members, *shared)
    if strategy == 'vmap':
      return jax.vmap(lambda member: function(member, *shared))(members)
    return jax.lax.map(lambda member: function(member, *shared), members)

  def mapped(members: Any, *shared: Any) -> Any:
    spec = PartitionSpec() if strategy == 'single' else _MEMBER_AXIS
    # Beside an automatic axis, JAX constrains the sharding of every operation, which doubles the
    # program. So `model` is automatic only if it divides arrays.
    axes = set(mesh.axis_names) - ({'model'} if mesh.shape['model'] > 1 else set())
    return jax.shard_map(
      device_function,
      mesh=mesh,
      in_specs=(spec, *[PartitionSpec()] * len(shared)),
      out_specs=spec,
      axis_names=axes,
      check_vma=False,
    )(members, *shared)

  return mapped


def member_sharding(mesh: Mesh, strategy: str) -> NamedSharding:
  """Returns the sharding of an array that has one entry a member."""
  return NamedSharding(mesh, PartitionSpec() if strategy == 'single' else _MEMBER_AXIS)


def stacked_sharding(single: NamedSharding) -> NamedSharding:
  """Returns the sharding of an array with a leading axis `P`, from the sharding of one member."""
  return NamedSharding(single.mesh, PartitionSpec('population', *single.spec))


def shard_members(members: Any, mesh: Mesh) -> Any:
  """Copies arrays with a leading axis `P` to the devices that `map_over_members` uses."""
  return jax.device_put(members, NamedSharding(mesh, _MEMBER_AXIS))


def select_member(members: Any, index: int) -> Any:
  """Returns the arrays of one member, from arrays with a leading axis `P`."""
  return jax.tree.map(lambda x: jnp.asarray(x[index]), members)


def unstack(values: dict[str, Any], members: int) -> list[dict[str, Any]]:
  """Returns a dict of Python numbers for each member, from arrays of all members on the host."""
  arrays = {name: np.reshape(value, members) for name, value in values.items()}
  return [
    {name: array[member].item() for name, array in arrays.items()} for member in range(members)
  ]
