"""Scores text with a masked language model: pseudo-log-likelihoods, and bits per word and byte.

    PLL(s) = sum_t log p(s_t | s without s_t)              (Salazar et al., 2020; variant `original`)

A token inside a word is easy to predict from the other tokens of the word. The original variant
thus favours rare words of many pieces. The variant `within-word` (Kauf & Ivanova, 2023) also masks
the later tokens of the word. A word begins at a piece with SentencePiece's space symbol, so
punctuation without a space belongs to the preceding word. Every token is scored with an encoder row
of its own.

Bits per word and per byte compare models with different vocabularies. Random full words of corpus
rows are masked, and the model predicts all their tokens.

Rows of similar length share a program, and rows are sharded over devices. Logits exist for one
block of rows at a time.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int, Integer

from minilm_jax.core import progress
from minilm_jax.core.config import MeshConfig
from minilm_jax.core.errors import InputError, check_name
from minilm_jax.data.tokenizer import BEGIN_ID, END_ID, MASK_ID, PAD_ID, UNKNOWN_ID, Tokenizer
from minilm_jax.model import cross_entropy
from minilm_jax.model.heads import MaskedLanguageModel
from minilm_jax.tasks import task_data
from minilm_jax.training import pretrained, sharding

PLL_VARIANTS = ('within-word', 'original')
# `str.splitlines` would also divide a text at form feeds, U+0085 and U+2028.
_LINE_END = re.compile(r'\r\n?|\n')
_LENGTH_MULTIPLE = 8  # of row lengths, so that few shapes are compiled
_MIN_ROWS_PER_DEVICE, _MAX_ROWS_PER_DEVICE = 16, 8192  # of one call
# Tokens of an encoder call: measured on a CPU, estimated for accelerators.
_TOKENS_PER_BLOCK = {'cpu': 1 << 11, 'gpu': 1 << 17, 'tpu': 1 << 17}
# Rate and seed of masked words. The first pair gives the result, the others its sensitivity.
_WORD_MASKS = ((0.15, 0), (0.05, 0), (0.3, 0), (0.15, 1), (0.15, 2))
_WORD_ROWS_PER_DEVICE, _POSITIONS_PER_ROW = 32, 24  # of one call

# Returns scores of the rows of a device; rows are a tuple of arrays.
RowScorer = Callable[[MaskedLanguageModel, Any], Float[Array, 'N *K']]


def check_variant(variant: str) -> None:
  """Raises InputError for a name that is not in `PLL_VARIANTS`."""
  check_name(f'--pll_variant={variant}', 'variant', variant, PLL_VARIANTS)


def measure_pseudo_perplexity(source: epath.PathLike, text: str, variant: str) -> dict[str, Any]:
  """Returns exp(-PLL / tokens) of the lines of a text, by the latest checkpoint of a run.

  Raises:
    InputError: The variant is unknown, the text is empty, or a line exceeds the model's length.
  """
  check_variant(variant)
  if not text.strip():
    raise InputError(
      'the likelihood of a text', 'an empty text', "give words, as in --text='the dog sleeps .'"
    )
  run = pretrained.load(source)
  lines = encode_sentences(
    [line for line in _LINE_END.split(text) if line.strip()],
    run.tokenizer,
    run.config.model.max_length,
  )
  tokens, unknown = count_tokens(lines)
  scores = compute_pseudo_log_likelihoods(run.model, lines, run.tokenizer.starts_word(), variant)
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
  """Returns the number of tokens, and the number of `<unk>` tokens."""
  return sum(map(len, sentences)), sum(list(ids).count(UNKNOWN_ID) for ids in sentences)


def encode_sentences(
  texts: Sequence[str], tokenizer: Tokenizer, max_length: int
) -> list[list[int]]:
  """Returns the ids of each text, in the tokenizer's case and without special tokens.

  Raises:
    InputError: A text has no tokens, or more than `max_length` tokens with `<s>` and `</s>`; the
      error names the first or the longest text.
  """
  sentences = [list(ids) for ids in tokenizer.encode([tokenizer.fold(text) for text in texts])]
  empty = next((text for text, ids in zip(texts, sentences, strict=True) if not ids), None)
  if empty is not None:
    raise InputError(
      f'the likelihood of {empty!r:.200}',
      'no tokens: the tokenizer removes all of its characters',
      'remove the text, or give words',
    )
  longest = max(range(len(texts)), key=lambda i: len(sentences[i]), default=None)
  if longest is not None and len(sentences[longest]) > max_length - 2:
    text = texts[longest] if len(texts[longest]) <= 200 else texts[longest][:200] + '...'
    raise InputError(
      f'the likelihood of {text!r}',
      f'{len(sentences[longest])} tokens; the model reads {max_length - 2} between <s> and </s>',
      'shorten or remove longer texts, or use a model with longer rows',
    )
  return sentences


def compute_pseudo_log_likelihoods(
  model: MaskedLanguageModel,
  sentences: Sequence[Sequence[int]],
  starts_word: Sequence[bool],
  variant: str,
  update: Callable[[int], None] = lambda tokens: None,
) -> Float32[np.ndarray, 'N']:
  """Returns the pseudo-log-likelihood of each sentence in nats; repeated sentences are scored once.

  Token scores are added exactly and rounded once, so sentences with permuted scores are tied.

  Args:
    model: Model that reads rows two tokens longer than the longest sentence.
    sentences: Ids without special tokens. `<s>` and `</s>` are added and not scored.
    starts_word: Whether each id begins a word (`Tokenizer.starts_word`).
    variant: One of `PLL_VARIANTS`.
    update: Function of the number of scored tokens, called after every batch.

  Raises:
    InputError: The variant is unknown, or a score is not finite.
  """
  check_variant(variant)
  index = {sentence: i for i, sentence in enumerate(dict.fromkeys(map(tuple, sentences)))}
  distinct, scores, num_scored = list(index), np.zeros(len(index), np.float32), 0
  buckets: dict[int, list[int]] = {}
  for i, sentence in enumerate(distinct):
    length = -(-(len(sentence) + 2) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    buckets.setdefault(min(length, model.config.max_length), []).append(i)
  mesh = sharding.make_mesh(MeshConfig(population=1, data=0, model=1))
  model = jax.device_put(model, sharding.replicated(mesh))
  for length, bucket in sorted(buckets.items()):
    rows = [[BEGIN_ID, *distinct[i], END_ID] for i in bucket]
    tokens = task_data.pad_sequences(rows, length)
    owner, first = np.nonzero(_is_ordinary(tokens))
    end = first + 1
    if variant == 'within-word':
      end = _find_word_ends(tokens, np.asarray(starts_word))[owner, first]
    # A power of two within bounds, so that few shapes are compiled.
    rows_per_device = 1 << (-(-len(owner) // mesh.devices.size) - 1).bit_length()
    rows_per_device = min(_MAX_ROWS_PER_DEVICE, max(_MIN_ROWS_PER_DEVICE, rows_per_device))
    batch_size = mesh.devices.size * rows_per_device
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
      f'non-finite likelihoods of {np.sum(~np.isfinite(scores)):,} of {len(scores):,} sentences',
      'give an earlier checkpoint, or train again with a lower learning rate',
    )
  return scores[[index[tuple(sentence)] for sentence in sentences]]


def _is_ordinary(tokens: Integer[np.ndarray, 'N L']) -> Bool[np.ndarray, 'N L']:
  return ~np.isin(tokens, (BEGIN_ID, PAD_ID, END_ID))


def _find_word_ends(
  tokens: Int[np.ndarray, 'N L'], starts_word: Bool[np.ndarray, 'V']
) -> Int[np.ndarray, 'N L']:
  """Returns the end of the word at each position: the next word start, or the index of `</s>`."""
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
  """Yields the scores of N items in batches of equal shape.

  Args:
    model: Model, replicated over the mesh, which has the axis `data`.
    arrays: Rows of tokens, the row index of each item, and further arrays `[N ...]`.
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
  """Returns the log-probability of the token at `first` with the positions [first, end) masked."""

  def score_block(
    block: tuple[Int[Array, 'b L'], Int[Array, 'b'], Int[Array, 'b']],
  ) -> Float[Array, 'b']:
    tokens, first, end = block
    position = jnp.arange(tokens.shape[1])[None]
    masked = (position >= first[:, None]) & (position < end[:, None])
    return _score_positions(model, (tokens, masked, first[:, None]))[:, 0]

  tokens = rows[0]
  block_tokens = _TOKENS_PER_BLOCK[jax.default_backend()]
  count = cross_entropy.smallest_divisor(tokens.shape[0], math.ceil(tokens.size / block_tokens))
  return jax.lax.map(
    score_block, tuple(cross_entropy.split_rows(array, count) for array in rows)
  ).ravel()


def compute_log_probabilities(
  x: Float[Array, 'B D'],
  kernel: Float[Array, 'D V'],
  bias: Float[Array, 'V'],
  targets: Int[Array, 'B'],
) -> Float[Array, 'B']:
  """Returns log softmax(x K + b) at the target of each row in float32, block by block.

  The product has the dtype of `x`; the bias is added in float32.
  """
  kernel = kernel.astype(x.dtype)

  def score_block(block: tuple[Float[Array, 'b D'], Int[Array, 'b']]) -> Float[Array, 'b']:
    x, targets = block
    logits = jnp.matmul(x, kernel, preferred_element_type=jnp.float32) + bias[None]
    target_logits = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return target_logits - jax.nn.logsumexp(logits, axis=1)

  count = cross_entropy.logit_blocks(x.shape[0], 1, kernel.shape[1], jax.devices()[0])
  blocks = cross_entropy.split_rows(x, count), cross_entropy.split_rows(targets, count)
  return jax.lax.map(score_block, blocks).ravel()


def measure_bits(
  model: MaskedLanguageModel,
  tokens: Integer[np.ndarray, 'N L'],
  tokenizer: Tokenizer,
  mesh: Mesh,
  sensitivity: bool = True,
) -> dict[str, Any]:
  """Returns bits per word and byte on rows, and `word_masks`, the results of each rate and seed.

  The model is replicated over the mesh; rows are sharded over its axis `data`. `word_masks` omits a
  rate and seed that select no word. Bits are None, and the log says so, if the first does.

  Args:
    sensitivity: Whether to measure with other rates and seeds too, in six times the time.
  """
  words = number_words(tokens, np.asarray(tokenizer.starts_word()))
  piece_bytes = np.asarray(tokenizer.count_bytes())
  results = []
  for rate, seed in _WORD_MASKS if sensitivity else _WORD_MASKS[:1]:
    masked = mask_words(words, rate, seed)
    if not masked.any():
      continue
    word_ids = np.stack([np.nonzero(masked)[0], words[masked]])
    num_words, num_bytes = np.unique(word_ids, axis=1).shape[1], piece_bytes[tokens[masked]].sum()
    nats = -math.fsum(compute_word_log_probabilities(model, tokens, masked, mesh).tolist())
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
  names = 'bits_per_word', 'bits_per_byte'
  headline: dict[str, Any] = dict.fromkeys(names)
  if results and (results[0]['rate'], results[0]['seed']) == _WORD_MASKS[0]:
    headline = {name: results[0][name] for name in names}
  else:
    progress.log(f'no bits per word: {len(tokens):,} rows have too few complete words to mask')
  return headline | {'word_masks': results}


def number_words(
  tokens: Integer[np.ndarray, 'N L'], starts_word: Bool[np.ndarray, 'V']
) -> Int[np.ndarray, 'N L']:
  """Returns the word number of each position in its row, from 1; 0 outside words.

  The last word of a full row may be incomplete and also has number 0, as has a word with `<unk>`,
  because its bytes are unknown.
  """
  ordinary = _is_ordinary(tokens)
  words = np.where(ordinary, np.cumsum(starts_word[tokens] & ordinary, axis=1), 0)
  full = ~np.any(tokens == PAD_ID, axis=1, keepdims=True)
  words = np.where(full & (words == words.max(axis=1, keepdims=True)), 0, words)
  row, column = np.nonzero(tokens == UNKNOWN_ID)
  has_unknown = np.zeros((len(words), words.max(initial=0) + 1), bool)
  has_unknown[row, words[row, column]] = True
  return np.where(np.take_along_axis(has_unknown, words, axis=1), 0, words)


def mask_words(words: Int[np.ndarray, 'N L'], rate: float, seed: int) -> Bool[np.ndarray, 'N L']:
  """Returns the masked positions; draw n of the generator for (seed, r) decides word n of row r."""
  masked = np.zeros(words.shape, bool)
  for row, numbers in enumerate(words):
    drawn = np.random.default_rng((seed, row)).random(numbers.max() + 1) < rate
    masked[row] = drawn[numbers] & (numbers > 0)
  return masked


def compute_word_log_probabilities(
  model: MaskedLanguageModel,
  tokens: Integer[np.ndarray, 'N L'],
  masked: Bool[np.ndarray, 'N L'],
  mesh: Mesh,
) -> Float32[np.ndarray, 'M']:
  """Returns the log-probability of each masked token; all masked tokens of a row are hidden."""
  row, column = np.nonzero(masked)
  index_in_row = np.arange(len(row)) - np.searchsorted(row, row)
  # A row with more masked tokens than positions is scored in parts, so that shapes are equal.
  first = np.flatnonzero(index_in_row % _POSITIONS_PER_ROW == 0)
  owner, part = row[first], np.searchsorted(first, np.arange(len(row)), side='right') - 1
  positions = np.zeros((len(first), _POSITIONS_PER_ROW), np.int32)
  positions[part, index_in_row % _POSITIONS_PER_ROW] = column
  batch_size = mesh.devices.size * _WORD_ROWS_PER_DEVICE
  arrays = tokens, owner, masked[owner], positions
  scores = list(_score_in_batches(_score_positions, model, mesh, arrays, batch_size))
  return np.concatenate(scores)[part, index_in_row % _POSITIONS_PER_ROW]


def _score_positions(
  model: MaskedLanguageModel,
  rows: tuple[Int[Array, 'N L'], Bool[Array, 'N L'], Int[Array, 'N K']],
) -> Float[Array, 'N K']:
  """Returns the log-probability of the token at each position."""
  tokens, masked, positions = rows
  x = model.features(jnp.where(masked, MASK_ID, tokens), tokens != PAD_ID, positions)
  targets = jnp.take_along_axis(tokens, positions, axis=1)
  kernel, bias = model.output_weights()
  scores = compute_log_probabilities(x.reshape(-1, x.shape[-1]), kernel, bias, targets.ravel())
  return scores.reshape(positions.shape)
