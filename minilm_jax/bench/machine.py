"""Measures peak FLOP/s and memory bandwidth of this machine, and describes it.

A measurement is a loop inside one compiled program, so that it includes no dispatch. All devices
run at the same time. The program compiles and runs once untimed; the best of several timed runs
counts, because the result is an upper limit. Caches and links between devices are not measured.
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
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from minilm_jax.core import files

_MIN_SECONDS, _NUM_REPEATS = 0.1, 6  # duration and number of the timed loops
_PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy')


def choose_matrix_product() -> tuple[str, int]:
  """Returns dtype and side of the square matrices whose product reaches the highest FLOP/s."""
  return ('float32', 1024) if jax.default_backend() == 'cpu' else ('bfloat16', 8192)


def measure_peak_flops(dtype: str, side: int) -> float:
  """Returns FLOP/s of all devices; each multiplies matrices `[side side]`."""

  def init(key: Any) -> Any:
    # Scaled so that a product is as large as its factors.
    return jax.random.normal(key, (side, side), dtype) / math.sqrt(side)

  return measure_rate(lambda x, y: (y @ x).astype(dtype), init, 2 * side**3)


def measure_bandwidth(size: int = 0) -> float:
  """Returns bytes/s of all devices for `x = x / 2 + y`, which reads two arrays and writes one.

  Args:
    size: bytes of each array on a device; 0 chooses a size that exceeds every cache.
  """
  size = size or (64 if jax.default_backend() == 'cpu' else 512) << 20
  return measure_rate(lambda x, y: x / 2 + y, lambda key: jnp.ones(size // 4), 3 * size)


def measure_rate(
  update: Callable[[Any, Any], Any], init: Callable[[Any], Any], work: float
) -> float:
  """Returns work a second of all devices, each of which repeats `x = update(x, y)`.

  Args:
    update: one unit of `work`.
    init: maps a key to the initial `x` or to `y` of a device.
    work: operations or bytes of one update.
  """
  mesh = Mesh(np.array(jax.devices()), ('device',), axis_types=(AxisType.Auto,))
  per_device, replicated = PartitionSpec('device'), PartitionSpec()
  keys = jax.random.split(jax.random.key(0), mesh.size)
  init_all = jax.jit(jax.vmap(init), out_shardings=NamedSharding(mesh, per_device))
  x, y = init_all(keys), init_all(keys)

  @functools.partial(jax.jit, donate_argnums=1)
  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(replicated, per_device, per_device),
    out_specs=per_device,
    check_vma=False,
  )
  def loop(count: Any, x: Any, y: Any) -> Any:
    return jax.lax.fori_loop(0, count, lambda _, x: update(x, y[0]), x[0])[None]

  def time_loop(count: int) -> float:
    nonlocal x
    start = time.perf_counter()
    x = jax.block_until_ready(loop(count, x, y))
    return time.perf_counter() - start

  time_loop(1)
  count = max(1, round(_MIN_SECONDS / time_loop(1)))
  return work * mesh.size * count / min(time_loop(count) for _ in range(_NUM_REPEATS))


def read_peak_memory() -> int:
  """Returns the peak memory in bytes: of a device that counts it, else of this process."""
  stats = jax.local_devices()[0].memory_stats()
  if stats:
    return stats['peak_bytes_in_use']
  unit = 1 if sys.platform == 'darwin' else 1024
  return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def count_page_faults() -> int:
  """Returns the minor page faults of this process so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def read_load() -> float:
  """Returns the load average of the last minute; timings are unreliable above a few tenths."""
  return os.getloadavg()[0]


def describe_machine() -> str:
  """Returns the number and kind of devices, and the architecture of the processor."""
  kind = jax.devices()[0].device_kind
  cpu_info = pathlib.Path('/proc/cpuinfo')
  if kind == 'cpu' and cpu_info.exists():
    text = files.read_bytes(cpu_info, 'the description of the processor').decode('utf-8', 'replace')
    match = re.search(r'^model name\s*: (.+)$', text, re.M)
    kind = match[1].strip() if match else kind
  return f'{jax.device_count()} x {kind}, {platform.machine()}'


def list_versions(*libraries: str) -> dict[str, str]:
  """Returns the versions of Python, of the packages that determine speed, and of `libraries`.

  On an accelerator, `platform` is the version of its runtime, such as that of CUDA.
  """
  versions = {'python': platform.python_version()} | {
    name: importlib.metadata.version(name) for name in _PACKAGES + libraries
  }
  device = jax.devices()[0]
  if device.platform != 'cpu':
    versions['platform'] = ' '.join(device.client.platform_version.split())
  return versions


def describe_conditions(load_before: float, *libraries: str) -> dict[str, Any]:
  """Returns the fields of a result that describe its machine, load and versions."""
  return {
    'machine': describe_machine(),
    'load_before': load_before,
    'versions': list_versions(*libraries),
  }


def format_conditions(result: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns the table rows for the fields of `describe_conditions`."""
  versions = ', '.join(f'{name} {version}' for name, version in result['versions'].items())
  return [
    ('machine', result['machine']),
    ('load average before', f'{result["load_before"]:.2f}'),
    ('versions', versions),
  ]
