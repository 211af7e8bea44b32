"""Checks that memory, open files, threads and step time do not grow over ten thousand steps.

    bash launch/endurance.sh [--updates=10000] [--folder=runs/endurance]

Trains the tiny recipe in a process, with a hundred evaluations and saves. Samples the process once
a second (Linux: /proc) and prints the median of each tenth of the run. The first tenth contains
compilation and is not compared. `LIMITS` bounds the last tenth relative to earlier ones. Draws
endurance.png and exits with status 1 if a quantity grows.
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
# The largest ratio of the last tenth to the maximum of the given number of tenths after the first.
# Open files and threads vary with every save. Step times vary with the load of the machine.
LIMITS = {
  'memory, MiB': (1.02, 1),
  'open files': (1.0, 4),
  'threads': (1.0, 4),
  'ms a step': (1.10, 1),
}


def make_command(folder: pathlib.Path, num_steps: int) -> list[str]:
  """Returns the command of a run that evaluates and saves a hundred times."""
  every = max(20, num_steps // 100 // 20 * 20)
  return [
    sys.executable,
    '-m',
    'minilm_jax',
    'pretrain',
    '--config=configs/tiny.py',
    f'--workdir={folder / "run"}',
    f'--config.num_steps={num_steps}',
    f'--config.eval.every={every}',
    f'--config.checkpoint.every={every}',
  ]


def sample_process(process_id: int) -> dict[str, float]:
  """Returns the resources that a process holds now."""
  folder = pathlib.Path('/proc') / str(process_id)
  fields = dict(line.split(':', 1) for line in (folder / 'status').read_text().splitlines())
  return {
    'memory, MiB': int(fields['VmRSS'].split()[0]) / 1024,
    'threads': int(fields['Threads']),
    'open files': len(os.listdir(folder / 'fd')),
  }


def run_and_sample(command: list[str]) -> list[dict[str, float]]:
  """Runs a command and returns one sample a second; exits with the status of a failed command."""
  samples = []
  with subprocess.Popen(command, cwd=ROOT, env=os.environ | {'PYTHONPATH': str(ROOT)}) as process:
    while process.poll() is None:
      try:
        samples.append(sample_process(process.pid))
      except (FileNotFoundError, ProcessLookupError, KeyError):  # the process is ending
        pass
      time.sleep(1)
  if process.returncode:
    sys.exit(process.returncode)
  return samples


def read_step_times(metrics: pathlib.Path) -> list[float]:
  """Returns milliseconds a step between training lines, with evaluations and saves included."""
  lines = [
    line for line in map(json.loads, metrics.read_text().splitlines()) if line['split'] == 'train'
  ]
  return [
    1000 * (after['seconds'] - before['seconds']) / (after['step'] - before['step'])
    for before, after in zip(lines, lines[1:], strict=False)
  ]


def compute_medians(values: list[float]) -> list[float]:
  """Returns the medians of ten equal parts."""
  return [
    statistics.median(values[len(values) * n // 10 : len(values) * (n + 1) // 10])
    for n in range(10)
  ]


def draw(series: dict[str, list[float]], path: pathlib.Path) -> None:
  """Draws one panel a quantity over the course of the run."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  figure, panels = pyplot.subplots(len(series), 1, figsize=(7, 8), layout='constrained')
  for panel, (name, values) in zip(panels, series.items(), strict=True):
    panel.plot([n / len(values) for n in range(len(values))], values, linewidth=1)
    panel.set_ylabel(name)
    panel.set_ylim(0, 1.1 * max(values))
  panels[-1].set_xlabel('fraction of the run')
  figure.savefig(path, dpi=120)


def main() -> int:
  """Runs the campaign, prints the table, draws the figure and returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
  parser.add_argument('--updates', type=int, default=10_000, help='training steps')
  parser.add_argument('--folder', type=pathlib.Path, default=ROOT / 'runs/endurance')
  args = parser.parse_args()
  samples = run_and_sample(make_command(args.folder, args.updates))
  series = {
    name: [sample[name] for sample in samples] for name in ('memory, MiB', 'open files', 'threads')
  }
  series['ms a step'] = read_step_times(args.folder / 'run/metrics.jsonl')
  faults = []
  print(f'{"tenth of the run":<18}', *(f'{n:>8}' for n in range(1, 11)))
  for name, values in series.items():
    medians = compute_medians(values)
    print(f'{name:<18}', *(f'{value:>8.1f}' for value in medians))
    max_ratio, num_tenths = LIMITS[name]
    baseline = max(medians[1 : 1 + num_tenths])
    if medians[-1] > max_ratio * baseline:
      faults.append(f'{name} grows from {baseline:.1f} to {medians[-1]:.1f}')
  figure = args.folder / 'endurance.png'
  draw(series, figure)
  print('; '.join(faults) or f'no quantity grows; see {figure}')
  return 1 if faults else 0


if __name__ == '__main__':
  sys.exit(main())
