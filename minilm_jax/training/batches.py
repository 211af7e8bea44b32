"""Supplies the rows of each chunk, from a corpus on the devices or from its files.

Files are read one chunk ahead. Both sources give the same rows in the same order, because the rows
of a batch are a function of `(seed, step)`.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from minilm_jax.core import backend, distributed, progress, rng
from minilm_jax.core.config import RunConfig, SubsetConfig
from minilm_jax.data import corpus
from minilm_jax.data.rows import BatchWindow, Corpus, select_batch_rows
from minilm_jax.training import population, sharding
from minilm_jax.training.program import TrainProgram

MAX_CORPUS_SHARE = 0.5  # of free memory


@dataclasses.dataclass(frozen=True)
class ResidentSource:
  """Supplies the corpus, of which every device has a copy."""

  spec: Corpus

  def take(self, step: int, count: int) -> Corpus:
    """Returns the corpus."""
    return self.spec


class FileSource:
  """Supplies the batches of one chunk at a time, while a thread reads the next chunk.

  Every window has the size of the longest chunk, so one compiled program serves all chunks.
  """

  def __init__(
    self,
    config: RunConfig,
    program: TrainProgram,
    files: corpus.CorpusFiles,
    pool: concurrent.futures.Executor,
  ):
    self._config, self._files, self._pool = config, files, pool
    self._seeds = population.member_seeds(config)
    self._row_numbers = corpus.select_rows(config.subset, files)  # None for all rows
    self._count = int(files.ends[-1]) if self._row_numbers is None else len(self._row_numbers)
    self._sharding = population.member_sharding(program.mesh, program.strategy)
    self._members = () if program.strategy == 'single' else (len(self._seeds),)
    self._reads: dict[int, concurrent.futures.Future] = {}
    self._window = min(config.log.every, config.num_steps)
    self._order = self._build_order()
    shape = (*self._members, self._window, config.batch_size, files.manifest['length'])
    self.spec = self._build_window(
      jax.ShapeDtypeStruct(shape, files.shards[0].dtype, sharding=self._sharding),
      jax.ShapeDtypeStruct(self._members, np.int32, sharding=self._sharding),
    )

  def take(self, step: int, count: int) -> BatchWindow:
    """Returns the batches of a chunk, and starts to read the next chunk."""
    read = self._reads.pop(step) if step in self._reads else self._pool.submit(self._read, step)
    window = read.result()
    if step + count < self._config.num_steps:
      self._reads[step + count] = self._pool.submit(self._read, step + count)
    return window

  def _build_order(self) -> Callable[[np.uint32], jax.Array]:
    """Returns a jitted function from a step to the row numbers `[P S B]` of the next S batches."""
    seeds, steps = jnp.asarray(self._seeds)[:, None], jnp.arange(self._window)[None]

    @functools.partial(jnp.vectorize, signature='(),()->(B)')
    def select(seed: rng.Counter, step: rng.Counter) -> jax.Array:
      return select_batch_rows(seed, step, self._config.batch_size, self._count)[0]

    return jax.jit(lambda first: select(seeds, first + steps))

  def _read(self, step: int) -> BatchWindow:
    rows = np.asarray(self._order(np.uint32(step)))
    rows = rows if self._row_numbers is None else self._row_numbers[rows]
    rows = rows.reshape(*self._members, *rows.shape[1:])
    first = np.full(self._members, step, np.int32)

    def read_shard(index: Any) -> np.ndarray:
      return self._files[rows[index[:-1]]]

    shape = (*rows.shape, self._files.manifest['length'])
    tokens = jax.make_array_from_callback(shape, self._sharding, read_shard)
    return self._build_window(
      tokens, jax.make_array_from_callback(first.shape, self._sharding, lambda index: first[index])
    )

  def _build_window(self, tokens: Any, first: Any) -> BatchWindow:
    return BatchWindow(
      tokens, first, self._count, self._files.manifest['vocabulary'], self._files.manifest['hash']
    )


def load_resident(
  program: TrainProgram, folder: epath.PathLike, split: str, max_rows: int | None = None
) -> Corpus:
  """Copies a split of a corpus folder, or its first rows, to every device."""
  return sharding.replicate(corpus.load_split(folder, split, max_rows), program.mesh)


def fits_on_devices(program: TrainProgram, folder: epath.PathLike, subset: SubsetConfig) -> bool:
  """Returns whether the training rows of a recipe fit in half of the free memory of all hosts."""
  manifest = corpus.read_manifest(folder)
  rows = corpus.measure_subset(subset, folder, manifest)['rows']
  size = rows * manifest['length'] * np.dtype(manifest['dtype']).itemsize
  devices = program.mesh.local_devices  # the memory of other hosts cannot be read
  copies = len(devices) if devices[0].platform == 'cpu' else 1
  free = backend.read_free_bytes(devices[0])
  fits = free is None or size * copies <= MAX_CORPUS_SHARE * free
  # Sources of different kinds would give the processes different programs.
  return all(other_fits for (other_fits,) in distributed.allgather_ints(fits))


@contextlib.contextmanager
def open_batches(
  config: RunConfig, program: TrainProgram, folder: epath.PathLike
) -> Iterator[ResidentSource | FileSource]:
  """Yields the source of the rows of a run, from the corpus in `folder`."""
  if (
    config.corpus_placement == 'device'
    or config.corpus_placement == 'auto'
    and fits_on_devices(program, folder, config.subset)
  ):
    yield ResidentSource(_load_subset(config, program, folder))
    return
  progress.log(
    f'the corpus stays in files; rows are read one chunk of {config.log.every} updates ahead'
  )
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    yield FileSource(config, program, corpus.CorpusFiles(folder, corpus.TRAIN_SPLIT), pool)


def _load_subset(config: RunConfig, program: TrainProgram, folder: epath.PathLike) -> Corpus:
  """Copies the training rows of a recipe to every device; reads no other rows into memory."""
  files = corpus.CorpusFiles(folder, corpus.TRAIN_SPLIT)
  row_numbers = corpus.select_rows(config.subset, files)  # None for all rows
  tokens: Any = np.concatenate(files.shards) if row_numbers is None else files[row_numbers]
  return sharding.replicate(
    Corpus(tokens, files.manifest['vocabulary'], files.manifest['hash']), program.mesh
  )
