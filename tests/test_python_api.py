"""The functions of `minilm_jax` that do the work of the commands."""

import jax
import pytest

import minilm_jax
from minilm_jax.core.errors import InputError
from minilm_jax.core.recipe import load


@pytest.mark.usefixtures('few_microworld_examples')
def test_the_functions_run_every_stage(tmp_path, caplog):
  corpus = minilm_jax.build_corpus(
    'configs/microworld.py:corpus',
    tmp_path / 'corpus',
    {'documents.sources': 'microworld:300', 'workers': 1},
  )
  run = tmp_path / 'pretrain'
  changes = {'corpus': str(corpus), 'eval.every': 4, 'log.every': 4, 'mesh.data': 1}
  sizes = {'embedding_size': 16, 'hidden_size': 16, 'intermediate_size': 16, 'num_layers': 1}
  changes |= {f'model.{name}': size for name, size in sizes.items()}
  result = minilm_jax.pretrain('configs/microworld.py', run, changes | {'num_steps': 4})
  assert result['updates'] == 4
  lines = minilm_jax.finetune(
    'configs/microworld.py:finetune',
    run,
    tmp_path / 'task',
    {'seeds': '0', 'epochs': 1, 'task.max_train_examples': 32, 'task.eval_per_label': 20},
    with_scratch=True,
  )
  assert {line['pretrained'] for line in lines} == {True, False}
  assert minilm_jax.evaluate(run)['step'] == 4
  continued = minilm_jax.pretrain(
    'configs/microworld.py',
    tmp_path / 'more',
    changes | {'num_steps': 2, 'batch_size': 4},
    init_from=f'{run}@4',
    init_optimizer=True,
  )
  assert continued['origin'] == f'{run}@4' and continued['updates'] == 2
  page = minilm_jax.report([run, tmp_path / 'task'], tmp_path / 'report')['report.html']
  assert page.exists()
  assert minilm_jax.report(str(run), tmp_path / 'single')['report.html'].exists()
  assert minilm_jax.load(run).encode(['the dog sleeps .']).shape == (1, 16)
  assert not [record for record in caplog.records if record.name == 'absl']  # of Orbax


def test_a_recipe_can_be_a_config_dict(tmp_path):
  recipe = load('configs/microworld.py:corpus')
  recipe.documents.sources, recipe.workers = 'microworld:300', 1
  folder = minilm_jax.build_corpus(recipe, tmp_path / 'corpus')
  assert (folder / 'manifest.json').exists()
  assert minilm_jax.build_corpus(recipe.to_dict(), tmp_path / 'corpus') == folder


def test_training_in_64_bits_is_refused(tmp_path):
  with jax.enable_x64(True), pytest.raises(InputError, match='jax_enable_x64=True'):
    minilm_jax.pretrain('configs/tiny.py', tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('overrides', 'match'),
  [({'tokenizer.sise': 600}, 'tokenizer.size'), ({'tokenizer': 600}, 'the field tokenizer\n')],
)
def test_unknown_fields_and_groups_are_refused(tmp_path, overrides, match):
  with pytest.raises(InputError, match=match):
    minilm_jax.build_corpus('configs/microworld.py:corpus', tmp_path / 'corpus', overrides)
  assert not (tmp_path / 'corpus').exists()


def test_a_leading_tilde_of_a_path_is_the_home_folder(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  for call in (
    lambda: minilm_jax.load('~/missing'),
    lambda: minilm_jax.evaluate('~/missing'),
    lambda: minilm_jax.report(['~/missing'], '~/page'),
  ):
    with pytest.raises(InputError) as error:
      call()
    assert f'{tmp_path}/missing' in str(error.value)
  assert not (tmp_path / '~').exists()
