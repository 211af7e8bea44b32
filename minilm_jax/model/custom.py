"""Loads a custom encoder: a Flax NNX class that a recipe names.

1. Copy configs/examples/gated_rotary.py (an encoder) and configs/examples/own_encoder.py (a recipe
   with `config.model.encoder = 'package.module:Class'`).
2. Change the class. `minilm_jax.model.layers` has dropout, LayerNorm and linear layers.
3. `minilm show --config=FILE` checks the class on shapes, and prints parameters and FLOPs.
4. `minilm pretrain --config=FILE --workdir=DIR` trains the model. Commands that read a stored run
   import the class only with `--trust=MODULE`, because a recipe is data and a module is code.

`load_custom_encoder` checks this interface:

    class Encoder(nnx.Module):

      def __init__(self, config: EncoderConfig, rngs: nnx.Rngs): ...

      # tokens: ids [B L]; mask: true at tokens, false at pads [B L]; key: a key for each row in
      # training [B], None in evaluation. Returns [B L D] with D = config.hidden_size.
      def __call__(self, tokens, mask, *, key=None): ...

      @property
      def table(self): ...  # [V D], the token vectors; only for config.model.tied

Rules:

- B and L vary; L is at most `config.max_length`. The class computes one batch of one model; the
  program applies populations, gradients, meshes and compilation.
- All arrays are `nnx.Param` of float32: no stored rngs, running statistics or constant arrays. Make
  constants in `__call__`, and take randomness from `key` (`layers.split_key`,
  `layers.apply_dropout`).
- `__init__` initializes the parameters from `rngs`; `config.initialization` applies to the head.
- Each layer and parameter is stored once. Shared layers are called several times.
- The class may read every field of `config`, and implements `dropout`, `dtype` and `remat` itself.
- Weight decay follows paths: name tables `embedding` and norms `norm`, as in `optimizer.no_decay`.
- Muon updates matrices named `kernel`, except below `embedding` and `convolution`. AdamW updates all
  other arrays.
- Test two properties: the content of pads changes nothing, and a row does not depend on other rows.
  tests/model/test_custom.py has both tests.

The class cannot change loss, step or sharding; every device has a copy of the parameters.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from minilm_jax.core import backend, recipe
from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.model.initialization import cache_by_encoder, path_name


@cache_by_encoder()
def load_custom_encoder(config: EncoderConfig) -> Callable[[EncoderConfig, nnx.Rngs], nnx.Module]:
  """Returns the class of `config.encoder`, after checks on shapes without computation.

  Raises:
    InputError: The class is not trusted, is missing, is not a Flax NNX module, or lacks the
      interface of this module.
  """
  backend.check_precision()
  name, subject = config.encoder.partition(':')[2], f'the encoder {config.encoder}'
  encoder_class = recipe.import_class(config.encoder)
  if not (isinstance(encoder_class, type) and issubclass(encoder_class, nnx.Module)):
    raise InputError(
      subject,
      f'{name} is not a Flax NNX module',
      f'write class {name}(nnx.Module), with nnx of flax',
    )
  build = cast(Callable[[EncoderConfig, nnx.Rngs], nnx.Module], encoder_class)
  shared: list[tuple[str, str]] = []

  def construct() -> nnx.Module:
    model = build(config, nnx.Rngs(0))
    shared.extend(_find_shared(model))
    return model

  # A new function for each trace, because JAX caches traces by function.
  shapes, other_shapes = (
    _trace(subject, f'{name}(config, rngs)', lambda: construct()) for _ in range(2)
  )
  if shared:
    raise InputError(
      subject,
      f'{shared[0][1]} is the same parameter as {shared[0][0]}',
      'store a shared layer once, and call it several times',
    )
  _check_parameters(subject, shapes)
  if jax.tree.structure(shapes) != jax.tree.structure(other_shapes):
    raise InputError(
      subject,
      'two instances of one config differ in attributes other than parameters',
      'set attributes to the config, numbers or strings, not to functions made in __init__',
    )
  for batch, length in ((2, config.max_length), (3, config.max_length - 1)):
    for has_key in (False, True):
      _check_call(subject, shapes, (batch, length, config.hidden_size), has_key)
  if config.tied:
    table = _trace(subject, 'encoder.table', lambda model: model.table[...], shapes)
    shape = (config.vocab_size, config.hidden_size)
    _check_array(subject, 'encoder.table, which a tied head reads,', table, shape)
  return build


def _check_call(subject: str, model: Any, shape: tuple[int, int, int], has_key: bool) -> None:
  """Checks that a call with tokens `[B L]` returns floats of `shape`, `[B L D]`."""
  tokens = jax.ShapeDtypeStruct(shape[:2], jnp.int32)
  mask = jax.ShapeDtypeStruct(shape[:2], jnp.bool_)
  key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), shape[0])) if has_key else None
  operation = f'encoder(tokens, mask, key={"keys" if has_key else None}) with tokens {tokens.shape}'
  call = lambda model, tokens, mask, key: model(tokens, mask, key=key)  # noqa: E731
  _check_array(
    subject, operation, _trace(subject, operation, call, model, tokens, mask, key), shape
  )


def _trace(subject: str, operation: str, call: Callable[..., Any], *arguments: Any) -> Any:
  try:
    return jax.eval_shape(call, *arguments)
  except recipe.RECIPE_ERRORS as error:
    raise recipe.describe_import_error(subject, operation, error) from error


def _check_array(subject: str, operation: str, result: Any, shape: tuple[int, ...]) -> None:
  if not hasattr(result, 'shape'):
    description = f'a {type(result).__name__}'
  elif result.shape != shape or not jnp.issubdtype(result.dtype, jnp.floating):
    description = f'{result.dtype} {result.shape}'
  else:
    return
  raise InputError(
    subject, f'{operation} returns {description}', f'return one array of floats with shape {shape}'
  )


def _list_variables(model: Any) -> list[tuple[Any, Any]]:
  return jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _find_shared(model: Any) -> Iterator[tuple[str, str]]:
  """Yields two paths of each variable with several; copies of the model would separate them."""
  paths: dict[int, str] = {}
  for path, leaf in _list_variables(model):
    name = path_name(path)
    first = paths.setdefault(id(leaf), name)
    if first != name:
      yield first, name


def _check_parameters(subject: str, model: Any) -> None:
  """Checks that all arrays are float32 parameters, because all are trained, saved and stacked."""
  leaves = _list_variables(model)
  for path, leaf in leaves:
    dtype = leaf.dtype if hasattr(leaf, 'dtype') else 'not an array'
    if not isinstance(leaf, nnx.Param) or dtype != jnp.float32:
      kind = type(leaf).__name__ if isinstance(leaf, nnx.Variable) else 'bare array'
      raise InputError(
        subject,
        f'{path_name(path)} is a {kind} ({dtype})',
        'use only nnx.Param of float32: make constants in __call__, take randomness from its key',
      )
  if not leaves:
    raise InputError(subject, 'no parameters', 'make layers in __init__, such as nnx.Linear')
