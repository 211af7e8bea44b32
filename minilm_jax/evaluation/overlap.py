"""Measures the overlap of a task's texts with a pre-training corpus: shares of types and tokens.

Paper 2 relates the gain from pre-training to "token overlap", without a definition. Let f(t) count
type t in the task's texts and c(t) in the training rows of the corpus. T are the types with f > 0,
S the types with c > 0, and N is the sum of f. Types are pieces of the tokenizer, or words:

    type overlap, m    |{t in T: c(t) >= m}| / |T|
    token overlap, m   sum over t with c(t) >= m of f(t) / N
    out of vocabulary  1 - token overlap at m = 1, of words
    unknown, bytes     share of `<unk>` or of byte pieces among the task's pieces
    Jaccard            |T and S| / |T or S|
    cross-entropy      - sum of f(t) / N ln q(t), q(t) = (c(t) + 1) / (sum of c + V), in nats a piece; of pieces alone
    divergence         cross-entropy minus the entropy of f / N: Kullback-Leibler divergence, in nats

The study of the gap uses the token overlap of words (`HEADLINE_MEASURE`). A corpus of a million
tokens contains nearly every piece, because its tokenizer is trained on the corpus. Type overlap,
Jaccard and divergence depend on the number of examples; compare them at equal numbers. `<unk>`
never counts as overlap.

Intervals cover other examples of the same kind, by the jackknife with Student's t. A bootstrap
sample would omit a third of the examples and thus many rare types.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int, Shaped
from rich import table as rich_table
from scipy import sparse, stats

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
from minilm_jax.data.normalization import fold_text
from minilm_jax.data.tokenizer import PAD_ID, SPECIAL_TOKENS, UNKNOWN_ID, Tokenizer, load_tokenizer
from minilm_jax.tasks import metrics
from minilm_jax.tasks.examples import Examples, complete_task, list_splits, read_examples

_THRESHOLDS = (1, 10, 100)  # m
HEADLINE_MEASURE = ('words', 'token overlap', 1)
_IN_NATS = ('cross-entropy', 'divergence')
# Counts of T types in n examples, a `sparse.coo_array` [n T], which SciPy does not annotate.
TypeCounts = Any
# A statistic of all n examples, and its values without each of the examples.
Jackknife = tuple[float, Float[np.ndarray, 'n']]


@dataclasses.dataclass(frozen=True)
class Measure:
  """Stores a measure of a task's texts against a corpus.

  Attributes:
    unit: 'pieces' or 'words'.
    name: Name of the measure in the docstring of the module.
    min_count: Minimum count m in the corpus; 1 for measures without m.
    value: A share, or nats for cross-entropy and divergence.
    low: Lower end of the 95% interval, `high` the upper end; nan for fewer than two examples.
  """

  unit: str
  name: str
  min_count: int
  value: float
  low: float
  high: float

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields for JSON, with `least` for `min_count`."""
    fields = dataclasses.asdict(self)
    return {'least' if name == 'min_count' else name: fields[name] for name in fields}


def count_types(examples: Sequence[Iterable[int]], types: int) -> TypeCounts:
  """Returns the count of each type number in each example."""
  entries = [
    (number, kind, count)
    for number, example in enumerate(examples)
    for kind, count in Counter(example).items()
  ]
  owner, kind, count = np.array(entries, int).reshape(-1, 3).T
  return sparse.coo_array((count, (owner, kind)), (len(examples), types))


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
  """Returns counts of each piece and each word in rows of a split; None counts all rows."""
  total = int(files.ends[-1]) if rows is None else len(rows)
  piece_counts, field_counts = np.zeros(files.manifest['vocabulary'], int), Counter()
  with progress.track_progress('counting the corpus', total, 'rows') as update:
    counted = 0
    for tokens in files.read_blocks(rows):
      piece_counts += np.bincount(tokens.ravel(), minlength=len(piece_counts))
      if with_words:
        for row in tokens:
          field_counts.update(tokenizer.decode(row[row != PAD_ID].tolist()).split())
      counted += len(tokens)
      update(counted, '')
  piece_counts[: len(SPECIAL_TOKENS)] = 0
  word_counts: Counter[str] = Counter()
  for field, count in field_counts.items():
    for word in filters.extract_words(field, 'plain'):
      word_counts[word] += count
  return piece_counts, word_counts


def measure_overlap(
  folder: epath.PathLike, config: FinetuneConfig, part: SubsetConfig
) -> dict[str, Any]:
  """Measures the overlap of a corpus, or of a subset of its rows, with the texts of a task.

  Returns:
    JSON data: corpus, rows, task, examples, and the measures of the training split and of each
    reported split.

  Raises:
    InputError: The corpus or task is invalid, the subset is larger than the corpus, or the task has
      no text.
  """
  manifest = read_manifest(folder)
  check_subset(part, manifest, folder)
  task = complete_task(config.task)
  splits = {
    name: read_examples(task, config.task, name)
    for name in ('train', *list_splits(task, config.task.split))
  }
  train_files, tokenizer = CorpusFiles(folder, TRAIN_SPLIT), open_tokenizer(folder, manifest)
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
      name: [measure.to_dict() for measure in split] for name, split in measures.items()
    },
  }


def open_tokenizer(folder: epath.PathLike, manifest: Mapping[str, Any]) -> Tokenizer:
  """Opens the tokenizer of a corpus.

  Raises:
    InputError: The file differs from the tokenizer of the manifest.
  """
  path = files.resolve_inside(folder, manifest['tokenizer']['file'], f'the tokenizer of {folder}')
  tokenizer = load_tokenizer(path)
  if tokenizer.sha256 != manifest['tokenizer']['sha256']:
    raise InputError(
      f'the tokenizer of {folder}', f'another checksum of {path}', 'copy the corpus again'
    )
  return tokenizer


def read_texts(
  examples: Examples, tokenizer: Tokenizer, source: str
) -> tuple[TypeCounts, list[list[str]]]:
  """Returns the piece counts and the lower-case words of each example, with both texts of a pair.

  Raises:
    InputError: No example has a piece or a word; the error names the source.
  """
  joined = (f'{first} {second}'.strip() for first, second in examples.pairs)
  texts = [fold_text(text) for text in joined]
  encoded, words = tokenizer.encode(texts), [split_words(text) for text in texts]
  if not any(words) or not any(encoded):
    raise InputError(
      f'overlap with {source}',
      f'no words in the texts of {len(texts):,} examples',
      'give examples with text, or set another task.fields',
    )
  return count_types(encoded, tokenizer.size), words


def compute_measures(
  examples: Examples,
  tokenizer: Tokenizer,
  piece_counts: Int[np.ndarray, 'V'],
  word_counts: Mapping[str, int],
  source: str,
) -> list[Measure]:
  """Returns all measures of examples against the counts of a corpus, as from `count_corpus`.

  Raises:
    InputError: The examples have no text; the error names the source.
  """
  pieces, example_words = read_texts(examples, tokenizer, source)
  index = {word: i for i, word in enumerate(dict.fromkeys(itertools.chain(*example_words)))}
  words = count_types([[index[word] for word in text] for text in example_words], len(index))
  known = np.array([word_counts.get(word, 0) for word in index], int)
  measures = _measure_types('pieces', pieces, piece_counts, int(np.count_nonzero(piece_counts)))
  measures += _measure_types('words', words, known, len(word_counts))
  overlap = find_headline(measures)
  measures.append(
    Measure('words', 'out of vocabulary', 1, 1 - overlap.value, 1 - overlap.high, 1 - overlap.low)
  )
  ids = np.arange(tokenizer.size)
  is_byte = np.array([tokenizer.piece(i).startswith('<0x') for i in range(tokenizer.size)])
  log_shares = np.log(piece_counts + 1) - np.log(piece_counts.sum() + tokenizer.size)
  return [
    *measures,
    _make_measure('pieces', 'unknown', 1, _compute_mean(pieces, ids == UNKNOWN_ID)),
    _make_measure('pieces', 'bytes', 1, _compute_mean(pieces, is_byte)),
    _make_measure('pieces', 'cross-entropy', 1, _compute_mean(pieces, -log_shares)),
    _make_measure('pieces', 'divergence', 1, _compute_divergence(pieces, log_shares)),
  ]


def _measure_types(
  unit: str, texts: TypeCounts, corpus_counts: Int[np.ndarray, 'T'], corpus_types: int
) -> list[Measure]:
  return [
    *(
      _make_measure(unit, name, m, compute_share(texts, corpus_counts >= m))
      for name, compute_share in (
        ('type overlap', _compute_type_share),
        ('token overlap', _compute_mean),
      )
      for m in _THRESHOLDS
    ),
    _make_measure(unit, 'Jaccard', 1, _compute_jaccard(texts, corpus_counts > 0, corpus_types)),
  ]


def _make_measure(unit: str, name: str, min_count: int, statistic: Jackknife) -> Measure:
  """Returns a statistic with its jackknife interval, limited to the range of the measure."""
  value, without = statistic
  n = len(without)
  if n < 2 or not np.isfinite(without).all():
    return Measure(unit, name, min_count, value, math.nan, math.nan)
  error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
  margin = float(stats.t.ppf(0.5 + metrics.CONFIDENCE / 2, n - 1)) * error
  maximum = math.inf if name in _IN_NATS else 1.0
  low, high = max(0.0, value - margin), min(maximum, value + margin)
  return Measure(unit, name, min_count, value, low, high)


def _sum_entries(texts: TypeCounts, values: Shaped[np.ndarray, 'K']) -> Float[np.ndarray, 'n']:
  """Returns the sum over the entries of each example."""
  return np.bincount(texts.row, values, texts.shape[0])


def _count_distinct(texts: TypeCounts, mask: Bool[np.ndarray, 'T']) -> Jackknife:
  """Returns the number of types in the mask, of all examples and without each example."""
  num_examples = np.bincount(texts.col, minlength=texts.shape[1])
  unique = (num_examples == 1) & mask
  count = int(((num_examples > 0) & mask).sum())
  return count, count - _sum_entries(texts, unique[texts.col])


def _compute_mean(
  texts: TypeCounts, values: Float[np.ndarray, 'T'] | Bool[np.ndarray, 'T']
) -> Jackknife:
  """Returns the mean over tokens of a value of each type; for a mask, the share of tokens in it."""
  sums, tokens = (
    _sum_entries(texts, texts.data * values[texts.col]),
    _sum_entries(texts, texts.data),
  )
  total, num_tokens = sums.sum(), tokens.sum()
  with np.errstate(divide='ignore', invalid='ignore'):
    return float(total / num_tokens), (total - sums) / (num_tokens - tokens)


def _compute_type_share(texts: TypeCounts, mask: Bool[np.ndarray, 'T']) -> Jackknife:
  """Returns the share of distinct types in the mask."""
  covered, distinct = _count_distinct(texts, mask), _count_distinct(texts, np.full_like(mask, True))
  with np.errstate(divide='ignore', invalid='ignore'):
    return covered[0] / distinct[0], covered[1] / distinct[1]


def _compute_jaccard(
  texts: TypeCounts, mask: Bool[np.ndarray, 'T'], corpus_types: int
) -> Jackknife:
  """Returns the number of common types over the number of types in the union."""
  common, common_without = _count_distinct(texts, mask)
  distinct, distinct_without = _count_distinct(texts, np.full_like(mask, True))
  return (
    common / (distinct + corpus_types - common),
    common_without / (distinct_without + corpus_types - common_without),
  )


def _compute_divergence(texts: TypeCounts, log_shares: Float[np.ndarray, 'V']) -> Jackknife:
  """Returns the cross-entropy minus ln N - (sum of f ln f) / N."""

  def times_log(x: Any) -> Any:
    return x * np.log(np.maximum(x, 1))

  f = texts.sum(0)
  before = f[texts.col]
  change = _sum_entries(texts, times_log(before) - times_log(before - texts.data))
  cross_entropy, cross_entropy_without = _compute_mean(texts, -log_shares)
  n, total = f.sum(), times_log(f).sum()
  n_without = n - _sum_entries(texts, texts.data)
  with np.errstate(divide='ignore', invalid='ignore'):
    without = cross_entropy_without - np.log(n_without) + (total - change) / n_without
    return float(cross_entropy - np.log(n) + total / n), without


def find_headline(measures: Sequence[Measure]) -> Measure:
  """Returns the measure `HEADLINE_MEASURE`."""
  return next(m for m in measures if (m.unit, m.name, m.min_count) == HEADLINE_MEASURE)


def make_overlap_tables(result: Mapping[str, Any]) -> list[rich_table.Table]:
  """Returns a table for each split, with shares in percent."""
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
