"""SentencePiece: trains, loads and measures tokenizers; encodes and decodes.

The ids of the five special pieces are fixed. Text is encoded as it stands (the caller lower-cases
it; only runs of spaces are squeezed), and `<s>` and `</s>` are added by the code that builds rows.
Other families are not trained here, but the tokenizer of an imported model is loaded like our own
(`wrapped_tokenizer.py`).
"""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import sentencepiece
from etils import epath

from minilm_jax.core import files
from minilm_jax.core.corpus_config import (
  BEGIN_ID,
  END_ID,
  MASK_ID,
  PAD_ID,
  SPECIAL_TOKENS,
  UNKNOWN_ID,
)
from minilm_jax.core.errors import InputError
from minilm_jax.data import wrapped_tokenizer

_WORD_MARKER = '\u2581'  # of SentencePiece, for the space before a word
# of training; a constant: unigram sums floats per thread, and the same text must give the same
# bytes
_NUM_THREADS = 4
# The 256 byte pieces come from this size on; below, they crowd out the words.
_NUM_BYTE_PIECES, _MIN_SIZE_WITH_BYTES = 256, 600
_MAX_TEXT_BYTES = 1 << 30  # SentencePiece's own limit of 4,192 silently skips longer texts

# Words and their parts for `esms`: the words of an early version of the reference of paper 1, divided
# by us. The final reference, of 265 parts, was not released: scores compare only with each other.
_REFERENCE_WORDS = (
  'cook-ing danger-ous pre-text fit-ness anti-social pod-ium uni-verse europe-an de-code sub-vert '
  'pro-active con-centric octo-pus'
).split()
REFERENCE: Mapping[str, tuple[str, ...]] = {
  word.replace('-', ''): tuple(word.split('-')) for word in _REFERENCE_WORDS
}


class Tokenizer:
  """A SentencePiece model with our special ids, or an imported one; never changed.

  Attributes:
    model: the bytes of the model file.
    sha256: their hex digest, the identity of the tokenizer.
    size: number of pieces, the special ones included.
    between: number of `</s>` between two texts of one row: 2 as in RoBERTa, or 1 as in BERT.
  """

  def __init__(self, model: bytes):
    self._is_wrapped, self.between = wrapped_tokenizer.is_wrapped(model), 2
    if self._is_wrapped:
      self._processor = wrapped_tokenizer.WrappedTokenizer(model)
      self.between = self._processor.between
    else:
      self._processor = sentencepiece.SentencePieceProcessor()
      self._processor.LoadFromSerializedProto(model)
    self.model = model
    self.sha256 = hashlib.sha256(model).hexdigest()
    self.size = self._processor.get_piece_size()

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns ids of each text, never special ones: `<mask>` in a text is plain characters."""
    return self._processor.encode(list(texts))

  def fold(self, text: str) -> str:
    """Returns a text in the case of the pieces: lower, as every corpus, unless imported."""
    return text if self._is_wrapped else text.lower()

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of one sequence of ids, without the special ones."""
    return self._processor.decode([int(i) for i in ids])

  def piece(self, id: int) -> str:
    """Returns the piece with this id, with U+2581 for the space before a word."""
    return self._processor.id_to_piece(int(id))

  def id(self, piece: str) -> int:
    """Returns the id of a piece, `UNKNOWN_ID` if there is none."""
    return self._processor.piece_to_id(piece)

  def starts_word(self) -> tuple[bool, ...]:
    """Returns for each id whether its piece begins a word."""
    return tuple(self.piece(i).startswith(_WORD_MARKER) for i in range(self.size))


def train_tokenizer(texts: Iterable[str], model: str, size: int, path: epath.PathLike) -> Tokenizer:
  """Trains a tokenizer and writes its model file, whole or not at all.

  The same texts give the same bytes on any machine. SentencePiece holds all texts in memory: bound
  them with `sample_evenly`. From 600 pieces on, characters too rare for a piece of their own are
  spelled in bytes, so nothing is ever `<unk>`; a smaller tokenizer covers every character of
  `texts` instead. Text is not normalised, so that another implementation gives the same ids without
  our Unicode tables.

  Args:
    texts: training text, each item of one line.
    model: bpe or unigram.
    size: pieces, the five special ones included.
    path: of the model file.

  Raises:
    InputError: the texts cannot support so many, or so few, pieces; or there is no text.
  """
  tokenizer = _train_sentencepiece(texts, model, size)
  files.write_bytes(path, tokenizer.model)
  return tokenizer


def _train_sentencepiece(texts: Iterable[str], model: str, size: int) -> Tokenizer:
  with_bytes, written = size >= _MIN_SIZE_WITH_BYTES, io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=written,
      model_type=model,
      vocab_size=size,
      bos_id=BEGIN_ID,
      pad_id=PAD_ID,
      eos_id=END_ID,
      unk_id=UNKNOWN_ID,
      control_symbols=[SPECIAL_TOKENS[MASK_ID]],
      bos_piece=SPECIAL_TOKENS[BEGIN_ID],
      pad_piece=SPECIAL_TOKENS[PAD_ID],
      eos_piece=SPECIAL_TOKENS[END_ID],
      unk_piece=SPECIAL_TOKENS[UNKNOWN_ID],
      byte_fallback=with_bytes,
      character_coverage=0.9995 if with_bytes else 1.0,
      normalization_rule_name='identity',
      max_sentence_length=_MAX_TEXT_BYTES,
      shuffle_input_sentence=False,
      num_threads=_NUM_THREADS,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise _explain_failure(error, model, size) from error
  return Tokenizer(written.getvalue())


def _explain_failure(error: RuntimeError, model: str, size: int) -> Exception:
  asked, message = f'a tokenizer of {size} pieces ({model})', str(error)
  if match := re.search(r'too high .*<= (\d+)', message):
    max_size = int(match[1])
    # that counts byte pieces, which a tokenizer of this size does not get
    if size >= _MIN_SIZE_WITH_BYTES > max_size:
      max_size -= _NUM_BYTE_PIECES
    return InputError(
      asked,
      f'the text supports no more than {max_size}',
      f'set tokenizer.size to {max_size} or less, or give more text',
    )
  if match := re.search(r'smaller than required_chars\. \d+ vs (\d+)', message):
    return InputError(
      asked,
      f'its characters and special pieces alone are {match[1]}',
      f'set tokenizer.size to {match[1]} or more',
    )
  if 'sentences_.empty()' in message:
    return InputError(asked, 'no text to train it on', 'give more text, or keep more of it')
  return error


def load_tokenizer(path: epath.PathLike) -> Tokenizer:
  """Loads a SentencePiece model file, or the file that `minilm import` wrote in its place.

  Raises:
    InputError: no such file or one that is too large, neither of the two, or one with other ids of
      the special pieces; or an imported one, and the library that reads it is not installed.
  """
  what = f'the tokenizer {path}'
  try:
    model = files.read_bytes(path, what)
  except OSError as error:
    raise InputError(what, f'it cannot be read: {error}', 'check the path') from None
  try:
    tokenizer = Tokenizer(model)
    pieces = [tokenizer.piece(i) for i in range(tokenizer.size)]
  except (RuntimeError, ValueError) as error:  # ValueError: a piece that is no UTF-8
    if wrapped_tokenizer.is_wrapped(model):
      fault, remedy = f'not what minilm import writes: {error}', 'import the model again'
    else:
      fault = 'not a SentencePiece model'
      remedy = 'give the .model file of a SentencePiece tokenizer'
    raise InputError(what, fault, remedy) from None
  special = (pieces + ['nothing'] * len(SPECIAL_TOKENS))[: len(SPECIAL_TOKENS)]
  if special != list(SPECIAL_TOKENS):
    expected = ', '.join(f'{piece} {i}' for i, piece in enumerate(SPECIAL_TOKENS))
    others = ', '.join(
      f'{i} is {piece!r}' for i, piece in enumerate(special) if piece != SPECIAL_TOKENS[i]
    )
    raise InputError(
      f'{what} with {expected}',
      f'other special pieces: {others}',
      'train it here, or with SentencePiece and these ids (<mask> as the first control symbol)',
    )
  return tokenizer


def sample_evenly(texts: Iterable[str], share: float) -> Iterator[str]:
  """Yields an even sample of texts with this share of their characters; all of them from 1 on.

  >>> list(sample_evenly(['a', 'b', 'c', 'd'], 0.5))
  ['b', 'd']
  """
  seen = taken = 0
  for text in texts:
    seen += len(text)
    if taken + len(text) <= seen * share:
      taken += len(text)
      yield text


def word_split_ratio(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
  """Returns the mean number of pieces a word, over all words of all texts (paper 1).

  A word is what stands between single spaces; each is encoded alone, in the form that SentencePiece
  gives to the beginning of a word (the paper's byte-level tokenizers see the form inside a word).
  NaN without words.
  """
  counts = Counter(word for text in texts for word in text.split(' ') if word)
  encoded = tokenizer.encode(list(counts))
  pieces = sum(count * len(ids) for count, ids in zip(counts.values(), encoded, strict=True))
  return pieces / counts.total() if counts else float('nan')


def esms(tokenizer: Tokenizer, reference: Mapping[str, Sequence[str]] = REFERENCE) -> float:
  """Returns the exact sub-token match score: the share of word parts that are pieces (paper 1).

  A word that stays whole or falls into single characters scores 0; otherwise every piece that is
  exactly one of the word's parts scores 1. Like '#' and '_', the space marker of SentencePiece is
  no part of a piece here; the released code leaves it on, so that there the first piece of a word
  could never match.
  """
  score = 0
  for parts, ids in zip(reference.values(), tokenizer.encode(list(reference)), strict=True):
    pieces = (tokenizer.piece(i).strip(_WORD_MARKER).replace('#', '').replace('_', '') for i in ids)
    pieces = [piece for piece in pieces if piece]
    if len(pieces) > 1 and any(len(piece) > 1 for piece in pieces):
      score += sum(piece in parts for piece in pieces)
  return score / sum(len(parts) for parts in reference.values())


def measure_sizes(
  texts: Sequence[str],
  model: str,
  sizes: Iterable[int],
  reference: Mapping[str, Sequence[str]] = REFERENCE,
) -> list[dict[str, float]]:
  """Trains a tokenizer of each size; returns rows of `size`, `word_split_ratio`, `esms`."""
  rows = []
  for size in sizes:
    tokenizer = _train_sentencepiece(texts, model, size)
    ratio, score = word_split_ratio(tokenizer, texts), esms(tokenizer, reference)
    rows.append({'size': size, 'word_split_ratio': ratio, 'esms': score})
  return rows
