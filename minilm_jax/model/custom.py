"""A custom encoder: one Flax NNX class of your own that a recipe names.

1. Copy configs/examples/gated_rotary.py (an encoder) and configs/examples/own_encoder.py (the
   recipe that names it as `config.model.encoder = 'package.module:Class'`).
2. Change the class. `minilm_jax.model.layers` has dropout, LayerNorm and linear layers to use.
3. `minilm show --config=FILE` checks it on shapes alone and prints parameters and FLOPs.
4. `minilm pretrain --config=FILE --workdir=DIR` trains it. Commands that read a stored run import
   the class only with `--trust=MODULE`, because a stored recipe is data and a module is code.

The interface, checked by `load_custom_encoder`:

    class Encoder(nnx.Module):

      def __init__(self, config: EncoderConfig, rngs: nnx.Rngs): ...

      # tokens [B L] ids, mask [B L] true at tokens and false at pads, key [B] one a row in training
      # and None in evaluation; returns [B L D] with D = config.hidden_size.
      def __call__(self, tokens, mask, *, key=None): ...

      @property
      def table(self): ...  # [V D], the token vectors; needed only with config.model.tied

Rules:

- B and L vary; L is at most `config.max_length`. The class sees one batch of one model:
  populations, gradients, meshes and compilation are applied around it.
- It holds `nnx.Param` arrays of float32 and nothing else: no stored rngs, no running statistics, no
  constant arrays. Make constants in `__call__`, and take randomness from `key` (`layers.split_key`,
  `layers.apply_dropout`).
- It initializes its parameters from `rngs`; `config.initialization` applies to the head only.
- It may read every field of `config`; `dropout`, `dtype` and `remat` are its own responsibility.
- Weight decay goes by path: call tables `embedding` and norms `norm`, as in `optimizer.no_decay`.
- Test two properties that no shape shows: the content of pads changes nothing, and a row does not
  depend on its neighbours (tests/model/test_custom.py has both).

Losses, steps and shardings cannot be replaced; on each device its arrays are whole.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from minilm_jax.core import recipe
from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.model.initialization import path_name


@dataclasses.dataclass(frozen=True)
class CustomEncoder:
  """A checked custom encoder: its class, and an instance with shapes in place of arrays."""

  build: Callable[[EncoderConfig, nnx.Rngs], nnx.Module]
  shapes: Any


@functools.lru_cache(maxsize=64)
def load_custom_encoder(config: EncoderConfig) -> CustomEncoder:
  """Returns the encoder that `config.encoder` names, after checks on shapes without computation.

  Raises:
    InputError: it is not trusted, does not exist, is no Flax NNX module, or does not have the
      interface of this module's docstring.
  """
  name, what = config.encoder.partition(':')[2], f'the encoder {config.encoder}'
  encoder_class = recipe.import_class(config.encoder)
  if not (isinstance(encoder_class, type) and issubclass(encoder_class, nnx.Module)):
    raise InputError(
      what, f'{name} is no class of Flax NNX', f'write class {name}(nnx.Module), with nnx of flax'
    )
  shapes, again = (
    _trace(what, f'{name}(config, rngs)', lambda: encoder_class(config, nnx.Rngs(0)))
    for _ in range(2)
  )
  _check_parameters(what, shapes)
  if jax.tree.structure(shapes) != jax.tree.structure(again):
    raise InputError(
      what,
      'two instances of one config differ in their attributes other than parameters',
      'keep the config, numbers and strings there, and no function made in __init__',
    )
  for batch, length in ((2, config.max_length), (3, config.max_length - 1)):
    for has_key in (False, True):
      _check_call(what, shapes, (batch, length, config.hidden_size), has_key)
  if config.tied:
    table = _trace(what, 'encoder.table', lambda model: model.table[...], shapes)
    shape = (config.vocab_size, config.hidden_size)
    _check_array(what, 'encoder.table, which a tied head reads,', table, shape)
  return CustomEncoder(encoder_class, shapes)


def _check_call(what: str, model: Any, shape: tuple[int, int, int], has_key: bool) -> None:
  """Checks that a call with tokens `[B L]` gives floats of `shape`, `[B L D]`."""
  tokens = jax.ShapeDtypeStruct(shape[:2], jnp.int32)
  mask = jax.ShapeDtypeStruct(shape[:2], jnp.bool_)
  key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), shape[0])) if has_key else None
  asked = f'encoder(tokens, mask, key={"keys" if has_key else None}) with tokens {tokens.shape}'
  call = lambda model, tokens, mask, key: model(tokens, mask, key=key)  # noqa: E731
  _check_array(what, asked, _trace(what, asked, call, model, tokens, mask, key), shape)


def _trace(what: str, asked: str, call: Callable[..., Any], *arguments: Any) -> Any:
  try:
    return jax.eval_shape(call, *arguments)
  except recipe.RECIPE_ERRORS as error:
    raise recipe.describe_import_error(what, asked, error) from error


def _check_array(what: str, asked: str, result: Any, shape: tuple[int, ...]) -> None:
  if not hasattr(result, 'shape'):
    description = f'a {type(result).__name__}'
  elif result.shape != shape or not jnp.issubdtype(result.dtype, jnp.floating):
    description = f'{result.dtype} {result.shape}'
  else:
    return
  raise InputError(what, f'{asked} gives {description}', f'give one array of floats {shape}')


def _check_parameters(what: str, model: Any) -> None:
  """Requires float32 parameters only: all arrays are trained, saved and, in a population, stacked."""
  leaves = jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda x: isinstance(x, nnx.Variable))
  for path, leaf in leaves:
    if not isinstance(leaf, nnx.Param) or leaf.dtype != jnp.float32:
      kind = type(leaf).__name__ if isinstance(leaf, nnx.Variable) else 'bare array'
      raise InputError(
        what,
        f'{path_name(path)} is a {kind} ({leaf.dtype})',
        'keep only nnx.Param of float32: make constants in __call__, take keys from its key',
      )
  if not leaves:
    raise InputError(what, 'it has no parameters', 'make layers in __init__, such as nnx.Linear')
