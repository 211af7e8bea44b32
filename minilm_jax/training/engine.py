"""What a run computes with: the mesh, where its state lies, and the compiled chunk.

A chunk is the step, folded: any number of steps in one dispatch, compiled once. The host only reads sums.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from minilm_jax import backend, progress
from minilm_jax.config import RunConfig
from minilm_jax.errors import InputError
from minilm_jax.language.corpus import Corpus, Window
from minilm_jax.training import fault, optimizer, population, sharding, steps

Rows = Corpus | Window
Chunk = Callable[[steps.TrainState, Rows, Int[Array, '']], tuple[steps.TrainState, steps.Sums, fault.Fault]]


@dataclasses.dataclass(frozen=True)
class Engine:
  """What a run computes with: its mesh, how its members share a device, where its state lies, what is compiled.

  In a population every array of the state, of the sums and of the fault has a leading axis `P`.
  """

  mesh: Mesh
  how: str
  shapes: steps.TrainState
  init: Callable[[], steps.TrainState]
  chunk: Chunk


def make_engine(config: RunConfig, devices: Sequence[jax.Device] = ()) -> Engine:
  """Compiles nothing yet; checks that the recipe fits the devices: those given, or all there are."""
  rows = config.batch_size // (config.accumulation or 1)
  mesh = sharding.make_mesh(config.mesh, rows, config.population.members, devices)
  if rows % mesh.shape['data']:
    asked = f'micro-batches of {rows} rows over {mesh.shape["data"]} devices'
    raise InputError(asked, 'the devices do not divide them', 'change batch_size, accumulation or mesh.data')
  platform = mesh.devices.flat[0].platform
  how = population.how(config.population.members, config.population.lift, platform)
  start = functools.partial(steps.init_state, config=config)
  seeds = population.seeds(config)
  placed = sharding.state_sharding(jax.eval_shape(start, seeds[0]), mesh)
  if how != 'alone':
    start, placed = jax.vmap(start), jax.tree.map(population.over_members, placed)
  else:
    seeds = seeds[0]
  shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                        jax.eval_shape(start, seeds), placed)
  init = jax.jit(start, out_shardings=placed)

  def own(member: tuple[steps.TrainState, steps.Settings, Window | None], shared: Corpus | None,
          count: Int[Array, '']) -> Any:
    def one(_: Int[Array, ''], carry: Any) -> Any:
      state, sums, found = steps.train_step(carry[0], member[1], member[2] or shared, config, platform)
      return state, jax.tree.map(jnp.add, carry[1], sums), fault.first(carry[2], found)

    zero = {name: jnp.zeros(()) for name in ('loss', 'masked', 'gradient', 'updates')}
    state, sums, found = jax.lax.fori_loop(0, count, one, (member[0], zero, fault.none()))
    return state, sums | {'parameters': optimizer.norm(state.model)}, found  # once a chunk: it reads all of them

  together = population.lift(own, mesh, how)

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=(placed, *[population.place_of(mesh, how)] * 2))
  def chunk(state: steps.TrainState, rows: Rows, count: Int[Array, '']) -> Any:
    each, shared = (rows, None) if isinstance(rows, Window) else (None, rows)  # every member has an order of its own
    return together((state, population.settings(config, rows.length), each), shared, count)

  return Engine(mesh, how, shapes, lambda: init(seeds), chunk)


def compiled(engine: Engine, rows: Rows) -> Chunk:
  """The chunk for a corpus or a window of it, compiled; says what it takes, and checks that there is room for it.

  Raises:
    InputError: the machine has not enough memory.
  """
  before = time.monotonic()
  program = engine.chunk.lower(engine.shapes, rows, count(engine, 1)).compile()
  found, here = program.memory_analysis(), engine.mesh.local_devices
  sharing = len(here) if here[0].platform == 'cpu' else 1  # devices of a CPU have one memory
  need = sharing * (found.temp_size_in_bytes + found.output_size_in_bytes)
  room = backend.free_bytes(here[0])
  if room is not None and need - sharing * found.alias_size_in_bytes > room:  # where the state is, the next one will be
    raise InputError(f'a step that takes {need / 2**30:,.1f} GiB', f'{room / 2**30:,.1f} GiB are free',
                     'raise accumulation, lower batch_size or population.members, or set model.remat')
  kept = jax.config.jax_compilation_cache_dir or 'memory'
  progress.say(f'{engine.mesh.size} of {jax.device_count()} devices ({here[0].platform}); state and step take '
               f'{need / 2**20:,.0f} MiB; compiled in {time.monotonic() - before:.1f} s, kept in {kept}')
  return program


def count(engine: Engine, updates: int) -> Int[Array, '']:
  """How many updates a chunk is to run, where the chunk reads it."""
  return sharding.everywhere(np.int32(updates), engine.mesh)
