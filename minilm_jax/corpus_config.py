"""The configuration of a corpus as frozen, hashable types, checked when they are made.

What each field is for is said once, in `configs/base.py`; here is what it may be.
"""

import dataclasses
from typing import Annotated

from minilm_jax.checks import MOST_SIZE, Checked, Count, Positive, Share, at_least, at_most, one_of
from minilm_jax.errors import InputError

_LONGEST, _WORKERS = 2**32, 1024  # characters of a document, and processes


@dataclasses.dataclass(frozen=True)
class DocumentsConfig(Checked):
  """What text is read, and from where."""

  where = 'documents.'
  sources: tuple[str, ...]
  field: str
  split: str
  data_dir: str
  unit: Annotated[str, one_of('paragraphs', 'line', 'file')]
  errors: Annotated[str, one_of('strict', 'replace')]
  longest: Annotated[int, at_least(1), at_most(_LONGEST)]


@dataclasses.dataclass(frozen=True)
class VocabularyConfig(Checked):
  """The reduced language: the word list, how words are counted, and which passes keep text."""

  where = 'vocabulary.'
  word_list: str
  most_frequent: Count
  counting: Annotated[str, one_of('honey', 'plain')]
  passes: Annotated[tuple[str, ...], one_of('sentences', 'spans', 'documents')]
  sentence_words: Count
  span_words: Positive
  span_stride: Positive
  span_counted: Count

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.passes:
      raise InputError('vocabulary.passes', 'no pass at all', 'give sentences, spans, or sentences,spans')
    if self.word_list and self.most_frequent:
      raise InputError('vocabulary.word_list and vocabulary.most_frequent', 'both are set', 'give one of them')


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Checked):
  """Which SentencePiece model is trained, or which file is used instead."""

  where = 'tokenizer.'
  path: str
  model: Annotated[str, one_of('bpe', 'unigram')]
  size: Annotated[int, at_least(16), at_most(MOST_SIZE)]
  sweep: tuple[int, ...]

  def __post_init__(self) -> None:
    super().__post_init__()
    for size in self.sweep:
      at_least(16)('tokenizer.sweep', size)
      at_most(MOST_SIZE)('tokenizer.sweep', size)


@dataclasses.dataclass(frozen=True)
class RowsConfig(Checked):
  """How kept text becomes rows."""

  where = 'rows.'
  length: Annotated[int, at_least(4), at_most(MOST_SIZE)]
  grouping: Annotated[str, one_of('words', 'tokens', 'articles')]


@dataclasses.dataclass(frozen=True)
class SplitConfig(Checked):
  """Shares of documents, by hash, that validation and test take."""

  where = 'splits.'
  validation: Share
  test: Share

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.validation + self.test >= 1:
      raise InputError('splits', f'validation {self.validation} and test {self.test} leave no training text',
                       'lower them')


@dataclasses.dataclass(frozen=True)
class CorpusConfig(Checked):
  """Text to rows."""

  kind: str
  documents: DocumentsConfig
  vocabulary: VocabularyConfig
  tokenizer: TokenizerConfig
  rows: RowsConfig
  splits: SplitConfig
  workers: Annotated[int, at_least(0), at_most(_WORKERS)]

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.rows.grouping == 'articles' and self.vocabulary.passes != ('documents',):
      raise InputError('rows.grouping=articles', f'vocabulary.passes={",".join(self.vocabulary.passes)}',
                       'give vocabulary.passes=documents: other passes keep parts of them')
