"""Keeping text: splits by hash."""

from collections import Counter

from minilm_jax.corpus_config import SplitConfig
from minilm_jax.language import keep


def test_splits_take_their_shares():
  found = Counter(keep.split_of(f'document {i}', SplitConfig(0.2, 0.1)) for i in range(5000))
  assert abs(found['validation'] / 5000 - 0.2) < 0.03
  assert abs(found['test'] / 5000 - 0.1) < 0.03
  assert {keep.split_of(f'document {i}', SplitConfig(0.0, 0.0)) for i in range(500)} == {'train'}


def test_a_split_depends_on_the_text_alone():
  splits = SplitConfig(0.3, 0.3)
  for i in range(50):
    assert keep.split_of(f'The King\nof  {i} ', splits) == keep.split_of(f'the king of {i}', splits)


def test_a_larger_share_only_adds():
  texts = [f'document {i}' for i in range(1000)]
  few, more = ({t for t in texts if keep.split_of(t, SplitConfig(0.0, share)) == 'test'} for share in (0.1, 0.2))
  assert few < more
