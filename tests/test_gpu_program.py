"""Properties of the training chunk that is compiled for an absent H100.

The recipe is small, and its arrays of logits are larger than all others. Heads are 12 wide. Nothing
runs: the tests read the optimised program.
"""

import functools
import importlib.util
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from configs import paper1
from minilm_jax.bench import gpus, hlo
from minilm_jax.core import recipe
from minilm_jax.data.rows import Corpus
from minilm_jax.model.heads import init_masked_language_model
from minilm_jax.training import program, sharding

ROWS, LENGTH, VOCABULARY, BLOCKS = 64, 32, 2048, 4
BFLOAT16 = {'model.dtype': 'bfloat16'}
pytestmark = [
  pytest.mark.skipif(
    importlib.util.find_spec('jax_cuda12_plugin') is None,
    reason="needs the compiler for GPUs: pip install 'minilm_jax[preflight-cuda]'",
  ),
  pytest.mark.usefixtures('without_compilation_cache'),
]


def make_config(**changes: Any) -> Any:
  source = paper1.get_config('magic-bee-26')
  source.update(batch_size=ROWS, logit_chunks=BLOCKS)
  source.model.update(
    vocab_size=VOCABULARY, max_length=LENGTH, hidden_size=24, num_heads=2, intermediate_size=48
  )
  source.update_from_flattened_dict(changes)
  return recipe.resolve(source, 'pretrain')


@functools.cache
def compile_chunk(deterministic: bool = False, **changes: Any) -> str:
  """Returns the optimised program of a chunk."""
  _, devices = gpus.describe_devices('h100')
  built = program.build_program(make_config(**changes), devices)
  placement = sharding.replicated(built.mesh)
  tokens: Any = jax.ShapeDtypeStruct((ROWS, LENGTH), 'uint16', sharding=placement)
  steps = jax.ShapeDtypeStruct((), jnp.int32, sharding=placement)
  lowered = built.chunk.lower(built.shapes, Corpus(tokens, VOCABULARY, 'absent'), steps)
  return lowered.compile(compiler_options=gpus.make_compiler_options(deterministic)).as_text()


def count_products(**changes: Any) -> int:
  kernels = hlo.count_gpu_kernels(hlo.parse_instructions(compile_chunk(**changes)))
  assert not kernels['Triton products']
  return kernels['cuBLAS']


def list_loop_instructions(text: str) -> Iterator[tuple[str, str, str]]:
  """Yields name, result and operation of each instruction of the loops, without parts of fusions."""
  fused = set(re.findall(r'calls=%([\w.-]+)', text))
  for name, lines in re.findall(r'^%([\w.-]+) \(.*?\{$(.*?)^\}', text, re.M | re.S):
    if name not in fused:
      yield from re.findall(r'%([\w.-]+) = (\S+|\(.*?\)) ([\w-]+)\(', lines)


def list_shapes(text: str) -> list[tuple[int, ...]]:
  shapes = re.findall(r'\b(?:f32|bf16)\[([\d,]+)\]', text)
  return [tuple(map(int, shape.split(','))) for shape in shapes]


def test_one_block_of_logits_is_the_largest_array():
  config = make_config()
  positions = config.mask.max_positions(LENGTH)
  largest = max(map(math.prod, list_shapes(compile_chunk(**BFLOAT16))))
  assert largest == ROWS // BLOCKS * positions * VOCABULARY


def test_a_step_copies_no_weight():
  """The program keeps its state in place, and reads a weight in the order in which it is stored."""
  config = make_config()
  model = jax.eval_shape(lambda: init_masked_language_model(config.model, jax.random.key(0)))
  weights = {tuple(sorted(leaf.shape)) for leaf in jax.tree.leaves(model) if leaf.ndim == 2}
  instructions = list(list_loop_instructions(compile_chunk(**BFLOAT16)))
  assert len(instructions) > 100 and len(weights) > 5
  copies = [
    (name, shape)
    for name, result, _ in instructions
    for shape in list_shapes(result)
    if re.search('copy|transpose', name) and tuple(sorted(shape)) in weights
  ]
  assert not copies


def test_all_products_of_a_bfloat16_recipe_have_bfloat16_inputs():
  text = compile_chunk(**BFLOAT16)
  types = dict(re.findall(r'%([\w.-]+) = (\w+)\[', text))
  inputs = [
    (types[left], types[right])
    for left, right in re.findall(r' custom-call\(%([\w.-]+), %([\w.-]+).*__cublas', text)
  ]
  assert len(inputs) > 20 and set(inputs) == {('bf16', 'bf16')}


def test_a_chunk_exchanges_nothing_with_the_host():
  """The host reads the condition of a `conditional`. Memory space 5 is that of the host."""
  text = compile_chunk(**BFLOAT16)
  operations = {operation for _, _, operation in list_loop_instructions(text)}
  assert {'fusion', 'while'} <= operations
  assert not operations & {'conditional', 'infeed', 'outfeed', 'send', 'recv'}
  assert 'callback' not in text and 'S(5)' not in text


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('members', [1, 2])
def test_heads_of_any_width_compile_with_deterministic_kernels(dtype: str, members: int):
  changes = {'model.dtype': dtype, 'population.members': members}
  assert count_products(deterministic=True, **changes) >= count_products(**BFLOAT16) > 20
