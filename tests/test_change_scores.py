"""GLUE of changes against their base on made runs: pairs, averages and the verdict by hand, and where they are shown."""

import csv
import doctest
import math
import pathlib

import pytest

from minilm_jax import __main__ as door
from minilm_jax.analysis import change_scores, changes, contrasts, outcomes, runs
from minilm_jax.analysis.change_scores import AVERAGE, GlueRow
from minilm_jax.analysis.contrasts import TRAININGS, TUNINGS, Contrast
from minilm_jax.analysis.scores import score_table, select_main
from tests.fake_runs import write_glue_run, write_plateau_run
from tests.html_page import Page

T_TWO = 4.302653  # Student's t of two degrees of freedom


def pair(home: pathlib.Path, seed: int) -> tuple[pathlib.Path, pathlib.Path]:
  return (write_plateau_run(home / f'paper-{seed}', seed=seed, updates=200, planned=200),
          write_plateau_run(home / f'pre-{seed}', seed=seed, updates=200, planned=200, model__norm='pre'))


def find(home: pathlib.Path, base: str = 'paper-0') -> dict[str, GlueRow]:
  compared = changes.read_comparison([home / base], [home])
  part, = compared.shapes
  return {row.task: row for row in change_scores.find_glue_rows(part, select_main(score_table(runs.scores(compared.found))))}


@pytest.mark.parametrize('module', [change_scores, contrasts])
def test_examples_in_docstrings(module):
  assert doctest.testmod(module).failed == 0


def test_several_pre_trainings_are_the_pairs(tmp_path: pathlib.Path):
  for seed in (0, 1, 2):
    for source, gain in zip(pair(tmp_path, seed), (0, 0.01 * seed)):
      write_glue_run(source, 'rte', {0: 0.5 + gain, 1: 0.6 + gain, **({9: 0.0} if gain else {})})  # 9: no twin
      write_glue_run(source, 'wnli', {0: 0.4})
      write_glue_run(source, 'mnli', {0: 0.3}, split='validation_mismatched')
      write_glue_run(source, 'ag_news', {0: 0.9})
  found = find(tmp_path)
  assert list(found) == [AVERAGE, 'rte', 'wnli'] and found[AVERAGE].tasks == ('rte', 'wnli')
  rte, average = found['rte'].score, found[AVERAGE].score
  assert (rte.base, rte.value, rte.difference, rte.n, rte.of) == (*map(pytest.approx, (0.55, 0.56, 0.01)), 3, TRAININGS)
  assert (rte.low, rte.high) == pytest.approx((0.01 - T_TWO * 0.01 / 3**0.5, 0.01 + T_TWO * 0.01 / 3**0.5), rel=1e-5)
  assert average.difference == pytest.approx(0.005) and average.high - average.low == pytest.approx((rte.high - rte.low) / 2)


def test_one_pre_training_has_seeds_of_fine_tuning_for_pairs(tmp_path: pathlib.Path):
  paper, pre = pair(tmp_path, 0)
  for source, gain in ((paper, 0), (pre, 0.02)):
    write_glue_run(source, 'rte', {0: 0.5, 1: 0.6 + gain, 2: 0.6 + 2 * gain})
    write_glue_run(source, 'wnli', {0: 0.4, 2: 0.4, 7: 0.9})
  write_plateau_run(tmp_path / 'pre-5', seed=5, updates=200, planned=200, model__norm='pre')  # never scored
  found = find(tmp_path)
  assert (found['rte'].score.n, found['rte'].score.of) == (3, TUNINGS)
  assert found['rte'].score.difference == pytest.approx(0.02)
  assert (found[AVERAGE].score.n, found[AVERAGE].score.difference) == (2, pytest.approx(0.01))  # the seeds 0 and 2


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


@pytest.mark.parametrize('low, high, said', [
    (-0.0099, 0.05, outcomes.NO_WORSE), (0.02, 0.05, outcomes.NO_WORSE), (-0.0099, -0.001, outcomes.NO_WORSE),
    (-0.01, 0.05, outcomes.OPEN), (-0.05, -0.01, outcomes.OPEN), (-0.05, -0.0101, outcomes.WORSE),
    (math.nan, math.nan, outcomes.OPEN)])
def test_the_rule(low: float, high: float, said: str):
  assert outcomes.glue_verdict(Contrast(0.5, 0.5, 0.0, low, high, 3, TRAININGS)) == said
  assert outcomes.glue_verdict(Contrast(0.5, 0.5, 0.0, low, high, 3, TUNINGS)) == outcomes.ONE_SEED
  assert outcomes.glue_verdict(contrasts.NO_CONTRAST) == ''


def test_where_it_is_shown(tmp_path: pathlib.Path, capsys):
  home, out = tmp_path / 'runs', tmp_path / 'out'
  pairs = [pair(home, seed) for seed in (0, 1, 2)]
  command = ['ablations', f'--base={home}/paper-0', str(home), f'--workdir={out}']
  assert door.main(command) == 0
  assert not (out / 'glue.csv').exists() and 'GLUE' not in capsys.readouterr().out
  assert 'GLUE' not in Page((out / 'compare.html').read_text()).text
  for seed, sources in enumerate(pairs):
    for source, gain in zip(sources, (0, 0.001 * seed)):
      for task in ('rte', 'wnli'):
        write_glue_run(source, task, {0: 0.5 + gain})
  assert door.main(command) == 0
  said = ' '.join(capsys.readouterr().out.split())
  assert 'No worse on GLUE (the interval lies above minus one point): norm=pre (+0.1 [-0.1, +0.3] points, 2 tasks' in said
  page = Page((out / 'compare.html').read_text())
  assert 'GLUE' in page.text and '50.1 against 50.0' in page.text
  base, row = csv.DictReader((out / 'changes.csv').read_text().splitlines())
  assert (row['glue_verdict'], row['glue_tasks'], row['glue_n']) == (outcomes.NO_WORSE, 'rte wnli', '3')
  assert float(row['glue_difference']) == pytest.approx(0.001) and base['glue_n'] == '0' and not base['glue_verdict']
  assert [row['task'] for row in csv.DictReader((out / 'glue.csv').read_text().splitlines())] == [AVERAGE, 'rte', 'wnli']
