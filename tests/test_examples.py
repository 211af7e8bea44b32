"""Examples in configs/examples have commands that parse, and smaller versions run."""

import csv
import importlib
import pathlib
import runpy
from collections import Counter
from typing import Any

import numpy as np
import pytest
import setuptools

from minilm_jax.core import recipe, run_dir
from minilm_jax.data import build, corpus, microworld
from minilm_jax.tasks import finetune
from minilm_jax.training import run
from tests.docstring_commands import parse, parse_commands

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / 'configs' / 'examples').glob('[!_]*.py'))
SMALL = {
  'num_steps': 4,
  'batch_size': 8,
  'eval.every': 4,
  'eval.rows': 16,
  'checkpoint.every': 4,
  'log.every': 4,
  'mesh.data': 1,
}


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_an_example_is_short_and_its_commands_parse(path: pathlib.Path, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert len(path.read_text().splitlines()) < 60
  module = importlib.import_module(f'configs.examples.{path.stem}')
  if not hasattr(module, 'get_config'):
    return
  assert 'minute' in module.__doc__ and 'xpect' in module.__doc__
  parse_commands(module.__doc__)


def load_small_run(name: str, corpus: pathlib.Path) -> Any:
  """Returns the run of an example with few updates, parsed from a command line."""
  arguments = [
    f'--config=configs/examples/{name}.py',
    f'--config.corpus={corpus}',
    '--workdir=x',
    *(f'--config.{field}={value}' for field, value in SMALL.items()),
  ]
  return parse('pretrain', arguments)[0]


@pytest.mark.parametrize('name', ['own_encoder', 'spans'])
def test_custom_models_and_objectives_train(
  name: str, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  config = load_small_run(name, tiny_corpus)
  assert bool(config.model.encoder) == (name == 'own_encoder')
  assert bool(config.mask.span) == (name == 'spans')
  result = run.pretrain(config, tmp_path / 'run')
  lines = run_dir.read_lines(tmp_path / 'run' / run_dir.METRICS)
  (loss,) = [line['loss'] for line in lines if line['split'] == 'train']
  assert np.isfinite(loss) and result['test_loss'] > 0


def test_a_custom_task_fine_tunes(tiny_run: pathlib.Path, tmp_path: pathlib.Path):
  config = recipe.load('configs/examples/own_task.py')
  with open(config.task.train, encoding='utf-8', newline='') as file:
    labels = Counter(row['about'] for row in csv.DictReader(file))
  assert labels == {'animal': 80, 'person': 80, 'thing': 80}
  config.update(seeds='0', epochs=1.0)
  lines = finetune.finetune(recipe.resolve(config, 'finetune'), tiny_run, tmp_path / 'task', [8])
  assert lines and all(0 <= line['value'] <= 1 for line in lines)


def test_a_custom_corpus_is_built(tmp_path: pathlib.Path):
  texts = [text.replace(' . ', ' .\n') for text in microworld.generate_documents(5, 60)]
  (tmp_path / 'own.txt').write_text('\n\n'.join(texts))
  words = sorted({word for text in texts for word in text.split()} - {'dog', 'dogs', '.'})
  (tmp_path / 'words.txt').write_text('\n'.join(words))
  config = recipe.load('configs/examples/own_text.py:corpus')
  config.documents.sources = str(tmp_path / 'own.txt')
  config.vocabulary.word_list = str(tmp_path / 'words.txt')
  config.tokenizer.size, config.workers = 300, 1
  folder = build.build_corpus(recipe.resolve(config, 'corpus'), tmp_path / 'corpus')
  manifest = corpus.read_manifest(folder)
  assert manifest['splits']['train']['rows'] and manifest['length'] == 64
  run = recipe.resolve(recipe.load('configs/examples/own_text.py'), 'pretrain')
  assert run.model.vocab_size >= 2000 and run.model.max_length == manifest['length']


def test_the_package_includes_recipes_and_their_data(monkeypatch):
  options: dict[str, Any] = {}
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(setuptools, 'setup', lambda **keywords: options.update(keywords))
  runpy.run_path(str(ROOT / 'setup.py'))
  packages = {'configs', 'configs.examples', 'minilm_jax', 'minilm_jax.tasks'}
  assert packages <= set(options['packages'])
  tables = {
    f'{path.parent.relative_to(ROOT)}'.replace('/', '.'): path.name
    for path in (ROOT / 'configs').rglob('*.csv')
  }
  assert tables
  assert all(name in options['package_data'][package] for package, name in tables.items())
