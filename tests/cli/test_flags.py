"""Flags: names of files and folders."""

import pathlib

import pytest

from minilm_jax.bench import lowering
from minilm_jax.cli import flags, quickstart, watch
from minilm_jax.cli.commands import COMMANDS
from tests.docstring_commands import parse

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('home', ['/home/me', '/home/a b'])
def test_a_leading_tilde_is_the_home_folder(home: str, monkeypatch):
  monkeypatch.setenv('HOME', home)
  config, options, _ = parse(
    'corpus',
    [
      f'--config={ROOT}/configs/tiny.py:corpus',
      '--config.documents.sources=~/text/*.txt,~/b.txt',
      '--config.documents.data_dir=~/tfds',
      '--config.vocabulary.word_list=~/words.txt',
      '--config.tokenizer.path=~',
      '--workdir=~/corpora/x',
    ],
  )
  assert config.documents.sources == (f'{home}/text/*.txt', f'{home}/b.txt')
  assert config.documents.data_dir == f'{home}/tfds'
  assert config.vocabulary.word_list == f'{home}/words.txt'
  assert config.tokenizer.path == home
  assert options.workdir == f'{home}/corpora/x'
  _, options, folders = parse('report', ['~/runs', '--logged', '~/e.csv', 'runs/~/x'])
  assert options.logged == f'{home}/e.csv' and folders == [f'{home}/runs', 'runs/~/x']


def test_every_flag_of_a_path_expands_the_home_folder(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  expanded = set()
  for name, command in COMMANDS.items():
    declared = {word.rstrip('*'): flags.FLAGS[word.rstrip('*')] for word in command.flags}
    words = [
      f'--{word}={flag.choices[0] if flag.choices else "~/x"}'
      for word, flag in declared.items()
      if flag.kind is str
    ]
    options, _, _ = flags._parse_words(name, command, words, {})
    expanded |= {flag for flag, value in vars(options).items() if value == '/home/me/x'}
  assert expanded == {
    *('workdir', 'checkpoint', 'corpus', 'from', 'pairs', 'logged', 'base'),
    *('preregistration', 'members', 'committee', 'classifier', 'file', 'init_from', 'topology'),
  }


def test_choices_are_the_keys_of_the_tables_of_commands():
  for name, table in (
    ('axis', watch.AXES),
    ('language', quickstart.LANGUAGES),
    ('program', lowering.PROGRAMS),
  ):
    assert set(flags.FLAGS[name].choices) == set(table)


def test_a_flag_accepts_its_default_beside_its_choices():
  _, options, _ = parse('bench', [f'--config={ROOT}/configs/tiny.py', '--compare_with='])
  assert options.compare_with == flags.FLAGS['compare_with'].default


def test_a_comma_in_the_name_of_a_source_does_not_split_it(tmp_path: pathlib.Path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'Dickens, Bleak House.txt').write_text('text')
  arguments = [f'--config={ROOT}/configs/tiny.py:corpus', '--workdir=w']
  for text, sources in (
    ('Dickens, Bleak House.txt', ('Dickens, Bleak House.txt',)),
    ('Dickens, Bleak House.txt@file', ('Dickens, Bleak House.txt@file',)),
    ('microworld:9, Dickens, Bleak House.txt', ('microworld:9', 'Dickens, Bleak House.txt')),
    ('microworld:9, b.txt', ('microworld:9', 'b.txt')),
  ):
    config, _, _ = parse('corpus', [*arguments, f'--config.documents.sources={text}'])
    assert config.documents.sources == sources


@pytest.mark.parametrize('dashes', ['-', '--'])
def test_a_checkpoint_replaces_a_recipe(dashes: str):
  config, values, _ = parse('show', [f'{dashes}checkpoint=runs/tiny'])
  assert config is None and values.checkpoint == 'runs/tiny'


def test_a_repeated_flag_of_paths_adds_to_the_list(tmp_path: pathlib.Path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ('a.txt', 'b, c.txt', 'd.txt'):
    (tmp_path / name).write_text('text')
  sources = [f'--config.documents.sources={name}' for name in ('a.txt', 'b, c.txt', 'd.txt')]
  config, _, _ = parse(
    'corpus',
    [f'--config={ROOT}/configs/tiny.py:corpus', '--workdir=w', *sources],
  )
  assert config.documents.sources == ('a.txt', 'b, c.txt', 'd.txt')
  arguments = [f'--config={ROOT}/configs/glue.py:cola', '--workdir=v', '--workdir=w']
  _, values, _ = parse('finetune', [*arguments, '--checkpoint=x', '--checkpoint=~/y'])
  assert values.checkpoint == f'x,{pathlib.Path.home()}/y' and values.workdir == 'w'


@pytest.mark.parametrize('argument', ['', ':large'])
def test_a_colon_in_the_name_of_a_recipe_is_part_of_it(
  tmp_path: pathlib.Path, monkeypatch, argument: str
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'my:recipe.py').write_text(
    'from configs import tiny\n'
    'def get_config(size="small"):\n'
    '  config = tiny.get_config()\n'
    '  config.batch_size = 24 if size == "large" else 8\n'
    '  return config\n'
  )
  arguments = [f'--config=my:recipe.py{argument}', '--workdir=w', '--config.corpus=c']
  config, _, _ = parse('pretrain', arguments)
  assert config.batch_size == (24 if argument else 8)
