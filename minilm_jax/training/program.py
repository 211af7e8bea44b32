"""Builds the programs of a run: mesh, sharding of the state, chunk and evaluation.

A chunk is a fold of the train step: any number of steps in one dispatch, compiled once. The host
reads only its sums.
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

from minilm_jax.core import backend, distributed, progress
from minilm_jax.core.config import EvaluationConfig, RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data.corpus import BatchWindow, Corpus
from minilm_jax.model.heads import MaskedLanguageModel
from minilm_jax.training import optimizer, population, sharding, train_step
from minilm_jax.training.train_step import MemberSettings, NonFinite, Sums, TrainState

Rows = Corpus | BatchWindow
ChunkProgram = Callable[[TrainState, Rows, Int[Array, '']], tuple[TrainState, Sums, NonFinite]]
Evaluate = Callable[[Any, Corpus], list[dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class TrainProgram:
  """The programs of a run.

  In a population every array of state, sums and records has a leading axis `P`.

  Attributes:
    mesh: of its devices.
    strategy: the way in which members share a device, as in `population.choose_strategy`.
    shapes: shapes, types and shardings of the state.
    init: returns the state before the first step.
    chunk: the jitted chunk, `(state, rows, steps) -> (state, sums, record)`; it donates the state.
    evaluate: the evaluation, `(model, corpus) -> metrics of each member`.
  """

  mesh: Mesh
  strategy: str
  shapes: TrainState
  init: Callable[[], TrainState]
  chunk: ChunkProgram
  evaluate: Evaluate


def build_program(config: RunConfig, devices: Sequence[jax.Device] = ()) -> TrainProgram:
  """Builds the programs of a run: mesh, sharding of the state, chunk and evaluation.

  Raises:
    InputError: the recipe does not fit the devices.
  """
  micro_batch = config.batch_size // (config.grad_accumulation_steps or 1)
  mesh = sharding.make_mesh(config.mesh, micro_batch, config.population.members, devices)
  if micro_batch % mesh.shape['data']:
    asked = f'micro-batches of {micro_batch} rows over {mesh.shape["data"]} devices'
    raise InputError(
      asked,
      'the devices do not divide them',
      'change batch_size, grad_accumulation_steps or mesh.data',
    )
  strategy = population.choose_strategy(
    config.population.members, config.population.strategy, mesh.devices.flat[0].platform
  )
  init = functools.partial(train_step.init_state, config=config)
  seeds = population.member_seeds(config)
  shardings = sharding.state_sharding(jax.eval_shape(init, seeds[0]), mesh)
  if strategy == 'single':
    seeds = seeds[0]
  else:
    init, shardings = jax.vmap(init), jax.tree.map(population.stacked_sharding, shardings)
  shapes = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    jax.eval_shape(init, seeds),
    shardings,
  )
  jitted_init = jax.jit(init, out_shardings=shardings)
  return TrainProgram(
    mesh,
    strategy,
    shapes,
    lambda: jitted_init(seeds),
    _build_chunk(config, mesh, strategy, shardings),
    build_evaluate(config.eval, mesh, strategy),
  )


def _build_chunk(
  config: RunConfig, mesh: Mesh, strategy: str, shardings: TrainState
) -> ChunkProgram:
  """Returns the jitted chunk."""
  out_shardings = shardings, *[population.member_sharding(mesh, strategy)] * 2

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=out_shardings)
  def chunk(state: TrainState, rows: Rows, count: Int[Array, '']) -> Any:
    layout = population.shared_mask_layout(config, rows.length)
    settings, platform = population.member_settings(config), mesh.devices.flat[0].platform

    def member_chunk(
      state: TrainState, settings: MemberSettings, rows: Rows, count: Int[Array, '']
    ) -> Any:
      def step(_: Int[Array, ''], carry: Any) -> Any:
        state, sums, record = train_step.train_step(
          carry[0], settings, rows, layout, config, platform
        )
        return state, jax.tree.map(jnp.add, carry[1], sums), carry[2].or_later(record)

      zeros = {name: jnp.zeros(()) for name in train_step.STEP_SUMS}
      state, sums, record = jax.lax.fori_loop(0, count, step, (state, zeros, NonFinite.none()))
      # once a chunk, because the norm reads all parameters
      return state, sums | {'parameters': optimizer.global_norm(state.model)}, record

    def windowed_chunk(
      member: tuple[TrainState, MemberSettings, BatchWindow], count: Int[Array, '']
    ) -> Any:
      return member_chunk(*member, count)

    def resident_chunk(
      member: tuple[TrainState, MemberSettings], rows: Corpus, count: Int[Array, '']
    ) -> Any:
      return member_chunk(*member, rows, count)

    if isinstance(rows, BatchWindow):  # each member has its own order of rows
      mapped = population.map_over_members(windowed_chunk, mesh, strategy)
      return mapped((state, settings, rows), count)
    mapped = population.map_over_members(resident_chunk, mesh, strategy)
    return mapped((state, settings), rows, count)

  return chunk


def compile_chunk(program: TrainProgram, rows: Rows) -> ChunkProgram:
  """Compiles the chunk for a corpus, or for a window of one, and logs the memory that it takes.

  Args:
    program: of the run.
    rows: arrays, or shapes with shardings.

  Raises:
    InputError: the memory of the machine is too small.
  """
  started = time.monotonic()
  compiled = program.chunk.lower(program.shapes, rows, step_count(program, 1)).compile()
  memory, devices = compiled.memory_analysis(), program.mesh.local_devices
  copies = len(devices) if devices[0].platform == 'cpu' else 1  # devices of a CPU share one memory
  needed = copies * (memory.temp_size_in_bytes + memory.output_size_in_bytes)
  free = backend.free_bytes(devices[0])
  # the next state takes the place of the present one
  if free is not None and needed - copies * memory.alias_size_in_bytes > free:
    raise InputError(
      f'a step that takes {needed / 2**30:,.1f} GiB',
      f'{free / 2**30:,.1f} GiB are free',
      'raise grad_accumulation_steps, lower batch_size or population.members, or set model.remat',
    )
  # a field that JAX adds to its configuration at import
  cache = jax.config.jax_compilation_cache_dir or 'memory'  # pyright: ignore[reportAttributeAccessIssue]
  progress.log(
    f'{program.mesh.size} of {jax.device_count()} devices ({devices[0].platform}); '
    'state and step take '
    f'{needed / 2**20:,.0f} MiB; compiled in {time.monotonic() - started:.1f} s, cached in {cache}'
  )
  return compiled


def step_count(program: TrainProgram, steps: int) -> Int[Array, '']:
  """Returns the number of steps of a chunk as an array on its devices."""
  return sharding.replicate(np.int32(steps), program.mesh)


def build_evaluate(config: EvaluationConfig, mesh: Mesh, strategy: str = 'single') -> Evaluate:
  """Returns the evaluation of a model, or of each model of a population, with fixed masks.

  `(model, corpus)` gives `loss`, `perplexity` and `padded_loss` of each member, over `config.rows`
  rows of a split. Each device of `data` takes its share of the batches; the sums of all are added
  once.
  """

  @functools.partial(jax.jit, static_argnums=2)
  def total(model: Any, corpus: Corpus, count: int) -> Any:
    def member_total(model: MaskedLanguageModel, corpus: Corpus) -> Sums:
      devices = jax.lax.axis_size('data')

      def add(batch: Int[Array, ''], sums: Sums) -> Sums:
        first = (batch * devices + jax.lax.axis_index('data')) * config.batch_size
        return jax.tree.map(
          jnp.add, sums, train_step.eval_step(model, corpus, first, config.batch_size, count)
        )

      zeros = {name: jnp.zeros(()) for name in train_step.EVALUATION_SUMS}
      return jax.lax.psum(
        jax.lax.fori_loop(0, -(-count // (config.batch_size * devices)), add, zeros), 'data'
      )

    return population.map_over_members(member_total, mesh, strategy)(model, corpus)

  def evaluate(model: Any, corpus: Corpus) -> list[dict[str, float]]:
    sums = distributed.to_host(total(model, corpus, min(config.rows, corpus.rows)))
    return [
      train_step.mean_metrics(member) for member in population.unstack(sums, np.size(sums['loss']))
    ]

  return evaluate
