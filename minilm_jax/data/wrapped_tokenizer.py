"""Wraps a tokenizer of the library `tokenizers`, from an imported model, under our ids.

The tokenizer file of an imported run is JSON in place of a SentencePiece model:

    {'tokenizer': tokenizer.json, 'special': {'<s>': 101, '<pad>': 0, ...}, 'between': 1}

The field `special` maps our five special pieces to library ids. Our ids start with the special
pieces, and the other library ids follow in order. Masks and pads can then rely on ids 0 to 4; the
import permutes the embedding table once.

Pieces have the notation of SentencePiece: WordPiece `##ing` becomes `ing` and `the` becomes `▁the`;
incomplete UTF-8 becomes `<0xE2>`; the letter `▁` becomes U+FDD0. A `WrappedTokenizer` has the
methods of `SentencePieceProcessor` that `Tokenizer` calls. `hf_import.py` writes the files.
"""

import functools
import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minilm_jax.core import files
from minilm_jax.core.corpus_config import UNKNOWN_ID
from minilm_jax.core.errors import COUNT, TEXT, find_schema_fault, require_library
from minilm_jax.data.normalization import SPACE_MARK, escape_space_mark

_MAX_VOCAB_SIZE = 1 << 24
_PREFIX_STEPS = ('normalizer', 'pre_tokenizer')  # may add a space before a text
_BYTE_PIECE = re.compile(f'{SPACE_MARK}?<0x[0-9A-F]{{2}}>')
_PACK_SCHEMA = {'tokenizer': {'model': {'type': TEXT}}, 'special': {}, 'between': COUNT}


def is_wrapped(model: bytes) -> bool:
  """Returns whether a tokenizer file is of an imported model: JSON begins with a brace."""
  return model[:1] == b'{'


def pack_tokenizer(tokenizer: Mapping[str, Any], special: Mapping[str, int], between: int) -> bytes:
  """Returns the tokenizer file of a tokenizer.json and the library ids of our special pieces."""
  pack = {'special': dict(special), 'between': between, 'tokenizer': tokenizer}
  return json.dumps(pack, ensure_ascii=False).encode()


def order_ids(special: Sequence[int], size: int) -> list[int]:
  """Returns the library id of each of our ids: special ids, then all other ids in order.

  >>> order_ids([2, 0, 3], 6)
  [2, 0, 3, 1, 4, 5]
  """
  return [*special, *sorted(set(range(size)) - set(special))]


class WrappedTokenizer:
  """An imported tokenizer with the methods of `SentencePieceProcessor`.

  Attributes:
    order: Library id of each of our ids.
    reads_mark_as_space: Whether the letter U+2581 in a text has the ids of a space.
  """

  def __init__(self, model: bytes):
    """Reads the result of `pack_tokenizer`.

    Raises:
      InputError: The library is not installed.
      ValueError: The bytes are invalid; the message names the fault.
    """
    pack = files.parse_json(model)
    if fault := find_schema_fault(pack, _PACK_SCHEMA):
      raise ValueError(fault)
    special, self.between = pack['special'], pack['between']
    self._content = pack['tokenizer']
    self._tokenizer = build_wrapper(self._content)
    vocabulary = {**self._tokenizer.get_vocab(with_added_tokens=True)}
    size = max(vocabulary.values(), default=-1) + 1
    if size > _MAX_VOCAB_SIZE:
      raise ValueError(f'an id of {size - 1:,}')
    special_ids = list(special.values())
    if fault := find_schema_fault(special_ids, [COUNT], 'special'):
      raise ValueError(fault)
    if not set(special_ids) <= set(vocabulary.values()) or len(set(special_ids)) < len(special_ids):
      raise ValueError(f'ids of special pieces are repeated or unknown: {special}')
    if self.between not in (1, 2):
      raise ValueError(f'between={self.between} is neither 1 nor 2')
    self.order = order_ids(special_ids, size)
    self._new_ids = {library_id: new_id for new_id, library_id in enumerate(self.order)}
    to_notation = _make_notation(pack['tokenizer'])
    self.reads_mark_as_space = to_notation is _keep_piece
    self._has_byte_letters = to_notation is _decode_byte_letters
    self._has_byte_pieces = bool(pack['tokenizer']['model'].get('byte_fallback'))
    self._library_pieces = {number: piece for piece, number in vocabulary.items()}
    pieces = {number: to_notation(piece) for piece, number in vocabulary.items()}
    self._pieces = [*special, *(pieces.get(i, '') for i in self.order[len(special) :])]
    self._ids = {piece: i for i, piece in reversed(list(enumerate(self._pieces)))}
    self._num_special = len(special)

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each text, without special ids: `<mask>` in a text is plain text."""
    encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [[self._new_ids[i] for i in encoding.ids] for encoding in encodings]

  def encode_continuation(self, text: str) -> list[int]:
    """Returns the ids of a text that begins no word before its first space."""
    head, space, tail = text.partition(' ')
    ids = self._continuation_tokenizer.encode(head, add_special_tokens=False).ids
    if space:
      ids += self._tokenizer.encode(space + tail, add_special_tokens=False).ids
    return [self._new_ids[i] for i in ids]

  @functools.cached_property
  def _continuation_tokenizer(self) -> Any:
    steps = {name: _remove_prefixes(self._content.get(name)) for name in _PREFIX_STEPS}
    return build_wrapper({**self._content, **steps})

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of a sequence of ids, without special pieces."""
    ordinary = [self.order[i] for i in ids if i >= self._num_special]
    return self._tokenizer.decode(ordinary, skip_special_tokens=True)

  def get_piece_size(self) -> int:
    """Returns the number of ids."""
    return len(self.order)

  def id_to_piece(self, id: int) -> str:
    """Returns the piece of an id, or '' for an unused id."""
    return self._pieces[id]

  def count_bytes(self, id: int) -> int:
    """Returns the bytes of text of an id; the space before a word counts."""
    if self._has_byte_letters:
      piece = self._library_pieces.get(self.order[id], '')
      return len(piece if set(piece) <= _BYTES.keys() else piece.encode())
    piece = self.id_to_piece(id)
    if self._has_byte_pieces and _BYTE_PIECE.fullmatch(piece):
      return 1
    return len(piece.replace(SPACE_MARK, ' ').encode())

  def piece_to_id(self, piece: str) -> int:
    """Returns the id of a piece, or `UNKNOWN_ID`."""
    return self._ids.get(piece, UNKNOWN_ID)


def build_wrapper(tokenizer: Mapping[str, Any]) -> Any:
  """Returns the `tokenizers.Tokenizer` of a tokenizer.json, without truncation or special pieces.

  Raises:
    InputError: The library is not installed.
    ValueError: The library cannot read the tokenizer; the message is of the library.
  """
  require_library('tokenizers', 'hf', 'an imported tokenizer')
  import tokenizers

  with _CapturedErrors():
    wrapper = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
    wrapper.no_truncation()
    wrapper.no_padding()
    wrapper.encode_special_tokens = True
  return wrapper


def _remove_prefixes(step: Any) -> Any:
  """Returns a normalizer or pre-tokenizer that adds no space before a text."""
  if isinstance(step, list):
    return [_remove_prefixes(part) for part in step]
  if not isinstance(step, dict):
    return step
  step = {name: _remove_prefixes(value) for name, value in step.items()}
  if step.get('type') == 'Prepend':
    return {'type': 'Sequence', 'normalizers': []}
  if step.get('type') == 'Metaspace':
    step.pop('add_prefix_space', None)
    return step | {'prepend_scheme': 'never'}
  return step | {'add_prefix_space': False} if 'add_prefix_space' in step else step


class _CapturedErrors:
  """Converts errors of the library, plain `Exception` or a Rust panic, into ValueError."""

  def __enter__(self) -> None:
    pass

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    if kind is Exception or kind is not None and kind.__name__ == 'PanicException':
      raise ValueError(f'the library tokenizers reports {error}') from None


def _make_notation(tokenizer: Mapping[str, Any]) -> Callable[[str], str]:
  """Returns the function that converts a piece of the library to the notation of SentencePiece."""
  model = tokenizer['model']
  if model['type'] == 'WordPiece':
    prefix = model.get('continuing_subword_prefix', '##')

    def mark_start(piece: str) -> str:
      is_part, piece = piece.startswith(prefix), escape_space_mark(piece)
      return piece[len(prefix) :] if is_part else SPACE_MARK + piece

    return mark_start
  parts = tokenizer.get('pre_tokenizer') or {}
  kinds = {part['type'] for part in (parts, *parts.get('pretokenizers', ())) if 'type' in part}
  if 'ByteLevel' in kinds:
    return _decode_byte_letters
  if 'Metaspace' in kinds:
    return _keep_piece
  return lambda piece: SPACE_MARK + escape_space_mark(piece)


def _keep_piece(piece: str) -> str:
  return piece


def _map_byte_letters() -> dict[str, int]:
  """Returns the byte of each letter of a byte-level vocabulary: the same code, or U+0100 and on."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in plain]
  return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _map_byte_letters()


def _decode_byte_letters(piece: str) -> str:
  """Returns a piece of a byte-level vocabulary as text, or as byte pieces if it is not UTF-8.

  >>> _decode_byte_letters('Ġthe'), _decode_byte_letters('Ã©'), _decode_byte_letters('Ã')
  ('▁the', 'é', '<0xC3>')
  """
  if not set(piece) <= _BYTES.keys():
    return piece  # an added token
  data = bytes(_BYTES[letter] for letter in piece)
  try:
    return escape_space_mark(data.decode()).replace(' ', SPACE_MARK)
  except UnicodeDecodeError:
    return ''.join(f'<0x{byte:02X}>' for byte in data)
