"""A sweep: every point a run, a failure that stops no other, a second start that does nothing
twice.
"""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
import pytest

from configs import cpu_grid, paper1_grids
from minilm_jax.cli import main, sweep
from minilm_jax.core import files, lock, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data import corpus
from minilm_jax.model import flops
from minilm_jax.training import pretrain, program
from tests.tiny_config import UPDATES, run_config

NAMES = cpu_grid.RUNS


def points(*names: str) -> dict[str, RunConfig]:
  return {name: recipe.resolve(paper1_grids.get_config(name), 'pretrain') for name in names}


GRID = points(*NAMES)


def test_a_point_twice_is_refused_by_both_names():
  sweep.check_points(GRID)
  same = GRID | {'again': GRID[NAMES[2]]}
  with pytest.raises(InputError, match=f'{NAMES[2]} and again are the same point'):
    sweep.check_points(same)
  # a number in a formula, not a model
  other_heads = dataclasses.replace(GRID[NAMES[2]].model, flops_heads=2)
  with pytest.raises(InputError, match='the same point'):
    sweep.check_points(GRID | {'again': dataclasses.replace(GRID[NAMES[2]], model=other_heads)})


def test_the_logged_runs_are_no_point_twice():
  sweep.check_points(points(*paper1_grids.RUNS))


@pytest.mark.parametrize('parts', [1, 2, 5, 14])
def test_shares_are_all_points_once_and_alike(parts: int):
  shares = [sweep.shard_points(GRID, f'{part}/{parts}') for part in range(1, parts + 1)]
  names = [name for one in shares for name in one]
  assert sorted(names) == sorted(NAMES)
  assert max(map(len, shares)) - min(map(len, shares)) <= 1
  for one in shares:
    cost = [sweep.total_flops(config) for config in one.values()]
    assert cost == sorted(cost)


def test_more_shares_than_points_leave_some_with_nothing():
  assert not sweep.shard_points(GRID, '15/15')


@pytest.mark.parametrize('shard', ['0/4', '5/4', '4', 'a/b', '1/0', '-1/4', '1/4/2'])
def test_a_share_outside_its_range_is_refused(shard: str):
  with pytest.raises(InputError, match='not k/n with k from 1 to n'):
    sweep.shard_points(GRID, shard)


def test_a_budget_is_what_every_member_gets_at_least():
  for name, config in sweep.apply_budget(GRID, 1e6, 0).items():
    a_row = config.model.max_length
    assert 0 <= config.num_steps * config.batch_size * a_row - 1e6 < config.batch_size * a_row, name
  for name, config in sweep.apply_budget(GRID, 0, 1e13).items():
    an_update = config.batch_size * flops.flops_per_row(config.model, config.mask)['actual']
    assert 0 <= config.num_steps * an_update - 1e13 < an_update, name
  assert sweep.apply_budget(GRID, 0, 0) == GRID


def test_a_budget_of_seconds_does_not_change_what_has_begun(tmp_path):
  each = {name: 0.5 + number for number, name in enumerate(GRID)}
  run_dir.open_run(tmp_path / NAMES[1], {'num_steps': 17})
  found = sweep.time_points(GRID, tmp_path, 60.0, each)
  assert found[NAMES[0]].num_steps == 120 and found[NAMES[1]].num_steps == 17
  assert all(
    config.num_steps == math.floor(60 / each[name])
    for name, config in found.items()
    if name != NAMES[1]
  )


@pytest.mark.parametrize(
  'budget', [(1e6, 1e9, 0), (1e6, 0, 10), (-1, 0, 0), (0, 0, math.inf), (math.nan, 0, 0)]
)
def test_budgets_that_say_nothing_are_refused(budget):
  with pytest.raises(
    InputError, match='more than one budget, or one that is not a positive number'
  ):
    sweep.check_budget(*budget)


def test_time_lies_between_what_was_timed(monkeypatch: pytest.MonkeyPatch):
  """A machine that does a FLOP in a picosecond is found out from three points."""
  asked = []

  def ours(config: RunConfig, rows: object):
    asked.append(config)
    return (lambda steps: steps * sweep.total_flops(config) * 1e-12), 0.0

  monkeypatch.setattr(sweep.timing, 'ours', ours)
  found = sweep.seconds_per_step(GRID)
  assert len(asked) == 3
  assert found == pytest.approx(
    {name: sweep.total_flops(config) * 1e-12 for name, config in GRID.items()}, rel=1e-6
  )
  assert sweep.seconds_per_step(points(NAMES[0])).keys() == {NAMES[0]}


def test_a_plan_says_three_counts_of_flops_and_what_a_population_takes():
  config = GRID['e32-h32-f64-a8-l1']
  two = dataclasses.replace(config, population=dataclasses.replace(config.population, members=2))
  one, both = (sweep.describe_plan({'x': c}, {'x': 2.0})[0] for c in (config, two))
  assert one['parameters'] == {'embedding': 612_608, 'other': 638_114, 'total': 1_250_722}
  rows = 35_475 * 256
  assert one['flops'] == {
    name: rows * count for name, count in flops.flops_per_row(config.model, config.mask).items()
  }
  assert one['tokens'] == rows * 128 and one['seconds'] == 2.0 * 35_475
  gradient, devices = 4 * 1_250_722, jax.local_device_count()
  state = one['bytes'] // devices - gradient
  assert 12 * 1_250_722 < state < 12 * 1_250_722 + 100  # parameters, two moments and a few counters
  assert both['tokens'] == one['tokens'] and both['bytes'] == devices * (2 * state + gradient)
  assert sweep.total_flops(two) == 2 * sweep.total_flops(config)


@pytest.fixture(scope='module', autouse=True)
def share_programs(fast_compile: None) -> Any:
  """Lets points of one recipe share their compiled programs."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pretrain, 'build_program', functools.cache(program.build_program))
    patch.setattr(jax, 'clear_caches', lambda: None)
    yield


def point(folder: pathlib.Path, **changes: Any) -> RunConfig:
  """A recipe that evaluates and saves once."""
  return run_config(folder, **{'eval.every': UPDATES, 'checkpoint.every': UPDATES, **changes})


def grid(folder: pathlib.Path) -> dict[str, RunConfig]:
  """One model, and a population of two."""
  return {
    'one': point(folder),
    'two': point(folder, **{'population.members': 2, 'mesh.population': 1, 'seed': 5}),
  }


@pytest.fixture(scope='module')
def swept(
  tiny_corpus: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, list[dict]]:
  folder = tmp_path_factory.mktemp('sweep')
  return folder, sweep.run_sweep(grid(tiny_corpus), folder)


def test_every_point_is_a_run_and_every_member_another(swept):
  folder, found = swept
  assert [row['point'] for row in found] == ['one', 'two'] and {row['state'] for row in found} == {
    sweep.FINISHED
  }
  assert [len(row['bits_per_word']) for row in found] == [1, 2]
  for name in ('one', 'two', 'two/member-0', 'two/member-1'):
    assert files.read_json(folder / name / run_dir.RESULT, 'it')['updates'] == UPDATES
  for row, names in zip(found, (['one'], ['two/member-0', 'two/member-1'])):
    words = [files.read_json(folder / name / run_dir.BITS_PER_WORD, 'it') for name in names]
    assert [one['bits_per_word'] for one in words] == row['bits_per_word']
    results = [files.read_json(folder / name / run_dir.RESULT, 'it') for name in names]
    assert [one['test_loss'] for one in results] == row['test_loss']
  assert not list(folder.glob('**/.lock')) and not list(folder.glob('**/failure.json'))


def test_a_second_start_does_nothing_twice(swept, tiny_corpus: pathlib.Path):
  folder, found = swept
  files = {path: path.stat().st_mtime_ns for path in folder.glob('**/*') if path.is_file()}
  again = sweep.run_sweep(grid(tiny_corpus), folder)
  assert [{**row, 'seconds': 0} for row in again] == [{**row, 'seconds': 0} for row in found]
  assert {path: path.stat().st_mtime_ns for path in folder.glob('**/*') if path.is_file()} == files


def test_shares_make_one_sweep(swept, tiny_corpus: pathlib.Path, tmp_path: pathlib.Path):
  found = [
    row for part in (2, 1) for row in sweep.run_sweep(grid(tiny_corpus), tmp_path, f'{part}/2')
  ]
  by_name = sorted(({**row, 'seconds': 0} for row in found), key=lambda row: row['point'])
  assert by_name == [{**row, 'seconds': 0} for row in swept[1]]


def test_a_point_that_fails_says_why_and_the_others_go_on(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
  points = {'broken': point(tmp_path / 'nowhere'), 'fine': grid(tiny_corpus)['two']}
  found = {row['point']: row for row in sweep.run_sweep(points, tmp_path)}
  assert found['broken']['state'] == sweep.FAILED and found['fine']['state'] == sweep.FINISHED
  said = files.read_json(tmp_path / 'broken' / run_dir.FAILURE, 'it')
  assert said.keys() == {'asked', 'found', 'remedy'} and 'no manifest.json there' in said['found']
  assert 'the sweep goes on' in capsys.readouterr().err
  points['broken'] = dataclasses.replace(points['broken'], corpus=str(tiny_corpus))
  assert {row['state'] for row in sweep.run_sweep(points, tmp_path)} == {sweep.FINISHED}
  assert not (tmp_path / 'broken' / run_dir.FAILURE).exists()


def test_a_machine_that_gives_up_on_a_point_is_no_end(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  def out_of_memory(config: RunConfig, folder: Any):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory\nand more')

  monkeypatch.setattr(sweep.pretrain, 'pretrain', out_of_memory)
  (found,) = sweep.run_sweep({'one': point(tiny_corpus)}, tmp_path)
  assert found['state'] == sweep.FAILED and found['reason'].endswith(
    'RESOURCE_EXHAUSTED: Out of memory'
  )


def test_a_point_that_another_process_trains_is_left_to_it(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
  (tmp_path / 'one').mkdir()
  with lock.hold_lock(tmp_path / 'one'):
    (found,) = sweep.run_sweep({'one': point(tiny_corpus)}, tmp_path)
  assert found['state'] == sweep.LEFT and 'is at work there' in capsys.readouterr().err
  assert (
    not (tmp_path / 'one' / run_dir.METRICS).exists()
    and not (tmp_path / 'one' / run_dir.FAILURE).exists()
  )


def test_another_vocabulary_has_a_tokenizer_and_corpus_of_its_own(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  points = {'small': point(tiny_corpus, **{'model.vocab_size': 210}), 'large': point(tiny_corpus)}
  found = sweep.run_sweep(points, tmp_path)
  assert {row['state'] for row in found} == {sweep.FINISHED}
  assert corpus.read_manifest(tmp_path / 'corpora' / '200')['vocabulary'] == 200
  read = {
    name: files.read_json(tmp_path / name / run_dir.MANIFEST, 'it')['corpus_folder']
    for name in points
  }
  assert read == {'small': str(tmp_path / 'corpora' / '200'), 'large': str(tiny_corpus)}
  words = {
    name: files.read_json(tmp_path / name / run_dir.BITS_PER_WORD, 'it')['word_masks'][0]
    for name in points
  }
  assert (
    words['small']['tokens'] / words['small']['words']
    > words['large']['tokens'] / words['large']['words']
  )


def test_a_dry_run_writes_nothing(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  # which test_stopwatch.py times
  monkeypatch.setattr(sweep.timing, 'ours', lambda *_: (lambda steps: 1e-3 * steps, 0.0))
  found = sweep.run_sweep(grid(tiny_corpus), tmp_path, tokens=1e5, dry_run=True)
  assert not list(tmp_path.iterdir())
  assert [row['updates'] for row in found] == [98, 98] and all(row['seconds'] > 0 for row in found)


def test_more_shares_than_points_say_so(tiny_corpus: pathlib.Path, tmp_path: pathlib.Path):
  with pytest.raises(InputError, match='2 points, and none is left'):
    sweep.run_sweep(grid(tiny_corpus), tmp_path, '3/3')


def test_the_verb_ends_with_status_2_when_a_point_failed(
  monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
  row = {'test_loss': [6.5, None], 'bits_per_word': [9.25], 'seconds': 61.0}
  rows = [
    row | {'point': 'fine', 'state': sweep.FINISHED},
    row | {'point': 'bad', 'state': sweep.FAILED, 'reason': 'the corpus X: no such folder'},
  ]
  monkeypatch.setattr(sweep, 'run_sweep', lambda configs, *rest: rows)
  assert main.main(['sweep', '--config=configs/paper1_grids.py', '--workdir=S']) == 2
  written = capsys.readouterr()
  assert 'bad failed: the corpus X: no such folder' in written.err
  assert all(
    word in written.out for word in ('fine', 'finished', 'failed', '6.500', '9.250', '0:01:01')
  )
