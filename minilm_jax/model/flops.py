"""Counts parameters and floating-point operations of a model from its configuration.

FLOPs have three counts, each for training on one row; the backward pass counts twice the forward
pass:

- `honey`: the formula of paper 1, which omits two terms of attention and counts the token look-up
  as a matrix product.
- `kaplan`: 6 N a token (Kaplan et al., 2020).
- `actual`: the matrix products of model and loss in this program, with logits only at masked
  positions. The extra columns of `cross_entropy` and the products of Muon do not count.

No count has element-wise operations, except the taps of a short convolution. For convolutions, only
`actual` is meaningful, because a weight acts on each pixel. Paper 2 also counts the zeros around
the image, 1% more.

For a custom encoder, parameters are the elements of its arrays, and FLOPs the products of its
trace. `honey` then adds look-up and output to these products.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

from minilm_jax.core.config import MaskConfig
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.model.heads import trace_masked_language_model
from minilm_jax.model.initialization import cache_by_encoder, list_parameter_sizes

TRAINING_FACTOR = 3  # forward and backward pass relative to the forward pass


def count_parameters_by_part(config: EncoderConfig) -> dict[str, int]:
  """Returns the number of parameters of the masked language model, without running statistics.

  `embedding` counts the embedding tables and their norm, `other` all other parameters, and `total`
  is the sum. `other` includes an untied output matrix, as in the 42 logged runs of paper 1.
  """
  sizes = list_parameter_sizes(trace_masked_language_model(config))
  embedding = sum(size for path, size in sizes.items() if 'embedding' in path.split('.'))
  total = sum(sizes.values())
  return {'embedding': embedding, 'other': total - embedding, 'total': total}


def count_front_end_parameters(config: EncoderConfig) -> int:
  """Returns the number of parameters of the convolutions, without running statistics."""
  sizes = list_parameter_sizes(trace_masked_language_model(config))
  return sum(size for path, size in sizes.items() if path.startswith('encoder.convolution.'))


def flops_per_row(config: EncoderConfig, mask: MaskConfig) -> dict[str, int]:
  """Returns the counts `honey`, `kaplan` and `actual` of a training row of `config.max_length`."""
  return {
    'honey': paper1_flops(config),
    'kaplan': 6 * count_parameters_by_part(config)['other'] * config.max_length,
    'actual': actual_flops(config, mask, config.max_length),
  }


def actual_flops(config: EncoderConfig, mask: MaskConfig, length: int) -> int:
  """Returns the FLOPs of the products of a training step for a row of `length` tokens."""
  k = mask.max_positions(length)
  # Two of the three products include the bias as a row of the kernel.
  output = k * config.vocab_size * (6 * config.hidden_size + 4)
  encoder = encoder_flops(config, length) + 2 * k * config.hidden_size**2
  return TRAINING_FACTOR * encoder + output


def paper1_flops(config: EncoderConfig) -> int:
  """Returns the FLOPs of the released formula, with the number of heads in the logs of paper 1."""
  s, v, e, d = config.max_length, config.vocab_size, config.embedding_size, config.hidden_size
  look_up, output = 2 * s * v * e, 2 * s * d * v
  if config.encoder:
    encoder = encoder_flops(config, s)
  else:
    attention = 6 * s * d * d + 2 * s * s * d + 3 * config.flops_heads * s * s
    feed_forward = 4 * s * d * config.intermediate_size
    encoder = 2 * s * e * d + config.num_layers * (attention + feed_forward)
  return TRAINING_FACTOR * (look_up + encoder + output)


def encoder_flops(config: EncoderConfig, length: int) -> int:
  """Returns the FLOPs of the products of a forward pass over a row, two a multiply-add.

  BatchNorm pads each row to `max_length`.
  """
  if config.encoder:
    return _count_custom_flops(config, length)
  d, length = config.hidden_size, config.max_length if config.batch_norm else length
  projection = 2 * length * config.embedding_size * d if config.projection else 0
  # Taps on the zeros around the row count too.
  short_convolution = 2 * config.short_convolution * length * d
  attention = 8 * length * d * d + 4 * length * length * d
  blocks = config.num_layers * (attention + 4 * length * d * config.intermediate_size)
  return projection + short_convolution + count_front_end_flops(config, length) + blocks


def count_front_end_flops(config: EncoderConfig, length: int) -> int:
  """Returns the FLOPs of the convolutions over a row, without products with padding zeros."""
  if not config.convolutions:
    return 0
  d, inputs = config.channels, 1 + config.channels * (config.convolutions - 1)
  pairs = _count_pairs(length, config.kernel[0]) * _count_pairs(
    config.hidden_size, config.kernel[1]
  )
  return 2 * (inputs * d * pairs + d * length * config.hidden_size)


def _count_pairs(size: int, kernel: int) -> int:
  """Returns the number of pairs of a weight and a pixel along an axis of `size` pixels, without pads.

  >>> _count_pairs(4, 3), _count_pairs(4, 1)
  (10, 4)
  """
  before, after = (kernel - 1) // 2, kernel // 2
  return size * kernel - before * (before + 1) // 2 - after * (after + 1) // 2


@cache_by_encoder()
def _count_custom_flops(config: EncoderConfig, length: int) -> int:
  row = (jax.ShapeDtypeStruct((1, length), kind) for kind in (jnp.int32, jnp.bool_))
  trace = jax.make_jaxpr(lambda model, tokens, mask: model(tokens, mask, key=None))
  return count_product_flops(trace(trace_masked_language_model(config).encoder, *row).jaxpr)


def count_product_flops(jaxpr: Any) -> int:
  """Returns the FLOPs of the matrix products and convolutions of a jaxpr, two a multiply-add.

  The body of a scan counts for each iteration, the body of a while loop once, and a condition as
  its most expensive branch.
  """
  total = 0
  for equation in jaxpr.eqns:
    name, parameters = equation.primitive.name, equation.params
    if name == 'dot_general':
      (contracted, _), _ = parameters['dimension_numbers']
      shape = equation.invars[0].aval.shape
      total += 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    elif name == 'conv_general_dilated':
      kernel = equation.invars[1].aval
      outputs = kernel.shape[parameters['dimension_numbers'].rhs_spec[0]]
      total += 2 * equation.outvars[0].aval.size * kernel.size // outputs
    values = itertools.chain.from_iterable(
      value if isinstance(value, (tuple, list)) else (value,) for value in parameters.values()
    )
    nested = [
      count_product_flops(getattr(value, 'jaxpr', value))
      for value in values
      if hasattr(value, 'jaxpr') or hasattr(value, 'eqns')
    ]
    if name == 'cond':
      total += max(nested, default=0)
    else:
      total += sum(nested) * (parameters['length'] if name == 'scan' else 1)
  return total
