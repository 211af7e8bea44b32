"""A scaling study compares runs on one training set."""

import pathlib

from minilm_jax.analysis import runs, training_sets
from tests.fake_runs import write_subset_run


def test_a_scaling_study_uses_the_largest_set(tmp_path: pathlib.Path):
  for rows in (1000, 2000, 100_000):
    write_subset_run(tmp_path / f'n{rows}', rows)
  write_subset_run(tmp_path / 'part', 3000, overlap=0.9)
  write_subset_run(tmp_path / 'twin', 100_000)
  left_out = training_sets.find_other_sets(
    training_sets.read_training_sets(runs.find_runs([str(tmp_path)]))
  )
  assert set(left_out) == {'n1000', 'n2000', 'part'} and all(
    '100,000 rows' in reason for reason in left_out.values()
  )
