"""How much of a task's text a pre-training corpus has seen: shares of types and of running tokens,
with intervals.

The second paper says that the gap between pre-trained and not grows with "token overlap" and does
not define it. Here f(t) is how often type t stands in the task's texts, c(t) how often in the
corpus's training rows, T are the types with f > 0, S those with c > 0, and N = sum of f. A type is
a piece of the tokenizer, or a word (`counts.py`):

    type overlap, m    |{t in T: c(t) >= m}| / |T|
    token overlap, m   sum over t with c(t) >= m of f(t) / N
    out of vocabulary  1 - token overlap at m = 1, of words
    unknown, bytes     the share of the task's running pieces that are `<unk>`, or bytes of what has no piece
    Jaccard            |T and S| / |T or S|
    cross-entropy      - sum of f(t) / N ln q(t), q(t) = (c(t) + 1) / (sum of c + V), in nats a piece; of pieces alone
    divergence         cross-entropy less the entropy of f / N: Kullback and Leibler's, in nats

Token overlap of words is the measure that the study of the gap uses (`HEADLINE`): a corpus of some
million tokens holds nearly every piece, for the tokenizer is made from it. Type overlap falls, and
Jaccard and divergence move, with the number of examples that are looked at; compare them at one
number. `<unk>` is never an overlap.

Intervals are of other examples like these: examples are left out one at a time, the jackknife, with
Student's t. The bootstrap would not do for types: a resample lacks a third of the examples, and
with them the rare types.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int
from rich import table as rich_table
from scipy import stats

from minilm_jax.core import files, progress
from minilm_jax.core.config import FinetuneConfig, SubsetConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus, filters, subset, tokenizer
from minilm_jax.data.tokenizer import PAD_ID, SPECIAL_TOKENS, UNKNOWN_ID, Tokenizer
from minilm_jax.tasks import metrics
from minilm_jax.tasks.examples import Examples, available_splits, complete_task, read_examples

# How often each type, a piece or a word, stands in a corpus and in each example of a task.
_TEXTS_PER_BATCH = 1 << 14  # rows


@dataclasses.dataclass(frozen=True)
class TypeCounts:
  """Types in the examples of a task: entry k says that example `owner[k]` holds `count[k]` times
  the type `kind[k]`.

  Attributes:
    owner, kind, count: each pair of example and type once.
    examples: how many there are; some may hold nothing.
    types: T, types are numbered below it.
  """

  owner: Int[np.ndarray, 'K']
  kind: Int[np.ndarray, 'K']
  count: Int[np.ndarray, 'K']
  examples: int
  types: int

  def totals(self) -> Int[np.ndarray, 'T']:
    """How often each type stands in all examples."""
    return np.bincount(self.kind, self.count, self.types).astype(int)


def count_examples(examples: Sequence[Iterable[int]], types: int) -> TypeCounts:
  """Counts of examples that are given as type numbers."""
  owner, kind, count = [], [], []
  for number, one in enumerate(examples):
    for which, times in Counter(one).items():
      owner.append(number)
      kind.append(which)
      count.append(times)
  return TypeCounts(
    *(np.array(values, int) for values in (owner, kind, count)), len(examples), types
  )


def count_text_words(text: str) -> list[str]:
  """The words of a text, in order.

  >>> count_text_words("The dog's 12 bones")
  ['the', "dog's", '0', 'bones']
  """
  return [word for field in text.split() for word in filters.count_words(field, 'plain')]


def count_corpus(
  files: corpus.CorpusFiles,
  tokenizer: Tokenizer,
  some: Int[np.ndarray, 'n'] | None = None,
  with_words: bool = True,
) -> tuple[Int[np.ndarray, 'V'], Counter[str]]:
  """Counts of each piece and of each word in the rows of a split, or in some of them."""
  total = int(files.ends[-1]) if some is None else len(some)
  of_pieces, fields = np.zeros(files.manifest['vocabulary'], int), Counter()
  with progress.track_progress('counting the corpus', total, 'rows') as tick:
    for at in range(0, total, _TEXTS_PER_BATCH):
      numbers = (
        np.arange(at, min(at + _TEXTS_PER_BATCH, total))
        if some is None
        else some[at : at + _TEXTS_PER_BATCH]
      )
      tokens = files[numbers]
      of_pieces += np.bincount(tokens.ravel(), minlength=len(of_pieces))
      if with_words:
        for row in tokens:
          fields.update(tokenizer.decode(row[row != PAD_ID].tolist()).split())
      tick(at + len(numbers), '')
  of_pieces[: len(SPECIAL_TOKENS)] = 0
  return of_pieces, _words(fields)


def _words(fields: Mapping[str, int]) -> Counter[str]:
  found: Counter[str] = Counter()
  for field, times in fields.items():
    for word in filters.count_words(field, 'plain'):
      found[word] += times
  return found


THRESHOLDS = (1, 10, 100)  # m
HEADLINE_MEASURE = ('words', 'token overlap', 1)
LeaveOneOut = Float[np.ndarray, 'n']  # a number with each of n examples left out
MeasureValues = Float[np.ndarray, 'K'] | Int[np.ndarray, 'K'] | Bool[np.ndarray, 'K']


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


def measure_overlap(
  folder: epath.PathLike, config: FinetuneConfig, part: SubsetConfig
) -> dict[str, Any]:
  """The overlap of a corpus, or of a part of it, with the training texts and the reported texts of
  a task.

  Returns:
    Plain data: what was compared, and the measures of each split.

  Raises:
    InputError: the corpus or the task cannot be read, the part is larger than the corpus, or the
      task has no text.
  """
  described = corpus.read_manifest(folder)
  subset.check_subset(part, described, folder)
  task = complete_task(config.task)
  splits = {
    name: read_examples(task, config.task, name)
    for name in ('train', *available_splits(task, config.task.split))
  }
  files, tokenizer = (
    corpus.CorpusFiles(folder, subset.TRAIN_SPLIT),
    open_tokenizer(folder, described),
  )
  of = count_corpus(files, tokenizer, subset.select_rows(part, files))
  found = {
    name: compute_measures(examples, tokenizer, *of, f'the {name} split of {task.name}')
    for name, examples in splits.items()
  }
  size = subset.subset_size(part, folder, described)
  return {
    'corpus': str(folder),
    'hash': described['hash'],
    **size,
    'task': task.name,
    'examples': {name: len(examples.labels) for name, examples in splits.items()},
    'measures': {name: [dataclasses.asdict(one) for one in of] for name, of in found.items()},
  }


def open_tokenizer(folder: epath.PathLike, described: Mapping[str, Any]) -> Tokenizer:
  """The tokenizer of a corpus.

  Raises:
    InputError: it is not the file that the corpus was made with.
  """
  found = tokenizer.load_tokenizer(
    files.resolve_inside(folder, described['tokenizer']['file'], f'the tokenizer of {folder}')
  )
  if found.sha256 != described['tokenizer']['sha256']:
    raise InputError(
      f'the tokenizer of {folder}', 'not the file that the corpus was made with', 'copy it again'
    )
  return found


def read_texts(
  examples: Examples, tokenizer: Tokenizer, what: str
) -> tuple[TypeCounts, list[list[str]]]:
  """The pieces of each example and its words, of both of its texts, in full and in lower case.

  Raises:
    InputError: there is no piece or no word in any of them.
  """
  pairs = zip(examples.first, examples.second or ('',) * len(examples.first), strict=True)
  texts = [f'{first} {second}'.strip().lower() for first, second in pairs]
  encoded, words = tokenizer.encode(texts), [count_text_words(text) for text in texts]
  if not any(words) or not any(encoded):
    raise InputError(
      f'overlap with {what}',
      f'no word in the texts of {len(texts):,} examples',
      'give examples with text, or another task.fields',
    )
  return count_examples(encoded, tokenizer.size), words


def compute_measures(
  examples: Examples,
  tokenizer: Tokenizer,
  of_pieces: Int[np.ndarray, 'V'],
  of_words: Mapping[str, int],
  what: str,
) -> list[Measure]:
  """All measures of some examples against the counts of a corpus.

  Args:
    examples: of one split.
    tokenizer: of the corpus.
    of_pieces, of_words: of `counts.of_corpus`.
    what: whose texts these are, for an error.

  Raises:
    InputError: there is no text in them.
  """
  texts, words = read_texts(examples, tokenizer, what)
  numbers = {
    word: number for number, word in enumerate(dict.fromkeys(word for one in words for word in one))
  }
  known = np.array([of_words.get(word, 0) for word in numbers], int)
  as_words = count_examples([[numbers[word] for word in one] for one in words], len(numbers))
  found = _shared('pieces', texts, of_pieces, int(np.count_nonzero(of_pieces)))
  found += _shared('words', as_words, known, len(of_words))
  outside = next(one for one in found if (one.unit, one.name, one.least) == HEADLINE_MEASURE)
  found.append(
    Measure('words', 'out of vocabulary', 1, 1 - outside.value, 1 - outside.high, 1 - outside.low)
  )
  spelled = np.array([tokenizer.piece(one).startswith('<0x') for one in range(tokenizer.size)])
  unknown = np.arange(tokenizer.size) == UNKNOWN_ID
  found += [
    _measure('pieces', name, 1, *_share(texts, mask))
    for name, mask in (('unknown', unknown), ('bytes', spelled))
  ]
  logarithm = np.log(of_pieces + 1) - np.log(of_pieces.sum() + tokenizer.size)
  found += [
    _measure('pieces', name, 1, *pair, most=math.inf)
    for name, pair in (
      ('cross-entropy', _cross_entropy(texts, logarithm)),
      ('divergence', _divergence(texts, logarithm)),
    )
  ]
  return found


def _shared(
  unit: str, texts: TypeCounts, corpus: Int[np.ndarray, 'T'], distinct: int
) -> list[Measure]:
  found = []
  for name, share in (('type overlap', _types), ('token overlap', _share)):
    found += [_measure(unit, name, least, *share(texts, corpus >= least)) for least in THRESHOLDS]
  return [*found, _measure(unit, 'Jaccard', 1, *_jaccard(texts, corpus > 0, distinct))]


def _measure(
  unit: str, name: str, least: int, value: float, without: LeaveOneOut, most: float = 1.0
) -> Measure:
  """The number with its jackknife interval, inside what it can be."""
  n = len(without)
  if n < 2 or not np.isfinite(without).all():
    return Measure(unit, name, least, value, math.nan, math.nan)
  error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
  half = float(stats.t.ppf(0.5 + metrics.CONFIDENCE / 2, n - 1)) * error
  return Measure(unit, name, least, value, max(0.0, value - half), min(most, value + half))


def _sums(texts: TypeCounts, values: MeasureValues) -> Float[np.ndarray, 'n']:
  """Sums over the entries of each example."""
  return np.bincount(texts.owner, values, texts.examples)


def _without(
  statistic: Callable[..., Any], *sums: Float[np.ndarray, 'n']
) -> tuple[float, LeaveOneOut]:
  """A function of totals, of all examples and with each left out."""
  totals = [values.sum() for values in sums]
  with np.errstate(divide='ignore', invalid='ignore'):
    return float(statistic(*totals)), statistic(
      *(total - one for total, one in zip(totals, sums, strict=True))
    )


def _share(texts: TypeCounts, mask: Bool[np.ndarray, 'T']) -> tuple[float, LeaveOneOut]:
  """The share of running tokens whose type is among those of the mask."""
  return _without(
    np.divide, _sums(texts, texts.count * mask[texts.kind]), _sums(texts, texts.count)
  )


def _self_overlap(texts: TypeCounts) -> Bool[np.ndarray, 'K']:
  """Which entries are of a type that no other example holds."""
  return (np.bincount(texts.kind, minlength=texts.types) == 1)[texts.kind]


def _types(texts: TypeCounts, mask: Bool[np.ndarray, 'T']) -> tuple[float, LeaveOneOut]:
  """The share of distinct types that are among those of the mask."""
  there, own = np.bincount(texts.kind, minlength=texts.types) > 0, _self_overlap(texts)
  covered, distinct = int((there & mask).sum()), int(there.sum())
  with np.errstate(divide='ignore', invalid='ignore'):
    return covered / distinct, (covered - _sums(texts, own & mask[texts.kind])) / (
      distinct - _sums(texts, own)
    )


def _jaccard(
  texts: TypeCounts, mask: Bool[np.ndarray, 'T'], distinct: int
) -> tuple[float, LeaveOneOut]:
  """Types in both over types in either; `distinct` are those of the corpus."""
  there, own = np.bincount(texts.kind, minlength=texts.types) > 0, _self_overlap(texts)
  both, ours = int((there & mask).sum()), int(there.sum())
  fewer, less = both - _sums(texts, own & mask[texts.kind]), ours - _sums(texts, own)
  return both / (ours + distinct - both), fewer / (less + distinct - fewer)


def _cross_entropy(
  texts: TypeCounts, logarithm: Float[np.ndarray, 'V']
) -> tuple[float, LeaveOneOut]:
  """In nats a piece; `logarithm` is ln q."""
  return _without(
    np.divide, _sums(texts, -texts.count * logarithm[texts.kind]), _sums(texts, texts.count)
  )


def _divergence(texts: TypeCounts, logarithm: Float[np.ndarray, 'V']) -> tuple[float, LeaveOneOut]:
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


def headline_measure(found: Sequence[Measure]) -> Measure:
  """The measure that the study of the gap uses."""
  return next(one for one in found if (one.unit, one.name, one.least) == HEADLINE_MEASURE)


def overlap_tables(found: Mapping[str, Any]) -> list[rich_table.Table]:
  """A table a split, shares times 100."""
  made = []
  for split, of in found['measures'].items():
    made.append(
      rich_table.Table(
        title=f'{found["task"]}, {found["examples"][split]:,} {split} examples, in {found["rows"]:,} rows of '
        f'{found["tokens"]:,} tokens of {found["corpus"]}',
        title_justify='left',
      )
    )
    for heading in ('unit', 'measure', 'at least', 'value', '95% interval'):
      made[-1].add_column(heading, justify='left' if heading in ('unit', 'measure') else 'right')
    for one in of:
      nats = one['name'] in ('cross-entropy', 'divergence')
      values = [value if nats else 100 * value for value in (one['value'], one['low'], one['high'])]
      digits = [
        '–' if math.isnan(value) else f'{value:.3f}' if nats else f'{value:.2f}' for value in values
      ]
      made[-1].add_row(
        one['unit'],
        one['name'] + (' (nats)' if nats else ' (%)'),
        str(one['least']),
        digits[0],
        f'{digits[1]} to {digits[2]}',
      )
  return made
