"""Compiles the published recipes for absent GPUs, and writes one line a compilation.

Usage: python tests/campaigns/preflight_table.py FOLDER [TOPOLOGY ...]

The topologies are `h100` and `a100` by default. Every recipe compiles in float32 and bfloat16, alone
and as a population of eight, with default and with deterministic kernels. FOLDER gets `steps.jsonl`
with one line a compilation, and `steps.csv`. A repeated call continues.
"""

import csv
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from configs import paper1, paper2_models, recommended
from minilm_jax.bench import preflight
from minilm_jax.core import progress, recipe, run_dir

DTYPES, MEMBERS, KERNELS = ('float32', 'bfloat16'), (1, 8), (False, True)
LARGEST = 'e256-h256-f1024-a8-l4'
COLUMNS = ('topology', 'recipe', 'dtype', 'members', 'deterministic')
COUNTS = ('arguments', 'temporaries', 'total')


def list_recipes() -> Iterator[tuple[str, Any]]:
  """Yields name and recipe of each point."""
  for module, names in (
    (paper1, list(paper1.RUNS)),
    (recommended, [*recommended.RUNS, LARGEST]),
    (paper2_models, list(paper2_models.RUNS)),
  ):
    for name in names:
      yield f'{module.__name__.removeprefix("configs.")}:{name}', module.get_config(name)


def compile_missing(folder: pathlib.Path, topologies: list[str]) -> None:
  """Compiles what `steps.jsonl` lacks, and appends a line after each compilation."""
  lines = folder / 'steps.jsonl'
  done = {tuple(line[name] for name in COLUMNS) for line in run_dir.read_lines(lines)}
  points = list(itertools.product(KERNELS, MEMBERS, DTYPES, topologies, list_recipes()))
  with progress.track_progress('compiling', len(points), 'programs') as update:
    for count, (deterministic, members, dtype, topology, (name, config)) in enumerate(points):
      key = (topology, name, dtype, members, deterministic)
      if key in done:
        continue
      config.model.dtype, config.population.members = dtype, members
      target = preflight.describe_target(topology, deterministic)
      step = preflight.describe_step(recipe.resolve(config, 'pretrain'), target)
      run_dir.append_line(lines, dict(zip(COLUMNS, key, strict=True)) | step)
      update(count + 1, f'{name} on {topology}, {dtype}, {members} members')


def write_table(folder: pathlib.Path) -> None:
  """Writes `steps.csv`: MiB of a device, kernels by kind, and the reason of a refusal."""
  steps = list(run_dir.read_lines(folder / 'steps.jsonl'))
  kinds = list(next(step['kernels'] for step in steps if 'kernels' in step))
  rows = [
    [
      *(step[name] for name in COLUMNS),
      'yes' if step['fits'] else step['refused'],
      *(f'{step["bytes"][name] / 2**20:.0f}' if 'bytes' in step else '' for name in COUNTS),
      *(step.get('kernels', {}).get(kind, '') for kind in kinds),
    ]
    for step in steps
  ]
  header = [*COLUMNS, 'fits', *(f'{name}_mib' for name in COUNTS), *kinds]
  with open(folder / 'steps.csv', 'w', newline='', encoding='utf-8') as file:
    csv.writer(file).writerows([header, *rows])
  misfits = [step for step in steps if not step['fits']]
  print(json.dumps({'programs': len(steps), 'misfits': len(misfits)}))


if __name__ == '__main__':
  if len(sys.argv) < 2:
    sys.exit(__doc__)
  output = pathlib.Path(sys.argv[1])
  output.mkdir(parents=True, exist_ok=True)
  compile_missing(output, sys.argv[2:] or ['h100', 'a100'])
  write_table(output)
