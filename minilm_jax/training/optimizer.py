"""Builds learning rate schedules, and AdamW or Muon with weight decay by path, as optax chains.

Muon (Jordan et al., 2024) updates matrices by their momentum, whose singular values five
Newton-Schulz steps make nearly equal. Here it updates the matrices of projection and blocks, and
AdamW updates all others: embeddings, biases, norms, convolutions, heads. Each orthogonal update is
scaled to a root mean square of 0.2 an element, about that of AdamW in training (Liu et al., 2025,
arXiv 2502.16982, section 2.2). So one learning rate, its schedule and one weight decay mean the
same for both, and a recipe for AdamW works with Muon without changes. Momentum is 0.95, in
Nesterov's form; `beta1`, `beta2` and `epsilon` belong to AdamW. `optax.contrib.muon` with its own
AdamW uses Nesterov's form there too and has no decay by path, so this module combines the two
itself.

A running statistic of BatchNorm (`model/convolution.py`) is no parameter: clipping and decay ignore
it, and it has no moments. In place of a gradient it has the observed value, and moves towards that.
"""

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
from minilm_jax.model.initialization import is_statistic, path_name
from minilm_jax.model.layers import BATCH_NORM_MOMENTUM

EPOCH_SCHEDULES = ('per_epoch', 'per_epoch_from_zero')
MUON_MOMENTUM = 0.95
MUON_UPDATE_RMS = 0.2  # root mean square of the elements of an update
_MATRIX = re.compile(r'^encoder\.(?!.*(convolution|embedding)\.).*kernel$')


def warmup_steps(config: OptimizerConfig, num_steps: int) -> int:
  """Returns the steps of warm-up: a share of all, at least one; none for schedules by epoch.

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
  """Returns the learning rate as a function of the step, from 0.

  `inverse_sqrt` is that of paper 1 (its released scheduler): with W steps of warm-up and `s =
  max(step, 1)`, `lr * min(s / W, sqrt(W / s))`. `linear` and `cosine` fall to 0 at the end.
  `warmup_stable_decay` stays and then falls to 0 like `1 - sqrt` over the last `decay_fraction`.
  All of these warm up linearly. `constant` warms up and stays.

  Paper 2 changes the rate at the ends of epochs only. Of n = `epochs` equal parts of the run,
  counted e = 0 ... n - 1, `per_epoch` has lr (n - e) / n, as its README says. `per_epoch_from_zero`
  has what its code ran: 0 in the first epoch, which so changes only the moments, and then
  lr (n - e) / (n - 1).

  Args:
    config: the optimizer's.
    num_steps: of the whole run.
    learning_rate: replaces that of the recipe.
  """
  peak = config.learning_rate if learning_rate is None else learning_rate
  warmup = warmup_steps(config, num_steps)
  if config.schedule in EPOCH_SCHEDULES:
    return lambda step: peak * _epoch_share(step, config, num_steps)
  if config.schedule == 'inverse_sqrt':
    return lambda step: _inverse_sqrt(step, peak, max(warmup, 1))
  remaining = num_steps - warmup
  after = {
    'linear': lambda: optax.linear_schedule(peak, 0.0, remaining),
    'cosine': lambda: optax.cosine_decay_schedule(peak, max(remaining, 1)),
    'warmup_stable_decay': lambda: _stable_then_decay(
      peak, remaining, max(1, int(config.decay_fraction * num_steps))
    ),
    'constant': lambda: optax.constant_schedule(peak),
  }[config.schedule]()
  if not warmup:
    return after
  # the ramp starts one step up: a first step at a rate of zero would be wasted
  return optax.join_schedules(
    [optax.linear_schedule(peak / (warmup + 1), peak, warmup), after], [warmup]
  )


def _inverse_sqrt(step: ArrayLike, peak: float | Float[Array, ''], warmup: int) -> Float[Array, '']:
  s = jnp.maximum(step, 1)
  return peak * jnp.minimum(s / warmup, jnp.sqrt(warmup / s))


def _epoch_share(step: ArrayLike, config: OptimizerConfig, num_steps: int) -> Float[Array, '']:
  """Returns the share of the peak rate in the epoch of a step; epochs have equal lengths."""
  n = config.epochs
  remaining = np.arange(n, 0, -1)
  shares = remaining / n
  if config.schedule == 'per_epoch_from_zero':
    shares = np.where(remaining == n, 0, remaining / (n - 1))
  # of each epoch but the last, the first step of the next
  ends = -(-np.arange(1, n) * num_steps // n)
  return jnp.asarray(shares, jnp.float32)[jnp.searchsorted(jnp.asarray(ends), step, side='right')]


def _stable_then_decay(
  peak: float | Float[Array, ''], num_steps: int, decay: int
) -> optax.Schedule:
  return lambda step: peak * (1 - jnp.sqrt(jnp.clip((step - (num_steps - decay)) / decay, 0, 1)))


def decay_mask(config: OptimizerConfig, model: Any) -> Any:
  """Returns True for each parameter with weight decay: its path contains no pattern of `no_decay`.

  Raises:
    InputError: a pattern matches no parameter.
  """
  names = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(model)[0]]
  for pattern in config.no_decay:
    if not any(pattern in name for name in names):
      raise InputError(
        f'optimizer.no_decay={pattern!r}',
        'no parameter has it in its path',
        f'use a part of a path such as {names[0]}',
      )

  def is_decayed(path: tuple, leaf: Any) -> bool:
    return not any(pattern in path_name(path) for pattern in config.no_decay)

  return jax.tree_util.tree_map_with_path(is_decayed, model)


def build_optimizer(
  config: OptimizerConfig,
  num_steps: int,
  model: Any,
  learning_rate: float | Float[Array, ''] | None = None,
  weight_decay: float | Float[Array, ''] | None = None,
) -> optax.GradientTransformation:
  """Returns AdamW, or Muon and AdamW, with this schedule.

  Args:
    config: the optimizer's.
    num_steps: of the whole run.
    model: arrays or shapes; only the paths and shapes of its parameters are used.
    learning_rate: replaces that of the recipe.
    weight_decay: replaces that of the recipe.
  """
  weight_decay = config.weight_decay if weight_decay is None else weight_decay
  clipping = [optax.clip_by_global_norm(config.clip)] if config.clip else []
  schedule, parameters = build_schedule(config, num_steps, learning_rate), select_parameters(model)
  mask = decay_mask(config, parameters)
  transform = optax.adamw(
    schedule, config.beta1, config.beta2, config.epsilon, weight_decay=weight_decay, mask=mask
  )
  if config.algorithm == 'muon':
    muon = optax.contrib.muon(
      schedule,
      beta=MUON_MOMENTUM,
      weight_decay=weight_decay,
      weight_decay_mask=mask,
      consistent_rms=MUON_UPDATE_RMS,
    )
    # the function itself: optax would call a tree of labels that is a module
    transform = optax.partition({'muon': muon, 'adamw': transform}, label_parameters)
  return _with_statistics(optax.chain(*clipping, transform))


def label_parameters(parameters: Any) -> Any:
  """Returns 'muon' for the matrices of the encoder, and 'adamw' for all other parameters."""

  def label(path: tuple, leaf: Any) -> str:
    return 'muon' if leaf.ndim == 2 and _MATRIX.search(path_name(path)) else 'adamw'

  return jax.tree_util.tree_map_with_path(label, parameters)


def select_parameters(model: Any) -> Any:
  """Returns a model, or a tree of its structure, with None in place of running statistics."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: None if is_statistic(path_name(path)) else x, model
  )


def global_norm(model: Any) -> Float[Array, '']:
  """Returns the Euclidean norm of a model or gradient without running statistics.

  Clipping uses the same norm.
  """
  return optax.tree.norm(select_parameters(model))


def mean_gradient(gradient: Any, total: Float[Array, ''] | int, parts: int) -> Any:
  """Returns the gradient of a mean, from sums.

  Args:
    gradient: summed over rows, micro-batches and devices.
    total: divisor of the summed loss.
    parts: number of micro-batches, each of which observed the running statistics once.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x / (parts if is_statistic(path_name(path)) else total), gradient
  )


def _with_statistics(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Returns `inner`, extended to move running statistics by the share `BATCH_NORM_MOMENTUM`."""

  def init(params: Any) -> Any:
    return inner.init(select_parameters(params))

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    change, state = inner.update(select_parameters(updates), state, select_parameters(params))
    # in the order of the model's own leaves, without statistics
    changes = iter(jax.tree.leaves(change))

    def move(
      path: tuple, observed: Float[Array, '*S'], running: Float[Array, '*S']
    ) -> Float[Array, '*S']:
      return (
        BATCH_NORM_MOMENTUM * (observed - running)
        if is_statistic(path_name(path))
        else next(changes)
      )

    return jax.tree_util.tree_map_with_path(move, updates, params), state

  return optax.GradientTransformation(init, update)
