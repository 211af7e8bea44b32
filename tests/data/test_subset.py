"""Corpora of selected rows: content, repeated and interrupted writing, damaged originals."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus, subset


@pytest.fixture(scope='module')
def corpus_files(tiny_corpus: pathlib.Path) -> corpus.CorpusFiles:
  return corpus.CorpusFiles(tiny_corpus, 'train')


@pytest.fixture(scope='module')
def manifest(tiny_corpus: pathlib.Path) -> dict:
  return corpus.read_manifest(tiny_corpus)


def test_a_subset_has_the_other_splits_of_the_corpus(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, corpus_files: corpus.CorpusFiles, manifest
):
  rows, arguments = np.array([9, 2, 40]), ({'kind': 'subset'}, {'by': 'hand'})
  folder = pathlib.Path(subset.write_subset(tiny_corpus, rows, tmp_path / 'part', *arguments))
  copied = corpus.read_manifest(folder)
  np.testing.assert_array_equal(corpus.load_split(folder, 'train').tokens, corpus_files[rows])
  for split in ('validation', 'test'):
    tokens = corpus.load_split(folder, split).tokens
    np.testing.assert_array_equal(tokens, corpus.load_split(tiny_corpus, split).tokens)
    assert copied['splits'][split] == manifest['splits'][split]
  assert copied['tokenizer'] == manifest['tokenizer'] and copied['hash'] != manifest['hash']
  of_rows = manifest['splits']['train']['rows']
  assert copied['subset'] == {'of': manifest['hash'], 'of_rows': of_rows, 'by': 'hand'}
  assert copied['splits']['train']['tokens'] == corpus.count_row_tokens(corpus_files)[rows].sum()
  before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
  subset.write_subset(tiny_corpus, rows, folder, *arguments)
  assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
  with pytest.raises(InputError, match='part'):
    subset.write_subset(tiny_corpus, rows, folder, {'kind': 'subset', 'part': 2}, {})
  with pytest.raises(InputError, match='no row'):
    subset.write_subset(tiny_corpus, rows[:0], tmp_path / 'empty', {}, {})


def test_a_subset_of_all_rows_has_the_hash_of_the_corpus(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, corpus_files: corpus.CorpusFiles, manifest
):
  rows = np.arange(int(corpus_files.ends[-1]))
  folder = subset.write_subset(tiny_corpus, rows, tmp_path / 'part', {}, {})
  assert corpus.read_manifest(folder)['hash'] == manifest['hash']


def test_an_interrupted_subset_is_not_a_corpus(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch
):
  write_json = files.write_json

  def stop_at_manifest(path, value):
    if path.name == run_dir.MANIFEST:
      raise KeyboardInterrupt
    write_json(path, value)

  with monkeypatch.context() as patch:
    patch.setattr(files, 'write_json', stop_at_manifest)
    with pytest.raises(KeyboardInterrupt):
      subset.write_subset(tiny_corpus, np.arange(5), tmp_path / 'part', {}, {})
  with pytest.raises(InputError, match='manifest.json'):
    corpus.read_manifest(tmp_path / 'part')
  resumed, fresh = (
    subset.write_subset(tiny_corpus, np.arange(5), tmp_path / name, {}, {})
    for name in ('part', 'fresh')
  )
  assert json.dumps(corpus.read_manifest(resumed)) == json.dumps(corpus.read_manifest(fresh))


def test_damaged_rows_are_refused(tiny_corpus: pathlib.Path, tmp_path: pathlib.Path):
  copy = shutil.copytree(tiny_corpus, tmp_path / 'copy')
  shard = copy / 'test-00000.npy'
  shard.write_bytes(shard.read_bytes()[:-2] + b'\0\0')
  with pytest.raises(InputError, match='sha256'):
    subset.write_subset(copy, np.arange(5), tmp_path / 'part', {}, {})
  assert not (tmp_path / 'part' / run_dir.MANIFEST).exists()
