"""GLUE, speed-up and verdicts of ablations equal those that are computed by hand."""

import csv
import math
import pathlib
from collections.abc import Sequence

import numpy as np
import pytest

from minilm_jax.analysis import ablation_results, ablations, runs, scores
from minilm_jax.analysis.ablation_results import (
  AT_LEAST,
  AT_MOST,
  AVERAGE,
  NEITHER_LEFT,
  GlueRow,
  compute_ratio,
)
from minilm_jax.analysis.scores import TRAININGS, TUNINGS, Contrast, make_score_table, select_main
from minilm_jax.cli import main
from minilm_jax.core import run_dir
from minilm_jax.tasks import metrics
from tests.fake_runs import change_config, make_loss_curve, write_glue_run, write_plateau_run
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
    for row in ablation_results.find_glue_rows(
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
    (-0.0099, 0.05, ablation_results.NO_WORSE),
    (0.02, 0.05, ablation_results.NO_WORSE),
    (-0.0099, -0.001, ablation_results.NO_WORSE),
    (-0.01, 0.05, ablation_results.OPEN),
    (-0.05, -0.01, ablation_results.OPEN),
    (-0.05, -0.0101, ablation_results.WORSE),
    (math.nan, math.nan, ablation_results.OPEN),
  ],
)
def test_the_verdict_on_glue_follows_the_interval(low: float, high: float, verdict: str):
  assert ablation_results.classify_glue(Contrast(0.5, 0.5, 0.0, low, high, 3, TRAININGS)) == verdict
  assert (
    ablation_results.classify_glue(Contrast(0.5, 0.5, 0.0, low, high, 3, TUNINGS))
    == ablation_results.ONE_SEED
  )
  assert ablation_results.classify_glue(scores.Contrast()) == ''


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
  assert (row['glue_verdict'], row['glue_tasks']) == (ablation_results.NO_WORSE, 'rte wnli')
  assert float(row['glue_difference']) == pytest.approx(0.001) and row['glue_n'] == '3'
  assert base['glue_n'] == '0' and not base['glue_verdict']
  rows = csv.DictReader((out / 'glue.csv').read_text().splitlines())
  assert [row['task'] for row in rows] == [AVERAGE, 'rte', 'wnli']


def reached(*values: float, first: int = 0) -> dict[int, tuple[float, str]]:
  return {seed: (value, '') for seed, value in enumerate(values, first)}


def not_reached(*values: float, bound: str = AT_LEAST) -> dict[int, tuple[float, str]]:
  return {seed: (value, bound) for seed, value in enumerate(values)}


def make_curve(*loss: float):
  return make_loss_curve(
    'run', [2**n for n in range(1, len(loss) + 1)], loss, per_row=1.0, counts=('actual',)
  )


def write_losses(folder: pathlib.Path, losses: Sequence[float]) -> None:
  """Replaces the evaluations of a run by these losses at its first steps."""
  lines = iter(run_dir.read_lines(folder / run_dir.METRICS))
  kept = [{**line, 'loss': loss} for line, loss in zip(lines, losses)]
  run_dir.write_lines(folder / run_dir.METRICS, kept)


def test_interpolation_is_exact_on_a_power_law():
  curve = make_curve(*(10 * (256 * 2**n) ** -0.2 for n in range(1, 9)))
  for flops in (600.0, 1024.0, 50_000.0):
    loss = 10 * flops**-0.2
    assert ablation_results.interpolate_flops(curve, loss) == pytest.approx(flops)
    assert ablation_results.interpolate_loss(curve, flops) == pytest.approx(loss)


def test_flops_are_those_of_the_first_crossing():
  curve = make_curve(8, 4, 6, 4, 2)
  assert (
    ablation_results.interpolate_flops(curve, 4) == 1024
    and ablation_results.interpolate_flops(curve, 8) == 512
  )
  assert ablation_results.interpolate_flops(curve, 9) == 512 and math.isnan(
    ablation_results.interpolate_flops(curve, 1.9)
  )
  assert ablation_results.interpolate_flops(curve, 3.9) > 4096  # after the second decrease


def test_losses_outside_of_the_training_are_undefined():
  curve = make_curve(8, 4, 2)
  assert math.isnan(ablation_results.interpolate_loss(curve, 500)) and math.isnan(
    ablation_results.interpolate_loss(curve, 2100)
  )
  assert ablation_results.interpolate_loss(curve, 2070) == 2  # within 2% of the last evaluation


def test_paired_ratios_remove_the_variance_of_seeds():
  base = reached(100.0, 200.0, 400.0)
  paired = compute_ratio(base, reached(50.0, 100.0, 200.0))
  assert paired.paired and (paired.value, paired.low, paired.high) == pytest.approx((2, 2, 2))
  unpaired = compute_ratio(base, reached(50.0, 100.0, 200.0, first=7))
  assert (
    not unpaired.paired and unpaired.value == pytest.approx(2) and unpaired.low < 1 < unpaired.high
  )
  partly = compute_ratio(base, reached(100.0, 200.0, first=1))  # seeds 1 and 2 are common
  assert (
    partly.paired
    and (partly.base_seeds, partly.seeds) == (2, 2)
    and partly.value == pytest.approx(2)
  )


def test_the_interval_is_students_of_the_logarithms():
  base, change = (8.0, 9.0, 11.0), (3.0, 2.5, 2.0)
  low, high = metrics.confidence_interval(np.log(base) - np.log(change))
  ratio = compute_ratio(reached(*base), reached(*change))
  assert (ratio.low, ratio.high) == pytest.approx((math.exp(low), math.exp(high)))
  assert ratio.value == pytest.approx(math.exp(np.mean(np.log(base) - np.log(change))))


def test_a_single_seed_gives_no_interval():
  for base, change in (
    (reached(8.0), reached(2.0)),
    (reached(8.0, 16.0), reached(2.0)),
    (reached(8.0), reached(2.0, first=3)),
  ):
    ratio = compute_ratio(base, change)
    assert math.isnan(ratio.low) and math.isnan(ratio.high) and ratio.value > 3.9
  # Seed 0 is common.
  assert compute_ratio(reached(8.0, 100.0), reached(2.0)).value == pytest.approx(4)
  empty = compute_ratio({}, reached(2.0))
  assert all(map(math.isnan, (empty.value, empty.low, empty.high)))
  assert (empty.bound, empty.base_seeds, empty.seeds, empty.paired) == ('', 0, 0, False)


def test_a_run_without_an_exit_gives_a_bound():
  lower = compute_ratio(not_reached(8.0, 8.0), reached(2.0, 1.9))
  assert lower.bound == AT_LEAST and lower.high == math.inf and 2.9 < lower.low < lower.value
  upper = compute_ratio(reached(4.0, 4.4), not_reached(8.0, 8.0))
  assert upper.bound == AT_MOST and upper.low == 0 and upper.value < upper.high < 1
  neither = compute_ratio(not_reached(8.0, 8.0), {0: (2.0, ''), 1: (8.0, AT_LEAST)})
  assert (
    neither.bound == NEITHER_LEFT and math.isnan(neither.value) and str(neither) == 'neither left'
  )
  assert str(compute_ratio(not_reached(8.0), reached(2.0))) == 'at least 4.00'


def test_a_run_past_the_target_at_its_first_evaluation_gives_a_bound():
  lower = compute_ratio(reached(8.0, 8.4), not_reached(2.0, 2.0, bound=AT_MOST))
  assert (lower.bound, lower.high) == (AT_LEAST, math.inf) and 1 < lower.low < lower.value
  upper = compute_ratio(not_reached(2.0, 2.0, bound=AT_MOST), reached(8.0, 8.4))
  assert (upper.bound, upper.low) == (AT_MOST, 0) and upper.value < upper.high < 1


def test_a_multiplier_is_a_bound_below_the_first_loss(tmp_path: pathlib.Path):
  """The base has losses of 8, 4 and 2; the first loss of the ablation is 3."""
  for seed in (0, 1):
    for name, losses in (('base', (8, 4, 2.0)), ('fast', (3, 2.9, 2.8))):
      changes = {} if name == 'base' else {'model__norm': 'pre'}
      path = write_plateau_run(tmp_path / f'{name}{seed}', 900, seed=seed, **changes)
      write_losses(path, losses)
  (part,) = ablations.read_comparison([tmp_path / 'base0'], [tmp_path]).shapes
  base, (fast,) = part.base, part.changes
  flops = base.curves[0].flops('actual')
  ratio = ablation_results.measure_multiplier(base, fast, 4.0)
  assert (ratio.bound, ratio.high) == (AT_LEAST, math.inf)
  assert [ratio.value, ratio.low] == pytest.approx([flops[1] / flops[0]] * 2)
  exact = ablation_results.measure_multiplier(base, fast, 3.0)
  assert exact.bound == '' and math.isfinite(exact.high)
  mirrored = ablation_results.measure_multiplier(fast, base, 4.0)
  assert (mirrored.bound, mirrored.low) == (AT_MOST, 0)
  assert str(ablation_results.measure_multiplier(base, fast, 9.0)) == ''


def test_the_interval_of_a_bound_has_its_coverage():
  """The lower end is at most the true ratio of 3 in 97.5% of the data sets or more."""
  random, covered = np.random.default_rng(0), 0
  for _ in range(400):
    base, change = (np.exp(random.normal(np.log(middle), 0.2, 4)).tolist() for middle in (300, 100))
    truncated = {
      seed: (min(value, 320.0), '' if value < 320 else AT_LEAST) for seed, value in enumerate(base)
    }
    covered += compute_ratio(truncated, reached(*change)).low <= 3
  assert covered / 400 > 0.96
