"""Settings of JAX and malloc that a process makes before it computes, and the memory of devices.

| setting | gain |
|---|---|
| one device a core, the batch split over them | 1.1 to 1.4 times the speed of one device with two threads |
| compiled programs kept between runs | the first step of a repeated run comes after 5 seconds, not 12 |
| one arena of glibc's malloc for all threads | 500 MiB, without it 790 and more with each save |
| blocks above a MiB on pages of their own | 9 MiB more in an endurance test, without it 14 |

The first two were measured with `minilm bench` on two cores of an EPYC, jax 0.10.2: the first at
the shapes (32,32,64,1), (256,256,1024,4) and that of the quickstart, the second at the larger of
them; the third with 150 saves of the tiny recipe, which took equally long; the fourth with
`tests/campaigns/endurance.py`.
"""

import ctypes
import os
import pathlib
import sys
from typing import Any

_MAX_CPU_DEVICES = 16  # each holds the parameters and their moments
_MEMORY_FILES = ('/proc/meminfo', '/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory.stat')
_DETERMINISTIC_FLAG = 'xla_gpu_deterministic_ops'
_DEVICE_COUNT_FLAG = 'xla_force_host_platform_device_count'
_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3  # parameters of mallopt(3)
_MMAP_THRESHOLD_BYTES = 1 << 20
# libtpu without a TPU: no metadata server, a lock shared with other processes, no warnings.
_ABSENT_TPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_MIN_LOG_LEVEL': '3',
  'TPU_STDERR_LOG_LEVEL': '3',
  'TF_CPP_MIN_LOG_LEVEL': '3',
}


def count_cores() -> int:
  """Returns the number of cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def prepare(deterministic: bool = False) -> None:
  """Makes the settings that the environment does not; does nothing after JAX has computed.

  Args:
    deterministic: on a GPU, use only kernels whose results do not differ from run to run; their
      cost has not been measured. Nothing changes on a CPU and a TPU.
  """
  import jax

  if 'MALLOC_ARENA_MAX' not in os.environ:  # each save has threads, which would use an arena each
    _call_malloc('mallopt', _M_ARENA_MAX, 1)
  if 'MALLOC_MMAP_THRESHOLD_' not in os.environ:  # malloc would raise it: holes in the heap
    _call_malloc('mallopt', _M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
  xla_flags = os.environ.get('XLA_FLAGS', '')
  if deterministic and _DETERMINISTIC_FLAG not in xla_flags:
    os.environ['XLA_FLAGS'] = f'{xla_flags} --{_DETERMINISTIC_FLAG}=true'.strip()
  try:
    if _DEVICE_COUNT_FLAG not in xla_flags and _jax_setting('jax_num_cpu_devices') < 0:
      jax.config.update('jax_num_cpu_devices', min(_MAX_CPU_DEVICES, count_cores()))
  except RuntimeError:  # JAX has created its devices
    return
  if not _jax_setting('jax_compilation_cache_dir'):
    cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache')
    jax.config.update('jax_compilation_cache_dir', str(cache / 'minilm_jax'))


def _jax_setting(name: str) -> Any:
  import jax

  return getattr(jax.config, name)


def release() -> None:
  """Returns freed memory to the system, where malloc is glibc's.

  The memory of a save lies between blocks that live on, and a later save may not fit there.
  """
  _call_malloc('malloc_trim', 0)


def _call_malloc(name: str, *values: int) -> None:
  if sys.platform == 'linux':
    getattr(ctypes.CDLL(None), name, lambda *_: 0)(*values)  # other libraries than glibc lack it


def free_bytes(device: Any) -> int | None:
  """Returns the free memory of a device (of the host for a CPU) in bytes, or None if unknown."""
  if device.platform != 'cpu':
    stats = device.memory_stats() or {}
    return stats['bytes_limit'] - stats['bytes_in_use'] if 'bytes_limit' in stats else None
  limits = []
  meminfo, container_limit, container_use = (pathlib.Path(path) for path in _MEMORY_FILES)
  if meminfo.exists():
    limits.append(1024 * _read_number(meminfo, 'MemAvailable:'))
  if container_limit.exists() and (text := container_limit.read_text().strip()).isdecimal():
    # Only anonymous memory counts: the system frees the cache of files when needed.
    limits.append(int(text) - _read_number(container_use, 'anon'))
  return min(limits, default=None)


def _read_number(path: pathlib.Path, name: str) -> int:
  """Returns the number in the line of a file that begins with a name."""
  lines = map(str.split, path.read_text().splitlines())
  return next(int(words[1]) for words in lines if words[0] == name)


def hide_accelerators() -> None:
  """Lets JAX compile for an absent TPU: it ignores accelerators and caches no such program."""
  import jax

  for name, value in _ABSENT_TPU.items():
    os.environ.setdefault(name, value)
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_enable_compilation_cache', False)
