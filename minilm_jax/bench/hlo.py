"""Reads collectives and estimated cycles from the text of a compiled program (optimised HLO)."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

Instructions = Iterable[tuple[str, int]]  # texts of HLO instructions with their number of runs
# Patterns in the text of an optimised HLO program.
_COMPUTATION = re.compile(r'(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$')
_LOOP = re.compile(r' while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)')
_CALL = re.compile(r'(?:calls|to_apply)=%?([\w.-]+)')
_COMPARISON = re.compile(r'ROOT .* compare\(.*%([\w.-]+)\), direction=LT')
_COLLECTIVE = re.compile(
  r' = (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)(-start)?\('
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# Kernels of a GPU by kind: a pattern of their instruction, searched in this order.
GPU_KERNELS = {
  'cuBLAS': re.compile(r'custom_call_target="__cublas'),
  'cuDNN': re.compile(r'custom_call_target="__cudnn'),
  'Triton products': re.compile(r'"kind":"__triton(_nested)?_gemm'),
  'Triton': re.compile(r'"kind":"__triton'),
  'sorts': re.compile(r' sort\(|custom_call_target="__cub'),
  'scatters': re.compile(r' fusion\(.*calls=%\S*scatter'),
  'other calls': re.compile(r' custom-call\('),
  'fusions': re.compile(r' fusion\('),
}
_UNKNOWN_CYCLES = 2**63 - 1
_ARRAY = re.compile(r'\b([a-z]+)(\d*)\w*\[([\d,]*)\]')


def parse_instructions(hlo: str) -> Instructions:
  """Yields the instructions of one step, or of the whole program if it has no loop."""
  computations, entry, lines = {}, '', []
  for line in hlo.splitlines():
    head = _COMPUTATION.match(line)
    if head:
      lines = computations.setdefault(head['name'], [])
      entry = head['name'] if head['entry'] else entry
    elif line.startswith('  '):
      lines.append(line)
  loop = next(filter(None, map(_LOOP.search, computations[entry])), None)
  yield from _expand_computation(computations, loop[2] if loop else entry, 1)


def _expand_computation(
  computations: Mapping[str, Sequence[str]], name: str, runs: int
) -> Instructions:
  """Yields the instructions of a computation and of the computations that it calls."""
  for line in computations[name]:
    yield line, runs
    loop = _LOOP.search(line)
    if loop:
      loop_runs = runs * _count_iterations(computations[loop[1]])
      yield from _expand_computation(computations, loop[1], loop_runs)
      yield from _expand_computation(computations, loop[2], loop_runs)
    for called in _CALL.findall(line):
      yield from _expand_computation(computations, called, runs)


def _count_iterations(condition: Sequence[str]) -> int:
  """Returns the iterations of a loop that counts up to a constant; 1 for any other loop."""
  text = '\n'.join(condition)
  comparison = _COMPARISON.search(text)
  limit = comparison and re.search(
    rf'%{re.escape(comparison[1])} = s32\[\]\S* constant\((\d+)\)', text
  )
  return int(limit[1]) if limit else 1


def find_collectives(step: Instructions) -> dict[str, dict[str, int]]:
  """Returns the collectives of a step by kind: their `count`, and the result `bytes` on a chip."""
  collectives: dict[str, dict[str, int]] = {}
  for line, runs in step:
    match = _COLLECTIVE.search(line)
    if match:
      sizes = [_count_bytes(*array) for array in _ARRAY.findall(match[1])]
      # The result of a -start instruction includes its operand, except for all-reduce.
      size = max(sizes) if match[3] and match[2] != 'all-reduce' else sum(sizes)
      totals = collectives.setdefault(match[2], {'count': 0, 'bytes': 0})
      totals['count'] += runs
      totals['bytes'] += runs * size
  return collectives


def _count_bytes(dtype: str, bits: str, shape: str) -> int:
  """Returns the bytes of an array such as f32[8,128]; an entry of a pred has one, a token none."""
  size = math.prod(map(int, filter(None, shape.split(','))))
  return size * {'pred': 8, 'token': 0}.get(dtype, int(bits or 0)) // 8


def estimate_cycles(step: Instructions) -> int:
  """Returns the cycles of all kernels of a step that the cost model of the compiler knows."""
  cycles = ((int(text), runs) for line, runs in step for text in _CYCLES.findall(line))
  return sum(count * runs for count, runs in cycles if count < _UNKNOWN_CYCLES)


def count_gpu_kernels(step: Instructions) -> dict[str, int]:
  """Returns the number of kernels of a step by kind (`GPU_KERNELS`)."""
  counts = dict.fromkeys(GPU_KERNELS, 0)
  for line, runs in step:
    kind = next((kind for kind, pattern in GPU_KERNELS.items() if pattern.search(line)), None)
    if kind:
      counts[kind] += runs
  return counts
