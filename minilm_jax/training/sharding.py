"""Builds the mesh, and shards each array of a run by one table of rules.

Axes are `("population", "data", "model")`. A model of 1-20 million parameters fits any device, so
by default only the batch is split and parameters are replicated. The axis `model` may split the
matrices over the vocabulary, the output of attention, and the feed-forward matrices. The paths of
moments contain the paths of their parameters, so the rules apply to both.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from minilm_jax.core import backend, distributed
from minilm_jax.core.config import MeshConfig
from minilm_jax.core.errors import InputError
from minilm_jax.model.initialization import map_with_name

AXES = ('population', 'data', 'model')
RULES: tuple[tuple[str, PartitionSpec], ...] = (  # the first pattern that matches a path applies
  # [V E], split over the vocabulary
  (r'embedding\.tokens\.embedding$', PartitionSpec('model', None)),
  # [D V] of the head and [D D] of attention, split by columns
  (r'(^|\.)output\.kernel$', PartitionSpec(None, 'model')),
  # [D F]
  (r'feed_forward\.up\.kernel$', PartitionSpec(None, 'model')),
  # [F D]; the sum over F is the only collective
  (r'feed_forward\.down\.kernel$', PartitionSpec('model', None)),
  # at most [D D] or [V], replicated
  (
    r'(embedding|projection\.linear|convolution|attention|transform)\.|(^|\.)output[._]bias$',
    PartitionSpec(),
  ),
)
# Precedes the other rules: a custom encoder is replicated.
_CUSTOM_ENCODER_RULE = (r'(^|\.)encoder\.', PartitionSpec())
MAX_REPLICATED_ELEMENTS = 1 << 16  # larger arrays need a rule


def make_mesh(
  config: MeshConfig, rows: int = 0, members: int = 0, devices: Sequence[jax.Device] = ()
) -> Mesh:
  """Returns the mesh of a run.

  Args:
    config: Devices along each axis. `population=0` is the largest divisor of `members`, and
      `data=0` the largest divisor of `rows`, that the devices allow.

  Raises:
    InputError: The mesh needs more devices, leaves a process without a device, or does not divide
      the members. JAX computes in 64 bits, or has joined processes that do not train.
  """
  backend.check_precision()
  distributed.check_processes()
  devices = devices or jax.devices()
  population = config.population or _find_largest_divisor(
    members, len(devices) // (config.model * (config.data or 1))
  )
  data = config.data or _find_largest_divisor(rows, len(devices) // (population * config.model))
  shape = (population, data, config.model)
  size, subject = math.prod(shape), f'a mesh of {population} x {data} x {config.model} devices'
  if size > len(devices):
    raise InputError(
      subject, f'{len(devices)} devices', 'lower mesh.population, mesh.data or mesh.model'
    )
  if members % population:
    raise InputError(
      f'{members} members over mesh.population={population}',
      f'{population} does not divide {members}',
      'give another mesh.population, or 0 for the largest divisor',
    )
  idle = {device.process_index for device in devices} - {
    device.process_index for device in devices[:size]
  }
  if idle:
    raise InputError(
      subject,
      f'no device of process {min(idle)} in the mesh',
      'change batch_size or mesh.data to use the devices of all processes, or start fewer processes',
    )
  return Mesh(np.array(devices[:size]).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def _find_largest_divisor(count: int, devices: int) -> int:
  """Returns the largest divisor of `count` up to `devices`; `devices` for a count of 0."""
  return next((n for n in range(devices, 0, -1) if count % n == 0), 1)


def state_sharding(state: Any, mesh: Mesh) -> Any:
  """Returns the sharding of every array of a TrainState of arrays or shapes, by `RULES`.

  Raises:
    InputError: The mesh does not divide an array that a rule splits; a rule matches no array; a
      large array matches no rule.
  """
  used, is_custom = set(), bool(state.model.config.encoder)
  rules = (_CUSTOM_ENCODER_RULE, *RULES) if is_custom else RULES

  def shard(name: str, leaf: Any) -> NamedSharding:
    rule = next((rule for rule in rules if re.search(rule[0], name)), None)
    if rule is None and math.prod(leaf.shape) >= MAX_REPLICATED_ELEMENTS:
      raise InputError(
        f'the sharding of {name} {leaf.shape}',
        f'no rule, and at least {MAX_REPLICATED_ELEMENTS:,} elements',
        'add a rule to sharding.RULES',
      )
    used.add(rule)
    spec = PartitionSpec() if rule is None or not leaf.ndim else rule[1]
    for size, axis in zip(leaf.shape, spec):
      if axis and size % mesh.shape[axis]:
        raise InputError(
          f'{name} {leaf.shape} split over {axis}',
          f'{mesh.shape[axis]} devices do not divide {size}',
          f'give a mesh.{axis} that divides {size}',
        )
    return NamedSharding(mesh, spec)

  shardings = map_with_name(shard, state)
  unused = [pattern for pattern, spec in RULES if (pattern, spec) not in used]
  if unused and not is_custom:  # a custom encoder may lack the arrays of the rules
    raise InputError(
      'an array for every rule', f'no array matches {", ".join(unused)}', 'correct sharding.RULES'
    )
  return shardings


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that is copied to every device, such as the corpus."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(values: Any, mesh: Mesh) -> Any:
  """Copies arrays from the host to every device of this process."""
  target = replicated(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(np.shape(x), target, lambda index: x[index]), values
  )
