"""GLUE of changes against their base on made runs: pairs, averages and the verdict by hand, and
where they are shown.
"""

import csv
import doctest
import math
import pathlib

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
from minilm_jax.analysis.scores import TRAININGS, TUNINGS, Contrast, score_table, select_main
from minilm_jax.cli import main
from minilm_jax.tasks import metrics
from tests.fake_runs import make_loss_curve, write_glue_run, write_plateau_run
from tests.html_page import Page

T_TWO = 4.302653  # Student's t of two degrees of freedom


def pair(home: pathlib.Path, seed: int) -> tuple[pathlib.Path, pathlib.Path]:
  return (
    write_plateau_run(home / f'paper-{seed}', seed=seed, updates=200, planned=200),
    write_plateau_run(home / f'pre-{seed}', seed=seed, updates=200, planned=200, model__norm='pre'),
  )


def find(home: pathlib.Path, base: str = 'paper-0') -> dict[str, GlueRow]:
  compared = ablations.read_comparison([home / base], [home])
  (part,) = compared.shapes
  return {
    row.task: row
    for row in ablation_results.find_glue_rows(
      part, select_main(score_table(runs.read_scores(compared.found)))
    )
  }


@pytest.mark.parametrize('module', [ablation_results, scores])
def test_examples_in_docstrings(module):
  assert doctest.testmod(module).failed == 0


def test_several_pre_trainings_are_the_pairs(tmp_path: pathlib.Path):
  for seed in (0, 1, 2):
    for source, gain in zip(pair(tmp_path, seed), (0, 0.01 * seed)):
      # 9: no twin
      write_glue_run(source, 'rte', {0: 0.5 + gain, 1: 0.6 + gain, **({9: 0.0} if gain else {})})
      write_glue_run(source, 'wnli', {0: 0.4})
      write_glue_run(source, 'mnli', {0: 0.3}, split='validation_mismatched')
      write_glue_run(source, 'ag_news', {0: 0.9})
  found = find(tmp_path)
  assert list(found) == [AVERAGE, 'rte', 'wnli'] and found[AVERAGE].tasks == ('rte', 'wnli')
  rte, average = found['rte'].score, found[AVERAGE].score
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


def test_one_pre_training_has_seeds_of_fine_tuning_for_pairs(tmp_path: pathlib.Path):
  paper, pre = pair(tmp_path, 0)
  for source, gain in ((paper, 0), (pre, 0.02)):
    write_glue_run(source, 'rte', {0: 0.5, 1: 0.6 + gain, 2: 0.6 + 2 * gain})
    write_glue_run(source, 'wnli', {0: 0.4, 2: 0.4, 7: 0.9})
  # never scored
  write_plateau_run(tmp_path / 'pre-5', seed=5, updates=200, planned=200, model__norm='pre')
  found = find(tmp_path)
  assert (found['rte'].score.n, found['rte'].score.of) == (3, TUNINGS)
  assert found['rte'].score.difference == pytest.approx(0.02)
  # the seeds 0 and 2
  assert (found[AVERAGE].score.n, found[AVERAGE].score.difference) == (2, pytest.approx(0.01))


def test_the_average_is_over_tasks_that_all_pairs_have(tmp_path: pathlib.Path):
  for seed in (0, 1):
    for source in pair(tmp_path, seed):
      for task in ('rte', 'wnli', *(['cola'] if seed else [])):
        write_glue_run(source, task, {0: 0.5 + 0.1 * seed})
  paper, _ = pair(tmp_path, 2)
  write_glue_run(paper, 'rte', {0: 0.1})  # the other side has nothing
  found = find(tmp_path)
  assert found[AVERAGE].tasks == ('rte', 'wnli') and found[AVERAGE].score.n == 2
  assert found['cola'].score.of == TUNINGS and found['cola'].score.n == 1


def test_scores_got_in_other_ways_are_no_pair(tmp_path: pathlib.Path):
  paper, pre = pair(tmp_path, 0)
  write_glue_run(paper, 'rte', {0: 0.5}, train_examples=2000)
  write_glue_run(pre, 'rte', {0: 0.6}, train_examples=200)
  write_glue_run(paper, 'wnli', {0: 0.5}, held_out=100)
  write_glue_run(pre, 'wnli', {0: 0.6})
  assert not find(tmp_path)
  write_glue_run(paper, 'rte', {0: 0.5}, train_examples=200, examples=1043)
  assert find(tmp_path)['rte'].score.difference == pytest.approx(0.1)


@pytest.mark.parametrize(
  'low, high, said',
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
def test_the_rule(low: float, high: float, said: str):
  assert ablation_results.judge_glue(Contrast(0.5, 0.5, 0.0, low, high, 3, TRAININGS)) == said
  assert (
    ablation_results.judge_glue(Contrast(0.5, 0.5, 0.0, low, high, 3, TUNINGS))
    == ablation_results.ONE_SEED
  )
  assert ablation_results.judge_glue(scores.NO_CONTRAST) == ''


def test_where_it_is_shown(tmp_path: pathlib.Path, capsys):
  home, out = tmp_path / 'runs', tmp_path / 'out'
  pairs = [pair(home, seed) for seed in (0, 1, 2)]
  command = ['ablations', f'--base={home}/paper-0', str(home), f'--workdir={out}']
  assert main.main(command) == 0
  assert not (out / 'glue.csv').exists() and 'GLUE' not in capsys.readouterr().out
  assert 'GLUE' not in Page((out / 'compare.html').read_text()).text
  for seed, sources in enumerate(pairs):
    for source, gain in zip(sources, (0, 0.001 * seed)):
      for task in ('rte', 'wnli'):
        write_glue_run(source, task, {0: 0.5 + gain})
  assert main.main(command) == 0
  said = ' '.join(capsys.readouterr().out.split())
  assert (
    'No worse on GLUE (the interval lies above minus one point): norm=pre (+0.1 [-0.1, +0.3] points, 2 tasks'
    in said
  )
  page = Page((out / 'compare.html').read_text())
  assert 'GLUE' in page.text and '50.1 against 50.0' in page.text
  base, row = csv.DictReader((out / 'changes.csv').read_text().splitlines())
  assert (row['glue_verdict'], row['glue_tasks'], row['glue_n']) == (
    ablation_results.NO_WORSE,
    'rte wnli',
    '3',
  )
  assert (
    float(row['glue_difference']) == pytest.approx(0.001)
    and base['glue_n'] == '0'
    and not base['glue_verdict']
  )
  assert [row['task'] for row in csv.DictReader((out / 'glue.csv').read_text().splitlines())] == [
    AVERAGE,
    'rte',
    'wnli',
  ]


def there(*values: float, first: int = 0) -> dict[int, tuple[float, bool]]:
  return {seed: (value, True) for seed, value in enumerate(values, first)}


def short(*values: float) -> dict[int, tuple[float, bool]]:
  return {seed: (value, False) for seed, value in enumerate(values)}


def track(*loss: float):
  return make_loss_curve(
    'run', [2**n for n in range(1, len(loss) + 1)], loss, per_row=1.0, counts=('actual',)
  )


def test_examples_in_docstrings_multiplier():
  assert doctest.testmod(ablation_results).failed == 0


def test_a_power_law_is_crossed_where_it_says():
  run = track(*(10 * (256 * 2**n) ** -0.2 for n in range(1, 9)))
  for flops in (600.0, 1024.0, 50_000.0):
    loss = 10 * flops**-0.2
    assert ablation_results.interpolate_flops(run, loss) == pytest.approx(flops)
    assert ablation_results.interpolate_loss(run, flops) == pytest.approx(loss)


def test_it_is_the_first_time_that_a_loss_is_reached():
  run = track(8, 4, 6, 4, 2)
  assert (
    ablation_results.interpolate_flops(run, 4) == 1024
    and ablation_results.interpolate_flops(run, 8) == 512
  )
  assert ablation_results.interpolate_flops(run, 9) == 512 and math.isnan(
    ablation_results.interpolate_flops(run, 1.9)
  )
  assert ablation_results.interpolate_flops(run, 3.9) > 4096  # not before it has come back


def test_nothing_is_extrapolated():
  run = track(8, 4, 2)
  assert math.isnan(ablation_results.interpolate_loss(run, 500)) and math.isnan(
    ablation_results.interpolate_loss(run, 2100)
  )
  assert (
    ablation_results.interpolate_loss(run, 2070) == 2
  )  # a last evaluation that is one hundredth short


def test_pairs_take_out_what_seeds_share():
  base = there(100.0, 200.0, 400.0)
  paired = compute_ratio(base, there(50.0, 100.0, 200.0))
  assert paired.paired and (paired.value, paired.low, paired.high) == pytest.approx((2, 2, 2))
  apart = compute_ratio(base, there(50.0, 100.0, 200.0, first=7))
  assert not apart.paired and apart.value == pytest.approx(2) and apart.low < 1 < apart.high
  some = compute_ratio(base, there(100.0, 200.0, first=1))  # the seeds 1 and 2 of both
  assert some.paired and (some.base_seeds, some.seeds) == (2, 2) and some.value == pytest.approx(2)


def test_the_interval_is_students_of_the_logarithms():
  base, change = (8.0, 9.0, 11.0), (3.0, 2.5, 2.0)
  low, high = metrics.confidence_interval(np.log(base) - np.log(change))
  found = compute_ratio(there(*base), there(*change))
  assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))
  assert found.value == pytest.approx(math.exp(np.mean(np.log(base) - np.log(change))))


def test_one_seed_gives_no_interval():
  for base, change in (
    (there(8.0), there(2.0)),
    (there(8.0, 16.0), there(2.0)),
    (there(8.0), there(2.0, first=3)),
  ):
    found = compute_ratio(base, change)
    assert math.isnan(found.low) and math.isnan(found.high) and found.value > 3.9
  # of the seed that both have
  assert compute_ratio(there(8.0, 100.0), there(2.0)).value == pytest.approx(4)
  assert compute_ratio({}, there(2.0)) == ablation_results.NO_RATIO


def test_a_run_that_never_got_there_gives_a_bound():
  least = compute_ratio(short(8.0, 8.0), there(2.0, 1.9))
  assert least.bound == AT_LEAST and least.high == math.inf and 2.9 < least.low < least.value
  most = compute_ratio(there(4.0, 4.4), short(8.0, 8.0))
  assert most.bound == AT_MOST and most.low == 0 and most.value < most.high < 1
  neither = compute_ratio(short(8.0, 8.0), {0: (2.0, True), 1: (8.0, False)})
  assert (
    neither.bound == NEITHER_LEFT and math.isnan(neither.value) and str(neither) == 'neither left'
  )
  assert str(compute_ratio(short(8.0), there(2.0))) == 'at least 4.00'


def test_the_open_end_of_a_bound_is_as_sure_as_an_interval():
  """Of changes that take a third, and bases that are cut short at times, the end lies below 3 in
  97.5% or more.
  """
  random, held = np.random.default_rng(0), 0
  for _ in range(400):
    base, change = (np.exp(random.normal(np.log(middle), 0.2, 4)).tolist() for middle in (300, 100))
    cut = {seed: (min(value, 320.0), value < 320) for seed, value in enumerate(base)}
    held += compute_ratio(cut, there(*change)).low <= 3
  assert held / 400 > 0.96
