"""Builds the mesh, and shards each array of a run by one table of rules.

Axes are `("population", "data", "model")`. A model of 1-20 million parameters fits any device, so
parameters are replicated and only the batch is split; the two matrices with a vocabulary in their
shape and the feed-forward ones may be split over `model`. The optimizer's moments have the paths of
the parameters they belong to and so follow the same rules.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from minilm_jax.core.config import MeshConfig
from minilm_jax.core.errors import InputError
from minilm_jax.model.initialization import path_name

AXES = ('population', 'data', 'model')
RULES: tuple[tuple[str, PartitionSpec], ...] = (  # the first pattern that a path contains decides
  # V x E: split over the vocabulary
  (r'embedding\.tokens\.embedding$', PartitionSpec('model', None)),
  # D x V, and attention's D x D, by its columns
  (r'(^|\.)output\.kernel$', PartitionSpec(None, 'model')),
  # D x F
  (r'feed_forward\.up\.kernel$', PartitionSpec(None, 'model')),
  # F x D: the sum over F is the one collective
  (r'feed_forward\.down\.kernel$', PartitionSpec('model', None)),
  # at most D x D: replicated
  (r'(embedding|projection\.linear|convolution|attention\.\w+|transform)\.', PartitionSpec()),
)
# Goes before all others: a custom encoder is replicated.
_CUSTOM_ENCODER_RULE = (r'(^|\.)encoder\.', PartitionSpec())
MAX_REPLICATED_ELEMENTS = 1 << 16  # an array without a rule is replicated only below this size


def make_mesh(
  config: MeshConfig, rows: int = 0, members: int = 0, devices: Sequence[jax.Device] = ()
) -> Mesh:
  """Returns the mesh of a run.

  Args:
    config: devices along each axis; `population=0` takes as many as divide `members`, then `data=0`
      takes as many of the others as divide `rows`.
    rows: of a batch; 0 if no batch is split.
    members: of the population; 0 if there is none.
    devices: of the mesh; all by default.

  Raises:
    InputError: the axes do not fit the devices, or the members the axis.
  """
  devices = devices or jax.devices()
  population = config.population or _largest_divisor(
    members, len(devices) // (config.model * (config.data or 1))
  )
  data = config.data or _largest_divisor(rows, len(devices) // (population * config.model))
  shape = (population, data, config.model)
  size = math.prod(shape)
  if size > len(devices):
    raise InputError(
      f'a mesh of {population} x {data} x {config.model} devices',
      f'{len(devices)} devices',
      'lower mesh.population, mesh.data or mesh.model',
    )
  if members % population:
    raise InputError(
      f'{members} members over mesh.population={population}',
      'it does not divide them',
      'give another mesh.population, or 0 to have it chosen',
    )
  idle = {device.process_index for device in devices} - {
    device.process_index for device in devices[:size]
  }
  if idle:
    asked = f'a mesh of {population} x {data} x {config.model} devices'
    raise InputError(
      asked,
      f'process {min(idle)} has none of them',
      'change batch_size or mesh.data so that all have a share, or start fewer processes',
    )
  return Mesh(np.array(devices[:size]).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def _largest_divisor(count: int, devices: int) -> int:
  """Returns the largest number of these devices that divides `count`; all for a count of 0."""
  return next((n for n in range(devices, 0, -1) if count % n == 0), 1)


def state_sharding(state: Any, mesh: Mesh) -> Any:
  """Returns the sharding of every array of a TrainState (arrays or shapes), by the table.

  Raises:
    InputError: an axis of the mesh does not divide an array that a rule splits over it; a rule
      matches nothing; a large array matches no rule.
  """
  used, is_custom = set(), bool(state.model.config.encoder)
  rules = (_CUSTOM_ENCODER_RULE, *RULES) if is_custom else RULES

  def shard(path: tuple, leaf: Any) -> NamedSharding:
    name = path_name(path)
    rule = next((rule for rule in rules if re.search(rule[0], name)), None)
    if rule is None and math.prod(leaf.shape) >= MAX_REPLICATED_ELEMENTS:
      raise InputError(
        f'a place for {name} {leaf.shape}',
        'no rule for so large an array',
        'add one to sharding.RULES',
      )
    used.add(rule)
    spec = PartitionSpec() if rule is None or not leaf.ndim else rule[1]
    for size, axis in zip(leaf.shape, spec):
      if axis and size % mesh.shape[axis]:
        raise InputError(
          f'{name} {leaf.shape} split over {axis}',
          f'{mesh.shape[axis]} devices do not divide {size}',
          f'give a mesh.{axis} that does',
        )
    return NamedSharding(mesh, spec)

  shardings = jax.tree_util.tree_map_with_path(shard, state)
  unused = [pattern for pattern, spec in RULES if (pattern, spec) not in used]
  if unused and not is_custom:  # a custom encoder need not have the arrays of the rules
    raise InputError(
      'a sharding for every rule', f'no array matches {", ".join(unused)}', 'correct sharding.RULES'
    )
  return shardings


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays of which every device holds a copy, such as the corpus."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(values: Any, mesh: Mesh) -> Any:
  """Copies arrays of the host to every device of this process."""
  target = replicated(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(np.shape(x), target, lambda index: x[index]), values
  )
