"""Steps equal those of paper 1; seeds and dominance have their properties; depths match in cost."""

import dataclasses
import math
import pathlib

import pytest

from minilm_jax.analysis import cost_effectiveness, logged_table
from minilm_jax.analysis.correlation import ScoredModel
from minilm_jax.analysis.cost_effectiveness import Step
from tests import fake_runs

# Table of paper 1: factor, values, other factors, points of perplexity per 1e15 FLOPs. The last model
# of a series has a tied head.
ICER = (
  ('hidden', (32, 64, 128, 256), 'e 256, i 1024, a 8, l 8, V 19010', (0.329, 0.0910, 0.0264)),
  ('layers', (1, 2, 4, 8), 'e 256, h 256, i 1024, a 8, V 19010', (0.289, 0.0750, 0.0230)),
  ('embedding', (32, 64, 128, 256), 'h 256, i 1024, a 8, l 8, V 19010', (0.0682, 0.0229, 0.0181)),
  (
    'feed_forward',
    (128, 256, 512, 1024),
    'e 256, h 256, a 8, l 8, V 19010',
    (0.0441, 0.0454, 0.0217),
  ),
  ('hidden', (32, 64, 128, 256), 'e 32, i 128, a 1, l 1, V 19010', (1.015, 0.479, 0.128)),
)


@pytest.fixture(scope='module')
def steps(data: pathlib.Path) -> list[Step]:
  return cost_effectiveness.find_steps(
    logged_table.read_csv(data / 'honey_logs' / 'eval_results.csv.gz')
  )


@pytest.mark.parametrize('factor, values, others, expected', ICER)
def test_steps_of_the_logs_are_those_of_the_paper(
  steps: list[Step], factor: str, values: tuple[int, ...], others: str, expected: tuple[float, ...]
):
  chain = [step for step in steps if (step.factor, step.others) == (factor, others)]
  assert [(step.from_value, step.to_value) for step in chain] == list(zip(values, values[1:]))
  assert [step.per_1e15 for step in chain] == pytest.approx(expected, rel=0.005)
  assert all(step.flops_per_point == pytest.approx(1e15 / step.per_1e15) for step in chain)
  changes = [step.also for step in chain] == ['', '', 'head untied to tied']
  assert changes == (others.count('256') >= 1 and factor != 'feed_forward')


def test_a_step_may_differ_in_the_logged_heads(steps: list[Step]):
  (step,) = (
    step for step in steps if step.from_runs == ('electric-sponge-29',) and step.factor == 'layers'
  )
  assert (step.to_runs, step.also) == (('devoted-capybara-3',), 'heads 1 to 2')
  assert step.perplexity_gain == pytest.approx(
    21.48 - 16.57, abs=0.01
  ) and step.flops == pytest.approx(1.1e14, rel=0.02)


def test_heads_gain_nothing_and_worse_runs_of_a_shape_are_left_out(steps: list[Step]):
  heads = [
    step
    for step in steps
    if step.factor == 'heads' and step.others == 'e 256, h 256, i 1024, l 8, V 19010'
  ]
  assert [step.perplexity_gain for step in heads] == pytest.approx(
    [4.736 - 4.673, 4.673 - 4.746, 4.746 - 4.799], abs=2e-3
  )
  assert [step.dominated for step in heads] == [False, True, True]
  assert all('absurd-silence-4' not in step.from_runs + step.to_runs for step in steps)


def test_steps_go_to_the_next_value_with_equal_other_factors():
  grid = [
    fake_runs.make_scaling_curve(f'{h}-{layers}', hidden=h, layers=layers)
    for h in (32, 64, 256)
    for layers in (1, 2)
  ]
  steps = cost_effectiveness.find_steps(
    [*grid, fake_runs.make_scaling_curve('odd', hidden=128, layers=3)]
  )
  assert {(step.factor, step.from_runs[0], step.to_runs[0]) for step in steps} == {
    ('hidden', '32-1', '64-1'),
    ('hidden', '64-1', '256-1'),
    ('hidden', '32-2', '64-2'),
    ('hidden', '64-2', '256-2'),
    ('layers', '32-1', '32-2'),
    ('layers', '64-1', '64-2'),
    ('layers', '256-1', '256-2'),
  }
  assert repr(steps) == repr(
    cost_effectiveness.find_steps([*reversed(grid)])
  )  # nan differs from nan


def test_runs_with_other_rows_and_unfinished_runs_are_not_compared():
  small, large = fake_runs.make_scaling_curve('a'), fake_runs.make_scaling_curve('b', hidden=64)
  assert len(cost_effectiveness.find_steps([small, large])) == 1
  assert (
    cost_effectiveness.find_steps(
      [small, fake_runs.make_scaling_curve('b', hidden=64, evaluations=4)]
    )
    == []
  )
  assert (
    cost_effectiveness.find_steps(
      [small, fake_runs.make_scaling_curve('b', hidden=64, finished=False)]
    )
    == []
  )
  assert [
    option.name
    for option in cost_effectiveness.list_options(
      [small, fake_runs.make_scaling_curve('b', finished=False)]
    )
  ] == ['a']


def test_seeds_are_averaged_and_give_an_interval():
  sides = {32: (3.0, 3.2), 64: (2.0, 2.1, 2.2)}
  grid = [
    fake_runs.make_scaling_curve(f'{h}-{n}', last, hidden=h, seed=n)
    for h, losses in sides.items()
    for n, last in enumerate(losses)
  ]
  (step,) = cost_effectiveness.find_steps(grid)
  gain = (math.exp(3) + math.exp(3.2)) / 2 - (math.exp(2) + math.exp(2.1) + math.exp(2.2)) / 3
  assert step.perplexity_gain == pytest.approx(gain) and step.to_runs == ('64-0', '64-1', '64-2')
  assert repr(step) == repr(cost_effectiveness.find_steps(grid)[0])
  (single,) = cost_effectiveness.find_steps(grid[1:])
  assert math.isnan(single.low) and math.isfinite(single.per_1e15)
  assert [math.isfinite(option.low) for option in cost_effectiveness.list_options(grid)] == [
    True,
    True,
  ]


@pytest.mark.parametrize(
  'small, large, gain, margin',
  [
    # Student, 1 degree of freedom: 12.706 x 0.707 / sqrt(2), of the differences 3 and 4.
    ({0: 10, 1: 12}, {1: 8, 0: 7}, 3.5, 6.353),
    # Welch, 2 degrees of freedom at equal variances of 2: 4.303 x sqrt(2 / 2 + 2 / 2).
    ({0: 10, 1: 12}, {2: 7, 3: 9}, 3.0, 6.085),
    ({0: 10, 1: 12}, {None: 7.5}, 3.5, math.nan),
  ],
)
def test_intervals_of_few_seeds_are_those_of_student_and_welch(
  small: dict[int, float], large: dict[int | None, float], gain: float, margin: float
):
  curves = [
    fake_runs.make_scaling_curve(f'{h}-{seed}', math.log(perplexity), hidden=h, seed=seed)
    for h, side in ((32, small), (64, large))
    for seed, perplexity in side.items()
  ]
  (step,) = cost_effectiveness.find_steps(curves)
  units = step.flops / 1e15
  ends = [step.per_1e15 * units, step.low * units, step.high * units]
  assert ends == pytest.approx([gain, gain - margin, gain + margin], rel=1e-3, nan_ok=True)
  option = cost_effectiveness.list_options(curves)[0]
  # Student's interval of ln 10 and ln 12, 2.3937 +- 12.706 x 0.0912.
  assert (option.low, option.high) == pytest.approx((3.440, 34.885), rel=1e-3)


def test_runs_of_one_seed_count_once_and_runs_without_seeds_are_not_paired():
  seeds = (0, 0, 1, None, None)
  curves = [
    fake_runs.make_scaling_curve(f'{h}-{index}', 3.0 + index / 10, hidden=h, seed=seed)
    for h in (32, 64)
    for index, seed in enumerate(seeds)
  ]
  small, large = (arm.perplexity for arm in cost_effectiveness.group_seeds(curves))
  assert small.n == 4 and small.by_seed[0] == pytest.approx((math.exp(3.0) + math.exp(3.1)) / 2)
  assert small.values == large.values and small.seeds != large.seeds


def test_the_best_learning_rate_of_a_shape_counts_and_is_listed():
  grid = [
    fake_runs.make_scaling_curve('a', 3.0, learning_rate=1e-3),
    fake_runs.make_scaling_curve('b', 2.9, learning_rate=2e-3),
    fake_runs.make_scaling_curve('c', 2.0, hidden=64, learning_rate=1e-3),
  ]
  (step,) = cost_effectiveness.find_steps(grid)
  assert step.from_runs == ('b',) and step.also == 'learning rate 0.002 to 0.001'


def test_vocabularies_are_compared_by_bits_per_word_alone():
  small, large = (
    fake_runs.make_scaling_curve('a', 3.0),
    fake_runs.make_scaling_curve('b', 4.0, vocabulary=2000),
  )
  (step,) = cost_effectiveness.find_steps([small, large])
  assert math.isnan(step.per_1e15) and not step.dominated
  (step,) = cost_effectiveness.find_steps(
    [
      fake_runs.make_scaling_curve('a', 3.0, bits_per_word=9.0),
      fake_runs.make_scaling_curve('b', 4.0, vocabulary=2000, bits_per_word=8.5),
    ]
  )
  assert step.bits_per_1e15 == pytest.approx(0.5 / (step.flops / 1e15)) and math.isnan(
    step.perplexity_gain
  )
  assert not any(option.dominated for option in cost_effectiveness.list_options([small, large]))


def test_a_model_is_dominated_by_a_better_model_of_at_most_its_cost():
  best, dear = (
    fake_runs.make_scaling_curve('best', 2.0),
    fake_runs.make_scaling_curve('dear', 2.0, hidden=64),
  )
  worse = fake_runs.make_scaling_curve('worse', 2.5, learning_rate=1.0)
  strong = fake_runs.make_scaling_curve('strong', 1.5, hidden=128)
  assert {
    option.name: option.dominated
    for option in cost_effectiveness.list_options([strong, worse, dear, best])
  } == {'best': False, 'dear': True, 'worse': True, 'strong': False}
  assert [
    option.dominated
    for option in cost_effectiveness.list_options(
      [best, fake_runs.make_scaling_curve('twin', 2.0, learning_rate=1.0)]
    )
  ] == [False] * 2


def test_runs_of_other_recipes_are_neither_seeds_nor_steps():
  base = fake_runs.make_scaling_curve(
    'base', 3.0, num_heads=1, recipe={'model.positions': 'rotary'}
  )
  others = [
    fake_runs.make_scaling_curve('none', 4.0, num_heads=1, recipe={'model.positions': 'none'}),
    fake_runs.make_scaling_curve('heads', 3.3, num_heads=2, recipe={'model.positions': 'rotary'}),
  ]
  arms = cost_effectiveness.group_seeds([base, *others])
  assert sorted(arm.runs for arm in arms) == [('base',), ('heads',), ('none',)]
  wide = fake_runs.make_scaling_curve(
    'wide', 2.5, hidden=64, num_heads=1, recipe={'model.positions': 'none'}
  )
  assert cost_effectiveness.find_steps([base, wide]) == []
  (step,) = cost_effectiveness.find_steps([others[0], wide])
  assert (step.factor, step.from_runs, step.to_runs) == ('hidden', ('none',), ('wide',))


def test_depths_are_compared_at_equal_size_or_cost():
  shallow = fake_runs.make_scaling_curve('shallow', 2.0, feed_forward=300, layers=4)
  deep = fake_runs.make_scaling_curve('deep', 2.1, feed_forward=128, layers=8)
  large = fake_runs.make_scaling_curve('large', 1.0, hidden=256, layers=8)
  pairs = cost_effectiveness.compare_depths(
    [
      large,
      deep,
      shallow,
      fake_runs.make_scaling_curve('cut', feed_forward=256, layers=5, finished=False),
    ],
    {},
  )
  assert {(pair.shallow, pair.deep, pair.matched) for pair in pairs} == {
    ('shallow', 'deep', 'parameters'),
    ('shallow', 'deep', 'FLOPs'),
  }
  assert (
    pairs[0].loss == pytest.approx(0.1) and pairs[0].series == '' and math.isnan(pairs[0].score)
  )
  assert pairs[0].ratio == pytest.approx(deep.parameters / shallow.parameters)
  models = {
    'cola': [
      ScoredModel(name, 2, math.nan, 7, 1, score, math.nan, math.nan, math.nan, ())
      for name, score in (('shallow', 0.3), ('deep', 0.2))
    ]
  }
  assert cost_effectiveness.compare_depths([deep, shallow], models)[0].score == pytest.approx(-0.1)


def test_depths_are_compared_between_means_of_one_recipe():
  sides = {
    ('shallow', 4, 300): (2.0, 2.4),
    ('deep', 8, 128): (2.1, 2.2, 2.3),
  }
  curves = [
    fake_runs.make_scaling_curve(
      f'{name}-{seed}', loss, layers=layers, feed_forward=size, seed=seed, recipe={'norm': 'post'}
    )
    for (name, layers, size), losses in sides.items()
    for seed, loss in enumerate(losses)
  ]
  others = [
    fake_runs.make_scaling_curve(
      name, 1.0, **{'layers': 8, 'feed_forward': 128, 'recipe': {'norm': 'post'}} | changes
    )
    for name, changes in {
      'pre': {'recipe': {'norm': 'pre'}},
      'tied': {'tied': True},
      'rate': {'learning_rate': 1e-2},
      'vocabulary': {'vocabulary': 2000},
    }.items()
  ]
  pairs = cost_effectiveness.compare_depths([*curves, *others], {})
  assert [(pair.shallow, pair.deep) for pair in pairs] == [
    ('shallow-0 and 1 more', 'deep-0 and 2 more')
  ] * 2
  assert [pair.matched for pair in pairs] == ['parameters', 'FLOPs']
  assert pairs[0].loss == pytest.approx(0.0)
  # A longer training of a model with as many parameters is no pair of equal size.
  longer = dataclasses.replace(
    curves[-1], name='longer', rows=tuple(4 * n for n in curves[-1].rows)
  )
  assert cost_effectiveness.compare_depths([*curves[:2], longer], {}) == []
