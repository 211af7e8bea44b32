"""Recipes: each comes through the door, each command that one gives is understood, numbers are
those they claim.
"""

import importlib
import pathlib
import shlex

import pytest

from configs import (
  base,
  cpu_grid,
  glue,
  microworld,
  paper1,
  paper1_grids,
  paper2_data_sizes,
  paper2_models,
  paper2_tasks,
  plateau_ablations,
  quickstart,
  recommended,
  tiny,
)
from minilm_jax.cli import commands, flags
from minilm_jax.core import recipe
from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer
from minilm_jax.model import flops
from minilm_jax.tasks import task
from minilm_jax.tasks.task import TASKS, find_task
from minilm_jax.training import optimizer
from tests.docstring_commands import find_commands

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / 'configs'
PARTS = ('corpus', 'pretrain', 'finetune')
POINTS = dict.fromkeys(name for names in paper1_grids.SETS.values() for name in names)
NAMES = [
  *(f'paper1.py:{name}' for name in paper1.RUNS),
  *(f'glue.py:{name}' for name in task.TASKS),
  *(f'paper1_grids.py:{name}' for name in POINTS),
  *(f'cpu_grid.py:{name}' for name in cpu_grid.RUNS),
  *(
    f'plateau_ablations.py:{name}'
    for name in (
      *plateau_ablations.RUNS,
      *(name for names in plateau_ablations.SETS.values() for name in names),
    )
  ),
  'plateau_ablations.py:relative+pre@e32-h32-f64-a8-l1',
  *(f'recommended.py:{name}' for name in (*recommended.RUNS, 'magic-bee-26')),
  'plateau_ablations.py',
  'recommended.py',
  'paper1_grids.py',
  'cpu_grid.py',
  'paper2_data_sizes.py',
  'paper2_data_sizes.py:corpus',
  *(
    f'paper2_data_sizes.py:{name}'
    for name in (
      *paper2_data_sizes.RUNS,
      *paper2_data_sizes.SETS['epochs'],
      *paper2_data_sizes.SETS['cpu'],
    )
  ),
  *(f'paper2_tasks.py:{name}' for name in paper2_tasks.TASKS),
  'paper2_tasks.py',
  'custom_task.py',
  *(
    f'paper2_models.py:{name}'
    for name in (
      *paper2_models.MODELS,
      *paper2_models.SETS['published'][:3],
      *paper2_models.SETS['published@48'],
    )
  ),
  'paper2_models.py',
  'paper2_models.py:conv2-k3-d64-h8-20k@128',
  'paper2_models.py:conv2-k3-d64-h8@96d8',
  *(f'{stem}.py:{part}' for stem in ('quickstart', 'microworld') for part in PARTS),
  'tiny.py',
  'tiny.py:corpus',
  'tiny.py:pretrain',
  'corpus.py',
  'base.py',
  'paper1.py',
  'glue.py',
  'quickstart.py',
  'microworld.py',
]


@pytest.mark.parametrize('name', NAMES)
def test_every_name_on_the_command_line_resolves(name: str):
  found = recipe.load(f'configs/{name}')
  recipe.resolve(found, found.kind)


def test_no_recipe_is_forgotten():
  assert {name.partition('.')[0] for name in NAMES} == {
    path.stem for path in CONFIGS.glob('[!_]*.py')
  }
  assert len(paper1.RUNS) == 42


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('[!_]*.py')), ids=lambda path: path.stem)
def test_a_recipe_opens_with_what_it_is_and_a_command_that_works(path: pathlib.Path):
  module = importlib.import_module(f'configs.{path.stem}')
  found = find_commands(module.__doc__)
  assert found or path.stem == 'base' or 'bash launch/' in module.__doc__
  for command in found:
    _, verb, *arguments = shlex.split(command)
    # names no field, flag or part that is not there
    flags.parse_arguments(verb, commands.COMMANDS[verb], arguments)


def test_tiny_fits_its_corpus_and_saves_on_the_way():
  run, corpus = (recipe.resolve(tiny.get_config(part), part) for part in ('pretrain', 'corpus'))
  assert (
    run.model.vocab_size >= corpus.tokenizer.size and run.model.max_length >= corpus.rows.length
  )
  assert run.num_steps >= 3 * run.checkpoint.every and run.num_steps >= 3 * run.eval.every


@pytest.mark.parametrize('parts', [quickstart, microworld], ids=lambda module: module.__name__)
def test_the_parts_of_a_quickstart_fit_each_other(parts):
  corpus, run, task = (recipe.resolve(parts.get_config(part), part) for part in PARTS)
  assert run.model.vocab_size >= corpus.tokenizer.size > len(tokenizer.SPECIAL_TOKENS)
  assert run.model.max_length >= corpus.rows.length and run.model.max_length >= task.length
  assert corpus.splits.validation > 0  # there is a curve to draw
  assert len(task.seeds) == 5 and task.task.split == 'test'
  find_task(task.task.name)


def test_honey_is_what_was_logged():
  config = recipe.resolve(paper1.get_config('magic-bee-26'), 'pretrain')
  assert (config.num_steps, config.batch_size, config.model.max_length) == (35_475, 256, 128)
  assert optimizer.warmup_steps(config.optimizer, config.num_steps) == 1_773
  assert flops.count_parameters(config.model)['total'] == 1_250_722
  assert config.optimizer.no_decay == () and config.optimizer.clip == 0 and config.mask.special
  tied = recipe.resolve(paper1.get_config('polar-sponge-3'), 'pretrain').model
  assert tied.tied and not tied.projection and tied.num_heads == tied.flops_heads == 2
  slow = recipe.resolve(paper1.get_config('absurd-silence-4'), 'pretrain')
  assert (slow.optimizer.learning_rate, config.optimizer.learning_rate) == (1e-4, 5e-4)


def test_the_grids_of_the_paper():
  sets = paper1_grids.SETS
  assert {name: len(names) for name, names in sets.items()} == {
    'logged': 42,
    'walk_a': 17,
    'walk_b': 5,
    'iso_pr': 11,
    'iso_flops': 6,
    'released': 3,
    'small': 23,
    'cube': 27,
  }
  assert all(len(set(names)) == len(names) for names in sets.values())
  a = recipe.resolve(paper1_grids.get_config('e64-h256-f1024-a4-l8-v8010'), 'pretrain')
  shape = a.model
  assert (
    shape.embedding_size,
    shape.hidden_size,
    shape.intermediate_size,
    shape.num_heads,
    shape.num_layers,
  ) == (64, 256, 1024, 4, 8)
  assert shape.vocab_size == 8010 and shape.flops_heads == 4
  logged = recipe.resolve(paper1.get_config('wise-dew-6'), 'pretrain')
  assert recipe.resolve(paper1_grids.get_config('wise-dew-6'), 'pretrain').model == logged.model
  for names in (cpu_grid.RUNS, sets['walk_a']):  # from a base one size at a time
    shapes = [point.split('-') for point in names]
    assert all(
      any(sum(x != y for x, y in zip(one, other)) == 1 for other in shapes) for one in shapes
    )


@pytest.mark.parametrize(
  'name', ['', 'e32', 'e32-h32-f64-a8', 'h32-e32-f64-a8-l1', 'e32-h32-f64-a8-lx', 'magic-bee']
)
def test_what_is_no_point_is_refused(name: str):
  with pytest.raises(InputError, match='no point'):
    recipe.load(f'configs/paper1_grids.py:{name}')


def test_sets_and_names_are_read_together():
  path = 'configs/paper1_grids.py'
  assert recipe.expand_names(path, 'released, magic-bee-26') == [
    *paper1_grids.SETS['released'],
    'magic-bee-26',
  ]
  assert recipe.expand_names(path, 'all') == list(paper1.RUNS)
  with pytest.raises(InputError, match='wise-dew-6 more than once'):
    recipe.expand_names(path, 'iso_flops,wise-dew-6')


def test_glue_is_the_protocol_of_the_paper():
  config = recipe.resolve(glue.get_config('rte'), 'finetune')
  assert (config.task.name, config.epochs, config.batch_size, config.length) == ('rte', 5, 32, 128)
  chosen = config.optimizer
  assert (chosen.learning_rate, chosen.schedule, chosen.weight_decay) == (2e-4, 'linear', 0)
  assert config.task.split == 'validation' and optimizer.warmup_steps(config.optimizer, 1000) == 0


def test_all_of_glue_are_its_nine_tasks():
  assert (
    recipe.expand_names('configs/glue.py', 'all') == list(glue.RUNS) and len(set(glue.RUNS)) == 9
  )
  # by the server; ax has nothing to train on
  asked = {name for name, task in TASKS.items() if task.submission_name}
  assert asked == {*glue.RUNS, 'ax'} and find_task('ax').predicted_by in glue.RUNS


def test_topics_are_the_protocol_of_the_second_paper():
  config = recipe.resolve(paper2_tasks.get_config('fewrel'), 'finetune')
  assert (config.task.per_label, config.task.eval_per_label, config.task.split) == (630, 70, 'test')
  assert (config.epochs, config.batch_size, config.length) == (50, 32, 128)
  chosen = config.optimizer
  assert (chosen.learning_rate, chosen.schedule, chosen.weight_decay, chosen.no_decay) == (
    5e-5,
    'linear',
    0.01,
    (),
  )


def test_recipes_do_not_share_their_fields():
  first, second = base.pretrain(), base.pretrain()
  first.model.hidden_size = 1
  assert second.model.hidden_size == base.pretrain().model.hidden_size == 32


def test_sizes_differ_in_their_articles_alone_or_in_their_updates_too():
  corpus = recipe.resolve(paper2_data_sizes.get_config('corpus'), 'corpus')
  updates, epochs, cpu = (
    [recipe.resolve(paper2_data_sizes.get_config(name), 'pretrain') for name in names]
    for names in (
      paper2_data_sizes.RUNS,
      paper2_data_sizes.SETS['epochs'],
      paper2_data_sizes.SETS['cpu'],
    )
  )
  assert epochs[0].model == updates[0].model and len({run.num_steps for run in cpu}) == 1
  assert (
    [run.subset.rows for run in updates]
    == [run.subset.rows for run in epochs]
    == list(paper2_data_sizes.SIZES)
  )
  for runs in (updates, epochs, cpu):
    assert {run.model for run in runs} == {runs[0].model}
    assert (
      runs[0].model.vocab_size >= corpus.tokenizer.size
      and runs[0].model.max_length >= corpus.rows.length
    )
  assert len({run.num_steps for run in updates}) == 1
  assert all(
    abs(run.num_steps * run.batch_size / run.subset.rows - paper2_data_sizes.EPOCHS) < 0.01
    for run in epochs
  )


def test_the_models_of_the_second_paper():
  """Updates are 50 epochs of 32; masks, rates and decay as released. Sizes are in test_size.py."""
  updates = {
    name: recipe.resolve(paper2_models.get_config(name), 'pretrain').num_steps
    for name in paper2_models.RUNS
  }
  assert [updates[f'bert-6-{wiki}'] for wiki in ('20k', '40k', '90k')] == [31_250, 62_500, 140_650]
  assert set(list(updates.values())[3:]) == {62_500} and len(paper2_models.SETS['committee']) == 5
  config = recipe.resolve(paper2_models.get_config('conv2-k16x3-d64'), 'pretrain')
  model, chosen = config.model, config.optimizer
  assert (model.kernel, model.channels, model.convolutions, model.convolution) == (
    (16, 3),
    64,
    2,
    'paper2',
  )
  assert (model.hidden_size, model.num_heads, model.intermediate_size, model.max_length) == (
    768,
    12,
    3072,
    128,
  )
  assert (
    config.mask.rate,
    config.mask.random_share,
    config.mask.keep_share,
    config.mask.special,
  ) == (0.15, 0.1, 0.1, False)
  assert (chosen.learning_rate, chosen.schedule, chosen.epochs) == (5e-5, 'per_epoch_from_zero', 50)
  assert (chosen.weight_decay, chosen.no_decay, chosen.clip, chosen.beta1, chosen.beta2) == (
    0.01,
    (),
    0,
    0.9,
    0.999,
  )


@pytest.mark.parametrize(
  'name, hidden, heads',
  [
    ('bert-6@96', 96, 12),
    ('bert-1-conv0-h24@96', 192, 24),
    ('conv2-k3-d64-h8@96', 64, 8),
    ('conv3-k3-d32@384', 384, 12),
    ('conv2-k3-d64@128', 128, 8),
    ('conv2-k3-d64-h8@128', 88, 8),
    ('bert-1-20k@768', 768, 12),
  ],
)
def test_a_scaled_width_keeps_its_ratio(name: str, hidden: int, heads: int):
  model = recipe.resolve(recipe.load(f'configs/paper2_models.py:{name}'), 'pretrain').model
  assert (model.hidden_size, model.num_heads, model.intermediate_size) == (
    hidden,
    heads,
    4 * hidden,
  )
  published = recipe.resolve(
    recipe.load(f'configs/paper2_models.py:{name.partition("@")[0]}'), 'pretrain'
  ).model
  assert (model.num_layers, model.kernel, model.channels) == (
    published.num_layers,
    published.kernel,
    published.channels,
  )


@pytest.mark.parametrize(
  'name', ['', 'bert-7', 'bert-6@', 'bert-6@x', 'bert-6@4', 'bert-6-30k', 'conv2-k3-d64,width=9']
)
def test_what_is_no_model_of_the_second_paper_is_refused(name: str):
  with pytest.raises(InputError, match='no model|a width of 4'):
    recipe.load(f'configs/paper2_models.py:{name}')


def test_scaled_models_are_named_beside_others():
  """What a width is written with is none of the signs that names are parted by."""
  path = 'configs/paper2_models.py'
  assert recipe.expand_names(path, 'conv2-k3-d64@128,bert-6-20k') == [
    'conv2-k3-d64@128',
    'bert-6-20k',
  ]
  assert recipe.expand_names(path, 'committee@96') == [
    f'{name}@96' for name in paper2_models.SETS['committee']
  ]
  assert recipe.expand_names(path, 'all') == list(paper2_models.RUNS)


def test_the_changes_of_past_the_break():
  """Each single change is one of the paper's recipe, and together, less what is left out, they are
  the modern one.
  """
  paper = recipe.resolve(plateau_ablations.get_config('paper'), 'pretrain')
  of_paper = recipe.resolve(paper1_grids.get_config(plateau_ablations.SHAPE), 'pretrain')
  assert (paper.model, paper.optimizer, paper.mask) == (
    of_paper.model,
    of_paper.optimizer,
    of_paper.mask,
  )
  for name in plateau_ablations.RUNS[1:]:
    found = recipe.resolve(plateau_ablations.get_config(name), 'pretrain')
    assert found.batch_size * found.num_steps == plateau_ablations.ROWS
    same = [
      getattr(found, part) == getattr(paper, part)
      for part in ('model', 'optimizer', 'mask', 'batch_size')
    ]
    assert same.count(False) == 1, name
  together = recipe.resolve(plateau_ablations.get_config('together'), 'pretrain')
  for point in (
    'together',
    *plateau_ablations.SETS['sizes'][1::2],
    plateau_ablations.SETS['large'][-1],
  ):
    own = recipe.resolve(plateau_ablations.get_config(point), 'pretrain')
    best = recipe.resolve(
      recommended.get_config(point.partition('@')[2] or plateau_ablations.SHAPE), 'pretrain'
    )
    assert (own.model, own.optimizer, own.mask) == (best.model, best.optimizer, best.mask), point
  assert (
    recipe.resolve(plateau_ablations.get_config('without-rotary+rotary'), 'pretrain') == together
  )
  assert (
    recipe.resolve(plateau_ablations.get_config('without-pre'), 'pretrain').model.norm == 'post'
  )
  short = recipe.resolve(
    plateau_ablations.get_config(f'together+updates-480@{plateau_ablations.SHAPE}'), 'pretrain'
  )
  assert (short.num_steps, short.model, short.optimizer) == (
    480,
    together.model,
    together.optimizer,
  )
  with pytest.raises(ValueError, match="no change 'without-cats'"):
    plateau_ablations.get_config('without-cats')
