"""The plan of a sweep: distinct points, shares of similar cost, budgets, and estimates."""

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


def test_identical_points_are_refused():
  sweep_plan.check_points(GRID)
  duplicated = GRID | {'again': GRID[NAMES[2]]}
  with pytest.raises(InputError, match=f'{NAMES[2]} and again'):
    sweep_plan.check_points(duplicated)
  # enters the FLOP count only
  other_heads = dataclasses.replace(GRID[NAMES[2]].model, flops_heads=2)
  with pytest.raises(InputError, match='again'):
    sweep_plan.check_points(
      GRID | {'again': dataclasses.replace(GRID[NAMES[2]], model=other_heads)}
    )


def test_the_logged_runs_are_distinct():
  sweep_plan.check_points(points(*paper1_grids.RUNS))


@pytest.mark.parametrize('parts', [1, 2, 5, 14])
def test_shares_are_disjoint_and_similar_in_cost(parts: int):
  shares = [sweep_plan.shard_points(GRID, f'{part}/{parts}') for part in range(1, parts + 1)]
  names = [name for share in shares for name in share]
  assert sorted(names) == sorted(NAMES)
  assert max(map(len, shares)) - min(map(len, shares)) <= 1
  for share in shares:
    cost = [sweep_plan.count_flops(config) for config in share.values()]
    assert cost == sorted(cost)


def test_a_share_beyond_the_points_is_empty():
  assert not sweep_plan.shard_points(GRID, '15/15')


@pytest.mark.parametrize('shard', ['0/4', '5/4', '4', 'a/b', '1/0', '-1/4', '1/4/2'])
def test_an_invalid_shard_is_refused(shard: str):
  with pytest.raises(InputError, match=f'--shard={shard}'):
    sweep_plan.shard_points(GRID, shard)


def test_a_budget_is_rounded_up_to_an_update():
  for name, config in sweep_plan.apply_budget(GRID, sweep_plan.Budget(tokens=1e6)).items():
    row_tokens = config.model.max_length
    assert (
      0 <= config.num_steps * config.batch_size * row_tokens - 1e6 < config.batch_size * row_tokens
    ), name
  for name, config in sweep_plan.apply_budget(GRID, sweep_plan.Budget(flops=1e13)).items():
    update_flops = config.batch_size * flops.flops_per_row(config.model, config.mask)['actual']
    assert 0 <= config.num_steps * update_flops - 1e13 < update_flops, name
  assert sweep_plan.apply_budget(GRID, sweep_plan.NO_BUDGET) == GRID


def test_a_budget_counts_the_tokens_of_the_rows_of_the_corpus(tiny_corpus):
  """The rows of the corpus have 64 tokens, half of the length of the models."""
  grid = {
    name: dataclasses.replace(config, corpus=str(tiny_corpus)) for name, config in GRID.items()
  }
  for name, config in sweep_plan.apply_budget(grid, sweep_plan.Budget(tokens=1e6)).items():
    assert config.model.max_length == 128
    assert config.num_steps == math.ceil(1e6 / (64 * config.batch_size)), name
  flops_of_rows = {
    name: config.num_steps * config.batch_size
    for name, config in sweep_plan.apply_budget(grid, sweep_plan.Budget(flops=1e13)).items()
  }
  for name, rows in flops_of_rows.items():
    row_flops = flops.actual_flops(grid[name].model, grid[name].mask, 64)
    assert 0 <= rows * row_flops - 1e13 < grid[name].batch_size * row_flops


def test_a_budget_of_seconds_keeps_the_steps_of_started_points(tmp_path):
  step_seconds = {name: 0.5 + number for number, name in enumerate(GRID)}
  run_dir.open_run(tmp_path / NAMES[1], {'num_steps': 17})
  results = sweep_plan.apply_seconds(GRID, tmp_path, 60.0, step_seconds)
  assert results[NAMES[0]].num_steps == 120 and results[NAMES[1]].num_steps == 17
  assert all(
    config.num_steps == math.floor(60 / step_seconds[name])
    for name, config in results.items()
    if name != NAMES[1]
  )


@pytest.mark.parametrize(
  'budget', [(1e6, 1e9, 0), (1e6, 0, 10), (-1, 0, 0), (0, 0, math.inf), (math.nan, 0, 0)]
)
def test_invalid_budgets_are_refused(budget):
  with pytest.raises(InputError):
    sweep_plan.Budget(*budget)


def test_times_of_other_points_are_interpolated(monkeypatch: pytest.MonkeyPatch):
  """Three points suffice for a machine that computes a FLOP in a picosecond."""
  timed_configs = []

  def time_step(config: RunConfig, rows: object):
    timed_configs.append(config)
    return (lambda steps: steps * sweep_plan.count_flops(config) * 1e-12), 0.0

  monkeypatch.setattr(sweep_plan.timing, 'time_our_step', time_step)
  results = sweep_plan.time_steps(GRID)
  assert len(timed_configs) == 3
  assert results == pytest.approx(
    {name: sweep_plan.count_flops(config) * 1e-12 for name, config in GRID.items()}, rel=1e-6
  )
  assert sweep_plan.time_steps(points(NAMES[0])).keys() == {NAMES[0]}


def test_a_plan_has_three_flop_counts_and_the_memory_of_a_population():
  config = GRID['e32-h32-f64-a8-l1']
  pair_config = dataclasses.replace(
    config, population=dataclasses.replace(config.population, members=2)
  )
  single, pair = (sweep_plan.describe_plan({'x': c}, {'x': 2.0})[0] for c in (config, pair_config))
  assert single['parameters'] == {'embedding': 612_608, 'other': 638_114, 'total': 1_250_722}
  rows = 35_475 * 256
  assert single['flops'] == {
    name: rows * count for name, count in flops.flops_per_row(config.model, config.mask).items()
  }
  assert single['tokens'] == rows * 128 and single['seconds'] == 2.0 * 35_475
  gradient, devices = 4 * 1_250_722, jax.local_device_count()
  state = single['bytes'] // devices - gradient
  assert 12 * 1_250_722 < state < 12 * 1_250_722 + 100  # parameters, moments, counters
  assert pair['tokens'] == single['tokens'] and pair['bytes'] == devices * (2 * state + gradient)
  assert sweep_plan.count_flops(pair_config) == 2 * sweep_plan.count_flops(config)
