"""Files: bounded reads, and paths of manifests that stay inside their folder."""

import contextlib
import gzip
import io
import json
import os
import pathlib
import pwd
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minilm_jax.analysis import logged_table
from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus, documents, filters, tokenizer
from minilm_jax.evaluation import overlap, overlap_subsets
from minilm_jax.tasks import task_files
from minilm_jax.training import run_setup
from tests import tiny_config


@pytest.fixture
def small_limits(monkeypatch) -> None:
  monkeypatch.setattr(files, 'MAX_FILE_BYTES', 1000)
  monkeypatch.setattr(files, 'MAX_CACHED_BYTES', 10_000)
  monkeypatch.setattr(run_dir, '_MAX_LINE_BYTES', 1000)


def test_a_read_is_limited(small_limits):
  assert files.read_limited(io.BytesIO(bytes(1000)), 'x') == bytes(1000)
  with pytest.raises(InputError, match='1,000'):
    files.read_limited(io.BytesIO(bytes(1001)), 'x')


def test_an_endless_file_is_refused(small_limits):
  with pytest.raises(InputError, match='1,000'):
    files.read_bytes('/dev/zero', 'x')


def test_a_missing_or_unreadable_file_is_refused(tmp_path):
  with pytest.raises(InputError, match='no file .*absent(.|\n)*copy it again'):
    files.read_bytes(tmp_path / 'absent', 'x', 'copy it again')
  with pytest.raises(InputError, match='cannot be read'):
    files.read_bytes(tmp_path, 'x')


READERS: dict[str, Callable[[pathlib.Path], object]] = {
  'a.json': lambda path: files.read_json(path, 'x'),
  'a.model': tokenizer.load_tokenizer,
  'a.csv.gz': logged_table.read_csv,
  'b.csv': logged_table.read_csv,
  'b.json': lambda path: list(task_files.read_fewrel_rows(path, False)),
  'b.json.gz': lambda path: list(task_files.read_fewrel_rows(path, False)),
  'a.jsonl': lambda path: list(run_dir.read_lines(path)),
}


@pytest.mark.parametrize('name', READERS)
def test_readers_into_memory_are_limited(name: str, tmp_path, small_limits):
  content = b'{"a": "' + b'a' * 2000 + b'"}'
  (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith('.gz') else content)
  with pytest.raises(InputError, match='1,000|JSON'):
    READERS[name](tmp_path / name)


CACHED: dict[str, Callable[[pathlib.Path], object]] = {
  'a.txt': filters.load_word_list,
  'a.csv': filters.load_word_list,
  'a.jsonl': lambda path: list(documents.read_table_rows(str(path))),
}


@pytest.mark.parametrize('name', CACHED)
def test_readers_of_cached_items_are_limited(name: str, tmp_path, small_limits):
  lines = [
    json.dumps({'word': 'a'}) if name == 'a.jsonl' else f'a{number}' for number in range(1000)
  ]
  (tmp_path / name).write_text('\n'.join(['word'] * (name == 'a.csv') + lines[:100]) + '\n')
  CACHED[name](tmp_path / name)
  (tmp_path / name).write_text('\n'.join(['word'] * (name == 'a.csv') + lines) + '\n')
  with pytest.raises(InputError, match='10,000'):
    CACHED[name](tmp_path / name)


@pytest.mark.parametrize(
  'name',
  [
    '/etc/passwd',
    '..',
    '../x',
    'a/../../x',
    'a/..',
    '',
    '.',
    './a',
    'a//b',
    'a/',
    'C:\\x',
    '..\\x',
    'gs://b/x',
    'a\0',
    'out',
    'out/x',
    'up/x',
    5,
    None,
    ['a'],
    {},
  ],
)
def test_a_path_outside_the_folder_is_refused(name: Any, tmp_path):
  root = tmp_path / 'root'
  root.mkdir()
  (root / 'out').symlink_to('/etc')
  (root / 'up').symlink_to('..')
  with pytest.raises(InputError, match=str(root)):
    files.resolve_inside(root, name, 'x')


def test_a_path_inside_the_folder_is_resolved(tmp_path):
  (tmp_path / 'root' / 'deep').mkdir(parents=True)
  (tmp_path / 'root' / 'link').symlink_to('deep')
  (tmp_path / 'alias').symlink_to('root')
  for name in ('a', 'deep/a', 'link/a', 'a..b', '...', ' a', 'a:b'[:1]):
    assert files.resolve_inside(tmp_path / 'alias', name, 'x') == tmp_path / 'alias' / name
  assert str(files.resolve_inside('gs://b/x', 'a/b', 'x')) == 'gs://b/x/a/b'


def redirect_manifest(
  folder: pathlib.Path, link: bool, change: Callable[[dict[str, Any], str], None]
) -> None:
  """Changes a manifest, so that a file is outside its folder, by a path or by a link."""
  manifest = json.loads((folder / run_dir.MANIFEST).read_text())
  (folder.parent / 'secret').write_text('secret')
  if link:
    (folder / 'link').symlink_to(folder.parent / 'secret')
  change(manifest, 'link' if link else '../secret')
  (folder / run_dir.MANIFEST).write_text(json.dumps(manifest))


def redirect_tokenizer(manifest: dict[str, Any], name: str) -> None:
  manifest['tokenizer']['file'] = name


def redirect_shard(manifest: dict[str, Any], name: str) -> None:
  manifest['splits']['test']['shards'][0]['file'] = name


def redirect_empty_shard(manifest: dict[str, Any], name: str) -> None:
  manifest['splits']['test'] = {
    'rows': 0,
    'tokens': 0,
    'shards': [{'file': name, 'sha256': '', 'rows': 0}],
  }


@pytest.mark.parametrize('link', [False, True])
@pytest.mark.parametrize('change', [redirect_tokenizer, redirect_shard, redirect_empty_shard])
def test_manifests_with_paths_outside_the_folder_are_refused(
  change, link: bool, tiny_corpus, tmp_path
):
  folder = shutil.copytree(tiny_corpus, tmp_path / 'a' / 'corpus')
  redirect_manifest(folder, link, change)
  with pytest.raises(InputError, match='link|secret'):
    overlap_subsets.write_subset(
      folder, np.arange(3), tmp_path / 'part' / 'part', {'kind': 'subset'}, {}
    )
  assert (
    not (tmp_path / 'part' / 'secret').exists()
    and not (tmp_path / 'part' / 'part' / 'link').exists()
  )
  with pytest.raises(InputError, match='link|secret'):
    if change is redirect_tokenizer:
      with pytest.raises(InputError, match='link|secret'):
        overlap.open_tokenizer(folder, corpus.read_manifest(folder))
      run_setup.open_or_create_run(tiny_config.make_run_config(folder), tmp_path / 'run')
    else:
      corpus.load_split(folder, 'test')


def test_an_owner_without_a_name_changes_nothing(tmp_path, monkeypatch):
  path = tmp_path / 'a'
  path.write_bytes(b'12345')
  os.utime(path, (1_000_000_000, 1_000_000_000))
  assert files.read_status(path) == files.FileStatus(5, 1_000_000_000)
  monkeypatch.setattr(pwd, 'getpwuid', {}.__getitem__)
  assert files.read_status(path) == files.FileStatus(5, 1_000_000_000)
  with pytest.raises(FileNotFoundError):
    files.read_status(tmp_path / 'missing')


def test_a_file_in_an_object_store_grows(monkeypatch):
  """Object stores replace a file that is opened to append."""

  class Stored(os.PathLike):
    content = b'first\n'

    def __fspath__(self) -> str:
      return str(self)

    def __str__(self) -> str:
      return 'gs://bucket/metrics.jsonl'

    def exists(self) -> bool:
      return True

    def read_bytes(self) -> bytes:
      return self.content

    @contextlib.contextmanager
    def open(self, mode: str):
      stream = io.BytesIO()
      yield stream
      self.content = stream.getvalue()

  stored = Stored()
  monkeypatch.setattr(files.epath, 'Path', lambda path: path)
  for line in (b'second\n', b'third\n'):
    files.append_bytes(stored, line)
  assert stored.content == b'first\nsecond\nthird\n'


def test_a_local_file_grows(tmp_path):
  for line in (b'first\n', b'second\n'):
    files.append_bytes(tmp_path / 'log', line)
  assert (tmp_path / 'log').read_bytes() == b'first\nsecond\n'
