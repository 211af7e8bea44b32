"""The step: `(state, corpus) -> (state, sums)`, pure, for one model.

A run is a fold of this function: which rows, which masks and which dropped units are functions of the state's seed and
step, so that nothing else has to be saved. Sums and counts come out, never means; they are divided once, on the host.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt32

from minilm_jax import rng
from minilm_jax.config import RunConfig
from minilm_jax.language.corpus import Corpus, Window, rows
from minilm_jax.model import cross_entropy
from minilm_jax.model.heads import MaskedLanguageModel, masked_language_model
from minilm_jax.training import fault, masking, optimizer

_TOKENS = 512  # of a micro-batch on a CPU: for hidden widths of 32 to 256 no other is faster by more than 6%
Sums = dict[str, Float[Array, '']]


@typing.no_type_check  # JAX puts shapes, shardings and tracers of its own into the fields of a pytree
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a run is between two steps: arrays only, so that all of it can be lifted, sharded and saved."""

  step: Int[Array, '']
  seed: UInt32[Array, '']
  model: Any
  optimizer: Any


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
  """What members of a population may differ in beside their seed."""

  rates: optimizer.Rates
  policy: masking.Policy


def settings(config: RunConfig, length: int) -> Settings:
  """What the recipe says, for rows of this length."""
  return Settings(optimizer.rates(config.optimizer), masking.policy(config.mask, length))


def init_state(seed: rng.Counter, config: RunConfig) -> TrainState:
  """A run before its first step."""
  model = masked_language_model(config.model, rng.key(seed, rng.Stream.INIT))
  start = optimizer.build(config.optimizer, config.updates, model).init(model)
  return TrainState(jnp.zeros((), jnp.int32), jnp.asarray(seed, jnp.uint32), model, start)


def masked_loss(model: MaskedLanguageModel, batch: masking.MaskedBatch, key: Any, blocks: int) -> Float[Array, '']:
  """Cross-entropy in nats over the masked positions, summed, in float32; logits exist in so many blocks."""
  x = model.features(batch.tokens, batch.mask, batch.positions, key=key)
  return cross_entropy.cross_entropy_sum(x, *model.output_weights(), batch.targets, batch.weights, blocks)


def gradient_sums(model: MaskedLanguageModel, batch: masking.MaskedBatch, key: Any, blocks: int) -> tuple[Any, Sums]:
  """The gradient of the summed loss, and the sums; the gradient of a running statistic is what was observed."""
  loss, gradient = jax.value_and_grad(masked_loss)(model, batch, key, blocks)
  return gradient, {'loss': loss, 'masked': batch.weights.sum()}


def micro_batches(rows: int, length: int, platform: str) -> int:
  """Into how many micro-batches the rows of a device are best cut: on a CPU so that activations stay in its cache."""
  return cross_entropy.divisor(rows, math.ceil(rows * length / _TOKENS)) if platform == 'cpu' else 1


def added(sums: Callable[..., Any], model: Any, rows: Any, count: int) -> Any:
  """`sums(model, *rows)`, whose results are sums over rows, taken in `count` micro-batches."""
  if count == 1:
    return sums(model, *rows)
  parts = jax.tree.map(lambda x: cross_entropy.cut(x, count), rows)
  start = jax.tree.map(jnp.zeros_like, jax.eval_shape(sums, model, *jax.tree.map(lambda x: x[0], parts)))
  return jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, sums(model, *part)), None), start, parts)[0]


def cuts(config: RunConfig, rows: int, length: int, positions: int, platform: str) -> tuple[int, int]:
  """Into how many micro-batches a device's rows are cut, and those into how many blocks of logits.

  Where the recipe leaves it open: what stays in cache; but the batch of a model with BatchNorm, which trains as another
  one when it is cut up, stays whole.

  Args:
    config: the recipe.
    rows: of a batch, on one device.
    length: L, tokens of a row.
    positions: K, predicted in a row.
    platform: of the device, which need not be on this machine.
  """
  whole = 1 if config.model.batch_norm else micro_batches(rows, length, platform)
  count = config.accumulation or whole
  rows //= count
  logits = cross_entropy.blocks(rows, positions, config.model.vocabulary, platform)
  return count, cross_entropy.divisor(rows, config.head_blocks or logits)


def places(share: int, count: int) -> Int[Array, 'B']:
  """The places in the batch of a device's `share` of rows: a part of each of `count` micro-batches, one after another.

  So a micro-batch is of the same rows on any mesh, which is what its statistics in a BatchNorm are of.
  """
  part = share // count
  first = jnp.arange(count) * part * jax.lax.axis_size('data') + jax.lax.axis_index('data') * part
  return (first[:, None] + jnp.arange(part)[None]).ravel()


def train_step(state: TrainState, own: Settings, corpus: Corpus | Window, config: RunConfig,
               platform: str) -> tuple[TrainState, Sums, fault.Fault]:
  """One update: rows, masks, the gradient of the summed loss, one division by the count, the optimizer.

  Runs on each device of the mesh axis `data`, with its share of the batch; gradients are added over them once.
  """
  share = config.batch_size // jax.lax.axis_size('data')
  count, blocks = cuts(config, share, corpus.length, own.policy.positions, platform)
  place = places(share, count)
  row, epoch = rows(state.seed, state.step, config.batch_size, corpus.rows, place)
  tokens = corpus.take(state.step, row, place)
  batch = masking.training_batch(tokens, row, epoch, state.seed, own.policy, corpus.vocabulary)
  key = rng.of_batch(state.seed, rng.Stream.DROPOUT, state.step, place)
  sums_of = functools.partial(gradient_sums, blocks=blocks)
  gradient, sums = jax.lax.psum(added(sums_of, state.model, (batch, key), count), 'data')
  gradient = optimizer.averaged(gradient, sums['masked'], count)
  sums |= {'gradient': optimizer.norm(gradient)}
  found = fault.find(sums['loss'], gradient, state.step)
  transform = optimizer.build(config.optimizer, config.updates, state.model, own.rates)

  def update(state: TrainState) -> TrainState:
    change, moments = transform.update(gradient, state.optimizer, state.model)
    return dataclasses.replace(state, model=optax.apply_updates(state.model, change), optimizer=moments)

  fine = (found.step < 0) & corpus.covers(state.step)
  after = jax.lax.cond(fine, update, lambda state: state, state)  # a choice between states would keep a copy of each
  done = fine.astype(jnp.int32)
  after = dataclasses.replace(after, step=state.step + (1 if config.nonfinite == 'skip' else done))
  counted = {name: jnp.where(fine, value, 0) for name, value in sums.items()}
  return after, counted | {'updates': done.astype(jnp.float32)}, found


def eval_step(model: MaskedLanguageModel, corpus: Corpus, first: Int[Array, ''], batch_size: int, count: int) -> Sums:
  """Sums over rows `first ... first + batch_size - 1` of a split, those at or past `count` left out.

  `padding` counts pads: the released code of paper 1 predicts them too, nearly without error, and divides by them.
  """
  row = first + jnp.arange(batch_size)
  inside = row < count
  batch = masking.frozen_batch(corpus.tokens[jnp.minimum(row, count - 1)], row, corpus.vocabulary)
  batch = dataclasses.replace(batch, weights=batch.weights * inside[:, None])
  blocks = cross_entropy.blocks(batch_size, batch.targets.shape[1], model.config.vocabulary, jax.default_backend())
  loss = masked_loss(model, batch, None, blocks)
  padding = (~batch.mask & inside[:, None]).sum().astype(jnp.float32)
  return {'loss': loss, 'masked': batch.weights.sum(), 'padding': padding}


def means(sums: dict[str, Any]) -> dict[str, float]:
  """What a line of metrics says, from sums: the loss a masked token, its perplexity; with pads, the paper's loss too.

  `padded_loss` is the released code's measure where pads are predicted without error: it counts them at loss 0. Of a
  chunk of updates there is also `gradient_norm`, the mean over them of the norm before it is clipped, and
  `parameter_norm` after the last of them.
  """
  loss = float(sums['loss']) / float(sums['masked'])
  found = {'loss': loss, 'perplexity': math.exp(min(loss, 700))}
  if 'padding' in sums:
    found['padded_loss'] = float(sums['loss']) / (float(sums['masked']) + float(sums['padding']))
  if 'gradient' in sums:
    found['gradient_norm'] = float(sums['gradient']) / float(sums['updates'])
    found['parameter_norm'] = float(sums['parameters'])
  return found
