"""Kills commands at random moments, restarts them and compares results with uninterrupted runs.

    bash launch/kill.sh [--minutes=20] [--seed=0] [--only=pretrain,corpus]

Each command first runs uninterrupted. Then the commands run in turn, each in a new folder, until
the time is over. A trial kills the process group of its command up to three times and then lets the
command finish. Its folder must equal the uninterrupted one: all bytes of all files, all bits of all
arrays of checkpoints, and no leftover temporary files. Fields that depend on time, speed or paths
(`VOLATILE_FIELDS`) are not compared. TensorBoard events are compared by their scalars, because
events contain times. Prints a table of kills, folders that differ and seconds lost a kill. Exits
with status 1 if a folder differs, and keeps that folder.

A kill is sent at one of these moments:

- `start`: in the first 0.3 seconds;
- `random`: at a uniformly drawn time;
- `saving`: during the save of a checkpoint;
- `writing`: while a file has its temporary name;
- `growing`: right after a line is appended to a log;
- `signal`: at a uniformly drawn time, with SIGTERM in place of SIGKILL.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))  # a program has its own folder there, not the checkout

from tests import eventfile  # noqa: E402

# A repeated moment is drawn more often.
MOMENTS = ('start', 'random', 'random', 'saving', 'writing', 'growing', 'signal')
MAX_KILLS = 3  # a trial
MAX_START_SECONDS = 0.3
POLL_SECONDS = 0.001
VOLATILE_FIELDS = (
  'seconds',
  'tokens_per_second',
  'processor_seconds',
  'milliseconds',
  'load_before',
  'corpus_folder',
  'corpus_link',
  'checkpoint_link',
  'commit_timestamp_nsecs',
  'init_timestamp_nsecs',
  'corpus',
  'path',
  'workdir',
)
# Figures and tables of a report contain times and speeds; only their names are compared.
REPORT_SUFFIXES = ('.html', '.svg', '.png', '.csv')
PAIRS = [
  ('the dog eats a bone .', 'the dog eat a bone .'),
  ('a small cat sleeps .', 'a small cats sleeps .'),
]
SCHEDULE = (
  '--config.num_steps=240',
  '--config.log.every=10',
  '--config.eval.every=40',
  '--config.eval.first_at=10',
  '--config.checkpoint.every=20',
)
SMALL_MODEL = ('--config.model.embedding_size=32', '--config.model.hidden_size=32')


def list_commands(reference: pathlib.Path) -> dict[str, tuple[str, ...]]:
  """Returns arguments without --workdir by name of a command.

  A command needs only the results of earlier ones in the folder `reference`.
  """
  corpus, run = f'--config.corpus={reference}/corpus', f'--checkpoint={reference}/pretrain'
  pretrain = ('pretrain', '--config=configs/tiny.py', corpus, *SMALL_MODEL, *SCHEDULE)
  return {
    'corpus': ('corpus', '--config=configs/tiny.py:corpus', '--config.workers=2'),
    'pretrain': pretrain,
    'population': (*pretrain, '--config.population.members=2'),
    'continued': (*pretrain, f'--init_from={reference}/pretrain@220', '--init_optimizer'),
    'sweep': (
      'sweep',
      '--config=configs/cpu_grid.py:e32-h32-f64-a8-l1,e32-h32-f64-a8-l2',
      corpus,
      *SCHEDULE,
      '--config.model.vocab_size=512',
      '--config.num_steps=80',
      '--config.population.members=2',
    ),
    'finetune': (
      'finetune',
      '--config=configs/paper1_tasks.py:microworld/acceptability,microworld/sentiment',
      run,
      '--with_scratch',
      '--config.seeds=0,1',
      '--config.task.max_train_examples=512',
      '--config.epochs=3',
      '--config.predictions=True',
      '--config.save_classifiers=True',
    ),
    'minimal pairs': ('evaluate', run, f'--pairs={reference}/pairs.jsonl'),
    'report': ('report', *(f'{reference}/{name}' for name in ('pretrain', 'finetune', 'sweep'))),
  }


def start_command(arguments: Sequence[str], folder: pathlib.Path) -> subprocess.Popen:
  """Starts a command in a new process group; its output goes to a log next to `folder`."""
  words = [sys.executable, '-m', 'minilm_jax', *arguments, f'--workdir={folder}']
  with open(folder.parent / f'{folder.name}.log', 'ab') as log:
    return subprocess.Popen(
      words,
      cwd=ROOT,
      stdout=log,
      stderr=log,
      start_new_session=True,
      env=os.environ | {'PYTHONPATH': str(ROOT)},
    )


def inspect_folder(folder: pathlib.Path) -> tuple[set[str], int]:
  """Returns the moments that temporary names in a folder imply, and the bytes of its logs."""
  moments, log_bytes = set(), 0
  for parent, names, files in os.walk(folder):
    moments |= {'saving' for name in names if 'orbax-checkpoint-tmp' in name}
    moments |= {'writing' for name in (*names, *files) if name.endswith('.partial')}
    for name in files:
      if name.endswith('.jsonl'):
        try:
          log_bytes += os.stat(os.path.join(parent, name)).st_size
        except FileNotFoundError:
          pass
  return moments, log_bytes


def wait_for_moment(
  process: subprocess.Popen, folder: pathlib.Path, moment: str, delay: float
) -> bool:
  """Waits for a moment of a running command.

  Args:
    process: the running command.
    folder: its work directory.
    moment: an element of MOMENTS.
    delay: seconds to wait before a drawn time; other moments are awaited after a part of it.

  Returns:
    False if the process ended first.
  """
  start, last_log_bytes = time.monotonic(), None
  while process.poll() is None:
    needs_files = moment in ('saving', 'writing', 'growing')
    moments, log_bytes = inspect_folder(folder) if needs_files else (set(), 0)
    elapsed = time.monotonic() - start
    if not needs_files:
      if elapsed >= delay:
        return True
    elif moment in moments and elapsed >= delay / 4:
      return True
    elif moment == 'growing' and last_log_bytes is not None:
      if log_bytes > last_log_bytes and elapsed >= delay / 2:
        return True
    last_log_bytes = log_bytes
    time.sleep(POLL_SECONDS)
  return False


def kill(process: subprocess.Popen, moment: str) -> int:
  """Kills the process group of a command and returns its exit status."""
  os.killpg(process.pid, signal.SIGTERM if moment == 'signal' else signal.SIGKILL)
  return process.wait()


def drop_volatile_fields(value: Any) -> Any:
  """Returns a JSON value without VOLATILE_FIELDS at any depth."""
  if isinstance(value, dict):
    items = ((name, inner) for name, inner in value.items() if name not in VOLATILE_FIELDS)
    return {name: drop_volatile_fields(inner) for name, inner in items}
  return [drop_volatile_fields(inner) for inner in value] if isinstance(value, list) else value


def read_contents(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the comparable content of each file and checkpoint of a folder by relative path."""
  contents: dict[str, Any] = {}
  for path in sorted(folder.rglob('*')):
    name = str(path.relative_to(folder))
    if 'checkpoints/' in name:
      if path.name == 'default' and path.is_dir():
        contents[name] = read_arrays(path)
    elif 'tfevents' in name:  # a restart adds a file, whose name contains the number of starts
      run = name.rpartition('events/')[0]
      contents[f'{run}events'] = eventfile.read_scalars(folder / run)
    elif path.is_file() and path.suffix == '.json':
      contents[name] = drop_volatile_fields(json.loads(path.read_text()))
    elif path.is_file() and path.suffix == '.jsonl':
      lines = path.read_text().splitlines()
      contents[name] = [drop_volatile_fields(json.loads(line)) for line in lines]
    elif path.is_file():
      contents[name] = None if path.suffix in REPORT_SUFFIXES else path.read_bytes()
  return contents


def read_arrays(path: pathlib.Path) -> dict[str, tuple]:
  """Returns shape, type and bytes of each array of a checkpoint, independent of the devices."""
  import orbax.checkpoint as ocp
  from absl import logging

  logging.set_verbosity(logging.FATAL)  # orbax logs every checkpoint that it reads
  with ocp.PyTreeCheckpointer() as reader:
    names = reader.metadata(path).item_metadata.tree
    restore_args = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    arrays = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=restore_args))
  return {name: (array.shape, str(array.dtype), array.tobytes()) for name, array in arrays.items()}


def compare(expected: dict[str, Any], actual: dict[str, Any]) -> list[str]:
  """Returns the difference of two folders at each path."""
  return [
    *(f'{name}: missing' for name in sorted(expected.keys() - actual.keys())),
    *(f'{name}: unexpected' for name in sorted(actual.keys() - expected.keys())),
    *(
      f'{name}: differs'
      for name in sorted(expected.keys() & actual.keys())
      if expected[name] != actual[name]
    ),
  ]


def run_trial(
  arguments: Sequence[str], folder: pathlib.Path, seconds: float, generator: random.Random
) -> Iterator[tuple[str, str]]:
  """Kills a command up to MAX_KILLS times and lets it finish.

  Args:
    arguments: the command without --workdir.
    folder: its work directory.
    seconds: duration of the uninterrupted command.
    generator: draws the number of kills and their moments.

  Yields:
    The moment of each kill, or 'finish', and a wrong exit status as text or ''.
  """
  for _ in range(generator.randint(1, MAX_KILLS)):
    moment = generator.choice(MOMENTS)
    process = start_command(arguments, folder)
    delay = (MAX_START_SECONDS if moment == 'start' else seconds) * generator.random()
    if not wait_for_moment(process, folder, moment, delay):
      return
    status = kill(process, moment)
    is_wrong = moment == 'signal' and status not in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
    yield moment, f'status {status} after SIGTERM' if is_wrong else ''
  status = start_command(arguments, folder).wait()
  if status:
    yield 'finish', f'status {status}'


def run_references(
  folder: pathlib.Path, only: list[str]
) -> dict[str, tuple[float, dict[str, Any]]]:
  """Runs commands uninterrupted, up to the last one in `only`, in subfolders of `folder`.

  Returns:
    Seconds and contents of each command in `only`, or of all commands if `only` is empty.

  Raises:
    SystemExit: a command failed.
  """
  pairs = [{'sentence_good': good, 'sentence_bad': bad} for good, bad in PAIRS * 40]
  (folder / 'pairs.jsonl').write_text(''.join(json.dumps(pair) + '\n' for pair in pairs))
  commands = list_commands(folder)
  selected = [name for name in commands if not only or name in only]
  references = {}
  for name in list(commands)[: list(commands).index(selected[-1]) + 1]:
    workdir = folder / name.replace(' ', '-')
    for _ in range(2):  # the first run fills the compilation cache, the second is timed
      shutil.rmtree(workdir, ignore_errors=True)
      start = time.monotonic()
      if start_command(commands[name], workdir).wait():
        print((workdir.parent / f'{workdir.name}.log').read_text(), file=sys.stderr)
        sys.exit(1)
    seconds = time.monotonic() - start
    print(f'{name}: {seconds:.1f} s uninterrupted', flush=True)
    if name in selected:
      references[name] = seconds, read_contents(workdir)
  return references


def run_campaign(minutes: float, seed: int, only: list[str], folder: pathlib.Path) -> int:
  """Runs trials for a number of minutes, prints their results and returns the exit status."""
  (folder / 'reference').mkdir(parents=True)
  references = run_references(folder / 'reference', only)
  names, commands = list(references), list_commands(folder / 'reference')
  generator = random.Random(seed)
  kills, lost_seconds = collections.Counter(), collections.defaultdict(list)
  differing = collections.Counter()
  deadline, number = time.monotonic() + 60 * minutes, 0
  while time.monotonic() < deadline:
    name, workdir = names[number % len(names)], folder / f'trial-{number}'
    seconds, expected = references[name]
    start = time.monotonic()
    events = list(run_trial(commands[name], workdir, seconds, generator))
    elapsed, number = time.monotonic() - start, number + 1
    faults = [fault for _, fault in events if fault] or compare(expected, read_contents(workdir))
    kills.update((name, moment) for moment, _ in events)
    if events:
      lost_seconds[name].append((elapsed - seconds) / len(events))
    if faults:
      differing[name] += 1
      moments = ', '.join(moment for moment, _ in events)
      print(f'{workdir}, {name} after {moments}: {"; ".join(faults[:5])}', flush=True)
    else:
      shutil.rmtree(workdir)
  print_table(names, kills, differing, lost_seconds)
  return 1 if differing else 0


def print_table(
  names: list[str],
  kills: collections.Counter,
  differing: collections.Counter,
  lost_seconds: dict[str, list[float]],
) -> None:
  """Prints kills at each moment, folders that differ and seconds lost a kill, by command."""
  moments = list(dict.fromkeys(MOMENTS))
  header = ' '.join(f'{moment:>8}' for moment in (*moments, 'kills', 'differ'))
  print(f'{"command":<14} {header}  seconds lost a kill, median')
  for name in names:
    counts = [kills[name, moment] for moment in moments]
    cells = ' '.join(f'{count:>8}' for count in (*counts, sum(counts), differing[name]))
    cost = f'{statistics.median(lost_seconds[name]):.1f}' if lost_seconds[name] else ''
    print(f'{name:<14} {cells}  {cost}')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
  parser.add_argument('--minutes', type=float, default=20)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--only', type=lambda text: text.split(','), default=[], help='commands')
  parser.add_argument('--folder', type=pathlib.Path, help='folder to work in, which is not deleted')
  args = parser.parse_args()
  folder = args.folder or pathlib.Path(tempfile.mkdtemp(prefix='minilm-kill-'))
  status = run_campaign(args.minutes, args.seed, args.only, folder)
  if args.folder is None and not status:
    shutil.rmtree(folder)
  sys.exit(status)
