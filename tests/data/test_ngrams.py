"""Counts beside tokens: what a dictionary counts, whatever comes in one block; probabilities that
add up to 1.
"""

import doctest
import itertools

import numpy as np
import pytest

from minilm_jax.core.corpus_config import MASK_ID, PAD_ID
from minilm_jax.core.errors import InputError
from minilm_jax.data import ngrams
from tests.ngram_cases import CANDIDATES, VOCABULARY, count_by_dictionary, draw_rows

OFFSETS = ((), (-1,), (1,), (-2,), (-2, -1), (-1, 1))


def test_examples_in_docstrings():
  assert doctest.testmod(ngrams).failed == 0


@pytest.mark.parametrize('offsets', OFFSETS)
def test_shares_are_those_of_a_dictionary(offsets: tuple[int, ...]):
  tokens = draw_rows(40)
  found, slow = (
    ngrams.count_ngrams([tokens], offsets, VOCABULARY),
    count_by_dictionary(tokens, offsets),
  )
  seen = [times for counter in slow.values() for times in counter.values()]
  discount = (seen.count(1) + 1) / (seen.count(1) + 2 * seen.count(2) + 2)
  for context, counter in slow.items():
    number = ngrams.pack_keys(np.tile(np.array(context, int), (len(CANDIDATES), 1)), VOCABULARY)
    expected = [
      max(counter[token] - discount, 0) / counter.total() for token in CANDIDATES.tolist()
    ]
    np.testing.assert_allclose(found.find_shares(number, CANDIDATES), expected)
    np.testing.assert_allclose(
      found.find_backoffs(number), discount * len(counter) / counter.total()
    )
    assert sum(expected) + found.find_backoffs(number)[0] == pytest.approx(1)


def test_what_was_never_seen_leaves_everything_to_a_smaller_context():
  found = ngrams.count_ngrams([draw_rows(40)], (-1,), VOCABULARY)
  hidden = ngrams.pack_keys(np.array([[MASK_ID]]), VOCABULARY)
  assert found.find_backoffs(hidden) == 1 and found.find_shares(hidden, np.array([6])) == 0


def test_discounts_stay_between_0_and_1_whatever_was_seen():
  for row in ([5], [5, 5], [5, 5, 5, 6, 6, 6], [5, 6, 7]):
    found = ngrams.count_ngrams([np.array([row], 'uint16')], (), VOCABULARY)
    assert 0 < found.find_backoffs(np.zeros(1, np.uint64))[0] < 1 and (found.shares > 0).all()


@pytest.mark.parametrize('cuts', [[1] * 40, [3, 30, 1, 1, 5], [40]])
def test_blocks_make_no_difference(cuts: list[int]):
  tokens = draw_rows(40)
  whole = ngrams.count_ngrams([tokens], (-2, -1), VOCABULARY)
  parts = ngrams.count_ngrams(iter(np.split(tokens, np.cumsum(cuts)[:-1])), (-2, -1), VOCABULARY)
  for name in ('keys', 'shares', 'contexts', 'starts', 'backoffs'):
    np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


@pytest.mark.parametrize('at_once', [1, 7, 1 << 22])
def test_agreement_is_the_sum_over_tokens(at_once: int, monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr(ngrams, '_TOKENS_PER_BLOCK', at_once)
  lefts, rights = (
    ngrams.count_ngrams([draw_rows(60)], (offset,), VOCABULARY) for offset in (-1, 1)
  )
  pairs = np.array(list(itertools.product(range(VOCABULARY), repeat=2)))
  here, there = (ngrams.pack_keys(pairs[:, [n]], VOCABULARY) for n in (0, 1))
  base = np.linspace(0.1, 1, VOCABULARY)
  expected = sum(
    lefts.find_shares(here, token) * rights.find_shares(there, token) / base[token]
    for token in (np.full(len(pairs), n) for n in range(VOCABULARY))
  )
  np.testing.assert_allclose(
    ngrams.measure_agreement(lefts, rights, here, there, base), expected, atol=1e-12
  )


def test_three_places_of_a_large_vocabulary_fit():
  most = 2_600_000
  numbers = ngrams.pack_keys(np.array([[most - 1] * 3, [most - 1, most - 1, most - 2]]), most)
  assert int(numbers[0]) == most**3 - 1 and int(numbers[0] - numbers[1]) == 1


def test_no_token_to_count_is_refused():
  with pytest.raises(InputError, match='no token'):
    ngrams.count_ngrams([np.full((2, 4), PAD_ID, 'uint16')], (-1,), VOCABULARY)
  with pytest.raises(InputError, match='no token'):
    ngrams.count_ngrams([], (-1,), VOCABULARY)
