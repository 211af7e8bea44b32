"""Committees are matched with rivals of the most similar cost; scores are paired by seed."""

import dataclasses
import math

import pytest

from minilm_jax.analysis.loss_curves import ACTUAL, LossCurve, ModelShape
from minilm_jax.analysis.paper2 import equal_cost
from minilm_jax.analysis.paper2.committee_study import CommitteeComparison, SeedCommittee
from minilm_jax.analysis.paper2.equal_cost import (
  LATENCY,
  PARAMETERS,
  TRAINING,
  Match,
  Measurements,
)
from minilm_jax.analysis.paper2.latencies import LatencyRow, encode_latency_shape
from minilm_jax.analysis.report import paper2_sections
from minilm_jax.analysis.scores import ScoreRow, make_score_table
from minilm_jax.analysis.training_sets import TrainingSet
from tests.fake_runs import make_score_line

SHALLOW, DEEP = (
  {'num_layers': layers, 'convolutions': convolutions} for layers, convolutions in ((1, 2), (6, 0))
)
CONV, BERT = (encode_latency_shape(model) for model in (SHALLOW, DEEP))
MEMBERS = tuple(f'conv/member-{number}' for number in range(5))
SEEDS = (0, 1, 2)
CONTEST = CommitteeComparison({}, 0, (CONV,) * 5, BERT, '')


def make_curve(name: str, cost: float, parameters: int, count: str = ACTUAL) -> LossCurve:
  shape = ModelShape(1, 1, 1, 1, 1, 9)
  return LossCurve(name, shape, 0, parameters, 10, {count: cost}, (10,), (100,), (6.0,))


def make_training_set(name: str, model: dict[str, int]) -> TrainingSet:
  return TrainingSet(
    name,
    'shape',
    model,
    'pieces',
    9,
    90,
    9,
    18,
    0,
    '',
    math.nan,
    False,
    'corpus',
    'corpus',
  )


def make_committee(
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


def make_row(
  checkpoint: str, values: tuple[float, ...], seeds: tuple[int, ...] = SEEDS
) -> ScoreRow:
  line = make_score_line(
    0.5, task='ag_news', metric='accuracy', split='test', checkpoint=checkpoint, examples=400
  )
  (row,) = make_score_table(
    line | {'seed': seed, 'value': value} for seed, value in zip(seeds, values, strict=True)
  )
  return row


def make_latency(
  run: str, shape: str, members: int, median: float, heads: int = 1, batch: int = 1
) -> LatencyRow:
  return LatencyRow(
    run,
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


def make_five_members(seeds: tuple[int, ...] = SEEDS) -> list[SeedCommittee]:
  """Returns committees whose score increases by 0.02 a member and by 0.01 a seed."""
  return [
    make_committee(
      'five', seed, MEMBERS, tuple(0.5 + 0.02 * size + 0.01 * seed for size in range(5))
    )
    for seed in seeds
  ]


def find_matches(
  committees: list[SeedCommittee],
  rows: list[ScoreRow],
  curves: list[LossCurve] | None = None,
  latencies: tuple[LatencyRow, ...] = (),
) -> dict[tuple[str, str], Match]:
  sets = {name: make_training_set(name, SHALLOW) for name in MEMBERS} | {
    name: make_training_set(name, DEEP) for name in ('bert', 'bert/member-0', 'bert/member-1')
  }
  curves = (
    curves
    if curves is not None
    else [
      *(make_curve(name, 2.0, 40) for name in MEMBERS),
      make_curve('bert', 6.0, 100),
      *(make_curve(f'bert/member-{number}', 5.0, 100) for number in (0, 1)),
    ]
  )
  curves = {curve.name: curve for curve in curves}
  measurements = Measurements(committees, rows, sets, curves, latencies, CONTEST.deep_shape)
  return {
    (match.rival, match.cost): match for match in equal_cost.find_matches(CONTEST, measurements)
  }


def test_the_deep_model_is_matched_with_the_committee_of_nearest_cost():
  matches = find_matches(make_five_members(), [make_row('bert', (0.51, 0.52, 0.53))])
  training, parameters = matches['bert', TRAINING], matches['bert', PARAMETERS]
  # Three members of cost 2 equal a rival of cost 6.
  assert (training.members, training.of, training.ratio) == (3, 5, pytest.approx(1.0))
  # The ratio 120/100 is closer to 1 than 80/100.
  assert (parameters.members, parameters.ratio) == (3, pytest.approx(1.2))
  assert (training.committee, training.theirs, training.difference) == pytest.approx(
    (0.55, 0.52, 0.03)
  )
  # Paired differences are equal for all seeds.
  assert training.low == pytest.approx(0.03) and training.seeds == 3
  assert ('bert', LATENCY) not in matches  # without latencies


def test_committees_of_several_folders_are_averaged_by_seed():
  first = make_five_members()[0]
  worse = dataclasses.replace(
    first, folder='other', values=tuple(value - 0.1 for value in first.values)
  )
  match = find_matches([first, worse], [make_row('bert', (0.51, 0.52, 0.53))])['bert', TRAINING]
  values = dict(zip(range(1, 6), first.values, strict=True))
  assert match.committee == pytest.approx(values[match.members] - 0.05)


def test_latencies_are_relative_to_the_deep_model_of_the_same_run():
  latencies = (
    make_latency('quiet', CONV, 3, 4.5),
    make_latency('quiet', CONV, 3, 3.0),
    make_latency('quiet', BERT, 1, 3.0),
    make_latency('busy', CONV, 5, 12.0),
    make_latency('busy', BERT, 1, 6.0),
    make_latency('busy', CONV, 1, 0.1, batch=32),
  )
  match = find_matches(
    make_five_members(), [make_row('bert', (0.5, 0.5, 0.5))], latencies=latencies
  )['bert', LATENCY]
  assert (match.members, match.ratio) == (3, pytest.approx(1.0))  # of the faster strategy


def test_deep_committees_and_encoders_with_several_heads_are_rivals():
  pair = [
    make_committee('pair', seed, ('bert/member-0', 'bert/member-1'), (0.4, 0.45), shallow=False)
    for seed in SEEDS
  ]
  latencies = (
    make_latency('one', CONV, 1, 1.0),
    make_latency('one', CONV, 1, 1.1, heads=5),
    make_latency('one', BERT, 1, 3.0),
  )
  matches = find_matches(
    make_five_members() + pair,
    [make_row(f'{MEMBERS[0]}, 5 heads', (0.5, 0.5, 0.5)), make_row(MEMBERS[1], (0.6, 0.6, 0.6))],
    latencies=latencies,
  )
  assert {rival for rival, _ in matches} == {'pair, a committee of 2', f'{MEMBERS[0]}, 5 heads'}
  deep_pair, heads = (
    matches['pair, a committee of 2', TRAINING],
    matches[f'{MEMBERS[0]}, 5 heads', LATENCY],
  )
  # Five members of cost 2 equal two of cost 5.
  assert (deep_pair.members, deep_pair.ratio, deep_pair.theirs) == (
    5,
    pytest.approx(1.0),
    pytest.approx(0.45),
  )
  assert (heads.members, heads.ratio) == (1, pytest.approx(1 / 1.1))


@pytest.mark.parametrize(
  'rows, curves',
  [
    ([make_row('bert', (0.5, 0.5), (7, 8))], None),  # no seed in common
    ([make_row('nowhere', (0.5, 0.5, 0.5))], None),
    ([make_row('bert', (0.5, 0.5, 0.5))], []),
  ],
)
def test_rivals_without_common_seeds_or_costs_have_no_match(
  rows: list[ScoreRow], curves: list[LossCurve] | None
):
  assert not find_matches(make_five_members(), rows, curves)


def test_unknown_costs_have_no_match():
  curves = [
    *(make_curve(name, 2.0, 40, 'honey') for name in MEMBERS),
    make_curve('bert', 6.0, 100, 'honey'),
  ]
  assert [
    cost
    for _, cost in find_matches(make_five_members(), [make_row('bert', (0.5, 0.5, 0.5))], curves)
  ] == [PARAMETERS]


def test_the_table_has_the_ratio_of_costs():
  match = find_matches(make_five_members((0,)), [make_row('bert', (0.51, 0.52, 0.53))])[
    'bert', PARAMETERS
  ]
  assert paper2_sections.MATCH_FORMAT.fill([match]).rows[0] == [
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
