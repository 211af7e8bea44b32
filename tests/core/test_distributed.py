"""Several processes train the same run as one process, or end together with an error."""

import contextlib
import json
import os
import pathlib
import pprint
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import pytest

from minilm_jax.core import distributed, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.training import checkpoint, run, sharding
from tests.tiny_config import make_run_config

pytestmark = pytest.mark.usefixtures('share_programs')
ROOT = pathlib.Path(__file__).resolve().parents[2]
UPDATES, DEVICES, WAIT = 40, 4, 20
INVALID_ADDRESSES = (
  'here',
  'localhost:',
  ':80',
  'localhost:0',
  'localhost:65536',
  'a b:80',
  'localhost:http',
)


def make_config(folder: pathlib.Path, **changes: Any) -> RunConfig:
  """Returns a recipe for four devices, two of each process."""
  settings = {'mesh.data': DEVICES, 'num_steps': UPDATES, 'eval.every': 20}
  saves = {'checkpoint.every': 8, 'checkpoint.keep_last': UPDATES}
  return make_run_config(folder, **{**settings, **saves, **changes})


def find_free_address() -> str:
  with socket.create_server(('', 0)) as server:
    return f'localhost:{server.getsockname()[1]}'


def slurm_environment(port: int, process: int) -> dict[str, str]:
  """Returns the variables of `srun` for two tasks (launch/slurm.sbatch); the job id sets the port."""
  return {
    'SLURM_JOB_ID': str(port - 61_440),
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_STEP_NUM_NODES': '1',
    'SLURM_NTASKS': '2',
    'SLURM_PROCID': str(process),
    'SLURM_LOCALID': '0',
  }


def find_slurm_port() -> int:
  """Returns a free port of those that JAX derives from a job id."""
  for port in range(61_440 + os.getpid() % 4_000, 65_536):
    with contextlib.suppress(OSError), socket.create_server(('', port)):
      return port
  raise OSError('no port is free')


class Processes:
  """`minilm pretrain` in processes of two devices each."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.children, self.flags = folder, [], ()
    self.environment = os.environ | {
      'XLA_FLAGS': re.sub(r'(?<=device_count=)8', '2', os.environ['XLA_FLAGS']),
      'JAX_COMPILATION_CACHE_DIR': str(folder.parent / 'compiled'),
      'PYTHONPATH': str(ROOT),
    }

  def start(
    self,
    config: RunConfig,
    workdir: pathlib.Path,
    address: str,
    process: int,
    wait: int = WAIT,
    cwd: pathlib.Path = ROOT,
  ) -> subprocess.Popen:
    file = self.folder / f'recipe-{len(self.children)}.py'
    file.write_text(
      'from ml_collections import config_dict\n\n\ndef get_config():\n'
      f'  return config_dict.ConfigDict({pprint.pformat(recipe.as_dict(config))})\n'
    )
    coordinator, *port = address.split(':')
    is_slurm = coordinator == distributed.AUTO
    joins = ['--processes=2', f'--coordinator={address}', f'--process={process}']
    return self.spawn(
      [
        '-m',
        'minilm_jax',
        'pretrain',
        f'--config={file}',
        f'--workdir={workdir}',
        f'--timeout={wait}',
        *self.flags,
        *([f'--coordinator={coordinator}'] if is_slurm else joins),
      ],
      slurm_environment(int(port[0]), process) if is_slurm else {},
      cwd=cwd,
    )

  def spawn(
    self, arguments: list[str], environment: dict[str, str], **options: Any
  ) -> subprocess.Popen:
    """Starts Python with these arguments; its standard output and error are pipes."""
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    child = subprocess.Popen(
      [sys.executable, *arguments], env=self.environment | environment, **pipes, **options
    )
    self.children.append(child)
    return child

  def start_pair(
    self,
    config: RunConfig,
    workdir: pathlib.Path,
    other: RunConfig | None = None,
    folders: Sequence[pathlib.Path] = (ROOT, ROOT),
    address: str = '',
  ) -> list[subprocess.Popen]:
    """Starts two processes in their current directories; the second can have another recipe."""
    address = address or find_free_address()
    return [
      self.start(config, workdir, address, 0, cwd=folders[0]),
      self.start(other or config, workdir, address, 1, cwd=folders[1]),
    ]

  def run_pair(self, *arguments: Any, **options: Any) -> list[tuple[int, str, str]]:
    """Returns status, standard output and standard error of two processes."""
    return [wait_for(process) for process in self.start_pair(*arguments, **options)]


@pytest.fixture
def processes(tmp_path_factory) -> Iterator[Processes]:
  group = Processes(tmp_path_factory.mktemp('processes'))
  yield group
  for process in group.children:
    process.kill()
    process.communicate()


def wait_for(process: subprocess.Popen, seconds: float = 200) -> tuple[int, str, str]:
  out, err = process.communicate(timeout=seconds)
  return process.returncode, out, err


def list_parts(err: str) -> list[str]:
  """Returns the names of the parts of errors, and of tracebacks, in order."""
  return [line.partition(':')[0].partition(' (')[0] for line in select_error(err).splitlines()]


def select_error(err: str) -> str:
  """Returns the lines of errors and tracebacks without messages of libraries."""
  return '\n'.join(
    line
    for line in err.splitlines()
    if line.startswith(('asked: ', 'found: ', 'to do: ', 'Traceback'))
  )


@pytest.fixture(scope='module')
def single_run(tiny_corpus, tmp_path_factory) -> pathlib.Path:
  """Returns the run of one process."""
  folder = tmp_path_factory.mktemp('single') / 'run'
  run.pretrain(make_config(tiny_corpus), folder)
  return folder


def assert_same(folder: pathlib.Path, other: pathlib.Path) -> None:
  """Checks that two runs logged the same lines, with losses equal up to rounding."""
  result, expected = (list(run_dir.read_lines(path / run_dir.METRICS)) for path in (folder, other))
  numbers = (
    'loss',
    'perplexity',
    'padded_loss',
    'gradient_norm',
    'parameter_norm',
    'seconds',
    'tokens_per_second',
  )
  assert [{k: v for k, v in line.items() if k not in numbers} for line in result] == [
    {k: v for k, v in line.items() if k not in numbers} for line in expected
  ]
  assert [line['loss'] for line in result] == pytest.approx(
    [line['loss'] for line in expected], rel=1e-5
  )
  assert json.loads((folder / run_dir.RESULT).read_text())['test_loss'] == result[-1]['loss']
  assert checkpoint.latest_step(folder) == UPDATES


def copy_until(source: pathlib.Path, folder: pathlib.Path, step: int) -> pathlib.Path:
  """Copies a run in its state after the checkpoint of a step."""
  shutil.copytree(source, folder)
  (folder / run_dir.RESULT).unlink()
  for path in (folder / checkpoint.FOLDER).iterdir():
    if int(path.name) > step:
      shutil.rmtree(path)
  return folder


def test_two_slurm_tasks_resume_a_run_of_one_process(processes, single_run, tiny_corpus, tmp_path):
  """Only process 0 writes files and messages."""
  workdir = copy_until(single_run, tmp_path / 'run', 32)
  results = processes.run_pair(
    make_config(tiny_corpus), workdir, address=f'{distributed.AUTO}:{find_slurm_port()}'
  )
  for number, (status, out, err) in enumerate(results):
    assert not status, err
    assert (
      (json.loads(out) == json.loads((workdir / run_dir.RESULT).read_text()))
      if number == 0
      else not out
    )
    assert ('update 32' in err) == (number == 0)
  assert_same(workdir, single_run)


def test_two_processes_continue_a_run(processes, single_run, tiny_corpus, tmp_path):
  """The run equals that of one process up to rounding; the origin has the same checksum."""
  config = make_config(tiny_corpus, num_steps=4)
  run.pretrain(config, tmp_path / 'one', init_from=f'{single_run}@8', init_optimizer=True)
  processes.flags = (f'--init_from={single_run}@8', '--init_optimizer')
  for status, _, err in processes.run_pair(config, tmp_path / 'two'):
    assert not status, err
  first, second = (
    [line['loss'] for line in run_dir.read_lines(tmp_path / name / run_dir.METRICS)]
    for name in ('one', 'two')
  )
  assert first == pytest.approx(second, rel=1e-5) and len(first) == 4
  assert run_dir.read_origin(tmp_path / 'one') == run_dir.read_origin(tmp_path / 'two')


def test_two_gke_workers_form_one_run(processes):
  """The environment is that of launch/gke.yaml, with and without --coordinator=auto."""
  program = (
    'import sys\nfrom minilm_jax.core import distributed\nwith distributed.initialized(sys.argv[1], None, None, 60):\n'
    '  import jax\n  print(jax.process_index(), jax.process_count(), jax.device_count(), distributed.is_primary())'
  )
  gke_environment = {
    'TPU_WORKER_HOSTNAMES': 'localhost,localhost',
    'JAX_COORDINATOR_PORT': find_free_address().partition(':')[2],
    'JAX_FORCE_TPU_INIT': '1',  # without a chip, JAX does not detect a TPU VM
    'MEGASCALE_COORDINATOR_ADDRESS': 'localhost',
    'MEGASCALE_NUM_SLICES': '1',
    'MEGASCALE_SLICE_ID': '0',
  }
  for number, coordinator in enumerate(('', distributed.AUTO)):
    processes.spawn(['-c', program, coordinator], gke_environment | {'TPU_WORKER_ID': str(number)})
  for number, (status, out, err) in enumerate(map(wait_for, processes.children)):
    assert not status and out.split() == [str(number), '2', '4', str(number == 0)], err


@pytest.mark.parametrize('killed', [0, 1])
def test_one_process_resumes_after_one_of_two_was_killed(
  killed: int, processes, single_run, tiny_corpus, tmp_path
):
  config, workdir = make_config(tiny_corpus), tmp_path / 'run'
  pair = processes.start_pair(config, workdir)
  while (checkpoint.latest_step(workdir) or 0) < 4 and pair[0].poll() is None:
    time.sleep(0.02)
  pair[killed].kill()
  pair[killed].wait()  # a zombie process would still hold the lock of the run
  # at the latest after the heartbeat time-out, mostly when the sockets close
  status, out, err = wait_for(pair[1 - killed], WAIT + 10)
  assert status == 2 and not out and not (workdir / run_dir.RESULT).exists()
  assert (
    list_parts(err) == ['asked', 'found', 'to do'] and 'asked: training on 2 processes\n' in err
  )
  run.pretrain(config, workdir)
  assert_same(workdir, single_run)


def test_missed_heartbeats_end_the_other_process(processes):
  """Sockets of a suspended process stay open, so JAX aborts; the handler exits with status 2.

  Process 0 of the first pair and process 1 of the second are suspended.
  """
  program = (
    'import sys\nimport jax\nfrom minilm_jax.core import distributed\ndistributed.MIN_HEARTBEAT_SECONDS = 1\n'
    'print("imported", flush=True)\nsys.stdin.readline()\n'
    'with distributed.initialized(sys.argv[1], 2, int(sys.argv[2]), 5):\n'
    '  print("started", file=sys.stdout, flush=True)\n  while True:\n    distributed.allgather_ints(1)\n'
  )
  for _ in range(2):
    address = find_free_address()
    for number in range(2):
      processes.spawn(['-c', program, address, str(number)], {}, stdin=subprocess.PIPE)
  for process in processes.children:
    assert process.stdout.readline() == 'imported\n'
  for process in processes.children:
    process.stdin.write('\n')
    process.stdin.flush()
  for process in processes.children:
    assert process.stdout.readline() == 'started\n'
  first, second = processes.children[:2], processes.children[2:]
  for process in (first[0], second[1]):
    process.send_signal(signal.SIGSTOP)
  start_time = time.monotonic()
  for process in (first[1], second[0]):
    status, out, err = wait_for(process, 30)
    assert status == 2 and not out and list_parts(err) == ['asked', 'found', 'to do']
    assert time.monotonic() - start_time < 5 + 5


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_the_same_update(
  processes, single_run, tiny_corpus, tmp_path
):
  """A run of one process resumes from the checkpoint."""
  config, workdir = make_config(tiny_corpus), tmp_path / 'run'
  results = processes.start_pair(config, workdir)
  while (checkpoint.latest_step(workdir) or 0) < 4 and results[0].poll() is None:
    time.sleep(0.02)
  results[1].send_signal(signal.SIGTERM)
  for status, out, err in [wait_for(process) for process in results]:
    assert status == 143 and not out and 'Traceback' not in err, err
    step = re.search(r'SIGTERM.* (\d+);', err)
    assert step and int(step[1]) == checkpoint.latest_step(workdir)
  run.pretrain(config, workdir)
  assert_same(workdir, single_run)


def test_different_recipes_are_refused_in_both_processes(processes, tiny_corpus, tmp_path):
  for status, out, err in processes.run_pair(
    make_config(tiny_corpus), tmp_path / 'run', make_config(tiny_corpus, seed=1)
  ):
    assert status == 2 and not out
    assert select_error(err).startswith('asked: the recipe') and 'process 0 has ' in select_error(
      err
    )
  assert not (tmp_path / 'run').exists()


def remove_corpus(folder: pathlib.Path) -> None:
  shutil.rmtree(folder)


def change_hash(folder: pathlib.Path) -> None:
  path = folder / run_dir.MANIFEST
  path.write_text(json.dumps({**json.loads(path.read_text()), 'hash': '0' * 64}))


@pytest.mark.parametrize(
  'change, patterns',
  [
    (change_hash, [r'the corpus .*\nfound: .*process 0 has '] * 2),
    (
      remove_corpus,
      [
        r'the corpus corpus\nfound: .*process 1.* manifest\.json',
        r'the corpus corpus\nfound: no manifest\.json',
      ],
    ),
  ],
)
def test_different_corpora_are_refused_in_both_processes(
  change: Callable[[pathlib.Path], None], patterns: list[str], processes, tiny_corpus, tmp_path
):
  folders = [tmp_path / 'first', tmp_path / 'second']
  for folder in folders:
    shutil.copytree(tiny_corpus, folder / 'corpus')
  change(folders[1] / 'corpus')
  ends = processes.run_pair(make_config(pathlib.Path('corpus')), tmp_path / 'run', folders=folders)
  for (status, out, err), pattern in zip(ends, patterns, strict=True):
    assert status == 2 and not out and re.match(f'asked: {pattern}', select_error(err))
  assert not (tmp_path / 'run').exists()


def test_a_missing_process_is_an_error_after_the_time_out(processes, tiny_corpus, tmp_path):
  start_time = time.monotonic()
  for number in range(2):
    processes.start(make_config(tiny_corpus), tmp_path / 'run', find_free_address(), number, wait=2)
  for process in processes.children:
    status, out, err = wait_for(process, 30)
    assert (
      status == 2
      and not out
      and '2 seconds' in select_error(err)
      and select_error(err) == err.strip()
    )
    assert list_parts(err) == ['asked', 'found', 'to do']
  assert time.monotonic() - start_time < 2 + 20  # also imports JAX, on a busy machine
  assert not (tmp_path / 'run').exists()


def test_a_signal_ends_a_waiting_process(processes, tiny_corpus, tmp_path):
  address = find_free_address()
  process = processes.start(make_config(tiny_corpus), tmp_path / 'run', address, 0, wait=100)
  while process.poll() is None:
    with contextlib.suppress(OSError), socket.create_connection(distributed.parse_address(address)):
      break
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  assert wait_for(process, 20)[0] == 128 + signal.SIGTERM
  assert not (tmp_path / 'run').exists()


def test_a_port_in_use_is_refused(processes, tiny_corpus, tmp_path):
  with socket.create_server(('127.0.0.1', 0)) as server:
    process = processes.start(
      make_config(tiny_corpus), tmp_path / 'run', f'localhost:{server.getsockname()[1]}', 0
    )
    status, out, err = wait_for(process, 60)
  assert status == 2 and not out and list_parts(err) == ['asked', 'found', 'to do']
  assert not (tmp_path / 'run').exists()


def test_one_process_needs_no_coordination(tmp_path, monkeypatch):
  monkeypatch.delenv('TPU_WORKER_HOSTNAMES', raising=False)
  with (
    distributed.initialized(find_free_address(), 1, 0, 1),
    distributed.initialized('', None, None, 300),
    distributed.raise_together(),
  ):
    distributed.assert_equal('anything', 'at all')
    assert (
      distributed.is_primary()
      and distributed.primary_first(lambda: 3) == 3
      and distributed.exit_now(2) == 2
    )
    assert distributed.allgather_ints(3, 0) == [(3, 0)]
  with pytest.raises(OSError), distributed.raise_together():
    raise OSError('unchanged')


@pytest.mark.parametrize(
  'arguments, part',
  [
    (('', 2, 0, 300), 'no --coordinator'),
    (('auto', 2, None, 300), '--coordinator=auto'),
    (('localhost:1', None, None, 300), 'neither --processes nor --process'),
    (('localhost:1', 2, None, 300), '--process=I'),
    (('localhost:1', 2, 2, 300), 'from 0 to 1'),
    (('localhost:1', 0, 0, 300), '--processes=0'),
    (('localhost:1', 2, 0, 0), '--timeout=0'),
    *(((address, 2, 0, 9), f'--coordinator={address}') for address in INVALID_ADDRESSES),
  ],
)
def test_invalid_flags_are_refused(arguments: tuple, part: str):
  with pytest.raises(InputError) as error, distributed.initialized(*arguments):
    pass
  assert part in str(error.value)


def test_processes_joined_by_jax_alone_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 4)
  with pytest.raises(InputError, match=r'4 processes(.|\n)*--coordinator=auto'):
    run.pretrain(make_config(tmp_path), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_arrays_are_gathered_on_the_host():
  tree = {
    'a': sharding.replicate(np.arange(3), sharding.make_mesh(make_config(pathlib.Path()).mesh)),
    'b': 2,
  }
  assert jax.tree.map(np.ndim, distributed.to_host(tree)) == {'a': 1, 'b': 0}


@pytest.mark.parametrize(
  'variables, has_all',
  [
    ({}, True),
    ({'SLURM_STEP_TASKS_PER_NODE': '1(x2)', 'SLURM_LOCALID': '0'}, True),
    ({'SLURM_STEP_TASKS_PER_NODE': '4(x2)'}, False),
    ({'SLURM_STEP_TASKS_PER_NODE': '1,2'}, False),
    ({'OMPI_COMM_WORLD_LOCAL_SIZE': '1'}, True),
    ({'OMPI_COMM_WORLD_LOCAL_SIZE': '8'}, False),
    ({'JAX_LOCAL_DEVICE_IDS': '0,1'}, False),
  ],
)
def test_one_process_a_host_has_all_its_devices(variables: dict, has_all: bool, monkeypatch):
  for name in ('SLURM_STEP_TASKS_PER_NODE', 'OMPI_COMM_WORLD_LOCAL_SIZE', 'JAX_LOCAL_DEVICE_IDS'):
    monkeypatch.delenv(name, raising=False)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  assert distributed._choose_local_devices() == ([] if has_all else None)


@pytest.mark.parametrize(
  'error, is_lost',
  [
    ('UNAVAILABLE: connection reset', True),
    ('[external/gloo] Connection closed by peer', True),
    ('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes', False),
    ('INVALID_ARGUMENT: MemoryStats is only supported for addressable PjRt devices', False),
  ],
)
def test_an_error_of_a_process_is_not_a_lost_peer(error: str, is_lost: bool):
  assert bool(distributed._LOST_PEER.search(error)) is is_lost
