"""The door: what cannot be used is refused in three parts with status 2 and leaves nothing behind."""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

import minilm_jax
from configs import glue, honey, honey_grid
from minilm_jax import __main__ as door
from minilm_jax import flags, usage
from minilm_jax.training import checkpoint

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, '-m', 'minilm_jax')
TINY = '--config=configs/tiny.py'
PRETRAIN = f'pretrain {TINY} --workdir=W'
SENTIMENT = 'finetune --config=configs/glue.py:microworld/sentiment --checkpoint=RUN --workdir=W'

# A command, and what the error must say. RUN is a run, CORPUS a corpus, W a work directory that is not there yet, FILE
# a file, EMPTY a folder with nothing in it.
REFUSED = [
    ('zz', 'known names are baselines, bench, committee, compare'),
    ('committee --workdir=W', 'no --members'),
    ('committee --members=EMPTY --workdir=W', 'nothing was saved whole'),
    ('predict --text=a', 'no --committee and no --classifier'),
    ('watch', 'no run directory'),
    ('watch EMPTY', 'no config.json of a run there'),
    ('watch FILE', 'no such folder'),
    ('watch RUN --axis=stps', "did you mean 'step'"),
    ('watch RUN --split=test', 'known names are train, validation'),
    (f'{PRETRAIN} --config.log.to=tensorbord', "did you mean 'tensorboard'"),
    (f'{PRETRAIN} --config.corpus=CORPUS --profile=9:3', 'nothing between them'),
    (f'{PRETRAIN} --config.corpus=CORPUS --profile=0:1000000', 'the run ends at update'),
    ('latency --config=configs/tiny.py --size=0', '--size=0'),
    ('completion', 'bash, zsh, fish'),
    ('completion powershell', 'bash'),
    (f'{PRETRAIN} --config.model.encoder=Encoder', 'no name of a class'),
    (f'{PRETRAIN} --config.model.encoder=nowhere:Encoder', 'no module nowhere'),
    (f'{PRETRAIN} --config.mask.span=-1', 'give at least 0'),
    ('pretran', "did you mean 'pretrain'"),
    ('--verbose', 'no such verb'),
    ('pretrain --workdir=W', 'no --config'),
    ('pretrain --config --workdir=W', 'no such file'),
    ('pretrain --config= --workdir=W', 'no --config'),
    ('pretrain --config=configs/tny.py --workdir=W', "did you mean 'configs/tiny.py'"),
    ('pretrain --config=EMPTY --workdir=W', 'no such file'),
    ('show --config=configs/honey.py:nope', "no logged run 'nope'; there are magic-bee-26"),
    ('show --config=configs/tiny.py:nope', 'nope'),
    ('show --config=configs/quickstart.py:nope', 'nope'),
    ('show --config=configs/base.py:nope', 'nope'),
    ('show --config=configs/glue.py:colaa', "did you mean 'cola'"),
    ('show --config=configs/glue.py:cola', 'give task.data_dir'),
    ('show --config=configs/corpus.py', 'documents.sources is empty'),
    (f'{PRETRAIN} --config.btach_size=3', "did you mean 'batch_size'"),
    (f'{PRETRAIN} --config.btach_size 3', "did you mean 'batch_size'"),
    (f'{PRETRAIN} -config.btach_size=3', "did you mean 'batch_size'"),
    (f'{PRETRAIN} --config.model.hiden=3', "did you mean 'model.hidden'"),
    (f'{PRETRAIN} --config.batch_size=many', 'give a value of type int'),
    (f'{PRETRAIN} --config.batch_size=3.5', 'give a value of type int'),
    (f'{PRETRAIN} --config.batch_size=', 'give a value of type int'),
    (f'{PRETRAIN} --config.batch_size', 'Missing value for flag --config.batch_size'),
    (f'{PRETRAIN} --config.model.tied=7', 'give a value of type bool'),
    (f'{PRETRAIN} --config.model=7', 'one by one'),
    (f'{PRETRAIN} --config.optimizer.learning_rate=fast', 'give a value of type float'),
    (f'{PRETRAIN} --config.optimizer.learning_rate=nan', 'learning_rate=nan'),
    (f'{PRETRAIN} --config.seed=-1', 'seed=-1'),
    (f'{PRETRAIN} --config.seed=4294967296', '2^32'),
    (f'{PRETRAIN} --config.model.heads=7', 'nearest that divide it: 2, 4, 8'),
    (f'{PRETRAIN} --config.batch_size=12 --config.mesh.data=8', 'over 8 devices'),
    (f'{PRETRAIN} --config.mesh.data=9', 'lower mesh.population, mesh.data or mesh.model'),
    (f'{PRETRAIN} --config.optimizer.undecayed=bais', "'bais'"),
    (f'{PRETRAIN} --config.kind=corpus', "of kind 'corpus'"),
    ('pretrain --config=configs/corpus.py --workdir=W', 'use minilm corpus'),
    ('pretrain --config=configs/glue.py --workdir=W', 'use minilm finetune'),
    (f'finetune {TINY} --checkpoint=RUN --workdir=W', 'use minilm pretrain'),
    (f'corpus {TINY} --workdir=W', 'use minilm pretrain'),
    (f'pretrain {TINY}', 'no --workdir'),
    (f'pretrain {TINY} --workdir=', 'no --workdir'),
    (f'pretrain {TINY} --workdir', 'Missing value for flag --workdir'),
    (f'pretrain {TINY} --workdr=W', "did you mean 'workdir'"),
    (f'{PRETRAIN} --from_scratch', 'has no such flag'),
    ('bench --config=configs/tiny.py --checkpoint=runs/x', 'does not take it'),
    ('bench --config=configs/glue.py:cola --checkpoint=runs/x --steps=3', 'does not take it'),
    (f'{PRETRAIN} somewhere', "'somewhere' is no flag"),
    (f'pretrain {TINY} --workdir=FILE', 'cannot be made'),
    (f'pretrain {TINY} --workdir=FILE/inside', 'cannot be made'),
    (f'pretrain {TINY} --workdir=RUN', 'belongs to another recipe'),
    ('pretrain --config=configs/base.py --workdir=W', '--config.corpus=FOLDER'),
    (f'{PRETRAIN} --config.corpus=EMPTY', 'no manifest.json'),
    (f'{PRETRAIN} --config.corpus=RUN', 'not a corpus manifest'),
    (f'{PRETRAIN} --config.corpus=FILE', 'no manifest.json'),
    (f'{PRETRAIN} --config.corpus=EMPTY/nothing.py', 'no such file'),
    (f'{PRETRAIN} --config.corpus=configs/corpus.py --config.model.length=128', 'model.vocabulary=19000'),
    (f'{PRETRAIN} --config.corpus=configs/quickstart.py:corpus --config.model.vocabulary=9999', 'sources is empty'),
    (f'{PRETRAIN} --config.corpus=configs/tiny.py', 'minilm pretrain'),
    (f'{PRETRAIN} --config.model.vocabulary=511', 'give --config.model.vocabulary=512'),
    (f'{PRETRAIN} --config.corpus=CORPUS --config.model.vocabulary=100', 'give --config.model.vocabulary=512'),
    (f'{PRETRAIN} --config.corpus=CORPUS --config.model.length=16', 'give --config.model.length=64'),
    ('corpus --config=configs/corpus.py --workdir=W', 'documents.sources is empty'),
    ('corpus --config=configs/corpus.py --workdir=W --config.documents.sources=EMPTY/*.txt', 'no file matches'),
    ('evaluate', 'no --checkpoint'),
    ('evaluate --config=configs/tiny.py --checkpoint=RUN', 'has no such flag'),
    ('evaluate --checkpoint=EMPTY/nothing', 'no file'),
    ('evaluate --checkpoint=EMPTY', 'no file'),
    ('evaluate --checkpoint=FILE', 'no file'),
    ('evaluate --checkpoint=CORPUS', "kind 'corpus'"),
    ('evaluate --checkpoint=RUN --split=tset', "did you mean 'test'"),
    ('evaluate --checkpoint=RUN --corpus=EMPTY', 'no manifest.json'),
    ('evaluate --checkpoint=RUN --pairs=EMPTY/nothing.csv', 'no such file or folder'),
    ('evaluate --checkpoint=RUN --pairs=', 'no such file or folder'),
    ('evaluate --checkpoint=RUN --pairs=EMPTY --workdir=W', 'there: nothing'),
    ('evaluate --checkpoint=RUN --pairs=FILE', 'not a table'),
    ('evaluate --checkpoint=RUN --pairs=FILE --likelihood=orginal', "did you mean 'original'"),
    ('evaluate --checkpoint=RUN --pairs=FILE --split=test', '--pairs does not take it'),
    ('evaluate --checkpoint=RUN --pairs=FILE --text=dogs', '--pairs does not take it'),
    ('evaluate --checkpoint=RUN --workdir=W', 'the loss on a corpus does not take it'),
    ('evaluate --checkpoint=RUN --text=', 'an empty one'),
    (f'evaluate --checkpoint=RUN "--text={"the dog " * 60}"', 'the model reads 62'),
    ('evaluate --checkpoint=RUN --text=dogs --likelihood=pll', "no such kind"),
    ('fill-mask --checkpoint=RUN', 'no --text'),
    ('fill-mask --checkpoint=RUN --text=hello', 'no <mask>'),
    (f'fill-mask --checkpoint=RUN "--text=<mask>{" dog" * 90}"', 'at most 64'),
    ('fill-mask --checkpoint=RUN --text=<mask> --best=some', 'give a value of type int'),
    ('fill-mask --checkpoint=RUN --text=the <mask> dog', "'<mask>' is no flag"),
    ('finetune --config=configs/glue.py:colq --checkpoint=RUN --workdir=W', "did you mean 'cola'"),
    ('finetune --config=configs/glue.py:cola --checkpoint=RUN --workdir=W', 'give task.data_dir'),
    ('finetune --config=configs/glue.py:rte --checkpoint=RUN --workdir=W --config.task.folder=EMPTY', 'there: nothing'),
    ('finetune --config=configs/glue.py --workdir=W', 'no --checkpoint'),
    ('finetune --config=configs/glue.py:cola,mrcp --checkpoint=RUN --workdir=W', "did you mean 'mrpc'"),
    ('finetune --config=configs/tiny.py:all --checkpoint=RUN --workdir=W', 'no table RUNS'),
    (f'{SENTIMENT.replace("=RUN", "=RUN@5")}', 'there are 4, 8'),
    (f'{SENTIMENT.replace("=RUN", "=RUN@latest")}', 'none saved there'),
    (f'{SENTIMENT.replace("=RUN", "=,")}', 'it names no run'),
    (f'{SENTIMENT.replace("=RUN", "=CORPUS")}', 'none saved there'),
    (f'{SENTIMENT} --from_scratch --control', 'give one of them'),
    (f'{SENTIMENT} --config.learning_rates=1e-4,1e-3', 'held_out=0.1'),
    (f'{SENTIMENT} --config.learning_rates=1e-4,0 --config.held_out=0.1', 'none above 0'),
    (f'{SENTIMENT} --config.patience=2', 'held_out=0.1'),
    (f'{SENTIMENT} --config.held_out=1.0', 'nothing left to train on'),
    (f'{SENTIMENT} --config.lift=wmap', "did you mean 'vmap'"),
    (f'{SENTIMENT} --config.task.split=tset', "did you mean 'test'"),
    (f'{SENTIMENT} --config.seeds=-1', 'seeds=-1'),
    (f'{SENTIMENT} --config.seeds=1,1', 'one twice'),
    (f'{SENTIMENT} --config.seeds=one', "'one'"),
    (f'{SENTIMENT} --config.epochs=inf', 'no end'),
    (f'{SENTIMENT} --config.task.filtered=True', 'no task.word_list'),
    (f'{SENTIMENT} --config.task.filtered=True --config.task.word_list=EMPTY/words', 'EMPTY/words'),
    (f'{SENTIMENT} --from_scratch=perhaps', 'give a value of type bool'),
    (f'bench {TINY} --steps=0', 'at least 1'),
    (f'bench {TINY} --repeats=0', 'at least 1'),
    (f'bench {TINY} --config.model.vocabulary=5', 'at least 6'),
    (f'preflight {TINY}', 'no --topology'),
    ('preflight --topology=v5e:2x4', 'no --config'),
    ('preflight --config=configs/honey.py:all --topology=v9:2x2', "no chip 'v9'"),
    (f'preflight {TINY}:all --topology=v5e:2x4', 'no table RUNS'),
    ('preflight --config=configs/honey.py:all --topology=v5e:2x4 --config.btach_size=3', "did you mean 'batch_size'"),
    ('sweep --config=configs/honey_grid.py', 'no --workdir'),
    ('sweep --config=configs/honey_grid.py:released,cubes --workdir=W', "cubes: the recipe"),
    ('sweep --config=configs/honey_grid.py:e32-h36-f64-a8-l1,magic-bee-26 --workdir=W', 'divide it: 4, 6, 9'),
    ('sweep --config=configs/honey_grid.py:iso_flops,wise-dew-6 --workdir=W', 'wise-dew-6 more than once'),
    ('sweep --config=configs/honey_grid.py:clean-sky-2,e256-h256-f1024-a1-l8 --workdir=W --config.model.tied=False '
     '--config.model.projection=True --config.model.heads=8', 'are the same point'),
    ('sweep --config=configs/honey_grid.py:iso_flops --workdir=W --shard=7/6', '--shard=7/6'),
    ('sweep --config=configs/honey_grid.py:iso_flops --workdir=W --tokens=1e6 --flops=1e12', 'more than one budget'),
    ('sweep --config=configs/honey_grid.py:iso_flops --workdir=W --tokens=some', 'give a value of type float'),
    ('report', 'no run directory'),
    ('report --logged=FILE', 'no --workdir'),
    ('report --logged=nowhere.csv --workdir=W', 'no such file'),
    ('report EMPTY --logged=FILE --workdir=W', 'folders beside it'),
    ('report RUN --workdir=W --draws=0', '0 draws'),
    ('report RUN --workdir=W --draws=1000000000', 'would take days'),
    ('report --workdir=W', 'no run directory'),
    ('report EMPTY --workdir=W', 'no config.json of a run there'),
    ('report EMPTY/nothing --workdir=W', 'no such folder'),
    ('report RUN --workdir=FILE', 'FILE'),
    ('report RUN --workdir=W --confusion', 'no predictions.jsonl'),
    ('quickstart --workdir=W --language=microworlds', "did you mean 'microworld'"),
    ('quickstart --language=microworld --workdir=FILE', 'FILE'),
]
WRITTEN = {  # recipes of one's own that give none
    'syntax': ('def get_config(:\n', 'SyntaxError'),
    'name': ('def get_config():\n  return nothing\n', 'NameError in line 2'),
    'key': ('def get_config(part):\n  return {}[part]\n', "missing 1 required positional argument: 'part'"),
    'function': ('x = 1\n', 'get_config'),
    'none': ('def get_config():\n  pass\n', 'a NoneType'),
    'imports': ('import nothing_at_all\n', 'nothing_at_all'),
    'zero': ('def get_config():\n  return 1 / 0\n', 'ZeroDivisionError in line 2'),
    'fields': ('from configs import base\n\ndef get_config():\n  made = base.pretrain()\n  made.hide = 3\n'
               '  return made\n', 'the field hide'),
    'kind': ('from ml_collections import config_dict as c\n\ndef get_config():\n  return c.ConfigDict()\n',
             'configs/base.py'),
    'bytes': ('def get_config():\n  return "\udcff"\n', 'SyntaxError'),
}


def read(name: str, arguments: list[str]) -> tuple:
  return flags.read(name, door.VERBS[name], arguments)


def called(arguments: list[str], capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
  capsys.readouterr()
  status = door.main(arguments)
  return status, *capsys.readouterr()


@pytest.mark.parametrize('command, said', REFUSED, ids=[command for command, _ in REFUSED])
def test_what_cannot_be_used_is_refused(command: str, said: str, tiny_run: pathlib.Path, tiny_corpus: pathlib.Path,
                                        tmp_path: pathlib.Path, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  places = {'RUN': tiny_run, 'CORPUS': tiny_corpus, 'W': tmp_path / 'work', 'FILE': tmp_path / 'file',
            'EMPTY': tmp_path / 'empty'}
  places['FILE'].write_text('what stands here')
  places['EMPTY'].mkdir()

  def filled(text: str) -> str:
    return re.sub(r'\b(RUN|CORPUS|W|FILE|EMPTY)\b', lambda match: str(places[match[0]]), text)

  before = {path: path.read_bytes() for path in tiny_run.rglob('*') if path.is_file()}
  status, out, err = called([filled(argument) for argument in shlex.split(command)], capsys)
  assert status == 2 and not out
  assert re.fullmatch(r'asked: .+\nfound: .+\nto do: .+\n', err), err
  assert filled(said) in err
  assert sorted(path.name for path in tmp_path.iterdir()) == ['empty', 'file'], 'something was left behind'
  assert places['FILE'].read_text() == 'what stands here' and not any(places['EMPTY'].iterdir())
  assert {path: path.read_bytes() for path in tiny_run.rglob('*') if path.is_file()} == before


@pytest.mark.parametrize('name', WRITTEN)
def test_a_recipe_that_gives_none_is_refused(name: str, tmp_path: pathlib.Path, capsys):
  text, said = WRITTEN[name]
  (tmp_path / 'mine.py').write_bytes(text.encode(errors='surrogateescape'))
  status, out, err = called(['pretrain', f'--config={tmp_path / "mine.py"}', f'--workdir={tmp_path / "run"}'], capsys)
  assert status == 2 and not out and said in err and str(err).count('asked: ') == 1
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('arguments', [
    ['--config=configs/tiny.py', '--config.model.heads=2', '--config.batch_size=8', '--config.model.tied'],
    ['--config', TINY.partition('=')[2], '--config.model.heads', '2', '--config.batch_size', '8',
     '--config.model.tied=true'],
    ['-config=configs/tiny.py', '-config.model.heads=2', '-config.batch_size=8', '-config.model.tied'],
    ['--config.batch_size=8', '--config.model.heads=2', '--config.model.tied=True', '--config=configs/tiny.py']])
def test_flags_may_be_written_as_absl_has_them(arguments: list[str], monkeypatch):
  monkeypatch.chdir(ROOT)
  config, _, free = read('pretrain', [*arguments, '--workdir', 'runs/x'])
  assert (config.model.heads, config.batch_size, config.model.tied, free) == (2, 8, True, [])


def test_a_value_may_hold_anything(monkeypatch):
  monkeypatch.chdir(ROOT)
  _, given, _ = read('fill-mask', ['--checkpoint=a=b', '--text=the --config=<mask> is -config: 7'])
  assert (given.checkpoint, given.text) == ('a=b', 'the --config=<mask> is -config: 7')
  found, _, _ = read('finetune', ['--config=configs/glue.py', '--checkpoint=x', '--workdir=y',
                                  '--config.seeds=4, 5', '--config.task.folder=a=b,c'])
  (config,) = found.values()
  assert config.seeds == (4, 5) and config.task.folder == 'a=b,c'


def test_help_names_every_verb_and_every_flag(capsys):
  for arguments in ([], ['--help'], ['-h'], ['help']):
    status, out, err = called(arguments, capsys)
    assert status == 0 and not err and all(verb in out for verb in door.VERBS)
  for name, verb in door.VERBS.items():
    status, out, err = called([name, '--help'], capsys)
    assert status == 0 and not err and verb.summary in out and verb.example in out
    assert all(f'--{flag.rstrip("*")}' in out for flag in verb.flags)
    assert ('--config ' in out) == bool(verb.kinds) and f'reads   {usage.TOLD[name][0]}' in out
    assert f'gives   {usage.TOLD[name][1]}' in out and called(['help', name], capsys)[1] == out
    assert max(map(len, out.splitlines())) <= 160
  assert usage.TOLD.keys() == door.VERBS.keys(), 'say in minilm_jax/usage.py what each verb reads and gives'
  assert called(['--version'], capsys)[1] == f'minilm_jax {minilm_jax.__version__}\n'
  assert {flag.rstrip('*') for verb in door.VERBS.values() for flag in verb.flags} == set(flags.FLAGS)


@pytest.mark.parametrize('name', door.VERBS)
def test_the_example_of_a_verb_is_understood(name: str, monkeypatch):
  monkeypatch.chdir(ROOT)
  read(name, shlex.split(door.VERBS[name].example))


def test_all_runs_of_a_recipe_are_read_with_what_is_changed_in_each(monkeypatch):
  monkeypatch.chdir(ROOT)
  rest = ['--topology=v5e:2x4', '--config.batch_size=8']
  found, given, _ = read('preflight', ['--config=configs/honey.py:all', *rest])
  assert list(found) == list(honey.RUNS) and given.topology == 'v5e:2x4'
  assert all(config.batch_size == 8 for config in found.values())
  one, _, _ = read('preflight', ['--config=configs/honey.py:wise-dew-6', *rest])
  assert one == {'wise-dew-6': found['wise-dew-6']}
  assert list(read('preflight', [TINY, *rest])[0]) == ['configs/tiny.py']


def test_a_grid_is_all_of_its_points(monkeypatch):
  monkeypatch.chdir(ROOT)
  found, given, _ = read('sweep', ['--config=configs/honey_grid.py', '--workdir=x', '--tokens=1e6'])
  assert list(found) == list(honey.RUNS) and given.tokens == 1e6
  some, _, _ = read('sweep', ['--config=configs/honey_grid.py:released,wise-dew-6', '--workdir=x'])
  assert list(some) == [*honey_grid.SETS['released'], 'wise-dew-6']


def test_several_tasks_are_read_by_name(monkeypatch):
  monkeypatch.chdir(ROOT)
  rest = ['--checkpoint=x', '--workdir=y', '--config.task.limit=9', '--control']
  found, given, _ = read('finetune', ['--config=configs/glue.py:rte, cola', *rest])
  assert list(found) == ['rte', 'cola'] and given.control and not given.from_scratch
  assert all(config.task.name == name and config.task.limit == 9 for name, config in found.items())
  assert list(read('finetune', ['--config=configs/glue.py:all', *rest])[0]) == list(glue.RUNS)


def test_a_newcomer_does_not_wait_for_help():
  program = ('import sys\nfrom minilm_jax.__main__ import main\n'
             'codes = [main(arguments) for arguments in (["--help"], ["pretrain", "--help"], ["nonsense"])]\n'
             'heavy = {"jax", "numpy", "absl", "rich.table"} & set(sys.modules)\n'
             'sys.exit(f"{codes} {heavy}" if codes != [0, 0, 2] or "jax" in heavy else 0)')
  done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr


def test_the_package_is_a_command_that_passes_its_status_on():
  for arguments, status in ((['--help'], 0), (['nonsense'], 2)):
    done = subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == status and 'Traceback' not in done.stderr


def test_a_reader_may_leave_early():
  """As `minilm show --json | head -1` does."""
  read, write = os.pipe()
  os.close(read)
  environment = {name: value for name, value in os.environ.items() if name != 'PYTHONUNBUFFERED'}  # it changes when
  done = subprocess.run([*COMMAND, '--help'], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False,
                        env=environment)
  os.close(write)
  assert done.returncode == 0 and not done.stderr


def test_a_fault_of_our_own_keeps_its_traceback(monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.setitem(door.VERBS, 'show', dataclasses.replace(door.VERBS['show'], run=lambda *_: [][0]))
  with pytest.raises(IndexError):
    door.main(['show', TINY])


@pytest.mark.parametrize('error, status, said', [
    (OSError(28, 'No space left on device'), 2, 'No space left on device'), (KeyboardInterrupt(), 130, 'goes on')])
def test_what_the_machine_says_is_no_traceback(error: BaseException, status: int, said: str, monkeypatch, capsys):
  def fail(*_):
    raise error
  monkeypatch.chdir(ROOT)
  monkeypatch.setitem(door.VERBS, 'show', dataclasses.replace(door.VERBS['show'], run=fail))
  found, out, err = called(['show', TINY], capsys)
  assert found == status and not out and said in err


def test_a_signal_ends_training_with_one_sentence(tiny_corpus: pathlib.Path, tmp_path: pathlib.Path):
  """After a save, which the same command goes on from."""
  workdir = tmp_path / 'run'
  command = [*COMMAND, 'pretrain', TINY, f'--workdir={workdir}', f'--config.corpus={tiny_corpus}', '--deterministic',
             '--config.updates=1000000', '--config.log.every=2', '--config.model.layers=1', '--config.mesh.data=1']
  environment = os.environ | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                        text=True) as process:
    until = time.monotonic() + 240
    log = workdir / 'metrics.jsonl'
    while not (log.exists() and log.stat().st_size) and process.poll() is None and time.monotonic() < until:
      time.sleep(0.05)
    process.terminate()
    out, err = process.communicate(timeout=120)
  last = err.splitlines()[-1]
  assert process.returncode == 143 and not out and 'Traceback' not in err, err
  found = re.fullmatch('stopped by SIGTERM at update ([0-9,]+); saved; the same command goes on from there', last)
  assert found, err
  assert checkpoint.steps(workdir)[-1] == int(found[1].replace(',', ''))


@pytest.mark.parametrize('number, status', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_elsewhere_is_a_sentence_too(number: int, status: int, monkeypatch, capsys):
  handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
  monkeypatch.chdir(ROOT)
  monkeypatch.setitem(door.VERBS, 'show', dataclasses.replace(
      door.VERBS['show'], run=lambda *_: os.kill(os.getpid(), number)))
  try:
    assert called(['show', TINY], capsys) == (
        status, '', f'stopped by {signal.Signals(number).name}; the same command goes on from what is on disk\n')
  finally:
    for one, handler in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True):
      signal.signal(one, handler)


def test_results_are_json_on_standard_output_and_progress_is_not(tiny_run: pathlib.Path, capsys):
  status, out, _ = called(['evaluate', f'--checkpoint={tiny_run}', '--split=test'], capsys)
  assert status == 0 and json.loads(out)['split'] == 'test'
  guess = ['fill-mask', '--checkpoint', str(tiny_run), '--text=the <mask> .', '--best=2']
  status, out, _ = called([*guess, '--json'], capsys)
  assert status == 0 and [guess['hole'] for guess in json.loads(out)['guesses']] == [1, 1]
  status, out, _ = called(guess, capsys)
  assert status == 0 and re.fullmatch(r'(1  0\.\d{4}  \S+\n){2}', out)
