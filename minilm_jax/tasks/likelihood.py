"""Pseudo-log-likelihood: how probable a masked model finds a sentence, each token guessed from all the others.

    PLL(s) = sum_t log p(s_t | s without s_t)                                    (Salazar et al., 2020, `original`)

A token inside a word is easy to guess from the rest of the word, so that rare words of many pieces look probable.
`within-word` (Kauf & Ivanova, 2023) hides with each token the later ones of its word too. A word begins at a piece with
SentencePiece's mark of a space; punctuation that follows without a space belongs to the word before it.

Every token costs a row of the encoder and a softmax over all pieces; none is sampled or left out. Rows of like length
share a program, every device takes its share, and logits exist for one block of rows at a time. What the sentences are
compared for is left to `minimal_pairs`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int

from minilm_jax.config import MeshConfig
from minilm_jax.errors import InputError, nearest
from minilm_jax.language import tokenizer as pieces
from minilm_jax.language.tokenizer import Tokenizer
from minilm_jax.model import cross_entropy
from minilm_jax.model.heads import MaskedLanguageModel
from minilm_jax.training import pretrained, sharding

LIKELIHOODS = ('within-word', 'original')

_BUCKET = 8  # lengths are rounded up to a multiple of this
_LEAST, _MOST = 16, 8192  # rows of a device in one call
_TOKENS = {'cpu': 1 << 11, 'gpu': 1 << 17, 'tpu': 1 << 17}  # in the encoder at once; cpu measured, others guessed


def check(likelihood: str) -> None:
  """Refuses a name that is none of `LIKELIHOODS`.

  Raises:
    InputError: says what was probably meant.
  """
  if likelihood not in LIKELIHOODS:
    raise InputError(f'the likelihood {likelihood!r}', 'no such kind', nearest(likelihood, LIKELIHOODS))


def pseudo_perplexity(source: epath.PathLike, text: str, likelihood: str) -> dict[str, Any]:
  """exp(-PLL / tokens) of a text, whose lines are scored one by one, by the latest checkpoint of a run.

  Raises:
    InputError: an unknown likelihood, no text, or a line longer than the model reads.
  """
  check(likelihood)
  if not text.strip():
    raise InputError('the likelihood of a text', 'an empty one', "give words, as in --text='the dog sleeps .'")
  pretrained_run = pretrained.load(source)
  config, tokenizer, model = pretrained_run.config, pretrained_run.tokenizer, pretrained_run.model
  lines = encode([line for line in text.splitlines() if line.strip()], tokenizer, config.model.max_length)
  tokens, unknown = count(lines)
  total = math.fsum(pseudo_log_likelihoods(model, lines, tokenizer.starts_word(), likelihood).tolist())
  return {'pseudo_perplexity': math.exp(-total / tokens), 'tokens': tokens, 'log_likelihood': total,
          'unknown': unknown / tokens, 'lines': len(lines), 'likelihood': likelihood,
          'step': pretrained_run.step}


def count(sentences: Sequence[Sequence[int]]) -> tuple[int, int]:
  """How many tokens there are, and how many of them are `<unk>`."""
  return sum(map(len, sentences)), sum(ids.count(pieces.UNKNOWN) for ids in sentences)


def encode(texts: Sequence[str], tokenizer: Tokenizer, longest: int) -> list[list[int]]:
  """Ids of each text without special ones, in the case of the tokenizer.

  Raises:
    InputError: one is too long for rows of `longest` tokens, of which `<s>` and `</s>` take two; names the longest.
  """
  found = tokenizer.encode([tokenizer.fold(text) for text in texts])
  most = max(range(len(found)), key=lambda i: len(found[i]), default=None)
  if most is not None and len(found[most]) > longest - 2:
    text = texts[most] if len(texts[most]) <= 200 else texts[most][:200] + '...'
    raise InputError(f'the likelihood of {text!r}', f'{len(found[most])} tokens, and the model reads {longest - 2} '
                     'between <s> and </s>', 'shorten or leave out what is longer, or take a model of longer rows')
  return found


def pseudo_log_likelihoods(model: MaskedLanguageModel, sentences: Sequence[Sequence[int]], starts: Sequence[bool],
                           likelihood: str, tick: Callable[[int], None] = lambda rows: None
                           ) -> Float32[np.ndarray, 'N']:
  """The pseudo-log-likelihood of each sentence, in nats; a sentence that comes again is not scored again.

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
  check(likelihood)
  known = {sentence: number for number, sentence in enumerate(dict.fromkeys(map(tuple, sentences)))}
  distinct, scores, done = list(known), np.zeros(len(known), np.float32), 0
  buckets: dict[int, list[int]] = {}
  for number, sentence in enumerate(distinct):
    length = min(-(-(len(sentence) + 2) // _BUCKET) * _BUCKET, model.config.max_length)
    buckets.setdefault(length, []).append(number)
  mesh = sharding.make_mesh(MeshConfig(population=1, data=0, model=1))
  model = jax.device_put(model, sharding.replicated(mesh))
  for length, numbers in sorted(buckets.items()):
    tokens = _padded([distinct[number] for number in numbers], length)
    owner, first = np.nonzero(_scored(tokens))
    end = _ends(tokens, np.asarray(starts))[owner, first] if likelihood == 'within-word' else first + 1
    found = []
    for part in _calls(model, mesh, tokens, owner, first, end):
      found += part.tolist()
      tick(done + len(found))
    done += len(found)
    ends = np.cumsum(np.bincount(owner, minlength=len(numbers))).tolist()
    scores[numbers] = [math.fsum(found[begin:end]) for begin, end in zip([0, *ends], ends)]
  if not np.isfinite(scores).all():
    raise InputError('finite likelihoods', f'{np.sum(~np.isfinite(scores)):,} of {len(scores):,} sentences have none',
                     'the model has diverged: give an earlier checkpoint, or train it anew at a lower rate')
  return scores[[known[tuple(sentence)] for sentence in sentences]]


def _padded(sentences: Sequence[Sequence[int]], length: int) -> Int[np.ndarray, 'N L']:
  """`<s> sentence </s>` and pads."""
  tokens = np.full((len(sentences), length), pieces.PAD, np.int32)
  for row, ids in zip(tokens, sentences, strict=True):
    row[:len(ids) + 2] = pieces.BEGIN, *ids, pieces.END
  return tokens


def _scored(tokens: Int[np.ndarray, 'N L']) -> Bool[np.ndarray, 'N L']:
  return ~np.isin(tokens, (pieces.BEGIN, pieces.PAD, pieces.END))


def _ends(tokens: Int[np.ndarray, 'N L'], starts: Bool[np.ndarray, 'V']) -> Int[np.ndarray, 'N L']:
  """For each place, where the word that it is in has ended: the next place that begins a word, or that of `</s>`."""
  place = np.where(starts[tokens] | ~_scored(tokens), np.arange(tokens.shape[1])[None], tokens.shape[1])
  begins = np.minimum.accumulate(place[:, ::-1], axis=1)[:, ::-1]  # at this place or later
  return np.concatenate([begins[:, 1:], np.full_like(begins[:, :1], tokens.shape[1])], axis=1)


def _calls(model: MaskedLanguageModel, mesh: Mesh, tokens: Int[np.ndarray, 'S L'], owner: Int[np.ndarray, 'N'],
           first: Int[np.ndarray, 'N'], end: Int[np.ndarray, 'N']) -> Iterator[Float32[np.ndarray, 'n']]:
  """The scores of all rows, some at a time; the last call is filled up, so that all have one shape."""
  devices = mesh.devices.size
  share = -(-len(owner) // devices)
  size = devices * min(_MOST, max(_LEAST, 1 << (share - 1).bit_length()))
  place = NamedSharding(mesh, PartitionSpec('data'))
  for begin in range(0, len(owner), size):
    rows = np.resize(np.arange(begin, min(begin + size, len(owner))), size)
    given = jax.device_put((tokens[owner[rows]], first[rows].astype(np.int32), end[rows].astype(np.int32)), place)
    yield np.asarray(_score(model, *given, mesh=mesh))[:len(owner) - begin]


def _spread(model: Any, tokens: Any, first: Any, end: Any, mesh: Mesh) -> Any:
  rows, whole = PartitionSpec('data'), PartitionSpec()
  return jax.shard_map(_own, mesh=mesh, in_specs=(whole, rows, rows, rows), out_specs=rows,
                       check_vma=False)(model, tokens, first, end)


_score = jax.jit(_spread, static_argnames='mesh')


def _own(model: MaskedLanguageModel, tokens: Int[Array, 'N L'], first: Int[Array, 'N'],
         end: Int[Array, 'N']) -> Float[Array, 'N']:
  """Of each row the log-probability of the token at `first`, with all from there to before `end` hidden."""
  kernel, bias = model.output_weights()

  def block(rows: tuple[Int[Array, 'b L'], Int[Array, 'b'], Int[Array, 'b']]) -> Float[Array, 'b']:
    tokens, first, end = rows
    place = jnp.arange(tokens.shape[1])[None]
    hidden = (place >= first[:, None]) & (place < end[:, None])
    x = model.features(jnp.where(hidden, pieces.MASK, tokens), tokens != pieces.PAD, first[:, None])[:, 0]
    target = jnp.take_along_axis(tokens, first[:, None], axis=1)[:, 0]
    return log_probabilities(x, kernel, bias, target)

  count = cross_entropy.divisor(tokens.shape[0], math.ceil(tokens.size / _TOKENS[jax.default_backend()]))
  return jax.lax.map(block, tuple(cross_entropy.cut(x, count) for x in (tokens, first, end))).ravel()


def log_probabilities(x: Float[Array, 'B D'], kernel: Float[Array, 'D V'], bias: Float[Array, 'V'],
                      targets: Int[Array, 'B']) -> Float[Array, 'B']:
  """log softmax(x K + b) at the target of each row, in float32; logits exist for one block of rows at a time.

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
    return jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=1)

  count = cross_entropy.blocks(x.shape[0], 1, kernel.shape[1], jax.default_backend())
  return jax.lax.map(block, (cross_entropy.cut(x, count), cross_entropy.cut(targets, count))).ravel()
