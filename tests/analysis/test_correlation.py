"""Losses against scores: coefficients against SciPy's, resampling of models, what is left out,
depth at one size.
"""

import math

import numpy as np
import pytest
from scipy import stats

from minilm_jax.analysis import correlation, scores
from tests import fake_runs

TASKS = ('cola', 'sst2', 'rte')


def grid(losses: list[float], **changes: object) -> list:
  return [
    fake_runs.make_scaling_curve(f'r{n}', loss, hidden=32 + n, **changes)
    for n, loss in enumerate(losses)
  ]


def table(
  tracks: list,
  of=lambda track: 1 - track.loss[-1] / 10,
  scratch: float | None = 0.1,
  **fields: object,
) -> list:
  lines = [
    fake_runs.make_score_line(
      of(track), task=task, checkpoint=track.name, checkpoint_step=track.updates[-1], **fields
    )
    for track in tracks
    for task in TASKS
  ]
  if scratch is not None:
    lines += [
      fake_runs.make_score_line(
        scratch, task=task, checkpoint=track.name, pretrained=False, **fields
      )
      for track in tracks
      for task in TASKS
    ]
  return scores.score_table(lines)


def all_of(tracks: list, rows: list, **changes: object) -> tuple[list, list[str]]:
  found, left_out = correlation.match_scores(tracks, rows, scores.average_tasks(rows))
  made, more = correlation.correlate(found, **changes)
  return made, left_out + more


def test_coefficients_are_those_of_scipy_with_ties():
  rng = np.random.default_rng(0)
  x, y = rng.integers(0, 5, (2, 30, 12)).astype(float)
  x[0], y[1] = 2.0, 7.0
  found = correlation.compute_coefficients(x, y)
  assert np.isnan(found[:, :2]).all()
  for n in range(2, 30):
    wanted = [
      function(x[n], y[n]).statistic
      for function in (stats.pearsonr, stats.spearmanr, stats.kendalltau)
    ]
    assert found[:, n] == pytest.approx(wanted)


def test_a_score_that_follows_the_loss_is_perfectly_correlated_with_it():
  tracks = grid([2.0, 2.2, 2.5, 3.0, 3.1])
  made, left_out = all_of(tracks, table(tracks))
  alone = [one for one in made if not one.from_scratch]
  assert not left_out and {one.series.split(',')[0] for one in alone} >= {*TASKS, 'average of cola'}
  for one in alone:
    assert (one.models, one.points) == (5, 5)
    assert [each.value for each in (one.pearson, one.spearman, one.kendall)] == pytest.approx(
      [-1] * 3
    )
    assert [one.pearson.low, one.pearson.high] == pytest.approx([-1, -1])
  with_scratch = [one for one in made if one.from_scratch]
  assert len(with_scratch) == len(alone) and {one.points for one in with_scratch} == {10}
  # An untrained model has a loss of ln V and the score from scratch.
  x = [*(track.loss[-1] for track in tracks), *[math.log(1000)] * 5]
  wanted = stats.pearsonr(x, [*(1 - track.loss[-1] / 10 for track in tracks), *[0.1] * 5]).statistic
  assert with_scratch[0].pearson.value == pytest.approx(wanted)


def test_the_interval_holds_the_value_widens_with_noise_and_repeats():
  rng = np.random.default_rng(1)
  tracks = grid(list(np.linspace(2, 3, 12)))
  noise = dict(zip([track.name for track in tracks], rng.normal(0, 0.05, 12)))
  rows = table(tracks, lambda track: 1 - track.loss[-1] / 10 + noise[track.name], scratch=None)
  (one, *_), _ = all_of(tracks, rows)
  assert (
    one.pearson.low < one.pearson.value < one.pearson.high
    and one.pearson.high - one.pearson.low > 0.1
  )
  assert all_of(tracks, rows)[0][0] == one and all_of(tracks, rows, seed=1)[0][0] != one


def test_constant_scores_have_no_correlation():
  tracks = grid([2.0, 2.2, 2.5, 3.0])
  (one, *_), _ = all_of(tracks, table(tracks, lambda track: 0.5, scratch=None))
  assert math.isnan(one.pearson.value) and math.isnan(one.kendall.low) and one.degenerate == 1


def test_resamples_of_one_model_are_counted():
  tracks = grid([2.0, 2.2, 2.5, 3.0])
  (one, *_), _ = all_of(tracks, table(tracks, scratch=None), draws=20000)
  assert one.degenerate == pytest.approx(4 / 4**4, abs=0.005)  # all four draws the same model


def test_few_models_several_rows_and_strangers_are_left_out_with_the_reason():
  tracks = grid([2.0, 2.2, 2.5])
  made, left_out = all_of(tracks, table(tracks))
  assert not made and any('3 models' in text for text in left_out)
  tracks = grid([2.0, 2.2, 2.5, 3.0])
  rows = table(tracks)
  made, left_out = all_of(tracks[1:], rows)
  assert not made and any(text.startswith('scores of r0') for text in left_out)
  lines = [
    fake_runs.make_score_line(0.5, checkpoint='r0', checkpoint_step=800, learning_rate=rate)
    for rate in (1e-4, 2e-4)
  ]
  _, left_out = correlation.match_scores(tracks, scores.score_table(lines), [])
  assert any('2 rows that nothing chose between' in text for text in left_out)


def test_the_loss_is_that_of_the_step_of_the_checkpoint():
  (track,) = grid([2.0])
  lines = [
    fake_runs.make_score_line(0.5, checkpoint='r0', checkpoint_step=step) for step in (100, 350)
  ]
  found, _ = correlation.match_scores([track], scores.score_table(lines), [])
  ((model,),) = found.values()
  assert model.loss == track.loss[track.updates.index(300)]


def test_bits_per_word_where_they_were_taken_and_losses_of_one_vocabulary_alone():
  tracks = [
    fake_runs.make_scaling_curve(
      f'r{n}', 2 + n, hidden=32 + n, bits_per_word=5.0 + n, vocabulary=1000 + n
    )
    for n in range(5)
  ]
  made, left_out = all_of(tracks, table(tracks), vocabularies=5)
  assert {one.measure for one in made} == {correlation.BITS} and not any(
    one.from_scratch for one in made
  )
  assert any('5 vocabularies do not compare' in text for text in left_out)
  assert made[0].pearson.value == pytest.approx(-1)


def test_depth_is_compared_at_one_size_or_one_cost():
  shallow = fake_runs.make_scaling_curve('shallow', 2.0, feed_forward=300, layers=4)
  deep = fake_runs.make_scaling_curve('deep', 2.1, feed_forward=128, layers=8)
  large = fake_runs.make_scaling_curve('large', 1.0, hidden=256, layers=8)
  pairs = correlation.compare_depths(
    [
      large,
      deep,
      shallow,
      fake_runs.make_scaling_curve('cut', feed_forward=256, layers=5, finished=False),
    ],
    {},
  )
  assert {(pair.shallow, pair.deep, pair.matched) for pair in pairs} == {
    ('shallow', 'deep', 'parameters'),
    ('shallow', 'deep', 'FLOPs'),
  }
  assert (
    pairs[0].loss == pytest.approx(0.1) and pairs[0].series == '' and math.isnan(pairs[0].score)
  )
  assert pairs[0].ratio == pytest.approx(deep.parameters / shallow.parameters)
  scored_ones = {
    'cola': [
      correlation.ScoredModel(name, 2, math.nan, 7, 1, score, math.nan, math.nan, math.nan)
      for name, score in (('shallow', 0.3), ('deep', 0.2))
    ]
  }
  assert correlation.compare_depths([deep, shallow], scored_ones)[0].score == pytest.approx(-0.1)
