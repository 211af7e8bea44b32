"""Declares every field of a corpus recipe: type, range, default and reason.

The types are frozen, hashable and checked when they are made.
"""

import dataclasses
from typing import Annotated

from minilm_jax.core.errors import InputError
from minilm_jax.core.schema import (
  MAX_AXIS_SIZE,
  Checked,
  Fraction,
  NonNegativeInt,
  PositiveInt,
  RowLength,
  at_least,
  at_most,
  one_of,
)

FORMAT = 1  # version of the corpus folder
SPLITS = ('train', 'validation', 'test')
# The special tokens have the first ids of every vocabulary.
SPECIAL_TOKENS = ('<s>', '<pad>', '</s>', '<unk>', '<mask>')
BEGIN_ID, PAD_ID, END_ID, UNKNOWN_ID, MASK_ID = range(5)
_MAX_DOCUMENT_CHARS, _MAX_WORKERS = 2**32, 1024
_MIN_PIECES = 16


@dataclasses.dataclass(frozen=True)
class DocumentsConfig(Checked):
  """The text that is read."""

  where = 'documents.'
  sources: tuple[str, ...] = ()  # Files, globs, TFDS names or microworld.
  field: str = 'text'  # Column of the text in jsonl, csv, tsv, parquet or TFDS.
  split: str = 'train'  # Of a TFDS source.
  data_dir: str = ''  # Of a TFDS source; '' takes the default of TFDS.
  # Document of a .txt: up to an empty line (a line, if none is empty), a line, or a file.
  document_unit: Annotated[str, one_of('paragraphs', 'line', 'file')] = 'paragraphs'
  # Reaction to bytes that are not UTF-8: strict stops, replace continues.
  on_invalid_utf8: Annotated[str, one_of('strict', 'replace')] = 'strict'
  # Largest number of characters of a document; a longer document is refused.
  max_chars: Annotated[int, at_least(1), at_most(_MAX_DOCUMENT_CHARS)] = 10_000_000


@dataclasses.dataclass(frozen=True)
class VocabularyConfig(Checked):
  """The reduced language: its word list, the counting rule, and the filters of text."""

  where = 'vocabulary.'
  word_list: str = ''  # A file with one word a line or a column `word`; '' filters nothing.
  most_frequent: NonNegativeInt = 0  # Or the number of most frequent words of the source.
  # Definition of a word: the rule of paper 1, or plain, which knows apostrophes.
  word_rule: Annotated[str, one_of('paper1', 'plain')] = 'paper1'
  # Filters that keep text; `documents` keeps whole documents.
  filters: Annotated[tuple[str, ...], one_of('sentences', 'spans', 'documents')] = (
    'sentences',
    'spans',
  )
  min_words_per_sentence: NonNegativeInt = 5  # A kept sentence has more counted words than this.
  span_words: PositiveInt = 110  # Words of a window.
  span_stride: PositiveInt = 30  # Words between starts of windows.
  min_words_per_span: NonNegativeInt = 40  # A kept window has more counted words than this.

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.filters:
      raise InputError(
        'vocabulary.filters', 'no filter at all', 'give sentences, spans, or sentences,spans'
      )
    if self.word_list and self.most_frequent:
      raise InputError(
        'vocabulary.word_list and vocabulary.most_frequent', 'both are set', 'give one of them'
      )


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Checked):
  """The SentencePiece model that is trained, or the file that replaces it."""

  where = 'tokenizer.'
  path: str = ''  # An existing SentencePiece model, instead of training one.
  model: Annotated[str, one_of('bpe', 'unigram')] = 'bpe'
  # Pieces, with the five special ones.
  size: Annotated[int, at_least(_MIN_PIECES), at_most(MAX_AXIS_SIZE)] = 19000
  # Further sizes tried on the same text; their word-split ratio and ESMS go into the manifest.
  extra_sizes: tuple[int, ...] = ()

  def __post_init__(self) -> None:
    super().__post_init__()
    for size in self.extra_sizes:
      at_least(_MIN_PIECES)('tokenizer.extra_sizes', size)
      at_most(MAX_AXIS_SIZE)('tokenizer.extra_sizes', size)


@dataclasses.dataclass(frozen=True)
class RowsConfig(Checked):
  """The packing of text into rows."""

  where = 'rows.'
  length: RowLength = 128
  # words: the estimate of paper 1, 1.2 tokens a word; tokens: full rows; articles: one row a
  # document, cut at its end (paper 2).
  packing: Annotated[str, one_of('words', 'tokens', 'articles')] = 'words'


@dataclasses.dataclass(frozen=True)
class SplitConfig(Checked):
  """Shares of the documents, by hash, of validation and test."""

  where = 'splits.'
  validation: Fraction = 0.01
  test: Fraction = 0.01

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.validation + self.test >= 1:
      raise InputError(
        'splits',
        f'validation {self.validation} and test {self.test} leave no training text',
        'lower them',
      )


@dataclasses.dataclass(frozen=True)
class CorpusConfig(Checked):
  """One corpus: text to rows."""

  kind: str = 'corpus'
  documents: DocumentsConfig = DocumentsConfig()
  vocabulary: VocabularyConfig = VocabularyConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  rows: RowsConfig = RowsConfig()
  splits: SplitConfig = SplitConfig()
  workers: Annotated[int, at_least(0), at_most(_MAX_WORKERS)] = 0  # Processes; 0 takes one a core.

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.rows.packing == 'articles' and self.vocabulary.filters != ('documents',):
      raise InputError(
        'rows.packing=articles',
        f'vocabulary.filters={",".join(self.vocabulary.filters)}',
        'give vocabulary.filters=documents: other filters keep parts of them',
      )
