"""Fuzzes every reader with coverage guidance for a limited time.

    bash launch/fuzz.sh [seconds] [--seed=0] [--only=NAME]

Each reader of `tests/input_cases.py` reads mutations of its valid input. An input that reaches a new
line of the package joins the corpus and is mutated in turn. A finding is an exception other than
InputError, or an input that takes more than `MAX_CPU_SECONDS`. Findings are saved and printed with
the command that replays them. Exits with status 1 if there are findings.

sys.monitoring (Python 3.12 or newer) or sys.settrace finds the lines. The same seed and number of
executions try the same inputs.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import pathlib
import random
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))  # a program has its own folder there, not the checkout

from minilm_jax.core.errors import InputError  # noqa: E402
from tests import corruptions, input_cases  # noqa: E402
from tests.input_cases import Input  # noqa: E402

MAX_CPU_SECONDS = 20
MAX_INPUT_BYTES = 1 << 16  # tests/test_bad_input.py tries large inputs
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
  """Counts of a fuzzing campaign.

  Attributes:
    executions: inputs tried.
    lines: lines of the package that were reached.
    corpus_growth: inputs that reached new lines.
    findings: files of the inputs that failed.
  """

  executions: int = 0
  lines: int = 0
  corpus_growth: int = 0
  findings: list[pathlib.Path] = dataclasses.field(default_factory=list)


class TooSlow(BaseException):
  """Interrupts a reader after `MAX_CPU_SECONDS`; the package never catches BaseException."""


class Coverage:
  """Records the lines of the package that are executed."""

  def __init__(self) -> None:
    self.lines: set[tuple[types.CodeType, int]] = set()
    self._num_counted = 0
    self._unreached: dict[types.CodeType, set[int]] = {}
    self._package = str(ROOT / 'minilm_jax')
    if hasattr(sys, 'monitoring'):
      sys.monitoring.restart_events()  # an earlier Coverage disabled the lines that it recorded

  def count_new_lines(self) -> int:
    """Returns the number of lines recorded since the last call."""
    count = len(self.lines) - self._num_counted
    self._num_counted = len(self.lines)
    return count

  @contextlib.contextmanager
  def record(self) -> Iterator[None]:
    """Records the lines that the body of the `with` statement executes."""
    if hasattr(sys, 'monitoring'):
      tool, event = sys.monitoring.COVERAGE_ID, sys.monitoring.events.LINE
      sys.monitoring.use_tool_id(tool, 'fuzz')
      sys.monitoring.register_callback(tool, event, self._record_line)
      sys.monitoring.set_events(tool, event)
      try:
        yield
      finally:
        sys.monitoring.set_events(tool, 0)
        sys.monitoring.free_tool_id(tool)
    else:
      tracer = sys.gettrace()
      sys.settrace(self._trace_call)
      try:
        yield
      finally:
        sys.settrace(tracer)

  def _record_line(self, code: types.CodeType, number: int) -> object:
    if code.co_filename.startswith(self._package):
      self.lines.add((code, number))
    return sys.monitoring.DISABLE  # each line is recorded once

  def _trace_call(self, frame: types.FrameType, event: str, argument: object) -> Callable | None:
    code = frame.f_code
    if not code.co_filename.startswith(self._package):
      return None
    if code not in self._unreached:
      self._unreached[code] = {number for *_, number in code.co_lines() if number is not None}
    return self._trace_line if self._unreached[code] else None  # tracing is slow

  def _trace_line(self, frame: types.FrameType, event: str, argument: object) -> Callable | None:
    self._unreached[frame.f_code].discard(frame.f_lineno)
    self.lines.add((frame.f_code, frame.f_lineno))
    return self._trace_line


def mutate(generator: random.Random, corpus: list[bytes]) -> bytes:
  """Returns a random input of the corpus after one to four random changes."""
  data = bytearray(generator.choice(corpus))
  for _ in range(1 + generator.randrange(4)):
    start, size = generator.randrange(len(data) + 1), 1 << generator.randrange(6)
    kind = generator.randrange(8)
    if kind == 0 and data:
      data[start % len(data)] ^= 1 << generator.randrange(8)
    elif kind == 1 and data:
      data[start % len(data)] = generator.randrange(256)
    elif kind == 2:
      del data[start : start + size]
    elif kind == 3:
      del data[slice(start, None) if generator.randrange(2) else slice(start)]
    elif kind == 4:
      data[start:start] = data[start : start + size] * (1 + generator.randrange(3))
    elif kind == 5:
      other = generator.choice(corpus)
      data[start:] = other[generator.randrange(len(other) + 1) :]
    else:
      token = generator.choice(_TOKENS)
      data[start : start + (len(token) if kind == 6 else 0)] = token
  return bytes(data[:MAX_INPUT_BYTES])


@dataclasses.dataclass
class Target:
  """A reader, the path of its input, and inputs to mutate."""

  case: Input
  path: pathlib.Path
  corpus: list[bytes]

  def run(self, content: bytes, exact: bool = False) -> BaseException | None:
    """Returns the exception of the reader; None if the reader succeeds or raises InputError.

    `exact` writes `content` as it is, without the checksum that some inputs need.
    """
    write = pathlib.Path.write_bytes if exact else self.case.write
    write(self.path, content)
    signal.setitimer(signal.ITIMER_PROF, MAX_CPU_SECONDS)
    try:
      self.case.read(self.path)
    except InputError:
      return None
    except KeyboardInterrupt:
      raise
    except BaseException as error:  # any other exception is a finding
      return error
    finally:
      signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def make_targets(folder: pathlib.Path) -> list[Target]:
  """Returns a target for each reader, with its valid input in a subfolder of `folder`."""
  targets = []
  for number, case in enumerate(input_cases.list_inputs()):
    subfolder = folder / str(number)
    subfolder.mkdir(parents=True)
    path = case.create(subfolder)
    # A recipe is Python code, and a mutated program may do anything.
    if path.is_file() and case.name != 'recipe':
      targets.append(Target(case, path, [path.read_bytes()]))
  return targets


def draw_input(generator: random.Random, target: Target) -> bytes:
  """Returns a mutated input; half of the compressed ones are mutated before compression."""
  content, case = mutate(generator, target.corpus), target.case
  if case.packing and generator.randrange(2):
    # Earlier mutations of the compressed bytes may not decompress.
    with contextlib.suppress(Exception):
      text = corruptions.UNPACK[case.packing](generator.choice(target.corpus))
      content = corruptions.PACK[case.packing](mutate(generator, [text]))
  return content


def fuzz(
  seconds: float = float('inf'),
  executions: int | None = None,
  seed: int = 0,
  only: str = '',
  findings: pathlib.Path | None = None,
) -> Tally:
  """Tries mutated inputs on all readers in turn.

  Args:
    seconds: time limit.
    executions: limit of the number of inputs.
    seed: seed of the mutations.
    only: part of the names of the inputs to try.
    findings: folder for inputs that fail; None prints them instead.

  Returns:
    Counts, and one finding for each type of exception and line that raised it.
  """
  tally, coverage, deadline = Tally(), Coverage(), time.monotonic() + seconds
  reported = set()
  handler = signal.signal(signal.SIGPROF, _raise_too_slow)
  with tempfile.TemporaryDirectory() as folder:
    targets = [target for target in make_targets(pathlib.Path(folder)) if only in target.case.name]
    for target in targets:
      with coverage.record():
        error = target.run(target.corpus[0], exact=True)
      if error is not None:
        raise error
    coverage.count_new_lines()  # lines that valid inputs reach are not new
    while time.monotonic() < deadline and (executions is None or tally.executions < executions):
      number = tally.executions
      target = targets[number % len(targets)]
      content = draw_input(random.Random(f'{seed} {number}'), target)
      with coverage.record():
        error = target.run(content)
      tally.executions += 1
      if coverage.count_new_lines():
        target.corpus.append(content)
        tally.corpus_growth += 1
      if error is not None and (origin := _find_origin(error)) not in reported:
        reported.add(origin)
        tally.findings.append(_report(target, content, error, findings))
  signal.signal(signal.SIGPROF, handler)
  tally.lines = len(coverage.lines)
  return tally


def _raise_too_slow(number: int, frame: object) -> None:
  raise TooSlow(f'more than {MAX_CPU_SECONDS} s of CPU time')


def _find_origin(error: BaseException) -> tuple[str, int, type]:
  """Returns file and line that raised an exception, and its type."""
  trace = error.__traceback__
  while trace.tb_next:
    trace = trace.tb_next
  return trace.tb_frame.f_code.co_filename, trace.tb_lineno, type(error)


def _report(
  target: Target, content: bytes, error: BaseException, folder: pathlib.Path | None
) -> pathlib.Path:
  """Saves an input that failed and prints the command that replays it."""
  name = f'{hashlib.sha256(content).hexdigest()[:12]}{"".join(target.path.suffixes)}'
  print(f'{target.case.name}: {type(error).__name__}: {str(error)[:300]}', file=sys.stderr)
  if folder is None:
    print(repr(content[:2000]), file=sys.stderr)
    return pathlib.Path(name)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / name).write_bytes(content)
  print(
    f'  {sys.executable} tests/campaigns/fuzz.py --replay {target.case.name!r} {folder / name}',
    file=sys.stderr,
  )
  return folder / name


def replay(name: str, path: pathlib.Path) -> None:
  """Reads a saved input with the reader called `name`; only InputError is caught."""
  with tempfile.TemporaryDirectory() as folder:
    target = next(t for t in make_targets(pathlib.Path(folder)) if t.case.name == name)
    target.case.write(target.path, path.read_bytes())
    try:
      print(f'read: {str(target.case.read(target.path))[:1000]}')
    except InputError as error:
      print(error)


class _OwnOutput:
  """Standard error without the text that readers print, such as warnings."""

  def __init__(self, stream: object) -> None:
    self._stream = stream

  def write(self, text: str) -> int:
    is_own = sys._getframe(1).f_code.co_filename == __file__
    return self._stream.write(text) if is_own else len(text)

  def flush(self) -> None:
    self._stream.flush()


def main() -> int:
  """Runs the campaign, or replays an input, and returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('seconds', nargs='?', type=float, default=60)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--only', default='', help='part of the names of the inputs to try')
  parser.add_argument('--findings', type=pathlib.Path, default=pathlib.Path('fuzz-findings'))
  parser.add_argument('--replay', nargs=2, metavar=('INPUT', 'FILE'), help='read a saved input')
  args = parser.parse_args()
  if args.replay:
    replay(args.replay[0], pathlib.Path(args.replay[1]))
    return 0
  start = time.monotonic()
  with contextlib.redirect_stderr(_OwnOutput(sys.stderr)):
    tally = fuzz(args.seconds, None, args.seed, args.only, args.findings)
  print(
    f'{tally.executions:,} inputs tried in {time.monotonic() - start:.0f} s, '
    f'{tally.lines:,} lines of the package reached, '
    f'{tally.corpus_growth:,} inputs added to the corpus, {len(tally.findings)} findings'
  )
  return 1 if tally.findings else 0


if __name__ == '__main__':
  sys.exit(main())
