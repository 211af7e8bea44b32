"""Checks that memory, open files, threads and step time stay constant over ten thousand updates
with evaluations and saves.

    bash launch/endurance.sh [--updates=10000] [--folder=runs/endurance]

Runs the tiny recipe in a process of its own and looks at it once a second (Linux: /proc). The first
tenth is left out, where programs are compiled; what stands in the table are the medians of the nine
tenths after it. Memory may end 2% above the second tenth, the time of an update 10% (machines are
noisy), and open files and threads, which come and go with every save, not above the most of the
tenths before. Status 1 where one grows; endurance.png shows the course.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# What may be how much larger at the end, and than the most of how many tenths after the first.
ALLOWED = {
  'memory, MiB': (1.02, 1),
  'open files': (1.0, 4),
  'threads': (1.0, 4),
  'ms an update': (1.10, 1),
}


def command(folder: pathlib.Path, updates: int) -> list[str]:
  """A run that evaluates and saves a hundred times."""
  often = max(20, updates // 100 // 20 * 20)
  return [
    sys.executable,
    '-m',
    'minilm_jax',
    'pretrain',
    '--config=configs/tiny.py',
    f'--workdir={folder / "run"}',
    f'--config.num_steps={updates}',
    f'--config.eval.every={often}',
    f'--config.checkpoint.every={often}',
  ]


def looked(process: int) -> dict[str, float]:
  """What a process holds now."""
  place = pathlib.Path('/proc') / str(process)
  fields = dict(line.split(':', 1) for line in (place / 'status').read_text().splitlines())
  return {
    'memory, MiB': int(fields['VmRSS'].split()[0]) / 1024,
    'threads': int(fields['Threads']),
    'open files': len(os.listdir(place / 'fd')),
  }


def watched(arguments: list[str]) -> list[dict[str, float]]:
  """Runs it, and gives what it held second by second; ends the program where it fails."""
  found = []
  with subprocess.Popen(arguments, cwd=ROOT, env=os.environ | {'PYTHONPATH': str(ROOT)}) as process:
    while process.poll() is None:
      try:
        found.append(looked(process.pid))
      except (FileNotFoundError, ProcessLookupError, KeyError):  # it is just ending
        pass
      time.sleep(1)
  if process.returncode:
    sys.exit(process.returncode)
  return found


def speeds(metrics: pathlib.Path) -> list[float]:
  """Milliseconds an update of each line of training, whatever evaluation and saves took between
  lines included.
  """
  lines = [
    line for line in map(json.loads, metrics.read_text().splitlines()) if line['split'] == 'train'
  ]
  return [
    1000 * (after['seconds'] - before['seconds']) / (after['step'] - before['step'])
    for before, after in zip(lines, lines[1:], strict=False)
  ]


def tenths(values: list[float]) -> list[float]:
  """The medians of ten equal parts."""
  return [
    statistics.median(values[len(values) * n // 10 : len(values) * (n + 1) // 10])
    for n in range(10)
  ]


def draw(series: dict[str, list[float]], path: pathlib.Path) -> None:
  """One panel a quantity, over the course of the run."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  figure, panels = pyplot.subplots(len(series), 1, figsize=(7, 8), layout='constrained')
  for panel, (name, values) in zip(panels, series.items(), strict=True):
    panel.plot([n / len(values) for n in range(len(values))], values, linewidth=1)
    panel.set_ylabel(name)
    panel.set_ylim(0, 1.1 * max(values))
  panels[-1].set_xlabel('share of the run')
  figure.savefig(path, dpi=120)


def main() -> int:
  """Prints the table and draws the figure; the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
  parser.add_argument('--updates', type=int, default=10_000)
  parser.add_argument('--folder', type=pathlib.Path, default=ROOT / 'runs/endurance')
  asked = parser.parse_args()
  seen = watched(command(asked.folder, asked.updates))
  series = {name: [one[name] for one in seen] for name in ('memory, MiB', 'open files', 'threads')}
  series['ms an update'] = speeds(asked.folder / 'run/metrics.jsonl')
  grown = []
  print(f'{"tenth of the run":<18}', *(f'{n:>8}' for n in range(1, 11)))
  for name, values in series.items():
    parts = tenths(values)
    print(f'{name:<18}', *(f'{value:>8.1f}' for value in parts))
    factor, first = ALLOWED[name]
    before = max(parts[1 : 1 + first])
    if parts[-1] > factor * before:
      grown.append(f'{name} went from {before:.1f} to {parts[-1]:.1f}')
  draw(series, asked.folder / 'endurance.png')
  print('; '.join(grown) or f'nothing grows; {asked.folder / "endurance.png"}')
  return 1 if grown else 0


if __name__ == '__main__':
  sys.exit(main())
