"""Recipes: each comes through the door, each command that one gives is understood, numbers are those they claim."""

import importlib
import pathlib
import re
import shlex

import pytest

from configs import base, cpu_grid, glue, honey, honey_grid, microworld, quickstart, tiny, topics
from minilm_jax import __main__ as door
from minilm_jax import flags, recipe
from minilm_jax.errors import InputError
from minilm_jax.language import tokenizer
from minilm_jax.model import size
from minilm_jax.tasks import table
from minilm_jax.training import optimizer

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / 'configs'
PARTS = ('corpus', 'pretrain', 'finetune')
POINTS = dict.fromkeys(name for names in honey_grid.SETS.values() for name in names)
NAMES = [*(f'honey.py:{name}' for name in honey.RUNS), *(f'glue.py:{name}' for name in table.TASKS),
         *(f'honey_grid.py:{name}' for name in POINTS), *(f'cpu_grid.py:{name}' for name in cpu_grid.RUNS),
         'honey_grid.py', 'cpu_grid.py',
         *(f'topics.py:{name}' for name in topics.TASKS), 'topics.py', 'own.py',
         *(f'{stem}.py:{part}' for stem in ('quickstart', 'microworld') for part in PARTS), 'tiny.py', 'tiny.py:corpus',
         'tiny.py:pretrain', 'corpus.py', 'base.py', 'honey.py', 'glue.py', 'quickstart.py', 'microworld.py']


def commands(text: str) -> list[str]:
  """The commands that stand indented in a docstring, continued lines joined."""
  return re.findall(r'^ {4}(minilm .*)$', text.replace('\\\n', ' '), re.M)


@pytest.mark.parametrize('name', NAMES)
def test_every_name_on_the_command_line_resolves(name: str):
  found = recipe.load(f'configs/{name}')
  recipe.resolve(found, found.kind)


def test_no_recipe_is_forgotten():
  assert {name.partition('.')[0] for name in NAMES} == {path.stem for path in CONFIGS.glob('[!_]*.py')}
  assert len(honey.RUNS) == 42


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('[!_]*.py')), ids=lambda path: path.stem)
def test_a_recipe_opens_with_what_it_is_and_a_command_that_works(path: pathlib.Path):
  module = importlib.import_module(f'configs.{path.stem}')
  found = commands(module.__doc__)
  assert found or path.stem == 'base' or 'bash launch/' in module.__doc__
  for command in found:
    _, verb, *arguments = shlex.split(command)
    flags.read(verb, door.VERBS[verb], arguments)  # names no field, flag or part that is not there


def test_tiny_fits_its_corpus_and_saves_on_the_way():
  run, corpus = (recipe.resolve(tiny.get_config(part), part) for part in ('pretrain', 'corpus'))
  assert run.model.vocabulary >= corpus.tokenizer.size and run.model.length >= corpus.rows.length
  assert run.updates >= 3 * run.checkpoint.every and run.updates >= 3 * run.evaluation.every


@pytest.mark.parametrize('parts', [quickstart, microworld], ids=lambda module: module.__name__)
def test_the_parts_of_a_quickstart_fit_each_other(parts):
  corpus, run, task = (recipe.resolve(parts.get_config(part), part) for part in PARTS)
  assert run.model.vocabulary >= corpus.tokenizer.size > len(tokenizer.SPECIAL)
  assert run.model.length >= corpus.rows.length and run.model.length >= task.length
  assert corpus.splits.validation > 0  # there is a curve to draw
  assert len(task.seeds) == 5 and task.task.split == 'test'
  table.find(task.task.name)


def test_honey_is_what_was_logged():
  config = recipe.resolve(honey.get_config('magic-bee-26'), 'pretrain')
  assert (config.updates, config.batch_size, config.model.length) == (35_475, 256, 128)
  assert optimizer.warmup(config.optimizer, config.updates) == 1_773
  assert size.parameters(config.model)['total'] == 1_250_722
  assert config.optimizer.undecayed == () and config.optimizer.clip == 0 and config.mask.special
  tied = recipe.resolve(honey.get_config('polar-sponge-3'), 'pretrain').model
  assert tied.tied and not tied.projection and tied.heads == tied.nominal_heads == 2
  slow = recipe.resolve(honey.get_config('absurd-silence-4'), 'pretrain')
  assert (slow.optimizer.learning_rate, config.optimizer.learning_rate) == (1e-4, 5e-4)


def test_the_grids_of_the_paper():
  sets = honey_grid.SETS
  assert {name: len(names) for name, names in sets.items()} == {
      'logged': 42, 'walk_a': 17, 'walk_b': 5, 'iso_pr': 11, 'iso_flops': 6, 'released': 3, 'small': 23, 'cube': 27}
  assert all(len(set(names)) == len(names) for names in sets.values())
  a = recipe.resolve(honey_grid.get_config('e64-h256-f1024-a4-l8-v8010'), 'pretrain')
  shape = a.model
  assert (shape.embedding, shape.hidden, shape.feed_forward, shape.heads, shape.layers) == (64, 256, 1024, 4, 8)
  assert shape.vocabulary == 8010 and shape.nominal_heads == 4
  logged = recipe.resolve(honey.get_config('wise-dew-6'), 'pretrain')
  assert recipe.resolve(honey_grid.get_config('wise-dew-6'), 'pretrain').model == logged.model
  for names in (cpu_grid.RUNS, sets['walk_a']):  # from a base one size at a time
    shapes = [point.split('-') for point in names]
    assert all(any(sum(x != y for x, y in zip(one, other)) == 1 for other in shapes) for one in shapes)


@pytest.mark.parametrize('name', ['', 'e32', 'e32-h32-f64-a8', 'h32-e32-f64-a8-l1', 'e32-h32-f64-a8-lx', 'magic-bee'])
def test_what_is_no_point_is_refused(name: str):
  with pytest.raises(InputError, match='no point'):
    recipe.load(f'configs/honey_grid.py:{name}')


def test_sets_and_names_are_read_together():
  path = 'configs/honey_grid.py'
  assert recipe.runs(path, 'released, magic-bee-26') == [*honey_grid.SETS['released'], 'magic-bee-26']
  assert recipe.runs(path, 'all') == list(honey.RUNS)
  with pytest.raises(InputError, match='wise-dew-6 more than once'):
    recipe.runs(path, 'iso_flops,wise-dew-6')


def test_glue_is_the_protocol_of_the_paper():
  config = recipe.resolve(glue.get_config('rte'), 'finetune')
  assert (config.task.name, config.epochs, config.batch_size, config.length) == ('rte', 5, 32, 128)
  chosen = config.optimizer
  assert (chosen.learning_rate, chosen.schedule, chosen.weight_decay) == (2e-4, 'linear', 0)
  assert config.task.split == 'validation' and optimizer.warmup(config.optimizer, 1000) == 0


def test_all_of_glue_are_its_nine_tasks():
  assert recipe.runs('configs/glue.py', 'all') == list(glue.RUNS) and len(set(glue.RUNS)) == 9
  asked = {name for name, task in table.TASKS.items() if task.server}  # by the server; ax has nothing to train on
  assert asked == {*glue.RUNS, 'ax'} and table.find('ax').through in glue.RUNS


def test_topics_are_the_protocol_of_the_second_paper():
  config = recipe.resolve(topics.get_config('fewrel'), 'finetune')
  assert (config.task.per_label, config.task.per_label_reported, config.task.split) == (630, 70, 'test')
  assert (config.epochs, config.batch_size, config.length) == (50, 32, 128)
  chosen = config.optimizer
  assert (chosen.learning_rate, chosen.schedule, chosen.weight_decay, chosen.undecayed) == (5e-5, 'linear', 0.01, ())


def test_recipes_do_not_share_their_fields():
  first, second = base.pretrain(), base.pretrain()
  first.model.hidden = 1
  assert second.model.hidden == base.pretrain().model.hidden == 32
