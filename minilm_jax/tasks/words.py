"""Bits a word and a byte: the loss that models with other vocabularies have in common.

A loss a token falls when words are cut into more pieces. Here whole words are hidden, and their pieces are added up:

    bits per word = - 1/W sum_w sum_{t in w} log2 p(t | row without any hidden word)

and bits per byte the same sum over the bytes of those words, the space before each included. Which words are hidden is
a function of (seed, row, number of the word in the row) alone, so that models whose rows hold the same words are asked
for the same ones: corpora of one text and `rows.packing='words'`, whatever their tokenizers. A row without a pad may
end in the middle of a word, and its last word is not asked for.

The model sees how many pieces a hidden word has, and its pieces are guessed side by side, not one after another, so
this is a score to compare by, not a code length. How much it moves with what is hidden stands beside it (`word_masks`):
at other rates, and at other seeds, whose spread is the noise of the choice of words.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int, Integer

from minilm_jax.errors import InputError
from minilm_jax.language import tokenizer as pieces
from minilm_jax.language.tokenizer import Tokenizer
from minilm_jax.model.heads import MaskedLanguageModel
from minilm_jax.tasks import likelihood

# Share of the words of a row that is hidden, and the seed: the first is what counts, the others are its sensitivity.
_MASKS = ((0.15, 0), (0.05, 0), (0.3, 0), (0.15, 1), (0.15, 2))
_ROWS, _PLACES = 32, 24  # of a device in the encoder at one time; of a row that are asked for at one time
_SPACE = '\u2581'


@dataclasses.dataclass(frozen=True)
class Bits:
  """What hidden words cost, at one rate and seed; `tokens` is how many pieces they have."""

  rate: float
  seed: int
  bits_per_word: float
  bits_per_byte: float
  words: int
  bytes: int
  tokens: int


def measure(model: MaskedLanguageModel, tokens: Integer[np.ndarray, 'N L'], tokenizer: Tokenizer,
            mesh: Mesh) -> dict[str, Any]:
  """Bits a word and a byte of a model on rows, and under `word_masks` how they move with what is hidden.

  Args:
    model: where the mesh has it, on every device.
    tokens: rows of a corpus.
    tokenizer: that made them.
    mesh: whose axis `data` shares the rows.

  Raises:
    InputError: the rows hold no word to hide.
  """
  word = words(tokens, np.asarray(tokenizer.starts_word()))
  sizes = np.array([len(tokenizer.piece(i).replace(_SPACE, ' ').encode()) for i in range(tokenizer.size)])
  found = [_bits(model, tokens, word, sizes, mesh, rate, seed) for rate, seed in _MASKS]
  return {'bits_per_word': found[0].bits_per_word, 'bits_per_byte': found[0].bits_per_byte,
          'word_masks': [dataclasses.asdict(one) for one in found]}


def words(tokens: Integer[np.ndarray, 'N L'], starts: Bool[np.ndarray, 'V']) -> Int[np.ndarray, 'N L']:
  """The number of the word that each place is part of, from 1 in each row; 0 is no word, or one that may be cut off."""
  inside = ~np.isin(tokens, (pieces.BEGIN, pieces.PAD, pieces.END))
  number = np.where(inside, np.cumsum(starts[tokens] & inside, axis=1), 0)
  full = ~np.any(tokens == pieces.PAD, axis=1, keepdims=True)
  return np.where(full & (number == number.max(axis=1, keepdims=True)), 0, number)


def hidden(word: Int[np.ndarray, 'N L'], rate: float, seed: int) -> Bool[np.ndarray, 'N L']:
  """Which places are hidden, `[N L]`: word n of row r by draw n of the generator of (seed, r)."""
  chosen = np.zeros(word.shape, bool)
  for row, numbers in enumerate(word):
    drawn = np.random.default_rng((seed, row)).random(numbers.max() + 1) < rate
    chosen[row] = drawn[numbers] & (numbers > 0)
  return chosen


def _bits(model: MaskedLanguageModel, tokens: Integer[np.ndarray, 'N L'], word: Int[np.ndarray, 'N L'],
          sizes: Int[np.ndarray, 'V'], mesh: Mesh, rate: float, seed: int) -> Bits:
  chosen = hidden(word, rate, seed)
  count, size = int(chosen.sum()), int(sizes[tokens[chosen]].sum())
  if not count:
    raise InputError(f'bits per word of {len(tokens):,} rows', 'no word to hide', 'give a split with more text')
  found = np.nonzero(chosen)
  asked = len(np.unique(np.stack([found[0], word[chosen]]), axis=1).T)
  nats = -math.fsum(log_probabilities(model, tokens, chosen, mesh).tolist())
  bits = nats / math.log(2)
  return Bits(rate, seed, bits / asked, bits / size, asked, size, count)


def log_probabilities(model: MaskedLanguageModel, tokens: Integer[np.ndarray, 'N L'], chosen: Bool[np.ndarray, 'N L'],
                      mesh: Mesh) -> Float32[np.ndarray, 'M']:
  """Of each chosen place the log-probability of its token, with all chosen places of its row hidden."""
  row, column = np.nonzero(chosen)
  number = np.arange(len(row)) - np.searchsorted(row, row)  # of a place among those of its row
  first = np.flatnonzero(number % _PLACES == 0)  # a row with many places is read several times: all have one shape
  owner, part = row[first], np.searchsorted(first, np.arange(len(row)), side='right') - 1
  order = np.zeros((len(first), _PLACES), np.int32)
  order[part, number % _PLACES] = column
  step, found = mesh.devices.size * _ROWS, []
  place = NamedSharding(mesh, PartitionSpec('data'))
  for begin in range(0, len(owner), step):
    some = np.resize(np.arange(begin, min(begin + step, len(owner))), step)
    given = jax.device_put((tokens[owner[some]].astype(np.int32), chosen[owner[some]], order[some]), place)
    found.append(np.asarray(_score(model, *given, mesh=mesh))[:len(owner) - begin])
  return np.concatenate(found)[part, number % _PLACES]


@functools.partial(jax.jit, static_argnames='mesh')
def _score(model: MaskedLanguageModel, tokens: Any, chosen: Any, order: Any, mesh: Mesh) -> Any:
  rows, whole = PartitionSpec('data'), PartitionSpec()
  return jax.shard_map(_own, mesh=mesh, in_specs=(whole, rows, rows, rows), out_specs=rows,
                       check_vma=False)(model, tokens, chosen, order)


def _own(model: MaskedLanguageModel, tokens: Int[Array, 'N L'], chosen: Bool[Array, 'N L'],
         order: Int[Array, 'N K']) -> Float[Array, 'N K']:
  x = model.features(jnp.where(chosen, pieces.MASK, tokens), tokens != pieces.PAD, order)
  targets = jnp.take_along_axis(tokens, order, axis=1)
  kernel, bias = model.output_weights()
  return likelihood.log_probabilities(x.reshape(-1, x.shape[-1]), kernel, bias, targets.ravel()).reshape(order.shape)
