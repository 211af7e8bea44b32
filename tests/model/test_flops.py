"""Counts of parameters and FLOPs equal paper 1, the arrays of modules, traces and XLA."""

import csv
import dataclasses
import itertools
import math
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from configs import paper1, paper2_models
from minilm_jax.core import recipe
from minilm_jax.core.config import MaskConfig, RunConfig
from minilm_jax.core.model_config import EncoderConfig, HeadConfig
from minilm_jax.model import convolution, flops, heads
from minilm_jax.model.initialization import count_parameters
from minilm_jax.training import train_step
from minilm_jax.training.masking import MaskedBatch

ROWS = 4  # batch size
UNPADDED_VOCABULARY = 19_008  # a multiple of 64: the output projection has no extra columns
SHAPE_COLUMNS = (
  'embedding_size hidden_size intermediate_size num_attention_heads num_hidden_layers'.split()
)
SHAPE_FIELDS = 'embedding_size hidden_size intermediate_size flops_heads num_layers'.split()


def run_config(name: str = 'magic-bee-26', **model: Any) -> RunConfig:
  config = paper1.get_config(name)
  config.model.update(model)
  return recipe.resolve(config, 'pretrain')


def shapes(config: EncoderConfig) -> Any:
  return jax.eval_shape(lambda: heads.init_masked_language_model(config, jax.random.key(0)))


def test_all_logged_runs(data: pathlib.Path):
  """Parameters and FLOPs equal the logs of all 42 runs."""
  with (data / 'honey_logs' / 'test_results.csv').open() as file:
    logged = {row['run_name']: row for row in csv.DictReader(file)}
  assert set(paper1.RUNS) == set(logged) and len(logged) == 42
  for name, row in logged.items():
    config = run_config(name)
    counts = flops.flops_per_row(config.model, config.mask)
    rows = 9_081_600  # one epoch, padded to full batches
    assert flops.count_parameters_by_part(config.model) == {
      'embedding': int(float(row['Embedding parameters'])),
      'other': int(float(row['Non-embedding parameters'])),
      'total': int(float(row['Total parameters'])),
    }, name
    assert counts['honey'] == float(row['FLOPS Hoffman per sequence']), name
    assert counts['honey'] * rows == pytest.approx(float(row['FLOPS Hoffman total']), rel=1e-9), (
      name
    )
    assert counts['kaplan'] == float(row['FLOPS Kaplan per sequence']), name
    assert config.num_steps * config.batch_size == rows and rows * 128 == float(row['Tokens']), name
    model = config.model
    shape = [int(float(row[key])) for key in SHAPE_COLUMNS]
    assert [getattr(model, field) for field in SHAPE_FIELDS] == shape, name


@pytest.mark.parametrize(
  'name, changes, total',
  [
    ('magic-bee-26', {}, 1_250_722),
    ('electric-sponge-29', {}, 1_254_882),
    ('devoted-capybara-3', {}, 1_267_586),
    ('feasible-surf-14', {}, 13_753_922),
    ('absurd-silence-4', {}, 16_237_122),
    ('genial-voice-1', {}, 11_304_258),
    ('magic-bee-26', {'vocab_size': 31_010}, 2_030_722),
    ('absurd-silence-4', {'vocab_size': 31_010}, 22_393_122),
    ('magic-bee-26', {'intermediate_size': 32, 'num_layers': 2}, 1_255_106),
    ('magic-bee-26', {'embedding_size': 8, 'hidden_size': 8, 'intermediate_size': 32}, 325_290),
  ],
)
def test_parameters_of_paper1(name: str, changes: dict[str, int], total: int):
  assert flops.count_parameters_by_part(run_config(name, **changes).model)['total'] == total


@pytest.mark.parametrize(
  'name, front, masked, classes',
  [
    ('bert-6', 0, 66_692_154, (66_663_172, 66_670_862, 66_709_312)),
    ('bert-1-conv0-h24', 0, 77_810_490, (77_783_044, 77_798_414, 77_875_264)),
    ('conv2-k3-d64', 37_891, 31_290_685, (31_261_703, 31_269_393, 31_307_843)),
    ('conv2-k16x3-d64', 200_131, 31_452_925, (31_423_943, 31_431_633, 31_470_083)),
    ('conv2-k3-d64-h8', 37_891, 19_179_325, (19_149_831, 19_154_961, 19_180_611)),
    ('conv3-k3-d32', 19_043, 31_271_837, (31_242_855, 31_250_545, 31_288_995)),
    ('bert-1', 0, 31_252_794, (31_223_812, 31_231_502, 31_269_952)),
  ],
)
def test_parameters_of_paper2(name: str, front: int, masked: int, classes: tuple[int, ...]):
  """Counts equal the released models and their classifiers of 4, 14 and 64 classes."""
  config = recipe.resolve(paper2_models.get_config(name), 'pretrain').model
  assert flops.count_front_end_parameters(config) == front
  assert flops.count_parameters_by_part(config)['total'] == masked
  head = HeadConfig('first', 0.1, 1)
  for count, expected in zip((4, 14, 64), classes, strict=True):
    build = lambda classes=count: heads.init_classifier(config, head, classes, jax.random.key(0))  # noqa: E731
    assert count_parameters(jax.eval_shape(build)) == expected


@pytest.mark.parametrize(
  'shape, count',
  [
    ((32, 32, 64, 1, 1), 943_964_160),
    ((32, 32, 128, 2, 2), 959_348_736),
    ((64, 128, 1024, 8, 4), 3_820_781_568),
    ((256, 256, 1024, 8, 8), 12_165_316_608),
  ],
)
def test_flops_of_paper1(shape: tuple[int, ...], count: int):
  config = run_config(**dict(zip(SHAPE_FIELDS, shape, strict=True)))
  assert flops.flops_per_row(config.model, config.mask)['honey'] == count


@pytest.mark.parametrize(
  'changes, embedding, other',
  [
    # 97 pieces, 12 positions, 2 segments and a norm; a block of 1,960 and a tied head of 401.
    ({'tied': True, 'projection': False}, 1808, 2361),
    ({'tied': True, 'projection': False, 'position_offset': 0}, 1776, 2361),
    # A head of 1,953, a projection of 304 or 272, and a last norm of 32.
    ({'norm': 'pre', 'positions': 'none', 'segments': 0}, 1584, 4249),
    ({'norm': 'pre', 'positions': 'none', 'segments': 0, 'projection_norm': False}, 1584, 4217),
    # 4 heads have 19 distances each; three taps and a bias of width 16.
    (
      {'positions': 'relative', 'segments': 0, 'tied': True, 'projection': False}
      | {'norm': 'pre', 'short_convolution': 3, 'num_layers': 3},
      1584,
      3 * (1960 + 76) + 401 + 32 + 64,
    ),
  ],
)
def test_parameters_of_small_models(changes: dict[str, Any], embedding: int, other: int):
  sizes = {'vocab_size': 97, 'embedding_size': 16, 'hidden_size': 16, 'intermediate_size': 24}
  config = run_config(**sizes, num_heads=4, num_layers=1, max_length=10).model
  counts = flops.count_parameters_by_part(dataclasses.replace(config, **changes))
  assert counts == {'embedding': embedding, 'other': other, 'total': embedding + other}


@pytest.mark.parametrize(
  'length, rate, count', [(128, 0.15, 20), (128, 0.4, 52), (20, 0.15, 3), (4, 0.01, 1), (8, 1.0, 8)]
)
def test_masked_positions_are_the_rate_times_length_rounded_up(
  length: int, rate: float, count: int
):
  assert MaskConfig(rate=rate).max_positions(length) == count


def build_gradient(config: RunConfig) -> tuple[Any, tuple[Any, ...]]:
  """Returns the function to loss and gradient of a step without dropout, and its arguments."""
  k = config.mask.max_positions(config.model.max_length)
  integers, weights = (
    jax.ShapeDtypeStruct((ROWS, k), jnp.int32),
    jax.ShapeDtypeStruct((ROWS, k), jnp.float32),
  )
  tokens = jax.ShapeDtypeStruct((ROWS, config.model.max_length), jnp.int32)
  program = lambda model, *batch: train_step.compute_gradient(model, MaskedBatch(*batch), None, 1)  # noqa: E731
  return program, (shapes(config.model), tokens, integers, integers, weights)


def count_traced_products(jaxpr: Any) -> int:
  """Returns the FLOPs of the products in a jaxpr, two a multiply-add, without padding zeros.

  Of the branches for platforms, the last is counted: the branch for CPUs replaces some products by
  sums of scaled images.
  """
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      total += (
        2
        * equation.outvars[0].aval.size
        * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
      )
    elif equation.primitive.name == 'conv_general_dilated':
      total += count_convolution(equation)
    inner = itertools.chain.from_iterable(
      v if isinstance(v, (tuple, list)) else (v,) for v in equation.params.values()
    )
    nested = [
      count_traced_products(getattr(j, 'jaxpr', j))
      for j in inner
      if hasattr(j, 'eqns') or hasattr(j, 'jaxpr')
    ]
    if equation.primitive.name == 'cond':
      nested = nested[-1:]
    total += sum(nested)
  return total


def count_convolution(equation: Any) -> int:
  """Returns the FLOPs of a convolution, by counting the pairs of a pixel and a weight."""
  numbers, padding = equation.params['dimension_numbers'], equation.params['padding']
  input_shape, right = (v.aval.shape for v in equation.invars)
  assert set(equation.params['window_strides']) == {1} and equation.params['batch_group_count'] == 1
  assert set(equation.params['lhs_dilation']) == set(equation.params['rhs_dilation']) == {1}
  pairs = 1
  for axis, (before, after) in enumerate(padding):
    pixels, window = input_shape[numbers.lhs_spec[2 + axis]], right[numbers.rhs_spec[2 + axis]]
    starts = range(-before, pixels + after - window + 1)
    pairs *= sum(max(0, min(pixels, first + window) - max(0, first)) for first in starts)
  return (
    2
    * input_shape[numbers.lhs_spec[0]]
    * pairs
    * right[numbers.rhs_spec[0]]
    * right[numbers.rhs_spec[1]]
  )


def count_compiled_products(program: str) -> int:
  """Returns the FLOPs of the matrix products in the text of an optimised XLA program."""
  shape_of = {
    name: [int(n) for n in shape.split(',') if n]
    for name, shape in re.findall(r'%([\w.-]+) = \w+\[([\d,]*)\]', program)
  }
  products = re.findall(
    r'%([\w.-]+) = \S+ dot\(%([\w.-]+), .*?lhs_contracting_dims=\{([\d,]+)\}', program
  )
  return sum(
    2
    * math.prod(shape_of[name])
    * math.prod(shape_of[operand_shape][int(i)] for i in contracted.split(','))
    for name, operand_shape, contracted in products
  )


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'embedding_size': 64, 'hidden_size': 128, 'intermediate_size': 512, 'num_layers': 2},
    {'norm': 'pre', 'positions': 'rotary'},
    {'positions': 'relative', 'tied': True, 'projection': False},
    {'positions': 'sinusoidal'},
    {'positions': 'none'},
    {'max_length': 60, 'num_heads': 1, 'activation': 'silu'},
    {'convolutions': 2, 'kernel': '3,3', 'channels': 6},
    {'convolutions': 1, 'kernel': '16,4', 'channels': 6},
    {'convolutions': 3, 'kernel': '2,3', 'channels': 4, 'convolution': 'fixed'},
  ],
)
def test_actual_flops_equal_the_traced_products(changes: dict[str, Any]):
  config = run_config(**changes, vocab_size=UNPADDED_VOCABULARY, dropout=0.0)
  program, arguments = build_gradient(config)
  traced = count_traced_products(jax.make_jaxpr(program)(*arguments).jaxpr)
  assert traced == ROWS * flops.flops_per_row(config.model, config.mask)['actual']


def test_batch_norm_pads_short_rows_to_the_length_of_the_model():
  """A kernel may exceed the length of the rows of a corpus."""
  changes = {'convolutions': 1, 'kernel': '80,3', 'channels': 2, 'convolution': 'paper2'}
  config = run_config(**changes)
  mask = dataclasses.replace(config.mask, rate=0.15)
  whole, short = (flops.actual_flops(config.model, mask, length) for length in (128, 64))
  d, v = config.model.hidden_size, config.model.vocab_size
  # The encoder computes 128 positions for both; rows of 64 tokens predict 10 positions, not 20.
  assert whole - short == 10 * v * (6 * d + 4) + 3 * 2 * 10 * d * d


@pytest.mark.parametrize(
  'shape, share', [((32, 32, 64, 1), 0.08), ((64, 128, 512, 4), 0.04), ((256, 256, 1024, 4), 0.02)]
)
def test_xla_confirms_the_actual_flops(shape: tuple[int, ...], share: float):
  """The products are equal; the total of XLA adds element-wise operations.

  These operations (softmax, normalisation, residuals) are 7% for the smallest shape of paper 1 and
  2% for (256, 256, 1024, 4): they grow with the width, products with its square.
  """
  embedding, hidden, feed_forward, layers = shape
  config = run_config(
    vocab_size=UNPADDED_VOCABULARY,
    embedding_size=embedding,
    hidden_size=hidden,
    intermediate_size=feed_forward,
    num_layers=layers,
    dropout=0.0,
  )
  program, arguments = build_gradient(config)
  compiled = jax.jit(program).lower(*arguments).compile()
  actual = ROWS * flops.flops_per_row(config.model, config.mask)['actual']
  assert count_compiled_products(compiled.as_text()) == actual
  assert actual <= compiled.cost_analysis()['flops'] <= (1 + share) * actual


@pytest.mark.parametrize('form', ['paper2', 'fixed'])
def test_xla_confirms_the_flops_of_convolutions(form: str):
  """The count of a single convolution is equal; for a step, XLA adds element-wise operations."""
  config = run_config(
    convolutions=2,
    kernel='16,3',
    channels=64,
    convolution=form,
    hidden_size=64,
    intermediate_size=128,
    dropout=0.0,
  )
  model = config.model
  image = jax.ShapeDtypeStruct((ROWS, model.max_length, model.hidden_size, 64), jnp.float32)
  layer = jax.eval_shape(lambda: convolution.Convolution((16, 3), 64, 64, model))
  counted = jax.jit(lambda layer, x: layer(x)).lower(layer, image).cost_analysis()['flops']
  configs = dataclasses.replace(model, convolutions=2), dataclasses.replace(model, convolutions=1)
  more, less = (
    flops.count_front_end_flops(front_config, model.max_length) for front_config in configs
  )
  assert counted == ROWS * (more - less) + image.size  # the bias
  program, arguments = build_gradient(config)
  program_flops = jax.jit(program).lower(*arguments).cost_analysis()['flops']
  actual = ROWS * flops.flops_per_row(model, config.mask)['actual']
  assert actual <= program_flops <= 1.03 * actual
