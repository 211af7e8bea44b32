"""Describes NVIDIA GPUs to the compiler, so that programs compile on machines without a GPU.

Sources: memory, bandwidth, number of multiprocessors, L2 cache and clock are those of NVIDIA's data
sheets and architecture white papers. Threads and shared memory follow from the compute capability
(CUDA C++ programming guide, table of technical specifications). Sizes of memory in bytes are those
of the specifications in openxla/xla (xla/backends/gpu/target_config/specs), and elsewhere what
nvidia-smi prints.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath
from jax.experimental import topologies

from minilm_jax.core import backend, files
from minilm_jax.core.errors import InputError

_MIB = 1 << 20
JAX_MEMORY_SHARE = 0.75  # of a GPU, which JAX reserves unless XLA_PYTHON_CLIENT_MEM_FRACTION is set


@dataclasses.dataclass(frozen=True)
class Architecture:
  """Properties of a GPU that its compute capability determines.

  Attributes:
    major, minor: Compute capability.
    lanes: Float32 units of a multiprocessor.
    threads: Maximum number of threads of a multiprocessor.
    shared: Shared memory of a multiprocessor in bytes; a block can have 1 KiB less.
  """

  major: int
  minor: int
  lanes: int
  threads: int
  shared: int


@dataclasses.dataclass(frozen=True)
class Gpu:
  """An NVIDIA GPU.

  Attributes:
    name: Name by the driver.
    architecture: Properties of a multiprocessor.
    processors: Number of streaming multiprocessors.
    memory: Memory in bytes.
    bandwidth: Bytes/s of the memory.
    l2: L2 cache in bytes.
    gigahertz: Highest clock.
  """

  name: str
  architecture: Architecture
  processors: int
  memory: int
  bandwidth: float
  l2: int
  gigahertz: float


_TURING = Architecture(7, 5, 64, 1024, 64 << 10)
_AMPERE = Architecture(8, 0, 64, 2048, 164 << 10)
_ADA = Architecture(8, 9, 128, 1536, 100 << 10)
_HOPPER = Architecture(9, 0, 128, 2048, 228 << 10)
GPUS = {
  't4': Gpu('Tesla T4', _TURING, 40, 15_360 * _MIB, 320e9, 4 * _MIB, 1.59),
  'a100': Gpu('NVIDIA A100-SXM4-80GB', _AMPERE, 108, 85_100_068_864, 2039e9, 40 * _MIB, 1.41),
  'l4': Gpu('NVIDIA L4', _ADA, 58, 23_034 * _MIB, 300e9, 48 * _MIB, 2.04),
  'rtx4090': Gpu('NVIDIA GeForce RTX 4090', _ADA, 128, 24_564 * _MIB, 1008e9, 72 * _MIB, 2.52),
  'h100': Gpu('NVIDIA H100 80GB HBM3', _HOPPER, 132, 84_942_979_072, 3352e9, 50 * _MIB, 1.98),
  'h200': Gpu('NVIDIA H200', _HOPPER, 132, 151_397_597_184, 4800e9, 50 * _MIB, 1.98),
}


# Values that all these GPUs share, and libraries that a run brings.
_TARGET = """gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: {threads}
  core_count: {processors}
  fpus_per_core: {lanes}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared_optin}
  shared_memory_per_core: {shared}
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  memory_bandwidth: {bandwidth:.0f}
  device_memory_size: {memory}
  l2_cache_size: {l2}
  clock_rate_ghz: {gigahertz}
  device_address_bits: 64
  cuda_compute_capability {{ major: {major} minor: {minor} {features} }}
  device_vendor: "NVIDIA Corporation"
  name: "{name}"
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""
_COUNT = re.compile(r'(?P<name>.+?)(?:x(?P<count>[1-9]\d*))?')
_MEMORY = re.compile(r'\bdevice_memory_size:\s*(\d+)')
_PARSE_ERROR = re.compile(r'GpuTargetConfigProto: (.*)')


def format_target(gpu: Gpu) -> str:
  """Returns the target configuration of a GPU, as the compiler reads it."""
  architecture = gpu.architecture
  # Matrix instructions of capability 9.0 alone, which cuBLAS and Triton use.
  features = 'feature_extension: ACCELERATED_FEATURES' if architecture.major == 9 else ''
  shared_optin = architecture.shared - (0 if architecture.major < 8 else 1 << 10)
  fields = vars(gpu) | vars(architecture)
  return _TARGET.format(features=features, shared_optin=shared_optin, **fields)


def is_gpu(topology: str) -> bool:
  """Returns whether a topology names a GPU of the table or an existing file."""
  name, _ = _split_count(topology)
  return name in GPUS or epath.Path(name).is_file()


def _split_count(topology: str) -> tuple[str, int]:
  """Returns the name of a GPU and the number of GPUs: `h100x8` is eight of `h100`."""
  if epath.Path(topology).is_file():
    return topology, 1
  match = _COUNT.fullmatch(topology)
  return (match['name'], int(match['count'] or 1)) if match else (topology, 1)


def describe_devices(topology: str) -> tuple[int, Sequence[jax.Device]]:
  """Returns the memory in bytes of one GPU and the described GPUs of a topology.

  Args:
    topology: a key of `GPUS` or a file with a target configuration in the text format of
      `GpuTargetConfigProto`, and an optional number of GPUs: `h100`, `h100x8`, `my-gpu.txtpb`.

  Raises:
    InputError: the compiler is missing or has another version than JAX, or it refuses the target.
  """
  subject, (name, count) = f'--topology={topology}', _split_count(topology)
  if epath.Path(name).is_file():
    target = files.read_bytes(name, 'the target configuration').decode('utf-8', 'replace')
  else:
    target = format_target(GPUS[name])
  memory = _MEMORY.search(target)
  if not memory:
    raise InputError(
      subject,
      f'no device_memory_size in {name}',
      'give a target configuration of XLA (GpuTargetConfigProto) in text format',
    )
  _check_compiler(subject)
  backend.hide_accelerators()
  try:
    with _capture_stderr() as messages:
      description = topologies.get_topology_desc(
        platform='cuda', topology=f'1x1x{count}', target_config=target
      )
  except jax.errors.JaxRuntimeError as error:
    reason = _PARSE_ERROR.search(''.join(messages))
    raise InputError(
      subject,
      reason[1] if reason else str(error).splitlines()[0],
      'correct the target configuration, or remove the fields that this version of jaxlib does not know',
    ) from None
  return int(memory[1]), description.devices


def make_compiler_options(deterministic: bool) -> dict[str, Any]:
  """Returns options of a preflight, which does not optimise the code of the kernels.

  For an H100, bytes and kernels of six recipes in two dtypes were equal with and without it.
  """
  options = {'xla_backend_optimization_level': 0, 'xla_gpu_deterministic_ops': deterministic}
  if backend.TRITON_FLAG not in os.environ.get('XLA_FLAGS', ''):
    options[backend.TRITON_FLAG] = False
  return options


def _check_compiler(subject: str) -> None:
  """Raises InputError if the compiler for GPUs is missing, or has another version than jaxlib."""
  plugins = [name for name in backend.CUDA_PLUGINS if importlib.util.find_spec(name)]
  remedy = "run pip install 'minilm_jax[preflight-cuda]'"
  if not plugins:
    raise InputError(subject, 'the compiler for NVIDIA GPUs is not installed', remedy)
  version, jaxlib = (importlib.metadata.version(name) for name in (plugins[0], 'jaxlib'))
  if version != jaxlib:
    raise InputError(subject, f'{plugins[0]} {version}, and jaxlib {jaxlib}', f'{remedy} -U')


@contextlib.contextmanager
def _capture_stderr() -> Iterator[list[str]]:
  """Yields a list that has, at the end, the lines that the compiler wrote to standard error.

  The reason of a refused target is in these lines alone.
  """
  lines: list[str] = []
  with tempfile.TemporaryFile('w+', errors='replace') as file:
    stderr = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
      yield lines
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)
      file.seek(0)
      lines += file.readlines()
