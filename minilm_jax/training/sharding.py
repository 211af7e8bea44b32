"""The mesh and the one table of rules that says where each array of a run lies.

Axes are `("population", "data", "model")`. A model of 1-20 million parameters fits any device, so parameters are
replicated and only the batch is split; the two matrices with a vocabulary in their shape and the feed-forward ones may
be split over `model`. The optimizer's moments have the paths of the parameters they belong to and so follow the same
rules.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from minilm_jax.config import MeshConfig
from minilm_jax.errors import InputError
from minilm_jax.model.initialization import path_name

AXES = ('population', 'data', 'model')
RULES: tuple[tuple[str, PartitionSpec], ...] = (  # the first pattern that a path contains decides
    (r'embedding\.tokens\.embedding$', PartitionSpec('model', None)),  # V x E: split over the vocabulary
    (r'(^|\.)output\.kernel$', PartitionSpec(None, 'model')),  # D x V, and attention's D x D, by its columns
    (r'feed_forward\.up\.kernel$', PartitionSpec(None, 'model')),  # D x F
    (r'feed_forward\.down\.kernel$', PartitionSpec('model', None)),  # F x D: the sum over F is the one collective
    (r'(embedding|projection\.linear|convolution|attention\.\w+|transform)\.', PartitionSpec()),  # at most D x D: whole
)
_FOREIGN = (r'(^|\.)encoder\.', PartitionSpec())  # before all of them for an encoder of the user's own: whole
_LARGE = 1 << 16  # elements; an array without a rule is replicated only below this


def make_mesh(config: MeshConfig, rows: int = 0, members: int = 0, devices: Sequence[jax.Device] = ()) -> Mesh:
  """The mesh of a run.

  Args:
    config: devices along each axis; `population=0` takes as many as divide `members`, then `data=0` what is left, as
      far as it divides `rows`.
    rows: of a batch; 0 where none is to be split.
    members: of the population; 0 where none is to be spread.
    devices: what to spread it over; all there are if none is given.

  Raises:
    InputError: the axes do not fit the devices, or the members the axis.
  """
  devices = devices or jax.devices()
  population = config.population or _most(members, len(devices) // (config.model * (config.data or 1)))
  data = config.data or _most(rows, len(devices) // (population * config.model))
  shape = (population, data, config.model)
  wanted = math.prod(shape)
  if wanted > len(devices):
    raise InputError(f'a mesh of {population} x {data} x {config.model} devices', f'{len(devices)} devices',
                     'lower mesh.population, mesh.data or mesh.model')
  if members % population:
    raise InputError(f'{members} members over mesh.population={population}', 'it does not divide them',
                     'give another mesh.population, or 0 to have it chosen')
  idle = {device.process_index for device in devices} - {device.process_index for device in devices[:wanted]}
  if idle:
    asked = f'a mesh of {population} x {data} x {config.model} devices'
    raise InputError(asked, f'process {min(idle)} has none of them',
                     'change batch_size or mesh.data so that all have a share, or start fewer processes')
  return Mesh(np.array(devices[:wanted]).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def _most(count: int, devices: int) -> int:
  """The most of so many devices that divide `count`; all where it is 0."""
  return next((n for n in range(devices, 0, -1) if count % n == 0), 1)


def state_sharding(state: Any, mesh: Mesh) -> Any:
  """The sharding of every array of a TrainState (arrays or shapes), by the table.

  Raises:
    InputError: an axis of the mesh does not divide the array that a rule splits over it; a rule matches nothing; a
      large array matches no rule.
  """
  used, foreign = set(), bool(state.model.config.encoder)
  rules = (_FOREIGN, *RULES) if foreign else RULES

  def place(path: tuple, leaf: Any) -> NamedSharding:
    name = path_name(path)
    rule = next((rule for rule in rules if re.search(rule[0], name)), None)
    if rule is None and math.prod(leaf.shape) >= _LARGE:
      raise InputError(f'a place for {name} {leaf.shape}', 'no rule for so large an array', 'add one to sharding.RULES')
    used.add(rule)
    spec = PartitionSpec() if rule is None or not leaf.ndim else rule[1]
    for size, axis in zip(leaf.shape, spec):
      if axis and size % mesh.shape[axis]:
        raise InputError(f'{name} {leaf.shape} split over {axis}', f'{mesh.shape[axis]} devices do not divide {size}',
                         f'give a mesh.{axis} that does')
    return NamedSharding(mesh, spec)

  placed = jax.tree_util.tree_map_with_path(place, state)
  idle = [pattern for pattern, spec in RULES if (pattern, spec) not in used]
  if idle and not foreign:  # which may have no array such as ours
    raise InputError('a sharding for every rule', f'no array matches {", ".join(idle)}', 'mend sharding.RULES')
  return placed


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of what every device holds whole, such as the corpus."""
  return NamedSharding(mesh, PartitionSpec())


def everywhere(values: Any, mesh: Mesh) -> Any:
  """Puts arrays of the host, whole, on every device; each of several processes puts what it has on its own."""
  place = replicated(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_callback(np.shape(x), place, lambda index: x[index]), values)
