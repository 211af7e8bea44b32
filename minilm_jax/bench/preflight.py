"""Compiles a recipe for an absent TPU and reports memory, collectives and estimated time.

The compiler reports the memory of a chip and the data that chips exchange. It refuses a program
that does not fit, as on a TPU. The estimated time of a step is the sum of the cycles of all kernels
in the cost model of the compiler. The time excludes collectives and waits for copies, so that speed
and utilisation are upper limits. No TPU has confirmed the numbers. `optimal_seconds` of XLA is not
used, because it subtracts a second for each unknown operation.
"""

import dataclasses
import re
import time
import typing
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import topologies
from rich import box
from rich import table as rich_table

from minilm_jax.bench import hlo
from minilm_jax.core import backend, progress, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError, require_library
from minilm_jax.data.corpus import Corpus
from minilm_jax.model.flops import flops_per_row
from minilm_jax.training import program, run_setup, sharding

_ABSENT_CORPUS_ROWS = 60_000  # about the rows of a reduced corpus of five million words
_MIB = 1 << 20
# A topology with a zero makes libtpu divide by zero.
_TOPOLOGY = re.compile(r'(\w+):[1-9]\d*(x[1-9]\d*){1,2}')


@dataclasses.dataclass(frozen=True)
class Chip:
  """A TPU chip.

  Attributes:
    memory: bytes.
    flops: peak FLOP/s in bfloat16.
    bandwidth: bytes/s of the memory.
    clock: cycles/s.
    setup: the chip configuration, as libtpu names it.
  """

  memory: int
  flops: float
  bandwidth: float
  clock: float
  setup: str = 'default'


# Source of memory, peak and bandwidth: docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e. The
# clock follows from the peak and the number of matrix units there. The clock of v6e follows from
# the cycles that the compiler gives a large product and a large copy.
CHIPS = {
  'v4': Chip(32 << 30, 275e12, 1200e9, 1.05e9, 'megacore'),  # two cores form one device
  'v5e': Chip(16 << 30, 197e12, 819e9, 1.5e9),
  'v5p': Chip(95 << 30, 459e12, 2765e9, 1.75e9),
  'v6e': Chip(32 << 30, 918e12, 1638e9, 1.75e9),
}


def compile_for_topology(configs: Mapping[str, RunConfig], topology: str) -> dict[str, Any]:
  """Compiles the training chunk of each recipe for a TPU.

  Args:
    configs: recipes by name.
    topology: chip and arrangement, such as `v5e:2x4`.

  Returns:
    `topology`, `chip`, and `recipes`: the result of `describe_step` by name.

  Raises:
    InputError: libtpu is missing, the topology does not exist, or a recipe cannot be divided among
      its devices.
  """
  chip, devices = _describe_devices(topology)
  workers = min(len(configs), backend.count_cores())
  with (
    progress.track_progress('compiling', len(configs), 'recipes') as update,
    futures.ThreadPoolExecutor(workers) as pool,
  ):
    recipes = {}
    steps = pool.map(lambda config: describe_step(config, chip, devices), configs.values())
    for name, step in zip(configs, steps):
      recipes[name] = step
      # Forty recipes take an hour: the log has the numbers of each in case of an interruption.
      update(len(recipes), _format_note(name, step))
  return {'topology': topology, 'chip': dataclasses.asdict(chip), 'recipes': recipes}


def _format_note(name: str, step: Mapping[str, Any]) -> str:
  text = 'does not fit'
  if step['fits']:
    text = f'{step["bytes"]["total"] / _MIB:,.0f} MiB, {step["milliseconds"]:.2f} ms'
  return f'{name}: {text}; compiled in {step["compile_seconds"]:.0f} s'


def check_topology(result: Mapping[str, Any]) -> None:
  """Checks the result of `compile_for_topology`, after it has been printed.

  Raises:
    InputError: a recipe needs more memory than a chip has.
  """
  refused = {name: step['refused'] for name, step in result['recipes'].items() if not step['fits']}
  if refused:
    raise InputError(
      f'{", ".join(refused)} on {result["topology"]}',
      '; '.join(refused.values()),
      'lower batch_size, raise grad_accumulation_steps or logit_chunks, or use more chips',
    )


def make_preflight_tables(result: Mapping[str, Any]) -> list[rich_table.Table]:
  """Returns a table with a line a recipe, and all values of a single recipe in a second table."""
  columns = [
    rich_table.Column(name, justify='right')
    for name in ('args', 'temps', 'total', 'share', 'sent', 'ms', 'Mtok/s', 'use')
  ]
  lines = rich_table.Table(
    rich_table.Column('recipe', no_wrap=True),
    *columns,
    box=box.SIMPLE,
    padding=0,
    title=f'A step on {result["topology"]}. One chip: MiB of arguments, temporaries and in total, '
    'share of the memory, MiB sent. At best: milliseconds, million tokens/s of all chips, utilisation.',
  )
  for name, step in result['recipes'].items():
    lines.add_row(name, *(_format_cells(step) if step['fits'] else ['does', 'not', 'fit']))
  if len(result['recipes']) > 1:
    return [lines]
  facts = rich_table.Table('quantity', 'value', box=box.SIMPLE)
  (step,) = result['recipes'].values()
  for name, value in step.items():
    for part, number in value.items() if isinstance(value, dict) else [('', value)]:
      text = f'{number:,.4g}' if isinstance(number, float) else str(number)
      facts.add_row(f'{name} {part}'.strip(), text)
  return [lines, facts]


def _format_cells(step: Mapping[str, Any]) -> list[str]:
  size = step['bytes']
  sent = sum(kind['bytes'] for kind in step['collectives'].values())
  return [
    *(f'{size[part] / _MIB:,.0f}' for part in ('arguments', 'temporaries', 'total')),
    f'{size["total"] / size["chip"]:.1%}',
    f'{sent / _MIB:.1f}',
    f'{step["milliseconds"]:.2f}',
    f'{step["tokens_per_second"] / 1e6:.2f}',
    f'{step["utilisation"]:.1%}',
  ]


def describe_step(config: RunConfig, chip: Chip, devices: Sequence[jax.Device]) -> dict[str, Any]:
  """Compiles the chunk of one recipe.

  Returns:
    `mesh`, `chips`, `members`, `batch` of a member, `corpus_rows`, `flops_per_step` (of one chip,
    by the true count), `compile_seconds` and `fits`. A recipe that does not fit has `refused`, the
    message of the compiler. A recipe that fits has the following fields for one chip. `bytes` is
    its memory. `flops` and `bytes_accessed` are counts of the compiler, which include each loop
    body once. `collectives` has the `count` and the result `bytes` of a step by kind.
    `milliseconds` is the time of the kernels. `tokens_per_second` and `utilisation` of all chips
    follow from it.

  Raises:
    InputError: the recipe cannot be divided among the devices.
  """
  train_program = program.build_program(config, devices)
  replicated = sharding.replicated(train_program.mesh)
  corpus, chips = _describe_corpus(config, replicated), train_program.mesh.size
  model = dataclasses.replace(config.model, max_length=corpus.length)
  rows = config.population.members * config.batch_size
  flops = flops_per_row(model, config.mask)['actual'] * rows / chips
  start = time.monotonic()
  try:
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    compiled = train_program.chunk.lower(train_program.shapes, corpus, count).compile()
    result = {'fits': True} | _describe_chip(compiled, chip)
    seconds = result['milliseconds'] / 1e3
    result |= {
      'tokens_per_second': rows * corpus.length / seconds,
      'utilisation': flops / seconds / chip.flops,
    }
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    result = {'fits': False, 'refused': _extract_memory_error(str(error))}
  return {
    'mesh': dict(train_program.mesh.shape),
    'chips': chips,
    'members': config.population.members,
    'batch': [config.batch_size, corpus.length],
    'corpus_rows': corpus.rows,
    'flops_per_step': flops,
    'compile_seconds': time.monotonic() - start,
  } | result


def _describe_chip(compiled: jax.stages.Compiled, chip: Chip) -> dict[str, Any]:
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  if memory is None or not cost:
    raise InputError(
      'memory and cost of the step', 'the compiler reports none', 'update jax and libtpu'
    )
  step = list(hlo.parse_instructions(compiled.as_text() or ''))
  parts = {
    'arguments': memory.argument_size_in_bytes,
    'temporaries': memory.temp_size_in_bytes,
    # Outputs without those that reuse the memory of an argument.
    'output': memory.output_size_in_bytes - memory.alias_size_in_bytes,
    'program': memory.generated_code_size_in_bytes,
  }
  return {
    'bytes': parts | {'total': sum(parts.values()), 'chip': chip.memory},
    'flops': cost['flops'],
    'bytes_accessed': cost['bytes accessed'],
    'collectives': hlo.find_collectives(step),
    'milliseconds': 1e3 * hlo.estimate_cycles(step) / chip.clock,
  }


def _extract_memory_error(message: str) -> str:
  """Returns the sentence about memory in an error message of the compiler, or its first line."""
  sentence = re.search(r'[^:]*\bmemory\b.*?\.(?=\s|$)', message)
  return (sentence[0] if sentence else message.splitlines()[0]).strip()


def _describe_corpus(config: RunConfig, placement: jax.sharding.Sharding) -> Corpus:
  """Returns the shape of the training rows, of the corpus of the recipe or of a typical corpus."""
  folder = epath.Path(config.corpus)
  if config.corpus and (folder / run_dir.MANIFEST).exists():
    manifest = run_setup.validate_corpus(config, folder)
    rows = config.subset.rows or manifest['splits']['train']['rows']
    length, dtype, vocab_size = (manifest[name] for name in ('length', 'dtype', 'vocabulary'))
  else:
    rows, length, vocab_size = _ABSENT_CORPUS_ROWS, config.model.max_length, config.model.vocab_size
    dtype = 'uint16' if vocab_size <= 1 << 16 else 'uint32'
  tokens = jax.ShapeDtypeStruct((rows, length), dtype, sharding=placement)
  return Corpus(typing.cast(jax.Array, tokens), vocab_size, 'absent')


def _describe_devices(topology: str) -> tuple[Chip, Sequence[jax.Device]]:
  """Returns the chip and the described devices of a topology."""
  subject, name = f'--topology={topology}', topology.partition(':')[0]
  remedy = 'give a chip and an arrangement, such as v4:2x2x2, v5e:2x4, v5p:2x2x2 or v6e:2x4'
  if name not in CHIPS:
    raise InputError(subject, f'no chip {name!r} in {", ".join(CHIPS)}', remedy)
  if not _TOPOLOGY.fullmatch(topology):
    raise InputError(subject, 'no arrangement of chips', remedy)
  require_library('libtpu', 'tpu', subject)
  backend.hide_accelerators()
  try:
    description = topologies.get_topology_desc(
      topology, platform='tpu', chip_config_name=CHIPS[name].setup
    )
  except jax.errors.JaxRuntimeError as error:
    raise InputError(subject, str(error).splitlines()[0], remedy) from None
  return CHIPS[name], description.devices
