"""Parts of a corpus: nested, the same everywhere, refused where they are too large, and corpora
like any other.
"""

import doctest
import json
import pathlib
import shutil

import numpy as np
import pytest

from minilm_jax.core import files, run_dir
from minilm_jax.core.config import SubsetConfig
from minilm_jax.core.errors import InputError
from minilm_jax.core.files import read_json, write_json
from minilm_jax.data import corpus, subset
from minilm_jax.training import batches, pretrain, program
from tests.tiny_config import run_config

pytestmark = pytest.mark.usefixtures('fast_compile')


@pytest.fixture(scope='module')
def files(tiny_corpus: pathlib.Path) -> corpus.CorpusFiles:
  return corpus.CorpusFiles(tiny_corpus, 'train')


def test_examples_in_docstrings():
  assert doctest.testmod(subset).failed == 0


@pytest.mark.parametrize('seed', [0, 1, 42, 2**32 - 1])
def test_an_order_is_a_permutation_that_looks_random(seed: int):
  found = corpus.order_rows(4000, seed)
  assert sorted(found.tolist()) == list(range(4000))
  assert abs(np.corrcoef(found, np.arange(4000))[0, 1]) < 0.06  # 4 standard errors
  halves = np.abs(np.mean(found[:2000]) - 1999.5)
  assert halves < 4 * 4000 / np.sqrt(12 * 2000)


def test_another_number_is_another_order():
  assert len({tuple(corpus.order_rows(50, seed)) for seed in range(20)}) == 20


def test_an_order_is_written_down():
  """What it is must never change: a run names its articles by it."""
  assert corpus.order_rows(12, 0).tolist() == [1, 4, 5, 11, 7, 6, 9, 0, 10, 3, 2, 8]
  assert corpus.order_rows(12, 42).tolist() == [7, 4, 0, 2, 11, 10, 6, 5, 1, 8, 3, 9]


def test_smaller_subsets_are_inside_larger_ones(files: corpus.CorpusFiles):
  before: set[int] = set()
  count = int(files.ends[-1])
  for rows in (1, 2, 7, count // 2, count - 1, count):
    now = set(corpus.select_rows(SubsetConfig(rows, 0, 3), files).tolist())
    assert len(now) == rows and before < now
    before = now
  assert before == set(range(count))
  by_tokens = [
    set(corpus.select_rows(SubsetConfig(0, tokens, 3), files).tolist())
    for tokens in (64, 500, 5000)
  ]
  assert by_tokens[0] < by_tokens[1] < by_tokens[2]
  assert by_tokens[2] == set(
    corpus.select_rows(SubsetConfig(len(by_tokens[2]), 0, 3), files).tolist()
  )


def test_tokens_are_met_within_a_row(files: corpus.CorpusFiles):
  lengths = corpus.count_row_tokens(files)
  assert lengths.sum() == files.manifest['splits']['train']['tokens']
  for tokens in (64, 777, 4000, int(lengths.sum())):
    found = lengths[corpus.select_rows(SubsetConfig(0, tokens, 0), files)].sum()
    assert tokens - files.manifest['length'] < found <= tokens
  assert found == lengths.sum()


def test_a_subset_larger_than_the_corpus_is_refused_with_numbers(tiny_corpus: pathlib.Path):
  there = corpus.read_manifest(tiny_corpus)['splits']['train']
  for name in ('rows', 'tokens'):
    with pytest.raises(InputError, match=f'{there[name]:,} {name}') as caught:
      pretrain.validate(run_config(tiny_corpus, **{f'subset.{name}': there[name] + 1}))
    assert f'{there[name] + 1:,}' in caught.value.asked
  with pytest.raises(InputError, match='up to 64 tokens'):
    pretrain.validate(run_config(tiny_corpus, **{'subset.tokens': 63}))
  with pytest.raises(InputError, match='two sizes'):
    run_config(tiny_corpus, **{'subset.tokens': 630, 'subset.rows': 3})


@pytest.mark.parametrize('place', ['device', 'host'])
def test_only_the_rows_of_the_subset_are_trained_on(
  place: str, tiny_corpus: pathlib.Path, files: corpus.CorpusFiles
):
  config = run_config(tiny_corpus, corpus_placement=place, **{'subset.rows': 24})
  wanted = {row.tobytes() for row in files[corpus.select_rows(config.subset, files)]}
  with batches.open_batches(config, program.build_program(config), tiny_corpus) as source:
    rows = source.take(0, 2)
  assert rows.rows == 24
  found = np.asarray(rows.tokens).reshape(-1, files.manifest['length'])
  assert {row.tobytes() for row in found} <= wanted
  if place == 'device':
    assert len(found) == 24
  else:
    assert len({row.tobytes() for row in found[:24]}) == len(wanted)  # an epoch: each row once


def test_a_run_remembers_what_it_was_trained_on(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, files: corpus.CorpusFiles
):
  there = corpus.read_manifest(tiny_corpus)['splits']['train']
  for rows in (0, 24):
    pretrain.open_or_create_run(
      run_config(tiny_corpus, **{'subset.rows': rows}), tmp_path / str(rows)
    )
    found = read_json(tmp_path / str(rows) / run_dir.MANIFEST, 'it')['training']
    assert (
      found['rows'] == (rows or there['rows'])
      and found['of_rows'] == there['rows']
      and found['subset'] is None
    )
    assert (
      found['tokens']
      == corpus.count_row_tokens(files)[corpus.order_rows(there['rows'], 0)[: found['rows']]].sum()
    )
  with pytest.raises(InputError, match='subset.rows'):
    pretrain.open_or_create_run(run_config(tiny_corpus, **{'subset.rows': 25}), tmp_path / '24')


def test_a_part_is_a_corpus_with_the_splits_of_the_whole(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, files: corpus.CorpusFiles, capsys
):
  some = np.array([9, 2, 40])
  made = subset.write_subset(
    tiny_corpus, some, tmp_path / 'part', {'kind': 'subset'}, {'by': 'hand'}
  )
  whole, part = corpus.read_manifest(tiny_corpus), corpus.read_manifest(made)
  np.testing.assert_array_equal(corpus.load_split(made, 'train').tokens, files[some])
  for split in ('validation', 'test'):
    np.testing.assert_array_equal(
      corpus.load_split(made, split).tokens, corpus.load_split(tiny_corpus, split).tokens
    )
    assert part['splits'][split] == whole['splits'][split]
  assert part['tokenizer'] == whole['tokenizer'] and part['hash'] != whole['hash']
  assert part['subset'] == {
    'of': whole['hash'],
    'of_rows': whole['splits']['train']['rows'],
    'by': 'hand',
  }
  assert part['splits']['train']['tokens'] == corpus.count_row_tokens(files)[some].sum()
  before = {path: path.stat().st_mtime_ns for path in pathlib.Path(made).iterdir()}
  subset.write_subset(tiny_corpus, some, made, {'kind': 'subset'}, {'by': 'hand'})
  assert 'nothing to do' in capsys.readouterr().err
  assert {path: path.stat().st_mtime_ns for path in pathlib.Path(made).iterdir()} == before
  with pytest.raises(InputError, match='another recipe'):
    subset.write_subset(tiny_corpus, some, made, {'kind': 'subset', 'part': 2}, {})
  with pytest.raises(InputError, match='no row'):
    subset.write_subset(tiny_corpus, some[:0], tmp_path / 'none', {}, {})


def test_all_rows_are_the_same_corpus(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, files: corpus.CorpusFiles
):
  made = subset.write_subset(tiny_corpus, np.arange(int(files.ends[-1])), tmp_path / 'part', {}, {})
  assert corpus.read_manifest(made)['hash'] == corpus.read_manifest(tiny_corpus)['hash']


def test_a_part_cut_short_is_no_corpus(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch
):
  write = write_json

  def stop(path, value):
    if path.name == run_dir.MANIFEST:
      raise KeyboardInterrupt
    write(path, value)

  with monkeypatch.context() as patch:
    patch.setattr(files, 'write_json', stop)
    with pytest.raises(KeyboardInterrupt):
      subset.write_subset(tiny_corpus, np.arange(5), tmp_path / 'part', {}, {})
  with pytest.raises(InputError, match='no manifest.json'):
    corpus.read_manifest(tmp_path / 'part')
  again = subset.write_subset(tiny_corpus, np.arange(5), tmp_path / 'part', {}, {})
  straight = subset.write_subset(tiny_corpus, np.arange(5), tmp_path / 'straight', {}, {})
  assert json.dumps(corpus.read_manifest(again)) == json.dumps(corpus.read_manifest(straight))


def test_damaged_rows_are_no_part(tiny_corpus: pathlib.Path, tmp_path: pathlib.Path):
  copy = tmp_path / 'copy'
  shutil.copytree(tiny_corpus, copy)
  shard = copy / 'test-00000.npy'
  shard.write_bytes(shard.read_bytes()[:-2] + b'\0\0')
  with pytest.raises(InputError, match='sha256'):
    subset.write_subset(copy, np.arange(5), tmp_path / 'part', {}, {})
  assert not (tmp_path / 'part' / run_dir.MANIFEST).exists()
