"""How much of a task's text a pre-training corpus has seen: shares of types and of running tokens, with intervals.

The second paper says that the gap between pre-trained and not grows with "token overlap" and does not define it. Here
f(t) is how often type t stands in the task's texts, c(t) how often in the corpus's training rows, T are the types with
f > 0, S those with c > 0, and N = sum of f. A type is a piece of the tokenizer, or a word (`counts.py`):

    type overlap, m    |{t in T: c(t) >= m}| / |T|
    token overlap, m   sum over t with c(t) >= m of f(t) / N
    out of vocabulary  1 - token overlap at m = 1, of words
    unknown, bytes     the share of the task's running pieces that are `<unk>`, or bytes of what has no piece
    Jaccard            |T and S| / |T or S|
    cross-entropy      - sum of f(t) / N ln q(t), q(t) = (c(t) + 1) / (sum of c + V), in nats a piece; of pieces alone
    divergence         cross-entropy less the entropy of f / N: Kullback and Leibler's, in nats

Token overlap of words is the measure that the study of the gap uses (`HEADLINE`): a corpus of some million tokens holds
nearly every piece, for the tokenizer is made from it. Type overlap falls, and Jaccard and divergence move, with the
number of examples that are looked at; compare them at one number. `<unk>` is never an overlap.

Intervals are of other examples like these: examples are left out one at a time, the jackknife, with Student's t. The
bootstrap would not do for types: a resample lacks a third of the examples, and with them the rare types.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int
from rich import table as rich_table
from scipy import stats

from minilm_jax import untrusted
from minilm_jax.config import FinetuneConfig, SubsetConfig
from minilm_jax.errors import InputError
from minilm_jax.language import corpus as corpora
from minilm_jax.language import subset
from minilm_jax.language import tokenizer as pieces
from minilm_jax.language.tokenizer import Tokenizer
from minilm_jax.tasks import counts, metrics, sources
from minilm_jax.tasks.counts import Texts
from minilm_jax.tasks.sources import Examples

THRESHOLDS = (1, 10, 100)  # m
HEADLINE = ('words', 'token overlap', 1)
Loo = Float[np.ndarray, 'n']  # a number with each of n examples left out
Values = Float[np.ndarray, 'K'] | Int[np.ndarray, 'K'] | Bool[np.ndarray, 'K']


@dataclasses.dataclass(frozen=True)
class Measure:
  """One measure of a task's texts against a corpus.

  Attributes:
    unit: 'pieces' or 'words'.
    name: as in the list above.
    least: m; 1 where there is none.
    value: a share or, of cross-entropy and divergence, nats.
    low, high: the 95% interval; not numbers of fewer than two examples.
  """

  unit: str
  name: str
  least: int
  value: float
  low: float
  high: float


def overlap(folder: epath.PathLike, config: FinetuneConfig, part: SubsetConfig) -> dict[str, Any]:
  """The overlap of a corpus, or of a part of it, with the training texts and the reported texts of a task.

  Returns:
    Plain data: what was compared, and the measures of each split.

  Raises:
    InputError: the corpus or the task cannot be read, the part is larger than the corpus, or the task has no text.
  """
  described = corpora.manifest(folder)
  subset.check(part, described, folder)
  task = sources.complete(config.task)
  splits = {name: sources.read(task, config.task, name) for name in ('train', *sources.splits(task, config.task.split))}
  files, tokenizer = corpora.Files(folder, subset.TRAIN), tokenizer_of(folder, described)
  of = counts.of_corpus(files, tokenizer, subset.chosen(part, files))
  found = {name: measures(examples, tokenizer, *of, f'the {name} split of {task.name}')
           for name, examples in splits.items()}
  size = subset.size(part, folder, described)
  return {'corpus': str(folder), 'hash': described['hash'], **size, 'task': task.name,
          'examples': {name: len(examples.labels) for name, examples in splits.items()},
          'measures': {name: [dataclasses.asdict(one) for one in of] for name, of in found.items()}}


def tokenizer_of(folder: epath.PathLike, described: Mapping[str, Any]) -> Tokenizer:
  """The tokenizer of a corpus.

  Raises:
    InputError: it is not the file that the corpus was made with.
  """
  found = pieces.load(untrusted.inside(folder, described['tokenizer']['file'], f'the tokenizer of {folder}'))
  if found.sha256 != described['tokenizer']['sha256']:
    raise InputError(f'the tokenizer of {folder}', 'not the file that the corpus was made with', 'copy it again')
  return found


def texts_of(examples: Examples, tokenizer: Tokenizer, what: str) -> tuple[Texts, list[list[str]]]:
  """The pieces of each example and its words, of both of its texts, in full and in lower case.

  Raises:
    InputError: there is no piece or no word in any of them.
  """
  pairs = zip(examples.first, examples.second or ('',) * len(examples.first), strict=True)
  texts = [f'{first} {second}'.strip().lower() for first, second in pairs]
  encoded, words = tokenizer.encode(texts), [counts.words_of(text) for text in texts]
  if not any(words) or not any(encoded):
    raise InputError(f'overlap with {what}', f'no word in the texts of {len(texts):,} examples',
                     'give examples with text, or another task.fields')
  return counts.of_examples(encoded, tokenizer.size), words


def measures(examples: Examples, tokenizer: Tokenizer, of_pieces: Int[np.ndarray, 'V'], of_words: Mapping[str, int],
             what: str) -> list[Measure]:
  """All measures of some examples against the counts of a corpus.

  Args:
    examples: of one split.
    tokenizer: of the corpus.
    of_pieces, of_words: of `counts.of_corpus`.
    what: whose texts these are, for an error.

  Raises:
    InputError: there is no text in them.
  """
  texts, words = texts_of(examples, tokenizer, what)
  numbers = {word: number for number, word in enumerate(dict.fromkeys(word for one in words for word in one))}
  known = np.array([of_words.get(word, 0) for word in numbers], int)
  as_words = counts.of_examples([[numbers[word] for word in one] for one in words], len(numbers))
  found = _shared('pieces', texts, of_pieces, int(np.count_nonzero(of_pieces)))
  found += _shared('words', as_words, known, len(of_words))
  outside = next(one for one in found if (one.unit, one.name, one.least) == HEADLINE)
  found.append(Measure('words', 'out of vocabulary', 1, 1 - outside.value, 1 - outside.high, 1 - outside.low))
  spelled = np.array([tokenizer.piece(one).startswith('<0x') for one in range(tokenizer.size)])
  unknown = np.arange(tokenizer.size) == pieces.UNKNOWN
  found += [_measure('pieces', name, 1, *_share(texts, mask)) for name, mask in (
      ('unknown', unknown), ('bytes', spelled))]
  logarithm = np.log(of_pieces + 1) - np.log(of_pieces.sum() + tokenizer.size)
  found += [_measure('pieces', name, 1, *pair, most=math.inf) for name, pair in (
      ('cross-entropy', _cross_entropy(texts, logarithm)), ('divergence', _divergence(texts, logarithm)))]
  return found


def _shared(unit: str, texts: Texts, corpus: Int[np.ndarray, 'T'], distinct: int) -> list[Measure]:
  found = []
  for name, share in (('type overlap', _types), ('token overlap', _share)):
    found += [_measure(unit, name, least, *share(texts, corpus >= least)) for least in THRESHOLDS]
  return [*found, _measure(unit, 'Jaccard', 1, *_jaccard(texts, corpus > 0, distinct))]


def _measure(unit: str, name: str, least: int, value: float, without: Loo, most: float = 1.0) -> Measure:
  """The number with its jackknife interval, inside what it can be."""
  n = len(without)
  if n < 2 or not np.isfinite(without).all():
    return Measure(unit, name, least, value, math.nan, math.nan)
  error = math.sqrt((n - 1) / n * float(((without - without.mean())**2).sum()))
  half = float(stats.t.ppf(0.5 + metrics.CONFIDENCE / 2, n - 1)) * error
  return Measure(unit, name, least, value, max(0.0, value - half), min(most, value + half))


def _sums(texts: Texts, values: Values) -> Float[np.ndarray, 'n']:
  """Sums over the entries of each example."""
  return np.bincount(texts.owner, values, texts.examples)


def _without(statistic: Callable[..., Any], *sums: Float[np.ndarray, 'n']) -> tuple[float, Loo]:
  """A function of totals, of all examples and with each left out."""
  totals = [values.sum() for values in sums]
  with np.errstate(divide='ignore', invalid='ignore'):
    return float(statistic(*totals)), statistic(*(total - one for total, one in zip(totals, sums, strict=True)))


def _share(texts: Texts, mask: Bool[np.ndarray, 'T']) -> tuple[float, Loo]:
  """The share of running tokens whose type is among those of the mask."""
  return _without(np.divide, _sums(texts, texts.count * mask[texts.kind]), _sums(texts, texts.count))


def _own(texts: Texts) -> Bool[np.ndarray, 'K']:
  """Which entries are of a type that no other example holds."""
  return (np.bincount(texts.kind, minlength=texts.types) == 1)[texts.kind]


def _types(texts: Texts, mask: Bool[np.ndarray, 'T']) -> tuple[float, Loo]:
  """The share of distinct types that are among those of the mask."""
  there, own = np.bincount(texts.kind, minlength=texts.types) > 0, _own(texts)
  covered, distinct = int((there & mask).sum()), int(there.sum())
  with np.errstate(divide='ignore', invalid='ignore'):
    return covered / distinct, (covered - _sums(texts, own & mask[texts.kind])) / (distinct - _sums(texts, own))


def _jaccard(texts: Texts, mask: Bool[np.ndarray, 'T'], distinct: int) -> tuple[float, Loo]:
  """Types in both over types in either; `distinct` are those of the corpus."""
  there, own = np.bincount(texts.kind, minlength=texts.types) > 0, _own(texts)
  both, ours = int((there & mask).sum()), int(there.sum())
  fewer, less = both - _sums(texts, own & mask[texts.kind]), ours - _sums(texts, own)
  return both / (ours + distinct - both), fewer / (less + distinct - fewer)


def _cross_entropy(texts: Texts, logarithm: Float[np.ndarray, 'V']) -> tuple[float, Loo]:
  """In nats a piece; `logarithm` is ln q."""
  return _without(np.divide, _sums(texts, -texts.count * logarithm[texts.kind]), _sums(texts, texts.count))


def _divergence(texts: Texts, logarithm: Float[np.ndarray, 'V']) -> tuple[float, Loo]:
  """Cross-entropy less ln N - (sum of f ln f) / N."""
  def times_log(x: Any) -> Any:
    return x * np.log(np.maximum(x, 1))

  f = texts.totals()
  lost = _sums(texts, times_log(f[texts.kind]) - times_log(f[texts.kind] - texts.count))
  cross, others = _cross_entropy(texts, logarithm)
  n, total = f.sum(), times_log(f).sum()
  left = n - _sums(texts, texts.count)
  with np.errstate(divide='ignore', invalid='ignore'):
    return float(cross - np.log(n) + total / n), others - np.log(left) + (total - lost) / left


def headline(found: Sequence[Measure]) -> Measure:
  """The measure that the study of the gap uses."""
  return next(one for one in found if (one.unit, one.name, one.least) == HEADLINE)


def tables(found: Mapping[str, Any]) -> list[rich_table.Table]:
  """A table a split, shares times 100."""
  made = []
  for split, of in found['measures'].items():
    made.append(rich_table.Table(
        title=f'{found["task"]}, {found["examples"][split]:,} {split} examples, in {found["rows"]:,} rows of '
              f'{found["tokens"]:,} tokens of {found["corpus"]}', title_justify='left'))
    for heading in ('unit', 'measure', 'at least', 'value', '95% interval'):
      made[-1].add_column(heading, justify='left' if heading in ('unit', 'measure') else 'right')
    for one in of:
      nats = one['name'] in ('cross-entropy', 'divergence')
      values = [value if nats else 100 * value for value in (one['value'], one['low'], one['high'])]
      digits = ['–' if math.isnan(value) else f'{value:.3f}' if nats else f'{value:.2f}' for value in values]
      made[-1].add_row(one['unit'], one['name'] + (' (nats)' if nats else ' (%)'), str(one['least']), digits[0],
                       f'{digits[1]} to {digits[2]}')
  return made
