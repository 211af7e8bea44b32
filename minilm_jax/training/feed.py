"""Where the rows of a chunk come from: a corpus that lies on the devices, or its files, read one chunk ahead.

Both give the same rows in the same order, for which rows make a batch is arithmetic on `(seed, step)`.
"""

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from minilm_jax import backend, progress, rng
from minilm_jax.config import RunConfig
from minilm_jax.language import corpus as corpora
from minilm_jax.language import subset
from minilm_jax.language.corpus import Corpus, Window
from minilm_jax.training import population, sharding
from minilm_jax.training.engine import Engine

_SHARE = 0.5  # of the free memory, the most that a corpus may take for itself
Supply = Callable[[int, int], Corpus | Window]


def resident(engine: Engine, folder: epath.PathLike, split: str, most: int | None = None) -> Corpus:
  """A split of a corpus folder, or its first rows, on every device."""
  return sharding.everywhere(corpora.load(folder, split, most), engine.mesh)


def fits(engine: Engine, folder: epath.PathLike, most: int = 0) -> bool:
  """Whether the training split, or so many rows of it, has room on every device, with as much again left over."""
  described = corpora.manifest(folder)
  size = (most or described['splits']['train']['rows']) * described['length'] * np.dtype(described['dtype']).itemsize
  device = engine.mesh.devices.flat[0]
  copies = len(engine.mesh.local_devices) if device.platform == 'cpu' else 1
  room = backend.free_bytes(device)
  return room is None or size * copies <= _SHARE * room


@contextlib.contextmanager
def open_supply(config: RunConfig, engine: Engine, folder: epath.PathLike) -> Iterator[Supply]:
  """Yields `supply(done, count)`: what the chunk of `count` updates after the first `done` reads its rows from."""
  if config.corpus_on == 'device' or config.corpus_on == 'auto' and fits(engine, folder, config.subset.rows):
    corpus = _resident_part(config, engine, folder)
    yield lambda done, count: corpus
    return
  progress.say(f'the corpus stays in its files; rows are read a chunk of {config.log.every} updates ahead')
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    yield _ahead(config, engine, corpora.Files(folder, 'train'), pool)


def _resident_part(config: RunConfig, engine: Engine, folder: epath.PathLike) -> Corpus:
  """What a recipe trains on, on every device; of a part no more than that is read into memory."""
  if not config.subset.rows and not config.subset.tokens:
    return resident(engine, folder, subset.TRAIN)
  files = corpora.Files(folder, subset.TRAIN)
  some = Corpus(files[subset.chosen(config.subset, files)], files.manifest['vocabulary'], files.manifest['hash'])
  return sharding.everywhere(some, engine.mesh)


def _ahead(config: RunConfig, engine: Engine, files: corpora.Files, pool: concurrent.futures.Executor) -> Supply:
  """Reads the next chunk while one is trained on; a chunk is as large as the longest, for one program serves all."""
  read = _reader(config, engine, files)
  coming: dict[int, concurrent.futures.Future] = {}

  def supply(done: int, count: int) -> Window:
    window = (coming.pop(done) if done in coming else pool.submit(read, done)).result()
    if done + count < config.updates:
      coming[done + count] = pool.submit(read, done + count)
    return window

  return supply


def _reader(config: RunConfig, engine: Engine, files: corpora.Files) -> Callable[[int], Window]:
  some, seeds = subset.chosen(config.subset, files), np.atleast_1d(population.seeds(config))
  count = int(files.ends[-1]) if some is None else len(some)
  steps = np.arange(config.log.every)
  place = population.place_of(engine.mesh, engine.how)

  @jax.jit
  def rows(done: rng.Counter) -> jax.Array:
    def of(seed: rng.Counter, step: rng.Counter) -> jax.Array:
      return corpora.rows(seed, step, config.batch_size, count)[0]

    return jax.vmap(lambda seed: jax.vmap(lambda step: of(seed, done + step))(jnp.asarray(steps)))(jnp.asarray(seeds))

  def read(done: int) -> Window:
    wanted = np.asarray(rows(np.uint32(done)))  # [P S B]
    wanted = wanted if some is None else some[wanted]
    begin = np.full(len(seeds), done, np.int32)
    if engine.how == 'alone':
      wanted, begin = wanted[0], begin[0]
    tokens = jax.make_array_from_callback((*wanted.shape, files.manifest['length']), place,
                                          lambda index: files[wanted[index[:-1]]])
    first = jax.make_array_from_callback(begin.shape, place, lambda index: begin[index])
    return Window(tokens, first, count, files.manifest['vocabulary'], files.manifest['hash'])

  return read
