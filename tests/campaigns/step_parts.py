"""Times the parts of a training step, beside a lower bound of each.

Usage: python tests/campaigns/step_parts.py RECIPE [ROWS [FOLDER]]

RECIPE is a file and its argument, as for `--config`. ROWS replaces the batch size. FOLDER gets
`parts.json`. Every part runs alone, on all devices, in a loop inside one program. The parts are
timed in turns with the whole step; the table has medians. Parts lack the fusions between them, so
their sum may exceed the step.

The lower bounds add three times: products at the peak of `minilm bench`, exponentials at the speed of
a loop without other work, and bytes at the measured memory bandwidth.
"""

import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from minilm_jax.bench import machine, timing
from minilm_jax.core import backend, recipe, rng
from minilm_jax.core.config import RunConfig
from minilm_jax.data.rows import select_batch_rows
from minilm_jax.model import cross_entropy, flops
from minilm_jax.training import masking, optimizer, population, program, train_step

REPEATS, MIN_SECONDS = 7, 0.5
PSUM_ARRAYS, UPDATE_ARRAYS = 3, 7  # arrays as large as the model that a device reads or writes
EXPONENTIALS = 1 << 17  # 512 KiB, in the cache of a core


def build_parts(config: RunConfig, rows: np.ndarray) -> tuple[Any, dict[str, Any]]:
  """Returns the mesh, and function and arguments of each part of a step of one device."""
  built = program.build_program(config)
  mesh, state = built.mesh, built.init()
  device, model = mesh.devices.flat[0], state.model
  mask = config.largest_mask
  settings = population.member_settings(config)
  devices = mesh.shape['data']
  count, blocks = train_step.micro_batch_plan(
    config, config.batch_size // devices, rows.shape[1], device
  )

  def make_batch(tokens: Any, seed: Any, step: Any) -> tuple[Any, Any]:
    indices = train_step.batch_indices(config.batch_size // devices, count)
    row, epoch = select_batch_rows(seed, step, config.batch_size, len(tokens), indices)
    shares = settings.mask_rate, settings.random_share, settings.keep_share
    batch = masking.mask_batch(tokens[row], row, epoch, seed, shares, mask, config.model.vocab_size)
    return batch, rng.make_batch_keys(seed, rng.Stream.DROPOUT, step, indices)

  def encode(model: Any, batch: Any, key: Any) -> Any:
    x = model.features(batch.tokens, batch.mask, batch.positions, key=key)
    return jnp.sum(jnp.square(x))

  def attend(block: Any, x: Any, key: Any) -> Any:
    return jnp.sum(jnp.square(block.attention(x, jnp.ones(x.shape[:2], bool), key)))

  def output_loss(weights: Any, x: Any, targets: Any) -> Any:
    return cross_entropy.cross_entropy_sum(x, *weights, targets, jnp.ones(targets.shape), blocks)

  def multiply(weights: Any, x: Any, _: Any) -> Any:
    kernel = weights[0]

    def add(total: Any, x: Any) -> tuple[Any, Any]:
      logits = jnp.matmul(x, kernel)
      return total + jnp.einsum('bKD,bKV->DV', x, logits), jnp.einsum('bKV,DV->bKD', logits, kernel)

    split = cross_entropy.split_rows(x, blocks)
    return jax.lax.scan(add, jnp.zeros(kernel.shape), split)

  def update(model: Any, moments: Any) -> Any:
    gradient = optimizer.mean_gradient(model, jnp.float32(1000), count)
    norm = optimizer.global_norm(gradient)
    record = train_step.NonFinite.detect(norm, gradient, jnp.int32(0))
    transform = optimizer.build_optimizer(config.optimizer, config.num_steps, model)
    change, moments = transform.update(gradient, moments, model)
    return optax.apply_updates(model, change), moments, norm, record

  mapped = functools.partial(population.map_over_members, mesh=mesh, strategy='single')
  batch = jax.jit(mapped(lambda seed: make_batch(jnp.asarray(rows), seed, jnp.int32(0))))(
    state.seed
  )
  device_rows = config.batch_size // devices
  x = jnp.ones((device_rows, mask.max_positions(rows.shape[1]), config.model.hidden_size)) / 10
  hidden = jnp.ones((device_rows, rows.shape[1], config.model.hidden_size)) / 10
  weights = model.output_weights()
  in_turns = functools.partial(train_step.accumulate, count=count)

  def gradients(function: Any) -> Any:
    return lambda model, *rows: in_turns(jax.grad(function, (0, 1)), model, rows)

  parts = {
    'rows and masks': (make_batch, (jnp.asarray(rows), state.seed, state.step)),
    'encoder': (lambda model, *rows: in_turns(jax.grad(encode), model, rows), (model, *batch)),
    'attention of a block': (gradients(attend), (model.encoder.blocks[0], hidden, batch[1])),
    'head': (gradients(output_loss), (weights, x, batch[0].targets)),
    'products of the head': (
      lambda weights, *rows: in_turns(multiply, weights, rows),
      (weights, x, batch[0].targets),
    ),
    'sum over devices': (lambda model: jax.lax.psum(model, 'data'), (model,)),
    'optimizer': (update, (model, state.optimizer)),
  }
  return mesh, parts


def add_zero(x: Any, zero: Any) -> Any:
  """Returns floating-point arrays and integers plus zero, other arrays unchanged."""
  x = jnp.asarray(x)
  is_changed = jnp.issubdtype(x.dtype, jnp.floating) or not x.ndim
  return x + zero.astype(x.dtype) if is_changed else x


def time_loop(mesh: Any, function: Callable[..., Any], inputs: Any) -> Callable[[int], float]:
  """Returns a function that times `count` calls in one program, after one compilation."""

  def repeat(inputs: Any, count: Any) -> Any:
    def call(_: Any, outputs: Any) -> Any:
      # Not invariant, so the compiler does not move the work out of the loop.
      zero = 0 * jax.tree.leaves(outputs)[0].ravel()[0].astype(jnp.float32)
      return function(*jax.tree.map(lambda x: add_zero(x, zero), inputs))

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *inputs))
    return jax.lax.fori_loop(0, count, call, zeros)

  loop = jax.jit(population.map_over_members(repeat, mesh, 'single'))

  def time_calls(count: int) -> float:
    start = time.perf_counter()
    jax.block_until_ready(loop(inputs, count))
    return time.perf_counter() - start

  time_calls(1)
  return time_calls


def measure(config: RunConfig) -> dict[str, dict[str, float]]:
  """Returns milliseconds a step of each part: median, lowest and highest."""
  rows = timing.make_random_rows(config)
  mesh, parts = build_parts(config, rows)
  step = timing.time_our_step(config, rows)[0]
  timed = {'step': step} | {name: time_loop(mesh, *part) for name, part in parts.items()}
  counts = {name: max(1, round(MIN_SECONDS / function(1))) for name, function in timed.items()}
  seconds: dict[str, list[float]] = {name: [] for name in [*timed, 'dispatch of a chunk']}
  for _ in range(REPEATS):
    for name, function in timed.items():
      seconds[name].append(function(counts[name]) / counts[name])
    seconds['dispatch of a chunk'].append(step(0))
  layers = config.model.num_layers
  seconds['attention'] = [layers * value for value in seconds.pop('attention of a block')]
  return {name: timing.summarize_times(values) for name, values in seconds.items()}


def bound(config: RunConfig) -> dict[str, float]:
  """Returns the lower bound of each part in milliseconds."""
  model, rows, devices = config.model, config.batch_size, jax.device_count()
  length, d = model.max_length, model.hidden_size
  positions = config.mask.max_positions(length)
  peak, bandwidth = (
    machine.measure_peak_flops(*machine.choose_matrix_product()),
    machine.measure_bandwidth(),
  )
  exponentials = machine.measure_rate(
    lambda x, y: jnp.exp(x - y), lambda key: jnp.ones(EXPONENTIALS), EXPONENTIALS
  )
  parameter_bytes = 4 * flops.count_parameters_by_part(model)['total'] * devices
  products = rows * positions * model.vocab_size * (6 * d + 4) / peak
  scores = rows * model.num_layers * model.num_heads * length**2 / exponentials
  projections = 3 * rows * model.num_layers * (8 * length * d * d + 4 * length**2 * d) / peak
  seconds = {
    'encoder': 3 * rows * flops.encoder_flops(model, length) / peak + scores,
    'attention': projections + scores,
    'head': products + rows * positions * model.vocab_size / exponentials,
    'products of the head': products,
    'sum over devices': PSUM_ARRAYS * parameter_bytes / bandwidth if devices > 1 else 0.0,
    'optimizer': UPDATE_ARRAYS * parameter_bytes / bandwidth,
  }
  print(
    f'peak {peak / 1e9:,.0f} GFLOP/s, {exponentials / 1e9:,.2f} exponentials a ns, '
    f'{bandwidth / 1e9:,.0f} GB/s'
  )
  return {name: 1e3 * value for name, value in seconds.items()}


def main(name: str, rows: str = '', folder: str = '') -> None:
  """Prints the table of a recipe, and writes it to `folder`."""
  backend.prepare()
  values = recipe.load(name)
  if rows:
    values.batch_size = int(rows)
  config = recipe.resolve(values, 'pretrain')
  times, bounds = measure(config), bound(config)
  print('| part | ms | lower bound, ms |\n| --- | --- | --- |')
  for part, summary in times.items():
    low = f'{bounds[part]:.1f}' if part in bounds else ''
    print(f'| {part} | {timing.format_times(summary)} | {low} |')
  if folder:
    path = pathlib.Path(folder) / 'parts.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'recipe': name, 'times': times, 'bounds': bounds}, indent=2))


if __name__ == '__main__':
  main(*sys.argv[1:])
