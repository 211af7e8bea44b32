"""Compilation for absent TPUs; tests of the TPU compiler need libtpu."""

import dataclasses
import functools
import importlib.metadata
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
from minilm_jax.bench import gpus, hlo, lowering, preflight, tpus
from minilm_jax.cli import main
from minilm_jax.cli.flags import FLAGS
from minilm_jax.core import files, recipe, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.model import flops
from minilm_jax.model.flops import count_parameters_by_part, flops_per_row

pytestmark = pytest.mark.usefixtures('without_compilation_cache')

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
  return preflight.describe_step(config, preflight.describe_target(topology))


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
  gradient = 4 * flops.count_parameters_by_part(make_config(name).model)['total']
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
  state = 12 * flops.count_parameters_by_part(config.model)['total']
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
  gradients = 2 * 4 * flops.count_parameters_by_part(config.model)['total']
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
  chip = tpus.CHIPS['v5e']
  target = preflight.Target('v5e:2x4', chip.memory, jax.devices(), chip)
  result = preflight.describe_step(config, target)
  gradient = 4 * count_parameters_by_part(config.model)['total']
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
    ('v9:2x2', "no device 'v9' in v4, v5e, v5p, v6e"),
    ('2x4', 'no device'),
    ('h10', 'no device'),
    ('h100x0', 'no device'),
    ('missing.txtpb', 'no such file'),
    ('v5e', 'topology'),
    ('v5e:0x4', 'topology'),
    ('v5e:2x4x', 'topology'),
    ('v5e:8', 'topology'),
  ],
)
def test_an_unknown_topology_is_refused(topology: str, part: str):
  with pytest.raises(InputError, match=part) as error:
    preflight.describe_target(topology)
  assert 'v5e:2x4' in error.value.remedy


@pytest.mark.parametrize(
  'topology, extra', [('v5e:2x4', 'tpu'), ('h100', 'preflight-cuda'), ('t4x2', 'preflight-cuda')]
)
def test_a_missing_compiler_is_refused_with_its_extra(monkeypatch, topology: str, extra: str):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match=rf'minilm_jax\[{extra}\]'):
    preflight.describe_target(topology)


def test_a_compiler_of_another_version_is_refused(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  monkeypatch.setattr(
    importlib.metadata, 'version', lambda name: '0.9.0' if 'plugin' in name else '0.10.2'
  )
  with pytest.raises(InputError, match=r'jax_cuda12_plugin 0\.9\.0, and jaxlib 0\.10\.2'):
    preflight.describe_target('h100')


@pytest.mark.parametrize('smallest_misfit, unit', [(1, 1), (2, 1), (100, 1), (1000, 8), (64, 64)])
def test_bisection_finds_the_largest_size_within_an_eighth(smallest_misfit: int, unit: int):
  low, high = preflight._bisect(lambda size: size < smallest_misfit, 50, unit, 1 << 16)
  assert low < smallest_misfit <= high and low % unit == high % unit == 0
  assert high - low <= max(unit, low / 8)


@pytest.mark.parametrize('program', FLAGS['program'].choices)
def test_each_program_is_lowered_from_shapes(program: str):
  config = make_config(**SMALL, **{'population.members': 2})
  lowered = lowering.PROGRAMS[program](config, jax.devices()[:2])
  assert lowered.mesh.size == 2 and 'stablehlo.dot_general' in lowered.stage.as_text()


@pytest.mark.parametrize(
  'message, compiles, part',
  [
    ('INTERNAL: RET_CHECK failure: async-update', False, 'needs libtpu==0.0.42'),
    (
      'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20G',
      True,
      'lower batch_size',
    ),
  ],
)
def test_an_error_of_the_compiler_is_a_refusal(
  monkeypatch, message: str, compiles: bool, part: str
):
  version = importlib.metadata.version
  monkeypatch.setattr(
    importlib.metadata, 'version', lambda name: '0.0.52' if name == 'libtpu' else version(name)
  )
  monkeypatch.setattr(importlib.metadata, 'requires', lambda name: ['libtpu==0.0.42.*; extra'])

  def fail(self: Any, compiler_options: Any) -> Any:
    raise jax.errors.JaxRuntimeError(message)

  monkeypatch.setattr(jax.stages.Lowered, 'compile', fail)
  chip = tpus.CHIPS['v5e']
  target = preflight.Target('v5e:2x4', chip.memory, jax.devices()[:1], chip)
  result = preflight.compile_for_topology({'it': make_config(**SMALL)}, target)
  assert result['recipes']['it']['compiles'] == compiles
  with pytest.raises(InputError, match=part):
    preflight.check_topology(result)


def test_the_search_for_sizes_ends_with_an_error_of_the_compiler(monkeypatch):
  def fail(self: Any, compiler_options: Any) -> Any:
    raise jax.errors.JaxRuntimeError('INTERNAL: no such kernel')

  monkeypatch.setattr(jax.stages.Lowered, 'compile', fail)
  target = preflight.Target('here', 1 << 30, jax.devices()[:1])
  with pytest.raises(InputError, match='no such kernel'):
    preflight.find_largest_sizes({'it': make_config(**SMALL)}, target)


def test_the_search_for_members_ignores_the_values_of_single_members(monkeypatch):
  tried = []

  def describe(config: RunConfig, target: preflight.Target) -> dict[str, Any]:
    tried.append((config.population, config.batch_size, config.mask.rate))
    return {'fits': config.population.members * config.batch_size <= 700, 'refused': 'too large'}

  monkeypatch.setattr(preflight, 'describe_step', describe)
  monkeypatch.setattr(preflight, '_format_note', lambda name, step: '')
  values = {'population.learning_rates': '1e-3,2e-3', 'population.mask_rates': '0.1,0.4'}
  config = make_config(**SMALL | {'population.members': 2, 'mask.rate': 0.2} | values)
  target = preflight.Target('here', 1 << 30, jax.devices()[:1])
  sizes = preflight.find_largest_sizes({'it': config}, target)['recipes']['it']
  assert sizes['members'] == (10, 11) and sizes['batch_size'][0] <= 350 < sizes['batch_size'][1]
  assert {rate for population, _, rate in tried if population.members > 2} == {0.4}


@pytest.mark.parametrize(
  'version, is_named', [('0.0.42.1', False), ('0.0.42', False), ('0.0.421', True)]
)
def test_the_version_of_libtpu_that_jax_needs_is_named(monkeypatch, version: str, is_named: bool):
  monkeypatch.setattr(importlib.metadata, 'version', lambda name: version)
  monkeypatch.setattr(importlib.metadata, 'requires', lambda name: ['libtpu==0.0.42.*; extra'])
  assert ('0.0.42.*' in tpus.describe_version()) == is_named


@needs_libtpu
@pytest.mark.parametrize('topology', ['v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'])
def test_each_kind_of_tpu_has_a_compiler(topology: str):
  step = compile_recipe(make_config(**SMALL), topology)
  assert step['fits'] and step['chips'] == 4 and step['milliseconds'] > 0


def test_bisection_stops_at_its_limit():
  assert preflight._bisect(lambda size: True, 1, 1, 1000) == (512, None)


@pytest.mark.parametrize('name', gpus.GPUS)
def test_figures_of_gpus_agree_with_each_other(name: str):
  """The product of units and clock is the published float32 peak in FLOP/s (NVIDIA data sheets)."""
  gpu = gpus.GPUS[name]
  published = {
    't4': 8.1e12,
    'a100': 19.5e12,
    'l4': 30.3e12,
    'rtx4090': 82.6e12,
    'h100': 67e12,
    'h200': 67e12,
  }
  peak = 2 * gpu.processors * gpu.architecture.lanes * gpu.gigahertz * 1e9
  assert peak == pytest.approx(published[name], rel=0.02)
  gigabytes = {'t4': 16, 'a100': 80, 'l4': 24, 'rtx4090': 24, 'h100': 80, 'h200': 141}[name]
  assert 0.9 * gigabytes < gpu.memory / 2**30 < 1.08 * gigabytes


needs_cuda = pytest.mark.skipif(
  importlib.util.find_spec('jax_cuda12_plugin') is None,
  reason="needs the compiler for GPUs: pip install 'minilm_jax[preflight-cuda]'",
)
SMALL = {
  'model.vocab_size': 2048,
  'model.max_length': 32,
  'model.hidden_size': 24,
  'model.num_heads': 2,
  'batch_size': 64,
}


def test_products_come_from_cublas_unless_the_environment_decides(monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setenv('XLA_FLAGS', '')
  assert gpus.make_compiler_options(True)['xla_gpu_enable_triton_gemm'] is False
  monkeypatch.setenv('XLA_FLAGS', '--xla_gpu_enable_triton_gemm=true')
  assert 'xla_gpu_enable_triton_gemm' not in gpus.make_compiler_options(True)


@needs_cuda
@pytest.mark.parametrize('name', gpus.GPUS)
def test_the_compiler_reads_every_gpu(name: str):
  memory, devices = gpus.describe_devices(f'{name}x2')
  assert len(devices) == 2 and devices[0].platform == 'gpu'
  assert devices[0].device_kind == gpus.GPUS[name].name and memory == gpus.GPUS[name].memory


@needs_cuda
def test_a_step_for_a_gpu_has_kernels_and_no_time():
  step = compile_recipe(make_config(**SMALL), 'h100x2')
  gradient = 4 * count_parameters_by_part(make_config(**SMALL).model)['total']
  assert step['fits'] and step['mesh']['data'] == 2 and 'milliseconds' not in step
  assert set(step['collectives']) == {'all-reduce'}
  assert step['collectives']['all-reduce']['count'] == 1
  assert gradient <= step['collectives']['all-reduce']['bytes'] <= gradient + 64
  kernels = step['kernels']
  assert kernels['fusions'] > 50 and kernels['cuBLAS'] > 10 and not kernels['Triton products']


@needs_cuda
@pytest.mark.parametrize('program', lowering.PROGRAMS)
def test_programs_of_a_population_compile_without_collectives(program: str):
  """Two GPUs divide the members, which exchange nothing."""
  config = make_config(**SMALL, **{'population.members': 2})
  step = preflight.describe_step(config, preflight.describe_target('l4x2'), program)
  assert step['fits'] and step['mesh']['population'] == step['chips'] == 2
  assert not step['collectives'] and step['kernels']['fusions'] > 10


@needs_cuda
def test_a_recipe_above_the_memory_that_jax_reserves_is_refused(tmp_path: pathlib.Path):
  file = tmp_path / 'tiny[1].txtpb'
  file.write_text(gpus.format_target(dataclasses.replace(gpus.GPUS['l4'], memory=1 << 20)))
  target = preflight.describe_target(str(file))
  result = preflight.compile_for_topology({'it': make_config(**SMALL)}, target)
  assert not result['recipes']['it']['fits']
  with pytest.raises(InputError, match='MiB'):
    preflight.check_topology(result)


@needs_cuda
def test_a_target_that_the_compiler_cannot_read_names_the_field(tmp_path: pathlib.Path):
  file = tmp_path / 'gpu.txtpb'
  file.write_text(gpus.format_target(gpus.GPUS['l4']).replace('clock_rate_ghz', 'clock_rate_thz'))
  with pytest.raises(InputError, match='clock_rate_thz'):
    gpus.describe_devices(str(file))


def test_a_file_without_memory_is_refused(tmp_path: pathlib.Path):
  file = tmp_path / 'gpu.txtpb'
  file.write_text('nothing')
  with pytest.raises(InputError, match='device_memory_size'):
    preflight.describe_target(str(file))


def test_the_table_of_chips_is_consistent():
  """Peak and clock give a whole number of 128 x 128 matrix units."""
  for chip in tpus.CHIPS.values():
    units = chip.flops / chip.clock / (2 * 128**2)
    assert units == pytest.approx(round(units), rel=0.01)
    assert 16 << 30 <= chip.memory < 128 << 30


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
    corpus = lowering.describe_corpus(
      recipe.resolve(source, 'pretrain'), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
    assert (
      corpus.tokens.shape == (rows, source.model.max_length) and corpus.tokens.dtype == 'uint16'
    )
    assert corpus.vocab_size == (
      manifest['vocabulary'] if folder == tiny_corpus else source.model.vocab_size
    )


def test_a_subset_of_tokens_sets_the_number_of_rows(tiny_corpus: pathlib.Path):
  source = tiny.get_config()
  source.corpus, source.subset.tokens = str(tiny_corpus), 2000
  placement = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  corpus = lowering.describe_corpus(recipe.resolve(source, 'pretrain'), placement)
  assert corpus.tokens.shape == (34, 64)  # Rows of the tiny corpus have 58 tokens on average.


RESULT = {
  'topology': 'v5e:2x4',
  'program': 'train',
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
  single = RESULT | {'recipes': {'one': RESULT['recipes']['one']}}
  for table in preflight.make_preflight_tables(single):
    rich.console.Console(width=80).print(table)
  assert 'collectives all-gather' in capsys.readouterr().out
  preflight.check_topology(single)
  with pytest.raises(InputError, match='two on v5e:2x4'):
    preflight.check_topology(RESULT)
