"""The passes: nothing outside the list is kept, sentences end where a reader ends them, each word is seen."""

import functools
import operator
import pickle

import pytest

from minilm_jax.corpus_config import VocabularyConfig
from minilm_jax.language import documents, passes, vocabulary
from tests.word_lists import LIST, PAPER_LIST, WORDS, draw_text, split_honey_words


def rules(counting: str = 'paper1', sentence: int = 2, words: int = 6, stride: int = 2,
          counted: int = 3) -> VocabularyConfig:
  return VocabularyConfig('', 0, counting, ('sentences', 'spans'), sentence, words, stride, counted)


def kept_of(text: str, words: vocabulary.WordList | None, config: VocabularyConfig) -> dict[str, list[str]]:
  """The kept items of one document, by kind."""
  kept = passes.Filter(words, config).kept([text])
  return {kind: [item for _, found, item in kept.items if found == kind] for kind in ('sentences', 'spans')}


def sentences(text: str) -> list[str]:
  """All sentences, also those of marks alone, which no recipe can ask for."""
  config = rules()
  object.__setattr__(config, 'min_words_per_sentence', -1)
  return kept_of(text, None, config)['sentences']


@pytest.mark.parametrize('seed', range(20))
def test_the_passes_keep_what_a_search_word_by_word_keeps(seed):
  text, config = draw_text(seed, 300), rules()
  kept = kept_of(text, LIST, config)

  def good(stretch: str, more_than: int) -> bool:
    words = split_honey_words(stretch)
    return len(words) > more_than and WORDS.issuperset(words)

  fields = text.split()
  windows = [' '.join(fields[i:i + config.span_words]) for i in range(0, len(fields), config.span_stride)]
  assert kept['spans'] == [window.lower() for window in windows if good(window, config.min_words_per_span)]
  assert kept['sentences'] == [one for one in sentences(text) if good(one, config.min_words_per_sentence)]
  assert ' '.join(sentences(text)) == ' '.join(text.lower().split())  # nothing is lost between sentences
  counts = passes.Filter(LIST, config).kept([text]).counts
  for kind, items in kept.items():
    assert counts[f'{kind}_kept'] == len(items)
    assert counts[f'{kind}_words'] == sum(len(split_honey_words(item)) for item in items)
    assert counts[f'{kind}_read'] == sum(counts[f'{kind}_{end}'] for end in ('kept', 'out_of_vocabulary', 'short'))
  assert counts['words_read'] == len(split_honey_words(text))


def test_a_full_cache_changes_nothing(monkeypatch):
  text = draw_text(0, 400)
  expected = passes.Filter(LIST, rules()).kept([text])
  monkeypatch.setattr(passes, '_FIELDS', 3)
  assert passes.Filter(LIST, rules()).kept([text]) == expected


def test_documents_side_by_side_are_kept_as_each_alone():
  texts = ['', *(draw_text(seed, 7 * seed) for seed in range(20)), ' \n ', '...', 'the dog ran." )', '']
  words = passes.Filter(LIST, rules())
  alone, together = [words.kept([text]) for text in texts], words.kept(texts)
  assert together.items == [(i, kind, item) for i, one in enumerate(alone) for _, kind, item in one.items]
  assert together.counts == functools.reduce(operator.add, (one.counts for one in alone))


def test_without_a_list_only_length_counts():
  kept = kept_of('Wolves howl. Wolves howl at night, http://a.b and 7.', None, rules(sentence=3))
  assert kept['sentences'] == ['wolves howl at night, http://a.b and 7.']


def test_the_plain_rule_knows_apostrophes_numbers_and_single_letters():
  config = rules('plain', sentence=0)
  assert kept_of("I don't. I don’t. I dont. I don'x. I 3.14, 7! I 3rd.", LIST, config)['sentences'] == [
      "i don't.", 'i don’t.', 'i dont.', 'i 3.14, 7!']
  assert passes.Filter(LIST, config).kept(['I saw a cat.']).counts['sentences_words'] == 4
  assert kept_of('b saw a cat.', LIST, config)['sentences'] == []


@pytest.mark.parametrize('text, there', [
    ('Mr. Smith saw Dr. J. R. Jones. He ran.', 2),
    ('"Stop!" he said. "Why?" She left.', 3),
    ('He said: “Come here!” Nobody came. (He left.) She too.', 4),
    ('It cost 3.5. Then it fell... and rose. U.S. Steel ran.', 3),
    ('You and I. We ran.', 2),
    ('is it ? yes it is . he said no !', 3),
    ("Well , he ran . `` Stop ! '' he said . it was late .", 3),
    ('a title\nand a line', 2),
    ('', 0),
])
def test_sentences_end_where_a_reader_would_end_them(text, there):
  assert len(sentences(text)) == there, sentences(text)


def test_a_filter_goes_to_another_process_without_its_cache():
  words = passes.Filter(LIST, rules())
  size, kept = len(pickle.dumps(words)), words.kept([draw_text(1, 500)])
  assert len(pickle.dumps(words)) == size
  assert pickle.loads(pickle.dumps(words)).kept([draw_text(1, 500)]) == kept


def test_real_text_keeps_its_counted_words(data):
  """Fairy tales: a change of these numbers is a change of what every corpus holds."""
  config = documents.DocumentsConfig(('-',), 'text', 'train', '', 'paragraphs', 'strict', 10_000_000)
  words = passes.Filter(vocabulary.load(data / PAPER_LIST), rules(sentence=5, words=110, stride=30, counted=40))
  tales = documents.Source('tales', str(data / 'fairy_tales' / 'fairytaleqa_stories.txt.xz'), 'txt')
  texts = list(documents.read(tales, config))
  total = words.kept(texts).counts
  assert (len(texts), total['sentences_kept'], total['spans_kept'], total['sentences_words']) == (278, 12514, 650, 208482)


def test_a_document_is_kept_whole_or_not_at_all():
  config = VocabularyConfig('', 0, 'paper1', ('documents',), 2, 6, 2, 3)
  inside, outside, marks = 'The  Dog\n\nsaw the cat. ', 'The dog saw a zygote.', '? !'
  words = vocabulary.WordList(frozenset(('the', 'dog', 'saw', 'cat')), 'few', '')
  kept = passes.Filter(words, config).kept([inside, outside, marks, inside])
  assert kept.items == [(0, 'documents', 'the dog saw the cat.'), (3, 'documents', 'the dog saw the cat.')]
  assert [kept.counts[f'documents_{name}'] for name in ('read', 'kept', 'out_of_vocabulary', 'short')] == [4, 2, 1, 1]
  both = passes.Filter(None, VocabularyConfig('', 0, 'paper1', ('sentences', 'documents'), 2, 6, 2, 3)).kept([inside] * 2)
  assert [(number, kind) for number, kind, _ in both.items] == [
      (0, 'documents'), (0, 'sentences'), (1, 'documents'), (1, 'sentences')]
