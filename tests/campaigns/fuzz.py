"""A coverage-guided fuzz of the readers, bounded in time: `bash launch/fuzz.sh [seconds]`.

Every reader of `tests/input_cases.py` is given what mutation makes of its good input; what reaches
a line of the package that nothing before reached joins the corpus and is mutated too. An exception
other than InputError is a finding, and so is an input that takes longer than `SLOW` seconds: it is
saved, and printed with the command that replays it. Where atheris is installed it does the mutating
and the guiding; else a small loop of our own, with sys.monitoring (Python 3.12 or newer) or
sys.settrace. The same seed and number of executions try the same inputs.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.util
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator

# the checkout, wherever it is called from
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent))


from minilm_jax.core.errors import InputError
from tests import corruptions, input_cases
from tests.input_cases import Input

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SLOW = 20  # seconds of the processor
_MOST = 1 << 16  # bytes of an input; what large ones do is for the matrix
_TOKENS = (
  *(value.encode() for value in corruptions.VALUES if len(value) < 99),
  b'\0',
  b'\xff\xfe',
  b'\xed\xa0\x80',
  b'\n',
  b'\r\n',
  b'"',
  b',',
  b'\t',
  b'{',
  b'}',
  b'[',
  b']',
  b':',
  b'PAR1',
  b'\x1f\x8b',
  b'(\xb5/\xfd',
  b'\xfd7zXZ\0',
  b'\xff\xff\xff\x7f',
  b'\0\0\0\x80',
  b'\xff' * 8,
  b'\x80' * 9,
  b"'descr'",
  b'text',
  b'label',
  b'-',
  b'1e9',
  b'<mask>',
)


@dataclasses.dataclass
class Tally:
  """What a fuzz has done: executions, lines reached, inputs kept, files of findings."""

  executions: int = 0
  lines: int = 0
  kept: int = 0
  findings: list[pathlib.Path] = dataclasses.field(default_factory=list)


class Slow(BaseException):
  """A reader took longer than it may; no `except` of the package catches it."""


class Coverage:
  """The lines of the package that were reached; `new()` is how many since it was last asked."""

  def __init__(self) -> None:
    self.seen: set[tuple[types.CodeType, int]] = set()
    self._asked, self._left = 0, {}
    self._here = str(ROOT / 'minilm_jax')
    if hasattr(sys, 'monitoring'):
      sys.monitoring.restart_events()  # lines that an earlier one has seen

  def new(self) -> int:
    found, self._asked = len(self.seen) - self._asked, len(self.seen)
    return found

  @contextlib.contextmanager
  def watching(self) -> Iterator[None]:
    """Lines that are run inside count."""
    if hasattr(sys, 'monitoring'):
      tool, line = sys.monitoring.COVERAGE_ID, sys.monitoring.events.LINE
      sys.monitoring.use_tool_id(tool, 'fuzz')
      sys.monitoring.register_callback(tool, line, self._line)
      sys.monitoring.set_events(tool, line)
      try:
        yield
      finally:
        sys.monitoring.set_events(tool, 0)
        sys.monitoring.free_tool_id(tool)
    else:
      before = sys.gettrace()
      sys.settrace(self._call)
      try:
        yield
      finally:
        sys.settrace(before)

  def _line(self, code: types.CodeType, number: int) -> object:
    if code.co_filename.startswith(self._here):
      self.seen.add((code, number))
    return sys.monitoring.DISABLE  # once is enough

  def _call(self, frame: types.FrameType, event: str, argument: object) -> Callable | None:
    code = frame.f_code
    if not code.co_filename.startswith(self._here):
      return None
    if code not in self._left:
      self._left[code] = {number for *_, number in code.co_lines() if number is not None}
    return self._trace if self._left[code] else None  # a function that is known costs no more

  def _trace(self, frame: types.FrameType, event: str, argument: object) -> Callable | None:
    self._left[frame.f_code].discard(frame.f_lineno)
    self.seen.add((frame.f_code, frame.f_lineno))
    return self._trace


def mutated(dice: random.Random, corpus: list[bytes]) -> bytes:
  """One of the corpus after a few changes."""
  data = bytearray(dice.choice(corpus))
  for _ in range(1 + dice.randrange(4)):
    place, size = dice.randrange(len(data) + 1), 1 << dice.randrange(6)
    kind = dice.randrange(8)
    if kind == 0 and data:
      data[place % len(data)] ^= 1 << dice.randrange(8)
    elif kind == 1 and data:
      data[place % len(data)] = dice.randrange(256)
    elif kind == 2:
      del data[place : place + size]
    elif kind == 3:
      del data[slice(place, None) if dice.randrange(2) else slice(place)]
    elif kind == 4:
      data[place:place] = data[place : place + size] * (1 + dice.randrange(3))
    elif kind == 5:
      other = dice.choice(corpus)
      data[place:] = other[dice.randrange(len(other) + 1) :]
    else:
      token = dice.choice(_TOKENS)
      data[place : place + (len(token) if kind == 6 else 0)] = token
  return bytes(data[:_MOST])


@dataclasses.dataclass
class Target:
  """One reader: where its input lies, and what it has been given that led somewhere new."""

  one: Input
  path: pathlib.Path
  corpus: list[bytes]

  def run(self, content: bytes, packed: bool = False) -> BaseException | None:
    """What a reader makes of an input: None or InputError is as it should be."""
    write = self.one.write if not packed else pathlib.Path.write_bytes
    write(self.path, content)
    signal.setitimer(signal.ITIMER_PROF, SLOW)
    try:
      self.one.read(self.path)
    except InputError:
      return None
    except KeyboardInterrupt:
      raise
    except BaseException as error:  # the very thing that is looked for
      return error
    finally:
      signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def targets(folder: pathlib.Path) -> list[Target]:
  """Every reader, its good input laid out in a folder of its own."""
  found = []
  for number, one in enumerate(input_cases.list_inputs()):
    place = folder / str(number)
    place.mkdir(parents=True)
    path = one.lay(place)
    # a recipe is code: what it does is not for a fuzz to try
    if path.is_file() and one.name != 'recipe':
      found.append(Target(one, path, [path.read_bytes()]))
  return found


def fuzz(
  seconds: float = float('inf'),
  executions: int | None = None,
  seed: int = 0,
  wanted: str = '',
  findings: pathlib.Path | None = None,
) -> Tally:
  """Tries inputs until so many seconds have passed, or so many have been tried.

  Args:
    seconds, executions: what ends it.
    seed: of the mutations.
    wanted: a part of the names of the readers that are tried.
    findings: where inputs that went wrong are saved; nowhere if not given.
  """
  tally, coverage, ends, told = Tally(), Coverage(), time.monotonic() + seconds, set()
  before = signal.signal(signal.SIGPROF, _slow)
  with tempfile.TemporaryDirectory() as folder:
    several = [target for target in targets(pathlib.Path(folder)) if wanted in target.one.name]
    for target in several:  # good input is not news
      with coverage.watching():
        error = target.run(target.corpus[0], packed=True)
      if error is not None:
        raise error
    coverage.new()
    while time.monotonic() < ends and (executions is None or tally.executions < executions):
      number = tally.executions
      target, dice = several[number % len(several)], random.Random(f'{seed} {number}')
      content = mutated(dice, target.corpus)
      if target.one.packing and dice.randrange(2):  # inside the packing
        with contextlib.suppress(Exception):  # of what is no longer packed
          content = input_cases.packed(
            target.one, mutated(dice, [input_cases.inner(target.one, dice.choice(target.corpus))])
          )
      with coverage.watching():
        error = target.run(content)
      tally.executions += 1
      if coverage.new():
        target.corpus.append(content)
        tally.kept += 1
      if error is not None and (mark := _where(error)) not in told:
        told.add(mark)
        tally.findings.append(_told(target, content, error, findings))
  signal.signal(signal.SIGPROF, before)
  tally.lines = len(coverage.seen)
  return tally


def _slow(number: int, frame: object) -> None:
  raise Slow(f'longer than {SLOW} seconds')


def _where(error: BaseException) -> tuple[str, int, type]:
  """Its kind and the last line that raised it: one finding a place."""
  trace = error.__traceback__
  while trace.tb_next:
    trace = trace.tb_next
  return trace.tb_frame.f_code.co_filename, trace.tb_lineno, type(error)


def _told(
  target: Target, content: bytes, error: BaseException, folder: pathlib.Path | None
) -> pathlib.Path:
  """Saves an input and says how to try it again."""
  name = f'{hashlib.sha256(content).hexdigest()[:12]}{"".join(target.path.suffixes)}'
  print(f'{target.one.name}: {type(error).__name__}: {str(error)[:300]}', file=sys.stderr)
  if folder is None:
    print(repr(content[:2000]), file=sys.stderr)
    return pathlib.Path(name)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / name).write_bytes(content)
  print(
    f'  {sys.executable} tests/campaigns/fuzz.py --replay {target.one.name!r} {folder / name}',
    file=sys.stderr,
  )
  return folder / name


def replay(name: str, path: pathlib.Path) -> None:
  """Gives a saved input to the reader of that name once more; what it raises is raised."""
  with tempfile.TemporaryDirectory() as folder:
    target = next(target for target in targets(pathlib.Path(folder)) if target.one.name == name)
    target.one.write(target.path, path.read_bytes())
    try:
      print(f'read: {str(target.one.read(target.path))[:1000]}')
    except InputError as error:
      print(error)


def with_atheris(seconds: int, findings: pathlib.Path) -> None:
  """Lets atheris guide; its first byte chooses the reader. It ends the process itself."""
  import atheris

  folder = pathlib.Path(tempfile.mkdtemp())
  several = targets(folder / 'work')
  seeds = folder / 'seeds'
  seeds.mkdir()
  for number, target in enumerate(several):
    (seeds / str(number)).write_bytes(bytes([number]) + target.corpus[0])

  def one(data: bytes) -> None:
    target = several[data[0] % len(several)] if data else several[0]
    error = target.run(data[1:])
    if error is not None:
      _told(target, data[1:], error, findings)
      raise error

  atheris.instrument_all()
  atheris.Setup([sys.argv[0], f'-max_total_time={seconds}', f'-max_len={_MOST}', str(seeds)], one)
  try:
    atheris.Fuzz()
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
  """Status 1 where anything was found."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('seconds', nargs='?', type=float, default=60)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--only', default='', help='a part of the name of an input')
  parser.add_argument('--findings', type=pathlib.Path, default=pathlib.Path('fuzz-findings'))
  parser.add_argument(
    '--replay', nargs=2, metavar=('INPUT', 'FILE'), help='try a saved input again'
  )
  given = parser.parse_args()
  if given.replay:
    replay(given.replay[0], pathlib.Path(given.replay[1]))
    return 0
  if importlib.util.find_spec('atheris'):
    with_atheris(int(given.seconds), given.findings)
  started = time.monotonic()
  with contextlib.redirect_stderr(_Quiet(sys.stderr)):
    tally = fuzz(given.seconds, None, given.seed, given.only, given.findings)
  print(
    f'{tally.executions:,} executions in {time.monotonic() - started:.0f} s, {tally.lines:,} lines of the package reached, '
    f'{tally.kept:,} inputs kept that reached new ones, {len(tally.findings)} findings'
  )
  return 1 if tally.findings else 0


class _Quiet:
  """Standard error without what readers say on their way: findings have a form of their own."""

  def __init__(self, to: object) -> None:
    self._to = to

  def write(self, text: str) -> int:
    return self._to.write(text) if sys._getframe(1).f_code.co_filename == __file__ else len(text)

  def flush(self) -> None:
    self._to.flush()


if __name__ == '__main__':
  sys.exit(main())
