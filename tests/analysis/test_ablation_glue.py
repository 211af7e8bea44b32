"""Contrasts and verdicts of ablations on GLUE equal those that are computed by hand."""

import csv
import math
import pathlib

import pytest

from minilm_jax.analysis import ablation_glue, ablations, runs
from minilm_jax.analysis.ablation_glue import AVERAGE, TRAININGS, TUNINGS, Contrast, GlueRow
from minilm_jax.analysis.scores import make_score_table, select_main
from minilm_jax.cli import main
from tests.fake_runs import change_config, write_glue_run, write_plateau_run
from tests.html_page import Page

T_TWO = 4.302653  # Student's t of two degrees of freedom


def write_pair(folder: pathlib.Path, seed: int) -> tuple[pathlib.Path, pathlib.Path]:
  return (
    write_plateau_run(folder / f'paper-{seed}', seed=seed, updates=200, planned=200),
    write_plateau_run(
      folder / f'pre-{seed}', seed=seed, updates=200, planned=200, model__norm='pre'
    ),
  )


def find_rows(folder: pathlib.Path, base: str = 'paper-0') -> dict[str, GlueRow]:
  comparison = ablations.read_comparison([folder / base], [folder])
  (part,) = comparison.shapes
  return {
    row.task: row
    for row in ablation_glue.find_glue_rows(
      part, select_main(make_score_table(runs.read_scores(comparison.run_paths)))
    )
  }


def test_pairs_are_pre_training_runs_if_there_are_several(tmp_path: pathlib.Path):
  for seed in (0, 1, 2):
    for source, gain in zip(write_pair(tmp_path, seed), (0, 0.01 * seed)):
      # Seed 9 has no counterpart.
      write_glue_run(source, 'rte', {0: 0.5 + gain, 1: 0.6 + gain, **({9: 0.0} if gain else {})})
      write_glue_run(source, 'wnli', {0: 0.4})
      write_glue_run(source, 'mnli', {0: 0.3}, split='validation_mismatched')
      write_glue_run(source, 'ag_news', {0: 0.9})
  rows = find_rows(tmp_path)
  assert list(rows) == [AVERAGE, 'rte', 'wnli'] and rows[AVERAGE].tasks == ('rte', 'wnli')
  rte, average = rows['rte'].score, rows[AVERAGE].score
  assert (rte.base, rte.value, rte.difference, rte.n, rte.of) == (
    *map(pytest.approx, (0.55, 0.56, 0.01)),
    3,
    TRAININGS,
  )
  assert (rte.low, rte.high) == pytest.approx(
    (0.01 - T_TWO * 0.01 / 3**0.5, 0.01 + T_TWO * 0.01 / 3**0.5), rel=1e-5
  )
  assert average.difference == pytest.approx(0.005) and average.high - average.low == pytest.approx(
    (rte.high - rte.low) / 2
  )


def test_pairs_are_seeds_of_fine_tuning_of_a_single_pre_training(tmp_path: pathlib.Path):
  paper, pre = write_pair(tmp_path, 0)
  for source, gain in ((paper, 0), (pre, 0.02)):
    write_glue_run(source, 'rte', {0: 0.5, 1: 0.6 + gain, 2: 0.6 + 2 * gain})
    write_glue_run(source, 'wnli', {0: 0.4, 2: 0.4, 7: 0.9})
  # This run has no scores.
  write_plateau_run(tmp_path / 'pre-5', seed=5, updates=200, planned=200, model__norm='pre')
  rows = find_rows(tmp_path)
  assert (rows['rte'].score.n, rows['rte'].score.of) == (3, TUNINGS)
  assert rows['rte'].score.difference == pytest.approx(0.02)
  # Seeds 0 and 2 are common.
  assert (rows[AVERAGE].score.n, rows[AVERAGE].score.difference) == (2, pytest.approx(0.01))


def test_the_average_is_over_tasks_that_all_pairs_have(tmp_path: pathlib.Path):
  for seed in (0, 1):
    for source in write_pair(tmp_path, seed):
      for task in ('rte', 'wnli', *(['cola'] if seed else [])):
        write_glue_run(source, task, {0: 0.5 + 0.1 * seed})
  paper, _ = write_pair(tmp_path, 2)
  write_glue_run(paper, 'rte', {0: 0.1})  # the other run has no scores
  rows = find_rows(tmp_path)
  assert rows[AVERAGE].tasks == ('rte', 'wnli') and rows[AVERAGE].score.n == 2
  assert rows['cola'].score.of == TUNINGS and rows['cola'].score.n == 1


def test_scores_of_different_protocols_are_not_paired(tmp_path: pathlib.Path):
  paper, pre = write_pair(tmp_path, 0)
  write_glue_run(paper, 'rte', {0: 0.5}, train_examples=2000)
  write_glue_run(pre, 'rte', {0: 0.6}, train_examples=200)
  write_glue_run(paper, 'wnli', {0: 0.5}, held_out=100)
  write_glue_run(pre, 'wnli', {0: 0.6})
  assert not find_rows(tmp_path)
  write_glue_run(paper, 'rte', {0: 0.5}, train_examples=200, examples=1043)
  assert find_rows(tmp_path)['rte'].score.difference == pytest.approx(0.1)


def test_scores_of_different_epochs_are_not_paired(tmp_path: pathlib.Path):
  paper, pre = write_pair(tmp_path, 0)
  for task in ('rte', 'wnli'):
    change_config(write_glue_run(paper, task, {0: 0.5}), epochs=10.0)
    change_config(write_glue_run(pre, task, {0: 0.4}), epochs=1.0)
  assert not find_rows(tmp_path)
  for task in ('rte', 'wnli'):
    change_config(write_glue_run(pre, task, {0: 0.6}, truncated=0), epochs=10.0)
  rows = find_rows(tmp_path)
  assert set(rows) == {AVERAGE, 'rte', 'wnli'}
  assert all(row.score.difference == pytest.approx(0.1) for row in rows.values())


@pytest.mark.parametrize(
  'low, high, verdict',
  [
    (-0.0099, 0.05, ablation_glue.NO_WORSE),
    (0.02, 0.05, ablation_glue.NO_WORSE),
    (-0.0099, -0.001, ablation_glue.NO_WORSE),
    (-0.01, 0.05, ablation_glue.OPEN),
    (-0.05, -0.01, ablation_glue.OPEN),
    (-0.05, -0.0101, ablation_glue.WORSE),
    (math.nan, math.nan, ablation_glue.OPEN),
  ],
)
def test_the_verdict_on_glue_follows_the_interval(low: float, high: float, verdict: str):
  assert ablation_glue.classify_glue(Contrast(0.5, 0.5, 0.0, low, high, 3, TRAININGS)) == verdict
  assert (
    ablation_glue.classify_glue(Contrast(0.5, 0.5, 0.0, low, high, 3, TUNINGS))
    == ablation_glue.ONE_SEED
  )
  assert ablation_glue.classify_glue(Contrast()) == ''


def test_reports_have_glue_if_there_are_scores(tmp_path: pathlib.Path):
  folder, out = tmp_path / 'runs', tmp_path / 'out'
  pairs = [write_pair(folder, seed) for seed in (0, 1, 2)]
  command = ['ablations', f'--base={folder}/paper-0', str(folder), f'--workdir={out}']
  assert main.main(command) == 0
  assert not (out / 'glue.csv').exists()
  assert 'GLUE' not in Page((out / 'compare.html').read_text()).text
  for seed, sources in enumerate(pairs):
    for source, gain in zip(sources, (0, 0.001 * seed)):
      for task in ('rte', 'wnli'):
        write_glue_run(source, task, {0: 0.5 + gain})
  assert main.main(command) == 0
  assert 'GLUE' in Page((out / 'compare.html').read_text()).text
  base, row = csv.DictReader((out / 'changes.csv').read_text().splitlines())
  assert (row['glue_verdict'], row['glue_tasks']) == (ablation_glue.NO_WORSE, 'rte wnli')
  assert float(row['glue_difference']) == pytest.approx(0.001) and row['glue_n'] == '3'
  assert base['glue_n'] == '0' and not base['glue_verdict']
  rows = csv.DictReader((out / 'glue.csv').read_text().splitlines())
  assert [row['task'] for row in rows] == [AVERAGE, 'rte', 'wnli']
