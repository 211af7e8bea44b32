"""How parameters start: one rule for the whole model, chosen by `EncoderConfig.initialization`.

Every layer is built first and every parameter is then drawn anew from its own key, so a parameter's
start depends on the seed and its path alone, never on what else the model has.
"""

import math
import zlib
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

M = TypeVar('M')
_EMBEDDING_STD = 0.02


def initialize(model: M, rule: str, key: Key[Array, ''], made: str = '') -> M:
  """A model of the same shape with fresh parameters.

  `standard`: matrices normal with variance 1 / inputs, tables normal with deviation 0.02, biases 0,
  norms (1, 0).

  `honey` (paper 1, the released `init_weights`): everything with two or more axes, tables included,
  Xavier normal, variance 2 / (rows + columns); biases 0.01; norms (1, 0), except that the norm of
  the projection is not recognised as one there and starts at gain 0.01 and bias 0.01.

  `bert` (paper 2, which leaves the library's default): matrices and tables normal with deviation
  0.02, the row of the pad included, which is zero there; biases 0; norms (1, 0).

  Convolutions start as PyTorch's do under each rule, paper 2's own: kernel and bias uniform within
  1 / sqrt(kernel height x width x channels in); a short one starts at zero. Running statistics
  start at mean 0 and variance 1.

  Args:
    model: any module; its paths name what a parameter is.
    rule: 'standard', 'paper1' or 'bert'.
    key: of the INIT or HEAD stream.
    made: what paths begin with that stay as they were made; '' is none.
  """
  draw = {'standard': _standard, 'paper1': _paper1, 'bert': _bert}[rule]
  shapes = {
    path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(model)
  }

  def start(path: tuple, leaf: Float[Array, '*S']) -> Float[Array, '*S']:
    name = path_name(path)
    own = jax.random.fold_in(key, zlib.crc32(name.encode()))
    module, _, kind = name.rpartition('.')
    if made and name.startswith(made):
      return leaf
    if 'short_convolution.' in name:
      return jnp.zeros_like(leaf)
    if is_statistic(name):
      return jnp.full_like(leaf, kind == 'running_variance')
    if kind in ('kernel', 'bias') and len(shapes.get(f'{module}.kernel', ())) == 4:
      most = 1 / math.sqrt(math.prod(shapes[f'{module}.kernel'][:3]))
      return jax.random.uniform(own, leaf.shape, leaf.dtype, -most, most)
    return draw(name, leaf.shape, own).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(start, model)


def path_name(path: tuple) -> str:
  """A parameter's path with dots, as in `encoder.blocks.0.attention.query.kernel`."""
  parts = [
    str(getattr(part, 'name', getattr(part, 'key', getattr(part, 'idx', '')))) for part in path
  ]
  # a leaf sits in its Variable's `value`
  return '.'.join(parts[:-1] if parts[-1] == 'value' else parts)


def count_parameters(model: Any) -> int:
  """How many parameters a module, or a stack of several, has; running statistics are none."""
  return sum(
    math.prod(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(model)
    if not is_statistic(path_name(path))
  )


def is_statistic(name: str) -> bool:
  """Is the array of this path a running statistic, which is observed and not learned?"""
  return name.rpartition('.')[2] in ('running_mean', 'running_variance')


def _standard(name: str, shape: tuple[int, ...], key: Key[Array, '']) -> Float[Array, '*S']:
  if name.endswith('.scale'):
    return jnp.ones(shape)
  if name.endswith('bias'):
    return jnp.zeros(shape)
  std = _EMBEDDING_STD if name.endswith('.embedding') else 1 / math.sqrt(shape[0])
  return std * jax.random.normal(key, shape)


def _paper1(name: str, shape: tuple[int, ...], key: Key[Array, '']) -> Float[Array, '*S']:
  if len(shape) >= 2:
    return math.sqrt(2 / sum(shape)) * jax.random.normal(key, shape)
  # quirk: the projection's norm is taken for a plain bias
  if 'norm.' not in name or 'projection.norm.' in name:
    return jnp.full(shape, 0.01)
  return jnp.ones(shape) if name.endswith('.scale') else jnp.zeros(shape)


def _bert(name: str, shape: tuple[int, ...], key: Key[Array, '']) -> Float[Array, '*S']:
  if name.endswith('.scale') or name.endswith('bias'):
    return _standard(name, shape, key)
  return _EMBEDDING_STD * jax.random.normal(key, shape)
