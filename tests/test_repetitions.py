"""Repetitions: a set's answer, from runs in one process and from parts that meet in buckets."""

import collections
import random

import numpy as np
import pytest

from minilm_jax.language import repetitions


def test_seen_equals_a_set():
  dice, seen, known = random.Random(0), repetitions.Seen(), set()
  for _ in range(60):
    batch = np.array([dice.randrange(3000) * 2**52 for _ in range(dice.randint(0, 120))], np.uint64)
    expected = []
    for digest in batch.tolist():
      expected.append(digest not in known)
      known.add(digest)
    assert seen.fresh(batch).tolist() == expected
  assert sum(map(len, seen._runs)) == len(known)
  assert len(seen._runs) < 12


@pytest.mark.parametrize('spread', [1, 2**44, 2**56])  # all in one bucket, in few, in many
def test_parts_that_meet_tell_what_one_process_tells(spread: int):
  """Whatever comes first, in whatever order what meets in a bucket arrives."""
  dice = random.Random(spread)
  for _ in range(20):
    parts = [np.array([dice.randrange(200) * spread % 2**64 for _ in range(dice.choice([0, 1, 50, 90]))], np.uint64)
             for _ in range(dice.randint(1, 6))]
    met = collections.defaultdict(list)
    for part, digests in enumerate(parts):
      middle = len(digests) // 2
      for bucket, numbers, some in [*repetitions.buckets(0, digests[:middle]),
                                    *repetitions.buckets(middle, digests[middle:])]:
        met[bucket].append((part, numbers, some))
    fresh = [np.ones(len(digests), bool) for digests in parts]
    for some in met.values():
      dice.shuffle(some)
      for part, numbers in repetitions.repeated(some):
        fresh[part][np.frombuffer(numbers, '<u8')] = False
    seen = repetitions.Seen()
    assert [one.tolist() for one in fresh] == [seen.fresh(digests).tolist() for digests in parts]
