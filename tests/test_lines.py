"""Lines through gaps: known slopes come back, with intervals that hold them, and what cannot be said is not said."""

import math
from typing import Any

import numpy as np
import pytest

from minilm_jax.analysis import lines
from minilm_jax.analysis.lines import OVERLAP, SIZE, Gap, Slope
from minilm_jax.analysis.scores import Difference


def at(tokens: int, values: list[float], **more: Any) -> Gap:
  """A point of one shape, at some size or overlap."""
  mean = float(np.mean(values))
  fields = {'axis': SIZE, 'series': 'a', 'overlap': math.nan, 'seeds': tuple(range(len(values)))} | more
  return Gap(comparison='one shape', checkpoint=f'n{tokens}', rows=tokens, tokens=tokens, epochs=1.0, pretrained=0.5 + mean,
             scratch=0.5, gap=Difference(mean, math.nan, math.nan, True), borrowed=False, values=tuple(values), **fields)


def one(points: list[Gap], draws: int = 200) -> Slope:
  found, = lines.slopes(points, draws)
  return found


def test_a_straight_line_comes_back():
  found = one([at(1000 * 2**n, [0.03 * n, 0.03 * n + 0.1, 0.03 * n - 0.1]) for n in range(5)])
  assert (found.slope, found.low, found.high) == pytest.approx((0.03, 0.03, 0.03))
  assert (found.points, found.levels, found.tasks, found.seeds) == (5, 5, 1, 3)
  overlap = one([at(1000, [0.02 * n, 0.02 * n + 0.1], axis=OVERLAP, overlap=0.9 + 0.01 * n) for n in range(4)])
  assert overlap.slope == pytest.approx(0.02)  # for one point more


def test_equal_gaps_have_no_slope():
  random = np.random.default_rng(0)
  found = one([at(1000 * 2**n, random.normal(0.1, 0.02, 8).tolist()) for n in range(4)], 1000)
  assert abs(found.slope) < 0.01 and found.low < 0 < found.high
  flat = one([at(1000 * 2**n, [0.0, 0.0]) for n in range(3)])
  assert flat.slope == 0 == flat.low == flat.high


def test_intervals_hold_the_slope():
  """Seeds with a gap of their own at every size: 95 of 100 intervals should hold 0.02; of 12 seeds somewhat fewer do."""
  held = 0
  for seed in range(60):
    random = np.random.default_rng(seed)
    own = random.normal(0.02, 0.01, 12)  # each seed's slope
    points = [at(1000 * 2**n, (own * n + random.normal(0, 0.01, 12)).tolist()) for n in range(4)]
    found = one(points, 300)
    held += found.low <= 0.02 <= found.high
  assert held >= 50


def test_several_tasks_have_a_mean_line_that_resamples_tasks_too():
  points = [at(1000 * 2**n, [slope * n, slope * n + 0.01], series=name)
            for name, slope in (('a', 0.01), ('b', 0.02), ('c', 0.06)) for n in range(3)]
  found = {slope.series: slope for slope in lines.slopes(points, 400)}
  mean = found['mean of 3 tasks']
  assert mean.slope == pytest.approx(0.03) and mean.tasks == 3
  assert mean.low < 0.015 and mean.high > 0.045  # each task alone has no spread at all
  assert found['a'].low == pytest.approx(found['a'].high)


def test_too_few_points_say_so():
  assert lines.slopes([at(1000, [0.1, 0.2])], 100) == []
  assert lines.slopes([at(1000, [0.1, 0.2]), at(1005, [0.1, 0.2])], 100) == []  # one size, to half a hundredth
  two = one([at(1000, [0.1, 0.2]), at(2000, [0.2, 0.3])])
  assert 'two levels' in two.note and two.slope == pytest.approx(0.1)
  alone = one([at(1000 * 2**n, [0.1 * n]) for n in range(3)])
  assert math.isnan(alone.low) and alone.seeds == 0 and 'seeds' in alone.note
  other = one([at(1000, [0.1, 0.2]), at(2000, [0.2, 0.3], seeds=(5, 6)), at(4000, [0.3, 0.4])])
  assert math.isnan(other.low) and other.slope == pytest.approx(0.1)


def test_runs_of_one_size_are_resampled():
  once = one([at(1000 * 2**n, [0.1 * n, 0.1 * n]) for n in (0, 1, 2)])
  twice = one([at(1000 * 2**n, [0.1 * n + off] * 2) for n in (0, 1, 2) for off in (-0.05, 0.05)])
  assert once.low == once.high and 'one pre-training run a level' in once.note
  assert twice.slope == pytest.approx(0.1) and twice.low < 0.08 < 0.12 < twice.high
  assert 'one pre-training run' not in twice.note and (twice.points, twice.levels) == (6, 3)


def test_the_same_seed_gives_the_same_interval():
  points = [at(1000 * 2**n, [0.1 * n, 0.3, 0.0]) for n in range(3)]
  assert lines.slopes(points, 50) == lines.slopes(points, 50) != lines.slopes(points, 50, seed=1)
