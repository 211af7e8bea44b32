"""Reads are bounded, and a manifest names only files of its folder."""

import gzip
import io
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minilm_jax.analysis import loss_curves
from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus, documents, filters, subset, tokenizer
from minilm_jax.evaluation import overlap
from minilm_jax.tasks import loading
from minilm_jax.training import run_setup
from tests import tiny_config


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(files, 'MAX_FILE_BYTES', 1000)
  monkeypatch.setattr(files, 'MAX_CACHED_BYTES', 10_000)
  monkeypatch.setattr(run_dir, '_MAX_LINE_BYTES', 1000)


def test_as_much_as_is_allowed_is_read_and_no_more(small: None):
  assert files.read_limited(io.BytesIO(bytes(1000)), 'x') == bytes(1000)
  with pytest.raises(InputError, match='1,000'):
    files.read_limited(io.BytesIO(bytes(1001)), 'x')


def test_a_file_without_end_is_refused(small: None):
  with pytest.raises(InputError, match='1,000'):
    files.read_bytes('/dev/zero', 'x')


WHOLE: dict[str, Callable[[pathlib.Path], object]] = {
  'a.json': lambda path: files.read_json(path, 'x'),
  'a.model': tokenizer.load_tokenizer,
  'a.csv.gz': loss_curves.read_csv,
  'b.csv': loss_curves.read_csv,
  'b.json': lambda path: list(loading.read_fewrel_rows(path, False)),
  'b.json.gz': lambda path: list(loading.read_fewrel_rows(path, False)),
  'a.jsonl': lambda path: list(run_dir.read_lines(path)),
}


@pytest.mark.parametrize('name', WHOLE)
def test_what_must_be_read_at_once_must_be_small(name: str, tmp_path: pathlib.Path, small: None):
  content = b'{"a": "' + b'a' * 2000 + b'"}'
  (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith('.gz') else content)
  with pytest.raises(InputError, match='1,000|JSON'):
    WHOLE[name](tmp_path / name)


KEPT: dict[str, Callable[[pathlib.Path], object]] = {
  'a.txt': filters.load_word_list,
  'a.csv': filters.load_word_list,
  'a.jsonl': lambda path: list(documents.read_table_rows(str(path), 'strict')),
}


@pytest.mark.parametrize('name', KEPT)
def test_what_is_kept_whole_is_bounded(name: str, tmp_path: pathlib.Path, small: None):
  lines = [
    json.dumps({'word': 'a'}) if name == 'a.jsonl' else f'a{number}' for number in range(1000)
  ]
  (tmp_path / name).write_text('\n'.join(['word'] * (name == 'a.csv') + lines[:100]) + '\n')
  KEPT[name](tmp_path / name)
  (tmp_path / name).write_text('\n'.join(['word'] * (name == 'a.csv') + lines) + '\n')
  with pytest.raises(InputError, match='10,000'):
    KEPT[name](tmp_path / name)


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
def test_a_name_that_leads_out_is_refused(name: Any, tmp_path: pathlib.Path):
  home = tmp_path / 'home'
  home.mkdir()
  (home / 'out').symlink_to('/etc')
  (home / 'up').symlink_to('..')
  with pytest.raises(InputError, match=str(home)):
    files.resolve_inside(home, name, 'x')


def test_a_name_that_stays_inside_is_a_path(tmp_path: pathlib.Path):
  (tmp_path / 'home' / 'deep').mkdir(parents=True)
  (tmp_path / 'home' / 'link').symlink_to('deep')
  (tmp_path / 'alias').symlink_to('home')
  for name in ('a', 'deep/a', 'link/a', 'a..b', '...', ' a', 'a:b'[:1]):
    assert files.resolve_inside(tmp_path / 'alias', name, 'x') == tmp_path / 'alias' / name
  assert str(files.resolve_inside('gs://b/x', 'a/b', 'x')) == 'gs://b/x/a/b'


def leads_away(
  folder: pathlib.Path, link: bool, change: Callable[[dict[str, Any], str], None]
) -> None:
  """Lets a manifest name a file outside its folder, by a path or by a link."""
  manifest = json.loads((folder / run_dir.MANIFEST).read_text())
  (folder.parent / 'secret').write_text('secret')
  if link:
    (folder / 'link').symlink_to(folder.parent / 'secret')
  change(manifest, 'link' if link else '../secret')
  (folder / run_dir.MANIFEST).write_text(json.dumps(manifest))


def name_tokenizer(manifest: dict[str, Any], name: str) -> None:
  manifest['tokenizer']['file'] = name


def name_shard(manifest: dict[str, Any], name: str) -> None:
  manifest['splits']['test']['shards'][0]['file'] = name


def name_shard_of_none(manifest: dict[str, Any], name: str) -> None:
  manifest['splits']['test'] = {
    'rows': 0,
    'tokens': 0,
    'shards': [{'file': name, 'sha256': '', 'rows': 0}],
  }


@pytest.mark.parametrize('link', [False, True])
@pytest.mark.parametrize('change', [name_tokenizer, name_shard, name_shard_of_none])
def test_no_manifest_of_a_corpus_leads_out(
  change, link: bool, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  folder = shutil.copytree(tiny_corpus, tmp_path / 'a' / 'corpus')
  leads_away(folder, link, change)
  with pytest.raises(InputError, match='link|secret'):
    subset.write_subset(folder, np.arange(3), tmp_path / 'part' / 'part', {'kind': 'subset'}, {})
  assert (
    not (tmp_path / 'part' / 'secret').exists()
    and not (tmp_path / 'part' / 'part' / 'link').exists()
  )
  with pytest.raises(InputError, match='link|secret'):
    if change is name_tokenizer:
      with pytest.raises(InputError, match='link|secret'):
        overlap.open_tokenizer(folder, corpus.read_manifest(folder))
      run_setup.open_or_create_run(tiny_config.run_config(folder), tmp_path / 'run')
    else:
      corpus.load_split(folder, 'test')
