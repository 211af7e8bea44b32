"""Filters: selected text stays inside the word list, and sentences end at their end marks."""

import dataclasses
import functools
import gzip
import json
import operator
import pickle
import random
import re

import pytest

from minilm_jax.core.corpus_config import DocumentsConfig, VocabularyConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import documents, filters

WORDS = frozenset('the dog cat ran and saw number dont i a it was big said mr smith'.split())
LIST = filters.WordList(WORDS, 'test', '')
PAPER_LIST = 'aochildes/AOChildes_word_frequency.csv'
RULES = VocabularyConfig(
  min_words_per_sentence=2, span_words=6, span_stride=2, min_words_per_span=3
)


def split_paper1_words(text: str) -> list[str]:
  """Applies the rule of paper 1 to a text at once, step by step."""
  text = text.lower().replace('-', ' ').replace('@,@', '#NUMBER').replace('@.@', '#NUMBER')
  text = re.sub(r'http\S*', '#HLINK', re.sub(r'\b\d+', '#NUMBER ', text))
  return re.findall(r'(?u)\b\w\w+\b', text.lower())


def draw_text(seed: int, size: int) -> str:
  """Returns words inside and outside the list with capitals, marks, digits and white space."""
  dice = random.Random(seed)
  unlisted = "wolf Łódź don't x 1,000 3rd http://a.b-c @,@ - … _ ²".split()
  pieces, styles = [*sorted(WORDS), *unlisted], (str, str.upper, str.title)
  ends = [' ', ' ', ' ', ' ', '  ', '\n', '. ', '." ', ', ', '-', "'s ", '! ', '\t', '\u00a0']
  return ''.join(dice.choice(styles)(dice.choice(pieces)) + dice.choice(ends) for _ in range(size))


def apply(
  text: str, words: filters.WordList | None = LIST, config: VocabularyConfig = RULES
) -> dict[str, list[str]]:
  """Returns the selected items of one document by kind."""
  result = filters.Filter(words, config).apply([text])
  return {
    kind: [item for _, item_kind, item in result.items if item_kind == kind]
    for kind in ('sentences', 'spans')
  }


def split_sentences(text: str) -> list[str]:
  """Returns all sentences, even without counted words, which no valid recipe selects."""
  config = dataclasses.replace(RULES)
  object.__setattr__(config, 'min_words_per_sentence', -1)
  return apply(text, None, config)['sentences']


@pytest.mark.parametrize('seed', range(20))
def test_filters_equal_a_search_word_by_word(seed):
  text = draw_text(seed, 300)
  selected, fields = apply(text), text.split()

  def is_inside(segment: str, min_words: int) -> bool:
    words = split_paper1_words(segment)
    return len(words) > min_words and WORDS.issuperset(words)

  windows = [
    ' '.join(fields[i : i + RULES.span_words]) for i in range(0, len(fields), RULES.span_stride)
  ]
  assert selected['spans'] == [
    window.lower() for window in windows if is_inside(window, RULES.min_words_per_span)
  ]
  sentences = split_sentences(text)
  assert selected['sentences'] == [
    sentence for sentence in sentences if is_inside(sentence, RULES.min_words_per_sentence)
  ]
  assert ' '.join(sentences) == ' '.join(text.lower().split())
  counts = filters.Filter(LIST, RULES).apply([text]).counts
  for kind, items in selected.items():
    assert counts[f'{kind}_kept'] == len(items)
    assert counts[f'{kind}_words'] == sum(len(split_paper1_words(item)) for item in items)
    assert counts[f'{kind}_read'] == sum(
      counts[f'{kind}_{end}'] for end in ('kept', 'out_of_vocabulary', 'short')
    )
  assert counts['words_read'] == len(split_paper1_words(text))
  # Fields alone give the words of the rule on the text.
  words = [word for field in fields for word in filters.extract_words(field, 'paper1')]
  assert words == split_paper1_words(text)


def test_a_full_cache_changes_nothing(monkeypatch):
  text = draw_text(0, 400)
  expected = filters.Filter(LIST, RULES).apply([text])
  monkeypatch.setattr(filters, '_MAX_CACHED_FIELDS', 3)
  assert filters.Filter(LIST, RULES).apply([text]) == expected


def test_the_result_for_a_document_does_not_depend_on_its_batch():
  drawn = [draw_text(seed, 7 * seed) for seed in range(20)]
  texts = ['', *drawn, ' \n ', '...', 'the dog ran." )', '']
  text_filter = filters.Filter(LIST, RULES)
  singles, batch = [text_filter.apply([text]) for text in texts], text_filter.apply(texts)
  assert batch.items == [
    (i, kind, item) for i, result in enumerate(singles) for _, kind, item in result.items
  ]
  assert batch.counts == functools.reduce(operator.add, (result.counts for result in singles))
  assert text_filter.apply([]).items == []


def test_without_a_list_only_length_counts():
  config = dataclasses.replace(RULES, min_words_per_sentence=3)
  selected = apply('Wolves howl. Wolves howl at night, http://a.b and 7.', None, config)
  assert selected['sentences'] == ['wolves howl at night, http://a.b and 7.']


def test_the_plain_rule_knows_apostrophes_numbers_and_single_letters():
  config = dataclasses.replace(RULES, word_rule='plain', min_words_per_sentence=0)
  text = "I don't. I don’t. I dont. I don'x. I 3.14, 7! I 3rd."
  expected = ["i don't.", 'i don’t.', 'i dont.', 'i 3.14, 7!']
  assert apply(text, config=config)['sentences'] == expected
  assert filters.Filter(LIST, config).apply(['I saw a cat.']).counts['sentences_words'] == 4
  assert apply('b saw a cat.', config=config)['sentences'] == []


@pytest.mark.parametrize(
  'text, count',
  [
    ('Mr. Smith saw Dr. J. R. Jones. He ran.', 2),
    ('"Stop!" he said. "Why?" She left.', 3),
    ('He said: “Come here!” Nobody came. (He left.) She too.', 4),
    ('It cost 3.5. Then it fell... and rose. U.S. Steel ran.', 3),
    ('You and I. We ran.', 2),
    ('is it ? yes it is . he said no !', 3),
    ("Well , he ran . `` Stop ! '' he said . it was late .", 3),
    ('a title\nand a line', 2),
    ('', 0),
    ('राम घर गया। सीता भी गई। कौन आया?', 3),
    ('他 来 了 。 她 走 了 ！ 谁 ？', 3),
    ('「来た。」 彼は言った。', 2),
    ('هل جاء؟ نعم جاء.', 2),
  ],
)
def test_texts_have_their_number_of_sentences(text, count):
  assert len(split_sentences(text)) == count


def test_a_pickled_filter_has_no_cache():
  text_filter = filters.Filter(LIST, RULES)
  size, result = len(pickle.dumps(text_filter)), text_filter.apply([draw_text(1, 500)])
  assert len(pickle.dumps(text_filter)) == size
  assert pickle.loads(pickle.dumps(text_filter)).apply([draw_text(1, 500)]) == result


def test_counts_of_real_text_are_fixed(data):
  text_filter = filters.Filter(filters.load_word_list(data / PAPER_LIST), VocabularyConfig())
  tales = documents.Source('tales', str(data / 'fairy_tales/fairytaleqa_stories.txt.xz'), 'txt')
  texts = list(documents.read_documents(tales, DocumentsConfig(('-',))))
  counts = text_filter.apply(texts).counts
  names = ('sentences_kept', 'spans_kept', 'sentences_words')
  assert (len(texts), *(counts[name] for name in names)) == (278, 12514, 650, 208482)


@pytest.mark.parametrize('rule', ['paper1', 'plain'])
def test_a_decomposed_accent_is_part_of_its_letter(rule: str):
  assert filters.extract_words('cafe\u0301', rule) == ('caf\u00e9',)
  assert filters.is_inside_word_list('Cafe\u0301', frozenset(['caf\u00e9']))


@pytest.mark.parametrize('rule', ['paper1', 'plain'])
@pytest.mark.parametrize('word', ['हिन्दी', 'বাংলা', 'తెలుగు', 'العَرَبِيَّة', 'x\u0302y', 'größe'])
def test_words_contain_combining_marks(word: str, rule: str):
  assert filters.extract_words(word, rule) == (word,)
  assert filters.extract_words(f'({word}), {word}!', rule) == (word, word)


def test_a_lone_mark_is_no_word():
  assert filters.extract_words('\u0941', 'plain') == filters.extract_words('\u0941', 'paper1') == ()


def test_documents_are_selected_as_a_unit():
  config = dataclasses.replace(RULES, filters=('documents',))
  inside, outside, marks = 'The  Dog\n\nsaw the cat. ', 'The dog saw a zygote.', '? !'
  words = filters.WordList(frozenset(('the', 'dog', 'saw', 'cat')), 'few', '')
  result = filters.Filter(words, config).apply([inside, outside, marks, inside])
  assert result.items == [(i, 'documents', 'the dog saw the cat.') for i in (0, 3)]
  names = ('read', 'kept', 'out_of_vocabulary', 'short')
  assert [result.counts[f'documents_{name}'] for name in names] == [4, 2, 1, 1]
  config = dataclasses.replace(RULES, filters=('sentences', 'documents'))
  result = filters.Filter(None, config).apply([inside] * 2)
  assert [(number, kind) for number, kind, _ in result.items] == [
    (number, kind) for number in (0, 1) for kind in ('documents', 'sentences')
  ]


def test_most_frequent_does_not_depend_on_order():
  counts = {'the': 5, 'cat': 2, 'dog': 2, 'ant': 1}
  first = filters.select_frequent_words(counts, 2)
  assert first == filters.select_frequent_words(dict(reversed(counts.items())), 2)
  assert first.words == {'the', 'cat'}


def test_a_word_list_does_not_depend_on_the_format(tmp_path):
  words = ['nan', 'dog', 'TRUE', 'größe']
  table = '\n'.join(f'1,{word}' for word in ['word', *words])
  rows = ''.join(json.dumps({'word': word}) + '\n' for word in reversed(words))
  (tmp_path / 'a.txt').write_text('\n'.join(words) + '\n\n')
  (tmp_path / 'b.csv.gz').write_bytes(gzip.compress(table.encode()))
  (tmp_path / 'c.jsonl').write_text(rows)
  names = ('a.txt', 'b.csv.gz', 'c.jsonl')
  lists = [filters.load_word_list(tmp_path / name) for name in names]
  assert all(word_list.words == set(words) for word_list in lists)
  assert len({word_list.sha256 for word_list in lists}) == 1
  assert tuple(word_list.name for word_list in lists) == names


@pytest.mark.parametrize(
  'name, text, message',
  [
    ('a.txt', '\n', 'a.txt'),
    ('a.txt', 'dog\nbig cat\n', "line 2 .*'big cat'"),
    ('a.csv', 'term\ndog\n', 'row 1 .*term'),
    ('a.txt', 'dog\nhou\0se\nbird\n', 'NUL'),
    ('none', None, 'none'),
  ],
)
def test_files_that_are_not_word_lists_are_refused(tmp_path, name, text, message):
  if text is not None:
    (tmp_path / name).write_text(text)
  with pytest.raises(InputError, match=message):
    filters.load_word_list(tmp_path / name)


def test_the_word_list_of_paper_1_is_read(data):
  words = filters.load_word_list(data / PAPER_LIST).words
  assert len(words) == 21_037
  assert set('nan TRUE FALSE okay gonna youre im wanna number'.split()) <= words
  assert not words & set('children women mom cookie john true false'.split())
