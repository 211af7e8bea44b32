"""Flags: names of files and folders."""

import pathlib

import pytest

from minilm_jax.cli import flags
from minilm_jax.cli.commands import COMMANDS

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('home', ['/home/me', '/home/a b'])
def test_a_leading_tilde_is_the_home_folder(home: str, monkeypatch):
  monkeypatch.setenv('HOME', home)
  config, options, _ = flags.parse_arguments(
    'corpus',
    COMMANDS['corpus'],
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
  _, options, folders = flags.parse_arguments(
    'report', COMMANDS['report'], ['~/runs', '--logged', '~/e.csv', 'runs/~/x']
  )
  assert options.logged == f'{home}/e.csv' and folders == [f'{home}/runs', 'runs/~/x']


def test_every_flag_of_a_path_expands_the_home_folder(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  expanded = set()
  for name, command in COMMANDS.items():
    if command.kinds or not command.flags:
      continue
    words = [f'--{flag.rstrip("*")}=~/x' for flag in command.flags]
    texts = [word for word in words if flags.FLAGS[word[2:-4]].kind is str]
    _, options, _ = flags.parse_arguments(name, command, texts)
    expanded |= {flag for flag, value in vars(options).items() if value == '/home/me/x'}
  assert expanded == {
    *('workdir', 'checkpoint', 'corpus', 'from', 'pairs', 'logged', 'base'),
    *('preregistration', 'members', 'committee', 'classifier', 'file'),
  }


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
    config, _, _ = flags.parse_arguments(
      'corpus', COMMANDS['corpus'], [*arguments, f'--config.documents.sources={text}']
    )
    assert config.documents.sources == sources
