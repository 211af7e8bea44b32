"""The plan of a sweep: no point twice, shares that cost alike, budgets, and an estimated cost."""

import dataclasses
import math

import jax
import pytest

from configs import cpu_grid, paper1_grids
from minilm_jax.cli import sweep_plan
from minilm_jax.core import recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.model import flops

NAMES = cpu_grid.RUNS


def points(*names: str) -> dict[str, RunConfig]:
  return {name: recipe.resolve(paper1_grids.get_config(name), 'pretrain') for name in names}


GRID = points(*NAMES)


def test_a_point_twice_is_refused_by_both_names():
  sweep_plan.check_points(GRID)
  same = GRID | {'again': GRID[NAMES[2]]}
  with pytest.raises(InputError, match=f'{NAMES[2]} and again'):
    sweep_plan.check_points(same)
  # a number in a formula, not a model
  other_heads = dataclasses.replace(GRID[NAMES[2]].model, flops_heads=2)
  with pytest.raises(InputError, match='again'):
    sweep_plan.check_points(
      GRID | {'again': dataclasses.replace(GRID[NAMES[2]], model=other_heads)}
    )


def test_the_logged_runs_are_no_point_twice():
  sweep_plan.check_points(points(*paper1_grids.RUNS))


@pytest.mark.parametrize('parts', [1, 2, 5, 14])
def test_shares_are_all_points_once_and_alike(parts: int):
  shares = [sweep_plan.shard_points(GRID, f'{part}/{parts}') for part in range(1, parts + 1)]
  names = [name for share in shares for name in share]
  assert sorted(names) == sorted(NAMES)
  assert max(map(len, shares)) - min(map(len, shares)) <= 1
  for share in shares:
    cost = [sweep_plan.total_flops(config) for config in share.values()]
    assert cost == sorted(cost)


def test_more_shares_than_points_leave_some_with_nothing():
  assert not sweep_plan.shard_points(GRID, '15/15')


@pytest.mark.parametrize('shard', ['0/4', '5/4', '4', 'a/b', '1/0', '-1/4', '1/4/2'])
def test_a_share_outside_its_range_is_refused(shard: str):
  with pytest.raises(InputError, match=f'--shard={shard}'):
    sweep_plan.shard_points(GRID, shard)


def test_a_budget_is_what_every_member_gets_at_least():
  for name, config in sweep_plan.apply_budget(GRID, sweep_plan.Budget(tokens=1e6)).items():
    a_row = config.model.max_length
    assert 0 <= config.num_steps * config.batch_size * a_row - 1e6 < config.batch_size * a_row, name
  for name, config in sweep_plan.apply_budget(GRID, sweep_plan.Budget(flops=1e13)).items():
    an_update = config.batch_size * flops.flops_per_row(config.model, config.mask)['actual']
    assert 0 <= config.num_steps * an_update - 1e13 < an_update, name
  assert sweep_plan.apply_budget(GRID, sweep_plan.NO_BUDGET) == GRID


def test_a_budget_of_seconds_does_not_change_what_has_begun(tmp_path):
  each = {name: 0.5 + number for number, name in enumerate(GRID)}
  run_dir.open_run(tmp_path / NAMES[1], {'num_steps': 17})
  results = sweep_plan.apply_seconds(GRID, tmp_path, 60.0, each)
  assert results[NAMES[0]].num_steps == 120 and results[NAMES[1]].num_steps == 17
  assert all(
    config.num_steps == math.floor(60 / each[name])
    for name, config in results.items()
    if name != NAMES[1]
  )


@pytest.mark.parametrize(
  'budget', [(1e6, 1e9, 0), (1e6, 0, 10), (-1, 0, 0), (0, 0, math.inf), (math.nan, 0, 0)]
)
def test_budgets_that_say_nothing_are_refused(budget):
  with pytest.raises(InputError):
    sweep_plan.Budget(*budget)


def test_time_lies_between_what_was_timed(monkeypatch: pytest.MonkeyPatch):
  """A machine that does a FLOP in a picosecond is found out from three points."""
  timed = []

  def ours(config: RunConfig, rows: object):
    timed.append(config)
    return (lambda steps: steps * sweep_plan.total_flops(config) * 1e-12), 0.0

  monkeypatch.setattr(sweep_plan.timing, 'time_our_step', ours)
  results = sweep_plan.time_steps(GRID)
  assert len(timed) == 3
  assert results == pytest.approx(
    {name: sweep_plan.total_flops(config) * 1e-12 for name, config in GRID.items()}, rel=1e-6
  )
  assert sweep_plan.time_steps(points(NAMES[0])).keys() == {NAMES[0]}


def test_a_plan_says_three_counts_of_flops_and_what_a_population_takes():
  config = GRID['e32-h32-f64-a8-l1']
  two = dataclasses.replace(config, population=dataclasses.replace(config.population, members=2))
  single, both = (sweep_plan.describe_plan({'x': c}, {'x': 2.0})[0] for c in (config, two))
  assert single['parameters'] == {'embedding': 612_608, 'other': 638_114, 'total': 1_250_722}
  rows = 35_475 * 256
  assert single['flops'] == {
    name: rows * count for name, count in flops.flops_per_row(config.model, config.mask).items()
  }
  assert single['tokens'] == rows * 128 and single['seconds'] == 2.0 * 35_475
  gradient, devices = 4 * 1_250_722, jax.local_device_count()
  state = single['bytes'] // devices - gradient
  assert 12 * 1_250_722 < state < 12 * 1_250_722 + 100  # parameters, two moments and a few counters
  assert both['tokens'] == single['tokens'] and both['bytes'] == devices * (2 * state + gradient)
  assert sweep_plan.total_flops(two) == 2 * sweep_plan.total_flops(config)
