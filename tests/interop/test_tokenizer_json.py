"""Tokenizers in Hugging Face's form: the same ids for any text, rows as ours, refused where they
cannot be.
"""

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
# below 600 there are no byte pieces
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
def tokenizer(
  request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
  lines = [
    line.lower()
    for line in (ROOT / 'README.md').read_text(encoding='utf-8').splitlines()
    if line.strip()
  ]
  return train_tokenizer(
    lines, *request.param, tmp_path_factory.mktemp('tokenizer') / 'tokenizer.model'
  )


def opened(tokenizer: Tokenizer, letters: bool = False) -> Any:
  tokenizers = pytest.importorskip(
    'tokenizers', reason='needs tokenizers, which is of the extra [hf]'
  )
  fast = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json.build_tokenizer_json(tokenizer)))
  fast.encode_special_tokens = letters
  return fast


@pytest.mark.parametrize('letters', [False, True])
def test_strange_texts_get_the_same_ids(letters: bool, tokenizer: Tokenizer):
  fast, generator = opened(tokenizer, letters), random.Random(0)
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
  assert mask == (0 if letters else 1)


def test_real_lines_get_the_same_ids(tokenizer: Tokenizer, data: pathlib.Path):
  with lzma.open(data / 'nltk_corpora/brown.txt.xz', 'rt', encoding='utf-8') as file:
    lines = file.read(60_000).splitlines()
  assert (
    len(lines) > 100 and tokenizer_json.find_differences(tokenizer, opened(tokenizer), lines) == []
  )


def test_a_difference_is_seen(tokenizer: Tokenizer):
  """What compares would say so: of capitals left as they are, of spaces left alone, of another
  order of merges.
  """
  tokenizers = pytest.importorskip(
    'tokenizers', reason='needs tokenizers, which is of the extra [hf]'
  )
  described = tokenizer_json.build_tokenizer_json(tokenizer)
  unknown = tokenizer.size == 250  # to which one Greek letter is as good as another
  for step in range(unknown, len(described['normalizer']['normalizers'])):
    other = json.loads(json.dumps(described))
    del other['normalizer']['normalizers'][step]
    assert tokenizer_json.find_differences(
      tokenizer, tokenizers.Tokenizer.from_str(json.dumps(other))
    ), described['normalizer']['normalizers'][step]
  if 'merges' in described['model']:
    described['model']['merges'].reverse()
    lines = (ROOT / 'README.md').read_text(encoding='utf-8').splitlines()
    assert tokenizer_json.find_differences(
      tokenizer, tokenizers.Tokenizer.from_str(json.dumps(described)), lines
    )


def test_rows_are_built_and_cut_as_ours(tokenizer: Tokenizer):
  fast, generator = opened(tokenizer, letters=True), random.Random(1)

  def words() -> str:
    return ' '.join(
      generator.choices(['The', 'model', 'is', 'small', '<s>', 'zz'], k=generator.randrange(12))
    )

  first, second = [words() for _ in range(60)], [words() for _ in range(60)]
  fast.enable_truncation(16)
  for sides in ((first, ()), (first, second)):
    ours, truncated = task_data.encode_examples(
      Examples(*map(tuple, sides), np.zeros(60, np.int32)), tokenizer, 16
    )
    inputs = list(zip(*sides)) if sides[1] else first
    assert [encoding.ids for encoding in fast.encode_batch(inputs)] == ours and truncated
    assert {number for encoding in fast.encode_batch(inputs) for number in encoding.type_ids} == {0}
  tokenizer_json.check_pairs(16)
  with pytest.raises(InputError, match='--config'):
    tokenizer_json.check_pairs(17)


def test_text_comes_back(tokenizer: Tokenizer):
  fast = opened(tokenizer)
  for text in ('the small model .', 'no pads , and no loss', ''):
    ids = tokenizer.encode([text])[0]
    assert fast.decode([BEGIN_ID, *ids, END_ID]) == tokenizer.decode(ids)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'normalization_rule_name': 'nmt_nfkc'}, 'a normalisation of text'),
    ({'model_type': 'word'}, 'neither BPE nor'),
    ({'add_dummy_prefix': False}, 'no space before'),
    ({'remove_extra_whitespaces': False}, 'spaces left'),
    ({'treat_whitespace_as_suffix': True}, 'spaces after words'),
    ({'user_defined_symbols': ['<x>']}, 'a kind of their own: <x>'),
  ],
)
def test_what_cannot_be_said_is_refused(changes: dict, message: str):
  written, text = io.BytesIO(), ['the dog sleeps and the cat eats', 'a good dog', 'no cat']
  sentencepiece.SentencePieceTrainer.train(
    **{
      'sentence_iterator': iter(text),
      'model_writer': written,
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
  with pytest.raises(InputError, match=message):
    tokenizer_json.build_tokenizer_json(Tokenizer(written.getvalue()))


def test_pieces_that_hold_a_special_one_are_refused():
  """Unigram would read it as one, and there is no place to cut it."""
  rows = (
    *((piece, 0.0, 3) for piece in SPECIAL_TOKENS),
    *((piece, -1.0, 1) for piece in ('<s', 's>', '<', 's', '>')),
  )
  with pytest.raises(InputError, match='parts of <s>'):
    tokenizer_json._split_special(tokenizer_json._Model(rows, 1, False))


def test_what_is_written_holds_the_pieces_of_the_model(tokenizer: Tokenizer):
  """Without their library: pieces, scores and byte pieces are those that SentencePiece itself
  reports.
  """
  processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
  model = tokenizer_json.build_tokenizer_json(tokenizer)['model']
  unigram = model['type'] == 'Unigram'
  names = [name for name, _ in model['vocab']] if unigram else list(model['vocab'])
  in_bytes = [processor.is_byte(number) for number in range(processor.get_piece_size())]
  assert names == [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
  assert model['byte_fallback'] is any(in_bytes)
  if unigram:
    ordinary = [number for number in range(len(SPECIAL_TOKENS), len(names)) if not in_bytes[number]]
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
    pytest.skip('this sentencepiece checks no version')
  with pytest.raises(InputError) as refusal:
    tokenizer_json.build_tokenizer_json(tokenizer)
  assert 'protobuf' in refusal.value.remedy
