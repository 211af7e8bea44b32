"""The study recovers the numbers of paper 1 and of synthetic sweeps; small sweeps lack results."""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest

from minilm_jax.analysis import frontier, scaling_fits, scaling_study
from minilm_jax.analysis.laws import power_laws
from minilm_jax.analysis.scaling_study import (
  CONCLUSIONS,
  ScalingStudy,
  study_scaling,
  write_sentences,
)
from minilm_jax.core.errors import to_json_types
from tests.fake_runs import make_loss_curve, read_paper1_curves

UPDATES = tuple(range(200, 8001, 200))


def make_sweep(runs: int = 12, plateau: bool = True, **fields) -> list:
  """Returns curves by size; larger models leave the plateau at 3.2 nats earlier."""
  curves = []
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
    curves.append(
      make_loss_curve(
        f'run {size}', UPDATES, loss, 1e9 * 1.3**size, parameters=1_000_000 * (size + 1), **fields
      )
    )
  return curves


def select_fit(
  study: ScalingStudy, name: str, form: str, method: str = power_laws.LOGS
) -> power_laws.Fit:
  (law_fit,) = [
    fit for fit in study.fits if (fit.name, fit.form, fit.method) == (name, form, method)
  ]
  return law_fit


@pytest.fixture(scope='module')
def log_study(data: pathlib.Path) -> ScalingStudy:
  return study_scaling(read_paper1_curves(data), draws=60)


def test_the_study_of_the_logs_has_the_numbers_of_the_paper(log_study: ScalingStudy):
  assert (log_study.runs, log_study.evaluations, len(log_study.frontier)) == (42, 1512, 34)
  for side, method, a, b in (
    ('below', power_laws.LINEAR, 78.2, 0.0923),
    ('above', power_laws.LOGS, 364, 0.1399),
  ):
    law_fit = select_fit(log_study, f'frontier {side} 2.7e+15 FLOPs', power_laws.POWER, method)
    assert law_fit.constants['a'] == pytest.approx(a, rel=1e-3) and law_fit.constants[
      'b'
    ] == pytest.approx(b, rel=1e-3)
    assert law_fit.intervals['b'][0] < b < law_fit.intervals['b'][1]
  for field, k in (('tokens', 0.5255), ('parameters', 0.4227)):
    assert select_fit(
      log_study, f'{field} along the frontier', power_laws.EXPONENT_ONLY, power_laws.LINEAR
    ).constants['k'] == pytest.approx(k, abs=5e-5)
  frontier_fits = [fit for fit in log_study.fits if fit.name == scaling_fits.FRONTIER]
  assert min(frontier_fits, key=lambda fit: fit.bic).form == power_laws.PIECES
  assert 2.625e15 < log_study.split < 2.935e15
  low, high = scaling_study.select_laws(log_study.fits)[power_laws.PIECES].intervals['C0']
  assert low < log_study.split < high
  assert {law_fit.count for law_fit in log_study.fits} == {
    'honey',
    'kaplan',
  } and not log_study.left_out


def test_the_break_of_the_logs_is_the_exit_of_the_plateau(log_study: ScalingStudy):
  assert (log_study.below, log_study.below_before_exit, log_study.above_before_exit) == (15, 14, 0)
  assert (
    len(log_study.plateaus) == 42
    and sum(plateau.exit is not None for plateau in log_study.plateaus) == 38
  )
  assert scaling_study.classify_break(log_study) == scaling_study.PLATEAU
  assert CONCLUSIONS[scaling_study.PLATEAU] in log_study.sentences
  power, pieces = (
    select_fit(log_study, scaling_fits.WITHOUT_PLATEAU, form)
    for form in (power_laws.POWER, power_laws.PIECES)
  )
  bics = [
    select_fit(log_study, scaling_fits.FRONTIER, form).bic
    for form in (power_laws.POWER, power_laws.PIECES)
  ]
  assert power.bic - pieces.bic < bics[0] - bics[1]


def test_without_a_plateau_the_cause_of_the_break_is_unknown(log_study: ScalingStudy):
  unknown = dataclasses.replace(log_study, level=None, plateaus=[])
  assert scaling_study.classify_break(unknown) == scaling_study.UNKNOWN
  assert CONCLUSIONS[scaling_study.UNKNOWN] in write_sentences(unknown, [])


def test_all_fits_convert_to_json_with_intervals(log_study: ScalingStudy):
  names = set()
  for law_fit in log_study.fits:
    json.dumps(to_json_types(dataclasses.asdict(law_fit)), allow_nan=False)
    names.add((law_fit.name, law_fit.form, law_fit.method))
    assert law_fit.intervals.keys() <= law_fit.constants.keys() and law_fit.intervals
    assert all(low <= high for low, high in law_fit.intervals.values())
  assert len(names) == len(log_study.fits)
  assert {law_fit.form for law_fit in log_study.fits} == {
    power_laws.POWER,
    power_laws.OFFSET,
    power_laws.PIECES,
    power_laws.SMOOTH,
    power_laws.SURFACE,
    power_laws.EXPONENT_ONLY,
  }


def test_the_ends_of_runs_follow_a_power_law():
  random = np.random.default_rng(0)
  curves = [
    make_loss_curve(
      str(size),
      [1, 1000],
      [9, 300 * (1e13 * 1.2**size * 256) ** -0.13 * math.exp(0.01 * random.normal())],
      1e10 * 1.2**size,
    )
    for size in range(40)
  ]
  end_fit = select_fit(study_scaling(curves, draws=0), scaling_fits.ENDS, power_laws.POWER)
  assert end_fit.n == 40 and end_fit.constants['b'] == pytest.approx(0.13, abs=0.005)
  assert end_fit.intervals['b'][0] < 0.13 < end_fit.intervals['b'][1]


def test_a_plateau_is_the_cause_of_a_break():
  with_plateau = study_scaling(make_sweep(warmup=300), draws=20)
  assert with_plateau.level == pytest.approx(3.2, rel=0.02)
  after = [fit for fit in with_plateau.fits if fit.name == scaling_fits.WITHOUT_PLATEAU]
  assert after and all(fit.low > with_plateau.frontier[0].flops for fit in after)
  assert with_plateau.below_before_exit > 0.8 * with_plateau.below
  assert with_plateau.above_before_exit == 0
  assert scaling_study.classify_break(with_plateau) == scaling_study.PLATEAU
  without_plateau = study_scaling(make_sweep(plateau=False), draws=20)
  assert without_plateau.level is None and without_plateau.plateaus == []
  assert any('plateau' in reason for reason in without_plateau.left_out)
  assert scaling_study.classify_break(without_plateau) != scaling_study.PLATEAU


def test_laws_use_the_counts_that_every_run_has():
  curves = make_sweep(counts=('honey', 'kaplan', 'actual'))
  assert {law_fit.count for law_fit in study_scaling(curves, draws=0).fits} == {
    'honey',
    'kaplan',
    'actual',
  }
  mixed = [*curves[1:], dataclasses.replace(curves[0], flops_per_row={'honey': 1e9})]
  assert {law_fit.count for law_fit in study_scaling(mixed, draws=0).fits} == {'honey'}


def test_unfinished_runs_count_on_request():
  curves = [
    *make_sweep(6),
    *(
      dataclasses.replace(curve, finished=False, name=f'{curve.name} u') for curve in make_sweep(6)
    ),
  ]
  assert study_scaling(curves, draws=0).runs == 6
  study = study_scaling(curves, draws=0, unfinished=True)
  assert study.runs == 12 and len(study.ends) == 6
  assert any(
    reason.startswith('6 of 12 runs') for reason in study_scaling(curves, draws=0).left_out
  )


@pytest.mark.parametrize(
  'curves',
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
    make_sweep(2),
    make_sweep(3),
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
def test_small_sweeps_list_missing_results(curves: list):
  study = study_scaling(curves, draws=5)
  assert (
    study.left_out
    and study.sentences
    and all(isinstance(text, str) and 'nan' not in text for text in study.sentences)
  )
  for law_fit in study.fits:
    json.dumps(to_json_types(dataclasses.asdict(law_fit)), allow_nan=False)


def test_the_same_sweep_gives_the_same_study():
  first, same = (study_scaling(make_sweep(5), draws=10) for _ in range(2))
  assert first.fits == same.fits and first.sentences == same.sentences
  assert first.frontier == frontier.find_percentile_frontier(make_sweep(5))
