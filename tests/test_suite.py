"""Several tasks and checkpoints as one command: what is named, in what order it runs, and what a lack of one stops."""

import json
import pathlib
import shutil
from typing import Any

import pytest

from configs import glue
from minilm_jax import __main__ as door
from minilm_jax import recipe, run
from minilm_jax.config import FinetuneConfig
from minilm_jax.errors import InputError
from minilm_jax.tasks import finetune, places, suite

ROOT = pathlib.Path(__file__).resolve().parent.parent


def settings(task: str, **changes: Any) -> FinetuneConfig:
  config = glue.get_config(task)
  config.update_from_flattened_dict(changes)
  return recipe.resolve(config, 'finetune')


def of_sizes(**sizes: int) -> dict[str, FinetuneConfig]:
  return {name: settings(f'microworld/{name}', **{'task.max_train_examples': size}) for name, size in sizes.items()}


@pytest.fixture(autouse=True)
def fewer_examples(monkeypatch):
  for split in places.MICROWORLD:
    monkeypatch.setitem(places.MICROWORLD, split, 400)


@pytest.fixture
def runs(tiny_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch) -> pathlib.Path:
  """A folder of runs a and b, with checkpoints of updates 4 and 8."""
  for name in ('a', 'b'):
    shutil.copytree(tiny_run, tmp_path / name)
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.fixture
def called(monkeypatch) -> list[tuple]:
  """What fine-tuning is asked for, instead of doing it: task, run, folder, starts."""
  found = []

  def noted(config: FinetuneConfig, source: str, workdir: Any, starts: list) -> list[dict]:
    found.append((config.task.name.removeprefix('microworld/'), source, str(workdir), starts))
    if config.task.name == 'microworld/entailment':
      raise InputError('entailment', 'it cannot be', 'do without it')
    return [{'task': config.task.name}]
  monkeypatch.setattr(finetune, 'finetune', noted)
  return found


@pytest.mark.parametrize('given, expected', [
    ('a', {'a': [8]}), ('a@4', {'a': [4]}), ('a@all', {'a': [4, 8]}), ('a@4,a@8,b', {'a': [4, 8], 'b': [8]}),
    ('a@8,a@4', {'a': [8, 4]}), ('a@4, a@all,', {'a': [4, 8]}), ('b,a,b@8', {'b': [8], 'a': [8]}),
    ('./a@4', {'./a': [4]})])
def test_checkpoints_are_named_by_run_and_update(runs: pathlib.Path, given: str, expected: dict):
  found = suite.checkpoints(given)
  assert found == expected and list(found) == list(expected)


@pytest.mark.parametrize('given, said', [
    ('a@5', 'there are 4, 8'), ('a@4,b@5', 'step 5 in b'), ('c', 'none saved there'), ('a@best', 'none saved there'),
    ('c@all', 'none saved there'), ('a,c@4', 'the checkpoint of c'), (',', 'it names no run'), ('', 'it names no run')])
def test_a_checkpoint_that_is_not_there_is_refused(runs: pathlib.Path, given: str, said: str):
  with pytest.raises(InputError, match=said):
    suite.checkpoints(given)


def test_a_run_may_have_an_at_in_its_name(runs: pathlib.Path):
  (runs / 'a').rename(runs / 'me@home')
  assert suite.checkpoints('me@home') == {'me@home': [8]} and suite.checkpoints('me@home@4') == {'me@home': [4]}


def test_members_start_from_checkpoints_from_scratch_or_from_both():
  assert suite.starts([4, 8], False, False) == [4, 8]
  assert suite.starts([4, 8], False, True) == [4, 8, None]  # one control serves all
  assert suite.starts([4, 8], True, False) == [None]
  with pytest.raises(InputError, match='give one of them'):
    suite.starts([4, 8], True, True)


def test_small_tasks_are_first(runs: pathlib.Path, called: list):
  lines, failed = suite.finetune_all(of_sizes(sentiment=300, acceptability=40), 'a', 'out', False, False)
  assert called == [('acceptability', 'a', 'out/acceptability', [8]), ('sentiment', 'a', 'out/sentiment', [8])]
  assert [line['task'] for line in lines] == ['microworld/acceptability', 'microworld/sentiment'] and not failed
  called.clear()
  half = settings('microworld/acceptability', epochs=0.5, **{'task.max_train_examples': 60})
  both = of_sizes(sentiment=40) | {'acceptability': half}
  suite.finetune_all(both, 'a', 'out', False, False)
  assert [name for name, *_ in called] == ['acceptability', 'sentiment']  # epochs count too


def test_each_run_and_task_has_a_folder(runs: pathlib.Path, called: list):
  one, two = of_sizes(sentiment=40), of_sizes(sentiment=40, acceptability=80)
  found = []
  for configs, given in ((one, 'a@all'), (one, 'a,b'), (two, 'a'), (two, 'a,b@4')):
    suite.finetune_all(configs, given, 'out', False, True)
    found.append([(source, folder, starts) for _, source, folder, starts in called])
    called.clear()
  assert found == [
      [('a', 'out', [4, 8, None])],
      [('a', 'out/a', [8, None]), ('b', 'out/b', [8, None])],
      [('a', 'out/sentiment', [8, None]), ('a', 'out/acceptability', [8, None])],
      [('a', 'out/a/sentiment', [8, None]), ('b', 'out/b/sentiment', [4, None]),
       ('a', 'out/a/acceptability', [8, None]), ('b', 'out/b/acceptability', [4, None])]]


def test_runs_of_one_name_are_told_apart_by_where_they_are(runs: pathlib.Path, called: list):
  for name in ('a', 'b'):
    (runs / 'sweep' / name).mkdir(parents=True)
    (runs / name).rename(runs / 'sweep' / name / 'member-0')
  (runs / 'sweep' / 'c' / 'member-0').mkdir(parents=True)  # has no checkpoint yet
  assert suite.checkpoints('sweep/*/member-*@4') == {'sweep/a/member-0': [4], 'sweep/b/member-0': [4]}
  lines, _ = suite.finetune_all(of_sizes(sentiment=40), 'sweep/*/member-*', 'out', False, False)
  assert [line['checkpoint'] for line in lines] == ['a/member-0', 'b/member-0']
  assert [(source, folder) for _, source, folder, _ in called] == [
      ('sweep/a/member-0', 'out/a/member-0'), ('sweep/b/member-0', 'out/b/member-0')]
  with pytest.raises(InputError, match='no run with a checkpoint there'):
    suite.checkpoints('sweep/d*')


def test_one_run_by_two_names_is_refused(runs: pathlib.Path, called: list):
  with pytest.raises(InputError, match='two of them are one run'):
    suite.finetune_all(of_sizes(sentiment=40), 'b,./b', 'out', False, False)
  assert not called


def test_what_one_task_lacks_stops_that_task_alone(runs: pathlib.Path, called: list, capsys):
  configs = {'rte': settings('rte'), **of_sizes(entailment=20, sentiment=40)}
  lines, failed = suite.finetune_all(configs, 'a', 'out', False, False)
  assert [name for name, *_ in called] == ['entailment', 'sentiment']  # rte is nowhere, entailment fails on its way
  assert [line['task'] for line in lines] == ['microworld/sentiment']
  assert [error.asked for error in failed] == ['examples of rte', 'entailment']
  said = capsys.readouterr().err
  assert 'give task.data_dir' in said and 'do without it' in said and 'task 2 of 2: sentiment, from a' in said


def test_where_nothing_can_be_run_it_is_an_error(runs: pathlib.Path, called: list):
  with pytest.raises(InputError, match='examples of rte'):
    suite.finetune_all({name: settings(name) for name in ('rte', 'cola')}, 'a', 'out', False, False)
  assert not called and not (runs / 'out').exists()
  with pytest.raises(InputError, match='it cannot be'):  # of one task and run, whatever it lacks
    suite.finetune_all(of_sizes(entailment=20), 'a', 'out', False, False)


def test_a_misspelt_task_stops_all(runs: pathlib.Path, called: list):
  broken = settings('sentimant')
  with pytest.raises(InputError, match="did you mean 'sentiment'"):
    suite.finetune_all({**of_sizes(sentiment=40), 'other': broken}, 'a', 'out', False, False)
  assert not called


@pytest.mark.usefixtures('fast_compile')
def test_the_command_does_what_it_can_and_says_what_it_could_not(tiny_run: pathlib.Path, tmp_path: pathlib.Path,
                                                                 monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  command = ['finetune', '--config=configs/glue.py:cola,microworld/sentiment', f'--checkpoint={tiny_run}@all',
             f'--workdir={tmp_path / "out"}', '--config.task.max_train_examples=32', '--config.seeds=0', '--config.epochs=1',
             '--config.batch_size=16', '--config.length=16', '--with_scratch']
  assert door.main(command) == 2
  out, err = capsys.readouterr()
  assert 'microworld/sentiment' in out and 'cola' not in out
  assert 'asked: scores on 2 tasks\nfound: examples of cola: no place to read them from\n' in err
  folder = tmp_path / 'out' / 'microworld' / 'sentiment'
  assert json.loads((folder / 'config.json').read_text())['starts'] == [4, 8, None]
  scores = list(run.read_lines(folder / 'scores.jsonl'))
  assert [line['checkpoint_step'] for line in scores] == [4, 8, None]
  assert {path.name for path in (tmp_path / 'out').iterdir()} == {'microworld'}
  before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  assert door.main(command) == 2  # and again it says the same, from what is there
  assert capsys.readouterr().out == out
  assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before
