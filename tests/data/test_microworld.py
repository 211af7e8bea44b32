"""The microworld: deterministic, of known entropy, and with tasks that words alone do not solve."""

import doctest
import itertools
import math
import random
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from minilm_jax.core.errors import InputError
from minilm_jax.data import microworld
from minilm_jax.data.microworld import Grammar

RULES = {
  'S': [(0.6, ('a', 'T', 'S')), (0.4, ('end',))],
  'T': [(0.1, ('b',)), (0.2, ('c', 'T')), (0.7, ('d', 'x', 'y'))],
}


def test_examples_in_docstrings():
  assert doctest.testmod(microworld).failed == 0


def test_probabilities_of_all_short_texts_are_those_of_the_draw():
  made = Grammar(RULES)
  source = random.Random(0)
  drawn = [' '.join(made.sample('S', source)) for _ in range(20_000)]
  for text in ('end', 'a b end', 'a d x y end', 'a c b end'):
    p = math.exp(made.log_probability('S', text.split()))
    assert abs(drawn.count(text) / len(drawn) - p) < 4 * math.sqrt(p * (1 - p) / len(drawn))


def test_expected_entropy_and_words_are_those_of_the_draw():
  made = Grammar(RULES)
  source = random.Random(1)
  texts = [made.sample('S', source) for _ in range(20_000)]
  surprise, words = (
    [-made.log_probability('S', text) for text in texts],
    [len(text) for text in texts],
  )
  for expected, seen in zip(made.compute_expectations('S'), (surprise, words), strict=True):
    assert abs(np.mean(seen) - expected) < 4 * np.std(seen) / math.sqrt(len(seen))


@pytest.mark.parametrize('text', ['', 'a', 'a b', 'end end', 'a d y x end', 'b', 'S'])
def test_what_is_no_text_has_no_probability(text: str):
  assert Grammar(RULES).log_probability('S', text.split()) == -math.inf


@pytest.mark.parametrize(
  'rules',
  [
    {'S': [(0.5, ('a',)), (0.6, ('b',))]},
    {'S': [(0.5, ('a',)), (0.5, ('a', 'b'))]},
    {'S': [(1.0, ('S', 'a'))]},
    {'S': [(1.0, ('a',)), (0.0, ('b',))]},
  ],
)
def test_what_is_not_simple_is_refused(rules: dict):
  with pytest.raises(ValueError):
    Grammar(rules)


LABELLED = ('acceptability', 'entailment', 'sentiment')


def texts(row: dict) -> list[str]:
  return [row[field] for field in ('sentence', 'sentence1', 'sentence2') if field in row]


def content(row: dict) -> set[str]:
  return set(texts(row)[0].split())


def test_examples_in_docstrings_microworld():
  assert doctest.testmod(microworld).failed == 0


def test_a_document_depends_on_seed_and_index_alone():
  assert list(microworld.generate_documents(3, 5)) == list(microworld.generate_documents(3, 20))[:5]
  assert list(microworld.generate_documents(3, 5)) != list(microworld.generate_documents(4, 5))
  program = 'from minilm_jax.data import microworld; print(*microworld.generate_documents(3, 5), microworld.entropy_rate(), sep="\\n")'
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  assert done.stdout.splitlines() == [
    *microworld.generate_documents(3, 5),
    str(microworld.entropy_rate()),
  ]


def test_documents_are_lower_case_sentences():
  for document in microworld.generate_documents(0, 200):
    assert re.fullmatch(r'([a-z]+ )+\.( ([a-z]+ )+\.)*', document)
    assert not re.search(r'\ba [aeiou]', document)


def test_words_are_inflect_and_none_has_two_parts_to_play():
  nouns = [noun for kind, members in microworld.NOUNS.items() for noun in (kind, *members)]
  plurals, verbs = map(microworld._inflect, nouns), microworld.VERBS
  words = [
    *nouns,
    *plurals,
    *verbs,
    *map(microworld._inflect, verbs),
    *itertools.chain(*microworld.ADJECTIVES),
    *itertools.chain(*microworld.ADVERBS),
    *microworld.PLAIN_ADJECTIVES,
    *microworld.PLAIN_ADVERBS,
  ]
  assert len(set(words)) == len(words)
  assert {'knives', 'cherries', 'birches', 'foxes', 'donkeys'} <= set(words)
  assert {'carries', 'sways', 'buzzes'} <= set(words)


def test_entropy_rate_is_the_mean_surprise():
  surprise = [
    (-microworld.log_probability(d), len(d.split())) for d in microworld.generate_documents(0, 3000)
  ]
  total, words = np.array(surprise).T
  rest = total - microworld.entropy_rate() * words
  assert abs(rest.mean()) < 4 * rest.std() / math.sqrt(len(rest))
  assert rest.std() / math.sqrt(len(rest)) < 0.02 * total.mean()  # the check is sharp


def test_the_place_and_the_mood_tell_what_follows():
  opening = 'it was a {} day at the {} .'
  rest = 'some foxes find these dogs . the pig is horrible .'
  likely = {
    (mood, place): microworld.log_probability(f'{opening.format(mood, place)} {rest}')
    for mood in ('good', 'bad')
    for place in microworld.PLACES
  }
  assert (
    likely['bad', 'farm'] > likely['good', 'farm'] + 2
    and likely['bad', 'farm'] > likely['bad', 'beach'] + 1
  )


@pytest.mark.parametrize(
  'sentence, good',
  [
    ('the dogs near the tree sleep .', True),
    ('the dogs near the tree sleeps .', False),
    ('the dog that sees the cats runs and growls .', True),
    ('the dog that sees the cats run .', False),
    ('every robin is a bird .', True),
    ('every robin is a tool .', False),
    ('many robin sing .', False),
    ('a pie eats a baker .', False),
    ('the the dog sleeps .', False),
    ('the dog sleeps', False),
    ('', False),
  ],
)
def test_only_sentences_of_the_language_have_probability(sentence: str, good: bool):
  document = f'it was a good day at the farm . {sentence}'
  assert (microworld.log_probability(document) > -math.inf) == good


def test_a_megabyte_takes_a_second():
  next(microworld.generate_documents(0, 1))
  start = time.process_time()  # whatever else the machine does
  size = sum(map(len, microworld.generate_documents(1, 1000)))
  assert size / (time.process_time() - start) > 1e6


@pytest.mark.parametrize('task', LABELLED)
def test_splits_share_no_sentence_whatever_the_seeds(task: str):
  drawn = {
    split: {
      texts(row)[0]
      for seed in (0, 1)
      for row in microworld.generate_examples(task, split, seed, 300)
    }
    for split in ('train', 'validation', 'test')
  }
  assert all(len(sentences) > 500 for sentences in drawn.values())
  assert not any(a & b for a, b in itertools.combinations(drawn.values(), 2))


@pytest.mark.parametrize('task', LABELLED)
def test_examples_are_distinct_balanced_and_repeatable(task: str):
  rows = microworld.generate_examples(task, 'train', 0, 400)
  assert rows == microworld.generate_examples(task, 'train', 0, 400) and rows[
    :50
  ] == microworld.generate_examples(task, 'train', 0, 50)
  assert [row['idx'] for row in rows] == list(range(400)) and len(
    {texts(row)[0] for row in rows}
  ) == 400
  assert 0.4 < np.mean([row['label'] for row in rows]) < 0.6


def test_knowing_the_grammar_solves_acceptability():
  for row in microworld.generate_examples('acceptability', 'test', 0, 300):
    document = f'it was a good day at the farm . {row["sentence"]}'
    assert row['label'] == (microworld.log_probability(document) > -math.inf)


def test_knowing_the_kinds_solves_entailment():
  for row in microworld.generate_examples('entailment', 'test', 0, 300):
    ((noun, kind),) = [
      (a, b)
      for a, b in zip(row['sentence1'].split(), row['sentence2'].split(), strict=True)
      if a != b
    ]
    told = any(
      noun in (n, microworld._inflect(n))
      for k, members in microworld.NOUNS.items()
      if kind in (k, microworld._inflect(k))
      for n in members
    )
    assert row['label'] == (not told)


def test_knowing_the_words_of_feeling_solves_sentiment_and_they_are_new_in_test():
  feelings = [
    {*adjectives, *adverbs}
    for adjectives, adverbs in zip(microworld.ADJECTIVES, microworld.ADVERBS)
  ]
  seen = {}
  for split in ('train', 'validation', 'test'):
    rows = microworld.generate_examples('sentiment', split, 0, 300)
    assert all(
      content(row) & feelings[row['label']] and not content(row) & feelings[1 - row['label']]
      for row in rows
    )
    seen[split] = set().union(*map(content, rows)) & (feelings[0] | feelings[1])
  assert not seen['train'] & (seen['validation'] | seen['test'])
  assert seen['train'] | seen['test'] == feelings[0] | feelings[1]


@pytest.mark.parametrize('task', LABELLED)
def test_counts_of_words_and_pairs_do_not_solve_the_test_split(task: str):
  rows = {split: microworld.generate_examples(task, split, 0, 1000) for split in ('train', 'test')}
  lines = {
    split: [
      ' '.join(f'{i}{word}' for i, text in enumerate(texts(row)) for word in text.split())
      for row in part
    ]
    for split, part in rows.items()
  }
  counts = CountVectorizer(token_pattern=r'\S+', ngram_range=(1, 2)).fit(lines['train'])
  model = LogisticRegression(max_iter=1000)
  model.fit(counts.transform(lines['train']), [row['label'] for row in rows['train']])
  assert model.score(counts.transform(lines['test']), [row['label'] for row in rows['test']]) < 0.6


@pytest.mark.parametrize(
  'task, split, meant', [('sentimant', 'train', 'sentiment'), ('sentiment', 'tests', 'test')]
)
def test_what_is_not_there_is_refused_with_what_was_meant(task: str, split: str, meant: str):
  with pytest.raises(InputError, match=f'did you mean .{meant}'):
    microworld.generate_examples(task, split, 0, 10)
