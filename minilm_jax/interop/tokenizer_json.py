"""Writes a SentencePiece tokenizer as a tokenizer.json of Hugging Face's `tokenizers`.

SentencePiece's model file holds pieces with scores; its normalization is code. That code becomes
steps of `tokenizers`: lower case, no spaces before the text, runs of them as one, a space before
everything, `U+2581` for a space, none at the end. The merges of BPE follow from the pieces: two that
together are a piece merge, those of the highest score first.

The two would differ in these cases:

- Special pieces in a text are plain letters here, and ids in Hugging Face. `<mask>` must be an id to
  be filled; for classifiers `split_special_tokens` makes them letters.
- A piece whose letters are no pieces, or letters that unigram might read as a special or byte piece:
  refused.
- Python and `tokenizers` may have different versions of Unicode; capitals newer than either differ.
- Two paths through a text of equal score, such as a long run of one letter: sums are rounded
  differently.

Tokenizers that normalize text, or that are neither BPE nor unigram of SentencePiece, are refused by
name.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import runtime_version

from minilm_jax.core.corpus_config import BEGIN_ID, END_ID, SPECIAL_TOKENS, UNKNOWN_ID
from minilm_jax.core.errors import InputError
from minilm_jax.data.tokenizer import Tokenizer

_ASKED = "the tokenizer in Hugging Face's form"
TOKENIZER_FILE, TOKENIZER_CONFIG = 'tokenizer.json', 'tokenizer_config.json'
_SPACE = '\u2581'
_NORMAL, _BYTE = 1, 6  # of ModelProto.SentencePiece.Type in sentencepiece_model.proto
_BPE, _UNIGRAM = 2, 1  # of TrainerSpec.ModelType
# A capital sigma that ends a word: a letter before it and none after, case-ignorable signs skipped.
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
)


@dataclasses.dataclass(frozen=True)
class _Model:
  """Contents of a SentencePiece model file.

  Attributes:
    rows: piece, score and type by id.
    kind: BPE or unigram.
    has_bytes: it has byte pieces.
  """

  rows: tuple[tuple[str, float, int], ...]
  kind: int
  has_bytes: bool

  def ordinary(self) -> dict[str, int]:
    """Returns the ids of the ordinary pieces."""
    return {piece: i for i, (piece, _, kind) in enumerate(self.rows) if kind == _NORMAL}


def build_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
  """Returns the contents of `tokenizer.json`, with rows `<s> A </s>` and `<s> A </s></s> B </s>`.

  Raises:
    InputError: the format cannot express the tokenizer.
  """
  model = _read_model(tokenizer.model)
  special = [
    {
      'id': number,
      'content': piece,
      'single_word': False,
      'lstrip': False,
      'rstrip': False,
      'normalized': False,
      'special': True,
    }
    for number, piece in enumerate(SPECIAL_TOKENS)
  ]
  decoders = [
    _replace({'String': _SPACE}, ' '),
    {'type': 'ByteFallback'},
    {'type': 'Fuse'},
    {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0},
  ]
  return {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': special,
    'normalizer': _normalizer(),
    'pre_tokenizer': None if model.kind == _BPE else _split_special(model),
    'post_processor': _post_processor(),
    'decoder': {'type': 'Sequence', 'decoders': decoders},
    'model': _bpe(model) if model.kind == _BPE else _unigram(model),
  }


def _normalizer() -> dict[str, Any]:
  """Returns the steps from text to lower case with U+2581 for spaces."""
  return {
    'type': 'Sequence',
    'normalizers': [
      _replace({'Regex': _FINAL_SIGMA}, 'ς'),
      {'type': 'Lowercase'},
      _replace({'Regex': r'\A +'}, ''),
      _replace({'Regex': ' {2,}'}, ' '),
      {'type': 'Prepend', 'prepend': _SPACE},
      _replace({'String': ' '}, _SPACE),
      _replace({'Regex': rf'{_SPACE}+\z'}, ''),
    ],
  }


def _post_processor() -> dict[str, Any]:
  """Returns the template of special pieces around one text and between two."""
  names = [SPECIAL_TOKENS[number] for number in (BEGIN_ID, END_ID)]
  begin, end = ({'SpecialToken': {'id': name, 'type_id': 0}} for name in names)
  first, second = ({'Sequence': {'id': name, 'type_id': 0}} for name in 'AB')
  return {
    'type': 'TemplateProcessing',
    'single': [begin, first, end],
    'pair': [begin, first, end, end, second, end],
    'special_tokens': {
      name: {'id': name, 'ids': [SPECIAL_TOKENS.index(name)], 'tokens': [name]} for name in names
    },
  }


def build_tokenizer_config(length: int, letters: bool) -> dict[str, Any]:
  """Returns the contents of `tokenizer_config.json`.

  Args:
    length: maximum tokens of a row, with special ones.
    letters: special pieces in a text are plain letters (`split_special_tokens`).
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
    'split_special_tokens': letters,
    'model_input_names': ['input_ids', 'attention_mask'],
  }


def check_pairs(length: int) -> None:
  """Raises InputError for pairs of texts that are cut to an odd number of tokens.

  A cut pair loses tokens from its longer text. If both become equally long, one token is left over:
  it goes to the second text here, and to the one that was longer there.
  """
  if length % 2:
    raise InputError(
      'a classifier of pairs for Hugging Face',
      f'rows of {length} tokens: the odd one goes to another text there than here',
      'fine-tune with an even --config.length',
    )


def find_differences(
  tokenizer: Tokenizer, fast: Any, texts: Sequence[str] = PROBE_TEXTS
) -> list[str]:
  """Returns the texts that a `tokenizers.Tokenizer` encodes otherwise than we do.

  Args:
    tokenizer: ours.
    fast: theirs; its truncation and padding are switched off.
    texts: any; `<mask>` in one is a mask.
  """
  fast.no_truncation()
  fast.no_padding()
  encodings = fast.encode_batch(list(texts), add_special_tokens=False)
  return [
    text
    for text, encoding in zip(texts, encodings, strict=True)
    if encoding.ids != _encode_here(tokenizer, text, fast.encode_special_tokens)
  ]


def _encode_here(tokenizer: Tokenizer, text: str, letters: bool) -> list[int]:
  """Returns ids as `tasks/task_data.py` and, unless `letters`, as `evaluation/inference.py`."""
  if letters:
    return tokenizer.encode([text.lower()])[0]
  ids = []
  for part in re.split(f'({"|".join(map(re.escape, SPECIAL_TOKENS))})', text):
    if part in SPECIAL_TOKENS:
      ids.append(SPECIAL_TOKENS.index(part))
    else:
      ids += tokenizer.encode([part.lower()])[0]
  return ids


def _replace(pattern: Mapping[str, str], content: str) -> dict[str, Any]:
  return {'type': 'Replace', 'pattern': dict(pattern), 'content': content}


def _bpe(model: _Model) -> dict[str, Any]:
  ordinary = model.ordinary()
  for piece in ordinary:
    if not ordinary.keys() >= set(piece):
      raise _refusal(f'the piece {piece!r}, whose letters are not all pieces')
  merges = []
  for piece, number in ordinary.items():
    splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
    merges += [
      (-model.rows[number][1], number, pair) for pair in splits if ordinary.keys() >= set(pair)
    ]
  return {
    'type': 'BPE',
    'dropout': None,
    'unk_token': SPECIAL_TOKENS[UNKNOWN_ID],
    'continuing_subword_prefix': None,
    'end_of_word_suffix': None,
    'fuse_unk': True,
    'byte_fallback': model.has_bytes,
    'ignore_merges': False,
    'vocab': {piece: number for number, (piece, _, _) in enumerate(model.rows)},
    'merges': [list(pair) for *_, pair in sorted(merges, key=lambda merge: merge[:2])],
  }


def _unigram(model: _Model) -> dict[str, Any]:
  # `tokenizers` takes the minimum over all pieces, which must be that of the ordinary ones.
  min_score = min(score for _, score, kind in model.rows if kind == _NORMAL)
  return {
    'type': 'Unigram',
    'unk_id': UNKNOWN_ID,
    'byte_fallback': model.has_bytes,
    'vocab': [
      [piece, score if kind == _NORMAL else min_score] for piece, score, kind in model.rows
    ],
  }


def _split_special(model: _Model) -> dict[str, Any]:
  """Returns a step that splits letters that unigram would read as a special or byte piece.

  The cut is where no piece lies across it, so that it changes nothing else.
  """
  ordinary, cuts = model.ordinary(), []
  patterns = {piece: re.escape(piece) for piece in SPECIAL_TOKENS}
  if model.has_bytes:
    patterns['<0x'] = _WRITTEN_BYTE
  for piece, pattern in patterns.items():
    places = [
      place
      for place in range(1, len(piece))
      if (model.has_bytes or {piece[place - 1], piece[place]} & ordinary.keys())
      and not any(piece[place - 1 : place + 1] in other for other in ordinary)
    ]
    if not places:
      raise _refusal(f'pieces that hold parts of {piece}, so that unigram would read that as one')
    before = re.escape(piece[: places[0]])
    cuts.append(f'(?<={before})(?={pattern[len(before) :]})')
  return {
    'type': 'Split',
    'pattern': {'Regex': '|'.join(cuts)},
    'behavior': 'Isolated',
    'invert': False,
  }


def _refusal(found: str) -> InputError:
  return InputError(_ASKED, found, 'train one here, with tokenizer.model=bpe')


def _read_model(data: bytes) -> _Model:
  """Returns a SentencePiece model file, or raises InputError for a setting that a tokenizer.json
  cannot express.
  """
  try:
    from sentencepiece import sentencepiece_model_pb2
  except (ImportError, runtime_version.VersionError) as error:
    raise InputError(_ASKED, str(error), 'pip install --upgrade protobuf sentencepiece') from None
  # The message classes are made at run time.
  proto = sentencepiece_model_pb2.ModelProto.FromString(data)  # pyright: ignore[reportAttributeAccessIssue]
  trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
  rows = tuple((piece.piece, piece.score, piece.type) for piece in proto.pieces)
  unknown_kinds = [
    piece for piece, _, kind in rows[len(SPECIAL_TOKENS) :] if kind not in (_NORMAL, _BYTE)
  ]
  for is_refused, found in (
    (trainer.model_type not in (_BPE, _UNIGRAM), 'neither BPE nor unigram'),
    (normalizer.precompiled_charsmap, 'a normalisation of text'),
    (trainer.treat_whitespace_as_suffix, 'spaces after words'),
    (not normalizer.add_dummy_prefix, 'no space before a text'),
    (not normalizer.remove_extra_whitespaces, 'spaces left as they are'),
    (not normalizer.escape_whitespaces, 'spaces that are no U+2581'),
    (unknown_kinds, f'pieces of a kind of their own: {", ".join(unknown_kinds[:4])}'),
  ):
    if is_refused:
      raise _refusal(found)
  return _Model(rows, trainer.model_type, trainer.byte_fallback)
