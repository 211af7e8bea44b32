"""All recipe names resolve, commands in docstrings parse, and settings equal the papers."""

import dataclasses
import importlib
import itertools
import pathlib

import pytest

from configs import (
  base,
  cpu_grid,
  glue,
  microworld,
  paper1,
  paper1_grids,
  paper1_tasks,
  paper2_data_sizes,
  paper2_models,
  paper2_tasks,
  plateau_ablations,
  quickstart,
  recipe_search,
  recommended,
  tiny,
)
from minilm_jax.core import recipe
from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer
from minilm_jax.model import flops
from minilm_jax.tasks.task import TASKS, find_task
from minilm_jax.training import optimizer
from tests.docstring_commands import parse_commands

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / 'configs'
PARTS = ('corpus', 'pretrain', 'finetune')
FILES = sorted(CONFIGS.glob('[!_]*.py'))
# Arguments of recipe files that are not in their tables.
OTHER_NAMES = {
  'paper2_data_sizes': ['corpus'],
  'paper2_models': [
    *paper2_models.MODELS,
    'conv2-k3-d64-h8-20k@128',
    'conv2-k3-d64-h8@96d8',
    'conv2-k3-d64-h8@96d8-recommended',
  ],
  'plateau_ablations': ['relative+pre@e32-h32-f64-a8-l1'],
  'recipe_search': [f'tokens-100@{shape}' for shape in recipe_search.SHAPES],
  'recommended': ['magic-bee-26'],
  'quickstart': PARTS,
  'microworld': PARTS,
  'tiny': ['corpus', 'pretrain'],
}


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_name_on_the_command_line_resolves(path: pathlib.Path):
  module = importlib.import_module(f'configs.{path.stem}')
  names = [
    *itertools.chain(*getattr(module, 'SETS', {}).values()),
    *(name for table in ('RUNS', 'TASKS') for name in getattr(module, table, ())),
    *OTHER_NAMES.get(path.stem, ()),
  ]
  for argument in ('', *(f':{name}' for name in dict.fromkeys(names))):
    config = recipe.load(f'configs/{path.name}{argument}')
    recipe.resolve(config, config.kind)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_the_commands_in_a_docstring_parse(path: pathlib.Path):
  module = importlib.import_module(f'configs.{path.stem}')
  examples = parse_commands(module.__doc__)
  assert examples or path.stem == 'base' or 'bash launch/' in module.__doc__


def test_tiny_fits_its_corpus_and_saves_several_times():
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
  assert corpus.splits.validation > 0  # the loss curve needs validation losses
  assert len(task.seeds) == 5 and task.task.split == 'test'
  find_task(task.task.name)


def test_paper1_has_the_logged_settings():
  config = recipe.resolve(paper1.get_config('magic-bee-26'), 'pretrain')
  assert (config.num_steps, config.batch_size, config.model.max_length) == (35_475, 256, 128)
  assert optimizer.warmup_steps(config.optimizer, config.num_steps) == 1_773
  assert flops.count_parameters_by_part(config.model)['total'] == 1_250_722
  assert config.optimizer.no_decay == () and config.optimizer.clip == 0 and config.mask.special
  tied = recipe.resolve(paper1.get_config('polar-sponge-3'), 'pretrain').model
  assert tied.tied and not tied.projection and tied.num_heads == tied.flops_heads == 2
  slow = recipe.resolve(paper1.get_config('absurd-silence-4'), 'pretrain')
  assert (slow.optimizer.learning_rate, config.optimizer.learning_rate) == (1e-4, 5e-4)


def test_the_grids_have_the_points_of_paper_1():
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
  point = recipe.resolve(paper1_grids.get_config('e64-h256-f1024-a4-l8-v8010'), 'pretrain')
  shape = point.model
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
  for names in (
    cpu_grid.RUNS,
    sets['walk_a'],
  ):  # each point has a neighbour that differs in one size
    shapes = [name.split('-') for name in names]
    for sizes in shapes:
      assert any(sum(x != y for x, y in zip(sizes, neighbour)) == 1 for neighbour in shapes)


@pytest.mark.parametrize(
  'name', ['', 'e32', 'e32-h32-f64-a8', 'h32-e32-f64-a8-l1', 'e32-h32-f64-a8-lx', 'magic-bee']
)
def test_names_that_are_not_points_are_refused(name: str):
  with pytest.raises(InputError, match=repr(name)):
    recipe.load(f'configs/paper1_grids.py:{name}')


def test_sets_and_names_can_be_combined():
  path = 'configs/paper1_grids.py'
  assert recipe.expand_names(path, 'released, magic-bee-26') == [
    *paper1_grids.SETS['released'],
    'magic-bee-26',
  ]
  assert recipe.expand_names(path, 'all') == list(paper1.RUNS)
  with pytest.raises(InputError, match='wise-dew-6'):
    recipe.expand_names(path, 'iso_flops,wise-dew-6')


def test_tasks_have_the_protocol_of_paper_1():
  config = recipe.resolve(paper1_tasks.get_config('rte'), 'finetune')
  assert (config.task.name, config.epochs, config.batch_size, config.length) == ('rte', 5, 32, 128)
  adamw = config.optimizer
  assert (adamw.learning_rate, adamw.schedule, adamw.weight_decay) == (2e-4, 'linear', 0)
  assert config.task.split == 'validation' and optimizer.warmup_steps(config.optimizer, 1000) == 0
  assert config.learning_rates == () and config.validation_fraction == 0


def test_glue_selects_the_rate_on_held_out_examples():
  config = recipe.resolve(glue.get_config('rte'), 'finetune')
  assert (config.task.name, config.epochs, config.optimizer.schedule) == ('rte', 5, 'linear')
  assert config.learning_rates == (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
  assert (config.validation_fraction, config.head.pooling) == (0.1, 'mean')
  for name in (*TASKS, 'no such task'):
    config = recipe.resolve(glue.get_config(name), 'finetune')
    assert (config.task.name, config.epochs, config.batch_size) == (name, 5, 32)
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (2e-4, 0)
  # The data sets of topics have no validation split.
  for name, split in (('rte', 'validation'), ('ag_news', 'test'), ('dbpedia_14', 'test')):
    assert glue.get_config(name).task.split == split


def test_glue_has_nine_tasks():
  assert (
    recipe.expand_names('configs/glue.py', 'all') == list(glue.RUNS) and len(set(glue.RUNS)) == 9
  )
  submitted = {name for name, task in TASKS.items() if task.submission_name}
  assert submitted == {*glue.RUNS, 'ax'} and find_task('ax').predicted_by in glue.RUNS


def test_topics_have_the_protocol_of_paper_2():
  config = recipe.resolve(paper2_tasks.get_config('fewrel'), 'finetune')
  assert (config.task.per_label, config.task.eval_per_label, config.task.split) == (630, 70, 'test')
  assert (config.epochs, config.batch_size, config.length) == (50, 32, 128)
  adamw = config.optimizer
  assert (adamw.learning_rate, adamw.schedule) == (5e-5, 'linear')
  assert (adamw.weight_decay, adamw.no_decay) == (0.01, ())


def test_recipes_do_not_share_their_fields():
  first, second = base.pretrain(), base.pretrain()
  first.model.hidden_size = 1
  assert second.model.hidden_size == base.pretrain().model.hidden_size == 32


def test_data_sizes_have_equal_updates_or_equal_epochs():
  corpus = recipe.resolve(paper2_data_sizes.get_config('corpus'), 'corpus')
  updates, epochs, cpu = (
    [recipe.resolve(paper2_data_sizes.get_config(name), 'pretrain') for name in names]
    for names in (
      paper2_data_sizes.RUNS,
      paper2_data_sizes.SETS['epochs'],
      paper2_data_sizes.SETS['cpu'],
    )
  )
  assert epochs[0].model == updates[0].model
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
    50 <= run.num_steps * run.batch_size / run.subset.rows < 50.03 for run in (*epochs, *cpu)
  )
  sizes = [run.subset.rows for run in cpu]
  assert sizes[-1] / sizes[0] >= 16
  with pytest.raises(ValueError, match='12-cpu'):
    paper2_data_sizes.get_config('12-cpu')


def test_the_models_of_paper_2_have_the_released_settings():
  updates = {
    name: recipe.resolve(paper2_models.get_config(name), 'pretrain').num_steps
    for name in paper2_models.RUNS
  }
  assert [updates[f'bert-6-{wiki}'] for wiki in ('20k', '40k', '90k')] == [31_250, 62_500, 140_650]
  assert set(list(updates.values())[3:]) == {62_500} and len(paper2_models.SETS['committee']) == 5
  config = recipe.resolve(paper2_models.get_config('conv2-k16x3-d64'), 'pretrain')
  model, mask, adamw = config.model, config.mask, config.optimizer
  assert (model.kernel, model.channels, model.convolutions) == ((16, 3), 64, 2)
  assert (model.hidden_size, model.num_heads, model.intermediate_size) == (768, 12, 3072)
  assert (model.convolution, model.max_length) == ('paper2', 128)
  assert (mask.rate, mask.random_share, mask.keep_share, mask.special) == (0.15, 0.1, 0.1, False)
  assert (adamw.learning_rate, adamw.schedule, adamw.epochs) == (5e-5, 'per_epoch_from_zero', 50)
  assert (adamw.weight_decay, adamw.no_decay, adamw.clip) == (0.01, (), 0)
  assert (adamw.beta1, adamw.beta2) == (0.9, 0.999)


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
  model, published = (
    recipe.resolve(recipe.load(f'configs/paper2_models.py:{run}'), 'pretrain').model
    for run in (name, name.partition('@')[0])
  )
  sizes = (model.hidden_size, model.num_heads, model.intermediate_size)
  assert sizes == (hidden, heads, 4 * hidden)
  for field in ('num_layers', 'kernel', 'channels'):
    assert getattr(model, field) == getattr(published, field)


@pytest.mark.parametrize(
  'name', ['', 'bert-7', 'bert-6@', 'bert-6@x', 'bert-6@4', 'bert-6-30k', 'conv2-k3-d64,width=9']
)
def test_names_that_are_not_models_are_refused(name: str):
  with pytest.raises(InputError, match=f'{name!r}|width of 4'):
    recipe.load(f'configs/paper2_models.py:{name}')


def test_recommended_settings_keep_the_sizes_of_a_model():
  published, changed = (
    recipe.resolve(recipe.load(f'configs/paper2_models.py:{name}'), 'pretrain')
    for name in ('conv2-k3-d64-h8-20k@96d8', 'conv2-k3-d64-h8-20k@96d8-recommended')
  )
  names = ('norm', 'positions', 'initialization', 'dropout', 'short_convolution')
  assert [getattr(changed.model, name) for name in names] == ['pre', 'rotary', 'standard', 0.0, 3]
  settings = {name: getattr(published.model, name) for name in names}
  assert dataclasses.replace(changed.model, **settings) == published.model
  assert changed.num_steps == published.num_steps == 31_250
  optimizer = changed.optimizer
  assert (optimizer.algorithm, optimizer.schedule, optimizer.warmup_fraction) == (
    'muon',
    'linear',
    0.05,
  )


def test_names_with_a_width_can_be_combined():
  path = 'configs/paper2_models.py'
  assert recipe.expand_names(path, 'conv2-k3-d64@128,bert-6-20k') == [
    'conv2-k3-d64@128',
    'bert-6-20k',
  ]
  assert recipe.expand_names(path, 'committee@96') == [
    f'{name}@96' for name in paper2_models.SETS['committee']
  ]
  assert recipe.expand_names(path, 'all') == list(paper2_models.RUNS)


def test_the_recommended_recipe_is_the_selected_point_of_the_search():
  untied = 'e32-h64-f128-a4-l1'
  changes, _, _ = recipe_search.SELECTED.partition('@')
  for shape, point, is_tied in (
    (recommended.RUNS[0], recipe_search.SELECTED, True),
    (untied, f'{changes}@{untied}', False),
  ):
    selected = recipe.resolve(recipe_search.get_config(point), 'pretrain')
    config = recipe.resolve(recommended.get_config(shape), 'pretrain')
    for field in ('model', 'optimizer', 'mask', 'batch_size', 'num_steps'):
      assert getattr(config, field) == getattr(selected, field), field
    assert (config.optimizer.algorithm, config.model.tied) == ('muon', is_tied)
  together = recipe.resolve(plateau_ablations.get_config('together'), 'pretrain')
  assert (together.optimizer.algorithm, together.optimizer.learning_rate) == ('adamw', 3e-3)
  assert together.mask.rate == 0.15


def test_ablations_change_one_part_of_the_recipe():
  paper = recipe.resolve(plateau_ablations.get_config('paper'), 'pretrain')
  expected = recipe.resolve(paper1_grids.get_config(plateau_ablations.SHAPE), 'pretrain')
  for field in ('model', 'optimizer', 'mask'):
    assert getattr(paper, field) == getattr(expected, field)
  for name in plateau_ablations.RUNS[1:]:
    config = recipe.resolve(plateau_ablations.get_config(name), 'pretrain')
    assert config.batch_size * config.num_steps == plateau_ablations.ROWS
    is_equal = [
      getattr(config, field) == getattr(paper, field)
      for field in ('model', 'optimizer', 'mask', 'batch_size')
    ]
    assert is_equal.count(False) == 1, name
  together = recipe.resolve(plateau_ablations.get_config('together'), 'pretrain')
  restored, without_pre, short = (
    recipe.resolve(plateau_ablations.get_config(point), 'pretrain')
    for point in (
      'without-rotary+rotary',
      'without-pre',
      f'together+updates-480@{plateau_ablations.SHAPE}',
    )
  )
  assert restored == together and without_pre.model.norm == 'post'
  assert (short.num_steps, short.model, short.optimizer) == (
    480,
    together.model,
    together.optimizer,
  )
  with pytest.raises(ValueError, match="'without-cats'"):
    plateau_ablations.get_config('without-cats')


def test_points_of_the_search_have_equal_tokens_and_similar_sizes():
  configs = {name: recipe_search.get_config(name) for name in recipe_search.RUNS}
  rows = {name: config.num_steps * config.batch_size for name, config in configs.items()}
  assert {rows[name] for name in rows if 'tokens' not in name} == {32_000}
  assert rows['batch-64+rate-1e-2+muon+tokens-30@small'] == pytest.approx(30e6 / 128, abs=64)
  config = configs['batch-16+rate-5.6e-3+mask-0.4+muon@small-tied']
  assert config.mask.rate == 0.4 and config.optimizer.learning_rate == 0.0056
  assert config.model.tied and config.optimizer.algorithm == 'muon' and config.batch_size == 16
  for shape, millions in (('small', 1.25), ('middle', 2.5), ('large', 4.5)):
    for suffix in ('', '-tied'):
      model = recipe.resolve(recipe_search.get_config(f'@{shape}{suffix}'), 'pretrain').model
      assert flops.count_parameters_by_part(model)['total'] == pytest.approx(
        millions * 1e6, rel=0.04
      )
