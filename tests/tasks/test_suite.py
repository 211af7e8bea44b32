"""Several tasks and checkpoints as one command."""

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

ROOT = pathlib.Path(__file__).resolve().parents[2]


def of_sizes(**sizes: int) -> dict[str, FinetuneConfig]:
  return {
    name: tiny_config.make_finetune_config(
      f'microworld/{name}', **{'task.max_train_examples': size}
    )
    for name, size in sizes.items()
  }


@pytest.fixture(autouse=True)
def fewer_examples(monkeypatch):
  for split in loading.MICROWORLD:
    monkeypatch.setitem(loading.MICROWORLD, split, 400)


@pytest.fixture
def runs(tiny_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch) -> pathlib.Path:
  """A folder of runs a and b, with checkpoints of updates 4 and 8."""
  for name in ('a', 'b'):
    shutil.copytree(tiny_run, tmp_path / name)
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.fixture
def called(monkeypatch) -> list[tuple]:
  """Arguments of calls of fine-tuning, which does nothing: task, run, folder, starts."""
  calls = []

  def note_call(config: FinetuneConfig, source: str, workdir: Any, starts: list) -> list[dict]:
    calls.append((config.task.name.removeprefix('microworld/'), source, str(workdir), starts))
    if config.task.name == 'microworld/entailment':
      raise InputError('entailment', 'it cannot be', 'do without it')
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
def test_checkpoints_are_named_by_run_and_update(runs: pathlib.Path, names: str, expected: dict):
  steps = suite.expand_checkpoints(names)
  assert steps == expected and list(steps) == list(expected)


@pytest.mark.parametrize(
  'names, found',
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
def test_a_missing_checkpoint_is_refused(runs: pathlib.Path, names: str, found: str):
  with pytest.raises(InputError, match=found):
    suite.expand_checkpoints(names)


def test_a_run_may_have_an_at_in_its_name(runs: pathlib.Path):
  (runs / 'a').rename(runs / 'me@home')
  assert suite.expand_checkpoints('me@home') == {'me@home': [8]}
  assert suite.expand_checkpoints('me@home@4') == {'me@home': [4]}


def test_members_start_from_checkpoints_from_scratch_or_from_both():
  assert suite.choose_starts([4, 8], False, False) == [4, 8]
  assert suite.choose_starts([4, 8], False, True) == [4, 8, None]  # one control serves all
  assert suite.choose_starts([4, 8], True, False) == [None]
  with pytest.raises(InputError, match='--from_scratch and --with_scratch'):
    suite.choose_starts([4, 8], True, True)


def test_small_tasks_are_first(runs: pathlib.Path, called: list):
  configs = of_sizes(sentiment=300, acceptability=40)
  lines, errors = suite.finetune_all(configs, 'a', 'out', False, False)
  assert called == [
    ('acceptability', 'a', 'out/acceptability', [8]),
    ('sentiment', 'a', 'out/sentiment', [8]),
  ]
  assert [line['task'] for line in lines] == ['microworld/acceptability', 'microworld/sentiment']
  assert not errors
  called.clear()
  half = tiny_config.make_finetune_config(
    'microworld/acceptability', epochs=0.5, **{'task.max_train_examples': 60}
  )
  both = of_sizes(sentiment=40) | {'acceptability': half}
  suite.finetune_all(both, 'a', 'out', False, False)
  assert [name for name, *_ in called] == ['acceptability', 'sentiment']  # epochs count too


def test_each_run_and_task_has_a_folder(runs: pathlib.Path, called: list):
  one, two = of_sizes(sentiment=40), of_sizes(sentiment=40, acceptability=80)
  calls = []
  for configs, names in ((one, 'a@all'), (one, 'a,b'), (two, 'a'), (two, 'a,b@4')):
    suite.finetune_all(configs, names, 'out', False, True)
    calls.append([(source, folder, starts) for _, source, folder, starts in called])
    called.clear()
  assert calls == [
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


def test_runs_of_one_name_have_folders_by_path(runs: pathlib.Path, called: list):
  for name in ('a', 'b'):
    (runs / 'sweep' / name).mkdir(parents=True)
    (runs / name).rename(runs / 'sweep' / name / 'member-0')
  (runs / 'sweep' / 'c' / 'member-0').mkdir(parents=True)  # has no checkpoint yet
  assert suite.expand_checkpoints('sweep/*/member-*@4') == {
    'sweep/a/member-0': [4],
    'sweep/b/member-0': [4],
  }
  lines, _ = suite.finetune_all(of_sizes(sentiment=40), 'sweep/*/member-*', 'out', False, False)
  assert [line['checkpoint'] for line in lines] == ['a/member-0', 'b/member-0']
  assert [(source, folder) for _, source, folder, _ in called] == [
    ('sweep/a/member-0', 'out/a/member-0'),
    ('sweep/b/member-0', 'out/b/member-0'),
  ]


def test_one_run_by_two_names_is_refused(runs: pathlib.Path, called: list):
  with pytest.raises(InputError, match='b, ./b'):
    suite.finetune_all(of_sizes(sentiment=40), 'b,./b', 'out', False, False)
  assert not called


def test_an_error_stops_its_task_alone(runs: pathlib.Path, called: list, capsys):
  configs = {
    'rte': tiny_config.make_finetune_config('rte'),
    **of_sizes(entailment=20, sentiment=40),
  }
  lines, errors = suite.finetune_all(configs, 'a', 'out', False, False)
  # rte is nowhere, entailment fails on its way
  assert [name for name, *_ in called] == ['entailment', 'sentiment']
  assert [line['task'] for line in lines] == ['microworld/sentiment']
  assert [error.asked for error in errors] == ['examples of rte', 'entailment']
  log = capsys.readouterr().err
  assert all(text in log for text in ('task.data_dir', 'do without it', 'sentiment, from a'))


def test_no_task_that_runs_is_an_error(runs: pathlib.Path, called: list):
  with pytest.raises(InputError, match='examples of rte'):
    configs = {name: tiny_config.make_finetune_config(name) for name in ('rte', 'cola')}
    suite.finetune_all(configs, 'a', 'out', False, False)
  assert not called and not (runs / 'out').exists()
  with pytest.raises(InputError, match='entailment'):  # any error of one task and run
    suite.finetune_all(of_sizes(entailment=20), 'a', 'out', False, False)


def test_a_misspelt_task_stops_all(runs: pathlib.Path, called: list):
  broken = tiny_config.make_finetune_config('sentimant')
  with pytest.raises(InputError, match="'sentiment'"):
    suite.finetune_all({**of_sizes(sentiment=40), 'other': broken}, 'a', 'out', False, False)
  assert not called


@pytest.mark.usefixtures('fast_compile')
def test_the_command_runs_other_tasks_and_reports_errors(
  tiny_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch, capsys
):
  monkeypatch.chdir(ROOT)
  command = [
    'finetune',
    '--config=configs/glue.py:cola,microworld/sentiment',
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
  before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  assert main.main(command) == 2  # repeated, from the stored scores
  assert capsys.readouterr().out == out
  assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before
