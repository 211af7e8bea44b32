"""A tokenizer.json gives the ids and rows of its SentencePiece tokenizer, or is refused."""

import io
import json
import lzma
import pathlib
import random
import sys
from typing import Any

import numpy as np
import pytest
import sentencepiece
from google.protobuf import runtime_version

from minilm_jax.core.errors import InputError
from minilm_jax.data.tokenizer import (
  BEGIN_ID,
  END_ID,
  MASK_ID,
  SPECIAL_TOKENS,
  Tokenizer,
  train_tokenizer,
)
from minilm_jax.interop import tokenizer_json
from minilm_jax.tasks import task_data
from minilm_jax.tasks.examples import Examples

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINES = [
  line
  for name in ('LICENSE', 'README.md')
  for line in (ROOT / name).read_text(encoding='utf-8').splitlines()
  if line.strip()
]
# A vocabulary below 600 has no byte pieces.
KINDS = [('bpe', 250), ('bpe', 800), ('unigram', 250), ('unigram', 800)]
ALPHABETS = (
  'ab ',
  'a. ',
  'the n',
  'aab<s>/unk0x4F ',
  'é😀a \t\u2581\n',
  'ΣσςΑα. \u0301',
  'ABab\u00a0\u200b',
)


@pytest.fixture(scope='module', params=KINDS, ids=lambda kind: f'{kind[0]} {kind[1]}')
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
  return train_tokenizer([line.lower() for line in LINES], *request.param)


def open_converted(tokenizer: Tokenizer, split_special: bool = False) -> Any:
  tokenizers = pytest.importorskip(
    'tokenizers', reason='needs tokenizers, which is of the extra [hf]'
  )
  fast = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json.build_tokenizer_json(tokenizer)))
  fast.encode_special_tokens = split_special
  return fast


@pytest.mark.parametrize('split_special', [False, True])
def test_unusual_texts_have_equal_ids(split_special: bool, tokenizer: Tokenizer):
  fast, generator = open_converted(tokenizer, split_special), random.Random(0)
  assert tokenizer_json.find_differences(tokenizer, fast) == []
  texts = [
    ''.join(generator.choices(alphabet, k=generator.randrange(30)))
    for alphabet in ALPHABETS
    for _ in range(200)
  ]
  assert tokenizer_json.find_differences(tokenizer, fast, texts) == []
  assert (
    tokenizer_json.find_differences(
      tokenizer, fast, ['a <mask> b', '<mask><mask> .', ' <mask> ', '<MASK>']
    )
    == []
  )
  mask = fast.encode('a <mask>', add_special_tokens=False).ids.count(MASK_ID)
  assert mask == (0 if split_special else 1)


def test_lines_of_a_corpus_have_equal_ids(tokenizer: Tokenizer, data: pathlib.Path):
  with lzma.open(data / 'nltk_corpora/brown.txt.xz', 'rt', encoding='utf-8') as file:
    lines = file.read(60_000).splitlines()
  assert (
    len(lines) > 100
    and tokenizer_json.find_differences(tokenizer, open_converted(tokenizer), lines) == []
  )


def test_differences_are_detected(tokenizer: Tokenizer):
  """A missing step of normalization or another order of merges changes some ids."""
  tokenizers = pytest.importorskip(
    'tokenizers', reason='needs tokenizers, which is of the extra [hf]'
  )
  content = tokenizer_json.build_tokenizer_json(tokenizer)
  for step in range(len(content['normalizer']['normalizers'])):
    if step == 1 and tokenizer.size == 250:
      continue  # Greek letters are unknown to the small vocabulary
    other = json.loads(json.dumps(content))
    del other['normalizer']['normalizers'][step]
    assert tokenizer_json.find_differences(
      tokenizer, tokenizers.Tokenizer.from_str(json.dumps(other))
    ), content['normalizer']['normalizers'][step]
  if 'merges' in content['model']:
    content['model']['merges'].reverse()
    assert tokenizer_json.find_differences(
      tokenizer, tokenizers.Tokenizer.from_str(json.dumps(content)), LINES
    )


def test_rows_are_built_and_truncated_equally(tokenizer: Tokenizer):
  fast, generator = open_converted(tokenizer, split_special=True), random.Random(1)

  def draw_words() -> str:
    return ' '.join(
      generator.choices(['The', 'model', 'is', 'small', '<s>', 'zz'], k=generator.randrange(12))
    )

  first, second = [draw_words() for _ in range(60)], [draw_words() for _ in range(60)]
  fast.enable_truncation(16)
  for sides in ((first, ()), (first, second)):
    expected, truncated = task_data.encode_examples(
      Examples(*map(tuple, sides), np.zeros(60, np.int32)), tokenizer, 16
    )
    inputs = list(zip(*sides)) if sides[1] else first
    assert [encoding.ids for encoding in fast.encode_batch(inputs)] == expected and truncated
    assert {number for encoding in fast.encode_batch(inputs) for number in encoding.type_ids} == {0}
  tokenizer_json.check_pairs(16)
  with pytest.raises(InputError, match='--config'):
    tokenizer_json.check_pairs(17)


def test_ids_are_decoded_equally(tokenizer: Tokenizer):
  fast = open_converted(tokenizer)
  texts = ['the small model .', 'no pads , and no loss', '']
  if tokenizer.size == 800:  # SentencePiece decodes unknown letters to ⁇
    texts += ['▁▁the ▁ model▁']
  for text in texts:
    ids = tokenizer.encode([text])[0]
    assert fast.decode([BEGIN_ID, *ids, END_ID]) == tokenizer.decode(ids) == text


@pytest.mark.parametrize(
  'changes, value',
  [
    ({'normalization_rule_name': 'nmt_nfkc'}, 'precompiled_charsmap'),
    ({'model_type': 'word'}, 'model_type=3'),
    ({'add_dummy_prefix': False}, 'add_dummy_prefix=False'),
    ({'remove_extra_whitespaces': False}, 'remove_extra_whitespaces=False'),
    ({'treat_whitespace_as_suffix': True}, 'treat_whitespace_as_suffix=True'),
    ({'user_defined_symbols': ['<x>']}, '<x>'),
  ],
)
def test_unsupported_settings_are_refused(changes: dict, value: str):
  output, text = io.BytesIO(), ['the dog sleeps and the cat eats', 'a good dog', 'no cat']
  sentencepiece.SentencePieceTrainer.train(
    **{
      'sentence_iterator': iter(text),
      'model_writer': output,
      'model_type': 'bpe',
      'vocab_size': 30,
      'bos_id': 0,
      'pad_id': 1,
      'eos_id': 2,
      'unk_id': 3,
      'control_symbols': ['<mask>'],
      'normalization_rule_name': 'identity',
      'hard_vocab_limit': False,
      'minloglevel': 2,
      **changes,
    }
  )
  with pytest.raises(InputError, match=value):
    tokenizer_json.build_tokenizer_json(Tokenizer(output.getvalue()))


def test_pieces_that_combine_to_a_special_token_are_refused():
  """Unigram could encode `<s>` as a special token, and no split avoids this."""
  rows = (
    *((piece, 0.0, 3) for piece in SPECIAL_TOKENS),
    *((piece, -1.0, 1) for piece in ('<s', 's>', '<', 's', '>')),
  )
  with pytest.raises(InputError, match='<s>'):
    tokenizer_json._find_cuts(tokenizer_json._Model(rows, 1, False))


def test_a_conversion_has_the_pieces_of_the_model(tokenizer: Tokenizer):
  """Pieces, scores and byte pieces equal those of SentencePiece."""
  pytest.importorskip('tokenizers', reason='needs tokenizers, which is of the extra [hf]')
  processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
  model = tokenizer_json.build_tokenizer_json(tokenizer)['model']
  unigram = model['type'] == 'Unigram'
  names = [name for name, _ in model['vocab']] if unigram else list(model['vocab'])
  is_byte = [processor.is_byte(number) for number in range(processor.get_piece_size())]
  assert names == [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
  assert model['byte_fallback'] is any(is_byte)
  if unigram:
    ordinary = [number for number in range(len(SPECIAL_TOKENS), len(names)) if not is_byte[number]]
    assert [model['vocab'][number][1] for number in ordinary] == list(
      map(processor.get_score, ordinary)
    )


def test_a_protobuf_of_another_version_is_named(
  tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
  def refuse(*_: Any) -> None:
    raise runtime_version.VersionError('gencode 9 runtime 7')

  monkeypatch.setattr(runtime_version, 'ValidateProtobufRuntimeVersion', refuse)
  monkeypatch.delitem(sys.modules, 'sentencepiece.sentencepiece_model_pb2', raising=False)
  monkeypatch.delattr(sentencepiece, 'sentencepiece_model_pb2', raising=False)
  if (
    'runtime_version'
    not in pathlib.Path(sentencepiece.__file__).with_name('sentencepiece_model_pb2.py').read_text()
  ):
    pytest.skip('this version of sentencepiece does not check the version of protobuf')
  with pytest.raises(InputError) as error:
    tokenizer_json.build_tokenizer_json(tokenizer)
  assert 'protobuf' in error.value.remedy
