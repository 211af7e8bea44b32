"""The configuration of JAX: devices and compilation cache, unless the environment sets them."""

import os
import pwd
import subprocess
import sys
from collections.abc import Sequence

import pytest

from minilm_jax.core import backend

PROGRAM = """
from minilm_jax.core import backend
backend.prepare()
backend.prepare()
import jax
print(jax.device_count(), jax.config.jax_compilation_cache_dir)
backend.prepare()
"""


def run_program(program: str, without: Sequence[str] = (), **environment: str) -> list[str]:
  """Returns the words that a program prints in a process with changed environment variables."""
  base_environment = {name: value for name, value in os.environ.items() if name not in without}
  process = subprocess.run(
    [sys.executable, '-c', program],
    env=base_environment | environment,
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stderr
  return process.stdout.split()


def prepare(**environment: str) -> list[str]:
  return run_program(PROGRAM, ('XLA_FLAGS', 'JAX_COMPILATION_CACHE_DIR'), **environment)


def test_defaults_are_a_device_a_core_and_a_user_cache(tmp_path):
  cores = min(16, backend.count_cores())
  assert prepare(XDG_CACHE_HOME=str(tmp_path)) == [str(cores), str(tmp_path / 'minilm_jax')]


@pytest.mark.parametrize(
  'group, quotas, cores',
  [
    ('0::/a/b', {'a/b/cpu.max': '200000 100000'}, 2),
    ('0::/a/b', {'a/b/cpu.max': '150000 100000'}, 2),
    ('0::/a/b', {'a/b/cpu.max': 'max 100000', 'a/cpu.max': '20000 100000'}, 1),
    ('0::/a/b', {'a/b/cpu.max': 'max 100000'}, 8),
    ('0::/', {'cpu.max': '300000 100000'}, 3),
    ('0::/host/path', {'cpu.max': '300000 100000'}, 3),
    ('0::/', {'cpu.max': '3200000 100000'}, 8),
    ('0::/', {'cpu.max': 'damaged'}, 8),
    ('0::/', {}, 8),
    (
      '4:memory:/x\n3:cpu,cpuacct:/d\n0::/d',
      {
        'cpu,cpuacct/d/cpu.cfs_quota_us': '400000',
        'cpu,cpuacct/d/cpu.cfs_period_us': '100000',
        'memory/x/cpu.max': '100000 100000',
      },
      4,
    ),
    ('1:cpu:/', {'cpu/cpu.cfs_quota_us': '-1', 'cpu/cpu.cfs_period_us': '100000'}, 8),
    ('3:cpuset:/d', {'cpu/d/cpu.cfs_quota_us': '1', 'cpu/d/cpu.cfs_period_us': '1'}, 8),
  ],
)
def test_a_quota_limits_the_cores(
  group: str, quotas: dict[str, str], cores: int, tmp_path, monkeypatch
):
  for name, text in quotas.items():
    path = tmp_path / 'fs' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + '\n')
  (tmp_path / 'cgroup').write_text(group + '\n')
  monkeypatch.setattr(backend, '_CGROUPS', tmp_path / 'cgroup')
  monkeypatch.setattr(backend, '_CGROUP_ROOT', tmp_path / 'fs')
  monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(8)))
  assert backend.count_cores() == cores


@pytest.mark.parametrize(('seconds', 'is_stored'), [('', True), ('3600', False)])
def test_programs_that_compile_fast_are_stored(seconds: str, is_stored: bool, tmp_path):
  program = (
    'from minilm_jax.core import backend\nbackend.prepare()\n'
    'import jax\njax.jit(lambda x: x + 1)(1.0)'
  )
  name = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'
  environment = {'JAX_COMPILATION_CACHE_DIR': str(tmp_path), **({name: seconds} if seconds else {})}
  run_program(program, (name,), **environment)
  assert bool(list(tmp_path.glob('*cache'))) == is_stored


@pytest.mark.parametrize('cache', ['FILE', '', 'relative'])
def test_without_a_writable_home_there_is_no_cache(cache: str, tmp_path):
  (tmp_path / 'file').touch()
  cache = cache.replace('FILE', str(tmp_path / 'file'))
  home = str(tmp_path / 'file' / 'home')
  assert prepare(XDG_CACHE_HOME=cache, HOME=home)[1] == 'None'
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_a_user_without_a_name_and_a_home_has_no_cache(monkeypatch):
  for name in ('HOME', 'XDG_CACHE_HOME'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(pwd, 'getpwuid', {}.__getitem__)
  assert backend._make_cache_folder() is None


def test_hidden_accelerators_leave_a_cpu_without_cache(tmp_path):
  program = (
    'from minilm_jax.core import backend\nbackend.prepare()\nbackend.hide_accelerators()\nimport jax, os\n'
    'print(jax.devices()[0].platform, os.environ["TPU_SKIP_MDS_QUERY"], jax.config.jax_enable_compilation_cache)'
  )
  assert run_program(program, ['JAX_PLATFORMS']) == ['cpu', '1', 'False']


FLAGS_PROGRAM = """
from minilm_jax.core import backend
backend.prepare({deterministic})
backend.prepare({deterministic})
import jax, os
print(float(jax.numpy.ones(3).sum()), os.environ["XLA_FLAGS"])
"""


def test_deterministic_sets_a_flag_that_a_cpu_accepts():
  """The flag is added to those of the environment."""
  given = '--xla_force_host_platform_device_count=3'
  words = run_program(FLAGS_PROGRAM.format(deterministic=True), XLA_FLAGS=given)
  assert words[:3] == ['3.0', given, '--xla_gpu_deterministic_ops=true']


@pytest.mark.parametrize(
  'given, expected',
  [
    ('', '--xla_gpu_enable_triton_gemm=false'),
    ('--xla_gpu_enable_triton_gemm=true', '--xla_gpu_enable_triton_gemm=true'),
  ],
)
def test_products_of_a_gpu_come_from_cublas(given: str, expected: str, tmp_path):
  """A folder with the name of JAX's plugin stands for the plugin; the environment has priority."""
  (tmp_path / backend.CUDA_PLUGINS[-1]).mkdir()
  words = run_program(
    FLAGS_PROGRAM.format(deterministic=False), XLA_FLAGS=given, PYTHONPATH=str(tmp_path)
  )
  assert words == ['3.0', expected]


@pytest.mark.parametrize(
  'name, value',
  [('XLA_FLAGS', '--xla_force_host_platform_device_count=3'), ('JAX_NUM_CPU_DEVICES', '3')],
)
def test_the_environment_overrides_the_defaults(name: str, value: str, tmp_path):
  assert prepare(**{name: value, 'JAX_COMPILATION_CACHE_DIR': str(tmp_path)}) == [
    '3',
    str(tmp_path),
  ]


@pytest.mark.skipif(sys.platform != 'linux', reason='needs glibc')
def test_release_returns_scattered_freed_memory():
  """A tenth of the blocks stays in use, so malloc would keep the pages between them."""
  program = (
    'import pathlib\nfrom minilm_jax.core import backend\n'
    'def resident(): return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20\n'
    'blocks = [bytes(100_000) for _ in range(2_000)]\nused = blocks[::10]\ndel blocks\n'
    'before = resident()\nbackend.release()\nprint(before - resident())'
  )
  (released_mib,) = run_program(program, MALLOC_MMAP_THRESHOLD_='1000000')
  assert int(released_mib) > 100


@pytest.mark.skipif(sys.platform != 'linux', reason='needs glibc')
def test_large_temporaries_stay_in_the_process_until_release():
  """By default, malloc maps each large block again, and every page of the block faults."""
  program = (
    'import pathlib, resource\nfrom minilm_jax.core import backend\nbackend.prepare()\n'
    'def resident(): return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20\n'
    'def count_faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n'
    'blocks = [b"x" * (60 << 20) for _ in range(3)]\ndel blocks\nfaults = count_faults()\n'
    'for _ in range(20): b"x" * (60 << 20)\nprint(count_faults() - faults)\n'
    'before = resident()\nbackend.release()\nprint(before - resident())'
  )
  names = ('MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_', 'MALLOC_TOP_PAD_')
  for setting, retains in (({}, True), (dict.fromkeys(names, '1000000'), False)):
    faults, released_mib = map(int, run_program(program, names, **setting))
    assert (faults < 300, released_mib > 170) == (retains, retains)
