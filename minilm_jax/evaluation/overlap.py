"""Overlap of a task's text with a pre-training corpus: shares of types and of running tokens.

The second paper says that the gap between pre-trained and not grows with "token overlap", without a
definition. Here f(t) counts type t in the task's texts, c(t) in the corpus's training rows, T are
the types with f > 0, S those with c > 0, and N = sum of f. A type is a piece of the tokenizer, or a
word:

    type overlap, m    |{t in T: c(t) >= m}| / |T|
    token overlap, m   sum over t with c(t) >= m of f(t) / N
    out of vocabulary  1 - token overlap at m = 1, of words
    unknown, bytes     the share of the task's running pieces that are `<unk>`, or bytes
    Jaccard            |T and S| / |T or S|
    cross-entropy      - sum of f(t) / N ln q(t), q(t) = (c(t) + 1) / (sum of c + V), in nats a piece; of pieces alone
    divergence         cross-entropy less the entropy of f / N: Kullback and Leibler's, in nats

The study of the gap uses token overlap of words (`HEADLINE_MEASURE`): a corpus of some million
tokens holds nearly every piece, for the tokenizer is made from it. Type overlap falls, and Jaccard
and divergence move, with the number of examples; compare them at one number. `<unk>` is never an
overlap.

Intervals are over other examples like these, by the jackknife with Student's t. The bootstrap would
fail for types: a resample lacks a third of the examples, and with them the rare types.
"""

import dataclasses
import itertools
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
from minilm_jax.data import filters
from minilm_jax.data.corpus import (
  TRAIN_SPLIT,
  CorpusFiles,
  check_subset,
  measure_subset,
  read_manifest,
  select_rows,
)
from minilm_jax.data.tokenizer import (
  PAD_ID,
  SPECIAL_TOKENS,
  UNKNOWN_ID,
  Tokenizer,
  load_tokenizer,
)
from minilm_jax.tasks import metrics
from minilm_jax.tasks.examples import Examples, available_splits, complete_task, read_examples

THRESHOLDS = (1, 10, 100)  # m
HEADLINE_MEASURE = ('words', 'token overlap', 1)
_ROWS_PER_COUNT = 1 << 14
_IN_NATS = ('cross-entropy', 'divergence')
Values = Float[np.ndarray, 'K'] | Int[np.ndarray, 'K'] | Bool[np.ndarray, 'K']
# A statistic of all n examples, and with each left out.
Jackknife = tuple[float, Float[np.ndarray, 'n']]


@dataclasses.dataclass(frozen=True)
class TypeCounts:
  """Counts of types in the examples of a task: `owner[k]` holds `kind[k]` `count[k]` times.

  Attributes:
    owner, kind, count: one entry for each pair of example and type that occurs.
    examples: their number; some may hold nothing.
    types: T, types are numbered below it.
  """

  owner: Int[np.ndarray, 'K']
  kind: Int[np.ndarray, 'K']
  count: Int[np.ndarray, 'K']
  examples: int
  types: int

  def totals(self) -> Int[np.ndarray, 'T']:
    """Returns the count of each type in all examples."""
    return np.bincount(self.kind, self.count, self.types).astype(int)

  def present(self) -> Bool[np.ndarray, 'T']:
    """Returns which types occur."""
    return np.bincount(self.kind, minlength=self.types) > 0

  def is_unique(self) -> Bool[np.ndarray, 'K']:
    """Returns which entries are of a type that no other example holds."""
    return (np.bincount(self.kind, minlength=self.types) == 1)[self.kind]

  def sum_entries(self, values: Values) -> Float[np.ndarray, 'n']:
    """Returns the sum over the entries of each example."""
    return np.bincount(self.owner, values, self.examples)


@dataclasses.dataclass(frozen=True)
class Measure:
  """One measure of a task's texts against a corpus.

  Attributes:
    unit: 'pieces' or 'words'.
    name: of the measure, as in the docstring of the module.
    least: m; 1 where there is none.
    value: a share or, of cross-entropy and divergence, nats.
    low, high: the 95% interval; NaN for fewer than two examples.
  """

  unit: str
  name: str
  least: int
  value: float
  low: float
  high: float


def count_examples(examples: Sequence[Iterable[int]], types: int) -> TypeCounts:
  """Returns counts of examples that are given as type numbers."""
  owner, kind, count = [], [], []
  for number, example in enumerate(examples):
    counter = Counter(example)
    owner += [number] * len(counter)
    kind += counter.keys()
    count += counter.values()
  arrays = (np.array(values, int) for values in (owner, kind, count))
  return TypeCounts(*arrays, examples=len(examples), types=types)


def split_words(text: str) -> list[str]:
  """Returns the words of a text, in order.

  >>> split_words("The dog's 12 bones")
  ['the', "dog's", '0', 'bones']
  """
  return [word for field in text.split() for word in filters.extract_words(field, 'plain')]


def count_corpus(
  files: CorpusFiles,
  tokenizer: Tokenizer,
  rows: Int[np.ndarray, 'n'] | None = None,
  with_words: bool = True,
) -> tuple[Int[np.ndarray, 'V'], Counter[str]]:
  """Returns counts of each piece and of each word in rows of a split, by default in all of them."""
  total = int(files.ends[-1]) if rows is None else len(rows)
  piece_counts, field_counts = np.zeros(files.manifest['vocabulary'], int), Counter()
  with progress.track_progress('counting the corpus', total, 'rows') as update:
    for start in range(0, total, _ROWS_PER_COUNT):
      end = min(start + _ROWS_PER_COUNT, total)
      tokens = files[np.arange(start, end) if rows is None else rows[start:end]]
      piece_counts += np.bincount(tokens.ravel(), minlength=len(piece_counts))
      if with_words:
        for row in tokens:
          field_counts.update(tokenizer.decode(row[row != PAD_ID].tolist()).split())
      update(end, '')
  piece_counts[: len(SPECIAL_TOKENS)] = 0
  word_counts: Counter[str] = Counter()
  for field, count in field_counts.items():
    for word in filters.extract_words(field, 'plain'):
      word_counts[word] += count
  return piece_counts, word_counts


def measure_overlap(
  folder: epath.PathLike, config: FinetuneConfig, part: SubsetConfig
) -> dict[str, Any]:
  """Measures the overlap of a corpus, or of a part of it, with the texts of a task.

  Returns:
    Plain data: what was compared, and the measures of the training and of each reported split.

  Raises:
    InputError: the corpus or the task cannot be read, the part is larger than the corpus, or the
      task has no text.
  """
  manifest = read_manifest(folder)
  check_subset(part, manifest, folder)
  task = complete_task(config.task)
  splits = {
    name: read_examples(task, config.task, name)
    for name in ('train', *available_splits(task, config.task.split))
  }
  train_files, tokenizer = (
    CorpusFiles(folder, TRAIN_SPLIT),
    open_tokenizer(folder, manifest),
  )
  counts = count_corpus(train_files, tokenizer, select_rows(part, train_files))
  measures = {
    name: compute_measures(examples, tokenizer, *counts, f'the {name} split of {task.name}')
    for name, examples in splits.items()
  }
  return {
    'corpus': str(folder),
    'hash': manifest['hash'],
    **measure_subset(part, folder, manifest),
    'task': task.name,
    'examples': {name: len(examples.labels) for name, examples in splits.items()},
    'measures': {
      name: [dataclasses.asdict(measure) for measure in split] for name, split in measures.items()
    },
  }


def open_tokenizer(folder: epath.PathLike, manifest: Mapping[str, Any]) -> Tokenizer:
  """Opens the tokenizer of a corpus.

  Raises:
    InputError: it is not the file that the corpus was made with.
  """
  path = files.resolve_inside(folder, manifest['tokenizer']['file'], f'the tokenizer of {folder}')
  tokenizer = load_tokenizer(path)
  if tokenizer.sha256 != manifest['tokenizer']['sha256']:
    raise InputError(
      f'the tokenizer of {folder}', 'not the file that the corpus was made with', 'copy it again'
    )
  return tokenizer


def read_texts(
  examples: Examples, tokenizer: Tokenizer, source: str
) -> tuple[TypeCounts, list[list[str]]]:
  """Returns the piece counts and the words of each example, of both texts, in lower case.

  Raises:
    InputError: no example has a piece or a word; names the source.
  """
  pairs = zip(examples.first, examples.second or ('',) * len(examples.first), strict=True)
  texts = [f'{first} {second}'.strip().lower() for first, second in pairs]
  encoded, words = tokenizer.encode(texts), [split_words(text) for text in texts]
  if not any(words) or not any(encoded):
    raise InputError(
      f'overlap with {source}',
      f'no word in the texts of {len(texts):,} examples',
      'give examples with text, or another task.fields',
    )
  return count_examples(encoded, tokenizer.size), words


def compute_measures(
  examples: Examples,
  tokenizer: Tokenizer,
  piece_counts: Int[np.ndarray, 'V'],
  word_counts: Mapping[str, int],
  source: str,
) -> list[Measure]:
  """Returns all measures of examples against the counts of a corpus.

  Args:
    examples: of one split.
    tokenizer: of the corpus.
    piece_counts, word_counts: by `count_corpus`.
    source: of the examples, for an error.

  Raises:
    InputError: the examples have no text.
  """
  pieces, example_words = read_texts(examples, tokenizer, source)
  index = {word: i for i, word in enumerate(dict.fromkeys(itertools.chain(*example_words)))}
  words = count_examples([[index[word] for word in text] for text in example_words], len(index))
  known = np.array([word_counts.get(word, 0) for word in index], int)
  measures = _shared_types('pieces', pieces, piece_counts, int(np.count_nonzero(piece_counts)))
  measures += _shared_types('words', words, known, len(word_counts))
  overlap = headline_measure(measures)
  measures.append(
    Measure('words', 'out of vocabulary', 1, 1 - overlap.value, 1 - overlap.high, 1 - overlap.low)
  )
  ids = np.arange(tokenizer.size)
  is_byte = np.array([tokenizer.piece(i).startswith('<0x') for i in range(tokenizer.size)])
  log_shares = np.log(piece_counts + 1) - np.log(piece_counts.sum() + tokenizer.size)
  return [
    *measures,
    _measure('pieces', 'unknown', 1, _share(pieces, ids == UNKNOWN_ID)),
    _measure('pieces', 'bytes', 1, _share(pieces, is_byte)),
    _measure('pieces', 'cross-entropy', 1, _cross_entropy(pieces, log_shares)),
    _measure('pieces', 'divergence', 1, _divergence(pieces, log_shares)),
  ]


def _shared_types(
  unit: str, texts: TypeCounts, corpus_counts: Int[np.ndarray, 'T'], corpus_types: int
) -> list[Measure]:
  return [
    *(_measure(unit, 'type overlap', m, _types(texts, corpus_counts >= m)) for m in THRESHOLDS),
    *(_measure(unit, 'token overlap', m, _share(texts, corpus_counts >= m)) for m in THRESHOLDS),
    _measure(unit, 'Jaccard', 1, _jaccard(texts, corpus_counts > 0, corpus_types)),
  ]


def _measure(unit: str, name: str, least: int, statistic: Jackknife) -> Measure:
  """Returns a statistic with its jackknife interval, inside its range."""
  value, without = statistic
  n = len(without)
  if n < 2 or not np.isfinite(without).all():
    return Measure(unit, name, least, value, math.nan, math.nan)
  error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
  half = float(stats.t.ppf(0.5 + metrics.CONFIDENCE / 2, n - 1)) * error
  highest = math.inf if name in _IN_NATS else 1.0
  return Measure(unit, name, least, value, max(0.0, value - half), min(highest, value + half))


def _leave_one_out(statistic: Callable[..., Any], *sums: Float[np.ndarray, 'n']) -> Jackknife:
  """Returns a function of totals over all examples, and with each example left out."""
  totals = [values.sum() for values in sums]
  remaining = (total - values for total, values in zip(totals, sums, strict=True))
  with np.errstate(divide='ignore', invalid='ignore'):
    return float(statistic(*totals)), statistic(*remaining)


def _share(texts: TypeCounts, mask: Bool[np.ndarray, 'T']) -> Jackknife:
  """Returns the share of running tokens whose type is in the mask."""
  covered = texts.sum_entries(texts.count * mask[texts.kind])
  return _leave_one_out(np.divide, covered, texts.sum_entries(texts.count))


def _types(texts: TypeCounts, mask: Bool[np.ndarray, 'T']) -> Jackknife:
  """Returns the share of distinct types that are in the mask."""
  present, unique = texts.present(), texts.is_unique()
  covered, distinct = int((present & mask).sum()), int(present.sum())
  with np.errstate(divide='ignore', invalid='ignore'):
    return covered / distinct, (covered - texts.sum_entries(unique & mask[texts.kind])) / (
      distinct - texts.sum_entries(unique)
    )


def _jaccard(texts: TypeCounts, mask: Bool[np.ndarray, 'T'], corpus_types: int) -> Jackknife:
  """Returns types in both over types in either; `corpus_types` counts those of the corpus."""
  present, unique = texts.present(), texts.is_unique()
  both, distinct = int((present & mask).sum()), int(present.sum())
  both_without = both - texts.sum_entries(unique & mask[texts.kind])
  distinct_without = distinct - texts.sum_entries(unique)
  return (
    both / (distinct + corpus_types - both),
    both_without / (distinct_without + corpus_types - both_without),
  )


def _cross_entropy(texts: TypeCounts, log_shares: Float[np.ndarray, 'V']) -> Jackknife:
  """Returns nats per piece; `log_shares` is ln q."""
  nats = texts.sum_entries(-texts.count * log_shares[texts.kind])
  return _leave_one_out(np.divide, nats, texts.sum_entries(texts.count))


def _divergence(texts: TypeCounts, log_shares: Float[np.ndarray, 'V']) -> Jackknife:
  """Returns cross-entropy less ln N - (sum of f ln f) / N."""

  def times_log(x: Any) -> Any:
    return x * np.log(np.maximum(x, 1))

  f = texts.totals()
  lost = texts.sum_entries(times_log(f[texts.kind]) - times_log(f[texts.kind] - texts.count))
  cross_entropy, cross_entropy_without = _cross_entropy(texts, log_shares)
  n, total = f.sum(), times_log(f).sum()
  n_without = n - texts.sum_entries(texts.count)
  with np.errstate(divide='ignore', invalid='ignore'):
    without = cross_entropy_without - np.log(n_without) + (total - lost) / n_without
    return float(cross_entropy - np.log(n) + total / n), without


def headline_measure(measures: Sequence[Measure]) -> Measure:
  """Returns the measure that the study of the gap uses."""
  return next(m for m in measures if (m.unit, m.name, m.least) == HEADLINE_MEASURE)


def overlap_tables(result: Mapping[str, Any]) -> list[rich_table.Table]:
  """Returns a table per split, with shares in percent."""
  tables = []
  for split, measures in result['measures'].items():
    title = (
      f'{result["task"]}, {result["examples"][split]:,} {split} examples, in {result["rows"]:,} '
      f'rows of {result["tokens"]:,} tokens of {result["corpus"]}'
    )
    table = rich_table.Table('unit', 'measure', title=title, title_justify='left')
    for heading in ('at least', 'value', '95% interval'):
      table.add_column(heading, justify='right')
    for measure in measures:
      in_nats = measure['name'] in _IN_NATS
      scale, digits, unit = (1, 3, '(nats)') if in_nats else (100, 2, '(%)')
      value, low, high = (
        '–' if math.isnan(measure[name]) else f'{scale * measure[name]:.{digits}f}'
        for name in ('value', 'low', 'high')
      )
      name = f'{measure["name"]} {unit}'
      table.add_row(measure['unit'], name, str(measure['least']), value, f'{low} to {high}')
    tables.append(table)
  return tables
