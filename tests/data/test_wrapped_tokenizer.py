"""A tokenizer of the `tokenizers` library under our ids: the same pieces, in our notation, whatever
the text holds.
"""

import json
import pathlib
import sys
from typing import Any

import pytest

from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer, wrapped_tokenizer
from minilm_jax.data.tokenizer import BEGIN_ID, END_ID, SPECIAL_TOKENS, load_tokenizer

LINES = ['the dog sleeps near the tree .', 'a good film , a bad film .', 'naïve café – the end'] * 3


@pytest.fixture(scope='module')
def library():
  return pytest.importorskip('tokenizers', reason='needs tokenizers, which is of the extra [hf]')


def trained(library: Any, kind: str) -> tuple[Any, tuple[str, ...]]:
  """Their tokenizer of a kind, and its names of our special pieces."""
  special = (
    ('[CLS]', '[PAD]', '[SEP]', '[UNK]', '[MASK]')
    if kind == 'WordPiece'
    else tokenizer.SPECIAL_TOKENS
  )
  made = {
    'WordPiece': lambda: library.BertWordPieceTokenizer(),
    'ByteLevel': lambda: library.ByteLevelBPETokenizer(),
    'Metaspace': lambda: library.SentencePieceUnigramTokenizer(),
  }[kind]()
  # the special pieces in another order than ours, and not first
  how = {
    'WordPiece': {'vocab_size': 90},
    'ByteLevel': {'vocab_size': 300},
    'Metaspace': {'vocab_size': 60, 'unk_token': '<unk>'},
  }[kind]
  made.train_from_iterator(
    LINES, special_tokens=[*special[3:], *special[:3]], show_progress=False, **how
  )
  return made, special


def opened(made: Any, special: tuple[str, ...], between: int = 2) -> tokenizer.Tokenizer:
  ids = {
    ours: made.token_to_id(theirs)
    for ours, theirs in zip(tokenizer.SPECIAL_TOKENS, special, strict=True)
  }
  return tokenizer.Tokenizer(
    wrapped_tokenizer.pack_tokenizer(json.loads(made.to_str()), ids, between)
  )


@pytest.mark.parametrize('kind', ['WordPiece', 'ByteLevel', 'Metaspace'])
def test_pieces_are_theirs_and_special_ids_are_ours(kind: str, library, tmp_path: pathlib.Path):
  made, special = trained(library, kind)
  tokenizer = opened(made, special)
  assert [tokenizer.piece(i) for i in range(5)] == list(
    SPECIAL_TOKENS
  ) and tokenizer.size == made.get_vocab_size()
  texts = ['the dog , a Café .', 'near the naïve tree', '', 'qx – zz']
  for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
    theirs = made.encode(text, add_special_tokens=False).ids
    assert [tokenizer._processor.order[i] for i in ids] == theirs
    assert tokenizer.decode([BEGIN_ID, *ids, END_ID]) == made.decode(theirs)
  (tmp_path / 'tokenizer.model').write_bytes(tokenizer.model)
  again = load_tokenizer(tmp_path / 'tokenizer.model')
  assert again.sha256 == tokenizer.sha256 and again.encode(texts) == tokenizer.encode(texts)
  named = [tokenizer.piece(i) for i in range(tokenizer.size)]
  assert [tokenizer.id(piece) for piece in named] == list(range(tokenizer.size))


@pytest.mark.parametrize('kind', ['WordPiece', 'ByteLevel', 'Metaspace'])
def test_words_begin_where_ours_do(kind: str, library):
  tokenizer = opened(*trained(library, kind))
  starts = tokenizer.starts_word()
  ids = tokenizer.encode(['the dog sleeps near the tree'])[0]
  shown = ''.join(tokenizer.piece(i) for i in ids)
  assert shown.removeprefix('\u2581') == 'the\u2581dog\u2581sleeps\u2581near\u2581the\u2581tree'
  assert sum(starts[i] for i in ids[1:]) == 5 and not any(starts[:5])


def test_a_text_that_spells_a_special_piece_is_plain_text(library):
  for kind in ('WordPiece', 'ByteLevel'):
    made, special = trained(library, kind)
    for ids in opened(made, special).encode(
      [f'the {special[4]} dog {special[2]}', ''.join(special)]
    ):
      assert not {tokenizer.BEGIN_ID, tokenizer.PAD_ID, tokenizer.END_ID, tokenizer.MASK_ID} & set(
        ids
      )


def test_case_is_left_to_their_normalizer(library):
  made, special = trained(library, 'ByteLevel')
  tokenizer = opened(made, special)
  assert tokenizer.fold('The DOG') == 'The DOG' and tokenizer.encode(['The']) != tokenizer.encode(
    ['the']
  )
  lowered = opened(*trained(library, 'WordPiece'))
  assert lowered.encode(['The DOG']) == lowered.encode(['the dog'])


def broken(change) -> Any:
  def spoil(found: dict) -> bytes:
    change(found)
    return json.dumps(found).encode()

  return spoil


@pytest.mark.parametrize(
  'spoil, said',
  [
    (lambda found: b'{', 'Expecting'),
    (lambda found: b'{}', 'no tokenizer'),
    (lambda found: b'{' * 100_000, 'Expecting|deep'),
    (broken(lambda found: found.pop('special')), 'no special'),
    (broken(lambda found: found.update(between=3)), '3 marks'),
    (broken(lambda found: found['special'].update({'<s>': 10**6})), 'special pieces'),
    (
      broken(lambda found: found['special'].update({'<s>': found['special']['<pad>']})),
      'special pieces',
    ),
    (broken(lambda found: found['special'].update({'<s>': [1]})), 'not a whole number'),
    (broken(lambda found: found['tokenizer']['model'].update(type='Nothing')), 'cannot read it'),
    (
      broken(lambda found: found['tokenizer'].update(normalizer={'type': 'Nothing'})),
      'cannot read it',
    ),
  ],
)
def test_a_damaged_one_is_refused(spoil, said: str, library, tmp_path: pathlib.Path):
  found = json.loads(opened(*trained(library, 'WordPiece')).model)
  (tmp_path / 'tokenizer.model').write_bytes(spoil(found))
  with pytest.raises(InputError, match=f'not what minilm import writes: .*({said})'):
    tokenizer.load_tokenizer(tmp_path / 'tokenizer.model')


def test_other_special_pieces_are_named(library, tmp_path: pathlib.Path):
  found = json.loads(opened(*trained(library, 'WordPiece')).model)
  found['special'] = dict(sorted(found['special'].items()))
  (tmp_path / 'tokenizer.model').write_bytes(json.dumps(found).encode())
  with pytest.raises(InputError, match='other special pieces'):
    tokenizer.load_tokenizer(tmp_path / 'tokenizer.model')


def test_without_the_library_it_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setitem(sys.modules, 'tokenizers', None)
  (tmp_path / 'tokenizer.model').write_bytes(
    wrapped_tokenizer.pack_tokenizer({'model': {'type': 'WordPiece'}}, {}, 1)
  )
  with pytest.raises(
    InputError, match='tokenizers is not installed\nto do: pip install tokenizers'
  ):
    tokenizer.load_tokenizer(tmp_path / 'tokenizer.model')
