"""Subsets of a corpus: runs on them, and corpora of chosen rows."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from minilm_jax.core import files, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus, subset
from minilm_jax.training import batches, program, run_setup
from tests.tiny_config import run_config

pytestmark = pytest.mark.usefixtures('fast_compile')


@pytest.fixture(scope='module')
def corpus_files(tiny_corpus: pathlib.Path) -> corpus.CorpusFiles:
  return corpus.CorpusFiles(tiny_corpus, 'train')


@pytest.fixture(scope='module')
def manifest(tiny_corpus: pathlib.Path) -> dict:
  return corpus.read_manifest(tiny_corpus)


def test_a_subset_larger_than_the_corpus_is_refused_with_numbers(
  tiny_corpus: pathlib.Path, manifest
):
  entry = manifest['splits']['train']
  for name in ('rows', 'tokens'):
    config = run_config(tiny_corpus, **{f'subset.{name}': entry[name] + 1})
    with pytest.raises(InputError, match=f'{entry[name]:,} {name}') as refused:
      run_setup.validate(config)
    assert f'{entry[name] + 1:,}' in refused.value.asked
  with pytest.raises(InputError, match='subset.tokens=63'):
    run_setup.validate(run_config(tiny_corpus, **{'subset.tokens': 63}))
  with pytest.raises(InputError, match='subset'):
    run_config(tiny_corpus, **{'subset.tokens': 630, 'subset.rows': 3})


@pytest.mark.parametrize('placement', ['device', 'host'])
def test_only_the_rows_of_the_subset_are_trained_on(
  placement: str, tiny_corpus: pathlib.Path, corpus_files: corpus.CorpusFiles
):
  config = run_config(tiny_corpus, corpus_placement=placement, **{'subset.rows': 24})
  selected = corpus_files[corpus.select_rows(config.subset, corpus_files)]
  expected = {row.tobytes() for row in selected}
  with batches.open_batches(config, program.build_program(config), tiny_corpus) as source:
    window = source.take(0, 2)
  assert window.rows == 24
  rows = [row.tobytes() for row in np.asarray(window.tokens).reshape(-1, selected.shape[1])]
  assert set(rows) <= expected
  if placement == 'device':
    assert len(rows) == 24
  else:
    assert set(rows[:24]) == expected  # an epoch: each row once


def test_a_run_remembers_its_subset(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, corpus_files: corpus.CorpusFiles, manifest
):
  of_rows, row_tokens = manifest['splits']['train']['rows'], corpus.count_row_tokens(corpus_files)
  for rows in (0, 24):
    config = run_config(tiny_corpus, **{'subset.rows': rows})
    run_setup.open_or_create_run(config, tmp_path / str(rows))
    record = files.read_json(tmp_path / str(rows) / run_dir.MANIFEST, 'it')['training']
    assert record['rows'] == (rows or of_rows)
    assert record['of_rows'] == of_rows and record['subset'] is None
    assert record['tokens'] == row_tokens[corpus.order_rows(of_rows, 0)[: record['rows']]].sum()
  with pytest.raises(InputError, match='subset.rows'):
    run_setup.open_or_create_run(run_config(tiny_corpus, **{'subset.rows': 25}), tmp_path / '24')


def test_a_subset_is_a_corpus_with_the_splits_of_the_whole(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, corpus_files: corpus.CorpusFiles, manifest
):
  rows, arguments = np.array([9, 2, 40]), ({'kind': 'subset'}, {'by': 'hand'})
  made = pathlib.Path(subset.write_subset(tiny_corpus, rows, tmp_path / 'part', *arguments))
  part = corpus.read_manifest(made)
  np.testing.assert_array_equal(corpus.load_split(made, 'train').tokens, corpus_files[rows])
  for split in ('validation', 'test'):
    copy, original = (corpus.load_split(folder, split).tokens for folder in (made, tiny_corpus))
    np.testing.assert_array_equal(copy, original)
    assert part['splits'][split] == manifest['splits'][split]
  assert part['tokenizer'] == manifest['tokenizer'] and part['hash'] != manifest['hash']
  of_rows = manifest['splits']['train']['rows']
  assert part['subset'] == {'of': manifest['hash'], 'of_rows': of_rows, 'by': 'hand'}
  assert part['splits']['train']['tokens'] == corpus.count_row_tokens(corpus_files)[rows].sum()
  before = {path: path.stat().st_mtime_ns for path in made.iterdir()}
  subset.write_subset(tiny_corpus, rows, made, *arguments)
  assert {path: path.stat().st_mtime_ns for path in made.iterdir()} == before
  with pytest.raises(InputError, match='part'):
    subset.write_subset(tiny_corpus, rows, made, {'kind': 'subset', 'part': 2}, {})
  with pytest.raises(InputError, match='no row'):
    subset.write_subset(tiny_corpus, rows[:0], tmp_path / 'none', {}, {})


def test_all_rows_are_the_same_corpus(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, corpus_files: corpus.CorpusFiles, manifest
):
  rows = np.arange(int(corpus_files.ends[-1]))
  made = subset.write_subset(tiny_corpus, rows, tmp_path / 'part', {}, {})
  assert corpus.read_manifest(made)['hash'] == manifest['hash']


def test_an_interrupted_subset_is_no_corpus(
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
