"""How JAX is set up: a device a core and a place for compiled programs, unless the environment says
otherwise.
"""

import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = """
from minilm_jax.core import backend
backend.prepare()
backend.prepare()
import jax
print(jax.device_count(), jax.config.jax_compilation_cache_dir)
backend.prepare()
"""


def prepared(**environment: str) -> list[str]:
  base_environment = {
    name: value
    for name, value in os.environ.items()
    if name not in ('XLA_FLAGS', 'JAX_COMPILATION_CACHE_DIR')
  }
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    env=base_environment | environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.split()


def test_a_device_a_core_and_a_cache_of_the_user(tmp_path: pathlib.Path):
  cores = min(16, len(os.sched_getaffinity(0)))
  assert prepared(XDG_CACHE_HOME=str(tmp_path)) == [str(cores), str(tmp_path / 'minilm_jax')]


def test_ahead_of_time_accelerators_are_left_alone(tmp_path: pathlib.Path):
  program = (
    'from minilm_jax.core import backend\nbackend.prepare()\nbackend.hide_accelerators()\nimport jax, os\n'
    'print(jax.devices()[0].platform, os.environ["TPU_SKIP_MDS_QUERY"], jax.config.jax_enable_compilation_cache)'
  )
  base_environment = {name: value for name, value in os.environ.items() if name != 'JAX_PLATFORMS'}
  done = subprocess.run(
    [sys.executable, '-c', program], env=base_environment, capture_output=True, text=True
  )
  assert done.stdout.split() == ['cpu', '1', 'False'], done.stderr


def test_deterministic_is_a_flag_of_xla_that_a_cpu_takes_too():
  """Before JAX computes, beside what the environment says."""
  xla_flags = '--xla_force_host_platform_device_count=3'
  program = (
    'from minilm_jax.core import backend\nbackend.prepare(True)\nbackend.prepare(True)\nimport jax, os\n'
    'print(float(jax.numpy.ones(3).sum()), os.environ["XLA_FLAGS"])'
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    env=os.environ | {'XLA_FLAGS': xla_flags},
    capture_output=True,
    text=True,
  )
  assert (
    done.returncode == 0
    and done.stdout.strip() == f'3.0 {xla_flags} --xla_gpu_deterministic_ops=true'
  ), done.stderr


@pytest.mark.parametrize(
  'name, value',
  [('XLA_FLAGS', '--xla_force_host_platform_device_count=3'), ('JAX_NUM_CPU_DEVICES', '3')],
)
def test_the_environment_has_the_last_word(name: str, value: str, tmp_path: pathlib.Path):
  assert prepared(**{name: value, 'JAX_COMPILATION_CACHE_DIR': str(tmp_path)}) == [
    '3',
    str(tmp_path),
  ]


@pytest.mark.skipif(sys.platform != 'linux', reason='only glibc can be told')
def test_what_was_freed_between_what_lives_goes_back_to_the_system():
  """A tenth is kept, scattered: without being told, malloc holds the pages between."""
  program = (
    'import pathlib\nfrom minilm_jax.core import backend\n'
    'def held(): return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20\n'
    'blocks = [bytes(100_000) for _ in range(2_000)]\nkept = blocks[::10]\ndel blocks\n'
    'before = held()\nbackend.release()\nprint(before - held())'
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    env=os.environ | {'MALLOC_MMAP_THRESHOLD_': '1000000'},
    capture_output=True,
    text=True,
  )
  assert int(done.stdout) > 100, done


@pytest.mark.skipif(sys.platform != 'linux', reason='only glibc can be told')
def test_what_is_large_goes_back_when_it_is_freed():
  """Without being told, malloc takes the size of what is freed first as a sign to keep all that is
  smaller.
  """
  program = (
    'import pathlib\nfrom minilm_jax.core import backend\nbackend.prepare()\n'
    'def held(): return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20\n'
    'first = b"x" * (30 << 20)\ndel first\n'
    'blocks = [b"x" * (5 << 20) for _ in range(60)]\nkept = blocks[9::10]\nbefore = held()\ndel blocks\n'
    'print(before - held())'
  )
  base_environment = {
    name: value for name, value in os.environ.items() if name != 'MALLOC_MMAP_THRESHOLD_'
  }
  freed = [
    int(
      subprocess.run(
        [sys.executable, '-c', program],
        env=base_environment | setting,
        capture_output=True,
        text=True,
      ).stdout
    )
    for setting in ({}, {'MALLOC_MMAP_THRESHOLD_': str(32 << 20)})
  ]
  assert freed[0] > 250 and freed[1] < 100, freed
