"""Draws: a smaller one is part of a larger one, or balanced; none depends on what it need not."""

import collections
import doctest
import random

import pytest

from minilm_jax.errors import InputError
from minilm_jax.tasks import sampling

TEXTS = [f'text {i}' for i in range(200)]


def test_examples_in_docstrings():
  assert doctest.testmod(sampling).failed == 0


def test_what_is_held_out_is_not_what_a_limit_takes_first():
  first = set(sampling.first_by_hash(TEXTS, 40))
  held = sampling.held_out(TEXTS, 0.2)
  assert len(held) == 40 and 0 < len(first & held) < 20
  assert sampling.held_out(TEXTS, 0.1) < held


def test_equal_texts_stay_together():
  texts = [text for text in TEXTS[:50] for _ in range(4)]
  held = sampling.held_out(texts, 0.25)
  assert 48 <= len(held) <= 50 and all({i ^ 1, i ^ 2} <= held for i in held)
  assert sampling.held_out(['same'] * 10, 0.2) == set()


def test_a_balanced_sample_is_drawn_as_in_the_second_paper():
  labels = ['b', 'a', 'b', 'a', 'b', 'a', 'b', 'a']
  generator = random.Random(42)
  expected = [*generator.sample([0, 2, 4, 6], 2), *generator.sample([1, 3, 5, 7], 2)]  # 'b' is seen first
  assert sampling.balanced(labels, 2) == sorted(expected)
  assert sampling.balanced(labels, 0) == list(range(8)) == sampling.balanced(labels, 4)
  with pytest.raises(InputError, match="5 examples of each label(.|\n)*4 of 'b'"):
    sampling.balanced(labels, 5)


def test_two_samples_of_the_same_examples_share_no_text():
  labels = ['abcd'[i % 4] for i in range(200)]
  texts = [*TEXTS[:180], *TEXTS[:20]]  # twenty sentences twice, with another label or the same
  first, second = sampling.two_balanced(texts, labels, 30, 15)
  assert collections.Counter(labels[i] for i in first) == dict.fromkeys('abcd', 30)
  assert collections.Counter(labels[i] for i in second) == dict.fromkeys('abcd', 15)
  assert not {texts[i] for i in first} & {texts[i] for i in second} and not set(first) & set(second)
  with pytest.raises(InputError, match='45 of'):
    sampling.two_balanced(texts[:180], labels[:180], 40, 6)
  with pytest.raises(InputError, match='text stands nowhere else'):
    sampling.two_balanced(TEXTS[:2] * 20, ['ab'[i % 2] for i in range(40)], 10, 5)
