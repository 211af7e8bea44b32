"""Scores text with a masked language model: pseudo-log-likelihoods, and bits per word and byte.

    PLL(s) = sum_t log p(s_t | s without s_t)              (Salazar et al., 2020; variant `original`)

A token inside a word is easy to predict from the rest of the word, which favours rare words of many
pieces. The variant `within-word` (Kauf & Ivanova, 2023) also masks the later tokens of the word. A
word begins at a piece with SentencePiece's mark of a space, so that punctuation without a space
belongs to the word before it. Every token costs one row of the encoder; none is sampled.

Bits per word and per byte compare models of different vocabularies: whole words of corpus rows are
masked at random and all their tokens predicted.

Rows of similar length share a program, and every device takes its share of them. Logits exist for
one block of rows at a time.
"""

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
from minilm_jax.data.tokenizer import BEGIN_ID, END_ID, MASK_ID, PAD_ID, UNKNOWN_ID, Tokenizer
from minilm_jax.model import cross_entropy
from minilm_jax.model.heads import MaskedLanguageModel
from minilm_jax.training import pretrained, sharding

PLL_VARIANTS = ('within-word', 'original')
_LENGTH_STEP = 8  # row lengths are rounded up to a multiple of it
_MIN_ROWS_PER_DEVICE, _MAX_ROWS_PER_DEVICE = 16, 8192  # of one call
# Tokens in the encoder at once; cpu is measured, the others are estimates.
_TOKENS_PER_BLOCK = {'cpu': 1 << 11, 'gpu': 1 << 17, 'tpu': 1 << 17}
# (rate, seed) of masked words: the first gives the result, the others its sensitivity.
_WORD_MASKS = ((0.15, 0), (0.05, 0), (0.3, 0), (0.15, 1), (0.15, 2))
_WORD_ROWS_PER_DEVICE, _POSITIONS_PER_ROW = 32, 24  # of one call
_SPACE = '\u2581'

# Scores of a device's share of rows, which are a tuple of arrays.
RowScorer = Callable[[MaskedLanguageModel, Any], Float[Array, 'N *K']]


def check_variant(variant: str) -> None:
  """Raises InputError for a name that is not in `PLL_VARIANTS`."""
  if variant not in PLL_VARIANTS:
    raise InputError(
      f'the likelihood {variant!r}', 'no such kind', suggest_name(variant, PLL_VARIANTS)
    )


def pseudo_perplexity(source: epath.PathLike, text: str, variant: str) -> dict[str, Any]:
  """Returns exp(-PLL / tokens) of the lines of a text, by the latest checkpoint of a run.

  Raises:
    InputError: the variant is unknown, the text is empty, or a line is longer than the model reads.
  """
  check_variant(variant)
  if not text.strip():
    raise InputError(
      'the likelihood of a text', 'an empty one', "give words, as in --text='the dog sleeps .'"
    )
  run = pretrained.load(source)
  lines = encode_sentences(
    [line for line in text.splitlines() if line.strip()],
    run.tokenizer,
    run.config.model.max_length,
  )
  tokens, unknown = count_tokens(lines)
  scores = pseudo_log_likelihoods(run.model, lines, run.tokenizer.starts_word(), variant)
  total = math.fsum(scores.tolist())
  return {
    'pseudo_perplexity': math.exp(-total / tokens),
    'tokens': tokens,
    'log_likelihood': total,
    'unknown': unknown / tokens,
    'lines': len(lines),
    'likelihood': variant,
    'step': run.step,
  }


def count_tokens(sentences: Sequence[Sequence[int]]) -> tuple[int, int]:
  """Returns the number of tokens, and of those that are `<unk>`."""
  return sum(map(len, sentences)), sum(list(ids).count(UNKNOWN_ID) for ids in sentences)


def encode_sentences(
  texts: Sequence[str], tokenizer: Tokenizer, max_length: int
) -> list[list[int]]:
  """Returns the ids of each text, in the tokenizer's case and without special pieces.

  Raises:
    InputError: a text does not fit into rows of `max_length` tokens, two of which are `<s>` and
      `</s>`; names the longest.
  """
  sentences = [list(ids) for ids in tokenizer.encode([tokenizer.fold(text) for text in texts])]
  longest = max(range(len(texts)), key=lambda i: len(sentences[i]), default=None)
  if longest is not None and len(sentences[longest]) > max_length - 2:
    text = texts[longest] if len(texts[longest]) <= 200 else texts[longest][:200] + '...'
    raise InputError(
      f'the likelihood of {text!r}',
      f'{len(sentences[longest])} tokens, and the model reads {max_length - 2} between <s> and </s>',
      'shorten or leave out what is longer, or take a model of longer rows',
    )
  return sentences


def pseudo_log_likelihoods(
  model: MaskedLanguageModel,
  sentences: Sequence[Sequence[int]],
  starts_word: Sequence[bool],
  variant: str,
  update: Callable[[int], None] = lambda tokens: None,
) -> Float32[np.ndarray, 'N']:
  """Returns the pseudo-log-likelihood of each sentence, in nats; repeated sentences are scored once.

  Token scores are added exactly and rounded once, so that equal scores in another order are a tie.

  Args:
    model: reads rows two tokens longer than the longest sentence.
    sentences: ids without special pieces, which surround each sentence and are never scored.
    starts_word: whether each id begins a word (`Tokenizer.starts_word`).
    variant: one of `PLL_VARIANTS`.
    update: called after every batch with the number of scored tokens.

  Raises:
    InputError: the variant is unknown, or a score is not finite.
  """
  check_variant(variant)
  index = {sentence: i for i, sentence in enumerate(dict.fromkeys(map(tuple, sentences)))}
  distinct, scores, num_scored = list(index), np.zeros(len(index), np.float32), 0
  buckets: dict[int, list[int]] = {}
  for i, sentence in enumerate(distinct):
    length = -(-(len(sentence) + 2) // _LENGTH_STEP) * _LENGTH_STEP
    buckets.setdefault(min(length, model.config.max_length), []).append(i)
  mesh = sharding.make_mesh(MeshConfig(population=1, data=0, model=1))
  model = jax.device_put(model, sharding.replicated(mesh))
  for length, bucket in sorted(buckets.items()):
    tokens = _pad([distinct[i] for i in bucket], length)
    owner, first = np.nonzero(_is_ordinary(tokens))
    within_word = variant == 'within-word'
    end = _word_ends(tokens, np.asarray(starts_word))[owner, first] if within_word else first + 1
    batch_size = mesh.devices.size * _rows_per_device(-(-len(owner) // mesh.devices.size))
    arrays = tokens, owner, first.astype(np.int32), end.astype(np.int32)
    token_scores: list[float] = []
    for batch in _score_in_batches(_score_tokens, model, mesh, arrays, batch_size):
      token_scores += batch.tolist()
      update(num_scored + len(token_scores))
    num_scored += len(token_scores)
    ends = np.cumsum(np.bincount(owner, minlength=len(bucket))).tolist()
    scores[bucket] = [math.fsum(token_scores[begin:end]) for begin, end in zip([0, *ends], ends)]
  if not np.isfinite(scores).all():
    raise InputError(
      'finite likelihoods',
      f'{np.sum(~np.isfinite(scores)):,} of {len(scores):,} sentences have none',
      'the model has diverged: give an earlier checkpoint, or train it anew at a lower rate',
    )
  return scores[[index[tuple(sentence)] for sentence in sentences]]


def _rows_per_device(rows: int) -> int:
  """Returns a power of two within bounds, so that few shapes are compiled."""
  return min(_MAX_ROWS_PER_DEVICE, max(_MIN_ROWS_PER_DEVICE, 1 << (rows - 1).bit_length()))


def _pad(sentences: Sequence[Sequence[int]], length: int) -> Int[np.ndarray, 'N L']:
  """Returns rows of `<s> sentence </s>` and pads."""
  tokens = np.full((len(sentences), length), PAD_ID, np.int32)
  for row, ids in zip(tokens, sentences, strict=True):
    row[: len(ids) + 2] = BEGIN_ID, *ids, END_ID
  return tokens


def _is_ordinary(tokens: Integer[np.ndarray, 'N L']) -> Bool[np.ndarray, 'N L']:
  return ~np.isin(tokens, (BEGIN_ID, PAD_ID, END_ID))


def _word_ends(
  tokens: Int[np.ndarray, 'N L'], starts_word: Bool[np.ndarray, 'V']
) -> Int[np.ndarray, 'N L']:
  """Returns for each position the end of its word: the next one that begins a word, or `</s>`."""
  length = tokens.shape[1]
  begins = np.where(starts_word[tokens] | ~_is_ordinary(tokens), np.arange(length)[None], length)
  next_begin = np.minimum.accumulate(begins[:, ::-1], axis=1)[:, ::-1]  # at the position or later
  return np.concatenate([next_begin[:, 1:], np.full_like(next_begin[:, :1], length)], axis=1)


def _score_in_batches(
  score: RowScorer,
  model: MaskedLanguageModel,
  mesh: Mesh,
  arrays: tuple[Int[np.ndarray, 'S L'], Int[np.ndarray, 'N'], *tuple[np.ndarray, ...]],
  batch_size: int,
) -> Iterator[Float32[np.ndarray, 'n *K']]:
  """Yields scores of rows, `batch_size` at a time; a last batch is filled up to the same shape.

  `arrays` are rows of tokens, the row of each of N items, and further arrays with an axis of items.
  """
  tokens, owner, *others = arrays
  split_rows = NamedSharding(mesh, PartitionSpec('data'))
  for begin in range(0, len(owner), batch_size):
    items = np.resize(np.arange(begin, min(begin + batch_size, len(owner))), batch_size)
    batch = tokens[owner[items]].astype(np.int32), *(array[items] for array in others)
    scores = _score_sharded(score, model, jax.device_put(batch, split_rows), mesh)
    yield np.asarray(scores)[: len(owner) - begin]


@functools.partial(jax.jit, static_argnames=('score', 'mesh'))
def _score_sharded(score: RowScorer, model: MaskedLanguageModel, rows: Any, mesh: Mesh) -> Any:
  split, replicated = PartitionSpec('data'), PartitionSpec()
  return jax.shard_map(
    score, mesh=mesh, in_specs=(replicated, split), out_specs=split, check_vma=False
  )(model, rows)


def _score_tokens(
  model: MaskedLanguageModel, rows: tuple[Int[Array, 'N L'], Int[Array, 'N'], Int[Array, 'N']]
) -> Float[Array, 'N']:
  """Returns the log-probability of the token at `first`, with `first` to before `end` masked."""
  kernel, bias = model.output_weights()

  def score_block(
    block: tuple[Int[Array, 'b L'], Int[Array, 'b'], Int[Array, 'b']],
  ) -> Float[Array, 'b']:
    tokens, first, end = block
    position = jnp.arange(tokens.shape[1])[None]
    masked = (position >= first[:, None]) & (position < end[:, None])
    x = model.features(jnp.where(masked, MASK_ID, tokens), tokens != PAD_ID, first[:, None])[:, 0]
    target = jnp.take_along_axis(tokens, first[:, None], axis=1)[:, 0]
    return log_probabilities(x, kernel, bias, target)

  tokens = rows[0]
  block_tokens = _TOKENS_PER_BLOCK[jax.default_backend()]
  count = cross_entropy.smallest_divisor(tokens.shape[0], math.ceil(tokens.size / block_tokens))
  return jax.lax.map(
    score_block, tuple(cross_entropy.split_rows(array, count) for array in rows)
  ).ravel()


def log_probabilities(
  x: Float[Array, 'B D'],
  kernel: Float[Array, 'D V'],
  bias: Float[Array, 'V'],
  targets: Int[Array, 'B'],
) -> Float[Array, 'B']:
  """Returns log softmax(x K + b) at the target of each row, in float32.

  Logits exist for one block of rows at a time.

  Args:
    x: input of the output projection, in the type of the product.
    kernel: of the output projection.
    bias: of the output projection, added in float32.
    targets: ids.
  """
  kernel = kernel.astype(x.dtype)

  def score_block(block: tuple[Float[Array, 'b D'], Int[Array, 'b']]) -> Float[Array, 'b']:
    x, targets = block
    logits = jnp.matmul(x, kernel, preferred_element_type=jnp.float32) + bias[None]
    target_logits = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return target_logits - jax.nn.logsumexp(logits, axis=1)

  count = cross_entropy.logit_blocks(x.shape[0], 1, kernel.shape[1], jax.default_backend())
  blocks = cross_entropy.split_rows(x, count), cross_entropy.split_rows(targets, count)
  return jax.lax.map(score_block, blocks).ravel()


def measure_bits(
  model: MaskedLanguageModel, tokens: Integer[np.ndarray, 'N L'], tokenizer: Tokenizer, mesh: Mesh
) -> dict[str, Any]:
  """Returns bits per word and byte on rows, and under `word_masks` those of each rate and seed.

  Args:
    model: replicated over the mesh.
    tokens: rows of a corpus.
    tokenizer: of the corpus.
    mesh: its axis `data` shares the rows.

  Raises:
    InputError: the rows hold no word to mask.
  """
  words = number_words(tokens, np.asarray(tokenizer.starts_word()))
  pieces = [tokenizer.piece(i).replace(_SPACE, ' ') for i in range(tokenizer.size)]
  piece_bytes = np.array([len(piece.encode()) for piece in pieces])
  results = []
  for rate, seed in _WORD_MASKS:
    masked = mask_words(words, rate, seed)
    if not masked.any():
      raise InputError(
        f'bits per word of {len(tokens):,} rows', 'no word to hide', 'give a split with more text'
      )
    word_ids = np.stack([np.nonzero(masked)[0], words[masked]])
    num_words, num_bytes = np.unique(word_ids, axis=1).shape[1], piece_bytes[tokens[masked]].sum()
    nats = -math.fsum(word_log_probabilities(model, tokens, masked, mesh).tolist())
    bits = nats / math.log(2)
    results.append(
      {
        'rate': rate,
        'seed': seed,
        'bits_per_word': bits / num_words,
        'bits_per_byte': bits / int(num_bytes),
        'words': num_words,
        'bytes': int(num_bytes),
        'tokens': int(masked.sum()),
      }
    )
  headline = {name: results[0][name] for name in ('bits_per_word', 'bits_per_byte')}
  return headline | {'word_masks': results}


def number_words(
  tokens: Integer[np.ndarray, 'N L'], starts_word: Bool[np.ndarray, 'V']
) -> Int[np.ndarray, 'N L']:
  """Returns the number of each position's word in its row, from 1; 0 outside words.

  The last word of a full row is 0 too, for it may be cut off.
  """
  ordinary = _is_ordinary(tokens)
  words = np.where(ordinary, np.cumsum(starts_word[tokens] & ordinary, axis=1), 0)
  full = ~np.any(tokens == PAD_ID, axis=1, keepdims=True)
  return np.where(full & (words == words.max(axis=1, keepdims=True)), 0, words)


def mask_words(words: Int[np.ndarray, 'N L'], rate: float, seed: int) -> Bool[np.ndarray, 'N L']:
  """Returns the masked positions: word n of row r by draw n of the generator of (seed, r)."""
  masked = np.zeros(words.shape, bool)
  for row, numbers in enumerate(words):
    drawn = np.random.default_rng((seed, row)).random(numbers.max() + 1) < rate
    masked[row] = drawn[numbers] & (numbers > 0)
  return masked


def word_log_probabilities(
  model: MaskedLanguageModel,
  tokens: Integer[np.ndarray, 'N L'],
  masked: Bool[np.ndarray, 'N L'],
  mesh: Mesh,
) -> Float32[np.ndarray, 'M']:
  """Returns the log-probability of each masked token, with all masked tokens of its row masked."""
  row, column = np.nonzero(masked)
  place = np.arange(len(row)) - np.searchsorted(row, row)  # among the masked tokens of its row
  # A row with more masked tokens than fit is scored several times, so that all have one shape.
  first = np.flatnonzero(place % _POSITIONS_PER_ROW == 0)
  owner, part = row[first], np.searchsorted(first, np.arange(len(row)), side='right') - 1
  positions = np.zeros((len(first), _POSITIONS_PER_ROW), np.int32)
  positions[part, place % _POSITIONS_PER_ROW] = column
  batch_size = mesh.devices.size * _WORD_ROWS_PER_DEVICE
  arrays = tokens, owner, masked[owner], positions
  scores = list(_score_in_batches(_score_positions, model, mesh, arrays, batch_size))
  return np.concatenate(scores)[part, place % _POSITIONS_PER_ROW]


def _score_positions(
  model: MaskedLanguageModel,
  rows: tuple[Int[Array, 'N L'], Bool[Array, 'N L'], Int[Array, 'N K']],
) -> Float[Array, 'N K']:
  """Returns the log-probability of the token at each position, with all masked tokens masked."""
  tokens, masked, positions = rows
  x = model.features(jnp.where(masked, MASK_ID, tokens), tokens != PAD_ID, positions)
  targets = jnp.take_along_axis(tokens, positions, axis=1)
  kernel, bias = model.output_weights()
  scores = log_probabilities(x.reshape(-1, x.shape[-1]), kernel, bias, targets.ravel())
  return scores.reshape(positions.shape)
