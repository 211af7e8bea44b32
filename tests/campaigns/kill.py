"""Kills commands at random moments, starts them again and compares each result with an
uninterrupted run.

    bash launch/kill.sh [--minutes=20] [--seed=0] [--only=pretrain,corpus]

Each verb runs once uninterrupted. Then, until the time is over, a verb runs again in a folder of
its own, is killed up to three times (the whole process group, by SIGKILL), and is let end. The two
folders must hold the same: every byte of every file, every bit of every array of a checkpoint, and
nothing that a killed process left; only what depends on when and how long it ran is left out of the
comparison (`TIMES`); of TensorBoard's events, which hold times too, the scalars are compared. A
table tells kills, differences, and the time that a kill cost. Status 1 if there is a difference,
and the folders stay.

Moments: `start`, before there is anything in the folder; `random`, anywhere in the time that the
verb takes; `saving`, while a checkpoint is being written; `writing`, while a file has its temporary
name; `growing`, just after a log got another line; `signal`, SIGTERM in place of SIGKILL at a
random moment.
"""

import argparse
import collections
import dataclasses
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
from collections.abc import Iterator
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))  # the checkout, wherever it is called from

from tests import eventfile  # noqa: E402

MOMENTS = ('start', 'random', 'random', 'saving', 'writing', 'growing', 'signal')
TIMES = (
  'seconds',
  'tokens_per_second',
  'processor_seconds',
  'milliseconds',
  'load_before',
  'corpus_folder',
  'commit_timestamp_nsecs',
  'init_timestamp_nsecs',
  'corpus',
  'path',
  'workdir',
)
PAIRS = [
  ('the dog eats a bone .', 'the dog eat a bone .'),
  ('a small cat sleeps .', 'a small cats sleeps .'),
]
SMALL = (
  '--config.model.embedding_size=32',
  '--config.model.hidden_size=32',
  '--config.num_steps=240',
  '--config.log.every=10',
  '--config.eval.every=40',
  '--config.eval.first_at=10',
  '--config.checkpoint.every=20',
)


@dataclasses.dataclass(frozen=True)
class Verb:
  """A command without its --workdir; `seconds` that it takes are measured."""

  name: str
  arguments: tuple[str, ...]


def verbs(before: pathlib.Path) -> list[Verb]:
  """What is tried, in an order in which each finds what it needs under `before`."""
  corpus, run = f'--config.corpus={before}/corpus', f'--checkpoint={before}/pretrain'
  return [
    Verb('corpus', ('corpus', '--config=configs/tiny.py:corpus', '--config.workers=2')),
    Verb('pretrain', ('pretrain', '--config=configs/tiny.py', corpus, *SMALL)),
    Verb(
      'population',
      ('pretrain', '--config=configs/tiny.py', corpus, *SMALL, '--config.population.members=2'),
    ),
    Verb(
      'sweep',
      (
        'sweep',
        '--config=configs/cpu_grid.py:e32-h32-f64-a8-l1,e32-h32-f64-a8-l2',
        corpus,
        *SMALL[2:],
        '--config.model.vocab_size=512',
        '--config.num_steps=80',
        '--config.population.members=2',
      ),
    ),
    Verb(
      'finetune',
      (
        'finetune',
        '--config=configs/glue.py:microworld/acceptability,microworld/sentiment',
        run,
        '--with_scratch',
        '--config.seeds=0,1',
        '--config.task.max_train_examples=512',
        '--config.epochs=3',
        '--config.predictions=True',
        '--config.save_classifiers=True',
      ),
    ),
    Verb('minimal pairs', ('evaluate', run, f'--pairs={before}/pairs.jsonl')),
    Verb('report', ('report', f'{before}/pretrain', f'{before}/finetune', f'{before}/sweep')),
  ]


def start(verb: Verb, folder: pathlib.Path) -> subprocess.Popen:
  """The verb in a process group of its own; what it says goes into a file beside the folder."""
  command = [sys.executable, '-m', 'minilm_jax', *verb.arguments, f'--workdir={folder}']
  said = open(folder.parent / f'{folder.name}.log', 'ab')  # noqa: SIM115, it belongs to the process
  return subprocess.Popen(
    command,
    cwd=ROOT,
    stdout=said,
    stderr=said,
    start_new_session=True,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )


def shapes(folder: pathlib.Path) -> tuple[set[str], int]:
  """What a look at a folder tells: its temporary names, and the bytes of its logs."""
  temporary, grown = set(), 0
  for place, names, files in os.walk(folder):
    temporary |= {'saving' for name in names if 'orbax-checkpoint-tmp' in name}
    temporary |= {'writing' for name in (*names, *files) if name.endswith('.partial')}
    for name in files:
      if name.endswith('.jsonl'):
        try:
          grown += os.stat(os.path.join(place, name)).st_size
        except FileNotFoundError:
          pass
  return temporary, grown


def waits(process: subprocess.Popen, folder: pathlib.Path, moment: str, seconds: float) -> bool:
  """Waits for a moment of a running verb; whether it came before the end."""
  begun, grown = time.monotonic(), None
  while process.poll() is None:
    temporary, now = shapes(folder) if moment in ('saving', 'writing', 'growing') else (set(), 0)
    passed = time.monotonic() - begun
    if moment in ('random', 'signal', 'start'):
      if passed >= seconds:
        return True
    elif moment in temporary and passed >= seconds / 4:
      return True
    elif moment == 'growing' and grown is not None and now > grown and passed >= seconds / 2:
      return True
    grown = now
    time.sleep(0.001)
  return False


def ends(process: subprocess.Popen, moment: str) -> int:
  """Ends it in the way of the moment, and gives its status."""
  os.killpg(process.pid, signal.SIGTERM if moment == 'signal' else signal.SIGKILL)
  return process.wait()


def plain(value: Any) -> Any:
  """JSON without what depends on when and how long something ran."""
  if isinstance(value, dict):
    return {name: plain(inner) for name, inner in value.items() if name not in TIMES}
  return [plain(inner) for inner in value] if isinstance(value, list) else value


def contents(folder: pathlib.Path) -> dict[str, Any]:
  """What a folder holds, by path: bytes, JSON without times, and arrays of checkpoints."""
  found: dict[str, Any] = {}
  for path in sorted(folder.rglob('*')):
    name = str(path.relative_to(folder))
    if 'checkpoints/' in name:
      if path.name == 'default' and path.is_dir():
        found[name] = arrays(path)
    elif 'tfevents' in name:  # they hold times too, and count the starts in their names
      found[f'{name.rpartition("/events/")[0]} events'] = eventfile.scalars(
        folder / name.rpartition('events/')[0]
      )
    elif path.is_file() and path.suffix == '.json':
      found[name] = plain(json.loads(path.read_text()))
    elif path.is_file() and path.suffix == '.jsonl':
      found[name] = [plain(json.loads(line)) for line in path.read_text().splitlines()]
    elif path.is_file() and not path.name.endswith(('.html', '.svg', '.png', '.csv')):
      found[name] = path.read_bytes()
    elif path.is_file():
      found[name] = 'there'  # a report is drawn again from the same files, whose times it shows
  return found


def arrays(path: pathlib.Path) -> dict[str, tuple]:
  """The bytes of a checkpoint's arrays, whatever devices saved them."""
  import orbax.checkpoint as ocp
  from absl import logging

  logging.set_verbosity(logging.FATAL)  # it tells each checkpoint's history
  with ocp.PyTreeCheckpointer() as reader:
    names = reader.metadata(path).item_metadata.tree
    plain = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    found = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=plain))
  return {name: (array.shape, str(array.dtype), array.tobytes()) for name, array in found.items()}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
  """The paths at which two folders differ."""
  names = sorted(one.keys() | other.keys())
  return [
    f'{name}: only in one' if (name in one) != (name in other) else f'{name}: differs'
    for name in names
    if name not in one or name not in other or one[name] != other[name]
  ]


def trial(
  verb: Verb, folder: pathlib.Path, seconds: float, chosen: random.Random
) -> Iterator[tuple[str, str]]:
  """Runs a verb to its end through up to three kills; gives each (moment, what was wrong with how
  it ended).
  """
  for _ in range(chosen.randint(1, 3)):
    moment = chosen.choice(MOMENTS)
    process = start(verb, folder)
    if not waits(
      process,
      folder,
      moment,
      0.3 * chosen.random() if moment == 'start' else seconds * chosen.random(),
    ):
      return
    status = ends(process, moment)
    wrong = moment == 'signal' and status not in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
    yield moment, f'status {status} after SIGTERM' if wrong else ''
  status = start(verb, folder).wait()
  if status:
    yield 'the end', f'status {status}'


def campaign(minutes: float, seed: int, only: list[str], folder: pathlib.Path) -> int:
  """Runs trials until the time is over, and prints what they found; the exit status."""
  reference, chosen = folder / 'reference', random.Random(seed)
  reference.mkdir(parents=True)
  (reference / 'pairs.jsonl').write_text(
    ''.join(
      json.dumps({'sentence_good': good, 'sentence_bad': bad}) + '\n' for good, bad in PAIRS * 40
    )
  )
  known, took = {}, {}
  all_verbs = verbs(reference)
  tried = [verb for verb in all_verbs if not only or verb.name in only]
  for verb in all_verbs[: all_verbs.index(tried[-1]) + 1]:
    place = reference / verb.name.replace(' ', '-')
    for _ in range(2):  # the first compiles, the second finds the programs
      shutil.rmtree(place, ignore_errors=True)
      begun = time.monotonic()
      if start(verb, place).wait():
        print((place.parent / f'{place.name}.log').read_text(), file=sys.stderr)
        return 1
    took[verb.name], known[verb.name] = time.monotonic() - begun, contents(place)
    print(f'{verb.name}: {took[verb.name]:.1f} s uninterrupted', flush=True)
  kills, lost, bad = collections.Counter(), collections.defaultdict(list), []
  until, number = time.monotonic() + 60 * minutes, 0
  while time.monotonic() < until:
    verb, place = tried[number % len(tried)], folder / f'trial-{number}'
    begun = time.monotonic()
    found = list(trial(verb, place, took[verb.name], chosen))
    spent, number = time.monotonic() - begun, number + 1
    wrong = [why for _, why in found if why] or differences(known[verb.name], contents(place))
    kills.update((verb.name, moment) for moment, _ in found)
    if found:
      lost[verb.name].append((spent - took[verb.name]) / len(found))
    if wrong:
      bad.append(verb.name)
      moments = ', '.join(moment for moment, _ in found)
      print(f'{place}, {verb.name} after {moments}: {"; ".join(wrong[:5])}', flush=True)
    else:
      shutil.rmtree(place)
  table(tried, kills, lost, bad)
  return 1 if bad else 0


def table(
  tried: list[Verb], kills: collections.Counter, lost: dict[str, list[float]], bad: list[str]
) -> None:
  """Kills by verb and moment, folders that differ, seconds that a kill cost."""
  moments = list(dict.fromkeys(MOMENTS))
  print(
    '{:<14}'.format('verb'),
    *(f'{name:>8}' for name in moments),
    '   kills  differ  seconds lost a kill, median',
  )
  for verb in tried:
    each = [kills[verb.name, moment] for moment in moments]
    cost = f'{statistics.median(lost[verb.name]):.1f}' if lost[verb.name] else ''
    print(
      f'{verb.name:<14}',
      *(f'{count:>8}' for count in each),
      f'{sum(each):>8}{bad.count(verb.name):>8}  {cost}',
    )


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
  parser.add_argument('--minutes', type=float, default=20)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--only', type=lambda given: given.split(','), default=[])
  parser.add_argument('--folder', type=pathlib.Path, help='where it works; it stays there')
  asked = parser.parse_args()
  place = asked.folder or pathlib.Path(tempfile.mkdtemp(prefix='minilm-kill-'))
  status = campaign(asked.minutes, asked.seed, asked.only, place)
  if asked.folder is None and not status:
    shutil.rmtree(place)
  sys.exit(status)
