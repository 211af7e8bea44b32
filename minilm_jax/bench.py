"""How fast a recipe trains on this machine: the very chunk that `pretrain` runs, on random rows.

Protocol: the first chunk compiles and is timed by itself, one more warms up untimed, then `repeats` chunks of `steps`
updates are timed and their median and range printed. What PyTorch needs for the same model is timed in between, repeat
by repeat, and what the machine could do at best right after. The share of the memory bandwidth is left out: XLA counts
the bytes of a loop's body once, however often it runs, and cannot say which of them a cache answers.
"""

import statistics
from typing import Any

import jax
from rich import table as rich_table

from minilm_jax import machine, peers, progress, stopwatch
from minilm_jax.config import RunConfig
from minilm_jax.errors import InputError
from minilm_jax.language import tokenizer
from minilm_jax.model import size


def bench(config: RunConfig, steps: int, repeats: int, against: str = '') -> dict[str, Any]:
  """Times the training step of a recipe.

  Args:
    against: 'torch' times the same model in PyTorch too, as the released code of paper 1 has it and at its best.

  Returns:
    tokens_per_second (median), milliseconds_per_step (median, lowest, highest), compile_seconds (with the first step;
    little where the program was compiled before), peak_bytes; flops_per_second by the true count, and utilisation,
    its share of peak_flops_per_second; bytes_per_second of memory; the machine and versions. With `against` also
    released_ and best_torch_ tokens_per_second and milliseconds_per_step, and our speed over theirs.

  Raises:
    InputError: nothing to time, a vocabulary of special ids alone, or nobody to be compared with.
  """
  check(config, steps, repeats)
  platform = jax.default_backend()
  peers.check(config, against, platform)
  load = machine.load()
  rows = stopwatch.random_rows(config)
  progress.say('compiling')
  ours, compiling = stopwatch.ours(config, rows)
  with peers.contestants(config, against, platform, rows) as others:
    seconds = stopwatch.interleaved({'': ours, **others}, steps, repeats, 'training')
    ways = {name: peer.name for name, peer in others.items()}
  peak_bytes = machine.peak_bytes()  # before the machine is measured, which takes memory too
  middle = statistics.median(seconds[''])
  rows_a_step = config.batch_size * config.population.members
  flops = size.flops_per_row(config.model, config.mask)['actual'] * rows_a_step / middle
  kind, side = machine.product()
  peak = machine.peak_flops_per_second(kind, side)
  found = _speed('', seconds[''], config) | {
      'compile_seconds': compiling,
      'peak_bytes': peak_bytes,
      'flops_per_second': flops,
      'utilisation': flops / peak,
      'peak_flops_per_second': peak,
      'peak_product': f'{kind} {side} x {side}',
      'bytes_per_second': machine.bytes_per_second(),
      'parameters': size.parameters(config.model)['total'],
      'members': config.population.members,
      'batch': [config.batch_size, config.model.max_length],
      'steps': steps,
      'repeats': repeats,
      'machine': machine.describe(),
      'load_before': load,
      'versions': machine.versions(*([against] if against else [])),
  }
  for name, way in ways.items():
    found |= _speed(f'{name}_', seconds[name], config)
    found |= {f'{name}_way': way, f'ours_over_{name}': statistics.median(seconds[name]) / middle}
  return found


def check(config: RunConfig, steps: int, repeats: int) -> None:
  """Refuses what gives nothing to time."""
  for name, value, least in (('--steps', steps, 1), ('--repeats', repeats, 1),
                             ('model.vocab_size', config.model.vocab_size, len(tokenizer.SPECIAL) + 1)):
    if value < least:
      raise InputError(f'{name}={value}', f'a value below {least}', f'give at least {least}')


def _speed(prefix: str, seconds: list[float], config: RunConfig) -> dict[str, Any]:
  middle = statistics.median(seconds)
  spread = {'median': 1e3 * middle, 'lowest': 1e3 * min(seconds), 'highest': 1e3 * max(seconds)}
  tokens = config.population.members * config.batch_size * config.model.max_length
  return {f'{prefix}tokens_per_second': tokens / middle, f'{prefix}milliseconds_per_step': spread}


def tables(found: dict[str, Any]) -> list[rich_table.Table]:
  """The same for a reader."""
  speed = rich_table.Table('', 'tokens/s', 'ms a step, median (lowest, highest)', 'ours is faster', title='Speed')
  for name, prefix in (('ours', ''), ('PyTorch, released', 'released_'), ('PyTorch, best', 'best_torch_')):
    if f'{prefix}tokens_per_second' in found:
      step = found[f'{prefix}milliseconds_per_step']
      times = f'{found[f"ours_over_{prefix[:-1]}"]:.2f} times' if prefix else ''
      speed.add_row(name, f'{found[f"{prefix}tokens_per_second"]:,.0f}',
                    f'{step["median"]:,.1f} ({step["lowest"]:,.1f}, {step["highest"]:,.1f})', times)
  facts = rich_table.Table('what', 'value', title='This machine and this recipe')
  for name, value in (
      ('compiling and the first step', f'{found["compile_seconds"]:.1f} s'),
      ('peak memory', f'{found["peak_bytes"] / 2**20:,.0f} MiB'),
      ('work', f'{found["flops_per_second"] / 1e9:,.1f} GFLOP/s'),
      (f'the best this machine does, {found["peak_product"]}', f'{found["peak_flops_per_second"] / 1e9:,.1f} GFLOP/s'),
      ('utilisation', f'{found["utilisation"]:.1%}'),
      ('memory bandwidth', f'{found["bytes_per_second"] / 1e9:,.1f} GB/s'),
      ('parameters', f'{found["parameters"]:,}'),
      ('members', str(found['members'])),
      ('batch of each', ' x '.join(map(str, found['batch']))),
      ('timed', f'{found["repeats"]} times {found["steps"]} steps'),
      *([('the best of PyTorch', found['best_torch_way'])] if 'best_torch_way' in found else []),
      ('machine', found['machine']),
      ('load in the minute before', f'{found["load_before"]:.2f}'),
      ('versions', ', '.join(f'{name} {version}' for name, version in found['versions'].items()))):
    facts.add_row(name, value)
  return [speed, facts]
