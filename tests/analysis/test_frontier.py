"""Frontiers of the logs of paper 1 equal those of the paper; envelopes and plateaus have their properties."""

import math
import pathlib

import numpy as np
import pytest

from minilm_jax.analysis import frontier
from minilm_jax.core.errors import InputError
from tests.fake_runs import make_loss_curve, read_paper1_curves

# Frontier in the notebook of the paper: FLOPs in units of 1e14, loss, run.
PAPER = """
2.417 4.0417 magic-bee-26|3.665 3.3688 blooming-cosmos-33|4.912 3.2355 devoted-capybara-3|6.093 3.2250 likely-cloud-28|
7.368 3.1965 devoted-capybara-3|9.824 3.1762 devoted-capybara-3|11.34 3.1895 charmed-dew-2|
12.28 3.1538 devoted-capybara-3|13.32 3.1721 misty-lake-11|14.74 3.1399 devoted-capybara-3|
17.19 3.1256 devoted-capybara-3|19.65 3.1189 devoted-capybara-3|20.55 3.0859 laced-sun-4|
24.56 3.0906 devoted-capybara-3|26.25 2.8147 feasible-butterfly-9|29.34 2.5944 wise-dew-6|39.12 2.3979 wise-dew-6|
52.50 2.2638 feasible-butterfly-9|70.00 2.1831 feasible-butterfly-9|78.25 2.1569 wise-dew-6|97.81 2.1050 wise-dew-6|
117.4 2.0662 wise-dew-6|126.0 2.0250 apricot-meadow-20|155.6 1.9750 clean-sky-2|186.7 1.9104 clean-sky-2|
217.9 1.8603 clean-sky-2|280.1 1.7937 clean-sky-2|311.2 1.7679 clean-sky-2|404.6 1.7154 polar-sponge-3|
466.9 1.6847 polar-sponge-3|560.3 1.6465 polar-sponge-3|684.8 1.6126 polar-sponge-3|840.4 1.5784 polar-sponge-3|
1089 1.5389 polar-sponge-3"""


def test_the_frontier_of_the_logs_is_that_of_the_paper(data: pathlib.Path):
  curves = read_paper1_curves(data)
  assert (len(curves), sum(len(curve.loss) for curve in curves)) == (42, 1512)
  points = frontier.find_percentile_frontier(curves)
  frontier_points = [(f'{point.flops:.3e}', f'{point.loss:.4f}', point.run) for point in points]
  assert frontier_points == [
    (f'{1e14 * float(flops):.3e}', loss, run)
    for flops, loss, run in (line.split() for line in PAPER.replace('\n', '').split('|'))
  ]
  by_name = {curve.name: curve for curve in curves}
  assert all(point.parameters == by_name[point.run].parameters for point in points)
  assert points[0].tokens == 1000 * 256 * 128


def test_an_envelope_has_the_lowest_loss_at_each_cost(data: pathlib.Path):
  curves = read_paper1_curves(data)
  points = frontier.find_lower_envelope(curves)
  flops, loss = frontier.to_arrays(points)
  assert (flops[1:] > flops[:-1]).all() and (loss[1:] < loss[:-1]).all() and len(points) > 34
  for curve in curves:
    for cost, reached_loss in zip(curve.flops(), curve.loss, strict=True):
      assert min(loss[flops <= cost], default=99) <= reached_loss


def test_of_equal_losses_the_cheapest_counts():
  curves = [
    make_loss_curve('a', [1, 2, 3], [3, 2, 2]),
    make_loss_curve('b', [1, 2, 4], [2.5, 1.9, 1.8]),
  ]
  assert [
    (point.run, point.tokens / 128 / 256) for point in frontier.find_lower_envelope(curves)
  ] == [('b', 1), ('b', 2), ('b', 4)]
  # Bootstrap draws contain runs twice.
  assert frontier.find_lower_envelope(curves + curves) == frontier.find_lower_envelope(curves)
  assert (
    frontier.find_percentile_frontier(curves + curves)
    and frontier.find_percentile_frontier(curves[:1])[0].loss == 3
  )


def test_evaluations_before_training_are_on_no_frontier():
  curves = [make_loss_curve('a', [0, 1, 2], [1, 3, 2])]
  assert [point.loss for point in frontier.find_lower_envelope(curves)] == [3, 2]
  assert 1 not in [point.loss for point in frontier.find_percentile_frontier(curves)]


@pytest.mark.parametrize(
  'find_frontier', [frontier.find_percentile_frontier, frontier.find_lower_envelope]
)
def test_frontiers_without_evaluations_or_counts_are_refused(find_frontier):
  for curves in ([], [make_loss_curve('a', [], [])], [make_loss_curve('a', [0], [9.0])]):
    with pytest.raises(InputError, match='without an evaluation'):
      find_frontier(curves)
  with pytest.raises(InputError, match="'kaplan'"):
    find_frontier([make_loss_curve('a', [1], [3])], 'kaplan')


UPDATES = range(100, 10_001, 100)


def make_curve(
  exit_step: int, level: float = 3.2, spacing: int = 100, noise: float = 0.0, **fields
):
  """Returns a curve that reaches the plateau at update 1,000 and leaves it at `exit_step`."""
  updates = np.arange(spacing, 10_001, spacing)
  drop = np.minimum(1, (updates / exit_step) ** -0.4)
  loss = level * np.maximum(1, (updates / 1000) ** -0.3) * drop
  loss *= np.exp(noise * np.random.default_rng(0).normal(size=len(updates)))
  return make_loss_curve('run', updates.tolist(), loss.tolist(), **fields)


@pytest.mark.parametrize('spacing, noise', [(100, 0.0), (20, 0.002), (500, 0.002)])
def test_a_plateau_is_found_at_any_spacing(spacing: int, noise: float):
  curve = make_curve(4000, spacing=spacing, noise=noise, warmup=300)
  plateau = frontier.find_plateau(curve, frontier.find_plateau_level([curve]))
  assert plateau.level == pytest.approx(3.2, rel=0.01)
  assert plateau.entry == pytest.approx(940, abs=spacing + 60)
  assert plateau.exit == pytest.approx(4600, abs=spacing + 100)  # 5.5% below it
  assert (
    plateau.exit_loss < 0.945 * plateau.level
    and plateau.seen == plateau.end - plateau.entry // spacing + 1
  )
  assert plateau.exit_flops == pytest.approx(plateau.exit * 256e9)
  assert (plateau.warmup, plateau.warmup_flops) == (300, pytest.approx(300 * 256e9))


def test_curves_without_a_plateau_have_none():
  steady = make_loss_curve('a', list(UPDATES), [4 * (step / 100) ** -0.15 for step in UPDATES])
  converged = make_loss_curve(
    'b', list(UPDATES), [max(2.0, 4 * (step / 100) ** -0.3) for step in UPDATES]
  )
  untrained = make_loss_curve(
    'c', list(UPDATES), [9.8 if step < 3000 else 9.8 * (step / 3000) ** -0.5 for step in UPDATES]
  )
  for curve in (
    steady,
    converged,
    untrained,
    make_loss_curve('d', [], []),
    make_loss_curve('e', [100], [3.2]),
  ):
    assert frontier.find_plateau_level([curve]) is None, curve.name
  assert frontier.find_plateau_level([steady, converged, untrained]) is None
  # The loss stays above the plateau.
  assert frontier.find_plateau(make_loss_curve('f', [100, 200], [9.0, 8.0]), level=3.2) is None


def test_runs_of_a_sweep_share_the_plateau_loss():
  coarse = make_loss_curve('coarse', [1000, 6000, 10000], [3.22, 2.2, 2.0])
  never = make_loss_curve(
    'never', list(UPDATES), [3.2 * max(1.0, (step / 1000) ** -0.3) for step in UPDATES]
  )
  level = frontier.find_plateau_level([make_curve(4000), make_curve(6000), coarse, never])
  assert level == pytest.approx(3.2, rel=0.01)
  assert all(frontier.find_plateau_level([curve]) is None for curve in (coarse, never))
  assert (
    frontier.find_plateau(coarse, level).entry,
    frontier.find_plateau(coarse, level).exit,
  ) == (1000, 6000)
  unfinished = frontier.find_plateau(never, level)
  assert (
    unfinished.exit,
    unfinished.exit_flops,
    unfinished.exit_loss,
    unfinished.end,
  ) == (None, None, None, 100)
  passing = frontier.find_plateau(make_loss_curve('through', [1000, 2000], [2.5, 2.2]), level)
  assert (passing.entry, passing.exit, passing.seen) == (1000, 1000, 0)


def test_dropping_the_plateau_leaves_later_evaluations():
  curves = [
    make_curve(4000),
    make_loss_curve('never', list(UPDATES), [3.2] * 100),
    make_loss_curve('none', [1], [8.0]),
  ]
  plateaus = [frontier.find_plateau(curve, 3.2) for curve in curves]
  remaining = frontier.drop_plateau(zip(curves, plateaus, strict=True))
  assert [curve.name for curve in remaining] == ['run', 'none'] and remaining[1] is curves[2]
  assert max(remaining[0].loss) < 0.945 * 3.2 and remaining[0].updates[0] == plateaus[0].exit
  assert (
    len(remaining[0].updates)
    == len(remaining[0].rows)
    == len(remaining[0].loss)
    == 100 - plateaus[0].end
  )


def test_plateaus_of_the_logged_runs(data: pathlib.Path):
  curves = read_paper1_curves(data)
  level = frontier.find_plateau_level(curves)
  assert 3.15 < level < 3.2
  plateaus = {curve.name: frontier.find_plateau(curve, level) for curve in curves}
  assert None not in plateaus.values()
  assert plateaus['magic-bee-26'].exit is None and plateaus['magic-bee-26'].warmup_flops is None
  assert 4000 <= plateaus['laced-sun-4'].exit <= 8000 and plateaus['floral-cloud-17'].exit in (
    5000,
    6000,
  )
  assert plateaus['apricot-meadow-20'].exit == 2000 and plateaus['apricot-meadow-20'].entry == 1000
  ranges = {
    'wide and deep': (2000, 5000),
    'h256 l1': (6000, 10000),
    'h128 l1': (9000, 16000),
    'h64 deep': (4000, 8000),
    'h64 l1': (19000, 23000),
    'h32 deep': (7000, 17000),
    'h32 l1': (math.inf, math.inf),
  }
  for curve in curves:
    if curve.name in ('absurd-silence-4', 'grateful-yogurt-5'):
      continue  # trained with another learning rate
    hidden, deep = curve.shape.hidden, curve.shape.layers > 1
    kind = 'wide and deep' if hidden >= 128 and deep else f'h{hidden} {"deep" if deep else "l1"}'
    low, high = ranges[kind]
    assert low <= (plateaus[curve.name].exit or math.inf) <= high, curve.name


def test_the_logged_frontier_below_the_break_is_on_the_plateau(data: pathlib.Path):
  curves = read_paper1_curves(data)
  level = frontier.find_plateau_level(curves)
  plateaus = [frontier.find_plateau(curve, level) for curve in curves]
  exits = {plateau.run: plateau.exit_flops or math.inf for plateau in plateaus}
  points = frontier.find_percentile_frontier(curves)
  low = [point for point in points if point.flops < 2.6e15]
  assert len(low) == 14 and all(point.flops < exits[point.run] for point in low)
  assert not any(point.flops < exits[point.run] for point in points if point.flops > 2.6e15)
  remaining = frontier.drop_plateau(zip(curves, plateaus, strict=True))
  after = frontier.find_percentile_frontier(remaining)
  assert after[0].flops > 2.6e15 and len(plateaus) - len(remaining) == 4
