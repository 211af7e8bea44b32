"""Schedules, and AdamW or Muon with decay by path, as optax chains; running statistics beside it.

Muon (Jordan et al., 2024) is for matrices: the update is the momentum with its singular values made nearly equal, by
five steps of Newton-Schulz. Here it moves the matrices of projection and blocks, and AdamW all the rest: embeddings,
biases, norms, convolutions, heads. Each orthogonal update is scaled to a root mean square of 0.2 an element, which is
about what AdamW's has in training (Liu et al., 2025, arXiv 2502.16982, section 2.2). So one learning rate, its
schedule and one weight decay mean the same for both, and a recipe of AdamW's may be run with Muon as it is. Momentum is
0.95, with Nesterov's look ahead; `beta1`, `beta2` and `epsilon` are of AdamW's part. What optax offers as a whole,
`optax.contrib.muon` with its own AdamW, takes Nesterov's form there too and knows no decay by path, so the two are put
side by side here.

A running statistic of BatchNorm (`model/convolution.py`) is no parameter: it is not in the norm that clipping takes, it
is not decayed and has no moments. Where parameters have a gradient it has what was observed, and moves towards that.
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from minilm_jax.config import OptimizerConfig
from minilm_jax.errors import InputError
from minilm_jax.model.convolution import MOMENTUM
from minilm_jax.model.initialization import is_statistic, path_name


_BY_EPOCH = ('epochs', 'epochs_from_zero')  # schedules
_MOMENTUM, _SIZE = 0.95, 0.2  # of Muon's updates; the size is the root mean square of their elements
_MATRIX = re.compile(r'^encoder\.(?!.*(convolution|embedding)\.).*kernel$')


class Rates(NamedTuple):
  """What members of a population may differ in: the learning rate at the top of the schedule, and the decay."""

  learning_rate: float | Float[Array, '*P']
  weight_decay: float | Float[Array, '*P']


def rates(config: OptimizerConfig) -> Rates:
  """What the recipe says."""
  return Rates(config.learning_rate, config.weight_decay)


def warmup(config: OptimizerConfig, updates: int) -> int:
  """Updates of warm-up: a share of all, at least one where there is any, at most `warmup_most`; none by the epoch.

  >>> from configs import honey; from minilm_jax import recipe
  >>> warmup(recipe.resolve(honey.get_config(), 'pretrain').optimizer, 35_475)
  1773
  """
  if config.warmup_share == 0 or config.schedule in _BY_EPOCH:
    return 0
  return min(config.warmup_most, max(1, int(config.warmup_share * updates)))


def schedule(config: OptimizerConfig, updates: int, top: float | Float[Array, ''] | None = None) -> optax.Schedule:
  """The learning rate at each update, counted from 0; `top` stands for `config.learning_rate` where it is given.

  `honey` is the paper's: with W updates of warm-up, `lr * min(s / W, sqrt(W / s))` and `s = max(update, 1)` (paper 1,
  the released scheduler). `linear` and `cosine` fall to 0 at the end; `warmup_stable_decay` stays and then falls to 0
  like `1 - sqrt` over the last `decay_share`; all of these warm up linearly. `constant` warms up and stays.

  Paper 2 changes the rate at the ends of epochs only. Of n = `epochs` equal parts of the run, counted e = 0 ... n - 1,
  `epochs` has lr (n - e) / n, as its README says, and `epochs_from_zero` what its code ran, 0 in the first and then
  lr (n - e) / (n - 1): the whole first epoch moves nothing but the moments.
  """
  rate, rise = config.learning_rate if top is None else top, warmup(config, updates)
  if config.schedule in _BY_EPOCH:
    return lambda update: rate * _by_epoch(update, config, updates)
  if config.schedule == 'honey':
    return lambda update: _honey(update, rate, max(rise, 1))
  fall = updates - rise
  after = {
      'linear': lambda: optax.linear_schedule(rate, 0.0, fall),
      'cosine': lambda: optax.cosine_decay_schedule(rate, max(fall, 1)),
      'warmup_stable_decay': lambda: _stable_then_decay(rate, fall, max(1, int(config.decay_share * updates))),
      'constant': lambda: optax.constant_schedule(rate),
  }[config.schedule]()
  if not rise:
    return after
  # the first update is not wasted at a rate of zero: the ramp starts one step up
  return optax.join_schedules([optax.linear_schedule(rate / (rise + 1), rate, rise), after], [rise])


def _honey(update: int | Int[Array, ''], rate: float | Float[Array, ''], rise: int) -> Float[Array, '']:
  s = jnp.maximum(update, 1)
  return rate * jnp.minimum(s / rise, jnp.sqrt(rise / s))


def _by_epoch(update: int | Int[Array, ''], config: OptimizerConfig, updates: int) -> Float[Array, '']:
  """The share of the rate that an epoch has; epochs are as equal as whole updates can be."""
  n = config.epochs
  left = np.arange(n, 0, -1)
  shares = left / n if config.schedule == 'epochs' else np.where(left == n, 0, left / (n - 1))
  ends = -(-np.arange(1, n) * updates // n)  # of each but the last: the first update of the next
  return jnp.asarray(shares, jnp.float32)[jnp.searchsorted(jnp.asarray(ends), update, side='right')]


def _stable_then_decay(rate: float | Float[Array, ''], updates: int, decay: int) -> optax.Schedule:
  return lambda update: rate * (1 - jnp.sqrt(jnp.clip((update - (updates - decay)) / decay, 0, 1)))


def decayed(config: OptimizerConfig, model: Any) -> Any:
  """True for each parameter that weight decay reaches: those whose path contains none of `undecayed`.

  Raises:
    InputError: a pattern matches no parameter at all.
  """
  names = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(model)[0]]
  for pattern in config.undecayed:
    if not any(pattern in name for name in names):
      raise InputError(f'optimizer.undecayed={pattern!r}', 'no parameter has it in its path',
                       f'use a part of a path such as {names[0]}')

  def reached(path: tuple, leaf: Any) -> bool:
    return not any(pattern in path_name(path) for pattern in config.undecayed)

  return jax.tree_util.tree_map_with_path(reached, model)


def build(config: OptimizerConfig, updates: int, model: Any, own: Rates | None = None) -> optax.GradientTransformation:
  """AdamW, or Muon and AdamW, with this schedule.

  Args:
    config: the recipe's.
    updates: of the whole run.
    model: arrays or shapes; it only tells which parameters there are.
    own: the rates of a member, instead of those of the recipe.
  """
  own = own or rates(config)
  steps = [optax.clip_by_global_norm(config.clip)] if config.clip else []
  rate, parameters = schedule(config, updates, own.learning_rate), learned(model)
  reached = decayed(config, parameters)
  step = optax.adamw(rate, config.beta1, config.beta2, config.epsilon, weight_decay=own.weight_decay, mask=reached)
  if config.algorithm == 'muon':
    of_matrices = optax.contrib.muon(rate, beta=_MOMENTUM, weight_decay=own.weight_decay, weight_decay_mask=reached,
                                     consistent_rms=_SIZE)
    step = optax.partition({'muon': of_matrices, 'adamw': step}, labels)  # it would call labels that are a module
  return _beside_statistics(optax.chain(*steps, step))


def labels(parameters: Any) -> Any:
  """Who moves each parameter under Muon: 'muon' the matrices of the encoder, whichever it is, 'adamw' the rest."""
  def label(path: tuple, leaf: Any) -> str:
    return 'muon' if leaf.ndim == 2 and _MATRIX.search(path_name(path)) else 'adamw'

  return jax.tree_util.tree_map_with_path(label, parameters)


def learned(model: Any) -> Any:
  """A model, or what is shaped like one, with None where a running statistic is; as it is where there is none."""
  return jax.tree_util.tree_map_with_path(lambda path, x: None if is_statistic(path_name(path)) else x, model)


def norm(model: Any) -> Float[Array, '']:
  """The Euclidean norm of a model, or of its gradient, running statistics left out: what clipping takes too."""
  return optax.tree.norm(learned(model))


def averaged(gradient: Any, total: Float[Array, ''] | int, parts: int) -> Any:
  """The gradient of a mean, from sums.

  Args:
    gradient: summed over rows, micro-batches and devices.
    total: what the sum of losses is divided by.
    parts: micro-batches, each of which observed the running statistics once.
  """
  return jax.tree_util.tree_map_with_path(
      lambda path, x: x / (parts if is_statistic(path_name(path)) else total), gradient)


def _beside_statistics(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Updates parameters by `inner`, which sees nothing else, and running statistics by the share `MOMENTUM`."""
  def init(model: Any) -> Any:
    return inner.init(learned(model))

  def update(gradient: Any, state: Any, model: Any) -> tuple[Any, Any]:
    change, state = inner.update(learned(gradient), state, learned(model))
    changes = iter(jax.tree.leaves(change))  # in the order of the model's own leaves, statistics left out

    def each(path: tuple, observed: Float[Array, '*S'], running: Float[Array, '*S']) -> Float[Array, '*S']:
      return MOMENTUM * (observed - running) if is_statistic(path_name(path)) else next(changes)

    return jax.tree_util.tree_map_with_path(each, gradient, model), state

  return optax.GradientTransformation(init, update)
