"""How JAX is set up, in one place, before it computes anything: devices of a CPU, and where
compiled programs are kept.

| setting | gain |
|---|---|
| one device a core, the batch split over them | 1.1 to 1.4 times the speed of one device with two threads |
| compiled programs kept between runs | the first step of a repeated run comes after 5 seconds, not 12 |
| one arena of glibc's malloc for all threads | 500 MiB where there were 790 and more with each save |
| what is larger than a MiB on pages of its own | over a soak (`tests/campaigns/endurance.py`) 9 MiB more, where it was 14 |

The first two were measured with `minilm bench` on two cores of an EPYC, jax 0.10.2: the first at
the shapes (32,32,64,1), (256,256,1024,4) and that of the quickstart, the second at the larger of
them; the third with 150 saves of the tiny recipe, which took equally long.
"""

import ctypes
import os
import pathlib
import sys
from typing import Any

_MAX_ARENA_BYTES = 16  # devices; each holds the parameters and their moments
_MEMORY = ('/proc/meminfo', '/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory.stat')
_DETERMINISTIC = 'xla_gpu_deterministic_ops'
# the names that mallopt(3) gives these numbers are M_ARENA_MAX, M_MMAP_THRESHOLD
_MOST_ARENAS, _OWN_PAGES = -8, -3
_CHOSEN = 'xla_force_host_platform_device_count'
# libtpu without a TPU: it asks no metadata server, shares its lock with other processes, keeps its
# warnings to itself
_ABSENT_TPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_MIN_LOG_LEVEL': '3',
  'TPU_STDERR_LOG_LEVEL': '3',
  'TF_CPP_MIN_LOG_LEVEL': '3',
}


def cores() -> int:
  """How many cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def prepare(deterministic: bool = False) -> None:
  """Sets what has not been set by the environment; does nothing to a process that has computed
  already.

  Args:
    deterministic: on a GPU, only kernels whose results do not differ from run to run, by a flag of
      XLA's own; what they cost there has not been measured yet: `minilm bench` with and without
      XLA_FLAGS=--xla_gpu_deterministic_ops=true tells. On a CPU and a TPU nothing changes.
  """
  import jax  # here, for those who only count cores do without it

  if 'MALLOC_ARENA_MAX' not in os.environ:
    # each save has threads of its own, which would free in as many arenas
    _tell_malloc('mallopt', _MOST_ARENAS, 1)
  if 'MALLOC_MMAP_THRESHOLD_' not in os.environ:
    # else malloc raises it, and what is large leaves holes in the heap
    _tell_malloc('mallopt', _OWN_PAGES, 1 << 20)
  if deterministic and _DETERMINISTIC not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --{_DETERMINISTIC}=true'.strip()
  try:
    if _CHOSEN not in os.environ.get('XLA_FLAGS', '') and jax.config.jax_num_cpu_devices < 0:
      jax.config.update('jax_num_cpu_devices', min(_MAX_ARENA_BYTES, cores()))
  except RuntimeError:  # JAX has made its devices
    return
  if not jax.config.jax_compilation_cache_dir:
    place = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update('jax_compilation_cache_dir', str(pathlib.Path(place) / 'minilm_jax'))


def release() -> None:
  """Gives what was freed back to the system, where malloc is glibc's.

  What a save frees lies between what goes on living, and each save may find its holes too small.
  """
  _tell_malloc('malloc_trim', 0)


def _tell_malloc(name: str, *values: int) -> None:
  if sys.platform == 'linux':
    # a libc that is not glibc has no such function
    getattr(ctypes.CDLL(None), name, lambda *values: 0)(*values)


def free_bytes(device: Any) -> int | None:
  """Memory that a device, or for a CPU the machine, can still give; None where nobody says."""
  if device.platform != 'cpu':
    stats = device.memory_stats() or {}
    return stats['bytes_limit'] - stats['bytes_in_use'] if 'bytes_limit' in stats else None
  found = []
  meminfo, limit, use = (pathlib.Path(path) for path in _MEMORY)
  if meminfo.exists():
    found.append(1024 * _number(meminfo, 'MemAvailable:'))
  if limit.exists() and limit.read_text().strip().isdecimal():  # of a container; else it says 'max'
    # what files fill is given up when it is needed
    found.append(int(limit.read_text()) - _number(use, 'anon'))
  return min(found, default=None)


def _number(path: pathlib.Path, name: str) -> int:
  """The number in the line of a file that begins with a name."""
  return next(
    int(words[1]) for words in map(str.split, path.read_text().splitlines()) if words[0] == name
  )


def without_accelerator() -> None:
  """For compiling for a TPU that is not there: JAX leaves accelerators alone and keeps no program
  it could not load.
  """
  import jax

  for name, value in _ABSENT_TPU.items():
    os.environ.setdefault(name, value)
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_enable_compilation_cache', False)
