"""The corpus on the device: which rows make a batch is a keyed bijection, and a damaged folder is
refused.
"""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from minilm_jax.core import corpus_config, files, run_dir
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus

SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 100, 255, 256, 257, 1000, 4097)


def key(seed: int | jax.Array) -> jax.Array:
  return jax.random.bits(jax.random.key(seed), (6,), 'uint32')


def batches(seed: int, batch_size: int, count: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows and epochs of the first steps, `[steps, batch_size]`."""
  draw = jax.jit(jax.vmap(lambda step: corpus.rows_at_step(seed, step, batch_size, count)))
  return tuple(np.asarray(x) for x in draw(jnp.arange(steps)))


@pytest.mark.parametrize('size', SIZES)
def test_permute_is_a_bijection(size: int):
  for seed in range(3):
    order = np.asarray(corpus.permute_rows(jnp.arange(size, dtype=jnp.uint32), size, key(seed)))
    assert sorted(order.tolist()) == list(range(size))


def test_permute_of_many_rows_does_not_overflow():
  size = 2**31 - 1
  places = jnp.arange(1000, dtype=jnp.uint32)
  places = jnp.concatenate([places, jnp.uint32(size - 1) - places])
  order = np.asarray(corpus.permute_rows(places, size, key(0)))
  assert len(set(order.tolist())) == 2000 and order.max() < size


def test_orders_look_random():
  """Over many keys each row is equally likely at a place, and neighbours do not stay neighbours."""
  size, draws = 37, 4000
  draw = jax.jit(
    jax.vmap(lambda seed: corpus.permute_rows(jnp.arange(size, dtype=jnp.uint32), size, key(seed)))
  )
  orders = np.asarray(draw(jnp.arange(draws)))
  for values in (orders[:, 0], orders[:, 17], (orders[:, 9] - orders[:, 8].astype(int)) % size):
    counts = np.bincount(values, minlength=size)
    expected = counts[counts > 0].mean()  # a difference of 0 cannot be
    # chi-square, 5 sigma
    assert ((counts[counts > 0] - expected) ** 2 / expected).sum() < 36 + 5 * np.sqrt(2 * 36)


@pytest.mark.parametrize('count, batch_size', [(10, 4), (7, 7), (3, 8), (64, 16), (1, 3)])
def test_each_row_comes_once_an_epoch(count: int, batch_size: int):
  """Also where an epoch ends inside a batch, and where a batch holds several epochs."""
  rows, epochs = batches(0, batch_size, count, steps=-(-3 * count // batch_size))
  np.testing.assert_array_equal(epochs.ravel(), np.arange(epochs.size) // count)
  for epoch in range(3):
    assert sorted(rows[epochs == epoch].tolist()) == list(range(count))


def test_orders_differ_by_epoch_and_by_seed():
  one, _ = batches(0, 50, 50, steps=2)
  other, _ = batches(1, 50, 50, steps=2)
  assert len({tuple(order) for order in (*one, *other)}) == 4


def test_a_step_is_the_same_whenever_it_is_asked_for():
  rows, epochs = batches(3, 4, 10, steps=20)
  for step in (0, 7, 19):
    found = corpus.rows_at_step(3, step, 4, 10)
    np.testing.assert_array_equal(found[0], rows[step])
    np.testing.assert_array_equal(found[1], epochs[step])


def test_the_last_step_of_the_longest_run_does_not_wrap():
  rows, epochs = corpus.rows_at_step(0, 2**24 - 1, 256, 1000)
  places = (2**24 - 1) * 256 + np.arange(256)
  np.testing.assert_array_equal(epochs, places // 1000)


def test_a_split_comes_to_the_device_as_it_lies_on_disk(tiny_corpus: pathlib.Path):
  described = corpus.read_manifest(tiny_corpus)
  for split in corpus_config.SPLITS:
    found, shards = corpus.load_split(tiny_corpus, split), described['splits'][split]['shards']
    np.testing.assert_array_equal(
      found.tokens, np.concatenate([np.load(tiny_corpus / s['file']) for s in shards])
    )
    assert found.tokens.dtype == 'uint16' and (found.rows, found.length) == found.tokens.shape
    assert (found.vocabulary, found.hash) == (described['vocabulary'], described['hash'])


def test_a_corpus_is_a_pytree_of_its_tokens(tiny_corpus: pathlib.Path):
  found = corpus.load_split(tiny_corpus, 'test')
  assert jax.tree.leaves(found) == [found.tokens]
  assert jax.jit(lambda c: c)(found).hash == found.hash


def damage(folder: pathlib.Path, change: Callable[[pathlib.Path, dict[str, Any]], None]) -> None:
  """Applies `change(shard, manifest)` to the first shard of the test split."""
  manifest = json.loads((folder / run_dir.MANIFEST).read_text())
  change(folder / manifest['splits']['test']['shards'][0]['file'], manifest)
  (folder / run_dir.MANIFEST).write_text(json.dumps(manifest))


def shard_of(manifest: dict[str, Any]) -> dict[str, Any]:
  return manifest['splits']['test']['shards'][0]


def remove(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  shard.unlink()


def truncate(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  shard.write_bytes(shard.read_bytes()[:-64])


def truncate_and_sign(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  truncate(shard, manifest)
  shard_of(manifest)['sha256'] = files.hash_file(shard)


def flip_a_bit(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  data = bytearray(shard.read_bytes())
  data[-5] ^= 1
  shard.write_bytes(data)


def sign(shard: pathlib.Path, manifest: dict[str, Any], rows: np.ndarray) -> None:
  np.save(shard, rows)
  shard_of(manifest)['sha256'] = files.hash_file(shard)


def use_a_larger_id(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  rows = np.load(shard)
  rows[3, 5] = manifest['vocabulary']
  sign(shard, manifest, rows)


def lose_a_row(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  sign(shard, manifest, np.load(shard)[1:])


def change_the_type(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  sign(shard, manifest, np.load(shard).astype('int64'))


def pickle_it(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  sign(shard, manifest, np.array([{'a': 1}], dtype=object))


def compress_it(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  with shard.open('wb') as file:
    np.savez(file, rows=np.zeros((2, 64), 'uint16'))
  shard_of(manifest)['sha256'] = files.hash_file(shard)


def leave_the_folder(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  shutil.copy(shard, shard.parent.parent / 'elsewhere.npy')
  shard_of(manifest)['file'] = '../elsewhere.npy'


def name_the_folder_above(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  shard_of(manifest)['file'] = '..'


def use_another_format(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  manifest['format'] += 1


def empty_the_split(shard: pathlib.Path, manifest: dict[str, Any]) -> None:
  manifest['splits']['test'] = {'rows': 0, 'tokens': 0, 'shards': []}


@pytest.mark.parametrize(
  'change, said',
  [
    (remove, 'no such file'),
    (truncate, 'sha256'),
    (truncate_and_sign, 'no plain array'),
    (flip_a_bit, 'sha256'),
    (use_a_larger_id, 'id 512 in a vocabulary of 512'),
    (lose_a_row, 'uint16 '),
    (change_the_type, 'int64 '),
    (pickle_it, 'no plain array'),
    (compress_it, 'no plain array'),
    (leave_the_folder, 'no such file'),
    (name_the_folder_above, 'no such file'),
    (use_another_format, 'format 2'),
    (empty_the_split, 'no rows'),
  ],
)
def test_a_damaged_folder_is_refused(
  change, said: str, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  folder = shutil.copytree(tiny_corpus, tmp_path / 'corpus')
  damage(folder, change)
  with pytest.raises(InputError) as refused:
    corpus.load_split(folder, 'test')
  assert said in refused.value.found


def test_a_path_that_leads_away_may_come_from_epath(tiny_corpus: pathlib.Path):
  assert (
    corpus.load_split(epath.Path(tiny_corpus) / '.', 'test').rows
    == corpus.load_split(f'{tiny_corpus}/', 'test').rows
  )


@pytest.mark.parametrize(
  'content, said',
  [
    (None, 'no manifest.json'),
    ('{}', 'not a corpus manifest'),
    ('[1]', 'not a corpus'),
    ('{"format"', 'not JSON'),
  ],
)
def test_a_folder_that_is_no_corpus_is_refused(
  content: str | None, said: str, tmp_path: pathlib.Path
):
  if content:
    (tmp_path / run_dir.MANIFEST).write_text(content)
  with pytest.raises(InputError, match=said):
    corpus.read_manifest(tmp_path)
