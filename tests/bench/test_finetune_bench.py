"""The bench of fine-tuning: what is run, what counts, what is refused."""

import dataclasses
import pathlib
from typing import Any

import pytest

from configs import glue
from minilm_jax.bench import competitors, finetune_bench, trainer_task
from minilm_jax.core import recipe
from minilm_jax.core.config import FinetuneConfig
from minilm_jax.core.errors import InputError

SECONDS = {'population': 120.0, 'first': 30.0, 'next': 10.0}


def config(**changes: Any) -> FinetuneConfig:
  made = glue.get_config('microworld/sentiment')
  made.update_from_flattened_dict(
    {
      'task.max_train_examples': 48,
      'epochs': 1.0,
      'seeds': '4,5,6',
      'validation_fraction': 0.2,
      'learning_rates': '1e-3,2e-3',
      **changes,
    }
  )
  return recipe.resolve(made, 'finetune')


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], list[FinetuneConfig]]:
  """The recipes that would have been run, by what was timed and how they are called; nothing is."""
  ran = {}

  def seconds(file: pathlib.Path, names: str, source: str, what: str) -> float:
    ran[what, names] = [
      recipe.resolve(recipe.load(f'{file}:{name}'), 'finetune') for name in names.split(',')
    ]
    return SECONDS[what]

  monkeypatch.setattr(finetune_bench, '_seconds', seconds)
  return ran


def test_all_populations_are_one_command_and_a_separate_run_is_one_member(
  commands: dict, tiny_run: pathlib.Path
):
  both = {'a': config(), 'b': config(seeds='1')}
  finetune_bench.bench_finetuning(both, str(tiny_run), '')
  rate = {'learning_rates': '', 'optimizer.learning_rate': 1e-3}
  first, second = ([config(seeds=seed, **rate)] for seed in '41')
  assert commands == {
    ('population', 'a,b'): list(both.values()),
    ('first', 'a-alone'): first,
    ('next', 'a-alone'): first,
    ('first', 'b-alone'): second,
    ('next', 'b-alone'): second,
  }


def test_the_first_run_compiles_and_the_next_stands_for_the_others(
  commands: dict, tiny_run: pathlib.Path
):
  found = finetune_bench.bench_finetuning(
    {'a': config(), 'b': config(seeds='1')}, str(tiny_run), ''
  )
  assert [one['members'] for one in found['tasks'].values()] == [6, 2]
  assert found['seconds'] == {'population': 120.0, 'separate': 30 + 5 * 10 + 30 + 10}
  assert found['faster_than_separate'] == pytest.approx(1.0)
  single, several, facts = finetune_bench.finetune_bench_tables(found)
  assert (single.row_count, several.row_count, facts.row_count) == (2, 1, 4)


def test_the_peer_counts_once_a_member_by_its_faster_threads(
  commands: dict, tiny_run: pathlib.Path, monkeypatch
):
  asked = []

  def trainer(task: trainer_task.TrainerTask, epochs: float, threads: int) -> dict[str, float]:
    settings = task.classes, task.batch_size, task.learning_rate, task.seed, task.pad
    asked.append((task.rows.max(), len(task.rows) == len(task.labels), *settings, epochs, threads))
    return {'seconds': 7.0 + threads}

  monkeypatch.setattr(competitors, 'time_hf_trainer', trainer)
  monkeypatch.setattr(finetune_bench.backend, 'count_cores', lambda: 4)
  monkeypatch.setattr(
    finetune_bench.machine, 'list_versions', lambda *names: dict.fromkeys(names, '1')
  )
  found = finetune_bench.bench_finetuning({'it': config()}, str(tiny_run), 'hf')
  assert found['seconds']['hf'] == 6 * 8 and found['tasks']['it']['hf_threads'] == 1
  assert found['faster_than_hf'] == pytest.approx(48 / 120)
  largest, together, *given = asked[0]
  # pieces of the tokenizer, not their places among those used
  assert 5 < largest < 520 and together
  assert given == [2, 32, 1e-3, 4, 'longest', 1.0, 1] and asked[1][-1] == 4
  assert finetune_bench.finetune_bench_tables(found)[2].row_count == 5


@pytest.mark.parametrize(
  'sources, against, said',
  [
    ('{run}', 'keras', 'nobody of that name'),
    ('{run}@all', '', 'not one checkpoint'),
    ('{run}-2', '', 'none saved'),
  ],
)
def test_what_cannot_be_timed_is_refused(
  sources: str, against: str, said: str, commands: dict, tiny_run: pathlib.Path
):
  with pytest.raises(InputError, match=said):
    finetune_bench.bench_finetuning({'it': config()}, sources.format(run=tiny_run), against)
  assert not commands


def test_what_the_peer_cannot_be_is_refused_beside_it_alone(
  commands: dict, tiny_run: pathlib.Path, monkeypatch
):
  with pytest.raises(InputError, match='head.ensemble_size of it is 3'):
    finetune_bench.bench_finetuning(
      {'it': config(**{'head.ensemble_size': 3})}, str(tiny_run), 'hf'
    )
  found = finetune_bench.pretrained.load_single_config(tiny_run)
  model = dataclasses.replace(found.model, convolutions=2, kernel=(3, 3), channels=4)
  monkeypatch.setattr(
    finetune_bench.pretrained,
    'load_single_config',
    lambda source: dataclasses.replace(found, model=model),
  )
  with pytest.raises(InputError, match='model.convolutions is 2'):
    finetune_bench.bench_finetuning({'it': config()}, str(tiny_run), 'hf')
  assert not commands
  assert (
    finetune_bench.bench_finetuning({'it': config()}, str(tiny_run), '')['seconds']['population']
    == SECONDS['population']
  )


def test_a_command_that_fails_says_why(tmp_path: pathlib.Path):
  file = tmp_path / 'recipe.py'
  file.write_text('def get_config(task):\n  return 3\n')
  with pytest.raises(InputError, match='gives a int'):
    finetune_bench._seconds(file, 'together', 'nowhere', 'population')


@pytest.mark.slow
def test_it_times_the_command(tiny_run: pathlib.Path):
  found = finetune_bench.bench_finetuning({'it': config()}, str(tiny_run), '')
  assert 0 < found['tasks']['it']['next'] < found['tasks']['it']['first']
  assert 0 < found['seconds']['population'] < found['seconds']['separate']
