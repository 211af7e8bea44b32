"""Tests fine-tuning of several checkpoints on several tasks."""

import json
import pathlib
import shutil
from typing import Any

import pytest

from minilm_jax.cli import main
from minilm_jax.core import run_dir
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.errors import InputError
from minilm_jax.tasks import finetune, loading, suite
from tests import tiny_config
from tests.fake_runs import write_examples
from tests.run_files import read_files

ROOT = pathlib.Path(__file__).resolve().parents[2]


def make_configs(**sizes: int) -> dict[str, FinetuneConfig]:
  """Returns recipes of microworld tasks by name and number of training examples."""
  return {
    name: tiny_config.make_finetune_config(
      f'microworld/{name}', **{'task.max_train_examples': size}
    )
    for name, size in sizes.items()
  }


@pytest.fixture(autouse=True)
def fewer_examples(monkeypatch):
  for split in loading.MICROWORLD_SIZES:
    monkeypatch.setitem(loading.MICROWORLD_SIZES, split, 400)


@pytest.fixture
def runs(tiny_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch) -> pathlib.Path:
  """Returns a folder with the runs a and b, which have checkpoints of steps 4 and 8."""
  for name in ('a', 'b'):
    shutil.copytree(tiny_run, tmp_path / name)
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
  """Replaces fine-tuning; lists task, run, folder and starts of its calls."""
  calls = []

  def note_call(config: FinetuneConfig, source: str, workdir: Any, starts: list) -> list[dict]:
    calls.append((config.task.name.removeprefix('microworld/'), source, str(workdir), starts))
    if config.task.name == 'microworld/entailment':
      raise InputError('entailment', 'an error', 'remove the task')
    return [{'task': config.task.name}]

  monkeypatch.setattr(finetune, 'finetune', note_call)
  return calls


@pytest.mark.parametrize(
  'names, expected',
  [
    ('a', {'a': [8]}),
    ('a@4', {'a': [4]}),
    ('a@all', {'a': [4, 8]}),
    ('a@4,a@8,b', {'a': [4, 8], 'b': [8]}),
    ('a@8,a@4', {'a': [8, 4]}),
    ('a@4, a@all,', {'a': [4, 8]}),
    ('b,a,b@8', {'b': [8], 'a': [8]}),
    ('./a@4', {'./a': [4]}),
  ],
)
def test_checkpoints_are_named_by_run_and_step(runs: pathlib.Path, names: str, expected: dict):
  steps = suite.expand_checkpoints(names)
  assert steps == expected and list(steps) == list(expected)


@pytest.mark.parametrize(
  'names, match',
  [
    ('a@5', '4, 8'),
    ('a@4,b@5', 'step 5 in b'),
    ('c', 'of c'),
    ('a@best', 'of a@best'),
    ('c@all', 'of c'),
    ('a,c@4', 'of c'),
    ('sweep/d*', r'sweep/d\*'),
    (',', '--checkpoint=,'),
    ('', '--checkpoint='),
  ],
)
def test_a_missing_checkpoint_is_refused(runs: pathlib.Path, names: str, match: str):
  with pytest.raises(InputError, match=match):
    suite.expand_checkpoints(names)


@pytest.mark.parametrize(
  'name, match',
  [('none', 'no such folder'), ('.', 'by a pattern'), ('tuned', "kind='finetune'")],
)
def test_a_folder_that_is_no_run_is_not_a_run_without_checkpoints(
  runs: pathlib.Path, name: str, match: str
):
  run_dir.open_run(runs / 'tuned', {'kind': 'finetune'})
  with pytest.raises(InputError, match=match):
    suite.expand_checkpoints(name)


def test_the_name_of_a_run_may_contain_an_at_sign(runs: pathlib.Path):
  (runs / 'a').rename(runs / 'me@home')
  assert suite.expand_checkpoints('me@home') == {'me@home': [8]}
  assert suite.expand_checkpoints('me@home@4') == {'me@home': [4]}


@pytest.mark.parametrize('name', ['lr=3e-3,wd=0.1', 'a@4', 'a@all', 'c [1]', 'c*', 'c?', 'ä b'])
def test_the_folder_of_a_run_may_have_any_name(runs: pathlib.Path, name: str):
  (runs / 'b').rename(runs / name)
  shutil.rmtree(runs / name / 'checkpoints' / '8')
  for checkpoint, expected in (
    (name, {name: [4]}),
    (f'{name}@4', {name: [4]}),
    (f'a@8,{name}', {'a': [8], name: [4]}),
    (f'{name}, a', {name: [4], 'a': [8]}),
    (f'{runs}/{name}', {f'{runs}/{name}': [4]}),
  ):
    assert suite.expand_checkpoints(checkpoint) == expected


def test_a_pattern_names_runs_with_checkpoints(runs: pathlib.Path):
  (runs / 'x,y').mkdir()
  (runs / 'a').rename(runs / 'x,y' / 'a')
  (runs / 'x,y' / 'empty').mkdir()
  assert suite.expand_checkpoints('x,y/*@4,b') == {'x,y/a': [4], 'b': [8]}


def test_a_pattern_names_a_linked_run_once(runs: pathlib.Path):
  (runs / 'Latest').symlink_to('a')
  (runs / 'far').symlink_to('b')
  assert list(suite.expand_checkpoints('*')) == ['a', 'b']
  assert suite.expand_checkpoints('Latest') == {'Latest': [8]}


def test_a_classifier_is_not_a_pretraining_run(runs: pathlib.Path):
  (runs / 'tuned').mkdir()
  (runs / 'b').rename(runs / 'tuned' / 'classifier-0')
  (runs / 'tuned' / 'classifier-0' / 'classifier.json').write_text('{}')
  assert suite.expand_checkpoints('**') == {'a': [8]}
  for name in ('tuned/classifier-0', 'tuned/classifier-0@8'):
    with pytest.raises(InputError, match='a saved classifier'):
      suite.expand_checkpoints(name)
  (runs / 'tuned' / 'classifier-0' / 'config.json').unlink()
  with pytest.raises(InputError, match='a saved classifier'):
    suite.expand_checkpoints('tuned/classifier-0')


def test_members_start_from_checkpoints_from_scratch_or_from_both():
  assert suite.choose_starts([4, 8], False, False) == [4, 8]
  assert suite.choose_starts([4, 8], False, True) == [4, 8, None]
  assert suite.choose_starts([4, 8], True, False) == [None]
  with pytest.raises(InputError, match='--from_scratch and --with_scratch'):
    suite.choose_starts([4, 8], True, True)


def test_tasks_with_few_updates_are_first(runs: pathlib.Path, calls: list):
  configs = make_configs(sentiment=300, acceptability=40)
  lines, errors = suite.finetune_all(configs, 'a', 'out', False, False)
  assert calls == [
    ('acceptability', 'a', 'out/acceptability', [8]),
    ('sentiment', 'a', 'out/sentiment', [8]),
  ]
  assert [line['task'] for line in lines] == ['microworld/acceptability', 'microworld/sentiment']
  assert not errors
  calls.clear()
  half = tiny_config.make_finetune_config(
    'microworld/acceptability', epochs=0.5, **{'task.max_train_examples': 60}
  )
  configs = make_configs(sentiment=40) | {'acceptability': half}
  suite.finetune_all(configs, 'a', 'out', False, False)
  assert [name for name, *_ in calls] == ['acceptability', 'sentiment']


def test_each_run_and_task_has_a_folder(runs: pathlib.Path, calls: list):
  single, double = make_configs(sentiment=40), make_configs(sentiment=40, acceptability=80)
  folders = []
  for configs, names in ((single, 'a@all'), (single, 'a,b'), (double, 'a'), (double, 'a,b@4')):
    suite.finetune_all(configs, names, 'out', False, True)
    folders.append([(source, folder, starts) for _, source, folder, starts in calls])
    calls.clear()
  assert folders == [
    [('a', 'out', [4, 8, None])],
    [('a', 'out/a', [8, None]), ('b', 'out/b', [8, None])],
    [('a', 'out/sentiment', [8, None]), ('a', 'out/acceptability', [8, None])],
    [
      ('a', 'out/a/sentiment', [8, None]),
      ('b', 'out/b/sentiment', [4, None]),
      ('a', 'out/a/acceptability', [8, None]),
      ('b', 'out/b/acceptability', [4, None]),
    ],
  ]


@pytest.mark.parametrize(
  'first, second, is_refused',
  [
    ({'folder': 'data'}, {'folder': './data'}, True),
    ({'train': 'x.csv', 'test': 'y.csv'}, {'train': 'z.csv', 'test': 'y.csv'}, True),
    ({'folder': 'data'}, {'folder': 'data/rte'}, False),
    ({'train': 'x.csv'}, {'train': 'x.csv', 'label': 'topic'}, False),
    ({'data_dir': 'TFDS'}, {'data_dir': 'TFDS'}, False),
  ],
)
def test_tasks_do_not_share_the_files_of_one_task(
  first: dict, second: dict, is_refused: bool, runs: pathlib.Path, calls: list
):
  configs = {
    name: tiny_config.make_finetune_config(
      name, **{f'task.{field}': value for field, value in fields.items()}
    )
    for name, fields in (('rte', first), ('wnli', second))
  }
  # Without examples, tasks that are not refused have an error of their own.
  match = 'the tasks rte and wnli' if is_refused else 'data|TFDS|csv'
  with pytest.raises(InputError, match=match) as error:
    suite.finetune_all(configs, 'a', 'out', False, False)
  assert ('the tasks rte and wnli' in str(error.value)) == is_refused and not calls


def test_several_recipes_of_a_task_share_its_files(runs: pathlib.Path, calls: list):
  write_examples(runs / 'data', train=[{'sentence': 'a dog .', 'label': 1}])
  configs = {
    f'sentiment-{epochs}': tiny_config.make_finetune_config(
      'sentiment', epochs=epochs, **{'task.folder': 'data'}
    )
    for epochs in (1.0, 2.0)
  }
  suite.finetune_all(configs, 'a', 'out', False, False)
  assert [name for name, *_ in calls] == ['sentiment', 'sentiment']


def test_runs_of_equal_name_have_folders_by_path(runs: pathlib.Path, calls: list):
  for name in ('a', 'b'):
    (runs / 'sweep' / name).mkdir(parents=True)
    (runs / name).rename(runs / 'sweep' / name / 'member-0')
  (runs / 'sweep' / 'c' / 'member-0').mkdir(parents=True)  # a run without checkpoints
  assert suite.expand_checkpoints('sweep/*/member-*@4') == {
    'sweep/a/member-0': [4],
    'sweep/b/member-0': [4],
  }
  configs = make_configs(sentiment=40)
  lines, _ = suite.finetune_all(configs, 'sweep/*/member-*', 'out', False, False)
  assert [line['checkpoint'] for line in lines] == ['a/member-0', 'b/member-0']
  assert [(source, folder) for _, source, folder, _ in calls] == [
    ('sweep/a/member-0', 'out/a/member-0'),
    ('sweep/b/member-0', 'out/b/member-0'),
  ]


def test_an_error_stops_only_its_task(runs: pathlib.Path, calls: list, capsys):
  missing = tiny_config.make_finetune_config('rte')
  configs = {'rte': missing, **make_configs(entailment=20, sentiment=40)}
  lines, errors = suite.finetune_all(configs, 'a', 'out', False, False)
  assert [name for name, *_ in calls] == ['entailment', 'sentiment']
  assert [line['task'] for line in lines] == ['microworld/sentiment']
  assert [error.asked for error in errors] == ['examples of rte', 'entailment']
  log = capsys.readouterr().err
  assert all(text in log for text in ('task.data_dir', 'remove the task', 'sentiment, from a'))


def test_an_error_is_raised_if_no_task_runs(runs: pathlib.Path, calls: list):
  sentiment = make_configs(sentiment=40)
  missing = {name: tiny_config.make_finetune_config(name) for name in ('rte', 'cola')}
  misspelt = {**sentiment, 'other': tiny_config.make_finetune_config('sentimant')}
  for configs, names, match in (
    (missing, 'a', 'examples of rte'),
    (misspelt, 'a', "'sentiment'"),
    (sentiment, 'b,./b', 'b, ./b'),
  ):
    with pytest.raises(InputError, match=match):
      suite.finetune_all(configs, names, 'out', False, False)
    assert not calls and not (runs / 'out').exists()
  with pytest.raises(InputError, match='entailment'):
    suite.finetune_all(make_configs(entailment=20), 'a', 'out', False, False)


def test_the_command_runs_all_possible_tasks_and_reports_errors(
  tiny_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch, capsys
):
  monkeypatch.chdir(ROOT)
  command = [
    'finetune',
    '--config=configs/paper1_tasks.py:cola,microworld/sentiment',
    f'--checkpoint={tiny_run}@all',
    f'--workdir={tmp_path / "out"}',
    '--config.task.max_train_examples=32',
    '--config.seeds=0',
    '--config.epochs=1',
    '--config.batch_size=16',
    '--config.length=16',
    '--with_scratch',
  ]
  assert main.main(command) == 2
  out, err = capsys.readouterr()
  assert 'microworld/sentiment' in out and 'cola' not in out
  assert 'examples of cola' in err
  folder = tmp_path / 'out' / 'microworld' / 'sentiment'
  assert json.loads((folder / 'config.json').read_text())['starts'] == [4, 8, None]
  scores = list(run_dir.read_lines(folder / 'scores.jsonl'))
  assert [line['checkpoint_step'] for line in scores] == [4, 8, None]
  assert {path.name for path in (tmp_path / 'out').iterdir()} == {'microworld'}
  before = read_files(tmp_path)
  assert main.main(command) == 2  # reads the stored scores
  assert capsys.readouterr().out == out
  assert read_files(tmp_path) == before
