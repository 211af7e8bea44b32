"""Computes one training step of one model, as a pure function.

    `(state, settings, rows) -> (state, sums, non-finite record)`

A run is a fold of this function. Rows, masks and dropped units are functions of the state's seed
and step, so that only the state has to be saved. The step returns sums and counts, never means; the
host divides them once.

Another loss replaces `compute_loss`, which returns a sum over the predicted positions of its rows.
Another optimizer is a branch of `optimizer.build_optimizer`, any optax transform. Another number of
the log is one more sum of `train_step`, its name in `STEP_SUMS` and its mean in `mean_metrics`.
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
from minilm_jax.core.config import MaskConfig, OptimizerConfig, RunConfig
from minilm_jax.data.corpus import BatchWindow, Corpus, select_batch_rows
from minilm_jax.model import cross_entropy
from minilm_jax.model.heads import MaskedLanguageModel, init_masked_language_model
from minilm_jax.model.initialization import path_name
from minilm_jax.training import masking, optimizer

# For hidden sizes of 32 to 256 no other number is faster by more than 6%.
CPU_MICRO_BATCH_TOKENS = 512
# `gradient` sums the norms of the gradients of updates, `updates` counts the valid ones.
STEP_SUMS = ('loss', 'masked', 'gradient', 'updates')
EVALUATION_SUMS = ('loss', 'masked', 'padding')
Sums = dict[str, Float[Array, '']]
Number = float | Float[Array, '*P']


@typing.no_type_check  # JAX puts shapes, shardings and tracers into the fields of a pytree
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """The whole state of a run between two steps, as arrays to be mapped, sharded and saved."""

  step: Int[Array, '']
  seed: UInt32[Array, '']
  model: Any
  optimizer: Any


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemberSettings:
  """The numbers in which members of a population may differ, beside their seed.

  Attributes:
    learning_rate: at the top of the schedule.
    weight_decay: of AdamW and Muon.
    mask_rate: share of the tokens that are predicted.
    random_share: share of the predicted positions that receive a random token.
    keep_share: share of the predicted positions that keep their token.
  """

  learning_rate: Number
  weight_decay: Number
  mask_rate: Number
  random_share: Number
  keep_share: Number

  @classmethod
  def from_config(cls, optimizer_config: OptimizerConfig, mask: MaskConfig) -> 'MemberSettings':
    """Returns the settings of a recipe."""
    return cls(
      optimizer_config.learning_rate,
      optimizer_config.weight_decay,
      mask.rate,
      mask.random_share,
      mask.keep_share,
    )


class NonFinite(NamedTuple):
  """A record of the first update whose loss or gradient is not finite.

  `step` is its index, or -1 where all updates are finite. `tensor` is 0 for the loss, or 1 + the
  index of a gradient. Such an update is skipped. With the policies `stop` and `drop-member` the
  member then repeats it without end, so that its state stays as it was; with `skip` it continues
  with the next batch.
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

    It takes sums of squares, which the logged norm of the gradient needs too: XLA computes them
    once.
    """
    sums = jnp.stack(
      [loss, *[jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(gradient)]]
    )
    is_bad = ~jnp.isfinite(sums)
    return cls(jnp.where(is_bad.any(), step, -1), jnp.argmax(is_bad).astype(jnp.int32))

  def or_later(self, later: 'NonFinite') -> 'NonFinite':
    """Returns this record, or the later one where this one is of finite updates."""
    return jax.tree.map(lambda a, b: jnp.where(self.step >= 0, a, b), self, later)


def name_tensor(tensor: int, model: Any) -> str:
  """Returns a name for the `tensor` of a NonFinite.

  Args:
    tensor: 0 for the loss, or 1 + the index of a gradient.
    model: the member's model before the update, whose own parameters may be non-finite already.
  """
  leaves = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(model)]
  bad_parameters = [name for name, leaf in leaves if not np.isfinite(np.asarray(leaf)).all()]
  if bad_parameters:
    return f'the parameter {bad_parameters[0]}'
  return 'the loss' if tensor == 0 else f'the gradient of {leaves[tensor - 1][0]}'


def init_state(seed: rng.Counter, config: RunConfig) -> TrainState:
  """Returns the state before the first step."""
  model: Any = init_masked_language_model(config.model, rng.make_key(seed, rng.Stream.INIT))
  moments = optimizer.build_optimizer(config.optimizer, config.num_steps, model).init(model)
  return TrainState(jnp.zeros((), jnp.int32), jnp.asarray(seed, jnp.uint32), model, moments)


def compute_loss(
  model: MaskedLanguageModel, batch: masking.MaskedBatch, key: Any, blocks: int
) -> Float[Array, '']:
  """Returns the cross-entropy in nats, summed over the masked positions, in float32.

  Logits exist only there, in so many `blocks`, one at a time. Without a `key` nothing is dropped.
  """
  x = model.features(batch.tokens, batch.mask, batch.positions, key=key)
  return cross_entropy.cross_entropy_sum(
    x, *model.output_weights(), batch.targets, batch.weights, blocks
  )


def compute_gradient(
  model: MaskedLanguageModel, batch: masking.MaskedBatch, key: Any, blocks: int
) -> tuple[Any, Sums]:
  """Returns the gradient of the summed loss, and the sums.

  In place of the gradient of a running statistic it has the observed value.
  """
  loss, gradient = jax.value_and_grad(compute_loss)(model, batch, key, blocks)
  return gradient, {'loss': loss, 'masked': batch.weights.sum()}


def count_micro_batches(rows: int, length: int, platform: str) -> int:
  """Returns the fastest number of micro-batches for a device's rows.

  On a CPU, activations then stay in its cache.
  """
  return (
    cross_entropy.smallest_divisor(rows, math.ceil(rows * length / CPU_MICRO_BATCH_TOKENS))
    if platform == 'cpu'
    else 1
  )


def accumulate(function: Callable[..., Any], model: Any, rows: Any, count: int) -> Any:
  """Returns `function(model, *rows)`, which sums over rows, computed in `count` micro-batches."""
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
  config: RunConfig, rows: int, length: int, positions: int, platform: str
) -> tuple[int, int]:
  """Returns the numbers of micro-batches of a device, and of logit blocks of a micro-batch.

  Where the recipe leaves them open, a micro-batch is as large as fits the cache. A model with
  BatchNorm keeps the batch whole, because micro-batches change its training.

  Args:
    config: the recipe.
    rows: of a batch, on one device.
    length: L, tokens of a row.
    positions: K, predicted in a row.
    platform: of the device, which need not be on this machine.
  """
  best_count = 1 if config.model.batch_norm else count_micro_batches(rows, length, platform)
  count = config.grad_accumulation_steps or best_count
  rows //= count
  blocks = cross_entropy.logit_blocks(rows, positions, config.model.vocab_size, platform)
  return count, cross_entropy.smallest_divisor(rows, config.logit_chunks or blocks)


def batch_indices(rows: int, count: int) -> Int[Array, 'B']:
  """Returns the indices in the batch of a device's rows.

  They are a part of each of `count` micro-batches, one after another. A micro-batch has the same
  rows on any mesh, and so have the statistics of a BatchNorm.
  """
  size = rows // count
  starts = jnp.arange(count) * size * jax.lax.axis_size('data') + jax.lax.axis_index('data') * size
  return (starts[:, None] + jnp.arange(size)[None]).ravel()


def train_step(
  state: TrainState,
  settings: MemberSettings,
  corpus: Corpus | BatchWindow,
  layout: masking.MaskLayout,
  config: RunConfig,
  platform: str,
) -> tuple[TrainState, Sums, NonFinite]:
  """Computes one update: rows, masks, gradient of the mean loss, optimizer.

  Runs on each device of the mesh axis `data`, with its share of the batch; gradients are added over
  them once.

  Args:
    state: of one member.
    settings: of that member.
    corpus: the rows, or the batches of this step and of later ones.
    layout: the static part of the mask.
    config: the recipe; `settings` replaces its numbers.
    platform: of the device.

  Returns:
    The next state, `STEP_SUMS` of this update over all devices, and whether it is finite.
  """
  device_rows = config.batch_size // jax.lax.axis_size('data')
  count, blocks = micro_batch_plan(config, device_rows, corpus.length, layout.positions, platform)
  indices = batch_indices(device_rows, count)
  row, epoch = select_batch_rows(state.seed, state.step, config.batch_size, corpus.rows, indices)
  tokens = corpus.gather(state.step, row, indices)
  shares = settings.mask_rate, settings.random_share, settings.keep_share
  batch = masking.mask_batch(tokens, row, epoch, state.seed, shares, layout, corpus.vocab_size)
  key = rng.batch_key(state.seed, rng.Stream.DROPOUT, state.step, indices)
  gradient_of = functools.partial(compute_gradient, blocks=blocks)
  gradient, sums = jax.lax.psum(accumulate(gradient_of, state.model, (batch, key), count), 'data')
  gradient = optimizer.mean_gradient(gradient, sums['masked'], count)
  sums |= {'gradient': optimizer.global_norm(gradient)}
  non_finite = NonFinite.detect(sums['loss'], gradient, state.step)
  # built in the step, because members of a population differ in rate and decay
  transform = optimizer.build_optimizer(
    config.optimizer, config.num_steps, state.model, settings.learning_rate, settings.weight_decay
  )

  def update(state: TrainState) -> TrainState:
    change, moments = transform.update(gradient, state.optimizer, state.model)
    return dataclasses.replace(
      state, model=optax.apply_updates(state.model, change), optimizer=moments
    )

  is_valid = (non_finite.step < 0) & corpus.contains_step(state.step)
  # a choice between two states would keep a copy of each
  after = jax.lax.cond(is_valid, update, lambda state: state, state)
  updates = is_valid.astype(jnp.int32)
  after = dataclasses.replace(
    after, step=state.step + (1 if config.nonfinite == 'skip' else updates)
  )
  valid_sums = {name: jnp.where(is_valid, value, 0) for name, value in sums.items()}
  return after, valid_sums | {'updates': updates.astype(jnp.float32)}, non_finite


def eval_step(
  model: MaskedLanguageModel, corpus: Corpus, first: Int[Array, ''], batch_size: int, count: int
) -> Sums:
  """Returns `EVALUATION_SUMS` of the rows `first ... first + batch_size - 1` below `count`.

  `padding` counts pads: the released code of paper 1 predicts them too, nearly without error, and
  divides by them.
  """
  row = first + jnp.arange(batch_size)
  is_inside = row < count
  batch = masking.mask_eval_batch(
    corpus.tokens[jnp.minimum(row, count - 1)], row, corpus.vocab_size
  )
  batch = dataclasses.replace(batch, weights=batch.weights * is_inside[:, None])
  blocks = cross_entropy.logit_blocks(
    batch_size, batch.targets.shape[1], model.config.vocab_size, jax.default_backend()
  )
  loss = compute_loss(model, batch, None, blocks)
  padding = (~batch.mask & is_inside[:, None]).sum().astype(jnp.float32)
  return {'loss': loss, 'masked': batch.weights.sum(), 'padding': padding}


def mean_metrics(sums: dict[str, Any]) -> dict[str, float]:
  """Returns the metrics of a log line from sums: `loss` a masked token in nats, and `perplexity`.

  With pads there is `padded_loss`, the measure of paper 1's released code if it predicts pads
  without error: they count with a loss of 0. A chunk of updates also has `gradient_norm`, the mean
  over updates of the norm before clipping, and `parameter_norm` after the last update.
  """
  loss = float(sums['loss']) / float(sums['masked'])
  metrics = {'loss': loss, 'perplexity': math.exp(min(loss, 700))}
  if 'padding' in sums:
    metrics['padded_loss'] = float(sums['loss']) / (float(sums['masked']) + float(sums['padding']))
  if 'gradient' in sums:
    metrics['gradient_norm'] = float(sums['gradient']) / float(sums['updates'])
    metrics['parameter_norm'] = float(sums['parameters'])
  return metrics
