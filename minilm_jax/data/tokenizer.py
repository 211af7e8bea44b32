"""SentencePiece: train a tokenizer, load one, encode and decode; how well it splits words.

The ids of the five special pieces are fixed, text is encoded as it stands (whoever makes the text
lower-cases it; only runs of spaces are squeezed), and nothing here adds `<s>` or `</s>`: that is
for who builds rows. Other families are not trained here, but what `minilm import` brought along is
loaded like our own (`imported.py`). Left out: sampling of segmentations.
"""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import sentencepiece
from etils import epath

from minilm_jax.core import files
from minilm_jax.core.errors import InputError
from minilm_jax.data import wrapped_tokenizer

SPECIAL_TOKENS = ('<s>', '<pad>', '</s>', '<unk>', '<mask>')
BEGIN_ID, PAD_ID, END_ID, UNKNOWN_ID, MASK_ID = range(5)

_MARKER = '\u2581'  # what SentencePiece writes for the space before a word
# of training; a constant: unigram sums floats per thread, and the same text must give the same
# bytes
_THREADS = 4
# byte pieces, and the size from which they are spent; below, they crowd out the words
_BYTES, _BYTES_FROM = 256, 600
# bytes of one text; SentencePiece's own limit of 4,192 silently skips longer ones
_MAX_SENTENCE_BYTES = 1 << 30

# Words and their parts for `esms`: the words of an early version of the paper's reference (paper 1,
# selection of the tokenizer), divided by us. The final reference, of 265 parts, was not released:
# scores compare only with each other.
REFERENCE: Mapping[str, tuple[str, ...]] = {
  'cooking': ('cook', 'ing'),
  'dangerous': ('danger', 'ous'),
  'pretext': ('pre', 'text'),
  'fitness': ('fit', 'ness'),
  'antisocial': ('anti', 'social'),
  'podium': ('pod', 'ium'),
  'universe': ('uni', 'verse'),
  'european': ('europe', 'an'),
  'decode': ('de', 'code'),
  'subvert': ('sub', 'vert'),
  'proactive': ('pro', 'active'),
  'concentric': ('con', 'centric'),
  'octopus': ('octo', 'pus'),
}


class Tokenizer:
  """A SentencePiece model with our special ids, or an imported one; made by `train` or `load`,
  never changed.

  Attributes:
    model: the bytes of the model file.
    sha256: their hex digest, the identity of the tokenizer.
    size: how many pieces, the special ones included.
    between: how many `</s>` stand between two texts of one row: 2 as in RoBERTa, or 1 as in BERT.
  """

  def __init__(self, model: bytes):
    self._imported = wrapped_tokenizer.is_wrapped(model)
    if self._imported:
      self._processor = wrapped_tokenizer.WrappedTokenizer(model)
    else:
      self._processor = sentencepiece.SentencePieceProcessor()
      self._processor.LoadFromSerializedProto(model)
    self.between = self._processor.between if self._imported else 2
    self.model = model
    self.sha256 = hashlib.sha256(model).hexdigest()
    self.size = self._processor.get_piece_size()

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, without special ones, whatever the text holds (`<mask>` in a text is five
    plain characters).
    """
    return self._processor.encode(list(texts))

  def fold(self, text: str) -> str:
    """A text of a task or a user in the case of the pieces: lower, as every corpus is; an imported
    one sees to it.
    """
    return text if self._imported else text.lower()

  def decode(self, ids: Sequence[int]) -> str:
    """The text of one sequence of ids; special pieces leave nothing behind."""
    return self._processor.decode([int(i) for i in ids])

  def piece(self, id: int) -> str:
    """The piece with this id, with U+2581 for the space before a word."""
    return self._processor.id_to_piece(int(id))

  def id(self, piece: str) -> int:
    """The id of a piece, `UNKNOWN` where there is none such."""
    return self._processor.piece_to_id(piece)

  def starts_word(self) -> tuple[bool, ...]:
    """For each id, does its piece begin a word?"""
    return tuple(self.piece(i).startswith(_MARKER) for i in range(self.size))


def train_tokenizer(texts: Iterable[str], model: str, size: int, path: epath.PathLike) -> Tokenizer:
  """Trains a tokenizer and writes its model file, whole or not at all.

  The same texts give the same bytes on any machine. SentencePiece holds all texts in memory: bound
  them with `thin`. From 600 pieces on, characters too rare for a piece of their own are spelled in
  bytes, so nothing is ever `<unk>`; a smaller tokenizer has no room for the 256 byte pieces and
  covers every character of `texts` instead. Text is not
  normalised: whoever encodes with another implementation gets the same ids without our Unicode
  tables.

  Args:
    texts: training text, each item of one line.
    model: bpe or unigram.
    size: pieces, the five special ones included.
    path: of the model file.

  Raises:
    InputError: the texts cannot support so many, or so few, pieces; or there is no text.
  """
  made = _train_sentencepiece(texts, model, size)
  files.write_bytes(path, made.model)
  return made


def _train_sentencepiece(texts: Iterable[str], model: str, size: int) -> Tokenizer:
  in_bytes = size >= _BYTES_FROM
  written = io.BytesIO()
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
      byte_fallback=in_bytes,
      character_coverage=0.9995 if in_bytes else 1.0,
      normalization_rule_name='identity',
      max_sentence_length=_MAX_SENTENCE_BYTES,
      shuffle_input_sentence=False,
      num_threads=_THREADS,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise _explain_failure(error, model, size) from error
  return Tokenizer(written.getvalue())


def _explain_failure(error: RuntimeError, model: str, size: int) -> Exception:
  asked, said = f'a tokenizer of {size} pieces ({model})', str(error)
  if found := re.search(r'too high .*<= (\d+)', said):
    most = int(found[1])
    # that counts byte pieces, which a tokenizer of this size does not get
    if size >= _BYTES_FROM > most:
      most -= _BYTES
    return InputError(
      asked,
      f'the text supports no more than {most}',
      f'set tokenizer.size to {most} or less, or give more text',
    )
  if found := re.search(r'smaller than required_chars\. \d+ vs (\d+)', said):
    return InputError(
      asked,
      f'its characters and special pieces alone are {found[1]}',
      f'set tokenizer.size to {found[1]} or more',
    )
  if 'sentences_.empty()' in said:
    return InputError(asked, 'no text to train it on', 'give more text, or keep more of it')
  return error


def load_tokenizer(path: epath.PathLike) -> Tokenizer:
  """Loads a SentencePiece model file, or what `minilm import` wrote in its place.

  Raises:
    InputError: no such file or one that is too large, neither of the two, or one whose special
      pieces have other ids than ours; or an imported one, and the library that reads it is not
      installed.
  """
  asked = f'the tokenizer {path}'
  try:
    model = files.read_bytes(path, asked)
  except OSError as error:
    raise InputError(asked, f'it cannot be read: {error}', 'check the path') from None
  try:
    made = Tokenizer(model)
    found = [made.piece(i) for i in range(made.size)]
  except (RuntimeError, ValueError) as error:  # ValueError: a piece that is no UTF-8
    if wrapped_tokenizer.is_wrapped(model):
      raise InputError(
        asked, f'not what minilm import writes: {error}', 'import the model again'
      ) from None
    raise InputError(
      asked, 'not a SentencePiece model', 'give the .model file of a SentencePiece tokenizer'
    ) from None
  other = [
    f'{i} is {there[0] if (there := found[i : i + 1]) else "nothing"!r}'
    for i, piece in enumerate(SPECIAL_TOKENS)
    if found[i : i + 1] != [piece]
  ]
  if other:
    ours = ', '.join(f'{piece} {i}' for i, piece in enumerate(SPECIAL_TOKENS))
    raise InputError(
      f'{asked} with {ours}',
      f'other special pieces: {", ".join(other)}',
      'train it here, or with SentencePiece and these ids (<mask> as the first control symbol)',
    )
  return made


def sample_evenly(texts: Iterable[str], share: float) -> Iterator[str]:
  """An even sample of texts that makes up this share of their characters; all of them from 1 on.

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
  """Mean number of pieces a word, over all words of all texts (paper 1, selection of the
  tokenizer).

  A word is what stands between single spaces; each is encoded alone, in the form that SentencePiece
  gives to the beginning of a word (the paper's byte-level tokenizers see the form inside a word).
  NaN without words.
  """
  counts = Counter(word for text in texts for word in text.split(' ') if word)
  words = list(counts)
  pieces = sum(
    counts[word] * len(ids) for word, ids in zip(words, tokenizer.encode(words), strict=True)
  )
  return pieces / counts.total() if words else float('nan')


def esms(tokenizer: Tokenizer, reference: Mapping[str, Sequence[str]] = REFERENCE) -> float:
  """Exact sub-token match score: the share of a reference's word parts that come out as pieces
  (paper 1).

  A word that stays whole or falls into single characters scores 0; otherwise every piece that is
  exactly one of the word's parts scores 1. Like '#' and '_', the space marker of SentencePiece is
  no part of a piece here; the released code leaves it on, so that there the first piece of a word
  could never match.
  """
  score = 0
  words = list(reference)
  for word, ids in zip(words, tokenizer.encode(words), strict=True):
    pieces = [
      piece
      for i in ids
      if (piece := tokenizer.piece(i).strip(_MARKER).replace('#', '').replace('_', ''))
    ]
    if len(pieces) > 1 and any(len(piece) > 1 for piece in pieces):
      score += sum(piece in reference[word] for piece in pieces)
  return score / sum(len(parts) for parts in reference.values())


def measure_sizes(
  texts: Sequence[str],
  model: str,
  sizes: Iterable[int],
  reference: Mapping[str, Sequence[str]] = REFERENCE,
) -> list[dict[str, float]]:
  """One tokenizer of each size, none of them kept: rows of `size`, `word_split_ratio`, `esms`."""
  rows = []
  for size in sizes:
    made = _train_sentencepiece(texts, model, size)
    rows.append(
      {
        'size': size,
        'word_split_ratio': word_split_ratio(made, texts),
        'esms': esms(made, reference),
      }
    )
  return rows
