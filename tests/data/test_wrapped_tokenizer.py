"""Wrapped tokenizers: the pieces of the library `tokenizers` under our ids and notation."""

import json
import sys
from typing import Any

import pytest

from minilm_jax.core.corpus_config import BEGIN_ID, END_ID, MASK_ID, PAD_ID, SPECIAL_TOKENS
from minilm_jax.core.errors import InputError
from minilm_jax.data.tokenizer import Tokenizer, load_tokenizer
from minilm_jax.data.wrapped_tokenizer import pack_tokenizer

LINES = ['the dog sleeps near the tree .', 'a good film , a bad film .', 'naïve café – the end'] * 3
BERT_TOKENS = ('[CLS]', '[PAD]', '[SEP]', '[UNK]', '[MASK]')
TRAINERS = {  # a class of the library and its arguments
  'WordPiece': ('BertWordPieceTokenizer', {'vocab_size': 90}),
  'ByteLevel': ('ByteLevelBPETokenizer', {'vocab_size': 300}),
  'Metaspace': ('SentencePieceUnigramTokenizer', {'vocab_size': 60, 'unk_token': '<unk>'}),
}


@pytest.fixture(scope='module')
def library():
  return pytest.importorskip('tokenizers', reason='needs tokenizers of the extra [hf]')


def train(library: Any, kind: str) -> tuple[Any, tuple[str, ...]]:
  """Returns a trained tokenizer of the library, and its names of our special pieces."""
  special = BERT_TOKENS if kind == 'WordPiece' else SPECIAL_TOKENS
  name, arguments = TRAINERS[kind]
  trained = getattr(library, name)()
  # The special pieces have another order and follow other ids.
  tokens = [*special[3:], *special[:3]]
  trained.train_from_iterator(LINES, special_tokens=tokens, show_progress=False, **arguments)
  return trained, special


def wrap(trained: Any, special: tuple[str, ...], between: int = 2) -> Tokenizer:
  library_ids = map(trained.token_to_id, special)
  ids = dict(zip(SPECIAL_TOKENS, library_ids, strict=True))
  return Tokenizer(pack_tokenizer(json.loads(trained.to_str()), ids, between))


@pytest.mark.parametrize('kind', TRAINERS)
def test_pieces_equal_the_library_and_special_ids_come_first(kind: str, library, tmp_path):
  trained, special = train(library, kind)
  wrapped = wrap(trained, special)
  pieces = [wrapped.piece(i) for i in range(wrapped.size)]
  assert pieces[:5] == list(SPECIAL_TOKENS) and wrapped.size == trained.get_vocab_size()
  texts = ['the dog , a Café .', 'near the naïve tree', '', 'qx – zz']
  for text, ids in zip(texts, wrapped.encode(texts), strict=True):
    library_ids = trained.encode(text, add_special_tokens=False).ids
    assert [wrapped._processor.order[i] for i in ids] == library_ids
    assert wrapped.decode([BEGIN_ID, *ids, END_ID]) == trained.decode(library_ids)
  (tmp_path / 'tokenizer.model').write_bytes(wrapped.model)
  loaded = load_tokenizer(tmp_path / 'tokenizer.model')
  assert loaded.sha256 == wrapped.sha256 and loaded.encode(texts) == wrapped.encode(texts)
  assert [wrapped.id(piece) for piece in pieces] == list(range(wrapped.size))


@pytest.mark.parametrize('kind', TRAINERS)
def test_pieces_mark_the_starts_of_words(kind: str, library):
  wrapped, text = wrap(*train(library, kind)), 'the dog sleeps near the tree'
  starts, ids = wrapped.starts_word(), wrapped.encode([text])[0]
  pieces = ''.join(wrapped.piece(i) for i in ids)
  assert pieces.removeprefix('\u2581') == text.replace(' ', '\u2581')
  assert sum(starts[i] for i in ids[1:]) == 5 and not any(starts[:5])


@pytest.mark.parametrize('kind', TRAINERS)
@pytest.mark.parametrize('after', ['.', ', a film', ' .', ' the tree'])
def test_a_part_after_a_mask_begins_a_word_only_after_a_space(kind: str, after: str, library):
  wrapped = wrap(*train(library, kind))
  first, second = wrapped.encode_parts(['the ', after])
  (whole,) = wrapped.encode([f'the dog{after}'])
  assert whole[: len(first)] == first and whole[-len(second) :] == second
  assert wrapped.decode(whole[len(first) : -len(second)]).strip() == 'dog'


@pytest.mark.parametrize('text, size', [('the 鿕 tree', 13), ('😀', 5), ('naïve café', 13)])
def test_the_bytes_of_byte_level_pieces_are_the_bytes_of_the_text(text: str, size: int, library):
  wrapped = wrap(*train(library, 'ByteLevel'))
  piece_bytes = wrapped.count_bytes()
  assert sum(piece_bytes[i] for i in wrapped.encode([' ' + text])[0]) == size


def wrap_with_byte_pieces(library: Any) -> Tokenizer:
  trained, special = train(library, 'Metaspace')
  content = json.loads(trained.to_str())
  content['model']['vocab'] += [[f'<0x{byte:02X}>', -9.0] for byte in range(256)]
  content['model'] |= {'byte_fallback': True}
  content['decoder'] = {
    'type': 'Sequence',
    'decoders': [{'type': 'ByteFallback'}, {'type': 'Fuse'}, content['decoder']],
  }
  ids = dict(zip(SPECIAL_TOKENS, map(trained.token_to_id, special), strict=True))
  wrapped = Tokenizer(pack_tokenizer(content, ids, 2))
  assert wrapped.size == trained.get_vocab_size() + 256
  return wrapped


def test_the_bytes_of_fallback_pieces_are_single(library):
  wrapped = wrap_with_byte_pieces(library)
  piece_bytes = wrapped.count_bytes()
  assert sum(piece_bytes[i] for i in wrapped.encode(['the 鿕'])[0]) == 8  # with the first space


@pytest.mark.parametrize('kind', [*TRAINERS, 'byte pieces'])
def test_the_letter_of_the_space_mark_is_no_space(kind: str, library):
  wrapped = wrap_with_byte_pieces(library) if kind == 'byte pieces' else wrap(*train(library, kind))
  ids, spaced_ids, *part_ids = [
    *wrapped.encode(['dog▁tree', 'dog tree']),
    *wrapped.encode_parts(['dog', '▁tree']),
  ]
  assert ids != spaced_ids and part_ids[1] != wrapped.encode_parts(['dog', ' tree'])[1]
  if kind in ('ByteLevel', 'byte pieces'):  # the others have no piece of the letter
    assert wrapped.decode(ids) == 'dog▁tree'


def test_a_piece_of_the_space_mark_has_three_bytes(library):
  trained, special = train(library, 'WordPiece')
  content = json.loads(trained.to_str())
  size = len(content['model']['vocab'])
  content['model']['vocab'] |= {'▁': size, '##▁': size + 1}
  ids = dict(zip(SPECIAL_TOKENS, map(trained.token_to_id, special), strict=True))
  wrapped = Tokenizer(pack_tokenizer(content, ids, 1))
  (letters,) = wrapped.encode(['▁▁'])
  assert [wrapped.count_bytes()[i] for i in letters] == [4, 3]  # the first with a space
  assert [wrapped.starts_word()[i] for i in letters] == [True, False]


@pytest.mark.parametrize('kind', ['WordPiece', 'ByteLevel'])
def test_a_text_that_spells_a_special_piece_is_plain_text(kind: str, library):
  trained, special = train(library, kind)
  texts = [f'the {special[4]} dog {special[2]}', ''.join(special)]
  for ids in wrap(trained, special).encode(texts):
    assert not {BEGIN_ID, PAD_ID, END_ID, MASK_ID} & set(ids)


def test_the_normalizer_of_the_library_decides_on_case(library):
  cased, lowered = (wrap(*train(library, kind)) for kind in ('ByteLevel', 'WordPiece'))
  assert cased.fold('The DOG') == 'The DOG' and cased.encode(['The']) != cased.encode(['the'])
  assert lowered.encode(['The DOG']) == lowered.encode(['the dog'])


def replace_special(pack: dict, value: Any) -> None:
  pack['special']['<s>'] = pack['special']['<pad>'] if value == 'repeated' else value


@pytest.mark.parametrize(
  'damage, message',
  [
    (b'{', 'Expecting'),
    (b'{}', 'no tokenizer'),
    (b'{' * 100_000, 'Expecting|deep'),
    (lambda pack: pack.pop('special'), 'no special'),
    (lambda pack: pack.update(between=3), 'between=3'),
    (lambda pack: replace_special(pack, 10**6), 'special pieces'),
    (lambda pack: replace_special(pack, 'repeated'), 'special pieces'),
    (lambda pack: replace_special(pack, [1]), 'not a whole number'),
    (lambda pack: pack['tokenizer']['model'].update(type='Nothing'), 'tokenizers'),
    (lambda pack: pack['tokenizer'].update(normalizer={'type': 'Nothing'}), 'tokenizers'),
  ],
)
def test_a_damaged_file_is_refused(damage, message: str, library, tmp_path):
  pack = json.loads(wrap(*train(library, 'WordPiece')).model)
  if not isinstance(damage, bytes):
    damage(pack)
    damage = json.dumps(pack).encode()
  (tmp_path / 'tokenizer.model').write_bytes(damage)
  with pytest.raises(InputError, match=f'minilm import.*({message})'):
    load_tokenizer(tmp_path / 'tokenizer.model')


def test_other_special_pieces_are_refused(library, tmp_path):
  pack = json.loads(wrap(*train(library, 'WordPiece')).model)
  pack['special'] = dict(sorted(pack['special'].items()))
  (tmp_path / 'tokenizer.model').write_bytes(json.dumps(pack).encode())
  with pytest.raises(InputError, match='0 is .</s>.'):
    load_tokenizer(tmp_path / 'tokenizer.model')


def test_the_error_without_the_library_names_it(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tokenizers', None)
  model = pack_tokenizer({'model': {'type': 'WordPiece'}}, {}, 1)
  (tmp_path / 'tokenizer.model').write_bytes(model)
  with pytest.raises(InputError, match=r'tokenizers is not installed\n.*minilm_jax\[hf\]'):
    load_tokenizer(tmp_path / 'tokenizer.model')
