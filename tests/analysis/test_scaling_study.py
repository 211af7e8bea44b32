"""The study says what the logs show and what a made sweep was made with, and leaves out what a
small one cannot say.
"""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest

from minilm_jax.analysis import frontier, power_laws, scaling_fits
from minilm_jax.analysis.scaling_study import ScalingStudy, study_scaling, write_sentences
from tests.fake_runs import make_loss_curve, read_paper1_curves

UPDATES = tuple(range(200, 8001, 200))


def swept(runs: int = 12, plateau: bool = True, **fields) -> list:
  """Runs of 12 sizes: larger ones reach less loss and leave the plateau at 3.2 nats earlier."""
  found = []
  for size in range(runs):
    updates, leaves = np.array(UPDATES), 5000 / 1.25**size
    loss = np.maximum(1.2 + 2.2 * (updates * 1.3**size / 1000) ** -0.25, 1.0)
    if plateau:
      fall, drop = (
        np.maximum(1, (updates / 500) ** -0.3),
        np.minimum(1, (updates / leaves) ** -0.35),
      )
      loss = np.maximum(3.2 * fall * drop, loss * 0.8)
    loss *= np.exp(0.003 * np.random.default_rng(size).normal(size=len(loss)))
    found.append(
      make_loss_curve(
        f'run {size}', UPDATES, loss, 1e9 * 1.3**size, parameters=1_000_000 * (size + 1), **fields
      )
    )
  return found


def fit(found: ScalingStudy, name: str, form: str, method: str = power_laws.LOGS) -> power_laws.Fit:
  (one,) = [one for one in found.fits if (one.name, one.form, one.method) == (name, form, method)]
  return one


@pytest.fixture(scope='module')
def logs(data: pathlib.Path) -> ScalingStudy:
  return study_scaling(read_paper1_curves(data), draws=60)


def test_the_logs_give_the_paper_s_numbers(logs: ScalingStudy):
  assert (logs.runs, logs.evaluations, len(logs.frontier)) == (42, 1512, 34)
  for side, method, a, b in (
    ('below', power_laws.LINEAR, 78.2, 0.0923),
    ('above', power_laws.LOGS, 364, 0.1399),
  ):
    one = fit(logs, f'frontier {side} 2.7e+15 FLOPs', power_laws.POWER, method)
    assert one.constants['a'] == pytest.approx(a, rel=1e-3) and one.constants['b'] == pytest.approx(
      b, rel=1e-3
    )
    assert one.intervals['b'][0] < b < one.intervals['b'][1]
  for field, k in (('tokens', 0.5255), ('parameters', 0.4227)):
    assert fit(logs, f'{field} along the frontier', power_laws.ONE, power_laws.LINEAR).constants[
      'k'
    ] == pytest.approx(k, abs=5e-5)
  assert logs.chosen.form == power_laws.PIECES and 2.625e15 < logs.split < 2.935e15
  assert logs.split_interval[0] < logs.split < logs.split_interval[1]
  assert {one.count for one in logs.fits} == {'honey', 'kaplan'} and not logs.left_out


def test_the_logs_break_is_where_runs_leave_the_plateau(logs: ScalingStudy):
  assert (logs.below, logs.below_on_plateau, logs.above_on_plateau) == (15, 14, 0)
  assert len(logs.plateaus) == 42 and sum(place.left for place in logs.plateaus) == 38
  text = ' '.join(logs.sentences)
  assert '14 of the 15 points' in text and 'belongs to the course of training' in text
  assert 'No schedule ends below' in text and 'was not logged' in text
  one, two = (
    fit(logs, scaling_fits.WITHOUT, form) for form in (power_laws.POWER, power_laws.PIECES)
  )
  before = [
    fit(logs, scaling_fits.FRONTIER, form).bic for form in (power_laws.POWER, power_laws.PIECES)
  ]
  assert one.bic - two.bic < before[0] - before[1]


def test_a_break_without_a_plateau_in_sight_is_left_undecided(
  logs: ScalingStudy, data: pathlib.Path
):
  text = ' '.join(
    write_sentences(dataclasses.replace(logs, level=None, plateaus=[]), read_paper1_curves(data))
  )
  assert 'do not tell whether a plateau makes it' in text
  assert 'does not account for the break' not in text and 'belongs to the course' not in text


def test_every_fit_is_json_with_its_intervals(logs: ScalingStudy):
  names = set()
  for one in logs.fits:
    json.dumps(power_laws.fit_to_json(one), allow_nan=False)
    names.add((one.name, one.form, one.method))
    assert one.intervals.keys() <= one.constants.keys() and one.intervals
    assert all(low <= high for low, high in one.intervals.values())
  assert len(names) == len(logs.fits)
  assert {one.form for one in logs.fits} == {
    power_laws.POWER,
    power_laws.OFFSET,
    power_laws.PIECES,
    power_laws.SMOOTH,
    power_laws.SURFACE,
    power_laws.ONE,
  }


def test_the_ends_of_runs_have_their_own_law():
  random = np.random.default_rng(0)
  tracks = [
    make_loss_curve(
      str(size),
      [1, 1000],
      [9, 300 * (1e13 * 1.2**size * 256) ** -0.13 * math.exp(0.01 * random.normal())],
      1e10 * 1.2**size,
    )
    for size in range(40)
  ]
  one = fit(study_scaling(tracks, draws=0), scaling_fits.ENDS, power_laws.POWER)
  assert one.n == 40 and one.constants['b'] == pytest.approx(0.13, abs=0.005)
  assert one.intervals['b'][0] < 0.13 < one.intervals['b'][1]


def test_a_sweep_with_and_without_a_plateau():
  on, off = (
    study_scaling(swept(warmup=300), draws=20),
    study_scaling(swept(plateau=False), draws=20),
  )
  assert on.level == pytest.approx(3.2, rel=0.02) and off.level is None and off.plateaus == []
  assert on.without and not off.without and any('plateau' in reason for reason in off.left_out)
  assert any(
    'Warm-up' in sentence and 'is outside of that' in sentence for sentence in on.sentences
  )
  assert on.below_on_plateau > 0.8 * on.below and on.above_on_plateau == 0
  assert any('belongs to the course' in sentence for sentence in on.sentences)
  assert any('No run shows a plateau' in sentence for sentence in off.sentences)
  assert not any('belongs to the course' in sentence for sentence in off.sentences)


def test_a_split_that_was_asked_for():
  whole = study_scaling(swept(), draws=0)
  middle = whole.frontier[len(whole.frontier) // 2].flops
  found = study_scaling(swept(), draws=0, split=middle)
  assert found.split == middle and found.split_interval is None
  assert fit(found, f'frontier below {middle:.3g} FLOPs', power_laws.POWER).n == found.below > 3
  assert any('intervals' in reason for reason in found.left_out)


def test_counts_that_every_run_has():
  tracks = swept(counts=('honey', 'kaplan', 'actual'))
  assert {one.count for one in study_scaling(tracks, draws=0).fits} == {'honey', 'kaplan', 'actual'}
  some = [*tracks[1:], dataclasses.replace(tracks[0], flops_per_row={'honey': 1e9})]
  assert {one.count for one in study_scaling(some, draws=0).fits} == {'honey'}
  assert {one.count for one in study_scaling(some, draws=0, count='kaplan').fits} == {
    'honey',
    'kaplan',
    'actual',
  } - {'honey'} | {'honey'}


def test_unfinished_runs_only_when_asked():
  tracks = [
    *swept(6),
    *(dataclasses.replace(track, finished=False, name=f'{track.name} u') for track in swept(6)),
  ]
  assert study_scaling(tracks, draws=0).runs == 6
  found = study_scaling(tracks, draws=0, unfinished=True)
  assert found.runs == 12 and len(found.ends) == 6
  assert any(
    reason.startswith('6 of 12 runs') for reason in study_scaling(tracks, draws=0).left_out
  )


@pytest.mark.parametrize(
  'tracks',
  [
    [],
    [make_loss_curve('a', [], [])],
    [make_loss_curve('a', [1], [3])],
    [make_loss_curve('a', [0, 1], [9, 3])],
    [make_loss_curve('a', [1, 2], [3, 2])] * 2,
    [make_loss_curve('a', [1, 2, 3, 4], [3, 3, 3, 3])],
    [make_loss_curve('a', [1, 2], [3, 2], finished=False)],
    [
      make_loss_curve(str(size), [1, 2, 3, 4, 5, 6, 7], np.geomspace(4, 3 - size, 7), 10.0**size)
      for size in range(3)
    ],
    swept(2),
    swept(3),
  ],
  ids=[
    'nothing',
    'no evaluation',
    'one',
    'start',
    'twice',
    'flat',
    'unfinished',
    'three',
    'two runs',
    'three runs',
  ],
)
def test_small_sweeps_say_what_they_are_too_small_for(tracks: list):
  found = study_scaling(tracks, draws=5)
  assert (
    found.left_out
    and found.sentences
    and all(isinstance(text, str) and 'nan' not in text for text in found.sentences)
  )
  for one in found.fits:
    json.dumps(power_laws.fit_to_json(one), allow_nan=False)


def test_the_same_seed_gives_the_same_study():
  one, same = (study_scaling(swept(5), draws=10, seed=2) for _ in range(2))
  assert one.fits == same.fits and one.sentences == same.sentences
  assert one.frontier == frontier.percentile_frontier(swept(5))
