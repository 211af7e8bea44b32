"""The passes: nothing outside the list is kept, sentences end where a reader ends them, each word
is seen.
"""

import functools
import gzip
import json
import operator
import pickle

import pytest

from minilm_jax.core import corpus_config
from minilm_jax.core.corpus_config import VocabularyConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import documents, filters
from tests.word_lists import LIST, PAPER_LIST, WORDS, draw_text, split_honey_words


def rules(
  counting: str = 'paper1', sentence: int = 2, words: int = 6, stride: int = 2, counted: int = 3
) -> VocabularyConfig:
  return VocabularyConfig('', 0, counting, ('sentences', 'spans'), sentence, words, stride, counted)


def kept_of(
  text: str, words: filters.WordList | None, config: VocabularyConfig
) -> dict[str, list[str]]:
  """The kept items of one document, by kind."""
  kept = filters.Filter(words, config).kept([text])
  return {
    kind: [item for _, found, item in kept.items if found == kind]
    for kind in ('sentences', 'spans')
  }


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
  windows = [
    ' '.join(fields[i : i + config.span_words]) for i in range(0, len(fields), config.span_stride)
  ]
  assert kept['spans'] == [
    window.lower() for window in windows if good(window, config.min_words_per_span)
  ]
  assert kept['sentences'] == [
    one for one in sentences(text) if good(one, config.min_words_per_sentence)
  ]
  # nothing is lost between sentences
  assert ' '.join(sentences(text)) == ' '.join(text.lower().split())
  counts = filters.Filter(LIST, config).kept([text]).counts
  for kind, items in kept.items():
    assert counts[f'{kind}_kept'] == len(items)
    assert counts[f'{kind}_words'] == sum(len(split_honey_words(item)) for item in items)
    assert counts[f'{kind}_read'] == sum(
      counts[f'{kind}_{end}'] for end in ('kept', 'out_of_vocabulary', 'short')
    )
  assert counts['words_read'] == len(split_honey_words(text))


def test_a_full_cache_changes_nothing(monkeypatch):
  text = draw_text(0, 400)
  expected = filters.Filter(LIST, rules()).kept([text])
  monkeypatch.setattr(filters, '_FIELDS', 3)
  assert filters.Filter(LIST, rules()).kept([text]) == expected


def test_documents_side_by_side_are_kept_as_each_alone():
  texts = [
    '',
    *(draw_text(seed, 7 * seed) for seed in range(20)),
    ' \n ',
    '...',
    'the dog ran." )',
    '',
  ]
  words = filters.Filter(LIST, rules())
  alone, together = [words.kept([text]) for text in texts], words.kept(texts)
  assert together.items == [
    (i, kind, item) for i, one in enumerate(alone) for _, kind, item in one.items
  ]
  assert together.counts == functools.reduce(operator.add, (one.counts for one in alone))


def test_without_a_list_only_length_counts():
  kept = kept_of('Wolves howl. Wolves howl at night, http://a.b and 7.', None, rules(sentence=3))
  assert kept['sentences'] == ['wolves howl at night, http://a.b and 7.']


def test_the_plain_rule_knows_apostrophes_numbers_and_single_letters():
  config = rules('plain', sentence=0)
  assert kept_of("I don't. I don’t. I dont. I don'x. I 3.14, 7! I 3rd.", LIST, config)[
    'sentences'
  ] == ["i don't.", 'i don’t.', 'i dont.', 'i 3.14, 7!']
  assert filters.Filter(LIST, config).kept(['I saw a cat.']).counts['sentences_words'] == 4
  assert kept_of('b saw a cat.', LIST, config)['sentences'] == []


@pytest.mark.parametrize(
  'text, there',
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
  ],
)
def test_sentences_end_where_a_reader_would_end_them(text, there):
  assert len(sentences(text)) == there, sentences(text)


def test_a_filter_goes_to_another_process_without_its_cache():
  words = filters.Filter(LIST, rules())
  size, kept = len(pickle.dumps(words)), words.kept([draw_text(1, 500)])
  assert len(pickle.dumps(words)) == size
  assert pickle.loads(pickle.dumps(words)).kept([draw_text(1, 500)]) == kept


def test_real_text_keeps_its_counted_words(data):
  """Fairy tales: a change of these numbers is a change of what every corpus holds."""
  config = corpus_config.DocumentsConfig(
    ('-',), 'text', 'train', '', 'paragraphs', 'strict', 10_000_000
  )
  words = filters.Filter(
    filters.load_word_list(data / PAPER_LIST), rules(sentence=5, words=110, stride=30, counted=40)
  )
  tales = documents.Source('tales', str(data / 'fairy_tales' / 'fairytaleqa_stories.txt.xz'), 'txt')
  texts = list(documents.read_documents(tales, config))
  total = words.kept(texts).counts
  assert (len(texts), total['sentences_kept'], total['spans_kept'], total['sentences_words']) == (
    278,
    12514,
    650,
    208482,
  )


def test_a_document_is_kept_whole_or_not_at_all():
  config = VocabularyConfig('', 0, 'paper1', ('documents',), 2, 6, 2, 3)
  inside, outside, marks = 'The  Dog\n\nsaw the cat. ', 'The dog saw a zygote.', '? !'
  words = filters.WordList(frozenset(('the', 'dog', 'saw', 'cat')), 'few', '')
  kept = filters.Filter(words, config).kept([inside, outside, marks, inside])
  assert kept.items == [
    (0, 'documents', 'the dog saw the cat.'),
    (3, 'documents', 'the dog saw the cat.'),
  ]
  assert [
    kept.counts[f'documents_{name}'] for name in ('read', 'kept', 'out_of_vocabulary', 'short')
  ] == [4, 2, 1, 1]
  both = filters.Filter(
    None, VocabularyConfig('', 0, 'paper1', ('sentences', 'documents'), 2, 6, 2, 3)
  ).kept([inside] * 2)
  assert [(number, kind) for number, kind, _ in both.items] == [
    (0, 'documents'),
    (0, 'sentences'),
    (1, 'documents'),
    (1, 'sentences'),
  ]


@pytest.mark.parametrize('seed', range(20))
def test_fields_one_by_one_count_as_the_rule_on_the_whole_text(seed):
  text = draw_text(seed, 200)
  found = [word for field in text.split() for word in filters.extract_words(field, 'paper1')]
  assert found == split_honey_words(text)


def test_most_frequent_does_not_depend_on_order():
  counts = {'the': 5, 'cat': 2, 'dog': 2, 'ant': 1}
  first = filters.most_frequent_words(counts, 2)
  assert first == filters.most_frequent_words(
    dict(reversed(counts.items())), 2
  ) and first.words == {'the', 'cat'}


def test_a_list_is_the_same_in_every_form(tmp_path):
  words = ['nan', 'dog', 'TRUE', 'größe']
  (tmp_path / 'a.txt').write_text('\n'.join(words) + '\n\n')
  (tmp_path / 'b.csv.gz').write_bytes(
    gzip.compress('\n'.join(f'1,{word}' for word in ['word', *words]).encode())
  )
  (tmp_path / 'c.jsonl').write_text(
    ''.join(json.dumps({'word': word}) + '\n' for word in reversed(words))
  )
  lists = [filters.load_word_list(tmp_path / name) for name in ('a.txt', 'b.csv.gz', 'c.jsonl')]
  assert all(one.words == set(words) and one.sha256 == lists[0].sha256 for one in lists)
  assert [one.name for one in lists] == ['a.txt', 'b.csv.gz', 'c.jsonl']


@pytest.mark.parametrize(
  'name, text, said',
  [
    ('a.txt', '\n', 'no word in it'),
    ('a.txt', 'dog\nbig cat\n', 'line 2 is more than a word'),
    ('a.csv', 'term\ndog\n', 'row 1 has no word: term'),
    ('a.txt', 'd\0g', 'NUL'),
    ('none', None, 'no such file'),
  ],
)
def test_what_is_no_list_is_refused(tmp_path, name, text, said):
  if text is not None:
    (tmp_path / name).write_text(text)
  with pytest.raises(InputError, match=said):
    filters.load_word_list(tmp_path / name)


def test_the_list_of_the_paper(data):
  words = filters.load_word_list(data / PAPER_LIST).words
  assert len(words) == 21_037
  assert {'nan', 'TRUE', 'FALSE', 'okay', 'gonna', 'youre', 'im', 'wanna', 'number'} <= words
  assert not words & {'children', 'women', 'mom', 'cookie', 'john', 'true', 'false'}


GLUE = {  # train, validation, test (paper 1, the filter's own counts)
  'cola': (5259, 653, 681),
  'sst2': (21493, 113, 271),
  'stsb': (2122, 611, 731),
  'rte': (150, 14, 202),
  'wnli': (277, 39, 40),
  'mrpc': (392, 39, 159),
  'qnli': (None, 510, 504),
}


@pytest.mark.parametrize('task', GLUE)
def test_the_filter_of_glue_keeps_what_the_paper_kept(data, task):
  words = filters.load_word_list(data / PAPER_LIST).words
  for split, there in zip(('train', 'validation', 'test'), GLUE[task], strict=True):
    if there is not None:
      rows = documents.read_table_rows(str(data / 'glue' / task / f'{split}.jsonl.gz'), 'strict')
      asked = (
        row['sentence'] if 'sentence' in row else f'{row["sentence1"]} {row["sentence2"]}'
        for row in rows
      )
      assert sum(filters.is_inside_word_list(text, words) for text in asked) == there, split
