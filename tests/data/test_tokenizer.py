"""Tokenizers: special ids, lossless encoding, reproducible training, and two measures."""

import copy
import math
import random
import sys

import pytest
import sentencepiece

from minilm_jax.core.corpus_config import BEGIN_ID, END_ID, MASK_ID, PAD_ID, UNKNOWN_ID
from minilm_jax.core.errors import InputError
from minilm_jax.data import tokenizer

WORDS = 'the king and queen were cooking in a small house by the sea when an old man came singing home again'.split()


def draw_sentences(count: int) -> list[str]:
  dice = random.Random(0)
  syllables = [a + b for a in 'bdfgklmnprstvz' for b in 'aeiou']
  words = WORDS + [''.join(dice.choices(syllables, k=3)) for _ in range(400)]
  return [' '.join(dice.choices(words, k=9)) for _ in range(count)]


TEXTS = draw_sentences(400)


@pytest.fixture(scope='module')
def large() -> tokenizer.Tokenizer:
  return tokenizer.train_tokenizer(TEXTS, 'bpe', 700)


@pytest.fixture(scope='module')
def small() -> tokenizer.Tokenizer:
  return tokenizer.train_tokenizer(TEXTS, 'bpe', 200)


@pytest.mark.parametrize('model', ['bpe', 'unigram'])
def test_training_is_reproducible_and_survives_loading(tmp_path, model: str):
  trained = tokenizer.train_tokenizer(iter(TEXTS), model, 300)
  (tmp_path / 'a.model').write_bytes(trained.model)
  loaded = tokenizer.load_tokenizer(tmp_path / 'a.model')
  assert trained.size == loaded.size == 300
  assert trained.sha256 == loaded.sha256
  assert [loaded.piece(i) for i in range(5)] == ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
  assert (BEGIN_ID, PAD_ID, END_ID, UNKNOWN_ID, MASK_ID) == (0, 1, 2, 3, 4)
  assert trained.encode(TEXTS[:5]) == loaded.encode(TEXTS[:5])
  assert tokenizer.train_tokenizer(list(TEXTS), model, 300).sha256 == trained.sha256


@pytest.mark.parametrize(
  'text',
  [
    TEXTS[0],
    'unseen wörds, 1,234 ☃ snowmen!',
    'a\tb\u00a0c',
    'ＦＵＬＬ width',
    '',
    '▁',
    '▁▁a ▁ b▁c ▁',
  ],
)
def test_decoding_restores_the_text(large, text: str):
  (ids,) = large.encode([text])
  assert large.decode(ids) == large.decode([BEGIN_ID, *ids, END_ID, PAD_ID]) == text
  assert UNKNOWN_ID not in ids


def test_the_letter_of_the_space_mark_is_no_space(large, small):
  for trained in (large, small):
    for text, spaced in (('king▁queen', 'king queen'), ('▁king', ' king'), ('king▁', 'king')):
      ids, spaced_ids = trained.encode([text, spaced])
      assert ids != spaced_ids and trained.encode_parts(['', text])[1] != spaced_ids
    starts = trained.starts_word()
    assert sum(starts[i] for i in trained.encode(['king▁queen'])[0]) == 1
  assert large.decode(large.encode_parts(['the ', '▁king'])[1]) == '▁king'


def test_white_space_of_a_text_is_read_as_in_a_corpus(large):
  spaces = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
  assert len(spaces) == 29
  (expected,) = large.encode(['the king and queen'])
  for space in spaces:
    text = f'{space}The king{space}\n{space}and{space} queen{space}'
    assert large.encode([large.fold(text)]) == [expected], repr(space)
    # Without the space, a part of a text would continue the last word.
    assert large.fold(f'{space}king') == ' king'
  assert large.fold('a\u200bb\ufeff\u180e') == 'a\u200bb\ufeff\u180e'


def test_text_never_gives_special_ids(large, small):
  for trained in (large, small):
    (ids,) = trained.encode(['<s> the king </s> <pad> <mask>'])
    assert not {BEGIN_ID, PAD_ID, END_ID, MASK_ID} & set(ids)


def test_a_small_tokenizer_has_no_byte_pieces(small, large):
  assert [trained.id('<0x41>') == UNKNOWN_ID for trained in (small, large)] == [True, False]
  assert UNKNOWN_ID not in {i for ids in small.encode(TEXTS) for i in ids}
  assert small.encode(['☃'])[0][-1] == UNKNOWN_ID


def test_long_texts_are_not_skipped():
  long_text = ' '.join(TEXTS)
  assert len(long_text) > 4192 * 2  # the default limit of SentencePiece
  trained = tokenizer.train_tokenizer([long_text, 'short'], 'bpe', 200)
  assert len(trained.encode(['king'])[0]) < 4


@pytest.mark.parametrize('model', ['bpe', 'unigram'])
def test_texts_with_block_characters_are_trained_on(model: str):
  lines = [f'{text} ▁▂▃▄▅▆▇█' for text in TEXTS]
  trained = tokenizer.train_tokenizer(lines, model, 650)
  text = f'{TEXTS[0]} ▁▂▁▁▇▅▅▂ king ▅'
  (ids,) = trained.encode([text])
  assert trained.decode(ids) == text and UNKNOWN_ID not in ids
  assert len(trained.encode(['king'])[0]) < 4 and trained.id('▆') != UNKNOWN_ID


@pytest.mark.parametrize('word', ['x' * 140_000, '東京は日本の首都' * 9_000])
def test_words_above_65_535_characters_are_cut_in_training(word: str):
  # SentencePiece before 0.2.3 ends the process at such a word, so the words it gets are checked.
  words: list[str] = []
  for text in (word, f'the {word} king', TEXTS[0]):
    prepared = tokenizer._prepare_training_text(text)
    assert prepared.replace(' ', '') == text.replace(' ', '')
    words += prepared.split(' ')
  assert max(map(len, words)) <= 65_000 and words[-9:] == TEXTS[0].split(' ')
  texts = [*TEXTS, f'the {word} king']
  trained = tokenizer.train_tokenizer(texts, 'bpe', 700)
  assert trained.size == 700


@pytest.mark.parametrize('model', ['bpe', 'unigram'])
@pytest.mark.parametrize('size', [17, 50_000])
def test_the_error_for_an_impossible_size_names_a_possible_size(model: str, size: int):
  with pytest.raises(InputError, match='tokenizer.size') as refused:
    tokenizer.train_tokenizer(TEXTS[:40], model, size)
  possible = int(refused.value.remedy.split('tokenizer.size to ')[1].split()[0])
  trained = tokenizer.train_tokenizer(TEXTS[:40], model, possible)
  assert trained.size == possible


def test_empty_text_is_refused():
  with pytest.raises(InputError, match='no training text'):
    tokenizer.train_tokenizer([], 'bpe', 100)


@pytest.mark.parametrize('name, data', [('absent', None), ('', None), ('a', b''), ('b', b'hello')])
def test_files_that_are_not_tokenizers_are_refused(tmp_path, name: str, data: bytes | None):
  if data is not None:
    (tmp_path / name).write_bytes(data)
  with pytest.raises(InputError, match=str(tmp_path / name)):
    tokenizer.load_tokenizer(tmp_path / name)


def test_other_special_ids_are_refused(tmp_path):
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS),
    model_prefix=str(tmp_path / 'other'),
    vocab_size=200,
    minloglevel=2,
  )
  with pytest.raises(InputError, match='0 is .<unk>.') as refused:
    tokenizer.load_tokenizer(tmp_path / 'other.model')
  assert '<mask> 4' in refused.value.asked


def test_words_of_a_text_are_counted_by_their_starts(large):
  starts = large.starts_word()
  assert len(starts) == large.size
  for ids in large.encode(TEXTS[:20] + ['wörld ☃']):
    assert sum(starts[i] for i in ids) == len(large.decode(ids).split(' '))


@pytest.mark.parametrize(
  'after', ['.', ', then', '-king house', ')', ' .', ' ☃', '☃  the', ' the sea ']
)
def test_a_part_after_a_special_token_begins_a_word_only_after_a_space(large, small, after: str):
  for trained in (large, small):
    first, second = trained.encode_parts(['the old ', after])
    (whole,) = trained.encode([f'the old king{after}'])
    word = whole[len(first) : -len(second)]
    assert whole == [*first, *word, *second] and trained.decode(word) == 'king'


def test_a_tokenizer_is_copied(large):
  other = copy.deepcopy(large)
  assert other.sha256 == large.sha256 and other.encode(['the king']) == large.encode(['the king'])


def test_parts_of_spaces_have_no_ids(large):
  assert large.encode_parts(['', ' ', '', '  ']) == [[], [], [], []]


@pytest.mark.parametrize(
  'text, size',  # with the space before the first word
  [
    ('we saw 鿕 and 😀 there', 26),
    ('größe café naïve', 21),
    ('мы видели дом', 25),
    ('<0x41> 11', 10),
    ('a▁b ▁', 10),
    ('the king', 9),
  ],
)
def test_the_bytes_of_pieces_are_the_bytes_of_the_text(large, text: str, size: int):
  piece_bytes = large.count_bytes()
  assert len(piece_bytes) == large.size and piece_bytes[:5] == (0, 0, 0, 0, 0)
  assert sum(piece_bytes[i] for i in large.encode([text])[0]) == size


def test_the_word_split_ratio_encodes_every_word_alone(small):
  texts = ['the king the sea', 'bababa']
  pieces = [len(small.encode([word])[0]) for word in ' '.join(texts).split()]
  assert tokenizer.measure_word_split_ratio(small, texts) == pytest.approx(sum(pieces) / 5)
  ratios = {
    tokenizer.measure_word_split_ratio(small, [text]) for text in ('the  king ', 'the king')
  }
  assert len(ratios) == 1
  assert math.isnan(tokenizer.measure_word_split_ratio(small, []))


class FixedSplits(tokenizer.Tokenizer):
  """A tokenizer with fixed splits, for scores computed by hand."""

  def __init__(self, splits: dict[str, list[str]]):
    self.splits = splits
    self.pieces = sorted({piece for pieces in splits.values() for piece in pieces})

  def encode(self, texts):
    return [[self.pieces.index(piece) for piece in self.splits[text]] for text in texts]

  def piece(self, id):
    return self.pieces[id]


@pytest.mark.parametrize(
  'pieces, score',
  [
    (['▁cook', 'ing'], 2),
    (['▁', 'cook', 'ing'], 2),  # ignores a lone marker
    (['▁coo', 'king'], 0),
    (['▁coo', 'k', 'ing'], 1),
    (['▁cooking'], 0),  # one piece
    (['▁', 'cooking'], 0),
    (['▁c', 'o', 'o', 'k', 'i', 'n', 'g'], 0),  # single characters
    (['▁cook', '##ing'], 2),
  ],
)
def test_esms_by_hand(pieces: list[str], score: int):
  splits = FixedSplits({'cooking': pieces, 'octopus': ['▁octopus']})
  parts = {'cooking': ('cook', 'ing'), 'octopus': ('octo', 'pus')}
  assert tokenizer.measure_esms(splits, parts) == score / 4


def test_single_characters_score_zero_even_as_parts():
  assert tokenizer.measure_esms(FixedSplits({'ab': ['▁a', 'b']}), {'ab': ('a', 'b')}) == 0


def test_the_parts_of_the_reference_form_its_words():
  assert len(tokenizer.REFERENCE) == 13
  assert all(''.join(parts) == word for word, parts in tokenizer.REFERENCE.items())


def test_larger_tokenizers_split_words_less():
  rows = tokenizer.measure_sizes(TEXTS, 'bpe', [100, 200, 400])
  assert [row['size'] for row in rows] == [100, 200, 400]
  ratios = [row['word_split_ratio'] for row in rows]
  assert ratios == sorted(ratios, reverse=True) and ratios[0] > ratios[-1] >= 1
  assert all(0 <= row['esms'] <= 1 for row in rows)


@pytest.mark.parametrize('share', [0.1, 0.37, 0.9])
def test_a_sample_is_even(share: float):
  for texts in (TEXTS, TEXTS[:200]):
    size = sum(map(len, tokenizer.sample_evenly(texts, share)))
    assert abs(size - share * sum(map(len, texts))) <= max(map(len, TEXTS))
  assert all(list(tokenizer.sample_evenly(TEXTS, share)) == TEXTS for share in (1.0, 7.5))


def test_a_sample_of_long_texts_is_the_start_of_the_first():
  assert list(tokenizer.sample_evenly(['abcdefghij'] * 2, 0.2)) == ['abcd']
  assert list(tokenizer.sample_evenly(['', 'abcdefghij'], 0.2)) == ['', 'ab']
