"""The examples of configs/examples: each comes through the door, its commands are understood, and
it runs, smaller.
"""

import csv
import importlib
import pathlib
import runpy
import shlex
from typing import Any

import numpy as np
import pytest
import setuptools

from minilm_jax.cli import commands, flags
from minilm_jax.core import recipe, run_dir
from minilm_jax.data import build, corpus, microworld
from minilm_jax.tasks import finetune
from minilm_jax.training import pretrain
from tests.docstring_commands import find_commands

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


pytestmark = pytest.mark.usefixtures('fast_compile')


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_an_example_is_short_and_opens_with_commands_that_work(path: pathlib.Path, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert len(path.read_text().splitlines()) < 60
  module = importlib.import_module(f'configs.examples.{path.stem}')
  if not hasattr(module, 'get_config'):
    return
  assert 'minute' in module.__doc__ and 'xpect' in module.__doc__
  for command in find_commands(module.__doc__):
    _, verb, *arguments = shlex.split(command)
    flags.parse_arguments(verb, commands.COMMANDS[verb], arguments)


def smaller(name: str, corpus: pathlib.Path) -> Any:
  """The run of an example, of few updates, as the door reads it."""
  given = [
    f'--config=configs/examples/{name}.py',
    f'--config.corpus={corpus}',
    '--workdir=x',
    *(f'--config.{field}={value}' for field, value in SMALL.items()),
  ]
  return flags.parse_arguments('pretrain', commands.COMMANDS['pretrain'], given)[0]


@pytest.mark.parametrize('name', ['own_encoder', 'spans'])
def test_another_model_and_another_objective_train(
  name: str, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  config = smaller(name, tiny_corpus)
  assert (bool(config.model.encoder), bool(config.mask.span)) == (
    name == 'own_encoder',
    name == 'spans',
  )
  found = pretrain.pretrain(config, tmp_path / 'run')
  (line,) = [
    line
    for line in run_dir.read_lines(tmp_path / 'run' / run_dir.METRICS)
    if line['split'] == 'train'
  ]
  assert np.isfinite(line['loss']) and found['test_loss'] > 0


def test_another_task_fine_tunes(tiny_run: pathlib.Path, tmp_path: pathlib.Path):
  made = recipe.load('configs/examples/own_task.py')
  with open(made.task.train, encoding='utf-8', newline='') as file:
    labels = [row['about'] for row in csv.DictReader(file)]
  assert {label: labels.count(label) for label in labels} == dict.fromkeys(
    ('animal', 'person', 'thing'), 80
  )
  made.update(seeds='0', epochs=1.0)
  lines = finetune.finetune(recipe.resolve(made, 'finetune'), tiny_run, tmp_path / 'task', [8])
  assert lines and all(0 <= line['value'] <= 1 for line in lines)


def test_another_text_is_kept_where_it_stays_inside_the_word_list(tmp_path: pathlib.Path):
  texts = [text.replace(' . ', ' .\n') for text in microworld.generate_documents(5, 60)]
  (tmp_path / 'own.txt').write_text('\n\n'.join(texts))
  words = sorted({word for text in texts for word in text.split()} - {'dog', 'dogs', '.'})
  (tmp_path / 'words.txt').write_text('\n'.join(words))
  made = recipe.load('configs/examples/own_text.py:corpus')
  made.documents.sources, made.vocabulary.word_list = (
    str(tmp_path / 'own.txt'),
    str(tmp_path / 'words.txt'),
  )
  made.tokenizer.size, made.workers = 300, 1
  folder = build.build_corpus(recipe.resolve(made, 'corpus'), tmp_path / 'corpus')
  described = corpus.read_manifest(folder)
  assert described['splits']['train']['rows'] and described['length'] == 64
  run_of_it = recipe.resolve(recipe.load('configs/examples/own_text.py'), 'pretrain')
  assert run_of_it.model.vocab_size >= 2000 and run_of_it.model.max_length == described['length']


def test_what_is_installed_has_the_recipes_and_their_data(monkeypatch):
  seen: dict[str, Any] = {}
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(setuptools, 'setup', lambda **given: seen.update(given))
  runpy.run_path(str(ROOT / 'setup.py'))
  assert {'configs', 'configs.examples', 'minilm_jax', 'minilm_jax.tasks'} <= set(seen['packages'])
  beside = {
    f'{path.parent.relative_to(ROOT)}'.replace('/', '.'): path.name
    for path in (ROOT / 'configs').rglob('*.csv')
  }
  assert beside and all(name in seen['package_data'][package] for package, name in beside.items())
