"""Builds learning rate schedules, and AdamW or Muon with weight decay by path, as optax chains.

Muon (Jordan et al., 2024) updates a matrix by its momentum after five Newton-Schulz steps, which
make the singular values nearly equal. Muon updates the matrices of projection and blocks. AdamW
updates all other parameters: embeddings, biases, norms, convolutions, heads. Updates of Muon are
scaled to a root mean square of 0.2, as in AdamW (Liu et al., 2025, arXiv 2502.16982, section 2.2).
So learning rate, schedule and weight decay mean the same for both, and a recipe for AdamW works with
Muon without changes. Muon uses Nesterov momentum of 0.95; `beta1`, `beta2` and `epsilon` belong to
AdamW. `optax.contrib.muon` includes an AdamW, but with Nesterov momentum and without decay by path,
so this module combines AdamW with `optax.contrib.scale_by_muon`.

The running statistics of BatchNorm (`model/convolution.py`) are not parameters: clipping and decay
ignore them, and they have no moments. They have observed values in place of gradients, and move
towards these values.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from minilm_jax.core.config import OptimizerConfig
from minilm_jax.core.errors import InputError
from minilm_jax.model.initialization import flatten, is_statistic, map_with_name
from minilm_jax.model.layers import BATCH_NORM_MOMENTUM

EPOCH_SCHEDULES = ('per_epoch', 'per_epoch_from_zero')
MUON_MOMENTUM = 0.95
MUON_UPDATE_RMS = 0.2  # root mean square of the elements of an update
_MATRIX = re.compile(r'^encoder\.(?!.*(convolution|embedding)\.).*kernel$')


def warmup_steps(config: OptimizerConfig, num_steps: int) -> int:
  """Returns the number of warm-up steps; 0 for schedules by epoch.

  >>> from configs import paper1; from minilm_jax.core import recipe
  >>> warmup_steps(recipe.resolve(paper1.get_config(), 'pretrain').optimizer, 35_475)
  1773
  """
  if config.warmup_fraction == 0 or config.schedule in EPOCH_SCHEDULES:
    return 0
  return min(config.max_warmup_steps, max(1, int(config.warmup_fraction * num_steps)))


def build_schedule(
  config: OptimizerConfig, num_steps: int, learning_rate: float | Float[Array, ''] | None = None
) -> optax.Schedule:
  """Returns the learning rate as a function of the step, counted from 0.

  Every schedule without epochs starts with a linear warm-up of W steps, and then:

  - `inverse_sqrt` (released scheduler of paper 1): `lr * min(s / W, sqrt(W / s))` with `s =
    max(step, 1)`, warm-up included.
  - `linear` and `cosine`: fall to 0 at the end of the run.
  - `warmup_stable_decay`: stays at lr, and falls to 0 as `1 - sqrt` over the last `decay_fraction`.
  - `constant`: stays at lr.

  Paper 2 changes the rate at the ends of epochs only. Epochs e = 0 ... n - 1 divide the run into
  n = `epochs` equal parts:

  - `per_epoch` (README of paper 2): `lr (n - e) / n`.
  - `per_epoch_from_zero` (code of paper 2): 0 in the first epoch, which changes only the moments,
    and then `lr (n - e) / (n - 1)`.

  Args:
    learning_rate: Replaces the learning rate of the configuration.
  """
  peak = config.learning_rate if learning_rate is None else learning_rate
  warmup = warmup_steps(config, num_steps)
  if config.schedule in EPOCH_SCHEDULES:
    return lambda step: peak * _select_epoch_share(step, config, num_steps)
  if config.schedule == 'inverse_sqrt':
    return lambda step: _inverse_sqrt(step, peak, max(warmup, 1))
  remaining = num_steps - warmup
  after = {
    'linear': lambda: optax.linear_schedule(peak, 0.0, remaining),
    'cosine': lambda: optax.cosine_decay_schedule(peak, max(remaining, 1)),
    'warmup_stable_decay': lambda: _stable_then_decay(
      peak, remaining, max(1, min(remaining, int(config.decay_fraction * num_steps)))
    ),
    'constant': lambda: optax.constant_schedule(peak),
  }[config.schedule]()
  if not warmup:
    return after
  # The ramp starts above 0, because an update at a rate of 0 changes nothing.
  return optax.join_schedules(
    [optax.linear_schedule(peak / (warmup + 1), peak, warmup), after], [warmup]
  )


def _inverse_sqrt(step: ArrayLike, peak: float | Float[Array, ''], warmup: int) -> Float[Array, '']:
  s = jnp.maximum(step, 1)
  return peak * jnp.minimum(s / warmup, jnp.sqrt(warmup / s))


def _select_epoch_share(
  step: ArrayLike, config: OptimizerConfig, num_steps: int
) -> Float[Array, '']:
  """Returns the share of the peak rate in the epoch of a step; epochs have equal lengths."""
  n = config.epochs
  remaining = np.arange(n, 0, -1)
  shares = remaining / n
  if config.schedule == 'per_epoch_from_zero':
    shares = np.where(remaining == n, 0, remaining / (n - 1))
  ends = -(-np.arange(1, n) * num_steps // n)
  return jnp.asarray(shares, jnp.float32)[jnp.searchsorted(jnp.asarray(ends), step, side='right')]


def _stable_then_decay(
  peak: float | Float[Array, ''], num_steps: int, decay: int
) -> optax.Schedule:
  return lambda step: peak * (1 - jnp.sqrt(jnp.clip((step - (num_steps - decay)) / decay, 0, 1)))


def check_no_decay(config: OptimizerConfig, model: Any) -> None:
  """Checks that each pattern of `no_decay` is in the path of a parameter.

  Raises:
    InputError: A pattern matches no parameter.
  """
  names = list(flatten(select_parameters(model)))
  for pattern in config.no_decay:
    if not any(pattern in name for name in names):
      raise InputError(
        f'optimizer.no_decay={pattern!r}',
        f'no parameter with {pattern!r} in its path',
        f'give a part of a path such as {names[0]}',
      )


def decay_mask(config: OptimizerConfig, model: Any) -> Any:
  """Returns a tree with True for parameters whose path contains no pattern of `no_decay`."""
  return map_with_name(
    lambda name, _: not any(pattern in name for pattern in config.no_decay), model
  )


def build_optimizer(
  config: OptimizerConfig,
  num_steps: int,
  model: Any,
  learning_rate: float | Float[Array, ''] | None = None,
  weight_decay: float | Float[Array, ''] | None = None,
) -> optax.GradientTransformation:
  """Returns AdamW, or Muon and AdamW, with clipping and the schedule of a configuration.

  Args:
    model: Arrays or shapes; only paths and shapes are read.
    learning_rate: Replaces the learning rate of the configuration.
    weight_decay: Replaces the weight decay of the configuration.
  """
  weight_decay = config.weight_decay if weight_decay is None else weight_decay
  clipping = [optax.clip_by_global_norm(config.clip)] if config.clip else []
  schedule, parameters = build_schedule(config, num_steps, learning_rate), select_parameters(model)
  mask = decay_mask(config, parameters)
  transform = optax.adamw(
    schedule, config.beta1, config.beta2, config.epsilon, weight_decay=weight_decay, mask=mask
  )
  if config.algorithm == 'muon':
    muon = optax.chain(
      _scale_by_muon(),
      optax.add_decayed_weights(weight_decay, mask),
      optax.scale_by_learning_rate(schedule),
    )
    # A function, because optax calls a tree of labels that is an NNX module.
    transform = optax.partition({'muon': muon, 'adamw': transform}, label_parameters)
  return _move_statistics(optax.chain(*clipping, transform))


def _scale_by_muon() -> optax.GradientTransformation:
  """Returns the directions of Muon for matrices, scaled to a root mean square of 0.2.

  Matrices of equal shape are one stack `[N A B]`, because a product of stacks compiles faster than N
  products and is one kernel on a GPU. The state has the momentum of each matrix.
  """

  def number_dimensions(stacks: Any) -> Any:
    return {shape: optax.contrib.MuonDimensionNumbers(1, 2) for shape in stacks}

  inner: Any = optax.contrib.scale_by_muon(
    beta=MUON_MOMENTUM, weight_dimension_numbers=number_dimensions
  )

  def stack(matrices: Any) -> dict[tuple[int, ...], Float[Array, 'N A B']]:
    leaves = jax.tree.leaves(matrices)
    shapes = sorted({leaf.shape for leaf in leaves})
    return {shape: jnp.stack([leaf for leaf in leaves if leaf.shape == shape]) for shape in shapes}

  def unstack(stacks: dict[tuple[int, ...], Float[Array, 'N A B']], like: Any) -> Any:
    remaining = {shape: iter(stacked) for shape, stacked in stacks.items()}
    return jax.tree.map(lambda leaf: next(remaining[leaf.shape]), like)

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    directions, after = inner.update(stack(updates), state._replace(mu=stack(state.mu)))
    scaled = {shape: MUON_UPDATE_RMS * math.sqrt(max(shape)) * x for shape, x in directions.items()}
    return unstack(scaled, updates), after._replace(mu=unstack(after.mu, updates))

  return optax.GradientTransformation(inner.init, update)


def continue_moments(fresh: Any, saved: Any) -> Any:
  """Returns the state of an optimizer with the moments of another run.

  The schedule starts at step 0. The counts of updates in bias corrections belong to the moments.

  Args:
    fresh: State of the new run before its first step, perhaps with a leading axis of members.
    saved: State of the same algorithm, of one model.
  """

  def is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)

  # Clipping has no arrays, so the leaves are equal with and without it.
  moments = jax.tree.unflatten(jax.tree.structure(fresh), jax.tree.leaves(saved))
  return jax.tree.map(
    lambda new, old: new if is_schedule(new) else jnp.broadcast_to(old, new.shape),
    fresh,
    moments,
    is_leaf=is_schedule,
  )


def label_parameters(parameters: Any) -> Any:
  """Returns 'muon' for the matrices of the encoder, and 'adamw' for all other parameters."""
  return map_with_name(
    lambda name, x: 'muon' if x.ndim == 2 and _MATRIX.search(name) else 'adamw', parameters
  )


def select_parameters(model: Any) -> Any:
  """Returns a model, or a tree of its structure, with None in place of running statistics."""
  return map_with_name(lambda name, x: None if is_statistic(name) else x, model)


def global_norm(model: Any) -> Float[Array, '']:
  """Returns the Euclidean norm of a model or gradient without running statistics, as in clipping."""
  return optax.tree.norm(select_parameters(model))


def mean_gradient(gradient: Any, total: Float[Array, ''] | int, parts: int) -> Any:
  """Returns the gradient of a mean, from sums.

  Args:
    gradient: Sum over rows, micro-batches and devices.
    total: Divisor of the summed loss.
    parts: Number of micro-batches; each observes the running statistics once.
  """
  return map_with_name(lambda name, x: x / (parts if is_statistic(name) else total), gradient)


def _move_statistics(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Returns `inner`, extended to move running statistics by the share `BATCH_NORM_MOMENTUM`."""

  def init(params: Any) -> Any:
    return inner.init(select_parameters(params))

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    change, state = inner.update(select_parameters(updates), state, select_parameters(params))
    # `changes` follows the order of the leaves of the model, without statistics.
    changes = iter(jax.tree.leaves(change))

    def move(
      name: str, observed: Float[Array, '*S'], running: Float[Array, '*S']
    ) -> Float[Array, '*S']:
      return BATCH_NORM_MOMENTUM * (observed - running) if is_statistic(name) else next(changes)

    return map_with_name(move, updates, params), state

  return optax.GradientTransformation(init, update)
