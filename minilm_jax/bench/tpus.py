"""Describes TPUs to the compiler, so that programs compile on machines without a TPU."""

import dataclasses
import importlib.metadata
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from minilm_jax.core import backend
from minilm_jax.core.errors import InputError, require_library

# A topology with a zero makes libtpu divide by zero.
_TOPOLOGY = re.compile(r'(\w+):[1-9]\d*(x[1-9]\d*){1,2}')


@dataclasses.dataclass(frozen=True)
class Chip:
  """A TPU chip.

  Attributes:
    memory: bytes.
    flops: peak FLOP/s in bfloat16.
    clock: cycles/s.
    setup: the chip configuration, as libtpu names it.
  """

  memory: int
  flops: float
  clock: float
  setup: str = 'default'


# Source of memory and peak: docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e. The clock follows
# from the peak and the number of matrix units there. The clock of v6e follows from the cycles that
# the compiler gives a large product and a large copy.
CHIPS = {
  'v4': Chip(32 << 30, 275e12, 1.05e9, 'megacore'),  # two cores form one device
  'v5e': Chip(16 << 30, 197e12, 1.5e9),
  'v5p': Chip(95 << 30, 459e12, 1.75e9),
  'v6e': Chip(32 << 30, 918e12, 1.75e9),
}


def describe_version() -> str:
  """Returns the version of libtpu, and the version that JAX needs if it differs."""
  version = importlib.metadata.version('libtpu')
  requirements = ' '.join(importlib.metadata.requires('jax') or [])
  needed = re.search(r'libtpu==([\d.]+)\.\*', requirements)
  if needed is None or version.startswith(f'{needed[1]}.') or version == needed[1]:
    return f'libtpu {version}'
  return f'libtpu {version}, and this version of jax needs libtpu=={needed[1]}.*'


def describe_devices(topology: str) -> tuple[Chip, Sequence[jax.Device]]:
  """Returns the chip and the described devices of a topology."""
  subject, name = f'--topology={topology}', topology.partition(':')[0]
  remedy = 'give a chip and an arrangement, such as v4:2x2x2, v5e:2x4, v5p:2x2x2 or v6e:2x4'
  if not _TOPOLOGY.fullmatch(topology):
    raise InputError(subject, 'no arrangement of chips', remedy)
  require_library('libtpu', 'tpu', subject)
  backend.hide_accelerators()
  try:
    description = topologies.get_topology_desc(
      topology, platform='tpu', chip_config_name=CHIPS[name].setup
    )
  except jax.errors.JaxRuntimeError as error:
    raise InputError(subject, str(error).splitlines()[0], remedy) from None
  return CHIPS[name], description.devices
