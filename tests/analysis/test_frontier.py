"""The frontier of the paper's procedure, point by point on its logs, and the properties of an
envelope.
"""

import math
import pathlib

import numpy as np
import pytest

from minilm_jax.analysis import frontier
from minilm_jax.core.errors import InputError
from tests.fake_runs import make_loss_curve, read_paper1_curves

# What the paper's notebook finds in its logs: FLOPs in units of 1e14, loss, run.
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


def test_the_paper_s_procedure_on_its_logs(data: pathlib.Path):
  tracks = read_paper1_curves(data)
  assert (len(tracks), sum(len(track.loss) for track in tracks)) == (42, 1512)
  points = frontier.percentile_frontier(tracks)
  found = [(f'{point.flops:.3e}', f'{point.loss:.4f}', point.run) for point in points]
  assert found == [
    (f'{1e14 * float(flops):.3e}', loss, run)
    for flops, loss, run in (line.split() for line in PAPER.replace('\n', '').split('|'))
  ]
  by_name = {track.name: track for track in tracks}
  assert all(point.parameters == by_name[point.run].parameters for point in points)
  assert points[0].tokens == 1000 * 256 * 128


def test_an_envelope_has_what_nothing_cheaper_reaches(data: pathlib.Path):
  tracks = read_paper1_curves(data)
  points = frontier.lower_envelope(tracks)
  flops, loss = frontier.to_arrays(points)
  assert (flops[1:] > flops[:-1]).all() and (loss[1:] < loss[:-1]).all() and len(points) > 34
  for track in tracks:
    for cost, reached in zip(track.flops(), track.loss, strict=True):
      assert min(loss[flops <= cost], default=99) <= reached
  ends = frontier.lower_envelope(tracks, ends=True)
  assert {(point.flops, point.loss) for point in ends} <= {
    (track.flops()[-1], track.loss[-1]) for track in tracks
  }
  assert frontier.to_arrays(ends)[0].min() == min(track.flops()[-1] for track in tracks)


def test_equal_losses_and_equal_costs():
  tracks = [
    make_loss_curve('a', [1, 2, 3], [3, 2, 2]),
    make_loss_curve('b', [1, 2, 4], [2.5, 1.9, 1.8]),
  ]
  assert [(point.run, point.tokens / 128 / 256) for point in frontier.lower_envelope(tracks)] == [
    ('b', 1),
    ('b', 2),
    ('b', 4),
  ]
  # a draw can hold a run twice
  assert frontier.lower_envelope(tracks + tracks) == frontier.lower_envelope(tracks)
  assert (
    frontier.percentile_frontier(tracks + tracks)
    and frontier.percentile_frontier(tracks[:1])[0].loss == 3
  )


def test_unfinished_runs_only_when_asked():
  tracks = [
    make_loss_curve('a', [1, 2], [3, 2]),
    make_loss_curve('b', [1, 2], [1, 0.5], finished=False),
  ]
  assert {point.run for point in frontier.lower_envelope(tracks)} == {'a'}
  assert {point.run for point in frontier.lower_envelope(tracks, unfinished=True)} == {'b'}
  with pytest.raises(InputError, match='none at the end'):
    frontier.lower_envelope(tracks[1:])


def test_what_cost_nothing_is_on_no_frontier():
  tracks = [make_loss_curve('a', [0, 1, 2], [1, 3, 2])]
  assert [point.loss for point in frontier.lower_envelope(tracks)] == [3, 2]
  assert 1 not in [point.loss for point in frontier.percentile_frontier(tracks)]


@pytest.mark.parametrize('make', [frontier.percentile_frontier, frontier.lower_envelope])
def test_nothing_to_make_one_from(make):
  for tracks in ([], [make_loss_curve('a', [], [])], [make_loss_curve('a', [0], [9.0])]):
    with pytest.raises(InputError, match='no evaluation'):
      make(tracks)
  with pytest.raises(InputError, match="'kaplan'"):
    make([make_loss_curve('a', [1], [3])], 'kaplan')


UPDATES = range(100, 10_001, 100)


def curve(leaves: int, at: float = 3.2, spacing: int = 100, noise: float = 0.0, **fields):
  """Falls to the plateau until update 1,000, stands there, and drops from when it leaves."""
  updates = np.arange(spacing, 10_001, spacing)
  loss = at * np.maximum(1, (updates / 1000) ** -0.3) * np.minimum(1, (updates / leaves) ** -0.4)
  loss *= np.exp(noise * np.random.default_rng(0).normal(size=len(updates)))
  return make_loss_curve('run', updates.tolist(), loss.tolist(), **fields)


@pytest.mark.parametrize('spacing, noise', [(100, 0.0), (20, 0.002), (500, 0.002)])
def test_a_plateau_is_found_at_any_spacing(spacing: int, noise: float):
  found = frontier.find_plateau(curve(4000, spacing=spacing, noise=noise, warmup=300))
  assert found.level == pytest.approx(3.2, rel=0.01)
  assert found.entry == pytest.approx(940, abs=spacing + 60)
  assert found.exit == pytest.approx(4600, abs=spacing + 100)  # 5.5% below it
  assert (
    found.exit_loss < 0.945 * found.level and found.left and found.seen == found.end - found.start
  )
  assert found.exit_flops == pytest.approx(
    found.exit * 256e9
  ) and found.entry_flops == pytest.approx(found.entry * 256e9)
  assert (found.warmup, found.warmup_flops) == (300, pytest.approx(300 * 256e9))


def test_a_curve_without_one():
  steady = make_loss_curve('a', list(UPDATES), [4 * (one / 100) ** -0.15 for one in UPDATES])
  converged = make_loss_curve(
    'b', list(UPDATES), [max(2.0, 4 * (one / 100) ** -0.3) for one in UPDATES]
  )
  untaught = make_loss_curve(
    'c', list(UPDATES), [9.8 if one < 3000 else 9.8 * (one / 3000) ** -0.5 for one in UPDATES]
  )
  for track in (
    steady,
    converged,
    untaught,
    make_loss_curve('d', [], []),
    make_loss_curve('e', [100], [3.2]),
  ):
    assert frontier.find_plateau(track) is None, track.name
  assert frontier.find_plateau_level([steady, converged, untaught]) is None
  # has not come down to it
  assert frontier.find_plateau(make_loss_curve('f', [100, 200], [9.0, 8.0]), level=3.2) is None


def test_runs_of_a_sweep_share_the_level():
  coarse = make_loss_curve('coarse', [1000, 6000, 10000], [3.22, 2.2, 2.0])
  never = make_loss_curve(
    'never', list(UPDATES), [3.2 * max(1.0, (one / 1000) ** -0.3) for one in UPDATES]
  )
  level = frontier.find_plateau_level([curve(4000), curve(6000), coarse, never])
  assert level == pytest.approx(3.2, rel=0.01) and frontier.find_plateau(
    coarse
  ) is None is frontier.find_plateau(never)
  assert (
    frontier.find_plateau(coarse, level).entry,
    frontier.find_plateau(coarse, level).exit,
  ) == (1000, 6000)
  held = frontier.find_plateau(never, level)
  assert (held.exit, held.exit_flops, held.exit_loss, held.left, held.end) == (
    None,
    None,
    None,
    False,
    100,
  )
  through = frontier.find_plateau(make_loss_curve('through', [1000, 2000], [2.5, 2.2]), level)
  assert (through.entry, through.exit, through.seen) == (1000, 1000, 0)


def test_without_the_plateau_only_what_came_after_is_left():
  tracks = [
    curve(4000),
    make_loss_curve('never', list(UPDATES), [3.2] * 100),
    make_loss_curve('none', [1], [8.0]),
  ]
  places = [frontier.find_plateau(track, 3.2) for track in tracks]
  kept = frontier.drop_plateau(tracks, places)
  assert [track.name for track in kept] == ['run', 'none'] and kept[1] is tracks[2]
  assert max(kept[0].loss) < 0.945 * 3.2 and kept[0].updates[0] == places[0].exit
  assert len(kept[0].updates) == len(kept[0].rows) == len(kept[0].loss) == 100 - places[0].end
  with pytest.raises(ValueError):
    frontier.drop_plateau(tracks, places[:1])


def test_the_logged_runs(data: pathlib.Path):
  tracks = read_paper1_curves(data)
  level = frontier.find_plateau_level(tracks)
  assert 3.15 < level < 3.2
  found = {track.name: frontier.find_plateau(track, level) for track in tracks}
  assert None not in found.values()
  assert found['magic-bee-26'].exit is None and found['magic-bee-26'].warmup_flops is None
  assert 4000 <= found['laced-sun-4'].exit <= 8000 and found['floral-cloud-17'].exit in (5000, 6000)
  assert found['apricot-meadow-20'].exit == 2000 and found['apricot-meadow-20'].entry == 1000
  ranges = {
    'wide and deep': (2000, 5000),
    'h256 l1': (6000, 10000),
    'h128 l1': (9000, 16000),
    'h64 deep': (4000, 8000),
    'h64 l1': (19000, 23000),
    'h32 deep': (7000, 17000),
    'h32 l1': (math.inf, math.inf),
  }
  for track in tracks:
    if track.name in ('absurd-silence-4', 'grateful-yogurt-5'):
      continue  # trained at another rate
    hidden, deep = track.shape.hidden, track.shape.layers > 1
    kind = 'wide and deep' if hidden >= 128 and deep else f'h{hidden} {"deep" if deep else "l1"}'
    low, high = ranges[kind]
    assert low <= (found[track.name].exit or math.inf) <= high, track.name


def test_the_logged_frontier_below_its_break_is_the_plateau_s(data: pathlib.Path):
  tracks = read_paper1_curves(data)
  level = frontier.find_plateau_level(tracks)
  places = [frontier.find_plateau(track, level) for track in tracks]
  exits = {place.run: place.exit_flops or math.inf for place in places}
  points = frontier.percentile_frontier(tracks)
  low = [point for point in points if point.flops < 2.6e15]
  assert len(low) == 14 and all(point.flops < exits[point.run] for point in low)
  assert not any(point.flops < exits[point.run] for point in points if point.flops > 2.6e15)
  after = frontier.percentile_frontier(frontier.drop_plateau(tracks, places))
  assert after[0].flops > 2.6e15 and len(places) - len(frontier.drop_plateau(tracks, places)) == 4
