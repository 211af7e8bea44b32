"""Builds the programs of a run: mesh, sharding of the state, chunk and evaluation.

A chunk runs any number of train steps in one dispatch and is compiled once. The host reads only the
sums of a chunk.
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
from minilm_jax.data.rows import BatchWindow, Corpus
from minilm_jax.model.flops import actual_flops
from minilm_jax.model.heads import MaskedLanguageModel
from minilm_jax.training import optimizer, population, sharding, train_step
from minilm_jax.training.train_step import NonFinite, Sums, TrainState

Rows = Corpus | BatchWindow
ChunkProgram = Callable[[TrainState, Rows, Int[Array, '']], tuple[TrainState, Sums, NonFinite]]
Evaluate = Callable[[Any, Corpus], list[dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class TrainProgram:
  """The programs of a run.

  For a population, every array of state, sums and records has a leading axis `P`.

  Attributes:
    strategy: `single`, `map` or `vmap`, from `population.choose_strategy`.
    shapes: Shapes, types and shardings of the state.
    chunk: The jitted chunk, `(state, rows, steps) -> (state, sums, record)`; donates the state.
    evaluate: The evaluation, `(model, corpus) -> metrics of each member`.
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
    InputError: The recipe does not fit the devices.
  """
  micro_batch = config.batch_size // (config.grad_accumulation_steps or 1)
  mesh = sharding.make_mesh(config.mesh, micro_batch, config.population.members, devices)
  if micro_batch % mesh.shape['data']:
    data = mesh.shape['data']
    raise InputError(
      f'micro-batches of {micro_batch} rows over {data} devices',
      f'{data} does not divide {micro_batch}',
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
    settings, device = population.member_settings(config), mesh.devices.flat[0]

    def member_chunk(member: tuple[Any, ...], *shared: Any) -> Any:
      state, settings, rows, count = *member, *shared

      def step(_: Int[Array, ''], carry: Any) -> Any:
        state, sums, record = train_step.train_step(carry[0], settings, rows, config, device)
        return state, jax.tree.map(jnp.add, carry[1], sums), carry[2].or_later(record)

      zeros = {name: jnp.zeros(()) for name in train_step.STEP_SUMS}
      state, sums, record = jax.lax.fori_loop(0, count, step, (state, zeros, NonFinite.none()))
      # The norm reads all parameters, so it is computed once a chunk.
      return state, sums | {'parameter_norm': optimizer.global_norm(state.model)}, record

    mapped = population.map_over_members(member_chunk, mesh, strategy)
    if isinstance(rows, BatchWindow):  # members differ in the order of rows
      return mapped((state, settings, rows), count)
    return mapped((state, settings), rows, count)

  return chunk


def compile_chunk(config: RunConfig, program: TrainProgram, rows: Rows) -> ChunkProgram:
  """Compiles the chunk for a corpus or a window of batches, and logs its memory.

  Raises:
    InputError: The chunk needs more memory than is free.
  """
  started = time.monotonic()
  # The first compilation took 18 and 39 s on an H200 (docs/results/gpu.md).
  progress.log('compiling the training step, which a repeated run loads from the cache')
  lowered = _lower_chunk(program, rows)
  trained_rows = config.num_steps * config.batch_size * config.population.members
  backend.fill_cache(
    lowered.as_text,
    trained_rows * actual_flops(config.model, config.largest_mask, rows.length),
    f'{__name__}:compile_from_shapes',
    {
      'config': dataclasses.asdict(config),
      'rows': {name: _describe(value) for name, value in vars(rows).items()},
    },
  )
  compiled = lowered.compile()
  memory, devices = compiled.memory_analysis(), program.mesh.local_devices
  copies = len(devices) if devices[0].platform == 'cpu' else 1  # devices of a CPU share one memory
  needed = copies * (memory.temp_size_in_bytes + memory.output_size_in_bytes)
  free = backend.read_free_bytes(devices[0])
  # The next state reuses the donated memory of the present state.
  if free is not None and needed - copies * memory.alias_size_in_bytes > free:
    raise InputError(
      f'a step with {needed / 2**30:,.1f} GiB of memory',
      f'{free / 2**30:,.1f} GiB free',
      'raise grad_accumulation_steps, lower batch_size or population.members, or set model.remat, '
      'and give another --workdir',
    )
  cache = backend.read_setting('jax_compilation_cache_dir') or 'memory'
  progress.log(
    f'{program.mesh.size} of {jax.device_count()} devices ({devices[0].platform}); '
    f'state and step use {needed / 2**20:,.0f} MiB; '
    f'compiled in {time.monotonic() - started:.1f} s, cached in {cache}'
  )
  return compiled


def _lower_chunk(program: TrainProgram, rows: Rows) -> Any:
  """Lowers the chunk for rows or their shapes."""
  return program.chunk.lower(program.shapes, rows, step_count(program, 1))


def _describe(value: Any) -> Any:
  """Returns shape and type of an array, and any other value as it is."""
  return [value.shape, str(value.dtype)] if hasattr(value, 'shape') else value


def compile_from_shapes(config: dict[str, Any], rows: dict[str, Any]) -> None:
  """Compiles the chunk of a run from the shapes and types of its rows, as `compile_chunk` does.

  Args:
    config: Plain data of a trusted recipe.
    rows: Fields of Corpus or BatchWindow; an array is a pair of shape and type.
  """
  from minilm_jax.core import recipe  # only the other process resolves a recipe

  recipe.allow_modules(config['model']['encoder'])
  program = build_program(recipe.resolve(config, 'pretrain'))
  if 'first' in rows:  # the first step of a window
    rows_type, placement = BatchWindow, population.member_sharding(program.mesh, program.strategy)
  else:
    rows_type, placement = Corpus, sharding.replicated(program.mesh)
  fields: dict[str, Any] = {
    name: jax.ShapeDtypeStruct(*value, sharding=placement) if isinstance(value, list) else value
    for name, value in rows.items()
  }
  _lower_chunk(program, rows_type(**fields)).compile()


def step_count(program: TrainProgram, steps: int) -> Int[Array, '']:
  """Returns the number of steps of a chunk as an array on its devices."""
  return sharding.replicate(np.int32(steps), program.mesh)


def build_evaluation_sums(config: EvaluationConfig, mesh: Mesh, strategy: str) -> Any:
  """Returns the jitted evaluation of a model, or of each model of a population, with fixed masks.

  `total(model, corpus, count)` returns `train_step.EVALUATION_SUMS` over the first `count` rows. The
  devices of the axis `data` divide the batches and add their sums once, at the end.
  """

  @functools.partial(jax.jit, static_argnums=2)
  def total(model: Any, corpus: Corpus, count: int) -> Any:
    def member_total(model: MaskedLanguageModel, corpus: Corpus) -> Sums:
      devices, device = jax.lax.axis_size('data'), mesh.devices.flat[0]

      def add(batch: Int[Array, ''], sums: Sums) -> Sums:
        first = (batch * devices + jax.lax.axis_index('data')) * config.batch_size
        batch_sums = train_step.eval_step(model, corpus, first, config.batch_size, count, device)
        return jax.tree.map(jnp.add, sums, batch_sums)

      zeros = {name: jnp.zeros(()) for name in train_step.EVALUATION_SUMS}
      return jax.lax.psum(
        jax.lax.fori_loop(0, -(-count // (config.batch_size * devices)), add, zeros), 'data'
      )

    return population.map_over_members(member_total, mesh, strategy)(model, corpus)

  return total


def build_evaluate(config: EvaluationConfig, mesh: Mesh, strategy: str = 'single') -> Evaluate:
  """Returns the evaluation of a model, or of each model of a population, with fixed masks.

  `evaluate(model, corpus)` returns `loss`, `perplexity` and `padded_loss` of each member, over the
  first `config.rows` rows of a split.
  """
  total = build_evaluation_sums(config, mesh, strategy)

  def evaluate(model: Any, corpus: Corpus) -> list[dict[str, float]]:
    sums = distributed.to_host(total(model, corpus, min(config.rows, corpus.rows)))
    return [
      train_step.mean_metrics(member) for member in population.unstack(sums, np.size(sums['loss']))
    ]

  return evaluate
