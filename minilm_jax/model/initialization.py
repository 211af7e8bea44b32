"""Draws initial parameters by the rule `EncoderConfig.initialization`.

A model is built first; then each parameter is drawn from a separate key. The initial value of a
parameter depends only on the seed and its path, not on other parts of the model. Functions that
trace a model are cached by `cache_by_encoder`.
"""

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from minilm_jax.core.model_config import EncoderConfig

M = TypeVar('M')
F = TypeVar('F', bound=Callable[..., Any])
_EMBEDDING_STD = 0.02


def initialize(model: M, rule: str, key: Key[Array, ''], skip_prefix: str = '') -> M:
  """Returns a model of the same structure with new parameters.

  - `standard`: matrices are normal with variance 1 / inputs, embedding tables normal with standard
    deviation 0.02, biases 0, norms (1, 0).
  - `paper1` (released `init_weights`): arrays of two or more axes, tables included, are Xavier
    normal with variance 2 / (rows + columns), biases 0.01, norms (1, 0). The released code does not
    recognise the norm of the projection: its gain and bias start at 0.01.
  - `bert` (paper 2, default of transformers): matrices and tables are normal with standard
    deviation 0.02, biases 0, norms (1, 0). transformers zeroes the row of the pad; this rule does
    not.

  Under each rule, convolutions start as in PyTorch and paper 2: kernel and bias are uniform within
  1 / sqrt(kernel height x width x input channels). A short convolution starts at zero, and running
  statistics at mean 0 and variance 1.

  Args:
    model: A module with arrays or shapes; paths name its parameters.
    key: A key of the INIT or HEAD stream.
    skip_prefix: Parameters with this prefix keep their values; '' skips none.
  """
  draw = {'standard': _draw_standard, 'paper1': _draw_paper1, 'bert': _draw_bert}[rule]
  shapes = {name: leaf.shape for name, leaf in flatten(model).items()}

  def draw_parameter(
    name: str, leaf: Float[Array, '*S'] | Float[jax.ShapeDtypeStruct, '*S']
  ) -> Float[Array, '*S']:
    parameter_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    module, _, kind = name.rpartition('.')
    if skip_prefix and name.startswith(skip_prefix):
      return cast(Array, leaf)  # a part with a prefix has arrays
    if 'short_convolution.' in name:
      return jnp.zeros_like(leaf)
    if is_statistic(name):
      return jnp.full_like(leaf, kind == 'running_variance')
    if kind in ('kernel', 'bias') and len(shapes.get(f'{module}.kernel', ())) == 4:
      bound = 1 / math.sqrt(math.prod(shapes[f'{module}.kernel'][:3]))
      return jax.random.uniform(parameter_key, leaf.shape, leaf.dtype, -bound, bound)
    return draw(name, leaf.shape, parameter_key).astype(leaf.dtype)

  return map_with_name(draw_parameter, model)


def path_name(path: tuple) -> str:
  """Returns a path of a pytree with dots, such as `encoder.blocks.0.attention.query.kernel`."""
  parts = [
    str(getattr(part, 'name', getattr(part, 'key', getattr(part, 'idx', '')))) for part in path
  ]
  # The last part is `value` for the array of a Variable.
  return '.'.join(parts[:-1] if parts[-1] == 'value' else parts)


def flatten(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a pytree by their path."""
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_with_name(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
  """Returns a pytree of the results of `function(path, leaf, *leaves of the other trees)`."""
  return jax.tree_util.tree_map_with_path(
    lambda path, *leaves: function(path_name(path), *leaves), tree, *others
  )


def list_parameter_sizes(model: Any) -> dict[str, int]:
  """Returns the number of elements of each parameter by its path, without running statistics."""
  return {
    name: math.prod(leaf.shape) for name, leaf in flatten(model).items() if not is_statistic(name)
  }


def count_parameters(model: Any) -> int:
  """Returns the number of parameters of a module or stacked modules, without running statistics."""
  return sum(list_parameter_sizes(model).values())


def is_statistic(name: str) -> bool:
  """Returns whether the array at a path is a running statistic of BatchNorm."""
  return name.rpartition('.')[2] in ('running_mean', 'running_variance')


def _draw_standard(name: str, shape: tuple[int, ...], key: Key[Array, '']) -> Float[Array, '*S']:
  if name.endswith('.scale'):
    return jnp.ones(shape)
  if name.endswith('bias'):
    return jnp.zeros(shape)
  std = _EMBEDDING_STD if name.endswith('.embedding') else 1 / math.sqrt(shape[0])
  return std * jax.random.normal(key, shape)


def _draw_paper1(name: str, shape: tuple[int, ...], key: Key[Array, '']) -> Float[Array, '*S']:
  if len(shape) >= 2:
    return math.sqrt(2 / sum(shape)) * jax.random.normal(key, shape)
  # The released code does not recognise the norm of the projection.
  if 'norm.' not in name or 'projection.norm.' in name:
    return jnp.full(shape, 0.01)
  return jnp.ones(shape) if name.endswith('.scale') else jnp.zeros(shape)


def _draw_bert(name: str, shape: tuple[int, ...], key: Key[Array, '']) -> Float[Array, '*S']:
  if name.endswith('.scale') or name.endswith('bias'):
    return _draw_standard(name, shape, key)
  return _EMBEDDING_STD * jax.random.normal(key, shape)


def cache_by_encoder(maxsize: int = 64) -> Callable[[F], F]:
  """Returns a decorator that caches a function of an `EncoderConfig`.

  The class of a custom encoder is part of the key. A notebook may define another class under the
  same name.
  """

  def decorate(function: F) -> F:
    @functools.lru_cache(maxsize)
    def call(encoder_class: Any, *arguments: Any) -> Any:
      return function(*arguments)

    @functools.wraps(function)
    def cached(*arguments: Any) -> Any:
      config = next(value for value in arguments if isinstance(value, EncoderConfig))
      if not config.encoder:
        return call(None, *arguments)
      # Imported late, because only a recipe with a custom encoder needs it.
      from minilm_jax.core import recipe

      return call(recipe.import_class(config.encoder), *arguments)

    return cast(F, cached)

  return decorate
