"""Configures JAX and malloc before computation, and reports free memory.

| setting | effect |
|---|---|
| one CPU device a core, batch split over devices | 1.1 to 1.4 times faster than one device |
| persistent compilation cache | first step after 5 s in a repeated run, not 12 s |
| one malloc arena for all threads (glibc) | 500 MiB of memory; otherwise 790 MiB and growing |
| freed memory stays in the process until `release` (glibc) | 1.27 times faster; 0 page faults a step, not 28,910 |
| huge pages for the heap (Linux) | 482 of 592 MiB of memory in huge pages |
| matrix products from cuBLAS, not Triton (NVIDIA GPU) | first step after 18 s, not 48 s |

Measured on two cores of an AMD EPYC with jax 0.10.2. Row 1: `minilm bench` with sizes E,D,F,layers
of (32,32,64,1), (256,256,1024,4) and those of the quickstart. Row 2: the largest of these sizes.
Row 3: 150 checkpoints of `configs/tiny.py`, in equal time. Rows 4 and 5: `minilm bench` of
(32,32,64,1) with batches of 64 rows, on two Xeon cores. Row 6: (32,32,64,1) on an H200 with jax
0.11.2 (docs/results/gpu.md).
"""

import ctypes
import hashlib
import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from minilm_jax.core.errors import InputError

_MAX_CPU_DEVICES = 16  # each device stores parameters and moments
_CGROUPS, _CGROUP_ROOT = pathlib.Path('/proc/self/cgroup'), pathlib.Path('/sys/fs/cgroup')
CUDA_PLUGINS = ('jax_cuda12_plugin', 'jax_cuda13_plugin')
_DETERMINISTIC_FLAG = 'xla_gpu_deterministic_ops'
# XLA compiles and times several Triton kernels for each matrix product. Without them a step takes
# the same time at (32,32,64,1), and 6% more at (256,256,1024,8).
TRITON_FLAG = 'xla_gpu_enable_triton_gemm'
_DEVICE_COUNT_FLAG = 'xla_force_host_platform_device_count'
_MIN_COMPILE_SECONDS = 'jax_persistent_cache_min_compile_time_secs'
# Parameters of mallopt(3) and their values: freed blocks below 1 GiB stay in the process. Otherwise
# every matrix product of every step maps and clears its temporaries again.
_RETAIN_MEMORY = {
  'MALLOC_ARENA_MAX': (-8, 1),  # otherwise each thread of a save creates an arena
  'MALLOC_MMAP_THRESHOLD_': (-3, 1 << 30),
  'MALLOC_TRIM_THRESHOLD_': (-1, 2**31 - 1),
  'MALLOC_TOP_PAD_': (-2, 64 << 20),
}
_UNKNOWN_GPU_BYTES = 64 << 30
# GPUs whose name by the driver has no size.
_GPU_GIBIBYTES = {'T4': 16, 'L4': 24, 'RTX 4090': 24, 'H200': 141}
_HEAP_BYTES = 512 << 20  # address space for temporaries; untouched pages take no memory
_MADV_HUGEPAGE = 14  # advice of madvise(2)
# Work for which another process compiles, about a minute.
_MIN_FLOPS_OF_COMPILER = 5e12
_COMPILER_SECONDS = 900  # time limit of that process
# Settings of libtpu without a TPU: no metadata server, no exclusive lock, no warnings.
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
  """Returns the number of cores that this process may use.

  The affinity of the process limits this number, and so does the quota of a container or of a
  service. A quota of 1.5 cores counts as 2.
  """
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
  return min([cores, *(max(1, math.ceil(quota)) for quota in _read_cpu_quotas())])


def _read_cpu_quotas() -> list[float]:
  """Returns the quotas in cores of the control groups of this process and of their parents."""
  quotas = []
  for folder in _list_cpu_groups():
    try:
      if (folder / 'cpu.max').exists():  # version 2
        quota, period = (folder / 'cpu.max').read_text().split()
      else:  # version 1
        quota, period = (
          (folder / f'cpu.cfs_{name}_us').read_text().strip() for name in ('quota', 'period')
        )
      if quota not in ('max', '-1') and int(period) > 0:
        quotas.append(int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or another format
      continue
  return quotas


def _list_cpu_groups() -> list[pathlib.Path]:
  """Returns the folders of the control groups of this process that can have a quota of cores."""
  folders = []
  try:
    lines = _CGROUPS.read_text().splitlines()
  except OSError:  # not Linux
    return []
  for line in lines:
    _, controllers, name = line.split(':', 2)
    if controllers and 'cpu' not in controllers.split(','):
      continue
    # Version 2 has no names of controllers. A container may show the path of the host.
    roots = [controllers, 'cpu'] if controllers else ['', 'unified']
    group = pathlib.PurePosixPath(name.lstrip('/'))
    folders += [_CGROUP_ROOT / root / part for root in roots for part in (group, *group.parents)]
  return folders


def prepare(deterministic: bool = False) -> None:
  """Applies the settings, except those that environment variables already define.

  Settings of JAX have no effect after JAX has created its devices.
  """
  import jax

  libc = _load_glibc()
  if libc:
    for name, (parameter, value) in _RETAIN_MEMORY.items():
      if name not in os.environ:
        libc.mallopt(parameter, value)
    _reserve_heap(libc)
  xla_flags = os.environ.get('XLA_FLAGS', '')
  gpu_flags = {_DETERMINISTIC_FLAG: 'true'} if deterministic else {}
  if any(map(importlib.util.find_spec, CUDA_PLUGINS)):
    gpu_flags[TRITON_FLAG] = 'false'
  added = [f'--{name}={value}' for name, value in gpu_flags.items() if name not in xla_flags]
  if added:
    os.environ['XLA_FLAGS'] = ' '.join([xla_flags, *added]).strip()
  try:
    if _DEVICE_COUNT_FLAG not in xla_flags and read_setting('jax_num_cpu_devices') < 0:
      jax.config.update('jax_num_cpu_devices', min(_MAX_CPU_DEVICES, count_cores()))
  except RuntimeError:  # JAX has created its devices
    return
  if not read_setting('jax_compilation_cache_dir') and (folder := _make_cache_folder()):
    jax.config.update('jax_compilation_cache_dir', str(folder))
  # By default, JAX stores programs only if they compile in a second or more.
  if _MIN_COMPILE_SECONDS.upper() not in os.environ:
    jax.config.update(_MIN_COMPILE_SECONDS, 0.0)


def check_precision() -> None:
  """Refuses 64-bit arithmetic, because states and programs of training are float32."""
  if read_setting('jax_enable_x64'):
    raise InputError(
      'training in float32', 'jax_enable_x64=True', 'unset JAX_ENABLE_X64, or use another process'
    )


def find_device_fault() -> InputError | None:
  """Returns the error of a platform that JAX cannot use, or None if JAX has devices."""
  import jax

  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    platforms = read_setting('jax_platforms')
    return InputError(
      f'devices of JAX_PLATFORMS={platforms}' if platforms else 'devices of JAX',
      ' '.join(str(error).split()) or 'no plugin for this platform',
      "install the extra of the platform, as in pip install 'minilm_jax[cuda]', or set "
      'JAX_PLATFORMS=cpu',
    )
  return None


def _make_cache_folder() -> pathlib.Path | None:
  """Returns the folder of the compilation cache, or None without a folder that can be written."""
  cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME', ''))
  try:
    # A relative path is invalid by the specification of XDG_CACHE_HOME.
    cache = cache if cache.is_absolute() else pathlib.Path.home() / '.cache'
    folder = cache / 'minilm_jax'
    folder.mkdir(parents=True, exist_ok=True)
  except (RuntimeError, OSError):  # no home directory, or no permission
    return None
  return folder if os.access(folder, os.W_OK | os.X_OK) else None


def fill_cache(
  program: Callable[[], str], flops: float, function: str, request: Mapping[str, Any]
) -> None:
  """Lets another process compile a program into the compilation cache, before long work on a CPU.

  A compilation leaves thousands of free blocks in the heap of its process (glibc), and allocations
  of later steps search them. Training steps take 8 to 14% longer than with a program from the cache
  (docs/results/speed.md). The other process starts once for each program. If it fails, this process
  compiles.

  Args:
    program: Returns the text of the lowered program.
    flops: FLOPs of the work.
    function: Compiles the program; `package.module:name`.
    request: Keyword arguments of the function, as plain data.
  """
  import jax
  from etils import epath

  cache = read_setting('jax_compilation_cache_dir')
  if (
    flops < _MIN_FLOPS_OF_COMPILER
    or not (cache and read_setting('jax_enable_compilation_cache'))
    or not _load_glibc()
    or jax.default_backend() != 'cpu'
    or jax.process_count() > 1
  ):
    return
  key = f'{jax.__version__} {os.environ.get("XLA_FLAGS", "")} {program()}'
  mark = epath.Path(cache) / f'{hashlib.sha256(key.encode()).hexdigest()}.compiled'
  if mark.exists():
    return
  module, _, name = function.partition(':')
  code = (
    'import json, sys; from minilm_jax.core import backend; backend.prepare(); '
    f'from {module} import {name}; {name}(**json.load(sys.stdin))'
  )
  paths = os.pathsep.join(map(os.path.abspath, sys.path))
  try:
    process = subprocess.run(
      [sys.executable, '-c', code],
      input=json.dumps(request).encode(),
      env={**os.environ, 'PYTHONPATH': paths, 'JAX_COMPILATION_CACHE_DIR': cache},
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      timeout=_COMPILER_SECONDS,
      check=False,
    )
    if process.returncode >= 0:  # no signal ended the process
      mark.touch()
  except (OSError, subprocess.TimeoutExpired):  # this process compiles
    return


def read_setting(name: str) -> Any:
  """Returns a setting of `jax.config`, whose attributes have no declared types."""
  import jax

  return getattr(jax.config, name)


def release() -> None:
  """Returns freed memory to the operating system (glibc only).

  Freed blocks of a checkpoint lie between blocks in use, and a later checkpoint may not fit there.
  """
  libc = _load_glibc()
  if libc:
    libc.malloc_trim(0)
    _reserve_heap(libc)


def _load_glibc() -> ctypes.CDLL | None:
  """Returns the C library if it is glibc, which alone has `mallopt` and `malloc_trim`."""
  if sys.platform != 'linux':
    return None
  libc = ctypes.CDLL(None)
  if not hasattr(libc, 'gnu_get_libc_version'):
    return None
  libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
  libc.free.argtypes = (ctypes.c_void_p,)
  libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
  return libc


def _reserve_heap(libc: ctypes.CDLL) -> None:
  """Extends the heap without touching it, and asks the kernel for huge pages there."""
  libc.free(libc.malloc(_HEAP_BYTES))
  for line in pathlib.Path('/proc/self/maps').read_text().splitlines():
    if line.endswith('[heap]'):
      start, end = (int(address, 16) for address in line.split()[0].split('-'))
      libc.madvise(start, end - start, _MADV_HUGEPAGE)  # a kernel without huge pages refuses


def read_free_bytes(device: Any) -> int | None:
  """Returns the free memory of a device (of the host for a CPU) in bytes, or None if unknown."""
  if device.platform != 'cpu':
    stats = device.memory_stats() or {}
    return stats['bytes_limit'] - stats['bytes_in_use'] if 'bytes_limit' in stats else None
  limits = []
  meminfo, container_limit = pathlib.Path('/proc/meminfo'), _CGROUP_ROOT / 'memory.max'
  if meminfo.exists():
    limits.append(1024 * _read_number(meminfo, 'MemAvailable:'))
  if container_limit.exists() and (text := container_limit.read_text().strip()).isdecimal():
    # Only anonymous memory counts, because the system drops cached files when necessary.
    limits.append(int(text) - _read_number(_CGROUP_ROOT / 'memory.stat', 'anon'))
  return min(limits, default=None)


def read_gpu_bytes(device: Any) -> int:
  """Returns the memory of a GPU in bytes.

  The name of the GPU comes first, as in "NVIDIA H100 80GB HBM3" or "Tesla T4". An absent GPU has this
  name too, so a preflight and a run agree. An unknown name without a size leaves the limit of the
  allocator, or 64 GiB for an absent GPU and in a run of several processes. Preflight and run may then
  differ.
  """
  import jax

  name = device.device_kind
  named = re.search(r'(\d+) ?GB', name)
  known = [size for end, size in _GPU_GIBIBYTES.items() if name.endswith(f' {end}')]
  if named or known:
    return (int(named[1]) if named else known[0]) << 30
  try:
    # Processes of a run agree on a number, and cannot read the memory of other hosts.
    stats = (jax.process_count() == 1 and device.memory_stats()) or {}
  except jax.errors.JaxRuntimeError:  # an absent GPU
    stats = {}
  return stats.get('bytes_limit', _UNKNOWN_GPU_BYTES)


def _read_number(path: pathlib.Path, name: str) -> int:
  """Returns the number in the line of a file that starts with `name`."""
  lines = map(str.split, path.read_text().splitlines())
  return next(int(words[1]) for words in lines if words[0] == name)


def hide_accelerators() -> None:
  """Prepares JAX to compile for an absent TPU: on the CPU, without the compilation cache."""
  import jax

  for name, value in _ABSENT_TPU.items():
    os.environ.setdefault(name, value)
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_enable_compilation_cache', False)
