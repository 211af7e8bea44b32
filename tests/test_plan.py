"""Before a sweep: every point once, every share fair, every budget a number of updates."""

import dataclasses
import math

import jax
import pytest

from configs import cpu_grid, paper1_grids
from minilm_jax import plan, recipe, run
from minilm_jax.config import RunConfig
from minilm_jax.errors import InputError
from minilm_jax.model import size

NAMES = cpu_grid.RUNS


def points(*names: str) -> dict[str, RunConfig]:
  return {name: recipe.resolve(paper1_grids.get_config(name), 'pretrain') for name in names}


GRID = points(*NAMES)


def test_a_point_twice_is_refused_by_both_names():
  plan.check(GRID)
  same = GRID | {'again': GRID[NAMES[2]]}
  with pytest.raises(InputError, match=f'{NAMES[2]} and again are the same point'):
    plan.check(same)
  other_heads = dataclasses.replace(GRID[NAMES[2]].model, flops_heads=2)  # a number in a formula, not a model
  with pytest.raises(InputError, match='the same point'):
    plan.check(GRID | {'again': dataclasses.replace(GRID[NAMES[2]], model=other_heads)})


def test_the_logged_runs_are_no_point_twice():
  plan.check(points(*paper1_grids.RUNS))


@pytest.mark.parametrize('parts', [1, 2, 5, 14])
def test_shares_are_all_points_once_and_alike(parts: int):
  shares = [plan.share(GRID, f'{part}/{parts}') for part in range(1, parts + 1)]
  names = [name for one in shares for name in one]
  assert sorted(names) == sorted(NAMES)
  assert max(map(len, shares)) - min(map(len, shares)) <= 1
  for one in shares:
    cost = [plan.work(config) for config in one.values()]
    assert cost == sorted(cost)


def test_more_shares_than_points_leave_some_with_nothing():
  assert not plan.share(GRID, '15/15')


@pytest.mark.parametrize('shard', ['0/4', '5/4', '4', 'a/b', '1/0', '-1/4', '1/4/2'])
def test_a_share_outside_its_range_is_refused(shard: str):
  with pytest.raises(InputError, match='not k/n with k from 1 to n'):
    plan.share(GRID, shard)


def test_a_budget_is_what_every_member_gets_at_least():
  for name, config in plan.budgeted(GRID, 1e6, 0).items():
    a_row = config.model.max_length
    assert 0 <= config.num_steps * config.batch_size * a_row - 1e6 < config.batch_size * a_row, name
  for name, config in plan.budgeted(GRID, 0, 1e13).items():
    an_update = config.batch_size * size.flops_per_row(config.model, config.mask)['actual']
    assert 0 <= config.num_steps * an_update - 1e13 < an_update, name
  assert plan.budgeted(GRID, 0, 0) == GRID


def test_a_budget_of_seconds_does_not_change_what_has_begun(tmp_path):
  each = {name: 0.5 + number for number, name in enumerate(GRID)}
  run.open_run(tmp_path / NAMES[1], {'num_steps': 17})
  found = plan.timed(GRID, tmp_path, 60.0, each)
  assert found[NAMES[0]].num_steps == 120 and found[NAMES[1]].num_steps == 17
  assert all(config.num_steps == math.floor(60 / each[name]) for name, config in found.items() if name != NAMES[1])


@pytest.mark.parametrize('budget', [(1e6, 1e9, 0), (1e6, 0, 10), (-1, 0, 0), (0, 0, math.inf), (math.nan, 0, 0)])
def test_budgets_that_say_nothing_are_refused(budget):
  with pytest.raises(InputError, match='more than one budget, or one that is not a positive number'):
    plan.check_budget(*budget)


def test_time_lies_between_what_was_timed(monkeypatch: pytest.MonkeyPatch):
  """A machine that does a FLOP in a picosecond is found out from three points."""
  asked = []

  def ours(config: RunConfig, rows: object):
    asked.append(config)
    return (lambda steps: steps * plan.work(config) * 1e-12), 0.0

  monkeypatch.setattr(plan.stopwatch, 'ours', ours)
  found = plan.seconds_per_update(GRID)
  assert len(asked) == 3
  assert found == pytest.approx({name: plan.work(config) * 1e-12 for name, config in GRID.items()}, rel=1e-6)
  assert plan.seconds_per_update(points(NAMES[0])).keys() == {NAMES[0]}


def test_a_plan_says_three_counts_of_flops_and_what_a_population_takes():
  config = GRID['e32-h32-f64-a8-l1']
  two = dataclasses.replace(config, population=dataclasses.replace(config.population, members=2))
  one, both = (plan.describe({'x': c}, {'x': 2.0})[0] for c in (config, two))
  assert one['parameters'] == {'embedding': 612_608, 'other': 638_114, 'total': 1_250_722}
  rows = 35_475 * 256
  assert one['flops'] == {name: rows * count for name, count in size.flops_per_row(config.model, config.mask).items()}
  assert one['tokens'] == rows * 128 and one['seconds'] == 2.0 * 35_475
  gradient, devices = 4 * 1_250_722, jax.local_device_count()
  state = one['bytes'] // devices - gradient
  assert 12 * 1_250_722 < state < 12 * 1_250_722 + 100  # parameters, two moments and a few counters
  assert both['tokens'] == one['tokens'] and both['bytes'] == devices * (2 * state + gradient)
  assert plan.work(two) == 2 * plan.work(config)
