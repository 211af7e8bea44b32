"""Simple grammars: what is drawn can be read back, and expected values are those of the draw."""

import doctest
import math
import random

import numpy as np
import pytest

from minilm_jax.language import grammar
from minilm_jax.language.grammar import Grammar

RULES = {
    'S': [(0.6, ('a', 'T', 'S')), (0.4, ('end',))],
    'T': [(0.1, ('b',)), (0.2, ('c', 'T')), (0.7, ('d', 'x', 'y'))],
}


def test_examples_in_docstrings():
  assert doctest.testmod(grammar).failed == 0


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
  surprise, words = [-made.log_probability('S', text) for text in texts], [len(text) for text in texts]
  for expected, seen in zip(made.expected('S'), (surprise, words), strict=True):
    assert abs(np.mean(seen) - expected) < 4 * np.std(seen) / math.sqrt(len(seen))


@pytest.mark.parametrize('text', ['', 'a', 'a b', 'end end', 'a d y x end', 'b', 'S'])
def test_what_is_no_text_has_no_probability(text: str):
  assert Grammar(RULES).log_probability('S', text.split()) == -math.inf


@pytest.mark.parametrize('rules', [
    {'S': [(0.5, ('a',)), (0.6, ('b',))]},
    {'S': [(0.5, ('a',)), (0.5, ('a', 'b'))]},
    {'S': [(1.0, ('S', 'a'))]},
    {'S': [(1.0, ('a',)), (0.0, ('b',))]},
])
def test_what_is_not_simple_is_refused(rules: dict):
  with pytest.raises(ValueError):
    Grammar(rules)
