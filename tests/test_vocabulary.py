"""The reduced language: nothing outside the list is kept, the paper's rules count as in the paper, each word is seen."""

import gzip
import json
import pickle
import random
import re

import pytest

from minilm_jax.config import VocabularyConfig
from minilm_jax.errors import InputError
from minilm_jax.language import documents, vocabulary

WORDS = frozenset('the dog cat ran and saw number dont i a it was big said mr smith'.split())
LIST = vocabulary.WordList(WORDS, 'test', '')
PAPER_LIST = 'aochildes/AOChildes_word_frequency.csv'


def rules(counting: str = 'honey', sentence: int = 2, words: int = 6, stride: int = 2,
          counted: int = 3) -> VocabularyConfig:
  return VocabularyConfig('', 0, counting, ('sentences', 'spans'), sentence, words, stride, counted)


def sentences(text: str) -> list[str]:
  """All sentences, also those of marks alone, which no recipe can ask for."""
  config = rules()
  object.__setattr__(config, 'sentence_words', -1)
  return vocabulary.Filter(None, config).kept(text).sentences


def honey_words(text: str) -> list[str]:
  """The paper's rule on a whole text at once, step by step."""
  text = text.lower().replace('-', ' ').replace('@,@', '#NUMBER').replace('@.@', '#NUMBER')
  text = re.sub(r'http\S*', '#HLINK', re.sub(r'\b\d+', '#NUMBER ', text))
  return re.findall(r'(?u)\b\w\w+\b', text.lower())


def noise(seed: int, size: int) -> str:
  """Words inside and outside the list, in capitals, with marks, digits, hyphens and white space anywhere."""
  dice = random.Random(seed)
  pieces = [*sorted(WORDS), 'wolf', 'Łódź', "don't", 'x', '1,000', '3rd', 'http://a.b-c', '@,@', '-', '…', '_', '²']
  ends = [' ', ' ', ' ', ' ', '  ', '\n', '. ', '." ', ', ', '-', "'s ", '! ', '\t', '\u00a0']
  return ''.join(dice.choice((str, str.upper, str.title))(dice.choice(pieces)) + dice.choice(ends) for _ in range(size))


@pytest.mark.parametrize('seed', range(20))
def test_fields_one_by_one_count_as_the_rule_on_the_whole_text(seed):
  text = noise(seed, 200)
  found = [word for field in text.split() for word in vocabulary.counted_words(field, 'honey')]
  assert found == honey_words(text)


@pytest.mark.parametrize('seed', range(20))
def test_the_passes_keep_what_a_search_word_by_word_keeps(seed):
  text, config = noise(seed, 300), rules()
  kept = vocabulary.Filter(LIST, config).kept(text)

  def good(stretch: str, more_than: int) -> bool:
    words = honey_words(stretch)
    return len(words) > more_than and WORDS.issuperset(words)

  fields = text.split()
  windows = [' '.join(fields[i:i + config.span_words]) for i in range(0, len(fields), config.span_stride)]
  assert kept.spans == [window.lower() for window in windows if good(window, config.span_counted)]
  assert kept.sentences == [one for one in sentences(text) if good(one, config.sentence_words)]
  assert ' '.join(sentences(text)) == ' '.join(text.lower().split())  # nothing is lost between sentences
  counts = kept.counts
  for kind, items in (('sentences', kept.sentences), ('spans', kept.spans)):
    assert counts[f'{kind}_kept'] == len(items)
    assert counts[f'{kind}_words'] == sum(len(honey_words(item)) for item in items)
    assert counts[f'{kind}_read'] == sum(counts[f'{kind}_{end}'] for end in ('kept', 'out_of_vocabulary', 'short'))
  assert counts['words_read'] == len(honey_words(text))


def test_a_full_cache_changes_nothing(monkeypatch):
  text = noise(0, 400)
  expected = vocabulary.Filter(LIST, rules()).kept(text)
  monkeypatch.setattr(vocabulary, '_FIELDS', 3)
  assert vocabulary.Filter(LIST, rules()).kept(text) == expected


def test_without_a_list_only_length_counts():
  kept = vocabulary.Filter(None, rules(sentence=3)).kept('Wolves howl. Wolves howl at night, http://a.b and 7.')
  assert kept.sentences == ['wolves howl at night, http://a.b and 7.']


def test_the_plain_rule_knows_apostrophes_numbers_and_single_letters():
  keep = vocabulary.Filter(LIST, rules('plain', sentence=0)).kept
  assert keep("I don't. I don’t. I dont. I don'x. I 3.14, 7! I 3rd.").sentences == [
      "i don't.", 'i don’t.', 'i dont.', 'i 3.14, 7!']
  assert keep("I saw a cat.").counts['sentences_words'] == 4
  assert keep('b saw a cat.').sentences == []


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
  words = vocabulary.Filter(LIST, rules())
  size, kept = len(pickle.dumps(words)), words.kept(noise(1, 500))
  assert len(pickle.dumps(words)) == size
  assert pickle.loads(pickle.dumps(words)).kept(noise(1, 500)) == kept


def test_most_frequent_does_not_depend_on_order():
  counts = {'the': 5, 'cat': 2, 'dog': 2, 'ant': 1}
  first = vocabulary.most_frequent(counts, 2)
  assert first == vocabulary.most_frequent(dict(reversed(counts.items())), 2) and first.words == {'the', 'cat'}


def test_a_list_is_the_same_in_every_form(tmp_path):
  words = ['nan', 'dog', 'TRUE', 'größe']
  (tmp_path / 'a.txt').write_text('\n'.join(words) + '\n\n')
  (tmp_path / 'b.csv.gz').write_bytes(gzip.compress('\n'.join(f'1,{word}' for word in ['word', *words]).encode()))
  (tmp_path / 'c.jsonl').write_text(''.join(json.dumps({'word': word}) + '\n' for word in reversed(words)))
  lists = [vocabulary.load(tmp_path / name) for name in ('a.txt', 'b.csv.gz', 'c.jsonl')]
  assert all(one.words == set(words) and one.sha256 == lists[0].sha256 for one in lists)
  assert [one.name for one in lists] == ['a.txt', 'b.csv.gz', 'c.jsonl']


@pytest.mark.parametrize('name, text, said', [
    ('a.txt', '\n', 'no word in it'), ('a.txt', 'dog\nbig cat\n', 'line 2 is more than a word'),
    ('a.csv', 'term\ndog\n', 'row 1 has no word: term'), ('a.txt', 'd\0g', 'NUL'), ('none', None, 'no such file')])
def test_what_is_no_list_is_refused(tmp_path, name, text, said):
  if text is not None:
    (tmp_path / name).write_text(text)
  with pytest.raises(InputError, match=said):
    vocabulary.load(tmp_path / name)


def test_the_list_of_the_paper(data):
  words = vocabulary.load(data / PAPER_LIST).words
  assert len(words) == 21_037
  assert {'nan', 'TRUE', 'FALSE', 'okay', 'gonna', 'youre', 'im', 'wanna', 'number'} <= words
  assert not words & {'children', 'women', 'mom', 'cookie', 'john', 'true', 'false'}


GLUE = {  # train, validation, test (paper 1, the filter's own counts)
    'cola': (5259, 653, 681), 'sst2': (21493, 113, 271), 'stsb': (2122, 611, 731), 'rte': (150, 14, 202),
    'wnli': (277, 39, 40), 'mrpc': (392, 39, 159), 'qnli': (None, 510, 504)}


@pytest.mark.parametrize('task', GLUE)
def test_the_filter_of_glue_keeps_what_the_paper_kept(data, task):
  words = vocabulary.load(data / PAPER_LIST).words
  for split, there in zip(('train', 'validation', 'test'), GLUE[task], strict=True):
    if there is not None:
      rows = documents.table_rows(str(data / 'glue' / task / f'{split}.jsonl.gz'), 'strict')
      asked = (row['sentence'] if 'sentence' in row else f'{row["sentence1"]} {row["sentence2"]}' for row in rows)
      assert sum(vocabulary.glue_inside(text, words) for text in asked) == there, split


def test_real_text_keeps_its_counted_words(data):
  """Fairy tales: a change of these numbers is a change of what every corpus holds."""
  config = documents.DocumentsConfig(('-',), 'text', 'train', '', 'paragraphs', 'strict', 10_000_000)
  words = vocabulary.Filter(vocabulary.load(data / PAPER_LIST), rules(sentence=5, words=110, stride=30, counted=40))
  tales = documents.Source('tales', str(data / 'fairy_tales' / 'fairytaleqa_stories.txt.xz'), 'txt')
  kept = [words.kept(text).counts for text in documents.read(tales, config)]
  total = {name: sum(counts[name] for counts in kept) for name in kept[0]}
  assert (len(kept), total['sentences_kept'], total['spans_kept'], total['sentences_words']) == (278, 12514, 650, 208482)
