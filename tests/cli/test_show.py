"""The facts of a recipe: numbers of the paper, arrays of the run, examples of the task."""

import dataclasses
import json
import math
import pathlib
import shutil

import jax
import pytest
import rich.console

from configs import base, corpus, glue, paper1, tiny
from minilm_jax.cli import main, show
from minilm_jax.core import recipe
from minilm_jax.core.errors import InputError
from minilm_jax.training import train_step


def show_json(capsys: pytest.CaptureFixture, *arguments: str) -> dict:
  capsys.readouterr()
  assert main.main(['show', '--json', *arguments]) == 0
  return json.loads(capsys.readouterr().out)  # exactly one object


def test_the_smallest_model_of_the_paper(capsys):
  facts = show_json(capsys, '--config=configs/paper1.py:magic-bee-26')
  assert facts['parameters'] == {'embedding': 612_608, 'other': 638_114, 'total': 1_250_722}
  assert facts['flops_per_row']['honey'] == 943_964_160 and set(facts['flops_per_row']) == {
    'honey',
    'kaplan',
    'actual',
  }
  assert facts['flops_per_row']['kaplan'] == 6 * 638_114 * 128
  assert (facts['updates'], facts['warmup'], facts['rows']) == (35_475, 1_773, 35_475 * 256)
  assert facts['recipe']['model']['vocab_size'] == 19_010


def test_sizes_equal_those_of_the_training_state():
  source = tiny.get_config()
  source.seed = 2**32 - 1
  config = recipe.resolve(source, 'pretrain')
  facts = show.describe_recipe(config)
  assert sum(math.prod(array['shape']) for array in facts['arrays']) == facts['parameters']['total']
  state = jax.eval_shape(lambda: train_step.init_state(0, config))
  assert facts['bytes']['state'] == sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)
  )
  assert facts['tokens'] == config.num_steps * config.batch_size * config.model.max_length
  assert facts['flops'] == {
    name: flops * facts['rows'] for name, flops in facts['flops_per_row'].items()
  }


def test_overrides_change_the_facts(capsys):
  facts = show_json(
    capsys, '--config=configs/tiny.py', '--config.mesh.model=2', '--config.num_steps=7'
  )
  assert facts['updates'] == 7 and facts['recipe']['mesh']['model'] == 2
  split = {array['path']: array['spec'] for array in facts['arrays'] if 'model' in array['spec']}
  assert any('embedding.tokens' in path for path in split) and any(
    'feed_forward.up' in path for path in split
  )


def test_facts_contain_the_complete_recipe(capsys):
  for name, kind in (
    ('paper1.py:sweet-dragon-4', 'pretrain'),
    ('glue.py:microworld/sentiment', 'finetune'),
  ):
    facts = show_json(capsys, f'--config=configs/{name}')
    assert recipe.resolve(facts['recipe'], kind) == recipe.resolve(
      recipe.load(f'configs/{name}'), kind
    )


def test_a_continued_run_shows_its_origin(tiny_run: pathlib.Path, tmp_path: pathlib.Path, capsys):
  assert 'origin' not in show_json(capsys, f'--checkpoint={tiny_run}')
  folder = pathlib.Path(shutil.copytree(tiny_run, tmp_path / 'run'))
  manifest = json.loads((folder / 'manifest.json').read_text())
  origin = {'checkpoint': 'runs/a', 'checkpoint_step': 4, 'optimizer': True, 'weights': 'c0ffee'}
  (folder / 'manifest.json').write_text(json.dumps(manifest | {'origin': origin}))
  assert show_json(capsys, f'--checkpoint={folder}')['origin'] == origin
  assert main.main(['show', f'--checkpoint={folder}']) == 0
  assert 'runs/a' in capsys.readouterr().out


def test_a_task_counts_its_examples(capsys):
  facts = show_json(
    capsys, '--config=configs/glue.py:microworld/sentiment', '--config.task.max_train_examples=300'
  )
  assert (
    facts['examples'] == {'train': 300, 'validation': 1000, 'test': 1000}
    and facts['headline'] == 'accuracy'
  )


@pytest.mark.parametrize(
  'filtered, expected',
  [
    (False, {'train': 2490, 'validation': 277, 'test': 3000}),
    (True, {'train': 150, 'validation': 14, 'test': 202}),
  ],
)
def test_the_filter_of_paper_1_keeps_the_published_examples(
  filtered: bool, expected: dict, data: pathlib.Path, capsys
):
  facts = show_json(
    capsys,
    '--config=configs/glue.py:rte',
    f'--config.task.folder={data / "glue" / "rte"}',
    f'--config.task.filtered={filtered}',
    f'--config.task.word_list={data / "aochildes" / "AOChildes_word_frequency.csv"}',
  )
  assert facts['examples'] == expected


def test_a_corpus_lists_its_source_files(tmp_path: pathlib.Path):
  for name in ('a.txt', 'b.txt'):
    (tmp_path / name).write_text('the dog sleeps .')
  config = corpus.get_config()
  config.documents.sources = str(tmp_path / '*.txt')
  facts = show.describe_recipe(recipe.resolve(config, 'corpus'))
  assert [pathlib.Path(name).name for name in facts['sources']] == ['a.txt', 'b.txt']


@pytest.mark.parametrize(
  'config, kind',
  [
    (paper1.get_config(), 'pretrain'),
    (glue.get_config('microworld/sentiment'), 'finetune'),
    (tiny.get_config('corpus'), 'corpus'),
  ],
)
def test_tables_contain_every_field(config, kind: str, capsys):
  resolved = recipe.resolve(config, kind)
  console = rich.console.Console(width=200)
  for table in show.make_show_tables(show.describe_recipe(resolved)):
    console.print(table)
  text = capsys.readouterr().out
  fields = recipe.list_fields(config)
  assert all(name in text for name in fields if '.' in name)
  if kind == 'pretrain':
    assert '1,250,722' in text and 'encoder.blocks.0.attention.query.kernel' in text


def test_nothing_is_written_and_an_impossible_recipe_is_refused(
  tmp_path: pathlib.Path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  config = recipe.resolve(base.pretrain(), 'pretrain')
  show.describe_recipe(config)
  assert not list(tmp_path.iterdir())
  for broken, part in (
    (dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, data=9)), 'devices'),
    (
      dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, no_decay=('bais',))
      ),
      'bais',
    ),
  ):
    with pytest.raises(InputError, match=part):
      show.describe_recipe(broken)
