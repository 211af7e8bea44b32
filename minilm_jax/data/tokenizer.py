"""Trains, loads and measures SentencePiece tokenizers.

The five special pieces have the first ids. Text is encoded unchanged except for repeated spaces:
callers fold it (`Tokenizer.fold`) and add `<s>` and `</s>`. The letter U+2581 in a text is no space
(`normalization.escape_space_mark`). Tokenizers of imported models load through the same class
(`wrapped_tokenizer.py`).
"""

import functools
import hashlib
import io
import itertools
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
from minilm_jax.data.normalization import (
  SPACE_MARK,
  escape_space_mark,
  fold_text,
  unescape_space_mark,
)

# A serialized ModelProto with normalizer_spec.add_dummy_prefix=False. Protocol buffers merge
# concatenated messages, so a model file followed by these bytes adds no space before a text.
_NO_DUMMY_PREFIX = bytes((3 << 3 | 2, 2, 3 << 3, 0))
# Fixed for reproducible bytes: unigram training sums floats per thread.
_NUM_THREADS = 4
# Smaller tokenizers omit the 256 byte pieces, which would crowd out words.
_NUM_BYTE_PIECES, _MIN_SIZE_WITH_BYTES = 256, 600
# SentencePiece skips training texts with its internal mark of an unknown character.
_UNKNOWN_MARK = '\u2585'
# SentencePiece before 0.2.3 aborts BPE training at a word of 65,536 characters.
_MAX_WORD_CHARS = 65_000
_LONG_WORD = re.compile(f'[^ ]{{{_MAX_WORD_CHARS}}}(?=[^ ])')
_MAX_TEXT_BYTES = 1 << 30  # SentencePiece silently skips texts above its default of 4,192

# Words and word parts for `measure_esms`: words of an early reference of paper 1, with our own division. The
# final reference of 265 parts was not released, so scores are comparable only with each other.
_REFERENCE_WORDS = (
  'cook-ing danger-ous pre-text fit-ness anti-social pod-ium uni-verse europe-an de-code sub-vert '
  'pro-active con-centric octo-pus'
).split()
REFERENCE: Mapping[str, tuple[str, ...]] = {
  word.replace('-', ''): tuple(word.split('-')) for word in _REFERENCE_WORDS
}


class _SentencePiece(sentencepiece.SentencePieceProcessor):
  """A SentencePiece model with the further methods of `WrappedTokenizer`."""

  between, reads_mark_as_space = 2, True

  def __init__(self, model: bytes):
    super().__init__()
    self.LoadFromSerializedProto(model)

  def encode_continuation(self, text: str) -> list[int]:
    """Returns the ids of a text that begins no word before its first space."""
    return self._continuation_processor.encode(text)

  @functools.cached_property
  def _continuation_processor(self) -> sentencepiece.SentencePieceProcessor:
    return _SentencePiece(self.serialized_model_proto() + _NO_DUMMY_PREFIX)

  def count_bytes(self, id: int) -> int:
    """Returns the bytes of text of an id; the space before a word counts."""
    if self.is_byte(id):
      return 1
    return len(self.id_to_piece(id).replace(SPACE_MARK, ' ').encode())


class Tokenizer:
  """An immutable SentencePiece model with fixed special ids, or an imported tokenizer.

  Attributes:
    sha256: Checksum of `model`, the identity of the tokenizer.
    size: Number of pieces, including the special pieces.
    between: Number of `</s>` between two texts of a row: 2 as in RoBERTa, or 1 as in BERT.
  """

  def __init__(self, model: bytes):
    self._is_wrapped = wrapped_tokenizer.is_wrapped(model)
    self._processor = (
      wrapped_tokenizer.WrappedTokenizer(model) if self._is_wrapped else _SentencePiece(model)
    )
    self.model = model
    self.sha256 = hashlib.sha256(model).hexdigest()
    self.size, self.between = self._processor.get_piece_size(), self._processor.between

  def __reduce__(self) -> tuple[type, tuple[bytes]]:
    """Returns how pickle and copy make an equal tokenizer, for pools of processes."""
    return Tokenizer, (self.model,)

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each text, without special ids: `<mask>` in a text is plain text."""
    return self._processor.encode([self._escape(text) for text in texts])

  def encode_parts(self, parts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each part of a text that special tokens divide.

    The first part begins a word. Another part begins one only after a space, so the ids of `B` in
    `A <mask>B` are those in `A xB`. Spaces at the end of a part have no ids.
    """
    parts = [part.rstrip(' ') for part in parts]
    ids = self.encode(parts)
    for index, part in enumerate(parts):
      if index and part and not part.startswith(' '):
        ids[index] = self._processor.encode_continuation(self._escape(part))
    return ids

  def _escape(self, text: str) -> str:
    return escape_space_mark(text) if self._processor.reads_mark_as_space else text

  def fold(self, text: str) -> str:
    """Returns a text as in a corpus, see `fold_text`. Imported tokenizers change the text."""
    return text if self._is_wrapped else fold_text(text)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of a sequence of ids, without special pieces."""
    text = self._processor.decode([int(i) for i in ids])
    return unescape_space_mark(text) if self._processor.reads_mark_as_space else text

  def piece(self, id: int) -> str:
    """Returns the piece of an id, with U+2581 for the space before a word."""
    return self._processor.id_to_piece(int(id))

  def id(self, piece: str) -> int:
    """Returns the id of a piece, or `UNKNOWN_ID`."""
    return self._processor.piece_to_id(piece)

  def starts_word(self) -> tuple[bool, ...]:
    """Returns whether the piece of each id begins a word."""
    return tuple(self.piece(i).startswith(SPACE_MARK) for i in range(self.size))

  def count_bytes(self) -> tuple[int, ...]:
    """Returns the UTF-8 bytes of text of each id: 1 for a byte piece, 0 for special pieces.

    The space before a word counts as a byte of the word.
    """
    first = len(SPECIAL_TOKENS)
    return (*[0] * first, *(self._processor.count_bytes(i) for i in range(first, self.size)))


def train_tokenizer(
  texts: Iterable[str], model: str, size: int, field: str = 'tokenizer.size'
) -> Tokenizer:
  """Returns a tokenizer that is trained on texts.

  The same texts give the same bytes on any machine. SentencePiece keeps all texts in memory;
  `sample_evenly` bounds them. With 600 or more pieces, rare characters are encoded as bytes and
  never as `<unk>`; smaller tokenizers cover every character of `texts` but U+2585. Text is not
  normalised. Words above 65,000 characters are cut.

  Args:
    model: 'bpe' or 'unigram'.
    field: Field of the corpus recipe that has the size, for errors.

  Raises:
    InputError: The texts are empty, or do not allow this number of pieces.
  """
  with_bytes, model_file = size >= _MIN_SIZE_WITH_BYTES, io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=map(_prepare_training_text, texts),
      model_writer=model_file,
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
    raise _explain_failure(error, model, size, field) from error
  return Tokenizer(model_file.getvalue())


def _prepare_training_text(text: str) -> str:
  """Returns a text without the characters and the words that SentencePiece cannot train on."""
  text = escape_space_mark(text.replace(_UNKNOWN_MARK, ' '))
  return _LONG_WORD.sub(r'\g<0> ', text) if len(text) > _MAX_WORD_CHARS else text


def _explain_failure(error: RuntimeError, model: str, size: int, field: str) -> Exception:
  """Returns the InputError for a message of SentencePiece, or the error if it is unknown."""
  subject, message = f'a tokenizer of {size} pieces ({model})', str(error)
  if match := re.search(r'too high .*<= (\d+)', message):
    max_size = int(match[1])
    # The limit includes byte pieces, which a tokenizer of this size omits.
    if size >= _MIN_SIZE_WITH_BYTES > max_size:
      max_size -= _NUM_BYTE_PIECES
    remedy = f'set {field} to {max_size} or less, or give more text'
    return InputError(subject, f'text for at most {max_size} pieces', remedy)
  if match := re.search(r'smaller than required_chars\. \d+ vs (\d+)', message):
    fault = f'{match[1]} characters and special pieces in the text'
    return InputError(subject, fault, f'set {field} to {match[1]} or more')
  if 'sentences_.empty()' in message:
    return InputError(subject, 'no training text', 'give more text, or filter less of it')
  return error


def load_tokenizer(path: epath.PathLike) -> Tokenizer:
  """Loads a SentencePiece model file or the tokenizer file of `minilm import`.

  Raises:
    InputError: The file is missing, too large, or not a tokenizer; the special pieces have other
      ids; or an imported tokenizer needs a library that is not installed.
  """
  subject = f'the tokenizer {path}'
  model = files.read_bytes(path, subject)
  try:
    tokenizer = Tokenizer(model)
    pieces = [tokenizer.piece(i) for i in range(tokenizer.size)]
  except (RuntimeError, ValueError) as error:  # ValueError: a piece is not UTF-8
    if wrapped_tokenizer.is_wrapped(model):
      fault, remedy = f'not a file of minilm import: {error}', 'import the model again'
    else:
      fault, remedy = 'not a SentencePiece model', 'give the .model file of SentencePiece'
    raise InputError(subject, fault, remedy) from None
  special = itertools.zip_longest(pieces[: len(SPECIAL_TOKENS)], SPECIAL_TOKENS)
  differences = [f'{i} is {piece!r}' for i, (piece, name) in enumerate(special) if piece != name]
  if differences:
    expected = ', '.join(f'{piece} {i}' for i, piece in enumerate(SPECIAL_TOKENS))
    raise InputError(
      f'{subject} with {expected}',
      f'other special pieces: {", ".join(differences)}',
      'train it by minilm corpus, or with these ids and <mask> as the first control symbol',
    )
  return tokenizer


def sample_evenly(texts: Iterable[str], share: float) -> Iterator[str]:
  """Yields an even sample with this share of the characters; all texts for a share of 1 or more.

  If each text is longer than the sample, the sample is the start of the first text.

  >>> list(sample_evenly(['a', 'b', 'c', 'd'], 0.5))
  ['b', 'd']
  >>> list(sample_evenly(['abcdefgh', 'ijklmnop'], 0.25))
  ['abcd']
  """
  chars_read = chars_sampled = 0
  first = ''
  for text in texts:
    first = first or text
    chars_read += len(text)
    if chars_sampled + len(text) <= chars_read * share:
      chars_sampled += len(text)
      yield text
  if first and not chars_sampled:
    yield first[: int(chars_read * share)]


def measure_word_split_ratio(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
  """Returns the mean number of pieces a word over all texts (paper 1), or NaN without words.

  Words are separated by single spaces and encoded alone, with the marker of a word start. The
  byte-level tokenizers of the paper encode words without a marker.
  """
  counts = Counter(word for text in texts for word in text.split(' ') if word)
  encoded = tokenizer.encode(list(counts))
  pieces = sum(count * len(ids) for count, ids in zip(counts.values(), encoded, strict=True))
  return pieces / counts.total() if counts else float('nan')


def measure_esms(tokenizer: Tokenizer, reference: Mapping[str, Sequence[str]] = REFERENCE) -> float:
  """Returns the exact sub-token match score: the share of word parts that are pieces (paper 1).

  A word of one piece or of single characters scores 0. Otherwise each piece that equals a part of
  the word scores 1. The marker of a word start is removed, like '#' and '_'; the released code
  keeps the marker, so the first piece of a word never matches there.
  """
  score = 0
  for parts, ids in zip(reference.values(), tokenizer.encode(list(reference)), strict=True):
    pieces = (tokenizer.piece(i).strip(SPACE_MARK).replace('#', '').replace('_', '') for i in ids)
    pieces = [piece for piece in pieces if piece]
    if len(pieces) > 1 and any(len(piece) > 1 for piece in pieces):
      score += sum(piece in parts for piece in pieces)
  return score / sum(len(parts) for parts in reference.values())


def measure_sizes(texts: Sequence[str], model: str, sizes: Iterable[int]) -> list[dict[str, float]]:
  """Trains a tokenizer of each size; returns rows of `size`, `word_split_ratio`, `esms`."""
  rows = []
  for size in sizes:
    tokenizer = train_tokenizer(texts, model, size, 'tokenizer.extra_sizes')
    ratio, score = measure_word_split_ratio(tokenizer, texts), measure_esms(tokenizer)
    rows.append({'size': size, 'word_split_ratio': ratio, 'esms': score})
  return rows
