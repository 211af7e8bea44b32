"""Compilation for absent TPUs; tests of the TPU compiler need libtpu."""

import functools
import importlib.util
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import paper1, tiny
from minilm_jax.bench import hlo, preflight
from minilm_jax.cli import main
from minilm_jax.core import files, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.model import flops
from minilm_jax.model.flops import count_parameters, flops_per_row

PROGRAM = """HloModule jit_chunk

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: f32[8,16]) -> f32[8,16] {
  ROOT %inside = bf16[8,16]{1,0:T(8,128)} all-gather(%p), dimensions={0}
}

%turned (t: (s32[], f32[4])) -> pred[] {
  %limit.1 = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%count, %limit.1), direction=LT, metadata={op_name="cond/lt"}
}

%turn (t: (s32[], f32[4])) -> (s32[], f32[4]) {
  %permuted = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=4
  %kernel.2 = f32[4]{0} fusion(%x), kind=kLoop, calls=%plain, backend_config={"window_config":{"estimated_cycles":"10"}}
}

%plain (p: f32[4]) -> f32[4] {
  ROOT %twice = f32[4]{0} add(%p, %p)
}

%searched (t: (u32[32], u32[32])) -> pred[] {
  %limit.2 = u32[]{:T(128)} constant(60000)
  %any = u32[]{:T(128)} all-reduce(%x), channel_id=2, to_apply=%add
  ROOT %more = pred[] bitcast(%any)
}

%search (t: (u32[32], u32[32])) -> (u32[32], u32[32]) {
  ROOT %same = (u32[32], u32[32]) tuple(%t)
}

%ongoing (t: (s32[], f32[8])) -> pred[] {
  ROOT %still = pred[] compare(%count, %limit), direction=LT
}

%step (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %while.1 = (u32[32]{0}, u32[32]{0}) while(%start), condition=%searched, body=%search
  %while.2 = (s32[], f32[4]{0}) while(%start), condition=%turned, body=%turn, metadata={op_name="while"}
  %all-reduce.1 = (f32[8,16]{1,0:T(8,128)S(1)}, /*index=1*/pred[5]{0}, token[]) all-reduce(%g, %h), to_apply=%add
  %kernel.1 = bf16[8,16] fusion(%g), calls=%fused, backend_config={"estimated_cycles":"100"}
  %kernel.3 = bf16[8,16] fusion(%g), calls=%plain, backend_config={"estimated_cycles":"9223372036854775807"}
  %part = f32[8,16] get-tuple-element(%all-reduce.1), index=0
}

ENTRY %main (a: f32[8], b: s32[]) -> f32[8] {
  %before = f32[8]{0} fusion(%a), calls=%plain, backend_config={"estimated_cycles":"7"}
  ROOT %while.3 = (s32[], f32[8]) while(%start), condition=%ongoing, body=%step
}
"""


def test_a_step_is_the_body_of_the_loop_over_steps():
  step = list(hlo.parse_instructions(PROGRAM))
  assert hlo.find_collectives(step) == {
    'all-reduce': {'count': 2, 'bytes': 4 + 4 * 8 * 16 + 5},
    'collective-permute': {'count': 3, 'bytes': 3 * 4 * 4},
    'all-gather': {'count': 1, 'bytes': 2 * 8 * 16},
  }
  # without kernels before the loop, and without kernels of unknown cycles
  assert hlo.estimate_cycles(step) == 100 + 3 * 10


def test_a_program_without_a_loop_is_one_step():
  entry = PROGRAM.partition('ENTRY')[2].replace(
    'ROOT %while.3 = (s32[], f32[8]) while(', 'ROOT %t = tuple('
  )
  step = list(hlo.parse_instructions('ENTRY' + entry.replace('calls=%plain, ', '')))
  assert not hlo.find_collectives(step) and hlo.estimate_cycles(step) == 7


def test_the_output_of_a_real_compiler_is_parsed():
  """The program sums over eight devices in a loop of unknown length."""
  mesh = Mesh(np.array(jax.devices()[:8]), ('data',))

  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(PartitionSpec('data'), PartitionSpec()),
    out_specs=PartitionSpec(),
  )
  def program(x: jax.Array, count: jax.Array) -> jax.Array:
    start = jnp.zeros((4, 3))
    return jax.lax.fori_loop(
      0, count, lambda _, total: jax.lax.psum(jnp.sin(x[0] + total), 'data'), start
    )

  replicated = NamedSharding(mesh, PartitionSpec())
  x = jax.ShapeDtypeStruct(
    (8, 4, 3), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec('data'))
  )
  text = (
    jax.jit(program)
    .lower(x, jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated))
    .compile()
    .as_text()
  )
  assert hlo.find_collectives(hlo.parse_instructions(text)) == {
    'all-reduce': {'count': 1, 'bytes': 4 * 4 * 3}
  }


SMALLEST, LARGEST = 'magic-bee-26', 'grateful-yogurt-5'
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="needs the compiler for TPUs: pip install 'minilm_jax[tpu]'",
)
CASES = tuple(
  pytest.param(*case, marks=pytest.mark.slow if case[0] == LARGEST else ())
  for case in (
    (name, topology) for name in (SMALLEST, LARGEST) for topology in ('v5e:2x4', 'v4:2x2x2')
  )
)


def make_config(name: str = SMALLEST, **changes: Any) -> RunConfig:
  source = paper1.get_config(name)
  source.update_from_flattened_dict(changes)
  return recipe.resolve(source, 'pretrain')


def compile_recipe(config: RunConfig, topology: str) -> dict[str, Any]:
  return preflight.compile_for_topology({'it': config}, topology)['recipes']['it']


@needs_libtpu
@pytest.mark.parametrize('name, topology', CASES)
def test_data_parallelism_sends_the_gradient_once(name: str, topology: str):
  """Further data are the loss, the count and flags of the search for rows, 4 bytes each."""
  result = compile_recipe(make_config(name), topology)
  assert (
    result['fits']
    and result['mesh'] == {'population': 1, 'data': 8, 'model': 1}
    and result['chips'] == 8
  )
  assert set(result['collectives']) == {'all-reduce'}
  gradient = 4 * flops.count_parameters(make_config(name).model)['total']
  assert gradient <= result['collectives']['all-reduce']['bytes'] <= gradient + 64
  state = 3 * gradient + 2 * 128 * result['corpus_rows']  # weights, two moments, rows
  assert state <= result['bytes']['arguments'] < 1.5 * state
  assert result['bytes']['output'] < 1 << 20  # the new state reuses the memory of the old state
  assert result['bytes']['total'] < 0.2 * result['bytes']['chip']
  # a TPU computes logits and activations in one block
  assert 0.3 < result['flops'] / result['flops_per_step'] < 1.5
  assert result['tokens_per_second'] == pytest.approx(256 * 128 / result['milliseconds'] * 1e3)
  assert 0 < result['utilisation'] < 1


@needs_libtpu
@pytest.mark.parametrize('name, topology', CASES)
def test_model_parallelism_stores_less_and_sends_more(name: str, topology: str):
  """Each chip has a part of the split matrices."""
  config = make_config(name, **{'mesh.model': 2})
  result = compile_recipe(config, topology)
  assert result['fits'] and result['mesh'] == {'population': 1, 'data': 4, 'model': 2}
  state = 12 * flops.count_parameters(config.model)['total']
  assert state / 2 < result['bytes']['arguments'] - 2 * 128 * result['corpus_rows'] < state
  assert result['collectives']['all-reduce']['count'] > 2 and 'all-gather' in result['collectives']


@needs_libtpu
@pytest.mark.parametrize('name, topology', CASES)
def test_a_population_sends_its_gradients_only(name: str, topology: str):
  """Each chip has two members and sums their gradients."""
  config = make_config(name, **{'population.members': 8, 'mesh.population': 4})
  result = compile_recipe(config, topology)
  assert (
    result['fits']
    and result['mesh'] == {'population': 4, 'data': 2, 'model': 1}
    and result['members'] == 8
  )
  gradients = 2 * 4 * flops.count_parameters(config.model)['total']
  assert set(result['collectives']) == {'all-reduce'}
  assert gradients <= result['collectives']['all-reduce']['bytes'] <= gradients + 64


@needs_libtpu
def test_a_recipe_without_enough_memory_is_printed_and_refused(capsys):
  """The activations of 16,384 rows exceed the memory of a chip."""
  arguments = [
    f'--config=configs/paper1.py:{SMALLEST}',
    '--topology=v5e:2x2',
    '--config.batch_size=65536',
  ]
  assert main.main(['preflight', *arguments, '--json']) == 2
  out, err = capsys.readouterr()
  result = json.loads(out)['recipes'][SMALLEST]
  assert not result['fits'] and 'memory' in result['refused'] and '15.75G' in result['refused']
  assert f'{SMALLEST} on v5e:2x2' in err and 'batch_size' in err


@needs_libtpu
@pytest.mark.parametrize(
  'topology, changes, part',
  [
    ('v5e:3x3', {}, '3x3'),
    ('v5e:2x2', {'mesh.data': 8}, '4 devices'),
    ('v5e:2x2', {'mesh.model': 3}, 'do not divide'),
  ],
)
def test_an_impossible_mesh_is_refused(topology: str, changes: dict[str, Any], part: str):
  with pytest.raises(InputError, match=part):
    compile_recipe(make_config(**changes), topology)


def test_the_chunk_of_a_run_is_compiled(monkeypatch):
  """The CPU compiler reports no cycles, so that their number is fixed."""
  monkeypatch.setattr(hlo, 'estimate_cycles', lambda step: 3000)
  config = make_config(**{'model.vocab_size': 300})
  result = preflight.describe_step(config, preflight.CHIPS['v5e'], jax.devices())
  gradient = 4 * count_parameters(config.model)['total']
  assert gradient <= result['collectives']['all-reduce']['bytes'] <= gradient + 64
  flops = flops_per_row(config.model, config.mask)['actual'] * 256
  assert result['milliseconds'] == pytest.approx(2e-3) and result['utilisation'] == pytest.approx(
    flops / 8 / 2e-6 / 197e12
  )
  assert (
    result['tokens_per_second'] == pytest.approx(256 * 128 / 2e-6)
    and result['corpus_rows'] == 60_000
  )


@pytest.mark.parametrize(
  'topology, part',
  [
    ('v9:2x2', "no chip 'v9' in v4, v5e, v5p, v6e"),
    ('2x4', 'no chip'),
    ('v5e', 'topology'),
    ('v5e:0x4', 'topology'),
    ('v5e:2x4x', 'topology'),
    ('v5e:8', 'topology'),
  ],
)
def test_an_unknown_topology_is_refused(topology: str, part: str):
  with pytest.raises(InputError, match=part) as error:
    preflight.compile_for_topology({'it': make_config()}, topology)
  assert 'v5e:2x4' in error.value.remedy


def test_a_missing_compiler_is_refused_with_its_extra(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match=r'minilm_jax\[tpu\]'):
    preflight.compile_for_topology({'it': make_config()}, 'v5e:2x4')


def test_the_table_of_chips_is_consistent():
  """Peak and clock give a whole number of 128 x 128 matrix units, and hundreds of FLOPs a byte."""
  for chip in preflight.CHIPS.values():
    units = chip.flops / chip.clock / (2 * 128**2)
    assert units == pytest.approx(round(units), rel=0.01)
    assert 150 < chip.flops / chip.bandwidth < 600 and 16 << 30 <= chip.memory < 128 << 30


def test_an_existing_corpus_sets_the_number_of_rows(
  tiny_corpus: pathlib.Path, tmp_path: pathlib.Path
):
  source = tiny.get_config()
  manifest = files.read_json(tiny_corpus / run_dir.MANIFEST, 'the corpus')
  for folder, rows in (
    (tiny_corpus, manifest['splits']['train']['rows']),
    (tmp_path, 60_000),
    ('', 60_000),
  ):
    source.corpus = str(folder)
    corpus = preflight._describe_corpus(
      recipe.resolve(source, 'pretrain'), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
    assert (
      corpus.tokens.shape == (rows, source.model.max_length) and corpus.tokens.dtype == 'uint16'
    )
    assert corpus.vocab_size == (
      manifest['vocabulary'] if folder == tiny_corpus else source.model.vocab_size
    )


RESULT = {
  'topology': 'v5e:2x4',
  'recipes': {
    'one': {
      'mesh': {'data': 8},
      'chips': 8,
      'compile_seconds': 1.5,
      'fits': True,
      'bytes': {
        'arguments': 3 << 20,
        'temporaries': 4 << 20,
        'output': 0,
        'program': 1 << 20,
        'total': 8 << 20,
        'chip': 16 << 20,
      },
      'collectives': {
        'all-reduce': {'count': 1, 'bytes': 1 << 20},
        'all-gather': {'count': 2, 'bytes': 1 << 19},
      },
      'milliseconds': 2.0,
      'tokens_per_second': 16.4e6,
      'utilisation': 0.021,
    },
    'two': {'fits': False, 'refused': 'Ran out of memory.', 'chips': 8, 'compile_seconds': 0.5},
  },
}


def test_the_table_has_a_line_a_recipe(capsys):
  for table in preflight.make_preflight_tables(RESULT):
    rich.console.Console(width=80).print(table)
  lines = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert ['one', '3', '4', '8', '50.0%', '1.5', '2.00', '16.40', '2.1%'] in lines
  assert ['two', 'does', 'not', 'fit'] in lines
  single = {'topology': 'v5e:2x4', 'recipes': {'one': RESULT['recipes']['one']}}
  for table in preflight.make_preflight_tables(single):
    rich.console.Console(width=80).print(table)
  assert 'collectives all-gather' in capsys.readouterr().out
  preflight.check_topology(single)
  with pytest.raises(InputError, match='two on v5e:2x4'):
    preflight.check_topology(RESULT)
