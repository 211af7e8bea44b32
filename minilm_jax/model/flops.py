"""Parameters and floating-point operations of a model, from its configuration alone.

Three counts of FLOPs stand side by side, each for training on one row (forward and backward, the
backward pass taken as twice the forward one): the paper's formula, which leaves out two attention
terms and charges the token look-up as a matrix product; Kaplan's 6 N a token; and the true count of
the matrix products that this program runs, with logits at the masked positions only. Element-wise
work is in none of them, but for the taps of a short convolution. Of a convolution, whose weights
are each used at every pixel, only the true count says something; paper 2's own counts charge the
zeros round the image too, 1% more.

Of an encoder of the user's own parameters are those of its arrays, and products are counted where
JAX traces it. The paper's formula knows no such encoder: it charges the look-up and the output as
ever, and between them these products.
"""

import math

from minilm_jax.core.config import MaskConfig
from minilm_jax.core.model_config import EncoderConfig
from minilm_jax.model import convolution, custom, encoder

TRAINING_FACTOR = 3  # forward and backward against forward alone


def max_masked_positions(length: int, rate: float) -> int:
  """K: the most positions that are predicted in a row of `length`."""
  return min(length, math.ceil(rate * length))


def count_parameters(config: EncoderConfig) -> dict[str, int]:
  """Parameters of the masked language model: the embedding's tables and norm, everything else, and
  their sum.

  `embedding` is what the paper calls embedding parameters, `other` its non-embedding ones, which
  include an untied output matrix (paper 1; its 42 logged runs).
  """
  c, e, d, f, v = (
    config,
    config.embedding_size,
    config.hidden_size,
    config.intermediate_size,
    config.vocab_size,
  )
  head = d * d + 3 * d + v + (0 if c.tied else d * v)
  if c.encoder:
    own = custom.count_parameters(c)
    return {
      'embedding': own['embedding'],
      'other': own['other'] + head,
      'total': sum(own.values()) + head,
    }
  positions = c.max_length + c.position_offset if c.positions == 'learned' else 0
  embedding = (v + positions + c.segments) * e + 2 * e
  projection = e * d + (3 if c.projection_norm else 1) * d if c.projection else 0
  distances = c.num_heads * (2 * c.max_length - 1) if c.positions == 'relative' else 0
  block = 4 * d * d + 9 * d + 2 * d * f + f + distances
  before = (
    projection + encoder.count_short_convolution_parameters(c) + convolution.count_parameters(c)
  )
  other = before + c.num_layers * block + head + (2 * d if c.norm == 'pre' else 0)
  return {'embedding': embedding, 'other': other, 'total': embedding + other}


def flops_per_row(config: EncoderConfig, mask: MaskConfig) -> dict[str, int]:
  """FLOPs of one training row of `config.length` tokens, counted three ways: honey, kaplan, actual.
  """
  k = max_masked_positions(config.max_length, mask.rate)
  # the bias is a row of the kernel in two products of three
  output = k * config.vocab_size * (6 * config.hidden_size + 4)
  return {
    'honey': paper1_flops(config),
    'kaplan': 6 * count_parameters(config)['other'] * config.max_length,
    'actual': TRAINING_FACTOR
    * (encoder_flops(config, config.max_length) + 2 * k * config.hidden_size**2)
    + output,
  }


def paper1_flops(config: EncoderConfig) -> int:
  """The paper's count: the released formula as it is, with the head count that the logs state."""
  s, v, e, d = config.max_length, config.vocab_size, config.embedding_size, config.hidden_size
  if config.encoder:
    return TRAINING_FACTOR * (2 * s * v * e + custom.count_flops(config, s) + 2 * s * d * v)
  embedding = 2 * s * v * e + 2 * s * e * d
  attention = 6 * s * d * d + 2 * s * s * d + 3 * config.flops_heads * s * s
  feed_forward = 4 * s * d * config.intermediate_size
  return TRAINING_FACTOR * (
    embedding + config.num_layers * (attention + feed_forward) + 2 * s * d * v
  )


def encoder_flops(config: EncoderConfig, length: int) -> int:
  """Products of one forward pass of the encoder over a row of `length`: two operations a
  multiply-add.

  A model with BatchNorm makes every row as long as it reads.
  """
  if config.encoder:
    return custom.count_flops(config, length)
  d, length = config.hidden_size, config.max_length if config.batch_norm else length
  projection = 2 * length * config.embedding_size * d if config.projection else 0
  attention = 8 * length * d * d + 4 * length * length * d
  blocks = config.num_layers * (attention + 4 * length * d * config.intermediate_size)
  return (
    projection
    + encoder.count_short_convolution_flops(config, length)
    + convolution.count_flops(config, length)
    + blocks
  )
