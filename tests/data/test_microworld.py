"""The microworld: deterministic text, exact probabilities, tasks that word counts do not solve."""

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
from minilm_jax.data.microworld import MICROWORLD_TASKS, Grammar

RULES = {
  'S': [(0.6, ('a', 'T', 'S')), (0.4, ('end',))],
  'T': [(0.1, ('b',)), (0.2, ('c', 'T')), (0.7, ('d', 'x', 'y'))],
}


def compute_log_probability(document: str) -> float:
  """Returns the log-probability of a document in nats, or -inf outside the language."""
  words = [*document.split(' '), microworld.DOCUMENT_END]
  return microworld.build_grammar().compute_log_probability('DOCUMENT', words)


def test_probabilities_of_short_texts_are_their_frequencies():
  grammar, source = Grammar(RULES), random.Random(0)
  texts = [' '.join(grammar.sample('S', source)) for _ in range(20_000)]
  for text in ('end', 'a b end', 'a d x y end', 'a c b end'):
    p = math.exp(grammar.compute_log_probability('S', text.split()))
    assert abs(texts.count(text) / len(texts) - p) < 4 * math.sqrt(p * (1 - p) / len(texts))


@pytest.mark.parametrize('text', ['', 'a', 'a b', 'end end', 'a d y x end', 'b', 'S'])
def test_other_texts_have_probability_zero(text: str):
  assert Grammar(RULES).compute_log_probability('S', text.split()) == -math.inf


@pytest.mark.parametrize(
  'rules',
  [
    {'S': [(0.5, ('a',)), (0.6, ('b',))]},
    {'S': [(0.5, ('a',)), (0.5, ('a', 'b'))]},
    {'S': [(1.0, ('S', 'a'))]},
    {'S': [(1.0, ('a',)), (0.0, ('b',))]},
  ],
)
def test_a_grammar_that_is_not_simple_is_refused(rules: dict):
  with pytest.raises(ValueError):
    Grammar(rules)


def get_texts(row: dict) -> list[str]:
  return [row[field] for field in ('sentence', 'sentence1', 'sentence2') if field in row]


def test_a_document_depends_only_on_seed_and_index():
  documents = list(microworld.generate_documents(3, 5))
  assert documents == list(microworld.generate_documents(3, 20))[:5]
  assert documents != list(microworld.generate_documents(4, 5))
  program = 'from minilm_jax.data.microworld import *\nprint(*generate_documents(3, 5), sep="\\n")'
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  assert done.stdout.splitlines() == documents


def test_documents_are_lower_case_sentences():
  for document in microworld.generate_documents(0, 200):
    assert re.fullmatch(r'([a-z]+ )+\.( ([a-z]+ )+\.)*', document)
    assert not re.search(r'\ba [aeiou]', document)


def test_inflected_words_are_distinct():
  nouns = [noun for kind, members in microworld.NOUNS.items() for noun in (kind, *members)]
  inflected = [microworld._inflect(word) for word in (*nouns, *microworld.VERBS)]
  sides = itertools.chain(*microworld.ADJECTIVES, *microworld.ADVERBS)
  plain = (*microworld.PLAIN_ADJECTIVES, *microworld.PLAIN_ADVERBS)
  words = [*nouns, *microworld.VERBS, *inflected, *sides, *plain]
  assert len(set(words)) == len(words)
  assert set('knives cherries birches foxes donkeys carries sways buzzes'.split()) <= set(words)


def test_the_place_and_the_mood_change_probabilities():
  text = 'it was a {} day at the {} . some foxes find these dogs . the pig is horrible .'
  bad_farm, good_farm, bad_beach = (
    compute_log_probability(text.format(mood, place))
    for mood, place in (('bad', 'farm'), ('good', 'farm'), ('bad', 'beach'))
  )
  assert bad_farm > good_farm + 2 and bad_farm > bad_beach + 1


@pytest.mark.parametrize(
  'sentence, is_valid',
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
def test_only_valid_sentences_have_positive_probability(sentence: str, is_valid: bool):
  document = f'it was a good day at the farm . {sentence}'
  assert (compute_log_probability(document) > -math.inf) == is_valid


def test_a_megabyte_takes_a_second():
  next(microworld.generate_documents(0, 1))
  start = time.process_time()  # ignores other processes
  size = sum(map(len, microworld.generate_documents(1, 1000)))
  assert size / (time.process_time() - start) > 1e6


@pytest.mark.parametrize('task', MICROWORLD_TASKS)
def test_splits_share_no_sentence_for_any_seed(task: str):
  splits = []
  for split in ('train', 'validation', 'test'):
    rows = [r for seed in (0, 1) for r in microworld.generate_examples(task, split, seed, 300)]
    splits.append({get_texts(row)[0] for row in rows})
  assert all(len(sentences) > 500 for sentences in splits)
  assert not any(a & b for a, b in itertools.combinations(splits, 2))


@pytest.mark.parametrize('task', MICROWORLD_TASKS)
def test_examples_are_distinct_balanced_and_repeatable(task: str):
  rows = microworld.generate_examples(task, 'train', 0, 400)
  assert rows == microworld.generate_examples(task, 'train', 0, 400)
  assert rows[:50] == microworld.generate_examples(task, 'train', 0, 50)
  assert [row['idx'] for row in rows] == list(range(400))
  assert len({get_texts(row)[0] for row in rows}) == 400
  assert 0.4 < np.mean([row['label'] for row in rows]) < 0.6


def test_the_grammar_solves_acceptability():
  for row in microworld.generate_examples('acceptability', 'test', 0, 300):
    document = f'it was a good day at the farm . {row["sentence"]}'
    assert row['label'] == (compute_log_probability(document) > -math.inf)


def test_the_kinds_of_nouns_solve_entailment():
  kinds = {
    (form(noun), form(kind))
    for kind, nouns in microworld.NOUNS.items()
    for noun in nouns
    for form in (str, microworld._inflect)
  }
  for row in microworld.generate_examples('entailment', 'test', 0, 300):
    pairs = zip(row['sentence1'].split(), row['sentence2'].split(), strict=True)
    (pair,) = [(first, second) for first, second in pairs if first != second]
    assert row['label'] == (pair not in kinds)


def test_sentiment_words_solve_sentiment_and_are_new_in_test():
  sides = zip(microworld.ADJECTIVES, microworld.ADVERBS)
  sentiments = [{*adjectives, *adverbs} for adjectives, adverbs in sides]
  seen = {split: set() for split in ('train', 'validation', 'test')}
  for split in seen:
    for row in microworld.generate_examples('sentiment', split, 0, 300):
      words = set(row['sentence'].split())
      assert words & sentiments[row['label']] and not words & sentiments[1 - row['label']]
      seen[split] |= words & (sentiments[0] | sentiments[1])
  assert not seen['train'] & (seen['validation'] | seen['test'])
  assert seen['train'] | seen['test'] == sentiments[0] | sentiments[1]


@pytest.mark.parametrize('task', MICROWORLD_TASKS)
def test_counts_of_words_and_pairs_do_not_solve_the_test_split(task: str):
  rows = {split: microworld.generate_examples(task, split, 0, 1000) for split in ('train', 'test')}
  lines = {
    split: [
      ' '.join(f'{i}{word}' for i, text in enumerate(get_texts(row)) for word in text.split())
      for row in split_rows
    ]
    for split, split_rows in rows.items()
  }
  counts = CountVectorizer(token_pattern=r'\S+', ngram_range=(1, 2)).fit(lines['train'])
  model = LogisticRegression(max_iter=1000)
  model.fit(counts.transform(lines['train']), [row['label'] for row in rows['train']])
  assert model.score(counts.transform(lines['test']), [row['label'] for row in rows['test']]) < 0.6


@pytest.mark.parametrize(
  'task, split, known', [('sentimant', 'train', 'sentiment'), ('sentiment', 'tests', 'test')]
)
def test_unknown_tasks_and_splits_are_refused(task: str, split: str, known: str):
  with pytest.raises(InputError, match=f"'{known}'"):
    microworld.generate_examples(task, split, 0, 10)
