"""The plateau of the paper's runs, where its logs show it, and curves that have none."""

import math
import pathlib

import numpy as np
import pytest

from minilm_jax.analysis import frontier, plateau
from tests.fake_runs import make_loss_curve, read_paper1_curves

UPDATES = range(100, 10_001, 100)


def curve(leaves: int, at: float = 3.2, spacing: int = 100, noise: float = 0.0, **fields):
  """Falls to the plateau until update 1,000, stands there, and drops from when it leaves."""
  updates = np.arange(spacing, 10_001, spacing)
  loss = at * np.maximum(1, (updates / 1000) ** -0.3) * np.minimum(1, (updates / leaves) ** -0.4)
  loss *= np.exp(noise * np.random.default_rng(0).normal(size=len(updates)))
  return make_loss_curve('run', updates.tolist(), loss.tolist(), **fields)


@pytest.mark.parametrize('spacing, noise', [(100, 0.0), (20, 0.002), (500, 0.002)])
def test_a_plateau_is_found_at_any_spacing(spacing: int, noise: float):
  found = plateau.find(curve(4000, spacing=spacing, noise=noise, warmup=300))
  assert found.level == pytest.approx(3.2, rel=0.01)
  assert found.entry == pytest.approx(940, abs=spacing + 60)
  assert found.exit == pytest.approx(4600, abs=spacing + 100)  # 5.5% below it
  assert found.exit_loss < 0.945 * found.level and found.left and found.seen == found.end - found.start
  assert found.exit_flops == pytest.approx(found.exit * 256e9) and found.entry_flops == pytest.approx(found.entry * 256e9)
  assert (found.warmup, found.warmup_flops) == (300, pytest.approx(300 * 256e9))


def test_a_curve_without_one():
  steady = make_loss_curve('a', list(UPDATES), [4 * (one / 100) ** -0.15 for one in UPDATES])
  converged = make_loss_curve('b', list(UPDATES), [max(2.0, 4 * (one / 100) ** -0.3) for one in UPDATES])
  untaught = make_loss_curve('c', list(UPDATES), [9.8 if one < 3000 else 9.8 * (one / 3000) ** -0.5 for one in UPDATES])
  for track in (steady, converged, untaught, make_loss_curve('d', [], []), make_loss_curve('e', [100], [3.2])):
    assert plateau.find(track) is None, track.name
  assert plateau.level([steady, converged, untaught]) is None
  assert plateau.find(make_loss_curve('f', [100, 200], [9.0, 8.0]), level=3.2) is None  # has not come down to it


def test_runs_of_a_sweep_share_the_level():
  coarse = make_loss_curve('coarse', [1000, 6000, 10000], [3.22, 2.2, 2.0])
  never = make_loss_curve('never', list(UPDATES), [3.2 * max(1.0, (one / 1000) ** -0.3) for one in UPDATES])
  level = plateau.level([curve(4000), curve(6000), coarse, never])
  assert level == pytest.approx(3.2, rel=0.01) and plateau.find(coarse) is None is plateau.find(never)
  assert (plateau.find(coarse, level).entry, plateau.find(coarse, level).exit) == (1000, 6000)
  held = plateau.find(never, level)
  assert (held.exit, held.exit_flops, held.exit_loss, held.left, held.end) == (None, None, None, False, 100)
  through = plateau.find(make_loss_curve('through', [1000, 2000], [2.5, 2.2]), level)
  assert (through.entry, through.exit, through.seen) == (1000, 1000, 0)


def test_without_the_plateau_only_what_came_after_is_left():
  tracks = [curve(4000), make_loss_curve('never', list(UPDATES), [3.2] * 100), make_loss_curve('none', [1], [8.0])]
  places = [plateau.find(track, 3.2) for track in tracks]
  kept = plateau.without_plateau(tracks, places)
  assert [track.name for track in kept] == ['run', 'none'] and kept[1] is tracks[2]
  assert max(kept[0].loss) < 0.945 * 3.2 and kept[0].updates[0] == places[0].exit
  assert len(kept[0].updates) == len(kept[0].rows) == len(kept[0].loss) == 100 - places[0].end
  with pytest.raises(ValueError):
    plateau.without_plateau(tracks, places[:1])


def test_the_logged_runs(data: pathlib.Path):
  tracks = read_paper1_curves(data)
  level = plateau.level(tracks)
  assert 3.15 < level < 3.2
  found = {track.name: plateau.find(track, level) for track in tracks}
  assert None not in found.values()
  assert found['magic-bee-26'].exit is None and found['magic-bee-26'].warmup_flops is None
  assert 4000 <= found['laced-sun-4'].exit <= 8000 and found['floral-cloud-17'].exit in (5000, 6000)
  assert found['apricot-meadow-20'].exit == 2000 and found['apricot-meadow-20'].entry == 1000
  ranges = {'wide and deep': (2000, 5000), 'h256 l1': (6000, 10000), 'h128 l1': (9000, 16000), 'h64 deep': (4000, 8000),
            'h64 l1': (19000, 23000), 'h32 deep': (7000, 17000), 'h32 l1': (math.inf, math.inf)}
  for track in tracks:
    if track.name in ('absurd-silence-4', 'grateful-yogurt-5'):
      continue  # trained at another rate
    hidden, deep = track.shape.hidden, track.shape.layers > 1
    kind = 'wide and deep' if hidden >= 128 and deep else f'h{hidden} {"deep" if deep else "l1"}'
    low, high = ranges[kind]
    assert low <= (found[track.name].exit or math.inf) <= high, track.name


def test_the_logged_frontier_below_its_break_is_the_plateau_s(data: pathlib.Path):
  tracks = read_paper1_curves(data)
  level = plateau.level(tracks)
  places = [plateau.find(track, level) for track in tracks]
  exits = {place.run: place.exit_flops or math.inf for place in places}
  points = frontier.percentile(tracks)
  low = [point for point in points if point.flops < 2.6e15]
  assert len(low) == 14 and all(point.flops < exits[point.run] for point in low)
  assert not any(point.flops < exits[point.run] for point in points if point.flops > 2.6e15)
  after = frontier.percentile(plateau.without_plateau(tracks, places))
  assert after[0].flops > 2.6e15 and len(places) - len(plateau.without_plateau(tracks, places)) == 4
