"""What an imported model reads by: a tokenizer of the `tokenizers` library under our ids.

    {'tokenizer': their tokenizer.json, 'special': {'<s>': 101, '<pad>': 0, ...}, 'between': 1}

stands where a run of ours has its SentencePiece model, and `special` says which of their pieces are
our five. Their ids are numbered anew: the five come first, all others keep their order. Masks,
pads, holes and the narrow tables of fine-tuning count on ids 0 to 4, so this costs one permutation
of a table when a model is imported, and nothing behind the tokenizer knows of it.

Pieces are shown as ours are, with U+2581 for the space before a word: `##ing` of a WordPiece is
`ing` and its `the` is `▁the`; bytes that are no text alone are `<0xE2>`. `Tokenizer` holds a
`Processor` where it else holds one of SentencePiece, and calls the same functions. Left out:
training one, and what makes such a file (`hf_import.py`).
"""

import json
import types
from collections.abc import Mapping, Sequence
from typing import Any

from minilm_jax.core import files, schema
from minilm_jax.core.errors import InputError
from minilm_jax.core.schema import COUNT

_SPACE = '\u2581'
_UNKNOWN = 3  # its place among the special pieces of `tokenizer.py`, which leans on this room
# an id beyond it is no id of a piece, and lists as long as the largest id are made
_MAX_VOCAB_SIZE = 1 << 24
_PACK_SCHEMA = {'tokenizer': {'model': {'type': schema.TEXT}}, 'special': {}, 'between': COUNT}


def is_wrapped(model: bytes) -> bool:
  """Are these the bytes of an imported tokenizer? A SentencePiece model never begins with a brace.
  """
  return model[:1] == b'{'


def pack_tokenizer(tokenizer: Mapping[str, Any], special: Mapping[str, int], between: int) -> bytes:
  """The file of an imported tokenizer.

  Args:
    tokenizer: what their tokenizer.json holds.
    special: their ids of our special pieces, in our order.
    between: how many `</s>` stand between two texts.
  """
  return json.dumps(
    {'special': dict(special), 'between': between, 'tokenizer': tokenizer}, ensure_ascii=False
  ).encode()


def order_ids(special: Sequence[int], size: int) -> list[int]:
  """Their id for each of ours: the special ones, then all others as they are.

  >>> order_ids([2, 0, 3], 6)
  [2, 0, 3, 1, 4, 5]
  """
  return [*special, *sorted(set(range(size)) - set(special))]


class WrappedTokenizer:
  """An imported tokenizer with the functions that SentencePiece's processor has.

  Attributes:
    between: how many `</s>` stand between two texts.
    order: their id for each of ours.
  """

  def __init__(self, model: bytes):
    """Reads the file that `pack` makes.

    Raises:
      InputError: the library is not installed.
      ValueError: something else than such a file; says what.
    """
    found = files.parse_json(model)
    if fault := schema.find_schema_fault(found, _PACK_SCHEMA):
      raise ValueError(fault)
    special, self.between = found['special'], found['between']
    self._coder = build_wrapper(found['tokenizer'])
    known = {**self._coder.get_vocab(with_added_tokens=True)}
    size = max(known.values(), default=-1) + 1
    if size > _MAX_VOCAB_SIZE:
      raise ValueError(f'an id of {size - 1:,}')
    theirs = list(special.values())
    if fault := schema.find_schema_fault(theirs, [COUNT], 'special'):
      raise ValueError(fault)
    if not set(theirs) <= set(known.values()) or len(set(theirs)) < len(theirs):
      raise ValueError(f'special pieces that are not as many of its own: {special}')
    if self.between not in (1, 2):
      raise ValueError(f'{self.between} marks between two texts')
    self.order = order_ids(theirs, size)
    self._ours = {number: ours for ours, number in enumerate(self.order)}
    words, show = {number: piece for piece, number in known.items()}, _notation(found['tokenizer'])
    self._pieces = [
      *special,
      *(show(words[i]) if i in words else '' for i in self.order[len(special) :]),
    ]
    self._ids = {piece: i for i, piece in reversed(list(enumerate(self._pieces)))}
    self._special = len(special)

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, without special ones; a text that spells one is plain text."""
    found = self._coder.encode_batch(list(texts), add_special_tokens=False)
    return [[self._ours[i] for i in one.ids] for one in found]

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids; special ones leave nothing behind."""
    return self._coder.decode(
      [self.order[i] for i in ids if i >= self._special], skip_special_tokens=True
    )

  def get_piece_size(self) -> int:
    """How many ids there are."""
    return len(self.order)

  def id_to_piece(self, id: int) -> str:
    """The piece of an id in our notation; '' where their vocabulary has a hole."""
    return self._pieces[id]

  def piece_to_id(self, piece: str) -> int:
    """The id of a piece in our notation, that of `<unk>` where there is none such."""
    return self._ids.get(piece, _UNKNOWN)


def build_wrapper(tokenizer: Mapping[str, Any]) -> Any:
  """The `tokenizers.Tokenizer` of a tokenizer.json that cuts nothing off, adds nothing, and takes
  all text for text.

  Raises:
    InputError: the library is not installed.
    ValueError: it cannot be read; says what the library said.
  """
  try:
    import tokenizers
  except ImportError:
    raise InputError(
      'an imported tokenizer',
      'the library tokenizers is not installed',
      'pip install tokenizers, or all that Hugging Face wants: pip install "minilm_jax[hf]"',
    ) from None
  with _CapturedErrors():
    made = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
    made.no_truncation()
    made.no_padding()
    made.encode_special_tokens = True
  return made


class _CapturedErrors:
  """Makes a ValueError of what the library raises, which is `Exception` itself, or a panic of its
  Rust.
  """

  def __enter__(self) -> None:
    pass

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    if kind is Exception or kind is not None and kind.__name__ == 'PanicException':
      raise ValueError(f'the library tokenizers cannot read it: {error}') from None


def _notation(tokenizer: Mapping[str, Any]) -> Any:
  """From a piece as their vocabulary writes it to our notation."""
  model = tokenizer['model']
  if model['type'] == 'WordPiece':
    prefix = model.get('continuing_subword_prefix', '##')
    return lambda piece: piece[len(prefix) :] if piece.startswith(prefix) else _SPACE + piece
  parts = tokenizer.get('pre_tokenizer') or {}
  kinds = {part['type'] for part in (parts, *parts.get('pretokenizers', ())) if 'type' in part}
  if 'ByteLevel' in kinds:
    return _from_bytes
  return (lambda piece: piece) if 'Metaspace' in kinds else (lambda piece: _SPACE + piece)


def _byte_letters() -> dict[str, int]:
  """The byte of each letter with which a byte-level vocabulary writes it: itself, or the next from
  U+0100 on.
  """
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in plain]
  return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_letters()


def _from_bytes(piece: str) -> str:
  """A piece of a byte-level vocabulary as text, or as bytes where it is none.

  >>> _from_bytes('Ġthe'), _from_bytes('Ã©'), _from_bytes('Ã')
  ('▁the', 'é', '<0xC3>')
  """
  if not set(piece) <= _BYTES.keys():
    return piece  # an added token, which is written as it is
  data = bytes(_BYTES[letter] for letter in piece)
  try:
    return data.decode().replace(' ', _SPACE)
  except UnicodeDecodeError:
    return ''.join(f'<0x{byte:02X}>' for byte in data)
