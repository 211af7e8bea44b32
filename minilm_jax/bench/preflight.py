"""What a recipe would take of a TPU that is not there: the very chunk that `pretrain` runs,
compiled for its topology.

Nothing runs. The compiler says how many bytes a chip holds and what the chips send each other, and
refuses what does not fit as it would on the machine. The time of a step is the sum of the cycles
that its cost model gives each kernel; collectives and waits for copies are not in it. So speed and
utilisation are upper ends, and no TPU has confirmed them. `optimal_seconds` of XLA is left out: it
takes a second off for each operation that it does not know.
"""

import dataclasses
import importlib.util
import math
import re
import time
import typing
from collections.abc import Iterable, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import topologies
from rich import box
from rich import table as rich_table

from minilm_jax.core import backend, progress, run_dir
from minilm_jax.core.config import RunConfig
from minilm_jax.core.errors import InputError
from minilm_jax.data.corpus import Corpus
from minilm_jax.model.flops import flops_per_row
from minilm_jax.training import program, run_setup, sharding

# What an optimised program of XLA says of itself: its collectives and the cycles of its kernels,
# from its text.
StepCost = Iterable[tuple[str, int]]  # the text of its instructions, each with how often it runs
_COMPUTATION = re.compile(r'(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$')
_LOOP = re.compile(r' while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)')
_CALLED = re.compile(r'(?:calls|to_apply)=%?([\w.-]+)')
_COMPARED = re.compile(r'ROOT .* compare\(.*%([\w.-]+)\), direction=LT')
_COLLECTIVE = re.compile(
  r' = (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)(-start)?\('
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN = 2**63 - 1  # cycles, where the cost model has none
_ARRAY = re.compile(r'\b([a-z]+)(\d*)\w*\[([\d,]*)\]')


def parse_instructions(hlo: str) -> StepCost:
  """The instructions of one step; of a program that does not loop, all."""
  bodies, entry, inside = {}, '', []
  for line in hlo.splitlines():
    head = _COMPUTATION.match(line)
    if head:
      inside = bodies.setdefault(head['name'], [])
      entry = head['name'] if head['entry'] else entry
    elif line.startswith('  '):
      inside.append(line)
  steps = next(filter(None, map(_LOOP.search, bodies[entry])), None)
  yield from _called(bodies, steps[2] if steps else entry, 1)


def find_collectives(step: StepCost) -> dict[str, dict[str, int]]:
  """What the chips send each other in a step: by kind, how often, and the bytes that it gives one
  chip.
  """
  found: dict[str, dict[str, int]] = {}
  for line, times in step:
    match = _COLLECTIVE.search(line)
    if match:
      sizes = [_bytes(*array) for array in _ARRAY.findall(match[1])]
      # What only starts has its operand beside its result, except for all-reduce.
      moved = max(sizes) if match[3] and match[2] != 'all-reduce' else sum(sizes)
      kind = found.setdefault(match[2], {'count': 0, 'bytes': 0})
      kind['count'] += times
      kind['bytes'] += times * moved
  return found


def estimate_cycles(step: StepCost) -> int:
  """The cycles of all kernels of a step, by the compiler's cost model; none for those that it does
  not know.
  """
  known = ((int(count), times) for line, times in step for count in _CYCLES.findall(line))
  return sum(count * times for count, times in known if count < _UNKNOWN)


def _called(bodies: Mapping[str, Sequence[str]], name: str, times: int) -> StepCost:
  for line in bodies[name]:
    yield line, times
    loop = _LOOP.search(line)
    if loop:
      turns = times * _turns(bodies[loop[1]])
      yield from _called(bodies, loop[1], turns)
      yield from _called(bodies, loop[2], turns)
    for inner in _CALLED.findall(line):
      yield from _called(bodies, inner, times)


def _turns(condition: Sequence[str]) -> int:
  """How often a loop turns that counts up to a constant; 1 where it does not say."""
  text = '\n'.join(condition)
  compared = _COMPARED.search(text)
  limit = compared and re.search(rf'%{re.escape(compared[1])} = s32\[\]\S* constant\((\d+)\)', text)
  return int(limit[1]) if limit else 1


def _bytes(kind: str, bits: str, shape: str) -> int:
  """Bytes of one array, as in f32[8,128]; a pred takes one, a token none."""
  return (
    math.prod(map(int, filter(None, shape.split(','))))
    * {'pred': 8, 'token': 0}.get(kind, int(bits or 0))
    // 8
  )


# of a corpus that is not there yet; a reduced language of five million words has as many
_ROWS = 60_000
_MIB = 1 << 20
# libtpu itself divides by what it is given
_TOPOLOGY = re.compile(r'(\w+):[1-9]\d*(x[1-9]\d*){1,2}')


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip: bytes of memory, FLOP/s in bfloat16, bytes/s of its memory, cycles/s; what libtpu
  calls its set-up.
  """

  memory: int
  flops: float
  bandwidth: float
  clock: float
  setup: str = 'default'


# Memory, peak and bandwidth: docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e. The clock follows
# from the peak and the matrix units named there; that of v6e from the cycles that the compiler
# gives a large product and a large copy.
CHIPS = {
  'v4': Chip(32 << 30, 275e12, 1200e9, 1.05e9, 'megacore'),  # its two cores are one device
  'v5e': Chip(16 << 30, 197e12, 819e9, 1.5e9),
  'v5p': Chip(95 << 30, 459e12, 2765e9, 1.75e9),
  'v6e': Chip(32 << 30, 918e12, 1638e9, 1.75e9),
}


def compile_for_topology(configs: Mapping[str, RunConfig], topology: str) -> dict[str, Any]:
  """Compiles the training chunk of each recipe for a TPU and says what it takes of a chip.

  Args:
    configs: recipes by name.
    topology: chip and arrangement, as in `v5e:2x4`.

  Returns:
    `topology`, `chip` and, by name, `recipes`: what `describe` finds.

  Raises:
    InputError: libtpu is not installed, there is no such topology, or a recipe does not fit its
      devices.
  """
  chip, devices = _devices(topology)
  workers = min(len(configs), backend.count_cores())
  with (
    progress.track_progress('compiling', len(configs), 'recipes') as tick,
    futures.ThreadPoolExecutor(workers) as pool,
  ):
    found = {}
    for name, done in zip(
      configs, pool.map(lambda config: describe_step(config, chip, devices), configs.values())
    ):
      found[name] = done
      tick(len(found), _with_notes(name, done))
  return {'topology': topology, 'chip': dataclasses.asdict(chip), 'recipes': found}


def _with_notes(name: str, found: Mapping[str, Any]) -> str:
  """What is worth keeping of a recipe, should the others never be done: forty of them take an hour."""
  said = 'does not fit'
  if found['fits']:
    said = f'{found["bytes"]["total"] / _MIB:,.0f} MiB, {found["milliseconds"]:.2f} ms'
  return f'{name}: {said}; compiled in {found["compile_seconds"]:.0f} s'


def check_topology(found: Mapping[str, Any]) -> None:
  """Refuses what does not fit, after it has been printed.

  Raises:
    InputError: a recipe needs more memory than a chip has.
  """
  wrong = {name: point['refused'] for name, point in found['recipes'].items() if not point['fits']}
  if wrong:
    raise InputError(
      f'{", ".join(wrong)} on {found["topology"]}',
      '; '.join(wrong.values()),
      'lower batch_size, raise grad_accumulation_steps or logit_chunks, or take more or larger chips',
    )


def preflight_tables(found: Mapping[str, Any]) -> list[rich_table.Table]:
  """The same for a reader: a line a recipe; all that was found of a single one."""
  columns = [
    rich_table.Column(name, justify='right')
    for name in ('args', 'temps', 'total', 'share', 'sent', 'ms', 'Mtok/s', 'use')
  ]
  lines = rich_table.Table(
    rich_table.Column('recipe', no_wrap=True),
    *columns,
    box=box.SIMPLE,
    padding=0,
    title=f'A step on {found["topology"]}, of one chip: MiB of arguments, temporaries and in total, share of its '
    'memory, MiB sent; at best milliseconds, million tokens/s of all chips, utilisation',
  )
  for name, point in found['recipes'].items():
    lines.add_row(name, *(_cells(point) if point['fits'] else ['does', 'not', 'fit']))
  if len(found['recipes']) > 1:
    return [lines]
  facts = rich_table.Table('what', 'value', box=box.SIMPLE)
  for name, value in next(iter(found['recipes'].values())).items():
    for part, inner in value.items() if isinstance(value, dict) else [('', value)]:
      facts.add_row(
        f'{name} {part}'.strip(), f'{inner:,.4g}' if isinstance(inner, float) else str(inner)
      )
  return [lines, facts]


def _cells(point: Mapping[str, Any]) -> list[str]:
  used = point['bytes']
  sent = sum(kind['bytes'] for kind in point['collectives'].values())
  return [
    *(f'{used[part] / _MIB:,.0f}' for part in ('arguments', 'temporaries', 'total')),
    f'{used["total"] / used["chip"]:.1%}',
    f'{sent / _MIB:.1f}',
    f'{point["milliseconds"]:.2f}',
    f'{point["tokens_per_second"] / 1e6:.2f}',
    f'{point["utilisation"]:.1%}',
  ]


def describe_step(config: RunConfig, chip: Chip, devices: Sequence[jax.Device]) -> dict[str, Any]:
  """Compiles the chunk of one recipe.

  Returns:
    `mesh`, `chips`, `members`, `batch` of each, `corpus_rows`, `flops_per_step` (of one chip, the
    true count), `compile_seconds`, `fits`.
    What does not fit has `refused`, the compiler's words. What fits has of one chip `bytes`;
    `flops` and `bytes_accessed` (the compiler's counts of the chunk, each loop's body once: a step,
    where a step does not loop); `collectives` of a step (by kind, their `count` and the `bytes` of
    their results); `milliseconds` of its kernels. And of all chips `tokens_per_second` and
    `utilisation`, which follow from that time.

  Raises:
    InputError: the recipe does not fit the devices.
  """
  engine = program.build_program(config, devices)
  whole = sharding.replicated(engine.mesh)
  corpus, chips = _corpus(config, whole), engine.mesh.size
  shape = dataclasses.replace(config.model, max_length=corpus.length)
  rows = config.population.members * config.batch_size
  flops = flops_per_row(shape, config.mask)['actual'] * rows / chips
  before = time.monotonic()
  try:
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    compiled = engine.chunk.lower(engine.shapes, corpus, count).compile()
    found = {'fits': True} | _chip_share(compiled, chip)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    found = {'fits': False, 'refused': _explain_refusal(str(error))}
  if found['fits']:
    seconds = found['milliseconds'] / 1e3
    found |= {
      'tokens_per_second': rows * corpus.length / seconds,
      'utilisation': flops / seconds / chip.flops,
    }
  return {
    'mesh': dict(engine.mesh.shape),
    'chips': chips,
    'members': config.population.members,
    'batch': [config.batch_size, corpus.length],
    'corpus_rows': corpus.rows,
    'flops_per_step': flops,
    'compile_seconds': time.monotonic() - before,
  } | found


def _chip_share(compiled: jax.stages.Compiled, chip: Chip) -> dict[str, Any]:
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  if memory is None or not cost:
    raise InputError(
      'memory and cost of the step', 'none by this compiler', 'update jax and libtpu'
    )
  step = list(parse_instructions(compiled.as_text() or ''))
  parts = {
    'arguments': memory.argument_size_in_bytes,
    'temporaries': memory.temp_size_in_bytes,
    # what does not take the place of an argument
    'output': memory.output_size_in_bytes - memory.alias_size_in_bytes,
    'program': memory.generated_code_size_in_bytes,
  }
  return {
    'bytes': parts | {'total': sum(parts.values()), 'chip': chip.memory},
    'flops': cost['flops'],
    'bytes_accessed': cost['bytes accessed'],
    'collectives': find_collectives(step),
    'milliseconds': 1e3 * estimate_cycles(step) / chip.clock,
  }


def _explain_refusal(said: str) -> str:
  """The sentence of the compiler that says what does not fit."""
  sentence = re.search(r'[^:]*\bmemory\b.*?\.(?=\s|$)', said)
  return (sentence[0] if sentence else said.splitlines()[0]).strip()


def _corpus(config: RunConfig, where: jax.sharding.Sharding) -> Corpus:
  """The shape of the training rows: of the corpus that the recipe names, if it is there."""
  folder = epath.Path(config.corpus)
  if config.corpus and (folder / run_dir.MANIFEST).exists():
    manifest = run_setup.validate_corpus(config, folder)
    rows = config.subset.rows or manifest['splits']['train']['rows']
    length, kind, vocabulary = (manifest[name] for name in ('length', 'dtype', 'vocabulary'))
  else:
    rows, length, vocabulary = _ROWS, config.model.max_length, config.model.vocab_size
    kind = 'uint16' if vocabulary <= 1 << 16 else 'uint32'
  tokens = jax.ShapeDtypeStruct((rows, length), kind, sharding=where)
  return Corpus(typing.cast(jax.Array, tokens), vocabulary, 'absent')


def _devices(topology: str) -> tuple[Chip, Sequence[jax.Device]]:
  """The chip and the devices of a topology that is described, not there."""
  name = topology.partition(':')[0]
  known = 'give a chip and an arrangement, such as v4:2x2x2, v5e:2x4, v5p:2x2x2 or v6e:2x4'
  if name not in CHIPS:
    raise InputError(f'--topology={topology}', f'no chip {name!r} in {", ".join(CHIPS)}', known)
  if not _TOPOLOGY.fullmatch(topology):
    raise InputError(f'--topology={topology}', 'no arrangement of chips', known)
  if importlib.util.find_spec('libtpu') is None:
    raise InputError(
      f'--topology={topology}',
      'no compiler for TPUs: libtpu is not installed',
      "pip install 'minilm_jax[tpu]'",
    )
  backend.hide_accelerators()
  try:
    described = topologies.get_topology_desc(
      topology, platform='tpu', chip_config_name=CHIPS[name].setup
    )
  except jax.errors.JaxRuntimeError as error:
    raise InputError(f'--topology={topology}', str(error).splitlines()[0], known) from None
  return CHIPS[name], described.devices
