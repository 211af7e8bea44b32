"""Pseudo-log-likelihood: how probable a masked model finds a sentence, each token guessed from all
the others.

    PLL(s) = sum_t log p(s_t | s without s_t)                                    (Salazar et al., 2020, `original`)

A token inside a word is easy to guess from the rest of the word, so that rare words of many pieces
look probable. `within-word` (Kauf & Ivanova, 2023) hides with each token the later ones of its word
too. A word begins at a piece with SentencePiece's mark of a space; punctuation that follows without
a space belongs to the word before it.

Every token costs a row of the encoder and a softmax over all pieces; none is sampled or left out.
Rows of like length share a program, every device takes its share, and logits exist for one block of
rows at a time. What the sentences are compared for is left to `minimal_pairs`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int, Integer

from minilm_jax.core.config import MeshConfig
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.data import tokenizer
from minilm_jax.data.tokenizer import Tokenizer
from minilm_jax.model import cross_entropy
from minilm_jax.model.heads import MaskedLanguageModel
from minilm_jax.training import pretrained, sharding

PLL_VARIANTS = ('within-word', 'original')
_BUCKET_STEP = 8  # lengths are rounded up to a multiple of this
_MIN_LENGTH, _MAX_ROWS_PER_CALL = 16, 8192  # rows of a device in one call
# in the encoder at once; cpu measured, others guessed
_TOKENS_PER_CALL = {'cpu': 1 << 11, 'gpu': 1 << 17, 'tpu': 1 << 17}


def check_variant(likelihood: str) -> None:
  """Refuses a name that is none of `LIKELIHOODS`.

  Raises:
    InputError: says what was probably meant.
  """
  if likelihood not in PLL_VARIANTS:
    raise InputError(
      f'the likelihood {likelihood!r}', 'no such kind', suggest_name(likelihood, PLL_VARIANTS)
    )


def pseudo_perplexity(source: epath.PathLike, text: str, likelihood: str) -> dict[str, Any]:
  """exp(-PLL / tokens) of a text, whose lines are scored one by one, by the latest checkpoint of a
  run.

  Raises:
    InputError: an unknown likelihood, no text, or a line longer than the model reads.
  """
  check_variant(likelihood)
  if not text.strip():
    raise InputError(
      'the likelihood of a text', 'an empty one', "give words, as in --text='the dog sleeps .'"
    )
  pretrained_run = pretrained.load(source)
  config, tokenizer, model = pretrained_run.config, pretrained_run.tokenizer, pretrained_run.model
  lines = encode_sentences(
    [line for line in text.splitlines() if line.strip()], tokenizer, config.model.max_length
  )
  tokens, unknown = count_calls(lines)
  total = math.fsum(
    pseudo_log_likelihoods(model, lines, tokenizer.starts_word(), likelihood).tolist()
  )
  return {
    'pseudo_perplexity': math.exp(-total / tokens),
    'tokens': tokens,
    'log_likelihood': total,
    'unknown': unknown / tokens,
    'lines': len(lines),
    'likelihood': likelihood,
    'step': pretrained_run.step,
  }


def count_calls(sentences: Sequence[Sequence[int]]) -> tuple[int, int]:
  """How many tokens there are, and how many of them are `<unk>`."""
  return sum(map(len, sentences)), sum(ids.count(tokenizer.UNKNOWN_ID) for ids in sentences)


def encode_sentences(texts: Sequence[str], tokenizer: Tokenizer, longest: int) -> list[list[int]]:
  """Ids of each text without special ones, in the case of the tokenizer.

  Raises:
    InputError: one is too long for rows of `longest` tokens, of which `<s>` and `</s>` take two;
      names the longest.
  """
  found = tokenizer.encode([tokenizer.fold(text) for text in texts])
  most = max(range(len(found)), key=lambda i: len(found[i]), default=None)
  if most is not None and len(found[most]) > longest - 2:
    text = texts[most] if len(texts[most]) <= 200 else texts[most][:200] + '...'
    raise InputError(
      f'the likelihood of {text!r}',
      f'{len(found[most])} tokens, and the model reads {longest - 2} between <s> and </s>',
      'shorten or leave out what is longer, or take a model of longer rows',
    )
  return found


def pseudo_log_likelihoods(
  model: MaskedLanguageModel,
  sentences: Sequence[Sequence[int]],
  starts: Sequence[bool],
  likelihood: str,
  tick: Callable[[int], None] = lambda rows: None,
) -> Float32[np.ndarray, 'N']:
  """The pseudo-log-likelihood of each sentence, in nats; a sentence that comes again is not scored
  again.

  Token scores are added exactly and rounded once, so that equal scores in another order are a tie.

  Args:
    model: reads rows as long as the longest sentence and two more.
    sentences: ids of each without special ones, which stand around it and are never scored.
    starts: for each id, does its piece begin a word (`Tokenizer.starts_word`)?
    likelihood: one of `LIKELIHOODS`.
    tick: told after every call how many tokens have been scored.

  Raises:
    InputError: an unknown likelihood, or a model whose numbers are not finite.
  """
  check_variant(likelihood)
  known = {sentence: number for number, sentence in enumerate(dict.fromkeys(map(tuple, sentences)))}
  distinct, scores, done = list(known), np.zeros(len(known), np.float32), 0
  buckets: dict[int, list[int]] = {}
  for number, sentence in enumerate(distinct):
    length = min(-(-(len(sentence) + 2) // _BUCKET_STEP) * _BUCKET_STEP, model.config.max_length)
    buckets.setdefault(length, []).append(number)
  mesh = sharding.make_mesh(MeshConfig(population=1, data=0, model=1))
  model = jax.device_put(model, sharding.replicated(mesh))
  for length, numbers in sorted(buckets.items()):
    tokens = _padded([distinct[number] for number in numbers], length)
    owner, first = np.nonzero(_scored(tokens))
    end = (
      _ends(tokens, np.asarray(starts))[owner, first] if likelihood == 'within-word' else first + 1
    )
    found = []
    for part in _calls(model, mesh, tokens, owner, first, end):
      found += part.tolist()
      tick(done + len(found))
    done += len(found)
    ends = np.cumsum(np.bincount(owner, minlength=len(numbers))).tolist()
    scores[numbers] = [math.fsum(found[begin:end]) for begin, end in zip([0, *ends], ends)]
  if not np.isfinite(scores).all():
    raise InputError(
      'finite likelihoods',
      f'{np.sum(~np.isfinite(scores)):,} of {len(scores):,} sentences have none',
      'the model has diverged: give an earlier checkpoint, or train it anew at a lower rate',
    )
  return scores[[known[tuple(sentence)] for sentence in sentences]]


def _padded(sentences: Sequence[Sequence[int]], length: int) -> Int[np.ndarray, 'N L']:
  """`<s> sentence </s>` and pads."""
  tokens = np.full((len(sentences), length), tokenizer.PAD_ID, np.int32)
  for row, ids in zip(tokens, sentences, strict=True):
    row[: len(ids) + 2] = tokenizer.BEGIN_ID, *ids, tokenizer.END_ID
  return tokens


def _scored(tokens: Int[np.ndarray, 'N L']) -> Bool[np.ndarray, 'N L']:
  return ~np.isin(tokens, (tokenizer.BEGIN_ID, tokenizer.PAD_ID, tokenizer.END_ID))


def _ends(tokens: Int[np.ndarray, 'N L'], starts: Bool[np.ndarray, 'V']) -> Int[np.ndarray, 'N L']:
  """For each place, where the word that it is in has ended: the next place that begins a word, or
  that of `</s>`.
  """
  place = np.where(
    starts[tokens] | ~_scored(tokens), np.arange(tokens.shape[1])[None], tokens.shape[1]
  )
  begins = np.minimum.accumulate(place[:, ::-1], axis=1)[:, ::-1]  # at this place or later
  return np.concatenate([begins[:, 1:], np.full_like(begins[:, :1], tokens.shape[1])], axis=1)


def _calls(
  model: MaskedLanguageModel,
  mesh: Mesh,
  tokens: Int[np.ndarray, 'S L'],
  owner: Int[np.ndarray, 'N'],
  first: Int[np.ndarray, 'N'],
  end: Int[np.ndarray, 'N'],
) -> Iterator[Float32[np.ndarray, 'n']]:
  """The scores of all rows, some at a time; the last call is filled up, so that all have one shape.
  """
  devices = mesh.devices.size
  share = -(-len(owner) // devices)
  size = devices * min(_MAX_ROWS_PER_CALL, max(_MIN_LENGTH, 1 << (share - 1).bit_length()))
  place = NamedSharding(mesh, PartitionSpec('data'))
  for begin in range(0, len(owner), size):
    rows = np.resize(np.arange(begin, min(begin + size, len(owner))), size)
    given = jax.device_put(
      (tokens[owner[rows]], first[rows].astype(np.int32), end[rows].astype(np.int32)), place
    )
    yield np.asarray(_score(model, *given, mesh=mesh))[: len(owner) - begin]


def _spread(model: Any, tokens: Any, first: Any, end: Any, mesh: Mesh) -> Any:
  rows, whole = PartitionSpec('data'), PartitionSpec()
  return jax.shard_map(
    _member_log_probabilities,
    mesh=mesh,
    in_specs=(whole, rows, rows, rows),
    out_specs=rows,
    check_vma=False,
  )(model, tokens, first, end)


_score = jax.jit(_spread, static_argnames='mesh')


def _member_log_probabilities(
  model: MaskedLanguageModel,
  tokens: Int[Array, 'N L'],
  first: Int[Array, 'N'],
  end: Int[Array, 'N'],
) -> Float[Array, 'N']:
  """Of each row the log-probability of the token at `first`, with all from there to before `end`
  hidden.
  """
  kernel, bias = model.output_weights()

  def block(rows: tuple[Int[Array, 'b L'], Int[Array, 'b'], Int[Array, 'b']]) -> Float[Array, 'b']:
    tokens, first, end = rows
    place = jnp.arange(tokens.shape[1])[None]
    hidden = (place >= first[:, None]) & (place < end[:, None])
    x = model.features(
      jnp.where(hidden, tokenizer.MASK_ID, tokens), tokens != tokenizer.PAD_ID, first[:, None]
    )[:, 0]
    target = jnp.take_along_axis(tokens, first[:, None], axis=1)[:, 0]
    return log_probabilities(x, kernel, bias, target)

  count = cross_entropy.smallest_divisor(
    tokens.shape[0], math.ceil(tokens.size / _TOKENS_PER_CALL[jax.default_backend()])
  )
  return jax.lax.map(
    block, tuple(cross_entropy.split_rows(x, count) for x in (tokens, first, end))
  ).ravel()


def log_probabilities(
  x: Float[Array, 'B D'],
  kernel: Float[Array, 'D V'],
  bias: Float[Array, 'V'],
  targets: Int[Array, 'B'],
) -> Float[Array, 'B']:
  """log softmax(x K + b) at the target of each row, in float32; logits exist for one block of rows
  at a time.

  Args:
    x: what the output projection reads, in the type of the product.
    kernel: the output projection.
    bias: its bias, added in float32.
    targets: the piece asked for.
  """
  kernel = kernel.astype(x.dtype)

  def block(part: tuple[Float[Array, 'b D'], Int[Array, 'b']]) -> Float[Array, 'b']:
    x, targets = part
    logits = jnp.matmul(x, kernel, preferred_element_type=jnp.float32) + bias[None]
    return jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0] - jax.nn.logsumexp(
      logits, axis=1
    )

  count = cross_entropy.logit_blocks(x.shape[0], 1, kernel.shape[1], jax.default_backend())
  return jax.lax.map(
    block, (cross_entropy.split_rows(x, count), cross_entropy.split_rows(targets, count))
  ).ravel()


# Bits a word and a byte: the loss that models with other vocabularies have in common.
# Share of the words of a row that is hidden, and the seed: the first is what counts, the others are
# its sensitivity.
_MASKS = ((0.15, 0), (0.05, 0), (0.3, 0), (0.15, 1), (0.15, 2))
# of a device in the encoder at one time; of a row that are asked for at one time
_ROWS_PER_CALL, _POSITIONS_PER_ROW = 32, 24
_SPACE = '\u2581'


@dataclasses.dataclass(frozen=True)
class WordBits:
  """What hidden words cost, at one rate and seed; `tokens` is how many pieces they have."""

  rate: float
  seed: int
  bits_per_word: float
  bits_per_byte: float
  words: int
  bytes: int
  tokens: int


def measure_bits(
  model: MaskedLanguageModel, tokens: Integer[np.ndarray, 'N L'], tokenizer: Tokenizer, mesh: Mesh
) -> dict[str, Any]:
  """Bits a word and a byte of a model on rows, and under `word_masks` how they move with what is
  hidden.

  Args:
    model: where the mesh has it, on every device.
    tokens: rows of a corpus.
    tokenizer: that made them.
    mesh: whose axis `data` shares the rows.

  Raises:
    InputError: the rows hold no word to hide.
  """
  word = split_words(tokens, np.asarray(tokenizer.starts_word()))
  sizes = np.array(
    [len(tokenizer.piece(i).replace(_SPACE, ' ').encode()) for i in range(tokenizer.size)]
  )
  found = [_bits(model, tokens, word, sizes, mesh, rate, seed) for rate, seed in _MASKS]
  return {
    'bits_per_word': found[0].bits_per_word,
    'bits_per_byte': found[0].bits_per_byte,
    'word_masks': [dataclasses.asdict(one) for one in found],
  }


def split_words(
  tokens: Integer[np.ndarray, 'N L'], starts: Bool[np.ndarray, 'V']
) -> Int[np.ndarray, 'N L']:
  """The number of the word that each place is part of, from 1 in each row; 0 is no word, or one
  that may be cut off.
  """
  inside = ~np.isin(tokens, (tokenizer.BEGIN_ID, tokenizer.PAD_ID, tokenizer.END_ID))
  number = np.where(inside, np.cumsum(starts[tokens] & inside, axis=1), 0)
  full = ~np.any(tokens == tokenizer.PAD_ID, axis=1, keepdims=True)
  return np.where(full & (number == number.max(axis=1, keepdims=True)), 0, number)


def hide_words(word: Int[np.ndarray, 'N L'], rate: float, seed: int) -> Bool[np.ndarray, 'N L']:
  """Which places are hidden, `[N L]`: word n of row r by draw n of the generator of (seed, r)."""
  chosen = np.zeros(word.shape, bool)
  for row, numbers in enumerate(word):
    drawn = np.random.default_rng((seed, row)).random(numbers.max() + 1) < rate
    chosen[row] = drawn[numbers] & (numbers > 0)
  return chosen


def _bits(
  model: MaskedLanguageModel,
  tokens: Integer[np.ndarray, 'N L'],
  word: Int[np.ndarray, 'N L'],
  sizes: Int[np.ndarray, 'V'],
  mesh: Mesh,
  rate: float,
  seed: int,
) -> WordBits:
  chosen = hide_words(word, rate, seed)
  count, size = int(chosen.sum()), int(sizes[tokens[chosen]].sum())
  if not count:
    raise InputError(
      f'bits per word of {len(tokens):,} rows', 'no word to hide', 'give a split with more text'
    )
  found = np.nonzero(chosen)
  asked = len(np.unique(np.stack([found[0], word[chosen]]), axis=1).T)
  nats = -math.fsum(word_log_probabilities(model, tokens, chosen, mesh).tolist())
  bits = nats / math.log(2)
  return WordBits(rate, seed, bits / asked, bits / size, asked, size, count)


def word_log_probabilities(
  model: MaskedLanguageModel,
  tokens: Integer[np.ndarray, 'N L'],
  chosen: Bool[np.ndarray, 'N L'],
  mesh: Mesh,
) -> Float32[np.ndarray, 'M']:
  """Of each chosen place the log-probability of its token, with all chosen places of its row
  hidden.
  """
  row, column = np.nonzero(chosen)
  number = np.arange(len(row)) - np.searchsorted(row, row)  # of a place among those of its row
  # a row with many places is read several times: all have one shape
  first = np.flatnonzero(number % _POSITIONS_PER_ROW == 0)
  owner, part = row[first], np.searchsorted(first, np.arange(len(row)), side='right') - 1
  order = np.zeros((len(first), _POSITIONS_PER_ROW), np.int32)
  order[part, number % _POSITIONS_PER_ROW] = column
  step, found = mesh.devices.size * _ROWS_PER_CALL, []
  place = NamedSharding(mesh, PartitionSpec('data'))
  for begin in range(0, len(owner), step):
    some = np.resize(np.arange(begin, min(begin + step, len(owner))), step)
    given = jax.device_put(
      (tokens[owner[some]].astype(np.int32), chosen[owner[some]], order[some]), place
    )
    found.append(np.asarray(_score_words(model, *given, mesh=mesh))[: len(owner) - begin])
  return np.concatenate(found)[part, number % _POSITIONS_PER_ROW]


@functools.partial(jax.jit, static_argnames='mesh')
def _score_words(
  model: MaskedLanguageModel, tokens: Any, chosen: Any, order: Any, mesh: Mesh
) -> Any:
  rows, whole = PartitionSpec('data'), PartitionSpec()
  return jax.shard_map(
    _member_scores, mesh=mesh, in_specs=(whole, rows, rows, rows), out_specs=rows, check_vma=False
  )(model, tokens, chosen, order)


def _member_scores(
  model: MaskedLanguageModel,
  tokens: Int[Array, 'N L'],
  chosen: Bool[Array, 'N L'],
  order: Int[Array, 'N K'],
) -> Float[Array, 'N K']:
  x = model.features(
    jnp.where(chosen, tokenizer.MASK_ID, tokens), tokens != tokenizer.PAD_ID, order
  )
  targets = jnp.take_along_axis(tokens, order, axis=1)
  kernel, bias = model.output_weights()
  return log_probabilities(x.reshape(-1, x.shape[-1]), kernel, bias, targets.ravel()).reshape(
    order.shape
  )
