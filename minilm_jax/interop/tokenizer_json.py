"""Our tokenizer as Hugging Face's `tokenizers` reads it: a JSON that gives the same ids for the
same text.

SentencePiece's model file holds its pieces with a score each; how text becomes pieces is code. Here
that code is said in the words of `tokenizers`, one step for each of SentencePiece's: lower case as
our verbs make it, spaces before the text gone, runs of them one, a space before it all, `U+2581`
for a space, none at the end. Of BPE the merges are found from the pieces: two that together are a
piece merge, those of the highest score first.

Where the two would go different ways:

- Special pieces in a text are plain letters to us, and ids to Hugging Face. `<mask>` must be one
where masks are
  filled; where text is classified `split_special_tokens` says that they are letters.
- A piece whose letters are no pieces, or letters that unigram might take for a special or byte
piece: refused.
- Python and `tokenizers` may know different versions of Unicode, so capitals newer than either stay
as they are there.
- Two paths through a text of equal score, such as a long run of one letter: sums are rounded
otherwise.

Left out: tokenizers that normalise text, or that are no SentencePiece BPE or unigram model. Those
are refused by name.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import runtime_version

from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer
from minilm_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer

TOKENIZER_FILE, TOKENIZER_CONFIG = 'tokenizer.json', 'tokenizer_config.json'
_SPACE = '\u2581'
_NORMAL, _BYTE = 1, 6  # of ModelProto.SentencePiece.Type in sentencepiece_model.proto
_BPE, _UNIGRAM = 2, 1  # of TrainerSpec.ModelType
# A capital sigma that ends a word: a letter before it and none after, signs that no case depends on
# passed over.
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
  """What a SentencePiece model file holds: `rows` of piece, score and type by id; its type; has it
  byte pieces?
  """

  rows: tuple[tuple[str, float, int], ...]
  kind: int
  in_bytes: bool

  def normal(self) -> dict[str, int]:
    """The ordinary pieces by id."""
    return {piece: number for number, (piece, _, kind) in enumerate(self.rows) if kind == _NORMAL}


def build_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
  """What stands in `tokenizer.json`: `<s> A </s>`, or `<s> A </s></s> B </s>` of a pair, as our
  verbs build rows.

  Raises:
    InputError: the tokenizer does something that cannot be said there.
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
    _replaced({'String': _SPACE}, ' '),
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
    'pre_tokenizer': None if model.kind == _BPE else _apart(model),
    'post_processor': _post_processor(),
    'decoder': {'type': 'Sequence', 'decoders': decoders},
    'model': _bpe(model) if model.kind == _BPE else _unigram(model),
  }


def _normalizer() -> dict[str, Any]:
  """Returns the steps from text to lower case with U+2581 for spaces."""
  return {
    'type': 'Sequence',
    'normalizers': [
      _replaced({'Regex': _FINAL_SIGMA}, 'ς'),
      {'type': 'Lowercase'},
      _replaced({'Regex': r'\A +'}, ''),
      _replaced({'Regex': ' {2,}'}, ' '),
      {'type': 'Prepend', 'prepend': _SPACE},
      _replaced({'String': ' '}, _SPACE),
      _replaced({'Regex': rf'{_SPACE}+\z'}, ''),
    ],
  }


def _post_processor() -> dict[str, Any]:
  """Returns the template of special pieces around one text and between two."""
  names = [tokenizer.SPECIAL_TOKENS[number] for number in (tokenizer.BEGIN_ID, tokenizer.END_ID)]
  begin, end = ({'SpecialToken': {'id': name, 'type_id': 0}} for name in names)
  first, second = ({'Sequence': {'id': name, 'type_id': 0}} for name in 'AB')
  return {
    'type': 'TemplateProcessing',
    'single': [begin, first, end],
    'pair': [begin, first, end, end, second, end],
    'special_tokens': {
      name: {'id': name, 'ids': [tokenizer.SPECIAL_TOKENS.index(name)], 'tokens': [name]}
      for name in names
    },
  }


def build_tokenizer_config(length: int, letters: bool) -> dict[str, Any]:
  """What stands in `tokenizer_config.json`.

  Args:
    length: tokens of a row at most, the special ones included.
    letters: are special pieces in a text plain letters (`split_special_tokens`)?
  """
  begin, pad, end, unknown, mask = tokenizer.SPECIAL_TOKENS
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
  """Refuses pairs of texts that are cut to an odd number of tokens.

  What is cut loses tokens from its longer text. Where both end up equally long, one token is left
  over: ours gives it to the second text, theirs to the one that was longer.

  Raises:
    InputError: the number is odd.
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
  """The texts that a `tokenizers.Tokenizer` of `tokenizer_json` gives other ids than ours; `<mask>`
  in one is a mask.

  Args:
    tokenizer: ours.
    fast: theirs; its truncation and padding are switched off.
    texts: any.
  """
  fast.no_truncation()
  fast.no_padding()
  found = [one.ids for one in fast.encode_batch(list(texts), add_special_tokens=False)]
  return [
    text for text, ids in zip(texts, found, strict=True) if ids != _our_ids(tokenizer, text, fast)
  ]


def _our_ids(tokenizer: Tokenizer, text: str, fast: Any) -> list[int]:
  """Ids as `tasks/task_data.py` and, where special pieces are ids, as `evaluation/inference.py` make
  them.
  """
  if fast.encode_special_tokens:
    return tokenizer.encode([text.lower()])[0]
  ids = []
  for part in re.split(f'({"|".join(map(re.escape, SPECIAL_TOKENS))})', text):
    ids += (
      [SPECIAL_TOKENS.index(part)]
      if part in SPECIAL_TOKENS
      else tokenizer.encode([part.lower()])[0]
    )
  return ids


def _replaced(pattern: Mapping[str, str], content: str) -> dict[str, Any]:
  return {'type': 'Replace', 'pattern': dict(pattern), 'content': content}


def _bpe(model: _Model) -> dict[str, Any]:
  ordinary = model.normal()
  lost = next((piece for piece in ordinary if not ordinary.keys() >= set(piece)), None)
  if lost is not None:
    raise _refused(f'the piece {lost!r}, whose letters are not all pieces')
  merges = []
  for piece, number in ordinary.items():
    splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
    merges += [
      (-model.rows[number][1], number, pair) for pair in splits if ordinary.keys() >= set(pair)
    ]
  return {
    'type': 'BPE',
    'dropout': None,
    'unk_token': tokenizer.SPECIAL_TOKENS[tokenizer.UNKNOWN_ID],
    'continuing_subword_prefix': None,
    'end_of_word_suffix': None,
    'fuse_unk': True,
    'byte_fallback': model.in_bytes,
    'ignore_merges': False,
    'vocab': {piece: number for number, (piece, _, _) in enumerate(model.rows)},
    'merges': [list(pair) for *_, pair in sorted(merges, key=lambda merge: merge[:2])],
  }


def _unigram(model: _Model) -> dict[str, Any]:
  # theirs takes the least over all pieces
  least = min(score for _, score, kind in model.rows if kind == _NORMAL)
  return {
    'type': 'Unigram',
    'unk_id': tokenizer.UNKNOWN_ID,
    'byte_fallback': model.in_bytes,
    'vocab': [[piece, score if kind == _NORMAL else least] for piece, score, kind in model.rows],
  }


def _apart(model: _Model) -> dict[str, Any]:
  """A step that cuts what a text writes like a special or byte piece, which unigram would take for
  it, in two.

  The cut is where no piece lies across it, so that it changes nothing else.
  """
  ordinary, cuts = model.normal(), []
  written = [(piece, re.escape(piece)) for piece in tokenizer.SPECIAL_TOKENS] + [
    ('<0x', _WRITTEN_BYTE)
  ] * model.in_bytes
  for piece, pattern in written:
    places = [
      place
      for place in range(1, len(piece))
      if (model.in_bytes or {piece[place - 1], piece[place]} & ordinary.keys())
      and not any(piece[place - 1 : place + 1] in one for one in ordinary)
    ]
    if not places:
      raise _refused(f'pieces that hold parts of {piece}, so that unigram would read that as one')
    cuts.append(
      f'(?<={re.escape(piece[: places[0]])})(?={pattern[len(re.escape(piece[: places[0]])) :]})'
    )
  return {
    'type': 'Split',
    'pattern': {'Regex': '|'.join(cuts)},
    'behavior': 'Isolated',
    'invert': False,
  }


def _refused(found: str) -> InputError:
  return InputError(
    "the tokenizer in Hugging Face's form", found, 'train one here, with tokenizer.model=bpe'
  )


def _read_model(data: bytes) -> _Model:
  """Returns a SentencePiece model file, or raises InputError for a setting that a tokenizer.json
  cannot express.
  """
  try:
    from sentencepiece import sentencepiece_model_pb2
  except (ImportError, runtime_version.VersionError) as error:
    raise InputError(
      "the tokenizer in Hugging Face's form",
      str(error),
      'pip install --upgrade protobuf sentencepiece',
    ) from None
  proto = sentencepiece_model_pb2.ModelProto.FromString(data)
  trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
  rows = tuple((piece.piece, piece.score, piece.type) for piece in proto.pieces)
  other = [
    piece
    for piece, _, kind in rows[len(tokenizer.SPECIAL_TOKENS) :]
    if kind not in (_NORMAL, _BYTE)
  ]
  for refused, words in (
    (trainer.model_type not in (_BPE, _UNIGRAM), 'neither BPE nor unigram'),
    (normalizer.precompiled_charsmap, 'a normalisation of text'),
    (trainer.treat_whitespace_as_suffix, 'spaces after words'),
    (not normalizer.add_dummy_prefix, 'no space before a text'),
    (not normalizer.remove_extra_whitespaces, 'spaces left as they are'),
    (not normalizer.escape_whitespaces, 'spaces that are no U+2581'),
    (other, f'pieces of a kind of their own: {", ".join(other[:4])}'),
  ):
    if refused:
      raise _refused(words)
  return _Model(rows, trainer.model_type, trainer.byte_fallback)
