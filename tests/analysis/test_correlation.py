"""Coefficients equal those of SciPy; intervals resample models."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from minilm_jax.analysis import correlation, scores
from minilm_jax.analysis.report import scaling_report
from tests import fake_runs

TASKS = ('cola', 'sst2', 'rte')


def make_curves(losses: list[float], **changes: object) -> list:
  return [
    fake_runs.make_scaling_curve(f'r{n}', loss, hidden=32 + n, **changes)
    for n, loss in enumerate(losses)
  ]


def make_scores(
  curves: list,
  score=lambda curve: 1 - curve.loss[-1] / 10,
  scratch: float | None = 0.1,
  **fields: object,
) -> list:
  lines = [
    fake_runs.make_score_line(
      score(curve), task=task, checkpoint=curve.name, checkpoint_step=curve.updates[-1], **fields
    )
    for curve in curves
    for task in TASKS
  ]
  if scratch is not None:
    lines += [
      fake_runs.make_score_line(
        scratch, task=task, checkpoint=curve.name, pretrained=False, **fields
      )
      for curve in curves
      for task in TASKS
    ]
  return scores.make_score_table(lines)


def correlate_all(curves: list, rows: list, **changes: object) -> tuple[list, list[str]]:
  models, left_out = correlation.match_scores(curves, rows, scores.average_tasks(rows))
  correlations, reasons = correlation.correlate(models, **changes)
  return correlations, left_out + reasons


def test_coefficients_equal_those_of_scipy_with_ties():
  rng = np.random.default_rng(0)
  x, y = rng.integers(0, 5, (2, 30, 12)).astype(float)
  x[0], y[1] = 2.0, 7.0
  coefficients = correlation.compute_coefficients(x, y, rng.normal(size=x.shape))
  assert np.isnan(coefficients[:, :2]).all()
  for n in range(2, 30):
    expected = [
      function(x[n], y[n]).statistic
      for function in (stats.pearsonr, stats.spearmanr, stats.kendalltau)
    ]
    assert coefficients[:3, n] == pytest.approx(expected)


def test_the_partial_coefficient_is_that_of_residuals_of_ranks():
  rng = np.random.default_rng(3)
  size = rng.normal(size=(1, 40))
  x, y = size + rng.normal(size=(2, 1, 40))
  ranks = [stats.rankdata(values[0]) for values in (x, y, size)]
  residuals = [
    values - np.polyval(np.polyfit(ranks[2], values, 1), ranks[2]) for values in ranks[:2]
  ]
  coefficients = correlation.compute_coefficients(x, y, size)[:, 0]
  assert coefficients[3] == pytest.approx(stats.pearsonr(*residuals).statistic)
  assert coefficients[1] > coefficients[3] + 0.1  # a common cause
  constant, determined = np.ones_like(size), size**3
  assert np.isnan(correlation.compute_coefficients(x, y, constant)[3, 0])
  assert np.isnan(correlation.compute_coefficients(determined, y, size)[3, 0])


def test_scores_linear_in_the_loss_have_a_coefficient_of_minus_one():
  curves = make_curves([2.0, 2.2, 2.5, 3.0, 3.1])
  correlations, left_out = correlate_all(curves, make_scores(curves))
  pretrained = [result for result in correlations if not result.from_scratch]
  assert not left_out and {result.series.split(',')[0] for result in pretrained} >= {
    *TASKS,
    'average of cola',
  }
  for result in pretrained:
    assert (result.models, result.points) == (5, 5)
    assert [
      estimate.value for estimate in (result.pearson, result.spearman, result.kendall)
    ] == pytest.approx([-1] * 3)
    assert [result.pearson.low, result.pearson.high] == pytest.approx([-1, -1])
  with_scratch = [result for result in correlations if result.from_scratch]
  assert len(with_scratch) == len(pretrained) and {result.points for result in with_scratch} == {10}
  # An untrained model has the loss ln V and the score from scratch.
  x = [*(curve.loss[-1] for curve in curves), *[math.log(1000)] * 5]
  expected = stats.pearsonr(
    x, [*(1 - curve.loss[-1] / 10 for curve in curves), *[0.1] * 5]
  ).statistic
  assert with_scratch[0].pearson.value == pytest.approx(expected)


def test_intervals_contain_the_value_and_follow_the_seed():
  rng = np.random.default_rng(1)
  curves = make_curves(list(np.linspace(2, 3, 12)))
  noise = dict(zip([curve.name for curve in curves], rng.normal(0, 0.05, 12)))
  rows = make_scores(
    curves, lambda curve: 1 - curve.loss[-1] / 10 + noise[curve.name], scratch=None
  )
  (result, *_), _ = correlate_all(curves, rows)
  assert (
    result.pearson.low < result.pearson.value < result.pearson.high
    and result.pearson.high - result.pearson.low > 0.1
  )
  assert (
    correlate_all(curves, rows)[0][0].pearson == result.pearson
    and correlate_all(curves, rows, seed=1)[0][0].pearson != result.pearson
  )


def test_seeds_of_one_recipe_are_one_model():
  """Four recipes of three seeds have the values of four models with the mean losses and scores."""
  rng = np.random.default_rng(5)
  losses, values = (rng.normal([[3], [4], [5], [6]], 0.1, (4, 3)) for _ in range(2))
  values = values[[2, 0, 3, 1]] / 10
  seeds = [
    fake_runs.make_scaling_curve(f'r{n}-{seed}', losses[n, seed], hidden=32 + n, seed=seed)
    for n in range(4)
    for seed in range(3)
  ]
  means = make_curves(losses.mean(1).tolist())
  by_name = {f'r{n}-{seed}': values[n, seed] for n in range(4) for seed in range(3)}
  by_name |= {f'r{n}': values[n].mean() for n in range(4)}
  of_seeds, of_means = (
    correlate_all(curves, make_scores(curves, lambda curve: by_name[curve.name]))[0]
    for curves in (seeds, means)
  )
  assert [entry.models for entry in of_seeds] == [4] * len(of_means)
  for entry, expected in zip(of_seeds, of_means, strict=True):
    for field in ('pearson', 'spearman', 'partial'):
      pair = [dataclasses.astuple(getattr(side, field)) for side in (entry, expected)]
      assert pair[0] == pytest.approx(pair[1], nan_ok=True)
  _, left_out = correlate_all(seeds[:9], make_scores(seeds[:9]))
  assert any('3 models' in text for text in left_out)


@pytest.mark.parametrize('models, verdict', [(4, 'undecided'), (5, 'undecided'), (6, 'yes')])
def test_a_perfect_order_of_few_models_gives_no_verdict(models: int, verdict: str):
  """By chance four models have the order of their losses, or its reverse, in 2 of 24 cases."""
  curves = make_curves(np.linspace(2, 3, models).tolist())
  rows = make_scores(curves)
  results = scaling_report.study_models(curves, rows, scores.average_tasks(rows), [], {}, 50)
  (answer,) = (
    answer
    for answer in scaling_report.answer_questions(results)
    if 'lower validation loss' in answer.question
  )
  assert answer.verdict == verdict and '-1.00' in answer.number


def test_constant_scores_have_no_correlation():
  curves = make_curves([2.0, 2.2, 2.5, 3.0])
  (result, *_), _ = correlate_all(curves, make_scores(curves, lambda curve: 0.5, scratch=None))
  assert (
    math.isnan(result.pearson.value) and math.isnan(result.kendall.low) and result.degenerate == 1
  )


def test_resamples_of_one_model_are_counted():
  curves = make_curves([2.0, 2.2, 2.5, 3.0])
  (result, *_), _ = correlate_all(curves, make_scores(curves, scratch=None), draws=20000)
  assert result.degenerate == pytest.approx(4 / 4**4, abs=0.005)  # with one model in all four draws


def test_few_models_several_rows_and_unknown_runs_are_left_out():
  curves = make_curves([2.0, 2.2, 2.5])
  correlations, left_out = correlate_all(curves, make_scores(curves))
  assert not correlations and any('3 models' in text for text in left_out)
  curves = make_curves([2.0, 2.2, 2.5, 3.0])
  rows = make_scores(curves)
  correlations, left_out = correlate_all(curves[1:], rows)
  assert not correlations and any(text.startswith('scores of r0') for text in left_out)
  lines = [
    fake_runs.make_score_line(0.5, checkpoint='r0', checkpoint_step=800, learning_rate=rate)
    for rate in (1e-4, 2e-4)
  ]
  _, left_out = correlation.match_scores(curves, scores.make_score_table(lines), [])
  assert any('r0: 2 learning rates' in text for text in left_out)


def test_scores_of_different_protocols_are_different_series():
  curves = make_curves([2.0, 2.2, 2.5, 3.0])
  lines = [
    {
      **fake_runs.make_score_line(
        0.5, task=task, checkpoint=curve.name, checkpoint_step=800, train_examples=train_examples
      ),
      'protocol': {'epochs': epochs},
    }
    for curve, epochs in zip(curves, (1.0, 1.0, 10.0, 10.0))
    for task, train_examples in (('rte', 2490), ('cola', int(100 * epochs)))
  ]
  rows = scores.make_score_table(lines)
  models, _ = correlation.match_scores(curves, rows, scores.average_tasks(rows))
  assert sorted([model.name for model in series] for series in models.values()) == [
    ['r0', 'r1'],
    ['r0', 'r1'],
    ['r0', 'r1'],
    ['r2', 'r3'],
    ['r2', 'r3'],
    ['r2', 'r3'],
  ]
  names = [name for name in models if name.startswith('rte')]
  assert ['epochs=1.0' in name for name in names] == [True, False]
  assert any(name.startswith('cola') and '1,000 training examples' in name for name in models)


def test_the_loss_is_that_of_the_step_of_the_checkpoint():
  (curve,) = make_curves([2.0])
  lines = [
    fake_runs.make_score_line(0.5, checkpoint='r0', checkpoint_step=step) for step in (100, 350)
  ]
  models, _ = correlation.match_scores([curve], scores.make_score_table(lines), [])
  ((model,),) = models.values()
  assert model.loss == curve.loss[curve.updates.index(300)]


def test_a_checkpoint_before_the_first_evaluation_has_no_loss():
  (curve,) = make_curves([2.0])
  step = curve.updates[0] - 1
  lines = [fake_runs.make_score_line(0.5, checkpoint='r0', checkpoint_step=step)]
  models, _ = correlation.match_scores([curve], scores.make_score_table(lines), [])
  ((model,),) = models.values()
  assert step > 0 and math.isnan(model.loss)
  steps = (step, *curve.updates[:4])
  lines = [
    fake_runs.make_score_line(0.1 * number, checkpoint='r0', checkpoint_step=step)
    for number, step in enumerate(steps)
  ]
  (found,) = correlation.correlate_checkpoints([curve], scores.make_score_table(lines), [])
  assert found.checkpoints == 4 and found.high_loss == curve.loss[0]


def test_the_detectable_coefficient_is_found_in_four_of_five_samples():
  """Ten points of a bivariate normal distribution; the test of Pearson's coefficient at 5%."""
  rho, rng = correlation.smallest_detectable_coefficient(10), np.random.default_rng(0)
  x, noise = rng.normal(size=(2, 2000, 10))
  y = rho * x + math.sqrt(1 - rho**2) * noise
  assert 0.8 <= np.mean(stats.pearsonr(x, y, axis=1).pvalue < 0.05) < 0.87
  assert correlation.smallest_detectable_coefficient(3) == 1


def test_checkpoints_of_a_run_have_one_coefficient():
  """Losses fall at each step. Scores rise, but for the last two of five of the second run."""
  curves = make_curves([2.0, 2.5, 3.0])
  by_run = {'r0': [0.1, 0.2, 0.3, 0.4, 0.5], 'r1': [0.1, 0.2, 0.3, 0.5, 0.4], 'r2': [0.1, 0.2, 0.3]}
  steps = curves[0].updates[-5:]
  lines = [
    fake_runs.make_score_line(score, task=task, checkpoint=run, checkpoint_step=step)
    for run, values in by_run.items()
    for step, score in zip(steps, values, strict=False)
    for task in TASKS
  ]
  lines += [
    fake_runs.make_score_line(0.9, checkpoint='r0', checkpoint_step=steps[0], learning_rate=rate)
    for rate in (1e-4, 2e-4)
  ]
  rows = scores.make_score_table(lines)
  found = correlation.correlate_checkpoints(curves, rows, scores.average_tasks(rows))
  of_cola = {entry.run: entry for entry in found if entry.series.startswith('cola')}
  assert of_cola['r0'].checkpoints == 4  # one has two learning rates, of which none was chosen
  of_rte = {entry.run: entry for entry in found if entry.series.startswith('rte')}
  assert set(of_rte) == {'r0', 'r1'}  # three checkpoints are too few
  assert {run: entry.checkpoints for run, entry in of_rte.items()} == {'r0': 5, 'r1': 5}
  assert of_rte['r0'].spearman == pytest.approx(-1)
  assert of_rte['r1'].spearman == pytest.approx(-0.9)  # 1 - 6 * 2 / (5 * 24)
  assert (of_rte['r1'].low_score, of_rte['r1'].high_score) == (0.1, 0.5)
  assert of_rte['r1'].low_loss == curves[1].loss[-1] < of_rte['r1'].high_loss
  assert any(entry.series.startswith('average') and entry.run == 'r1' for entry in found)


def test_models_with_several_vocabularies_are_compared_by_bits_per_word():
  curves = [
    fake_runs.make_scaling_curve(
      f'r{n}', 2 + n, hidden=32 + n, bits_per_word=5.0 + n, vocabulary=1000 + n
    )
    for n in range(5)
  ]
  correlations, left_out = correlate_all(curves, make_scores(curves), vocabularies=5)
  assert {result.measure for result in correlations} == {correlation.BITS} and not any(
    result.from_scratch for result in correlations
  )
  assert any('5 vocabularies' in text for text in left_out)
  assert correlations[0].pearson.value == pytest.approx(-1)
