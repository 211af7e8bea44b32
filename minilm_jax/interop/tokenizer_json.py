"""Converts a SentencePiece tokenizer to a tokenizer.json of Hugging Face's `tokenizers`.

The model file of SentencePiece has pieces with scores. Normalization is code, which becomes steps
of `tokenizers`: NFC, lower case, U+FDD0 for the letter U+2581, single spaces for white space, no
trailing spaces, a space before the text, U+2581 for a space. The merges of BPE follow from the
pieces: two pieces merge if their concatenation is a piece, in the order of its score.

Both tokenizers differ in these cases:

- SentencePiece encodes special tokens in a text as plain letters, `tokenizers` as ids. A masked LM
  needs the id of `<mask>`; for classifiers, `split_special_tokens` gives plain letters.
- BPE: a piece has letters that are not pieces. Unigram: letters in a text could be encoded as a
  special or byte piece. The conversion refuses both.
- Python and `tokenizers` may have different versions of Unicode, and differ for new capital
  letters.
- Two segmentations of a text have equal scores, such as a long run of a letter. Rounding of sums
  then selects one of them.

Tokenizers that normalize text, and tokenizers other than BPE and unigram, are refused.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

from google.protobuf import runtime_version

from minilm_jax.core.corpus_config import BEGIN_ID, END_ID, SPECIAL_TOKENS, UNKNOWN_ID
from minilm_jax.core.errors import InputError
from minilm_jax.data.normalization import NORMALIZATION, SPACE_MARK, WHITE_SPACE, escape_space_mark
from minilm_jax.data.tokenizer import Tokenizer

_SUBJECT = 'the tokenizer as a tokenizer.json'
TOKENIZER_FILE, TOKENIZER_CONFIG = 'tokenizer.json', 'tokenizer_config.json'
_NORMAL, _BYTE = 1, 6  # ModelProto.SentencePiece.Type in sentencepiece_model.proto
_BPE, _UNIGRAM = 2, 1  # TrainerSpec.ModelType
# A capital sigma at the end of a word: after a cased letter, and not before a cased letter.
_FINAL_SIGMA = r'\p{Cased}\p{Case_Ignorable}*\KΣ(?!\p{Case_Ignorable}*\p{Cased})'
_WRITTEN_BYTE = r'<0x[0-9A-F]{2}>'
PROBE_TEXTS = (
  '',
  ' ',
  '   ',
  'the dog sleeps .',
  ' The  DOG   sleeps. ',
  'a\tb',
  'tab\t',
  '\n',
  'two\nlines\r\nthree',
  '\tthe\u2003dog\x1f<mask>\u2028 sleeps\u3000.\x85',
  '\u2581',
  'a \u2581',
  '\u2581\u2581a b\u2581 ',
  'cafe\u0301 naïve',
  'e\u0301\u0323\u0301',
  'ﬁne ﬂoor',
  'ＦＵＬＬ\u3000ｗｉｄｔｈ１２３',
  '😀 a👩\u200d👩\u200d👧b 🏳\ufe0f',
  'zero\u200bwidth\u200djoin\ufeff',
  '\u00a0no\u00a0break\u2003em',
  '東京は日本の首都',
  'ΟΔΥΣΣΕΥΣ, Σ ΣΑΣ. Α\u0301Σ\u0301 ΑΣ:Β',
  'İSTANBUL Straße',
  'ǅ Ω K Å',
  '<0x41> <s> </s> <unk>',
  '<<0x0A>>',
  'aaaa aaa aa',
  '...... --- !!!!',
  '\x00\x01\x7f',
  '\ufffd \U0010ffff \ue000',
  'שלום مرحبا हिन्दी',
  "don't stop — “quotes” … 3,000.50 €",
  'a' * 70,
  'x-y_z/@#$%^&*()[]{}|~`',
  '\u0301',
  'ᾼ ΐ ﬀ ŉ',
  'the dog <mask>.',
  'the dog <mask> .',
  '(<mask>) "<mask>", <mask>-sized objects',
  '<mask><mask>s  <mask>  ',
  '  <mask>',
)


@dataclasses.dataclass(frozen=True)
class _Model:
  """The content of a SentencePiece model file.

  Attributes:
    rows: Piece, score and type by id.
    kind: BPE or unigram.
  """

  rows: tuple[tuple[str, float, int], ...]
  kind: int
  has_bytes: bool

  def ordinary_ids(self) -> dict[str, int]:
    """Returns the ids of the ordinary pieces."""
    return {piece: i for i, (piece, _, kind) in enumerate(self.rows) if kind == _NORMAL}


def build_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
  """Returns the content of tokenizer.json, with rows `<s> A </s>` and `<s> A </s></s> B </s>`.

  Raises:
    InputError: `tokenizers` has no equal tokenizer.
  """
  model = _read_model(tokenizer.model)
  import tokenizers
  from tokenizers import decoders, normalizers, pre_tokenizers, processors

  escaped_mark = escape_space_mark(SPACE_MARK)
  fast = tokenizers.Tokenizer(_build_bpe(model) if model.kind == _BPE else _build_unigram(model))
  fast.add_special_tokens(
    [tokenizers.AddedToken(piece, normalized=False, special=True) for piece in SPECIAL_TOKENS]
  )
  fast.normalizer = normalizers.Sequence(
    [
      getattr(normalizers, NORMALIZATION)(),
      normalizers.Replace(tokenizers.Regex(_FINAL_SIGMA), 'ς'),
      normalizers.Lowercase(),
      normalizers.Replace(SPACE_MARK, escaped_mark),
      normalizers.Replace(tokenizers.Regex(WHITE_SPACE), ' '),
      normalizers.Replace(tokenizers.Regex(' {2,}'), ' '),
      normalizers.Replace(tokenizers.Regex(r' +\z'), ''),
    ]
  )
  steps: list[Any] = [
    # A space before the text, but not after a special token.
    pre_tokenizers.Metaspace(' ', prepend_scheme='first', split=False),
    pre_tokenizers.Metaspace(SPACE_MARK, prepend_scheme='never', split=False),
  ]
  if model.kind == _UNIGRAM:
    steps.append(pre_tokenizers.Split(tokenizers.Regex(_find_cuts(model)), 'isolated'))
  fast.pre_tokenizer = pre_tokenizers.Sequence(steps)
  begin, end = SPECIAL_TOKENS[BEGIN_ID], SPECIAL_TOKENS[END_ID]
  fast.post_processor = processors.TemplateProcessing(
    f'{begin} $A {end}',
    f'{begin} $A {end} {end} $B:0 {end}',
    [(begin, BEGIN_ID), (end, END_ID)],
  )
  fast.decoder = decoders.Sequence(
    [
      decoders.Replace(SPACE_MARK, ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', left=1),
      decoders.Replace(escaped_mark, SPACE_MARK),
    ]
  )
  return json.loads(fast.to_str())


def build_tokenizer_config(length: int, split_special_tokens: bool) -> dict[str, Any]:
  """Returns the content of tokenizer_config.json.

  With `split_special_tokens`, special tokens in a text are plain letters.
  """
  begin, pad, end, unknown, mask = SPECIAL_TOKENS
  return {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': begin,
    'cls_token': begin,
    'eos_token': end,
    'sep_token': end,
    'pad_token': pad,
    'unk_token': unknown,
    'mask_token': mask,
    'model_max_length': length,
    'padding_side': 'right',
    'truncation_side': 'right',
    'clean_up_tokenization_spaces': False,
    'split_special_tokens': split_special_tokens,
    'model_input_names': ['input_ids', 'attention_mask'],
  }


def check_pairs(length: int) -> None:
  """Raises InputError for a classifier of pairs with rows of an odd length.

  Truncation removes tokens from the longer text of a pair. Two long texts cannot share an odd
  number of tokens equally. minilm_jax then gives the last token to the second text, transformers to
  the longer text.
  """
  if length % 2:
    raise InputError(
      'a classifier of pairs for Hugging Face',
      f'length={length}: transformers truncates pairs to an odd length in another way',
      'fine-tune with an even --config.length',
    )


def find_differences(
  tokenizer: Tokenizer, fast: Any, texts: Sequence[str] = PROBE_TEXTS
) -> list[str]:
  """Returns the texts with different token ids in both tokenizers.

  The function turns off truncation and padding of the `tokenizers.Tokenizer` in `fast`. `<mask>` in
  a text is a mask.
  """
  fast.no_truncation()
  fast.no_padding()
  encodings = fast.encode_batch(list(texts), add_special_tokens=False)
  return [
    text
    for text, encoding in zip(texts, encodings, strict=True)
    if encoding.ids != _encode(tokenizer, text, fast.encode_special_tokens)
  ]


def _encode(tokenizer: Tokenizer, text: str, split_special_tokens: bool) -> list[int]:
  """Returns ids as in `tasks/task_data.py`, or with special tokens, `evaluation/inference.py`."""
  if split_special_tokens:
    return tokenizer.encode([tokenizer.fold(text)])[0]
  parts = re.split(f'({"|".join(map(re.escape, SPECIAL_TOKENS))})', text)
  ids, *others = tokenizer.encode_parts([tokenizer.fold(part) for part in parts[::2]])
  for special, part_ids in zip(parts[1::2], others, strict=True):
    ids += [SPECIAL_TOKENS.index(special), *part_ids]
  return ids


def _build_bpe(model: _Model) -> Any:
  from tokenizers import models

  ordinary = model.ordinary_ids()
  for piece in ordinary:
    if not ordinary.keys() >= set(piece):
      raise _make_error(f'the piece {piece!r} with letters that are not pieces')
  merges = []
  for piece, number in ordinary.items():
    splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
    merges += [
      (-model.rows[number][1], number, pair) for pair in splits if ordinary.keys() >= set(pair)
    ]
  return models.BPE(
    {piece: number for number, (piece, _, _) in enumerate(model.rows)},
    [pair for *_, pair in sorted(merges, key=lambda merge: merge[:2])],
    unk_token=SPECIAL_TOKENS[UNKNOWN_ID],
    fuse_unk=True,
    byte_fallback=model.has_bytes,
  )


def _build_unigram(model: _Model) -> Any:
  from tokenizers import models

  # `tokenizers` uses the minimum over all pieces, SentencePiece that of ordinary pieces.
  min_score = min(score for _, score, kind in model.rows if kind == _NORMAL)
  vocabulary = [
    (piece, score if kind == _NORMAL else min_score) for piece, score, kind in model.rows
  ]
  return models.Unigram(vocabulary, UNKNOWN_ID, model.has_bytes)


def _find_cuts(model: _Model) -> str:
  """Returns a regular expression of the places to split special and byte pieces in a text.

  The expression matches between two letters that no ordinary piece contains in sequence, so a split
  changes no other segmentation.
  """
  ordinary, cuts = model.ordinary_ids(), []
  patterns = {piece: re.escape(piece) for piece in SPECIAL_TOKENS}
  if model.has_bytes:
    patterns['<0x'] = _WRITTEN_BYTE
  for piece, pattern in patterns.items():
    positions = [
      i
      for i in range(1, len(piece))
      if (model.has_bytes or {piece[i - 1], piece[i]} & ordinary.keys())
      and not any(piece[i - 1 : i + 1] in other for other in ordinary)
    ]
    if not positions:
      raise _make_error(f'pieces with parts of {piece}, which unigram could encode as {piece}')
    before = re.escape(piece[: positions[0]])
    cuts.append(f'(?<={before})(?={pattern[len(before) :]})')
  return '|'.join(cuts)


def _make_error(fault: str) -> InputError:
  return InputError(_SUBJECT, fault, 'train a tokenizer with tokenizer.model=bpe')


def _read_model(data: bytes) -> _Model:
  """Returns the content of a SentencePiece model file.

  Raises:
    InputError: `tokenizers` has no equal setting.
  """
  try:
    from sentencepiece import sentencepiece_model_pb2
  except (ImportError, runtime_version.VersionError) as error:
    raise InputError(_SUBJECT, str(error), 'pip install --upgrade protobuf sentencepiece') from None
  # protobuf creates the message classes at run time.
  proto = sentencepiece_model_pb2.ModelProto.FromString(data)  # pyright: ignore[reportAttributeAccessIssue]
  trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
  rows = tuple((piece.piece, piece.score, piece.type) for piece in proto.pieces)
  unknown_kinds = [
    piece for piece, _, kind in rows[len(SPECIAL_TOKENS) :] if kind not in (_NORMAL, _BYTE)
  ]
  for is_unsupported, fault in (
    (
      trainer.model_type not in (_BPE, _UNIGRAM),
      f'model_type={trainer.model_type}, neither BPE nor unigram',
    ),
    (normalizer.precompiled_charsmap, 'precompiled_charsmap, a normalization of text'),
    (trainer.treat_whitespace_as_suffix, 'treat_whitespace_as_suffix=True'),
    (not normalizer.add_dummy_prefix, 'add_dummy_prefix=False'),
    (not normalizer.remove_extra_whitespaces, 'remove_extra_whitespaces=False'),
    (not normalizer.escape_whitespaces, 'escape_whitespaces=False'),
    (unknown_kinds, f'pieces of an unsupported type: {", ".join(unknown_kinds[:4])}'),
  ):
    if is_unsupported:
      raise _make_error(fault)
  return _Model(rows, trainer.model_type, trainer.byte_fallback)
