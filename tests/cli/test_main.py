"""The command line: invalid input ends with an error in three parts, status 2 and no files."""

import dataclasses
import importlib.util
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

import minilm_jax
from configs import glue, paper1, paper1_grids
from minilm_jax.cli import commands, flags, main
from minilm_jax.core import backend, signals
from minilm_jax.core.errors import InputError
from minilm_jax.training import checkpoint
from tests.docstring_commands import parse
from tests.run_files import read_files

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, '-m', 'minilm_jax')
TINY = '--config=configs/tiny.py'
PRETRAIN = f'pretrain {TINY} --workdir=W'
SENTIMENT = 'finetune --config=configs/glue.py:microworld/sentiment --checkpoint=RUN --workdir=W'

# Invalid commands, each with a part of its error message. RUN is a run, CORPUS a
# corpus, W a directory that does not exist, FILE a file, EMPTY an empty folder.
REFUSED = [
  ('pretran', "did you mean 'pretrain'"),
  ('pretran --help', "did you mean 'pretrain'"),
  ('help pretran', "did you mean 'pretrain'"),
  (f'pretrain {TINY} --workdr=W', "did you mean 'workdir'"),
  ('pretrain --workdir=W', '--config'),
  (f'{PRETRAIN} --config.btach_size=3', "did you mean 'batch_size'"),
  (f'{PRETRAIN} --config.batch_size=many', 'many'),
  ('pretrain --config=configs/tny.py --workdir=W', "did you mean 'configs/tiny.py'"),
  (f'pretrain {TINY} --workdir=FILE', 'FILE'),
  (f'pretrain {TINY} --workdir=RUN', 'RUN'),
  ('evaluate --checkpoint=RUN --split=tset', "did you mean 'test'"),
  (f'{SENTIMENT.replace("=RUN", "=RUN@5")}', '4, 8'),
]
# Command lines that the parser refuses. `test_recipe.py` tests values of fields.
UNPARSABLE = [
  ('pretrain --config --workdir=W', '--workdir=W'),
  ('pretrain --config= --workdir=W', '--config'),
  ('pretrain --config=EMPTY --workdir=W', 'EMPTY'),
  ('preflight --topology=v5e:2x4', '--config'),
  ('preflight --config=configs/tiny.py', '--topology'),
  (f'preflight {TINY} --topology=h100 --program=training', '--program=training'),
  ('preflight --config=configs/tiny.py:all --topology=v5e:2x4', 'RUNS'),
  (
    'preflight --config=configs/paper1.py:all --topology=v5e:2x4 --config.btach_size=3',
    "did you mean 'batch_size'",
  ),
  ('show --config=configs/paper1.py:nope', "'nope'"),
  ('show --config=configs/tiny.py:nope', 'nope'),
  ('show --config=configs/base.py:nope', 'nope'),
  (f'{PRETRAIN} --config.model.hiden=3', "did you mean 'model.hidden_size'"),
  (f'{PRETRAIN} --config.batch_size=3.5', 'int'),
  (f'{PRETRAIN} --config.batch_size=', 'int'),
  (f'{PRETRAIN} --config.batch_size', '--config.batch_size'),
  (f'{PRETRAIN} --config.model.tied=7', 'bool'),
  (f'{PRETRAIN} --config.model=7', 'model'),
  (f'{PRETRAIN} --config.optimizer.learning_rate=fast', 'float'),
  (f'{PRETRAIN} --config.kind=corpus', "'corpus'"),
  ('pretrain --config=configs/corpus.py --workdir=W', 'minilm corpus'),
  ('pretrain --config=configs/glue.py --workdir=W', 'minilm finetune'),
  (f'finetune {TINY} --checkpoint=RUN --workdir=W', 'minilm pretrain'),
  (f'corpus {TINY} --workdir=W', 'minilm pretrain'),
  (f'pretrain {TINY}', '--workdir'),
  (f'pretrain {TINY} --workdir=', '--workdir'),
  (f'pretrain {TINY} --workdir', '--workdir'),
  (f'{PRETRAIN} --from_scratch', '--from_scratch'),
  (f'{PRETRAIN} somewhere', "'somewhere'"),
  ('evaluate', '--checkpoint'),
  ('show --checkpoint=', '--checkpoint'),
  ('evaluate --config=configs/tiny.py --checkpoint=RUN', '--config'),
  ('fill-mask --checkpoint=RUN', '--text'),
  ('fill-mask --checkpoint=RUN --text=<mask> --best=some', 'int'),
  ('fill-mask --checkpoint=RUN --text=the <mask> dog', "'<mask>'"),
  ('finetune --config=configs/glue.py --workdir=W', '--checkpoint'),
  (f'{SENTIMENT} --from_scratch=perhaps', 'bool'),
  ('committee --workdir=W', '--members'),
  ('sweep --config=configs/paper1_grids.py', '--workdir'),
  ('sweep --config=configs/paper1_grids.py:released,cubes --workdir=W', 'cubes'),
  ('sweep --config=configs/paper1_grids.py:e32-h36-f64-a8-l1,magic-bee-26 --workdir=W', '4, 6, 9'),
  ('sweep --config=configs/paper1_grids.py:iso_flops,wise-dew-6 --workdir=W', 'wise-dew-6'),
  ('sweep --config=configs/paper1_grids.py:iso_flops --workdir=W --tokens=some', 'float'),
]
# Command lines that a command refuses: flags that exclude each other, and invalid values.
REFUSED_BY_COMMAND = [
  (f'bench {TINY} --checkpoint=runs/x', '--checkpoint'),
  ('bench --config=configs/glue.py:cola --checkpoint=runs/x --steps=3', '--steps'),
  (f'bench {TINY} --steps=0', '--steps=0'),
  (f'bench {TINY} --repeats=0', '--repeats=0'),
  (f'bench {TINY} --population=1,2 --compare_with=torch', '--population'),
  (f'preflight {TINY} --topology=h100 --fit --program=evaluate', '--program=evaluate'),
  *(
    (f'{command} --checkpoint=RUN@8', '--checkpoint=RUN')
    for command in (
      *('evaluate', 'evaluate --text=dogs', 'fill-mask --text=<mask>', 'show'),
      'extract-member --workdir=W',
    )
  ),
  ('fill-mask --checkpoint=EMPTY --text=dogs', 'no <mask>'),
  ('fill-mask --checkpoint=EMPTY --text=<mask> --best=0', 'below 1'),
  ('evaluate --checkpoint=EMPTY', 'EMPTY'),
  ('evaluate --checkpoint=FILE', 'FILE'),
  ('evaluate --checkpoint=RUN --pairs=FILE --pll_variant=orginal', "did you mean 'original'"),
  ('evaluate --checkpoint=RUN --pairs=FILE --split=test', '--split'),
  ('evaluate --checkpoint=RUN --pairs=FILE --text=dogs', '--text'),
  ('evaluate --checkpoint=RUN --text=dogs --pll_variant=pll', 'pll'),
  ('evaluate --checkpoint=RUN --workdir=W', '--workdir'),
  (
    'finetune --config=configs/glue.py:cola,mrcp --checkpoint=RUN --workdir=W',
    "did you mean 'mrpc'",
  ),
  (f'{SENTIMENT} --config.task.filtered=True --config.task.word_list=EMPTY/words', 'EMPTY/words'),
  (f'{PRETRAIN} --config.corpus=CORPUS --profile=9:3', '9:3'),
  (f'{PRETRAIN} --config.mesh.data=9', 'mesh.data'),
  (
    f'{PRETRAIN} --config.corpus=CORPUS --config.model.max_length=16',
    '--config.model.max_length=64',
  ),
  (f'{PRETRAIN} --config.corpus=configs/corpus.py --config.model.max_length=128', '19000'),
  (f'{PRETRAIN} --config.corpus=configs/tiny.py', 'configs/quickstart.py:corpus'),
  ('bench --config=configs/tiny.py --steps=3000000000', '--steps=3000000000'),
  ('quickstart --workdir=W --language=microworlds', "did you mean 'microworld'"),
  ('sweep --config=configs/paper1_grids.py:iso_flops --workdir=W --shard=7/6', '--shard=7/6'),
  ('report --workdir=W', 'run'),
  ('report EMPTY --workdir=W', 'config.json'),
  ('report RUN --workdir=W --bootstrap_samples=1000000000', '1000000000'),
  ('completion', 'bash'),
  ('watch', 'run'),
  ('watch EMPTY', 'config.json'),
  ('watch RUN --axis=stps', "did you mean 'step'"),
  ('watch RUN --split=test', 'validation'),
]
BROKEN_RECIPES = {
  'syntax': ('def get_config(:\n', 'SyntaxError'),
  'name': ('def get_config():\n  return nothing\n', 'NameError in line 2'),
  'key': (
    'def get_config(part):\n  return {}[part]\n',
    "missing 1 required positional argument: 'part'",
  ),
  'function': ('x = 1\n', 'get_config'),
  'none': ('def get_config():\n  pass\n', 'NoneType'),
  'imports': ('import nothing_at_all\n', 'nothing_at_all'),
  'zero': ('def get_config():\n  return 1 / 0\n', 'ZeroDivisionError in line 2'),
  'fields': (
    'from configs import base\n\ndef get_config():\n  made = base.pretrain()\n  made.hide = 3\n'
    '  return made\n',
    'the field hide',
  ),
  'kind': (
    'from ml_collections import config_dict as c\n\ndef get_config():\n  return c.ConfigDict()\n',
    'configs/base.py',
  ),
  'bytes': ('def get_config():\n  return "\udcff"\n', 'SyntaxError'),
}


def call_main(arguments: list[str], capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
  capsys.readouterr()
  status = main.main(arguments)
  return status, *capsys.readouterr()


@pytest.mark.skipif(
  importlib.util.find_spec('gcsfs') is not None, reason='gcsfs, of the extra [gcs], is installed'
)
@pytest.mark.parametrize(
  'arguments',
  [
    ['watch', 'gs://bucket/run'],
    ['show', '--checkpoint=gs://bucket/run'],
    ['corpus', '--config=configs/corpus.py', '--config.documents.sources=gs://bucket/a.txt'],
  ],
)
def test_a_bucket_without_its_library_is_refused(
  arguments: list[str], tmp_path: pathlib.Path, capsys, monkeypatch
):
  monkeypatch.chdir(ROOT)
  if arguments[0] == 'corpus':
    arguments = [*arguments, f'--workdir={tmp_path}/rows']
  status, _, err = call_main(arguments, capsys)
  assert status == 2 and 'minilm_jax[gcs]' in err and not (tmp_path / 'rows').exists()


@pytest.mark.skipif(importlib.util.find_spec('s3fs') is not None, reason='s3fs is installed')
def test_a_bucket_of_another_provider_is_refused(capsys):
  status, _, err = call_main(['watch', 's3://bucket/run'], capsys)
  assert status == 2 and 's3fs' in err and 'gs://' in err


@pytest.fixture
def fill(
  tiny_run: pathlib.Path, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch
) -> Callable[[str], str]:
  """Returns a function that replaces RUN, CORPUS, W, FILE and EMPTY by paths."""
  monkeypatch.chdir(ROOT)
  paths = {
    'RUN': tiny_run,
    'CORPUS': tiny_corpus,
    'W': tmp_path / 'work',
    'FILE': tmp_path / 'file',
    'EMPTY': tmp_path / 'empty',
  }
  paths['FILE'].write_text('content')
  paths['EMPTY'].mkdir()
  return lambda text: re.sub(
    r'\b(RUN|CORPUS|W|FILE|EMPTY)\b', lambda match: str(paths[match[0]]), text
  )


@pytest.mark.parametrize('command, part', REFUSED, ids=[command for command, _ in REFUSED])
def test_a_refused_command_prints_three_parts_and_writes_nothing(
  command: str,
  part: str,
  fill: Callable[[str], str],
  tiny_run: pathlib.Path,
  tmp_path: pathlib.Path,
  capsys,
):
  old_files = read_files(tiny_run)
  status, out, err = call_main([fill(argument) for argument in shlex.split(command)], capsys)
  assert status == 2 and not out
  assert re.fullmatch(r'asked: .+\nfound: .+\nto do: .+\n', err), err
  assert fill(part) in err
  assert sorted(path.name for path in tmp_path.iterdir()) == ['empty', 'file'], (
    'the command left files'
  )
  assert (tmp_path / 'file').read_text() == 'content' and not any((tmp_path / 'empty').iterdir())
  assert read_files(tiny_run) == old_files


@pytest.mark.parametrize('command, part', UNPARSABLE, ids=[command for command, _ in UNPARSABLE])
def test_an_unparsable_command_line_is_refused(command: str, part: str, monkeypatch):
  monkeypatch.chdir(ROOT)
  name, *arguments = shlex.split(command)
  with pytest.raises(InputError, match=re.escape(part)):
    parse(name, arguments)


@pytest.mark.parametrize(
  'command, part', REFUSED_BY_COMMAND, ids=[command for command, _ in REFUSED_BY_COMMAND]
)
def test_a_command_refuses_before_it_writes(
  command: str, part: str, fill: Callable[[str], str], tmp_path: pathlib.Path
):
  name, *arguments = [fill(argument) for argument in shlex.split(command)]
  with pytest.raises(InputError, match=re.escape(fill(part))):
    commands.COMMANDS[name].run(*parse(name, arguments))
  assert sorted(path.name for path in tmp_path.iterdir()) == ['empty', 'file']


@pytest.mark.parametrize('name', BROKEN_RECIPES)
def test_a_broken_recipe_is_refused(name: str, tmp_path: pathlib.Path):
  text, part = BROKEN_RECIPES[name]
  (tmp_path / 'mine.py').write_bytes(text.encode(errors='surrogateescape'))
  with pytest.raises(InputError, match=re.escape(part)):
    parse('pretrain', [f'--config={tmp_path / "mine.py"}', f'--workdir={tmp_path / "run"}'])
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'arguments',
  [
    [
      '--config=configs/tiny.py',
      '--config.model.num_heads=2',
      '--config.batch_size=8',
      '--config.model.tied',
    ],
    [
      '--config',
      TINY.partition('=')[2],
      '--config.model.num_heads',
      '2',
      '--config.batch_size',
      '8',
      '--config.model.tied=true',
    ],
    [
      '-config=configs/tiny.py',
      '-config.model.num_heads=2',
      '-config.batch_size=8',
      '-config.model.tied',
    ],
    [
      '--config.batch_size=8',
      '--config.model.num_heads=2',
      '--config.model.tied=True',
      '--config=configs/tiny.py',
    ],
  ],
)
def test_flags_accept_the_forms_of_absl(arguments: list[str], monkeypatch):
  monkeypatch.chdir(ROOT)
  config, _, paths = parse('pretrain', [*arguments, '--workdir', 'runs/x'])
  assert (config.model.num_heads, config.batch_size, config.model.tied, paths) == (2, 8, True, [])


def test_a_value_may_contain_flags_and_separators(monkeypatch):
  monkeypatch.chdir(ROOT)
  _, values, _ = parse(
    'fill-mask', ['--checkpoint=a=b', '--text=the --config=<mask> is -config: 7']
  )
  assert (values.checkpoint, values.text) == ('a=b', 'the --config=<mask> is -config: 7')
  parsed, _, _ = parse(
    'finetune',
    [
      '--config=configs/glue.py',
      '--checkpoint=x',
      '--workdir=y',
      '--config.seeds=4, 5',
      '--config.task.folder=a=b,c',
    ],
  )
  (config,) = parsed.values()
  assert config.seeds == (4, 5) and config.task.folder == 'a=b,c'


def test_help_contains_every_command_and_every_flag(capsys):
  for arguments in ([], ['--help'], ['-h'], ['help']):
    status, out, err = call_main(arguments, capsys)
    assert status == 0 and not err and all(command in out for command in commands.COMMANDS)
  for name, command in commands.COMMANDS.items():
    status, out, err = call_main([name, '--help'], capsys)
    assert status == 0 and not err and command.summary in out and command.example in out
    names = {flag.rstrip('*') for flag in command.flags}
    assert all(f'--{name}' in out for name in names) and set(command.flag_help) <= names
    assert ('--config ' in out) == bool(command.kinds)
    assert command.reads in out and command.writes in out
    assert call_main(['help', name], capsys)[1] == out
    assert max(map(len, out.splitlines())) <= 160
  assert call_main(['--version'], capsys)[1] == f'minilm_jax {minilm_jax.__version__}\n'
  used_flags = {
    flag.rstrip('*') for command in commands.COMMANDS.values() for flag in command.flags
  }
  assert used_flags == set(flags.FLAGS)


@pytest.mark.parametrize('name', commands.COMMANDS)
def test_the_example_of_a_command_is_valid(name: str, monkeypatch):
  monkeypatch.chdir(ROOT)
  parse(name, shlex.split(commands.COMMANDS[name].example))


def test_a_changed_field_applies_to_all_runs_of_a_recipe(monkeypatch):
  monkeypatch.chdir(ROOT)
  options = ['--topology=v5e:2x4', '--config.batch_size=8']
  parsed, values, _ = parse('preflight', ['--config=configs/paper1.py:all', *options])
  assert list(parsed) == list(paper1.RUNS) and values.topology == 'v5e:2x4'
  assert all(config.batch_size == 8 for config in parsed.values())
  single, _, _ = parse('preflight', ['--config=configs/paper1.py:wise-dew-6', *options])
  assert single == {'wise-dew-6': parsed['wise-dew-6']}
  assert list(parse('preflight', [TINY, *options])[0]) == ['configs/tiny.py']


def test_a_sweep_contains_all_points_by_default(monkeypatch):
  monkeypatch.chdir(ROOT)
  parsed, values, _ = parse(
    'sweep', ['--config=configs/paper1_grids.py', '--workdir=x', '--tokens=1e6']
  )
  assert list(parsed) == list(paper1.RUNS) and values.tokens == 1e6
  subset, _, _ = parse(
    'sweep', ['--config=configs/paper1_grids.py:released,wise-dew-6', '--workdir=x']
  )
  assert list(subset) == [*paper1_grids.SETS['released'], 'wise-dew-6']


def test_several_tasks_are_selected_by_name(monkeypatch):
  monkeypatch.chdir(ROOT)
  options = [
    '--checkpoint=x',
    '--workdir=y',
    '--config.task.max_train_examples=9',
    '--with_scratch',
  ]
  parsed, values, _ = parse('finetune', ['--config=configs/glue.py:rte, cola', *options])
  assert list(parsed) == ['rte', 'cola'] and values.with_scratch and not values.from_scratch
  assert all(
    config.task.name == name and config.task.max_train_examples == 9
    for name, config in parsed.items()
  )
  assert list(parse('finetune', ['--config=configs/glue.py:all', *options])[0]) == list(glue.RUNS)


def test_help_does_not_import_jax():
  program = (
    'import sys\nfrom minilm_jax.cli.main import main\n'
    'codes = [main(arguments) for arguments in (["--help"], ["pretrain", "--help"], ["nonsense"])]\n'
    'heavy = {"jax", "numpy", "absl", "rich.table"} & set(sys.modules)\n'
    'sys.exit(f"{codes} {heavy}" if codes != [0, 0, 2] or "jax" in heavy else 0)'
  )
  process = subprocess.run(
    [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert process.returncode == 0, process.stderr


def test_the_module_exits_with_the_status_of_the_command():
  for arguments, status in ((['--help'], 0), (['nonsense'], 2)):
    process = subprocess.run(
      [*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == status and 'Traceback' not in process.stderr


def test_a_closed_pipe_is_no_error():
  """As `minilm show --json | head -1` does."""
  reader, writer = os.pipe()
  os.close(reader)
  # unbuffered output changes when the error occurs
  environment = {name: value for name, value in os.environ.items() if name != 'PYTHONUNBUFFERED'}
  process = subprocess.run(
    [*COMMAND, '--help'],
    cwd=ROOT,
    stdout=writer,
    stderr=subprocess.PIPE,
    text=True,
    check=False,
    env=environment,
  )
  os.close(writer)
  assert process.returncode == 0 and not process.stderr


@pytest.mark.parametrize('platform', ['cuda', 'nonsense'])
def test_a_platform_without_devices_is_refused(platform: str, tiny_run: pathlib.Path):
  if platform == 'cuda' and any(map(importlib.util.find_spec, backend.CUDA_PLUGINS)):
    pytest.skip('a CUDA plugin is installed')
  process = subprocess.run(
    [sys.executable, '-m', 'minilm_jax', 'evaluate', f'--checkpoint={tiny_run}'],
    env=os.environ | {'JAX_PLATFORMS': platform},
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == 2 and process.stderr.startswith('asked: devices of JAX_PLATFORMS=')


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.setitem(
    commands.COMMANDS, 'show', dataclasses.replace(commands.COMMANDS['show'], run=lambda *_: [][0])
  )
  with pytest.raises(IndexError):
    main.main(['show', TINY])


@pytest.mark.parametrize(
  'error, status, part',
  [
    (OSError(28, 'No space left on device'), 2, 'No space left on device'),
    (KeyboardInterrupt(), 130, 'SIGINT'),
  ],
)
def test_an_operating_system_error_has_no_traceback(
  error: BaseException, status: int, part: str, monkeypatch, capsys
):
  def fail(*_):
    raise error

  monkeypatch.chdir(ROOT)
  monkeypatch.setitem(
    commands.COMMANDS, 'show', dataclasses.replace(commands.COMMANDS['show'], run=fail)
  )
  returned, out, err = call_main(['show', TINY], capsys)
  assert returned == status and not out and part in err


def test_a_signal_ends_training_after_a_checkpoint(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  """The last line of standard error has the step of the checkpoint."""
  workdir = tmp_path / 'run'
  command = [
    *COMMAND,
    'pretrain',
    TINY,
    f'--workdir={workdir}',
    f'--config.corpus={tiny_corpus}',
    '--deterministic',
    '--config.num_steps=1000000',
    '--config.log.every=2',
    '--config.model.num_layers=1',
    '--config.mesh.data=1',
  ]
  with subprocess.Popen(
    command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  ) as process:
    deadline = time.monotonic() + 240
    log = workdir / 'metrics.jsonl'
    while (
      not (log.exists() and log.stat().st_size)
      and process.poll() is None
      and time.monotonic() < deadline
    ):
      time.sleep(0.05)
    process.terminate()
    out, err = process.communicate(timeout=120)
  last = err.splitlines()[-1]
  assert process.returncode == 143 and not out and 'Traceback' not in err, err
  step = re.search('SIGTERM.* ([0-9,]+);', last)
  assert step, err
  assert checkpoint.list_steps(workdir)[-1] == int(step[1].replace(',', ''))


@pytest.mark.parametrize(
  'number, status',
  [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)],
)
def test_a_signal_ends_other_commands_with_its_status(
  number: int, status: int, monkeypatch, capsys
):
  handlers = [signal.getsignal(name) for name in signals.SIGNALS]
  monkeypatch.chdir(ROOT)
  monkeypatch.setitem(
    commands.COMMANDS,
    'show',
    dataclasses.replace(commands.COMMANDS['show'], run=lambda *_: os.kill(os.getpid(), number)),
  )
  try:
    assert call_main(['show', TINY], capsys)[:2] == (status, '')
  finally:
    for name, handler in zip(signals.SIGNALS, handlers, strict=True):
      signal.signal(name, handler)
