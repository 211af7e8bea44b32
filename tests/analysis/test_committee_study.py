"""The committee at equal costs: which of its sizes meets which rival, by what, and how scores are
paired.
"""

import json
import math

import pytest

from minilm_jax.analysis import committee_study, runs
from minilm_jax.analysis.committee_study import (
  LATENCY,
  PARAMETERS,
  TRAINING,
  CommitteeComparison,
  Match,
  Measurements,
  SeedCommittee,
)
from minilm_jax.analysis.loss_curves import ACTUAL, LossCurve, ModelShape
from minilm_jax.analysis.pretraining_gap import TrainingSet
from minilm_jax.analysis.report import paper2_sections
from minilm_jax.analysis.runs import LatencyRow
from minilm_jax.analysis.scores import Difference, Group, ScoreRow

SHALLOW, DEEP = (
  {'num_layers': layers, 'convolutions': convolutions} for layers, convolutions in ((1, 2), (6, 0))
)
CONV, BERT = (runs.latency_shape(model) for model in (SHALLOW, DEEP))
MEMBERS = tuple(f'conv/member-{number}' for number in range(5))
SEEDS = (0, 1, 2)
NOTHING = Group(None, math.nan, math.nan, 0, math.nan, math.nan, 0, 0, math.nan, math.nan, (), ())
CONTEST = CommitteeComparison({}, 0, (CONV,) * 5, BERT, '')


def track(name: str, cost: float, parameters: int, count: str = ACTUAL) -> LossCurve:
  return LossCurve(
    name,
    ModelShape(1, 1, 1, 1, 1, 9),
    0,
    parameters,
    0,
    None,
    None,
    True,
    10,
    {count: cost},
    (10,),
    (100,),
    (6.0,),
    0,
    True,
    None,
    None,
    None,
  )


def start(name: str, model: dict[str, int]) -> TrainingSet:
  return TrainingSet(
    name,
    'shape',
    json.dumps([model, 'pieces']),
    9,
    90,
    9,
    18,
    '',
    math.nan,
    False,
    'corpus',
    'corpus',
  )


def seeded(
  folder: str,
  seed: int,
  checkpoints: tuple[str, ...],
  values: tuple[float, ...],
  shallow: bool = True,
) -> SeedCommittee:
  return SeedCommittee(
    folder,
    'ag_news',
    'test',
    400,
    'accuracy',
    seed,
    ((CONV if shallow else BERT),) * len(checkpoints),
    1 if shallow else 6,
    shallow,
    checkpoints,
    9,
    values,
    0,
  )


def row(checkpoint: str, values: tuple[float, ...], seeds: tuple[int, ...] = SEEDS) -> ScoreRow:
  mean = sum(values) / len(values)
  group = Group(
    None, mean, 0.0, len(values), math.nan, math.nan, 0, 0, math.nan, math.nan, seeds, values
  )
  return ScoreRow(
    'ag_news',
    'accuracy',
    True,
    'test',
    False,
    checkpoint,
    8,
    400,
    100,
    0,
    3.0,
    'last',
    True,
    0.25,
    0.25,
    group,
    NOTHING,
    Difference(math.nan, math.nan, math.nan, False),
  )


def answer(
  of: str, shape: str, members: int, median: float, heads: int = 1, batch: int = 1
) -> LatencyRow:
  return LatencyRow(
    of,
    'name',
    'recipe',
    shape,
    batch,
    128,
    members,
    heads,
    1,
    1,
    1,
    1,
    median,
    median,
    median,
    median,
    1.0,
    'a machine',
    100,
  )


def committee(seeds: tuple[int, ...] = SEEDS) -> list[SeedCommittee]:
  """One member scores 50, each more adds two; each seed is one better than that before it."""
  return [
    seeded('five', seed, MEMBERS, tuple(0.5 + 0.02 * size + 0.01 * seed for size in range(5)))
    for seed in seeds
  ]


def found(
  made: list[SeedCommittee],
  rows: list[ScoreRow],
  tracks: list[LossCurve] | None = None,
  timed: tuple[LatencyRow, ...] = (),
) -> dict[tuple[str, str], Match]:
  there = {name: start(name, SHALLOW) for name in MEMBERS} | {
    name: start(name, DEEP) for name in ('bert', 'bert/member-0', 'bert/member-1')
  }
  tracks = (
    tracks
    if tracks is not None
    else [
      *(track(name, 2.0, 40) for name in MEMBERS),
      track('bert', 6.0, 100),
      *(track(f'bert/member-{number}', 5.0, 100) for number in (0, 1)),
    ]
  )
  curves = {curve.name: curve for curve in tracks}
  measurements = Measurements(made, rows, there, curves, timed, CONTEST.deep)
  return {
    (match.rival, match.cost): match
    for match in committee_study.find_matches(CONTEST, measurements)
  }


def test_the_deep_model_meets_the_size_that_costs_as_much():
  made = found(committee(), [row('bert', (0.51, 0.52, 0.53))])
  training, parameters = made['bert', TRAINING], made['bert', PARAMETERS]
  # three of 2 for one of 6
  assert (training.members, training.of, training.ratio) == (3, 5, pytest.approx(1.0))
  # 6/5 is a nearer ratio than 4/5
  assert (parameters.members, parameters.ratio) == (3, pytest.approx(1.2))
  assert (training.committee, training.theirs, training.difference) == pytest.approx(
    (0.55, 0.52, 0.03)
  )
  # the seeds differ alike, so paired they do not
  assert training.low == pytest.approx(0.03) and training.seeds == 3
  assert ('bert', LATENCY) not in made  # nothing was timed


def test_latency_is_taken_over_the_deep_model_of_the_same_measurement():
  timed = (
    answer('quiet', CONV, 3, 4.5),
    answer('quiet', CONV, 3, 3.0),
    answer('quiet', BERT, 1, 3.0),
    answer('busy', CONV, 5, 12.0),
    answer('busy', BERT, 1, 6.0),
    answer('busy', CONV, 1, 0.1, batch=32),
  )
  made = found(committee(), [row('bert', (0.5, 0.5, 0.5))], timed=timed)['bert', LATENCY]
  assert (made.members, made.ratio) == (3, pytest.approx(1.0))  # the faster way of two


def test_rivals_are_committees_of_the_deep_one_and_a_body_with_several_heads():
  pair = [
    seeded('pair', seed, ('bert/member-0', 'bert/member-1'), (0.4, 0.45), shallow=False)
    for seed in SEEDS
  ]
  timed = (
    answer('one', CONV, 1, 1.0),
    answer('one', CONV, 1, 1.1, heads=5),
    answer('one', BERT, 1, 3.0),
  )
  made = found(
    committee() + pair,
    [row(f'{MEMBERS[0]}, 5 heads', (0.5, 0.5, 0.5)), row(MEMBERS[1], (0.6, 0.6, 0.6))],
    timed=timed,
  )
  assert {rival for rival, _ in made} == {'pair, a committee of 2', f'{MEMBERS[0]}, 5 heads'}
  both, heads = made['pair, a committee of 2', TRAINING], made[f'{MEMBERS[0]}, 5 heads', LATENCY]
  # five of 2, two of 5
  assert (both.members, both.ratio, both.theirs) == (5, pytest.approx(1.0), pytest.approx(0.45))
  assert (heads.members, heads.ratio) == (1, pytest.approx(1 / 1.1))


@pytest.mark.parametrize(
  'rows, tracks',
  [
    ([row('bert', (0.5, 0.5), (7, 8))], None),  # no seed in common
    ([row('nowhere', (0.5, 0.5, 0.5))], None),
    ([row('bert', (0.5, 0.5, 0.5))], []),
  ],
)
def test_what_cannot_be_compared_is_no_row(rows: list[ScoreRow], tracks: list[LossCurve] | None):
  assert not found(committee(), rows, tracks)


def test_costs_that_nobody_counted_are_no_match():
  tracks = [*(track(name, 2.0, 40, 'honey') for name in MEMBERS), track('bert', 6.0, 100, 'honey')]
  assert [cost for _, cost in found(committee(), [row('bert', (0.5, 0.5, 0.5))], tracks)] == [
    PARAMETERS
  ]


def test_the_table_says_how_near_the_costs_are():
  made = found(committee((0,)), [row('bert', (0.51, 0.52, 0.53))])['bert', PARAMETERS]
  assert paper2_sections.MATCH_FORMAT.fill([made]).rows[0] == [
    'ag_news, test',
    'bert',
    PARAMETERS,
    '3 of 5',
    '1.20',
    '54.0',
    '51.0',
    '+3.0',
    '1',
  ]
  assert [len(section.table.rows) for section in paper2_sections.match_sections([made])] == [1]
  assert not list(paper2_sections.match_sections([]))
