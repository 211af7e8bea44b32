"""N-gram counts: equal to a dictionary in any blocks, with probabilities that add up to 1."""

import itertools

import numpy as np
import pytest

from minilm_jax.core.corpus_config import MASK_ID, PAD_ID
from minilm_jax.core.errors import InputError
from minilm_jax.evaluation import ngrams
from minilm_jax.evaluation.ngrams import count_ngrams, pack_keys
from tests.ngram_cases import CANDIDATES, VOCABULARY, count_by_dictionary, draw_rows

OFFSETS = ((), (-1,), (1,), (-2,), (-2, -1), (-1, 1))


@pytest.mark.parametrize('offsets', OFFSETS)
def test_shares_equal_counts_in_a_dictionary(offsets: tuple[int, ...]):
  tokens = draw_rows(40)
  counts, slow = count_ngrams([tokens], offsets, VOCABULARY), count_by_dictionary(tokens, offsets)
  times = [number for counter in slow.values() for number in counter.values()]
  discount = (times.count(1) + 1) / (times.count(1) + 2 * times.count(2) + 2)
  for context, counter in slow.items():
    keys = pack_keys(np.tile(np.array(context, int), (len(CANDIDATES), 1)), VOCABULARY)
    expected = [
      max(counter[token] - discount, 0) / counter.total() for token in CANDIDATES.tolist()
    ]
    backoffs = counts.find_backoffs(keys)
    np.testing.assert_allclose(counts.find_shares(keys, CANDIDATES), expected)
    np.testing.assert_allclose(backoffs, discount * len(counter) / counter.total())
    assert sum(expected) + backoffs[0] == pytest.approx(1)


def test_an_unseen_context_backs_off_completely():
  counts = count_ngrams([draw_rows(40)], (-1,), VOCABULARY)
  keys = pack_keys(np.array([[MASK_ID]]), VOCABULARY)
  assert counts.find_backoffs(keys) == 1 and counts.find_shares(keys, np.array([6])) == 0


@pytest.mark.parametrize('row', [[5], [5, 5], [5, 5, 5, 6, 6, 6], [5, 6, 7]])
def test_discounts_stay_between_0_and_1(row: list[int]):
  counts = count_ngrams([np.array([row], 'uint16')], (), VOCABULARY)
  assert 0 < counts.find_backoffs(np.zeros(1, np.uint64))[0] < 1 and (counts.shares > 0).all()


@pytest.mark.parametrize('cuts', [[1] * 40, [3, 30, 1, 1, 5], [40]])
def test_counts_do_not_depend_on_the_blocks(cuts: list[int]):
  tokens = draw_rows(40)
  expected = count_ngrams([tokens], (-2, -1), VOCABULARY)
  counts = count_ngrams(iter(np.split(tokens, np.cumsum(cuts)[:-1])), (-2, -1), VOCABULARY)
  for name in ('keys', 'shares', 'contexts', 'starts', 'backoffs'):
    np.testing.assert_array_equal(getattr(counts, name), getattr(expected, name))


@pytest.mark.parametrize('block', [1, 7, 1 << 22])
def test_agreement_is_the_sum_over_tokens(block: int, monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr(ngrams, '_TOKENS_PER_BLOCK', block)
  tokens = draw_rows(60)
  left_counts, right_counts = (count_ngrams([tokens], (n,), VOCABULARY) for n in (-1, 1))
  pairs = np.array(list(itertools.product(range(VOCABULARY), repeat=2)))
  left_keys, right_keys = (pack_keys(pairs[:, [n]], VOCABULARY) for n in (0, 1))
  base = np.linspace(0.1, 1, VOCABULARY)
  expected = sum(
    left_counts.find_shares(left_keys, token)
    * right_counts.find_shares(right_keys, token)
    / base[token]
    for token in (np.full(len(pairs), n) for n in range(VOCABULARY))
  )
  agreement = ngrams.measure_agreement(left_counts, right_counts, left_keys, right_keys, base)
  np.testing.assert_allclose(agreement, expected, atol=1e-12)


def test_three_tokens_of_a_large_vocabulary_fit():
  size = 2_600_000
  keys = pack_keys(np.array([[size - 1] * 3, [size - 1, size - 1, size - 2]]), size)
  assert int(keys[0]) == size**3 - 1 and int(keys[0] - keys[1]) == 1


@pytest.mark.parametrize('blocks', [[np.full((2, 4), PAD_ID, 'uint16')], []])
def test_no_token_to_count_is_refused(blocks: list[np.ndarray]):
  with pytest.raises(InputError, match='n-gram counts'):
    count_ngrams(blocks, (-1,), VOCABULARY)
