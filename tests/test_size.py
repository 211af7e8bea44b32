"""Parameters and FLOPs: the logged runs of the paper to the digit, the modules as they are, and what XLA compiles."""

import csv
import dataclasses
import itertools
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from configs import honey
from minilm_jax import recipe
from minilm_jax.config import EncoderConfig, RunConfig
from minilm_jax.model import heads, size
from minilm_jax.training import steps
from minilm_jax.training.masking import MaskedBatch

ROWS = 4  # of the batch whose FLOPs are counted


def run_config(name: str = 'magic-bee-26', **model: Any) -> RunConfig:
  made = honey.get_config(name)
  made.model.update(model)
  return recipe.resolve(made, 'pretrain')


def shapes(config: EncoderConfig) -> Any:
  return jax.eval_shape(lambda: heads.masked_language_model(config, jax.random.key(0)))


def elements(tree: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_all_logged_runs(data: pathlib.Path):
  """42 of 42: embedding, other and all parameters; the paper's FLOPs a row; Kaplan's."""
  with (data / 'honey_logs' / 'test_results.csv').open() as file:
    logged = {row['run_name']: row for row in csv.DictReader(file)}
  assert set(honey.RUNS) == set(logged) and len(logged) == 42
  for name, row in logged.items():
    config = run_config(name)
    found, flops = size.parameters(config.model), size.flops_per_row(config.model, config.mask)
    rows = 9_081_600  # of the one epoch, padded to whole batches
    assert found == {'embedding': int(float(row['Embedding parameters'])),
                     'other': int(float(row['Non-embedding parameters'])),
                     'total': int(float(row['Total parameters']))}, name
    assert flops['honey'] == float(row['FLOPS Hoffman per sequence']), name
    assert flops['honey'] * rows == pytest.approx(float(row['FLOPS Hoffman total']), rel=1e-9), name
    assert flops['kaplan'] == float(row['FLOPS Kaplan per sequence']), name
    assert config.updates * config.batch_size == rows and rows * 128 == float(row['Tokens']), name
    c, shape = config.model, [int(float(row[key])) for key in (
        'embedding_size', 'hidden_size', 'intermediate_size', 'num_attention_heads', 'num_hidden_layers')]
    assert [c.embedding, c.hidden, c.feed_forward, c.nominal_heads, c.layers] == shape, name


@pytest.mark.parametrize('name, changes, total', [
    ('magic-bee-26', {}, 1_250_722), ('electric-sponge-29', {}, 1_254_882), ('devoted-capybara-3', {}, 1_267_586),
    ('feasible-surf-14', {}, 13_753_922), ('absurd-silence-4', {}, 16_237_122), ('genial-voice-1', {}, 11_304_258),
    ('magic-bee-26', {'vocabulary': 31_010}, 2_030_722), ('absurd-silence-4', {'vocabulary': 31_010}, 22_393_122),
    ('magic-bee-26', {'feed_forward': 32, 'layers': 2}, 1_255_106),
    ('magic-bee-26', {'embedding': 8, 'hidden': 8, 'feed_forward': 32}, 325_290),
])
def test_parameters_of_the_paper(name: str, changes: dict[str, int], total: int):
  assert size.parameters(run_config(name, **changes).model)['total'] == total


@pytest.mark.parametrize('shape, flops', [
    ((32, 32, 64, 1, 1), 943_964_160), ((32, 32, 128, 2, 2), 959_348_736), ((64, 128, 1024, 8, 4), 3_820_781_568),
    ((256, 256, 1024, 8, 8), 12_165_316_608)])
def test_flops_of_the_paper(shape: tuple[int, ...], flops: int):
  embedding, hidden, feed_forward, nominal, layers = shape
  config = run_config(embedding=embedding, hidden=hidden, feed_forward=feed_forward, layers=layers,
                      nominal_heads=nominal)
  assert size.flops_per_row(config.model, config.mask)['honey'] == flops


def test_flops_of_the_smallest_run():
  config = run_config('magic-bee-26')
  flops = size.flops_per_row(config.model, config.mask)
  assert config.batch_size * config.updates == 9_081_600
  assert flops['honey'] * 9_081_600 == 8_572_704_915_456_000
  assert flops['kaplan'] == 6 * 638_114 * 128 == 490_071_552


def switches() -> Iterator[EncoderConfig]:
  """Every combination of the switches that change what parameters there are."""
  model = run_config(vocabulary=97, embedding=16, hidden=16, feed_forward=24, heads=4, layers=1, length=10).model
  for norm, positions, segments, projection, tied in itertools.product(
      ('pre', 'post'), ('learned', 'relative', 'rotary'), (0, 2), (False, True), (False, True)):
    made = dataclasses.replace(
        model, norm=norm, positions=positions, segments=segments, projection=projection, tied=tied)
    yield dataclasses.replace(made, embedding=12) if projection and not tied else made
  yield dataclasses.replace(model, layers=3)


def test_parameters_are_the_elements_of_the_arrays_whatever_the_switches():
  for config in switches():
    model, found = shapes(config), size.parameters(config)
    assert elements(model) == found['total'], config
    assert elements(model.encoder.embedding) == found['embedding'], config


@pytest.mark.parametrize('length, rate, count', [
    (128, 0.15, 20), (128, 0.4, 52), (20, 0.15, 3), (4, 0.01, 1), (8, 1.0, 8)])
def test_masked_positions_are_the_share_rounded_up(length: int, rate: float, count: int):
  assert size.masked_positions(length, rate) == count


def gradient_program(config: RunConfig) -> tuple[Any, tuple[Any, ...]]:
  """Loss and gradient without dropout, and what it takes: what a training step does but for the update."""
  k = size.masked_positions(config.model.length, config.mask.rate)
  integers, weights = jax.ShapeDtypeStruct((ROWS, k), jnp.int32), jax.ShapeDtypeStruct((ROWS, k), jnp.float32)
  tokens = jax.ShapeDtypeStruct((ROWS, config.model.length), jnp.int32)
  program = lambda model, *batch: steps.gradient_sums(model, MaskedBatch(*batch), None, 1)  # noqa: E731
  return program, (shapes(config.model), tokens, integers, integers, weights)


def traced_products(jaxpr: Any) -> int:
  """FLOPs of the matrix products in a jaxpr: two a multiply-add; branches for platforms do the same work."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      total += 2 * equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    inner = itertools.chain.from_iterable(v if isinstance(v, (tuple, list)) else (v,) for v in equation.params.values())
    each = [traced_products(getattr(j, 'jaxpr', j)) for j in inner if hasattr(j, 'eqns') or hasattr(j, 'jaxpr')]
    if equation.primitive.name == 'cond':
      assert len(set(each)) == 1, f'branches of {each} FLOPs'
      each = each[:1]
    total += sum(each)
  return total


def compiled_products(program: str) -> int:
  """FLOPs of the matrix products in the text of an optimised XLA program."""
  defined = {name: [int(n) for n in shape.split(',') if n]
             for name, shape in re.findall(r'%([\w.-]+) = \w+\[([\d,]*)\]', program)}
  found = re.findall(r'%([\w.-]+) = \S+ dot\(%([\w.-]+), .*?lhs_contracting_dims=\{([\d,]+)\}', program)
  return sum(2 * math.prod(defined[name]) * math.prod(defined[left][int(i)] for i in contracted.split(','))
             for name, left, contracted in found)


@pytest.mark.parametrize('changes', [
    {}, {'embedding': 64, 'hidden': 128, 'feed_forward': 512, 'layers': 2}, {'norm': 'pre', 'positions': 'rotary'},
    {'positions': 'relative', 'tied': True, 'projection': False}, {'length': 60, 'heads': 1, 'activation': 'silu'}])
def test_actual_flops_are_the_products_that_are_traced(changes: dict[str, Any]):
  """Exactly, whatever the switches: nothing is left out and nothing computed that is not counted."""
  config = run_config(**changes, dropout=0.0)
  program, arguments = gradient_program(config)
  traced = traced_products(jax.make_jaxpr(program)(*arguments).jaxpr)
  assert traced == ROWS * size.flops_per_row(config.model, config.mask)['actual']


@pytest.mark.parametrize('shape, share', [
    ((32, 32, 64, 1), 0.08), ((64, 128, 512, 4), 0.04), ((256, 256, 1024, 4), 0.02)])
def test_xla_confirms_the_actual_flops(shape: tuple[int, ...], share: float):
  """The products of the compiled program are ours exactly; its whole count has its element-wise work on top of them.

  That work (softmax, normalisation, residuals) is 7% at the smallest shape of the paper and 2% at (256, 256, 1024, 4):
  it grows with the width, products with its square.
  """
  embedding, hidden, feed_forward, layers = shape
  config = run_config(embedding=embedding, hidden=hidden, feed_forward=feed_forward, layers=layers, dropout=0.0)
  program, arguments = gradient_program(config)
  compiled = jax.jit(program).lower(*arguments).compile()
  actual = ROWS * size.flops_per_row(config.model, config.mask)['actual']
  assert compiled_products(compiled.as_text()) == actual
  assert actual <= compiled.cost_analysis()['flops'] <= (1 + share) * actual
