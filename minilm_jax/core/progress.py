"""What a reader sees: progress of long work, a live bar on a terminal and plain lines in a log;
tables at the end.

    with progress.track('pre-training', total=1000, unit='updates') as tick:
      tick(done=50, note='loss 6.21, 31,000 tokens/s')
"""

import contextlib
import datetime
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from rich import console as rich_console
from rich import progress as rich_progress
from rich import table as rich_table

from minilm_jax.core import distributed

_SECONDS_BETWEEN_LINES = 10.0
_WIDTH_OF_A_FILE = 160  # columns


def log(text: str) -> None:
  """One line for the reader, on standard error: standard output belongs to results.

  Of several processes one speaks.
  """
  if distributed.is_primary():
    print(text, file=sys.stderr, flush=True)


def print_table(tables: Iterable[rich_table.Table | str]) -> None:
  """Tables and lines on standard output, as wide as the terminal or, in a file, as they need."""
  to = rich_console.Console(markup=False, emoji=False, highlight=False)
  if not to.is_terminal:
    to = rich_console.Console(markup=False, emoji=False, highlight=False, width=_WIDTH_OF_A_FILE)
  for table in tables:
    to.print(table)


def format_duration(seconds: float) -> str:
  """Hours, minutes and seconds, as in 1:02:03.

  >>> format_duration(3723.4)
  '1:02:03'
  """
  return str(datetime.timedelta(seconds=round(seconds)))


@contextlib.contextmanager
def silence() -> Iterator[None]:
  """What libraries log meanwhile is not for the reader: what fails, we say."""
  before = logging.root.manager.disable
  logging.disable(logging.CRITICAL)
  try:
    yield
  finally:
    logging.disable(before)


@contextlib.contextmanager
def track_progress(
  what: str, total: float, unit: str, done: float = 0
) -> Iterator[Callable[..., None]]:
  """Yields `tick(done, note='')`; `total=0` is work of unknown length."""
  if sys.stderr.isatty() and distributed.is_primary():
    with _bar(what, total, unit, done) as tick:
      yield tick
  else:
    with _lines(what, total, unit, done) as tick:
      yield tick


@contextlib.contextmanager
def _bar(what: str, total: float, unit: str, done: float) -> Iterator[Callable[..., None]]:
  columns = (
    rich_progress.TextColumn('{task.description}'),
    rich_progress.BarColumn(bar_width=24),
    rich_progress.TextColumn(
      '{task.completed:,.0f}' + (f'/{total:,.0f}' if total else '') + f' {unit}'
    ),
    rich_progress.TimeElapsedColumn(),
    rich_progress.TextColumn('left'),
    rich_progress.TimeRemainingColumn(),
    rich_progress.TextColumn('{task.fields[note]}'),
  )
  with rich_progress.Progress(*columns, console=rich_console.Console(stderr=True)) as bar:
    task = bar.add_task(what, total=total or None, completed=done, note='')
    yield lambda done, note='': bar.update(task, completed=done, note=note)


@contextlib.contextmanager
def _lines(what: str, total: float, unit: str, done: float) -> Iterator[Callable[..., None]]:
  started, first, last = time.monotonic(), done, [0.0]

  def tick(done: float, note: str = '') -> None:
    now = time.monotonic()
    if now - last[0] < _SECONDS_BETWEEN_LINES and done != total:
      return
    last[0] = now
    spent = now - started
    text = f'{what}: {done:,.0f}{f"/{total:,.0f}" if total else ""} {unit}, {format_duration(spent)} spent'
    if total and done > first:
      text += f', {format_duration(spent * (total - done) / (done - first))} left'
    log(text + (f', {note}' if note else ''))

  yield tick
