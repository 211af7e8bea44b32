"""Corpora: subsets are nested, damaged folders are refused."""

import itertools
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from etils import epath

from minilm_jax.core import files, run_dir
from minilm_jax.core.config import SubsetConfig
from minilm_jax.core.corpus_config import SPLITS
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus

Damage = Callable[[pathlib.Path, dict[str, Any]], None]  # changes a shard and a manifest


@pytest.mark.parametrize('split', SPLITS)
def test_a_split_has_the_tokens_of_its_files(tiny_corpus, split: str):
  manifest = corpus.read_manifest(tiny_corpus)
  loaded, shards = corpus.load_split(tiny_corpus, split), manifest['splits'][split]['shards']
  tokens = np.concatenate([np.load(tiny_corpus / shard['file']) for shard in shards])
  np.testing.assert_array_equal(loaded.tokens, tokens)
  assert loaded.tokens.dtype == 'uint16' and (loaded.rows, loaded.length) == tokens.shape
  assert (loaded.vocab_size, loaded.hash) == (manifest['vocabulary'], manifest['hash'])
  rows = np.array([[0, len(tokens) - 1]])
  np.testing.assert_array_equal(corpus.CorpusFiles(tiny_corpus, split)[rows], tokens[rows])


def remove(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  shard.unlink()


def truncate(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  shard.write_bytes(shard.read_bytes()[:-64])


def flip_a_bit(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  data = bytearray(shard.read_bytes())
  data[-5] ^= 1
  shard.write_bytes(data)


def sign(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  manifest['splits']['test']['shards'][0]['sha256'] = files.hash_file(shard)


def truncate_and_sign(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  truncate(shard, manifest)
  sign(shard, manifest)


def save_rows(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
  """Changes the rows and updates the checksum."""

  def damage(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
    np.save(shard, change(np.load(shard)))
    sign(shard, manifest)

  return damage


def use_a_larger_id(rows: np.ndarray) -> np.ndarray:
  rows[3, 5] = 512
  return rows


def compress(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  with shard.open('wb') as file:
    np.savez(file, rows=np.zeros((2, 64), 'uint16'))
  sign(shard, manifest)


def leave_the_folder(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  shutil.copy(shard, shard.parent.parent / 'elsewhere.npy')
  manifest['splits']['test']['shards'][0]['file'] = '../elsewhere.npy'


def name_the_parent(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  manifest['splits']['test']['shards'][0]['file'] = '..'


def change_the_format(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  manifest['format'] += 1


def empty_the_shard(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  save_rows(lambda rows: rows[:0])(shard, manifest)
  manifest['splits']['test']['shards'][0]['rows'] = 0


def empty_the_split(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  manifest['splits']['test'] = {'rows': 0, 'tokens': 0, 'shards': []}


@pytest.mark.parametrize(
  'damage, message',
  [
    (remove, 'no such file'),
    (truncate, 'sha256'),
    (truncate_and_sign, 'not a plain array'),
    (flip_a_bit, 'sha256'),
    (save_rows(use_a_larger_id), 'id 512 in a vocabulary of 512'),
    (save_rows(lambda rows: rows[1:]), 'uint16 '),
    (save_rows(lambda rows: rows.astype('int64')), 'int64 '),
    (save_rows(lambda rows: np.array([{'a': 1}], dtype=object)), 'not a plain array'),
    (compress, 'not a plain array'),
    (leave_the_folder, '../elsewhere.npy'),
    (name_the_parent, "'..'"),
    (change_the_format, 'format 2'),
    (empty_the_shard, 'no rows'),
    (empty_the_split, 'no rows'),
  ],
)
def test_a_damaged_folder_is_refused(damage: Damage, message: str, tiny_corpus, tmp_path):
  """Damages the first shard of the test split or the manifest."""
  folder = shutil.copytree(tiny_corpus, tmp_path / 'corpus')
  manifest = json.loads((folder / run_dir.MANIFEST).read_text())
  damage(folder / manifest['splits']['test']['shards'][0]['file'], manifest)
  (folder / run_dir.MANIFEST).write_text(json.dumps(manifest))
  with pytest.raises(InputError) as refused:
    corpus.load_split(folder, 'test')
  assert message in refused.value.found


def test_a_folder_may_have_any_spelling(tiny_corpus):
  folders = (epath.Path(tiny_corpus) / '.', f'{tiny_corpus}/')
  assert len({corpus.load_split(folder, 'test').rows for folder in folders}) == 1


@pytest.mark.parametrize('content', [None, '{}', '[1]', '{"format"'])
def test_a_folder_that_is_not_a_corpus_is_refused(content: str | None, tmp_path):
  if content:
    (tmp_path / run_dir.MANIFEST).write_text(content)
  with pytest.raises(InputError, match='manifest.json'):
    corpus.read_manifest(tmp_path)


@pytest.mark.parametrize('seed', [0, 1, 42, 2**32 - 1])
def test_a_fixed_order_is_a_permutation_that_looks_random(seed: int):
  order = corpus.order_rows(4000, seed)
  assert sorted(order.tolist()) == list(range(4000))
  assert abs(np.corrcoef(order, np.arange(4000))[0, 1]) < 0.06  # 4 standard errors
  assert np.abs(np.mean(order[:2000]) - 1999.5) < 4 * 4000 / np.sqrt(12 * 2000)


def test_fixed_orders_differ_by_seed():
  assert len({tuple(corpus.order_rows(50, seed)) for seed in range(20)}) == 20


def test_a_fixed_order_never_changes():
  """Stored runs name the articles of their subset by seed and size."""
  assert corpus.order_rows(12, 0).tolist() == [1, 4, 5, 11, 7, 6, 9, 0, 10, 3, 2, 8]
  assert corpus.order_rows(12, 42).tolist() == [7, 4, 0, 2, 11, 10, 6, 5, 1, 8, 3, 9]


def test_smaller_subsets_are_inside_larger_ones(tiny_corpus):
  corpus_files = corpus.CorpusFiles(tiny_corpus, 'train')

  def select(rows: int = 0, tokens: int = 0) -> set[int]:
    return set(corpus.select_rows(SubsetConfig(rows, tokens, 3), corpus_files).tolist())

  count = int(corpus_files.ends[-1])
  subsets = [select(rows) for rows in (1, 2, 7, count // 2, count - 1, count)]
  assert [len(rows) for rows in subsets] == [1, 2, 7, count // 2, count - 1, count]
  assert all(smaller < larger for smaller, larger in itertools.pairwise(subsets))
  assert subsets[-1] == set(range(count))
  by_tokens = [select(tokens=tokens) for tokens in (64, 500, 5000)]
  assert by_tokens[0] < by_tokens[1] < by_tokens[2] == select(len(by_tokens[2]))


def test_a_subset_by_tokens_is_at_most_a_row_smaller(tiny_corpus):
  corpus_files = corpus.CorpusFiles(tiny_corpus, 'train')
  manifest = corpus_files.manifest
  row_tokens = corpus.count_row_tokens(corpus_files)
  total = manifest['splits']['train']['tokens']
  assert row_tokens.sum() == total
  for tokens in (64, 777, 4000, total):
    size = row_tokens[corpus.select_rows(SubsetConfig(0, tokens, 0), corpus_files)].sum()
    assert tokens - manifest['length'] < size <= tokens
  assert size == total


@pytest.mark.parametrize('name', ['rows', 'tokens'])
def test_a_subset_larger_than_the_training_split_is_refused(name: str, tiny_corpus):
  manifest = corpus.read_manifest(tiny_corpus)
  size = manifest['splits']['train'][name]
  corpus.check_subset(SubsetConfig(**{name: size}), manifest, tiny_corpus)
  with pytest.raises(InputError, match=f'{size:,} {name}') as refused:
    corpus.check_subset(SubsetConfig(**{name: size + 1}), manifest, tiny_corpus)
  assert f'subset.{name}={size + 1:,}' in refused.value.asked


def test_a_subset_smaller_than_a_row_or_of_two_sizes_is_refused(tiny_corpus):
  manifest = corpus.read_manifest(tiny_corpus)
  with pytest.raises(InputError, match='subset.tokens=63'):
    corpus.check_subset(SubsetConfig(tokens=63), manifest, tiny_corpus)
  with pytest.raises(InputError, match='subset.tokens=630'):
    SubsetConfig(rows=3, tokens=630)


def test_a_subset_is_measured_by_its_rows_and_tokens(tiny_corpus):
  manifest = corpus.read_manifest(tiny_corpus)
  row_tokens = corpus.count_row_tokens(corpus.CorpusFiles(tiny_corpus, 'train'))
  for rows in (len(row_tokens), 24):
    size = corpus.measure_subset(SubsetConfig(rows), tiny_corpus, manifest)
    tokens = row_tokens[corpus.order_rows(len(row_tokens), 0)[:rows]].sum()
    assert size == {'rows': rows, 'tokens': tokens}
  entry = manifest['splits']['train']
  size = corpus.measure_subset(SubsetConfig(), tiny_corpus, manifest)
  assert size == {'rows': entry['rows'], 'tokens': entry['tokens']}
