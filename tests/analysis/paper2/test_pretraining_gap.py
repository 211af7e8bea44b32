"""Gaps compare equal models alone; slopes and their intervals equal those of the synthetic data."""

import csv
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from minilm_jax.analysis import runs, training_sets
from minilm_jax.analysis.paper2 import pretraining_gap
from minilm_jax.analysis.paper2.pretraining_gap import OVERLAP, SIZE, Gap, GapStudy, Slope
from minilm_jax.analysis.report import report
from minilm_jax.analysis.scores import make_score_table, select_main
from minilm_jax.analysis.seed_groups import Difference
from minilm_jax.core import files, run_dir
from tests.fake_runs import (
  change_config,
  write_finetune_pair,
  write_finetune_run,
  write_subset_run,
)
from tests.html_page import Page


def study_gaps(folder: pathlib.Path) -> GapStudy:
  run_paths = runs.find_runs([str(folder)])
  return pretraining_gap.find_gaps(
    training_sets.read_training_sets(run_paths),
    select_main(make_score_table(runs.read_scores(run_paths))),
  )


def write_gap(
  folder: pathlib.Path,
  name: str,
  rows: int,
  values: list[float],
  scratch: Sequence[float] = (0.5, 0.5, 0.5),
  **options: Any,
) -> None:
  """Writes a run on a subset, and the scores of both arms."""
  write_finetune_pair(folder, write_subset_run(folder / name, rows, **options), values, [*scratch])


def write_sizes(folder: pathlib.Path, gains: dict[int, float], **options: Any) -> None:
  for rows, gain in gains.items():
    scratch = [0.5, 0.52, 0.48]
    write_gap(folder, f'n{rows}', rows, [value + gain for value in scratch], scratch, **options)


def test_the_gap_by_size_has_points_and_a_slope(tmp_path: pathlib.Path):
  write_sizes(tmp_path, {1000: 0.01, 2000: 0.04, 4000: 0.07})
  study = study_gaps(tmp_path)
  assert [
    (point.rows, point.tokens, round(point.gap.mean, 6))
    for point in sorted(study.points, key=lambda p: p.rows)
  ] == [(1000, 100_000, 0.01), (2000, 200_000, 0.04), (4000, 400_000, 0.07)]
  assert {point.axis for point in study.points} == {SIZE} and all(
    point.gap.paired for point in study.points
  )
  (slope,) = study.slopes
  assert (
    slope.slope == pytest.approx(0.03) and slope.low == pytest.approx(0.03) and slope.seeds == 3
  )
  assert 'same updates' in slope.comparison and not study.left_out


def test_equal_arms_have_no_gap(tmp_path: pathlib.Path):
  for rows, noise in ((1000, 0.01), (2000, -0.01), (4000, 0.01)):
    write_gap(tmp_path, f'n{rows}', rows, [0.5 + noise, 0.5 - noise, 0.5])
  study = study_gaps(tmp_path)
  for point in study.points:
    assert point.gap.mean == pytest.approx(0) and point.gap.low < 0 < point.gap.high
  (slope,) = study.slopes
  assert slope.slope == pytest.approx(0, abs=1e-12) and slope.low <= 0 <= slope.high


def test_same_updates_and_same_epochs_are_two_comparisons(tmp_path: pathlib.Path):
  for rows, updates in ((1000, 100), (2000, 100), (1000, 200), (2000, 200), (4000, 400)):
    write_gap(tmp_path, f'n{rows}-{updates}', rows, [0.6, 0.7, 0.8], updates=updates)
  checkpoints = {}
  for point in study_gaps(tmp_path).points:
    checkpoints.setdefault(point.comparison.partition(', ')[2], set()).add(
      point.checkpoint.partition('/')[2] or point.checkpoint
    )
  assert checkpoints == {
    'same updates (3,200 rows)': {'n1000-100', 'n2000-100'},
    'same updates (6,400 rows)': {'n1000-200', 'n2000-200'},
    'same epochs (3.2)': {'n1000-100', 'n2000-200', 'n4000-400'},
  }


def test_runs_without_equal_updates_or_epochs_are_one_comparison(tmp_path: pathlib.Path):
  for rows, updates in ((1000, 100), (2000, 170)):
    write_gap(tmp_path, f'n{rows}', rows, [0.6, 0.7, 0.8], updates=updates)
  assert {point.comparison.partition(', ')[2] for point in study_gaps(tmp_path).points} == {
    'updates and epochs differ'
  }


def test_other_models_and_tokenizers_are_not_compared(tmp_path: pathlib.Path):
  write_gap(tmp_path, 'a', 1000, [0.6, 0.7, 0.8])
  write_gap(tmp_path, 'b', 2000, [0.6, 0.7, 0.8], hidden_size=64)
  write_gap(tmp_path, 'c', 4000, [0.6, 0.7, 0.8], tokenizer='other')
  study = study_gaps(tmp_path)
  assert not study.points and not study.slopes
  assert len(study.left_out) == 1 and '3 runs' in study.left_out[0]


def test_the_gap_by_overlap_has_points_and_a_slope(tmp_path: pathlib.Path):
  for number, overlap in enumerate((0.90, 0.92, 0.94)):
    source = write_subset_run(tmp_path / f'part-{number}', 1000, overlap=overlap)
    write_finetune_pair(tmp_path, source, [0.6 + overlap - 0.9] * 3, [0.5, 0.5, 0.5])
    # The overlap is with another task.
    write_finetune_pair(tmp_path, source, [0.6] * 3, [0.5] * 3, task='cola')
  write_gap(tmp_path, 'random', 1000, [0.62] * 3, overlap=0.92, by='random')
  study = study_gaps(tmp_path)
  assert {(point.axis, point.series.partition(',')[0]) for point in study.points} == {
    (OVERLAP, 'ag_news')
  }
  (slope,) = study.slopes
  assert slope.slope == pytest.approx(0.01) and (slope.points, slope.levels) == (4, 3)


def test_sets_selected_by_a_task_are_no_points_of_size(tmp_path: pathlib.Path):
  write_sizes(tmp_path, {1000: 0.01, 4000: 0.03})
  write_gap(tmp_path, 'part', 2000, [0.9] * 3, overlap=0.9)
  write_gap(tmp_path, 'control', 2000, [0.52] * 3, overlap=0.91, by='random')
  points = [point for point in study_gaps(tmp_path).points if point.axis == SIZE]
  assert {point.checkpoint for point in points} == {'n1000', 'n4000', 'control'}


def test_scores_from_scratch_are_borrowed_from_the_same_model_alone(tmp_path: pathlib.Path):
  write_gap(tmp_path, 'a', 1000, [0.6, 0.7, 0.8], scratch=[0.5, 0.6, 0.7])
  write_finetune_run(
    tmp_path / 'tasks' / 'b', write_subset_run(tmp_path / 'b', 2000), [0.8, 0.9, 1.0], True
  )
  other = write_subset_run(tmp_path / 'c', 4000, hidden_size=64)
  write_finetune_run(tmp_path / 'tasks' / 'c', other, [0.8, 0.9, 1.0], True)
  points = {point.checkpoint: point for point in study_gaps(tmp_path).points}
  assert set(points) == {'a', 'b'} and points['b'].borrowed and not points['a'].borrowed
  assert points['b'].gap.mean == pytest.approx(0.3) and points['b'].gap.paired


def test_scores_from_scratch_are_borrowed_from_the_same_protocol_alone(tmp_path: pathlib.Path):
  short, long = (
    write_subset_run(tmp_path / name, rows) for name, rows in (('short', 1000), ('long', 4000))
  )
  for source, epochs in ((short, 1.0), (long, 10.0)):
    folder = write_finetune_run(tmp_path / 'tasks' / source.name, source, [0.6, 0.7], True)
    change_config(folder, epochs=epochs)
  scratch = write_finetune_run(tmp_path / 'tasks' / 'scratch', short, [0.5, 0.6], False)
  change_config(scratch, epochs=10.0)
  study = study_gaps(tmp_path)
  assert not study.points and not study.slopes
  folder = write_finetune_run(tmp_path / 'tasks' / 'short-10', short, [0.6, 0.7], True)
  change_config(folder, epochs=10.0)
  points = {point.checkpoint: point for point in study_gaps(tmp_path).points}
  assert {name: round(point.gap.mean, 6) for name, point in points.items()} == {
    'short': 0.1,
    'long': 0.1,
  }
  assert all('epochs=10.0' in point.series for point in points.values())
  assert points['long'].borrowed and not points['short'].borrowed


def test_seeds_from_scratch_may_be_more_and_of_several_runs(tmp_path: pathlib.Path):
  """Seeds 0 and 1 are from scratch in one run, seed 2 in another."""
  first, other = (
    write_subset_run(tmp_path / name, rows) for name, rows in (('a', 1000), ('b', 2000))
  )
  write_finetune_run(tmp_path / 'tasks' / 'a-scratch', first, [0.5, 0.6], False)
  write_finetune_run(tmp_path / 'tasks' / 'b-scratch', other, [0.7], False, seeds=[2])
  write_finetune_run(tmp_path / 'tasks' / 'a', first, [0.6, 0.8], True, seeds=[1, 2])
  write_finetune_run(tmp_path / 'tasks' / 'b', other, [0.9, 0.9], True, seeds=[0, 3])
  points = {point.checkpoint: point for point in study_gaps(tmp_path).points}
  assert points['a'].gap.paired and points['a'].seeds == (1, 2)
  assert points['a'].values == pytest.approx([0.0, 0.1])
  assert points['a'].scratch == pytest.approx(0.65)
  # No run has seed 3 from scratch, so all three seeds from scratch count.
  assert not points['b'].gap.paired and points['b'].gap.mean == pytest.approx(0.3)
  assert points['b'].seeds == (0,) and points['b'].values == pytest.approx([0.4])
  assert points['a'].borrowed and points['b'].borrowed


def test_encoders_with_several_heads_are_no_points(tmp_path: pathlib.Path):
  write_sizes(tmp_path, {1000: 0.01, 2000: 0.04})
  for pretrained, value in ((True, 0.9), (False, 0.8)):
    folder = tmp_path / 'tasks' / f'heads-{pretrained}'
    change_config(
      write_finetune_run(folder, tmp_path / 'n1000', [value] * 3, pretrained),
      head={'ensemble_size': 5},
    )
  run_paths = runs.find_runs([str(tmp_path)])
  rows = {row.checkpoint: row for row in make_score_table(runs.read_scores(run_paths))}
  assert set(rows) == {'n1000', 'n2000', 'n1000, 5 heads'}
  assert rows['n1000, 5 heads'].difference.mean == pytest.approx(0.1)
  assert [point.checkpoint for point in study_gaps(tmp_path).points] == ['n1000', 'n2000']


def test_runs_without_a_training_set_in_the_manifest_are_left_out(tmp_path: pathlib.Path):
  source = write_subset_run(tmp_path / 'a', 1000)
  manifest = files.read_json(source / run_dir.MANIFEST, 'the manifest')
  files.write_json(
    source / run_dir.MANIFEST,
    {name: value for name, value in manifest.items() if name != 'training'},
  )
  write_finetune_pair(tmp_path, source, [0.6] * 3, [0.5] * 3)
  assert study_gaps(tmp_path) == GapStudy([], [], [])


def test_runs_on_full_corpora_give_no_reasons(tmp_path: pathlib.Path):
  write_gap(tmp_path, 'a', 1000, [0.6] * 3, of_rows=1000)
  assert study_gaps(tmp_path) == GapStudy([], [], [])


def test_a_report_has_tables_and_figures_of_the_gap(tmp_path: pathlib.Path):
  folder = tmp_path / 'runs'
  write_sizes(folder, {1000: 0.01, 2000: 0.04, 4000: 0.07})
  for number, overlap in enumerate((0.90, 0.92)):
    write_gap(folder, f'part<{number}', 2000, [0.6, 0.7, 0.8], overlap=overlap)
  write_finetune_run(
    folder / 'tasks' / 'lonely',
    write_subset_run(folder / 'lonely', 9000, hidden_size=64),
    [0.8] * 3,
    True,
  )
  written = report.report([str(folder)], tmp_path / 'report', draws=100)
  assert {
    'gap.csv',
    'slopes.csv',
    'gap-size.svg',
    'gap-size.png',
    'gap-overlap.svg',
    'gap-overlap.png',
  } <= set(written)
  text = written['report.html'].read_text()
  assert 'n1000: +1.0' in text and 'part<' not in text and '+3.0' in Page(text).text
  rows = list(csv.DictReader(written['gap.csv'].read_text().splitlines()))
  assert len(rows) == 5 and {row['axis'] for row in rows} == {SIZE, OVERLAP}
  again = report.report([str(folder)], tmp_path / 'again', draws=100)
  for name in ('gap.csv', 'slopes.csv', 'gap-size.svg', 'report.html'):
    assert again[name].read_bytes() == written[name].read_bytes()


def test_a_report_on_one_size_has_no_gap(tmp_path: pathlib.Path):
  folder = tmp_path / 'runs'
  write_gap(folder, 'a', 1000, [0.6] * 3)
  written = report.report([str(folder)], tmp_path / 'report', draws=50)
  assert 'gap.csv' not in written
  assert 'the gap of ag_news' in Page(written['report.html'].read_text()).text


def test_undefined_scores_are_no_points(tmp_path: pathlib.Path):
  write_sizes(tmp_path, {1000: 0.01, 2000: 0.02})
  write_gap(tmp_path, 'n4000', 4000, [math.nan] * 3)
  assert {point.checkpoint for point in study_gaps(tmp_path).points} == {'n1000', 'n2000'}


def make_gap(tokens: int, values: list[float], **fields: Any) -> Gap:
  """Returns a gap with values by seed, at a size or an overlap."""
  mean = float(np.mean(values))
  all_fields = {
    'axis': SIZE,
    'series': 'a',
    'overlap': math.nan,
    'seeds': tuple(range(len(values))),
    'pretraining_seed': 0,
  } | fields
  return Gap(
    comparison='one shape',
    checkpoint=f'n{tokens}',
    rows=tokens,
    tokens=tokens,
    epochs=1.0,
    pretrained=0.5 + mean,
    scratch=0.5,
    gap=Difference(mean, math.nan, math.nan, True),
    borrowed=False,
    values=tuple(values),
    **all_fields,
  )


def fit_single_slope(points: list[Gap]) -> Slope:
  (slope,) = pretraining_gap.fit_slopes(points)
  return slope


def test_the_slope_of_a_line_is_exact():
  slope = fit_single_slope(
    [make_gap(1000 * 2**n, [0.03 * n, 0.03 * n + 0.1, 0.03 * n - 0.1]) for n in range(5)]
  )
  assert (slope.slope, slope.low, slope.high) == pytest.approx((0.03, 0.03, 0.03))
  assert (slope.points, slope.levels, slope.tasks, slope.seeds) == (5, 5, 1, 3)
  overlap = fit_single_slope(
    [
      make_gap(1000, [0.02 * n, 0.02 * n + 0.1], axis=OVERLAP, overlap=0.9 + 0.01 * n)
      for n in range(4)
    ]
  )
  assert overlap.slope == pytest.approx(0.02)  # per point of overlap


def test_equal_gaps_have_a_slope_of_zero():
  random = np.random.default_rng(0)
  slope = fit_single_slope(
    [make_gap(1000 * 2**n, random.normal(0.1, 0.02, 8).tolist()) for n in range(4)]
  )
  assert abs(slope.slope) < 0.01 and slope.low < 0 < slope.high
  flat = fit_single_slope([make_gap(1000 * 2**n, [0.0, 0.0]) for n in range(3)])
  assert flat.slope == 0 == flat.low == flat.high


def test_intervals_of_a_slope_have_their_coverage():
  """Some 95% of the intervals of three seeds contain 0.02, that is 380 of 400 on average."""
  covered = 0
  for seed in range(400):
    random = np.random.default_rng(seed)
    seed_slopes = random.normal(0.02, 0.01, 3)
    points = [
      make_gap(1000 * 2**n, (seed_slopes * n + random.normal(0, 0.01, 3)).tolist())
      for n in range(4)
    ]
    slope = fit_single_slope(points)
    covered += slope.low <= 0.02 <= slope.high
  assert 365 <= covered <= 395


def test_the_mean_slope_is_over_seeds_and_not_over_tasks():
  points = [
    make_gap(1000 * 2**n, [(slope - 0.01) * n, (slope + 0.01) * n + 0.01], series=name)
    for name, slope in (('a', 0.01), ('b', 0.02), ('c', 0.06))
    for n in range(3)
  ]
  slopes = {slope.series: slope for slope in pretraining_gap.fit_slopes(points)}
  mean = slopes['mean of 3 tasks']
  assert mean.slope == pytest.approx(0.03) and mean.tasks == 3
  # All tasks have the slopes s - 0.01 and s + 0.01: the quantile 12.706 times 0.01.
  assert [mean.low, mean.high] == pytest.approx([0.03 - 0.12706, 0.03 + 0.12706], rel=1e-3)
  assert slopes['a'].high - slopes['a'].low == pytest.approx(mean.high - mean.low)


def test_slopes_of_few_points_have_a_note():
  assert pretraining_gap.fit_slopes([make_gap(1000, [0.1, 0.2])]) == []
  # Sizes within 0.5% are one level.
  assert pretraining_gap.fit_slopes([make_gap(1000, [0.1, 0.2]), make_gap(1005, [0.1, 0.2])]) == []
  two = fit_single_slope([make_gap(1000, [0.1, 0.2]), make_gap(2000, [0.2, 0.3])])
  assert two.note and two.slope == pytest.approx(0.1)
  single_seed = fit_single_slope([make_gap(1000 * 2**n, [0.1 * n]) for n in range(3)])
  assert math.isnan(single_seed.low) and single_seed.seeds == 0 and single_seed.note
  no_common_seed = fit_single_slope(
    [
      make_gap(1000, [0.1, 0.2]),
      make_gap(2000, [0.2, 0.3], seeds=(5, 6)),
      make_gap(4000, [0.3, 0.4]),
    ]
  )
  assert math.isnan(no_common_seed.low) and no_common_seed.slope == pytest.approx(0.1)


def test_the_wider_interval_of_both_kinds_of_seeds_counts():
  single = fit_single_slope([make_gap(1000 * 2**n, [0.1 * n, 0.1 * n]) for n in (0, 1, 2)])
  assert single.low == single.high and 'seeds of pre-training' in single.note
  # Slopes of 0.05 and 0.15 by seed of pre-training, without variance over seeds of fine-tuning.
  points = [
    make_gap(1000 * 2**n, [slope * n] * 2, pretraining_seed=seed)
    for n in (0, 1, 2)
    for seed, slope in enumerate((0.05, 0.15))
  ]
  slope = fit_single_slope(points)
  ends = [slope.slope, slope.low, slope.high]
  assert ends == pytest.approx([0.1, 0.1 - 12.706 * 0.05, 0.1 + 12.706 * 0.05], rel=1e-3)
  assert (slope.points, slope.levels, slope.note) == (6, 3, '')
  assert (slope.seeds, slope.seeds_of) == (2, pretraining_gap.PRETRAINING)
  # The third seed of pre-training lacks a level.
  assert fit_single_slope([*points, make_gap(1000, [0.3] * 2, pretraining_seed=2)]).seeds == 2


@pytest.mark.parametrize(
  'levels, seeds, tasks', [((0, 2, 4), 2, 1), ((0, 2, 4), 3, 3), ((0, 1, 2, 3, 5), 3, 1)]
)
def test_a_slope_of_zero_is_decided_in_5_percent_of_studies(
  levels: tuple[int, ...], seeds: int, tasks: int
):
  """The share of 400 studies is 5% on average, with a standard error of 1.1%."""
  random = np.random.default_rng(0)
  decided = 0
  for _ in range(400):
    points = [
      make_gap(1000 * 2**level, random.normal(0, 0.01, seeds).tolist(), series=f'task {task}')
      for level in levels
      for task in range(tasks)
    ]
    slope = pretraining_gap.fit_slopes(points)[-1]
    decided += slope.low > 0 or slope.high < 0
  assert slope.tasks == tasks and 8 <= decided <= 34
