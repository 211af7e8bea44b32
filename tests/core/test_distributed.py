"""Several processes train one run as one process would, or end together with an error."""

import contextlib
import functools
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
from minilm_jax.training import checkpoint, pretrain, program, sharding
from tests.tiny_config import run_config

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


def short(folder: pathlib.Path, **changes: Any) -> RunConfig:
  """A recipe for four devices, two of each process."""
  return run_config(
    folder,
    **{'mesh.data': DEVICES, 'num_steps': UPDATES, 'checkpoint.keep_last': UPDATES, **changes},
  )


def free_address() -> str:
  with socket.create_server(('', 0)) as server:
    return f'localhost:{server.getsockname()[1]}'


def of_slurm(port: int, process: int) -> dict[str, str]:
  """What `srun` tells each of two tasks, as launch/slurm.sbatch starts them; JAX makes the port of
  the job's number.
  """
  return {
    'SLURM_JOB_ID': str(port - 61_440),
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_STEP_NUM_NODES': '1',
    'SLURM_NTASKS': '2',
    'SLURM_PROCID': str(process),
    'SLURM_LOCALID': '0',
  }


def port_of_slurm() -> int:
  """A free one of those that it makes."""
  for port in range(61_440 + os.getpid() % 4_000, 65_536):
    with contextlib.suppress(OSError), socket.create_server(('', port)):
      return port
  raise OSError('no port is free')


class Processes:
  """`minilm pretrain` in processes of two devices each."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.started = folder, []
    base_environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    self.environment = base_environment | {
      'JAX_NUM_CPU_DEVICES': '2',
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
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
    file = self.folder / f'recipe-{len(self.started)}.py'
    file.write_text(
      'from ml_collections import config_dict\n\n\ndef get_config():\n'
      f'  return config_dict.ConfigDict({pprint.pformat(recipe.as_dict(config))})\n'
    )
    known, *port = address.split(':')
    slurm = known == distributed.AUTO
    self.started.append(
      subprocess.Popen(
        [
          sys.executable,
          '-m',
          'minilm_jax',
          'pretrain',
          f'--config={file}',
          f'--workdir={workdir}',
          f'--timeout={wait}',
          *(
            [f'--coordinator={known}']
            if slurm
            else ['--processes=2', f'--coordinator={address}', f'--process={process}']
          ),
        ],
        env=self.environment | (of_slurm(int(port[0]), process) if slurm else {}),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
    return self.started[-1]

  def pair(
    self,
    config: RunConfig,
    workdir: pathlib.Path,
    other: RunConfig | None = None,
    places: Sequence[pathlib.Path] = (ROOT, ROOT),
    address: str = '',
  ) -> list[subprocess.Popen]:
    """Starts two; the second may have a recipe of its own, each a current directory."""
    address = address or free_address()
    return [
      self.start(config, workdir, address, 0, cwd=places[0]),
      self.start(other or config, workdir, address, 1, cwd=places[1]),
    ]

  def both(self, *arguments: Any, **more: Any) -> list[tuple[int, str, str]]:
    """How two end."""
    return [ended(process) for process in self.pair(*arguments, **more)]


@pytest.fixture
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
  group = Processes(tmp_path_factory.mktemp('processes'))
  yield group
  for process in group.started:
    process.kill()
    process.communicate()


def ended(process: subprocess.Popen, seconds: float = 200) -> tuple[int, str, str]:
  out, err = process.communicate(timeout=seconds)
  return process.returncode, out, err


def parts(err: str) -> list[str]:
  """Names of the parts of the errors, and of tracebacks, in their order."""
  return [line.partition(':')[0].partition(' (')[0] for line in sentence(err).splitlines()]


def sentence(err: str) -> str:
  """The error, without what libraries say."""
  return '\n'.join(
    line
    for line in err.splitlines()
    if line.startswith(('asked: ', 'found: ', 'to do: ', 'Traceback'))
  )


@pytest.fixture(scope='module', autouse=True)
def compiled_once() -> Any:
  """Runs of this process share their compiled programs, quickly made ones: that takes nothing from
  what is tested.
  """
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pretrain, 'build_program', functools.cache(program.build_program))
    patch.setattr(pretrain, 'compile_chunk', lambda program, rows: program.chunk)
    jax.config.update('jax_disable_most_optimizations', True)
    yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def alone(tiny_corpus: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The run of one process."""
  folder = tmp_path_factory.mktemp('single') / 'run'
  pretrain.pretrain(short(tiny_corpus), folder)
  return folder


def assert_same(folder: pathlib.Path, other: pathlib.Path) -> None:
  """Every line once and in order, whoever computed it; losses but for roundings."""
  result, wanted = (list(run_dir.read_lines(path / run_dir.METRICS)) for path in (folder, other))
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
    {k: v for k, v in line.items() if k not in numbers} for line in wanted
  ]
  assert [line['loss'] for line in result] == pytest.approx(
    [line['loss'] for line in wanted], rel=1e-5
  )
  assert json.loads((folder / run_dir.RESULT).read_text())['test_loss'] == result[-1]['loss']
  assert checkpoint.latest_step(folder) == UPDATES


def cut_back(source: pathlib.Path, folder: pathlib.Path, step: int) -> pathlib.Path:
  """The run as it was after the checkpoint of a step."""
  shutil.copytree(source, folder)
  (folder / run_dir.RESULT).unlink()
  for path in (folder / checkpoint.FOLDER).iterdir():
    if int(path.name) > step:
      shutil.rmtree(path)
  return folder


def test_two_tasks_of_slurm_go_on_where_one_process_was(
  processes: Processes, alone: pathlib.Path, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  """And go to the end: one of them writes and speaks."""
  workdir = cut_back(alone, tmp_path / 'run', 8)
  both = processes.both(
    short(tiny_corpus), workdir, address=f'{distributed.AUTO}:{port_of_slurm()}'
  )
  for number, (status, out, err) in enumerate(both):
    assert not status, err
    assert (
      (json.loads(out) == json.loads((workdir / run_dir.RESULT).read_text()))
      if number == 0
      else not out
    )
    assert ('update 8' in err) == (number == 0)
  assert_same(workdir, alone)


def test_two_workers_of_gke_find_each_other(processes: Processes):
  """By what GKE tells the pods of a slice, as launch/gke.yaml starts them; with and without
  --coordinator=auto.
  """
  program = (
    'import sys\nfrom minilm_jax.core import distributed\nwith distributed.initialized(sys.argv[1], None, None, 60):\n'
    '  import jax\n  print(jax.process_index(), jax.process_count(), jax.device_count(), distributed.is_primary())'
  )
  gke_environment = {
    'TPU_WORKER_HOSTNAMES': 'localhost,localhost',
    'JAX_COORDINATOR_PORT': free_address().partition(':')[2],
    'JAX_FORCE_TPU_INIT': '1',  # for there is no chip, by which JAX tells a TPU VM
    'MEGASCALE_COORDINATOR_ADDRESS': 'localhost',
    'MEGASCALE_NUM_SLICES': '1',
    'MEGASCALE_SLICE_ID': '0',
  }
  for number, coordinator in enumerate(('', distributed.AUTO)):
    processes.started.append(
      subprocess.Popen(
        [sys.executable, '-c', program, coordinator],
        env=processes.environment | gke_environment | {'TPU_WORKER_ID': str(number)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  for number, (status, out, err) in enumerate(map(ended, processes.started)):
    assert not status and out.split() == [str(number), '2', '4', str(number == 0)], err


@pytest.mark.parametrize('killed', [0, 1])
def test_one_process_goes_on_where_one_of_two_was_killed(
  killed: int,
  processes: Processes,
  alone: pathlib.Path,
  tiny_corpus: pathlib.Path,
  tmp_path: pathlib.Path,
):
  config, workdir = short(tiny_corpus), tmp_path / 'run'
  pair = processes.pair(config, workdir)
  while (checkpoint.latest_step(workdir) or 0) < 4 and pair[0].poll() is None:
    time.sleep(0.02)
  pair[killed].kill()
  pair[killed].wait()  # a process that nobody waited for still holds the lock of the run
  # the heartbeat time-out; mostly at once, as sockets close
  status, out, err = ended(pair[1 - killed], WAIT + 10)
  assert status == 2 and not out and not (workdir / run_dir.RESULT).exists()
  assert parts(err) == ['asked', 'found', 'to do'] and 'asked: training on 2 processes\n' in err
  pretrain.pretrain(config, workdir)
  assert_same(workdir, alone)


@pytest.mark.parametrize('stopped', [0, 1])
def test_a_process_that_misses_its_heartbeats_ends_the_other(stopped: int, processes: Processes):
  """Its sockets stay open, so that no collective fails: JAX aborts, and the handler makes that
  status 2.
  """
  program = (
    'import sys\nimport jax\nfrom minilm_jax.core import distributed\ndistributed.MIN_HEARTBEAT_SECONDS = 1\n'
    'print("imported", flush=True)\nsys.stdin.readline()\n'
    'with distributed.initialized(sys.argv[1], 2, int(sys.argv[2]), 5):\n'
    '  print("started", file=sys.stdout, flush=True)\n  while True:\n    distributed.allgather_ints(1)\n'
  )
  address = free_address()
  processes.started += [
    subprocess.Popen(
      [sys.executable, '-c', program, address, str(number)],
      env=processes.environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in range(2)
  ]
  for process in processes.started:
    assert process.stdout.readline() == 'imported\n'
  for process in processes.started:
    process.stdin.write('\n')
    process.stdin.flush()
  for process in processes.started:
    assert process.stdout.readline() == 'started\n'
  processes.started[stopped].send_signal(signal.SIGSTOP)
  began = time.monotonic()
  status, out, err = ended(processes.started[1 - stopped], 30)
  assert (
    status == 2
    and not out
    and parts(err) == ['asked', 'found', 'to do']
    and time.monotonic() - began < 5 + 5
  )


@pytest.mark.slow
def test_a_signal_to_one_of_two_stops_both_at_one_update(
  processes: Processes, alone: pathlib.Path, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  """Saved; one process goes on from there."""
  config, workdir = short(tiny_corpus), tmp_path / 'run'
  both = processes.pair(config, workdir)
  while (checkpoint.latest_step(workdir) or 0) < 4 and both[0].poll() is None:
    time.sleep(0.02)
  both[1].send_signal(signal.SIGTERM)
  for status, out, err in [ended(process) for process in both]:
    assert status == 143 and not out and 'Traceback' not in err, err
    step = re.search(r'SIGTERM.* (\d+);', err)
    assert step and int(step[1]) == checkpoint.latest_step(workdir)
  pretrain.pretrain(config, workdir)
  assert_same(workdir, alone)


def test_another_recipe_stops_both(
  processes: Processes, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  for status, out, err in processes.both(
    short(tiny_corpus), tmp_path / 'run', short(tiny_corpus, seed=1)
  ):
    assert status == 2 and not out
    assert sentence(err).startswith('asked: the recipe') and 'process 0 has ' in sentence(err)
  assert not (tmp_path / 'run').exists()


def no_corpus(folder: pathlib.Path) -> None:
  shutil.rmtree(folder)


def another_corpus(folder: pathlib.Path) -> None:
  path = folder / run_dir.MANIFEST
  path.write_text(json.dumps({**json.loads(path.read_text()), 'hash': '0' * 64}))


@pytest.mark.parametrize(
  'change, part',
  [
    (another_corpus, ['the corpus to be the same in 2 processes\nfound: process 0 has '] * 2),
    (
      no_corpus,
      [
        'the corpus corpus\nfound: on process 1: no manifest.json',
        'the corpus corpus\nfound: no manifest.json',
      ],
    ),
  ],
)
def test_what_one_finds_on_its_disk_stops_both(
  change: Callable[[pathlib.Path], None],
  part: list[str],
  processes: Processes,
  tiny_corpus: pathlib.Path,
  tmp_path: pathlib.Path,
):
  places = [tmp_path / 'here', tmp_path / 'there']
  for place in places:
    shutil.copytree(tiny_corpus, place / 'corpus')
  change(places[1] / 'corpus')
  ends = processes.both(short(pathlib.Path('corpus')), tmp_path / 'run', places=places)
  for (status, out, err), result in zip(ends, part, strict=True):
    assert status == 2 and not out and sentence(err).startswith(f'asked: {result}')
  assert not (tmp_path / 'run').exists()


def test_a_process_that_never_comes(
  processes: Processes, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  began = time.monotonic()
  for number in range(2):
    processes.start(short(tiny_corpus), tmp_path / 'run', free_address(), number, wait=2)
  for process in processes.started:
    status, out, err = ended(process, 30)
    assert (
      status == 2
      and not out
      and 'within 2 seconds' in sentence(err)
      and sentence(err) == err.strip()
    )
    assert parts(err) == ['asked', 'found', 'to do']
  assert time.monotonic() - began < 2 + 20  # also imports JAX, on a busy machine
  assert not (tmp_path / 'run').exists()


def test_a_signal_ends_a_process_that_waits(
  processes: Processes, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  address = free_address()
  process = processes.start(short(tiny_corpus), tmp_path / 'run', address, 0, wait=100)
  while process.poll() is None:
    with contextlib.suppress(OSError), socket.create_connection(distributed.parse_address(address)):
      break
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  assert ended(process, 20)[0] == 128 + signal.SIGTERM
  assert not (tmp_path / 'run').exists()


def test_a_port_in_use(processes: Processes, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path):
  with socket.create_server(('127.0.0.1', 0)) as server:
    process = processes.start(
      short(tiny_corpus), tmp_path / 'run', f'localhost:{server.getsockname()[1]}', 0
    )
    status, out, err = ended(process, 60)
  assert status == 2 and not out and parts(err) == ['asked', 'found', 'to do']
  assert not (tmp_path / 'run').exists()


# each function, where there is one process


def test_one_process_is_left_alone(tmp_path: pathlib.Path, monkeypatch):
  monkeypatch.delenv('TPU_WORKER_HOSTNAMES', raising=False)
  with (
    distributed.initialized(free_address(), 1, 0, 1),
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
    raise OSError('as it is')


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
def test_flags_that_do_not_fit(arguments: tuple, part: str):
  with pytest.raises(InputError) as refused, distributed.initialized(*arguments):
    pass
  assert part in str(refused.value)


def test_processes_that_jax_joined_and_nobody_else_did(tmp_path: pathlib.Path, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 4)
  with pytest.raises(InputError, match=r'devices of 4(.|\n)*--coordinator=auto'):
    pretrain.pretrain(short(tmp_path), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_arrays_come_to_the_host():
  tree = {
    'a': sharding.replicate(np.arange(3), sharding.make_mesh(short(pathlib.Path()).mesh)),
    'b': 2,
  }
  assert jax.tree.map(np.ndim, distributed.to_host(tree)) == {'a': 1, 'b': 0}
