"""Rows from files equal the rows of the resident corpus, and are read one chunk ahead."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minilm_jax.core import distributed, run_dir
from minilm_jax.data import corpus
from minilm_jax.data.rows import select_batch_rows
from minilm_jax.model.initialization import flatten
from minilm_jax.training import batches, checkpoint, run
from minilm_jax.training.program import build_program
from tests.tiny_config import UPDATES, make_run_config


@pytest.mark.parametrize('members', [1, 3])
def test_both_sources_give_the_same_batches(members: int, tiny_corpus):
  """Rows are equal for every member, within an epoch and across its end."""
  config = make_run_config(tiny_corpus, corpus_placement='host', **{'population.members': members})
  program, resident_rows = build_program(config), corpus.load_split(tiny_corpus, 'train')
  with batches.open_batches(config, program, tiny_corpus) as source:
    windows = {done: source.take(done, 2) for done in (0, 2, 4, 1000)}
    shape = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), source.spec)
    assert all(
      jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), window) == shape
      for window in windows.values()
    )
  for done, window in windows.items():
    assert (
      window.rows == resident_rows.rows
      and window.length == resident_rows.length
      and window.hash == resident_rows.hash
    )
    assert np.ravel(window.first).tolist() == [done] * members
    tokens = np.asarray(window.tokens).reshape(members, 2, 16, -1)
    for member in range(members):
      for step in (done, done + 1):
        row, _ = select_batch_rows(member, step, 16, resident_rows.rows)
        expected = resident_rows.gather(jnp.int32(step), row, jnp.arange(16))
        np.testing.assert_array_equal(tokens[member, step - done], expected)


def test_a_window_has_no_more_steps_than_the_run(tiny_corpus):
  config = make_run_config(
    tiny_corpus,
    corpus_placement='host',
    **{'log.every': 1000, 'eval.every': 1000, 'checkpoint.every': 1000, 'num_steps': 3},
  )
  with batches.open_batches(config, build_program(config), tiny_corpus) as source:
    assert source.spec.tokens.shape[:2] == (3, 16)


@pytest.mark.parametrize('changes', [{}, {'population.members': 2, 'mesh.data': 2}], ids=str)
def test_a_run_does_not_depend_on_the_placement(changes: dict[str, int], tiny_corpus, tmp_path):
  """The last chunk may be shorter, and devices may share a batch."""
  states = []
  for placement in ('device', 'host'):
    config = make_run_config(
      tiny_corpus, corpus_placement=placement, **{'log.every': 4, 'num_steps': 11, **changes}
    )
    folder = tmp_path / placement
    run.pretrain(config, folder)
    state = checkpoint.restore(folder, build_program(config).shapes, 11)
    lines = [
      (line['step'], line['split'], line['loss'])
      for line in run_dir.read_lines(folder / run_dir.METRICS)
    ]
    states.append((flatten(state), lines))
  (state, lines), (other, others) = states
  assert [line[:2] for line in lines] == [line[:2] for line in others]
  np.testing.assert_allclose([line[2] for line in lines], [line[2] for line in others], rtol=1e-5)
  for name, leaf in state.items():
    np.testing.assert_allclose(other[name], leaf, atol=5e-5, err_msg=name)


def test_the_next_chunk_is_read_ahead(tiny_corpus, monkeypatch):
  """A finished read causes no wait; no chunk is read past the end."""
  config = make_run_config(tiny_corpus, corpus_placement='host')
  program, steps_read = build_program(config), []
  original = corpus.CorpusFiles.__getitem__

  def slow(self: corpus.CorpusFiles, rows: np.ndarray) -> np.ndarray:
    steps_read.append(rows.shape)
    time.sleep(0.3)
    return original(self, rows)

  monkeypatch.setattr(corpus.CorpusFiles, '__getitem__', slow)
  with batches.open_batches(config, program, tiny_corpus) as source:
    source.take(8, 2)
    time.sleep(0.6)  # a chunk
    before = time.monotonic()
    source.take(10, 2)
    assert time.monotonic() - before < 0.25
  assert len(steps_read) == 2 and UPDATES == 12


@pytest.mark.parametrize('subset', [{}, {'rows': 100}, {'tokens': 3000}], ids=str)
def test_rows_larger_than_half_of_the_free_memory_stay_in_files(
  subset: dict[str, int], tiny_corpus, monkeypatch
):
  config = make_run_config(tiny_corpus, **{f'subset.{name}': n for name, n in subset.items()})
  program, files = build_program(config), corpus.CorpusFiles(tiny_corpus, 'train')
  row_numbers = corpus.select_rows(config.subset, files)
  num_rows = int(files.ends[-1]) if row_numbers is None else len(row_numbers)
  size = num_rows * 64 * 2  # rows of 64 tokens of two bytes
  for free, expected in ((None, True), (2 * size, True), (2 * size - 2, False)):
    monkeypatch.setattr(batches.backend, 'read_free_bytes', lambda device, free=free: free)
    assert batches.fits_on_devices(program, tiny_corpus, config.subset) is expected
    # Another host has too little memory.
    with monkeypatch.context() as patch:
      patch.setattr(distributed, 'allgather_ints', lambda fits: [(fits,), (False,)])
      assert not batches.fits_on_devices(program, tiny_corpus, config.subset)


def test_files_of_several_shards_are_one_array():
  files = corpus.CorpusFiles.__new__(corpus.CorpusFiles)
  files.shards, files.manifest = (
    [np.arange(6, dtype=np.uint16).reshape(3, 2), np.array([[6, 7]], np.uint16)],
    {'length': 2},
  )
  files.ends = np.cumsum([3, 1])
  np.testing.assert_array_equal(
    files[np.array([[3, 0], [2, 2]])], [[[6, 7], [0, 1]], [[4, 5], [4, 5]]]
  )


@pytest.mark.parametrize('placement', ['device', 'host'])
def test_batches_have_only_rows_of_the_subset(placement: str, tiny_corpus):
  config = make_run_config(tiny_corpus, corpus_placement=placement, **{'subset.rows': 24})
  corpus_files = corpus.CorpusFiles(tiny_corpus, 'train')
  selected = corpus_files[corpus.select_rows(config.subset, corpus_files)]
  expected = {row.tobytes() for row in selected}
  with batches.open_batches(config, build_program(config), tiny_corpus) as source:
    window = source.take(0, 2)
  assert window.rows == 24
  rows = [row.tobytes() for row in np.asarray(window.tokens).reshape(-1, selected.shape[1])]
  assert set(rows) <= expected
  # The device has all rows of the subset; files give two batches, whose first 24 rows are an epoch.
  assert len(rows) == (24 if placement == 'device' else 32) and set(rows[:24]) == expected
