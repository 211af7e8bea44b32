"""The frontier of the paper's procedure, point by point on its logs, and the properties of an envelope."""

import pathlib

import pytest

from minilm_jax.analysis import frontier
from minilm_jax.errors import InputError
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
  points = frontier.percentile(tracks)
  found = [(f'{point.flops:.3e}', f'{point.loss:.4f}', point.run) for point in points]
  assert found == [(f'{1e14 * float(flops):.3e}', loss, run)
                   for flops, loss, run in (line.split() for line in PAPER.replace('\n', '').split('|'))]
  by_name = {track.name: track for track in tracks}
  assert all(point.parameters == by_name[point.run].parameters for point in points)
  assert points[0].tokens == 1000 * 256 * 128


def test_an_envelope_has_what_nothing_cheaper_reaches(data: pathlib.Path):
  tracks = read_paper1_curves(data)
  points = frontier.envelope(tracks)
  flops, loss = frontier.arrays(points)
  assert (flops[1:] > flops[:-1]).all() and (loss[1:] < loss[:-1]).all() and len(points) > 34
  for track in tracks:
    for cost, reached in zip(track.flops(), track.loss, strict=True):
      assert min(loss[flops <= cost], default=99) <= reached
  ends = frontier.envelope(tracks, ends=True)
  assert {(point.flops, point.loss) for point in ends} <= {(track.flops()[-1], track.loss[-1]) for track in tracks}
  assert frontier.arrays(ends)[0].min() == min(track.flops()[-1] for track in tracks)


def test_equal_losses_and_equal_costs():
  tracks = [make_loss_curve('a', [1, 2, 3], [3, 2, 2]), make_loss_curve('b', [1, 2, 4], [2.5, 1.9, 1.8])]
  assert [(point.run, point.tokens / 128 / 256) for point in frontier.envelope(tracks)] == [('b', 1), ('b', 2), ('b', 4)]
  assert frontier.envelope(tracks + tracks) == frontier.envelope(tracks)  # a draw can hold a run twice
  assert frontier.percentile(tracks + tracks) and frontier.percentile(tracks[:1])[0].loss == 3


def test_unfinished_runs_only_when_asked():
  tracks = [make_loss_curve('a', [1, 2], [3, 2]), make_loss_curve('b', [1, 2], [1, 0.5], finished=False)]
  assert {point.run for point in frontier.envelope(tracks)} == {'a'}
  assert {point.run for point in frontier.envelope(tracks, unfinished=True)} == {'b'}
  with pytest.raises(InputError, match='none at the end'):
    frontier.envelope(tracks[1:])


def test_what_cost_nothing_is_on_no_frontier():
  tracks = [make_loss_curve('a', [0, 1, 2], [1, 3, 2])]
  assert [point.loss for point in frontier.envelope(tracks)] == [3, 2]
  assert 1 not in [point.loss for point in frontier.percentile(tracks)]


@pytest.mark.parametrize('make', [frontier.percentile, frontier.envelope])
def test_nothing_to_make_one_from(make):
  for tracks in ([], [make_loss_curve('a', [], [])], [make_loss_curve('a', [0], [9.0])]):
    with pytest.raises(InputError, match='no evaluation'):
      make(tracks)
  with pytest.raises(InputError, match="'kaplan'"):
    make([make_loss_curve('a', [1], [3])], 'kaplan')
