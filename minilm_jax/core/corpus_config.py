"""Declares every field of a corpus recipe: type, range, default and meaning.

The types are frozen, hashable and validated on construction.
"""

import dataclasses
from typing import Annotated

from minilm_jax.core.errors import (
  MAX_AXIS_SIZE,
  Checked,
  Fraction,
  InputError,
  NonNegativeInt,
  PathText,
  PositiveInt,
  RowLength,
  at_least,
  at_most,
  one_of,
)

FORMAT = 1  # version of the corpus folder
SPLITS = ('train', 'validation', 'test')
DOCUMENT_UNITS = ('paragraphs', 'line', 'file')
TEXT_KINDS = ('sentences', 'spans', 'documents')
# The special tokens have the first ids of every vocabulary.
SPECIAL_TOKENS = ('<s>', '<pad>', '</s>', '<unk>', '<mask>')
BEGIN_ID, PAD_ID, END_ID, UNKNOWN_ID, MASK_ID = range(5)
_MAX_DOCUMENT_CHARS, _MAX_WORKERS = 2**32, 1024
_MIN_PIECES = 16


@dataclasses.dataclass(frozen=True)
class DocumentsConfig(Checked):
  """Sources of the text, and their division into documents."""

  prefix = 'documents.'
  sources: tuple[PathText, ...] = ()  # Files, globs, TFDS names or microworld.
  field: str = 'text'  # Text column of .jsonl, .csv, .tsv, .parquet or TFDS sources.
  split: str = 'train'  # Split of TFDS sources.
  data_dir: PathText = ''  # Data directory of TFDS sources; '' takes the default of TFDS.
  # Document of a .txt file: text up to an empty line (a line, in files without empty lines), a
  # line, or the file.
  document_unit: Annotated[str, one_of(*DOCUMENT_UNITS)] = 'paragraphs'
  # Bytes that are not UTF-8: strict ends with an error, replace inserts U+FFFD.
  on_invalid_utf8: Annotated[str, one_of('strict', 'replace')] = 'strict'
  # Maximum number of characters of a document; longer documents are errors.
  max_chars: Annotated[int, at_least(1), at_most(_MAX_DOCUMENT_CHARS)] = 10_000_000


@dataclasses.dataclass(frozen=True)
class VocabularyConfig(Checked):
  """Reduced vocabulary (paper 1): allowed words, and filters that select text of these words."""

  prefix = 'vocabulary.'
  # File of the allowed words: one word a line, or a column `word`; '' allows all words.
  word_list: PathText = ''
  # Alternative to word_list: number of most frequent words of the sources; 0 allows all words.
  most_frequent: NonNegativeInt = 0
  # Rule that splits text into words: that of paper 1, or plain, which handles apostrophes.
  word_rule: Annotated[str, one_of('paper1', 'plain')] = 'paper1'
  # Units that must consist of allowed words: sentences, spans (windows of words), documents.
  filters: Annotated[tuple[str, ...], one_of(*TEXT_KINDS)] = ('sentences', 'spans')
  min_words_per_sentence: NonNegativeInt = 5  # Sentences need more counted words than this number.
  span_words: PositiveInt = 110  # Words of a span.
  span_stride: PositiveInt = 30  # Words between the starts of spans.
  min_words_per_span: NonNegativeInt = 40  # Spans need more counted words than this number.

  def check_together(self) -> None:
    if not self.filters:
      raise InputError(
        "vocabulary.filters=''", 'no filter', 'give sentences, spans, documents or sentences,spans'
      )
    self.refuse_both('word_list', 'most_frequent', 'two definitions of the allowed words')


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Checked):
  """SentencePiece tokenizer: trained on the filtered text, or read from a file."""

  prefix = 'tokenizer.'
  path: PathText = ''  # Existing SentencePiece model; '' trains a tokenizer.
  model: Annotated[str, one_of('bpe', 'unigram')] = 'bpe'  # Type of a trained tokenizer.
  # Number of pieces, including five special tokens.
  size: Annotated[int, at_least(_MIN_PIECES), at_most(MAX_AXIS_SIZE)] = 19000
  # Further sizes to measure; their word-split ratio and ESMS (paper 1) are stored in the manifest.
  extra_sizes: Annotated[tuple[int, ...], at_least(_MIN_PIECES), at_most(MAX_AXIS_SIZE)] = ()


@dataclasses.dataclass(frozen=True)
class RowsConfig(Checked):
  """Packing of text into rows of token ids."""

  prefix = 'rows.'
  length: RowLength = 128  # Tokens of a row.
  # words: groups of about a row, at 1.2 tokens a word (paper 1); tokens: full rows; articles: one
  # row a document, truncated (paper 2).
  packing: Annotated[str, one_of('words', 'tokens', 'articles')] = 'words'


@dataclasses.dataclass(frozen=True)
class SplitConfig(Checked):
  """Shares of the splits; the hash of a document selects its split."""

  prefix = 'splits.'
  validation: Fraction = 0.01  # Share of the documents in the validation split.
  test: Fraction = 0.01  # Share of the documents in the test split.

  def check_together(self) -> None:
    if self.validation + self.test >= 1:
      raise InputError(
        self.format_fields('validation', 'test'),
        'no documents for the training split',
        'lower the shares, so that their sum is below 1',
      )


@dataclasses.dataclass(frozen=True)
class CorpusConfig(Checked):
  """A corpus: text to rows of token ids."""

  kind: str = 'corpus'
  documents: DocumentsConfig = DocumentsConfig()
  vocabulary: VocabularyConfig = VocabularyConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  rows: RowsConfig = RowsConfig()
  splits: SplitConfig = SplitConfig()
  # Number of processes that filter text; 0 takes one process a core.
  workers: Annotated[int, at_least(0), at_most(_MAX_WORKERS)] = 0

  def check_together(self) -> None:
    if self.rows.packing == 'articles' and self.vocabulary.filters != ('documents',):
      raise InputError(
        'rows.packing=articles',
        self.vocabulary.format_fields('filters'),
        'give vocabulary.filters=documents, because other filters split documents',
      )
