"""Measures speed, populations, latency and memory of this machine, for one file to send.

Each part is a command of `minilm` in a process of its own. So a part that fails leaves the results
of the others. A failed part keeps the end of its error message. A repeated check keeps the results
of the same GPU and runs the other parts.
"""

import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from rich import console as rich_console
from rich import table as rich_table

from minilm_jax.bench import gpus
from minilm_jax.core import files, progress
from minilm_jax.core.errors import TEXT

RESULT, TABLE = 'device-check.json', 'device-check.txt'
_MAX_ERROR_CHARACTERS = 2000
_SMALL, _LARGE = 'magic-bee-26', 'genial-voice-1'  # (32,32,64,1) and (256,256,1024,8) of paper 1
_TIMING = ('--steps=20', '--repeats=7')
_GPU_QUERY = 'name,driver_version,memory.total,power.limit'


@dataclasses.dataclass(frozen=True)
class Part:
  """A command of `minilm`.

  Attributes:
    name: Short description.
    arguments: The command and its flags, without `--json`.
    target: Aim of the project for the measured value; '' without one.
  """

  name: str
  arguments: Sequence[str]
  target: str = ''

  @property
  def command(self) -> list[str]:
    """The words of the command line, which identify a part in the results."""
    return ['minilm', *self.arguments]


def _bench(recipe: str, *flags: str) -> list[str]:
  return ['bench', f'--config=configs/paper1.py:{recipe}', *_TIMING, *flags]


PARTS = (
  *(
    Part(f'{recipe}, {dtype}', _bench(recipe, f'--config.model.dtype={dtype}'), target)
    for recipe, target in ((_SMALL, ''), (_LARGE, 'utilisation above 15% in bfloat16'))
    for dtype in ('float32', 'bfloat16')
  ),
  *(
    Part(
      f'{recipe}, bfloat16, deterministic',
      _bench(recipe, '--config.model.dtype=bfloat16', '--deterministic'),
    )
    for recipe in (_SMALL, _LARGE)
  ),
  Part(
    f'{_LARGE}, bfloat16, 8 members',
    _bench(_LARGE, '--config.model.dtype=bfloat16', '--config.population.members=8'),
    'utilisation above 30%',
  ),
  *(
    Part(
      f'{_SMALL}, batch 64, {members} members, {strategy}',
      _bench(
        _SMALL,
        '--config.batch_size=64',
        f'--config.population.members={members}',
        f'--config.population.strategy={strategy}',
      ),
      target,
    )
    for members, strategy, target in (
      (1, 'auto', ''),
      (8, 'map', ''),
      (8, 'vmap', 'more tokens/s than in turns (map)'),
    )
  ),
  Part(
    'committee of 5',
    ['latency', '--config=configs/paper2_models.py:conv2-k3-d64@96,bert-6@96', '--size=5'],
    '5 members, vmapped: at most 1.5 times the latency of a member',
  ),
  Part(
    f'{_SMALL}, bfloat16, against PyTorch',
    # The best PyTorch step uses bfloat16 on a GPU.
    _bench(
      _SMALL, '--config.model.dtype=bfloat16', '--config.batch_size=64', '--compare_with=torch'
    ),
    '10 times the released code, 3 times the best PyTorch',
  ),
)


def check_device(workdir: epath.PathLike, parts: Iterable[Part] = PARTS) -> dict[str, Any]:
  """Runs all parts, one after another, and writes their results after each part.

  Args:
    workdir: Folder for `device-check.json` and `device-check.txt`.
    parts: The parts.

  Returns:
    `driver` describes the GPU ('' without nvidia-smi). `parts` has, for each part: its name,
    command, target, seconds, and the `result` of the command or its `error`.
  """
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  check: dict[str, Any] = {'driver': _describe_driver(), 'parts': []}
  parts = [*parts, *_list_preflight_parts(check['driver'])]
  known = _read_results(folder, check['driver'])
  with progress.track_progress('device check', len(parts), 'parts') as update:
    for part in parts:
      update(len(check['parts']), f'now {part.name}')
      check['parts'].append(known.get(' '.join(part.command)) or run_part(part))
      files.write_json(folder / RESULT, check)
      files.write_bytes(folder / TABLE, _render_text(make_check_tables(check)).encode())
    update(len(parts))
  return check


def _read_results(folder: epath.Path, driver: str) -> dict[str, dict[str, Any]]:
  """Returns the parts with a result of an earlier check of this GPU, by their command."""
  if not (folder / RESULT).exists():
    return {}
  form = {'driver': TEXT, 'parts': [{'name': TEXT, 'command': [TEXT]}]}
  check = files.read_object(folder / RESULT, f'the earlier check in {folder}', form)
  if check['driver'] != driver:
    return {}
  known = {' '.join(part['command']): part for part in check['parts'] if 'result' in part}
  progress.log(
    f'{folder} has the results of {len(known)} parts: give another --workdir to measure them again'
  )
  return known


def run_part(part: Part) -> dict[str, Any]:
  """Runs the command of a part; returns its result, or the end of its error message."""
  started = time.monotonic()
  # Recipes such as configs/paper1.py lie beside the package.
  root = pathlib.Path(__file__).parents[2]
  path = os.pathsep.join(filter(None, (str(root), os.environ.get('PYTHONPATH', ''))))
  process = subprocess.run(
    [sys.executable, '-m', 'minilm_jax', *part.arguments, '--json'],
    cwd=root,
    env={**os.environ, 'PYTHONPATH': path},
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    errors='replace',
    check=False,
  )
  line = {
    'name': part.name,
    'command': part.command,
    'target': part.target,
    'seconds': time.monotonic() - started,
  }
  try:
    if process.returncode == 0:
      return line | {'result': json.loads(process.stdout)}
    error = process.stderr
  except ValueError as failure:
    error = f'{failure}: {process.stdout}'
  text = error.strip()[-_MAX_ERROR_CHARACTERS:] or 'no message'
  return line | {'error': f'exit status {process.returncode}: {text}'}


def _list_preflight_parts(driver: str) -> list[Part]:
  """Returns preflights of the measured recipes for a GPU of the table, to compare their memory."""
  words = re.findall(r'\w+', driver.lower().replace('rtx ', 'rtx'))
  topologies = [name for name in gpus.GPUS if name in words]
  return [
    Part(
      f'preflight of {recipe}, bfloat16',
      [
        'preflight',
        f'--config=configs/paper1.py:{recipe}',
        '--config.model.dtype=bfloat16',
        f'--topology={name}',
      ],
      'the peak memory of the run; a preflight has 60,000 rows of corpus, the run 4,096',
    )
    for name in topologies[:1]
    for recipe in (_SMALL, _LARGE)
  ]


def _describe_driver() -> str:
  """Returns name, driver, memory and power limit of each NVIDIA GPU; '' without nvidia-smi."""
  if not shutil.which('nvidia-smi'):
    return ''
  process = subprocess.run(
    ['nvidia-smi', f'--query-gpu={_GPU_QUERY}', '--format=csv,noheader'],
    capture_output=True,
    text=True,
    check=False,
  )
  return process.stdout.strip()


def make_check_tables(check: Mapping[str, Any]) -> list[rich_table.Table]:
  """Returns a table of all parts, and a table of their targets and errors."""
  numbers = rich_table.Table('part', 'quantity', 'value', title=check['driver'] or None)
  notes = rich_table.Table('part', 'target or error')
  for part in check['parts']:
    for quantity, value in list_values(part.get('result', {})):
      numbers.add_row(part['name'], quantity, value)
    for note in filter(None, (part['target'], part.get('error', ''))):
      notes.add_row(part['name'], note)
  return [numbers, notes]


def list_values(result: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns the main quantities of a result of `bench`, `latency` or `preflight` as text."""
  if 'rows' in result:
    return [
      (
        f'{row["name"]}, batch {row["batch"]}',
        f'{row["milliseconds"]["median"]:.3f} ms, {row["over_member"]:.2f} of a member',
      )
      for row in result['rows']
    ]
  if 'recipes' in result:
    return [
      ('memory by preflight', f'{step["bytes"]["total"] / 2**20:,.0f} MiB')
      for step in result['recipes'].values()
      if 'bytes' in step
    ]
  formats = {
    'milliseconds_per_step': ('ms a step', lambda times: f'{times["median"]:.2f}'),
    'tokens_per_second': ('tokens/s', lambda number: f'{number:,.0f}'),
    'utilisation': ('utilisation', lambda share: f'{share:.1%}'),
    'peak_bytes': ('peak memory', lambda size: f'{size / 2**20:,.0f} MiB'),
    'compile_seconds': ('compilation and first step', lambda seconds: f'{seconds:.1f} s'),
    'ours_over_released': ('speed over released PyTorch', lambda ratio: f'{ratio:.2f}'),
    'ours_over_best_torch': ('speed over best PyTorch', lambda ratio: f'{ratio:.2f}'),
    'machine': ('machine', str),
    'versions': ('versions', lambda v: ', '.join(f'{name} {text}' for name, text in v.items())),
  }
  return [(label, text(result[key])) for key, (label, text) in formats.items() if key in result]


def _render_text(tables: Iterable[rich_table.Table]) -> str:
  text = io.StringIO()
  console = rich_console.Console(width=140, file=text, markup=False, emoji=False, highlight=False)
  for table in tables:
    console.print(table)
  return text.getvalue()
