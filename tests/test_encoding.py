"""Examples as rows: special ids in their places, ends cut fairly, pads behind, few lengths, only the pieces used."""

import doctest
import random
from pathlib import Path

import jax
import numpy as np
import pytest

from minilm_jax.language import tokenizer as pieces
from minilm_jax.tasks import encoding
from minilm_jax.tasks.encoding import TaskRows
from minilm_jax.tasks.sources import Examples

WORDS = 'the dogs near a tree sleep and many foxes find these pears .'.split()


@pytest.fixture(scope='module')
def tokenizer(tiny_corpus: Path) -> pieces.Tokenizer:
  return pieces.load(tiny_corpus / 'tokenizer.model')


@pytest.fixture(scope='module')
def rows() -> TaskRows:
  """Texts of many lengths, short ones more often than long ones; the longest is as long as rows are."""
  draw = np.random.default_rng(0)
  counts = np.append(np.minimum(draw.geometric(0.06, 149) + 2, 77), 77)
  sequences = [[pieces.BEGIN, *draw.integers(20, 400, n).tolist(), pieces.END] for n in counts]
  return encoding.task_rows(sequences, np.arange(150, dtype=np.int32), 80)


def examples(first: list[str], second: list[str] | None = None) -> Examples:
  return Examples(tuple(first), tuple(second or ()), np.zeros(len(first), np.int32))


def test_special_ids_stand_where_pretraining_never_puts_two_texts(tokenizer: pieces.Tokenizer):
  a, b = tokenizer.encode(['the dog', 'a fox'])
  assert encoding.encode(examples(['the dog']), tokenizer, 64) == ([[pieces.BEGIN, *a, pieces.END]], 0)
  pair = [pieces.BEGIN, *a, pieces.END, pieces.END, *b, pieces.END]
  assert encoding.encode(examples(['the dog'], ['a fox']), tokenizer, 64) == ([pair], 0)


def test_case_does_not_matter(tokenizer: pieces.Tokenizer):
  found, _ = encoding.encode(examples(['The DOG sleeps .', 'the dog sleeps .']), tokenizer, 64)
  assert found[0] == found[1] and pieces.UNKNOWN not in found[0]


@pytest.mark.parametrize('text', ['<mask> <pad> </s> <s>', '', '   '])
def test_no_text_makes_special_ids(tokenizer: pieces.Tokenizer, text: str):
  (ids,), _ = encoding.encode(examples([text]), tokenizer, 64)
  assert (ids[0], ids[-1]) == (pieces.BEGIN, pieces.END)
  assert not {pieces.BEGIN, pieces.END, pieces.PAD, pieces.MASK} & set(ids[1:-1])


def test_what_is_too_long_loses_the_end_of_its_longer_half(tokenizer: pieces.Tokenizer):
  rng = random.Random(0)
  sides = [[' '.join(rng.choices(WORDS, k=rng.randrange(30))) for _ in range(200)] for _ in range(2)]
  whole, none = encoding.encode(examples(*sides), tokenizer, 1000)
  cut, shortened = encoding.encode(examples(*sides), tokenizer, 24)
  assert not none and shortened == sum(len(ids) > 24 for ids in whole) > 20
  for before, after in zip(whole, cut, strict=True):
    assert len(after) == min(24, len(before))
    (a, b), (c, d) = halves(before), halves(after)
    assert c == a[:len(c)] and d == b[:len(d)]  # only ends are lost
    if before != after:
      # no short half pays for a long one
      assert abs(len(c) - len(d)) <= 1 or min(len(c), len(d)) == min(len(a), len(b))


def halves(ids: list[int]) -> tuple[list[int], list[int]]:
  middle = next(i for i in range(len(ids)) if ids[i] == ids[i + 1] == pieces.END)
  return ids[1:middle], ids[middle + 2:-1]


def test_one_text_is_cut_to_fit_too(tokenizer: pieces.Tokenizer):
  (ids,), shortened = encoding.encode(examples(['the dog ' * 40]), tokenizer, 16)
  assert len(ids) == 16 and ids[-1] == pieces.END and shortened == 1


@pytest.mark.parametrize('lengths, longest, expected', [
    ([3], 128, 16), ([16], 128, 16), ([17, 2], 128, 32), ([100], 100, 100)])
def test_a_bucket_holds_all_and_is_one_of_few(lengths: list[int], longest: int, expected: int):
  assert encoding.bucket([[0] * n for n in lengths], longest) == expected


@pytest.mark.parametrize('labels', [np.array([1, 0], np.int32), np.array([2.5, 0.1], np.float32)])
def test_rows_are_ids_then_pads(labels: np.ndarray):
  rows = encoding.task_rows([[0, 7, 2], [0, 7, 8, 9, 2]], labels, 6)
  assert rows.tokens.tolist() == [[0, 7, 2, 1, 1, 1], [0, 7, 8, 9, 2, 1]]
  assert rows.lengths.tolist() == [3, 5]
  assert rows.labels.dtype == labels.dtype and np.array_equal(rows.labels, labels)


def test_examples_in_docstrings():
  assert doctest.testmod(encoding).failed == 0


def test_lengths_are_few_and_hold_more_and_more_of_the_rows(rows: TaskRows):
  found = encoding.lengths(rows)
  assert len(found) in (3, 4) and list(found) == sorted(set(found)) and found[-1] == 80
  assert all(length % 16 == 0 for length in found)
  inside = [np.mean(rows.lengths <= length) for length in found]
  assert inside[0] >= 0.4 and inside[-2] >= 0.95 and inside[-1] == 1
  for length in found[:-1]:  # none is longer than it must be
    assert np.any((length - 16 < rows.lengths) & (rows.lengths <= length))


@pytest.mark.parametrize('counts, whole, expected', [
    ([5] * 9, 16, (16,)), ([5] * 9, 64, (16, 64)), ([40], 64, (48, 64)), ([21, 21], 21, (21,)),
    ([1] * 5 + [70] * 5, 70, (16, 70))])
def test_the_last_length_is_that_of_the_rows_a_multiple_of_16_or_not(counts: list, whole: int, expected: tuple):
  made = encoding.task_rows([[7] * count for count in counts], np.zeros(len(counts), np.int32), whole)
  assert encoding.lengths(made) == expected


def test_pieces_that_are_used_are_counted_from_0_and_can_be_told_again(rows: TaskRows):
  other = encoding.task_rows([[pieces.BEGIN, 450, 9, pieces.END]], np.zeros(1, np.int32), 16)
  used = encoding.used((rows, other))
  assert {9, 450} < set(used.tolist()) and len(used) < 400
  assert np.array_equal(used, np.unique(used))
  for part in (rows, other):
    narrow = encoding.narrow(part, used)
    assert np.array_equal(used[narrow.tokens], part.tokens) and narrow.tokens.max() < len(used)
    assert narrow.lengths is part.lengths and narrow.labels is part.labels
    special = part.tokens < len(pieces.SPECIAL)  # which the model knows by number
    assert np.array_equal(narrow.tokens[special], part.tokens[special])
    assert np.array_equal((narrow.tokens != pieces.PAD).sum(1), part.lengths)


def test_special_pieces_have_a_place_though_no_row_holds_them():
  made = encoding.task_rows([[pieces.BEGIN, 300, pieces.END]], np.zeros(1, np.int32), 3)
  assert encoding.used((made,)).tolist() == [*range(len(pieces.SPECIAL)), 300]


@pytest.mark.parametrize('size', [1, 7, 64, 150, 400])
def test_batches_hold_each_row_once_with_those_of_its_length(rows: TaskRows, size: int):
  parts = [jax.tree.map(lambda x: x[:9], rows), jax.tree.map(lambda x: x[9:], rows)]
  tokens, places = encoding.in_batches(parts, size)
  assert list(map(len, places)) == [9, 141]
  place = np.concatenate(places)
  assert tokens.shape == (-(-150 // size), size, 80)
  assert np.array_equal(tokens.reshape(-1, 80)[place], rows.tokens)  # outputs come back in the order of the rows
  assert len(set(place.tolist())) == 150
  longest = (tokens != pieces.PAD).sum(-1)
  assert np.all(longest.max(1)[:-1] <= longest.min(1)[1:])  # so that most batches are short
