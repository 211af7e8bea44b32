"""Compiles a recipe for absent accelerators: reports memory, collectives, kernels, estimated time.

The compiler reports the memory of a chip and the data that chips exchange. A TPU's compiler refuses
a program that does not fit. A GPU's compiler does not, so the bytes are compared with the memory
that JAX reserves.

The estimated time of a step on a TPU is the sum of the cycles of all kernels in the cost model of
the compiler. The time excludes collectives and waits for copies, so that speed and utilisation are
upper limits. No TPU has confirmed the numbers. `optimal_seconds` of XLA is not used, because it
subtracts a second for each unknown operation.

A GPU has no estimated time. Without a card the compiler measures no kernels, so the run may choose
other kernels of cuBLAS. Bytes of seven programs differed from the peak on an H200 by at most 3%, those
of a small program by 16% (docs/results/gpu.md).
"""

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
from rich import box
from rich import table as rich_table

from minilm_jax.bench import gpus, hlo, lowering, tpus
from minilm_jax.core import backend, progress
from minilm_jax.core.config import PopulationConfig, RunConfig
from minilm_jax.core.errors import InputError, suggest_name
from minilm_jax.data.rows import Corpus
from minilm_jax.model.flops import actual_flops

_MIB = 1 << 20
_MEMORY_ERROR = 'RESOURCE_EXHAUSTED'  # status of a program that is too large
_MAX_ROWS, _MAX_MEMBERS = 1 << 16, 1 << 10  # of the search for the largest sizes


@dataclasses.dataclass(frozen=True)
class Target:
  """Absent devices, and the options of their compiler.

  Attributes:
    topology: name of the devices.
    memory: bytes of a device that a program can use.
    devices: descriptions for the compiler.
    tpu: the chip, or None for a GPU.
    options: compiler options.
  """

  topology: str
  memory: int
  devices: Sequence[jax.Device]
  tpu: tpus.Chip | None = None
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def describe_target(topology: str, deterministic: bool = False) -> Target:
  """Returns the devices of a topology, such as `v5e:2x4`, `h100` or `h100x8`.

  Args:
    topology: a TPU with its arrangement, a GPU of `gpus.GPUS`, or a file with a target
      configuration; an `x` and a number after the latter two give several GPUs.
    deterministic: compile for a GPU as a run with --deterministic.

  Raises:
    InputError: the compiler is missing, or the topology does not exist.
  """
  if gpus.is_gpu(topology):
    memory, devices = gpus.describe_devices(topology)
    usable = int(memory * gpus.JAX_MEMORY_SHARE)
    return Target(topology, usable, devices, options=gpus.make_compiler_options(deterministic))
  name = topology.partition(':')[0]
  if name not in tpus.CHIPS:
    known = [*tpus.CHIPS, *gpus.GPUS]
    raise InputError(
      f'--topology={topology}',
      f'no device {name!r} in {", ".join(known)}, and no such file',
      f'{suggest_name(name, known)}; give a TPU such as v5e:2x4, a GPU such as h100 or h100x8, or a file '
      'with a target configuration of XLA (docs/guide/preflight.md)',
    )
  chip, devices = tpus.describe_devices(topology)
  return Target(topology, chip.memory, devices, chip)


def compile_for_topology(
  configs: Mapping[str, RunConfig], target: Target, program: str = 'train'
) -> dict[str, Any]:
  """Compiles a program of each recipe for absent devices.

  Args:
    configs: recipes by name.
    target: the devices.
    program: a key of `lowering.PROGRAMS`.

  Returns:
    `topology` and `recipes`: the result of `describe_step` by name.

  Raises:
    InputError: a recipe cannot be divided among the devices.
  """
  workers = min(len(configs), backend.count_cores())
  with (
    progress.track_progress('compiling', len(configs), 'recipes') as update,
    futures.ThreadPoolExecutor(workers) as pool,
  ):
    recipes = {}
    steps = pool.map(lambda config: describe_step(config, target, program), configs.values())
    for name, step in zip(configs, steps):
      recipes[name] = step
      # Forty recipes take an hour: the log has the numbers of each in case of an interruption.
      update(len(recipes), _format_note(name, step))
  return {'topology': target.topology, 'program': program, 'recipes': recipes}


def _format_note(name: str, step: Mapping[str, Any]) -> str:
  text = step.get('refused', '')
  if step['fits']:
    text = f'{step["bytes"]["total"] / _MIB:,.0f} MiB'
  if 'milliseconds' in step:
    text += f', {step["milliseconds"]:.2f} ms'
  return f'{name}: {text}; compiled in {step["compile_seconds"]:.0f} s'


def check_topology(result: Mapping[str, Any]) -> None:
  """Checks the result of `compile_for_topology`, after it has been printed.

  Raises:
    InputError: a recipe does not compile, or needs more memory than a chip has.
  """
  _check_compiler(result)
  refused = {name: step for name, step in result['recipes'].items() if not step['fits']}
  if refused:
    raise InputError(
      f'{", ".join(refused)} on {result["topology"]}',
      '; '.join(step['refused'] for step in refused.values()),
      'lower batch_size or population.members, raise grad_accumulation_steps or logit_chunks, or use '
      'more chips; --fit finds the largest batch',
    )


def _check_compiler(result: Mapping[str, Any]) -> None:
  """Raises InputError if the compiler failed for another reason than memory."""
  steps = result['recipes']
  failed = [name for name, step in steps.items() if not step.get('compiles', True)]
  if failed:
    raise InputError(
      f'{", ".join(failed)} on {result["topology"]}',
      f'the compiler fails: {steps[failed[0]]["refused"]}',
      "install the compiler that this version of jax needs, such as pip install -U 'minilm_jax[tpu]'",
    )


def make_preflight_tables(result: Mapping[str, Any]) -> list[rich_table.Table]:
  """Returns a table with a line a recipe, and all values of a single recipe in a second table."""
  steps = result['recipes'].values()
  names = ['args', 'temps', 'total', 'share', 'sent']
  title = (
    f'A step of {result["program"]} on {result["topology"]}. One chip: MiB of arguments, temporaries and in total, share '
    'of the memory, MiB sent.'
  )
  if any('milliseconds' in step for step in steps):
    names += ['ms', 'Mtok/s', 'use']
    title += ' At best: milliseconds, million tokens/s of all chips, utilisation.'
  if any('kernels' in step for step in steps):
    names += list(hlo.GPU_KERNELS)
    title += ' Kernels of a step by kind.'
  columns = [rich_table.Column(name, justify='right') for name in names]
  recipes = rich_table.Column('recipe', no_wrap=True)
  lines = rich_table.Table(recipes, *columns, box=box.SIMPLE, padding=0, title=title)
  for name, step in result['recipes'].items():
    verb = 'fit' if step.get('compiles', True) else 'compile'
    lines.add_row(name, *(_format_cells(step) if step['fits'] else ['does', 'not', verb]))
  if len(result['recipes']) > 1:
    return [lines]
  facts = rich_table.Table('quantity', 'value', box=box.SIMPLE)
  (step,) = steps
  for name, value in step.items():
    for part, number in value.items() if isinstance(value, dict) else [('', value)]:
      text = f'{number:,.4g}' if isinstance(number, float) else str(number)
      facts.add_row(f'{name} {part}'.strip(), text)
  return [lines, facts]


def _format_cells(step: Mapping[str, Any]) -> list[str]:
  size = step['bytes']
  sent = sum(kind['bytes'] for kind in step['collectives'].values())
  cells = [
    *(f'{size[part] / _MIB:,.0f}' for part in ('arguments', 'temporaries', 'total')),
    f'{size["total"] / size["chip"]:.1%}',
    f'{sent / _MIB:.1f}',
  ]
  if 'milliseconds' in step:
    cells += [
      f'{step["milliseconds"]:.2f}',
      f'{step["tokens_per_second"] / 1e6:.2f}',
      f'{step["utilisation"]:.1%}',
    ]
  return cells + [str(count) for count in step.get('kernels', {}).values()]


def describe_step(config: RunConfig, target: Target, program: str = 'train') -> dict[str, Any]:
  """Compiles a program of one recipe.

  Args:
    config: the recipe.
    target: the devices.
    program: a key of `lowering.PROGRAMS`. A step is one pass of the loop of the program: an update,
      or a batch of evaluation or prediction.

  Returns:
    `mesh`, `chips`, `members`, `batch` of a member, `compile_seconds` and `fits`. A recipe that does
    not fit or compile has `refused`, the message of the compiler or the comparison of bytes, and
    `compiles` if the compiler refused it. A training chunk
    has `corpus_rows` and `flops_per_step` (of one chip, by the true count). A compiled recipe has
    the following fields for one chip. `bytes` is its memory. `collectives` has the `count` and the
    result `bytes` of a step by kind. On a GPU, `kernels` counts the kernels of a step by kind. On a
    TPU, `flops` and `bytes_accessed` are counts of the compiler, which include each loop body once,
    and `milliseconds` is the time of the kernels. `tokens_per_second` and `utilisation` of all
    chips follow from it for training.

  Raises:
    InputError: the recipe cannot be divided among the devices.
  """
  start = time.monotonic()
  lowered = lowering.PROGRAMS[program](config, target.devices)
  result: dict[str, Any] = {
    'mesh': dict(lowered.mesh.shape),
    'chips': lowered.mesh.size,
    'members': config.population.members,
    'batch': [config.batch_size, config.model.max_length],
  }
  try:
    compiled = lowered.stage.compile(compiler_options=dict(target.options))
    result |= describe_program(compiled, target)
  except jax.errors.JaxRuntimeError as error:
    # The other recipes of a table compile nevertheless.
    reason = _extract_reason(str(error))
    is_memory = _MEMORY_ERROR in str(error)
    if not is_memory and target.tpu:
      reason += f' ({tpus.describe_version()})'
    result |= {'fits': False, 'compiles': is_memory, 'refused': reason}
  if program == 'train' and lowered.corpus:
    result |= _describe_training(config, lowered.corpus, result, target)
  return result | {'compile_seconds': time.monotonic() - start}


def _describe_training(
  config: RunConfig, corpus: Corpus, step: Mapping[str, Any], target: Target
) -> dict[str, Any]:
  """Returns rows and FLOPs of an update, and on a TPU the speed that its time gives."""
  rows = config.population.members * config.batch_size
  flops = actual_flops(config.model, config.largest_mask, corpus.length) * rows / step['chips']
  result = {
    'batch': [config.batch_size, corpus.length],
    'corpus_rows': corpus.rows,
    'flops_per_step': flops,
  }
  if not (target.tpu and 'milliseconds' in step):
    return result
  seconds = step['milliseconds'] / 1e3
  return result | {
    'tokens_per_second': rows * corpus.length / seconds,
    'utilisation': flops / seconds / target.tpu.flops,
  }


def find_largest_sizes(configs: Mapping[str, RunConfig], target: Target) -> dict[str, Any]:
  """Finds the largest batch and the largest population of each recipe by bisection.

  Args:
    configs: recipes by name.
    target: the devices.

  Returns:
    `topology` and `recipes`. Each recipe has `batch_size` and `members`, with two numbers each: the
    largest compiled size that fits, or 0, and the smallest compiled size that does not, or None up
    to `_MAX_ROWS` rows or `_MAX_MEMBERS` members. The latter is at most an eighth larger.

  Raises:
    InputError: the compiler fails for another reason than memory, or a recipe cannot be divided
      among the devices.
  """
  recipes = {}
  for name, config in configs.items():

    def fits(field: str, size: int, name: str = name, config: RunConfig = config) -> bool:
      changes: dict[str, Any] = {'batch_size': size}
      if field == 'members':
        # Values of single members do not fit other numbers of members.
        members = PopulationConfig(size, config.population.strategy)
        changes = {'population': members, 'mask': config.largest_mask}
      step = describe_step(dataclasses.replace(config, **changes), target)
      progress.log(f'{field}={size}, {_format_note(name, step)}')
      _check_compiler({'topology': target.topology, 'recipes': {name: step}})
      return step['fits']

    # A batch is divided among the devices and their micro-batches.
    unit = len(target.devices) * max(1, config.grad_accumulation_steps)
    recipes[name] = {
      'batch_size': _bisect(
        functools.partial(fits, 'batch_size'), config.batch_size, unit, _MAX_ROWS
      ),
      'members': _bisect(functools.partial(fits, 'members'), 8, 1, _MAX_MEMBERS),
    }
  return {'topology': target.topology, 'recipes': recipes}


def _bisect(
  fits: Callable[[int], bool], start: int, unit: int, limit: int
) -> tuple[int, int | None]:
  """Returns the largest multiple of `unit` that fits, within an eighth, and the next that does not.

  The search doubles `start` up to `limit`, and then halves the interval.
  """
  low, high = 0, -(-start // unit) * unit
  while fits(high):
    low, high = high, 2 * high
    if high > limit:
      return low, None
  while high - low > max(unit, low // 8):
    middle = (low + high) // 2 // unit * unit
    low, high = (middle, high) if fits(middle) else (low, middle)
  return low, high


def make_size_tables(result: Mapping[str, Any]) -> list[rich_table.Table]:
  """Returns the table of `find_largest_sizes`."""
  table = rich_table.Table(
    'recipe', 'batch_size', 'population.members', title=f'Largest sizes on {result["topology"]}'
  )
  for name, sizes in result['recipes'].items():
    table.add_row(name, *(_format_size(*sizes[field]) for field in ('batch_size', 'members')))
  return [table]


def _format_size(low: int, high: int | None) -> str:
  fitting = f'{low:,} fits' if low else 'none fits'
  return f'{fitting}, {high:,} does not' if high else f'{fitting}, larger not tried'


def describe_program(compiled: jax.stages.Compiled, target: Target) -> dict[str, Any]:
  """Returns the memory of a compiled program on one device, and the other fields of the compiler.

  Raises:
    InputError: the compiler reports no memory, or a TPU's compiler no cost.
  """
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  if memory is None or (target.tpu and not cost):
    raise InputError(
      'memory and cost of the step', 'the compiler reports none', 'update jax and its compiler'
    )
  step = list(hlo.parse_instructions(compiled.as_text() or ''))
  parts = {
    'arguments': memory.argument_size_in_bytes,
    'temporaries': memory.temp_size_in_bytes,
    # Outputs without those that reuse the memory of an argument.
    'output': memory.output_size_in_bytes - memory.alias_size_in_bytes,
    'program': memory.generated_code_size_in_bytes,
  }
  total = sum(parts.values())
  result: dict[str, Any] = {
    'fits': total <= target.memory,
    'bytes': parts | {'total': total, 'chip': target.memory},
    'collectives': hlo.find_collectives(step),
  }
  if not result['fits']:
    needed, free = total / _MIB, target.memory / _MIB
    result['refused'] = f'{needed:,.0f} MiB of memory, more than the {free:,.0f} MiB of a device'
  if not (target.tpu and cost):
    return result | {'kernels': hlo.count_gpu_kernels(step)}
  return result | {
    'flops': cost['flops'],
    'bytes_accessed': cost['bytes accessed'],
    'milliseconds': 1e3 * hlo.estimate_cycles(step) / target.tpu.clock,
  }


def _extract_reason(message: str) -> str:
  """Returns the sentence about memory in an error message of the compiler, or its first line."""
  if _MEMORY_ERROR not in message:
    return message.splitlines()[0].strip()
  sentence = re.search(r'[^:]*\bmemory\b.*?\.(?=\s|$)', message)
  return (sentence[0] if sentence else message.splitlines()[0]).strip()
