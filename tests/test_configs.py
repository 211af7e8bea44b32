"""Recipes: each comes through the door, each command that one gives is understood, numbers are those they claim."""

import importlib
import pathlib
import shlex

import pytest

from configs import (
    base, cpu_grid, glue, honey, honey_grid, microworld, modern, past, quickstart, sizes, tiny, tlm, topics)
from minilm_jax import __main__ as door
from minilm_jax import flags, recipe
from minilm_jax.errors import InputError
from minilm_jax.language import tokenizer
from minilm_jax.model import size
from minilm_jax.tasks import table
from minilm_jax.training import optimizer
from tests.docstring_commands import find_commands

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / 'configs'
PARTS = ('corpus', 'pretrain', 'finetune')
POINTS = dict.fromkeys(name for names in honey_grid.SETS.values() for name in names)
NAMES = [*(f'honey.py:{name}' for name in honey.RUNS), *(f'glue.py:{name}' for name in table.TASKS),
         *(f'honey_grid.py:{name}' for name in POINTS), *(f'cpu_grid.py:{name}' for name in cpu_grid.RUNS),
         *(f'past.py:{name}' for name in (*past.RUNS, *(name for names in past.SETS.values() for name in names))),
         'past.py:relative+pre@e32-h32-f64-a8-l1',
         *(f'modern.py:{name}' for name in (*modern.RUNS, 'magic-bee-26')), 'past.py', 'modern.py',
         'honey_grid.py', 'cpu_grid.py', 'sizes.py', 'sizes.py:corpus',
         *(f'sizes.py:{name}' for name in (*sizes.RUNS, *sizes.SETS['epochs'], *sizes.SETS['cpu'])),
         *(f'topics.py:{name}' for name in topics.TASKS), 'topics.py', 'own.py',
         *(f'tlm.py:{name}' for name in (*tlm.MODELS, *tlm.SETS['published'][:3], *tlm.SETS['published@48'])),
         'tlm.py', 'tlm.py:conv2-k3-d64-h8-20k@128', 'tlm.py:conv2-k3-d64-h8@96d8',
         *(f'{stem}.py:{part}' for stem in ('quickstart', 'microworld') for part in PARTS), 'tiny.py', 'tiny.py:corpus',
         'tiny.py:pretrain', 'corpus.py', 'base.py', 'honey.py', 'glue.py', 'quickstart.py', 'microworld.py']


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
  found = find_commands(module.__doc__)
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
  assert optimizer.warmup_steps(config.optimizer, config.updates) == 1_773
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
  assert config.task.split == 'validation' and optimizer.warmup_steps(config.optimizer, 1000) == 0


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


def test_sizes_differ_in_their_articles_alone_or_in_their_updates_too():
  corpus = recipe.resolve(sizes.get_config('corpus'), 'corpus')
  updates, epochs, cpu = ([recipe.resolve(sizes.get_config(name), 'pretrain') for name in names]
                          for names in (sizes.RUNS, sizes.SETS['epochs'], sizes.SETS['cpu']))
  assert epochs[0].model == updates[0].model and len({run.updates for run in cpu}) == 1
  assert [run.subset.rows for run in updates] == [run.subset.rows for run in epochs] == list(sizes.SIZES)
  for runs in (updates, epochs, cpu):
    assert {run.model for run in runs} == {runs[0].model}
    assert runs[0].model.vocabulary >= corpus.tokenizer.size and runs[0].model.length >= corpus.rows.length
  assert len({run.updates for run in updates}) == 1
  assert all(abs(run.updates * run.batch_size / run.subset.rows - sizes.EPOCHS) < 0.01 for run in epochs)


def test_the_models_of_the_second_paper():
  """Updates are 50 epochs of 32; masks, rates and decay as released. Sizes are in test_size.py."""
  updates = {name: recipe.resolve(tlm.get_config(name), 'pretrain').updates for name in tlm.RUNS}
  assert [updates[f'bert-6-{wiki}'] for wiki in ('20k', '40k', '90k')] == [31_250, 62_500, 140_650]
  assert set(list(updates.values())[3:]) == {62_500} and len(tlm.SETS['committee']) == 5
  config = recipe.resolve(tlm.get_config('conv2-k16x3-d64'), 'pretrain')
  model, chosen = config.model, config.optimizer
  assert (model.kernel, model.channels, model.convolutions, model.convolution) == ((16, 3), 64, 2, 'paper')
  assert (model.hidden, model.heads, model.feed_forward, model.length) == (768, 12, 3072, 128)
  assert (config.mask.rate, config.mask.random, config.mask.keep, config.mask.special) == (0.15, 0.1, 0.1, False)
  assert (chosen.learning_rate, chosen.schedule, chosen.epochs) == (5e-5, 'epochs_from_zero', 50)
  assert (chosen.weight_decay, chosen.undecayed, chosen.clip, chosen.beta1, chosen.beta2) == (0.01, (), 0, 0.9, 0.999)


@pytest.mark.parametrize('name, hidden, heads', [
    ('bert-6@96', 96, 12), ('bert-1-conv0-h24@96', 192, 24), ('conv2-k3-d64-h8@96', 64, 8),
    ('conv3-k3-d32@384', 384, 12), ('conv2-k3-d64@128', 128, 8), ('conv2-k3-d64-h8@128', 88, 8), ('bert-1-20k@768', 768, 12)])
def test_a_scaled_width_keeps_its_ratio(name: str, hidden: int, heads: int):
  model = recipe.resolve(recipe.load(f'configs/tlm.py:{name}'), 'pretrain').model
  assert (model.hidden, model.heads, model.feed_forward) == (hidden, heads, 4 * hidden)
  published = recipe.resolve(recipe.load(f'configs/tlm.py:{name.partition("@")[0]}'), 'pretrain').model
  assert (model.layers, model.kernel, model.channels) == (published.layers, published.kernel, published.channels)


@pytest.mark.parametrize('name', ['', 'bert-7', 'bert-6@', 'bert-6@x', 'bert-6@4', 'bert-6-30k', 'conv2-k3-d64,width=9'])
def test_what_is_no_model_of_the_second_paper_is_refused(name: str):
  with pytest.raises(InputError, match='no model|a width of 4'):
    recipe.load(f'configs/tlm.py:{name}')


def test_scaled_models_are_named_beside_others():
  """What a width is written with is none of the signs that names are parted by."""
  path = 'configs/tlm.py'
  assert recipe.runs(path, 'conv2-k3-d64@128,bert-6-20k') == ['conv2-k3-d64@128', 'bert-6-20k']
  assert recipe.runs(path, 'committee@96') == [f'{name}@96' for name in tlm.SETS['committee']]
  assert recipe.runs(path, 'all') == list(tlm.RUNS)


def test_the_changes_of_past_the_break():
  """Each single change is one of the paper's recipe, and together, less what is left out, they are the modern one."""
  paper = recipe.resolve(past.get_config('paper'), 'pretrain')
  of_paper = recipe.resolve(honey_grid.get_config(past.SHAPE), 'pretrain')
  assert (paper.model, paper.optimizer, paper.mask) == (of_paper.model, of_paper.optimizer, of_paper.mask)
  for name in past.RUNS[1:]:
    found = recipe.resolve(past.get_config(name), 'pretrain')
    assert found.batch_size * found.updates == past.ROWS
    same = [getattr(found, part) == getattr(paper, part) for part in ('model', 'optimizer', 'mask', 'batch_size')]
    assert same.count(False) == 1, name
  together = recipe.resolve(past.get_config('together'), 'pretrain')
  for point in ('together', *past.SETS['sizes'][1::2], past.SETS['large'][-1]):
    own = recipe.resolve(past.get_config(point), 'pretrain')
    best = recipe.resolve(modern.get_config(point.partition('@')[2] or past.SHAPE), 'pretrain')
    assert (own.model, own.optimizer, own.mask) == (best.model, best.optimizer, best.mask), point
  assert recipe.resolve(past.get_config('without-rotary+rotary'), 'pretrain') == together
  assert recipe.resolve(past.get_config('without-pre'), 'pretrain').model.norm == 'post'
  short = recipe.resolve(past.get_config(f'together+updates-480@{past.SHAPE}'), 'pretrain')
  assert (short.updates, short.model, short.optimizer) == (480, together.model, together.optimizer)
  with pytest.raises(ValueError, match="no change 'without-cats'"):
    past.get_config('without-cats')
