"""A scaling study compares runs on one training set."""

import pathlib
from typing import Any

from minilm_jax.analysis import runs, training_sets
from minilm_jax.core import files, run_dir
from tests.fake_runs import write_subset_run


def test_a_scaling_study_uses_the_largest_set(tmp_path: pathlib.Path):
  for rows in (1000, 2000, 100_000):
    write_subset_run(tmp_path / f'n{rows}', rows)
  write_subset_run(tmp_path / 'part', 3000, overlap=0.9)
  write_subset_run(tmp_path / 'twin', 100_000)
  left_out = find_left_out(tmp_path)
  assert set(left_out) == {'n1000', 'n2000', 'part'} and all(
    '100,000 rows' in reason for reason in left_out.values()
  )


def find_left_out(folder: pathlib.Path) -> dict[str, str]:
  run_paths = runs.find_runs([str(folder)])
  return training_sets.find_other_sets(training_sets.read_training_sets(run_paths))


def write_corpus_run(folder: pathlib.Path, corpus: str, rows: int, **options: Any) -> None:
  write_subset_run(folder, rows, of_rows=rows, **options)
  manifest = files.read_json(folder / run_dir.MANIFEST, 'the manifest')
  files.write_json(folder / run_dir.MANIFEST, manifest | {'corpus': corpus})


def test_the_seed_is_that_of_the_only_member(tmp_path: pathlib.Path):
  write_subset_run(tmp_path / 'run', 1000)
  config = files.read_json(tmp_path / 'run' / run_dir.CONFIG, 'the recipe')
  config['population']['seeds'] = [7]
  files.write_json(tmp_path / 'run' / run_dir.CONFIG, config)
  sets = training_sets.read_training_sets(runs.find_runs([str(tmp_path)]))
  assert [found.seed for found in sets.values()] == [7]


def test_a_scaling_study_uses_the_corpus_with_the_most_runs(tmp_path: pathlib.Path):
  for number in range(3):
    write_corpus_run(tmp_path / f'a{number}', 'A', 1000, tokenizer='t1')
  for number in range(2):
    write_corpus_run(tmp_path / f'b{number}', 'B', 5000, tokenizer='t2')
  write_corpus_run(tmp_path / 'a-t3', 'A', 1000, tokenizer='t3')
  left_out = find_left_out(tmp_path)
  assert set(left_out) == {'b0', 'b1', 'a-t3'}
  assert '5,000 rows of the corpus B' in left_out['b0'] and '1,000 rows' in left_out['b0']


def test_members_of_a_population_count_as_models(tmp_path: pathlib.Path):
  write_corpus_run(tmp_path / 'population', 'A', 1000)
  lines = [
    {'step': 1, 'split': 'train', 'member': member, 'tokens': 64, 'loss': 5.0}
    for member in range(3)
  ]
  run_dir.write_lines(tmp_path / 'population' / run_dir.METRICS, lines)
  for number in range(2):
    write_corpus_run(tmp_path / f'single{number}', 'B', 5000)
  assert set(find_left_out(tmp_path)) == {'single0', 'single1'}


def test_a_study_of_the_vocabulary_keeps_all_tokenizers(tmp_path: pathlib.Path):
  for vocab_size in (1000, 2000):
    for number in range(vocab_size // 500):
      folder = tmp_path / f'v{vocab_size}-{number}'
      text = f'text in {vocab_size}'
      write_corpus_run(folder, text, 1000, tokenizer=text, vocab_size=vocab_size)
  assert find_left_out(tmp_path) == {}
