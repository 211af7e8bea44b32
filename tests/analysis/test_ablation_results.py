"""Speed-ups and multipliers of ablations equal those that are computed by hand."""

import math
import pathlib
from collections.abc import Sequence

import numpy as np
import pytest

from minilm_jax.analysis import ablation_results, ablations
from minilm_jax.analysis.ablation_results import AT_LEAST, AT_MOST, NEITHER_LEFT, compute_ratio
from minilm_jax.core import run_dir
from minilm_jax.tasks import metrics
from tests.fake_runs import make_loss_curve, write_plateau_run


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
