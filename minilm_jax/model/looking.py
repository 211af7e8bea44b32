"""Where an encoder looks: the shares of attention of each head, as they are in evaluation.

They are taken on the encoder's own way through its blocks, so that whatever comes before these is there too.
"""

import copy
import dataclasses
from collections.abc import Callable

from jaxtyping import Array, Bool, Float, Integer

from minilm_jax.model.encoder import Block, Encoder


def attention_shares(encoder: Encoder, tokens: Integer[Array, 'B L'],
                     mask: Bool[Array, 'B L']) -> list[Float[Array, 'B H L L']]:
  """Of each layer the share that a head gives from a place (third axis) to a place (fourth); nothing is dropped.

  Args:
    encoder: ours; one of the user's own need not have any attention.
    tokens: ids.
    mask: true where there is a token, false at pads, which get no share.
  """
  found = []

  def telling(block: Block) -> Callable[..., Float[Array, 'B L D']]:
    def call(x: Float[Array, 'B L D'], mask: Bool[Array, 'B L'], key: None) -> Float[Array, 'B L D']:
      seen = block.attention_norm(x) if block.config.norm == 'pre' else x
      found.append(block.attention.shares(seen, mask))  # which the block takes once more; a compiler takes it once
      return block(x, mask, key)
    return call

  told, config = copy.copy(encoder), dataclasses.replace(encoder.config, remat=False)  # which takes blocks as arrays
  vars(told).update(blocks=[telling(block) for block in encoder.blocks], config=config)
  told(tokens, mask)
  given = tokens.shape[1]
  return [shares[..., :given, :given] for shares in found]  # a model with BatchNorm has filled the rows up with pads
