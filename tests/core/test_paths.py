"""Paths: existing paths are literal, other paths are patterns, and links count once."""

import os
import pathlib
import pickle

import pytest
from etils import epath

from minilm_jax.core import paths


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
  """Returns the working folder, which is empty."""
  monkeypatch.chdir(tmp_path)
  return tmp_path


def write_files(*names: str) -> None:
  for name in names:
    file = pathlib.Path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('text')


@pytest.mark.parametrize(
  'path, matches',
  [
    ('texts [old]/Emma [1815].txt', ['texts [old]/Emma [1815].txt']),
    ('texts [old]/*.txt', ['texts [old]/Emma [1815].txt', 'texts [old]/a.txt']),
    ('texts [old]/b[12].txt', []),
    ('what?.txt', ['what?.txt']),
    ('wha[t]?.txt', ['what?.txt', 'whats.txt']),
    ('what*', ['what?.txt', 'whats.txt']),
    ('[x]/*', ['x/a.txt', 'x/b.txt']),
    ('x/[a]*', ['x/a.txt']),
    ('~x/a.txt', ['~x/a.txt']),
    ('absent', ['absent']),
    ('./what*', ['what?.txt', 'whats.txt']),
    ('1 = a, b@2', ['1 = a, b@2']),
  ],
)
def test_a_path_that_exists_is_literal(folder, path: str, matches: list[str]):
  write_files('texts [old]/Emma [1815].txt', 'texts [old]/a.txt', 'what?.txt', 'whats.txt')
  write_files('x/a.txt', 'x/b.txt', '~x/a.txt', '1 = a, b@2')
  assert paths.expand_pattern(path) == matches
  assert paths.expand_pattern(folder / path) == [str(folder / match) for match in matches]


@pytest.mark.parametrize(
  'pattern, matches',
  [
    ('t/**/*.txt', ['t/a/b/y.txt', 't/c[1]/z.txt', 't/x.txt']),
    ('t/*/*/*.txt', ['t/a/b/y.txt']),
    ('t/**.txt', ['t/x.txt']),
    ('**/y.txt', ['t/a/b/y.txt']),
    ('**/b/**/y.txt', ['t/a/b/y.txt']),
    ('t/a/**', ['t/a/b', 't/a/b/y.txt']),
    ('absent/**/*.txt', []),
  ],
)
def test_two_stars_match_subfolders(folder, pattern: str, matches: list[str]):
  write_files('t/x.txt', 't/a/b/y.txt', 't/c[1]/z.txt', 't/.hidden/h.txt', 't/a/._x.txt')
  assert paths.expand_pattern(pattern) == matches


def test_a_folder_that_links_reach_is_listed_once(folder):
  write_files('runs/tiny/a.txt', 'runs/tiny/events/b.txt', 'elsewhere/c/d.txt')
  for link, target in (('latest', 'tiny'), ('loop', '.'), ('up', '..'), ('far', '../elsewhere')):
    os.symlink(target, folder / 'runs' / link)
  (folder / 'runs' / 'dead').symlink_to('absent')
  listed = [str(path) for path in paths.list_folders('runs/tiny')]
  assert listed == ['runs/tiny', 'runs/tiny/events']
  os.remove('runs/up')
  listed = [str(path) for path in paths.list_folders('runs', skipped=('events',))]
  assert listed == ['runs', 'runs/far', 'runs/far/c', 'runs/tiny']
  assert paths.expand_pattern('runs/**/*.txt') == [
    'runs/far/c/d.txt',
    'runs/tiny/a.txt',
    'runs/tiny/events/b.txt',
  ]


def test_a_link_to_the_root_of_a_tree_ends(folder):
  write_files('top/runs/tiny/a.txt')
  os.symlink('..', 'top/runs/up')
  os.symlink('../..', 'top/runs/tiny/up')
  listed = [str(path) for path in paths.list_folders('top/runs')]
  assert listed == ['top/runs', 'top/runs/tiny', 'top/runs/up']


def test_the_home_folder_replaces_a_leading_tilde(folder, monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  assert paths.expand_home('~/runs/x') == '/home/me/runs/x'
  assert paths.expand_home('~') == '/home/me'
  assert paths.expand_home('runs/~/x') == 'runs/~/x'
  assert paths.expand_home('~x') == '~x'
  assert paths.split_names('~/a,b,~/c') == ['/home/me/a', 'b', '/home/me/c']
  assert paths.split_step('~/a@4') == ('/home/me/a', '4')
  assert paths.expand_home('./~/x') == './~/x'


@pytest.mark.parametrize(
  'text, names',
  [
    ('', []),
    ('a', ['a']),
    (' a , b ,', ['a', 'b']),
    ('runs/lr=3,wd=1', ['runs/lr=3,wd=1']),
    ('runs/lr=3,wd=1@40', ['runs/lr=3,wd=1@40']),
    ('runs/tiny,runs/lr=3,wd=1', ['runs/tiny', 'runs/lr=3,wd=1']),
    ('runs/lr=3,wd=1, runs/tiny', ['runs/lr=3,wd=1', 'runs/tiny']),
    ('runs/tiny,absent', ['runs/tiny', 'absent']),
    ('Dickens, Bleak House.txt', ['Dickens, Bleak House.txt']),
    ('runs/lr=3,wd=1/c*,runs/tiny', ['runs/lr=3,wd=1/c*', 'runs/tiny']),
    ('x,y,x', ['x', 'y', 'x']),
    ('x,y', ['x,y']),
    ('microworld:9,Dickens, Bleak House.txt', ['microworld:9', 'Dickens, Bleak House.txt']),
  ],
)
def test_a_comma_is_part_of_a_name_that_exists(folder, text: str, names: list[str]):
  write_files('runs/lr=3,wd=1/c-0', 'runs/tiny/c', 'Dickens, Bleak House.txt', 'x', 'y', 'x,y')
  assert paths.split_names(text) == names


@pytest.mark.parametrize(
  'name, parts',
  [
    ('tiny', ('tiny', '')),
    ('tiny@3', ('tiny', '3')),
    ('tiny@all', ('tiny', 'all')),
    ('tiny@2', ('tiny@2', '')),
    ('tiny@2@5', ('tiny@2', '5')),
    ('me@home', ('me@home', '')),
  ],
)
def test_a_folder_named_like_a_step_has_priority(folder, name: str, parts: tuple[str, str]):
  write_files('tiny/a', 'tiny@2/a')
  assert paths.split_step(name) == parts


def test_libraries_can_list_a_literal_path(folder):
  write_files('x [1]/a.txt', 'x 1/b.txt')
  path = epath.Path(paths.LiteralPath('x [1]').resolve() / 'inner').parent
  assert [match.name for match in path.glob('*')] == ['a.txt']
  assert pickle.loads(pickle.dumps(path)) == path


def test_a_reference_is_found_after_its_folders_moved_together(folder, monkeypatch):
  write_files('old/runs/tiny/a', 'old/runs/ft/a', 'elsewhere/runs/tiny/a')
  link = paths.link_to('old/runs/tiny', 'old/runs/ft')
  absolute = str(folder / 'old' / 'runs' / 'tiny')
  (folder / 'old').rename(folder / 'new')
  moved = str(folder / 'new' / 'runs' / 'tiny')
  for directory in (folder, folder / 'new', folder / 'elsewhere'):
    monkeypatch.chdir(directory)
    workdir = folder / 'new' / 'runs' / 'ft'
    assert paths.follow_reference('runs/tiny', workdir, link) == moved
    assert paths.follow_reference(absolute, workdir, link) == moved
    assert paths.follow_reference('runs/tiny', workdir) == moved  # of an earlier version
    assert paths.follow_reference('tiny', os.path.relpath(workdir), link) == moved
    assert paths.follow_reference(absolute, workdir) == absolute
    assert paths.follow_reference('runs/absent', workdir, '../absent') == 'runs/absent'
    assert paths.follow_reference('gs://b/runs/tiny', workdir) == 'gs://b/runs/tiny'
    assert paths.follow_reference('', workdir) == ''
  assert paths.link_to('', folder) == paths.link_to('gs://b/x', folder) == ''


def test_a_reference_in_a_bucket_is_found_after_its_folders_moved_together(monkeypatch):
  link = paths.link_to('gs://b/old/./runs/tiny/', 'gs://b/old/studies/ft')
  assert link == '../../runs/tiny'
  for target, workdir in (
    ('gs://b/x', 'gs://other/x'),
    ('s3://b/x', 'gs://b/x'),
    ('gs://b/x', 'runs/ft'),
    ('runs/x', 'gs://b/ft'),
    ('', 'gs://b/ft'),
  ):
    assert paths.link_to(target, workdir) == ''
  assert paths.link_to('gs://b/tiny', 'gs://b') == 'tiny'
  existing = {'gs://b/old/runs/tiny', 'gs://c/a/new/runs/tiny', 'gs://c/runs/tiny'}
  monkeypatch.setattr(paths, '_exists', existing.__contains__)
  name = 'gs://b/old/runs/tiny'
  for workdir, found in (
    ('gs://b/old/studies/ft', name),
    ('gs://c/a/new/studies/ft/', 'gs://c/a/new/runs/tiny'),
    ('gs://c/studies/ft', 'gs://c/runs/tiny'),
    ('gs://d/studies/ft', name),  # moved alone
    ('studies/ft', name),
  ):
    assert paths.follow_reference(name, workdir, link) == found
  assert paths.follow_reference('runs/tiny', 'gs://c/studies/ft') == 'runs/tiny'


@pytest.mark.parametrize(
  'name', ['gs://b/runs/tiny/', 'gs://b//runs/tiny', 'gs://b/x/../runs/tiny']
)
def test_names_of_one_folder_in_a_bucket_are_the_same(name: str):
  assert paths.is_same(name, 'gs://b/runs/tiny') and not paths.is_same(name, 'gs://c/runs/tiny')


def test_names_of_one_file_are_the_same_value(folder, monkeypatch):
  monkeypatch.setenv('HOME', str(folder))
  write_files('runs/tiny/a')
  (folder / 'link').symlink_to('runs')
  absolute = str(folder / 'runs' / 'tiny')
  for name in ('runs/tiny', './runs/tiny/', '~/runs/tiny', 'link/tiny', absolute):
    assert paths.is_same(name, absolute) and paths.is_same([name], [absolute])
  for first, second in (
    ('', '.'),
    ('a', 'b'),
    (1, '1'),
    ([absolute], []),
    (None, ''),
    ('a\0', 'a'),
  ):
    assert not paths.is_same(first, second)
  assert paths.is_same(0.5, 0.5) and paths.is_same('a\0', 'a\0')
