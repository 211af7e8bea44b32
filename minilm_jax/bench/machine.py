"""What this machine can do, measured now: matrix products and memory, every device at work at the
same time.

Each is a loop inside one compiled program, so that nothing is paid for dispatch; it is compiled and
run once untimed, then timed several times, and the best counts: what is asked for is a ceiling.
Caches and links between devices are left out.
"""

import functools
import importlib.metadata
import math
import os
import pathlib
import platform
import re
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from minilm_jax.core import files

_MIN_SECONDS, _NUM_REPEATS = 0.1, 6  # of one timed loop, and how many there are
_PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy')


def time_matrix_product() -> tuple[str, int]:
  """The kind of number and the side of the square matrices that the peak is measured with: the best
  of the device.
  """
  return ('float32', 1024) if jax.default_backend() == 'cpu' else ('bfloat16', 8192)


def measure_peak_flops(kind: str, side: int) -> float:
  """FLOP/s of matrix products, all devices together, one product of `side` x `side` on each."""

  def start(key: Any) -> Any:
    # so that products are as large as their parts
    return jax.random.normal(key, (side, side), kind) / math.sqrt(side)

  return _rate(lambda x, y: (y @ x).astype(kind), start, 2 * side**3)


def measure_bandwidth(size: int = 0) -> float:
  """Memory bandwidth, all devices together: x = x / 2 + y, which reads both and writes one.

  Args:
    size: bytes of each of the two arrays of a device; 0 takes what no cache holds.
  """
  size = size or (64 if jax.default_backend() == 'cpu' else 512) << 20
  return _rate(lambda x, y: x / 2 + y, lambda key: jnp.ones(size // 4), 3 * size)


def _rate(one: Callable[[Any, Any], Any], start: Callable[[Any], Any], work: float) -> float:
  """`work` a second where each device repeats `x = one(x, y)` with an x and a y of its own."""
  mesh = Mesh(np.array(jax.devices()), ('device',), axis_types=(AxisType.Auto,))
  each, whole = PartitionSpec('device'), PartitionSpec()
  keys = jax.random.split(jax.random.key(0), mesh.size)
  x, y = (jax.jit(jax.vmap(start), out_shardings=NamedSharding(mesh, each))(keys) for _ in range(2))

  @functools.partial(jax.jit, donate_argnums=1)
  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=(whole, each, each), out_specs=each, check_vma=False
  )
  def loop(count: Any, x: Any, y: Any) -> Any:
    return jax.lax.fori_loop(0, count, lambda _, x: one(x, y[0]), x[0])[None]

  def timed(count: int) -> float:
    nonlocal x
    begin = time.perf_counter()
    x = jax.block_until_ready(loop(count, x, y))
    return time.perf_counter() - begin

  timed(1)
  count = max(1, round(_MIN_SECONDS / timed(1)))
  return work * mesh.size * count / min(timed(count) for _ in range(_NUM_REPEATS))


def read_peak_memory() -> int:
  """The most memory held so far: by a device where it keeps count, else by this process."""
  counted = jax.local_devices()[0].memory_stats()
  unit = 1 if sys.platform == 'darwin' else 1024
  return (
    counted['peak_bytes_in_use']
    if counted
    else unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  )


def read_load() -> float:
  """How many processes wanted to run, on average over the last minute; above a few tenths, timings
  mean little.
  """
  return os.getloadavg()[0]


def describe_machine() -> str:
  """Devices, their kind and the processor's architecture."""
  kind = jax.devices()[0].device_kind
  table = pathlib.Path('/proc/cpuinfo')
  if kind == 'cpu' and table.exists():
    text = files.read_bytes(table, 'the description of the processor').decode('utf-8', 'replace')
    named = re.search(r'^model name\s*: (.+)$', text, re.M)
    kind = named[1].strip() if named else kind
  return f'{jax.device_count()} x {kind}, {platform.machine()}'


def list_versions(*more: str) -> dict[str, str]:
  """Of Python and of the packages that decide how fast a step is."""
  return {'python': platform.python_version()} | {
    name: importlib.metadata.version(name) for name in _PACKAGES + more
  }
