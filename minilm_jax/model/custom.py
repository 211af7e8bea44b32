"""An encoder of one's own: a Flax NNX class in a file of the user's, which a recipe names as
`package.module:Class`.

    class Encoder(nnx.Module):

      def __init__(self, config: EncoderConfig, rngs: nnx.Rngs): ...

      def __call__(self, tokens, mask, *, key=None): ...  # ids [B L], no pad [B L], a key a row [B] or none -> [B L D]

      @property
      def table(self): ...  # [V D]; only a tied head reads it

It is used as ours is: under plain JAX transforms, for one batch and one model. So B and L may be
any (L at most `config.length`), and `key=None` is evaluation. It keeps parameters and nothing else:
no stored rngs, no running statistics, no arrays beside `nnx.Param`. How they start is its own
matter, by the `rngs` it is given; `initialization` is of the head. The other fields of
`config.model` are its to read, `dropout`, `compute` and `remat` among them. Weight decay goes by
names, as for ours: tables are called `embedding`, norms `norm`. What no shape shows is left to its
tests: pads change nothing (`mask`), and a row does not see its neighbours.

`configs/examples/gated_rotary.py` is one. What is left out: hooks for a step, a loss or a sharding
of its own; on every device its arrays are whole.
"""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from minilm_jax.core import recipe
from minilm_jax.core.errors import InputError
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.model.initialization import path_name


def build_encoder(config: EncoderConfig) -> type[nnx.Module]:
  """The class that the recipe names, after it was tried on shapes alone: nothing is computed.

  Raises:
    InputError: it is not trusted, not there, no module of Flax NNX, or does not offer what this
      file asks for.
  """
  return _tried(config)[0]


@functools.lru_cache(maxsize=64)
def _tried(config: EncoderConfig) -> tuple[type[nnx.Module], Any]:
  """The class, and the shapes of its arrays."""
  made, what = recipe.import_class(config.encoder), f'the encoder {config.encoder}'
  name = config.encoder.partition(':')[2]
  if not (isinstance(made, type) and issubclass(made, nnx.Module)):
    raise InputError(
      what, f'{name} is no class of Flax NNX', f'write class {name}(nnx.Module), with nnx of flax'
    )
  asked = f'{name}(config, rngs)'
  one, other = (_shapes(what, asked, lambda: made(config, nnx.Rngs(0))) for _ in range(2))
  _check_arrays(what, one)
  if jax.tree.structure(one) != jax.tree.structure(other):
    raise InputError(
      what,
      'two of one config are not alike in what they hold beside parameters',
      'keep the config and plain numbers and words there, no function made on the way',
    )
  for (batch, length), keyed in itertools.product(
    ((2, config.max_length), (3, config.max_length - 1)), (False, True)
  ):
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((batch, length), jnp.bool_)
    key = jax.eval_shape(lambda n=batch: jax.random.split(jax.random.key(0), n)) if keyed else None
    asked = f'encoder(tokens, mask, key={"keys" if keyed else None}) with tokens {tokens.shape}'
    found = _shapes(
      what, asked, lambda model, *given, key: model(*given, key=key), one, tokens, mask, key=key
    )
    _check_array(what, asked, found, (batch, length, config.hidden_size))
  if config.tied:
    found = _shapes(what, 'encoder.table', lambda model: model.table[...], one)
    _check_array(
      what,
      'encoder.table, which a tied head reads,',
      found,
      (config.vocab_size, config.hidden_size),
    )
  return made, one


def _shapes(what: str, asked: str, call: Any, *given: Any, **named: Any) -> Any:
  try:
    return jax.eval_shape(call, *given, **named)
  except recipe.RECIPE_ERRORS as error:
    raise recipe.describe_import_error(what, asked, error) from error


def _check_array(what: str, asked: str, found: Any, shape: tuple[int, ...]) -> None:
  shown = f'{found.dtype} {found.shape}' if hasattr(found, 'shape') else f'a {type(found).__name__}'
  if (
    not hasattr(found, 'shape')
    or found.shape != shape
    or not jnp.issubdtype(found.dtype, jnp.floating)
  ):
    raise InputError(what, f'{asked} gives {shown}', f'give one array of floats {shape}')


def _check_arrays(what: str, model: nnx.Module) -> None:
  """Only parameters, in float32 whatever it computes in: all of it is trained, saved and, of
  members, stacked.
  """
  held = jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda x: isinstance(x, nnx.Variable))
  for path, leaf in held:
    if not isinstance(leaf, nnx.Param) or leaf.dtype != jnp.float32:
      kind = type(leaf).__name__ if isinstance(leaf, nnx.Variable) else 'bare array'
      raise InputError(
        what,
        f'{path_name(path)} is a {kind} ({leaf.dtype})',
        'keep only nnx.Param of float32: make constants in __call__, take keys from its key',
      )
  if not held:
    raise InputError(what, 'it has no parameters', 'make layers in __init__, such as nnx.Linear')


def count_parameters(config: EncoderConfig) -> dict[str, int]:
  """Elements of its arrays: `embedding`, of those with a part of that name in their path, and
  `other`.
  """
  counts = {'embedding': 0, 'other': 0}
  for path, leaf in jax.tree_util.tree_leaves_with_path(_tried(config)[1]):
    counts['embedding' if 'embedding' in path_name(path).split('.') else 'other'] += math.prod(
      leaf.shape
    )
  return counts


@functools.lru_cache(maxsize=64)
def count_flops(config: EncoderConfig, length: int) -> int:
  """Products of one forward pass over a row of `length`, counted where JAX traces them: nothing is
  compiled.
  """
  row = (jax.ShapeDtypeStruct((1, length), kind) for kind in (jnp.int32, jnp.bool_))
  return count_product_flops(
    jax.make_jaxpr(lambda model, *given: model(*given, key=None))(_tried(config)[1], *row).jaxpr
  )


def count_product_flops(jaxpr: Any) -> int:
  """FLOPs of the matrix products and convolutions of a jaxpr, two a multiply-add, as `size.py`
  counts ours.

  A scan is counted as often as it runs, a while loop once, and of branches the dearest.
  """
  total = 0
  for equation in jaxpr.eqns:
    name, given = equation.primitive.name, equation.params
    if name == 'dot_general':
      (contracted, _), _ = given['dimension_numbers']
      total += (
        2
        * equation.outvars[0].aval.size
        * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
      )
    elif name == 'conv_general_dilated':
      kernel = equation.invars[1].aval
      total += (
        2
        * equation.outvars[0].aval.size
        * kernel.size
        // kernel.shape[given['dimension_numbers'].rhs_spec[0]]
      )
    values = itertools.chain.from_iterable(
      v if isinstance(v, (tuple, list)) else (v,) for v in given.values()
    )
    inner = [
      count_product_flops(getattr(one, 'jaxpr', one))
      for one in values
      if hasattr(one, 'jaxpr') or hasattr(one, 'eqns')
    ]
    total += (
      max(inner, default=0)
      if name == 'cond'
      else sum(inner) * (given['length'] if name == 'scan' else 1)
    )
  return total
