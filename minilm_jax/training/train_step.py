"""Computes one training step of one model, as a pure function.

    `(state, settings, corpus, config, device) -> (state, sums, non-finite record)`

A run is a fold of this function. Rows, masks and dropped units are functions of the state's seed
and step, so only the state needs saving. The step returns sums and counts; the host computes means.

To change the step:

- Loss: `compute_loss` returns a sum over the predicted positions, and also serves evaluation. A term of
  training alone belongs in `compute_gradient`. `model(...)` returns logits `[B K V]`;
  `cross_entropy_sum` never stores them.
- Recipe field: `train_step` has the recipe; bind the field beside `blocks` in `gradient_of`.
- Optimizer: add a branch to `optimizer.build_optimizer` that returns an optax transform.
- Metric: add a sum to `compute_gradient` or `train_step`, its name to `STEP_SUMS` and its mean to
  `mean_metrics`.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt32

from minilm_jax.core import rng
from minilm_jax.core.config import RunConfig
from minilm_jax.data.rows import BatchWindow, Corpus, select_batch_rows
from minilm_jax.model import cross_entropy
from minilm_jax.model.heads import MaskedLanguageModel, init_masked_language_model
from minilm_jax.model.initialization import flatten
from minilm_jax.training import masking, optimizer
from minilm_jax.training.population import MemberSettings

# Measured: for hidden sizes of 32 to 256, other numbers are at most 6% faster.
CPU_MICRO_BATCH_TOKENS = 512
# `gradient_norm` sums the norms of updates, `updates` counts the finite updates. `program.py` adds
# `parameter_norm` once a chunk.
STEP_SUMS = ('loss', 'masked', 'gradient_norm', 'updates')
EVALUATION_SUMS = ('loss', 'masked', 'padding')
Sums = dict[str, Float[Array, '']]


@typing.no_type_check  # JAX also stores shapes, shardings and tracers in the fields of a pytree
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """The state of a run between two steps, a pytree of arrays."""

  step: Int[Array, '']
  seed: UInt32[Array, '']
  model: Any
  optimizer: Any


class NonFinite(NamedTuple):
  """Records the first update with a non-finite loss or gradient.

  The step skips a non-finite update. With the policies `stop` and `drop-member`, the member repeats
  the same update until the chunk ends, so its state does not change. With `skip`, the member
  continues with the next batch.

  Attributes:
    step: Index of the update, or -1 if all updates are finite.
    tensor: 0 for the loss, or 1 + the index of a gradient.
  """

  step: Int[Array, '*P']
  tensor: Int[Array, '*P']

  @classmethod
  def none(cls) -> 'NonFinite':
    """Returns the record of finite updates."""
    return cls(jnp.int32(-1), jnp.int32(0))

  @classmethod
  def detect(cls, loss: Float[Array, ''], gradient: Any, step: Int[Array, '']) -> 'NonFinite':
    """Returns the record of one update.

    The check reads sums of squares. The logged gradient norm needs the same sums, and XLA computes
    them once.
    """
    sums = jnp.stack(
      [loss, *[jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(gradient)]]
    )
    is_bad = ~jnp.isfinite(sums)
    return cls(jnp.where(is_bad.any(), step, -1), jnp.argmax(is_bad).astype(jnp.int32))

  def or_later(self, later: 'NonFinite') -> 'NonFinite':
    """Returns this record, or the later record if the updates of this record are finite."""
    return jax.tree.map(lambda a, b: jnp.where(self.step >= 0, a, b), self, later)


def name_tensor(tensor: int, model: Any) -> str:
  """Returns the name of a non-finite tensor.

  Args:
    model: The member's model before the update. A parameter that is already non-finite is named
      instead.
  """
  leaves = flatten(model)
  bad_parameters = [n for n, leaf in leaves.items() if not np.isfinite(np.asarray(leaf)).all()]
  if bad_parameters:
    return f'the parameter {bad_parameters[0]}'
  return 'the loss' if tensor == 0 else f'the gradient of {list(leaves)[tensor - 1]}'


def init_state(seed: rng.Counter, config: RunConfig) -> TrainState:
  """Returns the state before the first step.

  Raises:
    InputError: A pattern of `optimizer.no_decay` matches no parameter, and there is weight decay.
  """
  model: Any = init_masked_language_model(config.model, rng.make_key(seed, rng.Stream.INIT))
  if max(config.population.weight_decays, default=config.optimizer.weight_decay):
    optimizer.check_no_decay(config.optimizer, model)
  moments = optimizer.build_optimizer(config.optimizer, config.num_steps, model).init(model)
  return TrainState(jnp.zeros((), jnp.int32), jnp.asarray(seed, jnp.uint32), model, moments)


def compute_loss(
  model: MaskedLanguageModel, batch: masking.MaskedBatch, key: Any, blocks: int
) -> Float[Array, '']:
  """Returns the cross-entropy in nats, summed over the predicted positions, in float32.

  Args:
    key: Keys of dropout, or None without dropout.
    blocks: Number of blocks of logits; one block is in memory at a time.
  """
  x = model.features(batch.tokens, batch.mask, batch.positions, key=key)
  return cross_entropy.cross_entropy_sum(
    x, *model.output_weights(), batch.targets, batch.weights, blocks
  )


def compute_gradient(
  model: MaskedLanguageModel, batch: masking.MaskedBatch, key: Any, blocks: int
) -> tuple[Any, Sums]:
  """Returns the gradient of the summed loss, and the sums.

  Running statistics of BatchNorm have their observed value in place of a gradient.
  """
  loss, gradient = jax.value_and_grad(compute_loss)(model, batch, key, blocks)
  return gradient, {'loss': loss, 'masked': batch.weights.sum()}


def count_micro_batches(rows: int, length: int, platform: str) -> int:
  """Returns the fastest number of micro-batches for the rows of a device.

  On a CPU, the activations of a micro-batch fit in the cache.
  """
  return (
    cross_entropy.smallest_divisor(rows, math.ceil(rows * length / CPU_MICRO_BATCH_TOKENS))
    if platform == 'cpu'
    else 1
  )


def accumulate(function: Callable[..., Any], model: Any, rows: Any, count: int) -> Any:
  """Returns `function(model, *rows)`, a sum over rows, from the sums of `count` micro-batches."""
  if count == 1:
    return function(model, *rows)
  parts = jax.tree.map(lambda x: cross_entropy.split_rows(x, count), rows)
  zeros = jax.tree.map(
    jnp.zeros_like, jax.eval_shape(function, model, *jax.tree.map(lambda x: x[0], parts))
  )
  return jax.lax.scan(
    lambda total, part: (jax.tree.map(jnp.add, total, function(model, *part)), None), zeros, parts
  )[0]


def micro_batch_plan(
  config: RunConfig, rows: int, length: int, device: jax.Device
) -> tuple[int, int]:
  """Returns the numbers of micro-batches of a device, and of logit blocks of a micro-batch.

  A recipe with `grad_accumulation_steps=0` gets the largest micro-batch that fits in the cache. A
  model with BatchNorm gets one micro-batch, because its statistics depend on the batch.
  """
  best_count = 1 if config.model.batch_norm else count_micro_batches(rows, length, device.platform)
  count = config.grad_accumulation_steps or best_count
  rows, positions = rows // count, config.largest_mask.max_positions(length)
  blocks = cross_entropy.logit_blocks(rows, positions, config.model.vocab_size, device)
  return count, cross_entropy.smallest_divisor(rows, config.logit_chunks or blocks)


def batch_indices(rows: int, count: int) -> Int[Array, 'B']:
  """Returns the indices of a device's rows within the batch.

  Each device takes a part of each of the `count` micro-batches. So a micro-batch, and with it the
  statistics of BatchNorm, has the same rows on any mesh.
  """
  size = rows // count
  starts = jnp.arange(count) * size * jax.lax.axis_size('data') + jax.lax.axis_index('data') * size
  return (starts[:, None] + jnp.arange(size)[None]).ravel()


def train_step(
  state: TrainState,
  settings: MemberSettings,
  corpus: Corpus | BatchWindow,
  config: RunConfig,
  device: jax.Device,
) -> tuple[TrainState, Sums, NonFinite]:
  """Computes one update: rows, masks, gradient of the mean loss, optimizer.

  Runs on each device of the mesh axis `data` with a part of the batch. The devices add their
  gradients once.

  Args:
    settings: Settings of the member; they replace the numbers of the recipe.
    corpus: All rows, or the batches of this step and of later steps.

  Returns:
    The next state, the `STEP_SUMS` of the update over all devices, and its `NonFinite` record.
  """
  device_rows = config.batch_size // jax.lax.axis_size('data')
  count, blocks = micro_batch_plan(config, device_rows, corpus.length, device)
  indices = batch_indices(device_rows, count)
  row, epoch = select_batch_rows(state.seed, state.step, config.batch_size, corpus.rows, indices)
  tokens = corpus.gather(state.step, row, indices)
  shares = settings.mask_rate, settings.random_share, settings.keep_share
  # All members predict at as many positions as the member with the largest rate.
  mask, vocab_size = config.largest_mask, corpus.vocab_size
  batch = masking.mask_batch(tokens, row, epoch, state.seed, shares, mask, vocab_size)
  key = rng.make_batch_keys(state.seed, rng.Stream.DROPOUT, state.step, indices)
  gradient_of = functools.partial(compute_gradient, blocks=blocks)
  gradient, sums = jax.lax.psum(accumulate(gradient_of, state.model, (batch, key), count), 'data')
  gradient = optimizer.mean_gradient(gradient, sums['masked'], count)
  sums |= {'gradient_norm': optimizer.global_norm(gradient)}
  non_finite = NonFinite.detect(sums['loss'], gradient, state.step)
  # Built inside the step, because learning rate and weight decay of members are traced arrays.
  transform = optimizer.build_optimizer(
    config.optimizer, config.num_steps, state.model, settings.learning_rate, settings.weight_decay
  )

  def update(state: TrainState) -> TrainState:
    change, moments = transform.update(gradient, state.optimizer, state.model)
    return dataclasses.replace(
      state, model=optax.apply_updates(state.model, change), optimizer=moments
    )

  is_valid = (non_finite.step < 0) & corpus.contains_step(state.step)
  if device.platform == 'gpu':
    # After a condition, XLA for GPUs copies the whole state into the buffers of the loop, and the
    # host reads the condition in each step. For magic-bee-26, selecting needs no memory more and
    # 267 kernels a step; a condition needs 366.
    after = jax.tree.map(functools.partial(jnp.where, is_valid), update(state), state)
  else:
    # On a CPU, selecting would keep a copy of both states.
    after = jax.lax.cond(is_valid, update, lambda state: state, state)
  updates = is_valid.astype(jnp.int32)
  after = dataclasses.replace(
    after, step=state.step + (1 if config.nonfinite == 'skip' else updates)
  )
  valid_sums = {name: jnp.where(is_valid, value, 0) for name, value in sums.items()}
  return after, valid_sums | {'updates': updates.astype(jnp.float32)}, non_finite


def eval_step(
  model: MaskedLanguageModel,
  corpus: Corpus,
  first: Int[Array, ''],
  batch_size: int,
  count: int,
  device: jax.Device,
) -> Sums:
  """Returns the `EVALUATION_SUMS` of the rows `first ... first + batch_size - 1` below `count`.

  `padding` counts pads. The released code of paper 1 predicts pads too, with an error near 0, and
  counts them in the mean.
  """
  row = first + jnp.arange(batch_size)
  is_inside = row < count
  batch = masking.mask_eval_batch(
    corpus.tokens[jnp.minimum(row, count - 1)], row, corpus.vocab_size
  )
  batch = dataclasses.replace(batch, weights=batch.weights * is_inside[:, None])
  blocks = cross_entropy.logit_blocks(
    batch_size, batch.targets.shape[1], model.config.vocab_size, device
  )
  loss = compute_loss(model, batch, None, blocks)
  padding = (~batch.mask & is_inside[:, None]).sum().astype(jnp.float32)
  return {'loss': loss, 'masked': batch.weights.sum(), 'padding': padding}


def mean_metrics(sums: dict[str, Any]) -> dict[str, float]:
  """Returns the metrics of a log line from sums.

  `loss` is the mean over masked tokens, in nats, and `perplexity` its exponential. An evaluation
  adds `padded_loss`, in which pads count with a loss of 0, as in the released code of paper 1. A
  chunk of updates adds two norms: `gradient_norm` is the mean over updates, before clipping, and
  `parameter_norm` the norm after the last update.
  """
  loss = float(sums['loss']) / float(sums['masked'])
  metrics = {'loss': loss, 'perplexity': math.exp(min(loss, 700))}
  if 'padding' in sums:
    metrics['padded_loss'] = float(sums['loss']) / (float(sums['masked']) + float(sums['padding']))
  if 'gradient_norm' in sums:
    metrics['gradient_norm'] = float(sums['gradient_norm']) / float(sums['updates'])
    metrics['parameter_norm'] = float(sums['parameter_norm'])
  return metrics
